//! The parameters that the mirror reads, and no others.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use secrecy::SecretString;
use shared::novi;
use shared::parameters::{self, ParameterError, ParameterStore, RawParameters};
use shared::sync::lock;
use url::Url;

use crate::mapping::Mappings;

/// Where Mailman is and what opens it.
pub(crate) struct MailmanAccess {
    pub(crate) base: Url,
    pub(crate) username: String,
    pub(crate) password: SecretString,
}

impl MailmanAccess {
    /// Reads `mailman_base_url`, `mailman_username` and `mailman_password`.
    pub(crate) fn from_parameters(raw: &RawParameters, allow_plain_http: bool) -> Result<Self, ParameterError> {
        Ok(Self {
            base: raw.required_url(
                "mailman_base_url",
                "the base of Mailman's REST API, such as https://lists.example.org/mailman-api; /3.1 is appended",
                allow_plain_http,
            )?,
            username: raw.required("mailman_username", "the user of Mailman's REST API")?.to_owned(),
            password: raw.required("mailman_password", "the password of Mailman's REST API")?.into(),
        })
    }
}

/// What may change while the function lives.
pub(crate) struct Parameters {
    pub(crate) novi: novi::Access,
    pub(crate) mailman: MailmanAccess,
    pub(crate) mappings: Mappings,
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
        "cache_password",
    ];
    const MULTIPART_NAME: Option<&'static str> = Some("novi_mailman_sync");
    /// Nobody waits, and older mappings are worth less than some seconds.
    const REFRESH_TIMEOUT: Duration = Duration::MAX;

    fn read(raw: &RawParameters, allow_plain_http: bool) -> Result<Self, ParameterError> {
        Ok(Self {
            novi: novi::Access::from_parameters(raw, allow_plain_http)?,
            mailman: MailmanAccess::from_parameters(raw, allow_plain_http)?,
            mappings: Mappings::from_parameters(raw)?,
            cache_password: raw.optional("cache_password")?.map(SecretString::from),
        })
    }

    fn cache_password(&self) -> Option<&SecretString> {
        self.cache_password.as_ref()
    }
}

/// The parameters that one upstream is asked with during one run.
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

    /// The upstream has refused `used`: other parameters for the same place,
    /// where there are any by now. Another place would be another directory, or
    /// other rosters, in the middle of a run.
    pub(crate) async fn after_refusal(
        &self,
        used: &Arc<Parameters>,
        is_same_place: impl Fn(&Parameters, &Parameters) -> bool,
    ) -> Option<Arc<Parameters>> {
        // Boxed: what it waits on is deep, and everybody's future would hold it.
        let other = Box::pin(self.store.after_refusal(used)).await.filter(|other| is_same_place(other, used))?;
        *lock(&self.current) = Arc::clone(&other);
        Some(other)
    }
}

shared::unprintable!(MailmanAccess, Parameters);
