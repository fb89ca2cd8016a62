//! A real PostgreSQL with a database for Mailman.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use crate::process::{Server, free_port};

/// PostgreSQL does not run as root; Debian's package makes this user for it.
const USER: &str = "postgres";

/// A running server. Its data go with it.
pub struct Postgres {
    _server: Server,
    _dir: TempDir,
    port: u16,
}

impl Postgres {
    /// Starts one.
    ///
    /// # Errors
    /// Where PostgreSQL is not installed or does not start.
    pub fn start() -> anyhow::Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir()?;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
        let data = dir.path().join("data");
        let is_root = nix::unistd::geteuid().is_root();
        let mut make = Command::new("install");
        make.args(["-d", "-m", "700"]).args(if is_root { &["-o", USER][..] } else { &[] }).arg(&data);
        succeed(&mut make)?;
        let data = data.display().to_string();
        succeed(&mut as_user(is_root, &program("initdb")?, &["-D", &data, "-A", "trust", "-U", USER, "--no-sync"]))?;
        let port = free_port()?;
        let number = port.to_string();
        // It outlives no test: what a crash would lose need not be on the disk.
        let arguments = ["-D", &data, "-h", "127.0.0.1", "-p", &number, "-k", "", "-F"];
        let command = as_user(is_root, &program("postgres")?, &arguments);
        let arguments: Vec<&str> = command.get_args().filter_map(|argument| argument.to_str()).collect();
        let mut server =
            Server::start(Path::new(command.get_program()), &arguments, &[], dir.path().join("postgres.log"))?;
        server.wait_for_port(port, Duration::from_secs(30)).context("PostgreSQL does not start")?;
        let postgres = Self { _server: server, _dir: dir, port };
        postgres.create_database()?;
        Ok(postgres)
    }

    /// As SQLAlchemy wants it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgresql://{USER}@127.0.0.1:{}/mailman", self.port)
    }

    /// It listens a moment before it takes commands.
    fn create_database(&self) -> anyhow::Result<()> {
        let port = self.port.to_string();
        let mut create = Command::new(program("createdb")?);
        create.args(["-h", "127.0.0.1", "-p", &port, "-U", USER, "mailman"]);
        for _ in 0..100 {
            let output = create.output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            match output.status.success() {
                true => return Ok(()),
                false if said.contains("starting up") => std::thread::sleep(Duration::from_millis(50)),
                false => bail!("createdb: {said}"),
            }
        }
        bail!("PostgreSQL goes on starting up")
    }
}

/// Runs `program` as the user that PostgreSQL runs as.
fn as_user(is_root: bool, program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(if is_root { Path::new("setpriv") } else { program });
    if is_root {
        // Changing the user forgets what it was to die of.
        command.args(["--reuid", USER, "--regid", USER, "--init-groups", "--pdeathsig", "KILL", "--"]).arg(program);
    }
    command.args(arguments).current_dir("/");
    command
}

fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A program of the newest PostgreSQL that is installed.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let versions =
        std::fs::read_dir("/usr/lib/postgresql").context("PostgreSQL is missing; `make test` installs it")?;
    let programs = versions.flatten().map(|version| version.path().join("bin").join(name));
    let newest = programs.filter(|path| path.is_file()).max();
    newest.with_context(|| format!("PostgreSQL has no {name}; `make test` installs it"))
}
