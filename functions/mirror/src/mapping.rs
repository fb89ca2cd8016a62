//! Mappings from Novi groups to Mailman lists.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use shared::member::parse_hyphenated;
use shared::parameters::{ParameterError, RawParameters};
use uuid::Uuid;

use crate::address::Address;

/// Mailman's list id, such as `members.lists.example.org`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct ListId(String);

impl ListId {
    /// Parses a list id or a posting address (`members@lists.example.org`).
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

impl Borrow<str> for ListId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ListId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The limits of changes to a list in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The maximum number of addresses that may leave, in percent of the base.
    pub(crate) max_removal_percent: u64,
    /// The maximum number of addresses that may join, in percent of the base.
    pub(crate) max_growth_percent: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_removal_percent: 30, max_growth_percent: 100 }
    }
}

/// The merged mappings of one list.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) list: ListId,
    pub(crate) groups: BTreeSet<Uuid>,
    /// The groups that may be empty while others aren't.
    pub(crate) may_be_empty: BTreeSet<Uuid>,
    /// Addresses that are never unsubscribed.
    pub(crate) keep: BTreeSet<Address>,
    pub(crate) limits: Limits,
    /// True if no one is removed from the list (`"removals": false`).
    pub(crate) is_add_only: bool,
    /// False if members who left the list by themselves aren't added again (`"resubscribe": false`).
    pub(crate) resubscribes: bool,
    /// Every list that a mapping names. Their addresses are no member's.
    pub(crate) mapped_lists: Arc<BTreeSet<ListId>>,
    /// True if an invalid mapping doesn't even name its list. It may be meant for this list, in which case the
    /// addresses that it adds are unknown.
    pub(crate) has_unresolved_mapping: bool,
}

/// A mapping that doesn't parse. Its list is left unchanged.
pub(crate) struct InvalidMapping {
    /// The list, if at least that could be parsed.
    pub(crate) list: Option<ListId>,
    /// A sentence for the report with the position of the mapping and its error, without its contents.
    pub(crate) reason: String,
}

/// A valid mapping, as it was written.
pub(crate) struct Source {
    /// Its position, from 1.
    pub(crate) position: usize,
    pub(crate) group: Uuid,
    pub(crate) list: ListId,
}

/// All mappings, by list.
pub(crate) struct Mappings {
    /// The valid mappings, in their order.
    pub(crate) sources: Vec<Source>,
    pub(crate) targets: Vec<Target>,
    pub(crate) invalid: Vec<InvalidMapping>,
    /// Every list that a mapping names, even if the mapping is invalid.
    pub(crate) lists: Arc<BTreeSet<ListId>>,
}

const PARAMETER: &str = "novi_mailman_sync";
const EXPECTED: &str = r#"a JSON array of mappings such as {"group_guid":"…","list_id":"members.lists.example.org"}"#;

impl Mappings {
    /// Parses `novi_mailman_sync`.
    ///
    /// # Errors
    /// Fails if the parameter is missing or isn't an array. An invalid mapping only affects its own list.
    pub(crate) fn from_parameters(raw: &RawParameters) -> Result<Self, ParameterError> {
        Ok(Self::parse(raw.required_array(PARAMETER, EXPECTED)?))
    }

    pub(crate) fn parse(items: Vec<Value>) -> Self {
        let mut targets: BTreeMap<ListId, Target> = BTreeMap::new();
        let (mut sources, mut invalid): (Vec<Source>, Vec<InvalidMapping>) = Default::default();
        for (index, item) in items.into_iter().enumerate() {
            match Target::parse(&item) {
                Ok(target) => {
                    let groups = target.groups.iter();
                    sources.extend(groups.map(|group| Source {
                        position: index + 1,
                        group: *group,
                        list: target.list.clone(),
                    }));
                    match targets.get_mut(&target.list) {
                        Some(existing) => existing.merge(target),
                        None => {
                            targets.insert(target.list.clone(), target);
                        }
                    }
                }
                Err(error) => invalid.push(InvalidMapping {
                    list: item.get("list_id").and_then(Value::as_str).and_then(ListId::parse),
                    reason: format!("Mapping {} is invalid: {error}.", index + 1),
                }),
            }
        }
        for list in invalid.iter().filter_map(|invalid| invalid.list.as_ref()) {
            targets.remove(list);
        }
        let named = targets.keys().chain(invalid.iter().filter_map(|invalid| invalid.list.as_ref()));
        let lists: Arc<BTreeSet<ListId>> = Arc::new(named.cloned().collect());
        let has_unresolved_mapping = invalid.iter().any(|invalid| invalid.list.is_none());
        for target in targets.values_mut() {
            target.has_unresolved_mapping = has_unresolved_mapping;
            target.mapped_lists = Arc::clone(&lists);
        }
        Self { sources, targets: targets.into_values().collect(), invalid, lists }
    }

    /// True if a mapping names this list, even if the mapping is invalid.
    pub(crate) fn contains(&self, list: &ListId) -> bool {
        self.lists.contains(list)
    }
}

impl Target {
    /// True if mail to this address reaches a list that a mapping names: to post, or as a command.
    pub(crate) fn is_list_address(&self, address: &Address) -> bool {
        const COMMANDS: [&str; 8] =
            ["bounces", "confirm", "join", "leave", "owner", "request", "subscribe", "unsubscribe"];
        let Some((local, domain)) = address.as_str().rsplit_once('@') else { return false };
        // What follows a plus only matters to the command.
        let before_plus = |text: &'_ str| text.split_once('+').map_or(text.len(), |(before, _)| before.len());
        // Both are in lower case.
        let is_list = |name: &str| self.mapped_lists.contains(format!("{name}.{domain}").as_str());
        let mut dashes = local.match_indices('-');
        is_list(local)
            || (local.contains('+') && is_list(&local[..before_plus(local)]))
            || dashes.any(|(dash, _)| {
                let rest = &local[dash + 1..];
                COMMANDS.contains(&&rest[..before_plus(rest)]) && is_list(&local[..dash])
            })
    }

    fn merge(&mut self, other: Self) {
        self.groups.extend(other.groups);
        self.may_be_empty.extend(other.may_be_empty);
        self.keep.extend(other.keep);
        self.is_add_only |= other.is_add_only;
        self.resubscribes &= other.resubscribes;
        self.limits = Limits {
            max_removal_percent: self.limits.max_removal_percent.min(other.limits.max_removal_percent),
            max_growth_percent: self.limits.max_growth_percent.min(other.limits.max_growth_percent),
        };
    }

    /// Parses one mapping. Serde isn't used, because its errors quote the input, and a mapping may contain addresses.
    fn parse(item: &Value) -> Result<Self, String> {
        const KEYS: [&str; 8] = [
            "group_guid",
            "list_id",
            "keep",
            "max_removal_percent",
            "max_growth_percent",
            "may_be_empty",
            "removals",
            "resubscribe",
        ];
        let map = item.as_object().ok_or("expected a JSON object")?;
        if !map.keys().all(|key| KEYS.contains(&key.as_str())) {
            return Err(format!("unknown key; expected one of {}", KEYS.join(", ")));
        }
        let group = map
            .get("group_guid")
            .and_then(Value::as_str)
            .and_then(|text| parse_hyphenated(text.trim()))
            .ok_or("group_guid: expected a hyphenated UUID")?;
        let list =
            map.get("list_id").and_then(Value::as_str).and_then(ListId::parse).ok_or(
                "list_id: expected a list id such as members.lists.example.org, or the list's posting address",
            )?;
        let defaults = Limits::default();
        Ok(Self {
            list,
            groups: BTreeSet::from([group]),
            may_be_empty: flag(map, "may_be_empty", false)?.then_some(group).into_iter().collect(),
            keep: keep(map)?,
            is_add_only: !flag(map, "removals", true)?,
            resubscribes: flag(map, "resubscribe", true)?,
            has_unresolved_mapping: false,
            mapped_lists: Arc::default(),
            limits: Limits {
                max_removal_percent: percent(map, "max_removal_percent", defaults.max_removal_percent, 100)?,
                max_growth_percent: percent(map, "max_growth_percent", defaults.max_growth_percent, 100_000)?,
            },
        })
    }
}

fn flag(map: &Map<String, Value>, name: &str, default: bool) -> Result<bool, String> {
    match map.get(name) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value.as_bool().ok_or_else(|| format!("{name}: expected true or false (default {default})")),
    }
}

fn keep(map: &Map<String, Value>) -> Result<BTreeSet<Address>, String> {
    let items = match map.get("keep") {
        None | Some(Value::Null) => return Ok(BTreeSet::new()),
        Some(Value::Array(items)) => items,
        Some(_) => return Err("keep: expected an array of addresses".to_owned()),
    };
    let mut addresses = BTreeSet::new();
    for (index, item) in items.iter().enumerate() {
        let text = item.as_str().unwrap_or_default();
        match Address::parse(text) {
            Ok(address) => drop(addresses.insert(address)),
            // An invalid address may be subscribed, and keeping it must be possible.
            Err(readings) if !readings.is_empty() => addresses.extend(readings),
            Err(_) => return Err(format!("entry {} of keep is not an address", index + 1)),
        }
    }
    Ok(addresses)
}

fn percent(map: &Map<String, Value>, name: &str, default: u64, max: u64) -> Result<u64, String> {
    match map.get(name) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value
            .as_u64()
            .filter(|n| *n <= max)
            .ok_or_else(|| format!("{name}: expected a whole number from 0 to {max} (default {default})")),
    }
}

shared::unprintable!(Source, Target, Mappings);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const GROUP: &str = "39120341-3c8e-47b0-9a40-45b5659b2044";
    const OTHER: &str = "49120341-3c8e-47b0-9a40-45b5659b2044";

    fn parse(items: Value) -> Mappings {
        match items {
            Value::Array(items) => Mappings::parse(items),
            _ => panic!("not an array"),
        }
    }

    #[test]
    fn list_id_parses_from_id_or_posting_address() {
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
    fn mappings_of_one_list_are_merged_with_the_strictest_limits() {
        let mappings = parse(json!([
            {"group_guid": GROUP, "list_id": "a.lists.example.org",
             "keep": ["Owner@example.org"], "max_removal_percent": 10},
            {"group_guid": OTHER, "list_id": "a@lists.example.org",
             "keep": ["two@example.org"], "max_growth_percent": 50},
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
    fn invalid_mapping_fails_only_its_own_list() {
        let mappings = parse(json!([
            {"group_guid": GROUP, "list_id": "a.lists.example.org"},
            {"group_guid": OTHER, "list_id": "a.lists.example.org", "max_removal_percent": 130},
            {"group_guid": GROUP, "list_id": "b.lists.example.org"},
        ]));
        assert_eq!(mappings.targets.iter().map(|t| t.list.as_str()).collect::<Vec<_>>(), ["b.lists.example.org"]);
        assert_eq!(mappings.invalid.len(), 1);
        assert_eq!(mappings.invalid[0].list.as_ref().map(ListId::as_str), Some("a.lists.example.org"));
        assert_eq!(
            mappings.invalid[0].reason,
            "Mapping 2 is invalid: max_removal_percent: expected a whole number from 0 to 100 (default 30)."
        );
        assert!(mappings.contains(&ListId::parse("a.lists.example.org").unwrap()));
        assert!(!mappings.contains(&ListId::parse("c.lists.example.org").unwrap()));
    }

    #[test]
    fn options_are_merged_and_may_be_empty_counts_for_its_own_group() {
        let mapping = |group: &str, options: Value| {
            let mut mapping = json!({"group_guid": group, "list_id": "a.lists.example.org"});
            if let (Some(mapping), Value::Object(options)) = (mapping.as_object_mut(), options) {
                mapping.extend(options);
            }
            mapping
        };
        let groups = |target: &Target| target.may_be_empty.iter().map(Uuid::to_string).collect::<Vec<_>>();
        let defaults = parse(json!([mapping(GROUP, json!({"removals": true, "resubscribe": true}))]));
        assert!(!defaults.targets[0].is_add_only && defaults.targets[0].may_be_empty.is_empty());
        let mappings = parse(json!([
            mapping(GROUP, json!({"may_be_empty": true, "removals": true})),
            mapping(OTHER, json!({"may_be_empty": false, "removals": false})),
        ]));
        assert!(mappings.targets[0].is_add_only);
        assert_eq!(groups(&mappings.targets[0]), [GROUP]);
    }

    #[test]
    fn no_one_is_subscribed_again_if_any_mapping_of_the_list_says_so() {
        let mappings = parse(json!([
            {"group_guid": GROUP, "list_id": "a.lists.example.org", "resubscribe": false},
            {"group_guid": OTHER, "list_id": "a.lists.example.org"},
            {"group_guid": GROUP, "list_id": "b.lists.example.org"},
        ]));
        assert_eq!(mappings.targets.iter().map(|target| target.resubscribes).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn keep_is_normalized_as_addresses_of_novi_are() {
        let keep = json!([
            "Ann <Ann@B\u{fc}cher.example>",
            "\u{200b}bob@x.example.",
            "a b@x.example",
            "c@x.example;d@x.example"
        ]);
        let mappings = parse(json!([{"group_guid": GROUP, "list_id": "a.lists.example.org", "keep": keep}]));
        let keep = &mappings.targets[0].keep;
        for address in ["ann@xn--bcher-kva.example", "bob@x.example", "a+b@x.example", "c@x.example", "d@x.example"] {
            assert!(keep.contains(&Address::new(address)), "{address}");
        }
    }

    #[test]
    fn every_mapped_list_is_known_to_every_list() {
        let mappings = parse(json!([
            {"group_guid": GROUP, "list_id": "a.lists.example.org"},
            {"group_guid": "x", "list_id": "b.lists.example.org"},
            {"group_guid": GROUP, "list_id": "c.lists.example.org"},
        ]));
        let names: Vec<&str> = mappings.lists.iter().map(ListId::as_str).collect();
        assert_eq!(names, ["a.lists.example.org", "b.lists.example.org", "c.lists.example.org"]);
        assert!(mappings.targets.iter().all(|target| target.mapped_lists == mappings.lists));
    }

    #[test]
    fn mapping_without_a_list_id_is_unresolved_for_all_lists() {
        let target = json!({"group_guid": GROUP, "list_id": "a.lists.example.org"});
        assert!(!parse(json!([target])).targets[0].has_unresolved_mapping);
        let misspelled = json!({"group_guid": OTHER, "list-id": "a.lists.example.org"});
        assert!(parse(json!([target, misspelled])).targets[0].has_unresolved_mapping);
    }

    #[test]
    fn invalid_mapping_error_names_the_key_and_quotes_no_value() {
        for (item, expected) in [
            (json!("secret"), "expected a JSON object"),
            (json!({"list_id": "a.b.org"}), "group_guid: expected"),
            (json!({"group_guid": "secret", "list_id": "a.b.org"}), "group_guid: expected"),
            (json!({"group_guid": GROUP}), "list_id: expected"),
            (json!({"group_guid": GROUP, "list_id": 5}), "list_id: expected"),
            (json!({"group_guid": GROUP, "list_id": "a.b.org", "secret@example.org": 1}), "expected one of group_guid"),
            (
                json!({"group_guid": GROUP, "list_id": "a.b.org", "keep": "secret@example.org"}),
                "keep: expected an array",
            ),
            (
                json!({"group_guid": GROUP, "list_id": "a.b.org", "keep": ["ok@example.org", "secret"]}),
                "entry 2 of keep is not an address",
            ),
            (
                json!({"group_guid": GROUP, "list_id": "a.b.org", "max_growth_percent": -1}),
                "max_growth_percent: expected",
            ),
            (
                json!({"group_guid": GROUP, "list_id": "a.b.org", "may_be_empty": "secret"}),
                "may_be_empty: expected true or false (default false)",
            ),
            (
                json!({"group_guid": GROUP, "list_id": "a.b.org", "removals": 0}),
                "removals: expected true or false (default true)",
            ),
        ] {
            let mappings = parse(json!([item]));
            assert_eq!((mappings.targets.len(), mappings.invalid.len()), (0, 1));
            let reason = &mappings.invalid[0].reason;
            assert!(reason.contains(expected) && !reason.contains("secret"), "{reason}");
        }
    }
}
