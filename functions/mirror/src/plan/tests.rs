//! Tests of each rule of a plan, and property tests over arbitrary scenarios.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// The input of a plan, which each test changes as it needs.
struct Scenario {
    target: Target,
    groups: HashMap<Uuid, Group>,
    directory: Directory,
    roster: BTreeSet<Address>,
    /// Additional memberships of addresses on the roster.
    repeated_rows: Vec<Address>,
    force: bool,
}

const GROUP: Uuid = Uuid::from_u128(1);

impl Scenario {
    /// One list with one complete group, without members and subscribers.
    fn new() -> Self {
        let group = Group { members: Vec::new(), rows_without_id: 0, end: GroupEnd::Complete };
        Self {
            target: Target {
                list: ListId::parse("members.lists.example.org").unwrap(),
                groups: BTreeSet::from([GROUP]),
                keep: BTreeSet::new(),
                limits: crate::mapping::Limits::default(),
                has_unresolved_mapping: false,
            },
            groups: HashMap::from([(GROUP, group)]),
            directory: HashMap::new(),
            roster: BTreeSet::new(),
            repeated_rows: Vec::new(),
            force: false,
        }
    }

    fn member(mut self, status: MemberStatus) -> Self {
        let id = Uuid::from_u128(1_000 + self.directory.len() as u128);
        let id = MemberId::parse(&id.hyphenated().to_string()).unwrap();
        self.directory.insert(id, status);
        self.group().members.push(id);
        self
    }

    /// Adds members `m0@…` to `m{n-1}@…`.
    fn members(mut self, n: usize) -> Self {
        for i in 0..n {
            self = self.member(wanted(&format!("m{i}@example.org")));
        }
        self
    }

    fn subscribed(mut self, addresses: impl IntoIterator<Item = String>) -> Self {
        self.roster.extend(addresses.into_iter().map(|address| Address::new(&address)));
        self
    }

    fn group(&mut self) -> &mut Group {
        self.groups.get_mut(&GROUP).unwrap()
    }

    fn ended(mut self, end: GroupEnd) -> Self {
        self.group().end = end;
        self
    }

    fn plan(&self) -> Plan {
        let mut roster = Roster::default();
        roster.extend(self.roster.iter().chain(&self.repeated_rows).cloned());
        Plan::new(&self.target, &self.groups, &self.directory, &roster, self.force)
    }
}

fn wanted(address: &str) -> MemberStatus {
    MemberStatus::Member { address: Address::new(address), name: Some("Ada L.".to_owned()) }
}

fn m(range: std::ops::Range<usize>) -> impl Iterator<Item = String> {
    range.map(|i| format!("m{i}@example.org"))
}

fn joining(plan: &Plan) -> Vec<&str> {
    plan.subscribe.iter().map(|subscriber| subscriber.address.as_str()).collect()
}

fn leaving(plan: &Plan) -> Vec<&str> {
    plan.unsubscribe.iter().map(Address::as_str).collect()
}

#[test]
fn wanted_addresses_join_and_others_leave() {
    let scenario = Scenario::new().members(10).subscribed(m(2..12)).subscribed(["kept@example.org".to_owned()]);
    let plan = Scenario {
        target: Target { keep: BTreeSet::from([Address::new("kept@example.org")]), ..scenario.target.clone() },
        ..scenario
    }
    .plan();
    assert_eq!(joining(&plan), ["m0@example.org", "m1@example.org"]);
    assert_eq!(leaving(&plan), ["m10@example.org", "m11@example.org"]);
    assert_eq!(
        plan.to_string(),
        "members.lists.example.org: 11 subscribed, 10 wanted: 2 join, 2 leave, 1 kept, 0 withheld"
    );
    assert_eq!(plan.verdict, Verdict::Sound);
}

#[test]
fn every_skipped_record_is_counted_by_reason() {
    let a = |text: &str| Address::new(text);
    let plan = Scenario::new()
        .members(2)
        .member(wanted("M0@Example.org"))
        .member(MemberStatus::Inactive(a("i@example.org")))
        .member(MemberStatus::OptedOut(a("o@example.org")))
        .member(MemberStatus::NoEmail)
        .member(MemberStatus::NotFound)
        .member(wanted("not an address"))
        .subscribed(m(0..1))
        .plan();
    let expected =
        Skipped { inactive: 1, opted_out: 1, no_email: 1, invalid_email: 1, not_found: 1, unknown: 0, duplicate: 1 };
    assert_eq!(plan.skipped, expected);
    assert_eq!((plan.wanted, joining(&plan)), (2, vec!["m1@example.org"]));
    assert!(plan.warnings.is_empty());
}

#[test]
fn address_wanted_by_one_record_stays_despite_other_records() {
    let plan = Scenario::new()
        .members(5)
        .member(MemberStatus::OptedOut(Address::new("m0@example.org")))
        .member(MemberStatus::Inactive(Address::new("m1@example.org")))
        .subscribed(m(0..5))
        .plan();
    assert!(plan.is_empty());
}

#[test]
fn subscribed_address_is_not_removed_for_looking_invalid() {
    let plan = Scenario::new()
        .members(4)
        .member(wanted("a..b@example.org"))
        .subscribed(m(0..4))
        .subscribed(["a..b@example.org".to_owned()])
        .plan();
    assert!(plan.is_empty());
    assert_eq!(plan.skipped.invalid_email, 1);
}

#[test]
fn unknown_data_removes_no_one() {
    let synced = || Scenario::new().members(8).subscribed(m(1..10));
    assert_eq!(leaving(&synced().plan()), ["m8@example.org", "m9@example.org"]);
    let mut without_id = synced();
    without_id.group().rows_without_id = 1;
    let mut unresolved = synced();
    unresolved.target.has_unresolved_mapping = true;
    for scenario in [
        unresolved,
        synced().member(MemberStatus::Unknown),
        synced().ended(GroupEnd::Incomplete("it ended early".to_owned())),
        without_id,
    ] {
        let plan = scenario.plan();
        assert!(plan.unsubscribe.is_empty());
        assert_eq!(joining(&plan), ["m0@example.org"], "additions go ahead");
        assert_eq!(plan.withheld, 2);
        assert!(plan.warnings[0].ends_with("no one is removed."));
        assert_eq!(plan.verdict, Verdict::Sound);
    }
}

#[test]
fn hidden_flag_neither_adds_nor_removes_and_affects_no_other_address() {
    let plan = Scenario::new()
        .members(8)
        .member(MemberStatus::Hidden(Address::new("m8@example.org")))
        .member(MemberStatus::Hidden(Address::new("new@example.org")))
        .subscribed(m(0..10))
        .plan();
    assert_eq!(leaving(&plan), ["m9@example.org"]);
    assert!(plan.subscribe.is_empty());
    assert_eq!((plan.withheld, plan.skipped.unknown), (0, 2));
    assert!(plan.warnings[0].contains("Active or UnsubscribeFromEmails is hidden in 2 of"));
}

#[test]
fn repeated_address_leaves_once_and_is_reported_if_it_stays() {
    let mut scenario = Scenario::new().members(8).subscribed(m(0..9));
    scenario.repeated_rows = m(7..9).map(|address| Address::new(&address)).collect();
    let plan = scenario.plan();
    assert_eq!((leaving(&plan), plan.roster), (vec!["m8@example.org"], 9));
    assert_eq!(plan.warnings.len(), 1);
    assert!(
        plan.warnings[0].starts_with("The roster contains addresses that are subscribed more than once (1)"),
        "{:?}",
        plan.warnings
    );
}

#[test]
fn plan_beyond_its_limits_is_blocked() {
    let removal = |roster: usize, stay: usize| Scenario::new().members(stay).subscribed(m(0..roster)).plan().verdict;
    // The larger of 3 and 30 percent may leave.
    assert_eq!(removal(100, 70), Verdict::Sound);
    assert_eq!(removal(100, 69), Verdict::Blocked(Block::Removals { count: 31, roster: 100, percent: 30 }));
    assert_eq!(removal(5, 2), Verdict::Sound);
    assert_eq!(removal(5, 1), Verdict::Blocked(Block::Removals { count: 4, roster: 5, percent: 30 }));
    // Never all members, however few they are.
    let one_member = || Scenario::new().member(wanted("new@example.org"));
    assert_eq!(one_member().subscribed(m(0..1)).plan().verdict, Verdict::Blocked(Block::Everyone { roster: 1 }));
    assert_eq!(one_member().subscribed(m(0..3)).plan().verdict, Verdict::Blocked(Block::Everyone { roster: 3 }));
    // Kept addresses count as members, so all others may leave within the floor.
    let mut kept = one_member().subscribed(m(0..4));
    kept.target.keep = BTreeSet::from([Address::new("m0@example.org")]);
    assert_eq!((kept.plan().verdict, kept.plan().unsubscribe.len()), (Verdict::Sound, 3));

    // The larger of 25 and 100 percent may join. An empty list has no limit.
    let growth =
        |roster: usize, members: usize| Scenario::new().members(members).subscribed(m(0..roster)).plan().verdict;
    assert_eq!(growth(0, 5_000), Verdict::Sound);
    assert_eq!(growth(1, 26), Verdict::Sound);
    assert_eq!(growth(1, 27), Verdict::Blocked(Block::Growth { count: 26, roster: 1, percent: 100 }));
    assert_eq!(growth(40, 80), Verdict::Sound);
    assert_eq!(growth(40, 81), Verdict::Blocked(Block::Growth { count: 41, roster: 40, percent: 100 }));
}

#[test]
fn missing_or_empty_group_is_blocked() {
    let missing = Scenario::new().members(3).subscribed(m(0..3)).ended(GroupEnd::Missing);
    assert_eq!(missing.plan().verdict, Verdict::Blocked(Block::MissingGroup));
    assert_eq!(Scenario { force: true, ..missing }.plan().verdict, Verdict::Blocked(Block::MissingGroup));

    let empty = Scenario::new().subscribed(m(0..2));
    assert_eq!(empty.plan().verdict, Verdict::Blocked(Block::EmptyGroups { roster: 2 }));
    let forced = Scenario { force: true, ..empty }.plan();
    assert_eq!(forced.verdict, Verdict::Forced(Block::EmptyGroups { roster: 2 }));
    assert_eq!(forced.unsubscribe.len(), 2);
    // Empty groups are fine for an empty list.
    assert_eq!(Scenario::new().plan().verdict, Verdict::Sound);
    // An unreadable group isn't an empty one.
    let incomplete = Scenario::new().subscribed(m(0..2)).ended(GroupEnd::Incomplete("x".to_owned())).plan();
    assert_eq!((incomplete.verdict, incomplete.withheld), (Verdict::Sound, 2));
}

#[test]
fn limits_come_from_the_mapping() {
    let mut scenario = Scenario::new().members(90).subscribed(m(0..100));
    scenario.target.limits.max_removal_percent = 5;
    let Verdict::Blocked(block) = scenario.plan().verdict else { panic!("not blocked") };
    assert_eq!(
        block.to_string(),
        "10 of 100 addresses would be unsubscribed, more than the larger of 3 and 5 percent (max_removal_percent)"
    );
    assert_eq!(block.force_event(&scenario.target.list), Some(json!({"force": ["members.lists.example.org"]})));
    assert_eq!(Block::MissingGroup.force_event(&scenario.target.list), None);
}

/// A scenario in numbers, because a scenario itself cannot be printed.
#[derive(Clone, Debug)]
struct Seed {
    /// The kind of each status, and the number of its address.
    statuses: Vec<(u8, u8)>,
    roster: BTreeSet<u8>,
    keep: BTreeSet<u8>,
    /// The result of reading each mapped group.
    ends: Vec<GroupEnd>,
    removal: u64,
    growth: u64,
    force: bool,
}

impl Seed {
    fn scenario(&self) -> Scenario {
        let address = |n: &u8| Address::new(&format!("p{n}@example.org"));
        let mut scenario = Scenario::new();
        for (kind, number) in &self.statuses {
            scenario = scenario.member(match kind {
                0 => MemberStatus::Hidden(address(number)),
                1 => MemberStatus::Inactive(address(number)),
                2 => MemberStatus::OptedOut(address(number)),
                3 => MemberStatus::NoEmail,
                4 => MemberStatus::NotFound,
                // Rare, or every scenario would contain unknown records.
                5 if *number < 4 => MemberStatus::Unknown,
                6 => wanted("no address"),
                _ => MemberStatus::Member { address: address(number), name: None },
            });
        }
        // Every member is in one of the mapped groups, and some are in all of them.
        let members = std::mem::take(&mut scenario.group().members);
        scenario.groups.clear();
        for (n, end) in self.ends.iter().enumerate() {
            let is_in = |index: &usize| index % self.ends.len() == n || index.is_multiple_of(5);
            let members = members.iter().enumerate().filter(|(index, _)| is_in(index)).map(|(_, id)| *id).collect();
            scenario.groups.insert(Uuid::from_u128(n as u128), Group { members, rows_without_id: 0, end: end.clone() });
        }
        scenario.target.groups = scenario.groups.keys().copied().collect();
        scenario.target.keep = self.keep.iter().map(address).collect();
        scenario.target.limits.max_removal_percent = self.removal;
        scenario.target.limits.max_growth_percent = self.growth;
        Scenario { roster: self.roster.iter().map(address).collect(), force: self.force, ..scenario }
    }
}

fn any_scenario() -> impl Strategy<Value = Seed> {
    let incomplete = GroupEnd::Incomplete("x".to_owned());
    let end = prop_oneof![12 => Just(GroupEnd::Complete), 1 => Just(GroupEnd::Missing), 1 => Just(incomplete)];
    let statuses = proptest::collection::vec((0_u8..16, 0_u8..40), 0..40);
    let numbers = |most| proptest::collection::btree_set(0_u8..40, 0..most);
    (statuses, numbers(40), numbers(4), proptest::collection::vec(end, 1..4), 0_u64..=100, 0_u64..=200, any::<bool>())
        .prop_map(|(statuses, roster, keep, ends, removal, growth, force)| Seed {
            statuses,
            roster,
            keep,
            ends,
            removal,
            growth,
            force,
        })
}

proptest! {
    /// Applying a plan to a model roster results in the wanted and kept addresses, and a second plan has nothing to do.
    #[test]
    fn applied_plan_is_correct_and_the_next_one_is_empty(seed in any_scenario()) {
        let scenario = seed.scenario();
        let plan = scenario.plan();
        let mut roster = scenario.roster.clone();
        roster.extend(plan.subscribe.iter().map(|subscriber| subscriber.address.clone()));
        for address in &plan.unsubscribe {
            prop_assert!(roster.remove(address), "it removes an address that isn't subscribed");
            prop_assert!(!scenario.target.keep.contains(address), "it removes a kept address");
        }

        let addresses_of = |pick: fn(&MemberStatus) -> Option<&Address>| -> BTreeSet<Address> {
            scenario.directory.values().filter_map(pick).cloned().collect()
        };
        let wanted: BTreeSet<Address> = addresses_of(|status| match status {
            MemberStatus::Member { address, .. } => Some(address),
            _ => None,
        }).into_iter().filter(Address::is_valid).collect();
        let hidden = addresses_of(|status| match status { MemberStatus::Hidden(address) => Some(address), _ => None });
        let is_unknown = scenario.directory.values().any(|s| matches!(s, MemberStatus::Unknown))
            || scenario.groups.values().any(|group| matches!(group.end, GroupEnd::Incomplete(_)));

        prop_assert!(wanted.iter().all(|address| roster.contains(address) || hidden.contains(address)));
        if is_unknown {
            prop_assert!(scenario.roster.is_subset(&roster), "something was unknown and an address left");
        } else {
            let stay: BTreeSet<Address> = scenario.roster.iter()
                .filter(|address| scenario.target.keep.contains(*address) || hidden.contains(*address))
                .cloned().collect();
            // An address that one record hides doesn't join because of another record.
            let wanted: BTreeSet<Address> = wanted.difference(&hidden).cloned().collect();
            let expected: BTreeSet<Address> = wanted.union(&stay).cloned().collect();
            prop_assert!(roster == expected);
        }

        let second = Scenario { roster, ..scenario }.plan();
        prop_assert!(second.is_empty(), "the second plan isn't empty");
    }

    /// A plan beyond its limits is only applied if it is forced.
    #[test]
    fn sound_plan_is_within_its_limits(seed in any_scenario()) {
        let scenario = seed.scenario();
        let plan = scenario.plan();
        let (roster, leave, join) = (scenario.roster.len(), plan.unsubscribe.len(), plan.subscribe.len());
        let limits = scenario.target.limits;
        if plan.verdict == Verdict::Sound {
            prop_assert!(leave <= 3 || leave as u64 * 100 <= limits.max_removal_percent * roster as u64);
            prop_assert!(roster == 0 || leave < roster);
            prop_assert!(roster == 0 || join <= 25 || join as u64 * 100 <= limits.max_growth_percent * roster as u64);
            prop_assert!(scenario.groups.values().all(|group| group.end != GroupEnd::Missing));
        }
        prop_assert!(scenario.force || !matches!(plan.verdict, Verdict::Forced(_)));
    }
}
