//! A sequence: rounds of changes, lies, mistakes, faults and runs, and an end at which Novi tells the truth.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fastrand::Rng;
use http::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::choices::Choices;
use super::config::{ListConfig, ListState};
use super::environment::{Disturbance, Environment, Servers};
use super::faults::ActiveFaults;
use super::judge::{Contents, Force, Unreadable, Verdict};
use super::leavers::Leavers;
use super::memory::{DayChange, Memory};
use super::oracle::{Change, Circumstances, Expectation, Series, check_run, check_unchanged};
use super::readings::{Has, Readings};
use super::tally::Tally;
use super::world::World;
use crate::directory::Directory;
use crate::harness::report;
use crate::novi::State as NoviState;

/// The memberships of one list: addresses by Mailman's id of the membership.
type Memberships = BTreeMap<String, String>;

pub(super) struct Sequence {
    seed: u64,
    rng: Rng,
    world: World,
    environment: Environment,
    faults: ActiveFaults,
    /// Addresses that Mailman rejects on every list.
    banned: BTreeSet<String>,
    /// The addresses that were on a list at any time, by list.
    former: BTreeMap<usize, BTreeSet<String>>,
    /// The addresses in requests that may still arrive, by list.
    late: BTreeMap<String, BTreeSet<String>>,
    /// The series of runs with the same contents of Novi, by list.
    series: BTreeMap<usize, Series>,
    /// What the instance's previous run could not read of each list. A list is absent if the instance doesn't know, and
    /// has no value if that isn't clear.
    unread_before: BTreeMap<usize, Option<Unreadable>>,
    /// What the ledger may remember.
    remembered: Remembered,
    /// Older copies of the ledger, with what each may remember.
    copies: Vec<(Vec<u8>, Remembered)>,
    choices: Choices,
    /// What the ledger was before it was damaged, while it is.
    undamaged: Option<Vec<u8>>,
    /// The events that the latest reports name to force a list.
    forcing_events: BTreeMap<String, Value>,
    /// What happened so far.
    steps: Vec<String>,
    violations: usize,
    /// True if an earlier run may have left locks, or writes that may still arrive.
    is_unsettled: bool,
    tally: Tally,
}

/// What the ledger may remember.
#[derive(Clone, Default)]
struct Remembered {
    /// By list.
    memories: BTreeMap<usize, Memory>,
    /// By list, of those whose members aren't added again.
    leavers: BTreeMap<usize, Leavers>,
    readings: Readings,
}

/// The reports of a run.
struct Outcome {
    /// The reports, none if the run was killed.
    reports: Vec<Value>,
    /// The people that the run asked about.
    asked: BTreeSet<Uuid>,
    /// Those of them with a record that Novi may have sent.
    answered: BTreeSet<Uuid>,
    /// True if the ledger certainly remembers the run.
    is_remembered: bool,
}

impl Outcome {
    /// True if the only report says that the pass is complete.
    fn is_pass_complete(&self) -> bool {
        matches!(self.reports.as_slice(), [report] if report["ledger"]["pass"] == "complete")
    }

    /// Returns the section of the only report about a list.
    fn list(&self, id: &str) -> Option<&Value> {
        let [report] = self.reports.as_slice() else { return None };
        report["lists"].as_array()?.iter().find(|list| list["list_id"] == id)
    }

    fn status(&self, id: &str) -> Option<&str> {
        self.list(id)?["status"].as_str()
    }

    /// Returns the reasons of all lists.
    fn summary(&self) -> String {
        let lists = self.reports.iter().flat_map(|report| report["lists"].as_array().into_iter().flatten());
        let lists: Vec<String> = lists
            .map(|list| {
                let [id, status, reason] = ["list_id", "status", "reason"].map(|key| list[key].as_str().unwrap_or("-"));
                let [subscribed, unsubscribed] =
                    ["subscribed", "unsubscribed"].map(|key| list[key].as_u64().unwrap_or(0));
                format!("\n      {id} {status} +{subscribed} -{unsubscribed}: {reason}")
            })
            .collect();
        if lists.is_empty() { format!("{:?}", self.reports) } else { lists.concat() }
    }
}

impl Sequence {
    pub(super) async fn start(servers: Servers, seed: u64) -> Result<Self> {
        let mut rng = Rng::with_seed(seed);
        let name = format!("s{seed:x}");
        let has_ledger = rng.bool();
        let world = World::new(&mut rng, &name, has_ledger);
        for number in 0..world.lists.len() {
            servers.mailman.create_list(&format!("{name}n{number}")).await?;
        }
        let environment = Environment::start(servers, &mut rng, world.config.to_json(), has_ledger).await?;
        {
            let mut state = environment.novi.state();
            (state.has_total_count, state.wraps_records, state.page_limit) = (rng.bool(), rng.bool(), rng.usize(2..15));
            if environment.has_long_passes() {
                // Otherwise, the groups alone take all calls of a run.
                state.page_limit = rng.usize(10..20);
            }
            // A bulk list is a whole pass.
            let has_bulk_list = if environment.has_long_passes() { rng.u8(..5) == 0 } else { rng.bool() };
            state.bulk_hidden_fields = has_bulk_list.then(Vec::new);
        }
        let with = |has: bool| if has { "with a" } else { "without a" };
        let [redis, ledger] = [environment.has_redis, environment.ledger.is_some()].map(with);
        let calls = environment.calls_of_run.map(|calls| format!(", {calls} calls a run")).unwrap_or_default();
        let steps = vec![format!("{redis} Redis, {ledger} ledger{calls}")];
        Ok(Self {
            seed,
            rng,
            world,
            environment,
            faults: ActiveFaults::default(),
            banned: BTreeSet::new(),
            former: BTreeMap::new(),
            late: BTreeMap::new(),
            series: BTreeMap::new(),
            unread_before: BTreeMap::new(),
            remembered: Remembered::default(),
            copies: Vec::new(),
            choices: Choices::default(),
            undamaged: None,
            forcing_events: BTreeMap::new(),
            steps,
            violations: 0,
            is_unsettled: false,
            tally: Tally::default(),
        })
    }

    /// Runs the whole sequence, and returns its results and the servers.
    pub(super) async fn run_all(mut self) -> Result<(Tally, Servers)> {
        // Most lists have members before anything goes wrong.
        if self.rng.u8(..4) > 0 {
            self.publish().await?;
            self.run(&json!({}), Disturbance::Nothing).await?;
        }
        // So that the truth changes during a pass and during a day.
        let rounds = if self.environment.ledger.is_some() { 4..=8 } else { 2..=4 };
        for _ in 0..self.rng.usize(rounds) {
            self.round().await?;
        }
        self.end().await?;
        self.tally.sequences += 1;
        if self.violations > 0 {
            let steps: Vec<String> = self.steps.iter().map(|step| format!("\n  {step}")).collect();
            let Self { seed, violations, .. } = self;
            self.tally.violations.push(format!("seed {seed} has {violations} violations:{}", steps.concat()));
        }
        Ok((self.tally, self.environment.servers))
    }

    fn step(&mut self, step: impl Into<String>) {
        self.steps.push(step.into());
    }

    fn violation(&mut self, what: &str) {
        self.step(format!("VIOLATION: {what}"));
        self.violations += 1;
    }

    async fn round(&mut self) -> Result<()> {
        for _ in 0..self.rng.usize(0..5) {
            let change = self.world.change(&mut self.rng);
            self.steps.extend(change.map(|change| format!("truth: {change}")));
        }
        for _ in 0..self.rng.usize(0..3) {
            self.edit_by_hand().await?;
        }
        if self.rng.u8(..3) == 0 {
            self.world.lies.clear();
            self.step("Novi tells the truth");
        }
        for _ in 0..[0, 1, 1, 2][self.rng.usize(..4)] {
            let Some(lie) = self.world.lie(&mut self.rng) else { continue };
            self.step(format!("lie: {lie}"));
            *self.tally.lies.entry(lie).or_default() += 1;
        }
        match self.rng.u8(..5) {
            0 => {
                let mistake = self.world.make_mistake(&mut self.rng);
                self.tally.mistakes += 1;
                self.step(format!("mistake: {mistake}"));
            }
            1 | 2 => self.world.config = self.world.right_config.clone(),
            _ => {}
        }
        self.publish().await?;
        if self.rng.u8(..3) == 0 {
            // A run that nothing disturbs meets everything that has changed.
            self.faults.clear(&self.environment);
            self.step("no more faults");
            self.pass_time().await?;
            let event = self.random_event();
            self.run(&event, Disturbance::Nothing).await?;
        }
        for _ in 0..self.rng.usize(1..=3) {
            if self.rng.bool() {
                self.faults.clear(&self.environment);
                self.step("no more faults");
            }
            if self.rng.bool() {
                for _ in 0..self.rng.usize(1..4) {
                    self.inject();
                }
            }
            self.disturb_ledger().await?;
            let disturbance = self.random_disturbance();
            let event = self.random_event();
            self.run(&event, disturbance).await?;
            // If nothing guards the lists, the schedule gives requests that are late enough time.
            if !self.environment.has_redis && disturbance != Disturbance::Nothing || self.rng.bool() {
                self.pass_time().await?;
            }
        }
        Ok(())
    }

    /// Sometimes copies the ledger, deletes it, replaces it by an older copy, damages it, or rotates its key.
    async fn disturb_ledger(&mut self) -> Result<()> {
        let Some(ledger) = self.environment.ledger.as_ref().filter(|ledger| !ledger.may_be_claimed) else {
            return Ok(());
        };
        if self.undamaged.is_some() {
            if self.rng.bool() {
                self.repair_ledger()?;
            }
            return Ok(());
        }
        let done = match self.rng.u8(..18) {
            0..=3 => {
                self.copies.extend(ledger.read().map(|content| (content, self.remembered.clone())));
                return Ok(());
            }
            4 => {
                ledger.replace(None)?;
                self.remembered = Remembered::default();
                self.choices.ledger_lost();
                "the ledger is deleted"
            }
            5 | 6 if !self.copies.is_empty() => {
                let (content, remembered) = &self.copies[self.rng.usize(..self.copies.len())];
                ledger.replace(Some(content))?;
                self.remembered.clone_from(remembered);
                // What was chosen since the copy was made isn't in it.
                self.choices = Choices::default();
                self.note_keepers();
                "the ledger is replaced by an older copy"
            }
            7 | 8 => {
                let Some(content) = ledger.read().filter(|content| !content.is_empty()) else { return Ok(()) };
                let mut damaged = content.clone();
                let position = self.rng.usize(..damaged.len());
                if self.rng.bool() {
                    damaged[position] ^= 1 << self.rng.u8(..8);
                } else {
                    damaged.truncate(position);
                }
                ledger.replace(Some(&damaged))?;
                self.undamaged = Some(content);
                "the ledger is damaged"
            }
            9 => {
                self.environment.rotate_ledger_key().await?;
                "the key of the ledger is rotated"
            }
            _ => return Ok(()),
        };
        self.step(done);
        *self.tally.faults.entry(done).or_default() += 1;
        Ok(())
    }

    /// Puts the ledger back as it was before it was damaged.
    fn repair_ledger(&mut self) -> Result<()> {
        if let (Some(ledger), Some(content)) = (&self.environment.ledger, self.undamaged.take()) {
            ledger.replace(Some(&content))?;
            self.step("the ledger is put back");
        }
        Ok(())
    }

    fn random_disturbance(&mut self) -> Disturbance {
        let rng = &mut self.rng;
        match rng.u8(..16) {
            0 => Disturbance::KilledWhileReading(rng.usize(1..40)),
            1 => Disturbance::KilledWhileWriting(rng.usize(1..40)),
            2 => Disturbance::MailmanCrashes(rng.usize(1..40)),
            // No work starts in the last 10 seconds, and no subscription in the last 15.
            3 => Disturbance::ShortTime(Duration::from_millis(10_000 + rng.u64(..400))),
            4 => Disturbance::ShortTime(Duration::from_millis(15_000 + rng.u64(..1_000))),
            5 if self.environment.has_redis || self.environment.ledger.is_some() => Disturbance::SecondInstance,
            _ => Disturbance::Nothing,
        }
    }

    fn random_event(&mut self) -> Value {
        let Self { rng, world, forcing_events, .. } = self;
        let number = rng.usize(..world.lists.len());
        let list = &world.lists[number];
        match rng.u8(..10) {
            0 => json!({"dry_run": true}),
            // An event can't name a list that no mapping names.
            1..=4 if !world.config.names(number) => json!({}),
            1 => json!({"lists": [list]}),
            2..=4 => {
                // The event may be stale, as if the operator had waited too long.
                let Some(mut event) = forcing_events.get(list).cloned() else { return json!({}) };
                // The operator may accept less than the report names.
                let numbers = event["force"][list].as_object_mut().filter(|_| rng.bool());
                for number in numbers.into_iter().flat_map(|numbers| numbers.values_mut()) {
                    *number = json!(rng.u64(1..=number.as_u64().unwrap_or(0).max(1)));
                }
                event
            }
            _ => json!({}),
        }
    }

    fn inject(&mut self) {
        let Some(person) = self.world.random_person(&mut self.rng) else { return };
        let group = self.world.interesting_group(&mut self.rng);
        let address = self.world.random_address(&mut self.rng);
        let fault = self.faults.inject(&self.environment, &mut self.rng, person, group, address.as_deref());
        self.step(format!("fault: {fault}"));
        *self.tally.faults.entry(fault).or_default() += 1;
    }

    /// Makes Novi and the mirror use the present contents and mappings.
    async fn publish(&mut self) -> Result<()> {
        self.series.clear();
        let said = self.world.said();
        self.world.remember_addresses(&said);
        self.environment.novi.state().directory = said;
        self.note_keepers();
        if self.environment.mappings() != &self.world.config.to_json() {
            self.pass_time().await?;
            self.environment.set_mappings(self.world.config.to_json()).await?;
        }
        Ok(())
    }

    /// Notes who may have the addresses that left a list by themselves.
    fn note_keepers(&mut self) {
        let state = self.environment.novi.state();
        for (list, leavers) in &mut self.remembered.leavers {
            if let ListState::Mapped(config) = self.world.config.list(*list) {
                leavers.published(|address| self.world.keepers(&state.directory, &config, address));
            }
        }
    }

    /// Lets an hour pass, or sometimes more.
    async fn pass_time(&mut self) -> Result<()> {
        let hours = [1, 1, 1, 1, 2, 6, 25, 200][self.rng.usize(..8)];
        self.pass_hours(hours).await
    }

    async fn pass_hours(&mut self, hours: u64) -> Result<()> {
        self.environment.pass_time(hours).await?;
        self.late.clear();
        self.is_unsettled = false;
        self.step(format!("time passes: {hours} h"));
        Ok(())
    }

    async fn all_memberships(&self) -> Result<Vec<Memberships>> {
        let mut all = Vec::new();
        for list in &self.world.lists {
            all.push(self.environment.memberships(list).await?);
        }
        Ok(all)
    }

    /// Runs the mirror, and compares what it did with the model.
    async fn run(&mut self, event: &Value, disturbance: Disturbance) -> Result<Outcome> {
        let emails = self.environment.servers.mailman.outgoing_emails()?;
        let before = self.all_memberships().await?;
        if std::mem::take(&mut self.environment.is_new) {
            self.unread_before.clear();
        }
        let late = self.late.clone();
        // The ledger knows a run by its second.
        self.environment.advance(2)?;
        let now = self.environment.clock.now();
        let (calls_before, answered_before) = {
            let state = self.environment.novi.state();
            (state.calls.len(), state.answered.len())
        };
        let started = Instant::now();
        let returned = self.environment.run(event, disturbance, self.faults.any_of_mailman()).await?;
        let seconds = started.elapsed().as_secs_f64();
        self.tally.runs += 1;
        if disturbance != Disturbance::Nothing {
            *self.tally.faults.entry(disturbance.name()).or_default() += 1;
        }
        for (list, addresses) in self.environment.open_writes() {
            self.late.entry(list).or_default().extend(addresses);
        }
        for (id, to) in self.environment.open_moves() {
            for (list, before) in self.world.lists.iter().zip(&before) {
                let pair = before.get(&id).map(|from| [from.clone(), to.clone()]);
                self.late.entry(list.clone()).or_default().extend(pair.into_iter().flatten());
            }
        }
        let after = self.all_memberships().await?;
        let is_dry_run = event["dry_run"] == true;
        let is_completed = matches!(disturbance, Disturbance::Nothing | Disturbance::SecondInstance);
        let is_remembered =
            self.environment.ledger.is_some() && self.undamaged.is_none() && is_completed && !is_dry_run;
        let (asked, answered) = {
            let state = self.environment.novi.state();
            let calls = state.calls[calls_before..].iter().map(|(path, _)| path);
            (people_of(calls, &state), people_of(&state.answered[answered_before..], &state))
        };
        let mut outcome = Outcome { reports: Vec::new(), asked, answered, is_remembered };
        for returned in returned {
            match report(returned) {
                Ok(report) => outcome.reports.push(report),
                Err(error) => self.violation(&format!("a run with the event {event} did not start: {error:#}")),
            }
        }
        self.step(format!("run {event}, disturbed: {}, {seconds:.1} s{}", disturbance.name(), outcome.summary()));
        let (banned, poisoned) = (self.banned.clone(), self.faults.poisoned.clone());
        if is_dry_run && self.environment.writes() > 0 {
            self.violation("a dry run sent a write to Mailman");
        }
        let circumstances = Circumstances {
            is_novi_readable: !self.faults.novi,
            is_mailman_well: !self.faults.mailman,
            is_undisturbed: disturbance == Disturbance::Nothing && !self.is_unsettled,
            has_long_passes: self.environment.has_long_passes(),
            is_ledger_readable: self.undamaged.is_none(),
            may_write: !is_dry_run,
            now,
            instances: if disturbance == Disturbance::SecondInstance { 2 } else { 1 },
        };
        self.is_unsettled |= disturbance != Disturbance::Nothing || self.faults.any_of_mailman();
        self.note_readings(&outcome, event, now);
        if self.environment.has_long_passes() {
            for pass in outcome.reports.iter().filter_map(|report| report["ledger"]["pass"].as_str()) {
                *self.tally.passes.entry(pass.to_owned()).or_default() += 1;
            }
        }
        for list in 0..self.world.lists.len() {
            let id = self.world.lists[list].clone();
            let late = late.get(&id).cloned().unwrap_or_default();
            let status = outcome.status(&id).map(str::to_owned);
            if let Some(status) = &status {
                *self.tally.statuses.entry(status.clone()).or_default() += 1;
            }
            if let Some(forcing) = outcome.list(&id).and_then(forcing_event) {
                self.forcing_events.insert(id.clone(), forcing);
            }
            let former = self.former.entry(list).or_default();
            former.extend(before[list].values().cloned());
            let former_before = former.clone();
            former.extend(after[list].values().cloned());
            let change = Change {
                before: &before[list],
                after: &after[list],
                status: status.as_deref(),
                late: &late,
                banned: &banned,
                poisoned: &poisoned,
                former: &former_before,
                has_ledger: self.environment.ledger.is_some(),
            };
            let is_selected =
                event["lists"].as_array().is_none_or(|lists| lists.iter().any(|selected| *selected == id));
            let violations = match self.world.config.list(list) {
                ListState::Mapped(config) if is_selected => {
                    self.note_misled(list, &change);
                    self.check_mapped(list, &config, &change, circumstances, event, &outcome)
                }
                _ => check_unchanged(&change),
            };
            for violation in violations {
                self.violation(&format!("{id} {violation}"));
            }
            for violation in self.check_leavers(list, &change, circumstances, &outcome) {
                self.violation(&format!("{id} {violation}"));
            }
            let is_well = circumstances.is_mailman_well && circumstances.is_undisturbed && outcome.is_remembered;
            let is_ok = status.as_deref() == Some("ok");
            for violation in self.check_choices(list, &before[list], &after[list], is_well, is_ok, now).await? {
                self.tally.lost_choices += 1;
                self.violation(&format!("{id}: {violation}"));
            }
            if self.undamaged.is_some()
                && (!change.left().is_empty() || !change.moved().is_empty() || status.as_deref() == Some("ok"))
            {
                self.violation(&format!(
                    "{id} lost {:?}, moved {:?} and is {status:?}, although the ledger can't be opened",
                    change.left(),
                    change.moved()
                ));
            }
        }
        let sent = self.environment.servers.mailman.outgoing_emails()? - emails;
        if sent > 0 {
            self.violation(&format!("{sent} emails were sent"));
        }
        Ok(outcome)
    }

    fn check_mapped(
        &mut self,
        list: usize,
        config: &ListConfig,
        change: &Change<'_>,
        circumstances: Circumstances,
        event: &Value,
        outcome: &Outcome,
    ) -> Vec<String> {
        let said = self.environment.novi.state().directory.clone();
        let contents = self.world.contents(&said, config);
        let roster: BTreeSet<String> = change.before.values().cloned().collect();
        let is_config_in_doubt = self.world.config.is_in_doubt();
        let mut memory = self.remembered.memories.remove(&list).unwrap_or_default();
        let expectation = if self.environment.ledger.is_some() {
            let force = self.event_force(list, event).unwrap_or_default();
            let is_planned = !matches!(change.status, None | Some("failed"));
            memory.found(circumstances.now, config, &roster, force, outcome.is_remembered && is_planned);
            let force = Some(memory.force).filter(|force| *force != Force::default());
            let changed_addresses = self.world.changed_addresses(&said, config);
            Expectation::new(config, contents, &roster, is_config_in_doubt, force)
                .with_memory(&memory, changed_addresses)
        } else {
            let (force, is_force_clear) = self.force(list, &contents, circumstances, event);
            let unreadable = circumstances.is_clean().then(|| contents.unreadable.clone());
            self.unread_before.insert(list, unreadable);
            let mut expectation = Expectation::new(config, contents, &roster, is_config_in_doubt, force);
            expectation.is_force_clear = is_force_clear;
            expectation
        };
        let is_forced = expectation.force.is_some();
        let mut tally = std::mem::take(&mut self.tally);
        let mut violations = check_run(&expectation, change, circumstances, &mut tally);
        self.tally = tally;
        violations.extend(self.check_readings(&said, &expectation, change, outcome, &memory, circumstances.now));
        if self.environment.ledger.is_none() {
            if !is_forced {
                let series = self.series.entry(list).or_insert_with(|| Series::new(&expectation));
                violations.extend(series.add(change));
            } else {
                self.series.remove(&list);
            }
            return violations;
        }
        // A run that is killed has written what it plans. Otherwise, only a write with a response counts.
        if circumstances.may_write && circumstances.is_ledger_readable && !is_forced {
            let open = self.late.get(&self.world.lists[list]).cloned().unwrap_or_default();
            let count = |addresses: BTreeSet<String>| addresses.difference(&open).count();
            let joined = if memory.may_be_filling { 0 } else { count(change.joined()) };
            let moved = count(change.moved().into_iter().map(|(_, to)| to).collect());
            memory.changed(DayChange { at: circumstances.now, left: count(change.left()), moved, joined });
        }
        if circumstances.may_write && outcome.is_pass_complete() {
            let began_after = if circumstances.has_long_passes {
                self.remembered.readings.pass_began_after
            } else {
                circumstances.now
            };
            change.status.into_iter().for_each(|status| memory.completed_pass(status, began_after));
        }
        self.remembered.memories.insert(list, memory);
        violations
    }

    /// Checks that no one is added again who left the list by themselves, and notes who is on it.
    fn check_leavers(
        &mut self,
        list: usize,
        change: &Change<'_>,
        circumstances: Circumstances,
        outcome: &Outcome,
    ) -> Vec<String> {
        match self.world.config.list(list) {
            ListState::Mapped(config) if !config.resubscribes => {}
            _ => {
                self.remembered.leavers.remove(&list);
                return Vec::new();
            }
        }
        let force = self.remembered.memories.get(&list).map(|memory| memory.force_of_run).unwrap_or_default();
        let leavers = self.remembered.leavers.entry(list).or_default();
        let mut violations = Vec::new();
        for address in change.joined() {
            if self.undamaged.is_some() {
                violations.push(format!("gained {address}, although the ledger can't be opened"));
            } else if leavers.has_left(&address) && force.left == 0 {
                violations.push(format!("gained {address} again, who left"));
            }
        }
        let stays = |(id, address): &(&String, &String)| change.after.get(*id) == Some(*address);
        let stayed = change.before.iter().filter(stays).map(|(_, address)| address.clone());
        let is_planned = matches!(change.status, Some("ok" | "partial"));
        let is_known = is_planned && outcome.is_remembered && circumstances.is_mailman_well;
        leavers.stayed(stayed.collect(), is_known);
        violations
    }

    /// Checks that no one lost what the person had chosen, and notes what those had chosen who left.
    async fn check_choices(
        &mut self,
        list: usize,
        before: &Memberships,
        after: &Memberships,
        is_well: bool,
        is_ok: bool,
        now: u64,
    ) -> Result<Vec<String>> {
        if !matches!(self.world.config.list(list), ListState::Mapped(_)) {
            self.choices.unmapped(list);
        }
        for (membership, address) in before.iter().filter(|(membership, _)| !after.contains_key(*membership)) {
            self.choices.removed(list, membership, address, is_well, now);
        }
        self.choices.check(&self.environment.servers.mailman, list, after, is_well && is_ok, now).await
    }

    /// Notes what the ledger may know after a run.
    fn note_readings(&mut self, outcome: &Outcome, event: &Value, now: u64) {
        if self.environment.ledger.is_none() || self.undamaged.is_some() || event["dry_run"] == true {
            return;
        }
        let state = self.environment.novi.state();
        let has_bulk_list = state.bulk_hidden_fields.is_some();
        // It isn't clear which rows of a bulk list the mirror takes.
        let is_certain = outcome.is_remembered && !has_bulk_list;
        self.remembered.readings.ran(&outcome.asked, &outcome.answered, &state.directory, now, is_certain);
        let is_certain = outcome.is_remembered && !self.faults.novi;
        let configs = (0..self.world.lists.len()).filter_map(|list| match self.world.config.list(list) {
            ListState::Mapped(config) => Some(config),
            _ => None,
        });
        let people: BTreeSet<Uuid> = configs.flat_map(|config| World::members(&state.directory, &config)).collect();
        if let ([report], true) = (outcome.reports.as_slice(), is_certain && event["lists"].is_null()) {
            let [all, read] = ["people", "read"].map(|key| report["ledger"][key].as_u64());
            if all == Some(people.len() as u64)
                && let Some(read) = read.and_then(|read| usize::try_from(read).ok())
            {
                self.remembered.readings.pass_has_asked(read, &people);
            }
        }
    }

    /// Checks that people joined and moved because of records that this run read, and left because of a complete pass.
    fn check_readings(
        &self,
        said: &Directory,
        expectation: &Expectation<'_>,
        change: &Change<'_>,
        outcome: &Outcome,
        memory: &Memory,
        now: u64,
    ) -> Vec<String> {
        let people = World::members(said, expectation.config);
        let was_read = |address: &str, least: Has| {
            let mut answered = people.intersection(&outcome.answered);
            answered.any(|id| self.world.has(*id, said.people.get(id), address) >= least)
        };
        let added = change.joined().into_iter().chain(change.moved().into_iter().map(|(_, to)| to));
        let mut violations: Vec<String> = added
            .filter(|address| !was_read(address, Has::Keeps))
            .map(|address| format!("gained {address}, although this run read no one with it"))
            .collect();
        if self.environment.ledger.is_none() {
            return violations;
        }
        // Who was read in this run and has opted out leaves at once.
        let has_opted_out =
            |address: &String| expectation.contents.opted_out.contains(address) && was_read(address, Has::Address);
        // If this run has asked about everyone, the pass may have begun with it.
        let began_earlier = !people.is_subset(&outcome.asked);
        let readings = &self.remembered.readings;
        for address in change.left().into_iter().filter(|address| !has_opted_out(address)) {
            if began_earlier && !memory.has_found(&address, readings.pass_began_after, now) {
                violations.push(format!("lost {address}, which was not on the roster when the pass began"));
            }
            let has = |id: Uuid, record: Option<&Value>| self.world.has(id, record, &address);
            if let Some(reason) = readings.reason_to_stay(&people, expectation.may_accept_doubt(), now, has) {
                violations.push(format!("lost {address}, although {reason}"));
            }
        }
        violations
    }

    /// Returns the numbers of an event's force for a list.
    fn event_force(&self, list: usize, event: &Value) -> Option<Force> {
        let numbers = event["force"].get(&self.world.lists[list])?;
        let number = |key: &str| usize::try_from(numbers[key].as_u64().unwrap_or(0)).unwrap_or(usize::MAX);
        let [joins, leaves, moves, left, unknown] = ["joins", "leaves", "moves", "left", "unknown"].map(number);
        Some(Force { joins, leaves, moves, left, unknown })
    }

    /// Returns the force of an event for a list, and true if it is clear how many unknown records it accepts.
    fn force(
        &self,
        list: usize,
        contents: &Contents,
        circumstances: Circumstances,
        event: &Value,
    ) -> (Option<Force>, bool) {
        let Some(force) = self.event_force(list, event) else { return (None, true) };
        match self.unread_before.get(&list) {
            Some(Some(before)) if circumstances.is_clean() => (Some(force.limit(&contents.unreadable, before)), true),
            Some(None) => (Some(force), force.unknown == 0),
            _ => (Some(force), true),
        }
    }

    /// Counts the people that a lie or a mistake put on a list or took from it.
    fn note_misled(&mut self, list: usize, change: &Change<'_>) {
        let ListState::Mapped(right) = self.world.right_config.list(list) else { return };
        let contents = self.world.contents(&self.world.truth, &right);
        let belongs = |address: &&String| {
            contents.wanted.contains(*address)
                || contents.untouched.contains(*address)
                || right.keep.contains(*address)
                || !right.removals
        };
        self.tally.misled_additions += change.joined().iter().filter(|address| !belongs(address)).count();
        self.tally.misled_removals += change.left().iter().filter(belongs).count();
    }

    /// Lets Novi tell the truth and removes all faults. Then every list must become what it should be, or must say which
    /// event makes it so.
    async fn end(&mut self) -> Result<()> {
        self.step("the end: the truth, the right mappings, no faults");
        self.faults.clear(&self.environment);
        let lasts = self.rng.bool();
        self.world.lies.retain(|lie| lasts && lie.may_last());
        self.world.config = self.world.right_config.clone();
        // The calls and the limits of the last day don't count any more.
        self.pass_hours(25).await?;
        self.repair_ledger()?;
        self.publish().await?;
        if self.environment.ledger.is_some() {
            self.converge_with_ledger().await?;
        } else {
            let outcome = self.run(&json!({}), Disturbance::Nothing).await?;
            for list in 0..self.world.lists.len() {
                self.converge(list, &outcome).await?;
            }
        }
        // Another run has nothing to do, except for addresses that Mailman rejects.
        self.run(&json!({}), Disturbance::Nothing).await?;
        let writes = self.environment.writes();
        if writes > 0 && self.banned.is_empty() {
            self.violation(&format!("the last run made {writes} writes"));
        }
        Ok(())
    }

    /// Runs a few times, and forces each list if its report says how. Then every list must be what it should be.
    async fn converge_with_ledger(&mut self) -> Result<()> {
        // The groups alone may take almost all calls of a run.
        let attempts = if self.environment.has_long_passes() { 150 } else { 6 };
        for attempt in 1.. {
            self.pass_hours(1).await?;
            let outcome = self.run(&json!({}), Disturbance::Nothing).await?;
            let mut is_done = true;
            for list in 0..self.world.lists.len() {
                let id = self.world.lists[list].clone();
                let ListState::Mapped(config) = self.world.right_config.list(list) else { continue };
                let contents = self.world.contents(&self.world.said(), &config);
                let roster = self.environment.roster(&id).await?;
                let judgment = Expectation::new(&config, contents, &roster, false, None).judgment;
                let has_left = |address: &&String| {
                    !config.resubscribes && self.former.get(&list).is_some_and(|former| former.contains(*address))
                };
                let joins = judgment.joins.difference(&self.banned).filter(|address| !has_left(address));
                let joins: BTreeSet<&String> = joins.collect();
                // An address stays as long as the record of someone who had it can't be read.
                let unreadable = self.world.addresses_of_unreadable(&self.world.said(), &config);
                let leaves: BTreeSet<&String> = judgment.leaves.difference(&unreadable).collect();
                if joins.is_empty() && leaves.is_empty() {
                    continue;
                }
                is_done = false;
                let reason = outcome.list(&id).map(|report| report["reason"].to_string()).unwrap_or_default();
                if attempt == attempts {
                    self.violation(&format!(
                        "{id} did not converge: {joins:?} should join, {leaves:?} should leave; {reason}"
                    ));
                } else if let Some(forcing) = outcome.list(&id).and_then(forcing_event) {
                    self.run(&forcing, Disturbance::Nothing).await?;
                }
            }
            if is_done || attempt == attempts {
                break;
            }
        }
        Ok(())
    }

    /// Forces a list if its report says how. Then the list must be what it should be.
    async fn converge(&mut self, list: usize, outcome: &Outcome) -> Result<()> {
        let id = self.world.lists[list].clone();
        let ListState::Mapped(config) = self.world.right_config.list(list) else { return Ok(()) };
        let contents = self.world.contents(&self.world.said(), &config);
        let roster = self.environment.roster(&id).await?;
        let expectation = Expectation::new(&config, contents, &roster, false, None);
        let judgment = &expectation.judgment;
        let is_open = judgment.verdict != Verdict::Applied || (judgment.is_in_doubt && !judgment.leaves.is_empty());
        let joins: BTreeSet<String> = judgment.joins.difference(&self.banned).cloned().collect();
        if !is_open && joins.is_empty() && judgment.leaves.is_empty() {
            return Ok(());
        }
        let reason = outcome.list(&id).map(|report| report["reason"].to_string()).unwrap_or_default();
        let Some(forcing) = outcome.list(&id).and_then(forcing_event) else {
            self.violation(&format!(
                "{id} did not converge, and its reason names no event: {joins:?} should join, {:?} should leave; {reason}",
                judgment.leaves
            ));
            return Ok(());
        };
        self.run(&forcing, Disturbance::Nothing).await?;
        let roster_after = self.environment.roster(&id).await?;
        let expected: BTreeSet<String> = roster.difference(&judgment.leaves).chain(&joins).cloned().collect();
        if roster_after != expected {
            self.violation(&format!(
                "after the event that the reason names, {id} lacks {:?} and has {:?}; the reason was {reason}",
                expected.difference(&roster_after).collect::<Vec<_>>(),
                roster_after.difference(&expected).collect::<Vec<_>>(),
            ));
        }
        Ok(())
    }

    /// Makes a random change to a list, as Mailman's administrator would.
    async fn edit_by_hand(&mut self) -> Result<()> {
        // Otherwise, it isn't clear if a late request or the administrator did something.
        self.pass_time().await?;
        let number = self.rng.u32(..0x0100_0000);
        let list = self.rng.usize(..self.world.lists.len());
        let id = self.world.lists[list].clone();
        let address = self.world.random_address(&mut self.rng);
        let mailman = &self.environment.servers.mailman;
        let memberships = mailman.memberships(&id).await?;
        let members: Vec<&String> = memberships.keys().collect();
        let step = match self.rng.u8(..10) {
            0 | 1 => {
                for n in 0..self.rng.usize(1..4) {
                    mailman.subscribe(&id, &format!("byhand{number:06x}{n}@mail.example.org"), "member").await?;
                }
                "adds people"
            }
            2 => {
                let ListState::Mapped(config) = self.world.right_config.list(list) else { return Ok(()) };
                for keep in &config.keep {
                    // The address may be subscribed already.
                    let _ = mailman.subscribe(&id, keep, "member").await;
                }
                "adds the addresses to keep"
            }
            3 | 9 if !members.is_empty() => {
                let membership = members[self.rng.usize(..members.len())];
                let path = format!("members/{membership}");
                let config = self.world.config.list(list);
                if let (ListState::Mapped(config), Some(leavers)) = (config, self.remembered.leavers.get_mut(&list)) {
                    let said = self.environment.novi.state().directory.clone();
                    let address = &memberships[membership];
                    leavers.leaves(address, self.world.keepers(&said, &config, address));
                }
                let (status, _) = mailman.request(Method::DELETE, &path, None).await?;
                ensure!(status == 204, "deleting {path} failed: {status}");
                "removes a member"
            }
            4 => {
                let Some(address) = address.filter(|address| address.is_ascii()) else { return Ok(()) };
                // Leaves a request that waits for confirmation, unless the address is subscribed already.
                let request = json!({"list_id": id, "subscriber": address});
                mailman.request(Method::POST, "members", Some(request)).await?;
                "has a pending request"
            }
            5 => {
                let Some(address) = address.filter(|address| address.is_ascii()) else { return Ok(()) };
                for list in &self.world.lists {
                    let path = format!("lists/{list}/bans");
                    mailman.request(Method::POST, &path, Some(json!({"email": address}))).await?;
                }
                self.banned.insert(address);
                "bans an address"
            }
            6..=8 if !members.is_empty() => {
                for _ in 0..self.rng.usize(1..4) {
                    let membership = members[self.rng.usize(..members.len())];
                    self.choices.choose(mailman, &mut self.rng, membership).await?;
                }
                "has members who choose digests"
            }
            _ => return Ok(()),
        };
        self.step(format!("by hand: {id} {step}"));
        Ok(())
    }
}

/// Returns the event in a list's reason, if there is one.
fn forcing_event(list: &Value) -> Option<Value> {
    let reason = list["reason"].as_str()?;
    let start = reason.find("{\"force\"")?;
    serde_json::Deserializer::from_str(&reason[start..]).into_iter::<Value>().next()?.ok()
}

/// Returns the people that calls with these paths ask about.
fn people_of<'p>(paths: impl IntoIterator<Item = &'p String>, novi: &NoviState) -> BTreeSet<Uuid> {
    let mut people = BTreeSet::new();
    for path in paths {
        if path == "/api/members" && novi.bulk_hidden_fields.is_some() {
            people.extend(novi.directory.people.keys().copied());
        } else if let Some(id) = path.strip_prefix("/api/customers/") {
            people.extend(Uuid::parse_str(id).ok());
        }
    }
    people
}
