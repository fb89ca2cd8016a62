//! Verification: tells whether a UUID belongs to a member, and returns the member's display name.
//!
//! Looks in the cache first, then calls Novi. If the call fails, a stale record may be used instead. A rate limit or an
//! outage never looks like "not a member".

use std::sync::Arc;
use std::time::Duration;

use shared::cache::{Lookup, MemberCache, Session};
use shared::http_client::ceil_seconds;
use shared::member::{Identity, MemberId, Record};
use shared::metrics::{self, Metric};
use shared::novi::{self, DEFAULT_RETRY_AFTER, NoviError};
use shared::parameters::ParameterStore;
use tokio::time::Instant;

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

/// Verifies members, with the cache and Novi.
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
        // Boxed to keep the future for cache hits small.
        match Box::pin(self.query_novi(&mut cache, parameters, id)).await {
            Ok(Some(identity)) => {
                cache.put(id, identity.clone()).await;
                Ok((identity, origin))
            }
            Ok(None) => {
                // A stale record must not be served again after Novi has reported that the member is gone.
                cache.forget(id).await;
                Err(Code::MemberNotFound.into())
            }
            Err(problem) => stale.map(|identity| (identity, Origin::Stale)).ok_or(problem),
        }
    }

    /// Queries Novi, unless a cooldown or the rate limit forbids it. A stale record may replace any error.
    async fn query_novi(
        &self,
        cache: &mut Session<'_>,
        parameters: Arc<Parameters>,
        id: MemberId,
    ) -> Result<Option<Identity>, Problem> {
        cache.may_call_novi().await.map_err(|wait| Problem::rate_limited(ceil_seconds(wait)))?;
        match self.fetch(cache, parameters, id).await {
            Ok(None) => Ok(None),
            Ok(Some(record)) => record.verified(self.require_active).map_err(|_| Code::NoviInvalidResponse.into()),
            Err(error) => {
                tracing::warn!(?error, "Novi lookup failed");
                Err(match error {
                    NoviError::RateLimited(seconds) => {
                        let seconds = seconds.unwrap_or(DEFAULT_RETRY_AFTER.as_secs());
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

    /// Fetches the record. Retries once after a transient failure. Retries once more if Novi rejects the current
    /// parameters and they have changed since they were read. All attempts share the timeout of one call.
    async fn fetch(
        &self,
        cache: &mut Session<'_>,
        mut parameters: Arc<Parameters>,
        id: MemberId,
    ) -> Result<Option<Record>, NoviError> {
        let deadline = self.novi.deadline();
        let (mut retried, mut refreshed) = (false, false);
        loop {
            let started = Instant::now();
            let result = self.novi.customer(&parameters.novi, id, deadline).await;
            let latency_ms = started.elapsed().as_secs_f64() * 1e3;
            let mut call_metrics = vec![Metric::Count("NoviCalls", 1), Metric::Milliseconds("NoviLatency", latency_ms)];
            call_metrics
                .extend(result.as_ref().err().and_then(|error| error.metric()).map(|name| Metric::Count(name, 1)));
            metrics::emit(&call_metrics);
            let error = match result {
                Ok(record) => return Ok(record),
                Err(error) => error,
            };
            match error {
                NoviError::CredentialsRejected | NoviError::Blocked if !refreshed => {
                    refreshed = true;
                    parameters = self.parameters.after_refusal(&parameters).await.ok_or(error)?;
                }
                error if error.is_transient() && !retried => {
                    retried = true;
                    let pause = Duration::from_millis(fastrand::u64(50..=250));
                    if Instant::now() + pause >= deadline {
                        return Err(error);
                    }
                    tokio::time::sleep(pause).await;
                }
                error => return Err(error),
            }
            // A retry is another call, and the rate limit may not allow one.
            cache.may_call_novi().await.map_err(|_| error)?;
        }
    }
}
