//! The roster of a list: its members in Mailman.

use std::collections::HashSet;

use crate::address::Address;

/// The members of a list, without its owners, moderators and non-members.
#[derive(Clone, Default)]
pub(crate) struct Roster {
    members: HashSet<Address>,
    /// The addresses with more than one membership. Overlapping subscriptions of one address cause these in Mailman,
    /// and Mailman's own tools fail on them later.
    repeated: HashSet<Address>,
}

impl Roster {
    /// Allocates memory for at least `rows` more members.
    pub(crate) fn reserve(&mut self, rows: usize) {
        self.members.reserve(rows);
    }

    /// Returns the number of distinct addresses.
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn contains(&self, address: &Address) -> bool {
        self.members.contains(address)
    }

    /// Returns the distinct addresses, in arbitrary order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Address> {
        self.members.iter()
    }

    /// Returns the addresses with more than one membership.
    pub(crate) fn repeated(&self) -> impl Iterator<Item = &Address> {
        self.repeated.iter()
    }
}

impl Extend<Address> for Roster {
    fn extend<I: IntoIterator<Item = Address>>(&mut self, rows: I) {
        for row in rows {
            if let Some(repeated) = self.members.replace(row) {
                self.repeated.insert(repeated);
            }
        }
    }
}

shared::unprintable!(Roster);
