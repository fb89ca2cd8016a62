//! Fake AWS services: moto for SSM, our own fake of ElastiCache's query API, and
//! a proxy in front of Redis that checks IAM tokens.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::function::venv;
use crate::http_server;
use crate::process::{Server, free_port, wait_until_closed};
use crate::redis::CertificateAuthority;
use crate::shared_servers;

/// Made-up credentials, as Lambda puts them into the environment.
pub const CREDENTIALS: [(&str, &str); 4] = [
    ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE"),
    ("AWS_SECRET_ACCESS_KEY", SECRET),
    ("AWS_SESSION_TOKEN", "a-session-token"),
    ("AWS_REGION", REGION),
];
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const REGION: &str = "us-east-1";

/// moto's server, for SSM.
pub struct Moto {
    url: String,
    prefix: String,
    /// The server, unless tests share it.
    own: Option<MotoServer>,
    http: reqwest::Client,
}

struct MotoServer {
    server: Server,
    port: u16,
    dir: TempDir,
}

impl MotoServer {
    fn start() -> anyhow::Result<Self> {
        let (dir, port) = (tempfile::tempdir()?, free_port()?);
        let server = Self::start_process(dir.path(), port)?;
        Ok(Self { server, port, dir })
    }

    fn start_process(dir: &Path, port: u16) -> anyhow::Result<Server> {
        let (program, number) = (venv().join("bin/moto_server"), port.to_string());
        // Otherwise the first part of a host name is taken for a bucket.
        let variables = [("S3_IGNORE_SUBDOMAIN_BUCKETNAME".to_owned(), "true".to_owned())];
        let mut server = Server::start(&program, &["-H", "127.0.0.1", "-p", &number], &variables, dir.join("log"))?;
        server.wait_for_port(port, Duration::from_secs(60)).context("moto failed to start")?;
        Ok(server)
    }
}

impl Moto {
    /// Returns the server that tests share, or starts one.
    ///
    /// # Errors
    /// Fails if `.venv` is not set up.
    pub fn start() -> anyhow::Result<Self> {
        match shared_servers::text(shared_servers::MOTO_URL) {
            Some(url) => Ok(Self { url, prefix: new_prefix(), own: None, http: crate::http() }),
            None => Self::start_own(),
        }
    }

    /// Starts a server that no other test uses.
    ///
    /// # Errors
    /// Fails if `.venv` is not set up.
    pub fn start_own() -> anyhow::Result<Self> {
        let server = MotoServer::start()?;
        let url = format!("http://127.0.0.1:{}", server.port);
        Ok(Self { url, prefix: new_prefix(), own: Some(server), http: crate::http() })
    }

    /// Returns a path for parameters that no other test uses.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Returns the type of a parameter, if it exists.
    ///
    /// # Errors
    /// Fails if moto doesn't respond.
    pub async fn parameter_type(&self, name: &str) -> anyhow::Result<Option<String>> {
        let response = self.call("GetParameters", &json!({"Names": [name]})).await?;
        Ok(response["Parameters"][0]["Type"].as_str().map(str::to_owned))
    }

    /// Returns the decrypted value of a parameter, if it exists.
    ///
    /// # Errors
    /// Fails if moto doesn't respond.
    pub async fn parameter_value(&self, name: &str) -> anyhow::Result<Option<String>> {
        let response = self.call("GetParameters", &json!({"Names": [name], "WithDecryption": true})).await?;
        Ok(response["Parameters"][0]["Value"].as_str().map(str::to_owned))
    }

    /// Returns the server's URL.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Kills the server. Its parameters are lost.
    ///
    /// # Errors
    /// Fails if other tests use the server.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.own_server()?.server.kill();
        Ok(())
    }

    /// Restarts the server on the same port, without parameters.
    ///
    /// # Errors
    /// Fails if other tests use the server, or it doesn't start.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        let own = self.own_server()?;
        wait_until_closed(own.port, Duration::from_secs(10))?;
        own.server = MotoServer::start_process(own.dir.path(), own.port)?;
        Ok(())
    }

    fn own_server(&mut self) -> anyhow::Result<&mut MotoServer> {
        self.own.as_mut().context("other tests use this moto. Use Moto::start_own.")
    }

    /// Writes parameters below `prefix`, as an administrator would: values that
    /// are not strings become JSON text.
    ///
    /// # Errors
    /// Fails if moto rejects a parameter.
    pub async fn put(&self, prefix: &str, parameters: &Value) -> anyhow::Result<()> {
        for (name, value) in parameters.as_object().into_iter().flatten() {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let body =
                json!({"Name": format!("{prefix}/{name}"), "Value": value, "Type": "SecureString", "Overwrite": true});
            self.call("PutParameter", &body).await?;
        }
        Ok(())
    }

    /// Creates an empty bucket in S3 that no other test uses. Returns its name.
    ///
    /// # Errors
    /// Fails if moto doesn't create it.
    pub async fn create_bucket(&self) -> anyhow::Result<String> {
        let name = format!("bucket-{:016x}", fastrand::u64(..));
        let response = self.http.put(format!("{}/{name}", self.url)).send().await?;
        ensure!(response.status().is_success(), "moto did not create a bucket: {}", response.status());
        Ok(name)
    }

    async fn call(&self, operation: &str, body: &Value) -> anyhow::Result<Value> {
        let response = self
            .http
            .post(self.url())
            .header("x-amz-target", format!("AmazonSSM.{operation}"))
            .header("content-type", "application/x-amz-json-1.1")
            .header("authorization", format!("AWS4-HMAC-SHA256 Credential=A/20261122/{REGION}/ssm/aws4_request"))
            .body(body.to_string())
            .send()
            .await?;
        let status = response.status();
        let body = response.bytes().await?;
        ensure!(status == StatusCode::OK, "moto rejected {operation}: {}", String::from_utf8_lossy(&body));
        Ok(serde_json::from_slice(&body)?)
    }
}

fn new_prefix() -> String {
    format!("/test-{:016x}", fastrand::u64(..))
}

/// A cache that the fake ElastiCache describes.
#[derive(Clone)]
pub enum KnownCache {
    /// A serverless cache and its port on loopback.
    Serverless(u16),
    /// A replication group: its port, whether it uses TLS, and whether it is a cluster.
    ReplicationGroup(u16, bool, bool),
    /// A replication group with TLS on this host and port.
    ReplicationGroupAt(&'static str, u16),
    /// A cache about which the API for serverless caches returns this error, and the port of the replication group with
    /// this id, if there is one.
    NotServerless(&'static str, Option<u16>),
}

/// A fake of ElastiCache's query API, limited to the requests for endpoints.
#[derive(Clone)]
pub struct ElastiCache {
    caches: Caches,
    server: http_server::Server,
}

type Caches = Arc<Mutex<HashMap<String, KnownCache>>>;

impl ElastiCache {
    /// Starts the API without any caches.
    ///
    /// # Errors
    /// Fails if no port is free.
    pub async fn start() -> anyhow::Result<Self> {
        let caches: Caches = Arc::default();
        let served = Arc::clone(&caches);
        let server = http_server::Server::start(move |request| handle(Arc::clone(&served), request)).await?;
        Ok(Self { caches, server })
    }

    /// Returns the API's URL.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Adds a cache, or replaces the one with this id.
    pub fn add_cache(&self, id: &str, cache: KnownCache) {
        self.caches.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), cache);
    }
}

async fn handle(caches: Caches, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let form: HashMap<String, String> = url::form_urlencoded::parse(&body).into_owned().collect();
    let text = |name: &str| form.get(name).map_or("", String::as_str);
    let find_cache = |id: &str| caches.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
    let endpoint_at =
        |name: &str, host: &str, port: u16| format!("<{name}><Address>{host}</Address><Port>{port}</Port></{name}>");
    let endpoint = |name: &str, port: u16| endpoint_at(name, "127.0.0.1", port);
    let primary = |endpoint: &str| format!("<NodeGroups><NodeGroup>{endpoint}</NodeGroup></NodeGroups>");
    let group = |tls: bool, cluster: bool, endpoint: &str| {
        result(
            "DescribeReplicationGroups",
            &format!(
                "<ReplicationGroups><ReplicationGroup><TransitEncryptionEnabled>{tls}</TransitEncryptionEnabled>\
                     <ClusterEnabled>{cluster}</ClusterEnabled>{endpoint}</ReplicationGroup></ReplicationGroups>"
            ),
        )
    };
    Ok(match text("Action") {
        "DescribeServerlessCaches" => match find_cache(text("ServerlessCacheName")) {
            Some(KnownCache::Serverless(port)) => result(
                "DescribeServerlessCaches",
                &format!(
                    "<ServerlessCaches><member><Status>available</Status>{}</member></ServerlessCaches>",
                    endpoint("Endpoint", port)
                ),
            ),
            Some(KnownCache::NotServerless(code, _)) => error(code),
            _ => error("ServerlessCacheNotFoundFault"),
        },
        "DescribeReplicationGroups" => match find_cache(text("ReplicationGroupId")) {
            Some(KnownCache::ReplicationGroup(port, tls, cluster)) => {
                let endpoint = if cluster {
                    endpoint("ConfigurationEndpoint", port)
                } else {
                    primary(&endpoint("PrimaryEndpoint", port))
                };
                group(tls, cluster, &endpoint)
            }
            Some(KnownCache::ReplicationGroupAt(host, port)) => {
                group(true, false, &primary(&endpoint_at("PrimaryEndpoint", host, port)))
            }
            Some(KnownCache::NotServerless(_, Some(port))) => {
                group(false, false, &primary(&endpoint("PrimaryEndpoint", port)))
            }
            _ => error("ReplicationGroupNotFoundFault"),
        },
        _ => error("InvalidAction"),
    })
}

fn result(action: &str, content: &str) -> Response<Full<Bytes>> {
    Response::new(Full::from(format!(
        "<{action}Response xmlns=\"http://elasticache.amazonaws.com/doc/2015-02-02/\"><{action}Result>{content}</{action}Result>\
         <ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></{action}Response>"
    )))
}

fn error(code: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!(
        "<ErrorResponse xmlns=\"http://elasticache.amazonaws.com/doc/2015-02-02/\"><Error><Type>Sender</Type><Code>{code}</Code>\
         <Message>{code}</Message></Error><RequestId>r</RequestId></ErrorResponse>"
    )));
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

/// A TLS proxy in front of a Redis without TLS. Clients must authenticate with an IAM token.
pub struct IamProxy {
    /// The port that it listens on.
    pub port: u16,
    /// The result of each authentication.
    pub auth_results: Arc<Mutex<Vec<Result<(), String>>>>,
    /// The tokens that clients sent.
    pub tokens: Arc<Mutex<Vec<String>>>,
}

impl IamProxy {
    /// Starts a proxy on `port` for the Redis on port `backend`. Tokens must be
    /// for the cache named `cache` and the user named `user`.
    ///
    /// # Errors
    /// Fails if the port is in use.
    pub async fn start(
        port: u16,
        backend: u16,
        authority: &CertificateAuthority,
        cache: &'static str,
        user: &'static str,
    ) -> anyhow::Result<Self> {
        let tls = authority.acceptor()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let auth_results: Arc<Mutex<Vec<Result<(), String>>>> = Arc::default();
        let tokens: Arc<Mutex<Vec<String>>> = Arc::default();
        let proxy = Self { port, auth_results: Arc::clone(&auth_results), tokens: Arc::clone(&tokens) };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, auth_results, tokens) = (tls.clone(), Arc::clone(&auth_results), Arc::clone(&tokens));
                tokio::spawn(async move {
                    let mut client = BufReader::new(tls.accept(stream).await?);
                    let words = read_command(&mut client).await?;
                    tokens.lock().unwrap_or_else(PoisonError::into_inner).extend(words.last().cloned());
                    let result = match words.as_slice() {
                        [auth, name, token] if auth.eq_ignore_ascii_case("AUTH") && name == user => {
                            check_token(token, cache, user)
                        }
                        _ => Err("expected AUTH of that user as the first command".to_owned()),
                    };
                    let is_authenticated = result.is_ok();
                    auth_results.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                    if !is_authenticated {
                        client.write_all(b"-WRONGPASS invalid username-password pair\r\n").await?;
                        return client.shutdown().await;
                    }
                    client.write_all(b"+OK\r\n").await?;
                    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, backend)).await?;
                    copy_bidirectional(&mut client, &mut server).await.map(|_| ())
                });
            }
        });
        Ok(proxy)
    }
}

/// Reads one command as clients send it: an array of bulk strings.
async fn read_command<R: AsyncBufReadExt + Unpin>(reader: &mut R) -> std::io::Result<Vec<String>> {
    async fn number<R: AsyncBufReadExt + Unpin>(reader: &mut R) -> std::io::Result<usize> {
        let mut line = String::new();
        reader.read_line(&mut line).await?;
        line.trim().get(1..).and_then(|text| text.parse().ok()).ok_or(std::io::ErrorKind::InvalidData.into())
    }
    let count = number(reader).await?;
    let mut words = Vec::with_capacity(count);
    for _ in 0..count {
        let mut word = vec![0; number(reader).await? + 2];
        reader.read_exact(&mut word).await?;
        word.truncate(word.len() - 2);
        words.push(String::from_utf8_lossy(&word).into_owned());
    }
    Ok(words)
}

/// Checks a token as ElastiCache does. It is the URL of a request without the
/// scheme, signed with Signature Version 4 in its query.
fn check_token(token: &str, cache: &str, user: &str) -> Result<(), String> {
    let url = url::Url::parse(&format!("http://{token}")).map_err(|e| e.to_string())?;
    let query: HashMap<String, String> = url.query_pairs().into_owned().collect();
    let text = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
    let check = |is_ok: bool, error: &str| if is_ok { Ok(()) } else { Err(format!("{error} in {token}")) };
    check(url.host_str() == Some(cache) && url.path() == "/", "wrong cache")?;
    check(text("Action") == "connect", "wrong action")?;
    check(text("User") == user, "wrong user")?;
    check(text("ResourceType") == "ServerlessCache", "wrong resource type")?;
    check(text("X-Amz-Expires") == "900", "wrong expiry")?;
    check(text("X-Amz-Security-Token") == "a-session-token", "wrong session token")?;
    let date = text("X-Amz-Date");
    let scope = format!("{}/{REGION}/elasticache/aws4_request", date.get(..8).unwrap_or_default());
    check(text("X-Amz-Credential") == format!("{}/{scope}", CREDENTIALS[0].1), "wrong scope")?;
    let is_timestamp = date.len() == 16 && date.as_bytes()[8] == b'T' && date.ends_with('Z');
    check(is_timestamp, "invalid timestamp")?;

    // The canonical request: the sorted query without its signature.
    let raw = url.query().unwrap_or_default();
    let mut pairs: Vec<&str> = raw.split('&').filter(|pair| !pair.starts_with("X-Amz-Signature=")).collect();
    pairs.sort_unstable();
    let canonical =
        format!("GET\n/\n{}\nhost:{cache}\n\nhost\n{}", pairs.join("&"), hex(digest(&SHA256, b"").as_ref()));
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex(digest(&SHA256, canonical.as_bytes()).as_ref()));
    let mac =
        |key: &[u8], data: &str| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data.as_bytes()).as_ref().to_vec();
    let mut key = format!("AWS4{SECRET}").into_bytes();
    for part in [date.get(..8).unwrap_or_default(), REGION, "elasticache", "aws4_request", &to_sign] {
        key = mac(&key, part);
    }
    check(text("X-Amz-Signature") == hex(&key), "wrong signature")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
