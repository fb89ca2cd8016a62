//! The settings of the mirror.

use std::time::Duration;

use shared::cache::NoviLimits;
use shared::member::MemberRules;
use shared::rate_limit::Rates;
use shared::settings::{CacheTtls, CommonSettings, Env, SettingError, novi_total};

use crate::ledger::LedgerLocation;
use crate::mail::{Frequency, MailSettings, TopicArn};
use crate::mailman::Timeouts;

/// The settings, parsed from environment variables.
pub(crate) struct Settings {
    pub(crate) common: CommonSettings,
    /// The lifetimes of cache entries.
    pub(crate) cache: CacheTtls,
    /// `REQUIRE_ACTIVE` and `MEMBER_STATUSES`, with the same meaning as in verify, because the cache must contain what
    /// verify would write. The mirror wants no inactive record in any case.
    pub(crate) member_rules: MemberRules,
    /// `MIRROR_WARMS_CACHE`.
    pub(crate) prewarm_cache: bool,
    /// `NOVI_BULK`: true if the bulk list of all records may be read.
    pub(crate) bulk: bool,
    /// `NOVI_TOTAL_PER_*` and `NOVI_MAX_PER_*`.
    pub(crate) novi_limits: NoviLimits,
    /// `LEDGER`: the location of the ledger, if there is one.
    pub(crate) ledger: Option<LedgerLocation>,
    /// `REPORTS` and `REPORT_TOPIC_ARN`: when mails are sent and by which topic. `None` if none are.
    pub(crate) mail: Option<MailSettings>,
    /// `MIRROR_PERIOD_SECONDS`: the time between two scheduled runs.
    pub(crate) period: Duration,
    /// `MAILMAN_TIMEOUT_MS` and `MAILMAN_RETRY_SECONDS`.
    pub(crate) mailman: Timeouts,
    /// `MIRROR_APPLY`: only `true` lets a run write.
    pub(crate) apply: bool,
}

impl Settings {
    pub(crate) fn from_env(env: &Env) -> Result<Self, SettingError> {
        let share = Rates {
            second: env.calls("NOVI_MAX_PER_SECOND", 10)?,
            minute: env.calls("NOVI_MAX_PER_MINUTE", 400)?,
            day: env.calls("NOVI_MAX_PER_DAY", 50_000)?,
        };
        Ok(Self {
            common: CommonSettings::from_env(env)?,
            novi_limits: NoviLimits { total: novi_total(env, share)?, share, unknown: (0, 0), yields: true },
            cache: CacheTtls::from_env(env)?,
            member_rules: MemberRules::from_env(env)?,
            prewarm_cache: env.flag("MIRROR_WARMS_CACHE", true)?,
            bulk: env.parsed("NOVI_BULK", true, "auto or off (default auto)", |value| match value {
                "auto" => Some(true),
                "off" => Some(false),
                _ => None,
            })?,
            ledger: LedgerLocation::from_env(env)?,
            mail: mail(env)?,
            period: Duration::from_secs(env.number("MIRROR_PERIOD_SECONDS", 3_600, 60..=604_800, "seconds")?),
            mailman: Timeouts {
                request: Duration::from_millis(env.number(
                    "MAILMAN_TIMEOUT_MS",
                    30_000,
                    100..=300_000,
                    "milliseconds",
                )?),
                retry: Duration::from_secs(env.number("MAILMAN_RETRY_SECONDS", 60, 0..=60, "seconds")?),
            },
            apply: env.text("MIRROR_APPLY").as_deref() == Some("true"),
        })
    }
}

fn mail(env: &Env) -> Result<Option<MailSettings>, SettingError> {
    let expected = "changes, weekly or none (default changes)";
    let frequency = env.parsed("REPORTS", Some(Frequency::Changes), expected, |value| match value {
        "changes" => Some(Some(Frequency::Changes)),
        "weekly" => Some(Some(Frequency::Weekly)),
        "none" => Some(None),
        _ => None,
    })?;
    let expected = "the ARN of a standard SNS topic, such as arn:aws:sns:us-east-1:123456789012:alarms";
    let topic = env.parsed("REPORT_TOPIC_ARN", None, expected, |value| TopicArn::parse(value).map(Some))?;
    Ok(frequency.zip(topic).map(|(frequency, topic)| MailSettings { frequency, topic }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mails_need_a_topic_and_can_be_turned_off() {
        const ARN: &str = "arn:aws:sns:us-east-1:123456789012:alarms";
        let frequency = |reports, topic| {
            let env = Env::of(&[("CONFIG_FILE", "/x"), ("REPORTS", reports), ("REPORT_TOPIC_ARN", topic)]);
            let settings = Settings::from_env(&env).map_err(|error| error.to_string())?;
            Ok(settings.mail.map(|mail| mail.frequency))
        };
        for (reports, topic, expected) in [
            ("", "", None),
            ("weekly", "", None),
            ("", ARN, Some(Frequency::Changes)),
            ("changes", ARN, Some(Frequency::Changes)),
            ("weekly", ARN, Some(Frequency::Weekly)),
            ("none", ARN, None),
        ] {
            assert_eq!(frequency(reports, topic), Ok::<_, String>(expected), "{reports} {topic}");
        }
        let error = frequency("daily", ARN).unwrap_err();
        assert_eq!(error, r#"REPORTS="daily" is invalid: expected changes, weekly or none (default changes)"#);
        let error = frequency("none", "alarms").unwrap_err();
        assert!(
            error.starts_with(r#"REPORT_TOPIC_ARN="alarms" is invalid: expected the ARN of a standard"#),
            "{error}"
        );
    }

    #[test]
    fn bulk_reads_are_on_unless_turned_off() {
        let settings = |value| Settings::from_env(&Env::of(&[("CONFIG_FILE", "/x"), ("NOVI_BULK", value)]));
        assert_eq!(settings("").map(|settings| settings.bulk).ok(), Some(true));
        assert_eq!(settings("auto").map(|settings| settings.bulk).ok(), Some(true));
        assert_eq!(settings("off").map(|settings| settings.bulk).ok(), Some(false));
        let error = settings("on").err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some(r#"NOVI_BULK="on" is invalid: expected auto or off (default auto)"#));
    }

    #[test]
    fn mirror_writes_only_if_apply_is_true() {
        for (value, applies) in
            [("true", true), ("false", false), ("True", false), ("1", false), ("yes", false), ("", false)]
        {
            let settings = Settings::from_env(&Env::of(&[("CONFIG_FILE", "/x"), ("MIRROR_APPLY", value)]));
            assert_eq!(settings.map(|settings| settings.apply).ok(), Some(applies), "{value}");
        }
    }
}
