//! Connects and logs in to the configured Redis.

use std::pin::Pin;
use std::sync::Mutex;
use std::time::Duration;

use aws_types::SdkConfig;
use futures_util::future::select_ok;
use redis::cluster::{ClusterClient, ClusterClientBuilder, TlsMode};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use redis::{AsyncConnectionConfig, ConnectionAddr, ErrorKind, IntoConnectionInfo, RedisConnectionInfo, RedisResult};
use rustls::ClientConfig;
use secrecy::{ExposeSecret, SecretString};

use super::connection::{self, Connection, Endpoint, Node, cluster_nodes, without_setinfo};
use super::elasticache::{Discovery, IamTokens, discover};
use super::error::{Cause, NO_PERMISSION, cause, is_auth_failure, server_code};
use crate::settings::CacheLocation;
use crate::sync::lock;

/// Returns the current `cache_password`. Called for each connection, with true if the last password was rejected.
pub type Password = Box<dyn Fn(bool) -> Pin<Box<dyn Future<Output = Option<SecretString>> + Send>> + Send + Sync>;

/// Connects to the configured Redis.
pub struct Connector {
    source: Source,
    password: Password,
}

/// The source of the endpoint.
enum Source {
    /// `CACHE_URL`.
    Fixed {
        endpoint: Endpoint,
        user: Option<String>,
        /// The other nodes that the cluster had when it was last connected to.
        nodes: Mutex<Vec<Endpoint>>,
    },
    /// `CACHE_ID`.
    ElastiCache {
        id: String,
        iam_user: Option<String>,
        config: Box<SdkConfig>,
        client: aws_sdk_elasticache::Client,
        discovery: Mutex<Discovery>,
    },
}

impl Connector {
    /// Returns a connector to `location`, or `None` if the cache is in process.
    ///
    /// `config` is only needed for ElastiCache. `tls` is kept for the whole process, so every connector must get the
    /// same one.
    #[must_use]
    pub fn new(
        location: &CacheLocation,
        config: Option<SdkConfig>,
        password: Password,
        tls: ClientConfig,
    ) -> Option<Self> {
        let source = match location {
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
                let endpoint = Endpoint { host, port, tls, cluster: *cluster, serverless: false, db };
                Source::Fixed { endpoint, user, nodes: Mutex::default() }
            }
            CacheLocation::ElastiCache { id, iam_user } => {
                let config = Box::new(config?);
                let client = aws_sdk_elasticache::Client::new(&config);
                let (id, iam_user) = (id.clone(), iam_user.clone());
                Source::ElastiCache { id, iam_user, config, client, discovery: Mutex::default() }
            }
        };
        connection::set_tls_config(tls);
        Some(Self { source, password })
    }

    /// Finds the endpoint, logs in with the current password or a new token, and checks by a PING that commands are
    /// answered.
    ///
    /// A known endpoint is tried first. It is a host name that follows the cache, and ElastiCache's API may be slow or
    /// down when it is needed.
    pub(super) async fn connect(&self) -> Result<Connection, Cause> {
        const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(4);
        let (id, client, discovery) = match &self.source {
            Source::Fixed { endpoint, nodes, .. } => {
                let nodes = lock(nodes).clone();
                return self.connect_to_any(endpoint, &nodes).await;
            }
            Source::ElastiCache { id, client, discovery, .. } => (id, client, discovery),
        };
        let known = lock(discovery).endpoint.clone();
        let failure = match known {
            None => "ElastiCache's API was already called within the last second",
            Some(endpoint) => match self.connect_to(std::slice::from_ref(&endpoint)).await {
                Ok(connection) => return Ok(connection),
                Err(cause) => cause,
            },
        };
        if !lock(discovery).may_call() {
            return Err(failure);
        }
        let discovered = tokio::time::timeout(DISCOVERY_TIMEOUT, discover(client, id)).await;
        let endpoint = discovered.unwrap_or(Err("ElastiCache's API timed out"))?;
        lock(discovery).endpoint = Some(endpoint.clone());
        self.connect_to(&[endpoint]).await
    }

    /// Connects to the configured endpoint, or to the nodes that its cluster had last. Otherwise a cluster whose
    /// configured node is gone could not be used, although it has replaced that node.
    async fn connect_to_any(&self, endpoint: &Endpoint, nodes: &[Endpoint]) -> Result<Connection, Cause> {
        /// How long only the endpoint is tried. It may be a name that follows the cluster, and the address of a node may
        /// belong to another server by now.
        const HEAD_START: Duration = Duration::from_millis(250);
        let mut configured = Box::pin(self.connect_to(std::slice::from_ref(endpoint)));
        if nodes.is_empty() {
            return configured.await;
        }
        let first = tokio::time::timeout(HEAD_START, &mut configured).await;
        let others = Box::pin(self.connect_to(nodes));
        match first {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(cause)) => others.await.map_err(|_| cause),
            Err(_) => select_ok([configured, others]).await.map(|(connection, _)| connection),
        }
    }

    /// Forgets the endpoint and returns true, if ElastiCache's API may be called for a new one.
    pub(super) fn forget_endpoint(&self) -> bool {
        let Source::ElastiCache { discovery, .. } = &self.source else { return false };
        let mut discovery = lock(discovery);
        let may_call = discovery.may_call();
        if may_call {
            *discovery = Discovery::default();
        }
        may_call
    }

    /// Connects and logs in, to one server, or to a cluster through those of its nodes that respond. Reads the password
    /// once more if it is rejected, because it may have been rotated.
    async fn connect_to(&self, nodes: &[Endpoint]) -> Result<Connection, Cause> {
        let Some(endpoint) = nodes.first() else { return Err("no endpoint") };
        let mut was_rejected = false;
        loop {
            let settings = self.login(endpoint, was_rejected).await;
            match self.open(endpoint, nodes, settings, was_rejected).await {
                Ok(connection) => return Ok(connection),
                Err(error) if !is_auth_failure(&error) => return Err(cause(&error)),
                Err(error) if was_rejected && server_code(&error) == Some(NO_PERMISSION) => return Err(NO_PERMISSION),
                Err(_) if was_rejected => return Err("cache rejected the password"),
                Err(_) => was_rejected = true,
            }
        }
    }

    async fn open(
        &self,
        endpoint: &Endpoint,
        nodes: &[Endpoint],
        settings: RedisConnectionInfo,
        is_last: bool,
    ) -> RedisResult<Connection> {
        const TIMEOUT: Duration = Duration::from_secs(2);
        if endpoint.cluster {
            let nodes: Vec<_> = nodes.iter().map(|node| node.info(settings.clone())).collect::<RedisResult<_>>()?;
            let mut builder: ClusterClientBuilder = ClusterClient::builder(nodes)
                .connection_timeout(TIMEOUT)
                .response_timeout(TIMEOUT)
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
            if let Some(tokens) = self.iam_tokens(endpoint) {
                builder = builder.set_credentials_provider(tokens);
            }
            // Reading the slot map has proved that the cluster responds. A PING would need every node to be up.
            let connection = builder.build()?.get_async_generic_connection::<Node>().await?;
            self.remember_nodes(connection.clone()).await?;
            return Ok(Connection::Cluster(connection));
        }
        let info = endpoint.info(settings)?;
        let mut config = AsyncConnectionConfig::new().set_response_timeout(None);
        if let Some(tokens) = self.iam_tokens(endpoint) {
            config = config.set_credentials_provider(tokens);
        }
        let mut connection = Node::open(info, config).await?;
        match connection.ping().await {
            // The server responds, and the user may still have the right to read.
            Err(error) if !is_last || server_code(&error) != Some(NO_PERMISSION) => Err(error),
            _ => Ok(Connection::Single(connection)),
        }
    }

    /// Remembers which nodes the cluster has, if only one of them is configured. The connection doesn't depend on it.
    ///
    /// # Errors
    /// Fails if no node of the cluster has slots, as a node says that was replaced and knows of no others.
    async fn remember_nodes(&self, mut connection: ClusterConnection<Node>) -> RedisResult<()> {
        const TIMEOUT: Duration = Duration::from_millis(250);
        /// As many as make it unlikely that all of them are gone at once.
        const MAX_NODES: usize = 16;
        let Source::Fixed { endpoint, nodes, .. } = &self.source else { return Ok(()) };
        let mut command = redis::cmd("CLUSTER");
        command.arg("SLOTS");
        let any_node = RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random);
        match tokio::time::timeout(TIMEOUT, connection.route_command(command, any_node)).await {
            Ok(Ok(slots)) => {
                let mut found: Vec<Endpoint> = cluster_nodes(&slots, &endpoint.host)
                    .into_iter()
                    .filter(|(host, port)| (host, port) != (&endpoint.host, &endpoint.port))
                    .map(|(host, port)| Endpoint { host, port, ..endpoint.clone() })
                    .collect();
                fastrand::shuffle(&mut found);
                found.truncate(MAX_NODES);
                if !found.is_empty() {
                    *lock(nodes) = found;
                }
                Ok(())
            }
            Ok(Err(error)) if error.kind() == ErrorKind::ClusterConnectionNotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns the login of one connection.
    async fn login(&self, endpoint: &Endpoint, was_rejected: bool) -> RedisConnectionInfo {
        let settings = without_setinfo(RedisConnectionInfo::default()).set_db(endpoint.db);
        let settings = match &self.source {
            Source::Fixed { user: Some(user), .. } => settings.set_username(user),
            _ => settings,
        };
        if matches!(self.source, Source::ElastiCache { iam_user: Some(_), .. }) {
            // Tokens replace the password.
            return settings;
        }
        match (self.password)(was_rejected).await {
            Some(password) => settings.set_password(password.expose_secret()),
            None => settings,
        }
    }

    /// Returns the token signer if IAM authentication is on.
    fn iam_tokens(&self, endpoint: &Endpoint) -> Option<IamTokens> {
        match &self.source {
            Source::ElastiCache { id, iam_user: Some(user), config, .. } => Some(IamTokens {
                config: SdkConfig::clone(config),
                cache: id.clone(),
                user: user.clone(),
                is_serverless: endpoint.serverless,
            }),
            _ => None,
        }
    }
}

crate::unprintable!(Connector);
