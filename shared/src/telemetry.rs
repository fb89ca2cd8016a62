//! The log: one JSON object a line (or text), from our own crates alone.
//!
//! Other crates are kept out at every level, because some of them log what
//! must never be logged: the Lambda runtime prints the whole event at TRACE,
//! keys and uuids included; HTTP clients print URLs.

use std::time::Instant;

use tokio::runtime::Handle;
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, registry};

use crate::metrics;
use crate::settings::{Env, SettingError};

/// The only crates whose events reach the log.
const TARGETS: [&str; 3] = ["verify", "mirror", "shared"];

/// Installs the log as Lambda's advanced logging controls ask for it
/// (`AWS_LAMBDA_LOG_FORMAT`, `AWS_LAMBDA_LOG_LEVEL`) and a panic hook that
/// tells where a panic was and never what it said.
///
/// # Errors
/// A setting that does not parse.
pub fn install(env: &Env) -> Result<(), SettingError> {
    let json =
        env.parsed("AWS_LAMBDA_LOG_FORMAT", true, "it must be JSON or Text (default JSON)", |value| {
            match value.to_ascii_lowercase().as_str() {
                "json" => Some(true),
                "text" => Some(false),
                _ => None,
            }
        })?;
    let level = env.parsed(
        "AWS_LAMBDA_LOG_LEVEL",
        Level::INFO,
        "it must be TRACE, DEBUG, INFO, WARN, ERROR or FATAL (default INFO)",
        |value| match value.to_ascii_uppercase().as_str() {
            "FATAL" => Some(Level::ERROR),
            other => other.parse().ok(),
        },
    )?;
    metrics::install(env);
    let ours = Targets::new().with_targets(TARGETS.map(|target| (target, level)));
    let lines = tracing_subscriber::fmt::layer();
    if json {
        registry().with(lines.json().flatten_event(true).with_span_list(false).with_filter(ours)).init();
    } else {
        // CloudWatch stamps each line, and shows colour codes as they are.
        registry().with(lines.without_time().with_ansi(false).with_filter(ours)).init();
    }
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location();
        tracing::error!(
            target: "shared::telemetry",
            file = place.map(std::panic::Location::file),
            line = place.map(std::panic::Location::line),
            "panicked"
        );
    }));
    Ok(())
}

/// A phase of the init phase, timed: how long it took is logged at DEBUG when
/// this is dropped.
pub struct Phase {
    name: &'static str,
    started: Instant,
}

impl Phase {
    /// Starts one by this name.
    #[must_use]
    pub fn start(name: &'static str) -> Self {
        Self { name, started: Instant::now() }
    }
}

impl Drop for Phase {
    fn drop(&mut self) {
        tracing::debug!(phase = self.name, milliseconds = self.started.elapsed().as_secs_f64() * 1e3, "init");
    }
}

/// Logs at DEBUG how many tasks there are, at the end of an invocation: those
/// that pile up have been forgotten.
pub fn count_tasks() {
    if tracing::enabled!(Level::DEBUG) {
        tracing::debug!(tasks = Handle::current().metrics().num_alive_tasks(), "done");
    }
}

/// Runs a function's `main` and says on one line of standard error what ended
/// it. Used before and around the log, which may be what could not be set up.
pub fn exit_with<E: std::fmt::Display>(function: &str, result: Result<(), E>) -> std::process::ExitCode {
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the log may be what failed to start")]
            {
                eprintln!("{function} cannot start: {error}");
            }
            std::process::ExitCode::FAILURE
        }
    }
}
