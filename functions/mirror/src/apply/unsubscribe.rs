//! Removals, in bulk.

use std::time::Duration;

use tokio::time::Instant;

use super::applied::Applied;
use crate::address::Address;
use crate::mailman::{Mailman, MailmanError, Retries, SETTLE_DELAY, WriteOutcome};
use crate::mapping::ListId;

/// The maximum number of addresses in one removal. During a long removal, other writers find the database locked.
const BATCH_SIZE: usize = 500;
/// The minimum time left to start a bulk removal.
const REMOVAL_TIME: Duration = Duration::from_secs(10);

/// Unsubscribes addresses. Only the roster tells about removals that Mailman doesn't confirm.
pub(super) async fn unsubscribe_all(
    mailman: &Mailman<'_>,
    list: &ListId,
    addresses: Vec<&Address>,
    applied: &mut Applied,
) -> Result<(), MailmanError> {
    let mut unconfirmed = Vec::new();
    for addresses in addresses.chunks(BATCH_SIZE) {
        unconfirmed.extend(unsubscribe(mailman, list, addresses.to_vec(), applied).await?);
    }
    if unconfirmed.is_empty() {
        return Ok(());
    }
    let roster = mailman.roster(list).await?;
    applied.not_removed = unconfirmed.iter().filter(|address| roster.contains(address)).count();
    applied.unsubscribed += unconfirmed.len() - applied.not_removed;
    Ok(())
}

/// Unsubscribes addresses in one request. A retry only contains the addresses that are still subscribed.
///
/// Returns the addresses with a removal that Mailman doesn't confirm.
async fn unsubscribe<'a>(
    mailman: &Mailman<'_>,
    list: &ListId,
    mut addresses: Vec<&'a Address>,
    applied: &mut Applied,
) -> Result<Vec<&'a Address>, MailmanError> {
    let mut retries = Retries::new(mailman);
    loop {
        if !mailman.has_time(REMOVAL_TIME) {
            return Err(MailmanError::OutOfTime);
        }
        let error = match mailman.unsubscribe(list, &addresses).await {
            Err(error) => error,
            Ok(removed) => {
                for address in &addresses {
                    applied.open_removals.remove(*address);
                }
                let before = addresses.len();
                addresses.retain(|address| !removed.contains(*address));
                applied.unsubscribed += before - addresses.len();
                return Ok(addresses);
            }
        };
        let failed_at = Instant::now();
        if error.write_outcome().is_some_and(WriteOutcome::is_open) {
            applied.open_removals.extend(addresses.iter().copied().cloned());
        }
        let outcome = retries.wait(error).await?;
        if outcome == WriteOutcome::NotApplied {
            continue;
        }
        retain_subscribed(mailman, list, &mut addresses, applied).await?;
        if outcome == WriteOutcome::MaybeSettling && !addresses.is_empty() {
            mailman.wait(SETTLE_DELAY.saturating_sub(failed_at.elapsed())).await?;
            retain_subscribed(mailman, list, &mut addresses, applied).await?;
            for address in &addresses {
                applied.open_removals.remove(*address);
            }
        }
        if addresses.is_empty() {
            return Ok(addresses);
        }
    }
}

/// Reads the roster, and counts the addresses that are no longer on it as unsubscribed.
async fn retain_subscribed(
    mailman: &Mailman<'_>,
    list: &ListId,
    addresses: &mut Vec<&Address>,
    applied: &mut Applied,
) -> Result<(), MailmanError> {
    let roster = mailman.roster(list).await?;
    addresses.retain(|address| {
        let is_subscribed = roster.contains(address);
        if !is_subscribed {
            applied.open_removals.remove(*address);
            applied.unsubscribed += 1;
        }
        is_subscribed
    });
    Ok(())
}
