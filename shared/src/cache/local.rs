//! State kept in the memory of one instance.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::entry::{Entry, Lookup, unix_now};
use crate::member::MemberId;
use crate::rate_limit::SlidingWindow;
use crate::settings::CacheTtls;
use crate::sync::lock;

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
    calls: Mutex<SlidingWindow>,
}

impl LocalCache {
    pub(super) fn new(novi_max_per_minute: usize) -> Self {
        Self {
            entries: quick_cache::sync::Cache::new(CAPACITY),
            cooldown: Mutex::new(None),
            record_read: Mutex::new(None),
            announced: Mutex::new(None),
            calls: Mutex::new(SlidingWindow::new(novi_max_per_minute, Duration::from_secs(60))),
        }
    }

    pub(super) fn get(&self, id: MemberId, ttls: CacheTtls) -> Lookup {
        let Some(entry) = self.entries.get(&id) else {
            return Lookup::Miss;
        };
        let lookup = entry.lookup(ttls, unix_now());
        if matches!(lookup, Lookup::Miss) {
            self.entries.remove(&id);
        }
        lookup
    }

    pub(super) fn put(&self, id: MemberId, entry: Entry) {
        if entry.text_bytes() <= MAX_TEXT_BYTES {
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

    /// Returns how long to wait before a call to Novi as an error if no call may be made now.
    pub(super) fn wait(&self) -> Result<(), Duration> {
        let now = Instant::now();
        let cooldown = lock(&self.cooldown).map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        let wait = cooldown.max(lock(&self.calls).wait(now));
        if wait.is_zero() { Ok(()) } else { Err(wait) }
    }

    /// Counts a call to Novi.
    pub(super) fn count_call(&self) {
        lock(&self.calls).take(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_cooldown_ends_when_its_time_is_over() {
        let cache = LocalCache::new(10);
        cache.cool_down(Duration::ZERO);
        assert!(cache.wait().is_ok());
        cache.cool_down(Duration::from_secs(30));
        cache.cool_down(Duration::from_secs(5));
        assert_eq!(cache.wait(), Err(Duration::from_secs(30)));
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(cache.wait().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_call_limit_recovers_as_the_minute_slides() {
        let cache = LocalCache::new(2);
        cache.count_call();
        tokio::time::advance(Duration::from_secs(20)).await;
        assert!(cache.wait().is_ok());
        cache.count_call();
        assert_eq!(cache.wait(), Err(Duration::from_secs(40)));
        tokio::time::advance(Duration::from_secs(40)).await;
        assert!(cache.wait().is_ok());
        cache.count_call();
        assert!(cache.wait().is_err());
    }
}
