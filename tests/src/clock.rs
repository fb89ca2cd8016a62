//! The clock of a function, which tests set with libfaketime.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;

use crate::process::library;

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
            ("LD_PRELOAD".to_owned(), library("faketime/libfaketimeMT.so.1")?),
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
