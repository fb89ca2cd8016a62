//! The settings of verification.

use http::HeaderValue;
use shared::settings::{CacheTtls, CommonSettings, Env, SettingError};
use url::Url;

/// What the environment says.
pub(crate) struct Settings {
    pub(crate) common: CommonSettings,
    pub(crate) cache: CacheTtls,
    /// `VERIFY_NOVI_MAX_PER_MINUTE`.
    pub(crate) novi_max_per_minute: usize,
    /// `REQUIRE_ACTIVE`.
    pub(crate) require_active: bool,
    /// `CORS_ALLOW_ORIGINS`.
    pub(crate) cors: Origins,
}

/// Whose pages may read the answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origins {
    /// No page: CORS is off.
    None,
    /// Every page.
    Any,
    /// The pages of these origins.
    List(Vec<HeaderValue>),
}

impl Settings {
    pub(crate) fn from_env(env: &Env) -> Result<Self, SettingError> {
        Ok(Self {
            common: CommonSettings::from_env(env)?,
            cache: CacheTtls::from_env(env)?,
            novi_max_per_minute: usize::try_from(env.number(
                "VERIFY_NOVI_MAX_PER_MINUTE",
                500,
                1..=100_000,
                "calls",
            )?)
            .unwrap_or(usize::MAX),
            require_active: env.flag("REQUIRE_ACTIVE", false)?,
            cors: env.parsed(
                "CORS_ALLOW_ORIGINS",
                Origins::None,
                "it must be origins such as https://app.example.org, separated by commas, or * alone",
                Origins::parse,
            )?,
        })
    }
}

impl Origins {
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
                    && url.origin().ascii_serialization() == origin.to_ascii_lowercase();
                // A browser sends the origin in lower case, without its default port.
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
    fn origins_are_origins() {
        assert_eq!(Origins::parse("*"), Some(Origins::Any));
        for right in
            ["https://app.example.org", "https://a.example.org, http://localhost:5173", "https://A.example.org"]
        {
            assert!(matches!(Origins::parse(right), Some(Origins::List(_))), "{right}");
        }
        for wrong in ["app.example.org", "https://a.example.org/", "https://a.example.org,*", "https://a.org,,", "null"]
        {
            assert_eq!(Origins::parse(wrong), None, "{wrong}");
        }
    }
}
