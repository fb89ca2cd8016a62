//! Explains why an address is or isn't on a list.

use std::collections::BTreeSet;

use crate::address::Address;
use crate::directory::{Group, GroupEnd, MemberStatus, People};
use crate::event::Event;
use crate::mapping::Target;
use crate::plan::{Candidates, Plan, Verdict};
use crate::report::{Explanation, ListExplanation};
use crate::roster::Roster;

/// A list's roster and plan, or `None` if the roster could not be read.
pub(crate) type Planned<'p> = Option<(&'p Roster, &'p Plan)>;

/// Explains every address in the event for every list of this run.
pub(crate) fn explain(event: &Event, targets: &[&Target], people: &People, plans: &[Planned<'_>]) -> Vec<Explanation> {
    let mut explanations: Vec<(Address, Explanation)> = event
        .addresses()
        .map(|(text, address)| (address, Explanation { address: text.to_owned(), lists: Vec::new() }))
        .collect();
    for (target, planned) in targets.iter().zip(plans) {
        let unread = Roster::default();
        let candidates = Candidates::new(target, people, planned.map_or(&unread, |(roster, _)| roster));
        let statuses: Vec<&MemberStatus> =
            people.members_of(target).into_iter().map(|member| people.status(member)).collect();
        for (address, explanation) in &mut explanations {
            explanation.lists.push(explain_one(address, target, people, &statuses, &candidates, *planned));
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
) -> ListExplanation {
    let is_wanted = candidates.wanted.contains_key(address) && !candidates.untouched.contains(address);
    let mut why = if is_wanted { Vec::new() } else { reasons(address, target, people, statuses, candidates) };
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
    if reasons.is_empty() {
        reasons.insert(if candidates.untouched.contains(address) {
            "its record has an Email that is not clearly one valid address, so the address is neither added nor removed"
        } else if has_unread(target, people, statuses) {
            "no record that could be read has this address, but some records could not be read"
        } else {
            "no record in the groups of this list has this address"
        });
    }
    reasons.into_iter().map(str::to_owned).collect()
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
        let explanations = explain(&event, &[&target], &people, &[Some((&roster, &plan))]);
        for (explanation, (text, wanted, why)) in explanations.iter().zip(explained) {
            let list = &explanation.lists[0];
            let found = list.why.as_deref().unwrap_or_default();
            assert_eq!((explanation.address.as_str(), list.wanted), (text, wanted));
            assert!(found.contains(why) && found.is_empty() == why.is_empty(), "{text}: {found}");
        }
    }
}
