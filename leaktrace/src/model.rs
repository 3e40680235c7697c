//! What a report says, as plain data: made by [`crate::aggregate`], turned into
//! text and pictures by [`crate::report`]. Nothing here reads or writes.

mod limit;
mod memory_map;
mod rss_growth;
mod trend;
mod watch;

use std::{path::PathBuf, sync::Arc, time::Duration};

use leaktrace_common::{
    counter::{Counter, CounterBlock, Effect},
    stack::{AGE_BANDS, AGE_LIMITS_NS},
};

pub use limit::{Forecast, Limit, LimitKind, Resource};
pub use memory_map::{MapPart, MappingKind, MemoryMap, Used};
pub use rss_growth::{Cause, CauseKind, RssGrowth};
pub use trend::{CommonCaller, ProcessTrends, Rate, Survival, Trend, Verdict};
pub use watch::{Advice, Glance, Movement, Quantity, WatchEnd, WatchReport};

/// Everything known at one moment of a trace.
#[derive(Clone, Debug)]
pub struct Report {
    /// The traced process.
    pub process: ProcessInfo,
    /// What was traced and how.
    pub trace: TraceInfo,
    /// When this was taken, wall clock.
    pub taken: jiff::Zoned,
    /// How long events have counted until now (or until the probes went).
    pub elapsed: Duration,
    /// Whether this is the last report: the probes are gone.
    pub end: Option<EndReason>,
    /// Counters summed over CPUs.
    pub counters: CounterBlock,
    /// Sums over all stacks, unfiltered.
    pub totals: Sums,
    /// Allocations per second since the previous report (since the start in
    /// the final one).
    pub alloc_rate: f64,
    /// What tracing costs: share of the target's CPU time that goes into the
    /// probes (0 to 1); `None` while unknown.
    pub cost: Option<f64>,
    /// The same as CPUs: CPU time per second that goes into the probes.
    pub cost_cpus: Option<f64>,
    /// The process's memory at the start.
    pub memory_at_start: MemorySample,
    /// The process's memory now (the last that could be read).
    pub memory: MemorySample,
    /// When that was, since the start; `None` when it could not be read again
    /// after the start.
    pub memory_read: Option<Duration>,
    /// What the growth of RSS is made of; `None` before the last report, or when
    /// memory could not be read again.
    pub rss_growth: Option<RssGrowth>,
    /// Limits that are reached if it goes on like this, one of a resource; only in
    /// the last report.
    pub forecasts: Vec<Forecast>,
    /// How many of the stacks are complete.
    pub complete: CompleteShare,
    /// Whether the stacks' return addresses can be true.
    pub self_check: SelfCheck,
    /// Sites that pass the filters, ordered by [`TraceInfo::sort`], largest
    /// first. In a periodic report only the first `--top`; in the last and in
    /// written outputs all.
    pub sites: Vec<Site>,
    /// Indices into `sites` of those that were judged to be growing, fastest
    /// first.
    pub growing: Vec<usize>,
    /// What they have in common, when there are several.
    pub common_caller: Option<CommonCaller>,
    /// How many sites, shown or not, were judged to be what.
    pub verdicts: Vec<(Verdict, VerdictSums)>,
    /// How the process's own figures moved.
    pub trends: ProcessTrends,
    /// From when growth counts, if not from the start.
    pub mark: Option<Mark>,
    /// How many sites there are that pass the filters, shown or not.
    pub site_count: usize,
    /// Whether ages and filters by age were computed from the blocks.
    pub ages_known: bool,
    /// Things a person should know about how far this report can be trusted,
    /// a sentence each.
    pub notes: Vec<String>,
}

/// Under this many CPUs of cost, [`TraceInfo::cost_limit`] does not apply.
pub const NEGLIGIBLE_CPUS: f64 = 0.05;

/// Who is traced.
#[derive(Clone, Debug)]
pub struct ProcessInfo {
    /// Process id (thread group id).
    pub pid: u32,
    /// Command name (`comm`).
    pub name: String,
    /// The executable, as `/proc/PID/exe` shows it.
    pub exe: PathBuf,
    /// When the process started, wall clock.
    pub started: jiff::Zoned,
}

/// What was traced, since when, with which probes and filters.
#[derive(Clone, Debug)]
pub struct TraceInfo {
    /// Wall clock at the moment from which events count.
    pub started: jiff::Zoned,
    /// When events began to count.
    pub enabled: Edge,
    /// When they ceased to; `None` while they do.
    pub disabled: Option<Edge>,
    /// The files and functions that are watched.
    pub watched: Vec<WatchedFileInfo>,
    /// Options that shape the report, as name and value.
    pub options: Vec<(String, String)>,
    /// Kernel features found and whether they are used.
    pub features: Vec<FeatureInfo>,
    /// Whether the process was started by us, so that nothing came before.
    pub from_start: bool,
    /// What sites are ordered by.
    pub sort: SortKey,
    /// Most that [`Report::cost`] may be; `None` without a limit.
    pub cost_limit: Option<f64>,
    /// Cost of one allocation with its free, measured on leaktrace itself.
    pub pair_cost: Option<Duration>,
}

/// An instant of `CLOCK_MONOTONIC` known within bounds, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// Not before.
    pub earliest_ns: u64,
    /// Not after.
    pub latest_ns: u64,
}

/// A file whose functions are watched.
#[derive(Clone, Debug)]
pub struct WatchedFileInfo {
    /// Its path in the target.
    pub path: PathBuf,
    /// Build id, hexadecimal.
    pub build_id: Option<String>,
    /// Names of the watched functions; aliases of one address joined by `/`.
    pub functions: Vec<String>,
}

/// One kernel feature.
#[derive(Clone, Debug)]
pub struct FeatureInfo {
    /// Its name, as `LEAKTRACE_DISABLE_FEATURES` takes it.
    pub name: &'static str,
    /// The kernel that brought it.
    pub since: &'static str,
    /// The option that a kernel is to be built with for it.
    pub config: Option<&'static str>,
    /// Whether the kernel has it.
    pub available: bool,
    /// Whether it is used (it may be available and switched off).
    pub used: bool,
    /// What leaktrace does without it.
    pub without: Without,
    /// Why it can't be used, if it can't.
    pub why_not: Option<WhyNot>,
}

impl FeatureInfo {
    /// What is done now since it is not used.
    #[must_use]
    pub fn instead(&self) -> Option<&'static str> {
        match self.without {
            Without::Instead(what) if !self.used => Some(what),
            _ => None,
        }
    }
}

/// Why a feature can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyNot {
    /// The kernel does not have it.
    Missing,
    /// It was asked to do without.
    SwitchedOff,
    /// The kernel has it, and it does not work.
    Broken,
    /// It is used only together with this one, which can't be used.
    Without(&'static str),
}

/// What leaktrace does without a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// This instead.
    Instead(&'static str),
    /// Nothing: it needs it. What the kernel lacks then.
    Impossible(&'static str),
    /// All that it does: nothing uses it yet.
    Unneeded,
}

/// Why a trace ended.
#[derive(Clone, Debug, PartialEq)]
pub enum EndReason {
    /// `--duration` was over.
    Duration,
    /// A signal, by its name (`SIGINT`).
    Signal(&'static str),
    /// The target ended.
    TargetExit,
    /// The target replaced itself by exec.
    TargetExec,
    /// Nobody reads stdout any more.
    OutputClosed,
    /// The process that holds the probes was killed.
    ProbesLost,
    /// `--until-alert`: this condition came true.
    Alert(String),
    /// The brake: share of the target's CPU time that tracing took, and the
    /// limit (0 to 1).
    Overhead {
        /// What it took.
        cost: f64,
        /// What was allowed.
        limit: f64,
    },
}

/// Ages that blocks are told apart by, rising.
pub const AGES: [Duration; AGE_BANDS - 1] = {
    let mut ages = [Duration::ZERO; AGE_BANDS - 1];
    let mut index = 0;
    while index < ages.len() {
        ages[index] = Duration::from_nanos(AGE_LIMITS_NS[index]);
        index += 1;
    }
    ages
};

/// What was allocated and given back, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Bytes requested.
    pub alloc_bytes: u64,
    /// Blocks allocated.
    pub alloc_blocks: u64,
    /// Bytes given back.
    pub freed_bytes: u64,
    /// Blocks given back.
    pub freed_blocks: u64,
    /// The same blocks by how many of [`AGES`] they had reached.
    pub freed_by_age: [u64; AGE_BANDS],
    /// Bytes of live blocks that a filter by age leaves out.
    pub hidden_bytes: u64,
    /// Live blocks that a filter by age leaves out.
    pub hidden_blocks: u64,
}

impl Sums {
    /// Bytes allocated and not given back, of blocks that are shown.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.alloc_bytes
            .saturating_sub(self.freed_bytes)
            .saturating_sub(self.hidden_bytes)
    }
    /// Blocks allocated and not given back that are shown.
    #[must_use]
    pub fn live_blocks(&self) -> u64 {
        self.alloc_blocks
            .saturating_sub(self.freed_blocks)
            .saturating_sub(self.hidden_blocks)
    }
    /// Share of the blocks that were given back, 0 to 1; 0 without any block.
    #[must_use]
    pub fn freed_share(&self) -> f64 {
        if self.alloc_blocks == 0 {
            return 0.0;
        }
        self.freed_blocks as f64 / self.alloc_blocks as f64
    }
}

/// One allocation site: a stack and what it holds.
#[derive(Clone, Debug)]
pub struct Site {
    /// The stack's id; stable within one trace.
    pub stack_id: u64,
    /// What can be held (always `heap` for malloc's family).
    pub class: &'static str,
    /// What it allocated and gave back since the start; with filters by age,
    /// live are only the blocks that pass.
    pub sums: Sums,
    /// Growth of live bytes per minute since the start or the mark, of blocks of
    /// any age: the mean.
    pub growth_per_minute: f64,
    /// How it moved; `None` when it was not observed.
    pub trend: Option<Trend>,
    /// How many of its blocks reached each of [`AGES`], as far as it can be told;
    /// empty when ages are not known.
    pub survival: Vec<Survival>,
    /// Age of its oldest live block, when ages are known.
    pub oldest_age: Option<Duration>,
    /// How the stack ended.
    pub end: Completeness,
    /// From the allocating function (`malloc`) outwards. Inlined functions are
    /// frames of their own, innermost first.
    pub frames: Arc<[Frame]>,
}

/// How much has complete stacks, 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CompleteShare {
    /// Of the allocations; `None` without any.
    pub calls: Option<f64>,
    /// Of the bytes that are held; `None` when nothing is.
    pub bytes: Option<f64>,
}

/// What the target's code says of the return addresses in stacks: in front of a
/// true one there is a call, as a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SelfCheck {
    /// Different return addresses in files that could be read, apart from those
    /// of signal handlers, which nothing called.
    pub return_addresses: u64,
    /// How many of them follow a call.
    pub after_call: u64,
    /// Stacks that are complete though they have one that does not.
    pub doubtful_stacks: u64,
}

impl SelfCheck {
    /// Share of the return addresses that follow a call; `None` without any.
    #[must_use]
    pub fn share(&self) -> Option<f64> {
        (self.return_addresses > 0).then(|| self.after_call as f64 / self.return_addresses as f64)
    }
}

/// A moment from which growth counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// When, wall clock.
    pub time: jiff::Zoned,
    /// When, since the start.
    pub at: Duration,
    /// The process's memory then.
    pub memory: MemorySample,
    /// Whether only blocks made since then are shown.
    pub filters: bool,
}

/// What sites of one verdict come to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct VerdictSums {
    /// How many sites.
    pub sites: usize,
    /// What they hold, bytes.
    pub live_bytes: u64,
    /// How fast they grow together, bytes per minute.
    pub growth_per_minute: f64,
}

/// How a stack ended, for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Completeness {
    /// It reaches the function in which its thread began.
    Complete,
    /// It does not, for this reason, which may name a file of the target.
    Incomplete(Arc<str>),
}

impl Completeness {
    /// Whether nothing is missing.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        *self == Self::Complete
    }
}

/// One function of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Demangled name of the function; `None` when no symbol covers the
    /// address.
    pub symbol: Option<String>,
    /// Bytes from the function's start; 0 for inlined functions.
    pub symbol_offset: u64,
    /// The mapped file's path in the target, `[vdso]` and the like, or `None`
    /// for memory that no file backs.
    pub module: Option<Arc<str>>,
    /// The address as an offset in that file; for memory without a file, the
    /// address itself.
    pub file_offset: u64,
    /// Build id of that file, hexadecimal.
    pub build_id: Option<Arc<str>>,
    /// Source file.
    pub source: Option<Arc<str>>,
    /// Line in it.
    pub line: Option<u32>,
    /// The function was inlined into the next frame.
    pub inlined: bool,
    /// Whose function it is.
    pub kind: FrameKind,
}

/// Functions by which the C library begins a program or a thread.
const BEGINNINGS: [&str; 9] = [
    "_start",
    "_dl_start_user",
    "__libc_start_main",
    "__libc_start_call_main",
    "start_thread",
    "clone",
    "clone3",
    "__clone",
    "__clone3",
];

impl Frame {
    /// Whether it is the C library's beginning of a program or a thread, which every
    /// stack passes through.
    #[must_use]
    pub fn is_beginning(&self) -> bool {
        let symbol = self.symbol.as_deref();
        symbol.is_some_and(|symbol| BEGINNINGS.contains(&symbol))
    }
}

/// Whose function a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// The allocator's own (`malloc`), or a thin wrapper that allocates on
    /// someone's behalf (`operator new`, `strdup`).
    Allocator,
    /// The program's and its libraries'.
    Program,
}

/// The process's memory and other things that may grow, from `/proc`; `None`
/// is what could not be read. Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemorySample {
    /// Resident set.
    pub rss: Option<u64>,
    /// Resident anonymous memory.
    pub rss_anon: Option<u64>,
    /// Resident file mappings.
    pub rss_file: Option<u64>,
    /// Resident shared memory.
    pub rss_shmem: Option<u64>,
    /// Swapped out.
    pub swap: Option<u64>,
    /// Address space.
    pub vm_size: Option<u64>,
    /// Threads.
    pub threads: Option<u64>,
    /// Open descriptors.
    pub descriptors: Option<u64>,
    /// Memory use of its cgroup.
    pub cgroup_usage: Option<u64>,
    /// Memory limit of its cgroup (the tightest of its ancestors); `None` also
    /// when there is none.
    pub cgroup_limit: Option<u64>,
}

/// What to sort sites by, descending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortKey {
    /// Live bytes.
    LiveBytes,
    /// Growth of live bytes: those first that were judged to be growing.
    #[default]
    Growth,
    /// Live blocks.
    LiveBlocks,
    /// Bytes allocated since the start.
    AllocBytes,
}

/// What a flamegraph's widths and a folded line's number mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weight {
    /// Bytes allocated and not given back.
    #[default]
    LiveBytes,
    /// Blocks allocated and not given back.
    LiveBlocks,
    /// Bytes allocated since the start.
    AllocBytes,
    /// Blocks allocated since the start.
    AllocBlocks,
}

impl Report {
    /// Events that were lost, over all reasons; totals are a lower bound when
    /// it is not 0.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.count(Effect::Lost)
    }
    /// Events that make totals inexact, over all reasons.
    #[must_use]
    pub fn inexact(&self) -> u64 {
        self.count(Effect::Inexact)
    }
    /// Whether tracing costs more than its limit, but too little of a CPU for
    /// the limit to apply.
    #[must_use]
    pub fn is_cost_negligible(&self) -> bool {
        let over = self
            .cost
            .zip(self.trace.cost_limit)
            .is_some_and(|(cost, limit)| cost > limit);
        over && self.cost_cpus.is_some_and(|cpus| cpus <= NEGLIGIBLE_CPUS)
    }
    /// Options that choose which blocks are shown by their age, as they are
    /// given: `--min-age 30s`; empty when there are none. `--since mark` only once
    /// there is a mark.
    #[must_use]
    pub fn age_filter(&self) -> String {
        let is_marked = self.mark.as_ref().is_some_and(|mark| mark.filters);
        let ages = self.trace.options.iter().filter(|(name, _)| {
            ["min-age", "max-age"].contains(&name.as_str()) || name == "since" && is_marked
        });
        let texts: Vec<_> = ages
            .map(|(name, value)| format!("--{name} {value}"))
            .collect();
        texts.join(" ")
    }
    /// One counter.
    #[must_use]
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters.events[counter as usize]
    }
    fn count(&self, effect: Effect) -> u64 {
        Counter::ALL
            .iter()
            .filter(|counter| counter.effect() == effect)
            .map(|counter| self.counter(*counter))
            .sum()
    }
}

impl Site {
    /// What it was judged to be.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.trend.map_or(Verdict::TooEarly, |trend| trend.verdict)
    }
    /// Growth of live bytes per minute: for good, when that can be told, else the
    /// mean.
    #[must_use]
    pub fn growth(&self) -> f64 {
        Self::growth_of(self.trend, self.growth_per_minute)
    }
    /// The same of a site that moved so, with this mean.
    pub(crate) fn growth_of(trend: Option<Trend>, mean: f64) -> f64 {
        match trend {
            Some(trend) if trend.verdict != Verdict::TooEarly => trend.rate.per_minute,
            _ => mean,
        }
    }
    /// The site's weight in a flamegraph.
    #[must_use]
    pub fn weight(&self, weight: Weight) -> u64 {
        match weight {
            Weight::LiveBytes => self.sums.live_bytes(),
            Weight::LiveBlocks => self.sums.live_blocks(),
            Weight::AllocBytes => self.sums.alloc_bytes,
            Weight::AllocBlocks => self.sums.alloc_blocks,
        }
    }
}
