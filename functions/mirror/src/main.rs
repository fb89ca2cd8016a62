//! The process that Lambda starts. [`mirror`] contains the function itself.

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    shared::telemetry::exit_with("mirror", mirror::run().await)
}
