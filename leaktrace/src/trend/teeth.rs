//! Ups and downs: from one lowest point to the next.

use super::grid::GridCell;

/// What moves up and down by much.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Teeth {
    /// The cells of the lowest points after each fall, without the beginning.
    pub troughs: Vec<usize>,
    /// The last fall has not ended: its lowest point so far is the last trough.
    pub falling: bool,
}

impl Teeth {
    /// Falls by at least a share of what was held, and of a quarter of its range
    /// over all; `base` was held when cells are 0.
    pub fn of(cells: &[GridCell], base: f64, share: f64) -> Self {
        let highest = cells
            .iter()
            .map(|cell| cell.high)
            .fold(f64::NEG_INFINITY, f64::max);
        let lowest = cells
            .iter()
            .map(|cell| cell.low)
            .fold(f64::INFINITY, f64::min);
        let least = 0.25 * (highest - lowest).max(0.0);
        let mut teeth = Self::default();
        let mut high = f64::NEG_INFINITY;
        let mut fallen: Option<(usize, f64)> = None;
        for (index, cell) in cells.iter().enumerate() {
            if let Some((at, low)) = &mut fallen {
                if cell.low < *low {
                    (*at, *low) = (index, cell.low);
                }
                if cell.high - *low > least && index > *at {
                    teeth.troughs.push(*at);
                    (fallen, high) = (None, cell.high);
                }
            } else {
                let deep = least.max(share * (high + base));
                if high - cell.low > deep {
                    fallen = Some((index, cell.low));
                }
                high = high.max(cell.high);
            }
        }
        if let Some((at, _)) = fallen {
            teeth.troughs.push(at);
            teeth.falling = true;
        }
        teeth
    }

    /// From one lowest point to the next, in cells; not when that is too short to
    /// be seen.
    pub fn period(&self) -> Option<f64> {
        let over = self.troughs.len() - usize::from(self.falling);
        let (first, last) = (
            self.troughs.first()?,
            self.troughs.get(over.checked_sub(1)?)?,
        );
        let count = over - 1;
        let period = (last - first) as f64 / count as f64;
        (count > 0 && period >= 3.0).then_some(period)
    }

    /// Whether the second tooth, if there is one, is not over yet, of so many cells.
    pub fn too_few(&self, cells: usize) -> bool {
        matches!(self.troughs[..], [only] if cells - only < 2 * only)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn teeth(values: impl IntoIterator<Item = f64>) -> Teeth {
        let cells: Vec<GridCell> = values
            .into_iter()
            .map(|value| GridCell {
                low: value,
                high: value,
                mean: value,
                things: 0.0,
                made: 0.0,
            })
            .collect();
        Teeth::of(&cells, 0.0, 0.4)
    }

    #[test]
    fn teeth_have_their_period() {
        let teeth = teeth((0..36).map(|index| f64::from(index % 6)));
        assert_eq!(teeth.troughs, [6, 12, 18, 24, 30]);
        assert_eq!(teeth.period(), Some(6.0));
        assert!(!teeth.too_few(36) && !teeth.falling);
    }

    #[test]
    fn a_fall_at_the_end_is_a_tooth_that_is_not_over() {
        let teeth = teeth((0..36).map(|index| f64::from(if index < 35 { index } else { 3 })));
        assert_eq!(teeth.troughs, [35]);
        assert!(teeth.falling && teeth.too_few(36));
        assert_eq!(teeth.period(), None);
    }

    #[test]
    fn small_falls_are_no_teeth() {
        let teeth = teeth((0..36).map(|index| 100.0 + f64::from(index % 6)));
        assert_eq!(teeth, Teeth::default());
    }

    #[test]
    fn one_fall_is_too_few_until_twice_as_long_has_passed() {
        let teeth =
            teeth((0..36).map(|index| f64::from(if index < 15 { index } else { index - 15 })));
        assert_eq!(teeth.troughs, [15]);
        assert!(teeth.too_few(36) && !teeth.too_few(45));
        assert_eq!(teeth.period(), None);
    }
}
