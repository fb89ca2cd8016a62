//! An email address, compared case-insensitively. It identifies a person, so it has no `Debug` and no `Display`.

use email_address::{EmailAddress, Options};

/// An address in lower case, as Mailman stores it. It may be invalid.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Address(Box<str>);

impl Address {
    pub(crate) fn new(text: &str) -> Self {
        Self(text.trim().to_lowercase().into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// True if it roughly looks like an address, which is sufficient for `keep`.
    pub(crate) fn is_plausible(&self) -> bool {
        self.0.contains('@') && !self.0.contains(char::is_whitespace)
    }

    /// True if mail can be sent to it and Mailman accepts it: it is plain ASCII, and its domain has at least two
    /// labels.
    pub(crate) fn is_valid(&self) -> bool {
        const OPTIONS: Options =
            Options { minimum_sub_domains: 2, allow_domain_literal: false, allow_display_text: false };
        let Some((_, domain)) = self.0.rsplit_once('@') else {
            return false;
        };
        self.0.is_ascii()
            && self.0.len() <= 254
            && !self.0.contains([' ', '"', ',', ';'])
            && !domain.contains('_')
            && EmailAddress::parse_with_options(&self.0, OPTIONS).is_ok()
    }
}

shared::unprintable!(Address);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_valid_if_it_can_receive_mail_and_mailman_accepts_it() {
        for valid in [
            "ada@example.org",
            "Ada.Lovelace+lists@Example.org",
            "o'hara@example.co.uk",
            "a*b@example.org",
            "x@xn--bcher-kva.example",
            "_under@example.org",
        ] {
            assert!(Address::new(valid).is_valid(), "{valid}");
        }
        for invalid in [
            "",
            "ada",
            "@example.org",
            "ada@",
            "ada@localhost",
            "a@@example.org",
            "a..b@example.org",
            ".a@example.org",
            "ada@exa_mple.org",
            "ada@[10.0.0.1]",
            "Ada <ada@example.org>",
            "a@example.org,b@example.org",
            "a@example.org;+b@example.org",
            "dä@example.org",
            "ada@bücher.example",
            "ada@example..org",
            "ada@-example.org",
        ] {
            assert!(!Address::new(invalid).is_valid(), "{invalid}");
        }
        let long = format!("{}@example.org", "a".repeat(65));
        assert!(!Address::new(&long).is_valid());
    }
}
