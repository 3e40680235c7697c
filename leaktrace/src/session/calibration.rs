//! What one allocation with its free costs on this machine with these
//! programs, measured on leaktrace itself; and whether links of the preferred
//! kind see threads other than the first.

use std::{
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use leaktrace_common::counter::Counter;
use rustix::time::{ClockId, clock_gettime};

use super::plan::Plan;
use crate::{
    bpf::{Attachment, Feature, Features, LinkKind, PlannedFile, Program, Scope, Tracer},
    probe_site::KernelAbility,
    target::{Process, mapped_file, mapping, process_id::ProcessId},
};

/// What was found.
#[derive(Debug)]
pub struct Calibration {
    /// The kind of links that works here.
    pub link_kind: LinkKind,
    /// CPU time that probes add to one malloc with its free.
    pub pair_cost: Duration,
    /// Threads that take the probes out again.
    detaching: Vec<JoinHandle<()>>,
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
/// thread are not seen (as kernels 6.6 to 6.9 may filter by thread). What the
/// programs have seen is in the maps until [`Calibration::end`]: loading them a
/// second time, for maps of their own, would take as long as all the rest.
pub fn calibrate(
    tracer: &mut Tracer,
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
    let mut calibration = Calibration {
        link_kind: preferred,
        pair_cost: TYPICAL_PAIR,
        detaching: Vec::new(),
    };
    let files = measured_functions(&plan);
    if files.is_empty() {
        return Ok(calibration);
    }
    for link_kind in kinds_to_try(preferred) {
        let (mut attachment, pair_cost) = measure(tracer, &files, link_kind, program)?;
        calibration
            .detaching
            .push(std::thread::spawn(move || attachment.detach(|_, _| {})));
        if let Some(pair_cost) = pair_cost {
            calibration.link_kind = link_kind;
            calibration.pair_cost = pair_cost;
            return Ok(calibration);
        }
    }
    anyhow::bail!(
        "probes set on leaktrace itself were not hit: this kernel's uprobes don't work \
         (see `leaktrace doctor`)"
    )
}

/// The preferred kind of link, then the other one if there is another.
fn kinds_to_try(preferred: LinkKind) -> impl Iterator<Item = LinkKind> {
    let other = (preferred != LinkKind::Perf).then_some(LinkKind::Perf);
    std::iter::once(preferred).chain(other)
}

impl Calibration {
    /// Waits until the probes on leaktrace itself are out, and forgets what
    /// they saw: from then on the maps are the target's.
    ///
    /// # Errors
    /// When the maps can't be cleared.
    pub fn end(&mut self, tracer: &mut Tracer) -> Result<()> {
        for thread in self.detaching.drain(..) {
            // It has nothing to panic about; and the maps are cleared in any case.
            let _ = thread.join();
        }
        tracer.end_trial()
    }
}

/// Of the files' functions those that are called here: each probe takes time to
/// be set, and more to be taken out.
fn measured_functions(plan: &Plan) -> Vec<PlannedFile> {
    let is_called = |name: &str| matches!(name, "malloc" | "free");
    let mut files = plan.files.clone();
    for file in &mut files {
        file.probes
            .retain(|probe| probe.function.split('/').any(is_called));
    }
    files.retain(|file| !file.probes.is_empty());
    files
}

/// The probes, no longer counting, and what a pair costs with them, or `None`
/// when they don't see the calls.
fn measure(
    tracer: &mut Tracer,
    files: &[PlannedFile],
    link_kind: LinkKind,
    program: Program,
) -> Result<(Attachment, Option<Duration>)> {
    let maps = tracer.maps();
    let calls = || Ok::<_, anyhow::Error>(maps.counters()?.events[Counter::AllocCalls as usize]);
    let before = calls()?;
    let without = rounds();
    let own = std::process::id();
    maps.control().set_target(ProcessId::of(own)?, false);
    let attachment = tracer.attach(link_kind, files, program, Scope::Process(own), 0)?;
    maps.control().enable(true);
    let with = rounds();
    maps.control().enable(false);
    let seen = calls()? - before;
    let works = program != Program::Trace || seen >= SEEN_AT_LEAST;
    Ok((attachment, works.then(|| with.saturating_sub(without))))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_kind_of_link_is_tried_twice() {
        use LinkKind::{Multi, Perf};
        assert!(kinds_to_try(Multi).eq([Multi, Perf]));
        assert!(kinds_to_try(Perf).eq([Perf]));
    }
}
