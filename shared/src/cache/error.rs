//! Classifies errors of the Redis client.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use super::connection::Connection;
use crate::network_error::network_cause;

/// The cause of a failed attempt. It is always fixed text, because the client's own messages may quote data.
pub(super) type Cause = &'static str;

/// The code of an error that means that a connection or a script is missing a right.
pub(super) const NO_PERMISSION: Cause = "NOPERM";
/// The code of a key with a value of another type, which says nothing about the server.
pub(super) const WRONG_TYPE: Cause = "WRONGTYPE";
/// The code of an error that has none of its own, and whose text isn't known.
const OTHER: Cause = "ERR";

/// The codes that servers use.
const CODES: [Cause; 24] = [
    "READONLY",
    NO_PERMISSION,
    "OOM",
    "MISCONF",
    "NOREPLICAS",
    "LOADING",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "BUSY",
    "BUSYKEY",
    "UNKILLABLE",
    "NOSCRIPT",
    "NOAUTH",
    "WRONGPASS",
    "DENIED",
    "MOVED",
    "ASK",
    "TRYAGAIN",
    "CROSSSLOT",
    "EXECABORT",
    "INPROG",
    "NOPROTO",
    WRONG_TYPE,
    OTHER,
];

/// Parts of the text of errors without a code of their own, in lower case, and what is logged for them.
const TEXTS: [(&str, Cause); 6] = [
    ("max number of clients", "ERR max number of clients reached"),
    ("unknown command", "ERR unknown command"),
    // In a script.
    ("the user executing the script", NO_PERMISSION),
    ("acl failure", NO_PERMISSION),
    ("no permissions", NO_PERMISSION),
    // The cluster client wraps this one.
    ("protected mode", "DENIED"),
];

/// Returns the server's own error code, if the error came from the server.
///
/// Errors that share the code `ERR` are told apart by their text. Up to Redis 6, an error in a script has the code
/// `ERR`, and its own is in the text.
pub(super) fn server_code(error: &RedisError) -> Option<Cause> {
    let known = |word: &str| CODES.into_iter().find(|code| *code == word);
    let code = error.code().map(|code| known(code).unwrap_or(OTHER));
    if code.is_some_and(|code| code != OTHER) {
        return code;
    }
    let detail = error.detail().unwrap_or_default();
    let nested = || detail.split_ascii_whitespace().filter_map(|word| word.strip_prefix('-')).find_map(known);
    let text = || {
        let detail = detail.to_ascii_lowercase();
        TEXTS.into_iter().find(|(text, _)| detail.contains(text)).map(|(_, code)| code)
    };
    nested().or_else(text).or(code)
}

/// Returns true if the password was rejected. The cluster client only says so in the error's detail.
pub(super) fn is_auth_failure(error: &RedisError) -> bool {
    let detail = error.detail().unwrap_or_default().to_ascii_lowercase();
    error.kind() == ErrorKind::AuthenticationFailed
        || matches!(error.code(), Some("WRONGPASS" | "NOAUTH" | NO_PERMISSION))
        || ["authentication failed", "wrongpass", "noauth"].iter().any(|sign| detail.contains(sign))
}

/// Returns true if the response exceeded the size limit of a connection.
fn is_too_large(error: &RedisError) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    source.is_some_and(|io| io.kind() == std::io::ErrorKind::InvalidData && io.get_ref().is_none())
}

/// Describes an error without quoting any of its text, except for the server's error code.
pub(super) fn cause(error: &RedisError) -> Cause {
    if let Some(code) = server_code(error) {
        code
    } else if error.kind() == ErrorKind::ClusterConnectionNotFound {
        "cluster has no reachable node with slots"
    } else if error.is_connection_refusal() {
        "connection refused"
    } else if error.is_timeout() {
        "connection timed out"
    } else if error.is_connection_dropped() {
        "connection closed"
    } else if is_too_large(error) {
        "response too large"
    } else if error.is_io_error() {
        network_cause(error).unwrap_or("connection failed")
    } else {
        "unexpected response"
    }
}

/// Returns true if the server redirects to another node of a cluster.
pub(super) fn is_redirect(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask))
}

/// Returns true if the server is a replica. If it was the primary, its name may lead to the new one.
pub(super) fn is_replica(error: &RedisError) -> bool {
    server_code(error) == Some("READONLY")
}

/// Returns true if a new connection may help.
pub(super) fn is_fatal(error: &RedisError, connection: &Connection) -> bool {
    match error.kind() {
        // The cluster client follows redirects itself, so its slot map must be stale.
        _ if is_redirect(error) => matches!(connection, Connection::Cluster(_)),
        ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::UnexpectedReturnType => {
            // The password was accepted when connecting, so the server must have lost the login.
            matches!(error.code(), Some("NOAUTH" | "WRONGPASS"))
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::*;

    fn error(reply: &str) -> RedisError {
        let value = redis::parse_redis_value(format!("-{reply}\r\n").as_bytes()).unwrap();
        Value::extract_error(value).unwrap_err()
    }

    #[test]
    fn each_error_has_the_code_that_the_server_gave_it() {
        for (reply, expected) in [
            ("READONLY You can't write against a read only replica.", "READONLY"),
            ("READONLY You can't write against a read only replica. script: 9c00, on @user_script:1.", "READONLY"),
            (
                "ERR Error running script (call to f_9c00): @user_script:1: @user_script: 1: -READONLY You can't",
                "READONLY",
            ),
            ("NOPERM this user has no permissions to run the 'eval' command", "NOPERM"),
            ("NOPERM User bridge has no permissions to run the 'eval' command", "NOPERM"),
            ("ERR The user executing the script can't run this command or subcommand script: 9c00", "NOPERM"),
            ("ERR ACL failure in script: User bridge has no permissions to run the 'set' command", "NOPERM"),
            ("OOM command not allowed when used memory > 'maxmemory'.", "OOM"),
            ("ERR Error running script (call to f_9c00): @user_script:1: -OOM command not allowed when", "OOM"),
            ("NOSCRIPT No matching script. Please use EVAL.", "NOSCRIPT"),
            ("ERR unknown command 'EVAL', with args beginning with: 'local left = re' '2'", "ERR unknown command"),
            ("ERR unknown command `EVAL`, with args beginning with: `-OOM`,", "ERR unknown command"),
            ("CLUSTERDOWN Hash slot not served", "CLUSTERDOWN"),
            ("LOADING Redis is loading the dataset in memory", "LOADING"),
            ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", "MASTERDOWN"),
            ("MISCONF Redis is configured to save RDB snapshots", "MISCONF"),
            ("NOREPLICAS Not enough good replicas to write. script: 9c00", "NOREPLICAS"),
            ("ERR max number of clients reached", "ERR max number of clients reached"),
            ("ERR max number of clients + cluster connections reached", "ERR max number of clients reached"),
            ("DENIED Redis is running in protected mode because", "DENIED"),
            ("WRONGTYPE Operation against a key holding the wrong kind of value", "WRONGTYPE"),
            ("MOVED 1 127.0.0.1:1", "MOVED"),
            ("ERR ada@example.org", "ERR"),
            ("ADA@EXAMPLE.ORG", "ERR"),
        ] {
            assert_eq!(server_code(&error(reply)), Some(expected), "{reply}");
            assert_eq!(cause(&error(reply)), expected, "{reply}");
        }
    }

    #[test]
    fn error_of_the_network_has_no_code() {
        for kind in
            [std::io::ErrorKind::ConnectionRefused, std::io::ErrorKind::TimedOut, std::io::ErrorKind::BrokenPipe]
        {
            assert_eq!(server_code(&std::io::Error::from(kind).into()), None);
        }
        assert_eq!(server_code(&(ErrorKind::UnexpectedReturnType, "not a number").into()), None);
    }

    #[test]
    fn wrapped_error_of_the_cluster_client_keeps_its_code() {
        let wrapped = |reply: &str| {
            RedisError::from((ErrorKind::Io, "Failed to create initial connections", error(reply).to_string()))
        };
        assert_eq!(cause(&wrapped("ERR max number of clients reached")), "ERR max number of clients reached");
        assert!(is_auth_failure(&wrapped("WRONGPASS invalid username-password pair or user is disabled.")));
    }
}
