//! The two truths of a sequence: what is, and what Novi says.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use serde_json::{Value, json};
use uuid::Uuid;

use super::config::{Config, ListConfig};
use super::field::{Field, Fields};
use super::judge::Contents;
use super::lies::Lie;
use super::readings::Has;
use crate::directory::Directory;

/// What is, and what Novi says about it.
pub(super) struct World {
    /// What is.
    pub(super) truth: Directory,
    /// The lies that are being told.
    pub(super) lies: Vec<Lie>,
    /// The right mappings.
    pub(super) right_config: Config,
    /// The mappings in use.
    pub(super) config: Config,
    /// The ids of the lists.
    pub(super) lists: Vec<String>,
    pub(super) groups: Vec<Uuid>,
    fields: Fields,
    /// Every address that Novi has said of a person.
    history: BTreeMap<Uuid, BTreeSet<String>>,
}

/// The meaning of one record for a list.
enum Meaning {
    Wanted(String),
    Untouched(BTreeSet<String>),
    OptedOut(Option<String>),
    Inactive(Option<String>),
    Nothing,
    Unknown,
}

impl World {
    /// Makes a list with one group, one with two groups, and one that shares a group with it.
    pub(super) fn new(rng: &mut Rng, name: &str, has_ledger: bool) -> Self {
        let mut truth = Directory::default();
        let groups: Vec<Uuid> = (0..4)
            .map(|_| {
                let count = [rng.usize(0..3), rng.usize(0..8), rng.usize(5..40), rng.usize(5..40)][rng.usize(..4)];
                truth.add_plain_group(rng, count)
            })
            .collect();
        let names: Vec<String> = (0..3).map(|n| format!("{name}n{n}")).collect();
        let right_config = Config::new(rng, &names, &[&groups[..1], &groups[1..3], &groups[2..4]], has_ledger);
        Self {
            truth,
            lies: Vec::new(),
            config: right_config.clone(),
            right_config,
            lists: names.iter().map(|name| format!("{name}.lists.example.org")).collect(),
            groups,
            fields: Fields::default(),
            history: BTreeMap::new(),
        }
    }

    /// Remembers the addresses in what Novi says.
    pub(super) fn remember_addresses(&mut self, said: &Directory) {
        for (id, record) in &said.people {
            let Some(text) = record["Email"].as_str() else { continue };
            let field = self.fields.meaning(text);
            self.history.entry(*id).or_default().extend(field.untouched.into_iter().chain(field.address));
        }
    }

    /// Returns the former and the present address of everyone in a list's groups who belongs on the list.
    pub(super) fn changed_addresses(&self, said: &Directory, list: &ListConfig) -> BTreeSet<(String, String)> {
        let mut changed = BTreeSet::new();
        for id in Self::members(said, list) {
            let Meaning::Wanted(present) = self.meaning(id, said.people.get(&id)) else { continue };
            let former = self.history.get(&id).into_iter().flatten().filter(|former| **former != present);
            changed.extend(former.map(|former| (former.clone(), present.clone())));
        }
        changed
    }

    /// Returns the people in a list's groups.
    pub(super) fn members(said: &Directory, list: &ListConfig) -> BTreeSet<Uuid> {
        let members = list.groups.iter().filter_map(|(group, _)| said.groups.get(group)).flatten();
        members.copied().filter(|id| !id.is_nil()).collect()
    }

    /// Returns what a person's record is to an address on a list.
    pub(super) fn has(&self, id: Uuid, record: Option<&Value>, address: &str) -> Has {
        match self.meaning(id, record) {
            Meaning::Wanted(wanted) if wanted == address => Has::Keeps,
            Meaning::Untouched(addresses) if addresses.contains(address) => Has::Keeps,
            Meaning::OptedOut(Some(of)) | Meaning::Inactive(Some(of)) if of == address => Has::Address,
            Meaning::Unknown => Has::Unknown,
            _ => Has::Nothing,
        }
    }

    /// Returns the people in a list's groups who may keep an address on it.
    pub(super) fn keepers(&self, said: &Directory, list: &ListConfig, address: &str) -> BTreeSet<Uuid> {
        let mut members = Self::members(said, list);
        members.retain(|id| self.has(*id, said.people.get(id), address) == Has::Keeps);
        members
    }

    /// Returns the addresses that Novi has said of people in a list's groups with a record that can't be read, and of people
    /// who share an address with one of them.
    pub(super) fn addresses_of_unreadable(&self, said: &Directory, list: &ListConfig) -> BTreeSet<String> {
        let members = Self::members(said, list);
        let is_unreadable = |id: &&Uuid| matches!(self.meaning(**id, said.people.get(id)), Meaning::Unknown);
        let history = |id: &Uuid| self.history.get(id).into_iter().flatten().cloned();
        let addresses: BTreeSet<String> = members.iter().filter(is_unreadable).flat_map(history).collect();
        let has = |id: &Uuid, address: &String| self.has(*id, said.people.get(id), address) >= Has::Address;
        let shares = |id: &&Uuid| addresses.iter().any(|address| has(id, address));
        members.iter().filter(shares).flat_map(history).chain(addresses.iter().cloned()).collect()
    }

    /// Returns what Novi says.
    pub(super) fn said(&self) -> Directory {
        let mut said = self.truth.clone();
        self.lies.iter().for_each(|lie| lie.tell(&mut said));
        // If an id is only on another person's record, no one can tell from the bulk list that it isn't theirs.
        let own: BTreeSet<String> =
            said.people.iter().filter(|(id, record)| has_own_id(**id, record)).map(|(id, _)| text_of(*id)).collect();
        for (id, record) in &mut said.people {
            if record["UniqueID"].as_str().is_some_and(|unique| !own.contains(unique)) {
                record["UniqueID"] = json!(text_of(*id));
            }
        }
        let is_address = |text: &str| {
            let field = self.fields.meaning(text);
            field.address.is_some() && field.list.is_none()
        };
        for record in said.people.values_mut() {
            // The contract doesn't say what wins if such a record has an Email that isn't one valid address.
            if (record["Active"] == false || record["UnsubscribeFromEmails"] == true)
                && let Some(text) = record["Email"].as_str()
                && !is_address(text)
            {
                record["Email"] = Value::Null;
            }
        }
        said
    }

    /// Returns the meaning of a list's groups.
    pub(super) fn contents(&self, said: &Directory, list: &ListConfig) -> Contents {
        let mut contents = Contents { is_empty: true, ..Contents::default() };
        let mut members: BTreeSet<Uuid> = BTreeSet::new();
        let mut unwanted: BTreeSet<String> = BTreeSet::new();
        for (group, may_be_empty) in &list.groups {
            let Some(rows) = said.groups.get(group) else {
                contents.has_missing_group = true;
                continue;
            };
            contents.is_empty &= rows.is_empty();
            contents.has_suspicious_group |= rows.is_empty() && !may_be_empty;
            contents.unreadable.rows.insert(*group, rows.iter().filter(|id| id.is_nil()).count());
            members.extend(rows.iter().filter(|id| !id.is_nil()));
        }
        contents.is_empty &= !contents.has_missing_group;
        for id in members {
            let meaning = self.meaning(id, said.people.get(&id));
            if let Meaning::OptedOut(Some(address)) | Meaning::Inactive(Some(address)) = &meaning
                && !unwanted.insert(address.clone())
            {
                contents.shared.insert(address.clone());
            }
            match meaning {
                Meaning::Wanted(address) => drop(contents.wanted.insert(address)),
                Meaning::Untouched(addresses) => {
                    contents.has_oddity = true;
                    contents.untouched.extend(addresses);
                }
                Meaning::OptedOut(address) => contents.opted_out.extend(address),
                Meaning::Inactive(_) | Meaning::Nothing => {}
                Meaning::Unknown => drop(contents.unreadable.people.insert(id)),
            }
        }
        contents
    }

    fn meaning(&self, id: Uuid, record: Option<&Value>) -> Meaning {
        let Some(record) = record.filter(|record| record.as_object().is_some_and(|map| !map.is_empty())) else {
            return Meaning::Nothing;
        };
        let (true, Some(email)) = (has_own_id(id, record), record.get("Email")) else {
            return Meaning::Unknown;
        };
        let field = match email.as_str() {
            Some(text) if !text.is_empty() => self.fields.meaning(text),
            _ => return Meaning::Nothing,
        };
        if field.is_blank {
            return Meaning::Nothing;
        }
        let field = match field.list {
            Some(list) if self.config.names(list) => {
                Field { untouched: field.address.into_iter().collect(), ..Field::default() }
            }
            _ => field,
        };
        match (record["Active"].as_bool(), record["UnsubscribeFromEmails"].as_bool()) {
            (None, _) | (_, None) => Meaning::Untouched(field.untouched.into_iter().chain(field.address).collect()),
            (Some(false), _) => Meaning::Inactive(field.address),
            (_, Some(true)) => Meaning::OptedOut(field.address),
            _ => field.address.map_or(Meaning::Untouched(field.untouched), Meaning::Wanted),
        }
    }

    /// Returns the plain address of a random person.
    pub(super) fn random_address(&mut self, rng: &mut Rng) -> Option<String> {
        let id = self.random_person(rng)?;
        self.address(id)
    }

    /// Returns the address of a person, unless it is that of a list.
    fn address(&self, id: Uuid) -> Option<String> {
        let field = self.fields.meaning(self.truth.people[&id]["Email"].as_str()?);
        field.address.filter(|_| field.list.is_none())
    }

    pub(super) fn random_person(&self, rng: &mut Rng) -> Option<Uuid> {
        let all: Vec<Uuid> = self.truth.people.keys().copied().collect();
        (!all.is_empty()).then(|| all[rng.usize(..all.len())])
    }

    /// Returns a random group, often one that strangers are in.
    pub(super) fn interesting_group(&self, rng: &mut Rng) -> Uuid {
        let with_strangers = self.lies.iter().rev().find_map(Lie::group_with_strangers).filter(|_| rng.bool());
        with_strangers.unwrap_or_else(|| self.groups[rng.usize(..self.groups.len())])
    }

    /// Tells one more lie.
    pub(super) fn lie(&mut self, rng: &mut Rng) -> Option<String> {
        let people: Vec<Uuid> = self.truth.people.keys().copied().collect();
        let lie = Lie::random(rng, &people, &self.groups)?;
        let description = lie.to_string();
        self.lies.push(lie);
        Some(description)
    }

    /// Makes one mistake in the mappings.
    pub(super) fn make_mistake(&mut self, rng: &mut Rng) -> String {
        self.config.make_mistake(rng, &self.groups)
    }

    /// Makes a random change to what is, and describes it.
    pub(super) fn change(&mut self, rng: &mut Rng) -> Option<&'static str> {
        let (id, other) = (self.random_person(rng)?, self.random_person(rng)?);
        let group = self.groups[rng.usize(..self.groups.len())];
        let number = rng.u32(..0x0100_0000);
        let plain = format!("moved{number:06x}@mail.example.org");
        let address = self.random_address(rng).unwrap_or_else(|| plain.clone());
        let own = self.address(id);
        let Self { truth, fields, lists, .. } = self;
        let shared = truth.people[&other]["Email"].clone();
        let members = truth.groups.entry(group).or_default();
        let mut email = None;
        let description = match rng.u8(..37) {
            0..=3 => {
                let count = rng.usize(1..8);
                let new: Vec<Uuid> = (0..count).map(|_| truth.add(rng)).collect();
                truth.groups.entry(group).or_default().extend(new);
                "people join a group"
            }
            4 | 5 => {
                members.retain(|_| rng.u8(..) > 30);
                "people leave a group"
            }
            34..=36 => {
                members.retain(|_| rng.u8(..4) > 0);
                "a quarter of a group leaves"
            }
            6 if !members.contains(&id) => {
                members.push(id);
                "a person joins a group"
            }
            7 => {
                members.clear();
                "a group becomes empty"
            }
            8 => {
                truth.people.remove(&id);
                "a person is deleted"
            }
            9 | 30..=33 => {
                truth.person(id)["Active"] = json!(rng.bool());
                "a person is active or inactive"
            }
            10 | 11 => {
                truth.person(id)["UnsubscribeFromEmails"] = json!(rng.bool());
                "a person opts out or in"
            }
            12 | 26..=29 => {
                email = Some(json!(plain));
                "an address changes"
            }
            13 => {
                email = Some(shared);
                "two people share an address"
            }
            14 => {
                email = Some([json!(null), json!(fields.blank(rng))][rng.usize(..2)].clone());
                "an address becomes blank"
            }
            15 => {
                email = Some(json!(if rng.bool() { fields.nonsense(rng) } else { fields.unclear(rng, &address) }));
                "an address becomes nonsense"
            }
            16 => {
                email = Some(json!(fields.pair(rng, &address, &plain)));
                "a person has two addresses"
            }
            17 => {
                email = Some(json!(fields.other_address(rng, &plain)));
                "an address changes to an unusual one"
            }
            18 | 19 => {
                email = own.map(|own| json!(fields.respell(rng, &own)));
                "an address is spelled differently"
            }
            20 => {
                let list = rng.usize(..lists.len());
                email = Some(json!(fields.of_list(rng, list, &lists[list])));
                "an address is that of a list"
            }
            21 => {
                truth.person(id)["Active"] = json!(null);
                "Active is null"
            }
            22 | 23 if id != other => {
                let new: Vec<Uuid> = [id, other].into_iter().filter(|id| !members.contains(id)).collect();
                members.extend(new);
                let (field, value) = [("Active", false), ("UnsubscribeFromEmails", true)][rng.usize(..2)];
                truth.person(other)[field] = json!(value);
                truth.person(id)["UnsubscribeFromEmails"] = json!(true);
                email = Some(shared);
                "two people share an address, and neither wants mail"
            }
            _ => {
                let record = truth.person(id);
                (record["Active"], record["UnsubscribeFromEmails"]) = (json!(true), json!(false));
                "a person is an ordinary member again"
            }
        };
        if let Some(email) = email {
            truth.person(id)["Email"] = email;
        }
        Some(description)
    }
}

/// True if a record has the id of its person.
fn has_own_id(id: Uuid, record: &Value) -> bool {
    record["UniqueID"] == text_of(id)
}

fn text_of(id: Uuid) -> String {
    id.hyphenated().to_string()
}
