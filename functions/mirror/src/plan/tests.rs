//! The plan, rule by rule, and as a whole over arbitrary worlds.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A small world that a test changes before it asks for a plan.
struct World {
    target: Target,
    groups: HashMap<Uuid, Group>,
    directory: Directory,
    roster: BTreeSet<Address>,
    /// Rows that are there once more.
    again: Vec<Address>,
    force: bool,
}

const GROUP: Uuid = Uuid::from_u128(1);

impl World {
    /// One list, one group that was read, nobody anywhere.
    fn new() -> Self {
        let group = Group { members: Vec::new(), nameless: 0, end: GroupEnd::Read };
        Self {
            target: Target {
                list: ListId::parse("members.lists.example.org").unwrap(),
                groups: BTreeSet::from([GROUP]),
                keep: BTreeSet::new(),
                limits: crate::mapping::Limits::default(),
                is_in_doubt: false,
            },
            groups: HashMap::from([(GROUP, group)]),
            directory: HashMap::new(),
            roster: BTreeSet::new(),
            again: Vec::new(),
            force: false,
        }
    }

    fn member(mut self, standing: Standing) -> Self {
        let id = Uuid::from_u128(1_000 + self.directory.len() as u128);
        let id = MemberId::parse(&id.hyphenated().to_string()).unwrap();
        self.directory.insert(id, standing);
        self.group().members.push(id);
        self
    }

    /// Members `m0@…` to `m{n-1}@…`.
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
        roster.extend(self.roster.iter().chain(&self.again).cloned());
        Plan::make(&self.target, &self.groups, &self.directory, &roster, self.force)
    }
}

fn wanted(address: &str) -> Standing {
    Standing::Member { address: Address::new(address), name: Some("Ada L.".to_owned()) }
}

fn m(range: std::ops::Range<usize>) -> impl Iterator<Item = String> {
    range.map(|i| format!("m{i}@example.org"))
}

fn joining(plan: &Plan) -> Vec<&str> {
    plan.subscribe.iter().map(|who| who.address.as_str()).collect()
}

fn leaving(plan: &Plan) -> Vec<&str> {
    plan.unsubscribe.iter().map(Address::as_str).collect()
}

#[test]
fn what_a_record_says_by_every_rule() {
    let full = json!({
        "Name": "Ada Lovelace", "FirstName": "Ada", "LastName": "Lovelace", "Email": "Ada X@Example.org",
        "Active": true, "UnsubscribeFromEmails": false,
    });
    let kind = |changes: serde_json::Value| {
        let mut record = full.clone();
        for (key, value) in changes.as_object().into_iter().flatten() {
            match (record.as_object_mut(), value.as_str()) {
                (Some(map), Some("ABSENT")) => drop(map.remove(key)),
                (Some(map), _) => drop(map.insert(key.clone(), value.clone())),
                _ => {}
            }
        }
        let record = Record::parse(record.to_string().as_bytes()).ok().flatten();
        match Standing::of(record.as_ref()) {
            Standing::Member { address, name } => format!("{} {}", address.as_str(), name.unwrap_or_default()),
            Standing::Hidden(_) => "hidden".to_owned(),
            Standing::Inactive(_) => "inactive".to_owned(),
            Standing::OptedOut(_) => "opted out".to_owned(),
            Standing::NoEmail => "no email".to_owned(),
            Standing::NotFound => "not found".to_owned(),
            Standing::Unknown => "unknown".to_owned(),
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
    ] {
        assert_eq!(kind(changes.clone()), expected, "{changes}");
    }
    assert!(matches!(Standing::of(None), Standing::NotFound));
}

#[test]
fn who_is_wanted_joins_and_who_is_not_leaves() {
    let world = World::new().members(10).subscribed(m(2..12)).subscribed(["kept@example.org".to_owned()]);
    let plan = World {
        target: Target { keep: BTreeSet::from([Address::new("kept@example.org")]), ..world.target.clone() },
        ..world
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
fn everybody_who_is_not_wanted_is_counted() {
    let a = |text: &str| Address::new(text);
    let plan = World::new()
        .members(2)
        .member(wanted("M0@Example.org"))
        .member(Standing::Inactive(a("i@example.org")))
        .member(Standing::OptedOut(a("o@example.org")))
        .member(Standing::NoEmail)
        .member(Standing::NotFound)
        .member(wanted("not an address"))
        .subscribed(m(0..1))
        .plan();
    let expected =
        Skipped { inactive: 1, opted_out: 1, no_email: 1, invalid_email: 1, not_found: 1, unknown: 0, duplicate: 1 };
    assert_eq!(plan.skipped, expected);
    assert_eq!((plan.wanted, joining(&plan)), (2, vec!["m1@example.org"]));
    assert!(plan.doubts.is_empty());
}

#[test]
fn an_address_that_one_record_wants_stays_whatever_another_says() {
    let plan = World::new()
        .members(5)
        .member(Standing::OptedOut(Address::new("m0@example.org")))
        .member(Standing::Inactive(Address::new("m1@example.org")))
        .subscribed(m(0..5))
        .plan();
    assert!(plan.is_empty());
}

#[test]
fn an_odd_address_that_is_subscribed_is_not_removed_for_its_looks() {
    let plan = World::new()
        .members(4)
        .member(wanted("a..b@example.org"))
        .subscribed(m(0..4))
        .subscribed(["a..b@example.org".to_owned()])
        .plan();
    assert!(plan.is_empty());
    assert_eq!(plan.skipped.invalid_email, 1);
}

#[test]
fn anything_unknown_removes_nobody() {
    let settled = || World::new().members(8).subscribed(m(1..10));
    assert_eq!(leaving(&settled().plan()), ["m8@example.org", "m9@example.org"]);
    let mut nameless = settled();
    nameless.group().nameless = 1;
    let mut doubtful = settled();
    doubtful.target.is_in_doubt = true;
    for world in
        [doubtful, settled().member(Standing::Unknown), settled().ended(GroupEnd::Unread("it ended early")), nameless]
    {
        let plan = world.plan();
        assert!(plan.unsubscribe.is_empty());
        assert_eq!(joining(&plan), ["m0@example.org"], "additions go ahead");
        assert_eq!(plan.withheld, 2);
        assert!(plan.doubts[0].ends_with("nobody is removed"));
        assert_eq!(plan.verdict, Verdict::Sound);
    }
}

#[test]
fn a_hidden_flag_neither_adds_nor_removes_and_holds_up_nobody_else() {
    let plan = World::new()
        .members(8)
        .member(Standing::Hidden(Address::new("m8@example.org")))
        .member(Standing::Hidden(Address::new("new@example.org")))
        .subscribed(m(0..10))
        .plan();
    assert_eq!(leaving(&plan), ["m9@example.org"]);
    assert!(plan.subscribe.is_empty());
    assert_eq!((plan.withheld, plan.skipped.unknown), (0, 2));
    assert!(plan.doubts[0].contains("hide Active or UnsubscribeFromEmails"));
}

#[test]
fn who_is_subscribed_twice_leaves_once_and_is_reported_while_staying() {
    let mut world = World::new().members(8).subscribed(m(0..9));
    world.again = m(7..9).map(|address| Address::new(&address)).collect();
    let plan = world.plan();
    assert_eq!((leaving(&plan), plan.roster), (vec!["m8@example.org"], 9));
    assert_eq!(plan.doubts.len(), 1);
    assert!(plan.doubts[0].starts_with("1 of its addresses are subscribed more than once"), "{:?}", plan.doubts);
}

#[test]
fn a_plan_that_looks_wrong_is_blocked() {
    let removal = |roster: usize, stay: usize| World::new().members(stay).subscribed(m(0..roster)).plan().verdict;
    // The larger of 3 and 30 percent may leave.
    assert_eq!(removal(100, 70), Verdict::Sound);
    assert_eq!(removal(100, 69), Verdict::Blocked(Block::Removals { count: 31, roster: 100, percent: 30 }));
    assert_eq!(removal(5, 2), Verdict::Sound);
    assert_eq!(removal(5, 1), Verdict::Blocked(Block::Removals { count: 4, roster: 5, percent: 30 }));
    // Never everybody, however few.
    let other = || World::new().member(wanted("new@example.org"));
    assert_eq!(other().subscribed(m(0..1)).plan().verdict, Verdict::Blocked(Block::Everyone { roster: 1 }));
    assert_eq!(other().subscribed(m(0..3)).plan().verdict, Verdict::Blocked(Block::Everyone { roster: 3 }));
    // Whom keep protects is somebody: within the floor the others may leave.
    let mut kept = other().subscribed(m(0..4));
    kept.target.keep = BTreeSet::from([Address::new("m0@example.org")]);
    assert_eq!((kept.plan().verdict, kept.plan().unsubscribe.len()), (Verdict::Sound, 3));

    // The larger of 25 and 100 percent may join; an empty list takes all.
    let growth = |roster: usize, members: usize| World::new().members(members).subscribed(m(0..roster)).plan().verdict;
    assert_eq!(growth(0, 5_000), Verdict::Sound);
    assert_eq!(growth(1, 26), Verdict::Sound);
    assert_eq!(growth(1, 27), Verdict::Blocked(Block::Growth { count: 26, roster: 1, percent: 100 }));
    assert_eq!(growth(40, 80), Verdict::Sound);
    assert_eq!(growth(40, 81), Verdict::Blocked(Block::Growth { count: 41, roster: 40, percent: 100 }));
}

#[test]
fn a_missing_or_empty_group_is_blocked() {
    let missing = World::new().members(3).subscribed(m(0..3)).ended(GroupEnd::Missing);
    assert_eq!(missing.plan().verdict, Verdict::Blocked(Block::MissingGroup));
    assert_eq!(World { force: true, ..missing }.plan().verdict, Verdict::Blocked(Block::MissingGroup));

    let empty = World::new().subscribed(m(0..2));
    assert_eq!(empty.plan().verdict, Verdict::Blocked(Block::EmptyGroups { roster: 2 }));
    let forced = World { force: true, ..empty }.plan();
    assert_eq!(forced.verdict, Verdict::Forced(Block::EmptyGroups { roster: 2 }));
    assert_eq!(forced.unsubscribe.len(), 2);
    // Nothing there and nothing subscribed is in order.
    assert_eq!(World::new().plan().verdict, Verdict::Sound);
    // A group that could not be read is not an empty one.
    let unread = World::new().subscribed(m(0..2)).ended(GroupEnd::Unread("x")).plan();
    assert_eq!((unread.verdict, unread.withheld), (Verdict::Sound, 2));
}

#[test]
fn the_limits_are_the_mapping_s() {
    let mut world = World::new().members(90).subscribed(m(0..100));
    world.target.limits.max_removal_percent = 5;
    let Verdict::Blocked(block) = world.plan().verdict else { panic!("not blocked") };
    assert_eq!(
        block.to_string(),
        "10 of 100 would be unsubscribed, which is more than the larger of 3 and 5 percent (max_removal_percent)"
    );
    assert_eq!(block.forcing_event(&world.target.list), Some(json!({"force": ["members.lists.example.org"]})));
    assert_eq!(Block::MissingGroup.forcing_event(&world.target.list), None);
}

/// A world in numbers, because a world itself cannot be printed.
#[derive(Clone, Debug)]
struct Seed {
    /// Kind of standing, and whose.
    standings: Vec<(u8, u8)>,
    roster: BTreeSet<u8>,
    keep: BTreeSet<u8>,
    /// How the reading of each mapped group ended.
    ends: Vec<GroupEnd>,
    removal: u64,
    growth: u64,
    force: bool,
}

impl Seed {
    fn world(&self) -> World {
        let address = |n: &u8| Address::new(&format!("p{n}@example.org"));
        let mut world = World::new();
        for (kind, who) in &self.standings {
            world = world.member(match kind {
                0 => Standing::Hidden(address(who)),
                1 => Standing::Inactive(address(who)),
                2 => Standing::OptedOut(address(who)),
                3 => Standing::NoEmail,
                4 => Standing::NotFound,
                // Rarely, or every world would be unknown.
                5 if *who < 4 => Standing::Unknown,
                6 => wanted("no address"),
                _ => Standing::Member { address: address(who), name: None },
            });
        }
        // Everybody is in one of the mapped groups, and some are in all.
        let members = std::mem::take(&mut world.group().members);
        world.groups.clear();
        for (n, end) in self.ends.iter().enumerate() {
            let is_in = |index: &usize| index % self.ends.len() == n || index.is_multiple_of(5);
            let members = members.iter().enumerate().filter(|(index, _)| is_in(index)).map(|(_, id)| *id).collect();
            world.groups.insert(Uuid::from_u128(n as u128), Group { members, nameless: 0, end: *end });
        }
        world.target.groups = world.groups.keys().copied().collect();
        world.target.keep = self.keep.iter().map(address).collect();
        world.target.limits.max_removal_percent = self.removal;
        world.target.limits.max_growth_percent = self.growth;
        World { roster: self.roster.iter().map(address).collect(), force: self.force, ..world }
    }
}

fn any_world() -> impl Strategy<Value = Seed> {
    let end = prop_oneof![12 => Just(GroupEnd::Read), 1 => Just(GroupEnd::Missing), 1 => Just(GroupEnd::Unread("x"))];
    let standings = proptest::collection::vec((0_u8..16, 0_u8..40), 0..40);
    let who = |most| proptest::collection::btree_set(0_u8..40, 0..most);
    (standings, who(40), who(4), proptest::collection::vec(end, 1..4), 0_u64..=100, 0_u64..=200, any::<bool>())
        .prop_map(|(standings, roster, keep, ends, removal, growth, force)| Seed {
            standings,
            roster,
            keep,
            ends,
            removal,
            growth,
            force,
        })
}

proptest! {
    /// Applying a plan to a model roster gives what is wanted and what is kept,
    /// and a second plan has nothing to do.
    #[test]
    fn a_plan_reaches_its_end_and_harms_nobody(seed in any_world()) {
        let world = seed.world();
        let plan = world.plan();
        let mut roster = world.roster.clone();
        roster.extend(plan.subscribe.iter().map(|who| who.address.clone()));
        for address in &plan.unsubscribe {
            prop_assert!(roster.remove(address), "it removes who is not there");
            prop_assert!(!world.target.keep.contains(address), "it removes who is kept");
        }

        let of = |pick: fn(&Standing) -> Option<&Address>| -> BTreeSet<Address> {
            world.directory.values().filter_map(pick).cloned().collect()
        };
        let wanted: BTreeSet<Address> = of(|standing| match standing {
            Standing::Member { address, .. } => Some(address),
            _ => None,
        }).into_iter().filter(Address::is_valid).collect();
        let hidden = of(|standing| match standing { Standing::Hidden(address) => Some(address), _ => None });
        let is_unknown = world.directory.values().any(|s| matches!(s, Standing::Unknown))
            || world.groups.values().any(|group| matches!(group.end, GroupEnd::Unread(_)));

        prop_assert!(wanted.iter().all(|address| roster.contains(address) || hidden.contains(address)));
        if is_unknown {
            prop_assert!(world.roster.is_subset(&roster), "something was unknown and somebody left");
        } else {
            let stay: BTreeSet<Address> = world.roster.iter()
                .filter(|address| world.target.keep.contains(*address) || hidden.contains(*address))
                .cloned().collect();
            // Who is hidden by one record does not join for another's sake.
            let wanted: BTreeSet<Address> = wanted.difference(&hidden).cloned().collect();
            let expected: BTreeSet<Address> = wanted.union(&stay).cloned().collect();
            prop_assert!(roster == expected);
        }

        let again = World { roster, ..world }.plan();
        prop_assert!(again.is_empty(), "the second plan has something to do");
    }

    /// No plan beyond its limits is applied unless it is forced.
    #[test]
    fn no_sound_plan_is_beyond_its_limits(seed in any_world()) {
        let world = seed.world();
        let plan = world.plan();
        let (roster, leave, join) = (world.roster.len(), plan.unsubscribe.len(), plan.subscribe.len());
        let limits = world.target.limits;
        if plan.verdict == Verdict::Sound {
            prop_assert!(leave <= 3 || leave as u64 * 100 <= limits.max_removal_percent * roster as u64);
            prop_assert!(roster == 0 || leave < roster);
            prop_assert!(roster == 0 || join <= 25 || join as u64 * 100 <= limits.max_growth_percent * roster as u64);
            prop_assert!(world.groups.values().all(|group| group.end != GroupEnd::Missing));
        }
        prop_assert!(world.force || !matches!(plan.verdict, Verdict::Forced(_)));
    }
}
