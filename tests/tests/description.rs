//! The API compared with its own description: schemathesis reads `/openapi.json` and generates requests in every state
//! that a status stands for. Every response must be described, and every described response must occur.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use http::StatusCode;
use nix::sys::stat::Mode;
use serde_json::Value;
use tests::function::{Function, venv};
use tests::gateway::Gateway;
use tests::harness::Verification;
use tests::novi::{Novi, NoviFault};
use tokio::sync::Mutex;
use uuid::Uuid;

const MEMBER: &str = "/v3/action/idaa/novi_member/";
/// The number of requests that a fault applies to: all of them.
const ALWAYS: usize = usize::MAX;
/// A limit above the number of requests in this test.
const HIGH_LIMIT: (&str, &str) = ("VERIFY_NOVI_MAX_PER_MINUTE", "10000");

/// The API of one function, behind a gateway that records its responses.
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

    /// Returns the headers that authorize a request.
    fn authorized(&self) -> [String; 2] {
        [self.only_key(), "x-account-id:account-1".to_owned()]
    }

    fn only_key(&self) -> String {
        format!("x-api-key:{}", self.key)
    }

    /// Fetches the description from the API.
    async fn description(&self) -> Result<String> {
        let response = tests::http().get(format!("{}/openapi.json", self.gateway.url)).send().await?;
        Ok(response.text().await?)
    }

    /// Runs schemathesis in one state, with these headers, for one UUID or for generated ones.
    async fn assert_conforms(
        &self,
        state: &str,
        headers: &[String],
        uuid: Option<Uuid>,
        exceptions: Exceptions,
    ) -> Result<()> {
        self.assert_fits(&self.description().await?, state, headers, uuid, exceptions).await
    }

    /// Runs schemathesis like [`Self::assert_conforms`], with a description that was fetched earlier.
    async fn assert_fits(
        &self,
        description: &str,
        state: &str,
        headers: &[String],
        uuid: Option<Uuid>,
        exceptions: Exceptions,
    ) -> Result<()> {
        let dir = tempfile::tempdir()?;
        // schemathesis doesn't test a URL that it loads the description from, so it reads a file.
        std::fs::write(dir.path().join("openapi.json"), description)?;
        std::fs::write(dir.path().join("schemathesis.toml"), configuration(uuid, exceptions.configuration))?;
        let mut command = Command::new(venv().join("bin/schemathesis"));
        command
            .args(["run", "openapi.json", "--url", &self.gateway.url])
            .args(["--seed", "1", "--generation-database", "none"])
            .args(["--max-examples", "20", "--checks", "all", "--continue-on-failure", "--no-color"])
            .args(exceptions.excluded_checks.iter().flat_map(|check| ["--exclude-checks", check]))
            .args(headers.iter().flat_map(|header| ["--header", header]))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", dir.path())
            // Only the API may be reached.
            .envs([("HTTPS_PROXY", "http://127.0.0.1:9"), ("NO_PROXY", "127.0.0.1")])
            .current_dir(dir.path());
        let output = tokio::task::spawn_blocking(move || command.output()).await?;
        let output = output.context("schemathesis is missing; `make setup` installs it")?;
        let printed = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{state}: {printed}{}", String::from_utf8_lossy(&output.stderr));
        // A run that tests nothing isn't a success.
        ensure!(printed.contains("Tested: 3"), "{state}: not every operation was tested: {printed}");
        Ok(())
    }

    /// Returns the routes that were requested, written as in the description, and their statuses.
    fn observed(&self) -> BTreeSet<(String, u16)> {
        let route = |path: String| if path.starts_with(MEMBER) { format!("{MEMBER}{{uuid}}") } else { path };
        self.gateway.requests().into_iter().map(|(path, status)| (route(path), status)).collect()
    }
}

/// What may differ from the description in one state. All other checks are made.
#[derive(Clone, Copy)]
struct Exceptions {
    /// Lines of schemathesis's configuration.
    configuration: &'static str,
    excluded_checks: &'static [&'static str],
}

const NO_EXCEPTIONS: Exceptions = Exceptions { configuration: "", excluded_checks: &[] };

/// One check treats every 5xx as an error. If Novi fails, a 503 isn't an error, and a 500 still is.
const NOVI_IS_DOWN: Exceptions = Exceptions {
    configuration: "[checks.not_a_server_error]\nexpected-statuses = [\"2xx\", \"4xx\", \"503\"]\n",
    ..NO_EXCEPTIONS
};

/// Without parameters no key can be checked, so a request without a key gets 503 too.
const PARAMETERS_ARE_DOWN: Exceptions = Exceptions {
    configuration: "[checks.not_a_server_error]\nexpected-statuses = [\"2xx\", \"4xx\", \"503\"]\n\
                    [checks.missing_required_header]\nexpected-statuses = [\"503\"]\n",
    ..NO_EXCEPTIONS
};

/// API Gateway itself responds the same to every request, whatever its method and headers.
const BY_GATEWAY: Exceptions = Exceptions {
    configuration: "[checks.not_a_server_error]\nexpected-statuses = [\"429\", \"500\", \"503\"]\n\
                    [checks.missing_required_header]\nexpected-statuses = [\"429\", \"500\", \"503\"]\n",
    excluded_checks: &["unsupported_method"],
};

/// Returns a configuration that tests this UUID, with these lines.
fn configuration(uuid: Option<Uuid>, lines: &str) -> String {
    let uuid = uuid.map(|uuid| format!("[parameters]\n\"path.uuid\" = \"{}\"\n", uuid.hyphenated()));
    uuid.unwrap_or_default() + lines
}

#[tokio::test(flavor = "multi_thread")]
async fn every_response_is_described_and_every_described_response_occurs() -> Result<()> {
    // Each lasting state has its own function.
    let (api, failing, limited, gateway) = (
        Api::start(&[HIGH_LIMIT]).await?,
        Api::start(&[HIGH_LIMIT]).await?,
        Api::start(&[HIGH_LIMIT]).await?,
        Api::start(&[]).await?,
    );
    // A pipe without a writer: the parameters never arrive.
    let dir = tempfile::tempdir()?;
    let pipe = dir.path().join("config.json");
    nix::unistd::mkfifo(&pipe, Mode::S_IRWXU)?;
    let down = Api::start(&[("CONFIG_FILE", &pipe.display().to_string())]).await?;

    let without_faults = async {
        let authorized = api.authorized();
        api.assert_conforms("a member, authorized", &authorized, Some(api.member), NO_EXCEPTIONS).await?;
        api.assert_conforms("no key", &[], None, NO_EXCEPTIONS).await?;
        api.assert_conforms("only a key", &[api.only_key()], None, NO_EXCEPTIONS).await?;
        api.assert_conforms("unknown members and invalid UUIDs", &authorized, None, NO_EXCEPTIONS).await?;
        limited.novi.state().fail("/customers/", ALWAYS, NoviFault::RateLimited(Some("300".to_owned())));
        limited.assert_conforms("Novi rate-limits", &limited.authorized(), Some(limited.member), NO_EXCEPTIONS).await?;
        down.assert_conforms("no parameters", &down.authorized(), Some(down.member), PARAMETERS_ARE_DOWN).await
    };
    let with_faults = async {
        let respond = |status, content_type, body: &str| NoviFault::Respond(status, content_type, body.to_owned());
        for (state, fault) in [
            ("Novi fails", respond(500, "text/plain", "x")),
            ("the CDN in front of Novi rejects", NoviFault::BlockedByCdn),
            ("Novi rejects the key", respond(401, "application/json", "{}")),
            ("Novi sends an invalid response", respond(200, "text/html", "<html>")),
            ("Novi closes the connection", NoviFault::Disconnect),
        ] {
            failing.novi.state().fail("/customers/", ALWAYS, fault);
            failing.assert_conforms(state, &failing.authorized(), Some(failing.member), NOVI_IS_DOWN).await?;
            failing.novi.state().clear_faults();
        }
        Ok(())
    };
    let by_gateway = async {
        for status in
            [StatusCode::TOO_MANY_REQUESTS, StatusCode::INTERNAL_SERVER_ERROR, StatusCode::SERVICE_UNAVAILABLE]
        {
            let description = gateway.description().await?;
            gateway.gateway.respond_itself(Some(status));
            let state = format!("API Gateway itself responds {status}");
            let authorized = gateway.authorized();
            gateway.assert_fits(&description, &state, &authorized, Some(gateway.member), BY_GATEWAY).await?;
            gateway.gateway.respond_itself(None);
        }
        Ok(())
    };
    tokio::try_join!(without_faults, with_faults, by_gateway)?;

    let description: Value = serde_json::from_str(&api.description().await?)?;
    let described: BTreeSet<(String, u16)> = described(&description)?;
    let mut observed: BTreeSet<(String, u16)> =
        [&api, &failing, &limited, &down].into_iter().flat_map(Api::observed).collect();
    // A 500 is an error in this service itself, which no request and no fault may cause. The others are API Gateway's.
    let is_internal_or_from_gateway = |(route, status): &&(String, u16)| match route.as_str() {
        "/health" => matches!(status, 429 | 500),
        "/openapi.json" => matches!(status, 429 | 500 | 503),
        _ => *status == 500,
    };
    let unobserved: BTreeSet<_> = described.difference(&observed).collect();
    let expected: BTreeSet<_> = described.iter().filter(is_internal_or_from_gateway).collect();
    assert_eq!(unobserved, expected, "observed: {observed:?}");
    observed.extend(gateway.observed());
    assert!(described.is_subset(&observed), "observed: {observed:?}");
    let routes: BTreeSet<&String> = described.iter().map(|(route, _)| route).collect();
    // schemathesis checks this too, but a configuration could disable it.
    let undescribed: Vec<_> =
        observed.iter().filter(|(route, _)| routes.contains(route)).filter(|pair| !described.contains(*pair)).collect();
    assert!(undescribed.is_empty(), "{undescribed:?}");
    Ok(())
}

/// Returns every route and status in a description.
fn described(description: &Value) -> Result<BTreeSet<(String, u16)>> {
    let paths = description["paths"].as_object().context("a description has paths")?;
    let mut pairs = BTreeSet::new();
    for (path, item) in paths {
        for status in item["get"]["responses"].as_object().context("a route has responses")?.keys() {
            pairs.insert((path.clone(), status.parse()?));
        }
    }
    Ok(pairs)
}
