//! The parameters of a function, cached and refreshed when due.

use std::hash::RandomState;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::error::{ParameterError, SourceError, Unavailable};
use super::file::ConfigFile;
use super::raw::RawParameters;
use super::ssm::Ssm;
use crate::telemetry::Phase;

/// The source of parameters.
pub enum Source {
    /// A JSON file (`CONFIG_FILE`).
    File(ConfigFile),
    /// AWS Systems Manager (`PARAMETER_PREFIX`).
    Ssm(Ssm),
}

impl Source {
    async fn read(&self) -> Result<RawParameters, SourceError> {
        match self {
            Self::File(file) => file.read().await,
            Self::Ssm(ssm) => ssm.read().await,
        }
    }

    /// Returns the location of the parameters, for an error message.
    fn location(&self) -> String {
        match self {
            Self::File(file) => file.location(),
            Self::Ssm(ssm) => ssm.location(),
        }
    }
}

/// The health of the parameter source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// The most recent read succeeded.
    Ok,
    /// The source fails, and older parameters are used.
    Stale,
    /// The source fails, and there are no older parameters.
    Down,
}

/// A function's own parser of its parameters.
type Parse<P> = Box<dyn Fn(&RawParameters) -> Result<P, ParameterError> + Send + Sync>;

/// The parameters of one function, cached and refreshed when due.
pub struct ParameterStore<P> {
    source: Source,
    parse: Parse<P>,
    ttl: Duration,
    refresh_timeout: Duration,
    cached: Mutex<CachedParameters<P>>,
}

struct CachedParameters<P> {
    current: Option<Arc<P>>,
    /// A hash that detects changes without keeping a second copy of every secret.
    fingerprint: u64,
    hasher: RandomState,
    /// The time of the next read.
    due: Instant,
    /// True if the last read failed.
    failed: bool,
    /// The time of the last read that was caused by a refusal.
    refused_at: Option<Instant>,
}

impl<P> ParameterStore<P> {
    /// The delay before a failed read is retried. It keeps requests from each
    /// waiting for a failing source.
    const RETRY_DELAY: Duration = Duration::from_secs(1);
    /// The same delay if older parameters are available as a fallback.
    const RETRY_DELAY_WITH_FALLBACK: Duration = Duration::from_secs(10);
    /// The minimum interval between reads that are caused by a refusal.
    const REFUSAL_INTERVAL: Duration = Duration::from_secs(60);

    /// Creates a store that has read nothing yet. A refresh takes at most
    /// `refresh_timeout` if older parameters are available as a fallback.
    #[must_use]
    pub fn new(
        source: Source,
        ttl: Duration,
        refresh_timeout: Duration,
        parse: impl Fn(&RawParameters) -> Result<P, ParameterError> + Send + Sync + 'static,
    ) -> Self {
        let now = Instant::now();
        Self {
            source,
            parse: Box::new(parse),
            ttl,
            refresh_timeout,
            cached: Mutex::new(CachedParameters {
                current: None,
                fingerprint: 0,
                hasher: RandomState::new(),
                due: now,
                failed: false,
                refused_at: None,
            }),
        }
    }

    /// Reads the parameters for the first time. A transient failure of the
    /// source does not fail startup: the first request retries.
    ///
    /// # Errors
    /// Returns an error if the source is unusable, or if a parameter is missing or invalid.
    pub async fn start(&self) -> Result<(), SourceError> {
        let _phase = Phase::start("parameters");
        match self.refresh(&mut *self.cached.lock().await, Duration::MAX).await {
            Err(SourceError::Unavailable(cause)) => {
                tracing::error!(cause, "initial parameter read failed; the first request retries");
                Ok(())
            }
            other => other,
        }
    }

    /// Returns the parameters, after a refresh if one is due.
    ///
    /// # Errors
    /// Returns [`Unavailable`] if the source fails and there are no older parameters.
    pub async fn get(&self) -> Result<Arc<P>, Unavailable> {
        let mut cached = self.cached.lock().await;
        if Instant::now() >= cached.due {
            let timeout = if cached.current.is_some() { self.refresh_timeout } else { Duration::MAX };
            self.refresh_or_log(&mut cached, timeout).await;
        }
        cached.current.clone().ok_or(Unavailable)
    }

    /// Returns the current parameters after an upstream refused those in
    /// `used`. They are read again, unless a refusal already caused a read
    /// within the last minute. Returns `None` if the current parameters are
    /// still the refused ones.
    pub async fn after_refusal(&self, used: &Arc<P>) -> Option<Arc<P>> {
        let mut cached = self.cached.lock().await;
        let now = Instant::now();
        let is_unchanged =
            |cached: &CachedParameters<P>| cached.current.as_ref().is_none_or(|current| Arc::ptr_eq(current, used));
        // A source that has just failed is not read again before its retry is due.
        let may_read = (!cached.failed || now >= cached.due)
            && cached.refused_at.is_none_or(|at| now.duration_since(at) >= Self::REFUSAL_INTERVAL);
        if is_unchanged(&cached) && may_read {
            // Without a timeout: the older parameters are not a fallback here.
            self.refresh_or_log(&mut cached, Duration::MAX).await;
            cached.refused_at = (!cached.failed).then_some(now);
        }
        if is_unchanged(&cached) { None } else { cached.current.clone() }
    }

    /// Returns the health of the parameters, after a refresh if one is due.
    pub async fn health(&self) -> Health {
        let found = self.get().await.is_ok();
        match (found, self.cached.lock().await.failed) {
            (false, _) => Health::Down,
            (true, true) => Health::Stale,
            (true, false) => Health::Ok,
        }
    }

    /// Refreshes the parameters. A failure is logged, and remembered for the health check.
    async fn refresh_or_log(&self, cached: &mut CachedParameters<P>, timeout: Duration) {
        // Boxed: refreshes are rare, and the SDK's large future would otherwise be part of every request's.
        if let Err(error) = Box::pin(self.refresh(cached, timeout)).await {
            if cached.current.is_some() {
                tracing::warn!(%error, "parameter refresh failed; using cached parameters");
            } else {
                tracing::error!(%error, "parameter refresh failed; no cached parameters available");
            }
        }
    }

    async fn refresh(&self, cached: &mut CachedParameters<P>, timeout: Duration) -> Result<(), SourceError> {
        let read = tokio::time::timeout(timeout, self.source.read()).await;
        let read = read.unwrap_or_else(|_| {
            Err(SourceError::Unavailable(format!("{}: reading failed: timed out", self.source.location())))
        });
        let result = read.and_then(|raw| {
            let fingerprint = raw.fingerprint(&cached.hasher);
            if cached.current.is_none() || cached.fingerprint != fingerprint {
                let parsed = (self.parse)(&raw)
                    .map_err(|error| SourceError::Parameter { location: self.source.location(), error })?;
                (cached.current, cached.fingerprint) = (Some(Arc::new(parsed)), fingerprint);
            }
            Ok(())
        });
        cached.failed = result.is_err();
        let delay = if cached.current.is_some() { Self::RETRY_DELAY_WITH_FALLBACK } else { Self::RETRY_DELAY };
        cached.due = Instant::now() + if cached.failed { self.ttl.min(delay) } else { self.ttl };
        result
    }
}

crate::unprintable!(ParameterStore<RawParameters>);

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn number(raw: &RawParameters) -> Result<String, ParameterError> {
        raw.required("n", "a number").map(str::to_owned)
    }

    fn file(json: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(json.as_bytes()).unwrap();
        file
    }

    async fn open(path: &std::path::Path, seconds: u64) -> Result<ParameterStore<String>, SourceError> {
        let source = Source::File(ConfigFile::new(path.into()));
        let store = ParameterStore::new(source, Duration::from_secs(seconds), Duration::from_secs(1), number);
        store.start().await.map(|()| store)
    }

    #[tokio::test(start_paused = true)]
    async fn parameters_are_refreshed_when_due_and_kept_while_the_source_fails() {
        let file = file(r#"{"n":"1"}"#);
        let store = open(file.path(), 300).await.unwrap();
        std::fs::write(file.path(), r#"{"n":"2"}"#).unwrap();
        assert_eq!(*store.get().await.unwrap(), "1");
        tokio::time::advance(Duration::from_secs(301)).await;
        assert_eq!(*store.get().await.unwrap(), "2");
        assert_eq!(store.health().await, Health::Ok);

        std::fs::write(file.path(), "not JSON").unwrap();
        tokio::time::advance(Duration::from_secs(301)).await;
        assert_eq!(*store.get().await.unwrap(), "2");
        assert_eq!(store.health().await, Health::Stale);
        std::fs::write(file.path(), r#"{"n":"3"}"#).unwrap();
        assert_eq!(*store.get().await.unwrap(), "2", "a failing source is not read again immediately");
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(*store.get().await.unwrap(), "3");
        assert_eq!(store.health().await, Health::Ok);
    }

    #[tokio::test(start_paused = true)]
    async fn refusal_causes_a_read_at_most_once_a_minute() {
        let file = file(r#"{"n":"1"}"#);
        let store = open(file.path(), 3_600).await.unwrap();
        let used = store.get().await.unwrap();
        std::fs::write(file.path(), r#"{"n":"2"}"#).unwrap();
        let changed = store.after_refusal(&used).await.unwrap();
        assert_eq!(*changed, "2");
        // Another read returns the same parameters, so there is nothing new to use.
        let same = open(file.path(), 3_600);
        let same = same.await.unwrap();
        assert!(same.after_refusal(&same.get().await.unwrap()).await.is_none());
        // Another caller that still used the old parameters gets the new ones without another read.
        assert_eq!(store.after_refusal(&used).await.as_deref().map(String::as_str), Some("2"));
        // The new parameters are refused too, within the minute, so nothing is read.
        std::fs::write(file.path(), r#"{"n":"3"}"#).unwrap();
        assert!(store.after_refusal(&changed).await.is_none());
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(store.after_refusal(&changed).await.as_deref().map(String::as_str), Some("3"));
    }

    #[tokio::test]
    async fn byte_order_mark_in_the_file_is_skipped() {
        let file = file("\u{feff}{\"n\":\"\u{feff}1\"}");
        let store = open(file.path(), 300).await.unwrap();
        assert_eq!(*store.get().await.unwrap(), "1");
    }

    #[tokio::test]
    async fn startup_fails_on_permanent_errors_and_names_the_location() {
        for (json, expected_text) in [
            ("[]", "expected a JSON object with the parameters as its keys"),
            ("{", "found invalid JSON (line 1, column 1)"),
            ("{}", "parameter n is missing: expected a number"),
            (r#"{"n":5}"#, "parameter n is invalid: expected a string"),
        ] {
            let file = file(json);
            let result = open(file.path(), 1).await;
            let text = result.err().map(|e| e.to_string()).unwrap_or_default();
            assert!(text.starts_with("CONFIG_FILE=/") && text.contains(expected_text), "{text}");
        }
        let result = open(std::path::Path::new("/no/such/file"), 1).await;
        assert!(result.err().is_some_and(|e| e.to_string().contains("/no/such/file")));
    }
}
