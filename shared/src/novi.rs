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
//! - A CDN in front of the API rejects some client addresses with a 403 in HTML.

use std::time::{Duration, SystemTime};

use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use url::Url;
use uuid::Uuid;

use crate::http_client::{self, BodyError, TransportError};
use crate::member::{MemberId, Record, Row};
use crate::parameters::{ParameterError, RawParameters};

/// The root URL of Novi's API, and the credentials for it.
pub struct Access {
    root: Url,
    authorization: HeaderValue,
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
        // Novi expects the key as issued and rejects the base64 encoding that Basic usually has.
        let mut authorization =
            HeaderValue::from_str(&format!("Basic {key}")).map_err(|_| ParameterError::Invalid {
                name: KEY,
                expected: "the API key as Novi issued it, in printable ASCII".to_owned(),
            })?;
        authorization.set_sensitive(true);
        Ok(Self { root, authorization })
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

/// The wait after a 429 without a `Retry-After` header.
pub const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(30);

/// A call to Novi without a usable response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoviError {
    /// Status 429, with the seconds of `Retry-After` if Novi sent it.
    RateLimited(Option<u64>),
    /// Status 401, or a 403 with a JSON body: Novi rejected the key.
    CredentialsRejected,
    /// Any other 403: a CDN in front of Novi rejects our address.
    Blocked,
    /// No response, or a truncated one.
    Unreachable(TransportError),
    /// Any other status. Redirects are not followed.
    Status(u16),
    /// Status 200 with a body that is too large or unexpected.
    InvalidResponse,
}

impl std::fmt::Display for NoviError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::RateLimited(_) => "Novi returned 429",
            Self::CredentialsRejected => "Novi rejected the API key for this request",
            Self::Blocked => "the CDN in front of Novi blocked this function's IP address",
            Self::Unreachable(_) => "Novi is unreachable",
            Self::Status(_) => "Novi returned an error",
            Self::InvalidResponse => "Novi's response is invalid",
        })
    }
}

impl NoviError {
    /// True if an immediate retry is likely to succeed: the connection turned
    /// out to be closed, or a gateway in front of Novi failed.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Unreachable(TransportError::Closed) | Self::Status(502..=504))
    }

    /// Returns the metric that counts this error, if there is an alarm for it:
    /// Novi's rate limit is reached, or Novi or its CDN rejects us.
    #[must_use]
    pub fn metric(self) -> Option<&'static str> {
        match self {
            Self::RateLimited(_) => Some("NoviRateLimited"),
            Self::CredentialsRejected | Self::Blocked => Some("NoviRefused"),
            Self::Unreachable(_) | Self::Status(_) | Self::InvalidResponse => None,
        }
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
pub struct Client {
    http: reqwest::Client,
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
    #[must_use]
    pub fn new(http: reqwest::Client, timeout: Duration) -> Self {
        Self { http, timeout }
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
        let (http, root, timeout) = (self.http.clone(), access.root.clone(), self.timeout);
        tokio::spawn(async move {
            if root.scheme() == "https" {
                let _ = http.head(root).timeout(timeout).send().await;
            }
        })
    }

    /// Calls `GET /customers/{uuid}`. Returns `None` for a 404 or a response without a record.
    ///
    /// # Errors
    /// See [`NoviError`].
    pub async fn customer(
        &self,
        access: &Access,
        id: MemberId,
        deadline: Instant,
    ) -> Result<Option<Record>, NoviError> {
        let url = access.url(&["customers", &id.to_text()], &[]);
        match self.get(access, url, Self::RECORD_LIMIT, deadline).await? {
            None => Ok(None),
            Some(body) => Record::parse(&body).map_err(|_| NoviError::InvalidResponse),
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
    ) -> Result<Option<Page>, NoviError> {
        let group = group.hyphenated().to_string();
        let query = [("pageSize", Self::PAGE_SIZE), ("offset", &offset.to_string())];
        let url = access.url(&["groups", &group, "members"], &query);
        match self.get(access, url, Self::PAGE_LIMIT, deadline).await? {
            None => Ok(None),
            Some(body) => Page::parse(&body).map(Some).ok_or(NoviError::InvalidResponse),
        }
    }

    /// Calls `GET /members`, starting with the record at index `offset`. Not
    /// every key is allowed to call it. Returns `None` for a 404.
    ///
    /// # Errors
    /// See [`NoviError`].
    pub async fn records(
        &self,
        access: &Access,
        offset: usize,
        deadline: Instant,
    ) -> Result<Option<Records>, NoviError> {
        let query = [("pageSize", Self::PAGE_SIZE), ("offset", &offset.to_string())];
        match self.get(access, access.url(&["members"], &query), Self::RECORDS_LIMIT, deadline).await? {
            None => Ok(None),
            Some(body) => Records::parse(&body).map(Some).ok_or(NoviError::InvalidResponse),
        }
    }

    async fn get(
        &self,
        access: &Access,
        url: Url,
        limit: usize,
        deadline: Instant,
    ) -> Result<Option<bytes::Bytes>, NoviError> {
        let timeout = deadline.saturating_duration_since(Instant::now());
        let response = self
            .http
            .get(url)
            .header(header::AUTHORIZATION, access.authorization.clone())
            .header(header::ACCEPT, "application/json")
            .timeout(timeout)
            .send()
            .await
            .map_err(|error| {
                tracing::debug!(cause = http_client::cause(&error), "Novi request failed");
                NoviError::Unreachable(http_client::transport_error(&error))
            })?;
        let retry_after = http_client::retry_after(response.headers(), SystemTime::now());
        match response.status() {
            StatusCode::OK => match http_client::read_body(response, limit).await {
                Ok(body) => Ok(Some(body)),
                Err(BodyError::TooLarge) => Err(NoviError::InvalidResponse),
                Err(BodyError::Truncated) => Err(NoviError::Unreachable(TransportError::Truncated)),
            },
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::TOO_MANY_REQUESTS => Err(NoviError::RateLimited(retry_after)),
            StatusCode::UNAUTHORIZED => Err(NoviError::CredentialsRejected),
            StatusCode::FORBIDDEN => match http_client::read_body(response, Self::RECORD_LIMIT).await {
                Ok(body) if serde_json::from_slice::<IgnoredAny>(&body).is_ok() => Err(NoviError::CredentialsRejected),
                _ => Err(NoviError::Blocked),
            },
            other => Err(NoviError::Status(other.as_u16())),
        }
    }
}

impl Page {
    /// Parses `{"TotalCount":n,"Results":[…]}` or a bare array.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Counted {
            total_count: u64,
            results: Vec<Row>,
        }
        /// A row. Both spellings of the key occur.
        #[derive(Deserialize)]
        struct Row {
            #[serde(rename = "UniqueID")]
            upper: Option<String>,
            #[serde(rename = "UniqueId")]
            mixed: Option<String>,
        }
        let ids = |rows: Vec<Row>| {
            let id = |row: Row| [row.upper, row.mixed].into_iter().flatten().find_map(|id| MemberId::parse(id.trim()));
            rows.into_iter().map(id).collect()
        };
        if body.trim_ascii_start().starts_with(b"[") {
            return Some(Self { total: None, rows: ids(serde_json::from_slice(body).ok()?) });
        }
        let Counted { total_count, results } = serde_json::from_slice(body).ok()?;
        Some(Self { total: Some(total_count), rows: ids(results) })
    }
}

impl Records {
    /// Parses `{"TotalCount":n,"Results":[…]}`.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Counted {
            total_count: u64,
            results: Vec<Row>,
        }
        let Counted { total_count, results } = serde_json::from_slice(body).ok()?;
        Some(Self { total: total_count, rows: results })
    }
}

crate::unprintable!(Access, Page, Records);

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "39120341-3c8e-47b0-9a40-45b5659b2044";

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
    fn url_extends_the_root_with_or_without_a_trailing_slash() {
        for root in ["https://www.example.org/api", "https://www.example.org/api/"] {
            let access = Access { root: Url::parse(root).unwrap(), authorization: HeaderValue::from_static("x") };
            assert_eq!(
                access.url(&["customers", ID], &[]).as_str(),
                format!("https://www.example.org/api/customers/{ID}")
            );
        }
    }
}
