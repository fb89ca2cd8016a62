//! A fake of Lambda's Runtime API for one instance of a function that handles
//! several events concurrently, as a managed instance does. AWS's emulator passes
//! on only one at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};

use crate::function::binary;
use crate::http_server::Server;
use crate::privacy::Private;
use crate::process;

/// The timeout for an invocation, unless a longer one is set.
const TIMEOUT: Duration = Duration::from_secs(60);

/// An instance. Dropping it stops it and asserts that its log contains no
/// private data.
pub struct Instance {
    process: process::Server,
    api: Api,
    private: Private,
    _dir: TempDir,
}

/// The Runtime API.
#[derive(Clone)]
struct Api {
    sender: mpsc::UnboundedSender<(String, Bytes)>,
    events: Arc<AsyncMutex<mpsc::UnboundedReceiver<(String, Bytes)>>>,
    /// Invocations in flight: where to send the response, by request id.
    pending: Arc<Mutex<HashMap<String, oneshot::Sender<Bytes>>>>,
    /// The timeout that the function is told.
    timeout: Arc<Mutex<Duration>>,
    /// How far the function's clock is ahead.
    clock_offset: Arc<Mutex<Duration>>,
}

impl Instance {
    /// Starts `name`, configured to handle up to `max_concurrency` events concurrently.
    ///
    /// # Errors
    /// Fails if the function is not built, or no port is free.
    pub async fn start(
        name: &str,
        max_concurrency: usize,
        config: &Value,
        variables: &[(&str, &str)],
        private: &Private,
    ) -> Result<Self> {
        let (sender, events) = mpsc::unbounded_channel();
        let api = Api {
            sender,
            events: Arc::new(AsyncMutex::new(events)),
            pending: Arc::default(),
            timeout: Arc::new(Mutex::new(TIMEOUT)),
            clock_offset: Arc::default(),
        };
        let handler = api.clone();
        let server = Server::start(move |request| handler.clone().handle(request)).await?;
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("config.json"), config.to_string())?;
        let defaults = [
            ("CONFIG_FILE", dir.path().join("config.json").display().to_string()),
            ("AWS_LAMBDA_LOG_LEVEL", "TRACE".to_owned()),
            ("AWS_LAMBDA_RUNTIME_API", format!("127.0.0.1:{}", server.port)),
            ("AWS_LAMBDA_FUNCTION_NAME", name.to_owned()),
            ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST".to_owned()),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256".to_owned()),
            ("AWS_LAMBDA_LOG_GROUP_NAME", format!("/aws/lambda/{name}")),
            ("AWS_LAMBDA_LOG_STREAM_NAME", "test".to_owned()),
            ("AWS_LAMBDA_MAX_CONCURRENCY", max_concurrency.to_string()),
        ];
        let given = variables.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let all: Vec<(String, String)> =
            defaults.into_iter().chain(given).map(|(name, value)| (name.to_owned(), value)).collect();
        let process = process::Server::start(&binary(name)?, &[], &all, dir.path().join("log"))?;
        Ok(Self { process, api, private: private.clone(), _dir: dir })
    }

    /// Sets the timeout that the function is told from the next invocation on. Later responses are accepted.
    pub fn set_timeout(&self, timeout: Duration) {
        *lock(&self.api.timeout) = timeout;
    }

    /// Tells how far the function's clock is ahead, so that deadlines are by that clock.
    pub fn set_clock_offset(&self, offset: Duration) {
        *lock(&self.api.clock_offset) = offset;
    }

    /// Kills the instance. Its invocations in flight never end.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Invokes the function. Other invocations may be in flight.
    ///
    /// # Errors
    /// Fails if there is no response before the timeout.
    pub async fn invoke(&self, event: &Value) -> Result<Value> {
        let id = format!("{:032x}", fastrand::u128(..));
        let (sender, response) = oneshot::channel();
        self.api.pending().insert(id.clone(), sender);
        self.api.sender.send((id, Bytes::from(event.to_string())))?;
        let timeout = TIMEOUT.max(*lock(&self.api.timeout));
        let response = tokio::time::timeout(timeout, response).await.context("the function timed out")??;
        Ok(serde_json::from_slice(&response)?)
    }

    /// Returns the resident memory of the function's process, in bytes.
    ///
    /// # Errors
    /// Fails if the process doesn't exist.
    pub fn memory(&self) -> Result<usize> {
        Ok(process::ResourceUsage::of(self.process.pid())?.memory)
    }
}

impl Api {
    fn pending(&self) -> MutexGuard<'_, HashMap<String, oneshot::Sender<Bytes>>> {
        lock(&self.pending)
    }

    async fn handle(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
        let path = request.uri().path().to_owned();
        if path.ends_with("/invocation/next") {
            let (id, event) = self.events.lock().await.recv().await.context("there are no more events")?;
            let deadline = SystemTime::now() + *lock(&self.clock_offset) + *lock(&self.timeout);
            let deadline = deadline.duration_since(SystemTime::UNIX_EPOCH)?.as_millis();
            return Ok(Response::builder()
                .header("Lambda-Runtime-Aws-Request-Id", id)
                .header("Lambda-Runtime-Deadline-Ms", deadline.to_string())
                .header("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:us-east-1:123456789012:function:test")
                .header("Content-Type", "application/json")
                .body(Full::from(event))?);
        }
        let body = request.into_body().collect().await?.to_bytes();
        // …/invocation/{id}/response, or …/error.
        let id = path.rsplit('/').nth(1).unwrap_or_default();
        if let Some(sender) = self.pending().remove(id) {
            // The caller may have timed out.
            let _ = sender.send(body);
        }
        let mut response = Response::new(Full::from("{\"status\":\"OK\"}"));
        *response.status_mut() = StatusCode::ACCEPTED;
        Ok(response)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.process.stop();
        if !std::thread::panicking() {
            self.private.assert_not_in(&self.process.output());
        }
    }
}
