//! A real PostgreSQL with a database for Mailman.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use crate::process::{Server, free_port};
use crate::shared_servers;

/// PostgreSQL refuses to run as root. Debian's package creates this user for it.
const USER: &str = "postgres";

/// A database on a running server. If no other test uses the server, dropping this
/// deletes the server's data.
pub struct Postgres {
    port: u16,
    database: String,
    /// The server, unless tests share it.
    _own: Option<PostgresServer>,
}

/// A running server. Dropping it deletes its data.
pub struct PostgresServer {
    _server: Server,
    _dir: TempDir,
    port: u16,
}

impl Postgres {
    /// Creates a database on the server that tests share, or on a new one.
    ///
    /// # Errors
    /// Fails if PostgreSQL is not installed or doesn't start.
    pub fn start() -> anyhow::Result<Self> {
        let shared = shared_servers::text(shared_servers::POSTGRES_PORT);
        let (port, own) = match shared.map(|port| port.parse()).transpose()? {
            Some(port) => (port, None),
            None => {
                let server = PostgresServer::start()?;
                (server.port, Some(server))
            }
        };
        let database = format!("mailman_{:016x}", fastrand::u64(..));
        create_database(port, &database)?;
        Ok(Self { port, database, _own: own })
    }

    /// Returns the URL of the database, in SQLAlchemy's format.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgresql://{USER}@127.0.0.1:{}/{}", self.port, self.database)
    }
}

impl PostgresServer {
    /// Starts a server.
    ///
    /// # Errors
    /// Fails if PostgreSQL is not installed or doesn't start.
    pub fn start() -> anyhow::Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir()?;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
        let data = dir.path().join("data");
        let is_root = nix::unistd::geteuid().is_root();
        let mut install = Command::new("install");
        install.args(["-d", "-m", "700"]).args(if is_root { &["-o", USER][..] } else { &[] }).arg(&data);
        run(&mut install)?;
        let data = data.display().to_string();
        run(&mut as_user(is_root, &program("initdb")?, &["-D", &data, "-A", "trust", "-U", USER, "--no-sync"]))?;
        let port = free_port()?;
        let port_text = port.to_string();
        // -F: no fsync. The data doesn't outlive the test, so it needn't survive a crash.
        let arguments = ["-D", &data, "-h", "127.0.0.1", "-p", &port_text, "-k", "", "-F"];
        let command = as_user(is_root, &program("postgres")?, &arguments);
        let arguments: Vec<&str> = command.get_args().filter_map(|argument| argument.to_str()).collect();
        let mut server =
            Server::start(Path::new(command.get_program()), &arguments, &[], dir.path().join("postgres.log"))?;
        server.wait_for_port(port, Duration::from_secs(30)).context("PostgreSQL failed to start")?;
        Ok(Self { _server: server, _dir: dir, port })
    }

    /// Returns the port that it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Creates a database. PostgreSQL listens a moment before it accepts commands, so this retries.
fn create_database(port: u16, name: &str) -> anyhow::Result<()> {
    let mut create = Command::new(program("createdb")?);
    create.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", USER, name]);
    for _ in 0..100 {
        let output = create.output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        match output.status.success() {
            true => return Ok(()),
            false if error.contains("starting up") => std::thread::sleep(Duration::from_millis(50)),
            false => bail!("createdb failed: {error}"),
        }
    }
    bail!("PostgreSQL is still starting up")
}

/// Returns a command that runs `program` as a user other than root.
fn as_user(is_root: bool, program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(if is_root { Path::new("setpriv") } else { program });
    if is_root {
        // Changing the user resets the parent death signal, so it is set again here.
        command.args(["--reuid", USER, "--regid", USER, "--init-groups", "--pdeathsig", "KILL", "--"]).arg(program);
    }
    command.args(arguments).current_dir("/");
    command
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Returns the path of a program of the newest installed PostgreSQL.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let versions =
        std::fs::read_dir("/usr/lib/postgresql").context("PostgreSQL is missing. `make test` installs it.")?;
    let programs = versions.flatten().map(|version| version.path().join("bin").join(name));
    let newest = programs.filter(|path| path.is_file()).max();
    newest.with_context(|| format!("PostgreSQL's {name} is missing. `make test` installs it."))
}
