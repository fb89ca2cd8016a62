//! A real GNU Mailman core: the REST runner alone, on SQLite, with no mail
//! server. What it would send piles up in a folder, where a test can count it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::function::venv;
use crate::process::{Server, free_port};

/// A running core.
pub struct Mailman {
    _server: Server,
    dir: TempDir,
    port: u16,
    password: String,
    http: reqwest::Client,
}

/// The user of the REST API.
pub const USER: &str = "restadmin";

impl Mailman {
    /// Starts one, with an empty database and the domain `lists.example.org`.
    ///
    /// # Errors
    /// Where `.venv` is not set up, or the core does not start.
    pub async fn start() -> anyhow::Result<Self> {
        // Somebody else may take the port between our asking and Mailman's binding.
        let mut last = None;
        for _ in 0..3 {
            match Self::start_once() {
                Ok(mailman) => {
                    let domain = json!({"mail_host": "lists.example.org"});
                    mailman.expect(Method::POST, "domains", Some(domain), 201).await?;
                    return Ok(mailman);
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("Mailman does not start")))
    }

    fn start_once() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let port = free_port()?;
        let password = format!("p{:032x}", fastrand::u128(..));
        let config = dir.path().join("mailman.cfg");
        std::fs::write(
            &config,
            format!(
                "[mailman]\nlayout: here\nsite_owner: owner@lists.example.org\n\
                 [paths.here]\nvar_dir: {}/var\n\
                 [mta]\nincoming: mailman.mta.null.NullMTA\nsmtp_port: 1\n\
                 [webservice]\nhostname: 127.0.0.1\nport: {port}\nadmin_user: {USER}\nadmin_pass: {password}\nworkers: 2\n",
                dir.path().display()
            ),
        )?;
        let config = config.display().to_string();
        let arguments = ["-C", &config, "-r", "rest"];
        let mut server = Server::start(&venv().join("bin/runner"), &arguments, &[], dir.path().join("log"))?;
        server.wait_for_port(port, Duration::from_secs(60)).context("Mailman does not start")?;
        Ok(Self { _server: server, dir, port, password, http: crate::http() })
    }

    /// The base of the REST API, without its version.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The password of the REST API.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Asks the REST API. Gives the status and the body.
    ///
    /// # Errors
    /// Where the core does not answer.
    pub async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<(u16, Value)> {
        let mut request = self
            .http
            .request(method, format!("{}/3.1/{path}", self.base_url()))
            .basic_auth(USER, Some(&self.password))
            .timeout(Duration::from_secs(60));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.context("Mailman does not answer")?;
        let status = response.status().as_u16();
        Ok((status, serde_json::from_slice(&response.bytes().await?).unwrap_or_default()))
    }

    async fn expect(&self, method: Method, path: &str, body: Option<Value>, status: u16) -> anyhow::Result<Value> {
        match self.ask(method, path, body).await? {
            (got, body) if got == status => Ok(body),
            (got, body) => bail!("Mailman answers {got} instead of {status} for {path}: {body}"),
        }
    }

    /// Makes the list `name@lists.example.org` and gives its id.
    ///
    /// # Errors
    /// Where Mailman refuses.
    pub async fn create_list(&self, name: &str) -> anyhow::Result<String> {
        let body = json!({"fqdn_listname": format!("{name}@lists.example.org")});
        self.expect(Method::POST, "lists", Some(body), 201).await?;
        Ok(format!("{name}.lists.example.org"))
    }

    /// Subscribes somebody by hand, in a role (`member`, `owner`, …).
    ///
    /// # Errors
    /// Where Mailman refuses.
    pub async fn subscribe(&self, list: &str, address: &str, role: &str) -> anyhow::Result<()> {
        let body = json!({
            "list_id": list, "subscriber": address, "role": role, "display_name": "",
            "pre_verified": true, "pre_confirmed": true, "pre_approved": true, "send_welcome_message": false,
        });
        self.expect(Method::POST, "members", Some(body), 201).await.map(|_| ())
    }

    /// The members of a list in a role: display name by address.
    ///
    /// # Errors
    /// Where Mailman does not say.
    pub async fn roster(&self, list: &str, role: &str) -> anyhow::Result<BTreeMap<String, String>> {
        let body = self.expect(Method::GET, &format!("lists/{list}/roster/{role}"), None, 200).await?;
        let entries = body["entries"].as_array().cloned().unwrap_or_default();
        let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        Ok(entries.iter().map(|entry| (text(entry, "email"), text(entry, "display_name"))).collect())
    }

    /// How many mails wait to be sent.
    ///
    /// # Errors
    /// Where the folder cannot be read.
    pub fn outgoing_mails(&self) -> anyhow::Result<usize> {
        match std::fs::read_dir(self.dir.path().join("var/queue/virgin")) {
            Ok(files) => Ok(files.count()),
            // The folder is made with the first mail.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error.into()),
        }
    }
}
