//! The maps of a loaded object, as the rest of the program reads them. Shared
//! between threads: reading needs no lock, the kernel has its own.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    thread,
};

use anyhow::{Context as _, Result};
use aya::Pod;
use leaktrace_common::{
    counter::{COUNTERS, CounterBlock, NESTED_ROLES},
    in_flight::InFlight,
    live::{Bucket, LiveKey, LiveValue},
    stack::{NOT_STORED, StackRecord, StackSums},
    unwind::Mapping,
};
use memmap2::Mmap;

use super::{
    batch::{self, Shape},
    control::ControlPage,
    object::{MapSet, possible_cpus},
    slots::LiveSlots,
    syscall,
    unwind_maps::UnwindMaps,
};
use crate::model::Sums;

/// The maps, and the control record among them.
pub struct Maps {
    maps: MapSet,
    control: ControlPage,
    slots: LiveSlots,
    unwind: UnwindMaps,
    /// The program that lets the others know files, where they can ask for these.
    learn_file: Option<OwnedFd>,
    buckets: u32,
    batched: bool,
    cpus: usize,
}

impl Maps {
    /// Takes the maps of a loaded object.
    pub(super) fn new(maps: MapSet, learn_file: Option<OwnedFd>, batched: bool) -> Result<Self> {
        let control = ControlPage::map(maps.fd("CONTROL")?)?;
        let buckets = maps.max_entries("LIVE_SLOTS")?;
        let slots = LiveSlots::map(maps.fd("LIVE_SLOTS")?, buckets)?;
        let unwind = UnwindMaps::map(&maps)?;
        let maps = Self {
            maps,
            control,
            slots,
            unwind,
            learn_file,
            buckets,
            batched,
            cpus: possible_cpus()?,
        };
        maps.control.set_buckets(maps.trial_buckets());
        maps.prepare_sums()?;
        Ok(maps)
    }

    /// Blocks whose stack can't be stored are accounted here.
    fn prepare_sums(&self) -> Result<()> {
        let sums = vec![0_u8; size_of::<StackSums>() * self.cpus];
        syscall::update(self.fd("SUMS")?, &NOT_STORED.to_ne_bytes(), &sums)
            .context("preparing the table of sums")
    }

    /// The part of the live table that is used until [`Self::end_trial`], so
    /// that not all of it need be cleared then.
    fn trial_buckets(&self) -> u32 {
        const ENOUGH: u32 = 1024;
        self.buckets.min(ENOUGH)
    }

    /// Forgets everything that the programs have seen up to now: they were
    /// tried on somebody else than the target. No probe that counts may be in,
    /// and none of those that did may still be on its way out.
    ///
    /// # Errors
    /// When a map can't be changed.
    pub fn end_trial(&self) -> Result<()> {
        self.forget_trial().context("clearing the maps")
    }

    fn forget_trial(&self) -> Result<()> {
        let zeros = vec![0_u8; size_of::<CounterBlock>() * self.cpus];
        syscall::update(self.fd("COUNTERS")?, &0_u32.to_ne_bytes(), &zeros)?;
        for (map, shape) in [
            ("SUMS", self.sums_shape()),
            ("STACKS", shape_of::<u64, StackRecord>()),
            ("IN_FLIGHT", shape_of::<u32, InFlight>()),
            ("LIVE", shape_of::<LiveKey, LiveValue>()),
        ] {
            let map = self.fd(map)?;
            let mut keys = Vec::new();
            batch::for_each(map, shape, self.batched, &mut |key, _| {
                keys.push(key.to_vec());
            })?;
            for key in keys {
                syscall::delete(map, &key)?;
            }
        }
        self.prepare_sums()?;
        let empty = vec![0_u8; size_of::<Bucket>()];
        for bucket in self.slots.used(self.trial_buckets()) {
            syscall::update(self.fd("LIVE_SLOTS")?, &bucket.to_ne_bytes(), &empty)?;
        }
        self.control.set_buckets(self.buckets);
        Ok(())
    }

    /// The control record.
    #[must_use]
    pub fn control(&self) -> &ControlPage {
        &self.control
    }

    /// The maps by which stacks are unwound.
    #[must_use]
    pub fn unwind(&self) -> &UnwindMaps {
        &self.unwind
    }

    /// Publishes the process's executable mappings, which were read when its loader
    /// had `unloads` (see [`ControlPage::unloads`]).
    pub fn publish_mappings(&self, mappings: &[Mapping], unloads: u32) {
        self.unwind.publish(&self.control, mappings, unloads);
    }

    /// Lets programs that ask the kernel about mappings know a file by its number,
    /// as long as it is kept open. Nothing where they can't ask.
    ///
    /// # Errors
    /// When there are too many, or leaktrace's own mappings never stand still.
    pub fn publish_file_number(&self, file: &Mmap, number: u32) -> io::Result<()> {
        const TRIES: u32 = 1000;
        let Some(program) = &self.learn_file else {
            return Ok(());
        };
        let arguments = [file.as_ptr() as u64, number.into()];
        for _ in 0..TRIES {
            let result = syscall::run_raw_tracepoint(program.as_fd(), &arguments)?;
            if result == 0 {
                return Ok(());
            }
            let error = io::Error::from_raw_os_error(result.wrapping_neg());
            if error.kind() != io::ErrorKind::ResourceBusy {
                return Err(error);
            }
            // Another thread is just changing leaktrace's mappings.
            thread::yield_now();
        }
        Err(io::ErrorKind::ResourceBusy.into())
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
        let shape = self.sums_shape();
        let mut all = Vec::new();
        batch::for_each(self.fd("SUMS")?, shape, self.batched, &mut |key, value| {
            let mut sums = Sums::default();
            for chunk in value.chunks_exact(size_of::<StackSums>()) {
                let one: StackSums = from_bytes(chunk);
                sums.alloc_bytes = sums.alloc_bytes.wrapping_add(one.alloc_bytes);
                sums.alloc_blocks = sums.alloc_blocks.wrapping_add(one.alloc_blocks);
                sums.freed_bytes = sums.freed_bytes.wrapping_add(one.freed_bytes);
                for (sum, freed) in sums.freed_by_age.iter_mut().zip(one.freed_by_age) {
                    *sum = sum.wrapping_add(freed);
                    sums.freed_blocks = sums.freed_blocks.wrapping_add(freed);
                }
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
        let shape = shape_of::<LiveKey, LiveValue>();
        batch::for_each(self.fd("LIVE")?, shape, self.batched, &mut |key, value| {
            visit(from_bytes(key), from_bytes(value));
        })
        .context("reading the live blocks")?;
        let shape = shape_of::<u32, InFlight>();
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

    fn sums_shape(&self) -> Shape {
        Shape {
            key: size_of::<u64>(),
            value: size_of::<StackSums>() * self.cpus,
        }
    }

    fn per_cpu<T: Pod>(&self, map: &str, key: &[u8]) -> Result<Vec<T>> {
        let stride = size_of::<T>().next_multiple_of(8);
        let mut bytes = vec![0_u8; stride * self.cpus];
        syscall::lookup(self.fd(map)?, key, &mut bytes)
            .with_context(|| format!("reading map {map}"))?;
        Ok(bytes.chunks_exact(stride).map(from_bytes).collect())
    }
}

/// The shape of a map with these keys and values.
fn shape_of<K, V>() -> Shape {
    Shape {
        key: size_of::<K>(),
        value: size_of::<V>(),
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
