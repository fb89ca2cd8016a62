//! The client of the Novi AMS API. One call, one answer, sorted: what to do
//! about it (retry, wait, tell somebody) is the caller's.
//!
//! Facts of the API: the root is per association, the key goes into
//! `Authorization: Basic` as issued, `GET /customers/{uuid}` gives the record,
//! `GET /groups/{guid}/members` a page of rows, `GET /members`, where the key is
//! allowed it, a page of whole records. An unknown uuid is a 404 or an
//! answer without identity. A CDN in front refuses some addresses with a 403
//! that is HTML.

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

/// Where Novi is and what opens it.
pub struct Access {
    root: Url,
    authorization: HeaderValue,
}

impl Access {
    /// Reads `novi_api_root_url` and `novi_idaa_api_key`.
    ///
    /// # Errors
    /// Where one of them is missing or cannot be used.
    pub fn from_parameters(raw: &RawParameters, allow_plain_http: bool) -> Result<Self, ParameterError> {
        let root = raw.required_url(
            "novi_api_root_url",
            "the root of Novi's API, such as https://www.example.org/api",
            allow_plain_http,
        )?;
        const KEY: &str = "novi_idaa_api_key";
        let key = raw.required(KEY, "the API key as Novi issued it")?;
        // Novi wants the key as issued: encoding it again, as Basic usually has it, is refused.
        let mut authorization =
            HeaderValue::from_str(&format!("Basic {key}")).map_err(|_| ParameterError::Malformed {
                name: KEY,
                right: "it must be the API key as Novi issued it, in printable ASCII".to_owned(),
            })?;
        authorization.set_sensitive(true);
        Ok(Self { root, authorization })
    }

    /// Whether both lead to the same Novi.
    #[must_use]
    pub fn is_same_place(&self, other: &Self) -> bool {
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

/// Why Novi gave no usable answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoviError {
    /// 429. `Retry-After` in seconds where there was one.
    RateLimited(Option<u64>),
    /// 401, or a 403 that speaks JSON: the key is not accepted.
    CredentialsRejected,
    /// Any other 403: a CDN in front of Novi refuses this address.
    Blocked,
    /// No answer, or one that was cut off.
    Unreachable(TransportError),
    /// Any other status; redirects are not followed.
    Status(u16),
    /// A 200 whose body is too large or not what was expected.
    InvalidResponse,
}

impl NoviError {
    /// Whether another try right away may well succeed: the connection turned
    /// out closed, or a gateway in front of Novi had a bad moment.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Unreachable(TransportError::Closed) | Self::Status(502..=504))
    }

    /// The metric that counts it, where an alarm hangs on that: Novi's limit is
    /// reached, or Novi or its CDN does not let us in.
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
    /// How many rows there are in all, where the answer says.
    pub total: Option<u64>,
    /// The uuids of this page, `None` for a row without a usable one.
    pub rows: Vec<Option<MemberId>>,
}

/// A page of the whole membership.
pub struct Records {
    /// How many records there are in all.
    pub total: u64,
    /// The records of this page.
    pub rows: Vec<Row>,
}

/// The client.
pub struct Client {
    http: reqwest::Client,
    timeout: Duration,
}

impl Client {
    /// A record is a few kilobytes.
    const RECORD_LIMIT: usize = 1 << 20;
    /// A page of 1000 rows is some 200 kilobytes.
    const PAGE_LIMIT: usize = 8 << 20;
    /// A page of 1000 records is some 2 megabytes.
    const RECORDS_LIMIT: usize = 16 << 20;
    /// Rows asked for in one page; Novi may give fewer.
    const PAGE_SIZE: &str = "1000";

    /// `timeout` is the most that one call takes, connecting included.
    #[must_use]
    pub fn new(http: reqwest::Client, timeout: Duration) -> Self {
        Self { http, timeout }
    }

    /// The most that one call takes.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// When a call that starts now must be over.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Opens a connection that the next call finds open, where there is TLS to be
    /// spoken: a HEAD of the root without the key, whatever comes of it. It asks
    /// for nobody and counts against no key's allowance.
    ///
    /// It goes on by itself: who waits for it may stop to.
    #[must_use]
    pub fn warm(&self, access: &Access) -> JoinHandle<()> {
        let (http, root, timeout) = (self.http.clone(), access.root.clone(), self.timeout);
        tokio::spawn(async move {
            if root.scheme() == "https" {
                let _ = http.head(root).timeout(timeout).send().await;
            }
        })
    }

    /// `GET /customers/{uuid}`. `None`: a 404, or an answer without a record.
    ///
    /// # Errors
    /// See [`NoviError`].
    pub async fn customer(&self, access: &Access, id: MemberId, by: Instant) -> Result<Option<Record>, NoviError> {
        let url = access.url(&["customers", &id.to_text()], &[]);
        match self.get(access, url, Self::RECORD_LIMIT, by).await? {
            None => Ok(None),
            Some(body) => Record::parse(&body).map_err(|_| NoviError::InvalidResponse),
        }
    }

    /// `GET /groups/{guid}/members`, from the row at index `offset` on. `None`: a 404.
    ///
    /// # Errors
    /// See [`NoviError`].
    pub async fn group_page(
        &self,
        access: &Access,
        group: Uuid,
        offset: usize,
        by: Instant,
    ) -> Result<Option<Page>, NoviError> {
        let group = group.hyphenated().to_string();
        let query = [("pageSize", Self::PAGE_SIZE), ("offset", &offset.to_string())];
        let url = access.url(&["groups", &group, "members"], &query);
        match self.get(access, url, Self::PAGE_LIMIT, by).await? {
            None => Ok(None),
            Some(body) => Page::parse(&body).map(Some).ok_or(NoviError::InvalidResponse),
        }
    }

    /// `GET /members`, from the record at index `offset` on. `None`: a 404. Not
    /// every key is allowed it.
    ///
    /// # Errors
    /// See [`NoviError`].
    pub async fn records(&self, access: &Access, offset: usize, by: Instant) -> Result<Option<Records>, NoviError> {
        let query = [("pageSize", Self::PAGE_SIZE), ("offset", &offset.to_string())];
        match self.get(access, access.url(&["members"], &query), Self::RECORDS_LIMIT, by).await? {
            None => Ok(None),
            Some(body) => Records::parse(&body).map(Some).ok_or(NoviError::InvalidResponse),
        }
    }

    async fn get(
        &self,
        access: &Access,
        url: Url,
        limit: usize,
        by: Instant,
    ) -> Result<Option<bytes::Bytes>, NoviError> {
        let left = by.saturating_duration_since(Instant::now());
        let response = self
            .http
            .get(url)
            .header(header::AUTHORIZATION, access.authorization.clone())
            .header(header::ACCEPT, "application/json")
            .timeout(left)
            .send()
            .await
            .map_err(|error| {
                tracing::debug!(cause = http_client::cause(&error), "no answer from Novi");
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
    /// Reads `{"TotalCount":n,"Results":[…]}` or a bare array.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Counted {
            total_count: u64,
            results: Vec<Row>,
        }
        /// Both spellings of the field's name occur.
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
    /// Reads `{"TotalCount":n,"Results":[…]}`.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Envelope {
            total_count: u64,
            results: Vec<Row>,
        }
        let Envelope { total_count, results } = serde_json::from_slice(body).ok()?;
        Some(Self { total: total_count, rows: results })
    }
}

crate::unprintable!(Access, Page, Records);

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "39120341-3c8e-47b0-9a40-45b5659b2044";

    #[test]
    fn a_page_comes_in_two_envelopes() {
        let rows = format!(
            r#"[{{"UniqueID":"{ID}","Name":"x"}},{{"UniqueID":"","UniqueId":"{ID}"}},{{"Name":"no id"}},{{"UniqueID":""}}]"#
        );
        let bare = Page::parse(rows.as_bytes()).unwrap();
        assert_eq!((bare.total, bare.rows.len()), (None, 4));
        assert_eq!(bare.rows.iter().flatten().count(), 2);
        let counted = Page::parse(format!(r#"{{"TotalCount":9,"Results":{rows}}}"#).as_bytes()).unwrap();
        assert_eq!((counted.total, counted.rows.len()), (Some(9), 4));
        for wrong in
            ["", "{}", "null", "[1]", r#"{"TotalCount":1}"#, r#"{"Results":[]}"#, r#"{"TotalCount":-1,"Results":[]}"#]
        {
            assert!(Page::parse(wrong.as_bytes()).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_url_is_built_below_the_root_however_it_ends() {
        for root in ["https://www.example.org/api", "https://www.example.org/api/"] {
            let access = Access { root: Url::parse(root).unwrap(), authorization: HeaderValue::from_static("x") };
            assert_eq!(
                access.url(&["customers", ID], &[]).as_str(),
                format!("https://www.example.org/api/customers/{ID}")
            );
        }
    }
}
