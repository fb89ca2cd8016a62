//! Minimal HTTP servers for tests, on loopback. An error of a handler closes the
//! connection without a response, which web frameworks don't let a handler do.

use std::error::Error;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

/// A server that stops when the runtime it was started on shuts down.
#[derive(Clone)]
pub struct Server {
    /// The port that it listens on.
    pub port: u16,
    hang_up: Arc<Notify>,
    connections: Arc<AtomicUsize>,
}

impl Server {
    /// Starts a server on a free port.
    ///
    /// # Errors
    /// Fails if no port is free.
    pub async fn start<H, F, B, E>(handler: H) -> anyhow::Result<Self>
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
        F: Future<Output = Result<Response<B>, E>> + Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        Self::listen(|stream| std::future::ready(Ok(stream)), handler).await
    }

    /// Starts a server with TLS on a free port.
    ///
    /// # Errors
    /// Fails if no port is free.
    pub async fn start_tls<H, F, B, E>(acceptor: TlsAcceptor, handler: H) -> anyhow::Result<Self>
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
        F: Future<Output = Result<Response<B>, E>> + Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        Self::listen(move |stream| acceptor.accept(stream), handler).await
    }

    /// Starts a server on a free port, with `open` turning each connection into the one that is used.
    ///
    /// # Errors
    /// Fails if no port is free.
    pub async fn listen<O, P, S, H, F, B, E>(open: O, handler: H) -> anyhow::Result<Self>
    where
        O: Fn(TcpStream) -> P + Clone + Send + 'static,
        P: Future<Output = io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
        F: Future<Output = Result<Response<B>, E>> + Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let server = Self { port: listener.local_addr()?.port(), hang_up: Arc::default(), connections: Arc::default() };
        let (hang_up, connections) = (Arc::clone(&server.hang_up), Arc::clone(&server.connections));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::Relaxed);
                let (open, handler, hang_up) = (open.clone(), handler.clone(), Arc::clone(&hang_up));
                tokio::spawn(async move {
                    let _ = stream.set_nodelay(true);
                    let Ok(stream) = open(stream).await else { return };
                    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(handler));
                    // Tests often cause connection errors on purpose.
                    tokio::select! {
                        _ = connection => {}
                        () = hang_up.notified() => {}
                    }
                });
            }
        });
        Ok(server)
    }

    /// Returns the server's URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns the number of connections that were accepted.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Closes all open connections.
    pub fn drop_clients(&self) {
        self.hang_up.notify_waiters();
    }
}
