//! An independent implementation of the rules of contract 5.3 that decide if a plan is applied. It shares no code with
//! the mirror.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::config::ListConfig;

/// What can't be read of a list's groups, even without any fault.
#[derive(Clone, Default)]
pub(super) struct Unreadable {
    /// The people with records that can't be read.
    pub(super) people: BTreeSet<Uuid>,
    /// The number of rows without an id, by group.
    pub(super) rows: BTreeMap<Uuid, usize>,
}

impl Unreadable {
    /// Returns the number of people and rows.
    pub(super) fn count(&self) -> usize {
        self.people.len() + self.rows.values().sum::<usize>()
    }

    /// Returns how much of this could not be read before either.
    fn count_since(&self, before: &Self) -> usize {
        let rows = self.rows.iter().map(|(group, rows)| *rows.min(before.rows.get(group).unwrap_or(&0)));
        self.people.intersection(&before.people).count() + rows.sum::<usize>()
    }
}

/// The meaning of a list's groups, as Novi tells it.
#[derive(Clone, Default)]
pub(super) struct Contents {
    /// Addresses that belong on the list.
    pub(super) wanted: BTreeSet<String>,
    /// Addresses that are neither added nor removed.
    pub(super) untouched: BTreeSet<String>,
    /// Addresses of records that have opted out.
    pub(super) opted_out: BTreeSet<String>,
    /// Addresses of records that are inactive or have opted out, if more than one has the address.
    pub(super) shared: BTreeSet<String>,
    pub(super) unreadable: Unreadable,
    /// True if a record hides a field, or has an `Email` that isn't one valid address.
    pub(super) has_oddity: bool,
    /// True if Novi doesn't have one of the groups.
    pub(super) has_missing_group: bool,
    /// True if there is at least one empty group that isn't allowed to be empty.
    pub(super) has_suspicious_group: bool,
    /// True if all groups are empty.
    pub(super) is_empty: bool,
}

/// The decision about a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing changes, and an alarm says so.
    Blocked,
    /// Nothing changes, until what is unknown is known.
    Held,
    /// The additions are made, and those removals that are justified.
    Applied,
}

/// The numbers of an event's `force` for a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Force {
    pub(super) joins: usize,
    pub(super) leaves: usize,
    pub(super) moves: usize,
    pub(super) left: usize,
    pub(super) unknown: usize,
}

impl Force {
    /// Limits the force to what the run before could not read either.
    pub(super) fn limit(self, unreadable: &Unreadable, before: &Unreadable) -> Self {
        Self { unknown: self.unknown.min(unreadable.count_since(before)), ..self }
    }

    /// Returns the larger one of each number.
    pub(super) fn max(self, other: Self) -> Self {
        Self {
            joins: self.joins.max(other.joins),
            leaves: self.leaves.max(other.leaves),
            moves: self.moves.max(other.moves),
            left: self.left.max(other.left),
            unknown: self.unknown.max(other.unknown),
        }
    }
}

/// The judgment about a list.
pub(super) struct Judgment {
    /// The number of addresses that the limits are a percentage of.
    pub(super) base: usize,
    /// The addresses that join if the plan is applied.
    pub(super) joins: BTreeSet<String>,
    /// The addresses that don't belong on the list.
    pub(super) leaves: BTreeSet<String>,
    /// The addresses that leave if the plan is applied.
    pub(super) removals: BTreeSet<String>,
    /// True if the list's removals are withheld for another reason than unreadable data, and no force lifts that.
    pub(super) is_in_doubt: bool,
    /// True if so many addresses leave that the list stays as it is, whatever else can be read.
    pub(super) too_many_leave: bool,
    /// True if so many addresses join that the list stays as it is.
    pub(super) too_many_join: bool,
    pub(super) verdict: Verdict,
}

/// The maximum number of addresses that may leave in one run.
pub(super) fn removal_limit(list: &ListConfig, base: usize) -> usize {
    let floor = if base < 10 { 1 } else { 3 };
    let limit = floor.max(base * list.max_removal_percent / 100);
    // Everyone at once only leaves if all percent may.
    if list.max_removal_percent == 100 { limit.max(base) } else { limit.min(base.saturating_sub(1)) }
}

/// The maximum number of memberships that may move in one run.
pub(super) fn move_limit(list: &ListConfig, base: usize) -> usize {
    let floor = if base < 10 { 1 } else { 3 };
    floor.max(base * list.max_removal_percent / 100)
}

/// The maximum number of addresses that may join in one run, if the list isn't empty.
pub(super) fn growth_limit(list: &ListConfig, base: usize) -> usize {
    5.max(base * list.max_growth_percent / 100)
}

/// Judges a list, all of whose records and groups can be read, except those that `contents` counts as unknown.
pub(super) fn judge(
    list: &ListConfig,
    contents: &Contents,
    roster: &BTreeSet<String>,
    is_config_in_doubt: bool,
    force: Option<Force>,
) -> Judgment {
    let Contents { wanted, untouched, .. } = contents;
    let belongs = |address: &&String| wanted.contains(*address) || untouched.contains(*address);
    let strays: BTreeSet<String> = roster.iter().filter(|address| !belongs(address)).cloned().collect();
    let base = roster.len() - strays.intersection(&list.keep).count();
    let joins: BTreeSet<String> =
        wanted.iter().filter(|address| !roster.contains(*address) && !untouched.contains(*address)).cloned().collect();
    let leaves: BTreeSet<String> =
        if list.removals { strays.difference(&list.keep).cloned().collect() } else { BTreeSet::new() };

    // Doubt withholds removals, of which an add-only list has none.
    let is_in_doubt = list.removals
        && (is_config_in_doubt || (contents.has_suspicious_group && !contents.is_empty))
        && force.is_none_or(|force| leaves.len() > force.leaves);
    let force = force.unwrap_or_default();
    let breaks = |count: usize| {
        let excess = count.saturating_sub(force.leaves);
        // A force of fewer doesn't let everyone leave.
        let is_everyone = count >= base && list.max_removal_percent < 100;
        excess >= 1 && (is_everyone || excess > removal_limit(list, base))
    };
    let unknown = contents.unreadable.count().saturating_sub(force.unknown);
    let explained = if is_in_doubt { leaves.len() } else { leaves.len().min(unknown) };
    let too_many_leave = breaks(leaves.len());
    let is_first_fill = base == 0;
    let grows_too_much = |count: usize| !is_first_fill && count.saturating_sub(force.joins) > growth_limit(list, base);
    let too_many_join = grows_too_much(joins.len());
    let unaccounted = unknown.saturating_sub(leaves.len());
    let is_everyone_gone = list.removals && contents.is_empty && base > force.leaves;
    let verdict = if contents.has_missing_group || is_everyone_gone || too_many_join || breaks(leaves.len() - explained)
    {
        Verdict::Blocked
    } else if too_many_leave || grows_too_much(joins.len() + unaccounted) {
        Verdict::Held
    } else {
        Verdict::Applied
    };
    let removals = if is_in_doubt {
        BTreeSet::new()
    } else if unknown > 0 {
        let is_only_opt_out =
            |address: &&String| contents.opted_out.contains(*address) && !contents.shared.contains(*address);
        leaves.iter().filter(is_only_opt_out).cloned().collect()
    } else {
        leaves.clone()
    };
    Judgment { base, joins, leaves, removals, is_in_doubt, too_many_leave, too_many_join, verdict }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(range: std::ops::Range<usize>) -> BTreeSet<String> {
        range.map(|n| format!("m{n}@mail.example.org")).collect()
    }

    fn verdict(wanted: std::ops::Range<usize>, roster: std::ops::Range<usize>, unknown: usize) -> Verdict {
        let unreadable = Unreadable { rows: BTreeMap::from([(Uuid::nil(), unknown)]), ..Unreadable::default() };
        let contents = Contents { wanted: addresses(wanted), unreadable, ..Contents::default() };
        judge(&ListConfig::default(), &contents, &addresses(roster), false, None).verdict
    }

    #[test]
    fn examples_of_the_contract_are_judged_as_it_says() {
        // Six members whose group becomes three of them and 25 others.
        assert_eq!(verdict(3..31, 0..6, 0), Verdict::Blocked);
        // Two members whose group becomes four others and one unreadable record.
        assert_eq!(verdict(10..14, 0..2, 1), Verdict::Held);
        // A list of ten. Its group is exchanged for 25 strangers, one of them unreadable.
        assert_eq!(verdict(10..34, 0..10, 1), Verdict::Blocked);
        // Six on a list, and 25 strangers in its group: 19, 12 and none of them are unreadable.
        assert_eq!(verdict(6..12, 0..6, 19), Verdict::Held);
        assert_eq!(verdict(6..19, 0..6, 12), Verdict::Blocked);
        assert_eq!(verdict(6..31, 0..6, 0), Verdict::Blocked);
        // An empty list is filled, and a list of ten may lose three.
        assert_eq!(verdict(0..800, 0..0, 0), Verdict::Applied);
        assert_eq!(verdict(3..10, 0..10, 0), Verdict::Applied);
        assert_eq!(verdict(4..10, 0..10, 0), Verdict::Blocked);
        assert_eq!(verdict(2..9, 0..9, 0), Verdict::Applied);
        assert_eq!(verdict(0..0, 0..1, 0), Verdict::Blocked);
    }
}
