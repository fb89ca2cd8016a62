//! The people behind an address that would leave.

use std::collections::{BTreeSet, HashMap};

use shared::member::MemberId;

use crate::address::Address;
use crate::directory::{MemberStatus, People};
use crate::mapping::Target;

/// The people in a list's groups, by the addresses that they have or had.
pub(super) struct Owners<'p> {
    people: &'p People,
    by_address: HashMap<&'p Address, Vec<MemberId>>,
}

impl<'p> Owners<'p> {
    pub(super) fn new(target: &Target, people: &'p People) -> Self {
        let mut by_address: HashMap<&Address, Vec<MemberId>> = HashMap::new();
        for member in people.members_of(target) {
            for address in people.past_addresses(member) {
                by_address.entry(address).or_default().push(member);
            }
        }
        Self { people, by_address }
    }

    /// Returns the people who have to be read again before an address may leave: those who have or had the address, and
    /// those who share an address with one of them.
    pub(super) fn to_read(&self, address: &Address) -> BTreeSet<MemberId> {
        let of = |address: &Address| self.by_address.get(address).into_iter().flatten().copied();
        let mut owners: BTreeSet<MemberId> = of(address).collect();
        let shared = owners.iter().flat_map(|owner| self.people.status(*owner).addresses());
        let sharing: Vec<MemberId> =
            shared.flat_map(|shared| of(shared).filter(|member| self.may_have(*member, shared))).collect();
        owners.extend(sharing);
        owners.retain(|owner| !self.people.is_read(*owner));
        owners
    }

    fn may_have(&self, member: MemberId, address: &Address) -> bool {
        let status = self.people.status(member);
        matches!(status, MemberStatus::Unknown) || status.has_address(address)
    }
}

shared::unprintable!(Owners<'_>);
