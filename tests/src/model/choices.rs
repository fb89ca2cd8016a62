//! What people have chosen for their memberships: digests. They keep it if their address changes, and get it back if the
//! mirror removed them and adds them again.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use fastrand::Rng;
use http::Method;
use serde_json::json;
use shared::time::DAY;

use super::memory::TOLERANCE;
use crate::mailman::Mailman;

/// How long the ledger keeps what people had chosen, in seconds.
const UNDO_PERIOD: u64 = 30 * DAY;

/// What people have chosen.
#[derive(Default)]
pub(super) struct Choices {
    /// The delivery modes by Mailman's id of the membership.
    modes: BTreeMap<String, String>,
    /// The delivery modes of memberships that the mirror removed, by list and address, and the times of the removals.
    removed: BTreeMap<(usize, String), (String, u64)>,
}

impl Choices {
    /// Lets the person with a membership choose digests.
    pub(super) async fn choose(&mut self, mailman: &Mailman, rng: &mut Rng, membership: &str) -> Result<()> {
        let mode = ["plaintext_digests", "mime_digests", "summary_digests"][rng.usize(..3)];
        let path = format!("members/{membership}/preferences");
        let (status, _) = mailman.request(Method::PATCH, &path, Some(json!({"delivery_mode": mode}))).await?;
        ensure!(status == 204, "changing {path} failed: {status}");
        self.modes.insert(membership.to_owned(), mode.to_owned());
        Ok(())
    }

    /// Notes that the mirror removed a membership. `is_remembered` if it must know what its person had chosen.
    pub(super) fn removed(&mut self, list: usize, membership: &str, address: &str, is_remembered: bool, now: u64) {
        if let Some(mode) = self.modes.remove(membership)
            && is_remembered
        {
            self.removed.insert((list, address.to_owned()), (mode, now));
        }
    }

    /// Notes that the ledger is lost.
    pub(super) fn ledger_lost(&mut self) {
        self.removed.clear();
    }

    /// Notes that no mapping names a list, so that the ledger may forget it.
    pub(super) fn unmapped(&mut self, list: usize) {
        self.removed.retain(|(of, _), _| *of != list);
    }

    /// Checks that everyone with a membership has what the person had chosen. `is_restored` tells if those who come back
    /// must have it.
    pub(super) async fn check(
        &mut self,
        mailman: &Mailman,
        list: usize,
        memberships: &BTreeMap<String, String>,
        is_restored: bool,
        now: u64,
    ) -> Result<Vec<String>> {
        self.removed.retain(|_, (_, at)| *at + UNDO_PERIOD > now + TOLERANCE);
        let mut violations = Vec::new();
        for (membership, address) in memberships {
            let key = (list, address.clone());
            let is_back = is_restored && !self.modes.contains_key(membership);
            let restored = self.removed.get(&key).filter(|_| is_back).map(|(mode, _)| mode);
            let Some(mode) = restored.or_else(|| self.modes.get(membership)).cloned() else { continue };
            let (_, preferences) =
                mailman.request(Method::GET, &format!("members/{membership}/preferences"), None).await?;
            self.removed.remove(&key);
            if preferences["delivery_mode"] == mode.as_str() {
                self.modes.insert(membership.clone(), mode);
            } else {
                violations.push(format!("{address} has the preferences {preferences} instead of {mode}"));
                self.modes.remove(membership);
            }
        }
        Ok(violations)
    }
}
