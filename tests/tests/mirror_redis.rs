//! The mirror with a Redis: only one run at a time, and a prewarmed cache for verify.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use fastrand::Rng;
use serde_json::{Value, json};
use tests::api::{Request, Response};
use tests::directory::Directory;
use tests::function::Function;
use tests::harness::{Mirror, Verification, list, report};
use tests::http_proxy::HttpFault;
use tests::novi::{NoviFault, root_digest};
use tests::redis::{Kind, Redis};
use tokio::sync::Semaphore;
use uuid::Uuid;

const LIST: &str = "members.lists.example.org";
const LOCK: &str = "idaa:mirror:members.lists.example.org";

/// A mirror of one list with a Redis.
struct WithRedis {
    env: Mirror,
    redis: Redis,
    group: Uuid,
    variables: Vec<(String, String)>,
}

impl WithRedis {
    async fn start(kind: Kind, members: usize, more: &[(&str, &str)]) -> Result<Self> {
        let redis = Redis::start(kind)?;
        let mut variables = redis.variables();
        variables.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let mut directory = Directory::default();
        let group = directory.add_plain_group(&mut Rng::new(), members);
        directory.add(&mut Rng::new());
        let borrowed: Vec<(&str, &str)> =
            variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut env = Mirror::start(directory, json!([{"group_guid": group, "list_id": LIST}]), &borrowed).await?;
        if let Some(password) = redis.password() {
            env.private.add(password);
            env.config["cache_password"] = json!(password);
            // The function wasn't invoked yet, so it starts with this.
            env.function.set_config(&env.config)?;
        }
        env.mailman.create_list("members").await?;
        Ok(Self { env, redis, group, variables })
    }

    fn borrowed(&self) -> Vec<(&str, &str)> {
        self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    fn members(&self) -> Vec<Uuid> {
        self.env.novi.state().directory.groups[&self.group].clone()
    }

    fn entry(&self, id: Uuid) -> Result<Option<Value>> {
        let text = self.redis.command(&["GET", &key(id)])?;
        Ok((!text.is_empty()).then(|| serde_json::from_str(&text)).transpose()?)
    }

    /// Writes an entry as if verify had cached it at that time.
    fn put(&self, id: Uuid, cached_at: u64) -> Result<()> {
        let novi = root_digest(&self.env.novi.root());
        let entry =
            json!({"verified": true, "full_name": "Put B.", "email": null, "cached_at": cached_at, "novi": novi});
        self.redis.command(&["SET", &key(id), &entry.to_string()]).map(|_| ())
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
async fn concurrent_runs_never_write_to_the_same_list() -> Result<()> {
    for kind in [Kind::Plain, Kind::Tls, Kind::Cluster] {
        let setup = WithRedis::start(kind, 5, &[("AWS_LAMBDA_FUNCTION_TIMEOUT", "60")]).await?;
        let other = setup.env.another_instance(&setup.borrowed())?;
        let hold = Arc::new(Semaphore::new(0));
        setup.env.novi.state().fail("/groups/", 1, NoviFault::Hold(Arc::clone(&hold)));
        let event = json!({});
        let first = setup.env.function.invoke(&event);
        let second = async {
            setup.env.novi.wait_for("/groups/", 1).await;
            let ttl: u64 = setup.redis.command(&["TTL", LOCK])?.parse()?;
            assert!((1..=61).contains(&ttl), "the lock must expire with the invocation: {ttl}");
            let rejected = other.invoke(&json!({})).await?.to_string();
            // A dry run neither blocks other runs nor is blocked.
            let dry_run = other.invoke(&json!({"dry_run": true})).await?;
            hold.add_permits(1);
            anyhow::Ok((rejected, dry_run))
        };
        let (first, second) = tokio::join!(first, second);
        let (rejected, dry_run) = second?;
        assert!(rejected.contains("Another run holds the lock idaa:mirror:members"), "{kind:?}: {rejected}");
        assert!(rejected.contains("Mirror.failed"), "{kind:?}: {rejected}");
        assert_eq!(dry_run["status"], "ok", "{kind:?}: {dry_run}");
        assert_eq!(first?["status"], "ok", "{kind:?}");
        assert!(!setup.is_locked()?, "{kind:?}: the lock is released");
        assert_eq!(other.invoke(&json!({})).await?["status"], "ok", "{kind:?}");
        assert_eq!(setup.env.mailman.roster(LIST, "member").await?.len(), 5);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_is_released_however_a_run_ends_and_only_by_its_owner() -> Result<()> {
    let setup = WithRedis::start(Kind::Plain, 5, &[]).await?;
    let env = &setup.env;
    assert_eq!(env.run(json!({})).await?["status"], "ok");
    assert!(!setup.is_locked()?);
    // Runs that are blocked, or that Novi rejects.
    let members = env.novi.state().directory.groups.insert(setup.group, Vec::new());
    assert_eq!(env.run(json!({})).await?["status"], "blocked");
    assert!(!setup.is_locked()?);
    env.novi.state().directory.groups.extend(members.map(|members| (setup.group, members)));
    env.novi.state().fail("/", usize::MAX, NoviFault::BlockedByCdn);
    assert_eq!(env.run(json!({})).await?["status"], "failed");
    assert!(!setup.is_locked()?);
    env.novi.state().clear_faults();
    // A run that runs out of time.
    let mut short = setup.borrowed();
    short.extend([("AWS_LAMBDA_FUNCTION_TIMEOUT", "11"), ("NOVI_MAX_PER_SECOND", "1")]);
    let unfinished = report(env.another_instance(&short)?.invoke(&json!({})).await?)?;
    assert_eq!(unfinished["status"], "unfinished", "{unfinished}");
    assert!(!setup.is_locked()?);

    // The lock of another owner is respected before Novi is called, and stays in place.
    setup.redis.command(&["SET", LOCK, "another owner"])?;
    env.novi.state().calls.clear();
    let report = env.run(json!({})).await?;
    assert_eq!((&report["status"], &report["novi_calls"]), (&json!("failed"), &json!(0)), "{report}");
    assert_eq!(env.novi.state().count("/"), 0);
    assert_eq!(setup.redis.command(&["GET", LOCK])?, "another owner");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn run_continues_if_redis_is_down_or_silent() -> Result<()> {
    let mut setup = WithRedis::start(Kind::Plain, 5, &[]).await?;
    setup.redis.freeze();
    let report = setup.env.run(json!({})).await?;
    assert_eq!((&report["status"], &list(&report, LIST)["subscribed"]), (&json!("ok"), &json!(5)), "{report}");
    assert!(setup.env.function.log().contains("lock unavailable"));
    setup.redis.thaw();
    setup.redis.kill();
    setup.env.novi.state().directory.groups.entry(setup.group).and_modify(|members| members.truncate(4));
    let report = setup.env.run(json!({})).await?;
    assert_eq!((&report["status"], &list(&report, LIST)["unsubscribed"]), (&json!("ok"), &json!(1)), "{report}");
    // Redis is back: the lists are locked and unlocked again, and the cache is prewarmed.
    setup.redis.restart()?;
    assert_eq!(setup.env.run(json!({})).await?["status"], "ok");
    assert!(!setup.is_locked()?);
    assert!(setup.entry(setup.members()[0])?.is_some());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn cache_is_prewarmed_with_members_of_the_mapped_groups() -> Result<()> {
    for kind in [Kind::Plain, Kind::Tls, Kind::Cluster] {
        let setup = WithRedis::start(kind, 60, &[("CACHE_TTL_SECONDS", "600"), ("CACHE_STALE_SECONDS", "60")]).await?;
        let env = &setup.env;
        let members = setup.members();
        let unmapped = *env.novi.state().directory.people.keys().find(|id| !members.contains(id)).unwrap();
        {
            let mut state = env.novi.state();
            state.directory.people.remove(&members[0]);
            state.directory.people.insert(members[1], json!({}));
            state.directory.person(members[2])["Active"] = json!(false);
            state.directory.person(members[3])["Email"] = json!("ada lists@example.org");
            state.fail(&format!("/customers/{}", members[4].hyphenated()), usize::MAX, NoviFault::Forbidden);
        }
        let started = now();
        for id in [members[0], members[1], members[4], members[5]] {
            setup.put(id, started - 100)?;
        }
        // An invalid entry, or one from a clock that is ahead, doesn't count as newer.
        setup.put(members[6], started + 5_000)?;
        setup.redis.command(&["SET", &key(members[7]), "rubbish"])?;
        setup.redis.command(&["LPUSH", &key(members[8]), "another type"])?;
        env.run(json!({"dry_run": true})).await?;
        assert!(setup.entry(members[10])?.is_none(), "{kind:?}: a dry run writes nothing");

        let report = env.run(json!({})).await?;
        assert_eq!(report["status"], "partial", "{kind:?}: {report}");
        assert!(setup.entry(unmapped)?.is_none(), "{kind:?}: only members of mapped groups");
        // The mirror deletes no entry: those of members who are gone from Novi expire.
        for id in [members[0], members[1], members[4]] {
            assert_eq!(setup.entry(id)?.map(|entry| entry["full_name"].clone()), Some(json!("Put B.")), "{kind:?}");
        }
        for id in members[5..].iter().chain([&members[2], &members[3]]) {
            let entry = setup.entry(*id)?.unwrap_or_default();
            assert!(entry["cached_at"].as_u64().is_some_and(|at| (started..=now()).contains(&at)), "{kind:?}: {entry}");
            let ttl: u64 = setup.redis.command(&["TTL", &key(*id)])?.parse()?;
            assert!((500..=660).contains(&ttl), "{kind:?}: {ttl}");
        }

        // verify responds from the prewarmed cache as it would have responded itself, without calling Novi.
        let secret = "bypass-key-of-this-test";
        env.private.add(secret);
        let mut config = env.config.clone();
        config["api_keys"] = json!([{"name": "test", "key": secret, "bypass": true}]);
        let verify = Function::start("verify", &config, &setup.borrowed(), &env.private)?;
        let send = async |id| {
            let request = Request::get(&Verification::path(id)).header("x-api-key", secret);
            Response::parse(&verify.invoke(&request.http_api("$default")).await?)
        };
        env.novi.state().calls.clear();
        let mut prewarmed = Vec::new();
        for id in &members[2..4] {
            let response = send(*id).await?;
            assert_eq!((response.status, response.header("x-cache")), (200, "hit"), "{kind:?}");
            prewarmed.push((*id, response.json()));
        }
        assert_eq!(env.novi.state().count("/"), 0, "{kind:?}");
        assert_eq!(prewarmed[1].1["email"], "ada+lists@example.org");
        for (id, body) in prewarmed {
            setup.redis.command(&["DEL", &key(id)])?;
            assert_eq!(send(id).await?.json(), body, "{kind:?}: the same response as without prewarming");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn prewarming_keeps_newer_entries() -> Result<()> {
    let mut setup = WithRedis::start(Kind::Plain, 6, &[]).await?;
    let proxy = setup.env.insert_proxy().await?;
    let members = setup.members();
    setup.env.novi.state().directory.people.remove(&members[1]);
    let hold = Arc::new(Semaphore::new(0));
    proxy.fail("/roster/member?", 1, HttpFault::Hold(Arc::clone(&hold)));
    let event = json!({});
    let run = setup.env.function.invoke(&event);
    let verified_meanwhile = async {
        // Novi has been read, and the lists aren't synced yet. Waits for the next second.
        proxy.wait_for("/roster/member?", 1).await;
        let read_at = now();
        while now() == read_at {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        setup.put(members[0], now())?;
        setup.put(members[1], now())?;
        hold.add_permits(1);
        anyhow::Ok(())
    };
    let (report, verified) = tokio::join!(run, verified_meanwhile);
    verified?;
    assert_eq!(report?["status"], "ok");
    for id in &members[..2] {
        assert_eq!(setup.entry(*id)?.map(|entry| entry["full_name"].clone()), Some(json!("Put B.")));
    }
    assert_ne!(setup.entry(members[2])?.map(|entry| entry["full_name"].clone()), Some(json!("Put B.")));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn prewarming_leaves_out_entries_that_are_too_large_to_be_read() -> Result<()> {
    let setup = WithRedis::start(Kind::Plain, 4, &[]).await?;
    let members = setup.members();
    let name: String = std::iter::repeat_with(fastrand::lowercase).take(20_000).collect();
    {
        let mut state = setup.env.novi.state();
        let record = state.directory.person(members[0]);
        (record["FirstName"], record["UnsubscribeFromEmails"]) = (json!(name), json!(true));
    }
    assert_eq!(setup.env.run(json!({})).await?["status"], "ok");
    assert!(setup.entry(members[0])?.is_none());
    assert!(setup.entry(members[1])?.is_some());
    let log = setup.env.function.log();
    assert!(log.contains("cache prewarmed") && !log.contains("cache prewarm incomplete"), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn prewarming_writes_only_what_verify_would_cache() -> Result<()> {
    let setup = WithRedis::start(Kind::Plain, 4, &[("REQUIRE_ACTIVE", "true")]).await?;
    let members = setup.members();
    setup.env.novi.state().directory.person(members[0])["Active"] = json!(false);
    setup.env.novi.state().directory.person(members[2])["Active"] = json!(false);
    setup.put(members[0], now() - 10)?;
    setup.env.run(json!({})).await?;
    assert!(setup.entry(members[2])?.is_none(), "an inactive member isn't verified if REQUIRE_ACTIVE is set");
    let entry = setup.entry(members[0])?.unwrap_or_default();
    assert_eq!(entry["full_name"], "Put B.", "an entry is neither deleted nor renewed");
    assert!(setup.entry(members[1])?.is_some());

    setup.redis.command(&["FLUSHALL"])?;
    let mut cold = setup.borrowed();
    cold.push(("MIRROR_WARMS_CACHE", "false"));
    assert_eq!(setup.env.another_instance(&cold)?.invoke(&json!({})).await?["status"], "ok");
    assert_eq!(setup.redis.command(&["KEYS", "idaa:novi_member:*"])?, "");
    Ok(())
}

/// Mailman may still process a write when the run ends, for up to six minutes.
#[tokio::test(flavor = "multi_thread")]
async fn lock_outlives_a_run_that_ends_with_an_open_write() -> Result<()> {
    let mut setup = WithRedis::start(Kind::Plain, 5, &[]).await?;
    let proxy = setup.env.insert_proxy().await?;
    let deliver = Arc::new(Semaphore::new(0));
    proxy.fail("POST /3.1/members", 1, HttpFault::TimeOutThenDeliver(Arc::clone(&deliver)));
    let run = setup.env.run(json!({})).await?;
    assert_eq!((&run["status"], &list(&run, LIST)["subscribed"]), (&json!("partial"), &json!(4)), "{run}");
    let ttl: u64 = setup.redis.command(&["TTL", LOCK])?.parse()?;
    assert!((300..=360).contains(&ttl), "{ttl}");

    // Another instance and the same one leave the list alone, even if the address is also a member of another list.
    proxy.clear_requests();
    for function in [&setup.env.another_instance(&setup.borrowed())?, &setup.env.function] {
        let locked = report(function.invoke(&json!({})).await?)?;
        assert_eq!(locked["status"], "failed", "{locked}");
        let reason = list(&locked, LIST)["reason"].as_str().unwrap_or_default();
        assert!(reason.contains(LOCK), "{reason}");
    }
    assert!(proxy.requests().iter().all(|request| request.line.starts_with("GET")), "{:?}", proxy.requests());
    deliver.add_permits(1);
    proxy.wait_for_delayed().await;
    setup.redis.command(&["DEL", LOCK])?;
    let run = setup.env.run(json!({})).await?;
    assert_eq!((&run["status"], &list(&run, LIST)["subscribed"]), (&json!("ok"), &json!(0)), "{run}");
    assert_eq!(setup.env.mailman.memberships(LIST).await?.len(), 5);
    assert!(!setup.is_locked()?);
    Ok(())
}

/// A wrong root or a lost right makes Novi answer 404 to everything, and verification must not believe that.
#[tokio::test(flavor = "multi_thread")]
async fn blocked_run_deletes_nothing_from_the_cache() -> Result<()> {
    let setup = WithRedis::start(Kind::Plain, 12, &[]).await?;
    assert_eq!(setup.env.run(json!({})).await?["status"], "ok");
    setup.env.novi.state().directory.people.clear();
    let run = setup.env.run(json!({})).await?;
    assert_eq!((&run["status"], &list(&run, LIST)["skipped"]["not_found"]), (&json!("blocked"), &json!(12)), "{run}");
    for id in setup.members() {
        assert!(setup.entry(id)?.is_some_and(|entry| entry["verified"] == true));
    }
    assert_eq!(setup.env.mailman.memberships(LIST).await?.len(), 12);
    Ok(())
}
