//! The store of the ledger, an object in S3 or a file.
//!
//! The store holds one document of bytes. A write names the version that it replaces, so that of two runs that read the
//! same version, only one can write.

mod file;
mod outcome;
mod s3;
mod s3_object;

use self::file::FileStore;
use self::outcome::{MAX_SIZE, Operation};
use self::s3::S3Store;
use self::s3_object::S3Object;
use super::location::LedgerLocation;

pub(crate) use self::outcome::{StoreError, Version};

/// The store of the ledger.
pub(crate) enum LedgerStore {
    /// An object in S3.
    S3(Box<S3Store>),
    /// A file on this machine.
    File(FileStore),
}

impl LedgerStore {
    /// Creates a store for a location, without access to it. Credentials, region and endpoint of S3 come from the
    /// environment.
    pub(crate) fn new(location: LedgerLocation, http: reqwest::Client) -> Self {
        match location {
            LedgerLocation::S3 { bucket, key } => {
                let object = S3Object::new(shared::aws::config(http.clone()), &bucket, &key);
                Self::S3(Box::new(S3Store::new(object, http)))
            }
            LedgerLocation::File(path) => Self::File(FileStore::new(path)),
        }
    }

    /// Reads the ledger and its version. Returns `None` if it doesn't exist. Takes at most 10 s.
    ///
    /// # Errors
    /// Fails with [`StoreError::Failed`] if it can't be read.
    pub(crate) async fn read(&self) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        match self {
            Self::S3(store) => store.read().await,
            Self::File(store) => store.read().await,
        }
    }

    /// Writes the ledger if its stored version is still `expected`, or if it doesn't exist and `expected` is `None`.
    /// Returns the new version. Takes at most 10 s.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub(crate) async fn write(&self, bytes: Vec<u8>, expected: Option<&Version>) -> Result<Version, StoreError> {
        if bytes.len() > MAX_SIZE {
            return Err(Operation::Write.too_large());
        }
        match self {
            Self::S3(store) => store.write(bytes, expected).await,
            Self::File(store) => store.write(bytes, expected).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use shared::http_client;

    use super::*;

    fn store(location: LedgerLocation) -> LedgerStore {
        http_client::install_tls_provider();
        LedgerStore::new(location, http_client::build(http_client::tls_config(&[]).unwrap()).unwrap())
    }

    #[tokio::test]
    async fn document_is_stored_in_the_file_that_the_location_names() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(LedgerLocation::File(directory.path().join("ledger")));
        let version = store.write(b"one".to_vec(), None).await.unwrap();
        assert_eq!(store.read().await, Ok(Some((b"one".to_vec(), version))));
    }

    #[tokio::test]
    async fn document_that_could_not_be_read_again_is_not_written() {
        let directory = tempfile::tempdir().unwrap();
        let s3 = LedgerLocation::S3 { bucket: "idaa".to_owned(), key: "ledger".to_owned() };
        for location in [LedgerLocation::File(directory.path().join("ledger")), s3] {
            let written = store(location).write(vec![0; MAX_SIZE + 1], None).await;
            assert_eq!(written, Err(Operation::Write.too_large()));
        }
    }
}
