//! Whether values rise along a straight line, when their noise may hang together.
//!
//! What a process holds is rarely a line with independent errors: a cache whose
//! entries are replaced wanders, a load comes in waves. Tests that take errors as
//! independent (least squares, plain Mann-Kendall) call such wandering a trend
//! most of the time. So:
//!
//! 1. A first line by Theil and Sen: the median of the slopes of all pairs. (P. K.
//!    Sen, "Estimates of the regression coefficient based on Kendall's tau", JASA
//!    63, 1968.)
//! 2. From what remains, how much of an error is *carried* to the next one: the
//!    first autocorrelation, corrected for its bias in short series. Near one it is
//!    taken as one: a random walk. (P. Perron, T. Yabu, "Estimating deterministic
//!    trends with an integrated or stationary noise component", Journal of
//!    Econometrics 151, 2009.)
//! 3. Both sides less that share of their predecessors, which leaves independent
//!    errors, and least squares on these (Prais and Winsten; for a random walk the
//!    mean of the differences). The slope over its error follows Student's
//!    distribution.
//!
//! For values that only rise, in steps, the third is the number of steps that
//! matter: ten equal ones are trusted, one jump is not.

/// A value at a time (in seconds).
pub(crate) type Point = (f64, f64);

/// A rise in units per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Line {
    pub slope: f64,
    /// Standard error of the slope.
    pub error: f64,
    /// Degrees of freedom.
    pub freedom: f64,
    /// Share of an error that is carried to the next point.
    pub carried: f64,
    /// How far points are off the first line.
    pub spread: f64,
}

/// Scores are not told apart above this.
const HIGHEST_SCORE: f64 = 40.0;
/// 95 % of a normal distribution is below: two-sided 90 %.
const NINETY: f64 = 1.645;

impl Line {
    /// The straight line through points in the order of time; `None` for too few.
    pub fn through(points: &[Point]) -> Option<Self> {
        Self::carrying(points, 0.0)
    }

    /// The same, when it is known that at least so much is carried.
    pub fn carrying(points: &[Point], least: f64) -> Option<Self> {
        if points.len() < 3 {
            return None;
        }
        let slope = theil_sen(points)?;
        let (carried, spread) = errors(points, slope);
        let line = Self::with_carried(points, carried.max(least))?;
        Some(Self { spread, ..line })
    }

    fn with_carried(points: &[Point], carried: f64) -> Option<Self> {
        let times = whiten(points.iter().map(|point| point.0), carried);
        let values = whiten(points.iter().map(|point| point.1), carried);
        let level = whiten(points.iter().map(|_| 1.0), carried);
        let fit = Fit::of(&[&level], &times, &values)?;
        let mut line = fit.line(points.len() as f64 - 2.0, carried);
        // Points are kept with 24 bits.
        let highest = points.iter().map(|point| point.1.abs()).fold(0.0, f64::max);
        let rounding = highest * f64::from(f32::EPSILON) / fit.weight.sqrt();
        line.error = line.error.max(rounding);
        Some(line)
    }

    /// How sure it is that it rises: the standard normal deviate that is as
    /// unlikely as the slope would be if there were no rise.
    pub fn score(&self) -> f64 {
        if self.slope == 0.0 {
            return 0.0;
        }
        let ratio = self.slope / self.error.max(f64::MIN_POSITIVE);
        normal_deviate(ratio, self.freedom).clamp(-HIGHEST_SCORE, HIGHEST_SCORE)
    }

    /// Below and above which the slope is with 90 % confidence.
    pub fn bounds(&self) -> (f64, f64) {
        let reach = self.error * student_quantile(NINETY, self.freedom);
        (self.slope - reach, self.slope + reach)
    }
}

/// How much more there is at the end than at the beginning, as a share of the mean,
/// when `base` is held where points are 0.
pub(super) fn growth(points: &[Point], line: &Line, base: f64) -> f64 {
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return 0.0;
    };
    let mean = points.iter().map(|point| point.1).sum::<f64>() / points.len() as f64 + base;
    line.slope * (last.0 - first.0) / mean.max(f64::MIN_POSITIVE)
}

/// A value less what is carried from its predecessor.
pub(super) fn whiten(values: impl Iterator<Item = f64>, carried: f64) -> Vec<f64> {
    let mut whitened = Vec::with_capacity(values.size_hint().0);
    let mut before = None;
    for value in values {
        match before {
            Some(before) => whitened.push(value - carried * before),
            None if carried < 1.0 => whitened.push(value * (1.0 - carried * carried).sqrt()),
            None => {}
        }
        before = Some(value);
    }
    whitened
}

/// Least squares of whitened values on one variable beside others.
pub(super) struct Fit {
    pub slope: f64,
    /// Sum of squares of what the others do not say of the variable.
    weight: f64,
    /// Sum of squares that remains.
    pub rest: f64,
    /// By how much errors that still hang together make it less certain.
    pub doubt: f64,
}

impl Fit {
    pub fn of(others: &[&[f64]], variable: &[f64], values: &[f64]) -> Option<Self> {
        let total = dot(values, values);
        let (mut variable, mut values) = (variable.to_vec(), values.to_vec());
        let mut before: Vec<Vec<f64>> = Vec::with_capacity(others.len());
        for other in others {
            let mut other = other.to_vec();
            for earlier in &before {
                take_out(&mut other, earlier);
            }
            take_out(&mut variable, &other);
            take_out(&mut values, &other);
            before.push(other);
        }
        let weight = dot(&variable, &variable);
        if weight <= 0.0 {
            return None;
        }
        let slope = dot(&variable, &values) / weight;
        take_out(&mut values, &variable);
        let rest = dot(&values, &values);
        // Rounding is no noise.
        let rest = if rest <= total * 1e-13 { 0.0 } else { rest };
        Some(Self {
            slope,
            weight,
            rest,
            doubt: doubt(&values, rest),
        })
    }

    /// As a rise.
    pub fn line(&self, freedom: f64, carried: f64) -> Line {
        Line {
            slope: self.slope,
            error: (self.rest * self.doubt / freedom / self.weight).sqrt(),
            freedom,
            carried,
            spread: 0.0,
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Takes out of values what another series says of them.
fn take_out(values: &mut [f64], other: &[f64]) {
    let weight = dot(other, other);
    if weight > 1e-9 {
        let share = dot(values, other) / weight;
        for (value, other) in values.iter_mut().zip(other) {
            *value -= share * other;
        }
    }
}

/// The variance of a mean of errors, as a multiple of what it would be were they
/// independent, from the first autocorrelation.
fn doubt(errors: &[f64], squares: f64) -> f64 {
    if squares <= 0.0 || errors.len() < 8 {
        return 1.0;
    }
    let products: f64 = errors.windows(2).map(|pair| pair[0] * pair[1]).sum();
    let carried = (products / squares + 1.0 / errors.len() as f64).clamp(0.0, 0.9);
    (1.0 + carried) / (1.0 - carried)
}

/// The median of the slopes of all pairs.
pub(crate) fn theil_sen(points: &[Point]) -> Option<f64> {
    let mut slopes = Vec::with_capacity(points.len() * points.len() / 2);
    for (index, later) in points.iter().enumerate() {
        for earlier in &points[..index] {
            let time = later.0 - earlier.0;
            if time > 0.0 {
                slopes.push((later.1 - earlier.1) / time);
            }
        }
    }
    median(&mut slopes)
}

pub(super) fn median(values: &mut [f64]) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    let middle = values.len() / 2;
    let (_, median, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    Some(*median)
}

/// Of errors about a slope: the share that is carried to the next point, 0 to 1,
/// and their standard deviation.
fn errors(points: &[Point], slope: f64) -> (f64, f64) {
    let count = points.len() as f64;
    let mut errors: Vec<f64> = points.iter().map(|(t, y)| y - slope * t).collect();
    let mean = errors.iter().sum::<f64>() / count;
    errors.iter_mut().for_each(|error| *error -= mean);
    let squares = dot(&errors, &errors);
    let earlier = &errors[..errors.len() - 1];
    let (before, products) = (dot(earlier, earlier), dot(earlier, &errors[1..]));
    if before <= 0.0 {
        return (0.0, (squares / count).sqrt());
    }
    let raw = products / before;
    // A line that was fitted takes part of what is carried with it.
    let corrected = if count > 5.0 {
        (count * raw + 2.0) / (count - 4.0)
    } else {
        raw
    };
    let walk = corrected > 1.0 - 2.6 / count.sqrt();
    let carried = if walk { 1.0 } else { corrected.max(0.0) };
    (carried, (squares / count).sqrt())
}

/// D. L. Wallace, "Bounds on normal approximations to Student's and the chi-square
/// distributions", Annals of Mathematical Statistics 30, 1959.
fn normal_deviate(ratio: f64, freedom: f64) -> f64 {
    let shrink = (8.0 * freedom + 1.0) / (8.0 * freedom + 3.0);
    let size = (freedom * (ratio * ratio / freedom).ln_1p()).sqrt();
    (shrink * size).copysign(ratio)
}

/// The other way round.
fn student_quantile(normal: f64, freedom: f64) -> f64 {
    let shrink = (8.0 * freedom + 1.0) / (8.0 * freedom + 3.0);
    let size = normal / shrink;
    (freedom * (size * size / freedom).exp_m1()).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trend::tests::Random;

    fn points(values: impl IntoIterator<Item = f64>) -> Vec<Point> {
        let values = values.into_iter().enumerate();
        values.map(|(index, value)| (index as f64, value)).collect()
    }

    /// Errors of which a share is carried to the next.
    fn noise(random: &mut Random, carried: f64, count: usize) -> Vec<f64> {
        let mut now = 0.0;
        let errors = (0..count + 20).map(|_| {
            now = carried * now + random.normal();
            now
        });
        errors.skip(20).collect()
    }

    #[test]
    fn an_exact_line_is_found_exactly() {
        let line = Line::through(&points((0..30).map(|t| 7.0 + 3.0 * f64::from(t)))).unwrap();
        assert!((line.slope - 3.0).abs() < 1e-9);
        assert!(line.score() > 20.0, "{}", line.score());
    }

    #[test]
    fn one_wild_value_does_not_turn_the_first_line() {
        let mut values: Vec<f64> = (0..30).map(f64::from).collect();
        values[29] = 1e6;
        assert_eq!(theil_sen(&points(values)), Some(1.0));
    }

    #[test]
    fn noise_is_seldom_believed_however_it_hangs_together() {
        for carried in [0.0, 0.5, 0.9, 1.0] {
            let mut random = Random(5);
            let believed = (0..1000).filter(|_| {
                let line = Line::through(&points(noise(&mut random, carried, 36))).unwrap();
                line.score() > 3.6
            });
            let believed = believed.count();
            assert!(believed <= 15, "{believed} of 1000 with {carried} carried");
        }
    }

    #[test]
    fn bounds_hold_the_slope_about_nine_times_of_ten() {
        for carried in [0.0, 0.5, 1.0] {
            let mut random = Random(6);
            let held = (0..1000).filter(|_| {
                let errors = noise(&mut random, carried, 36).into_iter().enumerate();
                let values = errors.map(|(index, error)| error + 0.5 * index as f64);
                let (low, high) = Line::through(&points(values)).unwrap().bounds();
                low <= 0.5 && 0.5 <= high
            });
            let held = held.count();
            assert!(held >= 830, "{held} of 1000 with {carried} carried");
        }
    }

    #[test]
    fn steps_count_by_their_number() {
        let steps = |count: usize| {
            let every = 36 / count;
            let values = (0..36).map(|index| (index / every) as f64);
            Line::through(&points(values)).unwrap().score()
        };
        assert!(steps(2) < 3.0, "{}", steps(2));
        assert!(steps(18) > 3.6, "{}", steps(18));
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (freedom, quantile) in [(2.0, 2.920), (5.0, 2.015), (30.0, 1.697)] {
            let ours = student_quantile(NINETY, freedom);
            assert!(
                (ours / quantile - 1.0).abs() < 0.02,
                "{ours} for {quantile}"
            );
            assert!((normal_deviate(ours, freedom) - NINETY).abs() < 1e-9);
        }
    }
}
