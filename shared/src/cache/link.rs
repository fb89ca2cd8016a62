//! The connection to the Redis, made again when it is lost.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::connection::Connection;
use super::connector::Connector;
use crate::sync;

/// A new connection is tried at most this often.
const RETRY: Duration = Duration::from_millis(10);
/// One try to connect, discovery and TLS included, ends after this.
const CONNECT: Duration = Duration::from_secs(5);
/// A try that has taken so long may never end, where what it was sent into is
/// gone: a request does not count on it, and begins another beside it.
const SLOW: Duration = Duration::from_millis(50);
/// Such another one ends after this.
const CONNECT_BESIDE: Duration = Duration::from_secs(1);
/// No more than so many are under way: a server that is slow is not helped by more.
const TRIES: usize = 6;

/// The connection and how it is.
pub(super) struct Link {
    pub(super) connector: Connector,
    state: Mutex<State>,
    /// Changes when a try to connect has ended.
    tried: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    connection: Option<Connection>,
    /// Counts connections: a failure counts only against the one that it came from.
    number: u64,
    /// Tries to connect that are under way.
    tries: usize,
    /// Whether one of them has all the time that connecting may take.
    has_patient: bool,
    /// When the last one began.
    began: Option<Instant>,
    /// When the last try failed, where nothing has worked since.
    failed: Option<Instant>,
    /// Whether the log knows of that.
    is_reported: bool,
}

impl Link {
    pub(super) fn new(connector: Connector) -> Arc<Self> {
        Arc::new(Self { connector, state: Mutex::new(State::default()), tried: watch::Sender::new(0) })
    }

    /// Tells connections apart.
    pub(super) fn number(&self) -> u64 {
        self.lock().number
    }

    /// The connection. A new one is waited for where the last one worked until
    /// just now; where trying has failed since, for no longer than `grace`.
    pub(super) async fn connection(link: &Arc<Self>, grace: Duration) -> Option<(Connection, u64)> {
        loop {
            let mut tried = link.tried.subscribe();
            let has_failed = {
                let mut state = link.lock();
                if let Some(connection) = &state.connection {
                    return Some((connection.clone(), state.number));
                }
                let is_slow = state.began.is_none_or(|at| at.elapsed() >= SLOW);
                if state.tries == 0 || (is_slow && state.tries < TRIES) {
                    let pause = state.failed.map_or(Duration::ZERO, |at| RETRY.saturating_sub(at.elapsed()));
                    let is_patient = !state.has_patient;
                    state.has_patient = true;
                    state.tries += 1;
                    state.began = Some(Instant::now());
                    tokio::spawn(Self::connect(Arc::clone(link), pause, is_patient));
                }
                state.failed.is_some()
            };
            if has_failed {
                // One that has hung for long may end before the one that matters.
                let over = async {
                    while tried.changed().await.is_ok() {
                        let state = link.lock();
                        if state.connection.is_some() || state.tries == 0 {
                            return;
                        }
                    }
                };
                let _ = tokio::time::timeout(grace, over).await;
                let state = link.lock();
                return state.connection.clone().map(|connection| (connection, state.number));
            }
            tried.changed().await.ok()?;
        }
    }

    async fn connect(link: Arc<Self>, pause: Duration, is_patient: bool) {
        tokio::time::sleep(pause).await;
        let limit = if is_patient { CONNECT } else { CONNECT_BESIDE };
        // A task of its own: were it to panic, the next request must be able to try again.
        let task = Arc::clone(&link);
        let outcome = tokio::spawn(async move { tokio::time::timeout(limit, task.connector.connect()).await }).await;
        let outcome = match outcome {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err("no connection in time"),
            Err(_) => Err("the attempt panicked"),
        };
        {
            let mut state = link.lock();
            state.tries -= 1;
            state.has_patient &= !is_patient;
            match outcome {
                // Another try was faster.
                _ if state.connection.is_some() => {}
                Ok(connection) => {
                    state.connection = Some(connection);
                    state.number += 1;
                    (state.failed, state.began) = (None, None);
                    if std::mem::take(&mut state.is_reported) {
                        tracing::info!("the cache is back");
                    }
                }
                Err(cause) => {
                    state.failed = Some(Instant::now());
                    if !std::mem::replace(&mut state.is_reported, true) {
                        tracing::warn!(cause, "the cache cannot be reached");
                    }
                }
            }
        }
        link.tried.send_modify(|tries| *tries += 1);
    }

    /// Drops a connection, where it is still the one that failed.
    pub(super) fn lost(&self, number: u64, cause: &str) {
        let mut state = self.lock();
        if state.number == number && state.connection.take().is_some() {
            tracing::warn!(cause, "the connection to the cache is lost");
        }
    }

    /// Nobody answered in time: whatever connection there is may be dead, and a
    /// new one is not waited for until it is there.
    pub(super) fn gave_no_answer(&self, number: u64) {
        let mut state = self.lock();
        if state.number != number {
            return;
        }
        if state.connection.take().is_some() {
            tracing::warn!(cause = "no answer in time", "the connection to the cache is lost");
        }
        state.failed = Some(Instant::now());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        sync::lock(&self.state)
    }
}
