//! The part of a plan that was applied.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use serde::Serialize;

use crate::address::Address;
use crate::mailman::{MailmanError, Refusal};

/// The number of addresses that Mailman rejected, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Rejected {
    pub(crate) invalid: usize,
    pub(crate) banned: usize,
    pub(crate) other: usize,
}

impl Rejected {
    pub(crate) fn count(&mut self, refusal: Refusal) {
        match refusal {
            Refusal::Invalid => self.invalid += 1,
            Refusal::Banned => self.banned += 1,
            Refusal::Other => self.other += 1,
        }
    }

    pub(crate) fn total(self) -> usize {
        self.invalid + self.banned + self.other
    }
}

/// The part of a plan that was applied.
#[derive(Default)]
pub(crate) struct Applied {
    pub(crate) subscribed: usize,
    pub(crate) unsubscribed: usize,
    /// The number of changed addresses with a membership that was moved.
    pub(crate) moved: usize,
    /// The number of changed addresses with a membership that can't be moved. They join, and their former addresses leave
    /// later.
    pub(crate) not_movable: usize,
    /// The former addresses of the memberships that this run failed to move, without those that Mailman may still move. They
    /// stay.
    pub(crate) not_moved: BTreeSet<Address>,
    /// The last error of a move that was given up.
    pub(crate) move_error: Option<MailmanError>,
    pub(crate) rejected: Rejected,
    /// The addresses that Mailman rejected because of themselves: invalid and banned ones.
    pub(crate) refused_addresses: BTreeSet<Address>,
    /// The addresses with a subscription that Mailman may still be processing.
    pub(crate) open_subscriptions: HashSet<Address>,
    /// The addresses with a removal that Mailman may still be processing.
    pub(crate) open_removals: HashSet<Address>,
    /// The number of addresses that were left alone, because Mailman may still be processing an earlier request.
    pub(crate) postponed: usize,
    /// The number of removals that wait, because Mailman responded to none of the subscriptions.
    pub(crate) waiting_removals: usize,
    /// The number of addresses that are still subscribed, although Mailman accepted their removal.
    pub(crate) not_removed: usize,
    /// The number of addresses that were removed one by one, because no bulk removal got through.
    pub(crate) removed_singly: usize,
    /// True if the list's goodbye message was switched off for these, and could not be switched on again.
    pub(crate) lost_goodbye: bool,
    /// The duration of the slowest subscription, and the number of pending requests, if subscriptions are slow.
    pub(crate) slow: Option<(Duration, Option<u64>)>,
    /// The error that prevented the rest of the plan from being applied.
    pub(crate) stopped: Option<MailmanError>,
}

impl Applied {
    /// True if Mailman may still change the list because of this run.
    pub(crate) fn has_open_writes(&self) -> bool {
        !self.open_subscriptions.is_empty() || !self.open_removals.is_empty()
    }
}

shared::unprintable!(Applied);
