//! Files mapped for reading, which others may cut short meanwhile.
//!
//! Reading a page of a mapping that lies beyond the end of its file raises
//! SIGBUS. Files of a target are somebody else's: a copy over a running program,
//! or a debug file that is just being downloaded, must not end leaktrace. So its
//! handler for that signal puts a page of zeros there, and the reader goes on:
//! it believes nothing in these files anyway. [`cut_short`] tells that it
//! happened, since what was read then is no longer what the file says.

use std::{
    fs::File,
    io,
    sync::{
        Once,
        atomic::{AtomicUsize, Ordering},
    },
};

use memmap2::Mmap;

static PAGE_SIZE: AtomicUsize = AtomicUsize::new(4096);
static FILLED: AtomicUsize = AtomicUsize::new(0);

/// Maps a whole file; where it is cut short meanwhile, it reads as zeros.
///
/// # Errors
/// Those of `mmap`; `InvalidData` for an empty file.
pub fn map(file: &File) -> io::Result<Mmap> {
    install();
    if file.metadata()?.len() == 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the file is empty",
        ));
    }
    // SAFETY: the map is read-only and private. Others may still change the
    // file's bytes; readers treat them as hostile, and see them only as
    // bounds-checked slices of integers.
    unsafe { Mmap::map(file) }
}

/// How many pages were missing up to now, in any mapping of this process. One
/// that grew while a file was read means that the file was cut short.
#[must_use]
pub fn cut_short() -> usize {
    FILLED.load(Ordering::Relaxed)
}

/// Makes reading beyond the end of a mapped file harmless, also in mappings that
/// others make.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        PAGE_SIZE.store(rustix::param::page_size(), Ordering::Relaxed);
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
            fill_with_zeros;
        // SAFETY: all zeros is a valid `sigaction`.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler only makes system calls and touches atomics. Should
        // this fail, SIGBUS does what it did before.
        unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
    });
}

extern "C" fn fill_with_zeros(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid record, and its errno is this thread's.
    unsafe {
        let errno = *libc::__errno_location();
        if (*info).si_code == libc::BUS_ADRERR {
            let page_size = PAGE_SIZE.load(Ordering::Relaxed);
            let page = (*info).si_addr().map_addr(|it| it & !(page_size - 1));
            // This thread was just reading there, so the mapping exists, and is
            // one of a file.
            let put = libc::mmap(
                page,
                page_size,
                libc::PROT_READ,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            );
            if put == page {
                FILLED.fetch_add(1, Ordering::Relaxed);
                *libc::__errno_location() = errno;
                return;
            }
        }
        // As if there were no handler: it comes again when this returns.
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_file_that_is_cut_short_reads_as_zeros() {
        let page = rustix::param::page_size();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; 5 * page]).unwrap();
        let bytes = map(&file).unwrap();
        assert_eq!(bytes[4 * page], 7);
        let before = cut_short();
        file.set_len(page as u64 + 1).unwrap();
        // The compiler must not know what it read before.
        let bytes = std::hint::black_box(&bytes[..]);
        assert_eq!(bytes[page], 7);
        assert!(bytes[page + 1..].iter().all(|byte| *byte == 0));
        assert!(cut_short() >= before + 3);
    }

    #[test]
    fn an_empty_file_is_an_error() {
        let empty = tempfile::tempfile().unwrap();
        assert_eq!(map(&empty).unwrap_err().to_string(), "the file is empty");
    }
}
