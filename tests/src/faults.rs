//! Every fault of every service that a function stands on: what each does to an
//! answer or a run, and that full service is back with the first request after.
//!
//! Both functions reach every service by a name, over TLS, through an
//! [`TcpProxy`]. Their clock is one that a test can set (libfaketime), and
//! so are the names that they can resolve (nss_wrapper).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use fastrand::Rng;
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

use crate::api::{Answer, Request};
use crate::aws::{CREDENTIALS, ElastiCache, Known, Moto};
use crate::directory::Directory;
use crate::function::Function;
use crate::harness;
use crate::mailman::{self, Mailman};
use crate::novi::Novi;
use crate::privacy::Private;
use crate::process::ResourceUsage;
use crate::redis::{Authority, Kind, Redis};
use crate::tcp_proxy::{Fault, TcpProxy};

/// A service that a function stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    /// Parameters.
    Ssm,
    /// Where the Redis is.
    ElastiCache,
    /// The cache, and the locks.
    Redis,
    /// Members and groups.
    Novi,
    /// Rosters.
    Mailman,
}

impl Service {
    /// All there are.
    pub const ALL: [Self; 5] = [Self::Ssm, Self::ElastiCache, Self::Redis, Self::Novi, Self::Mailman];

    /// The name by which it is reached.
    fn host(self) -> &'static str {
        match self {
            Self::Ssm => "ssm.bridge.test",
            Self::ElastiCache => "elasticache.bridge.test",
            Self::Redis => "redis.bridge.test",
            Self::Novi => "novi.bridge.test",
            Self::Mailman => "mailman.bridge.test",
        }
    }
}

/// One of the two functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Verification.
    Verify,
    /// The mirror.
    Mirror,
}

/// How much is tried.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Each kind of fault, and the statuses that mean something.
    Kinds,
    /// Every status as well.
    Whole,
}

/// What goes wrong.
#[derive(Clone)]
enum Trouble {
    /// Between the function and the service.
    Between(Fault),
    /// The service's name is not known.
    Name,
    /// The function was frozen for an hour, and its connections are dead.
    Thaw,
}

/// A trouble by its name in the table.
#[derive(Clone)]
struct Named {
    name: String,
    trouble: Trouble,
    /// The status, where it is an answer of HTTP.
    status: Option<u16>,
}

/// When the trouble comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// While the function is at work.
    Warm,
    /// Before it starts.
    Cold,
}

/// What was tried, and what came of it.
pub struct Row {
    which: Which,
    service: Service,
    when: When,
    fault: String,
    /// What the function answered, or reported.
    got: String,
    took: Duration,
    /// What was not as it should be.
    wrong: Vec<String>,
}

/// All that was tried.
#[derive(Default)]
pub struct Table {
    /// In the order of trying.
    pub rows: Vec<Row>,
}

impl Table {
    /// How many there were, and how many of them went wrong.
    #[must_use]
    pub fn summary(&self) -> String {
        let wrong = self.rows.iter().filter(|row| !row.wrong.is_empty()).count();
        format!("{} faults tried, {wrong} of them not borne as they should be", self.rows.len())
    }

    /// Whether all was as it should be.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.rows.iter().all(|row| row.wrong.is_empty())
    }
}

impl Row {
    fn print(&self, f: &mut fmt::Formatter<'_>, faults: usize, gots: usize) -> fmt::Result {
        let Self { which, service, when, fault, got, took, wrong } = self;
        write!(f, "{:<6}  {:<11}  {:<4}  ", format!("{which:?}"), format!("{service:?}"), format!("{when:?}"))?;
        write!(f, "{fault:<faults$}  {got:<gots$}  {:>6.2} s", took.as_secs_f64())?;
        if !wrong.is_empty() {
            write!(f, "  WRONG: {}", wrong.join("; "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.print(f, 40, 40)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |text: fn(&Row) -> usize| self.rows.iter().map(text).max().unwrap_or_default();
        let (faults, gots) = (width(|row| row.fault.chars().count()), width(|row| row.got.chars().count()));
        for row in &self.rows {
            row.print(f, faults, gots)?;
            writeln!(f)?;
        }
        f.write_str(&self.summary())
    }
}

/// Six faults that stand for the others, to be had over and over.
pub const REPRESENTATIVE: [(Which, Service, &str); 6] = [
    (Which::Verify, Service::Redis, "reset"),
    (Which::Verify, Service::Redis, "endless answer"),
    (Which::Verify, Service::Novi, "half an answer"),
    (Which::Verify, Service::Ssm, "refused"),
    (Which::Mirror, Service::Novi, "reset"),
    (Which::Mirror, Service::Mailman, "restart in the middle"),
];

/// The faults of which each request takes long.
const SLOW: [&str; 3] = ["black hole", "slow to the byte", "an hour frozen, connections dead"];

/// What a function holds: its process, and the tasks in it.
#[derive(Clone, Copy)]
struct Holding {
    process: ResourceUsage,
    tasks: usize,
}

impl Holding {
    /// Whether what is there now is no more than what comes and goes.
    fn is_like(self, before: Self) -> bool {
        const MEMORY: usize = 8 << 20;
        self.process.memory <= before.process.memory + MEMORY
            && self.process.files <= before.process.files + 4
            && self.process.threads <= before.process.threads + 2
            && self.tasks <= before.tasks + 4
    }
}

impl fmt::Display for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { process: ResourceUsage { memory, files, threads }, tasks } = self;
        let mebibytes = *memory as f64 / f64::from(1 << 20);
        write!(f, "{mebibytes:.1} MiB, {files} files, {threads} threads, {tasks} tasks")
    }
}

/// The clock of a function, which can be set forward.
struct Clock {
    file: PathBuf,
    ahead: u64,
}

impl Clock {
    fn new(dir: &Path) -> Result<Self> {
        let clock = Self { file: dir.join("clock"), ahead: 0 };
        clock.write()?;
        Ok(clock)
    }

    fn forward(&mut self, seconds: u64) -> Result<()> {
        self.ahead += seconds;
        self.write()
    }

    /// It is read at every look at the time: there must be no moment without it.
    fn write(&self) -> Result<()> {
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("+{}", self.ahead))?;
        Ok(std::fs::rename(new, &self.file)?)
    }
}

/// The names that a function can resolve.
struct Names {
    file: PathBuf,
    unknown: Option<Service>,
}

impl Names {
    fn new(dir: &Path) -> Result<Self> {
        let names = Self { file: dir.join("hosts"), unknown: None };
        names.write()?;
        Ok(names)
    }

    /// nss_wrapper reads the file again where it has changed, which two threads
    /// must not do at once: it is left alone as long as it is right.
    fn forget(&mut self, unknown: Option<Service>) -> Result<()> {
        if self.unknown != unknown {
            self.unknown = unknown;
            self.write()?;
        }
        Ok(())
    }

    fn write(&self) -> Result<()> {
        let known = Service::ALL.into_iter().filter(|service| Some(*service) != self.unknown);
        let lines: String = known.map(|service| format!("127.0.0.1 {}\n", service.host())).collect();
        let new = self.file.with_extension("new");
        std::fs::write(&new, lines)?;
        Ok(std::fs::rename(new, &self.file)?)
    }
}

/// A library that is loaded before a function.
fn library(path: &str) -> Result<String> {
    let triples = std::fs::read_dir("/usr/lib")?.flatten().map(|entry| entry.path().join(path));
    let found = triples.into_iter().find(|library| library.is_file());
    Ok(found.with_context(|| format!("{path} is missing; `make setup` installs it"))?.display().to_string())
}

/// A function before all that it stands on.
pub struct Stage {
    which: Which,
    function: Function,
    between: BTreeMap<Service, TcpProxy>,
    novi: Novi,
    redis: Redis,
    mailman: Option<Mailman>,
    list: String,
    group: Uuid,
    /// A member who is in the cache.
    known: Uuid,
    key: String,
    variables: Vec<(String, String)>,
    private: Private,
    clock: Clock,
    names: Names,
    authority: Authority,
    _moto: Moto,
    _dir: TempDir,
}

/// Longer than all of the hours that pass on a function's clock.
const TTL_SECONDS: &str = "604800";
/// The same of an invocation, whose deadline is on the real clock.
const TIME_OUT_SECONDS: &str = "10000000";
/// Nothing that is asked of a function here takes as long, or it hangs.
const LIMIT: Duration = Duration::from_secs(60);

impl Stage {
    /// Sets it up.
    ///
    /// # Errors
    /// Where something that `make` sets up is missing.
    pub async fn start(which: Which) -> Result<Self> {
        let (dir, private) = (tempfile::tempdir()?, Private::default());
        let authority = Authority::new()?;
        let mut directory = Directory::default();
        let group = directory.add_plain_group(&mut Rng::new(), 12);
        let known = directory.groups[&group][0];
        let novi = Novi::start(directory, private.clone()).await?;
        let (moto, elasticache, redis) = (Moto::start()?, ElastiCache::start().await?, Redis::start(Kind::Plain)?);
        let mailman = if which == Which::Mirror { Some(Mailman::start().await?) } else { None };
        let port = |url: &str| url::Url::parse(url).ok().and_then(|url| url.port()).context("no port");
        let mut targets = vec![
            (Service::Ssm, port(&moto.url())?),
            (Service::ElastiCache, port(&elasticache.url())?),
            (Service::Redis, redis.port()),
            (Service::Novi, port(&novi.root())?),
        ];
        if let Some(mailman) = &mailman {
            targets.push((Service::Mailman, port(&mailman.base_url())?));
        }
        let mut between = BTreeMap::new();
        for (service, target) in targets {
            let tls = authority.acceptor_for(service.host(), false)?;
            between.insert(service, TcpProxy::start(target, tls).await?);
        }
        let at = |service: Service| {
            format!("https://{}:{}", service.host(), between.get(&service).map_or(9, |between| between.port))
        };
        elasticache.know("bridge", Known::Named(Service::Redis.host(), between[&Service::Redis].port));

        let key = format!("s{:032x}", fastrand::u128(..));
        private.add(&key);
        let list = match &mailman {
            Some(mailman) => {
                private.add(mailman.password());
                mailman.create_list("members").await?
            }
            None => String::new(),
        };
        let parameters = json!({
            "novi_api_root_url": format!("{}/api", at(Service::Novi)),
            "novi_idaa_api_key": novi.state().key,
            "api_keys": [{"name": "server", "key": key, "bypass": true}],
            "mailman_base_url": at(Service::Mailman),
            "mailman_username": mailman::USER,
            "mailman_password": mailman.as_ref().map_or("-", Mailman::password),
            "novi_mailman_sync": [{"group_guid": group, "list_id": if list.is_empty() { "a.example.org" } else { &list }}],
        });
        moto.put("/idaa", &parameters).await?;

        let (clock, names) = (Clock::new(dir.path())?, Names::new(dir.path())?);
        let preloaded = [library("faketime/libfaketimeMT.so.1")?, library("libnss_wrapper.so")?].join(":");
        let mut variables: Vec<(String, String)> =
            CREDENTIALS.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        variables.iter().filter(|(name, _)| name != "AWS_REGION").for_each(|(_, secret)| private.add(secret));
        for (name, value) in [
            ("CONFIG_FILE", String::new()),
            ("PARAMETER_PREFIX", "/idaa".to_owned()),
            ("AWS_ENDPOINT_URL_SSM", at(Service::Ssm)),
            ("AWS_ENDPOINT_URL_ELASTICACHE", at(Service::ElastiCache)),
            ("CACHE_ID", "bridge".to_owned()),
            ("CACHE_TTL_SECONDS", TTL_SECONDS.to_owned()),
            ("EXTRA_CA_CERTS", authority.file("ca.pem").display().to_string()),
            ("NOVI_TIMEOUT_MS", "1000".to_owned()),
            ("VERIFY_NOVI_MAX_PER_MINUTE", "100000".to_owned()),
            ("MAILMAN_TIMEOUT_MS", "1500".to_owned()),
            ("MAILMAN_RETRY_SECONDS", "2".to_owned()),
            ("MIRROR_APPLY", "true".to_owned()),
            ("NOVI_MAX_PER_SECOND", "10000".to_owned()),
            ("NOVI_MAX_PER_MINUTE", "100000".to_owned()),
            ("AWS_LAMBDA_FUNCTION_TIMEOUT", TIME_OUT_SECONDS.to_owned()),
            ("LD_PRELOAD", preloaded),
            ("FAKETIME_TIMESTAMP_FILE", clock.file.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("NSS_WRAPPER_HOSTS", names.file.display().to_string()),
        ] {
            variables.push((name.to_owned(), value));
        }
        let function = start(which, &variables, &private)?;
        let stage = Self {
            which,
            function,
            between,
            novi,
            redis,
            mailman,
            list,
            group,
            known,
            key,
            variables,
            private,
            clock,
            names,
            authority,
            _moto: moto,
            _dir: dir,
        };
        stage.expect_full_service("at the start").await?;
        Ok(stage)
    }

    /// Tries every fault of these services, as far as the function stands on them.
    ///
    /// # Errors
    /// Where the stage itself fails, not the function on it.
    pub async fn play(&mut self, of: &[Service], extent: Extent, mut tell: impl FnMut(&Row)) -> Result<Table> {
        let mut table = Table::default();
        for service in of.iter().copied() {
            if !self.between.contains_key(&service) {
                continue;
            }
            for fault in self.faults(service, extent)? {
                for when in [When::Warm, When::Cold] {
                    // What is asked for at the start alone, or then most of all.
                    if when == When::Cold
                        && (!matches!(service, Service::Ssm | Service::ElastiCache)
                            || matches!(fault.trouble, Trouble::Thaw)
                            || fault.status.is_some_and(|status| extent == Extent::Whole && !MEANT.contains(&status)))
                    {
                        continue;
                    }
                    let row = self.try_one(service, &fault, when).await?;
                    tell(&row);
                    table.rows.push(row);
                }
            }
        }
        Ok(table)
    }

    /// The same fault over and over: nothing may pile up. Says what the
    /// function's process held before and after.
    ///
    /// # Errors
    /// Where the function does not bear one of them, or something has piled up.
    pub async fn repeat(&mut self, service: Service, name: &str, rounds: usize) -> Result<String> {
        const WARM_UP: usize = 10;
        let faults = self.faults(service, Extent::Kinds)?;
        let fault = faults.into_iter().find(|fault| fault.name == name).with_context(|| format!("no fault {name}"))?;
        let mut before = self.holds()?;
        for round in 0..rounds + WARM_UP {
            if round == WARM_UP {
                before = self.holds()?;
            }
            let row = self.try_one(service, &fault, When::Warm).await?;
            if !row.wrong.is_empty() {
                bail!("round {round} of {service:?}, {name}: {}: {}", row.got, row.wrong.join("; "));
            }
        }
        let after = self.holds()?;
        let what = format!("{:?}, {service:?}, {name}, {rounds} times: {before}, and after it {after}", self.which);
        if !after.is_like(before) {
            bail!("{what}: something piles up");
        }
        Ok(what)
    }

    fn holds(&self) -> Result<Holding> {
        let log = self.function.log();
        let tasks = log.rsplit("\"tasks\":").next().and_then(|rest| rest.split([',', '}']).next()?.parse().ok());
        Ok(Holding { process: self.function.holds()?, tasks: tasks.context("the log tells no tasks")? })
    }

    /// So many requests one after another, while faults come and go. Nobody may
    /// get another's answer, a member never "no", and a stranger never "yes".
    ///
    /// # Errors
    /// The first answer that is wrong.
    pub async fn sequence(&mut self, requests: usize) -> Result<String> {
        const SPELL: usize = 25;
        let faults: Vec<(Service, Named)> = [Service::Redis, Service::Novi, Service::ElastiCache]
            .into_iter()
            .map(|service| Ok(self.faults(service, Extent::Kinds)?.into_iter().map(move |fault| (service, fault))))
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            // What is waited out would take hours, and a cooldown goes on after its fault.
            .filter(|(_, fault)| fault.status != Some(429) && !SLOW.contains(&fault.name.as_str()))
            .collect();
        let (mut spell, mut under): (usize, Option<Service>) = (0, None);
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let before = self.holds()?;
        for number in 0..requests {
            if number % SPELL == 0 {
                under = match under.take() {
                    Some(service) => {
                        self.end(service, When::Warm).await?;
                        None
                    }
                    None => {
                        let (service, fault) = &faults[spell % faults.len()];
                        self.begin(*service, &fault.trouble).await?;
                        spell += 1;
                        Some(*service)
                    }
                };
            }
            let (answer, wrong) = self.one_of_many(number, under == Some(Service::Novi)).await?;
            if let Some(wrong) = wrong {
                bail!("request {number}, during trouble of {under:?}: {answer}: {wrong}");
            }
            *seen.entry(answer).or_default() += 1;
        }
        if let Some(service) = under {
            self.end(service, When::Warm).await?;
        }
        self.expect_full_service("after all of them").await?;
        let after = self.holds()?;
        let what = format!("{requests} requests, {spell} faults: {before}, and after it {after}; {seen:?}");
        if !after.is_like(before) {
            bail!("{what}: something piles up");
        }
        Ok(what)
    }

    /// Sends one request of several kinds. Says what came, and what is wrong with it.
    async fn one_of_many(&self, number: usize, novi_may_fail: bool) -> Result<(String, Option<&'static str>)> {
        let (known, newcomer, stranger) = (self.known, self.newcomer(), Uuid::from_u128(fastrand::u128(..)));
        let path = |id: &str| format!("/v3/action/idaa/novi_member/{id}");
        let (id, key) = match number % 5 {
            0 => (known.hyphenated().to_string(), self.key.as_str()),
            1 => (newcomer.hyphenated().to_string(), self.key.as_str()),
            2 => (stranger.hyphenated().to_string(), self.key.as_str()),
            3 => (known.hyphenated().to_string(), "a wrong key"),
            _ => ("39120341".to_owned(), self.key.as_str()),
        };
        self.private.add(&id);
        let answer = self.send(&Request::get(&path(&id)).header("x-api-key", key)).await??;
        let is_outage = novi_may_fail && answer.status == 503 && answer.code().starts_with("novi_");
        let address = |id: Uuid| self.novi.state().directory.address(id);
        let tells_of = |id: Uuid| {
            answer.status == 200
                && answer.json()["email"].as_str().is_some_and(|email| email.to_lowercase() == address(id))
        };
        let is_right = match number % 5 {
            0 => tells_of(known) || (is_outage && answer.status != 404),
            // Novi itself may say that there is nobody: that is one of its faults.
            1 => tells_of(newcomer) || is_outage || (novi_may_fail && answer.status == 404),
            2 => answer.status == 404 || is_outage,
            3 => answer.code() == "api_key_invalid",
            _ => answer.code() == "invalid_uuid",
        };
        let about = if answer.status == 200 { answer.header("x-cache").to_owned() } else { answer.code() };
        Ok((format!("{} {about}", answer.status), (!is_right).then_some("the answer is wrong")))
    }

    fn faults(&self, service: Service, extent: Extent) -> Result<Vec<Named>> {
        let between =
            |name: &str, fault| Named { name: name.to_owned(), trouble: Trouble::Between(fault), status: None };
        let other = Authority::new()?;
        let mut all = vec![
            between("refused", Fault::Refused),
            between("reset", Fault::Reset),
            between("black hole", Fault::Silence),
            between("slow to the byte", Fault::Drip),
            between(
                "certificate of an unknown authority",
                Fault::Certificate(other.acceptor_for(service.host(), false)?),
            ),
            between(
                "certificate of another name",
                Fault::Certificate(self.authority.acceptor_for("other.test", false)?),
            ),
            between(
                "certificate that has expired",
                Fault::Certificate(self.authority.acceptor_for(service.host(), true)?),
            ),
            between("half an answer", Fault::HalfAnswer),
            between("restart in the middle", Fault::Restart),
            Named { name: "name unknown".to_owned(), trouble: Trouble::Name, status: None },
            Named { name: "an hour frozen, connections dead".to_owned(), trouble: Trouble::Thaw, status: None },
        ];
        if service == Service::Redis {
            all.push(between(
                "endless answer",
                Fault::Endless(Bytes::from("$500000000\r\n"), Bytes::from(vec![b' '; 16_384])),
            ));
            for answer in REDIS {
                all.push(between(
                    &format!("answer {}", answer.trim_end()),
                    Fault::Answer(Bytes::from_static(answer.as_bytes())),
                ));
            }
            return Ok(all);
        }
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
        let chunk = format!("4000\r\n{}\r\n", " ".repeat(0x4000));
        all.push(between("endless body", Fault::Endless(Bytes::from(head), Bytes::from(chunk))));
        all.push(between(
            "wrong content type",
            http(200, "text/html", "<html><body>Welcome to this hotel</body></html>"),
        ));
        all.push(between("no HTTP", Fault::Answer(Bytes::from("SSH-2.0-OpenSSH_9.2\r\n"))));
        let shapes: &[&str] = match service {
            Service::Ssm => &["{}", "[]", r#"{"Parameters":"x"}"#, r#"{"Parameters":[]}"#],
            Service::ElastiCache => &["{}", "<ok/>", "<DescribeReplicationGroupsResponse/>"],
            Service::Novi => &[r#"{"Email":5}"#, "[1,2]", r#""x""#, r#"{"data":7}"#],
            Service::Mailman | Service::Redis => &["{}", "[]", r#"{"total_size":"x"}"#, r#"{"total_size":5}"#],
        };
        all.extend(shapes.iter().map(|shape| between(&format!("shape {shape}"), http(200, "application/json", shape))));
        if service == Service::Novi {
            all.push(between("status 403 by a CDN", http(403, "text/html", "<html>Access denied</html>")));
        }
        let statuses = (400..=418).chain(421..=426).chain([428, 429, 431, 451]).chain(500..=511);
        for status in statuses.filter(|status| extent == Extent::Whole || MEANT.contains(status)) {
            let trouble = Trouble::Between(http(status, "application/json", r#"{"Message":"as asked"}"#));
            all.push(Named { name: format!("status {status}"), trouble, status: Some(status) });
        }
        Ok(all)
    }

    async fn try_one(&mut self, service: Service, fault: &Named, when: When) -> Result<Row> {
        let mut wrong = Vec::new();
        if self.which == Which::Mirror {
            self.change_who_belongs();
        }
        if when == When::Warm {
            match service {
                // What is kept is not asked for.
                Service::Ssm => self.clock.forward(301)?,
                Service::ElastiCache => {
                    self.between[&Service::Redis].set(Some(Fault::Refused)).await;
                    self.clock.forward(2)?;
                }
                _ => {}
            }
        }
        self.begin(service, &fault.trouble).await?;
        if when == When::Cold {
            self.function = start(self.which, &self.variables, &self.private)?;
        }
        let started = Instant::now();
        let got = match self.which {
            Which::Verify => self.ask_under(service, fault, when, &mut wrong).await?,
            Which::Mirror => self.run_under(service, fault, when, &mut wrong).await?,
        };
        let took = started.elapsed();
        let can_be_seen = match &fault.trouble {
            Trouble::Between(fault) => !matches!(fault, Fault::Refused),
            Trouble::Name | Trouble::Thaw => false,
        };
        if can_be_seen && self.between[&service].met() == 0 {
            wrong.push("the fault was not met".to_owned());
        }
        self.end(service, when).await?;
        if let Err(error) = self.expect_full_service("after it").await {
            wrong.push(format!("{error:#}"));
        }
        Ok(Row { which: self.which, service, when, fault: fault.name.clone(), got, took, wrong })
    }

    async fn begin(&mut self, service: Service, trouble: &Trouble) -> Result<()> {
        match trouble {
            Trouble::Between(fault) => self.between[&service].set(Some(fault.clone())).await,
            Trouble::Name => {
                self.names.forget(Some(service))?;
                self.between[&service].hang_up();
            }
            Trouble::Thaw => {
                self.function.freeze(true)?;
                self.between[&service].strand();
                self.clock.forward(3_600)?;
                self.function.freeze(false)?;
            }
        }
        Ok(())
    }

    async fn end(&mut self, service: Service, when: When) -> Result<()> {
        self.names.forget(None)?;
        self.between[&service].set(None).await;
        if service == Service::ElastiCache {
            self.between[&Service::Redis].set(None).await;
        }
        match (service, when) {
            // The source of parameters is left alone for a while once it has failed.
            (Service::Ssm, When::Warm) => self.clock.forward(11),
            (Service::Ssm, When::Cold) => self.clock.forward(2),
            // It is asked once a second at most.
            (Service::ElastiCache, _) => self.clock.forward(2),
            // A cooldown is part of the fault: Novi has asked for it.
            (Service::Novi, _) => {
                self.redis.command(&["DEL", "idaa:novi_cooldown"])?;
                self.clock.forward(2)
            }
            _ => Ok(()),
        }
    }

    fn change_who_belongs(&self) {
        let mut state = self.novi.state();
        let joiner = state.directory.add(&mut Rng::new());
        let members = state.directory.groups.get_mut(&self.group);
        if let Some(members) = members {
            members.remove(1);
            members.push(joiner);
        }
    }

    fn newcomer(&self) -> Uuid {
        self.novi.state().directory.add(&mut Rng::new())
    }

    /// Asks verification. What it says: the status, and the code or where the answer came from.
    async fn ask(&self, id: Uuid) -> Result<String> {
        self.private.add(&id.hyphenated().to_string());
        let path = format!("/v3/action/idaa/novi_member/{}", id.hyphenated());
        let answer = self.send(&Request::get(&path).header("x-api-key", &self.key)).await?;
        let Ok(answer) = answer else { return Ok("ended".to_owned()) };
        let about = if answer.status == 200 { answer.header("x-cache").to_owned() } else { answer.code() };
        Ok(format!("{} {about}", answer.status))
    }

    /// An answer to HTTP, or none where the function has ended.
    async fn send(&self, request: &Request) -> Result<Result<Answer>> {
        let returned = self.invoke(&request.http_api("$default")).await?;
        Ok(Answer::read(&returned))
    }

    async fn invoke(&self, event: &Value) -> Result<Value> {
        let returned = tokio::time::timeout(LIMIT, self.function.invoke(event)).await.context("the function hangs")?;
        // The emulator says nothing of a function that has ended.
        let returned = returned.unwrap_or_else(|_| json!({"errorType": "Ended"}));
        // Reports, problems and errors tell of nobody, whatever went wrong.
        if returned["statusCode"] != 200 {
            let told = self.private.found_in(&returned.to_string());
            ensure!(told.is_empty(), "what is returned tells what is private: {told:?}");
        }
        Ok(returned)
    }

    async fn ask_under(&self, service: Service, fault: &Named, when: When, wrong: &mut Vec<String>) -> Result<String> {
        let known = self.ask(self.known).await?;
        let newcomer = self.ask(self.newcomer()).await?;
        let health = self.send(&Request::get("/health")).await?;
        let mut expect = |what: &str, got: &str, wanted: &[&str]| {
            if !wanted.contains(&got) {
                wrong.push(format!("{what}: {got}, and should be {}", wanted.join(" or ")));
            }
        };
        const ANY: [&str; 3] = ["200 hit", "200 miss", "200 bypass"];
        let is_cold_ssm = service == Service::Ssm && when == When::Cold;
        match service {
            _ if is_cold_ssm => {
                expect("a member", &known, &["503 parameters_unavailable", "200 hit"]);
                expect("a newcomer", &newcomer, &["503 parameters_unavailable", "200 miss"]);
            }
            Service::Ssm => {
                expect("a member", &known, &["200 hit"]);
                expect("a newcomer", &newcomer, &["200 miss"]);
            }
            Service::Novi => {
                expect("a member", &known, &["200 hit"]);
                expect("a newcomer", &newcomer, novi_answers(fault));
            }
            _ => {
                expect("a member", &known, &ANY);
                expect("a newcomer", &newcomer, &ANY);
            }
        }
        match health {
            Ok(health) => {
                let right = if is_cold_ssm { matches!(health.status, 200 | 503) } else { health.status == 200 };
                if !right {
                    wrong.push(format!("health is {}", health.status));
                }
            }
            Err(_) => wrong.push("no health".to_owned()),
        }
        Ok(format!("{known}, {newcomer}"))
    }

    async fn run_under(&self, service: Service, fault: &Named, when: When, wrong: &mut Vec<String>) -> Result<String> {
        let before = self.roster().await?;
        let returned = self.invoke(&json!({})).await?;
        let status = match harness::report(returned.clone()) {
            Ok(report) => report["status"].as_str().unwrap_or("?").to_owned(),
            Err(_) => returned["errorType"].as_str().unwrap_or("no report").to_owned(),
        };
        let wanted: &[&str] = match (service, &fault.trouble) {
            (Service::Ssm, _) if when == When::Cold => &["NotStarted", "ok"],
            (Service::Ssm | Service::ElastiCache | Service::Redis, _) => &["ok"],
            (_, Trouble::Thaw) => &["ok"],
            (_, Trouble::Between(Fault::Restart)) => &["ok", "partial", "failed"],
            (Service::Novi, _) if fault.status == Some(404) => &["blocked"],
            (Service::Novi, _) => &["partial", "failed"],
            (Service::Mailman, _) => &["failed"],
        };
        if !wanted.contains(&status.as_str()) {
            wrong.push(format!("{status}, and should be {}", wanted.join(" or ")));
        }
        let (belong, roster) = (self.belong(), self.roster().await?);
        let missing = before.iter().filter(|address| belong.contains(*address) && !roster.contains(*address)).count();
        let strange = roster.iter().filter(|address| !belong.contains(*address) && !before.contains(*address)).count();
        if missing + strange > 0 {
            wrong.push(format!("{missing} wrongly removed, {strange} wrongly added"));
        }
        if status == "ok" && roster != belong {
            wrong.push("it says ok, and the list is not right".to_owned());
        }
        Ok(status)
    }

    /// The addresses that belong on the list.
    fn belong(&self) -> BTreeSet<String> {
        let state = self.novi.state();
        let members = state.directory.groups.get(&self.group).into_iter().flatten();
        members.map(|id| state.directory.address(*id)).collect()
    }

    async fn roster(&self) -> Result<BTreeSet<String>> {
        let mailman = self.mailman.as_ref().context("there is no Mailman")?;
        Ok(mailman.roster(&self.list, "member").await?.into_keys().collect())
    }

    /// One request may notice that the fault is over. From the next on all is well.
    async fn expect_full_service(&self, when: &str) -> Result<()> {
        match self.which {
            Which::Verify => {
                let first = self.ask(self.newcomer()).await?;
                if !first.starts_with("200") {
                    bail!("{when} the first newcomer is {first}");
                }
                let newcomer = self.newcomer();
                for (who, wanted) in [(newcomer, "200 miss"), (newcomer, "200 hit"), (self.known, "200 hit")] {
                    let got = self.ask(who).await?;
                    // Whom the cache was not asked for under the fault may not be in it.
                    if got != wanted && !(who == self.known && got == "200 miss") {
                        bail!("{when} {got}, and should be {wanted}");
                    }
                }
                let health = self.send(&Request::get("/health")).await?.map(|answer| answer.json())?;
                if health != json!({"status": "ok", "checks": {"parameters": "ok", "cache": "ok"}}) {
                    bail!("{when} health is {health}");
                }
            }
            Which::Mirror => {
                let report = harness::report(self.invoke(&json!({})).await?)?;
                if report["status"] != "ok" {
                    bail!("{when} the run ends {}: {}", report["status"], report["lists"][0]["reason"]);
                }
                if self.roster().await? != self.belong() {
                    bail!("{when} the list is not right");
                }
            }
        }
        Ok(())
    }
}

fn start(which: Which, variables: &[(String, String)], private: &Private) -> Result<Function> {
    let name = match which {
        Which::Verify => "verify",
        Which::Mirror => "mirror",
    };
    let borrowed: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    Function::start(name, &json!({}), &borrowed, private)
}

/// The statuses that mean something to somebody.
const MEANT: [u16; 12] = [400, 401, 403, 404, 408, 409, 429, 500, 501, 502, 503, 504];

/// What a Redis, or something else on its port, may say to anything.
const REDIS: [&str; 14] = [
    "-ERR unknown command\r\n",
    "-NOAUTH Authentication required.\r\n",
    "-WRONGPASS invalid username-password pair\r\n",
    "-NOPERM this user has no permissions\r\n",
    "-LOADING Redis is loading the dataset in memory\r\n",
    "-BUSY Redis is busy running a script\r\n",
    "-READONLY You can't write against a read only replica.\r\n",
    "-MASTERDOWN Link with MASTER is down\r\n",
    "-OOM command not allowed when used memory > 'maxmemory'.\r\n",
    "-MOVED 1 127.0.0.1:1\r\n",
    "-CLUSTERDOWN Hash slot not served\r\n",
    ":5\r\n",
    "*1\r\n$1\r\nx\r\n",
    "HTTP/1.1 400 Bad Request\r\n\r\n",
];

fn http(status: u16, kind: &str, body: &str) -> Fault {
    let retry = if status == 429 { "Retry-After: 1\r\n" } else { "" };
    Fault::Answer(Bytes::from(format!(
        "HTTP/1.1 {status} As Asked\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{retry}Connection: close\r\n\r\n{body}",
        body.len()
    )))
}

/// What verification may say of somebody who is not in the cache, when Novi has this fault.
fn novi_answers(fault: &Named) -> &'static [&'static str] {
    match fault.status {
        Some(404) => return &["404 member_not_found"],
        Some(401 | 403) => return &["503 novi_credentials_rejected"],
        Some(429) => return &["429 rate_limited"],
        Some(_) => return &["503 novi_error"],
        None => {}
    }
    match &fault.trouble {
        Trouble::Thaw => &["200 miss"],
        Trouble::Between(Fault::Restart) => &["200 miss", "503 novi_unreachable"],
        Trouble::Between(Fault::Endless(..)) => &["503 novi_invalid_response"],
        Trouble::Between(Fault::Answer(_)) if fault.name.contains("CDN") => &["503 novi_blocked"],
        Trouble::Between(Fault::Answer(_)) if fault.name == "no HTTP" => &["503 novi_unreachable"],
        Trouble::Between(Fault::Answer(_)) => &["503 novi_invalid_response"],
        _ => &["503 novi_unreachable"],
    }
}
