//! Whether what rises slows down: towards a bound, or having reached it.
//!
//! Against the straight line stand two families of curves with one more number
//! each: an exponential approach to a bound (a cache that is filled with keys drawn
//! from a bounded set), and a line that ends (a cache that fills and is then full;
//! also a change point at which growth stops). Errors are treated as for the
//! [line](super::line).

use super::line::{Fit, Line, Point, whiten};

/// How the best of the curves compares with the line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bend {
    /// By how much it fits better: the ratio of F's test.
    pub evidence: f64,
    /// The pace in the last fifth, as a share of the pace in the first.
    pub remaining: f64,
    /// How sure it is that there is a rise along that curve.
    pub score: f64,
    /// Sum of squares that remains.
    rest: f64,
}

/// A rise that goes on beside an approach to a bound.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Beyond {
    pub line: Line,
    /// By how much the two together fit better than a curve that slows down.
    pub evidence: f64,
}

/// Spans over time constant that are tried.
const APPROACHES: [f64; 9] = [0.25, 0.5, 0.8, 1.2, 1.8, 2.6, 4.0, 7.0, 14.0];
/// The same for an approach beside a rise that goes on.
const BESIDE: [f64; 6] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0];
/// Powers of time: caches of which some keys are asked for much more often.
const POWERS: [f64; 5] = [0.2, 0.35, 0.5, 0.65, 0.8];
/// Evidence, weighted with how much it slows down, that is believed.
const SLOWS: f64 = 5.0;
/// Where growth ends, as shares of the span.
const ENDS: [f64; 12] = [
    0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95,
];

/// Spans over time constant of what grows exponentially. Faster than these it would
/// be one jump at the end.
const EXPLOSIONS: [f64; 5] = [1.0, 2.0, 3.0, 4.5, 6.0];
/// Powers of time of what is made ever faster.
const RAMPS: [f64; 3] = [1.5, 2.0, 3.0];

/// Points on which curves are tried.
struct Trial<'a> {
    points: &'a [Point],
    first: f64,
    span: f64,
    carried: f64,
    level: Vec<f64>,
    values: Vec<f64>,
}

impl<'a> Trial<'a> {
    fn of(points: &'a [Point], carried: f64) -> Option<Self> {
        let first = points.first()?.0;
        let span = points.last()?.0 - first;
        (points.len() >= 5 && span > 0.0).then(|| Self {
            points,
            first,
            span,
            carried,
            level: whiten(points.iter().map(|_| 1.0), carried),
            values: whiten(points.iter().map(|point| point.1), carried),
        })
    }

    /// Degrees of freedom of a fit of a level and one curve out of a family.
    fn freedom(&self) -> f64 {
        self.points.len() as f64 - 3.0
    }

    /// By how much one fit is better than another.
    fn better(&self, fit: &Fit, than: f64) -> f64 {
        ((than - fit.rest) * self.freedom() / (fit.rest * fit.doubt).max(than * 1e-9)).max(0.0)
    }

    /// A curve of time, 0 to 1.
    fn curve(&self, curve: impl Fn(f64) -> f64) -> Vec<f64> {
        let times = self
            .points
            .iter()
            .map(|point| (point.0 - self.first) / self.span);
        whiten(times.map(curve), self.carried)
    }

    fn fit(&self, curve: impl Fn(f64) -> f64) -> Option<Fit> {
        Fit::of(&[&self.level], &self.curve(curve), &self.values)
    }

    /// A straight rise beside an approach at that speed.
    fn beside(&self, speed: f64) -> Option<Fit> {
        let approach = self.curve(|time| -(-speed * time).exp_m1());
        let line = self.curve(|time| time * self.span);
        Fit::of(&[&self.level, &approach], &line, &self.values)
    }

    /// The best approach beside a straight rise.
    fn best_beside(&self) -> Option<Fit> {
        let rest = |speed: f64| self.beside(speed).map_or(f64::INFINITY, |fit| fit.rest);
        let mut best = BESIDE
            .into_iter()
            .min_by(|a, b| rest(*a).total_cmp(&rest(*b)))?;
        let mut step: f64 = 1.5;
        while step > 1.02 {
            let around = [best / step, best, best * step];
            best = around
                .into_iter()
                .min_by(|a, b| rest(*a).total_cmp(&rest(*b)))?;
            step = step.sqrt();
        }
        self.beside(best)
    }
}

impl Bend {
    /// Whether it slows down, and by enough for that to be sure.
    pub fn slows(&self) -> bool {
        self.remaining < 0.75
            && self.evidence > 8.0
            && self.evidence * (1.0 - self.remaining) > SLOWS
    }

    /// For points in the order of time; `None` for too few.
    pub fn of(points: &[Point], carried: f64) -> Option<Self> {
        let trial = Trial::of(points, carried)?;
        let line = trial.fit(|time| time)?;
        let straight = line.rest;
        let mut best = (line, 1.0);
        let mut consider = |curve: &dyn Fn(f64) -> f64| {
            if let Some(found) = trial.fit(curve)
                && found.slope > 0.0
                && found.rest < best.0.rest
            {
                let early = curve(0.2) - curve(0.0);
                best = (found, (curve(1.0) - curve(0.8)) / early);
            }
        };
        for speed in APPROACHES {
            consider(&|time| -(-speed * time).exp_m1());
        }
        for end in ENDS {
            consider(&|time| time.min(end));
        }
        // From when it was born, which is before the first point.
        let born = trial.first / trial.span;
        for power in POWERS {
            consider(&|time| (time + born).powf(power));
        }
        let (best, remaining) = best;
        Some(Self {
            evidence: trial.better(&best, straight),
            remaining,
            score: best.line(trial.freedom(), carried).score(),
            rest: best.rest,
        })
    }

    /// The straight rise beside an approach that explains the same points best;
    /// `None` for too few.
    pub fn beyond(&self, points: &[Point], carried: f64) -> Option<Beyond> {
        let trial = Trial::of(points, carried)?;
        let freedom = trial.freedom() - 1.0;
        if freedom < 4.0 {
            return None;
        }
        let fit = trial.best_beside()?;
        Some(Beyond {
            line: fit.line(freedom, carried),
            evidence: trial.better(&fit, self.rest),
        })
    }
}

/// How sure it is that points rise along a curve that speeds up, as a score; 0 when
/// none of those explains them better than a line.
pub(super) fn speeding_up(points: &[Point], carried: f64) -> f64 {
    let sure = || {
        let trial = Trial::of(points, carried)?;
        let straight = trial.fit(|time| time)?;
        let explosions = EXPLOSIONS.map(|speed| trial.fit(|time| (speed * time).exp_m1()));
        let ramps = RAMPS.map(|power| trial.fit(|time| time.powf(power)));
        let best = explosions
            .into_iter()
            .chain(ramps)
            .flatten()
            .filter(|fit| fit.slope > 0.0 && fit.rest < straight.rest)
            .min_by(|a, b| a.rest.total_cmp(&b.rest))?;
        Some(best.line(trial.freedom(), carried).score())
    };
    sure().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trend::tests::Random;

    fn points(curve: impl Fn(f64) -> f64) -> Vec<Point> {
        let mut random = Random(3);
        (1..=36)
            .map(|index| f64::from(index) * 8.0)
            .map(|time| (time, 1000.0 * curve(time) + random.normal()))
            .collect()
    }

    fn bend(curve: impl Fn(f64) -> f64) -> Bend {
        Bend::of(&points(curve), 0.0).unwrap()
    }

    #[test]
    fn a_line_does_not_slow_down() {
        let bend = bend(|time| time);
        assert!(!bend.slows(), "{bend:?}");
        assert!(bend.score > 10.0);
    }

    #[test]
    fn what_nears_a_bound_slows_down() {
        for constant in [20.0, 60.0, 200.0, 500.0] {
            let bend = bend(|time| 1.0 - (-time / constant).exp());
            assert!(bend.slows(), "{constant}: {bend:?}");
        }
    }

    #[test]
    fn what_is_full_slows_down() {
        for end in [30.0, 100.0, 250.0] {
            let bend = bend(|time| time.min(end));
            assert!(bend.slows() && bend.remaining < 0.75, "{end}: {bend:?}");
        }
    }

    #[test]
    fn what_speeds_up_is_told_from_a_line_and_from_one_jump() {
        let sure = |curve: fn(f64) -> f64| speeding_up(&points(curve), 1.0);
        assert!(sure(|time| time * time) > 10.0);
        assert!(sure(|time| (time / 60.0).exp()) > 10.0);
        assert_eq!(sure(|time| 1.0 - (-time / 100.0).exp()), 0.0);
        assert!(sure(|time| if time < 285.0 { 0.0 } else { 100.0 }) < 4.0);
    }

    #[test]
    fn what_goes_on_beside_an_approach_is_found() {
        let points = points(|time| 0.1 * time + 10.0 * (1.0 - (-time / 20.0).exp()));
        let bend = Bend::of(&points, 0.0).unwrap();
        let beyond = bend.beyond(&points, 0.0).unwrap();
        assert!((beyond.line.slope / 100.0 - 1.0).abs() < 0.05, "{beyond:?}");
        assert!(beyond.evidence > 20.0, "{beyond:?}");
    }
}
