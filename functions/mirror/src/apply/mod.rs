//! Applies a plan to Mailman: additions first, then moves, then removals in bulk.
//!
//! If a write's outcome is unknown, the roster is read before anything else is written, because overlapping requests
//! for one address create duplicate memberships. Transient failures are retried for `MAILMAN_RETRY_SECONDS` without a
//! success, over all lists together.
//!
//! A changed address that can't be moved is an addition and a removal. Removals therefore wait for additions if Mailman is
//! failing, but not for additions that fail because of their own address.

mod applied;
mod moves;
mod open_writes;
mod preferences;
mod subscribe;
mod unsubscribe;

use std::sync::Mutex;
use std::time::SystemTime;

use shared::sync::lock;

pub(crate) use self::applied::{Applied, Rejected};
use self::moves::move_all;
pub(crate) use self::open_writes::OpenWrites;
pub(crate) use self::preferences::{chosen, restore};
use self::subscribe::Subscriptions;
use self::unsubscribe::Removals;
use crate::address::Address;
use crate::mailman::{Mailman, MailmanError, SLOW};
use crate::plan::{Move, Plan, Subscriber};

/// Applies a plan, except to addresses in `open_writes`. Adds those with open writes in the end.
pub(crate) async fn apply(mailman: &Mailman<'_>, plan: &Plan, open_writes: &Mutex<OpenWrites>) -> Applied {
    let mut applied = Applied::default();
    let (joining, moving, leaving) = {
        let mut open_writes = lock(open_writes);
        open_writes.expire(SystemTime::now());
        let is_open = |address: &Address| open_writes.contains(&plan.list, address);
        let moving = plan.moving().into_iter().filter(|moved| !is_open(&moved.from) && !is_open(&moved.to.address));
        let joining = plan.subscribe().into_iter().filter(|joins| !is_open(&joins.address));
        let leaving = plan.unsubscribe().into_iter().filter(|address| !is_open(address));
        (joining.collect::<Vec<_>>(), moving.collect::<Vec<_>>(), leaving.collect::<Vec<_>>())
    };
    let planned = plan.subscribe().len() + plan.moving().len() + plan.unsubscribe().len();
    applied.postponed = planned - joining.len() - moving.len() - leaving.len();
    applied.stopped = apply_into(mailman, plan, joining, moving, leaving, &mut applied).await.err();
    let slowest = mailman.pace.take_slowest();
    if slowest >= SLOW {
        // The usual cause, which only an administrator can remove.
        let pending = mailman.pending_requests(&plan.list).await.ok().flatten();
        applied.slow = Some((slowest, pending));
    }
    let open = applied.open_subscriptions.iter().chain(&applied.open_removals);
    lock(open_writes).add(&plan.list, open, SystemTime::now());
    applied
}

async fn apply_into(
    mailman: &Mailman<'_>,
    plan: &Plan,
    joining: Vec<&Subscriber>,
    moving: Vec<&Move>,
    leaving: Vec<&Address>,
    applied: &mut Applied,
) -> Result<(), MailmanError> {
    // Don't send more writes to a Mailman that doesn't even respond to this.
    if mailman.is_write_budget_used_up()
        && let Err(error) = mailman.version().await
        && error.write_outcome().is_some()
    {
        return Err(error);
    }
    let additions = Subscriptions::new(mailman, &plan.list, joining, applied).run().await?;
    if !additions.may_remove {
        applied.waiting_removals = leaving.len();
        return Ok(());
    }
    move_all(mailman, &plan.list, moving, applied).await?;
    Removals::new(mailman, &plan.list, applied).run(leaving).await?;
    // An open move isn't known to have failed.
    let move_error = applied.move_error.filter(|error| error.write_outcome().is_some() && !applied.has_open_writes());
    match additions.given_up.or(move_error) {
        // Nothing was written, so Mailman is failing, not the addresses.
        Some(error) if applied.subscribed + applied.moved + applied.unsubscribed == 0 => Err(error),
        _ => Ok(()),
    }
}
