//! `make soak`: checks the mirror against its model (see `tests::model`) with new
//! seeds for a given time. It prints a tally, and fails if there was any deviation
//! from the model.
#![expect(clippy::print_stdout, reason = "the purpose of this program is a report on the terminal")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tests::mailman::Database;
use tests::model::{Runner, Tally};

const USAGE: &str = "usage: make soak ARGS='[--minutes N] [--seed N]'

  --minutes N  duration in minutes (default: 5)
  --seed N     first seed, to reproduce the result of an earlier run (default: random)";

struct Arguments {
    duration: Duration,
    seed: u64,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let mut arguments = Self { duration: Duration::from_secs(300), seed: fastrand::u64(..1 << 40) };
        while let Some(word) = words.next() {
            let mut number = || {
                let value = words
                    .next()
                    .with_context(|| format!("{word} is missing its value: expected a whole number\n\n{USAGE}"))?;
                value
                    .parse::<u64>()
                    .with_context(|| format!("{word} {value} is invalid: expected a whole number\n\n{USAGE}"))
            };
            match word.as_str() {
                "--minutes" => arguments.duration = Duration::from_secs(number()?.saturating_mul(60)),
                "--seed" => arguments.seed = number()?,
                "--help" | "-h" => return Ok(None),
                _ => bail!("unknown argument {word}\n\n{USAGE}"),
            }
        }
        Ok(Some(arguments))
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let Some(Arguments { duration, seed }) = Arguments::parse(std::env::args().skip(1))? else {
        println!("{USAGE}");
        return Ok(());
    };
    println!("Running for {} minutes on SQLite and PostgreSQL, starting with seed {seed}", duration.as_secs() / 60);
    let started = Instant::now();
    // A sequence mostly waits, so eight concurrent ones keep two cores busy.
    let tasks: Vec<_> = (seed..seed + 8)
        .map(|first| tokio::spawn(run_sequences(Database::for_seed(first), (first..).step_by(8), started + duration)))
        .collect();
    let mut tally = Tally::default();
    for task in tasks {
        tally.add(task.await??);
    }
    println!("{tally}");
    if !tally.is_clean() {
        bail!("the mirror deviated from the model. `make soak ARGS='--seed N'` reproduces a seed's sequence.");
    }
    Ok(())
}

async fn run_sequences(database: Database, seeds: impl Iterator<Item = u64>, until: Instant) -> Result<Tally> {
    let mut runner = Runner::start(database).await?;
    let mut tally = Tally::default();
    for seed in seeds {
        let results = runner.run_sequence(seed).await?;
        // At once, so that a run that is cut loses none.
        results.violations.iter().for_each(|violation| println!("{violation}\n"));
        tally.add(results);
        if Instant::now() >= until {
            break;
        }
        if tally.sequences.is_multiple_of(10) {
            println!("  {database:?}: {} sequences, {} runs so far", tally.sequences, tally.runs);
        }
    }
    Ok(tally)
}
