//! Walking and storing stacks, and the sums of each.
//!
//! On the hot path a stack is only recognised: by a walk that is remembered, or
//! by the hashes of another walk. Its frames are stored when the hash is met for
//! the first time, by walking the same stack a second time.

use leaktrace_common::{
    control::Control,
    counter::Counter,
    in_flight::InFlight,
    live::LiveValue,
    stack::{NOT_STORED, StackEnd, StackSums, age_band},
    walk::flag,
};

use crate::{
    arch::Registers,
    clock,
    counters::{add, count},
    live::LiveTable,
    maps::{EMPTY_STACK, STACKS, SUMS},
    remembered,
    stack_hash::StackHash,
    walk::{Start, Walker, get},
};

const BPF_NOEXIST: u64 = 1;
const E2BIG: i32 = -7;
const EEXIST: i32 = -17;

/// Walks the stack of a call that was just entered, or finds that it has been
/// walked before, and stores it if it was never met. Its id and check go to the
/// thread's record. False, and nothing else, when the call's return address is
/// the kernel's trampoline: it is the rest of a call that was entered before
/// events counted.
#[inline(always)]
pub fn capture<L: LiveTable>(
    record: &mut InFlight,
    thread: u32,
    control: &Control,
    registers: Registers,
) -> bool {
    let walker = Walker(&raw mut record.walk);
    // SAFETY: userspace and the loader's program change these.
    let (mappings, unloads) = unsafe {
        (
            (&raw const control.mappings).read_volatile(),
            (&raw const control.unloads).read_volatile(),
        )
    };
    // Whatever this thread runs was mapped before this call; and when that was
    // in place of something else, its end had been told before.
    let outdated = if mappings.unloads() == unloads {
        0
    } else {
        flag::OUTDATED
    };
    let start = Start {
        ip: registers.instruction_pointer(),
        stack_pointer: registers.stack_pointer(),
        frame_pointer: registers.frame_pointer(),
        flags: control.walk_flags | outdated,
        mappings: mappings.generation(),
        trampoline: control.trampoline,
    };
    walker.begin(start.stack_pointer);
    if walker.top() == start.trampoline {
        return false;
    }
    let (id, check) = if L::EXCHANGES {
        walk_or_remember(walker, thread, start, control)
    } else {
        walk::<false>(walker, thread, start, control).0
    };
    record.stack_id = id;
    record.stack_check = check;
    true
}

/// As [`walk`], unless the same walk is remembered; else it will be. One that
/// was just stored is not: another thread must not meet it before its frames
/// are there.
#[inline(always)]
fn walk_or_remember(walker: Walker, thread: u32, start: Start, control: &Control) -> (u64, u64) {
    let number = remembered::number(walker, start);
    if let Some(found) = remembered::find(walker, number, start) {
        return found;
    }
    let is_claimed = remembered::claim(walker, number, start.flags);
    let noting = Start {
        flags: start.flags | if is_claimed { flag::REMEMBER } else { 0 },
        ..start
    };
    // Kernels that can compare and exchange (5.12) and tell cookies (5.15), which
    // this form needs, know the callbacks that asking takes.
    let (found, is_lasting) = walk::<true>(walker, thread, noting, control);
    if is_claimed {
        remembered::publish(walker, start, found, is_lasting);
    }
    found
}

/// Walks a stack and stores it if it was not met before: its id and check, and
/// whether another walk would find it stored.
#[inline(always)]
fn walk<const ASKS: bool>(
    walker: Walker,
    thread: u32,
    start: Start,
    control: &Control,
) -> ((u64, u64), bool) {
    let end = walker.walk::<ASKS>(thread, start, 0);
    let end = unless_changed(end, start, control);
    let found = StackHash(get!(walker, hash)).finish(end);
    if STACKS.get_ptr(found.0).is_some() {
        let is_lasting = end != StackEnd::Unreadable as u64 && end != StackEnd::Changed as u64;
        return (found, is_lasting);
    }
    store::<ASKS>(walker, thread, start, found, end);
    (found, false)
}

/// The end of a walk, if the mappings that it went by were whole: userspace
/// writes over those of a generation when it begins the one after the next.
#[inline(always)]
fn unless_changed(end: u64, start: Start, control: &Control) -> u64 {
    // SAFETY: userspace changes it.
    let begun = unsafe { (&raw const control.mappings_begun).read_volatile() };
    if begun.wrapping_sub(start.mappings) >= 2 {
        StackEnd::Changed as u64
    } else {
        end
    }
}

/// Stores a stack that was not met before, by walking it again. Of several
/// threads that meet it at the same time, the one that enters it in the table
/// writes its frames.
#[inline(always)]
fn store<const ASKS: bool>(walker: Walker, thread: u32, start: Start, found: (u64, u64), end: u64) {
    let (id, check) = found;
    let Some(empty) = EMPTY_STACK.get_ptr(0) else {
        return;
    };
    // SAFETY: the array lives as long as the program.
    match STACKS.insert(id, unsafe { &*empty }, BPF_NOEXIST) {
        Ok(()) => {}
        // Whether it is the same is seen at the return.
        Err(EEXIST) => return,
        Err(error) => {
            refused(error);
            return;
        }
    }
    let again = Start {
        flags: start.flags & !flag::REMEMBER,
        ..start
    };
    let mut end_again = walker.walk::<ASKS>(thread, again, id);
    let mut depth = get!(walker, depth);
    if end == StackEnd::Changed as u64 {
        end_again = end;
    }
    if StackHash(get!(walker, hash)).finish(end_again) != found {
        // Others have written to the stack, or the mappings are others: only the
        // caller is known. The id is the first walk's all the same.
        count(Counter::StackChanged);
        end_again = StackEnd::Changed as u64;
        depth = 2;
    }
    let Some(stack) = STACKS.get_ptr_mut(id) else {
        return;
    };
    // SAFETY: a value of the map, which is never removed.
    unsafe {
        (*stack).end = end_again as u32;
        (*stack).depth = depth;
        // Last: it says that the rest is there.
        (&raw mut (*stack).check).write_volatile(check);
    }
}

/// The id under which a returning call's block is accounted, and this CPU's
/// sums for it.
#[inline(always)]
pub fn sums_for(record: &InFlight) -> (u64, Option<*mut StackSums>) {
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
    } else if make_sums(id, record.stack_check) {
        return (id, SUMS.get_ptr_mut(id));
    }
    count(Counter::StackNotStored);
    (NOT_STORED, SUMS.get_ptr_mut(NOT_STORED))
}

/// Makes the sums of a stack that is stored.
#[inline(always)]
fn make_sums(id: u64, check: u64) -> bool {
    if STACKS.get_ptr(id).is_none() {
        // There was no room, which has been counted.
        return false;
    }
    if !is_stored(id, check) {
        count(Counter::StackCollision);
        return false;
    }
    let sums = StackSums {
        check,
        ..StackSums::default()
    };
    match SUMS.insert(id, &sums, BPF_NOEXIST) {
        Ok(()) | Err(EEXIST) => true,
        Err(error) => {
            refused(error);
            false
        }
    }
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

/// Counts what one of the tables of stacks refused.
#[inline(always)]
fn refused(error: i32) {
    count(if error == E2BIG {
        Counter::StackTableFull
    } else {
        Counter::StackTableOther
    });
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
        // SAFETY: a value of a map whose entries are never removed; a band is less than
        // the number of bands.
        Some(sums) => unsafe {
            let band = age_band(value.time_ns, clock::coarse_ns());
            let freed = (&raw mut (*sums).freed_by_age).cast::<u64>();
            add(&raw mut (*sums).freed_bytes, value.size());
            add(freed.add(band), 1);
        },
        None => count(Counter::SumMissing),
    }
}
