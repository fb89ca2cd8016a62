//! The two environments that tests and the sandbox need: the verify function
//! with a Novi, and the mirror with a Novi and a Mailman.

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fastrand::Rng;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::{Request, Response};
use crate::directory::Directory;
use crate::function::Function;
use crate::http_proxy::HttpProxy;
use crate::mailman::{self, Mailman};
use crate::novi::Novi;
use crate::privacy::Private;

/// The verify function and a Novi with some people.
pub struct Verification {
    /// The function.
    pub function: Function,
    /// Its upstream.
    pub novi: Novi,
    /// An ordinary member.
    pub member: Uuid,
    /// The credentials that the gate accepts.
    pub keys: Keys,
    /// The parameters that the function was started with.
    pub config: Value,
    /// Data that must not be logged.
    pub private: Private,
}

/// Credentials for the gate.
pub struct Keys {
    /// An API key that requires an account context.
    pub frontend: String,
    /// An API key that doesn't require one.
    pub bypass: String,
    /// The secret that signs tokens.
    pub jwt_secret: String,
}

impl Keys {
    fn new(private: &Private) -> Self {
        let secret = || format!("s{:032x}", fastrand::u128(..));
        let keys = Self { frontend: secret(), bypass: secret(), jwt_secret: secret() };
        for key in [&keys.frontend, &keys.bypass, &keys.jwt_secret] {
            private.add(key);
        }
        keys
    }
}

impl Verification {
    /// Starts the function with `variables` in addition to the defaults. Novi's
    /// timeout is two seconds, so that a test with an unresponsive Novi doesn't
    /// have to wait for eight. The cache's timeout is one second, so that a
    /// busy machine doesn't turn a hit into a bypass.
    ///
    /// # Errors
    /// Fails if something that `make` sets up is missing.
    pub async fn start(variables: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::start_with(variables, |_| ()).await
    }

    /// Starts the function like [`Self::start`], with parameters changed by `change`.
    ///
    /// # Errors
    /// Fails if something that `make` sets up is missing.
    pub async fn start_with(variables: &[(&str, &str)], change: impl FnOnce(&mut Value)) -> anyhow::Result<Self> {
        let private = Private::default();
        let mut directory = Directory::default();
        let member = directory.add(&mut Rng::new());
        let novi = Novi::start(directory, private.clone()).await?;
        let keys = Keys::new(&private);
        let mut config = json!({
            "novi_api_root_url": novi.root(),
            "novi_idaa_api_key": novi.state().key,
            "api_keys": [
                {"name": "frontend", "key": keys.frontend, "bypass": false},
                {"name": "server", "key": keys.bypass, "bypass": true},
            ],
            "jwt_secret": keys.jwt_secret,
        });
        change(&mut config);
        let function = Self::start_function(&config, variables, &private)?;
        Ok(Self { function, novi, member, keys, config, private })
    }

    fn start_function(config: &Value, variables: &[(&str, &str)], private: &Private) -> anyhow::Result<Function> {
        // Faster than any test, except those of the limit itself.
        let defaults =
            [("NOVI_TIMEOUT_MS", "2000"), ("CACHE_TIMEOUT_MS", "1000"), ("NOVI_TOTAL_PER_SECOND", "1000000")];
        Function::start("verify", config, &[&defaults, variables].concat(), private)
    }

    /// Starts another instance of the function in the same environment. The instances share no memory.
    ///
    /// # Errors
    /// Fails if the instance doesn't start.
    pub fn another_instance(&self, variables: &[(&str, &str)]) -> anyhow::Result<Function> {
        Self::start_function(&self.config, variables, &self.private)
    }

    /// Returns the path of a member.
    #[must_use]
    pub fn path(id: Uuid) -> String {
        format!("/v3/action/idaa/novi_member/{}", id.hyphenated())
    }

    /// Returns a front-end request for a member that passes the gate.
    #[must_use]
    pub fn request(&self, id: Uuid) -> Request {
        Request::get(&Self::path(id)).header("x-api-key", &self.keys.frontend).header("x-account-id", "account-1")
    }

    /// Sends a request as an HTTP API does.
    ///
    /// # Errors
    /// Fails if the function doesn't return an HTTP response.
    pub async fn send(&self, request: &Request) -> anyhow::Result<Response> {
        self.send_to(&self.function, request).await
    }

    /// Sends a request to another instance.
    ///
    /// # Errors
    /// Fails if the function doesn't return an HTTP response.
    pub async fn send_to(&self, function: &Function, request: &Request) -> anyhow::Result<Response> {
        Response::parse(&function.invoke(&request.http_api("$default")).await?)
    }

    /// Verifies a member.
    ///
    /// # Errors
    /// Fails if the function doesn't return an HTTP response.
    pub async fn verify(&self, id: Uuid) -> anyhow::Result<Response> {
        self.send(&self.request(id)).await
    }
}

/// Returns the section of a report about one list.
///
/// # Panics
/// Panics if the report doesn't contain that list.
#[must_use]
pub fn list<'r>(report: &'r Value, id: &str) -> &'r Value {
    let lists = report["lists"].as_array().map(Vec::as_slice).unwrap_or_default();
    lists.iter().find(|list| list["list_id"] == id).unwrap_or_else(|| panic!("no {id} in {report}"))
}

/// Returns the report of an invocation, which is either the result itself or part of an error message.
///
/// # Errors
/// Fails if there is no report.
pub fn report(returned: Value) -> anyhow::Result<Value> {
    let Some(message) = returned["errorMessage"].as_str() else {
        return Ok(returned);
    };
    let json = message.find('{').and_then(|start| Some(&message[start..=message.rfind('}')?]));
    Ok(serde_json::from_str(json.with_context(|| format!("no report: {message}"))?)?)
}

/// Returns a new key for the ledger.
#[must_use]
pub fn ledger_key() -> String {
    STANDARD.encode([fastrand::u128(..).to_le_bytes(), fastrand::u128(..).to_le_bytes()].concat())
}

/// The mirror function, its Novi, and a real Mailman.
pub struct Mirror {
    /// The function.
    pub function: Function,
    /// Its source.
    pub novi: Novi,
    /// Its destination.
    pub mailman: Mailman,
    /// The parameters that the function was started with.
    pub config: Value,
    /// Data that must not be logged.
    pub private: Private,
}

impl Mirror {
    /// Starts the mirror with these mappings. It may write, and it is not rate
    /// limited unless `variables` say otherwise.
    ///
    /// # Errors
    /// Fails if something that `make` sets up is missing.
    pub async fn start(directory: Directory, mappings: Value, variables: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::start_on(Mailman::start().await?, directory, mappings, variables).await
    }

    /// Starts the mirror like [`Self::start`], with a Mailman that is already running.
    ///
    /// # Errors
    /// Fails if something that `make` sets up is missing.
    pub async fn start_on(
        mailman: Mailman,
        directory: Directory,
        mappings: Value,
        variables: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let private = Private::default();
        let novi = Novi::start(directory, private.clone()).await?;
        private.add(mailman.password());
        let config = json!({
            "novi_api_root_url": novi.root(),
            "novi_idaa_api_key": novi.state().key,
            "mailman_base_url": mailman.base_url(),
            "mailman_username": mailman::USER,
            "mailman_password": mailman.password(),
            "novi_mailman_sync": mappings,
            // Only read with LEDGER.
            "ledger_key": ledger_key(),
        });
        private.add(config["ledger_key"].as_str().unwrap_or_default());
        let function = Self::start_function(&config, variables, &private)?;
        Ok(Self { function, novi, mailman, config, private })
    }

    fn start_function(config: &Value, variables: &[(&str, &str)], private: &Private) -> anyhow::Result<Function> {
        let defaults = [
            ("MIRROR_APPLY", "true"),
            ("NOVI_MAX_PER_SECOND", "10000"),
            ("NOVI_MAX_PER_MINUTE", "100000"),
            ("NOVI_MAX_PER_DAY", "1000000"),
            ("NOVI_TOTAL_PER_SECOND", "1000000"),
            ("NOVI_TIMEOUT_MS", "2000"),
        ];
        Function::start("mirror", config, &[&defaults, variables].concat(), private)
    }

    /// Starts another instance of the function in the same environment. The instances share no memory.
    ///
    /// # Errors
    /// Fails if the instance doesn't start.
    pub fn another_instance(&self, variables: &[(&str, &str)]) -> anyhow::Result<Function> {
        Self::start_function(&self.config, variables, &self.private)
    }

    /// Starts another instance of the function with other mappings.
    ///
    /// # Errors
    /// Fails if the instance doesn't start.
    pub fn instance_with_mappings(&self, mappings: &Value) -> anyhow::Result<Function> {
        let mut config = self.config.clone();
        config["novi_mailman_sync"] = mappings.clone();
        Self::start_function(&config, &[], &self.private)
    }

    /// Inserts a proxy between the mirror and Mailman. Call this before the first run.
    ///
    /// # Errors
    /// Fails if no port is free.
    pub async fn insert_proxy(&mut self) -> anyhow::Result<HttpProxy> {
        let proxy = HttpProxy::start(self.mailman.base_url()).await?;
        self.config["mailman_base_url"] = json!(proxy.url());
        self.function.set_config(&self.config)?;
        Ok(proxy)
    }

    /// Runs the mirror once and returns the report, whether it came as a result or in an error.
    ///
    /// # Errors
    /// Fails if there is no report.
    pub async fn run(&self, event: Value) -> anyhow::Result<Value> {
        report(self.function.invoke(&event).await?)
    }
}
