//! Shows who would join and leave, so that an administrator can decide about a plan.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;

use crate::address::Address;
use crate::directory::{MemberStatus, People};
use crate::plan::{LeaveReason, Plan};
use crate::roster::Roster;

/// The maximum number of addresses in a result.
const MAX_ADDRESSES: usize = 5_000;

/// The changes to one list, as far as they fit into the result.
#[derive(Serialize)]
pub(crate) struct Shown {
    joins: Vec<String>,
    leaves: Vec<String>,
    /// The former and the present address. Only the ledger knows former ones.
    moves: Vec<[String; 2]>,
    leave_reasons: BTreeMap<String, &'static str>,
    /// The number of addresses that don't fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_out: Option<usize>,
}

/// Shows the changes of every plan, in their order, even if they are blocked, held or withheld.
pub(crate) fn show(plans: &[Option<(&Roster, &Plan)>], people: &People) -> Vec<Option<Shown>> {
    let known: HashSet<&Address> = people.directory.values().flat_map(MemberStatus::addresses).collect();
    let mut room = MAX_ADDRESSES;
    plans.iter().map(|planned| planned.map(|(_, plan)| Shown::new(plan, &known, &mut room))).collect()
}

impl Shown {
    fn new(plan: &Plan, known: &HashSet<&Address>, room: &mut usize) -> Self {
        let mut fits = || {
            let fits = *room > 0;
            *room -= usize::from(fits);
            fits
        };
        let text = |address: &Address| address.as_str().to_owned();
        // Leavers first, because they are what an administrator has to decide about.
        let leavers: Vec<_> = plan.leaves.iter().take_while(|_| fits()).collect();
        let joins: Vec<String> = plan.joins.iter().take_while(|_| fits()).map(|joins| text(&joins.address)).collect();
        let moves: Vec<[String; 2]> = plan
            .moves
            .iter()
            .take_while(|_| fits())
            .map(|moved| [text(&moved.from), text(&moved.to.address)])
            .collect();
        let planned = plan.joins.len() + plan.moves.len() + plan.leaves.len();
        let left_out = planned - joins.len() - moves.len() - leavers.len();
        let reason = |address: &Address, reason| match reason {
            LeaveReason::Inactive => "inactive",
            LeaveReason::OptedOut => "opted_out",
            LeaveReason::NoRecord if known.contains(address) => "not_in_group",
            LeaveReason::NoRecord => "unknown_address",
        };
        Self {
            joins,
            leaves: leavers.iter().map(|leaver| text(&leaver.address)).collect(),
            moves,
            leave_reasons: leavers
                .iter()
                .map(|leaver| (text(&leaver.address), reason(&leaver.address, leaver.reason)))
                .collect(),
            left_out: (left_out > 0).then_some(left_out),
        }
    }
}

#[cfg(test)]
impl Shown {
    pub(crate) fn of_one_leaver(address: &str) -> Self {
        let leave_reasons = BTreeMap::from([(address.to_owned(), "inactive")]);
        Self { joins: Vec::new(), leaves: vec![address.to_owned()], moves: Vec::new(), leave_reasons, left_out: None }
    }
}

shared::unprintable!(Shown);

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use serde_json::json;
    use shared::member::MemberId;
    use uuid::Uuid;

    use super::*;
    use crate::directory::{Group, GroupEnd};
    use crate::mapping::{Mappings, Target};
    use crate::plan::History;

    fn target() -> Target {
        let mapping = json!({"group_guid": Uuid::nil().to_string(), "list_id": "a.lists.example.org"});
        Mappings::parse(vec![mapping]).targets.remove(0)
    }

    /// Plans a list with a group of the first people with these statuses.
    fn planned(statuses: Vec<MemberStatus>, in_group: usize, roster: &[&str]) -> (Roster, Plan, People) {
        let id = |n: usize| MemberId::parse(&Uuid::from_u128(n as u128 + 1).hyphenated().to_string()).unwrap();
        let members = (0..in_group).map(id).collect();
        let group = Group { members, rows_without_id: 0, missing_rows: 0, end: GroupEnd::Complete };
        let directory = statuses.into_iter().enumerate().map(|(n, status)| (id(n), status)).collect();
        let people = People { groups: HashMap::from([(Uuid::nil(), group)]), directory, ..People::default() };
        let mut subscribed = Roster::default();
        subscribed.extend(roster.iter().map(|text| Address::new(text)));
        let plan = Plan::new(&target(), &people, &subscribed, &BTreeSet::new(), &History::default(), None);
        (subscribed, plan, people)
    }

    fn member(text: &str) -> MemberStatus {
        MemberStatus::Member { address: Address::new(text), name: None, after_space: None }
    }

    #[test]
    fn everyone_who_would_join_or_leave_is_shown_with_a_reason() {
        let statuses = vec![
            member("ann@example.org"),
            MemberStatus::Inactive(Address::new("bob@example.org")),
            MemberStatus::OptedOut(Address::new("eve@example.org")),
            member("dan@example.org"),
        ];
        let roster = ["bob@example.org", "dan@example.org", "eve@example.org", "zoe@example.org"];
        let (roster, plan, people) = planned(statuses, 3, &roster);
        assert!(plan.is_empty(), "it is blocked");
        let shown = show(&[None, Some((&roster, &plan))], &people);
        assert!(shown[0].is_none());
        assert_eq!(
            serde_json::to_value(&shown[1]).unwrap(),
            json!({
                "joins": ["ann@example.org"],
                "leaves": ["bob@example.org", "dan@example.org", "eve@example.org", "zoe@example.org"],
                "moves": [],
                "leave_reasons": {
                    "bob@example.org": "inactive",
                    "dan@example.org": "not_in_group",
                    "eve@example.org": "opted_out",
                    "zoe@example.org": "unknown_address",
                },
            })
        );
    }

    #[test]
    fn at_most_5000_addresses_are_shown() {
        let members = |n: usize| (0..n).map(|i| member(&format!("m{i}@example.org"))).collect();
        let (first_roster, first, _) = planned(members(3_000), 3_000, &[]);
        let (second_roster, second, people) = planned(members(2_500), 2_500, &["zoe@example.org"]);
        let shown = show(&[Some((&first_roster, &first)), Some((&second_roster, &second))], &people);
        let counts =
            |shown: &Option<Shown>| shown.as_ref().map(|shown| (shown.joins.len(), shown.leaves.len(), shown.left_out));
        assert_eq!(counts(&shown[0]), Some((3_000, 0, None)));
        assert_eq!(counts(&shown[1]), Some((1_999, 1, Some(501))));
    }
}
