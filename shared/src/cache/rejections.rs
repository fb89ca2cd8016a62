//! What the server rejects, logged once for each error code until the same command works again.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::{Arg, Cmd};
use tokio::time::Instant;

use super::error::Cause;
use crate::sync::lock;

/// How long a command must not have been rejected before its success counts, if not all servers of a cluster reject it.
/// Otherwise every command that another server accepts would end the condition.
const SETTLED: Duration = Duration::from_secs(60);

/// The commands that the server rejects at present.
#[derive(Default)]
pub(super) struct Rejections {
    /// False if `standing` is empty, so that a command that works needs no lock.
    is_any: AtomicBool,
    standing: Mutex<Vec<Rejection>>,
}

struct Rejection {
    operation: u64,
    code: Cause,
    /// Whether another server may accept the command.
    is_partial: bool,
    /// When the command was last rejected with this code.
    at: Instant,
}

impl Rejections {
    /// Records that the server rejected a command. Returns true if this should be logged: if nothing is rejected with
    /// this code yet.
    pub(super) fn add(&self, command: &Cmd, code: Cause, is_partial: bool) -> bool {
        let (operation, at) = (operation(command), Instant::now());
        let mut standing = lock(&self.standing);
        let is_new = standing.iter().all(|rejection| rejection.code != code);
        standing.retain(|rejection| (rejection.operation, rejection.code) != (operation, code));
        standing.push(Rejection { operation, code, is_partial, at });
        self.is_any.store(true, Ordering::Relaxed);
        is_new
    }

    /// Records that a command worked. Returns true if this should be logged: if it was the last one that didn't.
    pub(super) fn clear(&self, command: &Cmd) -> bool {
        if !self.is_any.load(Ordering::Relaxed) {
            return false;
        }
        let operation = operation(command);
        let mut standing = lock(&self.standing);
        let before = standing.len();
        standing.retain(|rejection| {
            rejection.operation != operation || (rejection.is_partial && rejection.at.elapsed() < SETTLED)
        });
        self.is_any.store(!standing.is_empty(), Ordering::Relaxed);
        before > 0 && standing.is_empty()
    }
}

/// Returns a number that tells commands apart, but not what they are sent for: the hash of a command's name, or of a
/// script.
fn operation(command: &Cmd) -> u64 {
    let mut hasher = DefaultHasher::new();
    for argument in command.args_iter().take(2) {
        let Arg::Simple(argument) = argument else { break };
        argument.hash(&mut hasher);
        if argument != b"EVAL" {
            break;
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(arguments: &[&str]) -> Cmd {
        let mut command = Cmd::new();
        command.arg(arguments);
        command
    }

    #[tokio::test(start_paused = true)]
    async fn code_is_logged_again_only_after_each_rejected_command_works() {
        let rejections = Rejections::default();
        let (set, other_set, get) =
            (command(&["SET", "a", "1"]), command(&["SET", "b", "2"]), command(&["GETRANGE", "a", "0", "1"]));
        let (one, other) = (command(&["EVAL", "return 1", "1", "a"]), command(&["EVAL", "return 2", "1", "a"]));
        assert!(!rejections.clear(&set), "nothing to recover from");
        assert!(rejections.add(&set, "OOM", false));
        assert!(!rejections.add(&other_set, "OOM", false));
        assert!(!rejections.add(&one, "OOM", false), "the same cause");
        assert!(rejections.add(&one, "BUSY", false), "another cause");
        assert!(!rejections.clear(&get) && !rejections.clear(&other), "reads and other scripts may work meanwhile");
        assert!(!rejections.add(&other, "OOM", false));
        assert!(!rejections.clear(&other_set) && !rejections.clear(&one));
        assert!(rejections.clear(&other), "the last one");
        assert!(rejections.add(&set, "OOM", false), "failed again");
    }

    #[tokio::test(start_paused = true)]
    async fn server_that_accepts_what_another_rejects_ends_nothing() {
        let rejections = Rejections::default();
        let set = command(&["SET", "a", "1"]);
        assert!(rejections.add(&set, "OOM", true));
        for _ in 0..100 {
            tokio::time::advance(Duration::from_secs(30)).await;
            assert!(!rejections.clear(&set) && !rejections.add(&set, "OOM", true));
        }
        tokio::time::advance(SETTLED).await;
        assert!(rejections.clear(&set));
        assert!(rejections.add(&set, "OOM", true));
    }
}
