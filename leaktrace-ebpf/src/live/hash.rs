//! The live table as a hash map of the kernel's.

use leaktrace_common::{
    counter::Counter,
    live::{LiveKey, LiveValue},
};

use super::LiveTable;
use crate::{counters::count, maps::LIVE, stacks};

/// The traced process, in leaktrace's numbering; one for now.
const PROCESS: u64 = 0;

const BPF_NOEXIST: u64 = 1;
const ENOENT: i32 = -2;
const E2BIG: i32 = -7;
const ENOMEM: i32 = -12;
const EBUSY: i32 = -16;
const EEXIST: i32 = -17;
const EDEADLK: i32 = -35;
const ETIMEDOUT: i32 = -110;

#[inline(always)]
fn key(address: u64) -> LiveKey {
    LiveKey {
        address,
        process: PROCESS,
    }
}

/// See the module.
pub struct Hash;

impl LiveTable for Hash {
    const EXCHANGES: bool = false;

    #[inline(always)]
    fn take(address: u64) -> Option<LiveValue> {
        let key = key(address);
        // SAFETY: an entry goes only when its block is freed, which is now.
        let value = unsafe { *LIVE.get_ptr(key)? };
        match LIVE.remove(key) {
            Ok(()) => return Some(value),
            Err(ENOENT) => return None,
            Err(_) => {}
        }
        // Newer kernels may refuse a bucket's lock (-EBUSY, -EDEADLK, -ETIMEDOUT).
        match LIVE.remove(key) {
            Ok(()) => {
                count(Counter::FreeRetried);
                Some(value)
            }
            Err(error) => {
                count(match error {
                    EBUSY => Counter::FreeBusy,
                    EDEADLK => Counter::FreeDeadlock,
                    ETIMEDOUT => Counter::FreeTimedOut,
                    _ => Counter::FreeOther,
                });
                None
            }
        }
    }

    #[inline(always)]
    fn insert(address: u64, value: &LiveValue) -> bool {
        let key = key(address);
        let mut result = LIVE.insert(key, value, BPF_NOEXIST);
        if result == Err(EEXIST) {
            // The allocator hands the address out again, so its free was missed.
            if let Some(old) = Self::take(address) {
                stacks::subtract(&old);
            }
            count(Counter::ReplacedBlock);
            result = LIVE.insert(key, value, BPF_NOEXIST);
        }
        let Err(error) = result else { return true };
        count(match error {
            E2BIG => Counter::LiveFull,
            ENOMEM => Counter::LiveNoMemory,
            EBUSY => Counter::LiveBusy,
            EDEADLK => Counter::LiveDeadlock,
            ETIMEDOUT => Counter::LiveTimedOut,
            _ => Counter::LiveOther,
        });
        false
    }
}
