//! The settings of verification.

use http::HeaderValue;
use shared::settings::{CacheTtls, CommonSettings, Env, SettingError};
use url::Url;

/// The settings from the environment.
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
                "origins such as https://app.example.org, separated by commas, or only *",
                Origins::parse,
            )?,
        })
    }
}

impl Origins {
    /// Parses comma-separated origins, or `*`. Returns `None` if one of them is not an origin.
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
    }
}
