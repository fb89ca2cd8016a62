//! The parameters that the mirror reads, and no others.

use secrecy::SecretString;
use shared::parameters::{ParameterError, Raw};
use shared::{foundation, novi};

use crate::mailman;
use crate::mapping::Mappings;

/// What may change while the function lives.
pub(crate) struct Parameters {
    pub(crate) novi: novi::Access,
    pub(crate) mailman: mailman::Access,
    pub(crate) mappings: Mappings,
    cache_password: Option<SecretString>,
}

impl foundation::Parameters for Parameters {
    const NAMES: &'static [&'static str] = &[
        "novi_api_root_url",
        "novi_idaa_api_key",
        "mailman_base_url",
        "mailman_username",
        "mailman_password",
        "novi_mailman_sync",
        "cache_password",
    ];
    const CONTINUED: Option<&'static str> = Some("novi_mailman_sync");

    fn read(raw: &Raw, allow_plain_http: bool) -> Result<Self, ParameterError> {
        Ok(Self {
            novi: novi::Access::from_parameters(raw, allow_plain_http)?,
            mailman: mailman::Access::from_parameters(raw, allow_plain_http)?,
            mappings: Mappings::from_parameters(raw)?,
            cache_password: raw.optional("cache_password")?.map(SecretString::from),
        })
    }

    fn cache_password(&self) -> Option<&SecretString> {
        self.cache_password.as_ref()
    }
}
