//! Walking, hashing and storing stacks, and the sums of each.
//!
//! The hot path only computes a stack's hash. Its frames are stored when the
//! hash is met for the first time, by walking the same stack again at the
//! call's return: the caller's frames are still there then, and the frame that
//! the return probe overwrote is in the record.

use leaktrace_common::{
    counter::Counter,
    in_flight::{InFlight, WINDOW_WORDS},
    live::LiveValue,
    stack::{MAX_FRAMES, NOT_STORED, StackEnd, StackRecord, StackSums},
};

use crate::{
    counters::{add, count},
    maps::{EMPTY_STACK, STACKS, SUMS},
    user_memory,
};

const BPF_NOEXIST: u64 = 1;
const E2BIG: i32 = -7;
const EEXIST: i32 = -17;

/// A frame farther than this from the stack pointer belongs to something else:
/// the register held no frame pointer.
const MAX_STACK_SPAN: u64 = 256 << 20;

/// Two independent hashes of a stack. Every frame is mixed into both by a
/// multiplication with an odd constant (those of xxHash64's primes) and a
/// shift, so that neither is a function of the other.
#[derive(Clone, Copy)]
pub struct StackHash {
    pub id: u64,
    pub check: u64,
}

impl StackHash {
    const SEED: Self = Self {
        id: 0x27d4_eb2f_1656_67c5,
        check: 0x1656_67b1_9e37_79f9,
    };

    #[inline(always)]
    fn mix(&mut self, value: u64) {
        self.id = (self.id ^ value).wrapping_mul(0x9e37_79b1_85eb_ca87);
        self.id ^= self.id >> 32;
        self.check = (self.check.rotate_left(27) ^ value).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
        self.check ^= self.check >> 29;
    }

    #[inline(always)]
    fn finish(mut self, end: u32) -> Self {
        self.mix(u64::from(end));
        // Small ids are reserved (see NOT_STORED); a check of 0 means unknown.
        self.id |= 1 << 63;
        self.check |= 1;
        self
    }
}

/// The copy of a part of the stack in the thread's record.
///
/// What changes from frame to frame is kept in the record, not in registers
/// (hence the volatile accesses): the verifier takes what it loads from a map
/// for unknown, so that it finds the same state at each round of the loop,
/// whichever way it came.
#[derive(Clone, Copy)]
struct Window(*mut InFlight);

const WINDOW_BYTES: u64 = 8 * WINDOW_WORDS as u64;
/// A saved frame pointer with the return address above it.
const FRAME_BYTES: u64 = 16;

macro_rules! field {
    ($window:expr, $name:ident) => {
        // The record is a value of the map and stays there while its thread runs
        // this program.
        (&raw mut (*$window.0).$name)
    };
}

impl Window {
    #[inline(always)]
    fn new(record: &mut InFlight) -> Self {
        let window = Self(record);
        // SAFETY: pointers into the record.
        unsafe {
            field!(window, window_size).write_volatile(0);
            field!(window, window_failed).write_volatile(0);
        }
        window
    }

    /// The two words at `address`, which is a multiple of 8.
    #[inline(always)]
    fn frame(self, address: u64) -> Option<(u64, u64)> {
        if !self.holds(address) && !self.fill(address) {
            return None;
        }
        // Computed from what is read again, so that the verifier finds the same
        // state whether the window was filled or not.
        // SAFETY: a pointer into the record.
        let offset = address.wrapping_sub(unsafe { field!(self, window_start).read_volatile() });
        let index = (offset / 8) as usize & (WINDOW_WORDS - 1);
        // SAFETY: the window has two words more than the mask lets through.
        unsafe {
            let words = field!(self, window).cast::<u64>();
            Some((
                words.add(index).read_volatile(),
                words.add(index + 1).read_volatile(),
            ))
        }
    }

    /// Whether the frame at `address` is in the copy.
    #[inline(always)]
    fn holds(self, address: u64) -> bool {
        // SAFETY: pointers into the record.
        let (start, size) = unsafe {
            (
                field!(self, window_start).read_volatile(),
                field!(self, window_size).read_volatile(),
            )
        };
        let offset = address.wrapping_sub(start);
        offset < WINDOW_BYTES && offset + FRAME_BYTES <= size
    }

    /// Copies from `address` on.
    #[inline(always)]
    fn fill(self, address: u64) -> bool {
        // SAFETY: pointers into the record; the window is as long as that.
        unsafe {
            let words = field!(self, window).cast::<u64>();
            field!(self, window_start).write_volatile(address);
            if field!(self, window_failed).read_volatile() == 0 {
                if user_memory::copy(words, WINDOW_BYTES as usize, address) {
                    field!(self, window_size).write_volatile(WINDOW_BYTES);
                    return true;
                }
                field!(self, window_failed).write_volatile(1);
            }
            field!(self, window_size).write_volatile(FRAME_BYTES);
            user_memory::copy(words, FRAME_BYTES as usize, address)
        }
    }

    #[inline(always)]
    fn last(self) -> u64 {
        // SAFETY: a pointer into the record.
        unsafe { field!(self, last_frame_pointer).read_volatile() }
    }

    #[inline(always)]
    fn set_last(self, frame_pointer: u64) {
        // SAFETY: a pointer into the record.
        unsafe { field!(self, last_frame_pointer).write_volatile(frame_pointer) }
    }
}

/// Walks the chain of frame pointers, giving every return address above the
/// call to `visit` with its index in the stack (2 and up). Returns how the
/// walk ended and how many frames there are.
#[inline(always)]
fn walk(
    window: Window,
    stack_pointer: u64,
    frame_pointer: u64,
    mut visit: impl FnMut(usize, u64),
) -> (u32, u32) {
    let mut frame_pointer = frame_pointer;
    window.set_last(stack_pointer);
    let mut depth = 2;
    while depth < MAX_FRAMES {
        if frame_pointer == 0 {
            return (StackEnd::ChainEnd as u32, depth as u32);
        }
        if frame_pointer <= window.last()
            || frame_pointer & 7 != 0
            || frame_pointer - stack_pointer > MAX_STACK_SPAN
        {
            return (StackEnd::BadFramePointer as u32, depth as u32);
        }
        let Some((next, return_address)) = window.frame(frame_pointer) else {
            return (StackEnd::Unreadable as u32, depth as u32);
        };
        if return_address == 0 {
            return (StackEnd::ChainEnd as u32, depth as u32);
        }
        visit(depth, return_address);
        depth += 1;
        window.set_last(frame_pointer);
        frame_pointer = next;
    }
    (StackEnd::TooDeep as u32, depth as u32)
}

/// Hashes the stack of a call that was just entered into the thread's record,
/// with its first two frames.
#[inline(always)]
pub fn capture(record: &mut InFlight, function_ip: u64, stack_pointer: u64, frame_pointer: u64) {
    let window = Window::new(record);
    // The return address; as a frame, with whatever is above it.
    let return_address = match window.frame(stack_pointer) {
        Some((return_address, _)) => return_address,
        None => 0,
    };
    let mut hash = StackHash::SEED;
    hash.mix(function_ip);
    hash.mix(return_address);
    let (end, _) = walk(window, stack_pointer, frame_pointer, |_, address| {
        hash.mix(address)
    });
    let hash = hash.finish(end);
    record.stack_id = hash.id;
    record.stack_check = hash.check;
    record.function_ip = function_ip;
    record.return_address = return_address;
}

/// The id under which a returning call's block is accounted, and this CPU's
/// sums for it.
#[inline(always)]
pub fn sums_for(
    record: &mut InFlight,
    stack_pointer: u64,
    frame_pointer: u64,
) -> (u64, Option<*mut StackSums>) {
    let id = record.stack_id;
    if let Some(sums) = SUMS.get_ptr_mut(id) {
        // SAFETY: entries of this map are never removed while programs run.
        let check = unsafe { &mut (*sums).check };
        if *check == record.stack_check {
            return (id, Some(sums));
        }
        if *check == 0 && is_stored(id, record.stack_check) {
            *check = record.stack_check;
            return (id, Some(sums));
        }
        count(Counter::StackCollision);
    } else if store(record, stack_pointer, frame_pointer) {
        return (id, SUMS.get_ptr_mut(id));
    }
    count(Counter::StackNotStored);
    (NOT_STORED, SUMS.get_ptr_mut(NOT_STORED))
}

/// Whether the stack with this id is the one with this check, as far as is
/// known: another CPU may be just storing it.
#[inline(always)]
fn is_stored(id: u64, check: u64) -> bool {
    match STACKS.get_ptr(id) {
        Some(stack) => {
            // SAFETY: entries of this map are never removed while programs run;
            // volatile since another CPU may write it.
            let stored = unsafe { (&raw const (*stack).check).read_volatile() };
            stored == check || stored == 0
        }
        None => false,
    }
}

/// Stores a stack that was not met before, and makes its sums. Of several
/// threads that meet it at the same time, the one that enters it in the table
/// writes its frames.
#[inline(always)]
fn store(record: &mut InFlight, stack_pointer: u64, frame_pointer: u64) -> bool {
    let id = record.stack_id;
    let Some(empty) = EMPTY_STACK.get_ptr(0) else {
        return false;
    };
    // SAFETY: the array lives as long as the program.
    match STACKS.insert(id, unsafe { &*empty }, BPF_NOEXIST) {
        Ok(()) => {
            let Some(stack) = STACKS.get_ptr_mut(id) else {
                return false;
            };
            fill(record, stack_pointer, frame_pointer, stack);
        }
        Err(EEXIST) => {
            if !is_stored(id, record.stack_check) {
                count(Counter::StackCollision);
                return false;
            }
        }
        Err(error) => return refused(error),
    }
    let sums = StackSums {
        check: record.stack_check,
        ..StackSums::default()
    };
    match SUMS.insert(id, &sums, BPF_NOEXIST) {
        Ok(()) | Err(EEXIST) => true,
        Err(error) => refused(error),
    }
}

/// Counts what one of the tables of stacks refused.
#[inline(always)]
fn refused(error: i32) -> bool {
    count(if error == E2BIG {
        Counter::StackTableFull
    } else {
        Counter::StackTableOther
    });
    false
}

/// Walks the record's stack again and writes it down. When it is no longer the
/// same, the frame pointer did not point to frames, which no call changes below
/// its callers: then only the caller is known, and the id is the entry's all
/// the same, so that the next call from there is met again.
#[inline(always)]
fn fill(record: &mut InFlight, stack_pointer: u64, frame_pointer: u64, stack: *mut StackRecord) {
    let mut hash = StackHash::SEED;
    hash.mix(record.function_ip);
    hash.mix(record.return_address);
    // SAFETY: a value of the map, which is never removed.
    let frames = unsafe { (&raw mut (*stack).frames).cast::<u64>() };
    let window = Window::new(record);
    let (mut end, mut depth) = walk(window, stack_pointer, frame_pointer, |index, address| {
        hash.mix(address);
        if index < MAX_FRAMES {
            // SAFETY: just checked.
            unsafe { frames.add(index).write(address) };
        }
    });
    let hash = hash.finish(end);
    if hash.id != record.stack_id || hash.check != record.stack_check {
        count(Counter::StackChanged);
        (end, depth) = (StackEnd::BadFramePointer as u32, 2);
    }
    // SAFETY: a value of the map, which is never removed.
    unsafe {
        frames.write(record.function_ip);
        frames.add(1).write(record.return_address);
        (*stack).end = end;
        (*stack).depth = depth;
        // Last: it says that the rest is there.
        (&raw mut (*stack).check).write_volatile(record.stack_check);
    }
}

/// A block is entered.
#[inline(always)]
pub fn add_block(sums: *mut StackSums, size: u64) {
    // SAFETY: a value of a map whose entries are never removed.
    unsafe {
        add(&raw mut (*sums).alloc_bytes, size);
        add(&raw mut (*sums).alloc_blocks, 1);
    }
}

/// A block is gone.
#[inline(always)]
pub fn subtract(value: &LiveValue) {
    match SUMS.get_ptr_mut(value.stack_id) {
        // SAFETY: a value of a map whose entries are never removed.
        Some(sums) => unsafe {
            add(&raw mut (*sums).freed_bytes, value.size());
            add(&raw mut (*sums).freed_blocks, 1);
        },
        None => count(Counter::SumMissing),
    }
}
