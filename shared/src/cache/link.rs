//! The connection to Redis, which reconnects in the background.
//!
//! The time that a request may wait is limited, and the time that a reconnection takes isn't. The connection is
//! therefore made by a task of its own, and requests bypass a Redis that has failed without waiting for it. The first
//! request after Redis is back uses it again.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use redis::{Cmd, FromRedisValue, RedisError};
use tokio::sync::watch;
use tokio::time::Instant;

use super::connection::Connection;
use super::connector::Connector;
use super::error::{WRONG_TYPE, cause, is_fatal, is_redirect, is_replica};
use super::rejections::Rejections;
use crate::sync;

/// The minimum time between a failed attempt to connect and the next one.
const RETRY_DELAY: Duration = Duration::from_millis(10);
/// The timeout of one attempt, discovery and TLS included.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// After this long, assume that the attempt hangs (its network may swallow packets) and start another one in parallel.
const SLOW_ATTEMPT: Duration = Duration::from_millis(50);
/// The timeout of such an extra attempt.
const EXTRA_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
/// Caps concurrent attempts so that a slow server isn't overloaded.
const MAX_CONCURRENT_ATTEMPTS: usize = 6;
/// The minimum time between two reconnections because the server is a replica. It may be meant to be one.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(5);

/// A connection that is replaced after it fails.
pub(super) struct ReconnectingConnection {
    connector: Connector,
    state: Mutex<State>,
    rejections: Rejections,
    /// Counts attempts that have ended, to wake waiting requests.
    attempts_ended: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    connection: Option<Connection>,
    /// Counts connections. A failure only counts against the connection it came from.
    generation: u64,
    /// The number of attempts in flight.
    attempts: usize,
    /// True if one of them has the full [`ATTEMPT_TIMEOUT`].
    has_long_attempt: bool,
    /// When the last attempt started.
    attempted_at: Option<Instant>,
    /// When the last attempt failed, if no connection has worked since.
    failed_at: Option<Instant>,
    /// True if that failure was logged.
    is_logged: bool,
    /// When a connection was last dropped because its server was a replica.
    followed_at: Option<Instant>,
}

impl ReconnectingConnection {
    pub(super) fn new(connector: Connector) -> Arc<Self> {
        Arc::new(Self {
            connector,
            state: Mutex::default(),
            rejections: Rejections::default(),
            attempts_ended: watch::Sender::new(0),
        })
    }

    /// Returns the number of the current connection.
    pub(super) fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// Sends a command, and sends it once more on a new connection if the old one turns out to be dead, or to lead to a
    /// replica.
    ///
    /// # Errors
    /// Returns the server's error, which has been logged, or `None` if the server didn't respond.
    pub(super) async fn query<T: FromRedisValue>(
        self: &Arc<Self>,
        reconnect_wait: Duration,
        command: &Cmd,
    ) -> Result<T, Option<RedisError>> {
        for is_repeated in [false, true] {
            let (mut connection, generation) = self.get(reconnect_wait).await.ok_or(None)?;
            let error = match connection.query(command).await {
                Ok(response) => {
                    if self.rejections.clear(command) {
                        tracing::info!("cache recovered");
                    }
                    return Ok(response);
                }
                Err(error) => error,
            };
            let is_single = matches!(connection, Connection::Single(_));
            if is_redirect(&error) && is_single && self.connector.forget_endpoint() {
                // The replication group has become a cluster, which discovery will tell.
                self.mark_disconnected(generation, cause(&error));
                continue;
            }
            if is_replica(&error) && !is_repeated && self.follow_primary(generation) {
                continue;
            }
            if !is_fatal(&error, &connection) {
                // Out of memory, or a value of another type: the connection itself is fine.
                self.log_rejection(command, &error, is_single);
                return Err(Some(error));
            }
            self.mark_disconnected(generation, cause(&error));
        }
        Err(None)
    }

    /// Logs that the server rejected a command, unless that is known already.
    fn log_rejection(&self, command: &Cmd, error: &RedisError, is_single: bool) {
        let code = cause(error);
        if code == WRONG_TYPE {
            tracing::debug!(code, "cache rejected command");
            return;
        }
        // If the client doesn't know that this is a cluster, its one server accepts a part of the keys.
        let is_redirect = is_redirect(error);
        if !self.rejections.add(command, code, !is_single || is_redirect) {
            return;
        }
        if is_redirect {
            tracing::warn!(code, "cache is a cluster; set CACHE_CLUSTER=true");
        } else {
            tracing::warn!(code, "cache rejected command");
        }
    }

    /// Returns the connection and its generation.
    ///
    /// Waits for a new connection if the last one worked until now. If an attempt has failed since, waits for at most
    /// `reconnect_wait`.
    pub(super) async fn get(self: &Arc<Self>, reconnect_wait: Duration) -> Option<(Connection, u64)> {
        loop {
            let mut attempts_ended = self.attempts_ended.subscribe();
            let has_failed = {
                let mut state = self.lock();
                if let Some(connection) = &state.connection {
                    return Some((connection.clone(), state.generation));
                }
                let is_slow = state.attempted_at.is_none_or(|at| at.elapsed() >= SLOW_ATTEMPT);
                if state.attempts == 0 || (is_slow && state.attempts < MAX_CONCURRENT_ATTEMPTS) {
                    let delay = state.failed_at.map_or(Duration::ZERO, |at| RETRY_DELAY.saturating_sub(at.elapsed()));
                    let is_long = !state.has_long_attempt;
                    state.has_long_attempt = true;
                    state.attempts += 1;
                    state.attempted_at = Some(Instant::now());
                    tokio::spawn(Arc::clone(self).connect(delay, is_long));
                }
                state.failed_at.is_some()
            };
            if has_failed {
                // An old attempt that hung may end before the one that succeeds.
                let settled = async {
                    while attempts_ended.changed().await.is_ok() {
                        let state = self.lock();
                        if state.connection.is_some() || state.attempts == 0 {
                            return;
                        }
                    }
                };
                let _ = tokio::time::timeout(reconnect_wait, settled).await;
                let state = self.lock();
                return state.connection.clone().map(|connection| (connection, state.generation));
            }
            attempts_ended.changed().await.ok()?;
        }
    }

    async fn connect(self: Arc<Self>, delay: Duration, is_long: bool) {
        tokio::time::sleep(delay).await;
        let timeout = if is_long { ATTEMPT_TIMEOUT } else { EXTRA_ATTEMPT_TIMEOUT };
        // A task of its own, so that a panic doesn't keep later requests from connecting.
        let this = Arc::clone(&self);
        let outcome = tokio::spawn(async move { tokio::time::timeout(timeout, this.connector.connect()).await }).await;
        let outcome = match outcome {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err("connection timed out"),
            Err(_) => Err("connection attempt panicked"),
        };
        {
            let mut state = self.lock();
            state.attempts -= 1;
            state.has_long_attempt &= !is_long;
            match outcome {
                // Another attempt was faster.
                _ if state.connection.is_some() => {}
                Ok(connection) => {
                    state.connection = Some(connection);
                    state.generation += 1;
                    (state.failed_at, state.attempted_at) = (None, None);
                    if std::mem::take(&mut state.is_logged) {
                        tracing::info!("cache reconnected");
                    }
                }
                Err(cause) => {
                    state.failed_at = Some(Instant::now());
                    if !std::mem::replace(&mut state.is_logged, true) {
                        tracing::warn!(cause, "cache connection failed");
                    }
                }
            }
        }
        self.attempts_ended.send_modify(|count| *count += 1);
    }

    /// Drops the connection `generation`, which leads to a replica, and returns true if a new one may lead to the
    /// primary.
    ///
    /// The server was the primary until a failover, and the name leads to the new one. Or the name leads to a replica,
    /// for now or for good. Then reads still work.
    fn follow_primary(&self, generation: u64) -> bool {
        let mut state = self.lock();
        if state.generation != generation || state.connection.is_none() {
            return true;
        }
        if state.followed_at.is_some_and(|at| at.elapsed() < FOLLOW_INTERVAL) {
            return false;
        }
        state.followed_at = Some(Instant::now());
        state.connection = None;
        tracing::debug!("cache is a replica; reconnecting");
        true
    }

    /// Drops the connection if it is still the one that failed.
    fn mark_disconnected(&self, generation: u64, cause: &str) {
        let mut state = self.lock();
        if state.generation == generation && state.connection.take().is_some() {
            tracing::warn!(cause, "cache connection lost");
        }
    }

    /// Drops the connection `generation`, which may be dead because a command on it timed out. Requests don't wait for
    /// the new one.
    pub(super) fn mark_timed_out(&self, generation: u64) {
        let mut state = self.lock();
        if state.generation != generation {
            return;
        }
        if state.connection.take().is_some() {
            tracing::warn!(cause = "response timed out", "cache connection lost");
        }
        state.failed_at = Some(Instant::now());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        sync::lock(&self.state)
    }
}
