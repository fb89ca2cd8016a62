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
    assert_eq!(events.len(), 4);
    for (name, event) in events {
        let report = function.invoke(&event).await?;
        assert_eq!(report["status"], "ok", "{name}: {report}");
        let writes = matches!(name.as_str(), "mirror-force.json" | "mirror-schedule.json");
        assert_eq!(report["dry_run"], !writes, "{name}");
        if name == "mirror-explain.json" {
            assert_eq!(report["explain"][0]["lists"][0]["wanted"], true, "{report}");
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
