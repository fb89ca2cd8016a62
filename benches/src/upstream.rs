//! Upstreams that answer at once, or after a given time: what they say is made
//! ahead, so that they are never what is measured.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::Full;
use hyper::body::Incoming;
use tests::http_server::Server;
use tests::redis::Authority;

/// A server of JSON.
pub(crate) struct Upstream {
    server: Server,
    scheme: &'static str,
}

impl Upstream {
    /// Starts one, behind TLS where there is an authority that vouches for it.
    /// What `answers` does not know is a 404.
    pub(crate) async fn start(
        answers: impl Fn(&Uri) -> Option<Bytes> + Send + Sync + 'static,
        latency: Duration,
        authority: Option<&Authority>,
    ) -> Result<Self> {
        let answers = Arc::new(answers);
        let handler = move |request| respond(Arc::clone(&answers), latency, request);
        let (server, scheme) = match authority {
            None => (Server::start(handler).await?, "http"),
            Some(authority) => (Server::start_tls(authority.acceptor()?, handler).await?, "https"),
        };
        Ok(Self { server, scheme })
    }

    /// Where it answers.
    pub(crate) fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.server.port)
    }
}

async fn respond(
    answers: Arc<impl Fn(&Uri) -> Option<Bytes>>,
    latency: Duration,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>> {
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    let body = answers(request.uri());
    let status = if body.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
    let mut response = Response::new(Full::from(body.unwrap_or_default()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// A number in a query.
pub(crate) fn number(uri: &Uri, name: &str) -> Option<usize> {
    let query = uri.query()?.as_bytes();
    url::form_urlencoded::parse(query).find(|(key, _)| key == name)?.1.parse().ok()
}

/// A part of some rows, in an envelope that tells of all.
pub(crate) fn page(rows: &[String], offset: usize, count: usize, total: &str, entries: &str) -> Bytes {
    let from = offset.min(rows.len());
    let part = rows[from..(from + count).min(rows.len())].join(",");
    Bytes::from(format!("{{\"{total}\":{},\"{entries}\":[{part}]}}", rows.len()))
}
