//! A history cut into cells of the same width.

use super::line::Point;

/// What was held, relative to the first look, from cell to cell.
#[derive(Clone, Debug, Default)]
pub(super) struct Grid {
    /// Of a cell, in seconds.
    pub width: f64,
    pub cells: Vec<GridCell>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct GridCell {
    pub low: f64,
    pub high: f64,
    pub mean: f64,
    /// Things held at the end.
    pub things: f64,
    /// Things made meanwhile.
    pub made: f64,
}

impl Grid {
    /// The cells that are over. What remains of time is less than one cell.
    pub fn whole(&self) -> &[GridCell] {
        &self.cells[..self.cells.len().saturating_sub(1)]
    }

    /// Values at the middles of the cells that are over, without the first, in
    /// which things began.
    pub fn points(&self, value: impl Fn(&GridCell) -> f64) -> Vec<Point> {
        let cells = self.whole().iter().enumerate().skip(1);
        cells
            .map(|(index, cell)| ((index as f64 + 0.5) * self.width, value(cell)))
            .collect()
    }

    /// Whether the second half brought a tenth of all that is held, or more.
    pub fn rises_late(&self) -> bool {
        let cells = self.whole();
        let mean = |from: usize| cells.get(from).map_or(0.0, |cell| cell.mean);
        let high = cells.iter().map(|cell| cell.high).fold(0.0, f64::max);
        mean(cells.len().saturating_sub(1)) - mean(cells.len() / 2) > 0.1 * high
    }

    /// How many cells at the end saw nothing made.
    pub fn quiet(&self) -> usize {
        let made = |cell: &&GridCell| cell.made == 0.0;
        self.whole().iter().rev().take_while(made).count()
    }

    /// In how many cells what is held moved.
    pub fn moving(&self) -> usize {
        moving(self.whole())
    }

    /// Whether it moved in most of the cells of the second half.
    pub fn moves_late(&self) -> bool {
        let cells = self.whole();
        let late = &cells[cells.len() / 2..];
        moving(late) * 2 > late.len()
    }
}

fn moving(cells: &[GridCell]) -> usize {
    let moved = |cell: &&GridCell| cell.low < cell.high;
    cells.iter().filter(moved).count()
}
