//! A rate limit on calls in any sliding window.
//!
//! A token bucket allows a full burst and a refill in one window, which is up to
//! twice the limit. This stores the times of the last calls and is exact.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Limits of calls by second, by minute and by day.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// The maximum in any second.
    pub second: usize,
    /// The maximum in any minute.
    pub minute: usize,
    /// The maximum in any 24 hours.
    pub day: usize,
}

/// A limit of `limit` calls in every time interval of length `window`.
pub struct SlidingWindow {
    limit: usize,
    window: Duration,
    calls: VecDeque<Instant>,
}

impl SlidingWindow {
    /// Creates an empty window. A `limit` of 0 allows no calls.
    #[must_use]
    pub fn new(limit: usize, window: Duration) -> Self {
        Self { limit, window, calls: VecDeque::new() }
    }

    /// Returns the time to wait before the next call. It is zero if a call is allowed now.
    pub fn wait(&mut self, now: Instant) -> Duration {
        while self.calls.front().is_some_and(|at| now.duration_since(*at) >= self.window) {
            self.calls.pop_front();
        }
        if self.calls.len() < self.limit {
            return Duration::ZERO;
        }
        self.calls.front().map_or(self.window, |oldest| (*oldest + self.window).duration_since(now))
    }

    /// Records one call.
    pub fn take(&mut self, now: Instant) {
        self.calls.push_back(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// For any pattern of calls, no window of the given length contains more than the limit.
        #[test]
        fn no_window_contains_more_calls_than_the_limit(
            limit in 1_usize..8,
            gaps in proptest::collection::vec(0_u64..400, 1..120),
        ) {
            let window = Duration::from_millis(1_000);
            let start = Instant::now();
            let mut sliding_window = SlidingWindow::new(limit, window);
            let mut now = start;
            let mut calls = Vec::new();
            for gap in gaps {
                now += Duration::from_millis(gap);
                now += sliding_window.wait(now);
                prop_assert_eq!(sliding_window.wait(now), Duration::ZERO);
                sliding_window.take(now);
                calls.push(now);
            }
            for first in &calls {
                let within = calls.iter().filter(|c| *c >= first && c.duration_since(*first) < window).count();
                prop_assert!(within <= limit, "{within} calls in one window of {limit}");
            }
        }
    }

    #[test]
    fn wait_lasts_until_the_oldest_call_expires() {
        let start = Instant::now();
        let mut sliding_window = SlidingWindow::new(2, Duration::from_secs(60));
        sliding_window.take(start);
        sliding_window.take(start + Duration::from_secs(10));
        assert_eq!(sliding_window.wait(start + Duration::from_secs(30)), Duration::from_secs(30));
        assert_eq!(sliding_window.wait(start + Duration::from_secs(60)), Duration::ZERO);
    }
}
