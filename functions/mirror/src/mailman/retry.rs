//! Retries of requests to Mailman, with exponential backoff and a time budget.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;

use crate::mailman::client::Mailman;
use crate::mailman::error::{MailmanError, WriteOutcome};
use crate::mapping::ListId;
use crate::roster::Roster;

/// The time budget for retries of transient failures: `MAILMAN_RETRY_SECONDS`, which starts with the first failure.
pub(crate) struct RetryBudget {
    until: Option<Instant>,
    delays: ExponentialBackoff,
}

impl RetryBudget {
    pub(crate) fn new() -> Self {
        Self {
            until: None,
            delays: ExponentialBuilder::default()
                .with_min_delay(Duration::from_millis(200))
                .with_max_delay(Duration::from_secs(8))
                .with_jitter()
                .without_max_times()
                .build(),
        }
    }

    /// Waits before a retry, and returns the possible outcome of the failed write.
    ///
    /// # Errors
    /// Returns `error` if it isn't transient or the budget is used up, and [`MailmanError::OutOfTime`] if the delay
    /// would end after the cutoff.
    pub(crate) async fn wait(
        &mut self,
        mailman: &Mailman<'_>,
        error: MailmanError,
    ) -> Result<WriteOutcome, MailmanError> {
        let outcome = error.write_outcome().ok_or(error)?;
        let until = *self.until.get_or_insert_with(|| Instant::now() + mailman.timeouts.retry);
        let delay = self.delays.next().filter(|delay| Instant::now() + *delay < until).ok_or(error)?;
        tracing::info!(%error, "retrying Mailman request");
        mailman.wait(delay).await?;
        Ok(outcome)
    }

    /// Reads a roster, and retries transient failures of that too.
    pub(crate) async fn roster(&mut self, mailman: &Mailman<'_>, list: &ListId) -> Result<Roster, MailmanError> {
        loop {
            match mailman.roster(list).await {
                Ok(roster) => return Ok(roster),
                Err(error) => {
                    self.wait(mailman, error).await?;
                }
            }
        }
    }
}
