//! Applies a plan to Mailman: additions first, then removals in bulk.
//!
//! Subscriptions run concurrently, with one request at a time for each address. After a failure, no new requests start,
//! and in-flight ones are awaited. If a write's outcome is unknown, the roster is read before anything else is written,
//! because overlapping requests for one address create duplicate memberships. Such an address is retried last, after
//! [`SETTLE_DELAY`] and another read of the roster. An unexplained rejection is also retried last, once, without the
//! delay. Transient failures are retried for `MAILMAN_RETRY_SECONDS`, which is a minute by default.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde::Serialize;
use tokio::time::Instant;

use crate::address::Address;
use crate::mailman::{Mailman, MailmanError, Refusal, RetryBudget, Subscription, WriteOutcome};
use crate::mapping::ListId;
use crate::plan::{Plan, Subscriber};
use crate::roster::Roster;

/// The maximum number of concurrent subscriptions. With PostgreSQL, four are twice as fast as one, and eight are as
/// fast as four. With SQLite, the number makes no difference.
const CONCURRENCY: usize = 4;
/// The maximum number of addresses in one removal. During a long removal, other writers find the database locked.
const BATCH_SIZE: usize = 500;
/// The minimum time left to start a subscription.
const SUBSCRIPTION_TIME: Duration = Duration::from_secs(5);
/// The minimum time left to start a bulk removal.
const REMOVAL_TIME: Duration = Duration::from_secs(10);
/// The minimum wait before a subscription is retried after its response was lost. A locked database may delay the
/// first request for this long.
const SETTLE_DELAY: Duration = Duration::from_secs(6);
/// The number of failures of one address, while others succeed, after which the address is considered the cause.
const MAX_FAILURES_PER_ADDRESS: usize = 5;
/// The number of consecutive unexpected responses that are attributed to their addresses. After more of them, the
/// server that responds is probably not Mailman. If only this many addresses are left and fail, this also doesn't prove
/// that Mailman is failing.
const MAX_POISON_ADDRESSES: usize = 2;

/// The number of addresses that Mailman rejected, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Rejected {
    pub(crate) invalid: usize,
    pub(crate) banned: usize,
    pub(crate) other: usize,
}

impl Rejected {
    pub(crate) fn count(&mut self, refusal: Refusal) {
        match refusal {
            Refusal::Invalid => self.invalid += 1,
            Refusal::Banned => self.banned += 1,
            Refusal::Other => self.other += 1,
        }
    }

    pub(crate) fn total(self) -> usize {
        self.invalid + self.banned + self.other
    }
}

/// The part of a plan that was applied.
#[derive(Default)]
pub(crate) struct Applied {
    pub(crate) subscribed: usize,
    pub(crate) unsubscribed: usize,
    pub(crate) rejected: Rejected,
    /// The number of subscriptions that timed out, and that Mailman may still be processing.
    pub(crate) timed_out: usize,
    /// The error that prevented the rest of the plan from being applied.
    pub(crate) stopped: Option<MailmanError>,
}

impl Applied {
    /// Counts an address that is not retried in this run.
    fn record_abandoned(&mut self, outcome: WriteOutcome) {
        match outcome {
            WriteOutcome::MaybeInProgress => self.timed_out += 1,
            WriteOutcome::NotApplied | WriteOutcome::Unknown | WriteOutcome::MaybeSettling => {
                self.rejected.count(Refusal::Other);
            }
        }
    }
}

/// Applies a plan.
pub(crate) async fn apply(mailman: &Mailman<'_>, plan: &Plan) -> Applied {
    let mut applied = Applied::default();
    applied.stopped = apply_into(mailman, plan, &mut applied).await.err();
    applied
}

async fn apply_into(mailman: &Mailman<'_>, plan: &Plan, applied: &mut Applied) -> Result<(), MailmanError> {
    let undecided = Subscriptions::new(mailman, plan, applied).run().await?;
    for addresses in plan.unsubscribe.chunks(BATCH_SIZE) {
        unsubscribe(mailman, plan, addresses.iter().collect()).await?;
        applied.unsubscribed += addresses.len();
    }
    match undecided {
        // Nothing was written, so Mailman is failing, not the addresses.
        Some(error) if applied.subscribed + applied.unsubscribed == 0 => Err(error),
        _ => Ok(()),
    }
}

/// A subscriber who isn't subscribed yet.
struct Pending<'p> {
    subscriber: &'p Subscriber,
    /// The number of failed attempts.
    failures: usize,
    /// The value of [`Subscriptions::done`] at the first failure.
    done_before: usize,
    /// True if Mailman has rejected it once without an explanation.
    is_unexplained: bool,
}

/// The results of one batch of concurrent subscriptions.
#[derive(Default)]
struct BatchResult<'p> {
    subscribed: usize,
    refused: Vec<Refusal>,
    unexplained: Vec<Pending<'p>>,
    failed: Vec<(Pending<'p>, MailmanError)>,
}

/// A subscriber to retry, and the possible outcome of the failed attempt.
type Retry<'p> = (Pending<'p>, WriteOutcome);

/// The progress of a plan's subscriptions.
struct Subscriptions<'a> {
    mailman: &'a Mailman<'a>,
    list: &'a ListId,
    applied: &'a mut Applied,
    /// The addresses to subscribe next.
    queue: VecDeque<Pending<'a>>,
    /// The addresses to retry last.
    unsettled: Vec<Pending<'a>>,
    /// The time at which the most recent response with an unknown outcome was lost.
    lost_at: Option<Instant>,
    retry_budget: RetryBudget,
    /// The number of addresses that Mailman has decided on.
    done: usize,
    /// The number of consecutive responses that were unexpected.
    unexpected: usize,
}

impl<'a> Subscriptions<'a> {
    fn new(mailman: &'a Mailman<'a>, plan: &'a Plan, applied: &'a mut Applied) -> Self {
        let pending = |subscriber| Pending { subscriber, failures: 0, done_before: 0, is_unexplained: false };
        Self {
            mailman,
            list: &plan.list,
            applied,
            queue: plan.subscribe.iter().map(pending).collect(),
            unsettled: Vec::new(),
            lost_at: None,
            retry_budget: RetryBudget::new(),
            done: 0,
            unexpected: 0,
        }
    }

    /// Subscribes everyone who is to join.
    ///
    /// Returns the error of the last few addresses, if either these or Mailman may be its cause.
    async fn run(mut self) -> Result<Option<MailmanError>, MailmanError> {
        loop {
            if self.queue.is_empty() && !self.unsettled.is_empty() {
                self.requeue_unsettled().await?;
            }
            let failed = self.run_batch().await;
            if failed.is_empty() {
                if !self.queue.is_empty() {
                    return Err(MailmanError::OutOfTime);
                }
                if self.unsettled.is_empty() {
                    return Ok(None);
                }
                continue;
            }
            let (retries, last_error) = self.sort_failures(failed)?;
            let Some(error) = last_error else { continue };
            if let Err(error) = self.retry_budget.wait(self.mailman, error).await {
                let remaining = self.queue.len() + self.unsettled.len() + retries.len();
                if remaining <= MAX_POISON_ADDRESSES && matches!(error, MailmanError::Transient { .. }) {
                    // Mailman is up but fails on these addresses, so they must not block the removals.
                    self.abandon_all(retries);
                    return Ok(Some(error));
                }
                return Err(error);
            }
            self.schedule_retries(retries).await?;
        }
    }

    /// Waits until lost subscriptions have settled, and requeues those that are still not on the roster.
    async fn requeue_unsettled(&mut self) -> Result<(), MailmanError> {
        let delay = self.lost_at.map_or(Duration::ZERO, |lost_at| SETTLE_DELAY.saturating_sub(lost_at.elapsed()));
        self.mailman.wait(delay).await?;
        let roster = self.retry_budget.roster(self.mailman, self.list).await?;
        let before = self.unsettled.len();
        self.unsettled.retain(|pending| !roster.contains(&pending.subscriber.address));
        self.applied.subscribed += before - self.unsettled.len();
        self.queue.extend(self.unsettled.drain(..));
        Ok(())
    }

    /// Runs one batch, records its results, and returns its failures.
    async fn run_batch(&mut self) -> Vec<(Pending<'a>, MailmanError)> {
        let batch = subscribe_batch(self.mailman, self.list, &mut self.queue).await;
        self.applied.subscribed += batch.subscribed;
        batch.refused.iter().for_each(|refusal| self.applied.rejected.count(*refusal));
        let decided = batch.subscribed + batch.refused.len();
        if decided > 0 {
            self.done += decided;
            self.retry_budget = RetryBudget::new();
            self.unexpected = 0;
        }
        self.unsettled.extend(batch.unexplained);
        batch.failed
    }

    /// Returns the failures to retry and the last transient error.
    ///
    /// # Errors
    /// Returns an error that isn't transient. The first few unexpected responses are exceptions: their addresses count
    /// as rejected.
    fn sort_failures(
        &mut self,
        failed: Vec<(Pending<'a>, MailmanError)>,
    ) -> Result<(Vec<Retry<'a>>, Option<MailmanError>), MailmanError> {
        let mut retries = Vec::new();
        let mut last_error = None;
        for (mut pending, error) in failed {
            match (error, error.write_outcome()) {
                (_, Some(outcome)) => {
                    if pending.failures == 0 {
                        pending.done_before = self.done;
                    }
                    pending.failures += 1;
                    retries.push((pending, outcome));
                    last_error = Some(error);
                }
                (MailmanError::Unexpected(_), None) if self.unexpected < MAX_POISON_ADDRESSES => {
                    self.unexpected += 1;
                    self.applied.rejected.count(Refusal::Other);
                }
                (error, None) => return Err(error),
            }
        }
        Ok((retries, last_error))
    }

    /// Gives up on every address that is left.
    fn abandon_all(&mut self, retries: Vec<Retry<'a>>) {
        for (_, outcome) in retries {
            self.applied.record_abandoned(outcome);
        }
        self.queue.iter().chain(&self.unsettled).for_each(|_| self.applied.rejected.count(Refusal::Other));
    }

    /// Schedules failed addresses again, except those that turn out to be subscribed and those to abandon.
    async fn schedule_retries(&mut self, retries: Vec<Retry<'a>>) -> Result<(), MailmanError> {
        let mut roster = Roster::default();
        if retries.iter().any(|(_, outcome)| *outcome != WriteOutcome::NotApplied) {
            roster = self.retry_budget.roster(self.mailman, self.list).await?;
        }
        for (pending, outcome) in retries {
            let is_poison = pending.failures >= MAX_FAILURES_PER_ADDRESS && self.done > pending.done_before;
            if roster.contains(&pending.subscriber.address) {
                self.applied.subscribed += 1;
                self.done += 1;
            } else if outcome == WriteOutcome::MaybeInProgress || is_poison {
                self.applied.record_abandoned(outcome);
            } else if outcome == WriteOutcome::MaybeSettling {
                self.unsettled.push(pending);
                self.lost_at = Some(Instant::now());
            } else {
                // Move to the back so it doesn't block the other addresses.
                self.queue.push_back(pending);
            }
        }
        Ok(())
    }
}

/// Subscribes addresses from the queue until one fails, time runs out, or the queue is empty.
async fn subscribe_batch<'p>(
    mailman: &Mailman<'_>,
    list: &ListId,
    queue: &mut VecDeque<Pending<'p>>,
) -> BatchResult<'p> {
    let mut batch = BatchResult::default();
    let mut in_flight = FuturesUnordered::new();
    loop {
        while batch.failed.is_empty() && in_flight.len() < CONCURRENCY && mailman.has_time(SUBSCRIPTION_TIME) {
            let Some(pending) = queue.pop_front() else { break };
            in_flight.push(async move { (subscribe(mailman, list, pending.subscriber).await, pending) });
        }
        match in_flight.next().await {
            None => return batch,
            Some((Ok(Subscription::Done), _)) => batch.subscribed += 1,
            Some((Ok(Subscription::Refused(refusal)), _)) => batch.refused.push(refusal),
            Some((Ok(Subscription::Unexplained), pending)) if !pending.is_unexplained => {
                batch.unexplained.push(Pending { is_unexplained: true, ..pending });
            }
            Some((Ok(Subscription::Unexplained | Subscription::Pending), _)) => batch.refused.push(Refusal::Other),
            Some((Err(error), pending)) => batch.failed.push((pending, error)),
        }
    }
}

/// Subscribes one address. If its subscription request is pending, that request is discarded first.
async fn subscribe(
    mailman: &Mailman<'_>,
    list: &ListId,
    subscriber: &Subscriber,
) -> Result<Subscription, MailmanError> {
    match mailman.subscribe(list, subscriber).await? {
        Subscription::Pending => {
            mailman.discard_requests(list, &subscriber.address).await?;
            mailman.subscribe(list, subscriber).await
        }
        subscription => Ok(subscription),
    }
}

/// Unsubscribes addresses in one request. A retry only contains the addresses that are still subscribed.
async fn unsubscribe(mailman: &Mailman<'_>, plan: &Plan, mut addresses: Vec<&Address>) -> Result<(), MailmanError> {
    let mut retry_budget = RetryBudget::new();
    loop {
        if !mailman.has_time(REMOVAL_TIME) {
            return Err(MailmanError::OutOfTime);
        }
        let Err(error) = mailman.unsubscribe(&plan.list, &addresses).await else {
            return Ok(());
        };
        let outcome = retry_budget.wait(mailman, error).await?;
        if outcome != WriteOutcome::NotApplied {
            let roster = retry_budget.roster(mailman, &plan.list).await?;
            addresses.retain(|address| roster.contains(address));
            if addresses.is_empty() {
                return Ok(());
            }
        }
    }
}
