//! The mirror over a real Mailman: nothing to do, removals, a first fill; beside
//! Mailman's own `syncmembers`, a loop over its client, and bare requests.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::function::{binary, venv};
use tests::mailman::{Database, Mailman, USER};
use tests::workspace;
use uuid::Uuid;

use crate::novi::{People, address};
use crate::runtime::Instance;
use crate::table::{Goal, Series, Table, Unit};
use crate::upstream::Upstream;
use crate::verification::python;

/// Members of the large list.
const MEMBERS: usize = 10_000;
/// Those of them who leave.
const LEAVERS: usize = 1_000;
/// Measurements of a loop that takes the better part of a minute, at most.
const FEW: usize = 5;
/// Where they have their addresses.
const DOMAIN: &str = "mail.example.org";

/// What a mirror stands on but Mailman.
pub(crate) struct Stage {
    pub(crate) variables: Vec<(String, String)>,
    _novi: Upstream,
    _dir: TempDir,
}

/// What a mirror is told that is to keep lists equal to groups. Mappings are pairs of both.
pub(crate) async fn configuration(
    people: People,
    mailman: &str,
    password: &str,
    mappings: &[(Uuid, String)],
    more: &[(&str, &str)],
) -> Result<Stage> {
    let novi = people.serve().await?;
    let mappings: Vec<Value> =
        mappings.iter().map(|(group, list)| json!({"group_guid": group, "list_id": list})).collect();
    let config = json!({
        "novi_api_root_url": format!("{}/api", novi.url()), "novi_idaa_api_key": "a key",
        "mailman_base_url": mailman, "mailman_username": USER, "mailman_password": password,
        "novi_mailman_sync": mappings,
    });
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("config.json");
    std::fs::write(&file, config.to_string())?;
    let file = file.display().to_string();
    let usual = [
        ("CONFIG_FILE", file.as_str()),
        ("MIRROR_APPLY", "true"),
        ("NOVI_MAX_PER_SECOND", "10000"),
        ("NOVI_MAX_PER_MINUTE", "100000"),
    ];
    let variables = usual.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Ok(Stage { variables, _novi: novi, _dir: dir })
}

/// An instance of the mirror, and what it stands on but Mailman.
pub(crate) struct Mirror {
    pub(crate) instance: Instance,
    _stage: Stage,
}

impl Mirror {
    /// One that keeps lists equal to groups.
    pub(crate) async fn start(
        people: People,
        mailman: &str,
        password: &str,
        mappings: &[(Uuid, String)],
        more: &[(&str, &str)],
    ) -> Result<Self> {
        let stage = configuration(people, mailman, password, mappings, more).await?;
        let instance = Instance::start(&binary("mirror")?, &[], &stage.variables).await?;
        Ok(Self::on(stage, instance))
    }

    /// One that was started.
    pub(crate) fn on(stage: Stage, instance: Instance) -> Self {
        Self { instance, _stage: stage }
    }

    /// Runs once. The report, and how long the invocation took.
    pub(crate) async fn run(&mut self, event: &Value) -> Result<(Value, Duration)> {
        let (report, took) = self.instance.invoke(&Bytes::from(event.to_string())).await?;
        ensure!(report["status"] == "ok", "{report}");
        Ok((report, took))
    }
}

/// Mailman's own way: `mailman syncmembers` with a file.
fn syncmembers(mailman: &Mailman, list: &str, file: &Path) -> Result<Duration> {
    let mut command = Command::new(venv().join("bin/mailman"));
    command.arg("-C").arg(mailman.config_file()).arg("--run-as-root").arg("syncmembers");
    command.args(["--no-welcome-msg", "--no-goodbye-msg", "--no-admin-notify"]).arg(file).arg(list);
    // Click wants to know what its text is encoded in.
    command.env("LC_ALL", "C.UTF-8");
    Ok(peer(&mut command)?.0)
}

/// A loop over Mailman's own client. How long it took, and its memory in MiB.
fn client(mailman: &Mailman, list: &str, file: &Path) -> Result<(Duration, f64)> {
    let mut command = Command::new(python());
    command.arg(workspace().join("benches/python/mailmanclient_sync.py"));
    command.args([&format!("{}/3.1", mailman.base_url()), USER, mailman.password(), list]).arg(file);
    peer(&mut command)
}

/// Runs a peer to its end. How long it took, and the most memory it was seen with, in MiB.
fn peer(command: &mut Command) -> Result<(Duration, f64)> {
    let output = tempfile::NamedTempFile::new()?;
    let started = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(output.reopen()?).stderr(output.reopen()?).spawn()?;
    let mut memory = 0.0;
    let status = loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let peak =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        memory = peak.unwrap_or(memory);
        if let Some(status) = child.try_wait()? {
            break status;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let took = started.elapsed();
    ensure!(status.success(), "a peer failed: {}", std::fs::read_to_string(output.path())?);
    Ok((took, memory / 1024.0))
}

fn file_of(addresses: impl IntoIterator<Item = String>) -> Result<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new()?;
    for address in addresses {
        writeln!(file, "{address}")?;
    }
    file.flush()?;
    Ok(file)
}

fn one<'r>(report: &'r Value, what: &str) -> &'r Value {
    &report["lists"][0][what]
}

/// A roster of thousands: left alone, and left by a tenth.
pub(crate) async fn large(rounds: usize) -> Result<Table> {
    let mailman = Mailman::start().await?;
    let list = mailman.create_list("large").await?;
    // The other ways are told on their command lines not to say goodbye.
    let silent = json!({"send_goodbye_message": false});
    mailman.ask(Method::PATCH, &format!("lists/{list}/config"), Some(silent)).await?;
    mailman.insert(&list, (0..MEMBERS).map(|n| address(n, DOMAIN)))?;
    let stayers = file_of((0..MEMBERS).map(|n| address(n, DOMAIN)))?;
    let mut people = People::new(MEMBERS, DOMAIN);
    let group = people.group(0..MEMBERS);
    let mut mirror =
        Mirror::start(people, &mailman.base_url(), mailman.password(), &[(group, list.clone())], &[]).await?;

    let seconds = || Series::new(Unit::Seconds);
    let (mut bare, mut ours, mut command, mut loops) = (seconds(), seconds(), seconds(), seconds());
    let mut their_memory = Series::new(Unit::Mebibytes);
    for round in 0..rounds {
        bare.time(bare_roster(&mailman, &list).await?);
        let (report, took) = mirror.run(&json!({})).await?;
        ensure!(one(&report, "wanted") == MEMBERS && one(&report, "roster") == MEMBERS, "{report}");
        ours.time(took);
        command.time(syncmembers(&mailman, &list, stayers.path())?);
        if round < FEW {
            let (took, peak) = client(&mailman, &list, stayers.path())?;
            loops.time(took);
            their_memory.push(peak);
        }
    }
    let mut table = Table::default();
    let what = format!("the mirror over {MEMBERS}, nothing to do");
    table.against(&what, &ours, "one bare reading of the roster", &bare, Goal::AtMost(1.25));
    table.against("the same", &ours, "`mailman syncmembers`", &command, Goal::Below);
    table.against("the same", &ours, "a `mailmanclient` loop", &loops, Goal::Below);

    let leavers = || (0..LEAVERS).map(|n| format!("leaver{n:04}@mail.example.org"));
    let (mut removals, mut ours, mut command, mut loops) = (seconds(), seconds(), seconds(), seconds());
    for round in 0..rounds {
        mailman.insert(&list, leavers())?;
        removals.time(bare_removals(&mailman, &list, &leavers().collect::<Vec<_>>()).await?);
        mailman.insert(&list, leavers())?;
        let (report, took) = mirror.run(&json!({})).await?;
        ensure!(one(&report, "unsubscribed") == LEAVERS, "{report}");
        ours.time(took);
        mailman.insert(&list, leavers())?;
        command.time(syncmembers(&mailman, &list, stayers.path())?);
        if round < FEW {
            mailman.insert(&list, leavers())?;
            loops.time(client(&mailman, &list, stayers.path())?.0);
        }
    }
    let what = format!("the mirror, {LEAVERS} removals of {}", MEMBERS + LEAVERS);
    let limit = bare.and(&removals);
    table.against(&what, &ours, "one bare reading and bare removals, 500 in a request", &limit, Goal::AtMost(1.2));
    table.against("the same", &ours, "the bare removals alone", &removals, Goal::None);
    table.against("the same", &ours, "`mailman syncmembers`", &command, Goal::Below);
    table.against("the same", &ours, "a `mailmanclient` loop", &loops, Goal::Below);
    let memory = Series::exact(Unit::Mebibytes, mirror.instance.peak_memory()?);
    table.at_most(&format!("the mirror's peak memory with {MEMBERS}"), &memory, 40.0);
    table.against("the same", &memory, "the `mailmanclient` loop", &their_memory, Goal::Below);
    Ok(table)
}

async fn bare_roster(mailman: &Mailman, list: &str) -> Result<Duration> {
    const PAGE: usize = 5_000;
    let started = Instant::now();
    for number in 1..=MEMBERS / PAGE {
        let path = format!("lists/{list}/roster/member?fields=email&count={PAGE}&page={number}");
        ensure!(mailman.ask(Method::GET, &path, None).await?.0 == 200, "{path}");
    }
    Ok(started.elapsed())
}

async fn bare_removals(mailman: &Mailman, list: &str, leaving: &[String]) -> Result<Duration> {
    let path = format!("lists/{list}/roster/member");
    let started = Instant::now();
    for emails in leaving.chunks(500) {
        let (status, _) = mailman.ask(Method::DELETE, &path, Some(json!({ "emails": emails }))).await?;
        ensure!(status == 200, "{status}");
    }
    Ok(started.elapsed())
}

/// First fills of lists that are empty.
pub(crate) async fn fills(rounds: usize, joiners: usize) -> Result<Table> {
    let mut table = Table::default();
    let databases = [
        (Database::Sqlite, "SQLite", 2, [Goal::Below, Goal::Below]),
        (Database::Postgres, "PostgreSQL", 4, [Goal::Times(1.5), Goal::Times(1.5)]),
    ];
    for (database, name, best, goals) in databases {
        fill(&mut table, rounds, joiners, database, name, best, goals).await?;
    }
    Ok(table)
}

/// The same on one database, where bare subscriptions are quickest `best` side by side.
async fn fill(
    table: &mut Table,
    rounds: usize,
    joiners: usize,
    database: Database,
    name: &str,
    best: usize,
    goals: [Goal; 2],
) -> Result<()> {
    let mailman = Mailman::start_on(database).await?;
    // Each list has people of its own: Mailman is quicker with an address that it knows.
    let addresses = |list: &str| -> Vec<String> { (0..joiners).map(|n| address(n, list)).collect() };
    let seconds = || Series::new(Unit::Seconds);
    let (mut bare, mut ours, mut command, mut loops) = (seconds(), seconds(), seconds(), seconds());
    for round in 0..rounds {
        let list = mailman.create_list(&format!("bare{round}")).await?;
        bare.time(bare_posts(&mailman, &list, &addresses(&list), best).await?);
        let list = mailman.create_list(&format!("mirror{round}")).await?;
        let mut people = People::new(joiners, &list);
        let group = people.group(0..joiners);
        let mut mirror = Mirror::start(people, &mailman.base_url(), mailman.password(), &[(group, list)], &[]).await?;
        let (report, took) = mirror.run(&json!({})).await?;
        ensure!(one(&report, "subscribed") == joiners, "{report}");
        ours.time(took);
        let list = mailman.create_list(&format!("command{round}")).await?;
        command.time(syncmembers(&mailman, &list, file_of(addresses(&list))?.path())?);
        let list = mailman.create_list(&format!("loop{round}")).await?;
        loops.time(client(&mailman, &list, file_of(addresses(&list))?.path())?.0);
    }
    let what = format!("{name}, a first fill of {joiners} by the mirror");
    let at_best = format!("bare subscriptions, {best} side by side");
    table.against(&what, &ours, &at_best, &bare, Goal::Speed(0.95));
    table.against("the same", &ours, "`mailman syncmembers`", &command, goals[0]);
    table.against("the same", &ours, "a `mailmanclient` loop", &loops, goals[1]);
    Ok(())
}

async fn bare_posts(mailman: &Mailman, list: &str, addresses: &[String], side_by_side: usize) -> Result<Duration> {
    let started = Instant::now();
    let posts = addresses.iter().map(|address| mailman.subscribe(list, address, "member"));
    stream::iter(posts).buffer_unordered(side_by_side).try_collect::<Vec<()>>().await?;
    Ok(started.elapsed())
}
