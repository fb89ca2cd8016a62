//! Where the Redis is and what opens it.

use std::pin::Pin;
use std::sync::Mutex;
use std::time::Duration;

use aws_types::SdkConfig;
use redis::cluster::{ClusterClient, ClusterClientBuilder, TlsMode};
use redis::{AsyncConnectionConfig, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo, RedisResult};
use rustls::ClientConfig;
use secrecy::{ExposeSecret, SecretString};

use super::connection::{self, Connection, Endpoint, Node};
use super::elasticache::{Found, Tokens, discover};
use super::error::{Cause, cause, is_refusal};
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
        connection::trust(tls);
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

crate::unprintable!(Connector);
