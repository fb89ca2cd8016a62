//! Servers that tests share. `make test` starts them once, through the program
//! `shared_servers`, and tests find them in the environment. Without them, for
//! example under a plain `cargo test`, each test starts its own, which takes longer.
//!
//! Tests that share a server can't see each other's data: each has a parameter path of
//! its own in moto, a database of its own in PostgreSQL, and a Mailman of its own,
//! which is only started faster, as is the AWS CLI. A test that kills, freezes or locks
//! a server, or that depends on its name, starts its own.

use std::path::PathBuf;

use crate::function::venv;
use crate::workspace;

/// The variable with the URL of moto.
pub const MOTO_URL: &str = "TEST_MOTO_URL";
/// The variable with the port of PostgreSQL.
pub const POSTGRES_PORT: &str = "TEST_POSTGRES_PORT";
/// The variable with the directory of the fork servers' sockets, each of which has the name of its program.
pub const FORK_SERVERS: &str = "TEST_FORK_SERVERS";
/// The programs with a fork server: Mailman's runner, the AWS CLI, and `tests/process_template.py`.
pub const FORKED_PROGRAMS: [&str; 3] = ["runner", "aws", "process_template"];
/// The variable with the SQLite database of a new Mailman, for copies of it.
pub const MAILMAN_DATABASE: &str = "TEST_MAILMAN_DATABASE";

/// Returns the path in a variable, if the servers are shared.
#[must_use]
pub fn path(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from)
}

/// Returns the socket of a program's fork server, if the servers are shared.
#[must_use]
pub fn fork_server(program: &str) -> Option<PathBuf> {
    path(FORK_SERVERS).map(|directory| directory.join(program))
}

/// Returns the command line of a Python program, without its arguments: through its fork server if the servers are shared.
#[must_use]
pub fn python_program(program: &str, otherwise: &[PathBuf]) -> Vec<PathBuf> {
    match fork_server(program) {
        // Without the site module, it starts in a few milliseconds.
        Some(socket) => {
            let client = workspace().join("tests/fork_client.py");
            vec![venv().join("bin/python"), "-I".into(), "-S".into(), client, socket]
        }
        None => otherwise.to_vec(),
    }
}

/// Returns the text in a variable, if the servers are shared.
#[must_use]
pub fn text(variable: &str) -> Option<String> {
    std::env::var(variable).ok()
}
