//! The rate limit of calls to Novi.

use std::sync::Mutex;
use std::time::Duration;

use shared::cache::{MemberCache, Refusal};
use shared::novi::RootDigest;
use shared::rate_limit::{Rates, SlidingWindow};
use shared::sync::lock;
use tokio::time::Instant;

/// The longest pause that later runs of the instance respect. Novi's `Retry-After` may be an hour.
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// The wait until the next call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    pub(crate) duration: Duration,
    /// True if Novi asked for it.
    pub(crate) is_pause: bool,
    /// True if the shared budget has no room.
    pub(crate) is_exhausted: bool,
}

impl Wait {
    /// Returns a wait that Novi asked for.
    pub(crate) fn pause(duration: Duration) -> Self {
        Self { duration, is_pause: true, is_exhausted: false }
    }
}

/// The limits of a run's calls.
#[derive(Clone, Copy)]
pub(crate) struct CallLimits<'r> {
    /// The instance's own limits, which apply without a Redis.
    pub(crate) own: &'r Mutex<NoviRateLimiter>,
    /// The budget that both functions share in Redis.
    pub(crate) shared: Option<&'r MemberCache>,
}

impl CallLimits<'_> {
    /// Counts a call to this Novi if one may start now. Returns the number of calls of both functions in the last 24
    /// hours, if it is known.
    ///
    /// # Errors
    /// Returns how long to wait if no call may start now.
    pub(crate) async fn try_acquire(self, novi: &RootDigest) -> Result<Option<u64>, Wait> {
        let now = Instant::now();
        let Some(cache) = self.shared else {
            return lock(self.own).try_acquire(now).map(|()| None);
        };
        let pause = lock(self.own).pause_left(now);
        if !pause.is_zero() {
            return Err(Wait::pause(pause));
        }
        cache.session(novi).admit(None, Duration::ZERO).await.map(|place| Some(place.calls_today)).map_err(|refusal| {
            Wait {
                duration: refusal.wait().max(Duration::from_millis(1)),
                is_pause: matches!(refusal, Refusal::Cooldown(_)),
                is_exhausted: matches!(refusal, Refusal::Budget(_)),
            }
        })
    }

    /// Pauses all calls of the instance for `duration`, those of later runs included.
    pub(crate) fn pause(self, duration: Duration) {
        lock(self.own).pause(Instant::now(), duration);
    }
}

/// Limits calls to Novi per second and per minute. The state outlives a run, because an instance may start the next run
/// within the same minute.
///
/// Calls are spaced evenly within a second. A burst that is sent in one second may arrive in the next one, in which
/// Novi counts it.
pub(crate) struct NoviRateLimiter {
    spacing: Duration,
    /// The earliest time of the next call.
    next_call: Instant,
    minute: SlidingWindow,
    /// No call starts before this time, because of Novi's `Retry-After`.
    paused_until: Instant,
}

impl NoviRateLimiter {
    pub(crate) fn new(rates: Rates) -> Self {
        Self {
            // Rounded up, so that three thirds of a second are never less than a second.
            spacing: Duration::from_nanos(1_000_000_000_u64.div_ceil(rates.second.max(1) as u64)),
            next_call: Instant::now(),
            minute: SlidingWindow::new(rates.minute, Duration::from_secs(60)),
            paused_until: Instant::now(),
        }
    }

    /// Counts a call if one may start now.
    ///
    /// # Errors
    /// Returns how long to wait if no call may start now.
    fn try_acquire(&mut self, now: Instant) -> Result<(), Wait> {
        let pause = self.pause_left(now);
        let limit = self.next_call.saturating_duration_since(now).max(self.minute.wait(now));
        let duration = pause.max(limit);
        if !duration.is_zero() {
            return Err(Wait { duration, is_pause: pause > limit, is_exhausted: false });
        }
        self.next_call = now + self.spacing;
        self.minute.take(now);
        Ok(())
    }

    /// Returns the rest of a pause.
    fn pause_left(&self, now: Instant) -> Duration {
        self.paused_until.saturating_duration_since(now)
    }

    /// Pauses all calls, those of later runs included, for `duration`, but at most [`MAX_PAUSE`].
    fn pause(&mut self, now: Instant, duration: Duration) {
        self.paused_until = self.paused_until.max(now + duration.min(MAX_PAUSE));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rates(second: usize, minute: usize) -> Rates {
        Rates { second, minute, day: 1_000_000 }
    }

    proptest! {
        /// No second and no minute contains more calls than its limit, for any arrivals and pauses.
        #[test]
        fn per_second_and_per_minute_limits_are_enforced(
            per_second in 1_usize..30,
            per_minute in 1_usize..60,
            gaps in proptest::collection::vec((0_u64..2_000, 0_u64..40), 1..150),
        ) {
            let start = Instant::now();
            let mut limiter = NoviRateLimiter::new(rates(per_second, per_minute));
            let (mut now, mut calls) = (start, Vec::new());
            for (gap, pause) in gaps {
                now += Duration::from_millis(gap);
                if pause > 38 {
                    limiter.pause(now, Duration::from_secs(pause));
                }
                while let Err(wait) = limiter.try_acquire(now) {
                    now += wait.duration;
                }
                prop_assert!(now >= limiter.paused_until);
                calls.push(now);
            }
            for (window, limit) in [(Duration::from_secs(1), per_second), (Duration::from_secs(60), per_minute)] {
                for first in &calls {
                    let within = calls.iter().filter(|call| *call >= first && call.duration_since(*first) < window);
                    let within = within.count();
                    prop_assert!(within <= limit, "{within} calls in {window:?}, limit {limit}");
                }
            }
        }
    }

    #[test]
    fn wait_covers_both_windows_and_a_pause() {
        let mut limiter = NoviRateLimiter::new(rates(2, 3));
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let wait =
            |millis, is_pause| Err(Wait { duration: Duration::from_millis(millis), is_pause, is_exhausted: false });
        assert!(limiter.try_acquire(start).is_ok());
        assert_eq!(limiter.try_acquire(start), wait(500, false));
        assert!(limiter.try_acquire(at(500)).is_ok());
        assert!(limiter.try_acquire(at(1_000)).is_ok());
        assert_eq!(limiter.try_acquire(at(1_500)), wait(58_500, false));
        limiter.pause(start, Duration::from_secs(90));
        assert_eq!(limiter.try_acquire(at(61_000)), wait(29_000, true));
    }

    #[test]
    fn no_pause_is_longer_than_five_minutes() {
        let mut limiter = NoviRateLimiter::new(rates(10, 400));
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        limiter.pause(start, Duration::from_secs(3_600));
        // A shorter pause doesn't end a longer one.
        limiter.pause(start, Duration::from_secs(1));
        let wait = Wait::pause(Duration::from_secs(1));
        assert_eq!(limiter.try_acquire(after(299)), Err(wait));
        assert!(limiter.try_acquire(after(300)).is_ok());
    }
}
