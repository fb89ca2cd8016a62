//! Retries of requests to Mailman, with exponential backoff, within a time budget that all lists of a run share. No
//! operation is retried for longer than that, whatever else succeeds meanwhile.

use std::collections::HashMap;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use crate::address::Address;
use crate::mailman::client::{Mailman, MemberIds};
use crate::mailman::error::{MailmanError, WriteOutcome};
use crate::mailman::retry_budget::RetryBudget;
use crate::mapping::ListId;
use crate::roster::Roster;

/// The retries of one operation, which back off exponentially.
pub(crate) struct Retries<'m> {
    mailman: &'m Mailman<'m>,
    /// The budget of all operations of the same kind.
    budget: &'m RetryBudget,
    delays: ExponentialBackoff,
    /// The budget of this operation alone.
    own: RetryBudget,
}

impl<'m> Retries<'m> {
    /// The retries of additions, of removals, or of a change of a list.
    pub(crate) fn of_writes(mailman: &'m Mailman<'m>) -> Self {
        Self::within(mailman, &mailman.writes)
    }

    /// The retries of moves.
    pub(crate) fn of_memberships(mailman: &'m Mailman<'m>) -> Self {
        Self::within(mailman, &mailman.memberships)
    }

    fn within(mailman: &'m Mailman<'m>, budget: &'m RetryBudget) -> Self {
        Self { mailman, budget, delays: backoff(), own: budget.renewed() }
    }

    /// Starts anew, after a success.
    pub(crate) fn reset(&mut self) {
        self.budget.note(&Ok(()));
        *self = Self::within(self.mailman, self.budget);
    }

    /// Notes a failure.
    pub(crate) fn note(&self, error: MailmanError) {
        for budget in [self.budget, &self.own] {
            budget.note::<()>(&Err(error));
        }
    }

    /// True if operations of this kind have been failing for longer than they are retried.
    pub(crate) fn are_used_up(&self) -> bool {
        self.budget.is_used_up()
    }

    /// Waits before an operation is retried, and returns the possible outcome of the failed one.
    ///
    /// # Errors
    /// Returns `error` if it isn't transient or a budget is used up, and [`MailmanError::OutOfTime`] if the delay would end
    /// after the cutoff.
    pub(crate) async fn wait(&mut self, error: MailmanError) -> Result<WriteOutcome, MailmanError> {
        let outcome = error.write_outcome().ok_or(error)?;
        self.note(error);
        let delay = self.delays.next().map(|delay| delay.max(error.retry_after().unwrap_or_default()));
        let is_allowed = |delay: &Duration| self.budget.allows(*delay) && self.own.allows(*delay);
        let delay = delay.filter(is_allowed).ok_or(error)?;
        tracing::info!(%error, "retrying Mailman request");
        self.mailman.wait(delay).await?;
        Ok(outcome)
    }
}

fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(8))
        .with_jitter()
        .without_max_times()
        .build()
}

impl Mailman<'_> {
    /// Reads the members of a list, without its owners, moderators and non-members. Retries transient failures.
    pub(crate) async fn roster(&self, list: &ListId) -> Result<Roster, MailmanError> {
        self.retry_read(async || self.read_roster(list).await).await
    }

    /// Reads the ids of the memberships of a list. Retries transient failures.
    pub(crate) async fn member_ids(&self, list: &ListId) -> Result<MemberIds, MailmanError> {
        self.retry_read(async || self.read_member_ids(list).await).await
    }

    /// Reads the pending subscription requests of a list. Returns the tokens of each address. Retries transient
    /// failures.
    pub(crate) async fn subscription_requests(
        &self,
        list: &ListId,
    ) -> Result<HashMap<Address, Vec<String>>, MailmanError> {
        self.retry_read(async || self.read_subscription_requests(list).await).await
    }

    /// True if the list sends a goodbye message to those who leave. Retries transient failures.
    pub(crate) async fn says_goodbye(&self, list: &ListId) -> Result<bool, MailmanError> {
        let settings = self.retry_read(async || self.list_settings(list).await).await?;
        // On is Mailman's default.
        Ok(settings.send_goodbye_message.unwrap_or(true))
    }

    /// True if Mailman has a list with this id. Retries transient failures.
    pub(crate) async fn has_list(&self, list: &ListId) -> Result<bool, MailmanError> {
        match self.retry_read(async || self.member_count(list).await).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_missing_list() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// True if writes have been failing for longer than they are retried. Another write may still succeed.
    pub(crate) fn is_write_budget_used_up(&self) -> bool {
        self.writes.is_used_up()
    }

    /// Repeats requests, at least one of which writes, until they succeed. Each attempt begins anew.
    pub(crate) async fn retry_write<T>(
        &self,
        write: impl AsyncFn() -> Result<T, MailmanError>,
    ) -> Result<T, MailmanError> {
        self.retry(&self.writes, write).await
    }

    /// Repeats requests about one membership until they succeed. Each attempt begins anew.
    pub(crate) async fn retry_membership<T>(
        &self,
        attempt: impl AsyncFn() -> Result<T, MailmanError>,
    ) -> Result<T, MailmanError> {
        self.retry(&self.memberships, attempt).await
    }

    /// Repeats requests that only read until they succeed.
    pub(crate) async fn retry_read<T>(
        &self,
        read: impl AsyncFn() -> Result<T, MailmanError>,
    ) -> Result<T, MailmanError> {
        self.retry(&self.reads, read).await
    }

    async fn retry<T>(
        &self,
        budget: &RetryBudget,
        attempt: impl AsyncFn() -> Result<T, MailmanError>,
    ) -> Result<T, MailmanError> {
        let mut retries = Retries::within(self, budget);
        loop {
            match attempt().await {
                Ok(result) => {
                    retries.reset();
                    return Ok(result);
                }
                Err(error) => drop(retries.wait(error).await?),
            }
        }
    }
}
