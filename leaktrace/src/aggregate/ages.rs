//! Ages of live blocks, computed from the live table only where they are
//! wanted: that reads every block.

use std::{collections::HashMap, time::Duration};

use leaktrace_common::stack::{AGE_BANDS, age_band};

use crate::model::{AGES, Sums};

/// Which blocks count by their age.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgeFilter {
    /// Only blocks at least as old.
    pub min: Option<Duration>,
    /// Only blocks at most as old.
    pub max: Option<Duration>,
    /// Only blocks made at this time or later (`CLOCK_MONOTONIC`, nanoseconds).
    pub made_since_ns: Option<u64>,
}

impl AgeFilter {
    /// Whether it leaves anything out.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.min.is_some() || self.max.is_some() || self.made_since_ns.is_some()
    }

    fn passes(&self, made_ns: u64, age: Duration) -> bool {
        self.min.is_none_or(|min| age >= min)
            && self.max.is_none_or(|max| age <= max)
            && self.made_since_ns.is_none_or(|since| made_ns >= since)
    }
}

/// What the live table says of each stack.
#[derive(Clone, Debug)]
pub struct BlockAges {
    filter: AgeFilter,
    now_ns: u64,
    stacks: HashMap<u64, Stack>,
}

/// One stack's blocks.
#[derive(Clone, Copy, Debug, Default)]
struct Stack {
    /// Of those that pass the filter.
    oldest_ns: u64,
    bytes: u64,
    blocks: u64,
    /// Made since the mark, whatever their age.
    made_since: (u64, u64),
    /// Of all, by how many of [`AGES`] they have reached.
    bytes_by_age: [u64; AGE_BANDS],
    blocks_by_age: [u64; AGE_BANDS],
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
        let stack = self.stacks.entry(stack_id).or_default();
        let band = age_band(time_ns, self.now_ns);
        stack.bytes_by_age[band] += bytes;
        stack.blocks_by_age[band] += 1;
        if self
            .filter
            .made_since_ns
            .is_none_or(|since| time_ns >= since)
        {
            stack.made_since.0 += bytes;
            stack.made_since.1 += 1;
        }
        let age_ns = self.now_ns.saturating_sub(time_ns);
        if self.filter.passes(time_ns, Duration::from_nanos(age_ns)) {
            stack.oldest_ns = stack.oldest_ns.max(age_ns);
            stack.bytes += bytes;
            stack.blocks += 1;
        }
    }

    /// Whether blocks were left out by age.
    #[must_use]
    pub fn filters(&self) -> bool {
        self.filter.is_set()
    }

    /// Whether blocks from before a mark were left out.
    #[must_use]
    pub fn filters_by_mark(&self) -> bool {
        self.filter.made_since_ns.is_some()
    }

    /// Bytes and blocks held of those made since the mark, of any age.
    #[must_use]
    pub fn made_since(&self, stack_id: u64) -> (u64, u64) {
        let stack = self.stacks.get(&stack_id);
        stack.map_or((0, 0), |stack| stack.made_since)
    }

    /// Age of the stack's oldest block that passes.
    #[must_use]
    pub fn oldest(&self, stack_id: u64) -> Option<Duration> {
        let stack = self.passing_of(stack_id)?;
        Some(Duration::from_nanos(stack.oldest_ns))
    }

    /// The stack's sums with the live blocks hidden that do not pass; `None`
    /// when none passes.
    #[must_use]
    pub fn passing(&self, stack_id: u64, sums: Sums) -> Option<Sums> {
        let stack = self.passing_of(stack_id)?;
        Some(Sums {
            hidden_bytes: sums.live_bytes().saturating_sub(stack.bytes),
            hidden_blocks: sums.live_blocks().saturating_sub(stack.blocks),
            ..sums
        })
    }

    fn passing_of(&self, stack_id: u64) -> Option<&Stack> {
        self.stacks.get(&stack_id).filter(|stack| stack.blocks > 0)
    }

    /// What the stack holds, whatever the filter says, in blocks that have reached
    /// each of [`AGES`]: bytes.
    #[must_use]
    pub fn held_since(&self, stack_id: u64) -> [u64; AGES.len()] {
        let stack = self.stacks.get(&stack_id);
        reached(stack.map_or([0; AGE_BANDS], |stack| stack.bytes_by_age))
    }

    /// How many blocks have reached each of [`AGES`], whatever the filter says.
    #[must_use]
    pub fn blocks_since(&self, stack_id: u64) -> [u64; AGES.len()] {
        let stack = self.stacks.get(&stack_id);
        reached(stack.map_or([0; AGE_BANDS], |stack| stack.blocks_by_age))
    }
}

/// From what is in each band of age to what has reached each limit.
#[must_use]
pub fn reached(bands: [u64; AGE_BANDS]) -> [u64; AGES.len()] {
    let mut reached = [0; AGES.len()];
    let mut sum: u64 = 0;
    for limit in (0..AGES.len()).rev() {
        sum += bands[limit + 1];
        reached[limit] = sum;
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_block_has_reached_every_limit_up_to_its_age() {
        assert_eq!(reached([9, 1, 2, 3, 4]), [10, 9, 7, 4]);
    }

    #[test]
    fn what_is_held_by_age_does_not_depend_on_the_filter() {
        let filter = AgeFilter {
            made_since_ns: Some(999 * SECOND),
            ..AgeFilter::default()
        };
        let mut ages = BlockAges::new(filter, 1000 * SECOND);
        ages.add(1, 100, 10 * SECOND);
        ages.add(1, 20, 985 * SECOND);
        ages.add(1, 3, 999 * SECOND);
        ages.add(2, 50, 998 * SECOND);
        assert_eq!(ages.held_since(1), [123, 120, 100, 100]);
        assert_eq!(ages.blocks_since(1), [3, 2, 1, 1]);
        assert_eq!(ages.held_since(7), [0; 4]);
        // Only the one made since then passes.
        let sums = Sums {
            alloc_bytes: 123,
            alloc_blocks: 3,
            ..Sums::default()
        };
        let passing = ages.passing(1, sums).unwrap();
        assert_eq!((passing.live_bytes(), passing.live_blocks()), (3, 1));
        assert_eq!(ages.oldest(1), Some(Duration::from_secs(1)));
        assert_eq!(ages.passing(2, sums), None);
        assert_eq!(ages.oldest(2), None);
    }
}
