//! A proxy before a real server that misbehaves on demand: what a network, a
//! restart or a locked database do to a client.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::sync::{Semaphore, watch};

use crate::http_server::Server;

/// What happens to one request.
#[derive(Clone)]
pub enum HttpFault {
    /// It never arrives, and the connection is closed.
    Lost,
    /// It arrives and is done, and the connection is closed before the answer.
    DoneAndLost,
    /// It is answered 504, and arrives once a permit is added.
    GivenUp(Arc<Semaphore>),
    /// The connection is closed, and it arrives after a moment.
    LostAndDone(Duration),
    /// It arrives once a permit is added.
    Held(Arc<Semaphore>),
    /// It never arrives; this status and body are the answer.
    Answer(u16, &'static str),
}

/// The proxy. It ends with the runtime it was started on.
pub struct Proxy {
    server: Server,
    way: Way,
}

/// What it does with requests.
#[derive(Clone)]
struct Way {
    target: String,
    http: reqwest::Client,
    mishaps: Arc<Mutex<Vec<(String, usize, HttpFault)>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Changes with every request.
    arrivals: watch::Sender<()>,
    at_once: Arc<Mutex<AtOnce>>,
    /// How many requests arrive after their caller has gone.
    late: watch::Sender<usize>,
}

/// How many requests of a kind are, and were at most, under way.
#[derive(Default)]
struct AtOnce {
    now: BTreeMap<String, usize>,
    most: BTreeMap<String, usize>,
}

/// A request that came by.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its method and path.
    pub line: String,
    /// Its body.
    pub body: String,
    /// The status that it was answered, once it was.
    pub status: Option<u16>,
}

impl Proxy {
    /// Starts one before the server at `target`.
    ///
    /// # Errors
    /// Where no port is free.
    pub async fn start(target: String) -> anyhow::Result<Self> {
        let way = Way {
            target,
            http: crate::http(),
            mishaps: Arc::default(),
            seen: Arc::default(),
            arrivals: watch::Sender::new(()),
            at_once: Arc::default(),
            late: watch::Sender::new(0),
        };
        let server_way = way.clone();
        let server = Server::start(move |request| server_way.clone().pass(request)).await?;
        Ok(Self { server, way })
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// From now on, `times` requests whose method, path or body contain `part` meet this mishap.
    pub fn fail(&self, part: &str, times: usize, mishap: HttpFault) {
        lock(&self.way.mishaps).push((part.to_owned(), times, mishap));
    }

    /// No mishap any more.
    pub fn mend(&self) {
        lock(&self.way.mishaps).clear();
    }

    /// The requests seen so far, or since they were last forgotten.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.way.seen).clone()
    }

    /// Waits until `count` requests were seen whose method, path or body contain `part`.
    pub async fn wait_for(&self, part: &str, count: usize) {
        let mut arrivals = self.way.arrivals.subscribe();
        while lock(&self.way.seen).iter().filter(|seen| seen.contains(part)).count() < count {
            if arrivals.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until the requests that arrive late have arrived and are done.
    pub async fn settle(&self) {
        // The sender is this proxy's own.
        let _ = self.way.late.subscribe().wait_for(|late| *late == 0).await;
    }

    /// The most requests of this method and path that were under way at once.
    #[must_use]
    pub fn most_at_once(&self, line: &str) -> usize {
        lock(&self.way.at_once).most.get(line).copied().unwrap_or(0)
    }

    /// Forgets the requests seen so far.
    pub fn forget(&self) {
        lock(&self.way.seen).clear();
    }
}

impl Seen {
    fn contains(&self, part: &str) -> bool {
        self.line.contains(part) || self.body.contains(part)
    }
}

impl AtOnce {
    fn begin(&mut self, line: &str) {
        let now = self.now.entry(line.to_owned()).or_default();
        *now += 1;
        let most = self.most.entry(line.to_owned()).or_default();
        *most = (*most).max(*now);
    }

    fn end(&mut self, line: &str) {
        self.now.entry(line.to_owned()).and_modify(|now| *now -= 1);
    }
}

impl Way {
    /// An error closes the connection.
    async fn pass(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, std::io::Error> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
        let line = format!("{} {path}", parts.method);
        let seen = Seen { line, body: String::from_utf8_lossy(&body).into_owned(), status: None };
        let mishap = {
            let mut mishaps = lock(&self.mishaps);
            mishaps.iter_mut().find(|(part, times, _)| *times > 0 && seen.contains(part)).map(|found| {
                found.1 -= 1;
                found.2.clone()
            })
        };
        let line = seen.line.clone();
        let number = {
            let mut all = lock(&self.seen);
            all.push(seen);
            all.len() - 1
        };
        self.arrivals.send_replace(());
        lock(&self.at_once).begin(&line);
        let way = self.clone();
        let answer = self.meet(mishap, async move { way.forward(parts, body, &path).await }).await;
        lock(&self.at_once).end(&line);
        if let Some(seen) = lock(&self.seen).get_mut(number).filter(|seen| seen.line == line) {
            seen.status = answer.as_ref().ok().map(|answer| answer.status().as_u16());
        }
        answer
    }

    /// Does something for a caller who has gone.
    fn later(&self, work: impl Future<Output = ()> + Send + 'static) {
        let late = self.late.clone();
        late.send_modify(|late| *late += 1);
        tokio::spawn(async move {
            work.await;
            late.send_modify(|late| *late -= 1);
        });
    }

    async fn meet(
        &self,
        mishap: Option<HttpFault>,
        forward: impl Future<Output = Result<Response<Full<Bytes>>, std::io::Error>> + Send + 'static,
    ) -> Result<Response<Full<Bytes>>, std::io::Error> {
        match mishap {
            Some(HttpFault::Lost) => Err(std::io::Error::other("as asked")),
            Some(HttpFault::GivenUp(until)) => {
                self.later(async move {
                    if let Ok(permit) = until.acquire().await {
                        permit.forget();
                        let _ = forward.await;
                    }
                });
                Ok(respond(504, Bytes::from_static(b"<html></html>")))
            }
            Some(HttpFault::LostAndDone(after)) => {
                self.later(async move {
                    tokio::time::sleep(after).await;
                    let _ = forward.await;
                });
                Err(std::io::Error::other("as asked"))
            }
            Some(HttpFault::Held(until)) => {
                until.acquire().await.map_err(std::io::Error::other)?.forget();
                forward.await
            }
            Some(HttpFault::Answer(status, body)) => Ok(respond(status, Bytes::from(body))),
            Some(HttpFault::DoneAndLost) => {
                forward.await?;
                Err(std::io::Error::other("as asked"))
            }
            None => forward.await,
        }
    }

    async fn forward(&self, parts: Parts, body: Bytes, path: &str) -> Result<Response<Full<Bytes>>, std::io::Error> {
        let mut onward = self.http.request(parts.method, format!("{}{path}", self.target)).body(body);
        for (name, value) in &parts.headers {
            if ![header::HOST, header::CONTENT_LENGTH, header::CONNECTION].contains(name) {
                onward = onward.header(name, value);
            }
        }
        let answer = onward.send().await.map_err(std::io::Error::other)?;
        let status = answer.status().as_u16();
        Ok(respond(status, answer.bytes().await.map_err(std::io::Error::other)?))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn respond(status: u16, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}
