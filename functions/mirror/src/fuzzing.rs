//! The entry points of the fuzz targets, with properties that must hold for any input. Only built by cargo-fuzz.

use http::StatusCode;
use shared::fuzzing::{CANARY, raw};
use shared::parameters::Parameters as _;

use crate::event::Event;
use crate::mailman;
use crate::parameters::Parameters;
use crate::probe;

/// Parses parameters of the mirror, including mappings, as in a configuration file.
pub fn parameters(json: &[u8], plant: bool) {
    let Some(raw) = raw(json, plant) else { return };
    match Parameters::read(&raw, false) {
        Err(error) => assert!(!error.to_string().contains(CANARY), "an error quotes a parameter's value"),
        Ok(parameters) => {
            let mappings = &parameters.mappings;
            for invalid in &mappings.invalid {
                assert!(!invalid.reason.contains(CANARY), "a report quotes a mapping's value");
                // No other mapping may write to the list of an invalid one.
                assert!(
                    invalid.list.is_none()
                        || mappings.targets.iter().all(|target| Some(&target.list) != invalid.list.as_ref())
                );
            }
            assert!(mappings.targets.iter().all(|target| !target.groups.is_empty()));
        }
    }
}

/// Parses an event.
pub fn event(json: &[u8]) {
    let Ok(value) = serde_json::from_slice(json) else { return };
    if let Ok(event) = Event::parse(&value) {
        assert!(event.dry_run || (event.explain.is_empty() && !event.show), "an explanation or a preview may write");
        let requests_dry_run = value.get("dry_run").is_some_and(|dry_run| dry_run == true);
        assert!(event.dry_run || !requests_dry_run, "a dry run may write");
        event.addresses().for_each(drop);
    }
}

/// Describes a body of Novi, as the probe does.
pub fn novi_shape(body: &[u8]) {
    // A description contains no value, whatever the body is.
    assert!(!probe::describe(body).contains(CANARY), "the probe quotes a body");
}

/// Parses a response of Mailman, with any status.
pub fn mailman_answer(status: u16, body: &[u8]) {
    if let Ok(status) = StatusCode::from_u16(status) {
        mailman::parse_response(status, body);
    }
}
