//! Additions, one request for each address.
//!
//! Subscriptions run concurrently. After a failure, no new requests start, and in-flight ones are awaited. An address
//! with a lost response is retried last, after [`SETTLE_DELAY`] and another read of the roster. An unexplained
//! rejection is also retried last, once, without the delay, and then once more without the name. Pending subscription
//! requests are discarded when the other addresses are done, so that they are read only once.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::applied::Applied;
use crate::mailman::{Mailman, MailmanError, Refusal, Retries, SETTLE_DELAY, Subscription, WriteOutcome};
use crate::mapping::ListId;
use crate::plan::Subscriber;
use crate::roster::Roster;

/// The minimum time left to start a subscription.
const SUBSCRIPTION_TIME: Duration = Duration::from_secs(5);
/// The number of failures of one address, while others succeed, after which the address is considered the cause.
const MAX_FAILURES_PER_ADDRESS: usize = 5;
/// The number of failures of one address after which it is subscribed without a name, which may be the cause.
const MAX_FAILURES_WITH_NAME: usize = 2;
/// The number of consecutive failures after which the time for retries isn't used up for nothing: Mailman is failing,
/// not the addresses.
const MAX_CONSECUTIVE_FAILURES: usize = 5;
/// The number of consecutive unexpected responses after which it is checked that Mailman is the server that responds.
const MAX_UNEXPECTED: usize = 3;

/// The result of a plan's subscriptions, if none of them prevents the removals.
pub(super) struct Additions {
    /// False if Mailman responded in time to none of them.
    pub(super) may_remove: bool,
    /// The last transient error of the addresses that were given up, if either these or Mailman may be its cause.
    pub(super) given_up: Option<MailmanError>,
}

/// A subscriber who isn't subscribed yet.
struct Pending<'p> {
    subscriber: &'p Subscriber,
    /// The number of failed attempts.
    failures: usize,
    /// The value of [`Subscriptions::done`] at the first failure.
    done_before: usize,
    /// The number of times that Mailman has rejected it without an explanation.
    unexplained: usize,
    /// True if its pending subscription request was discarded.
    is_discarded: bool,
}

impl Pending<'_> {
    /// True if the name may be the cause of its failures. A name never decides whether a member is subscribed.
    fn is_name_suspect(&self) -> bool {
        self.unexplained > 1 || self.failures >= MAX_FAILURES_WITH_NAME
    }

    fn name(&self) -> Option<&str> {
        self.subscriber.name.as_deref().filter(|_| !self.is_name_suspect())
    }
}

/// The results of one batch of concurrent subscriptions.
#[derive(Default)]
struct BatchResult<'p> {
    subscribed: usize,
    refused: Vec<(&'p Subscriber, Refusal)>,
    unexplained: Vec<Pending<'p>>,
    requested: Vec<Pending<'p>>,
    failed: Vec<(Pending<'p>, MailmanError)>,
}

/// A subscriber to retry, and the possible outcome of the failed attempt.
type Retry<'p> = (Pending<'p>, WriteOutcome);

/// The progress of a plan's subscriptions.
pub(super) struct Subscriptions<'a> {
    mailman: &'a Mailman<'a>,
    list: &'a ListId,
    applied: &'a mut Applied,
    /// The addresses to subscribe next.
    queue: VecDeque<Pending<'a>>,
    /// The addresses to retry last.
    unsettled: Vec<Pending<'a>>,
    /// The addresses with a pending subscription request, which is to be discarded.
    requested: Vec<Pending<'a>>,
    /// The time at which the most recent response with an unknown outcome was lost.
    lost_at: Option<Instant>,
    retries: Retries<'a>,
    /// The number of addresses that Mailman has decided on.
    done: usize,
    /// The number of consecutive failures.
    failures: usize,
    /// The number of consecutive responses that were unexpected.
    unexpected: usize,
    /// The last error of an address that was given up.
    given_up: Option<MailmanError>,
}

impl<'a> Subscriptions<'a> {
    pub(super) fn new(
        mailman: &'a Mailman<'a>,
        list: &'a ListId,
        subscribers: Vec<&'a Subscriber>,
        applied: &'a mut Applied,
    ) -> Self {
        let pending =
            |subscriber| Pending { subscriber, failures: 0, done_before: 0, unexplained: 0, is_discarded: false };
        Self {
            mailman,
            list,
            applied,
            queue: subscribers.into_iter().map(pending).collect(),
            unsettled: Vec::new(),
            requested: Vec::new(),
            lost_at: None,
            retries: Retries::of_writes(mailman),
            done: 0,
            failures: 0,
            unexpected: 0,
            given_up: None,
        }
    }

    /// Subscribes everyone who is to join.
    ///
    /// # Errors
    /// Returns the error if Mailman is failing, or if time runs out.
    pub(super) async fn run(mut self) -> Result<Additions, MailmanError> {
        loop {
            if self.queue.is_empty() {
                if !self.unsettled.is_empty() {
                    self.requeue_unsettled().await?;
                } else if !self.requested.is_empty() {
                    self.discard_requests().await?;
                } else {
                    break;
                }
            }
            let failed = self.run_batch().await;
            if failed.is_empty() && !self.queue.is_empty() {
                return Err(MailmanError::OutOfTime);
            }
            let (retries, last_error) = self.sort_failures(failed).await?;
            let Some(error) = last_error else { continue };
            match self.retries.wait(error).await {
                Ok(_) => self.schedule_retries(retries).await?,
                Err(MailmanError::OutOfTime) => return Err(MailmanError::OutOfTime),
                Err(error) => self.retry_untried_or_give_up(retries, error).await?,
            }
        }
        if self.given_up.is_some() {
            self.check_subscriptions().await?;
        }
        Ok(Additions {
            may_remove: self.done > 0 || self.applied.open_subscriptions.is_empty(),
            given_up: self.given_up.filter(|error| error.write_outcome().is_some()),
        })
    }

    /// Checks that Mailman is the server that responds.
    async fn check_subscriptions(&mut self) -> Result<(), MailmanError> {
        while let Err(error) = self.mailman.check_subscriptions(self.list).await {
            if !error.is_busy() {
                return Err(error);
            }
            self.retries.wait(error).await?;
        }
        Ok(())
    }

    /// Waits until lost subscriptions have settled, and requeues those that are still not on the roster.
    async fn requeue_unsettled(&mut self) -> Result<(), MailmanError> {
        let delay = self.lost_at.map_or(Duration::ZERO, |lost_at| SETTLE_DELAY.saturating_sub(lost_at.elapsed()));
        self.mailman.wait(delay).await?;
        let roster = self.mailman.roster(self.list).await?;
        for pending in std::mem::take(&mut self.unsettled) {
            self.applied.open_subscriptions.remove(&pending.subscriber.address);
            if roster.contains(&pending.subscriber.address) {
                self.record_subscribed();
            } else {
                self.queue.push_back(pending);
            }
        }
        Ok(())
    }

    /// Discards the pending subscription requests, and requeues their addresses.
    ///
    /// No subscription runs meanwhile, because Mailman may reject it with an exception if a request is discarded while
    /// it searches them.
    async fn discard_requests(&mut self) -> Result<(), MailmanError> {
        let requested = std::mem::take(&mut self.requested);
        let mut tokens = match self.mailman.subscription_requests(self.list).await {
            Ok(tokens) => tokens,
            Err(error) if error.may_be_about_an_address() => {
                requested.iter().for_each(|_| self.give_up(error));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for mut pending in requested {
            let tokens = tokens.remove(&pending.subscriber.address).unwrap_or_default();
            match self.discard_all(&tokens).await {
                Ok(()) => {
                    pending.is_discarded = true;
                    self.queue.push_back(pending);
                }
                Err(error) if error.may_be_about_an_address() => self.give_up(error),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn discard_all(&mut self, tokens: &[String]) -> Result<(), MailmanError> {
        for token in tokens {
            while let Err(error) = self.mailman.discard_request(self.list, token).await {
                self.retries.wait(error).await?;
            }
            self.retries.reset();
        }
        Ok(())
    }

    /// Runs one batch, records its results, and returns its failures.
    async fn run_batch(&mut self) -> Vec<(Pending<'a>, MailmanError)> {
        let batch = subscribe_batch(self.mailman, self.list, &mut self.queue).await;
        self.applied.subscribed += batch.subscribed;
        for (subscriber, refusal) in &batch.refused {
            self.applied.rejected.count(*refusal);
            if *refusal != Refusal::Other {
                self.applied.refused_addresses.insert(subscriber.address.clone());
            }
        }
        let decided = batch.subscribed + batch.refused.len() + batch.requested.len();
        if decided > 0 {
            self.done += batch.subscribed + batch.refused.len();
            (self.failures, self.unexpected) = (0, 0);
            self.retries.reset();
        }
        self.unsettled.extend(batch.unexplained);
        self.requested.extend(batch.requested);
        batch.failed
    }

    /// Returns the failures to retry and the last transient error. Unexpected responses count as rejections, as long
    /// as Mailman is the server that responds.
    ///
    /// # Errors
    /// Returns an error that concerns every address.
    async fn sort_failures(
        &mut self,
        failed: Vec<(Pending<'a>, MailmanError)>,
    ) -> Result<(Vec<Retry<'a>>, Option<MailmanError>), MailmanError> {
        let mut retries = Vec::new();
        let (mut last_error, mut fatal) = (None, None);
        for (mut pending, error) in failed {
            match (error, error.write_outcome()) {
                (_, Some(outcome)) => {
                    if !error.is_busy() {
                        if pending.failures == 0 {
                            pending.done_before = self.done;
                        }
                        pending.failures += 1;
                        self.failures += 1;
                    }
                    if outcome.is_open() {
                        self.applied.open_subscriptions.insert(pending.subscriber.address.clone());
                    }
                    retries.push((pending, outcome));
                    last_error = Some(error);
                }
                (MailmanError::Unexpected(_) | MailmanError::NotMailman(_), None) => {
                    self.unexpected += 1;
                    self.give_up(error);
                }
                (error, None) => fatal = Some(error),
            }
        }
        if let Some(error) = fatal {
            return Err(error);
        }
        if self.unexpected >= MAX_UNEXPECTED {
            self.check_subscriptions().await?;
            self.unexpected = 0;
        }
        Ok((retries, last_error))
    }

    /// Schedules failed addresses again, except those that turn out to be subscribed and those to abandon.
    async fn schedule_retries(&mut self, retries: Vec<Retry<'a>>) -> Result<(), MailmanError> {
        for (pending, outcome) in self.without_subscribed(retries).await? {
            let is_poison = pending.failures >= MAX_FAILURES_PER_ADDRESS && self.done > pending.done_before;
            if is_poison || outcome == WriteOutcome::MaybeInProgress {
                self.abandon(&pending);
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

    /// Continues with the addresses that weren't tried yet, although the time for retries is used up. If all of them
    /// were tried, gives up the others: the cause may be their own.
    ///
    /// # Errors
    /// Returns `error` if the cause is Mailman.
    async fn retry_untried_or_give_up(
        &mut self,
        retries: Vec<Retry<'a>>,
        error: MailmanError,
    ) -> Result<(), MailmanError> {
        if error.is_busy() {
            return Err(error);
        }
        let is_slow = retries.iter().any(|(_, outcome)| *outcome == WriteOutcome::MaybeInProgress);
        if self.queue.iter().any(|pending| pending.failures == 0) {
            if is_slow || self.failures >= MAX_CONSECUTIVE_FAILURES {
                return Err(error);
            }
            return self.schedule_retries(retries).await;
        }
        let failed = self.without_subscribed(retries).await?;
        for pending in failed.into_iter().map(|(pending, _)| pending).chain(std::mem::take(&mut self.queue)) {
            self.abandon(&pending);
        }
        self.given_up = Some(error);
        Ok(())
    }

    /// Returns the failed addresses that aren't subscribed. Reads the roster, if some may be.
    async fn without_subscribed(&mut self, mut retries: Vec<Retry<'a>>) -> Result<Vec<Retry<'a>>, MailmanError> {
        let mut roster = Roster::default();
        if retries.iter().any(|(_, outcome)| *outcome != WriteOutcome::NotApplied) {
            roster = self.mailman.roster(self.list).await?;
        }
        retries.retain(|(pending, _)| {
            let is_subscribed = roster.contains(&pending.subscriber.address);
            if is_subscribed {
                self.applied.open_subscriptions.remove(&pending.subscriber.address);
                self.record_subscribed();
            }
            !is_subscribed
        });
        Ok(retries)
    }

    fn record_subscribed(&mut self) {
        self.applied.subscribed += 1;
        self.done += 1;
    }

    /// Counts an address that isn't retried in this run. One that Mailman may still be processing isn't rejected.
    fn abandon(&mut self, pending: &Pending<'_>) {
        if !self.applied.open_subscriptions.contains(&pending.subscriber.address) {
            self.applied.rejected.count(Refusal::Other);
        }
    }

    /// Counts an address as rejected because of an error that may have other causes than the address.
    fn give_up(&mut self, error: MailmanError) {
        self.applied.rejected.count(Refusal::Other);
        self.given_up = Some(error);
    }
}

/// Subscribes addresses from the queue until one fails, time runs out, or the queue is empty.
async fn subscribe_batch<'p>(
    mailman: &Mailman<'_>,
    list: &ListId,
    queue: &mut VecDeque<Pending<'p>>,
) -> BatchResult<'p> {
    // One attempt is enough to tell whether Mailman still fails.
    let concurrency = || if mailman.is_write_budget_used_up() { 1 } else { mailman.pace.concurrency() };
    let has_time = || mailman.has_time(mailman.pace.expected_duration().max(SUBSCRIPTION_TIME));
    let mut batch = BatchResult::default();
    let mut in_flight = FuturesUnordered::new();
    loop {
        while batch.failed.is_empty() && in_flight.len() < concurrency() && has_time() {
            let Some(pending) = queue.pop_front() else { break };
            in_flight.push(async move {
                (mailman.subscribe(list, &pending.subscriber.address, pending.name()).await, pending)
            });
        }
        match in_flight.next().await {
            None => return batch,
            Some((Ok(Subscription::Done), _)) => batch.subscribed += 1,
            Some((Ok(Subscription::Refused(refusal)), pending)) => batch.refused.push((pending.subscriber, refusal)),
            Some((Ok(Subscription::Unexplained), pending))
                if pending.unexplained == 0 || (pending.unexplained == 1 && pending.name().is_some()) =>
            {
                batch.unexplained.push(Pending { unexplained: pending.unexplained + 1, ..pending });
            }
            Some((Ok(Subscription::Pending), pending)) if !pending.is_discarded => batch.requested.push(pending),
            Some((Ok(Subscription::Unexplained | Subscription::Pending), pending)) => {
                batch.refused.push((pending.subscriber, Refusal::Other));
            }
            Some((Err(error), pending)) => batch.failed.push((pending, error)),
        }
    }
}
