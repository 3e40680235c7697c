//! What the growth of RSS is made of: looked at when a trace begins, and again when
//! its probes are gone.

use crate::{
    explain::{self, Evidence},
    model::{MemoryMap, MemorySample, RssGrowth, Sums},
    target::{Process, memory_map},
};

/// What there was when the trace began.
pub struct Beginning {
    /// The process's memory.
    pub memory: MemorySample,
    /// Its address space; `None` when it could not be read.
    map: Option<MemoryMap>,
}

impl Beginning {
    /// Looks now.
    pub fn of(process: &Process, memory: MemorySample) -> Self {
        Self {
            memory,
            map: memory_map::survey(process).ok(),
        }
    }

    /// What has grown since, given what is held now. To be called when the probes
    /// are gone: it takes 13 ms for each GiB of mappings, and up to 0.3 s to walk
    /// glibc's heaps.
    pub fn explain(
        &self,
        process: &Process,
        now: &MemorySample,
        held: &[(u64, Sums)],
        is_glibc: bool,
        filtered: bool,
    ) -> Option<RssGrowth> {
        let map_now = memory_map::survey_used(process).ok();
        let sum = |of: fn(&Sums) -> u64| held.iter().map(|(_, sums)| of(sums)).sum();
        explain::explain(&Evidence {
            then: &self.memory,
            now,
            map_then: self.map.as_ref(),
            map_now: map_now.as_ref(),
            live_bytes: sum(|sums| sums.alloc_bytes.saturating_sub(sums.freed_bytes)),
            live_blocks: sum(|sums| sums.alloc_blocks.saturating_sub(sums.freed_blocks)),
            is_glibc,
            filtered,
            free: memory_map::glibc_heaps(process)
                .filter(|_| is_glibc)
                .map(|heaps| heaps.free),
        })
    }
}
