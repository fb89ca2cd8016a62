//! The location of the ledger (`LEDGER`).

use std::path::PathBuf;

use shared::settings::{Env, SettingError};
use url::Url;

/// The maximum length of an object's key in S3, in bytes.
const MAX_KEY: usize = 1_024;

/// The location of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LedgerLocation {
    /// An object in S3.
    S3 {
        /// The bucket's name.
        bucket: String,
        /// The object's key, of characters that mean themselves in the path of a URL.
        key: String,
    },
    /// A file on this machine, by its absolute path.
    File(PathBuf),
}

impl LedgerLocation {
    /// Reads `LEDGER`. Returns `None` if it isn't set.
    pub(crate) fn from_env(env: &Env) -> Result<Option<Self>, SettingError> {
        let expected = "s3://bucket/key, with a key of letters, digits and -._~ in parts separated by slashes, or \
                        file:///path, with the absolute path of a file";
        env.parsed("LEDGER", None, expected, |value| Self::parse(value).map(Some))
    }

    fn parse(value: &str) -> Option<Self> {
        if let Some(object) = value.strip_prefix("s3://") {
            let (bucket, key) = object.split_once('/')?;
            return (is_bucket(bucket) && is_key(key))
                .then(|| Self::S3 { bucket: bucket.to_owned(), key: key.to_owned() });
        }
        let url = Url::parse(value).ok().filter(|url| url.scheme() == "file" && value.starts_with("file:///"))?;
        let is_plain = url.query().is_none() && url.fragment().is_none();
        let path = url.to_file_path().ok()?;
        (is_plain && !url.path().ends_with('/') && path.file_name().is_some()).then_some(Self::File(path))
    }
}

/// True for a name that a bucket may have.
fn is_bucket(name: &str) -> bool {
    let is_end = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let is_inner = |b: u8| is_end(Some(b)) || matches!(b, b'-' | b'.');
    let ends = [name.bytes().next(), name.bytes().last()];
    (3..=63).contains(&name.len()) && ends.into_iter().all(is_end) && name.bytes().all(is_inner) && !name.contains("..")
}

/// True for a key that needs no encoding in a URL, and that no client or proxy rewrites.
fn is_key(key: &str) -> bool {
    let is_unreserved = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    let is_part = |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(is_unreserved);
    key.len() <= MAX_KEY && key.split('/').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &str) -> Result<Option<LedgerLocation>, String> {
        LedgerLocation::from_env(&Env::of(&[("LEDGER", value)])).map_err(|error| error.to_string())
    }

    #[test]
    fn ledger_is_an_object_or_a_file() {
        let s3 = |bucket: &str, key: &str| LedgerLocation::S3 { bucket: bucket.to_owned(), key: key.to_owned() };
        for (value, expected) in [
            ("", None),
            ("s3://idaa-ledger/ledger", Some(s3("idaa-ledger", "ledger"))),
            ("s3://my.bucket-1/mirror/Prod_1/ledger~v1.nblg", Some(s3("my.bucket-1", "mirror/Prod_1/ledger~v1.nblg"))),
            ("file:///var/lib/novi-bridge/ledger", Some(LedgerLocation::File("/var/lib/novi-bridge/ledger".into()))),
            ("file:///srv/a%20b/ledger", Some(LedgerLocation::File("/srv/a b/ledger".into()))),
        ] {
            assert_eq!(read(value), Ok(expected), "{value}");
        }
    }

    #[test]
    fn other_location_is_an_error_that_says_what_is_expected() {
        let long_key = format!("s3://bucket/{}", "k".repeat(MAX_KEY + 1));
        for value in [
            "ledger",
            "/var/lib/ledger",
            "https://bucket.s3.amazonaws.com/key",
            "s3:bucket/key",
            "s3://bucket",
            "s3://bucket/",
            "s3:///key",
            "s3://Bucket/key",
            "s3://b/key",
            "s3://-bucket/key",
            "s3://buc..ket/key",
            "s3://bucket/key/",
            "s3://bucket//key",
            "s3://bucket/a/../key",
            "s3://bucket/./key",
            "s3://bucket/a key",
            "s3://bucket/key?versionId=1",
            "s3://bucket/%6bey",
            &long_key,
            "file://ledger",
            "file://host/ledger",
            "file:/ledger",
            "file:///",
            "file:///var/lib/",
            "file:///ledger?x",
            "file:///ledger#x",
        ] {
            let error = read(value).unwrap_err();
            assert!(error.starts_with(&format!("LEDGER={value:?} is invalid: expected s3://bucket/key")), "{error}");
        }
    }
}
