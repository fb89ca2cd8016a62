//! The event: what this run is asked to do. Strict, because a misspelt
//! `dry_run` would write.

use serde_json::{Map, Value};

use crate::address::Address;
use crate::mapping::{ListId, Mappings};

/// An event that is not one of ours. It quotes no value.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the event cannot be used: {0}")]
pub(crate) struct InvalidEvent(String);

/// The keys of an event.
const KEYS: [&str; 4] = ["dry_run", "lists", "force", "explain"];

/// What a run is asked to do.
#[derive(Default)]
pub(crate) struct Event {
    /// Plan and report, write nothing.
    pub(crate) dry_run: bool,
    /// Only these lists; all where there is none.
    pub(crate) lists: Option<Vec<ListId>>,
    /// Lists whose block is lifted for this run.
    pub(crate) force: Vec<ListId>,
    /// Addresses to explain, as they were sent.
    pub(crate) explain: Vec<String>,
}

impl Event {
    /// Reads an event. One of EventBridge's own counts as `{}`.
    pub(crate) fn parse(event: &Value) -> Result<Self, InvalidEvent> {
        let map = event.as_object().ok_or_else(|| InvalidEvent("it must be a JSON object".to_owned()))?;
        if map.get("source").is_some_and(Value::is_string) && map.get("detail-type").is_some_and(Value::is_string) {
            if KEYS.iter().any(|key| map.contains_key(*key)) {
                return Err(InvalidEvent(
                    "it is one of EventBridge's own and says what to do as well; leave out source and detail-type"
                        .to_owned(),
                ));
            }
            return Ok(Self::default());
        }
        Self::parse_ours(map).map_err(InvalidEvent)
    }

    fn parse_ours(map: &Map<String, Value>) -> Result<Self, String> {
        let mut event = Self::default();
        for (key, value) in map {
            match key.as_str() {
                "dry_run" => event.dry_run = value.as_bool().ok_or("dry_run must be true or false")?,
                "lists" => event.lists = Some(lists("lists", value)?),
                "force" => event.force = lists("force", value)?,
                "explain" => event.explain = texts("explain", "addresses", value)?.map(str::to_owned).collect(),
                _ => return Err(format!("it has a key that is none of {}", KEYS.join(", "))),
            }
        }
        if event.lists.as_ref().is_some_and(Vec::is_empty) {
            return Err("lists is empty, so there is nothing to do; leave it out for all lists".to_owned());
        }
        // An explanation must not change what it explains.
        event.dry_run |= map.contains_key("explain");
        Ok(event)
    }

    /// Whether every list that is named has a mapping.
    pub(crate) fn check(&self, mappings: &Mappings) -> Result<(), InvalidEvent> {
        // The list is not quoted: somebody may have put an address where a list belongs.
        let lists = self.lists.iter().flatten().zip(1..).map(|(list, number)| ("lists", number, list));
        let force = self.force.iter().zip(1..).map(|(list, number)| ("force", number, list));
        match lists.chain(force).find(|(_, _, list)| !mappings.name(list)) {
            None => Ok(()),
            Some((key, number, _)) => {
                Err(InvalidEvent(format!("no mapping names the list in entry {number} of {key}")))
            }
        }
    }

    /// Whether this run concerns a list.
    pub(crate) fn concerns(&self, list: &ListId) -> bool {
        self.lists.as_ref().is_none_or(|lists| lists.contains(list))
    }

    /// The addresses to explain, beside what was sent.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (&str, Address)> {
        self.explain.iter().map(|text| (text.as_str(), Address::new(text)))
    }
}

fn texts<'v>(name: &str, what: &str, value: &'v Value) -> Result<impl Iterator<Item = &'v str> + use<'v>, String> {
    let wrong = || format!("{name} must be an array of {what}");
    let items: Vec<&str> =
        value.as_array().ok_or_else(wrong)?.iter().map(Value::as_str).collect::<Option<_>>().ok_or_else(wrong)?;
    Ok(items.into_iter())
}

fn lists(name: &str, value: &Value) -> Result<Vec<ListId>, String> {
    texts(name, "list ids", value)?
        .enumerate()
        .map(|(index, text)| ListId::parse(text).ok_or_else(|| format!("entry {} of {name} is no list id", index + 1)))
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
    fn an_event_says_what_to_do() {
        let event = Event::parse(&json!({})).unwrap_or_default();
        assert!(!event.dry_run && event.lists.is_none() && event.force.is_empty() && event.explain.is_empty());
        let event = Event::parse(&json!({"lists": ["a@lists.example.org"], "force": ["a.lists.example.org"]}))
            .unwrap_or_default();
        let a = ListId::parse("a.lists.example.org").unwrap();
        assert!(event.concerns(&a) && event.force.contains(&a));
        assert!(!event.concerns(&ListId::parse("b.lists.example.org").unwrap()));
    }

    #[test]
    fn an_explanation_writes_nothing_whatever_else_is_said() {
        for event in [json!({"explain": ["a@b.org"]}), json!({"explain": [], "dry_run": false})] {
            assert!(Event::parse(&event).is_ok_and(|event| event.dry_run), "{event}");
        }
    }

    #[test]
    fn a_schedule_s_own_event_counts_as_none() {
        let event = json!({"version": "0", "source": "aws.events", "detail-type": "Scheduled Event", "detail": {}});
        assert!(Event::parse(&event).is_ok_and(|event| !event.dry_run));
        assert!(error(&json!({"source": "aws.events"})).contains("a key that is none of"));
        // Copied, and given something to do: it must not become a run over everything.
        let both = json!({"source": "aws.events", "detail-type": "Scheduled Event", "dry_run": true});
        assert!(error(&both).contains("leave out source and detail-type"));
    }

    #[test]
    fn everything_else_is_an_error_that_quotes_nothing() {
        for (event, said) in [
            (json!(null), "must be a JSON object"),
            (json!([]), "must be a JSON object"),
            (json!("secret"), "must be a JSON object"),
            (json!({"dryrun": true}), "none of dry_run, lists, force, explain"),
            (json!({"secret@example.org": true}), "none of dry_run"),
            (json!({"dry_run": "true"}), "dry_run must be true or false"),
            (json!({"dry_run": null}), "dry_run must be true or false"),
            (json!({"lists": "secret"}), "lists must be an array"),
            (json!({"lists": []}), "lists is empty"),
            (json!({"lists": [1]}), "lists must be an array of list ids"),
            (json!({"force": ["secret"]}), "entry 1 of force is no list id"),
            (json!({"explain": "secret@example.org"}), "explain must be an array of addresses"),
            (json!({"explain": [1]}), "explain must be an array of addresses"),
        ] {
            let text = error(&event);
            assert!(text.contains(said) && !text.contains("secret"), "{event}: {text}");
        }
    }
}
