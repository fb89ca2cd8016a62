//! The value of a cache entry.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::member::{Identity, MemberId};
use crate::settings::CacheTtls;

/// What a cache knows of a member.
pub enum Lookup {
    /// Verified, and within the TTL.
    Fresh(Identity),
    /// Verified, past the TTL, and still good where Novi cannot answer.
    Stale(Identity),
    /// Nothing that counts.
    Miss,
}

/// What Novi has said of one member.
pub struct MemberUpdate {
    /// Who.
    pub id: MemberId,
    /// Who that is, `None` where Novi knows no such member.
    pub identity: Option<Identity>,
    /// When Novi said so.
    pub at: SystemTime,
}

/// A verified member, and when Novi was asked: the value of a cache entry.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) verified: bool,
    #[serde(flatten)]
    pub(super) identity: Identity,
    /// Unix seconds, which every instance reads alike.
    pub(super) cached_at: u64,
}

impl Entry {
    /// What the entry is worth at `now`. One from the future tells that a clock
    /// is wrong, and nothing else.
    pub(super) fn lookup(self, times: CacheTtls, now: u64) -> Lookup {
        match now.checked_sub(self.cached_at) {
            _ if !self.verified => Lookup::Miss,
            Some(age) if age < times.ttl => Lookup::Fresh(self.identity),
            Some(age) if age < times.ttl + times.stale => Lookup::Stale(self.identity),
            _ => Lookup::Miss,
        }
    }
}

/// Whether an entry of this value is fresh, and whether it is stale; `None` where it is no entry.
#[cfg(fuzzing)]
pub(crate) fn worth(value: &[u8], now: u64, ttl: u64, stale: u64) -> Option<(bool, bool)> {
    let found = serde_json::from_slice::<Entry>(value).ok()?.lookup(CacheTtls { ttl, stale }, now);
    Some((matches!(found, Lookup::Fresh(_)), matches!(found, Lookup::Stale(_))))
}

pub(super) fn unix_now() -> u64 {
    unix(SystemTime::now())
}

pub(super) fn unix(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

crate::unprintable!(Lookup, MemberUpdate, Entry);

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(json: &str, now: u64) -> &'static str {
        let times = CacheTtls { ttl: 100, stale: 50 };
        match serde_json::from_str::<Entry>(json).map(|entry| entry.lookup(times, now)) {
            Ok(Lookup::Fresh(_)) => "fresh",
            Ok(Lookup::Stale(_)) => "stale",
            Ok(Lookup::Miss) => "miss",
            Err(_) => "rubbish",
        }
    }

    #[test]
    fn an_entry_is_fresh_then_stale_then_gone() {
        let json = r#"{"verified":true,"full_name":"Ada L.","email":null,"cached_at":1000}"#;
        for (now, expected) in
            [(999, "miss"), (1000, "fresh"), (1099, "fresh"), (1100, "stale"), (1149, "stale"), (1150, "miss")]
        {
            assert_eq!(entry(json, now), expected, "{now}");
        }
    }

    #[test]
    fn an_entry_that_lies_or_makes_no_sense_does_not_count() {
        for (json, expected) in [
            (r#"{"verified":false,"full_name":"Ada L.","email":null,"cached_at":1000}"#, "miss"),
            (r#"{"verified":"true","full_name":null,"email":null,"cached_at":1000}"#, "rubbish"),
            (r#"{"verified":true,"full_name":"Ada L.","email":null}"#, "rubbish"),
            (r#"{"verified":true,"full_name":"Ada L.","email":null,"cached_at":-5}"#, "rubbish"),
            (r#"{"verified":true,"full_name":5,"email":null,"cached_at":1000}"#, "rubbish"),
            ("", "rubbish"),
            ("[]", "rubbish"),
        ] {
            assert_eq!(entry(json, 1000), expected, "{json}");
        }
    }

    #[test]
    fn the_value_is_the_answer_and_when_it_was_had() {
        let identity = Identity { full_name: Some("Ada L.".to_owned()), email: None };
        let entry = Entry { verified: true, identity, cached_at: 1_795_345_200 };
        assert_eq!(
            serde_json::to_string(&entry).unwrap(),
            r#"{"verified":true,"full_name":"Ada L.","email":null,"cached_at":1795345200}"#
        );
    }
}
