//! The mirror while Mailman fails: a real core on each of its databases, crashed, locked, disconnected and slow.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;
use futures_util::future::try_join_all;
use http::Method;
use serde_json::json;
use tests::directory::Directory;
use tests::harness::{Mirror, list};
use tests::http_proxy::{HttpFault, HttpProxy, RecordedRequest};
use tests::mailman::{Database, Mailman};
use tokio::sync::Semaphore;
use uuid::Uuid;

const LIST: &str = "members.lists.example.org";

/// Mailman's response if its database is locked: a 400.
const LOCKED: &str = r#"{"title": "400 Bad Request", "description": "(sqlite3.OperationalError) database is locked"}"#;

/// Mailman's response if another pending subscription request is discarded while Mailman iterates over the pending
/// requests: a 400.
const VANISHED: &str = r#"{"title": "400 Bad Request", "description": "'NoneType' object is not subscriptable"}"#;

/// Starts a mirror of one list, which is mapped to a group of this number of ordinary members.
async fn start(database: Database, members: usize, variables: &[(&str, &str)]) -> Result<(Mirror, Uuid)> {
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), members);
    let mapping =
        json!({"group_guid": group, "list_id": LIST, "max_removal_percent": 100, "max_growth_percent": 1_000});
    let mappings = json!([mapping]);
    let env = Mirror::start_on(Mailman::start_on(database).await?, directory, mappings, variables).await?;
    env.mailman.create_list("members").await?;
    Ok((env, group))
}

/// Returns the addresses of a group, sorted.
fn addresses(env: &Mirror, group: Uuid) -> BTreeSet<String> {
    let state = env.novi.state();
    state.directory.groups[&group].iter().map(|id| state.directory.address(*id)).collect()
}

/// Checks that the list has each address of the group once, and no others.
async fn assert_members(env: &Mirror, group: Uuid) -> Result<()> {
    let memberships: Vec<String> = env.mailman.memberships(LIST).await?.into_values().collect();
    let members: BTreeSet<String> = memberships.iter().cloned().collect();
    assert_eq!(memberships.len(), members.len(), "an address is subscribed twice");
    assert_eq!(members, addresses(env, group));
    Ok(())
}

/// Checks that no address was posted again without reading the roster first.
fn assert_no_blind_write(requests: &[RecordedRequest]) {
    let mut posted = BTreeSet::new();
    for request in requests {
        if request.line.contains("/roster/member?") && request.status == Some(200) {
            posted.clear();
        } else if request.line.starts_with("POST /3.1/members") {
            let body: serde_json::Value = serde_json::from_str(&request.body).unwrap_or_default();
            let address = body["subscriber"].as_str().unwrap_or_default().to_owned();
            assert!(
                posted.insert(address),
                "an address was posted again without reading the roster first: {requests:?}"
            );
        }
    }
}

/// Adds twelve members and then removes three, while individual requests to Mailman fail.
async fn transient_failures(database: Database) -> Result<()> {
    let (mut env, group) = start(database, 12, &[]).await?;
    let proxy = env.insert_proxy().await?;
    proxy.fail("GET /3.1/lists", 1, HttpFault::DropRequest);
    proxy.fail("GET /3.1/lists", 1, HttpFault::Respond(500, "<html>database is locked</html>"));
    proxy.fail("POST /3.1/members", 1, HttpFault::DropResponse);
    proxy.fail("POST /3.1/members", 1, HttpFault::DropRequest);
    proxy.fail("POST /3.1/members", 1, HttpFault::Respond(400, LOCKED));
    proxy.fail("POST /3.1/members", 1, HttpFault::Respond(500, "<html></html>"));
    proxy.fail("POST /3.1/members", 1, HttpFault::Respond(400, VANISHED));
    let report = env.run(json!({})).await?;
    assert_eq!((&report["status"], &list(&report, LIST)["subscribed"]), (&json!("ok"), &json!(12)), "{report}");
    assert_members(&env, group).await?;
    let requests = proxy.requests();
    assert_no_blind_write(&requests);
    let posts = requests.iter().filter(|request| request.line.starts_with("POST")).count();
    assert_eq!(posts, 12 + 4, "one was applied although its response was lost");

    // Removals: one fails, and one is applied but its response is lost.
    proxy.clear_requests();
    env.novi.state().directory.groups.entry(group).and_modify(|members| members.truncate(9));
    proxy.fail("DELETE", 1, HttpFault::Respond(500, "<html></html>"));
    proxy.fail("DELETE", 1, HttpFault::DropResponse);
    let report = env.run(json!({})).await?;
    assert_eq!((&report["status"], &list(&report, LIST)["unsubscribed"]), (&json!("ok"), &json!(3)), "{report}");
    assert_members(&env, group).await?;
    let requests = proxy.requests();
    assert_eq!(requests.iter().filter(|request| request.line.starts_with("DELETE")).count(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_with_unknown_outcome_are_checked_and_applied_once_on_sqlite() -> Result<()> {
    transient_failures(Database::Sqlite).await
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_with_unknown_outcome_are_checked_and_applied_once_on_postgresql() -> Result<()> {
    transient_failures(Database::Postgres).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: starts MariaDB"]
async fn writes_with_unknown_outcome_are_checked_and_applied_once_on_mariadb() -> Result<()> {
    transient_failures(Database::MariaDb).await
}

/// Adds a thousand members while Mailman crashes ten times.
async fn repeated_crashes(database: Database) -> Result<()> {
    const MEMBERS: usize = 1_000;
    const CRASHES: usize = 10;
    let (mut env, group) = start(database, MEMBERS, &[]).await?;
    let proxy = env.insert_proxy().await?;
    let Mirror { function, mailman, .. } = &mut env;
    let event = json!({});
    let run = function.invoke(&event);
    let crash = async {
        for crash in 1..=CRASHES {
            // The crashes are spread over the run, and happen during its writes.
            proxy.wait_for("POST /3.1/members", crash * MEMBERS / (CRASHES + 1)).await;
            mailman.restart()?;
        }
        anyhow::Ok(())
    };
    let (report, crashed) = tokio::join!(run, crash);
    crashed?;
    let report = report?;
    assert_eq!((&report["status"], &list(&report, LIST)["subscribed"]), (&json!("ok"), &json!(MEMBERS)), "{report}");
    assert_members(&env, group).await?;
    assert_no_blind_write(&proxy.requests());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn thousand_members_join_while_mailman_crashes_ten_times_on_sqlite() -> Result<()> {
    repeated_crashes(Database::Sqlite).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make test does the same on SQLite"]
async fn thousand_members_join_while_mailman_crashes_ten_times_on_postgresql() -> Result<()> {
    repeated_crashes(Database::Postgres).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: starts MariaDB"]
async fn thousand_members_join_while_mailman_crashes_ten_times_on_mariadb() -> Result<()> {
    repeated_crashes(Database::MariaDb).await
}

#[tokio::test(flavor = "multi_thread")]
async fn run_waits_for_a_locked_database() -> Result<()> {
    let (mut env, group) = start(Database::Sqlite, 6, &[]).await?;
    let proxy = env.insert_proxy().await?;
    let lock = env.mailman.lock_database()?;
    let event = json!({});
    // Mailman itself waits for the lock for five seconds. The run must survive the error that follows.
    let unlock = async {
        proxy.wait_for("/roster/member?", 2).await;
        drop(lock);
    };
    let (report, ()) = tokio::join!(env.function.invoke(&event), unlock);
    let report = report?;
    assert_eq!((&report["status"], &list(&report, LIST)["subscribed"]), (&json!("ok"), &json!(6)), "{report}");
    assert_members(&env, group).await?;
    assert_no_blind_write(&proxy.requests());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn address_that_causes_mailman_errors_is_reported_and_does_not_stop_others() -> Result<()> {
    let (mut env, group) = start(Database::Sqlite, 10, &[]).await?;
    let proxy = env.insert_proxy().await?;
    env.mailman.subscribe(LIST, "gone@example.org", "member").await?;
    let members = addresses(&env, group);
    let (failing, subscribed) = (members.iter().next().cloned().unwrap_or_default(), members.iter().next_back());
    env.mailman.subscribe(LIST, subscribed.map_or("", String::as_str), "member").await?;
    proxy.fail(&format!("\"subscriber\":\"{failing}\""), usize::MAX, HttpFault::Respond(500, "<html></html>"));
    let report = env.run(json!({})).await?;
    let entry = list(&report, LIST);
    assert_eq!(
        (&entry["status"], &entry["subscribed"], &entry["unsubscribed"], &entry["rejected"]["other"]),
        (&json!("partial"), &json!(8), &json!(1), &json!(1)),
        "{report}"
    );
    assert!(entry["reason"].as_str().is_some_and(|reason| reason.contains("Mailman rejected 1 address")), "{report}");
    proxy.clear_faults();
    assert_eq!(env.run(json!({})).await?["status"], "ok");
    assert_members(&env, group).await
}

#[tokio::test(flavor = "multi_thread")]
async fn unexplained_rejection_is_retried_with_and_without_the_name_and_then_accepted() -> Result<()> {
    let (mut env, group) = start(Database::Sqlite, 3, &[]).await?;
    let proxy = env.insert_proxy().await?;
    let unexplained =
        format!("\"subscriber\":\"{}\"", addresses(&env, group).iter().next().cloned().unwrap_or_default());
    proxy.fail(&unexplained, usize::MAX, HttpFault::Respond(400, VANISHED));
    let report = env.run(json!({})).await?;
    let entry = list(&report, LIST);
    assert_eq!(
        (&entry["status"], &entry["subscribed"], &entry["rejected"]["other"]),
        (&json!("partial"), &json!(2), &json!(1)),
        "{report}"
    );
    let requests = proxy.requests();
    assert_eq!(requests.iter().filter(|request| request.body.contains(&unexplained)).count(), 3, "{requests:?}");
    assert_no_blind_write(&requests);
    Ok(())
}

/// Mailman may keep processing for minutes: a second request for the address would subscribe it twice.
#[tokio::test(flavor = "multi_thread")]
async fn address_with_a_proxy_timeout_is_left_to_the_next_run() -> Result<()> {
    let (mut env, group) = start(Database::Sqlite, 5, &[]).await?;
    let proxy = env.insert_proxy().await?;
    let slow = addresses(&env, group).into_iter().next().unwrap_or_default();
    let deliver = Arc::new(Semaphore::new(0));
    proxy.fail(&format!("\"subscriber\":\"{slow}\""), 1, HttpFault::TimeOutThenDeliver(Arc::clone(&deliver)));
    let report = env.run(json!({})).await?;
    let entry = list(&report, LIST);
    assert_eq!((&entry["status"], &entry["subscribed"]), (&json!("partial"), &json!(4)), "{report}");
    assert!(
        entry["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("did not respond in time to the subscription of 1 address")),
        "{report}"
    );
    let posts = proxy.requests().iter().filter(|request| request.body.contains(&slow)).count();
    assert_eq!(posts, 1, "the request isn't repeated");
    deliver.add_permits(1);
    // Mailman now processes the request that timed out. The address is subscribed, and the next run sees that.
    while env.mailman.memberships(LIST).await?.len() < 5 {
        tokio::task::yield_now().await;
    }
    let report = env.run(json!({})).await?;
    assert_eq!((&report["status"], &list(&report, LIST)["subscribed"]), (&json!("ok"), &json!(0)), "{report}");
    assert_members(&env, group).await
}

/// The connection is lost, and Mailman processes the request a moment later.
#[tokio::test(flavor = "multi_thread")]
async fn address_with_a_lost_response_is_retried_last_after_mailman_has_settled() -> Result<()> {
    try_join_all([Database::Sqlite, Database::Postgres].map(async |database| {
        let (mut env, group) = start(database, 8, &[]).await?;
        let proxy = env.insert_proxy().await?;
        proxy.fail("POST /3.1/members", 3, HttpFault::DisconnectThenDeliver(Duration::from_secs(2)));
        let report = env.run(json!({})).await?;
        assert_eq!((&report["status"], &list(&report, LIST)["subscribed"]), (&json!("ok"), &json!(8)), "{report}");
        assert_members(&env, group).await?;
        let posts = proxy.requests().iter().filter(|request| request.line.starts_with("POST")).count();
        assert_eq!(posts, 8, "the first requests were applied eventually");
        Ok(())
    }))
    .await
    .map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn list_fails_if_mailman_can_write_nothing() -> Result<()> {
    let (mut env, _) = start(Database::Sqlite, 1, &[("MAILMAN_RETRY_SECONDS", "5")]).await?;
    let proxy = env.insert_proxy().await?;
    proxy.fail("POST", usize::MAX, HttpFault::Respond(500, "<html>no space left</html>"));
    let report = env.run(json!({})).await?;
    assert_eq!(list(&report, LIST)["status"], "failed", "an alarm must see it: {report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stops_early_when_peer_is_not_mailman() -> Result<()> {
    let (mut env, _) = start(Database::Sqlite, 60, &[]).await?;
    let proxy = env.insert_proxy().await?;
    proxy.fail("POST", usize::MAX, HttpFault::Respond(418, "teapot"));
    let report = env.run(json!({})).await?;
    let entry = list(&report, LIST);
    assert_eq!(entry["status"], "failed", "{report}");
    assert!(entry["reason"].as_str().is_some_and(|reason| reason.contains("418")), "{report}");
    assert!(proxy.requests().iter().filter(|request| request.line.starts_with("POST")).count() < 10);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicate_memberships_are_removed_for_leavers_and_reported_for_members() -> Result<()> {
    let (env, group) = start(Database::Sqlite, 4, &[]).await?;
    env.run(json!({})).await?;
    let stays = addresses(&env, group).into_iter().next().unwrap_or_default();
    let leaves = "gone@example.org".to_owned();
    env.mailman.insert_members(LIST, [stays.clone(), leaves.clone(), leaves.clone(), leaves.clone()])?;
    assert_eq!(env.mailman.memberships(LIST).await?.len(), 8);
    let report = env.run(json!({})).await?;
    let entry = list(&report, LIST);
    assert_eq!(
        (&entry["status"], &entry["roster"], &entry["unsubscribed"]),
        (&json!("partial"), &json!(5), &json!(1)),
        "{report}"
    );
    let reason = entry["reason"].as_str().unwrap_or_default();
    assert!(reason.starts_with("The roster contains addresses that are subscribed more than once (1)"), "{reason}");
    let remaining: Vec<String> = env.mailman.memberships(LIST).await?.into_values().collect();
    assert_eq!((remaining.len(), remaining.contains(&leaves)), (5, false));

    // The remedy from the documentation.
    let query = json!({"list_id": LIST, "subscriber": stays});
    let (_, found) = env.mailman.request(Method::POST, "members/find", Some(query)).await?;
    let memberships = found["entries"].as_array().cloned().unwrap_or_default();
    assert_eq!(memberships.len(), 2, "{found}");
    let extra = memberships[1]["member_id"].as_str().unwrap_or_default();
    let (status, _) = env.mailman.request(Method::DELETE, &format!("members/{extra}"), None).await?;
    assert_eq!(status, 204);
    assert_eq!(env.run(json!({})).await?["status"], "ok");
    assert_members(&env, group).await
}

#[tokio::test(flavor = "multi_thread")]
async fn removals_are_batched_by_five_hundred_and_affect_no_other_member() -> Result<()> {
    let (mut env, group) = start(Database::Sqlite, 5, &[]).await?;
    let proxy = env.insert_proxy().await?;
    let leaving: Vec<String> = (0..1_100).map(|n| format!("leaver{n:04}@example.org")).collect();
    env.mailman.insert_members(LIST, leaving.iter().cloned().chain(addresses(&env, group)))?;
    let before = env.mailman.memberships(LIST).await?;
    let report = env.run(json!({})).await?;
    assert_eq!((&report["status"], &list(&report, LIST)["unsubscribed"]), (&json!("ok"), &json!(1_100)), "{report}");
    let mut sizes = Vec::new();
    for request in proxy.requests().iter().filter(|request| request.line.starts_with("DELETE")) {
        let body: serde_json::Value = serde_json::from_str(&request.body)?;
        let emails = body["emails"].as_array().cloned().unwrap_or_default();
        assert!(emails.iter().all(|email| leaving.iter().any(|leaver| email == leaver)));
        sizes.push(emails.len());
    }
    assert_eq!(sizes, [500, 500, 100]);
    // Remaining members weren't unsubscribed in between.
    let after = env.mailman.memberships(LIST).await?;
    assert!(after.iter().all(|(id, address)| before.get(id) == Some(address)));
    assert_members(&env, group).await
}

/// Four subscriptions run at a time, and never two for the same address.
#[tokio::test(flavor = "multi_thread")]
async fn four_addresses_are_subscribed_concurrently() -> Result<()> {
    let (mut env, group) = start(Database::Postgres, 40, &[]).await?;
    let proxy: HttpProxy = env.insert_proxy().await?;
    assert_eq!(env.run(json!({})).await?["status"], "ok");
    assert_members(&env, group).await?;
    assert_eq!(proxy.max_concurrent("POST /3.1/members"), 4);
    let posts = proxy.requests().into_iter().filter(|request| request.line.starts_with("POST"));
    let distinct: BTreeSet<String> = posts.clone().map(|request| request.body).collect();
    assert_eq!((posts.count(), distinct.len()), (40, 40));
    Ok(())
}

/// Addresses that fail for reasons of their own, run after run, keep no one else on the list.
#[tokio::test(flavor = "multi_thread")]
async fn removals_do_not_wait_for_additions_that_always_fail() -> Result<()> {
    let (mut env, group) = start(Database::Sqlite, 9, &[("MAILMAN_RETRY_SECONDS", "3")]).await?;
    let proxy = env.insert_proxy().await?;
    let failing: Vec<String> = addresses(&env, group).into_iter().take(3).collect();
    let mut subscribed = 6;
    for (status, leaver) in [(500, "one@example.org"), (500, "two@example.org"), (403, "three@example.org")] {
        env.mailman.subscribe(LIST, leaver, "member").await?;
        proxy.clear_faults();
        for address in &failing {
            let part = format!("\"subscriber\":\"{address}\"");
            proxy.fail(&part, usize::MAX, HttpFault::Respond(status, "<html></html>"));
        }
        let report = env.run(json!({})).await?;
        let entry = list(&report, LIST);
        assert_eq!(
            (&entry["subscribed"], &entry["unsubscribed"]),
            (&json!(subscribed), &json!(1)),
            "{status}: {report}"
        );
        assert_eq!(
            (&entry["status"], &entry["rejected"]["other"]),
            (&json!("partial"), &json!(3)),
            "{status}: {report}"
        );
        assert!(!env.mailman.roster(LIST, "member").await?.contains_key(leaver), "{status}");
        subscribed = 0;
    }
    proxy.clear_faults();
    assert_eq!(env.run(json!({})).await?["status"], "ok");
    assert_members(&env, group).await
}

#[tokio::test(flavor = "multi_thread")]
async fn pending_requests_are_read_once_for_all_addresses() -> Result<()> {
    let (mut env, group) = start(Database::Sqlite, 8, &[]).await?;
    let proxy = env.insert_proxy().await?;
    for address in addresses(&env, group).into_iter().take(5) {
        let request = json!({"list_id": LIST, "subscriber": address});
        assert_eq!(env.mailman.request(Method::POST, "members", Some(request)).await?.0, 202);
    }
    let report = env.run(json!({})).await?;
    assert_eq!((&report["status"], &list(&report, LIST)["subscribed"]), (&json!("ok"), &json!(8)), "{report}");
    assert_members(&env, group).await?;
    let requests = proxy.requests();
    let reads = requests.iter().filter(|request| request.line.starts_with(&format!("GET /3.1/lists/{LIST}/requests")));
    assert_eq!(reads.count(), 1, "{requests:?}");
    Ok(())
}

/// A proxy may answer in Mailman's place.
#[tokio::test(flavor = "multi_thread")]
async fn removal_counts_only_if_mailman_confirms_it() -> Result<()> {
    let (mut env, group) = start(Database::Sqlite, 4, &[("MAILMAN_RETRY_SECONDS", "1")]).await?;
    let proxy = env.insert_proxy().await?;
    env.run(json!({})).await?;
    env.mailman.subscribe(LIST, "gone@example.org", "member").await?;
    for body in [r#"{"gone@example.org": false}"#, "{}", "<html>Please sign in.</html>"] {
        proxy.fail("DELETE", usize::MAX, HttpFault::Respond(200, body));
        let report = env.run(json!({})).await?;
        let entry = list(&report, LIST);
        assert_eq!(entry["unsubscribed"], 0, "{body}: {report}");
        assert_ne!(entry["status"], "ok", "{body}: {report}");
        proxy.clear_faults();
    }
    let report = env.run(json!({})).await?;
    assert_eq!((&report["status"], &list(&report, LIST)["unsubscribed"]), (&json!("ok"), &json!(1)), "{report}");
    assert_members(&env, group).await
}

/// Without a Redis, the instance remembers which addresses Mailman may still be writing.
#[tokio::test(flavor = "multi_thread")]
async fn address_with_an_open_write_is_left_alone_by_later_runs() -> Result<()> {
    let (mut env, group) = start(Database::Sqlite, 4, &[("MAILMAN_RETRY_SECONDS", "1")]).await?;
    let proxy = env.insert_proxy().await?;
    let slow = addresses(&env, group).into_iter().next().unwrap_or_default();
    let deliver = Arc::new(Semaphore::new(0));
    proxy.fail(&format!("\"subscriber\":\"{slow}\""), 1, HttpFault::TimeOutThenDeliver(Arc::clone(&deliver)));
    // A removal that times out is retried in the same run, but not if the next requests fail too.
    env.mailman.subscribe(LIST, "gone@example.org", "member").await?;
    proxy.fail("DELETE", 1, HttpFault::TimeOutThenDeliver(Arc::clone(&deliver)));
    proxy.fail("DELETE", 8, HttpFault::Respond(500, "<html></html>"));
    let report = env.run(json!({})).await?;
    assert_eq!(list(&report, LIST)["subscribed"], 3, "{report}");
    let reason = list(&report, LIST)["reason"].as_str().unwrap_or_default();
    for write in ["subscription of 1 address", "removal of 1 address"] {
        assert!(reason.contains(&format!("did not respond in time to the {write}")), "{reason}");
    }
    proxy.clear_faults();
    proxy.clear_requests();
    let report = env.run(json!({})).await?;
    let entry = list(&report, LIST);
    assert_eq!(
        (&entry["status"], &entry["subscribed"], &entry["unsubscribed"]),
        (&json!("partial"), &json!(0), &json!(0)),
        "{report}"
    );
    assert!(entry["reason"].as_str().is_some_and(|reason| reason.contains("earlier request about 2 addresses")));
    assert!(proxy.requests().iter().all(|request| request.line.starts_with("GET")), "{:?}", proxy.requests());
    deliver.add_permits(2);
    proxy.wait_for_delayed().await;
    assert_eq!(env.run(json!({})).await?["status"], "ok");
    assert_members(&env, group).await
}

/// A member with a changed address would otherwise be on no list.
#[tokio::test(flavor = "multi_thread")]
async fn removals_wait_while_no_subscription_reaches_mailman() -> Result<()> {
    let (mut env, group) = start(Database::Sqlite, 2, &[("MAILMAN_RETRY_SECONDS", "1")]).await?;
    let proxy = env.insert_proxy().await?;
    assert_eq!(env.run(json!({})).await?["status"], "ok");
    let former = {
        let directory = &mut env.novi.state().directory;
        let member = directory.groups[&group][0];
        let former = directory.address(member);
        directory.person(member)["Email"] = json!("changed@example.org");
        former
    };
    for (status, expected) in [(403, "403"), (500, "database or server error")] {
        proxy.fail("POST", usize::MAX, HttpFault::Respond(status, "<html>Forbidden</html>"));
        let report = env.run(json!({})).await?;
        let entry = list(&report, LIST);
        assert_eq!((&entry["status"], &entry["unsubscribed"]), (&json!("failed"), &json!(0)), "{report}");
        assert!(entry["reason"].as_str().is_some_and(|reason| reason.contains(expected)), "{report}");
        assert!(env.mailman.roster(LIST, "member").await?.contains_key(&former));
        proxy.clear_faults();
    }
    // The member's own change is not stopped by another address that always fails.
    let address = {
        let directory = &mut env.novi.state().directory;
        let failing = directory.add(&mut Rng::new());
        directory.groups.entry(group).and_modify(|members| members.push(failing));
        directory.address(failing)
    };
    proxy.fail(&format!("\"subscriber\":\"{address}\""), usize::MAX, HttpFault::Respond(403, "<html></html>"));
    let report = env.run(json!({})).await?;
    let entry = list(&report, LIST);
    assert_eq!(
        (&entry["status"], &entry["subscribed"], &entry["unsubscribed"], &entry["rejected"]["other"]),
        (&json!("partial"), &json!(1), &json!(1), &json!(1)),
        "{report}"
    );
    let roster = env.mailman.roster(LIST, "member").await?;
    assert!(roster.contains_key("changed@example.org") && !roster.contains_key(&former));
    Ok(())
}

/// The time for retries is for the whole run, not for each list.
#[tokio::test(flavor = "multi_thread")]
async fn lists_share_the_time_for_retries() -> Result<()> {
    const LISTS: usize = 24;
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), 2);
    let list_id = |n| format!("list{n}.lists.example.org");
    let mappings: Vec<_> = (0..LISTS).map(|n| json!({"group_guid": group, "list_id": list_id(n)})).collect();
    let mut env = Mirror::start(directory, json!(mappings), &[("MAILMAN_RETRY_SECONDS", "3")]).await?;
    for n in 0..LISTS {
        env.mailman.create_list(&format!("list{n}")).await?;
    }
    let proxy = env.insert_proxy().await?;
    // Mailman is down, or its database can't be written.
    for (part, fault) in [("/3.1/", HttpFault::DropRequest), ("POST", HttpFault::Respond(500, "<html></html>"))] {
        proxy.fail(part, usize::MAX, fault);
        let report = env.run(json!({})).await?;
        assert_eq!(report["status"], "failed", "{report}");
        let seconds = report["seconds"].as_f64().unwrap_or_default();
        assert!(seconds < 24.0, "each list has waited by itself: {report}");
        proxy.clear_faults();
    }
    // It is back: nothing is left of the failures.
    let report = env.run(json!({})).await?;
    assert_eq!(report["status"], "ok", "{report}");
    for n in 0..LISTS {
        assert_eq!(env.mailman.memberships(&list_id(n)).await?.len(), 2);
    }
    Ok(())
}

/// Each database has names that it refuses: PostgreSQL NUL, and MariaDB long ones.
#[tokio::test(flavor = "multi_thread")]
async fn name_never_decides_whether_a_member_is_subscribed() -> Result<()> {
    const DATA_ERROR: &str = r#"{"title": "400 Bad Request", "description": "(MySQLdb.DataError) Data too long"}"#;
    let (mut env, group) = start(Database::Sqlite, 4, &[("MAILMAN_RETRY_SECONDS", "20")]).await?;
    {
        let mut state = env.novi.state();
        let members = state.directory.groups[&group].clone();
        let names = ["Unexplained", "Failing", "B\u{0}r\u{2028}e\u{202e}ak\r\n"];
        for (id, name) in members.iter().zip(names) {
            state.directory.person(*id)["FirstName"] = json!(name);
        }
        state.directory.person(members[3])["FirstName"] = json!("x".repeat(3_000));
    }
    let proxy = env.insert_proxy().await?;
    proxy.fail("Unexplained", usize::MAX, HttpFault::Respond(400, DATA_ERROR));
    proxy.fail("Failing", usize::MAX, HttpFault::Respond(500, "<html>"));
    let report = env.run(json!({})).await?;
    assert_eq!((&report["status"], &list(&report, LIST)["subscribed"]), (&json!("ok"), &json!(4)), "{report}");
    assert_members(&env, group).await?;
    let requests = proxy.requests();
    let posted = |request: &RecordedRequest| serde_json::from_str::<serde_json::Value>(&request.body).ok();
    let subscribed = requests.iter().filter(|request| request.status == Some(201)).filter_map(posted);
    let mut names: Vec<String> =
        subscribed.map(|body| body["display_name"].as_str().unwrap_or("no text").to_owned()).collect();
    names.sort();
    assert_eq!(names[..2], ["", ""], "these are subscribed without a name");
    assert!(names[2].starts_with("Break "), "{names:?}");
    assert_eq!(names[3], "x".repeat(100));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn dry_run_says_that_owners_are_mailed_about_each_subscription() -> Result<()> {
    let (env, group) = start(Database::Sqlite, 3, &[]).await?;
    let dry_run = async || anyhow::Ok(list(&env.run(json!({"dry_run": true})).await?, LIST).clone());
    let entry = dry_run().await?;
    assert_eq!((&entry["status"], &entry["subscribed"], &entry["reason"]), (&json!("ok"), &json!(3), &json!(null)));

    let notices = json!({"admin_notify_mchanges": true});
    assert_eq!(env.mailman.request(Method::PATCH, &format!("lists/{LIST}/config"), Some(notices)).await?.0, 204);
    let entry = dry_run().await?;
    assert_eq!((&entry["status"], &entry["subscribed"]), (&json!("ok"), &json!(3)));
    let reason = entry["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("admin_notify_mchanges") && reason.contains("3 mails"), "{entry}");

    // What it says is true.
    env.mailman.subscribe(LIST, "owner@example.org", "owner").await?;
    let before = env.mailman.outgoing_emails()?;
    assert_eq!(env.run(json!({})).await?["status"], "ok");
    assert_members(&env, group).await?;
    assert_eq!(env.mailman.outgoing_emails()? - before, 3);
    // Without subscriptions, no one is mailed.
    assert_eq!(dry_run().await?["reason"], json!(null));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn log_says_which_version_of_mailman_responded() -> Result<()> {
    let (mut env, _) = start(Database::Sqlite, 1, &[("AWS_LAMBDA_LOG_LEVEL", "INFO")]).await?;
    let proxy = env.insert_proxy().await?;
    assert_eq!(env.run(json!({})).await?["status"], "ok");
    assert!(env.function.log().contains(r#""mailman":"3.3.10""#), "{}", env.function.log());
    let versions =
        |proxy: &HttpProxy| proxy.requests().iter().filter(|request| request.line.contains("system/versions")).count();
    assert_eq!(versions(&proxy), 1);

    // The cause of a failure, if it is known.
    const OLD: &str = r#"{"mailman_version": "GNU Mailman 3.2.1 (X)"}"#;
    proxy.fail("/system/versions", usize::MAX, HttpFault::Respond(200, OLD));
    proxy.fail("/roster/member", usize::MAX, HttpFault::Respond(404, r#"{"title": "404 Not Found"}"#));
    let report = env.run(json!({})).await?;
    let reason = list(&report, LIST)["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("3.2.1 is too old"), "{report}");

    // A server that isn't Mailman isn't asked for its version.
    proxy.clear_faults();
    proxy.clear_requests();
    proxy.fail("/3.1/", usize::MAX, HttpFault::Respond(200, "<html>Welcome</html>"));
    assert_eq!(env.run(json!({})).await?["status"], "failed");
    assert_eq!(versions(&proxy), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_mailman_gets_one_request_at_a_time_and_pending_requests_are_counted() -> Result<()> {
    let (mut env, group) = start(Database::Sqlite, 6, &[]).await?;
    for n in 0..3 {
        let request = json!({"list_id": LIST, "subscriber": format!("stranger{n}@example.org")});
        assert_eq!(env.mailman.request(Method::POST, "members", Some(request)).await?.0, 202);
    }
    let proxy = env.insert_proxy().await?;
    let permits = Arc::new(Semaphore::new(0));
    proxy.fail("POST /3.1/members", 3, HttpFault::Hold(Arc::clone(&permits)));
    let answer_slowly = async {
        for count in 1..=3 {
            proxy.wait_for("POST /3.1/members", count).await;
            // How slow Mailman is, and not a wait for anything.
            tokio::time::sleep(Duration::from_millis(2_100)).await;
            let posted = proxy.requests().iter().filter(|request| request.line.starts_with("POST")).count();
            assert_eq!(posted, count, "the others wait while responses take seconds");
            permits.add_permits(1);
        }
    };
    let (report, ()) = tokio::join!(env.run(json!({})), answer_slowly);
    let report = report?;
    let entry = list(&report, LIST);
    assert_eq!((&entry["status"], &entry["subscribed"]), (&json!("ok"), &json!(6)), "{report}");
    assert_members(&env, group).await?;
    let reason = entry["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("Mailman is slow") && reason.contains("pending requests of this list: 3"), "{report}");
    Ok(())
}
