//! The integrity of what is read page by page: a group, or the bulk list of all records.

use std::collections::HashSet;

use shared::member::MemberId;
use shared::novi::Page;

use crate::directory::GroupEnd;

/// The maximum number of rows. Nothing is this large, and a server that generates rows without end must not be read
/// forever.
const MAX_ROWS: usize = 500_000;
/// The maximum number of consecutive pages in which no row has a new id. If a server ignores the offset, a page of rows
/// without an id looks like a new one each time.
const MAX_PAGES_WITHOUT_ID: usize = 10;

/// A group, or the bulk list, that is being read.
///
/// Pages overlap by one row. Without the overlap, a member who leaves between two pages would shift a row out of the
/// next page, and if another member joins at the same time, not even the count would change.
///
/// A person may be listed twice, and then counts twice in the total.
#[derive(Default)]
pub(crate) struct Pages {
    pub(crate) members: Vec<MemberId>,
    seen: HashSet<MemberId>,
    pub(crate) rows_without_id: usize,
    /// The number of consecutive pages in which no new row had an id.
    pages_without_id: usize,
    /// The number of rows that were read. A row in which two pages overlap counts once.
    rows: usize,
    /// The index of the first row of the next page.
    pub(crate) offset: usize,
    /// The last row of the previous page, if the next page must start with it.
    overlap: Option<Option<MemberId>>,
    /// The number of rows according to the first page. `None` before that page.
    total: Option<Option<u64>>,
}

impl Pages {
    /// Returns how many rows are missing, if Novi said how many there are.
    pub(crate) fn missing_rows(&self) -> usize {
        let total = self.total.flatten().map_or(0, |total| usize::try_from(total).unwrap_or(usize::MAX));
        total.saturating_sub(self.rows)
    }

    /// Adds a page. Returns the result if this page is the last one.
    pub(crate) fn add(&mut self, page: Page) -> Option<GroupEnd> {
        let incomplete = |reason: &str| Some(GroupEnd::Incomplete(reason.to_owned()));
        if *self.total.get_or_insert(page.total) != page.total {
            return incomplete("its TotalCount changed while it was being read");
        }
        let rows = page.rows.len();
        let before = (self.members.len(), self.rows_without_id);
        let overlaps = self.overlap.is_some();
        let has_shifted = overlaps && self.overlap != page.rows.first().copied();
        self.overlap = page.rows.last().copied().filter(|_| rows > 1);
        self.offset += rows - usize::from(self.overlap.is_some());
        for row in page.rows.into_iter().skip(usize::from(overlaps && !has_shifted)) {
            self.rows += 1;
            match row {
                Some(id) if self.seen.insert(id) => self.members.push(id),
                Some(_) => {}
                None => self.rows_without_id += 1,
            }
        }
        let has_new_people = (self.members.len(), self.rows_without_id) != before;
        self.pages_without_id = if self.members.len() == before.0 { self.pages_without_id + 1 } else { 0 };
        // Without the overlap, a page without new people may be one that was read before.
        let may_repeat = !has_new_people && !overlaps && rows > 0;
        match page.total {
            _ if has_shifted && !has_new_people && rows > 0 => incomplete("its pages repeat"),
            _ if has_shifted => incomplete("it changed while it was being read"),
            Some(_) if may_repeat => incomplete("its pages repeat"),
            Some(total) if self.rows as u64 == total => Some(GroupEnd::Complete),
            Some(total) if self.rows as u64 > total => incomplete("it has more rows than its TotalCount"),
            Some(_) if !has_new_people => incomplete("it ended before its TotalCount"),
            // The end is an empty page, or a page that only contains the overlapping row.
            None if rows == usize::from(overlaps) => Some(GroupEnd::Complete),
            None if !has_new_people => incomplete("its pages repeat"),
            _ if self.pages_without_id > MAX_PAGES_WITHOUT_ID => incomplete("its pages repeat"),
            _ if self.rows > MAX_ROWS => incomplete("it has too many rows"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn id(n: u128) -> Option<MemberId> {
        MemberId::parse(&Uuid::from_u128(n).hyphenated().to_string())
    }

    fn page(total: Option<u64>, rows: impl IntoIterator<Item = u128>) -> Page {
        Page { total, rows: rows.into_iter().map(id).collect() }
    }

    /// Reads pages until the group ends, which must be at the last one.
    fn read_all(pages: Vec<Page>) -> (usize, GroupEnd) {
        let mut group = Pages::default();
        let last = pages.len() - 1;
        for (index, page) in pages.into_iter().enumerate() {
            if let Some(end) = group.add(page) {
                assert_eq!(index, last, "the group ended early");
                return (group.members.len(), end);
            }
        }
        panic!("the group did not end");
    }

    #[test]
    fn counted_group_ends_at_its_total_count() {
        assert_eq!(read_all(vec![page(Some(0), [])]), (0, GroupEnd::Complete));
        assert_eq!(read_all(vec![page(Some(3), [1, 2]), page(Some(3), [2, 3])]), (3, GroupEnd::Complete));
        assert_eq!(read_all(vec![page(Some(2), [1]), page(Some(2), [2])]), (2, GroupEnd::Complete));
    }

    #[test]
    fn person_who_is_listed_twice_counts_twice() {
        assert_eq!(read_all(vec![page(Some(4), [1, 2, 1, 3])]), (3, GroupEnd::Complete));
        assert_eq!(read_all(vec![page(Some(5), [1, 2, 3]), page(Some(5), [3, 1, 4])]), (4, GroupEnd::Complete));
        // Also if the last page has no one else, or the same row twice.
        assert_eq!(read_all(vec![page(Some(4), [1, 2, 3]), page(Some(4), [3, 1])]), (3, GroupEnd::Complete));
        assert_eq!(read_all(vec![page(Some(4), [1, 2, 3]), page(Some(4), [3, 3])]), (3, GroupEnd::Complete));
        assert_eq!(read_all(vec![page(None, [1, 2, 1]), page(None, [1])]), (2, GroupEnd::Complete));
    }

    #[test]
    fn group_without_end_is_incomplete() {
        let too_many = GroupEnd::Incomplete("it has too many rows".to_owned());
        for row in [None, id(1)] {
            let mut group = Pages::default();
            let rows = |first: u128| match row {
                None => vec![None; 100_001],
                Some(_) => (first..=first + 100_000).map(id).collect(),
            };
            let ends = (0..6).map(|n| group.add(Page { total: None, rows: rows(1 + n * 100_000) }));
            assert_eq!(ends.flatten().next(), Some(too_many.clone()));
        }
    }

    #[test]
    fn rows_without_an_id_that_repeat_cost_few_calls() {
        for total in [None, Some(400_000)] {
            for rows in 1..3 {
                let mut group = Pages::default();
                let ends = (0..15).filter_map(|_| group.add(Page { total, rows: vec![None; rows] }));
                let expected = GroupEnd::Incomplete("its pages repeat".to_owned());
                assert_eq!(ends.collect::<Vec<_>>().first(), Some(&expected), "{rows} rows of {total:?}");
            }
        }
        // A few of them are read, however small the pages are.
        let pages = [&[Some(1), Some(2)][..], &[Some(2), None], &[None, None], &[None, None], &[None]];
        let rows = |page: &[Option<u128>]| page.iter().map(|n| n.and_then(id)).collect();
        assert_eq!(read_all(pages.map(|page| Page { total: None, rows: rows(page) }).into()), (2, GroupEnd::Complete));
    }

    #[test]
    fn inconsistent_counted_group_is_incomplete() {
        for (pages, reason) in [
            (vec![page(Some(9), [1, 2]), page(Some(9), [2])], "ended before"),
            (vec![page(Some(9), [1, 2]), page(Some(9), [1, 2])], "pages repeat"),
            // 1 left and 5 joined between the pages, so the count is the same, and 3 would have been missed.
            (vec![page(Some(4), [1, 2]), page(Some(4), [3, 4, 5])], "changed"),
            (vec![page(Some(3), [1, 2]), page(Some(4), [2, 3])], "changed"),
            (vec![page(Some(3), [1, 2]), page(None, [2, 3])], "changed"),
            (vec![page(Some(3), [1, 2]), page(Some(3), [])], "changed"),
            (vec![page(Some(1), [1, 2])], "more rows"),
            // A server that ignores the offset, with one row per page.
            (vec![page(Some(2), [1]), page(Some(2), [1])], "pages repeat"),
        ] {
            match read_all(pages).1 {
                GroupEnd::Incomplete(text) => assert!(text.contains(reason), "{text}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn bare_group_ends_with_a_page_without_new_rows() {
        assert_eq!(read_all(vec![page(None, [])]), (0, GroupEnd::Complete));
        assert_eq!(read_all(vec![page(None, [1, 2]), page(None, [2, 3]), page(None, [3])]), (3, GroupEnd::Complete));
        assert_eq!(read_all(vec![page(None, [1]), page(None, [2]), page(None, [])]), (2, GroupEnd::Complete));
        assert_eq!(read_all(vec![page(None, [1]), page(None, [])]), (1, GroupEnd::Complete));
    }

    #[test]
    fn bare_group_that_shifts_between_pages_is_incomplete() {
        // 1 left between the pages, so 3 moved to 2's place, and would have been missed without the overlap.
        for pages in [vec![page(None, [1, 2]), page(None, [3, 4])], vec![page(None, [1, 2]), page(None, [])]] {
            assert_eq!(read_all(pages).1, GroupEnd::Incomplete("it changed while it was being read".to_owned()));
        }
    }

    #[test]
    fn bare_group_with_repeating_pages_is_incomplete() {
        // A server that ignores the offset never shows the rows of its other pages.
        for pages in [
            vec![page(None, [1, 2]), page(None, [1, 2])],
            vec![page(None, [1]), page(None, [1])],
            vec![page(None, [1, 2]), page(None, [2, 1])],
        ] {
            assert_eq!(read_all(pages).1, GroupEnd::Incomplete("its pages repeat".to_owned()));
        }
    }
}
