//! Third stage: the pieces of text in the order of the file, with what is
//! between them.

use leaktrace_common::unwind::GAP_RULE;

use crate::unwind::evaluate::{CodeRow, Evaluated, Piece};

/// The rows of a whole file, sorted, no two of the same offset, none like the
/// one before: a row holds to the next. What nothing is known of has rows of
/// its own; the last row is such a one.
///
/// Of pieces that overlap, an instruction belongs to the one that begins last
/// before it, as for the search table of `.eh_frame_hdr`; of those that begin
/// together, to the one that comes first in the section.
#[must_use]
pub fn order(evaluated: &Evaluated) -> Vec<CodeRow> {
    let mut pieces: Vec<(Piece, u32)> = Vec::with_capacity(evaluated.pieces.len());
    for (index, piece) in evaluated.pieces.iter().enumerate() {
        let end = match evaluated.pieces.get(index + 1) {
            Some(next) => next.first_row,
            None => u32::try_from(evaluated.rows.len()).unwrap_or(u32::MAX),
        };
        pieces.push((*piece, end));
    }
    // Stable, and almost nothing to do for what is almost sorted.
    pieces.sort_by_key(|(piece, _)| piece.start);
    pieces.dedup_by_key(|(piece, _)| piece.start);

    let mut rows = Rows(Vec::with_capacity(evaluated.rows.len() + pieces.len() / 8));
    let mut covered = 0;
    for (index, (piece, end_row)) in pieces.iter().enumerate() {
        if covered < piece.start {
            rows.push(covered, GAP_RULE);
        }
        let next = pieces
            .get(index + 1)
            .map_or(u32::MAX, |(next, _)| next.start);
        let end = piece.end.min(next);
        for row in &evaluated.rows[piece.first_row as usize..*end_row as usize] {
            if row.offset >= end {
                break;
            }
            rows.push(row.offset, row.rule);
        }
        covered = end;
    }
    rows.push(covered, GAP_RULE);
    rows.0
}

struct Rows(Vec<CodeRow>);

impl Rows {
    fn push(&mut self, offset: u32, rule: u16) {
        // A later one of the same offset replaces the earlier.
        self.0.pop_if(|last| last.offset == offset);
        if self.0.last().is_none_or(|last| last.rule != rule) {
            self.0.push(CodeRow { offset, rule });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Start, end and rows of a piece.
    type Given<'a> = (u32, u32, &'a [(u32, u16)]);

    fn evaluated(pieces: &[Given<'_>]) -> Evaluated {
        let mut evaluated = Evaluated::default();
        for (start, end, rows) in pieces {
            evaluated.pieces.push(Piece {
                start: *start,
                end: *end,
                first_row: evaluated.rows.len() as u32,
            });
            let rows = rows.iter().map(|(offset, rule)| CodeRow {
                offset: *offset,
                rule: *rule,
            });
            evaluated.rows.extend(rows);
        }
        evaluated
    }

    fn ordered(pieces: &[Given<'_>]) -> Vec<(u32, u16)> {
        let rows = order(&evaluated(pieces));
        rows.iter().map(|row| (row.offset, row.rule)).collect()
    }

    #[test]
    fn pieces_come_in_the_order_of_the_file_with_gaps_between() {
        let rows = ordered(&[
            (40, 50, &[(40, 1), (44, 2)]),
            (10, 20, &[(10, 1)]),
            (20, 30, &[(20, 3)]),
        ]);
        assert_eq!(
            rows,
            [(0, 0), (10, 1), (20, 3), (30, 0), (40, 1), (44, 2), (50, 0)]
        );
    }

    #[test]
    fn equal_rows_are_merged_and_later_ones_of_an_offset_win() {
        let rows = ordered(&[
            (0, 10, &[(0, 1), (4, 2), (4, 1), (6, 3)]),
            (10, 20, &[(10, 3), (15, 0)]),
        ]);
        assert_eq!(rows, [(0, 1), (6, 3), (15, 0)]);
    }

    #[test]
    fn an_instruction_belongs_to_the_piece_that_begins_last_before_it() {
        let rows = ordered(&[
            (0, 100, &[(0, 1), (60, 2)]),
            (20, 30, &[(20, 3)]),
            (20, 40, &[(20, 4)]),
            (80, 90, &[(80, 5)]),
        ]);
        assert_eq!(rows, [(0, 1), (20, 3), (30, 0), (80, 5), (90, 0)]);
    }

    #[test]
    fn nothing_is_one_gap() {
        assert_eq!(ordered(&[]), [(0, 0)]);
    }
}
