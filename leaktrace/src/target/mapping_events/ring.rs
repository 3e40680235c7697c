//! The buffer that the kernel writes an event's records to (`linux/perf_event.h`,
//! `struct perf_event_mmap_page`).

use std::{
    io,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use memmap2::{MmapOptions, MmapRaw};

/// Pages of records; a power of two. A mapping takes about 140 bytes.
const DATA_PAGES: usize = 16;

/// Where `data_head` and `data_tail` are in the first page.
const DATA_HEAD: usize = 1024;
const DATA_TAIL: usize = 1032;

/// An event with a buffer. Both go when it is dropped.
#[derive(Debug)]
pub struct Ring {
    map: MmapRaw,
    event: OwnedFd,
    page: usize,
}

impl Ring {
    /// Gives an event its buffer.
    ///
    /// # Errors
    /// Those of `mmap`; `EPERM` when a user without privileges has used up
    /// `kernel.perf_event_mlock_kb`.
    pub fn new(event: OwnedFd) -> io::Result<Self> {
        let page = rustix::param::page_size();
        let map = MmapOptions::new()
            .len((1 + DATA_PAGES) * page)
            .map_raw(&event)?;
        Ok(Self { map, event, page })
    }

    /// Takes out everything written so far: whole records.
    pub fn take(&mut self) -> Vec<u8> {
        // What is behind the head was written before it was moved there.
        let head = self.position(DATA_HEAD).load(Ordering::Acquire);
        let tail = self.position(DATA_TAIL).load(Ordering::Relaxed);
        let mut bytes = Vec::new();
        for range in readable(tail, head, DATA_PAGES * self.page) {
            // SAFETY: the range is inside the data pages of the mapping, and the
            // kernel does not write there until the tail has passed it.
            let part = unsafe {
                let data = self.map.as_ptr().add(self.page);
                std::slice::from_raw_parts(data.add(range.start), range.len())
            };
            bytes.extend_from_slice(part);
        }
        // From here on the kernel may write there again.
        self.position(DATA_TAIL).store(head, Ordering::Release);
        bytes
    }

    fn position(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: inside the first page of the mapping, which is writable and
        // lives as long as `self`; aligned to 8 bytes; only ever accessed
        // atomically, by the kernel too.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().add(offset).cast()) }
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// What lies between two positions in a buffer of `size` bytes: positions only
/// ever grow, so that it may be in two parts. Nothing when that makes no sense.
fn readable(tail: u64, head: u64, size: usize) -> [Range<usize>; 2] {
    let length = match head.checked_sub(tail).map(usize::try_from) {
        Some(Ok(length)) if length <= size => length,
        _ => 0,
    };
    let start = (tail % size as u64) as usize;
    let first = length.min(size - start);
    [start..start + first, 0..length - first]
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::FileExt as _};

    use rustix::fs::MemfdFlags;

    use super::*;

    #[test]
    fn what_goes_over_the_end_is_read_in_two_parts() {
        assert_eq!(readable(0, 0, 64), [0..0, 0..0]);
        assert_eq!(readable(64, 72, 64), [0..8, 0..0]);
        assert_eq!(readable(120, 136, 64), [56..64, 0..8]);
        assert_eq!(readable(8, 72, 64), [8..64, 0..8]);
    }

    #[test]
    fn positions_that_make_no_sense_give_nothing() {
        for (tail, head) in [(8, 0), (0, 65), (0, u64::MAX), (u64::MAX, 0)] {
            assert!(
                readable(tail, head, 64).iter().all(Range::is_empty),
                "{tail} {head}"
            );
        }
    }

    #[test]
    fn bytes_are_taken_once_and_in_order() {
        let page = rustix::param::page_size();
        let size = DATA_PAGES * page;
        let memory = rustix::fs::memfd_create("ring", MemfdFlags::CLOEXEC).unwrap();
        let kernel = File::from(memory.try_clone().unwrap());
        kernel.set_len((page + size) as u64).unwrap();
        let mut ring = Ring::new(memory).unwrap();
        let (mut head, mut written, mut taken) = (0_u64, Vec::new(), Vec::new());
        for round in 0..100_u64 {
            let record: Vec<u8> = (0..1000).map(|byte| (byte * 7 + round) as u8).collect();
            for byte in &record {
                let place = page as u64 + head % size as u64;
                kernel.write_all_at(&[*byte], place).unwrap();
                head += 1;
            }
            written.extend(record);
            kernel
                .write_all_at(&head.to_ne_bytes(), DATA_HEAD as u64)
                .unwrap();
            taken.extend(ring.take());
            assert!(ring.take().is_empty());
        }
        assert!(head > size as u64);
        assert_eq!(taken, written);
        let mut tail = [0; 8];
        kernel.read_exact_at(&mut tail, DATA_TAIL as u64).unwrap();
        assert_eq!(u64::from_ne_bytes(tail), head);
    }
}
