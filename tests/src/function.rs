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

/// How long the emulator lets an invocation take.
const TIME_OUT_SECONDS: u64 = 300;

/// A running function. When it is dropped it is stopped, and its log must hold
/// nothing private.
pub struct Function {
    server: Server,
    url: String,
    http: reqwest::Client,
    private: Private,
    dir: TempDir,
}

/// The Python environment that `make` sets up.
#[must_use]
pub fn venv() -> PathBuf {
    workspace().join(".venv")
}

/// A binary that was built beside this one.
///
/// # Errors
/// Where it was not built.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe()?;
    here.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not built; `make test` and `make run` build it"))
}

fn emulator() -> anyhow::Result<PathBuf> {
    let name = match std::env::consts::ARCH {
        "x86_64" => "aws-lambda-rie-x86_64",
        "aarch64" => "aws-lambda-rie-arm64",
        other => bail!("AWS has no Runtime Interface Emulator for {other}"),
    };
    let pythons = std::fs::read_dir(venv().join("lib")).context(".venv is not set up; `make setup` does that")?;
    pythons
        .flatten()
        .map(|python| python.path().join("site-packages/samcli/local/rapid").join(name))
        .find(|path| path.is_file())
        .context("the aws-sam-cli in .venv has no Runtime Interface Emulator; `make setup` installs one that has")
}

impl Function {
    /// Starts `name` with these parameters in its `CONFIG_FILE`, these
    /// variables, and TRACE as its log level unless they say otherwise.
    ///
    /// # Errors
    /// Where something that `make` sets up is missing.
    pub fn start(name: &str, config: &Value, variables: &[(&str, &str)], private: &Private) -> anyhow::Result<Self> {
        let (emulator, binary) = (emulator()?, binary(name)?);
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("config.json"), config.to_string())?;
        let mut all = vec![
            ("CONFIG_FILE".to_owned(), dir.path().join("config.json").display().to_string()),
            ("AWS_LAMBDA_LOG_LEVEL".to_owned(), "TRACE".to_owned()),
            ("AWS_LAMBDA_FUNCTION_TIMEOUT".to_owned(), TIME_OUT_SECONDS.to_string()),
        ];
        for (name, value) in variables {
            // An empty one unsets what is usual.
            all.retain(|(usual, _)| usual != name);
            if !value.is_empty() {
                all.push(((*name).to_owned(), (*value).to_owned()));
            }
        }
        // Somebody else may take a port between our asking and the emulator's binding.
        let mut last = None;
        for _ in 0..3 {
            let (port, api) = (free_port()?, free_port()?);
            let listen = format!("127.0.0.1:{port}");
            let arguments = [
                "--runtime-interface-emulator-address",
                &listen,
                "--runtime-api-address",
                &format!("127.0.0.1:{api}"),
                &binary.display().to_string(),
            ];
            let mut server = Server::start(&emulator, &arguments, &all, dir.path().join("log"))?;
            match server.wait_for_port(port, Duration::from_secs(20)) {
                Ok(()) => {
                    let url = format!("http://{listen}/2015-03-31/functions/function/invocations");
                    return Ok(Self { server, url, http: crate::http(), private: private.clone(), dir });
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("the emulator does not start")))
    }

    /// Invokes it. An error of the function comes back as Lambda has it, with
    /// an `errorMessage`.
    ///
    /// # Errors
    /// Where the emulator does not answer.
    pub async fn invoke(&self, event: &Value) -> anyhow::Result<Value> {
        let response = self
            .http
            .post(&self.url)
            .json(event)
            .timeout(Duration::from_secs(TIME_OUT_SECONDS))
            .send()
            .await
            .context("the emulator does not answer")?;
        let body = response.bytes().await?;
        serde_json::from_slice(&body)
            .with_context(|| format!("the emulator's answer is no JSON: {}", String::from_utf8_lossy(&body)))
    }

    /// Freezes the function's process, as Lambda does between invocations, or
    /// lets it go on.
    ///
    /// # Errors
    /// Where the process is not found.
    pub fn freeze(&self, is_frozen: bool) -> anyhow::Result<()> {
        let process = self.process()?;
        let signal = if is_frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
        Ok(kill(Pid::from_raw(process), signal)?)
    }

    /// The emulator, as the AWS CLI's `--endpoint-url` has it: the function's name there is `function`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        self.url.split("/2015-03-31").next().unwrap_or_default().to_owned()
    }

    /// The most memory that the function's process has held, in bytes.
    ///
    /// # Errors
    /// Where the process is not found.
    pub fn peak_memory(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process()?))?;
        let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        Ok(kilobytes.context("/proc says nothing of its memory")?.parse::<u64>()? * 1024)
    }

    /// What the function's process holds now.
    ///
    /// # Errors
    /// Where the process is not found.
    pub fn holds(&self) -> anyhow::Result<ResourceUsage> {
        ResourceUsage::of(self.process()?)
    }

    fn process(&self) -> anyhow::Result<i32> {
        children(self.server.pid())?.first().copied().context("the emulator has started no function")
    }

    /// Where the emulator takes events.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The file that holds the parameters.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.dir.path().join("config.json")
    }

    /// Puts other parameters in their place, as an editor would: at once.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn set_config(&self, config: &Value) -> anyhow::Result<()> {
        replace(&self.config_file(), config)
    }

    /// What was logged so far, the emulator's own lines included.
    #[must_use]
    pub fn log(&self) -> String {
        self.server.printed()
    }
}

/// Writes a file beside `path` and puts it in its place.
///
/// # Errors
/// Where it cannot be written.
pub fn replace(path: &Path, content: &Value) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, content.to_string())?;
    Ok(std::fs::rename(new, path)?)
}

impl Drop for Function {
    fn drop(&mut self) {
        self.server.stop();
        if !std::thread::panicking() {
            self.private.assert_not_in(&self.server.printed());
        }
    }
}
