//! The roster of a list: who its members are, as Mailman says.

use std::collections::HashSet;

use crate::address::Address;

/// The members of a list: not its owners, moderators and non-members.
#[derive(Clone, Default)]
pub(crate) struct Roster {
    members: HashSet<Address>,
    /// Those that are members more than once. Subscriptions of one address that
    /// overlap do that to Mailman, and its own tools fail at it later.
    repeated: HashSet<Address>,
}

impl Roster {
    /// Makes room for so many.
    pub(crate) fn reserve(&mut self, rows: usize) {
        self.members.reserve(rows);
    }

    /// How many addresses are on it, each counted once.
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn contains(&self, address: &Address) -> bool {
        self.members.contains(address)
    }

    /// Its addresses, each once, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Address> {
        self.members.iter()
    }

    /// The addresses that are there more than once.
    pub(crate) fn repeated(&self) -> impl Iterator<Item = &Address> {
        self.repeated.iter()
    }
}

impl Extend<Address> for Roster {
    fn extend<I: IntoIterator<Item = Address>>(&mut self, rows: I) {
        for row in rows {
            if let Some(again) = self.members.replace(row) {
                self.repeated.insert(again);
            }
        }
    }
}

shared::unprintable!(Roster);
