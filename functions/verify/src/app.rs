//! The application behind the Lambda event: what all requests and responses have in common.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, Method, StatusCode, header};
use lambda_http::{Adapter, LambdaEvent, RequestExt, service_fn};
use serde::Serialize;
use shared::metrics::{self, Metric};
use shared::telemetry;
use tower::{Service, ServiceExt};
use tower_http::cors::{AllowOrigin, CorsLayer};
use tracing::Instrument;

use crate::event::Event;
use crate::gate;
use crate::path::{MEMBER_ROUTE, local_uri};
use crate::problem::Code;
use crate::routes::{X_CACHE, router};
use crate::settings::Origins;
use crate::verification::Verifier;

/// The application behind the Lambda event.
#[derive(Clone)]
pub(crate) struct App {
    router: Router,
    /// For OPTIONS requests that are not preflight, because `CorsLayer` would treat them as preflight.
    router_without_cors: Router,
    /// `BASE_PATH`.
    base_path: Option<Arc<str>>,
}

impl App {
    /// Creates the application.
    pub(crate) fn new(verifier: Verifier, origins: Origins, base_path: Option<Arc<str>>) -> Self {
        let router_without_cors = router(verifier);
        let router =
            cors(origins).map_or_else(|| router_without_cors.clone(), |cors| router_without_cors.clone().layer(cors));
        Self { router, router_without_cors, base_path }
    }

    /// Handles one request and logs one line about it, which never identifies a member.
    pub(crate) async fn handle(self, request: lambda_http::Request) -> Result<LambdaResponse, Infallible> {
        let started = Instant::now();
        let request_id = request.lambda_context_ref().map_or("", |context| context.request_id.as_str()).to_owned();
        let span = tracing::info_span!("request", request_id);
        let (uri, route) = local_uri(request.raw_http_path(), request.request_context_ref(), self.base_path.as_deref());
        let (parts, _) = request.into_parts();
        let mut request = http::Request::new(Body::empty());
        *request.method_mut() = parts.method;
        *request.headers_mut() = parts.headers;
        // With the deadline of the invocation.
        *request.extensions_mut() = parts.extensions;
        *request.uri_mut() = uri;
        let is_options = request.method() == Method::OPTIONS;
        let is_preflight = is_options && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        let router = if is_options && !is_preflight { self.router_without_cors } else { self.router };
        let Ok(mut response) = router.oneshot(request).instrument(span.clone()).await;
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        let _in_span = span.enter();
        let duration_ms = started.elapsed().as_secs_f64() * 1e3;
        tracing::info!(
            route,
            status = response.status().as_u16(),
            code = response.extensions().get::<Code>().map(|code| code.as_str()),
            cache = response.headers().get(X_CACHE).and_then(|value| value.to_str().ok()),
            duration_ms,
            "request completed"
        );
        telemetry::count_tasks();
        if route == MEMBER_ROUTE && !is_preflight {
            metrics::emit(&response_metrics(&response, duration_ms));
        }
        Ok(LambdaResponse::buffered(response).await)
    }
}

/// A response with its body in memory, as Lambda expects it. Avoids lambda_http's own conversion, which would link a
/// decoder for every charset.
pub(crate) struct LambdaResponse(http::Response<lambda_http::Body>);

impl LambdaResponse {
    /// Reads the whole body into memory.
    async fn buffered(response: Response) -> Self {
        let (parts, body) = response.into_parts();
        // All bodies here are in memory already, so collecting one can't fail.
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
        let text = String::from_utf8(body.into());
        let body = text.map_or_else(|error| error.into_bytes().into(), lambda_http::Body::Text);
        Self(http::Response::from_parts(parts, body))
    }
}

impl lambda_http::IntoResponse for LambdaResponse {
    fn into_response(self) -> Pin<Box<dyn Future<Output = http::Response<lambda_http::Body>> + Send>> {
        Box::pin(std::future::ready(self.0))
    }
}

/// Returns the metrics of a response of the member route, for the dashboard.
fn response_metrics<B>(response: &http::Response<B>, duration_ms: f64) -> Vec<Metric> {
    const OUTCOMES: [&str; 5] = ["Verified", "NotMember", "RateLimited", "Unavailable", "Refused"];
    let outcome = match response.status() {
        StatusCode::OK => "Verified",
        StatusCode::NOT_FOUND => "NotMember",
        StatusCode::TOO_MANY_REQUESTS => "RateLimited",
        status if status.is_server_error() => "Unavailable",
        _ => "Refused",
    };
    let cache = response.headers().get(X_CACHE).and_then(|value| value.to_str().ok()).map(|origin| match origin {
        "hit" => "CacheHit",
        "stale" => "CacheStale",
        "bypass" => "CacheDown",
        _ => "CacheMiss",
    });
    // The zeros let an alarm compute a share even if all responses are of one kind.
    let outcomes = OUTCOMES.iter().map(|name| Metric::Count(name, u64::from(*name == outcome)));
    let counts = outcomes.chain(cache.map(|name| Metric::Count(name, 1)));
    counts.chain([Metric::Milliseconds("Latency", duration_ms)]).collect()
}

/// Returns the CORS layer, or `None` if CORS is off.
fn cors(origins: Origins) -> Option<CorsLayer> {
    let allow = match origins {
        Origins::None => return None,
        Origins::Any => AllowOrigin::any(),
        Origins::List(origins) => AllowOrigin::list(origins),
    };
    Some(
        CorsLayer::new()
            .allow_origin(allow)
            .allow_methods([Method::GET])
            .allow_headers([gate::API_KEY, gate::ACCOUNT_ID, header::AUTHORIZATION])
            .expose_headers([header::RETRY_AFTER, X_CACHE])
            .vary([header::ORIGIN])
            .max_age(Duration::from_secs(3_600)),
    )
}

/// Wraps the application as a service of Lambda events.
pub(crate) fn service(
    app: App,
) -> impl Service<LambdaEvent<Event>, Response: Serialize + Send, Error = Infallible, Future: Send> + Clone + Send {
    let http = Adapter::from(service_fn(move |request| app.clone().handle(request)));
    http.map_request(|event: LambdaEvent<Event>| {
        let (Event(request), context) = event.into_parts();
        LambdaEvent::new(request, context)
    })
}

shared::unprintable!(LambdaResponse);
