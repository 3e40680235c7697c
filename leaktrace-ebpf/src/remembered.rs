//! Walks that need not be made again: see `leaktrace_common::remembered`.
//!
//! A walk that is to be remembered notes every word of the stack that decides
//! something. An entry is claimed by making its sequence number odd, which takes
//! a compare-and-exchange: without that, walks are made each time. A reader takes
//! what it found only if the number is even and the same afterwards.

use leaktrace_common::{
    remembered::{HINTED_CALLERS, HINTS, MAX_WORDS, REMEMBERED_WALKS, RememberedWalk, Word},
    walk::{IN_REGISTER, MAX_SEGMENTS, NOTED, SEGMENT_BYTES, SEGMENT_WORDS, WINDOW_WORDS, flag},
};

use crate::{
    exchange::exchange,
    maps::{CALLER_HINTS, WALKS},
    stack_hash::StackHash,
    walk::{Start, Walker, get, set},
};

/// A pointer that is kept in relation to the start's stack pointer.
const RELATIVE: i32 = -1;
const ABSOLUTE: i32 = 0;

/// The place of a call's walk: by where on the stack it is, where it returns to,
/// and where its callers do, as far as hints tell. Any place is right, since all
/// that decides a walk is compared. After [`Walker::begin`].
#[inline(always)]
pub fn number(walker: Walker, start: Start) -> u32 {
    let mut hash = StackHash::SEED;
    hash.mix(start.ip ^ start.stack_pointer << 48);
    hash.mix(walker.top());
    let mut caller = 0;
    while caller < HINTED_CALLERS {
        let number = (hash.0[0] >> 32) as u32 & (HINTS - 1);
        // SAFETY: the record is a value of a map.
        unsafe { walker.hint(caller).write_volatile(number) };
        if let Some(hint) = CALLER_HINTS.get_ptr(number) {
            // SAFETY: values of maps; the index is masked.
            let word = unsafe {
                let index = hint.read_volatile() as usize & (SEGMENT_WORDS - 1);
                (&raw const (*walker.0).window)
                    .cast::<u64>()
                    .add(index)
                    .read_volatile()
            };
            hash.mix(word);
        }
        caller += 1;
    }
    (hash.0[0] >> 32) as u32 & (REMEMBERED_WALKS - 1)
}

macro_rules! field {
    ($walk:expr, $name:ident) => {
        // SAFETY: a value of the map; volatile since others write it.
        unsafe { (&raw const (*$walk).$name).read_volatile() }
    };
}

macro_rules! set_field {
    ($walk:expr, $name:ident, $value:expr) => {{
        let value = $value;
        // SAFETY: a value of the map, which this program has claimed.
        unsafe { (&raw mut (*$walk).$name).write_volatile(value) }
    }};
}

/// The id and check of the stack to which a remembered walk led that would lead
/// to the same now.
#[inline(always)]
pub fn find(walker: Walker, number: u32, start: Start) -> Option<(u64, u64)> {
    let walk = WALKS.get_ptr(number)?;
    let sequence = field!(walk, sequence);
    if sequence & 1 != 0
        || start.flags & flag::OUTDATED != 0
        || field!(walk, ip) != start.ip
        || field!(walk, mappings) != start.mappings
        // Else pointers in relation to this one would be equal, but aligned
        // otherwise.
        || start.stack_pointer & 7 != 0
    {
        return None;
    }
    let relative = start.frame_pointer.wrapping_sub(start.stack_pointer);
    let difference = (relative ^ field!(walk, frame_pointer)) & field!(walk, frame_pointer_mask);
    if !copy_segments(walker, walk, start.stack_pointer) {
        return None;
    }
    let difference = difference | compare_words(walker, walk, start.stack_pointer);
    let found = (field!(walk, stack_id), field!(walk, stack_check));
    (difference == 0 && field!(walk, sequence) == sequence).then_some(found)
}

/// Copies the parts of the stack that a walk depends on; the first has been.
#[inline(always)]
fn copy_segments(walker: Walker, walk: *const RememberedWalk, base: u64) -> bool {
    let segments = field!(walk, segments) as usize;
    // SAFETY: a value of the map.
    let places = unsafe { (&raw const (*walk).places).cast::<u32>() };
    let mut segment = 1;
    while segment < MAX_SEGMENTS {
        if segment >= segments {
            break;
        }
        // SAFETY: one of `MAX_SEGMENTS`.
        let place = u64::from(unsafe { places.add(segment).read_volatile() });
        if !walker.copy_segment(segment, base.wrapping_add(place * SEGMENT_BYTES)) {
            return false;
        }
        segment += 1;
    }
    true
}

/// 0 when all words are what they were.
#[inline(always)]
fn compare_words(walker: Walker, walk: *const RememberedWalk, base: u64) -> u64 {
    let count = field!(walk, count) as usize;
    // SAFETY: values of maps.
    let (words, window) = unsafe {
        (
            (&raw const (*walk).words).cast::<Word>(),
            (&raw const (*walker.0).window).cast::<u64>(),
        )
    };
    let mut difference = 0;
    let mut number = 0;
    while number < MAX_WORDS {
        if number >= count {
            break;
        }
        // SAFETY: one of `MAX_WORDS`; the index into the window is masked.
        unsafe {
            let word = words.add(number);
            let index = (&raw const (*word).index).read_volatile() as usize & (WINDOW_WORDS - 1);
            let mask = (&raw const (*word).relative).read_volatile() as i64 as u64;
            let value = window.add(index).read_volatile().wrapping_sub(base & mask);
            difference |= value ^ (&raw const (*word).value).read_volatile();
        }
        number += 1;
    }
    difference
}

/// Claims an entry for a walk that begins now; false when somebody else has.
#[inline(always)]
pub fn claim(walker: Walker, number: u32, flags: u32) -> bool {
    if flags & flag::OUTDATED != 0 {
        return false;
    }
    let Some(walk) = WALKS.get_ptr_mut(number) else {
        return false;
    };
    let sequence = field!(walk, sequence);
    // SAFETY: a value of the map.
    if sequence & 1 != 0 || !exchange(unsafe { &raw mut (*walk).sequence }, sequence, sequence + 1)
    {
        return false;
    }
    set_field!(walk, frame_pointer_mask, 0);
    set!(walker, remembered, number);
    true
}

/// Publishes the walk in the claimed entry, or an empty entry.
#[inline(always)]
pub fn publish(walker: Walker, start: Start, found: (u64, u64), is_usable: bool) {
    let Some(walk) = WALKS.get_ptr_mut(get!(walker, remembered)) else {
        return;
    };
    let count = get!(walker, words);
    let is_usable = is_usable && count <= MAX_WORDS as u32;
    set_field!(walk, ip, if is_usable { start.ip } else { 0 });
    set_field!(walk, stack_id, found.0);
    set_field!(walk, stack_check, found.1);
    set_field!(walk, mappings, start.mappings);
    set_field!(walk, count, count);
    set_field!(walk, segments, get!(walker, segments));
    let sequence = field!(walk, sequence);
    set_field!(walk, sequence, sequence + 1);
}

impl Walker {
    /// The walk depends on something that is not noted.
    #[inline(always)]
    pub fn do_not_remember(self) {
        set!(self, words, u32::MAX);
    }

    /// Notes where the return address of the frame just visited is, for those who
    /// come after: callers of the first frame only, and only in the first segment.
    #[inline(always)]
    pub fn hint_at(self, flags: u32, place: u64) {
        let caller = get!(self, depth).wrapping_sub(2) as usize;
        let offset = place.wrapping_sub(get!(self, base));
        if flags & flag::REMEMBER == 0 || caller >= HINTED_CALLERS || offset >= SEGMENT_BYTES {
            return;
        }
        // SAFETY: the record is a value of a map.
        let number = unsafe { self.hint(caller).read_volatile() };
        if let Some(hint) = CALLER_HINTS.get_ptr_mut(number & (HINTS - 1)) {
            // SAFETY: a value of the map; others may write it too, as it is.
            unsafe { hint.write_volatile((offset / 8) as u32) };
        }
    }

    /// Where the number of a caller's hint is kept.
    #[inline(always)]
    fn hint(self, caller: usize) -> *mut u32 {
        // SAFETY: inside the record: callers are masked.
        unsafe {
            (&raw mut (*self.0).hints)
                .cast::<u32>()
                .add(caller & (HINTED_CALLERS - 1))
        }
    }

    /// Notes that the walk depends on a pointer into the stack.
    #[inline(always)]
    pub fn note_pointer(self, flags: u32, place: u64, value: u64) {
        self.note(flags, place, value, RELATIVE);
    }

    /// Notes that the walk depends on another word of the stack.
    #[inline(always)]
    pub fn note_value(self, flags: u32, place: u64, value: u64) {
        self.note(flags, place, value, ABSOLUTE);
    }

    /// Notes that the walk depends on the frame pointer. 0 is no pointer: it
    /// ends a chain wherever the stack is.
    #[inline(always)]
    pub fn note_frame_pointer(self, flags: u32) {
        if flags & flag::REMEMBER == 0 {
            return;
        }
        let place = get!(self, frame_pointer_place);
        let value = get!(self, frame_pointer);
        if place == IN_REGISTER {
            self.note_register(value);
        } else if place != NOTED {
            self.note(
                flags,
                place,
                value,
                if value == 0 { ABSOLUTE } else { RELATIVE },
            );
        }
        set!(self, frame_pointer_place, NOTED);
    }

    #[inline(always)]
    fn note_register(self, value: u64) {
        let Some(walk) = WALKS.get_ptr_mut(get!(self, remembered)) else {
            return;
        };
        if value == 0 {
            self.do_not_remember();
            return;
        }
        set_field!(walk, frame_pointer, value.wrapping_sub(get!(self, base)));
        set_field!(walk, frame_pointer_mask, u64::MAX);
    }

    #[inline(always)]
    fn note(self, flags: u32, place: u64, value: u64, relative: i32) {
        if flags & flag::REMEMBER == 0 {
            return;
        }
        let Some(walk) = WALKS.get_ptr_mut(get!(self, remembered)) else {
            return;
        };
        let base = get!(self, base);
        let offset = place.wrapping_sub(base);
        let place = (offset / SEGMENT_BYTES) as u32;
        let segment = self.segment(place);
        let words = get!(self, words);
        if offset >> 32 != 0 || words >= MAX_WORDS as u32 || segment >= MAX_SEGMENTS as u32 {
            self.do_not_remember();
            return;
        }
        set!(self, segment, segment);
        // Loaded anew and masked: of a register whose copy was compared, some
        // kernels' verifiers forget the bounds.
        let segment = get!(self, segment) as usize & (MAX_SEGMENTS - 1);
        let number = get!(self, words) as usize & (MAX_WORDS - 1);
        let word = Word {
            index: (segment * SEGMENT_WORDS) as u32 + (offset % SEGMENT_BYTES / 8) as u32,
            relative,
            value: value.wrapping_sub(base & relative as i64 as u64),
        };
        // SAFETY: a value of the map; the indices are masked.
        unsafe {
            (&raw mut (*walk).places)
                .cast::<u32>()
                .add(segment)
                .write_volatile(place);
            (&raw mut (*walk).words)
                .cast::<Word>()
                .add(number)
                .write_volatile(word);
        }
        set!(self, words, words + 1);
    }

    /// The number of the segment at this place. Walks go upwards, but may look
    /// back a little: so the last two are known.
    #[inline(always)]
    fn segment(self, place: u32) -> u32 {
        let segments = get!(self, segments);
        let last = get!(self, last_segment);
        if place == last {
            return segments.wrapping_sub(1);
        }
        if place == get!(self, segment_before) {
            return segments.wrapping_sub(2);
        }
        set!(self, segments, segments + 1);
        set!(self, segment_before, last);
        set!(self, last_segment, place);
        segments
    }
}
