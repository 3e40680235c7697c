//! From what the maps hold to a report: stacks are resolved once and kept,
//! sites are filtered, ordered and cut here.

mod ages;
mod sites;

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::Result;
use leaktrace_common::stack::{FrameWord, NOT_STORED, StackEnd};

use crate::{
    bpf::Maps,
    model::{Completeness, Frame, Site, SortKey, Sums},
    symbolize::Symbolizer,
};

pub use ages::{AgeFilter, BlockAges};

/// Which sites a report has, and in which order.
#[derive(Clone, Copy, Debug)]
pub struct Selection {
    /// What to order by.
    pub sort: SortKey,
    /// At most this many; `None` for all.
    pub top: Option<usize>,
    /// How many growing ones are named.
    pub growing: usize,
    /// Time since events count.
    pub elapsed: Duration,
}

/// Sites of a report with what is said of all of them.
#[derive(Clone, Debug, Default)]
pub struct Sites {
    /// Ordered and cut.
    pub sites: Vec<Site>,
    /// Indices of the growing ones.
    pub growing: Vec<usize>,
    /// How many there are before the cut.
    pub count: usize,
    /// Sums over all stacks, before filters.
    pub totals: Sums,
    /// Share of allocations with complete stacks.
    pub complete_share: Option<f64>,
}

/// A stack whose frames were read from the kernel.
struct KnownStack {
    places: Box<[FrameWord]>,
    end: Option<StackEnd>,
    complete: bool,
    frames: Option<Arc<[Frame]>>,
}

/// Everything learned about stacks so far.
pub struct Aggregator {
    symbolizer: Symbolizer,
    stacks: HashMap<u64, KnownStack>,
}

impl Aggregator {
    /// Knows no stack yet.
    #[must_use]
    pub fn new(symbolizer: Symbolizer) -> Self {
        Self {
            symbolizer,
            stacks: HashMap::new(),
        }
    }

    /// The symbolizer, to be told of new mappings.
    pub fn symbolizer(&mut self) -> &mut Symbolizer {
        &mut self.symbolizer
    }

    /// Reads the frames of stacks that were not met before. Addresses in them
    /// that the kernel side could not, are turned into files and offsets at once,
    /// while the mappings they were made in are known; `refresh` is called, once
    /// at most, when an address lies in none, to read the mappings again.
    ///
    /// # Errors
    /// When the kernel's maps can't be read.
    pub fn learn_stacks(
        &mut self,
        maps: &Maps,
        sums: &[(u64, Sums)],
        refresh: &mut dyn FnMut(&mut Symbolizer),
    ) -> Result<()> {
        let mut fresh = false;
        for (id, _) in sums {
            if *id == NOT_STORED || self.stacks.contains_key(id) {
                continue;
            }
            let Some(record) = maps.stack(*id)? else {
                continue;
            };
            if record.check == 0 {
                continue; // Just being written.
            }
            let depth = (record.depth as usize).min(record.frames.len());
            let frames = record.frames[..depth].iter();
            let mut places: Box<[FrameWord]> = frames.copied().map(FrameWord).collect();
            if !self.symbolizer.locate(&mut places) && !fresh {
                refresh(&mut self.symbolizer);
                fresh = true;
                self.symbolizer.locate(&mut places);
            }
            let known = self.learn(places, record.end);
            self.stacks.insert(*id, known);
        }
        Ok(())
    }

    fn learn(&mut self, places: Box<[FrameWord]>, end: u32) -> KnownStack {
        let end = StackEnd::from_number(end);
        let complete = match end {
            Some(StackEnd::Complete) => true,
            Some(StackEnd::ChainEnd) => self.symbolizer.begins_thread(&places),
            _ => false,
        };
        KnownStack {
            places,
            end,
            complete,
            frames: None,
        }
    }

    /// Puts a report's sites together. With `ages`, only blocks that passed
    /// its filter count, if it has one.
    pub fn sites(
        &mut self,
        sums: &[(u64, Sums)],
        ages: Option<&BlockAges>,
        selection: &Selection,
    ) -> Sites {
        let totals = sums
            .iter()
            .fold(Sums::default(), |all, (_, one)| sites::add(all, *one));
        let (all, complete) = sums.iter().fold((0, 0), |(all, complete), (id, one)| {
            let is_complete = self.stacks.get(id).is_some_and(|stack| stack.complete);
            (
                all + one.alloc_blocks,
                complete + if is_complete { one.alloc_blocks } else { 0 },
            )
        });
        let mut rows = sites::rows(sums, ages, selection);
        let count = rows.len();
        let growing = sites::fastest(&rows, selection.growing);
        let shown = selection.top.unwrap_or(rows.len()).min(rows.len());
        // Growing sites are part of the report wherever they stand.
        let growing = if selection.top.is_some() {
            Vec::new()
        } else {
            growing
        };
        rows.truncate(shown);
        let sites = rows.into_iter().map(|row| self.site(row, ages)).collect();
        Sites {
            sites,
            growing,
            count,
            totals,
            complete_share: (all > 0).then(|| complete as f64 / all as f64),
        }
    }

    fn site(&mut self, row: sites::Row, ages: Option<&BlockAges>) -> Site {
        let (frames, end) = self.resolve(row.stack_id);
        Site {
            stack_id: row.stack_id,
            class: "heap",
            sums: row.sums,
            growth_per_minute: row.growth_per_minute,
            oldest_age: ages.and_then(|ages| ages.oldest(row.stack_id)),
            end,
            frames,
        }
    }

    fn resolve(&mut self, id: u64) -> (Arc<[Frame]>, Completeness) {
        let Some(stack) = self.stacks.get_mut(&id) else {
            return (
                Arc::from([]),
                Completeness::Incomplete(reason(Some(StackEnd::NotStored))),
            );
        };
        let frames = stack
            .frames
            .get_or_insert_with(|| self.symbolizer.resolve_stack(&stack.places))
            .clone();
        let end = if stack.complete {
            Completeness::Complete
        } else {
            Completeness::Incomplete(reason(stack.end))
        };
        (frames, end)
    }
}

/// Why a stack is not complete, for a person.
fn reason(end: Option<StackEnd>) -> &'static str {
    match end {
        Some(StackEnd::ChainEnd) => "the chain of frame pointers ends early",
        Some(StackEnd::TooDeep) => "deeper than 127 frames",
        Some(StackEnd::BadFramePointer) => "a function keeps no frame pointer",
        Some(StackEnd::Unreadable) => "stack memory could not be read",
        Some(StackEnd::NotStored) => "stack not stored",
        // Not shown: the stack is complete.
        Some(StackEnd::Complete) => "complete",
        Some(StackEnd::Guessed) => "a frame was guessed",
        Some(StackEnd::NoMapping) => "an address in no known mapping",
        Some(StackEnd::Gap) => "no unwind information",
        Some(StackEnd::UnsupportedRule) => "unwind information that is not supported",
        Some(StackEnd::BadStackPointer) => "a wrong stack pointer",
        Some(StackEnd::ReturnProbe) => "a return address that a return probe replaced",
        Some(StackEnd::Changed) => "the stack or the mappings changed meanwhile",
        None => "unknown end of stack",
    }
}
