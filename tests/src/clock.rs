//! The clock of a function, which tests and benchmarks set with libfaketime.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

/// The clock of a function, which tests can advance.
pub(crate) struct Clock {
    file: PathBuf,
    offset_seconds: u64,
}

impl Clock {
    /// A clock that is right. Its file is in this directory.
    pub(crate) fn new(dir: &Path) -> Result<Self> {
        let clock = Self { file: dir.join("clock"), offset_seconds: 0 };
        clock.write()?;
        Ok(clock)
    }

    pub(crate) fn advance(&mut self, seconds: u64) -> Result<()> {
        self.offset_seconds += seconds;
        self.write()
    }

    /// Returns how far the clock is ahead.
    pub(crate) fn offset(&self) -> Duration {
        Duration::from_secs(self.offset_seconds)
    }

    /// Returns the clock's time in seconds of Unix time.
    pub(crate) fn now(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.as_secs() + self.offset_seconds
    }

    /// Returns the environment variables that make a function use the clock.
    ///
    /// # Errors
    /// Fails if libfaketime isn't installed.
    pub(crate) fn variables(&self) -> Result<[(String, String); 3]> {
        Ok([
            preload()?,
            ("FAKETIME_TIMESTAMP_FILE".to_owned(), self.file.display().to_string()),
            ("FAKETIME_NO_CACHE".to_owned(), "1".to_owned()),
        ])
    }

    /// Replaces the file atomically, because libfaketime reads it whenever the function gets the time.
    fn write(&self) -> Result<()> {
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("+{}", self.offset_seconds))?;
        Ok(std::fs::rename(new, &self.file)?)
    }
}

/// Returns the environment variable that preloads libfaketime into a process.
///
/// # Errors
/// Fails if libfaketime isn't installed.
pub fn preload() -> Result<(String, String)> {
    const LIBRARY: &str = "faketime/libfaketimeMT.so.1";
    let candidates = std::fs::read_dir("/usr/lib")?.flatten().map(|entry| entry.path().join(LIBRARY));
    let found = candidates.into_iter().find(|library| library.is_file());
    let found = found.with_context(|| format!("{LIBRARY} is missing. `make setup` installs it."))?;
    Ok(("LD_PRELOAD".to_owned(), found.display().to_string()))
}

/// Removes what libfaketime leaves in shared memory if a signal ends a process.
pub fn remove_clock(pid: i32) {
    for prefix in ["faketime_shm", "sem.faketime_sem"] {
        // Without a fake clock, there is no such file.
        let _ = std::fs::remove_file(format!("/dev/shm/{prefix}_{pid}"));
    }
}
