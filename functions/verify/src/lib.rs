//! Verification, a Lambda function behind API Gateway: is this uuid a member?
//!
//! Event → [`gate`] → cache → Novi → record → identity → answer. The fellowship
//! is anonymous: an answer tells a caller who may ask, and nobody else, what
//! Novi knows; an outage never looks like "not a member".

mod event;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gate;
mod openapi;
mod parameters;
mod problem;
mod routes;
mod settings;
mod verification;

use std::convert::Infallible;
use std::time::Duration;

use lambda_http::{Adapter, LambdaEvent, service_fn};
use serde::Serialize;
use shared::cache::MemberCache;
use shared::parameters::SourceError;
use shared::services::Services;
use shared::settings::Env;
use shared::telemetry::{self, Phase};
use tower::{Service, ServiceExt};

use crate::event::Event;
use crate::parameters::Parameters;
use crate::routes::App;
use crate::settings::Settings;
use crate::verification::Verifier;

/// A cache that is not reached by then is reached behind the first requests.
const CACHE_WARM_UP: Duration = Duration::from_secs(1);
/// The same of Novi. Most first requests are answered out of the cache, so little is waited for.
const NOVI_WARM_UP: Duration = Duration::from_millis(50);

/// Starts the function, and serves invocations until Lambda ends it.
///
/// # Errors
/// What keeps it from starting, in words for whoever deploys it.
pub async fn run() -> anyhow::Result<()> {
    let env = Env::process();
    telemetry::install(&env)?;
    let phase = Phase::start("settings");
    let Settings { common, cache, novi_max_per_minute, require_active, cors } = Settings::from_env(&env)?;
    drop(phase);
    let cache_timeout = common.cache_timeout;
    let services = Services::<Parameters>::new(common)?;
    let cache = MemberCache::new(cache, novi_max_per_minute, services.connector(), cache_timeout);
    let Services { novi, parameters, .. } = services;
    // Lambda gives the init phase a full CPU: what takes the network is done now, side by side.
    let read_and_reach_novi = async {
        parameters.start().await?;
        if let Ok(parameters) = parameters.get().await {
            let _phase = Phase::start("Novi");
            let _ = tokio::time::timeout(NOVI_WARM_UP, novi.warm(&parameters.novi)).await;
        }
        Ok::<_, SourceError>(())
    };
    let (started, ()) = tokio::join!(read_and_reach_novi, cache.warm(CACHE_WARM_UP));
    started?;
    env.require_lambda()?;

    let app = App::new(Verifier { parameters, cache, novi, require_active }, cors);
    // One at a time, or as many as a managed instance is told to take (AWS_LAMBDA_MAX_CONCURRENCY).
    lambda_http::lambda_runtime::run_concurrent(service(app)).await.map_err(anyhow::Error::from_boxed)
}

/// The app as a function of Lambda's events.
fn service(
    app: App,
) -> impl Service<LambdaEvent<Event>, Response: Serialize + Send, Error = Infallible, Future: Send> + Clone + Send {
    let http = Adapter::from(service_fn(move |request| app.clone().handle(request)));
    http.map_request(|event: LambdaEvent<Event>| {
        let (Event(request), context) = event.into_parts();
        LambdaEvent::new(request, context)
    })
}
