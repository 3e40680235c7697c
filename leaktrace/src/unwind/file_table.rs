//! The tables of one file, with rule numbers of its own.

use leaktrace_common::unwind::{
    GAP_RULE, MAX_PAGE_ROWS, MAX_RULES, Page, Row, Rule, cfa, fp, low, page_number,
};

use crate::unwind::evaluate::Functions;

/// Most pages: 4 GiB of text.
const MAX_PAGES: usize = 1 << 16;

/// What is known of a file's text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileTable {
    /// Number of the first page with text.
    pub first_page: u32,
    /// Each page from there on; `first` is an index of `rows`.
    pub pages: Vec<Page>,
    /// The rows of all pages, one page after the other.
    pub rows: Vec<Row>,
    /// The rules of the rows, by number; the first is that of nothing known.
    pub rules: Vec<Rule>,
    /// What the file's entries are.
    pub functions: Functions,
}

/// A table that contradicts itself: it was not made here, or is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an unwind table that contradicts itself: {0}")]
pub struct Inconsistent(&'static str);

impl FileTable {
    /// The rule for the instruction at a file offset.
    #[must_use]
    pub fn rule_at(&self, offset: u64) -> Rule {
        let page = page_number(offset)
            .checked_sub(self.first_page.into())
            .and_then(|index| self.pages.get(usize::try_from(index).ok()?));
        let number = page.map_or(GAP_RULE, |page| {
            let rows = &self.rows[page.first as usize..][..page.count as usize];
            let after = rows.partition_point(|row| row.low() <= low(offset));
            rows[after - 1].rule()
        });
        self.rules[usize::from(number)]
    }

    /// Whether functions keep frame pointers: almost all of them, since some
    /// are never compiled with one (assembly, compilers' own).
    #[must_use]
    pub fn keeps_frame_pointers(&self) -> bool {
        let Functions {
            total,
            with_frame_pointer,
            ..
        } = self.functions;
        total > 0 && u64::from(with_frame_pointer) * 100 >= u64::from(total) * 95
    }

    /// Whether everything that readers of the table rely on holds.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self) -> Result<(), Inconsistent> {
        let held = |holds: bool, what: &'static str| holds.then_some(()).ok_or(Inconsistent(what));
        held(
            self.rules.len() <= MAX_RULES && self.rules.first() == Some(&Rule::GAP),
            "its rules",
        )?;
        let known = |rule: &Rule| rule.cfa_kind < cfa::KINDS && rule.fp_kind < fp::KINDS;
        held(self.rules.iter().all(known), "the kinds of its rules")?;
        held(
            self.first_page as usize + self.pages.len() <= MAX_PAGES,
            "its pages",
        )?;
        let mut next = 0;
        for page in &self.pages {
            held(
                page.first as usize == next && (1..=MAX_PAGE_ROWS).contains(&page.count),
                "the order of its pages",
            )?;
            let end = next + page.count as usize;
            let rows = self.rows.get(next..end).ok_or(Inconsistent("a page"))?;
            held(rows[0].low() == 0, "the start of a page")?;
            // Without branches, since a large file has a million.
            let sorted = rows.array_windows().fold(true, |sorted, [row, next]| {
                sorted & (row.low() < next.low())
            });
            held(sorted, "the order of its rows")?;
            next = end;
        }
        held(next == self.rows.len(), "its rows")?;
        let largest = self.rows.iter().map(|row| row.rule()).max();
        held(
            usize::from(largest.unwrap_or(GAP_RULE)) < self.rules.len(),
            "the rules of its rows",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> FileTable {
        let rule = |offset: i32| Rule {
            cfa_kind: cfa::SP,
            cfa_offset: offset,
            ..Rule::GAP
        };
        FileTable {
            first_page: 3,
            pages: vec![Page { first: 0, count: 2 }, Page { first: 2, count: 2 }],
            rows: vec![
                Row::new(0, 0),
                Row::new(8, 1),
                Row::new(0, 1),
                Row::new(4, 2),
            ],
            rules: vec![Rule::GAP, rule(8), rule(16)],
            functions: Functions::default(),
        }
    }

    #[test]
    fn rules_are_found_by_offset() {
        let table = table();
        let found = |offset| table.rule_at(offset).cfa_offset;
        assert_eq!([0x3_0007, 0x3_0008, 0x3_ffff].map(found), [0, 8, 8]);
        assert_eq!([0x4_0003, 0x4_0004, 0x4_ffff].map(found), [8, 16, 16]);
        assert_eq!([0, 0x2_ffff, 0x5_0000, u64::MAX].map(found), [0; 4]);
    }

    #[test]
    fn tables_that_contradict_themselves_are_noticed() {
        assert_eq!(table().check(), Ok(()));
        let breaks: [fn(&mut FileTable); 10] = [
            |it| it.rules.clear(),
            |it| it.rules.swap(0, 1),
            |it| it.rules[1].cfa_kind = cfa::KINDS,
            |it| it.rules[1].fp_kind = fp::KINDS,
            |it| it.first_page = MAX_PAGES as u32,
            |it| it.pages[1].first = 1,
            |it| it.pages[1].count = 3,
            |it| it.pages.truncate(1),
            |it| it.rows[1] = it.rows[0],
            |it| it.rows[3] = Row::new(9, 3),
        ];
        for (index, damage) in breaks.iter().enumerate() {
            let mut table = table();
            damage(&mut table);
            assert!(table.check().is_err(), "{index}");
        }
    }

    #[test]
    fn a_file_keeps_frame_pointers_when_almost_every_function_does() {
        let mut table = table();
        assert!(!table.keeps_frame_pointers());
        table.functions = Functions {
            total: 100,
            with_frame_pointer: 94,
            damaged: 0,
        };
        assert!(!table.keeps_frame_pointers());
        table.functions.with_frame_pointer = 95;
        assert!(table.keeps_frame_pointers());
    }
}
