//! The one HTTP client, its trust, and what both upstreams need of an answer.

use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;

/// A socket that has been idle for longer may be dead: NAT gateways forget a
/// flow after 350 s, servers close theirs after a minute or so.
const IDLE: Duration = Duration::from_secs(50);

/// Makes aws-lc the process's TLS provider. Call once, before any client is built.
pub fn install_tls_provider() {
    // An error only says that a provider is there already, and there is but this one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// The TLS configuration of every outgoing connection: Mozilla's roots, which
/// are compiled in, and the authorities of `EXTRA_CA_CERTS`.
///
/// # Errors
/// A certificate that cannot be an authority.
pub fn tls_config(extra: &[CertificateDer<'static>]) -> Result<ClientConfig, rustls::Error> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    for certificate in extra {
        roots.add(certificate.clone())?;
    }
    Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

/// Builds the client: no redirects (a key must not follow one), TLS 1.2 or
/// later, short-lived idle connections. Time-outs are each caller's own.
///
/// # Errors
/// As reqwest has them; none is expected.
pub fn build(tls: ClientConfig) -> Result<reqwest::Client, reqwest::Error> {
    #[expect(clippy::disallowed_methods, reason = "this is the one constructor")]
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .pool_idle_timeout(IDLE)
        .tcp_nodelay(true)
        .user_agent(concat!("novi-bridge/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// Why a body could not be read whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// It is longer than the limit.
    #[error("the body is too large")]
    TooLarge,
    /// The connection ended, or time did, before the body did.
    #[error("the body was cut off")]
    Truncated,
}

/// Reads a body of at most `limit` bytes. What is longer is refused while it
/// arrives, not after.
///
/// # Errors
/// See [`BodyError`].
pub async fn read_body(mut response: reqwest::Response, limit: usize) -> Result<Bytes, BodyError> {
    let announced = response.content_length().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    if announced > limit {
        return Err(BodyError::TooLarge);
    }
    let mut body = BytesMut::with_capacity(announced);
    while let Some(chunk) = response.chunk().await.map_err(|_| BodyError::Truncated)? {
        if body.len() + chunk.len() > limit {
            return Err(BodyError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// `Retry-After` in seconds: a number as it is, an HTTP date counted from
/// `now`, `None` where there is none or it says nothing.
#[must_use]
pub fn retry_after(headers: &http::HeaderMap, now: SystemTime) -> Option<u64> {
    let value = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(seconds);
    }
    let date = httpdate::parse_http_date(value).ok()?;
    // A part of a second left is a second to wait.
    Some(date.duration_since(now).map_or(0, |left| left.as_secs() + u64::from(left.subsec_nanos() > 0)))
}

/// Why a request got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportError {
    /// No connection: refused, unresolved, or TLS failed.
    Connect,
    /// A connection was there and ended before the answer's head came.
    Closed,
    /// Time ran out.
    Timeout,
    /// The answer's body ended before its end.
    Truncated,
}

/// Sorts a transport error. Its own text is dropped: it quotes the URL.
#[must_use]
pub fn transport_error(error: &reqwest::Error) -> TransportError {
    if error.is_timeout() {
        TransportError::Timeout
    } else if error.is_connect() {
        TransportError::Connect
    } else {
        TransportError::Closed
    }
}

/// The cause of a transport error in two words that name nobody, for the log.
#[must_use]
pub fn cause(error: &reqwest::Error) -> &'static str {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = source {
        if e.is::<rustls::Error>() {
            return "TLS failed";
        }
        if let Some(io) = e.downcast_ref::<std::io::Error>() {
            // A TLS error travels inside an io::Error of kind InvalidData.
            if io.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
                return "TLS failed";
            }
            match io.kind() {
                std::io::ErrorKind::ConnectionRefused => return "connection refused",
                std::io::ErrorKind::ConnectionReset => return "connection reset",
                std::io::ErrorKind::UnexpectedEof => return "connection closed",
                _ => {}
            }
        }
        source = e.source();
    }
    match transport_error(error) {
        TransportError::Timeout => "timed out",
        TransportError::Connect => "not connected",
        TransportError::Closed | TransportError::Truncated => "connection closed",
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
    fn retry_after_is_seconds_however_it_is_said() {
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
        assert_eq!(retry_after(&http::HeaderMap::new(), now), None);
        let between = now - Duration::from_millis(500);
        assert_eq!(retry_after(&headers(&date(90)), between), Some(91));
    }
}
