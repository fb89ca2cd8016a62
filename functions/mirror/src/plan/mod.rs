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
mod changes;
mod history;
mod judge;
mod moves;
mod owners;
pub(crate) mod reason;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;

use uuid::Uuid;

use self::candidates::Wanted;
pub(crate) use self::candidates::{Candidates, LeaveReason, Skipped};
pub(crate) use self::changes::{Doubt, Leaver, Move, Subscriber};
pub(crate) use self::history::{History, Today};
pub(crate) use self::judge::{Block, Verdict};
use self::judge::{Facts, GroupsEnd, Removals};
use self::owners::Owners;
use crate::address::Address;
use crate::directory::{Group, GroupEnd, People};
use crate::force::Force;
use crate::mapping::{ListId, Target};
use crate::roster::Roster;

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
    /// Every changed address, sorted. It neither leaves nor joins.
    pub(crate) moves: Vec<Move>,
    /// The wanted addresses that left the list by themselves.
    pub(crate) left: Vec<Address>,
    /// The number of addresses that stay only because of `keep`.
    pub(crate) kept: usize,
    pub(crate) skipped: Skipped,
    /// The causes of doubt that no earlier force has accepted.
    pub(crate) doubts: Vec<Doubt>,
    /// All causes of doubt.
    pub(crate) causes: BTreeSet<Doubt>,
    /// For each group that was not read to its end, the reason.
    incomplete: Vec<String>,
    /// The number of records that hide a field that decides.
    hidden: usize,
    /// The number of addresses with more than one membership, without those that are removed.
    repeated: usize,
    is_add_only: bool,
    /// True if the pass has asked about everyone in the groups, and all of these were read.
    is_pass_complete: bool,
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
        history: &History<'_>,
        force: Option<Force>,
    ) -> Self {
        let Candidates { wanted, untouched, unwanted, mut skipped, hidden, unknown, not_read, not_asked } =
            Candidates::new(target, people, roster);
        let moves = moves::moves(target, people, roster, &wanted, &untouched, &history.refused_moves);
        let moving: HashSet<&Address> = moves.iter().flat_map(|moved| [&moved.from, &moved.to.address]).collect();
        let mut joins = joins(&wanted, &untouched, &moving, roster);
        let mut accepted = force.unwrap_or_default().left;
        // A record that is unknown or hides a field may still want its address.
        let may_be_wanted = |address: &&Address| {
            let is_unknown = || unwanted.get(address).is_some_and(|unwanted| unwanted.reason == LeaveReason::NoRecord);
            wanted.contains_key(*address) || untouched.contains(*address) || is_unknown()
        };
        let left: Vec<Address> = history.left.iter().filter(may_be_wanted).cloned().collect();
        joins.retain(|subscriber| {
            let has_left = history.left.contains(&subscriber.address);
            let is_accepted = has_left && accepted > 0;
            accepted -= usize::from(is_accepted);
            skipped.left += usize::from(has_left && !is_accepted);
            !has_left || is_accepted
        });
        let stays =
            |address: &Address| wanted.contains_key(address) || untouched.contains(address) || moving.contains(address);
        let (kept, leaving): (Vec<&Address>, Vec<&Address>) =
            roster.iter().filter(|address| !stays(address)).partition(|address| target.keep.contains(*address));
        // The leavers of an add-only list count as none.
        let leaving = if target.is_add_only { Vec::new() } else { leaving };
        // If this run has read everyone, no one has to be read again.
        let owners = (not_read > 0 && not_asked == 0 && !leaving.is_empty()).then(|| Owners::new(target, people));
        let was_subscribed = |address: &Address| history.pass_roster.is_none_or(|roster| roster.contains(address));
        let leaver = |address: &Address| {
            let unwanted = unwanted.get(address);
            let to_read = owners.as_ref().map(|owners| owners.to_read(address)).unwrap_or_default();
            Leaver {
                address: address.clone(),
                reason: unwanted.map_or(LeaveReason::NoRecord, |unwanted| unwanted.reason),
                is_only_opt_out: unwanted.is_some_and(|unwanted| unwanted.is_only_opt_out()),
                is_stuck: not_asked == 0 && to_read.iter().any(|owner| people.is_unreadable(*owner)),
                is_due: not_asked == 0 && was_subscribed(address) && to_read.is_empty(),
                to_read,
            }
        };
        let mut leaves: Vec<Leaver> = leaving.into_iter().map(leaver).collect();
        leaves.sort_unstable_by(|a, b| a.address.cmp(&b.address));

        let groups = groups_end(target, people);
        let mut doubts = if target.is_add_only { Vec::new() } else { doubts(target, people, groups, missing_lists) };
        doubts.extend((history.has_lost_group && !target.is_add_only).then_some(Doubt::LostGroup));
        let causes: BTreeSet<Doubt> = doubts.iter().cloned().collect();
        doubts.retain(|doubt| !history.accepted.contains(doubt));
        let base = roster.len() - kept.len();
        let facts = Facts {
            base,
            is_unavailable: history.is_unavailable,
            is_adopted: history.is_adopted || target.is_add_only,
            is_filling: history.is_filling,
            removed_today: history.today.removed,
            added_today: history.today.added,
            day_base: history.today.base.filter(|base| *base > 0).unwrap_or(base),
            leaving: leaves.len(),
            joining: joins.len(),
            moving: moves.len(),
            moved_today: history.today.moved,
            gone: history.gone,
            resubscribes: target.resubscribes,
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
            moves,
            left,
            kept: kept.len(),
            skipped,
            doubts,
            causes,
            incomplete: incomplete.collect(),
            hidden,
            repeated: 0,
            is_add_only: target.is_add_only,
            is_pass_complete: not_asked == 0 && matches!(groups, GroupsEnd::Complete | GroupsEnd::Empty),
            facts,
            force,
            verdict: facts.judge(force),
        };
        let removed = plan.unsubscribe();
        plan.repeated = roster.repeated().filter(|address| removed.binary_search(address).is_err()).count();
        plan
    }

    /// Returns the addresses to add, sorted. A plan that is blocked or held adds no one. An address joins only because of a
    /// record that was read in this run.
    pub(crate) fn subscribe(&self) -> Vec<&Subscriber> {
        match self.verdict {
            // Without the ledger it isn't known who left by themselves.
            Verdict::Sound(_) if self.facts.is_unavailable && !self.facts.resubscribes => Vec::new(),
            Verdict::Sound(_) => self.joins.iter().filter(|subscriber| subscriber.is_read).collect(),
            Verdict::Held { .. } | Verdict::Blocked(_) => Vec::new(),
        }
    }

    /// Returns the changed addresses to move, sorted. A plan that is blocked or held moves no one.
    pub(crate) fn moving(&self) -> Vec<&Move> {
        match self.verdict {
            Verdict::Sound(_) if !self.facts.is_unavailable => {
                self.moves.iter().filter(|moved| moved.to.is_read).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Returns the addresses to remove, sorted. A plan that is blocked or held removes no one. But for opting out, an
    /// address leaves only at the end of a complete pass, on what that pass read.
    pub(crate) fn unsubscribe(&self) -> Vec<&Address> {
        let leaves = |leaver: &&Leaver| match self.verdict {
            Verdict::Sound(Removals::All) => leaver.is_due || leaver.is_only_opt_out,
            Verdict::Sound(Removals::OptedOut) => leaver.is_only_opt_out,
            Verdict::Sound(Removals::Withheld) | Verdict::Held { .. } | Verdict::Blocked(_) => false,
        };
        self.leaves.iter().filter(leaves).map(|leaver| &leaver.address).collect()
    }

    /// Judges the plan again, without the ledger.
    pub(crate) fn lose_ledger(&mut self) {
        self.facts.is_unavailable = true;
        self.verdict = self.facts.judge(self.force);
    }

    /// True if the plan is neither held nor blocked.
    pub(crate) fn is_sound(&self) -> bool {
        matches!(self.verdict, Verdict::Sound(_))
    }

    /// True if the pass has asked about everyone in the list's groups, all of which this run read.
    pub(crate) fn is_pass_complete(&self) -> bool {
        self.is_pass_complete
    }

    /// True if the list may have been made anew or restored.
    pub(crate) fn is_list_replaced(&self) -> bool {
        self.facts.is_replaced(self.force)
    }

    /// True if the pass is complete, no record is unknown or not yet read, and no one would leave. An add-only list doesn't
    /// know who would.
    pub(crate) fn knows_everyone_and_finds_no_leaver(&self) -> bool {
        let knows_everyone = self.is_pass_complete && self.facts.unknown + self.facts.not_yet_read == 0;
        knows_everyone && self.leaves.is_empty() && self.is_sound() && !self.is_add_only
    }

    /// True if this run's force has ended the list's doubt.
    pub(crate) fn has_ended_doubt(&self) -> bool {
        self.facts.is_in_doubt && !self.is_in_doubt() && self.is_sound()
    }

    /// Returns the numbers of addresses that would join and leave if a run had read their records, or a pass were complete.
    /// The next run goes on with them.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        match self.verdict {
            Verdict::Sound(removals) => {
                let joining = self.joins.len() - self.subscribe().len();
                let moving = if self.facts.is_unavailable { 0 } else { self.moves.len() - self.moving().len() };
                (joining + moving, if removals == Removals::All { self.withheld() - self.stuck() } else { 0 })
            }
            Verdict::Held { .. } | Verdict::Blocked(_) => (0, 0),
        }
    }

    /// Returns the number of addresses that stay although all others leave, because the record of a person who has or had
    /// one can't be read.
    pub(crate) fn stuck(&self) -> usize {
        let is_stuck = |leaver: &&Leaver| leaver.is_stuck && !leaver.is_only_opt_out;
        match self.verdict {
            Verdict::Sound(Removals::All) => self.leaves.iter().filter(is_stuck).count(),
            _ => 0,
        }
    }

    /// Returns the number of addresses that would leave and stay.
    pub(crate) fn withheld(&self) -> usize {
        self.leaves.len() - self.unsubscribe().len()
    }

    /// True if there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.subscribe().is_empty() && self.moving().is_empty() && self.unsubscribe().is_empty()
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
fn joins(
    wanted: &HashMap<&Address, Wanted<'_>>,
    untouched: &HashSet<&Address>,
    moving: &HashSet<&Address>,
    roster: &Roster,
) -> Vec<Subscriber> {
    let joins =
        |address: &Address| !roster.contains(address) && !untouched.contains(address) && !moving.contains(address);
    let subscriber = |address: &Address, wanted: &Wanted<'_>| Subscriber {
        address: address.clone(),
        name: wanted.name.map(str::to_owned),
        is_read: wanted.is_read,
    };
    let mut subscribers: Vec<Subscriber> = wanted
        .iter()
        .filter(|(address, _)| joins(address))
        .map(|(address, wanted)| subscriber(address, wanted))
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
    let is_vacant = |(id, group): &(&Uuid, &Group)| group.is_vacant() && !target.may_be_empty.contains(*id);
    let vacant = people.groups_of(target).filter(is_vacant).map(|(id, _)| Doubt::VacantGroup(*id));
    let vacant = vacant.filter(|_| groups != GroupsEnd::Empty);
    let unresolved = target.has_unresolved_mapping.then_some(Doubt::UnresolvedMapping);
    let missing = missing_lists.iter().filter(|list| **list != target.list).cloned().map(Doubt::MissingList);
    vacant.chain(unresolved).chain(missing).collect()
}

/// Prints only counts, so that a plan can be logged without identifying a member.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { list, wanted, roster, joins, leaves, moves, kept, .. } = self;
        let withheld = self.withheld();
        write!(
            f,
            "{list}: {roster} subscribed, {wanted} wanted: {} join, {} move, {} leave, {kept} kept, {withheld} withheld",
            joins.len(),
            moves.len(),
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

#[cfg(test)]
mod tests;
