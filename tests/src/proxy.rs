//! A proxy before a real server that misbehaves on demand: what a network, a
//! restart or a locked database do to a client.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;

use crate::serve::Server;

/// What happens to one request.
#[derive(Clone)]
pub enum Mishap {
    /// It never arrives, and the connection is closed.
    Lost,
    /// It arrives and is done, and the connection is closed before the answer.
    DoneAndLost,
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
    mishaps: Arc<Mutex<Vec<(String, usize, Mishap)>>>,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Starts one before the server at `target`.
    ///
    /// # Errors
    /// Where no port is free.
    pub async fn start(target: String) -> anyhow::Result<Self> {
        let way = Way { target, http: crate::http(), mishaps: Arc::default(), seen: Arc::default() };
        let server_way = way.clone();
        let server = Server::start(move |request| server_way.clone().pass(request)).await?;
        Ok(Self { server, way })
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// From now on, `times` requests whose method and path contain `part` meet this mishap.
    pub fn fail(&self, part: &str, times: usize, mishap: Mishap) {
        self.way.mishaps.lock().unwrap_or_else(PoisonError::into_inner).push((part.to_owned(), times, mishap));
    }

    /// The requests seen so far, each as its method and path.
    #[must_use]
    pub fn seen(&self) -> Vec<String> {
        self.way.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Way {
    /// An error closes the connection.
    async fn pass(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, std::io::Error> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let line = format!("{} {path}", request.method());
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(line.clone());
        let mishap = {
            let mut mishaps = self.mishaps.lock().unwrap_or_else(PoisonError::into_inner);
            mishaps.iter_mut().find(|(part, times, _)| *times > 0 && line.contains(part.as_str())).map(|found| {
                found.1 -= 1;
                found.2.clone()
            })
        };
        match mishap {
            Some(Mishap::Lost) => Err(std::io::Error::other("as asked")),
            Some(Mishap::Answer(status, body)) => Ok(respond(status, Bytes::from(body))),
            Some(Mishap::DoneAndLost) => {
                self.forward(request, &path).await?;
                Err(std::io::Error::other("as asked"))
            }
            None => self.forward(request, &path).await,
        }
    }

    async fn forward(&self, request: Request<Incoming>, path: &str) -> Result<Response<Full<Bytes>>, std::io::Error> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
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

fn respond(status: u16, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}
