//! What both functions are built on, made once in the init phase.

use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, Error as TlsError};
use secrecy::SecretString;

use crate::cache::Connector;
use crate::parameters::{ConfigFile, ParameterError, ParameterStore, RawParameters, Source, SourceError, Ssm};
use crate::settings::{CacheLocation, CommonSettings, ParameterLocation};
use crate::telemetry::Phase;
use crate::{aws, http_client, novi};

/// Why a function cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A certificate of `EXTRA_CA_CERTS` cannot be an authority.
    #[error("EXTRA_CA_CERTS holds a certificate that cannot be an authority: {0}")]
    Tls(#[from] TlsError),
    /// The HTTP client cannot be built.
    #[error("the HTTP client cannot be built: {0}")]
    Http(#[from] reqwest::Error),
    /// The parameters are wrong.
    #[error(transparent)]
    Parameters(#[from] SourceError),
}

/// A function's own parameters.
pub trait Parameters: Sized + Send + Sync + 'static {
    /// Their names: what is read, and what the function's role must be allowed.
    const NAMES: &'static [&'static str];
    /// The one that may go on in `{name}/1`, `{name}/2`, …
    const MULTIPART_NAME: Option<&'static str>;
    /// The longest that a reading which is due may take where older parameters
    /// can serve instead.
    const REFRESH_TIMEOUT: Duration;

    /// Reads them. `allow_plain_http` is `ALLOW_PLAIN_HTTP`.
    ///
    /// # Errors
    /// What is missing or malformed, by its name.
    fn read(raw: &RawParameters, allow_plain_http: bool) -> Result<Self, ParameterError>;

    /// `cache_password`.
    fn cache_password(&self) -> Option<&SecretString>;
}

/// The HTTP client, the client of Novi, and a function's own parameters.
pub struct Services<P> {
    /// For every outgoing connection but the cache's.
    pub http: reqwest::Client,
    /// Novi.
    pub novi: novi::Client,
    /// Not read yet: see [`ParameterStore::start`].
    pub parameters: Arc<ParameterStore<P>>,
    cache: CacheLocation,
    tls: ClientConfig,
}

impl<P: Parameters> Services<P> {
    /// Makes it. Nothing is asked over the network yet.
    ///
    /// # Errors
    /// What is wrong, by its name.
    pub fn new(common: CommonSettings) -> Result<Self, StartError> {
        let phase = Phase::start("TLS");
        http_client::install_tls_provider();
        let tls = http_client::tls_config(&common.extra_ca_certs)?;
        let http = http_client::build(tls.clone())?;
        drop(phase);
        let _sdk = Phase::start("SDK");
        let source = match common.parameters {
            ParameterLocation::File(path) => Source::File(ConfigFile::new(path)),
            ParameterLocation::Ssm(prefix) => {
                let client = aws_sdk_ssm::Client::new(&aws::config(http.clone()));
                Source::Ssm(Ssm::new(client, prefix, P::NAMES, P::MULTIPART_NAME))
            }
        };
        let read = move |raw: &RawParameters| P::read(raw, common.allow_plain_http);
        Ok(Self {
            novi: novi::Client::new(http.clone(), common.novi_timeout),
            http,
            parameters: Arc::new(ParameterStore::new(source, common.parameter_ttl, P::REFRESH_TIMEOUT, read)),
            cache: common.cache,
            tls,
        })
    }

    /// What leads to the Redis, where there is one.
    pub fn connector(&self) -> Option<Connector> {
        if self.cache == CacheLocation::InProcess {
            return None;
        }
        let is_discovered = matches!(self.cache, CacheLocation::ElastiCache { .. });
        let aws = is_discovered.then(|| aws::config(self.http.clone()));
        let store = Arc::clone(&self.parameters);
        let password = move |was_refused| {
            let store = Arc::clone(&store);
            let current = async move {
                let mut current = store.get().await.ok()?;
                if was_refused && let Some(other) = store.after_refusal(&current).await {
                    current = other;
                }
                current.cache_password().cloned()
            };
            Box::pin(current) as _
        };
        Connector::new(&self.cache, aws, Box::new(password), self.tls.clone())
    }
}
