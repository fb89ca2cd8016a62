//! Where the Redis is and what opens it.

use std::pin::Pin;
use std::sync::Mutex;
use std::time::Duration;

use aws_types::SdkConfig;
use futures_util::{Stream, stream};
use redis::cluster::{ClusterClient, ClusterClientBuilder, TlsMode};
use redis::{
    AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, RedisConnectionInfo,
    RedisResult,
};
use redis::{BasicAuth, StreamingCredentialsProvider};
use rustls::ClientConfig;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use super::node::{self, Node};
use super::remote::Connection;
use crate::aws;
use crate::settings::CacheLocation;
use crate::sync::lock;

/// Gives the current `cache_password`; asked for each connection, told whether
/// the last one was refused.
pub type Password = Box<dyn Fn(bool) -> Pin<Box<dyn Future<Output = Option<SecretString>> + Send>> + Send + Sync>;

/// Makes connections.
pub struct Connector {
    place: Place,
    password: Password,
}

enum Place {
    Fixed(Endpoint, Option<String>),
    ElastiCache {
        id: String,
        iam_user: Option<String>,
        config: Box<SdkConfig>,
        client: aws_sdk_elasticache::Client,
        found: Mutex<Found>,
    },
}

/// What is known of an ElastiCache cache.
#[derive(Default)]
struct Found {
    /// Where it is, as far as it was ever found.
    endpoint: Option<Endpoint>,
    /// When ElastiCache was last asked.
    asked: Option<Instant>,
}

impl Found {
    /// Whether ElastiCache may be asked, which is not for every request of every
    /// instance to do.
    fn may_ask(&mut self) -> bool {
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
struct Tokens {
    config: SdkConfig,
    cache: String,
    user: String,
    is_serverless: bool,
}

impl StreamingCredentialsProvider for Tokens {
    fn subscribe(&self) -> Pin<Box<dyn Stream<Item = RedisResult<BasicAuth>> + Send + 'static>> {
        const RENEWAL: Duration = Duration::from_secs(6 * 3_600);
        let tokens = stream::unfold((self.clone(), Duration::ZERO), |(signer, pause)| async move {
            tokio::time::sleep(pause).await;
            let Tokens { config, cache, user, is_serverless } = &signer;
            let token = aws::elasticache_token(config, cache, user, *is_serverless).await;
            let login = token
                .map(|token| BasicAuth::new(user.clone(), token))
                .map_err(|cause| (ErrorKind::AuthenticationFailed, cause).into());
            Some((login, (signer, RENEWAL)))
        });
        Box::pin(tokens)
    }
}

/// A Redis to connect to.
#[derive(Clone)]
struct Endpoint {
    host: String,
    port: u16,
    tls: bool,
    cluster: bool,
    serverless: bool,
    db: i64,
}

/// What ends a try; every cause is fixed text.
type Cause = &'static str;

impl Connector {
    /// A connector to `place`, `None` where there is none. `config` is asked for
    /// ElastiCache alone. `tls` is the process's own: every connector has the same.
    #[must_use]
    pub fn new(
        place: &CacheLocation,
        config: Option<SdkConfig>,
        password: Password,
        tls: ClientConfig,
    ) -> Option<Self> {
        let place = match place {
            CacheLocation::InProcess => return None,
            CacheLocation::Url { url, cluster } => {
                let info = url.as_str().into_connection_info().ok()?;
                let (host, port, tls) = match info.addr() {
                    ConnectionAddr::Tcp(host, port) => (host.clone(), *port, false),
                    ConnectionAddr::TcpTls { host, port, .. } => (host.clone(), *port, true),
                    _ => return None,
                };
                let db = info.redis_settings().db();
                let user = info.redis_settings().username().map(str::to_owned);
                Place::Fixed(Endpoint { host, port, tls, cluster: *cluster, serverless: false, db }, user)
            }
            CacheLocation::ElastiCache { id, iam_user } => {
                let config = Box::new(config?);
                let client = aws_sdk_elasticache::Client::new(&config);
                let (id, iam_user) = (id.clone(), iam_user.clone());
                Place::ElastiCache { id, iam_user, config, client, found: Mutex::default() }
            }
        };
        node::trust(tls);
        Some(Self { place, password })
    }

    /// Connects: finds the endpoint, takes the current password or signs a
    /// token, and proves by a PING that commands are answered.
    ///
    /// An endpoint that is known is tried first: it is a name that moves with
    /// the cache, and ElastiCache's API may be away, or slow, when it is needed.
    pub(super) async fn connect(&self) -> Result<Connection, Cause> {
        const LIMIT: Duration = Duration::from_secs(4);
        let (id, client, found) = match &self.place {
            Place::Fixed(endpoint, _) => return self.enter(endpoint).await,
            Place::ElastiCache { id, client, found, .. } => (id, client, found),
        };
        let known = lock(found).endpoint.clone();
        let failure = match known {
            None => "ElastiCache was asked within the last second",
            Some(endpoint) => match self.enter(&endpoint).await {
                Ok(connection) => return Ok(connection),
                Err(cause) => cause,
            },
        };
        if !lock(found).may_ask() {
            return Err(failure);
        }
        let asked = tokio::time::timeout(LIMIT, discover(client, id)).await;
        let endpoint = asked.unwrap_or(Err("ElastiCache's API does not answer"))?;
        lock(found).endpoint = Some(endpoint.clone());
        self.enter(&endpoint).await
    }

    /// Forgets the endpoint, where ElastiCache may be asked for another.
    pub(super) fn forget(&self) -> bool {
        let Place::ElastiCache { found, .. } = &self.place else { return false };
        let mut found = lock(found);
        let may = found.may_ask();
        if may {
            *found = Found::default();
        }
        may
    }

    async fn enter(&self, endpoint: &Endpoint) -> Result<Connection, Cause> {
        let mut refused = false;
        loop {
            let settings = self.login(endpoint, refused).await;
            match self.open(endpoint, settings).await {
                Ok(connection) => return Ok(connection),
                Err(error) => {
                    if !is_refusal(&error) {
                        return Err(cause(&error));
                    }
                    // The password may have been changed: look once more.
                    if refused {
                        return Err("the cache does not accept the password");
                    }
                    refused = true;
                }
            }
        }
    }

    async fn open(&self, endpoint: &Endpoint, settings: RedisConnectionInfo) -> RedisResult<Connection> {
        const CONNECT: Duration = Duration::from_secs(2);
        let info = endpoint.info(settings.clone())?;
        if endpoint.cluster {
            let mut builder: ClusterClientBuilder = ClusterClient::builder([info])
                .connection_timeout(CONNECT)
                .response_timeout(CONNECT)
                .retries(3)
                .min_retry_wait(5)
                .max_retry_wait(20);
            if let Some(user) = settings.username() {
                builder = builder.username(user);
            }
            if let Some(password) = settings.password() {
                builder = builder.password(password);
            }
            if endpoint.tls {
                builder = builder.tls(TlsMode::Secure);
            }
            if let Some(tokens) = self.tokens(endpoint) {
                builder = builder.set_credentials_provider(tokens);
            }
            // Finding the slots has proved that it answers; a PING would need every node to be well.
            return Ok(Connection::Cluster(builder.build()?.get_async_generic_connection::<Node>().await?));
        }
        let mut config = AsyncConnectionConfig::new().set_response_timeout(None);
        if let Some(tokens) = self.tokens(endpoint) {
            config = config.set_credentials_provider(tokens);
        }
        let mut connection = Node::open(info, config).await?;
        redis::cmd("PING").query_async::<String>(&mut connection).await?;
        Ok(Connection::Single(connection))
    }

    /// The user and password of one connection.
    async fn login(&self, endpoint: &Endpoint, refused: bool) -> RedisConnectionInfo {
        // What CLIENT SETINFO would tell the server is nobody's business, and older servers refuse it.
        let settings = RedisConnectionInfo::default().set_skip_set_lib_name().set_db(endpoint.db);
        let settings = match &self.place {
            Place::Fixed(_, Some(user)) => settings.set_username(user),
            _ => settings,
        };
        if matches!(self.place, Place::ElastiCache { iam_user: Some(_), .. }) {
            // Tokens take the password's place.
            return settings;
        }
        match (self.password)(refused).await {
            Some(password) => settings.set_password(password.expose_secret()),
            None => settings,
        }
    }

    /// What signs tokens, where the cache is entered by IAM.
    fn tokens(&self, endpoint: &Endpoint) -> Option<Tokens> {
        match &self.place {
            Place::ElastiCache { id, iam_user: Some(user), config, .. } => Some(Tokens {
                config: SdkConfig::clone(config),
                cache: id.clone(),
                user: user.clone(),
                is_serverless: endpoint.serverless,
            }),
            _ => None,
        }
    }
}

impl Endpoint {
    fn info(&self, settings: RedisConnectionInfo) -> RedisResult<ConnectionInfo> {
        let host = self.host.clone();
        let addr = if self.tls {
            ConnectionAddr::TcpTls { host, port: self.port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host, self.port)
        };
        Ok(addr.into_connection_info()?.set_redis_settings(settings))
    }
}

/// Asks ElastiCache for the endpoint: that of a serverless cache by this name,
/// else that of a replication group by this id.
async fn discover(client: &aws_sdk_elasticache::Client, id: &str) -> Result<Endpoint, Cause> {
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

/// Whether the password was refused. A cluster's client tells it in the detail alone.
fn is_refusal(error: &redis::RedisError) -> bool {
    let detail = error.detail().unwrap_or_default().to_ascii_lowercase();
    error.kind() == ErrorKind::AuthenticationFailed
        || matches!(error.code(), Some("WRONGPASS" | "NOAUTH" | "NOPERM"))
        || ["authentication failed", "wrongpass", "noauth"].iter().any(|sign| detail.contains(sign))
}

/// Whether more came in answer than any answer has.
fn is_endless(error: &redis::RedisError) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    source.is_some_and(|io| io.kind() == std::io::ErrorKind::InvalidData && io.get_ref().is_none())
}

/// A cause in words that quote nothing.
pub(super) fn cause(error: &redis::RedisError) -> Cause {
    if error.is_connection_refusal() {
        "connection refused"
    } else if error.is_timeout() {
        "no connection in time"
    } else if error.is_connection_dropped() {
        "connection closed"
    } else if is_endless(error) {
        "an answer without end"
    } else if error.is_io_error() {
        "no connection: the name is unknown, or TLS failed"
    } else {
        "an answer that makes no sense"
    }
}

crate::unprintable!(Connector, Tokens);
