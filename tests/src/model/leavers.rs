//! People who left a list by themselves. If the mapping says so, they aren't added again until Novi says something else of
//! them.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

/// Those who left a list by themselves, as far as the ledger must know them.
#[derive(Clone, Default)]
pub(super) struct Leavers {
    /// The addresses that the ledger knows to be on the list.
    on_list: BTreeSet<String>,
    /// The addresses that left, with those who had them.
    left: BTreeMap<String, BTreeSet<Uuid>>,
}

impl Leavers {
    /// Notes who was on the list before and after a run. `is_known` if the ledger must know that.
    pub(super) fn stayed(&mut self, stayed: BTreeSet<String>, is_known: bool) {
        self.left.retain(|address, _| !stayed.contains(address));
        if is_known {
            self.on_list = stayed;
        } else {
            self.on_list.retain(|address| stayed.contains(address));
        }
    }

    /// Notes that someone left.
    pub(super) fn leaves(&mut self, address: &str, keepers: BTreeSet<Uuid>) {
        if self.on_list.remove(address) {
            self.left.insert(address.to_owned(), keepers);
        }
    }

    /// Notes what Novi says now. `keepers` returns those who may keep an address on the list.
    pub(super) fn published(&mut self, keepers: impl Fn(&str) -> BTreeSet<Uuid>) {
        self.left.retain(|address, before| !before.is_empty() && keepers(address) == *before);
    }

    /// True if this address left.
    pub(super) fn has_left(&self, address: &str) -> bool {
        self.left.contains_key(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_left_is_known_until_the_record_changes() {
        let ann = || BTreeSet::from([Uuid::from_u128(1)]);
        let mut leavers = Leavers::default();
        leavers.leaves("ann", ann());
        assert!(!leavers.has_left("ann"), "no run knows that she was on the list");
        leavers.stayed(BTreeSet::from(["ann".to_owned()]), true);
        leavers.leaves("ann", ann());
        leavers.published(|_| ann());
        assert!(leavers.has_left("ann"));
        leavers.published(|_| BTreeSet::new());
        assert!(!leavers.has_left("ann"));
    }
}
