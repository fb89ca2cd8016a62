//! What the end-to-end tests and the sandbox behind `make run` stand on: the
//! functions under AWS's own Runtime Interface Emulator, a real Mailman core,
//! and a simulated Novi, which is the one part that cannot be run.
//!
//! Every server has a free port of its own and is stopped with its owner.

pub mod api;
pub mod aws;
pub mod directory;
pub mod faults;
pub mod function;
pub mod gateway;
pub mod harness;
pub mod http_proxy;
pub mod http_server;
pub mod mailman;
pub mod model;
pub mod novi;
pub mod postgres;
pub mod privacy;
pub mod process;
pub mod redis;
pub mod runtime;
pub mod tcp_proxy;

use std::path::PathBuf;

/// The workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map_or(here.clone(), PathBuf::from)
}

/// An HTTP client for tests and the sandbox.
///
/// # Panics
/// Where the client cannot be built, which would fail every test.
#[must_use]
pub fn http() -> reqwest::Client {
    shared::http_client::install_tls_provider();
    let tls = shared::http_client::tls_config(&[]).expect("no certificates of our own are added");
    shared::http_client::build(tls).expect("the product's own client can be built")
}
