//! Repeated measurements of one thing.

/// Values of one figure, in the order in which they were measured.
#[derive(Clone, Debug, Default)]
pub struct Series(Vec<f64>);

impl Series {
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub fn extend(&mut self, values: impl IntoIterator<Item = f64>) {
        self.0.extend(values);
    }

    /// The middle value, or the mean of the two in the middle; `None` without
    /// measurements.
    pub fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let upper = *sorted.get(sorted.len() / 2)?;
        if sorted.len() % 2 == 1 {
            return Some(upper);
        }
        Some(sorted[sorted.len() / 2 - 1].midpoint(upper))
    }

    /// The median, or 0 without measurements.
    pub fn median_or_zero(&self) -> f64 {
        self.median().unwrap_or_default()
    }

    pub fn min(&self) -> Option<f64> {
        self.0.iter().copied().reduce(f64::min)
    }

    pub fn max(&self) -> Option<f64> {
        self.0.iter().copied().reduce(f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_whatever_the_order() {
        let series = |values: &[f64]| Series(values.to_vec());
        assert_eq!(series(&[]).median(), None);
        assert_eq!(series(&[3.0, 100.0, 1.0]).median(), Some(3.0));
        assert_eq!(series(&[4.0, 100.0, 1.0, 2.0]).median(), Some(3.0));
        assert_eq!(series(&[4.0, 1.0]).min(), Some(1.0));
        assert_eq!(series(&[1.0, 4.0]).max(), Some(4.0));
    }
}
