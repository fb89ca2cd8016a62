//! The commands and scripts sent to the Redis (or Valkey) that all instances share.
//!
//! Every command returns `None` if Redis didn't respond or rejected it. A `reconnect_wait` is how long a command may
//! wait for a new connection after the last one failed.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, FromRedisValue};

use super::connector::Connector;
use super::entry::{Entry, MemberUpdate, unix, unix_now};
use super::link::ReconnectingConnection;
use crate::member::MemberId;
use crate::settings::CacheTtls;

/// The maximum size of an entry in bytes. Another program's value may be half a gigabyte.
const MAX_VALUE: usize = 16 << 10;

const COOLDOWN_KEY: &str = "idaa:novi_cooldown";
/// Exists while Novi is known to have returned a record lately.
const RECORD_READ_KEY: &str = "idaa:novi_record_read";
/// Written to check that it can be. In the same cluster slot as the limits.
const HEALTH_KEY: &str = "idaa:health:{idaa:novi_cooldown}";
/// In the same cluster slot as the cooldown, so that one script can use both.
const CALLS_KEY: &str = "idaa:novi_calls:{idaa:novi_cooldown}";

/// Writes a key of constant size that expires.
const CHECK: &str = r"return redis.call('SET', KEYS[1], 1, 'EX', 60)";

/// Counts a call in a sliding minute of the server's clock. Returns 0, or the milliseconds until a call may be made,
/// which is when the cooldown ends or the minute has room.
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

/// Starts a cooldown unless a longer one is on.
const COOL_DOWN: &str = r"
if redis.call('TTL', KEYS[1]) < tonumber(ARGV[1]) then
  redis.call('SET', KEYS[1], 1, 'EX', ARGV[1])
end
return 0";

/// Claims a key unless another instance holds it. An owner is `{instance}:{run}`. A claim whose response was lost can be
/// repeated, and an instance can take over a claim that an earlier run of its own failed to release.
const CLAIM: &str = r"
local function instance(owner) return string.match(owner, '^[^:]*') end
local owner = redis.call('GET', KEYS[1])
if owner and instance(owner) ~= instance(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1";

/// Releases a claim if the owner still holds it.
const RELEASE: &str = r"
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 0";

/// Keeps a claim beyond its run, unless another instance holds it. The new owner is no instance, so no run can claim the
/// key before it expires.
const KEEP: &str = r"
local owner = redis.call('GET', KEYS[1])
if not owner or owner == ARGV[1] then redis.call('SET', KEYS[1], 'open', 'EX', ARGV[2]) end
return 0";

/// Writes an entry, unless a newer entry exists. An entry from the future and a value that isn't an entry don't count as
/// newer.
const PREWARM: &str = r"
local at, now = tonumber(ARGV[1]), tonumber(ARGV[2])
local current = redis.pcall('GET', KEYS[1])
if type(current) == 'string' then
  local is_json, entry = pcall(cjson.decode, current)
  local cached_at = is_json and type(entry) == 'table' and tonumber(entry.cached_at)
  if cached_at and cached_at > at and cached_at <= now then return 0 end
end
redis.call('SET', KEYS[1], ARGV[4], 'EX', ARGV[3])
return 1";

/// The cache in Redis.
pub(super) struct RedisCache {
    connection: Arc<ReconnectingConnection>,
    novi_max_per_minute: usize,
}

impl RedisCache {
    pub(super) fn new(connector: Connector, novi_max_per_minute: usize) -> Self {
        Self { connection: ReconnectingConnection::new(connector), novi_max_per_minute }
    }

    /// Connects.
    pub(super) async fn warm(&self) {
        self.connection.get(Duration::ZERO).await;
    }

    /// Returns the number of the current connection.
    pub(super) fn generation(&self) -> u64 {
        self.connection.generation()
    }

    /// Replaces the connection `generation`, which may be dead, because a command on it timed out.
    pub(super) fn mark_timed_out(&self, generation: u64) {
        self.connection.mark_timed_out(generation);
    }

    /// Checks that a key can be read as entries are, and written by a script as the limits are.
    ///
    /// Each check replaces the key of the last one, so that any number of checks take the memory of one key, and a full
    /// Redis evicts no entries for them.
    pub(super) async fn check(&self, reconnect_wait: Duration) -> Option<()> {
        let (mut read, mut write) = (redis::cmd("GETRANGE"), redis::cmd("EVAL"));
        let read = self.query::<()>(reconnect_wait, read.arg(HEALTH_KEY).arg(0).arg(MAX_VALUE));
        let write = self.query::<()>(reconnect_wait, write.arg(CHECK).arg(1).arg(HEALTH_KEY));
        let (read, written) = tokio::join!(read, write);
        read.and(written)
    }

    /// Reads an entry. Returns `Some(None)` if the key doesn't exist or its value isn't an entry.
    pub(super) async fn get(&self, reconnect_wait: Duration, id: MemberId) -> Option<Option<Entry>> {
        let mut command = redis::cmd("GETRANGE");
        match self.connection.query::<Vec<u8>>(reconnect_wait, command.arg(key(id)).arg(0).arg(MAX_VALUE)).await {
            Ok(value) => Some(serde_json::from_slice(&value).ok()),
            // A value of another type isn't an entry.
            Err(Some(error)) if error.code() == Some("WRONGTYPE") => Some(None),
            Err(_) => None,
        }
    }

    /// Writes an entry, unless it is too large to be read.
    pub(super) async fn put(&self, reconnect_wait: Duration, id: MemberId, entry: &Entry, expiry: u64) -> Option<()> {
        let Some(value) = value(entry) else { return Some(()) };
        self.query(reconnect_wait, redis::cmd("SET").arg(key(id)).arg(value).arg("EX").arg(expiry)).await
    }

    pub(super) async fn forget(&self, reconnect_wait: Duration, id: MemberId) -> Option<()> {
        self.query(reconnect_wait, redis::cmd("DEL").arg(key(id))).await
    }

    /// Writes the entry of one member. An entry that has expired or is too large to be read is left out. Returns
    /// `Some(false)` if Redis rejected the command, and `None` if it didn't respond.
    pub(super) async fn prewarm(
        &self,
        reconnect_wait: Duration,
        update: MemberUpdate,
        ttls: CacheTtls,
    ) -> Option<bool> {
        /// Longer than a request's budget, because no caller waits for it.
        const TIMEOUT: Duration = Duration::from_secs(5);
        let (at, now) = (unix(update.at), unix_now());
        let expiry = (at + ttls.ttl + ttls.stale).saturating_sub(now);
        let value = value(&Entry { verified: true, identity: update.identity, cached_at: at });
        let Some(value) = value.filter(|_| expiry > 0) else { return Some(true) };
        let mut command = redis::cmd("EVAL");
        command.arg(PREWARM).arg(1).arg(key(update.id)).arg(at).arg(now).arg(expiry).arg(value);
        let generation = self.generation();
        match tokio::time::timeout(TIMEOUT, self.connection.query::<()>(reconnect_wait, &command)).await {
            Ok(Ok(())) => Some(true),
            Ok(Err(Some(_))) => Some(false),
            Ok(Err(None)) => None,
            Err(_) => {
                self.mark_timed_out(generation);
                None
            }
        }
    }

    /// Claims a key. Returns `Some(false)` if another owner holds it.
    pub(super) async fn claim(&self, reconnect_wait: Duration, key: &str, owner: &str, seconds: u64) -> Option<bool> {
        self.query(reconnect_wait, redis::cmd("EVAL").arg(CLAIM).arg(1).arg(key).arg(owner).arg(seconds)).await
    }

    pub(super) async fn release(&self, reconnect_wait: Duration, key: &str, owner: &str) -> Option<()> {
        self.query(reconnect_wait, redis::cmd("EVAL").arg(RELEASE).arg(1).arg(key).arg(owner)).await
    }

    pub(super) async fn keep(&self, reconnect_wait: Duration, key: &str, owner: &str, seconds: u64) -> Option<()> {
        self.query(reconnect_wait, redis::cmd("EVAL").arg(KEEP).arg(1).arg(key).arg(owner).arg(seconds)).await
    }

    pub(super) async fn cool_down(&self, reconnect_wait: Duration, seconds: u64) -> Option<()> {
        self.query(reconnect_wait, redis::cmd("EVAL").arg(COOL_DOWN).arg(1).arg(COOLDOWN_KEY).arg(seconds)).await
    }

    pub(super) async fn mark_record_read(&self, reconnect_wait: Duration, seconds: u64) -> Option<()> {
        self.query(reconnect_wait, redis::cmd("SET").arg(RECORD_READ_KEY).arg(1).arg("EX").arg(seconds)).await
    }

    pub(super) async fn was_record_read(&self, reconnect_wait: Duration) -> Option<bool> {
        self.query(reconnect_wait, redis::cmd("EXISTS").arg(RECORD_READ_KEY)).await
    }

    /// Counts a call to Novi, or returns how long to wait before making one.
    pub(super) async fn may_call_novi(&self, reconnect_wait: Duration) -> Option<Result<(), Duration>> {
        let mut command = redis::cmd("EVAL");
        command.arg(COUNT_CALL).arg(2).arg(COOLDOWN_KEY).arg(CALLS_KEY);
        // The random number keeps calls apart that are made within one microsecond.
        command.arg(self.novi_max_per_minute).arg(fastrand::u32(..));
        let wait: u64 = self.query(reconnect_wait, &command).await?;
        Some(if wait == 0 { Ok(()) } else { Err(Duration::from_millis(wait)) })
    }

    async fn query<T: FromRedisValue>(&self, reconnect_wait: Duration, command: &Cmd) -> Option<T> {
        self.connection.query(reconnect_wait, command).await.ok()
    }
}

/// Returns the key of a list's lock.
#[must_use]
pub fn lock_key(list_id: &str) -> String {
    format!("idaa:mirror:{list_id}")
}

/// Returns the value of an entry, or `None` if it is too large.
fn value(entry: &Entry) -> Option<Vec<u8>> {
    serde_json::to_vec(entry).ok().filter(|value| value.len() <= MAX_VALUE)
}

fn key(id: MemberId) -> String {
    format!("idaa:novi_member:{}", id.to_text())
}
