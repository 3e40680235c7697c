use std::{fmt::Write, time::Duration};

use super::{
    kinds::{KINDS, Kind},
    random::Random,
};
use crate::{
    model::{Trend, Verdict},
    trend::History,
};

const MINUTES: [usize; 5] = [1, 2, 5, 15, 60];

/// One series judged at one time.
struct Judged {
    kind: usize,
    seed: u64,
    ages: bool,
    leaks: bool,
    /// Index into [`MINUTES`].
    time: usize,
    apart: bool,
    trend: Trend,
}

fn judge_kind(kind: usize, base: u64, count: usize) -> Vec<Judged> {
    let mut judged = Vec::new();
    for number in 0..count {
        let seed = base
            .wrapping_mul(0x1_0000_0001)
            .wrapping_add((kind * 100_000 + number) as u64);
        let series = (KINDS[kind].make)(&mut Random(seed));
        for ages in [true, false] {
            let apart = if ages {
                series.apart_until
            } else {
                series.apart_without_ages
            };
            let mut history = History::new();
            for (second, sample) in series.samples.iter().enumerate() {
                let mut sample = *sample;
                if !ages {
                    sample.aged = None;
                }
                history.push(sample);
                if let Some(time) = MINUTES.iter().position(|minutes| minutes * 60 == second) {
                    judged.push(Judged {
                        kind,
                        seed,
                        ages,
                        leaks: series.leaks,
                        time,
                        apart: (second as f64) < apart,
                        trend: history.judge(),
                    });
                }
            }
        }
    }
    judged
}

fn judge_all(base: u64, share: f64) -> Vec<Judged> {
    let halves: Vec<_> = (0..2)
        .map(|half| {
            std::thread::spawn(move || {
                let mut judged = Vec::new();
                for (kind, Kind { count, .. }) in KINDS.iter().enumerate() {
                    if kind % 2 == half {
                        let count = (*count as f64 * share).ceil() as usize;
                        judged.extend(judge_kind(kind, base, count));
                    }
                }
                judged
            })
        })
        .collect();
    halves
        .into_iter()
        .flat_map(|half| half.join().expect("judged"))
        .collect()
}

fn matrix(judged: &[Judged]) -> String {
    let mut text = String::new();
    for (time, minutes) in MINUTES.iter().enumerate() {
        let _ = write!(text, "\n| after {minutes} min |");
        for verdict in Verdict::ALL {
            let _ = write!(text, " {} |", verdict.name());
        }
        let _ = writeln!(text, "\n| --- |{}", " ---: |".repeat(Verdict::ALL.len()));
        for (kind, Kind { name, .. }) in KINDS.iter().enumerate() {
            for apart in [false, true] {
                let of = |verdict: Verdict| {
                    judged
                        .iter()
                        .filter(|one| (one.kind, one.time, one.apart) == (kind, time, apart))
                        .filter(|one| one.trend.verdict == verdict)
                        .count()
                };
                let counts = Verdict::ALL.map(of);
                if counts.iter().all(|count| *count == 0) {
                    continue;
                }
                let apart = if apart { " (apart)" } else { "" };
                let _ = write!(text, "| {name}{apart} |");
                for count in counts {
                    let _ = write!(text, " {count} |");
                }
                text.push('\n');
            }
        }
    }
    text
}

#[test]
fn quality() {
    let base: u64 = std::env::var("SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(1);
    let share: f64 = std::env::var("SHARE")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(1.0);
    let judged = judge_all(base, share);
    println!("{}", matrix(&judged));
    let of = |leaks: bool, from: usize, to: usize| {
        judged.iter().filter(move |one| {
            !one.apart && one.leaks == leaks && one.time >= from && one.time <= to
        })
    };
    for time in 0..5 {
        for leaks in [true, false] {
            let all = of(leaks, time, time).count();
            let growing = of(leaks, time, time)
                .filter(|one| one.trend.verdict == Verdict::Growing)
                .count();
            println!(
                "{} min, leaks {leaks}: {growing} of {all} GROWING: {:.2} %",
                MINUTES[time],
                100.0 * growing as f64 / all as f64
            );
        }
    }
    let b = of(false, 2, 4).count();
    let g = of(false, 2, 4)
        .filter(|one| one.trend.verdict == Verdict::Growing)
        .count();
    println!(
        "bounded at 5 or later: {g} of {b}: {:.3} %",
        100.0 * g as f64 / b as f64
    );
    for one in of(true, 2, 2)
        .filter(|one| one.trend.verdict != Verdict::Growing)
        .chain(of(false, 2, 4).filter(|one| one.trend.verdict == Verdict::Growing))
    {
        println!(
            "WRONG {} seed {} ages {} at {} min: {} {:?}",
            KINDS[one.kind].name,
            one.seed,
            one.ages,
            MINUTES[one.time],
            one.trend.verdict.name(),
            one.trend.rate
        );
    }
    let _ = Duration::ZERO;
}
