//! Whether what grows may only take the place of blocks from before: a full store
//! or cache of a process that has long been running gives back one old block, which
//! nobody knows, for each new one. Until the old ones are gone, its new blocks pile
//! up like a leak's. Pure.

use std::{collections::HashMap, time::Duration};

use crate::model::{Trend, Verdict};

/// What is known of the time in which growth was observed.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// How long that is.
    pub observed: Duration,
    /// Frees per minute of blocks that were not recorded, lately.
    pub unknown_frees_per_minute: f64,
    /// By how much resident memory and swap have grown; `None` when not known.
    pub memory_growth: Option<u64>,
}

/// By how much one site has grown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Growth {
    pub bytes: u64,
    pub blocks: u64,
}

/// Sites whose growth may be no growth.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Replacing {
    pub sites: usize,
    /// What they grow by, bytes.
    pub per_minute: f64,
}

/// So much of what memory would have grown by is growth after all.
const REAL: f64 = 0.5;
/// So many old blocks given back, of a site's new ones, may explain these.
const ENOUGH: f64 = 0.7;

/// Takes back verdicts that such replacement may explain: memory has not grown as
/// the sites have, and lately about as many unknown blocks were freed as one of them
/// has gained.
pub fn doubt(
    trends: &mut HashMap<u64, Trend>,
    growth: impl Fn(u64) -> Growth,
    facts: &Facts,
) -> Replacing {
    let mut replacing = Replacing::default();
    let grows = |trend: &Trend| trend.verdict == Verdict::Growing;
    let together: u64 = trends
        .iter()
        .filter(|(_, trend)| grows(trend))
        .map(|(stack_id, _)| growth(*stack_id).bytes)
        .sum();
    let is_real = |memory: u64| memory as f64 >= REAL * together as f64;
    if facts.memory_growth.is_none_or(is_real) {
        return replacing;
    }
    let minutes = facts.observed.as_secs_f64() / 60.0;
    for (stack_id, trend) in trends.iter_mut().filter(|(_, trend)| grows(trend)) {
        let gained = growth(*stack_id).blocks as f64 / minutes.max(1e-3);
        if facts.unknown_frees_per_minute < ENOUGH * gained || gained <= 0.0 {
            continue;
        }
        replacing.sites += 1;
        replacing.per_minute += trend.rate.per_minute;
        trend.verdict = Verdict::TooEarly;
        trend.confidence = 0.0;
    }
    replacing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Rate;

    fn growing() -> HashMap<u64, Trend> {
        let trend = Trend {
            verdict: Verdict::Growing,
            confidence: 0.9,
            rate: Rate {
                per_minute: 1000.0,
                ..Rate::default()
            },
            observed: Duration::from_secs(120),
            steady: None,
            period: None,
        };
        HashMap::from([(1, trend)])
    }

    /// A site that has gained 100 blocks of 1 000 bytes in two minutes.
    fn verdict(unknown_frees_per_minute: f64, memory_growth: Option<u64>) -> Verdict {
        let mut trends = growing();
        let facts = Facts {
            observed: Duration::from_secs(120),
            unknown_frees_per_minute,
            memory_growth,
        };
        let growth = |_| Growth {
            bytes: 100_000,
            blocks: 100,
        };
        let replacing = doubt(&mut trends, growth, &facts);
        let verdict = trends[&1].verdict;
        assert_eq!(replacing.sites == 1, verdict == Verdict::TooEarly);
        verdict
    }

    #[test]
    fn a_full_store_of_old_blocks_is_not_judged() {
        assert_eq!(verdict(50.0, Some(0)), Verdict::TooEarly);
        assert_eq!(verdict(40.0, Some(30_000)), Verdict::TooEarly);
    }

    #[test]
    fn growth_that_memory_shows_is_believed() {
        assert_eq!(verdict(50.0, Some(60_000)), Verdict::Growing);
    }

    #[test]
    fn growth_without_as_many_old_blocks_freed_is_believed() {
        assert_eq!(verdict(30.0, Some(0)), Verdict::Growing);
        assert_eq!(verdict(0.0, Some(0)), Verdict::Growing);
    }

    #[test]
    fn without_knowing_memory_nothing_is_taken_back() {
        assert_eq!(verdict(50.0, None), Verdict::Growing);
    }
}
