//! A small stand-in for API Gateway: HTTP on loopback in front of a function
//! under the emulator, for browsers and curl.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex as Lock, PoisonError};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body_util::Full;
use tokio::sync::Mutex;

use crate::api::{Answer, Request};
use crate::function::Function;
use crate::http_server::Server;

/// Serves a function. It ends with the runtime it was started on.
pub struct Gateway {
    /// Where it listens.
    pub url: String,
    seen: Arc<Lock<BTreeSet<(String, u16)>>>,
}

impl Gateway {
    /// Starts one on a free port. The emulator takes one invocation at a time,
    /// as an instance of a function does.
    ///
    /// # Errors
    /// Where no port is free.
    pub async fn start(function: Arc<Mutex<Function>>) -> anyhow::Result<Self> {
        let seen = Arc::new(Lock::new(BTreeSet::new()));
        let noted = Arc::clone(&seen);
        let server = Server::start(move |request: http::Request<_>| {
            let (function, noted) = (Arc::clone(&function), Arc::clone(&noted));
            async move {
                let answer = answer(&function, &request).await;
                if request.method() == Method::GET {
                    let path = request.uri().path().to_owned();
                    noted.lock().unwrap_or_else(PoisonError::into_inner).insert((path, answer.status().as_u16()));
                }
                Ok::<_, Infallible>(answer)
            }
        });
        Ok(Self { url: server.await?.url(), seen })
    }

    /// The paths that were got so far, and with which status.
    #[must_use]
    pub fn seen(&self) -> BTreeSet<(String, u16)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn answer<B>(function: &Mutex<Function>, request: &http::Request<B>) -> Response<Full<Bytes>> {
    let mut event = Request::new(request.method().as_str(), request.uri().path());
    for (name, value) in request.headers() {
        event = event.header(name.as_str(), &String::from_utf8_lossy(value.as_bytes()));
    }
    let returned = function.lock().await.invoke(&event.http_api("$default")).await;
    let Ok(answer) = returned.and_then(|returned| Answer::read(&returned)) else {
        let mut response = Response::new(Full::from(r#"{"message":"Internal Server Error"}"#));
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        return response;
    };
    let mut response = Response::new(Full::from(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in &answer.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}
