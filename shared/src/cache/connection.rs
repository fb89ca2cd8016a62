//! Connections to a Redis server or cluster.
//!
//! TLS uses the one configuration of all outgoing connections. Response size is limited: the Redis client reads
//! whatever it is sent into memory, and a peer that isn't Redis could exhaust a function's memory within one timeout.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use futures_util::future::select_ok;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::{ClusterConnection, Connect};
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, FromRedisValue, IntoConnectionInfo,
    Pipeline, RedisConnectionInfo, RedisError, RedisFuture, RedisResult, Value,
};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use crate::http_client::IDLE_TIMEOUT;
use crate::sync::lock;

/// The timeout of connecting to a node and logging in, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The maximum size of one response in bytes. An entry has some hundred bytes, and the slot map of a large cluster some
/// ten thousand.
const MAX_RESPONSE: usize = 2 << 20;

/// The TLS configuration. Global, because the cluster client connects through an associated function that can't be given
/// one.
static TLS: OnceLock<TlsConnector> = OnceLock::new();

/// Sets the TLS configuration. Call it once, before anything connects.
pub(super) fn set_tls_config(tls: ClientConfig) {
    // A second call would set the same configuration.
    let _ = TLS.set(TlsConnector::from(Arc::new(tls)));
}

/// A connection to a single server or to a cluster. Clones share it.
#[derive(Clone)]
pub(super) enum Connection {
    Single(Node),
    Cluster(ClusterConnection<Node>),
}

impl Connection {
    pub(super) async fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> RedisResult<T> {
        match self {
            Self::Single(connection) => command.query_async(connection).await,
            Self::Cluster(connection) => command.query_async(connection).await,
        }
    }
}

/// Reads which nodes a cluster has: the reply to CLUSTER SLOTS. A node without a name is the one that replied, which is
/// reached as `host`.
pub(super) fn cluster_nodes(slots: &Value, host: &str) -> Vec<(String, u16)> {
    let items = |value: &Value| match value {
        Value::Array(items) => items.clone(),
        _ => Vec::new(),
    };
    let address = |node: Value| {
        let mut node = items(&node).into_iter();
        let (name, port) = (node.next()?, node.next()?);
        let name = match name {
            Value::Nil => String::new(),
            name => String::from_redis_value(name).ok().filter(|name| name != "?")?,
        };
        Some((if name.is_empty() { host.to_owned() } else { name }, u16::from_redis_value(port).ok()?))
    };
    // Each range of slots: its first, its last, its primary, its replicas.
    let mut nodes: Vec<_> =
        items(slots).iter().flat_map(|range| items(range).into_iter().skip(2)).filter_map(address).collect();
    nodes.sort();
    nodes.dedup();
    nodes
}

/// The address of a Redis, and how to talk to it.
#[derive(Clone)]
pub(super) struct Endpoint {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: bool,
    pub(super) cluster: bool,
    pub(super) serverless: bool,
    pub(super) db: i64,
}

impl Endpoint {
    pub(super) fn info(&self, settings: RedisConnectionInfo) -> RedisResult<ConnectionInfo> {
        let host = self.host.clone();
        let addr = if self.tls {
            ConnectionAddr::TcpTls { host, port: self.port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host, self.port)
        };
        Ok(addr.into_connection_info()?.set_redis_settings(settings))
    }
}

/// Leaves out CLIENT SETINFO when logging in: the server needn't know the client's version, older servers don't know the
/// command, and users may not be allowed it.
pub(super) fn without_setinfo(settings: RedisConnectionInfo) -> RedisConnectionInfo {
    settings.set_skip_set_lib_name()
}

/// A connection to one node. Clones share it, and it closes when the last one is dropped.
///
/// It isn't trusted after it was idle for [`IDLE_TIMEOUT`], because Lambda may have frozen the instance meanwhile, and a
/// gateway on the way forgets idle connections without a word. A PING then tells in time whether it works.
#[derive(Clone)]
pub(super) struct Node {
    connection: MultiplexedConnection,
    refusal: Refusal,
    liveness: Arc<Mutex<Liveness>>,
    _driver: Arc<Driver>,
}

struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The timeout of a PING on a connection that was idle. A short part of a request's time for the cache, which is also
/// needed for a new connection.
const PING_TIMEOUT: Duration = Duration::from_millis(50);

/// When a connection is known to have worked.
enum Liveness {
    /// The time of the last response, by both clocks: one of them may stop while Lambda has frozen the instance.
    LastResponse(Instant, SystemTime),
    /// It was idle, and didn't respond after that.
    Dead,
}

impl Liveness {
    fn now() -> Self {
        Self::LastResponse(Instant::now(), SystemTime::now())
    }

    /// Returns true if there was a response within [`IDLE_TIMEOUT`]. A time of day in the future counts as that.
    fn is_recent(&self) -> bool {
        match self {
            Self::LastResponse(at, time) => {
                at.elapsed() <= IDLE_TIMEOUT && time.elapsed().unwrap_or_default() <= IDLE_TIMEOUT
            }
            Self::Dead => false,
        }
    }
}

impl Node {
    /// Connects and logs in.
    pub(super) async fn open(info: ConnectionInfo, config: AsyncConnectionConfig) -> RedisResult<Self> {
        let open = async {
            let refusal = Refusal::default();
            let stream = LimitedStream { stream: connect(info.addr()).await?, read: 0, refusal: Arc::clone(&refusal) };
            let settings = info.redis_settings();
            let opened = MultiplexedConnection::new_with_config(settings, stream, config).await;
            let (connection, driver) = opened.map_err(|error| refusal.get().cloned().unwrap_or(error))?;
            let driver = tokio::spawn(driver).abort_handle();
            let liveness = Arc::new(Mutex::new(Liveness::now()));
            Ok(Self { connection, refusal, liveness, _driver: Arc::new(Driver(driver)) })
        };
        tokio::time::timeout(CONNECT_TIMEOUT, open)
            .await
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
    }

    /// Checks by a PING that commands are answered.
    pub(super) async fn ping(&mut self) -> RedisResult<()> {
        let pong = redis::cmd("PING").query_async::<String>(&mut self.connection).await;
        pong.map(drop).map_err(|error| self.refusal.get().cloned().unwrap_or(error))
    }

    /// Runs a command, if the connection is recent or still responds.
    ///
    /// # Errors
    /// Returns the command's error, or that of a closed connection, after which the client makes a new one.
    async fn run<T>(
        &mut self,
        command: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
    ) -> RedisResult<T> {
        let is_recent = lock(&self.liveness).is_recent();
        if !is_recent && !self.still_responds().await {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
        }
        let result = command(&mut self.connection).await;
        if is_response(&result) {
            *lock(&self.liveness) = Liveness::now();
        }
        // Logging in without a password sends nothing, so a refusal may only show with the first command.
        result.map_err(|error| self.refusal.get().cloned().unwrap_or(error))
    }

    /// Returns true if the connection responds to a PING, with an error as well. If it doesn't, it isn't tried again.
    async fn still_responds(&mut self) -> bool {
        if matches!(*lock(&self.liveness), Liveness::Dead) {
            return false;
        }
        let ping = redis::cmd("PING");
        let pong = tokio::time::timeout(PING_TIMEOUT, self.connection.req_packed_command(&ping)).await;
        let responds = pong.is_ok_and(|pong| is_response(&pong));
        *lock(&self.liveness) = if responds { Liveness::now() } else { Liveness::Dead };
        responds
    }
}

/// Returns true if this came from the server.
fn is_response<T>(result: &RedisResult<T>) -> bool {
    result.as_ref().err().is_none_or(|error| matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension))
}

/// The error with which the server refuses connections, if it does. It may come before any command, so that it isn't the
/// reply to one: the client takes it for a rejected password, or only sees that the connection is closed.
type Refusal = Arc<OnceLock<RedisError>>;

async fn connect(addr: &ConnectionAddr) -> RedisResult<Box<dyn Stream>> {
    let connect_tcp = async |host: &str, port: u16| {
        // All addresses at once, because the first may belong to a node that is gone.
        let attempts: Vec<_> = lookup_host((host, port)).await?.map(|at| Box::pin(TcpStream::connect(at))).collect();
        if attempts.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let (stream, _) = select_ok(attempts).await?;
        stream.set_nodelay(true)?;
        Ok::<_, io::Error>(stream)
    };
    match addr {
        ConnectionAddr::Tcp(host, port) => Ok(Box::new(connect_tcp(host, *port).await?)),
        ConnectionAddr::TcpTls { host, port, .. } => {
            let tls = TLS.get().ok_or((ErrorKind::InvalidClientConfig, "the TLS configuration is not set yet"))?;
            let name = match host.parse::<IpAddr>() {
                Ok(address) => ServerName::from(address),
                Err(_) => ServerName::try_from(host.clone()).map_err(io::Error::other)?,
            };
            Ok(Box::new(tls.connect(name, connect_tcp(host, *port).await?).await?))
        }
        _ => Err((ErrorKind::InvalidClientConfig, "expected a TCP address").into()),
    }
}

/// A stream with or without TLS.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A stream that fails if a response is too large.
struct LimitedStream {
    stream: Box<dyn Stream>,
    /// Bytes read since the last write.
    read: usize,
    refusal: Refusal,
}

/// Returns the error if the server refuses connections.
fn refusal(greeting: &[u8]) -> Option<RedisError> {
    if !greeting.starts_with(b"-ERR max number of clients") && !greeting.starts_with(b"-DENIED") {
        return None;
    }
    redis::parse_redis_value(greeting).ok()?.extract_error().err()
}

impl AsyncRead for LimitedStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, into))?;
        let read = &into.filled()[before..];
        if read.first() == Some(&b'-')
            && let Some(error) = refusal(read)
        {
            let _ = self.refusal.set(error);
        }
        self.read += read.len();
        Poll::Ready(if self.read > MAX_RESPONSE { Err(io::ErrorKind::InvalidData.into()) } else { Ok(()) })
    }
}

impl AsyncWrite for LimitedStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        if written > 0 {
            self.read = 0;
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl ConnectionLike for Node {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(self.run(async move |connection| connection.req_packed_command(command).await))
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(self.run(async move |connection| connection.req_packed_commands(pipeline, offset, count).await))
    }

    fn get_db(&self) -> i64 {
        self.connection.get_db()
    }
}

impl Connect for Node {
    fn connect_with_config<'a, T>(info: T, config: AsyncConnectionConfig) -> RedisFuture<'a, Self>
    where
        T: IntoConnectionInfo + Send + 'a,
    {
        Box::pin(async move {
            let info = info.into_connection_info()?;
            // The cluster client makes the settings of each node anew, and this one is lost.
            let settings = without_setinfo(info.redis_settings().clone());
            Self::open(info.set_redis_settings(settings), config).await
        })
    }
}
