//! A real MariaDB with a database for Mailman, for the tests of the long tier.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use tempfile::TempDir;

use crate::process::{Server, free_port};

/// The name of the database.
const DATABASE: &str = "mailman";

/// A running server with one database. Dropping it deletes its data.
pub struct MariaDb {
    _server: Server,
    _dir: TempDir,
    port: u16,
}

impl MariaDb {
    /// Starts a server with an empty database.
    ///
    /// # Errors
    /// Fails if MariaDB is not installed or doesn't start.
    pub fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let data = format!("--datadir={}", dir.path().join("data").display());
        // MariaDB runs as root only if it is told to.
        let user: &[&str] = if nix::unistd::geteuid().is_root() { &["--user=root"] } else { &[] };
        let mut install = Command::new("mariadb-install-db");
        install.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db", &data]).args(user);
        let output = install.output().context("MariaDB is missing. `make test-long` installs it.")?;
        ensure!(output.status.success(), "{install:?} failed: {}", String::from_utf8_lossy(&output.stderr));
        // Executed by the server itself before it listens.
        let file = dir.path().join("init.sql");
        std::fs::write(&file, format!("CREATE DATABASE {DATABASE} CHARACTER SET utf8mb4;\n"))?;
        let port = free_port()?;
        let (socket, init) = (dir.path().join("socket"), format!("--init-file={}", file.display()));
        let (socket, port_text) = (format!("--socket={}", socket.display()), format!("--port={port}"));
        let arguments = [
            &["--no-defaults", &data, &socket, &port_text, &init, "--bind-address=127.0.0.1"],
            // The data doesn't outlive the test, so it needn't survive a crash.
            &["--innodb-flush-log-at-trx-commit=0", "--skip-log-bin", "--pid-file=pid"][..],
            user,
        ]
        .concat();
        let mut server = Server::start(Path::new("/usr/sbin/mariadbd"), &arguments, &[], dir.path().join("log"))?;
        server.wait_for_port(port, Duration::from_secs(60)).context("MariaDB failed to start")?;
        Ok(Self { _server: server, _dir: dir, port })
    }

    /// Returns the URL of the database, in SQLAlchemy's format.
    #[must_use]
    pub fn url(&self) -> String {
        format!("mysql+pymysql://root@127.0.0.1:{}/{DATABASE}?charset=utf8mb4", self.port)
    }
}
