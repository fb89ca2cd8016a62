//! Verification: its start, a hit, a miss, its size; beside the same job in
//! Python and beside a function that does next to nothing.

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

use crate::processor::{Place, Quota, SHARE};
use crate::runtime::Instance;
use crate::table::{Goal, Series, Table, Unit, progress};
use crate::upstream::Upstream;

/// How long Novi takes here.
const LATENCY: Duration = Duration::from_millis(20);
const PREFIX: &str = "/idaa";
const KEY: &str = "a key of the bench's own, of the usual length";
/// Warm invocations of each kind in one measurement.
const WARM: usize = 2_000;
/// Warm misses: each takes as long as Novi does.
const MISSES: usize = 200;

/// What verification stands on here.
pub(crate) struct World {
    redis: Redis,
    /// Kept alive: parameters are read from it.
    _moto: Moto,
    novi: Upstream,
    variables: Vec<(String, String)>,
    /// Whom Novi knows.
    members: Vec<Uuid>,
    /// The next of them who was not asked for yet.
    fresh: usize,
    _dir: TempDir,
}

impl World {
    pub(crate) async fn start(people: usize, latency: Duration, more: &[(&str, &str)]) -> Result<Self> {
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
        add("VERIFY_NOVI_MAX_PER_MINUTE", "100000");
        if more.iter().any(|(name, _)| *name == "CONFIG_FILE") {
            add("CONFIG_FILE", &file.display().to_string());
        } else {
            add("PARAMETER_PREFIX", PREFIX);
            add("AWS_ENDPOINT_URL", &moto.url());
        }
        for (name, value) in more.iter().filter(|(name, _)| *name != "CONFIG_FILE") {
            add(name, value);
        }
        Ok(Self { redis, _moto: moto, novi, variables, members, fresh: 0, _dir: dir })
    }

    /// What the product and its peer are told.
    pub(crate) fn variables(&self) -> &[(String, String)] {
        &self.variables
    }

    /// The event of a request for somebody who was not asked for yet.
    pub(crate) fn stranger(&mut self) -> Result<Bytes> {
        let id = self.members.get(self.fresh).context("everybody was asked for")?;
        self.fresh += 1;
        Ok(Self::event(*id))
    }

    fn event(id: Uuid) -> Bytes {
        let request = Request::get(&format!("/v3/action/idaa/novi_member/{}", id.hyphenated()))
            .header("x-api-key", KEY)
            .header("x-account-id", "account-1")
            .header("accept", "application/json")
            .header("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0");
        Bytes::from(request.http_api("$default").to_string())
    }

    async fn baseline(&self) -> Result<Instance> {
        let mut variables = self.variables.clone();
        variables.push(("CACHE_PASSWORD".to_owned(), self.redis.password().unwrap_or_default().to_owned()));
        variables.push(("NOVI".to_owned(), self.novi.url()));
        Instance::start_apart(&binary("baseline")?, &[], &variables).await
    }

    async fn python(&self) -> Result<Instance> {
        let mut variables = self.variables.clone();
        let tasks = workspace().join("benches/python").display().to_string();
        variables.extend(
            [("LAMBDA_TASK_ROOT", tasks.as_str()), ("PYTHONPATH", &tasks), ("_HANDLER", "verify.handler")]
                .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        Instance::start_apart(&python(), &["-m", "awslambdaric", "verify.handler"], &variables).await
    }

    pub(crate) async fn product(&self) -> Result<Instance> {
        Instance::start_apart(&binary("verify")?, &[], &self.variables).await
    }
}

/// The Python that has the peers.
pub(crate) fn python() -> PathBuf {
    workspace().join("benches/.venv/bin/python")
}

/// Checks that an answer is a 200 from where it should be.
pub(crate) fn is_answered(answer: &Value, origin: &str) -> Result<()> {
    ensure!(answer["statusCode"] == 200 && answer["headers"]["x-cache"] == origin, "{answer}");
    Ok(())
}

/// Measures it.
pub(crate) async fn measure(rounds: usize) -> Result<Table> {
    let mut table = Table::default();
    let _here = Place::on(false)?;
    let mut world = World::start(4 * rounds, Duration::ZERO, &[]).await?;
    starts(&mut world, rounds, &mut table).await?;
    phases(&world, rounds, &mut table).await?;
    drop(world);
    let mut world = World::start(1 + 2 * MISSES, LATENCY, &[]).await?;
    warm(&mut world, &mut table).await?;
    sizes(&mut table)?;
    Ok(table)
}

/// Starts, and first invocations with little of a processor.
async fn starts(world: &mut World, rounds: usize, table: &mut Table) -> Result<()> {
    let milliseconds = || Series::new(Unit::Milliseconds);
    let (mut ours, mut theirs, mut bare) = (milliseconds(), milliseconds(), milliseconds());
    let (mut our_first, mut their_first) = ([milliseconds(), milliseconds()], [milliseconds(), milliseconds()]);
    let (mut our_memory, mut their_memory) = (Series::new(Unit::Mebibytes), Series::new(Unit::Mebibytes));
    let quota =
        Quota::new().inspect_err(|error| progress(&format!("not measured with little of a processor: {error:#}")));
    // Once ahead: what is read from the disk is in memory then, and Python has compiled what it imports.
    for instance in [world.product().await?, world.python().await?, world.baseline().await?] {
        instance.end()?;
    }
    for _ in 0..rounds {
        for (origin, index) in [("miss", 0), ("hit", 1)] {
            bare.time(first(world.baseline().await?, None, None).await?.0);
            let event = world.stranger()?;
            if origin == "hit" {
                world.product().await?.invoke(&event).await?;
            }
            let (init, invocation, memory) =
                first(world.product().await?, quota.as_ref().ok(), Some((&event, origin))).await?;
            ours.time(init);
            our_first[index].time(invocation);
            our_memory.push(memory);
            let event = if origin == "hit" { event } else { world.stranger()? };
            let (init, invocation, memory) =
                first(world.python().await?, quota.as_ref().ok(), Some((&event, origin))).await?;
            theirs.time(init);
            their_first[index].time(invocation);
            their_memory.push(memory);
        }
    }
    table.at_most("init of `verify`: spawn to its first request for an event", &ours, 12.0);
    table.against("the same", &ours, "Python", &theirs, Goal::Times(30.0));
    table.figure("init of a trivial function with a Redis", &bare);
    if quota.is_ok() {
        let share = format!("{SHARE:.3} of a processor");
        for (origin, index) in [("miss", 0), ("hit", 1)] {
            let what = format!("first invocation after init, a {origin}, with {share}");
            table.against(&what, &our_first[index], "Python", &their_first[index], Goal::Times(4.0));
        }
    }
    table.at_most("peak memory after one invocation", &our_memory, 12.0);
    table.against("the same", &our_memory, "Python", &their_memory, Goal::None);
    Ok(())
}

/// What the phases of a start take, by its own log.
async fn phases(world: &World, rounds: usize, table: &mut Table) -> Result<()> {
    let mut variables = world.variables.clone();
    variables.push(("AWS_LAMBDA_LOG_LEVEL".to_owned(), "DEBUG".to_owned()));
    let mut phases: Vec<(String, Series)> = Vec::new();
    for _ in 0..rounds {
        let instance = Instance::start_apart(&binary("verify")?, &[], &variables).await?;
        for line in instance.printed().lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let (Some(phase), Some(milliseconds)) = (line["phase"].as_str(), line["milliseconds"].as_f64()) else {
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
        table.figure(&format!("init of `verify`, its phase {phase}"), &series);
    }
    Ok(())
}

/// What one start and one invocation cost.
async fn first(
    mut instance: Instance,
    quota: Option<&Quota>,
    invocation: Option<(&Bytes, &str)>,
) -> Result<(Duration, Duration, f64)> {
    if let Some(quota) = quota {
        quota.hold(instance.pid())?;
    }
    let mut took = Duration::ZERO;
    if let Some((event, origin)) = invocation {
        let answer;
        (answer, took) = instance.invoke(event).await?;
        is_answered(&answer, origin)?;
    }
    let (init, memory) = (instance.init, instance.peak_memory()?);
    instance.end()?;
    Ok((init, took, memory))
}

/// Warm invocations, each beside the least that it could be.
async fn warm(world: &mut World, table: &mut Table) -> Result<()> {
    let (mut product, mut baseline, mut python) =
        (world.product().await?, world.baseline().await?, world.python().await?);
    world.redis.command(&["SET", "idaa:novi_member:baseline", &"x".repeat(96)])?;
    let request = |path: &str| Bytes::from(Request::get(path).http_api("$default").to_string());
    let (trivial, get, event) = (request("/"), request("/get"), world.stranger()?);
    // Everything was done once.
    for instance in [&mut product, &mut python] {
        instance.invoke(&event).await?;
        is_answered(&instance.invoke(&event).await?.0, "hit")?;
    }
    let micro = || Series::new(Unit::Microseconds);
    let (mut hit, mut bare, mut gets, mut theirs) = (micro(), micro(), micro(), micro());
    for _ in 0..WARM {
        hit.time(product.invoke(&event).await?.1);
        bare.time(baseline.invoke(&trivial).await?.1);
        gets.time(nanoseconds(&baseline.invoke(&get).await?.0)?);
        theirs.time(python.invoke(&event).await?.1);
    }
    let inside = logged(&product, "hit", Unit::Microseconds)?;
    table.against("warm hit, inside the function", &inside, "a bare `GET`", &gets, Goal::AtMost(1.3));
    let least = bare.and(&gets);
    table.against(
        "warm hit, the whole invocation",
        &hit,
        "a trivial function and the `GET`",
        &least,
        Goal::AtMost(1.2),
    );
    table.against("the same", &hit, "Python", &theirs, Goal::None);

    let milliseconds = || Series::new(Unit::Milliseconds);
    let (mut miss, mut novi, mut theirs) = (milliseconds(), milliseconds(), milliseconds());
    for _ in 0..MISSES {
        let event = world.stranger()?;
        let (answer, took) = product.invoke(&event).await?;
        is_answered(&answer, "miss")?;
        miss.time(took);
        let id = world.members.get(world.fresh - 1).context("there is one")?.hyphenated();
        novi.time(nanoseconds(&baseline.invoke(&request(&format!("/novi/api/customers/{id}"))).await?.0)?);
        theirs.time(python.invoke(&world.stranger()?).await?.1);
    }
    let inside = logged(&product, "miss", Unit::Milliseconds)?;
    table.against("warm miss, inside the function", &inside, "Novi", &novi, Goal::Over(1.0));
    table.against("warm miss, the whole invocation", &miss, "Python", &theirs, Goal::None);
    table.at_most(
        "peak memory after thousands of invocations",
        &Series::exact(Unit::Mebibytes, product.peak_memory()?),
        12.0,
    );
    Ok(())
}

/// How long the product says that its answers took, the first of each kind aside.
fn logged(product: &Instance, origin: &str, unit: Unit) -> Result<Series> {
    let mut inside = Series::new(unit);
    let log = product.printed();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    for line in lines.filter(|line| line["cache"] == origin).skip(1) {
        let milliseconds = line["milliseconds"].as_f64().context("the log has no time")?;
        inside.time(Duration::from_secs_f64(milliseconds / 1e3));
    }
    Ok(inside)
}

/// What the baseline has measured.
fn nanoseconds(answer: &Value) -> Result<Duration> {
    let body = answer["body"].as_str().context("the baseline says nothing")?;
    Ok(Duration::from_nanos(body.parse().with_context(|| format!("no figure: {answer}"))?))
}

fn sizes(table: &mut Table) -> Result<()> {
    let verify = binary("verify")?;
    let zip = tempfile::NamedTempFile::new()?;
    zipped(&verify, zip.path())?;
    let megabytes = |path: &Path| -> Result<Series> {
        #[expect(clippy::cast_precision_loss, reason = "some megabytes")]
        let size = std::fs::metadata(path)?.len() as f64;
        Ok(Series::exact(Unit::Megabytes, size / 1e6))
    };
    table.at_most("binary of `verify`, stripped", &megabytes(&verify)?, 8.5);
    table.at_most("the same, zipped as for Lambda", &megabytes(zip.path())?, 3.6);
    Ok(())
}

fn zipped(binary: &Path, into: &Path) -> Result<()> {
    const SCRIPT: &str = "import sys, zipfile\n\
        with zipfile.ZipFile(sys.argv[2], 'w', zipfile.ZIP_DEFLATED, compresslevel=9) as z: z.write(sys.argv[1], 'bootstrap')";
    let done = Command::new(python()).args(["-c", SCRIPT]).arg(binary).arg(into).status()?;
    ensure!(done.success(), "it cannot be zipped");
    Ok(())
}
