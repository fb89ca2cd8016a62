//! Mailman's responses, and what they say about a request.

use std::collections::{HashMap, HashSet};

use http::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;

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
    /// True if the request was a write.
    pub(super) is_write: bool,
}

impl Response {
    /// Returns Mailman's description of an error. It may quote an address.
    fn description(&self) -> String {
        self.error().and_then(|error| error.description).unwrap_or_default()
    }

    /// Parses an error of Mailman. The error page of a proxy isn't one.
    fn error(&self) -> Option<ErrorBody> {
        let error: ErrorBody = serde_json::from_slice(&self.body).ok()?;
        (error.title.is_some() || error.description.is_some()).then_some(error)
    }

    /// True if this is a transient failure of Mailman's database or process. It is a 5xx, or a 400 if Mailman reports
    /// an exception as a bad request.
    fn is_transient(&self) -> bool {
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

    /// Parses the response to a bulk removal. Returns the addresses that Mailman says it has removed.
    ///
    /// A proxy may respond with a page of its own, and Mailman's `false` may be wrong in either direction. Only the
    /// roster tells about the other addresses.
    pub(super) fn removed(&self) -> Result<HashSet<Address>, MailmanError> {
        if !self.status.is_success() {
            return Err(error_from(self));
        }
        let results: HashMap<String, serde_json::Value> = serde_json::from_slice(&self.body).unwrap_or_default();
        Ok(results.into_iter().filter(|(_, result)| *result == true).map(|(email, _)| Address::new(&email)).collect())
    }

    /// True if Mailman itself rejected the request because its `subscriber` is missing.
    pub(super) fn rejects_missing_subscriber(&self) -> bool {
        self.status == StatusCode::BAD_REQUEST && self.description().contains("subscriber")
    }

    fn parse<T: DeserializeOwned>(&self, cause: &'static str) -> Result<T, MailmanError> {
        if self.status != StatusCode::OK {
            return Err(error_from(self));
        }
        serde_json::from_slice(&self.body).map_err(|_| inconsistent(cause))
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
        let response = Response { status, body: bytes::Bytes::copy_from_slice(body), is_write };
        if let Ok(page) = response.roster_page() {
            assert_eq!(status, StatusCode::OK);
            page.entries.iter().for_each(|entry| drop(Address::new(&entry.email)));
        }
        if let Ok(requests) = response.requests() {
            assert!(requests.values().all(|tokens| !tokens.is_empty()));
        }
        assert_eq!(response.removed().is_ok(), status.is_success());
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
        Response { status, body: bytes::Bytes::from_static(body.as_bytes()), is_write: true }
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
            let removed = response(200, body).removed().unwrap_or_default();
            assert!(removed == expected.into_iter().map(Address::new).collect(), "{body}");
        }
        let failed = |status, body| response(status, body).removed().err();
        assert_eq!(failed(404, r#"{"title":"404 Not Found"}"#), Some(MailmanError::NoSuchList));
        assert_eq!(failed(403, r#"{"title":"403"}"#), Some(MailmanError::Unexpected(StatusCode::FORBIDDEN)));
        // A proxy's.
        for body in ["", "{}", "<html>Not Found</html>", r#"{"error":"not found"}"#] {
            assert_eq!(failed(404, body), Some(MailmanError::NotMailman(StatusCode::NOT_FOUND)), "{body}");
        }
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
