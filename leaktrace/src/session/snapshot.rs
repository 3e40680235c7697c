//! What the maps held at one moment, as the reporter takes it.

use std::time::{Duration, Instant};

use anyhow::Result;
use leaktrace_common::counter::{Counter, CounterBlock};

use crate::{
    aggregate::{AgeFilter, BlockAges},
    bpf::{Maps, monotonic_ns},
    model::{EndReason, MemorySample, Sums},
};

/// Raw figures of one moment.
pub struct Snapshot {
    pub taken: jiff::Zoned,
    pub elapsed: Duration,
    pub end: Option<EndReason>,
    pub counters: CounterBlock,
    pub sums: Vec<(u64, Sums)>,
    pub ages: Option<BlockAges>,
    pub alloc_rate: f64,
    pub cost: Option<f64>,
    pub cost_cpus: Option<f64>,
    pub memory: MemorySample,
    pub memory_read: Option<Duration>,
}

/// Reads the ages of all live blocks.
pub fn ages(maps: &Maps, filter: AgeFilter, now_ns: u64) -> Result<BlockAges> {
    let mut ages = BlockAges::new(filter, now_ns);
    maps.for_each_block(&mut |_, block| ages.add(block.stack_id, block.size(), block.time_ns))?;
    Ok(ages)
}

/// The clock's reading for ages now.
pub fn now_ns() -> u64 {
    monotonic_ns()
}

/// Allocations per second between two tables.
pub struct AllocRate {
    calls: u64,
    since: Instant,
}

impl AllocRate {
    /// Counts from now.
    pub fn new() -> Self {
        Self {
            calls: 0,
            since: Instant::now(),
        }
    }

    /// The rate since the last call of this.
    pub fn next(&mut self, counters: &CounterBlock) -> f64 {
        let calls = counters.events[Counter::AllocCalls as usize];
        let seconds = self.since.elapsed().as_secs_f64();
        let rate = calls.saturating_sub(self.calls) as f64 / seconds.max(1e-3);
        *self = Self {
            calls,
            since: Instant::now(),
        };
        rate
    }
}
