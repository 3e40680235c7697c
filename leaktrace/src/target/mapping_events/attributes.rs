//! Opening an event that tells of mappings.

use std::{io, os::fd::OwnedFd};

use crate::perf_event::{self, Event};

const PERF_TYPE_SOFTWARE: u32 = 1;
/// Counts nothing; only the records beside the samples are of interest.
const PERF_COUNT_SW_DUMMY: u64 = 9;
const PERF_SAMPLE_TIME: u64 = 1 << 2;

/// Bits of `flags`.
mod flag {
    pub const INHERIT: u64 = 1 << 1;
    /// Without this, nothing is allowed at `perf_event_paranoid` 2.
    pub const EXCLUDE_KERNEL: u64 = 1 << 5;
    pub const EXCLUDE_HV: u64 = 1 << 6;
    pub const MMAP: u64 = 1 << 8;
    pub const COMM: u64 = 1 << 9;
    pub const WATERMARK: u64 = 1 << 14;
    pub const SAMPLE_ID_ALL: u64 = 1 << 18;
    pub const MMAP2: u64 = 1 << 23;
    pub const COMM_EXEC: u64 = 1 << 24;
    pub const USE_CLOCKID: u64 = 1 << 25;
    /// Since 5.13.
    pub const INHERIT_THREAD: u64 = 1 << 35;
}

/// An event that records executable mappings and execs of a thread, and of
/// threads that it starts from now on, while they are on one CPU. Records end
/// with their time (`CLOCK_MONOTONIC`, ns).
///
/// # Errors
/// Those of `perf_event_open`.
pub fn open(thread: u32, cpu: u32) -> io::Result<OwnedFd> {
    // Child processes are no concern, and copying events to each costs them.
    match open_with(thread, cpu, flag::INHERIT_THREAD) {
        // Unknown to the kernel.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open_with(thread, cpu, 0),
        result => result,
    }
}

fn open_with(thread: u32, cpu: u32, more: u64) -> io::Result<OwnedFd> {
    let event = Event {
        kind: PERF_TYPE_SOFTWARE,
        config: PERF_COUNT_SW_DUMMY,
        sample_type: PERF_SAMPLE_TIME,
        flags: more
            | flag::INHERIT
            | flag::EXCLUDE_KERNEL
            | flag::EXCLUDE_HV
            | flag::MMAP
            | flag::COMM
            | flag::WATERMARK
            | flag::SAMPLE_ID_ALL
            | flag::MMAP2
            | flag::COMM_EXEC
            | flag::USE_CLOCKID,
        // Whoever waits is woken by each record.
        wakeup_watermark: 1,
        clock: libc::CLOCK_MONOTONIC,
        ..Event::default()
    };
    let thread = i32::try_from(thread).map_err(|_| io::ErrorKind::InvalidInput)?;
    let cpu = i32::try_from(cpu).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: nothing points anywhere.
    unsafe { perf_event::open(event, thread, cpu) }
}
