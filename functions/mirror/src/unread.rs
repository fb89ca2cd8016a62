//! What a run could not read of the groups of one list.

use std::collections::{HashMap, HashSet};

use shared::member::MemberId;
use uuid::Uuid;

use crate::directory::{MemberStatus, People};
use crate::force::Force;
use crate::mapping::Target;

/// The unknown records of one list, and the number of rows without an id for each of its groups.
pub(crate) struct Unread {
    records: HashSet<MemberId>,
    rows: HashMap<Uuid, usize>,
}

impl Unread {
    pub(crate) fn new(target: &Target, people: &People) -> Self {
        let mut records = people.members_of(target);
        records.retain(|member| matches!(people.status(*member), MemberStatus::Unknown));
        Self { records, rows: people.groups_of(target).map(|(id, group)| (*id, group.rows_without_id)).collect() }
    }

    /// Limits a force to what the run before could not read either. An instance doesn't know what was read before its
    /// first run.
    pub(crate) fn limit(&self, force: Force, before: Option<&Self>) -> Force {
        let Some(before) = before else { return force };
        let records = self.records.intersection(&before.records).count();
        let rows = self.rows.iter().map(|(group, rows)| *rows.min(before.rows.get(group).unwrap_or(&0)));
        Force { unknown: force.unknown.min(records + rows.sum::<usize>()), ..force }
    }
}

shared::unprintable!(Unread);

#[cfg(test)]
mod tests {
    use super::*;

    fn unread(records: &[u128], rows: &[(u128, usize)]) -> Unread {
        let id = |n: &u128| MemberId::parse(&Uuid::from_u128(*n).hyphenated().to_string());
        Unread {
            records: records.iter().filter_map(id).collect(),
            rows: rows.iter().map(|(group, rows)| (Uuid::from_u128(*group), *rows)).collect(),
        }
    }

    #[test]
    fn force_accepts_only_what_the_run_before_could_not_read_either() {
        let now = unread(&[1, 2, 3], &[(1, 2), (2, 5)]);
        let limited = |unknown, before: Option<Unread>| {
            now.limit(Force { leaves: 7, unknown, ..Force::default() }, before.as_ref())
        };
        let force = |unknown| Force { leaves: 7, unknown, ..Force::default() };
        assert_eq!(limited(99, None), force(99));
        assert_eq!(limited(99, Some(unread(&[2, 3, 4], &[(1, 3), (3, 1)]))), force(4));
        assert_eq!(limited(3, Some(unread(&[2, 3, 4], &[(1, 3)]))), force(3));
        assert_eq!(limited(99, Some(unread(&[], &[]))), force(0));
    }
}
