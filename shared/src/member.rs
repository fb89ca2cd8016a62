//! Novi's member record, and the identity that is derived from it.
//!
//! Novi's records are loosely structured: any field may be null, absent or
//! `""`, undocumented fields come and go, a key may be allowed to read only
//! some of the fields, and some responses wrap the record in `data`. This
//! module distinguishes the cases that matter: a field is *absent* (perhaps
//! hidden from our key), *null*, a *value*, or *something else* than the API's
//! documentation says.

use std::fmt;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use unicode_segmentation::UnicodeSegmentation;
use uuid::Uuid;

/// A member's UUID. It has no `Debug` and no `Display`, because it identifies a person.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId(Uuid);

impl MemberId {
    /// Parses the hyphenated form, in upper or lower case, and no other form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        parse_hyphenated(text).map(Self)
    }

    /// Returns the lowercase hyphenated form, for a URL or a cache key.
    #[must_use]
    pub fn to_text(self) -> String {
        self.0.hyphenated().to_string()
    }
}

/// Parses a UUID in its hyphenated form. `Uuid::parse_str` also accepts braces, URNs and bare digits.
#[must_use]
pub fn parse_hyphenated(text: &str) -> Option<Uuid> {
    const HYPHENATED_LENGTH: usize = 36;
    (text.len() == HYPHENATED_LENGTH).then(|| Uuid::try_parse(text).ok()).flatten()
}

/// One field of a record.
#[derive(Clone, Default)]
pub enum Field {
    /// The field is missing, for example because the key may not read it.
    #[default]
    Absent,
    /// `null`.
    Null,
    /// A string, possibly empty.
    Text(String),
    /// `true` or `false`.
    Flag(bool),
    /// An unexpected number, list or object.
    Other,
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// Visits each kind of value directly. An untagged enum would buffer a
        /// copy of it first, for each of six fields of thousands of records.
        struct FieldVisitor;

        impl<'de> Visitor<'de> for FieldVisitor {
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

        deserializer.deserialize_any(FieldVisitor)
    }
}

impl Field {
    /// Returns the trimmed text, or `None` if the field is blank or not text.
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text.trim()).filter(|text| !text.is_empty()),
            _ => None,
        }
    }

    /// True if this is valid as a text field: a string, `null` or absent.
    fn is_textual(&self) -> bool {
        matches!(self, Self::Absent | Self::Null | Self::Text(_))
    }

    /// Returns the flag, or `None` if it is hidden, null or not a boolean.
    #[must_use]
    pub fn flag(&self) -> Option<bool> {
        match self {
            Self::Flag(flag) => Some(*flag),
            _ => None,
        }
    }
}

/// An error for a body that is not a member record: it is not JSON, or its JSON
/// is structured differently. The error doesn't quote the body, which may be personal.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body is not a member record")]
pub struct NotARecord;

/// The fields that are read from a member record.
#[derive(Clone, Default)]
pub struct Record {
    name: Field,
    first_name: Field,
    last_name: Field,
    /// `Email`, unchanged. Novi loses the plus of an address: see [`Record::email`].
    email: Field,
    /// `Active`. False marks a deleted record.
    pub active: Field,
    /// `UnsubscribeFromEmails`. True means "do not send marketing emails".
    pub unsubscribed: Field,
}

/// The identity of a verified member: the display name and the email address.
/// Novi may lack either of them. Serializes to the fields of the API's response.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The display name, such as `Ada L.`.
    pub full_name: Option<String>,
    /// The email address, with the plus that Novi lost.
    pub email: Option<String>,
}

impl Record {
    /// Parses a body. Returns `None` for a response without a record: an empty
    /// body, `null`, `{}`, or `null` or `{}` under `data`.
    ///
    /// # Errors
    /// Returns [`NotARecord`] if the body is not JSON or not an object, if its
    /// `data` is not an object, or if it is one of Novi's error messages.
    pub fn parse(body: &[u8]) -> Result<Option<Self>, NotARecord> {
        if body.trim_ascii().is_empty() {
            return Ok(None);
        }
        match serde_json::from_slice::<Option<Envelope>>(body).map_err(|_| NotARecord)? {
            None => Ok(None),
            Some(envelope) => envelope.unwrap(),
        }
    }

    /// Returns the email address, trimmed and with each inner space replaced by
    /// a plus. Returns `None` if it is hidden, null or blank.
    #[must_use]
    pub fn email(&self) -> Option<String> {
        self.email.text().map(|text| text.replace(' ', "+"))
    }

    /// True if the record shows an `Email`, blank or not. If it doesn't, no
    /// address can be matched to this record or ruled out.
    #[must_use]
    pub fn shows_email(&self) -> bool {
        !matches!(self.email, Field::Absent | Field::Flag(_) | Field::Other)
    }

    /// Returns the display name: first name, space, first character of the last
    /// name, period. If either is blank, returns the whole `Name`. If that is
    /// blank too, returns the first or last name, whichever is not blank.
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

    /// True if every field that callers use is certainly visible: the flags are
    /// booleans, and first name, last name and email address are not blank. A
    /// list of records may show fewer fields than the single record does, with
    /// `null` for the hidden ones.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let texts = [&self.first_name, &self.last_name, &self.email];
        texts.into_iter().all(|field| field.text().is_some())
            && self.active.flag().is_some()
            && self.unsubscribed.flag().is_some()
    }

    /// Returns the identity of a member. Returns `None` if the record isn't a
    /// member's: it has no identity, or it is inactive and `require_active` is set.
    ///
    /// # Errors
    /// See [`Record::identity`].
    pub fn verified(&self, require_active: bool) -> Result<Option<Identity>, NotARecord> {
        if require_active && self.active.flag() == Some(false) { Ok(None) } else { self.identity() }
    }

    /// Returns the identity, or `None` if there is neither a name nor an email address.
    ///
    /// # Errors
    /// Returns [`NotARecord`] if a name or the email address is a number, a
    /// boolean, a list or an object.
    pub fn identity(&self) -> Result<Option<Identity>, NotARecord> {
        if ![&self.name, &self.first_name, &self.last_name, &self.email].into_iter().all(Field::is_textual) {
            return Err(NotARecord);
        }
        let identity = Identity { full_name: self.display_name(), email: self.email() };
        Ok((identity.full_name.is_some() || identity.email.is_some()).then_some(identity))
    }
}

/// A record in a list of records.
pub struct Row {
    /// The member's UUID, or `None` if there is no valid one.
    pub id: Option<MemberId>,
    /// The record.
    pub record: Record,
}

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Envelope::deserialize(deserializer).map(|envelope| Self { id: envelope.id, record: envelope.record })
    }
}

/// An object of a response: a record, or an envelope around one.
#[derive(Default)]
struct Envelope {
    /// `UniqueID` or `UniqueId`. Both spellings occur.
    id: Option<MemberId>,
    record: Record,
    /// The number of fields, known or not.
    fields: usize,
    /// True if at least one of them is a field of a record.
    is_record: bool,
    /// True if there is a `Message`, as in Novi's errors.
    is_error: bool,
    data: Option<Data>,
}

/// The known keys of an object. Records have about thirty more, which are
/// skipped without being copied.
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

/// The value of `data`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Data {
    Object(Box<Envelope>),
    Null,
    Other(IgnoredAny),
}

impl Envelope {
    /// Returns the record, which may be nested in further envelopes.
    fn unwrap(self) -> Result<Option<Record>, NotARecord> {
        match self.data {
            _ if self.is_record => Ok(Some(self.record)),
            // This is the format of Novi's errors. An error is not a record, even with status 200.
            _ if self.is_error => Err(NotARecord),
            Some(Data::Object(inner)) => inner.unwrap(),
            Some(Data::Null) => Ok(None),
            Some(Data::Other(_)) => Err(NotARecord),
            None => Ok((self.fields > 0).then_some(self.record)),
        }
    }
}

impl<'de> Deserialize<'de> for Envelope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EnvelopeVisitor;
        impl<'de> Visitor<'de> for EnvelopeVisitor {
            type Value = Envelope;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a member record")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Envelope, A::Error> {
                let mut envelope = Envelope::default();
                while let Some(key) = map.next_key()? {
                    envelope.fields += 1;
                    let field = match key {
                        Key::Name => &mut envelope.record.name,
                        Key::FirstName => &mut envelope.record.first_name,
                        Key::LastName => &mut envelope.record.last_name,
                        Key::Email => &mut envelope.record.email,
                        Key::Active => &mut envelope.record.active,
                        Key::UnsubscribeFromEmails => &mut envelope.record.unsubscribed,
                        Key::Data => {
                            envelope.data = Some(map.next_value()?);
                            continue;
                        }
                        Key::UniqueId => {
                            envelope.is_record = true;
                            let id: Field = map.next_value()?;
                            envelope.id = id.text().and_then(MemberId::parse).or(envelope.id);
                            continue;
                        }
                        Key::Message | Key::Unknown => {
                            envelope.is_error |= matches!(key, Key::Message);
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    *field = map.next_value()?;
                    envelope.is_record = true;
                }
                Ok(envelope)
            }
        }
        deserializer.deserialize_map(EnvelopeVisitor)
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
            Ok(None) => panic!("expected a record: {json}"),
            Err(e) => panic!("{e}: {json}"),
        }
    }

    #[test]
    fn display_name_follows_every_rule() {
        for (json, expected) in [
            (r#"{"FirstName":"Ada","LastName":"Lovelace"}"#, Some("Ada L.")),
            (r#"{"FirstName":" Ada ","LastName":"\tLovelace "}"#, Some("Ada L.")),
            (r#"{"FirstName":"Ada","LastName":"Lovelace","Name":"Someone Else"}"#, Some("Ada L.")),
            (r#"{"FirstName":"Anne Marie","LastName":"van der Berg"}"#, Some("Anne Marie v.")),
            // The initial is a whole grapheme: a letter with its combining accent, a syllable, a conjunct,
            // an emoji family.
            ("{\"FirstName\":\"Zoe\u{308}\",\"LastName\":\"E\u{301}tienne\"}", Some("Zoe\u{308} E\u{301}.")),
            (r#"{"FirstName":"Zo\u0065\u0308","LastName":"\u0045\u0301tienne"}"#, Some("Zoe\u{308} E\u{301}.")),
            (r#"{"FirstName":"民","LastName":"山田"}"#, Some("民 山.")),
            (r#"{"FirstName":"지은","LastName":"\u1100\u1161\u11a8나"}"#, Some("지은 \u{1100}\u{1161}\u{11a8}.")),
            (r#"{"FirstName":"Мария","LastName":"Щукина"}"#, Some("Мария Щ.")),
            (r#"{"FirstName":"ليلى","LastName":"حسن"}"#, Some("ليلى ح.")),
            (r#"{"FirstName":"A","LastName":"👩‍👩‍👧x"}"#, Some("A 👩‍👩‍👧.")),
            (r#"{"FirstName":"A","LastName":"🇸🇪x"}"#, Some("A 🇸🇪.")),
            // If either is blank, the whole `Name`. If that is blank too, the name that isn't.
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
    fn email_follows_every_rule() {
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
    fn record_may_be_bare_or_under_data() {
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
    fn empty_record_is_distinguished_from_invalid_body() {
        for empty in ["", " \r\n", "null", "{}", r#"{"data":null}"#, r#"{"data":{}}"#, r#"{"data":{"data":null}}"#] {
            assert!(matches!(Record::parse(empty.as_bytes()), Ok(None)), "{empty:?}");
        }
        for invalid in [
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
            assert!(matches!(Record::parse(invalid.as_bytes()), Err(NotARecord)), "{invalid}");
        }
        assert!(matches!(Record::parse(b"{\"Name\":\"\xff\"}"), Err(NotARecord)));
        let deep = format!("{}{}", "{\"data\":".repeat(10_000), "}".repeat(10_000));
        assert!(matches!(Record::parse(deep.as_bytes()), Err(NotARecord)));
    }

    #[test]
    fn identity_requires_a_name_or_an_email_address() {
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
    fn uuid_is_hyphenated_in_either_case() {
        let lower = MemberId::parse("39120341-3c8e-47b0-9a40-45b5659b2044").map(MemberId::to_text);
        assert_eq!(lower.as_deref(), Some("39120341-3c8e-47b0-9a40-45b5659b2044"));
        assert_eq!(MemberId::parse("39120341-3C8E-47B0-9A40-45B5659B2044").map(MemberId::to_text), lower);
        for invalid in [
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
            assert!(MemberId::parse(invalid).is_none(), "{invalid}");
        }
    }

    proptest! {
        /// Any bytes parse to a record, to `None`, or to an error.
        #[test]
        fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Some(record)) = Record::parse(&body) {
                let _ = record.identity();
            }
        }

        /// The display name never contains more than the first character of the last name.
        #[test]
        fn last_name_is_never_shown(first in "\\PC{1,8}", last in "[a-z]{2,20}") {
            prop_assume!(!first.trim().is_empty());
            let json = serde_json::json!({"FirstName": first, "LastName": last, "Name": "never this"}).to_string();
            let shown = record(&json).display_name().unwrap_or_default();
            prop_assert_eq!(shown, format!("{} {}.", first.trim(), &last[..1]));
        }
    }
}
