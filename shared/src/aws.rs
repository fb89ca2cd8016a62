//! The configuration of AWS clients. They use this project's single HTTP
//! client, so there is one TLS stack and one set of trusted certificate
//! authorities, including `EXTRA_CA_CERTS`.

use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_async::rt::sleep::TokioSleep;
use aws_smithy_async::time::SystemTimeSource;
use aws_smithy_runtime_api::client::behavior_version::BehaviorVersion;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use aws_types::SdkConfig;
use aws_types::region::Region;
use aws_types::service_config::{LoadServiceConfig, ServiceConfigKey};

use crate::http_client;
use crate::settings::Env;

/// The maximum time of one operation, including its attempts.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(3);
/// The maximum time of one attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(1_500);
/// The maximum size of a response in bytes. Expected responses are much smaller.
const RESPONSE_LIMIT: usize = 4 << 20;

/// Returns the configuration of every AWS client. It only reads the environment:
/// Lambda sets credentials and region there, and `AWS_ENDPOINT_URL` and the
/// related variables override endpoints, as in every AWS SDK.
///
/// The `aws-config` crate would also try profiles, the metadata service and
/// STS. A function doesn't need those, and they cost binary size and startup time.
#[must_use]
pub fn config(http: reqwest::Client) -> SdkConfig {
    let env = Env::process();
    let is_on = |name| env.text(name).map(|value| value.eq_ignore_ascii_case("true"));
    let mut config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .http_client(SdkHttpClient(http))
        .sleep_impl(TokioSleep::new())
        .time_source(SystemTimeSource::new())
        .retry_config(RetryConfig::standard().with_max_attempts(2).with_initial_backoff(Duration::from_millis(100)))
        .timeout_config(
            TimeoutConfig::builder()
                .operation_timeout(OPERATION_TIMEOUT)
                .operation_attempt_timeout(ATTEMPT_TIMEOUT)
                .build(),
        );
    let region = env.text("AWS_REGION").or_else(|| env.text("AWS_DEFAULT_REGION"));
    config
        .set_region(region.map(Region::new))
        .set_use_fips(is_on("AWS_USE_FIPS_ENDPOINT"))
        .set_use_dual_stack(is_on("AWS_USE_DUALSTACK_ENDPOINT"))
        .set_credentials_provider(credentials(&env).map(SharedCredentialsProvider::new));
    if is_on("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS") != Some(true) {
        config = config.service_config(ServiceEndpoints);
        config.set_endpoint_url(env.text("AWS_ENDPOINT_URL"));
    }
    config.build()
}

fn credentials(env: &Env) -> Option<Credentials> {
    let (id, secret) = (env.text("AWS_ACCESS_KEY_ID")?, env.text("AWS_SECRET_ACCESS_KEY")?);
    Some(Credentials::new(id, secret, env.text("AWS_SESSION_TOKEN"), None, "the environment"))
}

/// The endpoint settings of single services, such as `AWS_ENDPOINT_URL_SSM`.
#[derive(Debug)]
struct ServiceEndpoints;

impl LoadServiceConfig for ServiceEndpoints {
    fn load_config(&self, key: ServiceConfigKey<'_>) -> Option<String> {
        let service = key.service_id().replace(' ', "_").to_ascii_uppercase();
        Env::process().text(&format!("{}_{service}", key.env()))
    }
}

/// An adapter that lets the SDK use our HTTP client.
#[derive(Clone)]
struct SdkHttpClient(reqwest::Client);

impl std::fmt::Debug for SdkHttpClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SdkHttpClient")
    }
}

impl HttpClient for SdkHttpClient {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for SdkHttpClient {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = self.0.clone();
        HttpConnectorFuture::new(async move {
            let request = request.try_into_http1x().map_err(|error| ConnectorError::user(error.into()))?;
            // Requests are small and in memory, not streamed.
            let request = request.map(|body| reqwest::Body::from(body.bytes().unwrap_or_default().to_vec()));
            let request = reqwest::Request::try_from(request).map_err(|error| ConnectorError::user(error.into()))?;
            let response = client.execute(request).await.map_err(|error| {
                let timed_out = error.is_timeout();
                let error = error.without_url().into();
                if timed_out { ConnectorError::timeout(error) } else { ConnectorError::io(error) }
            })?;
            let (status, headers) = (response.status(), response.headers().clone());
            let body = http_client::read_body(response, RESPONSE_LIMIT).await;
            let body = body.map_err(|error| ConnectorError::io(error.into()))?;
            let mut response = http::Response::new(SdkBody::from(body));
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            HttpResponse::try_from(response).map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}
