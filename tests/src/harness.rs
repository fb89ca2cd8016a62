//! The two set-ups that tests and the sandbox need: verification with its
//! Novi, and a mirror with its Novi and Mailman.

use anyhow::Context;
use fastrand::Rng;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::{Answer, Request};
use crate::directory::Directory;
use crate::function::Function;
use crate::http_proxy::Proxy;
use crate::mailman::{self, Mailman};
use crate::novi::Novi;
use crate::privacy::Private;

/// Verification and a Novi of some people.
pub struct Verification {
    /// The function.
    pub function: Function,
    /// Its upstream.
    pub novi: Novi,
    /// An ordinary member.
    pub member: Uuid,
    /// What opens the gate.
    pub keys: Keys,
    /// The parameters that it was started with.
    pub config: Value,
    /// What may not be logged.
    pub private: Private,
}

/// Keys of the gate.
pub struct Keys {
    /// An API key that needs an account context.
    pub frontend: String,
    /// An API key that needs none.
    pub bypass: String,
    /// The secret of tokens.
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
    /// Starts it with the variables that differ from the usual. Novi's time-out
    /// is two seconds, so that a test of silence need not wait for eight.
    ///
    /// # Errors
    /// Where something that `make` sets up is missing.
    pub async fn start(variables: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::start_with(variables, |_| ()).await
    }

    /// The same, with parameters that differ from the usual.
    ///
    /// # Errors
    /// Where something that `make` sets up is missing.
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
        let function = Self::function(&config, variables, &private)?;
        Ok(Self { function, novi, member, keys, config, private })
    }

    fn function(config: &Value, variables: &[(&str, &str)], private: &Private) -> anyhow::Result<Function> {
        Function::start("verify", config, &[&[("NOVI_TIMEOUT_MS", "2000")], variables].concat(), private)
    }

    /// The same world with another instance of the function, which knows nothing of the first.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn another_instance(&self, variables: &[(&str, &str)]) -> anyhow::Result<Function> {
        Self::function(&self.config, variables, &self.private)
    }

    /// The path of a member.
    #[must_use]
    pub fn path(id: Uuid) -> String {
        format!("/v3/action/idaa/novi_member/{}", id.hyphenated())
    }

    /// A request of a member by the front end, gate open.
    #[must_use]
    pub fn request(&self, id: Uuid) -> Request {
        Request::get(&Self::path(id)).header("x-api-key", &self.keys.frontend).header("x-account-id", "account-1")
    }

    /// Sends a request as an HTTP API does.
    ///
    /// # Errors
    /// Where the function gives no answer to HTTP.
    pub async fn send(&self, request: &Request) -> anyhow::Result<Answer> {
        self.send_to(&self.function, request).await
    }

    /// Sends a request to another instance.
    ///
    /// # Errors
    /// Where the function gives no answer to HTTP.
    pub async fn send_to(&self, function: &Function, request: &Request) -> anyhow::Result<Answer> {
        Answer::read(&function.invoke(&request.http_api("$default")).await?)
    }

    /// Verifies a member.
    ///
    /// # Errors
    /// Where the function gives no answer to HTTP.
    pub async fn verify(&self, id: Uuid) -> anyhow::Result<Answer> {
        self.send(&self.request(id)).await
    }
}

/// The part of a list in a report.
///
/// # Panics
/// Where the report has none.
#[must_use]
pub fn list<'r>(report: &'r Value, id: &str) -> &'r Value {
    let lists = report["lists"].as_array().map(Vec::as_slice).unwrap_or_default();
    lists.iter().find(|list| list["list_id"] == id).unwrap_or_else(|| panic!("no {id} in {report}"))
}

/// The report in what an invocation returned, whether that is it or an error that holds it.
///
/// # Errors
/// Where there is no report.
pub fn report(returned: Value) -> anyhow::Result<Value> {
    let Some(message) = returned["errorMessage"].as_str() else {
        return Ok(returned);
    };
    let json = message.find('{').and_then(|start| Some(&message[start..=message.rfind('}')?]));
    Ok(serde_json::from_str(json.with_context(|| format!("no report: {message}"))?)?)
}

/// A mirror, its Novi, and a real Mailman.
pub struct Mirror {
    /// The function.
    pub function: Function,
    /// Its source.
    pub novi: Novi,
    /// Its destination.
    pub mailman: Mailman,
    /// The parameters that it was started with.
    pub config: Value,
    /// What may not be logged.
    pub private: Private,
}

impl Mirror {
    /// Starts it with the mappings that `mappings` makes, allowed to write, and
    /// with no pace to keep but what `variables` say.
    ///
    /// # Errors
    /// Where something that `make` sets up is missing.
    pub async fn start(directory: Directory, mappings: Value, variables: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::start_on(Mailman::start().await?, directory, mappings, variables).await
    }

    /// The same before a Mailman that is there.
    ///
    /// # Errors
    /// Where something that `make` sets up is missing.
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
        });
        let function = Self::function(&config, variables, &private)?;
        Ok(Self { function, novi, mailman, config, private })
    }

    fn function(config: &Value, variables: &[(&str, &str)], private: &Private) -> anyhow::Result<Function> {
        let usual = [
            ("MIRROR_APPLY", "true"),
            ("NOVI_MAX_PER_SECOND", "10000"),
            ("NOVI_MAX_PER_MINUTE", "100000"),
            ("NOVI_TIMEOUT_MS", "2000"),
        ];
        Function::start("mirror", config, &[&usual, variables].concat(), private)
    }

    /// The same world with another instance of the function, which knows nothing of the first.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn another_instance(&self, variables: &[(&str, &str)]) -> anyhow::Result<Function> {
        Self::function(&self.config, variables, &self.private)
    }

    /// Puts a proxy before Mailman. It is to be called before the first run.
    ///
    /// # Errors
    /// Where no port is free.
    pub async fn put_proxy(&mut self) -> anyhow::Result<Proxy> {
        let proxy = Proxy::start(self.mailman.base_url()).await?;
        self.config["mailman_base_url"] = json!(proxy.url());
        self.function.set_config(&self.config)?;
        Ok(proxy)
    }

    /// Runs once. Gives the report, whether it came as a result or in an error.
    ///
    /// # Errors
    /// Where there is no report.
    pub async fn run(&self, event: Value) -> anyhow::Result<Value> {
        report(self.function.invoke(&event).await?)
    }
}
