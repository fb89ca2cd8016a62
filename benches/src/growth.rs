//! The growth of the mirror's cost with the number of members: reading, comparing and planning, with upstreams that
//! respond immediately. Also counts the calls to Novi.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use http::Uri;
use plotters::prelude::*;
use serde_json::json;
use tests::workspace;

use crate::mirror::Mirror;
use crate::novi::{People, address};
use crate::table::{Goal, Series, Table, Unit};
use crate::upstream::{Upstream, page, query_number};

/// The numbers of members.
const SIZES: [usize; 3] = [1_000, 10_000, 100_000];
/// The domain of the addresses.
pub(crate) const DOMAIN: &str = "mail.example.org";
/// The plot, in the same directory as the document that shows it.
const PLOT: &str = "docs/growth.svg";

/// Starts a simulated Mailman with these lists. Each list has the people with these indices as members.
pub(crate) async fn simulated_mailman(lists: Vec<(String, Vec<usize>)>) -> Result<Upstream> {
    let row = |n: &usize| json!({"email": address(*n, DOMAIN)}).to_string();
    let lists: HashMap<String, Vec<String>> = lists
        .into_iter()
        .map(|(list, members)| (format!("/3.1/lists/{list}/roster/member"), members.iter().map(row).collect()))
        .collect();
    let responses = move |uri: &Uri| {
        // A subscription succeeds, but doesn't change the roster.
        if uri.path() == "/3.1/members" {
            return Some(Bytes::new());
        }
        let rows = lists.get(uri.path())?;
        let count = query_number(uri, "count")?;
        Some(page(rows, (query_number(uri, "page")? - 1) * count, count, "total_size", "entries"))
    };
    Upstream::start(responses, Duration::ZERO, None).await
}

/// Measures a run with nothing to do, for increasing numbers of members.
pub(crate) async fn growth(rounds: usize) -> Result<Table> {
    const LIST: &str = "members.lists.example.org";
    let mut table = Table::default();
    let (mut times, mut memories) = (Vec::new(), Vec::new());
    for size in SIZES {
        let (mut time, mut cpu) = (Series::new(Unit::Milliseconds), Series::new(Unit::Milliseconds));
        let mut memory = Series::new(Unit::Mebibytes);
        let upstream = simulated_mailman(vec![(LIST.to_owned(), (0..size).collect())]).await?;
        for _ in 0..rounds {
            let mut people = People::new(size, DOMAIN);
            let group = people.group(0..size);
            let mut mirror =
                Mirror::start(people, &upstream.url(), "a password", &[(group, LIST.to_owned())], &[]).await?;
            let before = mirror.instance.cpu_time()?;
            let (report, took) = mirror.run(&json!({})).await?;
            ensure!(report["lists"][0]["wanted"] == size && report["lists"][0]["roster"] == size, "{report}");
            time.time(took);
            cpu.time(mirror.instance.cpu_time()? - before);
            memory.push(mirror.instance.peak_memory()?);
        }
        if let (Some(before), Some(memory_before)) = (times.first(), memories.first()) {
            let what = |what: &str| format!("{what} with {size} members");
            let baseline = format!("with {}", SIZES[0]);
            #[expect(clippy::cast_precision_loss, reason = "at most a hundred")]
            let linear = Goal::MaxRatio((size / SIZES[0]) as f64);
            table.compare(&what("a run"), &time, &baseline, before, linear);
            table.compare(&what("peak memory"), &memory, &baseline, memory_before, linear);
        }
        table.figure(&format!("CPU time of the mirror with {size} members"), &cpu);
        times.push(time);
        memories.push(memory);
    }
    plot(&times, &memories)?;
    Ok(table)
}

/// Counts the calls to Novi for twelve overlapping groups.
pub(crate) async fn calls() -> Result<Table> {
    const MEMBERS: usize = 10_000;
    const GROUPS: usize = 12;
    let mut table = Table::default();
    for (bulk, are_listable, probes, what) in [
        ("auto", true, 0, "`NOVI_BULK=auto`"),
        ("auto", false, 1, "`NOVI_BULK=auto`, with a key that may not list records"),
        ("off", false, 0, "`NOVI_BULK=off`"),
    ] {
        let mut people = People::new(MEMBERS, DOMAIN);
        people.are_listable = are_listable;
        let (mut lists, mut mappings) = (Vec::new(), Vec::new());
        for n in 0..GROUPS {
            let (list, members) = (format!("list{n}.lists.example.org"), members_of(n, MEMBERS, GROUPS));
            mappings.push((people.group(members.iter().copied()), list.clone()));
            lists.push((list, members));
        }
        let minimum = people.minimum_calls();
        let upstream = simulated_mailman(lists).await?;
        let mut mirror =
            Mirror::start(people, &upstream.url(), "a password", &mappings, &[("NOVI_BULK", bulk)]).await?;
        let (report, _) = mirror.run(&json!({})).await?;
        let calls = report["novi_calls"].as_u64().context("expected novi_calls in the report")?;
        #[expect(clippy::cast_precision_loss, reason = "some thousands")]
        let (calls, minimum) = (calls as f64, (minimum + probes) as f64);
        table.compare(
            &format!("calls to Novi for {MEMBERS} members in {GROUPS} overlapping groups, {what}"),
            &Series::exact(Unit::Calls, calls),
            "the minimum, including the probe if one is needed",
            &Series::exact(Unit::Calls, minimum),
            Goal::MaxExcess(0.0),
        );
    }
    Ok(table)
}

/// Returns the members of group `n`: consecutive people, the last of which are also in the next group. Every person is
/// in a group.
fn members_of(n: usize, people: usize, groups: usize) -> Vec<usize> {
    let first = n * people / groups;
    (first..first + 1_000 + 137 * n).map(|n| n % people).collect()
}

/// Plots time and memory by members, on logarithmic scales. Linear growth is a straight line.
fn plot(times: &[Series], memories: &[Series]) -> Result<()> {
    #[expect(clippy::cast_precision_loss, reason = "precise enough for a plot")]
    let points = |series: &[Series]| -> Vec<(f64, f64)> {
        SIZES.iter().zip(series).map(|(size, series)| (*size as f64, series.median())).collect()
    };
    let path = workspace().join(PLOT);
    let failed = |error: String| anyhow!("drawing the plot failed: {error}");
    {
        let root = SVGBackend::new(&path, (760, 300)).into_drawing_area();
        root.fill(&WHITE).map_err(|error| failed(error.to_string()))?;
        for (area, (series, unit)) in root
            .split_evenly((1, 2))
            .iter()
            .zip([(points(times), "time per run (ms)"), (points(memories), "peak memory (MiB)")])
        {
            draw(area, &series, unit).map_err(|error| failed(error.to_string()))?;
        }
        root.present().map_err(|error| failed(error.to_string()))?;
    }
    // The backend doesn't end the last line with a line break.
    let drawn = fs::read_to_string(&path)?;
    Ok(fs::write(&path, format!("{}\n", drawn.trim_end()))?)
}

/// Draws one chart: the series, and linear growth from its first point.
fn draw<'a>(
    area: &DrawingArea<SVGBackend<'a>, plotters::coord::Shift>,
    series: &[(f64, f64)],
    unit: &str,
) -> Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>> {
    let first = series.first().copied().unwrap_or((1.0, 1.0));
    let linear: Vec<(f64, f64)> = series.iter().map(|(members, _)| (*members, first.1 * members / first.0)).collect();
    let highest = linear.iter().chain(series).map(|(_, value)| *value).fold(first.1, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(unit, ("sans-serif", 15))
        .margin(12)
        .x_label_area_size(34)
        .y_label_area_size(52)
        .build_cartesian_2d((800.0..125_000.0).log_scale(), (first.1 / 2.0..highest * 1.5).log_scale())?;
    chart.configure_mesh().x_desc("members").x_label_formatter(&|members| format!("{members:.0}")).draw()?;
    chart.draw_series(LineSeries::new(linear, RGBColor(150, 150, 150)))?;
    chart.draw_series(LineSeries::new(series.iter().copied(), BLUE.stroke_width(2)))?;
    chart.draw_series(series.iter().map(|point| Circle::new(*point, 4, BLUE.filled())))?;
    Ok(())
}
