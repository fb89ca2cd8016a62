//! The addresses that Mailman may still be writing after a run has ended.

use std::collections::HashMap;
use std::time::SystemTime;

use crate::address::Address;
use crate::mailman::OPEN_WRITE_PERIOD;
use crate::mapping::ListId;

/// The addresses with open writes, for each list. They are not written again until Mailman has certainly finished.
///
/// An instance remembers them for its next runs. Other instances only know the list's lock, so they need a Redis.
#[derive(Default)]
pub(crate) struct OpenWrites {
    /// The time at which Mailman has finished.
    until: HashMap<ListId, HashMap<Address, SystemTime>>,
}

impl OpenWrites {
    /// Adds addresses with writes that may be open for the whole period from `now` on.
    pub(super) fn add<'a>(&mut self, list: &ListId, addresses: impl Iterator<Item = &'a Address>, now: SystemTime) {
        let mut addresses = addresses.map(|address| (address.clone(), now + OPEN_WRITE_PERIOD)).peekable();
        if addresses.peek().is_some() {
            self.until.entry(list.clone()).or_default().extend(addresses);
        }
    }

    /// Removes the writes that Mailman has finished by `now`.
    pub(super) fn expire(&mut self, now: SystemTime) {
        for addresses in self.until.values_mut() {
            addresses.retain(|_, until| *until > now);
        }
        self.until.retain(|_, addresses| !addresses.is_empty());
    }

    /// True if Mailman may still be writing this address.
    pub(super) fn contains(&self, list: &ListId, address: &Address) -> bool {
        self.until.get(list).is_some_and(|addresses| addresses.contains_key(address))
    }
}

shared::unprintable!(OpenWrites);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn open_write_is_remembered_for_its_list_for_six_minutes() {
        let list = |text| ListId::parse(text).unwrap();
        let (a, b) = (list("a.lists.example.org"), list("b.lists.example.org"));
        let (ada, bea) = (Address::new("ada@example.org"), Address::new("bea@example.org"));
        let start = SystemTime::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut open = OpenWrites::default();
        open.add(&a, [&ada].into_iter(), start);
        open.add(&b, [].into_iter(), start);
        open.expire(at(359));
        assert!(open.contains(&a, &ada) && !open.contains(&a, &bea) && !open.contains(&b, &ada));
        open.add(&a, [&bea].into_iter(), at(359));
        open.expire(at(360));
        assert!(!open.contains(&a, &ada) && open.contains(&a, &bea));
        open.expire(at(719));
        assert!(open.until.is_empty());
    }
}
