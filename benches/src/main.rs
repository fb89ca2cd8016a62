//! `make bench`: measures the cost of the product on this machine, compared with something else in the same run.
//!
//! `bench [--only PART] [--rounds N] [--joiners N]` measures, and writes the generated parts of `docs/performance.md`.

mod budget;
mod check;
mod counter;
mod growth;
mod ledger;
mod mirror;
mod novi;
mod processor;
mod runtime;
mod table;
mod upstream;
mod verification;

use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use tests::workspace;

use crate::table::{Table, progress, splice};

/// The default number of measurements of each figure.
const ROUNDS: usize = 20;
/// The default number of subscriptions in one first fill.
const JOINERS: usize = 250;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the person who started the program reads it")]
            {
                eprintln!("bench: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Describes the machine and the time.
fn machine() -> Result<String> {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let value_of = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let model = value_of(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned());
    let kilobytes = value_of(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
    let gigabytes = kilobytes.trim_end_matches(" kB").parse::<u64>().unwrap_or_default() >> 20;
    Ok(format!(
        "Measured on {}: {} processors ({model}), {gigabytes} GiB, Linux {}.",
        httpdate::fmt_http_date(SystemTime::now()),
        std::thread::available_parallelism()?,
        read("/proc/sys/kernel/osrelease").trim(),
    ))
}

/// Runs the parts that the arguments select.
async fn run() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some("check") {
        return check::check(std::env::args().nth(2).as_deref() == Some("--accept")).await;
    }
    let (mut only, mut rounds, mut joiners) = (None, ROUNDS, JOINERS);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), arguments.next()) {
            ("--only", Some(part)) => only = Some(part),
            ("--rounds", Some(number)) => rounds = number.parse().context("--rounds is invalid: expected a number")?,
            ("--joiners", Some(number)) => {
                joiners = number.parse().context("--joiners is invalid: expected a number")?;
            }
            _ => bail!(
                "usage: bench [--only verification|budget|large|fills|calls|growth|ledger] [--rounds N] [--joiners N]"
            ),
        }
    }
    let is_wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);
    let file = workspace().join("docs/performance.md");
    let machine = machine()?;
    let write = |part: &str, table: &Table| splice(&file, part, &format!("{machine}\n\n{}", table.markdown()));
    if is_wanted("verification") {
        progress("Verification…");
        let table = verification::measure(rounds).await?;
        write("verification", &table)?;
    }
    if is_wanted("budget") {
        progress("Novi's limit per second…");
        write("budget", &budget::measure().await?)?;
    }
    if is_wanted("large") {
        progress("The mirror with a large list…");
        write("large", &mirror::large(rounds).await?)?;
    }
    if is_wanted("calls") {
        progress("Calls to Novi…");
        write("calls", &growth::calls().await?)?;
    }
    if is_wanted("growth") {
        progress("Growth…");
        write("growth", &growth::growth(rounds).await?)?;
    }
    if is_wanted("ledger") {
        progress("The ledger…");
        write("ledger", &ledger::measure(rounds).await?)?;
    }
    if is_wanted("fills") {
        progress("First fills…");
        write("fills", &mirror::fills(rounds, joiners).await?)?;
    }
    Ok(())
}
