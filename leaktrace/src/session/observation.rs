//! How everything moved since the trace began, or since it was marked: one look
//! a second, whatever the interval of tables.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::snapshot::{self, Snapshot};
use crate::{
    aggregate::{AgeFilter, Baseline, BlockAges, reached},
    bpf::Maps,
    model::{AGES, Mark, MemorySample, ProcessTrends, Sums, Survival, Trend},
    trend::{Aged, History, Sample},
};

/// Ages of live blocks are read no more often than this.
const AGES_EVERY: Duration = Duration::from_secs(5);
/// And they take at most one part in so many of a CPU.
const AGES_SHARE: u32 = 200;

/// What has been seen, look by look.
pub struct Observation {
    stacks: HashMap<u64, History>,
    memory: History,
    descriptors: History,
    threads: History,
    /// When it was last looked.
    last: Duration,
    /// When ages may be read again.
    ages_due: Duration,
    marked: Option<(Mark, Baseline)>,
}

impl Observation {
    /// Nothing has been seen yet but this.
    pub fn new(memory: &MemorySample) -> Self {
        let mut observation = Self {
            stacks: HashMap::new(),
            memory: History::new(),
            descriptors: History::new(),
            threads: History::new(),
            last: Duration::ZERO,
            ages_due: AGES_EVERY,
            marked: None,
        };
        observation.see_process(Duration::ZERO, memory);
        observation
    }

    /// Reads the ages of live blocks when it is time to: seldom when that takes
    /// long.
    pub fn ages(&mut self, maps: &Maps, elapsed: Duration) -> Option<BlockAges> {
        if elapsed < self.ages_due {
            return None;
        }
        let begun = Instant::now();
        let ages = snapshot::ages(maps, AgeFilter::default(), snapshot::now_ns()).ok();
        let pause = begun.elapsed().saturating_mul(AGES_SHARE);
        self.ages_due = elapsed.saturating_add(pause.max(AGES_EVERY));
        ages
    }

    /// Looks at the sums of all stacks, and at the process.
    pub fn see(&mut self, snapshot: &Snapshot, ages: Option<&BlockAges>) {
        let at = snapshot.elapsed;
        for (stack_id, sums) in &snapshot.sums {
            let history = self.stacks.entry(*stack_id).or_insert_with(|| {
                // At the last look it held nothing, or it would have been met.
                let mut history = History::new();
                history.push(sample(self.last, &Sums::default(), None));
                history
            });
            let aged = ages.map(|ages| Aged {
                held: ages.held_since(*stack_id),
            });
            history.push(sample(at, sums, aged));
        }
        self.last = at;
        if snapshot.memory_read.is_some() {
            self.see_process(at, &snapshot.memory);
        }
    }

    fn see_process(&mut self, at: Duration, memory: &MemorySample) {
        let resident = memory.rss.map(|rss| rss + memory.swap.unwrap_or(0));
        for (history, value) in [
            (&mut self.memory, resident),
            (&mut self.descriptors, memory.descriptors),
            (&mut self.threads, memory.threads),
        ] {
            if let Some(held) = value {
                history.push(Sample {
                    at,
                    held,
                    made: held,
                    gone: 0,
                    aged: None,
                });
            }
        }
    }

    /// From here on growth counts, and is judged, anew.
    pub fn mark(&mut self, snapshot: &Snapshot, filters: bool) {
        let at = snapshot.elapsed;
        let mark = Mark {
            time: snapshot.taken.clone(),
            at,
            memory: snapshot.memory,
            filters,
        };
        self.marked = Some((mark, Baseline::new(at, &snapshot.sums)));
        self.stacks.clear();
        for history in [&mut self.memory, &mut self.descriptors, &mut self.threads] {
            *history = History::new();
        }
        for (stack_id, sums) in &snapshot.sums {
            let mut history = History::new();
            history.push(sample(at, sums, None));
            self.stacks.insert(*stack_id, history);
        }
        self.last = at;
        self.see_process(at, &snapshot.memory);
    }

    /// The mark, if one was set.
    pub fn marked(&self) -> Option<&Mark> {
        self.marked.as_ref().map(|(mark, _)| mark)
    }

    /// What everything was then.
    pub fn baseline(&self) -> Option<&Baseline> {
        self.marked.as_ref().map(|(_, baseline)| baseline)
    }

    /// How each stack moved.
    pub fn trends(&self) -> HashMap<u64, Trend> {
        self.stacks
            .iter()
            .map(|(stack_id, history)| (*stack_id, history.judge()))
            .collect()
    }

    /// How the process's own figures moved.
    pub fn process(&self) -> ProcessTrends {
        ProcessTrends {
            memory: Some(self.memory.judge()),
            descriptors: Some(self.descriptors.judge()),
            threads: Some(self.threads.judge()),
        }
    }

    /// How many of a stack's blocks have reached each age that the trace, or the
    /// time since the mark, is long enough for.
    pub fn survival(
        &self,
        stack_id: u64,
        sums: &Sums,
        ages: &BlockAges,
        elapsed: Duration,
    ) -> Vec<Survival> {
        let Some(history) = self.stacks.get(&stack_id) else {
            return Vec::new();
        };
        let then = self.baseline().map(|baseline| baseline.of(stack_id));
        let since = self.marked().map_or(Duration::ZERO, |mark| mark.at);
        let freed = reached(sums.freed_by_age);
        let live = ages.blocks_since(stack_id);
        let mut survivals = Vec::new();
        for (index, age) in AGES.into_iter().enumerate() {
            let Some(before) = elapsed.checked_sub(age).filter(|time| *time > since) else {
                break;
            };
            // Those made before the mark could reach it as well.
            let before_mark = then.map_or(0, |then| then.alloc_blocks);
            let reached = freed[index] + live[index];
            survivals.push(Survival {
                age,
                reached,
                of: history.made_by(before).max(before_mark).max(reached),
            });
        }
        survivals
    }
}

fn sample(at: Duration, sums: &Sums, aged: Option<Aged>) -> Sample {
    Sample {
        at,
        held: sums.live_bytes(),
        made: sums.alloc_blocks,
        gone: sums.freed_blocks,
        aged,
    }
}
