//! Opening an event, as far as it takes to be told of mappings
//! (perf_event_open(2); the layout is that of `linux/perf_event.h`).

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

/// `struct perf_event_attr` up to `PERF_ATTR_SIZE_VER5`, which has all that is
/// wanted here; kernels take what is missing for zero.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
    config2: u64,
    branch_sample_type: u64,
    sample_regs_user: u64,
    sample_stack_user: u32,
    clockid: i32,
    sample_regs_intr: u64,
    aux_watermark: u32,
    sample_max_stack: u16,
    reserved: u16,
}

const _: () = assert!(size_of::<Attributes>() == 112);

const PERF_TYPE_SOFTWARE: u32 = 1;
/// Counts nothing; only the records beside the samples are of interest.
const PERF_COUNT_SW_DUMMY: u64 = 9;
const PERF_SAMPLE_TIME: u64 = 1 << 2;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;
/// `_IO('$', 5)`.
const PERF_EVENT_IOC_SET_OUTPUT: libc::c_ulong = 0x2405;

/// Bits of `flags`.
mod flag {
    pub const INHERIT: u64 = 1 << 1;
    /// Without this, nothing is allowed at `perf_event_paranoid` 2.
    pub const EXCLUDE_KERNEL: u64 = 1 << 5;
    pub const EXCLUDE_HV: u64 = 1 << 6;
    pub const MMAP: u64 = 1 << 8;
    pub const COMM: u64 = 1 << 9;
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
    let attributes = Attributes {
        kind: PERF_TYPE_SOFTWARE,
        size: size_of::<Attributes>() as u32,
        config: PERF_COUNT_SW_DUMMY,
        sample_type: PERF_SAMPLE_TIME,
        flags: more
            | flag::INHERIT
            | flag::EXCLUDE_KERNEL
            | flag::EXCLUDE_HV
            | flag::MMAP
            | flag::COMM
            | flag::SAMPLE_ID_ALL
            | flag::MMAP2
            | flag::COMM_EXEC
            | flag::USE_CLOCKID,
        clockid: libc::CLOCK_MONOTONIC,
        ..Attributes::default()
    };
    let thread = libc::pid_t::try_from(thread).map_err(|_| io::ErrorKind::InvalidInput)?;
    let cpu = libc::c_int::try_from(cpu).map_err(|_| io::ErrorKind::InvalidInput)?;
    let no_group: libc::c_int = -1;
    // SAFETY: the attributes live through the call and are as long as they say.
    let result = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            thread,
            cpu,
            no_group,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

/// Lets an event write to the buffer of another one of the same CPU.
///
/// # Errors
/// Those of the `ioctl`.
pub fn redirect(event: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: this request takes a descriptor by value.
    let result =
        unsafe { libc::ioctl(event.as_raw_fd(), PERF_EVENT_IOC_SET_OUTPUT, to.as_raw_fd()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
