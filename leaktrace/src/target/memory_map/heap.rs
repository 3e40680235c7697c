//! How much of glibc's heaps is free, found by walking from chunk to chunk (the
//! layout: `malloc/malloc.c`, "Vital statistics" and `struct malloc_chunk`).
//!
//! A chunk begins with two words: the size of the chunk before, if that is free, and
//! its own size with three flags. One of them says whether the chunk before is in
//! use; the last chunk, the top, is free. So the walk tells all that is free, but
//! for small chunks in the fast bins and in threads' caches, which look as if they
//! were in use. The process goes on meanwhile, so this is an estimate; a walk that
//! comes upon something that is no chunk is given up.
//!
//! Pure: memory is read through a function.

use super::kinds::{PAGE, Read};

/// What a walk found, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeapUse {
    /// How much was walked.
    pub walked: u64,
    /// How much of that is free.
    pub free: u64,
}

/// The previous chunk is in use.
const PREVIOUS_IN_USE: u64 = 1;
/// The chunk was mapped by itself: not in a heap.
const MAPPED: u64 = 2;
const FLAGS: u64 = 7;
const ALIGNMENT: u64 = 16;
const LEAST_CHUNK: u64 = 32;
/// Sizes of chunks that are none: the ends of what is contiguous.
const FENCES: [u64; 2] = [0, 16];
/// The size of `malloc_state`, which is in an arena's first heap: since 2.27, and
/// before.
const ARENA_SIZES: [u64; 2] = [0x898, 0x890];
/// The size of `heap_info`: since 2.35, and before.
const HEAP_INFO_SIZES: [u64; 2] = [0x30, 0x20];
/// Memory is read in pieces of this size.
const WINDOW: usize = 64 << 10;

/// Walks heaps, as long as there is something left of what may be read.
pub struct Walker<'a> {
    read: Read<'a>,
    /// How many bytes may still be read.
    left: u64,
    window: Vec<u8>,
    window_start: u64,
}

impl<'a> Walker<'a> {
    /// A walker that reads so many bytes at most.
    pub fn new(read: Read<'a>, most: u64) -> Self {
        Self {
            read,
            left: most,
            window: Vec::new(),
            window_start: 0,
        }
    }

    /// Walks the main heap, which is at these addresses; `None` when it is not
    /// glibc's.
    pub fn main_heap(&mut self, start: u64, end: u64) -> Option<HeapUse> {
        self.walk(start, end)
    }

    /// Walks a heap of another arena, which begins here.
    pub fn arena_heap(&mut self, start: u64) -> Option<HeapUse> {
        let arena = self.word(start)?;
        let size = self.word(start + 16)?;
        let is_first = self.word(start + 8)? == 0;
        let end = start.checked_add(size)?;
        let firsts: [u64; 2] = if is_first {
            ARENA_SIZES.map(|size| arena.saturating_add(size))
        } else {
            HEAP_INFO_SIZES.map(|size| start + size)
        };
        firsts.into_iter().find_map(|first| {
            let first = first.checked_next_multiple_of(ALIGNMENT)?;
            (start..end)
                .contains(&first)
                .then(|| self.walk(first, end))?
        })
    }

    fn walk(&mut self, start: u64, end: u64) -> Option<HeapUse> {
        let mut found = HeapUse::default();
        // What was read may be old.
        self.window.clear();
        let (mut at, mut previous) = (start, 0);
        // Whatever comes before the first chunk is in use.
        while at < end && self.left > 0 {
            let word = self.word(at + 8)?;
            let size = word & !FLAGS;
            if word & PREVIOUS_IN_USE == 0 {
                if previous == 0 {
                    return None;
                }
                found.free += previous;
            }
            if FENCES.contains(&size) && previous > 0 {
                break;
            }
            let next = at.checked_add(size)?;
            let is_chunk =
                word & MAPPED == 0 && size >= LEAST_CHUNK && size.is_multiple_of(ALIGNMENT);
            // The heap has grown since its end was read, and this is the new top.
            let is_new_top = next.is_multiple_of(PAGE) && word & PREVIOUS_IN_USE != 0;
            if !is_chunk || next > end && (previous == 0 || !is_new_top) {
                return None;
            }
            if next > end {
                found.free += end - at;
                at = end;
                break;
            }
            if next == end {
                found.free += size;
            }
            (at, previous) = (next, size);
        }
        found.walked = at - start;
        Some(found)
    }

    fn word(&mut self, address: u64) -> Option<u64> {
        let offset = |start: u64| usize::try_from(address.checked_sub(start)?).ok();
        let is_there = |offset: usize, window: &[u8]| offset + 8 <= window.len();
        if !offset(self.window_start).is_some_and(|offset| is_there(offset, &self.window)) {
            self.fill(address)?;
        }
        let offset = offset(self.window_start)?;
        let bytes = self.window.get(offset..offset + 8)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    }

    /// Reads from this address on; only to the end of its page where the next is
    /// not in memory.
    fn fill(&mut self, address: u64) -> Option<()> {
        let page_end = (address / PAGE + 1) * PAGE;
        let small = usize::try_from(page_end - address).ok()?;
        for length in [WINDOW, small] {
            self.window.resize(length, 0);
            if (self.read)(address, &mut self.window) {
                self.window_start = address;
                self.left = self.left.saturating_sub(length as u64);
                return Some(());
            }
        }
        self.window.clear();
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: u64 = 0x5555_0000_0000;

    /// A heap made of chunks: size, and whether it is in use. The last is the top.
    fn heap(chunks: &[(u64, bool)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut previous_in_use = true;
        for (size, in_use) in chunks {
            let start = bytes.len();
            bytes.resize(start + *size as usize, 0xee);
            let word = size | u64::from(previous_in_use);
            bytes[start + 8..start + 16].copy_from_slice(&word.to_ne_bytes());
            previous_in_use = *in_use;
        }
        bytes
    }

    fn walk(bytes: &[u8], most: u64) -> Option<HeapUse> {
        let end = START + bytes.len() as u64;
        // There are whole pages only.
        let mut pages = bytes.to_vec();
        pages.resize(bytes.len().next_multiple_of(PAGE as usize), 0);
        let read = |address: u64, into: &mut [u8]| {
            let start = (address - START) as usize;
            let Some(from) = pages.get(start..start + into.len()) else {
                return false;
            };
            into.copy_from_slice(from);
            true
        };
        Walker::new(&read, most).main_heap(START, end)
    }

    #[test]
    fn what_is_free_is_counted() {
        let chunks = [
            (0x290, true),
            (0x100, false),
            (0x20, true),
            (0x100_000, false),
            (0x40, true),
            (0x1_000, false),
        ];
        let bytes = heap(&chunks);
        assert_eq!(
            walk(&bytes, u64::MAX),
            Some(HeapUse {
                walked: bytes.len() as u64,
                free: 0x100 + 0x100_000 + 0x1_000,
            })
        );
    }

    #[test]
    fn other_memory_is_no_heap() {
        assert_eq!(walk(&[0; 4096], u64::MAX), None);
        assert_eq!(walk(&[0xff; 4096], u64::MAX), None);
        let mut broken = heap(&[(0x290, true), (0x100, true), (0x1000, false)]);
        broken[0x298..0x2a0].copy_from_slice(&0x10_0001_u64.to_ne_bytes());
        assert_eq!(walk(&broken, u64::MAX), None, "beyond the end");
    }

    #[test]
    fn a_heap_that_grows_meanwhile_is_walked_to_its_old_end() {
        let mut bytes = heap(&[(0x290, true), (0x100, true), (0xc70, false)]);
        let top = 0x390;
        bytes[top + 8..top + 16].copy_from_slice(&0x2c71_u64.to_ne_bytes());
        let (walked, free) = (0x1000, 0xc70);
        assert_eq!(walk(&bytes, u64::MAX), Some(HeapUse { walked, free }));
    }

    #[test]
    fn a_walk_ends_when_it_has_read_enough() {
        let mut chunks = vec![(0x400, true); 1024];
        chunks.push((0x1000, false));
        let walked = walk(&heap(&chunks), 100_000).unwrap().walked;
        assert!((60_000..300_000).contains(&walked), "{walked}");
    }

    proptest! {
        #[test]
        fn any_heap_is_walked_to_its_end(
            chunks in proptest::collection::vec((2_u64..20_000, any::<bool>()), 1..60),
        ) {
            let mut chunks: Vec<_> = chunks
                .into_iter()
                .map(|(size, in_use)| (size * ALIGNMENT, in_use))
                .collect();
            chunks.last_mut().unwrap().1 = false;
            let sum = |free: bool| -> u64 {
                let all = chunks.iter().filter(|(_, in_use)| !free || !*in_use);
                all.map(|(size, _)| size).sum()
            };
            let bytes = heap(&chunks);
            prop_assert_eq!(
                walk(&bytes, u64::MAX),
                Some(HeapUse { walked: sum(false), free: sum(true) })
            );
        }
        #[test]
        fn arbitrary_memory_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = walk(&bytes, u64::MAX);
        }
    }
}
