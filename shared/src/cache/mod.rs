//! The cache of verified members, and what instances must agree on: the
//! cooldown after Novi's 429, the calls of the last minute, and which list a
//! mirror is at work on.
//!
//! With a Redis they are shared by all instances; without one each instance
//! keeps them for itself, with the same times. Only verified records are ever
//! kept. A Redis that is down, slow, full or holds rubbish costs a request at
//! most `CACHE_TIMEOUT_MS` in all, and is never an error.

mod connection;
mod connector;
mod elasticache;
mod entry;
mod error;
mod link;
mod local;
mod redis;

use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::time::Instant;

pub use self::connector::{Connector, Password};
#[cfg(fuzzing)]
pub(crate) use self::entry::worth;
use self::entry::{Entry, unix_now};
pub use self::entry::{Lookup, MemberUpdate};
use self::local::Local;
use self::redis::Remote;
use crate::member::{Identity, MemberId};
use crate::settings::CacheTtls;
use crate::telemetry::Phase;

/// How long a request waits for a Redis that has failed and may be back, once.
const GRACE: Duration = Duration::from_millis(50);

/// The longest cooldown, whatever Novi asks for, in seconds.
const COOLDOWN_LIMIT: u64 = 300;

/// Whether something could be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is ours until it is released or expires.
    Ours,
    /// Somebody else has it.
    Taken,
    /// There is no Redis that could say.
    Unknown,
}

/// How well the cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheHealth {
    /// The Redis answers.
    Ok,
    /// There is no Redis.
    InProcess,
    /// The Redis does not answer.
    Down,
}

/// The cache.
pub struct MemberCache {
    times: CacheTtls,
    local: Local,
    remote: Option<Remote>,
    timeout: Duration,
}

impl MemberCache {
    /// A cache with nothing in it. `novi_max_per_minute` is what verification
    /// may ask of Novi. With a `connector` it lives in the Redis that this
    /// leads to; a request waits on that for at most `timeout`.
    #[must_use]
    pub fn new(times: CacheTtls, novi_max_per_minute: usize, connector: Option<Connector>, timeout: Duration) -> Self {
        let local = Local::new(novi_max_per_minute);
        Self { times, local, remote: connector.map(|connector| Remote::new(connector, novi_max_per_minute)), timeout }
    }

    /// A cache for a mirror: nobody waits for it, and it does not ask for the
    /// allowance of calls.
    #[must_use]
    pub fn for_mirror(times: CacheTtls, connector: Connector) -> Self {
        Self::new(times, 0, Some(connector), Duration::from_secs(1))
    }

    /// Connects to the Redis, where there is one, for at most `limit`. What
    /// does not come about in that time goes on behind the first requests.
    pub async fn warm(&self, limit: Duration) {
        if let Some(remote) = &self.remote {
            let _phase = Phase::start("Redis");
            let _ = tokio::time::timeout(limit, remote.warm()).await;
        }
    }

    /// What one request does with the cache.
    #[must_use]
    pub fn session(&self) -> Session<'_> {
        Session { cache: self, left: self.timeout, grace: GRACE, bypassed: false }
    }

    /// Takes over what Novi has said, for the other instances to know: a Redis
    /// alone is given it. An entry that is newer is left as it is; those of
    /// people whom Novi does not know are deleted. Takes at most `limit`, and
    /// ends where the Redis stops answering. Says how many entries it has seen to.
    pub async fn prewarm(&self, facts: Vec<MemberUpdate>, limit: Duration) -> usize {
        /// Commands under way at once: enough to keep the wire busy.
        const SIDE_BY_SIDE: usize = 64;
        let Some(remote) = &self.remote else { return 0 };
        let (gone, known): (Vec<MemberUpdate>, Vec<MemberUpdate>) =
            facts.into_iter().partition(|fact| fact.identity.is_none());
        // Who is gone comes first: nobody should be verified who is no member, and a Redis that is full can still delete.
        let done = stream::iter(gone.into_iter().chain(known))
            .map(|fact| remote.prewarm(GRACE, fact, self.times))
            .buffer_unordered(SIDE_BY_SIDE)
            .take_while(|done| std::future::ready(done.is_some()))
            .filter(|done| std::future::ready(*done == Some(true)))
            .take_until(tokio::time::sleep(limit));
        done.count().await
    }

    /// How well it is.
    pub async fn health(&self) -> CacheHealth {
        match &self.remote {
            None => CacheHealth::InProcess,
            Some(remote) => {
                let mut session = self.session();
                match session.within(remote, remote.look(GRACE)).await {
                    Some(()) => CacheHealth::Ok,
                    None => CacheHealth::Down,
                }
            }
        }
    }
}

/// One request's use of the cache, within one bound for all of its waits.
pub struct Session<'c> {
    cache: &'c MemberCache,
    left: Duration,
    /// Spent with the first failure: a request waits but once for a Redis that is gone.
    grace: Duration,
    bypassed: bool,
}

impl Session<'_> {
    /// Whether the Redis could not be asked for the member.
    #[must_use]
    pub fn was_bypassed(&self) -> bool {
        self.bypassed
    }

    /// Looks a member up.
    pub async fn get(&mut self, id: MemberId) -> Lookup {
        let Some(remote) = &self.cache.remote else {
            return self.cache.local.get(id, self.cache.times);
        };
        match self.within(remote, remote.get(self.grace, id)).await {
            None => {
                self.bypassed = true;
                Lookup::Miss
            }
            Some(None) => Lookup::Miss,
            Some(Some(entry)) => entry.lookup(self.cache.times, unix_now()),
        }
    }

    /// Keeps a verified member.
    pub async fn put(&mut self, id: MemberId, identity: Identity) {
        let entry = Entry { verified: true, identity, cached_at: unix_now() };
        match &self.cache.remote {
            None => self.cache.local.put(id, entry),
            Some(remote) => {
                let expiry = self.cache.times.ttl + self.cache.times.stale;
                self.within(remote, remote.put(self.grace, id, &entry, expiry)).await;
            }
        }
    }

    /// Forgets a member whom Novi no longer knows.
    pub async fn forget(&mut self, id: MemberId) {
        match &self.cache.remote {
            None => self.cache.local.forget(id),
            Some(remote) => {
                self.within(remote, remote.forget(self.grace, id)).await;
            }
        }
    }

    /// Claims `name` for `owner`, for at most `seconds`. Claiming it again renews the claim.
    pub async fn claim(&mut self, name: &str, owner: &str, seconds: u64) -> Claim {
        let Some(remote) = &self.cache.remote else {
            return Claim::Unknown;
        };
        match self.within(remote, remote.claim(self.grace, name, owner, seconds)).await {
            None => Claim::Unknown,
            Some(true) => Claim::Ours,
            Some(false) => Claim::Taken,
        }
    }

    /// Gives up a claim, where it is still `owner`'s.
    pub async fn release(&mut self, name: &str, owner: &str) {
        if let Some(remote) = &self.cache.remote {
            self.within(remote, remote.release(self.grace, name, owner)).await;
        }
    }

    /// Starts a cooldown: for `seconds`, at most 300, nobody asks Novi.
    pub async fn cool_down(&mut self, seconds: u64) {
        let seconds = seconds.min(COOLDOWN_LIMIT);
        self.cache.local.cool_down(Duration::from_secs(seconds));
        if let Some(remote) = self.cache.remote.as_ref().filter(|_| seconds > 0) {
            self.within(remote, remote.cool_down(self.grace, seconds)).await;
        }
    }

    /// Whether Novi may be asked now, which counts as a call that is made.
    ///
    /// # Errors
    /// How long to wait: a cooldown is on, or the minute's allowance is used up.
    pub async fn may_ask_novi(&mut self) -> Result<(), Duration> {
        // This instance's own memory holds where the Redis cannot be asked.
        self.cache.local.wait()?;
        if let Some(remote) = &self.cache.remote {
            self.within(remote, remote.may_ask_novi(self.grace)).await.unwrap_or(Ok(()))?;
        }
        self.cache.local.count_call();
        Ok(())
    }

    /// What comes of `work` within the time that is left; `None` where the
    /// Redis cannot be asked.
    async fn within<T>(&mut self, remote: &Remote, work: impl Future<Output = Option<T>>) -> Option<T> {
        if self.left.is_zero() {
            return None;
        }
        let (started, number) = (Instant::now(), remote.number());
        let done = tokio::time::timeout(self.left, work).await;
        let waited = started.elapsed();
        self.left = self.left.saturating_sub(waited);
        let done = done.unwrap_or_else(|_| {
            // Little was left to wait: that proves nothing against the connection.
            if waited >= GRACE.min(self.cache.timeout / 2) {
                remote.gave_no_answer(number);
            }
            None
        });
        if done.is_none() {
            self.grace = Duration::ZERO;
        }
        done
    }
}
