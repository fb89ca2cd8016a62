//! The bulk list of all records.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use shared::member::{MemberId, MemberRules, Record};
use shared::novi::{Page, Records};

use super::pages::Pages;
use crate::directory::{GroupEnd, MemberStatus};

/// The bulk list of all records that is being read, as far as it concerns the requested people.
///
/// None of its rows counts until it was read to its end. A row may be someone else's record under a member's UUID, which
/// only the member's own row contradicts.
pub(super) struct BulkList<'r> {
    requested: &'r HashSet<MemberId>,
    rules: &'r MemberRules,
    pages: Pages,
    /// The number of pages that follow. One before the first page.
    calls_left: usize,
    /// The first row of each person, with the time when it was read.
    rows: HashMap<MemberId, (Record, SystemTime)>,
    /// People with an incomplete row, or with two different ones.
    unclear: HashSet<MemberId>,
}

impl<'r> BulkList<'r> {
    pub(super) fn new(requested: &'r HashSet<MemberId>, rules: &'r MemberRules) -> Self {
        let (pages, rows, unclear) = (Pages::default(), HashMap::new(), HashSet::new());
        Self { requested, rules, pages, calls_left: 1, rows, unclear }
    }

    /// Returns the index of the first row of the next page.
    pub(super) fn offset(&self) -> usize {
        self.pages.offset
    }

    /// Returns how many more calls the list takes.
    pub(super) fn calls_left(&self) -> usize {
        self.calls_left
    }

    /// Adds a page. Returns the result if this page is the last one.
    pub(super) fn add(&mut self, page: Records, read_at: SystemTime) -> Option<GroupEnd> {
        let rows = page.rows.len();
        let ids = Page { total: Some(page.total), rows: page.rows.iter().map(|row| row.id).collect() };
        for row in page.rows {
            let Some(id) = row.id.filter(|id| self.requested.contains(id)) else { continue };
            if !row.record.is_complete(self.rules) {
                self.unclear.insert(id);
            } else if let Some((known, _)) = self.rows.get(&id) {
                // A row may be on two pages, but with the same record.
                let status = |record| MemberStatus::from_record(Some(record), self.rules);
                if status(known) != status(&row.record) {
                    self.unclear.insert(id);
                }
            } else {
                self.rows.insert(id, (row.record, read_at));
            }
        }
        let end = self.pages.add(ids);
        // Pages overlap by one row.
        self.calls_left = self.pages.missing_rows().div_ceil(rows.saturating_sub(1).max(1));
        end
    }

    /// Returns the records of a list that was read to its end, with the times when they were read. People whose row is
    /// incomplete or contradicted are not among them.
    pub(super) fn into_records(self) -> impl Iterator<Item = (MemberId, Record, SystemTime)> + use<> {
        let Self { rows, unclear, .. } = self;
        rows.into_iter()
            .filter(move |(id, _)| !unclear.contains(id))
            .map(|(id, (record, read_at))| (id, record, read_at))
    }
}
