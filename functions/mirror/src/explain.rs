//! Why an address is, or is not, wanted on a list.

use std::collections::{BTreeSet, HashSet};

use crate::address::Address;
use crate::event::Event;
use crate::mapping::Target;
use crate::plan::{GroupEnd, Plan, Ruling, Standing, Verdict};
use crate::report::{Explanation, ListExplanation};
use crate::run::{Made, People};

/// Explains every address of the event on every list of this run.
pub(crate) fn explain(event: &Event, targets: &[&Target], people: &People, plans: &[Made]) -> Vec<Explanation> {
    event
        .addresses()
        .map(|(text, address)| Explanation {
            address: text.to_owned(),
            lists: targets
                .iter()
                .zip(plans)
                .map(|(target, made)| explain_one(&address, target, people, made))
                .collect(),
        })
        .collect()
}

fn explain_one(address: &Address, target: &Target, people: &People, made: &Made) -> ListExplanation {
    let (is_wanted, mut why) = reasons(address, target, people);
    let planned = made.as_ref().ok();
    let subscribed = planned.map(|(roster, _)| roster.contains(address));
    if let Some((_, plan)) = planned {
        why.extend(outlook(address, target, plan, is_wanted, subscribed == Some(true)));
    }
    ListExplanation {
        list_id: target.list.to_string(),
        wanted: is_wanted,
        subscribed,
        why: (!why.is_empty()).then(|| why.join("; ")),
    }
}

/// Whether the address is wanted, and if not, why.
fn reasons(address: &Address, target: &Target, people: &People) -> (bool, Vec<String>) {
    let groups = || target.groups.iter().filter_map(|group| people.groups.get(group));
    let members: HashSet<_> = groups().flat_map(|group| group.members.iter()).collect();
    let (mut is_wanted, mut is_untouched) = (false, false);
    let mut is_unknown = groups().any(|group| group.nameless > 0 || matches!(group.end, GroupEnd::Unread(_)));
    let mut reasons = BTreeSet::new();
    for member in members {
        let standing = people.directory.get(member).unwrap_or(&Standing::Unknown);
        is_unknown |= matches!(standing, Standing::Unknown);
        let Some((_, ruling)) = standing.ruling().filter(|(of, _)| *of == address) else { continue };
        is_wanted |= matches!(ruling, Ruling::Wanted(_));
        is_untouched |= ruling == Ruling::Untouched;
        reasons.extend(match standing {
            Standing::Hidden(_) => {
                Some("its record hides Active or UnsubscribeFromEmails, so it is neither added nor removed")
            }
            Standing::Inactive(_) => Some("its record is not active in Novi"),
            Standing::OptedOut(_) => Some("its record is unsubscribed from emails in Novi"),
            Standing::Member { .. } if ruling == Ruling::Untouched => {
                Some("the address is not valid, so it is neither added nor removed")
            }
            _ => None,
        });
    }
    if is_wanted && !is_untouched {
        return (true, Vec::new());
    }
    if reasons.is_empty() {
        reasons.insert(if is_unknown {
            "no record that could be read has this address; some could not be read"
        } else {
            "no record in the groups of this list has this address"
        });
    }
    (false, reasons.into_iter().map(str::to_owned).collect())
}

/// Why what is wanted and what is there differ, and go on to.
fn outlook(address: &Address, target: &Target, plan: &Plan, is_wanted: bool, is_subscribed: bool) -> Option<String> {
    let joins = plan.subscribe.binary_search_by(|who| who.address.cmp(address)).is_ok();
    let leaves = plan.unsubscribe.binary_search(address).is_ok();
    match plan.verdict {
        Verdict::Blocked(block) if joins || leaves => Some(format!("the list is blocked: {block}")),
        _ if is_subscribed && !is_wanted && target.keep.contains(address) => {
            Some("it stays subscribed because of keep".to_owned())
        }
        _ if is_subscribed && !is_wanted && !leaves && plan.withheld > 0 => {
            Some("it stays subscribed while something of this list cannot be read".to_owned())
        }
        _ => None,
    }
}
