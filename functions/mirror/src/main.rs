//! The process that Lambda starts; [`mirror`] says what it does.

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    shared::telemetry::exit_with("mirror", mirror::run().await)
}
