//! The time by which a request must end.

use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use axum::extract::FromRequestParts;
use http::request::Parts;
use lambda_http::RequestExt;
use tokio::time::Instant;

/// The maximum time of a request. API Gateway gives up after 30 s.
const MAX: Duration = Duration::from_secs(28);
/// The time that remains for the response if the work of a request lasts until its deadline.
const RESERVE: Duration = Duration::from_millis(200);

/// The time by which all work of a request must end: shortly before Lambda would end the invocation.
#[derive(Clone, Copy)]
pub(crate) struct Deadline(pub(crate) Instant);

impl<S: Sync> FromRequestParts<S> for Deadline {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let end = parts.lambda_context_ref().map(|context| context.deadline());
        Ok(Self(Instant::now() + time_left(end, SystemTime::now())))
    }
}

/// Returns the time that a request may take from `now` on, if Lambda ends its invocation at `end`.
///
/// An invocation that starts has time left. If it seems to have none, the clocks differ, and `end` is ignored.
fn time_left(end: Option<SystemTime>, now: SystemTime) -> Duration {
    let left = end.and_then(|end| end.duration_since(now).ok()?.checked_sub(RESERVE));
    left.map_or(MAX, |left| left.min(MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_ends_before_the_invocation_and_within_the_maximum() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let after = |ms| Some(now + Duration::from_millis(ms));
        for (end, expected) in [
            (after(3_000), Duration::from_millis(2_800)),
            (after(29_000), MAX),
            (after(900_000), MAX),
            (after(28_100), Duration::from_millis(27_900)),
            // The clock of this process is ahead, and there is no deadline in a local run.
            (after(100), MAX),
            (Some(now - Duration::from_secs(3_600)), MAX),
            (Some(SystemTime::UNIX_EPOCH), MAX),
            (None, MAX),
        ] {
            assert_eq!(time_left(end, now), expected, "{end:?}");
        }
    }
}
