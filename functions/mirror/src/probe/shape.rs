//! The shape of a response of Novi: its envelope, the spelling of its keys, and the kinds of its values. Never a value.
//!
//! It is looser than the parsers of the product, so that the probe can say how a response differs from what they expect.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use shared::member::MemberId;

/// The fields that this product reads from a record.
pub(crate) const FIELDS: [&str; 8] =
    ["UniqueID", "Name", "FirstName", "LastName", "Email", "Active", "UnsubscribeFromEmails", "MemberStatus"];
/// The maximum depth of `data` in `data`.
const MAX_DEPTH: usize = 8;

/// The kind of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BodyKind {
    /// Nothing, or only whitespace.
    Empty,
    /// JSON `null`.
    Null,
    /// JSON `{}`.
    EmptyObject,
    /// Any other JSON object.
    Object,
    /// A JSON array.
    Array,
    /// A JSON string or boolean.
    Scalar,
    /// A web page.
    Html,
    /// Anything else.
    Text,
    /// Compressed, although that was declined.
    Compressed,
    /// More than this version accepts.
    TooLarge,
}

/// The spelling of keys, from the documented one to one that can't be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KeyStyle {
    /// As documented, such as `FirstName`.
    #[default]
    Documented,
    /// In another case, such as `firstName`.
    OtherCase,
    /// With other characters too, such as `first_name`.
    OtherSpelling,
}

/// The envelope of a page of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Envelope {
    /// `{"TotalCount":n,"Results":[…]}`.
    TotalCount,
    /// `{"Results":[…]}`.
    Results,
    /// `[…]`.
    Array,
    /// One of these under `data`.
    Data,
}

/// How often each kind of value occurs in one field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Kinds {
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) text: usize,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) blank: usize,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) null: usize,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) boolean: usize,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) number: usize,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) list: usize,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) object: usize,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) absent: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Kinds {
    /// Returns the number of records.
    pub(crate) fn total(&self) -> usize {
        self.text + self.blank + self.null + self.absent + self.not_text()
    }

    /// Returns the number of values that are neither text, nor null, nor absent.
    pub(crate) fn not_text(&self) -> usize {
        self.boolean + self.number + self.list + self.object
    }

    /// Returns the number of values that are not booleans.
    pub(crate) fn not_boolean(&self) -> usize {
        self.total() - self.boolean
    }

    fn add(&mut self, value: Option<&RawValue>) {
        let count = match value.map(|value| value.get().as_bytes()) {
            None => &mut self.absent,
            Some([b'"', inner @ .., b'"']) if inner.trim_ascii().is_empty() => &mut self.blank,
            Some([b'"', ..]) => &mut self.text,
            Some([b'n', ..]) => &mut self.null,
            Some([b't' | b'f', ..]) => &mut self.boolean,
            Some([b'[', ..]) => &mut self.list,
            Some([b'{', ..]) => &mut self.object,
            Some(_) => &mut self.number,
        };
        *count += 1;
    }
}

/// How the fields of some records look.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Fields(pub(crate) BTreeMap<&'static str, Kinds>);

impl Fields {
    /// Adds one record.
    pub(crate) fn add(&mut self, object: &Object<'_>) {
        for name in FIELDS {
            self.0.entry(name).or_default().add(object.get(name));
        }
    }

    /// Returns the kinds of a field.
    pub(crate) fn of(&self, name: &str) -> Kinds {
        self.0.get(name).copied().unwrap_or_default()
    }
}

/// A JSON object, with values that are not parsed yet.
pub(crate) struct Object<'b>(BTreeMap<String, &'b RawValue>);

impl<'b> Object<'b> {
    fn parse(json: &'b str) -> Option<Self> {
        serde_json::from_str(json).ok().map(Self)
    }

    /// Finds a documented key, in any spelling.
    fn find(&self, name: &str) -> Option<(KeyStyle, &'b RawValue)> {
        let is_other_spelling = |key: &str| {
            let letters = key.chars().filter(|c| !matches!(c, '_' | '-' | ' '));
            letters.map(|c| c.to_ascii_lowercase()).eq(name.chars().map(|c| c.to_ascii_lowercase()))
        };
        let style = |key: &str| match key {
            _ if key == name || (name == "UniqueID" && key == "UniqueId") => Some(KeyStyle::Documented),
            _ if key.eq_ignore_ascii_case(name) => Some(KeyStyle::OtherCase),
            _ if is_other_spelling(key) => Some(KeyStyle::OtherSpelling),
            _ => None,
        };
        let found = self.0.iter().filter_map(|(key, value)| Some((style(key)?, *value)));
        found.min_by_key(|(style, _)| *style)
    }

    fn get(&self, name: &str) -> Option<&'b RawValue> {
        self.find(name).map(|(_, value)| value)
    }

    /// Returns the worst spelling of the fields that are there, or `None` if there are none of them.
    pub(crate) fn key_style(&self) -> Option<KeyStyle> {
        FIELDS.iter().filter_map(|name| self.find(name)).map(|(style, _)| style).max()
    }

    /// Returns the UUID of the record or row, if there is a valid one.
    pub(crate) fn id(&self) -> Option<MemberId> {
        let text: String = serde_json::from_str(self.get("UniqueID")?.get()).ok()?;
        MemberId::parse(text.trim())
    }
}

/// The body of `GET /customers/{uuid}`.
pub(crate) enum RecordBody<'b> {
    /// An empty body, `null`, `{}`, or one of these under `data`.
    Nothing,
    /// A record.
    Record {
        object: Object<'b>,
        /// True if it is under `data`.
        is_wrapped: bool,
    },
    /// Anything else.
    Unknown,
}

/// A page of rows.
pub(crate) struct PageBody<'b> {
    pub(crate) envelope: Envelope,
    /// The spelling of the envelope's keys and of the keys of its rows.
    pub(crate) keys: KeyStyle,
    pub(crate) total: Option<u64>,
    pub(crate) rows: Vec<Object<'b>>,
}

/// Returns the kind of a body.
pub(crate) fn kind(body: &[u8]) -> BodyKind {
    let body = trim(body);
    let is_json = serde_json::from_slice::<IgnoredAny>(body).is_ok();
    match body {
        [] => BodyKind::Empty,
        b"null" => BodyKind::Null,
        [b'{', inner @ .., b'}'] if inner.trim_ascii().is_empty() => BodyKind::EmptyObject,
        [b'{', ..] if is_json => BodyKind::Object,
        [b'[', ..] if is_json => BodyKind::Array,
        [b'<', ..] => BodyKind::Html,
        [b'"' | b't' | b'f', ..] if is_json => BodyKind::Scalar,
        // A number is the text of a web server's error.
        _ => BodyKind::Text,
    }
}

/// Removes whitespace, and a byte order mark in front.
fn trim(body: &[u8]) -> &[u8] {
    let body = body.trim_ascii_start();
    body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body).trim_ascii()
}

/// Finds the record in a body.
pub(crate) fn record(body: &[u8]) -> RecordBody<'_> {
    let Ok(mut json) = std::str::from_utf8(trim(body)) else { return RecordBody::Unknown };
    for depth in 0..MAX_DEPTH {
        if matches!(kind(json.as_bytes()), BodyKind::Empty | BodyKind::Null | BodyKind::EmptyObject) {
            return RecordBody::Nothing;
        }
        let Some(object) = Object::parse(json) else { return RecordBody::Unknown };
        if object.key_style().is_some() {
            return RecordBody::Record { object, is_wrapped: depth > 0 };
        }
        let Some(data) = object.get("data") else { return RecordBody::Unknown };
        json = data.get();
    }
    RecordBody::Unknown
}

/// Finds the rows in a body.
pub(crate) fn page(body: &[u8]) -> Option<PageBody<'_>> {
    let mut json = std::str::from_utf8(trim(body)).ok()?;
    let mut is_wrapped = false;
    for _ in 0..MAX_DEPTH {
        if json.starts_with('[') {
            let (rows, keys) = rows(json)?;
            let envelope = if is_wrapped { Envelope::Data } else { Envelope::Array };
            return Some(PageBody { envelope, keys, total: None, rows });
        }
        let object = Object::parse(json)?;
        if let (Some((style, results)), total) = (object.find("Results"), object.find("TotalCount")) {
            let (rows, keys) = rows(results.get())?;
            let envelope = match total {
                _ if is_wrapped => Envelope::Data,
                Some(_) => Envelope::TotalCount,
                None => Envelope::Results,
            };
            return Some(PageBody {
                envelope,
                keys: total.map_or(keys, |(style, _)| keys.max(style)).max(style),
                total: total.and_then(|(_, total)| total.get().parse().ok()),
                rows,
            });
        }
        json = object.get("data")?.get();
        is_wrapped = true;
    }
    None
}

fn rows(json: &str) -> Option<(Vec<Object<'_>>, KeyStyle)> {
    let rows: Vec<&RawValue> = serde_json::from_str(json).ok()?;
    let rows: Vec<Object<'_>> = rows.into_iter().map(|row| Object::parse(row.get())).collect::<Option<_>>()?;
    let keys = rows.iter().filter_map(Object::key_style).max().unwrap_or_default();
    Some((rows, keys))
}

shared::unprintable!(Object<'static>, RecordBody<'static>, PageBody<'static>);

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "39120341-3c8e-47b0-9a40-45b5659b2044";

    #[test]
    fn every_body_has_a_kind() {
        for (body, expected) in [
            ("", BodyKind::Empty),
            (" \r\n", BodyKind::Empty),
            ("null", BodyKind::Null),
            ("{ }", BodyKind::EmptyObject),
            ("\u{feff}{\"a\":1}", BodyKind::Object),
            ("{\"Name\":\"\\ud800\"}", BodyKind::Object),
            ("{\"a\":", BodyKind::Text),
            ("[1]", BodyKind::Array),
            ("\"x\"", BodyKind::Scalar),
            ("404", BodyKind::Text),
            ("<!DOCTYPE html>", BodyKind::Html),
            ("404 page not found", BodyKind::Text),
        ] {
            assert_eq!(kind(body.as_bytes()), expected, "{body}");
        }
        assert_eq!(kind(b"\xff"), BodyKind::Text);
    }

    #[test]
    fn record_is_found_bare_wrapped_and_in_any_spelling() {
        for (json, wrapped, style) in [
            (r#"{"FirstName":"Ada","Email":null}"#, false, KeyStyle::Documented),
            (r#"{"UniqueId":"x","FirstName":" "}"#, false, KeyStyle::Documented),
            (r#"{"firstName":"Ada"}"#, false, KeyStyle::OtherCase),
            (r#"{"first_name":"Ada","Email":""}"#, false, KeyStyle::OtherSpelling),
            (r#"{"status":"ok","data":{"Email":"x"}}"#, true, KeyStyle::Documented),
            ("\u{feff}{\"Email\":\"x\"}", false, KeyStyle::Documented),
            (r#"{"Name":"\ud800"}"#, false, KeyStyle::Documented),
        ] {
            let RecordBody::Record { object, is_wrapped } = record(json.as_bytes()) else { panic!("{json}") };
            assert_eq!((is_wrapped, object.key_style()), (wrapped, Some(style)), "{json}");
        }
        for json in ["", "null", "{}", r#"{"data":null}"#, r#"{"data":{"data":{}}}"#] {
            assert!(matches!(record(json.as_bytes()), RecordBody::Nothing), "{json}");
        }
        let deep = format!("{}{}", "{\"data\":".repeat(100), "}".repeat(100));
        for json in [r#"{"error":"x"}"#, r#"{"Message":"x"}"#, "[]", "5", "<html>", "{", r#"{"data":[]}"#, &deep] {
            assert!(matches!(record(json.as_bytes()), RecordBody::Unknown), "{json}");
        }
    }

    #[test]
    fn page_is_found_in_every_envelope() {
        let row = format!(r#"{{"UniqueID":"{ID}","Name":"x"}}"#);
        let lower = format!(r#"{{"uniqueId":" {ID} "}}"#);
        for (json, envelope, keys, total) in [
            (format!("[{row}]"), Envelope::Array, KeyStyle::Documented, None),
            (format!(r#"{{"TotalCount":9,"Results":[{row}]}}"#), Envelope::TotalCount, KeyStyle::Documented, Some(9)),
            (format!(r#"{{"totalCount":9,"results":[{lower}]}}"#), Envelope::TotalCount, KeyStyle::OtherCase, Some(9)),
            (format!(r#"{{"Results":[{row}]}}"#), Envelope::Results, KeyStyle::Documented, None),
            (format!(r#"{{"data":[{row}]}}"#), Envelope::Data, KeyStyle::Documented, None),
            (
                format!(r#"{{"data":{{"TotalCount":1,"Results":[{row}]}}}}"#),
                Envelope::Data,
                KeyStyle::Documented,
                Some(1),
            ),
        ] {
            let page = page(json.as_bytes()).unwrap_or_else(|| panic!("{json}"));
            assert_eq!((page.envelope, page.keys, page.total), (envelope, keys, total), "{json}");
            assert!(page.rows.len() == 1 && page.rows[0].id() == MemberId::parse(ID), "{json}");
        }
        for json in ["", "{}", "null", "[1]", r#"{"Results":5}"#, r#"{"data":5}"#, "<html>"] {
            assert!(page(json.as_bytes()).is_none(), "{json}");
        }
    }

    #[test]
    fn fields_are_counted_by_kind() {
        let mut fields = Fields::default();
        for json in [
            r#"{"Email":"x","Active":true,"FirstName":null,"MemberStatus":5}"#,
            r#"{"email":" ","Active":"yes","FirstName":[],"MemberStatus":{}}"#,
        ] {
            let RecordBody::Record { object, .. } = record(json.as_bytes()) else { panic!("{json}") };
            fields.add(&object);
        }
        assert_eq!(fields.of("Email"), Kinds { text: 1, blank: 1, ..Kinds::default() });
        assert_eq!(fields.of("Active"), Kinds { boolean: 1, text: 1, ..Kinds::default() });
        assert_eq!(fields.of("FirstName"), Kinds { null: 1, list: 1, ..Kinds::default() });
        assert_eq!(fields.of("MemberStatus"), Kinds { number: 1, object: 1, ..Kinds::default() });
        assert_eq!(fields.of("LastName"), Kinds { absent: 2, ..Kinds::default() });
        assert_eq!((fields.of("Active").not_boolean(), fields.of("MemberStatus").not_text()), (1, 2));
        assert_eq!(serde_json::json!(fields.of("Email")), serde_json::json!({"text": 1, "blank": 1}));
    }
}
