//! The verify function, end to end: the real function in AWS's emulator, invoked with the events of API Gateway, and a
//! simulated Novi.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use http::{Method, header};
use hyper::body::Incoming;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tests::api::{Request, Response};
use tests::directory::record;
use tests::function::write_atomically;
use tests::harness::Verification;
use tests::http_server::Server;
use tests::novi::NoviFault;
use tests::privacy::Private;
use tests::redis::CertificateAuthority;
use tests::runtime::Instance;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{AcquireError, Semaphore};
use uuid::Uuid;

/// Checks the format of a problem response, and returns its status and code.
fn problem(response: &Response) -> (u16, String) {
    assert_eq!(response.header("content-type"), "application/problem+json", "{response:?}");
    let body = response.json();
    assert_eq!(body["status"], response.status);
    for text in ["type", "title", "detail"] {
        assert!(body[text].as_str().is_some_and(|text| !text.is_empty()), "{text}: {body}");
    }
    let is_temporary = matches!(response.status, 429 | 503);
    assert_eq!(response.header("retry-after").parse::<u64>().is_ok(), is_temporary, "{response:?}");
    let challenge = if response.status == 401 { "ApiKey" } else { "" };
    assert_eq!(response.header("www-authenticate"), challenge, "{response:?}");
    (response.status, response.code())
}

/// Checks the headers that every response has.
fn assert_common(response: &Response) {
    assert_eq!(response.header("cache-control"), "no-store");
    assert_eq!(response.header("x-content-type-options"), "nosniff");
}

/// Adds a member that the function hasn't seen.
fn newcomer(env: &Verification) -> Uuid {
    env.novi.state().directory.add(&mut fastrand::Rng::new())
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
async fn member_is_verified_by_novi_and_then_from_the_cache() -> Result<()> {
    let env = Verification::start(&[]).await?;
    let member = env.member;
    {
        let mut state = env.novi.state();
        let person = state.directory.person(member);
        (person["FirstName"], person["LastName"]) = (json!(" Marguerite "), json!("E\u{301}tienne"));
        person["Email"] = json!(" member lists@mail.example.org");
    }
    let expected = json!({
        "verified": true, "full_name": "Marguerite E\u{301}.", "email": "member+lists@mail.example.org",
    });
    for origin in ["miss", "hit", "hit"] {
        let response = env.verify(member).await?;
        assert_eq!((response.status, response.header("x-cache")), (200, origin));
        assert_eq!(response.header("content-type"), "application/json");
        assert_eq!(response.json(), expected);
        assert_common(&response);
    }
    // Upper case is the same member.
    let upper = format!("/v3/action/idaa/novi_member/{}", member.hyphenated().to_string().to_uppercase());
    let request = Request::get(&upper).header("x-api-key", &env.keys.bypass);
    assert_eq!(env.send(&request).await?.header("x-cache"), "hit");
    assert_eq!(env.novi.state().count("/customers/"), 1);
    Ok(())
}

/// Starts verify with a Novi behind TLS. That Novi reports each request and whether it has a key, and responds to a
/// HEAD once there is a permit.
async fn start_with_tls_novi(permits: usize) -> Result<(Verification, Server, UnboundedReceiver<String>)> {
    let authority = CertificateAuthority::new()?;
    let (sender, requests) = unbounded_channel();
    let held = Arc::new(Semaphore::new(permits));
    let novi = Server::start_tls(authority.acceptor()?, move |request: http::Request<Incoming>| {
        let has_key = request.headers().contains_key(header::AUTHORIZATION);
        let _ = sender.send(format!("{} {} {has_key}", request.method(), request.uri()));
        let held = Arc::clone(&held);
        let id = request.uri().path().rsplit('/').next().and_then(|id| Uuid::parse_str(id).ok()).unwrap_or_default();
        async move {
            if request.method() == Method::HEAD {
                held.acquire().await?.forget();
            }
            let record = record(id, "Marguerite", "Delacroix", "marguerite@mail.example.org");
            Ok::<_, AcquireError>(http::Response::new(record.to_string()))
        }
    })
    .await?;
    let authorities = authority.file("ca.pem").display().to_string();
    let root = format!("https://localhost:{}/api", novi.port);
    let variables = [("EXTRA_CA_CERTS", authorities.as_str())];
    let env = Verification::start_with(&variables, |config| config["novi_api_root_url"] = json!(root)).await?;
    // The first invocation starts the function, which then reads the CA file.
    assert_eq!(env.send(&Request::get("/health")).await?.status, 200);
    Ok((env, novi, requests))
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_to_novi_is_open_before_the_first_lookup() -> Result<()> {
    let (env, novi, mut requests) = start_with_tls_novi(1).await?;
    assert_eq!(requests.recv().await.as_deref(), Some("HEAD /api false"));
    assert_eq!(env.send(&Request::get("/health")).await?.status, 200);
    assert_eq!(env.verify(env.member).await?.status, 200);
    let expected = format!("GET /api/customers/{} true", env.member.hyphenated());
    assert_eq!(requests.recv().await, Some(expected), "no member is requested before");
    assert_eq!(novi.connections(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_novi_at_startup_does_not_delay_requests() -> Result<()> {
    let (env, novi, _requests) = start_with_tls_novi(0).await?;
    assert_eq!(env.verify(env.member).await?.status, 200);
    assert_eq!(novi.connections(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn record_is_converted_to_a_response_by_every_rule() -> Result<()> {
    let env = Verification::start(&[]).await?;
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
        env.novi.state().directory.people.insert(id, record.clone());
        let response = env.verify(id).await?;
        assert_eq!(response.json(), json!({"verified": true, "full_name": name, "email": email}), "{record}");
    }
    env.novi.state().wraps_records = true;
    assert_eq!(env.verify(env.member).await?.status, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn gate_fails_closed_with_a_specific_code_for_each_reason() -> Result<()> {
    let env = Verification::start(&[]).await?;
    let path = Verification::path(env.member);
    let (key, bypass, secret) = (&env.keys.frontend, &env.keys.bypass, &env.keys.jwt_secret);
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
        let response = env.send(&request).await?;
        assert_eq!(problem(&response), (status, code.to_owned()));
        assert_common(&response);
    }
    assert_eq!(env.novi.state().count("/"), 0, "no rejected request reaches Novi");

    for request in [
        keyed().header("x-account-id", "a"),
        keyed().header("x-account-id", &"Az09_-".repeat(11)[..64]),
        keyed().header("X-Account-Id", "a"),
        bearer(&token(secret, &claims)),
        bearer(&with(json!({"aud": "someone", "nbf": now() + 5, "iss": "x"}))),
        keyed().header("authorization", &format!("bearer  {}", token(secret, &claims))),
        keyed().header("authorization", "Basic dTpw").header("x-account-id", "a"),
        request().header("x-api-key", bypass),
        request().header("x-api-key", bypass).header("x-account-id", "a"),
    ] {
        assert_eq!(env.send(&request).await?.status, 200);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn token_is_rejected_if_no_secret_is_configured() -> Result<()> {
    let env = Verification::start_with(&[], |config| {
        config.as_object_mut().map(|config| config.remove("jwt_secret"));
    })
    .await?;
    let claims = json!({"account_id": "a", "exp": now() + 600});
    let request = env.request(env.member).header("authorization", &format!("Bearer {}", token("", &claims)));
    assert_eq!(problem(&env.send(&request).await?), (403, "jwt_not_configured".to_owned()));
    assert_eq!(env.verify(env.member).await?.status, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn gate_is_checked_before_the_uuid() -> Result<()> {
    let env = Verification::start(&[]).await?;
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
        assert_eq!(problem(&env.send(&request).await?), (401, "api_key_missing".to_owned()), "{uuid}");
        let request = request.header("x-api-key", &env.keys.bypass);
        assert_eq!(problem(&env.send(&request).await?), (400, "invalid_uuid".to_owned()), "{uuid}");
    }
    assert_eq!(env.novi.state().count("/"), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_member_returns_404_and_is_not_cached() -> Result<()> {
    let env = Verification::start(&[]).await?;
    let gone = Uuid::from_u128(fastrand::u128(..));
    for _ in 0..2 {
        assert_eq!(problem(&env.verify(gone).await?), (404, "member_not_found".to_owned()));
    }
    assert_eq!(env.novi.state().count("/customers/"), 2);

    for body in [
        "",
        "null",
        "{}",
        r#"{"data":null}"#,
        r#"{"Name":" ","FirstName":"","LastName":null,"Email":""}"#,
        r#"{"name":null}"#,
    ] {
        env.novi.state().fail("/customers/", 1, NoviFault::Respond(200, "application/json", body.to_owned()));
        assert_eq!(problem(&env.verify(env.member).await?), (404, "member_not_found".to_owned()), "{body}");
    }
    // The 404 wasn't cached.
    assert_eq!(env.verify(env.member).await?.header("x-cache"), "miss");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn inactive_record_is_verified_unless_active_is_required() -> Result<()> {
    for (required, status) in [("false", 200), ("true", 404)] {
        let env = Verification::start(&[("REQUIRE_ACTIVE", required)]).await?;
        env.novi.state().directory.person(env.member)["Active"] = json!(false);
        assert_eq!(env.verify(env.member).await?.status, status);
        let active = newcomer(&env);
        assert_eq!(env.verify(active).await?.status, 200);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_limit_is_passed_on_and_starts_a_cooldown() -> Result<()> {
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
    for (retry_after, min, max) in [
        (Some("17"), 17, 17),
        (Some("7200"), 3600, 3600),
        (Some(date.as_str()), 80, 100),
        (Some("soon"), 30, 30),
        (None, 30, 30),
    ] {
        let env = Verification::start(&[]).await?;
        assert_eq!(env.verify(env.member).await?.status, 200);
        let other = newcomer(&env);
        env.novi.state().fail("/customers/", 1, NoviFault::RateLimited(retry_after.map(str::to_owned)));
        let response = env.verify(other).await?;
        assert_eq!(problem(&response), (429, "rate_limited".to_owned()));
        let wait: u64 = response.header("retry-after").parse()?;
        assert!((min..=max).contains(&wait), "{wait} is not in {min}..={max}");

        // During the cooldown Novi, which would respond, isn't called, and the cache is still used.
        let calls = env.novi.state().count("/");
        let response = env.verify(other).await?;
        assert_eq!(problem(&response), (429, "rate_limited".to_owned()));
        // Spread over some seconds, so that callers don't return together.
        assert!(response.header("retry-after").parse::<u64>()? <= max.min(300) + 3);
        assert_eq!(env.verify(env.member).await?.header("x-cache"), "hit");
        assert_eq!(env.novi.state().count("/"), calls);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn cooldown_ends() -> Result<()> {
    let env = Verification::start(&[]).await?;
    env.novi.state().fail("/customers/", 1, NoviFault::RateLimited(Some("1".to_owned())));
    assert_eq!(env.verify(env.member).await?.status, 429);
    while env.verify(env.member).await?.status == 429 {}
    assert_eq!(env.verify(env.member).await?.header("x-cache"), "hit");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn per_minute_limit_is_enforced() -> Result<()> {
    let env = Verification::start(&[("VERIFY_NOVI_MAX_PER_MINUTE", "2")]).await?;
    let others = [newcomer(&env), newcomer(&env)];
    assert_eq!(env.verify(env.member).await?.status, 200);
    assert_eq!(env.verify(others[0]).await?.status, 200);
    let response = env.verify(others[1]).await?;
    assert_eq!(problem(&response), (429, "rate_limited".to_owned()));
    assert!((1..=63).contains(&response.header("retry-after").parse::<u64>()?));
    assert_eq!(env.novi.state().count("/customers/"), 2);
    assert_eq!(env.verify(env.member).await?.header("x-cache"), "hit");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn outage_has_a_specific_code_and_ends_with_its_cause() -> Result<()> {
    let env = Verification::start(&[]).await?;
    let redirect_target = tests::novi::Novi::start(tests::directory::Directory::default(), env.private.clone()).await?;
    let ok = |body: &str| NoviFault::Respond(200, "application/json", body.to_owned());
    let status = |status| NoviFault::Respond(status, "text/plain", "x".to_owned());
    let too_long = format!("{{\"Name\":\"{}\"}}", "x".repeat(1 << 20));
    for (name, fault, code) in [
        ("closed connection", NoviFault::Disconnect, "novi_unreachable"),
        ("no response", NoviFault::NoResponse, "novi_unreachable"),
        ("half a body", NoviFault::TruncatedBody, "novi_unreachable"),
        ("500", status(500), "novi_error"),
        ("503", status(503), "novi_error"),
        ("400", status(400), "novi_error"),
        ("204", status(204), "novi_error"),
        ("redirect", NoviFault::Redirect(redirect_target.root()), "novi_error"),
        ("401", status(401), "novi_credentials_rejected"),
        ("403 in JSON", NoviFault::Forbidden, "novi_credentials_rejected"),
        ("403 in HTML", NoviFault::BlockedByCdn, "novi_blocked"),
        ("403 without a body", NoviFault::Respond(403, "application/json", String::new()), "novi_blocked"),
        ("endless body", NoviFault::EndlessBody, "novi_invalid_response"),
        ("long body", ok(&too_long), "novi_invalid_response"),
        ("HTML", NoviFault::Respond(200, "text/html", "<html>".to_owned()), "novi_invalid_response"),
        ("array", ok("[]"), "novi_invalid_response"),
        ("truncated JSON", ok("{\"Name\":"), "novi_invalid_response"),
        ("number as an address", ok("{\"Email\":5}"), "novi_invalid_response"),
    ] {
        env.novi.state().fail("/customers/", usize::MAX, fault);
        assert_eq!(problem(&env.verify(env.member).await?), (503, code.to_owned()), "{name}");
        env.novi.state().clear_faults();
        let other = newcomer(&env);
        assert_eq!(env.verify(other).await?.header("x-cache"), "miss", "after {name}");
    }
    assert_eq!(redirect_target.state().count("/"), 0, "a redirect is not followed");

    // A large body within the limit is read.
    let large = format!("{{\"Name\":\"x\"}}{}", " ".repeat((1 << 20) - 20));
    env.novi.state().fail("/customers/", 1, ok(&large));
    assert_eq!(env.verify(env.member).await?.status, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_port_at_novi_is_reported_as_unreachable() -> Result<()> {
    let port = tests::process::free_port()?;
    let env = Verification::start_with(&[], |config| {
        config["novi_api_root_url"] = json!(format!("http://127.0.0.1:{port}/api"));
    })
    .await?;
    assert_eq!(problem(&env.verify(env.member).await?), (503, "novi_unreachable".to_owned()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn transient_failure_is_retried_once() -> Result<()> {
    let env = Verification::start(&[]).await?;
    let respond = |status| NoviFault::Respond(status, "text/plain", "x".to_owned());
    for (fault, times, calls, status) in [
        (NoviFault::Disconnect, 1, 2, 200),
        (respond(502), 1, 2, 200),
        (respond(503), 1, 2, 200),
        (respond(504), 1, 2, 200),
        (respond(503), 2, 2, 503),
        (respond(500), 1, 1, 503),
        (NoviFault::BlockedByCdn, 1, 1, 503),
    ] {
        let other = newcomer(&env);
        let before = env.novi.state().count("/customers/");
        env.novi.state().fail("/customers/", times, fault);
        assert_eq!(env.verify(other).await?.status, status);
        assert_eq!(env.novi.state().count("/customers/") - before, calls);
        env.novi.state().clear_faults();
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_record_is_served_during_an_outage_but_not_after_a_404() -> Result<()> {
    let env = Verification::start(&[("CACHE_TTL_SECONDS", "1"), ("CACHE_STALE_SECONDS", "3600")]).await?;
    let body = env.verify(env.member).await?.json();
    for fault in [
        NoviFault::Respond(500, "text/plain", String::new()),
        NoviFault::Disconnect,
        NoviFault::BlockedByCdn,
        NoviFault::Respond(200, "text/html", "<html>".to_owned()),
    ] {
        env.novi.state().fail("/customers/", usize::MAX, fault);
        // In its first second the record is a hit.
        let stale = loop {
            let response = env.verify(env.member).await?;
            if response.header("x-cache") != "hit" {
                break response;
            }
        };
        assert_eq!((stale.status, stale.header("x-cache")), (200, "stale"));
        assert_eq!(stale.json(), body);
        let other = newcomer(&env);
        assert_eq!(env.verify(other).await?.status, 503, "only verified members are served stale");
        env.novi.state().clear_faults();
    }
    // The member doesn't exist anymore. That is a valid response, after which the stale record must not be served.
    env.novi.state().directory.people.remove(&env.member);
    assert_eq!(env.verify(env.member).await?.status, 404);
    env.novi.state().fail("/customers/", usize::MAX, NoviFault::RateLimited(Some("300".to_owned())));
    assert_eq!(env.verify(env.member).await?.status, 429);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_record_is_served_during_a_rate_limit() -> Result<()> {
    let env = Verification::start(&[("CACHE_TTL_SECONDS", "1"), ("CACHE_STALE_SECONDS", "3600")]).await?;
    assert_eq!(env.verify(env.member).await?.status, 200);
    env.novi.state().fail("/customers/", 1, NoviFault::RateLimited(Some("300".to_owned())));
    while env.verify(env.member).await?.header("x-cache") == "hit" {}
    // During the cooldown, the stale record is still served.
    let response = env.verify(env.member).await?;
    assert_eq!((response.status, response.header("x-cache")), (200, "stale"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn outage_is_reported_without_stale_seconds() -> Result<()> {
    let env = Verification::start(&[("CACHE_TTL_SECONDS", "1")]).await?;
    assert_eq!(env.verify(env.member).await?.status, 200);
    env.novi.state().fail("/customers/", usize::MAX, NoviFault::BlockedByCdn);
    while env.verify(env.member).await?.header("x-cache") == "hit" {}
    assert_eq!(problem(&env.verify(env.member).await?), (503, "novi_blocked".to_owned()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_rotate_without_a_restart() -> Result<()> {
    let mut env = Verification::start(&[("PARAMETER_TTL_SECONDS", "1")]).await?;
    assert_eq!(env.verify(env.member).await?.status, 200);
    // First a second API key in addition to the first, then only the second.
    let second = "another-key-of-the-front-end";
    env.private.add(second);
    let first = env.config["api_keys"][0].clone();
    env.config["api_keys"] = json!([first, {"name": "next", "key": second}]);
    env.function.set_config(&env.config)?;
    let by_second =
        Request::get(&Verification::path(env.member)).header("x-api-key", second).header("x-account-id", "a");
    while env.send(&by_second).await?.status == 401 {}
    assert_eq!(env.verify(env.member).await?.status, 200);
    env.config["api_keys"] = json!([{"name": "next", "key": second}]);
    env.function.set_config(&env.config)?;
    while env.verify(env.member).await?.status == 200 {}
    assert_eq!(problem(&env.verify(env.member).await?), (401, "api_key_invalid".to_owned()));
    assert_eq!(env.send(&by_second).await?.status, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_novi_key_is_refreshed_immediately() -> Result<()> {
    let mut env = Verification::start(&[("PARAMETER_TTL_SECONDS", "86400")]).await?;
    assert_eq!(env.verify(env.member).await?.status, 200);
    let other = newcomer(&env);
    let key = "another-key-of-novi".to_owned();
    env.private.add(&key);
    env.novi.state().key.clone_from(&key);
    env.config["novi_idaa_api_key"] = json!(key);
    env.function.set_config(&env.config)?;
    assert_eq!(env.verify(other).await?.status, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_novi_key_is_refreshed_at_most_once_a_minute() -> Result<()> {
    let mut env = Verification::start(&[("PARAMETER_TTL_SECONDS", "86400")]).await?;
    "changed-at-novi-only".clone_into(&mut env.novi.state().key);
    assert_eq!(problem(&env.verify(env.member).await?), (503, "novi_credentials_rejected".to_owned()));
    let calls = env.novi.state().count("/");
    assert_eq!(calls, 1, "the same key isn't sent twice");
    env.config["novi_idaa_api_key"] = json!("changed-at-novi-only");
    env.function.set_config(&env.config)?;
    assert_eq!(problem(&env.verify(env.member).await?), (503, "novi_credentials_rejected".to_owned()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn health_reports_the_state_without_calling_novi() -> Result<()> {
    let env = Verification::start(&[("PARAMETER_TTL_SECONDS", "1")]).await?;
    let health = Request::get("/health");
    let response = env.send(&health).await?;
    assert_eq!(response.status, 200);
    assert_eq!(response.json(), json!({"status": "ok", "checks": {"parameters": "ok", "cache": "in_process"}}));
    assert_common(&response);

    // If the parameters become invalid, the cached ones are used.
    std::fs::write(env.function.config_file(), "{ not JSON")?;
    let degraded = loop {
        let body = env.send(&health).await?.json();
        if body["status"] != "ok" {
            break body;
        }
    };
    assert_eq!(degraded, json!({"status": "degraded", "checks": {"parameters": "stale", "cache": "in_process"}}));
    assert_eq!(env.verify(env.member).await?.status, 200);
    env.function.set_config(&env.config)?;
    while env.send(&health).await?.json()["status"] != "ok" {}
    assert_eq!(env.novi.state().count("/"), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_that_never_arrived_are_unavailable_until_they_do() -> Result<()> {
    // A pipe without a writer: reading it never ends, as in a file system that hangs. Startup continues without
    // parameters, and each request reads them again.
    let dir = tempfile::tempdir()?;
    let pipe = dir.path().join("config.json");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU)?;
    let name = pipe.display().to_string();
    let env = Verification::start(&[("CONFIG_FILE", &name)]).await?;
    assert_eq!(problem(&env.verify(env.member).await?), (503, "parameters_unavailable".to_owned()));
    let response = env.send(&Request::get("/health")).await?;
    assert_eq!(response.status, 503);
    assert!(response.header("retry-after").parse::<u64>().is_ok());
    assert_eq!(response.json(), json!({"status": "down", "checks": {"parameters": "down", "cache": "in_process"}}));

    write_atomically(&pipe, &env.config)?;
    while env.send(&Request::get("/health")).await?.status == 503 {}
    assert_eq!(env.verify(env.member).await?.status, 200);
    Ok(())
}

/// Converts a request to an event.
type ToEvent = fn(&Request) -> Value;

#[tokio::test(flavor = "multi_thread")]
async fn every_event_type_gets_the_same_response() -> Result<()> {
    let env = Verification::start(&[]).await?;
    let member = env.request(env.member);
    let others = [
        (Request::get("/health"), 200),
        (Request::get("/openapi.json"), 200),
        (Request::get("/"), 404),
        (Request::get("/v3/action/idaa/novi_member"), 404),
        (Request::get("/v3/action/idaa/novi_member/"), 404),
        (Request::get(&format!("{}/", Verification::path(env.member))), 404),
        (Request::get(&format!("/{}", Verification::path(env.member))), 404),
        (Request::get(&format!("/other{}", Verification::path(env.member))), 404),
        (Request::new("POST", "/health"), 405),
        (Request::new("DELETE", &Verification::path(env.member)), 405),
        (Request::new("OPTIONS", &Verification::path(env.member)), 405),
    ];
    let event_types: [(&str, ToEvent); 6] = [
        ("HTTP API", |request| request.http_api("$default")),
        ("HTTP API with a stage", |request| request.http_api("prod")),
        ("HTTP API with a stage like a path", |request| request.http_api("v3")),
        ("REST API", |request| request.rest_api("prod")),
        ("REST API with a stage like a path", |request| request.rest_api("v3")),
        ("Function URL", Request::function_url),
    ];
    for (name, to_event) in event_types {
        let response = Response::parse(&env.function.invoke(&to_event(&member)).await?)?;
        assert_eq!(response.status, 200, "{name}");
        for (request, status) in &others {
            let response = Response::parse(&env.function.invoke(&to_event(request)).await?)?;
            assert_eq!(response.status, *status, "{name}");
            assert_common(&response);
            match status {
                404 => assert_eq!(problem(&response).1, "route_not_found"),
                405 => {
                    assert_eq!(problem(&response).1, "method_not_allowed");
                    assert!(response.header("allow").contains("GET"), "{response:?}");
                }
                _ => {}
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn head_is_answered_like_get_without_a_body() -> Result<()> {
    let env = Verification::start(&[]).await?;
    assert_eq!(env.verify(env.member).await?.status, 200);
    let authorized = |path: &str, method: &str| {
        Request::new(method, path).header("x-api-key", &env.keys.frontend).header("x-account-id", "account-1")
    };
    let member = Verification::path(env.member);
    let stranger = Verification::path(Uuid::from_u128(fastrand::u128(..)));
    for path in [member.as_str(), &stranger, "/v3/action/idaa/novi_member/x", "/health", "/openapi.json", "/nowhere"] {
        let get = env.send(&authorized(path, "GET")).await?;
        let head = env.send(&authorized(path, "HEAD")).await?;
        assert_eq!((head.status, head.body.as_str()), (get.status, ""), "{path}");
        assert_eq!(head.headers, get.headers, "{path}");
    }
    let without_key = env.send(&Request::new("HEAD", &member)).await?;
    assert_eq!((without_key.status, without_key.header("www-authenticate")), (401, "ApiKey"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn base_path_is_removed_like_the_stage() -> Result<()> {
    let env = Verification::start(&[("BASE_PATH", "/members/v1")]).await?;
    let member = Verification::path(env.member);
    let request =
        |path: &str| Request::get(path).header("x-api-key", &env.keys.frontend).header("x-account-id", "account-1");
    let event_types: [(&str, ToEvent); 5] = [
        ("HTTP API", |request| request.http_api("$default")),
        ("HTTP API with a stage", |request| request.http_api("prod")),
        ("HTTP API with a stage like a part of it", |request| request.http_api("v1")),
        ("REST API", |request| request.rest_api("prod")),
        ("Function URL", Request::function_url),
    ];
    for (name, to_event) in event_types {
        for (path, status) in [
            (format!("/members/v1{member}"), 200),
            // The API's own URL, without the mapping.
            (member.clone(), 200),
            ("/members/v1/health".to_owned(), 200),
            ("/members/v1/openapi.json".to_owned(), 200),
            ("/members/v1".to_owned(), 404),
            ("/members/v1/".to_owned(), 404),
            (format!("/members{member}"), 404),
            (format!("/v1{member}"), 404),
            (format!("/Members/v1{member}"), 404),
            (format!("/members/v10{member}"), 404),
            (format!("/members/v1/{member}"), 404),
            (format!("//members/v1{member}"), 404),
            (format!("/members/v1/members/v1{member}"), 404),
            (format!("/members/../members/v1{member}"), 404),
            (format!("/members%2Fv1{member}"), 404),
            (format!("/members/v1{member}/"), 404),
            (format!("/members/v1/other{member}"), 404),
        ] {
            let response = Response::parse(&env.function.invoke(&to_event(&request(&path))).await?)?;
            assert_eq!(response.status, status, "{name}: {path}");
            if status == 404 {
                assert_eq!(problem(&response).1, "route_not_found");
            }
        }
        // The gate is as closed as without a base path.
        let response =
            Response::parse(&env.function.invoke(&to_event(&Request::get(&format!("/members/v1{member}")))).await?)?;
        assert_eq!(problem(&response), (401, "api_key_missing".to_owned()), "{name}");
    }
    // A mapping may come before the stage.
    let event = request(&format!("/members/v1/prod{member}")).http_api("$default");
    assert_eq!(Response::parse(&env.function.invoke(&event).await?)?.status, 404, "this stage is another one");
    let mut event = request(&member).http_api("prod");
    event["rawPath"] = json!(format!("/members/v1/prod{member}"));
    assert_eq!(Response::parse(&env.function.invoke(&event).await?)?.status, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn request_ends_before_the_deadline_of_its_invocation() -> Result<()> {
    let limit = Duration::from_secs(3);
    let variables = [
        ("AWS_LAMBDA_FUNCTION_TIMEOUT", "3"),
        ("NOVI_TIMEOUT_MS", "8000"),
        ("CACHE_TTL_SECONDS", "1"),
        ("CACHE_STALE_SECONDS", "3600"),
    ];
    let env = Verification::start(&variables).await?;
    assert_eq!(env.verify(env.member).await?.status, 200);
    let other = newcomer(&env);
    env.novi.state().fail("/customers/", usize::MAX, NoviFault::NoResponse);
    let started = Instant::now();
    assert_eq!(problem(&env.verify(other).await?), (503, "novi_unreachable".to_owned()));
    assert!(started.elapsed() < limit, "{:?}", started.elapsed());
    let started = Instant::now();
    let response = env.verify(env.member).await?;
    assert_eq!((response.status, response.header("x-cache")), (200, "stale"));
    assert!(started.elapsed() < limit, "{:?}", started.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_parameters_do_not_delay_a_response_past_the_deadline() -> Result<()> {
    // A pipe without a writer: reading it takes 3 s. The emulator would count the start as part of the invocation.
    let dir = tempfile::tempdir()?;
    let pipe = dir.path().join("config.json");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU)?;
    let variables = [("CONFIG_FILE", pipe.display().to_string())];
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    let instance = Instance::start("verify", 1, &json!({}), &variables, &Private::default()).await?;
    let send = async |request: &Request| Response::parse(&instance.invoke(&request.http_api("$default")).await?);
    let member = Request::get(&Verification::path(Uuid::nil()));
    assert_eq!(send(&member).await?.status, 503);
    let timeout = Duration::from_secs(2);
    instance.set_timeout(timeout);
    for _ in 0..2 {
        // A failed read is repeated after 1 s.
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        let started = Instant::now();
        assert_eq!(problem(&send(&member).await?), (503, "parameters_unavailable".to_owned()));
        assert!(started.elapsed() < timeout, "{:?}", started.elapsed());
        let started = Instant::now();
        let health = send(&Request::get("/health")).await?;
        assert_eq!((health.status, &health.json()["checks"]["parameters"]), (503, &json!("down")));
        assert!(started.elapsed() < timeout, "{:?}", started.elapsed());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_url_characters_do_not_fail_the_function() -> Result<()> {
    let env = Verification::start(&[]).await?;
    let request = env.request(env.member);
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
            assert_eq!(Response::parse(&env.function.invoke(&event).await?)?.status, 200, "{field} {value}");
        }
    }
    assert!(!env.function.log().contains("panicked"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_but_a_preflight_is_measured() -> Result<()> {
    let env = Verification::start(&[("CORS_ALLOW_ORIGINS", "https://app.example.org")]).await?;
    let measured = || env.function.log().matches(r#""Latency":"#).count();
    let preflight = ("access-control-request-method", "GET");
    let request = env.request(env.member).header(preflight.0, preflight.1);
    assert_eq!(env.send(&request).await?.status, 200);
    assert_eq!(measured(), 1);
    let request = Request::new("OPTIONS", &Verification::path(env.member))
        .header("origin", "https://app.example.org")
        .header(preflight.0, preflight.1);
    assert!(matches!(env.send(&request).await?.status, 200 | 204));
    assert_eq!(measured(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn unencrypted_redis_on_another_host_is_warned_about() -> Result<()> {
    for (url, is_warned) in [("redis://192.0.2.1:6379", true), ("redis://127.0.0.1:1", false)] {
        let env = Verification::start(&[("CACHE_URL", url)]).await?;
        assert_eq!(env.verify(env.member).await?.header("x-cache"), "bypass");
        assert_eq!(env.function.log().contains("plain redis:// to a remote host"), is_warned, "{url}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn cors_headers_are_sent_only_for_allowed_origins() -> Result<()> {
    let origin = "https://app.example.org";
    let env = Verification::start(&[("CORS_ALLOW_ORIGINS", "https://app.example.org, http://localhost:5173")]).await?;
    let preflight = |origin: &str| {
        Request::new("OPTIONS", &Verification::path(env.member))
            .header("origin", origin)
            .header("access-control-request-method", "GET")
            .header("access-control-request-headers", "x-api-key,x-account-id,authorization")
    };
    let response = env.send(&preflight(origin)).await?;
    assert!(matches!(response.status, 200 | 204), "{response:?}");
    assert_eq!(response.header("access-control-allow-origin"), origin);
    assert_eq!(response.header("access-control-allow-methods"), "GET");
    for name in ["x-api-key", "x-account-id", "authorization"] {
        assert!(response.header("access-control-allow-headers").contains(name), "{response:?}");
    }
    assert_eq!(response.header("vary").to_lowercase(), "origin");
    assert_common(&response);
    // An OPTIONS request that isn't a preflight is handled like any other method.
    let options = Request::new("OPTIONS", &Verification::path(env.member)).header("origin", origin);
    assert_eq!(problem(&env.send(&options).await?), (405, "method_not_allowed".to_owned()));
    assert_eq!(env.send(&preflight("https://evil.example.net")).await?.header("access-control-allow-origin"), "");

    for (request, status) in [
        (env.request(env.member), 200),
        (Request::get(&Verification::path(env.member)), 401),
        (Request::get("/nowhere"), 404),
        (Request::new("POST", "/health"), 405),
    ] {
        let response = env.send(&request.clone().header("origin", origin)).await?;
        assert_eq!(response.status, status);
        assert_eq!(response.header("access-control-allow-origin"), origin, "errors have the header too");
        let exposed = response.header("access-control-expose-headers").to_lowercase();
        assert!(exposed.contains("retry-after") && exposed.contains("x-cache"), "{exposed}");
        assert_eq!(response.header("vary").to_lowercase(), "origin");
        let other_origin = env.send(&request.header("origin", "https://evil.example.net")).await?;
        assert_eq!(other_origin.header("access-control-allow-origin"), "");
    }

    let any = Verification::start(&[("CORS_ALLOW_ORIGINS", "*")]).await?;
    let response = any.send(&Request::get("/health").header("origin", "https://any.example.net")).await?;
    assert_eq!(response.header("access-control-allow-origin"), "*");
    let none = Verification::start(&[]).await?;
    let response = none.send(&Request::get("/health").header("origin", origin)).await?;
    assert_eq!(response.header("access-control-allow-origin"), "");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn api_description_matches_the_responses() -> Result<()> {
    let env = Verification::start(&[("VERIFY_NOVI_MAX_PER_MINUTE", "1000")]).await?;
    let response = env.send(&Request::get("/openapi.json")).await?;
    assert_eq!(response.header("content-type"), "application/json");
    let api = response.json();
    assert!(api["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")), "{}", api["openapi"]);
    let operation = |path: &str| api["paths"][path]["get"]["responses"].clone();
    let responses = operation("/v3/action/idaa/novi_member/{uuid}");
    assert!(operation("/health")["503"].is_object() && operation("/openapi.json")["200"].is_object());

    // Every code has a status and an example, and responses match their description.
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

    let key = &env.keys.frontend;
    let path = Verification::path(env.member);
    let mut received = vec![
        env.verify(env.member).await?,
        env.send(&Request::get(&path)).await?,
        env.send(&Request::get(&path).header("x-api-key", key)).await?,
        env.send(&Request::get("/v3/action/idaa/novi_member/x").header("x-api-key", &env.keys.bypass)).await?,
        env.verify(Uuid::from_u128(1)).await?,
    ];
    for fault in [
        NoviFault::BlockedByCdn,
        NoviFault::Forbidden,
        NoviFault::EndlessBody,
        NoviFault::Respond(500, "x/y", String::new()),
        NoviFault::RateLimited(None),
    ] {
        env.novi.state().fail("/customers/", 1, fault);
        received.push(env.verify(Uuid::from_u128(1)).await?);
    }
    for response in received {
        let description = &responses[response.status.to_string()];
        let content_type = response.header("content-type");
        let content = &description["content"][content_type];
        assert!(content.is_object(), "{} {content_type} isn't described", response.status);
        for (header, definition) in description["headers"].as_object().into_iter().flatten() {
            let value = response.header(&header.to_lowercase());
            assert!(!value.is_empty(), "{} has no {header}", response.status);
            if let Some(values) = definition["schema"]["enum"].as_array() {
                assert!(values.contains(&json!(value)), "{header}: {value}");
            }
        }
        if response.status != 200 {
            assert_eq!(content["examples"][response.code()]["value"], response.json());
        }
        let schema = content["schema"]["$ref"].as_str().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        let schema = &api["components"]["schemas"][schema];
        let properties: BTreeSet<_> =
            schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name).collect();
        let body = response.json();
        assert_eq!(properties, body.as_object().into_iter().flatten().map(|(name, _)| name).collect(), "{schema}");
    }
    Ok(())
}
