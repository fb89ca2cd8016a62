//! A Novi of thousands, made ahead: groups, single records, and all of them in
//! pages.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http::Uri;
use serde_json::json;
use tests::directory::record;
use uuid::Uuid;

use crate::upstream::{Upstream, number, page};

/// Who is in Novi.
pub(crate) struct People {
    ids: Vec<Uuid>,
    records: Vec<String>,
    /// By group, the indices of its members.
    groups: HashMap<Uuid, Vec<usize>>,
    /// Whether all records can be listed.
    pub(crate) are_listed: bool,
}

impl People {
    /// So many, with addresses at `domain`.
    pub(crate) fn new(count: usize, domain: &str) -> Self {
        let ids: Vec<Uuid> = (0..count).map(|_| Uuid::from_u128(fastrand::u128(..))).collect();
        let person = |(n, id): (usize, &Uuid)| record(*id, "Marguerite", "Delacroix", &address(n, domain)).to_string();
        let records = ids.iter().enumerate().map(person).collect();
        Self { ids, records, groups: HashMap::new(), are_listed: true }
    }

    /// A group of these.
    pub(crate) fn group(&mut self, members: impl IntoIterator<Item = usize>) -> Uuid {
        let group = Uuid::from_u128(fastrand::u128(..));
        self.groups.insert(group, members.into_iter().collect());
        group
    }

    /// The calls that reading these groups and everybody in them takes at least, in pages of a thousand.
    pub(crate) fn fewest_calls(&self) -> usize {
        const PAGE: usize = 1_000;
        let groups: usize = self.groups.values().map(|members| members.len().div_ceil(PAGE)).sum();
        groups + if self.are_listed { self.ids.len().div_ceil(PAGE) } else { self.ids.len() }
    }

    /// Lets them be asked for.
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
        let (records, are_listed) = (self.records, self.are_listed);
        let answers = move |uri: &Uri| {
            if let Some(n) = single.get(uri.path()) {
                return Some(Bytes::from(records[*n].clone()));
            }
            let rows = if uri.path() == "/api/members" && are_listed { &records } else { groups.get(uri.path())? };
            Some(page(rows, number(uri, "offset")?, number(uri, "pageSize")?, "TotalCount", "Results"))
        };
        Upstream::start(answers, Duration::ZERO, None).await
    }
}

/// The address of the person at an index.
pub(crate) fn address(n: usize, domain: &str) -> String {
    format!("person{n:06}@{domain}")
}
