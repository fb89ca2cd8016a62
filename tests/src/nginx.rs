//! A real nginx in front of a real Mailman, with the rules of an organization's proxy: rate limits, limits of request
//! bodies, error pages and maintenance.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::process::{Server, children, free_port, start_on_free_port};

/// The path of Mailman's API behind [`Rule::PathPrefix`], without the version.
pub const PATH_PREFIX: &str = "/mailman";

/// A rule of the proxy. Rules can be combined, except those that set the same limit ([`Rule::MaxBody`],
/// [`Rule::Firewall`] and [`Rule::LargeBodiesFail`]), and [`Rule::DropDeleteBody`] with [`Rule::PathPrefix`].
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// More than `per_second` requests a second are rejected, without a burst: at 10 a second, a request within 100 ms
    /// of the last accepted one. The response is nginx's HTML page, or one of the same kind with a `Retry-After`.
    RateLimit {
        /// The number of requests a second.
        per_second: u32,
        /// The status of the response, 429 or 503 (nginx's default).
        status: u16,
        /// The seconds in the response's `Retry-After`.
        retry_after: Option<u32>,
    },
    /// A request body with more bytes is rejected with nginx's own 413, an HTML page.
    MaxBody(u32),
    /// A request body with more bytes is rejected with a 403 and an HTML page, as a web application firewall does.
    Firewall(u32),
    /// A request body with more bytes is rejected with a 500 and an HTML page, as a failing filter does.
    LargeBodiesFail(u32),
    /// Mailman's 400, 404, 409 and 500 keep their status, but their body is an HTML page of the proxy.
    ErrorPages,
    /// The response to every request is a 503 with an HTML page.
    Maintenance {
        /// The seconds in the response's `Retry-After`.
        retry_after: Option<u32>,
    },
    /// The response to every request is a 200 with an HTML page.
    WelcomePage,
    /// Every DELETE is rejected with this status (403 or 405) and an HTML page.
    ForbidDelete(u16),
    /// Every DELETE with a body is rejected with this status and an HTML page. Others pass.
    ForbidDeleteWithBody(u16),
    /// The body of a bulk removal is dropped: Mailman receives the DELETE without a `Content-Length`, but with the
    /// `Content-Type`. Mailman 3.3.5 and 3.3.10 respond with a 400, `"title": "Invalid JSON"`.
    DropDeleteBody,
    /// Mailman's API is at [`PATH_PREFIX`]. The response to other paths is a 404 with an HTML page.
    PathPrefix,
}

/// A running nginx. Dropping it stops it.
pub struct Nginx {
    server: Server,
    dir: TempDir,
    port: u16,
    target: String,
    http: reqwest::Client,
}

impl Nginx {
    /// Starts nginx in front of the server at `target`, for example `http://127.0.0.1:8001`.
    ///
    /// # Errors
    /// Fails if nginx is not installed, doesn't start, or rejects the combination of rules.
    pub async fn start(target: &str, rules: &[Rule]) -> anyhow::Result<Self> {
        start_on_free_port(|| Self::start_once(target, rules)).await
    }

    async fn start_once(target: &str, rules: &[Rule]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let port = free_port()?;
        let generation = write_config(dir.path(), port, target, rules)?;
        let program = program()?.display().to_string();
        let (prefix, config) = (dir.path().display().to_string(), config_file(dir.path()).display().to_string());
        // Killing the main process would leave its worker running. SIGTERM stops both, also when this process ends.
        let arguments = ["--pdeathsig", "TERM", "--", &program, "-p", &prefix, "-c", &config];
        let mut server = Server::start(Path::new("setpriv"), &arguments, &[], dir.path().join("log"))?;
        server.wait_for_port(port, Duration::from_secs(20)).context("nginx failed to start")?;
        let nginx = Self { server, dir, port, target: target.to_owned(), http: crate::http() };
        // This also shows that no other server has taken the port.
        nginx.wait_for_generation(generation).await?;
        Ok(nginx)
    }

    /// Replaces the rules. When this returns, they apply to every new request.
    ///
    /// # Errors
    /// Fails if nginx rejects the combination of rules.
    pub async fn set(&self, rules: &[Rule]) -> anyhow::Result<()> {
        let generation = write_config(self.dir.path(), self.port, &self.target, rules)?;
        self.server.signal(Signal::SIGHUP);
        self.wait_for_generation(generation).await
    }

    /// Waits until all requests are processed with the configuration that has this id.
    async fn wait_for_generation(&self, generation: u64) -> anyhow::Result<()> {
        let url = format!("{}/generation", self.base_url());
        for _ in 0..2_000 {
            let text = match self.http.get(&url).timeout(Duration::from_secs(5)).send().await {
                Ok(response) => response.text().await.unwrap_or_default(),
                Err(_) => String::new(),
            };
            // For a moment, the worker with the former configuration also accepts requests.
            if text == generation.to_string() && children(self.server.pid())?.len() == 1 {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bail!("nginx doesn't use its configuration: {}", self.server.output())
    }

    /// Returns nginx's own base URL, for example `http://127.0.0.1:23456`. See [`PATH_PREFIX`].
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns the requests so far, one a line: `POST /3.1/members 429 512`. The last number is the size of the whole
    /// request in bytes. The path has no query.
    ///
    /// # Errors
    /// Fails if the log can't be read.
    pub fn access_log(&self) -> anyhow::Result<String> {
        let file = self.dir.path().join("access.log");
        std::fs::read_to_string(&file).with_context(|| format!("reading {} failed", file.display()))
    }

    /// Waits until nginx has logged a response with this status.
    ///
    /// # Errors
    /// Fails if there is none after a minute.
    pub async fn wait_for_status(&self, status: u16) -> anyhow::Result<()> {
        let status = format!(" {status} ");
        for _ in 0..6_000 {
            if self.access_log()?.contains(&status) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bail!("nginx has sent no{status}response: {}", self.access_log()?)
    }
}

/// The parts of a configuration that depend on the rules.
struct RuleDirectives {
    /// The path of Mailman's API.
    path: &'static str,
    /// What is appended to the target, to remove the path.
    target_path: &'static str,
    http: String,
    server: String,
    /// Directives of the location of Mailman's API.
    location: String,
}

impl RuleDirectives {
    fn new(rules: &[Rule], target: &str) -> Self {
        let mut directives =
            Self { path: "/", target_path: "", http: String::new(), server: String::new(), location: String::new() };
        for rule in rules {
            directives.add(*rule, target);
        }
        directives
    }

    fn add(&mut self, rule: Rule, target: &str) {
        match rule {
            Rule::RateLimit { per_second, status, retry_after } => {
                self.http += &format!("limit_req_zone $binary_remote_addr zone=requests:64k rate={per_second}r/s;\n");
                self.location += &format!("limit_req zone=requests;\nlimit_req_status {status};\n");
                if retry_after.is_some() {
                    self.location += &format!("error_page {status} = @limited;\n");
                    let page = page(status, "Too many requests", retry_after);
                    self.server += &format!("location @limited {{\n{page}}}\n");
                }
            }
            Rule::MaxBody(bytes) => self.location += &format!("client_max_body_size {bytes};\n"),
            Rule::Firewall(bytes) => self.reject_large_bodies(bytes, 403, "Request blocked"),
            Rule::LargeBodiesFail(bytes) => self.reject_large_bodies(bytes, 500, "Internal Server Error"),
            Rule::ErrorPages => {
                self.location += "proxy_intercept_errors on;\nerror_page 400 404 409 500 @error;\n";
                // Without `=` in error_page, this 200 doesn't replace the status.
                self.server += &format!("location @error {{\n{}}}\n", page(200, "Something went wrong", None));
            }
            Rule::Maintenance { retry_after } => self.location += &page(503, "Down for maintenance", retry_after),
            Rule::WelcomePage => self.location += &page(200, "Welcome", None),
            Rule::ForbidDelete(status) => {
                self.location += &format!("if ($request_method = DELETE) {{ return {status}; }}\n");
            }
            Rule::ForbidDeleteWithBody(status) => {
                self.location += &format!(
                    "set $method_and_length \"$request_method $content_length\";\n\
                     if ($method_and_length ~ \"^DELETE [1-9]\") {{ return {status}; }}\n"
                );
            }
            Rule::DropDeleteBody => {
                // nginx can only switch off the body for a whole location. 418 leads there, and no client sees it.
                self.location += "error_page 418 = @without_body;\n\
                    set $method_and_path \"$request_method $uri\";\n\
                    if ($method_and_path ~ \"^DELETE /.*/roster/member$\") { return 418; }\n";
                self.server += &format!(
                    "location @without_body {{\nproxy_pass_request_body off;\nproxy_set_header Content-Length \"\";\n\
                     proxy_pass {target};\n}}\n"
                );
            }
            Rule::PathPrefix => {
                (self.path, self.target_path) = ("/mailman/", "/");
                self.server += &format!("location / {{\n{}}}\n", page(404, "Not Found", None));
            }
        }
    }

    /// nginx measures the body, and rejects it with a 413. The 413 becomes another status.
    fn reject_large_bodies(&mut self, bytes: u32, status: u16, title: &str) {
        self.location += &format!("client_max_body_size {bytes};\nerror_page 413 = @too_large;\n");
        self.server += &format!("location @too_large {{\n{}}}\n", page(status, title, None));
    }
}

/// Returns directives that respond with an HTML page.
fn page(status: u16, title: &str, retry_after: Option<u32>) -> String {
    let header = retry_after.map(|seconds| format!("add_header Retry-After {seconds} always;\n")).unwrap_or_default();
    format!("{header}default_type text/html;\nreturn {status} \"<html><body><h1>{title}</h1></body></html>\";\n")
}

fn config_file(dir: &Path) -> PathBuf {
    dir.join("nginx.conf")
}

/// Writes the configuration, and returns the id that it responds with at `/generation`.
fn write_config(dir: &Path, port: u16, target: &str, rules: &[Rule]) -> anyhow::Result<u64> {
    let generation = fastrand::u64(..);
    let RuleDirectives { path, target_path, http, server, location } = RuleDirectives::new(rules, target);
    // If root starts nginx, its worker would otherwise run as another user, who can't write to the directory.
    let user = if nix::unistd::geteuid().is_root() { "user root;\n" } else { "" };
    let dir_text = dir.display();
    ensure!(!dir_text.to_string().contains(char::is_whitespace), "nginx needs a TMPDIR without spaces: {dir_text}");
    let config = format!(
        "daemon off;\n{user}worker_processes 1;\npid {dir_text}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n\
         log_format requests '$request_method $uri $status $request_length';\n\
         access_log {dir_text}/access.log requests;\n\
         client_body_temp_path {dir_text}/body;\nproxy_temp_path {dir_text}/proxy;\n\
         fastcgi_temp_path {dir_text}/fastcgi;\nuwsgi_temp_path {dir_text}/uwsgi;\nscgi_temp_path {dir_text}/scgi;\n\
         # Mailman also closes each connection. A new configuration would cut off idle ones.\nkeepalive_timeout 0;\n\
         {http}server {{\nlisten 127.0.0.1:{port};\n\
         location = /generation {{\naccess_log off;\nreturn 200 {generation};\n}}\n\
         location {path} {{\n{location}proxy_pass {target}{target_path};\n}}\n\
         {server}}}\n}}\n"
    );
    std::fs::write(config_file(dir), config)?;
    Ok(generation)
}

/// Returns the path of nginx. Debian's is not in the `PATH` of ordinary users.
fn program() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let mut programs = directories.map(|directory| directory.join("nginx"));
    programs.find(|path| path.is_file()).context("nginx is missing. `make test` installs it.")
}
