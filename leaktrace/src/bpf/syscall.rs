//! The `bpf` system call, as far as aya does not wrap it.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use aya_obj::generated::bpf_prog_info;

pub const BPF_MAP_CREATE: u32 = 0;
pub const BPF_MAP_LOOKUP_ELEM: u32 = 1;
pub const BPF_MAP_UPDATE_ELEM: u32 = 2;
pub const BPF_MAP_DELETE_ELEM: u32 = 3;
pub const BPF_MAP_GET_NEXT_KEY: u32 = 4;
pub const BPF_PROG_LOAD: u32 = 5;
pub const BPF_PROG_TEST_RUN: u32 = 10;
pub const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
pub const BPF_BTF_LOAD: u32 = 18;
pub const BPF_MAP_LOOKUP_BATCH: u32 = 24;
pub const BPF_LINK_CREATE: u32 = 28;

/// `-ENOTSUPP`, an errno of the kernel's own: the instruction can't be probed.
pub const ENOTSUPP: i32 = 524;

/// Calls `bpf(2)` with one of the kernel's attribute structures.
///
/// # Safety
/// Pointers inside `attributes` must be valid for what the command does.
pub unsafe fn bpf<T>(command: u32, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the structure is ours and as long as said; what it points to is
    // the caller's promise.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}

/// Like [`bpf`], for commands that return a descriptor.
///
/// # Safety
/// As for [`bpf`].
pub unsafe fn bpf_fd<T>(command: u32, attributes: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: passed on to the caller.
    let fd = unsafe { bpf(command, attributes) }?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub const BPF_MAP_TYPE_HASH: u32 = 1;
pub const BPF_MAP_TYPE_ARRAY: u32 = 2;

/// Creates a map with one entry, keys and values of 4 bytes: to see whether the
/// kernel does.
pub fn create_map(kind: u32, flags: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct MapAttributes {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
    }
    let mut attributes = MapAttributes {
        map_type: kind,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        map_flags: flags,
    };
    // SAFETY: nothing points anywhere.
    unsafe { bpf_fd(BPF_MAP_CREATE, &mut attributes) }
}

/// Attributes of the commands on one element.
#[repr(C)]
#[derive(Default)]
struct ElementAttributes {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn element(map: BorrowedFd<'_>, key: *const u8, value: *mut u8, flags: u64) -> ElementAttributes {
    ElementAttributes {
        map_fd: map.as_raw_fd() as u32,
        padding: 0,
        key: key as u64,
        value: value as u64,
        flags,
    }
}

/// Reads one element; `value` must be as long as the map's values (times the
/// possible CPUs, each rounded up to 8, for per-CPU maps).
pub fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<()> {
    let mut attributes = element(map, key.as_ptr(), value.as_mut_ptr(), 0);
    // SAFETY: both buffers live through the call.
    unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attributes) }.map(|_| ())
}

/// Writes one element; lengths as for [`lookup`].
pub fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attributes = element(map, key.as_ptr(), value.as_ptr().cast_mut(), 0);
    // SAFETY: both buffers live through the call; the kernel only reads them.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attributes) }.map(|_| ())
}

/// Removes one element.
pub fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    let mut attributes = element(map, key.as_ptr(), std::ptr::null_mut(), 0);
    // SAFETY: the key lives through the call.
    unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut attributes) }.map(|_| ())
}

/// The key after `key` (the first one for `None`), written to `next`.
pub fn next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<()> {
    let key = key.map_or(std::ptr::null(), <[u8]>::as_ptr);
    let mut attributes = element(map, key, next.as_mut_ptr(), 0);
    // SAFETY: both buffers live through the call; a null key is allowed.
    unsafe { bpf(BPF_MAP_GET_NEXT_KEY, &mut attributes) }.map(|_| ())
}

/// Runs a program for a raw tracepoint once, here and now, with these arguments;
/// what it returns.
pub fn run_raw_tracepoint(program: BorrowedFd<'_>, arguments: &[u64]) -> io::Result<i32> {
    #[repr(C)]
    #[derive(Default)]
    struct RunAttributes {
        program_fd: u32,
        result: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        context_size_in: u32,
        context_size_out: u32,
        context_in: u64,
        context_out: u64,
        flags: u32,
        cpu: u32,
    }
    let mut attributes = RunAttributes {
        program_fd: program.as_raw_fd() as u32,
        context_size_in: size_of_val(arguments) as u32,
        context_in: arguments.as_ptr() as u64,
        ..RunAttributes::default()
    };
    // SAFETY: the arguments live through the call.
    unsafe { bpf(BPF_PROG_TEST_RUN, &mut attributes) }?;
    Ok(attributes.result.cast_signed())
}

/// How often the kernel did not run a program because it, or another one, was
/// running on that CPU. 0 where the kernel does not count that (before 5.12).
pub fn recursion_misses(program: BorrowedFd<'_>) -> io::Result<u64> {
    #[repr(C)]
    struct InfoAttributes {
        program_fd: u32,
        length: u32,
        info: u64,
    }
    // SAFETY: integers only; the kernel wants what it does not fill to be 0.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut attributes = InfoAttributes {
        program_fd: program.as_raw_fd() as u32,
        length: size_of::<bpf_prog_info>() as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: the information lives through the call and is as long as said.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    Ok(info.recursion_misses)
}
