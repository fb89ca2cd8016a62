//! The demo behind `make run`: both functions running on this machine, with
//! made-up people, a simulated Novi and a real Mailman.
#![expect(clippy::print_stdout, reason = "this program is for interactive use in a terminal")]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use fastrand::Rng;
use http::Method;
use serde_json::{Value, json};
use tests::directory::Directory;
use tests::gateway::Gateway;
use tests::harness::{Mirror, Verification};
use tests::mailman::USER;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;
use uuid::Uuid;

/// The number of people in each of the two groups.
const PEOPLE: [usize; 2] = [36, 15];
/// The lists of the two groups.
const LISTS: [&str; 2] = ["members", "newcomers"];
/// The address to which a member changes.
const NEW_ADDRESS: &str = "new.address@mail.example.org";

#[tokio::main]
async fn main() -> ExitCode {
    let serve = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => true,
        [once] if once == "--once" => false,
        _ => {
            println!("usage: make run [ARGS=--once]   (--once: run all steps, then exit instead of serving)");
            return ExitCode::from(2);
        }
    };
    // Whichever finishes first, dropping the other one stops everything that was started.
    let outcome = tokio::select! {
        outcome = show(serve) => outcome,
        () = interrupted() => {
            println!("\nStopped everything.");
            return ExitCode::SUCCESS;
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nThis step failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn interrupted() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

async fn show(serve: bool) -> anyhow::Result<()> {
    println!("novi-bridge, running locally: all people are made up, and no data leaves this machine.\n");

    step(1, "Start the verify function under AWS's Lambda Runtime Interface Emulator, with a simulated Novi behind it");
    let Verification { function, novi, member, keys, .. } =
        with_progress("starting", Verification::start(&[("CORS_ALLOW_ORIGINS", "*")])).await?;
    let verify = Gateway::start(Arc::new(Mutex::new(function))).await?;
    print_result(&format!("listening at {}", verify.url));

    step(2, "Verify a member twice: Novi is called once");
    let http = tests::http();
    let get = |id: Uuid, key: Option<&str>| {
        let mut request =
            http.get(format!("{}{}", verify.url, Verification::path(id))).header("x-account-id", "sandbox");
        if let Some(key) = key {
            request = request.header("x-api-key", key);
        }
        async move {
            let response = request.timeout(Duration::from_secs(30)).send().await?;
            let cache = response.headers().get("x-cache").and_then(|value| value.to_str().ok()).map(str::to_owned);
            anyhow::Ok((response.status().as_u16(), cache, response.text().await?))
        }
    };
    for expected in ["miss", "hit"] {
        let (status, cache, body) = get(member, Some(&keys.frontend)).await?;
        print_result(&format!("{status}, X-Cache: {}: {body}", cache.as_deref().unwrap_or("none")));
        ensure!(status == 200 && cache.as_deref() == Some(expected), "expected a cache {expected}");
    }
    ensure!(novi.state().count("/customers/") == 1, "expected exactly one call to Novi");

    step(3, "Reject a request without an API key; return 404 for an unknown UUID");
    for (id, key, expected) in
        [(member, None, "api_key_missing"), (Uuid::from_u128(7), Some(&*keys.frontend), "member_not_found")]
    {
        let (status, _, body) = get(id, key).await?;
        let body: Value = serde_json::from_str(&body)?;
        print_result(&format!("{status} {}: {}", text(&body["code"]), text(&body["detail"])));
        ensure!(body["code"] == expected, "expected {expected}");
    }

    step(
        4,
        "Start the mirror function, a simulated Novi with two groups, and a real GNU Mailman core with two empty lists",
    );
    let mut directory = Directory::default();
    let mut rng = Rng::with_seed(7);
    let groups = PEOPLE.map(|count| directory.add_group(&mut rng, count));
    let mappings: Vec<Value> = groups
        .iter()
        .zip(LISTS)
        .map(|(group, list)| json!({"group_guid": group, "list_id": format!("{list}@lists.example.org")}))
        .collect();
    let dir = tempfile::TempDir::new()?;
    let ledger = format!("file://{}", dir.path().join("ledger").display());
    let variables = [("LEDGER", ledger.as_str())];
    let mirror = with_progress("starting Mailman", Mirror::start(directory, json!(mappings), &variables)).await?;
    for list in LISTS {
        mirror.mailman.create_list(list).await?;
    }
    print_result(&format!("Mailman is listening at {}", mirror.mailman.base_url()));

    step(5, "Plan without writing: a dry run, with the event {\"dry_run\": true}");
    let plan = with_progress("planning", mirror.run(json!({"dry_run": true}))).await?;
    print_report(&plan, "would join", "would leave")?;
    for list in LISTS {
        ensure!(
            mirror.mailman.roster(&list_id(list), "member").await?.is_empty(),
            "expected a dry run to write nothing"
        );
    }

    step(6, "Mirror the two groups into the two lists");
    let report = with_progress("mirroring", mirror.run(json!({}))).await?;
    print_report(&report, "joined", "left")?;
    for list in LISTS {
        let roster = mirror.mailman.roster(&list_id(list), "member").await?;
        print_result(&format!("Mailman's own roster of {}: {} members", list_id(list), roster.len()));
    }

    step(7, "Mirror again: there is nothing to do");
    let again = with_progress("mirroring", mirror.run(json!({}))).await?;
    print_report(&again, "joined", "left")?;
    for list in again["lists"].as_array().context("expected lists in the report")? {
        ensure!(list["subscribed"] == 0 && list["unsubscribed"] == 0, "expected the second run to change nothing");
    }

    step(8, "A member changes her address in Novi, and keeps her digests: the ledger knows the former address");
    let list = list_id(LISTS[0]);
    let (member, address) = first_member(&mirror, groups[0]).await?;
    let preferences = format!("members/{}/preferences", membership(&mirror, &list, &address).await?);
    let digests = json!({"delivery_mode": "mime_digests"});
    mirror.mailman.request(Method::PATCH, &preferences, Some(digests)).await?;
    mirror.novi.state().directory.person(member)["Email"] = json!(NEW_ADDRESS);
    let report = with_progress("mirroring", mirror.run(json!({}))).await?;
    print_report(&report, "joined", "left")?;
    print_preference(&mirror, &list).await?;

    step(9, "She becomes inactive by mistake and leaves, the mistake is corrected, and she is back with her digests");
    for (is_active, count) in [(false, "unsubscribed"), (true, "subscribed")] {
        mirror.novi.state().directory.person(member)["Active"] = json!(is_active);
        let report = with_progress("mirroring", mirror.run(json!({}))).await?;
        print_report(&report, "joined", "left")?;
        ensure!(report["lists"][0][count] == 1, "expected one address to be {count}");
    }
    print_preference(&mirror, &list).await?;

    if !serve {
        println!("\nAll steps succeeded.");
        return Ok(());
    }
    let path = format!("{}{}", verify.url, Verification::path(member));
    println!("\nTry it yourself (Ctrl-C stops everything):\n");
    println!("  # verify a member\n  curl -i -H 'x-api-key: {}' -H 'x-account-id: me' {path}\n", keys.frontend);
    println!("  # request without an API key\n  curl -i {path}\n");
    println!("  # health and API description\n  curl {}/health\n  curl {}/openapi.json\n", verify.url, verify.url);
    println!("  # plan again\n  curl -d '{{\"dry_run\": true}}' {}\n", mirror.function.url());
    println!(
        "  # show the members of a list\n  curl -u {USER}:{} '{}/3.1/lists/{}/roster/member?fields=email'\n",
        mirror.mailman.password(),
        mirror.mailman.base_url(),
        list_id(LISTS[0])
    );
    std::future::pending().await
}

/// Returns the first member of a group who alone has an address that is on the first list, and this address.
async fn first_member(mirror: &Mirror, group: Uuid) -> anyhow::Result<(Uuid, String)> {
    let roster = mirror.mailman.roster(&list_id(LISTS[0]), "member").await?;
    let state = mirror.novi.state();
    let email = |id: &Uuid| state.directory.people[id]["Email"].as_str().map(str::to_lowercase);
    let is_only_of =
        |address: &String| state.directory.people.keys().filter(|id| email(id).as_ref() == Some(address)).count() == 1;
    let members = state.directory.groups[&group].iter().filter_map(|id| Some((*id, email(id)?)));
    let mut subscribed = members.filter(|(_, address)| roster.contains_key(address) && is_only_of(address));
    subscribed.next().context("no member of the group is on the list")
}

/// Returns Mailman's id of a membership.
async fn membership(mirror: &Mirror, list: &str, address: &str) -> anyhow::Result<String> {
    let memberships = mirror.mailman.memberships(list).await?;
    let found = memberships.into_iter().find(|(_, of)| of == address);
    Ok(found.with_context(|| format!("{address} is not subscribed"))?.0)
}

/// Prints how the member gets mail who has the new address.
async fn print_preference(mirror: &Mirror, list: &str) -> anyhow::Result<()> {
    let path = format!("members/{}/preferences", membership(mirror, list, NEW_ADDRESS).await?);
    let (_, preferences) = mirror.mailman.request(Method::GET, &path, None).await?;
    print_result(&format!(
        "Mailman's own preferences of {NEW_ADDRESS}: delivery_mode {}",
        preferences["delivery_mode"]
    ));
    ensure!(preferences["delivery_mode"] == "mime_digests", "expected that she keeps her digests");
    Ok(())
}

fn list_id(name: &str) -> String {
    format!("{name}.lists.example.org")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn step(number: usize, title: &str) {
    println!("{number}. {title}");
}

fn print_result(result: &str) {
    println!("   {result}");
}

/// Prints a report: one line per list, and one for the whole run.
fn print_report(report: &Value, join: &str, leave: &str) -> anyhow::Result<()> {
    let lists = report["lists"].as_array().with_context(|| format!("the run failed to start: {report}"))?;
    for list in lists {
        let skipped: Vec<String> = list["skipped"]
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, count)| **count != 0)
            .map(|(reason, count)| format!("{count} {}", reason.replace('_', " ")))
            .collect();
        print_result(&format!(
            "{}: {} wanted, {} subscribed: {} {join}, {} moved, {} {leave}; not wanted: {}",
            text(&list["list_id"]),
            list["wanted"],
            list["roster"],
            list["subscribed"],
            list["moved"],
            list["unsubscribed"],
            skipped.join(", "),
        ));
        if let Some(reason) = list["reason"].as_str() {
            print_result(&format!("  {}: {reason}", text(&list["status"])));
        }
    }
    let calls = (&report["novi_calls"], &report["mailman_calls"], &report["seconds"]);
    print_result(&format!(
        "status {}, with {} calls to Novi and {} to Mailman in {} s",
        report["status"], calls.0, calls.1, calls.2
    ));
    // Two of the people have an `Email` that is not an address, as Novi's records do.
    if report["status"] != "partial" {
        bail!("expected the status partial: {report}");
    }
    Ok(())
}

/// Prints the elapsed time every two seconds until `work` is done.
async fn with_progress<T>(title: &str, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::pin!(work);
    let mut seconds = 0;
    loop {
        tokio::select! {
            result = &mut work => return result,
            () = tokio::time::sleep(Duration::from_secs(2)) => {
                seconds += 2;
                print_result(&format!("… {title}, {seconds} s so far"));
            }
        }
    }
}
