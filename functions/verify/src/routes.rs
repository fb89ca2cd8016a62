//! The routes, and what every answer has in common.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use lambda_http::RequestExt;
use lambda_http::request::RequestContext;
use serde::Serialize;
use shared::cache::CacheHealth;
use shared::member::{Identity, MemberId};
use shared::metrics::{self, Metric};
use shared::parameters::Health;
use shared::telemetry;
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};
use tracing::Instrument;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::gate;
use crate::openapi;
use crate::problem::{Code, Problem};
use crate::settings::Origins;
use crate::verification::{Origin, Verifier};

/// Says where a 200 came from.
pub(crate) const X_CACHE: HeaderName = HeaderName::from_static("x-cache");

const MEMBER: &str = "/v3/action/idaa/novi_member/";
const HEALTH: &str = "/health";
const OPENAPI: &str = "/openapi.json";
/// The member route's name in the log.
const MEMBER_ROUTE: &str = "member";

/// Everything behind the Lambda event.
#[derive(Clone)]
pub(crate) struct App {
    router: Router,
    /// Without CORS, for an OPTIONS that is no preflight: the layer would answer it as one.
    plain: Router,
}

#[derive(Clone)]
struct Parts {
    verifier: Arc<Verifier>,
    description: Arc<str>,
}

impl App {
    pub(crate) fn new(verifier: Verifier, origins: Origins) -> Self {
        let (router, description) = OpenApiRouter::with_openapi(openapi::preface())
            .routes(routes!(member))
            .routes(routes!(health))
            .routes(routes!(description))
            .split_for_parts();
        let description = openapi::complete(description).into();
        let plain = router
            .fallback(|| async { Problem::from(Code::RouteNotFound) })
            .method_not_allowed_fallback(|| async { Problem::from(Code::MethodNotAllowed) })
            .with_state(Parts { verifier: Arc::new(verifier), description })
            // Inside CORS, so that a page can read even this answer.
            .layer(CatchPanicLayer::custom(|_| Problem::from(Code::InternalError).into_response()));
        let router = cors(origins).map_or_else(|| plain.clone(), |cors| plain.clone().layer(cors));
        Self { router, plain }
    }

    /// Answers one request. Logs one line of it, which names nobody.
    pub(crate) async fn handle(self, request: lambda_http::Request) -> Result<Answer, Infallible> {
        let started = Instant::now();
        let request_id = request.lambda_context_ref().map_or("", |context| context.request_id.as_str()).to_owned();
        let span = tracing::info_span!("request", request_id);
        let (uri, route) = local_uri(request.raw_http_path(), request.request_context_ref());
        let (parts, _) = request.into_parts();
        let mut request = http::Request::new(Body::empty());
        *request.method_mut() = parts.method;
        *request.headers_mut() = parts.headers;
        *request.uri_mut() = uri;
        let is_preflight = request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        let router = if request.method() == Method::OPTIONS && !is_preflight { self.plain } else { self.router };
        let Ok(mut response) = router.oneshot(request).instrument(span.clone()).await;
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        let _in_span = span.enter();
        let milliseconds = started.elapsed().as_secs_f64() * 1e3;
        tracing::info!(
            route,
            status = response.status().as_u16(),
            code = response.extensions().get::<Code>().map(|code| code.as_str()),
            cache = response.headers().get(X_CACHE).and_then(|value| value.to_str().ok()),
            milliseconds,
            "answered"
        );
        telemetry::count_tasks();
        if route == MEMBER_ROUTE && !is_preflight {
            metrics::emit(&measured(&response, milliseconds));
        }
        Ok(Answer::of(response).await)
    }
}

/// An answer whose body is in memory, as Lambda takes it: the library would
/// else bring a decoder of every charset there is.
pub(crate) struct Answer(http::Response<lambda_http::Body>);

impl Answer {
    async fn of(response: Response) -> Self {
        let (parts, body) = response.into_parts();
        // Bodies here were made whole: collecting one cannot fail.
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
        let text = String::from_utf8(body.into());
        let body = text.map_or_else(|other| other.into_bytes().into(), lambda_http::Body::Text);
        Self(http::Response::from_parts(parts, body))
    }
}

impl lambda_http::IntoResponse for Answer {
    fn into_response(self) -> Pin<Box<dyn Future<Output = http::Response<lambda_http::Body>> + Send>> {
        Box::pin(std::future::ready(self.0))
    }
}

/// What the dashboard shows of an answer about a member.
fn measured<B>(response: &http::Response<B>, milliseconds: f64) -> Vec<Metric> {
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
    let counts = [Some(outcome), cache].into_iter().flatten().map(|name| Metric::Count(name, 1));
    counts.chain([Metric::Milliseconds("Latency", milliseconds)]).collect()
}

/// The path as the routes have it, and the route's name for the log.
///
/// API Gateway may put the stage before the path (HTTP APIs do, REST APIs do
/// not, and the library adds it there), so the path is taken as it was sent and
/// the stage is dropped where what follows it is a route. The raw path is used
/// because a URL parser resolves dot segments and turns backslashes, and what
/// the gate sees must be what the caller sent.
fn local_uri(raw: &str, context: Option<&RequestContext>) -> (Uri, &'static str) {
    let stage = match context {
        Some(RequestContext::ApiGatewayV1(context)) => context.stage.as_deref(),
        Some(RequestContext::ApiGatewayV2(context)) => context.stage.as_deref(),
        _ => None,
    };
    let staged = stage
        .and_then(|stage| raw.strip_prefix('/')?.strip_prefix(stage))
        .filter(|rest| rest.starts_with('/') && route_name(rest).is_some());
    let path = staged.unwrap_or(raw);
    let name = route_name(path).unwrap_or("none");
    (to_uri(path), name)
}

fn route_name(path: &str) -> Option<&'static str> {
    match path {
        HEALTH => Some("health"),
        OPENAPI => Some("openapi"),
        _ if path.starts_with(MEMBER) => Some(MEMBER_ROUTE),
        _ => None,
    }
}

/// REST APIs give the path decoded: what no URI may hold is encoded again.
fn to_uri(path: &str) -> Uri {
    use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
    const OUTSIDE: AsciiSet = CONTROLS
        .add(b' ')
        .add(b'"')
        .add(b'#')
        .add(b'<')
        .add(b'>')
        .add(b'?')
        .add(b'\\')
        .add(b'^')
        .add(b'`')
        .add(b'{')
        .add(b'|')
        .add(b'}');
    let path = utf8_percent_encode(path, &OUTSIDE).to_string();
    PathAndQuery::try_from(path).map_or_else(|_| Uri::default(), Uri::from)
}

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

/// A verified member.
#[derive(Serialize, ToSchema)]
pub(crate) struct Verified {
    /// Always true: everything else is a problem.
    #[schema(example = true)]
    verified: bool,
    /// First name and the first character of the last name; `null` where Novi has no name.
    #[schema(required, example = "Ada L.")]
    full_name: Option<String>,
    /// The address; `null` where Novi has none.
    #[schema(required, example = "ada+lists@example.org")]
    email: Option<String>,
}

/// Verify a member.
///
/// Is this UUID that of a member, and by what name? Denied means 404 with the
/// code `member_not_found`, and nothing else: a rate limit (429) or an outage
/// (503) says nothing about the member.
#[utoipa::path(
    get,
    path = "/v3/action/idaa/novi_member/{uuid}",
    operation_id = "verifyMember",
    params((
        "uuid" = String,
        Path,
        format = "uuid",
        // The format alone is a hint: few tools refuse what does not have it.
        pattern = "^[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}$",
        description = "The member's UUID in Novi, hyphenated, upper or lower case"
    )),
    responses((status = 200, description = "A member", body = Verified)),
)]
async fn member(
    State(Parts { verifier, .. }): State<Parts>,
    headers: HeaderMap,
    uuid: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let parameters = verifier.parameters.get().await.map_err(|_| Code::ParametersUnavailable)?;
    parameters.gate.check(&headers)?;
    let id = uuid.ok().and_then(|Path(uuid)| MemberId::parse(&uuid)).ok_or(Code::InvalidUuid)?;
    let (Identity { full_name, email }, origin) = verifier.verify(parameters, id).await?;
    let mut response = Json(Verified { verified: true, full_name, email }).into_response();
    response.headers_mut().insert(X_CACHE, HeaderValue::from_static(Origin::as_str(origin)));
    Ok(response)
}

/// How the service is.
#[derive(Serialize, ToSchema)]
pub(crate) struct HealthReport {
    status: Status,
    checks: Checks,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Status {
    /// All is well.
    Ok,
    /// Requests are answered, and something needs a look.
    Degraded,
    /// Requests cannot be answered.
    Down,
}

#[derive(Serialize, ToSchema)]
struct Checks {
    parameters: ParametersCheck,
    cache: CacheCheck,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ParametersCheck {
    /// Read within their time.
    Ok,
    /// Cannot be read again: the older ones are used.
    Stale,
    /// Cannot be read.
    Down,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum CacheCheck {
    /// The Redis answers.
    Ok,
    /// There is no Redis: verified members are kept by each instance for itself.
    InProcess,
    /// The Redis does not answer: members are verified without it.
    Down,
}

/// How the service is.
///
/// Never asks Novi, and tells no secret. A 503 here means that members cannot
/// be verified at all.
#[utoipa::path(
    get,
    path = "/health",
    operation_id = "health",
    responses(
        (status = 200, description = "Up, perhaps degraded", body = HealthReport),
        (status = 503, description = "Down", body = HealthReport, headers(("Retry-After" = u64, description = "Seconds to wait"))),
    ),
    security(()),
)]
async fn health(State(Parts { verifier, .. }): State<Parts>) -> Response {
    let (parameters, cache) = tokio::join!(verifier.parameters.health(), verifier.cache.health());
    let (mut status, parameters) = match parameters {
        Health::Ok => (Status::Ok, ParametersCheck::Ok),
        Health::Stale => (Status::Degraded, ParametersCheck::Stale),
        Health::Down => (Status::Down, ParametersCheck::Down),
    };
    let cache = match cache {
        CacheHealth::Ok => CacheCheck::Ok,
        CacheHealth::InProcess => CacheCheck::InProcess,
        CacheHealth::Down => CacheCheck::Down,
    };
    if matches!((&status, &cache), (Status::Ok, CacheCheck::Down)) {
        status = Status::Degraded;
    }
    let is_down = matches!(status, Status::Down);
    let report = Json(HealthReport { status, checks: Checks { parameters, cache } });
    if is_down {
        (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "5")], report).into_response()
    } else {
        report.into_response()
    }
}

/// This description.
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "openapi",
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json", body = serde_json::Value)),
    security(()),
)]
async fn description(State(Parts { description, .. }): State<Parts>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], description.to_string()).into_response()
}

shared::unprintable!(Answer, Verified);

#[cfg(test)]
mod tests {
    use lambda_http::aws_lambda_events::apigw::{ApiGatewayProxyRequestContext, ApiGatewayV2httpRequestContext};

    use super::*;

    fn context(stage: &str) -> [RequestContext; 2] {
        let mut v1 = ApiGatewayProxyRequestContext::default();
        v1.stage = Some(stage.to_owned());
        let mut v2 = ApiGatewayV2httpRequestContext::default();
        v2.stage = Some(stage.to_owned());
        [RequestContext::ApiGatewayV1(v1), RequestContext::ApiGatewayV2(v2)]
    }

    #[test]
    fn a_stage_does_no_harm_and_nothing_else_is_a_stage() {
        for (stage, raw, path, name) in [
            ("$default", "/health", "/health", "health"),
            ("prod", "/health", "/health", "health"),
            ("prod", "/prod/health", "/health", "health"),
            ("prod", "/prod/v3/action/idaa/novi_member/x", "/v3/action/idaa/novi_member/x", "member"),
            // A stage by the name of a path's first part.
            ("v3", "/v3/action/idaa/novi_member/x", "/v3/action/idaa/novi_member/x", "member"),
            ("v3", "/v3/v3/action/idaa/novi_member/x", "/v3/action/idaa/novi_member/x", "member"),
            ("health", "/health", "/health", "health"),
            ("prod", "/staging/health", "/staging/health", "none"),
            ("prod", "/production/health", "/production/health", "none"),
            ("prod", "/prod/prod/health", "/prod/prod/health", "none"),
            ("prod", "/prod/admin", "/prod/admin", "none"),
            ("prod", "//health", "//health", "none"),
            ("prod", "/x/../health", "/x/../health", "none"),
        ] {
            for context in context(stage) {
                let (uri, found) = local_uri(raw, Some(&context));
                assert_eq!((uri.path(), found), (path, name), "{stage} {raw}");
            }
        }
        assert_eq!(local_uri("/health", None).1, "health");
    }

    #[test]
    fn what_no_uri_may_hold_is_encoded() {
        for (raw, path) in [
            ("/v3/action/idaa/novi_member/a b", "/v3/action/idaa/novi_member/a%20b"),
            ("/v3/action/idaa/novi_member/a%20b", "/v3/action/idaa/novi_member/a%20b"),
            ("/v3/action/idaa/novi_member/é?x#y", "/v3/action/idaa/novi_member/%C3%A9%3Fx%23y"),
        ] {
            assert_eq!(local_uri(raw, None).0.path(), path);
        }
    }
}
