//! Lists for tests of the mirror's rules: each has a group in Novi, and a roster in Mailman that differs from it in a
//! given number of people.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use fastrand::Rng;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::directory::Directory;
use crate::harness::{Mirror, list};

/// The number of people of each kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct People {
    /// On the roster and in the group.
    pub stay: usize,
    /// On the roster, but not in the group.
    pub leave: usize,
    /// In the group, but not on the roster.
    pub join: usize,
    /// In the group, with a record that hides its address.
    pub unknown: usize,
    /// On the roster only because of `keep`.
    pub keep: usize,
}

/// Returns the number of people who stay, leave and join.
#[must_use]
pub fn people(stay: usize, leave: usize, join: usize) -> People {
    People { stay, leave, join, ..People::default() }
}

/// A list and its people.
pub struct TestList {
    /// The list id.
    pub id: String,
    /// The group that is mapped to it.
    pub group: Uuid,
    /// Members of the group who are on the roster.
    pub stay: Vec<Uuid>,
    /// Members of the group who aren't on the roster.
    pub join: Vec<Uuid>,
    /// Members of the group with a record that hides its address.
    pub unknown: Vec<Uuid>,
    /// Addresses on the roster that are not in the group.
    pub leave: Vec<String>,
    /// Addresses on the roster that `keep` names.
    pub keep: Vec<String>,
    /// The roster before the first run.
    pub roster: BTreeSet<String>,
}

/// Lists before the mirror starts.
#[derive(Default)]
pub struct Lists {
    /// Everything in Novi.
    pub directory: Directory,
    /// The mappings, in their order.
    pub mappings: Vec<Value>,
    lists: Vec<TestList>,
    rng: Rng,
}

impl Lists {
    /// Adds a list with a group, and with `options` in its mapping. Returns the number of the list.
    pub fn add(&mut self, people: People, options: Value) -> usize {
        let number = self.lists.len();
        let mut add = |count: usize| -> Vec<Uuid> { (0..count).map(|_| self.directory.add(&mut self.rng)).collect() };
        let (stay, join, unknown) = (add(people.stay), add(people.join), add(people.unknown));
        for id in &unknown {
            hide_email(&mut self.directory, *id);
        }
        let group = Uuid::from_u128(self.rng.u128(..));
        self.directory.groups.insert(group, [&stay[..], &join, &unknown].concat());
        let address = |kind: &str, n: usize| format!("{kind}{n}.of.{number}@mail.example.org");
        let leave: Vec<String> = (0..people.leave).map(|n| address("leaver", n)).collect();
        let keep: Vec<String> = (0..people.keep).map(|n| address("kept", n)).collect();
        let roster = stay.iter().map(|id| self.directory.address(*id)).chain(leave.clone()).chain(keep.clone());
        let roster = roster.collect();
        let id = format!("case{number}.lists.example.org");
        self.lists.push(TestList { id, group, stay, join, unknown, leave, keep, roster });
        let keep = self.lists[number].keep.clone();
        self.map(number, group, json!({ "keep": keep }), options);
        number
    }

    /// Adds a mapping of another group of `count` people, who are all on the list's roster, to a list. Returns the
    /// group.
    pub fn add_group(&mut self, number: usize, count: usize, options: Value) -> Uuid {
        let group = self.directory.add_plain_group(&mut self.rng, count);
        let addresses: Vec<String> =
            self.directory.groups[&group].iter().map(|id| self.directory.address(*id)).collect();
        self.lists[number].roster.extend(addresses);
        self.map(number, group, json!({}), options);
        group
    }

    fn map(&mut self, number: usize, group: Uuid, mut mapping: Value, options: Value) {
        mapping["group_guid"] = json!(group);
        mapping["list_id"] = json!(self.lists[number].id);
        if let (Some(mapping), Value::Object(options)) = (mapping.as_object_mut(), options) {
            mapping.extend(options);
        }
        self.mappings.push(mapping);
    }

    /// Starts the mirror, and creates the lists with their rosters.
    ///
    /// # Errors
    /// Fails if something that `make` sets up is missing.
    pub async fn start(self, variables: &[(&str, &str)]) -> Result<(Mirror, Vec<TestList>)> {
        let env = Mirror::start(self.directory, json!(self.mappings), variables).await?;
        for list in &self.lists {
            env.mailman.create_list(list.id.split('.').next().unwrap_or_default()).await?;
            list.roster.iter().for_each(|address| env.private.add(address));
        }
        let members = self.lists.iter().flat_map(|list| list.roster.iter().map(|address| (list.id.as_str(), address)));
        env.mailman.insert_all_members(members.map(|(list, address)| (list, address.clone())))?;
        Ok((env, self.lists))
    }
}

impl TestList {
    /// Returns the addresses that belong on the list: those of the group, and those in `keep`.
    #[must_use]
    pub fn wanted(&self, env: &Mirror) -> BTreeSet<String> {
        let people = self.stay.iter().chain(&self.join);
        people.map(|id| self.address(env, *id)).chain(self.keep.iter().cloned()).collect()
    }

    /// Returns a person's address, as Mailman stores it.
    #[must_use]
    pub fn address(&self, env: &Mirror, id: Uuid) -> String {
        env.novi.state().directory.address(id)
    }

    /// Checks the addresses on the list.
    ///
    /// # Errors
    /// Fails if Mailman doesn't return the roster.
    ///
    /// # Panics
    /// Panics if the list has other addresses.
    pub async fn expect(&self, env: &Mirror, addresses: &BTreeSet<String>, what: &str) -> Result<()> {
        let roster: BTreeSet<String> = env.mailman.roster(&self.id, "member").await?.into_keys().collect();
        assert_eq!(&roster, addresses, "{what}");
        Ok(())
    }

    /// Checks that the list is as it was before the first run, and that the report says so.
    ///
    /// # Errors
    /// Fails if Mailman doesn't return the roster.
    ///
    /// # Panics
    /// Panics if the list has changed, or has another status.
    pub async fn expect_unchanged(&self, env: &Mirror, report: &Value, status: &str, what: &str) -> Result<()> {
        let entry = list(report, &self.id);
        assert_eq!(
            (&entry["status"], &entry["subscribed"], &entry["unsubscribed"]),
            (&json!(status), &json!(0), &json!(0)),
            "{what}: {entry}"
        );
        assert!(entry["reason"].is_string(), "{what}: {entry}");
        self.expect(env, &self.roster, what).await
    }

    /// Checks that the list has everyone who belongs on it and no one else, and that its status is `ok`.
    ///
    /// # Errors
    /// Fails if Mailman doesn't return the roster.
    ///
    /// # Panics
    /// Panics if the list has other addresses, or another status.
    pub async fn expect_synced(&self, env: &Mirror, report: &Value, what: &str) -> Result<()> {
        let entry = list(report, &self.id);
        assert_eq!(entry["status"], "ok", "{what}: {entry}");
        self.expect(env, &self.wanted(env), what).await
    }
}

/// Makes a record one that doesn't show its address, which is therefore unknown.
///
/// # Panics
/// Panics if the directory has no person with this UUID.
pub fn hide_email(directory: &mut Directory, id: Uuid) {
    directory.person(id).as_object_mut().expect("a record is an object").remove("Email");
}

/// Returns the value of `force` in the event that a list's reason gives.
///
/// # Errors
/// Fails if the reason has no event, or one with other keys.
pub fn force_in(entry: &Value) -> Result<Value> {
    let reason = entry["reason"].as_str().unwrap_or_default();
    let start = reason.find(r#"{"force":"#).with_context(|| format!("no event in {entry}"))?;
    let mut values = serde_json::Deserializer::from_str(&reason[start..]).into_iter::<Value>();
    let event = values.next().context("expected JSON")??;
    let keys: Vec<&String> = event.as_object().into_iter().flat_map(|map| map.keys()).collect();
    anyhow::ensure!(keys == ["force"], "{event}");
    Ok(event["force"].clone())
}
