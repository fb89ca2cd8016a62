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
use std::sync::Arc;

use lambda_http::service_fn;
use shared::cache::MemberCache;
use shared::parameters::{ConfigFile, ParameterStore};
use shared::settings::Env;
use shared::{novi, outbound, telemetry};

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

    outbound::install_tls_provider();
    let http = outbound::client(outbound::tls_config(&common.extra_ca_certs)?)?;
    let plain = common.allow_plain_http;
    let parameters = ParameterStore::open(ConfigFile::new(common.config_file), common.parameter_ttl, move |raw| {
        Parameters::read(raw, plain)
    })
    .await?;
    env.require_lambda()?;

    let app = App::new(
        Verifier {
            parameters: Arc::new(parameters),
            cache: MemberCache::in_process(cache, novi_max_per_minute),
            novi: novi::Client::new(http, common.novi_timeout),
            require_active,
        },
        cors,
    );
    lambda_http::run(service_fn(|request| app.clone().handle(request))).await.map_err(anyhow::Error::from_boxed)
}
