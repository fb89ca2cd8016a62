//! The result of a probe: what it found, and what to do about it.

use serde::Serialize;
use shared::parameters::is_loopback;
use url::Url;

/// The weight of a finding, in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Severity {
    /// As this product expects.
    Ok,
    /// Something works less well than it could, or could not be observed.
    Warning,
    /// Verification or the mirror does not work, or not for everyone.
    Error,
}

/// One finding. It contains no value of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) severity: Severity,
    pub(crate) subject: String,
    pub(crate) found: String,
    /// The setting or the action that answers it, or `null` if nothing has to be done.
    pub(crate) fix: Option<String>,
}

impl Finding {
    pub(crate) fn ok(subject: impl Into<String>, found: impl Into<String>) -> Self {
        Self { severity: Severity::Ok, subject: subject.into(), found: found.into(), fix: None }
    }

    pub(crate) fn warning(subject: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, fix: Some(fix.into()), ..Self::ok(subject, found) }
    }

    pub(crate) fn error(subject: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { severity: Severity::Error, fix: Some(fix.into()), ..Self::ok(subject, found) }
    }
}

/// The protection of the connection to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Transport {
    Tls,
    /// Plain HTTP that doesn't leave the host.
    Loopback,
    /// Plain HTTP, which `ALLOW_PLAIN_HTTP` allows.
    PlainHttp,
}

impl Transport {
    pub(crate) fn of(url: &Url) -> Self {
        match url.scheme() {
            "https" => Self::Tls,
            _ if is_loopback(url) => Self::Loopback,
            _ => Self::PlainHttp,
        }
    }

    /// Returns the words for a finding.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "over TLS",
            Self::Loopback => "over loopback",
            Self::PlainHttp => "over plain HTTP",
        }
    }
}

/// The status of a probe: that of its worst finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ProbeStatus {
    Ok,
    Partial,
    Failed,
}

impl ProbeStatus {
    pub(crate) fn of(findings: &[Finding]) -> Self {
        match findings.iter().map(|finding| finding.severity).max() {
            None | Some(Severity::Ok) => Self::Ok,
            Some(Severity::Warning) => Self::Partial,
            Some(Severity::Error) => Self::Failed,
        }
    }
}
