//! What one instance keeps for itself.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::entry::{Entry, Lookup, unix_now};
use crate::member::MemberId;
use crate::rate_limit::SlidingWindow;
use crate::settings::CacheTtls;
use crate::sync::lock;

/// Members kept at most: some 200 bytes each.
const CAPACITY: usize = 20_000;

/// The memory of one process.
pub(super) struct Local {
    entries: quick_cache::sync::Cache<MemberId, Entry>,
    cooldown: Mutex<Option<Instant>>,
    calls: Mutex<SlidingWindow>,
}

impl Local {
    pub(super) fn new(novi_max_per_minute: usize) -> Self {
        Self {
            entries: quick_cache::sync::Cache::new(CAPACITY),
            cooldown: Mutex::new(None),
            calls: Mutex::new(SlidingWindow::new(novi_max_per_minute, Duration::from_secs(60))),
        }
    }

    pub(super) fn get(&self, id: MemberId, times: CacheTtls) -> Lookup {
        let Some(entry) = self.entries.get(&id) else {
            return Lookup::Miss;
        };
        let lookup = entry.lookup(times, unix_now());
        if matches!(lookup, Lookup::Miss) {
            self.entries.remove(&id);
        }
        lookup
    }

    pub(super) fn put(&self, id: MemberId, entry: Entry) {
        self.entries.insert(id, entry);
    }

    pub(super) fn forget(&self, id: MemberId) {
        self.entries.remove(&id);
    }

    pub(super) fn cool_down(&self, length: Duration) {
        let until = Instant::now() + length;
        let mut cooldown = lock(&self.cooldown);
        // A shorter one does not end a longer one.
        *cooldown = (*cooldown).max(Some(until));
    }

    /// Says how long to wait before a call to Novi, where one may not be made now.
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
    async fn a_cooldown_ends() {
        let local = Local::new(10);
        local.cool_down(Duration::ZERO);
        assert!(local.wait().is_ok());
        local.cool_down(Duration::from_secs(30));
        local.cool_down(Duration::from_secs(5));
        assert_eq!(local.wait(), Err(Duration::from_secs(30)));
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(local.wait().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_minute_s_allowance_runs_out_and_comes_back() {
        let local = Local::new(2);
        local.count_call();
        tokio::time::advance(Duration::from_secs(20)).await;
        assert!(local.wait().is_ok());
        local.count_call();
        assert_eq!(local.wait(), Err(Duration::from_secs(40)));
        tokio::time::advance(Duration::from_secs(40)).await;
        assert!(local.wait().is_ok());
        local.count_call();
        assert!(local.wait().is_err());
    }
}
