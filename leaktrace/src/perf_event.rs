//! `perf_event_open(2)`, as far as leaktrace uses it; the layout is that of
//! `linux/perf_event.h`.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

/// An event that is to be opened: what is not zero of `struct perf_event_attr`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Event {
    /// `type`.
    pub kind: u32,
    /// What it is, by `kind`.
    pub config: u64,
    /// For a probe, a pointer to the file's path.
    pub config1: u64,
    /// For a probe, the offset in the file.
    pub config2: u64,
    /// What its records tell besides.
    pub sample_type: u64,
    /// The structure's bits, from `disabled` on.
    pub flags: u64,
    /// After how many bytes of records readers are woken, if `flags` say so; 0
    /// for half a buffer.
    pub wakeup_watermark: u32,
    /// The clock of its records, if `flags` say so.
    pub clock: i32,
}

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
    wakeup_watermark: u32,
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

const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;

/// Opens it for a thread on a CPU; -1 stands for all of them.
///
/// # Errors
/// Those of the system call.
///
/// # Safety
/// Pointers in `event` must be valid for what its kind does.
pub unsafe fn open(event: Event, thread: i32, cpu: i32) -> io::Result<OwnedFd> {
    let attributes = Attributes {
        kind: event.kind,
        size: size_of::<Attributes>() as u32,
        config: event.config,
        sample_type: event.sample_type,
        flags: event.flags,
        wakeup_watermark: event.wakeup_watermark,
        config1: event.config1,
        config2: event.config2,
        clockid: event.clock,
        ..Attributes::default()
    };
    let no_group: libc::c_int = -1;
    // SAFETY: the attributes live through the call and are as long as they say;
    // what they point to is the caller's promise.
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

/// What an event is told by `ioctl`, with a descriptor.
#[derive(Clone, Copy)]
pub enum Request {
    /// To write to the buffer of another event of the same CPU.
    SetOutput,
    /// To run a BPF program.
    SetBpf,
}

/// Tells an event something.
///
/// # Errors
/// Those of the `ioctl`.
pub fn tell(event: BorrowedFd<'_>, request: Request, with: BorrowedFd<'_>) -> io::Result<()> {
    let number: libc::c_ulong = match request {
        // _IO('$', 5)
        Request::SetOutput => 0x2405,
        // _IOW('$', 8, __u32)
        Request::SetBpf => 0x4004_2408,
    };
    // SAFETY: these requests take a descriptor by value.
    let result = unsafe { libc::ioctl(event.as_raw_fd(), number, with.as_raw_fd()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
