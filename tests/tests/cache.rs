//! The shared cache, end to end: verify with real Redis servers, healthy and failing. Members are verified whatever
//! happens to Redis.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use shared::cache::{Connector, Lookup, MemberCache, NoviLimits};
use shared::http_client::{install_tls_provider, tls_config};
use shared::member::{Identity, MemberId};
use shared::novi::RootDigest;
use shared::rate_limit::Rates;
use shared::settings::{CacheLocation, CacheTtls};
use tests::api::{Request, Response};
use tests::harness::Verification;
use tests::novi::{NoviFault, root_digest};
use tests::redis::{CertificateAuthority, Kind, Redis};
use tests::tcp_proxy::{PROXY_ADDRESS, TcpProxy};
use tokio::sync::Semaphore;
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
        Self::start_on(Redis::start(kind)?, variables).await
    }

    async fn start_on(redis: Redis, variables: &[(&str, &str)]) -> Result<Self> {
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

    /// Checks that health reports this state of the cache, and that the service is up.
    async fn assert_health(&self, cache: &str) -> Result<()> {
        let health = self.health().await?;
        let status = if cache == "ok" { "ok" } else { "degraded" };
        let expected = json!({"status": status, "checks": {"parameters": "ok", "cache": cache}});
        assert_eq!((health.status, health.json()), (200, expected), "{:?}", self.warnings());
        Ok(())
    }

    /// Waits until all of these members are found in the cache, which is then well.
    async fn assert_eventually_used(&self, ids: &[Uuid], when: &str) -> Result<()> {
        let all_are_hits = async || {
            for id in ids {
                if self.origin(*id).await? != "hit" {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        eventually(when, all_are_hits).await?;
        self.assert_health("ok").await
    }

    /// Closes all connections to a cluster whose first server doesn't respond.
    fn drop_clients_of_cluster(&self) -> Result<()> {
        (1..6).try_for_each(|node| self.redis.drop_clients_of(node))
    }

    /// Returns the warnings about the cache, with their codes or causes.
    fn warnings(&self) -> Vec<String> {
        warnings(&self.env)
    }
}

/// Returns the warnings about the cache, with their codes or causes.
fn warnings(env: &Verification) -> Vec<String> {
    let log = env.function.log();
    log.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["level"] == "WARN" && line["message"].as_str().is_some_and(|text| text.contains("cache")))
        .map(|line| {
            let field = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
            format!("{}: {}{}", field("message"), field("code"), field("cause"))
        })
        .collect()
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
        expected["novi"] = json!(root_digest(&cached.env.novi.root()));
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
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let entry_with = |verified: bool, at: u64| {
            let novi = root_digest(&cached.env.novi.root());
            json!({"verified": verified, "full_name": "Someone Else", "email": null, "cached_at": at, "novi": novi})
                .to_string()
        };
        let entry_of = |novi: Value| {
            json!({"verified": true, "full_name": "Someone Else", "email": null, "cached_at": now, "novi": novi})
                .to_string()
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
            // Of another Novi, or of a version that didn't say which.
            entry_of(json!(root_digest("https://other.example.org/api"))),
            entry_of(json!(null)),
            json!({"verified": true, "full_name": "Someone Else", "email": null, "cached_at": now}).to_string(),
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
async fn deployments_with_one_redis_never_answer_for_each_other() -> Result<()> {
    let first = Cached::start(Kind::Plain, &[]).await?;
    let second = Verification::start(&borrowed(&first.variables)).await?;
    let member = first.env.member;
    assert_eq!(first.origin(member).await?, "miss");
    assert_eq!(first.origin(member).await?, "hit");
    // The second Novi has no such member.
    assert_eq!(second.verify(member).await?.status, 404);
    // A cooldown of one Novi says nothing about the other one.
    second.novi.state().fail("/customers/", 1, NoviFault::RateLimited(Some("60".to_owned())));
    assert_eq!(second.verify(second.member).await?.status, 429);
    assert_eq!(second.verify(Uuid::from_u128(fastrand::u128(..))).await?.status, 429);
    assert_eq!(first.origin(first.newcomer()).await?, "miss");
    let (digest, other) = (root_digest(&first.env.novi.root()), root_digest(&second.novi.root()));
    let keys = first.redis.command(&["KEYS", "*"])?;
    let shared: Vec<&str> = keys.lines().filter(|key| !key.starts_with("idaa:novi_member:")).collect();
    assert!(shared.iter().all(|key| key.contains(&digest) || key.contains(&other)), "{shared:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn late_response_never_replaces_a_newer_entry() -> Result<()> {
    let cached = Cached::start(Kind::Plain, &[("NOVI_TIMEOUT_MS", "20000")]).await?;
    let member = cached.env.member;
    let hold = Arc::new(Semaphore::new(0));
    cached.env.novi.state().fail("/customers/", 1, NoviFault::Hold(Arc::clone(&hold)));
    let unix_now = || SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_secs());
    let asked_before = unix_now()? + 1;
    let newer = async {
        cached.env.novi.wait_for("/customers/", 1).await;
        // The entries' clock has seconds.
        while unix_now()? <= asked_before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let novi = root_digest(&cached.env.novi.root());
        let entry =
            json!({"verified": true, "full_name": "Newer N.", "email": null, "cached_at": unix_now()?, "novi": novi});
        cached.redis.command(&["SET", &key(member), &entry.to_string()])?;
        hold.add_permits(1);
        anyhow::Ok(())
    };
    let (response, written) = tokio::join!(cached.env.verify(member), newer);
    written?;
    assert_eq!(response?.header("x-cache"), "miss");
    assert_eq!(cached.env.verify(member).await?.json()["full_name"], "Newer N.");
    // Without a newer entry, its time is when Novi was asked.
    cached.redis.command(&["DEL", &key(member)])?;
    cached.env.novi.state().fail("/customers/", 1, NoviFault::Hold(Arc::clone(&hold)));
    let calls = cached.env.novi.state().count("/customers/");
    let asked_before = unix_now()? + 1;
    let release = async {
        cached.env.novi.wait_for("/customers/", calls + 1).await;
        while unix_now()? <= asked_before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        hold.add_permits(1);
        anyhow::Ok(())
    };
    let (response, released) = tokio::join!(cached.env.verify(member), release);
    released?;
    assert_eq!(response?.header("x-cache"), "miss");
    let entry: Value = serde_json::from_str(&cached.redis.command(&["GET", &key(member)])?)?;
    assert!(entry["cached_at"].as_u64() <= Some(asked_before), "{entry}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_record_is_served_at_once_however_long_novi_takes() -> Result<()> {
    let variables = [("CACHE_TTL_SECONDS", "1"), ("CACHE_STALE_SECONDS", "3600"), ("NOVI_TIMEOUT_MS", "20000")];
    let cached = Cached::start(Kind::Plain, &variables).await?;
    let member = cached.env.member;
    assert_eq!(cached.origin(member).await?, "miss");
    cached.env.novi.state().fail("/customers/", usize::MAX, NoviFault::NoResponse);
    while cached.origin(member).await? == "hit" {}
    let response = tokio::time::timeout(Duration::from_secs(10), cached.env.verify(member)).await??;
    assert_eq!(response.header("x-cache"), "stale");
    // As long as the function itself says, whatever the machine adds.
    let log = cached.env.function.log();
    let completed = log.lines().rev().find(|line| line.contains(r#""request completed""#)).unwrap_or_default();
    let completed: Value = serde_json::from_str(completed)?;
    assert!(completed["duration_ms"].as_f64() < Some(2_000.0), "{completed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: a request takes the maximum of 28 s"]
async fn request_ends_within_its_maximum_whatever_its_parts_take() -> Result<()> {
    let variables = [("CACHE_TIMEOUT_MS", "10000"), ("NOVI_TIMEOUT_MS", "25000")];
    let cached = Cached::start(Kind::Plain, &variables).await?;
    // The connection to Redis exists, so the request waits for a response on it: 10 s, and then up to 25 s for Novi.
    assert_eq!(cached.origin(cached.env.member).await?, "miss");
    cached.redis.freeze();
    cached.env.novi.state().fail("/customers/", usize::MAX, NoviFault::NoResponse);
    let response = cached.env.verify(cached.env.member).await?;
    assert_eq!((response.status, response.code().as_str()), (503, "novi_unreachable"));
    assert!(response.header("retry-after").parse::<u64>()? >= 1);
    let log = cached.env.function.log();
    let completed = log.lines().rev().find(|line| line.contains(r#""request completed""#)).unwrap_or_default();
    let completed: Value = serde_json::from_str(completed)?;
    let expected = 27_000.0..29_000.0;
    assert!(completed["duration_ms"].as_f64().is_some_and(|ms| expected.contains(&ms)), "{completed}");
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
        cached.assert_health("down").await?;
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
async fn default_time_limits_allow_hits_and_bound_a_frozen_redis() -> Result<()> {
    for kind in KINDS {
        // An empty value removes the harness's own, longer limits.
        let cached = Cached::start(kind, &[("CACHE_TIMEOUT_MS", ""), ("NOVI_TIMEOUT_MS", "")]).await?;
        let member = cached.env.member;
        cached.origin(member).await?;
        cached.assert_eventually_used(&[member], "at the start").await?;
        cached.redis.freeze();
        assert_eq!(cached.origin(member).await?, "bypass", "{kind:?}");
        cached.redis.thaw();
        cached.assert_eventually_used(&[member], "after a freeze").await?;
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
            cached.assert_health("down").await?;
        }
        assert_eq!(cached.warnings(), ["cache rejected command: OOM"], "{kind:?}");
        cached.redis.command_on_all(&["CONFIG", "SET", "maxmemory", "0"])?;
        cached.assert_recovered().await?;
        cached.assert_health("ok").await?;
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
            // Spread over some seconds.
            assert!((1..=63).contains(&response.header("retry-after").parse::<u64>()?));
        }
        assert_eq!(cached.env.novi.state().count("/customers/"), 3);

        let cached = Cached::start(kind, &[]).await?;
        let other_instance = cached.env.another_instance(&borrowed(&cached.variables))?;
        let ids = [cached.newcomer(), cached.newcomer()];
        cached.env.novi.state().fail("/customers/", 1, NoviFault::RateLimited(Some("7200".to_owned())));
        assert_eq!(cached.env.verify(ids[0]).await?.header("retry-after"), "3600");
        let response = cached.env.send_to(&other_instance, &cached.env.request(ids[1])).await?;
        assert_eq!(response.status, 429, "{kind:?}");
        assert!((200..=303).contains(&response.header("retry-after").parse::<u64>()?));
        assert_eq!(cached.env.novi.state().count("/customers/"), 1);
        let cooldown = format!("idaa:novi_cooldown:{{{}}}", root_digest(&cached.env.novi.root()));
        let ttl: u64 = cached.redis.command(&["TTL", &cooldown])?.parse()?;
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

/// In this process, because only its own clock can be advanced: a minute passes, and no timer runs meanwhile.
#[tokio::test]
async fn idle_connection_that_died_silently_is_replaced_within_the_time_of_one_request() -> Result<()> {
    const TIMEOUT: Duration = Duration::from_secs(1);
    let idle = async || {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(60)).await;
        tokio::time::resume();
    };
    let (authority, address) = (CertificateAuthority::new()?, PROXY_ADDRESS.to_string());
    install_tls_provider();
    let tls = tls_config(&[CertificateDer::from_pem_file(authority.file("ca.pem"))?])?;
    let id = MemberId::parse("39120341-3c8e-47b0-9a40-45b5659b2044").context("a UUID")?;
    for cluster in [false, true] {
        let redis = if cluster { Redis::start_announced(1)? } else { Redis::start(Kind::Plain)? };
        let proxy = TcpProxy::start(redis.port(), authority.acceptor_for(&address, false)?).await?;
        if cluster {
            redis.command(&["CONFIG", "SET", "cluster-announce-ip", &address])?;
            redis.command(&["CONFIG", "SET", "cluster-announce-port", &proxy.port.to_string()])?;
        }
        let url = format!("rediss://{address}:{}", proxy.port).parse()?;
        let password = Box::new(|_| Box::pin(async { None }) as _);
        let connector = Connector::new(&CacheLocation::Url { url, cluster }, None, password, tls.clone());
        let rates = Rates { second: 1_000, minute: 1_000, day: 1_000 };
        let limits = NoviLimits { total: rates, share: rates, unknown: (1_000, 1_000), yields: false };
        let cache = MemberCache::new(CacheTtls { ttl: 1_000, stale: 0 }, limits, connector, TIMEOUT);
        cache.warm(Duration::from_secs(5)).await;
        let novi = RootDigest::unknown();
        let identity = Identity { full_name: Some("Ada L.".to_owned()), email: None };
        cache.session(&novi).put(id, String::new(), identity, SystemTime::now()).await;
        let connections = || -> Result<u64> {
            let stats = redis.command(&["INFO", "stats"])?;
            let count = stats.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
            Ok(count.context("Redis counts connections")?.trim().parse()?)
        };
        let before = connections()?;
        idle().await;
        assert!(matches!(cache.session(&novi).get(id).await, Lookup::Fresh(_)), "cluster: {cluster}");
        assert_eq!(connections()?, before + 1, "one that works is kept, and the other connection is redis-cli's");
        for _ in 0..2 {
            idle().await;
            proxy.strand_connections();
            let mut session = cache.session(&novi);
            assert!(matches!(session.get(id).await, Lookup::Fresh(_)), "cluster: {cluster}");
            assert!(session.admit(None, Duration::ZERO).await.is_ok() && !session.was_bypassed());
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_is_down_and_logged_once_until_it_is_writable_again() -> Result<()> {
    let primary = Redis::start(Kind::Plain)?;
    let cached = Cached::start(Kind::Plain, &[]).await?;
    cached.assert_health("ok").await?;
    for times in 1..=2 {
        cached.redis.follow(&primary)?;
        for _ in 0..3 {
            assert_eq!(cached.origin(cached.newcomer()).await?, "miss", "it can still be read");
            cached.assert_health("down").await?;
        }
        assert_eq!(cached.warnings(), vec!["cache rejected command: READONLY"; times]);
        cached.redis.command(&["REPLICAOF", "NO", "ONE"])?;
        cached.assert_recovered().await?;
        cached.assert_health("ok").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn health_alone_finds_a_cache_that_is_not_writable() -> Result<()> {
    let cached = Cached::start(Kind::Plain, &[]).await?;
    cached.redis.command(&["CONFIG", "SET", "maxmemory", "1"])?;
    for _ in 0..3 {
        cached.assert_health("down").await?;
    }
    assert_eq!(cached.warnings(), ["cache rejected command: OOM"]);
    cached.redis.command(&["CONFIG", "SET", "maxmemory", "0"])?;
    cached.assert_health("ok").await?;

    // The check leaves only one small key, which expires.
    for _ in 0..5 {
        cached.assert_health("ok").await?;
    }
    let keys = cached.redis.command(&["KEYS", "*"])?;
    assert!(keys.starts_with("idaa:") && keys.lines().count() == 1, "{keys}");
    let ttl: i64 = cached.redis.command(&["TTL", &keys])?.parse()?;
    assert!((1..=60).contains(&ttl), "{ttl}");
    assert!(cached.redis.command(&["STRLEN", &keys])?.parse::<usize>()? <= 16);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn health_check_does_not_evict_entries() -> Result<()> {
    let cached = Cached::start(Kind::Plain, &[]).await?;
    cached.assert_health("ok").await?;
    for _ in 0..5 {
        assert_eq!(cached.origin(cached.newcomer()).await?, "miss");
    }
    let redis = &cached.redis;
    redis.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"])?;
    let keys = redis.command(&["DBSIZE"])?;
    for _ in 0..20 {
        cached.assert_health("ok").await?;
    }
    assert_eq!(redis.command(&["DBSIZE"])?, keys, "one key, however often it is written");
    assert!(redis.command(&["INFO", "stats"])?.contains("evicted_keys:0"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn cache_user_who_may_only_read_is_down_and_logged_once() -> Result<()> {
    let password = "password-of-the-reader";
    let login = format!(">{password}");
    for (kind, name, rules) in [
        (Kind::Plain, "no command but reads", &["+@read"][..]),
        (Kind::Plain, "and those of connecting", &["+@read", "+@connection"]),
        (Kind::Plain, "and scripts, which may not write", &["+@read", "+@connection", "+eval", "+time"]),
        (Kind::Cluster, "a reader of a cluster", &["+@read", "+@connection", "+cluster|slots"]),
    ] {
        let redis = Redis::start(kind)?;
        redis.command_on_all(&[&["ACL", "SETUSER", "reader", "on", &login, "~idaa:*"], rules].concat())?;
        let url = format!("redis://reader@127.0.0.1:{}", redis.port());
        let is_cluster = (kind == Kind::Cluster).to_string();
        let variables = [("CACHE_URL", url.as_str()), ("CACHE_CLUSTER", &is_cluster)];
        let env = Verification::start_with(&variables, |config| config["cache_password"] = json!(password)).await?;
        env.private.add(password);
        for _ in 0..3 {
            let response = env.verify(env.member).await?;
            assert_eq!((response.status, response.header("x-cache")), (200, "miss"), "{name}: {:?}", warnings(&env));
            assert_eq!(env.send(&Request::get("/health")).await?.json()["checks"]["cache"], "down", "{name}");
        }
        assert_eq!(warnings(&env), ["cache rejected command: NOPERM"], "{name}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_send_no_command_that_the_server_rejects_or_a_user_may_lack() -> Result<()> {
    for kind in KINDS {
        let redis = Redis::start(kind)?;
        redis.command_on_all(&["CONFIG", "RESETSTAT"])?;
        let cached = Cached::start_on(redis, &[]).await?;
        assert_eq!(cached.origin(cached.env.member).await?, "miss", "{kind:?}");
        assert_eq!(cached.origin(cached.env.member).await?, "hit", "{kind:?}");
        for node in 0..cached.redis.ports().len() {
            // Servers before 7.2 reject CLIENT SETINFO.
            for (section, unwanted) in [("errorstats", "errorstat_ERR"), ("commandstats", "setinfo")] {
                let stats = cached.redis.command_on_node(node, &["INFO", section])?;
                assert!(!stats.contains(unwanted), "{kind:?}, node {node}: {stats}");
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn cache_without_scripts_is_down_and_logged_once() -> Result<()> {
    for kind in KINDS {
        let cached = Cached::start_on(Redis::start_with(kind, &["--rename-command", "EVAL", ""])?, &[]).await?;
        // Members are cached without a script. The limits that instances share aren't.
        for expected in ["miss", "hit", "hit"] {
            assert_eq!(cached.origin(cached.env.member).await?, expected, "{kind:?}");
            cached.assert_health("down").await?;
        }
        for _ in 0..3 {
            assert_eq!(cached.origin(cached.newcomer()).await?, "miss", "{kind:?}");
        }
        assert_eq!(cached.warnings(), ["cache rejected command: ERR unknown command"], "{kind:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_without_slots_is_bypassed_and_logged_once() -> Result<()> {
    let cached = Cached::start(Kind::Cluster, &[]).await?;
    cached.assert_health("ok").await?;
    cached.redis.command_on_all(&["FLUSHALL"])?;
    cached.redis.command_on_all(&["CLUSTER", "FLUSHSLOTS"])?;
    for _ in 0..3 {
        assert_eq!(cached.origin(cached.newcomer()).await?, "bypass");
        cached.assert_health("down").await?;
    }
    assert_eq!(cached.warnings(), ["cache rejected command: CLUSTERDOWN"]);
    for (node, [from, to]) in [["0", "5460"], ["5461", "10922"], ["10923", "16383"]].iter().enumerate() {
        cached.redis.command_on_node(node, &["CLUSTER", "ADDSLOTSRANGE", from, to])?;
    }
    eventually("the cluster is used again", async || Ok(cached.health().await?.json()["status"] == "ok")).await?;
    cached.assert_recovered().await
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_refuses_connections_is_down_with_its_error_in_the_log() -> Result<()> {
    for password in [None, Some("password-of-this-test")] {
        for kind in [Kind::Plain, Kind::Cluster] {
            let redis = Redis::start(kind)?;
            if let Some(password) = password {
                redis.command_on_all(&["CONFIG", "SET", "requirepass", password])?;
            }
            let held = hold_all_connections(&redis, password)?;
            let env = Verification::start_with(&borrowed(&redis.variables()), |config| {
                config["cache_password"] = json!(password);
            })
            .await?;
            for _ in 0..3 {
                assert_eq!(env.verify(env.member).await?.header("x-cache"), "bypass");
                assert_eq!(env.send(&Request::get("/health")).await?.json()["checks"]["cache"], "down");
            }
            let expected = ["cache connection failed: ERR max number of clients reached"];
            assert_eq!(warnings(&env), expected, "{kind:?} {password:?}");
            for mut admin in held {
                admin.write_all(b"CONFIG SET maxclients 1000\r\n")?;
            }
            eventually("the cache is used", async || {
                Ok(env.send(&Request::get("/health")).await?.json()["checks"]["cache"] == "ok")
            })
            .await?;
        }
    }
    Ok(())
}

/// Takes all the connections that the servers accept, and returns the clients that hold them.
fn hold_all_connections(redis: &Redis, password: Option<&str>) -> Result<Vec<TcpStream>> {
    let mut held = Vec::new();
    for port in redis.ports() {
        let admin = TcpStream::connect(("127.0.0.1", port))?;
        let login = password.map(|password| format!("AUTH {password}\r\n")).unwrap_or_default();
        (&admin).write_all(format!("{login}CONFIG SET maxclients 1\r\n").as_bytes())?;
        let mut reply = Vec::new();
        while !reply.ends_with(b"+OK\r\n".repeat(1 + usize::from(password.is_some())).as_slice()) {
            let mut byte = [0];
            (&admin).read_exact(&mut byte)?;
            reply.extend(byte);
        }
        held.push(admin);
    }
    Ok(held)
}

/// Waits until the condition is true.
async fn eventually(what: &str, condition: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !condition().await? {
        assert!(started.elapsed() < Duration::from_secs(60), "{what}: not within a minute");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Starts a server that replies to each PING with PONG, or with the error too if `to_ping`, and to each other command
/// with an error.
fn start_failing_server(error: &'static str, to_ping: bool) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("redis://{}", listener.local_addr()?);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = [0; 16 << 10];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    // Each command begins with its number of arguments.
                    for command in text.split_inclusive("\r\n").filter(|line| line.starts_with('*')) {
                        let is_ping = command == "*1\r\n" && !to_ping;
                        let reply = if is_ping { "+PONG".to_owned() } else { format!("-{error}") };
                        let _ = stream.write_all(format!("{reply}\r\n").as_bytes());
                    }
                }
            });
        }
    });
    Ok(url)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_error_of_the_server_is_logged_once_by_its_code() -> Result<()> {
    for (error, code) in [
        ("LOADING Redis is loading the dataset in memory", "LOADING"),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", "MASTERDOWN"),
        ("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.", "MISCONF"),
        ("NOREPLICAS Not enough good replicas to write.", "NOREPLICAS"),
        ("BUSY Redis is busy running a script.", "BUSY"),
        ("ERR Error running script (call to f_0): @user_script:1: -READONLY You can't write.", "READONLY"),
        ("ERR something that no one has seen before, about idaa:novi_member", "ERR"),
    ] {
        for to_ping in [false, true] {
            let url = start_failing_server(error, to_ping)?;
            let env = Verification::start(&[("CACHE_URL", &url)]).await?;
            for _ in 0..3 {
                let response = env.verify(env.member).await?;
                assert_eq!((response.status, response.header("x-cache")), (200, "bypass"), "{error}");
                assert_eq!(env.send(&Request::get("/health")).await?.json()["checks"]["cache"], "down", "{error}");
            }
            let message = if to_ping { "cache connection failed" } else { "cache rejected command" };
            assert_eq!(warnings(&env), [format!("{message}: {code}")], "{error}");
            assert!(!env.function.log().contains("no one has seen"), "the server's text may quote a key");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_is_used_again_after_the_configured_node_dies() -> Result<()> {
    let unlimited = [("VERIFY_NOVI_MAX_PER_MINUTE", "100000")];
    let mut cached = Cached::start_on(Redis::start_with_replicas()?, &unlimited).await?;
    let ids: Vec<Uuid> = (0..12).map(|_| cached.newcomer()).collect();
    for id in &ids {
        assert_eq!(cached.origin(*id).await?, "miss");
    }
    // The URL names this one.
    cached.redis.kill_node(0);
    cached.assert_eventually_used(&ids, "after the failover").await?;
    cached.drop_clients_of_cluster()?;
    cached.assert_eventually_used(&ids, "on a new connection").await?;
    // A server that has lost its configuration is not a node of the cluster any more.
    cached.redis.restart_empty_node(0)?;
    cached.drop_clients_of_cluster()?;
    cached.assert_eventually_used(&ids, "while the URL names another cluster without slots").await
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_is_used_again_after_the_configured_node_hangs() -> Result<()> {
    let unlimited = [("VERIFY_NOVI_MAX_PER_MINUTE", "100000")];
    let cached = Cached::start_on(Redis::start_with_replicas()?, &unlimited).await?;
    let ids: Vec<Uuid> = (0..12).map(|_| cached.newcomer()).collect();
    for id in &ids {
        assert_eq!(cached.origin(*id).await?, "miss");
    }
    cached.redis.freeze_node(0);
    cached.assert_eventually_used(&ids, "after the failover").await?;
    cached.drop_clients_of_cluster()?;
    cached.assert_eventually_used(&ids, "on a new connection").await
}

fn letters(count: usize) -> String {
    std::iter::repeat_with(fastrand::lowercase).take(count).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn entry_that_is_too_large_to_be_read_is_not_written() -> Result<()> {
    let cached = Cached::start(Kind::Plain, &[]).await?;
    let (large, largest) = (cached.newcomer(), cached.newcomer());
    for (id, length) in [(large, 20_000), (largest, 16_000)] {
        cached.env.novi.state().directory.person(id)["FirstName"] = json!(letters(length));
    }
    for _ in 0..2 {
        assert_eq!(cached.origin(large).await?, "miss");
        assert_eq!(cached.redis.command(&["EXISTS", &key(large)])?, "0");
    }
    assert_eq!(cached.origin(largest).await?, "miss");
    assert_eq!(cached.origin(largest).await?, "hit");
    assert_eq!(cached.warnings(), [""; 0]);
    Ok(())
}
