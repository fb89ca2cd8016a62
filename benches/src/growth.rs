//! How the mirror grows with the membership: reading, comparing and planning,
//! on upstreams that answer at once. And how many calls to Novi it takes.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use http::Uri;
use plotters::prelude::*;
use serde_json::json;
use tests::workspace;

use crate::mirror::Mirror;
use crate::novi::{People, address};
use crate::table::{Goal, Series, Table, Unit};
use crate::upstream::{Upstream, number, page};

const SIZES: [usize; 3] = [1_000, 10_000, 100_000];
/// Where people have their addresses.
pub(crate) const DOMAIN: &str = "mail.example.org";
/// The plot, beside the text that shows it.
const PLOT: &str = "docs/growth.svg";

/// A Mailman of lists that hold so many of the people each.
pub(crate) async fn mailman(lists: Vec<(String, Vec<usize>)>) -> Result<Upstream> {
    let row = |n: &usize| json!({"email": address(*n, DOMAIN)}).to_string();
    let lists: Vec<(String, Vec<String>)> = lists
        .into_iter()
        .map(|(list, members)| (format!("/3.1/lists/{list}/roster/member"), members.iter().map(row).collect()))
        .collect();
    let answers = move |uri: &Uri| {
        let (_, rows) = lists.iter().find(|(path, _)| path == uri.path())?;
        let count = number(uri, "count")?;
        Some(page(rows, (number(uri, "page")? - 1) * count, count, "total_size", "entries"))
    };
    Upstream::start(answers, Duration::ZERO, None).await
}

/// A run with nothing to do, over more and more people.
pub(crate) async fn growth(rounds: usize) -> Result<Table> {
    const LIST: &str = "members.lists.example.org";
    let mut table = Table::default();
    let (mut times, mut memories) = (Vec::new(), Vec::new());
    for size in SIZES {
        let (mut time, mut busy) = (Series::new(Unit::Milliseconds), Series::new(Unit::Milliseconds));
        let mut memory = Series::new(Unit::Mebibytes);
        let upstream = mailman(vec![(LIST.to_owned(), (0..size).collect())]).await?;
        for _ in 0..rounds {
            let mut people = People::new(size, DOMAIN);
            let group = people.group(0..size);
            let mut mirror =
                Mirror::start(people, &upstream.url(), "a password", &[(group, LIST.to_owned())], &[]).await?;
            let before = mirror.instance.busy()?;
            let (report, took) = mirror.run(&json!({})).await?;
            ensure!(report["lists"][0]["wanted"] == size && report["lists"][0]["roster"] == size, "{report}");
            time.time(took);
            busy.time(mirror.instance.busy()? - before);
            memory.push(mirror.instance.peak_memory()?);
        }
        if let (Some(before), Some(memory_before)) = (times.first(), memories.first()) {
            let what = |what: &str| format!("{what} with {size} members");
            let fewer = format!("with {}", SIZES[0]);
            #[expect(clippy::cast_precision_loss, reason = "a hundred at most")]
            let linear = Goal::AtMost((size / SIZES[0]) as f64);
            table.against(&what("a run"), &time, &fewer, before, linear);
            table.against(&what("peak memory"), &memory, &fewer, memory_before, linear);
        }
        table.figure(&format!("the mirror's own share of a processor's time with {size} members"), &busy);
        times.push(time);
        memories.push(memory);
    }
    plot(&times, &memories)?;
    Ok(table)
}

/// Calls to Novi for twelve groups that overlap.
pub(crate) async fn calls() -> Result<Table> {
    const MEMBERS: usize = 10_000;
    const GROUPS: usize = 12;
    let mut table = Table::default();
    for (bulk, are_listed, probes, what) in [
        ("auto", true, 0, "`NOVI_BULK=auto`"),
        ("auto", false, 1, "`NOVI_BULK=auto` where the key may not list records"),
        ("off", false, 0, "`NOVI_BULK=off`"),
    ] {
        let mut people = People::new(MEMBERS, DOMAIN);
        people.are_listed = are_listed;
        let (mut lists, mut mappings) = (Vec::new(), Vec::new());
        for n in 0..GROUPS {
            let (list, members) = (format!("list{n}.lists.example.org"), members_of(n, MEMBERS, GROUPS));
            mappings.push((people.group(members.iter().copied()), list.clone()));
            lists.push((list, members));
        }
        let fewest = people.fewest_calls();
        let upstream = mailman(lists).await?;
        let mut mirror =
            Mirror::start(people, &upstream.url(), "a password", &mappings, &[("NOVI_BULK", bulk)]).await?;
        let (report, _) = mirror.run(&json!({})).await?;
        let made = report["novi_calls"].as_u64().context("the report says")?;
        #[expect(clippy::cast_precision_loss, reason = "some thousands")]
        let (made, fewest) = (made as f64, (fewest + probes) as f64);
        table.against(
            &format!("calls to Novi for {MEMBERS} members in {GROUPS} overlapping groups, {what}"),
            &Series::exact(Unit::Calls, made),
            "the fewest possible, and the probe where there is one",
            &Series::exact(Unit::Calls, fewest),
            Goal::Over(0.0),
        );
    }
    Ok(table)
}

/// Who is in the group of this number: a run of people that begins in one group and ends in the next, everybody in one.
fn members_of(n: usize, people: usize, groups: usize) -> Vec<usize> {
    let first = n * people / groups;
    (first..first + 1_000 + 137 * n).map(|n| n % people).collect()
}

/// Time and memory by members, on logarithmic scales, where what is linear is a straight line.
fn plot(times: &[Series], memories: &[Series]) -> Result<()> {
    #[expect(clippy::cast_precision_loss, reason = "for the eye")]
    let points = |series: &[Series]| -> Vec<(f64, f64)> {
        SIZES.iter().zip(series).map(|(size, series)| (*size as f64, series.median())).collect()
    };
    let path = workspace().join(PLOT);
    let failed = |error: String| anyhow!("the plot cannot be drawn: {error}");
    {
        let root = SVGBackend::new(&path, (760, 300)).into_drawing_area();
        root.fill(&WHITE).map_err(|error| failed(error.to_string()))?;
        for (area, (series, unit)) in
            root.split_evenly((1, 2)).iter().zip([(points(times), "ms, a run"), (points(memories), "MiB, at most")])
        {
            draw(area, &series, unit).map_err(|error| failed(error.to_string()))?;
        }
        root.present().map_err(|error| failed(error.to_string()))?;
    }
    // The backend ends its last line without a line break.
    let drawn = fs::read_to_string(&path)?;
    Ok(fs::write(&path, format!("{}\n", drawn.trim_end()))?)
}

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
