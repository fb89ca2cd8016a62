//! A pass: everyone in the mapped groups is asked about once, in one run or in several.

use std::collections::{HashMap, HashSet};

use shared::member::MemberId;
use shared::time::DAY;

use crate::directory::Person;

/// How many people a run can read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    /// The maximum number of calls to Novi in 24 hours.
    pub(crate) per_day: usize,
    /// The number of people that this run may read: its part of a day's calls, and no more than its time lets it.
    pub(crate) of_run: usize,
    /// The number of calls that are left of the last 24 hours.
    pub(crate) left_today: usize,
}

impl Allowance {
    /// Returns the allowance of a run. `per_day` and `per_minute` are the limits of the mirror's calls, `calls_today`
    /// those of the last 24 hours, `period` is the time between two runs in seconds, and `seconds` is this run's time for
    /// reading. `others` is the number of calls that the run makes for anything but people.
    pub(crate) fn new(
        per_day: usize,
        per_minute: usize,
        calls_today: usize,
        period: u64,
        seconds: u64,
        others: usize,
    ) -> Self {
        let part = |calls: usize, seconds: u64, of: u64| {
            usize::try_from(calls as u128 * u128::from(seconds) / u128::from(of)).unwrap_or(usize::MAX)
        };
        let left_today = per_day.saturating_sub(calls_today).saturating_sub(others);
        // At least one, so that every pass ends.
        let of_run = part(per_day, period.min(DAY), DAY).saturating_sub(others).max(1);
        Self { per_day, of_run: of_run.min(part(per_minute, seconds, 60)).min(left_today), left_today }
    }
}

/// The people that a run reads one by one.
pub(crate) struct Reading {
    /// In the order in which they are read.
    pub(crate) people: Vec<MemberId>,
    /// When the pass began, in seconds of Unix time. This run's time if it begins one.
    pub(crate) pass_began: u64,
}

/// Chooses the people to read: those who have never been read, then, with at most half of what is left, those with a last
/// record that would let an address join (`eager`), then the ones that the pass still lacks, and at last those with a record that it
/// could not read. Of each kind, those come first who were asked about the longest ago. If everyone fits into the run, it
/// is a pass of its own.
///
/// `members` are those of the groups that this run concerns. A run that doesn't concern all of them (`is_partial`) begins
/// no pass. `began` is when the last pass began, if there was one.
pub(crate) fn choose(
    members: &HashSet<MemberId>,
    earlier: &HashMap<MemberId, Person>,
    eager: &HashSet<MemberId>,
    began: Option<u64>,
    now: u64,
    allowance: Allowance,
    is_partial: bool,
) -> Reading {
    let is_asked =
        |began: u64| move |member: &&MemberId| earlier.get(*member).is_some_and(|person| person.asked >= began);
    let is_known = |member: &MemberId| earlier.contains_key(member);
    let fits = members.len() <= allowance.of_run;
    let is_due = |began: u64| {
        let interval = u128::from(DAY) * members.len() as u128 / allowance.per_day.max(1) as u128;
        u128::from(now.saturating_sub(began)) >= interval
    };
    let is_incomplete = |began: u64| {
        members.iter().any(|member| is_known(member) && !is_asked(began)(&member))
            // A few new people don't hold up the next pass. They are read first in any case.
            || members.iter().filter(|member| !is_known(member)).count() > allowance.of_run
    };
    let pass_began = match began {
        Some(began) if is_partial => began,
        // A run that can read everyone decides nothing by what an earlier one read.
        Some(began) if !fits && (is_incomplete(began) || !is_due(began)) => began,
        _ => now,
    };
    let mut order: Vec<MemberId> = members.iter().copied().collect();
    fastrand::shuffle(&mut order);
    if fits && (is_partial || pass_began == now) {
        return Reading { people: order, pass_began };
    }
    // The longest since the last read first. Otherwise someone who came first in one pass may come last in the next.
    order.sort_by_cached_key(|member| earlier.get(member).map(|person| person.asked));
    let is_new = |member: &&MemberId| !is_known(member);
    let mut people: Vec<MemberId> = order.iter().filter(is_new).copied().take(allowance.of_run).collect();
    let half = (allowance.of_run - people.len()).div_ceil(2);
    people.extend(order.iter().filter(|member| !is_new(member) && eager.contains(*member)).take(half));
    let chosen: HashSet<MemberId> = people.iter().copied().collect();
    let lacking = order.iter().filter(|member| !is_asked(pass_began)(member));
    let unknown = order
        .iter()
        .filter(|member| is_asked(pass_began)(member) && earlier.get(*member).is_some_and(|person| person.is_unknown));
    let others = lacking.chain(unknown).filter(|member| !chosen.contains(*member));
    people.extend(others.take(allowance.of_run - chosen.len()));
    Reading { people, pass_began }
}

shared::unprintable!(Reading);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use uuid::Uuid;

    use super::*;
    use crate::directory::MemberStatus;

    fn ids(range: std::ops::Range<u128>) -> HashSet<MemberId> {
        range.filter_map(|n| MemberId::parse(&Uuid::from_u128(n + 1).hyphenated().to_string())).collect()
    }

    /// Returns a person. Novi was asked at this time.
    fn person(asked: u64) -> Person {
        Person { asked, is_unknown: false, status: MemberStatus::NoEmail, former: BTreeSet::new() }
    }

    const HOUR: u64 = 3_600;

    fn simulate(people: u128, per_day: usize, runs: u64) -> Vec<(usize, u64)> {
        simulate_with_gap(people, per_day, runs).0
    }

    /// Simulates runs that are an hour apart. Returns for each of them how many people it reads and when its pass began,
    /// in hours. Also returns the longest time between two reads of the same person, in hours.
    fn simulate_with_gap(people: u128, per_day: usize, runs: u64) -> (Vec<(usize, u64)>, u64) {
        let members = ids(0..people);
        let mut earlier: HashMap<MemberId, Person> = HashMap::new();
        let (mut began, mut result, mut calls, mut longest_gap) = (None, Vec::new(), Vec::new(), 0);
        for run in 1..=runs {
            let now = run * HOUR;
            let today: usize = calls.iter().filter(|(at, _)| *at + DAY > now).map(|(_, calls)| calls).sum();
            let allowance = Allowance::new(per_day, 400, today, HOUR, 720, 0);
            let reading = choose(&members, &earlier, &HashSet::new(), began, now, allowance, false);
            began = Some(reading.pass_began);
            calls.push((now, reading.people.len()));
            result.push((reading.people.len(), reading.pass_began / HOUR));
            for member in reading.people {
                if let Some(before) = earlier.insert(member, person(now)) {
                    longest_gap = longest_gap.max((now - before.asked) / HOUR);
                }
            }
        }
        (result, longest_gap)
    }

    #[test]
    fn every_run_is_a_pass_if_everyone_fits() {
        assert_eq!(simulate(2_000, 50_000, 3), [(2_000, 1), (2_000, 2), (2_000, 3)]);
    }

    #[test]
    fn pass_goes_on_over_several_runs_as_the_allowance_comes() {
        let runs = simulate(6_000, 50_000, 7);
        assert_eq!(
            runs.iter().map(|(read, _)| *read).collect::<Vec<_>>(),
            [2_083, 2_083, 1_834, 2_083, 2_083, 1_834, 2_083]
        );
        assert_eq!(runs.iter().map(|(_, began)| *began).collect::<Vec<_>>(), [1, 1, 1, 4, 4, 4, 7]);
        let day: usize = simulate(6_000, 50_000, 24).iter().map(|(read, _)| read).sum();
        assert!(day <= 50_000, "{day}");
        // 300 people with 200 calls a day take a day and a half.
        let runs = simulate(300, 200, 40);
        assert_eq!(runs.iter().position(|(_, began)| *began > 1), Some(37));
        // As many as a run has time for.
        assert_eq!(simulate(20_000, 500_000, 2), [(4_800, 1), (4_800, 1)]);
    }

    #[test]
    fn no_one_waits_longer_for_the_next_read_than_a_pass_takes() {
        assert_eq!(simulate_with_gap(6_000, 50_000, 24).1, 3);
        assert_eq!(simulate_with_gap(4_000, 10_000, 25).1, 10);
    }

    #[test]
    fn new_people_come_first_and_then_half_of_those_who_may_join() {
        let members = ids(0..100);
        let earlier: HashMap<_, _> = ids(10..100).into_iter().map(|id| (id, person(5))).collect();
        let eager = ids(50..100);
        let allowance = Allowance { per_day: 1_000, of_run: 30, left_today: 1_000 };
        let reading = choose(&members, &earlier, &eager, Some(9), 10, allowance, false);
        assert_eq!((reading.people.len(), reading.pass_began), (30, 9));
        assert!(reading.people[..10].iter().all(|id| ids(0..10).contains(id)));
        assert!(reading.people[10..20].iter().all(|id| eager.contains(id)));
        assert!(reading.people.iter().collect::<HashSet<_>>().len() == 30);
        // Between passes only these are read.
        let asked: HashMap<_, _> = ids(0..100).into_iter().map(|id| (id, person(9))).collect();
        let reading = choose(&members, &asked, &ids(0..3), Some(9), 10, allowance, false);
        assert_eq!((reading.people.len(), reading.pass_began), (3, 9));
    }

    #[test]
    fn run_that_can_read_everyone_reads_everyone_anew_after_an_interrupted_one() {
        let interrupted = ids(0..5).into_iter().map(|id| (id, person(9)));
        let earlier: HashMap<_, _> = interrupted.chain(ids(5..10).into_iter().map(|id| (id, person(5)))).collect();
        let allowance = Allowance { per_day: 1_000, of_run: 30, left_today: 1_000 };
        let reading = choose(&ids(0..10), &earlier, &HashSet::new(), Some(9), 10, allowance, false);
        assert_eq!((reading.people.len(), reading.pass_began), (10, 10));
    }

    #[test]
    fn new_people_do_not_hold_up_the_next_pass() {
        let earlier: HashMap<_, _> = ids(0..10).into_iter().map(|id| (id, person(9))).collect();
        let allowance = Allowance { per_day: 1_000, of_run: 30, left_today: 1_000 };
        let reading = choose(&ids(0..11), &earlier, &HashSet::new(), Some(9), 10, allowance, false);
        assert_eq!((reading.people.len(), reading.pass_began), (11, 10));
    }

    #[test]
    fn run_that_concerns_some_lists_begins_no_pass() {
        let allowance = Allowance { per_day: 1_000, of_run: 30, left_today: 1_000 };
        let reading = choose(&ids(0..10), &HashMap::new(), &HashSet::new(), Some(9), 1_000_000, allowance, true);
        assert_eq!((reading.people.len(), reading.pass_began), (10, 9));
    }
}
