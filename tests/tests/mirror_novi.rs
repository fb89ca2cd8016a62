//! The mirror before Novi's ways: its envelopes, its limits, its list of all
//! records where a key is allowed that, and its bad moments.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Result;
use fastrand::Rng;
use serde_json::{Value, json};
use tests::directory::Directory;
use tests::harness::{Mirror, list};
use tests::novi::Fault;
use uuid::Uuid;

const LIST: &str = "members.lists.example.org";

/// One list, mapped to the first of two groups of so many ordinary people.
async fn world(mapped: usize, others: usize, variables: &[(&str, &str)]) -> Result<(Mirror, Uuid)> {
    let mut directory = Directory::default();
    let mut rng = Rng::new();
    let group = directory.add_plain_group(&mut rng, mapped);
    directory.add_plain_group(&mut rng, others);
    let world = Mirror::start(
        directory,
        json!([{"group_guid": group, "list_id": LIST, "max_growth_percent": 1_000}]),
        variables,
    )
    .await?;
    world.mailman.create_list("members").await?;
    Ok((world, group))
}

async fn assert_members(world: &Mirror, group: Uuid) -> Result<()> {
    let members: BTreeSet<String> = world.mailman.roster(LIST, "member").await?.into_keys().collect();
    let state = world.novi.state();
    let expected: BTreeSet<String> =
        state.directory.groups[&group].iter().map(|id| state.directory.address(*id)).collect();
    assert_eq!(members, expected);
    Ok(())
}

/// How often Novi was asked for pages of records, and for single ones.
fn asked(world: &Mirror) -> (usize, usize) {
    let state = world.novi.state();
    (state.calls.iter().filter(|(path, _)| path == "/api/members").count(), state.count("/customers/"))
}

#[tokio::test(flavor = "multi_thread")]
async fn novi_s_envelopes_and_bad_moments_make_no_difference() -> Result<()> {
    let (world, group) = world(90, 0, &[]).await?;
    {
        let mut state = world.novi.state();
        (state.counted, state.wrapped, state.page_limit) = (false, true, 7);
        state.fail("/groups/", 2, Fault::Answer(502, "text/html", String::new()));
        state.fail("/customers/", 2, Fault::HangUp);
        state.fail("/customers/", 2, Fault::Answer(500, "text/plain", String::new()));
        state.fail("/customers/", 2, Fault::HalfBody);
        state.fail("/customers/", 2, Fault::RateLimited(Some("1".to_owned())));
    }
    let report = world.run(json!({})).await?;
    assert_eq!(report["status"], "ok", "{report}");
    assert_members(&world, group).await
}

#[tokio::test(flavor = "multi_thread")]
async fn all_records_are_swept_where_that_takes_fewer_calls() -> Result<()> {
    // 300 in pages of 40 are 8 calls instead of 200. The group's pages overlap by a row each: six for its 200.
    let (world, group) = world(200, 100, &[]).await?;
    world.novi.state().listed = Some(Vec::new());
    let report = world.run(json!({})).await?;
    assert_eq!((&report["status"], &report["novi_calls"]), (&json!("ok"), &json!(6 + 8)), "{report}");
    assert_eq!(asked(&world), (8, 0));
    assert_members(&world, group).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_that_would_be_dearer_is_not_made() -> Result<()> {
    // The first page tells of 500 in pages of 40: 12 more calls, for at most 9 people.
    let (world, group) = world(9, 491, &[]).await?;
    world.novi.state().listed = Some(Vec::new());
    let report = world.run(json!({})).await?;
    assert_eq!(report["status"], "ok");
    let (pages, singly) = asked(&world);
    assert!(pages == 1 && (1..=9).contains(&singly), "{pages} pages, {singly} singly");
    assert_members(&world, group).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sweep_can_be_turned_off() -> Result<()> {
    let (world, group) = world(30, 0, &[("NOVI_BULK", "off")]).await?;
    world.novi.state().listed = Some(Vec::new());
    assert_eq!(world.run(json!({})).await?["novi_calls"], 31);
    assert_eq!(asked(&world), (0, 30));
    assert_members(&world, group).await
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_the_sweep_lacks_or_does_not_show_whole_is_asked_for_singly() -> Result<()> {
    let (world, group) = world(60, 20, &[]).await?;
    let hidden: Vec<Uuid> = world.novi.state().directory.groups[&group][..5].to_vec();
    {
        let mut state = world.novi.state();
        state.listed = Some(Vec::new());
        // In the list as rows without names, without a flag, with a flag of null; and one not at all.
        for (id, field) in hidden.iter().zip(["LastName", "Active", "UnsubscribeFromEmails", "Email"]) {
            state.veiled.insert(*id, vec![field.to_owned()]);
        }
        // What a key may not see may also come as null.
        state.nulls = fastrand::bool();
        state.veiled.insert(hidden[4], vec!["*".to_owned()]);
    }
    let report = world.run(json!({})).await?;
    assert_eq!(report["status"], "ok", "{report}");
    assert_eq!(asked(&world), (2, 5));
    for id in hidden {
        assert_eq!(world.novi.state().count(&format!("/customers/{}", id.hyphenated())), 1);
    }
    assert_members(&world, group).await?;

    // A key that sees no flags in the list is a key for which the list is of no use.
    world.novi.state().listed = Some(vec!["UnsubscribeFromEmails".to_owned()]);
    let report = world.run(json!({})).await?;
    assert_eq!((&report["status"], asked(&world).1), (&json!("ok"), 5 + 60), "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_records_that_is_refused_or_odd_is_gone_without_and_said_so_once() -> Result<()> {
    let (world, group) = world(12, 0, &[]).await?;
    for fault in [
        Fault::Forbidden,
        Fault::Blocked,
        Fault::Answer(404, "application/json", "{}".to_owned()),
        Fault::Answer(200, "application/json", "[]".to_owned()),
        Fault::Answer(200, "application/json", r#"{"TotalCount":3,"Results":[]}"#.to_owned()),
        Fault::Answer(200, "application/json", r#"{"TotalCount":3,"Results":["x"]}"#.to_owned()),
        Fault::Answer(200, "text/html", "<html>".to_owned()),
        Fault::Answer(500, "text/html", String::new()),
        Fault::Silence,
        Fault::EndlessBody,
    ] {
        let before = world.function.log().matches("does not list all records").count();
        world.novi.state().fail("/api/members", usize::MAX, fault.clone());
        let report = world.run(json!({})).await?;
        assert_eq!((&report["status"], &report["lists"][0]["reason"]), (&json!("ok"), &json!(null)), "{report}");
        world.novi.state().mend();
        let said = world.function.log().matches("does not list all records").count() - before;
        // An empty page is a list, which lacks everybody.
        let is_list = matches!(&fault, Fault::Answer(_, _, body) if body.contains(r#""Results":[]"#));
        assert_eq!(said, usize::from(!is_list));
    }
    assert_members(&world, group).await?;
    assert!(!world.function.log().contains(r#""level":"WARN""#), "falling back is nothing to warn of");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_records_that_ignores_the_offset_or_ends_early_is_left() -> Result<()> {
    let (world, group) = world(100, 0, &[]).await?;
    world.novi.state().listed = Some(Vec::new());
    world.novi.state().ignores_offset = true;
    // The group's pages repeat too, so that it is not read to its end.
    let report = world.run(json!({})).await?;
    assert_eq!(report["status"], "partial", "{report}");
    assert!(asked(&world).0 <= 2, "a page that brings nothing new is the last");

    world.novi.state().ignores_offset = false;
    world.novi.state().drifts = true;
    let report = world.run(json!({})).await?;
    assert_eq!(report["status"], "partial", "{report}");
    world.novi.state().drifts = false;
    assert_eq!(world.run(json!({})).await?["status"], "ok");
    assert_members(&world, group).await
}

/// A group whose reading cannot be trusted removes nobody, and lets others join.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_not_read_to_its_end_removes_nobody() -> Result<()> {
    let (world, group) = world(100, 0, &[]).await?;
    assert_eq!(world.run(json!({})).await?["status"], "ok");
    // Of the first page: somebody has left, and somebody has joined.
    let joiner = world.novi.state().directory.add(&mut Rng::new());
    let left = {
        let mut state = world.novi.state();
        let members = state.directory.groups.get_mut(&group).unwrap();
        std::mem::replace(&mut members[0], joiner)
    };
    let (left, joiner) = {
        let state = world.novi.state();
        (state.directory.address(left), state.directory.address(joiner))
    };
    type Change = fn(&mut tests::novi::State);
    let oddities: [(&str, Change); 4] = [
        ("it repeats its first page", |state| state.ignores_offset = true),
        ("its count changes", |state| state.drifts = true),
        ("a page of it is cut off", |state| state.fail("/groups/", usize::MAX, Fault::HalfBody)),
        ("it hangs up on the second page", |state| {
            state.fail("/groups/", 1, Fault::Slow(Duration::ZERO));
            state.fail("/groups/", usize::MAX, Fault::HangUp);
        }),
    ];
    for (what, change) in oddities {
        change(&mut world.novi.state());
        let report = world.run(json!({})).await?;
        let one = list(&report, LIST);
        assert_eq!((&one["status"], &one["unsubscribed"]), (&json!("partial"), &json!(0)), "{what}: {report}");
        assert!(one["withheld"].as_u64() > Some(0), "{what}: {report}");
        let roster = world.mailman.roster(LIST, "member").await?;
        assert!(roster.contains_key(&left), "{what}: somebody was removed");
        if what != "a page of it is cut off" {
            assert!(roster.contains_key(&joiner), "{what}: who could be read joins");
        }
        let mut state = world.novi.state();
        (state.ignores_offset, state.drifts) = (false, false);
        state.mend();
    }
    let report = world.run(json!({})).await?;
    assert_eq!((&report["status"], &list(&report, LIST)["unsubscribed"]), (&json!("ok"), &json!(1)), "{report}");
    assert_members(&world, group).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mirror_keeps_its_pace() -> Result<()> {
    let (world, _) = world(24, 0, &[("NOVI_MAX_PER_SECOND", "10")]).await?;
    // Half as much again as the pace is what Novi allows; a burst and a refill would pass it.
    world.novi.state().limits = Some((15, 600));
    let report = world.run(json!({})).await?;
    assert_eq!(
        (&report["status"], &report["novi_calls"]),
        (&json!("ok"), &json!(26)),
        "a 429 would have cost a call: {report}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn after_429_everybody_waits_as_long_as_novi_says() -> Result<()> {
    let (world, group) = world(60, 0, &[]).await?;
    world.novi.state().fail("/customers/", 1, Fault::RateLimited(Some("2".to_owned())));
    let report = world.run(json!({})).await?;
    assert_eq!((&report["status"], &report["novi_calls"]), (&json!("ok"), &json!(2 + 1 + 60 + 1)), "{report}");
    let times: Vec<Instant> = world.novi.state().calls.iter().map(|(_, at)| *at).collect();
    // Those under way when it came are answered; after them nobody asks for two seconds.
    let longest = times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
    assert!(longest > Duration::from_millis(1_900), "{longest:?}");
    let before = times.windows(2).position(|pair| pair[1] - pair[0] == longest).unwrap_or(usize::MAX) + 1;
    assert!(before <= 2 + 1 + 16, "{before} calls before the wait: all sixteen at once and no more");
    assert_members(&world, group).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_of_many_groups_is_asked_for_once() -> Result<()> {
    let mut directory = Directory::default();
    let mut rng = Rng::new();
    let people: Vec<Uuid> = (0..40).map(|_| directory.add(&mut rng)).collect();
    let mappings: Vec<Value> = (0..12)
        .map(|n| {
            let group = Uuid::from_u128(rng.u128(..));
            directory.groups.insert(group, people.iter().skip(n).take(30).copied().collect());
            json!({"group_guid": group, "list_id": format!("list{n}.lists.example.org")})
        })
        .collect();
    let world = Mirror::start(directory, json!(mappings), &[]).await?;
    for n in 0..12 {
        world.mailman.create_list(&format!("list{n}")).await?;
    }
    let report = world.run(json!({"dry_run": true})).await?;
    assert_eq!((&report["status"], &report["novi_calls"]), (&json!("ok"), &json!(12 + 1 + 40)), "{report}");
    // All of them on one page: twelve groups, and that page.
    world.novi.state().listed = Some(Vec::new());
    assert_eq!(world.run(json!({"dry_run": true})).await?["novi_calls"], 12 + 1);
    Ok(())
}
