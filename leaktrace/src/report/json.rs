//! The JSON report: everything that is known, for other programs.
//!
//! # Schema, version 1
//! One object. Fields are added in later versions of leaktrace, never renamed
//! or given another meaning; only then `schema_version` would change. What is
//! unknown is `null`; every field listed here is always there. Units are in
//! names (`_bytes`, `_ns`, `_per_minute`), shares are from 0 to 1, times of day
//! are RFC 3339 with offset, names of files and functions are UTF-8 with
//! `U+FFFD` for what is not.
//!
//! | field | what |
//! | --- | --- |
//! | `schema_version` | 1 |
//! | `tool` | `name`, `version` |
//! | `sequence` | of objects printed by `--format json-lines`: their number, from 1, the last report's included; where one is missing, nobody read it in time, or the next was due before it was made. `null` in files |
//! | `process` | `pid`, `name`, `exe`, `started` |
//! | `started` | when events began to count |
//! | `taken` | when this report was taken |
//! | `elapsed_ns` | how long events had counted by then |
//! | `enabled_ns`, `enabled_uncertainty_ns` | the same beginning on `CLOCK_MONOTONIC`: the true instant lies within \[`enabled_ns` - `enabled_uncertainty_ns`, `enabled_ns`\] |
//! | `disabled_ns`, `disabled_uncertainty_ns` | likewise, when events ceased to count; `null` while they do |
//! | `end` | `null` while tracing, else `reason`: `duration`, `signal` (with `signal`), `target_exit`, `target_exec`, `output_closed`, `probes_lost`, `alert` (with `alert`, the condition) or `overhead` (with `cost` and `limit`, shares of the target's CPU time) |
//! | `options` | options that shape the report, name to value; one given several times has its values joined by `, ` |
//! | `features` | name to `available`, `used`, and what is done `instead` (`null` where it is used, or nothing uses it yet) |
//! | `watched` | list of `path`, `build_id`, `functions` |
//! | `counters` | every counter by its name |
//! | `nested_calls` | list of `outer`, `inner` (`alloc`, `alloc_array`, `realloc`, `realloc_array`, `alloc_out`, `free`), `count`: allocator calls made inside others, counted as part of the outer one; only those that occurred |
//! | `totals` | over all stacks, whatever filters by age say: `live_bytes`, `live_blocks`, `alloc_bytes`, `alloc_blocks`, `freed_bytes`, `freed_blocks`; `lost` events (not 0: all of these are lower bounds), `inexact` events, `exact` (neither occurred), `complete_share` of the allocations and `complete_bytes_share` of the bytes held have complete stacks |
//! | `unwinding` | whether return addresses in stacks can be true: `return_addresses`, how many different ones were looked at in their files; `after_call`, how many of them follow a call instruction, and `after_call_share`; `doubtful_stacks`, how many stacks are complete though they have one that does not |
//! | `alloc_per_second` | allocations per second, since the report before or, at the end, the start |
//! | `cost` | share of the target's CPU time that tracing takes |
//! | `cost_cpus` | CPU time per second that tracing takes of the target |
//! | `pair_cost_ns` | what one allocation with its free costs, measured at the start |
//! | `memory` | `at_start` and `now`: `rss_bytes`, `rss_anon_bytes`, `rss_file_bytes`, `rss_shmem_bytes`, `swap_bytes`, `vm_size_bytes`, `threads`, `descriptors`, `cgroup_usage_bytes`, `cgroup_limit_bytes`; `read_ns`: when `now` was read, since the start, `null` when not after the start |
//! | `trends` | how the process's figures moved: `memory` (RSS and swap, bytes), `descriptors`, `threads`: each a trend, or `null` |
//! | `mark` | `null`, or the moment from which growth counts: `time`, `at_ns` since the start, `filters` (only blocks made since are shown) |
//! | `verdicts` | of all sites that hold something, by `verdict`: `sites`, `live_bytes`, `growth_per_minute` |
//! | `common_caller` | `null`, or what growing stacks have in common: `function`, `stacks` that pass through it of `growing` ones, `share` of all growth |
//! | `rss_growth` | what the growth of RSS with swap is made of: `grown_bytes`, `swapped_bytes` of it, `traced_bytes`, and `causes` of the rest, a list of `what` (`kept_by_malloc`, `headers`, `filtered_or_kept`, `named_mappings`, `mappings`, `stacks`, `files`, `shared`, `touched_later`, `unknown`), `bytes`, `mostly` (the file or name that grew most, or `null`); `null` before the end, or when it could not be read |
//! | `forecasts` | limits that are reached if growth goes on like this, at most one of a resource: `limit` (`cgroup_memory`, `cgroup_memory_high`, `address_space`, `data`, `machine_memory`, `descriptors`, `user_threads`, `cgroup_threads`, `machine_threads`), `most`, `room` (bytes or things), `likely_ns`, `earliest_ns`, `latest_ns` (or `null`: perhaps never); empty before the end |
//! | `site_count` | how many stacks pass the filters |
//! | `notes` | sentences about how far this can be trusted |
//! | `stacks` | those that pass the filters, in the order asked for |
//!
//! A stack: `id` (hexadecimal, stable within one trace), `class` (`heap`),
//! `live_bytes`, `live_blocks`, `alloc_bytes`, `alloc_blocks`, `freed_bytes`,
//! `freed_blocks`, `growth_per_minute` (bytes; of blocks of any age; the mean since the start or
//! the mark), `trend` (`null` when it was not observed), `survival` (of its blocks: a list of
//! `age_ns`, `reached` and `of`, how many about were made early enough; of blocks of any age),
//! `oldest_age_ns`, `complete`, `end` (`complete`, or why it is not), `frames`.
//!
//! A trend: `verdict` (`growing`, `filling`, `sawtooth`, `churn`, `one_off`, `flat` or `too_early`),
//! `confidence` (0 to 1), `per_minute` with `low_per_minute` and `high_per_minute` (90 % lie between;
//! how fast it rises for good), `observed_ns`, `steady_ns` (how long it has not changed, or `null`),
//! `period_ns` (or `null`).
//!
//! A frame, from the allocating function (`malloc` itself) outwards: `symbol`
//! (demangled), `symbol_offset` (bytes from the function's start), `module` (the
//! mapped file), `file_offset`, `build_id`, `source`, `line`, `inlined` (into
//! the next frame), `kind` (`allocator` or `program`).

use std::{collections::BTreeMap, path::Path, time::Duration};

use leaktrace_common::{counter::Counter, function::Role};
use serde::Serialize;

use crate::model::{
    self, CauseKind, Completeness, EndReason, FeatureInfo, Frame, FrameKind, LimitKind,
    MemorySample, ProcessInfo, Report, SelfCheck, Site, TraceInfo, Verdict, WatchedFileInfo,
};

/// Version of the schema that this writes.
pub const SCHEMA_VERSION: u32 = 1;

/// The report as one line of JSON.
///
/// # Errors
/// When it can't be serialized, which would be a defect.
pub fn render(report: &Report) -> anyhow::Result<Vec<u8>> {
    Ok(line(&Document::of(report))?.into_bytes())
}

/// The report as one of several lines, the how manieth.
///
/// # Errors
/// As for [`render`].
pub fn render_numbered(report: &Report, sequence: u64) -> anyhow::Result<String> {
    line(&Document {
        sequence: Some(sequence),
        ..Document::of(report)
    })
}

fn line(document: &Document<'_>) -> anyhow::Result<String> {
    let mut line = serde_json::to_string(document)?;
    line.push('\n');
    Ok(line)
}

/// The root object; the module's documentation describes its fields.
#[derive(Debug, Serialize)]
pub struct Document<'a> {
    schema_version: u32,
    tool: Tool,
    sequence: Option<u64>,
    process: Process<'a>,
    started: String,
    taken: String,
    elapsed_ns: u64,
    enabled_ns: u64,
    enabled_uncertainty_ns: u64,
    disabled_ns: Option<u64>,
    disabled_uncertainty_ns: Option<u64>,
    end: Option<End<'a>>,
    options: BTreeMap<&'a str, String>,
    features: BTreeMap<&'static str, Feature>,
    watched: Vec<Watched<'a>>,
    counters: BTreeMap<&'static str, u64>,
    nested_calls: Vec<NestedCalls>,
    totals: Totals,
    unwinding: Unwinding,
    alloc_per_second: f64,
    cost: Option<f64>,
    cost_cpus: Option<f64>,
    pair_cost_ns: Option<u64>,
    memory: Memory,
    trends: ProcessTrends,
    rss_growth: Option<RssGrowth<'a>>,
    forecasts: Vec<Forecast>,
    mark: Option<Mark>,
    verdicts: Vec<VerdictSums>,
    common_caller: Option<CommonCaller<'a>>,
    site_count: usize,
    notes: &'a [String],
    stacks: Vec<Stack<'a>>,
}

#[derive(Debug, Serialize)]
struct Tool {
    name: &'static str,
    version: &'static str,
}

#[derive(Debug, Serialize)]
struct Process<'a> {
    pid: u32,
    name: &'a str,
    exe: String,
    started: String,
}

#[derive(Debug, Serialize)]
struct End<'a> {
    reason: &'static str,
    signal: Option<&'static str>,
    alert: Option<&'a str>,
    cost: Option<f64>,
    limit: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Feature {
    available: bool,
    used: bool,
    instead: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct Watched<'a> {
    path: String,
    build_id: Option<&'a str>,
    functions: &'a [String],
}

#[derive(Debug, Serialize)]
struct NestedCalls {
    outer: &'static str,
    inner: &'static str,
    count: u64,
}

#[derive(Debug, Serialize)]
struct Totals {
    live_bytes: u64,
    live_blocks: u64,
    alloc_bytes: u64,
    alloc_blocks: u64,
    freed_bytes: u64,
    freed_blocks: u64,
    lost: u64,
    inexact: u64,
    exact: bool,
    complete_share: Option<f64>,
    complete_bytes_share: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Unwinding {
    return_addresses: u64,
    after_call: u64,
    after_call_share: Option<f64>,
    doubtful_stacks: u64,
}

#[derive(Debug, Serialize)]
struct Memory {
    at_start: Sample,
    now: Sample,
    read_ns: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Sample {
    rss_bytes: Option<u64>,
    rss_anon_bytes: Option<u64>,
    rss_file_bytes: Option<u64>,
    rss_shmem_bytes: Option<u64>,
    swap_bytes: Option<u64>,
    vm_size_bytes: Option<u64>,
    threads: Option<u64>,
    descriptors: Option<u64>,
    cgroup_usage_bytes: Option<u64>,
    cgroup_limit_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
struct ProcessTrends {
    memory: Option<Trend>,
    descriptors: Option<Trend>,
    threads: Option<Trend>,
}

#[derive(Debug, Serialize)]
struct Trend {
    verdict: &'static str,
    confidence: f64,
    per_minute: f64,
    low_per_minute: f64,
    high_per_minute: f64,
    observed_ns: u64,
    steady_ns: Option<u64>,
    period_ns: Option<u64>,
}

#[derive(Debug, Serialize)]
struct RssGrowth<'a> {
    grown_bytes: u64,
    swapped_bytes: u64,
    traced_bytes: u64,
    causes: Vec<RssCause<'a>>,
}

#[derive(Debug, Serialize)]
struct RssCause<'a> {
    what: &'static str,
    bytes: u64,
    mostly: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Forecast {
    limit: &'static str,
    most: u64,
    room: u64,
    likely_ns: u64,
    earliest_ns: u64,
    latest_ns: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Mark {
    time: String,
    at_ns: u64,
    filters: bool,
}

#[derive(Debug, Serialize)]
struct VerdictSums {
    verdict: &'static str,
    sites: usize,
    live_bytes: u64,
    growth_per_minute: f64,
}

#[derive(Debug, Serialize)]
struct CommonCaller<'a> {
    function: &'a str,
    stacks: usize,
    growing: usize,
    share: f64,
}

#[derive(Debug, Serialize)]
struct Survival {
    age_ns: u64,
    reached: u64,
    of: u64,
}

#[derive(Debug, Serialize)]
struct Stack<'a> {
    id: String,
    class: &'static str,
    live_bytes: u64,
    live_blocks: u64,
    alloc_bytes: u64,
    alloc_blocks: u64,
    freed_bytes: u64,
    freed_blocks: u64,
    growth_per_minute: f64,
    trend: Option<Trend>,
    survival: Vec<Survival>,
    oldest_age_ns: Option<u64>,
    complete: bool,
    end: &'a str,
    frames: Vec<StackFrame<'a>>,
}

#[derive(Debug, Serialize)]
struct StackFrame<'a> {
    symbol: Option<&'a str>,
    symbol_offset: u64,
    module: Option<&'a str>,
    file_offset: u64,
    build_id: Option<&'a str>,
    source: Option<&'a str>,
    line: Option<u32>,
    inlined: bool,
    kind: &'static str,
}

impl<'a> Document<'a> {
    /// The report in the shape of the schema.
    #[must_use]
    pub fn of(report: &'a Report) -> Self {
        let trace = &report.trace;
        Self {
            schema_version: SCHEMA_VERSION,
            tool: Tool {
                name: env!("CARGO_PKG_NAME"),
                version: env!("CARGO_PKG_VERSION"),
            },
            sequence: None,
            process: Process::of(&report.process),
            started: time_of_day(&trace.started),
            taken: time_of_day(&report.taken),
            elapsed_ns: nanoseconds(report.elapsed),
            enabled_ns: trace.enabled.latest_ns,
            enabled_uncertainty_ns: uncertainty(trace.enabled),
            disabled_ns: trace.disabled.map(|edge| edge.latest_ns),
            disabled_uncertainty_ns: trace.disabled.map(uncertainty),
            end: report.end.as_ref().map(End::of),
            options: options(trace),
            features: trace.features.iter().map(feature).collect(),
            watched: trace.watched.iter().map(Watched::of).collect(),
            counters: Counter::ALL
                .iter()
                .map(|c| (c.name(), report.counter(*c)))
                .collect(),
            nested_calls: nested_calls(report),
            totals: Totals::of(report),
            unwinding: Unwinding::of(&report.self_check),
            alloc_per_second: report.alloc_rate,
            cost: report.cost,
            cost_cpus: report.cost_cpus,
            pair_cost_ns: trace.pair_cost.map(nanoseconds),
            memory: Memory {
                at_start: Sample::of(&report.memory_at_start),
                read_ns: report.memory_read.map(nanoseconds),
                now: Sample::of(&report.memory),
            },
            trends: ProcessTrends::of(&report.trends),
            rss_growth: report.rss_growth.as_ref().map(RssGrowth::of),
            forecasts: report.forecasts.iter().map(Forecast::of).collect(),
            mark: report.mark.as_ref().map(Mark::of),
            verdicts: report.verdicts.iter().map(VerdictSums::of).collect(),
            common_caller: report.common_caller.as_ref().map(CommonCaller::of),
            site_count: report.site_count,
            notes: &report.notes,
            stacks: report.sites.iter().map(Stack::of).collect(),
        }
    }
}

impl<'a> Process<'a> {
    fn of(process: &'a ProcessInfo) -> Self {
        Self {
            pid: process.pid,
            name: &process.name,
            exe: path_text(&process.exe),
            started: time_of_day(&process.started),
        }
    }
}

impl<'a> End<'a> {
    fn of(end: &'a EndReason) -> Self {
        let plain = |reason| Self {
            reason,
            signal: None,
            alert: None,
            cost: None,
            limit: None,
        };
        match end {
            EndReason::Duration => plain("duration"),
            EndReason::Signal(signal) => Self {
                signal: Some(signal),
                ..plain("signal")
            },
            EndReason::TargetExit => plain("target_exit"),
            EndReason::TargetExec => plain("target_exec"),
            EndReason::OutputClosed => plain("output_closed"),
            EndReason::ProbesLost => plain("probes_lost"),
            EndReason::Alert(condition) => Self {
                alert: Some(condition),
                ..plain("alert")
            },
            EndReason::Overhead { cost, limit } => Self {
                cost: Some(*cost),
                limit: Some(*limit),
                ..plain("overhead")
            },
        }
    }
}

impl<'a> Watched<'a> {
    fn of(file: &'a WatchedFileInfo) -> Self {
        Self {
            path: path_text(&file.path),
            build_id: file.build_id.as_deref(),
            functions: &file.functions,
        }
    }
}

impl Totals {
    fn of(report: &Report) -> Self {
        let totals = &report.totals;
        let (lost, inexact) = (report.lost(), report.inexact());
        Self {
            live_bytes: totals.live_bytes(),
            live_blocks: totals.live_blocks(),
            alloc_bytes: totals.alloc_bytes,
            alloc_blocks: totals.alloc_blocks,
            freed_bytes: totals.freed_bytes,
            freed_blocks: totals.freed_blocks,
            lost,
            inexact,
            exact: lost == 0 && inexact == 0,
            complete_share: report.complete.calls,
            complete_bytes_share: report.complete.bytes,
        }
    }
}

impl Unwinding {
    fn of(check: &SelfCheck) -> Self {
        Self {
            return_addresses: check.return_addresses,
            after_call: check.after_call,
            after_call_share: check.share(),
            doubtful_stacks: check.doubtful_stacks,
        }
    }
}

impl Sample {
    fn of(sample: &MemorySample) -> Self {
        Self {
            rss_bytes: sample.rss,
            rss_anon_bytes: sample.rss_anon,
            rss_file_bytes: sample.rss_file,
            rss_shmem_bytes: sample.rss_shmem,
            swap_bytes: sample.swap,
            vm_size_bytes: sample.vm_size,
            threads: sample.threads,
            descriptors: sample.descriptors,
            cgroup_usage_bytes: sample.cgroup_usage,
            cgroup_limit_bytes: sample.cgroup_limit,
        }
    }
}

impl ProcessTrends {
    fn of(trends: &model::ProcessTrends) -> Self {
        Self {
            memory: trends.memory.as_ref().map(Trend::of),
            descriptors: trends.descriptors.as_ref().map(Trend::of),
            threads: trends.threads.as_ref().map(Trend::of),
        }
    }
}

impl Trend {
    fn of(trend: &model::Trend) -> Self {
        Self {
            verdict: verdict_name(trend.verdict),
            confidence: trend.confidence,
            per_minute: trend.rate.per_minute,
            low_per_minute: trend.rate.low,
            high_per_minute: trend.rate.high,
            observed_ns: nanoseconds(trend.observed),
            steady_ns: trend.steady.map(nanoseconds),
            period_ns: trend.period.map(nanoseconds),
        }
    }
}

impl<'a> RssGrowth<'a> {
    fn of(growth: &'a model::RssGrowth) -> Self {
        Self {
            grown_bytes: growth.grown,
            swapped_bytes: growth.swapped,
            traced_bytes: growth.traced,
            causes: growth.causes.iter().map(RssCause::of).collect(),
        }
    }
}

impl<'a> RssCause<'a> {
    fn of(cause: &'a model::Cause) -> Self {
        Self {
            what: match cause.kind {
                CauseKind::Kept { .. } => "kept_by_malloc",
                CauseKind::Headers => "headers",
                CauseKind::FilteredOrKept => "filtered_or_kept",
                CauseKind::Named => "named_mappings",
                CauseKind::Anonymous => "mappings",
                CauseKind::Stacks(_) => "stacks",
                CauseKind::Files => "files",
                CauseKind::Shared => "shared",
                CauseKind::TouchedLater => "touched_later",
                CauseKind::Unknown => "unknown",
            },
            bytes: cause.bytes,
            mostly: cause.mostly.as_deref().filter(|name| !name.is_empty()),
        }
    }
}

impl Forecast {
    fn of(forecast: &model::Forecast) -> Self {
        Self {
            limit: match forecast.limit.kind {
                LimitKind::CgroupMemory => "cgroup_memory",
                LimitKind::CgroupHigh => "cgroup_memory_high",
                LimitKind::AddressSpace => "address_space",
                LimitKind::Data => "data",
                LimitKind::Machine => "machine_memory",
                LimitKind::Descriptors => "descriptors",
                LimitKind::UserThreads => "user_threads",
                LimitKind::CgroupThreads => "cgroup_threads",
                LimitKind::MachineThreads => "machine_threads",
                LimitKind::Mappings => "mappings",
            },
            most: forecast.limit.most,
            room: forecast.limit.room,
            likely_ns: nanoseconds(forecast.likely),
            earliest_ns: nanoseconds(forecast.earliest),
            latest_ns: forecast.latest.map(nanoseconds),
        }
    }
}

impl Mark {
    fn of(mark: &model::Mark) -> Self {
        Self {
            time: time_of_day(&mark.time),
            at_ns: nanoseconds(mark.at),
            filters: mark.filters,
        }
    }
}

impl VerdictSums {
    fn of((verdict, sums): &(Verdict, model::VerdictSums)) -> Self {
        Self {
            verdict: verdict_name(*verdict),
            sites: sums.sites,
            live_bytes: sums.live_bytes,
            growth_per_minute: sums.growth_per_minute,
        }
    }
}

impl<'a> CommonCaller<'a> {
    fn of(common_caller: &'a model::CommonCaller) -> Self {
        Self {
            function: &common_caller.function,
            stacks: common_caller.stacks,
            growing: common_caller.growing,
            share: common_caller.share,
        }
    }
}

impl Survival {
    fn of(survival: &model::Survival) -> Self {
        Self {
            age_ns: nanoseconds(survival.age),
            reached: survival.reached,
            of: survival.of,
        }
    }
}

const fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Growing => "growing",
        Verdict::Filling => "filling",
        Verdict::Sawtooth => "sawtooth",
        Verdict::Churn => "churn",
        Verdict::OneOff => "one_off",
        Verdict::Flat => "flat",
        Verdict::TooEarly => "too_early",
    }
}

impl<'a> Stack<'a> {
    fn of(site: &'a Site) -> Self {
        let end = match &site.end {
            Completeness::Complete => "complete",
            Completeness::Incomplete(reason) => reason,
        };
        Self {
            id: format!("{:016x}", site.stack_id),
            class: site.class,
            live_bytes: site.sums.live_bytes(),
            live_blocks: site.sums.live_blocks(),
            alloc_bytes: site.sums.alloc_bytes,
            alloc_blocks: site.sums.alloc_blocks,
            freed_bytes: site.sums.freed_bytes,
            freed_blocks: site.sums.freed_blocks,
            growth_per_minute: site.growth_per_minute,
            trend: site.trend.as_ref().map(Trend::of),
            survival: site.survival.iter().map(Survival::of).collect(),
            oldest_age_ns: site.oldest_age.map(nanoseconds),
            complete: site.end.is_complete(),
            end,
            frames: site.frames.iter().map(StackFrame::of).collect(),
        }
    }
}

impl<'a> StackFrame<'a> {
    fn of(frame: &'a Frame) -> Self {
        Self {
            symbol: frame.symbol.as_deref(),
            symbol_offset: frame.symbol_offset,
            module: frame.module.as_deref(),
            file_offset: frame.file_offset,
            build_id: frame.build_id.as_deref(),
            source: frame.source.as_deref(),
            line: frame.line,
            inlined: frame.inlined,
            kind: match frame.kind {
                FrameKind::Allocator => "allocator",
                FrameKind::Program => "program",
            },
        }
    }
}

fn feature(feature: &FeatureInfo) -> (&'static str, Feature) {
    (
        feature.name,
        Feature {
            available: feature.available,
            used: feature.used,
            instead: feature.instead(),
        },
    )
}

fn options(trace: &TraceInfo) -> BTreeMap<&str, String> {
    let mut options: BTreeMap<&str, String> = BTreeMap::new();
    for (option, value) in &trace.options {
        options
            .entry(option.trim_start_matches('-'))
            .and_modify(|values| {
                values.push_str(", ");
                values.push_str(value);
            })
            .or_insert_with(|| value.clone());
    }
    options
}

fn nested_calls(report: &Report) -> Vec<NestedCalls> {
    let mut calls = Vec::new();
    for outer in Role::ALL {
        for inner in Role::ALL {
            let count = report.counters.nested[outer as usize][inner as usize];
            if count > 0 {
                calls.push(NestedCalls {
                    outer: role_name(outer),
                    inner: role_name(inner),
                    count,
                });
            }
        }
    }
    calls
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Alloc => "alloc",
        Role::AllocArray => "alloc_array",
        Role::Realloc => "realloc",
        Role::ReallocArray => "realloc_array",
        Role::AllocOut => "alloc_out",
        Role::Free => "free",
    }
}

fn uncertainty(edge: model::Edge) -> u64 {
    edge.latest_ns.saturating_sub(edge.earliest_ns)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn time_of_day(time: &jiff::Zoned) -> String {
    time.timestamp()
        .display_with_offset(time.offset())
        .to_string()
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
