//! A small stand-in for API Gateway: HTTP on loopback in front of a function
//! under the emulator, for browsers and curl.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use tokio::sync::Mutex;

use crate::api::{Answer, Request};
use crate::function::Function;
use crate::serve::Server;

/// Serves a function. It ends with the runtime it was started on.
pub struct Gateway {
    /// Where it listens.
    pub url: String,
}

impl Gateway {
    /// Starts one on a free port. The emulator takes one invocation at a time,
    /// as an instance of a function does.
    ///
    /// # Errors
    /// Where no port is free.
    pub async fn start(function: Arc<Mutex<Function>>) -> anyhow::Result<Self> {
        let server = Server::start(move |request: http::Request<_>| {
            let function = Arc::clone(&function);
            async move { Ok::<_, Infallible>(answer(&function, &request).await) }
        });
        Ok(Self { url: server.await?.url() })
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
