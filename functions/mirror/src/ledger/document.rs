//! The content of the ledger.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use shared::member::MemberId;
use shared::time::DAY;

use crate::directory::Person;
use crate::ledger::list_entry::ListEntry;
use crate::mail::MailHistory;
use crate::mapping::ListId;

/// How long calls count, in seconds: a day, less what a run may start early. Otherwise the run of the day before would
/// take its room.
const CALL_PERIOD: u64 = DAY - 900;

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
    /// The number of calls to Novi, by the time when they were noted.
    calls: BTreeMap<u64, u64>,
    /// What was mailed. An earlier release wrote a ledger without it.
    #[serde(default)]
    pub(crate) mails: MailHistory,
}

/// The claim of a run, during which no other run may write.
#[derive(Serialize, Deserialize)]
pub(crate) struct RunClaim {
    /// The invocation's deadline.
    pub(crate) until: u64,
}

impl Document {
    /// Returns the number of calls of a day.
    pub(crate) fn calls_today(&self, now: u64) -> u64 {
        self.calls.range((now + 1).saturating_sub(CALL_PERIOD)..).map(|(_, calls)| calls).sum()
    }

    /// Counts calls, and forgets those of earlier days.
    pub(crate) fn add_calls(&mut self, calls: u64, now: u64) {
        self.calls = self.calls.split_off(&(now + 1).saturating_sub(CALL_PERIOD));
        *self.calls.entry(now).or_default() += calls;
    }
}

shared::unprintable!(Document);

#[cfg(test)]
mod tests {
    use super::*;

    /// A document of a release that knew of no mails, and that ignores them if it is deployed again.
    #[test]
    fn document_without_mails_is_read() {
        let document = r#"{"claim":null,"pass_began":7,"people":{},"lists":{},"calls":{"1":2}}"#;
        let document: Document = serde_json::from_str(document).unwrap();
        assert_eq!((document.pass_began, document.calls_today(2)), (Some(7), 2));
        assert!(serde_json::to_string(&document).unwrap().contains(r#""mails":{"last":null,"#));
    }

    #[test]
    fn calls_of_a_day_are_counted() {
        const HOUR: u64 = 3_600;
        let mut document = Document::default();
        for hour in 100..200 {
            // Each run starts a little earlier than the one of the day before.
            document.add_calls(10, hour * HOUR - hour);
        }
        assert_eq!(document.calls_today(200 * HOUR - 200), 230, "with the next run, they are those of 24 runs");
        assert_eq!(document.calls_today(210 * HOUR), 130);
        assert_eq!(document.calls_today(300 * HOUR), 0);
        assert_eq!(document.calls.len(), 24);
    }
}
