//! AWS's own parts, end to end: parameters from SSM (moto), endpoints from
//! ElastiCache's API (a stub), IAM tokens (a door that checks them).

use std::process::Command;
use std::sync::PoisonError;

use anyhow::Result;
use fastrand::Rng;
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};
use tests::api::Request;
use tests::aws::{CREDENTIALS, Door, ElastiCache, Known, Moto};
use tests::directory::Directory;
use tests::function::{Function, binary};
use tests::harness::Verification;
use tests::http_proxy::Proxy;
use tests::mailman::{Mailman, USER};
use tests::novi::Novi;
use tests::privacy::Private;
use tests::process::free_port;
use tests::redis::{Authority, Kind, Redis};
use uuid::Uuid;

/// The variables that lead to SSM at `url`, and more.
fn ssm<'v>(url: &'v str, more: &[(&'v str, &'v str)]) -> Vec<(&'v str, &'v str)> {
    let mut variables = CREDENTIALS.to_vec();
    variables.extend([("CONFIG_FILE", ""), ("PARAMETER_PREFIX", "/idaa"), ("AWS_ENDPOINT_URL_SSM", url)]);
    variables.extend(more);
    variables
}

fn newcomer(world: &Verification) -> Uuid {
    world.novi.state().directory.add(&mut Rng::new())
}

fn private(world: &Verification) {
    for (name, value) in CREDENTIALS {
        if name != "AWS_REGION" {
            world.private.add(value);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_come_from_ssm_in_one_call() -> Result<()> {
    let moto = Moto::start()?;
    let proxy = Proxy::start(moto.url()).await?;
    let url = proxy.url();
    let world = Verification::start(&ssm(&url, &[])).await?;
    private(&world);
    moto.put("/idaa", &world.config).await?;
    // What belongs to others is not asked for.
    moto.put("/idaa", &json!({"mailman_password": "not ours", "novi_mailman_sync": "[]"})).await?;
    for _ in 0..3 {
        assert_eq!(world.verify(world.member).await?.status, 200);
    }
    let asked: Vec<String> = proxy.seen().into_iter().map(|request| request.line).collect();
    assert_eq!(asked, ["POST /"], "one GetParameters");
    let claims = json!({"account_id": "a", "exp": 4_000_000_000_u64});
    let token =
        jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(world.keys.jwt_secret.as_bytes()))?;
    let request = Request::get(&Verification::path(world.member))
        .header("x-api-key", &world.keys.frontend)
        .header("authorization", &format!("Bearer {token}"));
    assert_eq!(world.send(&request).await?.status, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parameter_that_is_missing_or_malformed_is_named_and_never_shown() -> Result<()> {
    const KEY: &str = "a-secret-that-nobody-may-see";
    let moto = Moto::start()?;
    let url = moto.url();
    let all = json!({"novi_api_root_url": "https://www.example.org/api", "novi_idaa_api_key": KEY});
    for (prefix, change, said) in [
        ("/missing", json!({}), "SSM /missing: parameter api_keys is missing"),
        (
            "/malformed",
            json!({"api_keys": format!("[{{\"{KEY}\"")}),
            "SSM /malformed: parameter api_keys cannot be used: it is not JSON",
        ),
        (
            "/plain",
            json!({"api_keys": [{"name": "x", "key": KEY}], "novi_api_root_url": "http://www.example.org"}),
            "parameter novi_api_root_url cannot be used",
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
        assert!(printed.contains(said) && !printed.contains(KEY), "{printed}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn while_ssm_fails_the_older_parameters_are_used() -> Result<()> {
    let mut moto = Moto::start()?;
    let url = moto.url();
    let world = Verification::start(&ssm(&url, &[("PARAMETER_TTL_SECONDS", "1")])).await?;
    private(&world);
    let health = Request::get("/health");
    // It was not invoked yet: it starts with an SSM that is not there.
    moto.kill();
    let answer = world.verify(world.member).await?;
    assert_eq!((answer.status, answer.code().as_str()), (503, "parameters_unavailable"));
    assert!(answer.header("retry-after").parse::<u64>().is_ok());
    assert_eq!(world.send(&health).await?.status, 503);

    moto.restart()?;
    moto.put("/idaa", &world.config).await?;
    while world.send(&health).await?.status == 503 {}
    assert_eq!(world.verify(world.member).await?.status, 200);

    moto.kill();
    let stale = loop {
        let answer = world.send(&health).await?.json();
        if answer["checks"]["parameters"] != "ok" {
            break answer;
        }
    };
    assert_eq!((&stale["status"], &stale["checks"]["parameters"]), (&json!("degraded"), &json!("stale")));
    assert_eq!(world.verify(newcomer(&world)).await?.status, 200);
    assert!(world.function.log().contains("the older ones are used"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_secret_rotates_while_requests_go_on() -> Result<()> {
    let moto = Moto::start()?;
    let mut redis = Redis::start(Kind::Tls)?;
    let url = moto.url();
    let cache = redis.variables();
    let mut variables = ssm(
        &url,
        &[("PARAMETER_TTL_SECONDS", "1"), ("CACHE_TTL_SECONDS", "1"), ("VERIFY_NOVI_MAX_PER_MINUTE", "100000")],
    );
    variables.extend(cache.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let mut world = Verification::start(&variables).await?;
    private(&world);
    world.config["cache_password"] = json!(redis.password());
    world.private.add(redis.password().unwrap_or_default());
    moto.put("/idaa", &world.config).await?;
    let token = |secret: &str| {
        let claims = json!({"account_id": "a", "exp": 4_000_000_000_u64});
        jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(secret.as_bytes()))
    };
    let by_token = |world: &Verification, token: &str| {
        Request::get(&Verification::path(world.member))
            .header("x-api-key", &world.keys.frontend)
            .header("authorization", &format!("Bearer {token}"))
    };
    assert_eq!(world.verify(world.member).await?.header("x-cache"), "miss");

    for round in 0..3 {
        let secret = |name: &str| format!("{name}-number-{round}-of-the-rotation");
        for name in ["novi", "api", "jwt", "cache"] {
            world.private.add(&secret(name));
        }
        // Novi's key: at Novi and in SSM at once, as nearly as an administrator can.
        let key = secret("novi");
        world.novi.state().key.clone_from(&key);
        moto.put("/idaa", &json!({"novi_idaa_api_key": key})).await?;
        // Until the next reading the old key is refused, which is a 503 and never a "no".
        let other = newcomer(&world);
        loop {
            let answer = world.verify(other).await?;
            match answer.status {
                200 => break,
                _ => assert_eq!((answer.status, answer.code().as_str()), (503, "novi_credentials_rejected")),
            }
        }

        // An API key beside the others: those go on, and the new one is accepted before long.
        let mut keys = world.config["api_keys"].as_array().cloned().unwrap_or_default();
        keys.push(json!({"name": format!("next{round}"), "key": secret("api")}));
        moto.put("/idaa", &json!({"api_keys": keys})).await?;
        let next = Request::get(&Verification::path(world.member))
            .header("x-api-key", &secret("api"))
            .header("x-account-id", "a");
        while world.send(&next).await?.code() == "api_key_invalid" {
            assert_eq!(world.verify(world.member).await?.status, 200);
        }
        assert_eq!(world.send(&next).await?.status, 200);

        // The secret of tokens.
        moto.put("/idaa", &json!({"jwt_secret": secret("jwt")})).await?;
        let request = by_token(&world, &token(&secret("jwt"))?);
        while world.send(&request).await?.code() == "jwt_invalid" {}
        assert_eq!(world.send(&request).await?.status, 200);

        // The password of the cache: connections that are there go on, new ones need the new one.
        moto.put("/idaa", &json!({"cache_password": secret("cache")})).await?;
        redis.set_password(&secret("cache"))?;
        redis.drop_clients()?;
        loop {
            let answer = world.verify(world.member).await?;
            assert_eq!(answer.status, 200);
            if answer.header("x-cache") != "bypass" {
                break;
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mappings_go_on_in_further_parameters() -> Result<()> {
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
    // More than Parameter Store gives in one page, and more than sort alphabetically.
    for n in 0..13 {
        mailman.create_list(&format!("list{n}")).await?;
        let name = if n == 0 { "novi_mailman_sync".to_owned() } else { format!("novi_mailman_sync/{n}") };
        parameters[name] = json!(mapping(n).to_string());
    }
    moto.put("/idaa", &parameters).await?;
    let url = moto.url();
    let variables = ssm(&url, &[("MIRROR_APPLY", "true"), ("NOVI_MAX_PER_SECOND", "1000")]);
    let function = Function::start("mirror", &Value::Null, &variables, &private)?;
    let report = function.invoke(&json!({})).await?;
    assert_eq!((&report["status"], report["lists"].as_array().map(Vec::len)), (&json!("ok"), Some(13)), "{report}");
    for n in 0..13 {
        assert_eq!(mailman.roster(&format!("list{n}.lists.example.org"), "member").await?.len(), 1);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replication_group_is_found_and_found_again_where_it_moves() -> Result<()> {
    let elasticache = ElastiCache::start().await?;
    let url = elasticache.url();
    for (kind, tls, cluster) in [(Kind::Plain, false, false), (Kind::Tls, true, false), (Kind::Cluster, false, true)] {
        let mut first = Redis::start(kind)?;
        let second = Redis::start(Kind::Plain)?;
        elasticache.know("members", Known::Group(first.port(), tls, cluster));
        let authority = first.variables().into_iter().find(|(name, _)| name == "EXTRA_CA_CERTS").map(|(_, file)| file);
        let mut variables = CREDENTIALS.to_vec();
        variables.extend([("CACHE_ID", "members"), ("AWS_ENDPOINT_URL_ELASTICACHE", url.as_str())]);
        variables.extend(authority.as_deref().map(|file| ("EXTRA_CA_CERTS", file)));
        let world = Verification::start_with(&variables, |config| {
            if let Some(password) = first.password() {
                config["cache_password"] = json!(password);
            }
        })
        .await?;
        private(&world);
        assert_eq!(world.verify(world.member).await?.header("x-cache"), "miss", "{kind:?}");
        assert_eq!(world.verify(world.member).await?.header("x-cache"), "hit", "{kind:?}");

        first.kill();
        assert_eq!(world.verify(world.member).await?.header("x-cache"), "bypass", "{kind:?}");
        elasticache.know("members", Known::Group(second.port(), false, false));
        if first.password().is_some() {
            // The new one takes the same password.
            second.command(&["CONFIG", "SET", "requirepass", first.password().unwrap_or_default()])?;
        }
        // ElastiCache is asked once a second at most.
        while world.verify(newcomer(&world)).await?.header("x-cache") == "bypass" {}
        let other = newcomer(&world);
        assert_eq!(world.verify(other).await?.header("x-cache"), "miss", "{kind:?}");
        assert_eq!(world.verify(other).await?.header("x-cache"), "hit", "{kind:?}");
    }

    // One that ElastiCache does not know is a cache that is down, with its reason in the log.
    let mut variables = CREDENTIALS.to_vec();
    variables.extend([("CACHE_ID", "unknown"), ("AWS_ENDPOINT_URL_ELASTICACHE", url.as_str())]);
    let world = Verification::start(&variables).await?;
    assert_eq!(world.verify(world.member).await?.header("x-cache"), "bypass");
    assert!(
        world.function.log().contains("ElastiCache knows no serverless cache and no replication group by CACHE_ID")
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_serverless_cache_is_entered_with_a_token_for_each_connection() -> Result<()> {
    let elasticache = ElastiCache::start().await?;
    let authority = Authority::new()?;
    let port = free_port()?;
    let redis = Redis::start_announced(port)?;
    let door = Door::open(port, redis.port(), &authority, "members", "bridge").await?;
    elasticache.know("members", Known::Serverless(door.port));
    let (url, file) = (elasticache.url(), authority.file("ca.pem").display().to_string());
    let mut variables = CREDENTIALS.to_vec();
    variables.extend([
        ("CACHE_ID", "members"),
        ("CACHE_IAM_USER", "bridge"),
        ("AWS_ENDPOINT_URL", url.as_str()),
        ("EXTRA_CA_CERTS", file.as_str()),
    ]);
    let world = Verification::start(&variables).await?;
    private(&world);
    assert_eq!(world.verify(world.member).await?.header("x-cache"), "miss");
    assert_eq!(world.verify(world.member).await?.header("x-cache"), "hit");
    let last_token = || door.tokens.lock().unwrap_or_else(PoisonError::into_inner).last().cloned();
    let first = last_token();

    // What ElastiCache does after twelve hours. A token holds the second it was signed in, so this
    // goes on until the second has changed.
    while last_token() == first {
        redis.drop_clients()?;
        assert_eq!(world.verify(world.member).await?.header("x-cache"), "hit");
    }
    for verdict in door.verdicts.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        assert_eq!(verdict, &Ok(()));
    }

    // A token of somebody else's is refused, and members are verified all the same.
    variables.retain(|(name, _)| *name != "AWS_SECRET_ACCESS_KEY");
    variables.push(("AWS_SECRET_ACCESS_KEY", "another secret"));
    let stranger = Verification::start(&variables).await?;
    assert_eq!(stranger.verify(stranger.member).await?.header("x-cache"), "bypass");
    let last = door.verdicts.lock().unwrap_or_else(PoisonError::into_inner).last().cloned();
    assert!(last.is_some_and(|verdict| verdict.is_err_and(|why| why.contains("another signature"))));
    Ok(())
}
