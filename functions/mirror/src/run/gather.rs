//! Reads everything that a run needs: the groups, their people, and the rosters.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use shared::cache::MemberUpdate;
use shared::member::MemberId;
use shared::novi::NoviError;
use shared::rate_limit::Rates;
use tokio::time::Instant;
use uuid::Uuid;

use crate::directory::{Group, MemberStatus, People, members_of};
use crate::event::Event;
use crate::ledger::{Allowance, OpenLedger, choose};
use crate::mailman::{Mailman, MailmanError};
use crate::mapping::{ListId, Mappings, Target};
use crate::plan::{History, Plan};
use crate::read::{PeopleRecords, Reader, ReadingEnd};
use crate::roster::Roster;
use crate::status::Status;

/// The maximum number of concurrent reads. Mailman's REST API has two workers by default.
const MAILMAN_CONCURRENCY: usize = 2;

/// A list's roster, or the error that prevented reading it and the time of that error.
pub(super) type RosterResult = Result<Roster, (MailmanError, Instant)>;

/// The reason why Novi could not be read. Nothing may be concluded from a partial read, so no list is changed.
pub(super) enum ReadError {
    Ended(ReadingEnd),
    /// Novi rejected every call, for this reason.
    AccessDenied(NoviError),
}

impl From<ReadingEnd> for ReadError {
    fn from(end: ReadingEnd) -> Self {
        Self::Ended(end)
    }
}

impl ReadError {
    pub(super) fn status(&self) -> Status {
        match self {
            Self::Ended(_) => Status::Unfinished,
            Self::AccessDenied(_) => Status::Failed,
        }
    }

    /// Returns the sentences for the report.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Ended(end) => format!(
                "{end}, so the list is left unchanged. The next run retries. If this repeats, see Limits in \
                 docs/operations.md."
            ),
            Self::AccessDenied(error) => {
                let remedy = match error {
                    NoviError::Blocked => "Ask Novi to allow this address.",
                    _ => "Correct novi_idaa_api_key, or ask Novi for the key's permissions.",
                };
                format!("Reading Novi failed: {error}. The list is left unchanged. {remedy}")
            }
        }
    }
}

/// Reads for one run.
pub(super) struct Gatherer<'r> {
    pub(super) event: &'r Event,
    pub(super) mappings: &'r Mappings,
    pub(super) reader: Reader<'r>,
    pub(super) mailman: Mailman<'r>,
    /// The limits of the mirror's own calls to Novi.
    pub(super) novi_rates: Rates,
    /// The time between two scheduled runs.
    pub(super) period: Duration,
    /// When the run began, in seconds of Unix time. The ledger knows the run by it.
    pub(super) now: u64,
}

/// Everything that a run has read.
pub(super) struct Gathered {
    pub(super) people: People,
    /// The rosters, in the order of the targets.
    pub(super) rosters: Vec<RosterResult>,
    /// The mapped lists that Mailman doesn't have.
    pub(super) missing_lists: BTreeSet<ListId>,
    /// The records to prewarm the cache with.
    pub(super) updates: Vec<MemberUpdate>,
    /// The reason why some people weren't reached.
    pub(super) ended: Option<ReadingEnd>,
}

impl Gatherer<'_> {
    /// Reads Novi and Mailman in parallel, so that only the slower one takes time. A roster that is older than the records
    /// causes no wrong removal, because addresses that were added since aren't considered.
    ///
    /// With a ledger, the rosters decide which people are read.
    pub(super) async fn gather(
        &self,
        targets: &[&Target],
        mut ledger: Option<&mut OpenLedger<'_>>,
    ) -> Result<Gathered, ReadError> {
        let rosters = async { Ok((self.rosters(targets).await, self.other_missing_lists(targets).await)) };
        let everyone = async {
            let ((groups, mut records, missing), _) = self.groups(targets).await?;
            self.reader.people(missing, &mut records).await;
            Ok(((groups, records, Vec::new()), Instant::now()))
        };
        let (((groups, mut records, missing), read_at), (rosters, missing_lists)) = match &ledger {
            None => tokio::try_join!(everyone, rosters)?,
            Some(_) => tokio::try_join!(self.groups(targets), rosters)?,
        };
        let rosters = self.retry_rosters(targets, rosters, read_at).await;
        let mut people = People { groups, ..People::default() };
        if let Some(ledger) = &mut ledger {
            self.go_on_with_pass(targets, &mut people, &rosters, &missing_lists, &mut records, missing, ledger).await;
        }
        let PeopleRecords { directory, updates, ended } = records;
        people.directory.extend(directory);
        tracing::info!(members = people.directory.len(), calls = self.reader.caller.calls(), "read members");
        if let Some(error) = self.reader.caller.access_denied() {
            if let Some(ledger) = ledger {
                ledger.document.people = people.earlier;
            }
            return Err(ReadError::AccessDenied(error));
        }
        let missing = targets.iter().zip(&rosters).filter_map(|(target, roster)| match roster {
            Err((error, _)) if error.is_missing_list() => Some(target.list.clone()),
            _ => None,
        });
        let missing_lists = missing_lists.into_iter().chain(missing).collect();
        Ok(Gathered { people, rosters, missing_lists, updates, ended })
    }

    /// Reads the groups of all lists, and as many of their people as the bulk list has. Returns the others, too, and the
    /// time.
    async fn groups(
        &self,
        targets: &[&Target],
    ) -> Result<((HashMap<Uuid, Group>, PeopleRecords, Vec<MemberId>), Instant), ReadError> {
        let ids: HashSet<Uuid> = targets.iter().flat_map(|target| target.groups.iter().copied()).collect();
        let groups: HashMap<Uuid, Group> = self.reader.groups(ids).await?.into_iter().collect();
        let members = members_of(groups.values());
        tracing::info!(groups = groups.len(), members = members.len(), "read groups");
        let mut records = PeopleRecords::default();
        let missing = self.reader.people_in_bulk(members, &mut records).await;
        Ok(((groups, records, missing), Instant::now()))
    }

    /// Reads the people that the pass asks about in this run, and those who have to be read again before an address
    /// leaves. `missing` are those who aren't on the bulk list.
    #[expect(clippy::too_many_arguments, reason = "what was read so far")]
    async fn go_on_with_pass(
        &self,
        targets: &[&Target],
        people: &mut People,
        rosters: &[RosterResult],
        missing_lists: &BTreeSet<ListId>,
        records: &mut PeopleRecords,
        missing: Vec<MemberId>,
        ledger: &mut OpenLedger<'_>,
    ) {
        let now = self.now;
        let members = members_of(people.groups.values());
        people.earlier = std::mem::take(&mut ledger.document.people);
        let calls = self.reader.caller.calls();
        let today = ledger.document.calls_today(now);
        let allowance = self.allowance(usize::try_from(today).unwrap_or(usize::MAX), calls);
        let eager = eager(targets, people, rosters);
        let is_partial = targets.len() < self.mappings.targets.len();
        let began = ledger.document.pass_began;
        let mut reading = choose(&members, &people.earlier, &eager, began, now, allowance, is_partial);
        if missing.len() < members.len() && missing.len() <= allowance.of_run {
            // The bulk list was read, so this is a pass.
            reading.people = missing;
            reading.pass_began = began.filter(|_| is_partial).unwrap_or(now);
        }
        ledger.document.pass_began = Some(reading.pass_began);
        people.pass_began = reading.pass_began;
        let mut first = self.explained(people);
        first.retain(|member| members.contains(member) && !records.directory.contains_key(member));
        reading.people.retain(|member| !first.contains(member) && !records.directory.contains_key(member));
        let order: Vec<MemberId> = first.into_iter().chain(reading.people).collect();
        let read = order.len();
        self.reader.people(order, records).await;
        people.directory.extend(records.directory.drain());

        for (target, roster) in targets.iter().zip(rosters) {
            if let Ok(roster) = roster {
                let entry = ledger.document.lists.entry(target.list.clone()).or_default();
                entry.found(target, people, roster, now);
            }
        }
        let mut again = HashSet::new();
        for (target, roster) in targets.iter().zip(rosters) {
            let (Ok(roster), Some(entry)) = (roster, ledger.document.lists.get(&target.list)) else { continue };
            let history = entry.history(target, reading.pass_began, now);
            again.extend(to_read_again(target, people, roster, missing_lists, &history));
        }
        let room = allowance.left_today.saturating_sub(read);
        self.reader.people(again.into_iter().take(room).collect(), records).await;
    }

    /// Returns how many people this run may read.
    fn allowance(&self, calls_today: usize, calls: u64) -> Allowance {
        let seconds = self.reader.cutoff().saturating_duration_since(Instant::now()).as_secs();
        let calls = usize::try_from(calls).unwrap_or(usize::MAX);
        let rates = self.novi_rates;
        Allowance::new(rates.day, rates.minute, calls_today, self.period.as_secs(), seconds, calls)
    }

    /// Returns the people who have or had one of the addresses that the event asks about.
    fn explained(&self, people: &People) -> BTreeSet<MemberId> {
        let addresses: Vec<_> = self.event.addresses().map(|(_, address)| address).collect();
        let is_asked_about = |member: &MemberId| people.past_addresses(*member).any(|of| addresses.contains(of));
        if addresses.is_empty() {
            return BTreeSet::new();
        }
        people.earlier.keys().copied().filter(is_asked_about).collect()
    }

    /// Reads the rosters again that could not be read, because Mailman may have recovered while Novi was being read.
    async fn retry_rosters(
        &self,
        targets: &[&Target],
        mut rosters: Vec<RosterResult>,
        read_at: Instant,
    ) -> Vec<RosterResult> {
        for (target, roster) in targets.iter().zip(&mut rosters) {
            if let Err((error, failed_at)) = roster
                && error.write_outcome().is_some()
                && *failed_at < read_at
            {
                *roster = self.roster(target).await;
            }
        }
        rosters
    }

    /// Reads the rosters, in the order of the targets.
    async fn rosters(&self, targets: &[&Target]) -> Vec<RosterResult> {
        stream::iter(targets).map(|target| self.roster(target)).buffered(MAILMAN_CONCURRENCY).collect().await
    }

    async fn roster(&self, target: &Target) -> RosterResult {
        self.mailman.roster(&target.list).await.map_err(|error| (error, Instant::now()))
    }

    /// Returns the mapped lists that Mailman doesn't have, without the targets. Reading the rosters tells about those.
    async fn other_missing_lists(&self, targets: &[&Target]) -> BTreeSet<ListId> {
        let targets: HashSet<&ListId> = targets.iter().map(|target| &target.list).collect();
        let others = self.mappings.lists.iter().filter(|list| !targets.contains(list));
        let check = |list| async move {
            match self.mailman.has_list(list).await {
                Ok(true) => None,
                Ok(false) => Some(ListId::clone(list)),
                // Such a list is more likely to exist than not. A run that concerns it reports the error.
                Err(error) => {
                    tracing::warn!(%list, %error, "checking that Mailman has the list failed");
                    None
                }
            }
        };
        let checks = stream::iter(others).map(check).buffer_unordered(MAILMAN_CONCURRENCY);
        checks.filter_map(std::future::ready).collect().await
    }
}

/// Returns the people with a last record that would let an address join.
pub(super) fn eager(targets: &[&Target], people: &People, rosters: &[RosterResult]) -> HashSet<MemberId> {
    let mut eager = HashSet::new();
    for (target, roster) in targets.iter().zip(rosters) {
        let Ok(roster) = roster else { continue };
        let joins = |member: &MemberId| {
            let status = people.earlier.get(member).map(|person| &person.status);
            matches!(status, Some(MemberStatus::Member { address, .. }) if !roster.contains(address))
        };
        eager.extend(people.members_of(target).into_iter().filter(joins));
    }
    eager
}

/// Returns the people who have to be read again before the leavers of a complete pass leave.
pub(super) fn to_read_again(
    target: &Target,
    people: &People,
    roster: &Roster,
    missing_lists: &BTreeSet<ListId>,
    history: &History<'_>,
) -> HashSet<MemberId> {
    let plan = Plan::new(target, people, roster, missing_lists, history, None);
    if !plan.is_pass_complete() {
        return HashSet::new();
    }
    let again = plan.leaves.iter().flat_map(|leaver| leaver.to_read.iter().copied());
    // Those that this run couldn't read won't be readable a moment later.
    again.filter(|member| !people.directory.contains_key(member)).collect()
}
