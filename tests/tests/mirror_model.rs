//! The mirror against a model of it, at random: see `tests::model`. `make soak`
//! goes on for as long as it is told to.
#![expect(clippy::print_stdout, reason = "the seed and the tally are for who reads the test's output")]

use anyhow::Result;
use tests::mailman::Database;
use tests::model::{Stage, Tally};

/// Plays sequences from a seed on: that of `MIRROR_SEED`, or a fresh one.
async fn play(database: Database, sequences: usize) -> Result<()> {
    let given = std::env::var("MIRROR_SEED").ok().and_then(|seed| seed.parse().ok());
    // Even seeds are played on SQLite, odd ones on PostgreSQL, as `make soak` does.
    let first = given.unwrap_or_else(|| fastrand::u64(..1 << 40)) & !1 | u64::from(database == Database::Postgres);
    println!("MIRROR_SEED={first}");
    let mut stage = Stage::start(database).await?;
    let mut tally = Tally::default();
    for seed in (first..).step_by(2).take(sequences) {
        tally.add(stage.play(seed).await?);
    }
    println!("{tally}");
    assert!(tally.is_clean(), "from seed {first} on:\n{tally}");
    assert!(tally.runs >= sequences * 5 && !tally.faults.is_empty(), "nothing was tried:\n{tally}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_nobody_is_lost_and_two_runs_make_it_right_on_sqlite() -> Result<()> {
    play(Database::Sqlite, 6).await
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_nobody_is_lost_and_two_runs_make_it_right_on_postgresql() -> Result<()> {
    play(Database::Postgres, 6).await
}
