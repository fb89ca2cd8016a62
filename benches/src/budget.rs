//! Verification under Novi's limit per second: many uncached members at once, over several instances.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use tests::function::binary;

use crate::runtime::Instance;
use crate::table::{Goal, Series, Table, Unit};
use crate::verification::{Environment, LATENCY};

/// The instances, each of which handles one request at a time.
const INSTANCES: usize = 8;
/// The members who are verified at once.
const MEMBERS: usize = 80;
/// The measurements. All of them fit into one minute's allowance.
const ROUNDS: usize = 5;
/// The default of `NOVI_TOTAL_PER_SECOND`.
const PER_SECOND: u32 = 18;

/// Measures how long it takes until all members are verified.
pub(crate) async fn measure() -> Result<Table> {
    let per_second = PER_SECOND.to_string();
    let limits = [("NOVI_TOTAL_PER_SECOND", per_second.as_str())];
    let mut environment = Environment::start(ROUNDS * MEMBERS, LATENCY, &limits).await?;
    let program = binary("verify")?;
    let mut instances = Vec::new();
    for _ in 0..INSTANCES {
        instances.push(Instance::start(&program, &[], environment.variables()).await?);
    }
    let mut took = Series::new(Unit::Seconds);
    for _ in 0..ROUNDS {
        let events: Vec<Bytes> = (0..MEMBERS).map(|_| environment.uncached_member()).collect::<Result<_>>()?;
        let started = Instant::now();
        try_join_all(instances.iter_mut().zip(events.chunks(MEMBERS / INSTANCES)).map(async |(instance, events)| {
            for event in events {
                verify_politely(instance, event).await?;
            }
            anyhow::Ok(())
        }))
        .await?;
        took.time(started.elapsed());
    }
    let mut table = Table::default();
    #[expect(clippy::cast_precision_loss, reason = "less than a hundred")]
    let minimum = Series::exact(Unit::Seconds, (MEMBERS - 1) as f64 / f64::from(PER_SECOND));
    table.compare(
        &format!("{MEMBERS} uncached members at once, over {INSTANCES} instances"),
        &took,
        &format!("the limit of {PER_SECOND} calls a second"),
        &minimum,
        Goal::MaxRatio(1.5),
    );
    Ok(table)
}

/// Verifies a member, and comes back when `Retry-After` says so.
async fn verify_politely(instance: &mut Instance, event: &Bytes) -> Result<()> {
    const MAX_ATTEMPTS: usize = 10;
    for _ in 0..MAX_ATTEMPTS {
        let (response, _) = instance.invoke(event).await?;
        if response["statusCode"] == 200 {
            return Ok(());
        }
        ensure!(response["statusCode"] == 429, "{response}");
        let seconds = response["headers"]["retry-after"].as_str().context("expected Retry-After with a 429")?;
        tokio::time::sleep(Duration::from_secs(seconds.parse()?)).await;
    }
    bail!("a member was not verified after {MAX_ATTEMPTS} attempts")
}
