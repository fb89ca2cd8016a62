//! One Redis lock per list prevents concurrent runs, and runs while a write of an earlier run is open.
//!
//! Reserved concurrency also prevents concurrent runs, if the account has it, so a run continues without locks if Redis
//! is unavailable.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use shared::cache::{Claim, MemberCache, Session, lock_key};
use shared::novi::RootDigest;
use tokio::time::Instant;
use uuid::Uuid;

use crate::mailman::OPEN_WRITE_PERIOD;
use crate::mapping::{ListId, Target};

/// The maximum number of concurrent requests to Redis.
const CONCURRENCY: usize = 64;
/// The number of attempts to reach Redis. The connection may have been lost while the instance was frozen.
const ATTEMPTS: usize = 4;
/// The delay between two attempts.
const RETRY_DELAY: Duration = Duration::from_millis(400);

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
    redis: Option<Redis<'c>>,
    /// The ids of the instance and of the run. The run's id prevents a release that an earlier run sent, and that
    /// arrives late, from releasing this run's lock.
    owner: String,
    requested: Vec<ListId>,
    taken: BTreeSet<ListId>,
    /// The number of lists for which it isn't known whether they are locked.
    undetermined: usize,
}

impl<'c> Locks<'c> {
    /// Locks lists for at most `seconds`. Gives up at `cutoff`.
    pub(crate) async fn lock(
        cache: Option<&'c MemberCache>,
        novi: &'c RootDigest,
        instance_id: &InstanceId,
        targets: &[&Target],
        seconds: u64,
        cutoff: Instant,
    ) -> Self {
        let owner = format!("{}:{}", instance_id.0, random_id());
        let mut locks = Self { redis: None, owner, requested: Vec::new(), taken: BTreeSet::new(), undetermined: 0 };
        let Some(cache) = cache else { return locks };
        let redis = Redis { cache, novi, is_gone: AtomicBool::new(false) };
        let owner = &locks.owner;
        let claims = targets.iter().map(|target| {
            let (redis, list) = (&redis, &target.list);
            async move {
                let claim = async |mut session: Session<'_>| {
                    let claim = session.claim(&lock_key(list.as_str()), owner, seconds).await;
                    Some(claim).filter(|claim| *claim != Claim::Unknown)
                };
                // If Redis is gone already, it doesn't even receive the request.
                let is_sent = !redis.is_gone();
                (list, redis.ask(cutoff, claim).await, is_sent)
            }
        });
        let claims: Vec<_> = stream::iter(claims).buffer_unordered(CONCURRENCY).collect().await;
        for (list, claim, is_sent) in claims {
            match claim {
                Some(Claim::Taken) => drop(locks.taken.insert(list.clone())),
                Some(Claim::Ours | Claim::Unknown) => locks.requested.push(list.clone()),
                None => {
                    locks.undetermined += 1;
                    // Redis may have received the request even though its response was lost.
                    locks.requested.extend(is_sent.then(|| list.clone()));
                }
            }
        }
        if locks.any_undetermined() {
            tracing::warn!(lists = locks.undetermined, "lock unavailable; continuing without it");
        }
        locks.redis = Some(Redis { cache, novi, is_gone: AtomicBool::new(false) });
        locks
    }

    /// True if another run has locked this list.
    pub(crate) fn is_taken(&self, list: &ListId) -> bool {
        self.taken.contains(list)
    }

    /// True if some lists have no lock, because Redis didn't respond.
    pub(crate) fn any_undetermined(&self) -> bool {
        self.undetermined > 0
    }

    /// Releases the locks, except those of `open` lists, which stay until Mailman has certainly finished. Gives up at
    /// `cutoff`.
    pub(crate) async fn release(self, open: &BTreeSet<ListId>, cutoff: Instant) {
        let Some(redis) = self.redis else { return };
        let owner = &self.owner;
        let released = self.requested.iter().filter(|list| !open.contains(*list));
        // The open ones first, even those that could not be locked before.
        let requests = open.iter().chain(released).map(|list| {
            let (redis, key) = (&redis, lock_key(list.as_str()));
            async move {
                let release = async |mut session: Session<'_>| {
                    let has_responded = if open.contains(list) {
                        session.keep(&key, owner, OPEN_WRITE_PERIOD.as_secs()).await
                    } else {
                        session.release(&key, owner).await
                    };
                    has_responded.then_some(())
                };
                redis.ask(cutoff, release).await.is_none()
            }
        });
        let failed = stream::iter(requests).buffer_unordered(CONCURRENCY).filter(|failed| std::future::ready(*failed));
        let lists = failed.count().await;
        if lists > 0 {
            tracing::warn!(lists, "lock not released; it expires with the invocation");
        }
    }
}

/// The Redis of the locks, which isn't asked any longer once it is known to be gone.
struct Redis<'c> {
    cache: &'c MemberCache,
    novi: &'c RootDigest,
    is_gone: AtomicBool,
}

impl Redis<'_> {
    fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Relaxed)
    }

    /// Sends a request until Redis responds. Returns `None` if it doesn't, or not by `cutoff`.
    async fn ask<T>(&self, cutoff: Instant, request: impl AsyncFn(Session<'_>) -> Option<T>) -> Option<T> {
        for attempt in 1..=ATTEMPTS {
            let time_left = cutoff.saturating_duration_since(Instant::now());
            if self.is_gone() || time_left.is_zero() {
                return None;
            }
            let mut session = self.cache.session(self.novi);
            session.limit(time_left);
            if let Some(response) = request(session).await {
                return Some(response);
            }
            if attempt < ATTEMPTS {
                tokio::time::sleep(RETRY_DELAY.min(time_left)).await;
            }
        }
        self.is_gone.store(true, Ordering::Relaxed);
        None
    }
}
