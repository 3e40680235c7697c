//! Counting events.

use leaktrace_common::counter::{Counter, NESTED_ROLES};

use crate::maps::{COUNTERS, TALLY};

const NESTED_ROWS: u64 = NESTED_ROLES as u64;

/// Adds to a 64-bit value that lies in a map. Relaxed, without a result:
/// compiles to a locked add, which every supported kernel accepts.
#[inline(always)]
pub fn add(value: *mut u64, amount: u64) {
    // SAFETY: callers pass pointers into live map values.
    unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(
            value, amount,
        );
    }
}

/// Counts one event.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(block) = COUNTERS.get_ptr_mut(0) {
        // SAFETY: in bounds, the enum's numbers are the array's indices.
        add(
            unsafe {
                (&raw mut (*block).events)
                    .cast::<u64>()
                    .add(counter as usize)
            },
            1,
        );
    }
}

/// Counts a call inside another one, by role numbers.
#[inline(always)]
pub fn count_nested(outer: u8, inner: u8) {
    if let Some(block) = COUNTERS.get_ptr_mut(0) {
        // Masked rather than compared: the verifier follows that.
        let index = (u64::from(outer) % NESTED_ROWS) * NESTED_ROWS + u64::from(inner) % NESTED_ROWS;
        // SAFETY: in bounds by the masks.
        add(
            unsafe { (&raw mut (*block).nested).cast::<u64>().add(index as usize) },
            1,
        );
    }
}

/// Counts a call for the estimate.
#[inline(always)]
pub fn tally() {
    if let Some(calls) = TALLY.get_ptr_mut(0) {
        add(calls, 1);
    }
}
