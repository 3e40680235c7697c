//! What the process's memory is made of at the start and at the end, beside the
//! blocks that are traced, and when it runs into a limit.

use leaktrace_common::counter::Counter;

use super::{observation::Observation, snapshot::Snapshot};
use crate::{
    aggregate::Sites,
    explain::{self, Evidence},
    forecast,
    model::{
        Forecast, Limit, MemoryMap, MemorySample, ProcessTrends, Rate, Resource, RssGrowth, Sums,
        Trend, Verdict,
    },
    target::{Process, limits, memory_map},
};

/// What there is at the start, or at the mark.
pub struct AtStart {
    memory: MemorySample,
    map: Option<MemoryMap>,
    /// What traced blocks hold: bytes and blocks.
    held: (u64, u64),
}

/// What there is at the end: to be read when the probes are gone, since it takes
/// some 0.1 s for a large process.
#[derive(Default)]
pub struct AtEnd {
    is_glibc: bool,
    map: Option<MemoryMap>,
    free: Option<u64>,
    limits: Vec<Limit>,
}

impl AtStart {
    /// Lists the mappings.
    pub fn read(process: &Process, memory: MemorySample, sums: &[(u64, Sums)]) -> Self {
        Self {
            memory,
            map: memory_map::survey(process).ok(),
            held: held(sums.iter().map(|(_, sums)| sums)),
        }
    }
}

impl AtEnd {
    /// Looks at mappings, glibc's heaps if malloc is glibc's alone, and limits.
    /// Nothing is left of a process that has ended.
    pub fn read(process: &Process, is_glibc: bool) -> Self {
        if !process.is_alive() {
            return Self::default();
        }
        let resources = [Resource::Memory, Resource::Descriptors, Resource::Threads];
        Self {
            is_glibc,
            map: memory_map::survey_used(process).ok(),
            free: memory_map::glibc_heaps(process)
                .filter(|_| is_glibc)
                .map(|heaps| heaps.free),
            limits: resources
                .into_iter()
                .flat_map(|resource| limits::read(process, resource))
                .collect(),
        }
    }

    /// What the growth of RSS is made of.
    pub fn explain(
        &self,
        start: &AtStart,
        snapshot: &Snapshot,
        sites: &Sites,
    ) -> Option<RssGrowth> {
        snapshot.memory_read?;
        let (bytes, blocks) = held([&sites.totals].into_iter());
        explain::explain(&Evidence {
            then: &start.memory,
            now: &snapshot.memory,
            map_then: start.map.as_ref(),
            map_now: self.map.as_ref(),
            live_bytes: bytes.saturating_sub(start.held.0),
            live_blocks: blocks.saturating_sub(start.held.1),
            is_glibc: self.is_glibc,
            filtered: snapshot.counters.events[Counter::Filtered as usize] > 0,
            free: self.free,
        })
    }

    /// The limits that are reached first, of what grows for good.
    pub fn forecasts(&self, observation: &Observation, sites: &Sites) -> Vec<Forecast> {
        let ProcessTrends {
            memory,
            descriptors,
            threads,
        } = observation.process();
        [
            // The process's own growth has everything in it.
            (
                Resource::Memory,
                rate_of(memory).or_else(|| rate_of_sites(sites)),
            ),
            (Resource::Descriptors, rate_of(descriptors)),
            (Resource::Threads, rate_of(threads)),
        ]
        .into_iter()
        .filter_map(|(resource, rate)| forecast::first(resource, &rate?, &self.limits))
        .collect()
    }
}

/// Bytes and blocks of any age: those that a filter hides are held, too.
fn held<'a>(sums: impl Iterator<Item = &'a Sums>) -> (u64, u64) {
    sums.fold((0, 0), |(bytes, blocks), sums| {
        (
            bytes + sums.alloc_bytes.saturating_sub(sums.freed_bytes),
            blocks + sums.alloc_blocks.saturating_sub(sums.freed_blocks),
        )
    })
}

fn rate_of(trend: Option<Trend>) -> Option<Rate> {
    trend
        .filter(|trend| trend.verdict == Verdict::Growing)
        .map(|trend| trend.rate)
}

/// How fast the growing sites grow together.
fn rate_of_sites(sites: &Sites) -> Option<Rate> {
    let rates = sites
        .growing
        .iter()
        .filter_map(|index| rate_of(sites.sites.get(*index)?.trend));
    rates.reduce(|sum, rate| Rate {
        per_minute: sum.per_minute + rate.per_minute,
        low: sum.low + rate.low,
        high: sum.high + rate.high,
    })
}
