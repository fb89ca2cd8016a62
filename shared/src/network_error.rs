//! The causes of failed connections, in words that say what to repair.
//!
//! The texts of the errors themselves are dropped, because they may quote a URL or data.

use std::error::Error;
use std::io;

use rustls::CertificateError;

/// The beginning of every cause that is a failure of TLS.
pub const TLS_FAILED: &str = "TLS failed";

/// Returns an error, its source, the source of that, and so on.
pub(crate) fn sources<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |e| {
        let e = *e;
        // The source of an io::Error is that of the error inside of it. hyper-rustls wraps TLS errors twice.
        match e.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => e.source(),
        }
    })
}

/// Returns the cause of an error of the network, or `None` if it doesn't tell.
#[must_use]
pub fn network_cause(error: &(dyn Error + 'static)) -> Option<&'static str> {
    sources(error).find_map(|e| {
        if let Some(error) = e.downcast_ref::<rustls::Error>() {
            return Some(tls_cause(error));
        }
        // hyper-util's error for a failed lookup has a private type.
        if e.to_string() == "dns error" {
            return Some(UNKNOWN_NAME);
        }
        let io = e.downcast_ref::<io::Error>()?;
        match io.kind() {
            io::ErrorKind::ConnectionRefused => Some("connection refused"),
            io::ErrorKind::ConnectionReset => Some("connection reset"),
            io::ErrorKind::UnexpectedEof => Some("connection closed"),
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => Some("no route to the host"),
            // The resolver's errors have no kind of their own.
            _ if io.to_string().starts_with("failed to lookup address information") => Some(UNKNOWN_NAME),
            _ => None,
        }
    })
}

const UNKNOWN_NAME: &str = "the host name can't be resolved";

fn tls_cause(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::InvalidCertificate(error) => match error {
            // A signature is bad if an authority was made anew under its name.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "TLS failed: the certificate's authority isn't trusted"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "TLS failed: the certificate is for another name"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "TLS failed: the certificate has expired"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "TLS failed: the certificate isn't valid yet"
            }
            // webpki's own error, which rustls doesn't have.
            CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
                "TLS failed: the certificate is one of an authority, not of a server"
            }
            _ => "TLS failed: the certificate isn't valid",
        },
        rustls::Error::InvalidMessage(_) => "TLS failed: the server doesn't respond in TLS",
        _ => TLS_FAILED,
    }
}
