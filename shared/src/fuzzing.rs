//! Entry points for the fuzz targets, with assertions that must hold for any
//! input. Only cargo-fuzz builds this module.

use serde_json::Value;

use crate::cache;
use crate::member::{MemberRules, Record};
use crate::novi::{self, RootDigest};
use crate::parameters::RawParameters;

/// A canary that is inserted into parameters. No error may contain it.
pub const CANARY: &str = "planted-3c8e47b0";

/// Parses a body of `GET /customers/{uuid}`.
pub fn record(body: &[u8]) {
    let Ok(Some(record)) = Record::parse(body) else { return };
    let rules = |require_active| MemberRules { require_active, statuses: None };
    let (Ok(strict), Ok(lax)) = (record.verified(&rules(true)), record.verified(&rules(false))) else { return };
    assert!(strict.is_none() || strict == lax);
    if let Some(identity) = lax {
        let texts = [&identity.full_name, &identity.email];
        assert!(texts.iter().any(|text| text.is_some()), "verified without a name or an email address");
        for text in texts.into_iter().flatten() {
            assert!(!crate::text::trim(text).is_empty());
        }
        let is_address = |email: String| email.contains('@') && !email.contains(char::is_whitespace);
        assert!(identity.email.is_none_or(is_address));
    }
}

/// Parses a page of a group's rows and a page of the whole membership.
pub fn pages(body: &[u8]) {
    if let Some(page) = novi::Page::parse(body) {
        // A row takes at least two bytes.
        assert!(page.rows.len() <= body.len() / 2);
    }
    if let Some(records) = novi::Records::parse(body) {
        records.rows.iter().for_each(|row| drop(row.record.identity()));
    }
}

/// Parses the value of a cache entry, as looked up at `now` with a TTL of `ttl` seconds.
pub fn entry(value: &[u8], now: u64, ttl: u64, stale: u64) {
    let digest = RootDigest::unknown();
    let Some((is_fresh, is_stale)) = cache::classify(value, &digest, now, ttl, stale) else { return };
    if is_fresh || is_stale {
        // Ignored fields may contain bytes that are not valid text.
        let Ok(json) = serde_json::from_slice::<Value>(value) else { return };
        assert_eq!(json["verified"], Value::Bool(true));
        assert_eq!(json["novi"], digest.as_str());
        let at = json["cached_at"].as_u64().unwrap_or(u64::MAX);
        assert!(at <= now && (now - at < ttl || !is_fresh) && now - at < ttl.saturating_add(stale));
    }
}

/// Parses parameters in the format of a configuration file. If `plant` is set,
/// appends [`CANARY`] to every string.
#[must_use]
pub fn raw(json: &[u8], plant: bool) -> Option<RawParameters> {
    let mut value: Value = serde_json::from_slice(json).ok()?;
    if plant {
        append_canary(&mut value);
    }
    match value {
        Value::Object(map) => Some(map.into()),
        _ => None,
    }
}

fn append_canary(value: &mut Value) {
    match value {
        Value::String(text) => text.push_str(CANARY),
        Value::Array(items) => items.iter_mut().for_each(append_canary),
        Value::Object(map) => map.values_mut().for_each(append_canary),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
