//! Changed addresses, and the memberships that move to them.

use std::collections::{BTreeSet, HashMap, HashSet};

use shared::member::MemberId;

use crate::address::Address;
use crate::directory::{GroupEnd, MemberStatus, People};
use crate::mapping::Target;
use crate::plan::candidates::Wanted;
use crate::plan::changes::{Move, Subscriber};
use crate::roster::Roster;

/// Returns the memberships to move, sorted: the ledger knows that a person had an address that is on the roster, and the
/// person's record has another one now that isn't.
///
/// Pairs in `refused` are left out, because Mailman doesn't accept the new address. No one else may have either address.
/// That can't be known if a record wasn't read and the ledger doesn't know its address.
pub(super) fn moves(
    target: &Target,
    people: &People,
    roster: &Roster,
    wanted: &HashMap<&Address, Wanted<'_>>,
    untouched: &HashSet<&Address>,
    refused: &BTreeSet<(Address, Address)>,
) -> Vec<Move> {
    if people.earlier.is_empty() {
        return Vec::new();
    }
    let members = people.members_of(target);
    let is_free = |address: &Address| !wanted.contains_key(address) && !untouched.contains(address);
    let changed: Vec<(MemberId, &Address, &Address)> = members
        .iter()
        .filter_map(|member| {
            let MemberStatus::Member { address: to, .. } = people.status(*member) else { return None };
            if roster.contains(to) || !wanted.contains_key(to) || untouched.contains(to) {
                return None;
            }
            let mut past = people.past_addresses(*member).filter(|from| *from != to && roster.contains(from));
            let is_movable = |from: &Address| !refused.contains(&(from.clone(), to.clone()));
            let from = past.find(|from| is_free(from) && !target.keep.contains(*from) && is_movable(from))?;
            Some((*member, from, to))
        })
        .collect();
    if changed.is_empty() || has_unknown_address(target, people, &members) {
        return Vec::new();
    }
    let mut owners: HashMap<&Address, HashSet<MemberId>> = HashMap::new();
    for (from, to) in changed.iter().map(|(_, from, to)| (*from, *to)) {
        owners.entry(from).or_default();
        owners.entry(to).or_default();
    }
    for member in people.directory.keys().chain(people.earlier.keys()) {
        let status = people.status(*member);
        // An unknown record has the addresses that it had, as far as anyone knows.
        let is_unknown = matches!(status, MemberStatus::Unknown);
        for address in status.addresses().chain(people.past_addresses(*member).filter(|_| is_unknown)) {
            if let Some(owners) = owners.get_mut(address) {
                owners.insert(*member);
            }
        }
    }
    let is_only_of = |address: &Address, member: MemberId| owners[address].iter().all(|owner| *owner == member);
    let mut moves: Vec<Move> = changed
        .into_iter()
        .filter(|(member, from, to)| owners[from].is_empty() && is_only_of(to, *member))
        .map(|(_, from, to)| Move {
            from: from.clone(),
            to: Subscriber {
                address: to.clone(),
                name: wanted[to].name.map(str::to_owned),
                is_read: wanted[to].is_read,
            },
        })
        .collect();
    moves.sort_unstable_by(|a, b| a.from.cmp(&b.from));
    // Two people who had the same address don't share its membership.
    moves.dedup_by(|a, b| a.from == b.from);
    moves
}

/// True if a record of the list's groups wasn't read, and the ledger doesn't know its address either.
fn has_unknown_address(target: &Target, people: &People, members: &HashSet<MemberId>) -> bool {
    let is_unread =
        |member: &MemberId| matches!(people.status(*member), MemberStatus::Unknown | MemberStatus::NotYetRead);
    let is_nameless = |member: &MemberId| is_unread(member) && people.past_addresses(*member).next().is_none();
    members.iter().any(is_nameless)
        || people
            .groups_of(target)
            .any(|(_, group)| group.rows_without_id > 0 || matches!(group.end, GroupEnd::Incomplete(_)))
}
