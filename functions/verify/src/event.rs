//! The Lambda event, before the library makes a request of it.
//!
//! lambda_http builds a whole URL of an event and panics where the query, the
//! host or the path cannot stand in one, and where a body is not the Base64 that
//! it is said to be; a caller can bring some of this about without a key. No
//! route here uses query, host or body, so they are left out.

use http::header;
use lambda_http::aws_lambda_events::apigw::{ApiGatewayProxyRequest, ApiGatewayV2httpRequest};
use lambda_http::aws_lambda_events::query_map::QueryMap;
use lambda_http::request::LambdaRequest;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// An event of API Gateway (REST v1, HTTP v2) or a Function URL.
pub(crate) struct Event(pub(crate) LambdaRequest);

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        // What serde says is dropped: it may quote the event.
        let request = read(text.get()).map_err(|_| D::Error::custom(NO_EVENT))?;
        Ok(Self(request))
    }
}

/// More than AWS lets through, and what a URL of it fits into where every byte is encoded.
const LONGEST_PATH: usize = 16 * 1024;

const NO_EVENT: &str = "this is no event of API Gateway or a Function URL";

/// Reads an event. Most are of version 2, which the library tries last.
fn read(text: &str) -> serde_json::Result<LambdaRequest> {
    if let Ok(mut event) = serde_json::from_str::<ApiGatewayV2httpRequest>(text)
        && event.version.as_deref() == Some("2.0")
    {
        event.raw_query_string = None;
        event.query_string_parameters = QueryMap::default();
        event.headers.remove(header::HOST);
        event.request_context.domain_name = None;
        event.raw_path = event.raw_path.map(path);
        event.body = None;
        return Ok(LambdaRequest::ApiGatewayV2(event));
    }
    let mut event: ApiGatewayProxyRequest = serde_json::from_str(text)?;
    event.query_string_parameters = QueryMap::default();
    event.multi_value_query_string_parameters = QueryMap::default();
    event.headers.remove(header::HOST);
    event.multi_value_headers.remove(header::HOST);
    // The library puts these, the last value of each header, in the place of all that were sent.
    for name in event.multi_value_headers.keys() {
        event.headers.remove(name);
    }
    event.request_context.domain_name = None;
    event.path = event.path.map(path);
    event.body = None;
    Ok(LambdaRequest::ApiGatewayV1(event))
}

/// The path as a URL can hold it. One without its slash is no route, and one
/// that is too long is no route and no uuid: cut, it stays that.
fn path(mut path: String) -> String {
    if !path.starts_with('/') {
        return "/".to_owned();
    }
    path.truncate(path.floor_char_boundary(LONGEST_PATH));
    path
}

shared::unprintable!(Event);
