//! The event: the options of one run. Parsed strictly, because a misspelled `dry_run` would otherwise write.

use serde_json::{Map, Value};

use crate::address::Address;
use crate::mapping::{ListId, Mappings};

/// The reason why an event is invalid. It quotes no value.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid event: {0}")]
pub(crate) struct InvalidEvent(String);

/// The keys of an event.
const KEYS: [&str; 5] = ["dry_run", "lists", "force", "explain", "probe"];

/// The options of one run.
#[derive(Default)]
pub(crate) struct Event {
    /// True if the run plans and reports, but writes nothing.
    pub(crate) dry_run: bool,
    /// The only lists to process, or `None` for all lists.
    pub(crate) lists: Option<Vec<ListId>>,
    /// The lists to apply in this run even if their plans are blocked.
    pub(crate) force: Vec<ListId>,
    /// Addresses to explain, as they were sent.
    pub(crate) explain: Vec<String>,
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
                "force" => event.force = lists("force", value)?,
                "explain" => event.explain = strings("explain", "addresses", value)?.map(str::to_owned).collect(),
                "probe" if *value == Value::Bool(true) => event.probe = true,
                "probe" => return Err("probe: expected true".to_owned()),
                _ => return Err(format!("unknown key; expected one of {}", KEYS.join(", "))),
            }
        }
        if event.lists.as_ref().is_some_and(Vec::is_empty) {
            return Err("lists: expected at least one list id. Omit lists to process all lists".to_owned());
        }
        if event.probe && map.len() > 1 {
            return Err("probe: expected no other key next to it".to_owned());
        }
        // An explanation must not change what it explains, and a probe writes nothing.
        event.dry_run |= map.contains_key("explain") || event.probe;
        Ok(event)
    }

    /// Checks that every list in the event has a mapping.
    pub(crate) fn check(&self, mappings: &Mappings) -> Result<(), InvalidEvent> {
        // The list is not quoted, because an operator may have entered an address instead of a list id.
        let lists = self.lists.iter().flatten().zip(1..).map(|(list, number)| ("lists", number, list));
        let force = self.force.iter().zip(1..).map(|(list, number)| ("force", number, list));
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
        self.explain.iter().map(|text| (text.as_str(), Address::new(text)))
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
        let event = Event::parse(&json!({"lists": ["a@lists.example.org"], "force": ["a.lists.example.org"]}))
            .unwrap_or_default();
        let a = ListId::parse("a.lists.example.org").unwrap();
        assert!(event.includes(&a) && event.force.contains(&a));
        assert!(!event.includes(&ListId::parse("b.lists.example.org").unwrap()));
    }

    #[test]
    fn explain_is_always_a_dry_run() {
        for event in [json!({"explain": ["a@b.org"]}), json!({"explain": [], "dry_run": false})] {
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
            (json!({"force": ["secret"]}), "entry 1 of force is not a valid list id"),
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
