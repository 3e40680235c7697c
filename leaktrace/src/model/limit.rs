//! Limits that a growing process runs into, and when. Forecasts are made by
//! [`crate::forecast`].

use std::time::Duration;

/// What a process may have only so much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LimitKind {
    /// `memory.max` (version 1: `memory.limit_in_bytes`) of its cgroup, or of one
    /// above it.
    CgroupMemory,
    /// `memory.high` of its cgroup, or of one above it: beyond, it is slowed down.
    CgroupHigh,
    /// `RLIMIT_AS`.
    AddressSpace,
    /// `RLIMIT_DATA`.
    Data,
    /// Memory of the machine, with what is free of its swap.
    Machine,
    /// `RLIMIT_NOFILE`.
    Descriptors,
    /// `RLIMIT_NPROC`: threads of one user.
    UserThreads,
    /// `pids.max` of its cgroup, or of one above it.
    CgroupThreads,
    /// Threads of the machine (`threads-max`, `pid_max`).
    MachineThreads,
    /// `vm.max_map_count`: mappings of one process.
    Mappings,
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    /// Memory, in bytes.
    Memory,
    /// Open descriptors.
    Descriptors,
    /// Threads.
    Threads,
    /// Mappings.
    Mappings,
}

impl LimitKind {
    /// What it limits.
    #[must_use]
    pub const fn resource(self) -> Resource {
        match self {
            Self::CgroupMemory
            | Self::CgroupHigh
            | Self::AddressSpace
            | Self::Data
            | Self::Machine => Resource::Memory,
            Self::Descriptors => Resource::Descriptors,
            Self::UserThreads | Self::CgroupThreads | Self::MachineThreads => Resource::Threads,
            Self::Mappings => Resource::Mappings,
        }
    }
}

/// A limit and how far it is, in bytes or in things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Which.
    pub kind: LimitKind,
    /// How much there may be. For [`LimitKind::Machine`], how much memory and
    /// swap the machine has.
    pub most: u64,
    /// How much more fits.
    pub room: u64,
}

/// When a limit is reached if growth goes on as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forecast {
    /// The limit.
    pub limit: Limit,
    /// Time until then, at the likeliest rate.
    pub likely: Duration,
    /// At the highest rate.
    pub earliest: Duration,
    /// At the lowest rate; `None` when it may never be reached.
    pub latest: Option<Duration>,
}
