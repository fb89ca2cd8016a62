//! What an administrator sees and may decide: `show`, the event in a reason, and `force`, which lifts no more than what
//! was seen.

use std::collections::BTreeSet;

use anyhow::Result;
use fastrand::Rng;
use serde_json::{Value, json};
use tests::harness::{Mirror, list};
use tests::lists::{Lists, People, TestList, force_in, people};
use tests::novi::NoviFault;

/// The counts and the status of a list.
fn outcome(report: &Value, test: &TestList) -> (String, u64, u64) {
    let entry = list(report, &test.id);
    let number = |key: &str| entry[key].as_u64().unwrap_or_default();
    (entry["status"].as_str().unwrap_or_default().to_owned(), number("subscribed"), number("unsubscribed"))
}

/// Replaces the members of a list's group by the first `count` of those who stay.
fn shrink(env: &Mirror, test: &TestList, count: usize) {
    env.novi.state().directory.groups.insert(test.group, test.stay[..count].to_vec());
}

#[tokio::test(flavor = "multi_thread")]
async fn force_lifts_no_more_than_its_numbers() -> Result<()> {
    let mut lists = Lists::default();
    let grown = lists.add(people(20, 0, 30), json!({}));
    let more_joiners = lists.add(people(6, 0, 8), json!({}));
    let fewer = lists.add(people(20, 0, 0), json!({}));
    let few_more = lists.add(people(20, 0, 0), json!({}));
    let many_more = lists.add(people(20, 0, 0), json!({}));
    let missing = lists.add(people(4, 0, 0), json!({}));
    let unread = lists.add(people(50, 0, 0), json!({}));
    let sound = lists.add(people(5, 1, 1), json!({}));
    let other = lists.add(people(4, 2, 0), json!({}));
    let empty = lists.add(people(4, 2, 0), json!({}));
    let (env, lists) = lists.start(&[]).await?;
    let of = |number: usize| &lists[number];
    for number in [fewer, few_more, many_more] {
        shrink(&env, of(number), 13);
    }
    env.novi.state().directory.groups.remove(&of(missing).group);
    let path = format!("/groups/{}", of(unread).group.hyphenated());
    env.novi.state().fail(&path, usize::MAX, NoviFault::Respond(200, "text/html", "<html>".to_owned()));

    let blocked = env.run(json!({})).await?;
    let event = |number: usize| force_in(list(&blocked, &of(number).id));
    let mut force = json!({});
    for number in [grown, more_joiners, fewer, few_more, many_more] {
        assert_eq!(outcome(&blocked, of(number)), ("blocked".to_owned(), 0, 0), "{blocked}");
        force[&of(number).id] = event(number)?[&of(number).id].clone();
    }
    assert_eq!(force[&of(grown).id]["joins"], 30, "{force}");
    assert_eq!(force[&of(fewer).id]["leaves"], 7, "{force}");
    assert!(event(missing).is_err(), "no event would help: {blocked}");
    assert_eq!(outcome(&blocked, of(unread)), ("partial".to_owned(), 0, 0), "{blocked}");
    let everything = json!({"joins": 100, "leaves": 100, "moves": 100, "left": 100, "unknown": 100});
    for number in [missing, unread, sound] {
        force[&of(number).id] = everything.clone();
    }
    force[&of(empty).id] = json!({});

    // Before the event is sent, Novi changes.
    env.novi.state().directory.groups.insert(of(grown).group, Vec::new());
    let joiner = env.novi.state().directory.add(&mut Rng::new());
    for number in [more_joiners, sound] {
        env.novi.state().directory.groups.entry(of(number).group).and_modify(|members| members.push(joiner));
    }
    shrink(&env, of(fewer), 14);
    // Six more may leave by the ordinary limits, and seven more may not.
    shrink(&env, of(few_more), 7);
    shrink(&env, of(many_more), 6);
    let report = env.run(json!({ "force": force })).await?;
    for (number, expected, what) in [
        (grown, ("blocked", 0, 0), "growth was forced, not a removal"),
        (more_joiners, ("ok", 9, 0), "one more joins, which is no growth beyond the limit"),
        (fewer, ("ok", 0, 6), "one fewer leaves"),
        (few_more, ("ok", 0, 13), "six more leave"),
        (many_more, ("blocked", 0, 0), "seven more leave"),
        (missing, ("blocked", 0, 0), "a missing group"),
        (unread, ("partial", 0, 0), "a group that was not read to its end"),
        (sound, ("ok", 1, 0), "a list that needs no force"),
        (other, ("blocked", 0, 0), "a list that the event doesn't name"),
        (empty, ("blocked", 0, 0), "a force without numbers"),
    ] {
        let (status, joined, left) = outcome(&report, of(number));
        assert_eq!((status.as_str(), joined, left), expected, "{what}: {}", list(&report, &of(number).id));
        let roster = env.mailman.roster(&of(number).id, "member").await?;
        assert_eq!(roster.len() as u64, of(number).roster.len() as u64 + joined - left, "{what}");
    }
    assert_eq!(report["status"], "blocked");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_are_never_readable_are_accepted_by_number() -> Result<()> {
    let mut lists = Lists::default();
    let merged = lists.add(People { unknown: 1, ..people(9, 1, 0) }, json!({}));
    let without_id = lists.add(people(9, 1, 0), json!({}));
    let two = lists.add(People { unknown: 2, ..people(9, 1, 0) }, json!({}));
    let newly = lists.add(people(10, 1, 0), json!({}));
    let unseen = lists.add(People { unknown: 1, ..people(9, 1, 0) }, json!({}));
    let (env, lists) = lists.start(&[]).await?;
    let of = |number: usize| &lists[number];
    let mut rows: Vec<Value> = of(without_id).stay.iter().map(|id| json!({ "UniqueID": id })).collect();
    rows.push(json!({"UniqueID": null, "Name": "Merged"}));
    let page = json!({"TotalCount": rows.len(), "Results": rows}).to_string();
    let path = format!("/groups/{}", of(without_id).group.hyphenated());
    env.novi.state().fail(&path, usize::MAX, NoviFault::Respond(200, "application/json", page));

    let first = json!({"lists": [of(merged).id, of(without_id).id, of(two).id, of(newly).id]});
    let report = env.run(first).await?;
    let mut force = json!({});
    for number in [merged, without_id, two] {
        let id = &of(number).id;
        let entry = list(&report, id);
        assert_eq!(
            (&entry["status"], &entry["unsubscribed"], &entry["withheld"]),
            (&json!("partial"), &json!(0), &json!(1)),
            "{entry}"
        );
        force[id] = force_in(entry)?[id].clone();
        let unknown = if number == two { 2 } else { 1 };
        assert_eq!(
            (&force[id]["unknown"], &entry["skipped"]["unknown"]),
            (&json!(unknown), &json!(unknown)),
            "{entry}"
        );
    }
    assert_eq!(outcome(&report, of(newly)), ("ok".to_owned(), 0, 1), "{report}");

    // One accepted record is too few for two. A record that the run before could read isn't accepted.
    force[&of(two).id]["unknown"] = json!(1);
    force[&of(newly).id] = json!({"leaves": 5, "unknown": 5});
    tests::lists::hide_email(&mut env.novi.state().directory, of(newly).stay[0]);
    let report = env.run(json!({ "force": force })).await?;
    for (number, left, withheld, what) in [
        (merged, 1, 0, "a record without an address"),
        (without_id, 1, 0, "a row without an id"),
        (two, 0, 1, "one of two is accepted"),
        (newly, 0, 1, "a newly unreadable record"),
        (unseen, 0, 1, "the event doesn't name it"),
    ] {
        let entry = list(&report, &of(number).id);
        assert_eq!((&entry["unsubscribed"], &entry["withheld"]), (&json!(left), &json!(withheld)), "{what}: {entry}");
        let roster: BTreeSet<String> = env.mailman.roster(&of(number).id, "member").await?.into_keys().collect();
        let leaver_is_gone = of(number).leave.iter().all(|address| !roster.contains(address));
        assert_eq!(leaver_is_gone, left == 1 || number == newly, "{what}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn show_names_joiners_and_leavers_with_their_reasons_only_to_its_caller() -> Result<()> {
    let mut lists = Lists::default();
    let blocked = lists.add(people(6, 2, 3), json!({}));
    let sound = lists.add(people(20, 0, 1), json!({}));
    let in_both = lists.add(people(2, 1, 0), json!({}));
    let (env, lists) = lists.start(&[]).await?;
    let of = |number: usize| &lists[number];
    let address = |test: &TestList, n: usize| test.address(&env, test.stay[n]);
    {
        let mut state = env.novi.state();
        state.directory.person(of(blocked).stay[0])["Active"] = json!(false);
        state.directory.person(of(blocked).stay[1])["UnsubscribeFromEmails"] = json!(true);
        // One is a member of another group only, and three have no record at all.
        let moved = of(blocked).stay[2];
        state.directory.groups.entry(of(blocked).group).and_modify(|members| members.retain(|id| *id != moved));
        state.directory.groups.entry(of(sound).group).and_modify(|members| members.push(moved));
    }
    let returned = env.function.invoke(&json!({"show": true})).await?;
    assert!(returned.get("errorMessage").is_none(), "an error must not name anyone: {returned}");
    assert_eq!((&returned["dry_run"], &returned["status"]), (&json!(true), &json!("blocked")), "{returned}");
    let entry = list(&returned, &of(blocked).id);
    let mut joins: Vec<String> = of(blocked).join.iter().map(|id| of(blocked).address(&env, *id)).collect();
    joins.sort();
    let reasons = json!({
        address(of(blocked), 0): "inactive",
        address(of(blocked), 1): "opted_out",
        address(of(blocked), 2): "not_in_group",
        of(blocked).leave[0].clone(): "unknown_address",
        of(blocked).leave[1].clone(): "unknown_address",
    });
    let leaves: Vec<&String> = reasons.as_object().into_iter().flat_map(|map| map.keys()).collect();
    let leaves: BTreeSet<&String> = leaves.into_iter().collect();
    assert_eq!(
        (&entry["joins"], &entry["leaves"], &entry["moves"], &entry["leave_reasons"]),
        (&json!(joins), &json!(leaves), &json!([]), &reasons),
        "{entry}"
    );
    assert!(entry.get("left_out").is_none(), "{entry}");
    let sound_joins = [of(sound).address(&env, of(sound).join[0]), address(of(blocked), 2)];
    let sound_joins: BTreeSet<&String> = sound_joins.iter().collect();
    let entry = list(&returned, &of(sound).id);
    assert_eq!((&entry["joins"], &entry["leaves"]), (&json!(sound_joins), &json!([])), "{entry}");
    for test in &lists {
        test.expect(&env, &test.roster, "showing writes nothing").await?;
    }

    // The event in the reason applies exactly what was shown.
    let force = force_in(list(&returned, &of(blocked).id))?;
    let report = env.run(json!({"lists": [of(blocked).id], "force": force})).await?;
    assert_eq!(outcome(&report, of(blocked)), ("ok".to_owned(), 3, 5), "{report}");
    let leaves: BTreeSet<String> = leaves.into_iter().cloned().collect();
    let expected = of(blocked).roster.difference(&leaves).cloned().chain(joins).collect();
    of(blocked).expect(&env, &expected, "forced").await?;
    assert!(list(&report, &of(blocked).id).get("joins").is_none(), "only a show names addresses: {report}");

    // No more than 5,000 addresses are shown, and it says how many are left out.
    let crowd = (0..5_100).map(|n| format!("crowd{n:04}@mail.example.org"));
    env.mailman.insert_members(&of(in_both).id, crowd)?;
    let returned = env.function.invoke(&json!({"show": true})).await?;
    let number = |entry: &Value, key: &str| entry[key].as_array().map_or(0, Vec::len);
    let shown: usize =
        lists.iter().map(|test| list(&returned, &test.id)).map(|e| number(e, "joins") + number(e, "leaves")).sum();
    let left_out: u64 = lists.iter().filter_map(|test| list(&returned, &test.id)["left_out"].as_u64()).sum();
    assert_eq!((shown, left_out), (5_000, 5_101 + 2 - 5_000), "5,101 leave one list, and two join another");
    let entry = list(&returned, &of(in_both).id);
    assert_eq!(entry["leave_reasons"].as_object().map(serde_json::Map::len), Some(number(entry, "leaves")));
    Ok(())
}
