//! A simulated Novi with thousands of people. Its responses are prepared in advance: groups, single records, and pages
//! of all records.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http::Uri;
use serde_json::json;
use tests::directory::record;
use uuid::Uuid;

use crate::upstream::{Upstream, page, query_number};

/// The people in Novi.
pub(crate) struct People {
    ids: Vec<Uuid>,
    records: Vec<String>,
    /// The indices of the members of each group.
    groups: HashMap<Uuid, Vec<usize>>,
    /// True if all records can be listed in bulk.
    pub(crate) are_listable: bool,
    /// The last person joins their group in this run, if set.
    pub(crate) last_joins_in: Option<usize>,
    /// The reads of single records.
    pub(crate) reads: Arc<Mutex<Reads>>,
}

/// The reads of single records, by run.
pub(crate) struct Reads {
    /// The number of the present run.
    pub(crate) run: usize,
    /// The run in which each person was last read.
    last: Vec<Option<usize>>,
    /// The most runs between two reads of a person.
    pub(crate) longest_gap: usize,
}

impl Reads {
    /// Notes that a person was read.
    fn note(&mut self, person: usize) {
        if let Some(before) = self.last[person].replace(self.run) {
            self.longest_gap = self.longest_gap.max(self.run - before);
        }
    }

    /// Returns the number of people who were read in any run.
    pub(crate) fn people(&self) -> usize {
        self.last.iter().flatten().count()
    }
}

impl People {
    /// Creates `count` people with addresses at `domain`.
    pub(crate) fn new(count: usize, domain: &str) -> Self {
        let ids: Vec<Uuid> = (0..count).map(|_| Uuid::from_u128(fastrand::u128(..))).collect();
        let person = |(n, id): (usize, &Uuid)| record(*id, "Marguerite", "Delacroix", &address(n, domain)).to_string();
        let records = ids.iter().enumerate().map(person).collect();
        let reads = Reads { run: 0, last: vec![None; count], longest_gap: 0 };
        Self {
            ids,
            records,
            groups: HashMap::new(),
            are_listable: true,
            last_joins_in: None,
            reads: Arc::new(Mutex::new(reads)),
        }
    }

    /// Adds a group of these people. Returns its id.
    pub(crate) fn group(&mut self, members: impl IntoIterator<Item = usize>) -> Uuid {
        let group = Uuid::from_u128(fastrand::u128(..));
        self.groups.insert(group, members.into_iter().collect());
        group
    }

    /// Returns the minimum number of calls for reading these groups and all people in them, with pages of a thousand that
    /// overlap by one row, which shows changes between two pages.
    pub(crate) fn minimum_calls(&self) -> usize {
        const PAGE_SIZE: usize = 1_000;
        let pages = |rows: usize| 1 + rows.saturating_sub(PAGE_SIZE).div_ceil(PAGE_SIZE - 1);
        let groups: usize = self.groups.values().map(|members| pages(members.len())).sum();
        groups + if self.are_listable { pages(self.ids.len()) } else { self.ids.len() }
    }

    /// Starts a server with these people.
    pub(crate) async fn serve(self) -> Result<Upstream> {
        let rows = |members: &Vec<usize>| -> Vec<String> {
            members
                .iter()
                .map(|n| json!({"UniqueID": self.ids[*n], "Name": "Marguerite Delacroix"}).to_string())
                .collect()
        };
        let groups: HashMap<String, Vec<String>> =
            self.groups.iter().map(|(id, members)| (format!("/api/groups/{id}/members"), rows(members))).collect();
        let single: HashMap<String, usize> =
            self.ids.iter().enumerate().map(|(n, id)| (format!("/api/customers/{id}"), n)).collect();
        let last = json!({"UniqueID": self.ids.last(), "Name": "Marguerite Delacroix"}).to_string();
        let (records, are_listable, joins_in, reads) =
            (self.records, self.are_listable, self.last_joins_in, self.reads);
        let responses = move |uri: &Uri| {
            let mut reads = reads.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(n) = single.get(uri.path()) {
                reads.note(*n);
                return Some(Bytes::from(records[*n].clone()));
            }
            let rows = if uri.path() == "/api/members" && are_listable { &records } else { groups.get(uri.path())? };
            // The last person's row is the last of its group.
            let are_without_last = joins_in.is_some_and(|run| reads.run < run) && rows.last() == Some(&last);
            let rows = if are_without_last { &rows[..rows.len() - 1] } else { rows };
            Some(page(rows, query_number(uri, "offset")?, query_number(uri, "pageSize")?, "TotalCount", "Results"))
        };
        Upstream::start(responses, Duration::ZERO, None).await
    }
}

/// Returns the address of the person at an index.
pub(crate) fn address(n: usize, domain: &str) -> String {
    format!("person{n:06}@{domain}")
}
