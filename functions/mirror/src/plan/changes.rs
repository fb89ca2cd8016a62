//! What a plan changes, and why it may be in doubt.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use shared::member::MemberId;
use uuid::Uuid;

use crate::address::Address;
use crate::mapping::ListId;
use crate::plan::candidates::LeaveReason;

/// An address that joins.
pub(crate) struct Subscriber {
    pub(crate) address: Address,
    /// The display name. If there is a first name, it never contains the whole last name.
    pub(crate) name: Option<String>,
    /// True if this run read a record that wants the address. Otherwise it joins in a run that does.
    pub(super) is_read: bool,
}

/// A changed address. Its membership moves, so that it keeps its preferences.
pub(crate) struct Move {
    pub(crate) from: Address,
    pub(crate) to: Subscriber,
}

/// An address that leaves.
pub(crate) struct Leaver {
    pub(crate) address: Address,
    pub(crate) reason: LeaveReason,
    /// True if its only known record was read in this run, and says that its person opted out.
    pub(super) is_only_opt_out: bool,
    /// The people who have to be read again before it leaves.
    pub(crate) to_read: BTreeSet<MemberId>,
    /// True if one of them can't be read. The address stays until that is possible.
    pub(super) is_stuck: bool,
    /// True if a complete pass knows that it leaves. Otherwise it waits for the end of a pass.
    pub(super) is_due: bool,
}

/// The reason why a list is in doubt: its groups may not be all of its groups, or not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Doubt {
    /// A group is empty while others aren't.
    VacantGroup(Uuid),
    /// A group is no longer mapped to the list.
    LostGroup,
    /// A mapping doesn't parse and names no list.
    UnresolvedMapping,
    /// A mapping names a list that Mailman doesn't have.
    MissingList(ListId),
}

shared::unprintable!(Subscriber, Move, Leaver);
