//! `make soak`: the mirror against its model (see `tests::model`), on fresh
//! seeds, for as long as it is told to. Ends in a count, and in an error where
//! anything was wrong.
#![expect(clippy::print_stdout, reason = "a report on the terminal is what this is for")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tests::mailman::Database;
use tests::model::{Stage, Tally};

const USAGE: &str = "usage: make soak ARGS='[--minutes N] [--seed N]'

  --minutes N  for how long (default 5)
  --seed N     where to begin, to see again what another run has shown (default: anywhere)";

struct Arguments {
    length: Duration,
    seed: u64,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let mut arguments = Self { length: Duration::from_secs(300), seed: fastrand::u64(..1 << 40) };
        while let Some(word) = words.next() {
            let mut number = || {
                let value = words.next().with_context(|| format!("{word} needs a number\n\n{USAGE}"))?;
                value.parse::<u64>().with_context(|| format!("{word} {value}: no whole number\n\n{USAGE}"))
            };
            match word.as_str() {
                "--minutes" => arguments.length = Duration::from_secs(number()?.saturating_mul(60)),
                "--seed" => arguments.seed = number()?,
                "--help" | "-h" => return Ok(None),
                _ => bail!("{word} is not known\n\n{USAGE}"),
            }
        }
        Ok(Some(arguments))
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let Some(Arguments { length, seed }) = Arguments::parse(std::env::args().skip(1))? else {
        println!("{USAGE}");
        return Ok(());
    };
    println!("For {} minutes, from seed {seed} on, on SQLite and on PostgreSQL", length.as_secs() / 60);
    let started = Instant::now();
    // Most of a sequence is waiting: four of them keep two cores busy.
    let plays: Vec<_> = (seed..seed + 4)
        .map(|first| tokio::spawn(play(Database::of(first), (first..).step_by(4), started + length)))
        .collect();
    let mut tally = Tally::default();
    for play in plays {
        tally.add(play.await??);
    }
    println!("{tally}");
    if !tally.is_clean() {
        bail!("not as it should be; `make soak ARGS='--seed N'` shows a seed again");
    }
    Ok(())
}

async fn play(database: Database, seeds: impl Iterator<Item = u64>, until: Instant) -> Result<Tally> {
    let mut stage = Stage::start(database).await?;
    let mut tally = Tally::default();
    for seed in seeds {
        tally.add(stage.play(seed).await?);
        if Instant::now() >= until {
            break;
        }
        if tally.sequences.is_multiple_of(10) {
            println!("  {database:?}: {} sequences, {} runs so far", tally.sequences, tally.runs);
        }
    }
    Ok(tally)
}
