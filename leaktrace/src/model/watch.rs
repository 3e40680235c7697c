//! How a process was seen to move without any probes: what
//! [`crate::doctor::watch`] finds.

use std::{sync::Arc, time::Duration};

use super::{Forecast, MemorySample, ProcessInfo, Resource, Trend, Verdict};

/// Something of a process that may grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Quantity {
    /// RSS and swap together.
    Held,
    /// Anonymous memory, swap included.
    Anonymous,
    /// Mappings that glibc's malloc made: size, not what is used of them.
    Heap,
    /// Other anonymous mappings: size.
    OtherMappings,
    /// Files, as far as they are in memory.
    Files,
    /// Shared memory, as far as it is in memory.
    Shared,
    /// Open descriptors.
    Descriptors,
    /// Threads.
    Threads,
    /// How many mappings there are.
    MappingCount,
}

impl Quantity {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 9] = [
        Self::Held,
        Self::Anonymous,
        Self::Heap,
        Self::OtherMappings,
        Self::Files,
        Self::Shared,
        Self::Descriptors,
        Self::Threads,
        Self::MappingCount,
    ];

    /// Whether it is counted in bytes.
    #[must_use]
    pub const fn is_bytes(self) -> bool {
        !matches!(self, Self::Descriptors | Self::Threads | Self::MappingCount)
    }

    /// What runs into a limit when it grows; `None` for parts of another quantity.
    #[must_use]
    pub const fn resource(self) -> Option<Resource> {
        match self {
            Self::Held => Some(Resource::Memory),
            Self::Descriptors => Some(Resource::Descriptors),
            Self::Threads => Some(Resource::Threads),
            Self::MappingCount => Some(Resource::Mappings),
            _ => None,
        }
    }
}

/// How a quantity moved.
#[derive(Clone, Debug, PartialEq)]
pub struct Movement {
    /// Which.
    pub quantity: Quantity,
    /// What it was at the first look.
    pub first: u64,
    /// At the last look.
    pub last: u64,
    /// What that comes to.
    pub trend: Trend,
    /// Which limit it runs into first, and when.
    pub forecast: Option<Forecast>,
}

impl Movement {
    /// Less than these many bytes are no growth worth a word.
    const NOTEWORTHY_BYTES: u64 = 256 << 10;
    /// Neither are so few things.
    const NOTEWORTHY_COUNT: u64 = 3;

    /// Whether it grows, or may, when it is too early for a verdict.
    #[must_use]
    pub fn grows(&self) -> bool {
        let least = if self.quantity.is_bytes() {
            Self::NOTEWORTHY_BYTES
        } else {
            Self::NOTEWORTHY_COUNT
        };
        let change = self.last.saturating_sub(self.first);
        match self.trend.verdict {
            Verdict::Growing => change > 0,
            Verdict::Filling => change >= least,
            Verdict::TooEarly => change >= least && self.trend.rate.low > 0.0,
            _ => false,
        }
    }
}

/// What was seen.
#[derive(Clone, Debug)]
pub struct WatchReport {
    /// The process.
    pub process: ProcessInfo,
    /// How long it was looked at.
    pub elapsed: Duration,
    /// Why that ended.
    pub end: WatchEnd,
    /// Every quantity that could be read, in the order of [`Quantity::ALL`].
    pub movements: Vec<Movement>,
    /// What to do next, the most important first.
    pub advice: Vec<Advice>,
}

/// What to do about something that grows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Advice {
    /// malloc's heaps grow: trace malloc. What is free in glibc's main heap, and
    /// how large that is, where it could be found out.
    TraceHeap {
        /// Free bytes, and all.
        free: Option<(u64, u64)>,
    },
    /// The mappings of another allocator, of this name, grow: trace malloc.
    TraceAllocator(&'static str),
    /// More and more of what is mapped already is used: trace malloc.
    TraceInside,
    /// Anonymous mappings grow that are not malloc's. What grew most has this
    /// name, if any has one.
    Mappings {
        /// The name.
        mostly: Option<Arc<str>>,
        /// malloc's large blocks could not be told from them.
        may_be_blocks: bool,
    },
    /// Files; which one most.
    Files(Option<Arc<str>>),
    /// Shared memory; which most.
    Shared(Option<Arc<str>>),
    /// Descriptors.
    Descriptors,
    /// Threads.
    Threads,
    /// The time was too short to say that anything grows.
    LookLonger,
    /// Nothing grows.
    Nothing,
}

/// One look at a process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Glance {
    /// Since the first.
    pub at: Duration,
    /// Its memory, descriptors, threads, and cgroup.
    pub memory: MemorySample,
    /// [`Quantity::Heap`].
    pub heap: Option<u64>,
    /// [`Quantity::OtherMappings`].
    pub other_mappings: Option<u64>,
    /// [`Quantity::MappingCount`].
    pub mapping_count: Option<u64>,
    /// CPUs that it used since the look before.
    pub cpus: Option<f64>,
}

impl Glance {
    /// What it shows of a quantity.
    #[must_use]
    pub fn of(&self, quantity: Quantity) -> Option<u64> {
        let memory = &self.memory;
        let swap = memory.swap.unwrap_or(0);
        match quantity {
            Quantity::Held => Some(memory.rss? + swap),
            Quantity::Anonymous => Some(memory.rss_anon? + swap),
            Quantity::Heap => self.heap,
            Quantity::OtherMappings => self.other_mappings,
            Quantity::Files => memory.rss_file,
            Quantity::Shared => memory.rss_shmem,
            Quantity::Descriptors => memory.descriptors,
            Quantity::Threads => memory.threads,
            Quantity::MappingCount => self.mapping_count,
        }
    }
}

/// Why a watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchEnd {
    /// The time was over.
    Over,
    /// A signal (Ctrl-C).
    Interrupted,
    /// The process has ended.
    Exited,
}

impl WatchReport {
    /// How this quantity moved.
    #[must_use]
    pub fn movement(&self, quantity: Quantity) -> Option<&Movement> {
        self.movements
            .iter()
            .find(|movement| movement.quantity == quantity)
    }

    /// Whether this quantity grows.
    #[must_use]
    pub fn grows(&self, quantity: Quantity) -> bool {
        self.movement(quantity).is_some_and(Movement::grows)
    }
}
