//! The parameters that verification reads. It reads no others.

use std::time::Duration;

use secrecy::SecretString;
use shared::novi::Access;
use shared::parameters::{self, ParameterError, RawParameters};

use crate::gate::Gate;

/// The configuration that may change while the function runs.
pub(crate) struct Parameters {
    pub(crate) gate: Gate,
    pub(crate) novi: Access,
    cache_password: Option<SecretString>,
}

impl parameters::Parameters for Parameters {
    const NAMES: &'static [&'static str] =
        &["novi_api_root_url", "novi_idaa_api_key", "api_keys", "jwt_secret", "cache_password"];
    const MULTIPART_NAME: Option<&'static str> = None;
    /// Short, because a member waits for the response.
    const REFRESH_TIMEOUT: Duration = Duration::from_secs(1);

    fn read(raw: &RawParameters, allow_plain_http: bool) -> Result<Self, ParameterError> {
        Ok(Self {
            gate: Gate::from_parameters(raw)?,
            novi: Access::from_parameters(raw, allow_plain_http)?,
            cache_password: raw.optional("cache_password")?.map(SecretString::from),
        })
    }

    fn cache_password(&self) -> Option<&SecretString> {
        self.cache_password.as_ref()
    }
}

shared::unprintable!(Parameters);
