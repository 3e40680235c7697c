//! A target's memory, read while it runs (process_vm_readv(2)), without bringing
//! any of it into being: what is swapped out, or was never touched, is not read,
//! since reading would give it a page or a page table.

use std::io;

use super::{Process, pagemap::Pagemap};

/// The memory of a process.
#[derive(Debug)]
pub struct UserMemory {
    pid: i32,
    pagemap: Pagemap,
}

impl UserMemory {
    /// Opens the memory of a process.
    ///
    /// # Errors
    /// When it may not be looked into, or has ended.
    pub fn open(process: &Process) -> io::Result<Self> {
        Ok(Self {
            pid: process.pid().cast_signed(),
            pagemap: Pagemap::open(process)?,
        })
    }

    /// Fills `bytes` from `address` on.
    ///
    /// # Errors
    /// `WouldBlock` when some of it is not in memory. When the process may not be
    /// looked into, or has ended.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> io::Result<()> {
        let end = address
            .checked_add(bytes.len() as u64)
            .ok_or(io::ErrorKind::InvalidInput)?;
        if !self.pagemap.is_present(address, end)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.transfer(address, bytes)
    }

    fn transfer(&self, address: u64, bytes: &mut [u8]) -> io::Result<()> {
        let local = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        let remote = libc::iovec {
            iov_base: std::ptr::without_provenance_mut(address as usize),
            iov_len: bytes.len(),
        };
        // SAFETY: the kernel writes into `bytes` only, no more than its length; the
        // other address is one of the target's, and only the kernel follows it.
        let count = unsafe {
            libc::process_vm_readv(self.pid, &raw const local, 1, &raw const remote, 1, 0)
        };
        match usize::try_from(count) {
            Err(_) => Err(io::Error::last_os_error()),
            Ok(count) if count < bytes.len() => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(()),
        }
    }

    /// Whether it may be read at all; not all who may look into a process in other
    /// ways may do that (ptrace_scope of Yama).
    #[must_use]
    pub fn is_readable(&self) -> bool {
        let error = self.transfer(0, &mut [0]);
        error.is_err_and(|error| error.raw_os_error() == Some(libc::EFAULT))
    }
}

#[cfg(test)]
mod tests {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

    use super::*;

    #[test]
    fn what_is_there_is_read_and_nothing_else() {
        let memory = UserMemory::open(&Process::own().unwrap()).unwrap();
        assert!(memory.is_readable());
        let there = *b"sixteen letters.";
        let mut read = [0; 16];
        memory.read(there.as_ptr() as u64, &mut read).unwrap();
        assert_eq!(read, there);
        assert!(memory.read(0, &mut read).is_err());
        assert!(memory.read(u64::MAX - 4, &mut read).is_err());
        let large: Vec<u8> = (0..1_000_000_u32).map(|index| index as u8).collect();
        let mut copy = vec![0; large.len()];
        memory.read(large.as_ptr() as u64, &mut copy).unwrap();
        assert_eq!(copy, large);
    }

    #[test]
    fn what_was_never_touched_stays_so() {
        const LENGTH: usize = 1 << 20;
        let memory = UserMemory::open(&Process::own().unwrap()).unwrap();
        // SAFETY: a mapping of its own, which nothing else refers to.
        let at = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                LENGTH,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .unwrap();
        let mut read = [0; 16];
        for _ in 0..2 {
            let error = memory.read(at as u64, &mut read).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        }
        // SAFETY: it is there, and nobody else knows of it.
        unsafe {
            at.cast::<u8>().write(7);
            memory.read(at as u64, &mut read).unwrap();
            assert_eq!(read[0], 7);
            munmap(at, LENGTH).unwrap();
        }
    }
}
