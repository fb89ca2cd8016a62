//! One run: reads everything, plans every list, judges every plan, and only then applies the sound ones.

mod gather;
mod remember;
#[cfg(test)]
mod worlds;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use serde::Serialize;
use shared::cache::{MemberCache, MemberUpdate};
use shared::member::MemberRules;
use shared::metrics::{self, Metric};
use shared::novi;
use shared::parameters::{ParameterStore, Unavailable};
use shared::rate_limit::Rates;
use shared::sync::lock;
use shared::time::unix_now;
use tokio::time::{Instant, timeout_at};

use self::gather::{Gathered, Gatherer, RosterResult};
use self::remember::{remember, unmapped};
use crate::address::Address;
use crate::apply::{OpenWrites, apply, chosen, restore};
use crate::directory::{MemberStatus, People};
use crate::event::{Event, InvalidEvent};
use crate::explain::explain;
use crate::force::Force;
use crate::ledger::{Claimed, Document, Ledger, LedgerStore, ListResult};
use crate::lock::{InstanceId, Locks};
use crate::mail::{Finished, ListSummary, Mailer};
use crate::mailman::{Mailman, MailmanError, OLDEST_VERSION, Preferences, Timeouts};
use crate::mapping::{ListId, Target};
use crate::parameters::Parameters;
use crate::plan::{History, Plan};
use crate::probe::{self, ProbeReport};
use crate::read::{CallLimits, Caller, NoviRateLimiter, ReadOptions, Reader};
use crate::report::{Explanation, LedgerReport, ListReport, Report};
use crate::roster::Roster;
use crate::show::show;
use crate::status::Status;
use crate::unread::Unread;

/// The reserve before the invocation's deadline. No work starts that would not end before the reserve begins.
const DEADLINE_RESERVE: Duration = Duration::from_secs(10);

/// The reason why a run did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotStarted {
    #[error(transparent)]
    Event(#[from] InvalidEvent),
    #[error(transparent)]
    Parameters(#[from] Unavailable),
}

/// The result of an invocation.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum Answer {
    Run(Report),
    Probe(Box<ProbeReport>),
}

/// The state of an instance, which its runs share.
pub(crate) struct Mirror {
    pub(crate) parameters: Arc<ParameterStore<Parameters>>,
    pub(crate) http: reqwest::Client,
    pub(crate) novi: novi::Client,
    /// The time limits for requests to Mailman.
    pub(crate) mailman: Timeouts,
    pub(crate) rate_limiter: Mutex<NoviRateLimiter>,
    pub(crate) read_options: ReadOptions,
    /// The limits of the mirror's own calls to Novi.
    pub(crate) novi_rates: Rates,
    /// The time between two scheduled runs.
    pub(crate) period: Duration,
    /// The store of the ledger, if there is one.
    pub(crate) ledger: Option<LedgerStore>,
    /// What sends mails about runs, if any are wanted.
    pub(crate) mailer: Option<Mailer>,
    pub(crate) member_rules: MemberRules,
    /// True if `MIRROR_APPLY=true`.
    pub(crate) may_write: bool,
    /// The cache, if Redis is configured.
    pub(crate) cache: Option<MemberCache>,
    /// Identifies this instance as the owner of its locks.
    pub(crate) instance_id: InstanceId,
    /// The addresses that Mailman may still be writing because of an earlier run.
    pub(crate) open_writes: Mutex<OpenWrites>,
    /// What the most recent run could not read of each list.
    pub(crate) unread: Mutex<HashMap<ListId, Unread>>,
}

/// The results of a run.
#[derive(Default)]
struct Outcome {
    lists: Vec<ListReport>,
    explanations: Vec<Explanation>,
    /// The records to prewarm the cache with.
    updates: Vec<MemberUpdate>,
    /// True if at least one record was read.
    has_read: bool,
    /// The lists that Mailman may still be changing.
    open: BTreeSet<ListId>,
    ledger: Option<LedgerReport>,
    /// True if the ledger was read and could not be written.
    has_lost_ledger: bool,
}

/// One run.
struct Run<'r> {
    dry_run: bool,
    /// When the time for work is over.
    cutoff: Instant,
    mailer: Option<&'r Mailer>,
    gatherer: Gatherer<'r>,
    open_writes: &'r Mutex<OpenWrites>,
    unread: &'r Mutex<HashMap<ListId, Unread>>,
}

impl Mirror {
    /// Does what the event asks for. `deadline` is the invocation's deadline.
    pub(crate) async fn handle(&self, event: &serde_json::Value, deadline: Instant) -> Result<Answer, NotStarted> {
        let started = Instant::now();
        let event = Event::parse(event)?;
        let parameters = self.parameters.get().await?;
        if event.probe {
            Ok(Answer::Probe(Box::new(self.probe(&parameters, started, deadline).await)))
        } else {
            event.check(&parameters.mappings)?;
            Ok(Answer::Run(self.run(&event, &parameters, started, deadline).await))
        }
    }

    /// Probes both upstreams.
    async fn probe(&self, parameters: &Arc<Parameters>, started: Instant, deadline: Instant) -> ProbeReport {
        let cutoff = probe::cutoff(started, deadline.checked_sub(DEADLINE_RESERVE).unwrap_or(started));
        let caller = Caller::new(&self.novi, &self.parameters, Arc::clone(parameters), self.call_limits(), cutoff);
        let mailman = Mailman::new(&self.http, self.mailman, &self.parameters, Arc::clone(parameters), cutoff);
        probe::probe(started, &self.novi, caller, self.read_options.bulk, &self.member_rules, &mailman, parameters)
            .await
    }

    fn call_limits(&self) -> CallLimits<'_> {
        CallLimits { own: &self.rate_limiter, shared: self.cache.as_ref() }
    }

    /// Runs once.
    async fn run(&self, event: &Event, parameters: &Arc<Parameters>, started: Instant, deadline: Instant) -> Report {
        let dry_run = event.dry_run || !self.may_write;
        if dry_run && !event.dry_run {
            tracing::info!("MIRROR_APPLY is not true; running as a dry run");
        }

        let cutoff = deadline.checked_sub(DEADLINE_RESERVE).unwrap_or(started);
        let read_options =
            ReadOptions { collect_for_cache: self.read_options.collect_for_cache && !dry_run, ..self.read_options };
        let mappings = &parameters.mappings;
        let gatherer = Gatherer {
            event,
            mappings,
            reader: Reader::new(
                &self.novi,
                &self.parameters,
                Arc::clone(parameters),
                self.call_limits(),
                read_options,
                &self.member_rules,
                reading_cutoff(started, cutoff),
            ),
            mailman: Mailman::new(&self.http, self.mailman, &self.parameters, Arc::clone(parameters), cutoff),
            novi_rates: self.novi_rates,
            period: self.period,
            now: unix_now(),
        };
        let run = Run {
            dry_run,
            cutoff,
            // What a caller asks for by hand is no news.
            mailer: self.mailer.as_ref().filter(|_| !event.dry_run),
            gatherer,
            open_writes: &self.open_writes,
            unread: &self.unread,
        };
        let targets: Vec<&Target> = mappings.targets.iter().filter(|target| event.includes(&target.list)).collect();
        let invalid = mappings.invalid.iter().filter(|mapping| match &mapping.list {
            Some(list) => event.includes(list),
            None => event.lists.is_none(),
        });
        let mut lists: Vec<ListReport> = invalid.map(ListReport::invalid).collect();
        // Only the ledger knows who left by themselves.
        let (targets, without_ledger): (Vec<&Target>, Vec<&Target>) =
            targets.into_iter().partition(|target| target.resubscribes || self.ledger.is_some());
        lists.extend(without_ledger.iter().map(|target| ListReport::needs_ledger(&target.list)));
        if mappings.lists.is_empty() && lists.is_empty() {
            lists.push(ListReport::without_mappings());
        }

        // Dry runs don't take locks.
        let cache = self.cache.as_ref().filter(|_| !dry_run);
        let seconds = deadline.saturating_duration_since(started).as_secs() + 1;
        let locks = Locks::lock(cache, parameters.novi.digest(), &self.instance_id, &targets, seconds, cutoff).await;
        let cache_is_down = locks.any_undetermined();
        let (locked, unlocked): (Vec<&Target>, Vec<&Target>) =
            targets.into_iter().partition(|target| locks.is_taken(&target.list));
        lists.extend(locked.iter().map(|target| ListReport::locked(&target.list)));
        let keys = parameters.ledger_keys.as_ref();
        let time_left = deadline.saturating_duration_since(Instant::now());
        let opened = Ledger::open(self.ledger.as_ref(), keys, time_left, dry_run).await;
        let is_ledger_unavailable = opened.as_ref().is_ok_and(Ledger::is_unavailable);
        let outcome = AssertUnwindSafe(run.sync_with(opened, &unlocked, &lists)).catch_unwind().await;
        let all = || unlocked.iter().map(|target| target.list.clone()).collect();
        let open = outcome.as_ref().map_or_else(|_| all(), |outcome| outcome.open.clone());
        locks.release(&open, cutoff + DEADLINE_RESERVE / 2).await;
        let mut outcome = outcome.unwrap_or_else(|panic| resume_unwind(panic));
        lists.append(&mut outcome.lists);
        // Last, so that a Mailman that is down costs no time for this.
        let mailman_version = if run.gatherer.mailman.has_responded() {
            run.gatherer.mailman.version().await.ok().flatten()
        } else {
            None
        };
        if let Some(version) = mailman_version.filter(|version| *version < OLDEST_VERSION) {
            lists.iter_mut().for_each(|list| list.add_old_version(version));
        }

        if let Some(cache) = cache.filter(|_| !outcome.updates.is_empty()) {
            let count = outcome.updates.len();
            let time_left = cutoff.saturating_duration_since(Instant::now());
            let entries = cache.prewarm(outcome.updates, &parameters.novi, time_left).await;
            if entries < count {
                tracing::warn!(entries, total = count, "cache prewarm incomplete");
            } else {
                tracing::info!(entries, "cache prewarmed");
            }
        }
        let count = |status| lists.iter().filter(|list| list.status == status).count() as u64;
        if let Some(calls) = run.gatherer.reader.caller.calls_today() {
            metrics::emit(&[Metric::Count("NoviCallsToday", calls)]);
        }
        metrics::emit(&[
            Metric::Count("ListsOk", count(Status::Ok)),
            Metric::Count("ListsPartial", count(Status::Partial)),
            Metric::Count("ListsBlocked", count(Status::Blocked)),
            Metric::Count("ListsFailed", count(Status::Failed)),
            Metric::Count("ListsUnfinished", count(Status::Unfinished)),
            Metric::Count("ListsHeld", lists.iter().filter(|list| list.is_held_or_in_doubt).count() as u64),
            Metric::Count("Withheld", lists.iter().map(|list| list.withheld as u64).sum()),
            Metric::Count("NoviCalls", run.gatherer.reader.caller.calls()),
            Metric::Count("NoviRateLimited", run.gatherer.reader.caller.rate_limited()),
            Metric::Count("BudgetExhausted", u64::from(run.gatherer.reader.caller.is_exhausted())),
            Metric::Count("NoviRefused", u64::from(run.gatherer.reader.caller.access_denied().is_some())),
            Metric::Count("NoviMismatch", run.gatherer.reader.caller.mismatches()),
            Metric::Count("MailmanCalls", run.gatherer.mailman.calls()),
            Metric::Count("CacheDown", u64::from(cache_is_down)),
        ]);
        if self.ledger.is_some() {
            let ledger = outcome.ledger.as_ref();
            metrics::emit(&[
                Metric::Count("LedgerUnavailable", u64::from(is_ledger_unavailable || outcome.has_lost_ledger)),
                Metric::Count("LedgerPeople", ledger.map_or(0, |ledger| ledger.people as u64)),
                Metric::Count("PassSeconds", ledger.map_or(0, |ledger| ledger.pass_seconds)),
                Metric::Count("OldestRecordSeconds", ledger.and_then(|ledger| ledger.oldest_seconds).unwrap_or(0)),
            ]);
        }
        Report {
            status: lists.iter().map(|list| list.status).max().unwrap_or_default(),
            dry_run,
            has_progress: outcome.has_read || lists.iter().any(ListReport::has_changes),
            lists,
            novi_calls: run.gatherer.reader.caller.calls(),
            mailman_calls: run.gatherer.mailman.calls(),
            mailman_version,
            ledger: outcome.ledger,
            seconds: (started.elapsed().as_secs_f64() * 1e3).round() / 1e3,
            explain: outcome.explanations,
        }
    }
}

/// Returns the end of the time for reading Novi. A fifth of the run is left for Mailman, but at least enough for a bulk
/// removal, if the run isn't much shorter than that.
fn reading_cutoff(started: Instant, cutoff: Instant) -> Instant {
    let total = cutoff.saturating_duration_since(started);
    let reserve = (total / 5).clamp(Duration::from_secs(15), Duration::from_secs(120)).min(total * 3 / 4);
    cutoff.checked_sub(reserve).unwrap_or(started)
}

impl Run<'_> {
    /// Syncs all lists, with the ledger if there is one, and mails what is due. `others` are the lists that are already
    /// reported.
    async fn sync_with(
        &self,
        ledger: Result<Ledger<'_>, Claimed>,
        targets: &[&Target],
        others: &[ListReport],
    ) -> Outcome {
        let Ok(mut ledger) = ledger else {
            let lists = targets.iter().map(|target| ListReport::claimed(&target.list)).collect();
            return Outcome { lists, ..Outcome::default() };
        };
        let mut outcome = self.sync(targets, &mut ledger).await;
        if let Some(ledger) = ledger.opened().filter(|_| self.gatherer.event.lists.is_none()) {
            outcome.lists.extend(unmapped(&mut ledger.document, self.gatherer.mappings, self.gatherer.now));
        }
        let has_mailed = self.mail(others.iter().chain(&outcome.lists), &mut ledger).await;
        if let Ledger::Open(ledger) = ledger {
            let closing = ledger.close(self.gatherer.reader.caller.calls(), has_mailed);
            // Even if S3 hangs, the locks are released and the report is returned before the deadline.
            let closed = timeout_at(self.cutoff + DEADLINE_RESERVE * 4 / 5, closing).await;
            outcome.has_lost_ledger |= !closed.unwrap_or(self.dry_run);
        }
        outcome
    }

    /// Mails what is due. Returns true if a mail was sent. This is before the ledger is written for the last time, so that
    /// it remembers the mail.
    async fn mail(&self, lists: impl Iterator<Item = &ListReport>, ledger: &mut Ledger<'_>) -> bool {
        let Some(mailer) = self.mailer else { return false };
        let lists: Vec<ListSummary> = lists.map(ListReport::summary).collect();
        let finished = Finished {
            lists: &lists,
            is_whole: self.gatherer.event.lists.is_none(),
            is_dry: self.dry_run,
            knows_history: !ledger.is_unavailable(),
            now: self.gatherer.now,
            // A run that used all its time gets some of the reserve, and leaves the rest for the ledger and the locks.
            deadline: self.cutoff + DEADLINE_RESERVE / 5,
        };
        // Otherwise each dry run would send the mail of the week.
        if let Some(ledger) = ledger.opened().filter(|_| self.dry_run)
            && mailer.is_due(&finished, &ledger.document.mails)
            && !ledger.can_note_mail().await
        {
            return false;
        }
        mailer.finish(&finished, ledger.opened().map(|ledger| &mut ledger.document.mails)).await
    }

    /// Reads, plans and judges all lists, and then applies the sound plans.
    async fn sync(&self, targets: &[&Target], ledger: &mut Ledger<'_>) -> Outcome {
        let mut outcome = Outcome::default();
        let Gathered { people, rosters, missing_lists, updates, ended } =
            match self.gatherer.gather(targets, ledger.opened()).await {
                Err(error) => {
                    let report =
                        |target: &&Target| ListReport::without_plan(Some(&target.list), error.status(), error.reason());
                    outcome.lists = targets.iter().map(report).collect();
                    return outcome;
                }
                Ok(gathered) => gathered,
            };
        outcome.updates = updates;
        outcome.has_read = people.directory.values().any(|status| !matches!(status, MemberStatus::Unknown));
        let mut plans = self.plan(targets, &people, rosters, &missing_lists, ledger);
        let planned: Vec<_> =
            plans.iter().map(|result| result.as_ref().ok().map(|(roster, plan)| (roster, plan))).collect();
        outcome.explanations = explain(self.gatherer.event, targets, &people, &planned, self.gatherer.now);
        let shown = if self.gatherer.event.show { show(&planned, &people) } else { Vec::new() };
        let pass_began = people.pass_began;
        if let Some(ledger) = ledger.opened() {
            let preferences = self.preferences(&plans).await;
            outcome.ledger = Some(self.note_plans(people, &plans, preferences, &mut ledger.document));
            if !ledger.save().await {
                outcome.has_lost_ledger = true;
                plans.iter_mut().flatten().for_each(|(_, plan)| plan.lose_ledger());
            }
        }
        let mut shown = shown.into_iter();
        let mut reports: Vec<Option<ListReport>> = Vec::new();
        reports.resize_with(targets.len(), || None);
        let mut order: Vec<usize> = (0..targets.len()).collect();
        // If time is always short, each list gets its turn.
        fastrand::shuffle(&mut order);
        for index in order {
            let (report, result) = match &plans[index] {
                Err(error) => (ListReport::from_error(&targets[index].list, *error), None),
                Ok((_, plan)) if self.dry_run => (self.report_dry_run(plan).await, None),
                Ok((_, plan)) if plan.is_empty() => (ListReport::planned(plan), Some(ListResult::default())),
                Ok((_, plan)) => {
                    let applied = apply(&self.gatherer.mailman, plan, self.open_writes).await;
                    outcome.open.extend(applied.has_open_writes().then(|| plan.list.clone()));
                    (ListReport::applied(plan, &applied), Some(ListResult::from(&applied)))
                }
            };
            if let (Some(ledger), Some(result), Ok((roster, plan))) = (ledger.opened(), result, &plans[index])
                && let Some(entry) = ledger.document.lists.get_mut(&plan.list)
            {
                for (address, preferences) in entry.to_restore(plan, roster) {
                    if restore(&self.gatherer.mailman, &plan.list, &address, &preferences).await {
                        entry.restored(&address);
                    }
                }
                entry.changed(targets[index], roster, plan, pass_began, &result, self.gatherer.now);
            }
            reports[index] = Some(report);
        }
        for mut report in reports.into_iter().flatten() {
            report.shown = shown.next().flatten();
            ended.into_iter().for_each(|end| report.reading_ended(end));
            outcome.lists.push(report);
        }
        outcome
    }

    /// Reads what people had chosen for the memberships that are about to be removed.
    async fn preferences(
        &self,
        plans: &[Result<(Roster, Plan), MailmanError>],
    ) -> HashMap<ListId, BTreeMap<Address, Preferences>> {
        let mut preferences = HashMap::new();
        for (_, plan) in plans.iter().flatten().filter(|_| !self.dry_run) {
            preferences.insert(plan.list.clone(), chosen(&self.gatherer.mailman, &plan.list, plan.unsubscribe()).await);
        }
        preferences
    }

    /// Notes in the ledger what was read, and what is about to be written.
    fn note_plans(
        &self,
        people: People,
        plans: &[Result<(Roster, Plan), MailmanError>],
        mut preferences: HashMap<ListId, BTreeMap<Address, Preferences>>,
        document: &mut Document,
    ) -> LedgerReport {
        // They may come back while the pass still takes them for subscribed.
        let gone: Vec<Address> = plans
            .iter()
            .flatten()
            .filter_map(|(roster, plan)| Some((roster, document.lists.get(&plan.list)?)))
            .flat_map(|(roster, entry)| entry.gone_in_pass(roster, people.pass_began).cloned())
            .collect();
        let rosters: Option<HashSet<&Address>> = plans
            .iter()
            .map(|result| result.as_ref().ok().map(|(roster, _)| roster.iter()))
            .collect::<Option<Vec<_>>>()
            .map(|rosters| rosters.into_iter().flatten().chain(&gone).collect());
        for (_, plan) in plans.iter().flatten() {
            if let Some(entry) = document.lists.get_mut(&plan.list) {
                entry.about_to_change(plan, preferences.remove(&plan.list).unwrap_or_default(), self.gatherer.now);
            }
        }
        // What the ledger knows of the list of an invalid mapping isn't forgotten.
        let is_partial =
            plans.len() < self.gatherer.mappings.targets.len() || !self.gatherer.mappings.invalid.is_empty();
        remember(document, people, rosters.as_ref(), is_partial, self.gatherer.now)
    }

    /// Reports what would be done, and whether the owners of the list would be mailed about it.
    async fn report_dry_run(&self, plan: &Plan) -> ListReport {
        let mut report = ListReport::planned(plan);
        if !plan.subscribe().is_empty()
            && let Ok(settings) = self.gatherer.mailman.list_settings(&plan.list).await
            && settings.admin_notify_mchanges == Some(true)
        {
            report.add_owner_notices();
        }
        report
    }

    /// Plans every list with a readable roster.
    fn plan(
        &self,
        targets: &[&Target],
        people: &People,
        rosters: Vec<RosterResult>,
        missing_lists: &BTreeSet<ListId>,
        ledger: &mut Ledger<'_>,
    ) -> Vec<Result<(Roster, Plan), MailmanError>> {
        let now = self.gatherer.now;
        let make = |(target, roster): (&&Target, RosterResult)| {
            let roster = roster.map_err(|(error, _)| error)?;
            let force = self.gatherer.event.force.get(&target.list).copied();
            let entry = ledger.opened().map(|ledger| ledger.document.lists.entry(target.list.clone()).or_default());
            let plan = match entry {
                Some(entry) => {
                    let force = entry.force(force, target, people, now);
                    let history = entry.history(target, people.pass_began, now);
                    Plan::new(target, people, &roster, missing_lists, &history, force)
                }
                None => {
                    let force = self.limit_force(force, target, people);
                    let history = History { is_unavailable: ledger.is_unavailable(), ..History::default() };
                    Plan::new(target, people, &roster, missing_lists, &history, force)
                }
            };
            tracing::info!(%plan, "list planned");
            Ok((roster, plan))
        };
        targets.iter().zip(rosters).map(make).collect()
    }

    /// Limits a force to what this instance's last run could not read either.
    fn limit_force(&self, force: Option<Force>, target: &Target, people: &People) -> Option<Force> {
        let unread = Unread::new(target, people);
        let mut unread_before = lock(self.unread);
        let limited = force.map(|force| unread.limit(force, unread_before.get(&target.list)));
        unread_before.insert(target.list.clone(), unread);
        limited
    }
}
