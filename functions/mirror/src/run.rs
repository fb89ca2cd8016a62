//! One run: read everything, plan every list, judge every plan, and only then
//! apply those that are sound.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, stream};
use shared::cache::{MemberCache, MemberUpdate};
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
use crate::read::{NoviRateLimiter, OutOfTime, PeopleRecords, ReadOptions, Reader};
use crate::report::{Explanation, ListReport, Report, Status};
use crate::roster::Roster;

/// No work starts that would not end this long before the invocation's deadline.
const DEADLINE_RESERVE: Duration = Duration::from_secs(10);

/// What keeps a run from starting.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotStarted {
    #[error(transparent)]
    Event(#[from] InvalidEvent),
    #[error(transparent)]
    Parameters(#[from] Unavailable),
}

/// What runs need, made once.
pub(crate) struct Mirror {
    pub(crate) parameters: Arc<ParameterStore<Parameters>>,
    pub(crate) http: reqwest::Client,
    pub(crate) novi: novi::Client,
    /// How long Mailman is waited for.
    pub(crate) mailman: Timeouts,
    pub(crate) rate_limiter: Mutex<NoviRateLimiter>,
    pub(crate) read_options: ReadOptions,
    /// `MIRROR_APPLY=true`.
    pub(crate) may_write: bool,
    /// Where there is a Redis.
    pub(crate) cache: Option<MemberCache>,
    /// Which one this is, for the locks.
    pub(crate) instance_id: InstanceId,
}

/// A list's roster, or what kept it from being read, and when that was.
type RosterResult = Result<Roster, (MailmanError, Instant)>;

/// What kept Novi from being read: nothing may be concluded, and nothing is done.
enum ReadError {
    OutOfTime(OutOfTime),
    /// Novi lets us read nothing at all, for this reason.
    AccessDenied(NoviError),
}

impl From<OutOfTime> for ReadError {
    fn from(out: OutOfTime) -> Self {
        Self::OutOfTime(out)
    }
}

/// What came of a run.
#[derive(Default)]
struct Outcome {
    lists: Vec<ListReport>,
    explanations: Vec<Explanation>,
    /// What the cache is to take over.
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
    /// Runs once. `deadline` is the invocation's.
    pub(crate) async fn run(&self, event: &serde_json::Value, deadline: Instant) -> Result<Report, NotStarted> {
        let started = Instant::now();
        let event = Event::parse(event)?;
        let parameters = self.parameters.get().await?;
        event.check(&parameters.mappings)?;
        let dry_run = event.dry_run || !self.may_write;
        if dry_run && !event.dry_run {
            tracing::info!("MIRROR_APPLY is not true: this is a dry run");
        }

        let cutoff = deadline.checked_sub(DEADLINE_RESERVE).unwrap_or(started);
        let read_options = ReadOptions {
            collect_for_cache: self.read_options.collect_for_cache.filter(|_| !dry_run),
            ..self.read_options
        };
        let run = Run {
            event: &event,
            dry_run,
            reader: Reader::new(
                &self.novi,
                &self.parameters,
                Arc::clone(&parameters),
                &self.rate_limiter,
                read_options,
                cutoff,
            ),
            mailman: Mailman::new(&self.http, self.mailman, &self.parameters, Arc::clone(&parameters), cutoff),
        };
        let mappings = &parameters.mappings;
        let targets: Vec<&Target> = mappings.targets.iter().filter(|target| event.includes(&target.list)).collect();
        let invalid = mappings.invalid.iter().filter(|invalid| match &invalid.list {
            Some(list) => event.includes(list),
            None => event.lists.is_none(),
        });
        let mut lists: Vec<ListReport> = invalid.map(ListReport::invalid).collect();

        // Who writes nothing needs no lock, and holds up nobody.
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
                tracing::warn!(entries, of = count, "the cache did not take everybody over");
            } else {
                tracing::info!(entries, "the cache is warm");
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
            Metric::Count("MailmanCalls", run.mailman.calls()),
            Metric::Count("CacheDown", u64::from(cache_is_down)),
        ]);
        Ok(Report {
            status: lists.iter().map(|list| list.status).max().unwrap_or_default(),
            dry_run,
            lists,
            novi_calls: run.reader.caller.calls(),
            mailman_calls: run.mailman.calls(),
            seconds: (started.elapsed().as_secs_f64() * 1e3).round() / 1e3,
            explain: outcome.explanations,
        })
    }
}

impl Run<'_> {
    /// Reads, plans and judges all lists, and then applies what is sound.
    async fn sync(&self, targets: &[&Target]) -> Outcome {
        let mut outcome = Outcome::default();
        let unchanged = |status, reason: &str| {
            let unchanged = |target: &&Target| ListReport::without_plan(Some(&target.list), status, reason.to_owned());
            targets.iter().map(unchanged).collect()
        };
        // Two services that know nothing of each other: the slower one alone takes time. A roster that is older than
        // the records removes nobody wrongly: whoever came onto it since is not looked at.
        let reading = async { self.read(targets).await.map(|read| (read, Instant::now())) };
        let read = tokio::try_join!(reading, self.rosters(targets).map(Ok));
        let (((people, updates), read_at), mut rosters) = match read {
            Err(ReadError::OutOfTime(out)) => {
                outcome.lists = unchanged(Status::Unfinished, &out.to_string());
                return outcome;
            }
            Err(ReadError::AccessDenied(error)) => {
                outcome.lists = unchanged(Status::Failed, &format!("nothing could be read: {error}"));
                return outcome;
            }
            Ok(read) => read,
        };
        outcome.updates = updates;
        // A Mailman that was away at the beginning may have been back for long.
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

    /// Reads the groups of all lists, then everybody in them, each once.
    async fn read(&self, targets: &[&Target]) -> Result<(People, Vec<MemberUpdate>), ReadError> {
        let ids: HashSet<Uuid> = targets.iter().flat_map(|target| target.groups.iter().copied()).collect();
        let groups: HashMap<Uuid, Group> = self.reader.groups(ids).await?.into_iter().collect();
        let mut members = HashSet::with_capacity(groups.values().map(|group| group.members.len()).sum());
        members.extend(groups.values().flat_map(|group| group.members.iter().copied()));
        tracing::info!(groups = groups.len(), people = members.len(), "groups read");
        let PeopleRecords { directory, updates } = self.reader.people(members).await?;
        tracing::info!(people = directory.len(), calls = self.reader.caller.calls(), "people read");
        match self.reader.caller.access_denied() {
            Some(error) => Err(ReadError::AccessDenied(error)),
            None => Ok((People { groups, directory }, updates)),
        }
    }

    /// Reads the rosters, in the order of the targets.
    async fn rosters(&self, targets: &[&Target]) -> Vec<RosterResult> {
        /// Mailman's REST API has two workers unless it is told otherwise.
        const CONCURRENCY: usize = 2;
        stream::iter(targets).map(|target| self.roster(target)).buffered(CONCURRENCY).collect().await
    }

    async fn roster(&self, target: &Target) -> RosterResult {
        RetryBudget::new().roster(&self.mailman, &target.list).await.map_err(|error| (error, Instant::now()))
    }

    /// Makes the plans.
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
            tracing::info!(%plan, "planned");
            Ok((roster, plan))
        };
        targets.iter().zip(rosters).map(make).collect()
    }
}
