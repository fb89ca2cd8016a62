//! The mirror with a Redis: one run at a time, and members verified ahead.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use fastrand::Rng;
use serde_json::{Value, json};
use tests::api::{Answer, Request};
use tests::directory::Directory;
use tests::function::Function;
use tests::harness::{Mirror, Verification, list};
use tests::novi::Fault;
use tests::redis::{Kind, Redis};
use tokio::sync::Semaphore;
use uuid::Uuid;

const LIST: &str = "members.lists.example.org";
const LOCK: &str = "idaa:mirror:members.lists.example.org";

/// A mirror of one list with a Redis.
struct Shared {
    world: Mirror,
    redis: Redis,
    group: Uuid,
    variables: Vec<(String, String)>,
}

impl Shared {
    async fn start(kind: Kind, people: usize, more: &[(&str, &str)]) -> Result<Self> {
        let redis = Redis::start(kind)?;
        let mut variables = redis.variables();
        variables.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let mut directory = Directory::default();
        let group = directory.add_plain_group(&mut Rng::new(), people);
        directory.add(&mut Rng::new());
        let borrowed: Vec<(&str, &str)> =
            variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut world = Mirror::start(directory, json!([{"group_guid": group, "list_id": LIST}]), &borrowed).await?;
        if let Some(password) = redis.password() {
            world.private.add(password);
            world.config["cache_password"] = json!(password);
            // It was not invoked yet, so it starts with this.
            world.function.set_config(&world.config)?;
        }
        world.mailman.create_list("members").await?;
        Ok(Self { world, redis, group, variables })
    }

    fn borrowed(&self) -> Vec<(&str, &str)> {
        self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    fn members(&self) -> Vec<Uuid> {
        self.world.novi.state().directory.groups[&self.group].clone()
    }

    fn entry(&self, id: Uuid) -> Result<Option<Value>> {
        let text = self.redis.command(&["GET", &key(id)])?;
        Ok((!text.is_empty()).then(|| serde_json::from_str(&text)).transpose()?)
    }

    /// Puts an entry there, as verification did at that time.
    fn put(&self, id: Uuid, cached_at: u64) -> Result<()> {
        let entry = json!({"verified": true, "full_name": "Put B.", "email": null, "cached_at": cached_at}).to_string();
        self.redis.command(&["SET", &key(id), &entry]).map(|_| ())
    }

    fn is_locked(&self) -> Result<bool> {
        Ok(self.redis.command(&["EXISTS", LOCK])? == "1")
    }
}

fn key(id: Uuid) -> String {
    format!("idaa:novi_member:{}", id.hyphenated())
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_runs_never_write_to_one_list() -> Result<()> {
    for kind in [Kind::Plain, Kind::Tls, Kind::Cluster] {
        let shared = Shared::start(kind, 5, &[("AWS_LAMBDA_FUNCTION_TIMEOUT", "60")]).await?;
        let other = shared.world.another_instance(&shared.borrowed())?;
        let gate = Arc::new(Semaphore::new(0));
        shared.world.novi.state().fail("/groups/", 1, Fault::Held(Arc::clone(&gate)));
        let event = json!({});
        let first = shared.world.function.invoke(&event);
        let second = async {
            shared.world.novi.wait_for("/groups/", 1).await;
            let left: u64 = shared.redis.command(&["TTL", LOCK])?.parse()?;
            assert!((1..=61).contains(&left), "it outlives no invocation: {left}");
            let refused = other.invoke(&json!({})).await?.to_string();
            // Who only looks holds up nobody and is not held up.
            let looked = other.invoke(&json!({"dry_run": true})).await?;
            gate.add_permits(1);
            anyhow::Ok((refused, looked))
        };
        let (first, second) = tokio::join!(first, second);
        let (refused, looked) = second?;
        assert!(refused.contains("another run is at work on it and holds idaa:mirror:members"), "{kind:?}: {refused}");
        assert!(refused.contains("Mirror.failed"), "{kind:?}: {refused}");
        assert_eq!(looked["status"], "ok", "{kind:?}: {looked}");
        assert_eq!(first?["status"], "ok", "{kind:?}");
        assert!(!shared.is_locked()?, "{kind:?}: the lock is given back");
        assert_eq!(other.invoke(&json!({})).await?["status"], "ok", "{kind:?}");
        assert_eq!(shared.world.mailman.roster(LIST, "member").await?.len(), 5);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_is_given_back_however_a_run_ends_and_only_by_its_owner() -> Result<()> {
    let shared = Shared::start(Kind::Plain, 5, &[]).await?;
    let world = &shared.world;
    assert_eq!(world.run(json!({})).await?["status"], "ok");
    assert!(!shared.is_locked()?);
    // Blocked, refused by Novi, without its list.
    let members = world.novi.state().directory.groups.insert(shared.group, Vec::new());
    assert_eq!(world.run(json!({})).await?["status"], "blocked");
    assert!(!shared.is_locked()?);
    world.novi.state().directory.groups.extend(members.map(|members| (shared.group, members)));
    world.novi.state().fail("/", usize::MAX, Fault::Blocked);
    assert_eq!(world.run(json!({})).await?["status"], "failed");
    assert!(!shared.is_locked()?);
    world.novi.state().mend();
    // Out of time.
    let mut hurried = shared.borrowed();
    hurried.extend([("AWS_LAMBDA_FUNCTION_TIMEOUT", "11"), ("NOVI_MAX_PER_SECOND", "1")]);
    let late = world.another_instance(&hurried)?.invoke(&json!({})).await?.to_string();
    assert!(late.contains("Mirror.unfinished"), "{late}");
    assert!(!shared.is_locked()?);

    // Somebody else's is respected, before Novi is asked for anything, and stays.
    shared.redis.command(&["SET", LOCK, "somebody else"])?;
    world.novi.state().calls.clear();
    let report = world.run(json!({})).await?;
    assert_eq!((&report["status"], &report["novi_calls"]), (&json!("failed"), &json!(0)), "{report}");
    assert_eq!(world.novi.state().count("/"), 0);
    assert_eq!(shared.redis.command(&["GET", LOCK])?, "somebody else");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_gone_or_silent_ends_no_run() -> Result<()> {
    let mut shared = Shared::start(Kind::Plain, 5, &[]).await?;
    shared.redis.freeze();
    let report = shared.world.run(json!({})).await?;
    assert_eq!((&report["status"], &list(&report, LIST)["subscribed"]), (&json!("ok"), &json!(5)), "{report}");
    assert!(shared.world.function.log().contains("mirrored without"));
    shared.redis.thaw();
    shared.redis.kill();
    shared.world.novi.state().directory.groups.entry(shared.group).and_modify(|members| members.truncate(4));
    let report = shared.world.run(json!({})).await?;
    assert_eq!((&report["status"], &list(&report, LIST)["unsubscribed"]), (&json!("ok"), &json!(1)), "{report}");
    // It is back: locked, unlocked and warm again.
    shared.redis.restart()?;
    assert_eq!(shared.world.run(json!({})).await?["status"], "ok");
    assert!(!shared.is_locked()?);
    assert!(shared.entry(shared.members()[0])?.is_some());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_the_groups_are_verified_ahead() -> Result<()> {
    for kind in [Kind::Plain, Kind::Tls, Kind::Cluster] {
        let shared = Shared::start(kind, 60, &[("CACHE_TTL_SECONDS", "600"), ("CACHE_STALE_SECONDS", "60")]).await?;
        let world = &shared.world;
        let members = shared.members();
        let stranger = *world.novi.state().directory.people.keys().find(|id| !members.contains(id)).unwrap();
        {
            let mut state = world.novi.state();
            state.directory.people.remove(&members[0]);
            state.directory.people.insert(members[1], json!({}));
            state.directory.person(members[2])["Active"] = json!(false);
            state.directory.person(members[3])["Email"] = json!("ada lists@example.org");
            state.fail(&format!("/customers/{}", members[4].hyphenated()), usize::MAX, Fault::Forbidden);
        }
        let started = now();
        for id in [members[0], members[1], members[4], members[5]] {
            shared.put(id, started - 100)?;
        }
        // What is no entry, or one of a clock that is wrong, is not newer.
        shared.put(members[6], started + 5_000)?;
        shared.redis.command(&["SET", &key(members[7]), "rubbish"])?;
        shared.redis.command(&["LPUSH", &key(members[8]), "another type"])?;
        world.run(json!({"dry_run": true})).await?;
        assert!(shared.entry(members[10])?.is_none(), "{kind:?}: a dry run writes nothing");

        let report = world.run(json!({})).await?;
        assert_eq!(report["status"], "partial", "{kind:?}: {report}");
        assert!(shared.entry(members[0])?.is_none() && shared.entry(members[1])?.is_none(), "{kind:?}: gone from Novi");
        assert!(shared.entry(stranger)?.is_none(), "{kind:?}: members of mapped groups alone");
        assert_eq!(shared.entry(members[4])?.map(|entry| entry["full_name"].clone()), Some(json!("Put B.")));
        for id in members[5..].iter().chain([&members[2], &members[3]]) {
            let entry = shared.entry(*id)?.unwrap_or_default();
            assert!(entry["cached_at"].as_u64().is_some_and(|at| (started..=now()).contains(&at)), "{kind:?}: {entry}");
            let left: u64 = shared.redis.command(&["TTL", &key(*id)])?.parse()?;
            assert!((500..=660).contains(&left), "{kind:?}: {left}");
        }

        // Verification answers from it as it would have answered itself, and Novi is not asked.
        let secret = "bypass-key-of-this-test";
        world.private.add(secret);
        let mut config = world.config.clone();
        config["api_keys"] = json!([{"name": "test", "key": secret, "bypass": true}]);
        let verify = Function::start("verify", &config, &shared.borrowed(), &world.private)?;
        let ask = async |id| {
            let request = Request::get(&Verification::path(id)).header("x-api-key", secret);
            Answer::read(&verify.invoke(&request.http_api("$default")).await?)
        };
        world.novi.state().calls.clear();
        let mut ahead = Vec::new();
        for id in &members[2..4] {
            let answer = ask(*id).await?;
            assert_eq!((answer.status, answer.header("x-cache")), (200, "hit"), "{kind:?}");
            ahead.push((*id, answer.json()));
        }
        assert_eq!(world.novi.state().count("/"), 0, "{kind:?}");
        assert_eq!(ahead[1].1["email"], "ada+lists@example.org");
        for (id, answered) in ahead {
            shared.redis.command(&["DEL", &key(id)])?;
            assert_eq!(ask(id).await?.json(), answered, "{kind:?}: it is what verification itself answers");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_entry_is_left_as_it_is() -> Result<()> {
    let mut shared = Shared::start(Kind::Plain, 6, &[]).await?;
    let proxy = shared.world.put_proxy().await?;
    let members = shared.members();
    shared.world.novi.state().directory.people.remove(&members[1]);
    let gate = Arc::new(Semaphore::new(0));
    proxy.fail("/roster/member?", 1, tests::http_proxy::HttpFault::Held(Arc::clone(&gate)));
    let event = json!({});
    let run = shared.world.function.invoke(&event);
    let verified_meanwhile = async {
        // Novi has been read, and the lists are not done. The next second has come.
        proxy.wait_for("/roster/member?", 1).await;
        let read = now();
        while now() == read {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        shared.put(members[0], now())?;
        shared.put(members[1], now())?;
        gate.add_permits(1);
        anyhow::Ok(())
    };
    let (report, done) = tokio::join!(run, verified_meanwhile);
    done?;
    assert_eq!(report?["status"], "ok");
    for id in &members[..2] {
        assert_eq!(shared.entry(*id)?.map(|entry| entry["full_name"].clone()), Some(json!("Put B.")));
    }
    assert_ne!(shared.entry(members[2])?.map(|entry| entry["full_name"].clone()), Some(json!("Put B.")));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_cache_is_given_is_what_verification_would_give_it() -> Result<()> {
    let shared = Shared::start(Kind::Plain, 4, &[("REQUIRE_ACTIVE", "true")]).await?;
    let members = shared.members();
    shared.world.novi.state().directory.person(members[0])["Active"] = json!(false);
    shared.put(members[0], now() - 10)?;
    shared.world.run(json!({})).await?;
    assert!(shared.entry(members[0])?.is_none(), "where only who is active is verified");
    assert!(shared.entry(members[1])?.is_some());

    shared.redis.command(&["FLUSHALL"])?;
    let mut cold = shared.borrowed();
    cold.push(("MIRROR_WARMS_CACHE", "false"));
    assert_eq!(shared.world.another_instance(&cold)?.invoke(&json!({})).await?["status"], "ok");
    assert_eq!(shared.redis.command(&["DBSIZE"])?, "0");
    Ok(())
}
