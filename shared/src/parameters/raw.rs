//! Parameters before they are parsed.

use std::hash::{BuildHasher, RandomState};

use secrecy::SecretString;
use secrecy::zeroize::Zeroize;
use serde_json::{Map, Value};
use url::Url;

use super::error::ParameterError;

/// Parameters by name, before they are parsed. They include every secret and are wiped when dropped.
pub struct RawParameters(Map<String, Value>);

impl Drop for RawParameters {
    fn drop(&mut self) {
        self.0.values_mut().for_each(wipe);
    }
}

/// The entries of an array with secrets, which are wiped when dropped.
#[derive(serde::Deserialize)]
struct SecretArray(Vec<Value>);

impl Drop for SecretArray {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(wipe);
    }
}

/// Overwrites every string in a value.
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
    /// Returns a hash of all names and values, to detect changes without keeping a copy.
    pub(super) fn fingerprint(&self, hasher: &RandomState) -> u64 {
        hasher.hash_one(&self.0)
    }

    /// Returns a required parameter.
    ///
    /// # Errors
    /// Fails if the parameter is missing, blank or not a string.
    pub fn required(&self, name: &'static str, expected: &'static str) -> Result<&str, ParameterError> {
        self.optional(name)?.ok_or(ParameterError::Missing { name, expected })
    }

    /// Returns an optional parameter. A blank one counts as absent.
    ///
    /// # Errors
    /// Fails if the parameter is not a string.
    pub fn optional(&self, name: &'static str) -> Result<Option<&str>, ParameterError> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(without_bom(text).trim()).filter(|text| !text.is_empty())),
            Some(_) => Err(ParameterError::Invalid { name, expected: "a string".to_owned() }),
        }
    }

    /// Returns the values of an optional secret: one string, or a JSON array of
    /// strings, either plain or as JSON text. A blank parameter counts as absent.
    /// Text that begins with `[` is always an array. Spaces around each value are removed.
    ///
    /// # Errors
    /// Fails if the parameter is neither, or if the array is empty.
    pub fn optional_secrets(&self, name: &'static str) -> Result<Option<Vec<SecretString>>, ParameterError> {
        let invalid = |found: &str| {
            let expected = format!("a string, or a JSON array of strings{found}");
            ParameterError::Invalid { name, expected }
        };
        let parsed;
        let items = match self.0.get(name) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Array(items)) => items,
            Some(Value::String(text)) => {
                let text = without_bom(text).trim();
                if text.is_empty() {
                    return Ok(None);
                }
                if !text.starts_with('[') {
                    return Ok(Some(vec![text.into()]));
                }
                // serde_json's message may quote the text. The position does not.
                parsed = serde_json::from_str::<SecretArray>(text).map_err(|e| {
                    invalid(&format!(", found invalid JSON (line {}, column {})", e.line(), e.column()))
                })?;
                &parsed.0
            }
            Some(_) => return Err(invalid("")),
        };
        if items.is_empty() {
            return Err(invalid(", found an empty array"));
        }
        let secret = |(index, item): (usize, &Value)| match item {
            Value::String(text) => Ok(without_bom(text).trim().into()),
            _ => Err(invalid(&format!(", found another type in entry {}", index + 1))),
        };
        items.iter().enumerate().map(secret).collect::<Result<_, _>>().map(Some)
    }

    /// Returns a parameter that must be a JSON array, either plain or as JSON
    /// text. An array that does not fit into one parameter continues in
    /// `{name}/1`, `{name}/2`, …
    ///
    /// # Errors
    /// Fails if the parameter, or a part of it, is missing or not an array. A part is also missing if there is a later
    /// one, or one whose name isn't a number.
    pub fn required_array(&self, name: &'static str, expected: &'static str) -> Result<Vec<Value>, ParameterError> {
        let mut items = self.array(name, name, expected)?;
        let is_part = |key: &&String| key.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'));
        for number in 1..=self.0.keys().filter(is_part).count() {
            let key = format!("{name}/{number}");
            if !self.0.contains_key(&key) {
                let expected =
                    format!("{expected} in all of its parts, which are numbered from 1, but {key} is missing");
                return Err(ParameterError::Invalid { name, expected });
            }
            items.extend(self.array(&key, name, expected)?);
        }
        Ok(items)
    }

    fn array(&self, key: &str, name: &'static str, expected: &'static str) -> Result<Vec<Value>, ParameterError> {
        let invalid = |found: &str| {
            let part = if key == name { String::new() } else { format!(" in {key}") };
            ParameterError::Invalid { name, expected: format!("{expected}{part}, found {found}") }
        };
        let value = match self.0.get(key) {
            None | Some(Value::Null) => return Err(ParameterError::Missing { name, expected }),
            // serde_json's message may quote the text. The position does not.
            Some(Value::String(text)) => serde_json::from_str(without_bom(text))
                .map_err(|e| invalid(&format!("invalid JSON (line {}, column {})", e.line(), e.column())))?,
            Some(plain) => plain.clone(),
        };
        match value {
            Value::Array(items) => Ok(items),
            _ => Err(invalid("a different JSON type")),
        }
    }

    /// Returns a parameter that must be a base URL: `https://`, or `http://` to
    /// loopback, or `http://` to any host with `ALLOW_PLAIN_HTTP=true`.
    ///
    /// # Errors
    /// Fails if the parameter is missing or not such a URL.
    pub fn required_url(
        &self,
        name: &'static str,
        expected: &'static str,
        allow_plain_http: bool,
    ) -> Result<Url, ParameterError> {
        let invalid = |expected: &str| ParameterError::Invalid { name, expected: expected.to_owned() };
        let url = Url::parse(self.required(name, expected)?)
            .map_err(|e| invalid(&format!("{expected}, found an invalid URL ({e})")))?;
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
            return Err(invalid("a URL without user, password, query or fragment"));
        }
        match url.scheme() {
            "https" => {}
            "http" if is_loopback(&url) => {}
            "http" if allow_plain_http => {
                tracing::warn!(parameter = name, "plain HTTP to a remote host exposes the credentials");
            }
            "http" => {
                return Err(invalid(
                    "an https:// URL (http:// is only accepted for loopback, or with ALLOW_PLAIN_HTTP=true)",
                ));
            }
            _ => return Err(invalid("an https:// URL")),
        }
        Ok(url)
    }
}

/// Returns the text without the byte order mark that some editors put in front of it.
fn without_bom(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// True if a URL leads to this host, so that plain HTTP exposes nothing.
#[must_use]
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        // Only in URLs for the web are addresses told from names.
        Some(url::Host::Domain(name)) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

crate::unprintable!(RawParameters, SecretArray);

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> RawParameters {
        match serde_json::from_str(json).unwrap() {
            Value::Object(map) => map.into(),
            _ => panic!("expected an object"),
        }
    }

    fn url_error(value: &str, allow_plain_http: bool) -> Option<String> {
        let raw = raw(&serde_json::json!({ "u": value }).to_string());
        raw.required_url("u", "the root", allow_plain_http).err().map(|e| e.to_string())
    }

    #[test]
    fn url_must_be_https_or_loopback() {
        for valid in ["https://www.example.org/api", "http://127.0.0.1:8000", "http://[::1]/x", "http://localhost/"] {
            assert_eq!(url_error(valid, false), None, "{valid}");
        }
        for invalid in [
            "http://www.example.org/api",
            "http://127.0.0.1.example.org",
            "ftp://x",
            "www.example.org",
            "https://u:p@x/",
            "https://x/?k=v",
        ] {
            let text = url_error(invalid, false).unwrap_or_default();
            assert!(text.starts_with("parameter u"), "{invalid}: {text}");
            assert!(!text.contains(invalid), "{text}");
        }
        assert_eq!(url_error("http://10.0.0.7/api", true), None);
    }

    #[test]
    fn byte_order_mark_is_skipped() {
        let raw = raw(
            "{\"s\":\"\u{feff} x\",\"blank\":\"\u{feff}\",\"a\":\"\u{feff}[1]\",\"a/1\":\"\u{feff}\\n[2]\",\"u\":\"\u{feff}https://x/\"}",
        );
        assert_eq!(raw.optional("s").unwrap(), Some("x"));
        assert_eq!(raw.optional("blank").unwrap(), None);
        assert_eq!(raw.required_array("a", "numbers").unwrap().len(), 2);
        assert_eq!(raw.required_url("u", "the root", false).unwrap().as_str(), "https://x/");
    }

    #[test]
    fn secret_may_be_one_string_or_an_array_of_them() {
        use secrecy::ExposeSecret;
        let read = |json: &str| {
            let secrets = raw(json).optional_secrets("s")?.unwrap_or_default();
            Ok::<_, ParameterError>(secrets.iter().map(|secret| secret.expose_secret().to_owned()).collect::<Vec<_>>())
        };
        for (json, expected) in [
            ("{}", &[][..]),
            (r#"{"s":null}"#, &[]),
            ("{\"s\":\"\u{feff} \\n\"}", &[]),
            ("{\"s\":\"\u{feff} a b\\n\"}", &["a b"]),
            (r#"{"s":"a[1]"}"#, &["a[1]"]),
            (r#"{"s":["a"," b\n",""]}"#, &["a", "b", ""]),
            ("{\"s\":\"\u{feff}\\n[\\\"a\\\", \\\"b\\\"] \"}", &["a", "b"]),
        ] {
            assert_eq!(read(json).unwrap(), expected, "{json}");
        }
        for json in [
            r#"{"s":5}"#,
            r#"{"s":{"hush":1}}"#,
            r#"{"s":"[hush"}"#,
            r#"{"s":"[\"hush\"] hush"}"#,
            r#"{"s":[]}"#,
            r#"{"s":"[]"}"#,
            r#"{"s":["hush",5]}"#,
            r#"{"s":"[[\"hush\"]]"}"#,
        ] {
            let text = read(json).unwrap_err().to_string();
            assert!(
                text.starts_with("parameter s is invalid: expected a string, or a JSON array of strings"),
                "{text}"
            );
            assert!(!text.contains("hush"), "{text}");
        }
    }

    #[test]
    fn gap_between_the_parts_of_an_array_is_an_error_that_names_it() {
        let read = |json: &str| raw(json).required_array("a", "numbers").map(|items| items.len());
        assert_eq!(read(r#"{"a":[1],"a/2":"[3]","a/1":"[2]","ab/7":"[]"}"#).unwrap(), 3);
        let parts: Vec<String> = (1..=12).map(|n| format!(r#""a/{n}":"[{n}]""#)).collect();
        assert_eq!(read(&format!(r#"{{"a":[0],{}}}"#, parts.join(","))).unwrap(), 13);
        for (json, gap) in [
            (r#"{"a":[1],"a/1":"[2]","a/3":"[4]"}"#, "a/2"),
            (r#"{"a":[1],"a/2":"[2]"}"#, "a/1"),
            (r#"{"a":[1],"a/0":"[2]"}"#, "a/1"),
            (r#"{"a":[1],"a/1":"[2]","a/2b":"[3]"}"#, "a/2"),
            (r#"{"a":[1],"a/1":"[2]","a/01":"[3]"}"#, "a/2"),
        ] {
            let error = read(json).unwrap_err().to_string();
            assert!(error.contains(&format!("but {gap} is missing")), "{json}: {error}");
        }
    }

    #[test]
    fn array_may_be_plain_or_text_and_errors_never_quote_it() {
        for valid in [r#"{"a":[1,2]}"#, r#"{"a":"[1,2]"}"#] {
            assert_eq!(raw(valid).required_array("a", "numbers").unwrap().len(), 2);
        }
        for invalid in [r#"{"a":"secret-thing"}"#, r#"{"a":"\"secret-thing\""}"#, r#"{"a":{"secret-thing":1}}"#] {
            let text = raw(invalid).required_array("a", "numbers").unwrap_err().to_string();
            assert!(text.starts_with("parameter a is invalid") && !text.contains("secret"), "{text}");
        }
        assert!(raw("{}").required_array("a", "numbers").unwrap_err().to_string().contains("missing"));
    }
}
