//! The mirror at its maximum size, and with too little time.
#![expect(clippy::print_stdout, reason = "the figures are for readers of the test's output")]

use anyhow::Result;
use fastrand::Rng;
use serde_json::{Value, json};
use tests::directory::Directory;
use tests::harness::{Mirror, list, report};
use tests::novi::NoviFault;
use tests::redis::{Kind, Redis};
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn fifty_thousand_members_in_forty_lists_fit_into_128_mib() -> Result<()> {
    const LISTS: usize = 40;
    const MEMBERS: usize = 1_250;
    let mut rng = Rng::new();
    let mut directory = Directory::default();
    let groups: Vec<Uuid> = (0..LISTS).map(|_| directory.add_plain_group(&mut rng, MEMBERS)).collect();
    for (n, record) in directory.people.values_mut().enumerate() {
        // So many random addresses wouldn't all be distinct.
        record["Email"] = json!(format!("person{n:05}@mail.example.org"));
    }
    let list_id = |n: usize| format!("list{n}.lists.example.org");
    let mappings: Vec<Value> =
        groups.iter().enumerate().map(|(n, group)| json!({"group_guid": group, "list_id": list_id(n)})).collect();
    let redis = Redis::start(Kind::Plain)?;
    let cache = redis.variables();
    // Logging each member at TRACE would take longer than the rest of the run.
    let mut variables = vec![("AWS_LAMBDA_LOG_LEVEL", "INFO")];
    variables.extend(cache.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let env = Mirror::start(directory, json!(mappings), &variables).await?;
    {
        let mut state = env.novi.state();
        (state.page_limit, state.bulk_hidden_fields) = (1_000, Some(Vec::new()));
    }
    for (n, group) in groups.iter().enumerate() {
        env.mailman.create_list(&format!("list{n}")).await?;
        let addresses: Vec<String> = {
            let state = env.novi.state();
            // One member joins each list, and one leaves.
            let members = state.directory.groups[group].iter().skip(1).map(|id| state.directory.address(*id));
            members.chain([format!("leaver{n}@mail.example.org")]).collect()
        };
        env.mailman.insert_members(&list_id(n), addresses)?;
    }
    let report = env.run(json!({})).await?;
    assert_eq!(report["status"], "ok", "{report}");
    for n in 0..LISTS {
        let entry = list(&report, &list_id(n));
        assert_eq!((&entry["subscribed"], &entry["unsubscribed"]), (&json!(1), &json!(1)), "{entry}");
        assert_eq!(entry["roster"], MEMBERS);
    }
    let entries = redis.command(&["KEYS", "idaa:novi_member:*"])?.lines().count();
    assert_eq!(entries, LISTS * MEMBERS, "the cache is prewarmed with every member");
    // Pages of 1,000 rows overlap by one: two for each group, and one more than fifty of the bulk list.
    assert_eq!(report["novi_calls"], 2 * LISTS + LISTS * MEMBERS / 1_000 + 1);
    let peak = env.function.peak_memory()?;
    println!("peak memory {} MiB, {} s", peak >> 20, report["seconds"]);
    assert!(peak < 128 << 20, "{} MiB", peak >> 20);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_changes_are_completed_by_later_runs() -> Result<()> {
    const LIST: &str = "members.lists.example.org";
    const MEMBERS: usize = 500;
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), MEMBERS);
    let mappings = json!([{"group_guid": group, "list_id": LIST, "max_growth_percent": 100_000}]);
    // Ten of the nineteen seconds are reserved, and no subscription starts in the five seconds before those.
    let env = Mirror::start(directory, mappings, &[("AWS_LAMBDA_FUNCTION_TIMEOUT", "19")]).await?;
    env.mailman.create_list("members").await?;
    env.novi.state().bulk_hidden_fields = Some(Vec::new());
    let mut before = 0;
    for run in 1.. {
        let report = env.run(json!({})).await?;
        let entry = list(&report, LIST);
        let members = env.mailman.memberships(LIST).await?.len();
        assert_eq!(entry["subscribed"], members - before, "{report}");
        assert!(members > before, "run {run} did nothing: {report}");
        assert!(report["seconds"].as_f64() < Some(9.0), "the run must end ten seconds before the invocation: {report}");
        before = members;
        if entry["status"] == "ok" {
            assert!(run > 1, "nothing was left unfinished: {report}");
            break;
        }
        assert_eq!((&entry["status"], &report["status"]), (&json!("unfinished"), &json!("unfinished")), "{report}");
    }
    assert_eq!(before, MEMBERS);
    Ok(())
}

/// Lambda refuses a result of more than 6 MB, and CloudWatch cuts a log line at 256 KB.
#[tokio::test(flavor = "multi_thread")]
async fn reports_of_a_thousand_lists_stay_within_the_limits_of_lambda() -> Result<()> {
    const LISTS: usize = 1_000;
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), 50);
    let addresses: Vec<String> = directory.groups[&group].iter().map(|id| directory.address(*id)).collect();
    // Mailman has none of these lists, so all of them fail with a reason.
    let mappings: Vec<Value> =
        (0..LISTS).map(|n| json!({"group_guid": group, "list_id": format!("list{n}.lists.example.org")})).collect();
    let env = Mirror::start(directory, json!(mappings), &[("AWS_LAMBDA_LOG_LEVEL", "INFO")]).await?;
    let returned = env.function.invoke(&json!({})).await?;
    let message = returned["errorMessage"].as_str().unwrap_or_default();
    assert!(message.len() < 200_000, "the error has {} bytes", message.len());
    let report = report(returned)?;
    assert_eq!(report["status"], "failed");
    assert!(report["lists"].as_array().is_some_and(|lists| !lists.is_empty()));
    let longest = env.function.log().lines().map(str::len).max();
    assert!(longest < Some(200_000), "the longest log line has {longest:?} bytes");

    let returned = env.function.invoke(&json!({"explain": addresses})).await?;
    assert!(returned.get("errorMessage").is_none());
    let bytes = returned.to_string().len();
    assert!(bytes < 5_000_000, "the result has {bytes} bytes");
    let answered = returned["explain"].as_array().map(Vec::len);
    assert_eq!(answered, Some(50), "every address is explained");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn run_over_a_thousand_lists_with_a_hung_redis_ends_before_its_deadline() -> Result<()> {
    const LISTS: usize = 1_000;
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), 5);
    // Mailman has none of these lists, which is quick to find out.
    let mappings: Vec<Value> =
        (0..LISTS).map(|n| json!({"group_guid": group, "list_id": format!("list{n}.lists.example.org")})).collect();
    let redis = Redis::start(Kind::Plain)?;
    let cache = redis.variables();
    let mut variables = vec![("AWS_LAMBDA_LOG_LEVEL", "INFO"), ("AWS_LAMBDA_FUNCTION_TIMEOUT", "60")];
    variables.extend(cache.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let env = Mirror::start(directory, json!(mappings), &variables).await?;
    // Locks and unlocks all lists while Redis works.
    assert_eq!(env.run(json!({})).await?["status"], "failed");
    assert_eq!(redis.command(&["KEYS", "idaa:mirror:*"])?, "", "all locks are released");
    redis.freeze();
    let report = env.run(json!({})).await?;
    assert!(report["seconds"].as_f64() < Some(50.0), "the run must end ten seconds before the invocation: {report}");
    let log = env.function.log();
    assert_eq!(log.matches("lock unavailable; continuing without it").count(), 1, "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn people_who_are_not_reached_in_time_are_not_yet_read() -> Result<()> {
    const LIST: &str = "members.lists.example.org";
    const MEMBERS: usize = 300;
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), MEMBERS);
    let mapping =
        json!({"group_guid": group, "list_id": LIST, "max_growth_percent": 100_000, "max_removal_percent": 100});
    let mappings = json!([mapping]);
    // Ten seconds are reserved, and of the other twelve, nine are for Mailman. Novi is asked for about sixty people.
    let variables = [("AWS_LAMBDA_FUNCTION_TIMEOUT", "22"), ("NOVI_MAX_PER_SECOND", "20")];
    let env = Mirror::start(directory, mappings, &variables).await?;
    env.mailman.create_list("members").await?;
    env.mailman.subscribe(LIST, "gone@example.org", "member").await?;
    // A result, not an error: the run has got somewhere.
    let report = env.function.invoke(&json!({})).await?;
    let entry = list(&report, LIST);
    assert_eq!((&entry["status"], &report["status"]), (&json!("unfinished"), &json!("unfinished")), "{report}");
    let (subscribed, unread) = (entry["subscribed"].as_u64(), entry["skipped"]["not_yet_read"].as_u64());
    assert!(subscribed > Some(0) && unread > Some(0), "{report}");
    // The others are subscribed as far as Mailman is fast enough.
    let read = unread.and_then(|unread| (MEMBERS as u64).checked_sub(unread));
    assert!(subscribed <= read && read <= Some(env.novi.state().count("/customers/") as u64), "{report}");
    assert_eq!(env.mailman.memberships(LIST).await?.len() as u64, 1 + subscribed.unwrap_or_default());
    assert_eq!((&entry["unsubscribed"], &entry["withheld"]), (&json!(0), &json!(1)), "{report}");
    assert!(entry["reason"].as_str().is_some_and(|reason| reason.contains("Time ran out while reading Novi")));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_ends_after_twenty_calls_without_a_response() -> Result<()> {
    const LIST: &str = "members.lists.example.org";
    const MEMBERS: usize = 60;
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), MEMBERS);
    let env = Mirror::start(directory, json!([{"group_guid": group, "list_id": LIST}]), &[]).await?;
    env.mailman.create_list("members").await?;
    env.novi.state().fail("/customers/", usize::MAX, NoviFault::Disconnect);
    // Nothing at all could be read, which an alarm must see.
    let returned = env.function.invoke(&json!({})).await?;
    assert_eq!(returned["errorType"], "Mirror.unfinished", "{returned}");
    let report = report(returned)?;
    let skipped = &list(&report, LIST)["skipped"];
    let (unknown, unread) = (skipped["unknown"].as_u64(), skipped["not_yet_read"].as_u64());
    // Up to sixteen calls run concurrently.
    assert!((Some(20)..Some(20 + 16)).contains(&unknown), "{report}");
    assert_eq!(unknown.zip(unread).map(|(unknown, unread)| unknown + unread), Some(MEMBERS as u64), "{report}");
    assert_eq!(list(&report, LIST)["subscribed"], 0);
    Ok(())
}

/// Novi may ask to be left alone for longer than a run takes.
#[tokio::test(flavor = "multi_thread")]
async fn run_that_novi_asks_to_wait_for_too_long_says_so() -> Result<()> {
    const LIST: &str = "members.lists.example.org";
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), 5);
    let variables = [("AWS_LAMBDA_FUNCTION_TIMEOUT", "60")];
    let env = Mirror::start(directory, json!([{"group_guid": group, "list_id": LIST}]), &variables).await?;
    env.mailman.create_list("members").await?;
    env.novi.state().fail("/groups/", 1, NoviFault::RateLimited(Some("7200".to_owned())));
    for calls in [1, 0] {
        let report = env.run(json!({})).await?;
        assert_eq!((&report["status"], &report["novi_calls"]), (&json!("unfinished"), &json!(calls)), "{report}");
        let reason = list(&report, LIST)["reason"].as_str().unwrap_or_default();
        assert!(reason.starts_with("Novi asked to be left alone until "), "{reason}");
    }
    assert_eq!(env.function.log().matches(r#""NoviRateLimited":1"#).count(), 2, "each run counts it");
    // Another instance doesn't know of it, and reads.
    assert_eq!(env.another_instance(&variables)?.invoke(&json!({})).await?["status"], "ok");
    Ok(())
}
