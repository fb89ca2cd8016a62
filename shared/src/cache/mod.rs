//! State shared between instances through Redis: verified members, the cooldown after a 429 from Novi, the per-minute
//! call count, and per-list locks.
//!
//! Without Redis, each instance keeps the same state in memory with the same expiry times, except for locks. Only
//! verified records are ever stored. Redis problems (down, slow, full, corrupt data) never fail a request and delay it
//! by at most `CACHE_TIMEOUT_MS` in total.

mod connection;
mod connector;
mod elasticache;
mod entry;
mod error;
mod link;
mod local;
mod redis;
mod rejections;

use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::time::Instant;

pub use self::connector::{Connector, Password};
#[cfg(fuzzing)]
pub(crate) use self::entry::classify;
use self::entry::{Entry, unix_now};
pub use self::entry::{Lookup, MemberUpdate};
use self::local::LocalCache;
use self::redis::RedisCache;
pub use self::redis::lock_key;
use crate::member::{Identity, MemberId};
use crate::settings::CacheTtls;
use crate::telemetry::Phase;

/// How long a request waits, once, for the reconnection to a Redis that has failed.
const RECONNECT_WAIT: Duration = Duration::from_millis(50);

/// The maximum cooldown in seconds, whatever Novi asks for.
const MAX_COOLDOWN: u64 = 300;

/// The result of claiming a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The lock is ours until it is released or expires.
    Ours,
    /// Another owner holds the lock.
    Taken,
    /// Redis isn't configured or didn't respond.
    Unknown,
}

/// The health of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheHealth {
    /// Redis can be read and written.
    Ok,
    /// Redis isn't configured.
    InProcess,
    /// Redis doesn't respond, or can't be read or written.
    Down,
}

/// The cache of verified members, with the cooldown, the call count and the locks that instances share.
pub struct MemberCache {
    ttls: CacheTtls,
    local: LocalCache,
    redis: Option<RedisCache>,
    timeout: Duration,
}

impl MemberCache {
    /// Returns an empty cache. `novi_max_per_minute` is verification's limit of calls to Novi.
    ///
    /// With a `connector`, the cache lives in the Redis that it connects to, and each request waits on Redis for at most
    /// `timeout`.
    #[must_use]
    pub fn new(ttls: CacheTtls, novi_max_per_minute: usize, connector: Option<Connector>, timeout: Duration) -> Self {
        let local = LocalCache::new(novi_max_per_minute);
        let redis = connector.map(|connector| RedisCache::new(connector, novi_max_per_minute));
        Self { ttls, local, redis, timeout }
    }

    /// Returns a cache for the mirror. No caller waits for its responses, so its timeout is 1 s, and it never uses the
    /// call count.
    #[must_use]
    pub fn for_mirror(ttls: CacheTtls, connector: Connector) -> Self {
        Self::new(ttls, 0, Some(connector), Duration::from_secs(1))
    }

    /// Connects to Redis, if configured, and waits at most `limit`. After that, connecting continues in the background
    /// of the first requests.
    pub async fn warm(&self, limit: Duration) {
        if let Some(redis) = &self.redis {
            let _phase = Phase::start("Redis");
            let _ = tokio::time::timeout(limit, redis.warm()).await;
        }
    }

    /// Returns a session for one request.
    #[must_use]
    pub fn session(&self) -> Session<'_> {
        Session { cache: self, time_left: self.timeout, reconnect_wait: RECONNECT_WAIT, bypassed: false }
    }

    /// Returns a session with the rest of another one's time.
    #[must_use]
    pub fn resume(&self, SessionBudget { time_left, reconnect_wait }: SessionBudget) -> Session<'_> {
        Session { cache: self, time_left, reconnect_wait, bypassed: false }
    }

    /// Writes records from Novi to Redis, so that other instances find them. Does nothing without Redis.
    ///
    /// Newer entries are left alone, and nothing is deleted. Takes at most `limit`, and ends early if Redis stops
    /// responding. Returns the number of updates that Redis has processed.
    pub async fn prewarm(&self, updates: Vec<MemberUpdate>, limit: Duration) -> usize {
        /// Commands in flight: enough to keep the connection busy.
        const CONCURRENCY: usize = 64;
        let Some(redis) = &self.redis else { return 0 };
        let processed = stream::iter(updates)
            .map(|update| redis.prewarm(RECONNECT_WAIT, update, self.ttls))
            .buffer_unordered(CONCURRENCY)
            .take_while(|outcome| std::future::ready(outcome.is_some()))
            .filter(|outcome| std::future::ready(*outcome == Some(true)))
            .take_until(tokio::time::sleep(limit));
        processed.count().await
    }

    /// Checks cache health by reading and writing a small key.
    ///
    /// The result isn't kept, because an operator who has repaired Redis wants to see that. A check takes less of Redis
    /// than verifying a member who isn't cached.
    pub async fn health(&self) -> CacheHealth {
        match &self.redis {
            None => CacheHealth::InProcess,
            Some(redis) => {
                let mut session = self.session();
                match session.with_budget(redis, redis.check(RECONNECT_WAIT)).await {
                    Some(()) => CacheHealth::Ok,
                    None => CacheHealth::Down,
                }
            }
        }
    }
}

/// One request's use of the cache. All of its waits share one time budget.
pub struct Session<'c> {
    cache: &'c MemberCache,
    time_left: Duration,
    /// Zero after the first failure, so that a request waits only once for a Redis that is gone.
    reconnect_wait: Duration,
    bypassed: bool,
}

/// The rest of a session's time, for work that continues elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct SessionBudget {
    time_left: Duration,
    reconnect_wait: Duration,
}

impl Session<'_> {
    /// Shortens the rest of the session's time to at most `limit`.
    pub fn limit(&mut self, limit: Duration) {
        self.time_left = self.time_left.min(limit);
    }

    /// Returns the rest of the session's time, for [`MemberCache::resume`].
    #[must_use]
    pub fn budget(&self) -> SessionBudget {
        SessionBudget { time_left: self.time_left, reconnect_wait: self.reconnect_wait }
    }
}

/// Verified members.
impl Session<'_> {
    /// Returns true if Redis didn't respond to a lookup.
    #[must_use]
    pub fn was_bypassed(&self) -> bool {
        self.bypassed
    }

    /// Looks up a member.
    pub async fn get(&mut self, id: MemberId) -> Lookup {
        let Some(redis) = &self.cache.redis else {
            return self.cache.local.get(id, self.cache.ttls);
        };
        match self.with_budget(redis, redis.get(self.reconnect_wait, id)).await {
            None => {
                self.bypassed = true;
                Lookup::Miss
            }
            Some(None) => Lookup::Miss,
            Some(Some(entry)) => entry.lookup(self.cache.ttls, unix_now()),
        }
    }

    /// Stores a verified member.
    pub async fn put(&mut self, id: MemberId, identity: Identity) {
        let entry = Entry { verified: true, identity, cached_at: unix_now() };
        match &self.cache.redis {
            None => self.cache.local.put(id, entry),
            Some(redis) => {
                let expiry = self.cache.ttls.ttl + self.cache.ttls.stale;
                self.with_budget(redis, redis.put(self.reconnect_wait, id, &entry, expiry)).await;
            }
        }
    }

    /// Deletes the entry of a member that Novi no longer knows.
    pub async fn forget(&mut self, id: MemberId) {
        match &self.cache.redis {
            None => self.cache.local.forget(id),
            Some(redis) => {
                self.with_budget(redis, redis.forget(self.reconnect_wait, id)).await;
            }
        }
    }
}

/// Locks.
impl Session<'_> {
    /// Claims the lock `name` for `owner` and at most `seconds`. Claiming it again renews it.
    pub async fn claim(&mut self, name: &str, owner: &str, seconds: u64) -> Claim {
        let Some(redis) = &self.cache.redis else {
            return Claim::Unknown;
        };
        match self.with_budget(redis, redis.claim(self.reconnect_wait, name, owner, seconds)).await {
            None => Claim::Unknown,
            Some(true) => Claim::Ours,
            Some(false) => Claim::Taken,
        }
    }

    /// Releases a lock if `owner` still holds it. Returns true if Redis responded.
    pub async fn release(&mut self, name: &str, owner: &str) -> bool {
        let Some(redis) = &self.cache.redis else { return false };
        self.with_budget(redis, redis.release(self.reconnect_wait, name, owner)).await.is_some()
    }

    /// Keeps a lock for `seconds`, during which no run can claim it, if `owner` still holds it or it has expired. Returns
    /// true if Redis responded.
    pub async fn keep(&mut self, name: &str, owner: &str, seconds: u64) -> bool {
        let Some(redis) = &self.cache.redis else { return false };
        self.with_budget(redis, redis.keep(self.reconnect_wait, name, owner, seconds)).await.is_some()
    }
}

/// How long a record that Novi returned proves that records can be read.
const RECORD_READ_PERIOD: Duration = Duration::from_secs(600);
/// How long an instance doesn't tell the others again that it has read a record.
const RECORD_READ_INTERVAL: Duration = Duration::from_secs(60);

/// Proof that Novi returns records, without which its 404 may come from a wrong root or a lost permission.
impl Session<'_> {
    /// Notes that Novi returned a record, for this instance, and for the others if Redis responds.
    pub async fn mark_record_read(&mut self) {
        self.cache.local.mark_record_read();
        let Some(redis) = self.cache.redis.as_ref().filter(|_| self.cache.local.may_announce(RECORD_READ_INTERVAL))
        else {
            return;
        };
        let seconds = RECORD_READ_PERIOD.as_secs();
        if self.with_budget(redis, redis.mark_record_read(self.reconnect_wait, seconds)).await.is_some() {
            self.cache.local.mark_announced();
        }
    }

    /// True if an instance has noted within the last ten minutes that Novi returned a record.
    pub async fn was_record_read(&mut self) -> bool {
        if self.cache.local.was_record_read(RECORD_READ_PERIOD) {
            return true;
        }
        let Some(redis) = &self.cache.redis else { return false };
        self.with_budget(redis, redis.was_record_read(self.reconnect_wait)).await.unwrap_or(false)
    }
}

/// Limits of calls to Novi.
impl Session<'_> {
    /// Starts a cooldown of `seconds`, at most 300, during which no instance calls Novi.
    pub async fn cool_down(&mut self, seconds: u64) {
        let seconds = seconds.min(MAX_COOLDOWN);
        self.cache.local.cool_down(Duration::from_secs(seconds));
        if let Some(redis) = self.cache.redis.as_ref().filter(|_| seconds > 0) {
            self.with_budget(redis, redis.cool_down(self.reconnect_wait, seconds)).await;
        }
    }

    /// Counts a call to Novi if one may be made now.
    ///
    /// # Errors
    /// Returns how long to wait if a cooldown is on or the minute's limit is reached.
    pub async fn may_call_novi(&mut self) -> Result<(), Duration> {
        // The instance's own limits also apply when Redis doesn't respond.
        self.cache.local.wait()?;
        if let Some(redis) = &self.cache.redis {
            self.with_budget(redis, redis.may_call_novi(self.reconnect_wait)).await.unwrap_or(Ok(()))?;
        }
        self.cache.local.count_call();
        Ok(())
    }
}

impl Session<'_> {
    /// Runs `work` within the time that is left. Returns `None` if Redis didn't respond.
    async fn with_budget<T>(&mut self, redis: &RedisCache, work: impl Future<Output = Option<T>>) -> Option<T> {
        if self.time_left.is_zero() {
            return None;
        }
        let (started, generation) = (Instant::now(), redis.generation());
        let outcome = tokio::time::timeout(self.time_left, work).await;
        let waited = started.elapsed();
        self.time_left = self.time_left.saturating_sub(waited);
        let outcome = outcome.unwrap_or_else(|_| {
            // A very short wait says nothing about the connection.
            if waited >= RECONNECT_WAIT.min(self.cache.timeout / 2) {
                redis.mark_timed_out(generation);
            }
            None
        });
        if outcome.is_none() {
            self.reconnect_wait = Duration::ZERO;
        }
        outcome
    }
}
