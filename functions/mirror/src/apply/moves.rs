//! Moves of memberships to changed addresses, one after another.
//!
//! A move that keeps failing isn't made in this run: the former address stays, and the next run tries again. Its cause may
//! be one address, such as one that a firewall takes for an attack, so it stops nothing else.

use std::collections::VecDeque;
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::applied::Applied;
use super::subscribe::Subscriptions;
use crate::mailman::{AddressOwner, Mailman, MailmanError, Preferences, Retries, SETTLE_DELAY, WriteOutcome};
use crate::mapping::ListId;
use crate::plan::{Move, Subscriber};

/// The minimum time left to start a move, which takes up to thirteen requests.
const MOVE_TIME: Duration = Duration::from_secs(10);
/// The number of failures of one move, while others succeed, after which its address is considered the cause.
const MAX_FAILURES_PER_MOVE: usize = 5;
/// The number of consecutive moves that are given up, after which no other of the batch is tried: the cause isn't their
/// addresses.
const MAX_CONSECUTIVE_FAILURES: usize = 5;
/// The number of moves after which the changed addresses of the impossible ones join. Otherwise, so many impossible moves that
/// they use up the time would use it up in every run.
const BATCH_SIZE: usize = 50;

/// Moves memberships. The changed addresses of impossible moves join instead, and the former ones leave at the end of a pass.
///
/// # Errors
/// Returns an error that concerns every address.
pub(super) async fn move_all(
    mailman: &Mailman<'_>,
    list: &ListId,
    mut moves: Vec<&Move>,
    applied: &mut Applied,
) -> Result<(), MailmanError> {
    // Those that fail in every run must not always come before the same others.
    fastrand::shuffle(&mut moves);
    for moves in moves.chunks(BATCH_SIZE) {
        let impossible = Moves::new(mailman, list, moves, applied).run().await?;
        applied.not_movable += impossible.len();
        let joining = impossible.into_iter().map(|moved| &moved.to).collect();
        Subscriptions::new(mailman, list, joining, applied).run().await?;
    }
    Ok(())
}

/// A move that isn't made yet.
struct Pending<'p> {
    moved: &'p Move,
    /// The number of failed attempts.
    failures: usize,
    /// The value of [`Moves::done`] at the first failure.
    done_before: usize,
    /// True if the membership may have moved, because the request for that was sent.
    is_sent: bool,
    /// The time at which the response to that request was lost.
    lost_at: Option<Instant>,
}

/// The progress of a batch of moves.
struct Moves<'a, 'p> {
    mailman: &'a Mailman<'a>,
    list: &'a ListId,
    applied: &'a mut Applied,
    queue: VecDeque<Pending<'p>>,
    retries: Retries<'a>,
    impossible: Vec<&'p Move>,
    /// The number of moves that were made.
    done: usize,
    /// The number of consecutive moves that were given up.
    given_up: usize,
}

impl<'a, 'p> Moves<'a, 'p> {
    fn new(mailman: &'a Mailman<'a>, list: &'a ListId, moves: &[&'p Move], applied: &'a mut Applied) -> Self {
        let pending = |moved| Pending { moved, failures: 0, done_before: 0, is_sent: false, lost_at: None };
        Self {
            mailman,
            list,
            applied,
            queue: moves.iter().copied().map(pending).collect(),
            retries: Retries::of_memberships(mailman),
            impossible: Vec::new(),
            done: 0,
            given_up: 0,
        }
    }

    /// Moves the memberships, and returns the moves that are impossible.
    ///
    /// # Errors
    /// Returns an error that concerns every address.
    async fn run(mut self) -> Result<Vec<&'p Move>, MailmanError> {
        while let Some(mut pending) = self.queue.pop_front() {
            if let Some(lost_at) = pending.lost_at.take() {
                self.mailman.wait(SETTLE_DELAY.saturating_sub(lost_at.elapsed())).await?;
                self.close(pending.moved);
            }
            if !self.mailman.has_time(MOVE_TIME) {
                return Err(MailmanError::OutOfTime);
            }
            // Each attempt begins anew. All of its steps but the last one leave the list as it was.
            let mut is_sent = false;
            let result = try_move(self.mailman, self.list, pending.moved, &mut is_sent).await;
            pending.is_sent |= is_sent;
            match result {
                Ok(true) => self.record_moved(pending.moved),
                Ok(false) => self.impossible.push(pending.moved),
                Err(error) if is_rejection(error) => self.impossible.push(pending.moved),
                Err(error) => {
                    let outcome = error.write_outcome().filter(|_| is_sent).unwrap_or(WriteOutcome::NotApplied);
                    self.retry_or_give_up(pending, error, outcome).await?;
                }
            }
        }
        Ok(self.impossible)
    }

    fn record_moved(&mut self, moved: &Move) {
        self.close(moved);
        self.applied.moved += 1;
        self.done += 1;
        self.given_up = 0;
        self.retries.reset();
    }

    /// Notes that Mailman may still make a move.
    fn open(&mut self, moved: &Move) {
        self.applied.open_subscriptions.insert(moved.to.address.clone());
        self.applied.open_removals.insert(moved.from.clone());
    }

    fn close(&mut self, moved: &Move) {
        self.applied.open_subscriptions.remove(&moved.to.address);
        self.applied.open_removals.remove(&moved.from);
    }

    /// Schedules a failed move again, behind the others, or gives it up for this run. `outcome` is that of the request that
    /// moves the membership.
    async fn retry_or_give_up(
        &mut self,
        mut pending: Pending<'p>,
        error: MailmanError,
        outcome: WriteOutcome,
    ) -> Result<(), MailmanError> {
        let failed_at = Instant::now();
        if outcome.is_open() {
            self.open(pending.moved);
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
        if is_address_suspect || outcome == WriteOutcome::MaybeInProgress {
            self.retries.note(error);
        } else {
            match self.retries.wait(error).await {
                Ok(_) => {
                    pending.lost_at = (outcome == WriteOutcome::MaybeSettling).then_some(failed_at);
                    self.queue.push_back(pending);
                    return Ok(());
                }
                Err(MailmanError::OutOfTime) => return Err(MailmanError::OutOfTime),
                Err(_) => {}
            }
        }
        self.give_up(pending, error).await;
        Ok(())
    }

    async fn give_up(&mut self, pending: Pending<'p>, error: MailmanError) {
        self.applied.move_error = Some(error);
        let mut not_moved = vec![pending];
        self.given_up += 1;
        if self.given_up >= MAX_CONSECUTIVE_FAILURES || error.is_busy() || self.retries.are_used_up() {
            not_moved.extend(self.queue.drain(..));
        }
        let mut can_check = true;
        for pending in not_moved {
            if self.applied.open_removals.contains(&pending.moved.from) {
                continue;
            }
            // Only the response may have been lost.
            if can_check && pending.is_sent {
                match has_moved(self.mailman, self.list, pending.moved).await {
                    Ok(true) => {
                        self.record_moved(pending.moved);
                        continue;
                    }
                    Ok(false) => {}
                    Err(_) => can_check = false,
                }
            }
            self.applied.not_moved.insert(pending.moved.from.clone());
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

/// Moves a membership. Returns false if that isn't possible. `is_sent` becomes true before the request that moves it.
async fn try_move(
    mailman: &Mailman<'_>,
    list: &ListId,
    moved: &Move,
    is_sent: &mut bool,
) -> Result<bool, MailmanError> {
    let Move { from, to: Subscriber { address: to, name, .. } } = moved;
    // An address that is subscribed already would become a member twice, which breaks the list.
    if mailman.membership(list, to).await?.is_some() {
        // An earlier attempt, or someone else, was faster.
        return Ok(mailman.membership(list, from).await?.is_none());
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
    let preferences = mailman.preferences(&membership).await?;
    if preferences.get("delivery_status").is_some_and(|status| status == "by_bounces") {
        // The former address bounced, which says nothing about the new one.
        let enabled = Preferences::from([("delivery_status".to_owned(), "enabled".into())]);
        mailman.set_preferences(&membership.id, &enabled).await?;
    }
    *is_sent = true;
    mailman.set_address(&membership.id, to).await?;
    Ok(true)
}
