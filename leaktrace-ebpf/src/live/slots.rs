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
    exchange::exchange,
    maps::{CONTROL, LIVE_SLOTS},
    stacks,
};

/// The traced process, in leaktrace's numbering; one for now.
const PROCESS: u64 = 0;

/// How often a free slot is looked for when others are faster: each time,
/// somebody else's block has found its place.
const ATTEMPTS: u32 = 8;

/// See the module.
pub struct Slots;

/// A place in the table.
#[derive(Clone, Copy)]
struct Place {
    key: *mut u64,
    value: *mut LiveValue,
}

/// Buckets are counted round.
#[inline(always)]
fn wrapped(number: u32, buckets: u32) -> u32 {
    if number >= buckets {
        number - buckets
    } else {
        number
    }
}

#[inline(always)]
fn place(bucket: *mut Bucket, slot: usize) -> Place {
    // SAFETY: callers pass slots of at most SLOT_MASK.
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

/// Claims a free slot, fills it and publishes the key; false when somebody else
/// was faster.
#[inline(always)]
fn put_into(place: Place, key: u64, value: &LiveValue) -> bool {
    if !exchange(place.key, 0, CLAIMED) {
        return false;
    }
    // SAFETY: pointers into a value of the map; the claim keeps others away.
    unsafe {
        place.value.write_volatile(*value);
        place.key.write_volatile(key);
    }
    true
}

/// [`find_spilled`] found nothing.
const NOWHERE: u64 = u64::MAX;
/// A place as a number: the bucket's, and in the low bits the slot's.
const SLOT_BITS: u32 = 3;
const SLOT_MASK: u64 = (1 << SLOT_BITS) - 1;
const _: () = assert!(BUCKET_SLOTS as u64 <= SLOT_MASK);
// With a slot of any number that fits the mask, a place is inside its bucket.
const _: () = assert!(
    size_of::<u64>() * (1 + BUCKET_SLOTS) + (SLOT_MASK as usize + 1) * size_of::<LiveValue>()
        <= size_of::<Bucket>()
);

/// Looks for `key` (0: a free slot) in the buckets after `home`.
///
/// A global function of numbers only: the verifier looks at it once, and not
/// again for each place that calls it and each way to there. That is most of
/// what it would have to do.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_spilled(key: u64, home: u32, buckets: u32) -> u64 {
    let mut step = 1;
    while step < PROBE_BUCKETS {
        let number = wrapped(home + step, buckets);
        let Some(bucket) = LIVE_SLOTS.get_ptr_mut(number) else {
            return NOWHERE;
        };
        let mut slot = 0;
        while slot < BUCKET_SLOTS {
            if load(place(bucket, slot).key) == key {
                return u64::from(number) << SLOT_BITS | slot as u64;
            }
            slot += 1;
        }
        step += 1;
    }
    NOWHERE
}

/// The place that [`find_spilled`] finds.
#[inline(always)]
fn spilled_place(key: u64, home: u32, buckets: u32) -> Option<Place> {
    let found = find_spilled(key, home, buckets);
    if found == NOWHERE {
        return None;
    }
    let bucket = LIVE_SLOTS.get_ptr_mut((found >> SLOT_BITS) as u32)?;
    Some(place(bucket, (found & SLOT_MASK) as usize))
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
    const EXCHANGES: bool = true;

    #[inline(always)]
    fn take(address: u64) -> Option<LiveValue> {
        let buckets = buckets();
        let key = slot_key(address, PROCESS);
        if key <= CLAIMED {
            return None;
        }
        let number = bucket_of(key, buckets);
        let home = LIVE_SLOTS.get_ptr_mut(number)?;
        if let Some(place) = find_in(home, key) {
            return take_from(place, key);
        }
        if load(spilled(home)) == 0 {
            return None;
        }
        let value = take_from(spilled_place(key, number, buckets)?, key)?;
        add(spilled(home), u64::MAX);
        Some(value)
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
        let Some(home) = LIVE_SLOTS.get_ptr_mut(number) else {
            return false;
        };
        if let Some(place) = find_in(home, 0)
            && put_into(place, key, value)
        {
            return true;
        }
        // Counted before it can be found.
        add(spilled(home), 1);
        let mut attempt = 0;
        while attempt < ATTEMPTS {
            let Some(place) = spilled_place(0, number, buckets) else {
                break;
            };
            if put_into(place, key, value) {
                return true;
            }
            attempt += 1;
        }
        add(spilled(home), u64::MAX);
        count(Counter::LiveFull);
        false
    }
}
