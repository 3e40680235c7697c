//! A call that was entered and has not returned: one record per thread, kept
//! between calls.

use crate::live::LiveValue;

/// Value of the map of calls in flight; its key is the thread id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlight {
    /// Stack pointer at entry: where the return address is. 0 marks the record
    /// empty.
    pub stack_pointer: u64,
    /// The cookie of the function (see [`crate::function::Cookie`]).
    pub cookie: u64,
    /// Requested bytes, count × size multiplied out.
    pub size: u64,
    /// The stack at entry.
    pub stack_id: u64,
    /// The second hash of that stack.
    pub stack_check: u64,
    /// Address of the probed instruction, the stack's frame 0.
    pub function_ip: u64,
    /// Where the call returns to, the stack's frame 1.
    pub return_address: u64,
    /// The out-pointer, or the block that a realloc resizes.
    pub pointer: u64,
    /// A realloc's old block, taken out of the live table; `old.time_ns` 0
    /// means that there is none.
    pub old: LiveValue,
}

const _: () = assert!(size_of::<InFlight>() == 88);

#[cfg(feature = "user")]
// SAFETY: integers only, no padding, every bit pattern is valid.
unsafe impl aya::Pod for InFlight {}
