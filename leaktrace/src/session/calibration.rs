//! What one allocation with its free costs on this machine with these
//! programs, measured on leaktrace itself; and whether links of the preferred
//! kind see threads other than the first.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use leaktrace_common::counter::Counter;
use rustix::time::{ClockId, clock_gettime};

use super::plan::Plan;
use crate::{
    bpf::{Feature, Features, Limits, LinkKind, ObjectSource, Program, Scope, Tracer},
    probe_site::KernelAbility,
    target::{Process, mapped_file, mapping},
};

/// What was found.
#[derive(Clone, Copy, Debug)]
pub struct Calibration {
    /// The kind of links that works here.
    pub link_kind: LinkKind,
    /// CPU time that probes add to one malloc with its free.
    pub pair_cost: Duration,
}

/// Pairs in one round; the best of several rounds counts, since everything
/// else that happens on the machine only adds.
const PAIRS: u32 = 4000;
const ROUNDS: usize = 5;
/// Fewer calls than this of all rounds, and the probes don't work; a slow
/// machine does not make all pairs.
const SEEN_AT_LEAST: u64 = 256;
/// When leaktrace has no libc of its own to measure on.
const TYPICAL_PAIR: Duration = Duration::from_nanos(2000);

/// Tries the preferred kind of link, and the other one if calls of a second
/// thread are not seen (as kernels 6.6 to 6.9 may filter by thread).
pub fn calibrate(
    source: &ObjectSource,
    features: &Features,
    ability: KernelAbility,
    program: Program,
) -> Result<Calibration> {
    let own = Process::own().context("looking at leaktrace itself")?;
    let mappings = mapping::read_mappings(&own).context("reading leaktrace's own mappings")?;
    let (files, _) = mapped_file::open_executable_files(&own, &mappings);
    let plan = Plan::of(&files, ability)?;
    let preferred = if features.has(Feature::UprobeMulti) {
        LinkKind::Multi
    } else {
        LinkKind::Perf
    };
    if plan.files.is_empty() {
        return Ok(Calibration {
            link_kind: preferred,
            pair_cost: TYPICAL_PAIR,
        });
    }
    for link_kind in [preferred, LinkKind::Perf] {
        if let Some(pair_cost) = measure(source, features, &plan, link_kind, program)? {
            return Ok(Calibration {
                link_kind,
                pair_cost,
            });
        }
    }
    anyhow::bail!(
        "probes set on leaktrace itself were not hit: this kernel's uprobes don't work \
         (see `leaktrace doctor`)"
    )
}

/// The cost of a pair, or `None` when the links don't see the calls.
fn measure(
    source: &ObjectSource,
    features: &Features,
    plan: &Plan,
    link_kind: LinkKind,
    program: Program,
) -> Result<Option<Duration>> {
    let limits = Limits {
        max_blocks: 4096,
        max_stacks: 256,
        max_threads: 256,
    };
    let mut tracer = Tracer::load(source, &limits, features)?;
    let maps = tracer.maps();
    let without = rounds();
    let own = std::process::id();
    maps.control().set_target(own, false);
    let attachment = tracer.attach(link_kind, &plan.files, program, Scope::Process(own), 0)?;
    maps.control().enable(true);
    let with = rounds();
    maps.control().enable(false);
    // Nobody waits for these probes to go.
    std::thread::spawn(move || attachment.detach(|_, _| {}));
    let seen = maps.counters()?.events[Counter::AllocCalls as usize];
    if program == Program::Trace && seen < SEEN_AT_LEAST {
        return Ok(None);
    }
    Ok(Some(with.saturating_sub(without)))
}

/// CPU time of one pair on a thread that isn't the first: the best round.
fn rounds() -> Duration {
    let best = std::thread::spawn(|| (0..ROUNDS).map(|_| one_round()).min()).join();
    best.ok().flatten().unwrap_or_default()
}

fn one_round() -> Duration {
    let start = thread_cpu_time();
    let deadline = Instant::now() + Duration::from_millis(50);
    let mut pairs = 0;
    while pairs < PAIRS && (pairs % 256 != 0 || Instant::now() < deadline) {
        // SAFETY: what malloc gives, or null, goes to free.
        unsafe {
            let block = std::hint::black_box(libc::malloc(64));
            libc::free(block);
        }
        pairs += 1;
    }
    (thread_cpu_time() - start) / pairs.max(1)
}

fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
