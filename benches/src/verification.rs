//! Verification: startup, hits, misses, and size. Compares it with the same job in Python, and with a minimal function.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::api::Request;
use tests::aws::{CREDENTIALS, Moto};
use tests::directory::record;
use tests::function::binary;
use tests::redis::{Kind, Redis};
use tests::workspace;
use uuid::Uuid;

use crate::processor::{CPU_SHARE, CpuAffinity, Quota};
use crate::runtime::Instance;
use crate::table::{Goal, Series, Table, Unit, progress};
use crate::upstream::Upstream;

/// The latency of Novi.
pub(crate) const LATENCY: Duration = Duration::from_millis(20);
const PREFIX: &str = "/idaa";
const KEY: &str = "a-key-of-the-usual-length-for-this-benchmark.";
/// The number of warm invocations of each kind.
const WARM_HITS: usize = 2_000;
/// The number of warm misses. It is smaller, because each one takes at least as long as Novi.
const WARM_MISSES: usize = 200;

/// The services that verification needs.
pub(crate) struct Environment {
    redis: Redis,
    /// Kept alive, because parameters are read from it.
    _moto: Moto,
    novi: Upstream,
    variables: Vec<(String, String)>,
    /// The members in Novi.
    members: Vec<Uuid>,
    /// The index of the next member that no instance has verified.
    next_uncached: usize,
    _dir: TempDir,
}

impl Environment {
    /// Starts the services. With `CONFIG_FILE` in `extra`, parameters are read from a file instead of SSM.
    pub(crate) async fn start(people: usize, latency: Duration, extra: &[(&str, &str)]) -> Result<Self> {
        let redis = Redis::start(Kind::Tls)?;
        let members: Vec<Uuid> = (0..people).map(|_| Uuid::from_u128(fastrand::u128(..))).collect();
        let pages: HashMap<String, Bytes> = members
            .iter()
            .map(|id| {
                let body = record(*id, "Marguerite", "Delacroix", "ada lists@example.org").to_string();
                (format!("/api/customers/{}", id.hyphenated()), Bytes::from(body))
            })
            .collect();
        let novi = Upstream::start(move |uri| pages.get(uri.path()).cloned(), latency, redis.authority()).await?;
        let parameters = json!({
            "novi_api_root_url": format!("{}/api", novi.url()), "novi_idaa_api_key": KEY,
            "api_keys": [{"name": "frontend", "key": KEY}], "cache_password": redis.password(),
        });
        let moto = Moto::start()?;
        moto.put(PREFIX, &parameters).await?;
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("config.json");
        std::fs::write(&file, parameters.to_string())?;
        let mut variables: Vec<(String, String)> =
            CREDENTIALS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        variables.extend(redis.variables());
        let mut add = |name: &str, value: &str| variables.push((name.to_owned(), value.to_owned()));
        add("AWS_DEFAULT_REGION", "us-east-1");
        for limit in ["VERIFY_NOVI_MAX_PER_MINUTE", "NOVI_TOTAL_PER_SECOND", "NOVI_TOTAL_PER_DAY"] {
            add(limit, "1000000");
        }
        if extra.iter().any(|(name, _)| *name == "CONFIG_FILE") {
            add("CONFIG_FILE", &file.display().to_string());
        } else {
            add("PARAMETER_PREFIX", PREFIX);
            add("AWS_ENDPOINT_URL", &moto.url());
        }
        for (name, value) in extra.iter().filter(|(name, _)| *name != "CONFIG_FILE") {
            add(name, value);
        }
        Ok(Self { redis, _moto: moto, novi, variables, members, next_uncached: 0, _dir: dir })
    }

    /// Returns the environment variables of the product and its peer.
    pub(crate) fn variables(&self) -> &[(String, String)] {
        &self.variables
    }

    /// Returns the event of a request for a member that no instance has verified.
    pub(crate) fn uncached_member(&mut self) -> Result<Bytes> {
        let id = self.members.get(self.next_uncached).context("there are no more members")?;
        self.next_uncached += 1;
        Ok(Self::event(*id))
    }

    /// Returns the event of a request for this member.
    fn event(id: Uuid) -> Bytes {
        let request = Request::get(&format!("/v3/action/idaa/novi_member/{}", id.hyphenated()))
            .header("x-api-key", KEY)
            .header("x-account-id", "account-1")
            .header("accept", "application/json")
            .header("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0");
        Bytes::from(request.http_api("$default").to_string())
    }

    /// Starts the minimal function.
    async fn baseline(&self) -> Result<Instance> {
        let mut variables = self.variables.clone();
        variables.push(("CACHE_PASSWORD".to_owned(), self.redis.password().unwrap_or_default().to_owned()));
        variables.push(("NOVI".to_owned(), self.novi.url()));
        Instance::start_pinned(&binary("baseline")?, &[], &variables).await
    }

    /// Starts the peer in Python.
    async fn python(&self) -> Result<Instance> {
        let mut variables = self.variables.clone();
        let tasks = workspace().join("benches/python").display().to_string();
        variables.extend(
            [("LAMBDA_TASK_ROOT", tasks.as_str()), ("PYTHONPATH", &tasks), ("_HANDLER", "verify.handler")]
                .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        Instance::start_pinned(&python(), &["-m", "awslambdaric", "verify.handler"], &variables).await
    }

    /// Starts the product.
    pub(crate) async fn product(&self) -> Result<Instance> {
        Instance::start_pinned(&binary("verify")?, &[], &self.variables).await
    }
}

/// Returns the path of the Python interpreter of the peers.
pub(crate) fn python() -> PathBuf {
    workspace().join("benches/.venv/bin/python")
}

/// Fails unless the response is a 200 with this origin in `X-Cache`.
pub(crate) fn ensure_origin(response: &Value, origin: &str) -> Result<()> {
    ensure!(response["statusCode"] == 200 && response["headers"]["x-cache"] == origin, "{response}");
    Ok(())
}

/// Measures verification.
pub(crate) async fn measure(rounds: usize) -> Result<Table> {
    let mut table = Table::default();
    let _affinity = CpuAffinity::set(false)?;
    let mut environment = Environment::start(4 * rounds, Duration::ZERO, &[]).await?;
    starts(&mut environment, rounds, &mut table).await?;
    phases(&environment, rounds, &mut table).await?;
    drop(environment);
    let mut environment = Environment::start(1 + 2 * WARM_MISSES, LATENCY, &[]).await?;
    warm(&mut environment, &mut table).await?;
    sizes(&mut table)?;
    Ok(table)
}

/// Measures startup, and first invocations with a small share of a CPU.
async fn starts(environment: &mut Environment, rounds: usize, table: &mut Table) -> Result<()> {
    let milliseconds = || Series::new(Unit::Milliseconds);
    let (mut verify_init, mut python_init, mut baseline_init) = (milliseconds(), milliseconds(), milliseconds());
    let (mut verify_first, mut python_first) = ([milliseconds(), milliseconds()], [milliseconds(), milliseconds()]);
    let (mut verify_memory, mut python_memory) = (Series::new(Unit::Mebibytes), Series::new(Unit::Mebibytes));
    let quota = Quota::new().inspect_err(|error| progress(&format!("NOT MEASURED with a share of a CPU: {error:#}")));
    // A first start of each loads files from the disk into memory, and lets Python compile its imports.
    for instance in [environment.product().await?, environment.python().await?, environment.baseline().await?] {
        instance.kill()?;
    }
    for _ in 0..rounds {
        for (origin, index) in [("miss", 0), ("hit", 1)] {
            baseline_init.time(first(environment.baseline().await?, None, None).await?.0);
            let event = environment.uncached_member()?;
            if origin == "hit" {
                environment.product().await?.invoke(&event).await?;
            }
            let (init, invocation, memory) =
                first(environment.product().await?, quota.as_ref().ok(), Some((&event, origin))).await?;
            verify_init.time(init);
            verify_first[index].time(invocation);
            verify_memory.push(memory);
            let event = if origin == "hit" { event } else { environment.uncached_member()? };
            let (init, invocation, memory) =
                first(environment.python().await?, quota.as_ref().ok(), Some((&event, origin))).await?;
            python_init.time(init);
            python_first[index].time(invocation);
            python_memory.push(memory);
        }
    }
    table.at_most("init of `verify`, from spawn to its first request for an event", &verify_init, 12.0);
    table.compare("the same", &verify_init, "Python", &python_init, Goal::FactorBetter(30.0));
    table.figure("init of the minimal function with Redis", &baseline_init);
    if quota.is_ok() {
        let share = format!("{CPU_SHARE:.3} of a CPU");
        for (origin, index) in [("miss", 0), ("hit", 1)] {
            let what = format!("first invocation after init, a {origin}, with {share}");
            table.compare(&what, &verify_first[index], "Python", &python_first[index], Goal::FactorBetter(4.0));
        }
    }
    table.at_most("peak memory after one invocation", &verify_memory, 12.0);
    table.compare("the same", &verify_memory, "Python", &python_memory, Goal::None);
    Ok(())
}

/// Measures the phases of startup, from the log of the product.
async fn phases(environment: &Environment, rounds: usize, table: &mut Table) -> Result<()> {
    let mut variables = environment.variables.clone();
    variables.push(("AWS_LAMBDA_LOG_LEVEL".to_owned(), "DEBUG".to_owned()));
    let mut phases: Vec<(String, Series)> = Vec::new();
    for _ in 0..rounds {
        let instance = Instance::start_pinned(&binary("verify")?, &[], &variables).await?;
        for line in instance.log().lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let (Some(phase), Some(milliseconds)) = (line["phase"].as_str(), line["duration_ms"].as_f64()) else {
                continue;
            };
            let known = phases.iter().position(|(name, _)| name == phase);
            let index = known.unwrap_or_else(|| {
                phases.push((phase.to_owned(), Series::new(Unit::Milliseconds)));
                phases.len() - 1
            });
            phases[index].1.push(milliseconds);
        }
    }
    for (phase, series) in phases {
        table.figure(&format!("init of `verify`, phase {phase}"), &series);
    }
    Ok(())
}

/// Measures one startup and one invocation. Returns the init time, the invocation time and the peak memory in MiB.
async fn first(
    mut instance: Instance,
    quota: Option<&Quota>,
    invocation: Option<(&Bytes, &str)>,
) -> Result<(Duration, Duration, f64)> {
    if let Some(quota) = quota {
        quota.limit(instance.pid())?;
    }
    let mut took = Duration::ZERO;
    if let Some((event, origin)) = invocation {
        let response;
        (response, took) = instance.invoke(event).await?;
        ensure_origin(&response, origin)?;
    }
    let (init, memory) = (instance.init, instance.peak_memory()?);
    instance.kill()?;
    Ok((init, took, memory))
}

/// Measures warm invocations. Compares each with the minimum that it could take.
async fn warm(environment: &mut Environment, table: &mut Table) -> Result<()> {
    let (mut product, mut baseline, mut python) =
        (environment.product().await?, environment.baseline().await?, environment.python().await?);
    environment.redis.command(&["SET", "idaa:novi_member:baseline", &"x".repeat(96)])?;
    let request = |path: &str| Bytes::from(Request::get(path).http_api("$default").to_string());
    let (trivial, get, event) = (request("/"), request("/get"), environment.uncached_member()?);
    // Every code path runs once before the measurement.
    for instance in [&mut product, &mut python] {
        instance.invoke(&event).await?;
        ensure_origin(&instance.invoke(&event).await?.0, "hit")?;
    }
    let micro = || Series::new(Unit::Microseconds);
    let (mut hit, mut bare, mut gets, mut python_hit) = (micro(), micro(), micro(), micro());
    for _ in 0..WARM_HITS {
        hit.time(product.invoke(&event).await?.1);
        bare.time(baseline.invoke(&trivial).await?.1);
        gets.time(nanoseconds(&baseline.invoke(&get).await?.0)?);
        python_hit.time(python.invoke(&event).await?.1);
    }
    let inside = logged_durations(&product, "hit", Unit::Microseconds)?;
    table.compare("warm hit, inside the function", &inside, "a bare `GET`", &gets, Goal::MaxRatio(1.3));
    let minimum = bare.plus(&gets);
    table.compare(
        "warm hit, whole invocation",
        &hit,
        "the minimal function plus the `GET`",
        &minimum,
        Goal::MaxRatio(1.2),
    );
    table.compare("the same", &hit, "Python", &python_hit, Goal::None);

    let milliseconds = || Series::new(Unit::Milliseconds);
    let (mut miss, mut novi, mut python_miss) = (milliseconds(), milliseconds(), milliseconds());
    for _ in 0..WARM_MISSES {
        let event = environment.uncached_member()?;
        let (response, took) = product.invoke(&event).await?;
        ensure_origin(&response, "miss")?;
        miss.time(took);
        let id = environment
            .members
            .get(environment.next_uncached - 1)
            .context("expected a member that was verified")?
            .hyphenated();
        novi.time(nanoseconds(&baseline.invoke(&request(&format!("/novi/api/customers/{id}"))).await?.0)?);
        python_miss.time(python.invoke(&environment.uncached_member()?).await?.1);
    }
    let inside = logged_durations(&product, "miss", Unit::Milliseconds)?;
    table.compare("warm miss, inside the function", &inside, "Novi", &novi, Goal::MaxExcess(1.0));
    table.compare("warm miss, whole invocation", &miss, "Python", &python_miss, Goal::None);
    table.at_most(
        "peak memory after thousands of invocations",
        &Series::exact(Unit::Mebibytes, product.peak_memory()?),
        12.0,
    );
    Ok(())
}

/// Returns the durations in the log of the product for one origin, except the first.
fn logged_durations(product: &Instance, origin: &str, unit: Unit) -> Result<Series> {
    let mut inside = Series::new(unit);
    let log = product.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    for line in lines.filter(|line| line["cache"] == origin).skip(1) {
        let milliseconds = line["duration_ms"].as_f64().context("expected duration_ms in the log")?;
        inside.time(Duration::from_secs_f64(milliseconds / 1e3));
    }
    Ok(inside)
}

/// Returns the time that the baseline measured.
fn nanoseconds(response: &Value) -> Result<Duration> {
    let body = response["body"].as_str().context("expected a body from the baseline")?;
    Ok(Duration::from_nanos(body.parse().with_context(|| format!("expected a number, found {response}"))?))
}

/// Measures the size of the binary and of the package.
fn sizes(table: &mut Table) -> Result<()> {
    let verify = binary("verify")?;
    let archive = tempfile::NamedTempFile::new()?;
    zip(&verify, archive.path())?;
    table.at_most("binary of `verify`, stripped", &megabytes(&verify)?, 8.5);
    table.at_most("the same, zipped for Lambda", &megabytes(archive.path())?, 3.6);
    Ok(())
}

/// Returns the size of a file.
pub(crate) fn megabytes(path: &Path) -> Result<Series> {
    #[expect(clippy::cast_precision_loss, reason = "some megabytes")]
    let size = std::fs::metadata(path)?.len() as f64;
    Ok(Series::exact(Unit::Megabytes, size / 1e6))
}

/// Compresses a binary into a package for Lambda.
fn zip(binary: &Path, into: &Path) -> Result<()> {
    const SCRIPT: &str = "import sys, zipfile\n\
        with zipfile.ZipFile(sys.argv[2], 'w', zipfile.ZIP_DEFLATED, compresslevel=9) as z: z.write(sys.argv[1], 'bootstrap')";
    let done = Command::new(python()).args(["-c", SCRIPT]).arg(binary).arg(into).status()?;
    ensure!(done.success(), "compressing the binary failed");
    Ok(())
}
