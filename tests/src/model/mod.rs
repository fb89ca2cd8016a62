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
//!
//! Half of the mirrors have a ledger, which is sometimes deleted, damaged or replaced by an older copy. They may do less than these
//! rules allow, because the ledger knows the limits of a day and which lists are adopted. Beyond the rules, they only move
//! memberships to the changed addresses of their people.
//!
//! At the end, Novi tells the truth and nothing fails. Every list then becomes what it should be, or its report names the
//! event that makes it so. A sequence is determined by its seed.

mod config;
mod environment;
mod faults;
mod field;
mod judge;
mod lies;
mod memory;
mod oracle;
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
