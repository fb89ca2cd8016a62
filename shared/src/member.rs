//! Novi's member record, and the identity that is derived from it.
//!
//! Novi's records are loosely structured: any field may be null, absent or
//! `""`, undocumented fields come and go, a key may be allowed to read only
//! some of the fields, and some responses wrap the record in `data`. This
//! module distinguishes the cases that matter: a field is *absent* (perhaps
//! hidden from our key), *null*, a *value*, or *something else* than the API's
//! documentation says. Keys are compared without regard to case, and a field
//! that isn't used can't make a record unreadable.

use std::borrow::Cow;
use std::fmt;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use crate::json::{self, DAMAGE};
use crate::{address, text};

/// A member's UUID. It has no `Debug` and no `Display`, because it identifies a person.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberId(Uuid);

impl MemberId {
    /// The nil UUID, which no one has.
    pub const NIL: Self = Self(Uuid::nil());

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
            Self::Text(text) => Some(text::trim(text)).filter(|text| !text.is_empty()),
            _ => None,
        }
    }

    /// Returns the text as a name, or `None` if the field is blank or not text.
    fn name(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Text(text) => text::name(text),
            _ => None,
        }
    }

    /// True if this has no value: absent, null or blank.
    fn is_blank(&self) -> bool {
        match self {
            Self::Absent | Self::Null => true,
            Self::Text(text) => text::trim(text).is_empty(),
            Self::Flag(_) | Self::Other => false,
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

/// The records that count as members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberRules {
    /// True if a record with `Active: false` is not a member (`REQUIRE_ACTIVE`).
    pub require_active: bool,
    /// The values of `MemberStatus` that a member may have, in lower case (`MEMBER_STATUSES`). `None` for any.
    pub statuses: Option<Vec<String>>,
}

/// The fields that are read from a member record.
#[derive(Clone, Default)]
pub struct Record {
    /// `UniqueID` or `UniqueId`. Both spellings occur.
    id: RecordId,
    name: Field,
    first_name: Field,
    last_name: Field,
    /// `Email`, unchanged. Novi loses the plus of an address: see [`Record::email`].
    email: Field,
    /// `Active`. False marks a deleted record.
    pub active: Field,
    /// `UnsubscribeFromEmails`. True means "do not send marketing emails".
    pub unsubscribed: Field,
    /// `MemberStatus`, such as `current`.
    status: Field,
}

/// The UUID in a record.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum RecordId {
    /// Absent, null or blank.
    #[default]
    Absent,
    Is(MemberId),
    /// Not a UUID.
    Invalid,
    /// Two different UUIDs.
    Contradictory,
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

/// What a record says about its member.
pub enum Verdict {
    /// It is a member.
    Member(Identity),
    /// It has an identity, but doesn't follow the rules for members.
    NotMember,
    /// It has neither a name nor an email address.
    NoIdentity,
}

impl Record {
    /// Parses a response body. Returns `None` for a response without a record: an empty
    /// body, `null`, `{}`, or an object with nothing but `null` or `{}` under `data`.
    ///
    /// # Errors
    /// Returns [`NotARecord`] for anything else that isn't a record: not JSON, not an
    /// object, an object without any of a record's keys, or an error message.
    pub fn parse(body: &[u8]) -> Result<Option<Self>, NotARecord> {
        if json::trim(body).is_empty() {
            return Ok(None);
        }
        let parsed = json::parse::<Option<Envelope>>(body).ok_or(NotARecord)?;
        let Some(mut record) = parsed.value.map_or(Ok(None), |envelope| envelope.unwrap(false))? else {
            return Ok(None);
        };
        if parsed.is_repaired {
            record.discard_damaged_text();
            record.identity()?;
        }
        Ok(Some(record))
    }

    /// True unless the record has a `UniqueID` that is not `id`.
    #[must_use]
    pub fn may_belong_to(&self, id: MemberId) -> bool {
        self.id == RecordId::Absent || self.belongs_to(id)
    }

    /// True if the record has this `UniqueID`.
    #[must_use]
    pub fn belongs_to(&self, id: MemberId) -> bool {
        self.id == RecordId::Is(id)
    }

    /// True if the record has neither names nor an email address, not even blank ones. The API key may not be allowed to
    /// read them.
    #[must_use]
    pub fn hides_identity(&self) -> bool {
        self.identifying().into_iter().all(|field| matches!(field, Field::Absent))
    }

    fn identifying(&self) -> [&Field; 4] {
        [&self.name, &self.first_name, &self.last_name, &self.email]
    }

    /// Returns the first email address in `Email`, with each inner space of its local part replaced by a plus. Returns
    /// `None` if `Email` is hidden, null or blank, or has no address.
    #[must_use]
    pub fn email(&self) -> Option<String> {
        self.email.text().and_then(address::first)
    }

    /// Returns the text of `Email`, in which mailing lists look for an address. Returns `None` if it is hidden, null or
    /// blank.
    #[must_use]
    pub fn email_text(&self) -> Option<&str> {
        self.email.text()
    }

    /// True if the record shows an `Email`, blank or not. If it doesn't, no
    /// address can be matched to this record or ruled out.
    #[must_use]
    pub fn shows_email(&self) -> bool {
        !matches!(self.email, Field::Absent | Field::Flag(_) | Field::Other)
    }

    /// Returns the display name: first name, space, initial of the last name,
    /// period. If either is blank, returns the whole `Name`. If that is blank
    /// too, returns the first or last name, whichever is not blank.
    #[must_use]
    pub fn display_name(&self) -> Option<String> {
        self.compose_name(self.first_name.name(), self.last_name.name())
    }

    /// True if every field that callers use is certainly visible: the flags are
    /// booleans, and first name, last name and email address are not blank. A
    /// list of records may show fewer fields than the single record does, with
    /// `null` for the hidden ones.
    #[must_use]
    pub fn is_complete(&self, rules: &MemberRules) -> bool {
        let texts = [&self.first_name, &self.last_name, &self.email];
        texts.into_iter().all(|field| field.text().is_some())
            && self.active.flag().is_some()
            && self.unsubscribed.flag().is_some()
            && (rules.statuses.is_none() || self.status.text().is_some())
    }

    /// True if `MemberStatus` is one that members may have. Returns `None` if the status matters and is hidden, or is
    /// not text.
    #[must_use]
    pub fn has_member_status(&self, rules: &MemberRules) -> Option<bool> {
        let Some(statuses) = &rules.statuses else { return Some(true) };
        match &self.status {
            Field::Absent | Field::Flag(_) | Field::Other => None,
            status => Some(status.text().is_some_and(|text| statuses.iter().any(|s| s.eq_ignore_ascii_case(text)))),
        }
    }

    /// Returns what the record says about its member.
    ///
    /// # Errors
    /// See [`Record::identity`]. The status, if it matters, must be text as well.
    pub fn verdict(&self, rules: &MemberRules) -> Result<Verdict, NotARecord> {
        let identity = self.identity()?;
        if rules.require_active && self.active.flag() == Some(false) {
            return Ok(identity.map_or(Verdict::NoIdentity, |_| Verdict::NotMember));
        }
        let has_status = match self.has_member_status(rules) {
            Some(has_status) => has_status,
            None if matches!(self.status, Field::Absent) => false,
            None => return Err(NotARecord),
        };
        Ok(match identity {
            Some(identity) if has_status => Verdict::Member(identity),
            Some(_) => Verdict::NotMember,
            None => Verdict::NoIdentity,
        })
    }

    /// Returns the identity of a member, or `None` if the record isn't a member's.
    ///
    /// # Errors
    /// See [`Record::verdict`].
    pub fn verified(&self, rules: &MemberRules) -> Result<Option<Identity>, NotARecord> {
        self.verdict(rules).map(|verdict| match verdict {
            Verdict::Member(identity) => Some(identity),
            Verdict::NotMember | Verdict::NoIdentity => None,
        })
    }

    /// Returns the identity, or `None` if there is neither a name nor an email address.
    ///
    /// # Errors
    /// Returns [`NotARecord`] if the email address, or a name that the display name depends on, is a number, a boolean,
    /// a list or an object, or if all of them are hidden.
    pub fn identity(&self) -> Result<Option<Identity>, NotARecord> {
        if self.hides_identity() || !self.email.is_textual() {
            return Err(NotARecord);
        }
        let identity = Identity { full_name: self.textual_display_name()?, email: self.email() };
        Ok((identity.full_name.is_some() || identity.email.is_some()).then_some(identity))
    }

    /// Returns the display name like [`Record::display_name`], if every name that it depends on is text.
    fn textual_display_name(&self) -> Result<Option<String>, NotARecord> {
        let (first, last) = (self.first_name.name(), self.last_name.name());
        let is_textual = self.first_name.is_textual()
            && match (&first, &last) {
                (Some(_), Some(_)) => true,
                (Some(_), None) => self.last_name.is_textual() && self.name.is_textual(),
                (None, _) => self.name.is_textual() && (self.last_name.is_textual() || self.name.name().is_some()),
            };
        if is_textual { Ok(self.compose_name(first, last)) } else { Err(NotARecord) }
    }

    fn compose_name(&self, first: Option<Cow<'_, str>>, last: Option<Cow<'_, str>>) -> Option<String> {
        match (first, last) {
            (Some(first), Some(last)) => {
                let initial = text::initial(&last).unwrap_or_default();
                Some(format!("{first} {initial}."))
            }
            (first, last) => self.name.name().or(first).or(last).map(Cow::into_owned),
        }
    }

    /// Turns text with a character that couldn't be read into something else than text.
    fn discard_damaged_text(&mut self) {
        let fields = [
            &mut self.name,
            &mut self.first_name,
            &mut self.last_name,
            &mut self.email,
            &mut self.active,
            &mut self.unsubscribed,
            &mut self.status,
        ];
        for field in fields {
            if matches!(field, Field::Text(text) if text.contains(DAMAGE)) {
                *field = Field::Other;
            }
        }
    }
}

/// A record in a list of records.
pub struct Row {
    /// The member's UUID, or `None` if there is no valid one.
    pub id: Option<MemberId>,
    /// The record.
    pub record: Record,
}

impl Row {
    /// Turns text with a character that couldn't be read into something else than text.
    pub(crate) fn discard_damaged_text(&mut self) {
        self.record.discard_damaged_text();
    }
}

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let record = Envelope::deserialize(deserializer)?.record;
        let id = match record.id {
            RecordId::Is(id) => Some(id),
            RecordId::Absent | RecordId::Invalid | RecordId::Contradictory => None,
        };
        Ok(Self { id, record })
    }
}

/// An object of a response: a record, or an envelope around one.
#[derive(Default)]
struct Envelope {
    record: Record,
    /// The number of fields, known or not.
    fields: usize,
    /// The number of fields of a record.
    record_fields: usize,
    /// True if one of them marks the object as a record.
    is_marked: bool,
    /// True if there is an error message.
    is_error: bool,
    data: Option<Data>,
}

/// A known key of an object, in any case.
#[derive(Clone, Copy)]
struct Key {
    name: KeyName,
    /// True if it is spelled as Novi documents it.
    is_exact: bool,
}

/// The names of the known keys. Records have about thirty more, which are skipped without being copied.
#[derive(Clone, Copy)]
enum KeyName {
    Name,
    FirstName,
    LastName,
    Email,
    Active,
    UnsubscribeFromEmails,
    MemberStatus,
    UniqueId,
    Data,
    /// `Message`, as in Novi's errors, or what other servers call it.
    Error,
    Unknown,
}

impl Key {
    fn of(text: &str) -> Self {
        const KEYS: [(&str, KeyName); 12] = [
            ("UniqueID", KeyName::UniqueId),
            ("Name", KeyName::Name),
            ("FirstName", KeyName::FirstName),
            ("LastName", KeyName::LastName),
            ("Email", KeyName::Email),
            ("Active", KeyName::Active),
            ("UnsubscribeFromEmails", KeyName::UnsubscribeFromEmails),
            ("MemberStatus", KeyName::MemberStatus),
            ("data", KeyName::Data),
            ("Message", KeyName::Error),
            ("error", KeyName::Error),
            ("errors", KeyName::Error),
        ];
        /// A bit for each length of a known key. Most keys of a record have another length.
        const LENGTHS: u32 = {
            let (mut bits, mut index) = (0, 0);
            while index < KEYS.len() {
                bits |= 1 << KEYS[index].0.len();
                index += 1;
            }
            bits
        };
        let may_be_known = text.len() < 32 && LENGTHS & (1 << text.len()) != 0;
        let found = KEYS.iter().find(|(name, _)| may_be_known && name.eq_ignore_ascii_case(text));
        found.map_or(Self { name: KeyName::Unknown, is_exact: false }, |(name, key)| Self {
            name: *key,
            is_exact: *name == text,
        })
    }

    /// True if this key by itself marks an object as a record. Errors and envelopes of other servers have a `name` as
    /// well.
    fn marks_record(self) -> bool {
        self.is_exact || !matches!(self.name, KeyName::Name | KeyName::Active)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl Visitor<'_> for KeyVisitor {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_str<E>(self, text: &str) -> Result<Key, E> {
                Ok(Key::of(text))
            }
        }
        deserializer.deserialize_identifier(KeyVisitor)
    }
}

/// The value of `data`.
enum Data {
    Object(Box<Envelope>),
    Null,
    Other,
}

impl Envelope {
    /// Returns the record, which may be nested in further envelopes. `is_error` is true if one around this has an error
    /// message.
    fn unwrap(self, is_error: bool) -> Result<Option<Record>, NotARecord> {
        let is_error = is_error || self.is_error;
        if self.is_marked || (self.record_fields > 0 && self.record_fields == self.fields) {
            // An error may have a name. A record has a UUID and an identity.
            let is_record = !is_error
                || (matches!(self.record.id, RecordId::Is(_)) && matches!(self.record.identity(), Ok(Some(_))));
            return if is_record { Ok(Some(self.record)) } else { Err(NotARecord) };
        }
        match self.data {
            Some(Data::Object(inner)) => match inner.unwrap(is_error)? {
                Some(record) => Ok(Some(record)),
                None if self.fields == 1 => Ok(None),
                None => Err(NotARecord),
            },
            Some(Data::Null) if self.fields == 1 => Ok(None),
            None if self.fields == 0 && !is_error => Ok(None),
            // An object without any key of a record says nothing about a member.
            Some(Data::Null | Data::Other) | None => Err(NotARecord),
        }
    }

    fn from_map<'de, A: MapAccess<'de>>(mut map: A) -> Result<Self, A::Error> {
        let mut envelope = Self::default();
        // The fields that were read from exactly spelled keys.
        let mut exact = 0_u16;
        while let Some(key) = map.next_key::<Key>()? {
            envelope.fields += 1;
            let record = &mut envelope.record;
            let field = match key.name {
                KeyName::Name => &mut record.name,
                KeyName::FirstName => &mut record.first_name,
                KeyName::LastName => &mut record.last_name,
                KeyName::Email => &mut record.email,
                KeyName::Active => &mut record.active,
                KeyName::UnsubscribeFromEmails => &mut record.unsubscribed,
                KeyName::MemberStatus => &mut record.status,
                KeyName::UniqueId => {
                    envelope.record_fields += 1;
                    envelope.is_marked = true;
                    record.id.read(&map.next_value()?);
                    continue;
                }
                KeyName::Data => {
                    envelope.data = Some(map.next_value()?);
                    continue;
                }
                KeyName::Error => {
                    let value: Field = map.next_value()?;
                    envelope.is_error |= value.text().is_some() || matches!(value, Field::Flag(true) | Field::Other);
                    continue;
                }
                KeyName::Unknown => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            envelope.record_fields += 1;
            envelope.is_marked |= key.marks_record();
            let value: Field = map.next_value()?;
            // Of keys that differ only in case, the exactly spelled one counts, and otherwise the first that isn't blank.
            let bit = 1 << key.name as u16;
            if key.is_exact || (exact & bit == 0 && field.is_blank()) {
                *field = value;
                exact |= if key.is_exact { bit } else { 0 };
            }
        }
        Ok(envelope)
    }
}

impl RecordId {
    /// Reads another field with a UUID. A UUID counts more than something else, and two different ones count as neither.
    fn read(&mut self, field: &Field) {
        let id = match field.text().map(Uuid::try_parse) {
            Some(Ok(id)) => Self::Is(MemberId(id)),
            None if matches!(field, Field::Absent | Field::Null | Field::Text(_)) => Self::Absent,
            _ => Self::Invalid,
        };
        *self = match (*self, id) {
            (Self::Is(one), Self::Is(other)) if one != other => Self::Contradictory,
            (known @ (Self::Contradictory | Self::Is(_)), _) | (known, Self::Absent) => known,
            (_, id) => id,
        };
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

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Envelope, A::Error> {
                Envelope::from_map(map)
            }
        }
        deserializer.deserialize_map(EnvelopeVisitor)
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// Visits each kind of value directly, as for [`Field`].
        struct DataVisitor;
        impl<'de> Visitor<'de> for DataVisitor {
            type Value = Data;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Data, A::Error> {
                Envelope::from_map(map).map(|envelope| Data::Object(Box::new(envelope)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Data, A::Error> {
                IgnoredAny.visit_seq(list).map(|_| Data::Other)
            }

            fn visit_unit<E>(self) -> Result<Data, E> {
                Ok(Data::Null)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Data, E> {
                Ok(Data::Other)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Data, E> {
                Ok(Data::Other)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Data, E> {
                Ok(Data::Other)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Data, E> {
                Ok(Data::Other)
            }

            fn visit_str<E>(self, _: &str) -> Result<Data, E> {
                Ok(Data::Other)
            }
        }
        deserializer.deserialize_any(DataVisitor)
    }
}

crate::unprintable!(MemberId, Field, Record, Identity, Verdict, Row);

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
            // The initial is the first grapheme with a letter or digit. A name without one is blank.
            (r#"{"FirstName":"Gerard","LastName":"'t Hooft"}"#, Some("Gerard t.")),
            (r#"{"FirstName":"Ann","LastName":"(Smith) Lee"}"#, Some("Ann S.")),
            (r#"{"FirstName":"Ann","LastName":"-Lee"}"#, Some("Ann L.")),
            (r#"{"FirstName":"Ann","LastName":"3M"}"#, Some("Ann 3.")),
            (r#"{"FirstName":"ليلى","LastName":"\u200f\u202bحسن"}"#, Some("ليلى ح.")),
            ("{\"FirstName\":\"Ann\",\"LastName\":\"«E\u{301}mile»\"}", Some("Ann E\u{301}.")),
            (r#"{"FirstName":"Ann","LastName":"-","Name":"Ann Lee"}"#, Some("Ann Lee")),
            (r#"{"FirstName":"Ann","LastName":" . ","Name":"?"}"#, Some("Ann")),
            (r#"{"FirstName":"--","LastName":"Lee","Name":""}"#, Some("Lee")),
            (r#"{"FirstName":"-","LastName":"-","Name":"-"}"#, None),
            // Characters that show nothing are trimmed, and those that change what is around them are removed.
            (r#"{"FirstName":"\u200bAnn\ufeff","LastName":"\u2060Lee"}"#, Some("Ann L.")),
            (r#"{"FirstName":"\u200b","LastName":"\u3164","Name":"\u00adAnn Lee\u200d"}"#, Some("Ann Lee")),
            (r#"{"FirstName":"A\u0000nn\u001b","LastName":"\u0007Lee"}"#, Some("Ann L.")),
            (r#"{"FirstName":"\u202eAnn\u2069","LastName":"\u202dLee"}"#, Some("Ann L.")),
            (r#"{"Name":"\u200b\u00a0\u202e"}"#, None),
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
            (r#"{"Email":"\u200bada@example.org\ufeff"}"#, Some("ada@example.org")),
            (r#"{"Email":"\u200b\u00a0","Name":"x"}"#, None),
            (r#"{"Email":"ada@ example.org"}"#, Some("ada@example.org")),
            (r#"{"Email":"Ada <ada lists@example.org>"}"#, Some("ada+lists@example.org")),
            (r#"{"Email":"mailto:ada@example.org"}"#, Some("ada@example.org")),
            (r#"{"Email":"ada@example.org, bea@example.org"}"#, Some("ada@example.org")),
            (r#"{"Email":"not an address","Name":"x"}"#, None),
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
            r#"{"error":null,"errors":false,"message":"","data":{"Name":"Ada"}}"#,
            r#"{"Data":{"Name":"Ada"}}"#,
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
            // Errors and other objects that say nothing about a member.
            r#"{"Unknown":"field"}"#,
            r#"{"error":"Rate limit exceeded"}"#,
            r#"{"ERROR":null}"#,
            r#"{"message":"down"}"#,
            r#"{"errors":["down"]}"#,
            r#"{"data":{"errors":["down"]}}"#,
            r#"{"data":null,"error":"down"}"#,
            r#"{"data":{},"status":"fail"}"#,
            r#"{"data":null,"success":false}"#,
            r#"{"data":{"data":null,"x":1}}"#,
            r#"{"TotalCount":0,"Results":[]}"#,
            r#"{"name":"RateLimitError","message":"down"}"#,
            r#"{"errors":[{}],"data":{"Name":"Ada"}}"#,
            r#"{"error":true,"UniqueID":"39120341-3c8e-47b0-9a40-45b5659b2044","Name":"","Email":null}"#,
            // A damaged field that is used.
            r#"{"FirstName":"Ada","LastName":"L\ud83d","Name":"Ada"}"#,
            r#"{"Name":"Ada","Email":"a@b.org\ud83d"}"#,
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
            r#"{"name":null}"#,
            r#"{"Name":"-","Email":"n/a"}"#,
        ] {
            assert!(matches!(record(json).identity(), Ok(None)), "{json}");
            assert!(!record(json).hides_identity(), "{json}");
        }
        for json in [
            r#"{"Email":5}"#,
            r#"{"Name":{}}"#,
            r#"{"FirstName":true,"Email":"a@b.org"}"#,
            r#"{"FirstName":"Ada","LastName":5,"Name":"Ada"}"#,
            r#"{"FirstName":"","LastName":5,"Name":""}"#,
        ] {
            assert!(matches!(record(json).identity(), Err(NotARecord)), "{json}");
        }
        // The API key may not be allowed to read any of the fields.
        for json in [
            r#"{"UniqueID":"39120341-3c8e-47b0-9a40-45b5659b2044","Active":true}"#,
            r#"{"UniqueID":null}"#,
            r#"{"MemberStatus":"current"}"#,
        ] {
            assert!(record(json).hides_identity(), "{json}");
            assert!(matches!(record(json).identity(), Err(NotARecord)), "{json}");
        }
        let identity = record(r#"{"Email":"a@b.org"}"#).identity();
        assert!(matches!(identity, Ok(Some(Identity { full_name: None, email: Some(_) }))));
    }

    #[test]
    fn field_that_is_not_used_makes_no_difference() {
        for unused in [
            r#""Name":"Ada\ud83d""#,
            r#""Name":5"#,
            r#""Name":[{"x":"\ude00"}]"#,
            r#""Active":"\ud83d""#,
            r#""UnsubscribeFromEmails":{}"#,
            r#""MemberStatus":"\ud83d""#,
            r#""Other":"\ud83d""#,
            r#""Other":{"\ud83d":["\ude00\ud83d"]}"#,
            r#""Other":1e999"#,
            r#""Other":[[[[{"Email":5}]]]]"#,
        ] {
            for (before, after) in [("{", "}"), (r#"{"data":{"#, "}}")] {
                let json =
                    format!(r#"{before}{unused},"FirstName":"Ada","LastName":"Lovelace","Email":"a@b.org"{after}"#);
                let identity = record(&json).identity().ok().flatten();
                let identity = identity.map(|identity| (identity.full_name, identity.email));
                assert_eq!(identity, Some((Some("Ada L.".to_owned()), Some("a@b.org".to_owned()))), "{json}");
            }
        }
        // Neither do bytes that are not UTF-8.
        let body = b"{\"Name\":\"\xe9\",\"FirstName\":\"Ada\",\"LastName\":\"L\",\"Other\":\"\xff\"}";
        let record = Record::parse(body).ok().flatten();
        assert_eq!(record.and_then(|record| record.display_name()).as_deref(), Some("Ada L."));
    }

    #[test]
    fn keys_are_read_in_any_case() {
        let json = r#"{"uniqueId":"39120341-3C8E-47B0-9A40-45B5659B2044","firstName":"Ada","LASTNAME":"Lovelace",
            "eMail":"a@b.org","active":true,"unsubscribefromemails":false,"memberStatus":"current"}"#;
        let record = record(json);
        assert_eq!(record.display_name().as_deref(), Some("Ada L."));
        assert_eq!(record.email().as_deref(), Some("a@b.org"));
        let statuses = Some(vec!["current".to_owned()]);
        assert!(record.is_complete(&MemberRules { require_active: true, statuses }));
        let nested = Record::parse(br#"{"DATA":{"name":"Ada"}}"#).ok().flatten();
        assert_eq!(nested.and_then(|record| record.display_name()).as_deref(), Some("Ada"));
    }

    #[test]
    fn exactly_spelled_key_counts_more_than_the_others() {
        for (json, expected) in [
            (r#"{"Email":"ann@x.org","email":null,"Name":"Ann"}"#, Some("ann@x.org")),
            (r#"{"email":"other@x.org","Email":"ann@x.org"}"#, Some("ann@x.org")),
            (r#"{"email":"ann@x.org","EMAIL":"other@x.org"}"#, Some("ann@x.org")),
            (r#"{"email":" ","EMAIL":"ann@x.org"}"#, Some("ann@x.org")),
            (r#"{"Email":null,"email":"other@x.org","Name":"Ann"}"#, None),
        ] {
            assert_eq!(record(json).email().as_deref(), expected, "{json}");
        }
        let record = record(r#"{"Name":"Ann Lee","name":{"Text":"x"}}"#);
        assert_eq!(
            record.identity().ok().flatten().and_then(|identity| identity.full_name).as_deref(),
            Some("Ann Lee")
        );
    }

    #[test]
    fn name_of_another_server_is_not_a_record() {
        for json in [
            r#"{"name":"ServiceUnavailable","code":503}"#,
            r#"{"name":"","status":503,"detail":"x"}"#,
            r#"{"name":"customer","data":null}"#,
            r#"{"active":true,"uptime":5}"#,
        ] {
            assert!(Record::parse(json.as_bytes()).is_err(), "{json}");
        }
        for json in [r#"{"name":"customer","data":{"Name":"Ada"}}"#, r#"{"active":true,"data":{"Name":"Ada"}}"#] {
            assert_eq!(record(json).display_name().as_deref(), Some("Ada"), "{json}");
        }
    }

    #[test]
    fn record_belongs_to_its_uuid_only() {
        const ID: &str = "39120341-3c8e-47b0-9a40-45b5659b2044";
        for (ids, expected) in [
            (format!(r#""UniqueID":"{ID}""#), true),
            (format!(r#""UniqueId":" {} ""#, ID.to_uppercase()), true),
            (format!(r#""uniqueid":"{{{ID}}}""#), true),
            (format!(r#""UniqueID":"","UniqueId":"{ID}""#), true),
            (format!(r#""UniqueID":"{ID}","UniqueId":null"#), true),
            (r#""UniqueID":null"#.to_owned(), true),
            (r#""UniqueID":"""#.to_owned(), true),
            (r#""Active":true"#.to_owned(), true),
            (r#""UniqueID":"39120341-3c8e-47b0-9a40-45b5659b2045""#.to_owned(), false),
            (r#""UniqueID":"00000000-0000-0000-0000-000000000000""#.to_owned(), false),
            (r#""UniqueID":"39120341""#.to_owned(), false),
            // Two different UUIDs, in any order.
            (format!(r#""UniqueID":"{ID}","UniqueId":"39120341-3c8e-47b0-9a40-45b5659b2045""#), false),
            (format!(r#""UniqueID":"39120341-3c8e-47b0-9a40-45b5659b2045","UniqueId":"{ID}""#), false),
            (
                format!(r#""uniqueID":"39120341-3c8e-47b0-9a40-45b5659b2045","UniqueId":"{ID}","UniqueID":"{ID}""#),
                false,
            ),
            (r#""UniqueID":5"#.to_owned(), false),
        ] {
            let id = MemberId::parse(ID).unwrap();
            assert_eq!(record(&format!(r#"{{{ids},"Name":"Ada"}}"#)).may_belong_to(id), expected, "{ids}");
        }
    }

    #[test]
    fn member_follows_every_rule() {
        let any = MemberRules::default();
        let active = MemberRules { require_active: true, statuses: None };
        let current =
            MemberRules { require_active: false, statuses: Some(vec!["current".to_owned(), "grace".to_owned()]) };
        for (fields, rules, expected) in [
            (r#""Active":false,"MemberStatus":"x""#, &any, Some(true)),
            (r#""Active":false"#, &active, Some(false)),
            (r#""Active":"false""#, &active, Some(true)),
            (r#""Active":false,"MemberStatus":"Current ""#, &current, Some(true)),
            (r#""MemberStatus":"GRACE""#, &current, Some(true)),
            (r#""MemberStatus":"non_member""#, &current, Some(false)),
            (r#""MemberStatus":"""#, &current, Some(false)),
            (r#""MemberStatus":null"#, &current, Some(false)),
            (r#""Active":true"#, &current, Some(false)),
            (r#""MemberStatus":7"#, &current, None),
        ] {
            let verified = record(&format!(r#"{{"Name":"Ada",{fields}}}"#)).verified(rules);
            assert_eq!(verified.ok().map(|identity| identity.is_some()), expected, "{fields}");
        }
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
            let cleaned = text::name(&first);
            prop_assume!(cleaned.is_some());
            let json = serde_json::json!({"FirstName": first, "LastName": last, "Name": "never this"}).to_string();
            let shown = record(&json).display_name().unwrap_or_default();
            prop_assert_eq!(shown, format!("{} {}.", cleaned.unwrap_or_default(), &last[..1]));
        }
    }
}
