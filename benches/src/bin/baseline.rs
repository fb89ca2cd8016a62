//! A minimal function. Its cost is the baseline of the product.
//!
//! It only uses lambda_http. `/get` also reads one value from Redis, and `/novi/…` reads one body from an HTTP server,
//! over connections like the product's. Both return the nanoseconds that this took.

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

/// The upstreams, if the environment variables name them.
struct Upstreams {
    redis: Option<MultiplexedConnection>,
    http: reqwest::Client,
    novi: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    // Spawned, like the product, so that the baseline isn't slower than necessary.
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
        // The benchmark reports an error if the body is not a number.
        async move { Ok::<_, Infallible>(handle(&upstreams, request.uri()).await.unwrap_or_else(|error| error.to_string())) }
    };
    lambda_http::lambda_runtime::run(BoxService::new(Adapter::from(service_fn(function)))).await
}

/// Connects to Redis.
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

/// Handles a request. Returns the nanoseconds that it took.
async fn handle(upstreams: &Upstreams, uri: &Uri) -> Result<String> {
    let started = Instant::now();
    match uri.path() {
        "/get" => {
            let mut redis = upstreams.redis.clone().context("CACHE_URL is not set")?;
            let value: Vec<u8> = redis::cmd("GET").arg("idaa:novi_member:baseline").query_async(&mut redis).await?;
            anyhow::ensure!(!value.is_empty(), "expected a value from Redis, found an empty one");
        }
        path if path.starts_with("/novi/") => {
            let url = format!("{}{}", upstreams.novi, path.trim_start_matches("/novi"));
            let body = upstreams.http.get(url).send().await?.bytes().await?;
            anyhow::ensure!(!body.is_empty(), "expected a body from Novi, found an empty one");
        }
        _ => {}
    }
    Ok(started.elapsed().as_nanos().to_string())
}
