//! A processor of its own for the function, as it has on Lambda; and a part of
//! one, as its memory brings it there.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Where this thread, and what it starts, may run; as before once this is dropped.
pub(crate) struct Place {
    before: CpuSet,
}

impl Place {
    /// On the first processor, or on all others.
    pub(crate) fn on(first: bool) -> Result<Self> {
        let (this, before) = (Pid::from_raw(0), sched_getaffinity(Pid::from_raw(0))?);
        let mut place = CpuSet::new();
        for n in 0..std::thread::available_parallelism()?.get().max(2) {
            if (n == 0) == first {
                place.set(n)?;
            }
        }
        // A machine with one processor has no other.
        let _ = sched_setaffinity(this, &place);
        Ok(Self { before })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = sched_setaffinity(Pid::from_raw(0), &self.before);
    }
}

/// The part that 256 MB get: 1,769 MB get a whole one.
/// <https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html>
pub(crate) const SHARE: f64 = 256.0 / 1_769.0;
/// In which it has that share, in microseconds: as long as Lambda's own is found to be.
const PERIOD: u32 = 20_000;

/// A control group whose processes share [`SHARE`] of one processor.
pub(crate) struct Quota(PathBuf);

impl Quota {
    /// Makes one, where the kernel and our rights allow it.
    pub(crate) fn new() -> Result<Self> {
        let name = format!("novi-bridge-bench-{}", std::process::id());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some thousands")]
        let quota = (SHARE * f64::from(PERIOD)) as u32;
        let (v1, v2) = (Path::new("/sys/fs/cgroup/cpu"), Path::new("/sys/fs/cgroup"));
        let (group, settings) = if v1.join("cpu.cfs_quota_us").exists() || v1.join("cpu.shares").exists() {
            let settings = [("cpu.cfs_period_us", PERIOD.to_string()), ("cpu.cfs_quota_us", quota.to_string())];
            (v1.join(name), settings.to_vec())
        } else {
            (v2.join(name), vec![("cpu.max", format!("{quota} {PERIOD}"))])
        };
        std::fs::create_dir(&group).context("no control group can be made")?;
        let group = Self(group);
        for (file, value) in settings {
            std::fs::write(group.0.join(file), value).with_context(|| format!("{file} cannot be set"))?;
        }
        Ok(group)
    }

    /// From now on this process has no more than the share.
    pub(crate) fn hold(&self, process: u32) -> Result<()> {
        Ok(std::fs::write(self.0.join("cgroup.procs"), process.to_string())?)
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        // The kernel lets it go once its processes have.
        let _ = std::fs::remove_dir(&self.0);
    }
}
