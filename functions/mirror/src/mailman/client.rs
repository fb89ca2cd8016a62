//! A client for Mailman 3's REST API (3.1).
//!
//! Each method sends one request or reads one roster, and classifies the result. The caller decides how to handle it.
//!
//! Properties of the API, measured with core 3.3.10:
//!
//! - Rosters are paged by offset, and a page without members has no `entries` key.
//! - 409 has two meanings: already subscribed, or a request is pending.
//! - Transient database errors are returned as 400 with a description.
//! - Responses may quote an address, so bodies are never logged.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{Method, StatusCode};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use shared::http_client::{self, BodyError, TransportError};
use shared::parameters::ParameterStore;
use tokio::time::Instant;
use url::Url;

use crate::address::Address;
use crate::mailman::error::{MailmanError, WriteOutcome};
use crate::mapping::ListId;
use crate::parameters::{ActiveParameters, MailmanAccess, Parameters};
use crate::plan::Subscriber;
use crate::roster::Roster;

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

/// Time limits for requests to Mailman.
#[derive(Clone, Copy)]
pub(crate) struct Timeouts {
    /// The maximum duration of one request. A bulk removal takes seconds, and each wait for a locked database takes
    /// five.
    pub(crate) request: Duration,
    /// The maximum duration of retries, from the first transient failure on.
    pub(crate) retry: Duration,
}

/// A client for one run.
pub(crate) struct Mailman<'r> {
    http: &'r reqwest::Client,
    pub(crate) timeouts: Timeouts,
    parameters: ActiveParameters<'r>,
    /// The time by which every request ends.
    cutoff: Instant,
    calls: AtomicU64,
}

/// A response with its complete body.
pub(super) struct Response {
    pub(super) status: StatusCode,
    pub(super) body: bytes::Bytes,
    /// True if the request was a write.
    is_write: bool,
}

impl Response {
    /// Returns Mailman's description of an error. It may quote an address.
    fn description(&self) -> String {
        #[derive(Deserialize)]
        struct Error {
            description: String,
        }
        serde_json::from_slice::<Error>(&self.body).map(|error| error.description).unwrap_or_default()
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
    fn roster_page(&self) -> Result<RosterPage, MailmanError> {
        self.parse("its roster is not the expected JSON")
    }

    /// Parses the pending requests.
    fn requests(&self) -> Result<Requests, MailmanError> {
        self.parse("its pending requests are not the expected JSON")
    }

    fn parse<T: DeserializeOwned>(&self, cause: &'static str) -> Result<T, MailmanError> {
        if self.status != StatusCode::OK {
            return Err(error_from(self));
        }
        serde_json::from_slice(&self.body).map_err(|_| inconsistent(cause))
    }

    /// Classifies the response to a subscription request.
    fn subscription(&self) -> Result<Subscription, MailmanError> {
        match self.status {
            StatusCode::CREATED => Ok(Subscription::Done),
            // Accepted, but waiting for a confirmation or an approval.
            StatusCode::ACCEPTED => Ok(Subscription::Pending),
            StatusCode::CONFLICT if self.description().contains("pending") => Ok(Subscription::Pending),
            StatusCode::CONFLICT => Ok(Subscription::Done),
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

#[derive(Deserialize)]
struct RosterPage {
    total_size: usize,
    #[serde(default)]
    entries: Vec<RosterEntry>,
}

#[derive(Deserialize)]
struct RosterEntry {
    email: String,
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

impl<'r> Mailman<'r> {
    /// The number of rows in a roster page. Mailman takes 0.25 ms per row for any page size, so larger pages gain
    /// little and come closer to the timeout.
    const PAGE_SIZE: usize = 5_000;
    /// The maximum size of a response body. A page of the longest possible addresses is well below this.
    const BODY_LIMIT: usize = 8 << 20;
    /// The maximum number of rows to allocate memory for in advance. If a roster claims to have more, the allocation
    /// grows as it is read.
    const MAX_PREALLOCATED: usize = 200_000;
    /// The maximum number of attempts to read a roster that changes while it is being read.
    const MAX_ROSTER_READS: usize = 3;

    pub(crate) fn new(
        http: &'r reqwest::Client,
        timeouts: Timeouts,
        parameters: &'r ParameterStore<Parameters>,
        current: Arc<Parameters>,
        cutoff: Instant,
    ) -> Self {
        Self {
            http,
            timeouts,
            parameters: ActiveParameters::new(parameters, current),
            cutoff,
            calls: AtomicU64::new(0),
        }
    }

    /// Returns the number of requests sent so far.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Reads the members of a list, without its owners, moderators and non-members.
    pub(crate) async fn roster(&self, list: &ListId) -> Result<Roster, MailmanError> {
        for _ in 0..Self::MAX_ROSTER_READS {
            if let Some(roster) = self.roster_once(list).await? {
                return Ok(roster);
            }
        }
        Err(inconsistent("its roster kept changing while it was being read"))
    }

    /// Reads a roster once. Returns `None` if it changed while being read.
    async fn roster_once(&self, list: &ListId) -> Result<Option<Roster>, MailmanError> {
        let mut roster = Roster::default();
        let (mut rows, mut total) = (0, None);
        for page_number in 1_usize.. {
            let mut url = self.url(&["lists", list.as_str(), "roster", "member"]);
            url.query_pairs_mut()
                .append_pair("fields", "email")
                .append_pair("count", &Self::PAGE_SIZE.to_string())
                .append_pair("page", &page_number.to_string());
            let response = self.send(&Method::GET, url, None).await?;
            let page = response.roster_page()?;
            if *total.get_or_insert(page.total_size) != page.total_size {
                return Ok(None);
            }
            if page_number == 1 {
                roster.reserve(page.total_size.min(Self::MAX_PREALLOCATED));
            }
            rows += page.entries.len();
            let is_empty = page.entries.is_empty();
            roster.extend(page.entries.iter().map(|entry| Address::new(&entry.email)));
            if rows >= page.total_size {
                return Ok(Some(roster));
            }
            if is_empty {
                break;
            }
        }
        Ok(None)
    }

    /// Subscribes one address silently: Mailman sends no confirmation, welcome message or notice.
    pub(crate) async fn subscribe(&self, list: &ListId, subscriber: &Subscriber) -> Result<Subscription, MailmanError> {
        let body = json!({
            "list_id": list.as_str(),
            "subscriber": subscriber.address.as_str(),
            "display_name": subscriber.name.as_deref().unwrap_or_default(),
            "pre_verified": true,
            "pre_confirmed": true,
            "pre_approved": true,
            "send_welcome_message": false,
        });
        let response = self.send(&Method::POST, self.url(&["members"]), Some(&body)).await?;
        response.subscription()
    }

    /// Discards the pending subscription requests of an address.
    pub(crate) async fn discard_requests(&self, list: &ListId, address: &Address) -> Result<(), MailmanError> {
        let response = self.send(&Method::GET, self.url(&["lists", list.as_str(), "requests"]), None).await?;
        let requests = response.requests()?;
        let discard = json!({ "action": "discard" });
        for request in requests.entries.iter().filter(|request| Address::new(&request.email) == *address) {
            let url = self.url(&["lists", list.as_str(), "requests", &request.token]);
            let response = self.send(&Method::POST, url, Some(&discard)).await?;
            // 404: the request no longer exists.
            if !response.status.is_success() && response.status != StatusCode::NOT_FOUND {
                return Err(error_from(&response));
            }
        }
        Ok(())
    }

    /// Unsubscribes addresses silently, in one request. Addresses that aren't subscribed count as done.
    pub(crate) async fn unsubscribe(&self, list: &ListId, addresses: &[&Address]) -> Result<(), MailmanError> {
        let emails: Vec<&str> = addresses.iter().map(|address| address.as_str()).collect();
        let url = self.url(&["lists", list.as_str(), "roster", "member"]);
        let response = self.send(&Method::DELETE, url, Some(&json!({ "emails": emails }))).await?;
        if response.status.is_success() { Ok(()) } else { Err(error_from(&response)) }
    }

    /// True if there is enough time left to start an operation that takes as long as `needed`.
    pub(crate) fn has_time(&self, needed: Duration) -> bool {
        self.cutoff.saturating_duration_since(Instant::now()) >= needed
    }

    /// Waits for `delay`.
    ///
    /// # Errors
    /// Returns [`MailmanError::OutOfTime`] without waiting if `delay` would end after the cutoff.
    pub(crate) async fn wait(&self, delay: Duration) -> Result<(), MailmanError> {
        if Instant::now() + delay >= self.cutoff {
            return Err(MailmanError::OutOfTime);
        }
        tokio::time::sleep(delay).await;
        Ok(())
    }

    /// Returns the base URL.
    pub(crate) fn base(&self) -> Url {
        self.parameters.current().mailman.base.clone()
    }

    fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.base();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push("3.1").extend(segments);
        }
        url
    }

    /// Sends one request. If Mailman rejects the credentials and new ones are available, sends it once more with these.
    pub(super) async fn send(
        &self,
        method: &Method,
        url: Url,
        body: Option<&serde_json::Value>,
    ) -> Result<Response, MailmanError> {
        let used = self.parameters.current();
        let response = self.send_as(&used.mailman, method, url.clone(), body).await?;
        if !matches!(response.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Ok(response);
        }
        let is_same_base = |other: &Parameters, used: &Parameters| other.mailman.base == used.mailman.base;
        let response = match self.parameters.after_refusal(&used, is_same_base).await {
            None => response,
            Some(other) => self.send_as(&other.mailman, method, url, body).await?,
        };
        if response.status == StatusCode::UNAUTHORIZED { Err(MailmanError::CredentialsRejected) } else { Ok(response) }
    }

    async fn send_as(
        &self,
        access: &MailmanAccess,
        method: &Method,
        url: Url,
        body: Option<&serde_json::Value>,
    ) -> Result<Response, MailmanError> {
        let remaining = self.cutoff.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            return Err(MailmanError::OutOfTime);
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mut request = self
            .http
            .request(method.clone(), url)
            .basic_auth(&access.username, Some(access.password.expose_secret()))
            .timeout(remaining.min(self.timeouts.request));
        if let Some(body) = body {
            // Only with a body, because Mailman rejects a request that has a content type and no body.
            request = request.json(body);
        }
        let is_write = *method != Method::GET;
        let outcome = |write_outcome| if is_write { write_outcome } else { WriteOutcome::NotApplied };
        let response = request.send().await.map_err(|error| MailmanError::NoResponse {
            cause: http_client::cause(&error),
            outcome: match http_client::transport_error(&error) {
                TransportError::Connect => WriteOutcome::NotApplied,
                TransportError::Closed | TransportError::Truncated | TransportError::Malformed => {
                    outcome(WriteOutcome::MaybeSettling)
                }
                TransportError::Timeout => outcome(WriteOutcome::MaybeInProgress),
            },
        })?;
        let status = response.status();
        let body = http_client::read_body(response, Self::BODY_LIMIT).await.map_err(|error| match error {
            BodyError::TooLarge => MailmanError::Unexpected(status),
            BodyError::Truncated | BodyError::Malformed => MailmanError::NoResponse {
                cause: "the response was truncated",
                outcome: outcome(WriteOutcome::Unknown),
            },
        })?;
        Ok(Response { status, body, is_write })
    }
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
        StatusCode::NOT_FOUND => MailmanError::NoSuchList,
        other => MailmanError::Unexpected(other),
    }
}

/// Returns the error for a read that gave no consistent result.
fn inconsistent(cause: &'static str) -> MailmanError {
    MailmanError::Transient { cause, outcome: WriteOutcome::NotApplied }
}

/// Parses a response in every way that the client does.
#[cfg(fuzzing)]
pub(crate) fn parse_response(status: StatusCode, body: &[u8]) {
    for is_write in [false, true] {
        let response = Response { status, body: bytes::Bytes::copy_from_slice(body), is_write };
        if let Ok(page) = response.roster_page() {
            assert_eq!(status, StatusCode::OK);
            let mut roster = Roster::default();
            roster.extend(page.entries.iter().map(|entry| Address::new(&entry.email)));
        }
        if let Ok(requests) = response.requests() {
            requests.entries.iter().for_each(|request| drop((Address::new(&request.email), &request.token)));
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
