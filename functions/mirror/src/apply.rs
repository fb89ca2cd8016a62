//! Applying a plan to Mailman: additions first, then removals in bulk.
//!
//! A passing failure is tried again for at most a minute. After a write whose
//! outcome is unknown the roster is read again before anything is written
//! again: overlapping subscriptions of one address make it a member twice.

use std::collections::BTreeSet;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;

use crate::address::Address;
use crate::mailman::{Mailman, Refusal, Subscription, Trouble};
use crate::mapping::ListId;
use crate::plan::{Plan, Subscriber};
use crate::report::Rejected;

/// The most addresses in one removal: while a long one runs, other writers
/// meet a locked database.
const BULK: usize = 500;
/// After so many addresses in a row that Mailman failed at, it is Mailman that is ill.
const TOLERATED: usize = 2;
/// For how long a failure that may pass is waited out, from the first one on.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was done of a plan.
#[derive(Default)]
pub(crate) struct Applied {
    pub(crate) subscribed: usize,
    pub(crate) unsubscribed: usize,
    pub(crate) rejected: Rejected,
    /// What ended it early.
    pub(crate) stopped: Option<Trouble>,
}

/// Applies a plan.
pub(crate) async fn apply(mailman: &Mailman<'_>, plan: &Plan) -> Applied {
    let mut applied = Applied::default();
    applied.stopped = apply_into(mailman, plan, &mut applied).await.err();
    applied
}

async fn apply_into(mailman: &Mailman<'_>, plan: &Plan, applied: &mut Applied) -> Result<(), Trouble> {
    let mut failed_in_a_row = 0;
    for who in &plan.subscribe {
        match subscribe(mailman, plan, who).await {
            Ok(None) => applied.subscribed += 1,
            Ok(Some(refusal)) => applied.rejected.count(refusal),
            // Mailman answers, and cannot digest this address: that must not keep the others waiting for ever.
            Err(Trouble::Failing(_) | Trouble::Unexpected(_)) if failed_in_a_row < TOLERATED => {
                applied.rejected.count(Refusal::Other);
                failed_in_a_row += 1;
                continue;
            }
            Err(trouble) => return Err(trouble),
        }
        failed_in_a_row = 0;
    }
    for addresses in plan.unsubscribe.chunks(BULK) {
        unsubscribe(mailman, plan, addresses.iter().collect()).await?;
        applied.unsubscribed += addresses.len();
    }
    Ok(())
}

/// Subscribes one address, or says why Mailman refuses it.
async fn subscribe(mailman: &Mailman<'_>, plan: &Plan, who: &Subscriber) -> Result<Option<Refusal>, Trouble> {
    let mut patience = Patience::new();
    let mut discarded = false;
    loop {
        if !mailman.has_time() {
            return Err(Trouble::OutOfTime);
        }
        let trouble = match mailman.subscribe(&plan.list, who).await {
            Ok(Subscription::Done) => return Ok(None),
            Ok(Subscription::Refused(refusal)) => return Ok(Some(refusal)),
            Ok(Subscription::Pending) if discarded => return Ok(Some(Refusal::Other)),
            Ok(Subscription::Pending) => match mailman.discard_requests(&plan.list, &who.address).await {
                Ok(()) => {
                    discarded = true;
                    continue;
                }
                Err(trouble) => trouble,
            },
            Err(trouble) => trouble,
        };
        if patience.wait(mailman, trouble).await? == MaybeDone::Yes
            && patience.roster(mailman, &plan.list).await?.contains(&who.address)
        {
            return Ok(None);
        }
    }
}

/// Unsubscribes addresses in one request; tried again, in a smaller one.
async fn unsubscribe(mailman: &Mailman<'_>, plan: &Plan, mut addresses: Vec<&Address>) -> Result<(), Trouble> {
    let mut patience = Patience::new();
    loop {
        if !mailman.has_time() {
            return Err(Trouble::OutOfTime);
        }
        let Err(trouble) = mailman.unsubscribe(&plan.list, &addresses).await else {
            return Ok(());
        };
        if patience.wait(mailman, trouble).await? == MaybeDone::Yes {
            let roster = patience.roster(mailman, &plan.list).await?;
            addresses.retain(|address| roster.contains(*address));
            if addresses.is_empty() {
                return Ok(());
            }
        }
    }
}

/// Whether a failed write may have been done all the same.
#[derive(PartialEq, Eq)]
enum MaybeDone {
    Yes,
    No,
}

/// Waiting out passing failures, for a minute in all.
pub(crate) struct Patience {
    until: Option<Instant>,
    delays: ExponentialBackoff,
}

impl Patience {
    pub(crate) fn new() -> Self {
        Self {
            until: None,
            delays: ExponentialBuilder::default()
                .with_min_delay(Duration::from_millis(200))
                .with_max_delay(Duration::from_secs(8))
                .with_jitter()
                .without_max_times()
                .build(),
        }
    }

    /// Waits where the trouble may pass, or gives it back.
    async fn wait(&mut self, mailman: &Mailman<'_>, trouble: Trouble) -> Result<MaybeDone, Trouble> {
        let maybe_done = match trouble {
            Trouble::NoAnswer { maybe_done, .. } => maybe_done,
            Trouble::Failing(_) => true,
            _ => return Err(trouble),
        };
        let until = *self.until.get_or_insert_with(|| Instant::now() + PATIENCE);
        let delay = self.delays.next().filter(|delay| Instant::now() + *delay < until).ok_or(trouble)?;
        tracing::info!(%trouble, "Mailman is asked again");
        mailman.wait(delay).await?;
        Ok(if maybe_done { MaybeDone::Yes } else { MaybeDone::No })
    }

    /// Reads the roster, waiting out failures of that too.
    pub(crate) async fn roster(&mut self, mailman: &Mailman<'_>, list: &ListId) -> Result<BTreeSet<Address>, Trouble> {
        loop {
            match mailman.roster(list).await {
                Ok(roster) => return Ok(roster),
                Err(trouble) => {
                    self.wait(mailman, trouble).await?;
                }
            }
        }
    }
}
