//! The report: what a run found and did, for each list.
//!
//! It names lists and counts people. Only a requested explanation contains addresses, and it is never logged.

mod size;

use std::cmp::Reverse;

use serde::{Serialize, Serializer};
use shared::cache::lock_key;

use crate::apply::{Applied, Rejected};
use crate::mail::{Changes, ListSummary};
use crate::mailman::{MailmanError, OLDEST_VERSION, Version};
use crate::mapping::{InvalidMapping, ListId};
use crate::plan::reason::{addresses, reasons};
use crate::plan::{Plan, Skipped};
use crate::read::ReadingEnd;
use crate::report::size::{Cut, MAX_LOGGED, MAX_RESULT, escaped_size};
use crate::show::Shown;
use crate::status::Status;

pub(crate) use self::size::cut_text;

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
    /// Only the ledger knows former addresses.
    moved: usize,
    kept: usize,
    pub(crate) withheld: usize,
    skipped: Skipped,
    rejected: Rejected,
    /// [`Report`] adds it, cut if the report is too large.
    #[serde(skip)]
    reason: Option<String>,
    /// True if an operator has to look at the list at once, although it isn't blocked.
    #[serde(skip)]
    pub(crate) is_held_or_in_doubt: bool,
    /// True if the pass has asked about everyone in the list's groups.
    #[serde(skip)]
    is_pass_complete: bool,
    /// True if the roster was read, so that the list could be planned.
    #[serde(skip)]
    is_planned: bool,
    /// Contains addresses. [`Report`] adds it to the result, so that it is in no log and no error.
    #[serde(skip)]
    pub(crate) shown: Option<Shown>,
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

    /// Reports that there is nothing to mirror.
    pub(crate) fn without_mappings() -> Self {
        let reason = "novi_mailman_sync has no mapping, so no list is mirrored. Add a mapping, or stop the schedule.";
        Self::without_plan(None, Status::Failed, reason.to_owned())
    }

    /// Reports a list that another run has locked.
    pub(crate) fn locked(list: &ListId) -> Self {
        let reason = format!(
            "Another run holds the lock {}, so the list is left unchanged. The lock is released when that run ends, \
             and expires with its invocation at the latest. If Mailman may still be processing a request of that run, \
             the lock stays for six minutes. The next scheduled run retries.",
            lock_key(list.as_str())
        );
        Self::without_plan(Some(list), Status::Failed, reason)
    }

    /// Reports a list with a mapping that needs a ledger, if there is none.
    pub(crate) fn needs_ledger(list: &ListId) -> Self {
        let reason = "\"resubscribe\": false in a mapping of this list needs the ledger, which knows who left by \
                      themselves. The list is left unchanged. Set LEDGER, or leave resubscribe out.";
        Self::without_plan(Some(list), Status::Failed, reason.to_owned())
    }

    /// Reports a list in a run that another run's claim of the ledger stops.
    pub(crate) fn claimed(list: &ListId) -> Self {
        let reason = "Another run has claimed the ledger, so the list is left unchanged. The claim ends with that run, or \
                      with its invocation at the latest. The next scheduled run retries.";
        Self::without_plan(Some(list), Status::Failed, reason.to_owned())
    }

    /// Reports a list that no mapping names any more.
    pub(crate) fn unmapped(list: &ListId) -> Self {
        let reason = "No mapping names this list any more, so it is left unchanged. If that is right, nothing has to be \
                      done: after a week the ledger forgets it. Otherwise add its mapping again.";
        Self::without_plan(Some(list), Status::Partial, reason.to_owned())
    }

    /// Reports a list that could not be read or written.
    pub(crate) fn from_error(list: &ListId, error: MailmanError) -> Self {
        Self::without_plan(Some(list), status_of(error), reason_of(error))
    }

    /// Reports a plan that isn't applied, because this is a dry run, or because the plan is blocked or empty.
    pub(crate) fn planned(plan: &Plan) -> Self {
        Self::of(plan, plan.subscribe().len(), plan.moving().len(), plan.unsubscribe().len())
    }

    /// Reports a plan and the part of it that was applied.
    pub(crate) fn applied(plan: &Plan, applied: &Applied) -> Self {
        let mut report = Self::of(plan, applied.subscribed, applied.moved, applied.unsubscribed);
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
        let open = [("subscription", &applied.open_subscriptions), ("removal", &applied.open_removals)];
        for (write, open) in open.into_iter().filter(|(_, open)| !open.is_empty()) {
            let reason = format!(
                "Mailman did not respond in time to the {write} of {}, and may process it for up to six more minutes. \
                 The list stays locked until then, or without a Redis these addresses are left alone. The next run \
                 after that checks the result.",
                addresses(open.len())
            );
            report.add_reason(Status::Partial, &reason);
        }
        if applied.postponed > 0 {
            let reason = format!(
                "Mailman may still be processing an earlier request about {}, so nothing was written about them. A run \
                 after six minutes goes on.",
                addresses(applied.postponed)
            );
            report.add_reason(Status::Partial, &reason);
        }
        if applied.not_movable > 0 {
            let reason = format!(
                "The memberships of {} could not be moved, so the changed addresses join with new ones, if Mailman lets \
                 them. The former addresses leave at the end of a pass.",
                addresses(applied.not_movable)
            );
            report.add_reason(Status::Unfinished, &reason);
        }
        if !applied.not_moved.is_empty() {
            let reason = format!(
                "The memberships of {} were not moved, so the former addresses stay.",
                addresses(applied.not_moved.len())
            );
            report.add_reason(Status::Partial, &reason);
            if let Some(error) = applied.move_error.filter(|error| applied.stopped != Some(*error)) {
                report.add_reason(Status::Partial, &reason_of(error));
            }
        }
        if applied.waiting_removals > 0 {
            let reason = format!(
                "Mailman responded in time to no subscription, so the removal of {} waits for the next run.",
                addresses(applied.waiting_removals)
            );
            report.add_reason(Status::Partial, &reason);
        }
        if applied.not_removed > 0 {
            let reason = format!(
                "{} stayed on the roster, although Mailman or a proxy in front of it accepted the removal. Check these, \
                 and remove the members by hand.",
                addresses(applied.not_removed)
            );
            report.add_reason(Status::Partial, &reason);
        }
        if applied.removed_singly > 0 {
            let reason = format!(
                "A proxy in front of Mailman let no bulk removal pass, so {} were removed one by one, which also sends \
                 the list's notices to its owners. Let DELETE pass with its body: see A proxy in front of Mailman in \
                 docs/operations.md.",
                addresses(applied.removed_singly)
            );
            report.add_reason(Status::Partial, &reason);
        }
        if applied.lost_goodbye {
            let reason = "The list's goodbye message was switched off for removals one by one, and could not be switched \
                          on again. Switch send_goodbye_message on in Mailman.";
            report.add_reason(Status::Partial, reason);
        }
        if let Some((slowest, pending)) = applied.slow {
            let pending = pending.map_or_else(|| "unknown".to_owned(), |pending| pending.to_string());
            let reason = format!(
                "Mailman is slow: a subscription took {:.1} s. Number of pending requests of this list: {pending}. \
                 Mailman reads all of them for each subscription, so discard those that aren't wanted. Otherwise check \
                 the load of Mailman and its database.",
                slowest.as_secs_f64()
            );
            report.add_reason(Status::Ok, &reason);
        }
        if let Some(error) = applied.stopped {
            report.add_reason(status_of(error), &reason_of(error));
        }
        report
    }

    /// Says that each subscription mails the owners of the list.
    pub(crate) fn add_owner_notices(&mut self) {
        let reason = format!(
            "Mailman mails the owners of this list about each subscription, with the member's name: {} now. To prevent \
             that, switch off admin_notify_mchanges of the list.",
            if self.subscribed == 1 { "1 mail".to_owned() } else { format!("{} mails", self.subscribed) }
        );
        self.add_reason(Status::Ok, &reason);
    }

    /// Says that this version of Mailman is the probable cause of a failure.
    pub(crate) fn add_old_version(&mut self, version: Version) {
        if self.status == Status::Failed {
            let reason = format!("Mailman {version} is too old: upgrade it to {OLDEST_VERSION} or later.");
            self.add_reason(Status::Failed, &reason);
        }
    }

    /// Logs one line, with fields that a log query can aggregate.
    pub(crate) fn log(&self) {
        let Self { wanted, roster, subscribed, moved, unsubscribed, kept, withheld, .. } = *self;
        let (list, status, reason) = (self.list_id.as_deref(), self.status.as_str(), self.reason.as_deref());
        tracing::info!(
            list,
            status,
            wanted,
            roster,
            subscribed,
            moved,
            unsubscribed,
            kept,
            withheld,
            reason,
            "list synced"
        );
    }

    /// Returns what a mail says about the list.
    pub(crate) fn summary(&self) -> ListSummary {
        let changes = Changes { joined: self.subscribed, left: self.unsubscribed, moved: self.moved };
        ListSummary {
            name: self.list_id.clone().unwrap_or_else(|| "(no list)".to_owned()),
            status: self.status,
            is_held_or_in_doubt: self.is_held_or_in_doubt,
            changes,
            withheld: self.withheld,
            size: self.is_planned.then(|| (self.roster + self.subscribed).saturating_sub(self.unsubscribed)),
            reason: self.reason.clone(),
        }
    }

    fn of(plan: &Plan, subscribed: usize, moved: usize, unsubscribed: usize) -> Self {
        let mut report = Self {
            list_id: Some(plan.list.to_string()),
            wanted: plan.wanted,
            roster: plan.roster,
            subscribed,
            moved,
            unsubscribed,
            kept: plan.kept,
            withheld: plan.withheld(),
            skipped: plan.skipped,
            is_held_or_in_doubt: plan.is_held_or_in_doubt(),
            is_pass_complete: plan.is_pass_complete(),
            is_planned: true,
            ..Self::default()
        };
        for (status, reason) in reasons(plan) {
            report.add_reason(status, &reason);
        }
        report
    }

    /// True if the list was changed, or would be in a dry run.
    pub(crate) fn has_changes(&self) -> bool {
        self.subscribed + self.moved + self.unsubscribed > 0
    }

    /// Reports that reading Novi ended before everyone on this list was read.
    pub(crate) fn reading_ended(&mut self, end: ReadingEnd) {
        if self.skipped.not_yet_read > 0 || !self.is_pass_complete {
            self.add_reason(Status::Unfinished, &format!("{end}."));
        }
    }

    /// Adds sentences to the reason, and raises the status to at least `status`.
    fn add_reason(&mut self, status: Status, reason: &str) {
        self.status = self.status.max(status);
        let before = self.reason.take().map(|before| before + " ").unwrap_or_default();
        self.reason = Some(before + reason);
    }
}

fn status_of(error: MailmanError) -> Status {
    if error == MailmanError::OutOfTime { Status::Unfinished } else { Status::Failed }
}

fn reason_of(error: MailmanError) -> String {
    format!("{error}. {}", error.remedy())
}

/// The explanation of an address.
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

impl ListExplanation {
    /// True if the address is or should be on the list, or may be.
    fn is_related(&self) -> bool {
        self.wanted || self.subscribed != Some(false)
    }
}

/// The ledger's part of the report.
#[derive(Clone, Serialize)]
pub(crate) struct LedgerReport {
    /// The number of people in the mapped groups.
    pub(crate) people: usize,
    /// The number of people that the pass has asked about.
    pub(crate) read: usize,
    /// `complete`, or `under_way`.
    pub(crate) pass: &'static str,
    /// The age of the oldest record in seconds. `null` if there is none.
    pub(crate) oldest_seconds: Option<u64>,
    /// The duration of a pass that is under way.
    #[serde(skip)]
    pub(crate) pass_seconds: u64,
}

/// The report of a run.
pub(crate) struct Report {
    pub(crate) status: Status,
    pub(crate) dry_run: bool,
    /// True if a record was read from Novi, or anything was written to Mailman.
    pub(crate) has_progress: bool,
    pub(crate) lists: Vec<ListReport>,
    pub(crate) novi_calls: u64,
    pub(crate) mailman_calls: u64,
    /// Mailman's version, if it responded. Only the log contains it.
    pub(crate) mailman_version: Option<Version>,
    /// The duration of the run in seconds.
    pub(crate) seconds: f64,
    /// `None` without a ledger.
    pub(crate) ledger: Option<LedgerReport>,
    /// Contains addresses, so it is part of the result but never of the log.
    pub(crate) explain: Vec<Explanation>,
}

/// A report, with or without addresses.
#[derive(Serialize)]
struct View<'r> {
    status: Status,
    dry_run: bool,
    lists: Vec<ListView<'r>>,
    /// The number of lists with status `ok`, if these are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    ok_lists: Option<usize>,
    /// The number of other lists that are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    lists_left_out: Option<usize>,
    /// `null` without a ledger.
    ledger: Option<&'r LedgerReport>,
    novi_calls: u64,
    mailman_calls: u64,
    seconds: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    explain: Vec<ExplanationView<'r>>,
}

/// The report of one list, with or without addresses.
#[derive(Serialize)]
struct ListView<'r> {
    #[serde(flatten)]
    list: &'r ListReport,
    reason: Option<String>,
    #[serde(flatten)]
    shown: Option<&'r Shown>,
}

impl<'r> ListView<'r> {
    fn new(list: &'r ListReport, has_addresses: bool, cut: Cut) -> Self {
        let reason = list.reason.as_ref().map(|reason| cut_text(reason, cut.max_reason));
        Self { list, reason, shown: list.shown.as_ref().filter(|_| has_addresses) }
    }
}

/// The explanation of an address, as far as it fits.
#[derive(Serialize)]
struct ExplanationView<'r> {
    address: &'r str,
    lists: Vec<&'r ListExplanation>,
    /// The number of lists that are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_out: Option<usize>,
}

impl<'r> ExplanationView<'r> {
    fn new(explanation: &'r Explanation, cut: Cut) -> Self {
        let lists = explanation.lists.iter().filter(|list| list.is_related() || !cut.omits_unrelated);
        let lists: Vec<_> = lists.take(cut.max_explained).collect();
        let left_out = explanation.lists.len() - lists.len();
        Self { address: &explanation.address, lists, left_out: (left_out > 0).then_some(left_out) }
    }
}

impl Report {
    /// True if the invocation must end as a function error, so that alarms see it.
    ///
    /// An unfinished run that got anywhere is not an error, because the next run goes on. A run that was asked for
    /// addresses answers a question, whatever it finds.
    pub(crate) fn is_error(&self) -> bool {
        let needs_attention = match self.status {
            Status::Ok | Status::Partial => false,
            Status::Unfinished => !self.has_progress,
            Status::Blocked | Status::Failed => true,
        };
        needs_attention && self.explain.is_empty() && self.lists.iter().all(|list| list.shown.is_none())
    }

    /// Returns the report as JSON, without the parts that must not be logged, and small enough for a log line.
    pub(crate) fn to_log_json(&self) -> String {
        let json = |cut| serde_json::to_string(&self.view(false, cut)).unwrap_or_default();
        json(Cut::choose(MAX_LOGGED, self.lists.len(), |cut| escaped_size(&json(cut))))
    }

    fn view(&self, has_addresses: bool, cut: Cut) -> View<'_> {
        let Self { status, dry_run, ref lists, novi_calls, mailman_calls, seconds, ref explain, .. } = *self;
        let (ok, mut shown): (Vec<&ListReport>, Vec<&ListReport>) =
            lists.iter().partition(|list| cut.counts_ok_lists && list.status == Status::Ok);
        let left_out = shown.len().saturating_sub(cut.max_lists);
        if left_out > 0 {
            shown.sort_by_key(|list| Reverse(list.status));
            shown.truncate(cut.max_lists);
        }
        let explain = explain.iter().filter(|_| has_addresses).map(|explained| ExplanationView::new(explained, cut));
        View {
            status,
            dry_run,
            lists: shown.into_iter().map(|list| ListView::new(list, has_addresses, cut)).collect(),
            ok_lists: cut.counts_ok_lists.then_some(ok.len()),
            lists_left_out: (left_out > 0).then_some(left_out),
            ledger: self.ledger.as_ref(),
            novi_calls,
            mailman_calls,
            seconds,
            explain: explain.collect(),
        }
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let size = |cut| serde_json::to_vec(&self.view(true, cut)).unwrap_or_default().len();
        self.view(true, Cut::choose(MAX_RESULT, self.lists.len(), size)).serialize(serializer)
    }
}

shared::unprintable!(ListReport, Explanation, Report);

#[cfg(test)]
mod tests {
    use super::*;

    fn report(status: Status, has_progress: bool) -> Report {
        Report {
            status,
            dry_run: false,
            has_progress,
            ledger: None,
            lists: vec![ListReport::without_plan(None, status, "x".to_owned())],
            novi_calls: 0,
            mailman_calls: 0,
            mailman_version: None,
            seconds: 0.0,
            explain: Vec::new(),
        }
    }

    #[test]
    fn blocked_and_failed_runs_and_runs_without_progress_are_errors() {
        for (status, has_progress, expected) in [
            (Status::Ok, false, false),
            (Status::Partial, false, false),
            (Status::Unfinished, true, false),
            (Status::Unfinished, false, true),
            (Status::Blocked, true, true),
            (Status::Failed, true, true),
        ] {
            assert_eq!(report(status, has_progress).is_error(), expected, "{}", status.as_str());
        }
    }

    #[test]
    fn addresses_are_in_the_result_and_never_in_the_log_or_an_error() {
        let mut report = report(Status::Blocked, true);
        report.lists[0].shown = Some(Shown::of_one_leaver("ada@example.org"));
        assert!(!report.is_error(), "an error would hide what was asked for");
        assert!(serde_json::to_string(&report).unwrap().contains(r#""leaves":["ada@example.org"]"#));
        report.explain.push(Explanation { address: "bea@example.org".to_owned(), lists: Vec::new() });
        assert!(serde_json::to_string(&report).unwrap().contains("bea@example.org"));
        let line = report.to_log_json();
        assert!(line.contains(r#""ledger":null"#) && !line.contains("@example.org"), "{line}");
    }
}
