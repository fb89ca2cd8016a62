//! One run: reads everything, plans every list, judges every plan, and only then applies the sound ones.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, stream};
use serde::Serialize;
use shared::cache::{MemberCache, MemberUpdate};
use shared::member::MemberRules;
use shared::metrics::{self, Metric};
use shared::novi::{self, NoviError};
use shared::parameters::{ParameterStore, Unavailable};
use tokio::time::Instant;
use uuid::Uuid;

use crate::apply::apply;
use crate::directory::{Group, People};
use crate::event::{Event, InvalidEvent};
use crate::explain::explain;
use crate::lock::{InstanceId, Locks};
use crate::mailman::{Mailman, MailmanError, RetryBudget, Timeouts};
use crate::mapping::Target;
use crate::parameters::Parameters;
use crate::plan::{Plan, Verdict};
use crate::probe::{self, ProbeReport};
use crate::read::{Caller, NoviRateLimiter, OutOfTime, PeopleRecords, ReadOptions, Reader};
use crate::report::{Explanation, ListReport, Report, Status};
use crate::roster::Roster;

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
    pub(crate) member_rules: MemberRules,
    /// True if `MIRROR_APPLY=true`.
    pub(crate) may_write: bool,
    /// The cache, if Redis is configured.
    pub(crate) cache: Option<MemberCache>,
    /// Identifies this instance as the owner of its locks.
    pub(crate) instance_id: InstanceId,
}

/// A list's roster, or the error that prevented reading it and the time of that error.
type RosterResult = Result<Roster, (MailmanError, Instant)>;

/// The reason why Novi could not be read. Nothing may be concluded from a partial read, so no list is changed.
enum ReadError {
    OutOfTime(OutOfTime),
    /// Novi rejected every call, for this reason.
    AccessDenied(NoviError),
}

impl From<OutOfTime> for ReadError {
    fn from(out_of_time: OutOfTime) -> Self {
        Self::OutOfTime(out_of_time)
    }
}

impl ReadError {
    fn status(&self) -> Status {
        match self {
            Self::OutOfTime(_) => Status::Unfinished,
            Self::AccessDenied(_) => Status::Failed,
        }
    }

    /// Returns the sentences for the report.
    fn reason(&self) -> String {
        match self {
            Self::OutOfTime(error) => format!(
                "{error}, so the list is left unchanged. The next run retries. If this repeats, see Limits in \
                 docs/operations.md."
            ),
            Self::AccessDenied(error) => {
                let remedy = match error {
                    NoviError::Blocked => "Ask Novi to allow this address.",
                    _ => "Correct novi_idaa_api_key, or ask Novi for the key's permissions.",
                };
                format!("Reading Novi failed: {error}. The list is left unchanged. {remedy}")
            }
        }
    }
}

/// The results of a run.
#[derive(Default)]
struct Outcome {
    lists: Vec<ListReport>,
    explanations: Vec<Explanation>,
    /// The records to prewarm the cache with.
    updates: Vec<MemberUpdate>,
}

/// One run.
struct Run<'r> {
    event: &'r Event,
    dry_run: bool,
    reader: Reader<'r>,
    mailman: Mailman<'r>,
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
        let caller = Caller::new(&self.novi, &self.parameters, Arc::clone(parameters), &self.rate_limiter, cutoff);
        let mailman = Mailman::new(&self.http, self.mailman, &self.parameters, Arc::clone(parameters), cutoff);
        probe::probe(started, &self.novi, caller, self.read_options.bulk, &self.member_rules, &mailman, parameters)
            .await
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
        let run = Run {
            event,
            dry_run,
            reader: Reader::new(
                &self.novi,
                &self.parameters,
                Arc::clone(parameters),
                &self.rate_limiter,
                read_options,
                &self.member_rules,
                cutoff,
            ),
            mailman: Mailman::new(&self.http, self.mailman, &self.parameters, Arc::clone(parameters), cutoff),
        };
        let mappings = &parameters.mappings;
        let targets: Vec<&Target> = mappings.targets.iter().filter(|target| event.includes(&target.list)).collect();
        let invalid = mappings.invalid.iter().filter(|mapping| match &mapping.list {
            Some(list) => event.includes(list),
            None => event.lists.is_none(),
        });
        let mut lists: Vec<ListReport> = invalid.map(ListReport::invalid).collect();

        // Dry runs don't take locks.
        let cache = self.cache.as_ref().filter(|_| !dry_run);
        let seconds = deadline.saturating_duration_since(started).as_secs() + 1;
        let locks = Locks::lock(cache, &self.instance_id, &targets, seconds).await;
        let cache_is_down = locks.any_undetermined();
        let (locked, unlocked): (Vec<&Target>, Vec<&Target>) =
            targets.into_iter().partition(|target| locks.is_taken(&target.list));
        lists.extend(locked.iter().map(|target| ListReport::locked(&target.list)));
        let outcome = AssertUnwindSafe(run.sync(&unlocked)).catch_unwind().await;
        locks.release().await;
        let mut outcome = outcome.unwrap_or_else(|panic| resume_unwind(panic));
        lists.append(&mut outcome.lists);

        if let Some(cache) = cache.filter(|_| !outcome.updates.is_empty()) {
            let count = outcome.updates.len();
            let entries = cache.prewarm(outcome.updates, cutoff.saturating_duration_since(Instant::now())).await;
            if entries < count {
                tracing::warn!(entries, total = count, "cache prewarm incomplete");
            } else {
                tracing::info!(entries, "cache prewarmed");
            }
        }
        let count = |status| lists.iter().filter(|list| list.status == status).count() as u64;
        metrics::emit(&[
            Metric::Count("ListsOk", count(Status::Ok)),
            Metric::Count("ListsPartial", count(Status::Partial)),
            Metric::Count("ListsBlocked", count(Status::Blocked)),
            Metric::Count("ListsFailed", count(Status::Failed) + count(Status::Unfinished)),
            Metric::Count("NoviCalls", run.reader.caller.calls()),
            Metric::Count("NoviRateLimited", run.reader.caller.rate_limited()),
            Metric::Count("NoviRefused", u64::from(run.reader.caller.access_denied().is_some())),
            Metric::Count("NoviMismatch", run.reader.caller.mismatches()),
            Metric::Count("MailmanCalls", run.mailman.calls()),
            Metric::Count("CacheDown", u64::from(cache_is_down)),
        ]);
        Report {
            status: lists.iter().map(|list| list.status).max().unwrap_or_default(),
            dry_run,
            lists,
            novi_calls: run.reader.caller.calls(),
            mailman_calls: run.mailman.calls(),
            seconds: (started.elapsed().as_secs_f64() * 1e3).round() / 1e3,
            explain: outcome.explanations,
        }
    }
}

impl Run<'_> {
    /// Reads, plans and judges all lists, and then applies the sound plans.
    async fn sync(&self, targets: &[&Target]) -> Outcome {
        let mut outcome = Outcome::default();
        // Reads Novi and Mailman in parallel, so that only the slower one takes time. A roster that is older than the
        // records causes no wrong removal, because addresses that were added since aren't considered.
        let novi = async { self.read(targets).await.map(|read| (read, Instant::now())) };
        let read = tokio::try_join!(novi, self.rosters(targets).map(Ok));
        let (((people, updates), read_at), mut rosters) = match read {
            Err(error) => {
                let report =
                    |target: &&Target| ListReport::without_plan(Some(&target.list), error.status(), error.reason());
                outcome.lists = targets.iter().map(report).collect();
                return outcome;
            }
            Ok(read) => read,
        };
        outcome.updates = updates;
        // Mailman may have recovered while Novi was being read.
        for (target, roster) in targets.iter().zip(&mut rosters) {
            if let Err((error, failed_at)) = roster
                && error.write_outcome().is_some()
                && *failed_at < read_at
            {
                *roster = self.roster(target).await;
            }
        }
        let plans = self.plan(targets, &people, rosters);
        let planned: Vec<_> =
            plans.iter().map(|result| result.as_ref().ok().map(|(roster, plan)| (roster, plan))).collect();
        outcome.explanations = explain(self.event, targets, &people, &planned);
        for (target, result) in targets.iter().zip(plans) {
            outcome.lists.push(match result {
                Err(error) => ListReport::from_error(&target.list, error),
                Ok((_, plan)) if self.dry_run || plan.is_empty() => ListReport::planned(&plan),
                Ok((_, plan)) => match plan.verdict {
                    Verdict::Blocked(_) => ListReport::planned(&plan),
                    Verdict::Sound | Verdict::Forced(_) => {
                        ListReport::applied(&plan, &apply(&self.mailman, &plan).await)
                    }
                },
            });
        }
        outcome
    }

    /// Reads the groups of all lists, and then each of their members once.
    async fn read(&self, targets: &[&Target]) -> Result<(People, Vec<MemberUpdate>), ReadError> {
        let ids: HashSet<Uuid> = targets.iter().flat_map(|target| target.groups.iter().copied()).collect();
        let groups: HashMap<Uuid, Group> = self.reader.groups(ids).await?.into_iter().collect();
        let mut members = HashSet::with_capacity(groups.values().map(|group| group.members.len()).sum());
        members.extend(groups.values().flat_map(|group| group.members.iter().copied()));
        tracing::info!(groups = groups.len(), members = members.len(), "read groups");
        let PeopleRecords { directory, updates } = self.reader.people(members).await?;
        tracing::info!(members = directory.len(), calls = self.reader.caller.calls(), "read members");
        match self.reader.caller.access_denied() {
            Some(error) => Err(ReadError::AccessDenied(error)),
            None => Ok((People { groups, directory }, updates)),
        }
    }

    /// Reads the rosters, in the order of the targets.
    async fn rosters(&self, targets: &[&Target]) -> Vec<RosterResult> {
        /// Mailman's REST API has two workers by default.
        const CONCURRENCY: usize = 2;
        stream::iter(targets).map(|target| self.roster(target)).buffered(CONCURRENCY).collect().await
    }

    async fn roster(&self, target: &Target) -> RosterResult {
        RetryBudget::new().roster(&self.mailman, &target.list).await.map_err(|error| (error, Instant::now()))
    }

    /// Plans every list with a readable roster.
    fn plan(
        &self,
        targets: &[&Target],
        people: &People,
        rosters: Vec<RosterResult>,
    ) -> Vec<Result<(Roster, Plan), MailmanError>> {
        let make = |(target, roster): (&&Target, RosterResult)| {
            let roster = roster.map_err(|(error, _)| error)?;
            let forced = self.event.force.contains(&target.list);
            let plan = Plan::new(target, &people.groups, &people.directory, &roster, forced);
            tracing::info!(%plan, "list planned");
            Ok((roster, plan))
        };
        targets.iter().zip(rosters).map(make).collect()
    }
}
