//! Reads Novi: the groups page by page, then each person once. If that takes fewer calls, people are read from Novi's
//! bulk list of all records.
//!
//! Calls run concurrently within a limit per second and per minute. They all pause after a 429, and are retried after
//! transient failures. Data that remains unreadable is marked unknown, which removes no one. Reading ends early if its
//! time is over or Novi stops responding.

mod bulk_list;
mod caller;
mod ending;
mod pages;
mod rate_limit;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::{StreamExt, stream};
use shared::cache::MemberUpdate;
use shared::member::{MemberId, MemberRules, Record};
use shared::novi::{self, Access};
use shared::parameters::ParameterStore;
use tokio::time::Instant;
use uuid::Uuid;

use self::bulk_list::BulkList;
pub(crate) use self::caller::{CallError, Caller};
pub(crate) use self::ending::ReadingEnd;
pub(crate) use self::pages::Pages;
pub(crate) use self::rate_limit::{CallLimits, NoviRateLimiter};
use crate::directory::{Directory, Group, GroupEnd, MemberStatus};
use crate::parameters::Parameters;

/// The maximum number of concurrent calls. With Novi's rate limits, more would only wait.
const CONCURRENCY: usize = 16;
/// The maximum number of attempts of one call.
const MAX_ATTEMPTS: usize = 5;
/// The maximum number of attempts of a bulk call, which has an alternative.
const MAX_BULK_ATTEMPTS: usize = 2;

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
    /// The reason why some people weren't reached. They are missing from the directory.
    pub(crate) ended: Option<ReadingEnd>,
}

impl<'r> Reader<'r> {
    pub(crate) fn new(
        client: &'r novi::Client,
        parameters: &'r ParameterStore<Parameters>,
        current: Arc<Parameters>,
        limits: CallLimits<'r>,
        options: ReadOptions,
        rules: &'r MemberRules,
        cutoff: Instant,
    ) -> Self {
        Self { client, options, rules, caller: Caller::new(client, parameters, current, limits, cutoff) }
    }

    /// Returns the end of the time for reading.
    pub(crate) fn cutoff(&self) -> Instant {
        self.caller.cutoff()
    }

    /// Reads groups.
    ///
    /// # Errors
    /// Returns an error if time runs out. No time is left to read the people then.
    pub(crate) async fn groups(&self, groups: HashSet<Uuid>) -> Result<Vec<(Uuid, Group)>, ReadingEnd> {
        let reads = groups.into_iter().map(|id| async move { Ok((id, self.group(id).await?)) });
        stream::iter(reads).buffer_unordered(CONCURRENCY).collect::<Vec<_>>().await.into_iter().collect()
    }

    /// Reads as many of these people as one may from the bulk list of all records, and returns those who are missing
    /// from it.
    pub(crate) async fn people_in_bulk(
        &self,
        mut members: HashSet<MemberId>,
        people: &mut PeopleRecords,
    ) -> Vec<MemberId> {
        if self.options.bulk {
            self.read_bulk(&mut members, people).await;
        }
        members.into_iter().collect()
    }

    /// Reads people one by one, in this order.
    pub(crate) async fn people(&self, members: Vec<MemberId>, people: &mut PeopleRecords) {
        people.directory.reserve(members.len());
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
                Ok((record, read_at)) => self.record_member(people, id, record.as_ref(), read_at),
                Err(CallError::Ended(end)) => people.ended = people.ended.max(Some(end)),
                Err(CallError::Novi(error)) => {
                    *failed.entry(error.to_string()).or_default() += 1;
                    people.directory.insert(id, MemberStatus::Unknown);
                }
            }
        }
        for (error, records) in failed {
            tracing::warn!(error, records, "reading records failed");
        }
        if let Some(end) = people.ended {
            tracing::warn!(%end, records = people.directory.len(), "reading ended early");
        }
    }

    /// Reads the bulk list of all records, if that takes fewer calls than one for each person. People who are not on the
    /// list, or only with an incomplete record, stay missing. So does everyone if it isn't read to its end.
    async fn read_bulk(&self, missing: &mut HashSet<MemberId>, people: &mut PeopleRecords) {
        let mut list = BulkList::new(missing, self.rules);
        while list.calls_left() < missing.len() {
            let offset = list.offset();
            let request = async |access: &Access, deadline| {
                let read_at = SystemTime::now();
                self.client.records(access, offset, deadline).await.map(|page| (page, read_at))
            };
            let (page, read_at) = match self.caller.call(MAX_BULK_ATTEMPTS, request).await {
                Ok((Some(page), read_at)) => (page, read_at),
                // The individual calls end in the same way.
                Err(CallError::Ended(_)) => return,
                Ok((None, _)) | Err(CallError::Novi(_)) => {
                    tracing::info!("bulk listing unavailable; fetching members individually");
                    return;
                }
            };
            match list.add(page, read_at) {
                None => {}
                Some(GroupEnd::Complete) => {
                    for (id, record, read_at) in list.into_records() {
                        missing.remove(&id);
                        self.record_member(people, id, Some(&record), read_at);
                    }
                    return;
                }
                Some(_) => {
                    tracing::info!("bulk listing incomplete; fetching members individually");
                    return;
                }
            }
        }
    }

    /// Records one person. `None` stands for a 404 or a response without a record.
    fn record_member(&self, people: &mut PeopleRecords, id: MemberId, record: Option<&Record>, read_at: SystemTime) {
        if self.options.collect_for_cache {
            // Nothing is written for a record that isn't a member's, or has a name that isn't text. Expiry deletes.
            let identity = record.and_then(|record| record.verified(self.rules).ok().flatten());
            people.updates.extend(identity.map(|identity| MemberUpdate { id, identity, at: read_at }));
        }
        people.directory.insert(id, MemberStatus::from_record(record, self.rules));
    }

    /// Reads one group to its end.
    async fn group(&self, id: Uuid) -> Result<Group, ReadingEnd> {
        let mut pages = Pages::default();
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
                Err(error @ (CallError::Ended(ReadingEnd::NoResponse) | CallError::Novi(_))) => {
                    tracing::warn!(%error, "reading a group page failed");
                    Some(GroupEnd::Incomplete(error.to_string()))
                }
                Err(CallError::Ended(end)) => return Err(end),
            };
            if let Some(end) = end {
                let (rows_without_id, missing_rows) = (pages.rows_without_id, pages.missing_rows());
                return Ok(Group { members: pages.members, rows_without_id, missing_rows, end });
            }
        }
    }
}
