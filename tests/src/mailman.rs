//! A real GNU Mailman core: the REST runner alone, with no mail server. What
//! it would send piles up in a folder, where a test can count it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::function::venv;
use crate::postgres::Postgres;
use crate::process::{Server, free_port};
use crate::workspace;

/// What Mailman keeps its lists in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Database {
    /// Mailman's own default.
    Sqlite,
    /// A real PostgreSQL of its own.
    Postgres,
}

impl Database {
    /// The one on which the sequence of a seed is played: seen again, it is seen on the same.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        if seed.is_multiple_of(2) { Self::Sqlite } else { Self::Postgres }
    }
}

/// A running core.
pub struct Mailman {
    server: Server,
    _postgres: Option<Postgres>,
    dir: TempDir,
    port: u16,
    password: String,
    http: reqwest::Client,
}

/// The user of the REST API.
pub const USER: &str = "restadmin";

/// A lock on Mailman's database, which nobody else can write to while it lasts.
pub struct DatabaseLock(Child);

impl Drop for DatabaseLock {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Mailman {
    /// Starts one on SQLite, with the domain `lists.example.org` and no list.
    ///
    /// # Errors
    /// Where `.venv` is not set up, or the core does not start.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_on(Database::Sqlite).await
    }

    /// Starts one on a database of its own.
    ///
    /// # Errors
    /// Where something that `make test` sets up is missing, or the core does not start.
    pub async fn start_on(database: Database) -> anyhow::Result<Self> {
        // Somebody else may take the port between our asking and Mailman's binding.
        let mut last = None;
        for _ in 0..3 {
            match Self::try_start(database).await {
                Ok(mailman) => return Ok(mailman),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("Mailman does not start")))
    }

    async fn try_start(database: Database) -> anyhow::Result<Self> {
        let postgres = (database == Database::Postgres).then(Postgres::start).transpose()?;
        let dir = tempfile::tempdir()?;
        let port = free_port()?;
        let password = format!("p{:032x}", fastrand::u128(..));
        std::fs::write(dir.path().join("mailman.cfg"), config(&dir, port, &password, postgres.as_ref()))?;
        let server = serve(&dir, port)?;
        let mailman = Self { server, _postgres: postgres, dir, port, password, http: crate::http() };
        let domain = json!({"mail_host": "lists.example.org"});
        let created = mailman.expect(Method::POST, "domains", Some(domain), 201).await;
        created.with_context(|| format!("Mailman has printed: {}", mailman.server.printed()))?;
        Ok(mailman)
    }

    /// Ends it at once, as a crash would, and starts it again.
    ///
    /// # Errors
    /// Where it does not start again.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.server.kill();
        self.server = serve(&self.dir, self.port)?;
        Ok(())
    }

    /// The base of the REST API, without its version.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What its own tools are told by `-C`.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.dir.path().join("mailman.cfg")
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

    /// Every membership of a list, by Mailman's own id of it: the address. Who
    /// was away for a moment comes back by another id.
    ///
    /// # Errors
    /// Where Mailman does not say.
    pub async fn memberships(&self, list: &str) -> anyhow::Result<BTreeMap<String, String>> {
        let path = format!("lists/{list}/roster/member?fields=email&fields=member_id");
        let body = self.expect(Method::GET, &path, None, 200).await?;
        let entries = body["entries"].as_array().cloned().unwrap_or_default();
        let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        Ok(entries.iter().map(|entry| (text(entry, "member_id"), text(entry, "email"))).collect())
    }

    /// Makes `addresses` members by writing into the SQLite database, which
    /// takes a moment for thousands. One that is a member already becomes one
    /// twice, as overlapping subscriptions make it.
    ///
    /// # Errors
    /// Where the database cannot be written.
    pub fn insert(&self, list: &str, addresses: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
        use std::io::Write;
        let mut script = Command::new(venv().join("bin/python"))
            .arg(workspace().join("tests/insert_members.py"))
            .arg(self.database())
            .arg(list)
            .stdin(Stdio::piped())
            .spawn()?;
        let mut stdin = script.stdin.take().context("the script has an input")?;
        for address in addresses {
            writeln!(stdin, "{address}")?;
        }
        drop(stdin);
        ensure!(script.wait()?.success(), "the script failed");
        Ok(())
    }

    /// Locks the SQLite database until the lock is dropped.
    ///
    /// # Errors
    /// Where it cannot be locked.
    pub fn lock_database(&self) -> anyhow::Result<DatabaseLock> {
        use std::io::{BufRead, BufReader};
        const SCRIPT: &str = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], timeout=30); \
                              c.execute('BEGIN EXCLUSIVE'); print('locked', flush=True); sys.stdin.read()";
        let mut child = Command::new(venv().join("bin/python"))
            .args(["-c", SCRIPT])
            .arg(self.database())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().context("the script has an output")?;
        let lock = DatabaseLock(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line == "locked\n", "the database could not be locked");
        Ok(lock)
    }

    fn database(&self) -> PathBuf {
        self.dir.path().join("var/data/mailman.db")
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

fn config(dir: &TempDir, port: u16, password: &str, postgres: Option<&Postgres>) -> String {
    let mut config = format!(
        "[mailman]\nlayout: here\nsite_owner: owner@lists.example.org\n\
         [paths.here]\nvar_dir: {}/var\n\
         [mta]\nincoming: mailman.mta.null.NullMTA\nsmtp_port: 1\n\
         [webservice]\nhostname: 127.0.0.1\nport: {port}\nadmin_user: {USER}\nadmin_pass: {password}\nworkers: 2\n",
        dir.path().display()
    );
    if let Some(postgres) = postgres {
        let url = postgres.url();
        config += &format!("[database]\nclass: mailman.database.postgresql.PostgreSQLDatabase\nurl: {url}\n");
    }
    config
}

/// Starts the REST runner.
fn serve(dir: &TempDir, port: u16) -> anyhow::Result<Server> {
    let config = dir.path().join("mailman.cfg").display().to_string();
    let arguments = ["-C", &config, "-r", "rest"];
    let mut server = Server::start(&venv().join("bin/runner"), &arguments, &[], dir.path().join("log"))?;
    server.wait_for_port(port, Duration::from_secs(60)).context("Mailman does not start")?;
    Ok(server)
}
