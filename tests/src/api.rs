//! Requests as API Gateway and Function URLs pass them to a function, and
//! responses as they parse them.

use std::collections::BTreeMap;

use anyhow::Context;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

/// The host name in events.
const HOST: &str = "api.example.org";

/// An HTTP request from a client.
#[derive(Clone)]
pub struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
}

impl Request {
    /// Returns a request for `path` with this method and without headers.
    #[must_use]
    pub fn new(method: &str, path: &str) -> Self {
        Self { method: method.to_owned(), path: path.to_owned(), headers: Vec::new() }
    }

    /// Returns a GET request.
    #[must_use]
    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Returns the event of an HTTP API (payload version 2). A named stage is part of the path.
    #[must_use]
    pub fn http_api(&self, stage: &str) -> Value {
        let path = if stage == "$default" { self.path.clone() } else { format!("/{stage}{}", self.path) };
        let mut headers = Map::new();
        for (name, value) in self.headers.iter().map(|(name, value)| (name.to_lowercase(), value)) {
            // Version 2 joins headers that were sent more than once.
            let joined = match headers.get(&name).and_then(Value::as_str) {
                Some(previous) => format!("{previous},{value}"),
                None => value.clone(),
            };
            headers.insert(name, joined.into());
        }
        headers.insert("host".to_owned(), HOST.into());
        json!({
            "version": "2.0", "routeKey": "$default", "rawPath": path, "rawQueryString": "", "headers": headers,
            "requestContext": {
                "accountId": "123456789012", "apiId": "abcdef", "domainName": HOST, "domainPrefix": "api",
                "http": {"method": self.method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1", "userAgent": "test"},
                "requestId": "r", "routeKey": "$default", "stage": stage, "time": "22/Nov/2026:11:00:00 +0000", "timeEpoch": 1_795_345_200_000_u64,
            },
            "isBase64Encoded": false,
        })
    }

    /// Returns the event of a REST API (payload version 1). The stage is only in the request context.
    #[must_use]
    pub fn rest_api(&self, stage: &str) -> Value {
        let mut single = Map::new();
        let mut multi: BTreeMap<&str, Vec<&str>> = BTreeMap::from([("Host", vec![HOST])]);
        single.insert("Host".to_owned(), HOST.into());
        for (name, value) in &self.headers {
            single.insert(name.clone(), value.as_str().into());
            multi.entry(name).or_default().push(value);
        }
        json!({
            "resource": "/{proxy+}", "path": self.path, "httpMethod": self.method,
            "headers": single, "multiValueHeaders": multi,
            "queryStringParameters": null, "multiValueQueryStringParameters": null,
            "pathParameters": {"proxy": self.path.trim_start_matches('/')}, "stageVariables": null,
            "requestContext": {
                "accountId": "123456789012", "apiId": "abcdef", "domainName": HOST, "domainPrefix": "api",
                "httpMethod": self.method, "path": format!("/{stage}{}", self.path), "protocol": "HTTP/1.1",
                "identity": {"sourceIp": "192.0.2.1", "userAgent": "test"}, "requestId": "r",
                "requestTime": "22/Nov/2026:11:00:00 +0000", "requestTimeEpoch": 1_795_345_200_000_u64,
                "resourceId": "x", "resourcePath": "/{proxy+}", "stage": stage,
            },
            "body": null, "isBase64Encoded": false,
        })
    }

    /// Returns the event of a Function URL.
    #[must_use]
    pub fn function_url(&self) -> Value {
        let mut event = self.http_api("$default");
        event["requestContext"]["domainName"] = "abcdef.lambda-url.us-east-1.on.aws".into();
        event["headers"]["host"] = "abcdef.lambda-url.us-east-1.on.aws".into();
        event["headers"]["x-forwarded-proto"] = "https".into();
        event
    }
}

/// An HTTP response to a client.
#[derive(Debug)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// The headers by lower-case name.
    pub headers: BTreeMap<String, String>,
    /// The body, decoded.
    pub body: String,
}

impl Response {
    /// Parses the function's result as API Gateway does.
    ///
    /// # Errors
    /// Fails if API Gateway would respond "internal server error".
    pub fn parse(returned: &Value) -> anyhow::Result<Self> {
        let status =
            returned["statusCode"].as_u64().with_context(|| format!("expected an HTTP response, got {returned}"))?;
        let mut headers = BTreeMap::new();
        for (name, value) in returned["headers"].as_object().into_iter().flatten() {
            headers.insert(name.to_lowercase(), value.as_str().unwrap_or_default().to_owned());
        }
        for (name, values) in returned["multiValueHeaders"].as_object().into_iter().flatten() {
            let values: Vec<&str> = values.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            headers.insert(name.to_lowercase(), values.join(", "));
        }
        let body = returned["body"].as_str().unwrap_or_default();
        let body = if returned["isBase64Encoded"] == true {
            String::from_utf8(BASE64_STANDARD.decode(body)?)?
        } else {
            body.to_owned()
        };
        Ok(Self { status: u16::try_from(status)?, headers, body })
    }

    /// Returns a header, or an empty string if it is missing.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Returns the body as JSON, or null if it is not JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// Returns the `code` of a problem, or an empty string if the body is not a problem.
    #[must_use]
    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }
}
