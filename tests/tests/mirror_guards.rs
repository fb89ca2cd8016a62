//! The rules that keep the mirror harmless if Novi, a mapping or an operator is wrong and looks right: which plans are
//! applied, blocked, held or withheld, and which lists are in doubt.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use http::Method;
use serde_json::{Value, json};
use tests::function::Function;
use tests::harness::{list, report};
use tests::lists::{Lists, People, force_in, hide_email, people};
use tests::novi::NoviFault;
use uuid::Uuid;

/// What a run does with a list.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// Additions and removals are applied.
    Applied,
    /// Additions are applied, and removals are withheld.
    Withheld,
    /// Nothing is applied until more can be read.
    Held,
    /// Nothing is applied until an administrator forces it.
    Blocked,
}

use Expected::{Applied, Blocked, Held, Withheld};

/// A description, the people of a list, the options of its mapping, and what is expected.
type Case = (&'static str, People, Value, Expected);

/// Runs the mirror over all cases, each of which has a list of its own. Then forces what was not applied, with the
/// events that the reasons give.
async fn check(cases: Vec<Case>) -> Result<()> {
    let mut lists = Lists::default();
    for (_, people, options, _) in &cases {
        lists.add(*people, options.clone());
    }
    let (env, lists) = lists.start(&[]).await?;
    let report = env.run(json!({})).await?;
    let mut force = json!({});
    for ((what, people, _, expected), test) in cases.iter().zip(&lists) {
        let entry = list(&report, &test.id);
        assert_eq!(entry["skipped"]["unknown"], people.unknown, "{what}: {entry}");
        match expected {
            Applied => {
                assert_eq!(
                    (&entry["subscribed"], &entry["unsubscribed"], &entry["withheld"], &entry["reason"]),
                    (&json!(people.join), &json!(people.leave), &json!(0), &Value::Null),
                    "{what}: {entry}"
                );
                assert_eq!(entry["kept"], people.keep, "{what}: {entry}");
                test.expect_synced(&env, &report, what).await?;
                continue;
            }
            Withheld => {
                assert_eq!(
                    (&entry["status"], &entry["subscribed"], &entry["unsubscribed"], &entry["withheld"]),
                    (&json!("partial"), &json!(people.join), &json!(0), &json!(people.leave)),
                    "{what}: {entry}"
                );
                let both = test.roster.union(&test.wanted(&env)).cloned().collect();
                test.expect(&env, &both, what).await?;
            }
            Held => test.expect_unchanged(&env, &report, "partial", what).await?,
            Blocked => test.expect_unchanged(&env, &report, "blocked", what).await?,
        }
        if people.leave > 0 || *expected != Withheld {
            let event = force_in(entry).context(*what)?;
            force[&test.id] = event[&test.id].clone();
            assert_eq!(event, json!({ &test.id: force[&test.id] }), "{what}");
        }
    }
    let count = |expected| cases.iter().filter(|case| case.3 == expected).count() as u64;
    let worst = if count(Blocked) > 0 { "blocked" } else { "partial" };
    assert_eq!(report["status"], worst, "{report}");
    assert_eq!(metric(&env.function, "ListsHeld"), Some(count(Held)));
    assert_eq!(metric(&env.function, "ListsBlocked"), Some(count(Blocked)));
    let withheld = |entry: &Value| entry["withheld"].as_u64().unwrap_or_default();
    let withheld: u64 = report["lists"].as_array().into_iter().flatten().map(withheld).sum();
    assert_eq!(metric(&env.function, "Withheld"), Some(withheld));

    let forced = env.run(json!({ "force": force })).await?;
    for ((what, ..), test) in cases.iter().zip(&lists).filter(|(_, test)| force.get(&test.id).is_some()) {
        let entry = list(&forced, &test.id);
        test.expect(&env, &test.wanted(&env), &format!("{what}, forced: {entry}")).await?;
    }
    Ok(())
}

/// Returns a metric's most recent value.
fn metric(function: &Function, name: &str) -> Option<u64> {
    let log = function.log();
    log.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok()?.get(name)?.as_u64())
}

/// Adds unreadable people.
fn unreadable(people: People, unknown: usize) -> People {
    People { unknown, ..people }
}

/// Adds addresses that are subscribed only because of `keep`.
fn kept(people: People, keep: usize) -> People {
    People { keep, ..people }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_follow_the_size_of_a_list() -> Result<()> {
    let none = || json!({});
    let removal = |percent: u64| json!({ "max_removal_percent": percent });
    let growth = |percent: u64| json!({ "max_growth_percent": percent });
    check(vec![
        // One may leave any list but that of one, and three may leave a list of ten.
        ("one of two leaves", people(1, 1, 0), none(), Applied),
        ("two of three leave", people(1, 2, 0), none(), Blocked),
        ("two of six leave", people(4, 2, 0), none(), Blocked),
        ("two of seven leave", people(5, 2, 0), none(), Applied),
        ("three of nine leave", people(6, 3, 0), none(), Blocked),
        ("three of ten leave", people(7, 3, 0), none(), Applied),
        ("four of ten leave", people(6, 4, 0), none(), Blocked),
        ("six of twenty leave", people(14, 6, 0), none(), Applied),
        ("seven of twenty leave", people(13, 7, 0), none(), Blocked),
        ("five of twenty leave, and 20 percent may", people(15, 5, 0), removal(20), Blocked),
        ("one of five leaves, and no percent may", people(4, 1, 0), removal(0), Applied),
        ("two of five leave, and no percent may", people(3, 2, 0), removal(0), Blocked),
        ("three of ten leave, and no percent may", people(7, 3, 0), removal(0), Applied),
        // Everyone leaves.
        ("the holder of a list of one changes", people(0, 1, 1), none(), Blocked),
        ("both of two are exchanged", people(0, 2, 2), none(), Blocked),
        ("everyone leaves, and may", people(0, 3, 2), removal(100), Applied),
        ("all of twelve addresses change", people(0, 12, 12), none(), Blocked),
        // Growth.
        ("five join one", people(1, 0, 5), none(), Applied),
        ("six join one", people(1, 0, 6), none(), Blocked),
        ("six join six", people(6, 0, 6), none(), Applied),
        ("seven join six", people(6, 0, 7), none(), Blocked),
        ("five join eight, and no percent may", people(8, 0, 5), growth(0), Applied),
        ("six join eight, and no percent may", people(8, 0, 6), growth(0), Blocked),
        ("ten join two, and may", people(2, 0, 10), growth(500), Applied),
        ("a list is filled", people(0, 0, 12), none(), Applied),
        ("a list with only an owner in keep is filled", kept(people(0, 0, 12), 1), none(), Applied),
        // Who stays only because of keep makes no list larger.
        ("two of three leave next to seven kept", kept(people(1, 2, 0), 7), none(), Blocked),
        ("three are exchanged for six next to one kept", kept(people(0, 3, 6), 1), none(), Blocked),
        ("six join one next to nine kept", kept(people(1, 0, 6), 9), none(), Blocked),
        // Both limits.
        ("six become three of them and 25 others", people(3, 3, 25), none(), Blocked),
    ])
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_people_excuse_as_many_leavers_and_hide_no_exchange() -> Result<()> {
    let none = || json!({});
    check(vec![
        ("ten are exchanged for 25, one of them unreadable", unreadable(people(0, 10, 24), 1), none(), Blocked),
        ("twelve are exchanged for twelve, one of them unreadable", unreadable(people(0, 12, 11), 1), none(), Blocked),
        ("two become four others and one unreadable", unreadable(people(0, 2, 4), 1), none(), Held),
        ("one leaves and one is unreadable", unreadable(people(3, 1, 1), 1), none(), Withheld),
        ("two of ten leave and one is unreadable", unreadable(people(8, 2, 1), 1), none(), Withheld),
        ("three of eight leave and three are unreadable", unreadable(people(5, 3, 0), 3), none(), Held),
        ("four of nine leave and one is unreadable", unreadable(people(5, 4, 0), 1), none(), Blocked),
        ("four of nine leave and two are unreadable", unreadable(people(5, 4, 0), 2), none(), Held),
        // Unreadable people may be joiners.
        ("three join six, and three may", unreadable(people(6, 0, 3), 3), none(), Withheld),
        ("three join six, and four may", unreadable(people(6, 0, 3), 4), none(), Held),
        ("six join six, and 19 may", unreadable(people(6, 0, 6), 19), none(), Held),
        ("no one joins six, and seven may", unreadable(people(6, 0, 0), 7), none(), Held),
        // Those who account for leavers are no joiners.
        ("eleven join twelve, and one more may", unreadable(people(10, 2, 11), 3), none(), Withheld),
        ("eleven join twelve, and two more may", unreadable(people(10, 2, 11), 4), none(), Held),
        ("a list is filled, and more may join", unreadable(people(0, 0, 12), 9), none(), Withheld),
    ])
    .await
}

/// Exchanges and lies that are spread over several runs, so that each run looks harmless by itself.
#[tokio::test(flavor = "multi_thread")]
async fn no_sequence_of_runs_exchanges_a_list() -> Result<()> {
    let mut lists = Lists::default();
    let exchanged = lists.add(people(0, 10, 25), json!({}));
    let strangers = lists.add(people(6, 0, 25), json!({}));
    let lie = lists.add(people(10, 0, 8), json!({}));
    let left = lists.add(people(5, 0, 0), json!({}));
    let (env, lists) = lists.start(&[]).await?;
    let of = |number: usize| &lists[number];
    let all_records = env.novi.state().directory.clone();

    // In the first run, one of the 25 can't be read. In the next one, all of them can.
    for (run, hidden) in [19, 12, 0].into_iter().enumerate() {
        {
            let mut state = env.novi.state();
            state.directory = all_records.clone();
            let exchanged = of(exchanged).join.iter().take(usize::from(hidden > 0));
            for id in of(strangers).join.iter().take(hidden).chain(exchanged) {
                hide_email(&mut state.directory, *id);
            }
        }
        let report = env.run(json!({"lists": [of(exchanged).id, of(strangers).id]})).await?;
        let what = format!("run {run}");
        of(exchanged).expect_unchanged(&env, &report, "blocked", &what).await?;
        let status = if hidden == 19 { "partial" } else { "blocked" };
        of(strangers).expect_unchanged(&env, &report, status, &what).await?;
    }

    // A lie that a limit allows can't be undone without a word, because as many would leave again.
    let report = env.run(json!({"lists": [of(lie).id]})).await?;
    of(lie).expect_synced(&env, &report, "the lie").await?;
    env.novi.state().directory.groups.insert(of(lie).group, of(lie).stay.clone());
    let report = env.run(json!({"lists": [of(lie).id]})).await?;
    assert_eq!((&report["status"], &list(&report, &of(lie).id)["unsubscribed"]), (&json!("blocked"), &json!(0)));
    of(lie).expect(&env, &of(lie).wanted(&env), "the truth").await?;
    let force = force_in(list(&report, &of(lie).id))?;
    assert_eq!(force[&of(lie).id]["leaves"], 8, "{force}");
    let report = env.run(json!({"lists": [of(lie).id], "force": force})).await?;
    assert_eq!(list(&report, &of(lie).id)["unsubscribed"], 8, "{report}");
    of(lie).expect(&env, &of(lie).roster, "the truth, forced").await?;

    // Who unsubscribes in Mailman is subscribed again.
    let (membership, address) = env.mailman.memberships(&of(left).id).await?.into_iter().next().context("a member")?;
    env.mailman.request(Method::DELETE, &format!("members/{membership}"), None).await?;
    let report = env.run(json!({"lists": [of(left).id]})).await?;
    assert_eq!(list(&report, &of(left).id)["subscribed"], 1, "{report}");
    assert!(env.mailman.roster(&of(left).id, "member").await?.contains_key(&address));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_group_next_to_others_puts_its_list_in_doubt() -> Result<()> {
    let mut lists = Lists::default();
    let doubted = lists.add(people(40, 0, 3), json!({}));
    let allowed = lists.add(people(40, 0, 0), json!({}));
    let other_allowed = lists.add(people(40, 0, 0), json!({"may_be_empty": true}));
    let large = lists.add(people(10, 0, 1), json!({}));
    let no_leaver = lists.add(people(5, 0, 0), json!({}));
    let all_empty = lists.add(people(4, 0, 0), json!({"may_be_empty": true}));
    let opted_out = lists.add(people(10, 0, 0), json!({}));
    let mut vacant = vec![
        lists.add_group(doubted, 15, json!({})),
        lists.add_group(other_allowed, 15, json!({})),
        lists.add_group(large, 10, json!({})),
        lists.add_group(no_leaver, 0, json!({})),
        lists.add_group(all_empty, 4, json!({"may_be_empty": true})),
        lists.add_group(opted_out, 0, json!({})),
    ];
    vacant.push(lists.add_group(allowed, 15, json!({"may_be_empty": true})));
    let (env, lists) = lists.start(&[]).await?;
    let of = |number: usize| &lists[number];
    vacant.push(of(all_empty).group);
    {
        let mut state = env.novi.state();
        for group in vacant {
            state.directory.groups.insert(group, Vec::new());
        }
        state.directory.person(of(opted_out).stay[0])["UnsubscribeFromEmails"] = json!(true);
    }
    // Doubt doesn't end by itself.
    for subscribed in [3, 0] {
        let report = env.run(json!({})).await?;
        for (number, subscribed, withheld, what) in [
            (doubted, subscribed, 15, "15 of 55 would leave"),
            (other_allowed, 0, 15, "another group may be empty"),
            (no_leaver, 0, 0, "no one would leave"),
            (opted_out, 0, 1, "even who opted out stays"),
        ] {
            let entry = list(&report, &of(number).id);
            assert_eq!(
                (&entry["status"], &entry["subscribed"], &entry["unsubscribed"], &entry["withheld"]),
                (&json!("partial"), &json!(subscribed), &json!(0), &json!(withheld)),
                "{what}: {entry}"
            );
            assert!(entry["reason"].is_string(), "{what}: {entry}");
        }
        of(allowed).expect_synced(&env, &report, "this group may be empty").await?;
        of(large).expect_unchanged(&env, &report, "partial", "half of the list would leave").await?;
        of(all_empty).expect_unchanged(&env, &report, "blocked", "all groups are empty").await?;
        assert_eq!(metric(&env.function, "ListsHeld"), Some(5), "lists in doubt alarm like held ones");
        for test in [of(doubted), of(opted_out)] {
            let both = test.roster.union(&test.wanted(&env)).cloned().collect();
            test.expect(&env, &both, "withheld").await?;
        }
    }
    let report = env.run(json!({})).await?;
    let mut force = json!({});
    for number in [doubted, large, all_empty] {
        let id = &of(number).id;
        force[id] = force_in(list(&report, id))?[id].clone();
    }
    let report = env.run(json!({ "force": force })).await?;
    for number in [doubted, large] {
        of(number).expect(&env, &of(number).wanted(&env), &format!("forced: {report}")).await?;
    }
    of(all_empty).expect(&env, &BTreeSet::new(), &format!("forced: {report}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn mapping_without_a_list_puts_every_list_in_doubt() -> Result<()> {
    let mut lists = Lists::default();
    let small = lists.add(people(8, 2, 1), json!({}));
    let exchanged = lists.add(people(0, 12, 12), json!({}));
    let two_groups = lists.add(people(40, 0, 0), json!({}));
    lists.add_group(two_groups, 15, json!({}));
    let sound = json!(lists.mappings);
    let (env, lists) = lists.start(&[]).await?;
    let of = |number: usize| &lists[number];

    let mut unresolved = sound.clone();
    unresolved.as_array_mut().context("an array")?.push(json!({"group_guid": of(small).group, "list-id": "x"}));
    // The second group of a list goes to a list that Mailman doesn't have.
    let mut nowhere = sound.clone();
    nowhere[3]["list_id"] = json!("case22.lists.example.org");
    // Doubt is judged over all mappings, even if a run concerns only some lists.
    let chosen = json!({"lists": [of(small).id, of(exchanged).id, of(two_groups).id]});
    let mut joins = 1;
    for (mappings, leavers, what) in [(unresolved, 0, "unresolved"), (nowhere, 15, "nowhere")] {
        let function = env.instance_with_mappings(&mappings)?;
        for event in [&json!({}), &chosen] {
            let report = report(function.invoke(event).await?)?;
            let what = format!("{what}, {event}");
            assert_eq!(report["lists"].as_array().map(Vec::len), Some(3 + usize::from(event != &chosen)), "{report}");
            let entry = list(&report, &of(small).id);
            assert_eq!(
                (&entry["status"], &entry["subscribed"], &entry["unsubscribed"], &entry["withheld"]),
                (&json!("partial"), &json!(joins), &json!(0), &json!(2)),
                "{what}: {entry}"
            );
            joins = 0;
            of(exchanged).expect_unchanged(&env, &report, "partial", &what).await?;
            let entry = list(&report, &of(two_groups).id);
            assert_eq!(
                (&entry["status"], &entry["unsubscribed"], &entry["withheld"]),
                (&json!("partial"), &json!(0), &json!(leavers)),
                "{what}: {entry}"
            );
            of(two_groups).expect(&env, &of(two_groups).roster, &what).await?;
            assert_eq!(report["status"], if event == &chosen { "partial" } else { "failed" }, "{what}");
        }
    }

    // No mapping at all.
    let returned = env.instance_with_mappings(&json!([]))?.invoke(&json!({})).await?;
    assert_eq!(returned["errorType"], "Mirror.failed", "{returned}");
    let reason = &report(returned)?["lists"][0]["reason"];
    assert!(reason.as_str().is_some_and(|reason| reason.contains("novi_mailman_sync")), "{reason}");

    // The mappings are corrected.
    let report = env.run(json!({})).await?;
    of(small).expect_synced(&env, &report, "corrected").await?;
    of(exchanged).expect_unchanged(&env, &report, "blocked", "corrected").await?;
    assert_eq!(list(&report, &of(two_groups).id)["status"], "ok", "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn list_without_removals_only_grows() -> Result<()> {
    let add_only = || json!({"removals": false});
    let mut lists = Lists::default();
    let mixed = lists.add(people(1, 100, 19), add_only());
    let growing = lists.add(people(3, 3, 7), add_only());
    let emptied = lists.add(people(4, 2, 0), add_only());
    let missing = lists.add(people(4, 2, 0), add_only());
    let merged = lists.add(people(4, 4, 0), json!({}));
    let second_group = lists.add_group(merged, 2, add_only());
    let unknown = lists.add(unreadable(people(4, 4, 2), 1), add_only());
    let (env, lists) = lists.start(&[]).await?;
    let of = |number: usize| &lists[number];
    {
        let mut state = env.novi.state();
        state.directory.person(of(mixed).stay[0])["UnsubscribeFromEmails"] = json!(true);
        state.directory.groups.insert(of(emptied).group, Vec::new());
        state.directory.groups.remove(&of(missing).group);
        state.directory.groups.insert(second_group, of(merged).stay.clone());
    }
    let everything = json!({"leaves": 1_000, "joins": 0, "unknown": 1_000});
    let force: Value = lists.iter().map(|list| (list.id.clone(), everything.clone())).collect();
    for (run, event) in [json!({}), json!({ "force": force })].into_iter().enumerate() {
        let what = format!("run {run}");
        let report = env.run(event).await?;
        for (number, joins) in [(mixed, 19), (emptied, 0), (merged, 0)] {
            let entry = list(&report, &of(number).id);
            assert_eq!(
                (&entry["status"], &entry["subscribed"], &entry["unsubscribed"], &entry["withheld"]),
                (&json!("ok"), &json!(if run == 0 { joins } else { 0 }), &json!(0), &json!(0)),
                "{what}: {entry}"
            );
        }
        of(growing).expect_unchanged(&env, &report, "blocked", &what).await?;
        of(missing).expect_unchanged(&env, &report, "blocked", &what).await?;
        for number in [mixed, emptied, merged, unknown] {
            let test = of(number);
            let joined = test.join.iter().map(|id| test.address(&env, *id));
            let both = test.roster.iter().cloned().chain(joined).collect();
            test.expect(&env, &both, &what).await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn opted_out_members_leave_although_others_are_unreadable() -> Result<()> {
    let mut lists = Lists::default();
    let plain = lists.add(unreadable(people(9, 1, 0), 1), json!({}));
    let shared = lists.add(unreadable(people(9, 1, 1), 1), json!({}));
    let held = lists.add(unreadable(people(2, 0, 0), 1), json!({}));
    let blocked = lists.add(unreadable(people(4, 2, 0), 1), json!({}));
    let mismatched = lists.add(people(9, 1, 0), json!({}));
    let gone = lists.add(people(10, 0, 0), json!({}));
    let (env, lists) = lists.start(&[]).await?;
    let of = |number: usize| &lists[number];
    let mut opted_out = BTreeSet::new();
    {
        let mut state = env.novi.state();
        let mut opt_out = |id: Uuid| {
            state.directory.person(id)["UnsubscribeFromEmails"] = json!(true);
            opted_out.insert(state.directory.address(id));
        };
        opt_out(of(plain).stay[0]);
        opt_out(of(shared).stay[0]);
        opt_out(of(held).stay[0]);
        opt_out(of(held).stay[1]);
        opt_out(of(blocked).stay[0]);
        // Another record has the same address, and may be the one to decide.
        let same = state.directory.person(of(shared).stay[0])["Email"].clone();
        let other = state.directory.person(of(shared).join[0]);
        (other["Email"], other["Active"]) = (same, json!(false));
        // The record of another person, and an empty response, say nothing about these two. A 404 does, and so does a
        // record without an identity.
        let path = |id: Uuid| format!("/customers/{}", id.hyphenated());
        state.fail(&path(of(mismatched).stay[0]), usize::MAX, NoviFault::OtherRecord);
        let empty = NoviFault::Respond(200, "application/json", String::new());
        state.fail(&path(of(mismatched).stay[1]), usize::MAX, empty);
        state.directory.people.remove(&of(gone).stay[0]);
        state.directory.people.insert(of(gone).stay[1], json!({}));
    }
    let report = env.run(json!({})).await?;
    for (number, status, unsubscribed, withheld, what) in [
        (plain, "partial", 1, 1, "the address of only one record"),
        (shared, "partial", 0, 2, "the address of two records"),
        (held, "partial", 0, 2, "everyone would leave"),
        (blocked, "blocked", 0, 0, "too many would leave"),
        (mismatched, "partial", 0, 3, "wrong responses"),
        (gone, "ok", 2, 0, "no longer in Novi"),
    ] {
        let entry = list(&report, &of(number).id);
        assert_eq!(
            (&entry["status"], &entry["unsubscribed"]),
            (&json!(status), &json!(unsubscribed)),
            "{what}: {entry}"
        );
        if number != blocked {
            assert_eq!(entry["withheld"], withheld, "{what}: {entry}");
        }
        let roster: BTreeSet<String> = env.mailman.roster(&of(number).id, "member").await?.into_keys().collect();
        assert_eq!(roster.len(), of(number).roster.len() - unsubscribed, "{what}");
        if number == plain {
            assert!(roster.is_disjoint(&opted_out), "{what}");
        }
    }
    let skipped = &list(&report, &of(mismatched).id)["skipped"];
    assert_eq!((&skipped["unknown"], &skipped["not_found"]), (&json!(2), &json!(0)), "{report}");
    assert_eq!(list(&report, &of(gone).id)["skipped"]["not_found"], 2, "{report}");
    assert_eq!(metric(&env.function, "NoviMismatch"), Some(1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn people_not_yet_read_leave_a_list_unfinished() -> Result<()> {
    let mut lists = Lists::default();
    let steady = lists.add(people(60, 2, 0), json!({}));
    let blocked = lists.add(people(2, 0, 0), json!({}));
    let filled = lists.add(people(0, 0, 30), json!({}));
    let (env, lists) = lists.start(&[("NOVI_TIMEOUT_MS", "800")]).await?;
    let of = |number: usize| &lists[number];

    // After 20 calls in a row without a response, reading ends. Nothing hides a blocked list.
    env.novi.state().directory.groups.remove(&of(blocked).group);
    env.novi.state().fail("/customers/", usize::MAX, NoviFault::Disconnect);
    let returned = env.function.invoke(&json!({"lists": [of(steady).id, of(blocked).id]})).await?;
    assert_eq!(returned["errorType"], "Mirror.blocked", "{returned}");
    let without_response = report(returned)?;
    assert_eq!(without_response["status"], "blocked");
    of(steady).expect_unchanged(&env, &without_response, "unfinished", "no response").await?;
    of(blocked).expect_unchanged(&env, &without_response, "blocked", "no response").await?;
    let skipped = &list(&without_response, &of(steady).id)["skipped"];
    assert!(skipped["not_yet_read"].as_u64() > Some(0), "{skipped}");
    let not_read =
        skipped["not_yet_read"].as_u64().unwrap_or_default() + skipped["unknown"].as_u64().unwrap_or_default();
    assert_eq!(not_read, 60, "{skipped}");
    // Each of the twenty calls has five attempts, and so has each of those in flight.
    let attempts = env.novi.state().count("/customers/");
    assert!(attempts < (20 + 16) * 5, "{attempts}");
    assert_eq!(metric(&env.function, "ListsUnfinished"), Some(1));
    env.novi.state().clear_faults();
    let report_after = env.run(json!({"lists": [of(steady).id]})).await?;
    of(steady).expect_synced(&env, &report_after, "Novi is back").await?;

    // Novi stops a first fill after ten records. Those ten join, and the run is not an error.
    let stopped = env.another_instance(&[])?;
    let event = json!({"lists": [of(filled).id]});
    {
        let mut state = env.novi.state();
        state.fail("/customers/", 10, NoviFault::Delay(std::time::Duration::ZERO));
        state.fail("/customers/", usize::MAX, NoviFault::RateLimited(Some("7200".to_owned())));
    }
    let returned = stopped.invoke(&event).await?;
    assert!(returned.get("errorMessage").is_none(), "{returned}");
    let entry = list(&returned, &of(filled).id);
    assert_eq!(
        (&returned["status"], &entry["status"], &entry["subscribed"], &entry["skipped"]["not_yet_read"]),
        (&json!("unfinished"), &json!("unfinished"), &json!(10), &json!(20)),
        "{returned}"
    );
    // The same instance waits for at most five minutes, and says so.
    env.novi.state().calls.clear();
    let waiting = report(stopped.invoke(&event).await?)?;
    let reason = list(&waiting, &of(filled).id)["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("Novi asked to be left alone until"), "{waiting}");
    assert_eq!((&waiting["status"], env.novi.state().count("/")), (&json!("unfinished"), 0), "{waiting}");

    // Without a ledger, no run knows that the list is still being filled.
    env.novi.state().clear_faults();
    let blocked_fill = env.run(event.clone()).await?;
    assert_eq!(list(&blocked_fill, &of(filled).id)["status"], "blocked", "{blocked_fill}");
    let mut forced = event;
    forced["force"] = force_in(list(&blocked_fill, &of(filled).id))?;
    let report_after = env.run(forced).await?;
    assert_eq!(list(&report_after, &of(filled).id)["subscribed"], 20, "{report_after}");
    of(filled).expect(&env, &of(filled).wanted(&env), "forced").await
}
