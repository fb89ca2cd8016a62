//! The member record of Novi, and the identity that is made of it.
//!
//! Novi's records are loose: any field may be null, absent or `""`, fields
//! that nobody documented come and go, a key may be allowed only some of them,
//! and some answers stand under `data`. What matters here is kept apart:
//! *absent* (perhaps hidden from our key), *null*, a *value*, and *something
//! else* than the API's description says.

use std::fmt;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use unicode_segmentation::UnicodeSegmentation;
use uuid::Uuid;

/// A member's uuid. It identifies a person: it has no `Debug` and no `Display`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId(Uuid);

impl MemberId {
    /// Reads the hyphenated form, upper or lower case, and no other.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        parse_hyphenated(text).map(Self)
    }

    /// The lower-case hyphenated form, for a URL or a cache key.
    #[must_use]
    pub fn to_text(self) -> String {
        self.0.hyphenated().to_string()
    }
}

/// A uuid in its hyphenated form. `Uuid::parse_str` also takes braces, URNs and bare digits.
#[must_use]
pub fn parse_hyphenated(text: &str) -> Option<Uuid> {
    const HYPHENATED: usize = 36;
    (text.len() == HYPHENATED).then(|| Uuid::try_parse(text).ok()).flatten()
}

/// One field of a record.
#[derive(Clone, Default)]
pub enum Field {
    /// Not there. A key that is allowed only some fields looks like this.
    #[default]
    Absent,
    /// `null`.
    Null,
    /// A string, possibly empty.
    Text(String),
    /// `true` or `false`.
    Flag(bool),
    /// A number, a list or an object, where none belongs.
    Other,
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// Takes each kind of value as it comes: an untagged enum would keep a
        /// copy of it first, and there are six fields to each of thousands.
        struct Kinds;

        impl<'de> Visitor<'de> for Kinds {
            type Value = Field;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_unit<E>(self) -> Result<Field, E> {
                Ok(Field::Null)
            }

            fn visit_bool<E>(self, flag: bool) -> Result<Field, E> {
                Ok(Field::Flag(flag))
            }

            fn visit_str<E>(self, text: &str) -> Result<Field, E> {
                Ok(Field::Text(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<Field, E> {
                Ok(Field::Text(text))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Field, E> {
                Ok(Field::Other)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Field, E> {
                Ok(Field::Other)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Field, E> {
                Ok(Field::Other)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Field, A::Error> {
                IgnoredAny.visit_seq(list).map(|_| Field::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<Field, A::Error> {
                IgnoredAny.visit_map(object).map(|_| Field::Other)
            }
        }

        deserializer.deserialize_any(Kinds)
    }
}

impl Field {
    /// The trimmed text, `None` where there is none or it is blank.
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text.trim()).filter(|text| !text.is_empty()),
            _ => None,
        }
    }

    /// Whether this can be a text field: a string, `null` or nothing.
    fn is_textual(&self) -> bool {
        matches!(self, Self::Absent | Self::Null | Self::Text(_))
    }

    /// The flag, `None` where it is hidden, null or no boolean.
    #[must_use]
    pub fn flag(&self) -> Option<bool> {
        match self {
            Self::Flag(flag) => Some(*flag),
            _ => None,
        }
    }
}

/// A body that is no member record: not JSON, or JSON of another shape.
/// It tells nothing of the body, which may be personal.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body is not a member record")]
pub struct NotARecord;

/// What is read of a member record.
#[derive(Clone, Default)]
pub struct Record {
    name: Field,
    first_name: Field,
    last_name: Field,
    /// `Email`, as it is. Novi loses the plus of an address: see [`Record::email`].
    email: Field,
    /// `Active`: false marks a deleted record.
    pub active: Field,
    /// `UnsubscribeFromEmails`: true is "do not send marketing emails".
    pub unsubscribed: Field,
}

/// Who a verified member is: the display name and the address, either of which
/// Novi may not have. Serialises to the parts of the contract's answer.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The display name, such as `Ada L.`.
    pub full_name: Option<String>,
    /// The address, with the plus that Novi lost.
    pub email: Option<String>,
}

impl Record {
    /// Reads a body: `None` is an answer without a record (empty, `null`, `{}`,
    /// or one of these under `data`).
    ///
    /// # Errors
    /// [`NotARecord`] where the body is not JSON, not an object, or its `data`
    /// is none.
    pub fn parse(body: &[u8]) -> Result<Option<Self>, NotARecord> {
        if body.trim_ascii().is_empty() {
            return Ok(None);
        }
        match serde_json::from_slice::<Option<Shape>>(body).map_err(|_| NotARecord)? {
            None => Ok(None),
            Some(shape) => shape.unwrap(),
        }
    }

    /// The address: trimmed, each inner space a plus again. `None` where it is
    /// hidden, null or blank.
    #[must_use]
    pub fn email(&self) -> Option<String> {
        self.email.text().map(|text| text.replace(' ', "+"))
    }

    /// Whether the record shows an `Email` at all, blank or not: where it does
    /// not, nothing can be said of whose address this is.
    #[must_use]
    pub fn shows_email(&self) -> bool {
        !matches!(self.email, Field::Absent | Field::Flag(_) | Field::Other)
    }

    /// The display name: first name, space, first character of the last name,
    /// full stop. Where either is blank: the whole `Name`; where that is blank
    /// too: the one name that is there.
    #[must_use]
    pub fn display_name(&self) -> Option<String> {
        match (self.first_name.text(), self.last_name.text()) {
            (Some(first), Some(last)) => {
                let initial = last.graphemes(true).next().unwrap_or_default();
                Some(format!("{first} {initial}."))
            }
            (first, last) => self.name.text().or(first).or(last).map(str::to_owned),
        }
    }

    /// Whether nothing that anybody asks for may be hidden: the flags are flags,
    /// and first name, last name and address are there. A list of records may
    /// show less of each than the record itself does, and as `null`.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let texts = [&self.first_name, &self.last_name, &self.email];
        texts.into_iter().all(|field| field.text().is_some())
            && self.active.flag().is_some()
            && self.unsubscribed.flag().is_some()
    }

    /// The identity of a member, `None` where the record is none of a member: it
    /// has no identity or, where that is required, is not active.
    ///
    /// # Errors
    /// See [`Record::identity`].
    pub fn verified(&self, require_active: bool) -> Result<Option<Identity>, NotARecord> {
        if require_active && self.active.flag() == Some(false) { Ok(None) } else { self.identity() }
    }

    /// The identity, `None` where there is no name and no address.
    ///
    /// # Errors
    /// [`NotARecord`] where a name or the address is a number, a flag, a list
    /// or an object.
    pub fn identity(&self) -> Result<Option<Identity>, NotARecord> {
        if ![&self.name, &self.first_name, &self.last_name, &self.email].into_iter().all(Field::is_textual) {
            return Err(NotARecord);
        }
        let identity = Identity { full_name: self.display_name(), email: self.email() };
        Ok((identity.full_name.is_some() || identity.email.is_some()).then_some(identity))
    }
}

/// A record among others, as a list of them has it.
pub struct Row {
    /// Whose it is, `None` where there is no usable uuid.
    pub id: Option<MemberId>,
    /// The record.
    pub record: Record,
}

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Shape::deserialize(deserializer).map(|shape| Self { id: shape.id, record: shape.record })
    }
}

/// An object as it arrives: a record, or an envelope around one.
#[derive(Default)]
struct Shape {
    /// `UniqueID` or `UniqueId`; both spellings occur.
    id: Option<MemberId>,
    record: Record,
    /// How many fields there are, known or not.
    fields: usize,
    /// Whether one of them is the record's own.
    is_record: bool,
    /// Whether there is a `Message`, as errors have it.
    is_error: bool,
    data: Option<Data>,
}

/// What is known of an object's keys. Records have some thirty more, which are
/// passed over without being kept.
#[derive(Deserialize)]
#[serde(field_identifier)]
enum Key {
    Name,
    FirstName,
    LastName,
    Email,
    Active,
    UnsubscribeFromEmails,
    #[serde(rename = "data")]
    Data,
    #[serde(rename = "UniqueID", alias = "UniqueId")]
    UniqueId,
    Message,
    #[serde(other)]
    Unknown,
}

/// What stands under `data`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Data {
    Object(Box<Shape>),
    Null,
    Other(IgnoredAny),
}

impl Shape {
    /// Unwraps the envelope, if it is one.
    fn unwrap(self) -> Result<Option<Record>, NotARecord> {
        match self.data {
            _ if self.is_record => Ok(Some(self.record)),
            // How Novi words an error. An error is no answer, whatever its status.
            _ if self.is_error => Err(NotARecord),
            Some(Data::Object(inner)) => inner.unwrap(),
            Some(Data::Null) => Ok(None),
            Some(Data::Other(_)) => Err(NotARecord),
            None => Ok((self.fields > 0).then_some(self.record)),
        }
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShapeVisitor;
        impl<'de> Visitor<'de> for ShapeVisitor {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a member record")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
                let mut shape = Shape::default();
                while let Some(key) = map.next_key()? {
                    shape.fields += 1;
                    let field = match key {
                        Key::Name => &mut shape.record.name,
                        Key::FirstName => &mut shape.record.first_name,
                        Key::LastName => &mut shape.record.last_name,
                        Key::Email => &mut shape.record.email,
                        Key::Active => &mut shape.record.active,
                        Key::UnsubscribeFromEmails => &mut shape.record.unsubscribed,
                        Key::Data => {
                            shape.data = Some(map.next_value()?);
                            continue;
                        }
                        Key::UniqueId => {
                            shape.is_record = true;
                            let id: Field = map.next_value()?;
                            shape.id = id.text().and_then(MemberId::parse).or(shape.id);
                            continue;
                        }
                        Key::Message | Key::Unknown => {
                            shape.is_error |= matches!(key, Key::Message);
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    *field = map.next_value()?;
                    shape.is_record = true;
                }
                Ok(shape)
            }
        }
        deserializer.deserialize_map(ShapeVisitor)
    }
}

crate::unprintable!(MemberId, Field, Record, Identity, Row);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(json: &str) -> Record {
        match Record::parse(json.as_bytes()) {
            Ok(Some(record)) => record,
            Ok(None) => panic!("no record in {json}"),
            Err(e) => panic!("{e}: {json}"),
        }
    }

    #[test]
    fn the_display_name_by_every_rule() {
        for (json, expected) in [
            (r#"{"FirstName":"Ada","LastName":"Lovelace"}"#, Some("Ada L.")),
            (r#"{"FirstName":" Ada ","LastName":"\tLovelace "}"#, Some("Ada L.")),
            (r#"{"FirstName":"Ada","LastName":"Lovelace","Name":"Somebody Else"}"#, Some("Ada L.")),
            (r#"{"FirstName":"Anne Marie","LastName":"van der Berg"}"#, Some("Anne Marie v.")),
            // A whole grapheme: a letter with its combining accent, a syllable, a conjunct, an emoji family.
            ("{\"FirstName\":\"Zoe\u{308}\",\"LastName\":\"E\u{301}tienne\"}", Some("Zoe\u{308} E\u{301}.")),
            (r#"{"FirstName":"Zo\u0065\u0308","LastName":"\u0045\u0301tienne"}"#, Some("Zoe\u{308} E\u{301}.")),
            (r#"{"FirstName":"民","LastName":"山田"}"#, Some("民 山.")),
            (r#"{"FirstName":"지은","LastName":"\u1100\u1161\u11a8나"}"#, Some("지은 \u{1100}\u{1161}\u{11a8}.")),
            (r#"{"FirstName":"Мария","LastName":"Щукина"}"#, Some("Мария Щ.")),
            (r#"{"FirstName":"ليلى","LastName":"حسن"}"#, Some("ليلى ح.")),
            (r#"{"FirstName":"A","LastName":"👩‍👩‍👧x"}"#, Some("A 👩‍👩‍👧.")),
            (r#"{"FirstName":"A","LastName":"🇸🇪x"}"#, Some("A 🇸🇪.")),
            // Either blank: the whole name; that blank too: the one that is there.
            (r#"{"FirstName":"","LastName":"Lovelace","Name":" Ada Lovelace "}"#, Some("Ada Lovelace")),
            (r#"{"FirstName":"Ada","LastName":"\u00a0 ","Name":"Dr Ada"}"#, Some("Dr Ada")),
            (r#"{"FirstName":null,"LastName":null,"Name":"Clinic of Ada"}"#, Some("Clinic of Ada")),
            (r#"{"FirstName":"Ada","LastName":null,"Name":null}"#, Some("Ada")),
            (r#"{"FirstName":" ","LastName":" Lovelace","Name":""}"#, Some("Lovelace")),
            (r#"{"FirstName":"","LastName":null,"Email":"a@b.org"}"#, None),
        ] {
            assert_eq!(record(json).display_name().as_deref(), expected, "{json}");
        }
    }

    #[test]
    fn the_address_by_every_rule() {
        for (json, expected) in [
            (r#"{"Email":"ada@example.org"}"#, Some("ada@example.org")),
            (r#"{"Email":" ada@example.org\r\n"}"#, Some("ada@example.org")),
            (r#"{"Email":"ada lists@example.org"}"#, Some("ada+lists@example.org")),
            (r#"{"Email":" ada a b@example.org "}"#, Some("ada+a+b@example.org")),
            (r#"{"Email":"ada  b@example.org"}"#, Some("ada++b@example.org")),
            (r#"{"Email":"Ada+Lists@Example.org"}"#, Some("Ada+Lists@Example.org")),
            (r#"{"Email":"","Name":"x"}"#, None),
            (r#"{"Email":"  ","Name":"x"}"#, None),
            (r#"{"Email":null,"Name":"x"}"#, None),
            (r#"{"Name":"x"}"#, None),
        ] {
            assert_eq!(record(json).email().as_deref(), expected, "{json}");
        }
    }

    #[test]
    fn a_record_stands_bare_or_under_data() {
        for json in [
            r#"{"Name":"Ada"}"#,
            r#"{"data":{"Name":"Ada"}}"#,
            r#"{"data":{"data":{"Name":"Ada"}}}"#,
            r#"{"status":"ok","data":{"Name":"Ada","Email":null}}"#,
            r#"{"data":[1],"Name":"Ada"}"#,
            r#"{"Unknown":{"Name":"Eve"},"Name":"Ada"}"#,
        ] {
            assert_eq!(record(json).display_name().as_deref(), Some("Ada"), "{json}");
        }
    }

    #[test]
    fn no_record_is_told_from_no_sense() {
        for nothing in ["", " \r\n", "null", "{}", r#"{"data":null}"#, r#"{"data":{}}"#, r#"{"data":{"data":null}}"#] {
            assert!(matches!(Record::parse(nothing.as_bytes()), Ok(None)), "{nothing:?}");
        }
        for nonsense in [
            r#"{"Message":"An error has occurred."}"#,
            r#"{"Message":"An error has occurred.","data":null}"#,
            "<html>",
            "[]",
            "[{}]",
            "\"Ada\"",
            "1",
            "true",
            "{",
            "{\"Name\":\"Ada\"} x",
            r#"{"data":[]}"#,
            r#"{"data":"x"}"#,
            r#"{"Name":"\ud800"}"#,
        ] {
            assert!(matches!(Record::parse(nonsense.as_bytes()), Err(NotARecord)), "{nonsense}");
        }
        assert!(matches!(Record::parse(b"{\"Name\":\"\xff\"}"), Err(NotARecord)));
        let deep = format!("{}{}", "{\"data\":".repeat(10_000), "}".repeat(10_000));
        assert!(matches!(Record::parse(deep.as_bytes()), Err(NotARecord)));
    }

    #[test]
    fn identity_needs_a_name_or_an_address() {
        for json in [
            r#"{"Name":""}"#,
            r#"{"Name":null,"Email":" ","FirstName":"","LastName":null}"#,
            r#"{"UniqueID":"39120341-3c8e-47b0-9a40-45b5659b2044","Active":true}"#,
            r#"{"Unknown":"field"}"#,
        ] {
            assert!(matches!(record(json).identity(), Ok(None)), "{json}");
        }
        for json in [r#"{"Email":5}"#, r#"{"Name":{}}"#, r#"{"FirstName":true,"Email":"a@b.org"}"#] {
            assert!(matches!(record(json).identity(), Err(NotARecord)), "{json}");
        }
        let identity = record(r#"{"Email":"a@b.org"}"#).identity();
        assert!(matches!(identity, Ok(Some(Identity { full_name: None, email: Some(_) }))));
    }

    #[test]
    fn a_uuid_is_hyphenated_in_either_case() {
        let lower = MemberId::parse("39120341-3c8e-47b0-9a40-45b5659b2044").map(MemberId::to_text);
        assert_eq!(lower.as_deref(), Some("39120341-3c8e-47b0-9a40-45b5659b2044"));
        assert_eq!(MemberId::parse("39120341-3C8E-47B0-9A40-45B5659B2044").map(MemberId::to_text), lower);
        for wrong in [
            "",
            "39120341",
            "391203413c8e47b09a4045b5659b2044",
            "{39120341-3c8e-47b0-9a40-45b5659b2044}",
            "urn:uuid:39120341-3c8e-47b0-9a40-45b5659b2044",
            "39120341-3c8e-47b0-9a40-45b5659b204g",
            "391203413-c8e-47b0-9a40-45b5659b2044",
            " 39120341-3c8e-47b0-9a40-45b5659b2044",
            "３9120341-3c8e-47b0-9a40-45b5659b20",
        ] {
            assert!(MemberId::parse(wrong).is_none(), "{wrong}");
        }
    }

    proptest! {
        /// Whatever bytes come, reading ends in a record, none, or an error.
        #[test]
        fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Some(record)) = Record::parse(&body) {
                let _ = record.identity();
            }
        }

        /// The last name never shows more than its first character.
        #[test]
        fn a_last_name_is_never_shown(first in "\\PC{1,8}", last in "[a-z]{2,20}") {
            prop_assume!(!first.trim().is_empty());
            let json = serde_json::json!({"FirstName": first, "LastName": last, "Name": "never this"}).to_string();
            let shown = record(&json).display_name().unwrap_or_default();
            prop_assert_eq!(shown, format!("{} {}.", first.trim(), &last[..1]));
        }
    }
}
