//! The mirror with a ledger: what it remembers between runs, and what it does if the ledger can't be used.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::aws::Moto;
use tests::directory::Directory;
use tests::function::Function;
use tests::harness::{Mirror, ledger_key, list, report as report_of};
use tests::http_proxy::{HttpFault, HttpProxy, RecordedRequest};
use tokio::sync::Semaphore;
use uuid::Uuid;

const LIST: &str = "members.lists.example.org";

/// A mirror of one list with a ledger in a file.
struct Env {
    mirror: Mirror,
    group: Uuid,
    dir: TempDir,
}

impl Env {
    async fn start(members: usize, mapping: Value, variables: &[(&str, &str)]) -> Result<Self> {
        let dir = TempDir::new()?;
        let mut directory = Directory::default();
        let group = directory.add_plain_group(&mut Rng::new(), members);
        let mut mappings = json!([{"group_guid": group, "list_id": LIST}]);
        if let (Some(merged), Some(options)) = (mappings[0].as_object_mut(), mapping.as_object()) {
            merged.extend(options.clone());
        }
        let location = format!("file://{}", dir.path().join("ledger").display());
        let variables = [&[("LEDGER", location.as_str())], variables].concat();
        let mirror = Mirror::start(directory, mappings, &variables).await?;
        mirror.mailman.create_list("members").await?;
        Ok(Self { mirror, group, dir })
    }

    /// Starts a mirror with a proxy in front of Mailman, and fills the list.
    async fn filled(members: usize, mapping: Value, variables: &[(&str, &str)]) -> Result<(Self, HttpProxy)> {
        let mut env = Self::start(members, mapping, variables).await?;
        let proxy = env.mirror.insert_proxy().await?;
        assert_eq!(env.run().await?["status"], "ok");
        Ok((env, proxy))
    }

    /// Starts another instance, with the same ledger and these parameters.
    fn another_instance(&self, config: &Value) -> Result<Function> {
        let location = format!("file://{}", self.ledger().display());
        let instance = self.mirror.another_instance(&[("LEDGER", &location)])?;
        instance.set_config(config)?;
        Ok(instance)
    }

    fn ledger(&self) -> PathBuf {
        self.dir.path().join("ledger")
    }

    async fn run(&self) -> Result<Value> {
        self.mirror.run(json!({})).await
    }

    /// Returns the ids of the group's members, sorted.
    fn members(&self) -> Vec<Uuid> {
        let mut members = self.mirror.novi.state().directory.groups[&self.group].clone();
        members.sort();
        members
    }

    fn address(&self, member: Uuid) -> String {
        self.mirror.novi.state().directory.address(member)
    }

    fn set(&self, member: Uuid, field: &str, value: Value) {
        if let Some(address) = value.as_str() {
            self.mirror.private.add(address);
        }
        self.mirror.novi.state().directory.person(member)[field] = value;
    }

    /// Changes a member's address to one that someone else has in Mailman, on another list, so that the membership can't move.
    /// Returns the former address.
    async fn change_to_taken_address(&self) -> Result<String> {
        self.mirror.mailman.create_list("others").await?;
        self.mirror.mailman.subscribe("others.lists.example.org", "taken@example.org", "member").await?;
        let member = self.members()[0];
        let before = self.address(member);
        self.set(member, "Email", json!("taken@example.org"));
        Ok(before)
    }

    async fn roster(&self) -> Result<BTreeSet<String>> {
        Ok(self.mirror.mailman.roster(LIST, "member").await?.into_keys().collect())
    }

    /// Returns the id of a membership.
    async fn membership(&self, address: &str) -> Result<String> {
        let memberships = self.mirror.mailman.memberships(LIST).await?;
        let found = memberships.into_iter().find(|(_, of)| of == address);
        Ok(found.context("the address is not subscribed")?.0)
    }

    /// Returns a preference of a membership.
    async fn preference(&self, address: &str, name: &str) -> Result<Value> {
        let path = format!("members/{}/preferences", self.membership(address).await?);
        Ok(self.mirror.mailman.request(Method::GET, &path, None).await?.1[name].clone())
    }

    async fn choose(&self, address: &str, name: &str, value: &str) -> Result<()> {
        let path = format!("members/{}/preferences", self.membership(address).await?);
        let (status, _) = self.mirror.mailman.request(Method::PATCH, &path, Some(json!({name: value}))).await?;
        assert_eq!(status, 204);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ledger_is_sealed_and_reported() -> Result<()> {
    let env = Env::start(12, json!({}), &[]).await?;
    let report = env.run().await?;
    assert_eq!(report["status"], "ok", "{report}");
    assert_eq!(
        (&report["ledger"]["people"], &report["ledger"]["read"], &report["ledger"]["pass"]),
        (&json!(12), &json!(12), &json!("complete")),
        "{report}"
    );
    let sealed = std::fs::read(env.ledger())?;
    let text = String::from_utf8_lossy(&sealed);
    assert!(env.members().iter().all(|member| !text.contains(&env.address(*member))));
    // A dry run takes no claim.
    let report = env.mirror.run(json!({"dry_run": true})).await?;
    assert_eq!((&report["status"], &report["ledger"]["people"]), (&json!("ok"), &json!(12)), "{report}");
    assert_eq!(env.run().await?["status"], "ok");
    assert_eq!(env.mirror.mailman.outgoing_emails()?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_address_keeps_its_membership_and_preferences() -> Result<()> {
    let env = Env::start(12, json!({}), &[]).await?;
    assert_eq!(env.run().await?["status"], "ok");
    let member = env.members()[0];
    let before = env.address(member);
    env.choose(&before, "delivery_mode", "mime_digests").await?;
    // This is for all lists of the address.
    let of_address = |address: &str| format!("addresses/{address}/preferences");
    let chosen = json!({"receive_own_postings": "false"});
    assert_eq!(env.mirror.mailman.request(Method::PATCH, &of_address(&before), Some(chosen)).await?.0, 204);
    let id = env.membership(&before).await?;
    env.set(member, "Email", json!("new.address@example.org"));
    let report = env.run().await?;
    let entry = list(&report, LIST);
    assert_eq!(
        (&entry["status"], &entry["moved"], &entry["subscribed"], &entry["unsubscribed"]),
        (&json!("ok"), &json!(1), &json!(0), &json!(0)),
        "{report}"
    );
    assert!(!env.roster().await?.contains(&before));
    assert_eq!(env.membership("new.address@example.org").await?, id);
    assert_eq!(env.preference("new.address@example.org", "delivery_mode").await?, "mime_digests");
    let (_, chosen) = env.mirror.mailman.request(Method::GET, &of_address("new.address@example.org"), None).await?;
    assert_eq!(chosen["receive_own_postings"], false, "{chosen}");
    assert_eq!(env.run().await?["status"], "ok");
    assert_eq!(env.mirror.mailman.outgoing_emails()?, 0, "no one is mailed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn former_address_leaves_if_its_membership_cannot_be_moved() -> Result<()> {
    let env = Env::start(12, json!({}), &[]).await?;
    assert_eq!(env.run().await?["status"], "ok");
    let before = env.change_to_taken_address().await?;
    let report = env.run().await?;
    let entry = list(&report, LIST);
    // The former address is still there.
    assert_eq!((&entry["status"], &entry["moved"]), (&json!("unfinished"), &json!(0)), "{report}");
    assert!(entry["reason"].as_str().is_some_and(|reason| reason.contains("could not be moved")), "{report}");
    assert_eq!(env.run().await?["status"], "ok");
    let roster = env.roster().await?;
    assert!(roster.contains("taken@example.org") && !roster.contains(&before));

    // A banned address doesn't join either.
    let bans = format!("lists/{LIST}/bans");
    env.mirror.mailman.request(Method::POST, &bans, Some(json!({"email": "banned@example.org"}))).await?;
    let member = env.members()[1];
    let before = env.address(member);
    env.set(member, "Email", json!("banned@example.org"));
    assert_eq!(list(&env.run().await?, LIST)["unsubscribed"], 0);
    assert!(env.roster().await?.contains(&before));
    let report = env.run().await?;
    let entry = list(&report, LIST);
    assert_eq!((&entry["unsubscribed"], &entry["rejected"]["banned"]), (&json!(1), &json!(1)), "{report}");
    let roster = env.roster().await?;
    assert!(!roster.contains(&before) && !roster.contains("banned@example.org"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn former_address_stays_while_the_changed_one_fails() -> Result<()> {
    let (env, proxy) = Env::filled(12, json!({}), &[("MAILMAN_RETRY_SECONDS", "1")]).await?;
    let before = env.change_to_taken_address().await?;
    let subscription = "\"send_welcome_message\":\"false\",\"subscriber\":\"taken@example.org\"";
    proxy.fail(subscription, usize::MAX, HttpFault::Respond(500, "<html></html>"));
    for run in 1..=3 {
        let report = env.run().await?;
        assert!(env.roster().await?.contains(&before), "run {run}: {report}");
        let tried = count(&proxy.requests(), subscription);
        assert!(tried >= run, "run {run}: {report}");
    }
    proxy.clear_faults();
    env.run().await?;
    assert_eq!(env.run().await?["status"], "ok");
    let roster = env.roster().await?;
    assert!(roster.contains("taken@example.org") && !roster.contains(&before));
    Ok(())
}

/// Changes the addresses of members, and returns the former and the new ones.
fn change_addresses(env: &Env, members: &[Uuid], name: &str) -> Vec<(String, String)> {
    let change = |(number, member): (usize, &Uuid)| {
        let (before, after) = (env.address(*member), format!("{name}{number}@example.org"));
        env.set(*member, "Email", json!(after));
        (before, after)
    };
    members.iter().enumerate().map(change).collect()
}

/// Lets a member leave, and returns the address.
fn deactivate(env: &Env, member: Uuid) -> String {
    env.set(member, "Active", json!(false));
    env.address(member)
}

/// Returns the number of requests with this part in their method, path or body.
fn count(requests: &[RecordedRequest], part: &str) -> usize {
    requests.iter().filter(|request| request.line.contains(part) || request.body.contains(part)).count()
}

const PROBLEM: &str = r#"{"type": "about:blank", "title": "Forbidden", "status": 403}"#;

#[tokio::test(flavor = "multi_thread")]
async fn move_that_fails_stops_nothing_else_and_is_tried_again() -> Result<()> {
    let limits = json!({"max_removal_percent": 100});
    let (env, proxy) = Env::filled(50, limits, &[("MAILMAN_RETRY_SECONDS", "1")]).await?;
    // The requests of a move that name the changed address, in their order.
    let requests: [fn(&str) -> String; 5] = [
        |address| format!("\"role\":\"member\",\"subscriber\":\"{address}\""),
        |address| format!("\"email\":\"{address}\""),
        |address| format!("/addresses/{address}/verify"),
        |address| format!("/addresses/{address}/preferences"),
        |address| format!("\"address\":\"{address}\""),
    ];
    let failures = requests.iter().map(|request| (request, HttpFault::Respond(500, "<html></html>")));
    // A proxy refuses a body, or a method.
    let [first, _, verify, _, last] = &requests;
    let refusals = [first, last]
        .into_iter()
        .flat_map(|request| ["<html></html>", PROBLEM].map(|body| (request, HttpFault::Respond(403, body))));
    let cases = failures.chain(refusals).chain([(verify, HttpFault::DropResponse)]);
    for (number, (members, (request, fault))) in env.members().chunks_exact(3).zip(cases).enumerate() {
        // The preferences of an address are only read if someone has chosen any.
        let failing = env.address(members[0]);
        let chosen = Some(json!({"receive_own_postings": "false"}));
        let path = format!("addresses/{failing}/preferences");
        assert_eq!(env.mirror.mailman.request(Method::PATCH, &path, chosen).await?.0, 204);
        let id = env.membership(&failing).await?;
        let changed = change_addresses(&env, &members[..2], &format!("changed{number}."));
        let leaver = deactivate(&env, members[2]);
        let part = request(&changed[0].1);
        let what = format!("case {number}, {part}");
        proxy.clear_requests();
        proxy.fail(&part, usize::MAX, fault);
        let report = env.run().await?;
        let entry = list(&report, LIST);
        assert_eq!(
            (&entry["status"], &entry["moved"], &entry["subscribed"], &entry["unsubscribed"]),
            (&json!("partial"), &json!(1), &json!(0), &json!(1)),
            "{what}: {report}"
        );
        let reason = entry["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("of 1 address were not moved"), "{what}: {report}");
        assert!(!reason.contains("may process it"), "{what}: no request that moves it is open: {report}");
        let roster = env.roster().await?;
        assert!(roster.contains(&failing) && !roster.contains(&changed[0].1), "{what}");
        assert!(roster.contains(&changed[1].1) && !roster.contains(&leaver), "{what}");
        let tries = count(&proxy.requests(), &part);
        assert!((1..=10).contains(&tries), "{what}: tried {tries} times");
        proxy.clear_faults();
        let report = env.run().await?;
        assert_eq!((&report["status"], &list(&report, LIST)["moved"]), (&json!("ok"), &json!(1)), "{what}: {report}");
        assert_eq!(env.membership(&changed[0].1).await?, id, "{what}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn move_that_fails_does_not_use_up_the_time_for_retries() -> Result<()> {
    let limits = json!({"max_removal_percent": 100});
    let (env, proxy) = Env::filled(40, limits, &[("MAILMAN_RETRY_SECONDS", "20")]).await?;
    let changed = change_addresses(&env, &env.members()[..15], "changed");
    let failing = format!("\"address\":\"{}\"", changed[0].1);
    proxy.fail(&failing, usize::MAX, HttpFault::Respond(500, "<html></html>"));
    let report = env.run().await?;
    assert_eq!(list(&report, LIST)["moved"], 14, "{report}");
    let requests = proxy.requests();
    let moves: Vec<&str> =
        requests.iter().map(|request| request.body.as_str()).filter(|body| body.contains("\"address\":")).collect();
    let mut since_first = moves.iter().skip_while(|body| !body.contains(&failing));
    let is_last = since_first.all(|body| body.contains(&failing));
    // The order is random. If it is the last one, nothing shows that Mailman works for others.
    assert!(is_last || count(&requests, &failing) == 5, "tried {} times", count(&requests, &failing));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn additions_and_removals_go_on_if_no_membership_can_be_moved() -> Result<()> {
    const CHANGED: usize = 10;
    let limits = json!({"max_removal_percent": 100});
    let (env, proxy) = Env::filled(40, limits, &[("MAILMAN_RETRY_SECONDS", "1")]).await?;
    let members = env.members();
    let changed = change_addresses(&env, &members[..CHANGED], "changed");
    let leaver = deactivate(&env, members[CHANGED]);
    // Such as a proxy that lets no PATCH pass. If Mailman fails, and nothing else is to be done, the list has failed.
    let respond = |status| HttpFault::Respond(status, "<html></html>");
    for (fault, expected) in
        [(HttpFault::Later(429, 300), "partial"), (respond(403), "partial"), (respond(500), "failed")]
    {
        proxy.clear_faults();
        proxy.clear_requests();
        proxy.fail("PATCH /3.1/members", usize::MAX, fault);
        let report = env.run().await?;
        let entry = list(&report, LIST);
        assert_eq!(
            (&entry["status"], &entry["moved"], &entry["subscribed"]),
            (&json!(expected), &json!(0), &json!(0)),
            "{report}"
        );
        let reason = entry["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("of 10 addresses were not moved"), "{report}");
        assert_eq!(reason.matches("The next run retries").count() + reason.matches("Check").count(), 1, "{report}");
        let roster = env.roster().await?;
        assert!(changed.iter().all(|(before, _)| roster.contains(before)), "{expected}: {report}");
        assert!(!roster.contains(&leaver), "{expected}: {report}");
        let tries = count(&proxy.requests(), "PATCH /3.1/members");
        assert!(tries <= 12, "{expected}: tried {tries} times");
    }
    proxy.clear_faults();
    let report = env.run().await?;
    assert_eq!((&report["status"], &list(&report, LIST)["moved"]), (&json!("ok"), &json!(CHANGED)), "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn moves_that_always_fail_do_not_keep_others_from_being_tried() -> Result<()> {
    let limits = json!({"max_removal_percent": 100});
    let (env, proxy) = Env::filled(40, limits, &[]).await?;
    let mut changed = change_addresses(&env, &env.members()[..10], "changed");
    changed.sort();
    for (_, after) in &changed[..7] {
        proxy.fail(&format!("\"subscriber\":\"{after}\""), usize::MAX, HttpFault::Respond(403, "<html></html>"));
    }
    // At least every second run moves someone.
    for _ in 0..20 {
        env.run().await?;
        let roster = env.roster().await?;
        if changed[7..].iter().all(|(_, after)| roster.contains(after)) {
            return Ok(());
        }
    }
    bail!("the last three were never moved")
}

#[tokio::test(flavor = "multi_thread")]
async fn address_that_mailman_does_not_find_joins_with_a_new_membership() -> Result<()> {
    let (env, proxy) = Env::filled(40, json!({}), &[]).await?;
    let changed = change_addresses(&env, &env.members()[..1], "changed");
    // As for an address with a slash, which Mailman takes for a part of the path.
    proxy.fail("/verify", usize::MAX, HttpFault::Respond(404, r#"{"title": "404 Not Found"}"#));
    let report = env.run().await?;
    let entry = list(&report, LIST);
    assert_eq!((&entry["status"], &entry["subscribed"]), (&json!("unfinished"), &json!(1)), "{report}");
    assert!(entry["reason"].as_str().is_some_and(|reason| reason.contains("could not be moved")), "{report}");
    assert!(env.roster().await?.contains(&changed[0].1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn move_is_made_once_if_its_response_is_lost() -> Result<()> {
    let (env, proxy) = Env::filled(40, json!({}), &[]).await?;
    let members = env.members();
    // Mailman makes the move while the mirror waits. Mail to the former address bounced.
    env.choose(&env.address(members[0]), "delivery_status", "by_bounces").await?;
    let id = env.membership(&env.address(members[0])).await?;
    let changed = change_addresses(&env, &members[..1], "changed");
    proxy.clear_requests();
    proxy.fail("\"address\":", 1, HttpFault::DisconnectThenDeliver(Duration::from_millis(500)));
    let report = env.run().await?;
    assert_eq!((&report["status"], &list(&report, LIST)["moved"]), (&json!("ok"), &json!(1)), "{report}");
    assert_eq!(count(&proxy.requests(), "\"address\":"), 1);
    assert_eq!(env.membership(&changed[0].1).await?, id);
    assert_eq!(env.preference(&changed[0].1, "delivery_status").await?, "enabled");

    // Mailman makes the move after the run.
    let changed = change_addresses(&env, &members[1..2], "late");
    let permit = Arc::new(Semaphore::new(0));
    proxy.clear_requests();
    proxy.fail("\"address\":", 1, HttpFault::TimeOutThenDeliver(permit.clone()));
    let report = env.run().await?;
    let entry = list(&report, LIST);
    assert_eq!((&entry["status"], &entry["moved"], &entry["subscribed"]), (&json!("partial"), &json!(0), &json!(0)));
    assert!(entry["reason"].as_str().is_some_and(|reason| reason.contains("did not respond in time")), "{report}");
    assert_eq!(count(&proxy.requests(), "\"address\":"), 1, "it was sent again, although it may be in progress");
    permit.add_permits(1);
    proxy.wait_for_delayed().await;
    assert!(env.roster().await?.contains(&changed[0].1));
    let report = report_of(env.another_instance(&env.mirror.config)?.invoke(&json!({})).await?)?;
    assert_eq!(report["status"], "ok", "{report}");
    assert_eq!(env.mirror.mailman.memberships(LIST).await?.len(), 40);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn preferences_that_cannot_be_restored_are_not_retried_for_the_whole_run() -> Result<()> {
    let (env, proxy) = Env::filled(12, json!({}), &[("MAILMAN_RETRY_SECONDS", "1")]).await?;
    let member = env.members()[0];
    let address = env.address(member);
    env.choose(&address, "delivery_status", "by_user").await?;
    env.set(member, "Active", json!(false));
    assert_eq!(list(&env.run().await?, LIST)["unsubscribed"], 1);
    env.set(member, "Active", json!(true));
    proxy.clear_requests();
    proxy.fail("/3.1/members/find", usize::MAX, HttpFault::Respond(500, "<html></html>"));
    assert_eq!(list(&env.run().await?, LIST)["subscribed"], 1);
    let tries = count(&proxy.requests(), "/3.1/members/find");
    assert!((1..=10).contains(&tries), "tried {tries} times");
    proxy.clear_faults();
    env.run().await?;
    assert_eq!(env.preference(&address, "delivery_status").await?, "by_user");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn removal_is_undone_with_its_preferences() -> Result<()> {
    let env = Env::start(12, json!({}), &[]).await?;
    assert_eq!(env.run().await?["status"], "ok");
    let member = env.members()[0];
    let address = env.address(member);
    env.choose(&address, "delivery_status", "by_user").await?;
    env.set(member, "Active", json!(false));
    assert_eq!(list(&env.run().await?, LIST)["unsubscribed"], 1);
    assert!(!env.roster().await?.contains(&address));
    env.set(member, "Active", json!(true));
    assert_eq!(list(&env.run().await?, LIST)["subscribed"], 1);
    assert_eq!(env.preference(&address, "delivery_status").await?, "by_user");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_one_is_removed_if_the_ledger_cannot_be_used() -> Result<()> {
    let env = Env::start(12, json!({}), &[]).await?;
    assert_eq!(env.run().await?["status"], "ok");
    let members = env.members();
    let gone = env.address(members[0]);
    env.set(members[0], "Active", json!(false));
    let good = std::fs::read(env.ledger())?;
    let mut rotated = env.mirror.config.clone();
    rotated["ledger_key"] = json!(ledger_key());
    for what in ["damaged", "empty", "another key", "no key"] {
        match what {
            "damaged" => std::fs::write(env.ledger(), &good[..good.len() - 1])?,
            "empty" => std::fs::write(env.ledger(), [])?,
            _ => std::fs::write(env.ledger(), &good)?,
        }
        let mut config = rotated.clone();
        match what {
            "another key" => {}
            "no key" => drop(config.as_object_mut().and_then(|config| config.remove("ledger_key"))),
            _ => config = env.mirror.config.clone(),
        }
        let instance = env.another_instance(&config)?;
        let report = report_of(instance.invoke(&json!({})).await?)?;
        assert_eq!(report["status"], "partial", "{what}: {report}");
        let reason = list(&report, LIST)["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("ledger could not be used"), "{what}: {report}");
        assert!(env.roster().await?.contains(&gone), "{what}: a member was removed");
    }
    std::fs::write(env.ledger(), &good)?;
    assert_eq!(list(&env.run().await?, LIST)["unsubscribed"], 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rotated_key_opens_the_ledger_of_the_former_one() -> Result<()> {
    let env = Env::start(12, json!({}), &[]).await?;
    assert_eq!(env.run().await?["status"], "ok");
    let mut config = env.mirror.config.clone();
    config["ledger_key"] = json!([ledger_key(), config["ledger_key"]]);
    let instance = env.another_instance(&config)?;
    env.set(env.members()[0], "Active", json!(false));
    let report = report_of(instance.invoke(&json!({})).await?)?;
    assert_eq!(list(&report, LIST)["unsubscribed"], 1, "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pass_over_several_runs_fills_the_list() -> Result<()> {
    // Ten calls in each hour, of which one is for the group.
    let env = Env::start(26, json!({}), &[("NOVI_MAX_PER_DAY", "240"), ("NOVI_BULK", "off")]).await?;
    let mut sizes = Vec::new();
    for expected in ["unfinished", "unfinished", "ok"] {
        let report = env.run().await?;
        assert_eq!(report["status"], expected, "{report}");
        assert_eq!(report["ledger"]["pass"], if expected == "ok" { "complete" } else { "under_way" }, "{report}");
        assert!(report["novi_calls"].as_u64() <= Some(10), "{report}");
        sizes.push(env.roster().await?.len());
    }
    assert_eq!(sizes, [9, 18, 26]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn member_who_left_by_themselves_stays_away_and_needs_a_ledger_for_that() -> Result<()> {
    let env = Env::start(12, json!({"resubscribe": false}), &[]).await?;
    assert_eq!(env.run().await?["status"], "ok");
    let address = env.address(env.members()[0]);
    let path = format!("members/{}", env.membership(&address).await?);
    let (status, _) = env.mirror.mailman.request(Method::DELETE, &path, None).await?;
    assert_eq!(status, 204);
    let report = env.run().await?;
    let entry = list(&report, LIST);
    assert_eq!((&entry["status"], &entry["skipped"]["left"]), (&json!("ok"), &json!(1)), "{report}");
    assert!(!env.roster().await?.contains(&address));
    // Without a ledger, the mapping is an error.
    let instance = env.mirror.another_instance(&[])?;
    let report = report_of(instance.invoke(&json!({})).await?)?;
    assert_eq!(report["status"], "failed", "{report}");
    assert!(list(&report, LIST)["reason"].as_str().is_some_and(|reason| reason.contains("Set LEDGER")), "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_run_finds_the_claim() -> Result<()> {
    let env = Env::start(12, json!({}), &[]).await?;
    let instance = env.another_instance(&env.mirror.config)?;
    // The first run waits for Novi while the second one starts.
    env.mirror.novi.state().fail("/groups/", 1, tests::novi::NoviFault::Delay(Duration::from_millis(1_500)));
    let (first, second) = tokio::join!(env.run(), async {
        env.mirror.novi.wait_for("/groups/", 1).await;
        report_of(instance.invoke(&json!({})).await?)
    });
    let (first, second) = (first?, second?);
    assert_eq!((&first["status"], &second["status"]), (&json!("ok"), &json!("failed")), "{first} {second}");
    assert!(list(&second, LIST)["reason"].as_str().is_some_and(|reason| reason.contains("claimed the ledger")));
    // The claim ends with the run.
    let report = report_of(instance.invoke(&json!({})).await?)?;
    assert_eq!(report["status"], "ok", "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ledger_is_kept_in_s3() -> Result<()> {
    let moto = Moto::start()?;
    let location = format!("s3://{}/ledger", moto.create_bucket().await?);
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), 12);
    let variables = [
        ("LEDGER", location.as_str()),
        ("AWS_ENDPOINT_URL_S3", &moto.url()),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
    ];
    let mirror = Mirror::start(directory, json!([{"group_guid": group, "list_id": LIST}]), &variables).await?;
    mirror.mailman.create_list("members").await?;
    for _ in 0..2 {
        let report = mirror.run(json!({})).await?;
        assert_eq!((&report["status"], &report["ledger"]["people"]), (&json!("ok"), &json!(12)), "{report}");
    }
    Ok(())
}
