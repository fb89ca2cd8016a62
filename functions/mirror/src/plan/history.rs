//! What earlier runs saw of one list.

use std::collections::{BTreeSet, HashSet};

use crate::address::Address;
use crate::plan::changes::Doubt;

/// What earlier runs saw of one list. The ledger remembers it. The default is that of a mirror without a ledger, which
/// reads everyone in every run.
#[derive(Clone)]
pub(crate) struct History<'l> {
    /// True if there is a ledger that could not be read or written. No one is removed then.
    pub(crate) is_unavailable: bool,
    /// False if the list had members before the mirror came, and no pass has found yet that they are Novi's.
    pub(crate) is_adopted: bool,
    /// True if the list was empty, and a pass has not yet added everyone.
    pub(crate) is_filling: bool,
    /// True if a group is no longer mapped to this list.
    pub(crate) has_lost_group: bool,
    /// The addresses that left the list by themselves, and don't join again.
    pub(crate) left: BTreeSet<Address>,
    /// The number of addresses that are gone since the last run, although the mirror didn't remove them.
    pub(crate) gone: usize,
    /// The changed addresses that Mailman refuses, each after its former address. The former ones leave.
    pub(crate) refused_moves: BTreeSet<(Address, Address)>,
    /// The doubts that a force has accepted, until their cause changes.
    pub(crate) accepted: BTreeSet<Doubt>,
    pub(crate) today: Today,
    /// The addresses that are known to have been on the roster when the pass began. `None` without a ledger, because the
    /// pass begins with this run then.
    pub(crate) pass_roster: Option<&'l HashSet<Address>>,
}

/// The changes of the last 24 hours that no force has allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Today {
    pub(crate) removed: usize,
    pub(crate) added: usize,
    pub(crate) moved: usize,
    /// The base of 24 hours ago, less what was forced out since. `None` if the present base counts instead.
    pub(crate) base: Option<usize>,
}

impl Default for History<'_> {
    fn default() -> Self {
        Self {
            is_unavailable: false,
            is_adopted: true,
            is_filling: false,
            has_lost_group: false,
            left: BTreeSet::new(),
            gone: 0,
            refused_moves: BTreeSet::new(),
            accepted: BTreeSet::new(),
            today: Today::default(),
            pass_roster: None,
        }
    }
}

shared::unprintable!(History<'_>);
