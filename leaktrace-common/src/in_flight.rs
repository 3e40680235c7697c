//! A call that was entered and has not returned: one record per thread, kept
//! between calls.

use crate::live::LiveValue;

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
    /// Address of the probed instruction, the stack's frame 0.
    pub function_ip: u64,
    /// Where the call returns to, the stack's frame 1.
    pub return_address: u64,
    /// The out-pointer, or the block that a realloc resizes.
    pub pointer: u64,
    /// A realloc's old block, taken out of the live table; `old.time_ns` 0
    /// means that there is none.
    pub old: LiveValue,
    /// Where the stack is copied to while it is walked: the frame pointers of
    /// several frames with one read. It is here because a record belongs to one
    /// thread, so that a program which is preempted finds it as it was.
    pub window: [u64; WINDOW_WORDS + 2],
    /// Where on the stack the window's first word is from.
    pub window_start: u64,
    /// How many bytes of the window are valid.
    pub window_size: u64,
    /// Non-zero when a whole window could not be read: near the end of a stack.
    pub window_failed: u64,
    /// The frame pointer before the one that is looked at.
    pub last_frame_pointer: u64,
}

/// How much of the stack one read copies, in words of 8 bytes; a power of two.
/// Two more words are there, so that a frame pointer and its return address can
/// be read at any index below this.
pub const WINDOW_WORDS: usize = 64;

impl InFlight {
    /// No call.
    pub const EMPTY: Self = Self {
        stack_pointer: 0,
        cookie: 0,
        size: 0,
        stack_id: 0,
        stack_check: 0,
        function_ip: 0,
        return_address: 0,
        pointer: 0,
        old: LiveValue {
            size_and_flags: 0,
            stack_id: 0,
            time_ns: 0,
        },
        window: [0; WINDOW_WORDS + 2],
        window_start: 0,
        window_size: 0,
        window_failed: 0,
        last_frame_pointer: 0,
    };
}

const _: () = assert!(size_of::<InFlight>() == 88 + 8 * (WINDOW_WORDS + 2) + 32);

#[cfg(feature = "user")]
// SAFETY: integers only, no padding, every bit pattern is valid.
unsafe impl aya::Pod for InFlight {}
