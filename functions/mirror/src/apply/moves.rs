//! Moves of memberships to changed addresses, one after another.
//!
//! A move that keeps failing isn't made in this run: the former address stays, and the next run tries again. Its cause may
//! be one address, such as one that a firewall takes for an attack, so it stops nothing else.

use std::collections::VecDeque;
use std::time::Duration;

use super::applied::Applied;
use crate::mailman::{AddressOwner, Mailman, MailmanError, Preferences, Retries, WriteOutcome};
use crate::mapping::ListId;
use crate::plan::{Move, Subscriber};

/// The minimum time left to start a move, which takes up to thirteen requests.
const MOVE_TIME: Duration = Duration::from_secs(10);
/// The number of failures of one move, while others succeed, after which its address is considered the cause.
const MAX_FAILURES_PER_MOVE: usize = 5;
/// The number of consecutive moves that fail for good, after which no other is tried: it isn't because of their addresses.
const MAX_CONSECUTIVE_FAILURES: usize = 3;

/// A move that isn't made yet.
struct Pending<'p> {
    moved: &'p Move,
    /// The number of failed attempts.
    failures: usize,
    /// The value of [`Moves::done`] at the first failure.
    done_before: usize,
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
        moves: Vec<&'p Move>,
        applied: &'a mut Applied,
    ) -> Self {
        Self {
            mailman,
            list,
            applied,
            queue: moves.into_iter().map(|moved| Pending { moved, failures: 0, done_before: 0 }).collect(),
            retries: Retries::new(mailman),
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
            if !self.mailman.has_time(MOVE_TIME) {
                return Err(MailmanError::OutOfTime);
            }
            // Each attempt begins anew. All of its steps but the last one leave the list as it was.
            let result = match try_move(self.mailman, self.list, pending.moved).await {
                Ok(is_moved) => Ok(is_moved),
                // A rejection of this one address, such as one that Mailman finds invalid.
                Err(MailmanError::Unexpected(_)) => Ok(false),
                Err(error) => Err(error),
            };
            match result {
                Ok(is_moved) => self.record(pending.moved, is_moved),
                Err(error) => self.retry_or_give_up(pending, error).await?,
            }
        }
        Ok(self.impossible)
    }

    fn record(&mut self, moved: &'p Move, is_moved: bool) {
        self.applied.open_subscriptions.remove(&moved.to.address);
        self.applied.open_removals.remove(&moved.from);
        if is_moved {
            self.applied.moved += 1;
        } else {
            self.impossible.push(moved);
        }
        self.done += 1;
        self.given_up = 0;
        self.retries.reset();
    }

    /// Schedules a failed move again, behind the others, or gives it up for this run.
    async fn retry_or_give_up(&mut self, mut pending: Pending<'p>, error: MailmanError) -> Result<(), MailmanError> {
        if error.write_outcome().is_some_and(WriteOutcome::is_open) {
            self.applied.open_subscriptions.insert(pending.moved.to.address.clone());
            self.applied.open_removals.insert(pending.moved.from.clone());
        }
        if pending.failures == 0 {
            pending.done_before = self.done;
        }
        pending.failures += 1;
        let is_address_suspect = pending.failures >= MAX_FAILURES_PER_MOVE && self.done > pending.done_before;
        if !is_address_suspect {
            match self.retries.wait(error).await {
                Ok(_) => {
                    self.queue.push_back(pending);
                    return Ok(());
                }
                Err(error) if error.may_be_about_an_address() => {}
                Err(error) => return Err(error),
            }
        }
        self.given_up += 1;
        let mut not_moved = 1;
        if self.given_up >= MAX_CONSECUTIVE_FAILURES {
            not_moved += self.queue.drain(..).len();
        }
        let (before, _) = self.applied.not_moved.unwrap_or((0, error));
        self.applied.not_moved = Some((before + not_moved, error));
        Ok(())
    }
}

async fn try_move(mailman: &Mailman<'_>, list: &ListId, moved: &Move) -> Result<bool, MailmanError> {
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
    mailman.set_address(&membership.id, to).await?;
    let preferences = mailman.preferences(&membership).await?;
    if preferences.get("delivery_status").is_some_and(|status| status == "by_bounces") {
        // The former address bounced, which says nothing about the new one.
        let enabled = Preferences::from([("delivery_status".to_owned(), "enabled".into())]);
        mailman.set_preferences(&membership.id, &enabled).await?;
    }
    Ok(true)
}
