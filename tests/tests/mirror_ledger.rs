//! The mirror with a ledger: what it remembers between runs, and what it does if the ledger can't be used.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result};
use fastrand::Rng;
use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::aws::Moto;
use tests::directory::Directory;
use tests::function::Function;
use tests::harness::{Mirror, ledger_key, list, report as report_of};
use tests::http_proxy::{HttpFault, HttpProxy};
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
    let mut env = Env::start(12, json!({}), &[("MAILMAN_RETRY_SECONDS", "1")]).await?;
    let proxy = env.mirror.insert_proxy().await?;
    assert_eq!(env.run().await?["status"], "ok");
    let before = env.change_to_taken_address().await?;
    let subscription = "\"send_welcome_message\":\"false\",\"subscriber\":\"taken@example.org\"";
    proxy.fail(subscription, usize::MAX, HttpFault::Respond(500, "<html></html>"));
    for run in 1..=3 {
        let report = env.run().await?;
        assert!(env.roster().await?.contains(&before), "run {run}: {report}");
        let tried = proxy.requests().iter().filter(|request| request.body.contains(subscription)).count();
        assert!(tried >= run, "run {run}: {report}");
    }
    proxy.clear_faults();
    env.run().await?;
    assert_eq!(env.run().await?["status"], "ok");
    let roster = env.roster().await?;
    assert!(roster.contains("taken@example.org") && !roster.contains(&before));
    Ok(())
}

/// Fails requests that contain `part`, while two members change their addresses and a third one leaves. Checks that only the
/// failing move waits, and that it is made when nothing fails any more.
async fn check_that_a_failing_move_stops_nothing_else(
    env: &Env,
    proxy: &HttpProxy,
    part: &str,
    changed: &str,
    other: &str,
    members: &[Uuid],
    status: u16,
) -> Result<()> {
    let what = format!("{status} for {part}");
    let [failing, moving, leaving] = [0, 1, 2].map(|n| env.address(members[n]));
    let id = env.membership(&failing).await?;
    env.set(members[0], "Email", json!(changed));
    env.set(members[1], "Email", json!(other));
    env.set(members[2], "Active", json!(false));
    proxy.clear_requests();
    proxy.fail(part, usize::MAX, HttpFault::Respond(status, "<html></html>"));
    let report = env.run().await?;
    let entry = list(&report, LIST);
    assert_eq!(
        (&entry["status"], &entry["moved"], &entry["subscribed"], &entry["unsubscribed"]),
        (&json!("partial"), &json!(1), &json!(0), &json!(1)),
        "{what}: {report}"
    );
    assert!(entry["reason"].as_str().is_some_and(|reason| reason.contains("of 1 address were not moved")), "{report}");
    let roster = env.roster().await?;
    assert!(roster.contains(&failing) && !roster.contains(changed), "{what}");
    assert!(roster.contains(other) && !roster.contains(&moving) && !roster.contains(&leaving), "{what}");
    let requests = proxy.requests();
    let tries = requests.iter().filter(|request| request.line.contains(part) || request.body.contains(part)).count();
    assert!((1..=10).contains(&tries), "{what}: tried {tries} times");
    proxy.clear_faults();
    let report = env.run().await?;
    assert_eq!((&report["status"], &list(&report, LIST)["moved"]), (&json!("ok"), &json!(1)), "{what}: {report}");
    assert_eq!(env.membership(changed).await?, id, "{what}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn move_that_fails_stops_nothing_else_and_is_tried_again() -> Result<()> {
    let limits = json!({"max_removal_percent": 100});
    let mut env = Env::start(40, limits, &[("MAILMAN_RETRY_SECONDS", "1")]).await?;
    let proxy = env.mirror.insert_proxy().await?;
    assert_eq!(env.run().await?["status"], "ok");
    let members = env.members();
    // The requests of a move that name the changed address, in their order.
    let requests: [fn(&str) -> String; 5] = [
        |address| format!("\"role\":\"member\",\"subscriber\":\"{address}\""),
        |address| format!("\"email\":\"{address}\""),
        |address| format!("/addresses/{address}/verify"),
        |address| format!("/addresses/{address}/preferences"),
        |address| format!("\"address\":\"{address}\""),
    ];
    let cases = requests.iter().flat_map(|request| [500, 403].map(|status| (request, status)));
    for (number, (request, status)) in cases.enumerate() {
        let [changed, other] = ["changed", "other"].map(|name| format!("{name}{number}@example.org"));
        let members = &members[number * 3..];
        // The preferences of an address are only read if someone has chosen any.
        let path = format!("addresses/{}/preferences", env.address(members[0]));
        let chosen = json!({"receive_own_postings": "false"});
        assert_eq!(env.mirror.mailman.request(Method::PATCH, &path, Some(chosen)).await?.0, 204);
        check_that_a_failing_move_stops_nothing_else(
            &env,
            &proxy,
            &request(&changed),
            &changed,
            &other,
            members,
            status,
        )
        .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn additions_and_removals_go_on_if_no_membership_can_be_moved() -> Result<()> {
    const CHANGED: usize = 10;
    let limits = json!({"max_removal_percent": 100});
    let mut env = Env::start(40, limits, &[("MAILMAN_RETRY_SECONDS", "1")]).await?;
    let proxy = env.mirror.insert_proxy().await?;
    assert_eq!(env.run().await?["status"], "ok");
    let members = env.members();
    let before: Vec<String> = members[..CHANGED].iter().map(|member| env.address(*member)).collect();
    for (number, member) in members[..CHANGED].iter().enumerate() {
        env.set(*member, "Email", json!(format!("changed{number}@example.org")));
    }
    let leaver = env.address(members[CHANGED]);
    env.set(members[CHANGED], "Active", json!(false));
    // Such as a proxy that lets no PATCH pass.
    for status in [500, 403] {
        proxy.clear_requests();
        proxy.fail("PATCH /3.1/members", usize::MAX, HttpFault::Respond(status, "<html></html>"));
        let report = env.run().await?;
        let entry = list(&report, LIST);
        assert_eq!((&entry["moved"], &entry["subscribed"]), (&json!(0), &json!(0)), "{report}");
        assert!(
            entry["reason"].as_str().is_some_and(|reason| reason.contains("of 10 addresses were not moved")),
            "{report}"
        );
        let roster = env.roster().await?;
        assert!(before.iter().all(|address| roster.contains(address)), "{status}: {report}");
        assert!(!roster.contains(&leaver), "{status}: {report}");
        let tries = proxy.requests().iter().filter(|request| request.line.starts_with("PATCH")).count();
        assert!(tries <= 10, "{status}: tried {tries} times");
        // If nothing at all can be written, the list has failed.
        assert_eq!(entry["status"], if status == 500 { "partial" } else { "failed" }, "{report}");
    }
    proxy.clear_faults();
    let report = env.run().await?;
    assert_eq!((&report["status"], &list(&report, LIST)["moved"]), (&json!("ok"), &json!(CHANGED)), "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn preferences_that_cannot_be_restored_are_not_retried_for_the_whole_run() -> Result<()> {
    let mut env = Env::start(12, json!({}), &[("MAILMAN_RETRY_SECONDS", "1")]).await?;
    let proxy = env.mirror.insert_proxy().await?;
    assert_eq!(env.run().await?["status"], "ok");
    let member = env.members()[0];
    let address = env.address(member);
    env.choose(&address, "delivery_status", "by_user").await?;
    env.set(member, "Active", json!(false));
    assert_eq!(list(&env.run().await?, LIST)["unsubscribed"], 1);
    env.set(member, "Active", json!(true));
    proxy.clear_requests();
    proxy.fail("/3.1/members/find", usize::MAX, HttpFault::Respond(500, "<html></html>"));
    assert_eq!(list(&env.run().await?, LIST)["subscribed"], 1);
    let tries = proxy.requests().iter().filter(|request| request.line.contains("/find")).count();
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
    env.mirror.novi.state().fail("/groups/", 1, tests::novi::NoviFault::Delay(std::time::Duration::from_millis(1_500)));
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
