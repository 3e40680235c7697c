//! Ages of live blocks, computed from the live table only where they are
//! shown: that reads every block.

use std::{collections::HashMap, time::Duration};

use crate::model::Sums;

/// Which blocks count by their age.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgeFilter {
    /// Only blocks at least as old.
    pub min: Option<Duration>,
    /// Only blocks at most as old.
    pub max: Option<Duration>,
}

impl AgeFilter {
    /// Whether it leaves anything out.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.min.is_some() || self.max.is_some()
    }

    fn passes(&self, age: Duration) -> bool {
        self.min.is_none_or(|min| age >= min) && self.max.is_none_or(|max| age <= max)
    }
}

/// What the live table says of each stack.
#[derive(Clone, Debug)]
pub struct BlockAges {
    filter: AgeFilter,
    now_ns: u64,
    stacks: HashMap<u64, Stack>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Stack {
    oldest_ns: u64,
    bytes: u64,
    blocks: u64,
}

impl BlockAges {
    /// Of blocks as they are at `now_ns` (`CLOCK_MONOTONIC`).
    #[must_use]
    pub fn new(filter: AgeFilter, now_ns: u64) -> Self {
        Self {
            filter,
            now_ns,
            stacks: HashMap::new(),
        }
    }

    /// Adds a block that was made at `time_ns`.
    pub fn add(&mut self, stack_id: u64, bytes: u64, time_ns: u64) {
        let age_ns = self.now_ns.saturating_sub(time_ns);
        if !self.filter.passes(Duration::from_nanos(age_ns)) {
            return;
        }
        let stack = self.stacks.entry(stack_id).or_default();
        stack.oldest_ns = stack.oldest_ns.max(age_ns);
        stack.bytes += bytes;
        stack.blocks += 1;
    }

    /// Whether blocks were left out by age.
    #[must_use]
    pub fn filters(&self) -> bool {
        self.filter.is_set()
    }

    /// Age of the stack's oldest block that passes.
    #[must_use]
    pub fn oldest(&self, stack_id: u64) -> Option<Duration> {
        Some(Duration::from_nanos(self.stacks.get(&stack_id)?.oldest_ns))
    }

    /// The stack's sums with the live blocks hidden that do not pass; `None`
    /// when none passes.
    #[must_use]
    pub fn passing(&self, stack_id: u64, sums: Sums) -> Option<Sums> {
        let stack = self.stacks.get(&stack_id)?;
        Some(Sums {
            hidden_bytes: sums.live_bytes().saturating_sub(stack.bytes),
            hidden_blocks: sums.live_blocks().saturating_sub(stack.blocks),
            ..sums
        })
    }
}
