//! What both functions are built on, made once in the init phase.

use rustls::Error as TlsError;

use crate::parameters::{ConfigFile, ParameterError, ParameterStore, Raw, SourceError};
use crate::settings::Common;
use crate::{novi, outbound};

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

/// The HTTP client, the client of Novi, and a function's own parameters.
pub struct Foundation<P> {
    /// For every outgoing connection.
    pub http: reqwest::Client,
    /// Novi.
    pub novi: novi::Client,
    /// Read for the first time.
    pub parameters: ParameterStore<P>,
}

impl<P> Foundation<P> {
    /// Makes it. `read` takes a function's parameters from what its source
    /// gives; its second argument is `ALLOW_PLAIN_HTTP`.
    ///
    /// # Errors
    /// What is wrong, by its name.
    pub async fn lay(
        common: Common,
        read: impl Fn(&Raw, bool) -> Result<P, ParameterError> + Send + Sync + 'static,
    ) -> Result<Self, StartError> {
        outbound::install_tls_provider();
        let http = outbound::client(outbound::tls_config(&common.extra_ca_certs)?)?;
        let source = ConfigFile::new(common.config_file);
        let read = move |raw: &Raw| read(raw, common.allow_plain_http);
        let parameters = ParameterStore::open(source, common.parameter_ttl, read).await?;
        Ok(Self { novi: novi::Client::new(http.clone(), common.novi_timeout), http, parameters })
    }
}
