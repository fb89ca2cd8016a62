//! The mirror: a scheduled Lambda function that syncs Novi groups to Mailman lists.
//!
//! Event → [`read`] everything → [`plan`] (pure) → judge → [`apply`] → [`report`].
//!
//! A wrong removal is a real loss to a person in recovery, and a wrong addition tells strangers who is a member.
//! Unknown data therefore removes no one, and a plan that looks wrong is not applied.

mod address;
mod apply;
mod aws;
mod directory;
mod event;
mod explain;
mod force;
#[cfg(fuzzing)]
pub mod fuzzing;
mod ledger;
mod lock;
mod mail;
mod mailman;
mod mapping;
mod parameters;
mod plan;
mod probe;
mod read;
mod report;
mod roster;
mod run;
mod settings;
mod show;
mod status;
mod unread;

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

use crate::ledger::LedgerStore;
use crate::lock::InstanceId;
use crate::mail::Mailer;
use crate::parameters::Parameters;
use crate::read::{NoviRateLimiter, ReadOptions};
use crate::report::ListReport;
use crate::run::{Answer, Mirror};
use crate::settings::Settings;

/// Starts the function, and handles invocations until Lambda stops it.
///
/// # Errors
/// Returns an error with a message for the operator if startup fails.
pub async fn run() -> anyhow::Result<()> {
    let env = Env::process();
    telemetry::install(&env)?;
    let settings = Settings::from_env(&env)?;

    let services = Services::<Parameters>::new(settings.common)?;
    let cache =
        services.connector().map(|connector| MemberCache::for_mirror(settings.cache, settings.novi_limits, connector));
    let Services { http, novi, parameters, .. } = services;
    parameters.start().await?;
    env.require_lambda()?;

    let mirror = Mirror {
        parameters,
        ledger: settings.ledger.map(|location| LedgerStore::new(location, http.clone())),
        mailer: settings.mail.map(|mail| Mailer::new(mail, http.clone())),
        novi_rates: settings.novi_limits.share,
        period: settings.period,
        http,
        novi,
        mailman: settings.mailman,
        rate_limiter: Mutex::new(NoviRateLimiter::new(settings.novi_limits.share)),
        read_options: ReadOptions { bulk: settings.bulk, collect_for_cache: settings.prewarm_cache && cache.is_some() },
        member_rules: settings.member_rules,
        may_write: settings.apply,
        cache,
        instance_id: InstanceId::new(),
        open_writes: Mutex::default(),
        unread: Mutex::default(),
    };
    lambda_runtime::run(service_fn(|event| invoke(&mirror, event))).await.map_err(anyhow::Error::from_boxed)
}

/// Handles one invocation. Returns the report, or a function error that contains the report if it needs attention.
async fn invoke(mirror: &Mirror, event: LambdaEvent<Value>) -> Result<Answer, Diagnostic> {
    let span = tracing::info_span!("run", request_id = event.context.request_id);
    let remaining = event.context.deadline().duration_since(SystemTime::now()).unwrap_or_default();
    let run = mirror.handle(&event.payload, Instant::now() + remaining).instrument(span.clone());
    // Caught, because the runtime would return the panic message, which might contain personal data.
    let outcome = AssertUnwindSafe(run).catch_unwind().await;
    let _in_span = span.enter();
    telemetry::count_tasks();
    let diagnostic =
        |error_type: &str, error_message| Err(Diagnostic { error_type: error_type.to_owned(), error_message });
    match outcome {
        Err(_) => {
            let error = "the mirror panicked. The log has the source location".to_owned();
            tracing::error!(error, "run aborted");
            diagnostic("InternalError", error)
        }
        Ok(Err(error)) => {
            tracing::error!(%error, "run failed to start");
            diagnostic("NotStarted", error.to_string())
        }
        // A probe answers a question, whatever it finds. Nothing failed.
        Ok(Ok(Answer::Probe(report))) => {
            report.log();
            Ok(Answer::Probe(report))
        }
        Ok(Ok(Answer::Run(report))) => {
            let mailman = report.mailman_version.map(|version| version.to_string());
            tracing::info!(report = report.to_log_json(), mailman, "run completed");
            report.lists.iter().for_each(ListReport::log);
            if !report.is_error() {
                return Ok(Answer::Run(report));
            }
            let status = report.status.as_str();
            let json = report.to_log_json();
            Err(Diagnostic {
                error_type: format!("Mirror.{status}"),
                error_message: format!("run ended with status {status}: {json}"),
            })
        }
    }
}
