//! Parameters: what an administrator may change while the functions run, and
//! every secret. They are read at start, again after `PARAMETER_TTL_SECONDS`,
//! and at once (at most once a minute) when an upstream refuses what they hold.
//!
//! An error names the parameter and what would be right, never what it holds.

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_ssm::error::{ProvideErrorMetadata, SdkError};
use secrecy::zeroize::{Zeroize, Zeroizing};
use serde_json::{Map, Value};
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;

use crate::telemetry::Phase;

/// A parameter that is not there or not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum ParameterError {
    /// It is required and not there, or blank.
    #[error("parameter {name} is missing: it must hold {right}")]
    Missing {
        /// The parameter.
        name: &'static str,
        /// What it should hold.
        right: &'static str,
    },
    /// It is there and cannot be used.
    #[error("parameter {name} cannot be used: {right}")]
    Malformed {
        /// The parameter.
        name: &'static str,
        /// What would be right.
        right: String,
    },
}

/// Why the source of parameters gave none.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// What it gave is wrong, and will be until somebody mends it.
    #[error("{0}")]
    Wrong(String),
    /// A parameter in it is wrong.
    #[error("{place}: {error}")]
    Parameter {
        /// Where the parameter stands.
        place: String,
        /// The parameter and its fault.
        error: ParameterError,
    },
    /// It could not be asked now.
    #[error("{0}")]
    Unavailable(String),
}

/// No parameters are at hand, and their source cannot be read now.
#[derive(Debug, thiserror::Error)]
#[error("the parameters cannot be read, and none older are at hand")]
pub struct Unavailable;

/// Parameters as they come, by name. They hold every secret, and are wiped when dropped.
pub struct RawParameters(Map<String, Value>);

impl Drop for RawParameters {
    fn drop(&mut self) {
        self.0.values_mut().for_each(wipe);
    }
}

/// Overwrites every text in a value.
fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(items) => items.iter_mut().for_each(wipe),
        Value::Object(map) => map.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

impl From<Map<String, Value>> for RawParameters {
    fn from(parameters: Map<String, Value>) -> Self {
        Self(parameters)
    }
}

impl RawParameters {
    /// A parameter that must be there.
    ///
    /// # Errors
    /// Where it is missing, blank or no text.
    pub fn required(&self, name: &'static str, right: &'static str) -> Result<&str, ParameterError> {
        self.optional(name)?.ok_or(ParameterError::Missing { name, right })
    }

    /// A parameter that may be absent or blank, which is the same.
    ///
    /// # Errors
    /// Where it is no text.
    pub fn optional(&self, name: &'static str) -> Result<Option<&str>, ParameterError> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.trim()).filter(|text| !text.is_empty())),
            Some(_) => Err(ParameterError::Malformed { name, right: "it must be text".to_owned() }),
        }
    }

    /// A parameter that must be a JSON array: plain, or as JSON text. What did
    /// not fit into one parameter goes on in `{name}/1`, `{name}/2`, …
    ///
    /// # Errors
    /// Where it is missing or no array.
    pub fn required_array(&self, name: &'static str, right: &'static str) -> Result<Vec<Value>, ParameterError> {
        let mut items = self.array(name, name, right)?;
        let part = |key: &str| key.strip_prefix(name)?.strip_prefix('/')?.parse::<u64>().ok();
        let mut parts: Vec<(u64, &str)> = self.0.keys().filter_map(|key| Some((part(key)?, key.as_str()))).collect();
        parts.sort_unstable();
        for (_, key) in parts {
            items.extend(self.array(key, name, right)?);
        }
        Ok(items)
    }

    fn array(&self, key: &str, name: &'static str, right: &'static str) -> Result<Vec<Value>, ParameterError> {
        let malformed = |right: String| {
            let right = if key == name { right } else { format!("in {key}, {right}") };
            ParameterError::Malformed { name, right }
        };
        let value = match self.0.get(key) {
            None | Some(Value::Null) => return Err(ParameterError::Missing { name, right }),
            // serde_json's message may quote the text; its place does not.
            Some(Value::String(text)) => serde_json::from_str(text).map_err(|e| {
                malformed(format!("it is not JSON (line {}, column {}); it must hold {right}", e.line(), e.column()))
            })?,
            Some(plain) => plain.clone(),
        };
        match value {
            Value::Array(items) => Ok(items),
            _ => Err(malformed(format!("it must hold {right}"))),
        }
    }

    /// A parameter that must be a base URL: `https://`, or `http://` to
    /// loopback, or `http://` to anywhere with `ALLOW_PLAIN_HTTP=true`.
    ///
    /// # Errors
    /// Where it is missing or no such URL.
    pub fn required_url(
        &self,
        name: &'static str,
        right: &'static str,
        allow_plain_http: bool,
    ) -> Result<Url, ParameterError> {
        let malformed = |right: &str| ParameterError::Malformed { name, right: right.to_owned() };
        let url = Url::parse(self.required(name, right)?)
            .map_err(|e| malformed(&format!("it is no URL ({e}); it must hold {right}")))?;
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
            return Err(malformed("it must have no user, password, query or fragment"));
        }
        match url.scheme() {
            "https" => {}
            "http" if is_loopback(&url) => {}
            "http" if allow_plain_http => {
                tracing::warn!(parameter = name, "plain HTTP beyond loopback: whoever sees the network sees the key");
            }
            "http" => {
                return Err(malformed(
                    "it must be https:// (http:// is taken for loopback, or anywhere with ALLOW_PLAIN_HTTP=true)",
                ));
            }
            _ => return Err(malformed("it must be an https:// URL")),
        }
        Ok(url)
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Where parameters come from.
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

    /// Where a parameter stands, for an error.
    fn place(&self) -> String {
        match self {
            Self::File(file) => file.place(),
            Self::Ssm(ssm) => format!("SSM {}", ssm.prefix),
        }
    }
}

/// The file that `CONFIG_FILE` names.
pub struct ConfigFile {
    path: PathBuf,
}

impl ConfigFile {
    /// A file may lie on a network: it is given as long as a network call.
    const TIME_OUT: Duration = Duration::from_secs(3);
    /// Far above any sensible configuration.
    const LIMIT: u64 = 16 << 20;

    /// The file at `path`, which is read later.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    async fn read(&self) -> Result<RawParameters, SourceError> {
        let place = self.place();
        let read = async {
            let file = tokio::fs::File::open(&self.path).await?;
            let mut bytes = Zeroizing::new(Vec::new());
            tokio::io::AsyncReadExt::read_to_end(&mut tokio::io::AsyncReadExt::take(file, Self::LIMIT), &mut bytes)
                .await?;
            Ok::<_, std::io::Error>(bytes)
        };
        let bytes = match tokio::time::timeout(Self::TIME_OUT, read).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => return Err(Self::unreadable(&place, &error)),
            Err(_) => return Err(SourceError::Unavailable(format!("{place} could not be read in time"))),
        };
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(map)) => Ok(map.into()),
            Ok(_) => {
                Err(SourceError::Wrong(format!("{place} must hold a JSON object with the parameters as its keys")))
            }
            // serde_json's message may quote the file; its place does not.
            Err(e) => {
                Err(SourceError::Wrong(format!("{place} is not JSON (line {}, column {})", e.line(), e.column())))
            }
        }
    }

    /// What somebody must mend is wrong; what may pass by itself is unavailable.
    fn unreadable(place: &str, error: &std::io::Error) -> SourceError {
        use std::io::ErrorKind::{InvalidInput, IsADirectory, NotADirectory, NotFound, PermissionDenied};
        let text = format!("{place} cannot be read: {}", error.kind());
        match error.kind() {
            NotFound | PermissionDenied | IsADirectory | NotADirectory | InvalidInput => SourceError::Wrong(text),
            _ => SourceError::Unavailable(text),
        }
    }

    fn place(&self) -> String {
        format!("CONFIG_FILE={}", self.path.display())
    }
}

/// The parameters under one path of AWS Systems Manager's Parameter Store.
pub struct Ssm {
    client: aws_sdk_ssm::Client,
    prefix: String,
    names: &'static [&'static str],
    continued: Option<&'static str>,
}

impl Ssm {
    /// Pages of a continued parameter: ten a page, as Parameter Store has it.
    const PAGES: usize = 50;

    /// Reads `names` below `prefix`, in one call, and what is below `continued`
    /// (`…/1`, `…/2`, …) in one call for each ten.
    #[must_use]
    pub fn new(
        client: aws_sdk_ssm::Client,
        prefix: String,
        names: &'static [&'static str],
        continued: Option<&'static str>,
    ) -> Self {
        Self { client, prefix, names, continued }
    }

    async fn read(&self) -> Result<RawParameters, SourceError> {
        // The two calls do not wait for each other.
        let (named, continued) = tokio::try_join!(self.read_named(), self.read_continued())?;
        Ok(RawParameters(named.into_iter().chain(continued).collect()))
    }

    async fn read_named(&self) -> Result<Vec<(String, Value)>, SourceError> {
        let names = self.names.iter().map(|name| format!("{}/{name}", self.prefix)).collect();
        let answer = self.client.get_parameters().set_names(Some(names)).with_decryption(true).send().await;
        let answer = answer.map_err(|error| self.unavailable("GetParameters", &error))?;
        // An answer that leaves some names out says nothing of them: they may well be there.
        if answer.parameters().len() + answer.invalid_parameters().len() < self.names.len() {
            return Err(SourceError::Unavailable(format!(
                "SSM {}: GetParameters: an answer that makes no sense",
                self.prefix
            )));
        }
        // Names that do not exist come back in a list of their own; the reader of each says whether it may be absent.
        Ok(answer.parameters().iter().filter_map(|parameter| self.entry(parameter)).collect())
    }

    async fn read_continued(&self) -> Result<Vec<(String, Value)>, SourceError> {
        let Some(name) = self.continued else { return Ok(Vec::new()) };
        let path = format!("{}/{name}", self.prefix);
        let (mut entries, mut next) = (Vec::new(), None);
        for _ in 0..Self::PAGES {
            let page = self.client.get_parameters_by_path().path(&path).with_decryption(true).set_next_token(next);
            let page = page.send().await.map_err(|error| self.unavailable("GetParametersByPath", &error))?;
            entries.extend(page.parameters().iter().filter_map(|parameter| self.entry(parameter)));
            next = page.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
            if next.is_none() {
                return Ok(entries);
            }
        }
        Err(SourceError::Wrong(format!("SSM {path} holds more than {} parameters", Self::PAGES * 10)))
    }

    fn entry(&self, parameter: &aws_sdk_ssm::types::Parameter) -> Option<(String, Value)> {
        let name = parameter.name()?.strip_prefix(&self.prefix)?.trim_start_matches('/');
        Some((name.to_owned(), Value::String(parameter.value()?.to_owned())))
    }

    /// An error's code says what is wrong; its message may quote a parameter.
    fn unavailable<E: ProvideErrorMetadata>(&self, call: &str, error: &SdkError<E>) -> SourceError {
        let cause = match error {
            SdkError::ServiceError(error) => error.err().code().unwrap_or("an error without a code"),
            SdkError::TimeoutError(_) => "timed out",
            SdkError::DispatchFailure(failure) if failure.is_timeout() => "timed out",
            SdkError::DispatchFailure(_) => "not reached, or no credentials",
            _ => "an answer that makes no sense",
        };
        SourceError::Unavailable(format!("SSM {}: {call}: {cause}", self.prefix))
    }
}

/// How well the parameters are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Read within their time.
    Ok,
    /// Their source fails; the older ones are used.
    Stale,
    /// Their source fails, and there are none.
    Down,
}

/// How a function reads its own parameters.
type Parse<P> = Box<dyn Fn(&RawParameters) -> Result<P, ParameterError> + Send + Sync>;

/// The parameters of one function, kept and read again when due.
pub struct ParameterStore<P> {
    source: Source,
    parse: Parse<P>,
    ttl: Duration,
    patience: Duration,
    kept: Mutex<Kept<P>>,
}

struct Kept<P> {
    current: Option<Arc<P>>,
    /// Tells whether what is read differs from `current`, without keeping a second copy of every secret.
    fingerprint: u64,
    hasher: RandomState,
    /// When to read next.
    due: Instant,
    /// Whether the last reading failed.
    failed: bool,
    /// When an upstream's refusal last led to a reading.
    refused: Option<Instant>,
}

impl<P> ParameterStore<P> {
    /// After a failure the source is left alone for this long: requests must
    /// not each wait for it.
    const PAUSE: Duration = Duration::from_secs(1);
    /// The same, where older parameters serve meanwhile.
    const PAUSE_WITH_OLDER: Duration = Duration::from_secs(10);
    /// A refused key is looked up again at most this often.
    const REFUSED_PAUSE: Duration = Duration::from_secs(60);

    /// A store that has read nothing yet. A reading that is due takes at most
    /// `patience` where older parameters can serve instead.
    #[must_use]
    pub fn new(
        source: Source,
        ttl: Duration,
        patience: Duration,
        parse: impl Fn(&RawParameters) -> Result<P, ParameterError> + Send + Sync + 'static,
    ) -> Self {
        let now = Instant::now();
        Self {
            source,
            parse: Box::new(parse),
            ttl,
            patience,
            kept: Mutex::new(Kept {
                current: None,
                fingerprint: 0,
                hasher: RandomState::new(),
                due: now,
                failed: false,
                refused: None,
            }),
        }
    }

    /// Reads the parameters for the first time. A source that cannot be asked
    /// now does not end the start: it is asked again with the first request.
    ///
    /// # Errors
    /// Where the source, or a parameter in it, is wrong.
    pub async fn start(&self) -> Result<(), SourceError> {
        let _phase = Phase::start("parameters");
        match self.read_into(&mut *self.kept.lock().await, Duration::MAX).await {
            Err(SourceError::Unavailable(cause)) => {
                tracing::error!(cause, "the parameters cannot be read yet");
                Ok(())
            }
            other => other,
        }
    }

    /// The parameters, read again where they are due.
    ///
    /// # Errors
    /// [`Unavailable`] where there are none and their source fails.
    pub async fn get(&self) -> Result<Arc<P>, Unavailable> {
        let mut kept = self.kept.lock().await;
        if Instant::now() >= kept.due {
            let patience = if kept.current.is_some() { self.patience } else { Duration::MAX };
            self.reread(&mut kept, patience).await;
        }
        kept.current.clone().ok_or(Unavailable)
    }

    /// An upstream has refused what `used` holds: the parameters that are there
    /// now, read again unless that was done within the last minute. `None`
    /// where they are still those that were refused.
    pub async fn after_refusal(&self, used: &Arc<P>) -> Option<Arc<P>> {
        let mut kept = self.kept.lock().await;
        let now = Instant::now();
        let unchanged = |kept: &Kept<P>| kept.current.as_ref().is_none_or(|current| Arc::ptr_eq(current, used));
        // A source that has just failed is asked again when it is due.
        let may_ask = !kept.failed || now >= kept.due;
        if unchanged(&kept) && may_ask && kept.refused.is_none_or(|at| now.duration_since(at) >= Self::REFUSED_PAUSE) {
            // With all patience: the older ones do not serve.
            self.reread(&mut kept, Duration::MAX).await;
            kept.refused = (!kept.failed).then_some(now);
        }
        if unchanged(&kept) { None } else { kept.current.clone() }
    }

    /// How well the parameters are, read again where they are due.
    pub async fn health(&self) -> Health {
        let found = self.get().await.is_ok();
        match (found, self.kept.lock().await.failed) {
            (false, _) => Health::Down,
            (true, true) => Health::Stale,
            (true, false) => Health::Ok,
        }
    }

    /// Reads again. A failure is logged, and kept for the health check.
    async fn reread(&self, kept: &mut Kept<P>, patience: Duration) {
        // Boxed: it is rare, and every request would else carry the room that a call of the SDK's takes.
        if let Err(error) = Box::pin(self.read_into(kept, patience)).await {
            if kept.current.is_some() {
                tracing::warn!(%error, "the parameters cannot be read again: the older ones are used");
            } else {
                tracing::error!(%error, "the parameters cannot be read");
            }
        }
    }

    async fn read_into(&self, kept: &mut Kept<P>, patience: Duration) -> Result<(), SourceError> {
        let read = tokio::time::timeout(patience, self.source.read()).await;
        let read = read.unwrap_or_else(|_| {
            Err(SourceError::Unavailable(format!("{} could not be read in time", self.source.place())))
        });
        let read = read.and_then(|raw| {
            let fingerprint = kept.hasher.hash_one(&raw.0);
            if kept.current.is_none() || kept.fingerprint != fingerprint {
                let parsed =
                    (self.parse)(&raw).map_err(|error| SourceError::Parameter { place: self.source.place(), error })?;
                (kept.current, kept.fingerprint) = (Some(Arc::new(parsed)), fingerprint);
            }
            Ok(())
        });
        kept.failed = read.is_err();
        let pause = if kept.current.is_some() { Self::PAUSE_WITH_OLDER } else { Self::PAUSE };
        kept.due = Instant::now() + if kept.failed { self.ttl.min(pause) } else { self.ttl };
        read
    }
}

crate::unprintable!(RawParameters, ParameterStore<RawParameters>);

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn raw(json: &str) -> RawParameters {
        match serde_json::from_str(json).unwrap() {
            Value::Object(map) => map.into(),
            _ => panic!("no object"),
        }
    }

    fn url_error(value: &str, plain: bool) -> Option<String> {
        let raw = raw(&serde_json::json!({ "u": value }).to_string());
        raw.required_url("u", "the root", plain).err().map(|e| e.to_string())
    }

    #[test]
    fn a_url_is_https_or_loopback() {
        for right in ["https://www.example.org/api", "http://127.0.0.1:8000", "http://[::1]/x", "http://localhost/"] {
            assert_eq!(url_error(right, false), None, "{right}");
        }
        for wrong in [
            "http://www.example.org/api",
            "http://127.0.0.1.example.org",
            "ftp://x",
            "www.example.org",
            "https://u:p@x/",
            "https://x/?k=v",
        ] {
            let text = url_error(wrong, false).unwrap_or_default();
            assert!(text.starts_with("parameter u"), "{wrong}: {text}");
            assert!(!text.contains(wrong), "{text}");
        }
        assert_eq!(url_error("http://10.0.0.7/api", true), None);
    }

    #[test]
    fn an_array_is_plain_or_text_and_errors_never_quote() {
        for right in [r#"{"a":[1,2]}"#, r#"{"a":"[1,2]"}"#] {
            assert_eq!(raw(right).required_array("a", "numbers").unwrap().len(), 2);
        }
        for wrong in [r#"{"a":"secret-thing"}"#, r#"{"a":"\"secret-thing\""}"#, r#"{"a":{"secret-thing":1}}"#] {
            let text = raw(wrong).required_array("a", "numbers").unwrap_err().to_string();
            assert!(text.starts_with("parameter a cannot be used") && !text.contains("secret"), "{text}");
        }
        assert!(raw("{}").required_array("a", "numbers").unwrap_err().to_string().contains("missing"));
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
    async fn parameters_are_read_again_when_due_and_kept_while_their_source_fails() {
        let file = file(r#"{"n":"1"}"#);
        let store = open(file.path(), 300).await.unwrap();
        std::fs::write(file.path(), r#"{"n":"2"}"#).unwrap();
        assert_eq!(*store.get().await.unwrap(), "1");
        tokio::time::advance(Duration::from_secs(301)).await;
        assert_eq!(*store.get().await.unwrap(), "2");
        assert_eq!(store.health().await, Health::Ok);

        std::fs::write(file.path(), "no JSON").unwrap();
        tokio::time::advance(Duration::from_secs(301)).await;
        assert_eq!(*store.get().await.unwrap(), "2");
        assert_eq!(store.health().await, Health::Stale);
        std::fs::write(file.path(), r#"{"n":"3"}"#).unwrap();
        assert_eq!(*store.get().await.unwrap(), "2", "a source that fails is left alone for a while");
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(*store.get().await.unwrap(), "3");
        assert_eq!(store.health().await, Health::Ok);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_reads_again_at_most_once_a_minute() {
        let file = file(r#"{"n":"1"}"#);
        let store = open(file.path(), 3_600).await.unwrap();
        let used = store.get().await.unwrap();
        std::fs::write(file.path(), r#"{"n":"2"}"#).unwrap();
        let changed = store.after_refusal(&used).await.unwrap();
        assert_eq!(*changed, "2");
        // Read again and found the same: there is nothing to try.
        let same = open(file.path(), 3_600);
        let same = same.await.unwrap();
        assert!(same.after_refusal(&same.get().await.unwrap()).await.is_none());
        // Another caller that still used the old ones gets the new ones without a reading.
        assert_eq!(store.after_refusal(&used).await.as_deref().map(String::as_str), Some("2"));
        // The new ones are refused too, within the minute: nothing is read.
        std::fs::write(file.path(), r#"{"n":"3"}"#).unwrap();
        assert!(store.after_refusal(&changed).await.is_none());
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(store.after_refusal(&changed).await.as_deref().map(String::as_str), Some("3"));
    }

    #[tokio::test]
    async fn what_is_wrong_ends_the_start_and_names_its_place() {
        for (json, said) in [
            ("[]", "must hold a JSON object"),
            ("{", "is not JSON (line 1, column 1)"),
            ("{}", "parameter n is missing: it must hold a number"),
            (r#"{"n":5}"#, "parameter n cannot be used: it must be text"),
        ] {
            let file = file(json);
            let result = open(file.path(), 1).await;
            let text = result.err().map(|e| e.to_string()).unwrap_or_default();
            assert!(text.starts_with("CONFIG_FILE=/") && text.contains(said), "{text}");
        }
        let result = open(std::path::Path::new("/no/such/file"), 1).await;
        assert!(result.err().is_some_and(|e| e.to_string().contains("/no/such/file")));
    }
}
