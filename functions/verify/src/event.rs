//! The Lambda event, before lambda_http converts it to a request.
//!
//! Only the parts that decide a response are read: the path, the method, the stage, and the headers that the gate and
//! CORS use. The other parts may be anything. An authorizer with claims that are numbers, or a header that isn't valid in
//! HTTP, doesn't fail an event.
//!
//! lambda_http builds a complete URL from an event. It panics if the query, the host or the path is not valid in a URL,
//! and if a body is marked as Base64 but isn't valid Base64. A caller can cause some of these panics without an API
//! key. It doesn't get the query, the host or the body.

use std::borrow::Cow;
use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use lambda_http::aws_lambda_events::apigw::{ApiGatewayProxyRequest, ApiGatewayV2httpRequest};
use lambda_http::request::LambdaRequest;
use serde::de::{Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::gate;

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
/// The maximum length of a stage's name in API Gateway.
const MAX_STAGE_BYTES: usize = 128;

const INVALID_EVENT: &str = "not an API Gateway or Function URL event";

/// The headers that decide a response.
static USED_HEADERS: [HeaderName; 6] = [
    gate::API_KEY,
    gate::ACCOUNT_ID,
    header::AUTHORIZATION,
    header::ORIGIN,
    header::ACCESS_CONTROL_REQUEST_METHOD,
    header::ACCESS_CONTROL_REQUEST_HEADERS,
];

/// The headers that the gate uses.
static CREDENTIALS: [HeaderName; 3] = [gate::API_KEY, gate::ACCOUNT_ID, header::AUTHORIZATION];

/// The parts of an event of any version that are used. Each is parsed only if its version uses it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EventParts<'e> {
    #[serde(borrow)]
    version: Option<&'e RawValue>,
    #[serde(borrow)]
    raw_path: Option<&'e RawValue>,
    #[serde(borrow)]
    path: Option<&'e RawValue>,
    #[serde(borrow)]
    http_method: Option<&'e RawValue>,
    #[serde(borrow)]
    headers: Option<&'e RawValue>,
    #[serde(borrow)]
    multi_value_headers: Option<&'e RawValue>,
    #[serde(borrow)]
    request_context: Option<&'e RawValue>,
}

/// The used parts of `requestContext`.
#[derive(Default, Deserialize)]
struct ContextParts<'e> {
    #[serde(borrow)]
    stage: Option<&'e RawValue>,
    #[serde(borrow)]
    http: Option<&'e RawValue>,
}

/// The used part of `requestContext.http`.
#[derive(Deserialize)]
struct HttpParts<'e> {
    #[serde(borrow)]
    method: Cow<'e, str>,
}

/// Parses an event. One that claims to have version 2 has version 1 if it lacks what only version 2 has.
fn parse(text: &str) -> serde_json::Result<LambdaRequest> {
    let parts: EventParts<'_> = serde_json::from_str(text)?;
    let context = parts.request_context.and_then(|context| serde_json::from_str(context.get()).ok());
    let context: ContextParts<'_> = context.unwrap_or_default();
    match (parts.version.map(RawValue::get), context.http) {
        (Some(r#""2.0""#), Some(http)) => version_2(&parts, &context, http),
        _ => version_1(&parts, &context),
    }
}

fn version_2(parts: &EventParts<'_>, context: &ContextParts<'_>, http: &RawValue) -> serde_json::Result<LambdaRequest> {
    let mut event = ApiGatewayV2httpRequest::default();
    event.raw_path = Some(path(parts.raw_path)?);
    event.headers = used_headers(parts.headers)?;
    event.request_context.http.method = method(&parse_part::<HttpParts<'_>, serde_json::Error>(http)?.method)?;
    event.request_context.stage = stage(context.stage);
    Ok(LambdaRequest::ApiGatewayV2(event))
}

fn version_1(parts: &EventParts<'_>, context: &ContextParts<'_>) -> serde_json::Result<LambdaRequest> {
    let name = parts.http_method.ok_or_else(|| Error::custom("there is no method"))?;
    let mut event = ApiGatewayProxyRequest::default();
    event.http_method = method(&parse_part::<Text<'_>, serde_json::Error>(name)?.0)?;
    event.path = Some(path(parts.path)?);
    event.headers = used_headers(parts.headers)?;
    event.multi_value_headers = used_headers(parts.multi_value_headers)?;
    // lambda_http would replace all values of a header with these, which hold only the last value of each.
    for name in event.multi_value_headers.keys() {
        event.headers.remove(name);
    }
    event.request_context.stage = stage(context.stage);
    Ok(LambdaRequest::ApiGatewayV1(event))
}

/// Parses a part of an event. The error has no position in the event, because nothing logs it.
fn parse_part<'e, T: Deserialize<'e>, E: Error>(part: &'e RawValue) -> Result<T, E> {
    serde_json::from_str(part.get()).map_err(E::custom)
}

/// Parses a path. An absent one is not a route.
fn path(part: Option<&RawValue>) -> serde_json::Result<String> {
    part.map_or_else(|| Ok(String::new()), parse_part).map(sanitize_path)
}

fn method(name: &str) -> serde_json::Result<Method> {
    name.parse().map_err(Error::custom)
}

/// Returns the name of the stage, or `None` if it isn't a text or is longer than API Gateway allows.
fn stage(part: Option<&RawValue>) -> Option<String> {
    let Text(stage) = parse_part::<_, serde_json::Error>(part?).ok()?;
    (stage.len() <= MAX_STAGE_BYTES).then(|| stage.into_owned())
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

/// Parses [`USED_HEADERS`], each with one value or an array of values. Fails if a credential isn't valid, because one that
/// can't be read must not count as absent. A header of CORS that isn't valid is skipped.
fn used_headers(part: Option<&RawValue>) -> serde_json::Result<HeaderMap> {
    part.map_or_else(|| Ok(HeaderMap::new()), |part| parse_part::<UsedHeaders, _>(part).map(|headers| headers.0))
}

/// Returns the values of one header: none for `null`, one for text, and those of an array.
fn header_values(part: &RawValue) -> serde_json::Result<Vec<HeaderValue>> {
    let texts = match part.get().as_bytes().first() {
        Some(b'n') => Vec::new(),
        Some(b'[') => parse_part::<Vec<Text<'_>>, _>(part)?,
        _ => vec![parse_part::<Text<'_>, _>(part)?],
    };
    texts.iter().map(|text| HeaderValue::from_str(&text.0).map_err(Error::custom)).collect()
}

struct UsedHeaders(HeaderMap);

impl<'de> Deserialize<'de> for UsedHeaders {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UsedHeadersVisitor)
    }
}

struct UsedHeadersVisitor;

impl<'de> Visitor<'de> for UsedHeadersVisitor {
    type Value = UsedHeaders;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("headers")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<UsedHeaders, A::Error> {
        let mut headers = HeaderMap::new();
        while let Some(Text(name)) = access.next_key::<Text<'de>>()? {
            let is_same = |used: &&HeaderName| used.as_str().eq_ignore_ascii_case(&name);
            let Some(used) = USED_HEADERS.iter().find(is_same) else {
                access.next_value::<IgnoredAny>()?;
                continue;
            };
            let value: &RawValue = access.next_value()?;
            let values = header_values(value).map_err(A::Error::custom);
            match values {
                // Two spellings of one name are two headers.
                Ok(values) => {
                    for value in values {
                        headers.append(used, value);
                    }
                }
                Err(error) if CREDENTIALS.contains(used) => return Err(error),
                Err(_) => {}
            }
        }
        Ok(UsedHeaders(headers))
    }
}

/// A text, borrowed from the event unless it has escapes.
#[derive(Deserialize)]
struct Text<'e>(#[serde(borrow)] Cow<'e, str>);

shared::unprintable!(Event, EventParts<'static>, ContextParts<'static>, HttpParts<'static>, UsedHeaders, Text<'static>);
