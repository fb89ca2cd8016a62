//! The ledger in a file.
//!
//! A write replaces the file by a complete new one, under an exclusive lock on a lock file next to it. The lock file
//! stays, because a lock on a file that was removed locks nothing.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::outcome::{MAX_SIZE, OPERATION_TIMEOUT, Operation, StoreError, Version};

/// The permissions of the files: only this user may read them.
const MODE: u32 = 0o600;
/// The maximum time to wait for the lock. Other runs hold it only while they write.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause between two attempts to lock.
const LOCK_INTERVAL: Duration = Duration::from_millis(10);

/// The ledger in a file. Clones are of the same one.
#[derive(Clone)]
pub(crate) struct FileStore {
    path: Arc<Path>,
}

impl FileStore {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path: path.into() }
    }

    pub(super) async fn read(&self) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        let store = self.clone();
        let read = tokio::task::spawn_blocking(move || store.read_now(Operation::Read));
        match tokio::time::timeout(OPERATION_TIMEOUT, read).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Operation::Read.failed("the reader panicked", "Report this as a bug")),
            Err(_) => Err(Operation::Read.failed("timed out", "Check the file system of LEDGER")),
        }
    }

    pub(super) async fn write(&self, bytes: Vec<u8>, expected: Option<&Version>) -> Result<Version, StoreError> {
        let (store, expected) = (self.clone(), expected.cloned());
        let write = tokio::task::spawn_blocking(move || store.write_now(&bytes, expected.as_ref()));
        // A write that didn't end in time may still end.
        let result = tokio::time::timeout(OPERATION_TIMEOUT, write).await;
        result.ok().and_then(Result::ok).unwrap_or(Err(StoreError::Unknown))
    }

    fn read_now(&self, operation: Operation) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        let failed = |error: std::io::Error| failed(operation, error.kind());
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // Otherwise a mistyped path would look like a ledger that isn't written yet.
                return if self.directory().is_dir() { Ok(None) } else { Err(failed(error)) };
            }
            Err(error) => return Err(failed(error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_SIZE as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() > MAX_SIZE {
            return Err(operation.too_large());
        }
        let version = version(&bytes);
        Ok(Some((bytes, version)))
    }

    fn write_now(&self, bytes: &[u8], expected: Option<&Version>) -> Result<Version, StoreError> {
        let failed = |error: std::io::Error| failed(Operation::Write, error.kind());
        // Unlocked when it is dropped.
        let _lock = self.lock()?;
        let current = self.read_now(Operation::Write)?.map(|(_, version)| version);
        if current.as_ref() != expected {
            return Err(StoreError::Changed);
        }
        let temporary = self.sibling("new");
        // One may be left by a process that was killed while it wrote.
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &self.path)
        };
        if let Err(error) = write() {
            // The file isn't the ledger yet. If it can't be removed either, the next write does.
            let _ = std::fs::remove_file(&temporary);
            return Err(failed(error));
        }
        // The new name survives a crash of the machine only after this.
        File::open(self.directory()).and_then(|directory| directory.sync_all()).map_err(|_| StoreError::Unknown)?;
        Ok(version(bytes))
    }

    fn lock(&self) -> Result<File, StoreError> {
        let failed = |error: std::io::Error| failed(Operation::Write, error.kind());
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(MODE);
        let file = options.open(self.sibling("lock")).map_err(failed)?;
        let begun = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if begun.elapsed() < LOCK_TIMEOUT => std::thread::sleep(LOCK_INTERVAL),
                Err(TryLockError::WouldBlock) => {
                    let remedy = "Check which process holds the lock on the file with .lock at its end";
                    return Err(Operation::Write.failed("another process has locked it", remedy));
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
    }

    fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// Returns the path of a file next to the ledger.
    fn sibling(&self, extension: &str) -> PathBuf {
        let mut name = OsString::from(self.path.as_os_str());
        name.push(".");
        name.push(extension);
        name.into()
    }
}

fn version(bytes: &[u8]) -> Version {
    Version::new(STANDARD.encode(digest(&SHA256, bytes)))
}

fn failed(operation: Operation, kind: ErrorKind) -> StoreError {
    let remedy = match kind {
        ErrorKind::NotFound => "Create the directory of the file that LEDGER names, or name another file",
        ErrorKind::PermissionDenied => "Let this process read and write the file that LEDGER names and its directory",
        ErrorKind::ReadOnlyFilesystem => "Let LEDGER name a file on a file system that can be written",
        ErrorKind::IsADirectory | ErrorKind::NotADirectory => "Let LEDGER name a file, not a directory",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "Free some space where LEDGER is",
        _ => "Check the file that LEDGER names, and its file system",
    };
    operation.failed(&kind.to_string(), remedy)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;

    fn store() -> (TempDir, FileStore) {
        let directory = tempfile::tempdir().unwrap();
        let store = FileStore::new(directory.path().join("ledger"));
        (directory, store)
    }

    fn names(directory: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(directory.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn file_is_written_only_over_the_expected_version() {
        let (directory, store) = store();
        assert_eq!(store.read().await, Ok(None));
        let first = store.write(b"one".to_vec(), None).await.unwrap();
        assert_eq!(store.read().await, Ok(Some((b"one".to_vec(), first.clone()))));
        assert_eq!(store.write(b"other".to_vec(), None).await, Err(StoreError::Changed));

        let second = store.write(b"two".to_vec(), Some(&first)).await.unwrap();
        assert_ne!(first, second);
        assert_eq!(store.write(b"other".to_vec(), Some(&first)).await, Err(StoreError::Changed));
        assert_eq!(store.read().await, Ok(Some((b"two".to_vec(), second.clone()))));

        fs::remove_file(directory.path().join("ledger")).unwrap();
        assert_eq!(store.write(b"other".to_vec(), Some(&second)).await, Err(StoreError::Changed));
        assert_eq!(store.read().await, Ok(None));
    }

    #[tokio::test]
    async fn only_the_user_may_read_the_file_and_nothing_else_stays_but_the_lock_file() {
        let (directory, store) = store();
        fs::write(directory.path().join("ledger.new"), "left by a killed process").unwrap();
        store.write(b"one".to_vec(), None).await.unwrap();
        assert_eq!(names(&directory), ["ledger", "ledger.lock"]);
        for name in names(&directory) {
            let mode = fs::metadata(directory.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, MODE);
        }
    }

    #[tokio::test]
    async fn of_concurrent_writes_over_one_version_exactly_one_succeeds() {
        let (_directory, store) = store();
        let first = store.write(b"one".to_vec(), None).await.unwrap();
        let writes = (0..16_u8).map(|n| {
            let (store, first) = (store.clone(), first.clone());
            tokio::spawn(async move { store.write(vec![n; 1_000], Some(&first)).await })
        });
        let mut written = Vec::new();
        for write in writes.collect::<Vec<_>>() {
            match write.await.unwrap() {
                Ok(version) => written.push(version),
                Err(error) => assert_eq!(error, StoreError::Changed),
            }
        }
        let (_, stored) = store.read().await.unwrap().unwrap();
        assert_eq!(written, [stored]);
    }

    #[tokio::test]
    async fn failed_write_leaves_the_former_version() {
        let (directory, store) = store();
        let first = store.write(b"one".to_vec(), None).await.unwrap();
        // A directory with this name can neither be removed as a file nor be written.
        fs::create_dir(directory.path().join("ledger.new")).unwrap();
        assert!(matches!(store.write(b"two".to_vec(), Some(&first)).await, Err(StoreError::Failed(_))));
        assert_eq!(store.read().await, Ok(Some((b"one".to_vec(), first))));
    }

    #[tokio::test]
    async fn errors_say_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let missing = FileStore::new(directory.path().join("missing/ledger"));
        let remedy = "entity not found. Create the directory of the file that LEDGER names, or name another file";
        let expected = |operation: &str| Err(StoreError::Failed(format!("{operation} the ledger failed: {remedy}")));
        assert_eq!(missing.read().await.map(|_| ()), expected("reading"));
        assert_eq!(missing.write(b"one".to_vec(), None).await.map(|_| ()), expected("writing"));

        let error = FileStore::new(directory.path().to_owned()).read().await.unwrap_err().to_string();
        assert_eq!(error, "reading the ledger failed: is a directory. Let LEDGER name a file, not a directory");
    }

    #[tokio::test]
    async fn file_that_is_too_large_is_not_read() {
        let (directory, store) = store();
        let file = File::create(directory.path().join("ledger")).unwrap();
        file.set_len(MAX_SIZE as u64).unwrap();
        assert!(store.read().await.unwrap().is_some_and(|(bytes, _)| bytes.len() == MAX_SIZE));
        file.set_len(MAX_SIZE as u64 + 1).unwrap();
        assert_eq!(store.read().await, Err(Operation::Read.too_large()));
    }
}
