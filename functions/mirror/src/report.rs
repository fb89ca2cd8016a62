//! The report: what a run found and did, for each list.
//!
//! It names lists and counts people. Only a requested explanation contains addresses, and it is never logged.

use serde::Serialize;
use shared::cache::lock_key;

use crate::apply::{Applied, Rejected};
use crate::mailman::MailmanError;
use crate::mapping::{InvalidMapping, ListId};
use crate::plan::{Plan, Skipped, Verdict};

/// The status of a list or a run, from best to worst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    /// The list has the members it should have.
    #[default]
    Ok,
    /// Something was withheld, rejected or unreadable.
    Partial,
    /// The plan looks wrong, and the list is unchanged.
    Blocked,
    /// The list is unchanged or unfinished because of a failure.
    Failed,
    /// Time ran out. The next run continues.
    Unfinished,
}

impl Status {
    /// True if the invocation must end as a function error, so that alarms see it.
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

/// The report of one list.
#[derive(Default, Serialize)]
pub(crate) struct ListReport {
    /// `null` if an invalid mapping doesn't name its list.
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
    /// Reports a list for which no plan could be made.
    pub(crate) fn without_plan(list: Option<&ListId>, status: Status, reason: String) -> Self {
        Self { list_id: list.map(ToString::to_string), status, reason: Some(reason), ..Self::default() }
    }

    /// Reports the list of an invalid mapping.
    pub(crate) fn invalid(mapping: &InvalidMapping) -> Self {
        let reason = format!(
            "{} Its list is left unchanged, even if other mappings name it too. Correct the mapping.",
            mapping.reason
        );
        Self::without_plan(mapping.list.as_ref(), Status::Failed, reason)
    }

    /// Reports a list that another run has locked.
    pub(crate) fn locked(list: &ListId) -> Self {
        let reason = format!(
            "Another run holds the lock {}, so the list is left unchanged. The lock is released when that run ends, \
             and expires with its invocation at the latest. The next scheduled run retries.",
            lock_key(list.as_str())
        );
        Self::without_plan(Some(list), Status::Failed, reason)
    }

    /// Reports a list that could not be read or written.
    pub(crate) fn from_error(list: &ListId, error: MailmanError) -> Self {
        Self::without_plan(Some(list), status_of(error), reason_of(error))
    }

    /// Reports a plan that isn't applied, because this is a dry run, or because the plan is blocked or empty.
    pub(crate) fn planned(plan: &Plan) -> Self {
        Self::of(plan, plan.subscribe.len(), plan.unsubscribe.len())
    }

    /// Reports a plan and the part of it that was applied.
    pub(crate) fn applied(plan: &Plan, applied: &Applied) -> Self {
        let mut report = Self::of(plan, applied.subscribed, applied.unsubscribed);
        report.rejected = applied.rejected;
        let rejected = applied.rejected.total();
        if rejected > 0 {
            let reason = format!(
                "Mailman rejected {}. The counts in rejected say why: correct invalid addresses in Novi, lift bans in \
                 Mailman, and check Mailman's log for the others. Each run retries.",
                addresses(rejected)
            );
            report.add_reason(Status::Partial, &reason);
        }
        if applied.timed_out > 0 {
            let reason = format!(
                "Mailman did not respond in time to the subscription of {}, and may process it for up to six more \
                 minutes. Do not change the list until then. The next run checks the result.",
                addresses(applied.timed_out)
            );
            report.add_reason(Status::Partial, &reason);
        }
        if let Some(error) = applied.stopped {
            report.add_reason(status_of(error), &reason_of(error));
        }
        report
    }

    /// Logs one line, with fields that a log query can aggregate.
    pub(crate) fn log(&self) {
        let Self { wanted, roster, subscribed, unsubscribed, kept, withheld, .. } = *self;
        let (list, status, reason) = (self.list_id.as_deref(), self.status.as_str(), self.reason.as_deref());
        tracing::info!(list, status, wanted, roster, subscribed, unsubscribed, kept, withheld, reason, "list synced");
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
            Verdict::Forced(block) => report.add_reason(Status::Ok, &format!("The plan was forced although {block}.")),
            Verdict::Blocked(block) => {
                (report.subscribed, report.unsubscribed) = (0, 0);
                let remedy = match block.force_event(&plan.list) {
                    Some(event) => format!("If the plan is right, invoke once with the event {event}"),
                    None => "Correct the mapping, or allow the API key to read the group.".to_owned(),
                };
                let reason = format!("Blocked because {block}. The list is left unchanged. {remedy}");
                report.add_reason(Status::Blocked, &reason);
            }
        }
        report
    }

    /// Adds sentences to the reason, and raises the status to at least `status`.
    fn add_reason(&mut self, status: Status, reason: &str) {
        self.status = self.status.max(status);
        let before = self.reason.take().map(|before| before + " ").unwrap_or_default();
        self.reason = Some(before + reason);
    }
}

fn addresses(count: usize) -> String {
    if count == 1 { "1 address".to_owned() } else { format!("{count} addresses") }
}

fn status_of(error: MailmanError) -> Status {
    if error == MailmanError::OutOfTime { Status::Unfinished } else { Status::Failed }
}

fn reason_of(error: MailmanError) -> String {
    format!("{error}. {}", error.remedy())
}

/// The explanation of an address.
#[derive(Serialize)]
pub(crate) struct Explanation {
    /// The address as it was sent in the event.
    pub(crate) address: String,
    pub(crate) lists: Vec<ListExplanation>,
}

/// The explanation of an address for one list.
#[derive(Serialize)]
pub(crate) struct ListExplanation {
    pub(crate) list_id: String,
    pub(crate) wanted: bool,
    /// `null` if the roster could not be read.
    pub(crate) subscribed: Option<bool>,
    /// The reason why the address isn't wanted, or why `wanted` and `subscribed` will keep differing. Otherwise `null`.
    pub(crate) why: Option<String>,
}

/// The report of a run.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) status: Status,
    pub(crate) dry_run: bool,
    pub(crate) lists: Vec<ListReport>,
    pub(crate) novi_calls: u64,
    pub(crate) mailman_calls: u64,
    /// The duration of the run in seconds.
    pub(crate) seconds: f64,
    /// Contains addresses, so it is part of the result but never of the log.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) explain: Vec<Explanation>,
}

impl Report {
    /// Returns the report as JSON, without the parts that must not be logged.
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
