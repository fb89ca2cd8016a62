//! The records that the mirror has read, and what they may have said. The simulated Novi knows each call.
//!
//! It is an upper bound of what the mirror's ledger knows: if it isn't clear that the ledger remembers a reading, then the one
//! before counts as well.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use uuid::Uuid;

use crate::directory::Directory;

/// What the mirror may have read so far.
#[derive(Clone, Default)]
pub(super) struct Readings {
    people: BTreeMap<Uuid, Reading>,
    /// A time before the present pass began.
    pub(super) pass_began_after: u64,
}

/// The last reading of one person.
#[derive(Clone, Default)]
struct Reading {
    /// When the mirror asked about the person, at the latest.
    asked: u64,
    /// When Novi sent the record, at the latest.
    answered: u64,
    /// The same, if it is certain that the ledger remembers it.
    certainly_answered: u64,
    /// What the reading may have said. `None` if Novi has no record.
    records: Vec<Option<Value>>,
}

impl Readings {
    /// Notes the people that a run asked about, and those with a record that Novi sent. `is_certain` if the ledger remembers these.
    pub(super) fn ran(
        &mut self,
        asked: &BTreeSet<Uuid>,
        answered: &BTreeSet<Uuid>,
        said: &Directory,
        now: u64,
        is_certain: bool,
    ) {
        for id in asked {
            self.people.entry(*id).or_default().asked = now;
        }
        for id in answered {
            let reading = self.people.entry(*id).or_default();
            let record = said.people.get(id).cloned();
            reading.answered = now;
            if is_certain {
                reading.certainly_answered = now;
                reading.records.clear();
            }
            if !reading.records.contains(&record) {
                reading.records.push(record);
            }
        }
    }

    /// Notes that the present pass has asked about so many of these people.
    pub(super) fn pass_has_asked(&mut self, count: usize, people: &BTreeSet<Uuid>) {
        let asked = |id| self.people.get(id).map_or(0, |person| person.certainly_answered);
        let mut asked: Vec<u64> = people.iter().map(asked).collect();
        asked.sort_unstable_by(|a, b| b.cmp(a));
        // The next one was asked before the pass began.
        self.pass_began_after = self.pass_began_after.max(asked.get(count).copied().unwrap_or_default());
    }

    /// Returns the reason why an address may not leave a list with these people in its groups, if there is one.
    /// `accepts_unknown` if a force may have accepted people whose records no run could read. `has` tells if a record has the
    /// address, and if it keeps it on the list.
    pub(super) fn reason_to_stay(
        &self,
        people: &BTreeSet<Uuid>,
        accepts_unknown: bool,
        now: u64,
        has: impl Fn(Uuid, Option<&Value>) -> Has,
    ) -> Option<&'static str> {
        people.iter().find_map(|id| {
            let Some(reading) = self.people.get(id) else { return Some("someone in its groups was never read") };
            let all = |least: Has| reading.records.iter().all(|record| has(*id, record.as_ref()) >= least);
            // A force may accept a record that can't be read.
            let read = if accepts_unknown { reading.asked } else { reading.answered };
            let all_are = |what: Has| reading.records.iter().all(|record| has(*id, record.as_ref()) == what);
            if reading.asked <= self.pass_began_after {
                Some("someone was not read in this pass")
            } else if accepts_unknown && (reading.certainly_answered == 0 || all_are(Has::Unknown)) {
                None
            } else if all_are(Has::Unknown) {
                Some("the record of someone could not be read")
            } else if all(Has::Keeps) {
                Some("the last record of someone keeps it there")
            } else if read < now && all(Has::Address) {
                Some("someone with the address was not read again")
            } else {
                None
            }
        })
    }
}

/// What a record is to an address on a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Has {
    /// It can't be read.
    Unknown,
    /// It doesn't have the address.
    Nothing,
    /// It has the address, and doesn't keep it there.
    Address,
    /// It keeps the address there.
    Keeps,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ids(range: std::ops::Range<u128>) -> BTreeSet<Uuid> {
        range.map(Uuid::from_u128).collect()
    }

    #[test]
    fn address_stays_until_the_pass_has_read_everyone_without_it() {
        let said = Directory { people: BTreeMap::from([(Uuid::from_u128(1), json!("a"))]), ..Directory::default() };
        let has = |_: Uuid, record: Option<&Value>| if record.is_some() { Has::Keeps } else { Has::Nothing };
        let mut readings = Readings::default();
        assert!(readings.reason_to_stay(&ids(1..3), false, 40, has).is_some());
        readings.ran(&ids(2..3), &ids(2..3), &said, 10, true);
        assert!(readings.reason_to_stay(&ids(1..3), false, 40, has).is_some());
        readings.ran(&ids(1..2), &ids(1..2), &said, 20, true);
        assert!(readings.reason_to_stay(&ids(1..3), false, 40, has).is_some());
        readings.ran(&ids(1..2), &ids(1..2), &Directory::default(), 30, false);
        assert!(readings.reason_to_stay(&ids(1..3), false, 40, has).is_none());
        // The pass began after the second person was asked.
        readings.pass_has_asked(1, &ids(1..3));
        assert!(readings.reason_to_stay(&ids(1..3), false, 40, has).is_some());
        readings.ran(&ids(2..3), &ids(2..3), &said, 40, true);
        assert!(readings.reason_to_stay(&ids(1..3), false, 40, has).is_none());
        // The second person had the address, and isn't read again.
        let has = |id: Uuid, _: Option<&Value>| if id.as_u128() == 2 { Has::Address } else { Has::Nothing };
        assert!(readings.reason_to_stay(&ids(1..3), false, 40, has).is_none());
        readings.ran(&ids(2..3), &ids(0..0), &said, 50, true);
        assert!(readings.reason_to_stay(&ids(1..3), false, 50, has).is_some());
    }
}
