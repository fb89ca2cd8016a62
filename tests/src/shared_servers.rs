//! Servers that tests share. `make test` starts them once, through the program
//! `shared_servers`, and tests find them in the environment. Without them, for
//! example under a plain `cargo test`, each test starts its own, which takes longer.
//!
//! Tests that share a server can't see each other's data: each has a parameter path of
//! its own in moto, a database of its own in PostgreSQL, and a Mailman of its own,
//! which is only started faster. A test that kills, freezes or locks a server, or that
//! depends on its name, starts its own.

use std::path::PathBuf;

/// The variable with the URL of moto.
pub const MOTO_URL: &str = "TEST_MOTO_URL";
/// The variable with the port of PostgreSQL.
pub const POSTGRES_PORT: &str = "TEST_POSTGRES_PORT";
/// The variable with the socket of the fork server that starts Mailman.
pub const MAILMAN_FORK_SERVER: &str = "TEST_MAILMAN_FORK_SERVER";
/// The variable with the SQLite database of a new Mailman, for copies of it.
pub const MAILMAN_DATABASE: &str = "TEST_MAILMAN_DATABASE";

/// Returns the path in a variable, if the servers are shared.
#[must_use]
pub fn path(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from)
}

/// Returns the text in a variable, if the servers are shared.
#[must_use]
pub fn text(variable: &str) -> Option<String> {
    std::env::var(variable).ok()
}
