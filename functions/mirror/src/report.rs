//! The report: what a run found and did, list by list. It names lists and
//! counts people; only an explanation that was asked for names an address, and
//! that is never logged.

use serde::Serialize;

use crate::apply::{Applied, Rejected};
use crate::mailman::MailmanError;
use crate::mapping::{InvalidMapping, ListId};
use crate::plan::{Plan, Skipped, Verdict};

/// How a list, or a run, ended. From best to worst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    /// The list holds what it should.
    #[default]
    Ok,
    /// Something was withheld, refused or unreadable.
    Partial,
    /// The plan looks wrong; the list is untouched.
    Blocked,
    /// The list is untouched, or unfinished because of a failure.
    Failed,
    /// Time ran out; the next run goes on.
    Unfinished,
}

impl Status {
    /// Whether alarms should hear of it.
    pub(crate) fn is_error(self) -> bool {
        self >= Self::Blocked
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Partial => "partial",
            Self::Blocked => "blocked",
            Self::Failed => "failed",
            Self::Unfinished => "unfinished",
        }
    }
}

/// One list.
#[derive(Default, Serialize)]
pub(crate) struct ListReport {
    /// `null` where a broken mapping does not even name its list.
    pub(crate) list_id: Option<String>,
    pub(crate) status: Status,
    wanted: usize,
    roster: usize,
    subscribed: usize,
    unsubscribed: usize,
    kept: usize,
    withheld: usize,
    skipped: Skipped,
    rejected: Rejected,
    reason: Option<String>,
}

impl ListReport {
    /// A list of which nothing could be planned.
    pub(crate) fn without_plan(list: Option<&ListId>, status: Status, reason: String) -> Self {
        Self { list_id: list.map(ToString::to_string), status, reason: Some(reason), ..Self::default() }
    }

    pub(crate) fn invalid(invalid: &InvalidMapping) -> Self {
        let reason = format!("{}; its list is left untouched, by other mappings too", invalid.reason);
        Self::without_plan(invalid.list.as_ref(), Status::Failed, reason)
    }

    /// A list that another run is at work on.
    pub(crate) fn locked(list: &ListId) -> Self {
        let reason = format!(
            "another run is at work on it and holds idaa:mirror:{list}, until it ends or its invocation would have; the next schedule goes on"
        );
        Self::without_plan(Some(list), Status::Failed, reason)
    }

    /// A list that could not be read or written.
    pub(crate) fn from_error(list: &ListId, error: MailmanError) -> Self {
        Self::without_plan(Some(list), status_of(error), error.to_string())
    }

    /// A plan that is not applied, because this is a dry run or it is blocked.
    pub(crate) fn planned(plan: &Plan) -> Self {
        Self::of(plan, plan.subscribe.len(), plan.unsubscribe.len())
    }

    /// A plan that was applied, as far as it went.
    pub(crate) fn applied(plan: &Plan, applied: &Applied) -> Self {
        let mut report = Self::of(plan, applied.subscribed, applied.unsubscribed);
        report.rejected = applied.rejected;
        let rejected = applied.rejected.total();
        if rejected > 0 {
            report.add_reason(Status::Partial, &format!("Mailman refuses {}", addresses(rejected)));
        }
        if applied.timed_out > 0 {
            let reason = format!(
                "Mailman gave no answer in time for {}, and may still be at work on it for six minutes: the next run sees",
                addresses(applied.timed_out)
            );
            report.add_reason(Status::Partial, &reason);
        }
        if let Some(error) = applied.stopped {
            report.add_reason(status_of(error), &error.to_string());
        }
        report
    }

    /// One line, with fields that a query of the log can add up.
    pub(crate) fn log(&self) {
        let Self { wanted, roster, subscribed, unsubscribed, kept, withheld, .. } = *self;
        let (list, status, reason) = (self.list_id.as_deref(), self.status.as_str(), self.reason.as_deref());
        tracing::info!(list, status, wanted, roster, subscribed, unsubscribed, kept, withheld, reason, "list");
    }

    fn of(plan: &Plan, subscribed: usize, unsubscribed: usize) -> Self {
        let mut report = Self {
            list_id: Some(plan.list.to_string()),
            wanted: plan.wanted,
            roster: plan.roster,
            subscribed,
            unsubscribed,
            kept: plan.kept,
            withheld: plan.withheld,
            skipped: plan.skipped,
            ..Self::default()
        };
        for warning in &plan.warnings {
            report.add_reason(Status::Partial, warning);
        }
        match plan.verdict {
            Verdict::Sound => {}
            Verdict::Forced(block) => report.add_reason(Status::Ok, &format!("forced although {block}")),
            Verdict::Blocked(block) => {
                (report.subscribed, report.unsubscribed) = (0, 0);
                report.add_reason(Status::Blocked, &block.to_string());
                if let Some(event) = block.force_event(&plan.list) {
                    report
                        .add_reason(Status::Blocked, &format!("if that is right, invoke once with the event {event}"));
                }
            }
        }
        report
    }

    fn add_reason(&mut self, status: Status, reason: &str) {
        self.status = self.status.max(status);
        let before = self.reason.take().map(|before| format!("{before}; ")).unwrap_or_default();
        self.reason = Some(before + reason);
    }
}

fn addresses(count: usize) -> String {
    if count == 1 { "1 address".to_owned() } else { format!("{count} addresses") }
}

fn status_of(error: MailmanError) -> Status {
    if error == MailmanError::OutOfTime { Status::Unfinished } else { Status::Failed }
}

/// Why an address is or is not wanted on a list.
#[derive(Serialize)]
pub(crate) struct Explanation {
    /// The address as it was asked for.
    pub(crate) address: String,
    pub(crate) lists: Vec<ListExplanation>,
}

/// The part of one list.
#[derive(Serialize)]
pub(crate) struct ListExplanation {
    pub(crate) list_id: String,
    pub(crate) wanted: bool,
    /// `null` where the roster could not be read.
    pub(crate) subscribed: Option<bool>,
    /// Why it is not wanted, or why that and what is subscribed go on to differ; else `null`.
    pub(crate) why: Option<String>,
}

/// A whole run.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) status: Status,
    pub(crate) dry_run: bool,
    pub(crate) lists: Vec<ListReport>,
    pub(crate) novi_calls: u64,
    pub(crate) mailman_calls: u64,
    /// How long the run took.
    pub(crate) seconds: f64,
    /// Names addresses: in the result, never in the log.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) explain: Vec<Explanation>,
}

impl Report {
    /// The report as JSON, without what may not be logged.
    pub(crate) fn to_log_json(&self) -> String {
        #[derive(Serialize)]
        struct Line<'r> {
            status: Status,
            dry_run: bool,
            lists: &'r [ListReport],
            novi_calls: u64,
            mailman_calls: u64,
            seconds: f64,
        }
        let Self { status, dry_run, ref lists, novi_calls, mailman_calls, seconds, .. } = *self;
        serde_json::to_string(&Line { status, dry_run, lists, novi_calls, mailman_calls, seconds }).unwrap_or_default()
    }
}

shared::unprintable!(Explanation, Report);
