//! What a process's address space is made of: its mappings by kind, and what is
//! used of each.
//!
//! [`survey`] lists mappings, which is cheap: the kernel holds the target's lock
//! for some of them at a time. [`survey_used`] also asks what is in memory
//! (`smaps`), which walks the page tables of one mapping after the other under
//! that lock, 6 ms per GiB: no more than [`USED_LIMIT`] is looked at so, and once
//! only.

mod heap;
mod kinds;
mod region;

use std::{collections::BTreeMap, fs, io, sync::Arc};

use super::{Process, resource_limits::ResourceLimits, user_memory::UserMemory};
use crate::model::{MapPart, MappingKind, MemoryMap, Used};
pub use heap::HeapUse;
use heap::Walker;
use kinds::{Clues, Range, Read};
use region::Region;

/// The most of RSS for which `smaps` is read. What the target feels is that its
/// `mmap`, `munmap` and `brk` wait while one mapping is walked.
pub const USED_LIMIT: u64 = 4 << 30;

/// The most mappings for which `smaps` is read: 10 us each.
const USED_MAPPINGS: usize = 20_000;

/// The most threads whose stacks are looked for.
const THREADS: usize = 256;

/// The mappings of a process by kind.
///
/// # Errors
/// When the process has ended, or may not be looked into.
pub fn survey(process: &Process) -> io::Result<MemoryMap> {
    let regions = region::parse(&process.read("maps")?);
    Ok(classify(process, &regions))
}

/// The same with what is used of each, if that is cheap for a process with this
/// RSS; else as [`survey`].
///
/// # Errors
/// When the process has ended, or may not be looked into.
pub fn survey_used(process: &Process, rss: u64) -> io::Result<MemoryMap> {
    if rss > USED_LIMIT {
        return survey(process);
    }
    let maps = process.read("maps")?;
    if maps.split(|byte| *byte == b'\n').count() > USED_MAPPINGS {
        return Ok(classify(process, &region::parse(&maps)));
    }
    // `smaps` may be missing from a kernel, where `maps` never is.
    let text = process.read("smaps").unwrap_or(maps);
    Ok(classify(process, &region::parse(&text)))
}

/// The most of glibc's heaps that is read to find out what is free there: some
/// 0.3 s.
const WALK_LIMIT: u64 = 512 << 20;

/// How much of glibc's heaps is free: an estimate, since the process goes on, and
/// without what is in its fast bins. `None` when there are none, memory can't be
/// read, or a good part could not be walked.
#[must_use]
pub fn glibc_heaps(process: &Process) -> Option<HeapUse> {
    /// So much of the heaps must have been walked.
    const ENOUGH: f64 = 0.5;
    let memory = readable(process)?;
    let regions = region::parse(&process.read("maps").ok()?);
    let read = |address, bytes: &mut [u8]| memory.read(address, bytes).is_ok();
    let mut walker = Walker::new(&read, WALK_LIMIT);
    let (mut sum, mut all) = (HeapUse::default(), 0);
    for range in kinds::ranges(&regions, &clues(process, &read)) {
        let walked = match range.kind {
            MappingKind::BrkHeap => walker.main_heap(range.start, range.end),
            MappingKind::Arena => walker.arena_heap(range.start),
            _ => continue,
        };
        all += range.end - range.start;
        let walked = walked.unwrap_or_default();
        sum.walked += walked.walked;
        sum.free += walked.free;
    }
    (sum.walked > 0 && sum.walked as f64 >= ENOUGH * all as f64).then_some(sum)
}

/// The memory of a process, if it may be read.
fn readable(process: &Process) -> Option<UserMemory> {
    UserMemory::open(process)
        .ok()
        .filter(UserMemory::is_readable)
}

fn clues<'a>(process: &Process, read: Read<'a>) -> Clues<'a> {
    Clues {
        stack_pointers: stack_pointers(process),
        usual_stack: usual_stack(process),
        read,
    }
}

fn classify(process: &Process, regions: &[Region]) -> MemoryMap {
    let memory = readable(process);
    let read = |address, bytes: &mut [u8]| {
        let memory = memory.as_ref();
        memory.is_some_and(|memory| memory.read(address, bytes).is_ok())
    };
    MemoryMap {
        parts: summed(regions, &kinds::ranges(regions, &clues(process, &read))),
        mappings: regions.len() as u64,
        blocks_told: memory.is_some(),
    }
}

/// Adds up what belongs together.
fn summed(regions: &[Region], ranges: &[Range]) -> Vec<MapPart> {
    let mut parts: BTreeMap<(MappingKind, &str), (u64, Option<Used>)> = BTreeMap::new();
    for range in ranges {
        let Some(region) = regions.get(range.region) else {
            continue;
        };
        let bytes = range.end - range.start;
        let used = region.used.map(|used| share(used, bytes, region.len()));
        let (sum, sum_used) = parts
            .entry((range.kind, &range.name))
            .or_insert((0, used.map(|_| Used::default())));
        *sum += bytes;
        if let (Some(sum), Some(used)) = (sum_used, used) {
            sum.resident += used.resident;
            sum.swapped += used.swapped;
        }
    }
    parts
        .into_iter()
        .map(|((kind, name), (bytes, used))| MapPart {
            kind,
            name: Arc::from(name),
            bytes,
            used,
        })
        .collect()
}

/// A part's share of what is used of a whole mapping.
fn share(used: Used, part: u64, whole: u64) -> Used {
    let of = |used: u64| {
        let share = u128::from(used) * u128::from(part) / u128::from(whole.max(1));
        u64::try_from(share).unwrap_or(u64::MAX)
    };
    if part == whole {
        return used;
    }
    Used {
        resident: of(used.resident),
        swapped: of(used.swapped),
    }
}

/// Stack pointers of threads that wait in a system call, as far as they may be
/// read (proc_pid_syscall(5)).
fn stack_pointers(process: &Process) -> Vec<u64> {
    let Ok(threads) = fs::read_dir(format!("/proc/{}/task", process.pid())) else {
        return Vec::new();
    };
    threads
        .take(THREADS)
        .filter_map(|thread| fs::read(thread.ok()?.path().join("syscall")).ok())
        .filter_map(|text| kinds::stack_pointer(&text))
        .collect()
}

/// How large a stack is that nobody chose the size of.
fn usual_stack(process: &Process) -> Option<u64> {
    ResourceLimits::parse(&process.read("limits").ok()?).stack
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            memory,
            test_process::{sleep, wait_until},
        },
        *,
    };

    #[test]
    fn what_is_used_adds_up_to_rss() {
        let child = sleep();
        let process = Process::open(child.pid()).unwrap();
        let sample = memory::sample(&process);
        let map = survey_used(&process, 0).unwrap();
        let used = |part: &MapPart| part.used.unwrap().resident;
        let all: u64 = map.parts.iter().map(used).sum();
        assert_eq!(all, sample.rss.unwrap(), "{map:?}");
        let exe = map.part(MappingKind::File, process.exe().to_str().unwrap());
        assert!(exe.unwrap().bytes > 0 && used(exe.unwrap()) > 0);
        assert!(map.bytes(MappingKind::Stack) > 0);
    }

    #[test]
    fn our_own_blocks_and_stacks_are_found() {
        // So large a block is always mapped by itself.
        let block = vec![1_u8; 40 << 20];
        let map = survey_used(&Process::own().unwrap(), 0).unwrap();
        let held = |kind| map.held(kind).unwrap();
        assert!(
            held(MappingKind::MappedBlock) >= block.len() as u64,
            "{map:?}"
        );
        // Tests run on threads of their own.
        assert!(held(MappingKind::Stack) > 0 && held(MappingKind::Arena) > 0);
        assert!(held(MappingKind::BrkHeap) > 0);
    }

    #[test]
    fn only_mappings_are_listed_of_a_large_process() {
        let process = Process::own().unwrap();
        let map = survey_used(&process, USED_LIMIT + 1).unwrap();
        assert!(map.mappings > 10);
        assert!(map.parts.iter().all(|part| part.used.is_none()));
        assert_eq!(map.held(MappingKind::File), None);
    }

    #[test]
    fn what_is_used_of_a_part_is_its_share() {
        let used = Used {
            resident: 900,
            swapped: 90,
        };
        let third = Used {
            resident: 300,
            swapped: 30,
        };
        assert_eq!(share(used, 4096, 3 * 4096), third);
        assert_eq!(share(used, 4096, 4096), used);
    }

    #[test]
    fn a_process_that_ended_has_none() {
        let mut child = sleep();
        let process = Process::open(child.pid()).unwrap();
        survey(&process).unwrap();
        child.0.kill().unwrap();
        wait_until("it has ended", || !process.is_alive());
        survey(&process).unwrap_err();
        survey_used(&process, 0).unwrap_err();
    }
}
