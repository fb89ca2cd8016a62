//! `make faults`: tests both functions with every fault of every service and
//! prints a table of the results. Then it repeats six faults many times, to check
//! that no resources leak, and sends requests while faults come and go (see
//! `tests::faults`). It fails if any test fails. `ARGS=verify` or `ARGS=mirror`
//! tests only one function.
#![expect(clippy::print_stdout, reason = "the purpose of this program is a report on the terminal")]

use anyhow::{Result, bail};
use tests::faults::{Coverage, Lambda, REPRESENTATIVE, Runner, Service, Share};

/// The number of repetitions of each of the six faults.
const ROUNDS: usize = 200;
/// The number of requests while faults come and go.
const REQUESTS: usize = 2_000;

#[tokio::main]
async fn main() -> Result<()> {
    let mut is_clean = true;
    let only = std::env::args().nth(1);
    for (lambda, name) in [(Lambda::Verify, "verify"), (Lambda::Mirror, "mirror")] {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let mut runner = Runner::start(lambda).await?;
        let table = runner.run_all(&Service::ALL, Coverage::Full, Share::ALL, |row| println!("{row}")).await?;
        println!("{lambda:?}: {}\n", table.summary());
        is_clean &= table.is_clean();
        for (_, service, fault) in REPRESENTATIVE.into_iter().filter(|(tested, ..)| *tested == lambda) {
            println!("{}", runner.repeat(service, fault, ROUNDS).await?);
        }
        if lambda == Lambda::Verify {
            println!("{}", runner.run_requests(REQUESTS).await?);
        }
        println!();
    }
    if !is_clean {
        bail!("some tests failed");
    }
    Ok(())
}
