//! Judges what the probe found out about Novi. Pure: from facts to findings.

use shared::network_error::TLS_FAILED;

use crate::probe::novi::{Answer, BulkFacts, GroupFacts, NoviFacts, Problem, RecordFacts};
use crate::probe::report::{Finding, Severity, Transport};
use crate::probe::shape::{BodyKind, Envelope, FIELDS, KeyStyle, Kinds};

/// The number of calls a day that Novi is believed to allow a key.
const CALLS_PER_DAY: usize = 100_000;
/// The number of runs a day, of the template's default schedule.
const RUNS_PER_DAY: usize = 24;
/// The remedy for a response that only a change of this product can answer.
const REPORT: &str = "This version can't read it. Open an issue with this output, which contains no one's data.";

/// The settings that findings depend on.
#[derive(Clone, Copy)]
pub(crate) struct NoviSettings {
    /// `NOVI_TIMEOUT_MS`.
    pub(crate) timeout_ms: u64,
    /// False if `NOVI_BULK=off`.
    pub(crate) bulk: bool,
    /// True if `MEMBER_STATUSES` is set.
    pub(crate) needs_status: bool,
}

/// Judges everything.
pub(crate) fn judge(facts: &NoviFacts, settings: NoviSettings) -> Vec<Finding> {
    let mut findings = vec![connection(facts, settings)];
    findings.extend(transport(facts));
    if facts.responses.is_empty() {
        return findings;
    }
    findings.extend([cdn(facts), key(facts)]);
    findings.extend(compression(facts));
    findings.push(root(facts));
    if answers(facts).into_iter().all(is_useless) {
        // Nothing more is known, not even what seems to be ok.
        findings.retain(|finding| finding.severity != Severity::Ok);
        return findings;
    }
    findings.extend(unknown_uuid(facts));
    findings.extend(facts.groups.iter().map(group));
    findings.extend(records(&facts.records, facts.people));
    findings.extend(fields(&facts.records, settings));
    findings.extend(bulk(facts.bulk.as_ref(), settings));
    findings.extend(volume(facts));
    findings.push(rate_limit(facts));
    if facts.out_of_time {
        findings.push(Finding::warning(
            "probe",
            "Time ran out before Novi was asked for everything.",
            "Run the probe again. If Novi sent a Retry-After, wait for as long.",
        ));
    }
    findings
}

/// True if a response tells nothing about what it was asked for: it comes from something in front of Novi, or Novi
/// rejects the call.
fn is_useless(answer: &Answer) -> bool {
    matches!(answer.problem, Some(Problem::Blocked | Problem::KeyRejected))
        || matches!(answer.status, Some(300..400))
        || is_foreign(answer)
        || answer.body == Some(BodyKind::Compressed)
}

/// True if a response is a web page or a text, which Novi's API doesn't send.
fn is_foreign(answer: &Answer) -> bool {
    matches!(answer.status, Some(200 | 404)) && matches!(answer.body, Some(BodyKind::Html | BodyKind::Text))
}

fn compression(facts: &NoviFacts) -> Option<Finding> {
    (facts.compressed > 0).then(|| {
        Finding::error(
            "Novi compression",
            format!("{} responses are compressed, although the functions decline that.", facts.compressed),
            "Turn compression off in the proxy or CDN in front of Novi.",
        )
    })
}

fn connection(facts: &NoviFacts, settings: NoviSettings) -> Finding {
    const SUBJECT: &str = "Novi connection";
    let failed: usize = facts.no_response.values().sum();
    let total = failed + facts.responses.values().sum::<usize>();
    let causes = facts.no_response.keys().copied().collect::<Vec<_>>().join(", ");
    if total == 0 {
        return Finding::warning(SUBJECT, "No call could be made in time.", "Run the probe again.");
    }
    if facts.responses.is_empty() {
        let fix = if facts.no_response.keys().any(|cause| cause.starts_with(TLS_FAILED)) {
            "Check the host in novi_api_root_url. If its certificate is of a private authority, trust that with \
             EXTRA_CA_CERTS."
        } else {
            "Check the host in novi_api_root_url, and that the function's network has a way out (in a VPC, a NAT \
             gateway)."
        };
        return Finding::error(SUBJECT, format!("Novi doesn't respond ({causes})."), fix);
    }
    if failed > 0 {
        return Finding::warning(
            SUBJECT,
            format!("{failed} of {total} calls got no response ({causes})."),
            "Run the probe again. If it persists, ask Novi, or raise NOVI_TIMEOUT_MS.",
        );
    }
    let found = format!("Novi responds. The slowest response took {} ms.", facts.slowest_ms);
    if facts.slowest_ms > settings.timeout_ms / 2 {
        let fix = format!("Raise NOVI_TIMEOUT_MS, which is {}.", settings.timeout_ms);
        return Finding::warning(SUBJECT, found, fix);
    }
    Finding::ok(SUBJECT, found)
}

fn transport(facts: &NoviFacts) -> Option<Finding> {
    let transport = facts.transport?;
    let found = format!("Novi is called {}.", transport.as_str());
    Some(match transport {
        Transport::PlainHttp => Finding::error(
            "Novi TLS",
            found,
            "Use https:// in novi_api_root_url. On the way, everyone can read the API key and the members.",
        ),
        Transport::Tls | Transport::Loopback => Finding::ok("Novi TLS", found),
    })
}

fn cdn(facts: &NoviFacts) -> Finding {
    const SUBJECT: &str = "Novi CDN";
    const FIX: &str = "Ask Novi to allow this function's address, which is the stack's output FixedAddress. See \
                       docs/operations.md#novi-refused.";
    let answers = answers(facts);
    let blocked = answers.iter().filter(|answer| answer.problem == Some(Problem::Blocked)).count();
    if facts.unknown_uuid.problem == Some(Problem::Blocked) {
        return Finding::error(
            SUBJECT,
            "A CDN or firewall in front of Novi rejects this function's address (403).",
            FIX,
        );
    }
    if blocked > 0 {
        let found = format!("{blocked} of {} resources got a 403 that isn't Novi's.", answers.len());
        return Finding::warning(SUBJECT, found, FIX);
    }
    Finding::ok(SUBJECT, "Nothing in front of Novi rejects this function's address.")
}

fn key(facts: &NoviFacts) -> Finding {
    const SUBJECT: &str = "Novi key";
    let is_rejected = |answer: &Answer| answer.problem == Some(Problem::KeyRejected);
    let rejects_people = is_rejected(&facts.unknown_uuid);
    let groups = facts.groups.iter().filter(|group| is_rejected(&group.answer)).count();
    match (rejects_people, groups) {
        (true, rejected) if rejected == facts.groups.len() => Finding::error(
            SUBJECT,
            format!("Novi rejects novi_idaa_api_key ({}).", status(&facts.unknown_uuid)),
            "Write the key again: make parameters ARGS='--only novi_idaa_api_key'. If it is right, ask Novi whether it \
             was revoked.",
        ),
        (true, _) => Finding::error(
            SUBJECT,
            "The key may not read people (GET /customers/{uuid}).",
            "Ask Novi to let the key read customers.",
        ),
        (false, 0) => Finding::ok(SUBJECT, "Novi accepts the key."),
        (false, rejected) => Finding::error(
            SUBJECT,
            format!("The key may not read {rejected} of {} groups.", facts.groups.len()),
            "Ask Novi to let the key read these groups.",
        ),
    }
}

fn root(facts: &NoviFacts) -> Finding {
    const SUBJECT: &str = "Novi root";
    const FIX: &str = "Correct novi_api_root_url: the root of the API, such as https://www.example.org/api.";
    let answers = answers(facts);
    if let Some((status, _)) = facts.responses.iter().find(|(status, _)| (300..400).contains(*status)) {
        return Finding::error(
            SUBJECT,
            format!("Novi redirects ({status}), and the functions never follow a redirect."),
            "Set novi_api_root_url to the final address, with https:// and the right host.",
        );
    }
    let foreign = answers.iter().filter(|answer| is_foreign(answer)).count();
    if foreign > 0 {
        let found = format!("{foreign} of {} resources got a web page or text instead of JSON.", answers.len());
        return Finding::error(SUBJECT, found, FIX);
    }
    if answers.len() > 1 && answers.iter().all(|answer| answer.status == Some(404)) {
        let fix = "Check novi_api_root_url: the root of the API, such as https://www.example.org/api. If it is right, \
                   the mappings' group_guid are wrong, or the API key may not see these groups.";
        return Finding::error(SUBJECT, "Novi answers 404 to everything.", fix);
    }
    Finding::ok(SUBJECT, "novi_api_root_url leads to an API.")
}

/// Returns the responses to the calls that don't concern one person.
fn answers(facts: &NoviFacts) -> Vec<&Answer> {
    let groups = facts.groups.iter().map(|group| &group.answer);
    [&facts.unknown_uuid].into_iter().chain(groups).filter(|answer| answer.status.is_some()).collect()
}

fn status(answer: &Answer) -> String {
    answer.status.map_or_else(|| "no response".to_owned(), |status| status.to_string())
}

fn unknown_uuid(facts: &NoviFacts) -> Option<Finding> {
    const SUBJECT: &str = "unknown UUID";
    let answer = &facts.unknown_uuid;
    if !matches!(answer.problem, None | Some(Problem::ServerError)) {
        return None;
    }
    let status = status(answer);
    let is_nothing = matches!(answer.body, Some(BodyKind::Null | BodyKind::EmptyObject));
    Some(match (answer.status?, answer.body?) {
        (404, BodyKind::Html | BodyKind::Text) => return None,
        (404, _) => Finding::ok(SUBJECT, "Novi answers 404 to a UUID that no one has."),
        (200, BodyKind::Empty) => Finding::warning(
            SUBJECT,
            "Novi answers 200 without a body to a UUID that no one has.",
            "Verification counts that as not found, the mirror as unknown, which removes no one. Take deleted people \
             out of the groups in Novi.",
        ),
        (200, _) if is_nothing => Finding::ok(SUBJECT, "Novi answers 200 without a record to a UUID that no one has."),
        (200, _) if facts.unknown_uuid_has_record => Finding::error(
            SUBJECT,
            "Novi returns a record for a UUID that no one has.",
            "Ask Novi why. The functions accept a record only under its own UniqueID, so verification answers 503 to \
             strangers.",
        ),
        (200, _) => Finding::error(
            SUBJECT,
            "Novi answers 200 with something else than a record to a UUID that no one has.",
            format!("Verification answers 503 to strangers instead of 404. {REPORT}"),
        ),
        _ => Finding::error(
            SUBJECT,
            format!("Novi answers {status} to a UUID that no one has."),
            format!("Verification answers 503 to strangers instead of 404. {REPORT}"),
        ),
    })
}

fn group(facts: &GroupFacts) -> Finding {
    let positions: Vec<String> = facts.mappings.iter().map(ToString::to_string).collect();
    let lists: Vec<&str> = facts.list_ids.iter().map(String::as_str).collect();
    let (positions, lists) = (positions.join(", "), lists.join(", "));
    let subject = format!("group of mapping {positions} ({lists})");
    let status = status(&facts.answer);
    match facts.answer.problem {
        Some(Problem::KeyRejected | Problem::Blocked) => {
            return Finding::error(subject, "Novi rejects the call (403 or 401).", "Let the API key read the group.");
        }
        Some(Problem::RateLimited | Problem::NotAsked) => {
            return Finding::warning(subject, "It was not read to its end in time.", "Run the probe again.");
        }
        Some(Problem::NoResponse | Problem::ServerError) => {
            let found = format!("Reading it failed ({status}).");
            return Finding::warning(subject, found, "Run the probe again. If it persists, ask Novi.");
        }
        None => {}
    }
    match facts.answer.status {
        Some(200) => {}
        Some(404) if facts.pages == 0 => {
            let fix = format!("Correct group_guid in mapping {positions}, or let the API key see the group.");
            return Finding::error(subject, "Novi has no such group (404).", fix);
        }
        _ => return Finding::error(subject, format!("Novi answers {status}."), REPORT),
    }
    let Some(envelope) = facts.envelope else {
        return Finding::error(subject, "Its pages have no rows that could be found.", REPORT);
    };
    let envelope = match envelope {
        Envelope::TotalCount => "TotalCount and Results",
        Envelope::Results => "Results without TotalCount",
        Envelope::Array => "a bare array",
        Envelope::Data => "rows under data",
    };
    if !facts.complete {
        let reason = facts.reason.as_deref().unwrap_or("unknown reason");
        let found = format!("The mirror can't read it to its end: {reason}. Its pages are {envelope}.");
        let fix = "No one is removed from its lists. Run the probe again, in case the group changed meanwhile. If it \
                   persists, open an issue with this output, which contains no one's data.";
        return Finding::error(subject, found, fix);
    }
    if facts.people + facts.rows_without_id == 0 {
        let fix = format!("Check the group in Novi, and group_guid in mapping {positions}.");
        return Finding::warning(subject, "It is empty.", fix);
    }
    let mut found =
        format!("{} people in {} pages of at most {} rows: {envelope}.", facts.people, facts.pages, facts.page_size);
    if facts.repeated_rows > 0 {
        found += &format!(" {} rows repeat others.", facts.repeated_rows);
    }
    if facts.in_other_groups > 0 {
        found += &format!(" {} are in other mapped groups too.", facts.in_other_groups);
    }
    if facts.rows_without_id > 0 {
        found += &format!(" {} rows have no UniqueID.", facts.rows_without_id);
        let fix = "No one is removed from its lists until these rows have one. Ask Novi to repair them.";
        return Finding::warning(subject, found, fix);
    }
    Finding::ok(subject, found)
}

fn records(facts: &RecordFacts, people: usize) -> Vec<Finding> {
    const SUBJECT: &str = "records";
    let RecordFacts { sampled, read, not_found, failed, .. } = *facts;
    if sampled == 0 {
        return Vec::new();
    }
    let found =
        format!("{read} records of {sampled} sampled people, of {people} in all groups. {not_found} not found.");
    let mut findings = vec![if not_found == sampled {
        Finding::error(SUBJECT, found, "Let the API key see the people in these groups: it may be limited to others.")
    } else if failed > 0 {
        let fix = "Run the probe again. If it persists, ask Novi.";
        Finding::warning(SUBJECT, format!("{found} {failed} calls failed."), fix)
    } else if not_found * 2 > sampled {
        let fix = "Check whether the API key may see everyone in these groups. Those that it can't see count as gone.";
        Finding::warning(SUBJECT, found, fix)
    } else {
        Finding::ok(SUBJECT, found)
    }];
    let mut report = |count: usize, what: &str, fix: &str| {
        if count > 0 {
            findings.push(Finding::error(SUBJECT, format!("{count} of {sampled} {what}."), fix));
        }
    };
    report(facts.not_a_record, "responses are something else than a record", REPORT);
    report(facts.unreadable, "records have a name or an Email that this version doesn't read", REPORT);
    report(
        facts.identity_hidden,
        "records have neither a name nor an Email, not even as null",
        "Ask Novi to show these fields to the key (\"Limit Member Data\"). Until then these people can't be verified.",
    );
    if read > 0 {
        findings.push(identity(facts));
    }
    findings.extend(facts.keys.map(|keys| spelling(keys, facts)));
    findings
}

/// Judges if each record is that of the person who was asked for.
fn identity(facts: &RecordFacts) -> Finding {
    const SUBJECT: &str = "UniqueID";
    let RecordFacts { read, other_uuid, other_uuid_of_sample, .. } = *facts;
    if other_uuid_of_sample > 0 {
        let found = format!(
            "{other_uuid} of {read} records have another UniqueID than was asked for, {other_uuid_of_sample} of them that of another call."
        );
        let fix = "A proxy or CDN on the way mixes responses up. The functions reject such records. Ask who runs it.";
        return Finding::error(SUBJECT, found, fix);
    }
    if other_uuid > 0 {
        let found = format!("{other_uuid} of {read} records have another UniqueID than was asked for.");
        let fix = "Novi may answer a merged UUID with the surviving record. The functions reject such records. Ask \
                   Novi to put the surviving UUID into the group.";
        return Finding::error(SUBJECT, found, fix);
    }
    let shown = facts.fields.of("UniqueID").text;
    if shown < read {
        let found = format!("{} of {read} records have no UniqueID.", read - shown);
        let fix = "Ask Novi to show UniqueID to the key. Without it, a mixed-up response can't be recognized.";
        return Finding::warning(SUBJECT, found, fix);
    }
    Finding::ok(SUBJECT, "Each record has the UUID that was asked for.")
}

fn spelling(keys: KeyStyle, facts: &RecordFacts) -> Finding {
    const SUBJECT: &str = "record keys";
    let wrapped = if facts.under_data > 0 { " Records are under data." } else { "" };
    match keys {
        KeyStyle::Documented => Finding::ok(SUBJECT, format!("They are spelled as documented.{wrapped}")),
        KeyStyle::OtherCase => Finding::ok(SUBJECT, format!("They come in another case, which is read.{wrapped}")),
        KeyStyle::OtherSpelling => {
            Finding::error(SUBJECT, format!("Some are spelled differently than documented.{wrapped}"), REPORT)
        }
    }
}

/// Judges each field that the functions use.
fn fields(facts: &RecordFacts, settings: NoviSettings) -> Vec<Finding> {
    if facts.keys.is_none() {
        return Vec::new();
    }
    let others = FIELDS.iter().filter(|name| !matches!(**name, "UniqueID" | "MemberStatus"));
    let findings = others.map(|name| field(name, facts.fields.of(name)));
    findings.chain([member_status(facts, settings)]).collect()
}

fn member_status(facts: &RecordFacts, settings: NoviSettings) -> Finding {
    const NAME: &str = "MemberStatus";
    let RecordFacts { read, other_status, .. } = *facts;
    let subject = format!("field {NAME}");
    let kinds = facts.fields.of(NAME);
    if settings.needs_status && kinds.absent > 0 {
        let found = format!("{} of {} records hide it.", kinds.absent, kinds.total());
        let fix = "MEMBER_STATUSES needs it. Ask Novi to show it to the key (\"Limit Member Data\"), or unset that.";
        return Finding::error(subject, found, fix);
    }
    if other_status > 0 {
        let found = format!("{other_status} of {read} records have another status than MEMBER_STATUSES lists.");
        let fix = "These people don't count as members. If they should, correct MEMBER_STATUSES.";
        return if other_status == read {
            Finding::error(subject, found, fix)
        } else {
            Finding::warning(subject, found, fix)
        };
    }
    field(NAME, kinds)
}

fn field(name: &str, kinds: Kinds) -> Finding {
    let total = kinds.total();
    let subject = format!("field {name}");
    let counts = [
        (kinds.text, "text"),
        (kinds.boolean, "true or false"),
        (kinds.number, "numbers"),
        (kinds.list, "lists"),
        (kinds.object, "objects"),
        (kinds.blank, "blank"),
        (kinds.null, "null"),
        (kinds.absent, "hidden"),
    ];
    let counts: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, kind)| format!("{count} {kind}")).collect();
    let found = format!("{}.", counts.join(", "));
    let show = format!("Ask Novi to show {name} to the key (\"Limit Member Data\").");
    if matches!(name, "Active" | "UnsubscribeFromEmails") {
        let fix = format!("{show} The mirror neither adds nor removes people whose {name} isn't true or false.");
        return match kinds.not_boolean() {
            0 => Finding::ok(subject, found),
            unknown if unknown == total => Finding::error(subject, found, fix),
            _ => Finding::warning(subject, found, fix),
        };
    }
    if kinds.not_text() > 0 {
        return Finding::error(subject, found, REPORT);
    }
    if kinds.absent == 0 {
        return Finding::ok(subject, found);
    }
    match name {
        "Email" => {
            let fix = format!("{show} Without it, the mirror can't tell who belongs on a list, and removes no one.");
            Finding::error(subject, found, fix)
        }
        "FirstName" | "LastName" => {
            Finding::warning(subject, found, format!("{show} Until then, the whole Name is displayed."))
        }
        // Only read with MEMBER_STATUSES, or if the others are blank.
        _ => Finding::ok(subject, found),
    }
}

fn bulk(facts: Option<&BulkFacts>, settings: NoviSettings) -> Option<Finding> {
    const SUBJECT: &str = "GET /members";
    let Some(facts) = facts else {
        let off = Finding::ok(SUBJECT, "It was not asked for, because of NOVI_BULK=off.");
        return (!settings.bulk).then_some(off);
    };
    let status = status(&facts.answer);
    match (facts.answer.status, facts.answer.problem) {
        (_, Some(Problem::RateLimited | Problem::NotAsked | Problem::NoResponse)) => {
            return Some(Finding::warning(SUBJECT, "It could not be read in time.", "Run the probe again."));
        }
        (Some(403 | 404), _) => {
            let found = format!("The key may not list all records ({status}), so each person takes one call.");
            return Some(Finding::ok(SUBJECT, found));
        }
        (Some(200), None) => {}
        _ => {
            let found = format!("Novi answers {status}, so each person takes one call.");
            return Some(Finding::warning(SUBJECT, found, "NOVI_BULK=off saves asking for it."));
        }
    }
    if !facts.readable {
        let found = "It has not the expected format, so each person takes one call.";
        return Some(Finding::warning(SUBJECT, found, "NOVI_BULK=off saves asking for it."));
    }
    let BulkFacts { page_size, complete_records, .. } = *facts;
    let total = facts.total.unwrap_or_default();
    let found = format!(
        "The key may list all {total} records, in pages of {page_size}. {complete_records} of the first {page_size} \
         show every field that the mirror needs."
    );
    let hidden: Vec<&str> = ["FirstName", "LastName", "Email", "Active", "UnsubscribeFromEmails"]
        .into_iter()
        .filter(|name| {
            let kinds = facts.fields.of(name);
            page_size > 0 && kinds.absent + kinds.null == page_size
        })
        .collect();
    if hidden.is_empty() {
        return Some(Finding::ok(SUBJECT, found));
    }
    let fix =
        format!("Ask Novi to show {} in it, or set NOVI_BULK=off: each person takes one call.", hidden.join(", "));
    Some(Finding::warning(SUBJECT, found, fix))
}

/// Judges the number of calls that a run makes.
fn volume(facts: &NoviFacts) -> Option<Finding> {
    const SUBJECT: &str = "calls of a run";
    if facts.people == 0 {
        return None;
    }
    let pages: usize = facts.groups.iter().map(|group| group.pages).sum();
    let bulk = facts.bulk.as_ref().filter(|bulk| bulk.readable && bulk.complete_records * 2 > bulk.page_size);
    let bulk_pages = bulk.and_then(|bulk| usize::try_from(bulk.total?).ok()?.checked_div(bulk.page_size));
    let calls = pages + bulk_pages.map_or(facts.people, |pages| facts.people.min(pages + 1));
    let per_day = calls * RUNS_PER_DAY;
    let found = format!("A run makes about {calls} calls, and hourly runs {per_day} a day.");
    if per_day > CALLS_PER_DAY {
        let fix = format!(
            "Novi is believed to allow {CALLS_PER_DAY} a day. Ask Novi to let the key list all records (GET /members), \
             or run less often: MirrorSchedule."
        );
        return Some(Finding::warning(SUBJECT, found, fix));
    }
    Some(Finding::ok(SUBJECT, found))
}

fn rate_limit(facts: &NoviFacts) -> Finding {
    const SUBJECT: &str = "Novi rate limit";
    let headers: Vec<String> = facts.rate_headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    let announced = if headers.is_empty() {
        "No header announces a limit.".to_owned()
    } else {
        format!("Headers: {}.", headers.join(", "))
    };
    let retry_after = facts.retry_after.map_or_else(
        || "No Retry-After was sent.".to_owned(),
        |seconds| format!("Retry-After was at most {seconds} s."),
    );
    if facts.rate_limited > 0 {
        let found = format!("Novi answered 429 to {} calls. {retry_after} {announced}", facts.rate_limited);
        let fix = "Lower NOVI_MAX_PER_SECOND and NOVI_MAX_PER_MINUTE, or find out which other program uses the key.";
        return Finding::warning(SUBJECT, found, fix);
    }
    Finding::ok(SUBJECT, format!("No call was limited. {retry_after} {announced}"))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::probe::shape::Fields;

    const SETTINGS: NoviSettings = NoviSettings { timeout_ms: 8_000, bulk: true, needs_status: false };

    fn answer(status: u16, body: BodyKind) -> Answer {
        Answer { status: Some(status), body: Some(body), problem: None }
    }

    /// Returns the facts of a Novi that is as documented: one group of 30 people.
    fn facts() -> NoviFacts {
        let text = |name: &&str| !matches!(*name, "Active" | "UnsubscribeFromEmails");
        let kinds = |name: &&'static str| match text(name) {
            true => (*name, Kinds { text: 20, ..Kinds::default() }),
            false => (*name, Kinds { boolean: 20, ..Kinds::default() }),
        };
        NoviFacts {
            transport: Some(Transport::Tls),
            responses: BTreeMap::from([(200, 21), (404, 2)]),
            slowest_ms: 300,
            unknown_uuid: answer(404, BodyKind::Object),
            groups: vec![GroupFacts {
                mappings: BTreeSet::from([1]),
                list_ids: BTreeSet::from(["members.lists.example.org".to_owned()]),
                answer: answer(200, BodyKind::Object),
                envelope: Some(Envelope::TotalCount),
                keys: Some(KeyStyle::Documented),
                total: Some(30),
                page_size: 30,
                pages: 1,
                people: 30,
                complete: true,
                ..GroupFacts::default()
            }],
            people: 30,
            records: RecordFacts {
                sampled: 20,
                read: 20,
                keys: Some(KeyStyle::Documented),
                fields: Fields(FIELDS.iter().map(kinds).collect()),
                ..RecordFacts::default()
            },
            bulk: Some(BulkFacts { answer: answer(404, BodyKind::Object), ..BulkFacts::default() }),
            ..NoviFacts::default()
        }
    }

    /// Returns the findings that are not ok, as lines.
    fn deviations(facts: &NoviFacts) -> Vec<String> {
        let findings = judge(facts, SETTINGS);
        for finding in &findings {
            assert_eq!(finding.fix.is_none(), finding.severity == Severity::Ok, "{finding:?}");
            assert!(finding.found.ends_with('.') && !finding.found.contains(".."), "{finding:?}");
        }
        findings
            .into_iter()
            .filter(|finding| finding.severity != Severity::Ok)
            .map(|Finding { severity, subject, found, fix }| {
                format!("{severity:?} {subject}: {found} {}", fix.unwrap_or_default())
            })
            .collect()
    }

    #[test]
    fn documented_novi_has_no_deviation() {
        assert_eq!(deviations(&facts()), [""; 0]);
        assert_eq!(judge(&facts(), SETTINGS).len(), 20);
    }

    #[test]
    fn each_deviation_is_the_only_finding_and_has_its_fix() {
        type Change = fn(&mut NoviFacts);
        let cases: [(&str, &str, Change); 28] = [
            ("Error Novi TLS", "https://", |facts| facts.transport = Some(Transport::PlainHttp)),
            ("Warning Novi connection", "Raise NOVI_TIMEOUT_MS", |facts| facts.slowest_ms = 4_001),
            ("Warning Novi connection: 1 of 24", "NOVI_TIMEOUT_MS", |facts| {
                facts.no_response.insert("timed out", 1);
            }),
            ("Error Novi compression", "Turn compression off", |facts| facts.compressed = 3),
            ("Warning Novi rate limit", "NOVI_MAX_PER_SECOND", |facts| facts.rate_limited = 2),
            ("Warning probe", "Run the probe again", |facts| facts.out_of_time = true),
            ("Error Novi root: Novi redirects (301)", "novi_api_root_url", |facts| {
                facts.responses.insert(301, 1);
            }),
            ("Error Novi root: 1 of 2", "novi_api_root_url", |facts| {
                facts.unknown_uuid = answer(404, BodyKind::Html);
            }),
            ("Warning unknown UUID", "the mirror as unknown", |facts| {
                facts.unknown_uuid = answer(200, BodyKind::Empty);
            }),
            ("Error unknown UUID: Novi returns a record", "UniqueID", |facts| {
                (facts.unknown_uuid, facts.unknown_uuid_has_record) = (answer(200, BodyKind::Object), true);
            }),
            ("Error unknown UUID: Novi answers 200 with something else", "Open an issue", |facts| {
                facts.unknown_uuid = answer(200, BodyKind::Object);
            }),
            ("Error unknown UUID: Novi answers 400", "Open an issue", |facts| {
                facts.unknown_uuid = answer(400, BodyKind::Object);
            }),
            ("Error unknown UUID: Novi answers 200 with something else", "Open an issue", |facts| {
                facts.unknown_uuid = answer(200, BodyKind::TooLarge);
            }),
            ("Error group of mapping 1 (members.lists.example.org): Novi has no such group", "group_guid", |facts| {
                // Another group is there, so the root is right.
                facts.groups.push(facts.groups[0].clone());
                facts.groups[0] = GroupFacts {
                    answer: answer(404, BodyKind::Object),
                    envelope: None,
                    pages: 0,
                    ..facts.groups[0].clone()
                };
            }),
            (
                "Error group of mapping 1 (members.lists.example.org): Its pages have no rows",
                "Open an issue",
                |facts| {
                    facts.groups[0].envelope = None;
                },
            ),
            (
                "Error group of mapping 1 (members.lists.example.org): The mirror can't read it to its end: its pages repeat. Its pages are a bare array",
                "No one is removed",
                |facts| {
                    facts.groups[0].complete = false;
                    facts.groups[0].envelope = Some(Envelope::Array);
                    facts.groups[0].reason = Some("its pages repeat".to_owned());
                },
            ),
            (
                "Warning group of mapping 1 (members.lists.example.org): 30 people in 1 pages of at most 30 rows: TotalCount and Results. 2 rows have no UniqueID",
                "Ask Novi",
                |facts| facts.groups[0].rows_without_id = 2,
            ),
            ("Warning group of mapping 1 (members.lists.example.org): It is empty", "group_guid", |facts| {
                facts.groups[0].people = 0;
            }),
            ("Error records: 0 records of 20 sampled people, of 30 in all groups. 20 not found", "API key", |facts| {
                facts.records = RecordFacts { sampled: 20, not_found: 20, ..RecordFacts::default() };
            }),
            ("Error records: 1 of 20 responses are something else", "Open an issue", |facts| {
                facts.records.not_a_record = 1;
            }),
            ("Error records: 3 of 20 records have neither", "Limit Member Data", |facts| {
                facts.records.identity_hidden = 3;
            }),
            ("Error UniqueID: 2 of 20 records have another UniqueID than was asked for.", "merged", |facts| {
                facts.records.other_uuid = 2;
            }),
            ("Error UniqueID: 2 of 20 records have another UniqueID than was asked for, 1", "proxy or CDN", |facts| {
                (facts.records.other_uuid, facts.records.other_uuid_of_sample) = (2, 1);
            }),
            ("Error record keys", "Open an issue", |facts| facts.records.keys = Some(KeyStyle::OtherSpelling)),
            ("Error field Active: 20 null", "Limit Member Data", |facts| {
                facts.records.fields.0.insert("Active", Kinds { null: 20, ..Kinds::default() });
            }),
            ("Warning field Active: 19 true or false, 1 hidden", "Limit Member Data", |facts| {
                facts.records.fields.0.insert("Active", Kinds { boolean: 19, absent: 1, ..Kinds::default() });
            }),
            (
                "Warning GET /members: The key may list all 90 records, in pages of 40. 0 of the first 40",
                "NOVI_BULK=off",
                |facts| {
                    facts.bulk = Some(BulkFacts {
                        answer: answer(200, BodyKind::Object),
                        total: Some(90),
                        page_size: 40,
                        readable: true,
                        fields: Fields(BTreeMap::from([("Email", Kinds { null: 40, ..Kinds::default() })])),
                        ..BulkFacts::default()
                    });
                },
            ),
            (
                "Warning calls of a run: A run makes about 4201 calls, and hourly runs 100824 a day",
                "GET /members",
                |facts| {
                    facts.people = 4_200;
                },
            ),
        ];
        for (expected, fix, change) in cases {
            let mut facts = facts();
            change(&mut facts);
            let deviations = deviations(&facts);
            assert!(
                deviations.len() == 1 && deviations[0].starts_with(expected) && deviations[0].contains(fix),
                "{expected}: {deviations:#?}"
            );
        }
    }

    #[test]
    fn novi_that_cannot_be_asked_has_one_reason() {
        let rejected = |problem, status| NoviFacts {
            responses: BTreeMap::from([(status, 1)]),
            unknown_uuid: Answer { problem: Some(problem), ..answer(status, BodyKind::Object) },
            ..NoviFacts::default()
        };
        let silent = |cause| NoviFacts { no_response: BTreeMap::from([(cause, 2)]), ..NoviFacts::default() };
        for (facts, expected, fix) in [
            (rejected(Problem::Blocked, 403), "Error Novi CDN", "FixedAddress"),
            (rejected(Problem::KeyRejected, 401), "Error Novi key: Novi rejects novi_idaa_api_key (401)", "parameters"),
            (silent("TLS failed"), "Error Novi connection: Novi doesn't respond (TLS failed)", "EXTRA_CA_CERTS"),
            (silent("timed out"), "Error Novi connection: Novi doesn't respond (timed out)", "NAT gateway"),
            (NoviFacts::default(), "Warning Novi connection: No call could be made", "again"),
        ] {
            let deviations = deviations(&facts);
            assert!(
                deviations.len() == 1 && deviations[0].starts_with(expected) && deviations[0].contains(fix),
                "{expected}: {deviations:#?}"
            );
        }
    }

    #[test]
    fn members_that_can_be_listed_make_a_large_directory_cheap() {
        let mut facts = facts();
        facts.people = 40_000;
        facts.bulk = Some(BulkFacts {
            answer: answer(200, BodyKind::Object),
            total: Some(50_000),
            page_size: 1_000,
            readable: true,
            complete_records: 950,
            ..BulkFacts::default()
        });
        assert_eq!(deviations(&facts), [""; 0]);
        let off = NoviSettings { bulk: false, ..SETTINGS };
        facts.bulk = None;
        let found: Vec<String> = judge(&facts, off).into_iter().map(|finding| finding.found).collect();
        assert!(found.iter().any(|found| found.contains("NOVI_BULK=off")), "{found:?}");
    }

    #[test]
    fn status_of_a_member_matters_only_if_it_is_configured() {
        let needed = NoviSettings { needs_status: true, ..SETTINGS };
        let mut facts = facts();
        facts.records.fields.0.insert("MemberStatus", Kinds { text: 15, absent: 5, ..Kinds::default() });
        assert_eq!(member_status(&facts.records, SETTINGS).severity, Severity::Ok);
        let hidden = member_status(&facts.records, needed);
        assert_eq!((hidden.severity, &*hidden.found), (Severity::Error, "5 of 20 records hide it."));
        facts.records.fields.0.insert("MemberStatus", Kinds { text: 20, ..Kinds::default() });
        for (others, severity) in [(0, Severity::Ok), (5, Severity::Warning), (20, Severity::Error)] {
            facts.records.other_status = others;
            assert_eq!(member_status(&facts.records, needed).severity, severity, "{others}");
        }
    }
}
