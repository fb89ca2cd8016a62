//! A simulated Novi: as awkward as what is known of the real one, with faults
//! on demand.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use crate::directory::Directory;
use crate::http_server::Server;
use crate::privacy::Private;

/// How a fault shows.
#[derive(Clone)]
pub enum Fault {
    /// Another status with this body and type.
    Answer(u16, &'static str, String),
    /// 429, with this `Retry-After` or none.
    RateLimited(Option<String>),
    /// The CDN's refusal: 403 in HTML.
    Blocked,
    /// 403 in JSON: the key is not allowed this.
    Forbidden,
    /// A redirect to this place.
    Redirect(String),
    /// The connection is closed without an answer.
    HangUp,
    /// No answer, for as long as the caller waits.
    Silence,
    /// Half of the right body, then the connection is closed.
    HalfBody,
    /// A body that never ends.
    EndlessBody,
    /// The right answer, later.
    Slow(Duration),
    /// The right answer, once a permit is added.
    Held(Arc<Semaphore>),
}

/// What the simulator is made of. A test changes it between requests.
pub struct State {
    /// The key that is accepted.
    pub key: String,
    /// People and groups.
    pub directory: Directory,
    /// The most rows in a page, whatever is asked for.
    pub page_limit: usize,
    /// Whether group pages come as `{"TotalCount","Results"}`; else as bare arrays.
    pub counted: bool,
    /// Whether records come under `data`.
    pub wrapped: bool,
    /// Whether all records can be listed by this key, and what fields of theirs
    /// are not shown there.
    pub listed: Option<Vec<String>>,
    /// Further fields of single people that are not shown there; `*` hides them whole.
    pub veiled: BTreeMap<Uuid, Vec<String>>,
    /// Whether what is not shown there comes as `null`.
    pub nulls: bool,
    /// Whether pages start at their beginning whatever offset is asked for.
    pub ignores_offset: bool,
    /// Whether every page tells of one more than the last one did.
    pub drifts: bool,
    /// Faults of paths that contain a text, and how often each shows.
    faults: Vec<(String, usize, Fault)>,
    /// Calls in any second and minute before 429; none: no limit.
    pub limits: Option<(usize, usize)>,
    /// Every call: its path and when it came.
    pub calls: Vec<(String, Instant)>,
    recent: VecDeque<Instant>,
}

impl State {
    /// From now on, `times` calls of paths that contain `path` meet this fault.
    pub fn fail(&mut self, path: &str, times: usize, fault: Fault) {
        self.faults.push((path.to_owned(), times, fault));
    }

    /// No fault any more.
    pub fn mend(&mut self) {
        self.faults.clear();
    }

    /// How many calls of paths that contain a text there were.
    #[must_use]
    pub fn count(&self, path: &str) -> usize {
        self.calls.iter().filter(|(called, _)| called.contains(path)).count()
    }

    fn fault(&mut self, path: &str) -> Option<Fault> {
        let (_, times, fault) =
            self.faults.iter_mut().find(|(part, times, _)| *times > 0 && path.contains(part.as_str()))?;
        *times -= 1;
        Some(fault.clone())
    }

    fn is_over_limit(&mut self, now: Instant) -> bool {
        let Some((per_second, per_minute)) = self.limits else { return false };
        self.recent.retain(|at| now.duration_since(*at) < Duration::from_secs(60));
        let second = self.recent.iter().filter(|at| now.duration_since(**at) < Duration::from_secs(1)).count();
        if second >= per_second || self.recent.len() >= per_minute {
            return true;
        }
        self.recent.push_back(now);
        false
    }
}

/// The server. It ends with the runtime it was started on.
#[derive(Clone)]
pub struct Novi {
    state: Arc<Mutex<State>>,
    /// Changes with every call.
    arrivals: watch::Sender<()>,
    server: Server,
}

/// What it answers from.
#[derive(Clone)]
struct Source {
    state: Arc<Mutex<State>>,
    arrivals: watch::Sender<()>,
    private: Private,
}

type Body = StreamBody<Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, std::io::Error>> + Send>>>;

impl Novi {
    /// Starts one. What it gives out and is opened with is remembered in `private`.
    ///
    /// # Errors
    /// Where no port is free.
    pub async fn start(directory: Directory, private: Private) -> anyhow::Result<Self> {
        let key = format!("k{}+/=", Uuid::from_u128(fastrand::u128(..)).simple());
        private.add(&key);
        let state = Arc::new(Mutex::new(State {
            key,
            directory,
            page_limit: 40,
            counted: true,
            wrapped: false,
            listed: None,
            veiled: BTreeMap::new(),
            nulls: false,
            ignores_offset: false,
            drifts: false,
            faults: Vec::new(),
            limits: None,
            calls: Vec::new(),
            recent: VecDeque::new(),
        }));
        let arrivals = watch::Sender::new(());
        let source = Source { state: Arc::clone(&state), arrivals: arrivals.clone(), private };
        let server = Server::start(move |request| source.clone().answer(request)).await?;
        Ok(Self { state, arrivals, server })
    }

    /// The root of the API.
    #[must_use]
    pub fn root(&self) -> String {
        format!("{}/api", self.server.url())
    }

    /// Waits until there were `count` calls of paths that contain `path`.
    pub async fn wait_for(&self, path: &str, count: usize) {
        let mut arrivals = self.arrivals.subscribe();
        while self.state().count(path) < count {
            if arrivals.changed().await.is_err() {
                return;
            }
        }
    }

    /// Closes every connection that is open.
    pub fn drop_clients(&self) {
        self.server.drop_clients();
    }

    /// The state, to be read or changed.
    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Source {
    /// An error hangs up.
    async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, std::io::Error> {
        let path = request.uri().path().to_owned();
        let (fault, over) = {
            let mut state = lock(&self.state);
            let now = Instant::now();
            state.calls.push((path.clone(), now));
            (state.fault(&path), state.is_over_limit(now))
        };
        self.arrivals.send_replace(());
        let mut half = false;
        match fault {
            None if over => return Ok(rate_limited(None)),
            None => {}
            Some(Fault::Answer(status, kind, body)) => return Ok(respond(status, kind, body)),
            Some(Fault::RateLimited(after)) => return Ok(rate_limited(after)),
            Some(Fault::Blocked) => {
                return Ok(respond(403, "text/html", "<html><body><h1>Access denied</h1></body></html>".to_owned()));
            }
            Some(Fault::Forbidden) => return Ok(message(403, "Forbidden.")),
            Some(Fault::Redirect(to)) => {
                let mut response = respond(302, "text/html", String::new());
                response.headers_mut().extend(to.parse().ok().map(|to: HeaderValue| (header::LOCATION, to)));
                return Ok(response);
            }
            Some(Fault::HangUp) => return Err(std::io::Error::other("as asked")),
            Some(Fault::Silence) => std::future::pending().await,
            Some(Fault::HalfBody) => half = true,
            Some(Fault::EndlessBody) => return Ok(endless()),
            Some(Fault::Slow(delay)) => tokio::time::sleep(delay).await,
            Some(Fault::Held(until)) => until.acquire().await.map_err(std::io::Error::other)?.forget(),
        }
        let (status, body) = self.look_up(&request, &path);
        let body = body.to_string();
        if half {
            return Ok(half_of(&body));
        }
        Ok(respond(status, "application/json; charset=utf-8", body))
    }

    fn look_up(&self, request: &Request<Incoming>, path: &str) -> (u16, Value) {
        let state = lock(&self.state);
        let is_authorized = request
            .headers()
            .get(header::AUTHORIZATION)
            .is_some_and(|value| value.as_bytes() == format!("Basic {}", state.key).as_bytes());
        if !is_authorized {
            return (401, json!({"Message": "Authorization has been denied for this request."}));
        }
        if request.headers().get(header::ACCEPT).is_none_or(|value| value != "application/json") {
            return (406, json!({"Message": "Not acceptable."}));
        }
        let not_found = (404, json!({"Message": "No HTTP resource was found that matches the request URI."}));
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        match parts.as_slice() {
            ["api", "customers", id] => match Uuid::parse_str(id).ok().and_then(|id| state.directory.people.get(&id)) {
                Some(record) => {
                    self.private.add_record(record);
                    (200, if state.wrapped { json!({ "data": record }) } else { record.clone() })
                }
                None => not_found,
            },
            ["api", "groups", id, "members"] => {
                let Some(members) = Uuid::parse_str(id).ok().and_then(|id| state.directory.groups.get(&id)) else {
                    return not_found;
                };
                let row = |id: &Uuid| {
                    let id_text = id.hyphenated().to_string();
                    self.private.add(&id_text);
                    let name = state.directory.people.get(id).and_then(|record| record.get("Name").cloned());
                    json!({"UniqueID": id_text, "Name": name, "DuesPayerUniqueID": null})
                };
                (200, state.page(members.iter(), row, state.counted, request.uri().query().unwrap_or_default()))
            }
            ["api", "members"] => {
                let Some(hidden) = &state.listed else { return not_found };
                let veil = |id: &Uuid| state.veiled.get(id).map(Vec::as_slice).unwrap_or_default();
                let is_veiled = |id: &Uuid, field: &str| veil(id).iter().any(|veiled| veiled == field);
                let row = |(id, record): (&Uuid, &Value)| {
                    self.private.add_record(record);
                    let mut record = record.clone();
                    if let Some(map) = record.as_object_mut() {
                        let hides = |field: &String| hidden.contains(field) || is_veiled(id, field);
                        map.retain(|field, _| state.nulls || !hides(field));
                        map.iter_mut().filter(|(field, _)| hides(field)).for_each(|(_, value)| *value = Value::Null);
                    }
                    record
                };
                let shown: Vec<_> = state.directory.people.iter().filter(|(id, _)| !is_veiled(id, "*")).collect();
                (200, state.page(shown.into_iter(), row, true, request.uri().query().unwrap_or_default()))
            }
            _ => not_found,
        }
    }
}

impl State {
    fn page<T>(
        &self,
        all: impl ExactSizeIterator<Item = T>,
        row: impl FnMut(T) -> Value,
        counted: bool,
        query: &str,
    ) -> Value {
        let number = |name: &str| {
            url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).and_then(|(_, n)| n.parse().ok())
        };
        let mut total = all.len();
        let offset = number("offset").unwrap_or(0);
        if self.drifts {
            total += offset;
        }
        let size = number("pageSize").unwrap_or(100_usize).min(self.page_limit);
        let rows: Vec<Value> = all.skip(if self.ignores_offset { 0 } else { offset }).take(size).map(row).collect();
        if counted { json!({"TotalCount": total, "Results": rows}) } else { Value::Array(rows) }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn whole(body: String) -> Body {
    let frame = Frame::data(Bytes::from(body));
    StreamBody::new(stream::iter([Ok(frame)]).boxed())
}

fn respond(status: u16, kind: &str, body: String) -> Response<Body> {
    let mut response = Response::new(whole(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().extend(kind.parse().ok().map(|kind: HeaderValue| (header::CONTENT_TYPE, kind)));
    response
}

fn message(status: u16, text: &str) -> Response<Body> {
    respond(status, "application/json; charset=utf-8", json!({ "Message": text }).to_string())
}

fn rate_limited(after: Option<String>) -> Response<Body> {
    let mut response = message(429, "Too many requests.");
    response
        .headers_mut()
        .extend(after.and_then(|after| after.parse().ok()).map(|after: HeaderValue| (header::RETRY_AFTER, after)));
    response
}

fn endless() -> Response<Body> {
    let chunk = Bytes::from_static(&[b' '; 16_384]);
    let frames = stream::repeat_with(move || Ok(Frame::data(chunk.clone())));
    let mut response = Response::new(StreamBody::new(frames.boxed()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Announces the whole and breaks off in the middle.
fn half_of(body: &str) -> Response<Body> {
    let half = Bytes::copy_from_slice(&body.as_bytes()[..body.len() / 2]);
    let frames = stream::iter([Ok(Frame::data(half)), Err(std::io::Error::other("as asked"))]);
    let mut response = Response::new(StreamBody::new(frames.boxed()));
    response.headers_mut().insert(header::CONTENT_LENGTH, body.len().into());
    response
}
