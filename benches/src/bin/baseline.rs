//! What a function costs that does next to nothing: the baseline under the product.
//!
//! A trivial function of lambda_http. `/get` also asks a Redis for one value,
//! `/novi/…` an HTTP server for one body, over the same connections as the
//! product's, and both say how many nanoseconds that took.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use lambda_http::http::Uri;
use lambda_http::tower::util::BoxService;
use lambda_http::{Adapter, Error, Request, service_fn};
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo, TlsCertificates};

/// What is asked, where the variables say that there is something to ask.
struct Upstreams {
    redis: Option<MultiplexedConnection>,
    http: reqwest::Client,
    novi: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    // As a task, like the product: the least should not be made dearer than it is.
    tokio::spawn(run()).await?
}

async fn run() -> Result<(), Error> {
    shared::http_client::install_tls_provider();
    let text = |name: &str| std::env::var(name).ok();
    let authorities = text("EXTRA_CA_CERTS").map(std::fs::read).transpose()?;
    let redis = match text("CACHE_URL") {
        None => None,
        Some(url) => Some(connect(&url, authorities.clone(), text("CACHE_PASSWORD")).await?),
    };
    let extra = match &authorities {
        None => Vec::new(),
        Some(pem) => {
            use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject};
            CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?
        }
    };
    let http = shared::http_client::build(shared::http_client::tls_config(&extra)?)?;
    let upstreams = Arc::new(Upstreams { redis, http, novi: text("NOVI").unwrap_or_default() });
    let function = move |request: Request| {
        let upstreams = Arc::clone(&upstreams);
        // A text that is no number: who asks says so.
        async move { Ok::<_, Infallible>(answer(&upstreams, request.uri()).await.unwrap_or_else(|error| error.to_string())) }
    };
    lambda_http::lambda_runtime::run(BoxService::new(Adapter::from(service_fn(function)))).await
}

async fn connect(url: &str, authorities: Option<Vec<u8>>, password: Option<String>) -> Result<MultiplexedConnection> {
    let info = url.into_connection_info()?;
    let mut settings = info.redis_settings().clone().set_skip_set_lib_name();
    if let Some(password) = password {
        settings = settings.set_password(password);
    }
    let info = info.set_redis_settings(settings).set_tcp_settings(TcpSettings::default().set_nodelay(true));
    let client = Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert: authorities })?;
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
}

async fn answer(upstreams: &Upstreams, uri: &Uri) -> Result<String> {
    let started = Instant::now();
    match uri.path() {
        "/get" => {
            let mut redis = upstreams.redis.clone().context("there is no CACHE_URL")?;
            let value: Vec<u8> = redis::cmd("GET").arg("idaa:novi_member:baseline").query_async(&mut redis).await?;
            anyhow::ensure!(!value.is_empty(), "there is nothing to get");
        }
        path if path.starts_with("/novi/") => {
            let url = format!("{}{}", upstreams.novi, path.trim_start_matches("/novi"));
            let body = upstreams.http.get(url).send().await?.bytes().await?;
            anyhow::ensure!(!body.is_empty(), "there is nothing to read");
        }
        _ => {}
    }
    Ok(started.elapsed().as_nanos().to_string())
}
