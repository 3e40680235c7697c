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
    /// How many more times the target may exec; at one more, `enabled` is
    /// cleared: another image is another program.
    pub execs_left: u32,
    /// Where the kernel's return trampoline is mapped in the target (the
    /// `[uprobes]` mapping): what a pending return probe leaves at the top of
    /// the stack. [`UNKNOWN_TRAMPOLINE`] until that is known.
    pub trampoline: u64,
    /// Smallest requested size that is recorded, bytes.
    pub min_size: u64,
    /// Largest requested size that is recorded, bytes.
    pub max_size: u64,
    /// The generation of the mappings that hold; its lowest bit tells which of
    /// the two tables they are in.
    pub mappings: u32,
    /// The generation that userspace has begun to write, in place of the one
    /// before the last: stored before anything of it is. A walk that began two
    /// generations earlier may have met both.
    pub mappings_begun: u32,
    /// How stacks are walked: [`crate::walk::flag::FRAME_POINTERS`] or 0.
    pub walk_flags: u32,
    /// How often a walk met an address that no mapping holds: userspace then
    /// looks for new mappings. Counts of several CPUs may be lost, changes not.
    pub unmapped: u32,
    /// `CLOCK_MONOTONIC` at the exec that cleared `enabled`, nanoseconds; 0
    /// before.
    pub exec_ns: u64,
    /// The PID namespace of the target: the inode of `/proc/PID/ns/pid`; 0 for the
    /// first one, whose ids need no translation.
    pub namespace_inode: u64,
    /// Its device, as the kernel writes it.
    pub namespace_device: u64,
}

const _: () = assert!(size_of::<Control>() == 88);

/// Not where a trampoline can be, nor any code.
pub const UNKNOWN_TRAMPOLINE: u64 = 1;

/// The trampoline is at the beginning of a page; pages are no smaller than this.
pub const PAGE_SIZE: u64 = 4096;

#[cfg(feature = "user")]
// SAFETY: integers only, no padding, every bit pattern is valid.
unsafe impl aya::Pod for Control {}
