//! ElastiCache: where a cache is, and its IAM tokens.

use std::pin::Pin;
use std::time::{Duration, SystemTime};

use aws_credential_types::provider::ProvideCredentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningParams, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_types::SdkConfig;
use futures_util::{Stream, stream};
use redis::{BasicAuth, ErrorKind, RedisResult, StreamingCredentialsProvider};
use tokio::time::Instant;

use super::connection::Endpoint;
use super::error::Cause;

/// What is known of an ElastiCache cache.
#[derive(Default)]
pub(super) struct Found {
    /// Where it is, as far as it was ever found.
    pub(super) endpoint: Option<Endpoint>,
    /// When ElastiCache was last asked.
    asked: Option<Instant>,
}

impl Found {
    /// Whether ElastiCache may be asked, which is not for every request of every
    /// instance to do.
    pub(super) fn may_ask(&mut self) -> bool {
        const PAUSE: Duration = Duration::from_secs(1);
        let may = self.asked.is_none_or(|asked| asked.elapsed() >= PAUSE);
        if may {
            self.asked = Some(Instant::now());
        }
        may
    }
}

/// Signs a token for each connection, those that a cluster's client makes by
/// itself included, and another before ElastiCache cuts the connection, which
/// it does 12 hours after the last one.
#[derive(Clone)]
pub(super) struct Tokens {
    pub(super) config: SdkConfig,
    pub(super) cache: String,
    pub(super) user: String,
    pub(super) is_serverless: bool,
}

impl StreamingCredentialsProvider for Tokens {
    fn subscribe(&self) -> Pin<Box<dyn Stream<Item = RedisResult<BasicAuth>> + Send + 'static>> {
        const RENEWAL: Duration = Duration::from_secs(6 * 3_600);
        let tokens = stream::unfold((self.clone(), Duration::ZERO), |(signer, pause)| async move {
            tokio::time::sleep(pause).await;
            let Tokens { config, cache, user, is_serverless } = &signer;
            let token = elasticache_token(config, cache, user, *is_serverless).await;
            let login = token
                .map(|token| BasicAuth::new(user.clone(), token))
                .map_err(|cause| (ErrorKind::AuthenticationFailed, cause).into());
            Some((login, (signer, RENEWAL)))
        });
        Box::pin(tokens)
    }
}

/// Asks ElastiCache for the endpoint: that of a serverless cache by this name,
/// else that of a replication group by this id.
pub(super) async fn discover(client: &aws_sdk_elasticache::Client, id: &str) -> Result<Endpoint, Cause> {
    const NOT_ASKED: Cause = "ElastiCache's API cannot be asked for the endpoint";
    const NOT_FOUND: Cause = "ElastiCache knows no serverless cache and no replication group by CACHE_ID";
    const NOT_READY: Cause = "ElastiCache gives no endpoint for CACHE_ID yet";
    let located = |endpoint: Option<&aws_sdk_elasticache::types::Endpoint>| {
        let endpoint = endpoint?;
        Some((endpoint.address()?.to_owned(), u16::try_from(endpoint.port()?).ok()?))
    };
    match client.describe_serverless_caches().serverless_cache_name(id).send().await {
        Ok(answer) => {
            if let Some(cache) = answer.serverless_caches().first() {
                let (host, port) = located(cache.endpoint()).ok_or(NOT_READY)?;
                // A serverless cache always speaks TLS and the cluster's protocol.
                return Ok(Endpoint { host, port, tls: true, cluster: true, serverless: true, db: 0 });
            }
        }
        Err(error) => {
            let error = error.into_service_error();
            // A name that no serverless cache can have may still be a group's.
            if !error.is_serverless_cache_not_found_fault() && !error.is_invalid_parameter_value_exception() {
                return Err(NOT_ASKED);
            }
        }
    }
    let answer = client.describe_replication_groups().replication_group_id(id).send().await.map_err(|error| {
        if error.into_service_error().is_replication_group_not_found_fault() { NOT_FOUND } else { NOT_ASKED }
    })?;
    let group = answer.replication_groups().first().ok_or(NOT_FOUND)?;
    let cluster = group.cluster_enabled().unwrap_or(false);
    let endpoint = if cluster {
        group.configuration_endpoint()
    } else {
        group.node_groups().first().and_then(|nodes| nodes.primary_endpoint())
    };
    let (host, port) = located(endpoint).ok_or(NOT_READY)?;
    let tls = group.transit_encryption_enabled().unwrap_or(false);
    Ok(Endpoint { host, port, tls, cluster, serverless: false, db: 0 })
}

/// An ElastiCache IAM token for `user`: a request to the cache that is signed
/// for 15 minutes and never sent, without its scheme.
///
/// The format is ElastiCache's own; see "Authenticating with IAM" in its user
/// guide. A serverless cache is named as such in the query.
///
/// # Errors
/// What is missing: credentials, a region, or a signable name.
async fn elasticache_token(
    config: &SdkConfig,
    cache: &str,
    user: &str,
    is_serverless: bool,
) -> Result<String, &'static str> {
    const LIFE: Duration = Duration::from_secs(900);
    let region = config.region().ok_or("no AWS region is configured")?;
    let provider = config.credentials_provider().ok_or("no AWS credentials are configured")?;
    let identity = provider.provide_credentials().await.map_err(|_| "the AWS credentials cannot be read")?.into();
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(LIFE);
    let signing = v4::SigningParams::builder()
        .identity(&identity)
        .region(region.as_ref())
        .name("elasticache")
        .time(SystemTime::now())
        .settings(settings)
        .build()
        .map_err(|_| "the token cannot be signed")?;
    let mut url = url::Url::parse(&format!("http://{}/", cache.to_ascii_lowercase()))
        .map_err(|_| "CACHE_ID is no name of a cache")?;
    url.query_pairs_mut().append_pair("Action", "connect").append_pair("User", user);
    if is_serverless {
        url.query_pairs_mut().append_pair("ResourceType", "ServerlessCache");
    }
    let request = SignableRequest::new("GET", url.as_str(), std::iter::empty(), SignableBody::Bytes(&[]))
        .map_err(|_| "the token cannot be signed")?;
    let (instructions, _) =
        sign(request, &SigningParams::V4(signing)).map_err(|_| "the token cannot be signed")?.into_parts();
    let mut signed = http::Request::builder().uri(url.as_str()).body(()).map_err(|_| "the token cannot be signed")?;
    instructions.apply_to_request_http1x(&mut signed);
    Ok(signed.uri().to_string().trim_start_matches("http://").to_owned())
}

crate::unprintable!(Tokens);
