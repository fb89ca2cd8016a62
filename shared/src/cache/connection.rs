//! A connection to one node of a Redis: TLS by the one configuration that all
//! outgoing connections have, and no answer without an end.
//!
//! The Redis client reads whatever it is sent into memory. What is not a Redis,
//! or is one no longer, could fill a function's memory within one time-out.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::select_ok;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::{ClusterConnection, Connect};
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, FromRedisValue, IntoConnectionInfo,
    Pipeline, RedisConnectionInfo, RedisFuture, RedisResult, Value,
};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;

/// Reaching a node and logging in, TLS included, ends after this.
const CONNECT: Duration = Duration::from_secs(2);
/// The most bytes that may come in answer to one question. Entries have some
/// hundred, the map of a large cluster some ten thousand.
const ANSWER_LIMIT: usize = 2 << 20;

/// What is trusted. Kept for the whole process, because the cluster's client
/// connects by a function that belongs to a type and can be handed nothing.
static TLS: OnceLock<TlsConnector> = OnceLock::new();

/// Says what is trusted. Call once, before anything connects.
pub(super) fn trust(tls: ClientConfig) {
    // There is but one configuration: another call would say the same.
    let _ = TLS.set(TlsConnector::from(Arc::new(tls)));
}

/// A connection of either kind. Clones share it.
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

/// A Redis to connect to.
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

/// The connection. Clones share it, and it is closed with the last one.
#[derive(Clone)]
pub(super) struct Node {
    connection: MultiplexedConnection,
    _driver: Arc<Driver>,
}

struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Node {
    /// Connects and logs in.
    pub(super) async fn open(info: ConnectionInfo, config: AsyncConnectionConfig) -> RedisResult<Self> {
        let open = async {
            let stream = Finite { stream: reach(info.addr()).await?, read: 0 };
            let settings = info.redis_settings();
            let (connection, driver) = MultiplexedConnection::new_with_config(settings, stream, config).await?;
            let driver = tokio::spawn(driver).abort_handle();
            Ok(Self { connection, _driver: Arc::new(Driver(driver)) })
        };
        tokio::time::timeout(CONNECT, open)
            .await
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
    }
}

async fn reach(addr: &ConnectionAddr) -> RedisResult<Box<dyn Wire>> {
    let connect = async |host: &str, port: u16| {
        // All addresses at once: the first may be that of a node that is gone.
        let tries: Vec<_> = lookup_host((host, port)).await?.map(|at| Box::pin(TcpStream::connect(at))).collect();
        if tries.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let (stream, _) = select_ok(tries).await?;
        stream.set_nodelay(true)?;
        Ok::<_, io::Error>(stream)
    };
    match addr {
        ConnectionAddr::Tcp(host, port) => Ok(Box::new(connect(host, *port).await?)),
        ConnectionAddr::TcpTls { host, port, .. } => {
            let tls = TLS.get().ok_or((ErrorKind::InvalidClientConfig, "nothing is trusted yet"))?;
            let name = match host.parse::<IpAddr>() {
                Ok(address) => ServerName::from(address),
                Err(_) => ServerName::try_from(host.clone()).map_err(io::Error::other)?,
            };
            Ok(Box::new(tls.connect(name, connect(host, *port).await?).await?))
        }
        _ => Err((ErrorKind::InvalidClientConfig, "a Redis is reached by TCP").into()),
    }
}

/// A stream, with TLS or without.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Wire for S {}

/// A stream that fails where too much comes in answer.
struct Finite {
    stream: Box<dyn Wire>,
    /// Bytes since something was last asked.
    read: usize,
}

impl AsyncRead for Finite {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, into))?;
        self.read += into.filled().len() - before;
        Poll::Ready(if self.read > ANSWER_LIMIT { Err(io::ErrorKind::InvalidData.into()) } else { Ok(()) })
    }
}

impl AsyncWrite for Finite {
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
        self.connection.req_packed_command(command)
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.connection.req_packed_commands(pipeline, offset, count)
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
        Box::pin(async move { Self::open(info.into_connection_info()?, config).await })
    }
}
