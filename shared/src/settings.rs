//! Settings: the environment variables, parsed once at startup.
//!
//! If a value does not parse, startup fails with an error that names the
//! variable, the value, and what is expected. An empty value counts as unset,
//! because deployment templates can only omit a setting by leaving it empty.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use redis::IntoConnectionInfo;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use url::Url;

use crate::member::MemberRules;
use crate::rate_limit::Rates;

/// A setting that does not parse, is missing, or contradicts another one.
#[derive(Debug, thiserror::Error)]
pub enum SettingError {
    /// The variable has an invalid value.
    #[error("{name}={value:?} is invalid: expected {expected}")]
    Invalid {
        /// The variable.
        name: &'static str,
        /// Its value. Variables don't hold secrets.
        value: String,
        /// The expected value.
        expected: String,
    },
    /// A required variable is not set.
    #[error("{name} is not set: expected {expected}")]
    Missing {
        /// The variable.
        name: &'static str,
        /// The expected value.
        expected: &'static str,
    },
    /// Two settings contradict each other, or one of several is required.
    #[error("{names}: {why}")]
    Contradiction {
        /// The variables.
        names: &'static str,
        /// The reason, with the remedy.
        why: &'static str,
    },
}

/// Looks up a variable by name.
type Lookup = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// The environment that settings are read from.
pub struct Env {
    get: Lookup,
}

impl Env {
    /// Returns the environment of this process.
    #[must_use]
    pub fn process() -> Self {
        Self { get: Box::new(|name| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned())) }
    }

    /// Creates an environment that consists of exactly these variables.
    #[must_use]
    pub fn of(variables: &[(&str, &str)]) -> Self {
        let variables: std::collections::HashMap<String, String> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { get: Box::new(move |name| variables.get(name).cloned()) }
    }

    /// Returns the trimmed value, or `None` if the variable is unset or blank.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<String> {
        let value = (self.get)(name)?;
        let value = value.trim();
        (!value.is_empty()).then(|| value.to_owned())
    }

    /// Parses the value with `parse`, or returns `default` if the variable is unset.
    ///
    /// # Errors
    /// Returns [`SettingError::Invalid`] with the text `expected` if `parse` returns `None`.
    pub fn parsed<T>(
        &self,
        name: &'static str,
        default: T,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, SettingError> {
        match self.text(name) {
            None => Ok(default),
            Some(value) => {
                parse(&value).ok_or_else(|| SettingError::Invalid { name, value, expected: expected.to_owned() })
            }
        }
    }

    /// Reads a maximum number of calls.
    ///
    /// # Errors
    /// Returns an error if the value is not a number from 1 to a million.
    pub fn calls(&self, name: &'static str, default: usize) -> Result<usize, SettingError> {
        let calls = self.number(name, default as u64, 1..=1_000_000, "calls")?;
        Ok(usize::try_from(calls).unwrap_or(usize::MAX))
    }

    /// Parses a whole number within `range`.
    ///
    /// # Errors
    /// Returns [`SettingError::Invalid`] for any other value.
    pub fn number(
        &self,
        name: &'static str,
        default: u64,
        range: RangeInclusive<u64>,
        unit: &str,
    ) -> Result<u64, SettingError> {
        let expected =
            format!("a whole number of {unit} from {} to {} (default {default})", range.start(), range.end());
        self.parsed(name, default, &expected, |value| value.parse().ok().filter(|n| range.contains(n)))
    }

    /// Parses `true` or `false`.
    ///
    /// # Errors
    /// Returns [`SettingError::Invalid`] for any other value.
    pub fn flag(&self, name: &'static str, default: bool) -> Result<bool, SettingError> {
        let expected = format!("true or false (default {default})");
        self.parsed(name, default, &expected, |value| match value {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        })
    }

    /// Checks that there is a Lambda runtime API to connect to. A function that
    /// is started manually does not have one.
    ///
    /// # Errors
    /// Fails if `AWS_LAMBDA_RUNTIME_API` is not set.
    pub fn require_lambda(&self) -> Result<(), SettingError> {
        const NAME: &str = "AWS_LAMBDA_RUNTIME_API";
        self.text(NAME).map(|_| ()).ok_or(SettingError::Missing {
            name: NAME,
            expected: "this Lambda function to be started by Lambda, the Runtime Interface Emulator or \
                       `cargo lambda watch`. To try it locally, use `make run`",
        })
    }
}

/// The lifetime of a verified record in the cache.
#[derive(Clone, Copy, Debug)]
pub struct CacheTtls {
    /// Seconds during which a record is fresh (`CACHE_TTL_SECONDS`).
    pub ttl: u64,
    /// Seconds after that during which it is still served if Novi cannot respond (`CACHE_STALE_SECONDS`).
    pub stale: u64,
}

/// The location that parameters are read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParameterLocation {
    /// A JSON file (`CONFIG_FILE`).
    File(PathBuf),
    /// A path in SSM's Parameter Store (`PARAMETER_PREFIX`), without a trailing slash.
    Ssm(String),
}

/// The location of the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheLocation {
    /// The memory of each instance.
    InProcess,
    /// A Redis at `CACHE_URL`.
    Url {
        /// `redis://…` or `rediss://…`.
        url: Url,
        /// True if it uses the cluster protocol (`CACHE_CLUSTER`).
        cluster: bool,
    },
    /// An ElastiCache cache (`CACHE_ID`), discovered through ElastiCache's API.
    ElastiCache {
        /// The name of a serverless cache, or the id of a replication group.
        id: String,
        /// The user for IAM authentication (`CACHE_IAM_USER`).
        iam_user: Option<String>,
    },
}

/// The settings that both functions read from the environment.
pub struct CommonSettings {
    /// The location of the parameters.
    pub parameters: ParameterLocation,
    /// The location of the cache.
    pub cache: CacheLocation,
    /// The maximum total time that one request waits for the cache (`CACHE_TIMEOUT_MS`).
    pub cache_timeout: Duration,
    /// The time after which parameters are read again (`PARAMETER_TTL_SECONDS`).
    pub parameter_ttl: Duration,
    /// The timeout of one call to Novi, including connecting (`NOVI_TIMEOUT_MS`).
    pub novi_timeout: Duration,
    /// Additional trusted certificate authorities (`EXTRA_CA_CERTS`).
    pub extra_ca_certs: Vec<CertificateDer<'static>>,
    /// True if `http://` is accepted for hosts other than loopback (`ALLOW_PLAIN_HTTP`).
    pub allow_plain_http: bool,
}

impl CommonSettings {
    /// Reads the settings.
    ///
    /// # Errors
    /// Returns an error for the first setting that is missing or invalid.
    pub fn from_env(env: &Env) -> Result<Self, SettingError> {
        Ok(Self {
            parameters: ParameterLocation::from_env(env)?,
            cache: CacheLocation::from_env(env)?,
            cache_timeout: Duration::from_millis(env.number("CACHE_TIMEOUT_MS", 250, 1..=10_000, "milliseconds")?),
            parameter_ttl: Duration::from_secs(env.number("PARAMETER_TTL_SECONDS", 300, 1..=86_400, "seconds")?),
            novi_timeout: Duration::from_millis(env.number("NOVI_TIMEOUT_MS", 8_000, 100..=25_000, "milliseconds")?),
            extra_ca_certs: extra_ca_certs(env)?,
            allow_plain_http: env.flag("ALLOW_PLAIN_HTTP", false)?,
        })
    }
}

/// Reads `NOVI_TOTAL_PER_*`: what both functions together may call. A total that isn't set is at least `share`, because
/// an operator who allows one function more than the default knows what Novi allows.
///
/// # Errors
/// Returns an error for the first total that is invalid.
pub fn novi_total(env: &Env, share: Rates) -> Result<Rates, SettingError> {
    Ok(Rates {
        second: env.calls("NOVI_TOTAL_PER_SECOND", share.second.max(18))?,
        minute: env.calls("NOVI_TOTAL_PER_MINUTE", share.minute.max(570))?,
        day: env.calls("NOVI_TOTAL_PER_DAY", share.day.max(95_000))?,
    })
}

impl ParameterLocation {
    fn from_env(env: &Env) -> Result<Self, SettingError> {
        const PREFIX: &str = "PARAMETER_PREFIX";
        match (env.text("CONFIG_FILE"), env.text(PREFIX)) {
            (Some(file), None) => Ok(Self::File(file.into())),
            (None, Some(_)) => {
                let expected = "a path in SSM's Parameter Store, such as /idaa";
                let prefix = env.parsed(PREFIX, String::new(), expected, |value| {
                    let path = value.trim_end_matches('/');
                    let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'-' | b'_');
                    (path.len() > 1 && path.starts_with('/') && path.bytes().all(is_name)).then(|| path.to_owned())
                })?;
                Ok(Self::Ssm(prefix))
            }
            (Some(_), Some(_)) => Err(SettingError::Contradiction {
                names: "CONFIG_FILE and PARAMETER_PREFIX",
                why: "set only one of them, because parameters come from a single source",
            }),
            (None, None) => Err(SettingError::Contradiction {
                names: "PARAMETER_PREFIX or CONFIG_FILE",
                why: "set one of them: the SSM path of the parameters, or a JSON file that contains them",
            }),
        }
    }
}

impl CacheLocation {
    fn from_env(env: &Env) -> Result<Self, SettingError> {
        const URL: &str = "CACHE_URL";
        let cluster = env.flag("CACHE_CLUSTER", false)?;
        let iam_user = env.text("CACHE_IAM_USER");
        let contradiction = |names, why| Err(SettingError::Contradiction { names, why });
        match (env.text(URL), env.text("CACHE_ID")) {
            (Some(_), Some(_)) => {
                contradiction("CACHE_URL and CACHE_ID", "set only one of them, because there is a single cache")
            }
            (_, None) if iam_user.is_some() => contradiction(
                "CACHE_IAM_USER",
                "requires CACHE_ID, the name of the ElastiCache cache that the tokens are for",
            ),
            (None, Some(id)) => Ok(Self::ElastiCache { id, iam_user }),
            (None, None) if cluster => {
                contradiction("CACHE_CLUSTER", "requires CACHE_URL, because it says whether that URL is a cluster's")
            }
            (None, None) => Ok(Self::InProcess),
            (Some(value), None) => {
                let url = Url::parse(&value).ok().filter(|url| {
                    let is_redis = matches!(url.scheme(), "redis" | "rediss") && url.host().is_some();
                    // `#insecure` would disable certificate verification.
                    let is_plain = url.fragment().is_none() && url.query().is_none() && url.password().is_none();
                    // A cluster has only one database.
                    let database = url.as_str().into_connection_info().ok().map(|info| info.redis_settings().db());
                    is_redis && is_plain && database.is_some_and(|number| number == 0 || !cluster)
                });
                // A URL with credentials may contain a password, so it is not shown.
                let value = if value.contains('@') { "(not shown)".to_owned() } else { value };
                let expected = "redis://host:port or rediss://host:port, with an optional database (/1) if it is \
                                not a cluster. Set the password in the parameter cache_password";
                let url =
                    url.ok_or_else(|| SettingError::Invalid { name: URL, value, expected: expected.to_owned() })?;
                Ok(Self::Url { url, cluster })
            }
        }
    }
}

impl MemberRules {
    /// Reads `REQUIRE_ACTIVE` and `MEMBER_STATUSES`.
    ///
    /// # Errors
    /// Returns an error for the first setting that is invalid.
    pub fn from_env(env: &Env) -> Result<Self, SettingError> {
        let is_status = |status: &str| {
            !status.is_empty() && status.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b' '))
        };
        Ok(Self {
            require_active: env.flag("REQUIRE_ACTIVE", false)?,
            statuses: env.parsed(
                "MEMBER_STATUSES",
                None,
                "values of Novi's MemberStatus separated by commas, such as current,grace_period",
                |value| {
                    let statuses: Vec<String> = value.split(',').map(|s| s.trim().to_ascii_lowercase()).collect();
                    statuses.iter().all(|status| is_status(status)).then_some(Some(statuses))
                },
            )?,
        })
    }
}

impl CacheTtls {
    /// Reads the settings.
    ///
    /// # Errors
    /// Returns an error for the first setting that is invalid.
    pub fn from_env(env: &Env) -> Result<Self, SettingError> {
        Ok(Self {
            ttl: env.number("CACHE_TTL_SECONDS", 14_400, 1..=2_592_000, "seconds")?,
            stale: env.number("CACHE_STALE_SECONDS", 0, 0..=2_592_000, "seconds")?,
        })
    }
}

/// Reads `EXTRA_CA_CERTS`, which names a PEM file, like Node's
/// `NODE_EXTRA_CA_CERTS`. PEM text is accepted too, because adding a file to a
/// Lambda function is not easy.
fn extra_ca_certs(env: &Env) -> Result<Vec<CertificateDer<'static>>, SettingError> {
    const NAME: &str = "EXTRA_CA_CERTS";
    let Some(value) = env.text(NAME) else {
        return Ok(Vec::new());
    };
    let is_text = value.starts_with("-----BEGIN");
    let invalid = |expected: String| SettingError::Invalid {
        name: NAME,
        value: if is_text { "(PEM text)".to_owned() } else { value.clone() },
        expected,
    };
    let pem = if is_text {
        // A template parameter is a single line.
        value.replace("\\n", "\n").into_bytes()
    } else {
        std::fs::read(&value)
            .map_err(|e| invalid(format!("a readable PEM file of certificate authorities ({})", e.kind())))?
    };
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|_| invalid("certificates in PEM format, found one that is not valid PEM".to_owned()))?;
    if certificates.is_empty() {
        return Err(invalid("at least one certificate in PEM format".to_owned()));
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(variables: &[(&str, &str)]) -> String {
        match CommonSettings::from_env(&Env::of(variables)) {
            Ok(_) => panic!("expected these settings to be rejected"),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn defaults_match_the_contract() {
        let common = CommonSettings::from_env(&Env::of(&[("CONFIG_FILE", "/x")])).unwrap();
        assert_eq!(common.parameter_ttl, Duration::from_secs(300));
        assert_eq!(common.novi_timeout, Duration::from_secs(8));
        assert!(!common.allow_plain_http);
        let cache = CacheTtls::from_env(&Env::of(&[])).unwrap();
        assert_eq!((cache.ttl, cache.stale), (14_400, 0));
    }

    #[test]
    fn error_names_the_variable_the_value_and_what_is_expected() {
        let text = error(&[("CONFIG_FILE", "/x"), ("NOVI_TIMEOUT_MS", "8s")]);
        assert_eq!(
            text,
            r#"NOVI_TIMEOUT_MS="8s" is invalid: expected a whole number of milliseconds from 100 to 25000 (default 8000)"#
        );
        assert!(error(&[("CONFIG_FILE", "/x"), ("ALLOW_PLAIN_HTTP", "yes")]).contains("true or false"));
        assert!(error(&[("CONFIG_FILE", "/x"), ("EXTRA_CA_CERTS", "/no/such.pem")]).contains("readable PEM file"));
        assert!(error(&[("CONFIG_FILE", "/x"), ("EXTRA_CA_CERTS", "-----BEGIN NOTHING")]).contains("not valid PEM"));
    }

    #[test]
    fn parameters_and_cache_each_have_one_location() {
        let read =
            |variables: &[(&str, &str)]| CommonSettings::from_env(&Env::of(variables)).map(|c| (c.parameters, c.cache));
        let file = ("CONFIG_FILE", "/x");
        let ssm = ParameterLocation::Ssm("/idaa/prod".to_owned());
        let locations = read(&[("PARAMETER_PREFIX", "/idaa/prod/")]);
        assert!(matches!(locations, Ok((location, CacheLocation::InProcess)) if location == ssm));
        assert!(matches!(
            read(&[file, ("CACHE_URL", "rediss://cache.example.org:6380"), ("CACHE_CLUSTER", "true")]),
            Ok((_, CacheLocation::Url { cluster: true, .. }))
        ));
        assert!(matches!(
            read(&[file, ("CACHE_ID", "members"), ("CACHE_IAM_USER", "bridge"), ("CACHE_CLUSTER", "false")]),
            Ok((_, CacheLocation::ElastiCache { iam_user: Some(_), .. }))
        ));
        for (variables, expected_text) in [
            (vec![], "PARAMETER_PREFIX or CONFIG_FILE: set one of them"),
            (vec![file, ("PARAMETER_PREFIX", "/idaa")], "CONFIG_FILE and PARAMETER_PREFIX: set only one of them"),
            (vec![("PARAMETER_PREFIX", "idaa")], "PARAMETER_PREFIX=\"idaa\" is invalid"),
            (vec![("PARAMETER_PREFIX", "/")], "PARAMETER_PREFIX=\"/\" is invalid"),
            (vec![file, ("CACHE_URL", "redis://a"), ("CACHE_ID", "b")], "CACHE_URL and CACHE_ID: set only one of them"),
            (vec![file, ("CACHE_URL", "http://a")], "CACHE_URL=\"http://a\" is invalid"),
            (vec![file, ("CACHE_URL", "rediss://a/#insecure")], "is invalid"),
            (vec![file, ("CACHE_URL", "redis://a/cache")], "is invalid"),
            (vec![file, ("CACHE_URL", "redis://a/?protocol=resp3")], "is invalid"),
            (vec![file, ("CACHE_URL", "redis://a/1"), ("CACHE_CLUSTER", "true")], "if it is not a cluster"),
            (vec![file, ("CACHE_URL", "redis://:hush@a")], "CACHE_URL=\"(not shown)\" is invalid"),
            (vec![file, ("CACHE_IAM_USER", "u")], "CACHE_IAM_USER: requires CACHE_ID"),
            (vec![file, ("CACHE_URL", "redis://a"), ("CACHE_IAM_USER", "u")], "CACHE_IAM_USER: requires CACHE_ID"),
            (vec![file, ("CACHE_CLUSTER", "true")], "CACHE_CLUSTER: requires CACHE_URL"),
            (vec![file, ("CACHE_TIMEOUT_MS", "0")], "CACHE_TIMEOUT_MS=\"0\" is invalid"),
        ] {
            let text = error(&variables);
            assert!(text.contains(expected_text) && !text.contains("hush"), "{text}");
        }
    }

    #[test]
    fn certificate_may_be_a_single_line() {
        let pem = r"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let certificates = extra_ca_certs(&Env::of(&[("EXTRA_CA_CERTS", pem)])).unwrap();
        assert_eq!(certificates.len(), 1);
    }

    #[test]
    fn blank_value_counts_as_unset() {
        assert!(
            CommonSettings::from_env(&Env::of(&[("CONFIG_FILE", "/x"), ("CACHE_URL", " "), ("NOVI_TIMEOUT_MS", "")]))
                .is_ok()
        );
    }
}
