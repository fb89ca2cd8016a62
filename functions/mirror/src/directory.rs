//! The directory: the state of people and groups, as read from Novi.

use std::collections::HashMap;

use shared::member::{MemberId, MemberRules, Record};
use uuid::Uuid;

use crate::address::Address;

/// The status of one person.
pub(crate) enum MemberStatus {
    /// Active, and not opted out of emails.
    Member { address: Address, name: Option<String> },
    /// `Active`, `UnsubscribeFromEmails` or, if it matters, `MemberStatus` is hidden from the API key, so the address is
    /// neither added nor removed.
    Hidden(Address),
    /// `Active` is false, which marks a deleted record.
    Inactive(Address),
    /// `MemberStatus` is not in `MEMBER_STATUSES`.
    OtherStatus(Address),
    /// `UnsubscribeFromEmails` is true.
    OptedOut(Address),
    /// `Email` is null or blank.
    NoEmail,
    /// Novi has no such person: it returned 404, or a record without an identity.
    NotFound,
    /// The record could not be read, or doesn't show its `Email`.
    Unknown,
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
        let Some(address) = record.mailing_address().map(|email| Address::new(&email)) else {
            // A name of the wrong type is still an identity.
            return if matches!(record.identity(), Ok(None)) { Self::NotFound } else { Self::NoEmail };
        };
        match (record.active.flag(), record.unsubscribed.flag(), record.has_member_status(rules)) {
            (None, _, _) | (_, None, _) | (_, _, None) => Self::Hidden(address),
            (Some(false), _, _) => Self::Inactive(address),
            (_, _, Some(false)) => Self::OtherStatus(address),
            (_, Some(true), _) => Self::OptedOut(address),
            (Some(true), Some(false), Some(true)) => Self::Member { address, name: record.display_name() },
        }
    }
}

/// The effect of a member status on its address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Membership<'s> {
    /// The address belongs on the list, with this display name.
    Wanted(Option<&'s str>),
    /// The address is neither added nor removed. An invalid-looking address or a hidden field isn't a reason to remove
    /// it.
    Unchanged,
    /// This record does not put the address on the list.
    Unwanted,
}

impl MemberStatus {
    /// Returns the address, if there is one, and its membership.
    pub(crate) fn membership(&self) -> Option<(&Address, Membership<'_>)> {
        Some(match self {
            Self::Member { address, name } if address.is_valid() => (address, Membership::Wanted(name.as_deref())),
            Self::Member { address, .. } | Self::Hidden(address) => (address, Membership::Unchanged),
            Self::Inactive(address) | Self::OtherStatus(address) | Self::OptedOut(address) => {
                (address, Membership::Unwanted)
            }
            Self::NoEmail | Self::NotFound | Self::Unknown => return None,
        })
    }
}

/// One group.
pub(crate) struct Group {
    /// The members that were read, without duplicates.
    pub(crate) members: Vec<MemberId>,
    /// The number of rows without a usable UUID. The status of these people is unknown.
    pub(crate) rows_without_id: usize,
    /// The result of reading it.
    pub(crate) end: GroupEnd,
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

/// The status of every person that was read.
pub(crate) type Directory = HashMap<MemberId, MemberStatus>;

/// The groups and people of all lists.
pub(crate) struct People {
    pub(crate) groups: HashMap<Uuid, Group>,
    pub(crate) directory: Directory,
}

shared::unprintable!(MemberStatus, People);

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
                MemberStatus::Member { address, name } => format!("{} {}", address.as_str(), name.unwrap_or_default()),
                MemberStatus::Hidden(_) => "hidden".to_owned(),
                MemberStatus::Inactive(_) => "inactive".to_owned(),
                MemberStatus::OtherStatus(_) => "other status".to_owned(),
                MemberStatus::OptedOut(_) => "opted out".to_owned(),
                MemberStatus::NoEmail => "no email".to_owned(),
                MemberStatus::NotFound => "not found".to_owned(),
                MemberStatus::Unknown => "unknown".to_owned(),
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
            // Several addresses are none, and stay as they are.
            (json!({"Email": "ada@example.org, bea@example.org"}), "ada@example.org,+bea@example.org Ada L."),
            (json!({"Email": "\u{200b}"}), "no email"),
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
