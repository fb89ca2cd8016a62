//! The API before its own description: schemathesis reads `/openapi.json` and
//! asks whatever it can think of, in every state of the world that a status
//! stands for. What it is answered must be what is described, and what is
//! described must be answered.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nix::sys::stat::Mode;
use serde_json::Value;
use tests::function::{Function, venv};
use tests::gateway::Gateway;
use tests::harness::Verification;
use tests::novi::{Fault, Novi};
use tokio::sync::Mutex;
use uuid::Uuid;

const MEMBER: &str = "/v3/action/idaa/novi_member/";
/// As often as anybody asks.
const ALWAYS: usize = usize::MAX;
/// More than are asked here.
const ALLOWANCE: (&str, &str) = ("VERIFY_NOVI_MAX_PER_MINUTE", "10000");

/// The API of one function, and what was seen of it.
struct Api {
    gateway: Gateway,
    novi: Novi,
    member: Uuid,
    key: String,
}

impl Api {
    async fn start(variables: &[(&str, &str)]) -> Result<Self> {
        let Verification { function, novi, member, keys, .. } = Verification::start(variables).await?;
        let gateway = Gateway::start(Arc::new(Mutex::<Function>::new(function))).await?;
        Ok(Self { gateway, novi, member, key: keys.frontend })
    }

    /// What opens the gate.
    fn open(&self) -> [String; 2] {
        [self.key_alone(), "x-account-id:account-1".to_owned()]
    }

    fn key_alone(&self) -> String {
        format!("x-api-key:{}", self.key)
    }

    /// The description, as the API gives it.
    async fn description(&self) -> Result<String> {
        let answer = tests::http().get(format!("{}/openapi.json", self.gateway.url)).send().await?;
        Ok(answer.text().await?)
    }

    /// Lets schemathesis ask in one state of the world, with these headers, for
    /// one uuid or whatever it makes up.
    async fn conforms(&self, state: &str, headers: &[String], uuid: Option<Uuid>, exceptions: &str) -> Result<()> {
        let dir = tempfile::tempdir()?;
        // Read from a file, for what it is loaded from by HTTP is not tried.
        let description = dir.path().join("openapi.json");
        std::fs::write(description, self.description().await?)?;
        std::fs::write(dir.path().join("schemathesis.toml"), configuration(uuid, exceptions))?;
        let mut command = Command::new(venv().join("bin/schemathesis"));
        command
            .args(["run", "openapi.json", "--url", &self.gateway.url])
            .args(["--seed", "1", "--generation-database", "none"])
            .args(["--max-examples", "20", "--checks", "all", "--continue-on-failure", "--no-color"])
            .args(headers.iter().flat_map(|header| ["--header", header]))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", dir.path())
            // Nothing but the API is to be asked.
            .envs([("HTTPS_PROXY", "http://127.0.0.1:9"), ("NO_PROXY", "127.0.0.1")])
            .current_dir(dir.path());
        let output = tokio::task::spawn_blocking(move || command.output()).await?;
        let output = output.context("schemathesis is missing; `make setup` installs it")?;
        let printed = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{state}: {printed}{}", String::from_utf8_lossy(&output.stderr));
        // A run that tries nothing is no success.
        ensure!(printed.contains("Tested: 3"), "{state}: not all was tried: {printed}");
        Ok(())
    }

    /// The routes that were got, as the description has them, and their statuses.
    fn seen(&self) -> BTreeSet<(String, u16)> {
        let route = |path: String| if path.starts_with(MEMBER) { format!("{MEMBER}{{uuid}}") } else { path };
        self.gateway.seen().into_iter().map(|(path, status)| (route(path), status)).collect()
    }
}

/// Every check, but for these exceptions.
fn configuration(uuid: Option<Uuid>, exceptions: &str) -> String {
    let uuid = uuid.map(|uuid| format!("[parameters]\n\"path.uuid\" = \"{}\"\n", uuid.hyphenated()));
    uuid.unwrap_or_default() + exceptions
}

/// No check is left out. One takes every 5xx for a mistake, and where Novi cannot answer a 503 is none; a 500 still is.
const NOVI_IS_OUT: &str = "[checks.not_a_server_error]\nexpected-statuses = [\"2xx\", \"4xx\", \"503\"]\n";
/// Without parameters nobody's key can be told from another, so a request without one gets 503 too.
const PARAMETERS_ARE_OUT: &str = "[checks.not_a_server_error]\nexpected-statuses = [\"2xx\", \"4xx\", \"503\"]\n\
                                  [checks.missing_required_header]\nexpected-statuses = [\"503\"]\n";

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_described_and_every_description_is_answered() -> Result<()> {
    // Each state that lasts has a function of its own.
    let (api, ill, limited) =
        (Api::start(&[ALLOWANCE]).await?, Api::start(&[ALLOWANCE]).await?, Api::start(&[ALLOWANCE]).await?);
    // A pipe that nobody writes to: parameters that never come.
    let dir = tempfile::tempdir()?;
    let pipe = dir.path().join("config.json");
    nix::unistd::mkfifo(&pipe, Mode::S_IRWXU)?;
    let down = Api::start(&[("CONFIG_FILE", &pipe.display().to_string())]).await?;

    let well = async {
        let open = api.open();
        api.conforms("a member, and the gate is open", &open, Some(api.member), "").await?;
        api.conforms("no key", &[], None, "").await?;
        api.conforms("a key alone", &[api.key_alone()], None, "").await?;
        api.conforms("strangers, and what is no uuid", &open, None, "").await?;
        limited.novi.state().fail("/customers/", ALWAYS, Fault::RateLimited(Some("300".to_owned())));
        limited.conforms("Novi limits", &limited.open(), Some(limited.member), "").await?;
        down.conforms("no parameters", &down.open(), Some(down.member), PARAMETERS_ARE_OUT).await
    };
    let out = async {
        let answer = |status, kind, body: &str| Fault::Answer(status, kind, body.to_owned());
        for (state, fault) in [
            ("Novi fails", answer(500, "text/plain", "x")),
            ("the CDN before Novi refuses", Fault::Blocked),
            ("Novi refuses the key", answer(401, "application/json", "{}")),
            ("Novi talks nonsense", answer(200, "text/html", "<html>")),
            ("Novi hangs up", Fault::HangUp),
        ] {
            ill.novi.state().fail("/customers/", ALWAYS, fault);
            ill.conforms(state, &ill.open(), Some(ill.member), NOVI_IS_OUT).await?;
            ill.novi.state().mend();
        }
        Ok(())
    };
    tokio::try_join!(well, out)?;

    let description: Value = serde_json::from_str(&api.description().await?)?;
    let described: BTreeSet<(String, u16)> = described(&description)?;
    let seen: BTreeSet<(String, u16)> = [&api, &ill, &limited, &down].into_iter().flat_map(Api::seen).collect();
    let routes: BTreeSet<&String> = described.iter().map(|(route, _)| route).collect();
    let unseen: BTreeSet<_> = described.difference(&seen).cloned().collect();
    // A mistake in this service itself: nothing that comes from outside may bring it about.
    let internal = routes.iter().map(|route| ((*route).clone(), 500)).collect();
    assert_eq!(unseen, internal, "seen: {seen:?}");
    // schemathesis says so too, unless it is told to look away.
    let undescribed: Vec<_> =
        seen.iter().filter(|(route, _)| routes.contains(route)).filter(|pair| !described.contains(*pair)).collect();
    assert!(undescribed.is_empty(), "{undescribed:?}");
    Ok(())
}

/// Every route and status that a description has.
fn described(description: &Value) -> Result<BTreeSet<(String, u16)>> {
    let paths = description["paths"].as_object().context("a description has paths")?;
    let mut pairs = BTreeSet::new();
    for (path, item) in paths {
        for status in item["get"]["responses"].as_object().context("a route has answers")?.keys() {
            pairs.insert((path.clone(), status.parse()?));
        }
    }
    Ok(pairs)
}
