//! The plan: a pure function from Novi's records, the list's roster and the mapping to the addresses that join and
//! leave. It uses no I/O and no clock.
//!
//! Two rules take precedence over all others:
//!
//! - *Unknown data removes no one.* If a page of a group or any record of a list could not be read, that list's
//!   removals are withheld.
//! - *A plan that looks wrong is not applied.* If a plan would change a list beyond its limits, it is blocked and the
//!   list is left unchanged.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::Serialize;
use shared::member::MemberId;
use uuid::Uuid;

use crate::address::Address;
use crate::directory::{Directory, Group, GroupEnd, MemberStatus, Membership};
use crate::mapping::{ListId, Target};
use crate::roster::Roster;

/// The number of records in the list's groups that add no address to the list, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Skipped {
    pub(crate) inactive: usize,
    pub(crate) opted_out: usize,
    pub(crate) no_email: usize,
    pub(crate) invalid_email: usize,
    pub(crate) not_found: usize,
    /// The record could not be read, or hides a field that decides.
    pub(crate) unknown: usize,
    /// Another record with the same address is already wanted.
    pub(crate) duplicate: usize,
}

/// An address that joins.
pub(crate) struct Subscriber {
    pub(crate) address: Address,
    /// The display name. If there is a first name, it never contains the whole last name.
    pub(crate) name: Option<String>,
}

/// The reason why a plan looks wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    MissingGroup,
    EmptyGroups { roster: usize },
    Everyone { roster: usize },
    Removals { count: usize, roster: usize, percent: u64 },
    Growth { count: usize, roster: usize, percent: u64 },
}

/// `max_removal_percent` doesn't apply to this many removals or fewer.
const REMOVAL_FLOOR: usize = 3;
/// `max_growth_percent` doesn't apply to this many additions or fewer.
const GROWTH_FLOOR: usize = 25;

impl Block {
    /// True if `force` lifts the block. A missing group is most likely caused by a wrong mapping, which `force` doesn't
    /// fix.
    fn can_be_forced(self) -> bool {
        self != Self::MissingGroup
    }

    /// Returns the event that applies the plan despite the block, if `force` lifts it.
    pub(crate) fn force_event(self, list: &ListId) -> Option<serde_json::Value> {
        self.can_be_forced().then(|| serde_json::json!({ "force": [list.as_str()] }))
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::MissingGroup => write!(f, "a group_guid that is mapped to this list does not exist in Novi"),
            Self::EmptyGroups { roster } => {
                write!(f, "all groups of this list are empty while {roster} addresses are subscribed")
            }
            Self::Everyone { roster } => write!(f, "all {roster} subscribed addresses would be unsubscribed"),
            Self::Removals { count, roster, percent } => write!(
                f,
                "{count} of {roster} addresses would be unsubscribed, more than the larger of {REMOVAL_FLOOR} and \
                 {percent} percent (max_removal_percent)"
            ),
            Self::Growth { count, roster, percent } => write!(
                f,
                "{count} addresses would be subscribed to a list of {roster}, more than the larger of {GROWTH_FLOOR} \
                 and {percent} percent (max_growth_percent)"
            ),
        }
    }
}

/// The decision about a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The plan may be applied.
    Sound,
    /// The plan looks wrong, but this run's event forces it.
    Forced(Block),
    /// The plan looks wrong and is not applied.
    Blocked(Block),
}

/// The changes to one list.
pub(crate) struct Plan {
    pub(crate) list: ListId,
    /// The number of addresses that belong on the list because of its groups.
    pub(crate) wanted: usize,
    /// The number of addresses on the roster.
    pub(crate) roster: usize,
    /// The addresses to add, sorted.
    pub(crate) subscribe: Vec<Subscriber>,
    /// The addresses to remove, sorted.
    pub(crate) unsubscribe: Vec<Address>,
    /// The number of addresses that stay only because of `keep`.
    pub(crate) kept: usize,
    /// The number of addresses that would leave if everything had been read.
    pub(crate) withheld: usize,
    pub(crate) skipped: Skipped,
    /// Sentences for the report that say why the list will not be entirely correct.
    pub(crate) warnings: Vec<String>,
    pub(crate) verdict: Verdict,
}

impl Plan {
    /// True if there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        self.subscribe.is_empty() && self.unsubscribe.is_empty()
    }

    /// Plans the changes to one list, and judges the plan.
    pub(crate) fn new(
        target: &Target,
        groups: &HashMap<Uuid, Group>,
        directory: &Directory,
        roster: &Roster,
        force: bool,
    ) -> Self {
        let mut candidates = Candidates::default();
        let groups: Vec<&Group> = target.groups.iter().filter_map(|group| groups.get(group)).collect();
        let mut members: HashSet<MemberId> =
            HashSet::with_capacity(groups.iter().map(|group| group.members.len()).sum());
        members.extend(groups.iter().flat_map(|group| group.members.iter().copied()));
        candidates.wanted.reserve(members.len());
        for member in &members {
            candidates.add(directory.get(member).unwrap_or(&MemberStatus::Unknown));
        }
        let Candidates { wanted, unchanged, mut skipped, hidden, unknown } = candidates;
        let rows_without_id: usize = groups.iter().map(|group| group.rows_without_id).sum();
        let incomplete: Vec<&str> = groups
            .iter()
            .filter_map(|group| match &group.end {
                GroupEnd::Incomplete(reason) => Some(reason.as_str()),
                GroupEnd::Complete | GroupEnd::Missing => None,
            })
            .collect();
        skipped.unknown = hidden + unknown + rows_without_id;

        let leaving = roster.iter().filter(|address| !wanted.contains_key(*address) && !unchanged.contains(*address));
        let (kept, leaving): (Vec<&Address>, Vec<&Address>) =
            leaving.partition(|address| target.keep.contains(*address));
        let is_complete = incomplete.is_empty() && unknown + rows_without_id == 0 && !target.has_unresolved_mapping;
        let (mut unsubscribe, withheld): (Vec<Address>, usize) =
            if is_complete { (leaving.into_iter().cloned().collect(), 0) } else { (Vec::new(), leaving.len()) };
        unsubscribe.sort_unstable();
        let leaves = |address: &Address| unsubscribe.binary_search(address).is_ok();
        let repeated = roster.repeated().filter(|address| !leaves(address)).count();

        let wanted_count = wanted.len();
        let mut subscribe: Vec<Subscriber> = wanted
            .into_iter()
            .filter(|(address, _)| !roster.contains(address) && !unchanged.contains(address))
            .map(|(address, name)| Subscriber { address, name })
            .collect();
        subscribe.sort_unstable_by(|a, b| a.address.cmp(&b.address));
        let mut plan = Self {
            list: target.list.clone(),
            wanted: wanted_count,
            roster: roster.len(),
            subscribe,
            unsubscribe,
            kept: kept.len(),
            withheld,
            skipped,
            warnings: warnings(&incomplete, unknown + rows_without_id, hidden, target.has_unresolved_mapping, repeated),
            verdict: Verdict::Sound,
        };
        let has_missing_group =
            groups.len() < target.groups.len() || groups.iter().any(|group| group.end == GroupEnd::Missing);
        let are_groups_empty = incomplete.is_empty() && members.is_empty() && rows_without_id == 0;
        plan.verdict = match plan.judge(target, has_missing_group, are_groups_empty) {
            None => Verdict::Sound,
            Some(block) if force && block.can_be_forced() => Verdict::Forced(block),
            Some(block) => Verdict::Blocked(block),
        };
        plan
    }

    /// Returns the reason if the plan looks wrong.
    fn judge(&self, target: &Target, has_missing_group: bool, are_groups_empty: bool) -> Option<Block> {
        let roster = self.roster;
        let exceeds = |count: usize, floor: usize, percent: u64| {
            count > floor && (count as u128) * 100 > (roster as u128) * u128::from(percent)
        };
        let (leaving, joining) = (self.unsubscribe.len(), self.subscribe.len());
        let (removal, growth) = (target.limits.max_removal_percent, target.limits.max_growth_percent);
        if has_missing_group {
            Some(Block::MissingGroup)
        } else if are_groups_empty && roster > 0 {
            Some(Block::EmptyGroups { roster })
        } else if leaving > 0 && leaving == roster {
            Some(Block::Everyone { roster })
        } else if exceeds(leaving, REMOVAL_FLOOR, removal) {
            Some(Block::Removals { count: leaving, roster, percent: removal })
        } else if roster > 0 && exceeds(joining, GROWTH_FLOOR, growth) {
            Some(Block::Growth { count: joining, roster, percent: growth })
        } else {
            None
        }
    }
}

/// Prints only counts, so that a plan can be logged without identifying a member.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { list, wanted, roster, subscribe, unsubscribe, kept, withheld, .. } = self;
        write!(
            f,
            "{list}: {roster} subscribed, {wanted} wanted: {} join, {} leave, {kept} kept, {withheld} withheld",
            subscribe.len(),
            unsubscribe.len()
        )?;
        match self.verdict {
            Verdict::Sound => Ok(()),
            Verdict::Forced(block) => write!(f, "; forced although {block}"),
            Verdict::Blocked(block) => write!(f, "; blocked: {block}"),
        }
    }
}

/// The addresses in the groups of one list, classified by their records.
#[derive(Default)]
struct Candidates {
    /// Wanted addresses, each with one display name.
    wanted: HashMap<Address, Option<String>>,
    /// Addresses that are neither added nor removed.
    unchanged: HashSet<Address>,
    skipped: Skipped,
    hidden: usize,
    unknown: usize,
}

impl Candidates {
    fn add(&mut self, status: &MemberStatus) {
        let membership = status.membership();
        match membership {
            Some((address, Membership::Wanted(name))) => self.want(address, name),
            Some((address, Membership::Unchanged)) => drop(self.unchanged.insert(address.clone())),
            Some((_, Membership::Unwanted)) | None => {}
        }
        let skipped = &mut self.skipped;
        *match (status, membership) {
            (MemberStatus::Member { .. }, Some((_, Membership::Wanted(_)))) => return,
            (MemberStatus::Member { .. }, _) => &mut skipped.invalid_email,
            (MemberStatus::Hidden(_), _) => &mut self.hidden,
            (MemberStatus::Inactive(_) | MemberStatus::OtherStatus(_), _) => &mut skipped.inactive,
            (MemberStatus::OptedOut(_), _) => &mut skipped.opted_out,
            (MemberStatus::NoEmail, _) => &mut skipped.no_email,
            (MemberStatus::NotFound, _) => &mut skipped.not_found,
            (MemberStatus::Unknown, _) => &mut self.unknown,
        } += 1;
    }

    fn want(&mut self, address: &Address, name: Option<&str>) {
        let name = name.map(str::to_owned);
        match self.wanted.get_mut(address) {
            None => drop(self.wanted.insert(address.clone(), name)),
            Some(current) => {
                self.skipped.duplicate += 1;
                // Picks the name of a shared address deterministically, independent of hash-map order.
                *current = current.take().into_iter().chain(name).min();
            }
        }
    }
}

/// Returns the warnings of a plan.
fn warnings(
    incomplete: &[&str],
    unknown: usize,
    hidden: usize,
    has_unresolved_mapping: bool,
    repeated: usize,
) -> Vec<String> {
    let mut warnings: Vec<String> = incomplete
        .iter()
        .map(|reason| {
            format!(
                "A group of this list could not be read completely ({reason}). Until a run can read it, no one is \
                 removed."
            )
        })
        .collect();
    if unknown > 0 {
        warnings.push(format!(
            "{unknown} of this list's records could not be read. Until a run can read them, no one is removed."
        ));
    }
    if has_unresolved_mapping {
        warnings.push(
            "An invalid mapping does not name its list, which may be this one. Until it is corrected, no one is \
             removed."
                .to_owned(),
        );
    }
    if hidden > 0 {
        warnings.push(format!(
            "Active or UnsubscribeFromEmails is hidden in {hidden} of this list's records, or MemberStatus if \
             MEMBER_STATUSES is set, so their addresses are neither added nor removed. Ask Novi to show these fields to \
             the key."
        ));
    }
    if repeated > 0 {
        warnings.push(format!(
            "The roster contains addresses that are subscribed more than once ({repeated}), which Mailman's own tools \
             fail on. Delete all but one of their memberships by hand."
        ));
    }
    warnings
}

shared::unprintable!(Subscriber);

#[cfg(test)]
mod tests;
