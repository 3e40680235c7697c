//! Which of a process's pages are in memory, and which are swapped out (the
//! kernel's `pagemap.rst`). The kernel walks no more than 2 MiB of page tables
//! under the target's lock at a time, where `smaps` walks a whole mapping: a
//! target's `mmap` waited for 150 ms while `smaps` of a process of 4 GiB was read.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use super::Process;
use crate::model::Used;

/// A process's pages.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    page: u64,
}

/// What there is of one page.
#[derive(Clone, Copy, Debug)]
struct Entry(u64);

impl Entry {
    const SIZE: usize = size_of::<u64>();

    const fn is_present(self) -> bool {
        self.0 & 1 << 63 != 0
    }

    const fn is_swapped(self) -> bool {
        self.0 & 1 << 62 != 0
    }
}

impl Pagemap {
    /// Opens that of a process.
    ///
    /// # Errors
    /// When it may not be looked into, or has ended.
    pub fn open(process: &Process) -> io::Result<Self> {
        Ok(Self {
            file: File::open(process.directory()?.join("pagemap"))?,
            page: rustix::param::page_size() as u64,
        })
    }

    /// Whether all pages of these addresses are in memory.
    ///
    /// # Errors
    /// When the process has ended, or there are no such addresses.
    pub fn is_present(&self, start: u64, end: u64) -> io::Result<bool> {
        let mut all = true;
        self.for_each(start, end, |entry| all &= entry.is_present())?;
        Ok(all)
    }

    /// How much of these addresses is used. 13 ms per GiB.
    ///
    /// # Errors
    /// When the process has ended, or there are no such addresses.
    pub fn used(&self, start: u64, end: u64) -> io::Result<Used> {
        let mut used = Used::default();
        self.for_each(start, end, |entry| {
            used.resident += u64::from(entry.is_present()) * self.page;
            used.swapped += u64::from(entry.is_swapped()) * self.page;
        })?;
        Ok(used)
    }

    fn for_each(&self, start: u64, end: u64, mut each: impl FnMut(Entry)) -> io::Result<()> {
        let mut entries = [0; 512 * Entry::SIZE];
        let (mut page, end) = (start / self.page, end.div_ceil(self.page));
        while page < end {
            let count = (end - page).min(512);
            let entries = &mut entries[..count as usize * Entry::SIZE];
            self.file
                .read_exact_at(entries, page * Entry::SIZE as u64)?;
            for entry in entries.chunks_exact(Entry::SIZE) {
                each(Entry(entry.try_into().map_or(0, u64::from_ne_bytes)));
            }
            page += count;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

    use super::*;

    #[test]
    fn touched_pages_are_counted() {
        const PAGES: usize = 2_000;
        let pagemap = Pagemap::open(&Process::own().unwrap()).unwrap();
        let page = rustix::param::page_size();
        let length = PAGES * page;
        // SAFETY: a mapping of its own, which nothing else refers to.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .unwrap();
        // SAFETY: small pages, so that what is touched is all there is.
        unsafe { rustix::mm::madvise(start, length, rustix::mm::Advice::LinuxNoHugepage) }.unwrap();
        let at = start as u64;
        let used = |from: usize, to: usize| {
            let pages = [from, to].map(|index| at + (index * page) as u64);
            pagemap.used(pages[0], pages[1]).unwrap()
        };
        assert_eq!(used(0, PAGES), Used::default());
        for index in (0..PAGES).step_by(4) {
            // SAFETY: within the mapping.
            unsafe { start.cast::<u8>().add(index * page).write(1) };
        }
        assert_eq!(used(0, PAGES).resident, (length / 4) as u64);
        assert_eq!(used(4, 12).resident, 2 * page as u64);
        assert!(pagemap.is_present(at, at + 1).unwrap());
        assert!(!pagemap.is_present(at, at + page as u64 + 1).unwrap());
        // SAFETY: it is there, and nobody else knows of it.
        unsafe { munmap(start, length) }.unwrap();
    }
}
