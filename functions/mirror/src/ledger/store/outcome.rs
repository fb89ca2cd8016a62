//! The results of reading and writing the ledger, and their limits.

use std::time::Duration;

/// The maximum time of one reading or writing, including its attempts.
pub(super) const OPERATION_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum size of a sealed ledger in bytes.
pub(super) const MAX_SIZE: usize = 64 << 20;

/// A version of the stored ledger. Two versions are equal if their bytes are, since each seal is random.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version(String);

impl Version {
    pub(super) fn new(text: String) -> Self {
        Self(text)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A reading or writing that failed. The messages contain no credentials and nothing of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    /// Nothing was written, or it was overwritten already: the stored version isn't the expected one.
    #[error("another run changed the ledger meanwhile. The next run reads the newer version")]
    Changed,
    /// It isn't known whether the ledger was written, or will be.
    #[error("it isn't known whether the ledger was written. The next run reads the version that it finds")]
    Unknown,
    /// Nothing was read or written. The text has the cause and the remedy.
    #[error("{0}")]
    Failed(String),
}

/// What a failure happened to, for its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// The ledger was read.
    Read,
    /// The ledger was written.
    Write,
}

impl Operation {
    /// Returns the error for a cause and the sentences that say what to do.
    pub(super) fn failed(self, cause: &str, remedy: &str) -> StoreError {
        let operation = match self {
            Self::Read => "reading",
            Self::Write => "writing",
        };
        StoreError::Failed(format!("{operation} the ledger failed: {cause}. {remedy}"))
    }

    /// Returns the error for a ledger of more than [`MAX_SIZE`] bytes.
    pub(super) fn too_large(self) -> StoreError {
        let remedy = match self {
            Self::Read => "Check that LEDGER names a ledger, and restore an earlier version of it or move it away",
            Self::Write => "Map fewer groups, or several mirrors with a ledger each",
        };
        self.failed("it is larger than 64 MiB", remedy)
    }
}
