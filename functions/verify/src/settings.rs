//! The settings of verification.

use std::sync::Arc;

use http::HeaderValue;
use shared::cache::NoviLimits;
use shared::member::MemberRules;
use shared::rate_limit::Rates;
use shared::settings::{CacheTtls, CommonSettings, Env, SettingError, novi_total};
use url::Url;

/// The settings from the environment.
pub(crate) struct Settings {
    pub(crate) common: CommonSettings,
    pub(crate) cache: CacheTtls,
    /// `NOVI_TOTAL_PER_*`, `VERIFY_NOVI_MAX_PER_MINUTE` and `VERIFY_UNKNOWN_PER_*`.
    pub(crate) novi_limits: NoviLimits,
    /// `REQUIRE_ACTIVE` and `MEMBER_STATUSES`.
    pub(crate) member_rules: MemberRules,
    /// `CORS_ALLOW_ORIGINS`.
    pub(crate) cors: Origins,
    /// `BASE_PATH`, with a leading slash and without a trailing one.
    pub(crate) base_path: Option<Arc<str>>,
}

/// The origins of the web pages that may read responses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origins {
    /// No origin: CORS is off.
    None,
    /// Every origin.
    Any,
    /// These origins.
    List(Vec<HeaderValue>),
}

impl Settings {
    /// Reads the settings from environment variables.
    pub(crate) fn from_env(env: &Env) -> Result<Self, SettingError> {
        let minute = env.calls("VERIFY_NOVI_MAX_PER_MINUTE", 500)?;
        let total = novi_total(env, Rates { second: 0, minute, day: 0 })?;
        Ok(Self {
            common: CommonSettings::from_env(env)?,
            cache: CacheTtls::from_env(env)?,
            novi_limits: NoviLimits {
                total,
                share: Rates { minute, ..total },
                unknown: (env.calls("VERIFY_UNKNOWN_PER_MINUTE", 60)?, env.calls("VERIFY_UNKNOWN_PER_DAY", 5_000)?),
                yields: false,
            },
            member_rules: MemberRules::from_env(env)?,
            cors: env.parsed(
                "CORS_ALLOW_ORIGINS",
                Origins::None,
                "origins such as https://app.example.org, separated by commas and without a star, or only *",
                Origins::parse,
            )?,
            base_path: env.parsed(
                "BASE_PATH",
                None,
                "a path such as /members: segments of letters, digits and -._~$+!*'(), each after a single slash",
                |value| is_base_path(value).then(|| Some(value.into())),
            )?,
        })
    }
}

/// True if `path` consists of segments that don't need to be encoded, each after a single slash.
fn is_base_path(path: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~$+!*'()".contains(&b);
    let is_segment = |text: &str| !matches!(text, "" | "." | "..") && text.bytes().all(is_plain);
    path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(is_segment))
}

impl Origins {
    /// Parses comma-separated origins, or `*`. Returns `None` if one of them is not an origin. A star in an origin would
    /// match nothing here, but API Gateway reads `https://*` as every page.
    fn parse(value: &str) -> Option<Self> {
        if value == "*" {
            return Some(Self::Any);
        }
        let origins: Option<Vec<_>> = value
            .split(',')
            .map(|origin| {
                let origin = origin.trim();
                let url = Url::parse(origin).ok()?;
                let is_origin = matches!(url.scheme(), "http" | "https")
                    && !origin.contains('*')
                    && url.origin().ascii_serialization() == origin.to_ascii_lowercase();
                // Browsers send the origin in lower case and without the default port.
                is_origin.then(|| url.origin().ascii_serialization().parse().ok()).flatten()
            })
            .collect();
        origins.map(Self::List)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_valid_origins_are_accepted() {
        assert_eq!(Origins::parse("*"), Some(Origins::Any));
        for valid in
            ["https://app.example.org", "https://a.example.org, http://localhost:5173", "https://A.example.org"]
        {
            assert!(matches!(Origins::parse(valid), Some(Origins::List(_))), "{valid}");
        }
        for invalid in
            ["app.example.org", "https://a.example.org/", "https://a.example.org,*", "https://a.org,,", "null"]
        {
            assert_eq!(Origins::parse(invalid), None, "{invalid}");
        }
        for star in ["https://*.example.org", "https://*", "http://*:5173", "https://a.org, https://*.b.org", "*,*"] {
            assert_eq!(Origins::parse(star), None, "{star}");
        }
    }

    #[test]
    fn base_path_has_plain_segments_and_single_slashes() {
        for valid in ["/members", "/members/v1", "/a.b/c-d_e~f", "/..."] {
            assert!(is_base_path(valid), "{valid}");
        }
        for invalid in [
            "members",
            "/",
            "/members/",
            "//members",
            "/members//v1",
            "/members?v=1",
            "/members#v1",
            "/a b",
            "/a%20b",
            "/é",
            "/./a",
            "/a/..",
            "/a\\b",
            "/a;b",
            "https://api.example.org/members",
        ] {
            assert!(!is_base_path(invalid), "{invalid}");
        }
    }
}
