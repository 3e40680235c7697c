//! The live table as an array of buckets, changed by compare-and-exchange only.
//!
//! A block's home is the bucket that its address hashes to; when that is full,
//! the block goes into the next one that is not, and the home counts it as
//! spilled. So a look-up that does not find it at home goes on only where
//! something was spilled, and nothing is ever moved or left behind as a
//! tombstone.
//!
//! A slot is claimed by exchanging 0 for [`CLAIMED`], filled, and published by
//! storing its key; it is freed by exchanging its key for 0, which only one
//! thread succeeds in. An address is inserted before its owner can know it and
//! taken out before anybody else can get it, so nobody looks for a key that is
//! just being published.

use leaktrace_common::{
    counter::Counter,
    live::{BUCKET_SLOTS, Bucket, CLAIMED, LiveValue, PROBE_BUCKETS, bucket_of, slot_key},
};

use super::LiveTable;
use crate::{
    counters::{add, count},
    maps::{CONTROL, LIVE_SLOTS},
    stacks,
};

/// The traced process, in leaktrace's numbering; one for now.
const PROCESS: u64 = 0;

/// See the module.
pub struct Slots;

/// A place in the table.
#[derive(Clone, Copy)]
struct Place {
    key: *mut u64,
    value: *mut LiveValue,
}

#[inline(always)]
fn exchange(place: *mut u64, old: u64, new: u64) -> bool {
    use core::intrinsics::AtomicOrdering::SeqCst;
    // SAFETY: callers pass pointers into values of the map.
    unsafe { core::intrinsics::atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(place, old, new).1 }
}

/// The bucket with this number, counted round.
#[inline(always)]
fn bucket(number: u32, buckets: u32) -> Option<*mut Bucket> {
    let number = if number >= buckets {
        number - buckets
    } else {
        number
    };
    LIVE_SLOTS.get_ptr_mut(number)
}

#[inline(always)]
fn place(bucket: *mut Bucket, slot: usize) -> Place {
    // SAFETY: callers pass slots below BUCKET_SLOTS.
    unsafe {
        Place {
            key: (&raw mut (*bucket).keys).cast::<u64>().add(slot),
            value: (&raw mut (*bucket).values).cast::<LiveValue>().add(slot),
        }
    }
}

#[inline(always)]
fn load(key: *mut u64) -> u64 {
    // SAFETY: a pointer into a value of the map.
    unsafe { key.read_volatile() }
}

/// The slot of a bucket that holds `key` (0: a free one).
#[inline(always)]
fn find_in(bucket: *mut Bucket, key: u64) -> Option<Place> {
    let mut slot = 0;
    while slot < BUCKET_SLOTS {
        let place = place(bucket, slot);
        if load(place.key) == key {
            return Some(place);
        }
        slot += 1;
    }
    None
}

/// Frees the slot if it still holds `key`; its value.
#[inline(always)]
fn take_from(place: Place, key: u64) -> Option<LiveValue> {
    // SAFETY: a pointer into a value of the map.
    let value = unsafe { place.value.read() };
    exchange(place.key, key, 0).then_some(value)
}

/// Claims a free slot of the bucket, fills it and publishes the key.
#[inline(always)]
fn put_into(bucket: *mut Bucket, key: u64, value: &LiveValue) -> bool {
    let mut slot = 0;
    while slot < BUCKET_SLOTS {
        let place = place(bucket, slot);
        if load(place.key) == 0 && exchange(place.key, 0, CLAIMED) {
            // SAFETY: pointers into a value of the map; the claim keeps others
            // away.
            unsafe {
                place.value.write_volatile(*value);
                place.key.write_volatile(key);
            }
            return true;
        }
        slot += 1;
    }
    false
}

#[inline(always)]
fn spilled(home: *mut Bucket) -> *mut u64 {
    // SAFETY: a value of the map.
    unsafe { &raw mut (*home).spilled }
}

#[inline(always)]
fn buckets() -> u32 {
    let Some(control) = CONTROL.get_ptr(0) else {
        return 0;
    };
    // SAFETY: the array lives as long as the program.
    unsafe { (*control).buckets }
}

impl LiveTable for Slots {
    #[inline(always)]
    fn take(address: u64) -> Option<LiveValue> {
        let buckets = buckets();
        let key = slot_key(address, PROCESS);
        if key <= CLAIMED {
            return None;
        }
        let number = bucket_of(key, buckets);
        let home = bucket(number, buckets)?;
        if let Some(place) = find_in(home, key) {
            return take_from(place, key);
        }
        if load(spilled(home)) == 0 {
            return None;
        }
        let mut step = 1;
        while step < PROBE_BUCKETS {
            let place = find_in(bucket(number + step, buckets)?, key);
            if let Some(place) = place {
                let value = take_from(place, key)?;
                add(spilled(home), u64::MAX);
                return Some(value);
            }
            step += 1;
        }
        None
    }

    #[inline(always)]
    fn insert(address: u64, value: &LiveValue) -> bool {
        // The allocator hands the address out again: was its free missed?
        if let Some(old) = Self::take(address) {
            stacks::subtract(&old);
            count(Counter::ReplacedBlock);
        }
        let buckets = buckets();
        let key = slot_key(address, PROCESS);
        if key <= CLAIMED {
            // No allocator's address; it would be taken for a mark.
            count(Counter::LiveOther);
            return false;
        }
        let number = bucket_of(key, buckets);
        let Some(home) = bucket(number, buckets) else {
            return false;
        };
        if put_into(home, key, value) {
            return true;
        }
        let mut step = 1;
        while step < PROBE_BUCKETS {
            let Some(next) = bucket(number + step, buckets) else {
                return false;
            };
            // Counted before it can be found.
            add(spilled(home), 1);
            if put_into(next, key, value) {
                return true;
            }
            add(spilled(home), u64::MAX);
            step += 1;
        }
        count(Counter::LiveFull);
        false
    }
}
