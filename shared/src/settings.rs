//! Settings: the environment variables, parsed once at start.
//!
//! A value that does not parse ends the start with an error that names the
//! variable, the value and what would be right. An empty value counts as unset,
//! because that is how deployment templates say "not here".

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use redis::IntoConnectionInfo;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use url::Url;

/// A setting that does not parse, is missing, or contradicts another.
#[derive(Debug, thiserror::Error)]
pub enum SettingError {
    /// The variable is set to something that it cannot be.
    #[error("{name}={value:?} cannot be used: {right}")]
    Wrong {
        /// The variable.
        name: &'static str,
        /// What it is set to. No variable holds a secret.
        value: String,
        /// What would be right.
        right: String,
    },
    /// A required variable is not set.
    #[error("{name} is not set: {right}")]
    Missing {
        /// The variable.
        name: &'static str,
        /// What it should hold.
        right: &'static str,
    },
    /// Two settings contradict each other.
    #[error("{names}: {why}")]
    Contradiction {
        /// The variables.
        names: &'static str,
        /// What to do about it.
        why: &'static str,
    },
}

/// Looks a variable up.
type Lookup = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// The environment that settings are read from.
pub struct Env {
    get: Lookup,
}

impl Env {
    /// The environment of this process.
    #[must_use]
    pub fn process() -> Self {
        Self { get: Box::new(|name| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned())) }
    }

    /// An environment of exactly these variables.
    #[must_use]
    pub fn of(variables: &[(&str, &str)]) -> Self {
        let variables: std::collections::HashMap<String, String> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { get: Box::new(move |name| variables.get(name).cloned()) }
    }

    /// The trimmed value, or `None` where the variable is unset or blank.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<String> {
        let value = (self.get)(name)?;
        let value = value.trim();
        (!value.is_empty()).then(|| value.to_owned())
    }

    /// The value through `parse`, or `default` where the variable is unset.
    ///
    /// # Errors
    /// [`SettingError::Wrong`] with `right` as the advice where `parse` gives `None`.
    pub fn parsed<T>(
        &self,
        name: &'static str,
        default: T,
        right: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, SettingError> {
        match self.text(name) {
            None => Ok(default),
            Some(value) => parse(&value).ok_or_else(|| SettingError::Wrong { name, value, right: right.to_owned() }),
        }
    }

    /// A whole number within `range`.
    ///
    /// # Errors
    /// [`SettingError::Wrong`] for anything else.
    pub fn number(
        &self,
        name: &'static str,
        default: u64,
        range: RangeInclusive<u64>,
        unit: &str,
    ) -> Result<u64, SettingError> {
        let right = format!(
            "it must be a whole number of {unit} from {} to {} (default {default})",
            range.start(),
            range.end()
        );
        self.parsed(name, default, &right, |value| value.parse().ok().filter(|n| range.contains(n)))
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// [`SettingError::Wrong`] for anything else.
    pub fn flag(&self, name: &'static str, default: bool) -> Result<bool, SettingError> {
        let right = format!("it must be true or false (default {default})");
        self.parsed(name, default, &right, |value| match value {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        })
    }

    /// A function started by hand has no Lambda runtime to talk to.
    ///
    /// # Errors
    /// Where `AWS_LAMBDA_RUNTIME_API` is not set.
    pub fn require_lambda(&self) -> Result<(), SettingError> {
        const NAME: &str = "AWS_LAMBDA_RUNTIME_API";
        self.text(NAME).map(|_| ()).ok_or(SettingError::Missing {
            name: NAME,
            right: "this is a Lambda function, to be started by Lambda, its Runtime Interface Emulator or `cargo lambda watch`; `make run` shows it at work",
        })
    }
}

/// How long a verified record is served.
#[derive(Clone, Copy, Debug)]
pub struct CacheTtls {
    /// For how long it is fresh, in seconds (`CACHE_TTL_SECONDS`).
    pub ttl: u64,
    /// For how long after that it is still served when Novi cannot answer, in seconds (`CACHE_STALE_SECONDS`).
    pub stale: u64,
}

/// Where parameters are read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParameterLocation {
    /// A JSON file (`CONFIG_FILE`).
    File(PathBuf),
    /// A path of SSM's Parameter Store (`PARAMETER_PREFIX`), without a slash at its end.
    Ssm(String),
}

/// Where the cache is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheLocation {
    /// In the memory of each instance.
    InProcess,
    /// `CACHE_URL`, and whether that is a cluster (`CACHE_CLUSTER`).
    Url {
        /// `redis://…` or `rediss://…`.
        url: Url,
        /// Whether it speaks the cluster's protocol.
        cluster: bool,
    },
    /// `CACHE_ID`: found through ElastiCache's API.
    ElastiCache {
        /// The name of a serverless cache, or the id of a replication group.
        id: String,
        /// The user of IAM authentication (`CACHE_IAM_USER`).
        iam_user: Option<String>,
    },
}

/// What both functions read from the environment.
pub struct CommonSettings {
    /// Where the parameters are.
    pub parameters: ParameterLocation,
    /// Where the cache is.
    pub cache: CacheLocation,
    /// The most that one request waits on the cache in all (`CACHE_TIMEOUT_MS`).
    pub cache_timeout: Duration,
    /// How long parameters are kept before they are read again (`PARAMETER_TTL_SECONDS`).
    pub parameter_ttl: Duration,
    /// The most that one call to Novi takes, connecting included (`NOVI_TIMEOUT_MS`).
    pub novi_timeout: Duration,
    /// Certificate authorities that are trusted in addition (`EXTRA_CA_CERTS`).
    pub extra_ca_certs: Vec<CertificateDer<'static>>,
    /// Whether `http://` is accepted beyond loopback (`ALLOW_PLAIN_HTTP`).
    pub allow_plain_http: bool,
}

impl CommonSettings {
    /// Reads them.
    ///
    /// # Errors
    /// The first setting that is missing or wrong.
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

impl ParameterLocation {
    fn from_env(env: &Env) -> Result<Self, SettingError> {
        const PREFIX: &str = "PARAMETER_PREFIX";
        match (env.text("CONFIG_FILE"), env.text(PREFIX)) {
            (Some(file), None) => Ok(Self::File(file.into())),
            (None, Some(_)) => {
                let right = "it must be a path of SSM's Parameter Store, such as /idaa";
                let prefix = env.parsed(PREFIX, String::new(), right, |value| {
                    let path = value.trim_end_matches('/');
                    let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'-' | b'_');
                    (path.len() > 1 && path.starts_with('/') && path.bytes().all(is_name)).then(|| path.to_owned())
                })?;
                Ok(Self::Ssm(prefix))
            }
            (Some(_), Some(_)) => Err(SettingError::Contradiction {
                names: "CONFIG_FILE and PARAMETER_PREFIX",
                why: "both are set, and parameters come from one place; unset one of them",
            }),
            (None, None) => Err(SettingError::Contradiction {
                names: "PARAMETER_PREFIX or CONFIG_FILE",
                why: "one of them must be set: the path in SSM below which the parameters live, or a JSON file with them",
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
                contradiction("CACHE_URL and CACHE_ID", "both are set, and there is one cache; unset one of them")
            }
            (_, None) if iam_user.is_some() => contradiction(
                "CACHE_IAM_USER",
                "it needs CACHE_ID, the name of the ElastiCache cache that tokens are for",
            ),
            (None, Some(id)) => Ok(Self::ElastiCache { id, iam_user }),
            (None, None) if cluster => {
                contradiction("CACHE_CLUSTER", "it says of what kind CACHE_URL is, which is not set")
            }
            (None, None) => Ok(Self::InProcess),
            (Some(value), None) => {
                let url = Url::parse(&value).ok().filter(|url| {
                    let is_redis = matches!(url.scheme(), "redis" | "rediss") && url.host().is_some();
                    // `#insecure` would turn the check of certificates off.
                    let is_plain = url.fragment().is_none() && url.query().is_none() && url.password().is_none();
                    // A cluster has but one database.
                    let database = url.as_str().into_connection_info().ok().map(|info| info.redis_settings().db());
                    is_redis && is_plain && database.is_some_and(|number| number == 0 || !cluster)
                });
                // What is written into a URL may be a password: it is not shown.
                let value = if value.contains('@') { "(not shown)".to_owned() } else { value };
                let right = "it must be redis://host:port or rediss://host:port, and may name a database (/1) where it is no cluster; a password belongs into the parameter cache_password";
                let url = url.ok_or_else(|| SettingError::Wrong { name: URL, value, right: right.to_owned() })?;
                Ok(Self::Url { url, cluster })
            }
        }
    }
}

impl CacheTtls {
    /// Reads them.
    ///
    /// # Errors
    /// The first setting that is wrong.
    pub fn from_env(env: &Env) -> Result<Self, SettingError> {
        Ok(Self {
            ttl: env.number("CACHE_TTL_SECONDS", 14_400, 1..=2_592_000, "seconds")?,
            stale: env.number("CACHE_STALE_SECONDS", 0, 0..=2_592_000, "seconds")?,
        })
    }
}

/// `EXTRA_CA_CERTS` names a PEM file, as Node's `NODE_EXTRA_CA_CERTS` does. PEM
/// text itself is taken too: a Lambda has no easy place for a file.
fn extra_ca_certs(env: &Env) -> Result<Vec<CertificateDer<'static>>, SettingError> {
    const NAME: &str = "EXTRA_CA_CERTS";
    let Some(value) = env.text(NAME) else {
        return Ok(Vec::new());
    };
    let is_text = value.starts_with("-----BEGIN");
    let wrong = |right: String| SettingError::Wrong {
        name: NAME,
        value: if is_text { "(PEM text)".to_owned() } else { value.clone() },
        right,
    };
    let pem = if is_text {
        // A template's parameter has one line.
        value.replace("\\n", "\n").into_bytes()
    } else {
        std::fs::read(&value)
            .map_err(|e| wrong(format!("it must name a readable PEM file of certificate authorities ({})", e.kind())))?
    };
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|_| wrong("a certificate in it is not valid PEM".to_owned()))?;
    if certificates.is_empty() {
        return Err(wrong("it holds no certificate".to_owned()));
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(variables: &[(&str, &str)]) -> String {
        match CommonSettings::from_env(&Env::of(variables)) {
            Ok(_) => panic!("these settings should have been refused"),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn defaults_are_the_contract_s() {
        let common = CommonSettings::from_env(&Env::of(&[("CONFIG_FILE", "/x")])).unwrap();
        assert_eq!(common.parameter_ttl, Duration::from_secs(300));
        assert_eq!(common.novi_timeout, Duration::from_secs(8));
        assert!(!common.allow_plain_http);
        let cache = CacheTtls::from_env(&Env::of(&[])).unwrap();
        assert_eq!((cache.ttl, cache.stale), (14_400, 0));
    }

    #[test]
    fn an_error_names_the_variable_the_value_and_what_is_right() {
        let text = error(&[("CONFIG_FILE", "/x"), ("NOVI_TIMEOUT_MS", "8s")]);
        assert_eq!(
            text,
            "NOVI_TIMEOUT_MS=\"8s\" cannot be used: it must be a whole number of milliseconds from 100 to 25000 (default 8000)"
        );
        assert!(error(&[("CONFIG_FILE", "/x"), ("ALLOW_PLAIN_HTTP", "yes")]).contains("true or false"));
        assert!(error(&[("CONFIG_FILE", "/x"), ("EXTRA_CA_CERTS", "/no/such.pem")]).contains("readable PEM file"));
        assert!(error(&[("CONFIG_FILE", "/x"), ("EXTRA_CA_CERTS", "-----BEGIN NOTHING")]).contains("not valid PEM"));
    }

    #[test]
    fn parameters_and_cache_are_in_one_place_each() {
        let place =
            |variables: &[(&str, &str)]| CommonSettings::from_env(&Env::of(variables)).map(|c| (c.parameters, c.cache));
        let file = ("CONFIG_FILE", "/x");
        let ssm = ParameterLocation::Ssm("/idaa/prod".to_owned());
        assert!(
            matches!(place(&[("PARAMETER_PREFIX", "/idaa/prod/")]), Ok((place, CacheLocation::InProcess)) if place == ssm)
        );
        assert!(matches!(
            place(&[file, ("CACHE_URL", "rediss://cache.example.org:6380"), ("CACHE_CLUSTER", "true")]),
            Ok((_, CacheLocation::Url { cluster: true, .. }))
        ));
        assert!(matches!(
            place(&[file, ("CACHE_ID", "members"), ("CACHE_IAM_USER", "bridge"), ("CACHE_CLUSTER", "false")]),
            Ok((_, CacheLocation::ElastiCache { iam_user: Some(_), .. }))
        ));
        for (variables, said) in [
            (vec![], "PARAMETER_PREFIX or CONFIG_FILE: one of them must be set"),
            (vec![file, ("PARAMETER_PREFIX", "/idaa")], "CONFIG_FILE and PARAMETER_PREFIX: both are set"),
            (vec![("PARAMETER_PREFIX", "idaa")], "PARAMETER_PREFIX=\"idaa\" cannot be used"),
            (vec![("PARAMETER_PREFIX", "/")], "PARAMETER_PREFIX=\"/\" cannot be used"),
            (vec![file, ("CACHE_URL", "redis://a"), ("CACHE_ID", "b")], "CACHE_URL and CACHE_ID: both are set"),
            (vec![file, ("CACHE_URL", "http://a")], "CACHE_URL=\"http://a\" cannot be used"),
            (vec![file, ("CACHE_URL", "rediss://a/#insecure")], "cannot be used"),
            (vec![file, ("CACHE_URL", "redis://a/cache")], "cannot be used"),
            (vec![file, ("CACHE_URL", "redis://a/?protocol=resp3")], "cannot be used"),
            (vec![file, ("CACHE_URL", "redis://a/1"), ("CACHE_CLUSTER", "true")], "where it is no cluster"),
            (vec![file, ("CACHE_URL", "redis://:hush@a")], "CACHE_URL=\"(not shown)\" cannot be used"),
            (vec![file, ("CACHE_IAM_USER", "u")], "CACHE_IAM_USER: it needs CACHE_ID"),
            (vec![file, ("CACHE_URL", "redis://a"), ("CACHE_IAM_USER", "u")], "CACHE_IAM_USER: it needs CACHE_ID"),
            (vec![file, ("CACHE_CLUSTER", "true")], "CACHE_CLUSTER: it says of what kind CACHE_URL is"),
            (vec![file, ("CACHE_TIMEOUT_MS", "0")], "CACHE_TIMEOUT_MS=\"0\" cannot be used"),
        ] {
            let text = error(&variables);
            assert!(text.contains(said) && !text.contains("hush"), "{text}");
        }
    }

    #[test]
    fn a_certificate_may_come_in_one_line() {
        let pem = r"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let certificates = extra_ca_certs(&Env::of(&[("EXTRA_CA_CERTS", pem)])).unwrap();
        assert_eq!(certificates.len(), 1);
    }

    #[test]
    fn a_blank_value_counts_as_unset() {
        assert!(
            CommonSettings::from_env(&Env::of(&[("CONFIG_FILE", "/x"), ("CACHE_URL", " "), ("NOVI_TIMEOUT_MS", "")]))
                .is_ok()
        );
    }
}
