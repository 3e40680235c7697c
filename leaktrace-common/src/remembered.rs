//! Walks that need not be made again.
//!
//! Where a walk goes depends on registers at its start, on the mappings, and on
//! some words of the stack: return addresses, and whatever was taken for a stack
//! or frame pointer. When all of these are the same at another time, so is each
//! step, and with it the stack. Pointers into the stack are compared in relation
//! to the stack pointer at the start, so that a thread finds the walk of another.

use crate::walk::MAX_SEGMENTS;

/// How many walks are remembered; a power of two.
pub const REMEMBERED_WALKS: u32 = 4096;
/// How many hints there are; a power of two.
pub const HINTS: u32 = 4096;
/// How many return addresses above the first choose the place of a walk: of a
/// function that allocates for its callers, like `operator new`, the first is
/// always the same.
pub const HINTED_CALLERS: usize = 2;
/// Most words of the stack that a remembered walk may depend on; a power of two.
pub const MAX_WORDS: usize = 64;

/// A word of the stack that decided where a walk went.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// Where it is among the words of all segments.
    pub index: u32,
    /// All ones when it is a pointer into the stack, kept in relation to the
    /// stack pointer at the start; else 0.
    pub relative: i32,
    /// What it was.
    pub value: u64,
}

/// See the module. Written by one program at a time, while `sequence` is odd.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RememberedWalk {
    /// Odd while it is written, and never the same again.
    pub sequence: u64,
    /// The instruction at the start; 0 for none.
    pub ip: u64,
    /// Where it came to: the id of the stack.
    pub stack_id: u64,
    /// The second hash of the stack.
    pub stack_check: u64,
    /// The frame pointer at the start, in relation to the stack pointer.
    pub frame_pointer: u64,
    /// All ones when that matters, else 0.
    pub frame_pointer_mask: u64,
    /// The generation of the mappings.
    pub mappings: u32,
    /// How many of `words` are valid.
    pub count: u32,
    /// How many of `places` are valid.
    pub segments: u32,
    /// Always 0.
    pub padding: u32,
    /// Where the segments begin, in segments from the stack pointer at the start.
    pub places: [u32; MAX_SEGMENTS],
    /// All words that decided something.
    pub words: [Word; MAX_WORDS],
}

const _: () = assert!(size_of::<Word>() == 16);
const _: () = assert!(size_of::<RememberedWalk>() == 96 + 16 * MAX_WORDS);
const _: () = assert!(REMEMBERED_WALKS.is_power_of_two() && MAX_WORDS.is_power_of_two());
const _: () = assert!(HINTS.is_power_of_two());
