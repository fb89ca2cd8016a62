//! The router, the handlers, and the schemas of their responses.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use shared::cache::CacheHealth;
use shared::member::{Identity, MemberId};
use shared::novi::RootDigest;
use shared::parameters::Health;
use tokio::time::timeout_at;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::deadline::Deadline;
use crate::openapi;
use crate::problem::{Code, Problem};
use crate::verification::{Origin, Verifier};

/// The header that tells where the member of a 200 response came from. See [`Origin`].
pub(crate) const X_CACHE: HeaderName = HeaderName::from_static("x-cache");

/// The state that the handlers share.
#[derive(Clone)]
struct AppState {
    verifier: Arc<Verifier>,
    openapi_json: Arc<str>,
}

/// Creates the router, including the fallbacks and the response to a panic. CORS is added outside it.
pub(crate) fn router(verifier: Verifier) -> Router {
    let (router, api) = OpenApiRouter::with_openapi(openapi::api_doc())
        .routes(routes!(member))
        .routes(routes!(health))
        .routes(routes!(openapi_json))
        .split_for_parts();
    let openapi_json = openapi::complete(api).into();
    router
        .fallback(|| async { Problem::from(Code::RouteNotFound) })
        .method_not_allowed_fallback(|| async { Problem::from(Code::MethodNotAllowed) })
        .with_state(AppState { verifier: Arc::new(verifier), openapi_json })
        // Inside CORS, so that web pages can read this response too.
        .layer(CatchPanicLayer::custom(|_| Problem::from(Code::InternalError).into_response()))
}

/// A verified member.
#[derive(Serialize, ToSchema)]
pub(crate) struct Verified {
    /// Always true. Every other outcome is a problem response.
    #[schema(example = true)]
    verified: bool,
    /// The first name and the first character of the last name, or `null` if Novi has no name.
    #[schema(required, example = "Ada L.")]
    full_name: Option<String>,
    /// The email address, or `null` if Novi has none.
    #[schema(required, example = "ada+lists@example.org")]
    email: Option<String>,
}

/// Verifies a member.
///
/// Returns the display name and the email address if the UUID belongs to a member. Only a 404 with the code
/// `member_not_found` means that it doesn't: a rate limit (429) or an outage (503) says nothing about the member.
#[utoipa::path(
    get,
    path = "/v3/action/idaa/novi_member/{uuid}",
    operation_id = "verifyMember",
    params((
        "uuid" = String,
        Path,
        format = "uuid",
        // The format is only a hint: few tools reject a value that doesn't match it.
        pattern = "^[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}$",
        description = "The member's UUID in Novi, hyphenated, in upper or lower case"
    )),
    responses((status = 200, description = "A member", body = Verified)),
)]
async fn member(
    State(AppState { verifier, .. }): State<AppState>,
    Deadline(deadline): Deadline,
    headers: HeaderMap,
    uuid: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let parameters = timeout_at(deadline, verifier.parameters.get()).await;
    let parameters = parameters.ok().and_then(Result::ok).ok_or(Code::ParametersUnavailable)?;
    let trust = parameters.gate.check(&headers)?;
    let id = uuid.ok().and_then(|Path(uuid)| MemberId::parse(&uuid)).ok_or(Code::InvalidUuid)?;
    let (Identity { full_name, email }, origin) = verifier.verify(parameters, trust, id, deadline).await?;
    let mut response = Json(Verified { verified: true, full_name, email }).into_response();
    response.headers_mut().insert(X_CACHE, HeaderValue::from_static(Origin::as_str(origin)));
    Ok(response)
}

/// The health of the service.
#[derive(Serialize, ToSchema)]
pub(crate) struct HealthReport {
    status: Status,
    checks: Checks,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Status {
    /// Everything works.
    Ok,
    /// Requests are served, but something needs attention.
    Degraded,
    /// Requests can't be served.
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
    /// Read within their TTL.
    Ok,
    /// The last refresh failed, and the older values are used.
    Stale,
    /// Can't be read, and no older values are available.
    Down,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum CacheCheck {
    /// Redis can be read and written.
    Ok,
    /// No Redis is configured, and each instance caches verified members in its own memory.
    InProcess,
    /// Redis doesn't respond, or can't be read or written. Members are verified in any case.
    Down,
}

/// Reports service health.
///
/// Never calls Novi, and never reveals a secret. A 503 here means that no member can be verified.
#[utoipa::path(
    get,
    path = "/health",
    operation_id = "health",
    responses(
        (status = 200, description = "Up, possibly degraded", body = HealthReport),
        (status = 503, description = "Down", body = HealthReport, headers(("Retry-After" = u64, description = "Seconds to wait before retrying"))),
    ),
    security(()),
)]
async fn health(State(AppState { verifier, .. }): State<AppState>, Deadline(deadline): Deadline) -> Response {
    let cache = async {
        let parameters = verifier.parameters.for_cache(false).await;
        let novi = parameters.map_or_else(RootDigest::unknown, |parameters| parameters.novi.digest().clone());
        verifier.cache.health(&novi).await
    };
    let (parameters, cache) =
        tokio::join!(timeout_at(deadline, verifier.parameters.health()), timeout_at(deadline, cache));
    let (mut status, parameters) = match parameters.unwrap_or(Health::Down) {
        Health::Ok => (Status::Ok, ParametersCheck::Ok),
        Health::Stale => (Status::Degraded, ParametersCheck::Stale),
        Health::Down => (Status::Down, ParametersCheck::Down),
    };
    let cache = match cache.unwrap_or(CacheHealth::Down) {
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

/// Returns this OpenAPI description.
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "openapi",
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json", body = serde_json::Value)),
    security(()),
)]
async fn openapi_json(State(AppState { openapi_json, .. }): State<AppState>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], openapi_json.to_string()).into_response()
}

shared::unprintable!(Verified);
