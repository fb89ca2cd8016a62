//! The gate: requires a valid API key *and* an account context. It fails closed, with a code for each reason.

use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use shared::parameters::{ParameterError, RawParameters};
use subtle::{Choice, ConstantTimeEq};

use crate::problem::Code;

/// The header that contains the API key.
pub(crate) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// The header that contains the account id.
pub(crate) const ACCOUNT_ID: HeaderName = HeaderName::from_static("x-account-id");

const API_KEYS: &str = "api_keys";
const API_KEYS_EXPECTED: &str = r#"a JSON array of at least one {"name":"…","key":"…","bypass":false}"#;
const JWT_SECRET: &str = "jwt_secret";
/// The minimum length of an HS256 secret in bytes (RFC 7518 3.2).
const MIN_JWT_SECRET: usize = 32;

/// The credentials that open the gate.
pub(crate) struct Gate {
    keys: Vec<ApiKey>,
    /// Any of these verifies a token, so that the secret can be rotated. Without one, no token is accepted.
    jwt_keys: Vec<DecodingKey>,
}

/// How much a caller is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Trust {
    /// A valid token or a bypass key, which no stranger has.
    Signed,
    /// An account id next to a key that is in every browser, so that anyone may have both.
    Anyone,
}

/// An accepted API key. Only its digest is kept: all digests have the same length, so a comparison doesn't reveal the
/// length of the key.
struct ApiKey {
    digest: [u8; 32],
    /// True if requests with this key don't need an account context.
    bypass: bool,
}

impl Gate {
    /// Reads the parameters `api_keys` and `jwt_secret`.
    pub(crate) fn from_parameters(raw: &RawParameters) -> Result<Self, ParameterError> {
        let entries = raw.required_array(API_KEYS, API_KEYS_EXPECTED)?;
        let invalid = |expected: String| ParameterError::Invalid { name: API_KEYS, expected };
        if entries.is_empty() {
            return Err(invalid(format!("{API_KEYS_EXPECTED}, found no key")));
        }
        let mut keys: Vec<ApiKey> = Vec::with_capacity(entries.len());
        for (index, entry) in entries.into_iter().enumerate() {
            let number = index + 1;
            // serde_json's message is dropped, because it may quote the key.
            let entry: ApiKeyEntry = serde_json::from_value(entry)
                .map_err(|_| invalid(format!("{API_KEYS_EXPECTED}, but entry {number} is malformed")))?;
            // Removes line breaks left by copy and paste.
            let key = entry.key.expose_secret().trim();
            if key.is_empty() || entry.name.trim().is_empty() {
                return Err(invalid(format!("a name and a key in every entry, found a blank one in entry {number}")));
            }
            let digest = sha256(key.as_bytes());
            if keys.iter().any(|other| other.digest == digest) {
                return Err(invalid(format!("distinct keys, found the key of an earlier entry in entry {number}")));
            }
            keys.push(ApiKey { digest, bypass: entry.bypass });
        }
        Ok(Self { keys, jwt_keys: jwt_keys(raw)? })
    }

    /// Checks the headers of a request. Returns the code of the problem if the request may not pass.
    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<Trust, Code> {
        let bypass = self.check_key(headers)?;
        // A token that is sent must be valid, even if the request has another account context.
        if let Some(token) = bearer(headers) {
            return self.check_token(token?).map(|()| Trust::Signed);
        }
        if bypass {
            return Ok(Trust::Signed);
        }
        match single_header(headers, &ACCOUNT_ID) {
            SingleHeader::Missing => Err(Code::AccountContextMissing),
            SingleHeader::Value(id) if is_account_id(id) => Ok(Trust::Anyone),
            SingleHeader::Value(_) | SingleHeader::Repeated => Err(Code::AccountIdInvalid),
        }
    }

    /// Checks the API key. Returns true if it is a bypass key.
    fn check_key(&self, headers: &HeaderMap) -> Result<bool, Code> {
        let sent = match single_header(headers, &API_KEY) {
            SingleHeader::Missing | SingleHeader::Value(b"") => return Err(Code::ApiKeyMissing),
            SingleHeader::Repeated => return Err(Code::ApiKeyInvalid),
            SingleHeader::Value(key) => sha256(key),
        };
        // Compares with every key, so that timing doesn't reveal which one matched.
        let (mut found, mut bypass) = (Choice::from(0), Choice::from(0));
        for key in &self.keys {
            let is_match = key.digest.ct_eq(&sent);
            found |= is_match;
            bypass |= is_match & Choice::from(u8::from(key.bypass));
        }
        if found.into() { Ok(bypass.into()) } else { Err(Code::ApiKeyInvalid) }
    }

    /// Checks a bearer token.
    fn check_token(&self, token: &str) -> Result<(), Code> {
        if self.jwt_keys.is_empty() {
            return Err(Code::JwtNotConfigured);
        }
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = 0;
        // There is no agreement with the issuers of tokens on an audience.
        validation.validate_aud = false;
        let decode = |key| jsonwebtoken::decode::<Claims>(token, key, &validation);
        // The first key that signed the token decides. A signature is checked before the claims.
        let is_decided = |result: &Result<_, Error>| {
            result.as_ref().err().is_none_or(|error| *error.kind() != ErrorKind::InvalidSignature)
        };
        let decided = self.jwt_keys.iter().map(decode).find(is_decided).ok_or(Code::JwtInvalid)?;
        let token = decided.map_err(|error| match error.kind() {
            ErrorKind::ExpiredSignature => Code::JwtExpired,
            _ => Code::JwtInvalid,
        })?;
        // RFC 7515 4.1.11: a token with an unsupported critical extension must be rejected, and none is supported.
        let is_early = token.claims.nbf.is_some_and(|nbf| nbf > unix_now() + NBF_LEEWAY);
        if token.header.crit.is_some() || token.claims.account_id.is_empty() || is_early {
            return Err(Code::JwtInvalid);
        }
        Ok(())
    }
}

/// Reads the parameter `jwt_secret`.
fn jwt_keys(raw: &RawParameters) -> Result<Vec<DecodingKey>, ParameterError> {
    let secrets = raw.optional_secrets(JWT_SECRET)?.unwrap_or_default();
    let count = secrets.len();
    let key = |(index, secret): (usize, &SecretString)| {
        let secret = secret.expose_secret().as_bytes();
        if secret.len() < MIN_JWT_SECRET {
            let entry = if count > 1 { format!(" in entry {}", index + 1) } else { String::new() };
            let expected = format!("at least {MIN_JWT_SECRET} bytes, found fewer{entry}");
            return Err(ParameterError::Invalid { name: JWT_SECRET, expected });
        }
        Ok(DecodingKey::from_secret(secret))
    };
    secrets.iter().enumerate().map(key).collect()
}

/// An entry of the parameter `api_keys`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ApiKeyEntry {
    name: String,
    /// Wiped when dropped.
    key: SecretString,
    #[serde(default)]
    bypass: bool,
}

/// The claims that jsonwebtoken doesn't check.
#[derive(Deserialize)]
struct Claims {
    account_id: String,
    nbf: Option<f64>,
}

/// The number of seconds by which the clock of a token's issuer may be ahead.
const NBF_LEEWAY: f64 = 60.0;

/// Returns the current Unix time in seconds.
fn unix_now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

/// The state of a header that a client may send at most once.
enum SingleHeader<'h> {
    Missing,
    /// Sent more than once, which no honest client does.
    Repeated,
    /// The value, trimmed.
    Value(&'h [u8]),
}

/// Looks up a header that a client may send at most once.
fn single_header<'h>(headers: &'h HeaderMap, name: &HeaderName) -> SingleHeader<'h> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => SingleHeader::Missing,
        (Some(value), None) => SingleHeader::Value(value.as_bytes().trim_ascii()),
        (Some(_), Some(_)) => SingleHeader::Repeated,
    }
}

/// Returns the bearer token if an `Authorization` header has that scheme. HTTP APIs join repeated headers with commas,
/// so a comma-separated list counts as several headers.
fn bearer<'h>(headers: &'h HeaderMap) -> Option<Result<&'h str, Code>> {
    const SCHEME: &[u8] = b"bearer";
    let is_bearer = |value: &[u8]| {
        let (scheme, rest) = value.split_at_checked(SCHEME.len()).unwrap_or((value, b""));
        scheme.eq_ignore_ascii_case(SCHEME) && rest.first().is_none_or(u8::is_ascii_whitespace)
    };
    let parts = |value: &'h HeaderValue| value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    let mut values = headers.get_all(header::AUTHORIZATION).iter().flat_map(parts);
    let first = values.next()?;
    let second = values.next();
    if !is_bearer(first) && !second.into_iter().chain(values).any(is_bearer) {
        return None;
    }
    // Several Authorization headers are rejected, because proxies may disagree on which one wins.
    let token =
        second.is_none().then(|| first[SCHEME.len()..].trim_ascii()).and_then(|token| str::from_utf8(token).ok());
    Some(token.ok_or(Code::JwtInvalid))
}

/// True if `id` is a valid account id.
fn is_account_id(id: &[u8]) -> bool {
    (1..=64).contains(&id.len()) && id.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

shared::unprintable!(Gate, ApiKey, ApiKeyEntry, Claims);
