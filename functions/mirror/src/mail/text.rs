//! The text of a mail. It has counts and list ids, and neither names nor addresses nor UUIDs of people.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write;

use super::history::Occasion;
use super::summary::{Changes, ListSummary, Problem};
use crate::plan::reason::INVOKE_ONCE;
use crate::report::cut_text;
use crate::status::Status;

/// The maximum length of a subject in characters. SNS takes no more.
const MAX_SUBJECT: usize = 100;
/// The maximum size of the part about the lists in bytes. SNS takes 256 KB, and a person reads less.
const MAX_LISTS: usize = 14_000;
/// The maximum length of a reason in characters.
const MAX_REASON: usize = 700;
const FOOTER: &str = "This mail has only counts, and no names or addresses. The parameter Reports of the deployment says when \
                      it is sent: changes, weekly or none.";

/// A mail in plain text.
pub(super) struct Mail {
    pub(super) subject: String,
    pub(super) body: String,
}

/// A list in a mail.
struct Row<'r> {
    name: &'r str,
    /// `None` if the run didn't concern the list.
    list: Option<&'r ListSummary>,
    problem: Option<Problem>,
    changes: Changes,
}

/// Composes a mail about what `changes` say happened to lists, and about the state in which a run found or left them.
pub(super) fn compose(occasion: Occasion, lists: &[ListSummary], changes: &BTreeMap<String, Changes>) -> Mail {
    let since = match occasion {
        Occasion::News => "its last mail",
        Occasion::Weekly => "its last weekly mail",
    };
    let total = describe(total(changes)).unwrap_or_else(|| "no changes".to_owned());
    let opening = format!("novi-bridge keeps mailing lists equal to their groups in Novi. Since {since}: {total}.");
    text(occasion, &opening, lists, changes)
}

/// Composes a mail about a mirror that may not write. It says what the mirror would do.
pub(super) fn compose_dry(lists: &[ListSummary]) -> Mail {
    let changes: BTreeMap<String, Changes> = lists.iter().map(|list| (list.name.clone(), list.changes)).collect();
    let total = describe(total(&changes)).unwrap_or_else(|| "no changes".to_owned());
    let opening = format!(
        "novi-bridge does not change any mailing list, because the parameter MirrorApply is false. This is what it would \
         do now: {total}."
    );
    let mail = text(Occasion::Weekly, &opening, lists, &changes);
    Mail { subject: "novi-bridge weekly: MirrorApply is false, so no list is changed".to_owned(), ..mail }
}

fn text(occasion: Occasion, opening: &str, lists: &[ListSummary], changes: &BTreeMap<String, Changes>) -> Mail {
    let (rows, quiet): (Vec<Row<'_>>, Vec<Row<'_>>) =
        rows(lists, changes).into_iter().partition(|row| occasion == Occasion::Weekly || row.is_news());
    let problems = problems(lists);
    let mut body = format!("{opening}\n");
    if let Some(problems) = describe_problems(&problems) {
        let _ = writeln!(body, "Needs attention: {problems}.");
    }
    let start = body.len();
    for (index, row) in rows.iter().enumerate() {
        let entry = row.text();
        if body.len() - start + entry.len() > MAX_LISTS {
            let more = rows.len() - index;
            let _ = write!(body, "\nAnd {more} more {}.\n", plural(more, "list", "lists"));
            break;
        }
        body += &entry;
    }
    if !quiet.is_empty() {
        let lists = if rows.is_empty() { "" } else { "other " };
        let count = quiet.len();
        let noun = plural(count, "list is unchanged and needs", "lists are unchanged and need");
        let _ = write!(body, "\n{count} {lists}{noun} no attention.\n");
    }
    let _ = write!(body, "\n{FOOTER}\n");
    Mail { subject: subject(occasion, total(changes), &problems), body }
}

/// Cuts a reason that is too long. The verdict and the command that lifts it come last, and must not get lost.
fn shorten(reason: &str) -> String {
    let verdict = ["Blocked because", "Held because"].iter().find_map(|start| reason.find(start));
    let is_too_long = reason.chars().count() > MAX_REASON;
    let start = verdict.filter(|_| is_too_long).unwrap_or_default();
    cut_text(&reason[start..], MAX_REASON)
}

/// Returns the lists, those that need attention first, and then those that changed.
fn rows<'r>(lists: &'r [ListSummary], changes: &'r BTreeMap<String, Changes>) -> Vec<Row<'r>> {
    // Two invalid mappings may name the same list.
    let mut left: BTreeMap<&str, Changes> = changes.iter().map(|(name, changes)| (name.as_str(), *changes)).collect();
    let mut rows: Vec<Row<'_>> = Vec::new();
    for list in lists {
        let changes = left.remove(list.name.as_str()).unwrap_or_default();
        rows.push(Row { name: &list.name, list: Some(list), problem: list.problem(), changes });
    }
    rows.extend(left.into_iter().map(|(name, changes)| Row { name, list: None, problem: None, changes }));
    rows.sort_by_key(|row| (row.problem.is_none(), row.problem, Reverse(!row.changes.is_none()), row.name));
    rows
}

impl Row<'_> {
    fn is_news(&self) -> bool {
        self.problem.is_some() || !self.changes.is_none()
    }

    fn text(&self) -> String {
        let status = match (self.list, self.problem) {
            (None, _) => "not part of this run",
            (_, Some(problem)) => problem.as_str(),
            (Some(list), None) => list.status.as_str(),
        };
        let mut sentences = vec![describe(self.changes).unwrap_or_else(|| "No changes".to_owned())];
        if let Some(list) = self.list {
            let withheld = list.withheld;
            sentences.extend(
                (withheld > 0).then(|| format!("{withheld} {} withheld", plural(withheld, "removal", "removals"))),
            );
            sentences.extend(list.size.map(|size| format!("{size} on the list")));
        }
        let mut text = format!("\n{}: {status}\n  {}.\n", self.name, sentences.join(". "));
        if let Some(reason) = self.list.and_then(|list| list.reason.as_deref()) {
            let _ = writeln!(text, "  Why: {}", shorten(&with_command(reason, self.name)));
        }
        if let Some(remedy) = self.remedy() {
            let _ = writeln!(text, "  What to do: {remedy}");
        }
        text
    }

    fn remedy(&self) -> Option<&'static str> {
        Some(match (self.problem, self.list?.status) {
            (Some(Problem::Failed), _) => {
                "Fix the cause. The next run continues by itself. The page mirror-failed in docs/operations.md helps."
            }
            (Some(Problem::Blocked), _) => {
                "Check Novi: was a group emptied or replaced? \"novi-bridge run --show\" shows who would join and leave. If \
                 the plan is wrong, correct Novi or the mapping, and the next run continues."
            }
            (Some(Problem::Held), _) => {
                "Wait for the next run, since this often passes. If it doesn't within a day, see the page mirror-held in \
                 docs/operations.md."
            }
            (Some(Problem::Partial), _) => {
                "Nothing now, the next run tries again. If the next weekly mail says the same, see Report in \
                 docs/mirror.md."
            }
            (None, Status::Unfinished) => "Nothing. The next run continues.",
            (None, _) => return None,
        })
    }
}

/// Returns a reason with the command that does the same in place of an event.
fn with_command(reason: &str, list: &str) -> String {
    let Some((before, event)) = reason.split_once(INVOKE_ONCE) else { return reason.to_owned() };
    let after = event.split_once("}}}").map_or("", |(_, after)| after);
    format!("{before}run \"novi-bridge run --force {list}\".{after}")
}

fn total(changes: &BTreeMap<String, Changes>) -> Changes {
    changes.values().fold(Changes::default(), |mut total, changes| {
        total += *changes;
        total
    })
}

/// Returns the counts that aren't zero, if there are any.
fn describe(changes: Changes) -> Option<String> {
    let Changes { joined, left, moved } = changes;
    let counts = [(joined, "joined"), (left, "left"), (moved, "moved to a new address")];
    let counts: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    (!counts.is_empty()).then(|| counts.join(", "))
}

/// Returns the number of lists with each problem.
fn problems(lists: &[ListSummary]) -> BTreeMap<Problem, usize> {
    let mut problems = BTreeMap::new();
    for problem in lists.iter().filter_map(ListSummary::problem) {
        *problems.entry(problem).or_default() += 1;
    }
    problems
}

fn describe_problems(problems: &BTreeMap<Problem, usize>) -> Option<String> {
    let counts: Vec<String> = problems.iter().map(|(problem, count)| lists_with(*count, problem.as_str())).collect();
    (!counts.is_empty()).then(|| counts.join(", "))
}

fn lists_with(count: usize, what: &str) -> String {
    format!("{count} {} {what}", plural(count, "list", "lists"))
}

/// Returns a subject, which SNS only takes in ASCII.
fn subject(occasion: Occasion, total: Changes, problems: &BTreeMap<Problem, usize>) -> String {
    let prefix = match occasion {
        Occasion::News => "novi-bridge: ",
        Occasion::Weekly => "novi-bridge weekly: ",
    };
    let counts = [(total.joined, "joined"), (total.left, "left"), (total.moved, "moved")];
    let mut parts: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    if parts.is_empty() {
        parts.push("no changes".to_owned());
    }
    let short = || lists_with(problems.values().sum(), "to look at");
    let changes = parts.join(", ");
    let candidates = match describe_problems(problems) {
        None => vec![changes.clone()],
        Some(problems) => vec![format!("{changes}, {problems}"), format!("{changes}, {}", short()), short()],
    };
    let fits = |candidate: &&String| prefix.len() + candidate.len() <= MAX_SUBJECT;
    format!("{prefix}{}", candidates.iter().find(fits).map_or("many changes", String::as_str))
}

fn plural<'w>(count: usize, one: &'w str, many: &'w str) -> &'w str {
    if count == 1 { one } else { many }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(name: &str, status: Status, size: usize) -> ListSummary {
        let name = format!("{name}.lists.example.org");
        ListSummary { name, status, size: Some(size), ..ListSummary::default() }
    }

    fn changes(counts: &[(&str, [usize; 3])]) -> BTreeMap<String, Changes> {
        let changes = |[joined, left, moved]: [usize; 3]| Changes { joined, left, moved };
        counts.iter().map(|(name, counts)| (format!("{name}.lists.example.org"), changes(*counts))).collect()
    }

    fn blocked() -> ListSummary {
        let reason = "Blocked because 7 of 20 addresses would be unsubscribed, more than the larger of 3 and 30 percent \
                      (max_removal_percent). The list is left unchanged. If the plan is right, invoke once with the event \
                      {\"force\":{\"members.lists.example.org\":{\"leaves\":7}}}";
        ListSummary { withheld: 7, reason: Some(reason.to_owned()), ..list("members", Status::Blocked, 20) }
    }

    #[test]
    fn news_are_the_lists_that_changed_or_need_attention() {
        let reason = "Mailman rejected the credentials. Correct mailman_password.";
        let failed = ListSummary { size: None, reason: Some(reason.to_owned()), ..list("office", Status::Failed, 0) };
        let lists = [
            list("quiet", Status::Ok, 9),
            list("board", Status::Ok, 12),
            list("large", Status::Unfinished, 900),
            blocked(),
            failed,
        ];
        let mail = compose(Occasion::News, &lists, &changes(&[("board", [3, 1, 1]), ("gone", [0, 2, 0])]));
        assert_eq!(mail.subject, "novi-bridge: 3 joined, 3 left, 1 moved, 1 list failed, 1 list blocked");
        assert_eq!(
            mail.body,
            r#"novi-bridge keeps mailing lists equal to their groups in Novi. Since its last mail: 3 joined, 3 left, 1 moved to a new address.
Needs attention: 1 list failed, 1 list blocked.

office.lists.example.org: failed
  No changes.
  Why: Mailman rejected the credentials. Correct mailman_password.
  What to do: Fix the cause. The next run continues by itself. The page mirror-failed in docs/operations.md helps.

members.lists.example.org: blocked
  No changes. 7 removals withheld. 20 on the list.
  Why: Blocked because 7 of 20 addresses would be unsubscribed, more than the larger of 3 and 30 percent (max_removal_percent). The list is left unchanged. If the plan is right, run "novi-bridge run --force members.lists.example.org".
  What to do: Check Novi: was a group emptied or replaced? "novi-bridge run --show" shows who would join and leave. If the plan is wrong, correct Novi or the mapping, and the next run continues.

board.lists.example.org: ok
  3 joined, 1 left, 1 moved to a new address. 12 on the list.

gone.lists.example.org: not part of this run
  2 left.

2 other lists are unchanged and need no attention.

This mail has only counts, and no names or addresses. The parameter Reports of the deployment says when it is sent: changes, weekly or none.
"#
        );
    }

    #[test]
    fn weekly_mail_has_all_lists() {
        let held = ListSummary { is_held_or_in_doubt: true, withheld: 1, ..list("held", Status::Partial, 40) };
        let lists = [list("quiet", Status::Ok, 9), list("large", Status::Unfinished, 900), held];
        let mail = compose(Occasion::Weekly, &lists, &changes(&[("large", [1, 0, 0])]));
        assert_eq!(mail.subject, "novi-bridge weekly: 1 joined, 1 list held");
        assert_eq!(
            mail.body,
            r"novi-bridge keeps mailing lists equal to their groups in Novi. Since its last weekly mail: 1 joined.
Needs attention: 1 list held.

held.lists.example.org: held
  No changes. 1 removal withheld. 40 on the list.
  What to do: Wait for the next run, since this often passes. If it doesn't within a day, see the page mirror-held in docs/operations.md.

large.lists.example.org: unfinished
  1 joined. 900 on the list.
  What to do: Nothing. The next run continues.

quiet.lists.example.org: ok
  No changes. 9 on the list.

This mail has only counts, and no names or addresses. The parameter Reports of the deployment says when it is sent: changes, weekly or none.
"
        );
    }

    #[test]
    fn mirror_that_may_not_write_says_so() {
        let changes = Changes { joined: 12, ..Changes::default() };
        let mail = compose_dry(&[ListSummary { changes, ..list("members", Status::Ok, 12) }]);
        assert_eq!(mail.subject, "novi-bridge weekly: MirrorApply is false, so no list is changed");
        assert_eq!(
            mail.body,
            r"novi-bridge does not change any mailing list, because the parameter MirrorApply is false. This is what it would do now: 12 joined.

members.lists.example.org: ok
  12 joined. 12 on the list.

This mail has only counts, and no names or addresses. The parameter Reports of the deployment says when it is sent: changes, weekly or none.
"
        );
    }

    #[test]
    fn quiet_mails_say_that_nothing_changed() {
        let lists = [list("a", Status::Ok, 1)];
        let weekly = compose(Occasion::Weekly, &lists, &BTreeMap::new());
        assert_eq!(weekly.subject, "novi-bridge weekly: no changes");
        assert!(weekly.body.contains("Since its last weekly mail: no changes.\n\na.lists.example.org: ok\n"));
        // The changes of an earlier run whose mail could not be sent.
        let news = compose(Occasion::News, &lists, &changes(&[("b", [1, 0, 0])])).body;
        assert!(news.contains("\n1 other list is unchanged and needs no attention.\n"), "{news}");
    }

    #[test]
    fn mail_about_a_thousand_lists_stays_short() {
        let reason = "x".repeat(5_000);
        let lists: Vec<ListSummary> = (0..1_000)
            .map(|n| ListSummary { reason: Some(reason.clone()), ..list(&format!("list{n:04}"), Status::Failed, n) })
            .collect();
        let counted = lists.iter().map(|list| (list.name.clone(), Changes { joined: 1, left: 2, moved: 3 })).collect();
        for occasion in [Occasion::News, Occasion::Weekly] {
            let mail = compose(occasion, &lists, &counted);
            assert!(mail.body.len() < 16_000, "{}", mail.body.len());
            let shown = mail.body.matches(": failed").count();
            assert!(shown > 10 && mail.body.contains(&format!("\nAnd {} more lists.\n", 1_000 - shown)), "{shown}");
            assert!(mail.body.ends_with(&format!("{FOOTER}\n")));
        }
        let quiet: Vec<ListSummary> = lists.iter().map(|list| list_of(&list.name)).collect();
        let mail = compose(Occasion::News, &quiet, &BTreeMap::new());
        assert!(mail.body.contains("\n1000 lists are unchanged and need no attention.\n"), "{}", mail.body);
    }

    fn list_of(name: &str) -> ListSummary {
        ListSummary { name: name.to_owned(), ..ListSummary::default() }
    }

    #[test]
    fn subject_has_at_most_100_characters() {
        let problems = |count: usize| -> BTreeMap<Problem, usize> {
            [Problem::Failed, Problem::Blocked, Problem::Held, Problem::Partial].map(|problem| (problem, count)).into()
        };
        let subject = |count, problem_count| {
            let total = Changes { joined: count, left: count, moved: count };
            subject(Occasion::Weekly, total, &problems(problem_count))
        };
        assert_eq!(subject(1, 1), "novi-bridge weekly: 1 joined, 1 left, 1 moved, 4 lists to look at");
        assert_eq!(
            subject(100_000, 9_000),
            "novi-bridge weekly: 100000 joined, 100000 left, 100000 moved, 36000 lists to look at"
        );
        for count in [usize::MAX, usize::MAX / 4] {
            let subject = subject(count, count / 8);
            assert!(subject.len() <= MAX_SUBJECT && subject.is_ascii(), "{subject}");
        }
    }

    #[test]
    fn event_becomes_the_command_that_sends_it() {
        let list = "a.lists.example.org";
        let event = r#"{"force":{"a.lists.example.org":{"leaves":7,"unknown":1}}}"#;
        for (reason, expected) in [
            ("Left unchanged.".to_owned(), "Left unchanged."),
            (
                format!("Held. If so, {INVOKE_ONCE}{event}"),
                r#"Held. If so, run "novi-bridge run --force a.lists.example.org"."#,
            ),
            (
                format!("Held. If so, {INVOKE_ONCE}{event} Time ran out."),
                r#"Held. If so, run "novi-bridge run --force a.lists.example.org". Time ran out."#,
            ),
        ] {
            assert_eq!(with_command(&reason, list), expected);
        }
    }

    #[test]
    fn long_reason_keeps_its_verdict_and_its_command() {
        let verdict = "Blocked because 7 of 20 addresses would be unsubscribed. Run \"novi-bridge run --force a\".";
        let reason = format!("{}{verdict}", "Some records could not be read. ".repeat(30));
        assert_eq!(shorten(&reason), verdict);
        assert_eq!(shorten(verdict), verdict);
        let short = format!("Some records could not be read. {verdict}");
        assert_eq!(shorten(&short), short);
        assert_eq!(shorten(&"x".repeat(2_000)).chars().count(), MAX_REASON);
    }
}
