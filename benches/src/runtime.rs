//! Lambda's Runtime API, as far as one instance of a function uses it, and when
//! what passes by it.
//!
//! AWS's own emulator stands between a caller and a function with a millisecond
//! of its own; here the clock stands where Lambda's does.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::processor::Place;
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tests::http_server::Server;
use tokio::sync::{Mutex as AsyncMutex, mpsc};

/// The longest that a start or an invocation may take here.
const LIMIT: Duration = Duration::from_secs(300);

/// What one instance says to the Runtime API.
enum Said {
    /// It asks for the next event.
    Next(Instant),
    /// It has answered the last one: when, after how long, and what.
    Answered(Duration, Bytes),
    /// It has failed.
    Failed(Bytes),
}

/// An instance of a function that waits for an event.
pub(crate) struct Instance {
    child: Child,
    /// From the start of the process to its first request for an event.
    pub(crate) init: Duration,
    events: mpsc::Sender<Bytes>,
    said: mpsc::UnboundedReceiver<Said>,
    dir: TempDir,
}

/// The Runtime API's side of an instance.
#[derive(Clone)]
struct Api {
    events: Arc<AsyncMutex<mpsc::Receiver<Bytes>>>,
    /// When the last event was handed out.
    handed_out: Arc<Mutex<Instant>>,
    says: mpsc::UnboundedSender<Said>,
}

impl Instance {
    /// Starts one and waits until it asks for an event.
    pub(crate) async fn start(program: &Path, arguments: &[&str], variables: &[(String, String)]) -> Result<Self> {
        Self::start_on(None, program, arguments, variables).await
    }

    /// The same on a processor that nothing else of the bench's uses.
    pub(crate) async fn start_apart(
        program: &Path,
        arguments: &[&str],
        variables: &[(String, String)],
    ) -> Result<Self> {
        Self::start_on(Some(Place::on(true)?), program, arguments, variables).await
    }

    async fn start_on(
        place: Option<Place>,
        program: &Path,
        arguments: &[&str],
        variables: &[(String, String)],
    ) -> Result<Self> {
        let (events, queue) = mpsc::channel(1);
        let (says, said) = mpsc::unbounded_channel();
        let queue = Arc::new(AsyncMutex::new(queue));
        let api = Api { events: queue, handed_out: Arc::new(Mutex::new(Instant::now())), says };
        let server = Server::start(move |request| api.clone().answer(request)).await?;
        // In memory, where there is such a place: Lambda's log is no file on a disk.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
        let log = std::fs::File::create(dir.path().join("log"))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("AWS_LAMBDA_RUNTIME_API", format!("127.0.0.1:{}", server.port))
            .env("AWS_LAMBDA_FUNCTION_NAME", "bench")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256")
            .env("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/bench")
            .env("AWS_LAMBDA_LOG_STREAM_NAME", "bench")
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let started = Instant::now();
        let child = command.spawn().with_context(|| format!("{} cannot be started", program.display()))?;
        drop(place);
        let mut instance = Self { child, init: Duration::ZERO, events, said, dir };
        instance.init = instance.ready().await?.duration_since(started);
        Ok(instance)
    }

    /// Hands it an event. Gives what it answers, and how long it took from the
    /// event to the answer. It waits for an event again when this returns.
    pub(crate) async fn invoke(&mut self, event: &Bytes) -> Result<(Value, Duration)> {
        self.events.send(event.clone()).await?;
        let (took, answer) = match self.hear().await? {
            Said::Answered(took, answer) => (took, answer),
            Said::Failed(error) => bail!("the function failed: {}", String::from_utf8_lossy(&error)),
            Said::Next(_) => bail!("the function gave no answer"),
        };
        self.ready().await?;
        Ok((serde_json::from_slice(&answer)?, took))
    }

    async fn ready(&mut self) -> Result<Instant> {
        match self.hear().await? {
            Said::Next(at) => Ok(at),
            Said::Failed(error) => bail!("the function does not start: {}", String::from_utf8_lossy(&error)),
            Said::Answered(..) => bail!("the function answered twice"),
        }
    }

    async fn hear(&mut self) -> Result<Said> {
        let ended = async {
            loop {
                if let Ok(Some(status)) = self.child.try_wait() {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::select! {
            said = tokio::time::timeout(LIMIT, self.said.recv()) => said?.context("the Runtime API ended"),
            status = ended => bail!("the function ended with {status}: {}", self.printed()),
        }
    }

    /// What it has printed so far.
    pub(crate) fn printed(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The most memory that it has held, in MiB.
    pub(crate) fn peak_memory(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        Ok(kilobytes.context("/proc says nothing of its memory")?.parse::<f64>()? / 1024.0)
    }

    /// How long its main thread has had a processor.
    pub(crate) fn busy(&self) -> Result<Duration> {
        let text = std::fs::read_to_string(format!("/proc/{}/schedstat", self.pid()))?;
        let nanoseconds = text.split(' ').next().and_then(|number| number.parse().ok());
        Ok(Duration::from_nanos(nanoseconds.context("/proc says nothing of its time")?))
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn terminate(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)?;
        self.child.wait()?;
        Ok(())
    }

    /// Ends it, as Lambda does, and waits until it has gone.
    pub(crate) fn end(mut self) -> Result<()> {
        self.child.kill()?;
        ensure!(!self.child.wait()?.success(), "it ended by itself");
        Ok(())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Api {
    async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
        let path = request.uri().path().to_owned();
        if path.ends_with("/invocation/next") {
            let _ = self.says.send(Said::Next(Instant::now()));
            let event = self.events.lock().await.recv().await.context("there are no more events")?;
            let deadline = (SystemTime::now() + LIMIT).duration_since(SystemTime::UNIX_EPOCH)?.as_millis();
            let response = Response::builder()
                .header("Lambda-Runtime-Aws-Request-Id", "8476a536-e9f4-11e8-9739-2dfe598c3fcd")
                .header("Lambda-Runtime-Deadline-Ms", deadline.to_string())
                .header("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:us-east-1:123456789012:function:bench")
                .header(
                    "Lambda-Runtime-Trace-Id",
                    "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Parent=9a9197af755a6419;Sampled=1",
                )
                .header("Content-Type", "application/json")
                .body(Full::from(event))?;
            *self.handed_out.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            return Ok(response);
        }
        let body = request.into_body().collect().await?.to_bytes();
        let took = self.handed_out.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        let said = if path.ends_with("/response") { Said::Answered(took, body) } else { Said::Failed(body) };
        let _ = self.says.send(said);
        let mut response = Response::new(Full::from("{\"status\":\"OK\"}"));
        *response.status_mut() = StatusCode::ACCEPTED;
        Ok(response)
    }
}
