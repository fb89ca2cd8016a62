//! `make bench-check`: fails if a hot path takes more instructions than its baseline. Valgrind counts them, so the load
//! of the machine doesn't matter.
//!
//! Each path runs a few times in one process, and many times in another. The difference is the cost of the path without
//! startup.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tests::workspace;

use crate::counter::{Counter, LONG_TIMEOUTS};
use crate::growth::simulated_mailman;
use crate::mirror::{Mirror, configure};
use crate::novi::People;
use crate::table::progress;
use crate::verification::{Environment, ensure_origin};

/// The maximum relative difference from the baseline.
const TOLERANCE: f64 = 0.10;

/// Counts instructions, and compares them with the baseline. With `accept`, writes the counts as the new baseline.
pub(crate) async fn check(accept: bool) -> Result<()> {
    let mut counts = BTreeMap::from([("mirror plan of 10,000", plan().await?)]);
    for (name, origin) in [("cache hit", "hit"), ("cache miss", "miss")] {
        counts.insert(name, verify(origin).await?);
    }
    // Each architecture has its own instructions.
    let name = format!("benches/instructions.{}.json", std::env::consts::ARCH);
    let file = workspace().join(&name);
    if accept {
        return Ok(std::fs::write(file, format!("{:#}\n", json!(counts)))?);
    }
    if !file.exists() {
        progress(&format!("NOT CHECKED: {name} doesn't exist. make bench-check ARGS=--accept creates it"));
        return Ok(());
    }
    let baseline: BTreeMap<String, u64> =
        serde_json::from_slice(&std::fs::read(&file)?).with_context(|| format!("parsing {name} failed"))?;
    let mut has_failed = false;
    for (path, count) in counts {
        let expected = *baseline.get(path).with_context(|| format!("expected {path} in {name}"))?;
        #[expect(clippy::cast_precision_loss, reason = "a ratio")]
        let ratio = count as f64 / expected as f64;
        progress(&format!("{path}: {count} instructions, {ratio:.3}× the baseline of {expected}"));
        // A count far below the baseline also fails, because a later regression would go unnoticed.
        has_failed |= (ratio - 1.0).abs() > TOLERANCE;
    }
    if has_failed {
        bail!(
            "a path takes over {:.0} % more or fewer instructions than its baseline. \
             If that is intended, run make bench-check ARGS=--accept",
            TOLERANCE * 1e2
        );
    }
    Ok(())
}

/// Counts the instructions of one request.
async fn verify(origin: &str) -> Result<u64> {
    const SHORT_RUN: usize = 20;
    const LONG_RUN: usize = 120;
    let mut environment = Environment::start(2 + SHORT_RUN + LONG_RUN, Duration::ZERO, &LONG_TIMEOUTS).await?;
    let mut totals = Vec::new();
    for times in [SHORT_RUN, LONG_RUN] {
        let (mut instance, counter) = Counter::start(&release_binary("verify")?, environment.variables()).await?;
        let cached = environment.uncached_member()?;
        instance.invoke(&cached).await?;
        for _ in 0..times {
            let event = if origin == "hit" { cached.clone() } else { environment.uncached_member()? };
            ensure_origin(&instance.invoke(&event).await?.0, origin)?;
        }
        totals.push(counter.total(instance)?);
    }
    Ok((totals[1] - totals[0]) / (LONG_RUN - SHORT_RUN) as u64)
}

/// Counts the instructions of a run of the mirror with nothing to do: reading, comparing, planning.
async fn plan() -> Result<u64> {
    const PEOPLE: usize = 10_000;
    const LIST: &str = "members.lists.example.org";
    let upstream = simulated_mailman(vec![(LIST.to_owned(), (0..PEOPLE).collect())]).await?;
    let mut totals = Vec::new();
    for times in [1, 3] {
        let mut people = People::new(PEOPLE, crate::growth::DOMAIN);
        let group = people.group(0..PEOPLE);
        let config =
            configure(people, &upstream.url(), "a password", &[(group, LIST.to_owned())], &LONG_TIMEOUTS[..2]).await?;
        let (instance, counter) = Counter::start(&release_binary("mirror")?, &config.variables).await?;
        let mut mirror = Mirror::new(config, instance);
        for _ in 0..times {
            mirror.run(&json!({})).await?;
        }
        totals.push(counter.total(mirror.instance)?);
    }
    Ok((totals[1] - totals[0]) / 2)
}

/// Returns the path of a function as it is released. This program is usually a debug build.
fn release_binary(name: &str) -> Result<PathBuf> {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { std::env::consts::ARCH };
    let path = workspace().join("target/bench-check/functions").join(architecture).join(name).join("bootstrap");
    ensure!(path.is_file(), "{} doesn't exist. make bench-check builds it", path.display());
    Ok(path)
}
