//! The mirror before Mailman's bad moments: a real core on both of its
//! databases, crashed, locked, cut off and slow.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;
use http::Method;
use serde_json::json;
use tests::directory::Directory;
use tests::harness::{Mirror, list};
use tests::http_proxy::{HttpFault, Proxy, Seen};
use tests::mailman::{Database, Mailman};
use tokio::sync::Semaphore;
use uuid::Uuid;

const LIST: &str = "members.lists.example.org";

/// What Mailman says of a database that is busy, as a bad request.
const LOCKED: &str = r#"{"title": "400 Bad Request", "description": "(sqlite3.OperationalError) database is locked"}"#;

/// What it says, as a bad request, where another request waits for somebody
/// and is discarded while it looks through all of them.
const VANISHED: &str = r#"{"title": "400 Bad Request", "description": "'NoneType' object is not subscriptable"}"#;

/// One list, mapped to a group of so many ordinary people.
async fn world(database: Database, people: usize, variables: &[(&str, &str)]) -> Result<(Mirror, Uuid)> {
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), people);
    let mappings = json!([{"group_guid": group, "list_id": LIST, "max_removal_percent": 100}]);
    let world = Mirror::start_on(Mailman::start_on(database).await?, directory, mappings, variables).await?;
    world.mailman.create_list("members").await?;
    Ok((world, group))
}

/// The addresses of a group, in order.
fn addresses(world: &Mirror, group: Uuid) -> BTreeSet<String> {
    let state = world.novi.state();
    state.directory.groups[&group].iter().map(|id| state.directory.address(*id)).collect()
}

/// Everybody of the group is a member, once, and nobody else.
async fn assert_members(world: &Mirror, group: Uuid) -> Result<()> {
    let memberships: Vec<String> = world.mailman.memberships(LIST).await?.into_values().collect();
    let members: BTreeSet<String> = memberships.iter().cloned().collect();
    assert_eq!(memberships.len(), members.len(), "somebody is a member twice");
    assert_eq!(members, addresses(world, group));
    Ok(())
}

/// No address was posted again before the roster was read.
fn assert_no_blind_write(seen: &[Seen]) {
    let mut posted = BTreeSet::new();
    for request in seen {
        if request.line.contains("/roster/member?") && request.status == Some(200) {
            posted.clear();
        } else if request.line.starts_with("POST /3.1/members") {
            let body: serde_json::Value = serde_json::from_str(&request.body).unwrap_or_default();
            let address = body["subscriber"].as_str().unwrap_or_default().to_owned();
            assert!(
                posted.insert(address),
                "an address was posted again, and the roster was not read before: {seen:?}"
            );
        }
    }
}

async fn bad_moments(database: Database) -> Result<()> {
    let (mut world, group) = world(database, 12, &[]).await?;
    let proxy = world.put_proxy().await?;
    proxy.fail("GET /3.1/lists", 1, HttpFault::Lost);
    proxy.fail("GET /3.1/lists", 1, HttpFault::Answer(500, "<html>database is locked</html>"));
    proxy.fail("POST /3.1/members", 1, HttpFault::DoneAndLost);
    proxy.fail("POST /3.1/members", 1, HttpFault::Lost);
    proxy.fail("POST /3.1/members", 1, HttpFault::Answer(400, LOCKED));
    proxy.fail("POST /3.1/members", 1, HttpFault::Answer(500, "<html></html>"));
    proxy.fail("POST /3.1/members", 1, HttpFault::Answer(400, VANISHED));
    let report = world.run(json!({})).await?;
    assert_eq!((&report["status"], &list(&report, LIST)["subscribed"]), (&json!("ok"), &json!(12)), "{report}");
    assert_members(&world, group).await?;
    let seen = proxy.seen();
    assert_no_blind_write(&seen);
    let posts = seen.iter().filter(|request| request.line.starts_with("POST")).count();
    assert_eq!(posts, 12 + 4, "one was done although its answer was lost");

    // Removals: locked, done and not answered.
    proxy.forget();
    world.novi.state().directory.groups.entry(group).and_modify(|members| members.truncate(9));
    proxy.fail("DELETE", 1, HttpFault::Answer(500, "<html></html>"));
    proxy.fail("DELETE", 1, HttpFault::DoneAndLost);
    let report = world.run(json!({})).await?;
    assert_eq!((&report["status"], &list(&report, LIST)["unsubscribed"]), (&json!("ok"), &json!(3)), "{report}");
    assert_members(&world, group).await?;
    let seen = proxy.seen();
    assert_eq!(seen.iter().filter(|request| request.line.starts_with("DELETE")).count(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_bad_moment_leaves_open_is_read_again_and_done_once_on_sqlite() -> Result<()> {
    bad_moments(Database::Sqlite).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_bad_moment_leaves_open_is_read_again_and_done_once_on_postgresql() -> Result<()> {
    bad_moments(Database::Postgres).await
}

/// A thousand join while Mailman crashes ten times.
async fn crashes(database: Database) -> Result<()> {
    const PEOPLE: usize = 1_000;
    const CRASHES: usize = 10;
    let (mut world, group) = world(database, PEOPLE, &[]).await?;
    let proxy = world.put_proxy().await?;
    let Mirror { function, mailman, .. } = &mut world;
    let event = json!({});
    let run = function.invoke(&event);
    let crash = async {
        for crash in 1..=CRASHES {
            // In the middle of the work, wherever that is by then.
            proxy.wait_for("POST /3.1/members", crash * PEOPLE / (CRASHES + 1)).await;
            mailman.restart()?;
        }
        anyhow::Ok(())
    };
    let (report, crashed) = tokio::join!(run, crash);
    crashed?;
    let report = report?;
    assert_eq!((&report["status"], &list(&report, LIST)["subscribed"]), (&json!("ok"), &json!(PEOPLE)), "{report}");
    assert_members(&world, group).await?;
    assert_no_blind_write(&proxy.seen());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_join_while_mailman_crashes_ten_times_on_sqlite() -> Result<()> {
    crashes(Database::Sqlite).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_join_while_mailman_crashes_ten_times_on_postgresql() -> Result<()> {
    crashes(Database::Postgres).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_locked_is_waited_for() -> Result<()> {
    let (mut world, group) = world(Database::Sqlite, 6, &[]).await?;
    let proxy = world.put_proxy().await?;
    let lock = world.mailman.lock_database()?;
    let event = json!({});
    // Mailman itself waits for five seconds; what it says then is what is to be survived.
    let unlock = async {
        proxy.wait_for("/roster/member?", 2).await;
        drop(lock);
    };
    let (report, ()) = tokio::join!(world.function.invoke(&event), unlock);
    let report = report?;
    assert_eq!((&report["status"], &list(&report, LIST)["subscribed"]), (&json!("ok"), &json!(6)), "{report}");
    assert_members(&world, group).await?;
    assert_no_blind_write(&proxy.seen());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_mailman_chokes_on_is_reported_and_stops_nobody() -> Result<()> {
    let (mut world, group) = world(Database::Sqlite, 10, &[]).await?;
    let proxy = world.put_proxy().await?;
    world.mailman.subscribe(LIST, "gone@example.org", "member").await?;
    let people = addresses(&world, group);
    let (choking, there) = (people.iter().next().cloned().unwrap_or_default(), people.iter().next_back());
    world.mailman.subscribe(LIST, there.map_or("", String::as_str), "member").await?;
    proxy.fail(&format!("\"subscriber\":\"{choking}\""), usize::MAX, HttpFault::Answer(500, "<html></html>"));
    let report = world.run(json!({})).await?;
    let one = list(&report, LIST);
    assert_eq!(
        (&one["status"], &one["subscribed"], &one["unsubscribed"], &one["rejected"]["other"]),
        (&json!("partial"), &json!(8), &json!(1), &json!(1)),
        "{report}"
    );
    assert!(one["reason"].as_str().is_some_and(|reason| reason.contains("Mailman refuses 1 address")), "{report}");
    proxy.mend();
    assert_eq!(world.run(json!({})).await?["status"], "ok");
    assert_members(&world, group).await
}

/// Mailman may work on for minutes: a second request for the address would make it a member twice.
#[tokio::test(flavor = "multi_thread")]
async fn what_mailman_says_of_an_address_and_does_not_explain_is_believed_the_second_time() -> Result<()> {
    let (mut world, group) = world(Database::Sqlite, 3, &[]).await?;
    let proxy = world.put_proxy().await?;
    let odd = format!("\"subscriber\":\"{}\"", addresses(&world, group).iter().next().cloned().unwrap_or_default());
    proxy.fail(&odd, usize::MAX, HttpFault::Answer(400, VANISHED));
    let report = world.run(json!({})).await?;
    let one = list(&report, LIST);
    assert_eq!(
        (&one["status"], &one["subscribed"], &one["rejected"]["other"]),
        (&json!("partial"), &json!(2), &json!(1)),
        "{report}"
    );
    let seen = proxy.seen();
    assert_eq!(seen.iter().filter(|request| request.body.contains(&odd)).count(), 2, "{seen:?}");
    assert_no_blind_write(&seen);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_a_proxy_gave_up_on_is_left_to_the_next_run() -> Result<()> {
    let (mut world, group) = world(Database::Sqlite, 5, &[]).await?;
    let proxy = world.put_proxy().await?;
    let slow = addresses(&world, group).into_iter().next().unwrap_or_default();
    let at_last = Arc::new(Semaphore::new(0));
    proxy.fail(&format!("\"subscriber\":\"{slow}\""), 1, HttpFault::GivenUp(Arc::clone(&at_last)));
    let report = world.run(json!({})).await?;
    let one = list(&report, LIST);
    assert_eq!((&one["status"], &one["subscribed"]), (&json!("partial"), &json!(4)), "{report}");
    assert!(
        one["reason"].as_str().is_some_and(|reason| reason.contains("no answer in time for 1 address")),
        "{report}"
    );
    let posts = proxy.seen().iter().filter(|request| request.body.contains(&slow)).count();
    assert_eq!(posts, 1, "it is not asked for again");
    at_last.add_permits(1);
    // Mailman's own answer to the one who gave up: then it is a member, and the next run sees that.
    while world.mailman.memberships(LIST).await?.len() < 5 {
        tokio::task::yield_now().await;
    }
    let report = world.run(json!({})).await?;
    assert_eq!((&report["status"], &list(&report, LIST)["subscribed"]), (&json!("ok"), &json!(0)), "{report}");
    assert_members(&world, group).await
}

/// The connection is lost, and Mailman gets to it a moment later.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_whose_answer_was_lost_is_asked_for_last_and_not_while_mailman_is_at_it() -> Result<()> {
    for database in [Database::Sqlite, Database::Postgres] {
        let (mut world, group) = world(database, 8, &[]).await?;
        let proxy = world.put_proxy().await?;
        proxy.fail("POST /3.1/members", 3, HttpFault::LostAndDone(Duration::from_secs(2)));
        let report = world.run(json!({})).await?;
        assert_eq!((&report["status"], &list(&report, LIST)["subscribed"]), (&json!("ok"), &json!(8)), "{report}");
        assert_members(&world, group).await?;
        let posts = proxy.seen().iter().filter(|request| request.line.starts_with("POST")).count();
        assert_eq!(posts, 8, "the first requests were done after all");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mailman_that_can_write_nothing_has_failed() -> Result<()> {
    let (mut world, _) = world(Database::Sqlite, 1, &[]).await?;
    let proxy = world.put_proxy().await?;
    proxy.fail("POST", usize::MAX, HttpFault::Answer(500, "<html>no space left</html>"));
    let report = world.run(json!({})).await?;
    assert_eq!(list(&report, LIST)["status"], "failed", "an alarm must see it: {report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_mailman_is_not_asked_a_thousand_times() -> Result<()> {
    let (mut world, _) = world(Database::Sqlite, 60, &[]).await?;
    let proxy = world.put_proxy().await?;
    proxy.fail("POST", usize::MAX, HttpFault::Answer(418, "teapot"));
    let report = world.run(json!({})).await?;
    let one = list(&report, LIST);
    assert_eq!(one["status"], "failed", "{report}");
    assert!(one["reason"].as_str().is_some_and(|reason| reason.contains("418")), "{report}");
    assert!(proxy.seen().iter().filter(|request| request.line.starts_with("POST")).count() < 10);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicate_rows_leave_with_who_leaves_and_are_reported_for_who_stays() -> Result<()> {
    let (world, group) = world(Database::Sqlite, 4, &[]).await?;
    world.run(json!({})).await?;
    let stays = addresses(&world, group).into_iter().next().unwrap_or_default();
    let leaves = "gone@example.org".to_owned();
    world.mailman.insert(LIST, [stays.clone(), leaves.clone(), leaves.clone(), leaves.clone()])?;
    assert_eq!(world.mailman.memberships(LIST).await?.len(), 8);
    let report = world.run(json!({})).await?;
    let one = list(&report, LIST);
    assert_eq!(
        (&one["status"], &one["roster"], &one["unsubscribed"]),
        (&json!("partial"), &json!(5), &json!(1)),
        "{report}"
    );
    let reason = one["reason"].as_str().unwrap_or_default();
    assert!(reason.starts_with("1 of its addresses are subscribed more than once"), "{reason}");
    let left: Vec<String> = world.mailman.memberships(LIST).await?.into_values().collect();
    assert_eq!((left.len(), left.contains(&leaves)), (5, false));

    // What the documentation says to do about it.
    let question = json!({"list_id": LIST, "subscriber": stays});
    let (_, found) = world.mailman.ask(Method::POST, "members/find", Some(question)).await?;
    let memberships = found["entries"].as_array().cloned().unwrap_or_default();
    assert_eq!(memberships.len(), 2, "{found}");
    let extra = memberships[1]["member_id"].as_str().unwrap_or_default();
    let (status, _) = world.mailman.ask(Method::DELETE, &format!("members/{extra}"), None).await?;
    assert_eq!(status, 204);
    assert_eq!(world.run(json!({})).await?["status"], "ok");
    assert_members(&world, group).await
}

#[tokio::test(flavor = "multi_thread")]
async fn removals_go_five_hundred_at_a_time_and_hold_nobody_else() -> Result<()> {
    let (mut world, group) = world(Database::Sqlite, 5, &[]).await?;
    let proxy = world.put_proxy().await?;
    let leaving: Vec<String> = (0..1_100).map(|n| format!("leaver{n:04}@example.org")).collect();
    world.mailman.insert(LIST, leaving.iter().cloned().chain(addresses(&world, group)))?;
    let before = world.mailman.memberships(LIST).await?;
    let report = world.run(json!({})).await?;
    assert_eq!((&report["status"], &list(&report, LIST)["unsubscribed"]), (&json!("ok"), &json!(1_100)), "{report}");
    let mut sizes = Vec::new();
    for request in proxy.seen().iter().filter(|request| request.line.starts_with("DELETE")) {
        let body: serde_json::Value = serde_json::from_str(&request.body)?;
        let emails = body["emails"].as_array().cloned().unwrap_or_default();
        assert!(emails.iter().all(|email| leaving.iter().any(|leaver| email == leaver)));
        sizes.push(emails.len());
    }
    assert_eq!(sizes, [500, 500, 100]);
    // Who stayed was never away.
    let after = world.mailman.memberships(LIST).await?;
    assert!(after.iter().all(|(id, address)| before.get(id) == Some(address)));
    assert_members(&world, group).await
}

/// Four subscriptions at a time, and never two of one address.
#[tokio::test(flavor = "multi_thread")]
async fn four_addresses_are_subscribed_side_by_side() -> Result<()> {
    let (mut world, group) = world(Database::Postgres, 40, &[]).await?;
    let proxy: Proxy = world.put_proxy().await?;
    assert_eq!(world.run(json!({})).await?["status"], "ok");
    assert_members(&world, group).await?;
    assert_eq!(proxy.most_at_once("POST /3.1/members"), 4);
    let posts = proxy.seen().into_iter().filter(|request| request.line.starts_with("POST"));
    let distinct: BTreeSet<String> = posts.clone().map(|request| request.body).collect();
    assert_eq!((posts.count(), distinct.len()), (40, 40));
    Ok(())
}
