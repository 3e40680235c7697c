//! How everything moved since the trace began, or since it was marked: one look
//! a second, whatever the interval of tables.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use leaktrace_common::counter::Counter;

use super::{
    replacement::{self, Facts, Growth, Replacing},
    snapshot::{self, Snapshot},
};
use crate::{
    aggregate::{AgeFilter, Baseline, BlockAges, reached},
    bpf::Maps,
    model::{AGES, Mark, MemorySample, ProcessTrends, Sums, Survival, Trend},
    trend::{Aged, History, MadeBy, Sample},
};

/// Ages of live blocks are read no more often than this.
const AGES_EVERY: Duration = Duration::from_secs(5);
/// And they take at most one part in so many of a CPU.
const AGES_SHARE: u32 = 200;

/// What has been seen, look by look.
pub struct Observation {
    stacks: HashMap<u64, Stack>,
    /// Frees of blocks that were not recorded, as things made.
    unknown_frees: History,
    /// Resident memory and swap: at the beginning or the mark, and now.
    resident: Option<(u64, u64)>,
    memory: History,
    descriptors: History,
    threads: History,
    /// When it was last looked.
    last: Duration,
    /// When ages may be read again.
    ages_due: Duration,
    marked: Option<(Mark, Baseline)>,
}

/// One stack, look by look.
struct Stack {
    history: History,
    /// What it held at the beginning or the mark, and now: bytes and blocks.
    then: (u64, u64),
    now: (u64, u64),
}

/// What everything comes to.
pub struct Judged {
    /// How each stack moved.
    pub trends: HashMap<u64, Trend>,
    /// Growth that was not believed.
    pub replacing: Replacing,
}

impl Observation {
    /// Nothing has been seen yet but this.
    pub fn new(memory: &MemorySample) -> Self {
        let mut observation = Self {
            stacks: HashMap::new(),
            unknown_frees: History::new(),
            resident: None,
            memory: History::new(),
            descriptors: History::new(),
            threads: History::new(),
            last: Duration::ZERO,
            ages_due: AGES_EVERY,
            marked: None,
        };
        observation.see_process(Duration::ZERO, memory);
        observation.see_unknown_frees(Duration::ZERO, 0);
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
            let stack = self.stacks.entry(*stack_id).or_insert_with(|| {
                // At the last look it held nothing, or it would have been met.
                let mut history = History::new();
                history.push(sample(self.last, &Sums::default(), None));
                Stack {
                    history,
                    then: (0, 0),
                    now: (0, 0),
                }
            });
            let aged = ages.map(|ages| Aged {
                held: ages.held_since(*stack_id),
            });
            stack.history.push(sample(at, sums, aged));
            stack.now = (sums.live_bytes(), sums.live_blocks());
        }
        let unknown = snapshot.counters.events[Counter::UnknownFree as usize];
        self.see_unknown_frees(at, unknown);
        self.last = at;
        if snapshot.memory_read.is_some() {
            self.see_process(at, &snapshot.memory);
        }
    }

    fn see_unknown_frees(&mut self, at: Duration, made: u64) {
        self.unknown_frees.push(Sample {
            at,
            held: 0,
            made,
            gone: made,
            aged: None,
        });
    }

    fn see_process(&mut self, at: Duration, memory: &MemorySample) {
        let resident = memory.rss.map(|rss| rss + memory.swap.unwrap_or(0));
        if let Some(now) = resident {
            let then = self.resident.map_or(now, |(then, _)| then);
            self.resident = Some((then, now));
        }
        for (history, value) in [
            (&mut self.memory, resident),
            (&mut self.descriptors, memory.descriptors),
            (&mut self.threads, memory.threads),
        ] {
            if let Some(held) = value {
                history.push(Sample::level(at, held));
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
            let held = (sums.live_bytes(), sums.live_blocks());
            let stack = Stack {
                history,
                then: held,
                now: held,
            };
            self.stacks.insert(*stack_id, stack);
        }
        self.last = at;
        self.resident = None;
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

    /// How each stack moved, as far as it is believed.
    pub fn judge(&self) -> Judged {
        let mut trends = self
            .stacks
            .iter()
            .map(|(stack_id, stack)| (*stack_id, stack.history.judge()))
            .collect();
        let since = self.marked().map_or(Duration::ZERO, |mark| mark.at);
        let observed = self.last.saturating_sub(since);
        // Old blocks that were freed at first and no longer explain nothing now.
        let lately = observed / 3;
        let before = self.unknown_frees.made_by(self.last.saturating_sub(lately));
        let now = self.unknown_frees.made_by(self.last);
        let freed = now.likely.saturating_sub(before.likely);
        let facts = Facts {
            observed,
            unknown_frees_per_minute: freed as f64 / (lately.as_secs_f64() / 60.0).max(1e-3),
            memory_growth: self.resident.map(|(then, now)| now.saturating_sub(then)),
        };
        let growth = |stack_id| {
            self.stacks
                .get(&stack_id)
                .map_or_else(Growth::default, |stack| Growth {
                    bytes: stack.now.0.saturating_sub(stack.then.0),
                    blocks: stack.now.1.saturating_sub(stack.then.1),
                })
        };
        let replacing = replacement::doubt(&mut trends, growth, &facts);
        Judged { trends, replacing }
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
        let Some(Stack { history, .. }) = self.stacks.get(&stack_id) else {
            return Vec::new();
        };
        let since = self.marked().map_or(Duration::ZERO, |mark| mark.at);
        let freed = reached(sums.freed_by_age);
        let live = ages.blocks_since(stack_id);
        let mut survivals = Vec::new();
        for (index, age) in AGES.into_iter().enumerate() {
            let Some(before) = elapsed.checked_sub(age).filter(|time| *time > since) else {
                break;
            };
            let reached = freed[index] + live[index];
            let died = sums.freed_blocks.saturating_sub(freed[index]);
            survivals.extend(survival(age, reached, died, history.made_by(before)));
        }
        survivals
    }
}

/// How many blocks reached an age, of those that were made early enough; `None`
/// when it is not known well how many these are. Below that age `died` blocks.
fn survival(age: Duration, reached: u64, died: u64, made: MadeBy) -> Option<Survival> {
    // Each of them reached it or died before.
    let possible = |made: u64| made.clamp(reached, reached.saturating_add(died));
    let (least, most) = (possible(made.least), possible(made.most));
    (most - least <= most / 4).then(|| Survival {
        age,
        reached,
        of: possible(made.likely),
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survival_is_told_where_it_is_known() {
        let age = Duration::from_secs(1);
        let of = |reached, died, least, likely, most| {
            let made = MadeBy {
                least,
                likely,
                most,
            };
            survival(age, reached, died, made).map(|survival| survival.of)
        };
        // 10 a second of 100 live on, after 3 s: of 100 to 200.
        assert_eq!(of(20, 270, 100, 199, 200), None);
        assert_eq!(of(80, 1000, 800, 850, 900), Some(850));
        // A leak: all that could reach it did, whenever they were made.
        assert_eq!(of(200, 0, 100, 150, 300), Some(200));
        assert_eq!(of(200, 5, 0, 0, 300), Some(200));
        assert_eq!(of(0, 0, 0, 0, 100), Some(0));
    }
}
