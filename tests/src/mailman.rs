//! A real GNU Mailman core: only the REST runner, without a mail server. Outgoing
//! emails stay in a queue directory, where tests can count them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::function::venv;
use crate::mariadb::MariaDb;
use crate::postgres::Postgres;
use crate::process::{Server, free_port, start_on_free_port, wait_until_closed};
use crate::shared_servers;
use crate::workspace;

/// The database that Mailman stores its lists in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Database {
    /// SQLite, Mailman's default.
    Sqlite,
    /// A real PostgreSQL, with a database that only this Mailman uses.
    Postgres,
    /// A real MariaDB.
    MariaDb,
}

/// A database, running if it is a server.
enum Storage {
    Sqlite,
    Postgres(Postgres),
    MariaDb(MariaDb),
}

impl Storage {
    fn start(database: Database) -> anyhow::Result<Self> {
        Ok(match database {
            Database::Sqlite => Self::Sqlite,
            Database::Postgres => Self::Postgres(Postgres::start()?),
            Database::MariaDb => Self::MariaDb(MariaDb::start()?),
        })
    }

    /// Returns the section of Mailman's configuration that names this database.
    fn configuration(&self) -> String {
        let (class, url) = match self {
            Self::Sqlite => return String::new(),
            Self::Postgres(postgres) => ("postgresql.PostgreSQLDatabase", postgres.url()),
            Self::MariaDb(mariadb) => ("mysql.MySQLDatabase", mariadb.url()),
        };
        format!("[database]\nclass: mailman.database.{class}\nurl: {url}\n")
    }
}

impl Database {
    /// Returns the database for a seed's sequence, so that a repeated sequence runs on the same one.
    #[must_use]
    pub fn for_seed(seed: u64) -> Self {
        if seed.is_multiple_of(2) { Self::Sqlite } else { Self::Postgres }
    }
}

/// The release of a core.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Release {
    /// The newest one, in `.venv`.
    Newest,
    /// 3.3.5, which Debian 11 and Ubuntu 22.04 have.
    Old,
}

/// A running core.
pub struct Mailman {
    server: Server,
    release: Release,
    _storage: Storage,
    dir: TempDir,
    port: u16,
    password: String,
    http: reqwest::Client,
}

/// The user of the REST API.
pub const USER: &str = "restadmin";
/// The domain of all lists.
const DOMAIN: &str = "lists.example.org";
/// The path of the SQLite database in Mailman's directory.
const SQLITE_FILE: &str = "var/data/mailman.db";

/// An exclusive lock on Mailman's database. Nothing else can write to the database until it is dropped.
pub struct DatabaseLock(Child);

impl Drop for DatabaseLock {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Mailman {
    /// Kills the core, because shutting down takes it almost a second, and its data is deleted anyway.
    fn drop(&mut self) {
        self.server.kill();
    }
}

impl Mailman {
    /// Starts a core on SQLite, with the domain `lists.example.org` and no lists.
    ///
    /// # Errors
    /// Fails if `.venv` is not set up, or the core doesn't start.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_on(Database::Sqlite).await
    }

    /// Starts a core on a new database of this kind.
    ///
    /// # Errors
    /// Fails if something that `make test` sets up is missing, or the core doesn't start.
    pub async fn start_on(database: Database) -> anyhow::Result<Self> {
        Self::start_release(Release::Newest, database).await
    }

    /// Starts a core 3.3.5 on SQLite.
    ///
    /// # Errors
    /// Fails if something that `make test` sets up is missing, or the core doesn't start.
    pub async fn start_old() -> anyhow::Result<Self> {
        Self::start_release(Release::Old, Database::Sqlite).await
    }

    async fn start_release(release: Release, database: Database) -> anyhow::Result<Self> {
        start_on_free_port(|| Self::start_once(release, database)).await
    }

    async fn start_once(release: Release, database: Database) -> anyhow::Result<Self> {
        let storage = Storage::start(database)?;
        let dir = tempfile::tempdir()?;
        let port = free_port()?;
        let password = format!("p{:032x}", fastrand::u128(..));
        std::fs::write(dir.path().join("mailman.cfg"), config(&dir, port, &password, &storage))?;
        let new_database = shared_servers::path(shared_servers::MAILMAN_DATABASE);
        let new_database = new_database.filter(|_| (release, database) == (Release::Newest, Database::Sqlite));
        if let Some(file) = &new_database {
            std::fs::create_dir_all(dir.path().join("var/data"))?;
            std::fs::copy(file, dir.path().join(SQLITE_FILE))?;
        }
        let server = start_runner(release, &dir, port)?;
        let mailman = Self { server, release, _storage: storage, dir, port, password, http: crate::http() };
        // The request also shows that no other Mailman has taken the port.
        let checked = if new_database.is_some() {
            mailman.expect(Method::GET, &format!("domains/{DOMAIN}"), None, 200).await
        } else {
            mailman.expect(Method::POST, "domains", Some(json!({"mail_host": DOMAIN})), 201).await
        };
        checked.with_context(|| format!("Mailman's output: {}", mailman.server.output()))?;
        Ok(mailman)
    }

    /// Starts a core and stops it, and copies its SQLite database to `file`. A core
    /// that starts with a copy of this file doesn't have to create its tables.
    ///
    /// # Errors
    /// Fails if `.venv` is not set up, or the core doesn't start.
    pub async fn write_new_database(file: &Path) -> anyhow::Result<()> {
        let mut mailman = Self::start().await?;
        mailman.server.stop();
        std::fs::copy(mailman.database(), file)?;
        Ok(())
    }

    /// Kills the core, as a crash would, and starts it again.
    ///
    /// # Errors
    /// Fails if the core doesn't start again.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.server.kill();
        // Until the killed processes are gone, they accept connections that nothing serves.
        wait_until_closed(self.port, Duration::from_secs(10))?;
        self.server = start_runner(self.release, &self.dir, self.port)?;
        Ok(())
    }

    /// Returns the base URL of the REST API, without the version.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns the path of the configuration file, for the `-C` option of Mailman's own tools.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.dir.path().join("mailman.cfg")
    }

    /// Returns the password of the REST API.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Sends a request to the REST API and returns the status and the body.
    ///
    /// # Errors
    /// Fails if the core doesn't respond.
    pub async fn request(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<(u16, Value)> {
        let mut request = self
            .http
            .request(method, format!("{}/3.1/{path}", self.base_url()))
            .basic_auth(USER, Some(&self.password))
            .timeout(Duration::from_secs(60));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.context("Mailman didn't respond")?;
        let status = response.status().as_u16();
        Ok((status, serde_json::from_slice(&response.bytes().await?).unwrap_or_default()))
    }

    async fn expect(&self, method: Method, path: &str, body: Option<Value>, status: u16) -> anyhow::Result<Value> {
        match self.request(method, path, body).await? {
            (actual, body) if actual == status => Ok(body),
            (actual, body) => bail!("expected {status} from Mailman for {path}, got {actual}: {body}"),
        }
    }

    /// Creates the list `name@lists.example.org` and returns its id.
    ///
    /// # Errors
    /// Fails if Mailman rejects the request.
    pub async fn create_list(&self, name: &str) -> anyhow::Result<String> {
        let body = json!({"fqdn_listname": format!("{name}@{DOMAIN}")});
        self.expect(Method::POST, "lists", Some(body), 201).await?;
        Ok(format!("{name}.{DOMAIN}"))
    }

    /// Subscribes an address in a role (`member`, `owner`, …), as an administrator would.
    ///
    /// # Errors
    /// Fails if Mailman rejects the request.
    pub async fn subscribe(&self, list: &str, address: &str, role: &str) -> anyhow::Result<()> {
        let body = json!({
            "list_id": list, "subscriber": address, "role": role, "display_name": "",
            "pre_verified": true, "pre_confirmed": true, "pre_approved": true, "send_welcome_message": false,
        });
        self.expect(Method::POST, "members", Some(body), 201).await.map(|_| ())
    }

    /// Returns the members of a list in a role: display names by address.
    ///
    /// # Errors
    /// Fails if Mailman doesn't return the roster.
    pub async fn roster(&self, list: &str, role: &str) -> anyhow::Result<BTreeMap<String, String>> {
        // The other fields take Mailman most of the time.
        let path = format!("lists/{list}/roster/{role}?fields=email&fields=display_name");
        let body = self.expect(Method::GET, &path, None, 200).await?;
        let entries = body["entries"].as_array().cloned().unwrap_or_default();
        let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        Ok(entries.iter().map(|entry| (text(entry, "email"), text(entry, "display_name"))).collect())
    }

    /// Returns all memberships of a list: addresses by Mailman's id of the
    /// membership. An address that was removed and added again has a new id.
    ///
    /// # Errors
    /// Fails if Mailman doesn't return the roster.
    pub async fn memberships(&self, list: &str) -> anyhow::Result<BTreeMap<String, String>> {
        let path = format!("lists/{list}/roster/member?fields=email&fields=member_id");
        let body = self.expect(Method::GET, &path, None, 200).await?;
        let entries = body["entries"].as_array().cloned().unwrap_or_default();
        let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        Ok(entries.iter().map(|entry| (text(entry, "member_id"), text(entry, "email"))).collect())
    }

    /// Makes `addresses` members of a list, like [`Self::insert_all_members`].
    ///
    /// # Errors
    /// Fails if the database can't be written.
    pub fn insert_members(&self, list: &str, addresses: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
        self.insert_all_members(addresses.into_iter().map(|address| (list, address)))
    }

    /// Makes addresses members of lists by writing to the SQLite database, which
    /// takes only a moment even for thousands. An address that is already a member
    /// gets a duplicate membership, as after overlapping subscriptions.
    ///
    /// # Errors
    /// Fails if the database can't be written.
    pub fn insert_all_members<'l>(&self, members: impl IntoIterator<Item = (&'l str, String)>) -> anyhow::Result<()> {
        use std::io::Write;
        let mut script = Command::new(venv().join("bin/python"))
            .arg(workspace().join("tests/insert_members.py"))
            .arg(self.database())
            .stdin(Stdio::piped())
            .spawn()?;
        let mut stdin = script.stdin.take().context("the script's standard input is piped")?;
        for (list, address) in members {
            writeln!(stdin, "{list} {address}")?;
        }
        drop(stdin);
        ensure!(script.wait()?.success(), "tests/insert_members.py failed");
        Ok(())
    }

    /// Locks the SQLite database until the returned lock is dropped.
    ///
    /// # Errors
    /// Fails if the database can't be locked.
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
        let stdout = child.stdout.take().context("the script's standard output is piped")?;
        let lock = DatabaseLock(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line == "locked\n", "locking the database failed");
        Ok(lock)
    }

    fn database(&self) -> PathBuf {
        self.dir.path().join(SQLITE_FILE)
    }

    /// Returns the number of emails in the outgoing queue.
    ///
    /// # Errors
    /// Fails if the queue directory can't be read.
    pub fn outgoing_emails(&self) -> anyhow::Result<usize> {
        match std::fs::read_dir(self.dir.path().join("var/queue/virgin")) {
            Ok(files) => Ok(files.count()),
            // Mailman creates the directory with the first email.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error.into()),
        }
    }
}

fn config(dir: &TempDir, port: u16, password: &str, storage: &Storage) -> String {
    format!(
        "[mailman]\nlayout: here\nsite_owner: owner@lists.example.org\n\
         [paths.here]\nvar_dir: {}/var\n\
         [mta]\nincoming: mailman.mta.null.NullMTA\nsmtp_port: 1\n\
         [webservice]\nhostname: 127.0.0.1\nport: {port}\nadmin_user: {USER}\nadmin_pass: {password}\nworkers: 2\n\
         {}",
        dir.path().display(),
        storage.configuration()
    )
}

/// Starts the REST runner.
fn start_runner(release: Release, dir: &TempDir, port: u16) -> anyhow::Result<Server> {
    let config = dir.path().join("mailman.cfg").display().to_string();
    let arguments = ["-C", &config, "-r", "rest"];
    let log = dir.path().join("log");
    let mut server = match (release, shared_servers::fork_server("runner")) {
        (Release::Newest, Some(socket)) => Server::fork(&socket, &arguments, log)?,
        (Release::Newest, None) => Server::start(&venv().join("bin/runner"), &arguments, &[], log)?,
        (Release::Old, _) => Server::start(&workspace().join("target/mailman-3.3.5/bin/runner"), &arguments, &[], log)?,
    };
    server.wait_for_port(port, Duration::from_secs(60)).context("Mailman failed to start")?;
    Ok(server)
}
