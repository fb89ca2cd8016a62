//! One run: read everything, plan every list, judge every plan, and only then
//! apply those that are sound.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, stream};
use shared::cache::{MemberCache, MemberUpdate};
use shared::metrics::{self, Metric};
use shared::novi;
use shared::parameters::{ParameterStore, Unavailable};
use tokio::time::Instant;
use uuid::Uuid;

use crate::apply::apply;
use crate::event::{Event, InvalidEvent};
use crate::explain::explain;
use crate::lock::{Instance, Locks};
use crate::mailman::{Mailman, Times, Trouble};
use crate::mapping::Target;
use crate::parameters::Parameters;
use crate::plan::{Directory, Group, Plan, Verdict};
use crate::read::{OutOfTime, Pace, Reader, Reading, Ways};
use crate::report::{Explanation, ListReport, Report, Status};
use crate::roster::Roster;

/// No work starts that would not end this long before the invocation's deadline.
const RESERVE: Duration = Duration::from_secs(10);

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
    pub(crate) mailman: Times,
    pub(crate) pace: Mutex<Pace>,
    pub(crate) ways: Ways,
    /// `MIRROR_APPLY=true`.
    pub(crate) may_write: bool,
    /// Where there is a Redis.
    pub(crate) cache: Option<MemberCache>,
    /// Which one this is, for the locks.
    pub(crate) instance: Instance,
}

/// What was read of the people behind the lists.
pub(crate) struct People {
    pub(crate) groups: HashMap<Uuid, Group>,
    pub(crate) directory: Directory,
}

/// A list's roster, or what kept it from being read, and when that was.
type ReadRoster = Result<Roster, (Trouble, Instant)>;

/// A list's roster and plan, or what kept the roster from being read.
pub(crate) type Made = Result<(Roster, Plan), Trouble>;

/// What kept Novi from being read: nothing may be concluded, and nothing is done.
enum NotRead {
    OutOfTime(OutOfTime),
    /// Novi lets us read nothing at all, for this reason.
    ShutOut(&'static str),
}

impl From<OutOfTime> for NotRead {
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
    facts: Vec<MemberUpdate>,
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

        let cutoff = deadline.checked_sub(RESERVE).unwrap_or(started);
        let ways = Ways { gather: self.ways.gather.filter(|_| !dry_run), ..self.ways };
        let run = Run {
            event: &event,
            dry_run,
            reader: Reader::new(&self.novi, &self.parameters, Arc::clone(&parameters), &self.pace, ways, cutoff),
            mailman: Mailman::new(&self.http, self.mailman, &self.parameters, Arc::clone(&parameters), cutoff),
        };
        let mappings = &parameters.mappings;
        let targets: Vec<&Target> = mappings.targets.iter().filter(|target| event.concerns(&target.list)).collect();
        let broken = mappings.broken.iter().filter(|broken| match &broken.list {
            Some(list) => event.concerns(list),
            None => event.lists.is_none(),
        });
        let mut lists: Vec<ListReport> = broken.map(ListReport::broken).collect();

        // Who writes nothing needs no lock, and holds up nobody.
        let cache = self.cache.as_ref().filter(|_| !dry_run);
        let seconds = deadline.saturating_duration_since(started).as_secs() + 1;
        let locks = Locks::lock(cache, &self.instance, &targets, seconds).await;
        let cache_is_down = locks.are_missing();
        let (taken, free): (Vec<&Target>, Vec<&Target>) =
            targets.into_iter().partition(|target| locks.is_taken(&target.list));
        lists.extend(taken.iter().map(|target| ListReport::locked(&target.list)));
        let outcome = AssertUnwindSafe(run.mirror(&free)).catch_unwind().await;
        locks.release().await;
        let mut outcome = outcome.unwrap_or_else(|panic| resume_unwind(panic));
        lists.append(&mut outcome.lists);

        if let Some(cache) = cache.filter(|_| !outcome.facts.is_empty()) {
            let count = outcome.facts.len();
            let entries = cache.prewarm(outcome.facts, cutoff.saturating_duration_since(Instant::now())).await;
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
            Metric::Count("NoviCalls", run.reader.calls()),
            Metric::Count("NoviRateLimited", run.reader.rate_limited()),
            Metric::Count("NoviRefused", u64::from(run.reader.shut_out().is_some())),
            Metric::Count("MailmanCalls", run.mailman.calls()),
            Metric::Count("CacheDown", u64::from(cache_is_down)),
        ]);
        Ok(Report {
            status: lists.iter().map(|list| list.status).max().unwrap_or_default(),
            dry_run,
            lists,
            novi_calls: run.reader.calls(),
            mailman_calls: run.mailman.calls(),
            seconds: (started.elapsed().as_secs_f64() * 1e3).round() / 1e3,
            explain: outcome.explanations,
        })
    }
}

impl Run<'_> {
    /// Reads, plans and judges all lists, and then applies what is sound.
    async fn mirror(&self, targets: &[&Target]) -> Outcome {
        let mut outcome = Outcome::default();
        let untouched = |status, reason: &str| {
            let untouched = |target: &&Target| ListReport::without_plan(Some(&target.list), status, reason.to_owned());
            targets.iter().map(untouched).collect()
        };
        // Two services that know nothing of each other: the slower one alone takes time. A roster that is older than
        // the records removes nobody wrongly: whoever came onto it since is not looked at.
        let reading = async { self.read(targets).await.map(|read| (read, Instant::now())) };
        let read = tokio::try_join!(reading, self.rosters(targets).map(Ok));
        let (((people, facts), read_at), mut rosters) = match read {
            Err(NotRead::OutOfTime(out)) => {
                outcome.lists = untouched(Status::Unfinished, &out.to_string());
                return outcome;
            }
            Err(NotRead::ShutOut(why)) => {
                outcome.lists = untouched(Status::Failed, &format!("nothing could be read: {why}"));
                return outcome;
            }
            Ok(read) => read,
        };
        outcome.facts = facts;
        // A Mailman that was away at the beginning may have been back for long.
        for (target, roster) in targets.iter().zip(&mut rosters) {
            if let Err((trouble, at)) = roster
                && trouble.passing().is_some()
                && *at < read_at
            {
                *roster = self.roster(target).await;
            }
        }
        let plans = self.plan(targets, &people, rosters);
        outcome.explanations = explain(self.event, targets, &people, &plans);
        for (target, made) in targets.iter().zip(plans) {
            outcome.lists.push(match made {
                Err(trouble) => ListReport::troubled(&target.list, trouble),
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
    async fn read(&self, targets: &[&Target]) -> Result<(People, Vec<MemberUpdate>), NotRead> {
        let ids: HashSet<Uuid> = targets.iter().flat_map(|target| target.groups.iter().copied()).collect();
        let groups: HashMap<Uuid, Group> = self.reader.groups(ids).await?.into_iter().collect();
        let mut members = HashSet::with_capacity(groups.values().map(|group| group.members.len()).sum());
        members.extend(groups.values().flat_map(|group| group.members.iter().copied()));
        tracing::info!(groups = groups.len(), people = members.len(), "groups read");
        let Reading { directory, facts } = self.reader.people(members).await?;
        tracing::info!(people = directory.len(), calls = self.reader.calls(), "people read");
        match self.reader.shut_out() {
            Some(why) => Err(NotRead::ShutOut(why)),
            None => Ok((People { groups, directory }, facts)),
        }
    }

    /// Reads the rosters, in the order of the targets.
    async fn rosters(&self, targets: &[&Target]) -> Vec<ReadRoster> {
        /// Mailman's REST API has two workers unless it is told otherwise.
        const SIDE_BY_SIDE: usize = 2;
        stream::iter(targets).map(|target| self.roster(target)).buffered(SIDE_BY_SIDE).collect().await
    }

    async fn roster(&self, target: &Target) -> ReadRoster {
        self.mailman.patient_roster(&target.list).await.map_err(|trouble| (trouble, Instant::now()))
    }

    /// Makes the plans.
    fn plan(&self, targets: &[&Target], people: &People, rosters: Vec<ReadRoster>) -> Vec<Made> {
        let make = |(target, roster): (&&Target, ReadRoster)| {
            let roster = roster.map_err(|(trouble, _)| trouble)?;
            let forced = self.event.force.contains(&target.list);
            let plan = Plan::make(target, &people.groups, &people.directory, &roster, forced);
            tracing::info!(%plan, "planned");
            Ok((roster, plan))
        };
        targets.iter().zip(rosters).map(make).collect()
    }
}
