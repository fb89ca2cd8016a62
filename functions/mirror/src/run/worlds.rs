//! Runs of a mirror with a ledger, one after another, on a simulated Novi and Mailman: what the rules mean, case by case.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde_json::{Value, json};
use shared::member::MemberId;
use uuid::Uuid;

use super::Document;
use super::gather::{RosterResult, eager, to_read_again};
use super::remember::{remember, unmapped};
use crate::address::Address;
use crate::directory::{Group, GroupEnd, MemberStatus, People};
use crate::force::Force;
use crate::ledger::{Allowance, ListResult, choose};
use crate::mapping::{ListId, Mappings, Target};
use crate::plan::reason::reasons;
use crate::plan::{Move, Plan};
use crate::roster::Roster;
use crate::status::Status;

const HOUR: u64 = 3_600;
const DAY: u64 = 24 * HOUR;
const LIST: &str = "members.lists.example.org";
const OTHER_LIST: &str = "others.lists.example.org";

/// What Novi says about a person.
#[derive(Clone)]
enum Says {
    Member(String),
    OptedOut(String),
    Inactive(String),
    /// A field that decides isn't there.
    Hidden(String),
    Unreadable,
}

/// A Novi, a Mailman and a ledger.
struct World {
    mappings: Vec<Value>,
    people: BTreeMap<u128, Says>,
    groups: BTreeMap<u128, BTreeSet<u128>>,
    rosters: BTreeMap<&'static str, BTreeSet<String>>,
    /// The addresses that Mailman neither adds nor moves a membership to.
    banned: BTreeSet<String>,
    /// The addresses that Mailman fails to move a membership to.
    failing: BTreeSet<String>,
    /// The ledger's content, as it is stored.
    ledger: Vec<u8>,
    now: u64,
    /// The number of people that a run may read.
    of_run: usize,
    per_day: usize,
    /// The number of people that the next run reads before Novi stops responding.
    reads: Option<usize>,
    force: BTreeMap<&'static str, Force>,
    /// The statuses and reasons of the last run.
    results: BTreeMap<String, (Status, String)>,
}

fn guid(n: u128) -> Uuid {
    Uuid::from_u128(1_000_000 + n)
}

fn id(n: u128) -> MemberId {
    MemberId::parse(&Uuid::from_u128(n + 1).hyphenated().to_string()).unwrap()
}

fn address(n: u128) -> String {
    format!("m{n:04}@example.org")
}

impl World {
    /// A list that is mapped to a group, both empty, and runs that read everyone.
    fn new() -> Self {
        Self {
            mappings: vec![mapping(1, LIST)],
            people: BTreeMap::new(),
            groups: BTreeMap::from([(1, BTreeSet::new())]),
            rosters: BTreeMap::from([(LIST, BTreeSet::new())]),
            banned: BTreeSet::new(),
            failing: BTreeSet::new(),
            ledger: serde_json::to_vec(&Document::default()).unwrap(),
            now: 1_800_000_000,
            of_run: 10_000,
            per_day: 1_000_000,
            reads: None,
            force: BTreeMap::new(),
            results: BTreeMap::new(),
        }
    }

    /// People who are members of the first group.
    fn members(mut self, range: std::ops::Range<u128>) -> Self {
        self.join(1, range);
        self
    }

    fn subscribed(mut self, range: std::ops::Range<u128>) -> Self {
        self.rosters.get_mut(LIST).unwrap().extend(range.map(address));
        self
    }

    /// A list of these members that the mirror has found in sync.
    fn settled(range: std::ops::Range<u128>) -> Self {
        let mut world = Self::new().members(range.clone()).subscribed(range);
        assert_eq!(world.run(), Status::Ok);
        world
    }

    /// Lets a pass over everyone take as many runs.
    fn passes_of(mut self, runs: usize) -> Self {
        self.of_run = self.people.len().div_ceil(runs);
        self.per_day = self.of_run * 24;
        self
    }

    fn join(&mut self, group: u128, range: std::ops::Range<u128>) {
        for n in range {
            self.people.entry(n).or_insert_with(|| Says::Member(address(n)));
            self.groups.entry(group).or_default().insert(n);
        }
    }

    fn leave(&mut self, range: std::ops::Range<u128>) {
        for members in self.groups.values_mut() {
            members.retain(|n| !range.contains(n));
        }
    }

    fn says(&mut self, n: u128, says: Says) {
        self.people.insert(n, says);
    }

    fn forced(&mut self, force: Force) -> &mut Self {
        self.force.insert(LIST, force);
        self
    }

    fn has(&self, members: impl IntoIterator<Item = u128>) -> bool {
        self.rosters[LIST] == members.into_iter().map(address).collect()
    }

    fn reason(&self) -> &str {
        &self.results[LIST].1
    }

    fn status_of(&self, n: u128) -> MemberStatus {
        match self.people.get(&n) {
            None => MemberStatus::NotFound,
            Some(Says::Member(text)) => {
                MemberStatus::Member { address: Address::new(text), name: None, after_space: None }
            }
            Some(Says::OptedOut(text)) => MemberStatus::OptedOut(Address::new(text)),
            Some(Says::Inactive(text)) => MemberStatus::Inactive(Address::new(text)),
            Some(Says::Hidden(text)) => MemberStatus::Hidden(Address::new(text)),
            Some(Says::Unreadable) => MemberStatus::Unknown,
        }
    }

    /// Runs the mirror an hour after the last run, and returns the status of the first list.
    fn run(&mut self) -> Status {
        self.now += HOUR;
        let mut document = self.document();
        let mappings = Mappings::parse(self.mappings.clone());
        let targets: Vec<&Target> = mappings.targets.iter().collect();
        let group = |members: &BTreeSet<u128>| Group {
            members: members.iter().map(|n| id(*n)).collect(),
            rows_without_id: 0,
            missing_rows: 0,
            end: GroupEnd::Complete,
        };
        let mapped: BTreeSet<Uuid> = targets.iter().flat_map(|target| target.groups.iter().copied()).collect();
        let groups: HashMap<Uuid, Group> = self.groups.iter().map(|(n, members)| (guid(*n), group(members))).collect();
        let groups: HashMap<_, _> = groups.into_iter().filter(|(id, _)| mapped.contains(id)).collect();
        let members: HashSet<MemberId> = groups.values().flat_map(|group| group.members.iter().copied()).collect();
        let roster = |target: &Target| {
            let mut roster = Roster::default();
            roster.extend(self.rosters[target.list.as_str()].iter().map(|text| Address::new(text)));
            roster
        };
        let rosters: Vec<RosterResult> = targets.iter().map(|target| Ok(roster(target))).collect();

        let mut people = People { groups, earlier: std::mem::take(&mut document.people), ..People::default() };
        let left_today = self.per_day.saturating_sub(usize::try_from(document.calls_today(self.now)).unwrap());
        let allowance = Allowance { per_day: self.per_day, of_run: self.of_run.min(left_today), left_today };
        let eager = eager(&targets, &people, &rosters);
        let reading = choose(&members, &people.earlier, &eager, document.pass_began, self.now, allowance, false);
        document.pass_began = Some(reading.pass_began);
        people.pass_began = reading.pass_began;
        let numbers: HashMap<MemberId, u128> = self.groups.values().flatten().map(|n| (id(*n), *n)).collect();
        let reads = self.reads.take();
        for member in reading.people.into_iter().take(reads.unwrap_or(usize::MAX)) {
            people.directory.insert(member, self.status_of(numbers[&member]));
        }
        for (target, roster) in targets.iter().zip(&rosters) {
            let entry = document.lists.entry(target.list.clone()).or_default();
            entry.found(target, &people, roster.as_ref().ok().unwrap(), self.now);
        }
        if reads.is_none() {
            for (target, roster) in targets.iter().zip(&rosters) {
                let history = document.lists[&target.list].history(target, reading.pass_began, self.now);
                let again = to_read_again(target, &people, roster.as_ref().ok().unwrap(), &BTreeSet::new(), &history);
                people.directory.extend(again.into_iter().map(|member| (member, self.status_of(numbers[&member]))));
            }
        }
        let read = people.directory.len() as u64;
        let plan = |(target, roster): (&&Target, &RosterResult)| {
            let entry = document.lists.get_mut(&target.list).unwrap();
            let force = entry.force(self.force.remove(target.list.as_str()), target, &people, self.now);
            let history = entry.history(target, reading.pass_began, self.now);
            Plan::new(target, &people, roster.as_ref().ok().unwrap(), &BTreeSet::new(), &history, force)
        };
        let plans: Vec<Plan> = targets.iter().zip(&rosters).map(plan).collect();
        let on_rosters: HashSet<&Address> = rosters.iter().flatten().flat_map(Roster::iter).collect();
        let pass_began = people.pass_began;
        // "An address joins only because of a record that was read in this run."
        let read_now: HashSet<String> =
            people.directory.values().flat_map(MemberStatus::addresses).map(|of| of.as_str().to_owned()).collect();
        remember(&mut document, people, Some(&on_rosters), false, self.now);
        self.results.clear();
        for ((target, plan), before) in targets.iter().zip(&plans).zip(&rosters) {
            let roster = self.rosters.get_mut(target.list.as_str()).unwrap();
            let mut result = ListResult::default();
            for subscriber in plan.subscribe() {
                assert!(read_now.contains(subscriber.address.as_str()), "an address joins unread");
                if self.banned.contains(subscriber.address.as_str()) {
                    result.refused += 1;
                } else {
                    assert!(roster.insert(subscriber.address.as_str().to_owned()));
                    result.added += 1;
                }
            }
            for Move { from, to } in plan.moving() {
                assert!(read_now.contains(to.address.as_str()), "an address is moved to one that is unread");
                if self.banned.contains(to.address.as_str()) {
                    result.refused += 1;
                    result.refused_addresses.insert(to.address.clone());
                } else if self.failing.contains(to.address.as_str()) {
                    result.not_moved.insert(from.clone());
                } else {
                    assert!(roster.remove(from.as_str()) && roster.insert(to.address.as_str().to_owned()));
                    result.moved += 1;
                }
            }
            for leaver in plan.unsubscribe() {
                assert!(roster.remove(leaver.as_str()));
                result.removed += 1;
            }
            let entry = document.lists.get_mut(&target.list).unwrap();
            entry.about_to_change(plan, BTreeMap::new(), self.now);
            entry.changed(target, before.as_ref().ok().unwrap(), plan, pass_began, &result, self.now);
            let reasons = reasons(plan);
            let status = reasons.iter().map(|(status, _)| *status).max().unwrap_or_default();
            let reason = reasons.into_iter().map(|(_, reason)| reason).collect::<Vec<_>>().join(" ");
            self.results.insert(target.list.to_string(), (status, reason));
        }
        for report in unmapped(&mut document, &mappings, self.now) {
            self.results.insert(report.list_id.unwrap(), (report.status, String::new()));
        }
        document.add_calls(read, self.now);
        self.ledger = serde_json::to_vec(&document).unwrap();
        self.results.get(LIST).map_or(Status::Ok, |(status, _)| *status)
    }

    /// Returns the ledger's content.
    fn document(&self) -> Document {
        serde_json::from_slice(&self.ledger).unwrap()
    }

    fn ledger_has_refused_move(&self) -> bool {
        let entry = &self.document().lists[&ListId::parse(LIST).unwrap()];
        let target = Mappings::parse(self.mappings.clone()).targets.remove(0);
        !entry.history(&target, self.now, self.now).refused_moves.is_empty()
    }

    fn runs(&mut self, count: usize) -> Vec<Status> {
        (0..count).map(|_| self.run()).collect()
    }
}

fn mapping(group: u128, list: &str) -> Value {
    json!({"group_guid": guid(group), "list_id": list})
}

fn leaves(leaves: usize) -> Force {
    Force { leaves, ..Force::default() }
}

#[test]
fn empty_list_is_filled_over_several_runs() {
    let mut world = World::new().members(0..800).passes_of(8);
    let statuses = world.runs(8);
    assert!(world.has(0..800), "{statuses:?}");
    assert_eq!((statuses[6], statuses[7]), (Status::Unfinished, Status::Ok));
    // With an owner in keep, and cut short.
    let mut world = World::new().members(0..40);
    world.mappings[0]["keep"] = json!(["owner@example.org"]);
    world.rosters.get_mut(LIST).unwrap().insert("owner@example.org".to_owned());
    world.reads = Some(15);
    assert_eq!((world.run(), world.rosters[LIST].len()), (Status::Unfinished, 16));
    assert_eq!((world.run(), world.rosters[LIST].len()), (Status::Ok, 41));
}

#[test]
fn only_a_run_that_completes_a_pass_ends_a_fill() {
    let mut world = World::new().members(0..1_000).passes_of(5);
    world.reads = Some(20);
    assert_eq!((world.run(), world.rosters[LIST].len()), (Status::Unfinished, 20));
    world.runs(5);
    assert!(world.has(0..1_000));
}

#[test]
fn nothing_is_written_in_an_outage() {
    let mut world = World::settled(0..100);
    world.reads = Some(50);
    world.run();
    assert!(world.has(0..100));
    // People who left meanwhile stay until a complete pass.
    world.leave(0..2);
    world.reads = Some(3);
    world.run();
    assert!(world.has(0..100));
    world.runs(2);
    assert!(world.has(2..100));
}

#[test]
fn leavers_wait_for_one_force_if_a_record_can_never_be_read() {
    let mut world = World::settled(0..20);
    world.says(100, Says::Unreadable);
    world.join(1, 100..101);
    world.leave(0..1);
    assert_eq!(world.run(), Status::Partial);
    assert!(world.has(0..20));
    world.forced(Force { unknown: 1, ..Force::default() });
    world.run();
    assert!(world.has(1..20));
    world.leave(1..2);
    world.run();
    assert!(world.has(2..20), "{}", world.reason());
    // Another one isn't accepted.
    world.says(101, Says::Unreadable);
    world.join(1, 101..102);
    world.leave(2..3);
    world.runs(2);
    assert!(world.has(2..20));
}

#[test]
fn address_of_a_person_who_can_never_be_read_stays() {
    let mut world = World::settled(0..20);
    world.says(5, Says::Unreadable);
    world.says(6, Says::Inactive(address(6)));
    assert_eq!(world.run(), Status::Partial);
    assert!(world.has(0..20));
    world.forced(Force { leaves: 2, unknown: 1, ..Force::default() });
    for _ in 0..3 {
        assert_eq!(world.run(), Status::Partial, "{}", world.reason());
        assert!(world.reason().contains("1 address stays"), "{}", world.reason());
        assert!(world.has((0..6).chain(7..20)));
    }
    world.says(5, Says::Inactive(address(5)));
    assert_eq!(world.run(), Status::Ok, "{}", world.reason());
    assert!(world.has((0..5).chain(7..20)));
}

#[test]
fn vacant_group_is_in_doubt_until_it_is_forced_once() {
    let mut world = World::new().members(0..40).subscribed(0..55);
    world.mappings.push(mapping(2, LIST));
    world.join(2, 40..55);
    assert_eq!(world.run(), Status::Ok);
    world.leave(40..55);
    assert_eq!(world.runs(2), [Status::Partial; 2]);
    assert!(world.has(0..55));
    world.forced(leaves(15)).run();
    assert!(world.has(0..40));
    world.leave(0..1);
    assert_eq!(world.run(), Status::Ok, "{}", world.reason());
    assert!(world.has(1..40));
    // It has members again, and becomes vacant once more.
    world.join(2, 60..62);
    assert_eq!(world.run(), Status::Ok);
    world.leave(60..62);
    assert_eq!(world.run(), Status::Partial);
}

#[test]
fn only_group_that_becomes_vacant_is_blocked_until_one_force() {
    let mut world = World::settled(0..7);
    world.leave(0..7);
    assert_eq!(world.run(), Status::Blocked);
    assert_eq!(world.forced(leaves(7)).run(), Status::Ok);
    assert!(world.has([]));
}

#[test]
fn purge_is_forced_once_and_daily_leavers_go_by_the_ordinary_limits() {
    let mut world = World::settled(0..400).passes_of(3);
    world.leave(0..160);
    world.runs(6);
    assert!(world.has(0..400));
    assert_eq!(world.results[LIST].0, Status::Blocked);
    world.forced(leaves(160));
    world.runs(7);
    assert!(world.has(160..400), "{}", world.reason());
    for day in 0..5 {
        world.leave(160 + day..161 + day);
        world.runs(24);
        assert!(world.has(161 + day..400), "{}", world.reason());
    }
}

#[test]
fn growth_by_known_people_is_forced_once() {
    let mut world = World::settled(0..6);
    world.mappings.push(mapping(2, OTHER_LIST));
    world.rosters.insert(OTHER_LIST, BTreeSet::new());
    world.join(2, 100..190);
    world.run();
    assert_eq!(world.rosters[OTHER_LIST].len(), 90);
    let mut world = world.passes_of(3);
    world.join(1, 100..130);
    assert_eq!(world.runs(3), [Status::Blocked; 3]);
    world.forced(Force { joins: 30, ..Force::default() });
    world.runs(4);
    assert!(world.has((0..6).chain(100..130)), "{}", world.reason());
}

#[test]
fn known_person_in_another_group_joins_in_the_next_run() {
    let mut world = World::settled(0..20);
    world.mappings.push(mapping(2, OTHER_LIST));
    world.rosters.insert(OTHER_LIST, BTreeSet::new());
    world.join(2, 100..120);
    world.run();
    let mut world = world.passes_of(4);
    world.runs(4);
    world.join(1, 100..101);
    world.run();
    assert!(world.has((0..20).chain(100..101)));
}

#[test]
fn lost_ledger_blocks_leavers_until_one_force() {
    let mut world = World::settled(0..800);
    world.ledger = serde_json::to_vec(&Document::default()).unwrap();
    world.leave(0..3);
    assert_eq!(world.runs(2), [Status::Blocked; 2]);
    assert!(world.reason().contains("did not fill"), "{}", world.reason());
    assert_eq!(world.forced(leaves(3)).run(), Status::Ok);
    assert!(world.has(3..800));
    world.leave(3..4);
    world.run();
    assert!(world.has(4..800), "it is adopted");
}

#[test]
fn old_ledger_removes_no_one_who_is_active_again() {
    let mut world = World::settled(0..90).passes_of(3);
    world.says(5, Says::Inactive(address(5)));
    world.now += DAY;
    for _ in 0..6 {
        world.run();
        let ledger = world.ledger.clone();
        if world.rosters[LIST].contains(&address(5)) {
            continue;
        }
        // The address was removed. It is active again, joins, and then yesterday's ledger comes back.
        world.says(5, Says::Member(address(5)));
        world.runs(4);
        assert!(world.has(0..90));
        world.ledger = ledger;
        world.runs(6);
        assert!(world.has(0..90));
        return;
    }
    panic!("the inactive member is not removed: {}", world.reason());
}

#[test]
fn member_who_is_inactive_when_read_and_active_again_in_the_same_pass_stays() {
    for moment in 0..4 {
        let mut world = World::settled(0..90).passes_of(3);
        world.now += DAY;
        world.says(5, Says::Inactive(address(5)));
        world.runs(moment);
        if !world.rosters[LIST].contains(&address(5)) {
            continue;
        }
        world.says(5, Says::Member(address(5)));
        for _ in 0..6 {
            world.run();
            assert!(world.has(0..90), "after {moment} runs");
        }
    }
}

#[test]
fn run_that_can_read_everyone_decides_nothing_by_an_earlier_one() {
    // Which people an interrupted run reads first is random.
    for _ in 0..20 {
        let mut world = World::settled(0..40);
        // The list is blocked, and the ledger forgets half of the people.
        world.leave(0..20);
        assert_eq!(world.run(), Status::Blocked);
        world.join(1, 0..20);
        world.says(0, Says::Inactive("other@example.org".to_owned()));
        world.reads = Some(39);
        world.run();
        world.says(0, Says::Member(address(0)));
        assert_eq!(world.run(), Status::Ok);
        assert!(world.has(0..40), "{}", world.reason());
    }
}

#[test]
fn two_people_who_exchange_their_addresses_both_stay() {
    for moment in 0..8 {
        let mut world = World::settled(0..90).passes_of(3);
        world.now += DAY;
        world.runs(moment);
        world.says(5, Says::Member(address(6)));
        world.says(6, Says::Member(address(5)));
        for _ in 0..8 {
            world.run();
            assert!(world.has(0..90), "after {moment} runs");
        }
    }
}

#[test]
fn changed_address_is_right_within_two_passes() {
    for moment in 0..8 {
        let mut world = World::settled(0..90).passes_of(3);
        world.now += DAY;
        world.runs(moment);
        world.says(5, Says::Member(address(500)));
        world.runs(7);
        assert!(world.has((0..5).chain(6..90).chain(500..501)), "after {moment} runs: {}", world.reason());
    }
}

#[test]
fn exchanged_group_is_in_doubt_until_it_is_forced() {
    let mut world = World::settled(0..10);
    world.join(2, 1..10);
    world.mappings = vec![mapping(2, LIST)];
    assert_eq!(world.runs(3), [Status::Partial; 3]);
    assert!(world.has(0..10) && world.reason().contains("no longer mapped"), "{}", world.reason());
    world.forced(leaves(1)).run();
    assert!(world.has(1..10));
    assert_eq!(world.run(), Status::Ok);
    // Mapped again, its group is no longer lost.
    let mut repaired = World::settled(0..10);
    repaired.mappings.push(mapping(2, LIST));
    repaired.join(2, 20..22);
    assert_eq!(repaired.run(), Status::Ok);
    repaired.mappings.pop();
    assert_eq!(repaired.run(), Status::Partial);
    repaired.mappings.push(mapping(2, LIST));
    assert_eq!(repaired.run(), Status::Ok);
}

#[test]
fn list_of_another_tool_is_adopted_by_a_force_or_add_only() {
    let mut world = World::new().members(0..568).subscribed(0..800);
    assert_eq!(world.runs(3), [Status::Blocked; 3]);
    assert!(world.has(0..800));
    assert_eq!(world.forced(leaves(232)).run(), Status::Ok);
    assert!(world.has(0..568));

    let mut world = World::new().members(0..568).subscribed(0..800);
    world.mappings[0]["removals"] = json!(false);
    assert_eq!(world.runs(2), [Status::Ok; 2]);
    assert!(world.has(0..800));
    // Without that option, it isn't the mirror's own either.
    world.mappings = vec![mapping(1, LIST)];
    assert_eq!(world.run(), Status::Blocked);

    // A run that only adds adopts nothing.
    let mut world = World::new().members(1..801).subscribed(0..800);
    world.says(900, Says::Unreadable);
    world.join(1, 900..901);
    world.run();
    assert!(world.has(0..801));
    world.leave(900..901);
    assert_eq!(world.run(), Status::Blocked);
}

#[test]
fn force_does_not_adopt_a_list_with_a_membership_that_could_not_be_moved() {
    for fails in [true, false] {
        let mut world = World::new().members(0..30).subscribed(0..30).subscribed(100..101);
        world.run();
        assert_eq!(world.results[LIST].0, Status::Blocked);
        world.says(5, Says::Member(address(500)));
        world.failing.extend(fails.then(|| address(500)));
        world.forced(Force { leaves: 1, moves: 1, ..Force::default() }).run();
        assert!(!world.rosters[LIST].contains(&address(100)), "{}", world.reason());
        assert_eq!(world.rosters[LIST].contains(&address(500)), !fails, "{}", world.reason());
        // Someone is added by hand.
        world.rosters.get_mut(LIST).unwrap().insert(address(101));
        world.run();
        assert_eq!(world.rosters[LIST].contains(&address(101)), fails, "{}", world.reason());
    }
}

#[test]
fn force_adopts_a_list_although_an_address_has_to_stay() {
    let mut world = World::settled(0..20);
    let mut document = world.document();
    document.lists.clear();
    world.ledger = serde_json::to_vec(&document).unwrap();
    world.says(5, Says::Unreadable);
    world.leave(6..7);
    world.run();
    world.forced(Force { leaves: 2, unknown: 1, ..Force::default() }).run();
    assert!(world.has((0..6).chain(7..20)), "{}", world.reason());
    assert_eq!(world.runs(2), [Status::Partial; 2], "{}", world.reason());
}

#[test]
fn list_in_sync_is_adopted_and_its_first_leaver_leaves() {
    let mut world = World::settled(0..50);
    world.leave(0..1);
    assert_eq!(world.run(), Status::Ok);
    assert!(world.has(1..50));
}

#[test]
fn lie_that_adds_some_every_hour_adds_no_more_than_a_day_may() {
    let mut world = World::settled(0..6);
    for hour in 0..20 {
        world.join(1, 100 + 5 * hour..105 + 5 * hour);
        world.run();
    }
    assert_eq!(world.rosters[LIST].len(), 11, "{}", world.reason());
    assert!(world.reason().contains("5 additions in the last 24 hours"), "{}", world.reason());
}

#[test]
fn lie_that_takes_a_quarter_every_hour_takes_no_more_than_a_day_may() {
    let mut world = World::settled(0..400);
    let mut members: Vec<u128> = (0..400).collect();
    for _ in 0..12 {
        let gone = members.len() / 4;
        for n in members.drain(..gone) {
            world.leave(n..n + 1);
        }
        world.run();
    }
    assert_eq!(world.rosters[LIST].len(), 300, "{}", world.reason());
    // Small steps go on up to the limit of a day, and on the next day.
    let mut world = World::settled(0..400);
    for hour in 0..24 {
        world.leave(10 * hour..10 * hour + 10);
        world.run();
    }
    assert_eq!(world.rosters[LIST].len(), 280, "{}", world.reason());
}

#[test]
fn truth_after_a_lie_is_blocked_if_more_leave_than_may() {
    let mut world = World::settled(0..10);
    world.join(1, 100..108);
    assert_eq!(world.run(), Status::Ok);
    world.leave(100..108);
    assert_eq!(world.run(), Status::Blocked);
    assert!(world.reason().contains("8 of 18"), "{}", world.reason());
    assert_eq!(world.forced(leaves(8)).run(), Status::Ok);
    assert!(world.has(0..10));
}

#[test]
fn some_leave_on_the_day_of_the_fill() {
    let mut world = World::new().members(0..30);
    world.run();
    world.leave(0..3);
    assert_eq!(world.run(), Status::Ok);
    assert!(world.has(3..30));
}

#[test]
fn force_between_two_passes_is_kept_for_the_next_one() {
    let mut world = World::settled(0..90).passes_of(3);
    world.leave(0..40);
    world.runs(7);
    assert!(world.has(0..90));
    world.forced(leaves(40));
    world.runs(7);
    assert!(world.has(40..90), "{}", world.reason());
    // It is used up.
    world.leave(40..80);
    world.runs(7);
    assert!(world.has(40..90));
}

#[test]
fn list_that_was_not_mapped_for_a_week_is_adopted_anew() {
    let mut world = World::settled(0..50);
    let mappings = std::mem::replace(&mut world.mappings, vec![mapping(2, OTHER_LIST)]);
    world.rosters.insert(OTHER_LIST, BTreeSet::new());
    world.groups.entry(2).or_default();
    world.run();
    assert_eq!(world.results[LIST].0, Status::Partial);
    world.now += 60 * DAY;
    world.run();
    assert!(!world.results.contains_key(LIST));
    world.mappings = mappings;
    world.leave(0..2);
    assert_eq!(world.run(), Status::Blocked);
    assert!(world.has(0..50));
}

#[test]
fn list_of_one_needs_one_force_each_time() {
    let mut world = World::settled(0..1);
    for n in 1..4 {
        world.leave(n - 1..n);
        world.join(1, n..n + 1);
        assert_eq!(world.run(), Status::Blocked);
        assert_eq!(world.forced(leaves(1)).run(), Status::Ok, "{}", world.reason());
        assert!(world.has(n..n + 1));
    }
}

#[test]
fn strangers_who_become_readable_bit_by_bit_do_not_join() {
    let mut world = World::settled(0..6);
    world.join(1, 100..125);
    for unreadable in [19, 12, 0] {
        for n in 100..125 {
            world.says(n, if n < 100 + unreadable { Says::Unreadable } else { Says::Member(address(n)) });
        }
        world.run();
        assert!(world.has(0..6), "{}", world.reason());
    }
}

#[test]
fn address_that_was_added_by_hand_is_removed_by_the_next_pass() {
    let mut world = World::settled(0..20);
    world.rosters.get_mut(LIST).unwrap().insert(address(100));
    world.run();
    assert!(world.has(0..20));
}

#[test]
fn who_opts_out_leaves_before_the_pass_is_complete() {
    let mut world = World::settled(0..90).passes_of(3);
    world.now += DAY;
    for n in 0..90 {
        if n % 10 == 0 {
            world.says(n, Says::OptedOut(address(n)));
        }
    }
    let mut left = Vec::new();
    for _ in 0..4 {
        world.run();
        left.push(90 - world.rosters[LIST].len());
    }
    assert_eq!(left.last(), Some(&9), "{left:?}: {}", world.reason());
}

#[test]
fn every_mapped_list_is_known() {
    let world = World::settled(0..3);
    let document = world.document();
    assert!(document.lists.contains_key(&ListId::parse(LIST).unwrap()));
}

#[test]
fn changed_address_keeps_its_membership() {
    for moment in 0..8 {
        let mut world = World::settled(0..90).passes_of(3);
        world.now += DAY;
        world.runs(moment);
        world.says(5, Says::Member(address(500)));
        for _ in 0..8 {
            world.run();
            let has = |n: u128| world.rosters[LIST].contains(&address(n));
            assert!(has(5) != has(500), "after {moment} runs, the member is on one address");
        }
        assert!(world.has((0..5).chain(6..90).chain(500..501)), "{}", world.reason());
    }
}

#[test]
fn former_address_leaves_if_no_membership_can_move_to_the_changed_one() {
    let mut world = World::settled(0..30);
    world.banned.insert(address(500));
    world.says(5, Says::Member(address(500)));
    world.run();
    assert!(world.has(0..30), "the former address stays until the next pass");
    world.run();
    assert!(world.has((0..5).chain(6..30)), "{}", world.reason());
    // The changed address is not banned any more.
    world.banned.clear();
    world.run();
    assert!(world.has((0..5).chain(6..30).chain(500..501)), "{}", world.reason());
    // Another change, which can be made, is made.
    let mut world = World::settled(0..30).passes_of(3);
    world.now += DAY;
    world.banned.insert(address(500));
    world.says(5, Says::Member(address(500)));
    while !world.ledger_has_refused_move() {
        world.run();
    }
    world.says(5, Says::Member(address(501)));
    world.says(6, Says::Inactive(address(6)));
    world.runs(7);
    assert!(world.has((0..5).chain(7..30).chain(501..502)), "{}", world.reason());
}

#[test]
fn shared_former_address_leaves_if_all_changed_ones_are_banned() {
    let mut world = World::settled(0..30);
    world.says(5, Says::Member(address(6)));
    world.runs(2);
    world.banned.extend([address(500), address(501)]);
    world.says(5, Says::Member(address(500)));
    world.says(6, Says::Member(address(501)));
    world.runs(5);
    assert!(world.has((0..5).chain(7..30)), "{} {:?}", world.reason(), world.rosters[LIST]);
}

#[test]
fn changed_domain_is_blocked_by_the_limit_of_moves_until_one_force() {
    let mut world = World::settled(0..60).passes_of(3);
    world.now += DAY;
    for n in 0..60 {
        world.says(n, Says::Member(address(500 + n)));
    }
    world.runs(6);
    assert_eq!(world.results[LIST].0, Status::Blocked);
    assert!(world.reason().contains("\"moves\":60"), "{}", world.reason());
    assert_eq!(world.rosters[LIST].len(), 60);
    world.forced(Force { moves: 60, ..Force::default() });
    world.runs(7);
    assert!(world.has(500..560), "{}", world.reason());
}

#[test]
fn member_who_changes_the_address_and_opts_out_leaves() {
    let mut world = World::settled(0..30);
    world.says(5, Says::OptedOut(address(500)));
    world.run();
    assert!(world.has((0..5).chain(6..30)));
}

#[test]
fn address_that_someone_else_has_is_not_moved() {
    let mut world = World::settled(0..30);
    // 5 takes over the address of 6, who has none of that list's addresses any more.
    world.says(5, Says::Member(address(6)));
    world.leave(6..7);
    world.run();
    assert!(world.has((0..5).chain(6..30)), "{}", world.reason());
    // A record that the ledger doesn't know might have the former address.
    let mut world = World::settled(0..30);
    world.says(100, Says::Unreadable);
    world.join(1, 100..101);
    world.says(5, Says::Member(address(500)));
    world.run();
    assert!(world.has((0..30).chain(500..501)), "{} {:?}", world.reason(), world.rosters[LIST]);
}

#[test]
fn who_left_by_themselves_stays_away() {
    let mut world = World::new().members(0..20);
    world.mappings[0]["resubscribe"] = json!(false);
    world.run();
    world.run();
    world.rosters.get_mut(LIST).unwrap().retain(|member| *member >= address(3));
    assert_eq!(world.runs(3), [Status::Ok; 3]);
    assert!(world.has(3..20));
    // A purge is forced.
    world.leave(10..20);
    assert_eq!(world.run(), Status::Blocked);
    assert_eq!(world.forced(leaves(10)).run(), Status::Ok, "{}", world.reason());
    assert!(world.has(3..10));
    // Opted out and in again.
    world.says(0, Says::OptedOut(address(0)));
    world.run();
    world.says(0, Says::Member(address(0)));
    world.run();
    assert!(world.has([0].into_iter().chain(3..10)), "{}", world.reason());
    // Who joins again by themselves is on the list, and who is let join is, too.
    world.rosters.get_mut(LIST).unwrap().insert(address(1));
    world.run();
    world.forced(Force { left: 1, ..Force::default() });
    world.run();
    assert!(world.has(0..10), "{}", world.reason());
    world.run();
    assert!(world.has(0..10));
}

#[test]
fn who_left_by_themselves_stays_away_although_a_record_hid_a_field() {
    let mut world = World::new().members(0..20);
    world.mappings[0]["resubscribe"] = json!(false);
    world.run();
    world.run();
    world.rosters.get_mut(LIST).unwrap().remove(&address(3));
    world.run();
    world.says(3, Says::Hidden(address(3)));
    world.run();
    world.says(3, Says::Member(address(3)));
    assert_eq!(world.runs(2), [Status::Ok; 2]);
    assert!(world.has((0..3).chain(4..20)), "{:?}", world.rosters[LIST]);
}

#[test]
fn list_that_was_made_anew_is_blocked() {
    let mut world = World::settled(0..20);
    world.mappings[0]["resubscribe"] = json!(false);
    world.run();
    world.rosters.get_mut(LIST).unwrap().clear();
    assert_eq!(world.runs(3), [Status::Blocked; 3]);
    assert!(world.has([]) && world.reason().contains("\"left\":20"), "{}", world.reason());
    assert_eq!(world.forced(Force { left: 20, ..Force::default() }).run(), Status::Ok);
    assert!(world.has(0..20));
}

#[test]
fn unadopted_list_takes_no_one_who_may_have_left() {
    let mut world = World::new().members(0..20).subscribed(0..18);
    world.mappings[0]["resubscribe"] = json!(false);
    assert_eq!(world.runs(2), [Status::Blocked; 2]);
    assert_eq!(world.forced(Force { joins: 2, ..Force::default() }).run(), Status::Ok);
    assert!(world.has(0..20));
}

#[test]
fn unreadable_person_keeps_a_shared_address() {
    for says in [Says::Member(address(500)), Says::OptedOut(address(5))] {
        let mut world = World::new().members(0..20);
        world.says(6, Says::Member(address(5)));
        world.run();
        world.run();
        // 5 and 6 share an address. 5's record changes, and 6's can't be read.
        world.says(5, says.clone());
        world.says(6, Says::Unreadable);
        world.runs(2);
        assert!(world.rosters[LIST].contains(&address(5)), "{}", world.reason());
        world.says(6, Says::Member(address(5)));
        world.runs(2);
        assert!(world.rosters[LIST].contains(&address(5)), "{}", world.reason());
    }
}

#[test]
fn limits_of_a_day_refer_to_what_is_left_of_the_day_before() {
    let mut world = World::settled(0..400);
    world.leave(0..200);
    world.run();
    assert_eq!(world.forced(leaves(200)).run(), Status::Ok);
    // The runs are a day apart.
    world.now += DAY - HOUR + 5;
    world.leave(200..319);
    assert_eq!(world.run(), Status::Blocked, "{}", world.reason());
    let mut world = World::settled(0..400);
    for day in 0..4 {
        let members = world.rosters[LIST].len() as u128;
        let first = 400 - members;
        world.leave(first..first + 120);
        world.run();
        world.now += DAY - HOUR + 5;
        assert!(day == 0 || world.results[LIST].0 == Status::Blocked, "{day}: {}", world.reason());
    }
}

#[test]
fn force_for_growth_does_not_adopt_an_add_only_list() {
    let mut world = World::new().members(0..200).subscribed(100..220);
    world.mappings[0]["removals"] = json!(false);
    world.mappings[0]["max_growth_percent"] = json!(10);
    assert_eq!(world.run(), Status::Blocked);
    assert_eq!(world.forced(Force { joins: 200, ..Force::default() }).run(), Status::Ok);
    world.mappings[0]["removals"] = json!(true);
    assert_eq!(world.run(), Status::Blocked, "{}", world.reason());
    assert!(world.has(0..220));
}

#[test]
fn growth_is_judged_although_every_member_is_in_keep() {
    let mut world = World::settled(0..6);
    world.mappings[0]["keep"] = json!((0..6).map(address).collect::<Vec<_>>());
    world.run();
    world.join(1, 100..125);
    assert_eq!(world.runs(2), [Status::Blocked; 2]);
    assert!(world.has(0..6));
}

#[test]
fn accepted_unknown_record_ends_no_later_doubt() {
    let mut world = World::settled(0..20);
    world.says(100, Says::Unreadable);
    world.join(1, 100..101);
    world.run();
    world.forced(Force { unknown: 1, ..Force::default() });
    world.run();
    // Its group is exchanged, and no one would leave yet.
    world.join(2, 0..20);
    world.join(2, 100..101);
    world.mappings = vec![mapping(2, LIST)];
    world.runs(2);
    world.leave(0..2);
    world.runs(2);
    assert!(world.has(0..20) && world.reason().contains("no longer mapped"), "{}", world.reason());
}

#[test]
fn force_ends_with_a_complete_pass_even_if_the_list_stays_blocked() {
    let mut world = World::settled(0..20);
    world.leave(0..9);
    assert_eq!(world.forced(leaves(1)).run(), Status::Blocked);
    // Seven are one more than may leave, which the force would have accepted.
    world.join(1, 7..9);
    assert_eq!(world.run(), Status::Blocked, "{}", world.reason());
    assert!(world.has(0..20));
}
