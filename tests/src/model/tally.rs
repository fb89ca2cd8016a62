//! The results of sequences.

use std::collections::BTreeMap;
use std::fmt;

/// The results of sequences.
#[derive(Default)]
pub struct Tally {
    /// The number of completed sequences.
    pub sequences: usize,
    /// The number of runs of the mirror.
    pub runs: usize,
    /// The number of lists by their status after a run.
    pub statuses: BTreeMap<String, usize>,
    /// The number of runs by the state of their pass, of mirrors whose passes may take several runs.
    pub passes: BTreeMap<String, usize>,
    /// The number of lies that Novi told, by kind.
    pub lies: BTreeMap<String, usize>,
    /// The number of mistakes in the mappings.
    pub mistakes: usize,
    /// The number of injected faults and disturbances, by kind.
    pub faults: BTreeMap<&'static str, usize>,
    /// Members who left a list although Novi says that they belong on it, even if only for a moment.
    pub wrongly_removed: usize,
    /// People who joined a list although Novi doesn't say that they belong on it.
    pub wrongly_added: usize,
    /// Addresses with a new duplicate membership.
    pub duplicates: usize,
    /// Members who lost what they had chosen for their membership, although it stayed, moved or came back.
    pub lost_choices: usize,
    /// Members who left a list within its limits because of a lie or a mistake in the mappings.
    pub misled_removals: usize,
    /// People who joined a list within its limits because of a lie or a mistake in the mappings.
    pub misled_additions: usize,
    /// Descriptions of all deviations from the model, with the seeds that reproduce them and the steps that led there.
    pub violations: Vec<String>,
}

impl Tally {
    /// True if there was no deviation from the model.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.wrongly_removed + self.wrongly_added + self.duplicates + self.lost_choices == 0
            && self.violations.is_empty()
    }

    /// Adds the results of another tally.
    pub fn add(&mut self, other: Self) {
        self.sequences += other.sequences;
        self.runs += other.runs;
        self.mistakes += other.mistakes;
        self.wrongly_removed += other.wrongly_removed;
        self.wrongly_added += other.wrongly_added;
        self.duplicates += other.duplicates;
        self.lost_choices += other.lost_choices;
        self.misled_removals += other.misled_removals;
        self.misled_additions += other.misled_additions;
        self.violations.extend(other.violations);
        add_counts(&mut self.statuses, other.statuses);
        add_counts(&mut self.passes, other.passes);
        add_counts(&mut self.lies, other.lies);
        add_counts(&mut self.faults, other.faults);
    }
}

fn add_counts<K: Ord>(counts: &mut BTreeMap<K, usize>, others: BTreeMap<K, usize>) {
    for (key, count) in others {
        *counts.entry(key).or_default() += count;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let statuses: Vec<String> = self.statuses.iter().map(|(status, n)| format!("{n} {status}")).collect();
        writeln!(f, "{} sequences, {} runs; list statuses: {}", self.sequences, self.runs, statuses.join(", "))?;
        let passes: Vec<String> = self.passes.iter().map(|(pass, n)| format!("{n} {pass}")).collect();
        writeln!(f, "runs of mirrors with few calls, by their pass: {}", passes.join(", "))?;
        writeln!(f, "{} lies told, {} mistakes in mappings:", self.lies.values().sum::<usize>(), self.mistakes)?;
        for (lie, count) in &self.lies {
            writeln!(f, "  {count:6} {lie}")?;
        }
        writeln!(f, "{} faults injected:", self.faults.values().sum::<usize>())?;
        for (fault, count) in &self.faults {
            writeln!(f, "  {count:6} {fault}")?;
        }
        writeln!(
            f,
            "misled within the limits: {} removals, {} additions",
            self.misled_removals, self.misled_additions
        )?;
        writeln!(f, "wrong removals:  {}", self.wrongly_removed)?;
        writeln!(f, "wrong additions: {}", self.wrongly_added)?;
        writeln!(f, "duplicates:      {}", self.duplicates)?;
        writeln!(f, "lost choices:    {}", self.lost_choices)?;
        write!(f, "sequences with violations: {}", self.violations.len())
    }
}
