//! The event: the options of one run. Parsed strictly, because a misspelled `dry_run` would otherwise write.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::address::Address;
use crate::force::Force;
use crate::mapping::{ListId, Mappings};

/// The reason why an event is invalid. It quotes no value.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid event: {0}")]
pub(crate) struct InvalidEvent(String);

/// The keys of an event.
const KEYS: [&str; 6] = ["dry_run", "lists", "force", "explain", "show", "probe"];

/// The options of one run.
#[derive(Default)]
pub(crate) struct Event {
    /// True if the run plans and reports, but writes nothing.
    pub(crate) dry_run: bool,
    /// The only lists to process, or `None` for all lists.
    pub(crate) lists: Option<Vec<ListId>>,
    /// How far the guards of some lists are lifted in this run.
    pub(crate) force: BTreeMap<ListId, Force>,
    /// Addresses to explain, as they were sent.
    pub(crate) explain: Vec<String>,
    /// True if the result contains the addresses that would join and leave.
    pub(crate) show: bool,
    /// True if this is a probe instead of a run. It has no other options.
    pub(crate) probe: bool,
}

impl Event {
    /// Parses an event. A scheduled event of EventBridge counts as `{}`.
    pub(crate) fn parse(event: &Value) -> Result<Self, InvalidEvent> {
        let map = event.as_object().ok_or_else(|| InvalidEvent("expected a JSON object".to_owned()))?;
        if map.get("source").is_some_and(Value::is_string) && map.get("detail-type").is_some_and(Value::is_string) {
            if KEYS.iter().any(|key| map.contains_key(*key)) {
                return Err(InvalidEvent(
                    "a scheduled event can't contain mirror options. Remove source and detail-type".to_owned(),
                ));
            }
            return Ok(Self::default());
        }
        Self::parse_options(map).map_err(InvalidEvent)
    }

    fn parse_options(map: &Map<String, Value>) -> Result<Self, String> {
        let mut event = Self::default();
        for (key, value) in map {
            match key.as_str() {
                "dry_run" => event.dry_run = value.as_bool().ok_or("dry_run: expected true or false")?,
                "lists" => event.lists = Some(lists("lists", value)?),
                "force" => event.force = force(value)?,
                "explain" => event.explain = strings("explain", "addresses", value)?.map(str::to_owned).collect(),
                "show" | "probe" if *value != Value::Bool(true) => return Err(format!("{key}: expected true")),
                "show" => event.show = true,
                "probe" => event.probe = true,
                _ => return Err(format!("unknown key; expected one of {}", KEYS.join(", "))),
            }
        }
        if event.lists.as_ref().is_some_and(Vec::is_empty) {
            return Err("lists: expected at least one list id. Omit lists to process all lists".to_owned());
        }
        if event.probe && map.len() > 1 {
            return Err("probe: expected no other key next to it".to_owned());
        }
        // An explanation must not change what it explains, nor a preview what it shows. A probe writes nothing.
        event.dry_run |= map.contains_key("explain") || event.show || event.probe;
        Ok(event)
    }

    /// Checks that every list in the event has a mapping.
    pub(crate) fn check(&self, mappings: &Mappings) -> Result<(), InvalidEvent> {
        // The list is not quoted, because an operator may have entered an address instead of a list id.
        let lists = self.lists.iter().flatten().zip(1..).map(|(list, number)| ("lists", number, list));
        let force = self.force.keys().zip(1..).map(|(list, number)| ("force", number, list));
        match lists.chain(force).find(|(_, _, list)| !mappings.contains(list)) {
            None => Ok(()),
            Some((key, number, _)) => {
                Err(InvalidEvent(format!("no mapping names the list in entry {number} of {key}")))
            }
        }
    }

    /// True if this run processes the list.
    pub(crate) fn includes(&self, list: &ListId) -> bool {
        self.lists.as_ref().is_none_or(|lists| lists.contains(list))
    }

    /// Returns the addresses to explain, each with the text that was sent.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (&str, Address)> {
        self.explain.iter().map(|text| (text.as_str(), Address::parse(text).unwrap_or_else(|_| Address::new(text))))
    }
}

fn strings<'v>(name: &str, items: &str, value: &'v Value) -> Result<impl Iterator<Item = &'v str> + use<'v>, String> {
    let error = || format!("{name}: expected an array of {items}");
    let items: Vec<&str> =
        value.as_array().ok_or_else(error)?.iter().map(Value::as_str).collect::<Option<_>>().ok_or_else(error)?;
    Ok(items.into_iter())
}

fn lists(name: &str, value: &Value) -> Result<Vec<ListId>, String> {
    strings(name, "list ids", value)?
        .enumerate()
        .map(|(index, text)| {
            ListId::parse(text).ok_or_else(|| format!("entry {} of {name} is not a valid list id", index + 1))
        })
        .collect()
}

/// Parses `force`.
fn force(value: &Value) -> Result<BTreeMap<ListId, Force>, String> {
    let Some(map) = value.as_object() else {
        return Err(r#"force: expected an object of list ids and numbers such as {"members.lists.example.org":{"leaves":7}}. The reason of a blocked list contains it"#
            .to_owned());
    };
    let mut forces = BTreeMap::new();
    for ((text, numbers), number) in map.iter().zip(1..) {
        let list = ListId::parse(text).ok_or_else(|| format!("entry {number} of force is not a valid list id"))?;
        let force = Force::parse(numbers).map_err(|error| format!("entry {number} of force: {error}"))?;
        if forces.insert(list, force).is_some() {
            return Err(format!("entry {number} of force names the same list as an earlier entry"));
        }
    }
    Ok(forces)
}

shared::unprintable!(Event);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn error(event: &Value) -> String {
        Event::parse(event).err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn event_options_are_parsed() {
        let event = Event::parse(&json!({})).unwrap_or_default();
        assert!(!event.dry_run && event.lists.is_none() && event.force.is_empty() && event.explain.is_empty());
        let event = json!({"lists": ["a@lists.example.org"], "force": {"a@lists.example.org": {"leaves": 7}}});
        let event = Event::parse(&event).unwrap_or_default();
        let a = ListId::parse("a.lists.example.org").unwrap();
        assert!(event.includes(&a) && !event.dry_run);
        assert_eq!(event.force.get(&a), Some(&Force { leaves: 7, ..Force::default() }));
        assert!(!event.includes(&ListId::parse("b.lists.example.org").unwrap()));
    }

    #[test]
    fn explain_and_show_are_always_dry_runs() {
        for event in [
            json!({"explain": ["a@b.org"]}),
            json!({"explain": [], "dry_run": false}),
            json!({"show": true}),
            json!({"show": true, "dry_run": false, "force": {"a.b.org": {}}}),
        ] {
            assert!(Event::parse(&event).is_ok_and(|event| event.dry_run), "{event}");
        }
    }

    #[test]
    fn probe_is_an_event_by_itself() {
        assert!(Event::parse(&json!({"probe": true})).is_ok_and(|event| event.probe && event.dry_run));
        assert!(Event::parse(&json!({})).is_ok_and(|event| !event.probe));
    }

    #[test]
    fn scheduled_event_counts_as_empty() {
        let event = json!({"version": "0", "source": "aws.events", "detail-type": "Scheduled Event", "detail": {}});
        assert!(Event::parse(&event).is_ok_and(|event| !event.dry_run));
        assert!(error(&json!({"source": "aws.events"})).contains("unknown key; expected one of"));
        // A copied scheduled event with added options must not become a run over all lists.
        let both = json!({"source": "aws.events", "detail-type": "Scheduled Event", "dry_run": true});
        assert!(error(&both).contains("Remove source and detail-type"));
    }

    #[test]
    fn invalid_event_is_an_error_that_quotes_no_value() {
        for (event, expected) in [
            (json!(null), "expected a JSON object"),
            (json!([]), "expected a JSON object"),
            (json!("secret"), "expected a JSON object"),
            (json!({"dryrun": true}), "expected one of dry_run, lists, force, explain"),
            (json!({"secret@example.org": true}), "expected one of dry_run"),
            (json!({"dry_run": "true"}), "dry_run: expected true or false"),
            (json!({"dry_run": null}), "dry_run: expected true or false"),
            (json!({"lists": "secret"}), "lists: expected an array"),
            (json!({"lists": []}), "lists: expected at least one list id"),
            (json!({"lists": [1]}), "lists: expected an array of list ids"),
            (json!({"force": ["a.b.org"]}), r#"expected an object of list ids and numbers such as {"members."#),
            (json!({"force": {"secret": {}}}), "entry 1 of force is not a valid list id"),
            (json!({"force": {"a.b.org": 7}}), "entry 1 of force: expected an object with any of joins"),
            (json!({"force": {"a.b.org": {"secret": 7}}}), "entry 1 of force: unknown key"),
            (json!({"force": {"a.b.org": {"leaves": "secret"}}}), "entry 1 of force: leaves: expected a whole number"),
            (json!({"force": {"a.b.org": {"leaves": -1}}}), "leaves: expected a whole number"),
            (json!({"force": {"a.b.org": {"unknown": 1.5}}}), "unknown: expected a whole number"),
            (json!({"force": {"a.b.org": {}, "a@b.org": {}}}), "entry 2 of force names the same list"),
            (json!({"show": false}), "show: expected true"),
            (json!({"show": "secret"}), "show: expected true"),
            (json!({"explain": "secret@example.org"}), "explain: expected an array of addresses"),
            (json!({"explain": [1]}), "explain: expected an array of addresses"),
            (json!({"probe": "secret"}), "probe: expected true"),
            (json!({"probe": false}), "probe: expected true"),
            (json!({"probe": null}), "probe: expected true"),
            (json!({"probe": true, "dry_run": true}), "probe: expected no other key next to it"),
            (json!({"explain": ["secret@example.org"], "probe": true}), "probe: expected no other key next to it"),
            (json!({"probe": true, "secret@example.org": 1}), "expected one of dry_run"),
        ] {
            let message = error(&event);
            assert!(message.contains(expected) && !message.contains("secret"), "{event}: {message}");
        }
    }
}
