//! A minimal fake of API Gateway: HTTP on loopback in front of a function under
//! the emulator, for browsers and curl.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use tokio::sync::Mutex;

use crate::api;
use crate::function::Function;
use crate::http_server::Server;

/// Serves a function until the runtime it was started on shuts down.
pub struct Gateway {
    /// The URL that it listens at.
    pub url: String,
    requests: Arc<SyncMutex<BTreeSet<(String, u16)>>>,
}

impl Gateway {
    /// Starts a gateway on a free port. It passes on one invocation at a time,
    /// because the emulator, like an instance of a function, handles only one.
    ///
    /// # Errors
    /// Fails if no port is free.
    pub async fn start(function: Arc<Mutex<Function>>) -> anyhow::Result<Self> {
        let requests = Arc::new(SyncMutex::new(BTreeSet::new()));
        let recorded = Arc::clone(&requests);
        let server = Server::start(move |request: Request<_>| {
            let (function, recorded) = (Arc::clone(&function), Arc::clone(&recorded));
            async move {
                let response = handle(&function, &request).await;
                if request.method() == Method::GET {
                    let path = request.uri().path().to_owned();
                    recorded.lock().unwrap_or_else(PoisonError::into_inner).insert((path, response.status().as_u16()));
                }
                Ok::<_, Infallible>(response)
            }
        });
        Ok(Self { url: server.await?.url(), requests })
    }

    /// Returns the paths of all GET requests so far, with the statuses of the responses.
    #[must_use]
    pub fn requests(&self) -> BTreeSet<(String, u16)> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn handle<B>(function: &Mutex<Function>, request: &Request<B>) -> Response<Full<Bytes>> {
    let mut event = api::Request::new(request.method().as_str(), request.uri().path());
    for (name, value) in request.headers() {
        event = event.header(name.as_str(), &String::from_utf8_lossy(value.as_bytes()));
    }
    let returned = function.lock().await.invoke(&event.http_api("$default")).await;
    let Ok(parsed) = returned.and_then(|returned| api::Response::parse(&returned)) else {
        let mut response = Response::new(Full::from(r#"{"message":"Internal Server Error"}"#));
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        return response;
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
