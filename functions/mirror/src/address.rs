//! An email address, compared case-insensitively. It identifies a person, so it has no `Debug` and no `Display`.

use std::collections::BTreeSet;

use idna::AsciiDenyList;
use idna::uts46::{DnsLength, Hyphens, Uts46};
use serde::{Deserialize, Serialize};
use shared::address;

/// An address in lower case, as Mailman stores it. It may be invalid.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Address(Box<str>);

impl Address {
    /// Returns an address as Mailman writes it.
    ///
    /// Only ASCII is lowered. Other letters may become ASCII ones, and so the address of another person.
    pub(crate) fn new(text: &str) -> Self {
        Self(text.trim().to_ascii_lowercase().into())
    }

    /// Parses the address in a record of Novi, or in an entry of `keep`, and normalizes it.
    ///
    /// # Errors
    /// If the text isn't exactly one valid address, returns everything in it that may be one. A text without an `@` has
    /// nothing that may be.
    pub(crate) fn parse(text: &str) -> Result<Self, BTreeSet<Self>> {
        let only = address::only(text).and_then(|only| Self::normalized(&only)).filter(Self::is_valid);
        only.ok_or_else(|| {
            let mut readings = address::all(text);
            readings.extend(address::words(text));
            readings.push(text.to_owned());
            readings.retain(|reading| reading.contains('@'));
            let has_apostrophe = |reading: &&String| reading.contains(['\u{2018}', '\u{2019}']);
            let straight = |reading: &String| reading.replace(['\u{2018}', '\u{2019}'], "'");
            readings.extend(readings.iter().filter(has_apostrophe).map(straight).collect::<Vec<_>>());
            readings.iter().map(|reading| Self::normalized(reading).unwrap_or_else(|| Self::new(reading))).collect()
        })
    }

    /// Returns the address after the last space in a text, if there is one in front of the `@`. [`Address::parse`] reads it
    /// as the plus that Novi loses, but it may also end a name in front of this address.
    pub(crate) fn after_space(text: &str) -> Option<Self> {
        let (before, _) = text.split_once('@')?;
        let is_inner = before.trim_end().contains(char::is_whitespace) && !text.contains(['<', '"']);
        if !is_inner {
            return None;
        }
        let word = address::words(text).into_iter().next()?;
        Self::normalized(&word).filter(Self::is_valid)
    }

    /// Returns an address with the A-label of its domain. Returns `None` if it has no such domain.
    fn normalized(text: &str) -> Option<Self> {
        // The Kelvin sign and the long s, which become `k` and `s`.
        const CONFUSABLE: [char; 2] = ['\u{212a}', '\u{17f}'];
        let (local, domain) = text.rsplit_once('@').filter(|_| !text.contains(CONFUSABLE))?;
        // Domains with hyphens in the third and fourth position exist.
        let to_ascii = |domain: &str| {
            if is_plain_domain(domain) {
                return Some(domain.to_owned());
            }
            let domain = domain.as_bytes();
            let ascii =
                Uts46::new().to_ascii(domain, AsciiDenyList::STD3, Hyphens::CheckFirstLast, DnsLength::Verify).ok()?;
            Some(ascii.into_owned())
        };
        Some(Self::new(&format!("{local}@{}", to_ascii(domain)?)))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// True if Mailman accepts it. The local part may have dots anywhere, as addresses of some carriers do.
    fn is_valid(&self) -> bool {
        let is_local = |b: u8| b.is_ascii_alphanumeric() || b"-!#$%&'*+./=?_`{}~".contains(&b);
        self.0.len() <= 254
            && self.0.rsplit_once('@').is_some_and(|(local, domain)| {
                (1..=64).contains(&local.len()) && local.bytes().all(is_local) && domain.contains('.')
            })
    }
}

/// True for an ASCII domain that is its own A-label, as almost all are. Anything else is decided by UTS 46, which takes as
/// long as all the rest of reading an address.
fn is_plain_domain(domain: &str) -> bool {
    const PUNYCODE: &[u8] = b"xn--";
    let is_label = |label: &[u8]| {
        (1..=63).contains(&label.len())
            && label.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
            && !label.starts_with(b"-")
            && !label.ends_with(b"-")
            && !label.get(..PUNYCODE.len()).is_some_and(|start| start.eq_ignore_ascii_case(PUNYCODE))
    };
    domain.len() < 254 && domain.as_bytes().split(|b| *b == b'.').all(is_label)
}

shared::unprintable!(Address);

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the address, or what it may be instead.
    fn parse(text: &str) -> Result<String, Vec<String>> {
        let texts = |addresses: BTreeSet<Address>| addresses.iter().map(|a| a.as_str().to_owned()).collect();
        Address::parse(text).map(|address| address.as_str().to_owned()).map_err(texts)
    }

    proptest::proptest! {
        /// The short way for plain domains gives what UTS 46 gives.
        #[test]
        fn plain_domain_is_its_own_a_label(domain in "([a-zA-Z0-9-]{1,8}\\.){1,3}[a-z0-9-]{1,8}") {
            let (hyphens, length) = (Hyphens::CheckFirstLast, DnsLength::Verify);
            let ascii = Uts46::new().to_ascii(domain.as_bytes(), AsciiDenyList::STD3, hyphens, length);
            if is_plain_domain(&domain) {
                let ascii = ascii.unwrap_or_default().into_owned();
                proptest::prop_assert_eq!(ascii, domain.to_ascii_lowercase());
            }
        }
    }

    #[test]
    fn address_is_normalized() {
        for (text, expected) in [
            ("ada@example.org", "ada@example.org"),
            ("Ada.Lovelace+lists@Example.org", "ada.lovelace+lists@example.org"),
            ("ada lists@example.org", "ada+lists@example.org"),
            ("ada @ example.org", "ada@example.org"),
            ("\u{200b}ada@exam\u{ad}ple.org\u{feff}", "ada@example.org"),
            ("ada\u{0}@example.org\r\n", "ada@example.org"),
            ("mailto:ada@example.org", "ada@example.org"),
            ("<ada@example.org>", "ada@example.org"),
            ("Ada <mailto:ada@example.org>", "ada@example.org"),
            ("ada@example.org.", "ada@example.org"),
            ("ada@B\u{fc}cher.example", "ada@xn--bcher-kva.example"),
            ("ada@bu\u{308}cher.example", "ada@xn--bcher-kva.example"),
            ("x@xn--bcher-kva.example", "x@xn--bcher-kva.example"),
            ("ada@example\u{3002}org", "ada@example.org"),
            ("o'hara@example.co.uk", "o'hara@example.co.uk"),
            ("a*b@example.org", "a*b@example.org"),
            ("_under@example.org", "_under@example.org"),
            ("ada@ab--cd.example", "ada@ab--cd.example"),
            // Carriers have issued such addresses.
            ("a..b@carrier.example", "a..b@carrier.example"),
            ("taro.@carrier.example", "taro.@carrier.example"),
        ] {
            assert_eq!(parse(text), Ok(expected.to_owned()), "{text:?}");
        }
    }

    #[test]
    fn address_after_a_name_may_be_the_one() {
        let after_space = |text| Address::after_space(text).map(|address| address.as_str().to_owned());
        for (text, expected) in [
            ("Ann Lee ann@B\u{fc}cher.example", Some("ann@xn--bcher-kva.example")),
            ("ann lists@example.org", Some("lists@example.org")),
            ("ann@example.org", None),
            ("ann @example.org", None),
            ("Ann Lee <ann@example.org>", None),
            ("no address", None),
        ] {
            assert_eq!(after_space(text).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn everything_in_an_unclear_field_that_may_be_an_address_is_found() {
        for (text, expected) in [
            ("", &[][..]),
            ("n/a", &[]),
            ("a@x.example; b@x.example", &["a@x.example", "a@x.example; b@x.example", "b@x.example"]),
            (
                "Ada a@x.example,b@x.example",
                &["a@x.example", "ada a@x.example,b@x.example", "ada+a@x.example", "b@x.example"],
            ),
            ("a@@x.example", &["a@@x.example"]),
            ("o\u{2019}hara@x.example", &["hara@x.example", "o'hara@x.example", "o\u{2019}hara@x.example"]),
            ("ann,lee@x.example", &["ann,lee@x.example", "lee@x.example"]),
            ("ada@localhost", &["ada@localhost"]),
            ("ada@exa_mple.org", &["ada@exa_mple.org"]),
            ("d\u{e4}@example.org", &["d\u{e4}@example.org"]),
            // Only ASCII is lowered: the Kelvin sign doesn't make this kate's address.
            ("\u{212a}ate@example.org", &["\u{212a}ate@example.org"]),
            ("ada@ban\u{212a}.example", &["ada@ban\u{212a}.example"]),
        ] {
            assert_eq!(parse(text), Err(expected.iter().map(|text| (*text).to_owned()).collect()), "{text:?}");
        }
        for invalid in [
            "ada",
            "@example.org",
            "ada@",
            "ada@[10.0.0.1]",
            "ada@-example.org",
            "ada@xn--ascii-.example",
            "a|b@example.org",
            "\"ada lovelace\"@example.org",
        ] {
            assert!(parse(invalid).is_err(), "{invalid}");
        }
        assert!(parse(&format!("{}@example.org", "a".repeat(65))).is_err());
        assert!(parse(&format!("a@{}example.org", "a.".repeat(130))).is_err());
    }
}
