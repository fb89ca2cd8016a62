//! A proxy before any server that speaks over TCP, with TLS of its own, which
//! interferes on the level of bytes: what networks, dying servers and broken
//! middle boxes do to a client.
//!
//! It is this small because the proxies that exist (toxiproxy, its port
//! noxious) can neither reset a connection, nor show a wrong certificate, nor
//! answer in the server's place, and the rest of them is no more than this.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::process::free_port;

/// What happens to whoever connects or asks.
#[derive(Clone)]
pub enum Fault {
    /// Nobody listens.
    Refused,
    /// The question is read, and the connection reset.
    Reset,
    /// Nothing is ever heard again, as where a gateway has forgotten the flow.
    Silence,
    /// The right answer, a byte at a time, each after a moment.
    Drip,
    /// TLS by another certificate.
    Certificate(TlsAcceptor),
    /// The right answer breaks off in its middle.
    HalfAnswer,
    /// These bytes are the answer, and the connection is closed.
    Answer(Bytes),
    /// These bytes are the beginning of an answer that never ends, and goes on with those.
    Endless(Bytes, Bytes),
    /// The question arrives, and then the server is away for a moment.
    Restart,
}

/// The proxy. It ends with the runtime it was started on.
pub struct TcpProxy {
    /// Where it listens.
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    target: u16,
    tls: TlsAcceptor,
    fault: watch::Sender<Option<Fault>>,
    is_listening: watch::Sender<bool>,
    /// Counted up to part with those who are connected.
    parting: watch::Sender<Parting>,
    met: AtomicUsize,
}

/// How often those who were connected were parted with, in either way.
#[derive(Clone, Copy, Default)]
struct Parting {
    hung_up: usize,
    stranded: usize,
}

/// A right answer is whole when nothing more of it has come for so long.
const QUIET: Duration = Duration::from_millis(30);
/// Between two bytes that drip.
const DRIP: Duration = Duration::from_millis(25);
/// How long a restart takes.
const AWAY: Duration = Duration::from_millis(150);

impl TcpProxy {
    /// Starts one before the server that listens on `target` without TLS.
    ///
    /// # Errors
    /// Where no port is free.
    pub async fn start(target: u16, tls: TlsAcceptor) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            target,
            tls,
            fault: watch::Sender::new(None),
            is_listening: watch::Sender::new(false),
            parting: watch::Sender::new(Parting::default()),
            met: AtomicUsize::new(0),
        });
        let port = free_port()?;
        tokio::spawn(Arc::clone(&shared).listen(port));
        let mut is_listening = shared.is_listening.subscribe();
        tokio::time::timeout(Duration::from_secs(5), is_listening.wait_for(|is| *is)).await.context("no port")??;
        Ok(Self { port, shared })
    }

    /// From now on there is this fault, or none.
    ///
    /// # Panics
    /// Where the port has been taken by somebody else.
    pub async fn set(&self, fault: Option<Fault>) {
        let listens = !matches!(fault, Some(Fault::Refused));
        // Those who were connected to a server that is gone, or is another one by its certificate, are no more.
        let parts = matches!(fault, Some(Fault::Refused | Fault::Certificate(_)));
        self.shared.met.store(0, Ordering::Relaxed);
        self.shared.fault.send_replace(fault);
        if parts {
            self.hang_up();
        }
        let mut is_listening = self.shared.is_listening.subscribe();
        let set = tokio::time::timeout(Duration::from_secs(5), is_listening.wait_for(|is| *is == listens)).await;
        assert!(set.is_ok_and(|set| set.is_ok()), "nobody listens on port {}", self.port);
    }

    /// Closes every connection that there is.
    pub fn hang_up(&self) {
        self.shared.parting.send_modify(|parting| parting.hung_up += 1);
    }

    /// Every connection that there is falls silent for ever.
    pub fn strand(&self) {
        self.shared.parting.send_modify(|parting| parting.stranded += 1);
    }

    /// How often the fault was met since it was set, where that can be seen.
    #[must_use]
    pub fn met(&self) -> usize {
        self.shared.met.load(Ordering::Relaxed)
    }
}

impl Shared {
    async fn listen(self: Arc<Self>, port: u16) {
        let mut fault = self.fault.subscribe();
        let is_refused = |fault: &Option<Fault>| matches!(fault, Some(Fault::Refused));
        loop {
            if fault.wait_for(|fault| !is_refused(fault)).await.is_err() {
                return;
            }
            let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await else { return };
            self.is_listening.send_replace(true);
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        if let Ok((stream, _)) = accepted {
                            tokio::spawn(Arc::clone(&self).connection(stream));
                        }
                    }
                    _ = fault.wait_for(is_refused) => break,
                }
            }
            drop(listener);
            self.is_listening.send_replace(false);
        }
    }

    fn fault(&self) -> Option<Fault> {
        self.fault.borrow().clone()
    }

    fn meet(&self) {
        self.met.fetch_add(1, Ordering::Relaxed);
    }

    /// An error is the end of the connection, which is all that matters of it.
    async fn connection(self: Arc<Self>, mut client: TcpStream) -> Option<()> {
        let _ = client.set_nodelay(true);
        let mut parting = self.parting.subscribe();
        parting.mark_unchanged();
        let before = *parting.borrow();
        let tls = match self.fault() {
            Some(Fault::Silence) => {
                self.meet();
                return drain(&mut client).await;
            }
            Some(Fault::Certificate(other)) => {
                self.meet();
                other
            }
            _ => self.tls.clone(),
        };
        let mut client = tls.accept(client).await.ok()?;
        let mut target = TcpStream::connect((Ipv4Addr::LOCALHOST, self.target)).await.ok()?;
        let _ = target.set_nodelay(true);
        let (mut question, mut answer) = (vec![0; 65_536], vec![0; 65_536]);
        let mut drips = false;
        loop {
            tokio::select! {
                read = client.read(&mut question) => match read.ok()? {
                    0 => return None,
                    length => {
                        let fault = self.fault();
                        drips = matches!(fault, Some(Fault::Drip));
                        if let Some(fault) = fault {
                            self.meet();
                            if !drips {
                                return self.interfere(fault, client, target, &question[..length]).await;
                            }
                        }
                        target.write_all(&question[..length]).await.ok()?;
                    }
                },
                read = target.read(&mut answer) => match read.ok()? {
                    0 => return client.shutdown().await.ok(),
                    length if drips => {
                        for byte in &answer[..length] {
                            client.write_all(&[*byte]).await.ok()?;
                            client.flush().await.ok()?;
                            tokio::time::sleep(DRIP).await;
                        }
                    }
                    length => {
                        client.write_all(&answer[..length]).await.ok()?;
                        client.flush().await.ok()?;
                    }
                },
                changed = parting.changed() => {
                    changed.ok()?;
                    if parting.borrow().stranded > before.stranded {
                        return drain(client.get_mut().0).await;
                    }
                    return None;
                }
            }
        }
    }

    async fn interfere(
        &self,
        fault: Fault,
        mut client: TlsStream<TcpStream>,
        mut target: TcpStream,
        question: &[u8],
    ) -> Option<()> {
        match fault {
            Fault::Reset => client.get_ref().0.set_zero_linger().ok(),
            Fault::Silence => drain(client.get_mut().0).await,
            Fault::Answer(bytes) => {
                client.write_all(&bytes).await.ok()?;
                client.shutdown().await.ok()?;
                // Closing before all was read would reset what was just written.
                drain(&mut client).await
            }
            Fault::Endless(beginning, more) => {
                client.write_all(&beginning).await.ok()?;
                loop {
                    client.write_all(&more).await.ok()?;
                }
            }
            Fault::HalfAnswer => {
                target.write_all(question).await.ok()?;
                let mut answer = Vec::new();
                target.read_buf(&mut answer).await.ok()?;
                while let Ok(Ok(1..)) = tokio::time::timeout(QUIET, target.read_buf(&mut answer)).await {}
                // Of a body, where there is one.
                let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").map_or(0, |at| at + 4);
                client.write_all(&answer[..head + (answer.len() - head) / 2]).await.ok()?;
                client.flush().await.ok()
            }
            Fault::Restart => {
                target.write_all(question).await.ok()?;
                target.read_u8().await.ok()?;
                self.fault.send_replace(Some(Fault::Refused));
                self.parting.send_modify(|parting| parting.hung_up += 1);
                tokio::time::sleep(AWAY).await;
                self.fault.send_if_modified(|fault| {
                    let is_away = matches!(fault, Some(Fault::Refused));
                    is_away.then(|| *fault = None).is_some()
                });
                None
            }
            Fault::Refused | Fault::Certificate(_) | Fault::Drip => None,
        }
    }
}

/// Reads and forgets until the other side has had enough.
async fn drain(stream: &mut (impl AsyncReadExt + Unpin)) -> Option<()> {
    let mut nowhere = vec![0; 4_096];
    while stream.read(&mut nowhere).await.ok()? > 0 {}
    None
}
