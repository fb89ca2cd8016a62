//! The mirror at its maximum size, and with too little time.
#![expect(clippy::print_stdout, reason = "the figures are for readers of the test's output")]

use anyhow::Result;
use fastrand::Rng;
use serde_json::{Value, json};
use tests::directory::Directory;
use tests::harness::{Mirror, list};
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
    assert_eq!(redis.command(&["DBSIZE"])?, (LISTS * MEMBERS).to_string(), "the cache is prewarmed with every member");
    // Two pages for each group, and fifty pages of the bulk list.
    assert_eq!(report["novi_calls"], 2 * LISTS + LISTS * MEMBERS / 1_000);
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
    // Ten of the seventeen seconds are reserved, and no subscription starts in the five seconds before those.
    let env = Mirror::start(directory, mappings, &[("AWS_LAMBDA_FUNCTION_TIMEOUT", "17")]).await?;
    env.mailman.create_list("members").await?;
    env.novi.state().bulk_hidden_fields = Some(Vec::new());
    let mut before = 0;
    for run in 1.. {
        let report = env.run(json!({})).await?;
        let entry = list(&report, LIST);
        let members = env.mailman.memberships(LIST).await?.len();
        assert_eq!(entry["subscribed"], members - before, "{report}");
        assert!(members > before, "run {run} did nothing: {report}");
        assert!(report["seconds"].as_f64() < Some(7.0), "the run must end ten seconds before the invocation: {report}");
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
