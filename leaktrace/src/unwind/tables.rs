//! The tables of several files together, as the kernel has them: rules are
//! numbered over all files, pages placed so that none crosses a chunk.

use leaktrace_common::unwind::{
    CHUNK_ROWS, FileRecord, IS_EXAMINED, KEEPS_FRAME_POINTERS, Mapping, NO_FILE, Page, Row, Rule,
    page_number,
};

use crate::unwind::{
    file_table::FileTable,
    intern::{Rules, TooManyRules},
};

/// A file for which there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// All numbers of rules are taken.
    #[error(transparent)]
    Rules(#[from] TooManyRules),
    /// The limit of rows would be exceeded.
    #[error("more than {0} rows")]
    Rows(u32),
    /// The limit of pages would be exceeded.
    #[error("more than {0} pages of text")]
    Pages(u32),
}

/// Tables of files. What is there stays where it is; more is added at the end.
pub struct Tables {
    rules: Rules,
    rows: Vec<Row>,
    pages: Vec<Page>,
    files: Vec<FileRecord>,
    max_rows: u32,
    max_pages: u32,
}

impl Tables {
    /// None yet, and room for so many rows.
    #[must_use]
    pub fn new(max_rows: u32) -> Self {
        Self::with_room(max_rows, u32::MAX)
    }

    /// None yet, and room for so many rows and pages.
    #[must_use]
    pub fn with_room(max_rows: u32, max_pages: u32) -> Self {
        Self {
            rules: Rules::default(),
            rows: Vec::new(),
            pages: Vec::new(),
            // That of `NO_FILE`.
            files: vec![FileRecord::default()],
            max_rows,
            max_pages,
        }
    }

    /// Adds a file. Its number is the index of its record.
    ///
    /// # Errors
    /// When there is no room; nothing has changed then.
    pub fn add(&mut self, file: &FileTable) -> Result<u32, NoRoom> {
        if self.pages.len() + file.pages.len() > self.max_pages as usize {
            return Err(NoRoom::Pages(self.max_pages));
        }
        let mut pages = Vec::with_capacity(file.pages.len());
        let mut next = u64::try_from(self.rows.len()).unwrap_or(u64::MAX);
        for page in &file.pages {
            let left = CHUNK_ROWS - (next % u64::from(CHUNK_ROWS)) as u32;
            if page.count > left {
                next += u64::from(left);
            }
            let first = u32::try_from(next).map_err(|_| NoRoom::Rows(self.max_rows))?;
            pages.push(Page { first, ..*page });
            next += u64::from(page.count);
        }
        if next > self.max_rows.into() {
            return Err(NoRoom::Rows(self.max_rows));
        }
        let numbers = self.rules.number_all(&file.rules)?;
        for (placed, page) in pages.iter().zip(&file.pages) {
            // What is left of a chunk stays empty.
            self.rows.resize(placed.first as usize, Row::default());
            let rows = &file.rows[page.first as usize..][..page.count as usize];
            let renumbered = |row: &Row| Row::new(row.low(), numbers[usize::from(row.rule())]);
            self.rows.extend(rows.iter().map(renumbered));
        }
        let flags = if file.keeps_frame_pointers() {
            IS_EXAMINED | KEEPS_FRAME_POINTERS
        } else {
            IS_EXAMINED
        };
        self.files.push(FileRecord {
            pages: self.pages.len() as u32,
            first_page: file.first_page,
            page_count: pages.len() as u32,
            flags,
        });
        self.pages.append(&mut pages);
        Ok(self.files.len() as u32 - 1)
    }

    /// All rows; those of [`Page::first`] on.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The pages of all files.
    #[must_use]
    pub fn pages(&self) -> &[Page] {
        &self.pages
    }

    /// All rules, by number.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        self.rules.all()
    }

    /// The files, by number; the first is [`NO_FILE`].
    #[must_use]
    pub fn files(&self) -> &[FileRecord] {
        &self.files
    }

    /// The record of a file and the rule for the instruction at an offset in it.
    ///
    /// Written as the kernel's programs do it: see
    /// [`leaktrace_common::unwind`].
    #[must_use]
    pub fn rule_at(&self, file: u32, offset: u64) -> (FileRecord, Rule) {
        let Some(record) = self.files.get(file as usize).copied() else {
            return (FileRecord::default(), Rule::GAP);
        };
        let index = page_number(offset).wrapping_sub(record.first_page.into());
        if index >= record.page_count.into() {
            return (record, Rule::GAP);
        }
        let page = self.pages[(u64::from(record.pages) + index) as usize];
        // The row that is sought is at `first` or after it, and before `end`.
        let (mut first, mut end) = (page.first, page.first + page.count);
        while end - first > 1 {
            let middle = first + (end - first) / 2;
            if self.rows[middle as usize].low() <= leaktrace_common::unwind::low(offset) {
                first = middle;
            } else {
                end = middle;
            }
        }
        let row = self.rows[first as usize];
        (record, self.rules.all()[usize::from(row.rule())])
    }
}

/// The mapping that holds an address, among sorted ones.
#[must_use]
pub fn mapping_of(mappings: &[Mapping], address: u64) -> Option<&Mapping> {
    let after = mappings.partition_point(|mapping| mapping.start <= address);
    let mapping = mappings.get(after.checked_sub(1)?)?;
    (address < mapping.end).then_some(mapping)
}

const _: () = assert!(NO_FILE == 0, "the record of `NO_FILE` is the first");

#[cfg(test)]
mod tests {
    use leaktrace_common::unwind::cfa;
    use proptest::prelude::*;

    use super::*;
    use crate::unwind::{
        evaluate::{CodeRow, Functions},
        page::page,
    };

    fn rule(offset: i32) -> Rule {
        Rule {
            cfa_kind: cfa::SP,
            cfa_offset: offset,
            ..Rule::GAP
        }
    }

    /// A file with these rows, whose rules have the CFA at `8 * number`.
    fn file(rows: &[CodeRow]) -> FileTable {
        let paged = page(rows);
        let rules = (1..100).map(|number| rule(8 * number));
        FileTable {
            first_page: paged.first_page,
            pages: paged.pages,
            rows: paged.rows,
            rules: std::iter::once(Rule::GAP).chain(rules).collect(),
            functions: Functions::default(),
        }
    }

    fn dense(count: u32) -> FileTable {
        let mut rows: Vec<CodeRow> = (0..count)
            .map(|offset| CodeRow {
                offset,
                rule: 1 + (offset % 2) as u16,
            })
            .collect();
        rows.push(CodeRow {
            offset: count,
            rule: 0,
        });
        file(&rows)
    }

    #[test]
    fn pages_do_not_cross_chunks() {
        let mut tables = Tables::new(u32::MAX);
        for count in [40_000, 30_000, 65_536, 10] {
            let number = tables.add(&dense(count)).unwrap();
            let (_, found) = tables.rule_at(number, u64::from(count) - 1);
            assert_eq!(found, rule(16));
        }
        let firsts: Vec<u32> = tables.pages().iter().map(|page| page.first).collect();
        assert_eq!(firsts, [0, 65_536, 131_072, 196_608]);
    }

    #[test]
    fn a_file_without_room_changes_nothing() {
        let mut tables = Tables::new(70_000);
        tables.add(&dense(10)).unwrap();
        let error = tables.add(&dense(65_530)).unwrap_err();
        assert_eq!(error.to_string(), "more than 70000 rows");
        assert_eq!((tables.pages().len(), tables.files().len()), (1, 2));
        assert_eq!(tables.rows().len(), 11);
        tables.add(&dense(100)).unwrap();
        assert_eq!(tables.rule_at(2, 3).1, rule(16));
    }

    #[test]
    fn code_without_a_file_has_no_information() {
        let mut tables = Tables::new(u32::MAX);
        tables.add(&dense(10)).unwrap();
        for (file, offset) in [(NO_FILE, 1), (7, 1), (1, 0x1_0000), (1, u64::MAX)] {
            assert_eq!(tables.rule_at(file, offset).1, Rule::GAP);
        }
    }

    #[test]
    fn the_mapping_of_an_address_is_found() {
        let mapping = |start, end| Mapping {
            start,
            end,
            ..Mapping::default()
        };
        let mappings = [mapping(10, 20), mapping(20, 30), mapping(40, 50)];
        let found = |address| mapping_of(&mappings, address).map(|it| it.start);
        assert_eq!(
            [9, 10, 19, 20, 29].map(found),
            [None, Some(10), Some(10), Some(20), Some(20)]
        );
        assert_eq!(
            [30, 39, 40, 49, 50].map(found),
            [None, None, Some(40), Some(40), None]
        );
    }

    fn any_rows() -> impl Strategy<Value = Vec<CodeRow>> {
        let steps =
            prop::collection::vec((prop_oneof![1..40_u32, 1..200_000_u32], 0..100_u16), 1..300);
        (0..400_000_u32, steps).prop_map(|(start, steps)| {
            let mut offset = start;
            let mut rows: Vec<CodeRow> = steps
                .iter()
                .map(|(step, rule)| {
                    offset += step;
                    CodeRow {
                        offset,
                        rule: *rule,
                    }
                })
                .collect();
            rows.push(CodeRow {
                offset: offset + 1,
                rule: 0,
            });
            rows
        })
    }

    proptest! {
        /// A look-up finds the last row not above the offset, in the pages of
        /// one file and of several placed together.
        #[test]
        fn pages_say_what_the_rows_say(
            files in prop::collection::vec(any_rows(), 1..4),
            offsets in prop::collection::vec(0..4_000_000_u64, 50),
        ) {
            let mut tables = Tables::new(u32::MAX);
            for rows in &files {
                let table = file(rows);
                table.check().unwrap();
                tables.add(&table).unwrap();
                let number = tables.files().len() as u32 - 1;
                let edges = rows.iter().map(|row| u64::from(row.offset));
                let edges = edges.flat_map(|edge| [edge.saturating_sub(1), edge, edge + 1]);
                for offset in offsets.iter().copied().chain(edges) {
                    let naive = rows.iter().rfind(|row| u64::from(row.offset) <= offset);
                    let naive = table.rules[usize::from(naive.map_or(0, |row| row.rule))];
                    prop_assert_eq!(table.rule_at(offset), naive);
                    prop_assert_eq!(tables.rule_at(number, offset).1, naive);
                }
            }
            for page in tables.pages() {
                prop_assert_eq!(page.first / CHUNK_ROWS, (page.first + page.count - 1) / CHUNK_ROWS);
            }
        }
    }
}
