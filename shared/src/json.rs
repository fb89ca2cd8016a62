//! JSON as servers send it: with a byte order mark, with half a surrogate pair, or with bytes that are not UTF-8.
//!
//! A field that isn't used must not spoil the others, so a body that doesn't parse is repaired and parsed again. A
//! character that can't be read becomes [`DAMAGE`].

use std::borrow::Cow;

use serde::de::DeserializeOwned;

/// The replacement for a character that can't be read.
pub(crate) const DAMAGE: char = char::REPLACEMENT_CHARACTER;

/// A parsed body.
pub(crate) struct Parsed<T> {
    pub(crate) value: T,
    /// True if characters were replaced, so that text may contain [`DAMAGE`].
    pub(crate) is_repaired: bool,
}

/// Returns a body without a byte order mark and the space around it.
pub(crate) fn trim(body: &[u8]) -> &[u8] {
    let body = body.trim_ascii_start();
    body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body).trim_ascii()
}

/// Parses a body. Returns `None` if it is not JSON, or not of this type.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Option<Parsed<T>> {
    let body = trim(body);
    if let Ok(value) = serde_json::from_slice(body) {
        return Some(Parsed { value, is_repaired: false });
    }
    let value = serde_json::from_str(&repair(body)?).ok()?;
    Some(Parsed { value, is_repaired: true })
}

/// Replaces each half of a surrogate pair, and what is not UTF-8. Returns `None` if there is nothing to replace.
fn repair(body: &[u8]) -> Option<String> {
    const ESCAPE: usize = r"\uXXXX".len();
    let text = String::from_utf8_lossy(body);
    let mut is_repaired = matches!(text, Cow::Owned(_));
    let mut repaired = String::with_capacity(text.len());
    let mut rest = &*text;
    while let Some(at) = rest.find('\\') {
        repaired += &rest[..at];
        let escape = &rest[at..];
        let length = match code_unit(escape) {
            Some(0xd800..=0xdbff) if matches!(code_unit(&escape[ESCAPE..]), Some(0xdc00..=0xdfff)) => 2 * ESCAPE,
            Some(0xd800..=0xdfff) => {
                is_repaired = true;
                repaired.push(DAMAGE);
                rest = &escape[ESCAPE..];
                continue;
            }
            Some(_) => ESCAPE,
            // The backslash and the character that it escapes.
            None => escape.char_indices().nth(2).map_or(escape.len(), |(index, _)| index),
        };
        repaired += &escape[..length];
        rest = &escape[length..];
    }
    repaired += rest;
    is_repaired.then_some(repaired)
}

/// Returns the UTF-16 code unit of an escape at the start of `text`.
fn code_unit(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u16::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn body_is_parsed_with_a_byte_order_mark_and_damaged_text() {
        for (body, expected, is_repaired) in [
            (&b"{}"[..], "{}", false),
            (b"\xef\xbb\xbf {} ", "{}", false),
            (b" \r\n\xef\xbb\xbf{}", "{}", false),
            (br#"{"a":"\ud83d\ude00"}"#, r#"{"a":"😀"}"#, false),
            (br#"{"a":"x\ud83d"}"#, "{\"a\":\"x\u{fffd}\"}", true),
            (br#"{"a":"\uDE00x","b":"\ud83d\ud83d\ude00"}"#, "{\"a\":\"\u{fffd}x\",\"b\":\"\u{fffd}😀\"}", true),
            (
                br#"{"a":"\\ud83d\\","b":"\ud83d\n\"\u00e9"}"#,
                "{\"a\":\"\\\\ud83d\\\\\",\"b\":\"\u{fffd}\\n\\\"é\"}",
                true,
            ),
            (b"{\"a\":\"\xff\xe9\"}", "{\"a\":\"\u{fffd}\u{fffd}\"}", true),
        ] {
            let parsed = parse::<Value>(body).unwrap();
            assert_eq!(parsed.value, serde_json::from_str::<Value>(expected).unwrap(), "{expected}");
            assert_eq!(parsed.is_repaired, is_repaired, "{expected}");
        }
        for invalid in
            [&b""[..], b"\xef\xbb\xbf", b"\xef\xbb\xbf\xef\xbb\xbf{}", b"{", b"\\", b"\\ud83d", b"\\u00", b"\xff"]
        {
            assert!(parse::<Value>(invalid).is_none(), "{invalid:?}");
        }
    }
}
