//! A model of what the mirror may and must do, checked with random changes and
//! faults against the real function, a simulated Novi and a real Mailman.
//!
//! A *sequence* consists of a few rounds and an end. In each round, Novi's data
//! changes, lists are edited by hand, faults of every kind are injected, and the
//! mirror runs. What each run did is compared with the model. At the end, all
//! faults are removed, and two runs must make every roster match the model. A
//! sequence is determined by its seed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use http::Method;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::directory::Directory;
use crate::harness::{Mirror, list};
use crate::http_proxy::{HttpFault, HttpProxy};
use crate::mailman::{Database, Mailman};
use crate::novi::{NoviFault, State};

/// The results of sequences.
#[derive(Default)]
pub struct Tally {
    /// The number of completed sequences.
    pub sequences: usize,
    /// The number of runs of the mirror.
    pub runs: usize,
    /// The number of lists by their status after a run.
    pub statuses: BTreeMap<String, usize>,
    /// The number of injected faults, by kind.
    pub faults: BTreeMap<&'static str, usize>,
    /// Members who belonged on a list and were removed, even if only for a moment.
    pub wrongly_removed: usize,
    /// People who were added to a list and don't belong on it.
    pub wrongly_added: usize,
    /// Addresses with a new duplicate membership.
    pub duplicates: usize,
    /// Descriptions of all deviations from the model, with the seeds that reproduce them.
    pub violations: Vec<String>,
}

impl Tally {
    /// True if there was no deviation from the model.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.wrongly_removed + self.wrongly_added + self.duplicates == 0 && self.violations.is_empty()
    }

    /// Adds the results of another tally.
    pub fn add(&mut self, other: Self) {
        self.sequences += other.sequences;
        self.runs += other.runs;
        self.wrongly_removed += other.wrongly_removed;
        self.wrongly_added += other.wrongly_added;
        self.duplicates += other.duplicates;
        self.violations.extend(other.violations);
        for (fault, count) in other.faults {
            *self.faults.entry(fault).or_default() += count;
        }
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: usize = self.faults.values().sum();
        let statuses: Vec<String> = self.statuses.iter().map(|(status, n)| format!("{n} {status}")).collect();
        writeln!(f, "{} sequences, {} runs; list statuses: {}", self.sequences, self.runs, statuses.join(", "))?;
        writeln!(f, "{faults} faults injected:")?;
        for (fault, count) in &self.faults {
            writeln!(f, "  {count:6} {fault}")?;
        }
        writeln!(f, "members wrongly removed: {}", self.wrongly_removed)?;
        writeln!(f, "people wrongly added:    {}", self.wrongly_added)?;
        write!(f, "duplicates created:      {}", self.duplicates)?;
        for violation in &self.violations {
            write!(f, "\n\n{violation}")?;
        }
        Ok(())
    }
}

/// Runs sequences, one after another on the same Mailman.
pub struct Runner {
    mailman: Option<Mailman>,
}

impl Runner {
    /// Starts a Mailman on this kind of database.
    ///
    /// # Errors
    /// Fails if Mailman doesn't start.
    pub async fn start(database: Database) -> Result<Self> {
        Ok(Self { mailman: Some(Mailman::start_on(database).await?) })
    }

    /// Runs the sequence of a seed.
    ///
    /// # Errors
    /// Fails if the test environment fails, but not if the mirror deviates from the model.
    pub async fn run_sequence(&mut self, seed: u64) -> Result<Tally> {
        let mailman = self.mailman.take().context("an earlier sequence failed")?;
        let mut sequence = Sequence::start(mailman, seed).await?;
        let rounds = sequence.rng.usize(2..=5);
        for _ in 0..rounds {
            sequence.round().await.with_context(|| format!("seed {seed}"))?;
        }
        sequence.end().await.with_context(|| format!("seed {seed}"))?;
        let Sequence { mirror, tally, .. } = sequence;
        self.mailman = Some(mirror.mailman);
        Ok(tally)
    }
}

/// A list and the groups that are mapped to it.
struct Target {
    id: String,
    groups: Vec<Uuid>,
    keep: BTreeSet<String>,
    max_removal_percent: usize,
}

struct Sequence {
    seed: u64,
    rng: Rng,
    mirror: Mirror,
    proxy: HttpProxy,
    targets: Vec<Target>,
    /// The true records of people with an address that Novi hides temporarily.
    hidden: BTreeMap<Uuid, Value>,
    /// Groups that are temporarily missing in Novi.
    missing_groups: BTreeMap<Uuid, Vec<Uuid>>,
    /// Addresses that Mailman rejects on every list.
    banned: BTreeSet<String>,
    tally: Tally,
}

/// The expected content of a list according to Novi's true data.
#[derive(Default)]
struct Expected {
    wanted: BTreeSet<String>,
    /// Addresses that must be neither added nor removed.
    untouched: BTreeSet<String>,
    has_missing_group: bool,
}

/// The meaning of one record for a list.
enum Meaning {
    Wanted(String),
    Untouched(String),
    Unwanted,
}

fn meaning(record: &Value) -> Meaning {
    let address = record["Email"].as_str().unwrap_or_default().trim().replace(' ', "+").to_lowercase();
    if address.is_empty() {
        return Meaning::Unwanted;
    }
    // This recognizes all invalid addresses that a sequence makes up.
    let is_valid = address.is_ascii() && address.contains('@') && !address.contains("..");
    match (record["Active"].as_bool(), record["UnsubscribeFromEmails"].as_bool()) {
        (None, _) | (_, None) => Meaning::Untouched(address),
        (Some(true), Some(false)) if is_valid => Meaning::Wanted(address),
        (Some(true), Some(false)) => Meaning::Untouched(address),
        _ => Meaning::Unwanted,
    }
}

impl Sequence {
    async fn start(mailman: Mailman, seed: u64) -> Result<Self> {
        let mut rng = Rng::with_seed(seed);
        let mut directory = Directory::default();
        let groups: Vec<Uuid> = (0..4)
            .map(|_| {
                let count = rng.usize(0..30);
                directory.add_plain_group(&mut rng, count)
            })
            .collect();
        let mut targets = Vec::new();
        let mut mappings = Vec::new();
        // A list with one group, one with two groups, and one that shares a group with it. Each has its own limit.
        for (n, (mapped, max_removal_percent)) in
            [(&groups[..1], 100), (&groups[1..3], 100), (&groups[2..4], 20)].into_iter().enumerate()
        {
            let name = format!("s{seed:x}n{n}");
            let keep = format!("keep{n}@mail.example.org");
            targets.push(Target {
                id: format!("{name}.lists.example.org"),
                groups: mapped.to_vec(),
                keep: BTreeSet::from([keep.clone()]),
                max_removal_percent,
            });
            for group in mapped {
                mappings.push(json!({
                    "group_guid": group, "list_id": format!("{name}@lists.example.org"), "keep": [keep],
                    "max_removal_percent": max_removal_percent,
                }));
            }
            mailman.create_list(&name).await?;
        }
        let variables = [("NOVI_TIMEOUT_MS", "100")];
        let mut mirror = Mirror::start_on(mailman, directory, json!(mappings), &variables).await?;
        {
            let mut state = mirror.novi.state();
            (state.has_total_count, state.wraps_records, state.page_limit) = (rng.bool(), rng.bool(), rng.usize(2..15));
            state.bulk_hidden_fields = rng.bool().then(Vec::new);
        }
        let proxy = mirror.insert_proxy().await?;
        let (hidden, missing_groups, banned) = Default::default();
        Ok(Self { seed, rng, mirror, proxy, targets, hidden, missing_groups, banned, tally: Tally::default() })
    }

    async fn round(&mut self) -> Result<()> {
        for _ in 0..self.rng.usize(0..6) {
            self.change();
        }
        for _ in 0..self.rng.usize(0..3) {
            self.edit_by_hand().await?;
        }
        for _ in 0..self.rng.usize(1..5) {
            self.inject();
        }
        let restart_at = (self.rng.u8(..) < 60).then(|| self.rng.usize(1..40));
        let event = match self.rng.u8(..8) {
            0 => json!({"dry_run": true}),
            1 => json!({"lists": [self.targets[self.rng.usize(..self.targets.len())].id]}),
            2 => json!({"force": [self.targets[self.rng.usize(..self.targets.len())].id]}),
            _ => json!({}),
        };
        self.run(&event, restart_at).await?;
        // Some faults outlast a round.
        if self.rng.bool() {
            self.clear_faults();
        }
        Ok(())
    }

    async fn end(&mut self) -> Result<()> {
        self.clear_faults();
        self.restore_hidden();
        let report = self.run(&json!({}), None).await?;
        let blocked: Vec<&Value> = report["lists"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|list| list["status"] == "blocked")
            .map(|list| &list["list_id"])
            .collect();
        let mut expected = Vec::new();
        for target in &self.targets {
            let roster: BTreeSet<String> = self.mirror.mailman.memberships(&target.id).await?.into_values().collect();
            expected.push(self.expected_roster(target, &roster));
        }
        let second = self.run(&json!({"force": blocked}), None).await?;
        for (target, expected) in self.targets.iter().zip(&expected) {
            let roster: BTreeSet<String> = self.mirror.mailman.memberships(&target.id).await?.into_values().collect();
            if roster != *expected {
                self.tally.violations.push(format!(
                    "seed {}: after two runs, {} lacks {:?} and has the unwanted {:?}; first: {report}; second: {second}",
                    self.seed,
                    target.id,
                    expected.difference(&roster).collect::<Vec<_>>(),
                    roster.difference(expected).collect::<Vec<_>>(),
                ));
            }
        }
        // A third run has nothing to do, except for addresses that Mailman rejects.
        self.proxy.clear_requests();
        let report = self.run(&json!({}), None).await?;
        let writes = self.proxy.requests().iter().filter(|request| !request.line.starts_with("GET")).count();
        if writes > 0 && self.banned.is_empty() {
            self.tally.violations.push(format!("seed {}: a third run made {writes} writes: {report}", self.seed));
        }
        self.tally.sequences += 1;
        Ok(())
    }

    /// Runs the mirror, and compares what it did with the model.
    async fn run(&mut self, event: &Value, restart_at: Option<usize>) -> Result<Value> {
        let emails = self.mirror.mailman.outgoing_emails()?;
        let mut before = Vec::new();
        for target in &self.targets {
            before.push(self.mirror.mailman.memberships(&target.id).await?);
        }
        let Mirror { function, mailman, .. } = &mut self.mirror;
        self.proxy.clear_requests();
        let returned = match restart_at {
            None => function.invoke(event).await?,
            Some(requests) => {
                let run = function.invoke(event);
                tokio::pin!(run);
                tokio::select! {
                    returned = &mut run => returned?,
                    () = self.proxy.wait_for("/3.1/", requests) => {
                        mailman.restart()?;
                        *self.tally.faults.entry("Mailman crashes during a run").or_default() += 1;
                        run.await?
                    }
                }
            }
        };
        // In production, delayed requests arrive long before the next run.
        self.proxy.wait_for_delayed().await;
        let report = crate::harness::report(returned)?;
        self.tally.runs += 1;
        let forced: BTreeSet<&str> =
            event["force"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for (target, before) in self.targets.iter().zip(&before) {
            let after = self.mirror.mailman.memberships(&target.id).await?;
            let is_selected = event["lists"].as_array().is_none_or(|lists| lists.iter().any(|id| *id == target.id));
            let status = if is_selected {
                let status = list(&report, &target.id)["status"].as_str().unwrap_or_default().to_owned();
                *self.tally.statuses.entry(status.clone()).or_default() += 1;
                status
            } else {
                "blocked".to_owned()
            };
            let is_forced = forced.contains(target.id.as_str());
            let may_write = event["dry_run"] != true && status != "blocked";
            let expected = self.expected(target);
            let violations = check_list(&expected, target, before, &after, may_write, is_forced, &mut self.tally);
            for violation in violations {
                let id = &target.id;
                let violation = format!("seed {}: {id} {violation}; event {event}, report {report}", self.seed);
                self.tally.violations.push(violation);
            }
        }
        let sent = self.mirror.mailman.outgoing_emails()? - emails;
        if sent > 0 {
            self.tally.violations.push(format!("seed {}: {sent} emails were sent", self.seed));
        }
        Ok(report)
    }

    fn expected(&self, target: &Target) -> Expected {
        let mut expected = Expected::default();
        let state = self.mirror.novi.state();
        for group in &target.groups {
            let Some(members) = state.directory.groups.get(group) else {
                expected.has_missing_group = true;
                continue;
            };
            for id in members {
                let record = self.hidden.get(id).or_else(|| state.directory.people.get(id));
                match record.map_or(Meaning::Unwanted, meaning) {
                    Meaning::Wanted(address) => drop(expected.wanted.insert(address)),
                    Meaning::Untouched(address) => drop(expected.untouched.insert(address)),
                    Meaning::Unwanted => {}
                }
            }
        }
        expected
    }

    /// Returns the final roster that a list must have, given its current one.
    fn expected_roster(&self, target: &Target, roster: &BTreeSet<String>) -> BTreeSet<String> {
        let Expected { wanted, untouched, .. } = self.expected(target);
        let kept = roster.iter().filter(|address| {
            wanted.contains(*address) || untouched.contains(*address) || target.keep.contains(*address)
        });
        let added = wanted.iter().filter(|address| !untouched.contains(*address) && !self.banned.contains(*address));
        kept.chain(added).cloned().collect()
    }

    /// Returns a random person without a hidden address, if there is one.
    fn random_person(&mut self) -> Option<Uuid> {
        let state = self.mirror.novi.state();
        let all: Vec<Uuid> =
            state.directory.people.keys().filter(|id| !self.hidden.contains_key(id)).copied().collect();
        drop(state);
        (!all.is_empty()).then(|| all[self.rng.usize(..all.len())])
    }

    fn random_group(&mut self) -> Option<Uuid> {
        let all: Vec<Uuid> = self.mirror.novi.state().directory.groups.keys().copied().collect();
        (!all.is_empty()).then(|| all[self.rng.usize(..all.len())])
    }

    /// Makes a random change to Novi's data.
    fn change(&mut self) {
        let (Some(id), Some(other), Some(group)) = (self.random_person(), self.random_person(), self.random_group())
        else {
            return;
        };
        let rng = &mut self.rng;
        let number = rng.u32(..0x0100_0000);
        let kind = rng.u8(..20);
        let mut state = self.mirror.novi.state();
        let directory = &mut state.directory;
        let shared = directory.people[&other]["Email"].clone();
        let members = directory.groups.entry(group).or_default();
        match kind {
            0..=3 => {
                let count = rng.usize(1..12);
                let new: Vec<Uuid> = (0..count).map(|_| directory.add(rng)).collect();
                directory.groups.entry(group).or_default().extend(new);
            }
            4..=6 => members.retain(|_| rng.u8(..) > 40),
            7 if !members.contains(&id) => members.push(id),
            8 => members.clear(),
            9 => drop(directory.groups.remove(&group).map(|members| self.missing_groups.insert(group, members))),
            10 => drop(directory.people.remove(&id)),
            11 => directory.person(id)["Active"] = json!(rng.bool()),
            12 => directory.person(id)["UnsubscribeFromEmails"] = json!(rng.bool()),
            13 => directory.person(id)["Email"] = json!(format!("Moved{number:06x} x@mail.example.org ")),
            14 => directory.person(id)["Email"] = shared,
            15 => directory.person(id)["Email"] = [json!(null), json!(" ")][rng.usize(..2)].clone(),
            16 => directory.person(id)["Email"] = json!(["no address", "ö@example.org", "a..b@x.org"][rng.usize(..3)]),
            17 => directory.person(id)["Active"] = json!(null),
            18 => drop(directory.person(id).as_object_mut().map(|record| record.remove("UnsubscribeFromEmails"))),
            _ => {
                let record = directory.person(id);
                (record["Active"], record["UnsubscribeFromEmails"]) = (json!(true), json!(false));
            }
        }
    }

    /// Makes a random change to a list, as Mailman's administrator would.
    async fn edit_by_hand(&mut self) -> Result<()> {
        let number = self.rng.u32(..0x0100_0000);
        let target = self.rng.usize(..self.targets.len());
        let address = self.random_person().map(|id| self.mirror.novi.state().directory.address(id));
        let target = &self.targets[target];
        let mailman = &self.mirror.mailman;
        let members: Vec<String> = mailman.memberships(&target.id).await?.into_keys().collect();
        match self.rng.u8(..5) {
            0 => mailman.subscribe(&target.id, &format!("byhand{number:06x}@mail.example.org"), "member").await?,
            1 => {
                for keep in &target.keep {
                    // The address may be subscribed already.
                    let _ = mailman.subscribe(&target.id, keep, "member").await;
                }
            }
            2 if !members.is_empty() => {
                let path = format!("members/{}", members[self.rng.usize(..members.len())]);
                let (status, _) = mailman.request(Method::DELETE, &path, None).await?;
                ensure!(status == 204, "deleting {path} failed: {status}");
            }
            3 => {
                let Some(address) = address.filter(|address| address.contains('@') && address.is_ascii()) else {
                    return Ok(());
                };
                // Leaves a request that waits for confirmation, unless the address is subscribed already.
                let request = json!({"list_id": target.id, "subscriber": address});
                mailman.request(Method::POST, "members", Some(request)).await?;
            }
            4 => {
                let Some(address) = address.filter(|address| address.contains('@') && address.is_ascii()) else {
                    return Ok(());
                };
                for target in &self.targets {
                    let path = format!("lists/{}/bans", target.id);
                    mailman.request(Method::POST, &path, Some(json!({"email": address}))).await?;
                }
                self.banned.insert(address);
            }
            _ => {}
        }
        Ok(())
    }

    /// Injects a random fault.
    fn inject(&mut self) {
        let (Some(person), Some(group)) = (self.random_person(), self.random_group()) else { return };
        let rng = &mut self.rng;
        // The mirror waits for a second after each 429, so more of them would take too long.
        let times_of = |fault: &NoviFault, rng: &mut Rng| match fault {
            NoviFault::RateLimited(_) => 2,
            _ if rng.bool() => usize::MAX,
            _ => rng.usize(1..5),
        };
        let mut state = self.mirror.novi.state();
        let name = match rng.u8(..16) {
            0..=6 => {
                let one = format!("/customers/{}", person.hyphenated());
                // Rarely, the fault affects everyone: that is an outage, which differs from faults of single members.
                let path = if rng.u8(..10) == 0 { "/customers/".to_owned() } else { one };
                let (name, fault) = random_novi_fault(rng);
                state.fail(&path, times_of(&fault, rng), fault);
                name
            }
            7..=9 => {
                let (name, fault) = random_novi_fault(rng);
                state.fail(&format!("/groups/{}", group.hyphenated()), times_of(&fault, rng), fault);
                name
            }
            10 => {
                let (name, fault) = random_novi_fault(rng);
                state.fail("/api/members", times_of(&fault, rng), fault);
                name
            }
            11 => {
                state.ignores_offset = true;
                "Novi ignores the offset"
            }
            12 => {
                state.has_drifting_total = true;
                "Novi's total count changes from page to page"
            }
            13 => {
                let record = state.directory.person(person);
                self.hidden.insert(person, record.clone());
                drop(record.as_object_mut().map(|record| record.remove("Email")));
                "Novi hides an address"
            }
            _ => {
                let part = ["POST /3.1/members", "DELETE", "GET /3.1/lists", "/3.1/"][rng.usize(..4)];
                let (name, fault) = random_mailman_fault(rng);
                self.proxy.fail(part, rng.usize(1..4), fault);
                name
            }
        };
        *self.tally.faults.entry(name).or_default() += 1;
    }

    fn clear_faults(&mut self) {
        let mut state = self.mirror.novi.state();
        state.clear_faults();
        (state.ignores_offset, state.has_drifting_total) = (false, false);
        self.proxy.clear_faults();
    }

    /// Makes Novi show all hidden addresses and missing groups again.
    fn restore_hidden(&mut self) {
        let mut state = self.mirror.novi.state();
        let State { directory, .. } = &mut *state;
        for (id, true_record) in std::mem::take(&mut self.hidden) {
            // People who were deleted in the meantime stay deleted.
            directory.people.entry(id).and_modify(|record| *record = true_record);
        }
        directory.groups.append(&mut self.missing_groups);
    }
}

/// Compares what a run did to one list with the model and returns the violations.
fn check_list(
    expected: &Expected,
    target: &Target,
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
    may_write: bool,
    is_forced: bool,
    tally: &mut Tally,
) -> Vec<String> {
    let mut violations = Vec::new();
    let roster = |memberships: &BTreeMap<String, String>| memberships.values().cloned().collect::<BTreeSet<String>>();
    let (roster_before, roster_after) = (roster(before), roster(after));
    if !may_write && before != after {
        violations.push("was changed, but should not have been".to_owned());
    }
    let belongs = |address: &String| {
        expected.wanted.contains(address) || expected.untouched.contains(address) || target.keep.contains(address)
    };
    // Compare Mailman's ids of the memberships: an address that was removed and added again has a new one.
    let removed: Vec<&String> =
        before.iter().filter(|(id, address)| after.get(*id) != Some(*address)).map(|(_, address)| address).collect();
    // If a group is missing in Novi, no removal is justified, even if a fault hides from the mirror that it is missing.
    let wrongly_removed: Vec<&&String> =
        removed.iter().filter(|address| expected.has_missing_group || belongs(address)).collect();
    if !wrongly_removed.is_empty() {
        tally.wrongly_removed += wrongly_removed.len();
        violations.push(format!("lost {wrongly_removed:?}"));
    }
    let wrongly_added: Vec<&String> = roster_after
        .difference(&roster_before)
        .filter(|address| !expected.wanted.contains(*address) || expected.untouched.contains(*address))
        .collect();
    if !wrongly_added.is_empty() {
        tally.wrongly_added += wrongly_added.len();
        violations.push(format!("gained {wrongly_added:?}"));
    }
    let duplicates = (after.len() - roster_after.len()).saturating_sub(before.len() - roster_before.len());
    if duplicates > 0 {
        tally.duplicates += duplicates;
        violations.push(format!("has {duplicates} new duplicate memberships"));
    }
    let limit = (roster_before.len() * target.max_removal_percent / 100).max(3);
    if !is_forced && (removed.len() > limit || (!removed.is_empty() && removed.len() == before.len())) {
        violations.push(format!("lost {} of {}, which is over its limit", removed.len(), before.len()));
    }
    violations
}

/// Returns a random fault of one call to Novi. None of them means that a person is not a member.
fn random_novi_fault(rng: &mut Rng) -> (&'static str, NoviFault) {
    let json = |body: &str| NoviFault::Respond(200, "application/json", body.to_owned());
    match rng.u8(..14) {
        0 => ("Novi responds 500", NoviFault::Respond(500, "text/html", "<html>".to_owned())),
        1 => ("Novi responds 503", NoviFault::Respond(503, "text/html", String::new())),
        2 => ("Novi closes the connection", NoviFault::Disconnect),
        3 => ("Novi doesn't respond", NoviFault::NoResponse),
        4 => ("Novi's response is truncated", NoviFault::TruncatedBody),
        5 => ("Novi's response is endless", NoviFault::EndlessBody),
        6 => ("Novi responds with HTML", NoviFault::Respond(200, "text/html", "<html>".to_owned())),
        7 => ("Novi responds with unexpected JSON", json(r#"["x"]"#)),
        8 => ("Novi responds 200 with an error", json(r#"{"Message":"An error has occurred."}"#)),
        9 => ("Novi responds 403", NoviFault::Forbidden),
        10 => ("Novi's CDN blocks the call", NoviFault::BlockedByCdn),
        11 => ("Novi redirects", NoviFault::Redirect("https://www.example.org/login".to_owned())),
        12 => ("Novi responds 429", NoviFault::RateLimited(Some("1".to_owned()))),
        _ => ("Novi responds 400", NoviFault::Respond(400, "application/json", r#"{"Message":"Bad."}"#.to_owned())),
    }
}

/// Returns a random fault of one request to Mailman.
fn random_mailman_fault(rng: &mut Rng) -> (&'static str, HttpFault) {
    const LOCKED: &str =
        r#"{"title": "400 Bad Request", "description": "(sqlite3.OperationalError) database is locked"}"#;
    match rng.u8(..8) {
        5 | 6 => {
            let delay = Duration::from_millis(rng.u64(..3_000));
            ("Mailman receives a request late, after a disconnect", HttpFault::DisconnectThenDeliver(delay))
        }
        7 => {
            let fault = HttpFault::TimeOutThenDeliver(Arc::new(Semaphore::new(16)));
            ("Mailman's gateway times out, the request is processed", fault)
        }
        0 => ("a request to Mailman is lost", HttpFault::DropRequest),
        1 => ("a response from Mailman is lost", HttpFault::DropResponse),
        2 => ("Mailman's database is locked, with 400", HttpFault::Respond(400, LOCKED)),
        3 => ("Mailman's database is locked, with 500", HttpFault::Respond(500, "<html>database is locked</html>")),
        4 => ("Mailman's gateway responds 502", HttpFault::Respond(502, "<html></html>")),
        _ => ("Mailman's gateway responds 504", HttpFault::Respond(504, "<html></html>")),
    }
}
