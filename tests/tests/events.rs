//! Every sample event in `events/` does what its name says, with the parameters of `config.example.json` filled in.

use anyhow::Result;
use serde_json::{Value, json};
use tests::api::Response;
use tests::directory::{Directory, record};
use tests::function::Function;
use tests::mailman::{Mailman, USER};
use tests::novi::Novi;
use tests::privacy::Private;
use tests::workspace;
use uuid::Uuid;

const MEMBER: Uuid = uuid::uuid!("39120341-3c8e-47b0-9a40-45b5659b2044");
const GROUP: Uuid = uuid::uuid!("6c5ed1fc-2b0b-4f2f-8d0b-7d2b7d0a4a11");

fn read(path: &str) -> Result<Value> {
    Ok(serde_json::from_slice(&std::fs::read(workspace().join(path))?)?)
}

/// Starts a Novi for the sample events, and fills in `config.example.json`.
async fn novi_and_config(private: &Private) -> Result<(Novi, Value)> {
    let mut directory = Directory::default();
    directory.people.insert(MEMBER, record(MEMBER, "Marguerite", "Delacroix", "ada lists@example.org"));
    directory.groups.insert(GROUP, vec![MEMBER]);
    let novi = Novi::start(directory, private.clone()).await?;
    let mut config = read("config.example.json")?;
    config["novi_api_root_url"] = json!(novi.root());
    config["novi_idaa_api_key"] = json!(novi.state().key);
    Ok((novi, config))
}

/// Reads the sample events of a function, sorted by name.
fn events(function: &str) -> Result<Vec<(String, Value)>> {
    let mut events = Vec::new();
    for entry in std::fs::read_dir(workspace().join("events"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(function) {
            events.push((name.clone(), read(&format!("events/{name}"))?));
        }
    }
    events.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(events)
}

#[tokio::test(flavor = "multi_thread")]
async fn sample_events_of_verify_succeed() -> Result<()> {
    let private = Private::default();
    let (_novi, config) = novi_and_config(&private).await?;
    let function = Function::start("verify", &config, &[("CORS_ALLOW_ORIGINS", "https://app.example.org")], &private)?;
    let mut seen = Vec::new();
    for (name, event) in events("verify")? {
        let response = Response::parse(&function.invoke(&event).await?)?;
        assert_eq!(response.status, 200, "{name}: {response:?}");
        let body = response.json();
        let is_expected = match name.as_str() {
            "verify-health.json" => body["status"] == "ok",
            "verify-openapi.json" => body["openapi"] == "3.1.0",
            "verify-preflight.json" => response.header("access-control-allow-origin") == "https://app.example.org",
            _ => body["email"] == "ada+lists@example.org",
        };
        assert!(is_expected, "{name}: {response:?}");
        seen.push(name);
    }
    assert_eq!(seen.len(), 6, "{seen:?}");
    Ok(())
}

/// The parts of an event that decide the response to a request for a member, as JSON pointers.
const USED: [&str; 13] = [
    "/version",
    "/rawPath",
    "/path",
    "/httpMethod",
    "/headers",
    "/headers/x-api-key",
    "/headers/x-account-id",
    "/multiValueHeaders",
    "/multiValueHeaders/x-api-key",
    "/multiValueHeaders/x-account-id",
    "/requestContext",
    "/requestContext/http",
    "/requestContext/http/method",
];

/// Returns the JSON pointers to all members of an object, and of the objects in it.
fn pointers(value: &Value, prefix: &str) -> Vec<String> {
    let members = value.as_object().into_iter().flatten();
    members
        .flat_map(|(name, value)| {
            let pointer = format!("{prefix}/{name}");
            [vec![pointer.clone()], pointers(value, &pointer)].concat()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn unused_parts_of_an_event_never_fail_it() -> Result<()> {
    let private = Private::default();
    let (_novi, config) = novi_and_config(&private).await?;
    let function = Function::start("verify", &config, &[], &private)?;
    let deep = (0..200).fold(json!(1), |inner, _| json!([inner]));
    let odd = [json!(null), json!(5), json!(-1.5e300), json!("\u{e9}\n\u{202e}"), json!([null, {}]), json!(true), deep];
    let mut tried = 0;
    for name in ["verify-http-api.json", "verify-rest-api.json", "verify-function-url.json"] {
        let mut sample = read(&format!("events/{name}"))?;
        // Parts that the samples lack.
        for part in ["body", "cookies", "pathParameters", "stageVariables", "queryStringParameters", "isBase64Encoded"]
        {
            sample[part] = json!(null);
        }
        for part in ["authorizer", "authentication", "identity", "time", "timeEpoch", "requestTimeEpoch", "stage"] {
            let context = &mut sample["requestContext"];
            context[part] = if context[part].is_null() { json!(null) } else { context[part].take() };
        }
        let mut events: Vec<(String, Value)> = Vec::new();
        for pointer in pointers(&sample, "").iter().filter(|pointer| !USED.contains(&pointer.as_str())) {
            for value in &odd {
                let mut event = sample.clone();
                *event.pointer_mut(pointer).expect("the part is there") = value.clone();
                events.push((format!("{pointer}={value}"), event));
            }
        }
        for (part, value) in [
            ("authorizer", json!({"jwt": {"claims": {"sub": "x", "iat": 5, "groups": ["a"]}, "scopes": "a b"}})),
            ("authorizer", json!({"lambda": [1], "iam": {"cognitoIdentity": {"amr": 5}, "userId": {}}})),
            ("authentication", json!({"clientCert": {"validity": {"notBefore": 5}}})),
            ("identity", json!({"sourceIp": 5, "cognitoIdentityId": []})),
        ] {
            let mut event = sample.clone();
            event["requestContext"][part] = value;
            events.push((part.to_owned(), event));
        }
        // A header that no route uses may have a name or a value that isn't valid in HTTP.
        for header in ["bad name", "", "x-\u{e9}"] {
            let mut event = sample.clone();
            event["headers"][header] = json!("a\nb");
            events.push((format!("header {header:?}"), event));
        }
        // A header of CORS decides nothing in a request that isn't a preflight.
        for (header, value) in [("origin", json!(5)), ("access-control-request-headers", json!("a\u{0}b"))] {
            let mut event = sample.clone();
            event["headers"][header] = value;
            events.push((format!("header {header:?}"), event));
        }
        tried += events.len();
        for (changed, event) in events {
            let returned = function.invoke(&event).await?;
            let status = Response::parse(&returned).map(|response| response.status);
            assert_eq!(status.ok(), Some(200), "{name}: {changed}: {returned}");
        }
    }
    assert!(tried > 400, "{tried}");
    assert!(!function.log().contains("panicked"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_credentials_in_an_event_never_open_the_gate() -> Result<()> {
    let private = Private::default();
    let (novi, config) = novi_and_config(&private).await?;
    let function = Function::start("verify", &config, &[], &private)?;
    let unreadable = [json!(5), json!(true), json!({}), json!([5]), json!("a\nb")];
    let absent = [json!(null), json!([])];
    let wrong = [json!(["a", "b"]), json!("\u{e9}")];
    let no_token = [json!(["Bearer a", "b"]), json!("Bearer \u{e9}")];
    for name in ["verify-http-api.json", "verify-rest-api.json", "verify-function-url.json"] {
        let sample = read(&format!("events/{name}"))?;
        let headers = if name.contains("rest") { "multiValueHeaders" } else { "headers" };
        for (header, others) in [
            ("x-api-key", [&absent[..], &wrong].concat()),
            ("x-account-id", [&absent[..], &wrong].concat()),
            ("authorization", no_token.to_vec()),
        ] {
            for value in unreadable.iter().chain(&others) {
                let mut event = sample.clone();
                event[headers][header] = value.clone();
                event["headers"][header] = value.clone();
                let returned = function.invoke(&event).await?;
                let status = Response::parse(&returned).map(|response| response.status).unwrap_or(500);
                assert!(matches!(status, 401 | 403 | 500), "{name}: {header}={value}: {returned}");
            }
        }
        // The same header in two spellings counts as repeated.
        let mut event = sample.clone();
        event[headers]["X-API-Key"] = event[headers]["x-api-key"].clone();
        let response = Response::parse(&function.invoke(&event).await?)?;
        assert_eq!(response.code(), "api_key_invalid", "{name}");
    }
    assert_eq!(novi.state().count("/"), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sample_events_of_mirror_take_effect() -> Result<()> {
    let private = Private::default();
    let (_novi, mut config) = novi_and_config(&private).await?;
    let mailman = Mailman::start().await?;
    config["mailman_base_url"] = json!(mailman.base_url());
    config["mailman_username"] = json!(USER);
    config["mailman_password"] = json!(mailman.password());
    let list = mailman.create_list("members").await?;
    let function = Function::start("mirror", &config, &[("MIRROR_APPLY", "true")], &private)?;
    let events = events("mirror")?;
    assert_eq!(events.len(), 6);
    for (name, event) in events {
        let report = function.invoke(&event).await?;
        assert_eq!(report["status"], "ok", "{name}: {report}");
        if name == "mirror-probe.json" {
            assert_eq!(report["probe"]["novi"]["people"], 1, "{report}");
            continue;
        }
        let writes = matches!(name.as_str(), "mirror-force.json" | "mirror-schedule.json");
        assert_eq!(report["dry_run"], !writes, "{name}");
        if name == "mirror-explain.json" {
            assert_eq!(report["explain"][0]["lists"][0]["wanted"], true, "{report}");
        }
        if name == "mirror-show.json" {
            let shown = &report["lists"][0];
            assert_eq!(
                (&shown["joins"], &shown["leaves"]),
                (&json!(["ada+lists@example.org"]), &json!([])),
                "{report}"
            );
        }
        assert_eq!(mailman.roster(&list, "member").await?.len(), usize::from(writes), "{name}");
        mailman
            .request(
                http::Method::DELETE,
                &format!("lists/{list}/roster/member"),
                Some(json!({"emails": ["ada+lists@example.org"]})),
            )
            .await?;
    }
    Ok(())
}
