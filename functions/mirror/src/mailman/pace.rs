//! How fast requests are sent to Mailman: as many at a time as it answers quickly, and as many a second as it, or a
//! proxy in front of it, lets pass. Both grow slowly and shrink at once.

use std::sync::Mutex;
use std::time::Duration;

use shared::sync::lock;
use tokio::time::Instant;

use crate::mailman::error::MailmanError;

/// The maximum number of concurrent subscriptions. With PostgreSQL, four are twice as fast as one, and eight are as
/// fast as four. With SQLite, the number makes no difference.
const MAX_CONCURRENCY: f64 = 4.0;
/// The duration from which on a subscription is slow. Concurrent ones then only make each other slower: with thousands
/// of pending requests, Mailman takes ten seconds for one, and four at a time would time out.
pub(crate) const SLOW: Duration = Duration::from_secs(2);
/// The number of requests a second after the first one that was refused. More than 50 subscriptions a second are beyond
/// Mailman itself.
const FIRST_RATE: f64 = 25.0;
const MIN_RATE: f64 = 1.0;
/// The rate at which the limit is over: a proxy that was restarting, for example.
const MAX_RATE: f64 = 60.0;

/// The pace of one run.
pub(crate) struct Pace(Mutex<State>);

struct State {
    /// The number of concurrent subscriptions.
    concurrency: f64,
    rate: Option<Rate>,
    /// The earliest time of the next request.
    next: Instant,
    /// The duration of the most recent subscription.
    latest: Duration,
    /// The duration of the slowest subscription.
    slowest: Duration,
}

/// A limit of requests a second, once one was refused.
struct Rate {
    per_second: f64,
    /// The rate of the most recent refusal.
    refused_at: f64,
    /// True if a request has passed since then. A proxy that refuses all is down, and tells nothing about a limit.
    has_passed: bool,
}

impl Rate {
    fn grow(&mut self) {
        // Fast up to a rate that was too high, and then slowly, because each refusal costs a pause.
        let near = 0.9 * self.refused_at;
        self.per_second =
            if self.per_second < near { (self.per_second * 1.02).min(near) } else { self.per_second * 1.001 };
        self.has_passed = true;
    }

    fn shrink(&mut self) {
        if !self.has_passed {
            return;
        }
        let is_near = (self.per_second - self.refused_at).abs() < 0.15 * self.refused_at;
        self.refused_at = self.per_second;
        self.per_second = (self.per_second * if is_near { 0.8 } else { 0.5 }).max(MIN_RATE);
        self.has_passed = false;
    }
}

impl Pace {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State {
            concurrency: 1.0,
            rate: None,
            next: Instant::now(),
            latest: Duration::ZERO,
            slowest: Duration::ZERO,
        }))
    }

    /// Waits for this request's turn.
    ///
    /// # Errors
    /// Returns [`MailmanError::OutOfTime`] without waiting if that would be after `cutoff`.
    pub(super) async fn turn(&self, cutoff: Instant) -> Result<(), MailmanError> {
        let turn = {
            let mut state = lock(&self.0);
            let turn = state.next.max(Instant::now());
            if turn >= cutoff {
                return Err(MailmanError::OutOfTime);
            }
            let gap = state.rate.as_ref().map_or(Duration::ZERO, |rate| Duration::from_secs_f64(1.0 / rate.per_second));
            state.next = turn + gap;
            turn
        };
        tokio::time::sleep_until(turn).await;
        Ok(())
    }

    /// Notes that a request was answered.
    pub(super) fn passed(&self) {
        let mut state = lock(&self.0);
        state.rate.as_mut().into_iter().for_each(Rate::grow);
        if state.rate.as_ref().is_some_and(|rate| rate.per_second >= MAX_RATE) {
            state.rate = None;
        }
    }

    /// Notes that a request was refused because there were too many.
    pub(super) fn refused(&self) {
        let first = || Rate { per_second: FIRST_RATE, refused_at: 2.0 * FIRST_RATE, has_passed: false };
        let mut state = lock(&self.0);
        match &mut state.rate {
            Some(rate) => rate.shrink(),
            rate => *rate = Some(first()),
        }
    }

    /// Notes how long a subscription took, or how long it was waited for.
    pub(super) fn note_subscription(&self, duration: Duration) {
        let mut state = lock(&self.0);
        state.latest = duration;
        state.slowest = state.slowest.max(duration);
        state.concurrency = if duration >= SLOW {
            (state.concurrency / 2.0).max(1.0)
        } else {
            (state.concurrency + 1.0 / state.concurrency).min(MAX_CONCURRENCY)
        };
    }

    /// Returns the number of subscriptions to send at a time.
    pub(crate) fn concurrency(&self) -> usize {
        lock(&self.0).concurrency as usize
    }

    /// Returns how long the next subscription may take.
    pub(crate) fn expected_duration(&self) -> Duration {
        2 * lock(&self.0).latest
    }

    /// Returns the duration of the slowest subscription since the last call of this function.
    pub(crate) fn take_slowest(&self) -> Duration {
        std::mem::take(&mut lock(&self.0).slowest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(10_000);

    /// Sends `count` requests to a proxy that lets `per_second` pass. Returns the seconds that takes, and the number of
    /// refusals.
    async fn send(pace: &Pace, count: usize, per_second: f64, pause: Duration) -> (f64, usize) {
        let (started, mut refusals) = (Instant::now(), 0);
        let mut last: Option<Instant> = None;
        for _ in 0..count {
            loop {
                pace.turn(Instant::now() + LONG).await.unwrap();
                if last.is_none_or(|last| last.elapsed().as_secs_f64() >= 1.0 / per_second) {
                    last = Some(Instant::now());
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    pace.passed();
                    break;
                }
                refusals += 1;
                pace.refused();
                tokio::time::sleep(pause).await;
            }
        }
        (started.elapsed().as_secs_f64(), refusals)
    }

    #[tokio::test(start_paused = true)]
    async fn rate_approaches_the_limit_from_below() {
        for (per_second, pause) in [(2.0, 0), (2.0, 1_000), (10.0, 0), (10.0, 300), (10.0, 1_000)] {
            let (seconds, refusals) = send(&Pace::new(), 1_000, per_second, Duration::from_millis(pause)).await;
            let ratio = seconds * per_second / 1_000.0;
            assert!(ratio < 1.25 && refusals < 50, "{per_second} a second: {ratio:.2}, {refusals} refusals");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn outage_is_no_limit_of_the_rate() {
        let pace = Pace::new();
        (0..20).for_each(|_| pace.refused());
        let (seconds, refusals) = send(&pace, 1_000, 1e9, Duration::ZERO).await;
        assert!(seconds < 30.0 && refusals == 0, "{seconds} s");
        assert!(lock(&pace.0).rate.is_none(), "the limit is over");
    }

    #[tokio::test(start_paused = true)]
    async fn slow_subscriptions_run_one_at_a_time() {
        let pace = Pace::new();
        assert_eq!(pace.concurrency(), 1, "the first one tells how long they take");
        (0..10).for_each(|_| pace.note_subscription(Duration::from_millis(20)));
        assert_eq!(pace.concurrency(), 4);
        (0..2).for_each(|_| pace.note_subscription(SLOW));
        assert_eq!(pace.concurrency(), 1);
        assert_eq!((pace.take_slowest(), pace.take_slowest()), (SLOW, Duration::ZERO));
        assert_eq!(pace.expected_duration(), 2 * SLOW);
    }

    #[tokio::test(start_paused = true)]
    async fn no_request_waits_past_the_cutoff() {
        let pace = Pace::new();
        pace.refused();
        let cutoff = Instant::now() + Duration::from_millis(50);
        assert_eq!(pace.turn(cutoff).await, Ok(()));
        assert_eq!(pace.turn(cutoff).await, Ok(()));
        assert_eq!(pace.turn(cutoff).await, Err(MailmanError::OutOfTime));
        assert!(Instant::now() < cutoff);
    }
}
