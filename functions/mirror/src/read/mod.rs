//! Reads Novi: the groups page by page, then each person once. If that takes fewer calls, people are read from Novi's
//! bulk list of all records.
//!
//! Calls run concurrently within a limit per second and per minute. They all pause after a 429, and are retried after
//! transient failures. Data that remains unreadable is marked unknown, which removes no one.

mod caller;
mod group_pages;
mod rate_limit;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use futures_util::{StreamExt, stream};
use shared::cache::MemberUpdate;
use shared::member::{MemberId, MemberRules, Record};
use shared::novi::{self, Access};
use shared::parameters::ParameterStore;
use tokio::time::Instant;
use uuid::Uuid;

pub(crate) use self::caller::{CallError, Caller};
pub(crate) use self::group_pages::GroupPages;
pub(crate) use self::rate_limit::NoviRateLimiter;
use crate::directory::{Directory, Group, GroupEnd, MemberStatus};
use crate::parameters::Parameters;

/// The maximum number of concurrent calls. With Novi's rate limits, more would only wait.
const CONCURRENCY: usize = 16;
/// The maximum number of attempts of one call.
const MAX_ATTEMPTS: usize = 5;
/// The maximum number of attempts of a bulk call, which has an alternative.
const MAX_BULK_ATTEMPTS: usize = 2;

/// Time ran out while reading, so nothing may be concluded from what was read.
#[derive(Debug, thiserror::Error)]
#[error("Time ran out while reading Novi")]
pub(crate) struct OutOfTime;

/// Reads Novi during one run.
pub(crate) struct Reader<'r> {
    client: &'r novi::Client,
    options: ReadOptions,
    rules: &'r MemberRules,
    pub(crate) caller: Caller<'r>,
}

/// Options for reading Novi.
#[derive(Clone, Copy)]
pub(crate) struct ReadOptions {
    /// True if the bulk list of all records may be read (`NOVI_BULK`).
    pub(crate) bulk: bool,
    /// True if records are also collected for the cache.
    pub(crate) collect_for_cache: bool,
}

/// The people that were read.
#[derive(Default)]
pub(crate) struct PeopleRecords {
    pub(crate) directory: Directory,
    /// The same records for the cache, if these are collected.
    pub(crate) updates: Vec<MemberUpdate>,
}

impl<'r> Reader<'r> {
    pub(crate) fn new(
        client: &'r novi::Client,
        parameters: &'r ParameterStore<Parameters>,
        current: Arc<Parameters>,
        rate_limiter: &'r Mutex<NoviRateLimiter>,
        options: ReadOptions,
        rules: &'r MemberRules,
        cutoff: Instant,
    ) -> Self {
        Self { client, options, rules, caller: Caller::new(client, parameters, current, rate_limiter, cutoff) }
    }

    /// Reads groups.
    pub(crate) async fn groups(&self, groups: HashSet<Uuid>) -> Result<Vec<(Uuid, Group)>, OutOfTime> {
        let reads = groups.into_iter().map(|id| async move { Ok((id, self.group(id).await?)) });
        stream::iter(reads).buffer_unordered(CONCURRENCY).collect::<Vec<_>>().await.into_iter().collect()
    }

    /// Reads people, each of them once.
    pub(crate) async fn people(&self, mut members: HashSet<MemberId>) -> Result<PeopleRecords, OutOfTime> {
        let mut people = PeopleRecords::default();
        people.directory.reserve(members.len());
        if self.options.bulk {
            self.read_bulk(&mut members, &mut people).await?;
        }
        let individual = members.into_iter().map(|id| async move {
            let request = async |access: &Access, deadline| {
                let read_at = SystemTime::now();
                self.client.customer(access, id, deadline).await?.into_record().map(|record| (record, read_at))
            };
            (id, self.caller.call(MAX_ATTEMPTS, request).await)
        });
        let mut individual = stream::iter(individual).buffer_unordered(CONCURRENCY);
        let mut failed: BTreeMap<String, usize> = BTreeMap::new();
        while let Some((id, result)) = individual.next().await {
            match result {
                Ok((record, read_at)) => self.record_member(&mut people, id, record.as_ref(), read_at),
                Err(CallError::OutOfTime) => return Err(OutOfTime),
                Err(error @ (CallError::CircuitOpen | CallError::Novi(_))) => {
                    *failed.entry(error.to_string()).or_default() += 1;
                    people.directory.insert(id, MemberStatus::Unknown);
                }
            }
        }
        for (error, records) in failed {
            tracing::warn!(error, records, "reading records failed");
        }
        Ok(people)
    }

    /// Reads the bulk list of all records page by page, as long as that takes fewer calls than one for each person who
    /// is still missing. People who are not on the list, or only with an incomplete record, stay missing.
    async fn read_bulk(&self, missing: &mut HashSet<MemberId>, people: &mut PeopleRecords) -> Result<(), OutOfTime> {
        // People on a page who were not recorded, because they aren't requested or their record is incomplete.
        let mut skipped = HashSet::new();
        let mut offset = 0;
        // A single lookup costs the same as one page.
        let mut calls_left = 1;
        while calls_left < missing.len() {
            let request = async |access: &Access, deadline| {
                let read_at = SystemTime::now();
                self.client.records(access, offset, deadline).await.map(|page| (page, read_at))
            };
            let (page, read_at) = match self.caller.call(MAX_BULK_ATTEMPTS, request).await {
                Ok((Some(page), read_at)) => (page, read_at),
                Err(CallError::OutOfTime) => return Err(OutOfTime),
                Ok((None, _)) | Err(CallError::CircuitOpen | CallError::Novi(_)) => {
                    tracing::info!("bulk listing unavailable; fetching members individually");
                    return Ok(());
                }
            };
            let rows = page.rows.len();
            let mut has_new_rows = false;
            for row in page.rows {
                let Some(id) = row.id else { continue };
                if row.record.is_complete(self.rules) && missing.remove(&id) {
                    self.record_member(people, id, Some(&row.record), read_at);
                    has_new_rows = true;
                } else if !people.directory.contains_key(&id) {
                    has_new_rows |= skipped.insert(id);
                }
            }
            offset += rows;
            let remaining = usize::try_from(page.total).unwrap_or(usize::MAX).saturating_sub(offset);
            if !has_new_rows || remaining == 0 {
                break;
            }
            calls_left = remaining.div_ceil(rows);
        }
        Ok(())
    }

    /// Records one person. `None` stands for a 404 or a response without a record.
    fn record_member(&self, people: &mut PeopleRecords, id: MemberId, record: Option<&Record>, read_at: SystemTime) {
        if self.options.collect_for_cache {
            // A record with a name that isn't text can't be used for verification.
            let identity = record.map_or(Ok(None), |record| record.verified(self.rules));
            people.updates.extend(identity.ok().map(|identity| MemberUpdate { id, identity, at: read_at }));
        }
        people.directory.insert(id, MemberStatus::from_record(record, self.rules));
    }

    /// Reads one group to its end.
    async fn group(&self, id: Uuid) -> Result<Group, OutOfTime> {
        let mut pages = GroupPages::default();
        loop {
            let offset = pages.offset;
            let page = self
                .caller
                .call(MAX_ATTEMPTS, async |access, deadline| self.client.group_page(access, id, offset, deadline).await)
                .await;
            let end = match page {
                Ok(Some(page)) => pages.add(page),
                Ok(None) if offset == 0 => Some(GroupEnd::Missing),
                Ok(None) => Some(GroupEnd::Incomplete("it disappeared while it was being read".to_owned())),
                Err(error @ (CallError::CircuitOpen | CallError::Novi(_))) => {
                    tracing::warn!(%error, "reading a group page failed");
                    Some(GroupEnd::Incomplete(error.to_string()))
                }
                Err(CallError::OutOfTime) => return Err(OutOfTime),
            };
            if let Some(end) = end {
                return Ok(Group { members: pages.members, rows_without_id: pages.rows_without_id, end });
            }
        }
    }
}
