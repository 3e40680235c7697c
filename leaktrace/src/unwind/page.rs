//! Fourth stage: rows grouped by pages of text, each page complete in itself.

use leaktrace_common::unwind::{GAP_RULE, Page, Row, low, page_number};

use crate::unwind::evaluate::CodeRow;

/// Rows by pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paged {
    /// Number of the first page.
    pub first_page: u32,
    /// One for each 64 KiB from there on.
    pub pages: Vec<Page>,
    /// The rows of all pages, one page after the other.
    pub rows: Vec<Row>,
}

/// Groups sorted rows by pages, from the first row with information to the
/// last row, which has none.
#[must_use]
pub fn page(rows: &[CodeRow]) -> Paged {
    let known = rows.iter().position(|row| row.rule != GAP_RULE);
    let (Some(known), Some(end)) = (known, rows.last()) else {
        return Paged::default();
    };
    let number = |offset: u32| page_number(offset.into()) as u32;
    let first_page = number(rows[known].offset);
    // The last row only says where the text ends: a page that begins with it
    // would be empty.
    let last_page = number(end.offset.saturating_sub(1));
    let mut paged = Paged {
        first_page,
        pages: Vec::with_capacity((last_page - first_page + 1) as usize),
        rows: Vec::with_capacity(rows.len() + (last_page - first_page) as usize),
    };
    let mut rest = &rows[known..];
    let mut in_force = GAP_RULE;
    for page in first_page..=last_page {
        let first = paged.rows.len();
        let begins_here = rest
            .first()
            .is_some_and(|row| number(row.offset) == page && low(row.offset.into()) == 0);
        if !begins_here {
            paged.rows.push(Row::new(0, in_force));
        }
        let count = rest.partition_point(|row| number(row.offset) <= page);
        let (here, later) = rest.split_at(count);
        let row = |row: &CodeRow| Row::new(low(row.offset.into()), row.rule);
        paged.rows.extend(here.iter().map(row));
        in_force = here.last().map_or(in_force, |row| row.rule);
        rest = later;
        paged.pages.push(Page {
            first: first as u32,
            count: (paged.rows.len() - first) as u32,
        });
    }
    paged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paged(rows: &[(u32, u16)]) -> Paged {
        let rows: Vec<CodeRow> = rows
            .iter()
            .map(|(offset, rule)| CodeRow {
                offset: *offset,
                rule: *rule,
            })
            .collect();
        page(&rows)
    }

    fn row(low: u16, rule: u16) -> Row {
        Row::new(low, rule)
    }

    #[test]
    fn each_page_begins_with_what_is_in_force() {
        let paged = paged(&[
            (0, 0),
            (0x1_0010, 1),
            (0x1_fff0, 2),
            (0x3_0000, 3),
            (0x3_0008, 0),
        ]);
        assert_eq!(paged.first_page, 1);
        let counts: Vec<(u32, u32)> = paged.pages.iter().map(|it| (it.first, it.count)).collect();
        assert_eq!(counts, [(0, 3), (3, 1), (4, 2)]);
        assert_eq!(
            paged.rows,
            [
                row(0, 0),
                row(0x10, 1),
                row(0xfff0, 2),
                row(0, 2),
                row(0, 3),
                row(8, 0)
            ]
        );
    }

    #[test]
    fn text_that_ends_with_a_page_needs_no_page_more() {
        let paged = paged(&[(0, 1), (0x1_0000, 0)]);
        assert_eq!(paged.pages, [Page { first: 0, count: 1 }]);
        assert_eq!(paged.rows, [row(0, 1)]);
    }

    #[test]
    fn a_page_may_have_a_row_for_each_byte() {
        let mut rows: Vec<(u32, u16)> = (0..0x1_0000).map(|it| (it, 1 + (it % 2) as u16)).collect();
        rows.push((0x1_0000, 0));
        assert_eq!(
            paged(&rows).pages,
            [Page {
                first: 0,
                count: 0x1_0000
            }]
        );
    }

    #[test]
    fn nothing_known_is_no_page() {
        assert_eq!(paged(&[(0, 0)]), Paged::default());
    }
}
