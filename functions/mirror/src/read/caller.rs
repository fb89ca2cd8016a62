//! A call to Novi, with rate limit, retries and circuit breaker.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use backon::{BackoffBuilder, ExponentialBuilder};
use shared::novi::{self, Access, DEFAULT_RETRY_AFTER, Failure, InvalidResponse, NoviError};
use shared::parameters::ParameterStore;
use shared::sync::lock;
use tokio::time::Instant;

use crate::parameters::{ActiveParameters, Parameters};
use crate::read::ending::ReadingEnd;
use crate::read::rate_limit::{CallLimits, Wait};

/// The delay before the first retry. Each further delay is twice as long.
const INITIAL_BACKOFF: Duration = Duration::from_millis(500);
/// The maximum duration of one call, including retries and their delays, but not the waits for the rate limit.
const CALL_BUDGET: Duration = Duration::from_secs(60);
/// The maximum number of times that one call waits after a 429.
const MAX_RATE_LIMIT_WAITS: usize = 10;
/// The number of consecutive failures after which Novi is no longer called (circuit breaker).
const MAX_CONSECUTIVE_FAILURES: usize = 20;

/// Novi's reaction to the API key and to this function's IP address.
#[derive(Clone, Copy)]
enum AccessState {
    Unknown,
    /// At least one call was served.
    Granted,
    /// Every call was rejected, for this reason.
    Denied(NoviError),
}

/// The reason why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// No further call can be made in this run.
    #[error("{0}")]
    Ended(ReadingEnd),
    /// The error of the last attempt.
    #[error("{0}")]
    Novi(NoviError),
}

/// Makes the calls to Novi of one run.
pub(crate) struct Caller<'r> {
    client: &'r novi::Client,
    parameters: ActiveParameters<'r>,
    limits: CallLimits<'r>,
    /// The number of calls of both functions in the last 24 hours, if it is known.
    calls_today: AtomicU64,
    /// True if time ran out because the shared budget had no room.
    is_exhausted: AtomicBool,
    /// No call starts after this time.
    cutoff: Instant,
    calls: AtomicU64,
    /// The number of calls to which Novi responded with 429.
    rate_limited: AtomicU64,
    /// The number of calls to which Novi responded with the record of another person.
    mismatches: AtomicU64,
    consecutive_failures: AtomicUsize,
    access: Mutex<AccessState>,
    /// No call of this run starts before this time, because of Novi's `Retry-After`.
    paused_until: Mutex<Instant>,
    /// The same time, if a call was skipped because it is later than the cutoff.
    skipped_until: OnceLock<SystemTime>,
}

impl<'r> Caller<'r> {
    pub(crate) fn new(
        client: &'r novi::Client,
        parameters: &'r ParameterStore<Parameters>,
        current: Arc<Parameters>,
        limits: CallLimits<'r>,
        cutoff: Instant,
    ) -> Self {
        Self {
            client,
            parameters: ActiveParameters::new(parameters, current),
            limits,
            calls_today: AtomicU64::new(0),
            is_exhausted: AtomicBool::new(false),
            cutoff,
            calls: AtomicU64::new(0),
            rate_limited: AtomicU64::new(0),
            mismatches: AtomicU64::new(0),
            consecutive_failures: AtomicUsize::new(0),
            access: Mutex::new(AccessState::Unknown),
            paused_until: Mutex::new(Instant::now()),
            skipped_until: OnceLock::new(),
        }
    }

    /// Returns the reason if Novi rejected every call: the key was revoked, or Novi's CDN blocks the IP address. Only
    /// an operator can fix this.
    pub(crate) fn access_denied(&self) -> Option<NoviError> {
        match *lock(&self.access) {
            AccessState::Denied(error) => Some(error),
            AccessState::Unknown | AccessState::Granted => None,
        }
    }

    /// Returns the time after which no call starts.
    pub(crate) fn cutoff(&self) -> Instant {
        self.cutoff
    }

    /// Returns the number of calls so far, including retries.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Returns the number of calls to which Novi responded with 429. At least 1 if calls were skipped because of an
    /// earlier run's 429.
    pub(crate) fn rate_limited(&self) -> u64 {
        self.rate_limited.load(Ordering::Relaxed).max(u64::from(self.skipped_until.get().is_some()))
    }

    /// Returns the number of calls of both functions in the last 24 hours, if the shared budget counts them.
    pub(crate) fn calls_today(&self) -> Option<u64> {
        Some(self.calls_today.load(Ordering::Relaxed)).filter(|calls| *calls > 0)
    }

    /// True if time ran out because the shared budget had no room.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.is_exhausted.load(Ordering::Relaxed)
    }

    /// Returns the number of calls to which Novi responded with the record of another person.
    pub(crate) fn mismatches(&self) -> u64 {
        self.mismatches.load(Ordering::Relaxed)
    }

    /// Makes one call. Waits for the rate limit and after a 429, retries after failures, and refreshes the parameters
    /// if Novi rejects the key.
    ///
    /// `request` receives the access to Novi and the time by which the call must end.
    pub(crate) async fn call<T, E: Into<Failure>>(
        &self,
        max_attempts: usize,
        request: impl AsyncFn(&Access, Instant) -> Result<T, E>,
    ) -> Result<T, CallError> {
        let mut delays = ExponentialBuilder::default()
            // Half a second, or less if the timeout is below eight seconds.
            .with_min_delay((self.client.timeout() / 16).min(INITIAL_BACKOFF))
            .with_jitter()
            .with_max_times(max_attempts - 1)
            .build();
        let (mut elapsed, mut waits, mut refreshed_parameters) = (Duration::ZERO, 0, false);
        loop {
            if self.consecutive_failures.load(Ordering::Relaxed) >= MAX_CONSECUTIVE_FAILURES {
                return Err(CallError::Ended(ReadingEnd::NoResponse));
            }
            self.acquire().await?;
            self.calls.fetch_add(1, Ordering::Relaxed);
            let parameters = self.parameters.current();
            let started = Instant::now();
            let deadline = self.client.deadline().min(self.cutoff);
            let Failure { error, retry_after } = match request(&parameters.novi, deadline).await {
                Ok(response) => {
                    self.consecutive_failures.store(0, Ordering::Relaxed);
                    *lock(&self.access) = AccessState::Granted;
                    return Ok(response);
                }
                Err(error) => error.into(),
            };
            elapsed += started.elapsed();
            if let NoviError::RateLimited(seconds) = error {
                self.rate_limited.fetch_add(1, Ordering::Relaxed);
                self.pause_calls(seconds.map_or(DEFAULT_RETRY_AFTER, Duration::from_secs));
            }
            if Instant::now() >= self.cutoff {
                return Err(CallError::Ended(ReadingEnd::OutOfTime));
            }
            match error {
                NoviError::RateLimited(_) if waits < MAX_RATE_LIMIT_WAITS => {
                    waits += 1;
                    continue;
                }
                NoviError::CredentialsRejected | NoviError::Blocked if !refreshed_parameters => {
                    refreshed_parameters = true;
                    let is_same_root = |other: &Parameters, used: &Parameters| other.novi.is_same_root(&used.novi);
                    if self.parameters.after_refusal(&parameters, is_same_root).await.is_some() {
                        continue;
                    }
                }
                NoviError::Unreachable(_) | NoviError::Status(500..) if elapsed < CALL_BUDGET => {
                    // No attempt starts before Novi's Retry-After is over.
                    let retry_after = Duration::from_secs(retry_after.unwrap_or_default());
                    if let Some(delay) = delays.next().filter(|_| elapsed + retry_after < CALL_BUDGET) {
                        let delay = delay.max(retry_after);
                        if Instant::now() + delay >= self.cutoff {
                            return Err(CallError::Ended(ReadingEnd::OutOfTime));
                        }
                        elapsed += delay;
                        tokio::time::sleep(delay).await;
                        continue;
                    }
                }
                _ => {}
            }
            if error == NoviError::InvalidResponse(InvalidResponse::OtherMember) {
                self.mismatches.fetch_add(1, Ordering::Relaxed);
            }
            // A rejection of this one resource, or an invalid response, isn't an outage.
            if matches!(error, NoviError::Unreachable(_) | NoviError::Status(500..) | NoviError::RateLimited(_)) {
                self.consecutive_failures.fetch_add(1, Ordering::Relaxed);
            }
            let mut access = lock(&self.access);
            *access = match (*access, error) {
                (AccessState::Granted, _) => AccessState::Granted,
                (_, NoviError::CredentialsRejected | NoviError::Blocked) => AccessState::Denied(error),
                (_, NoviError::InvalidResponse(_)) => AccessState::Granted,
                (before, _) => before,
            };
            drop(access);
            tracing::debug!(?error, "Novi call failed");
            return Err(CallError::Novi(error));
        }
    }

    /// Waits until the rate limit allows a call.
    async fn acquire(&self) -> Result<(), CallError> {
        loop {
            let now = Instant::now();
            if now >= self.cutoff {
                return Err(CallError::Ended(ReadingEnd::OutOfTime));
            }
            let pause = lock(&self.paused_until).saturating_duration_since(now);
            let wait = if pause.is_zero() {
                let parameters = self.parameters.current();
                match self.limits.try_acquire(parameters.novi.digest()).await {
                    Ok(calls_today) => {
                        self.calls_today.fetch_max(calls_today.unwrap_or_default(), Ordering::Relaxed);
                        return Ok(());
                    }
                    Err(wait) => wait,
                }
            } else {
                Wait::pause(pause)
            };
            if now + wait.duration < self.cutoff {
                tokio::time::sleep(wait.duration).await;
            } else if wait.is_pause {
                let until = self.skipped_until.get_or_init(|| SystemTime::now() + wait.duration);
                return Err(CallError::Ended(ReadingEnd::Paused(*until)));
            } else if wait.is_exhausted {
                self.is_exhausted.store(true, Ordering::Relaxed);
                return Err(CallError::Ended(ReadingEnd::NoRoom));
            } else {
                return Err(CallError::Ended(ReadingEnd::OutOfTime));
            }
        }
    }

    /// Pauses all calls of this run, and those of the next run for as long as the rate limiter allows.
    fn pause_calls(&self, duration: Duration) {
        tracing::info!(seconds = duration.as_secs(), "rate limited by Novi; pausing all calls");
        let now = Instant::now();
        let mut paused_until = lock(&self.paused_until);
        *paused_until = (*paused_until).max(now + duration);
        self.limits.pause(duration);
    }
}
