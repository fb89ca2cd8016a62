//! Counts the instructions of a function with Valgrind, so that the load of the machine doesn't matter.

use std::path::Path;

use anyhow::{Context, Result};
use tempfile::TempPath;

use crate::runtime::Instance;

/// Settings with long timeouts, because Valgrind is some fifty times slower. With `CONFIG_FILE`, parameters are read
/// from a file.
pub(crate) const LONG_TIMEOUTS: [(&str, &str); 3] =
    [("CACHE_TIMEOUT_MS", "10000"), ("NOVI_TIMEOUT_MS", "25000"), ("CONFIG_FILE", "")];

/// What Valgrind counts of one instance.
pub(crate) struct Counter(TempPath);

impl Counter {
    /// Starts a function under Valgrind.
    pub(crate) async fn start(program: &Path, variables: &[(String, String)]) -> Result<(Instance, Self)> {
        let out = tempfile::NamedTempFile::new()?.into_temp_path();
        let program = program.display().to_string();
        let arguments = ["--quiet", "--tool=callgrind", &format!("--callgrind-out-file={}", out.display()), &program];
        Ok((Instance::start(Path::new("valgrind"), &arguments, variables).await?, Self(out)))
    }

    /// Terminates the instance. Returns its total number of instructions.
    pub(crate) fn total(self, instance: Instance) -> Result<u64> {
        instance.terminate()?;
        let profile = std::fs::read_to_string(&self.0)?;
        let total = profile.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok());
        total.context("expected a total in the output of valgrind")
    }
}
