//! Ups and downs: from one lowest point to the next.

use super::grid::GridCell;

/// What moves up and down.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Teeth {
    /// The lowest points after a fall, without the beginning: cell and value.
    pub troughs: Vec<(usize, f64)>,
    /// Median depth of the falls.
    pub depth: f64,
    /// Highest value of all.
    pub peak: f64,
}

impl Teeth {
    /// Falls of at least `least`, each followed by a rise of as much.
    pub fn of(cells: &[GridCell], least: f64) -> Self {
        let mut teeth = Self::default();
        let Some(first) = cells.first() else {
            return teeth;
        };
        let mut falls = Vec::new();
        let (mut high, mut low) = (first.high, (0, first.low));
        let mut falling = false;
        teeth.peak = high;
        for (index, cell) in cells.iter().enumerate() {
            teeth.peak = teeth.peak.max(cell.high);
            if falling {
                if cell.low < low.1 {
                    low = (index, cell.low);
                }
                if cell.high - low.1 >= least && index > low.0 {
                    falls.push(high - low.1);
                    teeth.troughs.push(low);
                    (falling, high) = (false, cell.high);
                }
            } else {
                if high - cell.low >= least {
                    (falling, low) = (true, (index, cell.low));
                }
                high = high.max(cell.high);
            }
        }
        falls.sort_by(f64::total_cmp);
        teeth.depth = falls.get(falls.len() / 2).copied().unwrap_or(0.0);
        teeth
    }

    /// From one lowest point to the next, in cells.
    pub fn period(&self) -> Option<f64> {
        let (first, last) = (self.troughs.first()?, self.troughs.last()?);
        let count = self.troughs.len() - 1;
        (count > 0).then(|| (last.0 - first.0) as f64 / count as f64)
    }
}
