//! Email addresses in a field as people fill it: one address, several, a name in front, a note after it, and the plus
//! that Novi loses.
//!
//! An address here is text around an `@`. Nothing checks if mail can be sent to it.

use crate::text::{is_invisible, trim};

/// The maximum number of characters that are read of a field. Its text comes from Novi, and finding addresses takes time.
const MAX_LENGTH: usize = 1_000;

/// The only address in a field, if there is exactly one `@`, and it is clear where the address begins and ends. Another
/// guess might be the address of another person.
#[must_use]
pub fn only(field: &str) -> Option<String> {
    if is_plain(trim(field)) {
        return Some(trim(field).to_owned());
    }
    let is_short = field.chars().take(MAX_LENGTH + 1).count() <= MAX_LENGTH;
    let found = find(field).next().filter(|found| found.is_clear && is_short && field.matches('@').count() == 1)?;
    Some(found.text)
}

/// The first address in a field.
#[must_use]
pub fn first(field: &str) -> Option<String> {
    if is_plain(trim(field)) {
        return Some(trim(field).to_owned());
    }
    find(field).next().map(|address| address.text)
}

/// Every address in a field, in order.
#[must_use]
pub fn all(field: &str) -> Vec<String> {
    find(field).map(|address| address.text).collect()
}

/// Every word with an `@` in a field, without the characters that can't be in an address. A word may be an address that
/// follows a name, the spaces of which [`all`] reads as part of it.
#[must_use]
pub fn words(field: &str) -> Vec<String> {
    let field: String = field.chars().filter(|c| is_shown(*c)).collect();
    let ends = |c: char| c.is_whitespace() || (is_separator(c) && c != '@');
    let words = field.split(ends).map(|word| word.trim_matches(['.', '-', '/', '|', '&', '\'']));
    words.filter(|word| word.contains('@')).map(str::to_owned).collect()
}

/// True unless a character shows nothing, and so is part of no address.
fn is_shown(c: char) -> bool {
    !is_invisible(c) && (!c.is_control() || is_line_break(c) || is_space(c))
}

/// An address that was found in a field.
struct Found {
    text: String,
    /// True if it is clear where it begins and ends.
    is_clear: bool,
}

/// True if the whole text is an address in which nothing needs to be changed, as almost all are.
fn is_plain(text: &str) -> bool {
    let is_local = |b: u8| b.is_ascii_alphanumeric() || b"+._-".contains(&b);
    let is_domain = |b: u8| b.is_ascii_alphanumeric() || b".-".contains(&b);
    text.split_once('@').is_some_and(|(local, domain)| {
        local.bytes().all(is_local)
            && domain.bytes().all(is_domain)
            && local.bytes().any(|b| b.is_ascii_alphanumeric())
            && domain.bytes().last().is_some_and(|b| b.is_ascii_alphanumeric())
    })
}

/// True for a character that ends an address in any case. A line break does, too.
fn is_separator(c: char) -> bool {
    const ASCII: &str = "<>()[]\",;:\\@";
    // Quotation marks, brackets and separators of other scripts.
    const OTHERS: &str = "\u{2018}\u{2019}\u{201a}\u{201b}\u{201c}\u{201d}\u{201e}\u{201f}\u{2039}\u{203a}\u{ab}\u{bb}\
                          \u{ff1c}\u{ff1e}\u{ff08}\u{ff09}\u{ff0c}\u{ff1b}\u{ff1a}\u{3001}\u{300c}\u{300d}";
    ASCII.contains(c) || (!c.is_ascii() && OTHERS.contains(c)) || is_line_break(c)
}

fn is_line_break(c: char) -> bool {
    matches!(c, '\n' | '\u{b}' | '\u{c}' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

fn is_space(c: char) -> bool {
    c.is_whitespace() && !is_line_break(c)
}

fn is_in_domain(c: char) -> bool {
    if c.is_ascii() { c.is_ascii_alphanumeric() || ".-_".contains(c) } else { !is_space(c) && !is_separator(c) }
}

/// Finds the addresses in a field.
fn find(field: &str) -> impl Iterator<Item = Found> {
    let field: Vec<char> = field.chars().take(MAX_LENGTH).filter(|c| is_shown(*c)).collect();
    // The end of the address before.
    let mut end = 0;
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            at += field.get(at..)?.iter().position(|c| *c == '@')? + 1;
            // An `@` in a quoted local part.
            if field.get(at..).is_some_and(is_end_of_quoted_local) {
                continue;
            }
            let domain = domain(&field, at);
            let before = &field[end..at - 1];
            let Some(mut local) = local(before, end > 0).filter(|_| !domain.text.is_empty()) else {
                end = at;
                continue;
            };
            let is_clear = !domain.has_gap && is_clear(before, &field[domain.end..]);
            (end, at) = (domain.end, domain.end);
            let next = field.get(domain.end);
            if local.starts_with('\'') && next == Some(&'\'') {
                local.remove(0);
            }
            if !local.is_empty() {
                return Some(Found { text: format!("{local}@{}", domain.text), is_clear });
            }
        }
    })
}

/// True unless what surrounds an address may be a part of it, with a slip in between: `ann,lee@example.org`, or
/// `ann@example.ne t`.
fn is_clear(before: &[char], after: &[char]) -> bool {
    let start = start_of_local(before);
    let (Some(separator), preceding) = (before[..start].last(), &before[..start.saturating_sub(1)]) else {
        return is_note(after);
    };
    let is_mailto = || {
        let word = preceding.iter().rev().take(6).collect::<String>();
        *separator == ':' && word.eq_ignore_ascii_case("otliam")
    };
    let is_word_before = match separator {
        '<' => false,
        ',' | ';' | '\u{ff0c}' | '\u{ff1b}' | '\u{3001}' => preceding.iter().any(|c| c.is_alphanumeric()),
        c if is_line_break(*c) || before.get(start).is_some_and(|c| c.is_whitespace()) => false,
        _ => preceding.last().is_some_and(|c| c.is_alphanumeric()) && !is_mailto(),
    };
    !is_word_before && (is_note(after) || (is_mailto() && after.first() == Some(&'?')))
}

/// True if there is no word after an address, except in brackets.
fn is_note(after: &[char]) -> bool {
    let mut depth = 0_usize;
    for c in after {
        match c {
            '(' | '[' | '<' | '\u{ff08}' | '\u{ff1c}' => depth += 1,
            ')' | ']' | '>' | '\u{ff09}' | '\u{ff1e}' => depth = depth.saturating_sub(1),
            c if depth == 0 && c.is_alphanumeric() => return false,
            _ => {}
        }
    }
    true
}

/// Returns the index after the last separator. An apostrophe between two letters isn't one, whatever its shape.
fn start_of_local(before: &[char]) -> usize {
    let is_letter = |index: Option<usize>| index.and_then(|i| before.get(i)).is_some_and(|c| c.is_alphabetic());
    let is_apostrophe = |i: usize| {
        matches!(before[i], '\u{2018}' | '\u{2019}') && is_letter(i.checked_sub(1)) && is_letter(i.checked_add(1))
    };
    (0..before.len())
        .rev()
        .find(|i| is_separator(before[*i]) && !is_apostrophe(*i))
        .map_or(0, |separator| separator + 1)
}

/// Returns the local part at the end of `before`. Each space in it is a plus that Novi has lost. If another address
/// comes before it, only the last word belongs to it.
fn local(before: &[char], follows_another: bool) -> Option<String> {
    let end = before.iter().rposition(|c| !c.is_whitespace())? + 1;
    let before = &before[..end];
    let with_pluses = |text: &[char]| text.iter().map(|c| if c.is_whitespace() { '+' } else { *c }).collect();
    if let Some(inner) = before.strip_suffix(&['"']) {
        let start = inner.iter().rposition(|c| *c == '"')?;
        return Some(with_pluses(&before[start..]));
    }
    let start = start_of_local(before);
    let text = &before[start..];
    if follows_another && start == 0 {
        let last = text.rsplit(|c| is_space(*c)).next()?;
        return Some(last.iter().skip_while(|c| "/|&".contains(**c)).collect());
    }
    // A bullet or a dash in front of the address is not part of it.
    let words: Vec<&[char]> = text.split(|c| is_space(*c)).collect();
    let first = words.iter().position(|word| word.iter().any(|c| c.is_alphanumeric())).unwrap_or(0);
    let skipped: usize = words[..first].iter().map(|word| word.len() + 1).sum();
    let text = &text[skipped..];
    let text = &text[text.iter().take_while(|c| is_space(**c)).count()..];
    (!text.is_empty()).then(|| with_pluses(text))
}

/// True if a quoted local part ends after these characters, as in `"ann@home"@example.org`.
fn is_end_of_quoted_local(after: &[char]) -> bool {
    let end = after.iter().position(|c| is_separator(*c));
    end.is_some_and(|end| after[end] == '"' && after.get(end + 1) == Some(&'@'))
}

/// A domain in a field.
struct Domain {
    /// Empty if there is none.
    text: String,
    /// True if spaces were dropped inside it, so that its end is a guess.
    has_gap: bool,
    /// The index after it.
    end: usize,
}

/// Returns the domain at `start`.
fn domain(field: &[char], start: usize) -> Domain {
    let skip_spaces = |from: usize| from + field[from..].iter().take_while(|c| c.is_whitespace()).count();
    let word_end = |from: usize| from + field[from..].iter().take_while(|c| is_in_domain(**c)).count();
    let mut next = skip_spaces(start);
    let mut end = word_end(next);
    let mut text: String = field[next..end].iter().collect();
    let mut has_gap = false;
    while field.get(end).is_some_and(|c| is_space(*c)) {
        next = skip_spaces(end);
        let next_end = word_end(next);
        let word: String = field[next..next_end].iter().collect();
        // The word may be the beginning of the next address, or of a note.
        let is_whole = field.get(next_end).is_none_or(|c| c.is_whitespace() || (is_separator(*c) && *c != '@'));
        let is_local = field.get(skip_spaces(next_end)) == Some(&'@');
        let is_last = field[next_end..].iter().all(|c| c.is_whitespace());
        if word.is_empty() || !is_whole || is_local || !continues(&text, &word, is_last) {
            break;
        }
        text += &word;
        (end, has_gap) = (next_end, true);
    }
    text.truncate(text.trim_end_matches(['.', '-', '_']).len());
    if !text.contains(char::is_alphanumeric) {
        text.clear();
    }
    Domain { text, has_gap, end }
}

/// True if a word after a space looks like the rest of a domain. `is_last` is true if it ends the field.
fn continues(domain: &str, word: &str, is_last: bool) -> bool {
    const TOP_LEVEL: [&str; 5] = [".com", ".edu", ".gov", ".net", ".org"];
    let may_go_on = || {
        let is_part = word.contains('.') || word.len() <= 2;
        is_last && is_part && !word.contains(char::is_uppercase) && !TOP_LEVEL.iter().any(|end| domain.ends_with(end))
    };
    !is_complete(domain) || word.starts_with('.') || may_go_on()
}

/// True if a domain looks as if nothing were missing at its end.
fn is_complete(domain: &str) -> bool {
    domain.rsplit_once('.').is_some_and(|(rest, last)| !rest.is_empty() && last.chars().count() > 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn address_is_found_however_it_is_written() {
        for (field, expected) in [
            ("ann@example.org", Some("ann@example.org")),
            ("Ann.Lee+Lists@Example.ORG", Some("Ann.Lee+Lists@Example.ORG")),
            (" ann@example.org\r\n", Some("ann@example.org")),
            // Each space in the local part is a lost plus.
            ("ann lists@example.org", Some("ann+lists@example.org")),
            ("ann  a b@example.org", Some("ann++a+b@example.org")),
            ("ann\u{a0}lists@example.org", Some("ann+lists@example.org")),
            // Next to the @ and in the domain it is a slip.
            ("ann@ example.org", Some("ann@example.org")),
            ("ann @example.org", Some("ann@example.org")),
            ("ann lists \u{a0}@\u{2003} example.org", Some("ann+lists@example.org")),
            ("ann@example .org", Some("ann@example.org")),
            ("ann@example. org", Some("ann@example.org")),
            ("ann@exam ple.org", Some("ann@example.org")),
            ("ann@mail.exam ple.org", Some("ann@mail.example.org")),
            ("ann@example.o rg", Some("ann@example.org")),
            ("ann@example\u{a0}.org", Some("ann@example.org")),
            // Invisible characters.
            ("\u{200b}ann@example.org", Some("ann@example.org")),
            ("ann@example.org\u{feff}", Some("ann@example.org")),
            ("an\u{ad}n\u{200d}@exam\u{2060}ple.org", Some("ann@example.org")),
            ("ann\u{0}@example.org\u{1}", Some("ann@example.org")),
            // Names, quotes and notes around it.
            ("Ann Lee <ann@example.org>", Some("ann@example.org")),
            ("\"Lee, Ann\" <ann lists@example.org>", Some("ann+lists@example.org")),
            ("<ann@example.org>", Some("ann@example.org")),
            ("ann@example.org <Ann Lee>", Some("ann@example.org")),
            ("\"ann@example.org\"", Some("ann@example.org")),
            ("'ann@example.org'", Some("ann@example.org")),
            ("\u{201c}ann@example.org\u{201d}", Some("ann@example.org")),
            ("o'hara@example.org", Some("o'hara@example.org")),
            ("'t.hooft@example.org", Some("'t.hooft@example.org")),
            ("ann@example.org.", Some("ann@example.org")),
            ("ann@example.org (work)", Some("ann@example.org")),
            ("ann@example.org work", Some("ann@example.org")),
            ("ann@example.org Dr. Lee", Some("ann@example.org")),
            ("ann@example.org MD", Some("ann@example.org")),
            ("ann@example.org www.example.org", Some("ann@example.org")),
            ("ann@gmail.co m", Some("ann@gmail.com")),
            ("ann@example.ne t", Some("ann@example.net")),
            // An apostrophe that software has made typographic.
            ("o\u{2019}hara@example.org", Some("o\u{2019}hara@example.org")),
            ("ann@example.org - work only", Some("ann@example.org")),
            ("- ann@example.org", Some("ann@example.org")),
            ("Email: ann@example.org", Some("ann@example.org")),
            ("Ann Lee\nann@example.org", Some("ann@example.org")),
            ("mailto:ann@example.org", Some("ann@example.org")),
            ("MAILTO: ann@example.org?subject=x", Some("ann@example.org")),
            ("<mailto:ann@example.org>", Some("ann@example.org")),
            // Other scripts, and quoted local parts.
            ("ünï@bücher.example", Some("ünï@bücher.example")),
            ("आन@हिन्दी.example", Some("आन@हिन्दी.example")),
            ("\"ann lee\"@example.org", Some("\"ann+lee\"@example.org")),
            ("\"ann@home\"@example.org", Some("\"ann@home\"@example.org")),
            ("a/b=c!#$%&*?^`{|}~@example.org", Some("a/b=c!#$%&*?^`{|}~@example.org")),
            ("root@localhost", Some("root@localhost")),
            ("_@example.org", Some("_@example.org")),
            // No address.
            ("", None),
            ("no address at all", None),
            ("@", None),
            ("ann@", None),
            ("@example.org", None),
            ("ann @", None),
            ("a@@b", None),
            ("ann@.", None),
            ("n/a", None),
            ("\u{200b}", None),
        ] {
            assert_eq!(first(field).as_deref(), expected, "{field:?}");
        }
    }

    #[test]
    fn every_address_of_several_is_found() {
        for (field, expected) in [
            ("ann@a.example, bob@b.example", &["ann@a.example", "bob@b.example"][..]),
            ("ann@a.example;bob@b.example;", &["ann@a.example", "bob@b.example"]),
            ("ann@a.example bob@b.example", &["ann@a.example", "bob@b.example"]),
            ("ann@a.example / bob@b.example", &["ann@a.example", "bob@b.example"]),
            ("ann@a.example/bob@b.example", &["ann@a.example", "bob@b.example"]),
            ("ann@a.example or bob@b.example", &["ann@a.example", "bob@b.example"]),
            ("ann@a.example\r\nbob@b.example", &["ann@a.example", "bob@b.example"]),
            ("Ann <ann@a.example>, \"B\" <bob x@b.example>", &["ann@a.example", "bob+x@b.example"]),
            ("ann@ a.example bob @b.example", &["ann@a.example", "bob@b.example"]),
            ("ann@a .example bob@b. example", &["ann@a.example", "bob@b.example"]),
            ("ann@ , bob@b.example", &["bob@b.example"]),
            ("ann@a.example, ann@a.example", &["ann@a.example", "ann@a.example"]),
        ] {
            assert_eq!(all(field), expected, "{field:?}");
            assert_eq!(first(field).as_deref(), Some(expected[0]), "{field:?}");
            assert_eq!(only(field), None, "{field:?}");
        }
    }

    #[test]
    fn words_with_an_at_sign_are_found() {
        for (field, expected) in [
            ("Ann ann@a.example; bob@b.example.", &["ann@a.example", "bob@b.example"][..]),
            ("<mailto:ann@a.example>/'bob@b.example'", &["ann@a.example", "bob@b.example"]),
            ("\u{200b}ann@a.ex\u{ad}ample", &["ann@a.example"]),
            ("a@@b.example", &["a@@b.example"]),
            ("n/a", &[]),
        ] {
            assert_eq!(words(field), expected, "{field:?}");
        }
    }

    #[test]
    fn only_address_is_one_that_needs_no_guess() {
        for field in ["ann@example.org", "Ann <ann@example.org>", "ann@ example.org", "ann@example.org (work)"] {
            assert_eq!(only(field).as_deref(), Some("ann@example.org"), "{field}");
        }
        for field in
            [",ann@example.org", "Ann Lee\nann@example.org", "Email: ann@example.org", "\"Lee, Ann\" ann@example.org"]
        {
            assert_eq!(only(field).as_deref(), Some("ann@example.org"), "{field}");
        }
        // What comes before may be a part of the local part, which would otherwise be another person's.
        for field in [
            "ann,lee@example.org",
            "ann;lee@example.org",
            "ann:lee@example.org",
            "ann\u{ff0c}lee@example.org",
            "ann\\lee@example.org",
            "(ann)lee@example.org",
            "ann\"lee@example.org",
            "Lee, ann@example.org",
            "\"ann@home\"@example.org",
        ] {
            assert_eq!(only(field), None, "{field}");
        }
        // What follows may be a part of the domain.
        for field in [
            "ann@exam ple.org",
            "ann@example. org",
            "ann@gmail.co m",
            "ann@example.ne t",
            "ann@mail.example,org",
            "ann@mail.example;org",
            "ann@example.org Dr. Lee",
            "ann@example.org www.example.org",
            "ann@example.org work",
            "ann@a.example@b.example",
            "no address",
            "",
        ] {
            assert_eq!(only(field), None, "{field}");
        }
        for field in [
            "ann@example.org,",
            "ann@example.org <Ann Lee>",
            "MAILTO:ann@example.org?subject=Lee",
            "(work) ann@example.org",
        ] {
            assert_eq!(only(field).as_deref(), Some("ann@example.org"), "{field}");
        }
        // An apostrophe of another shape.
        for name in ["o\u{2019}hara", "d\u{2018}angelo"] {
            assert_eq!(only(&format!("{name}@example.org")), Some(format!("{name}@example.org")));
            assert_eq!(first(&format!("\u{2018}{name}@example.org\u{2019}")), Some(format!("{name}@example.org")));
        }
    }

    #[test]
    fn long_field_takes_no_time_and_has_no_clear_address() {
        let field = format!("ann@b{}", " b".repeat(500_000));
        assert_eq!(only(&field), None);
        // Without the limit, it would be half a million characters.
        assert!(first(&field).is_some_and(|first| first.len() <= MAX_LENGTH));
        assert!(all(&field).len() == 1 && words(&field) == ["ann@b"]);
        assert_eq!(only(&format!("ann@example.org{}", " ".repeat(5_000))).as_deref(), Some("ann@example.org"));
    }

    proptest! {
        /// Any text has addresses with one `@` at least, without spaces or invisible characters, or none.
        #[test]
        fn no_field_panics(field in "[a-z@. <>\"',;\\-\u{200b}\u{a0}\\n]{0,40}|\\PC{0,20}") {
            let found = all(&field);
            prop_assert_eq!(first(&field), found.first().cloned());
            prop_assert!(found.len() <= field.matches('@').count());
            for address in found {
                let (local, domain) = address.rsplit_once('@').unwrap_or_default();
                prop_assert!(!local.is_empty() && !domain.is_empty(), "{}", address);
                prop_assert!(!address.contains(|c: char| c.is_whitespace() || c.is_control() || is_invisible(c)));
                // An address that was found is found again as it is, unless it is quoted.
                prop_assert!(address.contains('"') || first(&address).is_some(), "{}", address);
            }
        }

        /// An ordinary address comes back unchanged, with any spaces and invisible characters around it.
        #[test]
        fn ordinary_address_is_unchanged(
            address in "[a-z0-9][a-z0-9.+_-]{0,10}@[a-z0-9]{1,8}(\\.[a-z]{2,5}){1,2}",
            around in "[ \u{200b}\u{a0}\u{feff}\\t]{0,3}",
        ) {
            prop_assert_eq!(first(&format!("{around}{address}{around}")), Some(address.clone()));
            prop_assert_eq!(only(&format!("{around}<{address}>{around}")), Some(address));
        }
    }
}
