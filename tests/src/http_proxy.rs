//! A proxy in front of a real HTTP server that injects faults on demand: what a
//! network, a restart or a locked database does to a client.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::sync::{Semaphore, oneshot, watch};

use crate::http_server::Server;

/// A fault that affects one request.
#[derive(Clone)]
pub enum HttpFault {
    /// The request is never delivered, and the connection is closed.
    DropRequest,
    /// The request is delivered and processed, and the connection is closed before the response.
    DropResponse,
    /// The response is a 504. The request is delivered once a permit is added.
    TimeOutThenDeliver(Arc<Semaphore>),
    /// The connection is closed, and the request is delivered after this delay.
    DisconnectThenDeliver(Duration),
    /// The request is delivered once a permit is added.
    Hold(Arc<Semaphore>),
    /// The request is never delivered. The response has this status and body.
    Respond(u16, &'static str),
    /// The request is never delivered. The response has this status, and this `Retry-After` in seconds.
    Later(u16, u32),
    /// A request with a longer body is never delivered. The response has this status.
    RefuseBody(usize, u16),
    /// The request is delivered without its body.
    DropBody,
    /// The request is delivered. If the response is an error, its body is replaced by a page of the proxy.
    ErrorPage,
}

/// A page of the proxy itself.
const PAGE: &[u8] = b"<html>Not today</html>";

/// The proxy. It stops when the runtime it was started on shuts down.
pub struct HttpProxy {
    server: Server,
    forwarder: Forwarder,
}

/// Handles the proxy's requests.
#[derive(Clone)]
struct Forwarder {
    target: String,
    http: reqwest::Client,
    faults: Arc<Mutex<Vec<(String, usize, HttpFault)>>>,
    requests: Arc<Mutex<Vec<RecordedRequest>>>,
    /// Notified about every request.
    arrivals: watch::Sender<()>,
    concurrency: Arc<Mutex<Concurrency>>,
    /// The number of requests that aren't processed yet, including those of callers that have disconnected.
    delayed: watch::Sender<usize>,
}

/// The current and the maximum number of requests in flight, by method and path.
#[derive(Default)]
struct Concurrency {
    current: BTreeMap<String, usize>,
    maximum: BTreeMap<String, usize>,
}

/// A request that the proxy received.
#[derive(Clone, Debug)]
pub struct RecordedRequest {
    /// The method and the path.
    pub line: String,
    /// The body.
    pub body: String,
    /// The status of the response, if there was one.
    pub status: Option<u16>,
}

impl HttpProxy {
    /// Starts a proxy in front of the server at `target`.
    ///
    /// # Errors
    /// Fails if no port is free.
    pub async fn start(target: String) -> anyhow::Result<Self> {
        let forwarder = Forwarder {
            target,
            http: crate::http(),
            faults: Arc::default(),
            requests: Arc::default(),
            arrivals: watch::Sender::new(()),
            concurrency: Arc::default(),
            delayed: watch::Sender::new(0),
        };
        let handler = forwarder.clone();
        let server = Server::start(move |request| handler.clone().handle(request)).await?;
        Ok(Self { server, forwarder })
    }

    /// Returns the proxy's URL.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Injects a fault into the next `times` requests with `part` in their method, path or body.
    pub fn fail(&self, part: &str, times: usize, fault: HttpFault) {
        lock(&self.forwarder.faults).push((part.to_owned(), times, fault));
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        lock(&self.forwarder.faults).clear();
    }

    /// Returns the requests so far, or since they were last cleared.
    #[must_use]
    pub fn requests(&self) -> Vec<RecordedRequest> {
        lock(&self.forwarder.requests).clone()
    }

    /// Waits until there have been `count` requests with `part` in their method, path or body.
    pub async fn wait_for(&self, part: &str, count: usize) {
        let mut arrivals = self.forwarder.arrivals.subscribe();
        while lock(&self.forwarder.requests).iter().filter(|request| request.contains(part)).count() < count {
            if arrivals.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until all requests have been delivered and processed, even those of callers that have disconnected.
    pub async fn wait_for_delayed(&self) {
        // This can't fail: the proxy owns the sender.
        let _ = self.forwarder.delayed.subscribe().wait_for(|delayed| *delayed == 0).await;
    }

    /// Returns the maximum number of requests with this method and path that were in flight concurrently.
    #[must_use]
    pub fn max_concurrent(&self, line: &str) -> usize {
        lock(&self.forwarder.concurrency).maximum.get(line).copied().unwrap_or(0)
    }

    /// Clears the recorded requests.
    pub fn clear_requests(&self) {
        lock(&self.forwarder.requests).clear();
    }
}

impl RecordedRequest {
    fn contains(&self, part: &str) -> bool {
        self.line.contains(part) || self.body.contains(part)
    }
}

impl Concurrency {
    fn begin(&mut self, line: &str) {
        let current = self.current.entry(line.to_owned()).or_default();
        *current += 1;
        let maximum = self.maximum.entry(line.to_owned()).or_default();
        *maximum = (*maximum).max(*current);
    }

    fn end(&mut self, line: &str) {
        self.current.entry(line.to_owned()).and_modify(|current| *current -= 1);
    }
}

impl Forwarder {
    /// Handles one request. An error closes the connection.
    async fn handle(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, std::io::Error> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
        let line = format!("{} {path}", parts.method);
        let recorded = RecordedRequest { line, body: String::from_utf8_lossy(&body).into_owned(), status: None };
        let fault = {
            let mut faults = lock(&self.faults);
            faults.iter_mut().find(|(part, times, _)| *times > 0 && recorded.contains(part)).map(|found| {
                found.1 -= 1;
                found.2.clone()
            })
        };
        let line = recorded.line.clone();
        let index = {
            let mut requests = lock(&self.requests);
            requests.push(recorded);
            requests.len() - 1
        };
        self.arrivals.send_replace(());
        lock(&self.concurrency).begin(&line);
        let forwarder = self.clone();
        let fault = fault.filter(|fault| !matches!(fault, HttpFault::RefuseBody(limit, _) if body.len() <= *limit));
        let body = if matches!(fault, Some(HttpFault::DropBody)) { Bytes::new() } else { body };
        let response = self.apply(fault, async move { forwarder.forward(parts, body, &path).await }).await;
        lock(&self.concurrency).end(&line);
        if let Some(recorded) = lock(&self.requests).get_mut(index).filter(|recorded| recorded.line == line) {
            recorded.status = response.as_ref().ok().map(|response| response.status().as_u16());
        }
        response
    }

    /// Runs `work` in the background, although the caller has disconnected.
    fn run_delayed(&self, work: impl Future<Output = ()> + Send + 'static) {
        let delayed = self.delayed.clone();
        delayed.send_modify(|delayed| *delayed += 1);
        tokio::spawn(async move {
            work.await;
            delayed.send_modify(|delayed| *delayed -= 1);
        });
    }

    /// Delivers a request that its caller waits for. The server processes it even if the caller disconnects.
    async fn deliver(
        &self,
        forward: impl Future<Output = Result<Response<Full<Bytes>>, std::io::Error>> + Send + 'static,
    ) -> Result<Response<Full<Bytes>>, std::io::Error> {
        let (sender, response) = oneshot::channel();
        self.run_delayed(async move { drop(sender.send(forward.await)) });
        response.await.map_err(std::io::Error::other)?
    }

    async fn apply(
        &self,
        fault: Option<HttpFault>,
        forward: impl Future<Output = Result<Response<Full<Bytes>>, std::io::Error>> + Send + 'static,
    ) -> Result<Response<Full<Bytes>>, std::io::Error> {
        match fault {
            Some(HttpFault::DropRequest) => Err(std::io::Error::other("injected fault")),
            Some(HttpFault::TimeOutThenDeliver(until)) => {
                self.run_delayed(async move {
                    if let Ok(permit) = until.acquire().await {
                        permit.forget();
                        let _ = forward.await;
                    }
                });
                Ok(respond(504, Bytes::from_static(b"<html></html>")))
            }
            Some(HttpFault::DisconnectThenDeliver(delay)) => {
                self.run_delayed(async move {
                    tokio::time::sleep(delay).await;
                    let _ = forward.await;
                });
                Err(std::io::Error::other("injected fault"))
            }
            Some(HttpFault::Hold(until)) => {
                until.acquire().await.map_err(std::io::Error::other)?.forget();
                self.deliver(forward).await
            }
            Some(HttpFault::Respond(status, body)) => Ok(respond(status, Bytes::from(body))),
            Some(HttpFault::Later(status, retry_after)) => {
                let mut response = respond(status, Bytes::from_static(PAGE));
                response.headers_mut().insert(header::RETRY_AFTER, retry_after.into());
                Ok(response)
            }
            Some(HttpFault::RefuseBody(_, status)) => Ok(respond(status, Bytes::from_static(PAGE))),
            Some(HttpFault::ErrorPage) => {
                let response = self.deliver(forward).await?;
                let status = response.status();
                Ok(if status.is_success() { response } else { respond(status.as_u16(), Bytes::from_static(PAGE)) })
            }
            Some(HttpFault::DropResponse) => {
                self.deliver(forward).await?;
                Err(std::io::Error::other("injected fault"))
            }
            Some(HttpFault::DropBody) | None => self.deliver(forward).await,
        }
    }

    async fn forward(&self, parts: Parts, body: Bytes, path: &str) -> Result<Response<Full<Bytes>>, std::io::Error> {
        let mut request = self.http.request(parts.method, format!("{}{path}", self.target)).body(body);
        for (name, value) in &parts.headers {
            if ![header::HOST, header::CONTENT_LENGTH, header::CONNECTION].contains(name) {
                request = request.header(name, value);
            }
        }
        let response = request.send().await.map_err(std::io::Error::other)?;
        let status = response.status().as_u16();
        Ok(respond(status, response.bytes().await.map_err(std::io::Error::other)?))
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
