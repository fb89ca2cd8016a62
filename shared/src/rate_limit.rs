//! A limit on calls in any sliding window.
//!
//! A token bucket lets a full burst and a refill through in one window, twice
//! what was meant; this keeps the times of the last calls and is exact.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// At most `limit` calls in any `window`, however it is laid.
pub struct SlidingWindow {
    limit: usize,
    window: Duration,
    taken: VecDeque<Instant>,
}

impl SlidingWindow {
    /// A window with nothing in it. A `limit` of 0 lets nothing through.
    #[must_use]
    pub fn new(limit: usize, window: Duration) -> Self {
        Self { limit, window, taken: VecDeque::new() }
    }

    /// How long to wait until a call may be made: zero where it may be made now.
    pub fn wait(&mut self, now: Instant) -> Duration {
        while self.taken.front().is_some_and(|at| now.duration_since(*at) >= self.window) {
            self.taken.pop_front();
        }
        if self.taken.len() < self.limit {
            return Duration::ZERO;
        }
        self.taken.front().map_or(self.window, |oldest| (*oldest + self.window).duration_since(now))
    }

    /// Counts one call.
    pub fn take(&mut self, now: Instant) {
        self.taken.push_back(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However the callers come, no window of the given length holds more than the limit.
        #[test]
        fn no_window_holds_more_than_its_limit(
            limit in 1_usize..8,
            gaps in proptest::collection::vec(0_u64..400, 1..120),
        ) {
            let window = Duration::from_millis(1_000);
            let start = Instant::now();
            let mut pace = SlidingWindow::new(limit, window);
            let mut now = start;
            let mut calls = Vec::new();
            for gap in gaps {
                now += Duration::from_millis(gap);
                now += pace.wait(now);
                prop_assert_eq!(pace.wait(now), Duration::ZERO);
                pace.take(now);
                calls.push(now);
            }
            for first in &calls {
                let within = calls.iter().filter(|c| *c >= first && c.duration_since(*first) < window).count();
                prop_assert!(within <= limit, "{within} calls in one window of {limit}");
            }
        }
    }

    #[test]
    fn the_wait_is_until_the_oldest_leaves() {
        let start = Instant::now();
        let mut pace = SlidingWindow::new(2, Duration::from_secs(60));
        pace.take(start);
        pace.take(start + Duration::from_secs(10));
        assert_eq!(pace.wait(start + Duration::from_secs(30)), Duration::from_secs(30));
        assert_eq!(pace.wait(start + Duration::from_secs(60)), Duration::ZERO);
    }
}
