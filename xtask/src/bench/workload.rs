//! What is measured: loads, and what is done to them.

use std::process::Command;

use super::programs::Program;

/// A load with its arguments.
#[derive(Debug)]
pub struct Workload {
    pub name: &'static str,
    program: Program,
    arguments: &'static [&'static str],
    pub pace: Pace,
}

/// How fast a load allocates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As fast as it can. So many pairs are made before any are measured, that
    /// tables may fill and memory be in caches.
    Busy { warm_up_pairs: u64 },
    /// A pair each millisecond.
    Idle,
}

/// The mix holds 100 000 blocks, half of its pairs change any of them: three
/// pairs a block make most of the blocks known to a tracer that comes later.
const MIX_WARM_UP: u64 = 300_000;

/// The most that tracing can slow down.
pub const TIGHT: Workload = Workload {
    name: "tight pair, 4 frames",
    program: Program::Tight,
    arguments: &[],
    pace: Pace::Busy {
        warm_up_pairs: 20_000,
    },
};

/// The same as compilers make it unless told otherwise, and called from deeper.
pub const TIGHT_WITHOUT_FRAME_POINTERS: Workload = Workload {
    name: "tight pair, 10 frames, no frame pointers",
    program: Program::TightWithoutFramePointers,
    arguments: &["10"],
    ..TIGHT
};

/// Loads that compare tracers.
pub const BUSY: [Workload; 4] = [
    TIGHT,
    TIGHT_WITHOUT_FRAME_POINTERS,
    Workload {
        name: "mix, 1 thread",
        program: Program::Mix,
        arguments: &["1", "100000"],
        pace: Pace::Busy {
            warm_up_pairs: MIX_WARM_UP,
        },
    },
    Workload {
        name: "mix, 4 threads",
        program: Program::Mix,
        arguments: &["4", "100000"],
        pace: Pace::Busy {
            warm_up_pairs: MIX_WARM_UP,
        },
    },
];

/// A process that does next to nothing.
pub const IDLE: Workload = Workload {
    name: "idle, 1000 pairs/s",
    program: Program::Tight,
    arguments: &[],
    pace: Pace::Idle,
};

impl Workload {
    pub fn command(&self) -> Command {
        self.program.command(self.arguments)
    }

    /// Started by another program, with arguments of that one's.
    pub fn command_through(&self, mut wrapper: Command) -> Command {
        wrapper.arg(self.program.path()).args(self.arguments);
        wrapper
    }
}

/// What is done to a load while it is measured; rows come in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// Nothing, and never before.
    Untraced,
    /// Probes at leaktrace's sites whose programs do nothing.
    Floor,
    Leaktrace,
    /// Nothing any more, after the two above.
    Afterwards,
    Memleak,
    Heaptrack,
}

impl Subject {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Untraced => "untraced",
            Self::Floor => "empty probes (floor)",
            Self::Leaktrace => "leaktrace",
            Self::Afterwards => "after leaktrace",
            Self::Memleak => "memleak",
            Self::Heaptrack => "heaptrack",
        }
    }
}
