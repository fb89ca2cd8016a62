//! Upstreams that respond immediately or after a given time. Their responses are prepared in advance, so that their own
//! work isn't measured.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::Full;
use hyper::body::Incoming;
use tests::http_server::Server;
use tests::redis::CertificateAuthority;

/// A server that returns JSON.
pub(crate) struct Upstream {
    server: Server,
    scheme: &'static str,
}

impl Upstream {
    /// Starts a server, with TLS if `authority` is set. Paths for which `responses` returns `None` get a 404.
    pub(crate) async fn start(
        responses: impl Fn(&Uri) -> Option<Bytes> + Send + Sync + 'static,
        latency: Duration,
        authority: Option<&CertificateAuthority>,
    ) -> Result<Self> {
        let responses = Arc::new(responses);
        let handler = move |request| respond(Arc::clone(&responses), latency, request);
        let (server, scheme) = match authority {
            None => (Server::start(handler).await?, "http"),
            Some(authority) => (Server::start_tls(authority.acceptor()?, handler).await?, "https"),
        };
        Ok(Self { server, scheme })
    }

    /// Returns the base URL.
    pub(crate) fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.server.port)
    }
}

/// Responds to a request after the latency.
async fn respond(
    responses: Arc<impl Fn(&Uri) -> Option<Bytes>>,
    latency: Duration,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>> {
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    let body = responses(request.uri());
    let status = match &body {
        None => StatusCode::NOT_FOUND,
        Some(_) if request.method() == Method::POST => StatusCode::CREATED,
        Some(_) => StatusCode::OK,
    };
    let mut response = Response::new(Full::from(body.unwrap_or_default()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// Returns a number from the query string.
pub(crate) fn query_number(uri: &Uri, name: &str) -> Option<usize> {
    let query = uri.query()?.as_bytes();
    url::form_urlencoded::parse(query).find(|(key, _)| key == name)?.1.parse().ok()
}

/// Returns a page of rows, in an envelope with the total count.
pub(crate) fn page(rows: &[String], offset: usize, count: usize, total: &str, entries: &str) -> Bytes {
    let from = offset.min(rows.len());
    let part = rows[from..(from + count).min(rows.len())].join(",");
    Bytes::from(format!("{{\"{total}\":{},\"{entries}\":[{part}]}}", rows.len()))
}
