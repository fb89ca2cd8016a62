//! The path of a request, as the routes expect it.

use http::Uri;
use http::uri::PathAndQuery;
use lambda_http::request::RequestContext;

const MEMBER_PREFIX: &str = "/v3/action/idaa/novi_member/";
const HEALTH_PATH: &str = "/health";
const OPENAPI_PATH: &str = "/openapi.json";
/// The name of the member route in the log.
pub(crate) const MEMBER_ROUTE: &str = "member";

/// Returns the path as the routes expect it, and the route's name for the log.
///
/// The path may start with the stage: HTTP APIs put it there, and for REST APIs, which don't, lambda_http adds it. It
/// may also start with `base`, the base path, if the API has a mapping or a proxy. So the path is used as it was sent,
/// and each of the two is removed, in any order and at most once, if the rest is a route. The raw path is used because
/// a URL parser resolves dot segments and replaces backslashes, and the gate must see exactly the path that the caller
/// sent.
pub(crate) fn local_uri(raw: &str, context: Option<&RequestContext>, base: Option<&str>) -> (Uri, &'static str) {
    let stage = match context {
        Some(RequestContext::ApiGatewayV1(context)) => context.stage.as_deref(),
        Some(RequestContext::ApiGatewayV2(context)) => context.stage.as_deref(),
        _ => None,
    };
    let without_stage = |path| without_prefix(path, "/", stage?);
    let without_base = |path| without_prefix(path, "", base?);
    let is_route = |path: &&str| route_name(path).is_some();
    let path = without_stage(raw)
        .filter(is_route)
        .or_else(|| without_base(raw).filter(is_route))
        .or_else(|| without_base(without_stage(raw)?).filter(is_route))
        .or_else(|| without_stage(without_base(raw)?).filter(is_route))
        .unwrap_or(raw);
    let name = route_name(path).unwrap_or("none");
    (to_uri(path), name)
}

/// Returns the rest of a path after whole segments, or `None` if it doesn't start with them.
fn without_prefix<'p>(path: &'p str, slash: &str, prefix: &str) -> Option<&'p str> {
    path.strip_prefix(slash)?.strip_prefix(prefix).filter(|rest| rest.starts_with('/'))
}

/// Returns the name of a route for the log, or `None` if no route has this path.
fn route_name(path: &str) -> Option<&'static str> {
    match path {
        HEALTH_PATH => Some("health"),
        OPENAPI_PATH => Some("openapi"),
        _ if path.starts_with(MEMBER_PREFIX) => Some(MEMBER_ROUTE),
        _ => None,
    }
}

/// Percent-encodes characters that a URI can't contain, because REST APIs pass the path decoded.
fn to_uri(path: &str) -> Uri {
    use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
    const INVALID_IN_PATH: AsciiSet = CONTROLS
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
    let path = utf8_percent_encode(path, &INVALID_IN_PATH).to_string();
    PathAndQuery::try_from(path).map_or_else(|_| Uri::default(), Uri::from)
}

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
    fn only_the_stage_is_removed_from_the_path() {
        for (stage, raw, path, name) in [
            ("$default", "/health", "/health", "health"),
            ("prod", "/health", "/health", "health"),
            ("prod", "/prod/health", "/health", "health"),
            ("prod", "/prod/v3/action/idaa/novi_member/x", "/v3/action/idaa/novi_member/x", "member"),
            // A stage with the name of a path's first segment.
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
                let (uri, found) = local_uri(raw, Some(&context), None);
                assert_eq!((uri.path(), found), (path, name), "{stage} {raw}");
            }
        }
        assert_eq!(local_uri("/health", None, None).1, "health");
    }

    #[test]
    fn base_path_and_stage_are_removed_in_any_order() {
        for (stage, base, raw, path, name) in [
            ("$default", "/members", "/members/health", "/health", "health"),
            ("$default", "/members", "/health", "/health", "health"),
            ("prod", "/members", "/members/health", "/health", "health"),
            ("prod", "/members", "/prod/members/health", "/health", "health"),
            ("prod", "/members", "/members/prod/health", "/health", "health"),
            ("prod", "/members", "/prod/health", "/health", "health"),
            ("prod", "/a/b", "/prod/a/b/v3/action/idaa/novi_member/x", "/v3/action/idaa/novi_member/x", "member"),
            // The same name twice.
            ("v3", "/v3", "/v3/v3/v3/action/idaa/novi_member/x", "/v3/action/idaa/novi_member/x", "member"),
            ("v3", "/v3", "/v3/action/idaa/novi_member/x", "/v3/action/idaa/novi_member/x", "member"),
            ("prod", "/members", "/members/members/health", "/members/members/health", "none"),
            ("prod", "/members", "/membershealth", "/membershealth", "none"),
            ("prod", "/members", "/members", "/members", "none"),
            ("prod", "/members", "//members/health", "//members/health", "none"),
            ("prod", "/members", "/members//health", "/members//health", "none"),
            ("prod", "/members", "/x/members/health", "/x/members/health", "none"),
            ("prod", "/members", "/prod/members/prod/health", "/prod/members/prod/health", "none"),
        ] {
            for context in context(stage) {
                let (uri, found) = local_uri(raw, Some(&context), Some(base));
                assert_eq!((uri.path(), found), (path, name), "{stage} {base} {raw}");
            }
        }
        assert_eq!(local_uri("/members/health", None, Some("/members")).1, "health");
    }

    #[test]
    fn characters_not_allowed_in_a_uri_are_encoded() {
        for (raw, path) in [
            ("/v3/action/idaa/novi_member/a b", "/v3/action/idaa/novi_member/a%20b"),
            ("/v3/action/idaa/novi_member/a%20b", "/v3/action/idaa/novi_member/a%20b"),
            ("/v3/action/idaa/novi_member/é?x#y", "/v3/action/idaa/novi_member/%C3%A9%3Fx%23y"),
        ] {
            assert_eq!(local_uri(raw, None, None).0.path(), path);
        }
    }
}
