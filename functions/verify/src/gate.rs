//! The gate: a valid API key *and* an account context, or nothing. It fails
//! closed, and says which of its reasons it has.

use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use shared::parameters::{ParameterError, RawParameters};
use subtle::{Choice, ConstantTimeEq};

use crate::problem::Code;

/// The header with the API key.
pub(crate) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// The header with the account's id.
pub(crate) const ACCOUNT_ID: HeaderName = HeaderName::from_static("x-account-id");

const KEYS: &str = "api_keys";
const KEYS_RIGHT: &str = r#"a JSON array of at least one {"name":"…","key":"…","bypass":false}"#;
const SECRET: &str = "jwt_secret";

/// What opens the gate.
pub(crate) struct Gate {
    keys: Vec<Key>,
    jwt: Option<DecodingKey>,
}

/// An API key that is accepted. Only its digest is kept: digests are of one
/// length, so comparing them tells nothing of the key's.
struct Key {
    digest: [u8; 32],
    bypass: bool,
}

impl Gate {
    /// Reads `api_keys` and `jwt_secret`.
    pub(crate) fn from_parameters(raw: &RawParameters) -> Result<Self, ParameterError> {
        let entries = raw.required_array(KEYS, KEYS_RIGHT)?;
        let malformed = |right: String| ParameterError::Malformed { name: KEYS, right };
        if entries.is_empty() {
            return Err(malformed(format!("it holds no key, so nobody could ask; it must hold {KEYS_RIGHT}")));
        }
        let mut keys: Vec<Key> = Vec::with_capacity(entries.len());
        for (index, entry) in entries.into_iter().enumerate() {
            let number = index + 1;
            // serde_json's message may quote the key.
            let entry: Entry = serde_json::from_value(entry)
                .map_err(|_| malformed(format!("entry {number} is not like the others should be: {KEYS_RIGHT}")))?;
            // A line break at the end of a secret is a slip of whoever pasted it.
            let key = entry.key.expose_secret().trim();
            if key.is_empty() || entry.name.trim().is_empty() {
                return Err(malformed(format!("entry {number} has a blank name or key")));
            }
            let digest = sha256(key.as_bytes());
            if keys.iter().any(|other| other.digest == digest) {
                return Err(malformed(format!("entry {number} holds a key that an earlier entry holds")));
            }
            keys.push(Key { digest, bypass: entry.bypass });
        }
        let jwt = raw.optional(SECRET)?.map(|secret| {
            if secret.len() < 32 {
                tracing::warn!("jwt_secret is shorter than the 32 bytes that RFC 7518 asks for HS256");
            }
            DecodingKey::from_secret(secret.as_bytes())
        });
        Ok(Self { keys, jwt })
    }

    /// Whether a request with these headers may pass.
    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<(), Code> {
        let bypass = self.check_key(headers)?;
        // A token that is sent must be valid, even where another context is there.
        if let Some(token) = bearer(headers) {
            return self.check_token(token?);
        }
        if bypass {
            return Ok(());
        }
        match only(headers, &ACCOUNT_ID) {
            None => Err(Code::AccountContextMissing),
            Some(Some(id)) if is_account_id(id) => Ok(()),
            Some(_) => Err(Code::AccountIdInvalid),
        }
    }

    /// Whether the key that was sent is a bypass key.
    fn check_key(&self, headers: &HeaderMap) -> Result<bool, Code> {
        let sent = match only(headers, &API_KEY) {
            None | Some(Some(b"")) => return Err(Code::ApiKeyMissing),
            Some(None) => return Err(Code::ApiKeyInvalid),
            Some(Some(key)) => sha256(key),
        };
        // Every key is compared, whichever fits: time tells nothing.
        let (mut found, mut bypass) = (Choice::from(0), Choice::from(0));
        for key in &self.keys {
            let same = key.digest.ct_eq(&sent);
            found |= same;
            bypass |= same & Choice::from(u8::from(key.bypass));
        }
        if found.into() { Ok(bypass.into()) } else { Err(Code::ApiKeyInvalid) }
    }

    fn check_token(&self, token: &str) -> Result<(), Code> {
        let key = self.jwt.as_ref().ok_or(Code::JwtNotConfigured)?;
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = 0;
        // No audience is agreed on with those who issue tokens.
        validation.validate_aud = false;
        let token = jsonwebtoken::decode::<Claims>(token, key, &validation).map_err(|error| match error.kind() {
            ErrorKind::ExpiredSignature => Code::JwtExpired,
            _ => Code::JwtInvalid,
        })?;
        // RFC 7515 4.1.11: what is marked critical and not understood must be refused, and nothing is understood.
        let is_early = token.claims.nbf.is_some_and(|nbf| nbf > unix_now() + NBF_LEEWAY);
        if token.header.crit.is_some() || token.claims.account_id.is_empty() || is_early {
            return Err(Code::JwtInvalid);
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    /// Wiped when dropped.
    key: SecretString,
    #[serde(default)]
    bypass: bool,
}

#[derive(Deserialize)]
struct Claims {
    account_id: String,
    nbf: Option<f64>,
}

/// How far ahead, in seconds, the clock of who issues tokens may be.
const NBF_LEEWAY: f64 = 60.0;

fn unix_now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

/// A header that may be sent once: `None` where it is not sent, `Some(None)`
/// where it is sent more than once, which no honest client does.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<Option<&'h [u8]>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    Some(values.next().is_none().then(|| first.as_bytes().trim_ascii()))
}

/// The bearer token, where an `Authorization` header has that scheme. HTTP APIs
/// join headers by commas, so a list counts as the headers that it was made of.
fn bearer<'h>(headers: &'h HeaderMap) -> Option<Result<&'h str, Code>> {
    const SCHEME: &[u8] = b"bearer";
    let is_bearer = |value: &[u8]| {
        let (scheme, rest) = value.split_at_checked(SCHEME.len()).unwrap_or((value, b""));
        scheme.eq_ignore_ascii_case(SCHEME) && rest.first().is_none_or(u8::is_ascii_whitespace)
    };
    let pieces = |value: &'h HeaderValue| value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    let mut values = headers.get_all(header::AUTHORIZATION).iter().flat_map(pieces);
    let first = values.next()?;
    let second = values.next();
    if !is_bearer(first) && !second.into_iter().chain(values).any(is_bearer) {
        return None;
    }
    // Two Authorization headers: whichever another party would have read, it is not this one.
    let token =
        second.is_none().then(|| first[SCHEME.len()..].trim_ascii()).and_then(|token| str::from_utf8(token).ok());
    Some(token.ok_or(Code::JwtInvalid))
}

fn is_account_id(id: &[u8]) -> bool {
    (1..=64).contains(&id.len()) && id.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

shared::unprintable!(Gate, Key, Entry, Claims);
