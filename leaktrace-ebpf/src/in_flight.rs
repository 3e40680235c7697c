//! Calls that were entered and have not returned: one record per thread, kept
//! between calls and only marked empty.

use leaktrace_common::{
    control::{PAGE_SIZE, UNKNOWN_TRAMPOLINE},
    counter::Counter,
    function::Cookie,
    in_flight::InFlight,
};

use crate::{
    counters::{count, count_nested},
    live::LiveTable,
    maps::{EMPTY_IN_FLIGHT, IN_FLIGHT},
    stacks, user_memory,
};

const BPF_NOEXIST: u64 = 1;
const E2BIG: i32 = -7;
const EEXIST: i32 = -17;

/// The thread's record, made when it has none.
#[inline(always)]
pub fn slot(thread: u32) -> Option<*mut InFlight> {
    if let Some(record) = IN_FLIGHT.get_ptr_mut(thread) {
        return Some(record);
    }
    let empty = EMPTY_IN_FLIGHT.get_ptr(0)?;
    // SAFETY: the array lives as long as the program.
    match IN_FLIGHT.insert(thread, unsafe { &*empty }, BPF_NOEXIST) {
        Ok(()) | Err(EEXIST) => {}
        Err(E2BIG) => {
            count(Counter::InFlightFull);
            return None;
        }
        Err(_) => {
            count(Counter::InFlightOther);
            return None;
        }
    }
    IN_FLIGHT.get_ptr_mut(thread)
}

/// Whether the record's call still waits for its return: the return probe has
/// put the kernel's trampoline in place of the return address. While nobody knows
/// where that is, the beginning of any page is taken for it: code returns there
/// hardly ever.
#[inline(always)]
pub fn is_pending(record: &InFlight, trampoline: u64) -> bool {
    if record.stack_pointer == 0 {
        return false;
    }
    let Some(word) = user_memory::read::<u64>(record.stack_pointer) else {
        return false;
    };
    word == trampoline || trampoline == UNKNOWN_TRAMPOLINE && word % PAGE_SIZE == 0 && word != 0
}

/// Whether a call entered at `stack_pointer` is part of the record's call,
/// which is counted; otherwise the record is free to be used: what a stale one
/// had taken out is put back.
#[inline(always)]
pub fn is_part_of_outer<L: LiveTable>(
    record: &mut InFlight,
    cookie: Cookie,
    function_ip: u64,
    stack_pointer: u64,
    trampoline: u64,
) -> bool {
    if record.stack_pointer == 0 {
        return false;
    }
    if record.stack_pointer >= stack_pointer && is_pending(record, trampoline) {
        if record.stack_pointer == stack_pointer {
            count(Counter::TailCall);
        } else {
            nested(record, cookie, function_ip);
        }
        return true;
    }
    count(Counter::StaleInFlight);
    abandon::<L>(record);
    false
}

/// Counts a call inside the record's call.
#[inline(always)]
pub fn nested(record: &InFlight, inner: Cookie, function_ip: u64) {
    count_nested(Cookie(record.cookie).role(), inner.role());
    // The same function inside itself: nothing that an allocator does.
    count(if record.function_ip == function_ip {
        Counter::NestedAlloc
    } else {
        Counter::NestedCall
    });
}

/// Empties the record of a call that will not return. A realloc that did not
/// return has not given its block back.
#[inline(always)]
pub fn abandon<L: LiveTable>(record: &mut InFlight) {
    record.stack_pointer = 0;
    if record.old.time_ns != 0 {
        let old = record.old;
        record.old.time_ns = 0;
        put_back::<L>(record.pointer, &old);
    }
}

/// Puts back a block that was taken out by a realloc which failed. The sums
/// never left; only if the table refuses it is the block lost to them.
#[inline(always)]
pub fn put_back<L: LiveTable>(address: u64, old: &leaktrace_common::live::LiveValue) {
    if !L::insert(address, old) {
        stacks::subtract(old);
    }
}
