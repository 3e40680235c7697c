//! The one record through which userspace steers the programs while they run.

/// Lives in a one-element, memory-mapped array, so that switching is a single
/// store.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Non-zero while events count. Set when every probe is in, cleared before
    /// the first one is taken out: otherwise an allocation could be seen
    /// without its free.
    pub enabled: u32,
    /// Only this thread group's events count; 0 leaves the choice to the link.
    /// Needed when a link can't be bound to the process, because its main
    /// thread has ended.
    pub only_tgid: u32,
    /// The traced thread group, for events that no link filters. This and
    /// `only_tgid` are ids in the PID namespace below.
    pub target_tgid: u32,
    /// How many buckets the live table has.
    pub buckets: u32,
    /// The set of probes whose entries count. While one set replaces another,
    /// both are in, and each call is to be seen once.
    pub generation: u32,
    /// How often the target's loader may have unloaded code: what is known of
    /// mappings may be outdated unless [`Mappings::unloads`] is the same.
    pub unloads: u32,
    /// Where the kernel's return trampoline is mapped in the target (the
    /// `[uprobes]` mapping): what a pending return probe leaves at the top of
    /// the stack. [`UNKNOWN_TRAMPOLINE`] until that is known.
    pub trampoline: u64,
    /// Smallest requested size that is recorded, bytes.
    pub min_size: u64,
    /// Largest requested size that is recorded, bytes.
    pub max_size: u64,
    /// The mappings that hold.
    pub mappings: Mappings,
    /// The generation that userspace has begun to write, in place of the one
    /// before the last: stored before anything of it is. A walk that began two
    /// generations earlier may have met both.
    pub mappings_begun: u32,
    /// How stacks are walked: [`crate::walk::flag::FRAME_POINTERS`] or 0.
    pub walk_flags: u32,
    /// How often a walk met an address that no mapping holds: userspace then
    /// looks for new mappings. Counts of several CPUs may be lost, changes not.
    pub unmapped: u32,
    /// How often the target's loader has told debuggers of a change: userspace
    /// then looks for new mappings, too.
    pub loader_changes: u32,
    /// What the loader was doing when it last told: one of [`loader`].
    pub loader_state: u32,
    /// How many more times the target may exec; at one more, `enabled` is
    /// cleared: another image is another program.
    pub execs_left: u32,
    /// From the function that the loader calls then, to where it says what it is
    /// doing (`r_debug.r_state`); 0 when that is not known.
    pub loader_state_distance: i64,
    /// `CLOCK_MONOTONIC` at the exec that cleared `enabled`, nanoseconds; 0
    /// before.
    pub exec_ns: u64,
    /// How long one of the kernel's ticks (jiffies) takes, nanoseconds; 0 when they
    /// can't be used as a clock.
    pub tick_ns: u64,
    /// `CLOCK_MONOTONIC` when the count of ticks was 0, nanoseconds, wrapping.
    pub ticks_epoch_ns: u64,
    /// The PID namespace of the target: the inode of `/proc/PID/ns/pid`; 0 for the
    /// first one, whose ids need no translation.
    pub namespace_inode: u64,
    /// Its device, as the kernel writes it.
    pub namespace_device: u64,
}

/// The generation of mappings, and what they take into account, in one word that
/// is stored and read at once.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mappings(pub u64);

impl Mappings {
    /// A generation that was read when there had been as many `unloads`.
    #[inline(always)]
    #[must_use]
    pub const fn new(generation: u32, unloads: u32) -> Self {
        Self(generation as u64 | (unloads as u64) << 32)
    }
    /// Its lowest bit tells which of the two tables they are in.
    #[inline(always)]
    #[must_use]
    pub const fn generation(self) -> u32 {
        self.0 as u32
    }
    /// What [`Control::unloads`] was before they were read.
    #[inline(always)]
    #[must_use]
    pub const fn unloads(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// What a loader is doing, in the words of its interface for debuggers
/// (`r_debug.r_state` of `<link.h>`), which it writes before it tells them.
pub mod loader {
    /// Nothing; what it was doing is done.
    pub const CONSISTENT: u32 = 0;
    /// About to add a file.
    pub const ADD: u32 = 1;
    /// About to remove one.
    pub const DELETE: u32 = 2;
}

const _: () = assert!(size_of::<Control>() == 128);

/// Not where a trampoline can be, nor any code.
pub const UNKNOWN_TRAMPOLINE: u64 = 1;

/// The trampoline is at the beginning of a page; pages are no smaller than this.
pub const PAGE_SIZE: u64 = 4096;

#[cfg(feature = "user")]
// SAFETY: integers only, no padding, every bit pattern is valid.
unsafe impl aya::Pod for Control {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_have_a_generation_and_what_it_takes_into_account() {
        let mappings = Mappings::new(u32::MAX, 7);
        assert_eq!((mappings.generation(), mappings.unloads()), (u32::MAX, 7));
        assert_eq!(Mappings::default(), Mappings::new(0, 0));
    }
}
