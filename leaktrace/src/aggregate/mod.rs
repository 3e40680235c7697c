//! From what the maps hold to a report: stacks are resolved once and kept,
//! sites are filtered, ordered and cut here.

mod ages;
mod baseline;
mod common_caller;
mod completeness;
mod self_check;
mod sites;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Result;
use leaktrace_common::stack::{FrameWord, NOT_STORED, StackEnd};

use crate::{
    bpf::Maps,
    model::{
        CommonCaller, CompleteShare, Completeness, Frame, SelfCheck, Site, SortKey, Sums, Survival,
        Trend, Verdict, VerdictSums,
    },
    symbolize::Symbolizer,
    target::code_files::{CodeFiles, FileNumber},
};

use self::{
    completeness::completeness,
    self_check::{CallCheck, Looked},
};

pub use ages::{AgeFilter, BlockAges, reached};
pub use baseline::Baseline;

/// Which sites a report has, and in which order.
#[derive(Clone, Copy)]
pub struct Selection<'a> {
    /// What to order by.
    pub sort: SortKey,
    /// At most this many; `None` for all.
    pub top: Option<usize>,
    /// Time since events count.
    pub elapsed: Duration,
    /// From what growth counts, if not from nothing.
    pub baseline: Option<&'a Baseline>,
    /// How stacks moved.
    pub trends: &'a HashMap<u64, Trend>,
    /// Whether a function of this name is of a standard library, which is nobody's
    /// leak.
    pub is_library: fn(&str) -> bool,
    /// How many blocks of a stack with these sums reached each age.
    pub survival: &'a dyn Fn(u64, &Sums) -> Vec<Survival>,
}

/// Sites of a report with what is said of all of them.
#[derive(Clone, Debug, Default)]
pub struct Sites {
    /// Ordered and cut.
    pub sites: Vec<Site>,
    /// Indices of the growing ones, fastest first.
    pub growing: Vec<usize>,
    /// What these have in common.
    pub common_caller: Option<CommonCaller>,
    /// How many sites were judged to be what.
    pub verdicts: Vec<(Verdict, VerdictSums)>,
    /// How many there are before the cut.
    pub count: usize,
    /// Sums over all stacks, before filters.
    pub totals: Sums,
    /// How many of the stacks are complete.
    pub complete: CompleteShare,
}

/// A stack whose frames were read from the kernel.
struct KnownStack {
    /// What to look up.
    places: Box<[FrameWord]>,
    end: Completeness,
    frames: Option<Arc<[Frame]>>,
}

/// Everything learned about stacks so far.
pub struct Aggregator {
    symbolizer: Symbolizer,
    stacks: HashMap<u64, KnownStack>,
    code: Arc<Mutex<CodeFiles>>,
    calls: CallCheck,
}

/// Files in whose place something else was mapped, with what is said of stacks
/// through them.
type Doubtful = HashMap<FileNumber, Completeness>;

impl KnownStack {
    /// Whether it is complete, as far as is known by now.
    fn end(&self, doubtful: &Doubtful) -> Completeness {
        let in_doubt = || {
            let numbers = self.places.iter().map(|place| FileNumber(place.file()));
            numbers.filter_map(|number| doubtful.get(&number)).next()
        };
        let doubt = if doubtful.is_empty() || !self.end.is_complete() {
            None
        } else {
            in_doubt()
        };
        doubt.unwrap_or(&self.end).clone()
    }
}

impl Aggregator {
    /// Knows no stack yet. Frames name files by their numbers in `code`, for the
    /// symbolizer as well.
    #[must_use]
    pub fn new(symbolizer: Symbolizer, code: Arc<Mutex<CodeFiles>>) -> Self {
        Self {
            symbolizer,
            stacks: HashMap::new(),
            calls: CallCheck::new(Arc::clone(&code)),
            code,
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
            let mut stack = record.frames.map(FrameWord);
            let stack = &mut stack[..depth];
            if !self.symbolizer.locate(stack) && !fresh {
                refresh(&mut self.symbolizer);
                fresh = true;
                self.symbolizer.locate(stack);
            }
            let known = self.learn(stack, record.end);
            self.stacks.insert(*id, known);
        }
        Ok(())
    }

    fn learn(&mut self, stack: &[FrameWord], end: u32) -> KnownStack {
        let Looked {
            places,
            is_doubtful,
        } = self.calls.look_at(stack);
        let last = places.last().copied();
        let file = last.and_then(|last| self.symbolizer.path(last));
        let begins_thread = || last.is_some_and(|last| self.symbolizer.begins_thread(last));
        let end = completeness(StackEnd::from_number(end), begins_thread, || file);
        if is_doubtful && end.is_complete() {
            self.calls.doubt();
        }
        KnownStack {
            places,
            end,
            frames: None,
        }
    }

    /// Whether the return addresses of all stacks can be true.
    #[must_use]
    pub fn self_check(&self) -> SelfCheck {
        self.calls.result()
    }

    fn doubtful(&self) -> Doubtful {
        let code = CodeFiles::lock(&self.code);
        let doubtful = code.iter().filter(|(_, file)| file.is_doubtful);
        doubtful
            .map(|(number, file)| (number, completeness::replaced(&file.path)))
            .collect()
    }

    /// How much of all sums has complete stacks.
    fn complete(&self, sums: &[(u64, Sums)], doubtful: &Doubtful) -> CompleteShare {
        let share = |of: fn(&Sums) -> u64| {
            let weigh = |(_, sums): &(u64, Sums)| u128::from(of(sums));
            let is_complete = |(id, _): &&(u64, Sums)| {
                let known = self.stacks.get(id);
                known.is_some_and(|stack| stack.end(doubtful).is_complete())
            };
            let all: u128 = sums.iter().map(weigh).sum();
            let complete: u128 = sums.iter().filter(is_complete).map(weigh).sum();
            (all > 0).then(|| complete as f64 / all as f64)
        };
        CompleteShare {
            calls: share(|sums| sums.alloc_blocks),
            bytes: share(Sums::live_bytes),
        }
    }

    /// Puts a report's sites together. With `ages`, only blocks that passed
    /// its filter count, if it has one.
    pub fn sites(
        &mut self,
        sums: &[(u64, Sums)],
        ages: Option<&BlockAges>,
        selection: &Selection<'_>,
    ) -> Sites {
        if self.symbolizer.take_fetched() {
            self.forget_frames();
        }
        let totals = sums
            .iter()
            .fold(Sums::default(), |all, (_, one)| sites::add(all, *one));
        let mut rows = sites::rows(sums, ages, selection);
        let count = rows.len();
        let verdicts = sites::by_verdict(&rows);
        let doubtful = self.doubtful();
        let mut growing = sites::growing(&rows);
        let common_caller = self.common_caller(&rows, &growing, selection);
        let shown = selection.top.unwrap_or(rows.len()).min(rows.len());
        growing.retain(|index| *index < shown);
        rows.truncate(shown);
        let all: HashMap<u64, Sums> = sums.iter().copied().collect();
        let sites = rows
            .into_iter()
            .map(|row| {
                let sums = all.get(&row.stack_id).copied().unwrap_or_default();
                let survival = (selection.survival)(row.stack_id, &sums);
                self.site(row, ages, survival, &doubtful)
            })
            .collect();
        Sites {
            sites,
            growing,
            common_caller,
            verdicts,
            count,
            totals,
            complete: self.complete(sums, &doubtful),
        }
    }

    /// What growing rows have in common; of a whole report, all of them are looked up
    /// anyway.
    fn common_caller(
        &mut self,
        rows: &[sites::Row],
        growing: &[usize],
        selection: &Selection<'_>,
    ) -> Option<CommonCaller> {
        // The slowest of many hardly change it.
        const ENOUGH: usize = 256;
        let most = selection.top.map_or(growing.len(), |_| ENOUGH);
        let (first, others) = growing.split_at(most.min(growing.len()));
        let others_grow = others.iter().map(|index| rows[*index].growth()).sum();
        let stacks: Vec<_> = first
            .iter()
            .map(|index| {
                let row = &rows[*index];
                let (frames, _) = self.resolve(row.stack_id, &Doubtful::new());
                (frames, row.growth())
            })
            .collect();
        let stacks: Vec<_> = stacks
            .iter()
            .map(|(frames, growth)| (&**frames, *growth))
            .collect();
        common_caller::of(&stacks, (others.len(), others_grow), selection.is_library)
    }

    /// Looks up all frames, and waits so long at most for debug information that
    /// is being fetched for them.
    pub fn wait_for_debug_information(&mut self, sums: &[(u64, Sums)], most: Duration) {
        for (id, _) in sums {
            let _ = self.resolve(*id, &Doubtful::new());
        }
        if self.symbolizer.wait_for_fetched(most) {
            self.forget_frames();
        }
    }

    /// So that they are looked up anew.
    fn forget_frames(&mut self) {
        for stack in self.stacks.values_mut() {
            stack.frames = None;
        }
    }

    fn site(
        &mut self,
        row: sites::Row,
        ages: Option<&BlockAges>,
        survival: Vec<Survival>,
        doubtful: &Doubtful,
    ) -> Site {
        let (frames, end) = self.resolve(row.stack_id, doubtful);
        Site {
            stack_id: row.stack_id,
            class: "heap",
            sums: row.sums,
            growth_per_minute: row.growth_per_minute,
            trend: row.trend,
            survival,
            oldest_age: ages.and_then(|ages| ages.oldest(row.stack_id)),
            end,
            frames,
        }
    }

    fn resolve(&mut self, id: u64, doubtful: &Doubtful) -> (Arc<[Frame]>, Completeness) {
        let Some(stack) = self.stacks.get_mut(&id) else {
            let end = completeness(Some(StackEnd::NotStored), || false, || None);
            return (Arc::from([]), end);
        };
        let frames = stack
            .frames
            .get_or_insert_with(|| self.symbolizer.resolve_stack(&stack.places))
            .clone();
        (frames, stack.end(doubtful))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_through_a_file_in_doubt_are_not_complete() {
        let stack = |numbers: &[u16], end| KnownStack {
            places: numbers
                .iter()
                .map(|number| FrameWord::in_file(*number, 16))
                .collect(),
            end,
            frames: None,
        };
        let doubt = completeness::replaced("/opt/libfoo.so");
        let doubtful = Doubtful::from([(FileNumber(2), doubt.clone())]);
        let through = stack(&[1, 2, 3], Completeness::Complete);
        assert_eq!(through.end(&doubtful), doubt);
        assert_eq!(through.end(&Doubtful::new()), Completeness::Complete);
        let past = stack(&[1, 3], Completeness::Complete);
        assert_eq!(past.end(&doubtful), Completeness::Complete);
        let known = Completeness::Incomplete("another reason".into());
        assert_eq!(stack(&[2], known.clone()).end(&doubtful), known);
    }
}
