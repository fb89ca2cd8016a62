//! Errors of requests to Mailman, and the possible outcomes of a failed write.

use std::time::Duration;

use http::StatusCode;
use shared::network_error::TLS_FAILED;

/// The minimum wait before a write is retried after its response was lost. A locked database may delay the first
/// request for this long.
pub(crate) const SETTLE_DELAY: Duration = Duration::from_secs(6);
/// How long a write may be in progress after the client has disconnected.
pub(crate) const OPEN_WRITE_PERIOD: Duration = Duration::from_secs(360);

/// The reason why a list could not be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MailmanError {
    #[error("Time ran out before this list was finished")]
    OutOfTime,
    #[error("Mailman has no list with this id")]
    NoSuchList,
    #[error("Mailman rejected mailman_username and mailman_password")]
    CredentialsRejected,
    /// Mailman sent no response, or an incomplete one. Transient.
    #[error("Mailman did not respond ({cause})")]
    NoResponse { cause: &'static str, outcome: WriteOutcome },
    /// Mailman responded that it failed, or sent a response that isn't consistent. Transient.
    #[error("Mailman failed ({cause})")]
    Transient { cause: &'static str, outcome: WriteOutcome },
    #[error("Mailman returned an unexpected response, {0}")]
    Unexpected(StatusCode),
    /// Mailman or a proxy sent 429, or 503 with `Retry-After` in seconds. Transient.
    #[error("Mailman, or a proxy in front of it, asked for later or fewer requests ({status}{})", wait(*retry_after))]
    Busy { status: StatusCode, retry_after: Option<u64>, outcome: WriteOutcome },
    /// The response is not in Mailman's format.
    #[error("Another server than Mailman responded with {0}")]
    NotMailman(StatusCode),
    /// A proxy lets no removal pass.
    #[error("Mailman, or a proxy in front of it, responded to DELETE with {0}")]
    DeleteForbidden(StatusCode),
}

impl MailmanError {
    /// Returns the possible outcome of the write, if the error is transient.
    pub(crate) fn write_outcome(self) -> Option<WriteOutcome> {
        match self {
            Self::NoResponse { outcome, .. } | Self::Transient { outcome, .. } | Self::Busy { outcome, .. } => {
                Some(outcome)
            }
            _ => None,
        }
    }

    /// Returns how long Mailman or a proxy asked to wait, if it did.
    pub(crate) fn retry_after(self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } => retry_after.map(Duration::from_secs),
            _ => None,
        }
    }

    /// True if Mailman has no such list, or a proxy that replaces Mailman's errors says so.
    pub(crate) fn is_missing_list(self) -> bool {
        matches!(self, Self::NoSuchList | Self::NotMailman(StatusCode::NOT_FOUND))
    }

    /// True if the cause can only be Mailman or a proxy, and not the address that the request was about.
    pub(crate) fn is_busy(self) -> bool {
        matches!(self, Self::Busy { .. })
    }

    /// True if one address may be the cause, such as one that a firewall takes for an attack.
    pub(crate) fn may_be_about_an_address(self) -> bool {
        let is_transient = self.write_outcome().is_some() && !self.is_busy();
        is_transient || matches!(self, Self::Unexpected(_) | Self::NotMailman(_))
    }

    /// Returns what happens next, or what the operator can do.
    pub(crate) fn remedy(self) -> &'static str {
        match self {
            Self::OutOfTime => "The next run continues.",
            Self::NoSuchList => "Create the list, or correct list_id in the mapping.",
            Self::CredentialsRejected => "Correct these parameters.",
            Self::NoResponse { cause, .. } if cause.starts_with(TLS_FAILED) => {
                "Check the host in mailman_base_url. If its certificate is of a private authority, trust that with \
                 EXTRA_CA_CERTS. See Mailman's certificate in docs/operations.md."
            }
            Self::NoResponse { .. } => {
                "The next run retries. If this persists, check that Mailman is running and reachable."
            }
            Self::Transient { .. } => "The next run retries. If this persists, check Mailman's log and its database.",
            Self::Busy { .. } => {
                "The next run retries. If this persists, allow more requests a second in the proxy: see A proxy in \
                 front of Mailman in docs/operations.md."
            }
            Self::DeleteForbidden(_) => {
                "No one can be removed until the proxy in front of Mailman lets DELETE pass, with a body: see A proxy \
                 in front of Mailman in docs/operations.md."
            }
            Self::Unexpected(_) => "Check Mailman's log.",
            Self::NotMailman(_) => "Check mailman_base_url, and the proxy in front of Mailman.",
        }
    }
}

fn wait(retry_after: Option<u64>) -> String {
    retry_after.map(|seconds| format!(", Retry-After: {seconds} s")).unwrap_or_default()
}

/// The possible outcome of a write that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteOutcome {
    /// Not applied: the request never arrived, or wasn't a write.
    NotApplied,
    /// Possibly applied. Mailman has finished processing it.
    Unknown,
    /// Possibly applied, or about to be within moments: the connection closed before the whole response arrived, or a
    /// proxy in front of Mailman lost the response. Known after [`SETTLE_DELAY`].
    MaybeSettling,
    /// Possibly applied, or still in progress for up to [`OPEN_WRITE_PERIOD`]. Mailman continues after the client has
    /// disconnected.
    MaybeInProgress,
}

impl WriteOutcome {
    /// True if the write may still be applied later.
    pub(crate) fn is_open(self) -> bool {
        matches!(self, Self::MaybeSettling | Self::MaybeInProgress)
    }
}
