//! The OpenAPI description. Most of it is derived from the handlers' types. This module adds the gate, the problems and
//! the headers, from the same list of codes that the responses use.

use serde_json::{Value, json};
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{Header, OpenApi, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{OpenApi as _, ToSchema};

use crate::problem::{Code, Problem, ProblemBody};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "novi-bridge: member verification",
        description = "Tells whether a UUID belongs to a member. Errors are problem details (RFC 9457) with a `code`.",
        license(name = "MIT OR Apache-2.0")
    ),
    components(schemas(ProblemBody, Code))
)]
struct ApiDoc;

/// Returns the general part of the description, without routes.
pub(crate) fn api_doc() -> OpenApi {
    ApiDoc::openapi()
}

/// Adds the parts that can't be derived from the handlers' types. Returns the description as JSON.
pub(crate) fn complete(mut api: OpenApi) -> String {
    if let Some(components) = api.components.as_mut() {
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
        }
    }
    let mut api = serde_json::to_value(api).expect("a description can be serialized as JSON");
    require_headers(&mut api);
    api.to_string()
}

/// Marks all response headers as required, because every described header is always sent. utoipa's types can't express
/// this.
fn require_headers(api: &mut Value) {
    let operations = object_values(&mut api["paths"]).flat_map(object_values);
    for response in operations.flat_map(|operation| object_values(&mut operation["responses"])) {
        object_values(&mut response["headers"]).for_each(|header| header["required"] = true.into());
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
    const TYPE: &str = "application/problem+json";
    let status = code.status();
    let response = operation.responses.responses.entry(status.as_str().to_owned()).or_insert_with(|| {
        let content =
            ContentBuilder::new().schema(Some(RefOr::Ref(Ref::from_schema_name(ProblemBody::name())))).build();
        let description = status.canonical_reason().unwrap_or("Problem");
        let mut response = ResponseBuilder::new().description(description).content(TYPE, content).build();
        if matches!(status.as_u16(), 429 | 503) {
            response
                .headers
                .insert("Retry-After".to_owned(), RefOr::T(integer_header("Seconds to wait before retrying")));
        }
        RefOr::T(response)
    });
    if let RefOr::T(response) = response
        && let Some(RefOr::T(content)) = response.content.get_mut(TYPE)
    {
        let body = serde_json::to_value(Problem::from(code).body()).unwrap_or(Value::Null);
        let example = ExampleBuilder::new().value(Some(body)).build();
        content.examples.insert(code.as_str().to_owned(), RefOr::T(example));
    }
}

/// Adds the headers that every response has.
fn add_common_headers(response: &mut Response) {
    for (name, value) in [("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")] {
        let schema =
            ObjectBuilder::new().schema_type(SchemaType::Type(Type::String)).enum_values(Some([json!(value)])).build();
        response.headers.insert(name.to_owned(), RefOr::T(HeaderBuilder::new().schema(Some(schema)).build()));
    }
}

/// Describes a header with an integer value.
fn integer_header(description: &str) -> Header {
    let schema = ObjectBuilder::new().schema_type(SchemaType::Type(Type::Integer)).build();
    HeaderBuilder::new().schema(Some(schema)).description(Some(description)).build()
}
