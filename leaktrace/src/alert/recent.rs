//! How something moved lately, whatever it did before.

use std::{collections::VecDeque, time::Duration};

use crate::trend::theil_sen;

/// How far back is looked.
const WINDOW: Duration = Duration::from_secs(300);
/// Before that has passed, it is too early to tell.
const LEAST: Duration = Duration::from_secs(60);
/// Of each such period the lowest value counts: what comes and goes within is no
/// growth.
const PERIOD: Duration = Duration::from_secs(5);

/// The last five minutes of something.
#[derive(Clone, Debug, Default)]
pub struct Recent {
    /// When it was looked first.
    since: Option<Duration>,
    /// The lowest value of each period, with when it was.
    lows: VecDeque<(Duration, u64)>,
}

impl Recent {
    /// Takes note of a value, and forgets what is long ago. Values come in the order
    /// of time.
    pub fn push(&mut self, at: Duration, value: u64) {
        self.since.get_or_insert(at);
        let period = |at: Duration| at.as_secs() / PERIOD.as_secs();
        match self.lows.back_mut() {
            Some(low) if period(low.0) == period(at) => {
                if value <= low.1 {
                    *low = (at, value);
                }
            }
            _ => self.lows.push_back((at, value)),
        }
        while self
            .lows
            .front()
            .is_some_and(|(then, _)| at.saturating_sub(*then) > WINDOW)
        {
            self.lows.pop_front();
        }
    }

    /// How much it rose per minute: the median of the slopes between all lows.
    #[must_use]
    pub fn per_minute(&self) -> Option<f64> {
        let (last, _) = self.lows.back()?;
        if last.saturating_sub(self.since?) < LEAST {
            return None;
        }
        let point = |(at, value): &(Duration, u64)| (at.as_secs_f64(), *value as f64);
        let points: Vec<_> = self.lows.iter().map(point).collect();
        theil_sen(&points).map(|per_second| per_second * 60.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is found at the end of a series with a value a second.
    fn at_the_end(values: impl IntoIterator<Item = u64>) -> Option<f64> {
        let mut recent = Recent::default();
        for (second, value) in values.into_iter().enumerate() {
            recent.push(Duration::from_secs(second as u64), value);
        }
        recent.per_minute()
    }

    #[test]
    fn a_minute_has_to_pass() {
        assert_eq!(at_the_end([]), None);
        assert_eq!(at_the_end((0..60).map(|at| at * 10)), None);
        assert_eq!(at_the_end((0..71).map(|at| at * 10)), Some(600.0));
    }

    #[test]
    fn what_was_long_ago_does_not_count() {
        let quiet = std::iter::repeat_n(1 << 20, 36_000);
        let leak = (0..600).map(|at| (1 << 20) + at * 100);
        assert_eq!(at_the_end(quiet.clone().chain(leak.clone())), Some(6000.0));
        assert_eq!(at_the_end(leak.chain(quiet)), Some(0.0));
    }

    #[test]
    fn what_comes_and_goes_does_not_count() {
        // 5 GiB/min up, and back each four seconds, over a leak of 60 B/s.
        let wave = (0..400).map(|at| (at % 4) * (85 << 20) + at * 60);
        let growth = at_the_end(wave).unwrap();
        assert!((3000.0..4200.0).contains(&growth), "{growth}");
        let step = (0..400).map(|at| if at < 200 { 0 } else { 50 << 20 });
        let growth = at_the_end(step).unwrap();
        assert!(growth < 20e6, "{growth}");
    }

    proptest! {
        #[test]
        fn lines_are_found_under_noise(slope in 0_u64..100_000, noise in proptest::collection::vec(0_u64..50_000, 400)) {
            let values = noise.into_iter().enumerate().map(|(at, noise)| at as u64 * slope + noise);
            let growth = at_the_end(values).unwrap() / 60.0;
            prop_assert!((growth - slope as f64).abs() < 150.0 + slope as f64 * 0.01, "{} {}", growth, slope);
        }
    }
}
