//! What the ledger may remember about a list, as far as it makes the mirror do more than it would do without, and what it
//! must remember of the last day.
//!
//! The size of the roster, a fill, a force and an accepted doubt are upper bounds: a ledger may always remember less of them.
//! The changes of a day are a lower bound.

use std::collections::BTreeSet;

use shared::time::DAY;

use super::config::ListConfig;
use super::judge::Force;

/// How far the mirror's time may differ from the model's, in seconds.
pub(super) const TOLERANCE: u64 = 600;

/// What the ledger may remember about a list.
#[derive(Clone, Default)]
pub(super) struct Memory {
    /// The rosters that runs have found.
    rosters: Vec<FoundRoster>,
    /// The index of the first one that the limits of a day may refer to: those of the last day, and those back to one that
    /// the ledger certainly remembers.
    first_of_day: usize,
    /// What unforced runs did.
    changes: Vec<DayChange>,
    /// True if the list may be being filled, so that its growth isn't judged.
    pub(super) may_be_filling: bool,
    /// What may be left of earlier forces.
    pub(super) force: Force,
    /// The time of the last force.
    forced: u64,
    /// What the last run may have accepted.
    pub(super) force_of_run: Force,
    /// True if a force may have accepted a doubt, which then lasts until its cause changes.
    pub(super) may_accept_doubt: bool,
}

/// A roster that a run has found.
#[derive(Clone)]
struct FoundRoster {
    /// The time of the run.
    at: u64,
    addresses: BTreeSet<String>,
    /// True if the ledger certainly remembers it.
    is_remembered: bool,
}

/// What one unforced run did.
#[derive(Clone, Copy, Default)]
pub(super) struct DayChange {
    /// The time of the run.
    pub(super) at: u64,
    pub(super) left: usize,
    pub(super) moved: usize,
    /// Zero if the list may have been being filled.
    pub(super) joined: usize,
}

impl Memory {
    /// Notes what a run finds. `is_remembered` if the ledger certainly remembers it.
    pub(super) fn found(
        &mut self,
        now: u64,
        config: &ListConfig,
        roster: &BTreeSet<String>,
        force: Force,
        is_remembered: bool,
    ) {
        self.rosters.push(FoundRoster { at: now, addresses: roster.clone(), is_remembered });
        let is_old = |roster: &FoundRoster| roster.is_remembered && roster.at + DAY + TOLERANCE <= now;
        self.first_of_day = self.rosters.iter().rposition(is_old).unwrap_or_default();
        self.changes.retain(|change| change.at + DAY > now + TOLERANCE);
        self.may_be_filling |= roster.is_subset(&config.keep);
        if force != Force::default() {
            self.may_accept_doubt = true;
            self.force = self.force.max(force);
            self.forced = now;
        }
        self.force_of_run = self.force;
    }

    /// Returns the largest roster that the limits of a day may refer to.
    pub(super) fn largest_roster(&self) -> usize {
        self.rosters[self.first_of_day..].iter().map(|roster| roster.addresses.len()).max().unwrap_or_default()
    }

    /// True if a run after `since` and before `until` found this address on the roster.
    pub(super) fn has_found(&self, address: &str, since: u64, until: u64) -> bool {
        let of_period = self.rosters.iter().filter(|roster| since < roster.at && roster.at < until);
        of_period.into_iter().any(|roster| roster.addresses.contains(address))
    }

    /// Returns the sums of what unforced runs of the last day did.
    pub(super) fn today(&self) -> DayChange {
        self.changes.iter().fold(DayChange::default(), |sum, change| DayChange {
            at: 0,
            left: sum.left + change.left,
            moved: sum.moved + change.moved,
            joined: sum.joined + change.joined,
        })
    }

    /// Notes what an unforced run did.
    pub(super) fn changed(&mut self, change: DayChange) {
        self.changes.push(change);
    }

    /// Notes the status that a run reported which completed a pass. `pass_began_after` is a time before the pass began.
    pub(super) fn completed_pass(&mut self, status: &str, pass_began_after: u64) {
        // Then every fill has ended, and nothing is unknown.
        if status == "ok" {
            self.may_be_filling = false;
            if pass_began_after >= self.forced {
                self.force = Force::default();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_count_for_a_day() {
        let mut memory = Memory::default();
        let change = DayChange { at: 1_000, left: 2, moved: 0, joined: 3 };
        let roster = BTreeSet::from(["ann@mail.example.org".to_owned()]);
        let find =
            |memory: &mut Memory, now| memory.found(now, &ListConfig::default(), &roster, Force::default(), true);
        find(&mut memory, 1_000);
        memory.changed(change);
        find(&mut memory, 1_000 + 80_000);
        assert_eq!((memory.today().left, memory.today().joined, memory.largest_roster()), (2, 3, 1));
        find(&mut memory, 1_000 + 86_400);
        assert_eq!(memory.today().left, 0);
        let has_found = |since, until| memory.has_found("ann@mail.example.org", since, until);
        assert!(
            has_found(999, 1_001) && !has_found(1_000, 81_000) && !memory.has_found("bob@mail.example.org", 0, 81_001)
        );
    }
}
