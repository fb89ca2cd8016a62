//! Mappings: which Novi groups a Mailman list should hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Map, Value};
use shared::member::parse_hyphenated;
use shared::parameters::{ParameterError, RawParameters};
use uuid::Uuid;

use crate::address::Address;

/// Mailman's list id, such as `members.lists.example.org`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ListId(String);

impl ListId {
    /// Reads a list id, or a posting address (`members@lists.example.org`).
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        let id = match text.split_once('@') {
            Some((name, host)) if !name.is_empty() && host.contains('.') => format!("{name}.{host}"),
            Some(_) => return None,
            None => text,
        };
        let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-' | b'+');
        let is_id = id.contains('.') && id.bytes().all(is_plain) && id.split('.').all(|part| !part.is_empty());
        is_id.then_some(Self(id))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ListId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How much one run may change a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The most that may leave, in percent of the roster.
    pub(crate) max_removal_percent: u64,
    /// The most that may join, in percent of the roster.
    pub(crate) max_growth_percent: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_removal_percent: 30, max_growth_percent: 100 }
    }
}

/// What one list should hold: all mappings that name it, joined.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) list: ListId,
    pub(crate) groups: BTreeSet<Uuid>,
    /// Addresses that are never unsubscribed.
    pub(crate) keep: BTreeSet<Address>,
    pub(crate) limits: Limits,
    /// Some mapping does not even name its list, which may be this one: who is
    /// on this list for that mapping's sake cannot be known.
    pub(crate) is_in_doubt: bool,
}

/// A mapping that does not parse. Its list is left untouched.
pub(crate) struct Broken {
    /// The list, where at least that could be read.
    pub(crate) list: Option<ListId>,
    /// Its place and its fault, without what it holds.
    pub(crate) reason: String,
}

/// All mappings, by list.
pub(crate) struct Mappings {
    pub(crate) targets: Vec<Target>,
    pub(crate) broken: Vec<Broken>,
}

const NAME: &str = "novi_mailman_sync";
const RIGHT: &str = r#"a JSON array of mappings such as {"group_guid":"…","list_id":"members.lists.example.org"}"#;

impl Mappings {
    /// Reads `novi_mailman_sync`.
    ///
    /// # Errors
    /// Where it is missing or no array. A single mapping that does not parse is
    /// no error of the whole: it fails alone.
    pub(crate) fn from_parameters(raw: &RawParameters) -> Result<Self, ParameterError> {
        Ok(Self::parse(raw.required_array(NAME, RIGHT)?))
    }

    fn parse(items: Vec<Value>) -> Self {
        let mut targets: BTreeMap<ListId, Target> = BTreeMap::new();
        let mut broken: Vec<Broken> = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            match Target::parse(&item) {
                Ok(one) => match targets.get_mut(&one.list) {
                    Some(joined) => joined.join(one),
                    None => {
                        targets.insert(one.list.clone(), one);
                    }
                },
                Err(fault) => broken.push(Broken {
                    list: item.get("list_id").and_then(Value::as_str).and_then(ListId::parse),
                    reason: format!("mapping {} cannot be used: {fault}", index + 1),
                }),
            }
        }
        for list in broken.iter().filter_map(|broken| broken.list.as_ref()) {
            targets.remove(list);
        }
        if broken.iter().any(|broken| broken.list.is_none()) {
            targets.values_mut().for_each(|target| target.is_in_doubt = true);
        }
        Self { targets: targets.into_values().collect(), broken }
    }

    /// Whether some mapping names this list, a broken one included.
    pub(crate) fn name(&self, list: &ListId) -> bool {
        self.targets.iter().any(|target| target.list == *list)
            || self.broken.iter().any(|broken| broken.list.as_ref() == Some(list))
    }
}

impl Target {
    fn join(&mut self, other: Self) {
        self.groups.extend(other.groups);
        self.keep.extend(other.keep);
        self.limits = Limits {
            max_removal_percent: self.limits.max_removal_percent.min(other.limits.max_removal_percent),
            max_growth_percent: self.limits.max_growth_percent.min(other.limits.max_growth_percent),
        };
    }

    /// Reads one mapping. By hand, because serde's errors quote what they find,
    /// and a mapping may hold addresses.
    fn parse(item: &Value) -> Result<Self, String> {
        const KEYS: [&str; 5] = ["group_guid", "list_id", "keep", "max_removal_percent", "max_growth_percent"];
        let map = item.as_object().ok_or("it must be a JSON object")?;
        if !map.keys().all(|key| KEYS.contains(&key.as_str())) {
            return Err(format!("it has a key that is none of {}", KEYS.join(", ")));
        }
        let group = map
            .get("group_guid")
            .and_then(Value::as_str)
            .and_then(|text| parse_hyphenated(text.trim()))
            .ok_or("group_guid must be a hyphenated UUID")?;
        let list = map
            .get("list_id")
            .and_then(Value::as_str)
            .and_then(ListId::parse)
            .ok_or("list_id must be a list id such as members.lists.example.org, or the list's posting address")?;
        let defaults = Limits::default();
        Ok(Self {
            list,
            groups: BTreeSet::from([group]),
            keep: keep(map)?,
            is_in_doubt: false,
            limits: Limits {
                max_removal_percent: percent(map, "max_removal_percent", defaults.max_removal_percent, 100)?,
                max_growth_percent: percent(map, "max_growth_percent", defaults.max_growth_percent, 100_000)?,
            },
        })
    }
}

fn keep(map: &Map<String, Value>) -> Result<BTreeSet<Address>, String> {
    let items = match map.get("keep") {
        None | Some(Value::Null) => return Ok(BTreeSet::new()),
        Some(Value::Array(items)) => items,
        Some(_) => return Err("keep must be an array of addresses".to_owned()),
    };
    let mut addresses = BTreeSet::new();
    for (index, item) in items.iter().enumerate() {
        // An odd address may well be subscribed, and must be one that can be kept.
        let address = item.as_str().map(Address::new).filter(Address::is_plausible);
        addresses.insert(address.ok_or_else(|| format!("entry {} of keep is no address", index + 1))?);
    }
    Ok(addresses)
}

fn percent(map: &Map<String, Value>, name: &str, default: u64, most: u64) -> Result<u64, String> {
    match map.get(name) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value
            .as_u64()
            .filter(|n| *n <= most)
            .ok_or_else(|| format!("{name} must be a whole number from 0 to {most} (default {default})")),
    }
}

shared::unprintable!(Target, Mappings);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const GROUP: &str = "39120341-3c8e-47b0-9a40-45b5659b2044";
    const OTHER: &str = "49120341-3c8e-47b0-9a40-45b5659b2044";

    fn parse(items: Value) -> Mappings {
        match items {
            Value::Array(items) => Mappings::parse(items),
            _ => panic!("no array"),
        }
    }

    #[test]
    fn a_list_is_named_by_id_or_posting_address() {
        for (text, id) in [
            ("members.lists.example.org", Some("members.lists.example.org")),
            ("members@lists.example.org", Some("members.lists.example.org")),
            (" Members@Lists.Example.org ", Some("members.lists.example.org")),
            ("a-b_c+d.lists.example.org", Some("a-b_c+d.lists.example.org")),
            ("members", None),
            ("", None),
            ("@lists.example.org", None),
            ("members@localhost", None),
            ("a@b@c.org", None),
            ("../lists.example.org", None),
            ("a/b.example.org", None),
            (".example.org", None),
        ] {
            assert_eq!(ListId::parse(text).as_ref().map(ListId::as_str), id, "{text}");
        }
    }

    #[test]
    fn mappings_of_one_list_are_joined_with_the_strictest_limits() {
        let mappings = parse(json!([
            {"group_guid": GROUP, "list_id": "a.lists.example.org", "keep": ["Owner@example.org"], "max_removal_percent": 10},
            {"group_guid": OTHER, "list_id": "a@lists.example.org", "keep": ["two@example.org"], "max_growth_percent": 50},
            {"group_guid": GROUP, "list_id": "b.lists.example.org"},
        ]));
        assert_eq!(mappings.targets.len(), 2);
        let a = &mappings.targets[0];
        assert_eq!((a.groups.len(), a.keep.len()), (2, 2));
        assert!(a.keep.contains(&Address::new("owner@example.org")));
        assert_eq!(a.limits, Limits { max_removal_percent: 10, max_growth_percent: 50 });
        assert_eq!(mappings.targets[1].limits, Limits::default());
    }

    #[test]
    fn a_broken_mapping_fails_alone_and_takes_its_list_with_it() {
        let mappings = parse(json!([
            {"group_guid": GROUP, "list_id": "a.lists.example.org"},
            {"group_guid": OTHER, "list_id": "a.lists.example.org", "max_removal_percent": 130},
            {"group_guid": GROUP, "list_id": "b.lists.example.org"},
        ]));
        assert_eq!(mappings.targets.iter().map(|t| t.list.as_str()).collect::<Vec<_>>(), ["b.lists.example.org"]);
        assert_eq!(mappings.broken.len(), 1);
        assert_eq!(mappings.broken[0].list.as_ref().map(ListId::as_str), Some("a.lists.example.org"));
        assert_eq!(
            mappings.broken[0].reason,
            "mapping 2 cannot be used: max_removal_percent must be a whole number from 0 to 100 (default 30)"
        );
        assert!(mappings.name(&ListId::parse("a.lists.example.org").unwrap()));
        assert!(!mappings.name(&ListId::parse("c.lists.example.org").unwrap()));
    }

    #[test]
    fn a_mapping_that_names_no_list_puts_all_in_doubt() {
        let one = json!({"group_guid": GROUP, "list_id": "a.lists.example.org"});
        assert!(!parse(json!([one])).targets[0].is_in_doubt);
        let misspelt = json!({"group_guid": OTHER, "list-id": "a.lists.example.org"});
        assert!(parse(json!([one, misspelt])).targets[0].is_in_doubt);
    }

    #[test]
    fn a_fault_is_named_and_nothing_is_quoted() {
        for (item, said) in [
            (json!("secret"), "must be a JSON object"),
            (json!({"list_id": "a.b.org"}), "group_guid must be"),
            (json!({"group_guid": "secret", "list_id": "a.b.org"}), "group_guid must be"),
            (json!({"group_guid": GROUP}), "list_id must be"),
            (json!({"group_guid": GROUP, "list_id": 5}), "list_id must be"),
            (json!({"group_guid": GROUP, "list_id": "a.b.org", "secret@example.org": 1}), "none of group_guid"),
            (json!({"group_guid": GROUP, "list_id": "a.b.org", "keep": "secret@example.org"}), "keep must be an array"),
            (
                json!({"group_guid": GROUP, "list_id": "a.b.org", "keep": ["ok@example.org", "secret"]}),
                "entry 2 of keep",
            ),
            (json!({"group_guid": GROUP, "list_id": "a.b.org", "max_growth_percent": -1}), "max_growth_percent must"),
        ] {
            let mappings = parse(json!([item]));
            assert_eq!((mappings.targets.len(), mappings.broken.len()), (0, 1));
            let reason = &mappings.broken[0].reason;
            assert!(reason.contains(said) && !reason.contains("secret"), "{reason}");
        }
    }
}
