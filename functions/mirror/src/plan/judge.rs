//! The judgement of a plan, from its numbers: it may be applied, is held, or is blocked.

use crate::force::Force;
use crate::mapping::Limits;

/// The result of reading the groups of one list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GroupsEnd {
    /// All of them were read to their ends.
    Complete,
    /// All of them were read, and are empty.
    Empty,
    /// At least one was not read to its end.
    Incomplete,
    /// Novi doesn't have at least one of them.
    Missing,
}

/// The numbers that decide about a plan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// The number of addresses on the roster without those that stay only because of `keep`.
    pub(crate) base: usize,
    /// The number of addresses that would leave if nothing were withheld. Zero if the list is add-only.
    pub(crate) leaving: usize,
    /// The number of addresses that would join.
    pub(crate) joining: usize,
    /// The number of changed addresses with a membership that would move.
    pub(crate) moving: usize,
    /// The number of records that could not be read, and of rows without an id.
    pub(crate) unknown: usize,
    /// The number of people who were not yet read.
    pub(crate) not_yet_read: usize,
    /// The number of rows that are missing from groups that were not read to their ends.
    pub(crate) missing_rows: usize,
    pub(crate) groups: GroupsEnd,
    pub(crate) is_in_doubt: bool,
    /// True if the ledger could not be read or written.
    pub(crate) is_unavailable: bool,
    pub(crate) is_adopted: bool,
    /// True if the list was empty, and isn't filled yet.
    pub(crate) is_filling: bool,
    /// The numbers of addresses that were removed, added and moved in the last 24 hours, not counting forced ones.
    pub(crate) removed_today: usize,
    pub(crate) added_today: usize,
    pub(crate) moved_today: usize,
    /// The number of addresses that are gone since the last run, although the mirror didn't remove them.
    pub(crate) gone: usize,
    /// False if members who left the list by themselves aren't added again.
    pub(crate) resubscribes: bool,
    /// The base that the limits of a day refer to.
    pub(crate) day_base: usize,
    pub(crate) limits: Limits,
}

/// A guard that a plan doesn't pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    MissingGroup,
    EmptyGroups,
    /// Someone would leave a list that had members before the mirror came.
    NotAdopted,
    Everyone,
    Removals,
    Growth,
    /// More addresses would move than the removal limit allows.
    Moves,
    /// More addresses have disappeared from the list than the removal limit allows.
    Gone,
}

/// The removals of a plan that may be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removals {
    /// Everyone who leaves is removed.
    All,
    /// Something is unknown or not yet read. An address only leaves if its only known record says that its member opted
    /// out.
    OptedOut,
    /// The list is in doubt or not adopted, or the ledger isn't available. No one is removed.
    Withheld,
}

/// The decision about a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The plan may be applied.
    Sound(Removals),
    /// The plan may look wrong only because of what is unknown. Neither additions nor removals are applied.
    Held {
        blocks: Vec<Block>,
        /// True if it only waits for people who were not yet read.
        is_waiting: bool,
    },
    /// The plan looks wrong and is not applied.
    Blocked(Vec<Block>),
}

/// `max_growth_percent` doesn't apply to this many additions or fewer.
const GROWTH_FLOOR: usize = 5;

/// Returns the number of removals to which `max_removal_percent` doesn't apply.
fn removal_floor(base: usize) -> usize {
    if base < 10 { 1 } else { 3 }
}

/// Returns the larger of a floor and a percentage.
fn limit(floor: usize, base: usize, percent: u64) -> usize {
    let part = base as u128 * u128::from(percent) / 100;
    floor.max(usize::try_from(part).unwrap_or(usize::MAX))
}

impl Facts {
    /// Judges a plan. A `force` lifts the guards as far as its numbers reach. What exceeds a number is judged by itself.
    pub(crate) fn judge(&self, force: Option<Force>) -> Verdict {
        let blocks = self.blocks(force);
        if !blocks.is_empty() {
            return Verdict::Blocked(blocks);
        }
        let blocks = self.holds(force);
        if !blocks.is_empty() {
            let without_waiting = Self { leaving: self.leaving.saturating_sub(self.not_yet_read), ..*self };
            let still_leaving = without_waiting.breaks_removal_limit(without_waiting.leaving, force);
            let still_growing = self.grows_too_much(self.unknown + self.missing_rows, force);
            let is_waiting = blocks.iter().all(|block| match block {
                Block::Growth => !still_growing,
                _ => still_leaving.is_none(),
            });
            return Verdict::Held { blocks, is_waiting };
        }
        let is_settled = self.is_adopted || self.leaving <= force.unwrap_or_default().leaves;
        Verdict::Sound(if self.is_in_doubt(force) || self.is_unavailable || !is_settled {
            Removals::Withheld
        } else if self.unknown_beyond(force) + self.not_yet_read > 0 || self.groups == GroupsEnd::Incomplete {
            Removals::OptedOut
        } else {
            Removals::All
        })
    }

    /// Returns the smallest force with which nothing of the plan is blocked, held or withheld, as far as a force can
    /// reach: it can't accept people who were not yet read. Returns `None` if it can't reach anything.
    pub(crate) fn sufficient_force(&self) -> Option<Force> {
        if self.groups == GroupsEnd::Missing {
            return None;
        }
        // As long as other people are missing, accepting some of them removes no one.
        let is_readable = self.groups != GroupsEnd::Incomplete && self.not_yet_read == 0;
        // Those can't be accepted.
        let unread = self.not_yet_read + self.missing_rows;
        let needs_joins = |people| self.grows_too_much(people, None) || self.has_unadopted_joins(None);
        let joins = |people| if needs_joins(people) { self.joining } else { 0 };
        // Even if those who were seen may join.
        let seen = Some(Force { joins: joins(unread), ..Force::default() });
        let holds_growth = self.grows_too_much(self.unknown + unread, seen) && !self.grows_too_much(unread, seen);
        let unknown = if (self.leaving > 0 && is_readable) || holds_growth { self.unknown } else { 0 };
        let rest = Self { unknown: self.unknown - unknown, ..*self };
        let needs_leaves = self.is_in_doubt
            || (!self.is_adopted && self.leaving > 0)
            || self.groups == GroupsEnd::Empty
            || rest.breaks_removal_limit(self.leaving, None).is_some();
        Some(Force {
            joins: joins(rest.unknown + unread),
            leaves: if needs_leaves { self.leaving } else { 0 },
            moves: if self.breaks_move_limit(None) { self.moving } else { 0 },
            left: if self.is_replaced(None) { self.gone } else { 0 },
            unknown,
        })
    }

    /// Describes a guard that the plan doesn't pass. `force` is the one that it was judged with.
    pub(crate) fn describe(&self, block: Block, force: Option<Force>) -> String {
        let Self { base, leaving, joining, .. } = *self;
        let Limits { max_removal_percent, max_growth_percent } = self.limits;
        let beyond = |accepted: usize| match force {
            Some(_) => format!(", although force accepts only {accepted}"),
            None => String::new(),
        };
        let accepted = force.unwrap_or_default();
        let today = |changed: usize, what: &str| match changed {
            0 => String::new(),
            _ => format!(", after {changed} {what} in the last 24 hours"),
        };
        match block {
            Block::MissingGroup => "a group_guid that is mapped to this list does not exist in Novi".to_owned(),
            Block::EmptyGroups => {
                format!(
                    "all groups of this list are empty while {base} addresses are subscribed{}",
                    beyond(accepted.leaves)
                )
            }
            Block::NotAdopted => format!(
                "{leaving} of {base} addresses would be unsubscribed{}, and {joining} subscribed, on a list that the \
                 mirror did not fill, and that has not yet been found equal to its groups",
                beyond(accepted.leaves)
            ),
            Block::Gone => format!(
                "{} addresses that were on the list are gone{}, as if it had been made anew or restored",
                self.gone,
                beyond(accepted.left),
            ),
            Block::Everyone => {
                format!("all {base} subscribed addresses would be unsubscribed{}", beyond(accepted.leaves))
            }
            Block::Removals => format!(
                "{leaving} of {base} addresses would be unsubscribed{}{}, more than the larger of {} and \
                 {max_removal_percent} percent (max_removal_percent)",
                beyond(accepted.leaves),
                today(self.removed_today, "removals"),
                removal_floor(self.day_base),
            ),
            Block::Growth => {
                let unread = match self.unexplained_people(self.people_without_records(force)) {
                    0 => String::new(),
                    unread => format!(" and {unread} people who could not be read may be added"),
                };
                format!(
                    "{joining} addresses would be subscribed{unread} to a list of {base}{}{}, more than the larger of \
                     {GROWTH_FLOOR} and {max_growth_percent} percent (max_growth_percent)",
                    beyond(accepted.joins),
                    today(self.added_today, "additions"),
                )
            }
            Block::Moves => format!(
                "the addresses of {} members have changed{}{}, more than the larger of {} and {max_removal_percent} \
                 percent of {base} (max_removal_percent)",
                self.moving,
                beyond(accepted.moves),
                today(self.moved_today, "moves"),
                removal_floor(self.day_base),
            ),
        }
    }

    /// Returns the guards that block the plan.
    fn blocks(&self, force: Option<Force>) -> Vec<Block> {
        if self.groups == GroupsEnd::Missing {
            return vec![Block::MissingGroup];
        }
        let accepted = force.unwrap_or_default();
        let is_explained = self.groups == GroupsEnd::Incomplete || self.is_in_doubt(force);
        let explained = if is_explained { self.leaving } else { self.unknown_beyond(force) + self.not_yet_read };
        let mut blocks = Vec::new();
        if self.groups == GroupsEnd::Empty && self.leaving > accepted.leaves {
            blocks.push(Block::EmptyGroups);
        } else {
            let unexplained = self.leaving.saturating_sub(explained);
            if !self.is_adopted && (unexplained > accepted.leaves || self.has_unadopted_joins(force)) {
                blocks.push(Block::NotAdopted);
            }
            blocks.extend(self.breaks_removal_limit(unexplained, force));
        }
        if self.breaks_growth_limit(self.joining, force) {
            blocks.push(Block::Growth);
        }
        if self.breaks_move_limit(force) {
            blocks.push(Block::Moves);
        }
        if self.is_replaced(force) {
            blocks.push(Block::Gone);
        }
        blocks
    }

    /// Returns the guards that hold a plan that isn't blocked.
    fn holds(&self, force: Option<Force>) -> Vec<Block> {
        let mut blocks: Vec<Block> = self.breaks_removal_limit(self.leaving, force).into_iter().collect();
        if self.grows_too_much(self.people_without_records(force), force) {
            blocks.push(Block::Growth);
        }
        blocks
    }

    /// Returns the guard if as many leavers, without those that `force` accepts, break the limit.
    fn breaks_removal_limit(&self, leavers: usize, force: Option<Force>) -> Option<Block> {
        let percent = self.limits.max_removal_percent;
        let excess = leavers.saturating_sub(force.unwrap_or_default().leaves);
        if excess == 0 {
            None
        } else if leavers >= self.base && percent < 100 {
            Some(Block::Everyone)
        } else {
            (excess + self.removed_today > self.removal_limit()).then_some(Block::Removals)
        }
    }

    /// True if more addresses would move than the limit of removals, not counting those that `force` accepts.
    fn breaks_move_limit(&self, force: Option<Force>) -> bool {
        let excess = self.moving.saturating_sub(force.unwrap_or_default().moves);
        excess > 0 && excess + self.moved_today > self.removal_limit()
    }

    /// True if someone would join a list that isn't adopted. It isn't known who left it by themselves.
    fn has_unadopted_joins(&self, force: Option<Force>) -> bool {
        !self.is_adopted && !self.resubscribes && self.joining > force.unwrap_or_default().joins
    }

    fn removal_limit(&self) -> usize {
        limit(removal_floor(self.day_base), self.day_base, self.limits.max_removal_percent)
    }

    /// True if the list may grow beyond the limit, as `people` without records may join.
    fn grows_too_much(&self, people: usize, force: Option<Force>) -> bool {
        self.breaks_growth_limit(self.joining + self.unexplained_people(people), force)
    }

    /// True if as many joiners, without those that `force` accepts, break the limit. A first fill has none.
    fn breaks_growth_limit(&self, joiners: usize, force: Option<Force>) -> bool {
        let excess = joiners.saturating_sub(force.unwrap_or_default().joins);
        let limit = limit(GROWTH_FLOOR, self.day_base, self.limits.max_growth_percent);
        self.base > 0 && !self.is_filling && excess > 0 && excess + self.added_today > limit
    }

    /// Returns how many people may be in the groups without a record, not counting those that `force` accepts.
    fn people_without_records(&self, force: Option<Force>) -> usize {
        self.unknown_beyond(force) + self.not_yet_read + self.missing_rows
    }

    /// Returns how many of `people` can't be those who leave.
    fn unexplained_people(&self, people: usize) -> usize {
        people.saturating_sub(self.leaving)
    }

    /// Returns the number of unknown records and rows that `force` doesn't accept.
    pub(crate) fn unknown_beyond(&self, force: Option<Force>) -> usize {
        self.unknown.saturating_sub(force.unwrap_or_default().unknown)
    }

    /// True if the list is in doubt. A force ends that if it accepts everyone who leaves. An earlier one that only accepts
    /// unknown records doesn't.
    pub(crate) fn is_in_doubt(&self, force: Option<Force>) -> bool {
        let is_only_unknown =
            |force: Force| force.unknown > 0 && force == Force { unknown: force.unknown, ..Force::default() };
        self.is_in_doubt && force.is_none_or(|force| self.leaving > force.leaves || is_only_unknown(force))
    }

    /// True if more addresses are gone than the removal limit allows, not counting those that `force` lets join again. The
    /// list may have been made anew or restored.
    pub(crate) fn is_replaced(&self, force: Option<Force>) -> bool {
        !self.resubscribes && self.gone.saturating_sub(force.unwrap_or_default().left) > self.removal_limit()
    }
}
