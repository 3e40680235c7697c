//! The state of a walk up a stack. It is kept in memory between frames, since
//! the verifier takes whatever it loads for unknown and so finds the same state
//! at each frame.

use crate::{
    remembered::HINTED_CALLERS,
    unwind::{FileRecord, Mapping, NO_FILE},
};

/// How much of the stack one copy for a remembered walk takes, in words of 8
/// bytes; a power of two.
pub const SEGMENT_WORDS: usize = 32;
/// The same in bytes.
pub const SEGMENT_BYTES: u64 = 8 * SEGMENT_WORDS as u64;
/// In how many places of the stack a remembered walk may read.
pub const MAX_SEGMENTS: usize = 8;
/// How many words of the stack are copied at most; a power of two.
pub const WINDOW_WORDS: usize = SEGMENT_WORDS * MAX_SEGMENTS;

/// Values of [`Walk::flags`].
pub mod flag {
    /// The frame is at its function's first instruction: its return address is
    /// at the stack pointer.
    pub const AT_ENTRY: u32 = 1;
    /// The frame's instruction was interrupted or is the first: it has not
    /// called.
    pub const NOT_CALLING: u32 = 2;
    /// A frame pointer was guessed on the way.
    pub const GUESSED: u32 = 4;
    /// A whole window could not be read: near the end of a stack.
    pub const SHORT_READS: u32 = 8;
    /// Frame pointers everywhere, whatever tables say.
    pub const FRAME_POINTERS: u32 = 16;
    /// The words that the walk depends on are written down.
    pub const REMEMBER: u32 = 32;
    /// The target has unloaded code since its mappings were read: none of them
    /// counts.
    pub const OUTDATED: u32 = 64;
    /// The first frame is an address in no known mapping.
    pub const NOWHERE: u32 = 128;
}

/// See the module.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// The frame that is looked at: its `rip`, or the address that it will
    /// return to.
    pub ip: u64,
    /// Its `rsp`.
    pub stack_pointer: u64,
    /// Its `rbp`.
    pub frame_pointer: u64,
    /// Two independent hashes of the frames so far.
    pub hash: [u64; 2],
    /// Frames so far.
    pub depth: u32,
    /// See [`flag`].
    pub flags: u32,
    /// Under which id frames are written down; 0 while they are only hashed.
    pub stack_id: u64,
    /// Where the kernel's return trampoline is mapped.
    pub trampoline: u64,
    /// The mapping of the last frame.
    pub mapping: Mapping,
    /// Its file.
    pub file: FileRecord,
    /// The generation of the mappings.
    pub mappings: u32,
    /// Always 0, which the verifier does not know.
    pub zero: u32,
    /// Where on the stack `frame_pointer` is from; or [`IN_REGISTER`], or
    /// [`NOTED`].
    pub frame_pointer_place: u64,
    /// The stack pointer at the start.
    pub base: u64,
    /// Number of the remembered walk that is written; at [`flag::REMEMBER`].
    pub remembered: u32,
    /// How many words of the stack it depends on; `u32::MAX` when they are too
    /// many to be remembered, or something else that may change decides, too.
    pub words: u32,
    /// In how many segments they are.
    pub segments: u32,
    /// The last of these, in segments from the start.
    pub last_segment: u32,
    /// The one before it.
    pub segment_before: u32,
    /// The segment that the word just noted is in.
    pub segment: u32,
    /// Numbers of the hints by which the walk's place was chosen.
    pub hints: [u32; HINTED_CALLERS],
    /// Where on the stack the window's first word is from.
    pub window_start: u64,
    /// How many bytes of the window are valid.
    pub window_size: u64,
    /// A copy of parts of the stack: several frames with one read.
    pub window: [u64; WINDOW_WORDS],
}

/// Value of [`Walk::frame_pointer_place`]: still in the register.
pub const IN_REGISTER: u64 = 0;
/// Value of [`Walk::frame_pointer_place`]: what it depends on has been written
/// down.
pub const NOTED: u64 = 1;

impl Walk {
    /// Nowhere.
    pub const EMPTY: Self = Self {
        ip: 0,
        stack_pointer: 0,
        frame_pointer: 0,
        hash: [0; 2],
        depth: 0,
        flags: 0,
        stack_id: 0,
        trampoline: 0,
        mapping: Mapping {
            start: 0,
            end: 0,
            bias: 0,
            file: NO_FILE,
            padding: 0,
        },
        file: FileRecord {
            pages: 0,
            first_page: 0,
            page_count: 0,
            flags: 0,
        },
        mappings: 0,
        zero: 0,
        frame_pointer_place: 0,
        base: 0,
        remembered: 0,
        words: 0,
        segments: 0,
        last_segment: 0,
        segment_before: 0,
        segment: 0,
        hints: [0; HINTED_CALLERS],
        window_start: 0,
        window_size: 0,
        window: [0; WINDOW_WORDS],
    };
}

const _: () = assert!(size_of::<Walk>() == 184 + 8 * WINDOW_WORDS);
const _: () = assert!(WINDOW_WORDS.is_power_of_two());
