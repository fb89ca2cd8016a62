//! The mirror with a ledger: its calls to Novi over a day and over a pass, and what the ledger itself costs.
//!
//! The ledger is a file in memory. In S3, the four requests of a run take the way there and back in addition.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::function::binary;

use crate::counter::{Counter, LONG_TIMEOUTS};
use crate::growth::{DOMAIN, simulated_mailman};
use crate::mirror::{Mirror, MirrorConfig, configure};
use crate::novi::{People, Reads};
use crate::runtime::{Instance, memory_dir};
use crate::table::{Goal, Series, Table, Unit};
use crate::upstream::Upstream;
use crate::verification::megabytes;

/// The number of groups, each of which is mapped to a list of its own.
const GROUPS: usize = 12;
/// The time between two runs.
const PERIOD: Duration = Duration::from_secs(3_600);
/// The runs in a day.
const DAY: usize = 24;
/// The default of `NOVI_MAX_PER_DAY`.
const MAX_PER_DAY: u32 = 50_000;
/// The members of each of many lists.
const PER_LIST: usize = 200;
/// The maximum number of measurements with 100,000 people, each of which takes seconds.
const MAX_ROUNDS: usize = 5;

/// Measures runs with a ledger.
pub(crate) async fn measure(rounds: usize) -> Result<Table> {
    let mut table = Table::default();
    day(&mut table).await?;
    long_pass(&mut table).await?;
    cost(rounds, &mut table).await?;
    many_lists(rounds, &mut table).await?;
    starts(rounds, &mut table).await?;
    Ok(table)
}

/// Hourly runs of a mirror with a ledger, with a key that may not list Novi's records. Each run is a new process, with a
/// clock that is one hour ahead of the one before.
struct HourlyRuns {
    config: MirrorConfig,
    reads: Arc<Mutex<Reads>>,
    next: usize,
    _mailman: Upstream,
    _dir: TempDir,
}

impl HourlyRuns {
    /// Starts the upstreams. If `last_joins_in` is set, the last person joins the last group in that run.
    async fn start(size: usize, last_joins_in: Option<usize>) -> Result<Self> {
        let mut people = People::new(size, DOMAIN);
        people.are_listable = false;
        people.last_joins_in = last_joins_in;
        let (mut lists, mut mappings) = (Vec::new(), Vec::new());
        for n in 0..GROUPS {
            let members = n * size / GROUPS..(n + 1) * size / GROUPS;
            let list = format!("list{n}.lists.example.org");
            mappings.push((people.group(members.clone()), list.clone()));
            let is_last = n == GROUPS - 1 && last_joins_in.is_some();
            lists.push((list, (members.start..members.end - usize::from(is_last)).collect()));
        }
        let mailman = simulated_mailman(lists).await?;
        let dir = memory_dir()?;
        let location = format!("file://{}", dir.path().join("ledger").display());
        let per_day = MAX_PER_DAY.to_string();
        let variables = [("LEDGER", location.as_str()), ("NOVI_MAX_PER_DAY", &per_day)];
        let reads = Arc::clone(&people.reads);
        let config = configure(people, &mailman.url(), "a password", &mappings, &variables).await?;
        Ok(Self { config, reads, next: 0, _mailman: mailman, _dir: dir })
    }

    /// Runs once. Returns the report.
    async fn run(&mut self) -> Result<Value> {
        self.reads(|reads| reads.run = self.next);
        let ahead = PERIOD * u32::try_from(self.next)?;
        let mut instance = Instance::start_ahead(ahead, &binary("mirror")?, &self.config.variables).await?;
        let (report, _) = instance.invoke(&Bytes::from_static(b"{}")).await?;
        instance.terminate()?;
        self.next += 1;
        ensure!(report["status"] == "ok" || report["status"] == "unfinished", "{report}");
        Ok(report)
    }

    fn reads<T>(&self, with: impl FnOnce(&mut Reads) -> T) -> T {
        with(&mut self.reads.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Returns the calls to Novi of a run.
fn calls(report: &Value) -> Result<f64> {
    report["novi_calls"].as_f64().context("expected novi_calls in the report")
}

/// Returns the number of people that a run subscribed.
fn subscribed(report: &Value) -> u64 {
    report["lists"].as_array().into_iter().flatten().filter_map(|list| list["subscribed"].as_u64()).sum()
}

/// Returns a quantity that doesn't vary.
#[expect(clippy::cast_precision_loss, reason = "some thousands")]
fn exact(unit: Unit, value: usize) -> Series {
    Series::exact(unit, value as f64)
}

/// Counts the calls to Novi of a day with hourly runs over 6,000 people, and one who joins a group at noon.
async fn day(table: &mut Table) -> Result<()> {
    const PEOPLE: usize = 6_000;
    const NOON: usize = DAY / 2;
    let mut runs = HourlyRuns::start(PEOPLE, Some(NOON)).await?;
    let (mut by_run, mut joined, mut gap_before) = (Series::new(Unit::Calls), None, 0);
    for n in 0..DAY {
        if n == NOON {
            gap_before = runs.reads(|reads| reads.longest_gap);
        }
        let report = runs.run().await?;
        by_run.push(calls(&report)?);
        if subscribed(&report) > 0 {
            joined.get_or_insert(n);
        }
    }
    let joined = joined.context("expected that the newcomer joins")?;
    let (asked, gap) = runs.reads(|reads| (reads.people(), reads.longest_gap));
    ensure!(asked == PEOPLE, "{asked} of {PEOPLE} people were read");
    let what = format!("{PEOPLE} people in {GROUPS} groups, hourly");
    table.figure(&format!("calls to Novi in one run, {what}"), &by_run);
    let without = exact(Unit::Calls, DAY * (PEOPLE + GROUPS));
    let total = Series::exact(Unit::Calls, by_run.sum());
    table.at_most(&format!("calls to Novi in a day, {what}"), &total, f64::from(MAX_PER_DAY));
    table.compare("the same", &total, "without a ledger, if there were room", &without, Goal::Less);
    table.at_most("the most runs from one read of a person to the next", &exact(Unit::Runs, gap_before), 3.0);
    // The newcomer is read first, in the place of someone else.
    table.figure("the same, if someone joins a group", &exact(Unit::Runs, gap));
    table.at_most("runs from joining a group to joining its list", &exact(Unit::Runs, joined - NOON + 1), 1.0);
    Ok(())
}

/// Counts the runs of a pass over 20,000 people.
async fn long_pass(table: &mut Table) -> Result<()> {
    const PEOPLE: usize = 20_000;
    let mut runs = HourlyRuns::start(PEOPLE, None).await?;
    let mut by_run = Series::new(Unit::Calls);
    loop {
        let report = runs.run().await?;
        by_run.push(calls(&report)?);
        if report["ledger"]["pass"] == "complete" {
            break;
        }
        ensure!(runs.next < DAY, "the pass takes longer than a day: {report}");
    }
    let what = format!("a pass over {PEOPLE} people in {GROUPS} groups, hourly");
    table.at_most(&format!("runs of {what}"), &exact(Unit::Runs, runs.next), 10.0);
    table.figure(&format!("calls to Novi in one run of {what}"), &by_run);
    Ok(())
}

/// Measures what a ledger adds to a run: opening it, claiming it, and writing it before and after applying.
async fn cost(rounds: usize, table: &mut Table) -> Result<()> {
    const LIST: &str = "members.lists.example.org";
    for size in [1_000, 10_000, 100_000] {
        let mailman = simulated_mailman(vec![(LIST.to_owned(), (0..size).collect())]).await?;
        let dir = memory_dir()?;
        let file = dir.path().join("ledger");
        let location = format!("file://{}", file.display());
        let series = || [Series::new(Unit::Milliseconds), Series::new(Unit::Mebibytes)];
        let (mut with, mut without) = (series(), series());
        let start = async |variables: &[(&str, &str)]| {
            let mut people = People::new(size, DOMAIN);
            let group = people.group(0..size);
            let mappings = [(group, LIST.to_owned())];
            Mirror::start(people, &mailman.url(), "a password", &mappings, variables).await
        };
        for _ in 0..rounds.min(MAX_ROUNDS) {
            let variables = [("LEDGER", location.as_str())];
            let mut mirror = start(&variables).await?;
            mirror.run(&json!({})).await?;
            // The second run opens what the first one wrote.
            let Mirror { instance, config } = mirror;
            instance.terminate()?;
            let instance = Instance::start(&binary("mirror")?, &[], &config.variables).await?;
            let mut mirror = Mirror::new(config, instance);
            let (report, took) = mirror.run(&json!({})).await?;
            ensure!(report["ledger"]["people"] == size, "{report}");
            with[0].time(took);
            with[1].push(mirror.instance.peak_memory()?);
            std::fs::remove_file(&file)?;
            let mut mirror = start(&[]).await?;
            let (_, took) = mirror.run(&json!({})).await?;
            without[0].time(took);
            without[1].push(mirror.instance.peak_memory()?);
        }
        let what = |what: &str| format!("{what} with a ledger of {size} people");
        table.compare(&what("a run"), &with[0], "without", &without[0], Goal::MaxExcess(2_000.0));
        table.compare(&what("peak memory"), &with[1], "without", &without[1], Goal::MaxExcess(64.0));
    }
    Ok(())
}

/// Measures runs over many lists.
async fn many_lists(rounds: usize, table: &mut Table) -> Result<()> {
    let mut before: Option<[Series; 3]> = None;
    for count in [100, 1_000] {
        let size = count * PER_LIST;
        let mailman = simulated_mailman((0..count).map(|n| (list(n), members_of(n).collect())).collect()).await?;
        let (mut time, mut memory, mut reports) =
            (Series::new(Unit::Seconds), Series::new(Unit::Mebibytes), Series::new(Unit::Kilobytes));
        for _ in 0..rounds.min(MAX_ROUNDS) {
            let (config, _dir) = configure_many(count, &mailman, &[]).await?;
            let instance = Instance::start(&binary("mirror")?, &[], &config.variables).await?;
            let mut mirror = Mirror::new(config, instance);
            let (report, took) = mirror.run(&json!({})).await?;
            ensure!(report["ledger"]["people"] == size, "{report}");
            time.time(took);
            memory.push(mirror.instance.peak_memory()?);
            #[expect(clippy::cast_precision_loss, reason = "some hundreds of kilobytes")]
            reports.push(report.to_string().len() as f64 / 1e3);
        }
        let instructions = Series::exact(Unit::Instructions, instructions(count, &mailman).await?);
        let what = format!("{size} members in {count} lists, with `GET /members` and a ledger");
        if let Some([time_before, memory_before, instructions_before]) = &before {
            let name = "with a tenth of both";
            table.compare(&format!("a run over {what}"), &time, name, time_before, Goal::MaxRatio(10.0));
            // Sorting takes more than linear time.
            table.compare("its instructions", &instructions, name, instructions_before, Goal::MaxRatio(11.0));
            table.compare("its peak memory", &memory, name, memory_before, Goal::MaxRatio(10.0));
            table.at_most("its peak memory", &memory, 512.0);
            table.at_most("its result", &reports, 5_000.0);
        }
        before = Some([time, memory, instructions]);
    }
    Ok(())
}

fn list(n: usize) -> String {
    format!("list{n}.lists.example.org")
}

fn members_of(n: usize) -> Range<usize> {
    n * PER_LIST..(n + 1) * PER_LIST
}

/// Configures a mirror with many lists, and an empty ledger in the returned directory.
async fn configure_many(count: usize, mailman: &Upstream, extra: &[(&str, &str)]) -> Result<(MirrorConfig, TempDir)> {
    let mut people = People::new(count * PER_LIST, DOMAIN);
    let mappings: Vec<_> = (0..count).map(|n| (people.group(members_of(n)), list(n))).collect();
    let dir = memory_dir()?;
    let location = format!("file://{}", dir.path().join("ledger").display());
    let variables: Vec<_> = extra.iter().copied().chain([("LEDGER", location.as_str())]).collect();
    Ok((configure(people, &mailman.url(), "a password", &mappings, &variables).await?, dir))
}

/// Returns how many million instructions a run over many lists takes, the start included.
async fn instructions(count: usize, mailman: &Upstream) -> Result<f64> {
    let (config, _dir) = configure_many(count, mailman, &LONG_TIMEOUTS[..2]).await?;
    let (instance, counter) = Counter::start(&binary("mirror")?, &config.variables).await?;
    let mut mirror = Mirror::new(config, instance);
    mirror.run(&json!({})).await?;
    let total = counter.total(mirror.instance)?;
    #[expect(clippy::cast_precision_loss, reason = "some billions")]
    let millions = total as f64 / 1e6;
    Ok(millions)
}

/// Measures the start of the mirror, and the size of its binary.
async fn starts(rounds: usize, table: &mut Table) -> Result<()> {
    let dir = memory_dir()?;
    let location = format!("file://{}", dir.path().join("ledger").display());
    let (mut with, mut without) = (Series::new(Unit::Milliseconds), Series::new(Unit::Milliseconds));
    let mailman = simulated_mailman(Vec::new()).await?;
    for _ in 0..rounds {
        for (series, variables) in [(&mut with, &[("LEDGER", location.as_str())][..]), (&mut without, &[])] {
            let people = People::new(1, DOMAIN);
            let mirror = Mirror::start(people, &mailman.url(), "a password", &[], variables).await?;
            series.time(mirror.instance.init);
        }
    }
    table.compare("init of `mirror` with a ledger", &with, "without", &without, Goal::MaxRatio(1.1));
    table.at_most("binary of `mirror`, stripped", &megabytes(&binary("mirror")?)?, 8.5);
    Ok(())
}
