//! What everything was when it was marked, so that growth counts from there.

use std::{collections::HashMap, time::Duration};

use crate::model::Sums;

/// The sums of all stacks at a mark.
#[derive(Clone, Debug, Default)]
pub struct Baseline {
    /// When, since the start.
    pub at: Duration,
    sums: HashMap<u64, Sums>,
}

impl Baseline {
    /// What the sums were `at` that time after the start.
    #[must_use]
    pub fn new(at: Duration, sums: &[(u64, Sums)]) -> Self {
        Self {
            at,
            sums: sums.iter().copied().collect(),
        }
    }

    /// A stack's sums then; zeros when it had not been met.
    #[must_use]
    pub fn of(&self, stack_id: u64) -> Sums {
        self.sums.get(&stack_id).copied().unwrap_or_default()
    }

    /// A stack's sums since then, given what is still held of the blocks made
    /// since: bytes and blocks.
    #[must_use]
    pub fn since(&self, stack_id: u64, now: Sums, held: (u64, u64)) -> Sums {
        let then = self.of(stack_id);
        // A block made while the mark was set may be on both sides of it.
        let alloc_bytes = now.alloc_bytes.saturating_sub(then.alloc_bytes);
        let alloc_blocks = now.alloc_blocks.saturating_sub(then.alloc_blocks);
        let (alloc_bytes, alloc_blocks) = (alloc_bytes.max(held.0), alloc_blocks.max(held.1));
        Sums {
            alloc_bytes,
            alloc_blocks,
            freed_bytes: alloc_bytes - held.0,
            freed_blocks: alloc_blocks - held.1,
            ..Sums::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(alloc: (u64, u64), freed: (u64, u64)) -> Sums {
        Sums {
            alloc_bytes: alloc.0,
            alloc_blocks: alloc.1,
            freed_bytes: freed.0,
            freed_blocks: freed.1,
            ..Sums::default()
        }
    }

    #[test]
    fn only_blocks_made_since_count() {
        let then = sums((1000, 10), (200, 2));
        let baseline = Baseline::new(Duration::from_secs(3), &[(7, then)]);
        // 5 blocks more, 3 of them held; old ones were freed as well.
        let now = sums((1500, 15), (900, 9));
        let since = baseline.since(7, now, (300, 3));
        assert_eq!(since, sums((500, 5), (200, 2)));
        // A stack that was not met before.
        assert_eq!(baseline.since(8, now, (600, 6)), sums((1500, 15), (900, 9)));
        // A block on both sides of the mark.
        assert_eq!(baseline.since(7, then, (100, 1)), sums((100, 1), (0, 0)));
    }
}
