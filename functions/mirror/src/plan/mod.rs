//! The plan: a pure function from Novi's records, the list's roster and the mapping to the addresses that join and
//! leave. It uses no I/O and no clock.
//!
//! Two rules take precedence over all others:
//!
//! - *Unknown data removes no one.* If a page of a group or any record of a list could not be read, that list's
//!   removals are withheld.
//! - *A plan that looks wrong is not applied.* A plan is judged by what it means, before anything of it is withheld. If
//!   it would change a list beyond its limits, the list is left unchanged.

mod candidates;
mod judge;
pub(crate) mod reason;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;

pub(crate) use self::candidates::{Candidates, LeaveReason, Skipped};
pub(crate) use self::judge::{Block, Verdict};
use self::judge::{Facts, GroupsEnd, Removals};
use crate::address::Address;
use crate::directory::{Group, GroupEnd, People};
use crate::force::Force;
use crate::mapping::{ListId, Target};
use crate::roster::Roster;

/// An address that joins.
pub(crate) struct Subscriber {
    pub(crate) address: Address,
    /// The display name. If there is a first name, it never contains the whole last name.
    pub(crate) name: Option<String>,
}

/// An address that leaves.
pub(crate) struct Leaver {
    pub(crate) address: Address,
    pub(crate) reason: LeaveReason,
    /// True if its only known record says that its person opted out.
    is_only_opt_out: bool,
}

/// The reason why a list is in doubt: its groups may not be all of its groups, or not what they should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// A group is empty while others aren't.
    VacantGroup,
    /// A mapping doesn't parse and names no list.
    UnresolvedMapping,
    /// A mapping names a list that Mailman doesn't have.
    MissingList(ListId),
}

/// The changes to one list, and the decision about them.
pub(crate) struct Plan {
    pub(crate) list: ListId,
    /// The number of addresses that belong on the list because of its groups.
    pub(crate) wanted: usize,
    /// The number of addresses on the roster.
    pub(crate) roster: usize,
    /// Everyone who would join if nothing were blocked or held, sorted by address.
    pub(crate) joins: Vec<Subscriber>,
    /// Everyone who would leave if nothing were blocked, held or withheld, sorted by address.
    pub(crate) leaves: Vec<Leaver>,
    /// The number of addresses that stay only because of `keep`.
    pub(crate) kept: usize,
    pub(crate) skipped: Skipped,
    pub(crate) doubts: Vec<Doubt>,
    /// For each group that was not read to its end, the reason.
    incomplete: Vec<String>,
    /// The number of records that hide a field that decides.
    hidden: usize,
    /// The number of addresses with more than one membership, without those that are removed.
    repeated: usize,
    is_add_only: bool,
    facts: Facts,
    force: Option<Force>,
    pub(crate) verdict: Verdict,
}

impl Plan {
    /// Plans the changes to one list, and judges the plan. `missing_lists` are mapped lists that Mailman doesn't have.
    pub(crate) fn new(
        target: &Target,
        people: &People,
        roster: &Roster,
        missing_lists: &BTreeSet<ListId>,
        force: Option<Force>,
    ) -> Self {
        let Candidates { wanted, untouched, unwanted, skipped, hidden, unknown } =
            Candidates::new(target, people, roster);
        let joins = joins(&wanted, &untouched, roster);
        let stays = |address: &Address| wanted.contains_key(address) || untouched.contains(address);
        let (kept, leaving): (Vec<&Address>, Vec<&Address>) =
            roster.iter().filter(|address| !stays(address)).partition(|address| target.keep.contains(*address));
        let leaver = |address: &Address| {
            let unwanted = unwanted.get(address);
            Leaver {
                address: address.clone(),
                reason: unwanted.map_or(LeaveReason::NoRecord, |unwanted| unwanted.reason),
                is_only_opt_out: unwanted.is_some_and(|unwanted| unwanted.is_only_opt_out()),
            }
        };
        // The leavers of an add-only list count as none.
        let leaving = if target.is_add_only { Vec::new() } else { leaving };
        let mut leaves: Vec<Leaver> = leaving.into_iter().map(leaver).collect();
        leaves.sort_unstable_by(|a, b| a.address.cmp(&b.address));

        let groups = groups_end(target, people);
        let doubts = if target.is_add_only { Vec::new() } else { doubts(target, people, groups, missing_lists) };
        let facts = Facts {
            base: roster.len() - kept.len(),
            leaving: leaves.len(),
            joining: joins.len(),
            unknown,
            not_yet_read: skipped.not_yet_read,
            missing_rows: people.groups_of(target).map(|(_, group)| group.missing_rows).sum(),
            groups,
            is_in_doubt: !doubts.is_empty(),
            limits: target.limits,
        };
        let incomplete = people.groups_of(target).filter_map(|(_, group)| match &group.end {
            GroupEnd::Incomplete(reason) => Some(reason.clone()),
            GroupEnd::Complete | GroupEnd::Missing => None,
        });
        let mut plan = Self {
            list: target.list.clone(),
            wanted: wanted.len(),
            roster: roster.len(),
            joins,
            leaves,
            kept: kept.len(),
            skipped,
            doubts,
            incomplete: incomplete.collect(),
            hidden,
            repeated: 0,
            is_add_only: target.is_add_only,
            facts,
            force,
            verdict: facts.judge(force),
        };
        let removed = plan.unsubscribe();
        plan.repeated = roster.repeated().filter(|address| removed.binary_search(address).is_err()).count();
        plan
    }

    /// Returns the addresses to add, sorted. A plan that is blocked or held adds no one.
    pub(crate) fn subscribe(&self) -> &[Subscriber] {
        match self.verdict {
            Verdict::Sound(_) => &self.joins,
            Verdict::Held { .. } | Verdict::Blocked(_) => &[],
        }
    }

    /// Returns the addresses to remove, sorted. A plan that is blocked or held removes no one.
    pub(crate) fn unsubscribe(&self) -> Vec<&Address> {
        let leaves = |leaver: &&Leaver| match self.verdict {
            Verdict::Sound(Removals::All) => true,
            Verdict::Sound(Removals::OptedOut) => leaver.is_only_opt_out,
            Verdict::Sound(Removals::Withheld) | Verdict::Held { .. } | Verdict::Blocked(_) => false,
        };
        self.leaves.iter().filter(leaves).map(|leaver| &leaver.address).collect()
    }

    /// Returns the number of addresses that would leave and stay.
    pub(crate) fn withheld(&self) -> usize {
        self.leaves.len() - self.unsubscribe().len()
    }

    /// True if there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.subscribe().is_empty() && self.unsubscribe().is_empty()
    }

    /// True if an operator has to look at the plan at once, although it isn't blocked: it is held, or the list is in
    /// doubt.
    pub(crate) fn is_held_or_in_doubt(&self) -> bool {
        match self.verdict {
            Verdict::Sound(_) => self.is_in_doubt(),
            Verdict::Held { is_waiting, .. } => !is_waiting || self.is_in_doubt(),
            Verdict::Blocked(_) => false,
        }
    }

    /// True if the list is in doubt, and this run's force doesn't end that.
    fn is_in_doubt(&self) -> bool {
        self.facts.is_in_doubt(self.force)
    }
}

/// Returns the wanted addresses that aren't on the roster, sorted.
fn joins(wanted: &HashMap<&Address, Option<&str>>, untouched: &HashSet<&Address>, roster: &Roster) -> Vec<Subscriber> {
    let joins = |address: &Address| !roster.contains(address) && !untouched.contains(address);
    let mut subscribers: Vec<Subscriber> = wanted
        .iter()
        .filter(|(address, _)| joins(address))
        .map(|(address, name)| Subscriber { address: (*address).clone(), name: name.map(str::to_owned) })
        .collect();
    subscribers.sort_unstable_by(|a, b| a.address.cmp(&b.address));
    subscribers
}

/// Returns the result of reading the groups of a list.
fn groups_end(target: &Target, people: &People) -> GroupsEnd {
    let is = |end: fn(&Group) -> bool| people.groups_of(target).any(|(_, group)| end(group));
    if people.groups_of(target).count() < target.groups.len() || is(|group| group.end == GroupEnd::Missing) {
        GroupsEnd::Missing
    } else if is(|group| matches!(group.end, GroupEnd::Incomplete(_))) {
        GroupsEnd::Incomplete
    } else if is(|group| !group.is_vacant()) {
        GroupsEnd::Complete
    } else {
        GroupsEnd::Empty
    }
}

/// Returns the reasons why a list is in doubt.
fn doubts(target: &Target, people: &People, groups: GroupsEnd, missing_lists: &BTreeSet<ListId>) -> Vec<Doubt> {
    let vacant = people.groups_of(target).any(|(id, group)| group.is_vacant() && !target.may_be_empty.contains(id));
    let vacant = (vacant && groups != GroupsEnd::Empty).then_some(Doubt::VacantGroup);
    let unresolved = target.has_unresolved_mapping.then_some(Doubt::UnresolvedMapping);
    let missing = missing_lists.iter().filter(|list| **list != target.list).cloned().map(Doubt::MissingList);
    vacant.into_iter().chain(unresolved).chain(missing).collect()
}

/// Prints only counts, so that a plan can be logged without identifying a member.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { list, wanted, roster, joins, leaves, kept, .. } = self;
        let withheld = self.withheld();
        write!(
            f,
            "{list}: {roster} subscribed, {wanted} wanted: {} join, {} leave, {kept} kept, {withheld} withheld",
            joins.len(),
            leaves.len() - withheld,
        )?;
        let describe = |blocks: &[Block]| self.describe(blocks);
        match &self.verdict {
            Verdict::Sound(_) => Ok(()),
            Verdict::Held { blocks, .. } => write!(f, "; held: {}", describe(blocks)),
            Verdict::Blocked(blocks) => write!(f, "; blocked: {}", describe(blocks)),
        }
    }
}

impl Plan {
    /// Describes the guards that the plan doesn't pass.
    pub(crate) fn describe(&self, blocks: &[Block]) -> String {
        blocks.iter().map(|block| self.facts.describe(*block, self.force)).collect::<Vec<_>>().join(", and ")
    }
}

shared::unprintable!(Subscriber, Leaver);

#[cfg(test)]
mod tests;
