//! The cache of verified members, and what instances must agree on about Novi:
//! the cooldown after a 429 and the calls of the last minute.
//!
//! Without a Redis all of it lives in this process, with the same times. Only
//! verified records are ever kept.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::member::{Identity, MemberId};
use crate::pace::SlidingWindow;
use crate::settings::CacheTimes;

/// What a cache knows of a member.
pub enum Lookup {
    /// Verified, and within the TTL.
    Fresh(Identity),
    /// Verified, past the TTL, and still good where Novi cannot answer.
    Stale(Identity),
    /// Nothing that counts.
    Miss,
}

/// A verified member, and when Novi was asked.
#[derive(Clone)]
struct Entry {
    identity: Identity,
    /// Unix seconds, which every instance reads alike.
    cached_at: u64,
}

/// The cache of one process.
pub struct MemberCache {
    times: CacheTimes,
    entries: quick_cache::sync::Cache<MemberId, Entry>,
    cooldown: Mutex<Option<Instant>>,
    calls: Mutex<SlidingWindow>,
}

impl MemberCache {
    /// Members kept at most: some 200 bytes each.
    const CAPACITY: usize = 20_000;
    /// The longest cooldown, whatever Novi asks for.
    const COOLDOWN_LIMIT: Duration = Duration::from_secs(300);

    /// An empty cache. `novi_max_per_minute` is what verification may ask of Novi.
    #[must_use]
    pub fn in_process(times: CacheTimes, novi_max_per_minute: usize) -> Self {
        Self {
            times,
            entries: quick_cache::sync::Cache::new(Self::CAPACITY),
            cooldown: Mutex::new(None),
            calls: Mutex::new(SlidingWindow::new(novi_max_per_minute, Duration::from_secs(60))),
        }
    }

    /// Looks a member up.
    #[must_use]
    pub fn get(&self, id: MemberId) -> Lookup {
        self.get_at(id, unix_now())
    }

    fn get_at(&self, id: MemberId, now: u64) -> Lookup {
        let Some(entry) = self.entries.get(&id) else {
            return Lookup::Miss;
        };
        // An entry from the future tells that a clock is wrong, and nothing else.
        match now.checked_sub(entry.cached_at) {
            Some(age) if age < self.times.ttl => Lookup::Fresh(entry.identity),
            Some(age) if age < self.times.ttl + self.times.stale => Lookup::Stale(entry.identity),
            _ => {
                self.entries.remove(&id);
                Lookup::Miss
            }
        }
    }

    /// Keeps a verified member.
    pub fn put(&self, id: MemberId, identity: Identity) {
        self.entries.insert(id, Entry { identity, cached_at: unix_now() });
    }

    /// Forgets a member whom Novi no longer knows.
    pub fn forget(&self, id: MemberId) {
        self.entries.remove(&id);
    }

    /// Starts a cooldown: for `seconds`, at most 300, nobody asks Novi.
    pub fn cool_down(&self, seconds: u64) {
        let length = Duration::from_secs(seconds).min(Self::COOLDOWN_LIMIT);
        *lock(&self.cooldown) = Some(Instant::now() + length);
    }

    /// How much of a cooldown is left.
    #[must_use]
    pub fn cooldown_left(&self) -> Option<Duration> {
        let until = (*lock(&self.cooldown))?;
        let left = until.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// Counts a call to Novi against the minute's allowance.
    ///
    /// # Errors
    /// Where it is used up: how long until a call may be made.
    pub fn count_call(&self) -> Result<(), Duration> {
        let now = Instant::now();
        let mut calls = lock(&self.calls);
        let wait = calls.wait(now);
        if wait.is_zero() {
            calls.take(now);
            Ok(())
        } else {
            Err(wait)
        }
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What these locks guard is whole after every statement: a panic elsewhere
/// while one was held spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ada() -> (MemberId, Identity) {
        let id = MemberId::parse("39120341-3c8e-47b0-9a40-45b5659b2044").unwrap();
        (id, Identity { full_name: Some("Ada L.".to_owned()), email: None })
    }

    #[test]
    fn an_entry_is_fresh_then_stale_then_gone() {
        let cache = MemberCache::in_process(CacheTimes { ttl: 100, stale: 50 }, 1);
        let (id, identity) = ada();
        assert!(matches!(cache.get(id), Lookup::Miss));
        cache.put(id, identity);
        let now = unix_now();
        assert!(matches!(cache.get_at(id, now + 98), Lookup::Fresh(_)));
        assert!(matches!(cache.get_at(id, now + 101), Lookup::Stale(_)));
        assert!(matches!(cache.get_at(id, now + 151), Lookup::Miss));
    }

    #[test]
    fn an_entry_from_the_future_does_not_count() {
        let cache = MemberCache::in_process(CacheTimes { ttl: 100, stale: 0 }, 1);
        let (id, identity) = ada();
        cache.put(id, identity);
        assert!(matches!(cache.get_at(id, unix_now() - 5), Lookup::Miss));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cooldown_ends_after_300_seconds_whatever_was_asked() {
        let cache = MemberCache::in_process(CacheTimes { ttl: 1, stale: 0 }, 1);
        assert!(cache.cooldown_left().is_none());
        cache.cool_down(0);
        assert!(cache.cooldown_left().is_none());
        cache.cool_down(7_200);
        assert_eq!(cache.cooldown_left(), Some(Duration::from_secs(300)));
        tokio::time::advance(Duration::from_secs(300)).await;
        assert!(cache.cooldown_left().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_minute_s_allowance_runs_out_and_comes_back() {
        let cache = MemberCache::in_process(CacheTimes { ttl: 1, stale: 0 }, 2);
        assert!(cache.count_call().is_ok());
        tokio::time::advance(Duration::from_secs(20)).await;
        assert!(cache.count_call().is_ok());
        assert_eq!(cache.count_call(), Err(Duration::from_secs(40)));
        tokio::time::advance(Duration::from_secs(40)).await;
        assert!(cache.count_call().is_ok());
        assert!(cache.count_call().is_err());
    }
}
