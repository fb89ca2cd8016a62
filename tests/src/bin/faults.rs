//! `make faults`: every fault of every service under both functions, with a
//! table of what came of each; then six of them over and over, to see that
//! nothing piles up, and requests while faults come and go (see
//! `tests::faults`). Ends in an error where anything was wrong. `ARGS=verify` or
//! `ARGS=mirror` tries one function alone.
#![expect(clippy::print_stdout, reason = "a report on the terminal is what this is for")]

use anyhow::{Result, bail};
use tests::faults::{Extent, REPRESENTATIVE, Service, Stage, Which};

/// How often each of the six.
const ROUNDS: usize = 200;
/// How many requests while faults come and go.
const REQUESTS: usize = 2_000;

#[tokio::main]
async fn main() -> Result<()> {
    let mut is_clean = true;
    let only = std::env::args().nth(1);
    for (which, name) in [(Which::Verify, "verify"), (Which::Mirror, "mirror")] {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let mut stage = Stage::start(which).await?;
        let table = stage.play(&Service::ALL, Extent::Whole, |row| println!("{row}")).await?;
        println!("{which:?}: {}\n", table.summary());
        is_clean &= table.is_clean();
        for (_, service, fault) in REPRESENTATIVE.into_iter().filter(|(of, ..)| *of == which) {
            println!("{}", stage.repeat(service, fault, ROUNDS).await?);
        }
        if which == Which::Verify {
            println!("{}", stage.sequence(REQUESTS).await?);
        }
        println!();
    }
    if !is_clean {
        bail!("some faults are not borne as they should be");
    }
    Ok(())
}
