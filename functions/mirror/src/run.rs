//! One run: read everything, plan every list, judge every plan, and only then
//! apply those that are sound.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shared::novi;
use shared::parameters::{ParameterStore, Unavailable};
use tokio::time::Instant;
use uuid::Uuid;

use crate::address::Address;
use crate::apply::apply;
use crate::event::{Event, InvalidEvent};
use crate::explain::explain;
use crate::mailman::{Mailman, Trouble};
use crate::mapping::{ListId, Target};
use crate::parameters::Parameters;
use crate::plan::{Directory, Group, Plan, Verdict};
use crate::read::{OutOfTime, Pace, Reader};
use crate::report::{ListReport, Report, Status};

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
    pub(crate) pace: Mutex<Pace>,
    /// `MIRROR_APPLY=true`.
    pub(crate) may_write: bool,
}

/// What was read of the people behind the lists.
pub(crate) struct People {
    pub(crate) groups: HashMap<Uuid, Group>,
    pub(crate) directory: Directory,
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
        let reader = Reader::new(&self.novi, &self.parameters, Arc::clone(&parameters), &self.pace, cutoff);
        let mailman = Mailman::new(&self.http, &self.parameters, Arc::clone(&parameters), cutoff);
        let mappings = &parameters.mappings;
        let targets: Vec<&Target> = mappings.targets.iter().filter(|target| event.concerns(&target.list)).collect();
        let broken = mappings.broken.iter().filter(|broken| match &broken.list {
            Some(list) => event.concerns(list),
            None => event.lists.is_none(),
        });
        let mut lists: Vec<ListReport> = broken.map(ListReport::broken).collect();

        let people = match read_people(&reader, &targets).await {
            Err(OutOfTime) => Err((Status::Unfinished, OutOfTime.to_string())),
            Ok(people) => match reader.shut_out() {
                Some(why) => Err((Status::Failed, format!("nothing could be read: {why}"))),
                None => Ok(people),
            },
        };
        let mut explanations = Vec::new();
        match people {
            Err((status, reason)) => {
                let untouched = |target: &&Target| ListReport::without_plan(Some(&target.list), status, reason.clone());
                lists.extend(targets.iter().map(untouched));
            }
            Ok(people) => {
                let plans = make_plans(&mailman, &targets, &people, &event.force).await;
                explanations = explain(&event, &targets, &people, &plans);
                for (target, made) in targets.iter().zip(plans) {
                    lists.push(match made {
                        Err(trouble) => ListReport::troubled(&target.list, trouble),
                        Ok((_, plan)) if dry_run || plan.is_empty() => ListReport::planned(&plan),
                        Ok((_, plan)) => match plan.verdict {
                            Verdict::Blocked(_) => ListReport::planned(&plan),
                            Verdict::Sound | Verdict::Forced(_) => {
                                ListReport::applied(&plan, &apply(&mailman, &plan).await)
                            }
                        },
                    });
                }
            }
        }
        Ok(Report {
            status: lists.iter().map(|list| list.status).max().unwrap_or_default(),
            dry_run,
            lists,
            novi_calls: reader.calls(),
            mailman_calls: mailman.calls(),
            seconds: (started.elapsed().as_secs_f64() * 1e3).round() / 1e3,
            explain: explanations,
        })
    }
}

/// Reads the groups of all lists, then everybody in them, each once.
async fn read_people(reader: &Reader<'_>, targets: &[&Target]) -> Result<People, OutOfTime> {
    let ids: HashSet<Uuid> = targets.iter().flat_map(|target| target.groups.iter().copied()).collect();
    let groups: HashMap<Uuid, Group> = reader.groups(ids).await?.into_iter().collect();
    let members: HashSet<_> = groups.values().flat_map(|group| group.members.iter().copied()).collect();
    tracing::info!(groups = groups.len(), people = members.len(), "groups read");
    let directory = reader.people(members).await?;
    tracing::info!(people = directory.len(), calls = reader.calls(), "people read");
    Ok(People { groups, directory })
}

/// A list's roster and plan, or what kept the roster from being read.
pub(crate) type Made = Result<(BTreeSet<Address>, Plan), Trouble>;

async fn make_plans(mailman: &Mailman<'_>, targets: &[&Target], people: &People, force: &[ListId]) -> Vec<Made> {
    let mut plans = Vec::with_capacity(targets.len());
    for target in targets {
        plans.push(mailman.patient_roster(&target.list).await.map(|roster| {
            let forced = force.contains(&target.list);
            let plan = Plan::make(target, &people.groups, &people.directory, &roster, forced);
            tracing::info!(%plan, "planned");
            (roster, plan)
        }));
    }
    plans
}
