//! Verification, end to end: the real function under AWS's emulator, asked as
//! API Gateway asks it, in front of a simulated Novi.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use http::{Method, header};
use hyper::body::Incoming;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tests::api::{Answer, Request};
use tests::directory::record;
use tests::function::replace;
use tests::harness::Verification;
use tests::http_server::Server;
use tests::novi::Fault;
use tests::redis::Authority;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{AcquireError, Semaphore};
use uuid::Uuid;

fn problem(answer: &Answer) -> (u16, String) {
    assert_eq!(answer.header("content-type"), "application/problem+json", "{answer:?}");
    let body = answer.json();
    assert_eq!(body["status"], answer.status);
    for text in ["type", "title", "detail"] {
        assert!(body[text].as_str().is_some_and(|text| !text.is_empty()), "{text}: {body}");
    }
    let waits = matches!(answer.status, 429 | 503);
    assert_eq!(answer.header("retry-after").parse::<u64>().is_ok(), waits, "{answer:?}");
    (answer.status, answer.code())
}

fn assert_common(answer: &Answer) {
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
}

/// Somebody whom the world's directory did not have.
fn newcomer(world: &Verification) -> Uuid {
    world.novi.state().directory.add(&mut fastrand::Rng::new())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn token(secret: &str, claims: &Value) -> String {
    signed(&Header::new(Algorithm::HS256), secret, claims)
}

fn signed(header: &Header, secret: &str, claims: &Value) -> String {
    jsonwebtoken::encode(header, claims, &EncodingKey::from_secret(secret.as_bytes())).expect("claims can be signed")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_verified_by_novi_and_then_by_the_cache() -> Result<()> {
    let world = Verification::start(&[]).await?;
    let member = world.member;
    {
        let mut state = world.novi.state();
        let person = state.directory.person(member);
        (person["FirstName"], person["LastName"]) = (json!(" Marguerite "), json!("E\u{301}tienne"));
        person["Email"] = json!(" member lists@mail.example.org");
    }
    let expected = json!({
        "verified": true, "full_name": "Marguerite E\u{301}.", "email": "member+lists@mail.example.org",
    });
    for origin in ["miss", "hit", "hit"] {
        let answer = world.verify(member).await?;
        assert_eq!((answer.status, answer.header("x-cache")), (200, origin));
        assert_eq!(answer.header("content-type"), "application/json");
        assert_eq!(answer.json(), expected);
        assert_common(&answer);
    }
    // Upper case is the same member.
    let upper = format!("/v3/action/idaa/novi_member/{}", member.hyphenated().to_string().to_uppercase());
    let request = Request::get(&upper).header("x-api-key", &world.keys.bypass);
    assert_eq!(world.send(&request).await?.header("x-cache"), "hit");
    assert_eq!(world.novi.state().count("/customers/"), 1);
    Ok(())
}

/// Verification before a Novi behind TLS that says what it was sent, key or no
/// key, and that answers a HEAD once there is a permit.
async fn behind_tls(permits: usize) -> Result<(Verification, Server, UnboundedReceiver<String>)> {
    let authority = Authority::new()?;
    let (tell, told) = unbounded_channel();
    let held = Arc::new(Semaphore::new(permits));
    let novi = Server::start_tls(authority.acceptor()?, move |request: http::Request<Incoming>| {
        let has_key = request.headers().contains_key(header::AUTHORIZATION);
        let _ = tell.send(format!("{} {} {has_key}", request.method(), request.uri()));
        let held = Arc::clone(&held);
        async move {
            if request.method() == Method::HEAD {
                held.acquire().await?.forget();
            }
            let record = record(Uuid::nil(), "Marguerite", "Delacroix", "marguerite@mail.example.org");
            Ok::<_, AcquireError>(http::Response::new(record.to_string()))
        }
    })
    .await?;
    let authorities = authority.file("ca.pem").display().to_string();
    let root = format!("https://localhost:{}/api", novi.port);
    let variables = [("EXTRA_CA_CERTS", authorities.as_str())];
    let world = Verification::start_with(&variables, |config| config["novi_api_root_url"] = json!(root)).await?;
    // The first invocation starts it, and the file is read then.
    assert_eq!(world.send(&Request::get("/health")).await?.status, 200);
    Ok((world, novi, told))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_to_novi_is_open_before_anybody_is_asked_for() -> Result<()> {
    let (world, novi, mut told) = behind_tls(1).await?;
    assert_eq!(told.recv().await.as_deref(), Some("HEAD /api false"));
    assert_eq!(world.send(&Request::get("/health")).await?.status, 200);
    assert_eq!(world.verify(world.member).await?.status, 200);
    let asked = format!("GET /api/customers/{} true", world.member.hyphenated());
    assert_eq!(told.recv().await, Some(asked), "nobody is asked for before");
    assert_eq!(novi.connections(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_novi_that_is_silent_at_the_start_holds_nobody_up() -> Result<()> {
    let (world, novi, _told) = behind_tls(0).await?;
    assert_eq!(world.verify(world.member).await?.status, 200);
    assert_eq!(novi.connections(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_becomes_an_answer_by_every_rule() -> Result<()> {
    let world = Verification::start(&[]).await?;
    let null = Value::Null;
    for (record, name, email) in [
        (
            json!({"FirstName": "Zoë", "LastName": "Ångström", "Email": "z@example.org"}),
            json!("Zoë Å."),
            json!("z@example.org"),
        ),
        (json!({"FirstName": "प्रिया", "LastName": "क्षीरसागर"}), json!("प्रिया क्षी."), null.clone()),
        (
            json!({"Name": " Clínica Tlaxcaltecas ", "FirstName": "", "LastName": null, "Email": ""}),
            json!("Clínica Tlaxcaltecas"),
            null.clone(),
        ),
        (json!({"Name": "", "FirstName": "Wolfgang", "Email": null}), json!("Wolfgang"), null.clone()),
        (json!({"Email": " a b c@example.org "}), null.clone(), json!("a+b+c@example.org")),
        (json!({"data": {"Name": "Birtukan", "Unknown": {"x": [1, null]}}}), json!("Birtukan"), null.clone()),
    ] {
        let id = Uuid::from_u128(fastrand::u128(..));
        world.novi.state().directory.people.insert(id, record.clone());
        let answer = world.verify(id).await?;
        assert_eq!(answer.json(), json!({"verified": true, "full_name": name, "email": email}), "{record}");
    }
    world.novi.state().wrapped = true;
    assert_eq!(world.verify(world.member).await?.status, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gate_gives_one_reason_each_and_fails_closed() -> Result<()> {
    let world = Verification::start(&[]).await?;
    let path = Verification::path(world.member);
    let (key, bypass, secret) = (&world.keys.frontend, &world.keys.bypass, &world.keys.jwt_secret);
    let request = || Request::get(&path);
    let keyed = || request().header("x-api-key", key);
    let claims = json!({"account_id": "a", "exp": now() + 600});
    let bearer = |token: &str| keyed().header("authorization", &format!("Bearer {token}"));
    let with = |change: Value| {
        let mut claims = claims.clone();
        for (name, value) in change.as_object().into_iter().flatten() {
            claims[name] = value.clone();
        }
        token(secret, &claims)
    };
    let mut critical = Header::new(Algorithm::HS256);
    critical.crit = Some(vec!["exp".to_owned()]);
    let unsigned = {
        use base64::Engine as _;
        let part = |value: &Value| base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.", part(&json!({"alg": "none"})), part(&claims))
    };
    let without_exp = token(secret, &json!({"account_id": "a"}));
    let without_account = token(secret, &json!({"exp": now() + 600}));

    for (request, status, code) in [
        (request(), 401, "api_key_missing"),
        (request().header("x-api-key", ""), 401, "api_key_missing"),
        (request().header("x-account-id", "a"), 401, "api_key_missing"),
        (request().header("x-api-key", "wrong").header("x-account-id", "a"), 401, "api_key_invalid"),
        (request().header("x-api-key", &key[1..]).header("x-account-id", "a"), 401, "api_key_invalid"),
        (request().header("x-api-key", &key.to_uppercase()).header("x-account-id", "a"), 401, "api_key_invalid"),
        (keyed().header("x-api-key", bypass), 401, "api_key_invalid"),
        (keyed(), 403, "account_context_missing"),
        (keyed().header("authorization", "Basic dTpw"), 403, "account_context_missing"),
        (keyed().header("x-account-id", ""), 403, "account_id_invalid"),
        (keyed().header("x-account-id", "two words"), 403, "account_id_invalid"),
        (keyed().header("x-account-id", "a/b"), 403, "account_id_invalid"),
        (keyed().header("x-account-id", &"a".repeat(65)), 403, "account_id_invalid"),
        (keyed().header("x-account-id", "a").header("x-account-id", "b"), 403, "account_id_invalid"),
        (bearer("x.y.z"), 403, "jwt_invalid"),
        (keyed().header("authorization", "Bearer"), 403, "jwt_invalid"),
        (bearer(&unsigned), 403, "jwt_invalid"),
        (bearer(&token("another secret", &claims)), 403, "jwt_invalid"),
        (bearer(&signed(&Header::new(Algorithm::HS512), secret, &claims)), 403, "jwt_invalid"),
        (bearer(&signed(&critical, secret, &claims)), 403, "jwt_invalid"),
        (bearer(&without_exp), 403, "jwt_invalid"),
        (bearer(&without_account), 403, "jwt_invalid"),
        (bearer(&with(json!({"account_id": ""}))), 403, "jwt_invalid"),
        (bearer(&with(json!({"account_id": 5}))), 403, "jwt_invalid"),
        (bearer(&with(json!({"exp": "soon"}))), 403, "jwt_invalid"),
        (bearer(&with(json!({"nbf": now() + 600}))), 403, "jwt_invalid"),
        (bearer(&with(json!({"exp": now() - 2}))), 403, "jwt_expired"),
        // A token that is sent must be valid, whatever else is there.
        (bearer("x.y.z").header("x-account-id", "a"), 403, "jwt_invalid"),
        (request().header("x-api-key", bypass).header("authorization", "bearer x.y.z"), 403, "jwt_invalid"),
        (
            request()
                .header("x-api-key", bypass)
                .header("authorization", &format!("Bearer {}", with(json!({"exp": 1})))),
            403,
            "jwt_expired",
        ),
    ] {
        let answer = world.send(&request).await?;
        assert_eq!(problem(&answer), (status, code.to_owned()));
        assert_common(&answer);
    }
    assert_eq!(world.novi.state().count("/"), 0, "nobody without a key asks Novi");

    for request in [
        keyed().header("x-account-id", "a"),
        keyed().header("x-account-id", &"Az09_-".repeat(11)[..64]),
        keyed().header("X-Account-Id", "a"),
        bearer(&token(secret, &claims)),
        bearer(&with(json!({"aud": "somebody", "nbf": now() + 5, "iss": "x"}))),
        keyed().header("authorization", &format!("bearer  {}", token(secret, &claims))),
        keyed().header("authorization", "Basic dTpw").header("x-account-id", "a"),
        request().header("x-api-key", bypass),
        request().header("x-api-key", bypass).header("x-account-id", "a"),
    ] {
        assert_eq!(world.send(&request).await?.status, 200);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_refused_where_no_secret_is_configured() -> Result<()> {
    let world = Verification::start_with(&[], |config| {
        config.as_object_mut().map(|config| config.remove("jwt_secret"));
    })
    .await?;
    let claims = json!({"account_id": "a", "exp": now() + 600});
    let request = world.request(world.member).header("authorization", &format!("Bearer {}", token("", &claims)));
    assert_eq!(problem(&world.send(&request).await?), (403, "jwt_not_configured".to_owned()));
    assert_eq!(world.verify(world.member).await?.status, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gate_comes_before_the_uuid() -> Result<()> {
    let world = Verification::start(&[]).await?;
    for uuid in [
        "x",
        "391203413c8e47b09a4045b5659b2044",
        "{39120341-3c8e-47b0-9a40-45b5659b2044}",
        "39120341-3c8e-47b0-9a40-45b5659b2044%2F",
        "39120341-3c8e-47b0-9a40-45b5659b204%FF",
        "39120341-3c8e-47b0-9a40-45b5659b2044 ",
        "..%2F..%2Fhealth",
        &"a".repeat(5_000),
    ] {
        let request = Request::get(&format!("/v3/action/idaa/novi_member/{uuid}"));
        assert_eq!(problem(&world.send(&request).await?), (401, "api_key_missing".to_owned()), "{uuid}");
        let request = request.header("x-api-key", &world.keys.bypass);
        assert_eq!(problem(&world.send(&request).await?), (400, "invalid_uuid".to_owned()), "{uuid}");
    }
    assert_eq!(world.novi.state().count("/"), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_member_is_not_found_and_never_cached() -> Result<()> {
    let world = Verification::start(&[]).await?;
    let gone = Uuid::from_u128(fastrand::u128(..));
    for _ in 0..2 {
        assert_eq!(problem(&world.verify(gone).await?), (404, "member_not_found".to_owned()));
    }
    assert_eq!(world.novi.state().count("/customers/"), 2);

    for body in [
        "",
        "null",
        "{}",
        r#"{"data":null}"#,
        r#"{"Name":" ","FirstName":"","LastName":null,"Email":""}"#,
        r#"{"Active":true}"#,
    ] {
        world.novi.state().fail("/customers/", 1, Fault::Answer(200, "application/json", body.to_owned()));
        assert_eq!(problem(&world.verify(world.member).await?), (404, "member_not_found".to_owned()), "{body}");
    }
    // It was not remembered.
    assert_eq!(world.verify(world.member).await?.header("x-cache"), "miss");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inactive_record_is_verified_unless_active_is_required() -> Result<()> {
    for (required, status) in [("false", 200), ("true", 404)] {
        let world = Verification::start(&[("REQUIRE_ACTIVE", required)]).await?;
        world.novi.state().directory.person(world.member)["Active"] = json!(false);
        assert_eq!(world.verify(world.member).await?.status, status);
        let active = newcomer(&world);
        assert_eq!(world.verify(active).await?.status, 200);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_is_passed_on_and_starts_a_cooldown() -> Result<()> {
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
    for (sent, least, most) in [
        (Some("17"), 17, 17),
        (Some("7200"), 7200, 7200),
        (Some(date.as_str()), 80, 100),
        (Some("soon"), 30, 30),
        (None, 30, 30),
    ] {
        let world = Verification::start(&[]).await?;
        assert_eq!(world.verify(world.member).await?.status, 200);
        let other = newcomer(&world);
        world.novi.state().fail("/customers/", 1, Fault::RateLimited(sent.map(str::to_owned)));
        let answer = world.verify(other).await?;
        assert_eq!(problem(&answer), (429, "rate_limited".to_owned()));
        let wait: u64 = answer.header("retry-after").parse()?;
        assert!((least..=most).contains(&wait), "{wait} is not in {least}..={most}");

        // Now nobody asks Novi, who would answer, and the cache goes on.
        let calls = world.novi.state().count("/");
        let answer = world.verify(other).await?;
        assert_eq!(problem(&answer), (429, "rate_limited".to_owned()));
        assert!(answer.header("retry-after").parse::<u64>()? <= most.min(300));
        assert_eq!(world.verify(world.member).await?.header("x-cache"), "hit");
        assert_eq!(world.novi.state().count("/"), calls);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cooldown_ends() -> Result<()> {
    let world = Verification::start(&[]).await?;
    world.novi.state().fail("/customers/", 1, Fault::RateLimited(Some("1".to_owned())));
    assert_eq!(world.verify(world.member).await?.status, 429);
    while world.verify(world.member).await?.status == 429 {}
    assert_eq!(world.verify(world.member).await?.header("x-cache"), "hit");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_minute_s_allowance_is_kept() -> Result<()> {
    let world = Verification::start(&[("VERIFY_NOVI_MAX_PER_MINUTE", "2")]).await?;
    let others = [newcomer(&world), newcomer(&world)];
    assert_eq!(world.verify(world.member).await?.status, 200);
    assert_eq!(world.verify(others[0]).await?.status, 200);
    let answer = world.verify(others[1]).await?;
    assert_eq!(problem(&answer), (429, "rate_limited".to_owned()));
    assert!((1..=60).contains(&answer.header("retry-after").parse::<u64>()?));
    assert_eq!(world.novi.state().count("/customers/"), 2);
    assert_eq!(world.verify(world.member).await?.header("x-cache"), "hit");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_has_its_cause_and_ends_with_its_cause() -> Result<()> {
    let world = Verification::start(&[]).await?;
    let elsewhere = tests::novi::Novi::start(tests::directory::Directory::default(), world.private.clone()).await?;
    let ok = |body: &str| Fault::Answer(200, "application/json", body.to_owned());
    let status = |status| Fault::Answer(status, "text/plain", "x".to_owned());
    let too_long = format!("{{\"Name\":\"{}\"}}", "x".repeat(1 << 20));
    for (name, fault, code) in [
        ("hang up", Fault::HangUp, "novi_unreachable"),
        ("silence", Fault::Silence, "novi_unreachable"),
        ("half a body", Fault::HalfBody, "novi_unreachable"),
        ("500", status(500), "novi_error"),
        ("503", status(503), "novi_error"),
        ("400", status(400), "novi_error"),
        ("204", status(204), "novi_error"),
        ("redirect", Fault::Redirect(elsewhere.root()), "novi_error"),
        ("401", status(401), "novi_credentials_rejected"),
        ("403 in JSON", Fault::Forbidden, "novi_credentials_rejected"),
        ("403 in HTML", Fault::Blocked, "novi_blocked"),
        ("403 without a body", Fault::Answer(403, "application/json", String::new()), "novi_blocked"),
        ("endless body", Fault::EndlessBody, "novi_invalid_response"),
        ("long body", ok(&too_long), "novi_invalid_response"),
        ("HTML", Fault::Answer(200, "text/html", "<html>".to_owned()), "novi_invalid_response"),
        ("array", ok("[]"), "novi_invalid_response"),
        ("cut JSON", ok("{\"Name\":"), "novi_invalid_response"),
        ("number for an address", ok("{\"Email\":5}"), "novi_invalid_response"),
    ] {
        world.novi.state().fail("/customers/", usize::MAX, fault);
        assert_eq!(problem(&world.verify(world.member).await?), (503, code.to_owned()), "{name}");
        world.novi.state().mend();
        let other = newcomer(&world);
        assert_eq!(world.verify(other).await?.header("x-cache"), "miss", "after {name}");
    }
    assert_eq!(elsewhere.state().count("/"), 0, "a redirect is not followed");

    // A large body that is within the limit is read.
    let large = format!("{{\"Name\":\"x\"}}{}", " ".repeat((1 << 20) - 20));
    world.novi.state().fail("/customers/", 1, ok(&large));
    assert_eq!(world.verify(world.member).await?.status, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_at_novi_s_address_is_unreachable() -> Result<()> {
    let port = tests::process::free_port()?;
    let world = Verification::start_with(&[], |config| {
        config["novi_api_root_url"] = json!(format!("http://127.0.0.1:{port}/api"));
    })
    .await?;
    assert_eq!(problem(&world.verify(world.member).await?), (503, "novi_unreachable".to_owned()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_by_itself_is_tried_once_more() -> Result<()> {
    let world = Verification::start(&[]).await?;
    let status = |status| Fault::Answer(status, "text/plain", "x".to_owned());
    for (fault, times, calls, answered) in [
        (Fault::HangUp, 1, 2, 200),
        (status(502), 1, 2, 200),
        (status(503), 1, 2, 200),
        (status(504), 1, 2, 200),
        (status(503), 2, 2, 503),
        (status(500), 1, 1, 503),
        (Fault::Blocked, 1, 1, 503),
    ] {
        let other = newcomer(&world);
        let before = world.novi.state().count("/customers/");
        world.novi.state().fail("/customers/", times, fault);
        assert_eq!(world.verify(other).await?.status, answered);
        assert_eq!(world.novi.state().count("/customers/") - before, calls);
        world.novi.state().mend();
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_record_stands_in_for_an_outage_and_never_for_a_no() -> Result<()> {
    let world = Verification::start(&[("CACHE_TTL_SECONDS", "1"), ("CACHE_STALE_SECONDS", "3600")]).await?;
    let body = world.verify(world.member).await?.json();
    for fault in [
        Fault::Answer(500, "text/plain", String::new()),
        Fault::HangUp,
        Fault::Blocked,
        Fault::Answer(200, "text/html", "<html>".to_owned()),
    ] {
        world.novi.state().fail("/customers/", usize::MAX, fault);
        // Within its first second the record is a hit.
        let stale = loop {
            let answer = world.verify(world.member).await?;
            if answer.header("x-cache") != "hit" {
                break answer;
            }
        };
        assert_eq!((stale.status, stale.header("x-cache")), (200, "stale"));
        assert_eq!(stale.json(), body);
        let other = newcomer(&world);
        assert_eq!(world.verify(other).await?.status, 503, "only who was verified is served stale");
        world.novi.state().mend();
    }
    // Novi says no: that is an answer, and the stale record must not come back after it.
    world.novi.state().directory.people.remove(&world.member);
    assert_eq!(world.verify(world.member).await?.status, 404);
    world.novi.state().fail("/customers/", usize::MAX, Fault::RateLimited(Some("300".to_owned())));
    assert_eq!(world.verify(world.member).await?.status, 429);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_record_stands_in_for_a_rate_limit() -> Result<()> {
    let world = Verification::start(&[("CACHE_TTL_SECONDS", "1"), ("CACHE_STALE_SECONDS", "3600")]).await?;
    assert_eq!(world.verify(world.member).await?.status, 200);
    world.novi.state().fail("/customers/", 1, Fault::RateLimited(Some("300".to_owned())));
    while world.verify(world.member).await?.header("x-cache") == "hit" {}
    // The cooldown is on, and the same holds.
    let answer = world.verify(world.member).await?;
    assert_eq!((answer.status, answer.header("x-cache")), (200, "stale"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_stale_seconds_an_outage_is_an_outage() -> Result<()> {
    let world = Verification::start(&[("CACHE_TTL_SECONDS", "1")]).await?;
    assert_eq!(world.verify(world.member).await?.status, 200);
    world.novi.state().fail("/customers/", usize::MAX, Fault::Blocked);
    while world.verify(world.member).await?.header("x-cache") == "hit" {}
    assert_eq!(problem(&world.verify(world.member).await?), (503, "novi_blocked".to_owned()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_rotate_without_a_restart() -> Result<()> {
    let mut world = Verification::start(&[("PARAMETER_TTL_SECONDS", "1")]).await?;
    assert_eq!(world.verify(world.member).await?.status, 200);
    // A second API key beside the first, then the second alone.
    let second = "another-key-of-the-front-end";
    world.private.add(second);
    let first = world.config["api_keys"][0].clone();
    world.config["api_keys"] = json!([first, {"name": "next", "key": second}]);
    world.function.set_config(&world.config)?;
    let by_second =
        Request::get(&Verification::path(world.member)).header("x-api-key", second).header("x-account-id", "a");
    while world.send(&by_second).await?.status == 401 {}
    assert_eq!(world.verify(world.member).await?.status, 200);
    world.config["api_keys"] = json!([{"name": "next", "key": second}]);
    world.function.set_config(&world.config)?;
    while world.verify(world.member).await?.status == 200 {}
    assert_eq!(problem(&world.verify(world.member).await?), (401, "api_key_invalid".to_owned()));
    assert_eq!(world.send(&by_second).await?.status, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_key_is_looked_up_at_once() -> Result<()> {
    let mut world = Verification::start(&[("PARAMETER_TTL_SECONDS", "86400")]).await?;
    assert_eq!(world.verify(world.member).await?.status, 200);
    let other = newcomer(&world);
    let key = "another-key-of-novi".to_owned();
    world.private.add(&key);
    world.novi.state().key.clone_from(&key);
    world.config["novi_idaa_api_key"] = json!(key);
    world.function.set_config(&world.config)?;
    assert_eq!(world.verify(other).await?.status, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_key_is_looked_up_at_most_once_a_minute() -> Result<()> {
    let mut world = Verification::start(&[("PARAMETER_TTL_SECONDS", "86400")]).await?;
    "changed at novi alone".clone_into(&mut world.novi.state().key);
    assert_eq!(problem(&world.verify(world.member).await?), (503, "novi_credentials_rejected".to_owned()));
    let calls = world.novi.state().count("/");
    assert_eq!(calls, 1, "the same key is not tried twice");
    world.config["novi_idaa_api_key"] = json!("changed at novi alone");
    world.function.set_config(&world.config)?;
    assert_eq!(problem(&world.verify(world.member).await?), (503, "novi_credentials_rejected".to_owned()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn health_tells_how_it_is_and_asks_nobody() -> Result<()> {
    let world = Verification::start(&[("PARAMETER_TTL_SECONDS", "1")]).await?;
    let health = Request::get("/health");
    let answer = world.send(&health).await?;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json(), json!({"status": "ok", "checks": {"parameters": "ok", "cache": "in_process"}}));
    assert_common(&answer);

    // Parameters that went bad: the older ones are used.
    std::fs::write(world.function.config_file(), "{ not JSON")?;
    let degraded = loop {
        let answer = world.send(&health).await?.json();
        if answer["status"] != "ok" {
            break answer;
        }
    };
    assert_eq!(degraded, json!({"status": "degraded", "checks": {"parameters": "stale", "cache": "in_process"}}));
    assert_eq!(world.verify(world.member).await?.status, 200);
    world.function.set_config(&world.config)?;
    while world.send(&health).await?.json()["status"] != "ok" {}
    assert_eq!(world.novi.state().count("/"), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_that_never_came_are_unavailable_until_they_come() -> Result<()> {
    // A pipe that nobody writes to: reading it never ends, as with a file
    // system that hangs. The start goes on without, and each request looks again.
    let dir = tempfile::tempdir()?;
    let pipe = dir.path().join("config.json");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU)?;
    let name = pipe.display().to_string();
    let world = Verification::start(&[("CONFIG_FILE", &name)]).await?;
    assert_eq!(problem(&world.verify(world.member).await?), (503, "parameters_unavailable".to_owned()));
    let answer = world.send(&Request::get("/health")).await?;
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").parse::<u64>().is_ok());
    assert_eq!(answer.json(), json!({"status": "down", "checks": {"parameters": "down", "cache": "in_process"}}));

    replace(&pipe, &world.config)?;
    while world.send(&Request::get("/health")).await?.status == 503 {}
    assert_eq!(world.verify(world.member).await?.status, 200);
    Ok(())
}

/// How a request becomes an event.
type Shape = fn(&Request) -> Value;

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_event_is_answered_alike() -> Result<()> {
    let world = Verification::start(&[]).await?;
    let member = world.request(world.member);
    let others = [
        (Request::get("/health"), 200),
        (Request::get("/openapi.json"), 200),
        (Request::get("/"), 404),
        (Request::get("/v3/action/idaa/novi_member"), 404),
        (Request::get("/v3/action/idaa/novi_member/"), 404),
        (Request::get(&format!("{}/", Verification::path(world.member))), 404),
        (Request::get(&format!("/{}", Verification::path(world.member))), 404),
        (Request::get(&format!("/other{}", Verification::path(world.member))), 404),
        (Request::new("POST", "/health"), 405),
        (Request::new("DELETE", &Verification::path(world.member)), 405),
        (Request::new("OPTIONS", &Verification::path(world.member)), 405),
    ];
    let shapes: [(&str, Shape); 6] = [
        ("HTTP API", |request| request.http_api("$default")),
        ("HTTP API with a stage", |request| request.http_api("prod")),
        ("HTTP API with a stage like a path", |request| request.http_api("v3")),
        ("REST API", |request| request.rest_api("prod")),
        ("REST API with a stage like a path", |request| request.rest_api("v3")),
        ("Function URL", Request::function_url),
    ];
    for (name, shape) in shapes {
        let answer = Answer::read(&world.function.invoke(&shape(&member)).await?)?;
        assert_eq!(answer.status, 200, "{name}");
        for (request, status) in &others {
            let answer = Answer::read(&world.function.invoke(&shape(request)).await?)?;
            assert_eq!(answer.status, *status, "{name}");
            assert_common(&answer);
            match status {
                404 => assert_eq!(problem(&answer).1, "route_not_found"),
                405 => {
                    assert_eq!(problem(&answer).1, "method_not_allowed");
                    assert!(answer.header("allow").contains("GET"), "{answer:?}");
                }
                _ => {}
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_url_may_hold_is_no_error_of_the_function() -> Result<()> {
    let world = Verification::start(&[]).await?;
    let request = world.request(world.member);
    for (field, value) in [
        ("rawQueryString", json!("a=<b>")),
        ("rawQueryString", json!("a=b c")),
        ("rawQueryString", json!("\u{e9}=%zz")),
        ("queryStringParameters", json!({"a": "<b> \u{1}"})),
        ("multiValueQueryStringParameters", json!({"a": ["<b>", "\u{e9}"]})),
        ("host", json!("a b[")),
        ("x-other", json!("\u{e9}")),
    ] {
        for mut event in [request.http_api("$default"), request.rest_api("prod")] {
            if field.contains("uery") {
                event[field] = value.clone();
            } else {
                event["headers"][field] = value.clone();
                event["requestContext"]["domainName"] = value.clone();
            }
            assert_eq!(Answer::read(&world.function.invoke(&event).await?)?.status, 200, "{field} {value}");
        }
    }
    assert!(!world.function.log().contains("panicked"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn cors_is_answered_for_those_origins_alone() -> Result<()> {
    let origin = "https://app.example.org";
    let world =
        Verification::start(&[("CORS_ALLOW_ORIGINS", "https://app.example.org, http://localhost:5173")]).await?;
    let preflight = |origin: &str| {
        Request::new("OPTIONS", &Verification::path(world.member))
            .header("origin", origin)
            .header("access-control-request-method", "GET")
            .header("access-control-request-headers", "x-api-key,x-account-id,authorization")
    };
    let answer = world.send(&preflight(origin)).await?;
    assert!(matches!(answer.status, 200 | 204), "{answer:?}");
    assert_eq!(answer.header("access-control-allow-origin"), origin);
    assert_eq!(answer.header("access-control-allow-methods"), "GET");
    for name in ["x-api-key", "x-account-id", "authorization"] {
        assert!(answer.header("access-control-allow-headers").contains(name), "{answer:?}");
    }
    assert_eq!(answer.header("vary").to_lowercase(), "origin");
    assert_common(&answer);
    // An OPTIONS that is no preflight is a method like any other.
    let options = Request::new("OPTIONS", &Verification::path(world.member)).header("origin", origin);
    assert_eq!(problem(&world.send(&options).await?), (405, "method_not_allowed".to_owned()));
    assert_eq!(world.send(&preflight("https://evil.example.net")).await?.header("access-control-allow-origin"), "");

    for (request, status) in [
        (world.request(world.member), 200),
        (Request::get(&Verification::path(world.member)), 401),
        (Request::get("/nowhere"), 404),
        (Request::new("POST", "/health"), 405),
    ] {
        let answer = world.send(&request.clone().header("origin", origin)).await?;
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("access-control-allow-origin"), origin, "errors have it too");
        let exposed = answer.header("access-control-expose-headers").to_lowercase();
        assert!(exposed.contains("retry-after") && exposed.contains("x-cache"), "{exposed}");
        assert_eq!(answer.header("vary").to_lowercase(), "origin");
        let stranger = world.send(&request.header("origin", "https://evil.example.net")).await?;
        assert_eq!(stranger.header("access-control-allow-origin"), "");
    }

    let any = Verification::start(&[("CORS_ALLOW_ORIGINS", "*")]).await?;
    let answer = any.send(&Request::get("/health").header("origin", "https://any.example.net")).await?;
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    let none = Verification::start(&[]).await?;
    let answer = none.send(&Request::get("/health").header("origin", origin)).await?;
    assert_eq!(answer.header("access-control-allow-origin"), "");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_description_is_the_truth() -> Result<()> {
    let world = Verification::start(&[("VERIFY_NOVI_MAX_PER_MINUTE", "1000")]).await?;
    let answer = world.send(&Request::get("/openapi.json")).await?;
    assert_eq!(answer.header("content-type"), "application/json");
    let api = answer.json();
    assert!(api["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")), "{}", api["openapi"]);
    let operation = |path: &str| api["paths"][path]["get"]["responses"].clone();
    let responses = operation("/v3/action/idaa/novi_member/{uuid}");
    assert!(operation("/health")["503"].is_object() && operation("/openapi.json")["200"].is_object());

    // Every code has its status and an example; asked for, it comes as it is described.
    let described: BTreeSet<String> = responses
        .as_object()
        .into_iter()
        .flatten()
        .flat_map(|(_, response)| response["content"]["application/problem+json"]["examples"].as_object().cloned())
        .flatten()
        .map(|(code, _)| code)
        .collect();
    let expected = [
        "invalid_uuid",
        "api_key_missing",
        "api_key_invalid",
        "account_context_missing",
        "account_id_invalid",
        "jwt_invalid",
        "jwt_expired",
        "jwt_not_configured",
        "member_not_found",
        "rate_limited",
        "internal_error",
        "novi_unreachable",
        "novi_error",
        "novi_credentials_rejected",
        "novi_blocked",
        "novi_invalid_response",
        "parameters_unavailable",
    ];
    assert_eq!(described, expected.map(str::to_owned).into());

    let key = &world.keys.frontend;
    let path = Verification::path(world.member);
    let mut answers = vec![
        world.verify(world.member).await?,
        world.send(&Request::get(&path)).await?,
        world.send(&Request::get(&path).header("x-api-key", key)).await?,
        world.send(&Request::get("/v3/action/idaa/novi_member/x").header("x-api-key", &world.keys.bypass)).await?,
        world.verify(Uuid::from_u128(1)).await?,
    ];
    for fault in [
        Fault::Blocked,
        Fault::Forbidden,
        Fault::EndlessBody,
        Fault::Answer(500, "x/y", String::new()),
        Fault::RateLimited(None),
    ] {
        world.novi.state().fail("/customers/", 1, fault);
        answers.push(world.verify(Uuid::from_u128(1)).await?);
    }
    for answer in answers {
        let response = &responses[answer.status.to_string()];
        let kind = answer.header("content-type");
        let content = &response["content"][kind];
        assert!(content.is_object(), "{} {kind} is not described", answer.status);
        for (header, described) in response["headers"].as_object().into_iter().flatten() {
            let value = answer.header(&header.to_lowercase());
            assert!(!value.is_empty(), "{} has no {header}", answer.status);
            if let Some(values) = described["schema"]["enum"].as_array() {
                assert!(values.contains(&json!(value)), "{header}: {value}");
            }
        }
        if answer.status != 200 {
            assert_eq!(content["examples"][answer.code()]["value"], answer.json());
        }
        let schema = content["schema"]["$ref"].as_str().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        let schema = &api["components"]["schemas"][schema];
        let properties: BTreeSet<_> =
            schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name).collect();
        let body = answer.json();
        assert_eq!(properties, body.as_object().into_iter().flatten().map(|(name, _)| name).collect(), "{schema}");
    }
    Ok(())
}
