//! Verification: a Lambda function behind API Gateway that tells whether a UUID belongs to a member.
//!
//! Event → gate → cache → Novi → record → identity → response. The fellowship is anonymous, so only an
//! authorized caller learns what Novi knows about a UUID. An outage never looks like "not a member".

mod app;
mod deadline;
mod event;
mod flights;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gate;
mod openapi;
mod parameters;
mod path;
mod problem;
mod routes;
mod settings;
mod verification;

use std::time::Duration;

use shared::cache::MemberCache;
use shared::parameters::SourceError;
use shared::services::Services;
use shared::settings::Env;
use shared::telemetry::{self, Phase};

use crate::app::{App, service};
use crate::flights::Flights;
use crate::parameters::Parameters;
use crate::settings::Settings;
use crate::verification::Verifier;

/// The maximum time that init waits for the cache. After that, the connection completes in the background.
const CACHE_WARM_UP: Duration = Duration::from_secs(1);
/// The maximum time that init waits for Novi. It is short, because the cache answers most first requests.
const NOVI_WARM_UP: Duration = Duration::from_millis(50);

/// Starts the function, and serves invocations until Lambda stops it.
///
/// # Errors
/// Returns an error with a message for the operator if startup fails.
pub async fn run() -> anyhow::Result<()> {
    let env = Env::process();
    telemetry::install(&env)?;
    let phase = Phase::start("settings");
    let Settings { common, cache, novi_limits, member_rules, cors, base_path } = Settings::from_env(&env)?;
    drop(phase);
    let cache_timeout = common.cache_timeout;
    let services = Services::<Parameters>::new(common)?;
    let cache = MemberCache::new(cache, novi_limits, services.connector(), cache_timeout);
    let Services { novi, parameters, .. } = services;
    // Lambda gives the init phase a full CPU, so all connections are made now, concurrently.
    let load_parameters_and_connect = async {
        parameters.start().await?;
        if let Ok(parameters) = parameters.get().await {
            let _phase = Phase::start("Novi");
            let _ = tokio::time::timeout(NOVI_WARM_UP, novi.warm(&parameters.novi)).await;
        }
        Ok::<_, SourceError>(())
    };
    let (started, ()) = tokio::join!(load_parameters_and_connect, cache.warm(CACHE_WARM_UP));
    started?;
    env.require_lambda()?;

    let verifier = Verifier { parameters, cache, novi, member_rules, lookups: Flights::new() };
    let app = App::new(verifier, cors, base_path);
    // Handles one invocation at a time, or up to AWS_LAMBDA_MAX_CONCURRENCY on a managed instance.
    lambda_http::lambda_runtime::run_concurrent(service(app)).await.map_err(anyhow::Error::from_boxed)
}
