//! Verification: tells whether a UUID belongs to a member, and returns the member's display name.
//!
//! Looks in the cache first, then calls Novi. If the call fails, a stale record may be used instead. A rate limit or an
//! outage never looks like "not a member".

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use shared::cache::{Lookup, MemberCache, Place, Refusal, Session, SessionBudget};
use shared::http_client::ceil_seconds;
use shared::member::{Identity, MemberId, MemberRules, Verdict};
use shared::metrics::{self, Metric};
use shared::novi::{self, Answered, Customer, DEFAULT_RETRY_AFTER, Failure, InvalidResponse, NoviError};
use shared::parameters::ParameterStore;
use tokio::time::{Instant, timeout_at};

use crate::flights::Flights;
use crate::gate::Trust;
use crate::parameters::Parameters;
use crate::problem::{Code, Problem};

/// The origin of a verified member, as `X-Cache` reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The cache, within its TTL.
    Hit,
    /// Novi.
    Miss,
    /// The cache, after the TTL, because the call to Novi failed.
    Stale,
    /// Novi, because the cache was unavailable.
    Bypass,
}

impl Origin {
    /// Returns the value of `X-Cache`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Stale => "stale",
            Self::Bypass => "bypass",
        }
    }
}

/// The time after which a request isn't kept waiting for Novi any longer, if a stale record is at hand. The response has
/// to be there within two seconds.
const STALE_PATIENCE: Duration = Duration::from_millis(1_500);

/// The time that is left for the response after the cache was written.
const RESPONSE_RESERVE: Duration = Duration::from_millis(50);

/// Returns how long writing to the cache may take, so that a slow cache doesn't cost Novi's response.
fn time_for_cache(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).saturating_sub(RESPONSE_RESERVE)
}

/// What Novi says about a member: the identity, or `None` if there is no such member.
type Outcome = Result<Option<Identity>, Problem>;

/// The longest wait for a place in the budget of calls.
const PLACE_PATIENCE: Duration = Duration::from_secs(4);
/// The time that is left for the call after that wait.
const CALL_RESERVE: Duration = Duration::from_millis(500);

/// Waits for a place in the budget of calls to Novi.
async fn take_place(cache: &mut Session<'_>, stranger: Option<&str>, deadline: Instant) -> Result<Place, Refusal> {
    let time_left = deadline.saturating_duration_since(Instant::now()).saturating_sub(CALL_RESERVE);
    let place = cache.admit(stranger, time_left.min(PLACE_PATIENCE)).await?;
    if !place.wait.is_zero() {
        tokio::time::sleep(place.wait).await;
    }
    Ok(place)
}

/// Returns the problem of a request that may not call Novi. Its `Retry-After` is spread, so that callers don't return
/// together.
fn refused(refusal: Refusal) -> Problem {
    let metric = match refusal {
        Refusal::Cooldown(_) => None,
        Refusal::Budget(_) | Refusal::Later(_) => Some("BudgetExhausted"),
        Refusal::Breaker(_) => Some("BreakerOpen"),
        Refusal::Stranger(_) => Some("StrangersLimited"),
    };
    if let Some(name) = metric {
        metrics::emit(&[Metric::Count(name, 1)]);
    }
    let seconds = ceil_seconds(refusal.wait()).max(1) + fastrand::u64(0..=3);
    match refusal {
        Refusal::Breaker(_) => Problem::with_retry_after(Code::NoviUnreachable, Some(seconds)),
        _ => Problem::rate_limited(seconds),
    }
}

/// Verifies members, with the cache and Novi.
pub(crate) struct Verifier {
    pub(crate) parameters: Arc<ParameterStore<Parameters>>,
    pub(crate) cache: MemberCache,
    pub(crate) novi: novi::Client,
    pub(crate) member_rules: MemberRules,
    /// The lookups in flight, which concurrent requests for the same member share.
    pub(crate) lookups: Arc<Flights<(MemberId, Trust), Outcome>>,
}

impl Verifier {
    /// Verifies one member by `deadline`, with the parameters that opened the gate.
    pub(crate) async fn verify(
        self: &Arc<Self>,
        parameters: Arc<Parameters>,
        trust: Trust,
        id: MemberId,
        deadline: Instant,
    ) -> Result<(Identity, Origin), Problem> {
        let started = Instant::now();
        let mut cache = self.cache.session(parameters.novi.digest());
        cache.limit(deadline.saturating_duration_since(started));
        let stale = match cache.get(id).await {
            Lookup::Fresh(identity) => return Ok((identity, Origin::Hit)),
            Lookup::Stale(identity) => Some(identity),
            Lookup::Miss => None,
        };
        let origin = if cache.was_bypassed() { Origin::Bypass } else { Origin::Miss };
        let budget = cache.budget();
        let lookup =
            self.lookups.join((id, trust), || Arc::clone(self).look_up(budget, parameters, trust, id, deadline));
        // The lookup goes on, for requests that share it and for the cache.
        let patience = if stale.is_some() { deadline.min(started + STALE_PATIENCE) } else { deadline };
        let outcome = match timeout_at(patience, lookup).await {
            Ok(outcome) => outcome.ok_or(Code::InternalError)?,
            Err(_) => Err(Code::NoviUnreachable.into()),
        };
        match outcome {
            Ok(Some(identity)) => Ok((identity, origin)),
            Ok(None) => Err(Code::MemberNotFound.into()),
            Err(problem) => stale.map(|identity| (identity, Origin::Stale)).ok_or(problem),
        }
    }

    /// Queries Novi by `deadline` and updates the cache, for all concurrent requests for this member. The first of them
    /// provides the parameters and the time for the cache.
    async fn look_up(
        self: Arc<Self>,
        budget: SessionBudget,
        parameters: Arc<Parameters>,
        trust: Trust,
        id: MemberId,
        deadline: Instant,
    ) -> Outcome {
        let mut cache = self.cache.resume(parameters.novi.digest(), budget);
        let hash = parameters.novi.hash(id);
        let stranger = Some(hash.as_str()).filter(|_| trust == Trust::Anyone);
        let outcome = self.query_novi(&mut cache, parameters, stranger, id, deadline).await;
        cache.limit(time_for_cache(deadline));
        match &outcome {
            Ok(Some((identity, asked_at))) => cache.put(id, hash, identity.clone(), *asked_at).await,
            // A stale record must not be served again after Novi has reported that the member is gone.
            Ok(None) => cache.forget(id).await,
            Err(_) => {}
        }
        outcome.map(|found| found.map(|(identity, _)| identity))
    }

    /// Queries Novi, unless a cooldown or the rate limit forbids it. Returns the identity and when Novi was asked. A stale
    /// record may replace any error.
    async fn query_novi(
        &self,
        cache: &mut Session<'_>,
        mut parameters: Arc<Parameters>,
        stranger: Option<&str>,
        id: MemberId,
        deadline: Instant,
    ) -> Result<Option<(Identity, SystemTime)>, Problem> {
        let deadline = deadline.min(self.novi.deadline());
        let (verdict, asked_at) = self.read_record(cache, &mut parameters, stranger, id, deadline).await?;
        match verdict {
            Verdict::Member(identity) => Ok(Some((identity, asked_at))),
            Verdict::NotMember => Ok(None),
            Verdict::NoIdentity => {
                self.confirm_not_found(cache, parameters, id, deadline).await?;
                Ok(None)
            }
        }
    }

    /// Reads the record of a UUID, unless a cooldown or the rate limit forbids it. Returns when Novi was asked, too. No
    /// record counts as one without an identity.
    async fn read_record(
        &self,
        cache: &mut Session<'_>,
        parameters: &mut Arc<Parameters>,
        stranger: Option<&str>,
        id: MemberId,
        deadline: Instant,
    ) -> Result<(Verdict, SystemTime), Problem> {
        let place = take_place(cache, stranger, deadline).await.map_err(refused)?;
        let verdict = match self.fetch(cache, parameters, id, place, deadline).await {
            Ok(answered) => self.classify(answered),
            Err(failure) => Err(failure),
        };
        match verdict {
            Ok((verdict, asked_at)) => {
                cache.limit(time_for_cache(deadline));
                cache.count_response(place.has_failures).await;
                if matches!(verdict, Verdict::NoIdentity) {
                    cache.count_unknown().await;
                }
                if parameters.novi_probe.is_some() && !matches!(verdict, Verdict::NoIdentity) {
                    cache.mark_record_read().await;
                }
                Ok((verdict, asked_at))
            }
            Err(Failure { error, retry_after }) => {
                tracing::warn!(?error, cause = %error, "Novi lookup failed");
                // Even if Novi has used up its time, because a failure that isn't counted opens no breaker. A caller whose
                // own time is over doesn't wait for this.
                match error {
                    NoviError::Unreachable(_) => cache.count_failure().await,
                    _ => cache.count_response(place.has_failures).await,
                }
                let code = match error {
                    NoviError::RateLimited(_) => {
                        let seconds = retry_after.unwrap_or(DEFAULT_RETRY_AFTER.as_secs());
                        cache.cool_down(seconds).await;
                        return Err(Problem::rate_limited(seconds));
                    }
                    NoviError::CredentialsRejected => Code::NoviCredentialsRejected,
                    NoviError::Blocked => Code::NoviBlocked,
                    NoviError::Unreachable(_) => Code::NoviUnreachable,
                    NoviError::Status(_) => Code::NoviError,
                    NoviError::InvalidResponse(_) => Code::NoviInvalidResponse,
                };
                Err(Problem::with_retry_after(code, retry_after))
            }
        }
    }

    fn classify(&self, answered: Answered) -> Result<(Verdict, SystemTime), Failure> {
        let Answered { customer, asked_at, retry_after } = answered;
        let Customer::Record(record) = customer else { return Ok((Verdict::NoIdentity, asked_at)) };
        let invalid = |_| Failure { error: NoviError::InvalidResponse(InvalidResponse::Body), retry_after };
        record.verdict(&self.member_rules).map(|verdict| (verdict, asked_at)).map_err(invalid)
    }

    /// Makes sure that Novi returns records at all, if a record is known that must exist. A wrong root, a changed route
    /// or a lost permission makes Novi respond to every UUID that there is no record.
    ///
    /// # Errors
    /// Returns a problem if the known record is missing as well, or can't be read.
    async fn confirm_not_found(
        &self,
        cache: &mut Session<'_>,
        mut parameters: Arc<Parameters>,
        id: MemberId,
        deadline: Instant,
    ) -> Result<(), Problem> {
        let Some(probe) = parameters.novi_probe else { return Ok(()) };
        if cache.was_record_read().await {
            return Ok(());
        }
        let is_missing = probe == id
            || matches!(self.read_record(cache, &mut parameters, None, probe, deadline).await?.0, Verdict::NoIdentity);
        if is_missing {
            tracing::warn!("Novi's 404 not believed, because the record of novi_probe_uuid is missing too");
            return Err(Code::NoviError.into());
        }
        Ok(())
    }

    /// Fetches the record. Retries once after a transient failure. Retries once more if Novi rejects the current
    /// parameters and they have changed since they were read. The first attempt uses this place in the budget. No attempt
    /// starts before Novi's `Retry-After` is over, and all of them end by `deadline`.
    async fn fetch(
        &self,
        cache: &mut Session<'_>,
        parameters: &mut Arc<Parameters>,
        id: MemberId,
        mut place: Place,
        deadline: Instant,
    ) -> Result<Answered, Failure> {
        let (mut retried, mut refreshed) = (false, false);
        loop {
            let started = Instant::now();
            let result = self.novi.customer(&parameters.novi, id, deadline).await;
            let latency_ms = started.elapsed().as_secs_f64() * 1e3;
            let mut call_metrics = vec![
                Metric::Count("NoviCalls", 1),
                Metric::Count("NoviCallsToday", place.calls_today),
                Metric::Milliseconds("NoviLatency", latency_ms),
            ];
            call_metrics
                .extend(result.as_ref().err().and_then(|f| f.error.metric()).map(|name| Metric::Count(name, 1)));
            metrics::emit(&call_metrics);
            let failure = match result {
                Ok(answered) => return Ok(answered),
                Err(failure) => failure,
            };
            let mut pause = Duration::from_secs(failure.retry_after.unwrap_or_default());
            match failure.error {
                NoviError::CredentialsRejected | NoviError::Blocked if !refreshed => {
                    refreshed = true;
                    let current = timeout_at(deadline, self.parameters.after_refusal(parameters)).await;
                    *parameters = current.ok().flatten().ok_or(failure)?;
                }
                error if error.is_transient() && !retried => {
                    retried = true;
                    pause = pause.max(Duration::from_millis(fastrand::u64(50..=250)));
                }
                _ => return Err(failure),
            }
            if Instant::now() + pause >= deadline {
                return Err(failure);
            }
            tokio::time::sleep(pause).await;
            // A retry is another call, and the rate limit may not allow one.
            place = take_place(cache, None, deadline).await.map_err(|_| failure)?;
        }
    }
}

shared::unprintable!(Verifier, Flights<(MemberId, Trust), Outcome>);
