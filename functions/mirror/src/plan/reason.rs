//! The sentences of the report about one plan.

use crate::force::Force;
use crate::plan::judge::{Removals, Verdict};
use crate::plan::{Doubt, Plan};
use crate::status::Status;

/// Returns the sentences about a plan, each with the status that it causes.
pub(crate) fn reasons(plan: &Plan) -> Vec<(Status, String)> {
    let mut reasons: Vec<(Status, String)> = Vec::new();
    let mut partial = |reason: String| reasons.push((Status::Partial, reason));
    for reason in &plan.incomplete {
        partial(format!(
            "A group of this list could not be read completely ({reason}). {}",
            until(plan, "a run can read it")
        ));
    }
    match (plan.facts.unknown, plan.facts.unknown_beyond(plan.force)) {
        (0, _) => {}
        (unknown, 0) => {
            partial(format!("{unknown} of this list's records could not be read, which this run's force accepts."));
        }
        (unknown, _) => {
            let until = until(plan, "a run can read them");
            partial(format!("{unknown} of this list's records could not be read. {until}"));
        }
    }
    if plan.facts.is_unavailable {
        partial(format!(
            "The ledger could not be used. {} See The ledger in docs/operations.md.",
            until(plan, "a run can read and write it")
        ));
    }
    for doubt in plan.doubts.iter().filter(|_| plan.is_in_doubt()) {
        partial(match doubt {
            Doubt::VacantGroup(_) => format!(
                "A group of this list is empty while others are not. {}",
                until(plan, "it has members again, or its mapping says \"may_be_empty\": true"),
            ),
            Doubt::LostGroup => format!(
                "A group is no longer mapped to this list. {}",
                until(plan, "it is mapped again, or a force accepts that"),
            ),
            Doubt::UnresolvedMapping => format!(
                "An invalid mapping does not name its list, which may be this one. {}",
                until(plan, "it is corrected"),
            ),
            Doubt::MissingList(list) => format!(
                "A mapping names the list {list}, which Mailman does not have. It may be meant for this one. {}",
                until(plan, "it is corrected, or that list is created"),
            ),
        });
    }
    if plan.skipped.invalid_email > 0 {
        partial(format!(
            "{} of this list's records have an Email that is not one valid address. Whatever may be an address in it is \
             neither added nor removed. Correct these records in Novi.",
            plan.skipped.invalid_email
        ));
    }
    if plan.hidden > 0 {
        partial(format!(
            "Active or UnsubscribeFromEmails is hidden in {} of this list's records, or MemberStatus if MEMBER_STATUSES \
             is set, so their addresses are neither added nor removed. Ask Novi to show these fields to the key.",
            plan.hidden
        ));
    }
    if plan.repeated > 0 {
        partial(format!(
            "The roster contains addresses that are subscribed more than once ({}), which Mailman's own tools fail on. \
             Delete all but one of their memberships by hand.",
            plan.repeated
        ));
    }
    if plan.facts.not_yet_read > 0 {
        reasons.push((
            Status::Unfinished,
            format!(
                "{} of this list's records were not yet read. {} The next run goes on.",
                plan.facts.not_yet_read,
                until(plan, "a run has read them")
            ),
        ));
    }
    let (joining, leaving) = plan.waiting();
    if joining > 0 {
        let join = if joining == 1 { "joins" } else { "join" };
        let joining = addresses(joining);
        let reason = format!("{joining} {join} when a run has read the records again. The next run goes on.");
        reasons.push((Status::Unfinished, reason));
    }
    if leaving > 0 {
        let leave = if leaving == 1 { "leaves" } else { "leave" };
        let leaving = addresses(leaving);
        let reason = format!("{leaving} {leave} at the end of a pass. The next run goes on.");
        reasons.push((Status::Unfinished, reason));
    }
    if plan.stuck() > 0 {
        let (stay, them) = if plan.stuck() == 1 { ("stays", "it") } else { ("stay", "them") };
        let stuck = addresses(plan.stuck());
        let reason =
            format!("{stuck} {stay} on the list until a run can read the record of everyone who has or had {them}.");
        reasons.push((Status::Partial, reason));
    }
    reasons.extend(verdict(plan));
    reasons
}

/// Returns a number of addresses in words.
pub(crate) fn addresses(count: usize) -> String {
    if count == 1 { "1 address".to_owned() } else { format!("{count} addresses") }
}

/// Returns the sentence about what happens until then. An add-only list removes no one anyway.
fn until(plan: &Plan, condition: &str) -> String {
    if plan.is_add_only { String::new() } else { format!("Until {condition}, no one is removed.") }
}

/// Returns the sentences about the decision.
fn verdict(plan: &Plan) -> Vec<(Status, String)> {
    let mut reasons = Vec::new();
    if let Some(lifted) = lifted(plan) {
        reasons.push((Status::Ok, lifted));
    }
    match &plan.verdict {
        Verdict::Sound(removals) if plan.withheld() > 0 && *removals != Removals::All => {
            let opted_out = plan.leaves.len() - plan.withheld();
            if opted_out > 0 {
                let reason = match opted_out {
                    1 => "1 address is removed anyway, because its member opted out.".to_owned(),
                    _ => format!("{opted_out} addresses are removed anyway, because their members opted out."),
                };
                reasons.push((Status::Partial, reason));
            }
            let withheld = format!("If {} should leave now", addresses(plan.withheld()));
            reasons.extend(remedy(plan, &withheld).map(|remedy| (Status::Partial, remedy)));
        }
        Verdict::Sound(_) => {}
        Verdict::Held { blocks, is_waiting: true } => {
            let reason = format!("Held because {}. The list is left unchanged.", plan.describe(blocks));
            reasons.push((Status::Unfinished, reason));
        }
        Verdict::Held { blocks, is_waiting: false } => {
            let remedy = remedy(plan, IF_RIGHT).unwrap_or_default();
            let reason = format!("Held because {}. The list is left unchanged. {remedy}", plan.describe(blocks));
            reasons.push((Status::Partial, reason));
        }
        Verdict::Blocked(blocks) => {
            let remedy = remedy(plan, IF_RIGHT)
                .unwrap_or_else(|| "Correct the mapping, or allow the API key to read the group.".to_owned());
            let reason = format!("Blocked because {}. The list is left unchanged. {remedy}", plan.describe(blocks));
            reasons.push((Status::Blocked, reason));
        }
    }
    reasons
}

/// Returns the sentence about what this run's force has lifted.
fn lifted(plan: &Plan) -> Option<String> {
    plan.force?;
    match plan.facts.judge(None) {
        ordinary if ordinary == plan.verdict => None,
        Verdict::Blocked(blocks) | Verdict::Held { blocks, .. } => {
            let described: Vec<String> = blocks.iter().map(|block| plan.facts.describe(*block, None)).collect();
            Some(format!("The plan was forced although {}.", described.join(", and ")))
        }
        Verdict::Sound(_) => Some("Removals were forced although they would be withheld.".to_owned()),
    }
}

const IF_RIGHT: &str = "If the plan is right";
/// What precedes the event in a sentence. A mail has a command instead.
pub(crate) const INVOKE_ONCE: &str = "invoke once with the event ";

/// Returns the sentence with the event that applies the whole plan, if a force reaches that far.
fn remedy(plan: &Plan, condition: &str) -> Option<String> {
    let force = plan.facts.sufficient_force().filter(|force| *force != Force::default())?;
    let and_unreadable = if force.unknown > 0 { ", and the unread records will never be readable" } else { "" };
    Some(format!("{condition}{and_unreadable}, {INVOKE_ONCE}{}", force.event(&plan.list)))
}
