//! When a person wants to be told: conditions on figures of a trace, and when
//! they count as come true. Pure: figures go in, what is due comes out;
//! [`crate::session`] reads the figures and does what was asked for.

mod condition;
mod growth;
mod recent;
mod schedule;

use crate::model::MemorySample;

pub use condition::{Condition, ConditionError, Figure};
pub use growth::{Growth, GrowthTest};
pub use recent::Recent;
pub use schedule::{Alerts, Firing};

/// What conditions are about, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Bytes allocated since the start and not given back.
    pub live_bytes: u64,
    /// Blocks likewise.
    pub live_blocks: u64,
    /// How fast live bytes rose in the last minutes, bytes; `None` while it is too
    /// early to tell.
    pub growth_per_minute: Option<f64>,
    /// How many sites are judged to grow without bound.
    pub growing_sites: usize,
    /// The process's memory and other resources.
    pub memory: MemorySample,
    /// What a share of memory is a share of; `None` when nothing is known.
    pub memory_limit: Option<MemoryLimit>,
}

/// The tightest limit of a process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// How much it may be, bytes.
    pub bytes: u64,
    /// Whose limit it is.
    pub whose: LimitOwner,
}

/// What limits a process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitOwner {
    /// Its control group.
    Cgroup,
    /// The machine has no more.
    Machine,
}

impl MemoryLimit {
    /// The tighter one of a control group's limit and the machine's memory, bytes.
    #[must_use]
    pub fn tightest(cgroup: Option<u64>, machine: Option<u64>) -> Option<Self> {
        let of = |bytes: Option<u64>, whose| bytes.map(|bytes| Self { bytes, whose });
        let all = [
            of(cgroup, LimitOwner::Cgroup),
            of(machine, LimitOwner::Machine),
        ];
        all.into_iter()
            .flatten()
            .filter(|limit| limit.bytes > 0)
            .min_by_key(|limit| limit.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tighter_limit_counts() {
        let tightest = |cgroup, machine| {
            MemoryLimit::tightest(cgroup, machine).map(|limit| (limit.bytes, limit.whose))
        };
        assert_eq!(tightest(None, None), None);
        assert_eq!(tightest(None, Some(8)), Some((8, LimitOwner::Machine)));
        assert_eq!(tightest(Some(2), Some(8)), Some((2, LimitOwner::Cgroup)));
        assert_eq!(tightest(Some(9), Some(8)), Some((8, LimitOwner::Machine)));
        assert_eq!(tightest(Some(0), Some(8)), Some((8, LimitOwner::Machine)));
    }
}
