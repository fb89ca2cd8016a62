//! What an error of the Redis client means.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use super::connection::Connection;

/// What ends a try; every cause is fixed text.
pub(super) type Cause = &'static str;

/// Whether the password was refused. A cluster's client tells it in the detail alone.
pub(super) fn is_refusal(error: &RedisError) -> bool {
    let detail = error.detail().unwrap_or_default().to_ascii_lowercase();
    error.kind() == ErrorKind::AuthenticationFailed
        || matches!(error.code(), Some("WRONGPASS" | "NOAUTH" | "NOPERM"))
        || ["authentication failed", "wrongpass", "noauth"].iter().any(|sign| detail.contains(sign))
}

/// Whether more came in answer than any answer has.
fn is_endless(error: &RedisError) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    source.is_some_and(|io| io.kind() == std::io::ErrorKind::InvalidData && io.get_ref().is_none())
}

/// A cause in words that quote nothing.
pub(super) fn cause(error: &RedisError) -> Cause {
    if error.is_connection_refusal() {
        "connection refused"
    } else if error.is_timeout() {
        "no connection in time"
    } else if error.is_connection_dropped() {
        "connection closed"
    } else if is_endless(error) {
        "an answer without end"
    } else if error.is_io_error() {
        "no connection: the name is unknown, or TLS failed"
    } else {
        "an answer that makes no sense"
    }
}

/// Whether a cluster says that the key is on another of its nodes.
pub(super) fn is_elsewhere(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask))
}

/// Whether another connection may do better.
pub(super) fn is_fatal(error: &RedisError, connection: &Connection) -> bool {
    match error.kind() {
        // A replica that was the primary: the primary is elsewhere now.
        ErrorKind::Server(ServerErrorKind::ReadOnly) => true,
        // A cluster's client follows these by itself: it has lost its way.
        _ if is_elsewhere(error) && matches!(connection, Connection::Cluster(_)) => true,
        _ if is_elsewhere(error) => {
            tracing::warn!("the cache is a cluster: set CACHE_CLUSTER=true");
            false
        }
        ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::UnexpectedReturnType => {
            // What asks for a password that was given when connecting has forgotten it.
            matches!(error.code(), Some("NOAUTH" | "WRONGPASS"))
        }
        _ => true,
    }
}
