//! `make bench`: what the product costs on this machine, each figure beside
//! something else of the same run.
//!
//! `bench [--only PART] [--rounds N]` measures and writes the parts of
//! `docs/performance.md` that are made by it.

mod check;
mod growth;
mod mirror;
mod novi;
mod processor;
mod runtime;
mod table;
mod upstream;
mod verification;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use tests::workspace;

use crate::table::{progress, splice};

/// Measurements of each figure, unless it is told otherwise.
const ROUNDS: usize = 20;
/// Subscriptions of one first fill, unless it is told otherwise.
const JOINERS: usize = 250;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "whoever has started the program reads it")]
            {
                eprintln!("bench: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some("check") {
        return check::check(std::env::args().nth(2).as_deref() == Some("--accept")).await;
    }
    let (mut only, mut rounds, mut joiners) = (None, ROUNDS, JOINERS);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), arguments.next()) {
            ("--only", Some(part)) => only = Some(part),
            ("--rounds", Some(number)) => rounds = number.parse().context("--rounds needs a number")?,
            ("--joiners", Some(number)) => joiners = number.parse().context("--joiners needs a number")?,
            _ => bail!("usage: bench [--only verification|large|fills|calls|growth] [--rounds N] [--joiners N]"),
        }
    }
    let is_wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);
    let file = workspace().join("docs/performance.md");
    if is_wanted("verification") {
        progress("Verification…");
        let table = verification::measure(rounds).await?;
        splice(&file, "verification", &table.markdown())?;
    }
    if is_wanted("large") {
        progress("The mirror over a large list…");
        splice(&file, "large", &mirror::large(rounds).await?.markdown())?;
    }
    if is_wanted("calls") {
        progress("Calls to Novi…");
        splice(&file, "calls", &growth::calls().await?.markdown())?;
    }
    if is_wanted("growth") {
        progress("Growth…");
        splice(&file, "growth", &growth::growth(rounds).await?.markdown())?;
    }
    if is_wanted("fills") {
        progress("First fills…");
        splice(&file, "fills", &mirror::fills(rounds, joiners).await?.markdown())?;
    }
    Ok(())
}
