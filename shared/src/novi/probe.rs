//! Observes how Novi responds, for the mirror's probe: the status, some headers and the body, not yet classified.

use std::collections::BTreeMap;
use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use tokio::time::Instant;
use url::Url;
use uuid::Uuid;

use super::{
    Access, Client, Customer, Failure, InvalidResponse, NoviError, Page, RETRY_AFTER_SECONDS, Records, is_own_error,
    is_own_not_found, unanswered,
};
use crate::http_client::{self, BodyError, TransportError};
use crate::member::MemberId;

/// A resource of the API.
#[derive(Clone, Copy)]
pub enum Resource {
    /// `GET /customers/{uuid}`.
    Customer(MemberId),
    /// `GET /groups/{guid}/members`, starting with the row at index `offset`.
    GroupPage {
        /// The group.
        group: Uuid,
        /// The index of the first row.
        offset: usize,
    },
    /// The first page of `GET /members`.
    Records,
}

/// A response, as it came.
pub struct Observation {
    /// The status. Redirects are not followed.
    pub status: StatusCode,
    /// The seconds of `Retry-After`, if Novi sent it.
    pub retry_after: Option<u64>,
    /// The headers that announce a rate limit, with lowercase names. A value that isn't made of numbers is blank.
    pub rate_headers: BTreeMap<String, String>,
    /// True if the body is compressed, which was not asked for.
    pub is_compressed: bool,
    /// The body. Empty if it was larger than this client accepts.
    pub body: Bytes,
    /// True if the body was larger than this client accepts.
    pub is_too_large: bool,
}

/// A call without a complete response.
#[derive(Clone, Copy, Debug)]
pub struct Unanswered {
    /// The error.
    pub error: NoviError,
    /// A short description of its cause.
    pub cause: &'static str,
}

impl Access {
    /// Returns the root URL.
    #[must_use]
    pub fn root(&self) -> &Url {
        &self.root
    }
}

impl Client {
    /// Calls a resource once, and returns the response as it came.
    ///
    /// # Errors
    /// Returns [`Unanswered`] if there was no complete response by the deadline.
    pub async fn observe(
        &self,
        access: &Access,
        resource: Resource,
        deadline: Instant,
    ) -> Result<Observation, Unanswered> {
        let response = Self::request(&self.http(), access, resource.url(access), deadline)
            .send()
            .await
            .map_err(|error| Unanswered { error: unanswered(&error), cause: http_client::cause(&error) })?;
        let (status, headers) = (response.status(), response.headers());
        let mut observation = Observation {
            status,
            retry_after: http_client::retry_after(headers, SystemTime::now()),
            rate_headers: rate_headers(headers),
            is_compressed: headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity"),
            body: Bytes::new(),
            is_too_large: false,
        };
        match http_client::read_body(response, resource.limit()).await {
            Ok(body) => observation.body = body,
            Err(BodyError::TooLarge) => observation.is_too_large = true,
            Err(BodyError::Truncated) => {
                let error = NoviError::Unreachable(TransportError::Truncated);
                return Err(Unanswered { error, cause: "the response was truncated" });
            }
            Err(BodyError::Malformed) => {
                let error = NoviError::InvalidResponse(InvalidResponse::Malformed);
                return Err(Unanswered { error, cause: "the response is not HTTP" });
            }
        }
        Ok(observation)
    }
}

impl Resource {
    fn url(self, access: &Access) -> Url {
        match self {
            Self::Customer(id) => access.url(&["customers", &id.to_text()], &[]),
            Self::GroupPage { group, offset } => {
                access.url(&["groups", &group.hyphenated().to_string(), "members"], &page_query(&offset.to_string()))
            }
            Self::Records => access.url(&["members"], &page_query("0")),
        }
    }

    /// Returns the maximum size of the body in bytes.
    fn limit(self) -> usize {
        match self {
            Self::Customer(_) => Client::RECORD_LIMIT,
            Self::GroupPage { .. } => Client::PAGE_LIMIT,
            Self::Records => Client::RECORDS_LIMIT,
        }
    }
}

fn page_query(offset: &str) -> [(&str, &str); 2] {
    [("pageSize", Client::PAGE_SIZE), ("offset", offset)]
}

/// Returns the headers that announce a rate limit.
fn rate_headers(headers: &HeaderMap) -> BTreeMap<String, String> {
    const PREFIXES: [&str; 3] = ["ratelimit", "x-ratelimit", "x-rate-limit"];
    const MAX_LENGTH: usize = 60;
    let is_rate = |name: &str| {
        let is_plain = name.len() <= MAX_LENGTH && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
        is_plain && PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    };
    // A policy such as `600;w=60` has letters too.
    let is_number =
        |value: &str| value.len() <= MAX_LENGTH && value.bytes().all(|b| b.is_ascii_digit() || b" ,;=.w".contains(&b));
    let rate = headers.iter().filter(|(name, _)| is_rate(name.as_str()));
    rate.map(|(name, value)| {
        let value = value.to_str().ok().filter(|value| is_number(value)).unwrap_or_default();
        (name.as_str().to_owned(), value.to_owned())
    })
    .collect()
}

impl Observation {
    /// Returns the error of a call that is retried, waits, or refreshes the parameters. Any other response is one to
    /// look at.
    #[must_use]
    pub fn error(&self) -> Option<Failure> {
        let retry_after =
            self.retry_after.map(|seconds| seconds.clamp(*RETRY_AFTER_SECONDS.start(), *RETRY_AFTER_SECONDS.end()));
        let error = match self.status {
            StatusCode::TOO_MANY_REQUESTS => NoviError::RateLimited(retry_after),
            StatusCode::UNAUTHORIZED => NoviError::CredentialsRejected,
            StatusCode::FORBIDDEN if is_own_error(&self.body) => NoviError::CredentialsRejected,
            StatusCode::FORBIDDEN => NoviError::Blocked,
            status if status.is_server_error() => NoviError::Status(status.as_u16()),
            _ => return None,
        };
        Some(Failure { error, retry_after })
    }

    /// True if this is Novi's own "not found": a 404 with JSON, or without a body.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND && is_own_not_found(&self.body)
    }

    /// Parses the body of a 200 to a call for one record, as both functions do.
    ///
    /// # Errors
    /// Returns the reason if the functions reject the response.
    pub fn customer(&self, id: MemberId) -> Result<Customer, InvalidResponse> {
        if self.is_too_large {
            return Err(InvalidResponse::TooLarge);
        }
        Customer::parse(&self.body, id)
    }

    /// Parses a page of a group's rows, as the mirror does.
    #[must_use]
    pub fn page(&self) -> Option<Page> {
        Page::parse(&self.body)
    }

    /// Parses a page of records, as the mirror does.
    #[must_use]
    pub fn records(&self) -> Option<Records> {
        Records::parse(&self.body)
    }
}

crate::unprintable!(Resource, Observation);
