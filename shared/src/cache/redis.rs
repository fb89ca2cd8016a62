//! A Redis (or Valkey) that all instances share.
//!
//! The connection is kept in a state of its own, because what a request may
//! wait is bounded and what a reconnection takes is not: it is made in the
//! background, and requests go past a Redis that has failed without waiting
//! for it. The first request after it is back uses it again.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, FromRedisValue, RedisError};

use super::connection::Connection;
use super::connector::Connector;
use super::entry::{Entry, MemberUpdate, unix, unix_now};
use super::error::{cause, is_elsewhere, is_fatal};
use super::link::Link;
use crate::member::MemberId;
use crate::settings::CacheTtls;

/// The longest value that can be an entry. A foreign value may be half a gigabyte.
const VALUE_LIMIT: isize = 16 << 10;
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

/// The Redis.
pub(super) struct Remote {
    link: Arc<Link>,
    novi_max_per_minute: usize,
}

impl Remote {
    pub(super) fn new(connector: Connector, novi_max_per_minute: usize) -> Self {
        Self { link: Link::new(connector), novi_max_per_minute }
    }

    /// Connects.
    pub(super) async fn warm(&self) {
        Link::connection(&self.link, Duration::ZERO).await;
    }

    /// Tells connections apart.
    pub(super) fn number(&self) -> u64 {
        self.link.number()
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

fn key(id: MemberId) -> String {
    format!("idaa:novi_member:{}", id.to_text())
}
