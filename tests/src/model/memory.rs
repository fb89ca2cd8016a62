//! What the ledger may remember about a list, as far as it makes the mirror do more than it would do without.
//!
//! It is an upper bound: a ledger may always remember less.

use std::collections::BTreeSet;

use super::config::ListConfig;
use super::judge::Force;

/// What the ledger may remember about a list.
#[derive(Clone, Default)]
pub(super) struct Memory {
    /// The largest roster that a run has found. The limits of a day may refer to it.
    pub(super) largest_roster: usize,
    /// True if the list may be being filled, so that its growth isn't judged.
    pub(super) may_be_filling: bool,
    /// What may be left of earlier forces.
    pub(super) force: Force,
    /// True if a force may have accepted a doubt, which then lasts until its cause changes.
    pub(super) may_accept_doubt: bool,
}

impl Memory {
    /// Notes what a run finds.
    pub(super) fn found(&mut self, config: &ListConfig, roster: &BTreeSet<String>, force: Force) {
        self.largest_roster = self.largest_roster.max(roster.len());
        self.may_be_filling |= roster.is_subset(&config.keep);
        self.may_accept_doubt |= force != Force::default();
        self.force = self.force.max(force);
    }

    /// Notes the status that a run reported.
    pub(super) fn reported(&mut self, status: &str) {
        // Then a complete pass has ended every fill and every force, and nothing is unknown.
        if status == "ok" {
            (self.may_be_filling, self.force) = (false, Force::default());
        }
    }
}
