//! The live table as an array of ours, mapped into our memory: reading a
//! million blocks takes no system call.

use std::os::fd::AsFd;

use anyhow::{Context as _, Result};
use leaktrace_common::live::{Bucket, CLAIMED, LiveKey, LiveValue, slot_address};
use memmap2::{MmapOptions, MmapRaw};

/// The mapped table.
pub struct LiveSlots {
    memory: MmapRaw,
    buckets: usize,
}

impl LiveSlots {
    /// Maps the array with this many buckets.
    pub fn map(map: impl AsFd, buckets: u32) -> Result<Self> {
        use std::os::fd::AsRawFd as _;
        let buckets = buckets as usize;
        let memory = MmapOptions::new()
            .len(buckets * size_of::<Bucket>())
            .map_raw_read_only(map.as_fd().as_raw_fd())
            .context("mapping the table of live blocks")?;
        Ok(Self { memory, buckets })
    }

    /// Numbers of the buckets among the first `buckets` that hold something.
    pub fn used(&self, buckets: u32) -> Vec<u32> {
        let first = self.memory.as_ptr().cast::<Bucket>();
        (0..buckets.min(self.buckets as u32))
            .filter(|number| {
                // SAFETY: inside the mapping, which is page-aligned; volatile
                // since the programs write it.
                let (spilled, keys) = unsafe {
                    let bucket = first.add(*number as usize);
                    (
                        (&raw const (*bucket).spilled).read_volatile(),
                        (&raw const (*bucket).keys).read_volatile(),
                    )
                };
                spilled != 0 || keys.iter().any(|key| *key != 0)
            })
            .collect()
    }

    /// Gives every block to `visit`. While programs run, a block that comes or
    /// goes may be missed.
    pub fn for_each(&self, visit: &mut dyn FnMut(LiveKey, LiveValue)) {
        let buckets = self.memory.as_ptr().cast::<Bucket>();
        for number in 0..self.buckets {
            // SAFETY: inside the mapping, which is page-aligned.
            let bucket = unsafe { buckets.add(number) };
            // SAFETY: as above; volatile since the programs write it.
            let keys = unsafe { (&raw const (*bucket).keys).read_volatile() };
            for (slot, key) in keys
                .into_iter()
                .enumerate()
                .filter(|(_, key)| *key > CLAIMED)
            {
                // SAFETY: as above; `slot` is an index of both arrays.
                let (value, key_now) = unsafe {
                    (
                        (&raw const (*bucket).values[slot]).read_volatile(),
                        (&raw const (*bucket).keys[slot]).read_volatile(),
                    )
                };
                // Freed meanwhile, and perhaps somebody else's value.
                if key == key_now {
                    visit(
                        LiveKey {
                            address: slot_address(key, 0),
                            process: 0,
                        },
                        value,
                    );
                }
            }
        }
    }
}
