//! Tests of the rules by which a plan is blocked or held, and of what a force lifts.

use super::*;

#[test]
fn removals_are_limited_by_the_base() {
    let verdict =
        |roster: usize, stay: usize| Scenario::new().wanted(m(0..stay)).subscribed(m(0..roster)).plan().verdict;
    for (roster, may_leave) in [(2, 1), (3, 1), (6, 1), (7, 2), (9, 2), (10, 3), (11, 3), (13, 3), (14, 4), (100, 30)] {
        assert!(matches!(verdict(roster, roster - may_leave), Verdict::Sound(_)), "{may_leave} of {roster}");
        let blocked = verdict(roster, roster - may_leave - 1);
        let block = if roster == may_leave + 1 { Block::Everyone } else { Block::Removals };
        if roster > may_leave + 1 {
            assert_eq!(blocked, Verdict::Blocked(vec![block]), "{} of {roster}", may_leave + 1);
        }
    }
    // Never everyone, however few they are.
    let exchanged = |roster| Scenario::new().wanted(s(0..1)).subscribed(m(0..roster));
    assert_eq!(exchanged(1).plan().blocks(), [Block::Everyone]);
    assert_eq!(exchanged(3).plan().blocks(), [Block::Everyone]);
    // Those who stay only because of keep don't count.
    assert_eq!(exchanged(4).kept(m(0..1)).plan().blocks(), [Block::Everyone]);
    assert_eq!(exchanged(2).kept(m(0..1)).plan().blocks(), [Block::Everyone]);
    // With 100 percent, everyone may leave.
    assert_eq!(exchanged(3).with_limits(100, 100).plan().written(), (1, 3));
    assert_eq!(exchanged(3).with_limits(99, 100).plan().blocks(), [Block::Everyone]);
    // The floor stays with 0 percent.
    assert_eq!(Scenario::new().wanted(m(0..9)).subscribed(m(0..10)).with_limits(0, 0).plan().written(), (0, 1));
}

#[test]
fn growth_is_limited_by_the_base() {
    let verdict = |roster: usize, wanted: usize| Scenario::new().wanted(m(0..wanted)).subscribed(m(0..roster)).plan();
    for (roster, may_join) in [(1, 5), (5, 5), (6, 6), (40, 40)] {
        assert_eq!(verdict(roster, roster + may_join).written(), (may_join, 0), "{may_join} to {roster}");
        assert_eq!(verdict(roster, roster + may_join + 1).blocks(), [Block::Growth], "{} to {roster}", may_join + 1);
    }
    // An empty list has no limit, also if only kept addresses are on it.
    assert_eq!(verdict(0, 5_000).written(), (5_000, 0));
    let owned = Scenario::new().wanted(m(0..40)).subscribed(s(0..2)).kept(s(0..2));
    assert_eq!(owned.plan().written(), (40, 0));
    // A kept address that is also a member's counts.
    assert_eq!(owned.wanted(s(0..1)).plan().blocks(), [Block::Growth]);
}

#[test]
fn both_limits_are_reported_with_one_event_that_lifts_them() {
    let scenario = Scenario::new().wanted(m(0..3)).wanted(s(0..25)).subscribed(m(0..6));
    let plan = scenario.plan();
    assert_eq!(plan.blocks(), [Block::Removals, Block::Growth]);
    assert_eq!(
        plan.reason(),
        "Blocked because 3 of 6 addresses would be unsubscribed, more than the larger of 1 and 30 percent \
         (max_removal_percent), and 25 addresses would be subscribed to a list of 6, more than the larger of 5 and 100 \
         percent (max_growth_percent). The list is left unchanged. If the plan is right, invoke once with the event \
         {\"force\":{\"members.lists.example.org\":{\"joins\":25,\"leaves\":3}}}"
    );
    assert_eq!((plan.status(), plan.withheld(), plan.written()), (Status::Blocked, 3, (0, 0)));
    let forced = scenario.forced(Force { joins: 25, leaves: 3, ..Force::default() }).plan();
    assert_eq!((forced.written(), forced.status()), ((25, 3), Status::Ok));
    assert!(forced.reason().starts_with("The plan was forced although 3 of 6 addresses would be unsubscribed"));
}

#[test]
fn missing_group_is_blocked_and_cannot_be_forced() {
    let missing = || Scenario::new().wanted(m(0..3)).subscribed(m(0..4)).ended(GroupEnd::Missing);
    let everything = Force { joins: 9_999, leaves: 9_999, moves: 9_999, left: 9_999, unknown: 9_999 };
    for scenario in [missing(), missing().forced(everything), missing().add_only(), missing().unknown(1)] {
        let plan = scenario.plan();
        assert_eq!((plan.blocks(), plan.written()), (&[Block::MissingGroup][..], (0, 0)));
        assert!(plan.reason().contains("Correct the mapping") && !plan.reason().contains("force"), "{}", plan.reason());
    }
    let mut unread = missing();
    unread.people.groups.clear();
    assert_eq!(unread.plan().blocks(), [Block::MissingGroup]);
}

#[test]
fn list_with_only_empty_groups_is_blocked() {
    let empty = || Scenario::new().subscribed(m(0..2));
    assert_eq!(empty().plan().blocks(), [Block::EmptyGroups]);
    assert_eq!(empty().group(OTHER_GROUP).plan().blocks(), [Block::EmptyGroups]);
    // Neither 100 percent nor may_be_empty means that a list may lose everyone because its groups are empty.
    let mut scenario = empty().with_limits(100, 100);
    scenario.target.may_be_empty.insert(GROUP);
    assert_eq!(scenario.plan().blocks(), [Block::EmptyGroups]);
    let forced = empty().forced(Force { leaves: 2, ..Force::default() }).plan();
    assert_eq!((forced.written(), forced.status()), ((0, 2), Status::Ok));
    assert_eq!(empty().forced(Force { leaves: 1, ..Force::default() }).plan().blocks(), [Block::EmptyGroups]);
    // Empty groups are fine for an empty list, and for one with only kept addresses.
    assert!(Scenario::new().plan().reason().is_empty());
    assert!(empty().kept(m(0..2)).plan().reason().is_empty());
    // An unreadable group isn't an empty one. All leavers together are everyone, though.
    let incomplete = empty().ended(incomplete()).plan();
    assert_eq!((incomplete.holds(), incomplete.withheld()), (&[Block::Everyone][..], 2));
}

#[test]
fn leavers_that_unknown_people_account_for_hold_a_plan_and_others_block_it() {
    // Two of ten leave: fine, however many are unknown.
    assert_eq!(Scenario::new().wanted(m(0..8)).subscribed(m(0..10)).unknown(2).plan().written(), (0, 0));
    // Four of ten leave, and at most three may.
    let four_leave = || Scenario::new().wanted(m(0..6)).subscribed(m(0..10));
    assert_eq!(four_leave().plan().blocks(), [Block::Removals]);
    for scenario in [four_leave().unknown(1), four_leave().ended(incomplete()), four_leave().group(OTHER_GROUP)] {
        let plan = scenario.plan();
        assert_eq!((plan.holds(), plan.status()), (&[Block::Removals][..], Status::Partial));
        assert!(plan.is_held_or_in_doubt());
        assert!(plan.reason().contains("Held because 4 of 10 addresses would be unsubscribed"), "{}", plan.reason());
    }
    // A row without an id is an unknown person too.
    let mut row = four_leave();
    row.first_group().rows_without_id = 1;
    assert_eq!(row.plan().holds(), [Block::Removals]);
    // Five of ten leave, and one of them is explained.
    let five_leave = Scenario::new().wanted(m(0..5)).subscribed(m(0..10)).unknown(1);
    assert_eq!(five_leave.plan().blocks(), [Block::Removals]);
}

#[test]
fn hold_that_only_waits_for_people_who_were_not_yet_read_is_unfinished() {
    let plan = Scenario::new().wanted(m(0..600)).not_yet_read(400).subscribed(m(0..1_000)).plan();
    assert_eq!((plan.holds(), plan.status()), (&[Block::Removals][..], Status::Unfinished));
    assert!(!plan.is_held_or_in_doubt() && !plan.reason().contains("force"), "{}", plan.reason());
    // The unknown records would hold it as well.
    let plan = Scenario::new().wanted(m(0..600)).unknown(350).not_yet_read(50).subscribed(m(0..1_000)).plan();
    assert_eq!((plan.holds(), plan.status()), (&[Block::Removals][..], Status::Unfinished));
    assert!(plan.is_held_or_in_doubt());
    // The same for growth.
    let plan = Scenario::new().wanted(m(0..10)).wanted(s(0..5)).not_yet_read(6).subscribed(m(0..10)).plan();
    assert_eq!((plan.holds(), plan.is_held_or_in_doubt()), (&[Block::Growth][..], false));
    let plan = Scenario::new().wanted(m(0..10)).wanted(s(0..5)).unknown(6).subscribed(m(0..10)).plan();
    assert_eq!((plan.holds(), plan.status()), (&[Block::Growth][..], Status::Partial));
    assert!(plan.reason().contains("and 6 people who could not be read may be added"), "{}", plan.reason());
}

#[test]
fn force_accepts_its_numbers_and_the_rest_is_judged_by_itself() {
    let leaves = |leaves| Force { leaves, ..Force::default() };
    let purge = |leave: usize| Scenario::new().wanted(m(0..100 - leave)).subscribed(m(0..100));
    assert_eq!(purge(50).plan().blocks(), [Block::Removals]);
    assert_eq!(purge(50).forced(leaves(50)).plan().written(), (0, 50));
    assert_eq!(purge(80).forced(leaves(50)).plan().written(), (0, 80), "30 of 100 are within the limit");
    let beyond = purge(81).forced(leaves(50)).plan();
    assert_eq!(beyond.blocks(), [Block::Removals]);
    assert!(
        beyond.reason().contains("81 of 100 addresses would be unsubscribed, although force accepts only 50, more")
    );
    assert!(beyond.reason().contains(r#""leaves":81"#), "{}", beyond.reason());
    // Those accepted and the rest together are everyone.
    let two = Scenario::new().wanted(s(0..1)).subscribed(m(0..2));
    assert_eq!(two.forced(leaves(1)).plan().blocks(), [Block::Everyone]);
    // A force for removals lifts no growth, and the other way round.
    let both = || Scenario::new().wanted(m(0..3)).wanted(s(0..25)).subscribed(m(0..6));
    assert_eq!(both().forced(leaves(3)).plan().blocks(), [Block::Growth]);
    assert_eq!(both().forced(Force { joins: 25, ..Force::default() }).plan().blocks(), [Block::Removals]);
    assert_eq!(both().forced(Force { joins: 19, leaves: 2, ..Force::default() }).plan().written(), (25, 3));
    assert_eq!(both().forced(Force { joins: 18, leaves: 2, ..Force::default() }).plan().blocks(), [Block::Growth]);
    // moves and left lift nothing without a ledger.
    let unused = Force { moves: 99, left: 99, ..Force::default() };
    assert_eq!(both().forced(unused).plan().blocks(), [Block::Removals, Block::Growth]);
}

#[test]
fn forced_unknown_records_and_rows_no_longer_withhold_removals() {
    let unknown = |unknown| Force { unknown, ..Force::default() };
    let mut scenario = Scenario::new().wanted(m(0..20)).subscribed(m(0..22)).unknown(1);
    scenario.first_group().rows_without_id = 1;
    let event = r#"{"force":{"members.lists.example.org":{"unknown":2}}}"#;
    assert!(scenario.plan().reason().contains(event), "{}", scenario.plan().reason());
    assert_eq!(scenario.plan().withheld(), 2);
    let scenario = scenario.forced(unknown(1));
    assert_eq!((scenario.plan().withheld(), scenario.plan().status()), (2, Status::Partial));
    let scenario = scenario.forced(unknown(2));
    assert_eq!((scenario.plan().written(), scenario.plan().status()), ((0, 2), Status::Partial));
    assert!(
        scenario
            .plan()
            .reason()
            .contains("2 of this list's records could not be read, which this run's force accepts.")
    );
    // Accepted records explain no leavers: these are judged.
    let exchanged = Scenario::new().wanted(m(0..6)).subscribed(m(0..10)).unknown(4).forced(unknown(4));
    assert_eq!(exchanged.plan().blocks(), [Block::Removals]);
    // It accepts neither a group that wasn't read to its end, nor people who were not yet read.
    let other = || Scenario::new().wanted(m(0..20)).subscribed(m(0..22)).forced(unknown(9));
    assert_eq!(other().ended(incomplete()).plan().withheld(), 2);
    assert_eq!(other().not_yet_read(1).plan().withheld(), 2);
}

#[test]
fn rows_of_a_page_that_was_not_read_count_as_people_who_may_join() {
    // 33 members stay, and 3 of 39 strangers are on the pages that were read.
    let cut_off = |missing_rows| {
        let mut scenario = Scenario::new().wanted(m(0..33)).wanted(s(0..3)).subscribed(m(0..33)).ended(incomplete());
        scenario.first_group().missing_rows = missing_rows;
        scenario
    };
    assert_eq!((cut_off(36).plan().holds(), cut_off(36).plan().written()), (&[Block::Growth][..], (0, 0)));
    assert_eq!(cut_off(30).plan().written(), (3, 0));
    // Those on the roster whose rows are missing account for them.
    let mut unread = Scenario::new().wanted(m(0..10)).wanted(s(0..3)).subscribed(m(0..33)).ended(incomplete());
    unread.first_group().missing_rows = 23;
    assert_eq!(unread.plan().holds(), [Block::Removals]);
}
