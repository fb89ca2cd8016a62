//! Processes that a fork server starts instead of this process, see `tests/fork_server.py`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::Context;
use serde_json::json;

/// A process that a fork server has started. The fork server kills it when this is
/// dropped, even if that is because this process was killed.
pub struct ForkedProcess {
    pid: i32,
    connection: UnixStream,
    /// The exit status, once the process has exited.
    status: Option<String>,
}

impl ForkedProcess {
    /// Lets the fork server at `socket` start a process with these arguments.
    ///
    /// # Errors
    /// Fails if the fork server doesn't respond.
    pub fn start(socket: &Path, arguments: &[&str], directory: &Path, output: &Path) -> anyhow::Result<Self> {
        let mut connection =
            UnixStream::connect(socket).with_context(|| format!("connecting to {} failed", socket.display()))?;
        let request = json!({"arguments": arguments, "directory": directory, "output": output});
        writeln!(connection, "{request}")?;
        let mut line = String::new();
        BufReader::new(&connection).read_line(&mut line)?;
        let pid = line.trim().parse().with_context(|| format!("expected a process id, got {line:?}"))?;
        Ok(Self { pid, connection, status: None })
    }

    /// Returns the process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Returns the exit status if the process has exited.
    ///
    /// # Errors
    /// Fails if the fork server's response can't be read.
    pub fn try_wait(&mut self) -> io::Result<Option<String>> {
        self.connection.set_nonblocking(true)?;
        match self.read_status() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            result => result.map(Some),
        }
    }

    /// Waits until the process has exited.
    ///
    /// # Errors
    /// Fails if the fork server's response can't be read.
    pub fn wait(&mut self) -> io::Result<()> {
        self.connection.set_nonblocking(false)?;
        self.read_status().map(drop)
    }

    fn read_status(&mut self) -> io::Result<String> {
        if let Some(status) = &self.status {
            return Ok(status.clone());
        }
        // The status is a short line, which arrives at once. If the fork server itself has ended, so has the process.
        let mut line = [0; 64];
        let length = self.connection.read(&mut line)?;
        let status = String::from_utf8_lossy(&line[..length]).trim().to_owned();
        self.status = Some(status.clone());
        Ok(status)
    }
}
