//! The mirror with a real Mailman: a run with nothing to do, removals, and a first fill. Compares it with Mailman's own
//! `syncmembers`, with a loop over its client, and with bare requests.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
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

/// The number of members of the large list.
const MEMBERS: usize = 10_000;
/// The number of members who leave.
const LEAVERS: usize = 1_000;
/// The maximum number of measurements of the client loop, because each takes most of a minute.
const MAX_LOOP_ROUNDS: usize = 5;
/// The domain of the addresses.
const DOMAIN: &str = "mail.example.org";

/// The configuration of a mirror, with everything that it needs except Mailman.
pub(crate) struct MirrorConfig {
    pub(crate) variables: Vec<(String, String)>,
    _novi: Upstream,
    _dir: TempDir,
}

/// Configures a mirror that syncs groups to lists, and starts its Novi. A mapping is a pair of a group and a list.
pub(crate) async fn configure(
    people: People,
    mailman: &str,
    password: &str,
    mappings: &[(Uuid, String)],
    extra: &[(&str, &str)],
) -> Result<MirrorConfig> {
    let novi = people.serve().await?;
    let mappings: Vec<Value> =
        mappings.iter().map(|(group, list)| json!({"group_guid": group, "list_id": list})).collect();
    let config = json!({
        "novi_api_root_url": format!("{}/api", novi.url()), "novi_idaa_api_key": "a-key",
        "mailman_base_url": mailman, "mailman_username": USER, "mailman_password": password,
        "novi_mailman_sync": mappings, "ledger_key": STANDARD.encode([7; 32]),
    });
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("config.json");
    std::fs::write(&file, config.to_string())?;
    let file = file.display().to_string();
    let defaults = [
        ("CONFIG_FILE", file.as_str()),
        ("MIRROR_APPLY", "true"),
        ("NOVI_MAX_PER_SECOND", "10000"),
        ("NOVI_MAX_PER_MINUTE", "100000"),
        ("NOVI_MAX_PER_DAY", "1000000"),
        ("NOVI_TOTAL_PER_SECOND", "1000000"),
    ];
    let variables =
        defaults.iter().chain(extra).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Ok(MirrorConfig { variables, _novi: novi, _dir: dir })
}

/// An instance of the mirror, with everything that it needs except Mailman.
pub(crate) struct Mirror {
    pub(crate) instance: Instance,
    pub(crate) config: MirrorConfig,
}

impl Mirror {
    /// Starts a mirror that syncs groups to lists.
    pub(crate) async fn start(
        people: People,
        mailman: &str,
        password: &str,
        mappings: &[(Uuid, String)],
        extra: &[(&str, &str)],
    ) -> Result<Self> {
        let config = configure(people, mailman, password, mappings, extra).await?;
        let instance = Instance::start(&binary("mirror")?, &[], &config.variables).await?;
        Ok(Self::new(config, instance))
    }

    /// Wraps an instance that was started with this configuration.
    pub(crate) fn new(config: MirrorConfig, instance: Instance) -> Self {
        Self { instance, config }
    }

    /// Runs once. Returns the report, and the duration of the invocation.
    pub(crate) async fn run(&mut self, event: &Value) -> Result<(Value, Duration)> {
        let (report, took) = self.instance.invoke(&Bytes::from(event.to_string())).await?;
        ensure!(report["status"] == "ok", "{report}");
        Ok((report, took))
    }
}

/// Runs Mailman's own `mailman syncmembers` with a file. Returns the duration.
fn syncmembers(mailman: &Mailman, list: &str, file: &Path) -> Result<Duration> {
    let mut command = Command::new(venv().join("bin/mailman"));
    command.arg("-C").arg(mailman.config_file()).arg("--run-as-root").arg("syncmembers");
    command.args(["--no-welcome-msg", "--no-goodbye-msg", "--no-admin-notify"]).arg(file).arg(list);
    // Click needs to know the encoding of its text.
    command.env("LC_ALL", "C.UTF-8");
    Ok(run_peer(&mut command)?.0)
}

/// Runs a loop over Mailman's own client. Returns the duration, and the peak memory in MiB.
fn client(mailman: &Mailman, list: &str, file: &Path) -> Result<(Duration, f64)> {
    let mut command = Command::new(python());
    command.arg(workspace().join("benches/python/mailmanclient_sync.py"));
    command.args([&format!("{}/3.1", mailman.base_url()), USER, mailman.password(), list]).arg(file);
    run_peer(&mut command)
}

/// Runs a peer until it exits. Returns the duration, and the highest memory that was sampled, in MiB.
fn run_peer(command: &mut Command) -> Result<(Duration, f64)> {
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
    ensure!(status.success(), "running a peer failed: {}", std::fs::read_to_string(output.path())?);
    Ok((took, memory / 1024.0))
}

/// Writes addresses to a file, one per line.
fn address_file(addresses: impl IntoIterator<Item = String>) -> Result<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new()?;
    for address in addresses {
        writeln!(file, "{address}")?;
    }
    file.flush()?;
    Ok(file)
}

/// Returns a field of the first list in a report.
fn list_field<'r>(report: &'r Value, name: &str) -> &'r Value {
    &report["lists"][0][name]
}

/// Measures runs with a large roster: one with nothing to do, and one in which some members leave.
pub(crate) async fn large(rounds: usize) -> Result<Table> {
    let mailman = Mailman::start().await?;
    let list = mailman.create_list("large").await?;
    // The peers get an option on the command line that disables goodbye messages.
    let silent = json!({"send_goodbye_message": false});
    mailman.request(Method::PATCH, &format!("lists/{list}/config"), Some(silent)).await?;
    mailman.insert_members(&list, (0..MEMBERS).map(|n| address(n, DOMAIN)))?;
    let remaining = address_file((0..MEMBERS).map(|n| address(n, DOMAIN)))?;
    let mut people = People::new(MEMBERS, DOMAIN);
    let group = people.group(0..MEMBERS);
    let mut mirror =
        Mirror::start(people, &mailman.base_url(), mailman.password(), &[(group, list.clone())], &[]).await?;

    let seconds = || Series::new(Unit::Seconds);
    let (mut bare, mut runs, mut command, mut client_loops) = (seconds(), seconds(), seconds(), seconds());
    let mut client_memory = Series::new(Unit::Mebibytes);
    for round in 0..rounds {
        bare.time(bare_roster(&mailman, &list).await?);
        let (report, took) = mirror.run(&json!({})).await?;
        ensure!(list_field(&report, "wanted") == MEMBERS && list_field(&report, "roster") == MEMBERS, "{report}");
        runs.time(took);
        command.time(syncmembers(&mailman, &list, remaining.path())?);
        if round < MAX_LOOP_ROUNDS {
            let (took, peak) = client(&mailman, &list, remaining.path())?;
            client_loops.time(took);
            client_memory.push(peak);
        }
    }
    let mut table = Table::default();
    let what = format!("a run over {MEMBERS} members, nothing to do");
    table.compare(&what, &runs, "one bare read of the roster", &bare, Goal::MaxRatio(1.25));
    table.compare("the same", &runs, "`mailman syncmembers`", &command, Goal::Less);
    table.compare("the same", &runs, "a `mailmanclient` loop", &client_loops, Goal::Less);

    let leavers = || (0..LEAVERS).map(|n| format!("leaver{n:04}@mail.example.org"));
    let (mut removals, mut runs, mut command, mut client_loops) = (seconds(), seconds(), seconds(), seconds());
    for round in 0..rounds {
        mailman.insert_members(&list, leavers())?;
        removals.time(bare_removals(&mailman, &list, &leavers().collect::<Vec<_>>()).await?);
        mailman.insert_members(&list, leavers())?;
        let (report, took) = mirror.run(&json!({})).await?;
        ensure!(list_field(&report, "unsubscribed") == LEAVERS, "{report}");
        runs.time(took);
        mailman.insert_members(&list, leavers())?;
        command.time(syncmembers(&mailman, &list, remaining.path())?);
        if round < MAX_LOOP_ROUNDS {
            mailman.insert_members(&list, leavers())?;
            client_loops.time(client(&mailman, &list, remaining.path())?.0);
        }
    }
    let what = format!("a run with {LEAVERS} removals from {} members", MEMBERS + LEAVERS);
    let minimum = bare.plus(&removals);
    table.compare(&what, &runs, "one bare read and bare removals, 500 per request", &minimum, Goal::MaxRatio(1.2));
    table.compare("the same", &runs, "only the bare removals", &removals, Goal::None);
    table.compare("the same", &runs, "`mailman syncmembers`", &command, Goal::Less);
    table.compare("the same", &runs, "a `mailmanclient` loop", &client_loops, Goal::Less);
    let memory = Series::exact(Unit::Mebibytes, mirror.instance.peak_memory()?);
    table.at_most(&format!("peak memory of the mirror with {MEMBERS} members"), &memory, 40.0);
    table.compare("the same", &memory, "the `mailmanclient` loop", &client_memory, Goal::Less);
    Ok(table)
}

/// Reads the roster with bare requests. Returns the duration.
async fn bare_roster(mailman: &Mailman, list: &str) -> Result<Duration> {
    const PAGE: usize = 5_000;
    let started = Instant::now();
    for number in 1..=MEMBERS / PAGE {
        let path = format!("lists/{list}/roster/member?fields=email&count={PAGE}&page={number}");
        ensure!(mailman.request(Method::GET, &path, None).await?.0 == 200, "{path}");
    }
    Ok(started.elapsed())
}

/// Removes members with bare requests. Returns the duration.
async fn bare_removals(mailman: &Mailman, list: &str, leaving: &[String]) -> Result<Duration> {
    let path = format!("lists/{list}/roster/member");
    let started = Instant::now();
    for emails in leaving.chunks(500) {
        let (status, _) = mailman.request(Method::DELETE, &path, Some(json!({ "emails": emails }))).await?;
        ensure!(status == 200, "{status}");
    }
    Ok(started.elapsed())
}

/// Measures first fills of empty lists.
pub(crate) async fn fills(rounds: usize, joiners: usize) -> Result<Table> {
    let mut table = Table::default();
    let databases = [
        (Database::Sqlite, "SQLite", 2, [Goal::Less, Goal::Less]),
        (Database::Postgres, "PostgreSQL", 4, [Goal::FactorBetter(1.5), Goal::FactorBetter(1.5)]),
    ];
    for (database, name, concurrency, goals) in databases {
        fill(&mut table, rounds, joiners, database, name, concurrency, goals).await?;
    }
    Ok(table)
}

/// Measures first fills with one database, on which bare subscriptions are fastest with this concurrency.
async fn fill(
    table: &mut Table,
    rounds: usize,
    joiners: usize,
    database: Database,
    name: &str,
    concurrency: usize,
    goals: [Goal; 2],
) -> Result<()> {
    let mailman = Mailman::start_on(database).await?;
    // Each list has its own people, because Mailman is faster with an address that it already knows.
    let addresses = |list: &str| -> Vec<String> { (0..joiners).map(|n| address(n, list)).collect() };
    let seconds = || Series::new(Unit::Seconds);
    let (mut bare, mut runs, mut command, mut client_loops) = (seconds(), seconds(), seconds(), seconds());
    for round in 0..rounds {
        let list = mailman.create_list(&format!("bare{round}")).await?;
        bare.time(bare_posts(&mailman, &list, &addresses(&list), concurrency).await?);
        let list = mailman.create_list(&format!("mirror{round}")).await?;
        let mut people = People::new(joiners, &list);
        let group = people.group(0..joiners);
        let mut mirror = Mirror::start(people, &mailman.base_url(), mailman.password(), &[(group, list)], &[]).await?;
        let (report, took) = mirror.run(&json!({})).await?;
        ensure!(list_field(&report, "subscribed") == joiners, "{report}");
        runs.time(took);
        let list = mailman.create_list(&format!("command{round}")).await?;
        command.time(syncmembers(&mailman, &list, address_file(addresses(&list))?.path())?);
        let list = mailman.create_list(&format!("loop{round}")).await?;
        client_loops.time(client(&mailman, &list, address_file(addresses(&list))?.path())?.0);
    }
    let what = format!("{name}, first fill of {joiners} by the mirror");
    let baseline = format!("bare subscriptions, {concurrency} at a time");
    table.compare(&what, &runs, &baseline, &bare, Goal::MinSpeedRatio(0.95));
    table.compare("the same", &runs, "`mailman syncmembers`", &command, goals[0]);
    table.compare("the same", &runs, "a `mailmanclient` loop", &client_loops, goals[1]);
    Ok(())
}

/// Subscribes addresses with bare requests. Returns the duration.
async fn bare_posts(mailman: &Mailman, list: &str, addresses: &[String], concurrency: usize) -> Result<Duration> {
    let started = Instant::now();
    let posts = addresses.iter().map(|address| mailman.subscribe(list, address, "member"));
    stream::iter(posts).buffer_unordered(concurrency).try_collect::<Vec<()>>().await?;
    Ok(started.elapsed())
}
