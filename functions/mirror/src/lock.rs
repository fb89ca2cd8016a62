//! One run at a time: a lock for each list, in the Redis that all share.
//!
//! Reserved concurrency keeps runs apart too, where the account has it. A lock
//! that cannot be asked for therefore ends nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use shared::cache::{Claim, MemberCache};
use uuid::Uuid;

use crate::mapping::{ListId, Target};

/// Tells this instance from every other. It takes one invocation at a time, so
/// that a lock of its own that is still there is one that an earlier run could
/// not give back: it may be claimed again.
pub(crate) struct Instance(String);

impl Instance {
    pub(crate) fn new() -> Self {
        Self(word())
    }
}

fn word() -> String {
    Uuid::from_u128(fastrand::u128(..)).simple().to_string()
}

/// The locks of one run. They are given back by [`Locks::release`], and expire
/// where the run does not come to that.
pub(crate) struct Locks<'c> {
    cache: Option<&'c MemberCache>,
    /// The instance and the run: what an earlier run sent to give its lock back
    /// may arrive late, and must not take this one's.
    owner: String,
    asked_for: Vec<ListId>,
    taken: BTreeSet<ListId>,
    /// How many could not be asked for.
    unknown: usize,
}

impl<'c> Locks<'c> {
    /// Locks lists for at most `seconds`.
    pub(crate) async fn lock(
        cache: Option<&'c MemberCache>,
        instance: &Instance,
        targets: &[&Target],
        seconds: u64,
    ) -> Self {
        let owner = format!("{}:{}", instance.0, word());
        let mut locks = Self { cache, owner, asked_for: Vec::new(), taken: BTreeSet::new(), unknown: 0 };
        let Some(cache) = cache else { return locks };
        for list in targets.iter().map(|target| &target.list) {
            match locks.claim(cache, list, seconds).await {
                Claim::Ours => locks.asked_for.push(list.clone()),
                Claim::Taken => drop(locks.taken.insert(list.clone())),
                Claim::Unknown => {
                    // The answer may have been lost, not the question.
                    locks.asked_for.push(list.clone());
                    locks.unknown += 1;
                }
            }
        }
        if locks.are_missing() {
            tracing::warn!(lists = locks.unknown, "lists could not be locked, and are mirrored without");
        }
        locks
    }

    /// Claims one list; again where the connection may have died while the
    /// instance was frozen, until the Redis is known to be gone.
    async fn claim(&self, cache: &MemberCache, list: &ListId, seconds: u64) -> Claim {
        let mut tries_left = if self.unknown == 0 { 4 } else { 1 };
        loop {
            let claim = cache.session().claim(&key(list), &self.owner, seconds).await;
            tries_left -= 1;
            if claim != Claim::Unknown || tries_left == 0 {
                return claim;
            }
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
    }

    /// Whether another run has this list.
    pub(crate) fn is_taken(&self, list: &ListId) -> bool {
        self.taken.contains(list)
    }

    /// Whether some list is without one, because the Redis does not answer.
    pub(crate) fn are_missing(&self) -> bool {
        self.unknown > 0
    }

    /// Gives them back.
    pub(crate) async fn release(self) {
        let Some(cache) = self.cache else { return };
        for list in &self.asked_for {
            cache.session().release(&key(list), &self.owner).await;
        }
    }
}

fn key(list: &ListId) -> String {
    format!("idaa:mirror:{list}")
}
