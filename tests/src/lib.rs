//! Test harness of the end-to-end tests and the sandbox behind `make run`: the
//! functions under AWS's own Runtime Interface Emulator, a real Mailman core,
//! and a simulated Novi, the only part that can't be run for real.
//!
//! Every server listens on its own free port and stops when its owner is dropped.

pub mod api;
pub mod aws;
pub mod clock;
pub mod directory;
pub mod faults;
pub mod fork_server;
pub mod function;
pub mod gateway;
pub mod gzip;
pub mod harness;
pub mod http_proxy;
pub mod http_server;
pub mod lists;
pub mod mailman;
pub mod mariadb;
pub mod model;
pub mod nginx;
pub mod novi;
pub mod postgres;
pub mod privacy;
pub mod process;
pub mod redis;
pub mod runtime;
pub mod shared_servers;
pub mod tcp_proxy;
pub mod wire;

use std::path::PathBuf;

/// Returns the root directory of the workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    package.parent().map_or(package.clone(), PathBuf::from)
}

/// Returns an HTTP client for tests and the sandbox.
///
/// # Panics
/// Panics if the client can't be built, which would fail every test.
#[must_use]
pub fn http() -> reqwest::Client {
    shared::http_client::install_tls_provider();
    let tls = shared::http_client::tls_config(&[]).expect("no extra certificates are added");
    shared::http_client::build(tls).expect("the functions' own client configuration is valid")
}
