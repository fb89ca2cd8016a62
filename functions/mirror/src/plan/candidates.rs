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
    /// The member left the list. Always zero, because only the ledger knows.
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

/// The records that have an address and don't put it on the list.
#[derive(Clone, Copy)]
pub(crate) struct Unwanted {
    records: usize,
    pub(crate) reason: LeaveReason,
}

impl Unwanted {
    /// True if the only record that is known to have the address says that its person opted out.
    pub(crate) fn is_only_opt_out(self) -> bool {
        self.records == 1 && self.reason == LeaveReason::OptedOut
    }
}

/// The people in the groups of one list, classified by their records.
#[derive(Default)]
pub(crate) struct Candidates<'p> {
    /// Wanted addresses, each with one display name.
    pub(crate) wanted: HashMap<&'p Address, Option<&'p str>>,
    /// Addresses that are neither added nor removed.
    pub(crate) untouched: HashSet<&'p Address>,
    /// Addresses of records that don't put them on the list.
    pub(crate) unwanted: HashMap<&'p Address, Unwanted>,
    pub(crate) skipped: Skipped,
    /// The number of records that hide a field that decides.
    pub(crate) hidden: usize,
    /// The number of records that could not be read, and of rows without an id.
    pub(crate) unknown: usize,
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
            match people.status(member) {
                MemberStatus::Member { address, name, after_space: Some(after_space) }
                    if roster.contains(after_space) && !roster.contains(address) =>
                {
                    unclear.push((address, name, after_space));
                }
                status => candidates.add(target, status),
            }
        }
        for (address, name, after_space) in unclear {
            if candidates.wanted.contains_key(after_space) {
                candidates.want(address, name.as_deref());
            } else {
                // This member is subscribed, and a name was written in front of the address.
                candidates.untouched.extend([address, after_space]);
                candidates.skipped.invalid_email += 1;
            }
        }
        candidates.skipped.unknown = candidates.hidden + candidates.unknown;
        candidates
    }

    fn add(&mut self, target: &Target, status: &'p MemberStatus) {
        let skipped = &mut self.skipped;
        match status {
            MemberStatus::Member { address, .. } if target.is_list_address(address) => {
                self.untouched.insert(address);
                skipped.invalid_email += 1;
            }
            MemberStatus::Member { address, name, .. } => self.want(address, name.as_deref()),
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
                self.refuse(address, LeaveReason::Inactive);
            }
            MemberStatus::OptedOut(address) => {
                skipped.opted_out += 1;
                self.refuse(address, LeaveReason::OptedOut);
            }
            MemberStatus::NoEmail => skipped.no_email += 1,
            MemberStatus::NotFound => skipped.not_found += 1,
            MemberStatus::Unknown => self.unknown += 1,
            MemberStatus::NotYetRead => skipped.not_yet_read += 1,
        }
    }

    fn want(&mut self, address: &'p Address, name: Option<&'p str>) {
        match self.wanted.get_mut(address) {
            None => drop(self.wanted.insert(address, name)),
            Some(current) => {
                self.skipped.duplicate += 1;
                // Picks the name of a shared address deterministically, independent of hash-map order.
                *current = current.take().into_iter().chain(name).min();
            }
        }
    }

    fn refuse(&mut self, address: &'p Address, reason: LeaveReason) {
        let unwanted = self.unwanted.entry(address).or_insert(Unwanted { records: 0, reason });
        unwanted.records += 1;
        if reason == LeaveReason::Inactive {
            unwanted.reason = reason;
        }
    }
}

shared::unprintable!(Candidates<'_>);
