//! The control record, mapped into our memory: switching is one store between
//! two readings of the clock.

use std::{os::fd::AsFd, ptr::NonNull};

use anyhow::{Context as _, Result};
use leaktrace_common::{
    control::{Control, Mappings, UNKNOWN_TRAMPOLINE, loader},
    walk::flag,
};
use rustix::{
    mm::{MapFlags, ProtFlags, mmap, munmap},
    time::{ClockId, clock_gettime},
};

use crate::{
    model::Edge,
    target::process_id::{Namespace, ProcessId},
};

/// The place of a field of the record.
macro_rules! field {
    ($name:ident) => {
        // SAFETY: only computes an address inside the record.
        |control: *mut Control| unsafe { &raw mut (*control).$name }
    };
}

/// The mapped control record of a loaded object.
pub struct ControlPage {
    record: NonNull<Control>,
    length: usize,
}

// SAFETY: the mapping belongs to this value alone; the kernel side reads
// single aligned words of it.
unsafe impl Send for ControlPage {}
// SAFETY: as above; writers from several threads could only lose a change of
// one of them, and there is one.
unsafe impl Sync for ControlPage {}

impl ControlPage {
    pub(super) fn map(map: impl AsFd) -> Result<Self> {
        let length = rustix::param::page_size();
        // SAFETY: a new mapping, nothing existing is replaced.
        let address = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                map,
                0,
            )
        }
        .context("mapping the control record")?;
        let record = NonNull::new(address.cast()).context("the control record is mapped at 0")?;
        let page = Self { record, length };
        page.set_sizes(0, u64::MAX);
        page.set_trampoline(None);
        Ok(page)
    }

    /// Stores one field, and nothing else: the programs change others.
    fn store<T>(&self, field: impl FnOnce(*mut Control) -> *mut T, value: T) {
        // SAFETY: the mapping is at least as large as the record and lives as
        // long as self; callers name a field of it.
        unsafe { field(self.record.as_ptr()).write_volatile(value) };
    }

    /// Reads one field, which the programs may write at any time.
    fn load<T>(&self, field: impl FnOnce(*mut Control) -> *mut T) -> T {
        // SAFETY: as in `store`.
        unsafe { field(self.record.as_ptr()).read_volatile() }
    }

    /// Which process is traced; `filter` when the links don't tell.
    pub fn set_target(&self, process: ProcessId, filter: bool) {
        let ProcessId { tgid, namespace } = process;
        let Namespace { inode, device } = namespace.unwrap_or_default();
        self.store(field!(namespace_device), device);
        self.store(field!(namespace_inode), inode);
        self.store(field!(target_tgid), tgid);
        self.store(field!(only_tgid), if filter { tgid } else { 0 });
    }

    /// How often the target may exec before its events no longer count.
    pub fn set_execs(&self, expected: u32) {
        self.store(field!(execs_left), expected);
    }

    /// Whether stacks are walked by frame pointers alone.
    pub fn set_frame_pointers(&self, alone: bool) {
        let flags = if alone { flag::FRAME_POINTERS } else { 0 };
        self.store(field!(walk_flags), flags);
    }

    /// Says that mappings of this generation are about to be written.
    pub(super) fn begin_mappings(&self, generation: u32) {
        self.store(field!(mappings_begun), generation);
    }

    /// These mappings hold.
    pub(super) fn set_mappings(&self, mappings: Mappings) {
        self.store(field!(mappings), mappings);
    }

    /// Changes when a walk meets an address in no known mapping.
    pub fn unmapped(&self) -> u32 {
        self.load(field!(unmapped))
    }

    /// Changes when the target's loader adds or removes code.
    pub fn loader_changes(&self) -> u32 {
        self.load(field!(loader_changes))
    }

    /// Changes when the target's loader may have removed code.
    pub fn unloads(&self) -> u32 {
        self.load(field!(unloads))
    }

    /// The loader may have told of changes that no program saw: no mapping is trusted
    /// until they have been read again.
    pub fn distrust_mappings(&self) {
        /// A program that adds 1 at the same time may undo this, but not so that a
        /// number is what it was.
        const STEP: u32 = 1 << 16;
        self.store(field!(unloads), self.unloads().wrapping_add(STEP));
        let changes = self.loader_changes();
        self.store(field!(loader_changes), changes.wrapping_add(STEP));
    }

    /// Whether the target's loader is just removing code that is mapped still, or was a
    /// moment ago.
    pub fn is_unloading(&self) -> bool {
        self.load(field!(loader_state_distance)) != 0
            && self.load(field!(loader_state)) == loader::DELETE
    }

    /// From the function that the loader calls for debuggers to where it says what
    /// it is doing; 0 when that is not known.
    pub fn set_loader_state_distance(&self, distance: i64) {
        self.store(field!(loader_state_distance), distance);
    }

    /// Which set of probes counts.
    pub fn set_generation(&self, generation: u8) {
        self.store(field!(generation), u32::from(generation));
    }

    /// How many buckets the live table has.
    pub(super) fn set_buckets(&self, buckets: u32) {
        self.store(field!(buckets), buckets);
    }

    /// Sizes outside these bounds are not recorded, bytes.
    pub fn set_sizes(&self, min: u64, max: u64) {
        self.store(field!(min_size), min);
        self.store(field!(max_size), max);
    }

    /// Where the kernel's return trampoline is in the target, if that is known.
    pub fn set_trampoline(&self, address: Option<u64>) {
        self.store(field!(trampoline), address.unwrap_or(UNKNOWN_TRAMPOLINE));
    }

    /// Lets events count from now on, or not any more; tells when that was.
    pub fn enable(&self, enabled: bool) -> Edge {
        let earliest_ns = monotonic_ns();
        self.store(field!(enabled), u32::from(enabled));
        let latest_ns = monotonic_ns();
        Edge {
            earliest_ns,
            latest_ns,
        }
    }

    /// When an exec of the target ended the counting, if one has.
    pub fn exec_edge(&self) -> Option<Edge> {
        let at = self.load(field!(exec_ns));
        (at != 0).then_some(Edge {
            earliest_ns: at,
            latest_ns: at,
        })
    }
}

impl Drop for ControlPage {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, unmapped only here. Failure leaves a page.
        let _ = unsafe { munmap(self.record.as_ptr().cast(), self.length) };
    }
}

/// `CLOCK_MONOTONIC`, the clock of `bpf_ktime_get_ns`, nanoseconds.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
