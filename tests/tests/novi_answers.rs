//! Both functions and everything that can come in place of a record: errors with a status of success, pages of proxies,
//! records of other people, and HTTP as servers and proxies speak it. Nothing of it may look like "not a member", and
//! none of it may cost a stale record.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Result;
use fastrand::Rng;
use serde_json::{Value, json};
use tests::api::Response;
use tests::directory::Directory;
use tests::harness::{Mirror, Verification, list};
use tests::novi::{Novi, NoviFault};
use tests::redis::{Kind, Redis};
use uuid::Uuid;

const LIST: &str = "members.lists.example.org";

fn respond(status: u16, kind: &'static str, body: &str) -> NoviFault {
    NoviFault::Respond(status, kind, body.to_owned())
}

fn json_body(body: &str) -> NoviFault {
    respond(200, "application/json", body)
}

fn with_retry_after(seconds: &str, fault: NoviFault) -> NoviFault {
    NoviFault::WithHeader("retry-after", seconds.to_owned(), Box::new(fault))
}

/// The status, and `X-Cache` or the code.
fn outcome(response: &Response) -> (u16, String) {
    let detail = if response.status == 200 { response.header("x-cache").to_owned() } else { response.code() };
    (response.status, detail)
}

fn newcomer(env: &Verification) -> Uuid {
    env.novi.state().directory.add(&mut Rng::new())
}

fn path_of(id: Uuid) -> String {
    id.hyphenated().to_string()
}

/// Everything that is no record and no verdict, with the code that callers get if there is no stale record.
fn outages() -> Vec<(&'static str, NoviFault, &'static str)> {
    const INVALID: &str = "novi_invalid_response";
    let mut all: Vec<(&str, NoviFault, &str)> = [
        r#"{"error":"Rate limit exceeded"}"#,
        r#"{"Error":{"Code":42}}"#,
        r#"{"errors":[{"message":"maintenance"}]}"#,
        r#"{"Message":"An error has occurred."}"#,
        r#"{"message":"An error has occurred.","name":"Error"}"#,
        r#"{"error":"down","Name":"","Email":null}"#,
        r#"{"status":"error","data":null}"#,
        r#"{"status":"fail","data":{}}"#,
        r#"{"data":{"error":"down"}}"#,
        r#"{"data":null,"errors":["down"]}"#,
        r#"{"success":false}"#,
        r#"{"Unknown":"field"}"#,
        r#"{"TotalCount":0,"Results":[]}"#,
        r#"{"Active":true}"#,
        r#"{"UniqueID":null,"Active":true,"UnsubscribeFromEmails":false,"MemberStatus":"current"}"#,
        r#"{"Name":"\ud83d"}"#,
        "[]",
        "[{}]",
        "\"\"",
        "false",
        "0",
        "<html><body>Welcome to this hotel</body></html>",
        "OK",
    ]
    .map(|body| (body, json_body(body), INVALID))
    .into();
    for status in ["404 page not found", "default backend - 404", "<html><title>404.0</title></html>", "404", "{"] {
        all.push((status, respond(404, "text/plain", status), "novi_error"));
    }
    all.extend([
        ("record of another person", NoviFault::OtherRecord, INVALID),
        ("300 headers", NoviFault::ManyHeaders(300), INVALID),
        ("CDN in HTML", NoviFault::BlockedByCdn, "novi_blocked"),
        ("CDN in JSON", NoviFault::BlockedByCdnInJson, "novi_blocked"),
        ("403 with an array", respond(403, "application/json", r#"["Message"]"#), "novi_blocked"),
        ("403 of a gateway", respond(403, "application/json", r#"{"message":"Forbidden"}"#), "novi_blocked"),
        ("403 of Novi", NoviFault::Forbidden, "novi_credentials_rejected"),
        (
            "gzip although declined",
            NoviFault::WithHeader(
                "content-encoding",
                "gzip".to_owned(),
                Box::new(respond(200, "application/json", "\u{1f}\u{8b}\u{8}")),
            ),
            INVALID,
        ),
        ("503", respond(503, "text/html", ""), "novi_error"),
        ("no response", NoviFault::Disconnect, "novi_unreachable"),
    ]);
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn outage_is_never_a_404_and_never_costs_a_stale_record() -> Result<()> {
    let env = Verification::start(&[("CACHE_TTL_SECONDS", "2"), ("CACHE_STALE_SECONDS", "3600")]).await?;
    let outages = outages();
    let mut known = Vec::new();
    for _ in &outages {
        let id = newcomer(&env);
        known.push((id, env.verify(id).await?.json()));
    }
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    for ((name, fault, code), (id, body)) in outages.into_iter().zip(known) {
        env.novi.state().fail("/customers/", usize::MAX, fault);
        let stranger = newcomer(&env);
        assert_eq!(outcome(&env.verify(stranger).await?), (503, code.to_owned()), "{name}");
        for _ in 0..2 {
            let response = env.verify(id).await?;
            assert_eq!(outcome(&response), (200, "stale".to_owned()), "{name}");
            assert_eq!(response.json(), body, "{name}");
        }
        env.novi.state().clear_faults();
        // Nothing was remembered about the UUID that was never verified.
        assert_eq!(outcome(&env.verify(stranger).await?), (200, "miss".to_owned()), "after {name}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn verdict_that_there_is_no_member_ends_a_stale_record() -> Result<()> {
    let env = Verification::start(&[("CACHE_TTL_SECONDS", "2"), ("CACHE_STALE_SECONDS", "3600")]).await?;
    let verdicts = [
        respond(404, "application/json", r#"{"Message":"No such customer."}"#),
        respond(404, "application/json", "null"),
        respond(404, "application/json", r#""Customer not found""#),
        respond(404, "text/plain", ""),
        respond(404, "text/plain", " \r\n"),
        json_body(""),
        json_body("\u{feff}"),
        json_body("null"),
        json_body("{}"),
        json_body("\u{feff}{}"),
        json_body(r#"{"data":null}"#),
        json_body(r#"{"data":{}}"#),
        json_body(r#"{"Name":"","FirstName":null,"LastName":" ","Email":""}"#),
        json_body(r#"{"name":null}"#),
        json_body(r#"{"Name":"\u200b","Email":"\u200b \u00a0"}"#),
    ];
    let mut known = Vec::new();
    for _ in &verdicts {
        let id = newcomer(&env);
        assert_eq!(env.verify(id).await?.status, 200);
        known.push(id);
    }
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    for (number, (fault, id)) in verdicts.into_iter().zip(known).enumerate() {
        env.novi.state().fail("/customers/", 1, fault);
        assert_eq!(outcome(&env.verify(id).await?), (404, "member_not_found".to_owned()), "verdict {number}");
        env.novi.state().fail("/customers/", 1, respond(500, "text/plain", ""));
        assert_eq!(outcome(&env.verify(id).await?), (503, "novi_error".to_owned()), "verdict {number}");
        env.novi.state().clear_faults();
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn record_is_read_however_it_is_sent() -> Result<()> {
    let env = Verification::start(&[]).await?;
    for (name, fault) in [
        ("folded header", NoviFault::FoldedHeader),
        ("120 headers", NoviFault::ManyHeaders(120)),
        ("250 headers", NoviFault::ManyHeaders(250)),
        ("byte order mark", NoviFault::ByteOrderMark),
        ("half a surrogate pair in Name", NoviFault::HalfSurrogate("Name")),
        ("half a surrogate pair in an unknown field", NoviFault::HalfSurrogate("CustomerType")),
        ("half a surrogate pair in a date", NoviFault::HalfSurrogate("CreatedDate")),
    ] {
        for wraps_records in [false, true] {
            env.novi.state().wraps_records = wraps_records;
            let id = newcomer(&env);
            env.novi.state().fail("/customers/", 1, fault.clone());
            let before = env.novi.state().count("/customers/");
            let response = env.verify(id).await?;
            assert_eq!(outcome(&response), (200, "miss".to_owned()), "{name}");
            let address = env.novi.state().directory.address(id);
            assert_eq!(response.json()["email"], address, "{name}");
            assert_eq!(env.novi.state().count("/customers/") - before, 1, "{name}");
        }
    }
    env.novi.state().has_camel_case_keys = true;
    for wraps_records in [false, true] {
        env.novi.state().wraps_records = wraps_records;
        let id = newcomer(&env);
        let address = env.novi.state().directory.address(id);
        assert_eq!(env.verify(id).await?.json()["email"], address);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_that_no_request_asked_for_never_verify_another_member() -> Result<()> {
    let env = Verification::start(&[]).await?;
    {
        let mut state = env.novi.state();
        state.latency = Duration::from_millis(20);
        state.fail("/customers/", usize::MAX, NoviFault::SecondResponse(Duration::from_millis(10)));
    }
    let members: Vec<Uuid> = (0..60).map(|_| newcomer(&env)).collect();
    let address = |id: Uuid| env.novi.state().directory.address(id);
    let mut failed = 0;
    for id in &members {
        let response = env.verify(*id).await?;
        match response.status {
            200 => assert_eq!(response.json()["email"], address(*id)),
            _ => {
                assert_eq!(outcome(&response), (503, "novi_invalid_response".to_owned()));
                failed += 1;
            }
        }
    }
    assert!(failed > 0, "the fault didn't occur");
    env.novi.state().clear_faults();
    for id in members {
        let response = env.verify(id).await?;
        if response.header("x-cache") == "hit" {
            assert_eq!(response.json()["email"], address(id), "another member's record is in the cache");
        }
    }
    assert!(env.function.log().contains("NoviMismatch"), "the metric is missing");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_that_no_request_asked_for_never_deny_a_member() -> Result<()> {
    let env = Verification::start(&[]).await?;
    {
        let mut state = env.novi.state();
        state.latency = Duration::from_millis(60);
        state.fail("/customers/", usize::MAX, NoviFault::SecondResponse(Duration::from_millis(30)));
    }
    for _ in 0..10 {
        // The second 404 follows while the next member's request waits for its own response.
        let (stranger, member) = (Uuid::from_u128(fastrand::u128(..)), newcomer(&env));
        let denied = env.verify(stranger).await?.status;
        let response = env.verify(member).await?;
        assert!([404, 503].contains(&denied), "{denied}");
        assert!([200, 503].contains(&response.status), "a member is denied: {response:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn hidden_fields_are_named_in_the_log() -> Result<()> {
    let env = Verification::start(&[]).await?;
    for name in ["Name", "FirstName", "LastName", "Email"] {
        env.novi.state().directory.person(env.member).as_object_mut().map(|record| record.remove(name));
    }
    assert_eq!(outcome(&env.verify(env.member).await?), (503, "novi_invalid_response".to_owned()));
    assert!(env.function.log().contains("the API key may not be allowed to read them"), "{}", env.function.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_passed_on_with_any_status_and_honored() -> Result<()> {
    let env = Verification::start(&[]).await?;
    for (fault, code, retry_after, calls) in [
        (with_retry_after("120", respond(503, "text/html", "")), "novi_error", "120", 1),
        (with_retry_after("86400", respond(503, "text/html", "")), "novi_error", "3600", 1),
        (with_retry_after("0", respond(500, "text/html", "")), "novi_error", "1", 1),
        (with_retry_after("18446744073709551616", respond(500, "text/html", "")), "novi_error", "3600", 1),
        (with_retry_after("17", respond(404, "text/html", "no")), "novi_error", "17", 1),
        (with_retry_after("17", respond(302, "text/html", "")), "novi_error", "17", 1),
        (with_retry_after("17", NoviFault::BlockedByCdn), "novi_blocked", "17", 1),
        (with_retry_after("17", NoviFault::Forbidden), "novi_credentials_rejected", "17", 1),
        (with_retry_after("17", json_body(r#"{"error":"busy"}"#)), "novi_invalid_response", "17", 1),
        (with_retry_after("17", json_body(r#"{"Name":"Ada","Email":5}"#)), "novi_invalid_response", "17", 1),
        (with_retry_after("soon", respond(503, "text/html", "")), "novi_error", "5", 2),
        (respond(503, "text/html", ""), "novi_error", "5", 2),
    ] {
        let id = newcomer(&env);
        env.novi.state().fail(&path_of(id), usize::MAX, fault);
        let response = env.verify(id).await?;
        assert_eq!(outcome(&response), (503, code.to_owned()));
        assert_eq!(response.header("retry-after"), retry_after, "{code}");
        assert_eq!(env.novi.state().count(&path_of(id)), calls, "{code}, {retry_after} s");
    }
    // A second fits into the timeout of two.
    let id = newcomer(&env);
    env.novi.state().fail(&path_of(id), 1, with_retry_after("1", respond(503, "text/html", "")));
    let started = Instant::now();
    assert_eq!(env.verify(id).await?.status, 200);
    assert!(started.elapsed() >= Duration::from_secs(1), "{:?}", started.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn absurd_retry_after_of_a_429_is_bounded() -> Result<()> {
    for (retry_after, expected) in [
        ("0", 1),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 1),
        ("4000", 3600),
        ("18446744073709551615", 3600),
        ("99999999999999999999", 3600),
    ] {
        let env = Verification::start(&[]).await?;
        env.novi.state().fail("/customers/", 1, NoviFault::RateLimited(Some(retry_after.to_owned())));
        let response = env.verify(env.member).await?;
        assert_eq!(outcome(&response), (429, "rate_limited".to_owned()));
        assert_eq!(response.header("retry-after"), expected.to_string(), "{retry_after}");
        // The cooldown, which is at least as long as the shortest wait.
        assert_eq!(env.verify(newcomer(&env)).await?.status, 429, "{retry_after}");
        assert_eq!(env.novi.state().count("/customers/"), 1, "{retry_after}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn record_read_by_an_instance_without_redis_makes_it_believe_a_404() -> Result<()> {
    let (env, probe) = start_with_probe(&[("CACHE_URL", "redis://127.0.0.1:1")]).await?;
    assert_eq!(env.verify(env.member).await?.status, 200);
    for _ in 0..3 {
        assert_eq!(env.verify(Uuid::from_u128(fastrand::u128(..))).await?.status, 404);
    }
    assert_eq!(env.novi.state().count(&path_of(probe)), 0);
    Ok(())
}

/// Starts verify with a probe. Returns the probe's UUID too.
async fn start_with_probe(variables: &[(&str, &str)]) -> Result<(Verification, Uuid)> {
    let probe = Uuid::from_u128(fastrand::u128(..));
    let env = Verification::start_with(variables, |config| config["novi_probe_uuid"] = json!(path_of(probe))).await?;
    env.private.add(&path_of(probe));
    let record = tests::directory::record(probe, "Marguerite", "Delacroix", "probe-of-novi@mail.example.org");
    env.private.add_record(&record);
    env.novi.state().directory.people.insert(probe, record);
    Ok((env, probe))
}

#[tokio::test(flavor = "multi_thread")]
async fn not_found_is_believed_only_if_a_record_could_be_read() -> Result<()> {
    let not_found = || respond(404, "application/json", r#"{"message":"Not Found"}"#);
    for fault in [not_found(), json_body("{}"), json_body(""), json_body(r#"{"Name":""}"#)] {
        let (env, probe) = start_with_probe(&[("CACHE_TTL_SECONDS", "1"), ("CACHE_STALE_SECONDS", "3600")]).await?;
        let stranger = Uuid::from_u128(fastrand::u128(..));
        // A wrong root, or a lost permission: everything is "not found".
        env.novi.state().fail("/customers/", usize::MAX, fault.clone());
        for id in [stranger, env.member, probe] {
            assert_eq!(outcome(&env.verify(id).await?), (503, "novi_error".to_owned()));
        }
        env.novi.state().clear_faults();
        let calls = env.novi.state().count(&path_of(probe));

        // The probe can be read, so this UUID really has no record.
        assert_eq!(outcome(&env.verify(stranger).await?), (404, "member_not_found".to_owned()));
        assert_eq!(env.novi.state().count(&path_of(probe)), calls + 1);
        // It was read just now, so it isn't read again.
        assert_eq!(outcome(&env.verify(stranger).await?), (404, "member_not_found".to_owned()));
        assert_eq!(env.novi.state().count(&path_of(probe)), calls + 1);
        // The verdict about a member is believed as well.
        assert_eq!(env.verify(env.member).await?.status, 200);
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        env.novi.state().directory.people.remove(&env.member);
        assert_eq!(outcome(&env.verify(env.member).await?), (404, "member_not_found".to_owned()));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn record_of_a_member_serves_as_well_as_the_probe() -> Result<()> {
    let (env, probe) = start_with_probe(&[]).await?;
    assert_eq!(env.verify(env.member).await?.status, 200);
    assert_eq!(env.verify(Uuid::from_u128(fastrand::u128(..))).await?.status, 404);
    assert_eq!(env.novi.state().count(&path_of(probe)), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn failure_of_the_probe_is_an_outage() -> Result<()> {
    for (fault, expected) in [
        (respond(500, "text/html", ""), (503, "novi_error")),
        (NoviFault::BlockedByCdnInJson, (503, "novi_blocked")),
        (NoviFault::OtherRecord, (503, "novi_invalid_response")),
        (NoviFault::RateLimited(Some("60".to_owned())), (429, "rate_limited")),
        (NoviFault::NoResponse, (503, "novi_unreachable")),
    ] {
        let (env, probe) = start_with_probe(&[]).await?;
        env.novi.state().fail(&path_of(probe), usize::MAX, fault);
        let response = env.verify(Uuid::from_u128(fastrand::u128(..))).await?;
        assert_eq!(outcome(&response), (expected.0, expected.1.to_owned()));
    }
    // The probe is a call like any other.
    let (env, probe) = start_with_probe(&[("VERIFY_NOVI_MAX_PER_MINUTE", "1")]).await?;
    assert_eq!(env.verify(Uuid::from_u128(fastrand::u128(..))).await?.status, 429);
    assert_eq!(env.novi.state().count(&path_of(probe)), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_share_the_knowledge_that_records_can_be_read() -> Result<()> {
    let redis = Redis::start(Kind::Plain)?;
    let url = format!("redis://127.0.0.1:{}", redis.port());
    let variables = [("CACHE_URL", url.as_str())];
    let (env, probe) = start_with_probe(&variables).await?;
    assert_eq!(env.verify(env.member).await?.status, 200);
    let other = env.another_instance(&variables)?;
    let request = env.request(Uuid::from_u128(fastrand::u128(..)));
    assert_eq!(env.send_to(&other, &request).await?.status, 404);
    assert_eq!(env.novi.state().count(&path_of(probe)), 0);
    // After ten minutes it is forgotten.
    let keys = redis.command(&["KEYS", "idaa:novi_record_read*"])?;
    let ttl: u64 = redis.command(&["TTL", keys.trim()])?.trim().parse()?;
    assert!((590..=600).contains(&ttl), "{ttl}");
    redis.command(&["DEL", keys.trim()])?;
    let third = env.another_instance(&variables)?;
    assert_eq!(env.send_to(&third, &request).await?.status, 404);
    assert_eq!(env.novi.state().count(&path_of(probe)), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_these_member_statuses_are_members() -> Result<()> {
    let env = Verification::start(&[("MEMBER_STATUSES", "current, Grace_Period")]).await?;
    for (status, expected) in [
        (json!("current"), 200),
        (json!(" CURRENT "), 200),
        (json!("grace_period"), 200),
        (json!("non_member"), 404),
        (json!("currently"), 404),
        (json!(""), 404),
        (json!(null), 404),
        (json!(5), 503),
    ] {
        let id = newcomer(&env);
        env.novi.state().directory.person(id)["MemberStatus"] = status.clone();
        for _ in 0..2 {
            assert_eq!(env.verify(id).await?.status, expected, "{status}");
        }
    }
    let id = newcomer(&env);
    env.novi.state().directory.person(id).as_object_mut().map(|record| record.remove("MemberStatus"));
    assert_eq!(env.verify(id).await?.status, 404);
    Ok(())
}

/// Starts a mirror of one list, which is mapped to a group of ordinary members.
async fn start_mirror(members: usize, variables: &[(&str, &str)]) -> Result<(Mirror, Vec<Uuid>)> {
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), members);
    let ids = directory.groups[&group].clone();
    let mappings = json!([{"group_guid": group, "list_id": LIST, "max_removal_percent": 90}]);
    let env = Mirror::start(directory, mappings, variables).await?;
    env.mailman.create_list("members").await?;
    Ok((env, ids))
}

async fn roster(env: &Mirror) -> Result<BTreeSet<String>> {
    Ok(env.mailman.roster(LIST, "member").await?.into_keys().collect())
}

fn addresses(novi: &Novi, ids: &[Uuid]) -> BTreeSet<String> {
    ids.iter().map(|id| novi.state().directory.address(*id)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn mirror_counts_every_answer_that_is_no_record_as_unknown() -> Result<()> {
    let (env, ids) = start_mirror(6, &[("NOVI_TIMEOUT_MS", "400")]).await?;
    assert_eq!(env.run(json!({})).await?["status"], "ok");
    let everyone = addresses(&env.novi, &ids);
    // Someone else is no longer a member, and would leave if all records were known.
    env.novi.state().directory.person(ids[5])["Active"] = json!(false);
    let empty_body = ("empty body", json_body(""), "");
    for (name, fault, _) in outages().into_iter().chain([empty_body]) {
        env.novi.state().fail(&path_of(ids[0]), usize::MAX, fault);
        let report = env.run(json!({})).await?;
        let entry = list(&report, LIST);
        assert_eq!(
            (&entry["status"], &entry["skipped"]["unknown"], &entry["unsubscribed"]),
            (&json!("partial"), &json!(1), &json!(0)),
            "{name}: {report}"
        );
        env.novi.state().clear_faults();
    }
    assert_eq!(roster(&env).await?, everyone);
    assert!(env.function.log().contains("NoviMismatch"), "the metric is missing");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mirror_reads_records_and_groups_however_they_are_sent() -> Result<()> {
    let (env, ids) = start_mirror(60, &[]).await?;
    let expected = addresses(&env.novi, &ids);
    for (name, fault) in [
        ("folded header", NoviFault::FoldedHeader),
        ("120 headers", NoviFault::ManyHeaders(120)),
        ("byte order mark", NoviFault::ByteOrderMark),
        ("half a surrogate pair", NoviFault::HalfSurrogate("Name")),
    ] {
        for is_bulk in [false, true] {
            env.novi.state().bulk_hidden_fields = is_bulk.then(Vec::new);
            env.novi.state().fail("/api/", usize::MAX, fault.clone());
            let report = env.run(json!({})).await?;
            assert_eq!(report["status"], "ok", "{name}: {report}");
            env.novi.state().clear_faults();
        }
    }
    env.novi.state().has_camel_case_keys = true;
    for has_total_count in [true, false] {
        for bulk_hidden_fields in [None, Some(Vec::new())] {
            {
                let mut state = env.novi.state();
                (state.has_total_count, state.bulk_hidden_fields) = (has_total_count, bulk_hidden_fields);
            }
            let report = env.run(json!({})).await?;
            assert_eq!((&report["status"], &list(&report, LIST)["wanted"]), (&json!("ok"), &json!(60)), "{report}");
        }
    }
    assert_eq!(roster(&env).await?, expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn page_of_a_proxy_is_not_a_missing_group() -> Result<()> {
    let (env, ids) = start_mirror(4, &[]).await?;
    assert_eq!(env.run(json!({})).await?["status"], "ok");
    env.novi.state().fail("/groups/", 1, respond(404, "text/html", "<html>Not found</html>"));
    let report = env.run(json!({})).await?;
    let entry = list(&report, LIST);
    assert_eq!(entry["status"], "partial", "{report}");
    assert_eq!(roster(&env).await?, addresses(&env.novi, &ids));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mirror_wants_only_these_member_statuses() -> Result<()> {
    let redis = Redis::start(Kind::Plain)?;
    let url = format!("redis://127.0.0.1:{}", redis.port());
    let (env, ids) = start_mirror(6, &[("MEMBER_STATUSES", "current,grace_period"), ("CACHE_URL", &url)]).await?;
    let set = |statuses: [Value; 6]| {
        for (id, status) in ids.iter().zip(statuses) {
            env.novi.state().directory.person(*id)["MemberStatus"] = status;
        }
    };
    let current = || json!("current");
    set([current(), json!("Grace_Period"), current(), current(), json!("non_member"), json!(null)]);
    let report = env.run(json!({})).await?;
    let entry = list(&report, LIST);
    assert_eq!((&entry["status"], &entry["wanted"]), (&json!("ok"), &json!(4)), "{report}");
    assert_eq!(entry["skipped"]["inactive"], 2, "{report}");
    assert_eq!(roster(&env).await?, addresses(&env.novi, &ids[..4]));
    for (id, is_cached) in ids.iter().zip([true, true, true, true, false, false]) {
        let exists = redis.command(&["EXISTS", &format!("idaa:novi_member:{}", path_of(*id))])?;
        assert_eq!(exists.trim() == "1", is_cached);
    }

    // One leaves because of the status. Another's is hidden, so that address is neither added nor removed.
    set([json!("non_member"), current(), current(), current(), json!("non_member"), json!(null)]);
    env.novi.state().directory.person(ids[1]).as_object_mut().map(|record| record.remove("MemberStatus"));
    let report = env.run(json!({})).await?;
    let entry = list(&report, LIST);
    assert_eq!((&entry["unsubscribed"], &entry["skipped"]["unknown"]), (&json!(1), &json!(1)), "{report}");
    assert!(entry["reason"].as_str().is_some_and(|reason| reason.contains("MemberStatus")), "{report}");
    assert_eq!(roster(&env).await?, addresses(&env.novi, &ids[1..4]));
    let explained = env.run(json!({"explain": [env.novi.state().directory.address(ids[0])]})).await?;
    let why = explained["explain"][0]["lists"][0]["why"].as_str().unwrap_or_default().to_owned();
    assert!(why.contains("MEMBER_STATUSES"), "{why}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mirror_waits_for_a_retry_after_before_the_next_attempt() -> Result<()> {
    let (env, ids) = start_mirror(3, &[]).await?;
    env.novi.state().fail(&path_of(ids[0]), 1, with_retry_after("2", respond(503, "text/html", "")));
    assert_eq!(env.run(json!({})).await?["status"], "ok");
    let state = env.novi.state();
    let times: Vec<Instant> =
        state.calls.iter().filter(|(path, _)| path.contains(&path_of(ids[0]))).map(|(_, at)| *at).collect();
    assert_eq!(times.len(), 2);
    assert!(times[1] - times[0] >= Duration::from_secs(2), "{:?}", times[1] - times[0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_and_names_are_read_as_people_type_them() -> Result<()> {
    let env = Verification::start(&[]).await?;
    for (field, value, part, expected) in [
        ("Email", "\u{200b}ann@x.example.org", "email", json!("ann@x.example.org")),
        ("Email", "Ann Lee <ann@x.example.org>", "email", json!("ann@x.example.org")),
        ("Email", "mailto:ann@x.example.org", "email", json!("ann@x.example.org")),
        ("Email", "ann@ x.example.org", "email", json!("ann@x.example.org")),
        ("Email", "ann@x.example.org; bob@x.example.org", "email", json!("ann@x.example.org")),
        ("Email", "no address", "email", json!(null)),
        ("LastName", "'t Hooft", "full_name", json!("Gerard t.")),
        ("LastName", "(Smith) Lee", "full_name", json!("Gerard S.")),
        ("LastName", "\u{200f}\u{62d}\u{633}\u{646}", "full_name", json!("Gerard \u{62d}.")),
        ("LastName", "-", "full_name", json!("Gerard Whole Name")),
        ("LastName", "\u{202e}Lee", "full_name", json!("Gerard L.")),
    ] {
        let id = newcomer(&env);
        {
            let mut state = env.novi.state();
            let person = state.directory.person(id);
            (person["FirstName"], person["Name"]) = (json!("Gerard"), json!("Gerard Whole Name"));
            person[field] = json!(value);
        }
        assert_eq!(env.verify(id).await?.json()[part], expected, "{value}");
    }
    Ok(())
}
