//! What a mail is made of: the counts, the status and the reason of each list.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use crate::status::Status;

/// How many addresses joined, left and moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Changes {
    pub(crate) joined: usize,
    pub(crate) left: usize,
    /// The number of memberships that got another address.
    pub(crate) moved: usize,
}

impl Changes {
    pub(crate) fn is_none(self) -> bool {
        self == Self::default()
    }
}

impl AddAssign for Changes {
    fn add_assign(&mut self, other: Self) {
        self.joined += other.joined;
        self.left += other.left;
        self.moved += other.moved;
    }
}

/// What needs attention about a list, from the most urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Problem {
    Failed,
    Blocked,
    /// Held, or in doubt.
    Held,
    Partial,
}

impl Problem {
    /// True if an administrator has to look at the list soon.
    pub(crate) fn is_urgent(self) -> bool {
        self != Self::Partial
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Blocked => "blocked",
            Self::Held => "held",
            Self::Partial => "partial",
        }
    }
}

/// What a run found and did about one list.
#[derive(Clone, Debug, Default)]
pub(crate) struct ListSummary {
    /// The list's id, or text in its place if a mapping names no list.
    pub(crate) name: String,
    pub(crate) status: Status,
    pub(crate) is_held_or_in_doubt: bool,
    /// What was done, or would be in a dry run.
    pub(crate) changes: Changes,
    pub(crate) withheld: usize,
    /// The number of addresses on the list after the run. `None` if the roster could not be read.
    pub(crate) size: Option<usize>,
    pub(crate) reason: Option<String>,
}

impl ListSummary {
    pub(crate) fn problem(&self) -> Option<Problem> {
        match self.status {
            Status::Failed => Some(Problem::Failed),
            Status::Blocked => Some(Problem::Blocked),
            _ if self.is_held_or_in_doubt => Some(Problem::Held),
            Status::Partial => Some(Problem::Partial),
            // The next run continues, and a pass over many people takes many runs.
            Status::Unfinished | Status::Ok => None,
        }
    }
}
