//! Lambda's Runtime API, as far as one instance of a function uses it, with the time of each call.
//!
//! AWS's own emulator adds a millisecond between a caller and a function. Here, time is measured at the same point as
//! on Lambda.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tests::clock::{preload, remove_clock};
use tests::http_server::Server;
use tokio::sync::{Mutex as AsyncMutex, mpsc};

use crate::processor::CpuAffinity;

/// The timeout of a start or an invocation.
const TIMEOUT: Duration = Duration::from_secs(300);

/// A call by an instance to the Runtime API.
enum ApiCall {
    /// A request for the next event, and when it arrived.
    Next(Instant),
    /// The response to the last event: how long it took, and its body.
    Response(Duration, Bytes),
    /// An error report.
    Error(Bytes),
}

/// An instance of a function, which waits for an event.
pub(crate) struct Instance {
    child: Child,
    /// The time from the start of the process to its first request for an event.
    pub(crate) init: Duration,
    events: mpsc::Sender<Bytes>,
    calls: mpsc::UnboundedReceiver<ApiCall>,
    dir: TempDir,
}

/// The Runtime API of an instance.
#[derive(Clone)]
struct Api {
    events: Arc<AsyncMutex<mpsc::Receiver<Bytes>>>,
    /// The time at which the last event was sent.
    sent_at: Arc<Mutex<Instant>>,
    /// How far the function's clock is ahead.
    clock_offset: Duration,
    calls: mpsc::UnboundedSender<ApiCall>,
}

impl Instance {
    /// Starts an instance, and waits until it requests an event.
    pub(crate) async fn start(program: &Path, arguments: &[&str], variables: &[(String, String)]) -> Result<Self> {
        Self::start_with(None, Duration::ZERO, program, arguments, variables).await
    }

    /// Starts an instance whose clock is ahead by this much.
    pub(crate) async fn start_ahead(
        clock_offset: Duration,
        program: &Path,
        variables: &[(String, String)],
    ) -> Result<Self> {
        let mut variables = variables.to_vec();
        variables.push(preload()?);
        variables.push(("FAKETIME".to_owned(), format!("+{}", clock_offset.as_secs())));
        Self::start_with(None, clock_offset, program, &[], &variables).await
    }

    /// Does the same on a CPU that no other process of the benchmark uses.
    pub(crate) async fn start_pinned(
        program: &Path,
        arguments: &[&str],
        variables: &[(String, String)],
    ) -> Result<Self> {
        Self::start_with(Some(CpuAffinity::set(true)?), Duration::ZERO, program, arguments, variables).await
    }

    /// Starts an instance. It inherits the affinity of this thread, which is restored afterward.
    async fn start_with(
        affinity: Option<CpuAffinity>,
        clock_offset: Duration,
        program: &Path,
        arguments: &[&str],
        variables: &[(String, String)],
    ) -> Result<Self> {
        let (events, queue) = mpsc::channel(1);
        let (calls_sender, calls) = mpsc::unbounded_channel();
        let queue = Arc::new(AsyncMutex::new(queue));
        let api =
            Api { events: queue, sent_at: Arc::new(Mutex::new(Instant::now())), clock_offset, calls: calls_sender };
        let server = Server::start(move |request| api.clone().handle(request)).await?;
        // Lambda doesn't write the log to a disk.
        let dir = memory_dir()?;
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
        let child = command.spawn().with_context(|| format!("starting {} failed", program.display()))?;
        drop(affinity);
        let mut instance = Self { child, init: Duration::ZERO, events, calls, dir };
        instance.init = instance.wait_until_ready().await?.duration_since(started);
        Ok(instance)
    }

    /// Sends an event. Returns the response, and the time from the event to the response. When this returns, the
    /// instance is waiting for an event again.
    pub(crate) async fn invoke(&mut self, event: &Bytes) -> Result<(Value, Duration)> {
        self.events.send(event.clone()).await?;
        let (took, response) = match self.next_call().await? {
            ApiCall::Response(took, response) => (took, response),
            ApiCall::Error(error) => bail!("the function failed: {}", String::from_utf8_lossy(&error)),
            ApiCall::Next(_) => bail!("expected a response, but the function requested the next event"),
        };
        self.wait_until_ready().await?;
        Ok((serde_json::from_slice(&response)?, took))
    }

    /// Waits until the instance requests an event. Returns when it did.
    async fn wait_until_ready(&mut self) -> Result<Instant> {
        match self.next_call().await? {
            ApiCall::Next(at) => Ok(at),
            ApiCall::Error(error) => bail!("the function reported an error: {}", String::from_utf8_lossy(&error)),
            ApiCall::Response(..) => {
                bail!("expected a request for the next event, but the function sent a second response")
            }
        }
    }

    /// Waits for the next call. Fails if the process exits.
    async fn next_call(&mut self) -> Result<ApiCall> {
        let exit = async {
            loop {
                if let Ok(Some(status)) = self.child.try_wait() {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::select! {
            call = tokio::time::timeout(TIMEOUT, self.calls.recv()) => call?.context("the Runtime API stopped"),
            status = exit => bail!("the function exited with {status}: {}", self.log()),
        }
    }

    /// Returns the output so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Returns the process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the peak memory, in MiB.
    pub(crate) fn peak_memory(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        Ok(kilobytes.context("expected VmHWM in /proc/PID/status")?.parse::<f64>()? / 1024.0)
    }

    /// Returns the CPU time of the main thread.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        let text = std::fs::read_to_string(format!("/proc/{}/schedstat", self.pid()))?;
        let nanoseconds = text.split(' ').next().and_then(|number| number.parse().ok());
        Ok(Duration::from_nanos(nanoseconds.context("expected a CPU time in /proc/PID/schedstat")?))
    }

    /// Sends SIGTERM, and waits until the process has exited.
    pub(crate) fn terminate(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends SIGKILL, as Lambda does, and waits until the process has exited.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        ensure!(!self.child.wait()?.success(), "the function exited before it was killed");
        Ok(())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        remove_clock(self.child.id().cast_signed());
    }
}

/// Creates a folder in memory, if that is possible.
pub(crate) fn memory_dir() -> Result<TempDir> {
    Ok(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?)
}

impl Api {
    /// Handles a call by the function.
    async fn handle(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
        let path = request.uri().path().to_owned();
        if path.ends_with("/invocation/next") {
            let _ = self.calls.send(ApiCall::Next(Instant::now()));
            let event = self.events.lock().await.recv().await.context("there are no more events")?;
            let deadline =
                (SystemTime::now() + self.clock_offset + TIMEOUT).duration_since(SystemTime::UNIX_EPOCH)?.as_millis();
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
            *self.sent_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            return Ok(response);
        }
        let body = request.into_body().collect().await?.to_bytes();
        let took = self.sent_at.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        let call = if path.ends_with("/response") { ApiCall::Response(took, body) } else { ApiCall::Error(body) };
        let _ = self.calls.send(call);
        let mut response = Response::new(Full::from("{\"status\":\"OK\"}"));
        *response.status_mut() = StatusCode::ACCEPTED;
        Ok(response)
    }
}
