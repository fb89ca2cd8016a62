//! The value of a cache entry, and what a lookup makes of it.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::member::{Identity, MemberId};
use crate::novi::RootDigest;
use crate::settings::CacheTtls;
use crate::time::unix;

/// The result of a lookup.
pub enum Lookup {
    /// Verified, and within the TTL.
    Fresh(Identity),
    /// Verified and past the TTL, but may be served if Novi can't answer.
    Stale(Identity),
    /// Not cached, or not a valid entry.
    Miss,
}

/// A verified member, as read from Novi.
pub struct MemberUpdate {
    /// The member's id.
    pub id: MemberId,
    /// The member's identity.
    pub identity: Identity,
    /// When Novi said so.
    pub at: SystemTime,
}

/// A verified member and when Novi was asked: the JSON value of a cache entry.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) verified: bool,
    #[serde(flatten)]
    pub(super) identity: Identity,
    /// When Novi was asked, in Unix seconds, which mean the same to every instance.
    pub(super) cached_at: u64,
    /// The digest of the root URL of the Novi that was asked. An entry of another one says nothing about this one's
    /// members.
    pub(super) novi: Option<String>,
}

impl Entry {
    /// Returns the size of the text in bytes.
    pub(super) fn text_bytes(&self) -> usize {
        [&self.identity.full_name, &self.identity.email].into_iter().flatten().map(String::len).sum()
    }

    /// Returns the entry of a verified member.
    pub(super) fn new(identity: Identity, asked_at: SystemTime, novi: &RootDigest) -> Self {
        Self { verified: true, identity, cached_at: unix(asked_at), novi: Some(novi.as_str().to_owned()) }
    }

    /// Classifies the entry at `now`, for a Novi. An entry of another Novi is a miss. So is an entry from the future, because
    /// one of the clocks must be wrong.
    pub(super) fn lookup(self, novi: &RootDigest, ttls: CacheTtls, now: u64) -> Lookup {
        match now.checked_sub(self.cached_at) {
            _ if !self.verified || self.novi.as_deref() != Some(novi.as_str()) => Lookup::Miss,
            Some(age) if age < ttls.ttl => Lookup::Fresh(self.identity),
            Some(age) if age < ttls.ttl + ttls.stale => Lookup::Stale(self.identity),
            _ => Lookup::Miss,
        }
    }
}

/// Returns whether an entry with this value is fresh, and whether it is stale, or `None` if it isn't an entry.
#[cfg(fuzzing)]
pub(crate) fn classify(value: &[u8], novi: &RootDigest, now: u64, ttl: u64, stale: u64) -> Option<(bool, bool)> {
    let lookup = serde_json::from_slice::<Entry>(value).ok()?.lookup(novi, CacheTtls { ttl, stale }, now);
    Some((matches!(lookup, Lookup::Fresh(_)), matches!(lookup, Lookup::Stale(_))))
}

crate::unprintable!(Lookup, MemberUpdate, Entry);

#[cfg(test)]
mod tests {
    use super::*;

    fn novi() -> RootDigest {
        RootDigest::of(&"https://www.example.org/api".parse().unwrap())
    }

    fn classify(json: &str, now: u64) -> &'static str {
        let ttls = CacheTtls { ttl: 100, stale: 50 };
        let json = json.replace("DIGEST", novi().as_str());
        match serde_json::from_str::<Entry>(&json).map(|entry| entry.lookup(&novi(), ttls, now)) {
            Ok(Lookup::Fresh(_)) => "fresh",
            Ok(Lookup::Stale(_)) => "stale",
            Ok(Lookup::Miss) => "miss",
            Err(_) => "invalid",
        }
    }

    #[test]
    fn an_entry_is_fresh_then_stale_then_expired() {
        let json = r#"{"verified":true,"full_name":"Ada L.","email":null,"cached_at":1000,"novi":"DIGEST"}"#;
        for (now, expected) in
            [(999, "miss"), (1000, "fresh"), (1099, "fresh"), (1100, "stale"), (1149, "stale"), (1150, "miss")]
        {
            assert_eq!(classify(json, now), expected, "{now}");
        }
    }

    #[test]
    fn unverified_and_malformed_entries_are_ignored() {
        for (json, expected) in [
            (r#"{"verified":true,"full_name":"Ada L.","email":null,"cached_at":1000,"novi":"DIGEST"}"#, "fresh"),
            (r#"{"verified":true,"full_name":"Ada L.","email":null,"cached_at":1000,"novi":"000000000000"}"#, "miss"),
            (r#"{"verified":true,"full_name":"Ada L.","email":null,"cached_at":1000,"novi":null}"#, "miss"),
            (r#"{"verified":true,"full_name":"Ada L.","email":null,"cached_at":1000}"#, "miss"),
            (r#"{"verified":false,"full_name":"Ada L.","email":null,"cached_at":1000,"novi":"DIGEST"}"#, "miss"),
            (r#"{"verified":"true","full_name":null,"email":null,"cached_at":1000}"#, "invalid"),
            (r#"{"verified":true,"full_name":"Ada L.","email":null}"#, "invalid"),
            (r#"{"verified":true,"full_name":"Ada L.","email":null,"cached_at":-5}"#, "invalid"),
            (r#"{"verified":true,"full_name":5,"email":null,"cached_at":1000}"#, "invalid"),
            ("", "invalid"),
            ("[]", "invalid"),
        ] {
            assert_eq!(classify(json, 1000), expected, "{json}");
        }
    }

    #[test]
    fn the_value_is_the_response_body_plus_cached_at_and_the_digest() {
        let identity = Identity { full_name: Some("Ada L.".to_owned()), email: None };
        let asked_at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_795_345_200);
        assert_eq!(
            serde_json::to_string(&Entry::new(identity, asked_at, &novi())).unwrap(),
            r#"{"verified":true,"full_name":"Ada L.","email":null,"cached_at":1795345200,"novi":"DIGEST"}"#
                .replace("DIGEST", novi().as_str())
        );
    }
}
