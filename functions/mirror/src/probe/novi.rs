//! Asks Novi, and describes its responses without their values.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use serde::Serialize;
use shared::member::{MemberId, MemberRules};
use shared::novi::probe::{Observation, Resource};
use shared::novi::{self, Access, Customer, Failure, InvalidResponse, NoviError};
use shared::sync::lock;
use uuid::Uuid;

use crate::directory::GroupEnd;
use crate::mapping::Mappings;
use crate::probe::report::Transport;
use crate::probe::shape::{self, BodyKind, Envelope, Fields, KeyStyle, RecordBody};
use crate::read::{CallError, Caller, Pages, ReadingEnd};

/// The maximum number of records to read for each group.
const SAMPLE: usize = 20;
/// The maximum number of records to read in total.
const MAX_SAMPLE: usize = 200;
/// The maximum number of pages to read of each group.
const MAX_PAGES: usize = 200;
/// The maximum number of attempts of one call.
const MAX_ATTEMPTS: usize = 2;
/// The maximum number of concurrent calls.
const CONCURRENCY: usize = 16;

/// The reason why a call has no usable response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Problem {
    NoResponse,
    Blocked,
    KeyRejected,
    RateLimited,
    ServerError,
    /// Time ran out, or Novi failed too often in a row.
    NotAsked,
}

/// A response to one call.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Answer {
    pub(crate) status: Option<u16>,
    pub(crate) body: Option<BodyKind>,
    pub(crate) problem: Option<Problem>,
}

/// What the probe found out about one group.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct GroupFacts {
    /// The positions of its mappings, from 1. A group is not named by its GUID.
    pub(crate) mappings: BTreeSet<usize>,
    pub(crate) list_ids: BTreeSet<String>,
    /// The response with its last page.
    #[serde(flatten)]
    pub(crate) answer: Answer,
    pub(crate) envelope: Option<Envelope>,
    pub(crate) keys: Option<KeyStyle>,
    pub(crate) total: Option<u64>,
    /// The number of rows in its first page.
    pub(crate) page_size: usize,
    pub(crate) pages: usize,
    pub(crate) people: usize,
    pub(crate) rows_without_id: usize,
    /// The number of rows that only repeat others, apart from the one by which pages overlap.
    pub(crate) repeated_rows: usize,
    /// The number of its people who are also in another mapped group.
    pub(crate) in_other_groups: usize,
    /// True if this version reads the group to its end.
    pub(crate) complete: bool,
    /// The reason if it doesn't.
    pub(crate) reason: Option<String>,
}

/// What the probe found out about `GET /customers/{uuid}`. Counts records.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct RecordFacts {
    /// The records that were asked for.
    pub(crate) sampled: usize,
    /// The responses with a record.
    pub(crate) read: usize,
    /// The responses that say that there is no such record.
    pub(crate) not_found: usize,
    /// The records without a name and an email address.
    pub(crate) without_identity: usize,
    /// The records that don't even have the keys for these.
    pub(crate) identity_hidden: usize,
    /// The responses that this version doesn't take for a record.
    pub(crate) not_a_record: usize,
    /// The records with a name or an `Email` that this version doesn't read.
    pub(crate) unreadable: usize,
    /// The calls without a usable response.
    pub(crate) failed: usize,
    /// The records with a `MemberStatus` that `MEMBER_STATUSES` doesn't list.
    pub(crate) other_status: usize,
    /// The records with another `UniqueID` than the one that was asked for.
    pub(crate) other_uuid: usize,
    /// Those of them that belong to another person in the sample.
    pub(crate) other_uuid_of_sample: usize,
    /// The records under `data`.
    pub(crate) under_data: usize,
    pub(crate) keys: Option<KeyStyle>,
    pub(crate) fields: Fields,
}

/// What the probe found out about `GET /members`.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct BulkFacts {
    #[serde(flatten)]
    pub(crate) answer: Answer,
    pub(crate) envelope: Option<Envelope>,
    pub(crate) keys: Option<KeyStyle>,
    pub(crate) total: Option<u64>,
    /// The number of records in its first page.
    pub(crate) page_size: usize,
    /// True if this version can read the page.
    pub(crate) readable: bool,
    /// The number of records that show every field that the mirror needs.
    pub(crate) complete_records: usize,
    pub(crate) fields: Fields,
}

/// What the probe found out about Novi.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct NoviFacts {
    pub(crate) transport: Option<Transport>,
    /// The number of responses by status.
    pub(crate) responses: BTreeMap<u16, usize>,
    /// The number of calls without a response by cause.
    pub(crate) no_response: BTreeMap<&'static str, usize>,
    /// The number of responses that were compressed, which was not asked for.
    pub(crate) compressed: usize,
    /// The longest time that a response took.
    pub(crate) slowest_ms: u64,
    /// The number of calls that were answered with 429.
    pub(crate) rate_limited: u64,
    /// The longest `Retry-After` in seconds.
    pub(crate) retry_after: Option<u64>,
    /// The headers that announce a rate limit.
    pub(crate) rate_headers: BTreeMap<String, String>,
    /// The response to a UUID that no one has.
    pub(crate) unknown_uuid: Answer,
    /// True if that response contains a record.
    pub(crate) unknown_uuid_has_record: bool,
    pub(crate) groups: Vec<GroupFacts>,
    /// The number of people in all groups that were read.
    pub(crate) people: usize,
    /// The number of people who are in more than one group.
    pub(crate) in_several_groups: usize,
    pub(crate) records: RecordFacts,
    /// `null` if `NOVI_BULK=off`, or Novi can't be asked.
    pub(crate) bulk: Option<BulkFacts>,
    /// True if time ran out before everything was asked.
    pub(crate) out_of_time: bool,
}

/// A call with everything that is known of its response.
struct Call {
    observation: Option<Observation>,
    error: Option<CallError>,
}

impl Call {
    fn answer(&self) -> Answer {
        Answer {
            status: self.observation.as_ref().map(|observation| observation.status.as_u16()),
            body: self.observation.as_ref().map(|observation| match observation.is_too_large {
                true => BodyKind::TooLarge,
                false if observation.is_compressed => BodyKind::Compressed,
                false => shape::kind(&observation.body),
            }),
            problem: self.error.as_ref().map(|error| match error {
                CallError::Ended(_) => Problem::NotAsked,
                CallError::Novi(NoviError::RateLimited(_)) => Problem::RateLimited,
                CallError::Novi(NoviError::CredentialsRejected) => Problem::KeyRejected,
                CallError::Novi(NoviError::Blocked) => Problem::Blocked,
                CallError::Novi(NoviError::Unreachable(_) | NoviError::InvalidResponse(_)) => Problem::NoResponse,
                CallError::Novi(_) => Problem::ServerError,
            }),
        }
    }

    /// Returns the response if its status is 200.
    fn success(&self) -> Option<&Observation> {
        self.observation.as_ref().filter(|observation| self.error.is_none() && observation.status == 200)
    }
}

/// Asks Novi, and counts its responses.
pub(crate) struct NoviProbe<'p> {
    pub(crate) client: &'p novi::Client,
    pub(crate) caller: Caller<'p>,
    /// True unless `NOVI_BULK=off`.
    pub(crate) bulk: bool,
    pub(crate) rules: &'p MemberRules,
    pub(crate) facts: Mutex<NoviFacts>,
}

impl NoviProbe<'_> {
    /// Asks for everything, within the rate limit and the time. Also returns the number of calls.
    pub(crate) async fn ask(self, mappings: &Mappings) -> (NoviFacts, u64) {
        let nil = self.call(Resource::Customer(MemberId::NIL)).await;
        let answer = nil.answer();
        {
            let mut facts = lock(&self.facts);
            let customer = nil.success().map(|observation| observation.customer(MemberId::NIL));
            facts.unknown_uuid_has_record =
                matches!(customer, Some(Ok(Customer::Record(_)) | Err(InvalidResponse::OtherMember)));
            facts.unknown_uuid = answer.clone();
        }
        // Further calls would fail in the same way.
        if !matches!(answer.problem, Some(Problem::NoResponse | Problem::Blocked | Problem::NotAsked)) {
            let sample = self.groups(mappings).await;
            self.records(sample).await;
            if self.bulk {
                let bulk = self.bulk().await;
                lock(&self.facts).bulk = Some(bulk);
            }
        }
        let calls = self.caller.calls();
        let mut facts = self.facts.into_inner().unwrap_or_default();
        facts.rate_limited = facts.responses.get(&429).copied().unwrap_or_default() as u64;
        (facts, calls)
    }

    /// Makes one call.
    async fn call(&self, resource: Resource) -> Call {
        let last = Mutex::new(None);
        let request = async |access: &Access, deadline| {
            let started = Instant::now();
            let result = self.client.observe(access, resource, deadline).await;
            let mut facts = lock(&self.facts);
            match result {
                Err(unanswered) => {
                    *facts.no_response.entry(unanswered.cause).or_default() += 1;
                    *lock(&last) = None;
                    Err(Failure::from(unanswered.error))
                }
                Ok(observation) => {
                    facts.count(&observation, started.elapsed());
                    let error = observation.error();
                    *lock(&last) = Some(observation);
                    error.map_or(Ok(()), Err)
                }
            }
        };
        let error = self.caller.call(MAX_ATTEMPTS, request).await.err();
        if matches!(error, Some(CallError::Ended(ReadingEnd::OutOfTime | ReadingEnd::NoRoom | ReadingEnd::Paused(_)))) {
            lock(&self.facts).out_of_time = true;
        }
        Call { observation: last.into_inner().unwrap_or_default(), error }
    }

    /// Reads the groups, and returns a random sample of the people in them.
    async fn groups(&self, mappings: &Mappings) -> Vec<MemberId> {
        let mut groups: BTreeMap<Uuid, GroupFacts> = BTreeMap::new();
        for source in &mappings.sources {
            let facts = groups.entry(source.group).or_default();
            facts.mappings.insert(source.position);
            facts.list_ids.insert(source.list.to_string());
        }
        let reads = groups.into_iter().map(|(id, facts)| self.group(id, facts));
        let mut groups: Vec<_> = stream::iter(reads).buffer_unordered(CONCURRENCY).collect().await;
        groups.sort_by(|(one, _), (other, _)| one.mappings.cmp(&other.mappings));
        let mut count: HashMap<MemberId, usize> = HashMap::new();
        groups.iter().flat_map(|(_, members)| members).for_each(|id| *count.entry(*id).or_default() += 1);
        let is_shared = |id: &MemberId| count.get(id).is_some_and(|count| *count > 1);
        let mut sample = BTreeSet::new();
        let mut facts = lock(&self.facts);
        (facts.people, facts.in_several_groups) = (count.len(), count.keys().filter(|id| is_shared(id)).count());
        for (mut group, members) in groups {
            group.in_other_groups = members.iter().filter(|id| is_shared(id)).count();
            sample.extend(fastrand::choose_multiple(members, SAMPLE));
            facts.groups.push(group);
        }
        fastrand::choose_multiple(sample, MAX_SAMPLE)
    }

    /// Reads one group as the mirror does, and returns its people.
    async fn group(&self, group: Uuid, mut facts: GroupFacts) -> (GroupFacts, Vec<MemberId>) {
        let mut pages = Pages::default();
        let (mut rows, mut unreadable) = (0, Vec::new());
        loop {
            let offset = pages.offset;
            let call = self.call(Resource::GroupPage { group, offset }).await;
            facts.answer = call.answer();
            let Some(observation) = call.success() else { break };
            let shape = shape::page(&observation.body);
            if facts.pages == 0
                && let Some(shape) = &shape
            {
                (facts.envelope, facts.keys) = (Some(shape.envelope), Some(shape.keys));
                (facts.total, facts.page_size) = (shape.total, shape.rows.len());
            }
            facts.pages += 1;
            let Some(page) = observation.page() else {
                // Their records may still be of interest.
                unreadable = shape.iter().flat_map(|shape| &shape.rows).filter_map(|row| row.id()).collect();
                facts.reason = Some("its pages are not in a format that this version reads".to_owned());
                break;
            };
            rows += page.rows.len();
            match pages.add(page) {
                None if facts.pages < MAX_PAGES => {}
                None => {
                    facts.reason = Some(format!("the probe reads at most {MAX_PAGES} pages"));
                    break;
                }
                Some(end) => {
                    facts.complete = matches!(end, GroupEnd::Complete);
                    facts.reason = if let GroupEnd::Incomplete(reason) = end { Some(reason) } else { None };
                    break;
                }
            }
        }
        facts.rows_without_id = pages.rows_without_id;
        // Pages overlap by one row, except if they have only one.
        let overlaps = facts.pages.saturating_sub(1) * usize::from(facts.page_size > 1);
        facts.repeated_rows = rows.saturating_sub(overlaps + pages.members.len() + pages.rows_without_id);
        let members = if pages.members.is_empty() { unreadable } else { pages.members };
        facts.people = members.len();
        (facts, members)
    }

    /// Reads a sample of records.
    async fn records(&self, sample: Vec<MemberId>) {
        let ids: BTreeSet<MemberId> = sample.iter().copied().collect();
        let calls = sample.into_iter().map(|id| async move { (id, self.call(Resource::Customer(id)).await) });
        let mut facts = RecordFacts { sampled: ids.len(), ..RecordFacts::default() };
        let mut calls = stream::iter(calls).buffer_unordered(CONCURRENCY);
        while let Some((id, call)) = calls.next().await {
            facts.add(id, &call, &ids, self.rules);
        }
        lock(&self.facts).records = facts;
    }

    /// Reads the first page of all records.
    async fn bulk(&self) -> BulkFacts {
        let call = self.call(Resource::Records).await;
        let mut facts = BulkFacts { answer: call.answer(), ..BulkFacts::default() };
        let Some(observation) = call.success() else { return facts };
        if let Some(shape) = shape::page(&observation.body) {
            (facts.envelope, facts.keys, facts.total) = (Some(shape.envelope), Some(shape.keys), shape.total);
            facts.page_size = shape.rows.len();
            shape.rows.iter().for_each(|row| facts.fields.add(row));
        }
        if let Some(records) = observation.records() {
            facts.readable = true;
            facts.complete_records = records.rows.iter().filter(|row| row.record.is_complete(self.rules)).count();
        }
        facts
    }
}

impl NoviFacts {
    fn count(&mut self, observation: &Observation, elapsed: Duration) {
        *self.responses.entry(observation.status.as_u16()).or_default() += 1;
        self.compressed += usize::from(observation.is_compressed);
        self.slowest_ms = self.slowest_ms.max(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
        self.retry_after = self.retry_after.max(observation.retry_after);
        self.rate_headers.extend(observation.rate_headers.clone());
    }
}

impl RecordFacts {
    fn add(&mut self, id: MemberId, call: &Call, sample: &BTreeSet<MemberId>, rules: &MemberRules) {
        let Some(observation) = call.success() else {
            let is_missing = call.observation.as_ref().is_some_and(Observation::is_not_found) && call.error.is_none();
            *(if is_missing { &mut self.not_found } else { &mut self.failed }) += 1;
            return;
        };
        let shape = shape::record(&observation.body);
        match observation.customer(id) {
            Ok(Customer::NotFound | Customer::Empty) => self.not_found += 1,
            Ok(Customer::Record(record)) => {
                self.read += 1;
                match record.identity() {
                    Ok(Some(_)) => {}
                    Ok(None) => self.without_identity += 1,
                    Err(_) => self.unreadable += 1,
                }
                self.other_status += usize::from(record.has_member_status(rules) == Some(false));
            }
            Err(InvalidResponse::HiddenFields) => {
                self.read += 1;
                self.identity_hidden += 1;
            }
            Err(InvalidResponse::OtherMember) => {
                self.read += 1;
                self.other_uuid += 1;
                if let RecordBody::Record { object, .. } = &shape {
                    self.other_uuid_of_sample += usize::from(object.id().is_some_and(|id| sample.contains(&id)));
                }
            }
            Err(_) => self.not_a_record += 1,
        }
        if let RecordBody::Record { object, is_wrapped } = shape {
            self.under_data += usize::from(is_wrapped);
            self.keys = self.keys.max(object.key_style());
            self.fields.add(&object);
        }
    }
}

shared::unprintable!(Call, NoviProbe<'static>);
