//! The client of the Novi AMS API. Each method makes one call and classifies
//! its response. The caller decides what follows: to retry, wait, or report.
//!
//! Facts about the API:
//!
//! - Each association has its own root URL.
//! - The key is sent as issued in `Authorization: Basic`.
//! - `GET /customers/{uuid}` returns a record, and `GET /groups/{guid}/members`
//!   a page of rows. `GET /members` returns a page of whole records, if the key
//!   is allowed to call it.
//! - The response for an unknown UUID is a 404, or has no identity.
//! - A CDN in front of the API rejects some client addresses with a 403, in HTML,
//!   or in JSON because that was requested. Novi's own errors have a `Message`.
//! - A proxy, or another server at a wrong root, responds 404 too, but not in JSON.

pub mod probe;

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use http::{HeaderValue, StatusCode, header};
use rustls::ClientConfig;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use url::Url;
use uuid::Uuid;

use crate::http_client::{self, BodyError, TransportError};
use crate::json;
use crate::member::{MemberId, Record, Row};
use crate::parameters::{ParameterError, RawParameters};
use crate::sync::lock;

/// The root URL of Novi's API, and the credentials for it.
pub struct Access {
    root: Url,
    digest: RootDigest,
    authorization: HeaderValue,
    hash_key: aws_lc_rs::hmac::Key,
}

/// A short digest of `novi_api_root_url`. It keeps deployments apart that share a Redis and have different Novis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootDigest(Arc<str>);

impl RootDigest {
    /// Returns the digest of a root URL, with or without a slash at its end: the first six bytes of its SHA-256, in
    /// hexadecimal.
    #[must_use]
    pub fn of(root: &Url) -> Self {
        let digest =
            aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, root.as_str().trim_end_matches('/').as_bytes());
        Self(digest.as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect::<String>().into())
    }

    /// Returns the digest that stands for a root URL that isn't known.
    #[must_use]
    pub fn unknown() -> Self {
        Self("none".into())
    }

    /// Returns the digest as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Access {
    /// Reads `novi_api_root_url` and `novi_idaa_api_key`.
    ///
    /// # Errors
    /// Fails if one of them is missing or invalid.
    pub fn from_parameters(raw: &RawParameters, allow_plain_http: bool) -> Result<Self, ParameterError> {
        let root = raw.required_url(
            "novi_api_root_url",
            "the root of Novi's API, such as https://www.example.org/api",
            allow_plain_http,
        )?;
        const KEY: &str = "novi_idaa_api_key";
        let key = raw.required(KEY, "the API key as Novi issued it")?;
        let invalid = |found: &str| ParameterError::Invalid {
            name: KEY,
            expected: format!("the API key as Novi issued it, in printable ASCII, found {found}"),
        };
        if let Some(found) = key_defect(key) {
            return Err(invalid(found));
        }
        // Novi expects the key as issued and rejects the base64 encoding that Basic usually has.
        let mut authorization = HeaderValue::from_str(&format!("Basic {key}"))
            .map_err(|_| invalid("a character that HTTP doesn't allow"))?;
        authorization.set_sensitive(true);
        let hash_key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key.as_bytes());
        Ok(Self { digest: RootDigest::of(&root), root, authorization, hash_key })
    }

    /// Returns a hash of a UUID, which no one can compute without the API key: the first 16 bytes of its HMAC-SHA-256, in
    /// hexadecimal.
    #[must_use]
    pub fn hash(&self, id: MemberId) -> String {
        let tag = aws_lc_rs::hmac::sign(&self.hash_key, id.to_text().as_bytes());
        tag.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Returns the digest of the root URL.
    #[must_use]
    pub fn digest(&self) -> &RootDigest {
        &self.digest
    }

    /// True if both have the same root URL.
    #[must_use]
    pub fn is_same_root(&self, other: &Self) -> bool {
        self.root == other.root
    }

    fn url(&self, segments: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.root.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }
}

/// Returns what a pasted key has and no key of Novi has, if anything.
fn key_defect(key: &str) -> Option<&'static str> {
    let scheme = key.split(char::is_whitespace).next().filter(|scheme| scheme.len() < key.len());
    if scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("basic")) {
        Some("the prefix `Basic `, which is added to the key")
    } else if !key.is_ascii() {
        Some("a character that isn't ASCII, such as a typographic quotation mark or an invisible space")
    } else if key.bytes().any(|b| !b.is_ascii_graphic()) {
        Some("white space or a control character in it")
    } else if key.starts_with(['"', '\'', '`']) || key.ends_with(['"', '\'', '`']) {
        Some("quotation marks around it")
    } else {
        None
    }
}

/// The wait after a 429 without a `Retry-After` header.
pub const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(30);

/// The range of seconds that a `Retry-After` is limited to.
const RETRY_AFTER_SECONDS: std::ops::RangeInclusive<u64> = 1..=3_600;

/// A call to Novi without a usable response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoviError {
    /// Status 429, with the seconds of `Retry-After` if Novi sent it.
    RateLimited(Option<u64>),
    /// Status 401, or a 403 with Novi's `Message`: Novi rejected the key.
    CredentialsRejected,
    /// Any other 403: a CDN in front of Novi rejects our address.
    Blocked,
    /// No response, or a truncated one.
    Unreachable(TransportError),
    /// Any other status, and a 404 that isn't Novi's. Redirects are not followed.
    Status(u16),
    /// A response that came and is not what was requested.
    InvalidResponse(InvalidResponse),
}

/// The reason why a response is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidResponse {
    /// It is not HTTP, or its body is not in the announced encoding.
    Malformed,
    /// Its body is too large.
    TooLarge,
    /// Its body is not the JSON expected.
    Body,
    /// Its body is empty.
    Empty,
    /// The record shows neither names nor an email address, not even blank ones.
    HiddenFields,
    /// The record has the `UniqueID` of another person.
    OtherMember,
}

impl std::fmt::Display for NoviError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::RateLimited(_) => "Novi returned 429",
            Self::CredentialsRejected => "Novi rejected the API key for this request",
            Self::Blocked => "the CDN in front of Novi blocked this function's IP address",
            Self::Unreachable(_) => "Novi is unreachable",
            Self::Status(404) => "Novi's 404 is not its own, so novi_api_root_url or a proxy may be wrong",
            Self::Status(_) => "Novi returned an error",
            Self::InvalidResponse(InvalidResponse::HiddenFields) => {
                "Novi's records have neither names nor an email address: the API key may not be allowed to read them"
            }
            Self::InvalidResponse(InvalidResponse::OtherMember) => "Novi returned the record of another UUID",
            Self::InvalidResponse(_) => "Novi's response is invalid",
        })
    }
}

impl NoviError {
    /// True if an immediate retry is likely to succeed: no connection could be made, it turned out
    /// to be closed, or a gateway in front of Novi failed.
    #[must_use]
    pub fn is_transient(self) -> bool {
        let is_connection = matches!(self, Self::Unreachable(TransportError::Connect | TransportError::Closed));
        is_connection || matches!(self, Self::Status(502..=504))
    }

    /// Returns the metric that counts this error, if there is an alarm for it: Novi's rate limit is reached, Novi or
    /// its CDN rejects us, or Novi returned the record of another person.
    #[must_use]
    pub fn metric(self) -> Option<&'static str> {
        match self {
            Self::RateLimited(_) => Some("NoviRateLimited"),
            Self::CredentialsRejected | Self::Blocked => Some("NoviRefused"),
            Self::InvalidResponse(InvalidResponse::OtherMember) => Some("NoviMismatch"),
            Self::Unreachable(_) | Self::Status(_) | Self::InvalidResponse(_) => None,
        }
    }
}

/// A call without a usable response, and how long to wait before the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The error.
    pub error: NoviError,
    /// The seconds of `Retry-After`, limited to 1 to 3600. `None` if the response has none, or there is no response.
    pub retry_after: Option<u64>,
}

impl From<NoviError> for Failure {
    fn from(error: NoviError) -> Self {
        Self { error, retry_after: None }
    }
}

impl From<InvalidResponse> for Failure {
    fn from(reason: InvalidResponse) -> Self {
        NoviError::InvalidResponse(reason).into()
    }
}

/// The response to a call for one member's record, and how long to wait before the next call.
pub struct Answered {
    /// The response.
    pub customer: Customer,
    /// When Novi was asked.
    pub asked_at: SystemTime,
    /// The seconds of `Retry-After`, limited to 1 to 3600.
    pub retry_after: Option<u64>,
}

/// What the response to a call for one member's record contains.
pub enum Customer {
    /// The record. It may have no identity.
    Record(Record),
    /// Novi has no record: a 404, `null` or `{}`.
    NotFound,
    /// Status 200 without a body.
    Empty,
}

impl Customer {
    /// Parses the body of a 200.
    fn parse(body: &[u8], id: MemberId) -> Result<Self, InvalidResponse> {
        if json::trim(body).is_empty() {
            return Ok(Self::Empty);
        }
        match Record::parse(body) {
            Err(_) => Err(InvalidResponse::Body),
            Ok(None) => Ok(Self::NotFound),
            Ok(Some(record)) if !record.may_belong_to(id) => Err(InvalidResponse::OtherMember),
            Ok(Some(record)) if record.hides_identity() => Err(InvalidResponse::HiddenFields),
            Ok(Some(record)) => Ok(Self::Record(record)),
        }
    }
}

impl Answered {
    /// Returns the record, or `None` if Novi has none.
    ///
    /// # Errors
    /// Returns an error for an empty body, which says less than a 404.
    pub fn into_record(self) -> Result<Option<Record>, Failure> {
        match self.customer {
            Customer::Record(record) => Ok(Some(record)),
            Customer::NotFound => Ok(None),
            Customer::Empty => Err(Failure {
                error: NoviError::InvalidResponse(InvalidResponse::Empty),
                retry_after: self.retry_after,
            }),
        }
    }
}

/// A response with status 200, or one of Novi's own 404s.
struct Received {
    /// `None` for a 404.
    body: Option<bytes::Bytes>,
    retry_after: Option<u64>,
}

impl Received {
    /// Parses the body. Returns `None` for a 404.
    fn parse<T>(self, parse: impl FnOnce(&[u8]) -> Option<T>) -> Result<Option<T>, Failure> {
        let Some(body) = self.body else { return Ok(None) };
        let invalid = NoviError::InvalidResponse(InvalidResponse::Body);
        parse(&body).map(Some).ok_or(Failure { error: invalid, retry_after: self.retry_after })
    }
}

/// A page of a group's rows.
pub struct Page {
    /// The total number of rows, if the response contains it.
    pub total: Option<u64>,
    /// The UUIDs of this page, with `None` for a row without a valid one.
    pub rows: Vec<Option<MemberId>>,
}

/// A page of the whole membership.
pub struct Records {
    /// The total number of records.
    pub total: u64,
    /// The records of this page.
    pub rows: Vec<Row>,
}

/// A client of the Novi API.
///
/// A proxy or server may send a second, unrequested response on a kept connection. The next request on it would get that
/// response, and only a record's own `UniqueID` would tell. So a connection isn't used again after a response without one,
/// and a page, whose rows don't say which group they belong to, is read on a new connection.
pub struct Client {
    http: Mutex<reqwest::Client>,
    tls: ClientConfig,
    timeout: Duration,
}

impl Client {
    /// The maximum size of a record in bytes. A typical record is a few kilobytes.
    const RECORD_LIMIT: usize = 1 << 20;
    /// The maximum size of a page of rows in bytes. A page of 1000 rows is about 200 kilobytes.
    const PAGE_LIMIT: usize = 8 << 20;
    /// The maximum size of a page of records in bytes. A page of 1000 records is about 2 megabytes.
    const RECORDS_LIMIT: usize = 16 << 20;
    /// The number of rows to request per page. Novi may return fewer.
    const PAGE_SIZE: &str = "1000";

    /// Creates a client. `timeout` is the maximum time of one call, including connecting.
    ///
    /// # Errors
    /// Returns reqwest's error. None is expected.
    pub fn new(tls: ClientConfig, timeout: Duration) -> Result<Self, reqwest::Error> {
        Ok(Self { http: Mutex::new(http_client::build_for(tls.clone(), timeout)?), tls, timeout })
    }

    /// Returns the HTTP client, with the connections that it keeps.
    fn http(&self) -> reqwest::Client {
        lock(&self.http).clone()
    }

    /// Returns an HTTP client without any connection.
    fn new_http(&self) -> reqwest::Client {
        http_client::build_for(self.tls.clone(), self.timeout).unwrap_or_else(|_| self.http())
    }

    /// Closes the connections that are kept, once the calls on them have ended.
    fn drop_connections(&self) {
        let new = self.new_http();
        *lock(&self.http) = new;
    }

    /// Returns the maximum time of one call.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Returns the deadline of a call that starts now.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Opens a TLS connection in advance, so that the next call can reuse it.
    /// It sends a HEAD request to the root without the key and ignores the
    /// result. The request concerns no member and doesn't count against the
    /// key's rate limit. Without TLS, this does nothing.
    ///
    /// It runs in the background, even if the caller stops waiting for it.
    #[must_use]
    pub fn warm(&self, access: &Access) -> JoinHandle<()> {
        let (http, root, timeout) = (self.http(), access.root.clone(), self.timeout);
        tokio::spawn(async move {
            if root.scheme() == "https" {
                let _ = http.head(root).timeout(timeout).send().await;
            }
        })
    }

    /// Calls `GET /customers/{uuid}`.
    ///
    /// # Errors
    /// See [`NoviError`]. A record of another person and one that hides all names and the address are errors.
    pub async fn customer(&self, access: &Access, id: MemberId, deadline: Instant) -> Result<Answered, Failure> {
        let (url, asked_at) = (access.url(&["customers", &id.to_text()], &[]), SystemTime::now());
        let Received { body, retry_after } = self.get(self.http(), access, url, Self::RECORD_LIMIT, deadline).await?;
        let customer = body.map_or(Ok(Customer::NotFound), |body| Customer::parse(&body, id));
        if !matches!(&customer, Ok(Customer::Record(record)) if record.belongs_to(id)) {
            self.drop_connections();
        }
        match customer {
            Ok(customer) => Ok(Answered { customer, asked_at, retry_after }),
            Err(reason) => Err(Failure { error: NoviError::InvalidResponse(reason), retry_after }),
        }
    }

    /// Calls `GET /groups/{guid}/members`, starting with the row at index
    /// `offset`. Returns `None` for a 404.
    ///
    /// # Errors
    /// See [`NoviError`].
    pub async fn group_page(
        &self,
        access: &Access,
        group: Uuid,
        offset: usize,
        deadline: Instant,
    ) -> Result<Option<Page>, Failure> {
        let group = group.hyphenated().to_string();
        let query = [("pageSize", Self::PAGE_SIZE), ("offset", &offset.to_string())];
        let url = access.url(&["groups", &group, "members"], &query);
        self.get(self.new_http(), access, url, Self::PAGE_LIMIT, deadline).await?.parse(Page::parse)
    }

    /// Calls `GET /members`, starting with the record at index `offset`. Not
    /// every key is allowed to call it. Returns `None` for a 404.
    ///
    /// # Errors
    /// See [`NoviError`].
    pub async fn records(&self, access: &Access, offset: usize, deadline: Instant) -> Result<Option<Records>, Failure> {
        let query = [("pageSize", Self::PAGE_SIZE), ("offset", &offset.to_string())];
        let url = access.url(&["members"], &query);
        self.get(self.new_http(), access, url, Self::RECORDS_LIMIT, deadline).await?.parse(Records::parse)
    }

    /// Prepares a call that ends by the deadline.
    fn request(http: &reqwest::Client, access: &Access, url: Url, deadline: Instant) -> reqwest::RequestBuilder {
        http.get(url)
            .header(header::AUTHORIZATION, access.authorization.clone())
            .header(header::ACCEPT, "application/json")
            // Without this, a server may choose any encoding (RFC 9110 12.5.3).
            .header(header::ACCEPT_ENCODING, "identity")
            .timeout(deadline.saturating_duration_since(Instant::now()))
    }

    async fn get(
        &self,
        http: reqwest::Client,
        access: &Access,
        url: Url,
        limit: usize,
        deadline: Instant,
    ) -> Result<Received, Failure> {
        let response = Self::request(&http, access, url, deadline).send().await.map_err(|error| {
            tracing::debug!(cause = http_client::cause(&error), "Novi request failed");
            unanswered(&error)
        })?;
        let retry_after = http_client::retry_after(response.headers(), SystemTime::now())
            .map(|seconds| seconds.clamp(*RETRY_AFTER_SECONDS.start(), *RETRY_AFTER_SECONDS.end()));
        let fail = |error| Failure { error, retry_after };
        let status = response.status();
        let error = match status {
            StatusCode::OK | StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => {
                let body = http_client::read_body(response, limit).await;
                match (status, body) {
                    (StatusCode::OK, Ok(body)) => return Ok(Received { body: Some(body), retry_after }),
                    (StatusCode::NOT_FOUND, Ok(body)) if is_own_not_found(&body) => {
                        return Ok(Received { body: None, retry_after });
                    }
                    (StatusCode::FORBIDDEN, Ok(body)) if is_own_error(&body) => NoviError::CredentialsRejected,
                    (StatusCode::FORBIDDEN, _) => NoviError::Blocked,
                    (_, Err(BodyError::Truncated)) => NoviError::Unreachable(TransportError::Truncated),
                    (StatusCode::NOT_FOUND, _) => NoviError::Status(status.as_u16()),
                    (_, Err(BodyError::Malformed)) => NoviError::InvalidResponse(InvalidResponse::Malformed),
                    (_, _) => NoviError::InvalidResponse(InvalidResponse::TooLarge),
                }
            }
            StatusCode::TOO_MANY_REQUESTS => NoviError::RateLimited(retry_after),
            StatusCode::UNAUTHORIZED => NoviError::CredentialsRejected,
            other => NoviError::Status(other.as_u16()),
        };
        Err(fail(error))
    }
}

/// Classifies a call without the headers of a response.
fn unanswered(error: &reqwest::Error) -> NoviError {
    match http_client::transport_error(error) {
        TransportError::Malformed => NoviError::InvalidResponse(InvalidResponse::Malformed),
        error => NoviError::Unreachable(error),
    }
}

/// True if the body of a 404 is one that Novi itself may send: JSON, or nothing. The 404 of a proxy, or of a web site at
/// a wrong root, has text. A number in it is text as well.
fn is_own_not_found(body: &[u8]) -> bool {
    let body = json::trim(body);
    let is_number = || body.first().is_some_and(|b| b.is_ascii_digit() || *b == b'-');
    body.is_empty() || (!is_number() && serde_json::from_slice::<IgnoredAny>(body).is_ok())
}

/// True if the body of a 403 is Novi's: a JSON object with a `Message`. A CDN also responds in JSON, if that is requested.
fn is_own_error(body: &[u8]) -> bool {
    let object = json::parse::<serde_json::Map<String, serde_json::Value>>(body);
    let message = object.as_ref().and_then(|object| object.value.get("Message")?.as_str());
    message.is_some_and(|message| !message.trim().is_empty())
}

impl Page {
    /// Parses `{"TotalCount":n,"Results":[…]}` or a bare array.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let ids = |rows: Vec<RowId>| rows.into_iter().map(|row| row.0).collect();
        if json::trim(body).starts_with(b"[") {
            return Some(Self { total: None, rows: ids(json::parse(body)?.value) });
        }
        let Counted { total, results } = json::parse(body)?.value;
        Some(Self { total: Some(total), rows: ids(results) })
    }
}

impl Records {
    /// Parses `{"TotalCount":n,"Results":[…]}`.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let json::Parsed { value, is_repaired } = json::parse::<Counted<Row>>(body)?;
        let mut rows = value.results;
        if is_repaired {
            rows.iter_mut().for_each(Row::discard_damaged_text);
        }
        Some(Self { total: value.total, rows })
    }
}

/// A page of rows with their total number: `{"TotalCount":n,"Results":[…]}`, with keys in any case.
struct Counted<T> {
    total: u64,
    results: Vec<T>,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Counted<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CountedVisitor<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for CountedVisitor<T> {
            type Value = Counted<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a page with its total count")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Counted<T>, A::Error> {
                let (mut total, mut results) = (None, None);
                while let Some(key) = map.next_key::<Key<'_>>()? {
                    if key.is("TotalCount") {
                        total = Some(map.next_value()?);
                    } else if key.is("Results") {
                        results = Some(map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                let (Some(total), Some(results)) = (total, results) else {
                    return Err(A::Error::custom("a page without a total count or results"));
                };
                Ok(Counted { total, results })
            }
        }

        deserializer.deserialize_map(CountedVisitor(std::marker::PhantomData))
    }
}

/// The UUID of a row of a group: `UniqueID`, in any case. Two spellings may occur in one row.
struct RowId(Option<MemberId>);

impl<'de> Deserialize<'de> for RowId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RowVisitor;

        impl<'de> Visitor<'de> for RowVisitor {
            type Value = RowId;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a row of a group")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RowId, A::Error> {
                let mut id = None;
                while let Some(key) = map.next_key::<Key<'_>>()? {
                    if key.is("UniqueID") {
                        let text: Option<String> = map.next_value()?;
                        id = id.or(text.and_then(|text| MemberId::parse(text.trim())));
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(RowId(id))
            }
        }

        deserializer.deserialize_map(RowVisitor)
    }
}

/// A key of an object, borrowed unless it contains an escape.
#[derive(Deserialize)]
struct Key<'k>(#[serde(borrow)] std::borrow::Cow<'k, str>);

impl Key<'_> {
    fn is(&self, name: &str) -> bool {
        self.0.eq_ignore_ascii_case(name)
    }
}

crate::unprintable!(Access, Customer, Page, Records);

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "39120341-3c8e-47b0-9a40-45b5659b2044";

    #[test]
    fn key_has_nothing_that_copy_and_paste_adds() {
        for valid in ["a2V5Og==", "k-3_9+/=", "Basic", "basic-key", "a\"b"] {
            assert_eq!(key_defect(valid), None, "{valid}");
        }
        for (pasted, found) in [
            ("Basic a2V5Og==", "`Basic `"),
            ("BASIC\ta2V5Og==", "`Basic `"),
            ("basic\u{a0}a2V5Og==", "`Basic `"),
            ("\u{201c}a2V5Og==\u{201d}", "ASCII"),
            ("a2V5\u{200b}Og==", "ASCII"),
            ("a2V5\u{2013}Og==", "ASCII"),
            ("a2V5 Og==", "white space"),
            ("a2V5\r\nOg==", "white space"),
            ("a2V5\0", "control"),
            ("\"a2V5Og==\"", "quotation"),
            ("'a2V5Og=='", "quotation"),
        ] {
            assert!(key_defect(pasted).is_some_and(|defect| defect.contains(found)), "{pasted:?}");
        }
    }

    #[test]
    fn page_is_parsed_from_both_envelopes() {
        let rows = format!(
            r#"[{{"UniqueID":"{ID}","Name":"x"}},{{"UniqueID":"","UniqueId":"{ID}"}},{{"Name":"no id"}},{{"UniqueID":""}}]"#
        );
        let bare = Page::parse(rows.as_bytes()).unwrap();
        assert_eq!((bare.total, bare.rows.len()), (None, 4));
        assert_eq!(bare.rows.iter().flatten().count(), 2);
        let counted = Page::parse(format!(r#"{{"TotalCount":9,"Results":{rows}}}"#).as_bytes()).unwrap();
        assert_eq!((counted.total, counted.rows.len()), (Some(9), 4));
        for invalid in
            ["", "{}", "null", "[1]", r#"{"TotalCount":1}"#, r#"{"Results":[]}"#, r#"{"TotalCount":-1,"Results":[]}"#]
        {
            assert!(Page::parse(invalid.as_bytes()).is_none(), "{invalid}");
        }
    }

    #[test]
    fn page_is_parsed_with_keys_in_any_case_and_damaged_text() {
        let rows = format!(
            r#"[{{"uniqueId":"{ID}","name":"x\ud83d"}},{{"UNIQUEID":"","uniqueid":"{ID}"}},{{"Uniqueid":null}}]"#
        );
        for body in [
            rows.clone(),
            format!("\u{feff}{rows}"),
            format!("\u{feff} {{\"totalCount\":3,\"page\":1,\"results\":{rows}}}"),
        ] {
            let page = Page::parse(body.as_bytes()).unwrap();
            assert_eq!((page.rows.len(), page.rows.iter().flatten().count()), (3, 2), "{body}");
        }
        let records = format!(
            r#"{{"TOTALCOUNT":2,"results":[
                {{"uniqueID":"{ID}","email":"a@b.org","name":"\ud83d","firstName":"A","lastName":"B","active":true,
                 "unsubscribeFromEmails":false}},
                {{"uniqueID":"{ID}","email":"a@b.org\ud83d","firstName":"A","lastName":"B","active":true,
                 "unsubscribeFromEmails":false}}]}}"#
        );
        let records = Records::parse(records.as_bytes()).unwrap();
        let complete: Vec<bool> =
            records.rows.iter().map(|row| row.record.is_complete(&crate::member::MemberRules::default())).collect();
        // A damaged address is not used.
        assert_eq!((records.total, complete), (2, vec![true, false]));
    }

    #[test]
    fn own_errors_are_told_from_those_of_proxies() {
        for (body, is_own) in [
            ("", true),
            (" \r\n", true),
            ("\u{feff}", true),
            ("null", true),
            ("{}", true),
            (r#"{"Message":"No HTTP resource was found."}"#, true),
            (r#""Customer not found""#, true),
            ("404 page not found", false),
            ("404", false),
            ("-1", false),
            ("default backend - 404", false),
            ("<html></html>", false),
            ("{", false),
            ("{} x", false),
        ] {
            assert_eq!(is_own_not_found(body.as_bytes()), is_own, "{body:?}");
        }
        for (body, is_own) in [
            (r#"{"Message":"Authorization has been denied for this request."}"#, true),
            ("\u{feff}{\"Message\":\"x\",\"Other\":{}}", true),
            (r#"{"message":"Forbidden"}"#, false),
            (r#"{"Message":""}"#, false),
            (r#"{"Message":null}"#, false),
            (r#"{"type":"about:blank","title":"Access denied","status":403}"#, false),
            (r#"["Message"]"#, false),
            (r#""Message""#, false),
            ("{}", false),
            ("", false),
            ("<html></html>", false),
        ] {
            assert_eq!(is_own_error(body.as_bytes()), is_own, "{body:?}");
        }
    }

    #[test]
    fn url_extends_the_root_with_or_without_a_trailing_slash() {
        for root in ["https://www.example.org/api", "https://www.example.org/api/"] {
            let root = Url::parse(root).unwrap();
            let digest = RootDigest::of(&root);
            assert_eq!(digest, RootDigest::of(&Url::parse("https://www.example.org/api").unwrap()));
            let hash_key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, b"key");
            let access = Access { root, digest, authorization: HeaderValue::from_static("x"), hash_key };
            assert_eq!(
                access.url(&["customers", ID], &[]).as_str(),
                format!("https://www.example.org/api/customers/{ID}")
            );
        }
    }
}
