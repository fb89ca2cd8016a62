//! Faults that announce themselves: failed calls to Novi and failed requests to Mailman.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::environment::Environment;
use crate::http_proxy::HttpFault;
use crate::novi::NoviFault;

/// The faults that may affect a run.
#[derive(Default)]
pub(super) struct ActiveFaults {
    /// True if something in Novi may be unreadable.
    pub(super) novi: bool,
    /// True if any request to Mailman may fail.
    pub(super) mailman: bool,
    /// The addresses that Mailman always fails to subscribe.
    pub(super) poisoned: BTreeSet<String>,
}

impl ActiveFaults {
    /// True if a request to Mailman may fail.
    pub(super) fn any_of_mailman(&self) -> bool {
        self.mailman || !self.poisoned.is_empty()
    }

    /// Injects a random fault, and describes it. `person`, `group` and `address` are those that it may concern.
    pub(super) fn inject(
        &mut self,
        environment: &Environment,
        rng: &mut Rng,
        person: Uuid,
        group: Uuid,
        address: Option<&str>,
    ) -> &'static str {
        // The mirror waits for a second after each 429, so more of them would take too long.
        let times_of = |fault: &NoviFault, rng: &mut Rng| match fault {
            NoviFault::RateLimited(_) => 2,
            _ if rng.bool() => usize::MAX,
            _ => rng.usize(1..5),
        };
        let mut state = environment.novi.state();
        let kind = rng.u8(..20);
        (self.novi, self.mailman) = (self.novi || kind < 14, self.mailman || kind >= 16);
        match kind {
            0..=7 => {
                let one = format!("/customers/{}", person.hyphenated());
                // Rarely, the fault affects everyone: that is an outage, which differs from faults of single members.
                let path = if rng.u8(..12) == 0 { "/customers/".to_owned() } else { one };
                let (name, fault) = random_novi_fault(rng);
                state.fail(&path, times_of(&fault, rng), fault);
                name
            }
            8 | 9 => {
                let (name, fault) = random_novi_fault(rng);
                state.fail(&format!("/groups/{}", group.hyphenated()), times_of(&fault, rng), fault);
                name
            }
            10 => {
                let offset = state.page_limit * rng.usize(1..4);
                let page = format!("/groups/{}/members?pageSize=1000&offset={offset}", group.hyphenated());
                state.fail(&page, usize::MAX, NoviFault::Respond(500, "text/html", String::new()));
                "Novi fails after the first pages of a group"
            }
            11 => {
                let (name, fault) = random_novi_fault(rng);
                state.fail("/api/members", times_of(&fault, rng), fault);
                name
            }
            12 => {
                state.ignores_offset = true;
                "Novi ignores the offset"
            }
            13 => {
                state.has_drifting_total = true;
                "Novi's total count changes from page to page"
            }
            14 | 15 => {
                let Some(address) = address else { return "none" };
                let fault = [
                    HttpFault::Respond(500, "<html>Internal Server Error</html>"),
                    HttpFault::Respond(403, "<html>Forbidden</html>"),
                    HttpFault::Respond(503, "<html></html>"),
                    HttpFault::DropRequest,
                ][rng.usize(..4)]
                .clone();
                environment.proxy.fail(&format!("\"subscriber\":\"{address}\""), usize::MAX, fault);
                self.poisoned.insert(address.to_owned());
                "Mailman always fails for one address"
            }
            _ => {
                let part = ["POST /3.1/members", "DELETE", "GET /3.1/lists", "/3.1/"][rng.usize(..4)];
                let (name, fault) = random_mailman_fault(rng);
                environment.proxy.fail(part, rng.usize(1..4), fault);
                name
            }
        }
    }

    /// Removes all faults.
    pub(super) fn clear(&mut self, environment: &Environment) {
        let mut state = environment.novi.state();
        state.clear_faults();
        (state.ignores_offset, state.has_drifting_total) = (false, false);
        drop(state);
        environment.proxy.clear_faults();
        *self = Self::default();
    }
}

/// Returns a random fault of one call to Novi. None of them means that a person is not a member.
fn random_novi_fault(rng: &mut Rng) -> (&'static str, NoviFault) {
    let json = |body: &str| NoviFault::Respond(200, "application/json", body.to_owned());
    match rng.u8(..17) {
        0 => ("Novi responds 500", NoviFault::Respond(500, "text/html", "<html>".to_owned())),
        1 => ("Novi responds 503", NoviFault::Respond(503, "text/html", String::new())),
        2 => ("Novi closes the connection", NoviFault::Disconnect),
        3 => ("Novi doesn't respond", NoviFault::NoResponse),
        4 => ("Novi's response is truncated", NoviFault::TruncatedBody),
        5 => ("Novi's response is endless", NoviFault::EndlessBody),
        6 => ("Novi responds with HTML", NoviFault::Respond(200, "text/html", "<html>".to_owned())),
        7 => ("Novi responds with unexpected JSON", json(r#"["x"]"#)),
        8 => ("Novi responds 200 with an error", json(r#"{"Message":"An error has occurred."}"#)),
        9 => ("Novi responds 403", NoviFault::Forbidden),
        10 => ("Novi's CDN blocks the call", NoviFault::BlockedByCdn),
        11 => ("Novi redirects", NoviFault::Redirect("https://www.example.org/login".to_owned())),
        12 => ("Novi responds 429", NoviFault::RateLimited(Some("1".to_owned()))),
        13 => ("Novi responds with an empty body", json("")),
        14 => ("Novi responds 404 in HTML", NoviFault::Respond(404, "text/html", "<html>".to_owned())),
        15 => ("Novi returns another person's record", NoviFault::OtherRecord),
        _ => ("Novi responds 400", NoviFault::Respond(400, "application/json", r#"{"Message":"Bad."}"#.to_owned())),
    }
}

/// Returns a random fault of one request to Mailman.
fn random_mailman_fault(rng: &mut Rng) -> (&'static str, HttpFault) {
    const LOCKED: &str =
        r#"{"title": "400 Bad Request", "description": "(sqlite3.OperationalError) database is locked"}"#;
    match rng.u8(..16) {
        8 => ("Mailman's proxy limits the rate", HttpFault::Later(429, 1)),
        9 => ("Mailman's proxy is in maintenance", HttpFault::Later(503, 1)),
        10 => ("Mailman's proxy refuses large bodies with 413", HttpFault::RefuseBody(80, 413)),
        11 => ("Mailman's firewall refuses large bodies with 403", HttpFault::RefuseBody(80, 403)),
        12 => ("Mailman's proxy fails on large bodies", HttpFault::RefuseBody(80, 500)),
        13 => ("Mailman's proxy drops a body", HttpFault::DropBody),
        14 => ("Mailman's proxy replaces an error", HttpFault::ErrorPage),
        15 => ("Mailman's proxy responds 200 with a page", HttpFault::Respond(200, "<html>Welcome</html>")),
        5 | 6 => {
            let delay = Duration::from_millis(rng.u64(..3_000));
            ("Mailman receives a request late, after a disconnect", HttpFault::DisconnectThenDeliver(delay))
        }
        7 => {
            let fault = HttpFault::TimeOutThenDeliver(Arc::new(Semaphore::new(16)));
            ("Mailman's gateway times out, the request is processed", fault)
        }
        0 => ("a request to Mailman is lost", HttpFault::DropRequest),
        1 => ("a response from Mailman is lost", HttpFault::DropResponse),
        2 => ("Mailman's database is locked, with 400", HttpFault::Respond(400, LOCKED)),
        3 => ("Mailman's database is locked, with 500", HttpFault::Respond(500, "<html>database is locked</html>")),
        4 => ("Mailman's gateway responds 502", HttpFault::Respond(502, "<html></html>")),
        _ => ("Mailman's gateway responds 504", HttpFault::Respond(504, "<html></html>")),
    }
}
