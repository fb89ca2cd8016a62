//! ElastiCache: discovery of a cache's endpoint, and IAM authentication.

use std::pin::Pin;
use std::time::{Duration, SystemTime};

use aws_credential_types::provider::ProvideCredentials;
use aws_sdk_elasticache::error::SdkError;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningParams, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_types::SdkConfig;
use futures_util::{Stream, stream};
use redis::{BasicAuth, ErrorKind, RedisResult, StreamingCredentialsProvider};
use tokio::time::Instant;

use super::connection::Endpoint;
use super::error::Cause;

/// The state of endpoint discovery.
#[derive(Default)]
pub(super) struct Discovery {
    /// The endpoint that was found last.
    pub(super) endpoint: Option<Endpoint>,
    /// When ElastiCache's API was last called.
    called_at: Option<Instant>,
}

impl Discovery {
    /// Takes the right to call ElastiCache's API, at most once a second: not every request of every instance may.
    pub(super) fn may_call(&mut self) -> bool {
        const INTERVAL: Duration = Duration::from_secs(1);
        let may_call = self.called_at.is_none_or(|at| at.elapsed() >= INTERVAL);
        if may_call {
            self.called_at = Some(Instant::now());
        }
        may_call
    }
}

/// Signs IAM tokens.
///
/// Each connection gets its own token, including those that the cluster client makes itself, and a new one every 6
/// hours, because ElastiCache closes a connection 12 hours after its last token.
#[derive(Clone)]
pub(super) struct IamTokens {
    pub(super) config: SdkConfig,
    pub(super) cache: String,
    pub(super) user: String,
    pub(super) is_serverless: bool,
}

impl StreamingCredentialsProvider for IamTokens {
    fn subscribe(&self) -> Pin<Box<dyn Stream<Item = RedisResult<BasicAuth>> + Send + 'static>> {
        const RENEWAL: Duration = Duration::from_secs(6 * 3_600);
        let tokens = stream::unfold((self.clone(), Duration::ZERO), |(signer, delay)| async move {
            tokio::time::sleep(delay).await;
            let login = signer
                .token()
                .await
                .map(|token| BasicAuth::new(signer.user.clone(), token))
                .map_err(|cause| (ErrorKind::AuthenticationFailed, cause).into());
            Some((login, (signer, RENEWAL)))
        });
        Box::pin(tokens)
    }
}

impl IamTokens {
    /// Returns a token: a presigned request to the cache, valid for 15 minutes, never sent, and without its scheme.
    ///
    /// The format is ElastiCache's own. See "Authenticating with IAM" in its user guide. A serverless cache is named as
    /// such in the query.
    ///
    /// # Errors
    /// Fails if credentials, a region or a valid cache name are missing.
    async fn token(&self) -> Result<String, Cause> {
        const LIFETIME: Duration = Duration::from_secs(900);
        const NOT_SIGNED: Cause = "signing the token failed";
        let region = self.config.region().ok_or("no AWS region is configured")?;
        let provider = self.config.credentials_provider().ok_or("no AWS credentials are configured")?;
        let identity = provider.provide_credentials().await.map_err(|_| "reading the AWS credentials failed")?.into();
        let mut settings = SigningSettings::default();
        settings.signature_location = SignatureLocation::QueryParams;
        settings.expires_in = Some(LIFETIME);
        let signing = v4::SigningParams::builder()
            .identity(&identity)
            .region(region.as_ref())
            .name("elasticache")
            .time(SystemTime::now())
            .settings(settings)
            .build()
            .map_err(|_| NOT_SIGNED)?;
        let mut url = url::Url::parse(&format!("http://{}/", self.cache.to_ascii_lowercase()))
            .map_err(|_| "CACHE_ID is not a valid cache name")?;
        url.query_pairs_mut().append_pair("Action", "connect").append_pair("User", &self.user);
        if self.is_serverless {
            url.query_pairs_mut().append_pair("ResourceType", "ServerlessCache");
        }
        let request = SignableRequest::new("GET", url.as_str(), std::iter::empty(), SignableBody::Bytes(&[]))
            .map_err(|_| NOT_SIGNED)?;
        let (instructions, _) = sign(request, &SigningParams::V4(signing)).map_err(|_| NOT_SIGNED)?.into_parts();
        let mut signed = http::Request::builder().uri(url.as_str()).body(()).map_err(|_| NOT_SIGNED)?;
        instructions.apply_to_request_http1x(&mut signed);
        Ok(signed.uri().to_string().trim_start_matches("http://").to_owned())
    }
}

/// Looks up the endpoint of the serverless cache named `id`, or of the replication group with this id.
pub(super) async fn discover(client: &aws_sdk_elasticache::Client, id: &str) -> Result<Endpoint, Cause> {
    const CALL_FAILED: Cause = "calling ElastiCache's API for the endpoint failed";
    const NOT_FOUND: Cause = "CACHE_ID is neither a serverless cache nor a replication group in ElastiCache";
    const NOT_READY: Cause = "ElastiCache has no endpoint for CACHE_ID yet";
    let host_and_port = |endpoint: Option<&aws_sdk_elasticache::types::Endpoint>| {
        let endpoint = endpoint?;
        Some((endpoint.address()?.to_owned(), u16::try_from(endpoint.port()?).ok()?))
    };
    let is_serverless_unknown = match client.describe_serverless_caches().serverless_cache_name(id).send().await {
        Ok(response) => {
            if let Some(cache) = response.serverless_caches().first() {
                let (host, port) = host_and_port(cache.endpoint()).ok_or(NOT_READY)?;
                // A serverless cache always uses TLS and cluster mode.
                return Ok(Endpoint { host, port, tls: true, cluster: true, serverless: true, db: 0 });
            }
            true
        }
        // The id may be a replication group's, whatever the error. A name may be invalid for a serverless cache, a policy
        // may only allow the other call, and not every region has this one.
        Err(SdkError::ServiceError(error)) => {
            error.err().is_serverless_cache_not_found_fault() || error.err().is_invalid_parameter_value_exception()
        }
        Err(_) => return Err(CALL_FAILED),
    };
    let response = client.describe_replication_groups().replication_group_id(id).send().await.map_err(|error| {
        let is_unknown = error.into_service_error().is_replication_group_not_found_fault();
        if is_unknown && is_serverless_unknown { NOT_FOUND } else { CALL_FAILED }
    })?;
    let group = response.replication_groups().first().ok_or(NOT_FOUND)?;
    let cluster = group.cluster_enabled().unwrap_or(false);
    let endpoint = if cluster {
        group.configuration_endpoint()
    } else {
        group.node_groups().first().and_then(|nodes| nodes.primary_endpoint())
    };
    let (host, port) = host_and_port(endpoint).ok_or(NOT_READY)?;
    let tls = group.transit_encryption_enabled().unwrap_or(false);
    Ok(Endpoint { host, port, tls, cluster, serverless: false, db: 0 })
}

crate::unprintable!(IamTokens);
