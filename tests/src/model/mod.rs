//! A model of what the mirror may and must do, checked with random changes, lies, mistakes and faults against the real
//! function, a simulated Novi and a real Mailman.
//!
//! There are two truths: what is, and what Novi says. A *sequence* consists of a few rounds and an end. In each round,
//! what is changes, Novi tells lies that are plausible, mappings are edited wrongly, lists are edited by hand, faults of
//! every kind are injected, and the mirror runs a few times. Each run is compared with the model:
//!
//! - No one joins or leaves a list except as Novi says, and no more of them than the list's limits allow. If a rule
//!   recognizes the lie, no one leaves, and no one joins because of it.
//! - While Novi says the same, whatever can't be read for a while, no more people join or leave than one run that can
//!   read everything may add or remove.
//! - `ok` means that the list is what Novi says.
//! - A run that nothing disturbs does exactly what the rules say.
//! - No address has two memberships.
//! - Preferences stay with a membership, also if it moves. With a ledger, people who were removed and come back within 30
//!   days have them again.
//!
//! Half of the mirrors have a ledger, which is sometimes deleted, damaged or replaced by an older copy. They may do less
//! than these rules allow, because the ledger knows which lists are adopted. Beyond the rules, they only move memberships to
//! the changed addresses of their people. The clock advances by hours or days, and no more people join, leave or move in
//! 24 hours than the limits of a day allow.
//!
//! If a mapping says so, people who left a list by themselves aren't added again.
//!
//! The passes of some of these mirrors take several runs. They decide by what was read in earlier runs:
//!
//! - No one joins or moves except because of a record that was read in the same run.
//! - No one leaves before the pass has asked about everyone in the list's groups, and not if the last record of one of them
//!   has the address, or if the address wasn't on the roster when the pass began.
//!
//! At the end, Novi tells the truth and nothing fails. Every list then becomes what it should be, or its report names the
//! event that makes it so. A sequence is determined by its seed.

mod choices;
mod config;
mod environment;
mod faults;
mod field;
mod judge;
mod leavers;
mod lies;
mod memory;
mod oracle;
mod readings;
mod sequence;
mod tally;
mod world;

use anyhow::{Context, Result};

use self::environment::Servers;
use self::sequence::Sequence;
pub use self::tally::Tally;
use crate::mailman::Database;

/// Runs sequences, one after another on the same Mailman and the same Redis.
pub struct Runner {
    servers: Option<Servers>,
}

impl Runner {
    /// Starts a Redis, and a Mailman on this kind of database.
    ///
    /// # Errors
    /// Fails if one of them doesn't start.
    pub async fn start(database: Database) -> Result<Self> {
        Ok(Self { servers: Some(Servers::start(database).await?) })
    }

    /// Runs the sequence of a seed.
    ///
    /// # Errors
    /// Fails if the test environment fails, but not if the mirror deviates from the model.
    pub async fn run_sequence(&mut self, seed: u64) -> Result<Tally> {
        let servers = self.servers.take().context("an earlier sequence failed")?;
        let sequence = Sequence::start(servers, seed).await.with_context(|| format!("seed {seed}"))?;
        let (tally, servers) = sequence.run_all().await.with_context(|| format!("seed {seed}"))?;
        self.servers = Some(servers);
        Ok(tally)
    }
}
