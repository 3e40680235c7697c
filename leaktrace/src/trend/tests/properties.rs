//! What holds for any series.

use std::time::Duration;

use proptest::prelude::*;

use crate::{
    model::{Trend, Verdict},
    trend::{Aged, History, Sample},
};

fn sample(second: u64, held: u64, made: u64, gone: u64) -> Sample {
    Sample {
        at: Duration::from_secs(second),
        held,
        made,
        gone,
        aged: None,
    }
}

fn judge(samples: impl IntoIterator<Item = Sample>) -> Trend {
    let mut history = History::new();
    samples.into_iter().for_each(|sample| history.push(sample));
    history.judge()
}

/// Samples without any order or sense.
fn senseless() -> impl Strategy<Value = Sample> {
    let time = prop_oneof![
        0..100_000_u64,
        (0..5_000_000_000_000_u64),
        Just(u64::MAX),
        Just(0)
    ];
    let amount = || prop_oneof![0..1000_u64, any::<u64>(), Just(0), Just(u64::MAX)];
    let aged = proptest::option::of([amount(), amount(), amount(), amount()]);
    (time, amount(), amount(), amount(), aged).prop_map(|(millis, held, made, gone, aged)| Sample {
        at: Duration::from_millis(millis),
        held,
        made,
        gone,
        aged: aged.map(|held| Aged { held }),
    })
}

/// Steps of a series that makes sense: seconds, things made and given back, bytes.
fn steps() -> impl Strategy<Value = Vec<(u64, u64, u64, u64)>> {
    prop::collection::vec((0..4_u64, 0..9_u64, 0..9_u64, 1..5000_u64), 1..400)
}

fn series(steps: &[(u64, u64, u64, u64)], scale: u64, give_back: bool) -> Vec<Sample> {
    let (mut at, mut held, mut made, mut gone) = (0, 0, 0, 0);
    let each = steps.iter().map(|(seconds, more, less, size)| {
        let less = if give_back {
            *less.min(&(made + more - gone))
        } else {
            0
        };
        at += seconds;
        made += more;
        gone += less;
        held = (held + more * size).saturating_sub(less * size);
        sample(at, held * scale, made, gone)
    });
    each.collect()
}

#[test]
fn what_speeds_up_grows_known_by_its_things_or_only_by_its_level() {
    let mut curves: Vec<Box<dyn Fn(f64) -> f64>> = vec![Box::new(|time| 300.0 * time * time)];
    for doubles in [120.0, 240.0, 600.0] {
        curves.push(Box::new(move |time| 1e6 * (time / doubles).exp2()));
    }
    for (curve, held) in curves.iter().enumerate() {
        for end in [120, 300, 600, 900, 1800] {
            let looks = (0..=end).map(|second| (second, held(second as f64) as u64));
            let things = looks
                .clone()
                .map(|(second, held)| sample(second, held, held / 100, 0));
            let level =
                looks.map(|(second, held)| Sample::level(Duration::from_secs(second), held));
            for trend in [judge(things), judge(level)] {
                let verdict = trend.verdict;
                assert_eq!(verdict, Verdict::Growing, "curve {curve} after {end} s");
            }
        }
    }
}

proptest! {
    #[test]
    fn nothing_panics_and_bounds_are_in_order(samples in prop::collection::vec(senseless(), 0..200)) {
        let mut history = History::new();
        let most = samples.iter().map(|sample| sample.made).max().unwrap_or(0);
        for sample in samples {
            history.push(sample);
            let made = history.made_by(sample.at);
            prop_assert!(made.least <= made.likely && made.likely <= made.most && made.most <= most);
        }
        let trend = history.judge();
        let rate = trend.rate;
        prop_assert!(rate.low <= rate.per_minute && rate.per_minute <= rate.high, "{rate:?}");
        prop_assert!((0.0..=1.0).contains(&trend.confidence));
    }

    #[test]
    fn rates_of_series_that_make_sense_are_finite(steps in steps()) {
        let trend = judge(series(&steps, 1, true));
        let rate = trend.rate;
        prop_assert!(rate.low <= rate.per_minute && rate.per_minute <= rate.high, "{rate:?}");
        prop_assert!(rate.low.is_finite() && rate.high.is_finite());
        prop_assert_eq!(trend.verdict == Verdict::TooEarly && trend.confidence > 0.0, false);
    }

    #[test]
    fn units_do_not_matter(steps in steps()) {
        let (bytes, more) = (judge(series(&steps, 1, true)), judge(series(&steps, 1024, true)));
        prop_assert_eq!(bytes.verdict, more.verdict);
        let close = (bytes.rate.per_minute * 1024.0 - more.rate.per_minute).abs();
        prop_assert!(close <= more.rate.per_minute.abs() * 1e-6 + 1e-9);
    }

    #[test]
    fn nor_does_when_it_began(steps in steps(), later in 0..1_000_000_u64) {
        let now = series(&steps, 1, true);
        let mut then = now.clone();
        then.iter_mut().for_each(|sample| sample.at += Duration::from_secs(later));
        prop_assert_eq!(judge(now), judge(then));
    }

    #[test]
    fn what_only_rises_is_no_churn(steps in steps()) {
        let verdict = judge(series(&steps, 1, false)).verdict;
        prop_assert!(!matches!(verdict, Verdict::Churn | Verdict::Sawtooth), "{verdict:?}");
    }

    #[test]
    fn what_only_falls_does_not_grow(start in 100_000..1_000_000_u64, falls in prop::collection::vec(0..200_u64, 60..400)) {
        let mut held = start;
        let samples = falls.iter().enumerate().map(|(second, fall)| {
            held -= fall;
            sample(second as u64, held, 1000, second as u64)
        });
        let trend = judge(samples.collect::<Vec<_>>());
        prop_assert!(!matches!(trend.verdict, Verdict::Growing | Verdict::Filling), "{trend:?}");
    }

    #[test]
    fn what_never_changes_is_flat(held in 1..u64::MAX, seconds in 60..5000_u64) {
        let trend = judge((0..=seconds).map(|second| sample(second, held, 1, 0)));
        prop_assert_eq!(trend.verdict, Verdict::Flat);
        prop_assert_eq!(trend.steady, Some(Duration::from_secs(seconds)));
        prop_assert_eq!(trend.rate.high, 0.0);
    }

    #[test]
    fn an_even_leak_grows_at_its_rate(rate in 1..1_000_000_u64, seconds in 61..4000_u64) {
        let samples = (0..=seconds).map(|second| sample(second, rate * second, second, 0));
        let trend = judge(samples);
        prop_assert_eq!(trend.verdict, Verdict::Growing);
        let error = (trend.rate.per_minute / (rate as f64 * 60.0) - 1.0).abs();
        prop_assert!(error < 1e-4, "{:?}", trend.rate);
    }

    #[test]
    fn a_trace_of_less_than_a_minute_tells_nothing(rate in 0..1000_u64, seconds in 0..59_u64) {
        let trend = judge((0..=seconds).map(|second| sample(second, 1 + rate * second, 1 + second, 0)));
        prop_assert_eq!(trend.verdict, Verdict::TooEarly);
    }
}
