//! What the growth of a process's memory is made of. Made by
//! [`crate::explain`].

use std::sync::Arc;

/// Growth of RSS with swap since the start, and what it consists of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RssGrowth {
    /// How much more is held than at the start, in memory or swapped out, bytes.
    pub grown: u64,
    /// How much of that is in swap, more than at the start.
    pub swapped: u64,
    /// What traced blocks explain of it.
    pub traced: u64,
    /// What explains the rest, the largest first. With `traced` not more than
    /// `grown`.
    pub causes: Vec<Cause>,
}

/// One part of the growth that is not made of traced blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// What it is.
    pub kind: CauseKind,
    /// How much of the growth, bytes.
    pub bytes: u64,
    /// Which file, or which name of anonymous memory, grew most, if there is
    /// such.
    pub mostly: Option<Arc<str>>,
}

/// What memory can be that no traced block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CauseKind {
    /// What malloc's heaps have grown by beyond what is held: fragmented or
    /// retained.
    Kept {
        /// What is free in them now, when they could be walked, bytes.
        free: Option<u64>,
    },
    /// malloc's headers and rounding of the blocks that are held.
    Headers,
    /// malloc's heaps have grown by more than is held; but a filter left out
    /// blocks, so that what fills them is not known.
    FilteredOrKept,
    /// Anonymous mappings with a name.
    Named,
    /// Other anonymous mappings.
    Anonymous,
    /// Stacks of threads; how many threads there are more.
    Stacks(u64),
    /// Files.
    Files,
    /// Shared memory.
    Shared,
    /// Memory that was mapped before the trace and is used only now.
    TouchedLater,
    /// It could not be found out: the mappings could not be read.
    Unknown,
}

impl RssGrowth {
    /// Share of the growth that traced blocks explain, 0 to 1; 1 without growth.
    #[must_use]
    pub fn explained(&self) -> f64 {
        if self.grown == 0 {
            return 1.0;
        }
        self.traced as f64 / self.grown as f64
    }
}
