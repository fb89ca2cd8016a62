//! The HTTP client, its TLS configuration, and helpers for responses and transport errors.

use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;

use crate::network_error::{network_cause, sources};

/// The maximum time that a connection is kept idle. After a longer time it may be
/// dead: NAT gateways drop idle flows after 350 s, and servers close idle
/// connections after about a minute.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(50);

/// The maximum time to connect, TLS included, over all addresses of a host. Each address gets an equal share, so that one
/// that swallows packets leaves time for the next.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Makes aws-lc the TLS provider of the process. Call this once, before building a client.
pub fn install_tls_provider() {
    // The only possible error is that a provider is already installed, and this project uses no other one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Returns the TLS configuration of every outgoing connection. It trusts
/// Mozilla's roots, which are compiled in, and the authorities of `EXTRA_CA_CERTS`.
///
/// # Errors
/// Fails if a certificate is not valid as an authority.
pub fn tls_config(extra: &[CertificateDer<'static>]) -> Result<ClientConfig, rustls::Error> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    for certificate in extra {
        roots.add(certificate.clone())?;
    }
    Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

/// The maximum number of headers of a response. hyper's own maximum is 100, which proxies exceed.
const MAX_HEADERS: usize = 256;

/// Builds the client, with TLS 1.2 or later and a short idle timeout. It does
/// not follow redirects, because a redirect must not receive the API key. It
/// reads folded header lines, which RFC 9112 5.2 requires of a client.
/// Connecting is limited to 2 s. Callers set the timeouts of requests.
///
/// # Errors
/// Returns reqwest's error. None is expected.
pub fn build(tls: ClientConfig) -> Result<reqwest::Client, reqwest::Error> {
    build_for(tls, CONNECT_TIMEOUT)
}

/// Builds the client like [`build`], for requests of at most `timeout`. Connecting is limited to that time as well, so
/// that a first address that swallows packets leaves a part of it for the next.
///
/// # Errors
/// Returns reqwest's error. None is expected.
pub fn build_for(tls: ClientConfig, timeout: Duration) -> Result<reqwest::Client, reqwest::Error> {
    #[expect(clippy::disallowed_methods, reason = "the only constructor")]
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(timeout.min(CONNECT_TIMEOUT))
        .pool_idle_timeout(IDLE_TIMEOUT)
        .tcp_nodelay(true)
        .http1_allow_obsolete_multiline_headers_in_responses(true)
        .http1_max_headers(MAX_HEADERS)
        .user_agent(concat!("novi-bridge/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// An error that prevents a body from being read completely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The body is longer than the limit.
    #[error("the body is too large")]
    TooLarge,
    /// The connection closed, or the timeout elapsed, before the end of the body.
    #[error("the body is truncated")]
    Truncated,
    /// The body arrived, but not in the encoding that its headers announce.
    #[error("the body is malformed")]
    Malformed,
}

/// Reads a body of at most `limit` bytes. A longer one is rejected while it
/// arrives, not afterwards.
///
/// # Errors
/// See [`BodyError`].
pub async fn read_body(mut response: reqwest::Response, limit: usize) -> Result<Bytes, BodyError> {
    let announced = response.content_length().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    if announced > limit {
        return Err(BodyError::TooLarge);
    }
    let mut body = BytesMut::with_capacity(announced);
    while let Some(chunk) = response.chunk().await.map_err(|error| body_error(&error))? {
        if body.len() + chunk.len() > limit {
            return Err(BodyError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

fn body_error(error: &reqwest::Error) -> BodyError {
    // hyper reports an invalid chunk in these two ways, and a body that ends too early in others. TLS errors have one of
    // these kinds, too.
    let is_malformed = |io: &std::io::Error| {
        use std::io::ErrorKind::{InvalidData, InvalidInput};
        matches!(io.kind(), InvalidData | InvalidInput) && io.get_ref().is_none_or(|inner| !inner.is::<rustls::Error>())
    };
    let is_malformed = sources(error).any(|e| e.downcast_ref().is_some_and(is_malformed));
    if is_malformed && !error.is_timeout() { BodyError::Malformed } else { BodyError::Truncated }
}

/// Returns the seconds of `Retry-After`. An HTTP date is converted relative to
/// `now`. Returns `None` if the header is absent or invalid.
#[must_use]
pub fn retry_after(headers: &http::HeaderMap, now: SystemTime) -> Option<u64> {
    let value = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        return Some(value.parse().unwrap_or(u64::MAX));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).map_or(0, ceil_seconds))
}

/// Rounds a wait up to whole seconds.
#[must_use]
pub fn ceil_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// An error that leaves a request without a complete response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportError {
    /// Connecting failed: it was refused, the name was not resolved, or TLS failed.
    Connect,
    /// The connection closed before the response headers arrived.
    Closed,
    /// The timeout elapsed.
    Timeout,
    /// The connection ended in the middle of the response body.
    Truncated,
    /// A response arrived that is not HTTP.
    Malformed,
}

/// Classifies a transport error. Its text is dropped, because it quotes the URL.
#[must_use]
pub fn transport_error(error: &reqwest::Error) -> TransportError {
    // A timeout while connecting is both, and then no request was sent.
    if error.is_connect() {
        TransportError::Connect
    } else if error.is_timeout() {
        TransportError::Timeout
    } else if sources(error).any(|e| e.downcast_ref().is_some_and(hyper::Error::is_parse)) {
        TransportError::Malformed
    } else {
        TransportError::Closed
    }
}

/// Returns a short, PII-free description of a transport error, for the log.
#[must_use]
pub fn cause(error: &reqwest::Error) -> &'static str {
    if let Some(cause) = network_cause(error) {
        return cause;
    }
    match transport_error(error) {
        TransportError::Timeout => "timed out",
        TransportError::Connect if error.is_timeout() => "connecting timed out",
        TransportError::Connect => "connecting failed",
        TransportError::Closed | TransportError::Truncated => "connection closed",
        TransportError::Malformed => "the response is not HTTP",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> http::HeaderMap {
        let mut map = http::HeaderMap::new();
        map.insert(http::header::RETRY_AFTER, value.parse().unwrap());
        map
    }

    #[test]
    fn retry_after_is_parsed_from_seconds_and_dates() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let date = |offset: i64| {
            let at = 1_700_000_000_i64 + offset;
            httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(at.unsigned_abs()))
        };
        assert_eq!(retry_after(&headers("17"), now), Some(17));
        assert_eq!(retry_after(&headers(" 17 "), now), Some(17));
        assert_eq!(retry_after(&headers("0"), now), Some(0));
        assert_eq!(retry_after(&headers(&date(90)), now), Some(90));
        assert_eq!(retry_after(&headers(&date(-90)), now), Some(0));
        assert_eq!(retry_after(&headers("soon"), now), None);
        assert_eq!(retry_after(&headers("-3"), now), None);
        assert_eq!(retry_after(&headers("+3"), now), None);
        assert_eq!(retry_after(&headers(""), now), None);
        assert_eq!(retry_after(&headers("18446744073709551615"), now), Some(u64::MAX));
        assert_eq!(retry_after(&headers("99999999999999999999"), now), Some(u64::MAX));
        assert_eq!(retry_after(&http::HeaderMap::new(), now), None);
        let between = now - Duration::from_millis(500);
        assert_eq!(retry_after(&headers(&date(90)), between), Some(91));
    }
}
