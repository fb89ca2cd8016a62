//! Lies: what Novi may say that is plausible and wrong. A lie only changes what Novi says, so that it ends without a
//! trace.

use std::fmt;

use fastrand::Rng;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::directory::Directory;

/// A lie.
#[derive(Clone)]
pub(super) enum Lie {
    /// The group is empty.
    EmptyGroup(Uuid),
    /// All groups are empty.
    NoRows,
    /// Novi doesn't have the group.
    MissingGroup(Uuid),
    /// The group has the rows of another one.
    OtherRows(Uuid, Uuid),
    /// Two groups have each other's rows.
    ExchangedGroups(Uuid, Uuid),
    /// The group lacks every row whose id gives this remainder of four.
    Subset(Uuid, u128),
    /// The group has so many rows without an id. That is neither plausible nor a lie, but Novi may have them for good.
    RowsWithoutId(Uuid, usize),
    /// The group counts its first member twice.
    CountedTwice(Uuid),
    /// Strangers are in the group, and perhaps some members are not.
    Strangers { group: Uuid, strangers: Directory, are_members_gone: bool },
    /// Novi doesn't have this person, who exists.
    NotFound(Uuid),
    /// Novi doesn't have anyone.
    NoOneFound,
    /// Two people have each other's addresses.
    SwappedAddresses(Uuid, Uuid),
    /// The first person has the second one's address.
    CopiedAddress(Uuid, Uuid),
    /// Every person whose id gives this remainder of three is inactive.
    Inactive(u128),
    /// Every person whose id gives this remainder of three has opted out.
    OptedOut(u128),
    /// The record of this person is empty.
    EmptyRecord(Uuid),
    /// The record of this person has the second one's id.
    OtherId(Uuid, Uuid),
    /// The record doesn't show this field. This lie announces itself.
    Hidden(Uuid, &'static str),
}

impl fmt::Display for Lie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EmptyGroup(_) => "a group is empty",
            Self::NoRows => "all groups are empty",
            Self::MissingGroup(_) => "a group is missing",
            Self::OtherRows(..) => "a group has another group's rows",
            Self::ExchangedGroups(..) => "two groups have each other's rows",
            Self::Subset(..) => "a group lacks some of its rows",
            Self::RowsWithoutId(..) => "a group has rows without an id",
            Self::CountedTwice(_) => "a group counts a member twice",
            Self::Strangers { are_members_gone: false, .. } => "strangers are in a group",
            Self::Strangers { are_members_gone: true, .. } => "strangers replace members of a group",
            Self::NotFound(_) => "a person isn't found",
            Self::NoOneFound => "no one is found",
            Self::SwappedAddresses(..) => "two people have swapped addresses",
            Self::CopiedAddress(..) => "a person has another one's address",
            Self::Inactive(_) => "a third of all people is inactive",
            Self::OptedOut(_) => "a third of all people has opted out",
            Self::EmptyRecord(_) => "a record is empty",
            Self::OtherId(..) => "a record has another one's id",
            Self::Hidden(_, "Email") => "a record hides its address",
            Self::Hidden(..) => "a record hides a flag",
        })
    }
}

impl Lie {
    /// Returns a random lie about these people and groups.
    pub(super) fn random(rng: &mut Rng, people: &[Uuid], groups: &[Uuid]) -> Option<Self> {
        let mut pick = |from: &[Uuid]| (!from.is_empty()).then(|| from[rng.usize(..from.len())]);
        let (person, other_person) = (pick(people)?, pick(people)?);
        let (group, other_group) = (pick(groups)?, pick(groups)?);
        Some(match rng.u8(..28) {
            0..=2 => Self::EmptyGroup(group),
            3 => Self::NoRows,
            4 => Self::MissingGroup(group),
            5 | 6 => Self::OtherRows(group, other_group),
            7 => Self::ExchangedGroups(group, other_group),
            8 | 9 => Self::Subset(group, rng.u128(..4)),
            10..=13 => {
                let mut strangers = Directory::default();
                for _ in 0..rng.usize(1..40) {
                    strangers.add(rng);
                }
                if rng.bool() {
                    // Novi doesn't show all of them yet.
                    let percent = rng.u8(..100);
                    let hidden = strangers.people.values_mut().filter(|_| rng.u8(..100) < percent);
                    hidden.for_each(|record| drop(record.as_object_mut().map(|map| map.remove("Email"))));
                }
                Self::Strangers { group, strangers, are_members_gone: rng.bool() }
            }
            14 => Self::NotFound(person),
            15 => Self::NoOneFound,
            16 => Self::SwappedAddresses(person, other_person),
            17 => Self::CopiedAddress(person, other_person),
            18 => Self::Inactive(rng.u128(..3)),
            19 => Self::OptedOut(rng.u128(..3)),
            20 => Self::EmptyRecord(person),
            21 => Self::OtherId(person, other_person),
            22 => Self::Hidden(person, "Email"),
            23..=25 => Self::RowsWithoutId(group, rng.usize(1..4)),
            26 => Self::CountedTwice(group),
            _ => Self::Hidden(person, ["Active", "UnsubscribeFromEmails"][rng.usize(..2)]),
        })
    }

    /// Returns the group that strangers are in.
    pub(super) fn group_with_strangers(&self) -> Option<Uuid> {
        if let Self::Strangers { group, .. } = self { Some(*group) } else { None }
    }

    /// True if this may stay as it is for good, although it makes someone unreadable.
    pub(super) fn may_last(&self) -> bool {
        matches!(self, Self::RowsWithoutId(..) | Self::OtherId(..) | Self::Hidden(_, "Email"))
    }

    /// Changes what Novi says.
    pub(super) fn tell(&self, said: &mut Directory) {
        match self {
            Self::EmptyGroup(group) => change_group(said, *group, Vec::clear),
            Self::NoRows => said.groups.values_mut().for_each(Vec::clear),
            Self::MissingGroup(group) => drop(said.groups.remove(group)),
            Self::OtherRows(group, other) => {
                let rows = said.groups.get(other).cloned().unwrap_or_default();
                change_group(said, *group, |members| *members = rows);
            }
            Self::ExchangedGroups(one, other) => {
                let rows = |group| said.groups.get(group).cloned().unwrap_or_default();
                let (rows_of_one, rows_of_other) = (rows(one), rows(other));
                change_group(said, *one, |members| *members = rows_of_other);
                change_group(said, *other, |members| *members = rows_of_one);
            }
            Self::Subset(group, remainder) => {
                change_group(said, *group, |members| members.retain(|id| id.as_u128() % 4 != *remainder));
            }
            Self::RowsWithoutId(group, count) => {
                change_group(said, *group, |members| members.extend(std::iter::repeat_n(Uuid::nil(), *count)));
            }
            Self::CountedTwice(group) => change_group(said, *group, |members| {
                // Next to each other, so that both are on the first page.
                if let Some(first) = members.first().copied() {
                    members.insert(0, first);
                }
            }),
            Self::Strangers { group, strangers, are_members_gone } => {
                change_group(said, *group, |members| {
                    members.retain(|id| !are_members_gone || id.as_u128().is_multiple_of(2));
                    // Anywhere, so that they are on the first pages or on later ones.
                    let place = group.as_u128() % (members.len() as u128 + 1);
                    let place = usize::try_from(place).unwrap_or_default();
                    members.splice(place..place, strangers.people.keys().copied());
                });
                said.people.extend(strangers.people.clone());
            }
            Self::NotFound(person) => drop(said.people.remove(person)),
            Self::NoOneFound => said.people.clear(),
            Self::SwappedAddresses(one, other) => {
                let address = |id| said.people.get(id).and_then(|record| record.get("Email").cloned());
                if let (Some(of_one), Some(of_other)) = (address(one), address(other)) {
                    change_record(said, *one, |record| record["Email"] = of_other);
                    change_record(said, *other, |record| record["Email"] = of_one);
                }
            }
            Self::CopiedAddress(one, other) => {
                if let Some(address) = said.people.get(other).and_then(|record| record.get("Email").cloned()) {
                    change_record(said, *one, |record| record["Email"] = address);
                }
            }
            Self::Inactive(remainder) => change_third(said, *remainder, "Active", false),
            Self::OptedOut(remainder) => change_third(said, *remainder, "UnsubscribeFromEmails", true),
            Self::EmptyRecord(person) => change_record(said, *person, |record| *record = json!({})),
            Self::OtherId(person, other) => {
                let other = other.hyphenated().to_string();
                change_record(said, *person, |record| {
                    if record.get("UniqueID").is_some() {
                        record["UniqueID"] = json!(other);
                    }
                });
            }
            Self::Hidden(person, field) => {
                change_record(said, *person, |record| drop(record.as_object_mut().map(|map| map.remove(*field))));
            }
        }
    }
}

fn change_group(said: &mut Directory, group: Uuid, change: impl FnOnce(&mut Vec<Uuid>)) {
    said.groups.entry(group).and_modify(change);
}

fn change_record(said: &mut Directory, person: Uuid, change: impl FnOnce(&mut Value)) {
    said.people.entry(person).and_modify(change);
}

fn change_third(said: &mut Directory, remainder: u128, field: &str, value: bool) {
    let third = said.people.iter_mut().filter(|(id, _)| id.as_u128() % 3 == remainder);
    third.filter(|(_, record)| record.get(field).is_some()).for_each(|(_, record)| record[field] = json!(value));
}
