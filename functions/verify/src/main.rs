//! Verification, a Lambda function behind API Gateway: is this uuid a member?
//!
//! Event → [`gate`] → cache → Novi → record → identity → answer. The fellowship
//! is anonymous: an answer tells a caller who may ask, and nobody else, what
//! Novi knows; an outage never looks like "not a member".

mod gate;
mod openapi;
mod parameters;
mod problem;
mod routes;
mod settings;
mod verification;

use std::process::ExitCode;

use lambda_http::service_fn;
use shared::cache::MemberCache;
use shared::foundation::Foundation;
use shared::settings::Env;
use shared::telemetry;

use crate::parameters::Parameters;
use crate::routes::App;
use crate::settings::Settings;
use crate::verification::Verifier;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    telemetry::exit_with("verify", run().await)
}

async fn run() -> anyhow::Result<()> {
    let env = Env::process();
    telemetry::install(&env)?;
    let Settings { common, cache, novi_max_per_minute, require_active, cors } = Settings::from_env(&env)?;

    let Foundation { novi, parameters, .. } = Foundation::lay(common, Parameters::read).await?;
    env.require_lambda()?;

    let app = App::new(
        Verifier { parameters, cache: MemberCache::in_process(cache, novi_max_per_minute), novi, require_active },
        cors,
    );
    lambda_http::run(service_fn(|request| app.clone().handle(request))).await.map_err(anyhow::Error::from_boxed)
}
