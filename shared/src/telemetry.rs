//! The log: one JSON object (or text) per line, only from our own crates.
//!
//! Events of other crates are dropped at every level, because some of them
//! contain data that must never be logged. The Lambda runtime logs the whole
//! event at TRACE, including keys and UUIDs. HTTP clients log URLs.

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

/// Installs the log, configured by Lambda's advanced logging controls
/// (`AWS_LAMBDA_LOG_FORMAT`, `AWS_LAMBDA_LOG_LEVEL`), and a panic hook that
/// logs the location of a panic and never its message. Then logs the version,
/// before anything else can fail, so that a log excerpt says what it is of.
///
/// # Errors
/// Returns an error if a setting does not parse.
pub fn install(env: &Env) -> Result<(), SettingError> {
    let json = env.parsed("AWS_LAMBDA_LOG_FORMAT", true, "JSON or Text (default JSON)", |value| {
        match value.to_ascii_lowercase().as_str() {
            "json" => Some(true),
            "text" => Some(false),
            _ => None,
        }
    })?;
    let level = env.parsed(
        "AWS_LAMBDA_LOG_LEVEL",
        Level::INFO,
        "TRACE, DEBUG, INFO, WARN, ERROR or FATAL (default INFO)",
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
        // CloudWatch adds a timestamp to each line, and doesn't interpret color codes.
        registry().with(lines.without_time().with_ansi(false).with_filter(ours)).init();
    }
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location();
        tracing::error!(
            target: "shared::telemetry",
            file = location.map(std::panic::Location::file),
            line = location.map(std::panic::Location::line),
            "panicked"
        );
    }));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "started");
    Ok(())
}

/// A timer for one part of the init phase. It logs the duration at DEBUG when it is dropped.
pub struct Phase {
    name: &'static str,
    started: Instant,
}

impl Phase {
    /// Starts a timer with this name.
    #[must_use]
    pub fn start(name: &'static str) -> Self {
        Self { name, started: Instant::now() }
    }
}

impl Drop for Phase {
    fn drop(&mut self) {
        tracing::debug!(
            phase = self.name,
            duration_ms = self.started.elapsed().as_secs_f64() * 1e3,
            "init phase completed"
        );
    }
}

/// Logs the number of live tasks at DEBUG, at the end of an invocation. A number
/// that keeps growing reveals tasks that never end.
pub fn count_tasks() {
    if tracing::enabled!(Level::DEBUG) {
        tracing::debug!(tasks = Handle::current().metrics().num_alive_tasks(), "live tasks");
    }
}

/// Returns the exit code for the result of a function's `main`, and prints an
/// error as one line to standard error. It does not use the log, because setting
/// that up may be what failed.
pub fn exit_with<E: std::fmt::Display>(function: &str, result: Result<(), E>) -> std::process::ExitCode {
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the log may be what failed to start")]
            {
                eprintln!("{function} failed to start: {error}");
            }
            std::process::ExitCode::FAILURE
        }
    }
}
