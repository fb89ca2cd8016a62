//! The process that Lambda starts; [`verify`] says what it does.

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // A task, because the runtime wakes its tasks from memory, and its outermost future by way of the kernel.
    // What it says of a panic would quote the panic.
    let run = tokio::spawn(verify::run()).await;
    shared::telemetry::exit_with(
        "verify",
        run.unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked; the log says where"))),
    )
}
