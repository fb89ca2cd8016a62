//! The mirror, end to end: the real function under AWS's emulator, between a
//! simulated Novi and a real Mailman core.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use fastrand::Rng;
use http::Method;
use serde_json::{Value, json};
use tests::directory::Directory;
use tests::harness::{Mirror, list};
use tests::novi::{Fault, State};
use tokio::sync::Semaphore;
use uuid::Uuid;

/// The roster that a group's records ask for, written down independently of the
/// product: display name by address.
fn expected(state: &State, group: Uuid) -> BTreeMap<String, String> {
    let mut roster: BTreeMap<String, String> = BTreeMap::new();
    for id in state.directory.groups.get(&group).into_iter().flatten() {
        let Some(record) = state.directory.people.get(id) else { continue };
        let text = |field: &str| record[field].as_str().unwrap_or_default().trim().to_owned();
        let address = text("Email").replace(' ', "+").to_lowercase();
        let is_wanted = record["Active"] == true && record["UnsubscribeFromEmails"] == false;
        // Of the directory's awkward addresses these are the ones that mail cannot reach.
        if !is_wanted || !address.contains('@') || !address.is_ascii() {
            continue;
        }
        let (first, last) = (text("FirstName"), text("LastName"));
        let name = match (first.as_str(), last.as_str()) {
            ("", "") => text("Name"),
            ("", one) | (one, "") if text("Name").is_empty() => one.to_owned(),
            ("", _) | (_, "") => text("Name"),
            // "E\u{301}" is the only last name of the directory that starts with more than one code point
            // in one character, beside Indic scripts, which are left out of this comparison.
            _ => format!(
                "{first} {}.",
                if last.starts_with("E\u{301}") { "E\u{301}".to_owned() } else { last.chars().take(1).collect() }
            ),
        };
        let name = if name.is_ascii() { name } else { String::new() };
        roster.entry(address).and_modify(|other| *other = String::new()).or_insert(name);
    }
    roster
}

/// Compares address by address, and display names where the model knows them.
async fn assert_roster(world: &Mirror, list: &str, group: Uuid) -> Result<()> {
    let roster = world.mailman.roster(list, "member").await?;
    let expected = expected(&world.novi.state(), group);
    assert_eq!(roster.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (address, name) in &expected {
        if !name.is_empty() {
            assert_eq!(&roster[address], name);
        }
    }
    Ok(())
}

/// One list and its group, which are mapped.
async fn one_list(people: usize, mapping: Value) -> Result<(Mirror, String, Uuid)> {
    let mut directory = Directory::default();
    let group = directory.add_group(&mut Rng::new(), people);
    let mut mapping = mapping;
    mapping["group_guid"] = json!(group.hyphenated().to_string());
    mapping["list_id"] = json!("members@lists.example.org");
    let world = Mirror::start(directory, json!([mapping]), &[]).await?;
    let list = world.mailman.create_list("members").await?;
    Ok((world, list, group))
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_join_and_the_list_follows_their_changes() -> Result<()> {
    let (world, id, group) = one_list(300, json!({"keep": ["owner@example.org"]})).await?;
    world.mailman.subscribe(&id, "owner@example.org", "owner").await?;
    let mails = world.mailman.outgoing_mails()?;

    // A dry run says what would be done, and does nothing.
    let report = world.run(json!({"dry_run": true})).await?;
    let wanted = expected(&world.novi.state(), group).len();
    assert_eq!(report["dry_run"], true);
    assert_eq!((&list(&report, &id)["subscribed"], &list(&report, &id)["wanted"]), (&json!(wanted), &json!(wanted)));
    assert!(world.mailman.roster(&id, "member").await?.is_empty());

    // The first fill. Each person is asked for once, by pages of 40.
    world.novi.state().calls.clear();
    let report = world.run(json!({})).await?;
    let one = list(&report, &id);
    assert_eq!(
        (&report["status"], &one["status"], &one["reason"]),
        (&json!("ok"), &json!("ok"), &json!(null)),
        "{report}"
    );
    assert_eq!((&one["roster"], &one["subscribed"], &one["unsubscribed"]), (&json!(0), &json!(wanted), &json!(0)));
    assert_eq!(world.novi.state().count("/groups/"), 8);
    assert_eq!(world.novi.state().count("/customers/"), 300);
    assert_eq!(report["novi_calls"], 309, "and once whether all records may be listed");
    assert_roster(&world, &id, group).await?;
    let skipped = &one["skipped"];
    let total: u64 = skipped.as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum();
    assert_eq!(total as usize + wanted, 300, "everybody is accounted for: {skipped}");
    for reason in ["inactive", "opted_out", "no_email", "invalid_email", "not_found", "duplicate"] {
        assert!(skipped[reason].as_u64() > Some(0), "the directory has none that is {reason}");
    }

    // A second run has nothing to do and only looks.
    let report = world.run(json!({})).await?;
    assert_eq!((&list(&report, &id)["subscribed"], &list(&report, &id)["unsubscribed"]), (&json!(0), &json!(0)));
    assert_eq!(report["mailman_calls"], 1, "one page of the roster");

    // Joiners, leavers, an opt-out, and somebody with another address; somebody is there by hand and kept.
    world.mailman.subscribe(&id, "Owner@example.org", "member").await?;
    world.mailman.subscribe(&id, "by.hand@example.org", "member").await?;
    {
        let mut state = world.novi.state();
        let mut rng = Rng::new();
        let ordinary: Vec<Uuid> = state.directory.groups[&group]
            .iter()
            .copied()
            .filter(|id| {
                state.directory.people.get(id).is_some_and(|record| {
                    record["Active"] == true
                        && record["UnsubscribeFromEmails"] == false
                        && record["Email"].as_str().is_some_and(|email| email.starts_with("member"))
                })
            })
            .collect();
        state.directory.person(ordinary[0])["UnsubscribeFromEmails"] = json!(true);
        state.directory.person(ordinary[1])["Active"] = json!(false);
        state.directory.person(ordinary[2])["Email"] = json!("moved here@example.org");
        let joiners: Vec<Uuid> = (0..7).map(|_| state.directory.add(&mut rng)).collect();
        let members = state.directory.groups.get_mut(&group).unwrap();
        members.retain(|member| !ordinary[3..13].contains(member));
        members.extend(joiners);
    }
    let before = world.mailman.roster(&id, "member").await?;
    let report = world.run(json!({})).await?;
    let one = list(&report, &id);
    assert_eq!((&one["status"], &one["kept"]), (&json!("ok"), &json!(1)), "{report}");
    assert_eq!(one["subscribed"], 8);
    let after = world.mailman.roster(&id, "member").await?;
    assert_eq!(one["unsubscribed"], before.len() + 8 - after.len());
    let mut expected: Vec<String> = expected(&world.novi.state(), group).into_keys().collect();
    expected.push("owner@example.org".to_owned());
    expected.sort();
    assert_eq!(after.into_keys().collect::<Vec<_>>(), expected);
    assert!(expected.contains(&"moved+here@example.org".to_owned()));
    assert!(!expected.contains(&"by.hand@example.org".to_owned()));

    assert_eq!(world.mailman.roster(&id, "owner").await?.into_keys().collect::<Vec<_>>(), ["owner@example.org"]);
    assert_eq!(world.mailman.outgoing_mails()?, mails, "nobody gets a mail about it");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_list_is_left_as_it_was_until_it_is_forced() -> Result<()> {
    let mut directory = Directory::default();
    let (shrinking, steady) =
        (directory.add_plain_group(&mut Rng::new(), 20), directory.add_plain_group(&mut Rng::new(), 5));
    let mappings = json!([
        {"group_guid": shrinking, "list_id": "shrinking.lists.example.org"},
        {"group_guid": steady, "list_id": "steady.lists.example.org"},
    ]);
    let world = Mirror::start(directory, mappings, &[]).await?;
    let lists = [world.mailman.create_list("shrinking").await?, world.mailman.create_list("steady").await?];
    assert_eq!(world.run(json!({})).await?["status"], "ok");

    {
        let mut state = world.novi.state();
        let joiner = state.directory.add(&mut Rng::new());
        state.directory.groups.get_mut(&steady).unwrap().push(joiner);
        let members = state.directory.groups.get_mut(&shrinking).unwrap();
        members.truncate(13);
        members.push(joiner);
    }
    let before = world.mailman.roster(&lists[0], "member").await?;
    let returned = world.function.invoke(&json!({})).await?;
    assert_eq!(returned["errorType"], "Mirror.blocked", "alarms must see it: {returned}");
    let report = world.run(json!({})).await?;
    assert_eq!(report["status"], "blocked");
    let one = list(&report, &lists[0]);
    assert_eq!((&one["status"], &one["subscribed"], &one["unsubscribed"]), (&json!("blocked"), &json!(0), &json!(0)));
    let reason = one["reason"].as_str().unwrap_or_default();
    for part in ["7 of 20", "30 percent", r#"{"force":["shrinking.lists.example.org"]}"#] {
        assert!(reason.contains(part), "{reason}");
    }
    assert_eq!(world.mailman.roster(&lists[0], "member").await?, before, "not even its addition is applied");
    assert_roster(&world, &lists[1], steady).await?;

    // A forced dry run is still a dry run.
    let report = world.run(json!({"force": [lists[0]], "dry_run": true})).await?;
    assert_eq!((&report["status"], &list(&report, &lists[0])["unsubscribed"]), (&json!("ok"), &json!(7)));
    assert_eq!(world.mailman.roster(&lists[0], "member").await?, before);
    let report = world.run(json!({"force": ["shrinking@lists.example.org"], "lists": [lists[0]]})).await?;
    assert_eq!((report["lists"].as_array().map(Vec::len), &report["status"]), (Some(1), &json!("ok")));
    assert!(list(&report, &lists[0])["reason"].as_str().is_some_and(|reason| reason.contains("forced")));
    assert_roster(&world, &lists[0], shrinking).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_empty_missing_or_unread_leaves_its_list_as_it_was() -> Result<()> {
    let mut directory = Directory::default();
    let groups = [(); 3].map(|()| directory.add_plain_group(&mut Rng::new(), 45));
    let names = ["empty", "missing", "unread"];
    let mappings: Vec<Value> = groups
        .iter()
        .zip(names)
        .map(|(group, name)| json!({"group_guid": group, "list_id": format!("{name}@lists.example.org")}))
        .collect();
    let world = Mirror::start(directory, json!(mappings), &[]).await?;
    let mut before = Vec::new();
    for name in names {
        world.mailman.create_list(name).await?;
    }
    assert_eq!(world.run(json!({})).await?["status"], "ok");
    for name in names {
        before.push(world.mailman.roster(&format!("{name}.lists.example.org"), "member").await?);
    }

    world.novi.state().directory.groups.insert(groups[0], Vec::new());
    world.novi.state().directory.groups.remove(&groups[1]);
    // Those who left the unread group are on its first pages, and nobody may leave for that.
    world.novi.state().directory.groups.get_mut(&groups[2]).unwrap().drain(..2);
    let path = format!("/groups/{}", groups[2].hyphenated());
    for fault in [
        Fault::Answer(200, "text/html", "<html>".to_owned()),
        Fault::Forbidden,
        Fault::Answer(404, "application/json", "{}".to_owned()),
        Fault::HalfBody,
    ] {
        let is_404 = matches!(fault, Fault::Answer(404, ..));
        world.novi.state().fail(&path, usize::MAX, fault);
        let report = world.run(json!({})).await?;
        let status = |name: &str| list(&report, &format!("{name}.lists.example.org"))["status"].clone();
        assert_eq!((status("empty"), status("missing")), (json!("blocked"), json!("blocked")), "{report}");
        let unread = list(&report, "unread.lists.example.org");
        if is_404 {
            assert_eq!(unread["status"], "blocked");
        } else {
            assert_eq!((&unread["status"], &unread["withheld"]), (&json!("partial"), &json!(45)), "{report}");
        }
        assert_eq!(report["status"], "blocked");
        for (name, before) in names.iter().zip(&before) {
            assert_eq!(&world.mailman.roster(&format!("{name}.lists.example.org"), "member").await?, before);
        }
        world.novi.state().mend();
    }

    // A missing group cannot be forced; an empty one can.
    let lists = ["empty.lists.example.org", "missing.lists.example.org"];
    let report = world.run(json!({"force": lists, "lists": lists})).await?;
    assert_eq!(list(&report, lists[0])["unsubscribed"], 45);
    assert_eq!(list(&report, lists[1])["status"], "blocked");
    assert!(world.mailman.roster(lists[0], "member").await?.is_empty());
    assert_eq!(world.mailman.roster(lists[1], "member").await?, before[1]);

    // Once it can be read, the two who left leave.
    let report = world.run(json!({"lists": ["unread@lists.example.org"]})).await?;
    assert_eq!(
        (&report["status"], &list(&report, "unread.lists.example.org")["unsubscribed"]),
        (&json!("ok"), &json!(2))
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rosters_are_read_while_novi_is() -> Result<()> {
    const PLENTY: usize = 100;
    let (mut world, list, group) = one_list(5, json!({})).await?;
    let proxy = world.put_proxy().await?;
    let held = Arc::new(Semaphore::new(0));
    // Novi says nothing until a roster is asked for.
    world.novi.state().fail("/groups/", PLENTY, Fault::Held(Arc::clone(&held)));
    let release = async {
        proxy.wait_for(&format!("/lists/{list}/roster/member"), 1).await;
        held.add_permits(PLENTY);
    };
    let (report, ()) = tokio::join!(world.run(json!({})), release);
    assert_eq!(report?["status"], "ok");
    assert_roster(&world, &list, group).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_cannot_be_read_removes_nobody_and_lets_others_join() -> Result<()> {
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), 10);
    let world =
        Mirror::start(directory, json!([{"group_guid": group, "list_id": "members@lists.example.org"}]), &[]).await?;
    let id = world.mailman.create_list("members").await?;
    world.run(json!({})).await?;

    let (unreadable, joiner) = {
        let mut state = world.novi.state();
        let joiner = state.directory.add(&mut Rng::new());
        let members = state.directory.groups.get_mut(&group).unwrap();
        members.remove(9);
        members.push(joiner);
        (members[0], joiner)
    };
    let path = format!("/customers/{}", unreadable.hyphenated());
    for fault in [
        Fault::Answer(200, "application/json", "[]".to_owned()),
        Fault::Answer(200, "application/json", r#"{"UniqueID":"x","Name":"Hidden","Active":true}"#.to_owned()),
        Fault::Forbidden,
        Fault::Answer(418, "text/plain", String::new()),
    ] {
        world.novi.state().fail(&path, usize::MAX, fault);
        let report = world.run(json!({})).await?;
        let one = list(&report, &id);
        assert_eq!(
            (&one["status"], &one["withheld"], &one["skipped"]["unknown"]),
            (&json!("partial"), &json!(2), &json!(1)),
            "{report}"
        );
        assert_eq!(one["unsubscribed"], 0);
        world.novi.state().mend();
    }
    let address = world.novi.state().directory.person(joiner)["Email"].as_str().unwrap_or_default().to_owned();
    let roster = world.mailman.roster(&id, "member").await?;
    assert_eq!(roster.len(), 11);
    assert!(roster.contains_key(&address), "additions go ahead");

    // A flag that is hidden decides nothing: one who is there stays, one who is not does not come.
    {
        let mut state = world.novi.state();
        let newcomer = state.directory.add(&mut Rng::new());
        for person in [unreadable, newcomer] {
            state.directory.person(person).as_object_mut().unwrap().remove("UnsubscribeFromEmails");
        }
        state.directory.groups.get_mut(&group).unwrap().push(newcomer);
    }
    let report = world.run(json!({})).await?;
    let one = list(&report, &id);
    assert_eq!(
        (&one["status"], &one["subscribed"], &one["unsubscribed"]),
        (&json!("partial"), &json!(0), &json!(1)),
        "{report}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn several_mappings_make_one_list_and_a_broken_one_fails_alone() -> Result<()> {
    let mut directory = Directory::default();
    let groups = [(); 3].map(|()| directory.add_plain_group(&mut Rng::new(), 4));
    let both = directory.groups[&groups[0]][0];
    directory.groups.get_mut(&groups[1]).unwrap().push(both);
    let mappings = json!([
        {"group_guid": groups[0], "list_id": "joined@lists.example.org"},
        {"group_guid": groups[1], "list_id": "joined.lists.example.org"},
        {"group_guid": groups[2], "list_id": "broken.lists.example.org"},
        {"group_guid": groups[2], "list_id": "broken.lists.example.org", "max_removal_percent": "a lot"},
        {"group_guid": groups[2], "list_id": "nowhere.lists.example.org"},
    ]);

    let world = Mirror::start(directory, mappings, &[]).await?;
    let (joined, broken) = (world.mailman.create_list("joined").await?, world.mailman.create_list("broken").await?);
    let report = world.run(json!({})).await?;
    assert_eq!(report["status"], "failed");
    let one = list(&report, &joined);
    assert_eq!(
        (&one["status"], &one["subscribed"], &one["skipped"]["duplicate"]),
        (&json!("ok"), &json!(8), &json!(0))
    );
    assert_eq!(world.mailman.roster(&joined, "member").await?.len(), 8);
    let reason = |id: &str| list(&report, id)["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason(&broken).starts_with("mapping 4 cannot be used: max_removal_percent"), "{report}");
    assert!(world.mailman.roster(&broken, "member").await?.is_empty());
    assert_eq!(reason("nowhere.lists.example.org"), "Mailman has no such list");

    // A mapping that does not even name its list may be of any: nobody is removed from any.
    let mut config = world.config.clone();
    config["novi_mailman_sync"] = json!([
        {"group_guid": groups[0], "list_id": "joined@lists.example.org"},
        {"group_guid": groups[1], "list-id": "joined@lists.example.org"},
    ]);
    let other = tests::function::Function::start("mirror", &config, &[("MIRROR_APPLY", "true")], &world.private)?;
    let returned = other.invoke(&json!({})).await?.to_string();
    assert!(returned.contains("mapping 2 cannot be used") && returned.contains("does not name its list"), "{returned}");
    assert_eq!(world.mailman.roster(&joined, "member").await?.len(), 8);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_mailman_refuses_stops_nobody_and_a_pending_one_is_subscribed() -> Result<()> {
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), 5);
    let members = directory.groups[&group].clone();
    directory.person(members[0])["Email"] = json!("banned@example.org");
    directory.person(members[1])["Email"] = json!("pending@example.org");
    directory.person(members[2])["Email"] = json!("members@lists.example.org");
    let world =
        Mirror::start(directory, json!([{"group_guid": group, "list_id": "members@lists.example.org"}]), &[]).await?;
    let id = world.mailman.create_list("members").await?;
    world.mailman.ask(Method::POST, &format!("lists/{id}/bans"), Some(json!({"email": "banned@example.org"}))).await?;
    let request = json!({"list_id": id, "subscriber": "pending@example.org"});
    assert_eq!(world.mailman.ask(Method::POST, "members", Some(request)).await?.0, 202);
    let mails = world.mailman.outgoing_mails()?;

    for (run, subscribed) in [(1, 3), (2, 0)] {
        let report = world.run(json!({})).await?;
        let one = list(&report, &id);
        assert_eq!(
            (&one["status"], &one["subscribed"]),
            (&json!("partial"), &json!(subscribed)),
            "run {run}: {report}"
        );
        assert_eq!(one["rejected"], json!({"invalid": 0, "banned": 1, "other": 1}));
    }
    let roster = world.mailman.roster(&id, "member").await?;
    assert!(roster.contains_key("pending@example.org") && roster.len() == 3);
    assert_eq!(world.mailman.ask(Method::GET, &format!("lists/{id}/requests"), None).await?.1["total_size"], 0);
    assert_eq!(world.mailman.outgoing_mails()?, mails);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_mirror_apply_nothing_is_written_whatever_the_event_says() -> Result<()> {
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), 3);
    let mappings = json!([{"group_guid": group, "list_id": "members@lists.example.org"}]);
    let world = Mirror::start(directory, mappings, &[("MIRROR_APPLY", "yes")]).await?;
    let id = world.mailman.create_list("members").await?;
    let report = world.run(json!({"dry_run": false, "force": [id]})).await?;
    assert_eq!((&report["dry_run"], &list(&report, &id)["subscribed"]), (&json!(true), &json!(3)));
    assert!(world.mailman.roster(&id, "member").await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strange_event_is_an_error_before_anything_is_read() -> Result<()> {
    let (world, id, _) = one_list(3, json!({})).await?;
    for (event, said) in [
        (json!({"dryrun": true}), "none of dry_run, lists, force, explain"),
        (json!({"dry_run": 1}), "dry_run must be true or false"),
        (json!({"lists": ["other@lists.example.org"]}), "no mapping names the list in entry 1 of lists"),
        (json!({"force": [id, "other.lists.example.org"]}), "no mapping names the list in entry 2 of force"),
        (json!([]), "it must be a JSON object"),
    ] {
        let returned = world.function.invoke(&event).await?;
        assert!(returned["errorMessage"].as_str().is_some_and(|message| message.contains(said)), "{returned}");
    }
    assert_eq!(world.novi.state().count("/"), 0);
    assert!(world.mailman.roster(&id, "member").await?.is_empty());

    let schedule =
        json!({"version": "0", "id": "x", "detail-type": "Scheduled Event", "source": "aws.events", "detail": {}});
    assert_eq!(world.run(schedule).await?["status"], "ok");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explanation_says_why_and_writes_nothing() -> Result<()> {
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), 6);
    let members = directory.groups[&group].clone();
    let address = |directory: &Directory, n: usize| {
        directory.people[&members[n]]["Email"].as_str().unwrap_or_default().to_owned()
    };
    let addresses: Vec<String> = (0..5).map(|n| address(&directory, n)).collect();
    directory.person(members[1])["Active"] = json!(false);
    directory.person(members[2])["UnsubscribeFromEmails"] = json!(true);
    directory.person(members[3])["Active"] = json!(null);
    directory.person(members[4])["Email"] = json!("odd@@example.org");
    let world = Mirror::start(
        directory,
        json!([{"group_guid": group, "list_id": "members@lists.example.org", "keep": ["kept@example.org"]}]),
        &[],
    )
    .await?;
    let id = world.mailman.create_list("members").await?;
    world.mailman.subscribe(&id, "kept@example.org", "member").await?;
    let asked = [
        &addresses[0].to_uppercase(),
        &addresses[1],
        &addresses[2],
        &addresses[3],
        "odd@@example.org",
        "kept@example.org",
        &addresses[4],
    ];
    for address in asked {
        world.private.add(address);
    }
    let report = world.run(json!({"explain": asked})).await?;
    assert_eq!(report["dry_run"], true);
    for (explanation, (wanted, subscribed, why)) in report["explain"].as_array().into_iter().flatten().zip([
        (true, false, None),
        (false, false, Some("not active")),
        (false, false, Some("unsubscribed from emails")),
        (false, false, Some("hides Active")),
        (false, false, Some("not valid")),
        (false, true, Some("because of keep")),
        (false, false, Some("no record in the groups")),
    ]) {
        let one = &explanation["lists"][0];
        assert_eq!(
            (&one["list_id"], &one["wanted"], &one["subscribed"]),
            (&json!(id), &json!(wanted), &json!(subscribed)),
            "{explanation}"
        );
        match why {
            None => assert!(one["why"].is_null(), "{explanation}"),
            Some(why) => assert!(one["why"].as_str().is_some_and(|text| text.contains(why)), "{explanation}"),
        }
    }
    assert_eq!(report["explain"].as_array().map(Vec::len), Some(7));

    // The answer to a question is no error, whatever the list's state: an error may name nobody.
    world.novi.state().directory.groups.insert(group, Vec::new());
    let returned = world.function.invoke(&json!({"explain": [addresses[0]]})).await?;
    assert!(returned.get("errorMessage").is_none(), "{returned}");
    assert_eq!((&returned["status"], &returned["explain"][0]["address"]), (&json!("blocked"), &json!(addresses[0])));
    assert_eq!(world.mailman.roster(&id, "member").await?.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mailman_s_password_rotates_and_a_wrong_one_fails_the_list() -> Result<()> {
    let (mut world, id, group) = one_list(6, json!({})).await?;
    let right = world.config.clone();
    assert_eq!(world.run(json!({})).await?["status"], "ok");
    world.config["mailman_password"] = json!("wrong");
    world.function.set_config(&world.config)?;
    // The function still holds the right one, which nobody has refused.
    assert_eq!(world.run(json!({})).await?["status"], "ok");
    assert_roster(&world, &id, group).await?;

    let other = tests::function::Function::start("mirror", &world.config, &[("MIRROR_APPLY", "true")], &world.private)?;
    let returned = other.invoke(&json!({})).await?;
    let message = returned["errorMessage"].as_str().unwrap_or_default();
    assert!(message.contains("Mailman does not accept mailman_username and mailman_password"), "{message}");
    // A function that has read the wrong one, and done nothing yet, looks again when it is refused.
    let third = tests::function::Function::start("mirror", &world.config, &[("MIRROR_APPLY", "true")], &world.private)?;
    assert!(third.invoke(&json!({"dryrun": true})).await?["errorMessage"].is_string());
    third.set_config(&right)?;
    assert_eq!(third.invoke(&json!({})).await?["status"], "ok");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_novi_that_refuses_everything_fails_the_run() -> Result<()> {
    let (world, id, _) = one_list(5, json!({})).await?;
    world.run(json!({})).await?;
    let before = world.mailman.roster(&id, "member").await?;
    for (fault, said) in [(Fault::Blocked, "the CDN"), (Fault::Answer(401, "text/plain", String::new()), "the key")] {
        world.novi.state().fail("/", usize::MAX, fault);
        let report = world.run(json!({})).await?;
        assert_eq!(list(&report, &id)["status"], "failed", "an alarm must see it: {report}");
        assert!(list(&report, &id)["reason"].as_str().is_some_and(|reason| reason.contains(said)), "{report}");
        assert_eq!(world.mailman.roster(&id, "member").await?, before);
        world.novi.state().mend();
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn time_that_runs_out_is_unfinished_and_harms_nobody() -> Result<()> {
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), 20);
    let mappings = json!([{"group_guid": group, "list_id": "members@lists.example.org"}]);
    // Ten of the eleven seconds are in reserve, and Novi may be asked once in a second.
    let variables = [("AWS_LAMBDA_FUNCTION_TIMEOUT", "11"), ("NOVI_MAX_PER_SECOND", "1")];
    let world = Mirror::start(directory, mappings, &variables).await?;
    let id = world.mailman.create_list("members").await?;
    world.mailman.subscribe(&id, "by.hand@example.org", "member").await?;
    let report = world.run(json!({})).await?;
    assert_eq!((&report["status"], &list(&report, &id)["status"]), (&json!("unfinished"), &json!("unfinished")));
    assert_eq!(world.mailman.roster(&id, "member").await?.len(), 1);
    Ok(())
}
