//! One instance under many requests at once.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use futures_util::future::try_join_all;
use serde_json::json;
use tests::api::{Answer, Request};
use tests::directory::Directory;
use tests::novi::{Fault, Novi};
use tests::privacy::Private;
use tests::redis::{Kind, Redis};
use tests::runtime::Instance;
use tokio::sync::Semaphore;
use uuid::Uuid;

const AT_ONCE: usize = 64;

struct World {
    instance: Instance,
    novi: Novi,
    key: String,
    _redis: Redis,
}

impl World {
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
            // Many wait for one Redis and one Novi on two cores.
            ("CACHE_TIMEOUT_MS", "10000"),
            ("NOVI_TIMEOUT_MS", "20000"),
            ("VERIFY_NOVI_MAX_PER_MINUTE", "100000"),
        ] {
            variables.push((name.to_owned(), value.to_owned()));
        }
        let variables: Vec<(&str, &str)> =
            variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let instance = Instance::start("verify", AT_ONCE, &config, &variables, &private).await?;
        Ok(Self { instance, novi, key, _redis: redis })
    }

    fn newcomer(&self) -> Uuid {
        self.novi.state().directory.add(&mut Rng::new())
    }

    async fn ask(&self, id: &str, key: &str) -> Result<Answer> {
        let request = Request::get(&format!("/v3/action/idaa/novi_member/{id}")).header("x-api-key", key);
        Answer::read(&self.instance.invoke(&request.http_api("$default")).await?)
    }

    /// Asks for a member, who must be told of and nobody else.
    async fn verify(&self, id: Uuid) -> Result<Answer> {
        let answer = self.ask(&id.hyphenated().to_string(), &self.key).await?;
        let address = self.novi.state().directory.address(id);
        let told = answer.json()["email"].as_str().map(str::to_lowercase);
        ensure!(answer.status == 200 && told == Some(address), "another answer: {}", answer.status);
        Ok(answer)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_requests_are_answered_side_by_side() -> Result<()> {
    let world = World::start().await?;
    let held = Arc::new(Semaphore::new(0));
    world.novi.state().fail("/customers/", AT_ONCE, Fault::Held(Arc::clone(&held)));
    let people: Vec<Uuid> = (0..AT_ONCE).map(|_| world.newcomer()).collect();
    let all = try_join_all(people.iter().map(|id| world.verify(*id)));
    // Nobody is answered before everybody has been asked for.
    let release = async {
        world.novi.wait_for("/customers/", AT_ONCE).await;
        held.add_permits(AT_ONCE);
        Ok(())
    };
    let (answers, ()) = tokio::try_join!(all, release)?;
    assert!(answers.iter().all(|answer| answer.header("x-cache") == "miss"));
    let again = try_join_all(people.iter().map(|id| world.verify(*id))).await?;
    assert!(again.iter().all(|answer| answer.header("x-cache") == "hit"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_another_s_answer_and_nothing_piles_up() -> Result<()> {
    const WAVES: usize = 30;
    let world = World::start().await?;
    let known = world.newcomer();
    world.verify(known).await?;
    let mut before = 0;
    for wave in 0..WAVES {
        let one = async |number: usize| -> Result<()> {
            match number % 4 {
                0 => drop(world.verify(known).await?),
                1 => drop(world.verify(world.newcomer()).await?),
                2 => {
                    let stranger = Uuid::from_u128(fastrand::u128(..)).hyphenated().to_string();
                    ensure!(world.ask(&stranger, &world.key).await?.code() == "member_not_found");
                }
                _ => {
                    let id = known.hyphenated().to_string();
                    ensure!(world.ask(&id, "a wrong key").await?.code() == "api_key_invalid");
                }
            }
            Ok(())
        };
        try_join_all((0..AT_ONCE).map(one)).await.with_context(|| format!("in wave {wave}"))?;
        if wave == WAVES / 3 {
            before = world.instance.memory()?;
        }
    }
    let after = world.instance.memory()?;
    assert!(after < before + (4 << 20), "{before} bytes after a third, {after} at the end");
    Ok(())
}
