//! Which kind of memory each mapping is. Pure: the mappings and what else is known
//! go in.
//!
//! Anonymous memory mostly has no name, so it is recognised by what its owner does:
//!
//! - *glibc's arenas* are made of heaps that lie at multiples of 64 MiB
//!   (`HEAP_MAX_SIZE` of `malloc/arena.c`) and begin with a `heap_info`: the
//!   arena, the heap before, the size, and how much is accessible. The rest of the
//!   64 MiB follows, reserved. Where memory can't be read, that shape is enough.
//! - *blocks that glibc has mapped* begin with the header of a chunk: 0, then the
//!   size, a multiple of pages, with `IS_MMAPPED` (2) and no other flag. Several
//!   that touch are one mapping to the kernel.
//! - *stacks* are where stack pointers of threads are, and mappings just as large
//!   that also lie above a guard page.

use std::{borrow::Cow, ops::Range as Addresses, os::unix::ffi::OsStrExt as _};

use super::region::Region;
use crate::model::MappingKind;

/// How large a heap of an arena can become, and what its address is a multiple of.
const HEAP_SIZE: u64 = 64 << 20;
/// The least of a heap that is accessible: `HEAP_MIN_SIZE`.
const HEAP_LEAST: u64 = 132 << 10;
/// Sizes of heaps and of mapped blocks are multiples of this.
pub(super) const PAGE: u64 = 4096;
/// Smaller mappings are not looked into: malloc maps blocks from 128 KiB on.
const BLOCK_LEAST: u64 = 128 << 10;
/// Guards below stacks are not larger.
const LARGEST_GUARD: u64 = 64 << 10;
/// How many times memory is read at most.
const MOST_READS: u32 = 20_000;

/// Reads memory; false where it can't.
pub type Read<'a> = &'a dyn Fn(u64, &mut [u8]) -> bool;

/// What is known beside the mappings.
pub struct Clues<'a> {
    /// Stack pointers of some threads.
    pub stack_pointers: Vec<u64>,
    /// How large a stack is that nobody chose the size of.
    pub usual_stack: Option<u64>,
    /// Reads memory.
    pub read: Read<'a>,
}

/// A part of a mapping, or all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// What it is.
    pub kind: MappingKind,
    /// Of which file or name.
    pub name: String,
}

impl Range {
    /// How large it is, bytes.
    pub const fn len(&self) -> u64 {
        self.end - self.start
    }
}

/// The stack pointer in the text of `/proc/PID/task/TID/syscall`; none while the
/// thread runs.
pub fn stack_pointer(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let mut from_end = text.split_ascii_whitespace().rev();
    let (_program_counter, pointer) = (from_end.next()?, from_end.next()?);
    u64::from_str_radix(pointer.strip_prefix("0x")?, 16).ok()
}

/// Divides all mappings into ranges of one kind.
pub fn ranges(regions: &[Region], clues: &Clues<'_>) -> Vec<Range> {
    let stacks = Stacks::find(regions, clues);
    let mut reader = Reader {
        read: clues.read,
        left: MOST_READS,
    };
    let mut ranges = Vec::new();
    for (index, region) in regions.iter().enumerate() {
        let mut push = |addresses: Addresses<u64>, kind, name: Cow<'_, str>| {
            if !addresses.is_empty() {
                ranges.push(Range {
                    start: addresses.start,
                    end: addresses.end,
                    kind,
                    name: name.into_owned(),
                });
            }
        };
        let all = region.mapping.start..region.mapping.end;
        if !region.is_plain() {
            let (kind, name) = named(region);
            push(all, kind, name);
        } else if !region.accessible {
            push(all, MappingKind::Reserved, "".into());
        } else if stacks.has(index, region) {
            push(all, MappingKind::Stack, "".into());
        } else if !region.writable {
            push(all, MappingKind::Anonymous, "".into());
        } else {
            let reserved_after = regions
                .get(index + 1)
                .filter(|next| next.is_plain() && !next.accessible)
                .filter(|next| next.mapping.start == all.end)
                .map_or(all.end, |next| next.mapping.end);
            for (addresses, kind) in divided(&all, reserved_after, &mut reader) {
                push(addresses, kind, "".into());
            }
        }
    }
    ranges
}

/// The kind of a mapping that tells it by its name.
fn named(region: &Region) -> (MappingKind, Cow<'_, str>) {
    let bytes = region.mapping.path.as_os_str().as_bytes();
    let path = String::from_utf8_lossy(bytes);
    let starts = |beginnings: &[&str]| beginnings.iter().any(|start| path.starts_with(start));
    // prctl(2), PR_SET_VMA_ANON_NAME.
    let name = |prefix| Some(path.strip_prefix(prefix)?.strip_suffix(']')?.trim());
    if let Some(name) = name("[anon:") {
        // glibc's, with the tunable glibc.mem.decorate_maps.
        let kind = match name.strip_prefix("glibc: ") {
            Some("malloc arena") => MappingKind::Arena,
            Some("malloc") => MappingKind::MappedBlock,
            Some(rest) if rest.starts_with("pthread") => MappingKind::Stack,
            _ => MappingKind::Named,
        };
        return match kind {
            MappingKind::Named => (kind, name.to_owned().into()),
            _ => (kind, "".into()),
        };
    }
    let kind = match &*path {
        "[heap]" => return (MappingKind::BrkHeap, "".into()),
        path if path.starts_with("[stack") => return (MappingKind::Stack, "".into()),
        path if path.starts_with("/anon_hugepage") => MappingKind::HugePages,
        _ if starts(&["/memfd:", "/dev/shm/", "/SYSV", "/dev/zero", "[anon_shmem:"]) => {
            MappingKind::Shared
        }
        _ if starts(&["/dev/", "anon_inode:", "["]) || region.mapping.inode == 0 => {
            MappingKind::Special
        }
        _ => MappingKind::File,
    };
    (kind, path)
}

/// Divides plain writable memory into glibc's and other. `reserved_until` is where
/// the reserved memory ends that follows it.
fn divided(
    all: &Addresses<u64>,
    reserved_until: u64,
    reader: &mut Reader<'_>,
) -> Vec<(Addresses<u64>, MappingKind)> {
    let mut parts: Vec<(Addresses<u64>, MappingKind)> = Vec::new();
    let mut at = all.start;
    while at < all.end {
        let next_heap = at.checked_next_multiple_of(HEAP_SIZE).unwrap_or(u64::MAX);
        if at == next_heap
            && let Some(end) = heap_end(at, all.end, reserved_until, reader)
        {
            parts.push((at..end, MappingKind::Arena));
            at = end;
            continue;
        }
        let blocks = blocks_end(at, all.end, reader);
        if blocks > at {
            parts.push((at..blocks, MappingKind::MappedBlock));
            at = blocks;
            continue;
        }
        // A heap may begin further on, where the kernel has merged mappings.
        let end = match next_heap {
            _ if reader.left == 0 => all.end,
            next if next == at => at.saturating_add(HEAP_SIZE).min(all.end),
            next => next.min(all.end),
        };
        match parts.last_mut() {
            Some((last, MappingKind::Anonymous)) => last.end = end,
            _ => parts.push((at..end, MappingKind::Anonymous)),
        }
        at = end;
    }
    parts
}

/// Where the accessible part of an arena's heap ends, if there is one.
fn heap_end(start: u64, end: u64, reserved_until: u64, reader: &mut Reader<'_>) -> Option<u64> {
    let limit = start.checked_add(HEAP_SIZE)?;
    match reader.words::<4>(start) {
        Some([arena, before, size, accessible]) => {
            let is_first = before == 0 && (start + 32..start + 128).contains(&arena);
            let is_later = before != 0
                && before.is_multiple_of(HEAP_SIZE)
                && arena != 0
                && !(start..limit).contains(&arena);
            let fits = size.is_multiple_of(PAGE)
                && accessible.is_multiple_of(PAGE)
                && size > 0
                && size <= accessible
                && accessible <= HEAP_SIZE;
            ((is_first || is_later) && fits).then(|| start.saturating_add(accessible).min(end))
        }
        // The reserve may have merged with what follows it.
        None => {
            (end < limit && end - start >= HEAP_LEAST && reserved_until >= limit).then_some(end)
        }
    }
}

/// Where the blocks end that malloc has mapped from here on.
fn blocks_end(start: u64, end: u64, reader: &mut Reader<'_>) -> u64 {
    let mut at = start;
    while end - at >= BLOCK_LEAST {
        const MAPPED: u64 = 2;
        let Some([0, size]) = reader.words::<2>(at) else {
            break;
        };
        let length = size & !7;
        let fits = length >= PAGE && length.is_multiple_of(PAGE) && length <= end - at;
        if size & 7 != MAPPED || !fits {
            break;
        }
        at += length;
    }
    at
}

/// Reads memory, so many times at most.
struct Reader<'a> {
    read: Read<'a>,
    left: u32,
}

impl Reader<'_> {
    fn words<const N: usize>(&mut self, address: u64) -> Option<[u64; N]> {
        self.left = self.left.checked_sub(1)?;
        let mut words = [0; N];
        let mut bytes = [0; 64];
        let bytes = bytes.get_mut(..N * 8)?;
        if !(self.read)(address, bytes) {
            return None;
        }
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into().ok()?);
        }
        Some(words)
    }
}

/// Which mappings are stacks.
struct Stacks {
    /// Those with a stack pointer.
    proven: Vec<usize>,
    /// Those above a guard.
    guarded: Vec<usize>,
    /// How large stacks are.
    sizes: Vec<u64>,
}

impl Stacks {
    fn find(regions: &[Region], clues: &Clues<'_>) -> Self {
        let mut proven: Vec<usize> = clues
            .stack_pointers
            .iter()
            .filter_map(|pointer| {
                let next = regions.partition_point(|region| region.mapping.end <= *pointer);
                let region = regions.get(next)?;
                (region.mapping.start <= *pointer && region.is_plain()).then_some(next)
            })
            .collect();
        proven.sort_unstable();
        proven.dedup();
        let guarded = regions
            .windows(2)
            .enumerate()
            .filter(|(_, pair)| {
                let [guard, stack] = pair else { return false };
                guard.is_plain()
                    && !guard.accessible
                    && guard.len() <= LARGEST_GUARD
                    && stack.is_plain()
                    && guard.mapping.end == stack.mapping.start
            })
            .map(|(index, _)| index + 1)
            .collect();
        let of_proven = proven.iter().filter_map(|index| regions.get(*index));
        let sizes = of_proven
            .map(Region::len)
            .chain(clues.usual_stack)
            .collect();
        Self {
            proven,
            guarded,
            sizes,
        }
    }

    fn has(&self, index: usize, region: &Region) -> bool {
        self.proven.binary_search(&index).is_ok()
            || self.sizes.contains(&region.len()) && self.guarded.binary_search(&index).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::{super::region, *};

    fn nothing(_: u64, _: &mut [u8]) -> bool {
        false
    }

    /// Memory that has these words, and nothing else.
    fn memory(words: &[(u64, &[u64])]) -> impl Fn(u64, &mut [u8]) -> bool + use<> {
        let bytes: HashMap<u64, Vec<u8>> = words
            .iter()
            .map(|(at, words)| {
                let bytes = words.iter().flat_map(|word| word.to_ne_bytes());
                (*at, bytes.chain([0; 32]).collect())
            })
            .collect();
        move |address, into: &mut [u8]| {
            let Some(bytes) = bytes.get(&address) else {
                into.fill(0xab);
                return true;
            };
            into.copy_from_slice(&bytes[..into.len()]);
            true
        }
    }

    fn kinds(maps: &str, clues: &Clues<'_>) -> Vec<(MappingKind, String, u64)> {
        ranges(&region::parse(maps.as_bytes()), clues)
            .into_iter()
            .map(|range| (range.kind, range.name.clone(), range.len() >> 10))
            .collect()
    }

    fn clues(read: Read<'_>) -> Clues<'_> {
        Clues {
            stack_pointers: Vec::new(),
            usual_stack: Some(8 << 20),
            read,
        }
    }

    #[test]
    fn names_tell_most() {
        let maps = "\
00400000-00402000 r--p 00000000 fe:00 1234                       /usr/bin/orderd
00403000-00404000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000001000 rw-p 00000000 00:00 0                  [anon: Go: heap]
7f0000001000-7f0000002000 rw-p 00000000 00:00 0                  [anon: glibc: malloc arena]
7f0000002000-7f0000003000 rw-p 00000000 00:00 0                  [anon: glibc: pthread stack: 77]
7f0000003000-7f0000004000 rw-s 00000000 00:01 5                  /memfd:ring (deleted)
7f0000004000-7f0000005000 rw-s 00000000 00:01 6                  /dev/zero (deleted)
7f0000005000-7f0000006000 rw-s 00000000 00:01 7                  /SYSV00000000 (deleted)
7f0000006000-7f0000007000 rw-s 00000000 00:1a 8                  /dev/shm/queue
7f0000007000-7f0000008000 rw-s 00000000 00:1a 8                  /dev/dri/card0
7f0000200000-7f0000400000 rw-p 00000000 00:0f 9                  /anon_hugepage (deleted)
7f0000400000-7f0000401000 rw-s 00000000 00:0f 7                  anon_inode:[perf_event]
7f0000401000-7f0000402000 ---p 00000000 00:00 0 
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                  [stack]
7ffc00030000-7ffc00032000 r-xp 00000000 00:00 0                  [vdso]
";
        let kinds: Vec<_> = kinds(maps, &clues(&nothing))
            .into_iter()
            .map(|(kind, name, _)| (kind, name))
            .collect();
        let expected = [
            (MappingKind::File, "/usr/bin/orderd"),
            (MappingKind::BrkHeap, ""),
            (MappingKind::Named, "Go: heap"),
            (MappingKind::Arena, ""),
            (MappingKind::Stack, ""),
            (MappingKind::Shared, "/memfd:ring"),
            (MappingKind::Shared, "/dev/zero"),
            (MappingKind::Shared, "/SYSV00000000"),
            (MappingKind::Shared, "/dev/shm/queue"),
            (MappingKind::Special, "/dev/dri/card0"),
            (MappingKind::HugePages, "/anon_hugepage"),
            (MappingKind::Special, "anon_inode:[perf_event]"),
            (MappingKind::Reserved, ""),
            (MappingKind::Stack, ""),
            (MappingKind::Special, "[vdso]"),
        ];
        let expected: Vec<_> = expected
            .map(|(kind, name)| (kind, name.to_owned()))
            .to_vec();
        assert_eq!(kinds, expected);
    }

    const ARENA: &str = "\
7f5d6c000000-7f5d6c100000 rw-p 00000000 00:00 0 
7f5d6c100000-7f5d70000000 ---p 00000000 00:00 0 
";

    #[test]
    fn an_arena_has_its_shape_where_memory_can_not_be_read() {
        let kinds = kinds(ARENA, &clues(&nothing));
        assert_eq!(kinds[0], (MappingKind::Arena, String::new(), 1024));
        assert_eq!(kinds[1].0, MappingKind::Reserved);
    }

    #[test]
    fn what_only_looks_like_an_arena_is_none() {
        let other = memory(&[]);
        assert_eq!(kinds(ARENA, &clues(&other))[0].0, MappingKind::Anonymous);
        let elsewhere = ARENA.replace("7f5d6c000000", "7f5d6c001000");
        assert_eq!(
            kinds(&elsewhere, &clues(&nothing))[0].0,
            MappingKind::Anonymous
        );
    }

    #[test]
    fn a_heap_that_is_full_is_told_from_the_next_by_its_header() {
        const MIB: u64 = 1 << 20;
        // The kernel has merged a full heap with the next one, and with other
        // memory before.
        let maps = "\
7f5d67f00000-7f5d6c100000 rw-p 00000000 00:00 0 
7f5d6c100000-7f5d70000000 ---p 00000000 00:00 0 
";
        let (first, second) = (0x7f5d_6800_0000_u64, 0x7f5d_6c00_0000_u64);
        let heaps = memory(&[
            (first, &[first + 0x30, 0, 64 * MIB, 64 * MIB]),
            (second, &[first + 0x30, first, MIB, MIB]),
        ]);
        let found = kinds(maps, &clues(&heaps));
        assert_eq!(
            found,
            [
                (MappingKind::Anonymous, String::new(), 1 << 10),
                (MappingKind::Arena, String::new(), 64 << 10),
                (MappingKind::Arena, String::new(), 1 << 10),
                (MappingKind::Reserved, String::new(), 63 << 10),
            ]
        );
    }

    #[test]
    fn blocks_that_malloc_mapped_are_found_one_after_the_other() {
        let start = 0x7f00_0000_1000_u64;
        let blocks = memory(&[
            (start, &[0, 0x40_000 | 2]),
            (start + 0x40_000, &[0, 0x21_000 | 2]),
        ]);
        let maps = "7f0000001000-7f0000082000 rw-p 00000000 00:00 0 \n";
        assert_eq!(
            kinds(maps, &clues(&blocks)),
            [
                (MappingKind::MappedBlock, String::new(), 0x61_000 >> 10),
                (MappingKind::Anonymous, String::new(), 0x20_000 >> 10),
            ]
        );
    }

    #[test]
    fn chunks_with_other_flags_or_sizes_are_no_mapped_blocks() {
        let start = 0x7f00_0000_1000_u64;
        let maps = "7f0000001000-7f0000082000 rw-p 00000000 00:00 0 \n";
        for header in [
            [0, 0x40_000 | 1],
            [8, 0x40_000 | 2],
            [0, 0x40_010 | 2],
            [0, 0x90_000 | 2],
            [0, 2],
        ] {
            let read = memory(&[(start, &header)]);
            let found = kinds(maps, &clues(&read));
            assert!(
                found
                    .iter()
                    .all(|(kind, ..)| *kind == MappingKind::Anonymous)
            );
        }
    }

    #[test]
    fn stacks_are_where_threads_are_and_where_it_looks_the_same() {
        let maps = "\
7f0000000000-7f0000001000 ---p 00000000 00:00 0 
7f0000001000-7f0000101000 rw-p 00000000 00:00 0 
7f0000101000-7f0000102000 ---p 00000000 00:00 0 
7f0000102000-7f0000202000 rw-p 00000000 00:00 0 
7f0000202000-7f0000203000 ---p 00000000 00:00 0 
7f0000203000-7f0000a03000 rw-p 00000000 00:00 0 
7f0000a03000-7f0000a04000 ---p 00000000 00:00 0 
7f0000a04000-7f0000c04000 rw-p 00000000 00:00 0 
7f0000d00000-7f0000e00000 rw-p 00000000 00:00 0 
";
        let clues = Clues {
            stack_pointers: vec![0x7f00_0010_0ff0, 0x7f00_0000_0800 + (1 << 40)],
            ..clues(&nothing)
        };
        let found: Vec<_> = kinds(maps, &clues)
            .into_iter()
            .filter(|(kind, ..)| *kind != MappingKind::Reserved)
            .map(|(kind, _, kib)| (kind, kib >> 10))
            .collect();
        assert_eq!(
            found,
            [
                (MappingKind::Stack, 1),
                (MappingKind::Stack, 1),
                (MappingKind::Stack, 8),
                (MappingKind::Anonymous, 2),
                (MappingKind::Anonymous, 1),
            ],
            "a pointer, a size with a guard, the usual size; another size; no guard"
        );
    }

    #[test]
    fn stack_pointers_are_the_last_but_one() {
        let text = b"202 0x7ffd 0x189 0x0 0x0 0x0 0xffffffff 0x7ffd1b2c 0x7f3a\n";
        assert_eq!(stack_pointer(text), Some(0x7ffd_1b2c));
        assert_eq!(stack_pointer(b"-1 0x7ffd1b2c 0x7f3a\n"), Some(0x7ffd_1b2c));
        assert_eq!(stack_pointer(b"running\n"), None);
        assert_eq!(stack_pointer(b""), None);
    }

    proptest! {
        /// Each mapping is divided without gaps, whatever its memory says.
        #[test]
        fn every_byte_has_one_kind(
            sizes in proptest::collection::vec((1_u64..40_000, any::<bool>(), any::<bool>()), 1..12),
            start in 0_u64..40_000,
            words: [u64; 4],
            pointers in proptest::collection::vec(0_u64..(1 << 32), 0..4),
        ) {
            let mut maps = String::new();
            let mut at = start * PAGE;
            for (pages, accessible, gap) in &sizes {
                let end = at + pages * PAGE;
                let permissions = if *accessible { "rw-p" } else { "---p" };
                maps += &format!("{at:x}-{end:x} {permissions} 0 0:0 0 \n");
                at = end + u64::from(*gap) * PAGE;
            }
            let regions = region::parse(maps.as_bytes());
            prop_assert_eq!(regions.len(), sizes.len());
            let read = |_: u64, into: &mut [u8]| {
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
                into.copy_from_slice(&bytes[..into.len()]);
                true
            };
            let clues = Clues { stack_pointers: pointers, usual_stack: Some(PAGE), read: &read };
            let mut ranges = ranges(&regions, &clues).into_iter().peekable();
            for region in &regions {
                let mut at = region.mapping.start;
                while let Some(range) = ranges.next_if(|range| range.end <= region.mapping.end) {
                    prop_assert_eq!(range.start, at);
                    prop_assert!(range.end > range.start);
                    at = range.end;
                }
                prop_assert_eq!(at, region.mapping.end);
            }
        }
    }
}
