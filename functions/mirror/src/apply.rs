//! Applying a plan to Mailman: additions first, then removals in bulk.
//!
//! Additions go side by side, each address in one request at a time. When one
//! comes to nothing no further one is started; those under way are waited for,
//! and where the outcome of a write is unknown the roster is read before
//! anything is written again: overlapping subscriptions of one address make it
//! a member twice. That address itself comes last, after a while and another
//! reading. So does, once and without the while, one that was refused without
//! an explanation. A passing failure is tried again for `MAILMAN_RETRY_SECONDS`, a minute unless it is set.

use std::collections::VecDeque;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use crate::address::Address;
use crate::mailman::{Fate, Mailman, Refusal, Subscription, Trouble};
use crate::mapping::ListId;
use crate::plan::{Plan, Subscriber};
use crate::report::Rejected;
use crate::roster::Roster;

/// Subscriptions under way at once. On PostgreSQL four are twice as fast as
/// one, and eight no faster; SQLite takes as many a second either way.
const SIDE_BY_SIDE: usize = 4;
/// The most addresses in one removal: while a long one runs, other writers
/// meet a locked database.
const BULK: usize = 500;
/// A subscription is not started with less time than this left.
const SUBSCRIPTION_TIME: Duration = Duration::from_secs(5);
/// A bulk removal is not started with less time than this left.
const REMOVAL_TIME: Duration = Duration::from_secs(10);
/// How long after an answer was lost a subscription is asked for again, at the
/// earliest: for so long a locked database may hold up the first one.
const SETTLING: Duration = Duration::from_secs(6);
/// After so many failures at one address, while others succeed, it is the address.
const FAILURES: usize = 5;
/// After so many answers in a row that make no sense it is not Mailman that
/// answers; and so few addresses alone do not prove that Mailman is ill.
const TOLERATED: usize = 2;

/// What was done of a plan.
#[derive(Default)]
pub(crate) struct Applied {
    pub(crate) subscribed: usize,
    pub(crate) unsubscribed: usize,
    pub(crate) rejected: Rejected,
    /// Subscriptions without an answer, which Mailman may still be at work on.
    pub(crate) left: usize,
    /// What ended it early.
    pub(crate) stopped: Option<Trouble>,
}

impl Applied {
    /// An address is not asked for again in this run.
    fn give_up(&mut self, fate: Fate) {
        match fate {
            Fate::UnderWay => self.left += 1,
            Fate::NotDone | Fate::Unknown | Fate::Unsettled => self.rejected.count(Refusal::Other),
        }
    }
}

/// Applies a plan.
pub(crate) async fn apply(mailman: &Mailman<'_>, plan: &Plan) -> Applied {
    let mut applied = Applied::default();
    applied.stopped = apply_into(mailman, plan, &mut applied).await.err();
    applied
}

async fn apply_into(mailman: &Mailman<'_>, plan: &Plan, applied: &mut Applied) -> Result<(), Trouble> {
    let doubt = subscribe_all(mailman, plan, applied).await?;
    for addresses in plan.unsubscribe.chunks(BULK) {
        unsubscribe(mailman, plan, addresses.iter().collect()).await?;
        applied.unsubscribed += addresses.len();
    }
    match doubt {
        // Nothing at all could be written: it is not the addresses, it is Mailman that is ill.
        Some(trouble) if applied.subscribed + applied.unsubscribed == 0 => Err(trouble),
        _ => Ok(()),
    }
}

/// Somebody who is to be subscribed.
struct Waiting<'p> {
    who: &'p Subscriber,
    /// How often it came to nothing.
    failures: usize,
    /// How much had been done when it first did.
    done_before: usize,
    /// Whether it was refused once, without an explanation.
    is_doubted: bool,
}

/// What came of a few subscriptions side by side.
#[derive(Default)]
struct Round<'p> {
    subscribed: usize,
    refused: Vec<Refusal>,
    unexplained: Vec<Waiting<'p>>,
    failed: Vec<(Waiting<'p>, Trouble)>,
}

/// Subscribes everybody who is to join. Gives the trouble of the last few, where
/// these may be to blame for it or not.
async fn subscribe_all(mailman: &Mailman<'_>, plan: &Plan, applied: &mut Applied) -> Result<Option<Trouble>, Trouble> {
    let mut waiting: VecDeque<Waiting<'_>> =
        plan.subscribe.iter().map(|who| Waiting { who, failures: 0, done_before: 0, is_doubted: false }).collect();
    // Who is asked for last, and when the last answer was lost to a subscription that may be done all the same.
    let mut unsettled: Vec<Waiting<'_>> = Vec::new();
    let mut lost_at: Option<Instant> = None;
    let mut patience = Patience::new();
    let (mut done, mut senseless) = (0, 0);
    loop {
        if waiting.is_empty() && !unsettled.is_empty() {
            mailman.wait(lost_at.map_or(Duration::ZERO, |lost| SETTLING.saturating_sub(lost.elapsed()))).await?;
            let roster = patience.roster(mailman, &plan.list).await?;
            let before = unsettled.len();
            unsettled.retain(|one| !roster.contains(&one.who.address));
            applied.subscribed += before - unsettled.len();
            waiting.extend(unsettled.drain(..));
        }
        let round = subscribe_some(mailman, &plan.list, &mut waiting).await;
        applied.subscribed += round.subscribed;
        round.refused.iter().for_each(|refusal| applied.rejected.count(*refusal));
        if round.subscribed + round.refused.len() > 0 {
            done += round.subscribed + round.refused.len();
            (patience, senseless) = (Patience::new(), 0);
        }
        unsettled.extend(round.unexplained);
        if round.failed.is_empty() {
            if !waiting.is_empty() {
                return Err(Trouble::OutOfTime);
            }
            if unsettled.is_empty() {
                return Ok(None);
            }
            continue;
        }
        let mut last = None;
        let mut again = Vec::new();
        for (mut one, trouble) in round.failed {
            match (trouble, trouble.passing()) {
                (_, Some(fate)) => {
                    if one.failures == 0 {
                        one.done_before = done;
                    }
                    one.failures += 1;
                    again.push((one, fate));
                    last = Some(trouble);
                }
                (Trouble::Unexpected(_), None) if senseless < TOLERATED => {
                    senseless += 1;
                    applied.rejected.count(Refusal::Other);
                }
                (trouble, None) => return Err(trouble),
            }
        }
        let Some(trouble) = last else { continue };
        if let Err(trouble) = patience.wait(mailman, trouble).await {
            let few = waiting.len() + unsettled.len() + again.len() <= TOLERATED;
            if few && matches!(trouble, Trouble::Failing { .. }) {
                // Mailman answers, and cannot digest these: nobody else need wait for them.
                for (_, fate) in again {
                    applied.give_up(fate);
                }
                waiting.iter().chain(&unsettled).for_each(|_| applied.rejected.count(Refusal::Other));
                return Ok(Some(trouble));
            }
            return Err(trouble);
        }
        let mut roster = Roster::default();
        if again.iter().any(|(_, fate)| *fate != Fate::NotDone) {
            roster = patience.roster(mailman, &plan.list).await?;
        }
        for (one, fate) in again {
            if roster.contains(&one.who.address) {
                applied.subscribed += 1;
                done += 1;
            } else if fate == Fate::UnderWay || (one.failures >= FAILURES && done > one.done_before) {
                applied.give_up(fate);
            } else if fate == Fate::Unsettled {
                unsettled.push(one);
                lost_at = Some(Instant::now());
            } else {
                // Behind the others, whom it must not hold up.
                waiting.push_back(one);
            }
        }
    }
}

/// Subscribes those who wait, until one comes to nothing, time runs out, or all are done.
async fn subscribe_some<'p>(mailman: &Mailman<'_>, list: &ListId, waiting: &mut VecDeque<Waiting<'p>>) -> Round<'p> {
    let mut round = Round::default();
    let mut under_way = FuturesUnordered::new();
    loop {
        while round.failed.is_empty() && under_way.len() < SIDE_BY_SIDE && mailman.has_time(SUBSCRIPTION_TIME) {
            let Some(one) = waiting.pop_front() else { break };
            under_way.push(async move { (subscribe(mailman, list, one.who).await, one) });
        }
        match under_way.next().await {
            None => return round,
            Some((Ok(Subscription::Done), _)) => round.subscribed += 1,
            Some((Ok(Subscription::Refused(refusal)), _)) => round.refused.push(refusal),
            Some((Ok(Subscription::Unexplained), one)) if !one.is_doubted => {
                round.unexplained.push(Waiting { is_doubted: true, ..one });
            }
            Some((Ok(Subscription::Unexplained | Subscription::Pending), _)) => round.refused.push(Refusal::Other),
            Some((Err(trouble), one)) => round.failed.push((one, trouble)),
        }
    }
}

/// Subscribes one address, whose own pending request is discarded.
async fn subscribe(mailman: &Mailman<'_>, list: &ListId, who: &Subscriber) -> Result<Subscription, Trouble> {
    match mailman.subscribe(list, who).await? {
        Subscription::Pending => {
            mailman.discard_requests(list, &who.address).await?;
            mailman.subscribe(list, who).await
        }
        subscription => Ok(subscription),
    }
}

/// Unsubscribes addresses in one request; tried again, in a smaller one.
async fn unsubscribe(mailman: &Mailman<'_>, plan: &Plan, mut addresses: Vec<&Address>) -> Result<(), Trouble> {
    let mut patience = Patience::new();
    loop {
        if !mailman.has_time(REMOVAL_TIME) {
            return Err(Trouble::OutOfTime);
        }
        let Err(trouble) = mailman.unsubscribe(&plan.list, &addresses).await else {
            return Ok(());
        };
        let fate = patience.wait(mailman, trouble).await?;
        if fate != Fate::NotDone {
            let roster = patience.roster(mailman, &plan.list).await?;
            addresses.retain(|address| roster.contains(address));
            if addresses.is_empty() {
                return Ok(());
            }
        }
    }
}

/// Waiting out passing failures, for `MAILMAN_RETRY_SECONDS` in all.
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

    /// Waits where the trouble may pass, or gives it back. Says what may have
    /// become of the write.
    async fn wait(&mut self, mailman: &Mailman<'_>, trouble: Trouble) -> Result<Fate, Trouble> {
        let fate = trouble.passing().ok_or(trouble)?;
        let until = *self.until.get_or_insert_with(|| Instant::now() + mailman.times.retry);
        let delay = self.delays.next().filter(|delay| Instant::now() + *delay < until).ok_or(trouble)?;
        tracing::info!(%trouble, "Mailman is asked again");
        mailman.wait(delay).await?;
        Ok(fate)
    }

    /// Reads the roster, waiting out failures of that too.
    pub(crate) async fn roster(&mut self, mailman: &Mailman<'_>, list: &ListId) -> Result<Roster, Trouble> {
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
