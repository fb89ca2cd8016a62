//! Stand-ins for AWS: moto for SSM; for ElastiCache a stub of our own that
//! speaks its query API, and a door before a Redis that checks IAM tokens.

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
use crate::process::{Server, free_port};
use crate::redis::Authority;

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
    server: Server,
    port: u16,
    dir: TempDir,
    http: reqwest::Client,
}

impl Moto {
    /// Starts one.
    ///
    /// # Errors
    /// Where `.venv` is not set up.
    pub fn start() -> anyhow::Result<Self> {
        let (dir, port) = (tempfile::tempdir()?, free_port()?);
        let server = Self::start_server(dir.path(), port)?;
        Ok(Self { server, port, dir, http: crate::http() })
    }

    fn start_server(dir: &Path, port: u16) -> anyhow::Result<Server> {
        let (program, number) = (venv().join("bin/moto_server"), port.to_string());
        let mut server = Server::start(&program, &["-H", "127.0.0.1", "-p", &number], &[], dir.join("log"))?;
        server.wait_for_port(port, Duration::from_secs(60)).context("moto does not start")?;
        Ok(server)
    }

    /// The type of a parameter, where it is there.
    ///
    /// # Errors
    /// Where moto does not answer.
    pub async fn kind(&self, name: &str) -> anyhow::Result<Option<String>> {
        let answer = self.ask("GetParameters", &json!({"Names": [name]})).await?;
        Ok(answer["Parameters"][0]["Type"].as_str().map(str::to_owned))
    }

    /// Where it answers.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Ends it; what it held is gone.
    pub fn kill(&mut self) {
        self.server.kill();
    }

    /// Starts it again where it was, with nothing in it.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.server = Self::start_server(self.dir.path(), self.port)?;
        Ok(())
    }

    /// Puts parameters below `prefix`, as an administrator would: what is not
    /// text becomes JSON text.
    ///
    /// # Errors
    /// Where moto refuses one.
    pub async fn put(&self, prefix: &str, parameters: &Value) -> anyhow::Result<()> {
        for (name, value) in parameters.as_object().into_iter().flatten() {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let body =
                json!({"Name": format!("{prefix}/{name}"), "Value": value, "Type": "SecureString", "Overwrite": true});
            self.ask("PutParameter", &body).await?;
        }
        Ok(())
    }

    async fn ask(&self, operation: &str, body: &Value) -> anyhow::Result<Value> {
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
        ensure!(status == StatusCode::OK, "moto refuses {operation}: {}", String::from_utf8_lossy(&body));
        Ok(serde_json::from_slice(&body)?)
    }
}

/// A cache that ElastiCache knows.
#[derive(Clone)]
pub enum Known {
    /// A serverless cache and its port on loopback.
    Serverless(u16),
    /// A replication group: its port, TLS, and whether it is a cluster.
    Group(u16, bool, bool),
    /// A replication group with TLS at a host by this name.
    Named(&'static str, u16),
}

/// ElastiCache's query API, as far as endpoints are asked for.
#[derive(Clone)]
pub struct ElastiCache {
    caches: Caches,
    server: http_server::Server,
}

type Caches = Arc<Mutex<HashMap<String, Known>>>;

impl ElastiCache {
    /// Starts one that knows nothing.
    ///
    /// # Errors
    /// Where no port is free.
    pub async fn start() -> anyhow::Result<Self> {
        let caches: Caches = Arc::default();
        let known = Arc::clone(&caches);
        let server = http_server::Server::start(move |request| answer(Arc::clone(&known), request)).await?;
        Ok(Self { caches, server })
    }

    /// Where it answers.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// From now on it knows this cache.
    pub fn know(&self, id: &str, cache: Known) {
        self.caches.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), cache);
    }
}

async fn answer(caches: Caches, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let form: HashMap<String, String> = url::form_urlencoded::parse(&body).into_owned().collect();
    let text = |name: &str| form.get(name).map_or("", String::as_str);
    let known = |id: &str| caches.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
    let endpoint_at =
        |name: &str, host: &str, port: u16| format!("<{name}><Address>{host}</Address><Port>{port}</Port></{name}>");
    let endpoint = |name: &str, port: u16| endpoint_at(name, "127.0.0.1", port);
    let primary = |endpoint: &str| format!("<NodeGroups><NodeGroup>{endpoint}</NodeGroup></NodeGroups>");
    let group = |tls: bool, cluster: bool, place: &str| {
        result(
            "DescribeReplicationGroups",
            &format!(
                "<ReplicationGroups><ReplicationGroup><TransitEncryptionEnabled>{tls}</TransitEncryptionEnabled>\
                     <ClusterEnabled>{cluster}</ClusterEnabled>{place}</ReplicationGroup></ReplicationGroups>"
            ),
        )
    };
    Ok(match text("Action") {
        "DescribeServerlessCaches" => match known(text("ServerlessCacheName")) {
            Some(Known::Serverless(port)) => result(
                "DescribeServerlessCaches",
                &format!(
                    "<ServerlessCaches><member><Status>available</Status>{}</member></ServerlessCaches>",
                    endpoint("Endpoint", port)
                ),
            ),
            _ => error("ServerlessCacheNotFoundFault"),
        },
        "DescribeReplicationGroups" => match known(text("ReplicationGroupId")) {
            Some(Known::Group(port, tls, cluster)) => {
                let place = if cluster {
                    endpoint("ConfigurationEndpoint", port)
                } else {
                    primary(&endpoint("PrimaryEndpoint", port))
                };
                group(tls, cluster, &place)
            }
            Some(Known::Named(host, port)) => group(true, false, &primary(&endpoint_at("PrimaryEndpoint", host, port))),
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

/// A door with TLS before a Redis without: who comes must bring an IAM token.
pub struct Door {
    /// Where it is.
    pub port: u16,
    /// What each who came was told.
    pub verdicts: Arc<Mutex<Vec<Result<(), String>>>>,
    /// The tokens that were shown.
    pub tokens: Arc<Mutex<Vec<String>>>,
}

impl Door {
    /// Opens one on `port` before the Redis on `backend`, for a cache by the
    /// name `cache` and a user by the name `user`.
    ///
    /// # Errors
    /// Where the port is taken.
    pub async fn open(
        port: u16,
        backend: u16,
        authority: &Authority,
        cache: &'static str,
        user: &'static str,
    ) -> anyhow::Result<Self> {
        let tls = authority.acceptor()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let verdicts: Arc<Mutex<Vec<Result<(), String>>>> = Arc::default();
        let tokens: Arc<Mutex<Vec<String>>> = Arc::default();
        let door = Self { port, verdicts: Arc::clone(&verdicts), tokens: Arc::clone(&tokens) };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, verdicts, tokens) = (tls.clone(), Arc::clone(&verdicts), Arc::clone(&tokens));
                tokio::spawn(async move {
                    let mut client = BufReader::new(tls.accept(stream).await?);
                    let words = read_command(&mut client).await?;
                    tokens.lock().unwrap_or_else(PoisonError::into_inner).extend(words.last().cloned());
                    let verdict = match words.as_slice() {
                        [auth, name, token] if auth.eq_ignore_ascii_case("AUTH") && name == user => {
                            check_token(token, cache, user)
                        }
                        _ => Err("the first command is no AUTH of that user".to_owned()),
                    };
                    let is_fine = verdict.is_ok();
                    verdicts.lock().unwrap_or_else(PoisonError::into_inner).push(verdict);
                    if !is_fine {
                        client.write_all(b"-WRONGPASS invalid username-password pair\r\n").await?;
                        return client.shutdown().await;
                    }
                    client.write_all(b"+OK\r\n").await?;
                    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, backend)).await?;
                    copy_bidirectional(&mut client, &mut server).await.map(|_| ())
                });
            }
        });
        Ok(door)
    }
}

/// One command as clients send it: an array of bulk strings.
async fn read_command<R: AsyncBufReadExt + Unpin>(from: &mut R) -> std::io::Result<Vec<String>> {
    async fn number<R: AsyncBufReadExt + Unpin>(from: &mut R) -> std::io::Result<usize> {
        let mut line = String::new();
        from.read_line(&mut line).await?;
        line.trim().get(1..).and_then(|text| text.parse().ok()).ok_or(std::io::ErrorKind::InvalidData.into())
    }
    let count = number(from).await?;
    let mut words = Vec::with_capacity(count);
    for _ in 0..count {
        let mut word = vec![0; number(from).await? + 2];
        from.read_exact(&mut word).await?;
        word.truncate(word.len() - 2);
        words.push(String::from_utf8_lossy(&word).into_owned());
    }
    Ok(words)
}

/// Checks a token as ElastiCache does: it is the URL of a request, signed by
/// Signature Version 4 in its query, without the scheme.
fn check_token(token: &str, cache: &str, user: &str) -> Result<(), String> {
    let url = url::Url::parse(&format!("http://{token}")).map_err(|e| e.to_string())?;
    let query: HashMap<String, String> = url.query_pairs().into_owned().collect();
    let text = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
    let must = |is_so: bool, what: &str| if is_so { Ok(()) } else { Err(format!("{what} in {token}")) };
    must(url.host_str() == Some(cache) && url.path() == "/", "not this cache")?;
    must(text("Action") == "connect", "another action")?;
    must(text("User") == user, "another user")?;
    must(text("ResourceType") == "ServerlessCache", "another resource type")?;
    must(text("X-Amz-Expires") == "900", "another expiry")?;
    must(text("X-Amz-Security-Token") == "a-session-token", "another session")?;
    let date = text("X-Amz-Date");
    let scope = format!("{}/{REGION}/elasticache/aws4_request", date.get(..8).unwrap_or_default());
    must(text("X-Amz-Credential") == format!("{}/{scope}", CREDENTIALS[0].1), "another scope")?;
    let is_time = date.len() == 16 && date.as_bytes()[8] == b'T' && date.ends_with('Z');
    must(is_time, "no time")?;

    // The canonical request: the query sorted, without its signature.
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
    must(text("X-Amz-Signature") == hex(&key), "another signature")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
