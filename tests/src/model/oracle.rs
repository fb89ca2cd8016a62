//! The oracles: what one run, and a series of runs with the same contents of Novi, may do to a list.

use std::collections::{BTreeMap, BTreeSet};

use super::config::ListConfig;
use super::judge::{Contents, Force, Judgment, Verdict, growth_limit, judge, move_limit, removal_limit};
use super::memory::{DayChange, Memory};
use super::tally::Tally;

/// The circumstances of a run.
#[derive(Clone, Copy, Default)]
pub(super) struct Circumstances {
    /// False if something in Novi may have been unreadable.
    pub(super) is_novi_readable: bool,
    /// False if a request to Mailman may have failed.
    pub(super) is_mailman_well: bool,
    /// False if the run was killed, disturbed or short of time.
    pub(super) is_undisturbed: bool,
    /// True if passes may take several runs, so that removals depend on what earlier runs have read.
    pub(super) has_long_passes: bool,
    /// True unless there is a ledger that can't be opened.
    pub(super) is_ledger_readable: bool,
    /// True if the run may write to the list.
    pub(super) may_write: bool,
    /// The time of the run.
    pub(super) now: u64,
    /// The number of concurrent instances.
    pub(super) instances: usize,
}

impl Circumstances {
    /// True if the run can read everyone. With a ledger, a list is otherwise compared with what earlier runs read.
    pub(super) fn reads_everyone(self) -> bool {
        self.knows_everyone() && self.is_undisturbed
    }

    /// True if nothing keeps the run from reading everyone but an end of its time.
    pub(super) fn knows_everyone(self) -> bool {
        self.is_novi_readable && !self.has_long_passes
    }

    /// True if nothing keeps the run from doing exactly what the rules say.
    pub(super) fn is_clean(self) -> bool {
        self.is_novi_readable && self.is_mailman_well && self.is_undisturbed && self.instances == 1
    }
}

/// A mapped list before a run, as the model sees it.
pub(super) struct Expectation<'a> {
    pub(super) config: &'a ListConfig,
    pub(super) contents: Contents,
    pub(super) judgment: Judgment,
    pub(super) force: Option<Force>,
    /// False if it isn't clear how many unknown records the force accepts.
    pub(super) is_force_clear: bool,
    /// What the ledger may remember, if there is one.
    memory: Option<&'a Memory>,
    /// The former and the present addresses of people whose membership may move.
    changed_addresses: BTreeSet<(String, String)>,
}

impl<'a> Expectation<'a> {
    pub(super) fn new(
        config: &'a ListConfig,
        contents: Contents,
        roster: &BTreeSet<String>,
        is_config_in_doubt: bool,
        force: Option<Force>,
    ) -> Self {
        let judgment = judge(config, &contents, roster, is_config_in_doubt, force);
        Self {
            config,
            contents,
            judgment,
            force,
            is_force_clear: true,
            memory: None,
            changed_addresses: BTreeSet::new(),
        }
    }

    /// Adds what the ledger may remember. It includes the force of this run.
    pub(super) fn with_memory(mut self, memory: &'a Memory, changed_addresses: BTreeSet<(String, String)>) -> Self {
        let judgment = &mut self.judgment;
        // A former address that moves doesn't leave, and a new one doesn't join.
        let leaving = judgment.leaves.iter().filter(|address| !changed_addresses.iter().any(|(of, _)| of == *address));
        let joining = judgment.joins.iter().filter(|address| !changed_addresses.iter().any(|(_, to)| to == *address));
        let (leaving, joining) = (leaving.count(), joining.count());
        let base = judgment.base.max(memory.largest_roster());
        let excess = leaving.saturating_sub(memory.force.leaves);
        let is_everyone = leaving >= judgment.base && self.config.max_removal_percent < 100;
        judgment.too_many_leave = excess > 0 && (is_everyone || excess > move_limit(self.config, base));
        judgment.too_many_join = judgment.base > 0
            && !memory.may_be_filling
            && joining.saturating_sub(memory.force.joins) > growth_limit(self.config, base);
        let is_forced = memory.force != Force::default();
        (self.memory, self.changed_addresses, self.force) =
            (Some(memory), changed_addresses, is_forced.then_some(memory.force));
        self
    }

    /// Returns the number of addresses that the limits are at most a percentage of.
    fn limit_base(&self) -> usize {
        self.judgment.base.max(self.memory.map_or(0, Memory::largest_roster))
    }

    /// Returns what unforced runs did in the last 24 hours, if a ledger tells.
    fn today(&self, is_ledger_readable: bool) -> DayChange {
        self.memory.filter(|_| is_ledger_readable).map_or_else(DayChange::default, Memory::today)
    }

    /// True if growth is judged.
    fn has_growth_limit(&self) -> bool {
        self.judgment.base > 0 && self.memory.is_none_or(|memory| !memory.may_be_filling)
    }

    /// True if a force may have accepted a doubt.
    pub(super) fn may_accept_doubt(&self) -> bool {
        self.force.is_some() || self.memory.is_some_and(|memory| memory.may_accept_doubt)
    }

    /// True if this membership may move from one address to another.
    fn may_move(&self, from: &String, to: &String, knows_everyone: bool) -> bool {
        let Contents { wanted, untouched, .. } = &self.contents;
        self.changed_addresses.contains(&(from.clone(), to.clone()))
            && !self.config.keep.contains(from)
            && (!knows_everyone || !(wanted.contains(from) || untouched.contains(from) || untouched.contains(to)))
    }

    /// Returns the roster after a run that nothing disturbs.
    fn roster_after(&self, before: &BTreeSet<String>, banned: &BTreeSet<String>) -> BTreeSet<String> {
        let Judgment { joins, removals, verdict, .. } = &self.judgment;
        if *verdict != Verdict::Applied {
            return before.clone();
        }
        let stays = before.difference(removals).cloned();
        stays.chain(joins.difference(banned).cloned()).collect()
    }

    /// Returns the status after a run that nothing disturbs.
    fn status_after(&self, banned: &BTreeSet<String>, is_dry_run: bool) -> &'static str {
        let Judgment { joins, is_in_doubt, verdict, .. } = &self.judgment;
        let is_refused = !is_dry_run && !joins.is_disjoint(banned);
        match verdict {
            Verdict::Blocked => "blocked",
            Verdict::Held => "partial",
            Verdict::Applied if *is_in_doubt || self.contents.unreadable.count() > 0 => "partial",
            Verdict::Applied if self.contents.has_oddity || is_refused => "partial",
            Verdict::Applied => "ok",
        }
    }
}

/// What a run did to a list.
pub(super) struct Change<'a> {
    pub(super) before: &'a BTreeMap<String, String>,
    pub(super) after: &'a BTreeMap<String, String>,
    /// The status of the list, unless the run was killed or didn't concern the list.
    pub(super) status: Option<&'a str>,
    /// The addresses that requests of earlier runs may have added or removed during this run.
    pub(super) late: &'a BTreeSet<String>,
    /// The addresses that Mailman rejects.
    pub(super) banned: &'a BTreeSet<String>,
    /// The addresses that Mailman fails for.
    pub(super) poisoned: &'a BTreeSet<String>,
    /// The addresses that were on the list at any time.
    pub(super) former: &'a BTreeSet<String>,
    /// True if the mirror has a ledger, so that memberships may move.
    pub(super) has_ledger: bool,
}

impl Change<'_> {
    fn rosters(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        (self.before.values().cloned().collect(), self.after.values().cloned().collect())
    }

    /// Returns the former and the new addresses of the memberships that moved.
    pub(super) fn moved(&self) -> BTreeSet<(String, String)> {
        let pairs = self.before.iter().filter_map(|(id, from)| Some((from, self.after.get(id)?)));
        let moved = pairs.filter(|(from, to)| self.has_ledger && from != to);
        moved
            .filter(|(from, to)| !self.late.contains(*from) && !self.late.contains(*to))
            .map(|(from, to)| (from.clone(), to.clone()))
            .collect()
    }

    /// Returns the addresses that joined, except those that an earlier run may have added.
    pub(super) fn joined(&self) -> BTreeSet<String> {
        let (before, after) = self.rosters();
        let moved: BTreeSet<String> = self.moved().into_iter().map(|(_, to)| to).collect();
        let joined = after.difference(&before).filter(|address| !self.late.contains(*address));
        joined.filter(|address| !moved.contains(*address)).cloned().collect()
    }

    /// Returns the addresses of the memberships that ended. An address that was removed and added again has another
    /// membership.
    pub(super) fn left(&self) -> BTreeSet<String> {
        let ended = self.before.iter().filter(|(id, address)| self.after.get(*id) != Some(*address));
        let moved: BTreeSet<String> = self.moved().into_iter().map(|(from, _)| from).collect();
        ended
            .map(|(_, address)| address.clone())
            .filter(|address| !self.late.contains(address) && !moved.contains(address))
            .collect()
    }

    fn duplicates(&self) -> usize {
        let (before, after) = self.rosters();
        (self.after.len() - after.len()).saturating_sub(self.before.len() - before.len())
    }
}

/// Checks that a list that the run didn't concern is unchanged.
pub(super) fn check_unchanged(change: &Change<'_>) -> Vec<String> {
    let (joined, left, moved) = (change.joined(), change.left(), change.moved());
    if joined.is_empty() && left.is_empty() && moved.is_empty() {
        return Vec::new();
    }
    vec![format!("was changed, but should not have been: {joined:?} joined, {left:?} left, {moved:?} moved")]
}

/// Checks what a run did to a mapped list.
pub(super) fn check_run(
    expectation: &Expectation<'_>,
    change: &Change<'_>,
    circumstances: Circumstances,
    tally: &mut Tally,
) -> Vec<String> {
    let Expectation { config, contents, judgment, .. } = expectation;
    let force = expectation.force.unwrap_or_default();
    let (joined, left, moved) = (change.joined(), change.left(), change.moved());
    let mut violations = Vec::new();
    if !circumstances.may_write || change.status == Some("blocked") {
        violations.extend(check_unchanged(change));
    }
    // Who may join, and who may leave.
    let may_join = |address: &&String| {
        contents.wanted.contains(*address)
            && (!contents.untouched.contains(*address) || !circumstances.knows_everyone())
    };
    let wrongly_added: Vec<&String> = joined.iter().filter(|address| !may_join(address)).collect();
    if !wrongly_added.is_empty() {
        tally.wrongly_added += wrongly_added.len();
        violations.push(format!("gained {wrongly_added:?}"));
    }
    let may_move = |(from, to): &&(String, String)| expectation.may_move(from, to, circumstances.knows_everyone());
    let wrongly_moved: Vec<&(String, String)> = moved.iter().filter(|moved| !may_move(moved)).collect();
    if !wrongly_moved.is_empty() {
        tally.wrongly_added += wrongly_moved.len();
        violations.push(format!("moved {wrongly_moved:?}"));
    }
    let is_forced = expectation.may_accept_doubt();
    let may_leave = |address: &&String| {
        if circumstances.has_long_passes {
            // See `Readings::reason_to_stay`.
            let has_rows_without_id = contents.unreadable.rows.values().any(|rows| *rows > 0);
            let is_certain = !judgment.is_in_doubt && (!has_rows_without_id || contents.opted_out.contains(*address));
            return config.removals && !config.keep.contains(*address) && (is_forced || is_certain);
        }
        let leavers = if is_forced { &judgment.leaves } else { &judgment.removals };
        // If the record that wants the address can't be read, one that has opted out decides.
        leavers.contains(*address) || (!circumstances.is_novi_readable && contents.opted_out.contains(*address))
    };
    let wrongly_removed: Vec<&String> = left.iter().filter(|address| !may_leave(address)).collect();
    // A force accepts so many records that a fault makes unreadable, even if their people then leave.
    let accepted = if circumstances.is_novi_readable { 0 } else { force.unknown };
    if wrongly_removed.len() > accepted {
        tally.wrongly_removed += wrongly_removed.len();
        violations.push(format!("lost {wrongly_removed:?}"));
    }
    if change.duplicates() > 0 {
        tally.duplicates += change.duplicates();
        violations.push(format!("has {} new duplicate memberships", change.duplicates()));
    }
    // How many.
    let is_changed = !joined.is_empty() || !left.is_empty() || !moved.is_empty();
    if is_changed && judgment.too_many_leave && !circumstances.has_long_passes {
        violations.push(format!(
            "was changed ({} joined, {} left), although {} of {} would leave",
            joined.len(),
            left.len(),
            judgment.leaves.len(),
            judgment.base
        ));
    }
    if is_changed && judgment.too_many_join && config.resubscribes && circumstances.knows_everyone() {
        violations.push(format!(
            "was changed ({} joined, {} left), although {} would join a list of {}",
            joined.len(),
            left.len(),
            judgment.joins.len(),
            judgment.base
        ));
    }
    if is_changed && contents.has_missing_group && circumstances.is_novi_readable {
        violations.push("was changed, although a group is missing".to_owned());
    }
    let base = expectation.limit_base();
    let today = expectation.today(circumstances.is_ledger_readable);
    let has_growth_limit = expectation.has_growth_limit();
    for (verb, count, limit, before, accepted) in [
        (
            "gained",
            if has_growth_limit { joined.len() } else { 0 },
            growth_limit(config, base),
            today.joined,
            force.joins,
        ),
        ("lost", left.len(), removal_limit(config, base), today.left, force.leaves),
        ("moved", moved.len(), move_limit(config, base), today.moved, force.moves),
    ] {
        // What exceeds a force is judged by the limits of a day.
        let most = accepted + (limit * circumstances.instances).saturating_sub(before);
        if count > most {
            violations.push(format!("{verb} {count} of {}, after {before} today, of at most {most}", judgment.base));
        }
    }
    violations.extend(check_status(expectation, change, circumstances));
    violations
}

/// Checks that the status tells the truth, and that a clean run did exactly what the rules say.
fn check_status(expectation: &Expectation<'_>, change: &Change<'_>, circumstances: Circumstances) -> Vec<String> {
    let Expectation { config, contents, judgment, is_force_clear, .. } = expectation;
    let unknown = contents.unreadable.count();
    let (before, after) = change.rosters();
    let mut violations = Vec::new();
    let is_ok_by_novi = expectation.memory.is_none() || circumstances.reads_everyone();
    if change.status == Some("ok") && circumstances.may_write && is_ok_by_novi {
        let has_to_join = |address: &&String| {
            !contents.untouched.contains(*address) && (config.resubscribes || !change.former.contains(*address))
        };
        let lacking: Vec<&String> = contents.wanted.difference(&after).filter(has_to_join).collect();
        let belongs =
            |address: &String| contents.wanted.contains(address) || config.keep.contains(address) || !config.removals;
        let extra: Vec<&String> = after.iter().filter(|address| !belongs(address)).collect();
        if !lacking.is_empty() || !extra.is_empty() {
            violations.push(format!("is ok, but lacks {lacking:?} and has {extra:?}"));
        }
        let is_in_doubt = judgment.is_in_doubt && !expectation.may_accept_doubt();
        if unknown > 0 || contents.has_oddity || is_in_doubt {
            violations.push(format!(
                "is ok, but has {unknown} unknown records, {} oddities, and {} in doubt",
                if contents.has_oddity { "some" } else { "no" },
                if is_in_doubt { "is" } else { "isn't" }
            ));
        }
    }
    // A ledger may make the mirror do less.
    if expectation.memory.is_some() {
        return violations;
    }
    if !circumstances.is_clean() || !change.late.is_empty() || !is_force_clear {
        return violations;
    }
    if !change.poisoned.is_empty() {
        // Removals don't wait for addresses that Mailman always fails for.
        let remaining: Vec<&String> = judgment.removals.intersection(&after).collect();
        if circumstances.may_write && judgment.verdict == Verdict::Applied && !remaining.is_empty() {
            violations.push(format!("still has {remaining:?}, while Mailman only fails for other addresses"));
        }
    } else {
        let is_dry_run = !circumstances.may_write;
        let expected = if is_dry_run { before.clone() } else { expectation.roster_after(&before, change.banned) };
        if after != expected {
            violations.push(format!(
                "lacks {:?} and has {:?} after an undisturbed run: {} of {} leave, {} join, {unknown} unknown, {:?}",
                expected.difference(&after).collect::<Vec<_>>(),
                after.difference(&expected).collect::<Vec<_>>(),
                judgment.leaves.len(),
                judgment.base,
                judgment.joins.len(),
                judgment.verdict
            ));
        }
        let status = expectation.status_after(change.banned, is_dry_run);
        if change.status != Some(status) {
            violations.push(format!(
                "is {}, but should be {status} after an undisturbed run: {} of {} leave, {} join, {unknown} unknown",
                change.status.unwrap_or("not reported"),
                judgment.leaves.len(),
                judgment.base,
                judgment.joins.len(),
            ));
        }
    }
    violations
}

/// A series of runs during which neither what Novi says nor the mappings change, and no one else changes the list.
pub(super) struct Series {
    growth: Option<usize>,
    removal: usize,
    joined: BTreeSet<String>,
    left: BTreeSet<String>,
}

impl Series {
    /// Begins with the expectation for the first run.
    pub(super) fn new(expectation: &Expectation<'_>) -> Self {
        let Expectation { config, judgment, .. } = expectation;
        // Each leaver may account for one unknown person, who then turns out to join.
        let growth = growth_limit(config, expectation.limit_base()) + judgment.leaves.len();
        Self {
            growth: expectation.has_growth_limit().then_some(growth),
            removal: removal_limit(config, expectation.limit_base()),
            joined: BTreeSet::new(),
            left: BTreeSet::new(),
        }
    }

    /// Adds what a run did, and checks the sums.
    pub(super) fn add(&mut self, change: &Change<'_>) -> Vec<String> {
        self.joined.extend(change.joined());
        self.left.extend(change.left());
        let mut violations = Vec::new();
        if let Some(growth) = self.growth.filter(|growth| self.joined.len() > *growth) {
            let joined = self.joined.len();
            violations.push(format!("gained {joined} of at most {growth} while Novi said the same"));
        }
        if self.left.len() > self.removal {
            let (left, removal) = (self.left.len(), self.removal);
            violations.push(format!("lost {left} of at most {removal} while Novi said the same"));
        }
        violations
    }
}
