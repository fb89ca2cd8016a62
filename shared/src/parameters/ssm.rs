//! AWS Systems Manager's Parameter Store.

use std::error::Error;

use aws_sdk_ssm::error::{ProvideErrorMetadata, SdkError};
use serde_json::{Map, Value};

use super::error::SourceError;
use super::raw::RawParameters;
use crate::network_error::network_cause;

/// The parameters under one path of AWS Systems Manager's Parameter Store.
pub struct Ssm {
    client: aws_sdk_ssm::Client,
    prefix: String,
    names: &'static [&'static str],
    multipart_name: Option<&'static str>,
}

impl Ssm {
    /// The maximum number of pages of a multipart parameter. Parameter Store returns at most ten parameters per page.
    const MAX_PAGES: usize = 50;

    /// Creates a source that reads `names` under `prefix` in one call, and the
    /// parts of `multipart_name` (`…/1`, `…/2`, …) in one call per ten parts.
    #[must_use]
    pub fn new(
        client: aws_sdk_ssm::Client,
        prefix: String,
        names: &'static [&'static str],
        multipart_name: Option<&'static str>,
    ) -> Self {
        Self { client, prefix, names, multipart_name }
    }

    pub(super) async fn read(&self) -> Result<RawParameters, SourceError> {
        // The two calls run concurrently.
        let (named, parts) = tokio::try_join!(self.read_named(), self.read_parts())?;
        Ok(named.into_iter().chain(parts).collect::<Map<_, _>>().into())
    }

    /// Returns the location of the parameters, for an error message.
    pub(super) fn location(&self) -> String {
        format!("SSM {}", self.prefix)
    }

    async fn read_named(&self) -> Result<Vec<(String, Value)>, SourceError> {
        const CALL: &str = "GetParameters";
        let names = self.names.iter().map(|name| format!("{}/{name}", self.prefix)).collect();
        let response = self.client.get_parameters().set_names(Some(names)).with_decryption(true).send().await;
        let response = response.map_err(|error| self.unavailable(CALL, &error))?;
        // A response that mentions only some of the names doesn't say that the others are absent.
        if response.parameters().len() + response.invalid_parameters().len() < self.names.len() {
            return Err(SourceError::Unavailable(format!("SSM {}: {CALL} failed: unexpected response", self.prefix)));
        }
        // `invalid_parameters` lists the names that do not exist. The code that parses each parameter decides whether
        // it is required.
        Ok(response.parameters().iter().filter_map(|parameter| self.entry(parameter)).collect())
    }

    async fn read_parts(&self) -> Result<Vec<(String, Value)>, SourceError> {
        let Some(name) = self.multipart_name else { return Ok(Vec::new()) };
        let path = format!("{}/{name}", self.prefix);
        let (mut entries, mut next) = (Vec::new(), None);
        for _ in 0..Self::MAX_PAGES {
            let page = self.client.get_parameters_by_path().path(&path).with_decryption(true).set_next_token(next);
            let page = page.send().await.map_err(|error| self.unavailable("GetParametersByPath", &error))?;
            entries.extend(page.parameters().iter().filter_map(|parameter| self.entry(parameter)));
            next = page.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
            if next.is_none() {
                return Ok(entries);
            }
        }
        Err(SourceError::Permanent(format!("SSM {path}: expected at most {} parameters", Self::MAX_PAGES * 10)))
    }

    fn entry(&self, parameter: &aws_sdk_ssm::types::Parameter) -> Option<(String, Value)> {
        let name = parameter.name()?.strip_prefix(&self.prefix)?.trim_start_matches('/');
        Some((name.to_owned(), Value::String(parameter.value()?.to_owned())))
    }

    /// Describes a failed call by its error code only, because the message may quote a parameter.
    fn unavailable<E: ProvideErrorMetadata + Error + 'static>(&self, call: &str, error: &SdkError<E>) -> SourceError {
        let cause = match error {
            SdkError::ServiceError(error) => error.err().code().unwrap_or("error without a code"),
            SdkError::TimeoutError(_) => "timed out",
            SdkError::DispatchFailure(failure) if failure.is_timeout() => "timed out",
            SdkError::DispatchFailure(_) => network_cause(error).unwrap_or("could not connect, or no credentials"),
            _ => "unexpected response",
        };
        SourceError::Unavailable(format!("SSM {}: {call} failed: {cause}", self.prefix))
    }
}
