//! A function under AWS's Lambda Runtime Interface Emulator, which ships in
//! the aws-sam-cli wheel: the real runtime protocol, without Docker.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::privacy::Private;
use crate::process::{ResourceUsage, Server, children, free_port};
use crate::workspace;

/// The emulator's timeout for an invocation.
const TIMEOUT_SECONDS: u64 = 300;

/// A running function. Dropping it stops it and asserts that its log contains
/// no private data.
pub struct Function {
    server: Server,
    url: String,
    http: reqwest::Client,
    private: Private,
    dir: TempDir,
}

/// Returns the path of the Python environment that `make` sets up.
#[must_use]
pub fn venv() -> PathBuf {
    workspace().join(".venv")
}

/// Returns the path of a binary that was built in the same directory as this one.
///
/// # Errors
/// Fails if it was not built.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe()?;
    this.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not built. `make test` and `make run` build it."))
}

fn emulator() -> anyhow::Result<PathBuf> {
    let name = match std::env::consts::ARCH {
        "x86_64" => "aws-lambda-rie-x86_64",
        "aarch64" => "aws-lambda-rie-arm64",
        other => bail!("AWS doesn't provide a Runtime Interface Emulator for {other}"),
    };
    let pythons = std::fs::read_dir(venv().join("lib")).context(".venv is missing. Run `make setup`.")?;
    pythons
        .flatten()
        .map(|python| python.path().join("site-packages/samcli/local/rapid").join(name))
        .find(|path| path.is_file())
        .context(
            "the aws-sam-cli in .venv lacks the Runtime Interface Emulator. `make setup` installs one that has it.",
        )
}

impl Function {
    /// Starts `name` with these parameters in its `CONFIG_FILE` and these
    /// variables. The log level is TRACE unless the variables set another one.
    ///
    /// # Errors
    /// Fails if something that `make` sets up is missing.
    pub fn start(name: &str, config: &Value, variables: &[(&str, &str)], private: &Private) -> anyhow::Result<Self> {
        Self::start_with_hosts(None, name, config, variables, private)
    }

    /// Starts a function like [`Self::start`]. With `hosts`, a file like `/etc/hosts`, it can resolve only the names in
    /// that file.
    ///
    /// # Errors
    /// Fails if something that `make` sets up is missing.
    pub fn start_with_hosts(
        hosts: Option<&Path>,
        name: &str,
        config: &Value,
        variables: &[(&str, &str)],
        private: &Private,
    ) -> anyhow::Result<Self> {
        let (emulator, binary) = (emulator()?, binary(name)?);
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("config.json"), config.to_string())?;
        let mut all = vec![
            ("CONFIG_FILE".to_owned(), dir.path().join("config.json").display().to_string()),
            ("AWS_LAMBDA_LOG_LEVEL".to_owned(), "TRACE".to_owned()),
            ("AWS_LAMBDA_FUNCTION_TIMEOUT".to_owned(), TIMEOUT_SECONDS.to_string()),
        ];
        for (name, value) in variables {
            // An empty value removes a default.
            all.retain(|(default, _)| default != name);
            if !value.is_empty() {
                all.push(((*name).to_owned(), (*value).to_owned()));
            }
        }
        // Another process may take a port before the emulator binds it.
        let mut last = None;
        for _ in 0..3 {
            let (port, api) = (free_port()?, free_port()?);
            let listen = format!("127.0.0.1:{port}");
            let api = format!("127.0.0.1:{api}");
            let (emulator, binary) = (emulator.display().to_string(), binary.display().to_string());
            let command =
                [&emulator, "--runtime-interface-emulator-address", &listen, "--runtime-api-address", &api, &binary];
            let log = dir.path().join("log");
            let mut server = match hosts {
                Some(hosts) => {
                    let hosts = hosts.display().to_string();
                    let arguments = [&with_hosts(&hosts), &command[..]].concat();
                    Server::start(Path::new("unshare"), &arguments, &all, log)?
                }
                None => Server::start(Path::new(command[0]), &command[1..], &all, log)?,
            };
            match server.wait_for_port(port, Duration::from_secs(20)) {
                Ok(()) => {
                    let url = format!("http://{listen}/2015-03-31/functions/function/invocations");
                    return Ok(Self { server, url, http: crate::http(), private: private.clone(), dir });
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("the emulator failed to start")))
    }

    /// Invokes the function. A function error is returned in Lambda's format,
    /// with an `errorMessage`.
    ///
    /// # Errors
    /// Fails if the emulator doesn't respond.
    pub async fn invoke(&self, event: &Value) -> anyhow::Result<Value> {
        let response = self
            .http
            .post(&self.url)
            .json(event)
            .timeout(Duration::from_secs(TIMEOUT_SECONDS))
            .send()
            .await
            .context("the emulator didn't respond")?;
        let body = response.bytes().await?;
        serde_json::from_slice(&body)
            .with_context(|| format!("expected JSON from the emulator, got {}", String::from_utf8_lossy(&body)))
    }

    /// Freezes the function's process, as Lambda does between invocations, or
    /// resumes it.
    ///
    /// # Errors
    /// Fails if the process is not found.
    pub fn freeze(&self, is_frozen: bool) -> anyhow::Result<()> {
        let process = self.process()?;
        let signal = if is_frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
        Ok(kill(Pid::from_raw(process), signal)?)
    }

    /// Returns the emulator's URL for the AWS CLI's `--endpoint-url`. The function's name there is `function`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        self.url.split("/2015-03-31").next().unwrap_or_default().to_owned()
    }

    /// Returns the peak resident memory of the function's process, in bytes.
    ///
    /// # Errors
    /// Fails if the process is not found.
    pub fn peak_memory(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process()?))?;
        let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        Ok(kilobytes.context("/proc doesn't contain its peak memory")?.parse::<u64>()? * 1024)
    }

    /// Returns the current resource usage of the function's process.
    ///
    /// # Errors
    /// Fails if the process is not found.
    pub fn resource_usage(&self) -> anyhow::Result<ResourceUsage> {
        ResourceUsage::of(self.process()?)
    }

    fn process(&self) -> anyhow::Result<i32> {
        children(self.server.pid())?.first().copied().context("the emulator hasn't started the function")
    }

    /// Returns the URL that the emulator accepts events at.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the path of the file with the parameters.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.dir.path().join("config.json")
    }

    /// Replaces the parameters atomically, as an editor would.
    ///
    /// # Errors
    /// Fails if the file can't be written.
    pub fn set_config(&self, config: &Value) -> anyhow::Result<()> {
        write_atomically(&self.config_file(), config)
    }

    /// Returns everything logged so far, including the emulator's own lines.
    #[must_use]
    pub fn log(&self) -> String {
        self.server.output()
    }
}

/// Returns the arguments of `unshare` that run a command in a mount namespace in which `/etc/hosts` is the file `hosts`,
/// and no name is looked up elsewhere.
fn with_hosts(hosts: &str) -> Vec<&str> {
    // A change of credentials clears the signal that Server sets for the end of this process, so it is set again.
    const SCRIPT: &str = r#"
        mount --bind "$0" /etc/hosts
        mount --bind "$(dirname "$0")/nsswitch.conf" /etc/nsswitch.conf
        exec setpriv --pdeathsig KILL -- "$@"
    "#;
    let mut arguments = vec!["--mount"];
    if !nix::unistd::geteuid().is_root() {
        arguments.push("--map-root-user");
    }
    arguments.extend(["sh", "-euc", SCRIPT, hosts]);
    arguments
}

/// Replaces the file at `path` atomically: writes a new file next to it, then renames that.
///
/// # Errors
/// Fails if the file can't be written.
pub fn write_atomically(path: &Path, content: &Value) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, content.to_string())?;
    Ok(std::fs::rename(new, path)?)
}

impl Drop for Function {
    fn drop(&mut self) {
        self.server.stop();
        if !std::thread::panicking() {
            self.private.assert_not_in(&self.server.output());
        }
    }
}
