//! Mailman's responses, and what they say about a request.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::address::Address;
use crate::mailman::error::{MailmanError, WriteOutcome};

/// The result of one subscription request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subscription {
    /// The address is subscribed, either by this request or already before it.
    Done,
    /// The address isn't subscribed, because an earlier subscription request for it is pending.
    Pending,
    /// Mailman rejected the address.
    Refused(Refusal),
    /// Mailman returned 400 without an explanation that this client knows.
    ///
    /// Mailman does so for every exception, such as another subscriber's pending request that is discarded while
    /// Mailman searches the pending requests. A retry may therefore succeed.
    Unexplained,
}

/// The reason why Mailman rejected an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Invalid,
    Banned,
    Other,
}

/// A response with its complete body.
pub(super) struct Response {
    pub(super) status: StatusCode,
    pub(super) body: bytes::Bytes,
    /// The seconds of `Retry-After`.
    pub(super) retry_after: Option<u64>,
    /// The time from the request to the end of the body.
    pub(super) duration: Duration,
    /// True if the request was a write.
    pub(super) is_write: bool,
}

/// The result of a bulk removal.
pub(crate) enum BulkRemoval {
    /// The addresses that Mailman says it has removed.
    Removed(HashSet<Address>),
    /// A server refused it, possibly because of its size.
    TooLarge,
    /// A server refused the method, or the body was lost on the way.
    Impossible,
}

/// The result of the removal of one membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SingleRemoval {
    /// It no longer exists.
    Done,
    /// A moderator has to approve it.
    Pending,
}

impl Response {
    /// Returns Mailman's description of an error. It may quote an address.
    fn description(&self) -> String {
        self.error().and_then(|error| error.description).unwrap_or_default()
    }

    /// True if the body is JSON, as all bodies of Mailman are.
    pub(super) fn is_mailmans(&self) -> bool {
        self.body.first() == Some(&b'{')
    }

    /// Parses an error of Mailman. The error page of a proxy isn't one.
    fn error(&self) -> Option<ErrorBody> {
        let error: ErrorBody = serde_json::from_slice(&self.body).ok()?;
        (error.title.is_some() || error.description.is_some()).then_some(error)
    }

    /// True if this is a transient failure of Mailman's database or process. It is a 5xx, or a 400 if Mailman reports
    /// an exception as a bad request.
    pub(super) fn is_transient(&self) -> bool {
        // SQLAlchemy names the driver that failed, and that driver's error.
        const DATABASE_ERRORS: [&str; 7] = [
            "database is locked",
            "OperationalError",
            "IntegrityError",
            "UniqueViolation",
            "(psycopg2.",
            "(sqlite3.",
            "invalid transaction",
        ];
        match self.status {
            status if status.is_server_error() => true,
            StatusCode::BAD_REQUEST => {
                let description = self.description();
                DATABASE_ERRORS.iter().any(|marker| description.contains(marker))
            }
            _ => false,
        }
    }

    /// Parses a page of a roster.
    pub(super) fn roster_page(&self) -> Result<RosterPage, MailmanError> {
        self.parse("its roster is not the expected JSON")
    }

    /// Parses the pending requests. Returns the tokens of each address.
    pub(super) fn requests(&self) -> Result<HashMap<Address, Vec<String>>, MailmanError> {
        let requests: Requests = self.parse("its pending requests are not the expected JSON")?;
        let mut tokens: HashMap<Address, Vec<String>> = HashMap::new();
        for request in requests.entries {
            tokens.entry(Address::new(&request.email)).or_default().push(request.token);
        }
        Ok(tokens)
    }

    /// True if Mailman or a proxy says that there are too many requests.
    pub(super) fn is_busy(&self) -> bool {
        self.status == StatusCode::TOO_MANY_REQUESTS
            || (self.status == StatusCode::SERVICE_UNAVAILABLE && self.retry_after.is_some())
    }

    /// Parses the response to a bulk removal.
    ///
    /// A proxy may respond with a page of its own, and Mailman's `false` may be wrong in either direction. Only the
    /// roster tells about the other addresses.
    pub(super) fn bulk_removal(&self) -> Result<BulkRemoval, MailmanError> {
        match self.status {
            status if status.is_success() => {
                let results: HashMap<String, serde_json::Value> =
                    serde_json::from_slice(&self.body).unwrap_or_default();
                let removed = results.into_iter().filter(|(_, result)| *result == true);
                Ok(BulkRemoval::Removed(removed.map(|(email, _)| Address::new(&email)).collect()))
            }
            // A firewall's limit of the size, or of what a body may contain.
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::FORBIDDEN => Ok(BulkRemoval::TooLarge),
            // 400 is Mailman's, if a proxy drops the body.
            StatusCode::BAD_REQUEST if !self.is_transient() => Ok(BulkRemoval::Impossible),
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::LENGTH_REQUIRED | StatusCode::NOT_IMPLEMENTED => {
                Ok(BulkRemoval::Impossible)
            }
            _ => Err(error_from(self)),
        }
    }

    /// Parses the response to the removal of one membership.
    pub(super) fn single_removal(&self) -> Result<SingleRemoval, MailmanError> {
        match self.status {
            StatusCode::NO_CONTENT => Ok(SingleRemoval::Done),
            StatusCode::ACCEPTED => Ok(SingleRemoval::Pending),
            // Removed by someone else since the roster was read.
            StatusCode::NOT_FOUND if self.error().is_some() => Ok(SingleRemoval::Done),
            StatusCode::FORBIDDEN | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
                Err(MailmanError::DeleteForbidden(self.status))
            }
            _ => Err(error_from(self)),
        }
    }

    /// True if Mailman itself rejected the request because its `subscriber` is missing.
    pub(super) fn rejects_missing_subscriber(&self) -> bool {
        self.status == StatusCode::BAD_REQUEST && self.description().contains("subscriber")
    }

    pub(super) fn parse<T: DeserializeOwned>(&self, cause: &'static str) -> Result<T, MailmanError> {
        if self.status != StatusCode::OK {
            return Err(error_from(self));
        }
        serde_json::from_slice(&self.body).map_err(|_| match serde_json::from_slice::<IgnoredAny>(&self.body) {
            Ok(_) => inconsistent(cause),
            // Such as the web page of another server.
            Err(_) => MailmanError::NotMailman(self.status),
        })
    }

    /// Classifies the response to a subscription request.
    pub(super) fn subscription(&self) -> Result<Subscription, MailmanError> {
        match self.status {
            StatusCode::CREATED => Ok(Subscription::Done),
            // Accepted, but waiting for a confirmation or an approval.
            StatusCode::ACCEPTED => Ok(Subscription::Pending),
            StatusCode::CONFLICT if self.description().contains("pending") => Ok(Subscription::Pending),
            StatusCode::CONFLICT if self.description().contains("already subscribed") => Ok(Subscription::Done),
            StatusCode::BAD_REQUEST if !self.is_transient() => match self.description().as_str() {
                description if description.contains("No such list") => Err(MailmanError::NoSuchList),
                description if description.contains("banned") => Ok(Subscription::Refused(Refusal::Banned)),
                description if description.contains("Invalid") => Ok(Subscription::Refused(Refusal::Invalid)),
                description if description.contains("List posting address") => {
                    Ok(Subscription::Refused(Refusal::Other))
                }
                _ => Ok(Subscription::Unexplained),
            },
            _ => Err(error_from(self)),
        }
    }
}

/// The body of an error of Mailman.
#[derive(Deserialize)]
struct ErrorBody {
    title: Option<String>,
    description: Option<String>,
}

/// A page of a roster.
#[derive(Deserialize)]
pub(super) struct RosterPage {
    pub(super) total_size: usize,
    #[serde(default)]
    pub(super) entries: Vec<RosterEntry>,
}

#[derive(Deserialize)]
pub(super) struct RosterEntry {
    pub(super) email: String,
    /// Only if it was asked for.
    pub(super) member_id: Option<String>,
}

#[derive(Deserialize)]
struct Requests {
    #[serde(default)]
    entries: Vec<PendingRequest>,
}

#[derive(Deserialize)]
struct PendingRequest {
    email: String,
    token: String,
}

/// Returns the error for an unsuccessful response that has no special meaning for its request.
pub(super) fn error_from(response: &Response) -> MailmanError {
    let outcome = match response.status {
        _ if !response.is_write => WriteOutcome::NotApplied,
        // A proxy in front of Mailman timed out, but Mailman may still be processing the request.
        StatusCode::GATEWAY_TIMEOUT => WriteOutcome::MaybeInProgress,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => WriteOutcome::MaybeSettling,
        _ => WriteOutcome::Unknown,
    };
    match response.status {
        status if response.is_busy() => MailmanError::Busy {
            status,
            retry_after: response.retry_after,
            // A limit of requests refuses one before anything processes it.
            outcome: if status == StatusCode::TOO_MANY_REQUESTS { WriteOutcome::NotApplied } else { outcome },
        },
        _ if response.is_transient() => MailmanError::Transient { cause: "a database or server error", outcome },
        other if response.error().is_none() => MailmanError::NotMailman(other),
        StatusCode::NOT_FOUND => MailmanError::NoSuchList,
        other => MailmanError::Unexpected(other),
    }
}

/// Returns the error for a read that gave no consistent result.
pub(super) fn inconsistent(cause: &'static str) -> MailmanError {
    MailmanError::Transient { cause, outcome: WriteOutcome::NotApplied }
}

/// Parses a response in every way that the client does.
#[cfg(fuzzing)]
pub(crate) fn parse_response(status: StatusCode, body: &[u8]) {
    for is_write in [false, true] {
        let response = Response {
            status,
            body: bytes::Bytes::copy_from_slice(body),
            retry_after: None,
            duration: Duration::ZERO,
            is_write,
        };
        if let Ok(page) = response.roster_page() {
            assert_eq!(status, StatusCode::OK);
            page.entries.iter().for_each(|entry| drop(Address::new(&entry.email)));
        }
        if let Ok(requests) = response.requests() {
            assert!(requests.values().all(|tokens| !tokens.is_empty()));
        }
        if let Ok(BulkRemoval::Removed(_)) = response.bulk_removal() {
            assert!(status.is_success());
        }
        if response.single_removal() == Ok(SingleRemoval::Done) {
            assert!(matches!(status.as_u16(), 204 | 404));
        }
        match response.subscription() {
            Ok(Subscription::Done) => assert!(matches!(status.as_u16(), 201 | 409)),
            Ok(Subscription::Pending) => assert!(matches!(status.as_u16(), 202 | 409)),
            Ok(Subscription::Refused(_) | Subscription::Unexplained) => assert_eq!(status, StatusCode::BAD_REQUEST),
            // An error never quotes the body, because its texts are fixed.
            Err(error) => drop(error.to_string()),
        }
    }
}

shared::unprintable!(Response, RosterPage, Requests);

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, body: &'static str) -> Response {
        let status = StatusCode::from_u16(status).unwrap();
        Response {
            status,
            body: bytes::Bytes::from_static(body.as_bytes()),
            retry_after: None,
            duration: Duration::ZERO,
            is_write: true,
        }
    }

    #[test]
    fn only_addresses_that_mailman_reports_as_true_are_removed() {
        for (body, expected) in [
            (r#"{"a@x.org":true,"b@x.org":false}"#, vec!["a@x.org"]),
            (r#"{"a@x.org":"true","b@x.org":1,"c@x.org":null}"#, vec![]),
            (r#"{"A@X.org":true}"#, vec!["a@x.org"]),
            ("{}", vec![]),
            ("<html>Welcome</html>", vec![]),
            ("", vec![]),
        ] {
            let Ok(BulkRemoval::Removed(removed)) = response(200, body).bulk_removal() else {
                panic!("{body} is no result");
            };
            assert!(removed == expected.into_iter().map(Address::new).collect(), "{body}");
        }
        let failed = |status, body| response(status, body).bulk_removal().err();
        assert_eq!(failed(404, r#"{"title":"404 Not Found"}"#), Some(MailmanError::NoSuchList));
        // A proxy's.
        for body in ["", "{}", "<html>Not Found</html>", r#"{"error":"not found"}"#] {
            assert_eq!(failed(404, body), Some(MailmanError::NotMailman(StatusCode::NOT_FOUND)), "{body}");
        }
    }

    #[test]
    fn refused_bulk_removal_is_too_large_or_impossible() {
        let locked = r#"{"title":"400","description":"(sqlite3.OperationalError) database is locked"}"#;
        for (status, body, expected) in [
            (413, "<html>Request Entity Too Large</html>", "too large"),
            (403, "<html>Forbidden</html>", "too large"),
            (405, "<html>Not Allowed</html>", "impossible"),
            (400, r#"{"title":"400 Bad Request","description":"Missing Parameter: emails"}"#, "impossible"),
            (400, locked, "error"),
            (500, "<html>", "error"),
            (401, r#"{"title":"401 Unauthorized"}"#, "error"),
        ] {
            let result = match response(status, body).bulk_removal() {
                Ok(BulkRemoval::Removed(_)) => "removed",
                Ok(BulkRemoval::TooLarge) => "too large",
                Ok(BulkRemoval::Impossible) => "impossible",
                Err(_) => "error",
            };
            assert_eq!(result, expected, "{status} {body}");
        }
    }

    #[test]
    fn request_for_later_or_fewer_requests_is_transient() {
        let busy = |status: u16, retry_after| Response { retry_after, ..response(status, "<html>") };
        for (status, retry_after, outcome) in [
            (429, None, WriteOutcome::NotApplied),
            (429, Some(7), WriteOutcome::NotApplied),
            // The proxy that sends it may have lost Mailman's own response.
            (503, Some(7), WriteOutcome::MaybeSettling),
        ] {
            let error = error_from(&busy(status, retry_after));
            assert_eq!((error.is_busy(), error.write_outcome()), (true, Some(outcome)), "{status}");
            assert_eq!(error.retry_after(), retry_after.map(Duration::from_secs));
        }
        assert!(!error_from(&busy(503, None)).is_busy());
        assert!(error_from(&busy(429, Some(7))).to_string().contains("429 Too Many Requests, Retry-After: 7 s"));
    }

    #[test]
    fn address_counts_as_subscribed_only_in_mailmans_words() {
        for (status, body, expected) in [
            (201, "", Ok(Subscription::Done)),
            (409, r#"{"title":"409 Conflict","description":"Member already subscribed"}"#, Ok(Subscription::Done)),
            (
                409,
                r#"{"title":"409 Conflict","description":"Subscription request already pending"}"#,
                Ok(Subscription::Pending),
            ),
            (409, r#"{"title":"409 Conflict"}"#, Err(MailmanError::Unexpected(StatusCode::CONFLICT))),
            (409, "", Err(MailmanError::NotMailman(StatusCode::CONFLICT))),
            (200, "<html>Welcome</html>", Err(MailmanError::NotMailman(StatusCode::OK))),
        ] {
            assert_eq!(response(status, body).subscription(), expected, "{status} {body}");
        }
    }

    #[test]
    fn missing_subscriber_is_rejected_in_mailmans_words() {
        for (status, body, expected) in [
            (400, r#"{"title":"400 Bad Request","description":"Invalid Parameter \"subscriber\": ."}"#, true),
            (400, r#"{"title":"400 Bad Request","description":"Cannot convert parameters: subscriber"}"#, true),
            (
                400,
                r#"{"title":"400 Bad Request","description":"(sqlite3.OperationalError) database is locked"}"#,
                false,
            ),
            (403, r#"{"description":"subscriber"}"#, false),
            (400, "<html>Bad Request</html>", false),
        ] {
            assert_eq!(response(status, body).rejects_missing_subscriber(), expected, "{status} {body}");
        }
    }
}
