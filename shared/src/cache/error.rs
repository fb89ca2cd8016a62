//! Classifies errors of the Redis client.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use super::connection::Connection;

/// The cause of a failed attempt. It is always fixed text, because the client's own messages may quote data.
pub(super) type Cause = &'static str;

/// Returns true if the password was rejected. The cluster client only says so in the error's detail.
pub(super) fn is_auth_failure(error: &RedisError) -> bool {
    let detail = error.detail().unwrap_or_default().to_ascii_lowercase();
    error.kind() == ErrorKind::AuthenticationFailed
        || matches!(error.code(), Some("WRONGPASS" | "NOAUTH" | "NOPERM"))
        || ["authentication failed", "wrongpass", "noauth"].iter().any(|sign| detail.contains(sign))
}

/// Returns true if the response exceeded the size limit of a connection.
fn is_too_large(error: &RedisError) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    source.is_some_and(|io| io.kind() == std::io::ErrorKind::InvalidData && io.get_ref().is_none())
}

/// Describes an error without quoting any of its text.
pub(super) fn cause(error: &RedisError) -> Cause {
    if error.is_connection_refusal() {
        "connection refused"
    } else if error.is_timeout() {
        "connection timed out"
    } else if error.is_connection_dropped() {
        "connection closed"
    } else if is_too_large(error) {
        "response too large"
    } else if error.is_io_error() {
        "connection failed: unknown host name or TLS error"
    } else {
        "unexpected response"
    }
}

/// Returns true if the server redirects to another node of a cluster.
pub(super) fn is_redirect(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask))
}

/// Returns true if a new connection may help.
pub(super) fn is_fatal(error: &RedisError, connection: &Connection) -> bool {
    match error.kind() {
        // The node was the primary and is a replica now. The name leads to the new primary.
        ErrorKind::Server(ServerErrorKind::ReadOnly) => true,
        // The cluster client follows redirects itself, so its slot map must be stale.
        _ if is_redirect(error) && matches!(connection, Connection::Cluster(_)) => true,
        _ if is_redirect(error) => {
            tracing::warn!("cache is a cluster; set CACHE_CLUSTER=true");
            false
        }
        ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::UnexpectedReturnType => {
            // The password was accepted when connecting, so the server must have lost the login.
            matches!(error.code(), Some("NOAUTH" | "WRONGPASS"))
        }
        _ => true,
    }
}
