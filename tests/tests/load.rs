//! One instance under many concurrent requests.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use futures_util::future::try_join_all;
use serde_json::json;
use tests::api::{Request, Response};
use tests::directory::Directory;
use tests::novi::{Novi, NoviFault};
use tests::privacy::Private;
use tests::redis::{Kind, Redis};
use tests::runtime::Instance;
use tokio::sync::Semaphore;
use uuid::Uuid;

const CONCURRENCY: usize = 64;

/// An instance of verify with a Novi and a Redis.
struct TestEnv {
    instance: Instance,
    novi: Novi,
    key: String,
    _redis: Redis,
}

impl TestEnv {
    async fn start() -> Result<Self> {
        let private = Private::default();
        let novi = Novi::start(Directory::default(), private.clone()).await?;
        let redis = Redis::start(Kind::Tls)?;
        let key = format!("s{:032x}", fastrand::u128(..));
        private.add(&key);
        let config = json!({
            "novi_api_root_url": novi.root(),
            "novi_idaa_api_key": novi.state().key,
            "api_keys": [{"name": "server", "key": key, "bypass": true}],
            "cache_password": redis.password(),
        });
        let mut variables = redis.variables();
        for (name, value) in [
            // Many requests wait for one Redis and one Novi on two cores.
            ("CACHE_TIMEOUT_MS", "10000"),
            ("NOVI_TIMEOUT_MS", "20000"),
            ("VERIFY_NOVI_MAX_PER_MINUTE", "100000"),
        ] {
            variables.push((name.to_owned(), value.to_owned()));
        }
        let variables: Vec<(&str, &str)> =
            variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let instance = Instance::start("verify", CONCURRENCY, &config, &variables, &private).await?;
        Ok(Self { instance, novi, key, _redis: redis })
    }

    fn newcomer(&self) -> Uuid {
        self.novi.state().directory.add(&mut Rng::new())
    }

    async fn request_with_key(&self, id: &str, key: &str) -> Result<Response> {
        let request = Request::get(&format!("/v3/action/idaa/novi_member/{id}")).header("x-api-key", key);
        Response::parse(&self.instance.invoke(&request.http_api("$default")).await?)
    }

    /// Verifies a member. The response must be about this member and no other.
    async fn verify(&self, id: Uuid) -> Result<Response> {
        let response = self.request_with_key(&id.hyphenated().to_string(), &self.key).await?;
        let address = self.novi.state().directory.address(id);
        let email = response.json()["email"].as_str().map(str::to_lowercase);
        ensure!(response.status == 200 && email == Some(address), "unexpected response: {}", response.status);
        Ok(response)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_requests_run_concurrently() -> Result<()> {
    let env = TestEnv::start().await?;
    let held = Arc::new(Semaphore::new(0));
    env.novi.state().fail("/customers/", CONCURRENCY, NoviFault::Hold(Arc::clone(&held)));
    let members: Vec<Uuid> = (0..CONCURRENCY).map(|_| env.newcomer()).collect();
    let all = try_join_all(members.iter().map(|id| env.verify(*id)));
    // No request completes before Novi has received all of them.
    let release = async {
        env.novi.wait_for("/customers/", CONCURRENCY).await;
        held.add_permits(CONCURRENCY);
        Ok(())
    };
    let (responses, ()) = tokio::try_join!(all, release)?;
    assert!(responses.iter().all(|response| response.header("x-cache") == "miss"));
    let again = try_join_all(members.iter().map(|id| env.verify(*id))).await?;
    assert!(again.iter().all(|response| response.header("x-cache") == "hit"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_for_one_member_call_novi_once() -> Result<()> {
    const REQUESTS: usize = 20;
    let env = TestEnv::start().await?;
    let (member, other) = (env.newcomer(), env.newcomer());
    let held = Arc::new(Semaphore::new(0));
    env.novi.state().fail("/customers/", CONCURRENCY, NoviFault::Hold(Arc::clone(&held)));
    let all = try_join_all((0..REQUESTS).map(|_| env.verify(member)));
    let release = async {
        // A request for another member is not held up. Its call comes after those of the requests before it.
        let (_, ()) = tokio::try_join!(env.verify(other), async {
            env.novi.wait_for(&other.hyphenated().to_string(), 1).await;
            held.add_permits(CONCURRENCY);
            Ok(())
        })?;
        Ok(())
    };
    let (responses, ()) = tokio::try_join!(all, release)?;
    assert!(responses.iter().all(|response| response.header("x-cache") == "miss"));
    assert_eq!(env.novi.state().count(&member.hyphenated().to_string()), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_for_one_member_share_a_failure() -> Result<()> {
    const REQUESTS: usize = 20;
    let env = TestEnv::start().await?;
    let member = env.newcomer().hyphenated().to_string();
    // A 503 from Novi is retried after at least 50 ms, by which time every request has arrived.
    for (fault, code, calls) in [
        (NoviFault::Respond(503, "text/plain", String::new()), "novi_error", 2),
        (NoviFault::RateLimited(Some("300".to_owned())), "rate_limited", 1),
    ] {
        let before = env.novi.state().count("/customers/");
        env.novi.state().fail("/customers/", usize::MAX, fault);
        let responses = try_join_all((0..REQUESTS).map(|_| env.request_with_key(&member, &env.key))).await?;
        for response in responses {
            assert_eq!(response.code(), code);
            assert!(response.header("retry-after").parse::<u64>().is_ok());
        }
        assert_eq!(env.novi.state().count("/customers/") - before, calls, "{code}");
        env.novi.state().clear_faults();
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_get_their_own_responses_and_memory_does_not_grow() -> Result<()> {
    const WAVES: usize = 30;
    let env = TestEnv::start().await?;
    let known = env.newcomer();
    env.verify(known).await?;
    let mut before = 0;
    for wave in 0..WAVES {
        let send = async |number: usize| -> Result<()> {
            match number % 4 {
                0 => drop(env.verify(known).await?),
                1 => drop(env.verify(env.newcomer()).await?),
                2 => {
                    let unknown = Uuid::from_u128(fastrand::u128(..)).hyphenated().to_string();
                    ensure!(env.request_with_key(&unknown, &env.key).await?.code() == "member_not_found");
                }
                _ => {
                    let id = known.hyphenated().to_string();
                    ensure!(env.request_with_key(&id, "a wrong key").await?.code() == "api_key_invalid");
                }
            }
            Ok(())
        };
        try_join_all((0..CONCURRENCY).map(send)).await.with_context(|| format!("in wave {wave}"))?;
        if wave == WAVES / 3 {
            before = env.instance.memory()?;
        }
    }
    let after = env.instance.memory()?;
    assert!(after < before + (4 << 20), "{before} bytes after a third, {after} at the end");
    Ok(())
}
