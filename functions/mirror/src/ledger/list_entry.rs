//! What the ledger keeps about one list.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use shared::member::MemberId;
use shared::time::DAY;
use uuid::Uuid;

use crate::address::Address;
use crate::apply::Applied;
use crate::directory::{MemberStatus, People};
use crate::force::Force;
use crate::mailman::Preferences;
use crate::mapping::Target;
use crate::plan::{Doubt, History, Plan, Today};
use crate::roster::Roster;

/// The maximum duration of a first fill in seconds.
const MAX_FILL: u64 = 7 * DAY;
/// How long a removal can be undone, in seconds.
const UNDO_PERIOD: u64 = 30 * DAY;

/// What the ledger keeps about one list. Times are in seconds of Unix time.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct ListEntry {
    /// The groups that were mapped to the list, without those that a force let go.
    groups: BTreeSet<Uuid>,
    is_adopted: bool,
    /// When the list was empty and its fill began, if that isn't over.
    filling_since: Option<u64>,
    /// When the last fill ended.
    filled: Option<u64>,
    pass_roster: Option<PassRoster>,
    /// The addresses that the last run left on the list, if its mapping says `"resubscribe": false`.
    on_list: Option<HashSet<Address>>,
    /// Those of them that are gone, although the mirror didn't remove them. A run that isn't blocked takes them for people
    /// who left by themselves.
    #[serde(skip)]
    gone: BTreeSet<Address>,
    /// The addresses that left the list by themselves.
    left: BTreeSet<Address>,
    /// The changed addresses that Mailman refuses, each after its former address, which leaves. An earlier release wrote a
    /// ledger without them.
    #[serde(default)]
    refused_moves: BTreeSet<(Address, Address)>,
    /// The memberships that the mirror removed in the last 30 days, with what their people had chosen.
    removed: BTreeMap<Address, Removed>,
    /// The changes of the last 24 hours.
    changes: Vec<Change>,
    /// The bases that the last runs found, with the time of each: those of the last 24 hours, and the one before.
    bases: Vec<(u64, usize)>,
    /// What is left of a force.
    force: Option<KeptForce>,
    /// The same, before this run. The ledger is written with what is left if everything that is planned gets through.
    #[serde(skip)]
    force_before: Option<KeptForce>,
    /// The doubts that a force has accepted.
    accepted_doubts: BTreeSet<Doubt>,
    /// The people with records that a force has accepted as unknown.
    accepted_people: BTreeSet<MemberId>,
    /// The numbers of rows without an id that a force has accepted, by group.
    accepted_rows: BTreeMap<Uuid, usize>,
    /// The numbers of rows without an id that the last run found, by group.
    rows_without_id: BTreeMap<Uuid, usize>,
    /// When the list was first found without a mapping.
    pub(crate) unmapped_since: Option<u64>,
}

/// The roster when a pass began.
#[derive(Serialize, Deserialize)]
struct PassRoster {
    pass_began: u64,
    addresses: HashSet<Address>,
}

/// A membership that the mirror removed.
#[derive(Serialize, Deserialize)]
struct Removed {
    at: u64,
    /// True if a later run has found the address gone. A removal may fail.
    is_gone: bool,
    preferences: Preferences,
}

/// What one run changed.
#[derive(Serialize, Deserialize)]
struct Change {
    at: u64,
    removed: usize,
    moved: usize,
    /// Zero if the list was being filled.
    added: usize,
    is_forced: bool,
}

/// A force, less what it let through.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct KeptForce {
    since: u64,
    joins: usize,
    leaves: usize,
    moves: usize,
    left: usize,
}

impl KeptForce {
    /// Takes away what it let through.
    fn spend(&mut self, joined: usize, left: usize, moved: usize, left_again: usize) {
        self.joins = self.joins.saturating_sub(joined);
        self.leaves = self.leaves.saturating_sub(left);
        self.moves = self.moves.saturating_sub(moved);
        self.left = self.left.saturating_sub(left_again);
    }
}

/// The result of a list in one run.
pub(crate) struct ListResult {
    /// The number of addresses that were added.
    pub(crate) added: usize,
    /// The number of addresses that were removed.
    pub(crate) removed: usize,
    /// The number of addresses that were moved.
    pub(crate) moved: usize,
    /// The former addresses of the memberships that this run failed to move, without those that Mailman may still move.
    pub(crate) not_moved: BTreeSet<Address>,
    /// The number of addresses that Mailman refuses to add.
    pub(crate) refused: usize,
    /// Those of them that it will refuse again, because they are invalid or banned.
    pub(crate) refused_addresses: BTreeSet<Address>,
    /// True if nothing prevented the plan from being applied.
    pub(crate) is_complete: bool,
}

/// The result of a plan that has nothing to apply.
impl Default for ListResult {
    fn default() -> Self {
        Self {
            added: 0,
            removed: 0,
            moved: 0,
            not_moved: BTreeSet::new(),
            refused: 0,
            refused_addresses: BTreeSet::new(),
            is_complete: true,
        }
    }
}

impl From<&Applied> for ListResult {
    fn from(applied: &Applied) -> Self {
        let is_complete = applied.stopped.is_none()
            && !applied.has_open_writes()
            && applied.postponed + applied.waiting_removals + applied.not_removed == 0;
        Self {
            added: applied.subscribed,
            removed: applied.unsubscribed,
            moved: applied.moved,
            not_moved: applied.not_moved.clone(),
            refused: applied.rejected.total(),
            refused_addresses: applied.refused_addresses.clone(),
            is_complete,
        }
    }
}

impl ListEntry {
    /// Notes what this run found, before the list is planned.
    pub(crate) fn found(&mut self, target: &Target, people: &People, roster: &Roster, now: u64) {
        let wanted: HashSet<&Address> = people
            .members_of(target)
            .into_iter()
            .filter_map(|member| match people.status(member) {
                MemberStatus::Member { address, .. } => Some(address),
                _ => None,
            })
            .collect();
        let is_only_kept = |address: &Address| target.keep.contains(address) && !wanted.contains(address);
        let base = roster.iter().filter(|address| !is_only_kept(address)).count();
        if self.groups.is_empty() {
            self.groups.clone_from(&target.groups);
        }
        if base == 0 {
            self.is_adopted = true;
            self.filling_since.get_or_insert(now);
        }
        if self.filling_since.is_some_and(|since| now.saturating_sub(since) > MAX_FILL) {
            self.end_fill(now);
        }
        if people.pass_began == now {
            self.pass_roster = Some(PassRoster { pass_began: now, addresses: roster.iter().cloned().collect() });
        }
        self.unmapped_since = None;
        if target.resubscribes {
            (self.on_list, self.left, self.gone) = Default::default();
        }
        self.left.retain(|address| !roster.contains(address));
        self.refused_moves.retain(|(from, to)| roster.contains(from) && !roster.contains(to));
        let is_gone = |address: &&Address| !roster.contains(address) && !self.left.contains(*address);
        self.gone = self.on_list.iter().flatten().filter(is_gone).cloned().collect();
        self.removed.retain(|_, removed| removed.at + UNDO_PERIOD > now);
        for (address, removed) in &mut self.removed {
            removed.is_gone |= !roster.contains(address);
        }
        self.bases.push((now, base));
        // Keeps one that is at least a day old.
        let old = self.bases.iter().take_while(|(at, _)| *at + DAY <= now).count();
        self.bases.drain(..old.saturating_sub(1));
        // A change after the oldest base has made that base smaller.
        let since = self.bases.first().map_or(now, |(at, _)| *at);
        self.changes.retain(|change| change.at >= since || change.at + DAY > now);
    }

    /// Returns what the plan has to know.
    pub(crate) fn history(&self, target: &Target, pass_began: u64, now: u64) -> History<'_> {
        let is_today = |change: &Change| change.at + DAY > now;
        let is_filled_today = self.filled.is_some_and(|filled| filled + DAY > now);
        let base = self.bases.first().map(|(at, base)| {
            let is_gone = |change: &&Change| change.at >= *at && (change.is_forced || !is_today(change));
            base.saturating_sub(self.changes.iter().filter(is_gone).map(|change| change.removed).sum())
        });
        let unforced = || self.changes.iter().filter(|change| !change.is_forced && is_today(change));
        static NO_ONE: LazyLock<HashSet<Address>> = LazyLock::new(HashSet::new);
        let roster = self.pass_roster.as_ref().filter(|roster| roster.pass_began == pass_began);
        History {
            is_unavailable: false,
            is_adopted: self.is_adopted,
            is_filling: self.filling_since.is_some(),
            has_lost_group: self.groups.iter().any(|group| !target.groups.contains(group)),
            left: self.left.union(&self.gone).cloned().collect(),
            gone: self.gone.len(),
            refused_moves: self.refused_moves.clone(),
            accepted: self.accepted_doubts.clone(),
            today: Today {
                removed: unforced().map(|change| change.removed).sum(),
                added: unforced().map(|change| change.added).sum(),
                moved: unforced().map(|change| change.moved).sum(),
                base: base.filter(|_| !is_filled_today && self.filling_since.is_none()),
            },
            // Without it, no one is known to have been on the list when the pass began.
            pass_roster: Some(roster.map_or(&*NO_ONE, |roster| &roster.addresses)),
        }
    }

    /// Returns the force of this run: the event's, or what is left of an earlier one, and the unknown records that an
    /// earlier one has accepted.
    pub(crate) fn force(&mut self, event: Option<Force>, target: &Target, people: &People, now: u64) -> Option<Force> {
        let members = people.members_of(target);
        let is_unknown =
            |member: &MemberId| members.contains(member) && matches!(people.status(*member), MemberStatus::Unknown);
        let rows: BTreeMap<Uuid, usize> =
            people.groups_of(target).map(|(id, group)| (*id, group.rows_without_id)).collect();
        self.accepted_people.retain(is_unknown);
        self.accepted_rows.retain(|group, accepted| {
            *accepted = (*accepted).min(rows.get(group).copied().unwrap_or_default());
            *accepted > 0
        });
        if let Some(event) = event {
            let Force { joins, leaves, moves, left, .. } = event;
            self.force = Some(KeptForce { since: now, joins, leaves, moves, left });
            let mut room = event.unknown;
            let was_unknown = |member: &MemberId| people.earlier.get(member).is_some_and(|person| person.is_unknown);
            let unknown = members.iter().copied().filter(|member| is_unknown(member) && was_unknown(member));
            for member in unknown.collect::<BTreeSet<_>>() {
                if room > 0 && self.accepted_people.insert(member) {
                    room -= 1;
                }
            }
            for (group, rows) in &rows {
                let accepted = (*rows).min(self.rows_without_id.get(group).copied().unwrap_or_default()).min(room);
                room -= accepted;
                if accepted > 0 {
                    self.accepted_rows.insert(*group, accepted);
                }
            }
        }
        let accepted_rows = self.accepted_rows.iter().map(|(group, accepted)| (*accepted).min(rows[group]));
        let unknown = self.accepted_people.len() + accepted_rows.sum::<usize>();
        self.rows_without_id = rows;
        if self.force.is_none() && unknown == 0 {
            return None;
        }
        let nothing = KeptForce { since: now, joins: 0, leaves: 0, moves: 0, left: 0 };
        let KeptForce { joins, leaves, moves, left, .. } = self.force.unwrap_or(nothing);
        Some(Force { joins, leaves, moves, left, unknown })
    }

    /// Notes what is about to be written, in case this run doesn't live to note what was. `preferences` are those of the
    /// memberships that are about to be removed.
    pub(crate) fn about_to_change(&mut self, plan: &Plan, preferences: BTreeMap<Address, Preferences>, now: u64) {
        self.removed.extend(
            preferences.into_iter().map(|(of, preferences)| (of, Removed { at: now, is_gone: false, preferences })),
        );
        if let Some(on_list) = &mut self.on_list {
            // If they are gone in the next run, the mirror has removed them.
            for address in plan.unsubscribe().into_iter().chain(plan.moving().into_iter().map(|moved| &moved.from)) {
                on_list.remove(address);
            }
        }
        self.changes.retain(|change| change.at != now);
        let (added, removed, moved) = (plan.subscribe().len(), plan.unsubscribe().len(), plan.moving().len());
        self.add_change(added, removed, moved, now);
        self.force_before = self.force;
        let left_again = self.left_again(plan);
        if let Some(force) = &mut self.force {
            force.spend(added, removed, moved, left_again);
        }
    }

    /// Returns the addresses that were on the roster when the pass began, and aren't any more.
    pub(crate) fn gone_in_pass(&self, roster: &Roster, pass_began: u64) -> impl Iterator<Item = &Address> {
        let of_pass = self.pass_roster.iter().filter(move |of| of.pass_began == pass_began);
        of_pass.flat_map(|of| &of.addresses).filter(|address| !roster.contains(address))
    }

    /// Returns what the people with removed memberships had chosen, of those who are on the list again.
    pub(crate) fn to_restore(&self, plan: &Plan, roster: &Roster) -> Vec<(Address, Preferences)> {
        let joins: HashSet<&Address> = plan.subscribe().into_iter().map(|subscriber| &subscriber.address).collect();
        let leaves: HashSet<&Address> = plan.unsubscribe().into_iter().collect();
        let is_back = |(address, removed): &(&Address, &Removed)| {
            let is_subscribed = roster.contains(address) && !leaves.contains(*address);
            joins.contains(*address) || (removed.is_gone && is_subscribed)
        };
        let back = self.removed.iter().filter(|_| plan.is_sound()).filter(is_back);
        back.map(|(address, removed)| (address.clone(), removed.preferences.clone())).collect()
    }

    /// Notes that what a person had chosen was restored.
    pub(crate) fn restored(&mut self, address: &Address) {
        self.removed.remove(address);
    }

    /// Notes what this run did to a list with this roster.
    pub(crate) fn changed(
        &mut self,
        target: &Target,
        roster: &Roster,
        plan: &Plan,
        pass_began: u64,
        result: &ListResult,
        now: u64,
    ) {
        let left_again = self.left_again(plan);
        if !target.resubscribes && !plan.is_list_replaced() {
            self.note_who_is_on_the_list(roster, plan, result);
        }
        // A new address that failed for another reason may join next time, and the former one must not leave before that.
        let refused = plan.moving().into_iter().filter(|moved| result.refused_addresses.contains(&moved.to.address));
        self.refused_moves.extend(refused.map(|moved| (moved.from.clone(), moved.to.address.clone())));
        self.force = self.force_before.take().or(self.force);
        self.changes.retain(|change| change.at != now);
        self.add_change(result.added, result.removed, result.moved, now);
        let is_complete = plan.is_pass_complete();
        if self.filling_since.is_some()
            && is_complete
            && result.is_complete
            && plan.joins.len() <= result.added + result.refused
        {
            self.end_fill(now);
        }
        // A run that only adds adopts nothing.
        let leaves_all = plan.is_sound() && plan.withheld() == plan.stuck();
        let is_forced = self.force.is_some() && !target.is_add_only && leaves_all && result.not_moved.is_empty();
        if is_complete && result.is_complete && (is_forced || plan.knows_everyone_and_finds_no_leaver()) {
            self.is_adopted = true;
        }
        if plan.has_ended_doubt() {
            self.accepted_doubts = plan.causes.clone();
            self.groups.clone_from(&target.groups);
        } else {
            // A cause that is gone is no longer accepted.
            self.accepted_doubts.retain(|doubt| plan.causes.contains(doubt));
            self.groups.extend(&target.groups);
        }
        if let Some(force) = &mut self.force {
            force.spend(result.added, result.removed, result.moved, left_again);
            let is_over = is_complete && force.since <= pass_began;
            if is_over || force.joins + force.leaves + force.moves + force.left == 0 {
                self.force = None;
            }
        }
    }

    /// Returns the number of addresses that join although they left by themselves.
    fn left_again(&self, plan: &Plan) -> usize {
        let has_left = |address: &Address| self.left.contains(address) || self.gone.contains(address);
        plan.subscribe().into_iter().filter(|subscriber| has_left(&subscriber.address)).count()
    }

    fn note_who_is_on_the_list(&mut self, roster: &Roster, plan: &Plan, result: &ListResult) {
        self.left.append(&mut self.gone);
        let joins: HashSet<&Address> = plan.subscribe().into_iter().map(|subscriber| &subscriber.address).collect();
        self.left.retain(|address| !joins.contains(address));
        if plan.is_pass_complete() {
            // A record that no longer wants the address has changed.
            self.left.retain(|address| plan.left.binary_search(address).is_ok());
        }
        let mut moving = plan.moving();
        moving.retain(|moved| !result.not_moved.contains(&moved.from));
        let gone: HashSet<&Address> =
            plan.unsubscribe().into_iter().chain(moving.iter().map(|moved| &moved.from)).collect();
        let mut on_list: HashSet<Address> = roster.iter().filter(|address| !gone.contains(*address)).cloned().collect();
        if result.is_complete && result.refused == 0 {
            on_list.extend(joins.into_iter().cloned());
            on_list.extend(moving.into_iter().map(|moved| moved.to.address.clone()));
        }
        self.on_list = Some(on_list);
    }

    fn add_change(&mut self, added: usize, removed: usize, moved: usize, now: u64) {
        let added = if self.filling_since.is_some() { 0 } else { added };
        if added + removed + moved > 0 {
            self.changes.push(Change { at: now, removed, moved, added, is_forced: self.force.is_some() });
        }
    }

    fn end_fill(&mut self, now: u64) {
        self.filling_since = None;
        self.filled = Some(now);
    }
}

shared::unprintable!(ListEntry);
