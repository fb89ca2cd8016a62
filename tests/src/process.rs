//! Servers as child processes. Their output goes to a file, their owner waits
//! until they listen, and they stop with their owner, however that ends.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::clock::remove_clock;
use crate::fork_server::ForkedProcess;

/// A server process. Dropping it stops the process.
pub struct Server {
    process: Process,
    /// The file with everything that the server prints.
    output_file: PathBuf,
}

/// The process of a server.
enum Process {
    /// A child of this process.
    Child(Child),
    /// A child of a fork server.
    Forked(ForkedProcess),
}

impl Process {
    fn pid(&self) -> i32 {
        match self {
            Self::Child(child) => child.id().cast_signed(),
            Self::Forked(process) => process.pid(),
        }
    }

    /// Returns the exit status if the process has exited.
    fn try_wait(&mut self) -> io::Result<Option<String>> {
        match self {
            Self::Child(child) => Ok(child.try_wait()?.map(|status| status.to_string())),
            Self::Forked(process) => process.try_wait(),
        }
    }

    /// Kills the process and waits until it has exited.
    fn kill(&mut self) {
        // A process that has exited no longer has a process id of its own.
        if matches!(self.try_wait(), Ok(None)) {
            let _ = kill(Pid::from_raw(self.pid()), Signal::SIGKILL);
        }
        let _ = match self {
            Self::Child(child) => child.wait().map(drop),
            Self::Forked(process) => process.wait(),
        };
        remove_clock(self.pid());
    }
}

/// The resources that a process uses.
#[derive(Clone, Copy, Debug)]
pub struct ResourceUsage {
    /// The resident memory in bytes.
    pub memory: usize,
    /// The number of open files, including sockets.
    pub files: usize,
    /// The number of threads.
    pub threads: usize,
}

impl ResourceUsage {
    /// Returns the current resource usage of a process.
    ///
    /// # Errors
    /// Fails if the process doesn't exist.
    pub fn of(process: i32) -> anyhow::Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
        let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        let count = |directory: &str| std::fs::read_dir(format!("/proc/{process}/{directory}")).map(Iterator::count);
        Ok(Self {
            memory: kilobytes.context("/proc doesn't contain its resident memory")?.parse::<usize>()? * 1024,
            files: count("fd")?,
            threads: count("task")?,
        })
    }
}

/// Returns a port that is not in use. It is below the range of ephemeral ports,
/// so that no outgoing connection takes it before the server that is to use it
/// has started.
///
/// # Errors
/// Fails if no free port is found.
pub fn free_port() -> io::Result<u16> {
    for _ in 0..1_000 {
        let port = fastrand::u16(10_000..32_000);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(io::Error::from(io::ErrorKind::AddrNotAvailable))
}

/// Starts a server on a free port, in up to three attempts, because another process may take the port before the server
/// binds it.
///
/// # Errors
/// Returns the error of the last attempt.
pub async fn start_on_free_port<T, F: Future<Output = anyhow::Result<T>>>(start: impl Fn() -> F) -> anyhow::Result<T> {
    for _ in 0..2 {
        if let Ok(server) = start().await {
            return Ok(server);
        }
    }
    start().await
}

/// Waits until no process listens on `port`.
///
/// # Errors
/// Fails if one still does after `timeout`.
pub fn wait_until_closed(port: u16, timeout: Duration) -> anyhow::Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let started = Instant::now();
    while TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok() {
        ensure!(started.elapsed() < timeout, "the port is still open after {timeout:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Runs the work of a program that another program started, until the work ends,
/// standard input is closed, or a signal arrives. Everything that the work
/// started is dropped, and so stopped. Errors are printed to standard error.
pub async fn run_until_closed(program: &str, work: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let outcome = tokio::select! {
        outcome = work => outcome,
        () = shutdown_requested() => Ok(()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the program that started this one reads it")]
            {
                eprintln!("{program}: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

async fn shutdown_requested() {
    let (sender, closed) = oneshot::channel();
    // A separate thread, because the runtime would wait for one of its own blocking threads when it shuts down.
    std::thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        let _ = sender.send(());
    });
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    tokio::select! {
        _ = closed => {}
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

/// Returns the ids of the child processes of `parent`.
///
/// # Errors
/// Fails if `/proc` can't be read.
pub fn children(parent: i32) -> io::Result<Vec<i32>> {
    let is_child = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Skip the process name, which may contain any characters.
        stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)?.parse().ok()) == Some(parent)
    };
    let processes = std::fs::read_dir("/proc")?.flatten();
    Ok(processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_child).collect())
}

impl Server {
    /// Starts `program` with `arguments`. Its environment contains only
    /// `variables` and `PATH`. It is killed when the calling thread ends, even if
    /// that is killed, so that no test run leaves a server behind.
    ///
    /// # Errors
    /// Fails if the program can't be started.
    pub fn start(
        program: &Path,
        arguments: &[&str],
        variables: &[(String, String)],
        output_file: PathBuf,
    ) -> anyhow::Result<Self> {
        let file = File::create(&output_file).with_context(|| format!("creating {} failed", output_file.display()))?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .current_dir(output_file.parent().unwrap_or(Path::new("/")))
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("starting setpriv (util-linux) failed")?;
        Ok(Self { process: Process::Child(child), output_file })
    }

    /// Lets the fork server at `socket` start a server with these arguments. Like
    /// other servers, it is killed if this process ends.
    ///
    /// # Errors
    /// Fails if the fork server doesn't respond.
    pub fn fork(socket: &Path, arguments: &[&str], output_file: PathBuf) -> anyhow::Result<Self> {
        let directory = output_file.parent().unwrap_or(Path::new("/"));
        let process = ForkedProcess::start(socket, arguments, directory, &output_file)?;
        Ok(Self { process: Process::Forked(process), output_file })
    }

    /// Waits until the server listens on `port`.
    ///
    /// # Errors
    /// Fails if the server exits, or doesn't listen within `timeout`.
    pub fn wait_for_port(&mut self, port: u16, timeout: Duration) -> anyhow::Result<()> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        self.wait_until(timeout, || TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok())
    }

    /// Waits until the server listens on the Unix socket at `path`.
    ///
    /// # Errors
    /// Fails if the server exits, or doesn't listen within `timeout`.
    pub fn wait_for_socket(&mut self, path: &Path, timeout: Duration) -> anyhow::Result<()> {
        self.wait_until(timeout, || UnixStream::connect(path).is_ok())
    }

    fn wait_until(&mut self, timeout: Duration, is_listening: impl Fn() -> bool) -> anyhow::Result<()> {
        let started = Instant::now();
        while !is_listening() {
            if let Some(status) = self.process.try_wait()? {
                bail!("the server exited, {status}: {}", self.output());
            }
            if started.elapsed() > timeout {
                bail!("the server isn't listening after {timeout:?}: {}", self.output());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Returns the process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.pid()), signal);
    }

    /// Kills the process and its children, as a crash would.
    pub fn kill(&mut self) {
        let children = children(self.pid()).unwrap_or_default();
        // The parent first, because it would replace its children.
        self.process.kill();
        for child in children {
            let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
        }
    }

    /// Returns everything that the server has printed so far.
    #[must_use]
    pub fn output(&self) -> String {
        std::fs::read(&self.output_file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Stops the process and waits until it has exited.
    pub fn stop(&mut self) {
        // A process that is suspended doesn't handle SIGTERM until it is resumed.
        self.signal(Signal::SIGCONT);
        self.signal(Signal::SIGTERM);
        let started = Instant::now();
        while matches!(self.process.try_wait(), Ok(None)) {
            if started.elapsed() > Duration::from_secs(3) {
                self.process.kill();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        remove_clock(self.pid());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}
