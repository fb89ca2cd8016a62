//! A proxy in front of any TCP server that terminates TLS and injects faults at
//! the byte level: what networks, dying servers and broken middleboxes do to a
//! client.
//!
//! It is our own because the existing proxies (toxiproxy and its port noxious)
//! can't reset a connection, present a wrong certificate, or respond in place of
//! the server, and what they can do takes no more code than this.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::process::{free_port, start_on_free_port};

/// A fault that affects connections and requests.
#[derive(Clone)]
pub enum TcpFault {
    /// Connections are refused.
    Refused,
    /// The request is read, and the connection is reset.
    Reset,
    /// Nothing more is ever sent, as if a gateway has forgotten the connection.
    Silence,
    /// The correct response, one byte at a time, with a delay after each.
    ByteByByte,
    /// TLS with a wrong certificate.
    WrongCertificate(TlsAcceptor),
    /// The correct response breaks off in the middle.
    TruncatedResponse,
    /// The response consists of these bytes, and the connection is closed.
    Respond(Bytes),
    /// The response begins with the first bytes, and repeats the second forever.
    EndlessResponse(Bytes, Bytes),
    /// The request is delivered, and then the server is unavailable for a moment.
    Restart,
}

/// The address that every proxy listens on. Its port is free on all other loopback addresses, for a [`BlackHole`].
pub const PROXY_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// The proxy. It stops when the runtime it was started on shuts down.
pub struct TcpProxy {
    /// The port that it listens on.
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    target: u16,
    tls: TlsAcceptor,
    fault: watch::Sender<Option<TcpFault>>,
    is_listening: watch::Sender<bool>,
    /// Incremented to end the open connections.
    disconnects: watch::Sender<Disconnects>,
    hits: AtomicUsize,
}

/// How often the open connections were ended, in either way.
#[derive(Clone, Copy, Default)]
struct Disconnects {
    closed: usize,
    stranded: usize,
}

/// A correct response is complete after a pause of this length.
const END_OF_RESPONSE: Duration = Duration::from_millis(30);
/// The delay between two bytes of [`TcpFault::ByteByByte`].
const BYTE_DELAY: Duration = Duration::from_millis(25);
/// The duration of a restart.
const RESTART: Duration = Duration::from_millis(150);

impl TcpProxy {
    /// Starts a proxy in front of the server that listens on port `target` without TLS.
    ///
    /// # Errors
    /// Fails if no port is free.
    pub async fn start(target: u16, tls: TlsAcceptor) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            target,
            tls,
            fault: watch::Sender::new(None),
            is_listening: watch::Sender::new(true),
            disconnects: watch::Sender::new(Disconnects::default()),
            hits: AtomicUsize::new(0),
        });
        let (port, listener) = start_on_free_port(async || {
            let port = free_port()?;
            Ok((port, TcpListener::bind((PROXY_ADDRESS, port)).await?))
        })
        .await?;
        tokio::spawn(Arc::clone(&shared).listen(port, listener));
        Ok(Self { port, shared })
    }

    /// Sets the fault from now on, or removes it.
    ///
    /// # Panics
    /// Panics if another process has taken the port.
    pub async fn set(&self, fault: Option<TcpFault>) {
        let listens = !matches!(fault, Some(TcpFault::Refused));
        // Connections to a server that is gone, or that now has another certificate, are closed.
        let disconnects = matches!(fault, Some(TcpFault::Refused | TcpFault::WrongCertificate(_)));
        self.shared.hits.store(0, Ordering::Relaxed);
        self.shared.fault.send_replace(fault);
        if disconnects {
            self.close_connections();
        }
        let mut is_listening = self.shared.is_listening.subscribe();
        let set = tokio::time::timeout(Duration::from_secs(5), is_listening.wait_for(|is| *is == listens)).await;
        assert!(set.is_ok_and(|set| set.is_ok()), "listening on port {} failed", self.port);
    }

    /// Closes all open connections.
    pub fn close_connections(&self) {
        self.shared.disconnects.send_modify(|disconnects| disconnects.closed += 1);
    }

    /// Makes all open connections silent forever, without closing them.
    pub fn strand_connections(&self) {
        self.shared.disconnects.send_modify(|disconnects| disconnects.stranded += 1);
    }

    /// Returns how often the fault has occurred since it was set. Refused connections are not counted.
    #[must_use]
    pub fn hits(&self) -> usize {
        self.shared.hits.load(Ordering::Relaxed)
    }
}

impl Shared {
    async fn listen(self: Arc<Self>, port: u16, mut listener: TcpListener) {
        let mut fault = self.fault.subscribe();
        let is_refused = |fault: &Option<TcpFault>| matches!(fault, Some(TcpFault::Refused));
        loop {
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        if let Ok((stream, _)) = accepted {
                            tokio::spawn(Arc::clone(&self).serve(stream));
                        }
                    }
                    _ = fault.wait_for(is_refused) => break,
                }
            }
            drop(listener);
            self.is_listening.send_replace(false);
            if fault.wait_for(|fault| !is_refused(fault)).await.is_err() {
                return;
            }
            let Ok(again) = TcpListener::bind((PROXY_ADDRESS, port)).await else { return };
            listener = again;
            self.is_listening.send_replace(true);
        }
    }

    fn fault(&self) -> Option<TcpFault> {
        self.fault.borrow().clone()
    }

    fn count_hit(&self) {
        self.hits.fetch_add(1, Ordering::Relaxed);
    }

    /// Serves one connection. An error ends it, so its cause doesn't matter.
    async fn serve(self: Arc<Self>, mut client: TcpStream) -> Option<()> {
        let _ = client.set_nodelay(true);
        let mut disconnects = self.disconnects.subscribe();
        disconnects.mark_unchanged();
        let before = *disconnects.borrow();
        let tls = match self.fault() {
            Some(TcpFault::Silence) => {
                self.count_hit();
                return drain(&mut client).await;
            }
            Some(TcpFault::WrongCertificate(wrong)) => {
                self.count_hit();
                wrong
            }
            _ => self.tls.clone(),
        };
        let mut client = tls.accept(client).await.ok()?;
        let mut target = TcpStream::connect((Ipv4Addr::LOCALHOST, self.target)).await.ok()?;
        let _ = target.set_nodelay(true);
        let (mut request, mut response) = (vec![0; 65_536], vec![0; 65_536]);
        let mut is_slow = false;
        loop {
            tokio::select! {
                read = client.read(&mut request) => match read.ok()? {
                    0 => return None,
                    length => {
                        let fault = self.fault();
                        is_slow = matches!(fault, Some(TcpFault::ByteByByte));
                        if let Some(fault) = fault {
                            self.count_hit();
                            if !is_slow {
                                return self.inject(fault, client, target, &request[..length]).await;
                            }
                        }
                        target.write_all(&request[..length]).await.ok()?;
                    }
                },
                read = target.read(&mut response) => match read.ok()? {
                    0 => return client.shutdown().await.ok(),
                    length if is_slow => {
                        for byte in &response[..length] {
                            client.write_all(&[*byte]).await.ok()?;
                            client.flush().await.ok()?;
                            tokio::time::sleep(BYTE_DELAY).await;
                        }
                    }
                    length => {
                        client.write_all(&response[..length]).await.ok()?;
                        client.flush().await.ok()?;
                    }
                },
                changed = disconnects.changed() => {
                    changed.ok()?;
                    if disconnects.borrow().stranded > before.stranded {
                        return drain(client.get_mut().0).await;
                    }
                    return None;
                }
            }
        }
    }

    async fn inject(
        &self,
        fault: TcpFault,
        mut client: TlsStream<TcpStream>,
        mut target: TcpStream,
        request: &[u8],
    ) -> Option<()> {
        match fault {
            TcpFault::Reset => client.get_ref().0.set_zero_linger().ok(),
            TcpFault::Silence => drain(client.get_mut().0).await,
            TcpFault::Respond(bytes) => {
                client.write_all(&bytes).await.ok()?;
                client.shutdown().await.ok()?;
                // Closing the connection before everything is read would reset it and discard the response.
                drain(&mut client).await
            }
            TcpFault::EndlessResponse(beginning, more) => {
                client.write_all(&beginning).await.ok()?;
                loop {
                    client.write_all(&more).await.ok()?;
                }
            }
            TcpFault::TruncatedResponse => {
                target.write_all(request).await.ok()?;
                let mut response = Vec::new();
                target.read_buf(&mut response).await.ok()?;
                while let Ok(Ok(1..)) = tokio::time::timeout(END_OF_RESPONSE, target.read_buf(&mut response)).await {}
                // Truncate the body, if there is one.
                let head = response.windows(4).position(|bytes| bytes == b"\r\n\r\n").map_or(0, |at| at + 4);
                client.write_all(&response[..head + (response.len() - head) / 2]).await.ok()?;
                client.flush().await.ok()
            }
            TcpFault::Restart => {
                target.write_all(request).await.ok()?;
                target.read_u8().await.ok()?;
                self.fault.send_replace(Some(TcpFault::Refused));
                self.disconnects.send_modify(|disconnects| disconnects.closed += 1);
                tokio::time::sleep(RESTART).await;
                self.fault.send_if_modified(|fault| {
                    let is_refused = matches!(fault, Some(TcpFault::Refused));
                    is_refused.then(|| *fault = None).is_some()
                });
                None
            }
            TcpFault::Refused | TcpFault::WrongCertificate(_) | TcpFault::ByteByByte => None,
        }
    }
}

/// An address that swallows packets: its port is open, and no connection is accepted or refused. It stops when it is
/// dropped.
pub struct BlackHole {
    _listener: TcpListener,
    /// As many connections as the listener keeps. The kernel drops the packets of any further one.
    _connections: Vec<TcpStream>,
    /// The number of dropped packets when it was started.
    drops: u64,
}

impl BlackHole {
    /// The address that swallows packets, at any port.
    pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

    /// Starts to swallow packets at this port.
    ///
    /// # Errors
    /// Fails if the port isn't free, or connections are still accepted.
    pub async fn start(port: u16) -> anyhow::Result<Self> {
        const SILENCE: Duration = Duration::from_millis(100);
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind((Self::ADDRESS, port).into())?;
        let listener = socket.listen(0)?;
        let mut connections = Vec::new();
        while let Ok(connected) = tokio::time::timeout(SILENCE, TcpStream::connect((Self::ADDRESS, port))).await {
            connections.push(connected?);
            ensure!(connections.len() < 100, "connections are accepted without end");
        }
        Ok(Self { _listener: listener, _connections: connections, drops: listen_drops()? })
    }

    /// True if a packet was dropped since the start, by this or another listener of this machine.
    ///
    /// # Errors
    /// Fails if the kernel doesn't count them.
    pub fn has_swallowed(&self) -> anyhow::Result<bool> {
        Ok(listen_drops()? > self.drops)
    }
}

/// Returns how many connection requests the kernel has dropped because their listener had too many.
fn listen_drops() -> anyhow::Result<u64> {
    let counters = std::fs::read_to_string("/proc/net/netstat")?;
    let mut lines = counters.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = lines.next().zip(lines.next()).context("the kernel has no counters of TCP")?;
    let mut counters = names.split_whitespace().zip(values.split_whitespace());
    let (_, drops) = counters.find(|(name, _)| *name == "ListenDrops").context("the kernel doesn't count drops")?;
    Ok(drops.parse()?)
}

/// Reads and discards everything until the other side closes the connection.
async fn drain(stream: &mut (impl AsyncReadExt + Unpin)) -> Option<()> {
    let mut discarded = vec![0; 4_096];
    while stream.read(&mut discarded).await.ok()? > 0 {}
    None
}
