//! `make bench-check`: whether a hot path takes more instructions than it used
//! to. Valgrind counts them, so a busy machine does not matter.
//!
//! Each path is walked a few times and then many times in a process of its own;
//! the difference is what walking it costs, without the start.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;
use tests::function::binary;
use tests::workspace;

use crate::growth::mailman;
use crate::mirror::{Mirror, configuration};
use crate::novi::People;
use crate::runtime::Instance;
use crate::table::progress;
use crate::verification::{World, is_answered};

/// How far from that is too far.
const TOLERANCE: f64 = 0.10;
/// Valgrind is some fifty times slower: nobody's patience may end.
const PATIENCE: [(&str, &str); 3] = [("CACHE_TIMEOUT_MS", "10000"), ("NOVI_TIMEOUT_MS", "25000"), ("CONFIG_FILE", "")];

/// Counts, and compares with the baseline; or makes the counts the baseline.
pub(crate) async fn check(accept: bool) -> Result<()> {
    let mut counts = BTreeMap::from([("a plan of 10,000", plan().await?)]);
    for (name, origin) in [("a hit", "hit"), ("a miss", "miss")] {
        counts.insert(name, verification(origin).await?);
    }
    // Another processor has other instructions.
    let name = format!("benches/instructions.{}.json", std::env::consts::ARCH);
    let file = workspace().join(&name);
    if accept {
        return Ok(std::fs::write(file, format!("{:#}\n", json!(counts)))?);
    }
    if !file.exists() {
        progress(&format!("NOT CHECKED: there is no {name}; make bench-check ARGS=--accept makes it"));
        return Ok(());
    }
    let baseline: BTreeMap<String, u64> =
        serde_json::from_slice(&std::fs::read(&file)?).with_context(|| format!("{name} makes no sense"))?;
    let mut is_off = false;
    for (path, count) in counts {
        let before = *baseline.get(path).with_context(|| format!("{name} does not know {path}"))?;
        #[expect(clippy::cast_precision_loss, reason = "a ratio")]
        let ratio = count as f64 / before as f64;
        progress(&format!("{path}: {count} instructions, {ratio:.3} of the {before} that it used to take"));
        // One that was much better would let it get worse again unseen.
        is_off |= (ratio - 1.0).abs() > TOLERANCE;
    }
    if is_off {
        bail!(
            "a path takes more than {:.0} % more or fewer instructions than it used to; \
             where that is as it should be: make bench-check ARGS=--accept",
            TOLERANCE * 1e2
        );
    }
    Ok(())
}

/// What one answer costs.
async fn verification(origin: &str) -> Result<u64> {
    const FEW: usize = 20;
    const MANY: usize = 120;
    let mut world = World::start(2 + FEW + MANY, Duration::ZERO, &PATIENCE).await?;
    let mut totals = Vec::new();
    for times in [FEW, MANY] {
        let mut counted = Counted::start("verify", world.variables()).await?;
        let known = world.stranger()?;
        counted.instance.invoke(&known).await?;
        for _ in 0..times {
            let event = if origin == "hit" { known.clone() } else { world.stranger()? };
            is_answered(&counted.instance.invoke(&event).await?.0, origin)?;
        }
        totals.push(counted.total()?);
    }
    Ok((totals[1] - totals[0]) / (MANY - FEW) as u64)
}

/// What a run of the mirror with nothing to do costs: reading, comparing, planning.
async fn plan() -> Result<u64> {
    const PEOPLE: usize = 10_000;
    const LIST: &str = "members.lists.example.org";
    let upstream = mailman(vec![(LIST.to_owned(), (0..PEOPLE).collect())]).await?;
    let mut totals = Vec::new();
    for times in [1, 3] {
        let mut people = People::new(PEOPLE, crate::growth::DOMAIN);
        let group = people.group(0..PEOPLE);
        let stage =
            configuration(people, &upstream.url(), "a password", &[(group, LIST.to_owned())], &PATIENCE[..2]).await?;
        let counted = Counted::start("mirror", &stage.variables).await?;
        let mut mirror = Mirror::on(stage, counted.instance);
        for _ in 0..times {
            mirror.run(&json!({})).await?;
        }
        totals.push(Counted { instance: mirror.instance, out: counted.out }.total()?);
    }
    Ok((totals[1] - totals[0]) / 2)
}

/// An instance whose instructions are counted.
struct Counted {
    instance: Instance,
    out: tempfile::TempPath,
}

impl Counted {
    async fn start(name: &str, variables: &[(String, String)]) -> Result<Self> {
        let out = tempfile::NamedTempFile::new()?.into_temp_path();
        let program = binary(name)?.display().to_string();
        let arguments = ["--quiet", "--tool=callgrind", &format!("--callgrind-out-file={}", out.display()), &program];
        let instance = Instance::start(Path::new("valgrind"), &arguments, variables).await?;
        Ok(Self { instance, out })
    }

    /// Ends it. How many instructions it took in all.
    fn total(self) -> Result<u64> {
        self.instance.terminate()?;
        let profile = std::fs::read_to_string(&self.out)?;
        let total = profile.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok());
        total.context("valgrind has counted nothing")
    }
}
