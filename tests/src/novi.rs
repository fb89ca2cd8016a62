//! A simulated Novi with the known quirks of the real one, and with faults on
//! demand.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use crate::directory::Directory;
use crate::gzip::gzip;
use crate::http_server::Server;
use crate::privacy::Private;
use crate::wire::{FOLD, Wire, send_twice};

/// The content type of Novi's own responses.
const JSON: &str = "application/json; charset=utf-8";

/// A fault that affects one call.
#[derive(Clone)]
pub enum NoviFault {
    /// A response with this status, content type and body.
    Respond(u16, &'static str, String),
    /// A 429, with this `Retry-After` header or without one.
    RateLimited(Option<String>),
    /// A rejection by the CDN: 403 in HTML.
    BlockedByCdn,
    /// A 403 in JSON: the key doesn't have this permission.
    Forbidden,
    /// A redirect to this URL.
    Redirect(String),
    /// The connection is closed without a response.
    Disconnect,
    /// No response, for as long as the caller waits.
    NoResponse,
    /// Half of the correct body, then the connection is closed.
    TruncatedBody,
    /// A body that never ends.
    EndlessBody,
    /// The correct response, after this delay.
    Delay(Duration),
    /// The correct response, once a permit is added.
    Hold(Arc<Semaphore>),
    /// A rejection by the CDN in JSON, because JSON was requested: 403 with a problem (RFC 9457).
    BlockedByCdnInJson,
    /// The record of another person.
    OtherRecord,
    /// The correct response, and after this delay the same response again, which answers no request.
    SecondResponse(Duration),
    /// The correct response, with a header line that is folded.
    FoldedHeader,
    /// The correct response, with this many additional headers.
    ManyHeaders(usize),
    /// The correct response, with a byte order mark before the JSON.
    ByteOrderMark,
    /// The correct response, with half a surrogate pair at the end of every string in this field.
    HalfSurrogate(&'static str),
    /// The response to another fault, with this header.
    WithHeader(&'static str, String, Box<NoviFault>),
}

/// The state of the simulator. Tests change it between requests.
pub struct State {
    /// The API key that is accepted.
    pub key: String,
    /// People and groups.
    pub directory: Directory,
    /// The maximum number of rows in a page, regardless of the requested page size.
    pub page_limit: usize,
    /// True if group pages are `{"TotalCount","Results"}`, false if they are bare arrays.
    pub has_total_count: bool,
    /// True if records are wrapped in `data`.
    pub wraps_records: bool,
    /// The fields that the list of all records hides for every person. None if
    /// the key may not list all records.
    pub bulk_hidden_fields: Option<Vec<String>>,
    /// Additional fields that this list hides, by person. `*` hides the whole record.
    pub hidden_fields: BTreeMap<Uuid, Vec<String>>,
    /// True if this list shows hidden fields as `null` instead of omitting them.
    pub hides_as_null: bool,
    /// True if every page starts with the first row, regardless of the requested offset.
    pub ignores_offset: bool,
    /// True if `TotalCount` grows from page to page.
    pub has_drifting_total: bool,
    /// Faults: part of the path and the query, the remaining number of calls, and the fault.
    faults: Vec<(String, usize, NoviFault)>,
    /// True if the keys of all objects begin with a lower-case letter.
    pub has_camel_case_keys: bool,
    /// True if responses are compressed unless the client declines that. RFC 9110 lets a server choose any encoding if
    /// the client doesn't say which ones it accepts.
    pub compresses: bool,
    /// The time that each call takes.
    pub latency: Duration,
    /// The number of calls per second and per minute before a 429. None: no limit.
    pub limits: Option<(usize, usize)>,
    /// The path and the time of every call.
    pub calls: Vec<(String, Instant)>,
    /// The paths of the calls with a correct response, without any fault.
    pub answered: Vec<String>,
    /// The number of calls that these limits have refused.
    pub refused: usize,
    recent: VecDeque<Instant>,
}

impl State {
    /// Injects a fault into the next `times` calls with `part` in their path or query.
    pub fn fail(&mut self, part: &str, times: usize, fault: NoviFault) {
        self.faults.push((part.to_owned(), times, fault));
    }

    /// Removes all faults.
    pub fn clear_faults(&mut self) {
        self.faults.clear();
    }

    /// Returns the number of calls so far with `path` in their path.
    #[must_use]
    pub fn count(&self, path: &str) -> usize {
        self.calls.iter().filter(|(called, _)| called.contains(path)).count()
    }

    fn next_fault(&mut self, target: &str) -> Option<NoviFault> {
        let (_, times, fault) =
            self.faults.iter_mut().find(|(part, times, _)| *times > 0 && target.contains(part.as_str()))?;
        *times -= 1;
        Some(fault.clone())
    }

    fn is_over_limit(&mut self, now: Instant) -> bool {
        let Some((per_second, per_minute)) = self.limits else { return false };
        self.recent.retain(|at| now.duration_since(*at) < Duration::from_secs(60));
        let second = self.recent.iter().filter(|at| now.duration_since(**at) < Duration::from_secs(1)).count();
        if second >= per_second || self.recent.len() >= per_minute {
            self.refused += 1;
            return true;
        }
        self.recent.push_back(now);
        false
    }
}

/// Returns the short digest of a root URL that cache entries and Redis keys carry: the first six bytes of its SHA-256.
#[must_use]
pub fn root_digest(root: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, root.as_bytes());
    digest.as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// The simulator. It stops when the runtime it was started on shuts down.
#[derive(Clone)]
pub struct Novi {
    state: Arc<Mutex<State>>,
    /// Notified about every call.
    arrivals: watch::Sender<()>,
    server: Server,
}

/// Handles the simulator's requests.
#[derive(Clone)]
struct Handler {
    state: Arc<Mutex<State>>,
    arrivals: watch::Sender<()>,
    private: Private,
}

type Body = StreamBody<Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, std::io::Error>> + Send>>>;

impl Novi {
    /// Starts a simulator. Its API key and the personal data that it returns are added to `private`.
    ///
    /// # Errors
    /// Fails if no port is free.
    pub async fn start(directory: Directory, private: Private) -> anyhow::Result<Self> {
        let key = format!("k{}+/=", Uuid::from_u128(fastrand::u128(..)).simple());
        private.add(&key);
        let state = Arc::new(Mutex::new(State {
            key,
            directory,
            page_limit: 40,
            has_total_count: true,
            wraps_records: false,
            bulk_hidden_fields: None,
            hidden_fields: BTreeMap::new(),
            hides_as_null: false,
            ignores_offset: false,
            has_drifting_total: false,
            has_camel_case_keys: false,
            compresses: true,
            latency: Duration::ZERO,
            faults: Vec::new(),
            limits: None,
            calls: Vec::new(),
            answered: Vec::new(),
            refused: 0,
            recent: VecDeque::new(),
        }));
        let arrivals = watch::Sender::new(());
        let handler = Handler { state: Arc::clone(&state), arrivals: arrivals.clone(), private };
        let open = |stream| std::future::ready(Ok(Wire::new(stream)));
        let server = Server::listen(open, move |request| handler.clone().handle(request)).await?;
        Ok(Self { state, arrivals, server })
    }

    /// Returns the root URL of the API.
    #[must_use]
    pub fn root(&self) -> String {
        format!("{}/api", self.server.url())
    }

    /// Waits until there have been `count` calls with `path` in their path.
    pub async fn wait_for(&self, path: &str, count: usize) {
        let mut arrivals = self.arrivals.subscribe();
        while self.state().count(path) < count {
            if arrivals.changed().await.is_err() {
                return;
            }
        }
    }

    /// Closes all open connections.
    pub fn drop_clients(&self) {
        self.server.drop_clients();
    }

    /// Returns the state, to read or change it.
    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Handler {
    /// Handles one call. An error closes the connection.
    async fn handle(self, request: Request<Incoming>) -> Result<Response<Body>, std::io::Error> {
        let path = request.uri().path().to_owned();
        let (fault, is_over_limit, latency) = {
            let mut state = lock(&self.state);
            let now = Instant::now();
            state.calls.push((path.clone(), now));
            let target = request.uri().path_and_query().map_or(path.as_str(), PathAndQuery::as_str);
            (state.next_fault(target), state.is_over_limit(now), state.latency)
        };
        self.arrivals.send_replace(());
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        match fault {
            None if is_over_limit => Ok(rate_limited(None)),
            None => {
                lock(&self.state).answered.push(path.clone());
                Ok(self.correct_response(&request, &path))
            }
            Some(fault) => self.faulty_response(fault, &request, &path).await,
        }
    }

    async fn faulty_response(
        &self,
        fault: NoviFault,
        request: &Request<Incoming>,
        path: &str,
    ) -> Result<Response<Body>, std::io::Error> {
        Ok(match fault {
            NoviFault::Respond(status, kind, body) => respond(status, kind, body),
            NoviFault::RateLimited(retry_after) => rate_limited(retry_after),
            NoviFault::BlockedByCdn => {
                respond(403, "text/html", "<html><body><h1>Access denied</h1></body></html>".to_owned())
            }
            NoviFault::BlockedByCdnInJson => {
                let problem =
                    json!({"type": "about:blank", "title": "Access denied", "status": 403, "error_code": 1020});
                respond(403, "application/problem+json", problem.to_string())
            }
            NoviFault::Forbidden => message(403, "Forbidden."),
            NoviFault::Redirect(url) => {
                let mut response = respond(302, "text/html", String::new());
                response.headers_mut().extend(url.parse().ok().map(|url: HeaderValue| (header::LOCATION, url)));
                response
            }
            NoviFault::Disconnect => return Err(std::io::Error::other("injected fault")),
            NoviFault::NoResponse => std::future::pending().await,
            NoviFault::TruncatedBody => truncated(&self.look_up(request, path).1.to_string()),
            NoviFault::EndlessBody => endless_response(),
            NoviFault::Delay(delay) => {
                tokio::time::sleep(delay).await;
                self.correct_response(request, path)
            }
            NoviFault::Hold(until) => {
                until.acquire().await.map_err(std::io::Error::other)?.forget();
                self.correct_response(request, path)
            }
            NoviFault::OtherRecord => {
                let people = lock(&self.state).directory.people.clone();
                // A record without a UniqueID isn't known to be another person's.
                let is_other = |id: &Uuid, record: &Value| {
                    !path.ends_with(&id.hyphenated().to_string()) && record["UniqueID"].is_string()
                };
                let other = people.into_iter().find(|(id, record)| is_other(id, record));
                let record = other.map(|(_, record)| record).unwrap_or_default();
                self.private.add_record(&record);
                self.encode(request, 200, record.to_string().into_bytes())
            }
            NoviFault::SecondResponse(delay) => {
                let mut response = self.correct_response(request, path);
                send_twice(response.headers_mut(), delay);
                response
            }
            NoviFault::FoldedHeader => {
                let mut response = self.correct_response(request, path);
                let folded =
                    HeaderValue::from_bytes(&[b"frame-ancestors 'none';", &FOLD[..], b"report-uri /r"].concat());
                response.headers_mut().extend(folded.ok().map(|value| (header::CONTENT_SECURITY_POLICY, value)));
                response
            }
            NoviFault::ManyHeaders(count) => {
                let mut response = self.correct_response(request, path);
                let names = (0..count).filter_map(|n| HeaderName::from_bytes(format!("x-trace-{n}").as_bytes()).ok());
                response.headers_mut().extend(names.map(|name| (name, HeaderValue::from_static("1"))));
                response
            }
            NoviFault::ByteOrderMark => {
                let (status, body) = self.look_up(request, path);
                self.encode(request, status, format!("\u{feff}{body}").into_bytes())
            }
            NoviFault::HalfSurrogate(field) => {
                let (status, body) = self.look_up(request, path);
                let (start, mut text) = (format!("\"{field}\":\""), String::new());
                for (number, part) in body.to_string().split(&start).enumerate() {
                    // No name in the directory contains a quotation mark.
                    let (value, rest) = part.split_once('"').unwrap_or((part, ""));
                    text += &if number == 0 { part.to_owned() } else { format!("{start}{value}\\ud83d\"{rest}") };
                }
                self.encode(request, status, text.into_bytes())
            }
            NoviFault::WithHeader(name, value, fault) => {
                let mut response = Box::pin(self.faulty_response(*fault, request, path)).await?;
                response.headers_mut().extend(value.parse().ok().map(|value| (HeaderName::from_static(name), value)));
                response
            }
        })
    }

    fn correct_response(&self, request: &Request<Incoming>, path: &str) -> Response<Body> {
        let (status, body) = self.look_up(request, path);
        self.encode(request, status, body.to_string().into_bytes())
    }

    /// Returns a response in JSON, compressed if the client doesn't decline that.
    fn encode(&self, request: &Request<Incoming>, status: u16, body: Vec<u8>) -> Response<Body> {
        let accepted = request.headers().get(header::ACCEPT_ENCODING).map(HeaderValue::as_bytes);
        let accepts_gzip = accepted.is_none_or(|accepted| accepted.windows(4).any(|window| window == b"gzip"));
        let compresses = accepts_gzip && lock(&self.state).compresses;
        let mut response = respond(status, JSON, if compresses { gzip(&body) } else { body });
        if compresses {
            response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }

    fn look_up(&self, request: &Request<Incoming>, path: &str) -> (u16, Value) {
        let (status, body) = self.look_up_as_documented(request, path);
        (status, if lock(&self.state).has_camel_case_keys { camel_case(body) } else { body })
    }

    fn look_up_as_documented(&self, request: &Request<Incoming>, path: &str) -> (u16, Value) {
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
                    (200, if state.wraps_records { json!({ "data": record }) } else { record.clone() })
                }
                None => not_found,
            },
            ["api", "groups", id, "members"] => {
                let Some(members) = Uuid::parse_str(id).ok().and_then(|id| state.directory.groups.get(&id)) else {
                    return not_found;
                };
                let row = |id: &Uuid| {
                    let id_text = (!id.is_nil()).then(|| id.hyphenated().to_string());
                    self.private.add(id_text.as_deref().unwrap_or_default());
                    let name = state.directory.people.get(id).and_then(|record| record.get("Name").cloned());
                    json!({"UniqueID": id_text, "Name": name, "DuesPayerUniqueID": null})
                };
                (200, state.page(members.iter(), row, state.has_total_count, request.uri().query().unwrap_or_default()))
            }
            ["api", "members"] => {
                let Some(hidden) = &state.bulk_hidden_fields else { return not_found };
                let hidden_of = |id: &Uuid| state.hidden_fields.get(id).map(Vec::as_slice).unwrap_or_default();
                let is_hidden_of = |id: &Uuid, field: &str| hidden_of(id).iter().any(|hidden| hidden == field);
                let row = |(id, record): (&Uuid, &Value)| {
                    self.private.add_record(record);
                    let mut record = record.clone();
                    if let Some(map) = record.as_object_mut() {
                        let is_hidden = |field: &String| hidden.contains(field) || is_hidden_of(id, field);
                        map.retain(|field, _| state.hides_as_null || !is_hidden(field));
                        map.iter_mut()
                            .filter(|(field, _)| is_hidden(field))
                            .for_each(|(_, value)| *value = Value::Null);
                    }
                    record
                };
                let visible: Vec<_> = state.directory.people.iter().filter(|(id, _)| !is_hidden_of(id, "*")).collect();
                (200, state.page(visible.into_iter(), row, true, request.uri().query().unwrap_or_default()))
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
        has_total_count: bool,
        query: &str,
    ) -> Value {
        let number = |name: &str| {
            url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).and_then(|(_, n)| n.parse().ok())
        };
        let mut total = all.len();
        let offset = number("offset").unwrap_or(0);
        if self.has_drifting_total {
            total += offset;
        }
        let size = number("pageSize").unwrap_or(100_usize).min(self.page_limit);
        let rows: Vec<Value> = all.skip(if self.ignores_offset { 0 } else { offset }).take(size).map(row).collect();
        if has_total_count { json!({"TotalCount": total, "Results": rows}) } else { Value::Array(rows) }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Changes the first letter of each key to lower case.
fn camel_case(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let renamed = map.into_iter().map(|(key, value)| {
                let (first, rest) = key.split_at(key.chars().next().map_or(0, char::len_utf8));
                (first.to_lowercase() + rest, camel_case(value))
            });
            Value::Object(renamed.collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(camel_case).collect()),
        other => other,
    }
}

fn full(body: impl Into<Bytes>) -> Body {
    let frame = Frame::data(body.into());
    StreamBody::new(stream::iter([Ok(frame)]).boxed())
}

fn respond(status: u16, kind: &str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().extend(kind.parse().ok().map(|kind: HeaderValue| (header::CONTENT_TYPE, kind)));
    response
}

fn message(status: u16, text: &str) -> Response<Body> {
    respond(status, JSON, json!({ "Message": text }).to_string())
}

fn rate_limited(retry_after: Option<String>) -> Response<Body> {
    let mut response = message(429, "Too many requests.");
    let value: Option<HeaderValue> = retry_after.and_then(|retry_after| retry_after.parse().ok());
    response.headers_mut().extend(value.map(|value| (header::RETRY_AFTER, value)));
    response
}

fn endless_response() -> Response<Body> {
    let chunk = Bytes::from_static(&[b' '; 16_384]);
    let frames = stream::repeat_with(move || Ok(Frame::data(chunk.clone())));
    let mut response = Response::new(StreamBody::new(frames.boxed()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Announces the length of the whole body, but sends only half of it.
fn truncated(body: &str) -> Response<Body> {
    let half = Bytes::copy_from_slice(&body.as_bytes()[..body.len() / 2]);
    let error = async {
        // hyper sends what it has before it polls the body again. Without this, the client would see no response at all.
        tokio::task::yield_now().await;
        Err(std::io::Error::other("injected fault"))
    };
    let frames = stream::iter([Ok(Frame::data(half))]).chain(stream::once(error));
    let mut response = Response::new(StreamBody::new(frames.boxed()));
    response.headers_mut().insert(header::CONTENT_LENGTH, body.len().into());
    response
}
