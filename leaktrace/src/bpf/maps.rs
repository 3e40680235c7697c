//! The maps of a loaded object, as the rest of the program reads them. Shared
//! between threads: reading needs no lock, the kernel has its own.

use std::os::fd::BorrowedFd;

use anyhow::{Context as _, Result};
use aya::Pod;
use leaktrace_common::{
    counter::{COUNTERS, CounterBlock, NESTED_ROLES},
    in_flight::InFlight,
    live::{LiveKey, LiveValue},
    stack::{NOT_STORED, StackRecord, StackSums},
};

use super::{
    batch::{self, Shape},
    control::ControlPage,
    object::{MapSet, possible_cpus},
    slots::LiveSlots,
    syscall,
};
use crate::model::Sums;

/// The maps, and the control record among them.
pub struct Maps {
    maps: MapSet,
    control: ControlPage,
    slots: LiveSlots,
    batched: bool,
    cpus: usize,
}

impl Maps {
    /// Takes the maps of a loaded object.
    pub(super) fn new(maps: MapSet, batched: bool) -> Result<Self> {
        let control = ControlPage::map(maps.fd("CONTROL")?)?;
        let buckets = maps.max_entries("LIVE_SLOTS")?;
        control.set_buckets(buckets);
        let slots = LiveSlots::map(maps.fd("LIVE_SLOTS")?, buckets)?;
        let maps = Self {
            maps,
            control,
            slots,
            batched,
            cpus: possible_cpus(),
        };
        // Blocks whose stack can't be stored are accounted here.
        let sums = vec![0_u8; size_of::<StackSums>() * maps.cpus];
        syscall::update(maps.fd("SUMS")?, &NOT_STORED.to_ne_bytes(), &sums)
            .context("preparing the table of sums")?;
        Ok(maps)
    }

    /// The control record.
    #[must_use]
    pub fn control(&self) -> &ControlPage {
        &self.control
    }

    pub(super) fn set(&self) -> &MapSet {
        &self.maps
    }

    fn fd(&self, name: &str) -> Result<BorrowedFd<'_>> {
        self.maps.fd(name)
    }

    /// All counters, summed over CPUs.
    pub fn counters(&self) -> Result<CounterBlock> {
        let mut sum = CounterBlock::default();
        for block in self.per_cpu::<CounterBlock>("COUNTERS", &0_u32.to_ne_bytes())? {
            for index in 0..COUNTERS {
                sum.events[index] += block.events[index];
            }
            for outer in 0..NESTED_ROLES {
                for inner in 0..NESTED_ROLES {
                    sum.nested[outer][inner] += block.nested[outer][inner];
                }
            }
        }
        Ok(sum)
    }

    /// Calls that [`Program::Tally`] has seen.
    pub fn tally(&self) -> Result<u64> {
        Ok(self
            .per_cpu::<u64>("TALLY", &0_u32.to_ne_bytes())?
            .into_iter()
            .sum())
    }

    /// The sums of every stack, by its id.
    pub fn sums(&self) -> Result<Vec<(u64, Sums)>> {
        let shape = Shape {
            key: 8,
            value: size_of::<StackSums>() * self.cpus,
        };
        let mut all = Vec::new();
        batch::for_each(self.fd("SUMS")?, shape, self.batched, &mut |key, value| {
            let mut sums = Sums::default();
            for chunk in value.chunks_exact(size_of::<StackSums>()) {
                let one: StackSums = from_bytes(chunk);
                sums.alloc_bytes = sums.alloc_bytes.wrapping_add(one.alloc_bytes);
                sums.alloc_blocks = sums.alloc_blocks.wrapping_add(one.alloc_blocks);
                sums.freed_bytes = sums.freed_bytes.wrapping_add(one.freed_bytes);
                sums.freed_blocks = sums.freed_blocks.wrapping_add(one.freed_blocks);
            }
            all.push((from_bytes(key), sums));
        })
        .context("reading the sums")?;
        Ok(all)
    }

    /// The frames of one stack; `None` when none has this id.
    pub fn stack(&self, id: u64) -> Result<Option<Box<StackRecord>>> {
        let mut bytes = vec![0_u8; size_of::<StackRecord>()];
        match syscall::lookup(self.fd("STACKS")?, &id.to_ne_bytes(), &mut bytes) {
            Ok(()) => Ok(Some(Box::new(from_bytes(&bytes)))),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error).context("reading a stack"),
        }
    }

    /// Gives every live block to `visit`, those that a realloc in flight has
    /// taken out included.
    pub fn for_each_block(&self, visit: &mut dyn FnMut(LiveKey, LiveValue)) -> Result<()> {
        // Of the two forms of the table one is empty.
        self.slots.for_each(visit);
        let shape = Shape {
            key: size_of::<LiveKey>(),
            value: size_of::<LiveValue>(),
        };
        batch::for_each(self.fd("LIVE")?, shape, self.batched, &mut |key, value| {
            visit(from_bytes(key), from_bytes(value));
        })
        .context("reading the live blocks")?;
        let shape = Shape {
            key: size_of::<u32>(),
            value: size_of::<InFlight>(),
        };
        batch::for_each(
            self.fd("IN_FLIGHT")?,
            shape,
            self.batched,
            &mut |_, value| {
                let record: InFlight = from_bytes(value);
                if record.stack_pointer != 0 && record.old.time_ns != 0 {
                    visit(
                        LiveKey {
                            address: record.pointer,
                            process: 0,
                        },
                        record.old,
                    );
                }
            },
        )
        .context("reading the calls in flight")
    }

    fn per_cpu<T: Pod>(&self, map: &str, key: &[u8]) -> Result<Vec<T>> {
        let stride = size_of::<T>().next_multiple_of(8);
        let mut bytes = vec![0_u8; stride * self.cpus];
        syscall::lookup(self.fd(map)?, key, &mut bytes)
            .with_context(|| format!("reading map {map}"))?;
        Ok(bytes.chunks_exact(stride).map(from_bytes).collect())
    }
}

/// Reads a plain value from the front of `bytes`, which must be long enough.
fn from_bytes<T: Pod>(bytes: &[u8]) -> T {
    assert!(
        bytes.len() >= size_of::<T>(),
        "a map's value is shorter than its type"
    );
    // SAFETY: long enough, and `Pod` allows every bit pattern.
    unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
}
