//! Every response except a 200: `application/problem+json` (RFC 9457), with a `code` for programs and a `detail` that
//! tells the caller what to do. A problem never repeats what the caller sent.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use shared::novi::DEFAULT_RETRY_AFTER;
use utoipa::ToSchema;

/// The value of `WWW-Authenticate`. No registered scheme passes a key in `x-api-key`.
pub(crate) const CHALLENGE: &str = "ApiKey";

/// The cause of a problem, with one code for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Code {
    InvalidUuid,
    ApiKeyMissing,
    ApiKeyInvalid,
    AccountContextMissing,
    AccountIdInvalid,
    JwtInvalid,
    JwtExpired,
    JwtNotConfigured,
    MemberNotFound,
    RouteNotFound,
    MethodNotAllowed,
    RateLimited,
    InternalError,
    NoviUnreachable,
    NoviError,
    NoviCredentialsRejected,
    NoviBlocked,
    NoviInvalidResponse,
    ParametersUnavailable,
}

impl Code {
    /// All codes, for the OpenAPI description.
    pub(crate) const ALL: [Self; 19] = [
        Self::InvalidUuid,
        Self::ApiKeyMissing,
        Self::ApiKeyInvalid,
        Self::AccountContextMissing,
        Self::AccountIdInvalid,
        Self::JwtInvalid,
        Self::JwtExpired,
        Self::JwtNotConfigured,
        Self::MemberNotFound,
        Self::RouteNotFound,
        Self::MethodNotAllowed,
        Self::RateLimited,
        Self::InternalError,
        Self::NoviUnreachable,
        Self::NoviError,
        Self::NoviCredentialsRejected,
        Self::NoviBlocked,
        Self::NoviInvalidResponse,
        Self::ParametersUnavailable,
    ];

    /// Returns the status, the code as text, the title, and the detail.
    fn parts(self) -> (StatusCode, &'static str, &'static str, &'static str) {
        match self {
            Self::InvalidUuid => (
                StatusCode::BAD_REQUEST,
                "invalid_uuid",
                "Invalid UUID",
                "The last segment of the path must be a hyphenated UUID, such as 01234567-89ab-cdef-0123-456789abcdef.",
            ),
            Self::ApiKeyMissing => (
                StatusCode::UNAUTHORIZED,
                "api_key_missing",
                "API key missing",
                "Send the API key in the x-api-key header.",
            ),
            Self::ApiKeyInvalid => (
                StatusCode::UNAUTHORIZED,
                "api_key_invalid",
                "Invalid API key",
                "The x-api-key header doesn't contain a valid API key; ask the administrator for a current one.",
            ),
            Self::AccountContextMissing => (
                StatusCode::FORBIDDEN,
                "account_context_missing",
                "Account context missing",
                "Account context required: send an x-account-id header or an Authorization: Bearer token.",
            ),
            Self::AccountIdInvalid => (
                StatusCode::FORBIDDEN,
                "account_id_invalid",
                "Invalid account id",
                "The x-account-id header must contain 1 to 64 letters, digits, underscores or hyphens.",
            ),
            Self::JwtInvalid => (
                StatusCode::FORBIDDEN,
                "jwt_invalid",
                "Invalid token",
                "The bearer token must be an HS256 JWT that is signed with the shared secret and has exp and account_id claims.",
            ),
            Self::JwtExpired => (
                StatusCode::FORBIDDEN,
                "jwt_expired",
                "Token expired",
                "The bearer token has expired; get a new one and retry.",
            ),
            Self::JwtNotConfigured => (
                StatusCode::FORBIDDEN,
                "jwt_not_configured",
                "Tokens not configured",
                "No secret for bearer tokens is configured; send an x-account-id header and no token, or ask the administrator to set jwt_secret.",
            ),
            Self::MemberNotFound => {
                (StatusCode::NOT_FOUND, "member_not_found", "Not a member", "No member has this UUID.")
            }
            Self::RouteNotFound => (
                StatusCode::NOT_FOUND,
                "route_not_found",
                "Route not found",
                "No route matches this path; /openapi.json describes all routes.",
            ),
            Self::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "Method not allowed",
                "This path doesn't support this method; the Allow header lists the supported methods.",
            ),
            Self::RateLimited => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limited",
                "Too many requests",
                "Novi's rate limit is reached, which doesn't indicate whether the member exists; retry after Retry-After seconds.",
            ),
            Self::InternalError => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal_error",
                "Internal error",
                "This service failed, which doesn't indicate whether the member exists; retry, and contact the administrator if it persists.",
            ),
            Self::NoviUnreachable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "novi_unreachable",
                "Novi is unreachable",
                "Novi didn't respond in time, which doesn't indicate whether the member exists; retry after Retry-After seconds.",
            ),
            Self::NoviError => (
                StatusCode::SERVICE_UNAVAILABLE,
                "novi_error",
                "Error from Novi",
                "Novi returned an error, which doesn't indicate whether the member exists; retry after Retry-After seconds.",
            ),
            Self::NoviCredentialsRejected => (
                StatusCode::SERVICE_UNAVAILABLE,
                "novi_credentials_rejected",
                "Credentials rejected by Novi",
                "Novi rejected this service's API key, which doesn't indicate whether the member exists; the administrator must renew novi_idaa_api_key.",
            ),
            Self::NoviBlocked => (
                StatusCode::SERVICE_UNAVAILABLE,
                "novi_blocked",
                "Blocked by Novi's CDN",
                "The CDN in front of Novi blocks this service's IP address, which doesn't indicate whether the member exists; the administrator must have the address allowed.",
            ),
            Self::NoviInvalidResponse => (
                StatusCode::SERVICE_UNAVAILABLE,
                "novi_invalid_response",
                "Invalid response from Novi",
                "Novi's response is not a member record, which doesn't indicate whether the member exists; retry after Retry-After seconds.",
            ),
            Self::ParametersUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "parameters_unavailable",
                "Configuration unavailable",
                "This service can't read its configuration at the moment; retry after Retry-After seconds.",
            ),
        }
    }

    /// Returns the HTTP status.
    pub(crate) fn status(self) -> StatusCode {
        self.parts().0
    }

    /// Returns the code as it appears in the body and in the log.
    pub(crate) fn as_str(self) -> &'static str {
        self.parts().1
    }

    /// Returns the seconds that a caller should wait before retrying, if Novi sent no `Retry-After`.
    /// The wait is longest for a rejected key and a blocked address, because only a person can fix those.
    fn retry_after(self) -> Option<u64> {
        match self {
            Self::RateLimited => Some(DEFAULT_RETRY_AFTER.as_secs()),
            Self::NoviUnreachable | Self::NoviError | Self::ParametersUnavailable => Some(5),
            Self::NoviInvalidResponse => Some(30),
            Self::NoviCredentialsRejected | Self::NoviBlocked => Some(60),
            _ => None,
        }
    }
}

/// A problem, ready to be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Problem {
    code: Code,
    retry_after: Option<u64>,
}

/// The body of every response except a 200 (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemBody {
    /// A URI that identifies this kind of problem. It can't be opened.
    #[serde(rename = "type")]
    kind: String,
    /// A short name of this kind of problem.
    title: &'static str,
    /// The HTTP status, repeated.
    status: u16,
    /// A sentence that tells what is wrong and what to do.
    detail: &'static str,
    /// The code of this kind of problem, for programs.
    code: Code,
}

impl Problem {
    /// Creates the problem of a rate limit that ends in `seconds`.
    pub(crate) fn rate_limited(seconds: u64) -> Self {
        Self { code: Code::RateLimited, retry_after: Some(seconds) }
    }

    /// Creates a problem with Novi's own `Retry-After` in seconds, if there is one.
    pub(crate) fn with_retry_after(code: Code, seconds: Option<u64>) -> Self {
        Self { code, retry_after: seconds.or(code.retry_after()) }
    }

    /// Returns the body.
    pub(crate) fn body(self) -> ProblemBody {
        let (status, code, title, detail) = self.code.parts();
        ProblemBody {
            kind: format!("urn:novi-bridge:problem:{code}"),
            title,
            status: status.as_u16(),
            detail,
            code: self.code,
        }
    }
}

impl From<Code> for Problem {
    fn from(code: Code) -> Self {
        Self { code, retry_after: code.retry_after() }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.code.status(), axum::Json(self.body())).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.code.status() == StatusCode::UNAUTHORIZED {
            // RFC 9110 15.5.2 requires it, and some clients fail without it.
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(CHALLENGE));
        }
        // The log reads the code from here.
        response.extensions_mut().insert(self.code);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_and_log_have_the_same_code() {
        for code in Code::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }

    #[test]
    fn rate_limits_and_outages_have_a_retry_after() {
        for code in Code::ALL {
            let is_temporary = matches!(code.status().as_u16(), 429 | 503);
            assert_eq!(code.retry_after().is_some(), is_temporary, "{}", code.as_str());
        }
    }
}
