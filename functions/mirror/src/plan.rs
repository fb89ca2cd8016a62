//! The plan: a pure function from what Novi says, what the list holds and how
//! they are mapped, to who joins and who leaves. No I/O, no clock.
//!
//! Two rules stand above the rest. *Anything unknown removes nobody*: where a
//! page of a group or any record of a list could not be read, that list's
//! removals are withheld. *A plan that looks wrong is not applied*: one that
//! would change a list beyond its limits is blocked, and leaves it untouched.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::Serialize;
use shared::member::{MemberId, Record};
use uuid::Uuid;

use crate::address::Address;
use crate::mapping::{ListId, Target};
use crate::roster::Roster;

/// What is known of one person.
pub(crate) enum Standing {
    /// Active, and not opted out.
    Member { address: Address, name: Option<String> },
    /// `Active` or `UnsubscribeFromEmails` is hidden from our key: the address is neither added nor removed.
    Hidden(Address),
    /// `Active` is false: a deleted record.
    Inactive(Address),
    /// `UnsubscribeFromEmails` is true.
    OptedOut(Address),
    /// A record whose `Email` is null or blank.
    NoEmail,
    /// Novi knows no such person: 404, or a record without identity.
    NotFound,
    /// The record could not be read, or does not show its `Email`.
    Unknown,
}

impl Standing {
    /// What a record that was read says; `None` is Novi's 404 or an answer without a record.
    pub(crate) fn of(record: Option<&Record>) -> Self {
        let Some(record) = record else {
            return Self::NotFound;
        };
        if !record.shows_email() {
            return Self::Unknown;
        }
        let Some(address) = record.email().map(|email| Address::new(&email)) else {
            // A name of the wrong type is a name all the same.
            return if matches!(record.identity(), Ok(None)) { Self::NotFound } else { Self::NoEmail };
        };
        match (record.active.flag(), record.unsubscribed.flag()) {
            (None, _) | (_, None) => Self::Hidden(address),
            (Some(false), _) => Self::Inactive(address),
            (_, Some(true)) => Self::OptedOut(address),
            (Some(true), Some(false)) => Self::Member { address, name: record.display_name() },
        }
    }
}

/// What a standing means for its address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ruling<'s> {
    /// It belongs on the list, by this display name.
    Wanted(Option<&'s str>),
    /// It is neither added nor removed: looks alone, or a field that is hidden, remove nobody.
    Untouched,
    /// It is not wanted for this record's sake.
    NotWanted,
}

impl Standing {
    /// The address, where there is one, and what becomes of it.
    pub(crate) fn ruling(&self) -> Option<(&Address, Ruling<'_>)> {
        Some(match self {
            Self::Member { address, name } if address.is_valid() => (address, Ruling::Wanted(name.as_deref())),
            Self::Member { address, .. } | Self::Hidden(address) => (address, Ruling::Untouched),
            Self::Inactive(address) | Self::OptedOut(address) => (address, Ruling::NotWanted),
            Self::NoEmail | Self::NotFound | Self::Unknown => return None,
        })
    }
}

/// What is known of one group.
pub(crate) struct Group {
    /// The members that were read, each once.
    pub(crate) members: Vec<MemberId>,
    /// Rows without a usable uuid: people of whom nothing can be known.
    pub(crate) nameless: usize,
    /// How the reading ended.
    pub(crate) end: GroupEnd,
}

/// How the reading of a group ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GroupEnd {
    /// At its end.
    Read,
    /// Novi knows no such group.
    Missing,
    /// Before its end.
    Unread(&'static str),
}

/// Everybody that was asked for.
pub(crate) type Directory = HashMap<MemberId, Standing>;

/// Why addresses and records of the groups are not on the list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Skipped {
    pub(crate) inactive: usize,
    pub(crate) opted_out: usize,
    pub(crate) no_email: usize,
    pub(crate) invalid_email: usize,
    pub(crate) not_found: usize,
    /// Could not be read, or hides what would decide.
    pub(crate) unknown: usize,
    /// Further records with an address that is wanted already.
    pub(crate) duplicate: usize,
}

/// Somebody who joins.
pub(crate) struct Subscriber {
    pub(crate) address: Address,
    /// The display name, never the whole last name where there is a first name.
    pub(crate) name: Option<String>,
}

/// Why a plan looks wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    MissingGroup,
    EmptyGroups { roster: usize },
    Everyone { roster: usize },
    Removals { count: usize, roster: usize, percent: u64 },
    Growth { count: usize, roster: usize, percent: u64 },
}

/// Up to this many removals are never too many.
const REMOVAL_FLOOR: usize = 3;
/// Up to this many additions are never too many.
const GROWTH_FLOOR: usize = 25;

impl Block {
    /// A missing group is most likely a wrong mapping, which force does not mend.
    fn yields_to_force(self) -> bool {
        self != Self::MissingGroup
    }

    /// The event that applies the plan all the same.
    pub(crate) fn forcing_event(self, list: &ListId) -> Option<serde_json::Value> {
        self.yields_to_force().then(|| serde_json::json!({ "force": [list.as_str()] }))
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::MissingGroup => {
                write!(f, "Novi knows no group by a group_guid that is mapped to it; correct the mapping")
            }
            Self::EmptyGroups { roster } => write!(f, "its groups are empty while {roster} are subscribed"),
            Self::Everyone { roster } => write!(f, "all {roster} who are subscribed would be unsubscribed"),
            Self::Removals { count, roster, percent } => write!(
                f,
                "{count} of {roster} would be unsubscribed, which is more than the larger of {REMOVAL_FLOOR} and {percent} percent (max_removal_percent)"
            ),
            Self::Growth { count, roster, percent } => write!(
                f,
                "{count} would be subscribed to a list of {roster}, which is more than the larger of {GROWTH_FLOOR} and {percent} percent (max_growth_percent)"
            ),
        }
    }
}

/// What may be done with a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may be applied.
    Sound,
    /// It looks wrong, and this run was told to apply it all the same.
    Forced(Block),
    /// It looks wrong, and is not applied.
    Blocked(Block),
}

/// What a list should become.
pub(crate) struct Plan {
    pub(crate) list: ListId,
    /// How many addresses the list should hold for its groups' sake.
    pub(crate) wanted: usize,
    /// How many it holds.
    pub(crate) roster: usize,
    /// Who joins, by address.
    pub(crate) subscribe: Vec<Subscriber>,
    /// Who leaves, by address.
    pub(crate) unsubscribe: Vec<Address>,
    /// How many stay only because of `keep`.
    pub(crate) kept: usize,
    /// How many would leave, had everything been read.
    pub(crate) withheld: usize,
    pub(crate) skipped: Skipped,
    /// What keeps this plan from making the list all that it should be, in words.
    pub(crate) doubts: Vec<String>,
    pub(crate) verdict: Verdict,
}

impl Plan {
    /// Whether there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        self.subscribe.is_empty() && self.unsubscribe.is_empty()
    }

    /// Makes the plan of one list and judges it.
    pub(crate) fn make(
        target: &Target,
        groups: &HashMap<Uuid, Group>,
        directory: &Directory,
        roster: &Roster,
        force: bool,
    ) -> Self {
        let mut gathered = Gathered::default();
        let groups: Vec<&Group> = target.groups.iter().filter_map(|group| groups.get(group)).collect();
        let mut members: HashSet<MemberId> =
            HashSet::with_capacity(groups.iter().map(|group| group.members.len()).sum());
        members.extend(groups.iter().flat_map(|group| group.members.iter().copied()));
        gathered.wanted.reserve(members.len());
        for member in &members {
            gathered.add(directory.get(member).unwrap_or(&Standing::Unknown));
        }
        let Gathered { wanted, untouched, mut skipped, hidden, unknown } = gathered;
        let nameless: usize = groups.iter().map(|group| group.nameless).sum();
        let unread: Vec<&str> = groups
            .iter()
            .filter_map(|group| match group.end {
                GroupEnd::Unread(why) => Some(why),
                GroupEnd::Read | GroupEnd::Missing => None,
            })
            .collect();
        skipped.unknown = hidden + unknown + nameless;

        let leaving = roster.iter().filter(|address| !wanted.contains_key(*address) && !untouched.contains(*address));
        let (kept, leaving): (Vec<&Address>, Vec<&Address>) =
            leaving.partition(|address| target.keep.contains(*address));
        let everything_is_known = unread.is_empty() && unknown + nameless == 0 && !target.is_in_doubt;
        let (mut unsubscribe, withheld): (Vec<Address>, usize) =
            if everything_is_known { (leaving.into_iter().cloned().collect(), 0) } else { (Vec::new(), leaving.len()) };
        unsubscribe.sort_unstable();
        let leaves = |address: &Address| unsubscribe.binary_search(address).is_ok();
        let repeated = roster.repeated().filter(|address| !leaves(address)).count();

        let wanted_in_all = wanted.len();
        let mut subscribe: Vec<Subscriber> = wanted
            .into_iter()
            .filter(|(address, _)| !roster.contains(address) && !untouched.contains(address))
            .map(|(address, name)| Subscriber { address, name })
            .collect();
        subscribe.sort_unstable_by(|one, other| one.address.cmp(&other.address));
        let mut plan = Self {
            list: target.list.clone(),
            wanted: wanted_in_all,
            roster: roster.len(),
            subscribe,
            unsubscribe,
            kept: kept.len(),
            withheld,
            skipped,
            doubts: doubts(&unread, unknown + nameless, hidden, target.is_in_doubt, repeated),
            verdict: Verdict::Sound,
        };
        let is_missing =
            groups.len() < target.groups.len() || groups.iter().any(|group| group.end == GroupEnd::Missing);
        let is_empty = unread.is_empty() && members.is_empty() && nameless == 0;
        plan.verdict = match plan.judge(target, is_missing, is_empty) {
            None => Verdict::Sound,
            Some(block) if force && block.yields_to_force() => Verdict::Forced(block),
            Some(block) => Verdict::Blocked(block),
        };
        plan
    }

    fn judge(&self, target: &Target, is_missing: bool, is_empty: bool) -> Option<Block> {
        let roster = self.roster;
        let beyond = |count: usize, floor: usize, percent: u64| {
            count > floor && (count as u128) * 100 > (roster as u128) * u128::from(percent)
        };
        let (leave, join) = (self.unsubscribe.len(), self.subscribe.len());
        let (removal, growth) = (target.limits.max_removal_percent, target.limits.max_growth_percent);
        if is_missing {
            Some(Block::MissingGroup)
        } else if is_empty && roster > 0 {
            Some(Block::EmptyGroups { roster })
        } else if leave > 0 && leave == roster {
            Some(Block::Everyone { roster })
        } else if beyond(leave, REMOVAL_FLOOR, removal) {
            Some(Block::Removals { count: leave, roster, percent: removal })
        } else if roster > 0 && beyond(join, GROWTH_FLOOR, growth) {
            Some(Block::Growth { count: join, roster, percent: growth })
        } else {
            None
        }
    }
}

/// Counts alone: a plan can be printed without naming anybody.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { list, wanted, roster, subscribe, unsubscribe, kept, withheld, .. } = self;
        write!(
            f,
            "{list}: {roster} subscribed, {wanted} wanted: {} join, {} leave, {kept} kept, {withheld} withheld",
            subscribe.len(),
            unsubscribe.len()
        )?;
        match self.verdict {
            Verdict::Sound => Ok(()),
            Verdict::Forced(block) => write!(f, "; forced although {block}"),
            Verdict::Blocked(block) => write!(f, "; blocked: {block}"),
        }
    }
}

/// The records of one list, sorted.
#[derive(Default)]
struct Gathered {
    /// Wanted addresses, with the first display name of each.
    wanted: HashMap<Address, Option<String>>,
    /// Addresses that are neither added nor removed.
    untouched: HashSet<Address>,
    skipped: Skipped,
    hidden: usize,
    unknown: usize,
}

impl Gathered {
    fn add(&mut self, standing: &Standing) {
        let ruling = standing.ruling();
        match ruling {
            Some((address, Ruling::Wanted(name))) => self.want(address, name),
            Some((address, Ruling::Untouched)) => drop(self.untouched.insert(address.clone())),
            Some((_, Ruling::NotWanted)) | None => {}
        }
        let skipped = &mut self.skipped;
        *match (standing, ruling) {
            (Standing::Member { .. }, Some((_, Ruling::Wanted(_)))) => return,
            (Standing::Member { .. }, _) => &mut skipped.invalid_email,
            (Standing::Hidden(_), _) => &mut self.hidden,
            (Standing::Inactive(_), _) => &mut skipped.inactive,
            (Standing::OptedOut(_), _) => &mut skipped.opted_out,
            (Standing::NoEmail, _) => &mut skipped.no_email,
            (Standing::NotFound, _) => &mut skipped.not_found,
            (Standing::Unknown, _) => &mut self.unknown,
        } += 1;
    }

    fn want(&mut self, address: &Address, name: Option<&str>) {
        let name = name.map(str::to_owned);
        match self.wanted.get_mut(address) {
            None => drop(self.wanted.insert(address.clone(), name)),
            Some(other) => {
                self.skipped.duplicate += 1;
                // Whose name a shared address gets must not hang on the order of a hash map.
                *other = other.take().into_iter().chain(name).min();
            }
        }
    }
}

fn doubts(unread: &[&str], unknown: usize, hidden: usize, is_in_doubt: bool, repeated: usize) -> Vec<String> {
    let mut doubts: Vec<String> = unread
        .iter()
        .map(|why| format!("a group of it could not be read to its end ({why}): nobody is removed"))
        .collect();
    if unknown > 0 {
        doubts.push(format!("{unknown} of its records could not be read: nobody is removed"));
    }
    if is_in_doubt {
        doubts.push(
            "a mapping that cannot be used does not name its list, which may be this one: nobody is removed".to_owned(),
        );
    }
    if hidden > 0 {
        doubts.push(format!(
            "{hidden} of its records hide Active or UnsubscribeFromEmails and are neither added nor removed: is the key allowed these fields?"
        ));
    }
    if repeated > 0 {
        doubts.push(format!(
            "{repeated} of its addresses are subscribed more than once, which Mailman's own tools fail at: delete all but one of their memberships by hand"
        ));
    }
    doubts
}

shared::unprintable!(Standing, Subscriber);

#[cfg(test)]
mod tests;
