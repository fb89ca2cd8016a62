//! Servers as child processes: started with their output in a file, waited for
//! until they listen, and stopped with their owner, whatever ends it.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// A server that is stopped when this is dropped.
pub struct Server {
    child: Child,
    /// What it has printed.
    pub output: PathBuf,
}

/// What a process holds.
#[derive(Clone, Copy, Debug)]
pub struct ResourceUsage {
    /// Resident memory in bytes.
    pub memory: usize,
    /// Open files, sockets among them.
    pub files: usize,
    /// Threads.
    pub threads: usize,
}

impl ResourceUsage {
    /// What a process holds now.
    ///
    /// # Errors
    /// Where it is not there.
    pub fn of(process: i32) -> anyhow::Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
        let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        let count = |what: &str| std::fs::read_dir(format!("/proc/{process}/{what}")).map(Iterator::count);
        Ok(Self {
            memory: kilobytes.context("/proc says nothing of its memory")?.parse::<usize>()? * 1024,
            files: count("fd")?,
            threads: count("task")?,
        })
    }
}

/// A port that nobody listens on now. It lies below those that the system
/// gives to outgoing connections, so that none of these takes it before a
/// server that is told to use it has started.
///
/// # Errors
/// Where there is none.
pub fn free_port() -> io::Result<u16> {
    for _ in 0..1_000 {
        let port = fastrand::u16(10_000..32_000);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(io::Error::from(io::ErrorKind::AddrNotAvailable))
}

/// Runs the work of a program that another one has started: until the work ends,
/// the standard input is closed, or a signal comes. What the work has started is
/// stopped as it is dropped. An error is told on standard error.
pub async fn until_closed(program: &str, work: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let outcome = tokio::select! {
        outcome = work => outcome,
        () = closed() => Ok(()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "whoever has started the program reads it")]
            {
                eprintln!("{program}: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

async fn closed() {
    let (closed, close) = oneshot::channel();
    // A thread of its own: the runtime would wait at its end for one that it reads in.
    std::thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        let _ = closed.send(());
    });
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    tokio::select! {
        _ = close => {}
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

/// The processes that `parent` has started and that are still there.
///
/// # Errors
/// Where `/proc` cannot be read.
pub fn children(parent: i32) -> io::Result<Vec<i32>> {
    let is_child = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name before it may hold anything.
        stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)?.parse().ok()) == Some(parent)
    };
    let processes = std::fs::read_dir("/proc")?.flatten();
    Ok(processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_child).collect())
}

impl Server {
    /// Starts `program` with `arguments` in an environment of `variables` and
    /// `PATH` alone. It dies with the calling thread, even where that is killed:
    /// no test run leaves a server behind.
    ///
    /// # Errors
    /// Where the program is not there.
    pub fn start(
        program: &Path,
        arguments: &[&str],
        variables: &[(String, String)],
        output: PathBuf,
    ) -> anyhow::Result<Self> {
        let file = File::create(&output).with_context(|| format!("{} cannot be written", output.display()))?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .current_dir(output.parent().unwrap_or(Path::new("/")))
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("setpriv (util-linux) cannot be started")?;
        Ok(Self { child, output })
    }

    /// Waits until something listens on `port`.
    ///
    /// # Errors
    /// Where the server ends before, or does not listen within `limit`.
    pub fn wait_for_port(&mut self, port: u16, limit: Duration) -> anyhow::Result<()> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let started = Instant::now();
        while std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended with {status}: {}", self.printed());
            }
            if started.elapsed() > limit {
                bail!("the server does not listen after {limit:?}: {}", self.printed());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.pid()), signal);
    }

    /// Ends it and what it has started at once, as a crash would.
    pub fn kill(&mut self) {
        let children = children(self.pid()).unwrap_or_default();
        let _ = self.child.kill();
        for child in children {
            let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }

    /// What it has printed so far.
    #[must_use]
    pub fn printed(&self) -> String {
        std::fs::read(&self.output).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Stops it and waits for its end.
    pub fn stop(&mut self) {
        // One that is stopped hears nothing until it goes on.
        self.signal(Signal::SIGCONT);
        self.signal(Signal::SIGTERM);
        let started = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if started.elapsed() > Duration::from_secs(3) {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}
