//! Verification: tells whether a UUID belongs to a member, and returns the member's display name.
//!
//! Looks in the cache first, then calls Novi. If the call fails, a stale record may be used instead. A rate limit or an
//! outage never looks like "not a member".

use std::sync::Arc;
use std::time::Duration;

use shared::cache::{Lookup, MemberCache, Session, SessionBudget};
use shared::http_client::ceil_seconds;
use shared::member::{Identity, MemberId, MemberRules, Verdict};
use shared::metrics::{self, Metric};
use shared::novi::{self, Answered, Customer, DEFAULT_RETRY_AFTER, Failure, InvalidResponse, NoviError};
use shared::parameters::ParameterStore;
use tokio::time::{Instant, timeout_at};

use crate::flights::Flights;
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

/// The time that is left for the response after the cache was written.
const RESPONSE_RESERVE: Duration = Duration::from_millis(50);

/// Returns how long writing to the cache may take, so that a slow cache doesn't cost Novi's response.
fn time_for_cache(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).saturating_sub(RESPONSE_RESERVE)
}

/// What Novi says about a member: the identity, or `None` if there is no such member.
type Outcome = Result<Option<Identity>, Problem>;

/// Verifies members, with the cache and Novi.
pub(crate) struct Verifier {
    pub(crate) parameters: Arc<ParameterStore<Parameters>>,
    pub(crate) cache: MemberCache,
    pub(crate) novi: novi::Client,
    pub(crate) member_rules: MemberRules,
    /// The lookups in flight, which concurrent requests for the same member share.
    pub(crate) lookups: Arc<Flights<MemberId, Outcome>>,
}

impl Verifier {
    /// Verifies one member by `deadline`, with the parameters that opened the gate.
    pub(crate) async fn verify(
        self: &Arc<Self>,
        parameters: Arc<Parameters>,
        id: MemberId,
        deadline: Instant,
    ) -> Result<(Identity, Origin), Problem> {
        let mut cache = self.cache.session();
        cache.limit(deadline.saturating_duration_since(Instant::now()));
        let stale = match cache.get(id).await {
            Lookup::Fresh(identity) => return Ok((identity, Origin::Hit)),
            Lookup::Stale(identity) => Some(identity),
            Lookup::Miss => None,
        };
        let origin = if cache.was_bypassed() { Origin::Bypass } else { Origin::Miss };
        let budget = cache.budget();
        let lookup = self.lookups.join(id, || Arc::clone(self).look_up(budget, parameters, id, deadline));
        let outcome = match timeout_at(deadline, lookup).await {
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
        id: MemberId,
        deadline: Instant,
    ) -> Outcome {
        let mut cache = self.cache.resume(budget);
        let outcome = self.query_novi(&mut cache, parameters, id, deadline).await;
        cache.limit(time_for_cache(deadline));
        match &outcome {
            Ok(Some(identity)) => cache.put(id, identity.clone()).await,
            // A stale record must not be served again after Novi has reported that the member is gone.
            Ok(None) => cache.forget(id).await,
            Err(_) => {}
        }
        outcome
    }

    /// Queries Novi, unless a cooldown or the rate limit forbids it. A stale record may replace any error.
    async fn query_novi(
        &self,
        cache: &mut Session<'_>,
        mut parameters: Arc<Parameters>,
        id: MemberId,
        deadline: Instant,
    ) -> Outcome {
        let deadline = deadline.min(self.novi.deadline());
        match self.read_record(cache, &mut parameters, id, deadline).await? {
            Verdict::Member(identity) => Ok(Some(identity)),
            Verdict::NotMember => Ok(None),
            Verdict::NoIdentity => {
                self.confirm_not_found(cache, parameters, id, deadline).await?;
                Ok(None)
            }
        }
    }

    /// Reads the record of a UUID, unless a cooldown or the rate limit forbids it. No record counts as one without an
    /// identity.
    async fn read_record(
        &self,
        cache: &mut Session<'_>,
        parameters: &mut Arc<Parameters>,
        id: MemberId,
        deadline: Instant,
    ) -> Result<Verdict, Problem> {
        cache.may_call_novi().await.map_err(|wait| Problem::rate_limited(ceil_seconds(wait)))?;
        let verdict = match self.fetch(cache, parameters, id, deadline).await {
            Ok(answered) => self.classify(answered),
            Err(failure) => Err(failure),
        };
        match verdict {
            Ok(verdict) => {
                if parameters.novi_probe.is_some() && !matches!(verdict, Verdict::NoIdentity) {
                    cache.limit(time_for_cache(deadline));
                    cache.mark_record_read().await;
                }
                Ok(verdict)
            }
            Err(Failure { error, retry_after }) => {
                tracing::warn!(?error, cause = %error, "Novi lookup failed");
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

    fn classify(&self, Answered { customer, retry_after }: Answered) -> Result<Verdict, Failure> {
        let Customer::Record(record) = customer else { return Ok(Verdict::NoIdentity) };
        let invalid = |_| Failure { error: NoviError::InvalidResponse(InvalidResponse::Body), retry_after };
        record.verdict(&self.member_rules).map_err(invalid)
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
            || matches!(self.read_record(cache, &mut parameters, probe, deadline).await?, Verdict::NoIdentity);
        if is_missing {
            tracing::warn!("Novi's 404 not believed, because the record of novi_probe_uuid is missing too");
            return Err(Code::NoviError.into());
        }
        Ok(())
    }

    /// Fetches the record. Retries once after a transient failure. Retries once more if Novi rejects the current
    /// parameters and they have changed since they were read. No attempt starts before Novi's `Retry-After` is over, and
    /// all of them end by `deadline`.
    async fn fetch(
        &self,
        cache: &mut Session<'_>,
        parameters: &mut Arc<Parameters>,
        id: MemberId,
        deadline: Instant,
    ) -> Result<Answered, Failure> {
        let (mut retried, mut refreshed) = (false, false);
        loop {
            let started = Instant::now();
            let result = self.novi.customer(&parameters.novi, id, deadline).await;
            let latency_ms = started.elapsed().as_secs_f64() * 1e3;
            let mut call_metrics = vec![Metric::Count("NoviCalls", 1), Metric::Milliseconds("NoviLatency", latency_ms)];
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
            cache.may_call_novi().await.map_err(|_| failure)?;
        }
    }
}

shared::unprintable!(Verifier, Flights<MemberId, Outcome>);
