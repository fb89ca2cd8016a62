//! Text as people type and paste it: invisible characters, every kind of space, and names without a letter.

use std::borrow::Cow;

use icu_properties::CodePointSetData;
use icu_properties::props::{DefaultIgnorableCodePoint, ExtendedPictographic, RegionalIndicator};
use unicode_segmentation::UnicodeSegmentation;

/// True if a character shows nothing by itself: Unicode's default-ignorable ones, such as a zero-width space.
#[must_use]
pub fn is_invisible(c: char) -> bool {
    !c.is_ascii() && CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c)
}

/// Removes spaces, invisible characters and control characters from both ends. A variation selector of the last
/// character stays, because it changes that character.
#[must_use]
pub fn trim(text: &str) -> &str {
    let is_hidden = |c: char| c.is_whitespace() || c.is_control() || is_invisible(c);
    let text = text.trim_start_matches(is_hidden);
    let end = text.trim_end_matches(is_hidden).len();
    let selector = text[end..].chars().next().filter(|c| is_variation_selector(*c) && end > 0);
    &text[..end + selector.map_or(0, char::len_utf8)]
}

/// Returns a name without control characters, line separators and characters that change the direction of the text around it,
/// trimmed. Returns `None` if it is blank, which a name without a letter, digit or emoji is.
#[must_use]
pub fn name(text: &str) -> Option<Cow<'_, str>> {
    let is_unwanted = |c: char| c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if !text.contains(is_name_character) {
        return None;
    }
    Some(if text.contains(is_unwanted) {
        let kept: String = text.chars().filter(|c| !is_unwanted(*c)).collect();
        Cow::Owned(trim(&kept).to_owned())
    } else {
        Cow::Borrowed(trim(text))
    })
}

/// Returns the start of a text, with at most `max` characters and no grapheme cut in half.
#[must_use]
pub fn shorten(text: &str, max: usize) -> &str {
    let Some((limit, _)) = text.char_indices().nth(max) else { return text };
    let end = text.grapheme_indices(true).map(|(start, _)| start).take_while(|start| *start <= limit).last();
    text[..end.unwrap_or_default()].trim_end()
}

/// Returns the initial of a name: the first grapheme with a letter, digit or emoji.
#[must_use]
pub fn initial(name: &str) -> Option<&str> {
    name.graphemes(true).find(|grapheme| grapheme.contains(is_name_character))
}

fn is_name_character(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_alphanumeric();
    }
    let is_emoji = || {
        CodePointSetData::new::<ExtendedPictographic>().contains(c)
            || CodePointSetData::new::<RegionalIndicator>().contains(c)
    };
    // Some fillers are letters and show nothing.
    (c.is_alphanumeric() || is_emoji()) && !is_invisible(c)
}

fn is_variation_selector(c: char) -> bool {
    matches!(c, '\u{180b}'..='\u{180d}' | '\u{180f}' | '\u{fe00}'..='\u{fe0f}' | '\u{e0100}'..='\u{e01ef}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces_and_invisible_characters_are_trimmed() {
        for (text, expected) in [
            ("Ada", "Ada"),
            ("  Ada\t\r\n", "Ada"),
            ("\u{a0}\u{2003}\u{3000}Ada\u{202f}", "Ada"),
            ("\u{200b}\u{feff}Ada\u{200d}\u{200e}\u{2060}", "Ada"),
            ("\u{0}Ada\u{7f}\u{9f}", "Ada"),
            ("\u{ad}\u{34f}\u{61c}\u{115f}\u{3164}\u{e0001}", ""),
            ("A\u{200d}da", "A\u{200d}da"),
            // Selectors of an emoji and of a variant of an ideograph.
            ("Ada \u{2764}\u{fe0f}\u{200b}", "Ada \u{2764}\u{fe0f}"),
            ("\u{8fbb}\u{e0100}", "\u{8fbb}\u{e0100}"),
            ("\u{fe0f}", ""),
            ("", ""),
        ] {
            assert_eq!(trim(text), expected, "{text:?}");
        }
    }

    #[test]
    fn text_is_shortened_between_graphemes() {
        for (text, max, expected) in [
            ("Ada", 3, "Ada"),
            ("Ada", 2, "Ad"),
            ("Ada Lee", 4, "Ada"),
            ("Ada", 0, ""),
            ("ö\u{308}é", 2, "ö\u{308}"),
            ("aö\u{308}", 2, "a"),
            ("👩\u{200d}👩\u{200d}👧", 4, ""),
        ] {
            assert_eq!(shorten(text, max), expected, "{text}, {max}");
        }
    }

    #[test]
    fn name_is_cleaned_and_blank_without_a_letter() {
        for (text, expected) in [
            (" Ada ", Some("Ada")),
            ("Ada\u{0} B\u{8}ea", Some("Ada Bea")),
            ("\u{202e}Ada\u{202c} \u{2066}B\u{2069}", Some("Ada B")),
            ("'t Hooft", Some("'t Hooft")),
            ("3M", Some("3M")),
            ("Ａ", Some("Ａ")),
            ("\u{1f642}", Some("\u{1f642}")),
            ("-", None),
            ("...", None),
            ("\u{200b}", None),
            ("\u{202e}\u{202d}", None),
            // Fillers that are letters by their category.
            ("\u{3164}\u{115f}\u{ffa0}", None),
            ("", None),
        ] {
            assert_eq!(name(text).as_deref(), expected, "{text:?}");
        }
    }
}
