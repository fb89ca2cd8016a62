//! The keys that seal the ledger (parameter `ledger_key`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretBox};
use shared::parameters::{ParameterError, RawParameters};

/// The parameter's name.
pub(crate) const LEDGER_KEY: &str = "ledger_key";
/// The length of a key in bytes.
pub(super) const KEY_LENGTH: usize = 32;
/// The expected value of the parameter.
const EXPECTED: &str = "32 random bytes in base64, as `openssl rand -base64 32` prints them";

/// The keys of the ledger, newest first. The first seals, and any of them opens, so that a key can be rotated.
pub(crate) struct LedgerKeys {
    /// At least one.
    keys: Vec<SecretBox<[u8; KEY_LENGTH]>>,
}

impl LedgerKeys {
    /// Reads the parameter `ledger_key`. Returns `None` if it is absent.
    pub(crate) fn from_parameters(raw: &RawParameters) -> Result<Option<Self>, ParameterError> {
        let Some(secrets) = raw.optional_secrets(LEDGER_KEY)? else { return Ok(None) };
        let count = secrets.len();
        let key = |(index, text): (usize, &secrecy::SecretString)| {
            parse(text.expose_secret()).ok_or_else(|| {
                let entry = if count > 1 { format!(" in entry {}", index + 1) } else { String::new() };
                let expected = format!("{EXPECTED}, found something else{entry}");
                ParameterError::Invalid { name: LEDGER_KEY, expected }
            })
        };
        let keys = secrets.iter().enumerate().map(key).collect::<Result<_, _>>()?;
        Ok(Some(Self { keys }))
    }

    /// Returns the keys, newest first.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = &[u8; KEY_LENGTH]> {
        self.keys.iter().map(ExposeSecret::expose_secret)
    }
}

fn parse(text: &str) -> Option<SecretBox<[u8; KEY_LENGTH]>> {
    let bytes = Zeroizing::new(STANDARD.decode(text).ok()?);
    (bytes.len() == KEY_LENGTH)
        .then(|| SecretBox::init_with_mut(|key: &mut [u8; KEY_LENGTH]| key.copy_from_slice(&bytes)))
}

shared::unprintable!(LedgerKeys);

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const OLD: &str = "//////////////////////////////////////////8=";

    fn read(json: &serde_json::Value) -> Result<Option<LedgerKeys>, String> {
        let serde_json::Value::Object(parameters) = serde_json::json!({ LEDGER_KEY: json }) else { unreachable!() };
        LedgerKeys::from_parameters(&RawParameters::from(parameters)).map_err(|error| error.to_string())
    }

    fn last_bytes(json: &serde_json::Value) -> Vec<u8> {
        read(json).unwrap().iter().flat_map(LedgerKeys::newest_first).map(|key| key[31]).collect()
    }

    #[test]
    fn key_is_32_bytes_in_base64_or_an_array_of_such() {
        assert!(read(&serde_json::json!(null)).is_ok_and(|keys| keys.is_none()));
        assert!(read(&serde_json::json!(" \n")).is_ok_and(|keys| keys.is_none()));
        assert_eq!(last_bytes(&serde_json::json!(NEW)), [31]);
        assert_eq!(last_bytes(&serde_json::json!(format!(" {NEW}\n"))), [31]);
        assert_eq!(last_bytes(&serde_json::json!([OLD, NEW])), [255, 31]);
        assert_eq!(last_bytes(&serde_json::json!(format!("[\"{NEW}\", \"{OLD}\"]"))), [31, 255]);
    }

    #[test]
    fn other_key_is_an_error_that_does_not_quote_it() {
        let long = format!("{NEW}{NEW}");
        for (value, entry) in [
            (serde_json::json!("hush"), ""),
            (serde_json::json!("AAECAwQFBgcICQoLDA0ODw=="), ""),
            (serde_json::json!(long), ""),
            (serde_json::json!(NEW.trim_end_matches('=')), ""),
            (serde_json::json!(OLD.replace('/', "_")), ""),
            (serde_json::json!([NEW, "hush"]), " in entry 2"),
            (serde_json::json!([NEW, ""]), " in entry 2"),
        ] {
            let error = read(&value).err().unwrap();
            let expected = format!(
                "parameter ledger_key is invalid: expected 32 random bytes in base64, as `openssl rand -base64 32` \
                 prints them, found something else{entry}"
            );
            assert_eq!(error, expected);
        }
        let error = read(&serde_json::json!([])).err().unwrap();
        assert!(error.starts_with("parameter ledger_key is invalid: expected a string, or a JSON array"), "{error}");
    }
}
