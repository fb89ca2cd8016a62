//! Every fault of every service that a function depends on: how each one affects
//! a response or a run, and that full service is back with the first request after it.
//!
//! Both functions reach every service by its host name, over TLS, through a
//! [`TcpProxy`]. Tests can set the functions' clock (libfaketime) and the host
//! names that they can resolve (a mount namespace with its own `/etc/hosts`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fastrand::Rng;
use serde_json::{Value, json};
use shared::time::DAY;
use tempfile::TempDir;
use uuid::Uuid;

use crate::api::{Request, Response};
use crate::aws::{CREDENTIALS, ElastiCache, KnownCache, Moto};
use crate::clock::Clock;
use crate::directory::Directory;
use crate::function::Function;
use crate::harness;
use crate::mailman::{self, Mailman};
use crate::novi::{Novi, root_digest};
use crate::privacy::Private;
use crate::process::ResourceUsage;
use crate::redis::{CertificateAuthority, Kind, Redis};
use crate::tcp_proxy::{BlackHole, PROXY_ADDRESS, TcpFault, TcpProxy};

/// A service that a function depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    /// The source of parameters.
    Ssm,
    /// The source of Redis's address.
    ElastiCache,
    /// The cache and the locks.
    Redis,
    /// The source of members and groups.
    Novi,
    /// The destination of the mirror.
    Mailman,
    /// The place of the mirror's ledger.
    S3,
}

impl Service {
    /// All services.
    pub const ALL: [Self; 6] = [Self::Ssm, Self::ElastiCache, Self::Redis, Self::Novi, Self::Mailman, Self::S3];

    /// Returns the HTTP statuses with a special meaning for the service or its client.
    fn meaningful_statuses(self) -> &'static [u16] {
        match self {
            // The SDK treats all transient statuses as 500, and all others as 403 if the body names no error.
            Self::Ssm | Self::ElastiCache => &[400, 403, 429, 500, 503],
            Self::S3 => &[400, 403, 404, 409, 429, 500, 503],
            Self::Novi | Self::Mailman | Self::Redis => &[400, 401, 403, 404, 408, 409, 429, 500, 501, 502, 503, 504],
        }
    }

    /// Returns the host name of the service.
    fn host(self) -> &'static str {
        match self {
            Self::Ssm => "ssm.bridge.test",
            Self::ElastiCache => "elasticache.bridge.test",
            Self::Redis => "redis.bridge.test",
            Self::Novi => "novi.bridge.test",
            Self::Mailman => "mailman.bridge.test",
            Self::S3 => "s3.bridge.test",
        }
    }
}

/// One of the two functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lambda {
    /// The verify function.
    Verify,
    /// The mirror function.
    Mirror,
}

/// A share of the faults of a service, so that several environments can test them concurrently.
#[derive(Clone, Copy)]
pub struct Share {
    /// The number of this share, from zero.
    pub index: usize,
    /// The number of shares.
    pub of: usize,
}

impl Share {
    /// All faults.
    pub const ALL: Self = Self { index: 0, of: 1 };
}

/// The faults to test.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// Each kind of fault, and the statuses with a special meaning.
    Kinds,
    /// All other statuses as well.
    Full,
}

/// The kind of a fault.
#[derive(Clone)]
enum FaultKind {
    /// A fault of the connection to the service, or of its responses.
    Network(TcpFault),
    /// The service's host name can't be resolved.
    UnknownHost,
    /// The service has two addresses, and the first one swallows packets.
    DeadAddress,
    /// The function was frozen for an hour, and its connections are dead.
    Thaw,
}

/// A fault with its name in the table.
#[derive(Clone)]
struct NamedFault {
    name: String,
    kind: FaultKind,
    /// The status, if the fault is an HTTP response with an error status.
    status: Option<u16>,
}

/// The time at which a fault is injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timing {
    /// While the function is running.
    Warm,
    /// Before the function starts.
    Cold,
}

/// A tested fault and the result.
pub struct Row {
    lambda: Lambda,
    service: Service,
    timing: Timing,
    fault: String,
    /// The function's responses, or the status of the run.
    result: String,
    duration: Duration,
    /// The deviations from the expected behavior.
    errors: Vec<String>,
}

/// The results of all tested faults.
#[derive(Default)]
pub struct Table {
    /// The rows, in the order of the tests.
    pub rows: Vec<Row>,
}

impl Table {
    /// Returns the number of tested faults and the number of failures, as a sentence.
    #[must_use]
    pub fn summary(&self) -> String {
        let failed = self.rows.iter().filter(|row| !row.errors.is_empty()).count();
        format!("{} faults tested, {failed} of them failed", self.rows.len())
    }

    /// True if no test failed.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.rows.iter().all(|row| row.errors.is_empty())
    }
}

impl Row {
    fn print(&self, f: &mut fmt::Formatter<'_>, fault_width: usize, result_width: usize) -> fmt::Result {
        let Self { lambda, service, timing, fault, result, duration, errors } = self;
        write!(f, "{:<6}  {:<11}  {:<4}  ", format!("{lambda:?}"), format!("{service:?}"), format!("{timing:?}"))?;
        write!(f, "{fault:<fault_width$}  {result:<result_width$}  {:>6.2} s", duration.as_secs_f64())?;
        if !errors.is_empty() {
            write!(f, "  FAILED: {}", errors.join("; "))?;
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
        let fault_width = width(|row| row.fault.chars().count());
        let result_width = width(|row| row.result.chars().count());
        for row in &self.rows {
            row.print(f, fault_width, result_width)?;
            writeln!(f)?;
        }
        f.write_str(&self.summary())
    }
}

/// Six representative faults, to repeat many times.
pub const REPRESENTATIVE: [(Lambda, Service, &str); 6] = [
    (Lambda::Verify, Service::Redis, "connection reset"),
    (Lambda::Verify, Service::Redis, "endless response"),
    (Lambda::Verify, Service::Novi, "truncated response"),
    (Lambda::Verify, Service::Ssm, "connection refused"),
    (Lambda::Mirror, Service::Novi, "connection reset"),
    (Lambda::Mirror, Service::Mailman, "restart during a request"),
];

const DEAD_ADDRESS: &str = "first of two addresses swallows packets";

/// The faults that make every request slow.
const SLOW_FAULTS: [&str; 4] = ["black hole", "byte by byte", DEAD_ADDRESS, "frozen for an hour, connections dead"];

/// The resource usage of a function's process, and the number of tasks in it.
#[derive(Clone, Copy)]
struct Usage {
    process: ResourceUsage,
    tasks: usize,
}

impl Usage {
    /// Returns the lower of each figure.
    fn lower(self, other: Self) -> Self {
        let (this, that) = (self.process, other.process);
        Self {
            process: ResourceUsage {
                memory: this.memory.min(that.memory),
                files: this.files.min(that.files),
                threads: this.threads.min(that.threads),
            },
            tasks: self.tasks.min(other.tasks),
        }
    }

    /// True if the usage has grown no more than by normal fluctuation.
    fn is_close_to(self, before: Self) -> bool {
        const MEMORY_TOLERANCE: usize = 8 << 20;
        self.process.memory <= before.process.memory + MEMORY_TOLERANCE
            && self.process.files <= before.process.files + 4
            && self.process.threads <= before.process.threads + 2
            && self.tasks <= before.tasks + 4
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { process: ResourceUsage { memory, files, threads }, tasks } = self;
        let mebibytes = *memory as f64 / f64::from(1 << 20);
        write!(f, "{mebibytes:.1} MiB, {files} files, {threads} threads, {tasks} tasks")
    }
}

/// The host names that a function can resolve: a file in place of its `/etc/hosts`.
struct Hosts {
    file: PathBuf,
}

impl Hosts {
    fn new(dir: &Path) -> Result<Self> {
        std::fs::write(dir.join("nsswitch.conf"), "hosts: files\n")?;
        let hosts = Self { file: dir.join("hosts") };
        std::fs::write(&hosts.file, Self::lines(None, None))?;
        Ok(hosts)
    }

    /// Makes one service's host name unknown, or none, and gives one a first address that swallows packets, or none.
    fn set(&self, unknown: Option<Service>, with_dead_address: Option<Service>) -> Result<()> {
        // Overwrites the mounted file, because a new one wouldn't be mounted. The length stays the same, so that no
        // lookup finds half a file.
        let mut file = std::fs::OpenOptions::new().write(true).open(&self.file)?;
        Ok(file.write_all(Self::lines(unknown, with_dead_address).as_bytes())?)
    }

    fn lines(unknown: Option<Service>, with_dead_address: Option<Service>) -> String {
        // Addresses are tried in the order of these lines, because both are as far away.
        let line = |is_used: bool, address: Ipv4Addr, service: Service| {
            format!("{}{address} {}\n", if is_used { ' ' } else { '#' }, service.host())
        };
        let lines = |service| {
            line(with_dead_address == Some(service), BlackHole::ADDRESS, service)
                + &line(unknown != Some(service), PROXY_ADDRESS, service)
        };
        Service::ALL.into_iter().map(lines).collect()
    }
}

/// A function with all the services that it depends on.
pub struct Runner {
    lambda: Lambda,
    function: Function,
    proxies: BTreeMap<Service, TcpProxy>,
    novi: Novi,
    redis: Redis,
    mailman: Option<Mailman>,
    list: String,
    group: Uuid,
    /// A member who is in the cache.
    cached_member: Uuid,
    /// A member with a stale entry, for verification if Novi fails.
    stale_member: Uuid,
    key: String,
    /// The digest of Novi's root URL.
    digest: String,
    variables: Vec<(String, String)>,
    private: Private,
    clock: Clock,
    hosts: Hosts,
    black_hole: Option<BlackHole>,
    /// The number of members who were replaced since the day began on the mirror's clock.
    changes_today: usize,
    authority: CertificateAuthority,
    _moto: Moto,
    _dir: TempDir,
}

/// The TTL of cache entries: longer than all the hours that pass on a function's clock.
const TTL_SECONDS: &str = "604800";
/// How long past its TTL an entry may be served.
const STALE_SECONDS: &str = "604800";
/// The timeout of an invocation: longer as well, because its deadline is in real time.
const INVOCATION_TIMEOUT_SECONDS: &str = "100000000";
/// The most members that tests replace in a group of twelve within a day, which is far from the whole group.
const MAX_CHANGES_PER_DAY: usize = 6;
/// The timeout in real time: an invocation that takes longer hangs.
const TIMEOUT: Duration = Duration::from_secs(60);

impl Runner {
    /// Starts a function and all services.
    ///
    /// # Errors
    /// Fails if something that `make` sets up is missing.
    pub async fn start(lambda: Lambda) -> Result<Self> {
        let (dir, private) = (tempfile::tempdir()?, Private::default());
        let authority = CertificateAuthority::new()?;
        let mut directory = Directory::default();
        let group = directory.add_plain_group(&mut Rng::new(), 12);
        let cached_member = directory.groups[&group][0];
        let stale_member = directory.add(&mut Rng::new());
        let novi = Novi::start(directory, private.clone()).await?;
        let (moto, elasticache, redis) = (Moto::start()?, ElastiCache::start().await?, Redis::start(Kind::Plain)?);
        let mailman = if lambda == Lambda::Mirror { Some(Mailman::start().await?) } else { None };
        let port =
            |url: &str| url::Url::parse(url).ok().and_then(|url| url.port()).context("expected a port in the URL");
        let mut targets = vec![
            (Service::Ssm, port(&moto.url())?),
            (Service::ElastiCache, port(&elasticache.url())?),
            (Service::Redis, redis.port()),
            (Service::Novi, port(&novi.root())?),
        ];
        if let Some(mailman) = &mailman {
            targets.push((Service::Mailman, port(&mailman.base_url())?));
            targets.push((Service::S3, port(&moto.url())?));
        }
        let mut proxies = BTreeMap::new();
        for (service, target) in targets {
            let tls = authority.acceptor_for(service.host(), false)?;
            proxies.insert(service, TcpProxy::start(target, tls).await?);
        }
        let url = |service: Service| {
            format!("https://{}:{}", service.host(), proxies.get(&service).map_or(9, |proxy| proxy.port))
        };
        let cache = KnownCache::ReplicationGroupAt(Service::Redis.host(), proxies[&Service::Redis].port);
        elasticache.add_cache("bridge", cache);

        let key = format!("s{:032x}", fastrand::u128(..));
        private.add(&key);
        let ledger_key: [u8; 32] = std::array::from_fn(|_| fastrand::u8(..));
        private.add(&STANDARD.encode(ledger_key));
        let list = match &mailman {
            Some(mailman) => {
                private.add(mailman.password());
                mailman.create_list("members").await?
            }
            None => String::new(),
        };
        let parameters = json!({
            "novi_api_root_url": format!("{}/api", url(Service::Novi)),
            "novi_idaa_api_key": novi.state().key,
            "api_keys": [{"name": "server", "key": key, "bypass": true}],
            "mailman_base_url": url(Service::Mailman),
            "mailman_username": mailman::USER,
            "mailman_password": mailman.as_ref().map_or("-", Mailman::password),
            "ledger_key": STANDARD.encode(ledger_key),
            // Each test replaces a member.
            "novi_mailman_sync": [{
                "group_guid": group, "list_id": if list.is_empty() { "a.example.org" } else { &list },
                "max_removal_percent": 100, "max_growth_percent": 100_000,
            }],
        });
        moto.put(moto.prefix(), &parameters).await?;

        let ledger = match lambda {
            Lambda::Mirror => format!("s3://{}/ledger", moto.create_bucket().await?),
            Lambda::Verify => String::new(),
        };
        let (clock, hosts) = (Clock::new(dir.path())?, Hosts::new(dir.path())?);
        let mut variables: Vec<(String, String)> =
            CREDENTIALS.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        variables.iter().filter(|(name, _)| name != "AWS_REGION").for_each(|(_, secret)| private.add(secret));
        for (name, value) in [
            ("CONFIG_FILE", String::new()),
            ("PARAMETER_PREFIX", moto.prefix().to_owned()),
            ("AWS_ENDPOINT_URL_SSM", url(Service::Ssm)),
            ("AWS_ENDPOINT_URL_ELASTICACHE", url(Service::ElastiCache)),
            ("AWS_ENDPOINT_URL_S3", url(Service::S3)),
            ("LEDGER", ledger),
            ("CACHE_ID", "bridge".to_owned()),
            ("CACHE_TTL_SECONDS", TTL_SECONDS.to_owned()),
            ("CACHE_STALE_SECONDS", STALE_SECONDS.to_owned()),
            ("EXTRA_CA_CERTS", authority.file("ca.pem").display().to_string()),
            // Long enough for a busy machine, and much shorter than the defaults, because many faults take their full
            // timeout.
            ("CACHE_TIMEOUT_MS", "1000".to_owned()),
            ("NOVI_TIMEOUT_MS", "1000".to_owned()),
            ("VERIFY_NOVI_MAX_PER_MINUTE", "100000".to_owned()),
            ("MAILMAN_TIMEOUT_MS", "3000".to_owned()),
            ("MAILMAN_RETRY_SECONDS", "2".to_owned()),
            ("MIRROR_APPLY", "true".to_owned()),
            ("NOVI_MAX_PER_SECOND", "10000".to_owned()),
            ("NOVI_MAX_PER_MINUTE", "100000".to_owned()),
            ("NOVI_MAX_PER_DAY", "1000000".to_owned()),
            ("NOVI_TOTAL_PER_SECOND", "1000000".to_owned()),
            ("NOVI_TOTAL_PER_DAY", "1000000".to_owned()),
            ("VERIFY_UNKNOWN_PER_MINUTE", "100000".to_owned()),
            ("VERIFY_UNKNOWN_PER_DAY", "100000".to_owned()),
            ("AWS_LAMBDA_FUNCTION_TIMEOUT", INVOCATION_TIMEOUT_SECONDS.to_owned()),
        ] {
            variables.push((name.to_owned(), value));
        }
        variables.extend(clock.variables()?);
        let digest = root_digest(&format!("{}/api", url(Service::Novi)));
        let function = start(lambda, &variables, &hosts, &private)?;
        let runner = Self {
            lambda,
            function,
            proxies,
            novi,
            redis,
            mailman,
            list,
            group,
            cached_member,
            stale_member,
            key,
            digest,
            variables,
            private,
            clock,
            hosts,
            black_hole: None,
            changes_today: 0,
            authority,
            _moto: moto,
            _dir: dir,
        };
        runner.expect_full_service("at the start").await?;
        Ok(runner)
    }

    /// Tests this share of the faults of these services, except for services that the function doesn't use.
    ///
    /// # Errors
    /// Fails if the test environment fails, but not if the function does.
    pub async fn run_all(
        &mut self,
        services: &[Service],
        coverage: Coverage,
        share: Share,
        mut on_row: impl FnMut(&Row),
    ) -> Result<Table> {
        let mut table = Table::default();
        for service in services.iter().copied() {
            if !self.proxies.contains_key(&service) {
                continue;
            }
            for fault in self.faults(service, coverage)?.into_iter().skip(share.index).step_by(share.of) {
                for timing in [Timing::Warm, Timing::Cold] {
                    // Only test cold starts with the services that functions call only or mainly at startup.
                    if timing == Timing::Cold
                        && (!matches!(service, Service::Ssm | Service::ElastiCache)
                            || matches!(fault.kind, FaultKind::Thaw)
                            || fault.status.is_some_and(|status| {
                                coverage == Coverage::Full && !service.meaningful_statuses().contains(&status)
                            }))
                    {
                        continue;
                    }
                    let row = self.test_fault(service, &fault, timing).await?;
                    on_row(&row);
                    table.rows.push(row);
                }
            }
        }
        Ok(table)
    }

    /// Tests the same fault `rounds` times and checks that no resources leak.
    /// Returns the function's resource usage before and after.
    ///
    /// # Errors
    /// Fails if one of the tests fails, or resources leak.
    pub async fn repeat(&mut self, service: Service, name: &str, rounds: usize) -> Result<String> {
        const WARM_UP: usize = 10;
        /// The rounds before and after, of which the lowest usage counts: how many connections a round leaves idle depends
        /// on how many calls happened to be in flight at once, and a leak stays.
        const COMPARED: usize = 5;
        /// After a burst of calls, threads that look up host names end after ten idle seconds. A leak stays.
        const IDLE: Duration = Duration::from_secs(15);
        let faults = self.faults(service, Coverage::Kinds)?;
        let fault =
            faults.into_iter().find(|fault| fault.name == name).with_context(|| format!("unknown fault {name}"))?;
        let mut usages = Vec::new();
        for round in 0..rounds + WARM_UP {
            let row = self.test_fault(service, &fault, Timing::Warm).await?;
            if !row.errors.is_empty() {
                bail!("round {round} of {service:?}, {name}: {}: {}", row.result, row.errors.join("; "));
            }
            usages.push(self.usage()?);
        }
        let lowest = |usages: &[Usage]| usages.iter().copied().reduce(Usage::lower).context("expected a round");
        let before = lowest(&usages[WARM_UP - COMPARED..WARM_UP])?;
        let mut after = lowest(&usages[usages.len() - COMPARED..])?;
        let deadline = Instant::now() + IDLE;
        while !after.is_close_to(before) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(100)).await;
            after = after.lower(self.usage()?);
        }
        let summary =
            format!("{:?}, {service:?}, {name}, {rounds} times: before: {before}; after: {after}", self.lambda);
        if !after.is_close_to(before) {
            bail!("{summary}: resources leaked");
        }
        Ok(summary)
    }

    fn usage(&self) -> Result<Usage> {
        let log = self.function.log();
        let tasks = log.rsplit("\"tasks\":").next().and_then(|rest| rest.split([',', '}']).next()?.parse().ok());
        let tasks = tasks.context("the log doesn't contain the number of tasks")?;
        Ok(Usage { process: self.function.resource_usage()?, tasks })
    }

    /// Sends `requests` requests one after another, while faults come and go. No
    /// request may get the response to another one, a member must never be
    /// denied, and a non-member must never be verified.
    ///
    /// # Errors
    /// Returns the first wrong response.
    pub async fn run_requests(&mut self, requests: usize) -> Result<String> {
        const REQUESTS_PER_PHASE: usize = 25;
        let faults: Vec<(Service, NamedFault)> = [Service::Redis, Service::Novi, Service::ElastiCache]
            .into_iter()
            .map(|service| Ok(self.faults(service, Coverage::Kinds)?.into_iter().map(move |fault| (service, fault))))
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            // Faults that run into timeouts would take hours, and the cooldown after a 429 outlasts its fault.
            .filter(|(_, fault)| fault.status != Some(429) && !SLOW_FAULTS.contains(&fault.name.as_str()))
            .collect();
        let (mut injected, mut failing): (usize, Option<Service>) = (0, None);
        let mut results: BTreeMap<String, usize> = BTreeMap::new();
        let before = self.usage()?;
        for number in 0..requests {
            if number % REQUESTS_PER_PHASE == 0 {
                failing = match failing.take() {
                    Some(service) => {
                        self.clear(service, Timing::Warm).await?;
                        None
                    }
                    None => {
                        let (service, fault) = &faults[injected % faults.len()];
                        self.inject(*service, &fault.kind).await?;
                        injected += 1;
                        Some(*service)
                    }
                };
            }
            let (result, error) = self.send_one_of_many(number, failing == Some(Service::Novi)).await?;
            if let Some(error) = error {
                bail!("request {number}, failing service {failing:?}: {result}: {error}");
            }
            *results.entry(result).or_default() += 1;
        }
        if let Some(service) = failing {
            self.clear(service, Timing::Warm).await?;
        }
        self.expect_full_service("after all faults").await?;
        let after = self.usage()?;
        let summary = format!("{requests} requests, {injected} faults: before: {before}; after: {after}; {results:?}");
        if !after.is_close_to(before) {
            bail!("{summary}: resources leaked");
        }
        Ok(summary)
    }

    /// Sends one request, of a kind that depends on `number`. Returns the result, and an error if it is wrong.
    async fn send_one_of_many(&self, number: usize, novi_may_fail: bool) -> Result<(String, Option<&'static str>)> {
        let (cached, uncached, non_member) =
            (self.cached_member, self.add_member(), Uuid::from_u128(fastrand::u128(..)));
        let path = |id: &str| format!("/v3/action/idaa/novi_member/{id}");
        let (id, key) = match number % 5 {
            0 => (cached.hyphenated().to_string(), self.key.as_str()),
            1 => (uncached.hyphenated().to_string(), self.key.as_str()),
            2 => (non_member.hyphenated().to_string(), self.key.as_str()),
            3 => (cached.hyphenated().to_string(), "a wrong key"),
            _ => ("39120341".to_owned(), self.key.as_str()),
        };
        self.private.add(&id);
        let response = self.send(&Request::get(&path(&id)).header("x-api-key", key)).await??;
        let is_outage = novi_may_fail && response.status == 503 && response.code().starts_with("novi_");
        let address = |id: Uuid| self.novi.state().directory.address(id);
        let is_about = |id: Uuid| {
            response.status == 200
                && response.json()["email"].as_str().is_some_and(|email| email.to_lowercase() == address(id))
        };
        let is_correct = match number % 5 {
            0 => is_about(cached) || (is_outage && response.status != 404),
            // One of Novi's faults is to respond that the member doesn't exist.
            1 => is_about(uncached) || is_outage || (novi_may_fail && response.status == 404),
            2 => response.status == 404 || is_outage,
            3 => response.code() == "api_key_invalid",
            _ => response.code() == "invalid_uuid",
        };
        let detail = if response.status == 200 { response.header("x-cache").to_owned() } else { response.code() };
        Ok((format!("{} {detail}", response.status), (!is_correct).then_some("wrong response")))
    }

    fn faults(&self, service: Service, coverage: Coverage) -> Result<Vec<NamedFault>> {
        let network =
            |name: &str, fault| NamedFault { name: name.to_owned(), kind: FaultKind::Network(fault), status: None };
        let unknown_authority = CertificateAuthority::new()?;
        let mut all = vec![
            network("connection refused", TcpFault::Refused),
            network("connection reset", TcpFault::Reset),
            network("black hole", TcpFault::Silence),
            network("byte by byte", TcpFault::ByteByByte),
            network(
                "certificate from an unknown authority",
                TcpFault::WrongCertificate(unknown_authority.acceptor_for(service.host(), false)?),
            ),
            network(
                "certificate for another host name",
                TcpFault::WrongCertificate(self.authority.acceptor_for("other.test", false)?),
            ),
            network(
                "expired certificate",
                TcpFault::WrongCertificate(self.authority.acceptor_for(service.host(), true)?),
            ),
            network("truncated response", TcpFault::TruncatedResponse),
            network("restart during a request", TcpFault::Restart),
            NamedFault { name: "unknown host name".to_owned(), kind: FaultKind::UnknownHost, status: None },
            NamedFault { name: DEAD_ADDRESS.to_owned(), kind: FaultKind::DeadAddress, status: None },
            NamedFault { name: "frozen for an hour, connections dead".to_owned(), kind: FaultKind::Thaw, status: None },
        ];
        if service == Service::Redis {
            all.push(network(
                "endless response",
                TcpFault::EndlessResponse(Bytes::from("$500000000\r\n"), Bytes::from(vec![b' '; 16_384])),
            ));
            for reply in REDIS_REPLIES {
                all.push(network(
                    &format!("reply {}", reply.trim_end()),
                    TcpFault::Respond(Bytes::from_static(reply.as_bytes())),
                ));
            }
            return Ok(all);
        }
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
        let chunk = format!("4000\r\n{}\r\n", " ".repeat(0x4000));
        all.push(network("endless body", TcpFault::EndlessResponse(Bytes::from(head), Bytes::from(chunk))));
        all.push(network(
            "wrong content type",
            http(200, "text/html", "<html><body>Welcome to this hotel</body></html>"),
        ));
        all.push(network("not HTTP", TcpFault::Respond(Bytes::from("SSH-2.0-OpenSSH_9.2\r\n"))));
        let bodies: &[&str] = match service {
            Service::Ssm => &["{}", "[]", r#"{"Parameters":"x"}"#, r#"{"Parameters":[]}"#],
            Service::ElastiCache => &["{}", "<ok/>", "<DescribeReplicationGroupsResponse/>"],
            Service::Novi => &NOVI_BODIES,
            Service::S3 => &["{}", "<Error><Code>InternalError</Code></Error>"],
            Service::Mailman | Service::Redis => &["{}", "[]", r#"{"total_size":"x"}"#, r#"{"total_size":5}"#],
        };
        all.extend(bodies.iter().map(|body| network(&format!("body {body}"), http(200, "application/json", body))));
        if service == Service::Novi {
            let problem = r#"{"type":"about:blank","title":"Access denied","status":403}"#;
            all.extend([
                network("status 403 from a CDN", http(403, "text/html", "<html>Access denied</html>")),
                network("status 403 from a CDN, in JSON", http(403, "application/problem+json", problem)),
                network("status 404 from a proxy", http(404, "text/plain", "404 page not found")),
                network("status 503 with Retry-After", NOVI_BUSY),
                network("too many headers", with_many_headers()),
                network("invalid chunk", NOVI_INVALID_CHUNK),
            ]);
        }
        let statuses = (400..=418).chain(421..=426).chain([428, 429, 431, 451]).chain(500..=511);
        for status in
            statuses.filter(|status| coverage == Coverage::Full || service.meaningful_statuses().contains(status))
        {
            let kind = FaultKind::Network(http(status, "application/json", r#"{"Message":"injected fault"}"#));
            all.push(NamedFault { name: format!("status {status}"), kind, status: Some(status) });
        }
        Ok(all)
    }

    async fn test_fault(&mut self, service: Service, fault: &NamedFault, timing: Timing) -> Result<Row> {
        let mut errors = Vec::new();
        if self.lambda == Lambda::Mirror {
            self.start_new_day_if_needed().await?;
            self.change_group();
        }
        if timing == Timing::Warm {
            match service {
                // Parameters are only read again after their TTL.
                Service::Ssm => self.clock.advance(301)?,
                // The address is only requested again after a failure.
                Service::ElastiCache => {
                    self.proxies[&Service::Redis].set(Some(TcpFault::Refused)).await;
                    self.clock.advance(2)?;
                }
                _ => {}
            }
        }
        self.inject(service, &fault.kind).await?;
        if timing == Timing::Cold {
            self.function = start(self.lambda, &self.variables, &self.hosts, &self.private)?;
        }
        let started = Instant::now();
        let result = match self.lambda {
            Lambda::Verify => self.verify_under_fault(service, fault, timing, &mut errors).await?,
            Lambda::Mirror => self.mirror_under_fault(service, fault, timing, &mut errors).await?,
        };
        let duration = started.elapsed();
        let is_counted = match &fault.kind {
            FaultKind::Network(fault) => !matches!(fault, TcpFault::Refused),
            FaultKind::UnknownHost | FaultKind::DeadAddress | FaultKind::Thaw => false,
        };
        let has_swallowed = self.black_hole.as_ref().map(BlackHole::has_swallowed).transpose()?;
        if (is_counted && self.proxies[&service].hits() == 0) || has_swallowed == Some(false) {
            errors.push("the fault didn't occur".to_owned());
        }
        self.clear(service, timing).await?;
        if let Err(error) = self.expect_full_service("after the fault").await {
            errors.push(format!("{error:#}"));
        }
        Ok(Row { lambda: self.lambda, service, timing, fault: fault.name.clone(), result, duration, errors })
    }

    async fn inject(&mut self, service: Service, kind: &FaultKind) -> Result<()> {
        match kind {
            FaultKind::Network(fault) => self.proxies[&service].set(Some(fault.clone())).await,
            FaultKind::UnknownHost => {
                self.hosts.set(Some(service), None)?;
                self.proxies[&service].close_connections();
            }
            FaultKind::DeadAddress => {
                self.black_hole = Some(BlackHole::start(self.proxies[&service].port).await?);
                self.hosts.set(None, Some(service))?;
                self.proxies[&service].close_connections();
            }
            FaultKind::Thaw => {
                self.function.freeze(true)?;
                self.proxies[&service].strand_connections();
                self.clock.advance(3_600)?;
                self.function.freeze(false)?;
            }
        }
        Ok(())
    }

    async fn clear(&mut self, service: Service, timing: Timing) -> Result<()> {
        self.hosts.set(None, None)?;
        self.black_hole = None;
        self.proxies[&service].set(None).await;
        if service == Service::ElastiCache {
            self.proxies[&Service::Redis].set(None).await;
        }
        match (service, timing) {
            // After a failure, the function waits before it reads parameters again.
            (Service::Ssm, Timing::Warm) => self.clock.advance(11),
            (Service::Ssm, Timing::Cold) => self.clock.advance(2),
            // The function calls ElastiCache at most once per second.
            (Service::ElastiCache, _) => self.clock.advance(2),
            // The lock and the wait are part of the fault, because Mailman may still process a write.
            (Service::Mailman, _) => {
                self.redis.command(&["DEL", &format!("idaa:mirror:{}", self.list)])?;
                self.clock.advance(361)
            }
            // The cooldown is part of the fault, because Novi requested it, and so is the circuit breaker, which lets one
            // call a second through for as long as it is open.
            (Service::Novi, _) => {
                for key in ["novi_cooldown", "novi_failures", "novi_breaker", "novi_breaker_probe"] {
                    self.redis.command(&["DEL", &format!("idaa:{key}:{{{}}}", self.digest)])?;
                }
                self.clock.advance(6)
            }
            _ => Ok(()),
        }
    }

    /// Lets a day pass on the mirror's clock before so many members were replaced that the limits of a day block the list.
    async fn start_new_day_if_needed(&mut self) -> Result<()> {
        if self.changes_today < MAX_CHANGES_PER_DAY {
            return Ok(());
        }
        self.changes_today = 0;
        self.clock.advance(DAY + 1)?;
        self.expect_full_service("after a day").await
    }

    fn change_group(&mut self) {
        self.changes_today += 1;
        let mut state = self.novi.state();
        let joiner = state.directory.add(&mut Rng::new());
        let members = state.directory.groups.get_mut(&self.group);
        if let Some(members) = members {
            members.remove(1);
            members.push(joiner);
        }
    }

    fn add_member(&self) -> Uuid {
        self.novi.state().directory.add(&mut Rng::new())
    }

    /// Verifies a member. Returns the status, followed by `X-Cache` for a 200 and by the code for a problem.
    async fn verify(&self, id: Uuid) -> Result<String> {
        self.private.add(&id.hyphenated().to_string());
        let path = format!("/v3/action/idaa/novi_member/{}", id.hyphenated());
        let response = self.send(&Request::get(&path).header("x-api-key", &self.key)).await?;
        let Ok(response) = response else { return Ok("exited".to_owned()) };
        let detail = if response.status == 200 { response.header("x-cache").to_owned() } else { response.code() };
        Ok(format!("{} {detail}", response.status))
    }

    /// Sends a request. The inner result is an error if there is no HTTP response because the function has exited.
    async fn send(&self, request: &Request) -> Result<Result<Response>> {
        let returned = self.invoke(&request.http_api("$default")).await?;
        Ok(Response::parse(&returned))
    }

    async fn invoke(&self, event: &Value) -> Result<Value> {
        let returned =
            tokio::time::timeout(TIMEOUT, self.function.invoke(event)).await.context("the function timed out")?;
        // The emulator doesn't respond if the function has exited.
        let returned = returned.unwrap_or_else(|_| json!({"errorType": "Exited"}));
        // Reports, problems and errors must never contain personal data, whatever the fault.
        if returned["statusCode"] != 200 {
            let leaked = self.private.found_in(&returned.to_string());
            ensure!(leaked.is_empty(), "the result contains private data: {leaked:?}");
        }
        Ok(returned)
    }

    async fn verify_under_fault(
        &self,
        service: Service,
        fault: &NamedFault,
        timing: Timing,
        errors: &mut Vec<String>,
    ) -> Result<String> {
        let cached = self.verify(self.cached_member).await?;
        let uncached = self.verify(self.add_member()).await?;
        if service == Service::Novi {
            self.verify_stale_member(fault, errors).await?;
        }
        let health = self.send(&Request::get("/health")).await?;
        let mut expect = |what: &str, result: &str, expected: &[&str]| {
            if !expected.contains(&result) {
                errors.push(format!("{what}: expected {}, got {result}", expected.join(" or ")));
            }
        };
        const ANY: [&str; 3] = ["200 hit", "200 miss", "200 bypass"];
        let is_cold_ssm =
            service == Service::Ssm && timing == Timing::Cold && !matches!(fault.kind, FaultKind::DeadAddress);
        match service {
            _ if is_cold_ssm => {
                expect("cached member", &cached, &["503 parameters_unavailable", "200 hit"]);
                expect("uncached member", &uncached, &["503 parameters_unavailable", "200 miss"]);
            }
            Service::Ssm => {
                expect("cached member", &cached, &["200 hit"]);
                expect("uncached member", &uncached, &["200 miss"]);
            }
            Service::Redis if matches!(fault.kind, FaultKind::DeadAddress | FaultKind::Thaw) => {
                expect("cached member", &cached, &["200 hit"]);
                expect("uncached member", &uncached, &["200 miss"]);
            }
            Service::Novi => {
                expect("cached member", &cached, &["200 hit"]);
                expect("uncached member", &uncached, expected_novi_results(fault));
            }
            _ => {
                expect("cached member", &cached, &ANY);
                expect("uncached member", &uncached, &ANY);
            }
        }
        match health {
            Ok(health) => {
                let is_expected = if is_cold_ssm { matches!(health.status, 200 | 503) } else { health.status == 200 };
                if !is_expected {
                    errors.push(format!("unexpected health status {}", health.status));
                }
            }
            Err(_) => errors.push("no response from health".to_owned()),
        }
        Ok(format!("{cached}, {uncached}"))
    }

    /// Checks that a stale record is served and kept during an outage of Novi, and ends with a verdict.
    async fn verify_stale_member(&self, fault: &NamedFault, errors: &mut Vec<String>) -> Result<()> {
        let id = self.stale_member;
        let key = format!("idaa:novi_member:{}", id.hyphenated());
        let address = self.novi.state().directory.address(id);
        let now = self.clock.now();
        let cached_at = now - TTL_SECONDS.parse::<u64>()? - 60;
        let entry = json!({
            "verified": true, "full_name": "Stale S.", "email": address, "cached_at": cached_at, "novi": self.digest,
        });
        self.redis.command(&["SET", &key, &entry.to_string()])?;
        let result = self.verify(id).await?;
        let is_kept = self.redis.command(&["EXISTS", &key])?.trim() == "1";
        let is_verdict = fault.status == Some(404);
        let expected: &[&str] = match fault.kind {
            _ if is_verdict => &["404 member_not_found"],
            FaultKind::DeadAddress => &["200 miss"],
            FaultKind::Thaw | FaultKind::Network(TcpFault::Restart) => &["200 miss", "200 stale"],
            _ => &["200 stale"],
        };
        if !expected.contains(&result.as_str()) || is_kept == is_verdict {
            errors.push(format!("stale member: expected {}, got {result}, kept: {is_kept}", expected.join(" or ")));
        }
        Ok(())
    }

    async fn mirror_under_fault(
        &self,
        service: Service,
        fault: &NamedFault,
        timing: Timing,
        errors: &mut Vec<String>,
    ) -> Result<String> {
        let before = self.roster().await?;
        let returned = self.invoke(&json!({})).await?;
        let status = match harness::report(returned.clone()) {
            Ok(report) => report["status"].as_str().unwrap_or("?").to_owned(),
            Err(_) => returned["errorType"].as_str().unwrap_or("no report").to_owned(),
        };
        let expected: &[&str] = match (service, &fault.kind) {
            (_, FaultKind::DeadAddress) => &["ok"],
            (Service::Ssm, _) if timing == Timing::Cold => &["NotStarted", "ok"],
            (Service::Ssm | Service::ElastiCache | Service::Redis, _) => &["ok"],
            (_, FaultKind::Thaw) => &["ok"],
            (_, FaultKind::Network(TcpFault::Restart)) => &["ok", "partial", "failed"],
            (Service::Novi, _) if fault.status == Some(404) => &["blocked"],
            (Service::Novi, _) => &["partial", "failed"],
            (Service::Mailman, _) => &["failed"],
            // Without the ledger, no one is removed.
            (Service::S3, _) => &["partial"],
        };
        if !expected.contains(&status.as_str()) {
            errors.push(format!("expected {}, got {status}", expected.join(" or ")));
        }
        let (wanted, roster) = (self.expected_roster(), self.roster().await?);
        let removed = before.iter().filter(|address| wanted.contains(*address) && !roster.contains(*address)).count();
        let added = roster.iter().filter(|address| !wanted.contains(*address) && !before.contains(*address)).count();
        if removed + added > 0 {
            errors.push(format!("{removed} wrongly removed, {added} wrongly added"));
        }
        if status == "ok" && roster != wanted {
            errors.push("the status is ok, but the roster is wrong".to_owned());
        }
        Ok(status)
    }

    /// Returns the addresses that should be on the list.
    fn expected_roster(&self) -> BTreeSet<String> {
        let state = self.novi.state();
        let members = state.directory.groups.get(&self.group).into_iter().flatten();
        members.map(|id| state.directory.address(*id)).collect()
    }

    async fn roster(&self) -> Result<BTreeSet<String>> {
        let mailman = self.mailman.as_ref().context("this function doesn't use Mailman")?;
        Ok(mailman.roster(&self.list, "member").await?.into_keys().collect())
    }

    /// Checks that the fault is over. The first request may still be needed to notice that, the next ones may not.
    async fn expect_full_service(&self, when: &str) -> Result<()> {
        match self.lambda {
            Lambda::Verify => {
                let first = self.verify(self.add_member()).await?;
                if !first.starts_with("200") {
                    bail!("{when}: expected 200 for the first uncached member, got {first}");
                }
                let uncached = self.add_member();
                for (id, expected) in [(uncached, "200 miss"), (uncached, "200 hit"), (self.cached_member, "200 hit")] {
                    let result = self.verify(id).await?;
                    // The cached member may be missing from the cache if the cache was not used during the fault.
                    if result != expected && !(id == self.cached_member && result == "200 miss") {
                        bail!("{when}: expected {expected}, got {result}");
                    }
                }
                let health = self.send(&Request::get("/health")).await?.map(|response| response.json())?;
                if health != json!({"status": "ok", "checks": {"parameters": "ok", "cache": "ok"}}) {
                    bail!("{when}: unexpected health {health}");
                }
            }
            Lambda::Mirror => {
                let report = harness::report(self.invoke(&json!({})).await?)?;
                if report["status"] != "ok" {
                    bail!("{when}: expected an ok run, got {}: {}", report["status"], report["lists"][0]["reason"]);
                }
                if self.roster().await? != self.expected_roster() {
                    bail!("{when}: the roster is wrong");
                }
            }
        }
        Ok(())
    }
}

fn start(lambda: Lambda, variables: &[(String, String)], hosts: &Hosts, private: &Private) -> Result<Function> {
    let name = match lambda {
        Lambda::Verify => "verify",
        Lambda::Mirror => "mirror",
    };
    let borrowed: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    Function::start_with_hosts(Some(&hosts.file), name, &json!({}), &borrowed, private)
}

/// Bodies with status 200 that are no records.
const NOVI_BODIES: [&str; 9] = [
    r#"{"Email":5}"#,
    "[1,2]",
    r#""x""#,
    r#"{"data":7}"#,
    r#"{"error":"rate limit exceeded"}"#,
    r#"{"Message":"An error has occurred.","Name":null}"#,
    r#"{"status":"error","data":null}"#,
    // A record that hides all names and the address, and the record of another person.
    r#"{"UniqueID":null,"Active":true,"UnsubscribeFromEmails":false}"#,
    r#"{"UniqueID":"00000000-0000-4000-8000-000000000000","Name":"Someone","Email":"someone@mail.example.org"}"#,
];

/// A response that asks for more time than a request has.
const NOVI_BUSY: TcpFault = TcpFault::Respond(Bytes::from_static(
    b"HTTP/1.1 503 Busy\r\nRetry-After: 120\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
));

/// A body that doesn't follow the chunked encoding.
const NOVI_INVALID_CHUNK: TcpFault = TcpFault::Respond(Bytes::from_static(
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
));

/// Returns a response with more headers than a client accepts.
fn with_many_headers() -> TcpFault {
    let headers: String = (0..300).map(|n| format!("X-Trace-{n}: 1\r\n")).collect();
    TcpFault::Respond(Bytes::from(format!("HTTP/1.1 200 OK\r\n{headers}Content-Length: 2\r\n\r\n{{}}")))
}

/// Possible replies of Redis, or of another server on its port, to any command.
const REDIS_REPLIES: [&str; 14] = [
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

fn http(status: u16, content_type: &str, body: &str) -> TcpFault {
    let retry_after = if status == 429 { "Retry-After: 1\r\n" } else { "" };
    TcpFault::Respond(Bytes::from(format!(
        "HTTP/1.1 {status} Injected Fault\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n{retry_after}\
         Connection: close\r\n\r\n{body}",
        body.len()
    )))
}

/// Returns the allowed results of verifying an uncached member while Novi has this fault.
fn expected_novi_results(fault: &NamedFault) -> &'static [&'static str] {
    match fault.status {
        Some(404) => return &["404 member_not_found"],
        Some(401 | 403) => return &["503 novi_credentials_rejected"],
        Some(429) => return &["429 rate_limited"],
        Some(_) => return &["503 novi_error"],
        None => {}
    }
    match &fault.kind {
        FaultKind::DeadAddress | FaultKind::Thaw => &["200 miss"],
        FaultKind::Network(TcpFault::Restart) => &["200 miss", "503 novi_unreachable"],
        FaultKind::Network(TcpFault::EndlessResponse(..)) => &["503 novi_invalid_response"],
        FaultKind::Network(TcpFault::Respond(_)) if fault.name.contains("CDN") => &["503 novi_blocked"],
        FaultKind::Network(TcpFault::Respond(_)) if fault.name.starts_with("status") => &["503 novi_error"],
        FaultKind::Network(TcpFault::Respond(_)) => &["503 novi_invalid_response"],
        _ => &["503 novi_unreachable"],
    }
}
