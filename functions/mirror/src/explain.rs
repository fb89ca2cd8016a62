//! Explains why an address is or isn't on a list.

use std::collections::{BTreeSet, HashSet};

use crate::address::Address;
use crate::directory::{GroupEnd, MemberStatus, Membership, People};
use crate::event::Event;
use crate::mapping::Target;
use crate::plan::{Plan, Verdict};
use crate::report::{Explanation, ListExplanation};
use crate::roster::Roster;

/// A list's roster and plan, or `None` if the roster could not be read.
pub(crate) type Planned<'p> = Option<(&'p Roster, &'p Plan)>;

/// Explains every address in the event for every list of this run.
pub(crate) fn explain(event: &Event, targets: &[&Target], people: &People, plans: &[Planned<'_>]) -> Vec<Explanation> {
    event
        .addresses()
        .map(|(requested, address)| Explanation {
            address: requested.to_owned(),
            lists: targets
                .iter()
                .zip(plans)
                .map(|(target, planned)| explain_one(&address, target, people, *planned))
                .collect(),
        })
        .collect()
}

fn explain_one(address: &Address, target: &Target, people: &People, planned: Planned<'_>) -> ListExplanation {
    let (is_wanted, mut why) = reasons(address, target, people);
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

/// Returns true if the address is wanted, and otherwise the reasons why it isn't.
fn reasons(address: &Address, target: &Target, people: &People) -> (bool, Vec<String>) {
    let groups = || target.groups.iter().filter_map(|group| people.groups.get(group));
    let members: HashSet<_> = groups().flat_map(|group| group.members.iter()).collect();
    let (mut is_wanted, mut is_unchanged) = (false, false);
    let mut has_unknown =
        groups().any(|group| group.rows_without_id > 0 || matches!(group.end, GroupEnd::Incomplete(_)));
    let mut reasons = BTreeSet::new();
    for member in members {
        let status = people.directory.get(member).unwrap_or(&MemberStatus::Unknown);
        has_unknown |= matches!(status, MemberStatus::Unknown);
        let Some((_, membership)) = status.membership().filter(|(of, _)| *of == address) else { continue };
        is_wanted |= matches!(membership, Membership::Wanted(_));
        is_unchanged |= membership == Membership::Unchanged;
        reasons.extend(match status {
            MemberStatus::Hidden(_) => Some(
                "its record hides Active, UnsubscribeFromEmails or MemberStatus, so the address is neither added nor \
                     removed",
            ),
            MemberStatus::Inactive(_) => Some("its record is not active in Novi"),
            MemberStatus::OtherStatus(_) => Some("its record's MemberStatus is not one of MEMBER_STATUSES"),
            MemberStatus::OptedOut(_) => Some("its record is unsubscribed from emails in Novi"),
            MemberStatus::Member { .. } if membership == Membership::Unchanged => {
                Some("the address is not valid, so it is neither added nor removed")
            }
            _ => None,
        });
    }
    if is_wanted && !is_unchanged {
        return (true, Vec::new());
    }
    if reasons.is_empty() {
        reasons.insert(if has_unknown {
            "no record that could be read has this address, but some records could not be read"
        } else {
            "no record in the groups of this list has this address"
        });
    }
    (false, reasons.into_iter().map(str::to_owned).collect())
}

/// Returns the reason if `wanted` and `subscribed` differ, and this run does not change that.
fn pending_change(
    address: &Address,
    target: &Target,
    plan: &Plan,
    is_wanted: bool,
    is_subscribed: bool,
) -> Option<String> {
    let joins = plan.subscribe.binary_search_by(|subscriber| subscriber.address.cmp(address)).is_ok();
    let leaves = plan.unsubscribe.binary_search(address).is_ok();
    match plan.verdict {
        Verdict::Blocked(block) if joins || leaves => Some(format!("the list is blocked: {block}")),
        _ if is_subscribed && !is_wanted && target.keep.contains(address) => {
            Some("it stays subscribed because of keep".to_owned())
        }
        _ if is_subscribed && !is_wanted && !leaves && plan.withheld > 0 => {
            Some("it stays subscribed because removals from this list are withheld".to_owned())
        }
        _ => None,
    }
}
