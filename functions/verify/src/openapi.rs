//! The OpenAPI description. Most of it is derived from the handlers' types. This module adds the gate, the problems and
//! the headers, from the same list of codes that the responses use, and what API Gateway may send instead.

use http::StatusCode;
use serde_json::{Value, json};
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{AnyOfBuilder, ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{Header, OpenApi, Ref, RefOr, Response, ResponseBuilder, Server};
use utoipa::{OpenApi as _, ToSchema};

use crate::problem::{CHALLENGE, Code, Problem, ProblemBody};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "novi-bridge: member verification",
        description = "Tells whether a UUID belongs to a member. Errors are problem details (RFC 9457) with a `code`.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    components(schemas(ProblemBody, Code))
)]
struct ApiDoc;

/// The media type of a problem.
const PROBLEM_TYPE: &str = "application/problem+json";
/// The media type of API Gateway's own responses.
const GATEWAY_TYPE: &str = "application/json";
/// The name of the schema of API Gateway's own responses.
const GATEWAY_MESSAGE: &str = "GatewayMessage";
/// What API Gateway responds itself: if it throttles a request, if the function fails, and if it can't be invoked. Such
/// a response has none of the API's headers.
const GATEWAY_STATUSES: [StatusCode; 3] =
    [StatusCode::TOO_MANY_REQUESTS, StatusCode::INTERNAL_SERVER_ERROR, StatusCode::SERVICE_UNAVAILABLE];

/// Returns the general part of the description, without routes.
pub(crate) fn api_doc() -> OpenApi {
    ApiDoc::openapi()
}

/// Adds the parts that can't be derived from the handlers' types. Returns the description as JSON.
pub(crate) fn complete(mut api: OpenApi) -> String {
    // Relative to the URL of the description, so a stage or a base path is part of it.
    api.servers = Some(vec![Server::new(".")]);
    if let Some(components) = api.components.as_mut() {
        components.schemas.insert(GATEWAY_MESSAGE.to_owned(), gateway_message().into());
        components.add_security_scheme(
            "apiKey",
            SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description(
                "x-api-key",
                "Required. A key with bypass doesn't need an account context.",
            ))),
        );
        components.add_security_scheme(
            "accountId",
            SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description(
                "x-account-id",
                "An account context: 1 to 64 letters, digits, underscores or hyphens.",
            ))),
        );
        components.add_security_scheme(
            "bearer",
            SecurityScheme::Http(
                HttpBuilder::new()
                    .scheme(HttpAuthScheme::Bearer)
                    .bearer_format("JWT")
                    .description(Some(
                        "An account context: HS256, with exp and account_id. A token that is sent must be valid.",
                    ))
                    .build(),
            ),
        );
    }
    for item in api.paths.paths.values_mut() {
        if let Some(operation) = item.get.as_mut() {
            if operation.operation_id.as_deref() == Some("verifyMember") {
                describe_gate_and_problems(operation);
            } else {
                add_problem(operation, Code::InternalError);
            }
            for response in operation.responses.responses.values_mut() {
                if let RefOr::T(response) = response {
                    add_common_headers(response);
                }
            }
            GATEWAY_STATUSES.into_iter().for_each(|status| add_gateway_response(operation, status));
        }
    }
    let mut api = serde_json::to_value(api).expect("a description can be serialized as JSON");
    require_headers(&mut api);
    api.to_string()
}

/// Marks all response headers as required, because every described header is always sent, except by API Gateway itself.
/// utoipa's types can't express this.
fn require_headers(api: &mut Value) {
    let operations = object_values(&mut api["paths"]).flat_map(object_values);
    for responses in operations.filter_map(|operation| operation["responses"].as_object_mut()) {
        let is_ours = |status: &str| GATEWAY_STATUSES.iter().all(|gateways| gateways.as_str() != status);
        for (_, response) in responses.iter_mut().filter(|(status, _)| is_ours(status)) {
            object_values(&mut response["headers"]).for_each(|header| header["required"] = true.into());
        }
    }
}

/// Iterates over the values of an object. Yields nothing if `value` is not an object.
fn object_values(value: &mut Value) -> impl Iterator<Item = &mut Value> {
    value.as_object_mut().into_iter().flat_map(|object| object.values_mut())
}

/// Adds the parts that only the member route has: the gate, its problems and `X-Cache`.
fn describe_gate_and_problems(operation: &mut Operation) {
    let none: [&str; 0] = [];
    operation.security = Some(vec![
        SecurityRequirement::new("apiKey", none).add("accountId", none),
        SecurityRequirement::new("apiKey", none).add("bearer", none),
        SecurityRequirement::new("apiKey", none),
    ]);
    for code in Code::ALL {
        // These two occur only for other paths and methods.
        if !matches!(code, Code::RouteNotFound | Code::MethodNotAllowed) {
            add_problem(operation, code);
        }
    }
    if let Some(RefOr::T(verified)) = operation.responses.responses.get_mut("200") {
        let origin = ObjectBuilder::new()
            .schema_type(SchemaType::Type(Type::String))
            .enum_values(Some(["hit", "miss", "stale", "bypass"]))
            .build();
        let header = HeaderBuilder::new().schema(Some(origin)).description(Some(
            "hit: from the cache. miss: from Novi. stale: an expired cache entry, because the call to Novi failed. bypass: from Novi, because the cache was unavailable",
        ));
        verified.headers.insert("X-Cache".to_owned(), RefOr::T(header.build()));
    }
}

/// Adds a code to the response of its status, with its complete body as the example.
fn add_problem(operation: &mut Operation, code: Code) {
    let status = code.status();
    let response = operation.responses.responses.entry(status.as_str().to_owned()).or_insert_with(|| {
        let content =
            ContentBuilder::new().schema(Some(RefOr::Ref(Ref::from_schema_name(ProblemBody::name())))).build();
        let description = status.canonical_reason().unwrap_or("Problem");
        let mut response = ResponseBuilder::new().description(description).content(PROBLEM_TYPE, content).build();
        if status == StatusCode::UNAUTHORIZED {
            response.headers.insert("WWW-Authenticate".to_owned(), RefOr::T(constant_header(CHALLENGE)));
        }
        if matches!(status.as_u16(), 429 | 503) {
            response
                .headers
                .insert("Retry-After".to_owned(), RefOr::T(integer_header("Seconds to wait before retrying")));
        }
        RefOr::T(response)
    });
    if let RefOr::T(response) = response
        && let Some(RefOr::T(content)) = response.content.get_mut(PROBLEM_TYPE)
    {
        let body = serde_json::to_value(Problem::from(code).body()).unwrap_or(Value::Null);
        let example = ExampleBuilder::new().value(Some(body)).build();
        content.examples.insert(code.as_str().to_owned(), RefOr::T(example));
    }
}

/// Adds the headers that every response has.
fn add_common_headers(response: &mut Response) {
    for (name, value) in [("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")] {
        response.headers.insert(name.to_owned(), RefOr::T(constant_header(value)));
    }
}

/// Adds API Gateway's own response with this status.
///
/// Some generators read only the first media type of a response, and then every body with its schema. The first one is
/// API Gateway's, because media types are sorted by name. So its schema also allows the API's own body, if there is one.
fn add_gateway_response(operation: &mut Operation, status: StatusCode) {
    let reason = status.canonical_reason().unwrap_or_default();
    let response = operation
        .responses
        .responses
        .entry(status.as_str().to_owned())
        .or_insert_with(|| RefOr::T(ResponseBuilder::new().description(reason).build()));
    let RefOr::T(response) = response else { return };
    let has_own_body = !response.content.is_empty();
    let own_schema =
        [GATEWAY_TYPE, PROBLEM_TYPE].into_iter().find_map(|media_type| match &response.content.get(media_type)? {
            RefOr::T(content) => content.schema.clone(),
            RefOr::Ref(_) => None,
        });
    let message = RefOr::Ref(Ref::from_schema_name(GATEWAY_MESSAGE));
    let schema: RefOr<Schema> = match own_schema {
        Some(own) => Schema::from(AnyOfBuilder::new().item(own).item(message).build()).into(),
        None => message,
    };
    let example = ExampleBuilder::new().value(Some(json!({ "message": reason }))).build();
    let mut content = ContentBuilder::new().schema(Some(schema)).build();
    content.examples.insert("gateway".to_owned(), RefOr::T(example));
    response.content.insert(GATEWAY_TYPE.to_owned(), RefOr::T(content));
    let addition =
        if has_own_body { ", or a response of API Gateway itself, without headers" } else { ", by API Gateway itself" };
    response.description.push_str(addition);
}

/// Describes the body of API Gateway's own responses.
fn gateway_message() -> Schema {
    let message = ObjectBuilder::new().schema_type(SchemaType::Type(Type::String)).build();
    ObjectBuilder::new()
        .description(Some("The body of a response that API Gateway sends instead of this service. It has no `code`."))
        .property("message", message)
        .required("message")
        .build()
        .into()
}

/// Describes a header that always has this value.
fn constant_header(value: &str) -> Header {
    let schema =
        ObjectBuilder::new().schema_type(SchemaType::Type(Type::String)).enum_values(Some([json!(value)])).build();
    HeaderBuilder::new().schema(Some(schema)).build()
}

/// Describes a header with an integer value.
fn integer_header(description: &str) -> Header {
    let schema = ObjectBuilder::new().schema_type(SchemaType::Type(Type::Integer)).build();
    HeaderBuilder::new().schema(Some(schema)).description(Some(description)).build()
}
