//! CPU limits, as on Lambda: a CPU that only the function uses, and the share of a CPU that the function's memory size
//! gets.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The CPUs that this thread and its child processes may use. Dropping it restores the previous set.
pub(crate) struct CpuAffinity {
    before: CpuSet,
}

impl CpuAffinity {
    /// Restricts this thread to the first CPU, or to all others.
    pub(crate) fn set(first: bool) -> Result<Self> {
        let (thread, before) = (Pid::from_raw(0), sched_getaffinity(Pid::from_raw(0))?);
        let mut cpus = CpuSet::new();
        for n in 0..std::thread::available_parallelism()?.get().max(2) {
            if (n == 0) == first {
                cpus.set(n)?;
            }
        }
        // The result is ignored, because a machine with one CPU has no others.
        let _ = sched_setaffinity(thread, &cpus);
        Ok(Self { before })
    }
}

impl Drop for CpuAffinity {
    fn drop(&mut self) {
        let _ = sched_setaffinity(Pid::from_raw(0), &self.before);
    }
}

/// The share of a CPU that 256 MB get. 1,769 MB get a whole one.
/// <https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html>
pub(crate) const CPU_SHARE: f64 = 256.0 / 1_769.0;
/// The period in which a process gets that share, in microseconds. Lambda's own was measured to be this long.
const QUOTA_PERIOD_US: u32 = 20_000;

/// A control group that limits its processes to [`CPU_SHARE`] of one CPU in total.
pub(crate) struct Quota(PathBuf);

impl Quota {
    /// Creates a control group. Fails if the kernel or the permissions of this process don't allow it.
    pub(crate) fn new() -> Result<Self> {
        let name = format!("novi-bridge-bench-{}", std::process::id());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some thousands")]
        let quota = (CPU_SHARE * f64::from(QUOTA_PERIOD_US)) as u32;
        let (v1, v2) = (Path::new("/sys/fs/cgroup/cpu"), Path::new("/sys/fs/cgroup"));
        let (group, settings) = if v1.join("cpu.cfs_quota_us").exists() || v1.join("cpu.shares").exists() {
            let settings =
                [("cpu.cfs_period_us", QUOTA_PERIOD_US.to_string()), ("cpu.cfs_quota_us", quota.to_string())];
            (v1.join(name), settings.to_vec())
        } else {
            (v2.join(name), vec![("cpu.max", format!("{quota} {QUOTA_PERIOD_US}"))])
        };
        std::fs::create_dir(&group).context("creating a control group failed")?;
        let group = Self(group);
        for (file, value) in settings {
            std::fs::write(group.0.join(file), value).with_context(|| format!("writing {file} failed"))?;
        }
        Ok(group)
    }

    /// Limits a process to the share.
    pub(crate) fn limit(&self, process: u32) -> Result<()> {
        Ok(std::fs::write(self.0.join("cgroup.procs"), process.to_string())?)
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        // Works once all processes of the group have exited.
        let _ = std::fs::remove_dir(&self.0);
    }
}
