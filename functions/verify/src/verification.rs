//! Verification: is this uuid a member, and by what name?
//!
//! The cache is asked first, then Novi. Where Novi cannot answer, a stale
//! record may stand in; what never happens is that a rate limit or an outage
//! looks like "not a member".

use std::sync::Arc;
use std::time::Duration;

use shared::cache::{Lookup, MemberCache, Session};
use shared::member::{Identity, MemberId, Record};
use shared::metrics::{self, Metric};
use shared::novi::{self, NoviError};
use shared::parameters::ParameterStore;
use tokio::time::Instant;

use crate::parameters::Parameters;
use crate::problem::{Code, Problem, RATE_LIMITED_SECONDS};

/// Where an answer came from, as `X-Cache` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The cache, within its TTL.
    Hit,
    /// Novi.
    Miss,
    /// The cache, past its TTL: Novi could not answer.
    Stale,
    /// Novi, because the cache could not be asked.
    Bypass,
}

impl Origin {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Stale => "stale",
            Self::Bypass => "bypass",
        }
    }
}

/// Asks for members.
pub(crate) struct Verifier {
    pub(crate) parameters: Arc<ParameterStore<Parameters>>,
    pub(crate) cache: MemberCache,
    pub(crate) novi: novi::Client,
    pub(crate) require_active: bool,
}

impl Verifier {
    /// Verifies one member, with the parameters that opened the gate.
    pub(crate) async fn verify(
        &self,
        parameters: Arc<Parameters>,
        id: MemberId,
    ) -> Result<(Identity, Origin), Problem> {
        let mut cache = self.cache.session();
        let stale = match cache.get(id).await {
            Lookup::Fresh(identity) => return Ok((identity, Origin::Hit)),
            Lookup::Stale(identity) => Some(identity),
            Lookup::Miss => None,
        };
        let origin = if cache.was_bypassed() { Origin::Bypass } else { Origin::Miss };
        // Boxed: a hit would else carry the room that a call to Novi takes through every layer.
        match Box::pin(self.ask(&mut cache, parameters, id)).await {
            Ok(Some(identity)) => {
                cache.put(id, identity.clone()).await;
                Ok((identity, origin))
            }
            Ok(None) => {
                // A stale record must not come back once Novi has said that the member is gone.
                cache.forget(id).await;
                Err(Code::MemberNotFound.into())
            }
            Err(problem) => stale.map(|identity| (identity, Origin::Stale)).ok_or(problem),
        }
    }

    /// Asks Novi, unless it has asked to be left alone. Every error is one that
    /// a stale record may stand in for.
    async fn ask(
        &self,
        cache: &mut Session<'_>,
        parameters: Arc<Parameters>,
        id: MemberId,
    ) -> Result<Option<Identity>, Problem> {
        cache.may_ask_novi().await.map_err(|wait| Problem::rate_limited(whole_seconds(wait)))?;
        match self.fetch(cache, parameters, id).await {
            Ok(None) => Ok(None),
            Ok(Some(record)) => record.verified(self.require_active).map_err(|_| Code::NoviInvalidResponse.into()),
            Err(failure) => {
                tracing::warn!(?failure, "Novi did not answer the question");
                Err(match failure {
                    NoviError::RateLimited(seconds) => {
                        let seconds = seconds.unwrap_or(RATE_LIMITED_SECONDS);
                        cache.cool_down(seconds).await;
                        Problem::rate_limited(seconds)
                    }
                    NoviError::CredentialsRejected => Code::NoviCredentialsRejected.into(),
                    NoviError::Blocked => Code::NoviBlocked.into(),
                    NoviError::Unreachable(_) => Code::NoviUnreachable.into(),
                    NoviError::Status(_) => Code::NoviError.into(),
                    NoviError::InvalidResponse => Code::NoviInvalidResponse.into(),
                })
            }
        }
    }

    /// Fetches the record: with one retry where the failure was momentary, and
    /// once more with other parameters where Novi refuses these and there are
    /// others by now. All of it within one call's time.
    async fn fetch(
        &self,
        cache: &mut Session<'_>,
        mut parameters: Arc<Parameters>,
        id: MemberId,
    ) -> Result<Option<Record>, NoviError> {
        let by = self.novi.deadline();
        let (mut retried, mut renewed) = (false, false);
        loop {
            let started = Instant::now();
            let answer = self.novi.customer(&parameters.novi, id, by).await;
            let milliseconds = started.elapsed().as_secs_f64() * 1e3;
            let mut measured = vec![Metric::Count("NoviCalls", 1), Metric::Milliseconds("NoviLatency", milliseconds)];
            measured
                .extend(answer.as_ref().err().and_then(|failure| failure.metric()).map(|name| Metric::Count(name, 1)));
            metrics::emit(&measured);
            let failure = match answer {
                Ok(record) => return Ok(record),
                Err(failure) => failure,
            };
            match failure {
                NoviError::CredentialsRejected | NoviError::Blocked if !renewed => {
                    renewed = true;
                    parameters = self.parameters.after_refusal(&parameters).await.ok_or(failure)?;
                }
                failure if failure.is_transient() && !retried => {
                    retried = true;
                    let pause = Duration::from_millis(fastrand::u64(50..=250));
                    if Instant::now() + pause >= by {
                        return Err(failure);
                    }
                    tokio::time::sleep(pause).await;
                }
                failure => return Err(failure),
            }
            // Another try is another call, and the allowance may not have one left.
            cache.may_ask_novi().await.map_err(|_| failure)?;
        }
    }
}

/// A part of a second left is a second to wait.
fn whole_seconds(left: Duration) -> u64 {
    left.as_secs() + u64::from(left.subsec_nanos() > 0)
}
