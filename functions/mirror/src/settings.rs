//! The settings of the mirror.

use shared::settings::{Common, Env, SettingError};

/// What the environment says.
pub(crate) struct Settings {
    pub(crate) common: Common,
    /// `NOVI_MAX_PER_SECOND`.
    pub(crate) novi_max_per_second: usize,
    /// `NOVI_MAX_PER_MINUTE`.
    pub(crate) novi_max_per_minute: usize,
    /// `MIRROR_APPLY`: only `true` lets a run write.
    pub(crate) apply: bool,
}

impl Settings {
    pub(crate) fn from_env(env: &Env) -> Result<Self, SettingError> {
        let limit = |name, default| {
            env.number(name, default, 1..=1_000_000, "calls").map(|n| usize::try_from(n).unwrap_or(usize::MAX))
        };
        Ok(Self {
            common: Common::from_env(env)?,
            novi_max_per_second: limit("NOVI_MAX_PER_SECOND", 10)?,
            novi_max_per_minute: limit("NOVI_MAX_PER_MINUTE", 400)?,
            apply: env.text("MIRROR_APPLY").as_deref() == Some("true"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_true_lets_the_mirror_write() {
        for (value, applies) in
            [("true", true), ("false", false), ("True", false), ("1", false), ("yes", false), ("", false)]
        {
            let settings = Settings::from_env(&Env::of(&[("CONFIG_FILE", "/x"), ("MIRROR_APPLY", value)]));
            assert_eq!(settings.map(|settings| settings.apply).ok(), Some(applies), "{value}");
        }
    }
}
