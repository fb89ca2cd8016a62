//! The mirror, end to end: the real function in AWS's emulator, between a simulated Novi and a real Mailman core.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use fastrand::Rng;
use http::Method;
use serde_json::{Value, json};
use tests::directory::Directory;
use tests::harness::{Mirror, list};
use tests::novi::{NoviFault, State};
use tokio::sync::Semaphore;
use uuid::Uuid;

/// Returns the roster that a group should have, as display names by address. This is written independently of the
/// product.
fn expected(state: &State, group: Uuid) -> BTreeMap<String, String> {
    let mut roster: BTreeMap<String, String> = BTreeMap::new();
    for id in state.directory.groups.get(&group).into_iter().flatten() {
        let Some(record) = state.directory.people.get(id) else { continue };
        let text = |field: &str| record[field].as_str().unwrap_or_default().trim().to_owned();
        let address = text("Email").replace(' ', "+").to_lowercase();
        let is_wanted = record["Active"] == true && record["UnsubscribeFromEmails"] == false;
        // Of the directory's unusual addresses, these are the undeliverable ones.
        if !is_wanted || !address.contains('@') || !address.is_ascii() {
            continue;
        }
        let (first, last) = (text("FirstName"), text("LastName"));
        let name = match (first.as_str(), last.as_str()) {
            ("", "") => text("Name"),
            ("", one) | (one, "") if text("Name").is_empty() => one.to_owned(),
            ("", _) | (_, "") => text("Name"),
            // Of the directory's last names, only "E\u{301}tienne-Müller" has a first character of several code
            // points, except for names in Indic scripts, which this comparison leaves out.
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

/// Compares all addresses, and the display names that `expected` knows.
async fn assert_roster(env: &Mirror, list: &str, group: Uuid) -> Result<()> {
    let roster = env.mailman.roster(list, "member").await?;
    let expected = expected(&env.novi.state(), group);
    assert_eq!(roster.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (address, name) in &expected {
        if !name.is_empty() {
            assert_eq!(&roster[address], name);
        }
    }
    Ok(())
}

/// Starts a mirror of one list, which is mapped to a group of this number of members.
async fn start_with_one_list(members: usize, mapping: Value) -> Result<(Mirror, String, Uuid)> {
    let mut directory = Directory::default();
    let group = directory.add_group(&mut Rng::new(), members);
    let mut mapping = mapping;
    mapping["group_guid"] = json!(group.hyphenated().to_string());
    mapping["list_id"] = json!("members@lists.example.org");
    let env = Mirror::start(directory, json!([mapping]), &[]).await?;
    let list = env.mailman.create_list("members").await?;
    Ok((env, list, group))
}

#[tokio::test(flavor = "multi_thread")]
async fn list_of_three_hundred_follows_joins_departures_and_changes() -> Result<()> {
    let (env, id, group) = start_with_one_list(300, json!({"keep": ["owner@example.org"]})).await?;
    env.mailman.subscribe(&id, "owner@example.org", "owner").await?;
    let emails = env.mailman.outgoing_emails()?;

    // A dry run reports the changes and applies none.
    let report = env.run(json!({"dry_run": true})).await?;
    let wanted = expected(&env.novi.state(), group).len();
    assert_eq!(report["dry_run"], true);
    assert_eq!((&list(&report, &id)["subscribed"], &list(&report, &id)["wanted"]), (&json!(wanted), &json!(wanted)));
    assert!(env.mailman.roster(&id, "member").await?.is_empty());

    // The first run fills the list. The group is read in pages of 40, and each record is fetched once.
    env.novi.state().calls.clear();
    let report = env.run(json!({})).await?;
    let entry = list(&report, &id);
    assert_eq!(
        (&report["status"], &entry["status"], &entry["skipped"]["invalid_email"]),
        (&json!("partial"), &json!("partial"), &json!(12)),
        "{report}"
    );
    assert!(entry["reason"].as_str().is_some_and(|reason| reason.starts_with("12 of this list's records")), "{report}");
    assert_eq!(
        (&entry["roster"], &entry["subscribed"], &entry["unsubscribed"]),
        (&json!(0), &json!(wanted), &json!(0))
    );
    assert_eq!((&entry["moved"], &report["ledger"]), (&json!(0), &json!(null)), "nothing is known about earlier runs");
    assert_eq!((&entry["skipped"]["not_yet_read"], &entry["skipped"]["left"]), (&json!(0), &json!(0)));
    assert_eq!(env.novi.state().count("/groups/"), 8);
    assert_eq!(env.novi.state().count("/customers/"), 300);
    assert_eq!(report["novi_calls"], 309, "one more call checks whether bulk listing is available");
    assert_roster(&env, &id, group).await?;
    let skipped = &entry["skipped"];
    let total: u64 = skipped.as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum();
    assert_eq!(total as usize + wanted, 300, "every record is counted: {skipped}");
    for reason in ["inactive", "opted_out", "no_email", "invalid_email", "not_found", "duplicate"] {
        assert!(skipped[reason].as_u64() > Some(0), "no record was skipped as {reason}");
    }

    // The addresses that aren't valid are corrected in Novi. A second run finds nothing to change.
    for record in env.novi.state().directory.people.values_mut() {
        let email = record["Email"].as_str().unwrap_or_default();
        if email == "no address at all" || !email.is_ascii() {
            record["Email"] = json!(null);
        }
    }
    let report = env.run(json!({})).await?;
    let entry = list(&report, &id);
    assert_eq!((&entry["status"], &entry["reason"]), (&json!("ok"), &json!(null)), "{report}");
    assert_eq!((&entry["subscribed"], &entry["unsubscribed"]), (&json!(0), &json!(0)));
    assert_eq!(report["mailman_calls"], 2, "one page of the roster, and Mailman's version");

    // Joins, departures, an opt-out, and a changed address. One address is subscribed by hand, and one is kept.
    env.mailman.subscribe(&id, "Owner@example.org", "member").await?;
    env.mailman.subscribe(&id, "by.hand@example.org", "member").await?;
    {
        let mut state = env.novi.state();
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
    let before = env.mailman.roster(&id, "member").await?;
    let report = env.run(json!({})).await?;
    let entry = list(&report, &id);
    assert_eq!((&entry["status"], &entry["kept"]), (&json!("ok"), &json!(1)), "{report}");
    assert_eq!(entry["subscribed"], 8);
    let after = env.mailman.roster(&id, "member").await?;
    assert_eq!(entry["unsubscribed"], before.len() + 8 - after.len());
    let mut expected: Vec<String> = expected(&env.novi.state(), group).into_keys().collect();
    expected.push("owner@example.org".to_owned());
    expected.sort();
    assert_eq!(after.into_keys().collect::<Vec<_>>(), expected);
    assert!(expected.contains(&"moved+here@example.org".to_owned()));
    assert!(!expected.contains(&"by.hand@example.org".to_owned()));

    assert_eq!(env.mailman.roster(&id, "owner").await?.into_keys().collect::<Vec<_>>(), ["owner@example.org"]);
    assert_eq!(env.mailman.outgoing_emails()?, emails, "no one gets an email about it");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn blocked_list_is_unchanged_until_it_is_forced() -> Result<()> {
    let mut directory = Directory::default();
    let (shrinking, steady) =
        (directory.add_plain_group(&mut Rng::new(), 20), directory.add_plain_group(&mut Rng::new(), 5));
    let mappings = json!([
        {"group_guid": shrinking, "list_id": "shrinking.lists.example.org"},
        {"group_guid": steady, "list_id": "steady.lists.example.org"},
    ]);
    let env = Mirror::start(directory, mappings, &[]).await?;
    let lists = [env.mailman.create_list("shrinking").await?, env.mailman.create_list("steady").await?];
    assert_eq!(env.run(json!({})).await?["status"], "ok");

    {
        let mut state = env.novi.state();
        let joiner = state.directory.add(&mut Rng::new());
        state.directory.groups.get_mut(&steady).unwrap().push(joiner);
        let members = state.directory.groups.get_mut(&shrinking).unwrap();
        members.truncate(13);
        members.push(joiner);
    }
    let before = env.mailman.roster(&lists[0], "member").await?;
    let returned = env.function.invoke(&json!({})).await?;
    assert_eq!(returned["errorType"], "Mirror.blocked", "alarms must see it: {returned}");
    let report = env.run(json!({})).await?;
    assert_eq!(report["status"], "blocked");
    let entry = list(&report, &lists[0]);
    assert_eq!(
        (&entry["status"], &entry["subscribed"], &entry["unsubscribed"]),
        (&json!("blocked"), &json!(0), &json!(0))
    );
    let reason = entry["reason"].as_str().unwrap_or_default();
    for part in ["7 of 20", "30 percent", r#"{"force":{"shrinking.lists.example.org":{"leaves":7}}}"#] {
        assert!(reason.contains(part), "{reason}");
    }
    assert_eq!(env.mailman.roster(&lists[0], "member").await?, before, "not even its addition is applied");
    assert_roster(&env, &lists[1], steady).await?;

    // A forced dry run is still a dry run.
    let force = json!({"leaves": 7});
    let report = env.run(json!({"force": {&lists[0]: force}, "dry_run": true})).await?;
    assert_eq!((&report["status"], &list(&report, &lists[0])["unsubscribed"]), (&json!("ok"), &json!(7)));
    assert_eq!(env.mailman.roster(&lists[0], "member").await?, before);
    let event = json!({"force": {"shrinking@lists.example.org": force}, "lists": [lists[0]]});
    let report = env.run(event).await?;
    assert_eq!((report["lists"].as_array().map(Vec::len), &report["status"]), (Some(1), &json!("ok")));
    assert!(list(&report, &lists[0])["reason"].as_str().is_some_and(|reason| reason.contains("forced")));
    assert_roster(&env, &lists[0], shrinking).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_missing_or_unreadable_group_leaves_its_list_unchanged() -> Result<()> {
    let mut directory = Directory::default();
    let groups = [(); 3].map(|()| directory.add_plain_group(&mut Rng::new(), 45));
    let names = ["empty", "missing", "unread"];
    let mappings: Vec<Value> = groups
        .iter()
        .zip(names)
        .map(|(group, name)| json!({"group_guid": group, "list_id": format!("{name}@lists.example.org")}))
        .collect();
    let env = Mirror::start(directory, json!(mappings), &[]).await?;
    let mut before = Vec::new();
    for name in names {
        env.mailman.create_list(name).await?;
    }
    assert_eq!(env.run(json!({})).await?["status"], "ok");
    for name in names {
        before.push(env.mailman.roster(&format!("{name}.lists.example.org"), "member").await?);
    }

    env.novi.state().directory.groups.insert(groups[0], Vec::new());
    env.novi.state().directory.groups.remove(&groups[1]);
    // The members who left the unreadable group were on its first pages. No one may be removed because of that.
    env.novi.state().directory.groups.get_mut(&groups[2]).unwrap().drain(..2);
    let path = format!("/groups/{}", groups[2].hyphenated());
    for fault in [
        NoviFault::Respond(200, "text/html", "<html>".to_owned()),
        NoviFault::Forbidden,
        NoviFault::Respond(404, "application/json", "{}".to_owned()),
        NoviFault::TruncatedBody,
    ] {
        let is_404 = matches!(fault, NoviFault::Respond(404, ..));
        env.novi.state().fail(&path, usize::MAX, fault);
        let report = env.run(json!({})).await?;
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
            assert_eq!(&env.mailman.roster(&format!("{name}.lists.example.org"), "member").await?, before);
        }
        env.novi.state().clear_faults();
    }

    // An empty group can be forced. A missing one can't.
    let lists = ["empty.lists.example.org", "missing.lists.example.org"];
    let everyone = json!({"leaves": 45});
    let report = env.run(json!({"force": {lists[0]: everyone, lists[1]: everyone}, "lists": lists})).await?;
    assert_eq!(list(&report, lists[0])["unsubscribed"], 45);
    assert_eq!(list(&report, lists[1])["status"], "blocked");
    assert!(env.mailman.roster(lists[0], "member").await?.is_empty());
    assert_eq!(env.mailman.roster(lists[1], "member").await?, before[1]);

    // Once the group can be read, the two former members are removed.
    let report = env.run(json!({"lists": ["unread@lists.example.org"]})).await?;
    assert_eq!(
        (&report["status"], &list(&report, "unread.lists.example.org")["unsubscribed"]),
        (&json!("ok"), &json!(2))
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rosters_and_novi_are_read_concurrently() -> Result<()> {
    const MORE_THAN_ENOUGH: usize = 100;
    let (mut env, list, group) = start_with_one_list(5, json!({})).await?;
    let proxy = env.insert_proxy().await?;
    let held = Arc::new(Semaphore::new(0));
    // Novi doesn't respond until a roster is requested.
    env.novi.state().fail("/groups/", MORE_THAN_ENOUGH, NoviFault::Hold(Arc::clone(&held)));
    let release = async {
        proxy.wait_for(&format!("/lists/{list}/roster/member"), 1).await;
        held.add_permits(MORE_THAN_ENOUGH);
    };
    let (report, ()) = tokio::join!(env.run(json!({})), release);
    assert_eq!(report?["status"], "ok");
    assert_roster(&env, &list, group).await
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_record_withholds_removals_but_not_additions() -> Result<()> {
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), 10);
    let env =
        Mirror::start(directory, json!([{"group_guid": group, "list_id": "members@lists.example.org"}]), &[]).await?;
    let id = env.mailman.create_list("members").await?;
    env.run(json!({})).await?;

    let (unreadable, joiner) = {
        let mut state = env.novi.state();
        let joiner = state.directory.add(&mut Rng::new());
        let members = state.directory.groups.get_mut(&group).unwrap();
        members.remove(9);
        members.push(joiner);
        (members[0], joiner)
    };
    let path = format!("/customers/{}", unreadable.hyphenated());
    for fault in [
        NoviFault::Respond(200, "application/json", "[]".to_owned()),
        NoviFault::Respond(200, "application/json", r#"{"UniqueID":"x","Name":"Hidden","Active":true}"#.to_owned()),
        NoviFault::Forbidden,
        NoviFault::Respond(418, "text/plain", String::new()),
    ] {
        env.novi.state().fail(&path, usize::MAX, fault);
        let report = env.run(json!({})).await?;
        let entry = list(&report, &id);
        assert_eq!(
            (&entry["status"], &entry["withheld"], &entry["skipped"]["unknown"]),
            (&json!("partial"), &json!(2), &json!(1)),
            "{report}"
        );
        assert_eq!(entry["unsubscribed"], 0);
        env.novi.state().clear_faults();
    }
    let address = env.novi.state().directory.person(joiner)["Email"].as_str().unwrap_or_default().to_owned();
    let roster = env.mailman.roster(&id, "member").await?;
    assert_eq!(roster.len(), 11);
    assert!(roster.contains_key(&address), "additions are applied");

    // A hidden flag changes nothing: a subscribed member stays, and a new member isn't added.
    {
        let mut state = env.novi.state();
        let newcomer = state.directory.add(&mut Rng::new());
        for person in [unreadable, newcomer] {
            state.directory.person(person).as_object_mut().unwrap().remove("UnsubscribeFromEmails");
        }
        state.directory.groups.get_mut(&group).unwrap().push(newcomer);
    }
    let report = env.run(json!({})).await?;
    let entry = list(&report, &id);
    assert_eq!(
        (&entry["status"], &entry["subscribed"], &entry["unsubscribed"]),
        (&json!("partial"), &json!(0), &json!(1)),
        "{report}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn several_mappings_can_fill_one_list_and_an_invalid_one_fails_only_its_list() -> Result<()> {
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

    let env = Mirror::start(directory, mappings, &[]).await?;
    let (joined, broken) = (env.mailman.create_list("joined").await?, env.mailman.create_list("broken").await?);
    let report = env.run(json!({})).await?;
    assert_eq!(report["status"], "failed");
    let entry = list(&report, &joined);
    assert_eq!(
        (&entry["status"], &entry["subscribed"], &entry["skipped"]["duplicate"]),
        (&json!("partial"), &json!(8), &json!(0)),
        "Mailman doesn't have one of the lists, so removals from all others are in doubt: {report}"
    );
    assert_eq!(env.mailman.roster(&joined, "member").await?.len(), 8);
    let reason = |id: &str| list(&report, id)["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason(&broken).starts_with("Mapping 4 is invalid: max_removal_percent"), "{report}");
    assert!(env.mailman.roster(&broken, "member").await?.is_empty());
    assert_eq!(
        reason("nowhere.lists.example.org"),
        "Mailman has no list with this id. Create the list, or correct list_id in the mapping."
    );

    // A mapping that doesn't name its list could belong to any list, so no one is removed from any of them.
    let mut config = env.config.clone();
    config["novi_mailman_sync"] = json!([
        {"group_guid": groups[0], "list_id": "joined@lists.example.org"},
        {"group_guid": groups[1], "list-id": "joined@lists.example.org"},
    ]);
    let other = tests::function::Function::start("mirror", &config, &[("MIRROR_APPLY", "true")], &env.private)?;
    let returned = other.invoke(&json!({})).await?.to_string();
    assert!(returned.contains("Mapping 2 is invalid") && returned.contains("does not name its list"), "{returned}");
    assert_eq!(env.mailman.roster(&joined, "member").await?.len(), 8);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_address_does_not_stop_others_and_pending_one_is_subscribed() -> Result<()> {
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), 5);
    let members = directory.groups[&group].clone();
    directory.person(members[0])["Email"] = json!("banned@example.org");
    directory.person(members[1])["Email"] = json!("pending@example.org");
    directory.person(members[2])["Email"] = json!("members@lists.example.org");
    let env =
        Mirror::start(directory, json!([{"group_guid": group, "list_id": "members@lists.example.org"}]), &[]).await?;
    let id = env.mailman.create_list("members").await?;
    env.mailman
        .request(Method::POST, &format!("lists/{id}/bans"), Some(json!({"email": "banned@example.org"})))
        .await?;
    let request = json!({"list_id": id, "subscriber": "pending@example.org"});
    assert_eq!(env.mailman.request(Method::POST, "members", Some(request)).await?.0, 202);
    let emails = env.mailman.outgoing_emails()?;

    for (run, subscribed) in [(1, 3), (2, 0)] {
        let report = env.run(json!({})).await?;
        let entry = list(&report, &id);
        assert_eq!(
            (&entry["status"], &entry["subscribed"]),
            (&json!("partial"), &json!(subscribed)),
            "run {run}: {report}"
        );
        assert_eq!(entry["rejected"], json!({"invalid": 0, "banned": 1, "other": 0}));
        assert_eq!(entry["skipped"]["invalid_email"], 1, "the list's own address is not sent to Mailman");
    }
    let roster = env.mailman.roster(&id, "member").await?;
    assert!(roster.contains_key("pending@example.org") && roster.len() == 3);
    assert_eq!(env.mailman.request(Method::GET, &format!("lists/{id}/requests"), None).await?.1["total_size"], 0);
    assert_eq!(env.mailman.outgoing_emails()?, emails);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_without_mirror_apply_whatever_the_event_says() -> Result<()> {
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), 3);
    let mappings = json!([{"group_guid": group, "list_id": "members@lists.example.org"}]);
    let env = Mirror::start(directory, mappings, &[("MIRROR_APPLY", "yes")]).await?;
    let id = env.mailman.create_list("members").await?;
    let report = env.run(json!({"dry_run": false, "force": {&id: {"joins": 3}}})).await?;
    assert_eq!((&report["dry_run"], &list(&report, &id)["subscribed"]), (&json!(true), &json!(3)));
    assert!(env.mailman.roster(&id, "member").await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_event_fails_before_anything_is_read() -> Result<()> {
    let (env, id, _) = start_with_one_list(3, json!({})).await?;
    for (event, expected_text) in [
        (json!({"dryrun": true}), "unknown key; expected one of dry_run, lists, force, explain"),
        (json!({"dry_run": 1}), "dry_run: expected true or false"),
        (json!({"lists": ["other@lists.example.org"]}), "no mapping names the list in entry 1 of lists"),
        (json!({"force": {&id: {}, "other.lists.example.org": {}}}), "no mapping names the list in entry 2 of force"),
        // The form of earlier versions.
        (json!({"force": [id]}), r#"such as {"members.lists.example.org":{"leaves":7}}"#),
        (json!({"force": {&id: {"leaves": 7, "leave": 1}}}), "joins, leaves, moves, left and unknown"),
        (json!({"force": {&id: {"leaves": -1}}}), "leaves: expected a whole number"),
        (json!({"force": {&id: {"joins": "all"}}}), "joins: expected a whole number"),
        (json!({"force": {&id: 7}}), "joins, leaves, moves, left and unknown"),
        (json!({"force": {"members": {"leaves": 7}}}), "entry 1 of force is not a valid list id"),
        (json!({"force": null}), r#"such as {"members.lists.example.org":{"leaves":7}}"#),
        (json!({"show": "all"}), "show: expected true"),
        (json!([]), "expected a JSON object"),
    ] {
        let returned = env.function.invoke(&event).await?;
        assert!(returned["errorMessage"].as_str().is_some_and(|message| message.contains(expected_text)), "{returned}");
    }
    assert_eq!(env.novi.state().count("/"), 0);
    assert!(env.mailman.roster(&id, "member").await?.is_empty());

    let schedule =
        json!({"version": "0", "id": "x", "detail-type": "Scheduled Event", "source": "aws.events", "detail": {}});
    assert_eq!(env.run(schedule).await?["status"], "ok");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn explanation_gives_the_reason_and_writes_nothing() -> Result<()> {
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
    let env = Mirror::start(
        directory,
        json!([{"group_guid": group, "list_id": "members@lists.example.org", "keep": ["kept@example.org"]}]),
        &[],
    )
    .await?;
    let id = env.mailman.create_list("members").await?;
    env.mailman.subscribe(&id, "kept@example.org", "member").await?;
    let requested = [
        &addresses[0].to_uppercase(),
        &addresses[1],
        &addresses[2],
        &addresses[3],
        "odd@@example.org",
        "kept@example.org",
        &addresses[4],
    ];
    for address in requested {
        env.private.add(address);
    }
    let report = env.run(json!({"explain": requested})).await?;
    assert_eq!(report["dry_run"], true);
    for (explanation, (wanted, subscribed, why)) in report["explain"].as_array().into_iter().flatten().zip([
        (true, false, None),
        (false, false, Some("not active")),
        (false, false, Some("unsubscribed from emails")),
        (false, false, Some("hides Active")),
        (false, false, Some("not clearly one valid address")),
        (false, true, Some("because of keep")),
        (false, false, Some("no record in the groups")),
    ]) {
        let entry = &explanation["lists"][0];
        assert_eq!(
            (&entry["list_id"], &entry["wanted"], &entry["subscribed"]),
            (&json!(id), &json!(wanted), &json!(subscribed)),
            "{explanation}"
        );
        match why {
            None => assert!(entry["why"].is_null(), "{explanation}"),
            Some(why) => assert!(entry["why"].as_str().is_some_and(|text| text.contains(why)), "{explanation}"),
        }
    }
    assert_eq!(report["explain"].as_array().map(Vec::len), Some(7));

    // An explanation isn't returned as an error, whatever the state of the list: errors must not contain addresses.
    env.mailman.subscribe(&id, "by.hand@example.org", "member").await?;
    env.novi.state().directory.groups.insert(group, Vec::new());
    let returned = env.function.invoke(&json!({"explain": [addresses[0]]})).await?;
    assert!(returned.get("errorMessage").is_none(), "{returned}");
    assert_eq!((&returned["status"], &returned["explain"][0]["address"]), (&json!("blocked"), &json!(addresses[0])));
    assert_eq!(env.mailman.roster(&id, "member").await?.len(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mailman_password_rotates_and_a_wrong_one_fails_the_list() -> Result<()> {
    let (mut env, id, group) = start_with_one_list(6, json!({})).await?;
    let valid_config = env.config.clone();
    assert_eq!(env.run(json!({})).await?["status"], "ok");
    env.config["mailman_password"] = json!("wrong");
    env.function.set_config(&env.config)?;
    // The function still has the valid password, which Mailman hasn't rejected.
    assert_eq!(env.run(json!({})).await?["status"], "ok");
    assert_roster(&env, &id, group).await?;

    let other = tests::function::Function::start("mirror", &env.config, &[("MIRROR_APPLY", "true")], &env.private)?;
    let returned = other.invoke(&json!({})).await?;
    let message = returned["errorMessage"].as_str().unwrap_or_default();
    assert!(message.contains("Mailman rejected mailman_username and mailman_password"), "{message}");
    // A function that has only read the wrong password so far refreshes its parameters when it is rejected.
    let another = tests::function::Function::start("mirror", &env.config, &[("MIRROR_APPLY", "true")], &env.private)?;
    assert!(another.invoke(&json!({"dryrun": true})).await?["errorMessage"].is_string());
    another.set_config(&valid_config)?;
    assert_eq!(another.invoke(&json!({})).await?["status"], "ok");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn run_fails_if_novi_rejects_everything() -> Result<()> {
    let (env, id, _) = start_with_one_list(5, json!({})).await?;
    env.run(json!({})).await?;
    let before = env.mailman.roster(&id, "member").await?;
    for (fault, expected_text) in
        [(NoviFault::BlockedByCdn, "the CDN"), (NoviFault::Respond(401, "text/plain", String::new()), "the API key")]
    {
        env.novi.state().fail("/", usize::MAX, fault);
        let report = env.run(json!({})).await?;
        assert_eq!(list(&report, &id)["status"], "failed", "an alarm must see it: {report}");
        assert!(list(&report, &id)["reason"].as_str().is_some_and(|reason| reason.contains(expected_text)), "{report}");
        assert_eq!(env.mailman.roster(&id, "member").await?, before);
        env.novi.state().clear_faults();
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn run_out_of_time_is_unfinished_and_removes_no_one() -> Result<()> {
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), 20);
    let mappings = json!([{"group_guid": group, "list_id": "members@lists.example.org"}]);
    // Ten of the eleven seconds are reserved, and Novi may be called once a second.
    let variables = [("AWS_LAMBDA_FUNCTION_TIMEOUT", "11"), ("NOVI_MAX_PER_SECOND", "1")];
    let env = Mirror::start(directory, mappings, &variables).await?;
    let id = env.mailman.create_list("members").await?;
    env.mailman.subscribe(&id, "by.hand@example.org", "member").await?;
    let report = env.run(json!({})).await?;
    assert_eq!((&report["status"], &list(&report, &id)["status"]), (&json!("unfinished"), &json!("unfinished")));
    assert_eq!(env.mailman.roster(&id, "member").await?.len(), 1);
    Ok(())
}
