//! The texts in the `Email` field of the model's records, and their meaning.
//!
//! The model never parses such a text. It makes each one from an address, and remembers the meaning that contract 5.3
//! gives it. So it shares no rule, and no mistake, with the mirror.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

/// The meaning of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Field {
    /// The address, if the text is one valid address.
    pub(super) address: Option<String>,
    /// The addresses that are neither added nor removed, because the text isn't one valid address.
    pub(super) untouched: BTreeSet<String>,
    /// True if the text shows nothing.
    pub(super) is_blank: bool,
    /// The list that mail to the address reaches. If a mapping names that list, the address isn't a member's.
    pub(super) list: Option<usize>,
}

/// The texts with a meaning of their own. Every other text is an ordinary address.
#[derive(Clone, Default)]
pub(super) struct Fields {
    known: BTreeMap<String, Field>,
}

/// The ways to write one address. `{}` stands for the address, `{l}` and `{d}` for its local part and domain.
const SPELLINGS: [&str; 14] = [
    " {} ",
    "\u{200b}{}",
    "{}\u{feff}",
    "{}\u{2060}\u{a0}",
    "mailto:{}",
    "<{}>",
    "<mailto:{}>",
    "{}.",
    "{l} @{d}",
    "{l}@ {d}",
    "{l}\u{ad}@{d}",
    "{l}@\u{200b}{d}",
    "Ann Lee <{}>",
    "\u{202a}{}\u{202c}",
];

/// The ways to write two addresses.
const PAIRS: [&str; 5] = ["{}, {2}", "{};{2}", "{} {2}", "{}\n{2}", "Ann <{}>, Bea <{2}>"];

/// The ways to write an address so that it isn't clear where it begins.
const UNCLEAR: [&str; 2] = ["ann,{}", "ann;{}"];

/// Texts that aren't blank and contain no address that a list could have.
const NONSENSE: [&str; 4] = ["no address", "ö@mail.example.org", "\u{212a}ate@mail.example.org", "n/a"];

impl Fields {
    /// Returns the meaning of a text.
    pub(super) fn meaning(&self, text: &str) -> Field {
        self.known.get(text).cloned().unwrap_or_else(|| Field { address: Some(text.to_owned()), ..Field::default() })
    }

    /// Returns an unusual spelling of an address.
    pub(super) fn respell(&mut self, rng: &mut Rng, address: &str) -> String {
        let spelling = SPELLINGS[rng.usize(..SPELLINGS.len())];
        let text = if rng.u8(..5) == 0 { address.to_uppercase() } else { fill(spelling, address, "") };
        self.remember(text, Field { address: Some(address.to_owned()), ..Field::default() })
    }

    /// Returns a text with an address that differs from the given one: one with a plus that Novi lost, or with a domain
    /// that isn't ASCII.
    pub(super) fn other_address(&mut self, rng: &mut Rng, address: &str) -> String {
        let (local, domain) = address.split_once('@').unwrap_or((address, "mail.example.org"));
        let (text, meant) = match rng.u8(..6) {
            0 => (format!("{local}@Bücher.example"), format!("{local}@xn--bcher-kva.example")),
            1 => (format!("{local}@bu\u{308}cher.example"), format!("{local}@xn--bcher-kva.example")),
            // Carriers have issued such addresses.
            2 => (format!("{local}..x@{domain}"), format!("{local}..x@{domain}")),
            3 => (format!("{local}.@{domain}"), format!("{local}.@{domain}")),
            4 => (format!("{local} lists@{domain}"), format!("{local}+lists@{domain}")),
            _ => (format!(" {local}\u{a0}X@{domain} "), format!("{local}+x@{domain}")),
        };
        self.remember(text, Field { address: Some(meant), ..Field::default() })
    }

    /// Returns a text with two addresses, neither of which may be touched.
    pub(super) fn pair(&mut self, rng: &mut Rng, first: &str, second: &str) -> String {
        let text = fill(PAIRS[rng.usize(..PAIRS.len())], first, second);
        let untouched = BTreeSet::from([first.to_owned(), second.to_owned()]);
        self.remember(text, Field { untouched, ..Field::default() })
    }

    /// Returns a text in which it isn't clear where the address begins, so that it may not be touched.
    pub(super) fn unclear(&mut self, rng: &mut Rng, address: &str) -> String {
        let text = fill(UNCLEAR[rng.usize(..UNCLEAR.len())], address, "");
        self.remember(text, Field { untouched: BTreeSet::from([address.to_owned()]), ..Field::default() })
    }

    /// Returns a text that isn't an address.
    pub(super) fn nonsense(&mut self, rng: &mut Rng) -> String {
        self.remember(NONSENSE[rng.usize(..NONSENSE.len())].to_owned(), Field::default())
    }

    /// Returns a text that shows nothing.
    pub(super) fn blank(&mut self, rng: &mut Rng) -> String {
        let text = ["", " ", "\u{200b}", "\u{a0}\t"][rng.usize(..4)].to_owned();
        self.remember(text, Field { is_blank: true, ..Field::default() })
    }

    /// Returns an address that belongs to a list: the one to post to, or one for commands.
    pub(super) fn of_list(&mut self, rng: &mut Rng, list: usize, id: &str) -> String {
        let (name, domain) = id.split_once('.').unwrap_or((id, ""));
        let text = format!("{name}{}@{domain}", ["", "-request", "-owner", "-bounces"][rng.usize(..4)]);
        self.remember(text.clone(), Field { address: Some(text), list: Some(list), ..Field::default() })
    }

    fn remember(&mut self, text: String, field: Field) -> String {
        self.known.insert(text.clone(), field);
        text
    }
}

fn fill(template: &str, first: &str, second: &str) -> String {
    let (local, domain) = first.split_once('@').unwrap_or((first, ""));
    template.replace("{l}", local).replace("{d}", domain).replace("{2}", second).replace("{}", first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_keeps_the_meaning_that_it_was_made_with() {
        let mut rng = Rng::with_seed(1);
        let mut fields = Fields::default();
        let ann = "ann@mail.example.org";
        for _ in 0..200 {
            let text = fields.respell(&mut rng, ann);
            assert_eq!(fields.meaning(&text).address.as_deref(), Some(ann), "{text:?}");
            let text = fields.other_address(&mut rng, ann);
            assert_ne!(fields.meaning(&text).address.as_deref(), Some(ann), "{text:?}");
            let text = fields.pair(&mut rng, ann, "bea@mail.example.org");
            assert_eq!((fields.meaning(&text).address, fields.meaning(&text).untouched.len()), (None, 2), "{text:?}");
            let text = fields.blank(&mut rng);
            assert!(fields.meaning(&text).is_blank, "{text:?}");
            let text = fields.nonsense(&mut rng);
            assert_eq!(fields.meaning(&text), Field::default(), "{text:?}");
        }
        assert_eq!(fields.meaning(ann).address.as_deref(), Some(ann));
    }
}
