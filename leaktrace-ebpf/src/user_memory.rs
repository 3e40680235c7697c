//! Reading the target's memory. Never faults: what isn't resident can't be
//! read.

use aya_ebpf::helpers::generated::bpf_probe_read_user;

/// Reads one value of plain integers.
#[inline(always)]
pub fn read<T: Copy + Default>(address: u64) -> Option<T> {
    let mut value = T::default();
    // SAFETY: the destination is `size_of::<T>()` bytes of our own stack; the
    // helper checks the source.
    let result = unsafe {
        bpf_probe_read_user(
            (&raw mut value).cast(),
            size_of::<T>() as u32,
            address as *const _,
        )
    };
    (result == 0).then_some(value)
}

/// Copies `size` bytes, a constant, to `to`.
///
/// # Safety
/// `to` must have room for them.
#[inline(always)]
pub unsafe fn copy(to: *mut u64, size: usize, address: u64) -> bool {
    // SAFETY: the caller's promise; the helper checks the source.
    unsafe { bpf_probe_read_user(to.cast(), size as u32, address as *const _) == 0 }
}
