//! The probe: reads how the live Novi and Mailman are, and says what differs from what this product expects.
//!
//! It writes nothing. Its result contains no value of a record, so that it can be shown to anyone: only statuses, formats,
//! names of documented fields, and counts. Groups are named by the positions of their mappings.
//!
//! Facts are read first ([`novi`], [`mailman`]), and then judged by pure functions ([`novi_findings`],
//! [`mailman_findings`]).

mod mailman;
mod mailman_findings;
mod novi;
mod novi_findings;
mod report;
mod shape;

use std::sync::Mutex;
use std::time::Duration;

use serde::Serialize;
use shared::member::MemberRules;
use shared::metrics::{self, Metric};
use tokio::time::Instant;

use self::mailman::MailmanFacts;
use self::novi::{NoviFacts, NoviProbe};
use self::novi_findings::NoviSettings;
use self::report::{Finding, ProbeStatus, Severity, Transport};
use crate::mailman::Mailman;
use crate::mapping::Mappings;
use crate::read::Caller;

/// The maximum duration of a probe. It must not be mistaken for a run that hangs.
const MAX_DURATION: Duration = Duration::from_secs(120);

/// The result of a probe.
#[derive(Serialize)]
pub(crate) struct ProbeReport {
    status: ProbeStatus,
    probe: Probed,
    novi_calls: u64,
    mailman_calls: u64,
    /// The duration in seconds.
    seconds: f64,
}

#[derive(Serialize)]
struct Probed {
    novi: NoviFacts,
    mailman: MailmanFacts,
    findings: Vec<Finding>,
}

/// Returns the time by which a probe ends that starts now and must end before `cutoff`.
pub(crate) fn cutoff(started: Instant, cutoff: Instant) -> Instant {
    cutoff.min(started + MAX_DURATION)
}

/// Probes Novi and Mailman.
pub(crate) async fn probe(
    started: Instant,
    client: &shared::novi::Client,
    caller: Caller<'_>,
    bulk: bool,
    rules: &MemberRules,
    mailman: &Mailman<'_>,
    parameters: &crate::parameters::Parameters,
) -> ProbeReport {
    let mappings = &parameters.mappings;
    let probe = NoviProbe { client, caller, bulk, rules, facts: Mutex::default() };
    let ((mut novi, novi_calls), mailman_facts) = tokio::join!(probe.ask(mappings), mailman::ask(mailman, mappings));
    novi.transport = Some(Transport::of(parameters.novi.root()));
    let settings = NoviSettings {
        timeout_ms: u64::try_from(client.timeout().as_millis()).unwrap_or(u64::MAX),
        bulk,
        needs_status: rules.statuses.is_some(),
    };
    let mut findings = novi_findings::judge(&novi, settings);
    findings.extend(mailman_findings::judge(&mailman_facts));
    findings.extend(mapping_findings(mappings));
    let report = ProbeReport {
        status: ProbeStatus::of(&findings),
        probe: Probed { novi, mailman: mailman_facts, findings },
        novi_calls,
        mailman_calls: mailman.calls(),
        seconds: (started.elapsed().as_secs_f64() * 1e3).round() / 1e3,
    };
    metrics::emit(&[
        Metric::Count("NoviCalls", report.novi_calls),
        Metric::Count("NoviRateLimited", report.probe.novi.rate_limited),
        Metric::Count("MailmanCalls", report.mailman_calls),
    ]);
    report
}

/// Describes a body in every way that the probe does.
#[cfg(fuzzing)]
pub(crate) fn describe(body: &[u8]) -> String {
    let mut fields = shape::Fields::default();
    if let shape::RecordBody::Record { object, .. } = shape::record(body) {
        fields.add(&object);
        let _ = object.id();
    }
    let page = shape::page(body);
    page.iter().flat_map(|page| &page.rows).for_each(|row| fields.add(row));
    let page = page.map(|page| (page.envelope, page.keys, page.total));
    serde_json::to_string(&(shape::kind(body), page, fields)).unwrap_or_default()
}

fn mapping_findings(mappings: &Mappings) -> Vec<Finding> {
    const SUBJECT: &str = "mappings";
    let fix = "Correct novi_mailman_sync: make parameters ARGS='--only novi_mailman_sync'.";
    let mut findings: Vec<Finding> =
        mappings.invalid.iter().map(|invalid| Finding::error(SUBJECT, &*invalid.reason, fix)).collect();
    if mappings.sources.is_empty() {
        findings.push(Finding::error(SUBJECT, "There is no valid mapping, so no group was read.", fix));
    }
    findings
}

impl ProbeReport {
    /// Logs one line, with counts only.
    pub(crate) fn log(&self) {
        let count = |severity| self.probe.findings.iter().filter(|finding| finding.severity == severity).count();
        tracing::info!(
            errors = count(Severity::Error),
            warnings = count(Severity::Warning),
            novi_calls = self.novi_calls,
            mailman_calls = self.mailman_calls,
            seconds = self.seconds,
            "probe completed"
        );
    }
}
