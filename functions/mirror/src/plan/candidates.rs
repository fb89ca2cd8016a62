//! The people in the groups of one list, classified by their records.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use crate::address::Address;
use crate::directory::{MemberStatus, People};
use crate::mapping::Target;
use crate::roster::Roster;

/// The number of records in the list's groups that add no address to the list, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Skipped {
    pub(crate) inactive: usize,
    pub(crate) opted_out: usize,
    pub(crate) no_email: usize,
    pub(crate) invalid_email: usize,
    pub(crate) not_found: usize,
    /// The record could not be read, or hides a field that decides.
    pub(crate) unknown: usize,
    /// No attempt was made to read the record, because time ran out.
    pub(crate) not_yet_read: usize,
    /// Another record with the same address is already wanted.
    pub(crate) duplicate: usize,
    /// The member left the list. Zero without a ledger.
    pub(crate) left: usize,
}

/// The reason why an address leaves, as far as the records in the list's groups tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeaveReason {
    Inactive,
    OptedOut,
    /// No record in the list's groups has the address.
    NoRecord,
}

/// The records that have an address and put it on the list.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'p> {
    /// The display name.
    pub(crate) name: Option<&'p str>,
    /// True if this run read one of them.
    pub(crate) is_read: bool,
}

/// The records that have an address and don't put it on the list.
#[derive(Clone, Copy)]
pub(crate) struct Unwanted {
    records: usize,
    /// True if this run read all of them.
    are_read: bool,
    pub(crate) reason: LeaveReason,
}

impl Unwanted {
    /// True if the only record that is known to have the address was read in this run, and says that its person opted
    /// out.
    pub(crate) fn is_only_opt_out(self) -> bool {
        self.records == 1 && self.are_read && self.reason == LeaveReason::OptedOut
    }
}

/// The people in the groups of one list, classified by their records.
#[derive(Default)]
pub(crate) struct Candidates<'p> {
    /// Wanted addresses.
    pub(crate) wanted: HashMap<&'p Address, Wanted<'p>>,
    /// Addresses that are neither added nor removed.
    pub(crate) untouched: HashSet<&'p Address>,
    /// Addresses of records that don't put them on the list.
    pub(crate) unwanted: HashMap<&'p Address, Unwanted>,
    pub(crate) skipped: Skipped,
    /// The number of records that hide a field that decides.
    pub(crate) hidden: usize,
    /// The number of records that could not be read, and of rows without an id.
    pub(crate) unknown: usize,
    /// The number of people with a record that this run didn't read.
    pub(crate) not_read: usize,
    /// The number of people that the pass hasn't asked about.
    pub(crate) not_asked: usize,
}

impl<'p> Candidates<'p> {
    /// Classifies everyone in the groups of one list.
    pub(crate) fn new(target: &Target, people: &'p People, roster: &Roster) -> Self {
        let members = people.members_of(target);
        let mut candidates = Self::default();
        candidates.wanted.reserve(members.len());
        candidates.unknown = people.groups_of(target).map(|(_, group)| group.rows_without_id).sum();
        let mut unclear = Vec::new();
        for member in members {
            let is_read = people.is_read(member);
            candidates.not_read += usize::from(!is_read);
            candidates.not_asked += usize::from(!is_read && !people.is_asked(member));
            if matches!(people.status(member), MemberStatus::Unknown) {
                // An unknown record has the addresses that it had, as far as anyone knows.
                for address in people.past_addresses(member) {
                    candidates.refuse(address, LeaveReason::NoRecord, false);
                }
            }
            match people.status(member) {
                MemberStatus::Member { address, name, after_space: Some(after_space) }
                    if roster.contains(after_space) && !roster.contains(address) =>
                {
                    unclear.push((address, name, after_space, is_read));
                }
                status => candidates.add(target, status, is_read),
            }
        }
        for (address, name, after_space, is_read) in unclear {
            if candidates.wanted.contains_key(after_space) {
                candidates.want(address, name.as_deref(), is_read);
            } else {
                // This member is subscribed, and a name was written in front of the address.
                candidates.untouched.extend([address, after_space]);
                candidates.skipped.invalid_email += 1;
            }
        }
        candidates.skipped.unknown = candidates.hidden + candidates.unknown;
        candidates
    }

    fn add(&mut self, target: &Target, status: &'p MemberStatus, is_read: bool) {
        let skipped = &mut self.skipped;
        match status {
            MemberStatus::Member { address, .. } if target.is_list_address(address) => {
                self.untouched.insert(address);
                skipped.invalid_email += 1;
            }
            MemberStatus::Member { address, name, .. } => self.want(address, name.as_deref(), is_read),
            MemberStatus::InvalidEmail(readings) => {
                self.untouched.extend(readings);
                skipped.invalid_email += 1;
            }
            MemberStatus::Hidden(address) => {
                self.untouched.insert(address);
                self.hidden += 1;
            }
            MemberStatus::Inactive(address) | MemberStatus::OtherStatus(address) => {
                skipped.inactive += 1;
                self.refuse(address, LeaveReason::Inactive, is_read);
            }
            MemberStatus::OptedOut(address) => {
                skipped.opted_out += 1;
                self.refuse(address, LeaveReason::OptedOut, is_read);
            }
            MemberStatus::NoEmail => skipped.no_email += 1,
            MemberStatus::NotFound => skipped.not_found += 1,
            MemberStatus::Unknown => self.unknown += 1,
            MemberStatus::NotYetRead => skipped.not_yet_read += 1,
        }
    }

    fn want(&mut self, address: &'p Address, name: Option<&'p str>, is_read: bool) {
        match self.wanted.get_mut(address) {
            None => drop(self.wanted.insert(address, Wanted { name, is_read })),
            Some(current) => {
                self.skipped.duplicate += 1;
                // Picks the name of a shared address deterministically, independent of hash-map order.
                current.name = current.name.into_iter().chain(name).min();
                current.is_read |= is_read;
            }
        }
    }

    fn refuse(&mut self, address: &'p Address, reason: LeaveReason, is_read: bool) {
        let unwanted = self.unwanted.entry(address).or_insert(Unwanted { records: 0, are_read: true, reason });
        unwanted.records += 1;
        unwanted.are_read &= is_read;
        if reason == LeaveReason::Inactive || unwanted.reason == LeaveReason::NoRecord {
            unwanted.reason = reason;
        }
    }
}

shared::unprintable!(Candidates<'_>);
