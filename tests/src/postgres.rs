//! A real PostgreSQL with a database for Mailman.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use crate::process::{Server, free_port};

/// PostgreSQL refuses to run as root. Debian's package creates this user for it.
const USER: &str = "postgres";

/// A running server. Dropping it deletes its data.
pub struct Postgres {
    _server: Server,
    _dir: TempDir,
    port: u16,
}

impl Postgres {
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
        let postgres = Self { _server: server, _dir: dir, port };
        postgres.create_database()?;
        Ok(postgres)
    }

    /// Returns the URL of the database, in SQLAlchemy's format.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgresql://{USER}@127.0.0.1:{}/mailman", self.port)
    }

    /// Creates the database. PostgreSQL listens a moment before it accepts commands, so this retries.
    fn create_database(&self) -> anyhow::Result<()> {
        let port = self.port.to_string();
        let mut create = Command::new(program("createdb")?);
        create.args(["-h", "127.0.0.1", "-p", &port, "-U", USER, "mailman"]);
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
