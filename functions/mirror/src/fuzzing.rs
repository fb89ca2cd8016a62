//! What the fuzz targets call of this crate, with what must hold whatever the
//! bytes are. Built by cargo-fuzz alone.

use http::StatusCode;
use shared::fuzzing::{CANARY, raw};
use shared::parameters::Parameters as _;

use crate::event::Event;
use crate::mailman;
use crate::parameters::Parameters;

/// Parameters of the mirror, mappings among them, as a configuration file has them.
pub fn parameters(json: &[u8], plant: bool) {
    let Some(raw) = raw(json, plant) else { return };
    match Parameters::read(&raw, false) {
        Err(error) => assert!(!error.to_string().contains(CANARY), "an error tells what a parameter holds"),
        Ok(parameters) => {
            let mappings = &parameters.mappings;
            for invalid in &mappings.invalid {
                assert!(!invalid.reason.contains(CANARY), "a report tells what a mapping holds");
                // No other mapping may write to the list of a broken one.
                assert!(
                    invalid.list.is_none()
                        || mappings.targets.iter().all(|target| Some(&target.list) != invalid.list.as_ref())
                );
            }
            assert!(mappings.targets.iter().all(|target| !target.groups.is_empty()));
        }
    }
}

/// What the mirror is invoked with.
pub fn event(json: &[u8]) {
    let Ok(value) = serde_json::from_slice(json) else { return };
    if let Ok(event) = Event::parse(&value) {
        assert!(event.dry_run || event.explain.is_empty(), "what explains may write");
        let requests_dry_run = value.get("dry_run").is_some_and(|dry_run| dry_run == true);
        assert!(event.dry_run || !requests_dry_run, "what was to be dry may write");
        event.addresses().for_each(|(_, address)| {
            let _ = address.is_valid();
        });
    }
}

/// What Mailman answers, with any status.
pub fn mailman_answer(status: u16, body: &[u8]) {
    if let Ok(status) = StatusCode::from_u16(status) {
        mailman::parse_response(status, body);
    }
}
