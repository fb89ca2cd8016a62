//! A client for Mailman 3's REST API (3.1).
//!
//! Each method sends one request or reads one roster, and classifies the result. The caller decides how to handle it.
//! The client only notes since when Mailman has been failing, because all callers share the time for retries.
//!
//! Properties of the API, measured with core 3.3.10:
//!
//! - Rosters are paged by offset, and a page without members has no `entries` key.
//! - 409 has two meanings: already subscribed, or a request is pending.
//! - Transient database errors are returned as 400 with a description.
//! - Responses may quote an address, so bodies are never logged.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use http::{Method, StatusCode};
use secrecy::ExposeSecret;
use serde_json::json;
use shared::http_client::{self, BodyError, TransportError};
use shared::parameters::ParameterStore;
use tokio::time::Instant;
use url::Url;

use crate::address::Address;
use crate::mailman::error::{MailmanError, WriteOutcome};
use crate::mailman::pace::Pace;
use crate::mailman::response::{
    BulkRemoval, Response, RosterEntry, SingleRemoval, Subscription, error_from, inconsistent,
};
use crate::mailman::retry_budget::RetryBudget;
use crate::mapping::ListId;
use crate::parameters::{ActiveParameters, MailmanAccess, Parameters};
use crate::roster::Roster;

/// Time limits for requests to Mailman.
#[derive(Clone, Copy)]
pub(crate) struct Timeouts {
    /// The maximum duration of one request. A bulk removal takes seconds, and each wait for a locked database takes
    /// five.
    pub(crate) request: Duration,
    /// How long transient failures are retried without a success in between.
    pub(crate) retry: Duration,
}

/// The ids of the memberships of a list, by address. An address may have several.
pub(crate) type MemberIds = HashMap<Address, Vec<String>>;

/// What the rows of a roster are collected into.
trait Members: Default {
    /// The fields to ask for.
    const FIELDS: &'static [&'static str];

    fn reserve(&mut self, rows: usize);

    fn add(&mut self, rows: Vec<RosterEntry>);
}

impl Members for Roster {
    const FIELDS: &'static [&'static str] = &["email"];

    fn reserve(&mut self, rows: usize) {
        Self::reserve(self, rows);
    }

    fn add(&mut self, rows: Vec<RosterEntry>) {
        self.extend(rows.iter().map(|row| Address::new(&row.email)));
    }
}

impl Members for MemberIds {
    const FIELDS: &'static [&'static str] = &["email", "member_id"];

    fn reserve(&mut self, rows: usize) {
        Self::reserve(self, rows);
    }

    fn add(&mut self, rows: Vec<RosterEntry>) {
        for RosterEntry { email, member_id } in rows {
            self.entry(Address::new(&email)).or_default().extend(member_id);
        }
    }
}

/// A client for one run.
pub(crate) struct Mailman<'r> {
    http: &'r reqwest::Client,
    request_timeout: Duration,
    parameters: ActiveParameters<'r>,
    /// The time by which every request ends.
    cutoff: Instant,
    calls: AtomicU64,
    /// The time for retries of reads.
    pub(super) reads: RetryBudget,
    /// The time for retries of writes. Mailman can be read while its database can't be written.
    pub(super) writes: RetryBudget,
    /// The time for retries of moves and of preferences. Their failures say nothing about other writes.
    pub(super) memberships: RetryBudget,
    pub(crate) pace: Pace,
    /// True if Mailman itself has responded.
    has_responded: AtomicBool,
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
    /// The maximum duration of a read after the time for retries is used up. Each list is still tried once.
    const FAILING_TIMEOUT: Duration = Duration::from_secs(5);
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
            request_timeout: timeouts.request,
            parameters: ActiveParameters::new(parameters, current),
            cutoff,
            calls: AtomicU64::new(0),
            reads: RetryBudget::new(timeouts.retry),
            writes: RetryBudget::new(timeouts.retry),
            memberships: RetryBudget::new(timeouts.retry),
            pace: Pace::new(),
            has_responded: AtomicBool::new(false),
        }
    }

    /// Returns the number of requests sent so far.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// True if Mailman itself has responded to at least one request.
    pub(crate) fn has_responded(&self) -> bool {
        self.has_responded.load(Ordering::Relaxed)
    }

    /// Reads the members of a list, without its owners, moderators and non-members.
    pub(super) async fn read_roster(&self, list: &ListId) -> Result<Roster, MailmanError> {
        self.read_members(list).await
    }

    /// Reads the ids of the memberships of a list.
    pub(super) async fn read_member_ids(&self, list: &ListId) -> Result<MemberIds, MailmanError> {
        self.read_members(list).await
    }

    async fn read_members<T: Members>(&self, list: &ListId) -> Result<T, MailmanError> {
        for _ in 0..Self::MAX_ROSTER_READS {
            if let Some(members) = self.members_once(list).await? {
                return Ok(members);
            }
        }
        Err(inconsistent("its roster kept changing while it was being read"))
    }

    /// Reads a roster once. Returns `None` if it changed while being read.
    async fn members_once<T: Members>(&self, list: &ListId) -> Result<Option<T>, MailmanError> {
        let mut members = T::default();
        let (mut rows, mut total) = (0, None);
        for page_number in 1_usize.. {
            let mut url = self.url(&["lists", list.as_str(), "roster", "member"]);
            url.query_pairs_mut()
                .extend_pairs(T::FIELDS.iter().map(|field| ("fields", field)))
                .append_pair("count", &Self::PAGE_SIZE.to_string())
                .append_pair("page", &page_number.to_string());
            let response = self.send(&Method::GET, url, None).await?;
            let page = response.roster_page()?;
            if *total.get_or_insert(page.total_size) != page.total_size {
                return Ok(None);
            }
            if page_number == 1 {
                members.reserve(page.total_size.min(Self::MAX_PREALLOCATED));
            }
            rows += page.entries.len();
            let is_empty = page.entries.is_empty();
            members.add(page.entries);
            if rows >= page.total_size {
                return Ok(Some(members));
            }
            if is_empty {
                break;
            }
        }
        Ok(None)
    }

    /// Subscribes one address silently: Mailman sends no confirmation, welcome message or notice.
    pub(crate) async fn subscribe(
        &self,
        list: &ListId,
        address: &Address,
        name: Option<&str>,
    ) -> Result<Subscription, MailmanError> {
        let body = json!({
            "list_id": list.as_str(),
            "subscriber": address.as_str(),
            "display_name": name.unwrap_or_default(),
            // As text, because Mailman 3.3.3 to 3.3.5 fail on JSON booleans here.
            "pre_verified": "true",
            "pre_confirmed": "true",
            "pre_approved": "true",
            "send_welcome_message": "false",
        });
        let response = self.send(&Method::POST, self.url(&["members"]), Some(&body)).await;
        match &response {
            Ok(response) => self.pace.note_subscription(response.duration),
            Err(error) if error.write_outcome() == Some(WriteOutcome::MaybeInProgress) => {
                self.pace.note_subscription(self.request_timeout);
            }
            Err(_) => {}
        }
        let subscription = response.and_then(|response| response.subscription());
        // An unexplained rejection is neither a success nor an outage.
        if subscription != Ok(Subscription::Unexplained) {
            self.writes.note(&subscription);
        }
        subscription
    }

    /// Checks that a request to subscribe reaches Mailman, with one that subscribes no one: it names no subscriber, so
    /// Mailman rejects it.
    ///
    /// # Errors
    /// Returns the error if Mailman doesn't respond, or if another server does, such as a proxy that forbids the
    /// request.
    pub(crate) async fn check_subscriptions(&self, list: &ListId) -> Result<(), MailmanError> {
        let body = json!({ "list_id": list.as_str(), "subscriber": "" });
        let response = self.send(&Method::POST, self.url(&["members"]), Some(&body)).await?;
        if response.rejects_missing_subscriber() { Ok(()) } else { Err(error_from(&response)) }
    }

    /// Reads the pending subscription requests of a list. Returns the tokens of each address.
    pub(super) async fn read_subscription_requests(
        &self,
        list: &ListId,
    ) -> Result<HashMap<Address, Vec<String>>, MailmanError> {
        let response = self.send(&Method::GET, self.url(&["lists", list.as_str(), "requests"]), None).await?;
        response.requests()
    }

    /// Discards a pending subscription request. One that no longer exists counts as discarded.
    pub(crate) async fn discard_request(&self, list: &ListId, token: &str) -> Result<(), MailmanError> {
        let url = self.url(&["lists", list.as_str(), "requests", token]);
        let response = self.send(&Method::POST, url, Some(&json!({ "action": "discard" }))).await;
        let discarded = response.and_then(|response| match response.status {
            StatusCode::NOT_FOUND => Ok(()),
            status if status.is_success() => Ok(()),
            _ => Err(error_from(&response)),
        });
        self.writes.note(&discarded);
        discarded
    }

    /// Unsubscribes addresses silently, in one request.
    pub(crate) async fn unsubscribe(&self, list: &ListId, addresses: &[&Address]) -> Result<BulkRemoval, MailmanError> {
        let emails: Vec<&str> = addresses.iter().map(|address| address.as_str()).collect();
        let url = self.url(&["lists", list.as_str(), "roster", "member"]);
        let response = self.send(&Method::DELETE, url, Some(&json!({ "emails": emails }))).await;
        let removal = response.and_then(|response| response.bulk_removal());
        self.writes.note(&removal);
        removal
    }

    /// Switches the goodbye message of a list on or off.
    pub(crate) async fn set_goodbye(&self, list: &ListId, is_on: bool) -> Result<(), MailmanError> {
        let body = json!({ "send_goodbye_message": is_on.to_string() });
        let response = self.send(&Method::PATCH, self.url(&["lists", list.as_str(), "config"]), Some(&body)).await;
        let result = response.and_then(|response| match response.status {
            StatusCode::NO_CONTENT => Ok(()),
            _ => Err(error_from(&response)),
        });
        self.writes.note(&result);
        result
    }

    /// Removes one membership. Unlike a bulk removal, this sends the list's goodbye message, if it is switched on, and its
    /// notice to the owners.
    pub(crate) async fn remove_member(&self, member_id: &str) -> Result<SingleRemoval, MailmanError> {
        let mut url = self.url(&["members", member_id]);
        // As a query, because a proxy may drop the body of a DELETE.
        url.query_pairs_mut().append_pair("pre_confirmed", "true").append_pair("pre_approved", "true");
        let response = self.send(&Method::DELETE, url, None).await;
        let removal = response.and_then(|response| response.single_removal());
        self.writes.note(&removal);
        removal
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
        if self.cutoff.saturating_duration_since(Instant::now()) <= delay {
            return Err(MailmanError::OutOfTime);
        }
        tokio::time::sleep(delay).await;
        Ok(())
    }

    /// Returns the base URL.
    pub(crate) fn base(&self) -> Url {
        self.parameters.current().mailman.base.clone()
    }

    pub(super) fn url(&self, segments: &[&str]) -> Url {
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
        self.pace.turn(self.cutoff).await?;
        // After the wait, so that no request outlasts the cutoff.
        let remaining = self.cutoff.saturating_duration_since(Instant::now());
        self.calls.fetch_add(1, Ordering::Relaxed);
        let is_write = *method != Method::GET;
        // A write isn't cut short, because its outcome would be unknown.
        let budgets = [&self.reads, &self.writes, &self.memberships];
        let is_failing = !is_write && budgets.into_iter().any(RetryBudget::is_used_up);
        let timeout = if is_failing { self.request_timeout.min(Self::FAILING_TIMEOUT) } else { self.request_timeout };
        let mut request = self
            .http
            .request(method.clone(), url)
            .basic_auth(&access.username, Some(access.password.expose_secret()))
            .timeout(remaining.min(timeout));
        if let Some(body) = body {
            // Only with a body, because Mailman rejects a request that has a content type and no body.
            request = request.json(body);
        }
        let started = Instant::now();
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
        match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => self.pace.refused(),
            _ => self.pace.passed(),
        }
        let retry_after = http_client::retry_after(response.headers(), SystemTime::now());
        let body = http_client::read_body(response, Self::BODY_LIMIT).await.map_err(|error| match error {
            BodyError::TooLarge => MailmanError::Unexpected(status),
            BodyError::Truncated | BodyError::Malformed => MailmanError::NoResponse {
                cause: "the response was truncated",
                outcome: outcome(WriteOutcome::MaybeSettling),
            },
        })?;
        let response = Response { status, body, retry_after, duration: started.elapsed(), is_write };
        if response.is_mailmans() {
            self.has_responded.store(true, Ordering::Relaxed);
        }
        Ok(response)
    }
}
