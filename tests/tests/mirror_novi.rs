//! The mirror and the behavior of Novi: its envelopes, its rate limits, its bulk list of records if a key may read
//! that, and its transient failures.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Result;
use fastrand::Rng;
use serde_json::{Value, json};
use tests::directory::Directory;
use tests::harness::{Mirror, list};
use tests::novi::NoviFault;
use uuid::Uuid;

const LIST: &str = "members.lists.example.org";

/// Starts a mirror of one list, which is mapped to the first of two groups of ordinary members.
async fn start(mapped: usize, others: usize, variables: &[(&str, &str)]) -> Result<(Mirror, Uuid)> {
    let mut directory = Directory::default();
    let mut rng = Rng::new();
    let group = directory.add_plain_group(&mut rng, mapped);
    directory.add_plain_group(&mut rng, others);
    let env = Mirror::start(
        directory,
        json!([{"group_guid": group, "list_id": LIST, "max_growth_percent": 1_000}]),
        variables,
    )
    .await?;
    env.mailman.create_list("members").await?;
    Ok((env, group))
}

/// Checks that the list has exactly the addresses of the group.
async fn assert_members(env: &Mirror, group: Uuid) -> Result<()> {
    let members: BTreeSet<String> = env.mailman.roster(LIST, "member").await?.into_keys().collect();
    let state = env.novi.state();
    let expected: BTreeSet<String> =
        state.directory.groups[&group].iter().map(|id| state.directory.address(*id)).collect();
    assert_eq!(members, expected);
    Ok(())
}

/// Returns the members of a group, and all other people, sorted as in the bulk list.
fn sorted_people(state: &tests::novi::State, group: Uuid) -> (Vec<Uuid>, Vec<Uuid>) {
    let members: BTreeSet<Uuid> = state.directory.groups[&group].iter().copied().collect();
    state.directory.people.keys().copied().partition(|id| members.contains(id))
}

/// Returns the numbers of requests for pages of records and for individual records.
fn record_requests(env: &Mirror) -> (usize, usize) {
    let state = env.novi.state();
    (state.calls.iter().filter(|(path, _)| path == "/api/members").count(), state.count("/customers/"))
}

#[tokio::test(flavor = "multi_thread")]
async fn novi_envelopes_and_transient_failures_make_no_difference() -> Result<()> {
    let (env, group) = start(90, 0, &[]).await?;
    {
        let mut state = env.novi.state();
        (state.has_total_count, state.wraps_records, state.page_limit) = (false, true, 7);
        state.fail("/groups/", 2, NoviFault::Respond(502, "text/html", String::new()));
        state.fail("/customers/", 2, NoviFault::Disconnect);
        state.fail("/customers/", 2, NoviFault::Respond(500, "text/plain", String::new()));
        state.fail("/customers/", 2, NoviFault::TruncatedBody);
        state.fail("/customers/", 2, NoviFault::RateLimited(Some("1".to_owned())));
    }
    let report = env.run(json!({})).await?;
    assert_eq!(report["status"], "ok", "{report}");
    assert_members(&env, group).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_list_is_read_if_it_takes_fewer_calls() -> Result<()> {
    // Pages of 40 rows overlap by one. So 300 records take 8 calls instead of 200, and the group's 200 rows take 6.
    let (env, group) = start(200, 100, &[]).await?;
    env.novi.state().bulk_hidden_fields = Some(Vec::new());
    let report = env.run(json!({})).await?;
    assert_eq!((&report["status"], &report["novi_calls"]), (&json!("ok"), &json!(6 + 8)), "{report}");
    assert_eq!(record_requests(&env), (8, 0));
    assert_members(&env, group).await
}

#[tokio::test(flavor = "multi_thread")]
async fn member_with_two_records_in_the_bulk_list_is_fetched_individually() -> Result<()> {
    let (env, group) = start(60, 20, &[]).await?;
    let strangers = {
        let mut state = env.novi.state();
        state.bulk_hidden_fields = Some(Vec::new());
        let (members, others) = sorted_people(&state, group);
        // Someone else's record claims to be a member's. It comes before or after the member's own, which may be
        // incomplete.
        let pairs = [
            (members[0], others[19], false),
            (members[1], others[18], true),
            (members[59], others[0], false),
            (members[58], others[1], true),
        ];
        for (member, stranger, hides_email) in pairs {
            state.directory.person(stranger)["UniqueID"] = json!(member.hyphenated().to_string());
            if hides_email {
                state.hidden_fields.insert(member, vec!["Email".to_owned()]);
            }
        }
        pairs.map(|(_, stranger, _)| state.directory.address(stranger))
    };
    let report = env.run(json!({})).await?;
    assert_eq!(report["status"], "ok", "{report}");
    let roster = env.mailman.roster(LIST, "member").await?;
    assert!(strangers.iter().all(|stranger| !roster.contains_key(stranger)));
    assert_members(&env, group).await
}

/// A row may be someone else's, which only the member's own row shows. If that isn't reached, no row counts.
#[tokio::test(flavor = "multi_thread")]
async fn members_are_fetched_individually_if_the_bulk_list_is_not_read_to_its_end() -> Result<()> {
    let (env, group) = start(60, 20, &[]).await?;
    let stranger = {
        let mut state = env.novi.state();
        state.bulk_hidden_fields = Some(Vec::new());
        let (members, others) = sorted_people(&state, group);
        // Someone else's record on the first page claims to be that of a member who is on the second page.
        state.directory.person(others[0])["UniqueID"] = json!(members[59].hyphenated().to_string());
        state.directory.address(others[0])
    };
    let page = |total: usize| {
        NoviFault::Respond(200, "application/json", json!({"TotalCount": total, "Results": []}).to_string())
    };
    for (fault, second_page) in [
        ("refused", NoviFault::Forbidden),
        ("no response", NoviFault::NoResponse),
        ("empty", page(80)),
        ("another total", page(40)),
    ] {
        env.novi.state().fail("/api/members", 1, NoviFault::Delay(Duration::ZERO));
        env.novi.state().fail("/api/members", usize::MAX, second_page);
        let report = env.run(json!({})).await?;
        assert_eq!(report["status"], "ok", "{fault}: {report}");
        assert!(!env.mailman.roster(LIST, "member").await?.contains_key(&stranger), "{fault}: a stranger was added");
        assert_members(&env, group).await?;
        env.novi.state().clear_faults();
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_list_is_not_read_if_it_takes_more_calls() -> Result<()> {
    // The first page shows 500 records in pages of 40, which would take 12 more calls, for at most 9 members.
    let (env, group) = start(9, 491, &[]).await?;
    env.novi.state().bulk_hidden_fields = Some(Vec::new());
    let report = env.run(json!({})).await?;
    assert_eq!(report["status"], "ok");
    let (pages, individual) = record_requests(&env);
    assert!(pages == 1 && (1..=9).contains(&individual), "{pages} pages, {individual} individual records");
    assert_members(&env, group).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_list_can_be_disabled() -> Result<()> {
    let (env, group) = start(30, 0, &[("NOVI_BULK", "off")]).await?;
    env.novi.state().bulk_hidden_fields = Some(Vec::new());
    assert_eq!(env.run(json!({})).await?["novi_calls"], 31);
    assert_eq!(record_requests(&env), (0, 30));
    assert_members(&env, group).await
}

#[tokio::test(flavor = "multi_thread")]
async fn members_missing_from_bulk_list_are_fetched_individually() -> Result<()> {
    let (env, group) = start(60, 20, &[]).await?;
    let hidden: Vec<Uuid> = env.novi.state().directory.groups[&group][..5].to_vec();
    {
        let mut state = env.novi.state();
        state.bulk_hidden_fields = Some(Vec::new());
        // Rows of the bulk list without a name, without each of the flags, and without an address; one row is missing.
        for (id, field) in hidden.iter().zip(["LastName", "Active", "UnsubscribeFromEmails", "Email"]) {
            state.hidden_fields.insert(*id, vec![field.to_owned()]);
        }
        // Fields that a key may not read are either missing or null.
        state.hides_as_null = fastrand::bool();
        state.hidden_fields.insert(hidden[4], vec!["*".to_owned()]);
    }
    let report = env.run(json!({})).await?;
    assert_eq!(report["status"], "ok", "{report}");
    assert_eq!(record_requests(&env), (2, 5));
    for id in hidden {
        assert_eq!(env.novi.state().count(&format!("/customers/{}", id.hyphenated())), 1);
    }
    assert_members(&env, group).await?;

    // If a key can't read a flag in the bulk list, the list is useless.
    env.novi.state().bulk_hidden_fields = Some(vec!["UnsubscribeFromEmails".to_owned()]);
    let report = env.run(json!({})).await?;
    assert_eq!((&report["status"], record_requests(&env).1), (&json!("ok"), 5 + 60), "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_or_invalid_bulk_list_is_skipped_and_logged_once() -> Result<()> {
    let (env, group) = start(12, 0, &[]).await?;
    for fault in [
        NoviFault::Forbidden,
        NoviFault::BlockedByCdn,
        NoviFault::Respond(404, "application/json", "{}".to_owned()),
        NoviFault::Respond(200, "application/json", "[]".to_owned()),
        NoviFault::Respond(200, "application/json", r#"{"TotalCount":3,"Results":[]}"#.to_owned()),
        NoviFault::Respond(200, "application/json", r#"{"TotalCount":3,"Results":["x"]}"#.to_owned()),
        NoviFault::Respond(200, "text/html", "<html>".to_owned()),
        NoviFault::Respond(500, "text/html", String::new()),
        NoviFault::NoResponse,
        NoviFault::EndlessBody,
    ] {
        let before = env.function.log().matches("bulk listing unavailable").count();
        env.novi.state().fail("/api/members", usize::MAX, fault.clone());
        let report = env.run(json!({})).await?;
        assert_eq!((&report["status"], &report["lists"][0]["reason"]), (&json!("ok"), &json!(null)), "{report}");
        env.novi.state().clear_faults();
        let logged = env.function.log().matches("bulk listing unavailable").count() - before;
        // An empty page is a valid list, from which all members are missing.
        let is_list = matches!(&fault, NoviFault::Respond(_, _, body) if body.contains(r#""Results":[]"#));
        assert_eq!(logged, usize::from(!is_list));
    }
    assert_members(&env, group).await?;
    assert!(!env.function.log().contains(r#""level":"WARN""#), "falling back isn't worth a warning");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_list_that_ignores_the_offset_or_ends_early_is_abandoned() -> Result<()> {
    let (env, group) = start(100, 0, &[]).await?;
    env.novi.state().bulk_hidden_fields = Some(Vec::new());
    env.novi.state().ignores_offset = true;
    // The group's pages repeat too, so the group isn't read completely.
    let report = env.run(json!({})).await?;
    assert_eq!(report["status"], "partial", "{report}");
    assert!(record_requests(&env).0 <= 2, "a page without new records is the last one");

    env.novi.state().ignores_offset = false;
    env.novi.state().has_drifting_total = true;
    let report = env.run(json!({})).await?;
    assert_eq!(report["status"], "partial", "{report}");
    env.novi.state().has_drifting_total = false;
    assert_eq!(env.run(json!({})).await?["status"], "ok");
    assert_members(&env, group).await
}

/// If a group can't be read reliably, no one is removed. New members are still added if most of the group was read.
#[tokio::test(flavor = "multi_thread")]
async fn incomplete_group_withholds_removals() -> Result<()> {
    let (env, group) = start(100, 0, &[]).await?;
    assert_eq!(env.run(json!({})).await?["status"], "ok");
    // Without the second page, fewer members are missing than may leave.
    env.novi.state().page_limit = 90;
    // On the first page, one member has left and another has joined.
    let joiner = env.novi.state().directory.add(&mut Rng::new());
    let leaver = {
        let mut state = env.novi.state();
        let members = state.directory.groups.get_mut(&group).unwrap();
        std::mem::replace(&mut members[0], joiner)
    };
    let (leaver, joiner) = {
        let state = env.novi.state();
        (state.directory.address(leaver), state.directory.address(joiner))
    };
    type Setup = fn(&mut tests::novi::State);
    let faults: [(&str, Setup); 4] = [
        ("the first page is repeated", |state| state.ignores_offset = true),
        ("the total changes", |state| state.has_drifting_total = true),
        ("a page is truncated", |state| state.fail("/groups/", usize::MAX, NoviFault::TruncatedBody)),
        ("the connection closes on the second page", |state| {
            state.fail("/groups/", 1, NoviFault::Delay(Duration::ZERO));
            state.fail("/groups/", usize::MAX, NoviFault::Disconnect);
        }),
    ];
    for (fault, set_up) in faults {
        set_up(&mut env.novi.state());
        let report = env.run(json!({})).await?;
        let entry = list(&report, LIST);
        assert_eq!((&entry["status"], &entry["unsubscribed"]), (&json!("partial"), &json!(0)), "{fault}: {report}");
        assert!(entry["withheld"].as_u64() > Some(0), "{fault}: {report}");
        let roster = env.mailman.roster(LIST, "member").await?;
        assert!(roster.contains_key(&leaver), "{fault}: a member was removed");
        if fault != "a page is truncated" {
            assert!(roster.contains_key(&joiner), "{fault}: members that were read are added");
        }
        let mut state = env.novi.state();
        (state.ignores_offset, state.has_drifting_total) = (false, false);
        state.clear_faults();
    }
    let report = env.run(json!({})).await?;
    assert_eq!((&report["status"], &list(&report, LIST)["unsubscribed"]), (&json!("ok"), &json!(1)), "{report}");
    assert_members(&env, group).await
}

#[tokio::test(flavor = "multi_thread")]
async fn mirror_stays_within_its_rate_limit() -> Result<()> {
    let (env, _) = start(24, 0, &[("NOVI_MAX_PER_SECOND", "10")]).await?;
    // Novi allows one and a half times the mirror's rate. A burst plus a refill would exceed that.
    env.novi.state().limits = Some((15, 600));
    let report = env.run(json!({})).await?;
    assert_eq!(
        (&report["status"], &report["novi_calls"]),
        (&json!("ok"), &json!(26)),
        "a 429 would have added a call: {report}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn all_calls_wait_for_retry_after_following_a_429() -> Result<()> {
    let (env, group) = start(60, 0, &[]).await?;
    env.novi.state().fail("/customers/", 1, NoviFault::RateLimited(Some("2".to_owned())));
    let report = env.run(json!({})).await?;
    assert_eq!((&report["status"], &report["novi_calls"]), (&json!("ok"), &json!(2 + 1 + 60 + 1)), "{report}");
    let times: Vec<Instant> = env.novi.state().calls.iter().map(|(_, at)| *at).collect();
    // Requests that are in flight during the 429 complete. After them, no call starts for two seconds.
    let longest = times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
    assert!(longest > Duration::from_millis(1_900), "{longest:?}");
    let before = times.windows(2).position(|pair| pair[1] - pair[0] == longest).unwrap_or(usize::MAX) + 1;
    assert!(before <= 2 + 1 + 16, "{before} calls before the wait, of which at most sixteen may be for records");
    assert_members(&env, group).await
}

#[tokio::test(flavor = "multi_thread")]
async fn member_of_many_groups_is_fetched_once() -> Result<()> {
    let mut directory = Directory::default();
    let mut rng = Rng::new();
    let members: Vec<Uuid> = (0..40).map(|_| directory.add(&mut rng)).collect();
    let mappings: Vec<Value> = (0..12)
        .map(|n| {
            let group = Uuid::from_u128(rng.u128(..));
            directory.groups.insert(group, members.iter().skip(n).take(30).copied().collect());
            json!({"group_guid": group, "list_id": format!("list{n}.lists.example.org")})
        })
        .collect();
    let env = Mirror::start(directory, json!(mappings), &[]).await?;
    for n in 0..12 {
        env.mailman.create_list(&format!("list{n}")).await?;
    }
    let report = env.run(json!({"dry_run": true})).await?;
    assert_eq!((&report["status"], &report["novi_calls"]), (&json!("ok"), &json!(12 + 1 + 40)), "{report}");
    // All records fit on one page of the bulk list: twelve calls for the groups, and one for that page.
    env.novi.state().bulk_hidden_fields = Some(Vec::new());
    assert_eq!(env.run(json!({"dry_run": true})).await?["novi_calls"], 12 + 1);
    Ok(())
}
