//! Why an address is, or is not, wanted on a list.

use std::collections::HashSet;

use crate::address::Address;
use crate::event::Event;
use crate::mapping::Target;
use crate::plan::{GroupEnd, Standing};
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
    let subscribed = made.as_ref().ok().map(|(roster, _)| roster.contains(address));
    let why = why_not(address, target, people);
    ListExplanation {
        list_id: target.list.to_string(),
        wanted: why.is_none(),
        subscribed,
        why: why.map(|mut why| {
            if subscribed == Some(true) && target.keep.contains(address) {
                why.push_str("; it stays subscribed because of keep");
            }
            why
        }),
    }
}

/// `None` where the address is wanted.
fn why_not(address: &Address, target: &Target, people: &People) -> Option<String> {
    let groups = || target.groups.iter().filter_map(|group| people.groups.get(group));
    let members: HashSet<_> = groups().flat_map(|group| group.members.iter()).collect();
    let mut reasons: Vec<&str> = Vec::new();
    let (mut is_wanted, mut is_hidden) = (false, false);
    let mut unknown = groups().any(|group| group.nameless > 0 || matches!(group.end, GroupEnd::Unread(_)));
    for standing in members.into_iter().map(|member| people.directory.get(member).unwrap_or(&Standing::Unknown)) {
        match standing {
            Standing::Member { address: a, .. } if a == address && a.is_valid() => is_wanted = true,
            Standing::Member { address: a, .. } if a == address => {
                reasons.push("the address is not valid, so it is neither added nor removed");
            }
            Standing::Hidden(a) if a == address => {
                is_hidden = true;
                reasons.push("its record hides Active or UnsubscribeFromEmails, so it is neither added nor removed");
            }
            Standing::Inactive(a) if a == address => reasons.push("its record is not active in Novi"),
            Standing::OptedOut(a) if a == address => reasons.push("its record is unsubscribed from emails in Novi"),
            Standing::Unknown => unknown = true,
            _ => {}
        }
    }
    if is_wanted && !is_hidden {
        return None;
    }
    reasons.sort_unstable();
    reasons.dedup();
    Some(match (reasons.is_empty(), unknown) {
        (false, _) => reasons.join("; "),
        (true, false) => "no record in the groups of this list has this address".to_owned(),
        (true, true) => "no record that could be read has this address; some could not be read".to_owned(),
    })
}
