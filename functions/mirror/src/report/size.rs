//! The size of a report: how much of it is left out so that it fits.
//!
//! CloudWatch cuts log lines, and Lambda rejects results, that are too large. A report over a thousand lists must not
//! get lost because of that.

/// The maximum size of the log line and of an error's report, in bytes of escaped JSON. The limit of 200 KB leaves room
/// for the other fields of the line.
pub(super) const MAX_LOGGED: usize = 195_000;
/// The maximum size of a result in bytes. Lambda rejects 6 MB.
pub(super) const MAX_RESULT: usize = 4_900_000;

/// The part of a report that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// True if an explanation leaves out the lists that its address neither is on nor should be on.
    pub(super) omits_unrelated: bool,
    /// The maximum number of lists in the explanation of an address.
    pub(super) max_explained: usize,
    /// True if lists with status `ok` are only counted.
    pub(super) counts_ok_lists: bool,
    /// The maximum number of characters of a reason.
    pub(super) max_reason: usize,
    /// The maximum number of lists, those with the worst status first.
    pub(super) max_lists: usize,
}

impl Cut {
    /// Leaves out nothing.
    const NONE: Self = Self {
        omits_unrelated: false,
        max_explained: usize::MAX,
        counts_ok_lists: false,
        max_reason: usize::MAX,
        max_lists: usize::MAX,
    };

    /// Returns the least cut with which a report of this many lists is at most `limit` in size.
    pub(super) fn choose(limit: usize, lists: usize, size: impl Fn(Self) -> usize) -> Self {
        let halves = |of: usize| std::iter::successors(Some(of), |n| (*n > 0).then_some(n / 2));
        let mut cut = Self::NONE;
        let mut fits = |change: &dyn Fn(&mut Self)| {
            change(&mut cut);
            (size(cut) <= limit).then_some(cut)
        };
        let found = fits(&|_| ())
            .or_else(|| fits(&|cut| cut.omits_unrelated = true))
            .or_else(|| fits(&|cut| cut.counts_ok_lists = true))
            .or_else(|| halves(lists / 2).find_map(|n| fits(&|cut| cut.max_explained = n)))
            .or_else(|| [400, 200, 100].into_iter().find_map(|n| fits(&|cut| cut.max_reason = n)))
            .or_else(|| (0..lists).rev().step_by(lists / 20 + 1).find_map(|n| fits(&|cut| cut.max_lists = n)));
        found.unwrap_or(Self { max_lists: 0, ..cut })
    }
}

/// Returns the size of JSON that becomes a string in JSON.
pub(super) fn escaped_size(json: &str) -> usize {
    json.len() + json.bytes().filter(|byte| matches!(byte, b'"' | b'\\')).count()
}

/// Cuts a text to at most `max` characters, with an ellipsis at its end.
pub(crate) fn cut_text(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        None => text.to_owned(),
        Some(_) => text.chars().take(max.saturating_sub(1)).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size of a report with this many lists, of which `ok` are ok, with reasons of `reason` characters.
    fn size(lists: usize, ok: usize, reason: usize) -> impl Fn(Cut) -> usize {
        move |cut| {
            let shown = (lists - if cut.counts_ok_lists { ok } else { 0 }).min(cut.max_lists);
            100 + shown * (300 + reason.min(cut.max_reason))
        }
    }

    #[test]
    fn least_cut_that_fits_is_chosen() {
        let cut = |lists, ok, reason| Cut::choose(MAX_LOGGED, lists, size(lists, ok, reason));
        assert_eq!(cut(100, 100, 10), Cut::NONE);
        let only_counts_ok = Cut { omits_unrelated: true, counts_ok_lists: true, ..Cut::NONE };
        assert_eq!(cut(1_000, 990, 1_000), only_counts_ok);
        let blocked = cut(400, 0, 1_000);
        assert_eq!((blocked.max_reason, blocked.max_lists), (100, usize::MAX));
        let blocked = cut(1_000, 0, 1_000);
        assert!((400..500).contains(&blocked.max_lists), "{blocked:?}");
        let huge = cut(100_000, 0, 1_000);
        assert!(size(100_000, 0, 1_000)(huge) <= MAX_LOGGED, "{huge:?}");
        assert_eq!(Cut::choose(10, 5, size(5, 0, 10)).max_lists, 0);
    }

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(cut_text("Zoë", 3), "Zoë");
        assert_eq!(cut_text("Zoë B", 3), "Zo…");
        assert_eq!(cut_text("", 0), "");
        assert_eq!(cut_text(&"x".repeat(200), 100).chars().count(), 100);
    }

    #[test]
    fn escaped_size_is_the_size_of_the_string() {
        let json = r#"{"reason":"a \"b\" \\ c"}"#;
        assert_eq!(escaped_size(json) + 2, serde_json::to_string(json).unwrap_or_default().len());
    }
}
