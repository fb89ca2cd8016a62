//! The budget of calls to Novi that all instances share: its limits, strangers, and the circuit breaker.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fastrand::Rng;
use futures_util::future::try_join_all;
use serde_json::json;
use tests::api::{Request, Response};
use tests::directory::Directory;
use tests::function::Function;
use tests::harness::{Mirror, Verification};
use tests::novi::NoviFault;
use tests::redis::{Kind, Redis};
use uuid::Uuid;

/// The real limits of the budget, in place of the test harness's.
const LIMITS: [(&str, &str); 3] =
    [("NOVI_TOTAL_PER_SECOND", "18"), ("NOVI_TOTAL_PER_MINUTE", "570"), ("NOVI_TIMEOUT_MS", "8000")];

/// The verify function with a Redis, and several instances of it.
struct Budgeted {
    env: Verification,
    redis: Redis,
    variables: Vec<(String, String)>,
}

impl Budgeted {
    async fn start(variables: &[(&str, &str)]) -> Result<Self> {
        let redis = Redis::start(Kind::Plain)?;
        let mut all = redis.variables();
        all.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let env = Verification::start(&borrowed(&all)).await?;
        Ok(Self { env, redis, variables: all })
    }

    fn newcomer(&self) -> Uuid {
        self.env.novi.state().directory.add(&mut Rng::new())
    }

    fn calls(&self) -> usize {
        self.env.novi.state().count("/customers/")
    }

    /// Verifies a member who isn't in the cache.
    async fn verify_uncached(&self, id: Uuid) -> Result<Response> {
        self.redis.command(&["DEL", &format!("idaa:novi_member:{}", id.hyphenated())])?;
        self.env.verify(id).await
    }

    /// Verifies a UUID that Novi doesn't know. Returns the status.
    async fn verify_stranger(&self) -> Result<u16> {
        Ok(self.env.verify(Uuid::from_u128(fastrand::u128(..))).await?.status)
    }

    /// Returns the sum of a metric.
    fn metric(&self, name: &str) -> u64 {
        let log = self.env.function.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.filter_map(|line| line[name].as_u64()).sum()
    }
}

fn borrowed(variables: &[(String, String)]) -> Vec<(&str, &str)> {
    variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

/// Verifies a member until there is a verdict, and comes back when `Retry-After` says so, as a polite client does.
async fn verify_politely(env: &Verification, function: &Function, id: Uuid) -> Result<()> {
    loop {
        let response = env.send_to(function, &env.request(id)).await?;
        match response.status {
            200 => return Ok(()),
            429 => {
                let seconds = response.header("retry-after").parse().context("429 without Retry-After")?;
                tokio::time::sleep(Duration::from_secs(seconds)).await;
            }
            _ => anyhow::bail!("{} {}", response.status, response.code()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn uncached_members_over_many_instances_stay_within_novis_limits() -> Result<()> {
    const INSTANCES: usize = 8;
    const MEMBERS: usize = 80;
    let budgeted = Budgeted::start(&LIMITS).await?;
    budgeted.env.novi.state().limits = Some((20, 600));
    let variables = borrowed(&budgeted.variables);
    let instances: Vec<Function> =
        (0..INSTANCES).map(|_| budgeted.env.another_instance(&variables)).collect::<Result<_>>()?;
    let members: Vec<Uuid> = (0..MEMBERS).map(|_| budgeted.newcomer()).collect();
    let started = Instant::now();
    // An instance handles one request at a time.
    try_join_all(instances.iter().enumerate().map(async |(n, instance)| {
        for id in members.iter().skip(n).step_by(INSTANCES) {
            verify_politely(&budgeted.env, instance, *id).await?;
        }
        anyhow::Ok(())
    }))
    .await?;
    let elapsed = started.elapsed();
    assert_eq!(budgeted.calls(), MEMBERS);
    assert_eq!(budgeted.env.novi.state().refused, 0);
    // A place every 1/18 s.
    assert!(elapsed >= Duration::from_millis((MEMBERS as u64 - 1) * 1_000 / 18), "{elapsed:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_cannot_use_up_the_budget_of_members() -> Result<()> {
    let budgeted = Budgeted::start(&[("VERIFY_UNKNOWN_PER_MINUTE", "5")]).await?;
    let member = budgeted.env.member;
    assert_eq!(budgeted.env.verify(member).await?.status, 200);
    let mut statuses = Vec::new();
    for _ in 0..25 {
        statuses.push(budgeted.verify_stranger().await?);
    }
    // Ten a minute are looked up nevertheless, so that a newcomer isn't locked out for long.
    assert_eq!(statuses[..15], [404; 15]);
    assert_eq!(statuses[15..], [429; 10]);
    let calls = budgeted.calls();
    let newcomer = budgeted.newcomer();
    let response = budgeted.env.verify(newcomer).await?;
    assert_eq!((response.status, response.code()), (429, "rate_limited".to_owned()));
    assert!((1..=64).contains(&response.header("retry-after").parse::<u64>()?));
    assert_eq!(budgeted.calls(), calls, "Novi wasn't asked");

    // Who was verified before passes, also from another instance, and so does a caller with a bypass key.
    assert_eq!(budgeted.verify_uncached(member).await?.header("x-cache"), "miss");
    let other = budgeted.env.another_instance(&borrowed(&budgeted.variables))?;
    budgeted.redis.command(&["DEL", &format!("idaa:novi_member:{}", member.hyphenated())])?;
    assert_eq!(budgeted.env.send_to(&other, &budgeted.env.request(member)).await?.status, 200);
    let signed = Request::get(&Verification::path(newcomer)).header("x-api-key", &budgeted.env.keys.bypass);
    assert_eq!(budgeted.env.send(&signed).await?.status, 200);
    assert_eq!(budgeted.metric("StrangersLimited"), 11);
    // Nothing in Redis but the member's entries tells a UUID.
    let known = budgeted.redis.command(&["KEYS", "idaa:novi_known:*"])?;
    let hashes = budgeted.redis.command(&["ZRANGE", known.trim(), "0", "-1"])?;
    assert_eq!(hashes.lines().count(), 2);
    assert!(!hashes.contains(&member.simple().to_string()[..8]), "{hashes}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn breaker_answers_at_once_while_novi_does_not_respond() -> Result<()> {
    let budgeted = Budgeted::start(&[("NOVI_TIMEOUT_MS", "1000")]).await?;
    let other = budgeted.env.another_instance(&borrowed(&budgeted.variables))?;
    // The emulator starts a function with its first request.
    assert_eq!(budgeted.env.send_to(&other, &Request::get("/health")).await?.status, 200);
    budgeted.env.novi.state().fail("/customers/", usize::MAX, NoviFault::NoResponse);
    for _ in 0..3 {
        assert_eq!(budgeted.env.verify(budgeted.newcomer()).await?.code(), "novi_unreachable");
    }
    // The next call is the probe of this second. Meanwhile other instances answer without asking Novi.
    let calls = budgeted.calls();
    let (probe, refused) = (budgeted.newcomer(), budgeted.newcomer());
    let while_it_waits = async {
        budgeted.env.novi.wait_for("/customers/", calls + 1).await;
        budgeted.env.send_to(&other, &budgeted.env.request(refused)).await
    };
    let (probed, refused) = tokio::join!(budgeted.env.verify(probe), while_it_waits);
    for response in [probed?, refused?] {
        assert_eq!((response.status, response.code()), (503, "novi_unreachable".to_owned()));
    }
    assert_eq!(budgeted.calls(), calls + 1);
    assert!(other.log().contains(r#""BreakerOpen":1"#), "{}", other.log());

    // The first response closes it.
    budgeted.env.novi.state().clear_faults();
    while budgeted.env.verify(budgeted.newcomer()).await?.status != 200 {}
    let calls = budgeted.calls();
    for _ in 0..5 {
        assert_eq!(budgeted.env.verify(budgeted.newcomer()).await?.status, 200);
    }
    assert_eq!(budgeted.calls(), calls + 5);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn full_day_is_a_429_and_counts_both_functions() -> Result<()> {
    let budgeted = Budgeted::start(&[("NOVI_TOTAL_PER_DAY", "3")]).await?;
    for _ in 0..3 {
        assert_eq!(budgeted.env.verify(budgeted.newcomer()).await?.status, 200);
    }
    let response = budgeted.env.verify(budgeted.newcomer()).await?;
    assert_eq!((response.status, response.code()), (429, "rate_limited".to_owned()));
    assert_eq!((budgeted.calls(), budgeted.metric("BudgetExhausted")), (3, 1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mirror_waits_while_verification_cools_down_and_takes_its_share() -> Result<()> {
    let redis = Redis::start(Kind::Plain)?;
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), 6);
    let mappings = json!([{"group_guid": group, "list_id": "members.lists.example.org"}]);
    let mut variables = redis.variables();
    variables.push(("AWS_LAMBDA_LOG_LEVEL".to_owned(), "INFO".to_owned()));
    let env = Mirror::start(directory, mappings, &borrowed(&variables)).await?;
    env.mailman.create_list("members").await?;
    let digest = tests::novi::root_digest(&env.novi.root());
    redis.command(&["SET", &format!("idaa:novi_cooldown:{{{digest}}}"), "1", "PX", "1500"])?;
    let started = Instant::now();
    assert_eq!(env.run(json!({})).await?["status"], "ok");
    assert!(started.elapsed() >= Duration::from_millis(1_400), "it didn't wait");
    let calls = env.novi.state().count("/api/");
    assert!(env.function.log().contains(&format!(r#""NoviCallsToday":{calls}"#)), "{}", env.function.log());
    // Verification knows everyone that it has read.
    let hashes = redis.command(&["ZCARD", &format!("idaa:novi_known:{{{digest}}}")])?;
    assert_eq!(hashes.trim(), "6");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mirror_that_has_used_up_its_share_says_so() -> Result<()> {
    const LIST: &str = "members.lists.example.org";
    let redis = Redis::start(Kind::Plain)?;
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), 6);
    let mappings = json!([{"group_guid": group, "list_id": LIST}]);
    let mut variables = redis.variables();
    // The group, the list of all records, and three people.
    variables.push(("NOVI_MAX_PER_DAY".to_owned(), "5".to_owned()));
    // A run that has more time waits for the next hour, which may bring room.
    variables.push(("AWS_LAMBDA_FUNCTION_TIMEOUT".to_owned(), "40".to_owned()));
    let env = Mirror::start(directory, mappings, &borrowed(&variables)).await?;
    env.mailman.create_list("members").await?;
    for (subscribed, calls, outcome) in [(3, 5, ""), (0, 0, ", so the list is left unchanged")] {
        let report = env.run(json!({})).await?;
        let list = &report["lists"][0];
        let expected = (&json!("unfinished"), &json!(subscribed), &json!(calls));
        assert_eq!((&list["status"], &list["subscribed"], &report["novi_calls"]), expected, "{report}");
        let cause = format!("Novi's allowance had no room for more calls{outcome}.");
        assert!(list["reason"].as_str().is_some_and(|reason| reason.contains(&cause)), "{report}");
    }
    assert_eq!(env.mailman.memberships(LIST).await?.len(), 3);
    Ok(())
}
