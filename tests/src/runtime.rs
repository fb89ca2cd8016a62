//! Lambda's Runtime API before one instance of a function that takes several
//! events at a time, as a managed instance does. AWS's emulator hands out one.

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

/// How long an invocation may take.
const LIMIT: Duration = Duration::from_secs(60);

/// An instance. When it is dropped it is stopped, and its log must hold nothing
/// private.
pub struct Instance {
    process: process::Server,
    api: Api,
    private: Private,
    _dir: TempDir,
}

/// The Runtime API's side of it.
#[derive(Clone)]
struct Api {
    say: mpsc::UnboundedSender<(String, Bytes)>,
    events: Arc<AsyncMutex<mpsc::UnboundedReceiver<(String, Bytes)>>>,
    /// Who waits for which answer.
    waiting: Arc<Mutex<HashMap<String, oneshot::Sender<Bytes>>>>,
}

impl Instance {
    /// Starts `name`, told to take `at_once` events at a time.
    ///
    /// # Errors
    /// Where it is not built, or no port is free.
    pub async fn start(
        name: &str,
        at_once: usize,
        config: &Value,
        variables: &[(&str, &str)],
        private: &Private,
    ) -> Result<Self> {
        let (say, events) = mpsc::unbounded_channel();
        let api = Api { say, events: Arc::new(AsyncMutex::new(events)), waiting: Arc::default() };
        let answering = api.clone();
        let server = Server::start(move |request| answering.clone().answer(request)).await?;
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("config.json"), config.to_string())?;
        let usual = [
            ("CONFIG_FILE", dir.path().join("config.json").display().to_string()),
            ("AWS_LAMBDA_LOG_LEVEL", "TRACE".to_owned()),
            ("AWS_LAMBDA_RUNTIME_API", format!("127.0.0.1:{}", server.port)),
            ("AWS_LAMBDA_FUNCTION_NAME", name.to_owned()),
            ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST".to_owned()),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256".to_owned()),
            ("AWS_LAMBDA_LOG_GROUP_NAME", format!("/aws/lambda/{name}")),
            ("AWS_LAMBDA_LOG_STREAM_NAME", "test".to_owned()),
            ("AWS_LAMBDA_MAX_CONCURRENCY", at_once.to_string()),
        ];
        let given = variables.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let all: Vec<(String, String)> =
            usual.into_iter().chain(given).map(|(name, value)| (name.to_owned(), value)).collect();
        let process = process::Server::start(&binary(name)?, &[], &all, dir.path().join("log"))?;
        Ok(Self { process, api, private: private.clone(), _dir: dir })
    }

    /// Invokes it; others may be under way.
    ///
    /// # Errors
    /// Where there is no answer in time.
    pub async fn invoke(&self, event: &Value) -> Result<Value> {
        let id = format!("{:032x}", fastrand::u128(..));
        let (answered, answer) = oneshot::channel();
        self.api.waiting().insert(id.clone(), answered);
        self.api.say.send((id, Bytes::from(event.to_string())))?;
        let answer = tokio::time::timeout(LIMIT, answer).await.context("the function hangs")??;
        Ok(serde_json::from_slice(&answer)?)
    }

    /// The resident memory of its process, in bytes.
    ///
    /// # Errors
    /// Where the process is not there.
    pub fn memory(&self) -> Result<usize> {
        Ok(process::ResourceUsage::of(self.process.pid())?.memory)
    }
}

impl Api {
    fn waiting(&self) -> MutexGuard<'_, HashMap<String, oneshot::Sender<Bytes>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
        let path = request.uri().path().to_owned();
        if path.ends_with("/invocation/next") {
            let (id, event) = self.events.lock().await.recv().await.context("there are no more events")?;
            let deadline = (SystemTime::now() + LIMIT).duration_since(SystemTime::UNIX_EPOCH)?.as_millis();
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
        if let Some(waiting) = self.waiting().remove(id) {
            // Whoever has asked may have given up.
            let _ = waiting.send(body);
        }
        let mut response = Response::new(Full::from("{\"status\":\"OK\"}"));
        *response.status_mut() = StatusCode::ACCEPTED;
        Ok(response)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.process.stop();
        if !std::thread::panicking() {
            self.private.assert_not_in(&self.process.printed());
        }
    }
}
