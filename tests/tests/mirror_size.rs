//! The mirror at its largest, and with too little time.
#![expect(clippy::print_stdout, reason = "the figures are for who reads the test's output")]

use anyhow::Result;
use fastrand::Rng;
use serde_json::{Value, json};
use tests::directory::Directory;
use tests::harness::{Mirror, list};
use tests::redis::{Kind, Redis};
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn fifty_thousand_members_in_forty_lists_fit_into_128_mebibytes() -> Result<()> {
    const LISTS: usize = 40;
    const PEOPLE: usize = 1_250;
    let mut rng = Rng::new();
    let mut directory = Directory::default();
    let groups: Vec<Uuid> = (0..LISTS).map(|_| directory.add_plain_group(&mut rng, PEOPLE)).collect();
    for (n, record) in directory.people.values_mut().enumerate() {
        // So many made up at random would not all be distinct.
        record["Email"] = json!(format!("person{n:05}@mail.example.org"));
    }
    let list_id = |n: usize| format!("list{n}.lists.example.org");
    let mappings: Vec<Value> =
        groups.iter().enumerate().map(|(n, group)| json!({"group_guid": group, "list_id": list_id(n)})).collect();
    let redis = Redis::start(Kind::Plain)?;
    let cache = redis.variables();
    // What is logged of each person at TRACE would take longer than the rest.
    let mut variables = vec![("AWS_LAMBDA_LOG_LEVEL", "INFO")];
    variables.extend(cache.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let world = Mirror::start(directory, json!(mappings), &variables).await?;
    {
        let mut state = world.novi.state();
        (state.page_limit, state.listed) = (1_000, Some(Vec::new()));
    }
    for (n, group) in groups.iter().enumerate() {
        world.mailman.create_list(&format!("list{n}")).await?;
        let addresses: Vec<String> = {
            let state = world.novi.state();
            // One joins on each list, and one leaves.
            let members = state.directory.groups[group].iter().skip(1).map(|id| state.directory.address(*id));
            members.chain([format!("leaver{n}@mail.example.org")]).collect()
        };
        world.mailman.insert(&list_id(n), addresses)?;
    }
    let report = world.run(json!({})).await?;
    assert_eq!(report["status"], "ok", "{report}");
    for n in 0..LISTS {
        let one = list(&report, &list_id(n));
        assert_eq!((&one["subscribed"], &one["unsubscribed"]), (&json!(1), &json!(1)), "{one}");
        assert_eq!(one["roster"], PEOPLE);
    }
    assert_eq!(redis.command(&["DBSIZE"])?, (LISTS * PEOPLE).to_string(), "everybody is verified ahead");
    // Two pages of each group, and fifty of all records.
    assert_eq!(report["novi_calls"], 2 * LISTS + LISTS * PEOPLE / 1_000);
    let peak = world.function.peak_memory()?;
    println!("{} MiB at most, {} s", peak >> 20, report["seconds"]);
    assert!(peak < 128 << 20, "{} MiB", peak >> 20);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_time_was_too_short_for_the_next_runs_finish() -> Result<()> {
    const LIST: &str = "members.lists.example.org";
    const PEOPLE: usize = 500;
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), PEOPLE);
    let mappings = json!([{"group_guid": group, "list_id": LIST, "max_growth_percent": 100_000}]);
    // Ten of the seventeen seconds are in reserve, and nobody is subscribed in the last five before those.
    let world = Mirror::start(directory, mappings, &[("AWS_LAMBDA_FUNCTION_TIMEOUT", "17")]).await?;
    world.mailman.create_list("members").await?;
    world.novi.state().listed = Some(Vec::new());
    let mut before = 0;
    for run in 1.. {
        let report = world.run(json!({})).await?;
        let one = list(&report, LIST);
        let members = world.mailman.memberships(LIST).await?.len();
        assert_eq!(one["subscribed"], members - before, "{report}");
        assert!(members > before, "run {run} did nothing: {report}");
        assert!(report["seconds"].as_f64() < Some(7.0), "it ends ten seconds before the invocation: {report}");
        before = members;
        if one["status"] == "ok" {
            assert!(run > 1, "nothing was left unfinished: {report}");
            break;
        }
        assert_eq!((&one["status"], &report["status"]), (&json!("unfinished"), &json!("unfinished")), "{report}");
    }
    assert_eq!(before, PEOPLE);
    Ok(())
}
