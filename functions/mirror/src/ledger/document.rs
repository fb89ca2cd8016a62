//! The content of the ledger.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use shared::member::MemberId;

use crate::directory::Person;
use crate::ledger::list_entry::ListEntry;
use crate::mapping::ListId;

/// The seconds of an hour.
const HOUR: u64 = 3_600;
/// The number of hours for which calls are counted: a day, and the hour in which it began.
const HOURS: u64 = 25;

/// The content of the ledger. Times are in seconds of Unix time.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Document {
    /// The run that is under way.
    pub(crate) claim: Option<RunClaim>,
    /// When the pass began that is under way, or was the last one.
    pub(crate) pass_began: Option<u64>,
    /// Everyone in a mapped group.
    pub(crate) people: HashMap<MemberId, Person>,
    pub(crate) lists: BTreeMap<ListId, ListEntry>,
    /// The number of calls to Novi, by the hour in which they were made.
    calls: BTreeMap<u64, u64>,
}

/// The claim of a run, during which no other run may write.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunClaim {
    /// Identifies the run.
    pub(crate) owner: String,
    /// The invocation's deadline.
    pub(crate) until: u64,
}

impl Document {
    /// Returns the number of calls in the last 24 hours. The calls of the hour in which these began count.
    pub(crate) fn calls_today(&self, now: u64) -> u64 {
        self.calls.range((now / HOUR + 1).saturating_sub(HOURS)..).map(|(_, calls)| calls).sum()
    }

    /// Counts calls, and forgets those of earlier days.
    pub(crate) fn add_calls(&mut self, calls: u64, now: u64) {
        self.calls = self.calls.split_off(&(now / HOUR + 1).saturating_sub(HOURS));
        *self.calls.entry(now / HOUR).or_default() += calls;
    }
}

shared::unprintable!(Document);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_a_day_are_counted() {
        let mut document = Document::default();
        for hour in 100..200 {
            document.add_calls(10, hour * HOUR + 1);
        }
        assert_eq!(document.calls_today(199 * HOUR + 2), 250);
        assert_eq!(document.calls_today(210 * HOUR), 140);
        assert_eq!(document.calls_today(300 * HOUR), 0);
        assert_eq!(document.calls.len(), 25);
    }
}
