//! The parameters of a function, cached and read again in the background when due.

use std::hash::RandomState;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::error::{ParameterError, SourceError, Unavailable};
use super::file::ConfigFile;
use super::raw::RawParameters;
use super::ssm::Ssm;
use crate::sync::lock;
use crate::telemetry::Phase;

/// The source of parameters.
pub enum Source {
    /// A JSON file (`CONFIG_FILE`).
    File(ConfigFile),
    /// AWS Systems Manager (`PARAMETER_PREFIX`).
    Ssm(Ssm),
    /// A source that a test controls.
    #[cfg(test)]
    Fake(Arc<tests::Fake>),
}

impl Source {
    async fn read(&self) -> Result<RawParameters, SourceError> {
        match self {
            Self::File(file) => file.read().await,
            Self::Ssm(ssm) => ssm.read().await,
            #[cfg(test)]
            Self::Fake(fake) => fake.read().await,
        }
    }

    /// Returns the location of the parameters, for an error message.
    fn location(&self) -> String {
        match self {
            Self::File(file) => file.location(),
            Self::Ssm(ssm) => ssm.location(),
            #[cfg(test)]
            Self::Fake(_) => "a test".to_owned(),
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

/// The parameters of one function, cached and read again in the background when due.
///
/// At most one reading is in progress. It is a task of its own, so it runs to its end although the requests that wait
/// for it go away. Lambda freezes an instance between invocations, and a reading in progress goes on with the next one.
/// Whether the clock runs during a freeze or not, such a reading ends: see [`crate::aws`] for its timeouts.
pub struct ParameterStore<P> {
    max_wait: Duration,
    reader: Arc<Reader<P>>,
}

/// The part of the store that a reading in the background shares.
struct Reader<P> {
    source: Source,
    parse: Parse<P>,
    ttl: Duration,
    /// Never locked during I/O.
    state: Mutex<State<P>>,
}

struct State<P> {
    current: Option<Arc<P>>,
    /// A hash that detects changes without keeping a second copy of every secret.
    fingerprint: u64,
    hasher: RandomState,
    /// The time from which requests wait for newer parameters.
    due: Instant,
    /// The time before which the source isn't read again, because it has just failed.
    retry_at: Instant,
    /// True if the last read failed.
    failed: bool,
    /// The time of the last successful read that was caused by a refusal.
    refused_at: Option<Instant>,
    /// The last reading.
    reading: Option<Reading>,
}

/// A reading, which has ended if its sender was dropped. A panic drops it, too.
type Reading = watch::Receiver<()>;

/// The cause of a reading.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// The parameters are due, or the last reading failed.
    Due,
    /// An upstream refused the current ones.
    Refusal,
}

impl<P> State<P> {
    /// Returns the reading in progress.
    fn in_progress(&self) -> Option<Reading> {
        self.reading.clone().filter(|reading| reading.has_changed().is_ok())
    }

    /// True if requests wait for newer parameters.
    fn is_due(&self) -> bool {
        Instant::now() >= self.due
    }

    /// True if a reading may start for this reason now.
    fn may_read(&self, reason: Reason) -> bool {
        /// The minimum interval between readings that are caused by a refusal.
        const INTERVAL: Duration = Duration::from_secs(60);
        let is_allowed = |at: Instant| reason == Reason::Due || at.elapsed() >= INTERVAL;
        Instant::now() >= self.retry_at && self.refused_at.is_none_or(is_allowed)
    }

    /// True if the current parameters are still those in `used`.
    fn is_unchanged(&self, used: &Arc<P>) -> bool {
        self.current.as_ref().is_none_or(|current| Arc::ptr_eq(current, used))
    }
}

impl<P: Send + Sync + 'static> ParameterStore<P> {
    /// Creates a store that has read nothing yet. A caller waits at most `max_wait` for a reading.
    #[must_use]
    pub fn new(
        source: Source,
        ttl: Duration,
        max_wait: Duration,
        parse: impl Fn(&RawParameters) -> Result<P, ParameterError> + Send + Sync + 'static,
    ) -> Self {
        let now = Instant::now();
        let state = Mutex::new(State {
            current: None,
            fingerprint: 0,
            hasher: RandomState::new(),
            due: now,
            retry_at: now,
            failed: false,
            refused_at: None,
            reading: None,
        });
        Self { max_wait, reader: Arc::new(Reader { source, parse: Box::new(parse), ttl, state }) }
    }

    /// Reads the parameters for the first time. A transient failure of the
    /// source does not fail startup: the first request retries.
    ///
    /// # Errors
    /// Returns an error if the source is unusable, or if a parameter is missing or invalid.
    pub async fn start(&self) -> Result<(), SourceError> {
        let _phase = Phase::start("parameters");
        // Connections to the cache, which are made concurrently, wait for this reading.
        let (sender, reading) = watch::channel(());
        lock(&self.reader.state).reading = Some(reading);
        match self.reader.read(Reason::Due, sender).await {
            Err(SourceError::Unavailable(cause)) => {
                tracing::error!(cause, "initial parameter read failed; the first request retries");
                Ok(())
            }
            other => other,
        }
    }

    /// Returns the parameters. If newer ones are due, waits at most `max_wait` for them, and the reading goes on after
    /// that.
    ///
    /// # Errors
    /// Returns [`Unavailable`] if no parameters have been read yet.
    pub async fn get(&self) -> Result<Arc<P>, Unavailable> {
        {
            let mut state = lock(&self.reader.state);
            if !state.is_due() {
                // After a failure they are read again before they are due, but no request waits for that.
                if state.failed && state.may_read(Reason::Due) {
                    self.reader.start(&mut state, Reason::Due);
                }
                return state.current.clone().ok_or(Unavailable);
            }
        }
        self.read(Reason::Due, State::is_due).await;
        lock(&self.reader.state).current.clone().ok_or(Unavailable)
    }

    /// Returns the current parameters after an upstream refused those in `used`. They are read again, unless a refusal
    /// already caused a reading within the last minute. Waits at most `max_wait` for that. Returns `None` if the current
    /// parameters are still the refused ones.
    pub async fn after_refusal(&self, used: &Arc<P>) -> Option<Arc<P>> {
        self.read(Reason::Refusal, |state| state.is_unchanged(used)).await;
        let state = lock(&self.reader.state);
        if state.is_unchanged(used) { None } else { state.current.clone() }
    }

    /// Reads the parameters if `is_needed`, and waits at most `max_wait` for that.
    async fn read(&self, reason: Reason, is_needed: impl Fn(&State<P>) -> bool) {
        let read = async {
            loop {
                let (reading, is_own) = {
                    let mut state = lock(&self.reader.state);
                    if !is_needed(&state) {
                        return;
                    }
                    match state.in_progress() {
                        // It may have missed the change, or its connection died in a freeze. Another one follows it then.
                        Some(reading) => (reading, false),
                        None if state.may_read(reason) => (self.reader.start(&mut state, reason), true),
                        None => return,
                    }
                };
                end(reading).await;
                if is_own {
                    return;
                }
            }
        };
        // Boxed: readings are rare, and this future would otherwise be part of every request's.
        let _ = timeout(self.max_wait, Box::pin(read)).await;
    }

    /// Returns the parameters for a connection to the cache, which may be the old ones even if newer ones are due. If
    /// the cache refused their password, they are read again in the background, as in [`Self::after_refusal`], for the
    /// next connection.
    ///
    /// Waits only for the first reading, without which no request gets as far as the cache.
    pub async fn for_cache(&self, was_refused: bool) -> Option<Arc<P>> {
        let first = {
            let mut state = lock(&self.reader.state);
            let reading = state.in_progress();
            if was_refused && reading.is_none() && state.may_read(Reason::Refusal) {
                self.reader.start(&mut state, Reason::Refusal);
            }
            match &state.current {
                Some(current) => return Some(Arc::clone(current)),
                None => reading?,
            }
        };
        end(first).await;
        lock(&self.reader.state).current.clone()
    }

    /// Returns the health of the parameters, after a reading if one is due.
    pub async fn health(&self) -> Health {
        let found = self.get().await.is_ok();
        match (found, lock(&self.reader.state).failed) {
            (false, _) => Health::Down,
            (true, true) => Health::Stale,
            (true, false) => Health::Ok,
        }
    }
}

/// Waits for the end of a reading.
async fn end(mut reading: Reading) {
    while reading.changed().await.is_ok() {}
}

impl<P: Send + Sync + 'static> Reader<P> {
    /// The delay from the start of a failed reading to the next one. It keeps
    /// requests from each waiting for a failing source.
    const RETRY_DELAY: Duration = Duration::from_secs(1);
    /// The same delay if older parameters are available as a fallback.
    const RETRY_DELAY_WITH_FALLBACK: Duration = Duration::from_secs(10);

    /// Returns the reading in progress. If there is none, starts one in the background.
    fn start(self: &Arc<Self>, state: &mut State<P>, reason: Reason) -> Reading {
        if let Some(reading) = state.in_progress() {
            return reading;
        }
        let (sender, reading) = watch::channel(());
        state.reading = Some(reading.clone());
        let reader = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = reader.read(reason, sender).await {
                if lock(&reader.state).current.is_some() {
                    tracing::warn!(%error, "parameter refresh failed; using cached parameters");
                } else {
                    tracing::error!(%error, "parameter refresh failed; no cached parameters available");
                }
            }
        });
        reading
    }

    /// Reads the parameters. Drops `sender` at the end.
    async fn read(&self, reason: Reason, sender: watch::Sender<()>) -> Result<(), SourceError> {
        let _sender = sender;
        let started = Instant::now();
        let read = self.source.read().await;
        let (hasher, known) = {
            let state = lock(&self.state);
            (state.hasher.clone(), state.current.is_some().then_some(state.fingerprint))
        };
        let changed = read.and_then(|raw| {
            let fingerprint = raw.fingerprint(&hasher);
            if known == Some(fingerprint) {
                return Ok(None);
            }
            let parsed = (self.parse)(&raw)
                .map_err(|error| SourceError::Parameter { location: self.source.location(), error })?;
            Ok(Some((Arc::new(parsed), fingerprint)))
        });
        let mut state = lock(&self.state);
        let result = changed.map(|changed| {
            if let Some((parsed, fingerprint)) = changed {
                (state.current, state.fingerprint) = (Some(parsed), fingerprint);
            }
        });
        state.failed = result.is_err();
        // Both times count from the start, because the instance may have been frozen since.
        if state.failed {
            let delay = if state.current.is_some() { Self::RETRY_DELAY_WITH_FALLBACK } else { Self::RETRY_DELAY };
            state.retry_at = started + self.ttl.min(delay);
        } else {
            state.due = started + self.ttl;
            if reason == Reason::Refusal {
                state.refused_at = Some(started);
            }
        }
        result
    }
}

crate::unprintable!(ParameterStore<RawParameters>);

#[cfg(test)]
mod tests {
    use std::io::Write;

    use futures_util::future::join_all;
    use serde_json::{Map, json};
    use tokio::time::{advance, sleep};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const TTL: Duration = Duration::from_secs(300);

    /// A source that takes its time.
    pub struct Fake(Mutex<FakeState>);

    #[derive(Clone, Default)]
    struct FakeState {
        /// The parameter. Reading fails if there is none.
        value: Option<String>,
        response_time: Duration,
        begun: usize,
        ended: usize,
    }

    impl Fake {
        pub(super) async fn read(&self) -> Result<RawParameters, SourceError> {
            let FakeState { value, response_time, .. } = {
                let mut state = lock(&self.0);
                state.begun += 1;
                state.clone()
            };
            sleep(response_time).await;
            lock(&self.0).ended += 1;
            let value = value.ok_or_else(|| SourceError::Unavailable("a failure".to_owned()))?;
            assert_ne!(value, "panic");
            Ok(Map::from_iter([("n".to_owned(), json!(value))]).into())
        }

        /// Sets the parameter, and the time that reading takes from now on.
        fn set(&self, value: Option<&str>, response_time: Duration) {
            let mut state = lock(&self.0);
            (state.value, state.response_time) = (value.map(str::to_owned), response_time);
        }

        /// Returns the number of readings that have begun, and that have ended.
        fn readings(&self) -> (usize, usize) {
            let state = lock(&self.0);
            (state.begun, state.ended)
        }
    }

    /// Returns a store that has read the value "1".
    async fn fake() -> (Arc<Fake>, ParameterStore<String>) {
        let fake = Arc::new(Fake(Mutex::default()));
        fake.set(Some("1"), Duration::ZERO);
        let store = ParameterStore::new(Source::Fake(Arc::clone(&fake)), TTL, SECOND, number);
        store.start().await.unwrap();
        (fake, store)
    }

    /// Returns a value, and how long it took.
    async fn timed<T>(future: impl Future<Output = T>) -> (T, Duration) {
        let started = Instant::now();
        (future.await, started.elapsed())
    }

    async fn get(store: &ParameterStore<String>) -> (String, Duration) {
        let (value, elapsed) = timed(store.get()).await;
        (value.unwrap().as_str().to_owned(), elapsed)
    }

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
        advance(Duration::from_secs(301)).await;
        assert_eq!(*store.get().await.unwrap(), "2");
        assert_eq!(store.health().await, Health::Ok);

        std::fs::write(file.path(), "not JSON").unwrap();
        advance(Duration::from_secs(301)).await;
        assert_eq!(*store.get().await.unwrap(), "2");
        assert_eq!(store.health().await, Health::Stale);
        std::fs::write(file.path(), r#"{"n":"3"}"#).unwrap();
        assert_eq!(*store.get().await.unwrap(), "2", "a failing source is not read again immediately");
        advance(Duration::from_secs(10)).await;
        assert_eq!(*store.get().await.unwrap(), "3");
        assert_eq!(store.health().await, Health::Ok);
    }

    #[tokio::test(start_paused = true)]
    async fn request_waits_a_second_and_the_reading_goes_on() {
        let (fake, store) = fake().await;
        fake.set(Some("2"), SECOND * 6 / 5);
        advance(TTL).await;
        assert_eq!(get(&store).await, ("1".into(), SECOND));
        assert_eq!(get(&store).await, ("2".into(), SECOND / 5));
        assert_eq!(fake.readings(), (2, 2));

        // However long it takes: one reading, and every request waits for a second.
        fake.set(Some("3"), SECOND * 100);
        advance(TTL).await;
        for _ in 0..99 {
            assert_eq!(get(&store).await, ("2".into(), SECOND));
        }
        assert_eq!(fake.readings(), (3, 2));
        sleep(SECOND * 2).await;
        assert_eq!(lock(&store.reader.state).current.as_deref().map(String::as_str), Some("3"));
        // The parameters are as old as the beginning of their reading.
        sleep(TTL - SECOND * 101).await;
        get(&store).await;
        assert_eq!(fake.readings().0, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_share_one_reading_that_none_of_them_cancels() {
        let (fake, store) = fake().await;
        fake.set(Some("2"), SECOND / 2);
        advance(TTL).await;
        assert!(timeout(SECOND / 10, join_all((0..20).map(|_| store.get()))).await.is_err());
        sleep(SECOND / 10).await;
        let values = join_all((0..20).map(|_| get(&store))).await;
        assert!(values.iter().all(|value| *value == ("2".into(), SECOND * 3 / 10)), "{values:?}");
        assert_eq!(fake.readings(), (2, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn without_parameters_a_request_waits_a_second() {
        let fake = Arc::new(Fake(Mutex::default()));
        let store = ParameterStore::new(Source::Fake(Arc::clone(&fake)), TTL, SECOND, number);
        store.start().await.unwrap();
        assert!(store.get().await.is_err(), "the source has just failed");
        fake.set(Some("1"), SECOND * 3 / 2);
        advance(SECOND).await;
        let (result, elapsed) = timed(store.get()).await;
        assert_eq!((result.is_err(), elapsed), (true, SECOND));
        assert_eq!(get(&store).await, ("1".into(), SECOND / 2));
    }

    #[tokio::test(start_paused = true)]
    async fn request_does_not_wait_for_a_reading_that_the_cache_needs() {
        let (fake, store) = fake().await;
        fake.set(Some("2"), SECOND * 3);
        let (value, elapsed) = timed(store.for_cache(false)).await;
        assert_eq!((value.unwrap().as_str(), elapsed, fake.readings().0), ("1", Duration::ZERO, 1));
        for _ in 0..2 {
            let (value, elapsed) = timed(store.for_cache(true)).await;
            assert_eq!((value.unwrap().as_str(), elapsed), ("1", Duration::ZERO));
            tokio::task::yield_now().await;
            assert_eq!(get(&store).await, ("1".into(), Duration::ZERO));
        }
        sleep(SECOND * 4).await;
        assert_eq!(store.for_cache(true).await.unwrap().as_str(), "2");
        assert_eq!(fake.readings(), (2, 2), "at most once a minute");

        // Nor for its retries, if it fails.
        fake.set(None, SECOND * 3);
        sleep(SECOND * 60).await;
        store.for_cache(true).await;
        for readings in 3..10 {
            assert_eq!(get(&store).await, ("2".into(), Duration::ZERO));
            sleep(SECOND * 4).await;
            assert_eq!(fake.readings(), (readings, readings));
            assert_eq!(store.health().await, Health::Stale);
            sleep(SECOND * 10).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn connection_during_init_waits_for_the_first_reading() {
        let fake = Arc::new(Fake(Mutex::default()));
        fake.set(Some("1"), SECOND * 2);
        let store = ParameterStore::new(Source::Fake(Arc::clone(&fake)), TTL, SECOND, number);
        let (started, value) = tokio::join!(store.start(), store.for_cache(false));
        started.unwrap();
        assert_eq!(value.unwrap().as_str(), "1");
        assert_eq!(fake.readings(), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn refusal_waits_a_second_and_the_reading_goes_on() {
        let (fake, store) = fake().await;
        let used = store.get().await.unwrap();
        fake.set(Some("2"), SECOND * 6 / 5);
        let (changed, elapsed) = timed(store.after_refusal(&used)).await;
        assert_eq!((changed, elapsed), (None, SECOND));
        let (changed, elapsed) = timed(store.after_refusal(&used)).await;
        assert_eq!((changed.unwrap().as_str(), elapsed), ("2", SECOND / 5));
        assert_eq!(fake.readings(), (2, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn reading_that_may_have_missed_the_change_is_followed_by_another() {
        let (fake, store) = fake().await;
        let used = store.get().await.unwrap();
        fake.set(Some("1"), SECOND / 2);
        advance(TTL).await;
        let refused = async {
            sleep(SECOND / 4).await;
            fake.set(Some("2"), SECOND / 2);
            store.after_refusal(&used).await
        };
        let (_, changed) = tokio::join!(store.get(), refused);
        assert_eq!(changed.as_deref().map(String::as_str), Some("2"));
        assert_eq!(fake.readings(), (3, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn reading_that_failed_in_a_freeze_is_followed_by_another_at_once() {
        let (fake, store) = fake().await;
        advance(TTL).await;
        fake.set(None, SECOND * 3600);
        assert_eq!(get(&store).await, ("1".into(), SECOND));
        fake.set(Some("2"), SECOND / 2);
        advance(SECOND * 3600).await;
        assert_eq!(get(&store).await, ("2".into(), SECOND / 2));
        assert_eq!(store.health().await, Health::Ok);
    }

    #[tokio::test(start_paused = true)]
    async fn caller_that_waits_for_any_time_waits_for_one_failure() {
        let fake = Arc::new(Fake(Mutex::default()));
        let store = ParameterStore::new(Source::Fake(Arc::clone(&fake)), SECOND, Duration::MAX, number);
        fake.set(Some("1"), Duration::ZERO);
        store.start().await.unwrap();
        fake.set(None, SECOND * 3);
        advance(SECOND).await;
        assert_eq!(get(&store).await, ("1".into(), SECOND * 3));
        let used = store.get().await.unwrap();
        assert_eq!(timed(store.after_refusal(&used)).await, (None, SECOND * 3));
    }

    #[tokio::test(start_paused = true)]
    async fn panic_in_a_reading_does_not_keep_others_from_reading() {
        let (fake, store) = fake().await;
        fake.set(Some("panic"), SECOND / 2);
        advance(TTL).await;
        assert_eq!(get(&store).await, ("1".into(), SECOND / 2));
        fake.set(Some("2"), Duration::ZERO);
        assert_eq!(get(&store).await, ("2".into(), Duration::ZERO));
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
        advance(Duration::from_secs(61)).await;
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
