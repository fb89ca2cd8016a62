//! The cases of the field notes and the worlds that need no ledger.

use super::*;

/// M1, M22 and M2: a group is exchanged for strangers, and a record that can't be read hides that.
#[test]
fn exchanged_group_is_blocked_in_every_run_even_if_a_record_is_unknown() {
    let exchanged =
        |members: usize, strangers: usize| Scenario::new().wanted(s(0..strangers)).subscribed(m(0..members));
    for mut scenario in [
        Scenario::new().wanted(s(0..24)).unknown(1).subscribed(m(0..10)),
        exchanged(10, 25),
        exchanged(60, 60).unknown(1),
        Scenario::new().wanted(m(0..3)).wanted(s(0..25)).subscribed(m(0..6)),
    ] {
        let before = scenario.roster.clone();
        for _ in 0..3 {
            assert_eq!(scenario.run(), Status::Blocked);
        }
        assert!(scenario.roster == before);
    }
    // A mapping that names no list doesn't cover up an exchange either.
    let mut unresolved = exchanged(60, 60);
    unresolved.target.has_unresolved_mapping = true;
    assert_eq!((unresolved.plan().holds(), unresolved.plan().written()), (&[Block::Everyone][..], (0, 0)));
}

/// The second example of the issue.
#[test]
fn two_members_exchanged_for_four_others_and_an_unknown_record_are_held() {
    let plan = Scenario::new().wanted(s(0..4)).unknown(1).subscribed(m(0..2)).plan();
    assert_eq!((plan.holds(), plan.written()), (&[Block::Everyone][..], (0, 0)));
}

/// M3: one of two groups comes back empty.
#[test]
fn vacant_group_next_to_others_withholds_removals_until_forced_or_allowed() {
    let mut scenario = Scenario::new().group(OTHER_GROUP).wanted(m(0..40)).subscribed(m(0..55));
    assert_eq!((scenario.run(), scenario.plan().withheld()), (Status::Partial, 15));
    let mut forced =
        Scenario { roster: scenario.roster.clone(), ..scenario }.forced(Force { leaves: 15, ..Force::default() });
    assert_eq!(forced.run(), Status::Ok);
    assert!(forced.has(m(0..40)));
}

/// M4 and M5: a mapping that is lost to this list, because it names another one or nothing that parses.
#[test]
fn mapping_that_names_a_list_that_does_not_exist_withholds_removals() {
    let mut scenario = Scenario::new().wanted(m(0..40)).subscribed(m(0..55));
    scenario.missing_lists.extend(ListId::parse("membres.lists.example.org"));
    assert_eq!((scenario.run(), scenario.plan().withheld()), (Status::Partial, 15));
}

/// M6: the base doesn't include the kept owner.
#[test]
fn kept_owner_does_not_hide_that_everyone_else_leaves() {
    let scenario = Scenario::new().wanted(s(0..25)).subscribed(m(0..4)).kept(m(0..1));
    assert_eq!(scenario.plan().blocks(), [Block::Everyone, Block::Growth]);
}

/// M10: a force that was meant for growth.
#[test]
fn force_for_growth_does_not_accept_that_the_group_is_empty() {
    let growth = Scenario::new().wanted(m(0..50)).subscribed(m(0..20));
    let event = growth.plan().reason();
    assert!(event.ends_with(r#"{"force":{"members.lists.example.org":{"joins":30}}}"#), "{event}");
    let force = Force { joins: 30, ..Force::default() };
    assert_eq!(growth.forced(force).plan().written(), (30, 0));
    assert_eq!(Scenario::new().subscribed(m(0..20)).forced(force).plan().blocks(), [Block::EmptyGroups]);
}

/// M24, and "one record that can never be read".
#[test]
fn record_that_can_never_be_read_is_accepted_by_one_force() {
    let mut scenario =
        Scenario::new().wanted(m(0..20)).member(opted_out("m020@example.org")).unknown(1).subscribed(m(0..22));
    assert_eq!((scenario.run(), scenario.plan().withheld()), (Status::Partial, 1), "who opted out has left");
    assert!(scenario.has(m(0..20).chain(m(21..22))));
    let force = Force { unknown: 1, ..Force::default() };
    let mut forced = scenario.forced(force);
    assert_eq!(forced.run(), Status::Partial);
    assert!(forced.has(m(0..20)));
}

#[test]
fn joiners_and_records_that_cannot_be_read_are_accepted_by_one_force() {
    let scenario = || Scenario::new().wanted(m(0..10)).subscribed(m(0..1)).unknown(6).with_limits(0, 0);
    let plan = scenario().plan();
    assert_eq!(plan.blocks(), [Block::Growth]);
    let force = plan.facts.sufficient_force().unwrap();
    assert_eq!(force, Force { joins: 9, unknown: 6, ..Force::default() });
    assert!(plan.reason().contains(&force.event(&plan.list).to_string()), "{}", plan.reason());
    assert_eq!(scenario().forced(force).plan().subscribe().len(), 9);
}

#[test]
fn empty_list_is_filled_and_a_fill_that_is_cut_short_needs_a_force() {
    let mut scenario = Scenario::new().wanted(m(0..800));
    assert_eq!(scenario.run(), Status::Ok);
    assert!(scenario.has(m(0..800)));
    let mut cut = Scenario::new().wanted(m(0..800)).subscribed(m(0..100));
    assert_eq!(cut.run(), Status::Blocked);
    let mut forced = cut.forced(Force { joins: 700, ..Force::default() });
    assert_eq!(forced.run(), Status::Ok);
    assert!(forced.has(m(0..800)));
    // Also with an owner in keep.
    let mut owned = Scenario::new().wanted(m(0..40)).subscribed(s(0..1)).kept(s(0..1));
    assert_eq!(owned.run(), Status::Ok);
    assert!(owned.has(m(0..40).chain(s(0..1))));
    // People who can't be read yet don't stop a fill, but hold up its removals.
    let mut partly = Scenario::new().wanted(m(0..100)).not_yet_read(700);
    assert_eq!((partly.run(), partly.roster.len()), (Status::Unfinished, 100));
}

#[test]
fn no_one_leaves_if_time_runs_out() {
    let mut scenario = Scenario::new().wanted(m(0..750)).not_yet_read(250).subscribed(m(0..1_000));
    assert_eq!(scenario.run(), Status::Unfinished);
    assert!(scenario.has(m(0..1_000)));
}

#[test]
fn only_group_that_becomes_vacant_is_blocked_until_one_force() {
    let mut scenario = Scenario::new().subscribed(m(0..7));
    assert_eq!(scenario.run(), Status::Blocked);
    let mut forced = scenario.forced(Force { leaves: 7, ..Force::default() });
    assert_eq!(forced.run(), Status::Ok);
    assert!(forced.roster.is_empty());
}

#[test]
fn list_of_one_member_needs_one_force_each_time_the_member_changes() {
    let mut scenario = Scenario::new().wanted(s(0..1)).subscribed(m(0..1));
    assert_eq!(scenario.run(), Status::Blocked);
    let mut forced = scenario.forced(Force { leaves: 1, ..Force::default() });
    assert_eq!(forced.run(), Status::Ok);
    assert!(forced.has(s(0..1)));
}

#[test]
fn add_only_list_of_others_takes_members_and_keeps_everyone() {
    let mut scenario = Scenario::new().wanted(m(0..20)).subscribed(s(0..100)).add_only();
    assert_eq!(scenario.run(), Status::Ok);
    assert!(scenario.has(m(0..20).chain(s(0..100))));
    let mut opted_out =
        Scenario { people: Scenario::new().people, ..scenario }.wanted(m(0..19)).member(opted_out("m019@example.org"));
    assert_eq!(opted_out.run(), Status::Ok);
    assert!(opted_out.has(m(0..20).chain(s(0..100))));
}

#[test]
fn strangers_who_become_readable_bit_by_bit_do_not_join() {
    let mut scenario = Scenario::new().subscribed(m(0..6));
    for (unreadable, expected) in [(19, Status::Partial), (12, Status::Blocked), (0, Status::Blocked)] {
        scenario.people = Scenario::new().people;
        scenario = scenario.wanted(m(0..6)).wanted(s(0..25 - unreadable)).unknown(unreadable);
        assert_eq!(scenario.run(), expected, "{unreadable} are unreadable");
        assert!(scenario.has(m(0..6)));
    }
}

#[test]
fn truth_after_a_lie_that_added_more_than_may_leave_is_blocked_with_that_as_the_reason() {
    let mut scenario = Scenario::new().wanted(m(0..10)).wanted(s(0..8)).subscribed(m(0..10));
    assert_eq!(scenario.run(), Status::Ok);
    scenario.people = Scenario::new().people;
    let mut scenario = scenario.wanted(m(0..10));
    assert!(scenario.plan().reason().starts_with("Blocked because 8 of 18 addresses would be unsubscribed"));
    assert_eq!(scenario.run(), Status::Blocked);
    let mut forced = scenario.forced(Force { leaves: 8, ..Force::default() });
    assert_eq!(forced.run(), Status::Ok);
    assert!(forced.has(m(0..10)));
}

#[test]
fn purge_is_forced_once_and_later_leavers_go_by_the_ordinary_limits() {
    let mut scenario = Scenario::new().wanted(m(0..240)).subscribed(m(0..400));
    assert_eq!(scenario.run(), Status::Blocked);
    let mut one_more = Scenario { people: Scenario::new().people, ..scenario }
        .wanted(m(0..239))
        .forced(Force { leaves: 160, ..Force::default() });
    assert_eq!(one_more.run(), Status::Ok);
    assert!(one_more.has(m(0..239)));
}

#[test]
fn member_added_by_hand_is_removed() {
    let mut scenario = Scenario::new().wanted(m(0..20)).subscribed(m(0..20)).subscribed(s(0..1));
    assert_eq!(scenario.run(), Status::Ok);
    assert!(scenario.has(m(0..20)));
}

/// Q1, Q2, M9: what people paste into Novi. The roster has the addresses as they were before.
#[test]
fn members_stay_however_their_address_is_written_in_novi() {
    let fields = [
        "m000@example.org\u{200b}",
        "\u{feff}m001@example.org",
        "Ann Lee <m002@example.org>",
        "\"m003@example.org\"",
        "'m004@example.org'",
        "\u{201c}m005@example.org\u{201d}",
        "m006@example.org; ann@work.example",
        "m007@example.org\r\nann@work.example",
        "m008@example.org.",
        "m009@example.org (work)",
        "mailto:m010@example.org",
        "<m011@example.org>",
        "m012@example.org, m013@example.org",
        "m014 @example.org",
        "m015@ example.org",
        "M016@EXAMPLE.ORG",
        "m017@example.org / ann@work.example",
        "m018@\u{ff45}xample.org",
        "Ann Lee m020@example.org",
        "m019@exam\u{ad}ple.org\u{0}",
    ];
    let mut scenario = Scenario::new().wanted(m(21..100)).subscribed(m(0..100));
    for field in fields {
        scenario = scenario.member(match Address::parse(field) {
            Ok(address) => MemberStatus::Member { address, name: None, after_space: Address::after_space(field) },
            Err(readings) => MemberStatus::InvalidEmail(readings),
        });
    }
    let plan = scenario.plan();
    assert!(
        plan.leaves.is_empty() && plan.joins.is_empty(),
        "{:?}",
        BTreeMap::from([(joining(&plan), leaving(&plan))])
    );
    assert_eq!((plan.status(), plan.skipped.invalid_email), (Status::Partial, 5));
}
