//! A model of what the mirror may and must do, driven at random against the
//! real function between a simulated Novi and a real Mailman.
//!
//! A *sequence* is a few rounds and an end. In a round Novi changes, people meddle
//! with the lists by hand, faults of every kind are injected, and the mirror
//! runs; what each run did is held against the model. At the end the faults
//! are mended, and two runs must make every roster what the model says. All of
//! it follows from a seed.

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
use crate::http_proxy::{HttpFault, Proxy};
use crate::mailman::{Database, Mailman};
use crate::novi::{Fault, State};

/// What sequences came to.
#[derive(Default)]
pub struct Tally {
    /// Sequences that ended.
    pub sequences: usize,
    /// Runs of the mirror.
    pub runs: usize,
    /// Lists that ended a run so, by status.
    pub statuses: BTreeMap<String, usize>,
    /// Faults that were injected, by kind.
    pub faults: BTreeMap<&'static str, usize>,
    /// Members who were there, should be, and were away or gone.
    pub wrongly_removed: usize,
    /// People who were added and should not be.
    pub wrongly_added: usize,
    /// Addresses that became members twice.
    pub duplicates: usize,
    /// Whatever else was not as the model says, with the seed that shows it again.
    pub wrong: Vec<String>,
}

impl Tally {
    /// Whether nothing was wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.wrongly_removed + self.wrongly_added + self.duplicates == 0 && self.wrong.is_empty()
    }

    /// Takes in what another one counted.
    pub fn add(&mut self, other: Self) {
        self.sequences += other.sequences;
        self.runs += other.runs;
        self.wrongly_removed += other.wrongly_removed;
        self.wrongly_added += other.wrongly_added;
        self.duplicates += other.duplicates;
        self.wrong.extend(other.wrong);
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
        writeln!(f, "{} sequences, {} runs; lists ended {}", self.sequences, self.runs, statuses.join(", "))?;
        writeln!(f, "{faults} faults injected:")?;
        for (fault, count) in &self.faults {
            writeln!(f, "  {count:6} {fault}")?;
        }
        writeln!(f, "members wrongly removed: {}", self.wrongly_removed)?;
        writeln!(f, "strangers wrongly added: {}", self.wrongly_added)?;
        write!(f, "duplicates made:         {}", self.duplicates)?;
        for wrong in &self.wrong {
            write!(f, "\n\n{wrong}")?;
        }
        Ok(())
    }
}

/// Where sequences run: a Mailman that outlives them.
pub struct Stage {
    mailman: Option<Mailman>,
}

impl Stage {
    /// Starts a Mailman on a database.
    ///
    /// # Errors
    /// Where it does not start.
    pub async fn start(database: Database) -> Result<Self> {
        Ok(Self { mailman: Some(Mailman::start_on(database).await?) })
    }

    /// Runs the sequence of a seed.
    ///
    /// # Errors
    /// Where something of the test's own does not work.
    pub async fn play(&mut self, seed: u64) -> Result<Tally> {
        let mailman = self.mailman.take().context("an earlier sequence broke off")?;
        let mut sequence = Sequence::start(mailman, seed).await?;
        let rounds = sequence.rng.usize(2..=5);
        for _ in 0..rounds {
            sequence.round().await.with_context(|| format!("seed {seed}"))?;
        }
        sequence.end().await.with_context(|| format!("seed {seed}"))?;
        let Sequence { world, tally, .. } = sequence;
        self.mailman = Some(world.mailman);
        Ok(tally)
    }
}

/// A list and what is mapped to it.
struct Target {
    id: String,
    groups: Vec<Uuid>,
    keep: BTreeSet<String>,
    max_removal_percent: usize,
}

struct Sequence {
    seed: u64,
    rng: Rng,
    world: Mirror,
    proxy: Proxy,
    targets: Vec<Target>,
    /// Records as they are, of people whose address Novi hides for a while.
    veiled: BTreeMap<Uuid, Value>,
    /// Groups that Novi does not know for a while.
    lost: BTreeMap<Uuid, Vec<Uuid>>,
    /// Addresses that Mailman refuses on every list.
    banned: BTreeSet<String>,
    tally: Tally,
}

/// What a list should hold, as Novi's truth has it.
#[derive(Default)]
struct Truth {
    wanted: BTreeSet<String>,
    /// Neither to be added nor to be removed.
    untouched: BTreeSet<String>,
    is_missing: bool,
}

/// What one record says.
enum Says {
    Wanted(String),
    Untouched(String),
    Nothing,
}

fn says(record: &Value) -> Says {
    let address = record["Email"].as_str().unwrap_or_default().trim().replace(' ', "+").to_lowercase();
    if address.is_empty() {
        return Says::Nothing;
    }
    // Of the addresses that a sequence makes up these are the ones that mail cannot reach.
    let is_valid = address.is_ascii() && address.contains('@') && !address.contains("..");
    match (record["Active"].as_bool(), record["UnsubscribeFromEmails"].as_bool()) {
        (None, _) | (_, None) => Says::Untouched(address),
        (Some(true), Some(false)) if is_valid => Says::Wanted(address),
        (Some(true), Some(false)) => Says::Untouched(address),
        _ => Says::Nothing,
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
        // One group, two groups, and one that another list has too; each with limits of its own.
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
        let mut world = Mirror::start_on(mailman, directory, json!(mappings), &variables).await?;
        {
            let mut state = world.novi.state();
            (state.counted, state.wrapped, state.page_limit) = (rng.bool(), rng.bool(), rng.usize(2..15));
            state.listed = rng.bool().then(Vec::new);
        }
        let proxy = world.put_proxy().await?;
        let (veiled, lost, banned) = Default::default();
        Ok(Self { seed, rng, world, proxy, targets, veiled, lost, banned, tally: Tally::default() })
    }

    async fn round(&mut self) -> Result<()> {
        for _ in 0..self.rng.usize(0..6) {
            self.change();
        }
        for _ in 0..self.rng.usize(0..3) {
            self.meddle().await?;
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
        // Some faults last longer than a round.
        if self.rng.bool() {
            self.mend();
        }
        Ok(())
    }

    async fn end(&mut self) -> Result<()> {
        self.mend();
        self.reveal();
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
            let there: BTreeSet<String> = self.world.mailman.memberships(&target.id).await?.into_values().collect();
            expected.push(self.expected(target, &there));
        }
        let second = self.run(&json!({"force": blocked}), None).await?;
        for (target, expected) in self.targets.iter().zip(&expected) {
            let roster: BTreeSet<String> = self.world.mailman.memberships(&target.id).await?.into_values().collect();
            if roster != *expected {
                self.tally.wrong.push(format!(
                    "seed {}: after two runs {} misses {:?} and has {:?} too many; the first: {report}; the second: {second}",
                    self.seed,
                    target.id,
                    expected.difference(&roster).collect::<Vec<_>>(),
                    roster.difference(expected).collect::<Vec<_>>(),
                ));
            }
        }
        // A third has nothing to do, but for those whom Mailman refuses.
        self.proxy.forget();
        let report = self.run(&json!({}), None).await?;
        let writes = self.proxy.seen().iter().filter(|request| !request.line.starts_with("GET")).count();
        if writes > 0 && self.banned.is_empty() {
            self.tally.wrong.push(format!("seed {}: a third run made {writes} writes: {report}", self.seed));
        }
        self.tally.sequences += 1;
        Ok(())
    }

    /// Runs the mirror, and holds what it did against the model.
    async fn run(&mut self, event: &Value, restart_at: Option<usize>) -> Result<Value> {
        let mails = self.world.mailman.outgoing_mails()?;
        let mut before = Vec::new();
        for target in &self.targets {
            before.push(self.world.mailman.memberships(&target.id).await?);
        }
        let Mirror { function, mailman, .. } = &mut self.world;
        self.proxy.forget();
        let returned = match restart_at {
            None => function.invoke(event).await?,
            Some(requests) => {
                let run = function.invoke(event);
                tokio::pin!(run);
                tokio::select! {
                    returned = &mut run => returned?,
                    () = self.proxy.wait_for("/3.1/", requests) => {
                        mailman.restart()?;
                        *self.tally.faults.entry("Mailman crashes in the middle").or_default() += 1;
                        run.await?
                    }
                }
            }
        };
        // The next run is further away than a request takes that Mailman was late with.
        self.proxy.settle().await;
        let report = crate::harness::report(returned)?;
        self.tally.runs += 1;
        let forced: BTreeSet<&str> =
            event["force"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for (target, before) in self.targets.iter().zip(&before) {
            let after = self.world.mailman.memberships(&target.id).await?;
            let is_concerned = event["lists"].as_array().is_none_or(|lists| lists.iter().any(|id| *id == target.id));
            let status = if is_concerned {
                let status = list(&report, &target.id)["status"].as_str().unwrap_or_default().to_owned();
                *self.tally.statuses.entry(status.clone()).or_default() += 1;
                status
            } else {
                "blocked".to_owned()
            };
            let is_forced = forced.contains(target.id.as_str());
            let may_write = event["dry_run"] != true && status != "blocked";
            let wrong = judge(&self.truth(target), target, before, &after, may_write, is_forced, &mut self.tally);
            for wrong in wrong {
                let wrong = format!("seed {}: {} {wrong}; event {event}, report {report}", self.seed, target.id);
                self.tally.wrong.push(wrong);
            }
        }
        let more = self.world.mailman.outgoing_mails()? - mails;
        if more > 0 {
            self.tally.wrong.push(format!("seed {}: {more} mails went out", self.seed));
        }
        Ok(report)
    }

    fn truth(&self, target: &Target) -> Truth {
        let mut truth = Truth::default();
        let state = self.world.novi.state();
        for group in &target.groups {
            let Some(members) = state.directory.groups.get(group) else {
                truth.is_missing = true;
                continue;
            };
            for id in members {
                let record = self.veiled.get(id).or_else(|| state.directory.people.get(id));
                match record.map_or(Says::Nothing, says) {
                    Says::Wanted(address) => drop(truth.wanted.insert(address)),
                    Says::Untouched(address) => drop(truth.untouched.insert(address)),
                    Says::Nothing => {}
                }
            }
        }
        truth
    }

    /// What a list must hold in the end, given who is there.
    fn expected(&self, target: &Target, there: &BTreeSet<String>) -> BTreeSet<String> {
        let Truth { wanted, untouched, .. } = self.truth(target);
        let stays = there.iter().filter(|address| {
            wanted.contains(*address) || untouched.contains(*address) || target.keep.contains(*address)
        });
        let comes = wanted.iter().filter(|address| !untouched.contains(*address) && !self.banned.contains(*address));
        stays.chain(comes).cloned().collect()
    }

    /// Somebody, or nobody where there is nobody.
    fn anybody(&mut self) -> Option<Uuid> {
        let state = self.world.novi.state();
        let all: Vec<Uuid> =
            state.directory.people.keys().filter(|id| !self.veiled.contains_key(id)).copied().collect();
        drop(state);
        (!all.is_empty()).then(|| all[self.rng.usize(..all.len())])
    }

    fn any_group(&mut self) -> Option<Uuid> {
        let all: Vec<Uuid> = self.world.novi.state().directory.groups.keys().copied().collect();
        (!all.is_empty()).then(|| all[self.rng.usize(..all.len())])
    }

    /// Changes something at Novi.
    fn change(&mut self) {
        let (Some(who), Some(other), Some(group)) = (self.anybody(), self.anybody(), self.any_group()) else { return };
        let rng = &mut self.rng;
        let number = rng.u32(..0x0100_0000);
        let kind = rng.u8(..20);
        let mut state = self.world.novi.state();
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
            7 if !members.contains(&who) => members.push(who),
            8 => members.clear(),
            9 => drop(directory.groups.remove(&group).map(|members| self.lost.insert(group, members))),
            10 => drop(directory.people.remove(&who)),
            11 => directory.person(who)["Active"] = json!(rng.bool()),
            12 => directory.person(who)["UnsubscribeFromEmails"] = json!(rng.bool()),
            13 => directory.person(who)["Email"] = json!(format!("Moved{number:06x} x@mail.example.org ")),
            14 => directory.person(who)["Email"] = shared,
            15 => directory.person(who)["Email"] = [json!(null), json!(" ")][rng.usize(..2)].clone(),
            16 => directory.person(who)["Email"] = json!(["no address", "ö@example.org", "a..b@x.org"][rng.usize(..3)]),
            17 => directory.person(who)["Active"] = json!(null),
            18 => drop(directory.person(who).as_object_mut().map(|record| record.remove("UnsubscribeFromEmails"))),
            _ => {
                let record = directory.person(who);
                (record["Active"], record["UnsubscribeFromEmails"]) = (json!(true), json!(false));
            }
        }
    }

    /// Changes something at Mailman, as its administrator would.
    async fn meddle(&mut self) -> Result<()> {
        let number = self.rng.u32(..0x0100_0000);
        let target = self.rng.usize(..self.targets.len());
        let somebody = self.anybody().map(|id| self.world.novi.state().directory.address(id));
        let target = &self.targets[target];
        let mailman = &self.world.mailman;
        let members: Vec<String> = mailman.memberships(&target.id).await?.into_keys().collect();
        match self.rng.u8(..5) {
            0 => mailman.subscribe(&target.id, &format!("byhand{number:06x}@mail.example.org"), "member").await?,
            1 => {
                for keep in &target.keep {
                    // It may be there already.
                    let _ = mailman.subscribe(&target.id, keep, "member").await;
                }
            }
            2 if !members.is_empty() => {
                let path = format!("members/{}", members[self.rng.usize(..members.len())]);
                let (status, _) = mailman.ask(Method::DELETE, &path, None).await?;
                ensure!(status == 204, "{path} is not deleted: {status}");
            }
            3 => {
                let Some(address) = somebody.filter(|address| address.contains('@') && address.is_ascii()) else {
                    return Ok(());
                };
                // A request that waits for its confirmation, unless the address is there already.
                let request = json!({"list_id": target.id, "subscriber": address});
                mailman.ask(Method::POST, "members", Some(request)).await?;
            }
            4 => {
                let Some(address) = somebody.filter(|address| address.contains('@') && address.is_ascii()) else {
                    return Ok(());
                };
                for target in &self.targets {
                    mailman
                        .ask(Method::POST, &format!("lists/{}/bans", target.id), Some(json!({"email": address})))
                        .await?;
                }
                self.banned.insert(address);
            }
            _ => {}
        }
        Ok(())
    }

    /// Injects a fault.
    fn inject(&mut self) {
        let (Some(who), Some(group)) = (self.anybody(), self.any_group()) else { return };
        let rng = &mut self.rng;
        // Ten waits of a second each would make a long night of it.
        let times_of = |fault: &Fault, rng: &mut Rng| match fault {
            Fault::RateLimited(_) => 2,
            _ if rng.bool() => usize::MAX,
            _ => rng.usize(1..5),
        };
        let mut state = self.world.novi.state();
        let name = match rng.u8(..16) {
            0..=6 => {
                let person = format!("/customers/{}", who.hyphenated());
                // Everybody at once would be an outage, which is a kind of its own.
                let place = if rng.u8(..10) == 0 { "/customers/".to_owned() } else { person };
                let (name, fault) = any_fault(rng);
                state.fail(&place, times_of(&fault, rng), fault);
                name
            }
            7..=9 => {
                let (name, fault) = any_fault(rng);
                state.fail(&format!("/groups/{}", group.hyphenated()), times_of(&fault, rng), fault);
                name
            }
            10 => {
                let (name, fault) = any_fault(rng);
                state.fail("/api/members", times_of(&fault, rng), fault);
                name
            }
            11 => {
                state.ignores_offset = true;
                "Novi ignores the offset"
            }
            12 => {
                state.drifts = true;
                "Novi's count changes from page to page"
            }
            13 => {
                let record = state.directory.person(who);
                self.veiled.insert(who, record.clone());
                drop(record.as_object_mut().map(|record| record.remove("Email")));
                "Novi hides an address"
            }
            _ => {
                let part = ["POST /3.1/members", "DELETE", "GET /3.1/lists", "/3.1/"][rng.usize(..4)];
                let (name, mishap) = any_mishap(rng);
                self.proxy.fail(part, rng.usize(1..4), mishap);
                name
            }
        };
        *self.tally.faults.entry(name).or_default() += 1;
    }

    fn mend(&mut self) {
        let mut state = self.world.novi.state();
        state.mend();
        (state.ignores_offset, state.drifts) = (false, false);
        self.proxy.mend();
    }

    /// Novi knows again what it hid.
    fn reveal(&mut self) {
        let mut state = self.world.novi.state();
        let State { directory, .. } = &mut *state;
        for (id, record) in std::mem::take(&mut self.veiled) {
            // Who was deleted meanwhile stays deleted.
            directory.people.entry(id).and_modify(|veiled| *veiled = record);
        }
        directory.groups.append(&mut self.lost);
    }
}

/// Compares what a run did to one list against the truth.
fn judge(
    truth: &Truth,
    target: &Target,
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
    may_write: bool,
    is_forced: bool,
    tally: &mut Tally,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let roster = |memberships: &BTreeMap<String, String>| memberships.values().cloned().collect::<BTreeSet<String>>();
    let (was, is) = (roster(before), roster(after));
    if !may_write && before != after {
        wrong.push("was touched and should not have been".to_owned());
    }
    // By Mailman's own id of a membership: who was away for a moment has another one.
    let belongs = |address: &String| {
        truth.wanted.contains(address) || truth.untouched.contains(address) || target.keep.contains(address)
    };
    let removed: Vec<&String> =
        before.iter().filter(|(id, address)| after.get(*id) != Some(*address)).map(|(_, address)| address).collect();
    // A group that Novi does not know says nothing about anybody, even where a fault hides that it does not.
    let wrongly: Vec<&&String> = removed.iter().filter(|address| truth.is_missing || belongs(address)).collect();
    if !wrongly.is_empty() {
        tally.wrongly_removed += wrongly.len();
        wrong.push(format!("lost {wrongly:?}"));
    }
    let strangers: Vec<&String> = is
        .difference(&was)
        .filter(|address| !truth.wanted.contains(*address) || truth.untouched.contains(*address))
        .collect();
    if !strangers.is_empty() {
        tally.wrongly_added += strangers.len();
        wrong.push(format!("was given {strangers:?}"));
    }
    let doubled = (after.len() - is.len()).saturating_sub(before.len() - was.len());
    if doubled > 0 {
        tally.duplicates += doubled;
        wrong.push(format!("has {doubled} members twice"));
    }
    let limit = (was.len() * target.max_removal_percent / 100).max(3);
    if !is_forced && (removed.len() > limit || (!removed.is_empty() && removed.len() == before.len())) {
        wrong.push(format!("lost {} of {}, past its limit", removed.len(), before.len()));
    }
    wrong
}

/// What Novi does to one call. None of it says that somebody is no member.
fn any_fault(rng: &mut Rng) -> (&'static str, Fault) {
    let json = |body: &str| Fault::Answer(200, "application/json", body.to_owned());
    match rng.u8(..14) {
        0 => ("Novi answers 500", Fault::Answer(500, "text/html", "<html>".to_owned())),
        1 => ("Novi answers 503", Fault::Answer(503, "text/html", String::new())),
        2 => ("Novi hangs up", Fault::HangUp),
        3 => ("Novi is silent", Fault::Silence),
        4 => ("Novi's answer is cut off", Fault::HalfBody),
        5 => ("Novi's answer does not end", Fault::EndlessBody),
        6 => ("Novi answers HTML", Fault::Answer(200, "text/html", "<html>".to_owned())),
        7 => ("Novi answers something else", json(r#"["x"]"#)),
        8 => ("Novi answers an error with 200", json(r#"{"Message":"An error has occurred."}"#)),
        9 => ("Novi forbids it", Fault::Forbidden),
        10 => ("the CDN refuses", Fault::Blocked),
        11 => ("Novi redirects", Fault::Redirect("https://www.example.org/login".to_owned())),
        12 => ("Novi answers 429", Fault::RateLimited(Some("1".to_owned()))),
        _ => ("Novi answers 400", Fault::Answer(400, "application/json", r#"{"Message":"Bad."}"#.to_owned())),
    }
}

/// What becomes of one request to Mailman.
fn any_mishap(rng: &mut Rng) -> (&'static str, HttpFault) {
    const LOCKED: &str =
        r#"{"title": "400 Bad Request", "description": "(sqlite3.OperationalError) database is locked"}"#;
    match rng.u8(..8) {
        5 | 6 => {
            let after = Duration::from_millis(rng.u64(..3_000));
            ("a request to Mailman is lost, and done later", HttpFault::LostAndDone(after))
        }
        7 => ("a proxy gives up waiting for Mailman", HttpFault::GivenUp(Arc::new(Semaphore::new(16)))),
        0 => ("a request to Mailman is lost", HttpFault::Lost),
        1 => ("an answer of Mailman's is lost", HttpFault::DoneAndLost),
        2 => ("Mailman's database is locked, as 400", HttpFault::Answer(400, LOCKED)),
        3 => ("Mailman's database is locked, as 500", HttpFault::Answer(500, "<html>database is locked</html>")),
        4 => ("a proxy answers 502 for Mailman", HttpFault::Answer(502, "<html></html>")),
        _ => ("a proxy answers 504 for Mailman", HttpFault::Answer(504, "<html></html>")),
    }
}
