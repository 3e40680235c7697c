//! What programs do, as series made by chance: leaks, and what only looks like one.

use std::{collections::BTreeMap, f64::consts::TAU};

use super::{
    blocks::{Blocks, SECONDS},
    random::Random,
};
use crate::trend::Sample;

const KIB: f64 = 1024.0;
const MIB: f64 = 1024.0 * KIB;
const END: f64 = SECONDS as f64;
const FOREVER: f64 = f64::INFINITY;

/// A series, and what is true of it.
pub struct Series {
    /// With ages; the variant without is these less the ages.
    pub samples: Vec<Sample>,
    pub leaks: bool,
    /// Seconds between which nobody can tell it.
    pub apart: Vec<(f64, f64)>,
    /// Nobody can tell it at all without ages.
    pub hidden_without_ages: bool,
}

impl Series {
    /// Whether nobody can tell it at that time.
    pub fn is_apart(&self, second: f64, ages: bool) -> bool {
        let within = |(from, to): &(f64, f64)| (*from..*to).contains(&second);
        self.apart.iter().any(within) || !ages && self.hidden_without_ages
    }
}

/// A way in which series are made.
pub struct Kind {
    pub name: &'static str,
    /// In the committed set.
    pub count: usize,
    pub make: fn(&mut Random) -> Series,
}

/// All of them: leaks, bounded ones, and leaks that speed up. A kind's series follow
/// from its place.
pub const KINDS: [Kind; 32] = [
    Kind {
        name: "leak, steady",
        count: 80,
        make: steady_leak,
    },
    Kind {
        name: "leak below a churn",
        count: 60,
        make: leak_below_churn,
    },
    Kind {
        name: "slow leak below up to 200 MiB/s of churn",
        count: 80,
        make: slow_leak_below_large_churn,
    },
    Kind {
        name: "leak in bursts",
        count: 60,
        make: leak_in_bursts,
    },
    Kind {
        name: "leak that follows a daily wave",
        count: 40,
        make: leak_with_wave,
    },
    Kind {
        name: "leak below batches, 2 s to 40 s",
        count: 60,
        make: leak_below_batches,
    },
    Kind {
        name: "leak below batches, 40 s to 20 min",
        count: 40,
        make: leak_below_long_batches,
    },
    Kind {
        name: "leak below a garbage collector",
        count: 30,
        make: leak_below_collector,
    },
    Kind {
        name: "leak behind a cache that warms up",
        count: 40,
        make: leak_behind_cache,
    },
    Kind {
        name: "leak behind a cache that warms up slowly",
        count: 20,
        make: leak_behind_slow_cache,
    },
    Kind {
        name: "leak, worker restarts",
        count: 20,
        make: leak_with_restart,
    },
    Kind {
        name: "leak, clock jumps",
        count: 30,
        make: leak_with_clock_jumps,
    },
    Kind {
        name: "constant",
        count: 20,
        make: constant,
    },
    Kind {
        name: "one step",
        count: 40,
        make: one_step,
    },
    Kind {
        name: "start-up load",
        count: 40,
        make: start_up,
    },
    Kind {
        name: "pool that doubles and stops",
        count: 40,
        make: doubling_pool,
    },
    Kind {
        name: "cache, approaches its bound",
        count: 80,
        make: approaching_cache,
    },
    Kind {
        name: "cache, fills and is full",
        count: 80,
        make: filling_cache,
    },
    Kind {
        name: "cache, LRU, keys at random",
        count: 50,
        make: lru_cache,
    },
    Kind {
        name: "cache, random replacement",
        count: 50,
        make: random_replacement,
    },
    Kind {
        name: "churn, large",
        count: 60,
        make: large_churn,
    },
    Kind {
        name: "churn, few and long-lived",
        count: 60,
        make: few_long_lived,
    },
    Kind {
        name: "churn that follows a wave",
        count: 50,
        make: churn_with_wave,
    },
    Kind {
        name: "batches, 2 s to 40 s",
        count: 50,
        make: batches,
    },
    Kind {
        name: "batches, 40 s to 20 min",
        count: 50,
        make: long_batches,
    },
    Kind {
        name: "garbage collector",
        count: 40,
        make: collector,
    },
    Kind {
        name: "worker restarts",
        count: 30,
        make: restart,
    },
    Kind {
        name: "bounded, clock jumps",
        count: 40,
        make: bounded_with_clock_jumps,
    },
    Kind {
        name: "leak that speeds up",
        count: 60,
        make: accelerating_leak,
    },
    Kind {
        name: "leak that speeds up, below a churn",
        count: 40,
        make: accelerating_leak_below_churn,
    },
    Kind {
        name: "leak that speeds up, of which only the level is known",
        count: 40,
        make: accelerating_level,
    },
    Kind {
        name: "bounded, of which only the level is known",
        count: 40,
        make: bounded_level,
    },
];

fn leak(blocks: &Blocks) -> Series {
    Series {
        samples: blocks.samples(),
        leaks: true,
        apart: Vec::new(),
        hidden_without_ages: false,
    }
}

fn bounded(blocks: &Blocks) -> Series {
    Series {
        leaks: false,
        ..leak(blocks)
    }
}

fn apart_until(series: Series, seconds: f64) -> Series {
    Series {
        apart: vec![(0.0, seconds)],
        ..series
    }
}

/// What fills ever more slowly is a straight line for all that can be seen until
/// the second half of the time has brought a sixth less than the first, and less by
/// four standard deviations of what so many events bring by chance.
fn until_it_slows(series: Series, at_most: f64) -> Series {
    let things = |second: usize| {
        let sample = &series.samples[second];
        (sample.made - sample.gone) as f64
    };
    let slows = (10..=SECONDS).step_by(10).find(|now| {
        let (first, all) = (things(now / 2), things(*now));
        let second = all - first;
        let events = series.samples[*now].made + series.samples[*now].gone;
        second < 0.83 * first && first - second > 4.0 * (events as f64).sqrt()
    });
    let seconds = slows.map_or(FOREVER, |slows| slows as f64).min(at_most);
    apart_until(series, seconds)
}

/// How busy the program is, second by second, 1 on average.
fn load(random: &mut Random, sigma: f64, correlation: f64) -> Vec<f64> {
    let keep = (-1.0 / correlation).exp();
    let fresh = (1.0 - keep * keep).sqrt();
    let mut now = random.normal();
    (0..SECONDS)
        .map(|_| {
            now = keep * now + fresh * random.normal();
            (sigma * now - sigma * sigma / 2.0).exp()
        })
        .collect()
}

fn some_load(random: &mut Random) -> Vec<f64> {
    let (sigma, correlation) = (random.between(0.02, 0.25), random.scaled(1.0, 30.0));
    load(random, sigma, correlation)
}

/// The same for what leaks: what varies more looks like a cache that fills for
/// minutes at a time, by chance.
fn steady_load(random: &mut Random) -> Vec<f64> {
    let (sigma, correlation) = (random.between(0.02, 0.2), random.scaled(1.0, 15.0));
    load(random, sigma, correlation)
}

/// A wave about 1.
fn wave(random: &mut Random, period: f64, depth: f64) -> Vec<f64> {
    let phase = random.between(0.0, TAU);
    (0..SECONDS)
        .map(|second| 1.0 + depth * (phase + TAU * second as f64 / period).sin())
        .collect()
}

fn times(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a * b).collect()
}

/// Leaks at a rate in bytes a second, in blocks of a size.
fn add_leak(
    blocks: &mut Blocks,
    random: &mut Random,
    rate: f64,
    size: f64,
    load: &[f64],
    from: f64,
) {
    let mut owed = random.share() * size;
    for (second, load) in load.iter().enumerate().skip(from as usize) {
        owed += rate * load;
        if owed >= size {
            let count = (owed / size).floor();
            blocks.add(second as f64 + random.share(), FOREVER, count * size, count);
            owed -= count * size;
        }
    }
}

/// A size of blocks with which a leak at this rate shows every few seconds.
fn leak_size(random: &mut Random, rate: f64) -> f64 {
    random.scaled(16.0, (rate * 4.0).min(MIB))
}

/// Lives by Weibull's distribution: exponential for `shape` 1, some much longer
/// below.
#[derive(Clone, Copy)]
struct Lives {
    scale: f64,
    shape: f64,
}

impl Lives {
    fn some(random: &mut Random, low: f64, high: f64) -> Self {
        Self {
            scale: random.scaled(low, high),
            shape: random.between(0.5, 1.2),
        }
    }

    fn quantile(self, share: f64) -> f64 {
        self.scale * (-(1.0 - share).ln()).powf(1.0 / self.shape)
    }
}

/// Shares of a second's births that die together: finest among the long-lived.
const STRATA: [f64; 11] = [0.0, 0.3, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99, 0.996, 0.999, 1.0];

/// Makes and gives back, at a rate in bytes a second.
fn add_churn(
    blocks: &mut Blocks,
    random: &mut Random,
    rate: f64,
    size: f64,
    lives: Lives,
    load: &[f64],
) {
    for (second, load) in load.iter().enumerate() {
        for part in STRATA.windows(2) {
            let share = random.between(part[0], part[1]);
            let bytes = rate * load * (part[1] - part[0]);
            blocks.add(
                second as f64 + random.share(),
                lives.quantile(share),
                bytes,
                bytes / size,
            );
        }
    }
}

/// Standard deviation of what is held in the first minutes, without the first one.
fn noise(blocks: &Blocks) -> f64 {
    let held: Vec<f64> = blocks.samples()[60..300]
        .iter()
        .map(|s| s.held as f64)
        .collect();
    let mean = held.iter().sum::<f64>() / held.len() as f64;
    (held.iter().map(|h| (h - mean) * (h - mean)).sum::<f64>() / held.len() as f64).sqrt()
}

/// Without ages, what rises in five minutes by less than a few times the noise of
/// what else is held can't be told from that noise.
fn hidden_without_ages(series: Series, rate: f64, noise: f64) -> Series {
    let hidden = rate * 300.0 < 8.0 * noise;
    Series {
        hidden_without_ages: hidden,
        ..series
    }
}

fn steady_leak(random: &mut Random) -> Series {
    let mut blocks = Blocks::new();
    let rate = random.scaled(KIB, 10.0 * MIB);
    if random.chance(0.3) {
        blocks.add(0.0, FOREVER, random.scaled(KIB, 100.0 * MIB), 10.0);
    }
    let (size, load) = (leak_size(random, rate), steady_load(random));
    add_leak(&mut blocks, random, rate, size, &load, 0.0);
    leak(&blocks)
}

fn leak_below_churn(random: &mut Random) -> Series {
    let mut blocks = Blocks::new();
    let rate = random.scaled(KIB, MIB);
    let load = steady_load(random);
    let lives = Lives::some(random, 0.05, 10.0);
    let churn = rate * random.scaled(1.0, 100.0);
    let churn_size = random.scaled(16.0, 10.0 * KIB);
    add_churn(&mut blocks, random, churn, churn_size, lives, &load);
    let noise = noise(&blocks);
    let size = leak_size(random, rate);
    add_leak(&mut blocks, random, rate, size, &load, 0.0);
    hidden_without_ages(leak(&blocks), rate, noise)
}

fn slow_leak_below_large_churn(random: &mut Random) -> Series {
    let mut blocks = Blocks::new();
    let rate = random.scaled(KIB, 100.0 * KIB);
    let load = steady_load(random);
    let lives = Lives::some(random, 0.01, 1.0);
    let churn = random.scaled(MIB, 200.0 * MIB);
    add_churn(&mut blocks, random, churn, 1000.0, lives, &load);
    let noise = noise(&blocks);
    let size = leak_size(random, rate);
    add_leak(&mut blocks, random, rate, size, &load, 0.0);
    hidden_without_ages(leak(&blocks), rate, noise)
}

/// How a leak becomes ever faster: in proportion to time, 1 on average of five
/// minutes, so that what is held is a square; or from 1 on doubling every so often.
fn acceleration(random: &mut Random) -> Vec<f64> {
    let doubles = random.chance(0.5).then(|| random.scaled(120.0, 600.0));
    (0..SECONDS)
        .map(|second| {
            let time = second as f64;
            doubles.map_or(time / 150.0, |doubles| (time / doubles).exp2())
        })
        .collect()
}

fn add_accelerating_leak(blocks: &mut Blocks, random: &mut Random, rate: f64, load: &[f64]) {
    let load = times(&acceleration(random), load);
    let size = leak_size(random, rate);
    add_leak(blocks, random, rate, size, &load, 0.0);
}

fn accelerating_leak(random: &mut Random) -> Series {
    let mut blocks = Blocks::new();
    let (rate, load) = (random.scaled(KIB, MIB), steady_load(random));
    add_accelerating_leak(&mut blocks, random, rate, &load);
    leak(&blocks)
}

fn accelerating_leak_below_churn(random: &mut Random) -> Series {
    let mut blocks = Blocks::new();
    let (rate, load) = (random.scaled(KIB, MIB), steady_load(random));
    let lives = Lives::some(random, 0.05, 10.0);
    let churn = rate * random.scaled(1.0, 100.0);
    let churn_size = random.scaled(16.0, 10.0 * KIB);
    add_churn(&mut blocks, random, churn, churn_size, lives, &load);
    let noise = noise(&blocks);
    add_accelerating_leak(&mut blocks, random, rate, &load);
    hidden_without_ages(leak(&blocks), rate, noise)
}

/// The memory of a process, in pages, beside what it holds anyway.
fn level(random: &mut Random, series: Series) -> Series {
    let anyway = random.scaled(MIB, 1024.0 * MIB) as u64;
    let level = |sample: &Sample| {
        let held = (anyway + sample.held).next_multiple_of(4096);
        Sample::level(sample.at, held)
    };
    Series {
        samples: series.samples.iter().map(level).collect(),
        ..series
    }
}

fn accelerating_level(random: &mut Random) -> Series {
    let series = accelerating_leak(random);
    level(random, series)
}

fn bounded_level(random: &mut Random) -> Series {
    let series = some_bounded(random);
    level(random, series)
}

fn leak_in_bursts(random: &mut Random) -> Series {
    let mut blocks = Blocks::new();
    let rate = random.scaled(KIB, MIB);
    let gap = random.scaled(1.0, 10.0);
    let mut at = 0.0;
    while at < END {
        let bytes = rate * gap * random.log_normal(0.5);
        blocks.add(at, FOREVER, bytes, (bytes / 100.0).max(1.0).floor());
        at += gap * (0.3 + 0.7 * random.exponential());
    }
    leak(&blocks)
}

fn leak_with_wave(random: &mut Random) -> Series {
    let mut blocks = Blocks::new();
    let depth = random.between(0.2, 0.8);
    let rate = random.scaled(KIB, MIB) / (1.0 - depth);
    let load = times(&wave(random, 86_400.0, depth), &steady_load(random));
    if random.chance(0.5) {
        let lives = Lives::some(random, 0.05, 2.0);
        add_churn(&mut blocks, random, rate * 3.0, 100.0, lives, &load);
    }
    let noise = noise(&blocks);
    let size = leak_size(random, rate);
    add_leak(&mut blocks, random, rate, size, &load, 0.0);
    hidden_without_ages(leak(&blocks), rate * (1.0 - depth), noise)
}

/// Collects and gives all back at the end of each period.
fn add_batches(blocks: &mut Blocks, random: &mut Random, period: f64, rate: f64, jitter: f64) {
    let mut begins = -period * random.share();
    while begins < END {
        let ends = begins + period * (1.0 + jitter * random.normal()).clamp(0.3, 2.0);
        let pace = rate * random.log_normal(jitter);
        let parts = ((ends - begins) * 2.0).clamp(4.0, 200.0) as usize;
        for part in 0..parts {
            let share = (part as f64 + random.share()) / parts as f64;
            let born = begins + share * (ends - begins);
            if born >= 0.0 {
                let bytes = pace * (ends - begins) / parts as f64;
                blocks.add(born, ends - born, bytes, (bytes / 1000.0).max(1.0));
            }
        }
        begins = ends;
    }
}

fn leak_over_batches(random: &mut Random, period: f64) -> Series {
    let mut blocks = Blocks::new();
    let rate = random.scaled(KIB, MIB);
    let (pace, jitter) = (rate * random.scaled(1.0, 20.0), random.between(0.0, 0.2));
    add_batches(&mut blocks, random, period, pace, jitter);
    let (size, load) = (leak_size(random, rate), steady_load(random));
    add_leak(&mut blocks, random, rate, size, &load, 0.0);
    leak(&blocks)
}

fn leak_below_batches(random: &mut Random) -> Series {
    let period = random.scaled(2.0, 40.0);
    leak_over_batches(random, period)
}

/// Its lowest points rise, but for a trend it takes some of them.
fn leak_below_long_batches(random: &mut Random) -> Series {
    let period = random.scaled(40.0, 1200.0);
    apart_until(leak_over_batches(random, period), 7.0 * period)
}

/// Garbage is collected when so much of it is there; what is reachable stays.
fn add_collector(blocks: &mut Blocks, random: &mut Random, rate: f64, period: f64, survivors: f64) {
    let mut begins = 0.0;
    while begins < END {
        let ends = begins + period * random.log_normal(0.1);
        let parts = ((ends - begins) * 2.0).clamp(4.0, 100.0) as usize;
        for part in 0..parts {
            let born = begins + (part as f64 + random.share()) / parts as f64 * (ends - begins);
            let bytes = rate * (ends - begins) / parts as f64;
            let mut dies = ends;
            // Some are still in use and survive one collection or more.
            while random.chance(survivors) {
                dies += period;
            }
            blocks.add(born, dies - born, bytes, (bytes / 64.0).max(1.0));
        }
        begins = ends;
    }
}

fn leak_below_collector(random: &mut Random) -> Series {
    let mut blocks = Blocks::new();
    let rate = random.scaled(10.0 * KIB, MIB);
    let period = random.scaled(2.0, 30.0);
    let (pace, survivors) = (rate * random.scaled(1.0, 20.0), random.between(0.0, 0.1));
    add_collector(&mut blocks, random, pace, period, survivors);
    let noise = noise(&blocks);
    let (size, load) = (leak_size(random, rate), steady_load(random));
    add_leak(&mut blocks, random, rate, size, &load, 0.0);
    hidden_without_ages(leak(&blocks), rate, noise * survivors.sqrt())
}

fn leak_behind_cache(random: &mut Random) -> Series {
    let constant = random.scaled(3.0, 25.0);
    leak_beside_approach(random, constant)
}

/// Until it is nearly warm, growth slows down like that of any cache.
fn leak_behind_slow_cache(random: &mut Random) -> Series {
    let constant = random.scaled(25.0, 300.0);
    apart_until(leak_beside_approach(random, constant), 12.0 * constant)
}

fn leak_beside_approach(random: &mut Random, constant: f64) -> Series {
    let mut blocks = Blocks::new();
    let rate = random.scaled(KIB, MIB);
    let bound = rate * random.scaled(30.0, 3000.0);
    add_approach(&mut blocks, random, bound, constant, 1.0);
    let (size, load) = (leak_size(random, rate), steady_load(random));
    add_leak(&mut blocks, random, rate, size, &load, 0.0);
    leak(&blocks)
}

/// After the restart it holds nothing and leaks anew: for an observer one tooth,
/// whose end is not known to come never.
fn leak_with_restart(random: &mut Random) -> Series {
    let mut blocks = Blocks::new();
    let rate = random.scaled(KIB, MIB);
    let restarts = random.between(30.0, 600.0);
    let load = steady_load(random);
    for (second, load) in load.iter().enumerate() {
        let born = second as f64 + random.share();
        let life = if born < restarts {
            restarts - born
        } else {
            FOREVER
        };
        blocks.add(born, life, rate * load, 8.0);
    }
    apart_until(leak(&blocks), 6.0 * restarts)
}

fn constant(random: &mut Random) -> Series {
    let mut blocks = Blocks::new();
    blocks.add(
        0.0,
        FOREVER,
        random.scaled(16.0, 1024.0 * MIB),
        1.0 + random.below(1000) as f64,
    );
    bounded(&blocks)
}

fn one_step(random: &mut Random) -> Series {
    let mut blocks = Blocks::new();
    if random.chance(0.5) {
        blocks.add(0.0, FOREVER, random.scaled(KIB, 10.0 * MIB), 10.0);
    }
    if random.chance(0.5) {
        let (lives, load) = (Lives::some(random, 0.05, 1.0), some_load(random));
        let rate = random.scaled(100.0, MIB);
        add_churn(&mut blocks, random, rate, 100.0, lives, &load);
    }
    let at = random.scaled(1.0, 3000.0);
    blocks.add(
        at,
        FOREVER,
        random.scaled(KIB, 100.0 * MIB),
        1.0 + random.below(100) as f64,
    );
    bounded(&blocks)
}

fn start_up(random: &mut Random) -> Series {
    let mut blocks = Blocks::new();
    let (takes, rate) = (random.scaled(1.0, 60.0), random.scaled(KIB, 50.0 * MIB));
    for second in 0..takes as usize + 1 {
        let bytes = rate * random.log_normal(0.5);
        // Some of it is only needed to load the rest.
        blocks.add(second as f64, FOREVER, bytes * 0.8, 80.0);
        blocks.add(second as f64, takes * random.share(), bytes * 0.2, 20.0);
    }
    bounded(&blocks)
}

fn doubling_pool(random: &mut Random) -> Series {
    let mut blocks = Blocks::new();
    let (first, doublings) = (random.scaled(KIB, MIB), 2 + random.below(9));
    // What is asked of it grows steadily, or exponentially, and stops.
    let (step, factor) = (
        random.scaled(1.0, 60.0),
        if random.chance(0.5) { 1.0 } else { 2.0 },
    );
    let (mut at, mut wait, mut size) = (0.0, step, first);
    for _ in 0..doublings {
        let life = if random.chance(0.5) { FOREVER } else { wait };
        // A new pool replaces the old one, or stands beside it.
        blocks.add(at, life, size, 1.0);
        at += wait;
        wait *= factor;
        size *= 2.0;
    }
    blocks.add(at, FOREVER, size, 1.0);
    bounded(&blocks)
}

/// Entries that are inserted ever more rarely, since ever more keys are there.
fn add_approach(blocks: &mut Blocks, random: &mut Random, bound: f64, constant: f64, sigma: f64) {
    let entries = random.scaled(500.0, 20_000.0) as usize;
    for _ in 0..entries {
        let born = constant * random.exponential();
        if born < END {
            blocks.add(
                born,
                FOREVER,
                bound / entries as f64 * random.log_normal(sigma),
                1.0,
            );
        }
    }
}

fn approaching_cache(random: &mut Random) -> Series {
    let mut blocks = Blocks::new();
    let (bound, constant) = (
        random.scaled(100.0 * KIB, 1024.0 * MIB),
        random.scaled(5.0, 1800.0),
    );
    let sigma = random.between(0.0, 1.2);
    add_approach(&mut blocks, random, bound, constant, sigma);
    let series = until_it_slows(bounded(&blocks), constant);
    if random.chance(0.5) {
        let (lives, load) = (Lives::some(random, 0.05, 2.0), some_load(random));
        add_churn(&mut blocks, random, bound * 0.01, 100.0, lives, &load);
    }
    Series {
        samples: blocks.samples(),
        ..series
    }
}

/// The oldest go when the bound, in bytes or entries, is reached.
fn filling_cache(random: &mut Random) -> Series {
    let mut blocks = Blocks::new();
    let full = random.scaled(10.0, 3000.0);
    let (entries, sigma) = (random.scaled(50.0, 4000.0), random.between(0.0, 1.2));
    let (by_bytes, load) = (random.chance(0.5), some_load(random));
    let mean = random.scaled(100.0, 100.0 * KIB);
    let mut held: std::collections::VecDeque<(f64, f64)> = std::collections::VecDeque::new();
    let (mut bytes, mut owed, mut full_at) = (0.0, 0.0, f64::INFINITY);
    for (second, load) in load.iter().enumerate() {
        owed += entries / full * load;
        while owed >= 1.0 {
            owed -= 1.0;
            let now = second as f64 + random.share();
            let size = mean * random.log_normal(sigma);
            held.push_back((now, size));
            bytes += size;
            while if by_bytes {
                bytes > entries * mean
            } else {
                held.len() as f64 > entries
            } {
                full_at = full_at.min(now);
                let Some((born, size)) = held.pop_front() else {
                    break;
                };
                bytes -= size;
                blocks.add(born, now - born, size, 1.0);
            }
        }
    }
    for (born, size) in held {
        blocks.add(born, FOREVER, size, 1.0);
    }
    // Full for less than a tenth of the time: a pause.
    apart_until(bounded(&blocks), full_at / 0.9)
}

fn lru_cache(random: &mut Random) -> Series {
    let mut blocks = Blocks::new();
    let keys = random.scaled(50.0, 3000.0) as usize;
    let capacity = ((keys as f64 * random.between(0.2, 1.2)) as usize).max(8);
    let (rate, sigma, mean) = (
        random.scaled(2.0, 12.0),
        random.between(0.0, 1.2),
        random.scaled(100.0, 100.0 * KIB),
    );
    // Some keys are asked for more often.
    let skew = random.between(1.0, 3.0);
    let sizes: Vec<f64> = (0..keys).map(|_| mean * random.log_normal(sigma)).collect();
    let mut used: Vec<Option<(u64, f64)>> = vec![None; keys];
    let mut order: BTreeMap<u64, usize> = BTreeMap::new();
    let (mut now, mut stamp) = (0.0, 0);
    let mut full_at = f64::INFINITY;
    while now < END {
        now += random.exponential() / rate;
        stamp += 1;
        let key = ((random.share().powf(skew) * keys as f64) as usize).min(keys - 1);
        let born = match used[key] {
            Some((before, born)) => {
                order.remove(&before);
                born
            }
            None => now,
        };
        used[key] = Some((stamp, born));
        order.insert(stamp, key);
        if order.len() > capacity
            && let Some((_, oldest)) = order.pop_first()
            && let Some((_, born)) = used[oldest].take()
        {
            full_at = full_at.min(now);
            blocks.add(born, now - born, sizes[oldest], 1.0);
        }
    }
    for (key, used) in used.iter().enumerate() {
        if let Some((_, born)) = used {
            blocks.add(*born, FOREVER, sizes[key], 1.0);
        }
    }
    let series = until_it_slows(bounded(&blocks), FOREVER);
    let seconds = series.apart[0].1.min(full_at / 0.9);
    apart_until(series, seconds)
}

/// Full from the beginning or soon; each entry that comes replaces any other.
fn random_replacement(random: &mut Random) -> Series {
    let mut blocks = Blocks::new();
    let entries = random.scaled(20.0, 2000.0) as usize;
    let (rate, sigma, mean) = (
        random.scaled(0.1, 10.0),
        random.between(0.2, 1.5),
        random.scaled(100.0, 100.0 * KIB),
    );
    let warm = random.scaled(1.0, 20.0);
    let mut slots: Vec<(f64, f64)> = (0..entries)
        .map(|_| (warm * random.share(), mean * random.log_normal(sigma)))
        .collect();
    let mut now = warm;
    while now < END {
        now += random.exponential() / rate;
        let slot = random.below(entries);
        let (born, size) = slots[slot];
        blocks.add(born, now - born, size, 1.0);
        slots[slot] = (now, mean * random.log_normal(sigma));
    }
    for (born, size) in slots {
        blocks.add(born, FOREVER, size, 1.0);
    }
    bounded(&blocks)
}

fn large_churn(random: &mut Random) -> Series {
    let mut blocks = Blocks::new();
    let (lives, load) = (Lives::some(random, 0.01, 20.0), some_load(random));
    let rate = random.scaled(10.0 * KIB, 200.0 * MIB);
    let size = random.scaled(16.0, 10.0 * KIB);
    add_churn(&mut blocks, random, rate, size, lives, &load);
    bounded(&blocks)
}

/// Connections, jobs: some dozens that live for seconds or minutes.
fn few_long_lived(random: &mut Random) -> Series {
    let mut blocks = Blocks::new();
    let mean = random.scaled(2.0, 300.0);
    let (held, sigma) = (random.scaled(2.0, 500.0), random.between(0.0, 1.0));
    let size = random.scaled(100.0, 100.0 * KIB);
    let mut now = 0.0;
    // Those that were there before are not known: it starts with none.
    while now < END {
        now += random.exponential() * mean / held;
        blocks.add(
            now,
            mean * random.exponential(),
            size * random.log_normal(sigma),
            1.0,
        );
    }
    until_it_slows(bounded(&blocks), 2.0 * mean)
}

fn churn_with_wave(random: &mut Random) -> Series {
    let mut blocks = Blocks::new();
    let (period, depth) = (random.scaled(1800.0, 86_400.0), random.between(0.2, 0.8));
    let load = times(&wave(random, period, depth), &some_load(random));
    let lives = Lives::some(random, 0.05, 20.0);
    let rate = random.scaled(10.0 * KIB, 50.0 * MIB);
    add_churn(&mut blocks, random, rate, 1000.0, lives, &load);
    bounded(&blocks)
}

fn some_batches(random: &mut Random, period: f64) -> Series {
    let mut blocks = Blocks::new();
    let (rate, jitter) = (random.scaled(KIB, 10.0 * MIB), random.between(0.0, 0.3));
    if random.chance(0.5) {
        blocks.add(0.0, FOREVER, rate * period * random.share(), 10.0);
    }
    add_batches(&mut blocks, random, period, rate, jitter);
    bounded(&blocks)
}

fn batches(random: &mut Random) -> Series {
    let period = random.scaled(2.0, 40.0);
    some_batches(random, period)
}

fn long_batches(random: &mut Random) -> Series {
    let period = random.scaled(40.0, 1200.0);
    while_it_only_rises(some_batches(random, period))
}

/// What rises and has risen for longer than ever before a fall can't be told from
/// what rises for ever.
fn while_it_only_rises(series: Series) -> Series {
    let (mut low, mut high, mut began, mut longest) = (0, 0, 0.0, 0.0);
    let mut apart = Vec::new();
    for sample in &series.samples {
        let now = sample.at.as_secs_f64();
        if sample.held < low + (high - low) / 2 {
            apart.push((began + 1.2 * longest, now));
            longest = f64::max(longest, now - began);
            (began, low, high) = (now, sample.held, sample.held);
        }
        low = low.min(sample.held);
        high = high.max(sample.held);
    }
    apart.push((began + 1.2 * longest, FOREVER));
    Series { apart, ..series }
}

fn collector(random: &mut Random) -> Series {
    let mut blocks = Blocks::new();
    let (period, survivors) = (random.scaled(2.0, 200.0), random.between(0.0, 0.3));
    blocks.add(0.0, FOREVER, random.scaled(KIB, 10.0 * MIB), 100.0);
    let rate = random.scaled(KIB, 10.0 * MIB);
    add_collector(&mut blocks, random, rate, period, survivors);
    while_it_only_rises(bounded(&blocks))
}

/// A cache that fills quickly, and everything is freed when the worker restarts.
fn restart(random: &mut Random) -> Series {
    let mut blocks = Blocks::new();
    let (entries, constant) = (
        random.scaled(100.0, 2000.0) as usize,
        random.scaled(2.0, 60.0),
    );
    let size = random.scaled(100.0, 100.0 * KIB);
    let mut begins = 0.0;
    while begins < END {
        let ends = begins + random.scaled(60.0, 2000.0);
        for _ in 0..entries {
            let born = begins + constant * random.exponential();
            if born < ends {
                blocks.add(born, ends - born, size * random.log_normal(0.5), 1.0);
            }
        }
        begins = ends;
    }
    bounded(&blocks)
}

/// A clock that stands still, goes back or jumps ahead, and looks that are missing.
fn jumping(random: &mut Random, series: Series) -> Series {
    use std::time::Duration;
    let mut samples = series.samples;
    // Begun long ago, so that there is a past to go back to.
    let mut shift = 300_000.0;
    let mut jumps: Vec<(usize, f64)> = (0..1 + random.below(3))
        .map(|_| {
            let ahead = random.scaled(10.0, 100_000.0);
            (
                1 + random.below(SECONDS),
                if random.chance(0.7) { ahead } else { -ahead },
            )
        })
        .collect();
    jumps.sort_by_key(|jump| jump.0);
    for (second, sample) in samples.iter_mut().enumerate() {
        while let Some((at, by)) = jumps.first().copied() {
            if at > second {
                break;
            }
            shift += by;
            jumps.remove(0);
        }
        sample.at = Duration::from_secs_f64(second as f64 + shift);
    }
    Series { samples, ..series }
}

fn leak_with_clock_jumps(random: &mut Random) -> Series {
    let series = if random.chance(0.5) {
        steady_leak(random)
    } else {
        leak_in_bursts(random)
    };
    jumping(random, series)
}

fn some_bounded(random: &mut Random) -> Series {
    match random.below(3) {
        0 => large_churn(random),
        1 => random_replacement(random),
        _ => batches(random),
    }
}

fn bounded_with_clock_jumps(random: &mut Random) -> Series {
    let series = some_bounded(random);
    jumping(random, series)
}
