//! The servers of a sequence: one or two instances of the mirror, a simulated Novi, a real Mailman behind a proxy, and
//! often a real Redis.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use fastrand::Rng;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::clock::Clock;
use crate::directory::Directory;
use crate::harness::ledger_key;
use crate::http_proxy::HttpProxy;
use crate::mailman::{self, Database, Mailman};
use crate::novi::Novi;
use crate::privacy::Private;
use crate::redis::{Kind, Redis};
use crate::runtime::Instance;

/// The servers that sequences use one after another.
pub(super) struct Servers {
    pub(super) mailman: Mailman,
    redis: Redis,
}

impl Servers {
    /// Starts the servers, with a Mailman on this kind of database.
    pub(super) async fn start(database: Database) -> Result<Self> {
        Ok(Self { mailman: Mailman::start_on(database).await?, redis: Redis::start(Kind::Plain)? })
    }
}

/// All servers of a sequence.
pub(super) struct Environment {
    pub(super) servers: Servers,
    pub(super) novi: Novi,
    pub(super) proxy: HttpProxy,
    pub(super) has_redis: bool,
    pub(super) ledger: Option<LedgerFile>,
    /// The mirror's clock.
    pub(super) clock: Clock,
    /// The number of calls to Novi that a run may make if not everyone fits into one run.
    pub(super) calls_of_run: Option<usize>,
    private: Private,
    config: Value,
    variables: Vec<(String, String)>,
    instance: Instance,
    /// True if the instance has not run yet.
    pub(super) is_new: bool,
    /// True if a write of this instance may still arrive at Mailman, or may have been lost, so that the instance
    /// remembers its address.
    has_memory: bool,
    /// The directory of the clock and the ledger.
    _dir: TempDir,
}

/// The ledger of a sequence's mirror.
pub(super) struct LedgerFile {
    path: PathBuf,
    /// True if the claim of a run that was killed may stand, until time passes.
    pub(super) may_be_claimed: bool,
}

impl LedgerFile {
    /// Returns the content, if there is any.
    pub(super) fn read(&self) -> Option<Vec<u8>> {
        std::fs::read(&self.path).ok()
    }

    /// Replaces the content, or deletes the ledger.
    pub(super) fn replace(&self, content: Option<&[u8]>) -> Result<()> {
        match content {
            Some(content) => std::fs::write(&self.path, content)?,
            None if self.path.exists() => std::fs::remove_file(&self.path)?,
            None => {}
        }
        Ok(())
    }
}

/// A way to disturb a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disturbance {
    /// None.
    Nothing,
    /// The instance is killed after this many calls to Novi.
    KilledWhileReading(usize),
    /// The instance is killed after this many requests to Mailman.
    KilledWhileWriting(usize),
    /// Mailman crashes after this many requests, and starts again.
    MailmanCrashes(usize),
    /// The invocation has little time.
    ShortTime(Duration),
    /// A second instance runs concurrently.
    SecondInstance,
}

impl Disturbance {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nothing => "none",
            Self::KilledWhileReading(_) => "the mirror is killed while it reads Novi",
            Self::KilledWhileWriting(_) => "the mirror is killed while it talks to Mailman",
            Self::MailmanCrashes(_) => "Mailman crashes during a run",
            Self::ShortTime(_) => "time runs out",
            Self::SecondInstance => "a second instance runs concurrently",
        }
    }
}

const HOUR: u64 = 3_600;

/// The time that an invocation has if nothing shortens it. Mailman may be slow on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(300);

impl Environment {
    /// Starts the rest of the servers, with these mappings. With a ledger, passes sometimes take several runs.
    pub(super) async fn start(servers: Servers, rng: &mut Rng, mappings: Value, has_ledger: bool) -> Result<Self> {
        let has_redis = rng.bool();
        let is_limited = has_ledger && rng.bool();
        let calls_of_run = is_limited.then(|| rng.usize(18..50));
        let dir = TempDir::new()?;
        let ledger = has_ledger.then(|| LedgerFile { path: dir.path().join("ledger"), may_be_claimed: false });
        let clock = Clock::new(dir.path())?;
        let private = Private::default();
        let novi = Novi::start(Directory::default(), private.clone()).await?;
        let proxy = HttpProxy::start(servers.mailman.base_url()).await?;
        private.add(servers.mailman.password());
        let config = json!({
            "novi_api_root_url": novi.root(),
            "novi_idaa_api_key": novi.state().key,
            "mailman_base_url": proxy.url(),
            "mailman_username": mailman::USER,
            "mailman_password": servers.mailman.password(),
            "novi_mailman_sync": mappings,
            "ledger_key": ledger_key(),
        });
        let mut variables = variables_of(&servers, has_redis, ledger.as_ref(), calls_of_run);
        variables.extend(clock.variables()?);
        let instance = start_instance(&config, &variables, &private).await?;
        Ok(Self {
            servers,
            novi,
            proxy,
            has_redis,
            ledger,
            clock,
            calls_of_run,
            private,
            config,
            variables,
            instance,
            is_new: true,
            has_memory: false,
            _dir: dir,
        })
    }

    async fn another_instance(&self) -> Result<Instance> {
        let instance = start_instance(&self.config, &self.variables, &self.private).await?;
        instance.set_clock_offset(self.clock.offset());
        Ok(instance)
    }

    /// Replaces the instance by one that remembers nothing.
    pub(super) async fn restart(&mut self) -> Result<()> {
        self.instance = self.another_instance().await?;
        self.is_new = true;
        self.has_memory = false;
        Ok(())
    }

    /// Returns the mappings in use.
    pub(super) fn mappings(&self) -> &Value {
        &self.config["novi_mailman_sync"]
    }

    /// Replaces the mappings.
    pub(super) async fn set_mappings(&mut self, mappings: Value) -> Result<()> {
        self.config["novi_mailman_sync"] = mappings;
        self.restart().await
    }

    /// Puts a new key in front of those that open the ledger.
    pub(super) async fn rotate_ledger_key(&mut self) -> Result<()> {
        let keys = &mut self.config["ledger_key"];
        let older = std::mem::take(keys);
        *keys = match older {
            Value::Array(older) => std::iter::once(json!(ledger_key())).chain(older).collect(),
            older => json!([ledger_key(), older]),
        };
        self.restart().await
    }

    /// Runs the mirror. Returns what each instance returned, except one that was killed.
    pub(super) async fn run(
        &mut self,
        event: &Value,
        disturbance: Disturbance,
        has_faults: bool,
    ) -> Result<Vec<Value>> {
        self.proxy.clear_requests();
        self.has_memory |= has_faults || !matches!(disturbance, Disturbance::Nothing | Disturbance::SecondInstance);
        let timeout = if let Disturbance::ShortTime(timeout) = disturbance { timeout } else { TIMEOUT };
        self.instance.set_timeout(timeout);
        let invocation = self.instance.invoke(event);
        let is_killed = match disturbance {
            Disturbance::Nothing | Disturbance::ShortTime(_) => return Ok(vec![invocation.await?]),
            Disturbance::SecondInstance => {
                let second = self.another_instance().await?;
                let (first, second) = tokio::join!(invocation, second.invoke(event));
                return Ok(vec![first?, second?]);
            }
            Disturbance::KilledWhileReading(calls) => {
                let calls = self.novi.state().calls.len() + calls;
                tokio::select! {
                    returned = invocation => return Ok(vec![returned?]),
                    () = self.novi.wait_for("/api/", calls) => true,
                }
            }
            Disturbance::KilledWhileWriting(requests) => {
                tokio::select! {
                    returned = invocation => return Ok(vec![returned?]),
                    () = self.proxy.wait_for("/3.1/", requests) => true,
                }
            }
            Disturbance::MailmanCrashes(requests) => {
                tokio::pin!(invocation);
                tokio::select! {
                    returned = &mut invocation => return Ok(vec![returned?]),
                    () = self.proxy.wait_for("/3.1/", requests) => self.servers.mailman.restart()?,
                }
                return Ok(vec![invocation.await?]);
            }
        };
        if is_killed {
            self.instance.kill();
            if let Some(ledger) = &mut self.ledger {
                ledger.may_be_claimed = true;
            }
            self.restart().await?;
        }
        Ok(Vec::new())
    }

    /// True if passes may take several runs.
    pub(super) fn has_long_passes(&self) -> bool {
        self.calls_of_run.is_some()
    }

    /// Advances the mirror's clock.
    pub(super) fn advance(&mut self, seconds: u64) -> Result<()> {
        self.clock.advance(seconds)?;
        self.instance.set_clock_offset(self.clock.offset());
        Ok(())
    }

    /// Lets so many hours pass. Every delayed request arrives, and locks expire.
    pub(super) async fn pass_time(&mut self, hours: u64) -> Result<()> {
        self.proxy.wait_for_delayed().await;
        self.advance(hours * HOUR)?;
        if let Some(ledger) = &mut self.ledger {
            ledger.may_be_claimed = false;
        }
        if self.has_redis {
            // Redis has a clock of its own, by which it also counts the calls of a day.
            self.servers.redis.command(&["FLUSHALL"])?;
        }
        if self.has_memory {
            self.restart().await?;
        }
        Ok(())
    }

    /// Returns the memberships of a list: addresses by Mailman's id of the membership.
    pub(super) async fn memberships(&self, list: &str) -> Result<BTreeMap<String, String>> {
        self.servers.mailman.memberships(list).await
    }

    /// Returns the addresses on a list.
    pub(super) async fn roster(&self, list: &str) -> Result<BTreeSet<String>> {
        Ok(self.memberships(list).await?.into_values().collect())
    }

    /// Returns the addresses that requests without a successful response subscribe and unsubscribe, by list.
    pub(super) fn open_writes(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut open: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for request in self.proxy.requests() {
            let is_open = request.status.is_none_or(|status| status >= 500);
            let body: Value = serde_json::from_str(&request.body).unwrap_or_default();
            if let (true, Some(list), Some(address)) = (is_open, body["list_id"].as_str(), body["subscriber"].as_str())
            {
                open.entry(list.to_owned()).or_default().insert(address.to_owned());
            }
            let list = request.line.strip_prefix("DELETE /3.1/lists/").and_then(|rest| rest.split('/').next());
            if let (true, Some(list), Some(emails)) = (is_open, list, body["emails"].as_array()) {
                let emails = emails.iter().filter_map(Value::as_str).map(str::to_owned);
                open.entry(list.to_owned()).or_default().extend(emails);
            }
        }
        open
    }

    /// Returns the requests without a successful response that move a membership: its id, and its new address.
    pub(super) fn open_moves(&self) -> Vec<(String, String)> {
        let mut open = Vec::new();
        for request in self.proxy.requests() {
            let is_open = request.status.is_none_or(|status| status >= 500);
            let body: Value = serde_json::from_str(&request.body).unwrap_or_default();
            let id = request.line.strip_prefix("PATCH /3.1/members/").and_then(|rest| rest.split(['/', ' ']).next());
            if let (true, Some(id), Some(address)) = (is_open, id, body["address"].as_str()) {
                open.push((id.to_owned(), address.to_owned()));
            }
        }
        open
    }

    /// Returns the number of writes to Mailman since the last run began.
    pub(super) fn writes(&self) -> usize {
        self.proxy.requests().iter().filter(|request| !request.line.starts_with("GET")).count()
    }
}

/// Returns the environment variables of every instance. `calls_of_run` is the number of calls to Novi that a run may make.
fn variables_of(
    servers: &Servers,
    has_redis: bool,
    ledger: Option<&LedgerFile>,
    calls_of_run: Option<usize>,
) -> Vec<(String, String)> {
    let calls_of_day = calls_of_run.map_or(1_000_000, |calls| calls * 24);
    let mut variables = vec![
        ("MIRROR_APPLY".to_owned(), "true".to_owned()),
        ("NOVI_MAX_PER_SECOND".to_owned(), "10000".to_owned()),
        ("NOVI_MAX_PER_MINUTE".to_owned(), "100000".to_owned()),
        ("NOVI_MAX_PER_DAY".to_owned(), calls_of_day.to_string()),
        ("NOVI_TOTAL_PER_SECOND".to_owned(), "1000000".to_owned()),
        ("NOVI_TIMEOUT_MS".to_owned(), "500".to_owned()),
        ("MAILMAN_RETRY_SECONDS".to_owned(), "4".to_owned()),
    ];
    if let Some(ledger) = ledger {
        variables.push(("LEDGER".to_owned(), format!("file://{}", ledger.path.display())));
    }
    if has_redis {
        variables.extend(servers.redis.variables());
        variables.push(("CACHE_TIMEOUT_MS".to_owned(), "1000".to_owned()));
    }
    variables
}

async fn start_instance(config: &Value, variables: &[(String, String)], private: &Private) -> Result<Instance> {
    let borrowed: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    Instance::start("mirror", 1, config, &borrowed, private).await.context("starting the mirror failed")
}
