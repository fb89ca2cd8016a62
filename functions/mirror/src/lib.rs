//! The mirror, a Lambda function on a schedule: keeps Mailman lists equal to
//! Novi groups.
//!
//! Event → [`read`] everything → [`plan`] (pure) → judge → [`apply`] →
//! [`report`]. A wrong removal is a real loss to a person in recovery; a wrong
//! addition tells strangers who is a member: what is unknown removes nobody,
//! and a plan that looks wrong is not applied.

mod address;
mod apply;
mod directory;
mod event;
mod explain;
#[cfg(fuzzing)]
pub mod fuzzing;
mod lock;
mod mailman;
mod mapping;
mod parameters;
mod plan;
mod read;
mod report;
mod roster;
mod run;
mod settings;

use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::time::SystemTime;

use futures_util::FutureExt;
use lambda_runtime::{Diagnostic, LambdaEvent, service_fn};
use serde_json::Value;
use shared::cache::MemberCache;
use shared::services::Services;
use shared::settings::Env;
use shared::telemetry;
use tokio::time::Instant;
use tracing::Instrument;

use crate::lock::InstanceId;
use crate::parameters::Parameters;
use crate::read::{NoviRateLimiter, ReadOptions};
use crate::report::{ListReport, Report};
use crate::run::Mirror;
use crate::settings::Settings;

/// Starts the function, and serves invocations until Lambda ends it.
///
/// # Errors
/// What keeps it from starting, in words for whoever deploys it.
pub async fn run() -> anyhow::Result<()> {
    let env = Env::process();
    telemetry::install(&env)?;
    let settings = Settings::from_env(&env)?;

    let services = Services::<Parameters>::new(settings.common)?;
    let cache = services.connector().map(|connector| MemberCache::for_mirror(settings.cache, connector));
    let Services { http, novi, parameters, .. } = services;
    parameters.start().await?;
    env.require_lambda()?;

    let mirror = Mirror {
        parameters,
        http,
        novi,
        mailman: settings.mailman,
        rate_limiter: Mutex::new(NoviRateLimiter::new(settings.novi_max_per_second, settings.novi_max_per_minute)),
        read_options: ReadOptions {
            bulk: settings.bulk,
            collect_for_cache: (settings.prewarm_cache && cache.is_some()).then_some(settings.require_active),
        },
        may_write: settings.apply,
        cache,
        instance_id: InstanceId::new(),
    };
    lambda_runtime::run(service_fn(|event| invoke(&mirror, event))).await.map_err(anyhow::Error::from_boxed)
}

/// One invocation: its result is the report, or a function error that holds
/// the report where somebody should look at it.
async fn invoke(mirror: &Mirror, event: LambdaEvent<Value>) -> Result<Report, Diagnostic> {
    let span = tracing::info_span!("run", request_id = event.context.request_id);
    let remaining = event.context.deadline().duration_since(SystemTime::now()).unwrap_or_default();
    let run = mirror.run(&event.payload, Instant::now() + remaining).instrument(span.clone());
    // What a panic says might be personal, and the runtime would send it on.
    let outcome = AssertUnwindSafe(run).catch_unwind().await;
    let _in_span = span.enter();
    telemetry::count_tasks();
    let error = |error_type: &str, error_message: String| {
        tracing::error!(error = error_message, "not run");
        Err(Diagnostic { error_type: error_type.to_owned(), error_message })
    };
    match outcome {
        Err(_) => error("InternalError", "the mirror panicked; the log says where".to_owned()),
        Ok(Err(not_started)) => error("NotStarted", not_started.to_string()),
        Ok(Ok(report)) => {
            tracing::info!(report = report.to_log_json(), "reported");
            report.lists.iter().for_each(ListReport::log);
            // An explanation names addresses, and no error may: it is the answer to a question, and nothing failed.
            if !report.status.is_error() || !report.explain.is_empty() {
                return Ok(report);
            }
            let status = report.status.as_str();
            let json = serde_json::to_string(&report).unwrap_or_default();
            Err(Diagnostic {
                error_type: format!("Mirror.{status}"),
                error_message: format!("the mirror ended {status}: {json}"),
            })
        }
    }
}
