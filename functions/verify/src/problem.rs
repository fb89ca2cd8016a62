//! Every answer but a 200: `application/problem+json` (RFC 9457), with a
//! `code` for programs and a `detail` that says what to do. A problem never
//! repeats what the caller sent.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

/// What went wrong, one code for each cause.
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
    /// All of them, for the description of the API.
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

    /// The status, the code as text, the title, and the detail.
    fn parts(self) -> (StatusCode, &'static str, &'static str, &'static str) {
        match self {
            Self::InvalidUuid => (
                StatusCode::BAD_REQUEST,
                "invalid_uuid",
                "Not a UUID",
                "The last part of the path must be a hyphenated UUID, such as 01234567-89ab-cdef-0123-456789abcdef.",
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
                "API key not accepted",
                "The x-api-key header holds no key that is accepted; ask the administrator for a current one.",
            ),
            Self::AccountContextMissing => (
                StatusCode::FORBIDDEN,
                "account_context_missing",
                "Account context missing",
                "Say on whose behalf this is asked: send an x-account-id header or an Authorization: Bearer token.",
            ),
            Self::AccountIdInvalid => (
                StatusCode::FORBIDDEN,
                "account_id_invalid",
                "Account id not valid",
                "The x-account-id header must hold 1 to 64 letters, digits, underscores or hyphens.",
            ),
            Self::JwtInvalid => (
                StatusCode::FORBIDDEN,
                "jwt_invalid",
                "Token not accepted",
                "The bearer token must be an HS256 JWT that is signed with the shared secret and has exp and account_id claims.",
            ),
            Self::JwtExpired => (
                StatusCode::FORBIDDEN,
                "jwt_expired",
                "Token expired",
                "The bearer token has expired; get a new one and ask again.",
            ),
            Self::JwtNotConfigured => (
                StatusCode::FORBIDDEN,
                "jwt_not_configured",
                "Tokens are not accepted here",
                "No secret for bearer tokens is configured; send an x-account-id header and no token, or ask the administrator to set jwt_secret.",
            ),
            Self::MemberNotFound => {
                (StatusCode::NOT_FOUND, "member_not_found", "Not a member", "Novi knows no member with this UUID.")
            }
            Self::RouteNotFound => (
                StatusCode::NOT_FOUND,
                "route_not_found",
                "No such route",
                "There is nothing at this path; /openapi.json describes what there is.",
            ),
            Self::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "Method not allowed",
                "This path does not take this method; the Allow header lists those that it takes.",
            ),
            Self::RateLimited => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limited",
                "Too many requests",
                "Novi cannot be asked again yet; wait for the seconds in Retry-After. This says nothing about the member.",
            ),
            Self::InternalError => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal_error",
                "Internal error",
                "Something went wrong in this service, which says nothing about the member; try again, and tell the administrator if it stays.",
            ),
            Self::NoviUnreachable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "novi_unreachable",
                "Novi cannot be reached",
                "Novi gave no answer in time, which says nothing about the member; try again after Retry-After seconds.",
            ),
            Self::NoviError => (
                StatusCode::SERVICE_UNAVAILABLE,
                "novi_error",
                "Novi failed",
                "Novi answered with an error, which says nothing about the member; try again after Retry-After seconds.",
            ),
            Self::NoviCredentialsRejected => (
                StatusCode::SERVICE_UNAVAILABLE,
                "novi_credentials_rejected",
                "Novi does not accept our key",
                "Novi refuses this service's API key, which says nothing about the member; the administrator must renew novi_idaa_api_key.",
            ),
            Self::NoviBlocked => (
                StatusCode::SERVICE_UNAVAILABLE,
                "novi_blocked",
                "Novi blocks this service",
                "The CDN in front of Novi refuses this service's address, which says nothing about the member; the administrator must have it allowed.",
            ),
            Self::NoviInvalidResponse => (
                StatusCode::SERVICE_UNAVAILABLE,
                "novi_invalid_response",
                "Novi's answer makes no sense",
                "Novi's answer is no member record, which says nothing about the member; try again after Retry-After seconds.",
            ),
            Self::ParametersUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "parameters_unavailable",
                "Configuration cannot be read",
                "This service cannot read its configuration now; try again after Retry-After seconds.",
            ),
        }
    }

    /// The HTTP status.
    pub(crate) fn status(self) -> StatusCode {
        self.parts().0
    }

    /// The code as the body and the log have it.
    pub(crate) fn as_str(self) -> &'static str {
        self.parts().1
    }

    /// What a caller should wait before asking again, in seconds, where Novi
    /// does not say. A rejected key or a blocked address takes a person.
    fn retry_after(self) -> Option<u64> {
        match self {
            Self::RateLimited => Some(RATE_LIMITED_SECONDS),
            Self::NoviUnreachable | Self::NoviError | Self::ParametersUnavailable => Some(5),
            Self::NoviInvalidResponse => Some(30),
            Self::NoviCredentialsRejected | Self::NoviBlocked => Some(60),
            _ => None,
        }
    }
}

/// How long to wait after a 429 that does not say.
pub(crate) const RATE_LIMITED_SECONDS: u64 = 30;

/// A problem, ready to be answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Problem {
    code: Code,
    retry_after: Option<u64>,
}

/// The body of every answer but a 200 (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemBody {
    /// A URI for this kind of problem. It identifies and leads nowhere.
    #[serde(rename = "type")]
    kind: String,
    /// The kind of problem, in a few words.
    title: &'static str,
    /// The HTTP status, again.
    status: u16,
    /// What is wrong and what to do, in a sentence.
    detail: &'static str,
    /// The kind of problem, for programs.
    code: Code,
}

impl Problem {
    /// A rate limit that passes in so many seconds.
    pub(crate) fn rate_limited(seconds: u64) -> Self {
        Self { code: Code::RateLimited, retry_after: Some(seconds) }
    }

    /// The body.
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
        // For the log.
        response.extensions_mut().insert(self.code);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_in_the_body_is_the_code_in_the_log() {
        for code in Code::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }

    #[test]
    fn what_may_pass_says_when_to_come_back() {
        for code in Code::ALL {
            let passes = matches!(code.status().as_u16(), 429 | 503);
            assert_eq!(code.retry_after().is_some(), passes, "{}", code.as_str());
        }
    }
}
