//! Force: how far an event lifts the guards of one list, for one run.

use serde::Serialize;
use serde_json::{Value, json};

use crate::mapping::ListId;

/// The maximum numbers up to which a list's guards are lifted. The ordinary limits apply to what exceeds a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Force {
    /// The maximum number of addresses that may join.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) joins: usize,
    /// The maximum number of addresses that may leave.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) leaves: usize,
    /// The maximum number of addresses that may be moved.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) moves: usize,
    /// The maximum number of addresses that may join again although they left by themselves.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) left: usize,
    /// The maximum number of unknown records and rows without an id that no longer withhold removals.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) unknown: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl Force {
    /// Parses the numbers of one list. The error quotes no value.
    pub(crate) fn parse(numbers: &Value) -> Result<Self, String> {
        const EXPECTED: &str = "expected an object with any of joins, leaves, moves, left and unknown";
        let mut force = Self::default();
        for (key, value) in numbers.as_object().ok_or(EXPECTED)? {
            let number = match key.as_str() {
                "joins" => &mut force.joins,
                "leaves" => &mut force.leaves,
                "moves" => &mut force.moves,
                "left" => &mut force.left,
                "unknown" => &mut force.unknown,
                _ => return Err(format!("unknown key; {EXPECTED}")),
            };
            *number = value
                .as_u64()
                .and_then(|number| usize::try_from(number).ok())
                .ok_or_else(|| format!("{key}: expected a whole number"))?;
        }
        Ok(force)
    }

    /// Returns the event that forces a list with these numbers.
    pub(crate) fn event(self, list: &ListId) -> Value {
        json!({ "force": { list.as_str(): self } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_of_a_force_is_parsed_as_that_force() {
        let list = ListId::parse("a.lists.example.org").unwrap();
        for force in [
            Force::default(),
            Force { leaves: 7, unknown: 1, ..Force::default() },
            Force { joins: 1, leaves: 2, moves: 3, left: 4, unknown: 5 },
        ] {
            let event = force.event(&list);
            assert_eq!(Force::parse(&event["force"][list.as_str()]), Ok(force), "{event}");
        }
        let event = Force { leaves: 7, ..Force::default() }.event(&list);
        assert_eq!(event.to_string(), r#"{"force":{"a.lists.example.org":{"leaves":7}}}"#);
    }
}
