//! State shared between instances through Redis: verified members, the cooldown after a 429 from Novi, the budget of
//! calls, and per-list locks.
//!
//! Without Redis, each instance keeps the same state in memory with the same expiry times, except for locks. Only
//! verified records are ever stored. Redis problems (down, slow, full, corrupt data) never fail a request and delay it
//! by at most `CACHE_TIMEOUT_MS` in total.

mod budget;
mod connection;
mod connector;
mod elasticache;
mod entry;
mod error;
mod link;
mod local;
mod redis;
mod rejections;

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt, stream};
use tokio::time::Instant;

pub use self::budget::{NoviLimits, Place, Refusal};
pub use self::connector::{Connector, Password};
use self::entry::Entry;
#[cfg(fuzzing)]
pub(crate) use self::entry::classify;
pub use self::entry::{Lookup, MemberUpdate};
use self::local::LocalCache;
use self::redis::RedisCache;
pub use self::redis::lock_key;
use crate::member::{Identity, MemberId};
use crate::novi::{Access, RootDigest};
use crate::settings::CacheTtls;
use crate::telemetry::Phase;
use crate::time::unix_now;

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
    /// Returns an empty cache. `limits` are those of calls to Novi.
    ///
    /// With a `connector`, the cache lives in the Redis that it connects to, and each request waits on Redis for at most
    /// `timeout`.
    #[must_use]
    pub fn new(ttls: CacheTtls, limits: NoviLimits, connector: Option<Connector>, timeout: Duration) -> Self {
        let local = LocalCache::new(limits);
        let redis = connector.map(|connector| RedisCache::new(connector, limits));
        Self { ttls, local, redis, timeout }
    }

    /// Returns a cache for the mirror. No caller waits for its responses, so its timeout is 1 s.
    #[must_use]
    pub fn for_mirror(ttls: CacheTtls, limits: NoviLimits, connector: Connector) -> Self {
        Self::new(ttls, limits, Some(connector), Duration::from_secs(1))
    }

    /// Connects to Redis, if configured, and waits at most `limit`. After that, connecting continues in the background
    /// of the first requests.
    pub async fn warm(&self, limit: Duration) {
        if let Some(redis) = &self.redis {
            let _phase = Phase::start("Redis");
            let _ = tokio::time::timeout(limit, redis.warm()).await;
        }
    }

    /// Returns a session for one request, about this Novi's members.
    #[must_use]
    pub fn session(&self, novi: &RootDigest) -> Session<'_> {
        self.resume(
            novi,
            SessionBudget { timeout: self.timeout, time_left: self.timeout, reconnect_wait: RECONNECT_WAIT },
        )
    }

    /// Returns a session with the rest of another one's time.
    #[must_use]
    pub fn resume(&self, novi: &RootDigest, budget: SessionBudget) -> Session<'_> {
        Session { cache: self, novi: novi.clone(), budget, bypassed: false }
    }

    /// Writes records from Novi to Redis, so that other instances find them. Does nothing without Redis.
    ///
    /// Their UUIDs are remembered, too. Newer entries are left alone, and nothing is deleted. Takes at most `limit`, and
    /// ends early if Redis stops responding. Returns the number of updates that Redis has processed.
    pub async fn prewarm(&self, updates: Vec<MemberUpdate>, novi: &Access, limit: Duration) -> usize {
        /// Commands in flight: enough to keep the connection busy.
        const CONCURRENCY: usize = 64;
        /// Hashes in one command.
        const HASHES: usize = 500;
        let Some(redis) = &self.redis else { return 0 };
        let started = Instant::now();
        let hashes: Vec<String> = updates.iter().map(|update| novi.hash(update.id)).collect();
        let processed = stream::iter(updates)
            .map(|update| redis.prewarm(RECONNECT_WAIT, update, novi.digest(), self.ttls))
            .buffer_unordered(CONCURRENCY)
            .take_while(|outcome| std::future::ready(outcome.is_some()))
            .filter(|outcome| std::future::ready(*outcome == Some(true)))
            .take_until(tokio::time::sleep(limit));
        let count = processed.count().await;
        for hashes in hashes.chunks(HASHES).take_while(|_| count > 0) {
            let remember = redis.remember(RECONNECT_WAIT, novi.digest(), hashes);
            let time_left = limit.saturating_sub(started.elapsed());
            if tokio::time::timeout(time_left, remember).await.ok().flatten().is_none() {
                break;
            }
        }
        count
    }

    /// Checks cache health by reading and writing a small key of this Novi.
    ///
    /// The result isn't kept, because an operator who has repaired Redis wants to see that. A check takes less of Redis
    /// than verifying a member who isn't cached.
    pub async fn health(&self, novi: &RootDigest) -> CacheHealth {
        match &self.redis {
            None => CacheHealth::InProcess,
            Some(redis) => {
                let mut session = self.session(novi);
                match session.budget.run(redis, redis.check(RECONNECT_WAIT, novi)).await {
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
    novi: RootDigest,
    budget: SessionBudget,
    bypassed: bool,
}

/// The rest of a session's time.
#[derive(Clone, Copy, Debug)]
pub struct SessionBudget {
    /// The time of a whole session.
    timeout: Duration,
    time_left: Duration,
    /// Zero after the first failure, so that a request waits only once for a Redis that is gone.
    reconnect_wait: Duration,
}

impl Session<'_> {
    /// Shortens the rest of the session's time to at most `limit`.
    pub fn limit(&mut self, limit: Duration) {
        self.budget.time_left = self.budget.time_left.min(limit);
    }

    /// Returns the rest of the session's time, for [`MemberCache::resume`].
    #[must_use]
    pub fn budget(&self) -> SessionBudget {
        self.budget
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
            return self.cache.local.get(id, &self.novi, self.cache.ttls);
        };
        match self.budget.run(redis, redis.get(self.budget.reconnect_wait, id)).await {
            None => {
                self.bypassed = true;
                Lookup::Miss
            }
            Some(None) => Lookup::Miss,
            Some(Some(entry)) => entry.lookup(&self.novi, self.cache.ttls, unix_now()),
        }
    }

    /// Stores a verified member, and remembers the hash of the UUID for 30 days. `asked_at` is when Novi was asked. A newer
    /// entry is left alone.
    pub async fn put(&mut self, id: MemberId, hash: String, identity: Identity, asked_at: SystemTime) {
        let entry = Entry::new(identity, asked_at, &self.novi);
        match &self.cache.redis {
            None => {
                self.cache.local.put(id, entry);
                self.cache.local.remember(hash);
            }
            Some(redis) => {
                let reconnect_wait = self.budget.reconnect_wait;
                // Both on their way at once, because a request waits for them.
                let writes = async {
                    let put = redis.put(reconnect_wait, id, &entry, self.cache.ttls);
                    let remember = redis.remember(reconnect_wait, &self.novi, std::slice::from_ref(&hash));
                    let (put, remembered) = tokio::join!(put, remember);
                    put.and(remembered)
                };
                self.budget.run(redis, writes).await;
            }
        }
    }

    /// Deletes the entry of a member that Novi no longer knows.
    pub async fn forget(&mut self, id: MemberId) {
        match &self.cache.redis {
            None => self.cache.local.forget(id),
            Some(redis) => {
                self.budget.run(redis, redis.forget(self.budget.reconnect_wait, id)).await;
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
        match self.budget.run(redis, redis.claim(self.budget.reconnect_wait, name, owner, seconds)).await {
            None => Claim::Unknown,
            Some(true) => Claim::Ours,
            Some(false) => Claim::Taken,
        }
    }

    /// Releases a lock if `owner` still holds it. Returns true if Redis responded.
    pub async fn release(&mut self, name: &str, owner: &str) -> bool {
        let Some(redis) = &self.cache.redis else { return false };
        self.budget.run(redis, redis.release(self.budget.reconnect_wait, name, owner)).await.is_some()
    }

    /// Keeps a lock for `seconds`, during which no run can claim it, if `owner` still holds it or it has expired. Returns
    /// true if Redis responded.
    pub async fn keep(&mut self, name: &str, owner: &str, seconds: u64) -> bool {
        let Some(redis) = &self.cache.redis else { return false };
        self.budget.run(redis, redis.keep(self.budget.reconnect_wait, name, owner, seconds)).await.is_some()
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
        if self
            .budget
            .run(redis, redis.mark_record_read(self.budget.reconnect_wait, &self.novi, seconds))
            .await
            .is_some()
        {
            self.cache.local.mark_announced();
        }
    }

    /// True if an instance has noted within the last ten minutes that Novi returned a record.
    pub async fn was_record_read(&mut self) -> bool {
        if self.cache.local.was_record_read(RECORD_READ_PERIOD) {
            return true;
        }
        let Some(redis) = &self.cache.redis else { return false };
        self.budget.run(redis, redis.was_record_read(self.budget.reconnect_wait, &self.novi)).await.unwrap_or(false)
    }
}

/// Limits of calls to Novi.
impl Session<'_> {
    /// Starts a cooldown of `seconds`, at most 300, during which no instance calls Novi.
    pub async fn cool_down(&mut self, seconds: u64) {
        let seconds = seconds.min(MAX_COOLDOWN);
        self.cache.local.cool_down(Duration::from_secs(seconds));
        if let Some(redis) = self.cache.redis.as_ref().filter(|_| seconds > 0) {
            self.budget.run(redis, redis.cool_down(self.budget.reconnect_wait, &self.novi, seconds)).await;
        }
    }

    /// Takes a place in the budget for one call to Novi, at most `max_wait` ahead. `stranger` is the hash of a UUID whose
    /// caller isn't trusted.
    ///
    /// # Errors
    /// Says why no call may be made now, and for how long.
    pub async fn admit(&mut self, stranger: Option<&str>, max_wait: Duration) -> Result<Place, Refusal> {
        // The instance's own cooldown also applies when Redis doesn't respond.
        self.cache.local.check_cooldown()?;
        if let Some(redis) = &self.cache.redis {
            let admitted = redis.admit(self.budget.reconnect_wait, &self.novi, stranger, max_wait);
            if let Some(admitted) = self.budget.run(redis, admitted).await {
                return admitted;
            }
        }
        self.cache.local.admit(stranger, max_wait)
    }

    /// Counts a response without a record.
    pub async fn count_unknown(&mut self) {
        self.cache.local.count_unknown();
        if let Some(redis) = &self.cache.redis {
            self.budget.run(redis, redis.count_unknown(self.budget.reconnect_wait, &self.novi)).await;
        }
    }

    /// Counts a call without a response. Several in succession open the circuit breaker.
    pub async fn count_failure(&mut self) {
        self.cache.local.count_failure();
        if let Some(redis) = &self.cache.redis {
            self.budget.run(redis, redis.count_failure(self.budget.reconnect_wait, &self.novi)).await;
        }
    }

    /// Notes a response. After failures it closes the circuit breaker.
    pub async fn count_response(&mut self, has_failures: bool) {
        self.cache.local.count_response();
        if let Some(redis) = self.cache.redis.as_ref().filter(|_| has_failures) {
            self.budget.run(redis, redis.count_response(self.budget.reconnect_wait, &self.novi)).await;
        }
    }
}

impl SessionBudget {
    /// Runs `work` within the time that is left. Returns `None` if Redis didn't respond.
    async fn run<T>(&mut self, redis: &RedisCache, work: impl Future<Output = Option<T>>) -> Option<T> {
        if self.time_left.is_zero() {
            return None;
        }
        let (started, generation) = (Instant::now(), redis.generation());
        let mut work = pin!(work);
        // Setting a timer takes system calls, so the command goes out first.
        let outcome = match poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await {
            Poll::Ready(outcome) => Ok(outcome),
            Poll::Pending => {
                tokio::task::yield_now().await;
                tokio::time::timeout_at(started + self.time_left, work).await
            }
        };
        let waited = started.elapsed();
        self.time_left = self.time_left.saturating_sub(waited);
        let outcome = outcome.unwrap_or_else(|_| {
            // A very short wait says nothing about the connection.
            if waited >= RECONNECT_WAIT.min(self.timeout / 2) {
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
