//! The AWS services, end to end: parameters from SSM (moto), endpoints from the ElastiCache API (a stub), and IAM
//! tokens (a proxy that checks them).

use std::convert::Infallible;
use std::process::Command;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fastrand::Rng;
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};
use tests::api::Request;
use tests::aws::{CREDENTIALS, ElastiCache, IamProxy, KnownCache, Moto};
use tests::directory::Directory;
use tests::function::{Function, binary};
use tests::harness::Verification;
use tests::http_proxy::{HttpFault, HttpProxy};
use tests::mailman::{Mailman, USER};
use tests::novi::Novi;
use tests::privacy::Private;
use tests::process::free_port;
use tests::redis::{CertificateAuthority, Kind, Redis};
use tokio::sync::Semaphore;
use uuid::Uuid;

/// Text that every request for the parameters of verification contains.
const READING: &str = "api_keys";

/// Returns the environment variables for the parameters below `prefix` of the SSM at `url`, and `more`.
fn ssm<'v>(url: &'v str, prefix: &'v str, more: &[(&'v str, &'v str)]) -> Vec<(&'v str, &'v str)> {
    let mut variables = CREDENTIALS.to_vec();
    variables.extend([("CONFIG_FILE", ""), ("PARAMETER_PREFIX", prefix), ("AWS_ENDPOINT_URL_SSM", url)]);
    variables.extend(more);
    variables
}

/// Holds the next request for parameters until the returned semaphore gets a permit.
fn hold_reading(proxy: &HttpProxy) -> Arc<Semaphore> {
    let permit = Arc::new(Semaphore::new(0));
    proxy.fail(READING, 1, HttpFault::Hold(Arc::clone(&permit)));
    permit
}

/// Makes SSM take longer than a request waits, for every reading of the parameters.
async fn slow_down(proxy: &HttpProxy) -> Infallible {
    const RESPONSE_TIME: Duration = Duration::from_millis(1_200);
    loop {
        proxy.clear_requests();
        let permit = hold_reading(proxy);
        proxy.wait_for(READING, 1).await;
        tokio::time::sleep(RESPONSE_TIME).await;
        permit.add_permits(1);
    }
}

/// Starts the function, which reads its parameters from `url` every second. Then removes the front end's key from SSM.
async fn start_and_revoke_key(url: &str, moto: &Moto) -> Result<Verification> {
    let prefix = moto.prefix();
    let env = Verification::start(&ssm(url, prefix, &[("PARAMETER_TTL_SECONDS", "1")])).await?;
    add_private_credentials(&env);
    moto.put(prefix, &env.config).await?;
    assert_eq!(env.verify(env.member).await?.status, 200);
    revoke_key(&env, moto, prefix).await?;
    Ok(env)
}

/// Removes the API key of the front end from SSM.
async fn revoke_key(env: &Verification, moto: &Moto, prefix: &str) -> Result<()> {
    moto.put(prefix, &json!({"api_keys": [{"name": "server", "key": env.keys.bypass, "bypass": true}]})).await
}

/// Adds a member that the function hasn't seen.
fn newcomer(env: &Verification) -> Uuid {
    env.novi.state().directory.add(&mut Rng::new())
}

/// Marks the AWS credentials as values that must not be logged.
fn add_private_credentials(env: &Verification) {
    for (name, value) in CREDENTIALS {
        if name != "AWS_REGION" {
            env.private.add(value);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_are_read_from_ssm_in_one_call() -> Result<()> {
    let moto = Moto::start()?;
    let proxy = HttpProxy::start(moto.url()).await?;
    let (url, prefix) = (proxy.url(), moto.prefix());
    let env = Verification::start(&ssm(&url, prefix, &[])).await?;
    add_private_credentials(&env);
    moto.put(prefix, &env.config).await?;
    // Parameters of the mirror aren't requested.
    moto.put(prefix, &json!({"mailman_password": "not ours", "novi_mailman_sync": "[]"})).await?;
    for _ in 0..3 {
        assert_eq!(env.verify(env.member).await?.status, 200);
    }
    let requests: Vec<String> = proxy.requests().into_iter().map(|request| request.line).collect();
    assert_eq!(requests, ["POST /"], "only one GetParameters call");
    let claims = json!({"account_id": "a", "exp": 4_000_000_000_u64});
    let token =
        jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(env.keys.jwt_secret.as_bytes()))?;
    let request = Request::get(&Verification::path(env.member))
        .header("x-api-key", &env.keys.frontend)
        .header("authorization", &format!("Bearer {token}"));
    assert_eq!(env.send(&request).await?.status, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_or_malformed_ssm_parameter_is_named_without_its_value() -> Result<()> {
    const KEY: &str = "a-secret-that-must-not-leak";
    let moto = Moto::start()?;
    let url = moto.url();
    let all = json!({"novi_api_root_url": "https://www.example.org/api", "novi_idaa_api_key": KEY});
    for (prefix, change, expected_text) in [
        ("/missing", json!({}), "SSM /missing: parameter api_keys is missing"),
        (
            "/malformed",
            json!({"api_keys": format!("[{{\"{KEY}\"")}),
            r#"SSM /malformed: parameter api_keys is invalid: expected a JSON array of at least one {"name":"…","key":"…","bypass":false}, found invalid JSON"#,
        ),
        (
            "/plain",
            json!({"api_keys": [{"name": "x", "key": KEY}], "novi_api_root_url": "http://www.example.org"}),
            "parameter novi_api_root_url is invalid",
        ),
    ] {
        moto.put(prefix, &all).await?;
        moto.put(prefix, &change).await?;
        let output = Command::new(binary("verify")?)
            .env_clear()
            .envs(CREDENTIALS)
            .env("PARAMETER_PREFIX", prefix)
            .env("AWS_ENDPOINT_URL", &url)
            .output()?;
        let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        assert!(printed.contains(expected_text) && !printed.contains(KEY), "{printed}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_parameters_are_used_while_ssm_fails() -> Result<()> {
    let mut moto = Moto::start_own()?;
    let (url, prefix) = (moto.url(), moto.prefix().to_owned());
    let env = Verification::start(&ssm(&url, &prefix, &[("PARAMETER_TTL_SECONDS", "1")])).await?;
    add_private_credentials(&env);
    let health = Request::get("/health");
    // The first invocation starts the function, and SSM is already down by then.
    moto.kill()?;
    let response = env.verify(env.member).await?;
    assert_eq!((response.status, response.code().as_str()), (503, "parameters_unavailable"));
    assert!(response.header("retry-after").parse::<u64>().is_ok());
    assert_eq!(env.send(&health).await?.status, 503);

    moto.restart()?;
    moto.put(&prefix, &env.config).await?;
    while env.send(&health).await?.status == 503 {}
    assert_eq!(env.verify(env.member).await?.status, 200);

    moto.kill()?;
    let stale = loop {
        let body = env.send(&health).await?.json();
        if body["checks"]["parameters"] != "ok" {
            break body;
        }
    };
    assert_eq!((&stale["status"], &stale["checks"]["parameters"]), (&json!("degraded"), &json!("stale")));
    assert_eq!(env.verify(newcomer(&env)).await?.status, 200);
    assert!(env.function.log().contains("parameter refresh failed; using cached parameters"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_key_is_refused_although_ssm_takes_longer_than_a_request_waits() -> Result<()> {
    let moto = Moto::start()?;
    let proxy = HttpProxy::start(moto.url()).await?;
    let env = start_and_revoke_key(&proxy.url(), &moto).await?;
    // Several readings, since they are due after one second and take 1.2 s.
    let refused = async {
        let started = Instant::now();
        while env.verify(env.member).await?.code() != "api_key_invalid" {
            ensure!(started.elapsed() < Duration::from_secs(12), "the revoked key is still accepted");
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::select! {
        refused = refused => refused?,
        never = slow_down(&proxy) => match never {},
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_that_began_before_a_freeze_goes_on_with_the_next_request() -> Result<()> {
    let moto = Moto::start()?;
    let proxy = HttpProxy::start(moto.url()).await?;
    for is_answered in [true, false] {
        let env = start_and_revoke_key(&proxy.url(), &moto).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let permit = hold_reading(&proxy);
        assert_eq!(env.verify(env.member).await?.status, 200, "the older parameters are used meanwhile");

        // Longer than every timeout of the reading.
        env.function.freeze(true)?;
        if is_answered {
            permit.add_permits(1);
            proxy.wait_for_delayed().await;
        }
        tokio::time::sleep(Duration::from_secs(4)).await;
        if is_answered {
            // Another reading is due by now. Only the response that arrived during the freeze can tell of the revocation.
            proxy.fail(READING, usize::MAX, HttpFault::Hold(Arc::new(Semaphore::new(0))));
        }
        env.function.freeze(false)?;
        let thawed = Instant::now();
        let mut response = env.verify(env.member).await?;
        while !is_answered && response.status == 200 && thawed.elapsed() < Duration::from_secs(12) {
            response = env.verify(env.member).await?;
        }
        assert_eq!(response.code(), "api_key_invalid", "answered during the freeze: {is_answered}");
        proxy.clear_faults();
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn member_does_not_wait_for_parameters_that_the_cache_needs() -> Result<()> {
    let moto = Moto::start()?;
    let proxy = HttpProxy::start(moto.url()).await?;
    let mut redis = Redis::start(Kind::Tls)?;
    let (url, prefix, cache) = (proxy.url(), moto.prefix(), redis.variables());
    let mut variables = ssm(&url, prefix, &[("CACHE_TIMEOUT_MS", "250")]);
    variables.extend(cache.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let mut env = Verification::start(&variables).await?;
    add_private_credentials(&env);
    env.config["cache_password"] = json!(redis.password());
    env.private.add(redis.password().unwrap_or_default());
    moto.put(prefix, &env.config).await?;
    assert_eq!(env.verify(env.member).await?.header("x-cache"), "miss");

    proxy.clear_requests();
    proxy.fail(READING, usize::MAX, HttpFault::Hold(Arc::new(Semaphore::new(0))));
    let password = "another-password-of-the-cache";
    env.private.add(password);
    redis.set_password(password)?;
    redis.drop_clients()?;
    let mut slowest = Duration::ZERO;
    // The first request makes a connection, which is refused and begins a reading. The others come during that reading.
    for _ in 0..4 {
        let started = Instant::now();
        assert_eq!(env.verify(env.member).await?.header("x-cache"), "bypass");
        slowest = slowest.max(started.elapsed());
    }
    proxy.wait_for(READING, 1).await;
    // Without the parameters a response takes 250 ms, and a reading that hangs takes 3 s.
    assert!(slowest < Duration::from_millis(1_000), "{slowest:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn throttled_reading_is_retried_three_times() -> Result<()> {
    let moto = Moto::start()?;
    let proxy = HttpProxy::start(moto.url()).await?;
    let (url, prefix) = (proxy.url(), moto.prefix());
    let env = Verification::start(&ssm(&url, prefix, &[])).await?;
    add_private_credentials(&env);
    moto.put(prefix, &env.config).await?;
    let throttled = r#"{"__type":"ThrottlingException","message":"Rate exceeded"}"#;
    proxy.fail(READING, 3, HttpFault::Respond(400, throttled));
    assert_eq!(env.verify(env.member).await?.status, 200);
    let statuses: Vec<_> = proxy.requests().into_iter().map(|request| request.status).collect();
    assert_eq!(statuses, [Some(400), Some(400), Some(400), Some(200)]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_secret_rotates_while_requests_continue() -> Result<()> {
    let moto = Moto::start()?;
    let mut redis = Redis::start(Kind::Tls)?;
    let (url, prefix) = (moto.url(), moto.prefix());
    let cache = redis.variables();
    let mut variables = ssm(
        &url,
        prefix,
        &[("PARAMETER_TTL_SECONDS", "1"), ("CACHE_TTL_SECONDS", "1"), ("VERIFY_NOVI_MAX_PER_MINUTE", "100000")],
    );
    variables.extend(cache.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let mut env = Verification::start(&variables).await?;
    add_private_credentials(&env);
    env.config["cache_password"] = json!(redis.password());
    env.private.add(redis.password().unwrap_or_default());
    moto.put(prefix, &env.config).await?;
    let token = |secret: &str| {
        let claims = json!({"account_id": "a", "exp": 4_000_000_000_u64});
        jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(secret.as_bytes()))
    };
    let by_token = |env: &Verification, token: &str| {
        Request::get(&Verification::path(env.member))
            .header("x-api-key", &env.keys.frontend)
            .header("authorization", &format!("Bearer {token}"))
    };
    assert_eq!(env.verify(env.member).await?.header("x-cache"), "miss");

    let mut jwt_secret = env.keys.jwt_secret.clone();
    for round in 0..3 {
        let secret = |name: &str| format!("{name}-number-{round}-of-the-rotation-of-secrets");
        for name in ["novi", "api", "jwt", "cache"] {
            env.private.add(&secret(name));
        }
        // The Novi key changes at Novi and in SSM, as close together as an administrator can do it.
        let key = secret("novi");
        env.novi.state().key.clone_from(&key);
        moto.put(prefix, &json!({"novi_idaa_api_key": key})).await?;
        // Until the next refresh Novi rejects the old key, which must be a 503 and never a 404.
        let other = newcomer(&env);
        loop {
            let response = env.verify(other).await?;
            match response.status {
                200 => break,
                _ => assert_eq!((response.status, response.code().as_str()), (503, "novi_credentials_rejected")),
            }
        }

        // An additional API key: the existing keys keep working, and the new one is accepted after a refresh.
        let mut keys = env.config["api_keys"].as_array().cloned().unwrap_or_default();
        keys.push(json!({"name": format!("next{round}"), "key": secret("api")}));
        moto.put(prefix, &json!({"api_keys": keys})).await?;
        let by_new_key = Request::get(&Verification::path(env.member))
            .header("x-api-key", &secret("api"))
            .header("x-account-id", "a");
        while env.send(&by_new_key).await?.code() == "api_key_invalid" {
            assert_eq!(env.verify(env.member).await?.status, 200);
        }
        assert_eq!(env.send(&by_new_key).await?.status, 200);

        // The JWT secret: tokens that are signed with the old one are accepted until it is removed.
        let (old, new) = (jwt_secret, secret("jwt"));
        let (by_old, by_new) = (by_token(&env, &token(&old)?), by_token(&env, &token(&new)?));
        moto.put(prefix, &json!({"jwt_secret": [new, old]})).await?;
        while env.send(&by_new).await?.code() == "jwt_invalid" {
            assert_eq!(env.send(&by_old).await?.status, 200);
        }
        assert_eq!((env.send(&by_old).await?.status, env.send(&by_new).await?.status), (200, 200));
        moto.put(prefix, &json!({"jwt_secret": new})).await?;
        while env.send(&by_old).await?.code() != "jwt_invalid" {}
        assert_eq!(env.send(&by_new).await?.status, 200);
        jwt_secret = new;

        // The cache password: open connections keep working, and new ones need the new password.
        moto.put(prefix, &json!({"cache_password": secret("cache")})).await?;
        redis.set_password(&secret("cache"))?;
        redis.drop_clients()?;
        loop {
            let response = env.verify(env.member).await?;
            assert_eq!(response.status, 200);
            if response.header("x-cache") != "bypass" {
                break;
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mappings_can_span_several_parameters() -> Result<()> {
    let moto = Moto::start()?;
    let private = Private::default();
    let mut directory = Directory::default();
    let mut rng = Rng::new();
    let groups: Vec<Uuid> = (0..13)
        .map(|_| {
            let group = Uuid::from_u128(rng.u128(..));
            let member = directory.add(&mut rng);
            directory.groups.insert(group, vec![member]);
            group
        })
        .collect();
    let novi = Novi::start(directory, private.clone()).await?;
    let mailman = Mailman::start().await?;
    let mapping = |n: usize| json!([{"group_guid": groups[n], "list_id": format!("list{n}@lists.example.org")}]);
    let mut parameters = json!({
        "novi_api_root_url": novi.root(),
        "novi_idaa_api_key": novi.state().key,
        "mailman_base_url": mailman.base_url(),
        "mailman_username": USER,
        "mailman_password": mailman.password(),
    });
    // More than one page of Parameter Store, and so many that alphabetical order isn't numerical order.
    for n in 0..13 {
        mailman.create_list(&format!("list{n}")).await?;
        let name = if n == 0 { "novi_mailman_sync".to_owned() } else { format!("novi_mailman_sync/{n}") };
        parameters[name] = json!(mapping(n).to_string());
    }
    let (url, prefix) = (moto.url(), moto.prefix());
    moto.put(prefix, &parameters).await?;
    let variables = ssm(&url, prefix, &[("MIRROR_APPLY", "true"), ("NOVI_MAX_PER_SECOND", "1000")]);
    let function = Function::start("mirror", &Value::Null, &variables, &private)?;
    let report = function.invoke(&json!({})).await?;
    assert_eq!((&report["status"], report["lists"].as_array().map(Vec::len)), (&json!("ok"), Some(13)), "{report}");
    for n in 0..13 {
        assert_eq!(mailman.roster(&format!("list{n}.lists.example.org"), "member").await?.len(), 1);
    }

    // A part that was deleted takes its mappings with it, so no run starts without it.
    let prefix = format!("{prefix}-gap");
    if let Some(parameters) = parameters.as_object_mut() {
        parameters.remove("novi_mailman_sync/5");
    }
    moto.put(&prefix, &parameters).await?;
    let output = Command::new(binary("mirror")?)
        .env_clear()
        .envs(CREDENTIALS)
        .env("PARAMETER_PREFIX", &prefix)
        .env("AWS_ENDPOINT_URL", &url)
        .output()?;
    let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(printed.contains("novi_mailman_sync/5"), "{printed}");
    private.assert_not_in(&printed);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn replication_group_is_discovered_again_after_it_moves() -> Result<()> {
    let elasticache = ElastiCache::start().await?;
    let url = elasticache.url();
    for (kind, tls, cluster) in [(Kind::Plain, false, false), (Kind::Tls, true, false), (Kind::Cluster, false, true)] {
        let mut first = Redis::start(kind)?;
        let second = Redis::start(Kind::Plain)?;
        elasticache.add_cache("members", KnownCache::ReplicationGroup(first.port(), tls, cluster));
        let authority = first.variables().into_iter().find(|(name, _)| name == "EXTRA_CA_CERTS").map(|(_, file)| file);
        let mut variables = CREDENTIALS.to_vec();
        variables.extend([("CACHE_ID", "members"), ("AWS_ENDPOINT_URL_ELASTICACHE", url.as_str())]);
        variables.extend(authority.as_deref().map(|file| ("EXTRA_CA_CERTS", file)));
        let env = Verification::start_with(&variables, |config| {
            if let Some(password) = first.password() {
                config["cache_password"] = json!(password);
            }
        })
        .await?;
        add_private_credentials(&env);
        assert_eq!(env.verify(env.member).await?.header("x-cache"), "miss", "{kind:?}");
        assert_eq!(env.verify(env.member).await?.header("x-cache"), "hit", "{kind:?}");

        first.kill();
        assert_eq!(env.verify(env.member).await?.header("x-cache"), "bypass", "{kind:?}");
        elasticache.add_cache("members", KnownCache::ReplicationGroup(second.port(), false, false));
        if first.password().is_some() {
            // The new Redis accepts the same password.
            second.command(&["CONFIG", "SET", "requirepass", first.password().unwrap_or_default()])?;
        }
        // ElastiCache is queried at most once a second.
        while env.verify(newcomer(&env)).await?.header("x-cache") == "bypass" {}
        let other = newcomer(&env);
        assert_eq!(env.verify(other).await?.header("x-cache"), "miss", "{kind:?}");
        assert_eq!(env.verify(other).await?.header("x-cache"), "hit", "{kind:?}");
    }

    // A cache id that ElastiCache doesn't know means that the cache is down, and the log has the reason.
    let mut variables = CREDENTIALS.to_vec();
    variables.extend([("CACHE_ID", "unknown"), ("AWS_ENDPOINT_URL_ELASTICACHE", url.as_str())]);
    let env = Verification::start(&variables).await?;
    assert_eq!(env.verify(env.member).await?.header("x-cache"), "bypass");
    assert!(
        env.function.log().contains("CACHE_ID is neither a serverless cache nor a replication group in ElastiCache")
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn replication_group_is_found_whatever_error_the_serverless_api_returns() -> Result<()> {
    let (elasticache, redis) = (ElastiCache::start().await?, Redis::start(Kind::Plain)?);
    let url = elasticache.url();
    let mut variables = CREDENTIALS.to_vec();
    variables.extend([("CACHE_ID", "members"), ("AWS_ENDPOINT_URL_ELASTICACHE", url.as_str())]);
    for code in ["AccessDenied", "InvalidAction", "InvalidParameterValue", "ServerlessCacheNotFoundFault"] {
        elasticache.add_cache("members", KnownCache::NotServerless(code, Some(redis.port())));
        let env = Verification::start(&variables).await?;
        add_private_credentials(&env);
        assert_eq!(env.verify(env.member).await?.header("x-cache"), "miss", "{code}");
        // Without a group, the id is only wrong if both APIs have said so.
        elasticache.add_cache("members", KnownCache::NotServerless(code, None));
        let env = Verification::start(&variables).await?;
        add_private_credentials(&env);
        assert_eq!(env.verify(env.member).await?.header("x-cache"), "bypass", "{code}");
        let log = env.function.log();
        let is_unknown = matches!(code, "InvalidParameterValue" | "ServerlessCacheNotFoundFault");
        assert_eq!(log.contains("neither a serverless cache nor a replication group"), is_unknown, "{code}");
        assert_eq!(log.contains("calling ElastiCache's API for the endpoint failed"), !is_unknown, "{code}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn serverless_cache_gets_an_iam_token_for_each_connection() -> Result<()> {
    let elasticache = ElastiCache::start().await?;
    let authority = CertificateAuthority::new()?;
    let port = free_port()?;
    let redis = Redis::start_announced(port)?;
    let proxy = IamProxy::start(port, redis.port(), &authority, "members", "bridge").await?;
    elasticache.add_cache("members", KnownCache::Serverless(proxy.port));
    let (url, file) = (elasticache.url(), authority.file("ca.pem").display().to_string());
    let mut variables = CREDENTIALS.to_vec();
    variables.extend([
        ("CACHE_ID", "members"),
        ("CACHE_IAM_USER", "bridge"),
        ("AWS_ENDPOINT_URL", url.as_str()),
        ("EXTRA_CA_CERTS", file.as_str()),
    ]);
    let env = Verification::start(&variables).await?;
    add_private_credentials(&env);
    assert_eq!(env.verify(env.member).await?.header("x-cache"), "miss");
    assert_eq!(env.verify(env.member).await?.header("x-cache"), "hit");
    let last_token = || proxy.tokens.lock().unwrap_or_else(PoisonError::into_inner).last().cloned();
    let first = last_token();

    // ElastiCache closes connections after twelve hours. A token contains the second in which it was signed, so
    // this repeats until the second has changed.
    while last_token() == first {
        redis.drop_clients()?;
        assert_eq!(env.verify(env.member).await?.header("x-cache"), "hit");
    }
    for result in proxy.auth_results.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        assert_eq!(result, &Ok(()));
    }

    // A token that is signed with another secret is rejected, and members are still verified.
    variables.retain(|(name, _)| *name != "AWS_SECRET_ACCESS_KEY");
    variables.push(("AWS_SECRET_ACCESS_KEY", "another secret"));
    let unauthorized = Verification::start(&variables).await?;
    assert_eq!(unauthorized.verify(unauthorized.member).await?.header("x-cache"), "bypass");
    let last = proxy.auth_results.lock().unwrap_or_else(PoisonError::into_inner).last().cloned();
    assert!(last.is_some_and(|result| result.is_err_and(|error| error.contains("wrong signature"))));
    Ok(())
}
