//! Moves of memberships to changed addresses.

use std::time::Duration;

use super::applied::Applied;
use crate::mailman::{AddressOwner, Mailman, MailmanError, Preferences, Retries, WriteOutcome};
use crate::mapping::ListId;
use crate::plan::{Move, Subscriber};

/// The minimum time left to start a move, which takes up to thirteen requests.
const MOVE_TIME: Duration = Duration::from_secs(10);

/// Moves memberships, and returns the moves that are impossible. The changed addresses join instead, and the former ones
/// leave at the end of a pass.
pub(super) async fn move_all<'p>(
    mailman: &Mailman<'_>,
    list: &ListId,
    moves: Vec<&'p Move>,
    applied: &mut Applied,
) -> Result<Vec<&'p Move>, MailmanError> {
    let mut impossible = Vec::new();
    for moved in moves {
        let mut is_open = false;
        match move_one(mailman, list, moved, &mut is_open).await {
            Ok(true) => applied.moved += 1,
            Ok(false) => impossible.push(moved),
            Err(error) => {
                if is_open {
                    applied.open_subscriptions.insert(moved.to.address.clone());
                    applied.open_removals.insert(moved.from.clone());
                }
                return Err(error);
            }
        }
    }
    Ok(impossible)
}

/// Moves one membership, and retries transient failures. Returns false if that isn't possible. `is_open` becomes true if
/// Mailman may still be carrying out an attempt.
///
/// Each attempt begins anew. All of its steps but the last one leave the list as it was.
async fn move_one(
    mailman: &Mailman<'_>,
    list: &ListId,
    moved: &Move,
    is_open: &mut bool,
) -> Result<bool, MailmanError> {
    let mut retries = Retries::new(mailman);
    loop {
        if !mailman.has_time(MOVE_TIME) {
            return Err(MailmanError::OutOfTime);
        }
        match try_move(mailman, list, moved).await {
            Ok(is_moved) => return Ok(is_moved),
            // A rejection of this one address, such as one that Mailman finds invalid.
            Err(MailmanError::Unexpected(_)) => return Ok(false),
            Err(error) => {
                *is_open |= error.write_outcome().is_some_and(WriteOutcome::is_open);
                retries.wait(error).await?;
            }
        }
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
