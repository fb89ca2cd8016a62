//! The configuration of AWS clients. They use this project's single HTTP
//! client, so there is one TLS stack and one set of trusted certificate
//! authorities, including `EXTRA_CA_CERTS`.

use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_async::rt::sleep::{AsyncSleep, Sleep};
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
/// The maximum number of attempts. SSM allows 40 calls a second for a whole account, which is fewer than the instances
/// that may start within one.
const MAX_ATTEMPTS: u32 = 4;
/// The maximum of the first random pause between attempts, which doubles. The pauses together take at most 1.4 s, so
/// that the attempts fit into the operation's time if each is rejected at once.
const INITIAL_BACKOFF: Duration = Duration::from_millis(200);
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
        .sleep_impl(AwakeSleep)
        .time_source(SystemTimeSource::new())
        .retry_config(RetryConfig::standard().with_max_attempts(MAX_ATTEMPTS).with_initial_backoff(INITIAL_BACKOFF))
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

/// Sleeps that count hardly any time during which Lambda has frozen the instance. The SDK takes its timeouts from them.
///
/// An operation in the background may begin in one invocation and go on in the next, hours later. If the clock runs
/// during a freeze, a plain sleep would end at once after it, and with it an attempt whose response has long arrived.
/// A call that takes a little longer than its invocation would then fail each time. In steps, a freeze counts as at
/// most one step. If the clock stops during a freeze, it counts for nothing.
///
/// In both cases an attempt whose connection died meanwhile ends after [`ATTEMPT_TIMEOUT`] of running time, and the
/// operation after [`OPERATION_TIMEOUT`]. They are bounds on the time during which requests run, not on the time of day.
#[derive(Debug)]
struct AwakeSleep;

impl AwakeSleep {
    const STEP: Duration = Duration::from_millis(100);
}

impl AsyncSleep for AwakeSleep {
    fn sleep(&self, duration: Duration) -> Sleep {
        Sleep::new(async move {
            let mut left = duration;
            while !left.is_zero() {
                let step = left.min(Self::STEP);
                tokio::time::sleep(step).await;
                left -= step;
            }
        })
    }
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

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::time::{Instant, advance};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn freeze_counts_as_at_most_one_step_of_a_sleep() {
        for frozen in [Duration::ZERO, Duration::from_secs(3_600)] {
            let mut sleep = AwakeSleep.sleep(ATTEMPT_TIMEOUT);
            assert!((&mut sleep).now_or_never().is_none());
            advance(frozen).await;
            let thawed = Instant::now();
            sleep.await;
            let left = ATTEMPT_TIMEOUT.saturating_sub(thawed.elapsed());
            assert!(left <= AwakeSleep::STEP, "{left:?} of it were skipped after {frozen:?}");
        }
    }
}
