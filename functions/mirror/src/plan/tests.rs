//! Tests of who joins and leaves, and what is withheld. Verdicts, the cases of the field notes and worlds, and property
//! tests have files of their own.

mod properties;
mod verdicts;
mod worlds;

use std::collections::BTreeMap;
use std::sync::Arc;

use shared::member::MemberId;
use uuid::Uuid;

use super::reason::reasons;
use super::*;
use crate::directory::MemberStatus;
use crate::mapping::Limits;
use crate::status::Status;

/// The input of a plan, which each test changes as it needs.
struct Scenario {
    target: Target,
    people: People,
    roster: BTreeSet<Address>,
    /// Additional memberships of addresses on the roster.
    repeated_rows: Vec<Address>,
    missing_lists: BTreeSet<ListId>,
    history: History<'static>,
    force: Option<Force>,
}

const GROUP: Uuid = Uuid::from_u128(1);
const OTHER_GROUP: Uuid = Uuid::from_u128(2);

impl Scenario {
    /// One list with one complete group, without members and subscribers.
    fn new() -> Self {
        let list = ListId::parse("members.lists.example.org").unwrap();
        let scenario = Self {
            target: Target {
                mapped_lists: Arc::new(BTreeSet::from([list.clone()])),
                list,
                groups: BTreeSet::new(),
                may_be_empty: BTreeSet::new(),
                keep: BTreeSet::new(),
                limits: Limits::default(),
                is_add_only: false,
                resubscribes: true,
                has_unresolved_mapping: false,
            },
            people: People::default(),
            roster: BTreeSet::new(),
            repeated_rows: Vec::new(),
            missing_lists: BTreeSet::new(),
            history: History::default(),
            force: None,
        };
        scenario.group(GROUP)
    }

    /// Adds a complete and empty group.
    fn group(mut self, id: Uuid) -> Self {
        self.target.groups.insert(id);
        self.people
            .groups
            .insert(id, Group { members: Vec::new(), rows_without_id: 0, missing_rows: 0, end: GroupEnd::Complete });
        self
    }

    fn first_group(&mut self) -> &mut Group {
        self.people.groups.get_mut(&GROUP).unwrap()
    }

    /// Adds a person to the first group.
    fn member(mut self, status: MemberStatus) -> Self {
        let id = self.add(status);
        self.first_group().members.push(id);
        self
    }

    /// Adds a person to the directory.
    fn add(&mut self, status: MemberStatus) -> MemberId {
        let id = Uuid::from_u128(1_000 + self.people.directory.len() as u128);
        let id = MemberId::parse(&id.hyphenated().to_string()).unwrap();
        self.people.directory.insert(id, status);
        id
    }

    /// Adds people with records that could not be read.
    fn unknown(mut self, count: usize) -> Self {
        for _ in 0..count {
            self = self.member(MemberStatus::Unknown);
        }
        self
    }

    /// Adds people who were not yet read.
    fn not_yet_read(mut self, count: usize) -> Self {
        for n in 0..count {
            let id = Uuid::from_u128(1_000_000 + n as u128).hyphenated().to_string();
            self.first_group().members.extend(MemberId::parse(&id));
        }
        self
    }

    /// Adds members.
    fn wanted(mut self, addresses: impl IntoIterator<Item = String>) -> Self {
        for address in addresses {
            self = self.member(wanted(&address));
        }
        self
    }

    fn subscribed(mut self, addresses: impl IntoIterator<Item = String>) -> Self {
        self.roster.extend(addresses.into_iter().map(|address| Address::new(&address)));
        self
    }

    fn kept(mut self, addresses: impl IntoIterator<Item = String>) -> Self {
        self.target.keep.extend(addresses.into_iter().map(|address| Address::new(&address)));
        self
    }

    fn ended(mut self, end: GroupEnd) -> Self {
        self.first_group().end = end;
        self
    }

    fn add_only(mut self) -> Self {
        self.target.is_add_only = true;
        self
    }

    fn with_limits(mut self, max_removal_percent: u64, max_growth_percent: u64) -> Self {
        self.target.limits = Limits { max_removal_percent, max_growth_percent };
        self
    }

    fn forced(self, force: Force) -> Self {
        Self { force: Some(force), ..self }
    }

    fn plan(&self) -> Plan {
        let mut roster = Roster::default();
        roster.extend(self.roster.iter().chain(&self.repeated_rows).cloned());
        Plan::new(&self.target, &self.people, &roster, &self.missing_lists, &self.history, self.force)
    }

    /// Applies the plan to the roster, and returns its report's status.
    fn run(&mut self) -> Status {
        let plan = self.plan();
        for subscriber in plan.subscribe() {
            self.roster.insert(subscriber.address.clone());
        }
        for address in plan.unsubscribe() {
            assert!(self.roster.remove(address), "it removes an address that isn't subscribed");
        }
        plan.status()
    }

    /// Returns true if the roster has exactly these addresses.
    fn has(&self, addresses: impl IntoIterator<Item = String>) -> bool {
        self.roster == addresses.into_iter().map(|address| Address::new(&address)).collect()
    }
}

impl Plan {
    fn status(&self) -> Status {
        reasons(self).into_iter().map(|(status, _)| status).max().unwrap_or_default()
    }

    fn reason(&self) -> String {
        reasons(self).into_iter().map(|(_, reason)| reason).collect::<Vec<_>>().join(" ")
    }

    /// Returns the guards that it doesn't pass, if it is blocked.
    fn blocks(&self) -> &[Block] {
        if let Verdict::Blocked(blocks) = &self.verdict { blocks } else { &[] }
    }

    /// Returns the guards that it doesn't pass, if it is held.
    fn holds(&self) -> &[Block] {
        if let Verdict::Held { blocks, .. } = &self.verdict { blocks } else { &[] }
    }

    /// Returns the numbers of addresses that are written: added and removed.
    fn written(&self) -> (usize, usize) {
        (self.subscribe().len(), self.unsubscribe().len())
    }
}

fn wanted(address: &str) -> MemberStatus {
    MemberStatus::Member { address: Address::new(address), name: Some("Ada L.".to_owned()), after_space: None }
}

fn opted_out(address: &str) -> MemberStatus {
    MemberStatus::OptedOut(Address::new(address))
}

/// Members, who are on the list in most scenarios.
fn m(range: std::ops::Range<usize>) -> impl Iterator<Item = String> {
    range.map(|i| format!("m{i:03}@example.org"))
}

/// Strangers, who are not on the list.
fn s(range: std::ops::Range<usize>) -> impl Iterator<Item = String> {
    range.map(|i| format!("s{i:03}@example.org"))
}

fn joining(plan: &Plan) -> Vec<&str> {
    plan.subscribe().iter().map(|subscriber| subscriber.address.as_str()).collect()
}

fn leaving(plan: &Plan) -> Vec<&str> {
    plan.unsubscribe().into_iter().map(Address::as_str).collect()
}

fn incomplete() -> GroupEnd {
    GroupEnd::Incomplete("it ended early".to_owned())
}

#[test]
fn wanted_addresses_join_and_others_leave() {
    let plan = Scenario::new().wanted(m(0..10)).subscribed(m(2..12)).subscribed(s(0..1)).kept(s(0..2)).plan();
    assert_eq!(joining(&plan), ["m000@example.org", "m001@example.org"]);
    assert_eq!(leaving(&plan), ["m010@example.org", "m011@example.org"]);
    assert_eq!(
        plan.to_string(),
        "members.lists.example.org: 11 subscribed, 10 wanted: 2 join, 0 move, 2 leave, 1 kept, 0 withheld"
    );
    assert_eq!((plan.status(), plan.reason()), (Status::Ok, String::new()));
}

#[test]
fn every_skipped_record_is_counted_by_reason() {
    let a = |text: &str| Address::new(text);
    let plan = Scenario::new()
        .wanted(m(0..2))
        .member(wanted("M000@Example.org"))
        .member(MemberStatus::Inactive(a("i@example.org")))
        .member(MemberStatus::OtherStatus(a("x@example.org")))
        .member(opted_out("o@example.org"))
        .member(MemberStatus::NoEmail)
        .member(MemberStatus::NotFound)
        .member(MemberStatus::InvalidEmail(BTreeSet::new()))
        .member(MemberStatus::Hidden(a("h@example.org")))
        .unknown(1)
        .not_yet_read(2)
        .subscribed(m(0..1))
        .plan();
    let expected = Skipped {
        inactive: 2,
        opted_out: 1,
        no_email: 1,
        invalid_email: 1,
        not_found: 1,
        unknown: 2,
        not_yet_read: 2,
        duplicate: 1,
        left: 0,
    };
    assert_eq!(plan.skipped, expected);
    assert_eq!((plan.wanted, joining(&plan)), (2, vec!["m001@example.org"]));
}

#[test]
fn address_wanted_by_one_record_stays_despite_other_records() {
    let plan = Scenario::new()
        .wanted(m(0..5))
        .member(opted_out("m000@example.org"))
        .member(MemberStatus::Inactive(Address::new("m001@example.org")))
        .subscribed(m(0..5))
        .plan();
    assert!(plan.is_empty() && plan.leaves.is_empty());
}

#[test]
fn address_in_a_field_that_is_not_one_valid_address_neither_joins_nor_leaves() {
    let invalid = |text: &str| MemberStatus::InvalidEmail(Address::parse(text).err().unwrap());
    let plan = Scenario::new()
        .wanted(m(0..8))
        .member(invalid("m008@example.org; m009@example.org"))
        .member(invalid("Ann m010@example.org\nann@s000.example"))
        .subscribed(m(0..11))
        .plan();
    assert!(plan.leaves.is_empty() && plan.joins.is_empty());
    assert_eq!((plan.status(), plan.skipped.invalid_email), (Status::Partial, 2));
    assert!(plan.reason().starts_with("2 of this list's records have an Email that is not one valid address."));
    // Not even because of another record.
    let plan = Scenario::new().wanted(m(0..2)).member(invalid("m000@example.org,m001@example.org")).plan();
    assert!(plan.joins.is_empty());
}

#[test]
fn space_in_an_address_is_a_lost_plus_unless_the_member_is_subscribed_without_it() {
    let spaced = |text: &str| MemberStatus::Member {
        address: Address::parse(text).unwrap_or_else(|_| panic!("not one address")),
        name: None,
        after_space: Address::after_space(text),
    };
    let scenario = || Scenario::new().wanted(m(1..20)).member(spaced("ann m000@example.org"));
    assert_eq!(joining(&scenario().subscribed(m(1..20)).plan()), ["ann+m000@example.org"]);
    let subscribed = scenario().subscribed(m(0..20)).plan();
    assert!(subscribed.joins.is_empty() && subscribed.leaves.is_empty());
    assert_eq!((subscribed.status(), subscribed.skipped.invalid_email), (Status::Partial, 1));
    // The other address is another member's, or this member is subscribed with the plus.
    let two = scenario().wanted(m(0..1)).subscribed(m(0..20)).plan();
    assert_eq!((joining(&two), two.leaves.len()), (vec!["ann+m000@example.org"], 0));
    let both = scenario().subscribed(m(0..20)).subscribed(["ann+m000@example.org".to_owned()]).plan();
    assert_eq!((joining(&both), leaving(&both)), (vec![], vec!["m000@example.org"]));
}

#[test]
fn address_of_a_list_is_not_a_members() {
    let addresses = [
        "members@lists.example.org",
        "members-request@lists.example.org",
        "members-owner@lists.example.org",
        "members-bounces+ann=example.org@lists.example.org",
        "members-confirm+1a2b@lists.example.org",
        "members-join@lists.example.org",
        "members-leave@lists.example.org",
        "members-subscribe@lists.example.org",
        "members-unsubscribe@lists.example.org",
        "committee@lists.example.org",
        "committee-owner@lists.example.org",
    ];
    let others = ["ann-owner@lists.example.org", "members-x@lists.example.org", "members@example.org", "x@y.example"];
    let mut scenario = Scenario::new().wanted(addresses.iter().chain(&others).map(|text| (*text).to_owned()));
    let committee = ListId::parse("committee.lists.example.org").unwrap();
    scenario.target.mapped_lists = Arc::new(BTreeSet::from([scenario.target.list.clone(), committee]));
    let plan = scenario.plan();
    assert_eq!(joining(&plan), BTreeSet::from(others).into_iter().collect::<Vec<_>>());
    assert_eq!((plan.status(), plan.skipped.invalid_email), (Status::Partial, addresses.len()));
    // One that is subscribed stays.
    assert!(scenario.subscribed(["members-owner@lists.example.org".to_owned()]).plan().leaves.is_empty());
}

#[test]
fn unknown_data_removes_no_one() {
    let synced = || Scenario::new().wanted(m(0..20)).subscribed(m(1..22));
    assert_eq!(leaving(&synced().plan()), ["m020@example.org", "m021@example.org"]);
    let mut without_id = synced();
    without_id.first_group().rows_without_id = 1;
    for scenario in [synced().unknown(1), synced().not_yet_read(1), synced().ended(incomplete()), without_id] {
        let is_waiting = scenario.plan().skipped.not_yet_read > 0;
        let plan = scenario.plan();
        assert!(plan.unsubscribe().is_empty());
        assert_eq!(joining(&plan), ["m000@example.org"], "additions go ahead");
        assert_eq!(plan.withheld(), 2);
        assert!(plan.reason().contains("no one is removed."), "{}", plan.reason());
        assert_eq!(plan.status(), if is_waiting { Status::Unfinished } else { Status::Partial });
        assert!(!plan.is_held_or_in_doubt());
    }
}

#[test]
fn opted_out_address_leaves_although_others_are_unknown() {
    let synced = || {
        Scenario::new()
            .wanted(m(0..20))
            .member(opted_out("m020@example.org"))
            .member(MemberStatus::Inactive(Address::new("m021@example.org")))
            .subscribed(m(0..23))
    };
    for scenario in [synced().unknown(1), synced().not_yet_read(1), synced().ended(incomplete())] {
        let plan = scenario.plan();
        assert_eq!((leaving(&plan), plan.withheld()), (vec!["m020@example.org"], 2));
        assert!(
            plan.reason().contains("1 address is removed anyway, because its member opted out."),
            "{}",
            plan.reason()
        );
    }
    // Another record has the address too, even if that doesn't put it on the list.
    let shared = synced().unknown(1).member(MemberStatus::Inactive(Address::new("m020@example.org")));
    assert!(shared.plan().unsubscribe().is_empty());
    assert!(synced().unknown(1).member(opted_out("m020@example.org")).plan().unsubscribe().is_empty());
    // In doubt, held, blocked, add-only.
    assert!(synced().unknown(1).group(OTHER_GROUP).plan().unsubscribe().is_empty());
    assert!(synced().unknown(9).subscribed(m(23..30)).plan().unsubscribe().is_empty());
    assert!(synced().unknown(1).subscribed(m(23..50)).plan().unsubscribe().is_empty());
    assert!(synced().unknown(1).add_only().plan().unsubscribe().is_empty());
}

#[test]
fn hidden_flag_neither_adds_nor_removes_and_affects_no_other_address() {
    let plan = Scenario::new()
        .wanted(m(0..8))
        .member(MemberStatus::Hidden(Address::new("m008@example.org")))
        .member(MemberStatus::Hidden(Address::new("new@example.org")))
        .subscribed(m(0..10))
        .plan();
    assert_eq!(leaving(&plan), ["m009@example.org"]);
    assert!(plan.subscribe().is_empty());
    assert_eq!((plan.withheld(), plan.skipped.unknown, plan.status()), (0, 2, Status::Partial));
    assert!(plan.reason().contains("Active or UnsubscribeFromEmails is hidden in 2 of"));
}

#[test]
fn repeated_address_leaves_once_and_is_reported_if_it_stays() {
    let mut scenario = Scenario::new().wanted(m(0..8)).subscribed(m(0..9));
    scenario.repeated_rows = m(7..9).map(|address| Address::new(&address)).collect();
    let plan = scenario.plan();
    assert_eq!((leaving(&plan), plan.roster), (vec!["m008@example.org"], 9));
    let reason = plan.reason();
    assert!(reason.starts_with("The roster contains addresses that are subscribed more than once (1)"), "{reason}");
}

#[test]
fn list_is_in_doubt_for_every_cause_and_says_so() {
    let synced = || Scenario::new().wanted(m(0..20)).subscribed(m(1..22));
    let mut unresolved = synced();
    unresolved.target.has_unresolved_mapping = true;
    let mut misspelled = synced();
    misspelled.missing_lists.extend(ListId::parse("other.lists.example.org"));
    for (scenario, expected) in [
        (synced().group(OTHER_GROUP), "A group of this list is empty while others are not. Until it has members"),
        (unresolved, "An invalid mapping does not name its list, which may be this one."),
        (misspelled, "A mapping names the list other.lists.example.org, which Mailman does not have."),
    ] {
        let plan = scenario.plan();
        assert_eq!((joining(&plan), leaving(&plan).len(), plan.withheld()), (vec!["m000@example.org"], 0, 2));
        assert_eq!(plan.status(), Status::Partial);
        assert!(plan.is_held_or_in_doubt() && plan.reason().starts_with(expected), "{}", plan.reason());
        assert!(
            plan.reason().ends_with(r#"{"force":{"members.lists.example.org":{"leaves":2}}}"#),
            "{}",
            plan.reason()
        );
        // Doubt doesn't depend on leavers.
        let settled = Scenario { roster: BTreeSet::new(), ..scenario }.subscribed(m(0..20));
        assert_eq!((settled.plan().status(), settled.plan().is_held_or_in_doubt()), (Status::Partial, true));
        let forced = settled.subscribed(m(20..22)).forced(Force { leaves: 2, ..Force::default() });
        assert_eq!((forced.plan().written(), forced.plan().status()), ((0, 2), Status::Ok));
        // One more leaves than was seen.
        let more = forced.subscribed(m(22..23));
        assert_eq!((more.plan().written(), more.plan().withheld(), more.plan().status()), ((0, 0), 3, Status::Partial));
    }
    let mut vacant = synced().group(OTHER_GROUP);
    vacant.target.may_be_empty.insert(OTHER_GROUP);
    assert_eq!((vacant.plan().written(), vacant.plan().status()), ((1, 2), Status::Ok));
    // A list that doesn't exist is not in doubt because of itself.
    let mut itself = synced();
    itself.missing_lists.insert(itself.target.list.clone());
    assert_eq!(itself.plan().status(), Status::Ok);
}

#[test]
fn add_only_list_removes_no_one_and_is_only_judged_by_growth() {
    let scenario = || Scenario::new().wanted(m(0..5)).subscribed(s(0..100)).add_only();
    let everything = Force { leaves: 9_999, ..Force::default() };
    for scenario in [scenario(), scenario().group(OTHER_GROUP), scenario().forced(everything)] {
        let plan = scenario.plan();
        assert_eq!((plan.written(), plan.withheld(), plan.status()), ((5, 0), 0, Status::Ok));
    }
    assert_eq!(Scenario::new().subscribed(s(0..9)).add_only().plan().status(), Status::Ok);
    assert_eq!(Scenario::new().wanted(m(0..101)).subscribed(s(0..100)).add_only().plan().blocks(), [Block::Growth]);
    let unknown = Scenario::new().wanted(m(0..5)).subscribed(s(0..100)).unknown(1).add_only().plan();
    assert_eq!((unknown.written(), unknown.status()), ((5, 0), Status::Partial));
    assert!(!unknown.reason().contains("removed"), "{}", unknown.reason());
}

#[test]
fn reasons_identify_no_member() {
    let scenario = Scenario::new().wanted(m(0..3)).wanted(s(0..25)).unknown(1).subscribed(m(0..6));
    let plan = scenario.plan();
    assert!(!format!("{plan} {}", plan.reason()).contains("@example.org"));
}
