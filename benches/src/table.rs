//! Figures, their baselines, and the tables in `docs/performance.md` that are generated from them.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// A figure from fewer measurements than this states their number.
const FULL_SAMPLE: usize = 20;

/// The unit of a figure.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Seconds,
    Milliseconds,
    Microseconds,
    Mebibytes,
    Megabytes,
    Kilobytes,
    Calls,
    Runs,
    /// Millions of instructions.
    Instructions,
}

impl Unit {
    /// Formats a value with this unit.
    fn show(self, value: f64) -> String {
        match self {
            Self::Seconds => format!("{value:.2} s"),
            Self::Milliseconds if value >= 100.0 => format!("{value:.0} ms"),
            Self::Milliseconds => format!("{value:.2} ms"),
            Self::Microseconds => format!("{value:.0} µs"),
            Self::Mebibytes => format!("{value:.1} MiB"),
            Self::Megabytes => format!("{value:.2} MB"),
            Self::Kilobytes => format!("{value:.0} KB"),
            Self::Calls => format!("{value:.0} calls"),
            Self::Runs if value < 1.5 => format!("{value:.0} run"),
            Self::Runs => format!("{value:.0} runs"),
            Self::Instructions => format!("{value:.0} million"),
        }
    }
}

/// A series of measurements of the same quantity.
#[derive(Clone)]
pub(crate) struct Series {
    unit: Unit,
    values: Vec<f64>,
}

impl Series {
    /// Creates an empty series.
    pub(crate) fn new(unit: Unit) -> Self {
        Self { unit, values: Vec::new() }
    }

    /// Creates a series with a single value, which doesn't vary between measurements.
    pub(crate) fn exact(unit: Unit, value: f64) -> Self {
        Self { unit, values: vec![value] }
    }

    /// Adds a value in the unit of the series.
    pub(crate) fn push(&mut self, value: f64) {
        self.values.push(value);
    }

    /// Adds a duration, converted to the unit of the series.
    pub(crate) fn time(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        self.push(match self.unit {
            Unit::Milliseconds => seconds * 1e3,
            Unit::Microseconds => seconds * 1e6,
            _ => seconds,
        });
    }

    /// Returns the value at this quantile, for example 0.5 for the median.
    fn quantile(&self, quantile: f64) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index"
        )]
        let index = ((sorted.len().saturating_sub(1)) as f64 * quantile).round() as usize;
        sorted.get(index).copied().unwrap_or(f64::NAN)
    }

    /// Returns the median.
    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Returns the sum of the values.
    pub(crate) fn sum(&self) -> f64 {
        self.values.iter().sum()
    }

    /// Adds the values of both series pairwise, as if the two operations ran one after the other.
    pub(crate) fn plus(&self, other: &Self) -> Self {
        Self { unit: self.unit, values: self.values.iter().zip(&other.values).map(|(one, two)| one + two).collect() }
    }

    /// Formats the median, and the interquartile range if there are several values.
    fn show(&self) -> String {
        let median = self.unit.show(self.median());
        let count = self.values.len();
        if count < 2 {
            return median;
        }
        let sample_size = if count < FULL_SAMPLE { format!(", n = {count}") } else { String::new() };
        format!(
            "{median} ({} to {}{sample_size})",
            self.unit.show(self.quantile(0.25)),
            self.unit.show(self.quantile(0.75))
        )
    }
}

/// The goal of a comparison.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    /// At least this many times as fast or as small as the baseline.
    FactorBetter(f64),
    /// At most this multiple of the baseline.
    MaxRatio(f64),
    /// At least this multiple of the baseline's speed.
    MinSpeedRatio(f64),
    /// At most this much more than the baseline, in its unit.
    MaxExcess(f64),
    /// Less than the baseline.
    Less,
    /// No goal. The comparison is only for information.
    None,
}

/// A Markdown table.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<[String; 4]>,
}

impl Table {
    /// Adds a figure without a baseline or goal.
    pub(crate) fn figure(&mut self, label: &str, figure: &Series) {
        self.row([label.to_owned(), figure.show(), String::new(), String::new()]);
    }

    /// Adds a figure with a maximum.
    pub(crate) fn at_most(&mut self, label: &str, figure: &Series, maximum: f64) {
        let goal = verdict(figure.median() <= maximum, &format!("at most {}", figure.unit.show(maximum)));
        self.row([label.to_owned(), figure.show(), String::new(), goal]);
    }

    /// Adds a figure with a baseline from the same run.
    pub(crate) fn compare(&mut self, label: &str, figure: &Series, baseline_name: &str, baseline: &Series, goal: Goal) {
        let (measured, reference) = (figure.median(), baseline.median());
        let (ratio, goal) = match goal {
            Goal::FactorBetter(times) => (
                format!("{:.1}× better", reference / measured),
                verdict(reference / measured >= times, &format!("at least {times}×")),
            ),
            Goal::MaxRatio(maximum) => (
                format!("{:.2}×", measured / reference),
                verdict(measured / reference <= maximum, &format!("at most {maximum}×")),
            ),
            Goal::MinSpeedRatio(minimum) => {
                let speed = reference / measured;
                (format!("{speed:.2}× its speed"), verdict(speed >= minimum, &format!("at least {minimum}×")))
            }
            Goal::MaxExcess(excess) => {
                let unit = figure.unit;
                let goal = verdict(measured - reference <= excess, &format!("at most {} more", unit.show(excess)));
                (format!("{} more", unit.show(measured - reference)), goal)
            }
            Goal::Less => (format!("{:.2}×", measured / reference), verdict(measured < reference, "less")),
            Goal::None => (format!("{:.2}×", measured / reference), String::new()),
        };
        self.row([label.to_owned(), figure.show(), format!("{baseline_name}: {}, {ratio}", baseline.show()), goal]);
    }

    /// Adds a row, and prints it.
    fn row(&mut self, row: [String; 4]) {
        progress(&format!("| {} |", row.join(" | ")));
        self.rows.push(row);
    }

    /// Returns the table as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = "| measurement | median (IQR) | baseline | goal |\n|---|---|---|---|\n".to_owned();
        for row in &self.rows {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
        text
    }
}

/// Formats a goal with the result.
fn verdict(is_met: bool, goal: &str) -> String {
    if is_met { format!("{goal}: met") } else { format!("{goal}: **missed**") }
}

/// Prints the progress of the benchmark.
pub(crate) fn progress(text: &str) {
    #[expect(clippy::print_stdout, reason = "progress belongs on the terminal")]
    {
        println!("{text}");
    }
}

/// Replaces the text between the markers of `part` in a Markdown file.
pub(crate) fn splice(file: &Path, part: &str, text: &str) -> Result<()> {
    let (from, to) = (format!("<!-- {part}: generated by make bench -->"), format!("<!-- end of {part} -->"));
    let whole = std::fs::read_to_string(file).with_context(|| format!("reading {} failed", file.display()))?;
    let missing = || format!("expected the markers of {part} in {}", file.display());
    let (before, rest) = whole.split_once(&from).with_context(missing)?;
    let (_, after) = rest.split_once(&to).with_context(missing)?;
    Ok(std::fs::write(file, format!("{before}{from}\n{}\n{to}{after}", text.trim_end()))?)
}
