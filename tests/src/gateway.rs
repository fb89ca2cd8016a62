//! A minimal fake of API Gateway: HTTP on loopback in front of a function under
//! the emulator, for browsers, curl and generated clients.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use serde_json::json;
use tokio::sync::Mutex;

use crate::api;
use crate::function::Function;
use crate::http_server::Server;

/// Serves a function until the runtime it was started on shuts down.
pub struct Gateway {
    /// The URL of the API, with the stage if it has a name.
    pub url: String,
    requests: Arc<SyncMutex<BTreeSet<(String, u16)>>>,
    own_response: Arc<SyncMutex<Option<StatusCode>>>,
}

/// The name of a stage that isn't part of the URL.
const DEFAULT_STAGE: &str = "$default";

impl Gateway {
    /// Starts a gateway on a free port. It passes on one invocation at a time,
    /// because the emulator, like an instance of a function, handles only one.
    ///
    /// # Errors
    /// Fails if no port is free.
    pub async fn start(function: Arc<Mutex<Function>>) -> anyhow::Result<Self> {
        Self::start_stage(function, DEFAULT_STAGE).await
    }

    /// Starts a gateway like [`Self::start`], with the API below `/{stage}`.
    ///
    /// # Errors
    /// Fails if no port is free.
    pub async fn start_stage(function: Arc<Mutex<Function>>, stage: &'static str) -> anyhow::Result<Self> {
        let requests = Arc::new(SyncMutex::new(BTreeSet::new()));
        let own_response = Arc::new(SyncMutex::new(None));
        let (recorded, own_status) = (Arc::clone(&requests), Arc::clone(&own_response));
        let server = Server::start(move |request: Request<_>| {
            let (function, recorded, own_status) =
                (Arc::clone(&function), Arc::clone(&recorded), Arc::clone(&own_status));
            async move {
                let own_status: Option<StatusCode> = *own_status.lock().unwrap_or_else(PoisonError::into_inner);
                let response = match (own_status, local_path(&request, stage)) {
                    (Some(status), _) => message(status),
                    (None, None) => message(StatusCode::NOT_FOUND),
                    (None, Some(path)) => handle(&function, &request, path, stage).await,
                };
                if request.method() == Method::GET {
                    let path = request.uri().path().to_owned();
                    recorded.lock().unwrap_or_else(PoisonError::into_inner).insert((path, response.status().as_u16()));
                }
                Ok::<_, Infallible>(response)
            }
        });
        let root = server.await?.url();
        let url = if stage == DEFAULT_STAGE { root } else { format!("{root}/{stage}") };
        Ok(Self { url, requests, own_response })
    }

    /// Makes the gateway respond with this status itself, without invoking the function: 429 if it throttles, 500 if
    /// the function fails, or 503 if the function times out. `None` ends this.
    pub fn respond_itself(&self, status: Option<StatusCode>) {
        *self.own_response.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }

    /// Returns the paths of all GET requests so far, with the statuses of the responses.
    #[must_use]
    pub fn requests(&self) -> BTreeSet<(String, u16)> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Returns the path below the stage, or `None` if the path is outside of it.
fn local_path<'r, B>(request: &'r Request<B>, stage: &str) -> Option<&'r str> {
    let path = request.uri().path();
    if stage == DEFAULT_STAGE {
        return Some(path);
    }
    path.strip_prefix('/')?.strip_prefix(stage).filter(|rest| rest.starts_with('/'))
}

async fn handle<B>(function: &Mutex<Function>, request: &Request<B>, path: &str, stage: &str) -> Response<Full<Bytes>> {
    let mut event = api::Request::new(request.method().as_str(), path);
    for (name, value) in request.headers() {
        event = event.header(name.as_str(), &String::from_utf8_lossy(value.as_bytes()));
    }
    let returned = function.lock().await.invoke(&event.http_api(stage)).await;
    let Ok(parsed) = returned.and_then(|returned| api::Response::parse(&returned)) else {
        return message(StatusCode::INTERNAL_SERVER_ERROR);
    };
    let mut response = Response::new(Full::from(parsed.body));
    *response.status_mut() = StatusCode::from_u16(parsed.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in &parsed.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// Returns a response of API Gateway itself.
fn message(status: StatusCode) -> Response<Full<Bytes>> {
    let text = status.canonical_reason().unwrap_or_default();
    let mut response = Response::new(Full::from(json!({ "message": text }).to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
