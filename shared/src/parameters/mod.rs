//! Parameters: the values that an administrator may change while the functions
//! run, and every secret. They are read at startup, again after
//! `PARAMETER_TTL_SECONDS`, and immediately (at most once a minute) if an
//! upstream rejects the current ones. A reading runs to its end in the background,
//! however long a request waits for it.
//!
//! An error names the parameter and what is expected, never its value.

mod error;
mod file;
mod raw;
mod ssm;
mod store;

use std::time::Duration;

use secrecy::SecretString;

pub use self::error::{ParameterError, SourceError, Unavailable};
pub use self::file::ConfigFile;
pub use self::raw::{RawParameters, is_loopback};
pub use self::ssm::Ssm;
pub use self::store::{Health, ParameterStore, Source};

/// The parameters of one function.
pub trait Parameters: Sized + Send + Sync + 'static {
    /// The names of the parameters: those that are read, and that the function's role must allow.
    const NAMES: &'static [&'static str];
    /// The parameter that may continue in `{name}/1`, `{name}/2`, …
    const MULTIPART_NAME: Option<&'static str>;
    /// The maximum time that a request or run waits for parameters to be read again. The reading goes on after that.
    const REFRESH_TIMEOUT: Duration;

    /// Parses the parameters. `allow_plain_http` is `ALLOW_PLAIN_HTTP`.
    ///
    /// # Errors
    /// Returns an error that names the parameter if one is missing or invalid.
    fn read(raw: &RawParameters, allow_plain_http: bool) -> Result<Self, ParameterError>;

    /// Returns `cache_password`.
    fn cache_password(&self) -> Option<&SecretString>;
}
