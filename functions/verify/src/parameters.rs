//! The parameters that verification reads. It reads no others.

use std::time::Duration;

use secrecy::SecretString;
use shared::member::MemberId;
use shared::novi::Access;
use shared::parameters::{self, ParameterError, RawParameters};

use crate::gate::Gate;

/// The configuration that may change while the function runs.
pub(crate) struct Parameters {
    pub(crate) gate: Gate,
    pub(crate) novi: Access,
    /// A UUID with a record, which proves that Novi returns records (`novi_probe_uuid`).
    pub(crate) novi_probe: Option<MemberId>,
    cache_password: Option<SecretString>,
}

impl parameters::Parameters for Parameters {
    const NAMES: &'static [&'static str] =
        &["novi_api_root_url", "novi_idaa_api_key", "novi_probe_uuid", "api_keys", "jwt_secret", "cache_password"];
    const MULTIPART_NAME: Option<&'static str> = None;
    /// Short, because a member waits for the response. A slower reading serves the next request.
    const REFRESH_TIMEOUT: Duration = Duration::from_secs(1);

    fn read(raw: &RawParameters, allow_plain_http: bool) -> Result<Self, ParameterError> {
        Ok(Self {
            gate: Gate::from_parameters(raw)?,
            novi: Access::from_parameters(raw, allow_plain_http)?,
            novi_probe: novi_probe(raw)?,
            cache_password: raw.optional("cache_password")?.map(SecretString::from),
        })
    }

    fn cache_password(&self) -> Option<&SecretString> {
        self.cache_password.as_ref()
    }
}

fn novi_probe(raw: &RawParameters) -> Result<Option<MemberId>, ParameterError> {
    const NAME: &str = "novi_probe_uuid";
    let invalid = || ParameterError::Invalid {
        name: NAME,
        expected: "the hyphenated UUID of a record in Novi, such as 01234567-89ab-cdef-0123-456789abcdef".to_owned(),
    };
    raw.optional(NAME)?.map(|uuid| MemberId::parse(uuid).ok_or_else(invalid)).transpose()
}

shared::unprintable!(Parameters);
