//! The time budget for retries of requests to Mailman.

use std::sync::Mutex;
use std::time::Duration;

use shared::sync::lock;
use tokio::time::Instant;

use crate::mailman::error::MailmanError;

/// The time budget for retries: `MAILMAN_RETRY_SECONDS` without a success.
///
/// It is one for the whole run. If Mailman is down, the first list waits for it, and the others fail with it.
pub(crate) struct RetryBudget {
    limit: Duration,
    /// The time of the first transient failure since the last success.
    failing_since: Mutex<Option<Instant>>,
}

impl RetryBudget {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, failing_since: Mutex::default() }
    }

    /// Returns a budget with the same limit, of which nothing is used.
    pub(super) fn renewed(&self) -> Self {
        Self::new(self.limit)
    }

    /// Notes the result of a request. Only a transient failure or a success counts.
    pub(super) fn note<T>(&self, result: &Result<T, MailmanError>) {
        match result {
            Ok(_) => *lock(&self.failing_since) = None,
            Err(error) if error.write_outcome().is_some() => {
                lock(&self.failing_since).get_or_insert_with(Instant::now);
            }
            Err(_) => {}
        }
    }

    /// True if there is time left for a retry after `delay`.
    pub(super) fn allows(&self, delay: Duration) -> bool {
        lock(&self.failing_since).is_none_or(|since| since.elapsed().saturating_add(delay) < self.limit)
    }

    /// True if Mailman has been failing for longer than requests are retried.
    pub(super) fn is_used_up(&self) -> bool {
        !self.allows(Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailman::error::WriteOutcome;

    const DOWN: Result<(), MailmanError> =
        Err(MailmanError::NoResponse { cause: "not connected", outcome: WriteOutcome::NotApplied });

    #[tokio::test(start_paused = true)]
    async fn budget_counts_the_time_without_a_success() {
        let budget = RetryBudget::new(Duration::from_secs(10));
        let after = async |seconds| tokio::time::sleep(Duration::from_secs(seconds)).await;
        assert!(budget.allows(Duration::from_secs(100)), "nothing has failed");
        budget.note(&DOWN);
        after(6).await;
        budget.note(&DOWN);
        assert!(budget.allows(Duration::from_secs(3)) && !budget.allows(Duration::from_secs(4)));
        assert!(!budget.allows(Duration::MAX), "a server may ask for any time");
        after(4).await;
        assert!(budget.is_used_up());
        // A rejection of one request doesn't say that Mailman works, or that it doesn't.
        budget.note::<()>(&Err(MailmanError::CredentialsRejected));
        assert!(budget.is_used_up());
        budget.note(&Ok(()));
        assert!(!budget.is_used_up());
        after(60).await;
        budget.note(&DOWN);
        assert!(budget.allows(Duration::from_secs(9)));
    }
}
