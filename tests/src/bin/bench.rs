//! `make bench`: what the mirror's ways with Mailman rest on, measured against a
//! real core on this machine. Each figure of the mirror stands beside what the
//! bare requests take in the same run.
#![expect(clippy::print_stdout, reason = "a table on the terminal is what this is for")]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fastrand::Rng;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::Method;
use serde_json::{Value, json};
use tests::directory::Directory;
use tests::mailman::{Database, Mailman};
use tests::worlds::{Mirror, list};

/// Subscriptions in one measurement.
const JOINERS: usize = 200;
/// Members of the large list.
const MEMBERS: usize = 10_000;
/// Those of them who leave.
const LEAVERS: usize = 1_000;
/// Measurements of each figure.
const ROUNDS: usize = 5;

#[tokio::main]
async fn main() -> Result<()> {
    let cores = std::thread::available_parallelism()?;
    println!("On {cores} processors; medians of {ROUNDS}, with the least and the most.\n");
    println!("| what | |\n|---|---|");
    for database in [Database::Sqlite, Database::Postgres] {
        joining(database).await?;
    }
    large().await
}

/// Subscriptions a second, bare and by the mirror.
async fn joining(database: Database) -> Result<()> {
    let mailman = Mailman::start_on(database).await?;
    let mut best = f64::MAX;
    for side_by_side in [1, 2, 4, 8] {
        let mut seconds = Vec::new();
        for round in 0..ROUNDS {
            let id = mailman.create_list(&format!("bare{side_by_side}n{round}")).await?;
            let started = Instant::now();
            let posts = (0..JOINERS).map(|n| {
                let (mailman, id) = (&mailman, &id);
                async move { mailman.subscribe(id, &format!("joiner{n:04}@{id}"), "member").await }
            });
            stream::iter(posts).buffer_unordered(side_by_side).try_collect::<Vec<()>>().await?;
            seconds.push(started.elapsed());
        }
        best = best.min(median(&mut seconds));
        row(&format!("{database:?}, {JOINERS} bare subscriptions, {side_by_side} side by side"), &mut seconds, None);
    }
    let mut seconds = Vec::new();
    let mut mailman = Some(mailman);
    for round in 0..ROUNDS {
        let Some(core) = mailman.take() else { break };
        let mut directory = Directory::default();
        let group = directory.add_plain_group(&mut Rng::new(), JOINERS);
        let id = core.create_list(&format!("mirror{round}")).await?;
        let world = world(core, directory, json!([{"group_guid": group, "list_id": id}])).await?;
        // The instance is warm, and Novi is read: what is left is Mailman's time.
        let read = seconds_of(&world.run(json!({"dry_run": true})).await?);
        let report = world.run(json!({})).await?;
        ensure!(list(&report, &id)["subscribed"] == JOINERS, "{report}");
        seconds.push(Duration::from_secs_f64(seconds_of(&report) - read));
        mailman = Some(world.mailman);
    }
    row(&format!("{database:?}, {JOINERS} by the mirror"), &mut seconds, Some(best));
    Ok(())
}

/// A roster of thousands: read, left alone, and left by a tenth.
async fn large() -> Result<()> {
    let mailman = Mailman::start().await?;
    let id = mailman.create_list("large").await?;
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), MEMBERS);
    for (n, record) in directory.people.values_mut().enumerate() {
        record["Email"] = json!(format!("person{n:05}@mail.example.org"));
    }
    let addresses: Vec<String> = directory.people.keys().map(|person| directory.address(*person)).collect();
    mailman.insert(&id, addresses.iter().cloned())?;
    let mut least = f64::MAX;
    for page in [500, 1_000, 2_000, 5_000, 10_000] {
        let mut seconds = Vec::new();
        for _ in 0..ROUNDS {
            let started = Instant::now();
            for number in 1..=MEMBERS / page {
                let path = format!("lists/{id}/roster/member?fields=email&count={page}&page={number}");
                ensure!(mailman.ask(Method::GET, &path, None).await?.0 == 200, "{path}");
            }
            seconds.push(started.elapsed());
        }
        least = least.min(median(&mut seconds));
        row(&format!("a bare roster of {MEMBERS}, {page} in a page"), &mut seconds, None);
    }
    let world = world(mailman, directory, json!([{"group_guid": group, "list_id": id}])).await?;
    world.run(json!({"dry_run": true})).await?;
    let mut seconds = Vec::new();
    for _ in 0..ROUNDS {
        seconds.push(Duration::from_secs_f64(seconds_of(&world.run(json!({})).await?)));
    }
    row(&format!("the mirror over {MEMBERS}, nothing to do"), &mut seconds, Some(least));

    let (mut bare, mut mirror) = (Vec::new(), Vec::new());
    let nothing_to_do = median(&mut seconds);
    for _ in 0..ROUNDS {
        let leaving: Vec<String> = (0..LEAVERS).map(|n| format!("leaver{n:04}@mail.example.org")).collect();
        world.mailman.insert(&id, leaving.iter().cloned())?;
        let started = Instant::now();
        for emails in leaving.chunks(500) {
            let path = format!("lists/{id}/roster/member");
            world.mailman.ask(Method::DELETE, &path, Some(json!({ "emails": emails }))).await?;
        }
        bare.push(started.elapsed());
        world.mailman.insert(&id, leaving)?;
        let report = world.run(json!({})).await?;
        ensure!(list(&report, &id)["unsubscribed"] == LEAVERS, "{report}");
        mirror.push(Duration::from_secs_f64(seconds_of(&report)));
    }
    let limit = median(&mut bare);
    row(&format!("{LEAVERS} bare removals, 500 in a request"), &mut bare, None);
    row(&format!("{LEAVERS} removed by the mirror, the reading included"), &mut mirror, Some(limit + nothing_to_do));
    let peak = world.function.peak_memory()?;
    println!("| the mirror's memory with {MEMBERS} members | {} MiB at most |", peak >> 20);
    Ok(())
}

async fn world(mailman: Mailman, directory: Directory, mappings: Value) -> Result<Mirror> {
    let world = Mirror::start_on(mailman, directory, mappings, &[("AWS_LAMBDA_LOG_LEVEL", "INFO")]).await?;
    let mut state = world.novi.state();
    (state.listed, state.page_limit) = (Some(Vec::new()), 1_000);
    drop(state);
    Ok(world)
}

fn seconds_of(report: &Value) -> f64 {
    report["seconds"].as_f64().unwrap_or_default()
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort();
    times.get(times.len() / 2).map_or(f64::NAN, Duration::as_secs_f64)
}

/// One figure, beside what it is held against.
fn row(what: &str, times: &mut [Duration], against: Option<f64>) {
    let middle = median(times);
    let (least, most) = (times.first().copied().unwrap_or_default(), times.last().copied().unwrap_or_default());
    let ratio =
        against.map(|against| format!(", {:.2} of the bare requests' time", middle / against)).unwrap_or_default();
    println!("| {what} | {middle:.2} s ({:.2} to {:.2}){ratio} |", least.as_secs_f64(), most.as_secs_f64());
}
