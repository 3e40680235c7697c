//! The brake: what tracing costs the target, and when that is too much. Pure;
//! the session feeds it with figures.

use std::time::Duration;

use crate::model::NEGLIGIBLE_CPUS;

/// When to stop tracing by itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Brake {
    /// Never.
    Off,
    /// When tracing takes more than this share of the target's CPU time.
    Limit(f64),
}

/// How long the limit must be exceeded.
const PATIENCE: Duration = Duration::from_secs(2);
/// How much dearer than calibrated a call may turn out by the target's system
/// time; more than this is the target's own system calls.
const DEAREST: f64 = 4.0;
/// How inexact a period's system time is: the kernel shows hundredths of a
/// second.
const SYSTEM_TIME_ERROR: f64 = 0.02;
/// An allocation takes two of a pair's three traps.
const ALLOC_PART: f64 = 2.0 / 3.0;

/// What happened in one period.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Period {
    /// Its length.
    pub wall: Duration,
    /// Calls that asked for memory.
    pub allocs: u64,
    /// Calls that gave memory back.
    pub frees: u64,
    /// CPU time of the target, probes included.
    pub cpu: Duration,
    /// The part of it that was spent in the kernel.
    pub system: Duration,
}

/// What a period's events cost the target, seconds of CPU.
fn seconds(period: &Period, pair_cost: Duration, own_system_rate: f64) -> f64 {
    let pairs = period.allocs as f64 * ALLOC_PART + period.frees as f64 * (1.0 - ALLOC_PART);
    let by_calls = pairs * pair_cost.as_secs_f64();
    // Traps are system time of the target. More of it than before tracing is
    // theirs, within reason.
    let own = own_system_rate * period.wall.as_secs_f64();
    let extra = period.system.as_secs_f64() - own - SYSTEM_TIME_ERROR;
    by_calls.max(extra.min(by_calls * DEAREST))
}

/// Share of the target's CPU time that goes into probes, 0 to 1.
#[must_use]
pub fn share(cost: f64, cpu: Duration) -> f64 {
    if cost <= 0.0 {
        0.0
    } else {
        cost / cost.max(cpu.as_secs_f64())
    }
}

/// The estimate made before attaching.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Allocations per second.
    pub alloc_rate: f64,
    /// CPUs that the target uses, the counting included.
    pub cpus: f64,
    /// Share of the target's CPU time that tracing would take, 0 to 1.
    pub share: f64,
    /// CPUs that tracing would take at the present rate of calls.
    pub cost_cpus: f64,
}

impl Estimate {
    /// From calls counted by a probe at each entry, which themselves cost
    /// about a third of a pair.
    #[must_use]
    pub fn new(calls: u64, wall: Duration, cpu: Duration, pair_cost: Duration) -> Self {
        let pairs = calls as f64 / 2.0;
        let counting = calls as f64 * pair_cost.as_secs_f64() / 3.0;
        let own = (cpu.as_secs_f64() - counting).max(cpu.as_secs_f64() * 0.01);
        let cost = pairs * pair_cost.as_secs_f64();
        let wall = wall.as_secs_f64().max(1e-6);
        Self {
            alloc_rate: pairs / wall,
            cpus: cpu.as_secs_f64() / wall,
            share: if cost > 0.0 { cost / (cost + own) } else { 0.0 },
            cost_cpus: cost / wall,
        }
    }

    /// Whether it is over the limit, but too little of a core to matter.
    #[must_use]
    pub fn is_negligible(&self, brake: Brake) -> bool {
        matches!(brake, Brake::Limit(limit) if self.share > limit) && !self.exceeds(brake)
    }

    /// Whether tracing would cost too much.
    #[must_use]
    pub fn exceeds(&self, brake: Brake) -> bool {
        match brake {
            Brake::Off => false,
            Brake::Limit(limit) => self.share > limit && self.cost_cpus > NEGLIGIBLE_CPUS,
        }
    }
}

/// Watches the cost while tracing.
#[derive(Clone, Debug)]
pub struct CostWatch {
    brake: Brake,
    pair_cost: Duration,
    own_system_rate: f64,
    over_for: Duration,
    over_cost: f64,
    over_cpu: Duration,
    all: Period,
}

impl CostWatch {
    /// `own_system_rate` is the target's system time per second before
    /// tracing.
    #[must_use]
    pub fn new(brake: Brake, pair_cost: Duration, own_system_rate: f64) -> Self {
        Self {
            brake,
            pair_cost,
            own_system_rate,
            over_for: Duration::ZERO,
            over_cost: 0.0,
            over_cpu: Duration::ZERO,
            all: Period::default(),
        }
    }

    /// Takes one period in. When the limit has been exceeded for long enough,
    /// the share that tracing took meanwhile.
    pub fn observe(&mut self, period: &Period) -> Option<f64> {
        let cost = seconds(period, self.pair_cost, self.own_system_rate);
        self.all.wall += period.wall;
        self.all.allocs += period.allocs;
        self.all.frees += period.frees;
        self.all.cpu += period.cpu;
        self.all.system += period.system;
        let Brake::Limit(limit) = self.brake else {
            return None;
        };
        let negligible = cost <= NEGLIGIBLE_CPUS * period.wall.as_secs_f64();
        if negligible || share(cost, period.cpu) <= limit {
            self.over_for = Duration::ZERO;
            self.over_cost = 0.0;
            self.over_cpu = Duration::ZERO;
            return None;
        }
        self.over_for += period.wall;
        self.over_cost += cost;
        self.over_cpu += period.cpu;
        (self.over_for >= PATIENCE).then(|| share(self.over_cost, self.over_cpu))
    }

    /// Share of the target's CPU time that probes took since the start.
    #[must_use]
    pub fn total_share(&self) -> Option<f64> {
        let cost = seconds(&self.all, self.pair_cost, self.own_system_rate);
        (!self.all.cpu.is_zero()).then(|| share(cost, self.all.cpu))
    }

    /// CPU time per second that probes took since the start.
    #[must_use]
    pub fn total_cpus(&self) -> Option<f64> {
        let cost = seconds(&self.all, self.pair_cost, self.own_system_rate);
        (!self.all.wall.is_zero()).then(|| cost / self.all.wall.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIR: Duration = Duration::from_nanos(1500);
    const QUARTER: Duration = Duration::from_millis(250);

    fn period(pairs: u64, cpu_ms: u64, system_ms: u64) -> Period {
        Period {
            wall: QUARTER,
            allocs: pairs,
            frees: pairs,
            cpu: Duration::from_millis(cpu_ms),
            system: Duration::from_millis(system_ms),
        }
    }

    #[test]
    fn a_tight_loop_is_refused_and_a_quiet_server_is_not() {
        let half = Duration::from_millis(500);
        // Counting makes a loop of 10 ns pairs about 1 us long.
        let tight = Estimate::new(1_000_000, half, half, PAIR);
        assert!(tight.exceeds(Brake::Limit(0.5)), "{tight:?}");
        assert!(!tight.exceeds(Brake::Off));
        let quiet = Estimate::new(2_000, half, half, PAIR);
        assert!(!quiet.exceeds(Brake::Limit(0.5)), "{quiet:?}");
        let idle = Estimate::new(0, half, Duration::ZERO, PAIR);
        assert_eq!(idle.share, 0.0);
    }

    #[test]
    fn a_little_cost_is_never_too_much() {
        // Nearly all of a process that does nearly nothing.
        let half = Duration::from_millis(500);
        let estimate = Estimate::new(20_000, half, Duration::from_millis(11), PAIR);
        assert!(estimate.share > 0.5, "{estimate:?}");
        assert!(!estimate.exceeds(Brake::Limit(0.5)), "{estimate:?}");
    }

    #[test]
    fn the_brake_waits_two_seconds_in_a_row() {
        let mut watch = CostWatch::new(Brake::Limit(0.5), PAIR, 0.0);
        let over = period(150_000, 250, 200);
        for _ in 0..7 {
            assert_eq!(watch.observe(&over), None);
        }
        let share = watch.observe(&over).expect("two seconds are over");
        assert!(share > 0.5 && share <= 1.0, "{share}");

        let mut watch = CostWatch::new(Brake::Limit(0.5), PAIR, 0.0);
        for _ in 0..20 {
            for _ in 0..7 {
                assert_eq!(watch.observe(&over), None);
            }
            assert_eq!(watch.observe(&period(10, 250, 0)), None);
        }
    }

    #[test]
    fn system_time_corrects_the_cost_upwards_but_not_without_bound() {
        // 50 000 pairs cost 75 ms by calibration; 200 ms of system time say
        // that they cost more.
        let by_system = seconds(&period(50_000, 250, 200), PAIR, 0.0);
        assert!((by_system - 0.18).abs() < 1e-9, "{by_system}");
        // The target's own system calls are not the probes' cost.
        let busy_elsewhere = seconds(&period(100, 250, 240), PAIR, 0.0);
        assert!(
            busy_elsewhere <= 100.0 * 1500e-9 * DEAREST,
            "{busy_elsewhere}"
        );
        let usual = seconds(&period(50_000, 250, 200), PAIR, 0.8);
        assert!((usual - 0.075).abs() < 1e-9, "{usual}");
    }

    #[test]
    fn hundredths_of_system_time_are_no_cost() {
        // 2 000 pairs a second beside a target that does little: each period
        // sees one tick of system time or none.
        let mut watch = CostWatch::new(Brake::Off, PAIR, 0.0);
        for step in 0..40 {
            watch.observe(&period(500, 5, if step % 4 == 0 { 10 } else { 0 }));
        }
        let share = watch.total_share().expect("cpu was used");
        assert!((0.14..0.45).contains(&share), "{share}");
    }

    #[test]
    fn off_never_trips() {
        let mut watch = CostWatch::new(Brake::Off, PAIR, 0.0);
        for _ in 0..100 {
            assert_eq!(watch.observe(&period(160_000, 250, 240)), None);
        }
        assert!(watch.total_share().expect("cpu was used") > 0.9);
    }
}
