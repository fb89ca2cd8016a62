//! Judges what the probe found out about Mailman. Pure: from facts to findings.

use shared::network_error::TLS_FAILED;

use crate::mailman::{MailmanError, OLDEST_VERSION, Version};
use crate::probe::mailman::{ListFacts, MailmanFacts};
use crate::probe::report::{Finding, Transport};

/// The number of pending requests from which on they noticeably slow subscriptions down.
const MANY_PENDING: u64 = 500;

/// Judges everything.
pub(crate) fn judge(facts: &MailmanFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(transport(facts));
    findings.push(match facts.error {
        Some(error) => Finding::error("Mailman connection", format!("{error}."), remedy(error)),
        None => version(facts.version),
    });
    findings.extend(facts.lists.iter().map(list));
    findings
}

/// Returns what the operator can do. Unlike a run's report, a probe doesn't count on the next run.
fn remedy(error: MailmanError) -> &'static str {
    match error {
        MailmanError::NoResponse { cause, .. } if cause.starts_with(TLS_FAILED) => {
            "Check the host in mailman_base_url. If its certificate is of a private authority, trust that with \
             EXTRA_CA_CERTS."
        }
        MailmanError::NoResponse { .. } => {
            "Check mailman_base_url, that Mailman's REST runner is running, and that the function's network leads \
             to it."
        }
        MailmanError::Transient { .. } => "Check Mailman's log and its database.",
        MailmanError::OutOfTime => "Run the probe again.",
        other => other.remedy(),
    }
}

fn transport(facts: &MailmanFacts) -> Option<Finding> {
    let transport = facts.transport?;
    let found = format!("Mailman is called {}.", transport.as_str());
    Some(match transport {
        Transport::PlainHttp => Finding::warning(
            "Mailman TLS",
            found,
            "Serve its REST API over HTTPS. On the way, everyone can read its password and the members' addresses.",
        ),
        Transport::Tls | Transport::Loopback => Finding::ok("Mailman TLS", found),
    })
}

fn version(version: Option<Version>) -> Finding {
    const SUBJECT: &str = "Mailman version";
    let Some(version) = version else {
        return Finding::warning(SUBJECT, "Mailman doesn't tell its version.", "Check mailman_base_url.");
    };
    let found = format!("It is {version}.");
    if version < OLDEST_VERSION {
        return Finding::error(SUBJECT, found, format!("It is too old. Upgrade Mailman to {OLDEST_VERSION} or later."));
    }
    Finding::ok(SUBJECT, found)
}

fn list(facts: &ListFacts) -> Finding {
    let subject = format!("list {}", facts.list_id);
    if let Some(error) = facts.error {
        let found = format!("{error}.");
        return match error {
            MailmanError::OutOfTime => Finding::warning(subject, "It was not read in time.", remedy(error)),
            _ => Finding::error(subject, found, remedy(error)),
        };
    }
    let pending = facts.pending_requests;
    let mut found = format!("{} members.", facts.members.unwrap_or_default());
    found += &match pending {
        Some(pending) => format!(" {pending} pending requests."),
        None => " This Mailman can't count pending requests.".to_owned(),
    };
    let mut fixes = Vec::new();
    if facts.settings.admin_notify_mchanges == Some(true) {
        found += " Its owners get an email about every new member, with the name.";
        fixes.push("Turn admin_notify_mchanges off, before the first run fills the list.");
    }
    if pending.is_some_and(|pending| pending >= MANY_PENDING) {
        fixes.push("Discard the pending requests: so many slow every subscription down.");
    }
    if fixes.is_empty() { Finding::ok(subject, found) } else { Finding::warning(subject, found, fixes.join(" ")) }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::mailman::{ListSettings, WriteOutcome};
    use crate::probe::report::Severity;

    fn facts() -> MailmanFacts {
        MailmanFacts {
            transport: Some(Transport::Tls),
            version: Some(Version(3, 3, 10)),
            lists: vec![ListFacts {
                list_id: "members.lists.example.org".to_owned(),
                members: Some(12),
                settings: ListSettings { admin_notify_mchanges: Some(false), ..ListSettings::default() },
                pending_requests: Some(3),
                error: None,
            }],
            ..MailmanFacts::default()
        }
    }

    #[test]
    fn each_deviation_is_the_only_finding_and_has_its_fix() {
        type Change = fn(&mut MailmanFacts);
        const NO_RESPONSE: MailmanError =
            MailmanError::NoResponse { cause: "connection refused", outcome: WriteOutcome::NotApplied };
        let cases: [(&str, &str, Change); 13] = [
            ("", "", |_| {}),
            ("Warning Mailman TLS", "HTTPS", |facts| facts.transport = Some(Transport::PlainHttp)),
            ("Warning Mailman version", "mailman_base_url", |facts| facts.version = None),
            ("Error Mailman version: It is 3.2.1", "too old", |facts| facts.version = Some(Version(3, 2, 1))),
            ("", "", |facts| facts.version = Some(Version(3, 3, 3))),
            ("Error Mailman connection: Mailman did not respond (connection refused)", "REST runner", |facts| {
                facts.error = Some(NO_RESPONSE);
            }),
            ("Error Mailman connection: Mailman rejected", "Correct these", |facts| {
                facts.error = Some(MailmanError::CredentialsRejected);
            }),
            (
                "Error Mailman connection: Another server than Mailman responded with 200 OK",
                "mailman_base_url",
                |facts| {
                    facts.error = Some(MailmanError::NotMailman(StatusCode::OK));
                },
            ),
            ("Error list members.lists.example.org: Mailman has no list", "Create the list", |facts| {
                facts.lists[0].error = Some(MailmanError::NoSuchList);
            }),
            ("Warning list members.lists.example.org: It was not read in time", "again", |facts| {
                facts.lists[0].error = Some(MailmanError::OutOfTime);
            }),
            (
                "Warning list members.lists.example.org: 12 members. 3 pending requests. Its owners",
                "admin_notify",
                |facts| {
                    facts.lists[0].settings.admin_notify_mchanges = Some(true);
                },
            ),
            ("Warning list members.lists.example.org: 12 members. 500 pending requests", "Discard", |facts| {
                facts.lists[0].pending_requests = Some(500);
            }),
            ("", "", |facts| facts.lists[0].pending_requests = None),
        ];
        for (expected, fix, change) in cases {
            let mut facts = facts();
            change(&mut facts);
            let findings = judge(&facts);
            let deviations: Vec<String> = findings
                .into_iter()
                .filter(|finding| finding.severity != Severity::Ok)
                .map(|finding| {
                    let Finding { severity, subject, found, fix } = finding;
                    format!("{severity:?} {subject}: {found} {}", fix.unwrap_or_default())
                })
                .collect();
            let is_expected = match &*deviations {
                [] => expected.is_empty(),
                [one] => !expected.is_empty() && one.starts_with(expected) && one.contains(fix),
                _ => false,
            };
            assert!(is_expected, "{expected}: {deviations:#?}");
        }
    }
}
