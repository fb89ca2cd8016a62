//! The directory: the state of people and groups, as read from Novi.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde::{Deserialize, Serialize};
use shared::member::{MemberId, MemberRules, Record};
use shared::text;
use uuid::Uuid;

use crate::address::Address;
use crate::mapping::Target;

/// The maximum number of characters of a name in Mailman. Some of its databases refuse more than 255 bytes.
const MAX_NAME: usize = 100;

/// The status of one person.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MemberStatus {
    /// Active, and not opted out of emails.
    Member {
        address: Address,
        /// The display name. The ledger doesn't keep it.
        #[serde(skip)]
        name: Option<String>,
        /// The address if the space in `Email` isn't a lost plus.
        after_space: Option<Address>,
    },
    /// `Active`, `UnsubscribeFromEmails` or, if it matters, `MemberStatus` is hidden from the API key, so the address is
    /// neither added nor removed.
    Hidden(Address),
    /// `Active` is false, which marks a deleted record.
    Inactive(Address),
    /// `MemberStatus` is not in `MEMBER_STATUSES`.
    OtherStatus(Address),
    /// `UnsubscribeFromEmails` is true.
    OptedOut(Address),
    /// `Email` is not one valid address. Whatever may be an address in it is neither added nor removed.
    InvalidEmail(BTreeSet<Address>),
    /// `Email` is null or blank.
    NoEmail,
    /// Novi has no such person: it returned 404, or a record without an identity.
    NotFound,
    /// The record could not be read, or doesn't show its `Email`.
    Unknown,
    /// No attempt was made to read the record, because time ran out.
    NotYetRead,
}

impl MemberStatus {
    /// Returns the status that a record shows. `None` stands for a 404 or a response without a record.
    pub(crate) fn from_record(record: Option<&Record>, rules: &MemberRules) -> Self {
        let Some(record) = record else {
            return Self::NotFound;
        };
        if !record.shows_email() {
            return Self::Unknown;
        }
        let Some(email) = record.email_text() else {
            // A name of the wrong type is still an identity.
            return if matches!(record.identity(), Ok(None)) { Self::NotFound } else { Self::NoEmail };
        };
        let address = match Address::parse(email) {
            Ok(address) => address,
            Err(readings) => return Self::InvalidEmail(readings),
        };
        match (record.active.flag(), record.unsubscribed.flag(), record.has_member_status(rules)) {
            (None, _, _) | (_, None, _) | (_, _, None) => Self::Hidden(address),
            (Some(false), _, _) => Self::Inactive(address),
            (_, _, Some(false)) => Self::OtherStatus(address),
            (_, Some(true), _) => Self::OptedOut(address),
            (Some(true), Some(false), Some(true)) => {
                let after_space = Address::after_space(email).filter(|after_space| *after_space != address);
                let name = record.display_name().map(|name| text::shorten(&name, MAX_NAME).to_owned());
                Self::Member { address, name, after_space }
            }
        }
    }
}

impl MemberStatus {
    /// Returns the addresses of the record.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = &Address> {
        let (one, several) = match self {
            Self::Member { address, .. }
            | Self::Hidden(address)
            | Self::Inactive(address)
            | Self::OtherStatus(address)
            | Self::OptedOut(address) => (Some(address), None),
            Self::InvalidEmail(readings) => (None, Some(readings)),
            Self::NoEmail | Self::NotFound | Self::Unknown | Self::NotYetRead => (None, None),
        };
        one.into_iter().chain(several.into_iter().flatten())
    }

    /// True if the record has this address.
    pub(crate) fn has_address(&self, address: &Address) -> bool {
        self.addresses().any(|of| of == address)
    }
}

/// One group.
pub(crate) struct Group {
    /// The members that were read, without duplicates.
    pub(crate) members: Vec<MemberId>,
    /// The number of rows without a usable UUID. The status of these people is unknown.
    pub(crate) rows_without_id: usize,
    /// The number of rows that were not read, if Novi said how many there are. Zero if the group was read to its end.
    pub(crate) missing_rows: usize,
    /// The result of reading it.
    pub(crate) end: GroupEnd,
}

impl Group {
    /// True if the group was read to its end and is empty.
    pub(crate) fn is_vacant(&self) -> bool {
        self.end == GroupEnd::Complete && self.members.is_empty() && self.rows_without_id == 0
    }
}

/// The result of reading a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GroupEnd {
    /// All of its rows were read.
    Complete,
    /// Novi has no such group.
    Missing,
    /// Its rows were not all read, for this reason.
    Incomplete(String),
}

/// The status of every person that was read in this run.
pub(crate) type Directory = HashMap<MemberId, MemberStatus>;

/// What earlier runs read of a person. The ledger keeps it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Person {
    /// When Novi was last asked about the person, in seconds of Unix time.
    pub(crate) asked: u64,
    /// True if the record could not be read then.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) is_unknown: bool,
    /// The last status that was read, or [`MemberStatus::NotYetRead`].
    pub(crate) status: MemberStatus,
    /// The addresses that the person had before, as long as they are on a roster.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) former: BTreeSet<Address>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl Person {
    /// Returns the person's status as far as earlier runs know it.
    fn present_status(&self) -> &MemberStatus {
        if self.is_unknown { &MemberStatus::Unknown } else { &self.status }
    }
}

/// The groups and people of all lists.
#[derive(Default)]
pub(crate) struct People {
    pub(crate) groups: HashMap<Uuid, Group>,
    pub(crate) directory: Directory,
    /// What earlier runs read.
    pub(crate) earlier: HashMap<MemberId, Person>,
    /// When the pass began, in seconds of Unix time.
    pub(crate) pass_began: u64,
}

impl People {
    /// Returns the groups of a list that were read.
    pub(crate) fn groups_of(&self, target: &Target) -> impl Iterator<Item = (&Uuid, &Group)> + Clone {
        target.groups.iter().filter_map(|id| self.groups.get_key_value(id))
    }

    /// Returns the distinct members of a list's groups.
    pub(crate) fn members_of(&self, target: &Target) -> HashSet<MemberId> {
        members_of(self.groups_of(target).map(|(_, group)| group))
    }

    /// Returns the status of one person: what this run read, or else what an earlier run read.
    pub(crate) fn status(&self, member: MemberId) -> &MemberStatus {
        let earlier = || self.earlier.get(&member).map(Person::present_status);
        self.directory.get(&member).or_else(earlier).unwrap_or(&MemberStatus::NotYetRead)
    }

    /// True if this run read the person's record.
    pub(crate) fn is_read(&self, member: MemberId) -> bool {
        self.directory.get(&member).is_some_and(|status| !matches!(status, MemberStatus::Unknown))
    }

    /// True if this run asked about the person, and the record can't be read.
    pub(crate) fn is_unreadable(&self, member: MemberId) -> bool {
        matches!(self.directory.get(&member), Some(MemberStatus::Unknown))
    }

    /// True if the pass has asked about the person, even if the record can't be read.
    pub(crate) fn is_asked(&self, member: MemberId) -> bool {
        self.directory.contains_key(&member)
            || self.earlier.get(&member).is_some_and(|person| person.asked >= self.pass_began)
    }

    /// Returns the addresses that the person has, or had according to earlier runs.
    pub(crate) fn past_addresses(&self, member: MemberId) -> impl Iterator<Item = &Address> {
        let earlier = self.earlier.get(&member);
        let known = earlier.into_iter().flat_map(|person| person.status.addresses().chain(&person.former));
        self.status(member).addresses().chain(known)
    }
}

/// Returns the distinct members of groups.
pub(crate) fn members_of<'g>(groups: impl Iterator<Item = &'g Group> + Clone) -> HashSet<MemberId> {
    let mut members = HashSet::with_capacity(groups.clone().map(|group| group.members.len()).sum());
    members.extend(groups.flat_map(|group| group.members.iter().copied()));
    members
}

shared::unprintable!(MemberStatus, Person, People);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn record_fields_determine_the_member_status() {
        let full = json!({
            "Name": "Ada Lovelace", "FirstName": "Ada", "LastName": "Lovelace", "Email": "Ada X@Example.org",
            "Active": true, "UnsubscribeFromEmails": false,
        });
        let describe = |changes: serde_json::Value, rules: &MemberRules| {
            let mut record = full.clone();
            for (key, value) in changes.as_object().into_iter().flatten() {
                match (record.as_object_mut(), value.as_str()) {
                    (Some(map), Some("ABSENT")) => drop(map.remove(key)),
                    (Some(map), _) => drop(map.insert(key.clone(), value.clone())),
                    _ => {}
                }
            }
            let record = Record::parse(record.to_string().as_bytes()).ok().flatten();
            match MemberStatus::from_record(record.as_ref(), rules) {
                MemberStatus::Member { address, name, .. } => {
                    format!("{} {}", address.as_str(), name.unwrap_or_default())
                }
                MemberStatus::Hidden(_) => "hidden".to_owned(),
                MemberStatus::Inactive(_) => "inactive".to_owned(),
                MemberStatus::OtherStatus(_) => "other status".to_owned(),
                MemberStatus::OptedOut(_) => "opted out".to_owned(),
                MemberStatus::NoEmail => "no email".to_owned(),
                MemberStatus::NotFound => "not found".to_owned(),
                MemberStatus::InvalidEmail(readings) => format!("invalid, {} readings", readings.len()),
                MemberStatus::Unknown => "unknown".to_owned(),
                MemberStatus::NotYetRead => "not yet read".to_owned(),
            }
        };
        for (changes, expected) in [
            (json!({}), "ada+x@example.org Ada L."),
            (json!({"FirstName": "", "LastName": null}), "ada+x@example.org Ada Lovelace"),
            (json!({"Active": false}), "inactive"),
            (json!({"UnsubscribeFromEmails": true}), "opted out"),
            (json!({"Active": false, "UnsubscribeFromEmails": true}), "inactive"),
            (json!({"Active": "ABSENT"}), "hidden"),
            (json!({"UnsubscribeFromEmails": "ABSENT"}), "hidden"),
            (json!({"Active": null}), "hidden"),
            (json!({"Active": "true"}), "hidden"),
            (json!({"UnsubscribeFromEmails": 0}), "hidden"),
            (json!({"Active": false, "UnsubscribeFromEmails": "ABSENT"}), "hidden"),
            (json!({"Email": null}), "no email"),
            (json!({"Email": "  "}), "no email"),
            (json!({"Email": "ABSENT"}), "unknown"),
            (json!({"Email": 5}), "unknown"),
            (json!({"Email": "", "Name": "", "FirstName": null, "LastName": "ABSENT"}), "not found"),
            (json!({"Email": "ABSENT", "Name": "", "FirstName": "", "LastName": ""}), "unknown"),
            (json!({"Email": "Ada <ada@example.org>"}), "ada@example.org Ada L."),
            (json!({"Email": "\u{200b}ada@example.org"}), "ada@example.org Ada L."),
            (json!({"Email": "ada@B\u{fc}cher.example"}), "ada@xn--bcher-kva.example Ada L."),
            // Several addresses are not one, independent of the other fields.
            (json!({"Email": "ada@example.org, bea@example.org"}), "invalid, 3 readings"),
            (json!({"Email": "ada@example.org, bea@example.org", "Active": false}), "invalid, 3 readings"),
            (json!({"Email": "n/a"}), "invalid, 0 readings"),
            (json!({"Email": "\u{200b}"}), "no email"),
            (json!({"LastName": "Love\u{202e}lace", "FirstName": "A\u{0}da\r\n"}), "ada+x@example.org Ada L."),
        ] {
            assert_eq!(describe(changes.clone(), &MemberRules::default()), expected, "{changes}");
        }
        assert!(matches!(MemberStatus::from_record(None, &MemberRules::default()), MemberStatus::NotFound));
        let rules = MemberRules { require_active: false, statuses: Some(vec!["current".to_owned()]) };
        for (changes, expected) in [
            (json!({"MemberStatus": "Current"}), "ada+x@example.org Ada L."),
            (json!({"MemberStatus": "non_member"}), "other status"),
            (json!({"MemberStatus": "non_member", "UnsubscribeFromEmails": true}), "other status"),
            (json!({"MemberStatus": "non_member", "Active": false}), "inactive"),
            (json!({"MemberStatus": "current", "UnsubscribeFromEmails": true}), "opted out"),
            (json!({"MemberStatus": ""}), "other status"),
            (json!({"MemberStatus": null}), "other status"),
            // A hidden field decides nothing.
            (json!({}), "hidden"),
            (json!({"MemberStatus": 5}), "hidden"),
        ] {
            assert_eq!(describe(changes.clone(), &rules), expected, "{changes}");
        }
    }
}
