//! The status of a list or a run.

use serde::Serialize;

/// The status of a list or a run, from best to worst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    /// The list has the members it should have.
    #[default]
    Ok,
    /// Something was withheld, rejected or unreadable.
    Partial,
    /// Time ran out. The next run continues.
    Unfinished,
    /// The plan looks wrong, and the list is unchanged.
    Blocked,
    /// The list is unchanged or unfinished because of a failure.
    Failed,
}

impl Status {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Partial => "partial",
            Self::Unfinished => "unfinished",
            Self::Blocked => "blocked",
            Self::Failed => "failed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_does_not_hide_blocked() {
        let worst = |statuses: &[Status]| statuses.iter().copied().max();
        assert_eq!(worst(&[Status::Unfinished, Status::Blocked]), Some(Status::Blocked));
        assert_eq!(worst(&[Status::Unfinished, Status::Partial, Status::Ok]), Some(Status::Unfinished));
        assert_eq!(worst(&[Status::Blocked, Status::Failed]), Some(Status::Failed));
    }
}
