//! One Redis lock per list prevents concurrent runs.
//!
//! Reserved concurrency also does, if the account has it, so a run continues without locks if Redis is unavailable.

use std::collections::BTreeSet;
use std::time::Duration;

use shared::cache::{Claim, MemberCache, lock_key};
use uuid::Uuid;

use crate::mapping::{ListId, Target};

/// Identifies this instance among all others.
///
/// An instance handles one invocation at a time. If it still holds a lock, an earlier run failed to release it, so the
/// lock may be claimed again.
pub(crate) struct InstanceId(String);

impl InstanceId {
    pub(crate) fn new() -> Self {
        Self(random_id())
    }
}

fn random_id() -> String {
    Uuid::from_u128(fastrand::u128(..)).simple().to_string()
}

/// The locks of one run. [`Locks::release`] releases them. If a run ends before that, they expire.
pub(crate) struct Locks<'c> {
    cache: Option<&'c MemberCache>,
    /// The ids of the instance and of the run. The run's id prevents a release that an earlier run sent, and that
    /// arrives late, from releasing this run's lock.
    owner: String,
    requested: Vec<ListId>,
    taken: BTreeSet<ListId>,
    /// The number of lists for which it isn't known whether they are locked.
    undetermined: usize,
}

impl<'c> Locks<'c> {
    /// Locks lists for at most `seconds`.
    pub(crate) async fn lock(
        cache: Option<&'c MemberCache>,
        instance_id: &InstanceId,
        targets: &[&Target],
        seconds: u64,
    ) -> Self {
        let owner = format!("{}:{}", instance_id.0, random_id());
        let mut locks = Self { cache, owner, requested: Vec::new(), taken: BTreeSet::new(), undetermined: 0 };
        let Some(cache) = cache else { return locks };
        for list in targets.iter().map(|target| &target.list) {
            match locks.claim(cache, list, seconds).await {
                Claim::Ours => locks.requested.push(list.clone()),
                Claim::Taken => drop(locks.taken.insert(list.clone())),
                Claim::Unknown => {
                    // Redis may have received the request even though its response was lost.
                    locks.requested.push(list.clone());
                    locks.undetermined += 1;
                }
            }
        }
        if locks.any_undetermined() {
            tracing::warn!(lists = locks.undetermined, "lock unavailable; continuing without it");
        }
        locks
    }

    /// Claims one list. Retries, because the connection may have been lost while the instance was frozen, until Redis
    /// is known to be unavailable.
    async fn claim(&self, cache: &MemberCache, list: &ListId, seconds: u64) -> Claim {
        let mut attempts_left = if self.undetermined == 0 { 4 } else { 1 };
        loop {
            let claim = cache.session().claim(&lock_key(list.as_str()), &self.owner, seconds).await;
            attempts_left -= 1;
            if claim != Claim::Unknown || attempts_left == 0 {
                return claim;
            }
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
    }

    /// True if another run has locked this list.
    pub(crate) fn is_taken(&self, list: &ListId) -> bool {
        self.taken.contains(list)
    }

    /// True if some lists have no lock, because Redis didn't respond.
    pub(crate) fn any_undetermined(&self) -> bool {
        self.undetermined > 0
    }

    /// Releases the locks.
    pub(crate) async fn release(self) {
        let Some(cache) = self.cache else { return };
        for list in &self.requested {
            cache.session().release(&lock_key(list.as_str()), &self.owner).await;
        }
    }
}
