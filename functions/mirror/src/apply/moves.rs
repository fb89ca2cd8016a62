//! Moves of memberships to changed addresses, one after another.
//!
//! A move that keeps failing isn't made in this run: the former address stays, and the next run tries again. Its cause may
//! be one address, such as one that a firewall takes for an attack, so it stops nothing else.

use std::collections::VecDeque;
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::applied::Applied;
use crate::mailman::{
    AddressOwner, Mailman, MailmanError, Membership, Preferences, Retries, SETTLE_DELAY, WriteOutcome,
};
use crate::mapping::ListId;
use crate::plan::{Move, Subscriber};

/// The minimum time left to start a move, which takes up to thirteen requests.
const MOVE_TIME: Duration = Duration::from_secs(10);
/// The number of failures of one move, while others succeed, after which its address is considered the cause.
const MAX_FAILURES_PER_MOVE: usize = 5;
/// The number of consecutive moves that are given up, after which no other is tried: the cause isn't their addresses.
const MAX_CONSECUTIVE_FAILURES: usize = 5;

/// A move that isn't made yet.
struct Pending<'p> {
    moved: &'p Move,
    /// The number of failed attempts.
    failures: usize,
    /// The value of [`Moves::done`] at the first failure.
    done_before: usize,
    /// True if Mailman may still carry out an attempt.
    is_open: bool,
    /// The time at which the most recent response with an unknown outcome was lost.
    lost_at: Option<Instant>,
}

/// The progress of a plan's moves.
pub(super) struct Moves<'a, 'p> {
    mailman: &'a Mailman<'a>,
    list: &'a ListId,
    applied: &'a mut Applied,
    queue: VecDeque<Pending<'p>>,
    retries: Retries<'a>,
    impossible: Vec<&'p Move>,
    /// The number of moves that Mailman has decided on.
    done: usize,
    /// The number of consecutive moves that were given up.
    given_up: usize,
}

impl<'a, 'p> Moves<'a, 'p> {
    pub(super) fn new(
        mailman: &'a Mailman<'a>,
        list: &'a ListId,
        mut moves: Vec<&'p Move>,
        applied: &'a mut Applied,
    ) -> Self {
        // Those that fail in every run must not always come before the same others.
        fastrand::shuffle(&mut moves);
        let pending = |moved| Pending { moved, failures: 0, done_before: 0, is_open: false, lost_at: None };
        Self {
            mailman,
            list,
            applied,
            queue: moves.into_iter().map(pending).collect(),
            retries: Retries::of_memberships(mailman),
            impossible: Vec::new(),
            done: 0,
            given_up: 0,
        }
    }

    /// Moves the memberships, and returns the moves that are impossible. The changed addresses join instead, and the former
    /// ones leave at the end of a pass.
    ///
    /// # Errors
    /// Returns an error that concerns every address.
    pub(super) async fn run(mut self) -> Result<Vec<&'p Move>, MailmanError> {
        while let Some(pending) = self.queue.pop_front() {
            if let Some(lost_at) = pending.lost_at {
                self.mailman.wait(SETTLE_DELAY.saturating_sub(lost_at.elapsed())).await?;
            }
            if !self.mailman.has_time(MOVE_TIME) {
                return Err(MailmanError::OutOfTime);
            }
            // Each attempt begins anew. Its steps before the move leave the list as it was.
            match try_move(self.mailman, self.list, pending.moved).await {
                Ok(true) => self.record_moved(pending.moved),
                Ok(false) => self.record_impossible(&pending),
                Err(error) if is_rejection(error) => self.record_impossible(&pending),
                Err(error) => self.retry_or_give_up(pending, error).await?,
            }
        }
        Ok(self.impossible)
    }

    fn record_moved(&mut self, moved: &Move) {
        self.applied.open_subscriptions.remove(&moved.to.address);
        self.applied.open_removals.remove(&moved.from);
        self.applied.moved += 1;
        self.record_success();
    }

    fn record_impossible(&mut self, pending: &Pending<'p>) {
        if pending.is_open {
            // If the address joined now, an attempt that is made later would make it a member twice.
            self.applied.not_moved.insert(pending.moved.from.clone());
        } else {
            self.impossible.push(pending.moved);
        }
        self.record_success();
    }

    fn record_success(&mut self) {
        self.done += 1;
        self.given_up = 0;
        self.retries.reset();
    }

    /// Schedules a failed move again, behind the others, or gives it up for this run.
    async fn retry_or_give_up(&mut self, mut pending: Pending<'p>, error: MailmanError) -> Result<(), MailmanError> {
        let failed_at = Instant::now();
        let outcome = error.write_outcome();
        if outcome.is_some_and(WriteOutcome::is_open) {
            pending.is_open = true;
            self.applied.open_subscriptions.insert(pending.moved.to.address.clone());
            self.applied.open_removals.insert(pending.moved.from.clone());
        }
        if !error.is_busy() {
            if !error.may_be_about_an_address() {
                return Err(error);
            }
            if pending.failures == 0 {
                pending.done_before = self.done;
            }
            pending.failures += 1;
        }
        let is_address_suspect = pending.failures >= MAX_FAILURES_PER_MOVE && self.done > pending.done_before;
        if !is_address_suspect && outcome != Some(WriteOutcome::MaybeInProgress) {
            match self.retries.wait(error).await {
                Ok(outcome) => {
                    pending.lost_at = (outcome == WriteOutcome::MaybeSettling).then_some(failed_at);
                    self.queue.push_back(pending);
                    return Ok(());
                }
                Err(error) if error.may_be_about_an_address() => {}
                Err(error) => return Err(error),
            }
        }
        self.give_up(&pending, error).await;
        Ok(())
    }

    async fn give_up(&mut self, pending: &Pending<'p>, error: MailmanError) {
        // Only a response may have been lost, or what follows the move.
        if !pending.is_open && has_moved(self.mailman, self.list, pending.moved).await == Ok(true) {
            self.record_moved(pending.moved);
            return;
        }
        self.applied.not_moved.insert(pending.moved.from.clone());
        self.applied.move_error = Some(error);
        self.given_up += 1;
        if self.given_up >= MAX_CONSECUTIVE_FAILURES {
            self.applied.not_moved.extend(self.queue.drain(..).map(|pending| pending.moved.from.clone()));
        }
    }
}

/// True if Mailman rejects this one address, such as one that it finds invalid, or doesn't have the membership any more.
fn is_rejection(error: MailmanError) -> bool {
    use StatusCode as Status;
    matches!(error, MailmanError::Unexpected(Status::BAD_REQUEST | Status::NOT_FOUND | Status::CONFLICT))
}

async fn has_moved(mailman: &Mailman<'_>, list: &ListId, moved: &Move) -> Result<bool, MailmanError> {
    let is_there = mailman.membership(list, &moved.to.address).await?.is_some();
    Ok(is_there && mailman.membership(list, &moved.from).await?.is_none())
}

async fn try_move(mailman: &Mailman<'_>, list: &ListId, moved: &Move) -> Result<bool, MailmanError> {
    let Move { from, to: Subscriber { address: to, name, .. } } = moved;
    // An address that is subscribed already would become a member twice, which breaks the list.
    if let Some(membership) = mailman.membership(list, to).await? {
        if mailman.membership(list, from).await?.is_some() {
            return Ok(false);
        }
        // An earlier attempt, or someone else, was faster.
        enable_if_bounced(mailman, &membership).await?;
        return Ok(true);
    }
    let Some(mut membership) = mailman.membership(list, from).await? else { return Ok(false) };
    // The preferred address of a user has memberships of other lists, about which this plan says nothing.
    if membership.is_by_user || mailman.is_banned(list, to).await? {
        return Ok(false);
    }
    if membership.user.is_none() {
        mailman.create_user(from).await?;
        let Some(found) = mailman.membership(list, from).await? else { return Ok(false) };
        membership = found;
    }
    let Some(user) = &membership.user else { return Ok(false) };
    if mailman.add_address(user, to, name.as_deref()).await? == AddressOwner::Other {
        return Ok(false);
    }
    mailman.verify_address(to).await?;
    mailman.copy_preferences(from, to).await?;
    mailman.set_address(&membership.id, to).await?;
    enable_if_bounced(mailman, &membership).await?;
    Ok(true)
}

/// Enables delivery to a changed address, if it was disabled because mail to the former one bounced.
async fn enable_if_bounced(mailman: &Mailman<'_>, membership: &Membership) -> Result<(), MailmanError> {
    let preferences = mailman.preferences(membership).await?;
    if preferences.get("delivery_status").is_some_and(|status| status == "by_bounces") {
        let enabled = Preferences::from([("delivery_status".to_owned(), "enabled".into())]);
        mailman.set_preferences(&membership.id, &enabled).await?;
    }
    Ok(())
}
