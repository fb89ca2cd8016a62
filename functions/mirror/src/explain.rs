//! Explains why an address is or isn't on a list.

use std::collections::BTreeSet;

use shared::time::DAY;

use crate::address::Address;
use crate::directory::{Group, GroupEnd, MemberStatus, People};
use crate::event::Event;
use crate::mapping::Target;
use crate::plan::{Candidates, Plan, Verdict};
use crate::report::{Explanation, ListExplanation};
use crate::roster::Roster;

/// A list's roster and plan, or `None` if the roster could not be read.
pub(crate) type Planned<'p> = Option<(&'p Roster, &'p Plan)>;

/// Explains every address in the event for every list of this run, which began at `now`, in seconds of Unix time.
pub(crate) fn explain(
    event: &Event,
    targets: &[&Target],
    people: &People,
    plans: &[Planned<'_>],
    now: u64,
) -> Vec<Explanation> {
    let mut explanations: Vec<(Address, Explanation)> = event
        .addresses()
        .map(|(text, address)| (address, Explanation { address: text.to_owned(), lists: Vec::new() }))
        .collect();
    for (target, planned) in targets.iter().zip(plans) {
        let unread = Roster::default();
        let candidates = Candidates::new(target, people, planned.map_or(&unread, |(roster, _)| roster));
        let statuses: Vec<&MemberStatus> =
            people.members_of(target).into_iter().map(|member| people.status(member)).collect();
        let age = oldest_record(target, people, now);
        for (address, explanation) in &mut explanations {
            explanation.lists.push(explain_one(address, target, people, &statuses, &candidates, *planned, age));
        }
    }
    explanations.into_iter().map(|(_, explanation)| explanation).collect()
}

fn explain_one(
    address: &Address,
    target: &Target,
    people: &People,
    statuses: &[&MemberStatus],
    candidates: &Candidates<'_>,
    planned: Planned<'_>,
    age: Option<u64>,
) -> ListExplanation {
    let is_wanted = candidates.wanted.contains_key(address) && !candidates.untouched.contains(address);
    let mut why = if is_wanted { Vec::new() } else { reasons(address, target, people, statuses, candidates, age) };
    let subscribed = planned.map(|(roster, _)| roster.contains(address));
    if let Some((_, plan)) = planned {
        why.extend(pending_change(address, target, plan, is_wanted, subscribed == Some(true)));
    }
    ListExplanation {
        list_id: target.list.to_string(),
        wanted: is_wanted,
        subscribed,
        why: (!why.is_empty()).then(|| why.join("; ")),
    }
}

/// Returns the reasons why an address isn't wanted.
fn reasons(
    address: &Address,
    target: &Target,
    people: &People,
    statuses: &[&MemberStatus],
    candidates: &Candidates<'_>,
    age: Option<u64>,
) -> Vec<String> {
    let mut reasons: BTreeSet<&str> = statuses
        .iter()
        .filter(|status| status.has_address(address))
        .filter_map(|status| match status {
            MemberStatus::Hidden(_) => Some(
                "its record hides Active, UnsubscribeFromEmails or MemberStatus, so the address is neither added nor \
                 removed",
            ),
            MemberStatus::Inactive(_) => Some("its record is not active in Novi"),
            MemberStatus::OtherStatus(_) => Some("its record's MemberStatus is not one of MEMBER_STATUSES"),
            MemberStatus::OptedOut(_) => Some("its record is unsubscribed from emails in Novi"),
            MemberStatus::Member { .. } if target.is_list_address(address) => {
                Some("the address belongs to a list, so it is neither added nor removed")
            }
            _ => None,
        })
        .collect();
    let mut old = None;
    if reasons.is_empty() {
        // The records of those who have or had the address were read in this run. Another one may have it by now.
        old = age.map(|seconds| {
            format!(
                "this run did not read all of the list's people, and the oldest record is {} old",
                duration(seconds)
            )
        });
        reasons.insert(if candidates.untouched.contains(address) {
            "its record has an Email that is not clearly one valid address, so the address is neither added nor removed"
        } else if has_unread(target, people, statuses) {
            "no record that could be read has this address, but some records could not be read"
        } else {
            "no record in the groups of this list has this address"
        });
    }
    reasons.into_iter().map(str::to_owned).chain(old).collect()
}

/// Returns the age of the oldest record of the list's people, in seconds, if an earlier run read it.
fn oldest_record(target: &Target, people: &People, now: u64) -> Option<u64> {
    let members = people.members_of(target);
    let earlier = members.iter().filter(|member| !people.directory.contains_key(*member));
    earlier.filter_map(|member| people.earlier.get(member)).map(|person| now.saturating_sub(person.asked)).max()
}

/// Formats a duration with its largest unit.
fn duration(seconds: u64) -> String {
    let (number, unit) = match seconds {
        0..7_200 => (seconds / 60, "minute"),
        7_200..172_800 => (seconds / 3_600, "hour"),
        _ => (seconds / DAY, "day"),
    };
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}

/// True if some records of the list's groups were not read.
fn has_unread(target: &Target, people: &People, statuses: &[&MemberStatus]) -> bool {
    let is_partly_unread = |group: &Group| group.rows_without_id > 0 || matches!(group.end, GroupEnd::Incomplete(_));
    let is_unread = |status: &MemberStatus| matches!(status, MemberStatus::Unknown | MemberStatus::NotYetRead);
    people.groups_of(target).any(|(_, group)| is_partly_unread(group))
        || statuses.iter().any(|status| is_unread(status))
}

/// Returns the reason if `wanted` and `subscribed` differ, and this run does not change that.
fn pending_change(
    address: &Address,
    target: &Target,
    plan: &Plan,
    is_wanted: bool,
    is_subscribed: bool,
) -> Option<String> {
    let joins = plan.joins.binary_search_by(|subscriber| subscriber.address.cmp(address)).is_ok();
    let leaves = plan.leaves.binary_search_by(|leaver| leaver.address.cmp(address)).is_ok();
    let is_removed = plan.unsubscribe().binary_search(&address).is_ok();
    match &plan.verdict {
        Verdict::Blocked(blocks) if joins || leaves => Some(format!("the list is blocked: {}", plan.describe(blocks))),
        Verdict::Held { blocks, .. } if joins || leaves => Some(format!("the list is held: {}", plan.describe(blocks))),
        _ if is_subscribed && !is_wanted && target.keep.contains(address) => {
            Some("it stays subscribed because of keep".to_owned())
        }
        _ if is_subscribed && !is_wanted && target.is_add_only => {
            Some("it stays subscribed because no one is removed from this list (removals)".to_owned())
        }
        _ if leaves && !is_removed => {
            Some("it stays subscribed because removals from this list are withheld".to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use serde_json::json;
    use shared::member::MemberId;
    use uuid::Uuid;

    use super::*;
    use crate::directory::Person;
    use crate::mapping::Mappings;
    use crate::plan::History;

    #[test]
    fn every_address_is_explained() {
        let mapping = json!({
            "group_guid": Uuid::nil().to_string(), "list_id": "a.lists.example.org", "keep": ["kept@example.org"],
        });
        let target = Mappings::parse(vec![mapping]).targets.remove(0);
        let address = Address::new;
        let statuses = [
            MemberStatus::Member { address: address("ann@example.org"), name: None, after_space: None },
            MemberStatus::Member { address: address("a-owner@lists.example.org"), name: None, after_space: None },
            MemberStatus::Inactive(address("inactive@example.org")),
            MemberStatus::OptedOut(address("out@example.org")),
            MemberStatus::Hidden(address("hidden@example.org")),
            MemberStatus::InvalidEmail(BTreeSet::from([address("one@example.org"), address("two@example.org")])),
            MemberStatus::Unknown,
        ];
        let id = |n: usize| MemberId::parse(&Uuid::from_u128(n as u128 + 1).hyphenated().to_string()).unwrap();
        let members = (0..statuses.len()).map(id).collect();
        let people = People {
            groups: HashMap::from([(
                Uuid::nil(),
                Group { members, rows_without_id: 0, missing_rows: 0, end: GroupEnd::Complete },
            )]),
            directory: statuses.into_iter().enumerate().map(|(n, status)| (id(n), status)).collect(),
            ..People::default()
        };
        let mut roster = Roster::default();
        roster.extend(["ann", "inactive", "kept", "stays-1", "stays-2"].map(|n| address(&format!("{n}@example.org"))));
        let plan = Plan::new(&target, &people, &roster, &BTreeSet::new(), &History::default(), None);
        let explained = [
            ("Ann <ANN@example.org>", true, ""),
            ("inactive@example.org", false, "its record is not active in Novi; the list is blocked"),
            ("out@example.org", false, "its record is unsubscribed from emails in Novi"),
            ("hidden@example.org", false, "its record hides Active"),
            ("two@example.org", false, "its record has an Email that is not clearly one valid address"),
            ("a-owner@lists.example.org", false, "the address belongs to a list"),
            ("kept@example.org", false, "some records could not be read; it stays subscribed because of keep"),
            ("stays-1@example.org", false, "some records could not be read; the list is blocked"),
            ("zoe@example.org", false, "no record that could be read has this address, but some"),
        ];
        let addresses: Vec<&str> = explained.iter().map(|(address, _, _)| *address).collect();
        let event = Event::parse(&json!({ "explain": addresses })).unwrap_or_default();
        let explanations = explain(&event, &[&target], &people, &[Some((&roster, &plan))], 0);
        for (explanation, (text, wanted, why)) in explanations.iter().zip(explained) {
            let list = &explanation.lists[0];
            let found = list.why.as_deref().unwrap_or_default();
            assert_eq!((explanation.address.as_str(), list.wanted), (text, wanted));
            assert!(found.contains(why) && found.is_empty() == why.is_empty(), "{text}: {found}");
        }
    }

    #[test]
    fn address_that_no_record_has_is_explained_with_the_age_of_the_records() {
        const NOW: u64 = 1_800_000_000;
        let group = Uuid::nil();
        let mapping = json!({"group_guid": group.to_string(), "list_id": "a.lists.example.org"});
        let target = Mappings::parse(vec![mapping]).targets.remove(0);
        let id = |n: u128| MemberId::parse(&Uuid::from_u128(n).hyphenated().to_string()).unwrap();
        let member = |email: &str| MemberStatus::Member { address: Address::new(email), name: None, after_space: None };
        let person =
            |asked| Person { asked, is_unknown: false, status: member("old@example.org"), former: BTreeSet::new() };
        let members = (1..=3).map(id).collect();
        let mut people = People {
            groups: HashMap::from([(
                group,
                Group { members, rows_without_id: 0, missing_rows: 0, end: GroupEnd::Complete },
            )]),
            directory: HashMap::from([(id(1), member("new@example.org"))]),
            earlier: HashMap::from([
                (id(1), person(0)),
                (id(2), person(NOW - 3_600)),
                (id(3), person(NOW - 3 * 3_600)),
            ]),
            ..People::default()
        };
        let event = Event::parse(&json!({"explain": ["zoe@example.org", "new@example.org"]})).unwrap_or_default();
        let why = |people: &People| {
            explain(&event, &[&target], people, &[None], NOW).into_iter().map(|mut e| e.lists.remove(0).why).collect()
        };
        let old: Vec<Option<String>> = why(&people);
        let expected = "no record in the groups of this list has this address; this run did not read all of the list's \
                        people, and the oldest record is 3 hours old";
        assert_eq!(old, [Some(expected.to_owned()), None]);
        for n in 1..=3 {
            people.directory.insert(id(n), member("new@example.org"));
        }
        let read: Vec<Option<String>> = why(&people);
        assert_eq!(read[0].as_deref(), Some("no record in the groups of this list has this address"));
    }

    #[test]
    fn age_has_one_unit() {
        for (seconds, text) in [
            (59, "0 minutes"),
            (60, "1 minute"),
            (7_199, "119 minutes"),
            (7_200, "2 hours"),
            (172_799, "47 hours"),
            (172_800, "2 days"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }
}
