//! The Lambda event, before the library reads it.
//!
//! lambda_http builds a whole URL of an event and panics where the query or the
//! host cannot stand in one, which any caller can bring about without a key. No
//! route here uses either, so they are left out.

use lambda_http::request::LambdaRequest;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// An event of API Gateway (REST v1, HTTP v2) or a Function URL.
pub(crate) struct Event(pub(crate) LambdaRequest);

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut event = Map::deserialize(deserializer)?;
        for query in ["rawQueryString", "queryStringParameters", "multiValueQueryStringParameters"] {
            event.remove(query);
        }
        for headers in ["headers", "multiValueHeaders"] {
            if let Some(Value::Object(headers)) = event.get_mut(headers) {
                headers.retain(|name, _| !name.eq_ignore_ascii_case("host"));
            }
        }
        if let Some(Value::Object(context)) = event.get_mut("requestContext") {
            context.remove("domainName");
        }
        // The library's own reading wants the text. Its error, which may quote the event, is dropped.
        let request = serde_json::from_str(&Value::Object(event).to_string());
        request.map(Self).map_err(|_| D::Error::custom("this is no event of API Gateway or a Function URL"))
    }
}
