//! A Redis (or Valkey) that all instances share.
//!
//! The connection is kept in a state of its own, because what a request may
//! wait is bounded and what a reconnection takes is not: it is made in the
//! background, and requests go past a Redis that has failed without waiting
//! for it. The first request after it is back uses it again.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use redis::cluster_async::ClusterConnection;
use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, ServerErrorKind};
use tokio::sync::watch;
use tokio::time::Instant;

use super::endpoint::{Connector, cause};
use super::node::Node;
use super::{Entry, MemberUpdate, unix, unix_now};
use crate::member::MemberId;
use crate::settings::CacheTtls;
use crate::sync;

/// The longest value that can be an entry. A foreign value may be half a gigabyte.
const VALUE_LIMIT: isize = 16 << 10;
/// A new connection is tried at most this often.
const RETRY: Duration = Duration::from_millis(10);
/// One try to connect, discovery and TLS included, ends after this.
const CONNECT: Duration = Duration::from_secs(5);
/// A try that has taken so long may never end, where what it was sent into is
/// gone: a request does not count on it, and begins another beside it.
const SLOW: Duration = Duration::from_millis(50);
/// Such another one ends after this.
const CONNECT_BESIDE: Duration = Duration::from_secs(1);
/// No more than so many are under way: a server that is slow is not helped by more.
const TRIES: usize = 6;

const COOLDOWN: &str = "idaa:novi_cooldown";
/// In the cooldown's slot of a cluster, so that one script sees both.
const CALLS: &str = "idaa:novi_calls:{idaa:novi_cooldown}";

/// Counts a call in a sliding minute, by the server's clock. Gives 0, or the
/// milliseconds until a call may be made: until the cooldown is over, or the
/// minute has room.
const COUNT_CALL: &str = r"
local left = redis.call('PTTL', KEYS[1])
if left > 0 then return left end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - 60000)
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[1]) then
  local oldest = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
  return math.max(1, oldest[2] + 60000 - now)
end
redis.call('ZADD', KEYS[2], now, t[1] .. '.' .. t[2] .. '.' .. ARGV[2])
redis.call('PEXPIRE', KEYS[2], 60000)
return 0";

/// Starts a cooldown, unless a longer one is on.
const COOL_DOWN: &str = r"
if redis.call('TTL', KEYS[1]) < tonumber(ARGV[1]) then
  redis.call('SET', KEYS[1], 1, 'EX', ARGV[1])
end
return 0";

/// Claims a key, unless it is somebody else's. An owner is `{instance}:{run}`: a
/// claim whose answer was lost can be made again, and one that an instance could
/// not give back is its own to take over.
const CLAIM: &str = r"
local function instance(owner) return string.match(owner, '^[^:]*') end
local owner = redis.call('GET', KEYS[1])
if owner and instance(owner) ~= instance(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1";

/// Gives up a claim, where it is still the owner's.
const RELEASE: &str = r"
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 0";

/// Puts an entry in its place, or deletes it where there is none to put, unless
/// a newer one is there. One from the future, or no entry at all, is not newer.
const PREWARM: &str = r"
local at, now = tonumber(ARGV[1]), tonumber(ARGV[2])
local there = redis.pcall('GET', KEYS[1])
if type(there) == 'string' then
  local is_json, entry = pcall(cjson.decode, there)
  local cached_at = is_json and type(entry) == 'table' and tonumber(entry.cached_at)
  if cached_at and cached_at > at and cached_at <= now then return 0 end
end
if ARGV[4] then
  redis.call('SET', KEYS[1], ARGV[4], 'EX', ARGV[3])
else
  redis.call('DEL', KEYS[1])
end
return 1";

/// A connection of either kind. Clones share it.
#[derive(Clone)]
pub(super) enum Connection {
    Single(Node),
    Cluster(ClusterConnection<Node>),
}

impl Connection {
    async fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> RedisResult<T> {
        match self {
            Self::Single(connection) => command.query_async(connection).await,
            Self::Cluster(connection) => command.query_async(connection).await,
        }
    }
}

/// The Redis.
pub(super) struct Remote {
    link: Arc<Link>,
    novi_max_per_minute: usize,
}

/// The connection and how it is.
struct Link {
    connector: Connector,
    state: Mutex<State>,
    /// Changes when a try to connect has ended.
    tried: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    connection: Option<Connection>,
    /// Counts connections: a failure counts only against the one that it came from.
    number: u64,
    /// Tries to connect that are under way.
    tries: usize,
    /// Whether one of them has all the time that connecting may take.
    has_patient: bool,
    /// When the last one began.
    began: Option<Instant>,
    /// When the last try failed, where nothing has worked since.
    failed: Option<Instant>,
    /// Whether the log knows of that.
    is_reported: bool,
}

impl Remote {
    pub(super) fn new(connector: Connector, novi_max_per_minute: usize) -> Self {
        let link = Link { connector, state: Mutex::new(State::default()), tried: watch::Sender::new(0) };
        Self { link: Arc::new(link), novi_max_per_minute }
    }

    /// Connects.
    pub(super) async fn warm(&self) {
        Link::connection(&self.link, Duration::ZERO).await;
    }

    /// Tells connections apart.
    pub(super) fn number(&self) -> u64 {
        self.link.lock().number
    }

    /// Nobody answered in time: the connection may be dead, so a new one is made.
    pub(super) fn gave_no_answer(&self, number: u64) {
        self.link.gave_no_answer(number);
    }

    /// Sees whether keys can be read.
    pub(super) async fn look(&self, grace: Duration) -> Option<()> {
        self.ask::<u64>(grace, redis::cmd("EXISTS").arg(COOLDOWN)).await.map(|_| ())
    }

    /// `Some(None)`: there is no entry, or what is there is none.
    pub(super) async fn get(&self, grace: Duration, id: MemberId) -> Option<Option<Entry>> {
        let mut command = redis::cmd("GETRANGE");
        match self.try_ask::<Vec<u8>>(grace, command.arg(key(id)).arg(0).arg(VALUE_LIMIT)).await {
            Ok(value) => Some(serde_json::from_slice(&value).ok()),
            // A value of another type is no entry.
            Err(Some(error)) if error.code() == Some("WRONGTYPE") => Some(None),
            Err(_) => None,
        }
    }

    pub(super) async fn put(&self, grace: Duration, id: MemberId, entry: &Entry, expiry: u64) -> Option<()> {
        let value = serde_json::to_vec(entry).ok()?;
        self.ask(grace, redis::cmd("SET").arg(key(id)).arg(value).arg("EX").arg(expiry)).await
    }

    pub(super) async fn forget(&self, grace: Duration, id: MemberId) -> Option<()> {
        self.ask(grace, redis::cmd("DEL").arg(key(id))).await
    }

    /// Takes over what Novi has said of a member. `Some(false)`: the Redis
    /// refuses; `None`: it cannot be asked.
    pub(super) async fn prewarm(&self, grace: Duration, fact: MemberUpdate, times: CacheTtls) -> Option<bool> {
        let (at, now) = (unix(fact.at), unix_now());
        let expiry = (at + times.ttl + times.stale).saturating_sub(now);
        let mut command = redis::cmd("EVAL");
        command.arg(PREWARM).arg(1).arg(key(fact.id)).arg(at).arg(now).arg(expiry);
        if let Some(identity) = fact.identity {
            if expiry == 0 {
                return Some(true);
            }
            command.arg(serde_json::to_vec(&Entry { verified: true, identity, cached_at: at }).ok()?);
        }
        // With more patience than a request has that somebody waits for.
        const LIMIT: Duration = Duration::from_secs(5);
        let number = self.number();
        match tokio::time::timeout(LIMIT, self.try_ask::<()>(grace, &command)).await {
            Ok(Ok(())) => Some(true),
            Ok(Err(Some(_))) => Some(false),
            Ok(Err(None)) => None,
            Err(_) => {
                self.gave_no_answer(number);
                None
            }
        }
    }

    /// Whether a key could be claimed.
    pub(super) async fn claim(&self, grace: Duration, key: &str, owner: &str, seconds: u64) -> Option<bool> {
        self.ask(grace, redis::cmd("EVAL").arg(CLAIM).arg(1).arg(key).arg(owner).arg(seconds)).await
    }

    pub(super) async fn release(&self, grace: Duration, key: &str, owner: &str) -> Option<()> {
        self.ask(grace, redis::cmd("EVAL").arg(RELEASE).arg(1).arg(key).arg(owner)).await
    }

    pub(super) async fn cool_down(&self, grace: Duration, seconds: u64) -> Option<()> {
        self.ask(grace, redis::cmd("EVAL").arg(COOL_DOWN).arg(1).arg(COOLDOWN).arg(seconds)).await
    }

    /// Counts a call to Novi, or says how long to wait before one.
    pub(super) async fn may_ask_novi(&self, grace: Duration) -> Option<Result<(), Duration>> {
        let mut count = redis::cmd("EVAL");
        count.arg(COUNT_CALL).arg(2).arg(COOLDOWN).arg(CALLS).arg(self.novi_max_per_minute).arg(fastrand::u32(..));
        let wait: u64 = self.ask(grace, &count).await?;
        Some(if wait == 0 { Ok(()) } else { Err(Duration::from_millis(wait)) })
    }

    /// Asks. `None` where there is no answer, or one that is a refusal.
    async fn ask<T: FromRedisValue>(&self, grace: Duration, command: &Cmd) -> Option<T> {
        self.try_ask(grace, command).await.ok()
    }

    /// Asks; a second time where the connection turns out dead. An error is the
    /// server's refusal, or none where the server cannot be asked.
    async fn try_ask<T: FromRedisValue>(&self, grace: Duration, command: &Cmd) -> Result<T, Option<RedisError>> {
        for _ in 0..2 {
            let (mut connection, number) = Link::connection(&self.link, grace).await.ok_or(None)?;
            let error = match connection.query(command).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if is_elsewhere(&error) && matches!(connection, Connection::Single(_)) && self.link.connector.forget() {
                // A group of ElastiCache's has become a cluster: asked again, it says so.
                self.link.lost(number, cause(&error));
                continue;
            }
            if !is_fatal(&error, &connection) {
                // Full, or a value of another type: the connection is as good as ever.
                tracing::debug!(kind = ?error.kind(), "the cache refuses");
                return Err(Some(error));
            }
            self.link.lost(number, cause(&error));
        }
        Err(None)
    }
}

impl Link {
    /// The connection. A new one is waited for where the last one worked until
    /// just now; where trying has failed since, for no longer than `grace`.
    async fn connection(link: &Arc<Self>, grace: Duration) -> Option<(Connection, u64)> {
        loop {
            let mut tried = link.tried.subscribe();
            let has_failed = {
                let mut state = link.lock();
                if let Some(connection) = &state.connection {
                    return Some((connection.clone(), state.number));
                }
                let is_slow = state.began.is_none_or(|at| at.elapsed() >= SLOW);
                if state.tries == 0 || (is_slow && state.tries < TRIES) {
                    let pause = state.failed.map_or(Duration::ZERO, |at| RETRY.saturating_sub(at.elapsed()));
                    let is_patient = !state.has_patient;
                    state.has_patient = true;
                    state.tries += 1;
                    state.began = Some(Instant::now());
                    tokio::spawn(Self::connect(Arc::clone(link), pause, is_patient));
                }
                state.failed.is_some()
            };
            if has_failed {
                // One that has hung for long may end before the one that matters.
                let over = async {
                    while tried.changed().await.is_ok() {
                        let state = link.lock();
                        if state.connection.is_some() || state.tries == 0 {
                            return;
                        }
                    }
                };
                let _ = tokio::time::timeout(grace, over).await;
                let state = link.lock();
                return state.connection.clone().map(|connection| (connection, state.number));
            }
            tried.changed().await.ok()?;
        }
    }

    async fn connect(link: Arc<Self>, pause: Duration, is_patient: bool) {
        tokio::time::sleep(pause).await;
        let limit = if is_patient { CONNECT } else { CONNECT_BESIDE };
        // A task of its own: were it to panic, the next request must be able to try again.
        let task = Arc::clone(&link);
        let outcome = tokio::spawn(async move { tokio::time::timeout(limit, task.connector.connect()).await }).await;
        let outcome = match outcome {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err("no connection in time"),
            Err(_) => Err("the attempt panicked"),
        };
        {
            let mut state = link.lock();
            state.tries -= 1;
            state.has_patient &= !is_patient;
            match outcome {
                // Another try was faster.
                _ if state.connection.is_some() => {}
                Ok(connection) => {
                    state.connection = Some(connection);
                    state.number += 1;
                    (state.failed, state.began) = (None, None);
                    if std::mem::take(&mut state.is_reported) {
                        tracing::info!("the cache is back");
                    }
                }
                Err(cause) => {
                    state.failed = Some(Instant::now());
                    if !std::mem::replace(&mut state.is_reported, true) {
                        tracing::warn!(cause, "the cache cannot be reached");
                    }
                }
            }
        }
        link.tried.send_modify(|tries| *tries += 1);
    }

    /// Drops a connection, where it is still the one that failed.
    fn lost(&self, number: u64, cause: &str) {
        let mut state = self.lock();
        if state.number == number && state.connection.take().is_some() {
            tracing::warn!(cause, "the connection to the cache is lost");
        }
    }

    /// Nobody answered in time: whatever connection there is may be dead, and a
    /// new one is not waited for until it is there.
    fn gave_no_answer(&self, number: u64) {
        let mut state = self.lock();
        if state.number != number {
            return;
        }
        if state.connection.take().is_some() {
            tracing::warn!(cause = "no answer in time", "the connection to the cache is lost");
        }
        state.failed = Some(Instant::now());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        sync::lock(&self.state)
    }
}

fn key(id: MemberId) -> String {
    format!("idaa:novi_member:{}", id.to_text())
}

/// Whether a cluster says that the key is on another of its nodes.
fn is_elsewhere(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask))
}

/// Whether another connection may do better.
fn is_fatal(error: &RedisError, connection: &Connection) -> bool {
    match error.kind() {
        // A replica that was the primary: the primary is elsewhere now.
        ErrorKind::Server(ServerErrorKind::ReadOnly) => true,
        // A cluster's client follows these by itself: it has lost its way.
        _ if is_elsewhere(error) && matches!(connection, Connection::Cluster(_)) => true,
        _ if is_elsewhere(error) => {
            tracing::warn!("the cache is a cluster: set CACHE_CLUSTER=true");
            false
        }
        ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::UnexpectedReturnType => {
            // What asks for a password that was given when connecting has forgotten it.
            matches!(error.code(), Some("NOAUTH" | "WRONGPASS"))
        }
        _ => true,
    }
}
