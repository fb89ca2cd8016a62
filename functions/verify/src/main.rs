//! Verification, a Lambda function behind API Gateway: is this uuid a member?
//!
//! Event → [`gate`] → cache → Novi → record → identity → answer. The fellowship
//! is anonymous: an answer tells a caller who may ask, and nobody else, what
//! Novi knows; an outage never looks like "not a member".

mod event;
mod gate;
mod openapi;
mod parameters;
mod problem;
mod routes;
mod settings;
mod verification;

use std::process::ExitCode;
use std::time::Duration;

use lambda_http::{Adapter, LambdaEvent, service_fn};
use shared::cache::MemberCache;
use shared::foundation::Foundation;
use shared::parameters::SourceError;
use shared::settings::Env;
use shared::telemetry::{self, Phase};
use tower::ServiceExt;
use tower::util::BoxService;

use crate::event::Event;
use crate::parameters::Parameters;
use crate::routes::App;
use crate::settings::Settings;
use crate::verification::Verifier;

/// A cache that is not reached by then is reached behind the first requests.
const CACHE_WARM_UP: Duration = Duration::from_secs(1);
/// The same of Novi. Most first requests are answered out of the cache, so little is waited for.
const NOVI_WARM_UP: Duration = Duration::from_millis(50);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // A task, because the runtime wakes its tasks from memory, and its outermost future by way of the kernel.
    // What it says of a panic would quote the panic.
    let run = tokio::spawn(run()).await.unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked; the log says where")));
    telemetry::exit_with("verify", run)
}

async fn run() -> anyhow::Result<()> {
    let env = Env::process();
    telemetry::install(&env)?;
    let phase = Phase::start("settings");
    let Settings { common, cache, novi_max_per_minute, require_active, cors } = Settings::from_env(&env)?;
    drop(phase);
    let cache_timeout = common.cache_timeout;
    let foundation = Foundation::<Parameters>::lay(common)?;
    let cache = MemberCache::new(cache, novi_max_per_minute, foundation.connector(), cache_timeout);
    let Foundation { novi, parameters, .. } = foundation;
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
    let http = Adapter::from(service_fn(move |request| app.clone().handle(request)));
    let service = BoxService::new(http.map_request(|event: LambdaEvent<Event>| {
        let (Event(request), context) = event.into_parts();
        LambdaEvent::new(request, context)
    }));
    lambda_http::lambda_runtime::run(service).await.map_err(anyhow::Error::from_boxed)
}
