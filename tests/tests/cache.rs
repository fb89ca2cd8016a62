//! The shared cache, end to end: verification before real Redis servers, well
//! and ill. Whatever becomes of the Redis, members are verified.

use std::io::Write;
use std::net::TcpListener;

use anyhow::Result;
use serde_json::{Value, json};
use tests::api::{Answer, Request};
use tests::harness::Verification;
use tests::novi::Fault;
use tests::redis::{Authority, Kind, Redis};
use uuid::Uuid;

const KINDS: [Kind; 3] = [Kind::Plain, Kind::Tls, Kind::Cluster];

/// Verification before a Redis.
struct Cached {
    world: Verification,
    redis: Redis,
    variables: Vec<(String, String)>,
}

impl Cached {
    async fn start(kind: Kind, variables: &[(&str, &str)]) -> Result<Self> {
        let redis = Redis::start(kind)?;
        let mut all = redis.variables();
        all.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let password = redis.password().map(str::to_owned);
        let world = Verification::start_with(&borrowed(&all), |config| {
            if let Some(password) = &password {
                config["cache_password"] = json!(password);
            }
        })
        .await?;
        if let Some(password) = redis.password() {
            world.private.add(password);
        }
        Ok(Self { world, redis, variables: all })
    }

    fn newcomer(&self) -> Uuid {
        self.world.novi.state().directory.add(&mut fastrand::Rng::new())
    }

    /// The `X-Cache` of a member who must be verified.
    async fn origin(&self, id: Uuid) -> Result<String> {
        let answer = self.world.verify(id).await?;
        assert_eq!(answer.status, 200, "{answer:?}");
        Ok(answer.header("x-cache").to_owned())
    }

    /// After a fault has ended: one request may still go past the Redis, the next may not.
    async fn assert_full_service(&self) -> Result<()> {
        let id = self.newcomer();
        self.origin(id).await?;
        let other = self.newcomer();
        assert_eq!(self.origin(other).await?, "miss");
        assert_eq!(self.origin(other).await?, "hit");
        Ok(())
    }

    async fn health(&self) -> Result<Answer> {
        self.world.send(&Request::get("/health")).await
    }
}

fn borrowed(variables: &[(String, String)]) -> Vec<(&str, &str)> {
    variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

fn key(id: Uuid) -> String {
    format!("idaa:novi_member:{}", id.hyphenated())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whom_one_instance_verified_is_known_to_all() -> Result<()> {
    for kind in KINDS {
        let cached = Cached::start(kind, &[("CACHE_TTL_SECONDS", "1000"), ("CACHE_STALE_SECONDS", "500")]).await?;
        let member = cached.world.member;
        assert_eq!(cached.origin(member).await?, "miss", "{kind:?}");
        assert_eq!(cached.origin(member).await?, "hit", "{kind:?}");
        let other = cached.world.another_instance(&borrowed(&cached.variables))?;
        let answer = cached.world.send_to(&other, &cached.world.request(member)).await?;
        assert_eq!(answer.header("x-cache"), "hit", "{kind:?}");
        assert_eq!(cached.world.novi.state().count("/customers/"), 1);

        // The entry is what other tools may rely on.
        let entry: Value = serde_json::from_str(&cached.redis.command(&["GET", &key(member)])?)?;
        let mut expected = answer.json();
        expected["cached_at"] = entry["cached_at"].clone();
        assert_eq!(entry, expected);
        assert!(entry["cached_at"].as_u64() > Some(1_700_000_000));
        let left: u64 = cached.redis.command(&["TTL", &key(member)])?.parse()?;
        assert!((1_400..=1_500).contains(&left), "{left}");
        let health = cached.health().await?;
        assert_eq!(health.json(), json!({"status": "ok", "checks": {"parameters": "ok", "cache": "ok"}}));

        // Nobody who is no member, and no error, is ever written.
        let nobody = Uuid::from_u128(fastrand::u128(..));
        assert_eq!(cached.world.verify(nobody).await?.status, 404);
        cached.world.novi.state().fail("/customers/", 1, Fault::Blocked);
        assert_eq!(cached.world.verify(cached.newcomer()).await?.status, 503);
        assert_eq!(cached.redis.command(&["EXISTS", &key(nobody)])?, "0");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_tells_at_debug_what_each_phase_of_the_start_took() -> Result<()> {
    let cached = Cached::start(Kind::Plain, &[("AWS_LAMBDA_LOG_LEVEL", "DEBUG")]).await?;
    cached.origin(cached.world.member).await?;
    let log = cached.world.function.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut phases: Vec<String> = lines
        .filter(|line| line["milliseconds"].as_f64().is_some())
        .filter_map(|line| line["phase"].as_str().map(str::to_owned))
        .collect();
    phases.sort();
    assert_eq!(phases, ["Novi", "Redis", "SDK", "TLS", "parameters", "settings"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_expires_turns_stale_and_is_forgotten() -> Result<()> {
    for kind in KINDS {
        let cached = Cached::start(kind, &[("CACHE_TTL_SECONDS", "1"), ("CACHE_STALE_SECONDS", "3600")]).await?;
        let member = cached.world.member;
        assert_eq!(cached.origin(member).await?, "miss");
        // Past its time it is fetched again.
        while cached.origin(member).await? == "hit" {}
        cached.world.novi.state().fail("/customers/", usize::MAX, Fault::Answer(500, "x/y", String::new()));
        while cached.origin(member).await? == "hit" {}
        assert_eq!(cached.origin(member).await?, "stale", "{kind:?}");
        cached.world.novi.state().mend();
        cached.world.novi.state().directory.people.remove(&member);
        assert_eq!(cached.world.verify(member).await?.status, 404);
        assert_eq!(cached.redis.command(&["EXISTS", &key(member)])?, "0", "who is gone does not come back stale");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rubbish_in_the_cache_is_a_miss() -> Result<()> {
    for kind in KINDS {
        let cached = Cached::start(kind, &[]).await?;
        let member = cached.world.member;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
        let entry = |verified: bool, at: u64| {
            json!({"verified": verified, "full_name": "Somebody Else", "email": null, "cached_at": at}).to_string()
        };
        for rubbish in [
            String::new(),
            "rubbish".to_owned(),
            "[]".to_owned(),
            "x".repeat(100_000),
            entry(false, now),
            entry(true, now + 3_600),
            entry(true, now - 20_000),
            r#"{"verified":true}"#.to_owned(),
        ] {
            cached.redis.command(&["SET", &key(member), &rubbish])?;
            assert_eq!(cached.origin(member).await?, "miss", "{kind:?} {rubbish:.40}");
            assert_eq!(cached.origin(member).await?, "hit", "{kind:?} {rubbish:.40}");
        }
        cached.redis.command(&["DEL", &key(member)])?;
        cached.redis.command(&["LPUSH", &key(member), "another type"])?;
        assert_eq!(cached.origin(member).await?, "miss", "{kind:?}");
        assert_eq!(cached.origin(member).await?, "hit", "{kind:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_dies_and_comes_back_costs_nothing_but_the_hits() -> Result<()> {
    for kind in KINDS {
        let mut cached = Cached::start(kind, &[]).await?;
        let member = cached.world.member;
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
        cached.assert_full_service().await?;
        // Connections that the server closes are replaced without anybody's noticing.
        assert_eq!(cached.origin(member).await?, "miss");
        cached.redis.drop_clients()?;
        assert_eq!(cached.origin(member).await?, "hit", "{kind:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_closes_one_connection_is_still_a_cluster() -> Result<()> {
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
    assert!(!cached.world.function.log().contains("CACHE_CLUSTER"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_freezes_is_not_waited_for_by_everybody() -> Result<()> {
    for kind in KINDS {
        let cached = Cached::start(kind, &[]).await?;
        let member = cached.world.member;
        assert_eq!(cached.origin(member).await?, "miss");
        cached.redis.freeze();
        for _ in 0..5 {
            assert_eq!(cached.origin(member).await?, "bypass", "{kind:?}");
        }
        // Only the first of them waited until its time was up.
        let waited = cached.world.function.log().matches("no answer in time").count();
        assert_eq!(waited, 1, "{kind:?}");
        cached.redis.thaw();
        cached.assert_full_service().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_full_is_read_and_not_written() -> Result<()> {
    for kind in KINDS {
        let cached = Cached::start(kind, &[]).await?;
        assert_eq!(cached.origin(cached.world.member).await?, "miss");
        cached.redis.command_everywhere(&["CONFIG", "SET", "maxmemory-policy", "noeviction"])?;
        cached.redis.command_everywhere(&["CONFIG", "SET", "maxmemory", "1"])?;
        assert_eq!(cached.origin(cached.world.member).await?, "hit", "{kind:?}");
        let other = cached.newcomer();
        for _ in 0..3 {
            assert_eq!(cached.origin(other).await?, "miss", "{kind:?}");
        }
        cached.redis.command_everywhere(&["CONFIG", "SET", "maxmemory", "0"])?;
        cached.assert_full_service().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_does_not_let_us_in_or_is_none_is_gone_past() -> Result<()> {
    let redis = Redis::start(Kind::Tls)?;
    let right = redis.variables();
    let other = Authority::new()?;
    let other_ca = other.file("ca.pem").display().to_string();
    let tls_port = format!("redis://127.0.0.1:{}", redis.port());
    let cluster = Redis::start(Kind::Cluster)?;
    let rubbish = TcpListener::bind("127.0.0.1:0")?;
    let rubbish_url = format!("redis://{}", rubbish.local_addr()?);
    std::thread::spawn(move || {
        for stream in rubbish.incoming().flatten() {
            let _ = { stream }.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    for (name, change, password) in [
        ("a wrong password", None, json!("wrong")),
        ("no password", None, Value::Null),
        ("a certificate of another authority", Some(("EXTRA_CA_CERTS", other_ca.as_str())), json!(redis.password())),
        ("no additional authority", Some(("EXTRA_CA_CERTS", "")), json!(redis.password())),
        ("plain text to TLS", Some(("CACHE_URL", tls_port.as_str())), json!(redis.password())),
        ("no Redis at all", Some(("CACHE_URL", rubbish_url.as_str())), Value::Null),
        ("nobody there", Some(("CACHE_URL", "redis://127.0.0.1:9")), Value::Null),
        ("a name that is none", Some(("CACHE_URL", "redis://no.such.host.invalid")), Value::Null),
    ] {
        let mut variables = right.clone();
        if let Some((name, value)) = change {
            variables.retain(|(usual, _)| usual != name);
            variables.push((name.to_owned(), value.to_owned()));
        }
        let world =
            Verification::start_with(&borrowed(&variables), |config| config["cache_password"] = password).await?;
        for _ in 0..2 {
            let answer = world.verify(world.member).await?;
            assert_eq!((answer.status, answer.header("x-cache")), (200, "bypass"), "{name}");
        }
        assert_eq!(world.send(&Request::get("/health")).await?.json()["checks"]["cache"], "down", "{name}");
    }

    // A plain client at a cluster is told MOVED for most keys: that is no miss, and the log says what to do.
    let url = format!("redis://127.0.0.1:{}", cluster.port());
    let world = Verification::start(&[("CACHE_URL", &url)]).await?;
    for _ in 0..20 {
        let id = world.novi.state().directory.add(&mut fastrand::Rng::new());
        assert_eq!(world.verify(id).await?.status, 200);
    }
    assert!(world.function.log().contains("set CACHE_CLUSTER=true"), "{}", world.function.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cooldown_and_the_minute_s_allowance_are_everybody_s() -> Result<()> {
    for kind in KINDS {
        let cached = Cached::start(kind, &[("VERIFY_NOVI_MAX_PER_MINUTE", "3")]).await?;
        let other = cached.world.another_instance(&borrowed(&cached.variables))?;
        let ask_other = async |id: Uuid| cached.world.send_to(&other, &cached.world.request(id)).await;
        let ids: Vec<Uuid> = (0..5).map(|_| cached.newcomer()).collect();
        assert_eq!(cached.origin(ids[0]).await?, "miss");
        assert_eq!(ask_other(ids[1]).await?.status, 200);
        assert_eq!(cached.origin(ids[2]).await?, "miss");
        for answer in [ask_other(ids[3]).await?, cached.world.verify(ids[4]).await?] {
            assert_eq!((answer.status, answer.code().as_str()), (429, "rate_limited"), "{kind:?}");
            assert!((1..=60).contains(&answer.header("retry-after").parse::<u64>()?));
        }
        assert_eq!(cached.world.novi.state().count("/customers/"), 3);

        let cached = Cached::start(kind, &[]).await?;
        let other = cached.world.another_instance(&borrowed(&cached.variables))?;
        let ids = [cached.newcomer(), cached.newcomer()];
        cached.world.novi.state().fail("/customers/", 1, Fault::RateLimited(Some("7200".to_owned())));
        assert_eq!(cached.world.verify(ids[0]).await?.header("retry-after"), "7200");
        let answer = cached.world.send_to(&other, &cached.world.request(ids[1])).await?;
        assert_eq!(answer.status, 429, "{kind:?}");
        assert!((200..=300).contains(&answer.header("retry-after").parse::<u64>()?));
        assert_eq!(cached.world.novi.state().count("/customers/"), 1);
        let left: u64 = cached.redis.command(&["TTL", "idaa:novi_cooldown"])?.parse()?;
        assert!((200..=300).contains(&left));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_function_thaws_with_dead_sockets_and_answers_all_the_same() -> Result<()> {
    for kind in KINDS {
        let cached = Cached::start(kind, &[]).await?;
        assert_eq!(cached.origin(cached.world.member).await?, "miss");
        let other = cached.newcomer();
        cached.world.function.freeze(true)?;
        cached.redis.drop_clients()?;
        cached.world.novi.drop_clients();
        cached.world.function.freeze(false)?;
        assert_eq!(cached.origin(cached.world.member).await?, "hit", "{kind:?}");
        assert_eq!(cached.origin(other).await?, "miss", "{kind:?}");
    }
    Ok(())
}
