//! The control record, mapped into our memory: switching is one store between
//! two readings of the clock.

use std::{os::fd::AsFd, ptr::NonNull};

use anyhow::{Context as _, Result};
use leaktrace_common::control::{Control, USUAL_TRAMPOLINE};
use rustix::{
    mm::{MapFlags, ProtFlags, mmap, munmap},
    time::{ClockId, clock_gettime},
};

use crate::model::Edge;

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
        page.write(|control| control.max_size = u64::MAX);
        page.set_trampoline(USUAL_TRAMPOLINE);
        Ok(page)
    }

    fn write(&self, change: impl FnOnce(&mut Control)) {
        // SAFETY: the mapping is at least as large as the record and lives as
        // long as self; the kernel only reads.
        let mut control = unsafe { self.record.as_ptr().read_volatile() };
        change(&mut control);
        // SAFETY: as above.
        unsafe { self.record.as_ptr().write_volatile(control) };
    }

    /// Which process is traced; `filter` when the links don't tell.
    pub fn set_target(&self, tgid: u32, filter: bool) {
        self.write(|control| {
            control.target_tgid = tgid;
            control.only_tgid = if filter { tgid } else { 0 };
        });
    }

    /// Which set of probes counts.
    pub fn set_generation(&self, generation: u8) {
        self.write(|control| control.generation = u32::from(generation));
    }

    /// How many buckets the live table has.
    pub(super) fn set_buckets(&self, buckets: u32) {
        self.write(|control| control.buckets = buckets);
    }

    /// Sizes outside these bounds are not recorded, bytes.
    pub fn set_sizes(&self, min: u64, max: u64) {
        self.write(|control| {
            control.min_size = min;
            control.max_size = max;
        });
    }

    /// Where the kernel's return trampoline is in the target.
    pub fn set_trampoline(&self, address: u64) {
        self.write(|control| control.trampoline = address);
    }

    /// Lets events count from now on, or not any more; tells when that was.
    pub fn enable(&self, enabled: bool) -> Edge {
        let earliest_ns = monotonic_ns();
        // SAFETY: as in `write`; a single aligned store.
        unsafe { (&raw mut (*self.record.as_ptr()).enabled).write_volatile(u32::from(enabled)) };
        let latest_ns = monotonic_ns();
        Edge {
            earliest_ns,
            latest_ns,
        }
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
