//! Starts the servers that tests share (see `tests::shared_servers`), runs a command
//! with their addresses in its environment, and stops them. `make test` runs all tests
//! this way.
#![expect(clippy::print_stderr, reason = "errors are for the terminal that `make test` runs in")]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::statvfs;
use nix::unistd::Pid;
use tempfile::TempDir;
use tests::aws::Moto;
use tests::function::venv;
use tests::mailman::Mailman;
use tests::postgres::PostgresServer;
use tests::process::Server;
use tests::{shared_servers, workspace};
use tokio::signal::unix::{SignalKind, signal};

/// A directory in memory, on which no server has to wait for a disk.
const MEMORY: &str = "/dev/shm";
/// The space that must be free there, in bytes. The tests use less than a tenth of it.
const FREE_SPACE: u64 = 2 << 30;

#[tokio::main]
async fn main() -> ExitCode {
    let command: Vec<String> = std::env::args().skip(1).collect();
    let [program, arguments @ ..] = command.as_slice() else {
        eprintln!("usage: shared_servers COMMAND [ARGUMENT]...");
        return ExitCode::from(2);
    };
    match run(program, arguments).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("shared_servers: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a command and returns its exit code.
async fn run(program: &str, arguments: &[String]) -> Result<u8> {
    let dir = directory()?;
    let (sockets, database) = (dir.path().join("fork_servers"), dir.path().join("mailman.db"));
    std::fs::create_dir(&sockets)?;
    // They import their programs while the other servers start.
    let mut fork_servers = shared_servers::FORKED_PROGRAMS
        .iter()
        .map(|program| start_fork_server(program, &sockets))
        .collect::<Result<Vec<_>>>()?;
    let (moto, postgres) = (Moto::start_own()?, PostgresServer::start()?);
    Mailman::write_new_database(&database).await?;
    for (fork_server, program) in fork_servers.iter_mut().zip(shared_servers::FORKED_PROGRAMS) {
        let started = fork_server.wait_for_socket(&sockets.join(program), Duration::from_secs(60));
        started.with_context(|| format!("the fork server of {program} failed to start"))?;
    }

    // The command gets the signals of their terminal too, and ends by itself.
    let _interrupts = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut child = Command::new(program)
        .args(arguments)
        .env(shared_servers::MOTO_URL, moto.url())
        .env(shared_servers::POSTGRES_PORT, postgres.port().to_string())
        .env(shared_servers::FORK_SERVERS, &sockets)
        .env(shared_servers::MAILMAN_DATABASE, &database)
        .env("TMPDIR", dir.path())
        .spawn()
        .with_context(|| format!("starting {program} failed"))?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let mut ended = tokio::task::spawn_blocking(move || child.wait());
    loop {
        tokio::select! {
            status = &mut ended => {
                return Ok(status??.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1));
            }
            _ = terminate.recv() => kill(pid, Signal::SIGTERM)?,
        }
    }
}

fn start_fork_server(program: &str, sockets: &Path) -> Result<Server> {
    let script = text(&workspace().join("tests/fork_server.py"));
    let arguments = [&script, program, &text(&sockets.join(program))];
    Server::start(&venv().join("bin/python"), &arguments, &[], sockets.join(format!("{program}.log")))
}

/// Creates the directory of all servers and tests, in memory if there is enough of it.
fn directory() -> Result<TempDir> {
    let has_space = statvfs(MEMORY).is_ok_and(|info| info.blocks_available() * info.fragment_size() >= FREE_SPACE);
    let parent = if has_space { PathBuf::from(MEMORY) } else { std::env::temp_dir() };
    let dir = tempfile::Builder::new().prefix("novi-bridge-").tempdir_in(parent)?;
    // PostgreSQL's user also has directories in it.
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
    Ok(dir)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
