//! The parameters of the mirror.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use secrecy::SecretString;
use shared::novi;
use shared::parameters::{self, ParameterError, ParameterStore, RawParameters};
use shared::sync::lock;
use url::Url;

use crate::ledger::LedgerKeys;
use crate::mapping::Mappings;

/// Mailman's base URL and credentials.
pub(crate) struct MailmanAccess {
    pub(crate) base: Url,
    pub(crate) username: String,
    pub(crate) password: SecretString,
}

impl MailmanAccess {
    /// Parses `mailman_base_url`, `mailman_username` and `mailman_password`.
    pub(crate) fn from_parameters(raw: &RawParameters, allow_plain_http: bool) -> Result<Self, ParameterError> {
        let mut base = raw.required_url(
            "mailman_base_url",
            "the base URL of Mailman's REST API, such as https://lists.example.org/mailman-api",
            allow_plain_http,
        )?;
        // Other clients' URLs end with the version, which this one adds by itself.
        let path = base.path().trim_end_matches('/');
        if let Some(path) = path.strip_suffix("/3.1").map(str::to_owned) {
            base.set_path(&path);
        }
        Ok(Self {
            base,
            username: raw.required("mailman_username", "the username of Mailman's REST API")?.to_owned(),
            password: raw.required("mailman_password", "the password of Mailman's REST API")?.into(),
        })
    }
}

/// The parameters, which may change during the lifetime of an instance.
pub(crate) struct Parameters {
    pub(crate) novi: novi::Access,
    pub(crate) mailman: MailmanAccess,
    pub(crate) mappings: Mappings,
    /// The keys of the ledger, which a mirror with one requires.
    pub(crate) ledger_keys: Option<LedgerKeys>,
    cache_password: Option<SecretString>,
}

impl parameters::Parameters for Parameters {
    const NAMES: &'static [&'static str] = &[
        "novi_api_root_url",
        "novi_idaa_api_key",
        "mailman_base_url",
        "mailman_username",
        "mailman_password",
        "novi_mailman_sync",
        "ledger_key",
        "cache_password",
    ];
    const MULTIPART_NAME: Option<&'static str> = Some("novi_mailman_sync");
    /// No user is waiting, so prefer fresh mappings over a fast response.
    const REFRESH_TIMEOUT: Duration = Duration::MAX;

    fn read(raw: &RawParameters, allow_plain_http: bool) -> Result<Self, ParameterError> {
        Ok(Self {
            novi: novi::Access::from_parameters(raw, allow_plain_http)?,
            mailman: MailmanAccess::from_parameters(raw, allow_plain_http)?,
            mappings: Mappings::from_parameters(raw)?,
            ledger_keys: LedgerKeys::from_parameters(raw)?,
            cache_password: raw.optional("cache_password")?.map(SecretString::from),
        })
    }

    fn cache_password(&self) -> Option<&SecretString> {
        self.cache_password.as_ref()
    }
}

/// The parameters in use for one upstream during one run.
pub(crate) struct ActiveParameters<'r> {
    store: &'r ParameterStore<Parameters>,
    current: Mutex<Arc<Parameters>>,
}

impl<'r> ActiveParameters<'r> {
    pub(crate) fn new(store: &'r ParameterStore<Parameters>, current: Arc<Parameters>) -> Self {
        Self { store, current: Mutex::new(current) }
    }

    pub(crate) fn current(&self) -> Arc<Parameters> {
        Arc::clone(&lock(&self.current))
    }

    /// Refreshes the parameters after the upstream rejected `used`. Returns the new ones, if they differ and lead to
    /// the same upstream. Another upstream would have another directory or other rosters, which must not change during
    /// a run.
    pub(crate) async fn after_refusal(
        &self,
        used: &Arc<Parameters>,
        is_same_upstream: impl Fn(&Parameters, &Parameters) -> bool,
    ) -> Option<Arc<Parameters>> {
        // Boxed, because this large future would otherwise be part of the future of every call.
        let other = Box::pin(self.store.after_refusal(used)).await.filter(|other| is_same_upstream(other, used))?;
        *lock(&self.current) = Arc::clone(&other);
        Some(other)
    }
}

shared::unprintable!(MailmanAccess, Parameters);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_url_of_mailman_may_end_with_the_version() {
        for (url, expected) in [
            ("https://lists.example.org/mailman-api", "https://lists.example.org/mailman-api"),
            ("https://lists.example.org/mailman-api/3.1", "https://lists.example.org/mailman-api"),
            ("https://lists.example.org/mailman-api/3.1/", "https://lists.example.org/mailman-api"),
            ("http://127.0.0.1:8001/3.1", "http://127.0.0.1:8001/"),
            ("https://lists.example.org/api-3.1", "https://lists.example.org/api-3.1"),
        ] {
            let parameters =
                serde_json::json!({"mailman_base_url": url, "mailman_username": "u", "mailman_password": "p"});
            let raw = RawParameters::from(parameters.as_object().cloned().unwrap_or_default());
            let access = MailmanAccess::from_parameters(&raw, false).unwrap();
            assert_eq!(access.base.as_str(), expected, "{url}");
        }
    }
}
