//! The services that both functions share, created once in the init phase.

use std::sync::Arc;

use rustls::{ClientConfig, Error as TlsError};

use crate::cache::Connector;
use crate::parameters::{ConfigFile, ParameterStore, Parameters, RawParameters, Source, SourceError, Ssm, is_loopback};
use crate::settings::{CacheLocation, CommonSettings, ParameterLocation};
use crate::telemetry::Phase;
use crate::{aws, http_client, novi};

/// An error that keeps a function from starting.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A certificate of `EXTRA_CA_CERTS` is not valid as a certificate authority.
    #[error("EXTRA_CA_CERTS contains a certificate that is not valid as an authority: {0}")]
    Tls(#[from] TlsError),
    /// Building the HTTP client failed.
    #[error("building the HTTP client failed: {0}")]
    Http(#[from] reqwest::Error),
    /// The parameters are missing or invalid.
    #[error(transparent)]
    Parameters(#[from] SourceError),
}

/// The HTTP client, the Novi client, and the function's own parameters.
pub struct Services<P> {
    /// The HTTP client for every outgoing connection except the cache's.
    pub http: reqwest::Client,
    /// The Novi client.
    pub novi: novi::Client,
    /// The parameters, which [`ParameterStore::start`] reads.
    pub parameters: Arc<ParameterStore<P>>,
    cache: CacheLocation,
    tls: ClientConfig,
}

impl<P: Parameters> Services<P> {
    /// Creates the services, without network requests.
    ///
    /// # Errors
    /// Returns an error if a CA certificate is invalid or the HTTP client cannot be built.
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
            novi: novi::Client::new(tls.clone(), common.novi_timeout)?,
            http,
            parameters: Arc::new(ParameterStore::new(source, common.parameter_ttl, P::REFRESH_TIMEOUT, read)),
            cache: common.cache,
            tls,
        })
    }

    /// Returns a Redis connector, if Redis is configured.
    pub fn connector(&self) -> Option<Connector> {
        if self.cache == CacheLocation::InProcess {
            return None;
        }
        if let CacheLocation::Url { url, .. } = &self.cache
            && url.scheme() == "redis"
            && !is_loopback(url)
        {
            tracing::warn!("plain redis:// to a remote host exposes the password and the members");
        }
        let is_discovered = matches!(self.cache, CacheLocation::ElastiCache { .. });
        let aws = is_discovered.then(|| aws::config(self.http.clone()));
        let store = Arc::clone(&self.parameters);
        let password = move |was_refused| {
            let store = Arc::clone(&store);
            let current = async move { store.for_cache(was_refused).await?.cache_password().cloned() };
            Box::pin(current) as _
        };
        Connector::new(&self.cache, aws, Box::new(password), self.tls.clone())
    }
}
