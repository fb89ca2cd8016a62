//! The client of Mailman 3's REST API (3.1). Each method is one request, or
//! one reading of a roster, and sorts what came of it; what to do about it is
//! the caller's.
//!
//! Facts of the API, measured on core 3.3.10: rosters are paged by offset and
//! have no `entries` key where there are none; 409 means two things; passing
//! database errors come as 400 with a description; answers may quote an
//! address, so no body is ever logged.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use shared::http_client::{self, BodyError, TransportError};
use shared::parameters::{ParameterError, ParameterStore, RawParameters};
use tokio::time::Instant;
use url::Url;

use crate::address::Address;
use crate::apply::Patience;
use crate::mapping::ListId;
use crate::parameters::{InUse, Parameters};
use crate::plan::Subscriber;
use crate::roster::Roster;

/// Where Mailman is and what opens it.
pub(crate) struct Access {
    base: Url,
    username: String,
    password: SecretString,
}

impl Access {
    /// Reads `mailman_base_url`, `mailman_username` and `mailman_password`.
    pub(crate) fn from_parameters(raw: &RawParameters, allow_plain_http: bool) -> Result<Self, ParameterError> {
        Ok(Self {
            base: raw.required_url(
                "mailman_base_url",
                "the base of Mailman's REST API, such as https://lists.example.org/mailman-api; /3.1 is appended",
                allow_plain_http,
            )?,
            username: raw.required("mailman_username", "the user of Mailman's REST API")?.to_owned(),
            password: raw.required("mailman_password", "the password of Mailman's REST API")?.into(),
        })
    }
}

/// What keeps a list from being read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Trouble {
    #[error("the time of this invocation ran out")]
    OutOfTime,
    #[error("Mailman has no such list")]
    NoSuchList,
    #[error("Mailman does not accept mailman_username and mailman_password")]
    CredentialsRejected,
    /// It gave no answer, which may pass.
    #[error("Mailman gave no answer ({what})")]
    NoAnswer { what: &'static str, write: Fate },
    /// It answered that it failed, which may pass.
    #[error("Mailman failed ({what})")]
    Failing { what: &'static str, write: Fate },
    #[error("Mailman answered {0}, which this version does not understand")]
    Unexpected(StatusCode),
}

/// What may have become of a write that came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It was not done: it never arrived, or was none.
    NotDone,
    /// It may have been done, and Mailman is through with it.
    Unknown,
    /// It may have been done, or still be for a moment: the connection ended
    /// before the answer came, or what stands before Mailman lost it.
    Unsettled,
    /// It may have been done, or still be under way for long: Mailman lets a
    /// request take six minutes, and works on though nobody waits for the answer.
    UnderWay,
}

impl Trouble {
    /// What may have become of the write, where the trouble may pass.
    pub(crate) fn passing(self) -> Option<Fate> {
        match self {
            Self::NoAnswer { write, .. } | Self::Failing { write, .. } => Some(write),
            _ => None,
        }
    }
}

/// What came of one subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subscription {
    /// The address is subscribed, now or before.
    Done,
    /// A request of its own is pending; the address is not subscribed.
    Pending,
    /// Mailman refuses the address.
    Refused(Refusal),
    /// Mailman calls it a bad request and does not say why in words of its own.
    /// It does so with every exception, such as a pending request of somebody
    /// else's that is discarded while it looks through them, so that it may do
    /// better another time.
    Unexplained,
}

/// Why Mailman refuses an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Invalid,
    Banned,
    Other,
}

/// How long Mailman is waited for.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    /// The most that one request takes. A bulk removal takes seconds, and a
    /// locked database holds a request up for five at a time.
    pub(crate) call: Duration,
    /// For how long a failure that may pass is waited out, from the first one on.
    pub(crate) retry: Duration,
}

/// Talks to Mailman during one run.
pub(crate) struct Mailman<'r> {
    http: &'r reqwest::Client,
    pub(crate) times: Times,
    parameters: InUse<'r>,
    /// Every request is over by then.
    cutoff: Instant,
    calls: AtomicU64,
}

/// An answer whose body was read.
struct Answer {
    status: StatusCode,
    body: bytes::Bytes,
    /// Whether the request was to change something.
    is_write: bool,
}

impl Answer {
    /// Mailman's description of an error. It may quote an address.
    fn description(&self) -> String {
        #[derive(Deserialize)]
        struct Error {
            description: String,
        }
        serde_json::from_slice::<Error>(&self.body).map(|error| error.description).unwrap_or_default()
    }

    /// Whether this is trouble of Mailman's database or process that passes. It
    /// comes as 5xx, and as 400 where Mailman took an exception for a bad request.
    fn is_passing(&self) -> bool {
        // SQLAlchemy says which driver failed, and by what error of that driver's.
        const DATABASE: [&str; 7] = [
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
                DATABASE.iter().any(|sign| description.contains(sign))
            }
            _ => false,
        }
    }

    /// A page of a roster.
    fn roster_page(&self) -> Result<RosterPage, Trouble> {
        self.read("its roster is not the JSON expected")
    }

    /// The requests that wait for somebody.
    fn requests(&self) -> Result<Requests, Trouble> {
        self.read("its requests are not the JSON expected")
    }

    fn read<T: DeserializeOwned>(&self, otherwise: &'static str) -> Result<T, Trouble> {
        if self.status != StatusCode::OK {
            return Err(trouble(self));
        }
        serde_json::from_slice(&self.body).map_err(|_| failing(otherwise))
    }

    /// What came of a subscription.
    fn subscription(&self) -> Result<Subscription, Trouble> {
        match self.status {
            StatusCode::CREATED => Ok(Subscription::Done),
            // Accepted, and waiting for somebody.
            StatusCode::ACCEPTED => Ok(Subscription::Pending),
            StatusCode::CONFLICT if self.description().contains("pending") => Ok(Subscription::Pending),
            StatusCode::CONFLICT => Ok(Subscription::Done),
            StatusCode::BAD_REQUEST if !self.is_passing() => match self.description().as_str() {
                text if text.contains("No such list") => Err(Trouble::NoSuchList),
                text if text.contains("banned") => Ok(Subscription::Refused(Refusal::Banned)),
                text if text.contains("Invalid") => Ok(Subscription::Refused(Refusal::Invalid)),
                text if text.contains("List posting address") => Ok(Subscription::Refused(Refusal::Other)),
                _ => Ok(Subscription::Unexplained),
            },
            _ => Err(trouble(self)),
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
    /// Rows of a roster page. Mailman takes 0.25 ms a row whatever the page, so
    /// that a larger one gains little and comes nearer to the time-out.
    const PAGE: usize = 5_000;
    /// A page of the longest addresses is well below this.
    const BODY_LIMIT: usize = 8 << 20;
    /// Rows that room is made for ahead; a roster that says that it has more grows as it is read.
    const ROOM: usize = 200_000;
    /// How often a roster that changes under the reading is read again.
    const ROSTER_READINGS: usize = 3;

    pub(crate) fn new(
        http: &'r reqwest::Client,
        times: Times,
        parameters: &'r ParameterStore<Parameters>,
        current: Arc<Parameters>,
        cutoff: Instant,
    ) -> Self {
        Self { http, times, parameters: InUse::new(parameters, current), cutoff, calls: AtomicU64::new(0) }
    }

    /// The requests made so far.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// The members of a list: not its owners, moderators and non-members.
    pub(crate) async fn roster(&self, list: &ListId) -> Result<Roster, Trouble> {
        for _ in 0..Self::ROSTER_READINGS {
            if let Some(roster) = self.roster_once(list).await? {
                return Ok(roster);
            }
        }
        Err(failing("its roster changed each time while it was read"))
    }

    /// The members of a list, with failures that pass waited out.
    pub(crate) async fn patient_roster(&self, list: &ListId) -> Result<Roster, Trouble> {
        Patience::new().roster(self, list).await
    }

    /// `None` where the roster changed while it was read.
    async fn roster_once(&self, list: &ListId) -> Result<Option<Roster>, Trouble> {
        let mut roster = Roster::default();
        let (mut rows, mut total) = (0, None);
        for number in 1_usize.. {
            let mut url = self.url(&["lists", list.as_str(), "roster", "member"]);
            url.query_pairs_mut()
                .append_pair("fields", "email")
                .append_pair("count", &Self::PAGE.to_string())
                .append_pair("page", &number.to_string());
            let answer = self.send(&Method::GET, url, None).await?;
            let page = answer.roster_page()?;
            if *total.get_or_insert(page.total_size) != page.total_size {
                return Ok(None);
            }
            if number == 1 {
                roster.reserve(page.total_size.min(Self::ROOM));
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

    /// Subscribes one address, silently: nobody is asked, welcomed or told.
    pub(crate) async fn subscribe(&self, list: &ListId, who: &Subscriber) -> Result<Subscription, Trouble> {
        let body = json!({
            "list_id": list.as_str(),
            "subscriber": who.address.as_str(),
            "display_name": who.name.as_deref().unwrap_or_default(),
            "pre_verified": true,
            "pre_confirmed": true,
            "pre_approved": true,
            "send_welcome_message": false,
        });
        let answer = self.send(&Method::POST, self.url(&["members"]), Some(&body)).await?;
        answer.subscription()
    }

    /// Discards the pending subscription requests of an address.
    pub(crate) async fn discard_requests(&self, list: &ListId, address: &Address) -> Result<(), Trouble> {
        let answer = self.send(&Method::GET, self.url(&["lists", list.as_str(), "requests"]), None).await?;
        let requests = answer.requests()?;
        let discard = json!({ "action": "discard" });
        for request in requests.entries.iter().filter(|request| Address::new(&request.email) == *address) {
            let url = self.url(&["lists", list.as_str(), "requests", &request.token]);
            let answer = self.send(&Method::POST, url, Some(&discard)).await?;
            // 404: it is gone already.
            if !answer.status.is_success() && answer.status != StatusCode::NOT_FOUND {
                return Err(trouble(&answer));
            }
        }
        Ok(())
    }

    /// Unsubscribes addresses in one request, silently. Those that are not
    /// subscribed count as done.
    pub(crate) async fn unsubscribe(&self, list: &ListId, addresses: &[&Address]) -> Result<(), Trouble> {
        let emails: Vec<&str> = addresses.iter().map(|address| address.as_str()).collect();
        let url = self.url(&["lists", list.as_str(), "roster", "member"]);
        let answer = self.send(&Method::DELETE, url, Some(&json!({ "emails": emails }))).await?;
        if answer.status.is_success() { Ok(()) } else { Err(trouble(&answer)) }
    }

    /// Whether there is time to start something that takes so long.
    pub(crate) fn has_time(&self, needed: Duration) -> bool {
        self.cutoff.saturating_duration_since(Instant::now()) >= needed
    }

    /// Waits, where the time allows it.
    pub(crate) async fn wait(&self, delay: Duration) -> Result<(), Trouble> {
        if Instant::now() + delay >= self.cutoff {
            return Err(Trouble::OutOfTime);
        }
        tokio::time::sleep(delay).await;
        Ok(())
    }

    fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.parameters.current().mailman.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push("3.1").extend(segments);
        }
        url
    }

    /// Sends one request, and once more where the credentials were refused and
    /// there are others by now.
    async fn send(&self, method: &Method, url: Url, body: Option<&serde_json::Value>) -> Result<Answer, Trouble> {
        let used = self.parameters.current();
        let answer = self.send_as(&used.mailman, method, url.clone(), body).await?;
        if !matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Ok(answer);
        }
        let is_same_place = |other: &Parameters, used: &Parameters| other.mailman.base == used.mailman.base;
        let answer = match self.parameters.after_refusal(&used, is_same_place).await {
            None => answer,
            Some(other) => self.send_as(&other.mailman, method, url, body).await?,
        };
        if answer.status == StatusCode::UNAUTHORIZED { Err(Trouble::CredentialsRejected) } else { Ok(answer) }
    }

    async fn send_as(
        &self,
        access: &Access,
        method: &Method,
        url: Url,
        body: Option<&serde_json::Value>,
    ) -> Result<Answer, Trouble> {
        let left = self.cutoff.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Trouble::OutOfTime);
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mut request = self
            .http
            .request(method.clone(), url)
            .basic_auth(&access.username, Some(access.password.expose_secret()))
            .timeout(left.min(self.times.call));
        if let Some(body) = body {
            // Only with a body: Mailman refuses the content type without one.
            request = request.json(body);
        }
        let is_write = *method != Method::GET;
        let fate = |of_write| if is_write { of_write } else { Fate::NotDone };
        let response = request.send().await.map_err(|error| Trouble::NoAnswer {
            what: http_client::cause(&error),
            write: match http_client::transport_error(&error) {
                TransportError::Connect => Fate::NotDone,
                TransportError::Closed | TransportError::Truncated => fate(Fate::Unsettled),
                TransportError::Timeout => fate(Fate::UnderWay),
            },
        })?;
        let status = response.status();
        let body = http_client::read_body(response, Self::BODY_LIMIT).await.map_err(|error| match error {
            BodyError::TooLarge => Trouble::Unexpected(status),
            BodyError::Truncated => Trouble::NoAnswer { what: "its answer was cut off", write: fate(Fate::Unknown) },
        })?;
        Ok(Answer { status, body, is_write })
    }
}

/// What an answer that is no success means, where the request has no meaning of its own for it.
fn trouble(answer: &Answer) -> Trouble {
    let write = match answer.status {
        _ if !answer.is_write => Fate::NotDone,
        // A proxy in front of Mailman has stopped waiting; Mailman may not have stopped working.
        StatusCode::GATEWAY_TIMEOUT => Fate::UnderWay,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => Fate::Unsettled,
        _ => Fate::Unknown,
    };
    match answer.status {
        _ if answer.is_passing() => Trouble::Failing { what: "its database or process had a bad moment", write },
        StatusCode::NOT_FOUND => Trouble::NoSuchList,
        other => Trouble::Unexpected(other),
    }
}

/// A reading that came to nothing sensible.
fn failing(what: &'static str) -> Trouble {
    Trouble::Failing { what, write: Fate::NotDone }
}

/// Reads an answer in every way that one is read.
#[cfg(fuzzing)]
pub(crate) fn read_answer(status: StatusCode, body: &[u8]) {
    for is_write in [false, true] {
        let answer = Answer { status, body: bytes::Bytes::copy_from_slice(body), is_write };
        if let Ok(page) = answer.roster_page() {
            assert_eq!(status, StatusCode::OK);
            let mut roster = Roster::default();
            roster.extend(page.entries.iter().map(|entry| Address::new(&entry.email)));
        }
        if let Ok(requests) = answer.requests() {
            requests.entries.iter().for_each(|request| drop((Address::new(&request.email), &request.token)));
        }
        match answer.subscription() {
            Ok(Subscription::Done) => assert!(matches!(status.as_u16(), 201 | 409)),
            Ok(Subscription::Pending) => assert!(matches!(status.as_u16(), 202 | 409)),
            Ok(Subscription::Refused(_) | Subscription::Unexplained) => assert_eq!(status, StatusCode::BAD_REQUEST),
            // What a body says is never in what is told of it: the words are fixed.
            Err(trouble) => drop(trouble.to_string()),
        }
    }
}

shared::unprintable!(Access, Answer, RosterPage, Requests);
