//! Randomized tests that compare the mirror with a model: see `tests::model`. `make soak` runs them for a given time.
#![expect(clippy::print_stdout, reason = "the seed and the tally are for readers of the test's output")]

use std::time::{Duration, Instant};

use anyhow::Result;
use tests::mailman::Database;
use tests::model::{Runner, Tally};

/// The time after which no further sequence starts.
const DURATION: Duration = Duration::from_secs(10);

/// Runs sequences, starting with the seed in `MIRROR_SEED` or with a random one.
async fn run_sequences(database: Database) -> Result<()> {
    let requested = std::env::var("MIRROR_SEED").ok().and_then(|seed| seed.parse().ok());
    // Even seeds run on SQLite and odd ones on PostgreSQL, as in `make soak`.
    let first = requested.unwrap_or_else(|| fastrand::u64(..1 << 40)) & !1 | u64::from(database == Database::Postgres);
    println!("MIRROR_SEED={first}");
    let mut runner = Runner::start(database).await?;
    let mut tally = Tally::default();
    let started = Instant::now();
    for seed in (first..).step_by(2).take_while(|_| started.elapsed() < DURATION) {
        tally.add(runner.run_sequence(seed).await?);
    }
    println!("{tally}");
    assert!(tally.is_clean(), "starting with seed {first}:\n{tally}\n\n{}", tally.violations.join("\n\n"));
    assert!(tally.runs >= tally.sequences * 3 && tally.sequences > 0, "nothing was tested:\n{tally}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_mistakes_and_faults_move_no_one_beyond_the_rules_on_sqlite() -> Result<()> {
    run_sequences(Database::Sqlite).await
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_mistakes_and_faults_move_no_one_beyond_the_rules_on_postgresql() -> Result<()> {
    run_sequences(Database::Postgres).await
}
