//! The file that `CONFIG_FILE` names.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::zeroize::Zeroizing;
use serde_json::Value;

use super::error::SourceError;
use super::raw::RawParameters;

/// The file that `CONFIG_FILE` names.
pub struct ConfigFile {
    path: PathBuf,
}

impl ConfigFile {
    /// The file may be on a network file system, so it gets as long as a network call.
    const TIMEOUT: Duration = Duration::from_secs(3);
    /// The maximum size in bytes, far above any sensible configuration.
    const SIZE_LIMIT: u64 = 16 << 20;

    /// Creates a source that reads the file at `path` later.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) async fn read(&self) -> Result<RawParameters, SourceError> {
        let location = self.location();
        let read = async {
            let file = tokio::fs::File::open(&self.path).await?;
            let mut bytes = Zeroizing::new(Vec::new());
            tokio::io::AsyncReadExt::read_to_end(
                &mut tokio::io::AsyncReadExt::take(file, Self::SIZE_LIMIT),
                &mut bytes,
            )
            .await?;
            Ok::<_, std::io::Error>(bytes)
        };
        let bytes = match tokio::time::timeout(Self::TIMEOUT, read).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => return Err(Self::classify(&location, &error)),
            Err(_) => return Err(SourceError::Unavailable(format!("{location}: reading failed: timed out"))),
        };
        // Some editors put a byte order mark in front of the text.
        match serde_json::from_slice(bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes)) {
            Ok(Value::Object(map)) => Ok(map.into()),
            Ok(_) => Err(SourceError::Permanent(format!(
                "{location}: expected a JSON object with the parameters as its keys"
            ))),
            // serde_json's message may quote the file. The position does not.
            Err(e) => Err(SourceError::Permanent(format!(
                "{location}: expected a JSON object, found invalid JSON (line {}, column {})",
                e.line(),
                e.column()
            ))),
        }
    }

    /// Maps permanent errors to `Permanent` and transient ones to `Unavailable`.
    fn classify(location: &str, error: &std::io::Error) -> SourceError {
        use std::io::ErrorKind::{InvalidInput, IsADirectory, NotADirectory, NotFound, PermissionDenied};
        let text = format!("{location}: reading failed: {}", error.kind());
        match error.kind() {
            NotFound | PermissionDenied | IsADirectory | NotADirectory | InvalidInput => SourceError::Permanent(text),
            _ => SourceError::Unavailable(text),
        }
    }

    /// Returns the location of the parameters, for an error message.
    pub(super) fn location(&self) -> String {
        format!("CONFIG_FILE={}", self.path.display())
    }
}
