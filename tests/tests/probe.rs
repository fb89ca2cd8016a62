//! The probe: it describes the live Novi and Mailman, names each deviation with its fix, writes nothing, and reveals no
//! value of a record.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use fastrand::Rng;
use http::Method;
use serde_json::{Value, json};
use tests::directory::{Directory, record};
use tests::harness::Mirror;
use tests::http_proxy::HttpFault;
use tests::mailman::Mailman;
use tests::novi::{NoviFault, State};
use tokio::sync::Semaphore;
use uuid::Uuid;

const JSON: &str = "application/json";
const ALWAYS: usize = usize::MAX;
/// The subject of the findings about the two groups.
const ONE: &str = "group of mapping 1, 3 (members.lists.example.org, news.lists.example.org)";
const TWO: &str = "group of mapping 2 (news.lists.example.org)";

/// A mirror of two groups with 15 and 12 members, 3 of them in both, which are mapped to two lists.
struct Probed {
    env: Mirror,
    directory: Directory,
    groups: [Uuid; 2],
}

impl Probed {
    async fn start(variables: &[(&str, &str)]) -> Result<Self> {
        let mut directory = Directory::default();
        let mut rng = Rng::new();
        let groups = [directory.add_plain_group(&mut rng, 15), directory.add_plain_group(&mut rng, 9)];
        let shared = directory.groups[&groups[0]][..3].to_vec();
        directory.groups.entry(groups[1]).or_default().extend(shared);
        let mappings = json!([
            {"group_guid": groups[0], "list_id": "members@lists.example.org"},
            {"group_guid": groups[1], "list_id": "news@lists.example.org"},
            {"group_guid": groups[0], "list_id": "news@lists.example.org"},
        ]);
        let variables = [&[("NOVI_TIMEOUT_MS", "500")], variables].concat();
        let env = Mirror::start(directory.clone(), mappings, &variables).await?;
        for list in ["members", "news"] {
            env.mailman.create_list(list).await?;
        }
        let probed = Self { env, directory, groups };
        probed.reset();
        Ok(probed)
    }

    /// Makes the simulated Novi as documented again.
    fn reset(&self) {
        let mut state = self.env.novi.state();
        state.clear_faults();
        state.directory = self.directory.clone();
        (state.page_limit, state.has_total_count, state.wraps_records) = (10, true, false);
        (state.ignores_offset, state.has_drifting_total, state.has_camel_case_keys) = (false, false, false);
        (state.bulk_hidden_fields, state.hides_as_null, state.latency) = (None, false, Duration::ZERO);
        state.key = self.env.config["novi_idaa_api_key"].as_str().unwrap_or_default().to_owned();
    }

    /// Probes, and checks that nothing personal is in the result.
    async fn probe(&self) -> Result<Value> {
        let result = self.env.function.invoke(&json!({"probe": true})).await?;
        let text = result.to_string();
        assert_eq!(result.get("errorMessage"), None, "{text}");
        assert_eq!(self.env.private.found_in(&text).len(), 0, "{text}");
        for group in self.groups {
            assert!(!text.contains(&group.hyphenated().to_string()), "a group's GUID: {text}");
        }
        Ok(result)
    }
}

/// Returns the findings as lines: severity, subject, finding, fix.
fn lines(result: &Value) -> Vec<String> {
    let findings = result["probe"]["findings"].as_array().cloned().unwrap_or_default();
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    findings
        .iter()
        .map(|finding| {
            let [severity, subject] = ["severity", "subject"].map(|key| text(finding, key));
            format!("{severity} {subject}: {} {}", text(finding, "found"), text(finding, "fix"))
        })
        .collect()
}

/// Checks that the deviations are exactly those that are expected, and that the expected ok findings are among the others.
fn assert_findings(name: &str, result: &Value, expected: &[(&str, &str)]) {
    let lines = lines(result);
    let matches = |line: &str, (start, part): &(&str, &str)| line.starts_with(start) && line.contains(part);
    for expected in expected {
        assert!(lines.iter().any(|line| matches(line, expected)), "{name}: no {expected:?} in {lines:#?}");
    }
    for line in lines.iter().filter(|line| !line.starts_with("ok ")) {
        assert!(expected.iter().any(|expected| matches(line, expected)), "{name}: {line} was not expected");
    }
    let worst = ["error ", "warning "].iter().position(|severity| lines.iter().any(|line| line.starts_with(severity)));
    assert_eq!(result["status"], worst.map_or("ok", |worst| ["failed", "partial"][worst]), "{name}");
}

fn respond(status: u16, body: &str) -> NoviFault {
    NoviFault::Respond(status, JSON, body.to_owned())
}

/// Changes the record of every person.
fn change_all(state: &mut State, change: impl Fn(&mut serde_json::Map<String, Value>)) {
    state.directory.people.values_mut().filter_map(Value::as_object_mut).for_each(change);
}

#[tokio::test(flavor = "multi_thread")]
async fn probe_of_a_documented_novi_and_a_real_mailman_finds_nothing_to_do() -> Result<()> {
    let mut probed = Probed::start(&[("NOVI_MAX_PER_SECOND", "20")]).await?;
    let proxy = probed.env.insert_proxy().await?;
    probed.env.novi.state().limits = Some((20, 600));
    let address = "pending@mail.example.org";
    probed.env.private.add(address);
    probed.env.mailman.subscribe("members.lists.example.org", address, "member").await?;

    let result = probed.probe().await?;
    assert_findings(
        "documented",
        &result,
        &[("ok Novi root", "an API"), ("ok GET /members", "may not list all records (404)")],
    );
    let novi = &result["probe"]["novi"];
    assert_eq!(novi["responses"]["429"], Value::Null, "the rate limit was not kept: {novi}");
    assert_eq!(novi["unknown_uuid"], json!({"status": 404, "body": "object", "problem": null}));
    let groups = novi["groups"].as_array().cloned().unwrap_or_default();
    assert_eq!(groups.len(), 2, "{novi}");
    for (group, mappings, people, pages) in [(&groups[0], json!([1, 3]), 15, 2), (&groups[1], json!([2]), 12, 2)] {
        assert_eq!(group["mappings"], mappings);
        let expected = json!([200, "total_count", "documented", people, 10, pages, people, 0, 0, 3, true]);
        let keys = [
            "status",
            "envelope",
            "keys",
            "total",
            "page_size",
            "pages",
            "people",
            "rows_without_id",
            "repeated_rows",
            "in_other_groups",
            "complete",
        ];
        assert_eq!(Value::from_iter(keys.map(|key| group[key].clone())), expected, "{group}");
    }
    assert_eq!([&novi["people"], &novi["in_several_groups"]], [24, 3]);
    assert_eq!([&novi["records"]["sampled"], &novi["records"]["read"]], [24, 24]);
    let fields = &novi["records"]["fields"];
    assert_eq!(fields["Email"], json!({"text": 24}));
    assert_eq!(fields["Active"], json!({"boolean": 24}));
    assert_eq!(fields.as_object().map(serde_json::Map::len), Some(8), "only fields that are used: {fields}");
    assert_eq!(novi["bulk"]["status"], 404);
    assert_eq!(result["novi_calls"], 1 + 4 + 24 + 1);

    let mailman = &result["probe"]["mailman"];
    assert_eq!(mailman["version"], "3.3.10", "{mailman}");
    assert_eq!(mailman["transport"], "loopback");
    let list = &mailman["lists"][0];
    assert_eq!(list["list_id"], "members.lists.example.org");
    assert_eq!([&list["members"], &list["pending_requests"]], [1, 0]);
    assert_eq!(list["admin_notify_mchanges"], false);
    assert_eq!(list["subscription_policy"], "confirm", "{list}");
    assert_eq!(list["send_welcome_message"], true);
    assert_eq!(result["mailman_calls"], 1 + 2 * 3);

    // It writes nothing, and logs only counts.
    assert!(proxy.requests().iter().all(|request| request.line.starts_with("GET ")), "{:?}", proxy.requests());
    assert_eq!(probed.env.mailman.roster("members.lists.example.org", "member").await?.len(), 1);
    assert_eq!(probed.env.mailman.outgoing_emails()?, 0);
    let log = probed.env.function.log();
    let line = log.lines().find(|line| line.contains("probe completed")).unwrap_or_default();
    assert!(line.contains("\"errors\":0") && line.contains("\"novi_calls\":30"), "{log}");
    assert!(!log.contains("TotalCount") && !log.contains("list_id"), "the log has more than counts: {log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn probe_accepts_no_other_key_and_reads_nothing_then() -> Result<()> {
    let probed = Probed::start(&[]).await?;
    for event in [
        json!({"probe": true, "dry_run": true}),
        json!({"probe": true, "lists": ["members.lists.example.org"]}),
        json!({"probe": false}),
        json!({"probe": "yes"}),
        json!({"source": "aws.events", "detail-type": "Scheduled Event", "probe": true}),
    ] {
        let returned = probed.env.function.invoke(&event).await?;
        assert_eq!(returned["errorType"], "NotStarted", "{event}: {returned}");
    }
    assert_eq!(probed.env.novi.state().count("/"), 0);
    Ok(())
}

/// A change of the simulated Novi, and the findings that it leads to.
type Case = (&'static str, fn(&mut State), Vec<(&'static str, &'static str)>);

/// The awkwardness that this product expects, and that needs no change.
fn harmless() -> Vec<Case> {
    vec![
        ("bare arrays", |state| state.has_total_count = false, vec![("ok group of mapping 2", "a bare array")]),
        ("records under data", |state| state.wraps_records = true, vec![("ok record keys", "under data")]),
        ("other case", |state| state.has_camel_case_keys = true, vec![("ok record keys", "another case")]),
        ("one row a page", |state| state.page_limit = 1, vec![("ok group of mapping 2", "in 12 pages")]),
        (
            "byte order mark",
            |state| state.fail("/", ALWAYS, NoviFault::ByteOrderMark),
            vec![("ok records", "24 records of 24")],
        ),
        (
            "folded header",
            |state| state.fail("/", ALWAYS, NoviFault::FoldedHeader),
            vec![("ok records", "24 records of 24")],
        ),
        (
            "many headers",
            |state| state.fail("/", ALWAYS, NoviFault::ManyHeaders(200)),
            vec![("ok records", "24 records of 24")],
        ),
        (
            "half a surrogate pair in an unused field",
            |state| state.fail("/customers/", ALWAYS, NoviFault::HalfSurrogate("CustomerType")),
            vec![("ok records", "24 records of 24")],
        ),
        (
            "rate headers",
            |state| {
                let same = Box::new(NoviFault::Delay(Duration::ZERO));
                let fault = NoviFault::WithHeader("x-ratelimit-limit", "600".to_owned(), same);
                state.fail("/customers/", ALWAYS, fault);
            },
            vec![("ok Novi rate limit", "x-ratelimit-limit: 600")],
        ),
        (
            "200 with {} for an unknown UUID",
            |state| state.fail("/customers/0000", ALWAYS, respond(200, "{}")),
            vec![("ok unknown UUID", "200 without a record")],
        ),
        (
            "404 without a body for an unknown UUID",
            |state| state.fail("/customers/0000", ALWAYS, respond(404, "")),
            vec![("ok unknown UUID", "404")],
        ),
        (
            "all records may be listed",
            |state| state.bulk_hidden_fields = Some(Vec::new()),
            vec![("ok GET /members", "all 24 records, in pages of 10. 10 of the first 10")],
        ),
        (
            "a failure that passes",
            |state| state.fail("/customers/", 1, NoviFault::Respond(503, "text/html", "<html>".to_owned())),
            vec![("ok records", "24 records of 24")],
        ),
    ]
}

/// Novi, or what is in front of it, as a whole.
fn unusable() -> Vec<Case> {
    vec![
        ("CDN", |state| state.fail("/", ALWAYS, NoviFault::BlockedByCdn), vec![("error Novi CDN", "FixedAddress")]),
        (
            "CDN in JSON",
            |state| state.fail("/", ALWAYS, NoviFault::BlockedByCdnInJson),
            vec![("error Novi CDN", "FixedAddress")],
        ),
        (
            "revoked key",
            |state| state.key = "another key".to_owned(),
            vec![("error Novi key: Novi rejects novi_idaa_api_key (401)", "make parameters")],
        ),
        (
            "redirect",
            |state| state.fail("/", ALWAYS, NoviFault::Redirect("https://www.example.org/".to_owned())),
            vec![("error Novi root: Novi redirects (302)", "novi_api_root_url")],
        ),
        (
            "web site",
            |state| state.fail("/", ALWAYS, NoviFault::Respond(404, "text/html", "<html>no page</html>".to_owned())),
            vec![("error Novi root", "novi_api_root_url")],
        ),
        (
            "default backend",
            |state| state.fail("/", ALWAYS, NoviFault::Respond(404, "text/plain", "404 page not found".to_owned())),
            vec![("error Novi root", "novi_api_root_url")],
        ),
        (
            "login page",
            |state| state.fail("/", ALWAYS, NoviFault::Respond(200, "text/html", "<html>log in</html>".to_owned())),
            vec![("error Novi root", "novi_api_root_url")],
        ),
        (
            "404 in JSON to everything",
            |state| state.fail("/", ALWAYS, respond(404, r#"{"Message":"No HTTP resource was found."}"#)),
            vec![
                ("error Novi root: Novi answers 404 to everything", "novi_api_root_url"),
                ("error group", "no such group"),
            ],
        ),
        (
            "compressed",
            |state| {
                let compressed = Box::new(NoviFault::Respond(200, JSON, "\u{1f}\u{b}".to_owned()));
                state.fail("/", ALWAYS, NoviFault::WithHeader("content-encoding", "gzip".to_owned(), compressed));
            },
            vec![("error Novi compression", "Turn compression off")],
        ),
        (
            "no response",
            |state| state.fail("/", ALWAYS, NoviFault::NoResponse),
            vec![("error Novi connection: Novi doesn't respond (timed out)", "NAT gateway")],
        ),
        (
            "cut off",
            |state| state.fail("/", ALWAYS, NoviFault::TruncatedBody),
            vec![("error Novi connection: Novi doesn't respond (the response was truncated)", "novi_api_root_url")],
        ),
        (
            "closed",
            |state| state.fail("/", ALWAYS, NoviFault::Disconnect),
            vec![("error Novi connection: Novi doesn't respond (connection closed)", "novi_api_root_url")],
        ),
    ]
}

/// Single resources.
fn partly() -> Vec<Case> {
    vec![
        (
            "429",
            |state| state.fail("/groups/", 1, NoviFault::RateLimited(Some("1".to_owned()))),
            vec![(
                "warning Novi rate limit: Novi answered 429 to 1 calls. Retry-After was at most 1 s",
                "NOVI_MAX_PER",
            )],
        ),
        (
            "slow",
            |state| state.latency = Duration::from_millis(300),
            vec![("warning Novi connection", "Raise NOVI_TIMEOUT_MS, which is 500")],
        ),
        (
            "no permission for people",
            |state| state.fail("/customers/", ALWAYS, NoviFault::Forbidden),
            vec![
                ("error Novi key: The key may not read people", "let the key read customers"),
                ("warning records: 0 records of 24", "24 calls failed"),
            ],
        ),
        (
            "no permission for groups",
            |state| state.fail("/groups/", ALWAYS, NoviFault::Forbidden),
            vec![
                ("error Novi key: The key may not read 2 of 2 groups", "Ask Novi"),
                ("error group", "Let the API key"),
            ],
        ),
        (
            "groups fail",
            |state| state.fail("/groups/", ALWAYS, NoviFault::Respond(500, "text/plain", "x".to_owned())),
            vec![("warning group", "Reading it failed (500)")],
        ),
        ("ignored offset", |state| state.ignores_offset = true, vec![("error group", "its pages repeat")]),
        ("drifting count", |state| state.has_drifting_total = true, vec![("error group", "TotalCount changed")]),
        (
            "unknown envelope",
            |state| state.fail("/groups/", ALWAYS, respond(200, r#"{"items":[{"id":5}],"next":null}"#)),
            vec![("error group", "no rows that could be found")],
        ),
        (
            "rows under data",
            |state| state.fail("/groups/", ALWAYS, respond(200, r#"{"data":[{"UniqueID":"x","Name":"y"}]}"#)),
            vec![("error group", "rows under data")],
        ),
        (
            "rows without id",
            |state| {
                let rows = r#"{"TotalCount":2,"Results":[{"UniqueID":null,"Name":"x"},{"Name":"y"}]}"#;
                state.fail("/groups/", ALWAYS, respond(200, rows));
            },
            vec![("warning group", "2 rows have no UniqueID")],
        ),
        (
            "200 without a body for an unknown UUID",
            |state| state.fail("/customers/0000", ALWAYS, respond(200, "")),
            vec![("warning unknown UUID", "the mirror as unknown")],
        ),
        (
            "an error in a 200 for an unknown UUID",
            |state| state.fail("/customers/0000", ALWAYS, respond(200, r#"{"error":"no such customer"}"#)),
            vec![("error unknown UUID: Novi answers 200 with something else", "Open an issue")],
        ),
        (
            "400 for an unknown UUID",
            |state| state.fail("/customers/0000", ALWAYS, respond(400, r#"{"Message":"Bad id."}"#)),
            vec![("error unknown UUID: Novi answers 400", "Open an issue")],
        ),
        (
            "500 for an unknown UUID",
            |state| state.fail("/customers/0000", ALWAYS, respond(500, r#"{"Message":"An error has occurred."}"#)),
            vec![("error unknown UUID: Novi answers 500", "Open an issue")],
        ),
        (
            "a record for an unknown UUID",
            |state| state.fail("/customers/0000", ALWAYS, NoviFault::OtherRecord),
            vec![("error unknown UUID: Novi returns a record", "UniqueID")],
        ),
        (
            "endless records",
            |state| state.fail("/customers/0000", ALWAYS, NoviFault::EndlessBody),
            vec![("error unknown UUID: Novi answers 200 with something else", "Open an issue")],
        ),
        (
            "errors in a 200",
            |state| state.fail("/customers/", ALWAYS, respond(200, r#"{"error":"over the limit"}"#)),
            vec![
                ("error unknown UUID: Novi answers 200 with something else", "Open an issue"),
                ("error records: 24 of 24 responses are something else than a record", "Open an issue"),
                ("ok records", ""),
            ],
        ),
        (
            "hidden people",
            |state| state.directory.people.clear(),
            vec![("error records: 0 records of 24 sampled people", "API key")],
        ),
        (
            "Email hidden",
            |state| change_all(state, |record| drop(record.remove("Email"))),
            vec![("error field Email: 24 hidden", "Limit Member Data")],
        ),
        (
            "identity hidden",
            |state| change_all(state, |record| record.retain(|key, _| !key.contains("Name") && key != "Email")),
            vec![
                ("error records: 24 of 24 records have neither a name nor an Email", "Limit Member Data"),
                ("error field Email: 24 hidden", "Limit Member Data"),
                ("warning field FirstName: 24 hidden", "Limit Member Data"),
                ("warning field LastName: 24 hidden", "Limit Member Data"),
            ],
        ),
        (
            "flags hidden, as null or as text",
            |state| {
                change_all(state, |record| {
                    record["Active"] = Value::Null;
                    record["UnsubscribeFromEmails"] = json!("false");
                });
            },
            vec![
                ("error field Active: 24 null", "Limit Member Data"),
                ("error field UnsubscribeFromEmails: 24 text", "Limit Member Data"),
            ],
        ),
        (
            "a name that is an object",
            |state| change_all(state, |record| drop(record.insert("LastName".to_owned(), json!({"Text": "x"})))),
            vec![
                ("error field LastName: 24 objects", "Open an issue"),
                (
                    "error records: 24 of 24 records have a name or an Email that this version doesn't read",
                    "Open an issue",
                ),
            ],
        ),
        (
            "UniqueID hidden",
            |state| change_all(state, |record| drop(record.remove("UniqueID"))),
            vec![("warning UniqueID: 24 of 24 records have no UniqueID", "show UniqueID")],
        ),
        (
            "a merged record",
            |state| {
                let survivor = Uuid::from_u128(fastrand::u128(..));
                let merged = state.directory.groups.values().next().map(|members| members[0]).unwrap_or_default();
                let survivor = record(survivor, "Marguerite", "Delacroix", "survivor@mail.example.org");
                state.directory.people.insert(merged, survivor);
            },
            vec![("error UniqueID: 1 of 24 records have another UniqueID than was asked for.", "merged")],
        ),
        (
            "records of other people",
            |state| {
                let members: Vec<Uuid> = state.directory.people.keys().copied().collect();
                let [one, other] = [members[0], members[1]].map(|id| state.directory.people[&id].clone());
                state.directory.people.extend([(members[0], other), (members[1], one)]);
            },
            vec![("error UniqueID: 2 of 24 records have another UniqueID than was asked for, 2", "mixes responses up")],
        ),
        (
            "an empty group",
            |state| state.directory.groups.values_mut().for_each(Vec::clear),
            vec![("warning group", "It is empty")],
        ),
        (
            "all records may be listed, without Email",
            |state| state.bulk_hidden_fields = Some(vec!["Email".to_owned()]),
            vec![("warning GET /members", "show Email in it, or set NOVI_BULK=off")],
        ),
        (
            "all records in another format",
            |state| state.fail("/api/members", ALWAYS, respond(200, "[]")),
            vec![("warning GET /members: It has not the expected format", "NOVI_BULK=off")],
        ),
        (
            "all records fail",
            |state| state.fail("/api/members", ALWAYS, respond(500, "{}")),
            vec![("warning GET /members: Novi answers 500", "NOVI_BULK=off")],
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn probe_names_each_deviation_of_novi_with_its_fix() -> Result<()> {
    let probed = Probed::start(&[]).await?;
    probed.env.private.add("survivor@mail.example.org");
    for (name, change, expected) in harmless().into_iter().chain(unusable()).chain(partly()) {
        change(&mut probed.env.novi.state());
        let result = probed.probe().await?;
        assert_findings(name, &result, &expected);
        probed.reset();
    }
    // A status that no one has.
    let function = probed.env.another_instance(&[("MEMBER_STATUSES", "current,grace_period")])?;
    let result = function.invoke(&json!({"probe": true})).await?;
    let expected = ("error field MemberStatus: 24 of 24 records have another status", "correct MEMBER_STATUSES");
    assert_findings("status", &result, &[expected]);
    assert_eq!(probed.env.private.found_in(&result.to_string()).len(), 0, "{result}");
    // One of the groups.
    let [one, two] = probed.groups;
    probed.env.novi.state().directory.groups.remove(&two);
    let missing = format!("error {TWO}: Novi has no such group");
    let found = format!("ok {ONE}: 15 people in 2 pages of at most 10 rows: TotalCount and Results.");
    assert_findings("missing", &probed.probe().await?, &[(&missing, "group_guid in mapping 2"), (&found, "")]);
    probed.env.novi.state().directory.groups.remove(&one);
    let result = probed.probe().await?;
    assert!(lines(&result).iter().any(|line| line.starts_with("error Novi root: Novi answers 404")), "{result}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn probe_sees_responses_that_a_proxy_mixes_up() -> Result<()> {
    let probed = Probed::start(&[("NOVI_MAX_PER_SECOND", "40")]).await?;
    {
        let mut state = probed.env.novi.state();
        state.latency = Duration::from_millis(60);
        let members = state.directory.people.keys().copied().collect::<Vec<_>>();
        for id in members {
            let fault = NoviFault::SecondResponse(Duration::from_millis(40));
            state.fail(&format!("/customers/{}", id.hyphenated()), ALWAYS, fault);
        }
    }
    let result = probed.probe().await?;
    let lines = lines(&result);
    assert!(lines.iter().any(|line| line.starts_with("error UniqueID") && line.contains("mixes")), "{lines:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn probe_ends_before_the_deadline_and_says_what_it_could_not_ask() -> Result<()> {
    let mut probed = Probed::start(&[("AWS_LAMBDA_FUNCTION_TIMEOUT", "14"), ("NOVI_BULK", "off")]).await?;
    let proxy = probed.env.insert_proxy().await?;
    assert_findings("off", &probed.probe().await?, &[("ok GET /members", "NOVI_BULK=off")]);
    assert_eq!(probed.env.novi.state().count("/api/members"), 0);

    proxy.fail("/config", ALWAYS, HttpFault::Hold(Arc::new(Semaphore::new(0))));
    probed.env.novi.state().fail("/customers/", ALWAYS, NoviFault::RateLimited(Some("3600".to_owned())));
    let started = Instant::now();
    let result = probed.probe().await?;
    assert!(started.elapsed() < Duration::from_secs(9), "{:?}", started.elapsed());
    assert_findings(
        "deadline",
        &result,
        &[
            ("warning Novi rate limit", "Retry-After was at most 3600 s"),
            ("warning probe: Time ran out before Novi was asked for everything", "Retry-After"),
            ("error list members.lists.example.org: Mailman did not respond (timed out)", "REST runner"),
            ("error list news.lists.example.org: Mailman did not respond (timed out)", "REST runner"),
        ],
    );
    Ok(())
}

/// Leaves an unconfirmed subscription request.
async fn request_subscription(mailman: &Mailman, list: &str, address: &str) -> Result<()> {
    let body = json!({"list_id": list, "subscriber": address, "pre_verified": true});
    let (status, _) = mailman.request(Method::POST, "members", Some(body)).await?;
    assert_eq!(status, 202);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn probe_names_each_deviation_of_mailman_with_its_fix() -> Result<()> {
    let mut probed = Probed::start(&[]).await?;
    let proxy = probed.env.insert_proxy().await?;
    let (members, news) = ("members.lists.example.org", "news.lists.example.org");
    let mailman = &probed.env.mailman;
    let config = |list: &str| format!("lists/{list}/config");
    let notify = json!({"admin_notify_mchanges": true, "subscription_policy": "moderate"});
    let (status, body) = mailman.request(Method::PATCH, &config(members), Some(notify)).await?;
    assert_eq!(status, 204, "{body}");
    probed.env.private.add("pending@mail.example.org");
    request_subscription(mailman, members, "pending@mail.example.org").await?;
    let result = probed.probe().await?;
    let found = "Its owners get an email about every new member";
    assert_findings("notices", &result, &[("warning list members.lists.example.org: 0 members. 1 pending", found)]);
    let list = &result["probe"]["mailman"]["lists"][0];
    assert_eq!([&list["admin_notify_mchanges"], &list["pending_requests"]], [&json!(true), &json!(1)]);
    assert_eq!(list["subscription_policy"], "moderate");
    mailman.request(Method::PATCH, &config(members), Some(json!({"admin_notify_mchanges": false}))).await?;

    for (name, part, fault, expected) in [
        (
            "old",
            "system/versions",
            HttpFault::Respond(200, r#"{"mailman_version":"GNU Mailman 3.3.2 (Tom Sawyer)"}"#),
            ("error Mailman version: It is 3.3.2", "Upgrade Mailman to 3.3.3"),
        ),
        (
            "no version",
            "system/versions",
            HttpFault::Respond(200, r#"{"mailman_version":"leak@example.org"}"#),
            ("warning Mailman version", "mailman_base_url"),
        ),
        (
            "a web site",
            "GET",
            HttpFault::Respond(200, "<html>leak@example.org</html>"),
            ("error Mailman connection: Another server than Mailman responded with 200 OK", "mailman_base_url"),
        ),
        (
            "another server",
            "GET",
            HttpFault::Respond(404, "<html>leak@example.org</html>"),
            ("error Mailman connection: Another server than Mailman responded with 404", "mailman_base_url"),
        ),
        (
            "a proxy that forbids",
            "GET",
            HttpFault::Respond(403, "<html>leak@example.org</html>"),
            ("error Mailman connection: Another server than Mailman responded with 403", "proxy"),
        ),
        (
            "closed",
            "GET",
            HttpFault::DropRequest,
            ("error Mailman connection: Mailman did not respond (connection closed)", "REST runner"),
        ),
        (
            "a list that fails",
            "lists/members.lists.example.org/config",
            HttpFault::Respond(500, "leak@example.org"),
            ("error list members.lists.example.org: Mailman failed", "Mailman's log"),
        ),
        (
            "requests that can't be counted",
            "requests/count",
            HttpFault::Respond(404, r#"{"title":"404 Not Found"}"#),
            ("ok list members.lists.example.org", "can't count"),
        ),
    ] {
        probed.env.private.add("leak@example.org");
        proxy.fail(part, ALWAYS, fault);
        assert_findings(name, &probed.probe().await?, &[expected]);
        proxy.clear_faults();
    }

    mailman.request(Method::DELETE, &format!("lists/{news}"), None).await?;
    let expected = [("error list news.lists.example.org: Mailman has no list with this id", "Create the list")];
    assert_findings("no list", &probed.probe().await?, &expected);
    mailman.create_list("news").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn probe_names_wrong_parameters() -> Result<()> {
    let probed = Probed::start(&[]).await?;
    let url = probed.env.mailman.base_url();
    let tls = url.replace("http://", "https://");
    let [mailman_password, group] = ["another password".to_owned(), Uuid::nil().hyphenated().to_string()];
    probed.env.private.add(&mailman_password);
    probed.env.private.add("leak@example.org");
    let novi = probed.env.novi.root().replace("http://", "https://");
    let broken = json!([{"group_guid": group, "list-id": "leak@example.org"}]);
    for (name, key, value, expected) in [
        (
            "password",
            "mailman_password",
            json!(mailman_password),
            ("error Mailman connection: Mailman rejected", "Correct"),
        ),
        ("port", "mailman_base_url", json!("http://127.0.0.1:9"), ("error Mailman connection", "connection refused")),
        (
            "TLS",
            "mailman_base_url",
            json!(tls),
            (
                "error Mailman connection: Mailman did not respond (TLS failed: the server doesn't respond in TLS)",
                "EXTRA_CA_CERTS",
            ),
        ),
        (
            "TLS",
            "novi_api_root_url",
            json!(novi),
            (
                "error Novi connection: Novi doesn't respond (TLS failed: the server doesn't respond in TLS)",
                "EXTRA_CA_CERTS",
            ),
        ),
        (
            "root",
            "novi_api_root_url",
            json!(probed.env.novi.root().replace("/api", "")),
            ("error", "novi_api_root_url"),
        ),
        ("mapping", "novi_mailman_sync", broken, ("error mappings", "novi_mailman_sync")),
        (
            "no mapping",
            "novi_mailman_sync",
            json!([]),
            ("error mappings: There is no valid mapping", "novi_mailman_sync"),
        ),
    ] {
        let mut env = probed.env.config.clone();
        env[key] = value;
        let function =
            tests::function::Function::start("mirror", &env, &[("NOVI_TIMEOUT_MS", "500")], &probed.env.private)?;
        let result = function.invoke(&json!({"probe": true})).await?;
        assert_eq!(probed.env.private.found_in(&result.to_string()).len(), 0, "{result}");
        if name == "root" {
            assert!(lines(&result).iter().any(|line| line.starts_with("error Novi root")), "{:#?}", lines(&result));
        } else {
            assert_findings(name, &result, &[expected]);
        }
    }
    Ok(())
}
