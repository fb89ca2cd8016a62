//! Writes what a run has read and done into the ledger.

use std::collections::{BTreeSet, HashSet};

use shared::time::DAY;

use crate::address::Address;
use crate::directory::{GroupEnd, MemberStatus, People, Person, members_of};
use crate::ledger::Document;
use crate::mapping::{ListId, Mappings};
use crate::report::{LedgerReport, ListReport};

/// How long a list that no mapping names any more is reported, in seconds.
const UNMAPPED_PERIOD: u64 = 7 * DAY;

/// Takes what this run has read into the ledger. `rosters` has the addresses of every roster, if all of them could be
/// read, and `is_partial` is true if the run doesn't concern all lists.
pub(super) fn remember(
    document: &mut Document,
    people: People,
    rosters: Option<&HashSet<&Address>>,
    is_partial: bool,
    now: u64,
) -> LedgerReport {
    let members = members_of(people.groups.values());
    let are_complete = people.groups.values().all(|group| group.end == GroupEnd::Complete);
    let People { directory, mut earlier, pass_began, .. } = people;
    for (id, status) in directory {
        let new =
            || Person { asked: now, is_unknown: false, status: MemberStatus::NotYetRead, former: BTreeSet::new() };
        let person = earlier.entry(id).or_insert_with(new);
        person.asked = now;
        person.is_unknown = matches!(status, MemberStatus::Unknown);
        if !person.is_unknown {
            let before = std::mem::replace(&mut person.status, status);
            let former = before.addresses().filter(|address| !person.status.has_address(address));
            person.former.extend(former.cloned());
        }
        let Person { status, former, .. } = person;
        let is_on_a_roster = |address: &Address| rosters.is_none_or(|rosters| is_partial || rosters.contains(address));
        former.retain(|address| !status.has_address(address) && is_on_a_roster(address));
    }
    if are_complete && !is_partial {
        // Who left the groups may come back while the address is still on a list.
        let is_on_a_roster = |address: &Address| rosters.is_none_or(|rosters| rosters.contains(address));
        earlier.retain(|id, person| {
            members.contains(id) || person.status.addresses().chain(&person.former).any(is_on_a_roster)
        });
    }
    let persons = || members.iter().filter_map(|id| earlier.get(id));
    let read = persons().filter(|person| person.asked >= pass_began).count();
    let is_complete = read == members.len();
    let report = LedgerReport {
        people: members.len(),
        read,
        pass: if is_complete { "complete" } else { "under_way" },
        oldest_seconds: persons().map(|person| now.saturating_sub(person.asked)).max(),
        pass_seconds: if is_complete { 0 } else { now.saturating_sub(pass_began) },
    };
    document.people = earlier;
    report
}

/// Reports the lists that no mapping names any more, and forgets them after a week.
pub(super) fn unmapped(document: &mut Document, mappings: &Mappings, now: u64) -> Vec<ListReport> {
    let mut reports = Vec::new();
    document.lists.retain(|list: &ListId, entry| {
        if mappings.lists.contains(list) {
            return true;
        }
        let is_recent = now.saturating_sub(*entry.unmapped_since.get_or_insert(now)) < UNMAPPED_PERIOD;
        reports.extend(is_recent.then(|| ListReport::unmapped(list)));
        is_recent
    });
    reports
}
