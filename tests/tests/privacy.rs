//! Personal data and secrets are never logged, at any level. Every function that any test starts logs at TRACE, and its
//! log is checked when it ends. These tests make both functions produce all their responses, and prove that the check
//! would find a leak.

use anyhow::Result;
use fastrand::Rng;
use serde_json::json;
use tests::api::Request;
use tests::directory::Directory;
use tests::harness::{Mirror, Verification};
use tests::novi::NoviFault;
use uuid::Uuid;

fn faults() -> Vec<NoviFault> {
    let leak = r#"{"Message":"no such member: Marguerite Delacroix <leak@example.org>"}"#.to_owned();
    vec![
        NoviFault::Respond(500, "application/json", leak.clone()),
        NoviFault::Respond(401, "application/json", leak.clone()),
        NoviFault::Respond(403, "application/json", leak.clone()),
        NoviFault::Respond(404, "application/json", leak.clone()),
        NoviFault::Respond(200, "application/json", r#"{"Email":5,"Name":"Marguerite Delacroix"}"#.to_owned()),
        NoviFault::Respond(200, "application/json", r#"["leak@example.org"]"#.to_owned()),
        NoviFault::Respond(200, "text/html", leak),
        NoviFault::Redirect("http://127.0.0.1:9/leak@example.org".to_owned()),
        NoviFault::BlockedByCdn,
        NoviFault::Disconnect,
        NoviFault::TruncatedBody,
        NoviFault::EndlessBody,
        NoviFault::RateLimited(Some("1".to_owned())),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_logs_no_personal_data() -> Result<()> {
    let env =
        Verification::start(&[("CACHE_TTL_SECONDS", "1"), ("PARAMETER_TTL_SECONDS", "1"), ("CORS_ALLOW_ORIGINS", "*")])
            .await?;
    for word in ["leak@example.org", "Marguerite", "Delacroix", "account-1"] {
        env.private.add(word);
    }
    let members: Vec<Uuid> = {
        let mut state = env.novi.state();
        let mut rng = Rng::new();
        let group = state.directory.add_group(&mut rng, 60);
        state.directory.groups[&group].clone()
    };
    for member in &members {
        env.private.add(&member.hyphenated().to_string());
        for _ in 0..2 {
            env.verify(*member).await?;
        }
    }
    for fault in faults() {
        let newcomer = {
            let mut state = env.novi.state();
            state.fail("/customers/", 1, fault);
            state.directory.add(&mut Rng::new())
        };
        env.private.add(&newcomer.hyphenated().to_string());
        env.verify(newcomer).await?;
        env.novi.state().clear_faults();
        while env.verify(newcomer).await?.status == 429 {}
    }
    let path = Verification::path(members[0]);
    for token in ["x.y.z", "eyJhbGciOiJIUzI1NiJ9.eyJhY2NvdW50X2lkIjoiYSJ9.c2lnbmF0dXJl"] {
        env.private.add(token);
        env.send(&env.request(members[0]).header("authorization", &format!("Bearer {token}"))).await?;
    }
    for request in [
        Request::get(&path),
        Request::get(&path).header("x-api-key", "wrong-key-of-a-caller"),
        Request::get(&format!("{path}/leak@example.org")),
        Request::get("/leak@example.org"),
        Request::new("POST", &path),
        Request::new("OPTIONS", &path).header("origin", "https://app.example.org"),
    ] {
        for event in [request.http_api("prod"), request.rest_api("prod"), request.function_url()] {
            env.function.invoke(&event).await?;
        }
    }
    // Values that aren't events, and an event that the library can't parse.
    env.private.add("wrong-key-of-a-caller");
    env.function.invoke(&json!({"leak@example.org": true})).await?;
    env.function.invoke(&json!("leak@example.org")).await?;
    let mut odd = env.request(members[0]).http_api("$default");
    odd["headers"]["x-odd"] = json!("leak@example.org é");
    env.function.invoke(&odd).await?;
    // Invalid parameters also contain secrets.
    let mut config = env.config.clone();
    config["api_keys"] = json!([{"name": "x", "key": env.keys.frontend, "bypas": true}]);
    env.function.set_config(&config)?;
    while !env.function.log().contains("parameter refresh failed; using cached parameters") {
        env.verify(members[2]).await?;
    }

    let log = env.function.log();
    assert!(log.contains(r#""level":"DEBUG""#), "the log level isn't TRACE: {log}");
    assert!(env.private.len() > 200);
    assert_eq!(env.private.found_in(&log).len(), 0);
    // The check finds a leak.
    assert!(!env.private.found_in(&format!("{log} GET {path}")).is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mirror_logs_no_personal_data() -> Result<()> {
    let mut directory = Directory::default();
    let mut rng = Rng::new();
    let group = directory.add_group(&mut rng, 60);
    let mappings = json!([
        {"group_guid": group, "list_id": "members@lists.example.org", "keep": ["leak@example.org"]},
        {"group_guid": group, "list_id": "broken@lists.example.org", "keep": ["leak@example.org", "leak at example.org"]},
        {"group_guid": group, "list_id": "nowhere@lists.example.org", "leak@example.org": 1},
    ]);
    let env = Mirror::start(directory, mappings, &[("PARAMETER_TTL_SECONDS", "1")]).await?;
    for word in ["leak@example.org", "leak.example.org", "Marguerite", "Delacroix"] {
        env.private.add(word);
    }
    let id = env.mailman.create_list("members").await?;
    for member in &env.novi.state().directory.groups[&group] {
        env.private.add(&member.hyphenated().to_string());
    }
    env.mailman.subscribe(&id, "leak@example.org", "member").await?;
    for fault in [None].into_iter().chain(faults().into_iter().map(Some)) {
        let fault = fault.unwrap_or(NoviFault::Disconnect);
        env.novi.state().fail("/customers/", 1, fault.clone());
        env.function.invoke(&json!({})).await?;
        env.novi.state().clear_faults();
        // The probe describes the same responses, of every resource.
        for path in ["/customers/", "/groups/", "/members"] {
            env.novi.state().fail(path, 4, fault.clone());
        }
        let result = env.function.invoke(&json!({"probe": true})).await?;
        env.novi.state().clear_faults();
        assert!(result["probe"]["findings"].as_array().is_some_and(|findings| !findings.is_empty()), "{result}");
        assert_eq!(env.private.found_in(&result.to_string()).len(), 0, "{result}");
        assert!(!result.to_string().contains(&group.hyphenated().to_string()), "{result}");
    }
    for event in [
        json!({"probe": true}),
        json!({"probe": "leak@example.org"}),
        json!({"explain": ["leak@example.org"]}),
        json!({"leak@example.org": 1}),
        json!({"lists": ["leak@example.org"]}),
        json!({"force": ["leak@example.org"]}),
        json!({"force": {"leak@example.org": {"leaves": 1}}}),
        json!({"force": {id.as_str(): {"leak@example.org": 1}}}),
        json!({"show": true}),
        json!({"show": "leak@example.org"}),
        json!("leak@example.org"),
    ] {
        let returned = env.function.invoke(&event).await?;
        // Only the results of an explanation and of a show contain addresses.
        let names_addresses = event.get("explain").is_some() || event["show"] == true;
        if names_addresses {
            assert!(returned.get("errorMessage").is_none(), "{returned}");
        } else {
            assert_eq!(env.private.found_in(&returned.to_string()).len(), 0, "{returned}");
        }
    }
    std::fs::write(env.function.config_file(), "{\"mailman_password\": \"leak@example.org")?;
    env.function.invoke(&json!({"force": {id.as_str(): {"leaves": 100}}})).await?;

    let log = env.function.log();
    assert!(log.contains("\"message\":\"run completed\"") && log.contains(r#""level":"WARN""#), "{log}");
    assert!(env.private.len() > 200);
    assert_eq!(env.private.found_in(&log).len(), 0);
    let address = env.mailman.roster(&id, "member").await?.into_keys().next().unwrap_or_default();
    assert!(!env.private.found_in(&format!("{log} {address}")).is_empty());
    Ok(())
}
