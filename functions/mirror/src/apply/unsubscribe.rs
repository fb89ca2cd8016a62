//! Removals, in bulk.
//!
//! A proxy may refuse a large request, or one whose body contains what a firewall takes for an attack. A bulk removal
//! that is refused is therefore halved, down to one address. If not even that gets through, memberships are removed by
//! their ids.

use std::time::Duration;

use tokio::time::Instant;

use super::applied::Applied;
use crate::address::Address;
use crate::mailman::{BulkRemoval, Mailman, MailmanError, Retries, SETTLE_DELAY, SingleRemoval, WriteOutcome};
use crate::mapping::ListId;

/// The maximum number of addresses in one removal. During a long removal, other writers find the database locked.
const BATCH_SIZE: usize = 500;
/// The number of errors of Mailman or a proxy after which a removal is halved, because its size may be the cause.
const MAX_FAILURES: usize = 2;
/// The number of such errors of one address, while others succeed, after which the address is considered the cause.
const MAX_FAILURES_PER_ADDRESS: usize = 4;
/// The minimum time left to start a bulk removal.
const REMOVAL_TIME: Duration = Duration::from_secs(10);

/// The result of one bulk removal.
enum Bulk<'a> {
    /// Mailman doesn't confirm that these are removed.
    Done(Vec<&'a Address>),
    /// It was refused, possibly because of its size. These are still subscribed.
    TooLarge(Vec<&'a Address>),
    /// No bulk removal gets through. These are still subscribed.
    Impossible(Vec<&'a Address>),
}

/// The progress of a plan's removals.
pub(super) struct Removals<'a> {
    mailman: &'a Mailman<'a>,
    list: &'a ListId,
    applied: &'a mut Applied,
    /// True if a bulk removal got through.
    has_succeeded: bool,
}

impl<'a> Removals<'a> {
    pub(super) fn new(mailman: &'a Mailman<'a>, list: &'a ListId, applied: &'a mut Applied) -> Self {
        Self { mailman, list, applied, has_succeeded: false }
    }

    /// Unsubscribes addresses. Only the roster tells about removals that Mailman doesn't confirm.
    pub(super) async fn run(mut self, addresses: Vec<&Address>) -> Result<(), MailmanError> {
        let mut parts: Vec<Vec<&Address>> = addresses.chunks(BATCH_SIZE).rev().map(<[_]>::to_vec).collect();
        let (mut unconfirmed, mut singles) = (Vec::new(), Vec::new());
        while let Some(part) = parts.pop() {
            match self.remove_in_bulk(part).await? {
                Bulk::Done(rest) => {
                    self.has_succeeded = true;
                    unconfirmed.extend(rest);
                }
                Bulk::TooLarge(mut part) if part.len() > 1 => {
                    let second = part.split_off(part.len() / 2);
                    parts.extend([second, part]);
                }
                Bulk::TooLarge(part) | Bulk::Impossible(part) => {
                    singles.extend(part);
                    if !self.has_succeeded {
                        singles.extend(parts.drain(..).rev().flatten());
                    }
                }
            }
        }
        if !singles.is_empty() {
            self.remove_singly(singles).await?;
        }
        if !unconfirmed.is_empty() {
            let roster = self.mailman.roster(self.list).await?;
            let remaining = unconfirmed.iter().filter(|address| roster.contains(address)).count();
            self.applied.not_removed += remaining;
            self.applied.unsubscribed += unconfirmed.len() - remaining;
        }
        Ok(())
    }

    /// Unsubscribes addresses in one request. A retry only contains the addresses that are still subscribed.
    async fn remove_in_bulk<'p>(&mut self, mut addresses: Vec<&'p Address>) -> Result<Bulk<'p>, MailmanError> {
        let (mut retries, mut failures) = (Retries::of_writes(self.mailman), 0);
        loop {
            if !self.mailman.has_time(REMOVAL_TIME) {
                return Err(MailmanError::OutOfTime);
            }
            let error = match self.mailman.unsubscribe(self.list, &addresses).await {
                Err(error) => error,
                Ok(removal) => {
                    for address in &addresses {
                        self.applied.open_removals.remove(*address);
                    }
                    return Ok(match removal {
                        BulkRemoval::TooLarge => Bulk::TooLarge(addresses),
                        BulkRemoval::Impossible => Bulk::Impossible(addresses),
                        BulkRemoval::Removed(removed) => {
                            let before = addresses.len();
                            addresses.retain(|address| !removed.contains(*address));
                            self.applied.unsubscribed += before - addresses.len();
                            Bulk::Done(addresses)
                        }
                    });
                }
            };
            let failed_at = Instant::now();
            if error.write_outcome().is_some_and(WriteOutcome::is_open) {
                self.applied.open_removals.extend(addresses.iter().copied().cloned());
            }
            let outcome = retries.wait(error).await?;
            if outcome == WriteOutcome::NotApplied {
                continue;
            }
            self.retain_subscribed(&mut addresses).await?;
            if outcome == WriteOutcome::MaybeSettling && !addresses.is_empty() {
                self.mailman.wait(SETTLE_DELAY.saturating_sub(failed_at.elapsed())).await?;
                self.retain_subscribed(&mut addresses).await?;
                for address in &addresses {
                    self.applied.open_removals.remove(*address);
                }
            }
            if addresses.is_empty() {
                return Ok(Bulk::Done(addresses));
            }
            failures += usize::from(matches!(error, MailmanError::Transient { .. }));
            let is_address_suspect = self.has_succeeded && failures >= MAX_FAILURES_PER_ADDRESS;
            if is_address_suspect || (failures >= MAX_FAILURES && addresses.len() > 1) {
                return Ok(Bulk::TooLarge(addresses));
            }
        }
    }

    /// Reads the roster, and counts the addresses that are no longer on it as unsubscribed.
    async fn retain_subscribed(&mut self, addresses: &mut Vec<&Address>) -> Result<(), MailmanError> {
        let roster = self.mailman.roster(self.list).await?;
        addresses.retain(|address| {
            let is_subscribed = roster.contains(address);
            if !is_subscribed {
                self.applied.open_removals.remove(*address);
                self.applied.unsubscribed += 1;
            }
            is_subscribed
        });
        Ok(())
    }

    /// Removes memberships one by one, by their ids, and without a goodbye message.
    async fn remove_singly(&mut self, addresses: Vec<&Address>) -> Result<(), MailmanError> {
        let says_goodbye = self.mailman.says_goodbye(self.list).await?;
        if says_goodbye {
            self.set_goodbye(false).await?;
        }
        let result = self.remove_all_singly(addresses).await;
        if says_goodbye && self.set_goodbye(true).await.is_err() {
            self.applied.lost_goodbye = true;
        }
        result
    }

    async fn set_goodbye(&self, is_on: bool) -> Result<(), MailmanError> {
        self.mailman.retry_write(async || self.mailman.set_goodbye(self.list, is_on).await).await
    }

    async fn remove_all_singly(&mut self, addresses: Vec<&Address>) -> Result<(), MailmanError> {
        let ids = self.mailman.member_ids(self.list).await?;
        for address in addresses {
            let ids = ids.get(address).map(Vec::as_slice).unwrap_or_default();
            let mut is_removed = true;
            for id in ids {
                is_removed &= self.remove_member(id).await? == SingleRemoval::Done;
            }
            self.applied.unsubscribed += usize::from(is_removed);
            self.applied.removed_singly += usize::from(is_removed && !ids.is_empty());
            self.applied.not_removed += usize::from(!is_removed);
        }
        Ok(())
    }

    /// Removes one membership. A removal can be repeated whatever became of the one before: its id is never used again.
    async fn remove_member(&mut self, id: &str) -> Result<SingleRemoval, MailmanError> {
        let mut retries = Retries::of_writes(self.mailman);
        loop {
            if !self.mailman.has_time(REMOVAL_TIME) {
                return Err(MailmanError::OutOfTime);
            }
            match self.mailman.remove_member(id).await {
                Ok(removal) => return Ok(removal),
                Err(error) => drop(retries.wait(error).await?),
            }
        }
    }
}
