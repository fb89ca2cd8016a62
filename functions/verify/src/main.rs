//! The process that Lambda starts. See [`verify`] for a description.

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // Spawned, because Tokio wakes tasks in memory but wakes the root future through the kernel.
    // The join error is dropped, because it would quote the panic's message.
    let run = tokio::spawn(verify::run()).await;
    shared::telemetry::exit_with(
        "verify",
        run.unwrap_or_else(|_| Err(anyhow::anyhow!("the function panicked. The log has the source location"))),
    )
}
