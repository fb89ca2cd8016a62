//! What the fuzz targets call of this crate, with what must hold whatever the
//! bytes are. Built by cargo-fuzz alone.

use serde_json::Value;

use crate::cache;
use crate::member::Record;
use crate::novi;
use crate::parameters::RawParameters;

/// A word that is planted in parameters. No error may tell it.
pub const PLANTED: &str = "planted-3c8e47b0";

/// A body of `GET /customers/{uuid}`.
pub fn record(body: &[u8]) {
    let Ok(Some(record)) = Record::parse(body) else { return };
    let (Ok(strict), Ok(lax)) = (record.verified(true), record.verified(false)) else { return };
    assert!(strict.is_none() || strict == lax);
    if let Some(identity) = lax {
        let texts = [&identity.full_name, &identity.email];
        assert!(texts.iter().any(|text| text.is_some()), "nobody at all is verified");
        for text in texts.into_iter().flatten() {
            assert!(!text.trim().is_empty());
        }
        assert!(identity.email.is_none_or(|email| !email.contains(' ')));
    }
}

/// A page of a group's rows, or of the whole membership.
pub fn pages(body: &[u8]) {
    if let Some(page) = novi::Page::parse(body) {
        // A row takes two bytes at least.
        assert!(page.rows.len() <= body.len() / 2);
    }
    if let Some(records) = novi::Records::parse(body) {
        records.rows.iter().for_each(|row| drop(row.record.identity()));
    }
}

/// The value of a cache entry, as it is looked up at `now` with a TTL of `ttl` seconds.
pub fn entry(value: &[u8], now: u64, ttl: u64, stale: u64) {
    let Some((is_fresh, is_stale)) = cache::worth(value, now, ttl, stale) else { return };
    if is_fresh || is_stale {
        // What is passed over need not even be text.
        let Ok(json) = serde_json::from_slice::<Value>(value) else { return };
        assert_eq!(json["verified"], Value::Bool(true));
        let at = json["cached_at"].as_u64().unwrap_or(u64::MAX);
        assert!(at <= now && (now - at < ttl || !is_fresh) && now - at < ttl.saturating_add(stale));
    }
}

/// Parameters as a configuration file has them, with [`PLANTED`] in every text
/// where `plant` says so.
#[must_use]
pub fn raw(json: &[u8], plant: bool) -> Option<RawParameters> {
    let mut value: Value = serde_json::from_slice(json).ok()?;
    if plant {
        put_into(&mut value);
    }
    match value {
        Value::Object(map) => Some(map.into()),
        _ => None,
    }
}

fn put_into(value: &mut Value) {
    match value {
        Value::String(text) => text.push_str(PLANTED),
        Value::Array(items) => items.iter_mut().for_each(put_into),
        Value::Object(map) => map.values_mut().for_each(put_into),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
