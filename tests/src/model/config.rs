//! The mirror's mappings: the right ones, and what mistakes make of them.

use std::collections::BTreeSet;

use fastrand::Rng;
use serde_json::{Value, json};
use uuid::Uuid;

/// The domain of all lists.
const DOMAIN: &str = "lists.example.org";

/// A mapping, as an administrator writes it.
#[derive(Clone)]
pub(super) struct Mapping {
    group: Uuid,
    list: ListName,
    /// True if `group_guid` isn't a UUID.
    has_broken_group: bool,
    /// The addresses as written, and as meant.
    keep: Vec<(String, String)>,
    max_removal_percent: Option<usize>,
    max_growth_percent: Option<usize>,
    may_be_empty: bool,
    removals: bool,
    resubscribes: bool,
}

/// The list of a mapping.
#[derive(Clone, PartialEq, Eq)]
enum ListName {
    /// One of the sequence's lists.
    Right(usize),
    /// A list that Mailman doesn't have.
    Absent,
    /// No list at all.
    Broken,
}

/// The meaning of all mappings of one list, according to contract 5.1.
#[derive(Clone)]
pub(super) struct ListConfig {
    /// The groups, each with the value of `may_be_empty`.
    pub(super) groups: Vec<(Uuid, bool)>,
    pub(super) keep: BTreeSet<String>,
    pub(super) max_removal_percent: usize,
    pub(super) max_growth_percent: usize,
    /// False if no one may leave the list.
    pub(super) removals: bool,
    /// False if no one is added again who left the list by themselves.
    pub(super) resubscribes: bool,
}

impl Default for ListConfig {
    fn default() -> Self {
        Self {
            groups: Vec::new(),
            keep: BTreeSet::new(),
            max_removal_percent: 30,
            max_growth_percent: 100,
            removals: true,
            resubscribes: true,
        }
    }
}

/// The meaning of the mappings for one list.
pub(super) enum ListState {
    /// The mirror syncs the list.
    Mapped(ListConfig),
    /// One of its mappings is broken, so the list is reported and left unchanged.
    Broken,
    /// No mapping names the list.
    Unmapped,
}

/// The mappings of a sequence.
#[derive(Clone)]
pub(super) struct Config {
    /// The names of the lists, without their domain.
    names: Vec<String>,
    mappings: Vec<Mapping>,
}

impl Config {
    /// Maps a list to each of these groups, with random options. Only a mirror with a ledger knows who left by themselves.
    pub(super) fn new(rng: &mut Rng, names: &[String], groups_of_lists: &[&[Uuid]], has_ledger: bool) -> Self {
        let mut mappings = Vec::new();
        for (list, groups) in groups_of_lists.iter().enumerate() {
            let max_removal_percent = [None, None, Some(20), Some(100)][rng.usize(..4)];
            let max_growth_percent = [None, None, None, Some(50), Some(1_000)][rng.usize(..5)];
            let keep = keep(rng, list);
            let removals = rng.u8(..8) != 0;
            let resubscribes = !has_ledger || rng.u8(..4) != 0;
            for group in *groups {
                mappings.push(Mapping {
                    group: *group,
                    list: ListName::Right(list),
                    has_broken_group: false,
                    keep: vec![keep.clone()],
                    max_removal_percent,
                    max_growth_percent,
                    may_be_empty: rng.u8(..4) == 0,
                    removals,
                    resubscribes,
                });
            }
        }
        Self { names: names.to_vec(), mappings }
    }

    /// Returns the value of the parameter.
    pub(super) fn to_json(&self) -> Value {
        self.mappings.iter().map(|mapping| self.mapping_to_json(mapping)).collect()
    }

    fn mapping_to_json(&self, mapping: &Mapping) -> Value {
        let list = match mapping.list {
            ListName::Right(list) => format!("{}@{DOMAIN}", self.names[list]),
            ListName::Absent => format!("{}.typo.{DOMAIN}", self.names[0]),
            ListName::Broken => "members".to_owned(),
        };
        let group = mapping.group.hyphenated().to_string();
        let group = if mapping.has_broken_group { group.replace('-', "") } else { group };
        let mut json = json!({"group_guid": group, "list_id": list});
        if !mapping.keep.is_empty() {
            json["keep"] = mapping.keep.iter().map(|(written, _)| json!(written)).collect();
        }
        for (key, percent) in
            [("max_removal_percent", mapping.max_removal_percent), ("max_growth_percent", mapping.max_growth_percent)]
        {
            if let Some(percent) = percent {
                json[key] = json!(percent);
            }
        }
        if mapping.may_be_empty {
            json["may_be_empty"] = json!(true);
        }
        if !mapping.removals {
            json["removals"] = json!(false);
        }
        if !mapping.resubscribes {
            json["resubscribe"] = json!(false);
        }
        json
    }

    /// Returns the meaning for a list.
    pub(super) fn list(&self, list: usize) -> ListState {
        let mappings = || self.mappings.iter().filter(|mapping| mapping.list == ListName::Right(list));
        if mappings().next().is_none() {
            return ListState::Unmapped;
        }
        if mappings().any(|mapping| mapping.has_broken_group) {
            return ListState::Broken;
        }
        let smallest = |percents: Vec<usize>, default: usize| percents.into_iter().min().unwrap_or(default);
        let default = ListConfig::default();
        let percents = |of: fn(&Mapping) -> Option<usize>, default: usize| {
            smallest(mappings().map(|mapping| of(mapping).unwrap_or(default)).collect(), default)
        };
        let mut groups: Vec<(Uuid, bool)> = Vec::new();
        for mapping in mappings() {
            match groups.iter_mut().find(|(group, _)| *group == mapping.group) {
                Some((_, may_be_empty)) => *may_be_empty |= mapping.may_be_empty,
                None => groups.push((mapping.group, mapping.may_be_empty)),
            }
        }
        ListState::Mapped(ListConfig {
            groups,
            keep: mappings().flat_map(|mapping| mapping.keep.iter().map(|(_, meant)| meant.clone())).collect(),
            max_removal_percent: percents(|mapping| mapping.max_removal_percent, default.max_removal_percent),
            max_growth_percent: percents(|mapping| mapping.max_growth_percent, default.max_growth_percent),
            removals: mappings().all(|mapping| mapping.removals),
            resubscribes: mappings().all(|mapping| mapping.resubscribes),
        })
    }

    /// True if a mapping names this list, even if the mapping is broken.
    pub(super) fn names(&self, list: usize) -> bool {
        self.mappings.iter().any(|mapping| mapping.list == ListName::Right(list))
    }

    /// True if a mapping may be meant for any list, so that no one leaves any.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.mappings.iter().any(|mapping| mapping.list == ListName::Absent || mapping.list == ListName::Broken)
    }

    /// Makes a random mistake, and describes it.
    pub(super) fn make_mistake(&mut self, rng: &mut Rng, groups: &[Uuid]) -> String {
        if self.mappings.is_empty() {
            return "no mapping is left to change".to_owned();
        }
        let number = rng.usize(..self.mappings.len());
        let mapping = &mut self.mappings[number];
        let what = match rng.u8(..16) {
            0 | 14 => {
                mapping.list = ListName::Absent;
                "names a list that doesn't exist"
            }
            1 | 15 => {
                mapping.list = ListName::Broken;
                "names no list"
            }
            2 => {
                mapping.has_broken_group = true;
                "names no group"
            }
            3 | 4 => {
                self.mappings.remove(number);
                "is lost"
            }
            5 => {
                mapping.group = groups[rng.usize(..groups.len())];
                "names another group"
            }
            6 => {
                mapping.group = Uuid::from_u128(rng.u128(..));
                "names a group that doesn't exist"
            }
            7 | 8 => {
                mapping.keep.clear();
                "lost its keep"
            }
            9 => {
                mapping.max_removal_percent = [None, Some(0), Some(10), Some(60), Some(100)][rng.usize(..5)];
                "has another max_removal_percent"
            }
            10 => {
                mapping.max_growth_percent = [None, Some(0), Some(10), Some(300)][rng.usize(..4)];
                "has another max_growth_percent"
            }
            11 => {
                mapping.may_be_empty = !mapping.may_be_empty;
                "has another may_be_empty"
            }
            12 => {
                mapping.removals = !mapping.removals;
                "has another removals"
            }
            _ if rng.bool() => {
                self.mappings.clear();
                "and all others are lost"
            }
            _ => {
                mapping.keep.push(("stranger@mail.example.org".to_owned(), "stranger@mail.example.org".to_owned()));
                "keeps another address"
            }
        };
        format!("mapping {} {what}", number + 1)
    }
}

/// Returns an address that a list keeps, as written and as meant.
fn keep(rng: &mut Rng, list: usize) -> (String, String) {
    let meant = format!("keep{list}@mail.example.org");
    let written = match rng.u8(..6) {
        0 => format!(" Keep{list}@Mail.Example.org "),
        1 => format!("\u{200b}{meant}."),
        2 => format!("<{meant}>"),
        3 => return (format!("keep{list}@Bücher.example"), format!("keep{list}@xn--bcher-kva.example")),
        _ => meant.clone(),
    };
    (written, meant)
}
