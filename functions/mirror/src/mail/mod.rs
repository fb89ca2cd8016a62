//! Mails about runs: what the mirror did to each list, in counts, and what to do.
//!
//! A mail is a message to a topic of SNS, whose subscribers get it. A mail that can't be sent is only a warning in the
//! log, and a later run sends it. The ledger remembers what was mailed, so that a problem that stays isn't mailed with
//! each run. Without a ledger the instance remembers it, so a new instance repeats problems and sends no weekly mail.

mod history;
mod sns;
mod summary;
mod text;

use std::sync::Mutex;
use std::time::Duration;

use shared::sync::lock;
use shared::time::unix_now;
use tokio::time::Instant;

use self::history::Occasion;
use self::text::{Mail, compose, compose_dry};

pub(crate) use self::history::{Frequency, MailHistory};
pub(crate) use self::sns::{Topic, TopicArn};
pub(crate) use self::summary::{Changes, ListSummary};

/// The maximum time for sending a mail.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The settings of mails.
pub(crate) struct MailSettings {
    pub(crate) frequency: Frequency,
    pub(crate) topic: TopicArn,
}

/// What is mailed about.
pub(crate) struct Finished<'r> {
    pub(crate) lists: &'r [ListSummary],
    /// True if the run concerned all lists. A weekly mail is about all of them.
    pub(crate) is_whole: bool,
    /// True if the mirror may not write. Then only the weekly mail is sent, which says so.
    pub(crate) is_dry: bool,
    /// False if the ledger is configured and can't be used. Then only changes are news, because it isn't known which
    /// problems were told.
    pub(crate) knows_history: bool,
    /// When the run began, in seconds of Unix time.
    pub(crate) now: u64,
    /// When a mail has to be sent at the latest.
    pub(crate) deadline: Instant,
}

/// Sends mails about runs.
pub(crate) struct Mailer {
    frequency: Frequency,
    topic: Topic,
    memory: Mutex<Memory>,
}

/// What the instance remembers.
struct Memory {
    /// The history if there is no ledger.
    history: MailHistory,
    /// When this instance sent a weekly mail. A ledger that can't be written must not cause one with each run.
    weekly: Option<u64>,
}

impl Mailer {
    pub(crate) fn new(settings: MailSettings, http: reqwest::Client) -> Self {
        let memory = Memory { history: MailHistory::of_instance(unix_now()), weekly: None };
        Self { frequency: settings.frequency, topic: Topic::new(settings.topic, http), memory: Mutex::new(memory) }
    }

    /// True if a mail is due after a run, without the changes of the run itself.
    pub(crate) fn is_due(&self, run: &Finished<'_>, history: &MailHistory) -> bool {
        self.occasion(run, history).is_some()
    }

    /// Sends the mail that is due after a run, if any. `history` is that of the ledger. Returns true if a mail was sent.
    pub(crate) async fn finish(&self, run: &Finished<'_>, history: Option<&mut MailHistory>) -> bool {
        match history {
            Some(history) => self.finish_with(run, history).await,
            None => {
                let mut history = lock(&self.memory).history.clone();
                let is_sent = self.finish_with(run, &mut history).await;
                lock(&self.memory).history = history;
                is_sent
            }
        }
    }

    async fn finish_with(&self, run: &Finished<'_>, history: &mut MailHistory) -> bool {
        if !run.is_dry {
            history.add(run.lists);
        }
        let Some(occasion) = self.occasion(run, history) else { return false };
        let mail = match occasion {
            Occasion::Weekly if run.is_dry => compose_dry(run.lists),
            _ => compose(occasion, run.lists, history.changes(occasion)),
        };
        let is_sent = self.send(&mail, run.deadline).await;
        if is_sent {
            history.sent(occasion, !run.is_dry, run.lists, run.now);
            if occasion == Occasion::Weekly {
                lock(&self.memory).weekly = Some(run.now);
            }
        }
        is_sent
    }

    fn occasion(&self, run: &Finished<'_>, history: &MailHistory) -> Option<Occasion> {
        let is_weekly_due = history.is_weekly_due(run.now)
            && lock(&self.memory).weekly.is_none_or(|at| MailHistory::of_instance(at).is_weekly_due(run.now));
        if run.is_whole && is_weekly_due {
            return Some(Occasion::Weekly);
        }
        let has_news = || match run.knows_history {
            true => history.has_news(run.lists, run.now),
            false => history.has_changes(),
        };
        (self.frequency == Frequency::Changes && !run.is_dry && has_news()).then_some(Occasion::News)
    }

    async fn send(&self, mail: &Mail, deadline: Instant) -> bool {
        let time_left = deadline.saturating_duration_since(Instant::now()).min(TIMEOUT);
        if time_left.is_zero() {
            tracing::warn!(cause = "the run's time is over", "report not mailed");
            return false;
        }
        match self.topic.publish(mail, time_left).await {
            Ok(()) => {
                tracing::info!("report mailed");
                true
            }
            Err(error) => {
                tracing::warn!(cause = error.cause, remedy = error.remedy, "report not mailed");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use shared::http_client;

    use super::*;
    use crate::status::Status;

    const DAY: u64 = 86_400;
    const NOW: u64 = 1_800_000_000;

    fn mailer(frequency: Frequency) -> Mailer {
        http_client::install_tls_provider();
        let http = http_client::build(http_client::tls_config(&[]).unwrap()).unwrap();
        let topic = TopicArn::parse("arn:aws:sns:us-east-1:123456789012:alarms").unwrap();
        Mailer::new(MailSettings { frequency, topic }, http)
    }

    fn blocked() -> [ListSummary; 1] {
        [ListSummary { status: Status::Blocked, ..ListSummary::default() }]
    }

    #[test]
    fn occasion_depends_on_the_frequency_and_on_the_run() {
        let recent = MailHistory::of_instance(NOW - DAY);
        let old = MailHistory::of_instance(NOW - 8 * DAY);
        let lists = blocked();
        for (frequency, history, is_whole, is_dry, expected) in [
            (Frequency::Changes, &recent, true, false, Some(Occasion::News)),
            (Frequency::Changes, &recent, false, false, Some(Occasion::News)),
            (Frequency::Changes, &recent, true, true, None),
            (Frequency::Changes, &old, true, false, Some(Occasion::Weekly)),
            (Frequency::Changes, &old, true, true, Some(Occasion::Weekly)),
            (Frequency::Changes, &old, false, false, Some(Occasion::News)),
            (Frequency::Weekly, &recent, true, false, None),
            (Frequency::Weekly, &old, true, false, Some(Occasion::Weekly)),
            (Frequency::Weekly, &old, false, false, None),
        ] {
            let finished =
                Finished { lists: &lists, is_whole, is_dry, knows_history: true, now: NOW, deadline: Instant::now() };
            let occasion = mailer(frequency).occasion(&finished, history);
            assert_eq!(occasion, expected, "{frequency:?} {is_whole} {is_dry}");
        }
    }

    #[test]
    fn only_changes_are_news_if_the_ledger_cannot_tell_what_was_told() {
        let mailer = mailer(Frequency::Changes);
        let lists = blocked();
        let finished = Finished {
            lists: &lists,
            is_whole: true,
            is_dry: false,
            knows_history: false,
            now: NOW,
            deadline: Instant::now(),
        };
        let mut history = MailHistory::of_instance(NOW);
        assert_eq!(mailer.occasion(&finished, &history), None);
        let changes = Changes { joined: 1, ..Changes::default() };
        history.add(&[ListSummary { changes, ..ListSummary::default() }]);
        assert_eq!(mailer.occasion(&finished, &history), Some(Occasion::News));
    }

    #[test]
    fn ledger_that_cannot_be_written_causes_one_weekly_mail() {
        let mailer = mailer(Frequency::Changes);
        let lists = blocked();
        let at = |now| Finished {
            lists: &lists,
            is_whole: true,
            is_dry: true,
            knows_history: true,
            now,
            deadline: Instant::now(),
        };
        let unchanged = MailHistory::default();
        assert_eq!(mailer.occasion(&at(NOW), &unchanged), Some(Occasion::Weekly));
        lock(&mailer.memory).weekly = Some(NOW);
        assert_eq!(mailer.occasion(&at(NOW + 3_600), &unchanged), None);
        assert_eq!(mailer.occasion(&at(NOW + 7 * DAY), &unchanged), Some(Occasion::Weekly));
    }

    #[tokio::test]
    async fn mail_is_not_sent_after_the_deadline_but_kept_for_a_later_run() {
        let mailer = mailer(Frequency::Changes);
        let changes = Changes { joined: 1, ..Changes::default() };
        let lists = [ListSummary { changes, ..ListSummary::default() }];
        let finished = Finished {
            lists: &lists,
            is_whole: true,
            is_dry: false,
            knows_history: true,
            now: NOW,
            deadline: Instant::now(),
        };
        let mut history = MailHistory::of_instance(NOW);
        assert!(!mailer.finish(&finished, Some(&mut history)).await);
        assert!(history.has_news(&[], NOW));
        // Without a ledger, the instance keeps it.
        assert!(!mailer.finish(&finished, None).await);
        assert!(lock(&mailer.memory).history.has_news(&[], NOW));
    }
}
