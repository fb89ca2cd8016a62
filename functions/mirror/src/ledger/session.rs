//! The ledger during one run: it is read and claimed, written before anything is applied, and written in the end.

use std::time::Duration;

use shared::time::unix_now;

use super::document::{Document, RunClaim};
use super::{LedgerKeys, LedgerStore, OpenError, StoreError, Version};

/// The number of attempts to claim a ledger that others are writing.
const CLAIM_ATTEMPTS: usize = 3;

/// The ledger of one run.
pub(crate) enum Ledger<'l> {
    /// `LEDGER` isn't set.
    None,
    /// It can't be used. The run goes on without it, and removes no one.
    Unavailable,
    Open(Box<OpenLedger<'l>>),
}

/// A ledger that was read.
pub(crate) struct OpenLedger<'l> {
    store: &'l LedgerStore,
    keys: &'l LedgerKeys,
    pub(crate) document: Document,
    /// The version that was read or written last. `None` if there was none.
    version: Option<Version>,
    /// True if the content may be written. A dry run writes only the count of calls.
    is_claimed: bool,
}

/// The ledger is claimed by another run.
pub(crate) struct Claimed;

/// The reason why the ledger can't be used.
#[derive(Debug, thiserror::Error)]
enum LedgerError {
    #[error("the parameter ledger_key is missing. Set it with make parameters")]
    NoKey,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("it was sealed by another version of the mirror, which writes something else")]
    Content,
    #[error("other runs are writing it")]
    Busy,
}

impl<'l> Ledger<'l> {
    /// Reads the ledger, and claims it for a run that ends within `duration`, unless this is a dry run.
    ///
    /// # Errors
    /// Returns an error if another run has claimed it. Any other failure makes it unavailable.
    pub(crate) async fn open(
        store: Option<&'l LedgerStore>,
        keys: Option<&'l LedgerKeys>,
        duration: Duration,
        dry_run: bool,
    ) -> Result<Self, Claimed> {
        let Some(store) = store else { return Ok(Self::None) };
        let opened = match keys {
            Some(keys) => OpenLedger::open(store, keys, duration, dry_run).await,
            None => Err(LedgerError::NoKey),
        };
        match opened {
            Ok(Some(ledger)) => Ok(Self::Open(Box::new(ledger))),
            Ok(None) => Err(Claimed),
            Err(error) => {
                tracing::error!(%error, "ledger unavailable");
                Ok(Self::Unavailable)
            }
        }
    }

    /// Returns the ledger if it was read.
    pub(crate) fn opened(&mut self) -> Option<&mut OpenLedger<'l>> {
        if let Self::Open(ledger) = self { Some(ledger) } else { None }
    }

    /// True if the ledger is configured and can't be used.
    pub(crate) fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable)
    }
}

impl<'l> OpenLedger<'l> {
    /// Returns `None` if another run has claimed the ledger.
    async fn open(
        store: &'l LedgerStore,
        keys: &'l LedgerKeys,
        duration: Duration,
        dry_run: bool,
    ) -> Result<Option<Self>, LedgerError> {
        for _ in 0..CLAIM_ATTEMPTS {
            let (document, version) = match store.read().await? {
                None => (Document::default(), None),
                Some((sealed, version)) => {
                    let content = keys.open(&sealed)?;
                    (serde_json::from_slice(&content).map_err(|_| LedgerError::Content)?, Some(version))
                }
            };
            let mut ledger = Self { store, keys, document, version, is_claimed: false };
            if dry_run {
                return Ok(Some(ledger));
            }
            let now = unix_now();
            if ledger.document.claim.as_ref().is_some_and(|claim| claim.until > now) {
                return Ok(None);
            }
            ledger.document.claim = Some(RunClaim { until: now + duration.as_secs() + 1 });
            ledger.is_claimed = true;
            match ledger.write().await {
                Ok(()) => return Ok(Some(ledger)),
                // Another run was faster. It has claimed the ledger, or counted its calls.
                Err(LedgerError::Store(StoreError::Changed)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(LedgerError::Busy)
    }

    /// Writes the content. Returns false if that failed. A dry run writes nothing.
    pub(crate) async fn save(&mut self) -> bool {
        if !self.is_claimed {
            return true;
        }
        let written = self.write().await;
        if let Err(error) = &written {
            tracing::error!(%error, "writing the ledger failed");
        }
        written.is_ok()
    }

    /// True if a dry run could write what it mailed: the ledger can be written, and isn't claimed.
    pub(crate) async fn can_note_mail(&self) -> bool {
        let Ok(Some(mut present)) = Self::open(self.store, self.keys, Duration::ZERO, true).await else {
            return false;
        };
        if present.document.claim.as_ref().is_some_and(|claim| claim.until > unix_now()) {
            return false;
        }
        let written = present.write().await;
        if let Err(error) = &written {
            tracing::warn!(%error, "the ledger can't be written, so no mail is sent");
        }
        written.is_ok()
    }

    /// Counts the run's calls, writes the content and ends the claim. A dry run writes only the count of calls, and not
    /// that while a run's claim stands, and with `has_mailed` what was mailed. Returns false if that failed.
    pub(crate) async fn close(mut self, calls: u64, has_mailed: bool) -> bool {
        let now = unix_now();
        if self.is_claimed {
            self.document.add_calls(calls, now);
            self.document.claim = None;
            return self.save().await;
        }
        // The document that was read is not the one that was planned with.
        let Ok(Some(mut unchanged)) = Self::open(self.store, self.keys, Duration::ZERO, true).await else {
            return true;
        };
        if (calls > 0 || has_mailed) && unchanged.document.claim.as_ref().is_none_or(|claim| claim.until <= now) {
            unchanged.document.add_calls(calls, now);
            if has_mailed {
                unchanged.document.mails = self.document.mails;
            }
            // If a run is faster, its own count is enough.
            if let Err(error) = unchanged.write().await {
                tracing::warn!(%error, "the calls of a dry run were not counted");
            }
        }
        true
    }

    async fn write(&mut self) -> Result<(), LedgerError> {
        let content = serde_json::to_vec(&self.document).map_err(|_| LedgerError::Content)?;
        let sealed = self.keys.seal(&content);
        self.version = Some(self.store.write(sealed, self.version.as_ref()).await?);
        Ok(())
    }
}

shared::unprintable!(OpenLedger<'_>);
