//! The ledger in S3: reads and conditional writes, with retries.
//!
//! A write whose response is lost may have been carried out, or may still be. It is sent again with the same condition,
//! which succeeds at most once. If it is then refused, or the attempts are used up, the object is read back. Each seal
//! is random, so the object has these bytes only if this write was carried out.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use bytes::Bytes;
use http::{HeaderName, Method, StatusCode, header};
use reqwest::Response;
use shared::http_client::{self, BodyError, TransportError};
use tokio::time::Instant;

use super::outcome::{MAX_SIZE, OPERATION_TIMEOUT, Operation, StoreError, Version};
use super::s3_object::S3Object;
use crate::aws::{error_code, is_word};

/// The maximum time of one attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(4);
/// The part of a write's time that is kept for reading back.
const READ_BACK_TIME: Duration = Duration::from_secs(2);
/// The maximum number of retries.
const MAX_RETRIES: usize = 3;
/// The delay before the first retry, which doubles.
const INITIAL_BACKOFF: Duration = Duration::from_millis(100);
/// The maximum size of the body of an error in bytes.
const MAX_ERROR_BODY: usize = 64 << 10;

/// The ledger in S3.
pub(crate) struct S3Store {
    object: S3Object,
    http: reqwest::Client,
}

impl S3Store {
    pub(super) fn new(object: S3Object, http: reqwest::Client) -> Self {
        Self { object, http }
    }

    pub(super) async fn read(&self) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        let stored = self.get(Instant::now() + OPERATION_TIMEOUT).await;
        stored
            .map(|stored| stored.map(|(bytes, version)| (bytes.into(), version)))
            .map_err(|f| f.error(Operation::Read))
    }

    pub(super) async fn write(&self, bytes: Vec<u8>, expected: Option<&Version>) -> Result<Version, StoreError> {
        let bytes = Bytes::from(bytes);
        let deadline = Instant::now() + OPERATION_TIMEOUT;
        let mut delays = backoff();
        // True if an earlier request may have been carried out, or may still be.
        let mut is_open = false;
        loop {
            let failure = match self.put(&bytes, expected, deadline - READ_BACK_TIME).await {
                Ok(version) => return Ok(version),
                Err(failure) => failure,
            };
            if failure.effect == Effect::Unknown {
                tracing::warn!(cause = failure.cause, "ledger write not answered");
                is_open = true;
            }
            if failure.is_transient && wait(&mut delays, deadline - READ_BACK_TIME).await {
                continue;
            }
            if is_open {
                return self.read_back(&bytes, expected, deadline).await;
            }
            return Err(failure.error(Operation::Write));
        }
    }

    /// Finds out whether a write was carried out.
    async fn read_back(
        &self,
        bytes: &Bytes,
        expected: Option<&Version>,
        deadline: Instant,
    ) -> Result<Version, StoreError> {
        match self.get(deadline).await {
            Ok(Some((stored, version))) if stored == *bytes => Ok(version),
            // The write's condition doesn't hold any longer, so it can't be carried out later either.
            Ok(stored) if stored.as_ref().map(|(_, version)| version) != expected => Err(StoreError::Changed),
            Ok(_) | Err(_) => Err(StoreError::Unknown),
        }
    }

    /// Reads the object until `deadline`.
    async fn get(&self, deadline: Instant) -> Result<Option<(Bytes, Version)>, Failure> {
        let mut delays = backoff();
        loop {
            match self.get_once(deadline).await {
                Err(failure) if failure.is_transient && wait(&mut delays, deadline).await => {}
                result => return result,
            }
        }
    }

    async fn get_once(&self, deadline: Instant) -> Result<Option<(Bytes, Version)>, Failure> {
        let response = match self.send(Method::GET, None, Bytes::new(), deadline).await {
            Err(failure) if failure.effect == Effect::Missing => return Ok(None),
            response => response?,
        };
        let version = version(&response);
        let body = http_client::read_body(response, MAX_SIZE).await.map_err(|error| match error {
            BodyError::TooLarge => Failure { effect: Effect::TooLarge, ..Failure::permanent("", "") },
            BodyError::Truncated => Failure::transient("the response is truncated", Effect::None),
            BodyError::Malformed => Failure::transient("the response is malformed", Effect::None),
        })?;
        Ok(Some((body, version.ok_or_else(no_version)?)))
    }

    async fn put(&self, bytes: &Bytes, expected: Option<&Version>, deadline: Instant) -> Result<Version, Failure> {
        let condition = match expected {
            Some(version) => (header::IF_MATCH, version.as_str()),
            None => (header::IF_NONE_MATCH, "*"),
        };
        match self.send(Method::PUT, Some(condition), bytes.clone(), deadline).await {
            Ok(response) => version(&response).ok_or_else(|| Failure { effect: Effect::Unknown, ..no_version() }),
            // It doesn't exist, so its version isn't the expected one.
            Err(failure) if failure.effect == Effect::Missing => {
                Err(Failure { effect: Effect::ConditionFailed, ..failure })
            }
            Err(failure) => Err(failure),
        }
    }

    /// Sends one request. Returns the response if it is a success.
    async fn send(
        &self,
        method: Method,
        condition: Option<(HeaderName, &str)>,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Response, Failure> {
        let is_put = method == Method::PUT;
        let request = self.object.request(method, condition, body).await;
        let request = request.map_err(|error| Failure::permanent(error.cause, error.remedy))?;
        let request = reqwest::Request::try_from(request.map(reqwest::Body::from));
        let mut request = request.map_err(|_| Failure::permanent("the request is invalid", "Check LEDGER"))?;
        let time_left = deadline.saturating_duration_since(Instant::now());
        *request.timeout_mut() = Some(time_left.min(ATTEMPT_TIMEOUT));
        let response = self.http.execute(request).await.map_err(|error| {
            let is_sent = is_put && http_client::transport_error(&error) != TransportError::Connect;
            let effect = if is_sent { Effect::Unknown } else { Effect::None };
            Failure::transient(http_client::cause(&error), effect)
        })?;
        if response.status().is_success() { Ok(response) } else { Err(Failure::of_response(response, is_put).await) }
    }
}

/// What an attempt that failed did or found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// Nothing was written.
    None,
    /// The object doesn't exist, so nothing was written.
    Missing,
    /// The object has another version, so nothing was written.
    ConditionFailed,
    /// The object is larger than the limit.
    TooLarge,
    /// It isn't known whether the object was written, or will be.
    Unknown,
}

/// An attempt that failed.
#[derive(Debug)]
struct Failure {
    cause: String,
    remedy: String,
    /// True if another attempt may succeed.
    is_transient: bool,
    effect: Effect,
}

impl Failure {
    fn transient(cause: &str, effect: Effect) -> Self {
        let remedy = "The next run tries again".to_owned();
        Self { cause: cause.to_owned(), remedy, is_transient: true, effect }
    }

    fn permanent(cause: &str, remedy: &str) -> Self {
        Self { cause: cause.to_owned(), remedy: remedy.to_owned(), is_transient: false, effect: Effect::None }
    }

    /// Returns the failure that a response reports.
    async fn of_response(response: Response, is_put: bool) -> Self {
        let status = response.status();
        let region = response.headers().get("x-amz-bucket-region").and_then(|value| value.to_str().ok());
        let region = region.filter(|region| is_word(region)).map(str::to_owned);
        let body = http_client::read_body(response, MAX_ERROR_BODY).await.unwrap_or_default();
        let code = error_code(&body);
        let cause = match code {
            Some(code) => format!("S3 responded with {} ({code})", status.as_u16()),
            None => format!("S3 responded with {}", status.as_u16()),
        };
        let permanent = |remedy: &str| Self::permanent(&cause, remedy);
        match (status, code) {
            (StatusCode::PRECONDITION_FAILED, _) => {
                Self { effect: Effect::ConditionFailed, ..permanent("The next run reads the newer version") }
            }
            (StatusCode::NOT_FOUND, Some("NoSuchKey")) => {
                Self { effect: Effect::Missing, ..permanent("The next run writes it anew") }
            }
            (StatusCode::NOT_FOUND, Some("NoSuchBucket")) => {
                permanent("Create the bucket that LEDGER names, or name another one")
            }
            // Another conditional write of the same object was in progress.
            (StatusCode::CONFLICT | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS, _)
            | (StatusCode::BAD_REQUEST, Some("RequestTimeout")) => Self::transient(&cause, Effect::None),
            _ if status.is_server_error() => {
                Self::transient(&cause, if is_put { Effect::Unknown } else { Effect::None })
            }
            _ if region.is_some() && (status.is_redirection() || status == StatusCode::BAD_REQUEST) => {
                let region = region.unwrap_or_default();
                permanent(&format!("The bucket is in {region}. Let LEDGER name a bucket in this function's region"))
            }
            (StatusCode::FORBIDDEN, Some("AccessDenied") | None) => permanent(
                "Allow this function s3:GetObject and s3:PutObject for the object, s3:ListBucket for the bucket, and \
                 the use of its key if KMS encrypts it",
            ),
            (StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST, Some(_)) => {
                permanent("Check the AWS credentials and the clock")
            }
            _ => permanent("Check LEDGER and AWS_ENDPOINT_URL_S3"),
        }
    }

    fn error(self, operation: Operation) -> StoreError {
        match self.effect {
            Effect::ConditionFailed => StoreError::Changed,
            Effect::TooLarge => operation.too_large(),
            Effect::Unknown => StoreError::Unknown,
            Effect::None | Effect::Missing => operation.failed(&self.cause, &self.remedy),
        }
    }
}

fn no_version() -> Failure {
    Failure::permanent("the response has no ETag", "Check LEDGER and AWS_ENDPOINT_URL_S3")
}

fn version(response: &Response) -> Option<Version> {
    let value = response.headers().get(header::ETAG)?.to_str().ok()?;
    (!value.is_empty()).then(|| Version::new(value.to_owned()))
}

fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::default().with_min_delay(INITIAL_BACKOFF).with_max_times(MAX_RETRIES).with_jitter().build()
}

/// Waits before a retry. Returns false if there is none, or no time for it.
async fn wait(delays: &mut ExponentialBackoff, deadline: Instant) -> bool {
    let Some(delay) = delays.next().filter(|delay| Instant::now() + *delay < deadline) else { return false };
    tokio::time::sleep(delay).await;
    true
}

shared::unprintable!(S3Store);

#[cfg(test)]
mod tests;
