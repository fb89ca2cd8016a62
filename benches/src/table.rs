//! Figures, what they are held against, and the part of `docs/performance.md`
//! that is made of them.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// With fewer measurements than this a figure says how many there are.
const ENOUGH: usize = 20;

/// How a figure is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Seconds,
    Milliseconds,
    Microseconds,
    Mebibytes,
    Megabytes,
    Calls,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Seconds => format!("{value:.2} s"),
            Self::Milliseconds if value >= 100.0 => format!("{value:.0} ms"),
            Self::Milliseconds => format!("{value:.2} ms"),
            Self::Microseconds => format!("{value:.0} µs"),
            Self::Mebibytes => format!("{value:.1} MiB"),
            Self::Megabytes => format!("{value:.2} MB"),
            Self::Calls => format!("{value:.0} calls"),
        }
    }
}

/// Measurements of one thing.
#[derive(Clone)]
pub(crate) struct Series {
    unit: Unit,
    values: Vec<f64>,
}

impl Series {
    pub(crate) fn new(unit: Unit) -> Self {
        Self { unit, values: Vec::new() }
    }

    /// One that is the same however often it is looked at.
    pub(crate) fn exact(unit: Unit, value: f64) -> Self {
        Self { unit, values: vec![value] }
    }

    pub(crate) fn push(&mut self, value: f64) {
        self.values.push(value);
    }

    /// Adds a time, in the unit of the series.
    pub(crate) fn time(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        self.push(match self.unit {
            Unit::Milliseconds => seconds * 1e3,
            Unit::Microseconds => seconds * 1e6,
            _ => seconds,
        });
    }

    /// The value that so much of all values is not above.
    fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index"
        )]
        let index = ((sorted.len().saturating_sub(1)) as f64 * part).round() as usize;
        sorted.get(index).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The median of this and that together, as of one thing that is done after the other.
    pub(crate) fn and(&self, other: &Self) -> Self {
        Self { unit: self.unit, values: self.values.iter().zip(&other.values).map(|(one, two)| one + two).collect() }
    }

    fn show(&self) -> String {
        let middle = self.unit.show(self.median());
        let count = self.values.len();
        if count < 2 {
            return middle;
        }
        let few = if count < ENOUGH { format!(", of {count}") } else { String::new() };
        format!("{middle} ({} to {}{few})", self.unit.show(self.quantile(0.25)), self.unit.show(self.quantile(0.75)))
    }
}

/// What is to be reached.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    /// So many times as fast, or as small.
    Times(f64),
    /// At most so much of the other's.
    AtMost(f64),
    /// At least so much of the other's speed.
    Speed(f64),
    /// At most so much more than the other's, in its unit.
    Over(f64),
    /// Less than the other.
    Below,
    /// No goal: for the reader.
    None,
}

/// Rows of markdown.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<[String; 4]>,
}

impl Table {
    /// A figure on its own.
    pub(crate) fn figure(&mut self, what: &str, figure: &Series) {
        self.row([what.to_owned(), figure.show(), String::new(), String::new()]);
    }

    /// A figure and the most that it may be.
    pub(crate) fn at_most(&mut self, what: &str, figure: &Series, most: f64) {
        let reach = verdict(figure.median() <= most, &format!("at most {}", figure.unit.show(most)));
        self.row([what.to_owned(), figure.show(), String::new(), reach]);
    }

    /// A figure beside another of the same run.
    pub(crate) fn against(&mut self, what: &str, figure: &Series, other: &str, against: &Series, goal: Goal) {
        let (ours, theirs) = (figure.median(), against.median());
        let (ratio, reach) = match goal {
            Goal::Times(times) => (
                format!("{:.1} times better", theirs / ours),
                verdict(theirs / ours >= times, &format!("{times} times")),
            ),
            Goal::AtMost(most) => {
                (format!("{:.2} of it", ours / theirs), verdict(ours / theirs <= most, &format!("at most {most}")))
            }
            Goal::Speed(least) => {
                let speed = theirs / ours;
                (format!("{speed:.2} of its speed"), verdict(speed >= least, &format!("at least {least}")))
            }
            Goal::Over(more) => {
                let unit = figure.unit;
                let reach = verdict(ours - theirs <= more, &format!("at most {} more", unit.show(more)));
                (format!("{} more", unit.show(ours - theirs)), reach)
            }
            Goal::Below => (format!("{:.2} of it", ours / theirs), verdict(ours < theirs, "less")),
            Goal::None => (format!("{:.2} of it", ours / theirs), String::new()),
        };
        self.row([what.to_owned(), figure.show(), format!("{other}: {}; {ratio}", against.show()), reach]);
    }

    fn row(&mut self, row: [String; 4]) {
        progress(&format!("| {} |", row.join(" | ")));
        self.rows.push(row);
    }

    /// All of it, as markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = "| what | median (its middle half) | held against | goal |\n|---|---|---|---|\n".to_owned();
        for row in &self.rows {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
        text
    }
}

fn verdict(is_met: bool, goal: &str) -> String {
    if is_met { format!("{goal}: met") } else { format!("{goal}: **missed**") }
}

/// Says where the bench is.
pub(crate) fn progress(text: &str) {
    #[expect(clippy::print_stdout, reason = "a table on the terminal is what this is for")]
    {
        println!("{text}");
    }
}

/// Puts `text` between the marks of `part` in a file of markdown.
pub(crate) fn splice(file: &Path, part: &str, text: &str) -> Result<()> {
    let (from, to) = (format!("<!-- {part}: made by make bench -->"), format!("<!-- end of {part} -->"));
    let whole = std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
    let missing = || format!("{} has no place for {part}", file.display());
    let (before, rest) = whole.split_once(&from).with_context(missing)?;
    let (_, after) = rest.split_once(&to).with_context(missing)?;
    Ok(std::fs::write(file, format!("{before}{from}\n{}\n{to}{after}", text.trim_end()))?)
}
