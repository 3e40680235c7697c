//! Walking up a stack, frame by frame, by unwind tables or by frame pointers.
//! The same in plain Rust, with words on each kind of rule, is userspace's
//! `unwind::walk`.

use leaktrace_common::{
    arch::signal_frame,
    stack::{FrameWord, MAX_FRAMES, StackEnd},
    unwind::{KEEPS_FRAME_POINTERS, NO_FILE, Rule, cfa, fp},
    walk::{IN_REGISTER, NOTED, SEGMENT_BYTES, SEGMENT_WORDS, WINDOW_WORDS, Walk, flag},
};

use crate::{
    maps::{IN_FLIGHT, STACKS},
    stack_hash::StackHash,
    tables::{self, NOWHERE},
    user_memory,
};

/// How much a walk copies at once.
const WINDOW_BYTES: u64 = 2 * SEGMENT_BYTES;
/// A frame pointer that leads farther than this belongs to something else.
const MAX_FRAME_SPAN: u64 = 256 << 20;

/// A walk that goes on.
const GOING_ON: u64 = 0;

/// An end, as [`walk_frame`] returns it: one more, since 0 means that the walk
/// goes on.
#[inline(always)]
const fn ended(end: StackEnd) -> u64 {
    end as u64 + 1
}

/// The end of a stack whose last frame was reached.
#[inline(always)]
fn reached_end(flags: u32, end: StackEnd) -> u64 {
    if flags & flag::GUESSED != 0 {
        ended(StackEnd::Guessed)
    } else if flags & flag::NOWHERE != 0 {
        ended(StackEnd::NoMapping)
    } else {
        ended(end)
    }
}

/// A walk in a thread's record. All accesses are volatile: what comes from a
/// map is unknown to the verifier, so that it finds the same state at each
/// frame.
#[derive(Clone, Copy)]
pub struct Walker(pub(crate) *mut Walk);

/// Reads a field of a walk.
macro_rules! get {
    ($walk:expr, $($field:tt)+) => {
        // SAFETY: the record is a value of a map, and stays while its thread is
        // in this program.
        unsafe { (&raw const (*$walk.0).$($field)+).read_volatile() }
    };
}

/// Writes a field of a walk.
macro_rules! set {
    ($walk:expr, $field:ident, $value:expr) => {{
        let value = $value;
        // SAFETY: as in `get!`; only this thread's own programs write it.
        unsafe { (&raw mut (*$walk.0).$field).write_volatile(value) }
    }};
}

pub(crate) use {get, set};

/// Visits one frame of the thread's stack and goes to its caller; 0 to go on,
/// or one more than the [`StackEnd`]. The verifier looks at a global function
/// once, however often it is called, but takes only scalars for its arguments.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn walk_frame(thread: u64) -> u64 {
    visit_frame::<false>(thread)
}

/// The same, and asks the kernel for mappings that are not known: for programs
/// that run only where the verifier knows how that is done (5.13).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn walk_frame_asking(thread: u64) -> u64 {
    visit_frame::<true>(thread)
}

#[inline(always)]
fn visit_frame<const ASKS: bool>(thread: u64) -> u64 {
    let Some(record) = IN_FLIGHT.get_ptr_mut(thread as u32) else {
        return ended(StackEnd::NotStored);
    };
    // SAFETY: a pointer into a value of the map.
    Walker(unsafe { &raw mut (*record).walk }).step::<ASKS>()
}

/// Where a walk starts: at the first instruction of a function.
#[derive(Clone, Copy)]
pub struct Start {
    pub ip: u64,
    pub stack_pointer: u64,
    pub frame_pointer: u64,
    /// See [`flag`].
    pub flags: u32,
    /// The generation of the mappings.
    pub mappings: u32,
    /// Where the kernel's return trampoline is mapped.
    pub trampoline: u64,
}

impl Walker {
    /// Walks from `start` to the end, and tells that. Frames are written to the
    /// stack with this id, if it is not 0.
    #[inline(always)]
    pub fn walk<const ASKS: bool>(self, thread: u32, start: Start, stack_id: u64) -> u64 {
        set!(self, ip, start.ip);
        set!(self, stack_pointer, start.stack_pointer);
        set!(self, frame_pointer, start.frame_pointer);
        set!(self, hash, StackHash::SEED.0);
        set!(self, depth, 0);
        let flags = flag::AT_ENTRY | flag::NOT_CALLING | start.flags;
        set!(self, flags, flags);
        set!(self, stack_id, stack_id);
        set!(self, trampoline, start.trampoline);
        set!(self, mappings, start.mappings);
        set!(self, frame_pointer_place, IN_REGISTER);
        // Mappings may have changed since the walk before.
        set!(self, mapping, NOWHERE);
        let mut frame = 0;
        while frame < MAX_FRAMES {
            let end = if ASKS {
                walk_frame_asking(u64::from(thread))
            } else {
                walk_frame(u64::from(thread))
            };
            if end != GOING_ON {
                return end - 1;
            }
            frame += 1;
        }
        StackEnd::TooDeep as u64
    }

    /// Visits one frame and goes to its caller.
    #[inline(always)]
    fn step<const ASKS: bool>(self) -> u64 {
        let ip = get!(self, ip);
        let flags = get!(self, flags);
        // A return address may be that of the next function, when the call
        // never returns; so what is looked up is the call.
        let looked_up = ip.wrapping_sub(u64::from(flags & flag::NOT_CALLING == 0));
        let is_mapped = tables::locate::<ASKS>(self, looked_up);
        self.visit(ip);
        if flags & flag::AT_ENTRY != 0 {
            // Its caller is known all the same, but it may be in any file.
            if !is_mapped {
                set!(self, flags, flags | flag::NOWHERE);
            }
            return self.to_caller(Rule::ENTRY, flags);
        }
        if !is_mapped {
            return ended(StackEnd::NoMapping);
        }
        if flags & flag::FRAME_POINTERS != 0 {
            return self.by_frame_pointer(flags, StackEnd::ChainEnd);
        }
        let rule = tables::rule(self, looked_up.wrapping_sub(get!(self, mapping.bias)));
        match rule.cfa_kind {
            cfa::END => reached_end(flags, StackEnd::Complete),
            cfa::UNSUPPORTED => ended(StackEnd::UnsupportedRule),
            cfa::GAP if get!(self, file.flags) == 0 => ended(StackEnd::NotReady),
            cfa::GAP if get!(self, file.flags) & KEEPS_FRAME_POINTERS == 0 => ended(StackEnd::Gap),
            cfa::GAP => {
                if get!(self, frame_pointer) != 0 {
                    set!(self, flags, flags | flag::GUESSED);
                }
                self.by_frame_pointer(get!(self, flags), StackEnd::Gap)
            }
            _ => self.to_caller(rule, flags),
        }
    }

    /// Goes to the caller by the frame pointer; `at_zero` is how the stack ends
    /// when there is none.
    #[inline(always)]
    fn by_frame_pointer(self, flags: u32, at_zero: StackEnd) -> u64 {
        let frame_pointer = get!(self, frame_pointer);
        if frame_pointer == 0 {
            self.note_frame_pointer(flags);
            return reached_end(flags, at_zero);
        }
        if frame_pointer.wrapping_sub(get!(self, stack_pointer)) > MAX_FRAME_SPAN {
            self.note_frame_pointer(flags);
            return ended(StackEnd::BadFramePointer);
        }
        let end = self.to_caller(Rule::FRAME_POINTER, flags);
        if end == ended(StackEnd::BadStackPointer) {
            return ended(StackEnd::BadFramePointer);
        }
        end
    }

    /// Puts the frame into the hashes, and writes it down when wanted.
    #[inline(always)]
    fn visit(self, ip: u64) {
        let file = get!(self, mapping.file);
        let mut frame = ip;
        if file != NO_FILE {
            let offset = ip.wrapping_sub(get!(self, mapping.bias));
            frame = FrameWord::in_file(file as u16, offset).0;
        }
        let mut hash = StackHash(get!(self, hash));
        hash.mix(frame);
        set!(self, hash, hash.0);
        let depth = get!(self, depth);
        set!(self, depth, depth + 1);
        let stack_id = get!(self, stack_id);
        if stack_id != 0
            && let Some(stack) = STACKS.get_ptr_mut(stack_id)
        {
            // SAFETY: a value of the map; the index is masked.
            unsafe {
                (&raw mut (*stack).frames)
                    .cast::<u64>()
                    .add(depth as usize & (MAX_FRAMES - 1))
                    .write_volatile(frame);
            }
        }
    }

    /// Goes to the caller by a rule of the kinds that lead to one.
    #[inline(always)]
    fn to_caller(self, rule: Rule, flags: u32) -> u64 {
        let stack_pointer = get!(self, stack_pointer);
        let mut frame = stack_pointer;
        if rule.cfa_kind == cfa::FP || rule.cfa_kind == cfa::FP_DEREF {
            self.note_frame_pointer(flags);
            frame = get!(self, frame_pointer);
        }
        frame = frame.wrapping_add(rule.cfa_offset as i64 as u64);
        let addend = rule.cfa_addend as i64 as u64;
        match rule.cfa_kind {
            cfa::SP_DEREF | cfa::FP_DEREF => {
                let Some(word) = self.word(frame) else {
                    return ended(StackEnd::Unreadable);
                };
                self.note_pointer(flags, frame, word);
                frame = word.wrapping_add(addend);
            }
            cfa::PLT if get!(self, ip) & 15 >= addend => frame = frame.wrapping_add(8),
            cfa::SIGNAL => return self.to_interrupted(flags),
            _ => {}
        }
        // Stacks grow downwards, by whole words.
        if frame <= stack_pointer || frame & 7 != 0 {
            return ended(StackEnd::BadStackPointer);
        }
        if !self.restore_frame_pointer(rule, flags, frame) {
            return ended(StackEnd::Unreadable);
        }
        let place = frame.wrapping_add(rule.ra_offset as i64 as u64);
        let Some(ip) = self.word(place) else {
            return ended(StackEnd::Unreadable);
        };
        self.note_value(flags, place, ip);
        self.hint_at(flags, place);
        if ip == 0 {
            return reached_end(flags, StackEnd::ChainEnd);
        }
        if ip == get!(self, trampoline) {
            return ended(StackEnd::ReturnProbe);
        }
        set!(self, ip, ip);
        set!(self, stack_pointer, frame);
        let flags = get!(self, flags);
        set!(self, flags, flags & !(flag::AT_ENTRY | flag::NOT_CALLING));
        GOING_ON
    }

    /// The caller's frame pointer, where a rule says; false when that can't be
    /// read.
    #[inline(always)]
    fn restore_frame_pointer(self, rule: Rule, flags: u32, frame: u64) -> bool {
        let from = match rule.fp_kind {
            fp::SAME => return true,
            fp::CFA => frame,
            fp::FP => {
                self.note_frame_pointer(flags);
                get!(self, frame_pointer)
            }
            fp::SP => get!(self, stack_pointer),
            _ => {
                set!(self, frame_pointer, 0);
                set!(self, frame_pointer_place, NOTED);
                return true;
            }
        };
        let place = from.wrapping_add(rule.fp_offset as i64 as u64);
        let Some(word) = self.word(place) else {
            return false;
        };
        set!(self, frame_pointer, word);
        set!(self, frame_pointer_place, place);
        true
    }

    /// Goes to what a signal interrupted. A handler may have a stack of its own:
    /// nothing is known about the interrupted one's address.
    #[inline(always)]
    fn to_interrupted(self, flags: u32) -> u64 {
        let context = get!(self, stack_pointer);
        let place = context.wrapping_add(signal_frame::FP);
        let Some(frame_pointer) = self.word(place) else {
            return ended(StackEnd::Unreadable);
        };
        set!(self, frame_pointer, frame_pointer);
        set!(self, frame_pointer_place, place);
        let place = context.wrapping_add(signal_frame::SP);
        let Some(stack_pointer) = self.word(place) else {
            return ended(StackEnd::Unreadable);
        };
        self.note_pointer(flags, place, stack_pointer);
        let place = context.wrapping_add(signal_frame::IP);
        let Some(ip) = self.word(place) else {
            return ended(StackEnd::Unreadable);
        };
        self.note_value(flags, place, ip);
        set!(self, ip, ip);
        set!(self, stack_pointer, stack_pointer);
        let flags = get!(self, flags);
        set!(self, flags, flags & !flag::AT_ENTRY | flag::NOT_CALLING);
        GOING_ON
    }

    /// Forgets the copy of the stack, which another call has made.
    #[inline(always)]
    pub fn begin(self, stack_pointer: u64) {
        set!(self, base, stack_pointer);
        set!(self, window_size, 0);
        set!(self, window_start, stack_pointer);
        set!(self, words, 0);
        set!(self, segments, 0);
        set!(self, last_segment, u32::MAX);
        set!(self, segment_before, u32::MAX);
        if self.copy_segment(0, stack_pointer) {
            set!(self, window_size, SEGMENT_BYTES);
        }
    }

    /// The word at the top of the stack, after [`Self::begin`].
    #[inline(always)]
    pub fn top(self) -> u64 {
        self.word(get!(self, base)).unwrap_or_default()
    }

    /// Copies a segment from `address` on to its place in the window.
    #[inline(always)]
    pub fn copy_segment(self, segment: usize, address: u64) -> bool {
        self.copy::<SEGMENT_BYTES>(segment * SEGMENT_WORDS, address)
    }

    /// Copies from `address` into the window, from its word `index` on; callers
    /// stay inside it.
    #[inline(always)]
    fn copy<const BYTES: u64>(self, index: usize, address: u64) -> bool {
        // SAFETY: the record is a value of a map.
        unsafe {
            let words = (&raw mut (*self.0).window).cast::<u64>();
            user_memory::copy(words.add(index), BYTES as usize, address)
        }
    }

    /// The word at an address of the stack.
    #[inline(always)]
    fn word(self, address: u64) -> Option<u64> {
        if address & 7 != 0 {
            return None;
        }
        let held = address.wrapping_sub(get!(self, window_start)) < get!(self, window_size);
        if !held && !self.fill(address) {
            return None;
        }
        // Computed from what is read again, so that the verifier finds the same
        // state whether the window was filled or not.
        let offset = address.wrapping_sub(get!(self, window_start));
        let index = (offset / 8) as usize & (WINDOW_WORDS - 1);
        // SAFETY: the record is a value of a map; the index is masked.
        Some(unsafe {
            (&raw const (*self.0).window)
                .cast::<u64>()
                .add(index)
                .read_volatile()
        })
    }

    /// Copies the stack from `address` on.
    #[inline(always)]
    fn fill(self, address: u64) -> bool {
        set!(self, window_start, address);
        set!(self, window_size, 0);
        let flags = get!(self, flags);
        if flags & flag::SHORT_READS == 0 {
            if self.copy::<WINDOW_BYTES>(0, address) {
                set!(self, window_size, WINDOW_BYTES);
                return true;
            }
            set!(self, flags, flags | flag::SHORT_READS);
        }
        if self.copy::<8>(0, address) {
            set!(self, window_size, 8);
            return true;
        }
        false
    }
}
