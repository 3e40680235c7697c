//! A history cut into cells of the same width.

/// What was held, relative to the first look, from cell to cell.
#[derive(Clone, Debug, Default)]
pub(super) struct Grid {
    /// Of a cell, in seconds.
    pub width: f64,
    /// How much of the last cell has passed, in seconds.
    pub last_width: f64,
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
    /// The cells that are over, each with the middle of its time. What remains of
    /// time is less than one cell.
    pub fn whole(&self) -> &[GridCell] {
        &self.cells[..self.cells.len().saturating_sub(1)]
    }
}
