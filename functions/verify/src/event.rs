//! The Lambda event, before lambda_http converts it to a request.
//!
//! lambda_http builds a complete URL from an event. It panics if the query, the host or the path is not valid in a URL,
//! and if a body is marked as Base64 but isn't valid Base64. A caller can cause some of these panics without an API
//! key. No route uses the query, the host or the body, so they are removed.

use http::header;
use lambda_http::aws_lambda_events::apigw::{ApiGatewayProxyRequest, ApiGatewayV2httpRequest};
use lambda_http::aws_lambda_events::query_map::QueryMap;
use lambda_http::request::LambdaRequest;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// An event from API Gateway (REST v1, HTTP v2) or a Function URL.
pub(crate) struct Event(pub(crate) LambdaRequest);

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        // serde's message is dropped, because it may quote the event.
        let request = parse(text.get()).map_err(|_| D::Error::custom(INVALID_EVENT))?;
        Ok(Self(request))
    }
}

/// The maximum length of a path: more than AWS allows, and little enough for a URI even if every byte is encoded.
const MAX_PATH_BYTES: usize = 16 * 1024;

const INVALID_EVENT: &str = "not an API Gateway or Function URL event";

/// Parses an event. Tries version 2 first, because most events have it and lambda_http tries it last.
fn parse(text: &str) -> serde_json::Result<LambdaRequest> {
    if let Ok(mut event) = serde_json::from_str::<ApiGatewayV2httpRequest>(text)
        && event.version.as_deref() == Some("2.0")
    {
        event.raw_query_string = None;
        event.query_string_parameters = QueryMap::default();
        event.headers.remove(header::HOST);
        event.request_context.domain_name = None;
        event.raw_path = event.raw_path.map(sanitize_path);
        event.body = None;
        return Ok(LambdaRequest::ApiGatewayV2(event));
    }
    let mut event: ApiGatewayProxyRequest = serde_json::from_str(text)?;
    event.query_string_parameters = QueryMap::default();
    event.multi_value_query_string_parameters = QueryMap::default();
    event.headers.remove(header::HOST);
    event.multi_value_headers.remove(header::HOST);
    // lambda_http would replace all values of a header with these, which hold only the last value of each.
    for name in event.multi_value_headers.keys() {
        event.headers.remove(name);
    }
    event.request_context.domain_name = None;
    event.path = event.path.map(sanitize_path);
    event.body = None;
    Ok(LambdaRequest::ApiGatewayV1(event))
}

/// Makes a path valid in a URL. A path without a leading slash is not a route. A path that is too long is not a route
/// or doesn't end in a UUID, and that is still true after truncation.
fn sanitize_path(mut path: String) -> String {
    if !path.starts_with('/') {
        return "/".to_owned();
    }
    path.truncate(path.floor_char_boundary(MAX_PATH_BYTES));
    path
}

shared::unprintable!(Event);
