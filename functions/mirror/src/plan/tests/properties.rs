//! Properties of a plan for each of its rules, over arbitrary scenarios.

use proptest::prelude::*;

use super::*;

/// A scenario in numbers, because a scenario itself can't be printed.
#[derive(Clone, Debug)]
struct Seed {
    /// The kind of each status, and the number of its address.
    statuses: Vec<(u8, u8)>,
    roster: BTreeSet<u8>,
    keep: BTreeSet<u8>,
    /// The result of reading each mapped group.
    ends: Vec<GroupEnd>,
    rows_without_id: usize,
    not_yet_read: usize,
    limits: (u64, u64),
    is_add_only: bool,
    has_unresolved_mapping: bool,
    is_other_list_missing: bool,
    force: Option<(usize, usize, usize)>,
}

fn address(number: u8) -> Address {
    Address::new(&format!("p{number:02}@example.org"))
}

impl Seed {
    fn scenario(&self) -> Scenario {
        let mut scenario = Scenario::new();
        for (kind, number) in &self.statuses {
            let address = address(*number);
            scenario = scenario.member(match kind {
                0 => MemberStatus::Hidden(address),
                1 => MemberStatus::Inactive(address),
                2 => MemberStatus::OptedOut(address),
                3 => MemberStatus::NoEmail,
                4 => MemberStatus::NotFound,
                // Rare, or every scenario would contain unknown records.
                5 if *number < 4 => MemberStatus::Unknown,
                6 => MemberStatus::InvalidEmail(BTreeSet::from([address])),
                _ => MemberStatus::Member { address, name: None, after_space: None },
            });
        }
        scenario = scenario.not_yet_read(self.not_yet_read);
        // Every member is in one of the mapped groups, and some are in all of them.
        let members = std::mem::take(&mut scenario.first_group().members);
        scenario.people.groups.clear();
        for (n, end) in self.ends.iter().enumerate() {
            let is_in = |index: &usize| index % self.ends.len() == n || index.is_multiple_of(5);
            let members = members.iter().enumerate().filter(|(index, _)| is_in(index)).map(|(_, id)| *id).collect();
            let rows_without_id = if n == 0 { self.rows_without_id } else { 0 };
            let group = Group { members, rows_without_id, missing_rows: 0, end: end.clone() };
            scenario.people.groups.insert(Uuid::from_u128(n as u128), group);
        }
        scenario.target.groups = scenario.people.groups.keys().copied().collect();
        scenario.target.keep = self.keep.iter().copied().map(address).collect();
        scenario.target.is_add_only = self.is_add_only;
        scenario.target.has_unresolved_mapping = self.has_unresolved_mapping;
        if self.is_other_list_missing {
            scenario.missing_lists.extend(ListId::parse("other.lists.example.org"));
        }
        let force = self.force.map(|(joins, leaves, unknown)| Force { joins, leaves, unknown, ..Force::default() });
        Scenario { roster: self.roster.iter().copied().map(address).collect(), force, ..scenario }
            .with_limits(self.limits.0, self.limits.1)
    }
}

fn any_seed() -> impl Strategy<Value = Seed> {
    let end = prop_oneof![16 => Just(GroupEnd::Complete), 1 => Just(GroupEnd::Missing), 1 => Just(incomplete())];
    let numbers = |most| proptest::collection::btree_set(0_u8..40, 0..most);
    let people = (proptest::collection::vec((0_u8..16, 0_u8..40), 0..40), numbers(40), numbers(4));
    let groups = (proptest::collection::vec(end, 1..4), rarely(3), rarely(3));
    let flags = (rarely_true(), rarely_true(), rarely_true());
    let limits = (0_u64..=100, 0_u64..=200);
    let force = proptest::option::of((0_usize..40, 0_usize..40, 0_usize..4));
    (people, groups, flags, limits, force).prop_map(|(people, groups, flags, limits, force)| Seed {
        statuses: people.0,
        roster: people.1,
        keep: people.2,
        ends: groups.0,
        rows_without_id: groups.1,
        not_yet_read: groups.2,
        limits,
        is_add_only: flags.0,
        has_unresolved_mapping: flags.1,
        is_other_list_missing: flags.2,
        force,
    })
}

fn rarely(most: usize) -> impl Strategy<Value = usize> {
    prop_oneof![6 => Just(0), 1 => 1..=most]
}

fn rarely_true() -> impl Strategy<Value = bool> {
    prop_oneof![8 => Just(false), 1 => Just(true)]
}

/// The larger of a floor and a percentage, written in another way than the plan does.
fn within(n: usize, floor: usize, base: usize, percent: u64) -> bool {
    n <= floor || n as u64 * 100 <= base as u64 * percent
}

fn is_within_removal_limit(n: usize, base: usize, limits: Limits) -> bool {
    n == 0
        || (within(n, if base >= 10 { 3 } else { 1 }, base, limits.max_removal_percent)
            && (n < base || limits.max_removal_percent == 100))
}

fn is_within_growth_limit(n: usize, base: usize, limits: Limits) -> bool {
    base == 0 || within(n, 5, base, limits.max_growth_percent)
}

/// Facts of a scenario, found in another way than the plan does.
struct Counts {
    base: usize,
    leaving: usize,
    joining: usize,
    unknown: usize,
    not_yet_read: usize,
    is_incomplete: bool,
    is_in_doubt: bool,
}

impl Scenario {
    fn counts(&self) -> Counts {
        let statuses = || self.people.members_of(&self.target).into_iter().map(|id| self.people.status(id));
        let with = |is: fn(&MemberStatus) -> bool| -> BTreeSet<&Address> {
            statuses().filter(|status| is(status)).flat_map(MemberStatus::addresses).collect()
        };
        let wanted = with(|status| matches!(status, MemberStatus::Member { .. }));
        let untouched = with(|status| matches!(status, MemberStatus::Hidden(_) | MemberStatus::InvalidEmail(_)));
        let stay: BTreeSet<&Address> = wanted.union(&untouched).copied().collect();
        let others: Vec<&Address> = self.roster.iter().filter(|address| !stay.contains(address)).collect();
        let leaving = others.iter().filter(|address| !self.target.keep.contains(**address)).count();
        let groups = || self.people.groups.values();
        let is_empty =
            |group: &&Group| group.members.is_empty() && group.rows_without_id == 0 && group.end == GroupEnd::Complete;
        let vacant = groups().filter(is_empty).count();
        Counts {
            base: self.roster.len() - (others.len() - leaving),
            leaving: if self.target.is_add_only { 0 } else { leaving },
            joining: wanted
                .iter()
                .filter(|address| !self.roster.contains(**address) && !untouched.contains(*address))
                .count(),
            unknown: statuses().filter(|status| matches!(status, MemberStatus::Unknown)).count()
                + groups().map(|group| group.rows_without_id).sum::<usize>(),
            not_yet_read: statuses().filter(|status| matches!(status, MemberStatus::NotYetRead)).count(),
            is_incomplete: groups().any(|group| matches!(group.end, GroupEnd::Incomplete(_))),
            is_in_doubt: !self.target.is_add_only
                && (self.target.has_unresolved_mapping
                    || !self.missing_lists.is_empty()
                    || (vacant > 0 && vacant < self.people.groups.len())),
        }
    }
}

proptest! {
    /// Applying a plan to a model roster results in the wanted and kept addresses, and a second plan has nothing to do.
    #[test]
    fn applied_plan_is_correct_and_the_next_one_is_empty(seed in any_seed()) {
        let mut scenario = seed.scenario();
        let (before, plan) = (scenario.roster.clone(), scenario.plan());
        scenario.run();
        prop_assert!(before.intersection(&scenario.target.keep).all(|address| scenario.roster.contains(address)));
        match plan.verdict {
            Verdict::Blocked(_) | Verdict::Held { .. } => prop_assert!(before == scenario.roster),
            Verdict::Sound(removals) => {
                let counts = scenario.counts();
                prop_assert_eq!(counts.joining, 0, "not everyone who is wanted has joined");
                match removals {
                    Removals::All => prop_assert_eq!(counts.leaving, 0, "not everyone who leaves has left"),
                    Removals::OptedOut => {}
                    Removals::Withheld => prop_assert!(before.is_subset(&scenario.roster)),
                }
                // What was accepted once isn't forced again.
                scenario.force = None;
                let second = scenario.plan();
                prop_assert!(removals != Removals::All || (second.joins.is_empty() && second.leaves.is_empty()));
            }
        }
    }

    /// The report's numbers add up, whatever the verdict is.
    #[test]
    fn leaver_who_stays_is_withheld(seed in any_seed()) {
        let (scenario, plan) = (seed.scenario(), seed.scenario().plan());
        let counts = scenario.counts();
        prop_assert_eq!(plan.leaves.len(), counts.leaving);
        prop_assert_eq!(plan.joins.len(), counts.joining);
        prop_assert_eq!(plan.withheld() + plan.unsubscribe().len(), counts.leaving);
        let texts = [plan.to_string(), plan.reason()];
        prop_assert!(texts.iter().all(|text| !text.contains("@example.org")));
        let is_ok = plan.status() == Status::Ok;
        prop_assert!(!is_ok || plan.withheld() == 0);
        prop_assert_eq!(plan.status() == Status::Blocked, matches!(plan.verdict, Verdict::Blocked(_)));
    }

    /// A plan that isn't forced is within its limits by what it means, before anything of it is withheld.
    #[test]
    fn sound_plan_is_within_its_limits(seed in any_seed()) {
        let scenario = Scenario { force: None, ..seed.scenario() };
        let (plan, counts, limits) = (scenario.plan(), scenario.counts(), scenario.target.limits);
        if matches!(plan.verdict, Verdict::Sound(_)) {
            prop_assert!(is_within_removal_limit(counts.leaving, counts.base, limits));
            let missing = (counts.unknown + counts.not_yet_read).saturating_sub(counts.leaving);
            prop_assert!(is_within_growth_limit(counts.joining + missing, counts.base, limits));
            prop_assert!(scenario.people.groups.values().all(|group| group.end != GroupEnd::Missing));
        }
    }

    /// A plan is blocked exactly if the leavers that nothing explains break the limit, the joiners do, or a group is
    /// missing, or all of them are empty.
    #[test]
    fn plan_is_blocked_for_what_nothing_explains(seed in any_seed()) {
        let scenario = Scenario { force: None, ..seed.scenario() };
        let (counts, limits) = (scenario.counts(), scenario.target.limits);
        let explained = match counts.is_incomplete || counts.is_in_doubt {
            true => counts.leaving,
            false => counts.leaving.min(counts.unknown + counts.not_yet_read),
        };
        let groups = || scenario.people.groups.values();
        let must_block = groups().any(|group| group.end == GroupEnd::Missing)
            || (groups().all(Group::is_vacant) && counts.leaving > 0)
            || !is_within_removal_limit(counts.leaving - explained, counts.base, limits)
            || !is_within_growth_limit(counts.joining, counts.base, limits);
        prop_assert_eq!(!scenario.plan().blocks().is_empty(), must_block);
    }

    /// Removals go ahead only if nothing is unknown, not yet read or in doubt, except for those who opted out.
    #[test]
    fn unknown_data_removes_only_those_who_opted_out(seed in any_seed()) {
        let scenario = Scenario { force: None, ..seed.scenario() };
        let (plan, counts) = (scenario.plan(), scenario.counts());
        if counts.is_in_doubt {
            prop_assert!(plan.unsubscribe().is_empty() && plan.status() > Status::Ok);
        } else if counts.is_incomplete || counts.unknown + counts.not_yet_read > 0 {
            prop_assert!(plan.status() > Status::Ok);
            for address in plan.unsubscribe() {
                let records: Vec<_> =
                    scenario.people.directory.values().filter(|status| status.has_address(address)).collect();
                prop_assert!(matches!(records[..], [MemberStatus::OptedOut(_)]));
            }
        } else if matches!(plan.verdict, Verdict::Sound(_)) {
            prop_assert_eq!(plan.withheld(), 0);
        }
    }

    /// If a fully readable plan would remove too many, then it removes no one when some records can't be read, and no one
    /// joins either.
    #[test]
    fn unreadable_records_do_not_hide_that_too_many_leave(seed in any_seed(), unreadable in prop::collection::vec(any::<bool>(), 40)) {
        let readable = Scenario { force: None, ..seed.scenario() };
        let too_many = [Block::Everyone, Block::Removals];
        let is_blocked = readable.plan().blocks().iter().any(|block| too_many.contains(block));
        let mut scenario = readable;
        for (status, unreadable) in scenario.people.directory.values_mut().zip(unreadable) {
            if unreadable {
                *status = MemberStatus::Unknown;
            }
        }
        if is_blocked {
            prop_assert_eq!(scenario.plan().written(), (0, 0));
        }
    }

    /// A force accepts no more than its numbers, and the ordinary limits apply to the rest.
    #[test]
    fn force_reaches_as_far_as_its_numbers(seed in any_seed()) {
        let scenario = seed.scenario();
        let (plan, counts, limits) = (scenario.plan(), scenario.counts(), scenario.target.limits);
        let Some(force) = scenario.force else { return Ok(()) };
        let (joins, leaves) = plan.written();
        let rest = leaves.saturating_sub(force.leaves);
        prop_assert!(rest == 0 || leaves < counts.base || limits.max_removal_percent == 100);
        prop_assert!(is_within_removal_limit(rest, counts.base, limits));
        prop_assert!(is_within_growth_limit(joins.saturating_sub(force.joins), counts.base, limits));
        let is_only_opt_outs = plan.verdict == Verdict::Sound(Removals::OptedOut);
        if leaves > 0 && !is_only_opt_outs {
            prop_assert!(counts.unknown <= force.unknown && counts.not_yet_read == 0 && !counts.is_incomplete);
            prop_assert!(!counts.is_in_doubt || leaves <= force.leaves);
        }
        prop_assert!(scenario.people.groups.values().all(|group| group.end != GroupEnd::Missing) || plan.is_empty());
    }

    /// A force of zeros accepts nothing, except that no one leaves although the list is in doubt.
    #[test]
    fn force_of_zeros_lifts_no_block_and_no_hold(seed in any_seed()) {
        let scenario = seed.scenario();
        let without = Scenario { force: None, ..seed.scenario() };
        let with = scenario.forced(Force::default());
        prop_assert_eq!(with.plan().written(), without.plan().written());
        prop_assert_eq!(with.plan().verdict.is_applied(), without.plan().verdict.is_applied());
    }

    /// The event in the reason is enough to apply the plan, as far as what can't be forced lets it. People who were not yet
    /// read can't be.
    #[test]
    fn named_force_applies_the_plan(seed in any_seed()) {
        let scenario = Scenario { force: None, ..seed.scenario() };
        let (plan, counts) = (scenario.plan(), scenario.counts());
        let Some(force) = plan.facts.sufficient_force() else {
            prop_assert_eq!(plan.blocks(), [Block::MissingGroup]);
            return Ok(());
        };
        let event = force.event(&plan.list).to_string();
        let needs_force = !plan.verdict.is_applied() || plan.withheld() > 0;
        let is_waiting = matches!(plan.verdict, Verdict::Held { is_waiting: true, .. });
        prop_assert!(!needs_force || is_waiting || force == Force::default() || plan.reason().contains(&event));
        prop_assert!(force.joins <= counts.joining && force.leaves <= counts.leaving && force.unknown <= counts.unknown);
        let forced = scenario.forced(force).plan();
        if matches!(forced.verdict, Verdict::Held { is_waiting: true, .. }) {
            return Ok(());
        }
        prop_assert!(forced.verdict.is_applied(), "{}: {}", event, forced);
        prop_assert_eq!(forced.subscribe().len(), counts.joining);
        if !counts.is_incomplete && counts.not_yet_read == 0 {
            prop_assert_eq!(forced.withheld(), 0, "{}", event);
        }
    }

    /// No one leaves an add-only list, and only growth and missing groups are judged.
    #[test]
    fn add_only_list_removes_no_one(seed in any_seed()) {
        let scenario = seed.scenario().add_only();
        let plan = scenario.plan();
        prop_assert!(plan.unsubscribe().is_empty() && plan.leaves.is_empty() && plan.withheld() == 0);
        prop_assert!(!plan.is_held_or_in_doubt() || plan.holds() == [Block::Growth]);
        prop_assert!(plan.blocks().iter().all(|block| matches!(block, Block::Growth | Block::MissingGroup)));
    }
}

impl Verdict {
    fn is_applied(&self) -> bool {
        matches!(self, Self::Sound(_))
    }
}
