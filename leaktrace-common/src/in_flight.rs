//! A call that was entered and has not returned: one record per thread, kept
//! between calls.

use crate::{live::LiveValue, walk::Walk};

/// Value of the map of calls in flight; its key is the thread id.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Address of the probed instruction.
    pub function_ip: u64,
    /// The out-pointer, or the block that a realloc resizes.
    pub pointer: u64,
    /// A realloc's old block, taken out of the live table; `old.time_ns` 0
    /// means that there is none.
    pub old: LiveValue,
    /// The walk up its stack. It is here because a record belongs to one thread:
    /// a program that is preempted finds it as it was.
    pub walk: Walk,
}

impl InFlight {
    /// No call.
    pub const EMPTY: Self = Self {
        stack_pointer: 0,
        cookie: 0,
        size: 0,
        stack_id: 0,
        stack_check: 0,
        function_ip: 0,
        pointer: 0,
        old: LiveValue {
            size_and_flags: 0,
            stack_id: 0,
            time_ns: 0,
        },
        walk: Walk::EMPTY,
    };
}

const _: () = assert!(size_of::<InFlight>() == 80 + size_of::<Walk>());

#[cfg(feature = "user")]
// SAFETY: integers only, no padding, every bit pattern is valid.
unsafe impl aya::Pod for InFlight {}
