//! What was mailed, and what is still to be mailed. It decides when a mail is due.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shared::time::DAY;

use super::summary::{Changes, ListSummary, Problem};

/// What a run may start early, in seconds. Otherwise the mail of a day or a week would wait for another run.
const EARLY: u64 = 900;
const WEEK: u64 = 7 * DAY;

/// When mails are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frequency {
    /// After changes and new problems, and once a week.
    Changes,
    /// Once a week.
    Weekly,
}

/// The occasion of a mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// Something changed, or needs attention.
    News,
    /// A week is over.
    Weekly,
}

/// What was mailed, and what is still to be mailed, by list. Times are in seconds of Unix time.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct MailHistory {
    /// When the last mail was sent.
    last: Option<u64>,
    /// When the last weekly mail was sent.
    weekly: Option<u64>,
    /// The changes that no mail has told. A mail that can't be sent is sent by a later run.
    untold: BTreeMap<String, Changes>,
    /// The changes since the last weekly mail.
    of_week: BTreeMap<String, Changes>,
    /// When the problems of each list were told last.
    problems: BTreeMap<String, BTreeMap<Problem, u64>>,
}

impl MailHistory {
    /// Returns the history of an instance that started at `now` and knows of no mail. The next weekly mail is due in a
    /// week, or each new instance would send one.
    pub(super) fn of_instance(now: u64) -> Self {
        Self { weekly: Some(now), ..Self::default() }
    }

    /// Adds the changes of a run.
    pub(super) fn add(&mut self, lists: &[ListSummary]) {
        for list in lists.iter().filter(|list| !list.changes.is_none()) {
            for counted in [&mut self.untold, &mut self.of_week] {
                *counted.entry(list.name.clone()).or_default() += list.changes;
            }
        }
    }

    /// Returns the changes that a mail tells, by list.
    pub(super) fn changes(&self, occasion: Occasion) -> &BTreeMap<String, Changes> {
        match occasion {
            Occasion::News => &self.untold,
            Occasion::Weekly => &self.of_week,
        }
    }

    /// True if a week has passed since the last weekly mail.
    pub(super) fn is_weekly_due(&self, now: u64) -> bool {
        is_over(self.weekly, WEEK, now)
    }

    /// True if the state of these lists is news.
    ///
    /// Changes always are. A problem that stays is told again once a day if it is urgent. Otherwise only the weekly mail
    /// repeats it, and if it is new it waits until a day has passed since the last mail, because many such problems pass.
    pub(super) fn has_news(&self, lists: &[ListSummary], now: u64) -> bool {
        let problems = || lists.iter().filter_map(|list| Some((list, list.problem()?)));
        let told = |list: &ListSummary, problem| self.problems.get(&list.name)?.get(&problem).copied();
        self.has_changes()
            || problems().any(|(list, problem)| problem.is_urgent() && is_over(told(list, problem), DAY, now))
            || is_over(self.last, DAY, now) && problems().any(|(list, problem)| is_over(told(list, problem), WEEK, now))
    }

    /// True if changes weren't told yet.
    pub(super) fn has_changes(&self) -> bool {
        !self.untold.is_empty()
    }

    /// Notes that a mail about these lists was sent. A mail of a mirror that may not write doesn't tell changes.
    pub(super) fn sent(&mut self, occasion: Occasion, tells_changes: bool, lists: &[ListSummary], now: u64) {
        self.last = Some(now);
        if tells_changes {
            self.untold.clear();
        }
        if occasion == Occasion::Weekly {
            self.weekly = Some(now);
            if tells_changes {
                self.of_week.clear();
            }
        }
        for (list, problem) in lists.iter().filter_map(|list| Some((list, list.problem()?))) {
            self.problems.entry(list.name.clone()).or_default().insert(problem, now);
        }
        self.problems.retain(|_, told| {
            told.retain(|_, at| !is_over(Some(*at), WEEK, now));
            !told.is_empty()
        });
    }
}

/// True if `period` has passed since then.
fn is_over(at: Option<u64>, period: u64, now: u64) -> bool {
    at.is_none_or(|at| at + period - EARLY <= now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Status;

    const HOUR: u64 = 3_600;
    const START: u64 = 1_800_000_000;

    fn list(name: &str, status: Status, joined: usize) -> ListSummary {
        let changes = Changes { joined, ..Changes::default() };
        ListSummary { name: name.to_owned(), status, changes, ..ListSummary::default() }
    }

    /// Lets a run follow, and returns true if it sends a mail about news.
    fn run(history: &mut MailHistory, lists: &[ListSummary], hour: u64) -> bool {
        let now = START + hour * HOUR;
        history.add(lists);
        let has_news = history.has_news(lists, now);
        if has_news {
            history.sent(Occasion::News, true, lists, now);
        }
        has_news
    }

    /// Returns the hours in which one run an hour, each over these lists, sends a mail about news.
    fn hours(hours: u64, lists: impl Fn(u64) -> Vec<ListSummary>) -> Vec<u64> {
        let mut history = MailHistory::default();
        (0..hours).filter(|hour| run(&mut history, &lists(*hour), *hour)).collect()
    }

    #[test]
    fn every_change_is_news_and_a_quiet_run_is_not() {
        let joins = |hour| vec![list("a", Status::Ok, usize::from(hour % 3 == 0)), list("b", Status::Ok, 0)];
        assert_eq!(hours(8, joins), [0, 3, 6]);
        assert!(hours(8, |_| vec![list("a", Status::Unfinished, 0)]).is_empty());
    }

    #[test]
    fn urgent_problem_that_stays_is_told_once_a_day() {
        for status in [Status::Blocked, Status::Failed] {
            assert_eq!(hours(50, |_| vec![list("a", status, 0)]), [0, 24, 48]);
        }
        let held = || ListSummary { is_held_or_in_doubt: true, ..list("a", Status::Partial, 0) };
        assert_eq!(hours(50, |_| vec![held()]), [0, 24, 48]);
    }

    #[test]
    fn problem_that_comes_and_goes_is_told_once_a_day() {
        let flapping = |hour| vec![list("a", if hour % 2 == 0 { Status::Failed } else { Status::Ok }, 0)];
        assert_eq!(hours(48, flapping), [0, 24]);
    }

    #[test]
    fn worse_problem_and_one_of_another_list_are_told_at_once() {
        let worse = |hour| match hour {
            0 | 1 => vec![list("a", Status::Partial, 0)],
            2 => vec![list("a", Status::Blocked, 0)],
            _ => vec![list("a", Status::Blocked, 0), list("b", Status::Blocked, 0)],
        };
        assert_eq!(hours(8, worse), [0, 2, 3]);
    }

    #[test]
    fn partial_list_that_stays_is_left_to_the_weekly_mail() {
        assert_eq!(hours(160, |_| vec![list("a", Status::Partial, 0)]), [0]);
        // New ones of the same day wait for the next day.
        let more = |hour: u64| (0..=hour.min(3)).map(|n| list(&n.to_string(), Status::Partial, 0)).collect();
        assert_eq!(hours(100, more), [0, 24]);
    }

    #[test]
    fn weekly_mail_is_due_at_once_with_an_empty_ledger_and_then_each_week() {
        let lists = [list("a", Status::Ok, 2)];
        let mut history = MailHistory::default();
        let mut sent = Vec::new();
        for hour in 0..400 {
            // Each run may start some minutes early or late.
            let now = START + hour * HOUR + hour % 7 * 100;
            history.add(&lists);
            if history.is_weekly_due(now) {
                sent.push((hour, history.changes(Occasion::Weekly)["a"].joined));
                history.sent(Occasion::Weekly, true, &lists, now);
            }
        }
        assert_eq!(sent, [(0, 2), (168, 336), (336, 336)]);
        assert!(!MailHistory::of_instance(START).is_weekly_due(START + HOUR));
        assert!(MailHistory::of_instance(START).is_weekly_due(START + WEEK));
    }

    #[test]
    fn what_could_not_be_sent_is_told_by_the_next_mail() {
        let mut history = MailHistory::default();
        history.add(&[list("a", Status::Ok, 2)]);
        history.add(&[list("a", Status::Ok, 1)]);
        let quiet = [list("a", Status::Ok, 0)];
        assert!(history.has_news(&quiet, START));
        assert_eq!(history.changes(Occasion::News)["a"].joined, 3);
        history.sent(Occasion::News, true, &quiet, START);
        assert!(!history.has_news(&quiet, START + HOUR));
        assert_eq!(history.changes(Occasion::Weekly)["a"].joined, 3, "the weekly mail counts them, too");
    }

    #[test]
    fn mail_of_a_mirror_that_may_not_write_keeps_what_was_not_told() {
        let mut history = MailHistory::default();
        history.add(&[list("a", Status::Ok, 40)]);
        history.sent(Occasion::Weekly, false, &[], START);
        assert!(!history.is_weekly_due(START + HOUR));
        assert!(history.has_changes());
        assert_eq!(history.changes(Occasion::Weekly)["a"].joined, 40);
    }

    #[test]
    fn history_stays_small() {
        let mut history = MailHistory::default();
        for day in 0..100 {
            let lists = [list(&day.to_string(), Status::Failed, 1)];
            history.add(&lists);
            history.sent(Occasion::Weekly, true, &lists, START + day * DAY);
        }
        assert!(history.problems.len() <= 7 && history.of_week.is_empty() && history.untold.is_empty());
    }
}
