//! State kept in the memory of one instance.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::budget::{LocalBudget, NoviLimits, Place, Refusal};
use super::entry::{Entry, Lookup};
use crate::member::MemberId;
use crate::novi::RootDigest;
use crate::settings::CacheTtls;
use crate::sync::lock;
use crate::time::unix_now;

/// The maximum number of cached members. Each takes about 200 bytes.
const CAPACITY: usize = 20_000;

/// The maximum size of an entry's text, as in Redis. A larger one isn't a person's.
const MAX_TEXT_BYTES: usize = 16 << 10;

/// The cache of one process.
pub(super) struct LocalCache {
    entries: quick_cache::sync::Cache<MemberId, Entry>,
    cooldown: Mutex<Option<Instant>>,
    /// When Novi was last known to return a record.
    record_read: Mutex<Option<Instant>>,
    /// When the other instances were last told so.
    announced: Mutex<Option<Instant>>,
    budget: Mutex<LocalBudget>,
    /// Hashes of the UUIDs that were verified.
    known: quick_cache::sync::Cache<String, ()>,
}

impl LocalCache {
    pub(super) fn new(limits: NoviLimits) -> Self {
        Self {
            entries: quick_cache::sync::Cache::new(CAPACITY),
            cooldown: Mutex::new(None),
            record_read: Mutex::new(None),
            announced: Mutex::new(None),
            budget: Mutex::new(LocalBudget::new(limits)),
            known: quick_cache::sync::Cache::new(CAPACITY),
        }
    }

    pub(super) fn get(&self, id: MemberId, novi: &RootDigest, ttls: CacheTtls) -> Lookup {
        let Some(entry) = self.entries.get(&id) else {
            return Lookup::Miss;
        };
        let lookup = entry.lookup(novi, ttls, unix_now());
        if matches!(lookup, Lookup::Miss) {
            self.entries.remove(&id);
        }
        lookup
    }

    /// Stores an entry, unless it is too large, or a newer one of the same Novi exists.
    pub(super) fn put(&self, id: MemberId, entry: Entry) {
        let is_newer = |current: &Entry| current.novi == entry.novi && current.cached_at > entry.cached_at;
        if entry.text_bytes() <= MAX_TEXT_BYTES && !self.entries.get(&id).as_ref().is_some_and(is_newer) {
            self.entries.insert(id, entry);
        }
    }

    pub(super) fn forget(&self, id: MemberId) {
        self.entries.remove(&id);
    }

    /// Notes that Novi returned a record just now.
    pub(super) fn mark_record_read(&self) {
        *lock(&self.record_read) = Some(Instant::now());
    }

    /// True if Novi is known to have returned a record within `period`.
    pub(super) fn was_record_read(&self, period: Duration) -> bool {
        lock(&self.record_read).is_some_and(|at| at.elapsed() < period)
    }

    /// Notes that the other instances were told just now that Novi returned a record.
    pub(super) fn mark_announced(&self) {
        *lock(&self.announced) = Some(Instant::now());
    }

    /// True if the other instances weren't told so within `interval`.
    pub(super) fn may_announce(&self, interval: Duration) -> bool {
        lock(&self.announced).is_none_or(|at| at.elapsed() >= interval)
    }

    pub(super) fn cool_down(&self, duration: Duration) {
        let until = Instant::now() + duration;
        let mut cooldown = lock(&self.cooldown);
        // A shorter cooldown doesn't end a longer one.
        *cooldown = (*cooldown).max(Some(until));
    }

    /// Returns the rest of a cooldown as an error.
    pub(super) fn check_cooldown(&self) -> Result<(), Refusal> {
        let now = Instant::now();
        let cooldown = lock(&self.cooldown).map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        if cooldown.is_zero() { Ok(()) } else { Err(Refusal::Cooldown(cooldown)) }
    }

    /// Takes a place in the instance's own budget, or says why there is none.
    pub(super) fn admit(&self, stranger: Option<&str>, max_wait: Duration) -> Result<Place, Refusal> {
        let is_stranger = stranger.is_some_and(|hash| self.known.get(hash).is_none());
        lock(&self.budget).admit(Instant::now(), is_stranger, max_wait)
    }

    pub(super) fn count_unknown(&self) {
        lock(&self.budget).count_unknown(Instant::now());
    }

    pub(super) fn count_failure(&self) {
        lock(&self.budget).count_failure(Instant::now());
    }

    pub(super) fn count_response(&self) {
        lock(&self.budget).count_response();
    }

    pub(super) fn remember(&self, hash: String) {
        self.known.insert(hash, ());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rate_limit::Rates;

    #[tokio::test(start_paused = true)]
    async fn a_cooldown_ends_when_its_time_is_over() {
        let rates = Rates { second: 10, minute: 10, day: 10 };
        let limits = NoviLimits { total: rates, share: rates, unknown: (10, 10), yields: false };
        let cache = LocalCache::new(limits);
        cache.cool_down(Duration::ZERO);
        assert!(cache.check_cooldown().is_ok());
        cache.cool_down(Duration::from_secs(30));
        cache.cool_down(Duration::from_secs(5));
        assert_eq!(cache.check_cooldown(), Err(Refusal::Cooldown(Duration::from_secs(30))));
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(cache.check_cooldown().is_ok());
    }
}
