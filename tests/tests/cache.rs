//! The shared cache, end to end: verify with real Redis servers, healthy and failing. Members are verified whatever
//! happens to Redis.

use std::io::Write;
use std::net::TcpListener;

use anyhow::Result;
use serde_json::{Value, json};
use tests::api::{Request, Response};
use tests::harness::Verification;
use tests::novi::NoviFault;
use tests::redis::{CertificateAuthority, Kind, Redis};
use uuid::Uuid;

const KINDS: [Kind; 3] = [Kind::Plain, Kind::Tls, Kind::Cluster];

/// The verify function with a Redis.
struct Cached {
    env: Verification,
    redis: Redis,
    variables: Vec<(String, String)>,
}

impl Cached {
    async fn start(kind: Kind, variables: &[(&str, &str)]) -> Result<Self> {
        let redis = Redis::start(kind)?;
        let mut all = redis.variables();
        all.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let password = redis.password().map(str::to_owned);
        let env = Verification::start_with(&borrowed(&all), |config| {
            if let Some(password) = &password {
                config["cache_password"] = json!(password);
            }
        })
        .await?;
        if let Some(password) = redis.password() {
            env.private.add(password);
        }
        Ok(Self { env, redis, variables: all })
    }

    fn newcomer(&self) -> Uuid {
        self.env.novi.state().directory.add(&mut fastrand::Rng::new())
    }

    /// Verifies a member, which must succeed, and returns the `X-Cache` header.
    async fn origin(&self, id: Uuid) -> Result<String> {
        let response = self.env.verify(id).await?;
        assert_eq!(response.status, 200, "{response:?}");
        Ok(response.header("x-cache").to_owned())
    }

    /// Checks the recovery after a fault: only one more request may bypass Redis.
    async fn assert_recovered(&self) -> Result<()> {
        let id = self.newcomer();
        self.origin(id).await?;
        let other = self.newcomer();
        assert_eq!(self.origin(other).await?, "miss");
        assert_eq!(self.origin(other).await?, "hit");
        Ok(())
    }

    async fn health(&self) -> Result<Response> {
        self.env.send(&Request::get("/health")).await
    }
}

fn borrowed(variables: &[(String, String)]) -> Vec<(&str, &str)> {
    variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

fn key(id: Uuid) -> String {
    format!("idaa:novi_member:{}", id.hyphenated())
}

#[tokio::test(flavor = "multi_thread")]
async fn member_verified_by_one_instance_is_a_hit_in_another() -> Result<()> {
    for kind in KINDS {
        let cached = Cached::start(kind, &[("CACHE_TTL_SECONDS", "1000"), ("CACHE_STALE_SECONDS", "500")]).await?;
        let member = cached.env.member;
        assert_eq!(cached.origin(member).await?, "miss", "{kind:?}");
        assert_eq!(cached.origin(member).await?, "hit", "{kind:?}");
        let other_instance = cached.env.another_instance(&borrowed(&cached.variables))?;
        let response = cached.env.send_to(&other_instance, &cached.env.request(member)).await?;
        assert_eq!(response.header("x-cache"), "hit", "{kind:?}");
        assert_eq!(cached.env.novi.state().count("/customers/"), 1);

        // Other tools may rely on the format of the entry.
        let entry: Value = serde_json::from_str(&cached.redis.command(&["GET", &key(member)])?)?;
        let mut expected = response.json();
        expected["cached_at"] = entry["cached_at"].clone();
        assert_eq!(entry, expected);
        assert!(entry["cached_at"].as_u64() > Some(1_700_000_000));
        let ttl: u64 = cached.redis.command(&["TTL", &key(member)])?.parse()?;
        assert!((1_400..=1_500).contains(&ttl), "{ttl}");
        let health = cached.health().await?;
        assert_eq!(health.json(), json!({"status": "ok", "checks": {"parameters": "ok", "cache": "ok"}}));

        // Neither a missing member nor an error is ever written.
        let unknown = Uuid::from_u128(fastrand::u128(..));
        assert_eq!(cached.env.verify(unknown).await?.status, 404);
        cached.env.novi.state().fail("/customers/", 1, NoviFault::BlockedByCdn);
        assert_eq!(cached.env.verify(cached.newcomer()).await?.status, 503);
        assert_eq!(cached.redis.command(&["EXISTS", &key(unknown)])?, "0");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn debug_log_has_the_duration_of_each_init_phase() -> Result<()> {
    let cached = Cached::start(Kind::Plain, &[("AWS_LAMBDA_LOG_LEVEL", "DEBUG")]).await?;
    cached.origin(cached.env.member).await?;
    let log = cached.env.function.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut phases: Vec<String> = lines
        .filter(|line| line["duration_ms"].as_f64().is_some())
        .filter_map(|line| line["phase"].as_str().map(str::to_owned))
        .collect();
    phases.sort();
    assert_eq!(phases, ["Novi", "Redis", "SDK", "TLS", "parameters", "settings"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn entry_expires_turns_stale_and_is_deleted_with_the_member() -> Result<()> {
    for kind in KINDS {
        let cached = Cached::start(kind, &[("CACHE_TTL_SECONDS", "1"), ("CACHE_STALE_SECONDS", "3600")]).await?;
        let member = cached.env.member;
        assert_eq!(cached.origin(member).await?, "miss");
        // After its TTL the entry is fetched again.
        while cached.origin(member).await? == "hit" {}
        cached.env.novi.state().fail("/customers/", usize::MAX, NoviFault::Respond(500, "x/y", String::new()));
        while cached.origin(member).await? == "hit" {}
        assert_eq!(cached.origin(member).await?, "stale", "{kind:?}");
        cached.env.novi.state().clear_faults();
        cached.env.novi.state().directory.people.remove(&member);
        assert_eq!(cached.env.verify(member).await?.status, 404);
        assert_eq!(cached.redis.command(&["EXISTS", &key(member)])?, "0", "a deleted member isn't served stale");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn corrupt_cache_entry_is_a_miss() -> Result<()> {
    for kind in KINDS {
        let cached = Cached::start(kind, &[]).await?;
        let member = cached.env.member;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
        let entry_with = |verified: bool, at: u64| {
            json!({"verified": verified, "full_name": "Someone Else", "email": null, "cached_at": at}).to_string()
        };
        for entry in [
            String::new(),
            "rubbish".to_owned(),
            "[]".to_owned(),
            "x".repeat(100_000),
            entry_with(false, now),
            entry_with(true, now + 3_600),
            entry_with(true, now - 20_000),
            r#"{"verified":true}"#.to_owned(),
        ] {
            cached.redis.command(&["SET", &key(member), &entry])?;
            assert_eq!(cached.origin(member).await?, "miss", "{kind:?} {entry:.40}");
            assert_eq!(cached.origin(member).await?, "hit", "{kind:?} {entry:.40}");
        }
        cached.redis.command(&["DEL", &key(member)])?;
        cached.redis.command(&["LPUSH", &key(member), "another type"])?;
        assert_eq!(cached.origin(member).await?, "miss", "{kind:?}");
        assert_eq!(cached.origin(member).await?, "hit", "{kind:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_crash_and_restart_cost_only_cache_hits() -> Result<()> {
    for kind in KINDS {
        let mut cached = Cached::start(kind, &[]).await?;
        let member = cached.env.member;
        assert_eq!(cached.origin(member).await?, "miss");
        cached.redis.kill();
        for _ in 0..5 {
            assert_eq!(cached.origin(member).await?, "bypass", "{kind:?}");
        }
        let health = cached.health().await?;
        assert_eq!(
            (health.status, &health.json()["status"], &health.json()["checks"]["cache"]),
            (200, &json!("degraded"), &json!("down"))
        );
        cached.redis.restart()?;
        cached.assert_recovered().await?;
        // Connections that the server closes are replaced transparently.
        assert_eq!(cached.origin(member).await?, "miss");
        cached.redis.drop_clients()?;
        assert_eq!(cached.origin(member).await?, "hit", "{kind:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_hits_continue_after_a_node_closes_its_connections() -> Result<()> {
    let cached = Cached::start(Kind::Cluster, &[]).await?;
    let ids: Vec<Uuid> = (0..12).map(|_| cached.newcomer()).collect();
    for id in &ids {
        assert_eq!(cached.origin(*id).await?, "miss");
    }
    for node in 0..3 {
        cached.redis.drop_clients_of(node)?;
        for id in &ids {
            assert_eq!(cached.origin(*id).await?, "hit", "after node {node}");
        }
    }
    assert!(!cached.env.function.log().contains("CACHE_CLUSTER"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_first_request_waits_for_a_frozen_redis() -> Result<()> {
    for kind in KINDS {
        let cached = Cached::start(kind, &[]).await?;
        let member = cached.env.member;
        assert_eq!(cached.origin(member).await?, "miss");
        cached.redis.freeze();
        for _ in 0..5 {
            assert_eq!(cached.origin(member).await?, "bypass", "{kind:?}");
        }
        // Only the first request waited for the timeout.
        let timeouts = cached.env.function.log().matches("response timed out").count();
        assert_eq!(timeouts, 1, "{kind:?}");
        cached.redis.thaw();
        cached.assert_recovered().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn full_redis_is_read_but_not_written() -> Result<()> {
    for kind in KINDS {
        let cached = Cached::start(kind, &[]).await?;
        assert_eq!(cached.origin(cached.env.member).await?, "miss");
        cached.redis.command_on_all(&["CONFIG", "SET", "maxmemory-policy", "noeviction"])?;
        cached.redis.command_on_all(&["CONFIG", "SET", "maxmemory", "1"])?;
        assert_eq!(cached.origin(cached.env.member).await?, "hit", "{kind:?}");
        let other = cached.newcomer();
        for _ in 0..3 {
            assert_eq!(cached.origin(other).await?, "miss", "{kind:?}");
        }
        cached.redis.command_on_all(&["CONFIG", "SET", "maxmemory", "0"])?;
        cached.assert_recovered().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn cache_is_bypassed_on_auth_failure_or_wrong_protocol() -> Result<()> {
    let redis = Redis::start(Kind::Tls)?;
    let valid = redis.variables();
    let other_authority = CertificateAuthority::new()?;
    let other_ca = other_authority.file("ca.pem").display().to_string();
    let tls_port = format!("redis://127.0.0.1:{}", redis.port());
    let cluster = Redis::start(Kind::Cluster)?;
    let not_redis = TcpListener::bind("127.0.0.1:0")?;
    let not_redis_url = format!("redis://{}", not_redis.local_addr()?);
    std::thread::spawn(move || {
        for stream in not_redis.incoming().flatten() {
            let _ = { stream }.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    for (name, change, password) in [
        ("a wrong password", None, json!("wrong")),
        ("no password", None, Value::Null),
        ("a certificate of another authority", Some(("EXTRA_CA_CERTS", other_ca.as_str())), json!(redis.password())),
        ("no additional authority", Some(("EXTRA_CA_CERTS", "")), json!(redis.password())),
        ("plain text to a TLS port", Some(("CACHE_URL", tls_port.as_str())), json!(redis.password())),
        ("a server that isn't Redis", Some(("CACHE_URL", not_redis_url.as_str())), Value::Null),
        ("a closed port", Some(("CACHE_URL", "redis://127.0.0.1:9")), Value::Null),
        ("a host name that doesn't resolve", Some(("CACHE_URL", "redis://no.such.host.invalid")), Value::Null),
    ] {
        let mut variables = valid.clone();
        if let Some((name, value)) = change {
            variables.retain(|(default, _)| default != name);
            variables.push((name.to_owned(), value.to_owned()));
        }
        let env = Verification::start_with(&borrowed(&variables), |config| config["cache_password"] = password).await?;
        for _ in 0..2 {
            let response = env.verify(env.member).await?;
            assert_eq!((response.status, response.header("x-cache")), (200, "bypass"), "{name}");
        }
        assert_eq!(env.send(&Request::get("/health")).await?.json()["checks"]["cache"], "down", "{name}");
    }

    // A non-cluster client gets MOVED for most keys of a cluster. That isn't a miss, and the log has the remedy.
    let url = format!("redis://127.0.0.1:{}", cluster.port());
    let env = Verification::start(&[("CACHE_URL", &url)]).await?;
    for _ in 0..20 {
        let id = env.novi.state().directory.add(&mut fastrand::Rng::new());
        assert_eq!(env.verify(id).await?.status, 200);
    }
    assert!(env.function.log().contains("set CACHE_CLUSTER=true"), "{}", env.function.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn cooldown_and_per_minute_limit_are_shared_between_instances() -> Result<()> {
    for kind in KINDS {
        let cached = Cached::start(kind, &[("VERIFY_NOVI_MAX_PER_MINUTE", "3")]).await?;
        let other_instance = cached.env.another_instance(&borrowed(&cached.variables))?;
        let verify_by_other = async |id: Uuid| cached.env.send_to(&other_instance, &cached.env.request(id)).await;
        let ids: Vec<Uuid> = (0..5).map(|_| cached.newcomer()).collect();
        assert_eq!(cached.origin(ids[0]).await?, "miss");
        assert_eq!(verify_by_other(ids[1]).await?.status, 200);
        assert_eq!(cached.origin(ids[2]).await?, "miss");
        for response in [verify_by_other(ids[3]).await?, cached.env.verify(ids[4]).await?] {
            assert_eq!((response.status, response.code().as_str()), (429, "rate_limited"), "{kind:?}");
            assert!((1..=60).contains(&response.header("retry-after").parse::<u64>()?));
        }
        assert_eq!(cached.env.novi.state().count("/customers/"), 3);

        let cached = Cached::start(kind, &[]).await?;
        let other_instance = cached.env.another_instance(&borrowed(&cached.variables))?;
        let ids = [cached.newcomer(), cached.newcomer()];
        cached.env.novi.state().fail("/customers/", 1, NoviFault::RateLimited(Some("7200".to_owned())));
        assert_eq!(cached.env.verify(ids[0]).await?.header("retry-after"), "7200");
        let response = cached.env.send_to(&other_instance, &cached.env.request(ids[1])).await?;
        assert_eq!(response.status, 429, "{kind:?}");
        assert!((200..=300).contains(&response.header("retry-after").parse::<u64>()?));
        assert_eq!(cached.env.novi.state().count("/customers/"), 1);
        let ttl: u64 = cached.redis.command(&["TTL", "idaa:novi_cooldown"])?.parse()?;
        assert!((200..=300).contains(&ttl));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn function_resumed_with_dead_sockets_responds_normally() -> Result<()> {
    for kind in KINDS {
        let cached = Cached::start(kind, &[]).await?;
        assert_eq!(cached.origin(cached.env.member).await?, "miss");
        let other = cached.newcomer();
        cached.env.function.freeze(true)?;
        cached.redis.drop_clients()?;
        cached.env.novi.drop_clients();
        cached.env.function.freeze(false)?;
        assert_eq!(cached.origin(cached.env.member).await?, "hit", "{kind:?}");
        assert_eq!(cached.origin(other).await?, "miss", "{kind:?}");
    }
    Ok(())
}
