//! What a process's address space is made of: its mappings by kind, and what is
//! used of each.
//!
//! [`survey`] lists mappings, which is cheap: the kernel holds the target's lock
//! for some of them at a time. [`survey_used`] also looks at every page, which
//! takes 13 ms per GiB; the lock is held for 2 MiB at a time.

mod heap;
mod kinds;
mod region;

use std::{collections::BTreeMap, fs, io, sync::Arc};

use super::{Process, pagemap::Pagemap, resource_limits::ResourceLimits, user_memory::UserMemory};
use crate::model::{MapPart, MappingKind, MemoryMap, Used};
pub use heap::HeapUse;
use heap::Walker;
use kinds::{Clues, Range, Read};

/// The most of accessible mappings whose pages are looked at: 0.4 s. It is not RSS
/// that counts, since pages that are not there are looked at, too.
const PAGES_LIMIT: u64 = 32 << 30;

/// The most threads whose stacks are looked for.
const THREADS: usize = 256;

/// The mappings of a process by kind.
///
/// # Errors
/// When the process has ended, or may not be looked into.
pub fn survey(process: &Process) -> io::Result<MemoryMap> {
    survey_with(process, None)
}

/// The same with what is used of each, if that is cheap (by [`PAGES_LIMIT`]); else
/// as [`survey`].
///
/// # Errors
/// When the process has ended, or may not be looked into.
pub fn survey_used(process: &Process) -> io::Result<MemoryMap> {
    survey_with(process, Pagemap::open(process).ok())
}

fn survey_with(process: &Process, pagemap: Option<Pagemap>) -> io::Result<MemoryMap> {
    let regions = region::parse(&process.read("maps")?);
    let memory = readable(process);
    let read = |address, bytes: &mut [u8]| {
        let memory = memory.as_ref();
        memory.is_some_and(|memory| memory.read(address, bytes).is_ok())
    };
    let ranges = kinds::ranges(&regions, &clues(process, &read));
    Ok(MemoryMap {
        parts: summed(&ranges, pagemap.as_ref()),
        mappings: regions.len() as u64,
        blocks_told: memory.is_some(),
    })
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
    const TRIES: usize = 3;
    let memory = readable(process)?;
    let regions = region::parse(&process.read("maps").ok()?);
    let read = |address, bytes: &mut [u8]| memory.read(address, bytes).is_ok();
    let mut walker = Walker::new(&read, WALK_LIMIT);
    let (mut sum, mut all) = (HeapUse::default(), 0);
    for range in kinds::ranges(&regions, &clues(process, &read)) {
        let is_main = range.kind == MappingKind::BrkHeap;
        if !is_main && range.kind != MappingKind::Arena {
            continue;
        }
        // The process may have changed what was being looked at.
        let walked = (0..TRIES).find_map(|_| match is_main {
            true => walker.main_heap(range.start, range.end),
            false => walker.arena_heap(range.start),
        });
        all += range.len();
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

/// Adds up what belongs together.
fn summed(ranges: &[Range], pagemap: Option<&Pagemap>) -> Vec<MapPart> {
    let has_pages = |range: &&Range| {
        !matches!(
            range.kind,
            MappingKind::Reserved | MappingKind::Special | MappingKind::HugePages
        )
    };
    let all: u64 = ranges.iter().filter(has_pages).map(Range::len).sum();
    let pagemap = pagemap.filter(|_| all <= PAGES_LIMIT);
    let mut parts: BTreeMap<(MappingKind, &str), (u64, Option<Used>)> = BTreeMap::new();
    for range in ranges {
        let used = pagemap.map(|pagemap| match has_pages(&range) {
            // What is gone by now is not used.
            true => pagemap.used(range.start, range.end).unwrap_or_default(),
            false => Used::default(),
        });
        let (sum, sum_used) = parts
            .entry((range.kind, &range.name))
            .or_insert((0, used.map(|_| Used::default())));
        *sum += range.len();
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
        let map = survey_used(&process).unwrap();
        let used = |part: &MapPart| part.used.unwrap().resident;
        let all: u64 = map.parts.iter().map(used).sum();
        let rss = memory::sample(&process).rss.unwrap();
        assert!(all.abs_diff(rss) < rss / 5, "{all} of {rss}: {map:?}");
        let exe = map.part(MappingKind::File, process.exe().to_str().unwrap());
        assert!(exe.unwrap().bytes > 0 && used(exe.unwrap()) > 0);
        assert!(map.bytes(MappingKind::Stack) > 0);
    }

    #[test]
    fn our_own_blocks_and_stacks_are_found() {
        // So large a block is always mapped by itself.
        let block = vec![1_u8; 40 << 20];
        let map = survey_used(&Process::own().unwrap()).unwrap();
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
    fn only_mappings_are_listed_where_there_is_too_much() {
        let range = |start, end| Range {
            start,
            end,
            kind: MappingKind::Anonymous,
            name: String::new(),
        };
        let pagemap = Pagemap::open(&Process::own().unwrap()).unwrap();
        let large = range(1 << 32, (1 << 32) + PAGES_LIMIT);
        let small = range(1 << 20, 1 << 21);
        let parts = summed(&[small.clone(), large], Some(&pagemap));
        assert_eq!(parts[0].bytes, PAGES_LIMIT + (1 << 20));
        assert_eq!(parts[0].used, None);
        assert!(summed(&[small], Some(&pagemap))[0].used.is_some());
    }

    #[test]
    fn a_process_that_ended_has_none() {
        let mut child = sleep();
        let process = Process::open(child.pid()).unwrap();
        survey(&process).unwrap();
        child.0.kill().unwrap();
        wait_until("it has ended", || !process.is_alive());
        survey(&process).unwrap_err();
        survey_used(&process).unwrap_err();
    }
}
