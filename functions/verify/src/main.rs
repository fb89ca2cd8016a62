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
use shared::settings::Env;
use shared::telemetry;
use tower::ServiceExt;

use crate::event::Event;
use crate::parameters::Parameters;
use crate::routes::App;
use crate::settings::Settings;
use crate::verification::Verifier;

/// A cache that is not reached by then is reached behind the first requests.
const CACHE_WARM_UP: Duration = Duration::from_secs(1);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    telemetry::exit_with("verify", run().await)
}

async fn run() -> anyhow::Result<()> {
    let env = Env::process();
    telemetry::install(&env)?;
    let Settings { common, cache, novi_max_per_minute, require_active, cors } = Settings::from_env(&env)?;
    let cache_timeout = common.cache_timeout;
    let foundation = Foundation::<Parameters>::lay(common).await?;
    let cache = MemberCache::new(cache, novi_max_per_minute, foundation.connector().await, cache_timeout);
    // Lambda gives the init phase a full CPU: what takes the network is done now, side by side.
    let (started, ()) = tokio::join!(foundation.parameters.start(), cache.warm(CACHE_WARM_UP));
    started?;
    env.require_lambda()?;

    let Foundation { novi, parameters, .. } = foundation;
    let app = App::new(Verifier { parameters, cache, novi, require_active }, cors);
    let http = Adapter::from(service_fn(move |request| app.clone().handle(request)));
    let service = http.map_request(|event: LambdaEvent<Event>| {
        let (Event(request), context) = event.into_parts();
        LambdaEvent::new(request, context)
    });
    lambda_http::lambda_runtime::run(service).await.map_err(anyhow::Error::from_boxed)
}
