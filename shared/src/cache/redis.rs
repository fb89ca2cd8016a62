//! The commands and scripts sent to the Redis (or Valkey) that all instances share.
//!
//! Every command returns `None` if Redis didn't respond or rejected it. A `reconnect_wait` is how long a command may
//! wait for a new connection after the last one failed.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, FromRedisValue};

use super::budget::{
    ADMIT, BREAKER_FAILURES, BREAKER_OPEN, BREAKER_PROBE, COUNT_FAILURE, COUNT_UNKNOWN, FAILURE_PERIOD, KNOWN_SECONDS,
    NoviLimits, Place, REMEMBER, Refusal, TRICKLE,
};
use super::connector::Connector;
use super::entry::{Entry, MemberUpdate};
use super::link::ReconnectingConnection;
use crate::member::MemberId;
use crate::novi::RootDigest;
use crate::settings::CacheTtls;
use crate::time::unix_now;

/// The maximum size of an entry in bytes. Another program's value may be half a gigabyte.
const MAX_VALUE: usize = 16 << 10;

/// The names of the keys that concern a Novi as a whole.
#[derive(Clone, Copy)]
enum SharedKey {
    /// Exists during a cooldown.
    Cooldown,
    /// Exists while Novi is known to have returned a record lately.
    RecordRead,
    /// Written to check that it can be.
    Health,
    /// The next place in the budget.
    Next,
    /// The mirror's next place in the budget.
    MirrorNext,
    /// The times of the latest calls by verification.
    Calls,
    /// The times of the latest calls by the mirror.
    MirrorCalls,
    /// The calls, and the responses without a record, by hour.
    Day,
    /// The times of the latest responses without a record.
    Unknown,
    /// The times of the latest calls about UUIDs that were never verified, while there are too many.
    Trickle,
    /// Hashes of the UUIDs that were verified.
    Known,
    /// The number of consecutive calls without a response.
    Failures,
    /// Exists while the circuit breaker is open.
    Breaker,
    /// Exists for a second after a call while the breaker is open.
    BreakerProbe,
}

impl SharedKey {
    /// Returns the key. All keys of one Novi are in the same cluster slot, so that one script can use several.
    fn of(self, novi: &RootDigest) -> String {
        let name = match self {
            Self::Cooldown => "novi_cooldown",
            Self::RecordRead => "novi_record_read",
            Self::Health => "health",
            Self::Next => "novi_next",
            Self::MirrorNext => "novi_next_mirror",
            Self::Calls => "novi_calls",
            Self::MirrorCalls => "novi_calls_mirror",
            Self::Day => "novi_day",
            Self::Unknown => "novi_unknown",
            Self::Trickle => "novi_trickle",
            Self::Known => "novi_known",
            Self::Failures => "novi_failures",
            Self::Breaker => "novi_breaker",
            Self::BreakerProbe => "novi_breaker_probe",
        };
        format!("idaa:{name}:{{{}}}", novi.as_str())
    }
}

/// Writes a key of constant size that expires.
const CHECK: &str = r"return redis.call('SET', KEYS[1], 1, 'EX', 60)";

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

/// Writes an entry, unless a newer entry exists. An entry of another Novi or from the future, and a value that isn't an
/// entry, don't count as newer.
const PUT: &str = r"
local at, now = tonumber(ARGV[1]), tonumber(ARGV[2])
local current = redis.pcall('GET', KEYS[1])
if type(current) == 'string' then
  local is_json, entry = pcall(cjson.decode, current)
  local cached_at = is_json and type(entry) == 'table' and tonumber(entry.cached_at)
  if cached_at and cached_at > at and cached_at <= now and entry.novi == ARGV[5] then return 0 end
end
redis.call('SET', KEYS[1], ARGV[4], 'EX', ARGV[3])
return 1";

/// The cache in Redis.
pub(super) struct RedisCache {
    connection: Arc<ReconnectingConnection>,
    limits: NoviLimits,
}

impl RedisCache {
    pub(super) fn new(connector: Connector, limits: NoviLimits) -> Self {
        Self { connection: ReconnectingConnection::new(connector), limits }
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
    pub(super) async fn check(&self, reconnect_wait: Duration, novi: &RootDigest) -> Option<()> {
        let key = SharedKey::Health.of(novi);
        let (mut read, mut write) = (redis::cmd("GETRANGE"), redis::cmd("EVAL"));
        let read = self.query::<()>(reconnect_wait, read.arg(&key).arg(0).arg(MAX_VALUE));
        let write = self.query::<()>(reconnect_wait, write.arg(CHECK).arg(1).arg(&key));
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

    /// Writes an entry, unless a newer one exists, or it is too large to be read or has expired.
    pub(super) async fn put(
        &self,
        reconnect_wait: Duration,
        id: MemberId,
        entry: &Entry,
        ttls: CacheTtls,
    ) -> Option<()> {
        let Some(command) = put_command(id, entry, ttls) else { return Some(()) };
        match self.connection.query::<()>(reconnect_wait, &command).await {
            Ok(()) => Some(()),
            // Members are also cached by a Redis that doesn't know scripts.
            Err(Some(error)) if error.code() == Some("ERR") => {
                let mut set = redis::cmd("SET");
                set.arg(key(id)).arg(value(entry)?).arg("EX").arg(ttls.ttl + ttls.stale);
                self.query(reconnect_wait, &set).await
            }
            Err(_) => None,
        }
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
        novi: &RootDigest,
        ttls: CacheTtls,
    ) -> Option<bool> {
        /// Longer than a request's budget, because no caller waits for it.
        const TIMEOUT: Duration = Duration::from_secs(5);
        let entry = Entry::new(update.identity, update.at, novi);
        let Some(command) = put_command(update.id, &entry, ttls) else { return Some(true) };
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

    pub(super) async fn cool_down(&self, reconnect_wait: Duration, novi: &RootDigest, seconds: u64) -> Option<()> {
        let key = SharedKey::Cooldown.of(novi);
        self.query(reconnect_wait, redis::cmd("EVAL").arg(COOL_DOWN).arg(1).arg(key).arg(seconds)).await
    }

    pub(super) async fn mark_record_read(
        &self,
        reconnect_wait: Duration,
        novi: &RootDigest,
        seconds: u64,
    ) -> Option<()> {
        let key = SharedKey::RecordRead.of(novi);
        self.query(reconnect_wait, redis::cmd("SET").arg(key).arg(1).arg("EX").arg(seconds)).await
    }

    pub(super) async fn was_record_read(&self, reconnect_wait: Duration, novi: &RootDigest) -> Option<bool> {
        self.query(reconnect_wait, redis::cmd("EXISTS").arg(SharedKey::RecordRead.of(novi))).await
    }

    /// Takes a place in the budget, or says why there is none. `stranger` is the hash of a UUID that isn't trusted.
    pub(super) async fn admit(
        &self,
        reconnect_wait: Duration,
        novi: &RootDigest,
        stranger: Option<&str>,
        max_wait: Duration,
    ) -> Option<Result<Place, Refusal>> {
        const KEYS: [SharedKey; 12] = [
            SharedKey::Cooldown,
            SharedKey::Breaker,
            SharedKey::BreakerProbe,
            SharedKey::Next,
            SharedKey::Calls,
            SharedKey::MirrorCalls,
            SharedKey::Day,
            SharedKey::Unknown,
            SharedKey::Known,
            SharedKey::Trickle,
            SharedKey::MirrorNext,
            SharedKey::Failures,
        ];
        let NoviLimits { share, unknown, yields, .. } = self.limits;
        let available = self.limits.available();
        let mut command = script(ADMIT, &KEYS, novi);
        command.arg(u8::from(yields)).arg(available.second).arg(available.minute).arg(available.day);
        command.arg(share.second).arg(share.minute).arg(share.day).arg(unknown.0).arg(unknown.1);
        // The random number keeps calls apart that are made within one microsecond.
        command.arg(milliseconds(max_wait)).arg(stranger.unwrap_or_default()).arg(fastrand::u32(..));
        command.arg(TRICKLE).arg(milliseconds(BREAKER_PROBE));
        let (code, wait, calls_today, failures): (u8, u64, u64, u64) = self.query(reconnect_wait, &command).await?;
        let wait = Duration::from_millis(wait);
        Some(match code {
            0 => Ok(Place { wait, calls_today, has_failures: failures > 0 }),
            1 => Err(Refusal::Cooldown(wait)),
            3 => Err(Refusal::Breaker(wait)),
            4 => Err(Refusal::Stranger(wait)),
            5 => Err(Refusal::Later(wait)),
            _ => Err(Refusal::Budget(wait)),
        })
    }

    /// Counts a response without a record.
    pub(super) async fn count_unknown(&self, reconnect_wait: Duration, novi: &RootDigest) -> Option<()> {
        let mut command = script(COUNT_UNKNOWN, &[SharedKey::Unknown, SharedKey::Day], novi);
        self.query(reconnect_wait, command.arg(fastrand::u32(..))).await
    }

    /// Counts a call without a response.
    pub(super) async fn count_failure(&self, reconnect_wait: Duration, novi: &RootDigest) -> Option<()> {
        let mut command = script(COUNT_FAILURE, &[SharedKey::Failures, SharedKey::Breaker], novi);
        command.arg(BREAKER_FAILURES).arg(milliseconds(FAILURE_PERIOD)).arg(milliseconds(BREAKER_OPEN));
        self.query(reconnect_wait, &command).await
    }

    /// Notes a response after failures, which closes the breaker.
    pub(super) async fn count_response(&self, reconnect_wait: Duration, novi: &RootDigest) -> Option<()> {
        let mut command = redis::cmd("DEL");
        for key in [SharedKey::Failures, SharedKey::Breaker, SharedKey::BreakerProbe] {
            command.arg(key.of(novi));
        }
        self.query(reconnect_wait, &command).await
    }

    /// Remembers the hashes of verified UUIDs.
    pub(super) async fn remember(&self, reconnect_wait: Duration, novi: &RootDigest, hashes: &[String]) -> Option<()> {
        let mut command = script(REMEMBER, &[SharedKey::Known], novi);
        self.query(reconnect_wait, command.arg(KNOWN_SECONDS).arg(hashes)).await
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

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the command that runs a script on keys of this Novi, without the script's arguments.
fn script(script: &str, keys: &[SharedKey], novi: &RootDigest) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(script).arg(keys.len());
    for key in keys {
        command.arg(key.of(novi));
    }
    command
}

/// Returns the command that writes an entry, or `None` if it is too large to be read or has expired.
fn put_command(id: MemberId, entry: &Entry, ttls: CacheTtls) -> Option<Cmd> {
    let (at, now) = (entry.cached_at, unix_now());
    let expiry = (at + ttls.ttl + ttls.stale).checked_sub(now).filter(|expiry| *expiry > 0)?;
    let mut command = redis::cmd("EVAL");
    command.arg(PUT).arg(1).arg(key(id)).arg(at).arg(now).arg(expiry).arg(value(entry)?).arg(entry.novi.as_deref());
    Some(command)
}

/// Returns the value of an entry, or `None` if it is too large.
fn value(entry: &Entry) -> Option<Vec<u8>> {
    serde_json::to_vec(entry).ok().filter(|value| value.len() <= MAX_VALUE)
}

fn key(id: MemberId) -> String {
    format!("idaa:novi_member:{}", id.to_text())
}
