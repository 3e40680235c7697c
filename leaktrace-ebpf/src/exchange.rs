//! Compare-and-exchange, which kernels know since 5.12: only programs of the
//! form for those may use it.

use core::intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg};

/// Puts `new` where `old` was; false when something else was there.
#[inline(always)]
pub fn exchange(place: *mut u64, old: u64, new: u64) -> bool {
    // SAFETY: callers pass pointers into values of maps.
    unsafe { atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(place, old, new).1 }
}
