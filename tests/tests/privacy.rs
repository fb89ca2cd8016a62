//! Nothing personal and no secret is ever logged, at any level. Every function
//! that any test starts logs at TRACE, and is checked when it ends; this test
//! drives both through everything that they can answer, and proves that the
//! check would find a leak.

use anyhow::Result;
use fastrand::Rng;
use serde_json::json;
use tests::api::Request;
use tests::directory::Directory;
use tests::harness::{Mirror, Verification};
use tests::novi::Fault;
use uuid::Uuid;

fn faults() -> Vec<Fault> {
    let leak = r#"{"Message":"no such member: Marguerite Delacroix <leak@example.org>"}"#.to_owned();
    vec![
        Fault::Answer(500, "application/json", leak.clone()),
        Fault::Answer(401, "application/json", leak.clone()),
        Fault::Answer(403, "application/json", leak.clone()),
        Fault::Answer(404, "application/json", leak.clone()),
        Fault::Answer(200, "application/json", r#"{"Email":5,"Name":"Marguerite Delacroix"}"#.to_owned()),
        Fault::Answer(200, "application/json", r#"["leak@example.org"]"#.to_owned()),
        Fault::Answer(200, "text/html", leak),
        Fault::Redirect("http://127.0.0.1:9/leak@example.org".to_owned()),
        Fault::Blocked,
        Fault::HangUp,
        Fault::HalfBody,
        Fault::EndlessBody,
        Fault::RateLimited(Some("1".to_owned())),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn verification_logs_nobody() -> Result<()> {
    let world =
        Verification::start(&[("CACHE_TTL_SECONDS", "1"), ("PARAMETER_TTL_SECONDS", "1"), ("CORS_ALLOW_ORIGINS", "*")])
            .await?;
    for word in ["leak@example.org", "Marguerite", "Delacroix", "account-1"] {
        world.private.add(word);
    }
    let people: Vec<Uuid> = {
        let mut state = world.novi.state();
        let mut rng = Rng::new();
        let group = state.directory.add_group(&mut rng, 60);
        state.directory.groups[&group].clone()
    };
    for person in &people {
        world.private.add(&person.hyphenated().to_string());
        for _ in 0..2 {
            world.verify(*person).await?;
        }
    }
    for fault in faults() {
        let newcomer = {
            let mut state = world.novi.state();
            state.fail("/customers/", 1, fault);
            state.directory.add(&mut Rng::new())
        };
        world.private.add(&newcomer.hyphenated().to_string());
        world.verify(newcomer).await?;
        world.novi.state().mend();
        while world.verify(newcomer).await?.status == 429 {}
    }
    let path = Verification::path(people[0]);
    for token in ["x.y.z", "eyJhbGciOiJIUzI1NiJ9.eyJhY2NvdW50X2lkIjoiYSJ9.c2lnbmF0dXJl"] {
        world.private.add(token);
        world.send(&world.request(people[0]).header("authorization", &format!("Bearer {token}"))).await?;
    }
    for request in [
        Request::get(&path),
        Request::get(&path).header("x-api-key", "wrong-key-of-somebody"),
        Request::get(&format!("{path}/leak@example.org")),
        Request::get("/leak@example.org"),
        Request::new("POST", &path),
        Request::new("OPTIONS", &path).header("origin", "https://app.example.org"),
    ] {
        for event in [request.http_api("prod"), request.rest_api("prod"), request.function_url()] {
            world.function.invoke(&event).await?;
        }
    }
    // What is no event at all, and what the library cannot read.
    world.private.add("wrong-key-of-somebody");
    world.function.invoke(&json!({"leak@example.org": true})).await?;
    world.function.invoke(&json!("leak@example.org")).await?;
    let mut odd = world.request(people[0]).http_api("$default");
    odd["headers"]["x-odd"] = json!("leak@example.org é");
    world.function.invoke(&odd).await?;
    // Parameters that are wrong hold secrets all the same.
    let mut config = world.config.clone();
    config["api_keys"] = json!([{"name": "x", "key": world.keys.frontend, "bypas": true}]);
    world.function.set_config(&config)?;
    while !world.function.log().contains("the older ones are used") {
        world.verify(people[2]).await?;
    }

    let log = world.function.log();
    assert!(log.contains(r#""level":"DEBUG""#), "it was not logged at TRACE: {log}");
    assert!(world.private.len() > 200);
    assert_eq!(world.private.found_in(&log).len(), 0);
    // The check finds what it looks for.
    assert!(!world.private.found_in(&format!("{log} GET {path}")).is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mirror_logs_nobody() -> Result<()> {
    let mut directory = Directory::default();
    let mut rng = Rng::new();
    let group = directory.add_group(&mut rng, 60);
    let mappings = json!([
        {"group_guid": group, "list_id": "members@lists.example.org", "keep": ["leak@example.org"]},
        {"group_guid": group, "list_id": "broken@lists.example.org", "keep": ["leak@example.org", "leak at example.org"]},
        {"group_guid": group, "list_id": "nowhere@lists.example.org", "leak@example.org": 1},
    ]);
    let world = Mirror::start(directory, mappings, &[("PARAMETER_TTL_SECONDS", "1")]).await?;
    for word in ["leak@example.org", "leak.example.org", "Marguerite", "Delacroix"] {
        world.private.add(word);
    }
    let id = world.mailman.create_list("members").await?;
    for person in &world.novi.state().directory.groups[&group] {
        world.private.add(&person.hyphenated().to_string());
    }
    world.mailman.subscribe(&id, "leak@example.org", "member").await?;
    for fault in [None].into_iter().chain(faults().into_iter().map(Some)) {
        world.novi.state().fail("/customers/", 1, fault.unwrap_or(Fault::HangUp));
        world.function.invoke(&json!({})).await?;
        world.novi.state().mend();
    }
    for event in [
        json!({"explain": ["leak@example.org"]}),
        json!({"leak@example.org": 1}),
        json!({"lists": ["leak@example.org"]}),
        json!("leak@example.org"),
    ] {
        let returned = world.function.invoke(&event).await?;
        // The result of an explanation names who was asked for; nothing else does.
        if event.get("explain").is_none() {
            assert_eq!(world.private.found_in(&returned.to_string()).len(), 0, "{returned}");
        }
    }
    std::fs::write(world.function.config_file(), "{\"mailman_password\": \"leak@example.org")?;
    world.function.invoke(&json!({"force": [id]})).await?;

    let log = world.function.log();
    assert!(log.contains("\"message\":\"reported\"") && log.contains(r#""level":"WARN""#), "{log}");
    assert!(world.private.len() > 200);
    assert_eq!(world.private.found_in(&log).len(), 0);
    let somebody = world.mailman.roster(&id, "member").await?.into_keys().next().unwrap_or_default();
    assert!(!world.private.found_in(&format!("{log} {somebody}")).is_empty());
    Ok(())
}
