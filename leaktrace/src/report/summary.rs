//! The final report, which is also the `txt` output: what is held, by whole
//! stacks, and what was not seen.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use leaktrace_common::counter::{Counter, Effect};

use crate::{
    model::{Completeness, EndReason, MemorySample, Report, Site, SortKey},
    report::{
        line::{Line, Look},
        name, quantity, stack, table,
    },
};

/// Options that leave blocks or sites out, as [`TraceInfo::options`] names
/// them.
///
/// [`TraceInfo::options`]: crate::model::TraceInfo::options
const FILTERS: [&str; 4] = ["min-size", "max-size", "min-age", "max-age"];

/// How the summary is to look.
#[derive(Clone, Copy, Debug)]
pub struct SummaryOptions {
    /// Columns to fit lines into, by shortening names; `None` for a file.
    pub width: Option<usize>,
    /// Whether escape sequences for colours are allowed.
    pub colour: bool,
    /// Most sites to show.
    pub top: usize,
}

/// The whole summary.
#[must_use]
pub fn render(report: &Report, options: &SummaryOptions) -> String {
    let mut page = Page {
        options: *options,
        text: String::new(),
    };
    header(report, &mut page);
    page.gap();
    verdict(report, &mut page);
    sites(report, &mut page);
    page.gap();
    not_seen(report, &mut page);
    page.gap();
    memory(report, &mut page);
    page.text
}

/// The lines that follow the summary on a terminal: the files written, and
/// what to do with them. Empty when nothing was written.
#[must_use]
pub fn closing(written: &[PathBuf]) -> String {
    let mut text = String::new();
    let shown = |path: &Path| name::clean(&path.to_string_lossy()).into_owned();
    let Some(first) = written.first() else {
        return text;
    };
    let directory = first
        .parent()
        .filter(|directory| !directory.as_os_str().is_empty());
    let together = written.iter().all(|path| path.parent() == first.parent());
    let names: Vec<_> = match (directory, together) {
        (Some(directory), true) => {
            text = format!("Written to {}/: ", shown(directory).trim_end_matches('/'));
            written
                .iter()
                .filter_map(|path| path.file_name())
                .map(|n| shown(n.as_ref()))
                .collect()
        }
        _ => {
            text.push_str("Written: ");
            written.iter().map(|path| shown(path)).collect()
        }
    };
    text.push_str(&names.join(", "));
    text.push('\n');
    let picture = written
        .iter()
        .find(|path| path.extension().is_some_and(|e| e == "svg"));
    if let Some(picture) = picture {
        // Also a name with a space can be copied from here.
        let path = shown(picture);
        let quote = if path.contains([' ', '\'', '"', '$', '`', '\\']) {
            "\""
        } else {
            ""
        };
        _ = writeln!(text, "Look at it in a browser:  {quote}{path}{quote}");
    }
    text
}

/// Collects lines.
struct Page {
    options: SummaryOptions,
    text: String,
}

impl Page {
    fn line(&mut self, line: &Line) {
        line.render(self.options.colour, &mut self.text);
    }

    fn say(&mut self, look: Look, text: impl Into<String>) {
        let mut line = Line::default();
        line.push(look, text);
        self.line(&line);
    }

    fn gap(&mut self) {
        if !self.text.is_empty() && !self.text.ends_with("\n\n") {
            self.text.push('\n');
        }
    }
}

/// Who, since when, until when, and what was watched.
fn header(report: &Report, page: &mut Page) {
    let process = &report.process;
    let exe = process.exe.to_string_lossy();
    let mut line = Line::default();
    line.push(
        Look::Strong,
        format!("{} ({})", name::clean(&process.name), process.pid),
    );
    line.push(Look::Plain, format!(" {}", name::clean(&exe)));
    let since = process.started.strftime("%F %T");
    line.push(Look::Plain, format!(", running since {since}"));
    page.line(&line);
    page.say(
        Look::Plain,
        format!("traced {}{}", period(report), ending(report)),
    );
    for file in &report.trace.watched {
        let path = file.path.to_string_lossy();
        page.say(
            Look::Plain,
            format!(
                "watched {} functions in {}: {}",
                file.functions.len(),
                name::clean(&path),
                name::clean(&file.functions.join(", "))
            ),
        );
    }
    // Filters are told with what was not seen.
    let others: Vec<_> = report
        .trace
        .options
        .iter()
        .filter(|option| !is_filter(option))
        .collect();
    if !others.is_empty() {
        page.say(Look::Plain, format!("options {}", options_text(&others)));
    }
}

fn is_filter((option, _): &(String, String)) -> bool {
    FILTERS.contains(&option.trim_start_matches('-'))
}

fn options_text(options: &[&(String, String)]) -> String {
    let texts: Vec<_> = options
        .iter()
        .map(|(option, value)| {
            format!(
                "--{} {}",
                name::clean(option.trim_start_matches('-')),
                name::clean(value)
            )
        })
        .collect();
    texts.join(" ")
}

/// `60 s, 2026-11-21 03:14:07 +0100 to 03:15:07`
fn period(report: &Report) -> String {
    let (from, to) = covered(report);
    let until = if from.date() == to.date() {
        "%T"
    } else {
        "%F %T"
    };
    format!(
        "{}, {} to {}",
        quantity::duration(report.elapsed),
        from.strftime("%F %T %z"),
        to.strftime(until)
    )
}

/// The wall clock's times between which events counted.
fn covered(report: &Report) -> (&jiff::Zoned, jiff::Zoned) {
    let from = &report.trace.started;
    let to = from
        .checked_add(report.elapsed)
        .unwrap_or_else(|_| report.taken.clone());
    (from, to)
}

fn ending(report: &Report) -> String {
    let process = name::clean(&report.process.name);
    match &report.end {
        None => ", still tracing".to_owned(),
        Some(EndReason::Duration) => ", as long as --duration said".to_owned(),
        Some(EndReason::Signal(signal)) => format!(", until {signal}"),
        Some(EndReason::TargetExit) => format!(", until {process} ended"),
        Some(EndReason::TargetExec) => format!(", until {process} replaced itself by exec"),
        Some(EndReason::OutputClosed) => ", until nobody read the output any more".to_owned(),
        Some(EndReason::Overhead { .. }) => ", until the limit of --max-overhead".to_owned(),
    }
}

/// What a tired person needs, in the first sentences.
fn verdict(report: &Report, page: &mut Page) {
    let process = name::clean(&report.process.name);
    let totals = &report.totals;
    let elapsed = quantity::duration(report.elapsed);
    if let Some(EndReason::Overhead { cost, limit }) = report.end {
        let (from, to) = covered(report);
        page.say(
            Look::Alarm,
            format!(
                "DETACHED after {elapsed}: tracing took {} of {process}'s CPU (limit {}). The report covers {}-{}.",
                quantity::percent(cost),
                quantity::percent(limit),
                from.strftime("%T"),
                to.strftime("%T"),
            ),
        );
    }
    if totals.alloc_blocks == 0 {
        page.say(Look::Strong, nothing_seen(report));
    } else {
        page.say(Look::Strong, held(report));
    }
    let (lost, inexact) = (report.lost(), report.inexact());
    if lost > 0 {
        let lost = quantity::grouped(lost);
        page.say(
            Look::Alarm,
            format!("Totals are a lower bound: {lost} events were lost (see below)."),
        );
    }
    if inexact > 0 {
        let inexact = quantity::grouped(inexact);
        page.say(
            Look::Alarm,
            format!("Totals are inexact: {inexact} events could not be told apart (see below)."),
        );
    }
    for note in &report.notes {
        page.say(Look::Plain, name::clean(note));
    }
    page.say(Look::Plain, beside_rss(report));
}

fn nothing_seen(report: &Report) -> String {
    let process = name::clean(&report.process.name);
    let elapsed = quantity::duration(report.elapsed);
    let calls = report.counter(Counter::AllocCalls);
    let filtered = report.counter(Counter::Filtered);
    match (calls, filtered) {
        (0, _) => {
            format!(
                "malloc was never called in {elapsed}: {process} is idle, or it uses another allocator."
            )
        }
        (_, 0) => format!(
            "No allocation was recorded in {elapsed}, though {} calls asked for memory.",
            quantity::grouped(calls)
        ),
        _ => format!(
            "Nothing passed the size filter in {elapsed}: it left out {} allocations.",
            quantity::grouped(filtered)
        ),
    }
}

fn held(report: &Report) -> String {
    let totals = &report.totals;
    let elapsed = quantity::duration(report.elapsed);
    let blocks = quantity::count(totals.alloc_blocks);
    let freed = quantity::percent(totals.freed_share());
    if totals.live_blocks() == 0 {
        return format!("Nothing is held: {blocks} blocks allocated in {elapsed}, all freed.");
    }
    let live = quantity::bytes_fine(totals.live_bytes());
    if report.growing.is_empty() {
        let largest = report.sites.iter().map(|site| site.sums.live_bytes()).max();
        let largest = largest.map_or_else(String::new, |bytes| {
            format!(" (largest site {})", quantity::bytes(bytes))
        });
        return format!(
            "No site grew in {elapsed}: {blocks} blocks allocated, {freed} freed, {live} held{largest}."
        );
    }
    format!(
        "{live} held in {} blocks: {blocks} blocks allocated in {elapsed}, {freed} freed.",
        quantity::count(totals.live_blocks()),
    )
}

/// How far the blocks seen explain what RSS did; empty when that is unknown.
fn beside_rss(report: &Report) -> String {
    const NOTEWORTHY: u64 = 4 << 20;
    let (Some(then), Some(now)) = (report.memory_at_start.rss, report.memory.rss) else {
        return "RSS could not be read.".to_owned();
    };
    let live = report.totals.live_bytes();
    let grown = now.saturating_sub(then);
    let held = if live == 0 {
        "nothing".to_owned()
    } else {
        quantity::bytes_short(live)
    };
    if grown >= NOTEWORTHY && live < grown / 2 {
        let little = if live == 0 {
            held
        } else {
            format!("only {held}")
        };
        return format!(
            "RSS grew {}, malloc {little}: the rest is mappings, a runtime's own heap, or free memory that malloc keeps.",
            quantity::bytes_short(grown),
        );
    }
    match now.cmp(&then) {
        std::cmp::Ordering::Less => format!(
            "RSS shrank by {}, to {}.",
            quantity::bytes_short(then - now),
            quantity::bytes_fine(now)
        ),
        std::cmp::Ordering::Equal => format!("RSS stayed at {}.", quantity::bytes_fine(now)),
        std::cmp::Ordering::Greater => format!(
            "RSS grew {}, to {}.",
            quantity::bytes_short(grown),
            quantity::bytes_fine(now)
        ),
    }
}

/// Whole stacks of the first sites, and of those that grow.
fn sites(report: &Report, page: &mut Page) {
    let top = page.options.top;
    let shown = report.sites.len().min(top);
    if shown == 0 {
        if report.totals.live_blocks() > 0 {
            page.gap();
            page.say(
                Look::Plain,
                format!("{}.", capital(&table::nothing_held(report))),
            );
        }
        return;
    }
    page.gap();
    let count = quantity::count(report.site_count as u64);
    let order = order_text(report.trace.sort);
    let title = match (report.site_count, shown == report.site_count) {
        (1, _) => "The only site:".to_owned(),
        (_, true) => format!("All {count} sites, by {order}:"),
        (_, false) => format!("The first {shown} of {count} sites, by {order}:"),
    };
    page.say(Look::Strong, title);
    for (index, site) in report.sites.iter().take(shown).enumerate() {
        page.gap();
        whole_site(index + 1, site, page);
    }
    let rest: Vec<_> = report
        .growing
        .iter()
        .filter(|index| **index >= shown)
        .collect();
    if rest.is_empty() {
        return;
    }
    page.gap();
    page.say(Look::Strong, "Not among them, but growing fast:");
    for index in rest {
        if let Some(site) = report.sites.get(*index) {
            page.gap();
            whole_site(index + 1, site, page);
        }
    }
}

fn order_text(sort: SortKey) -> &'static str {
    match sort {
        SortKey::LiveBytes => "live bytes",
        SortKey::Growth => "growth",
        SortKey::LiveBlocks => "live blocks",
        SortKey::AllocBytes => "bytes allocated",
    }
}

fn capital(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(characters).collect()
    })
}

fn whole_site(rank: usize, site: &Site, page: &mut Page) {
    let sums = &site.sums;
    let blocks = sums.live_blocks();
    let plural = if blocks == 1 { "block" } else { "blocks" };
    let mut line = Line::default();
    line.push(Look::Faint, format!("{rank:>3}  "));
    line.push(Look::Strong, quantity::bytes(sums.live_bytes()));
    let mut rest = format!(
        " in {} {plural}, {}, {} of {} freed",
        quantity::count(blocks),
        quantity::growth(site.growth_per_minute),
        quantity::percent(sums.freed_share()),
        quantity::count(sums.alloc_blocks),
    );
    if let Some(age) = site.oldest_age {
        rest.push_str(&format!(", oldest {}", quantity::duration(age)));
    }
    line.push(Look::Plain, rest);
    page.line(&line);
    for line in stack::whole(site, 7, page.options.width) {
        page.line(&line);
    }
}

/// Blocks from before, losses by reason, incomplete stacks by reason, filters.
fn not_seen(report: &Report, page: &mut Page) {
    page.say(Look::Strong, "Not seen, or not exactly:");
    let since = report.trace.started.strftime("%T");
    let rss = report.memory_at_start.rss.map_or_else(String::new, |rss| {
        format!(" (RSS was {} then)", quantity::bytes_fine(rss))
    });
    page.say(
        Look::Plain,
        format!("  blocks allocated before {since}{rss}"),
    );
    for (effect, look, suffix) in [
        (Effect::Lost, Look::Alarm, ": totals are a lower bound"),
        (Effect::Inexact, Look::Alarm, ": totals are inexact"),
        (Effect::None, Look::Plain, ""),
    ] {
        for counter in Counter::ALL
            .iter()
            .filter(|counter| counter.effect() == effect)
        {
            let value = report.counter(*counter);
            let ordinary = matches!(counter, Counter::AllocCalls | Counter::FreeCalls);
            if value > 0 && !ordinary {
                let text = format!("  {} {}", quantity::grouped(value), counter.text());
                page.say(look, format!("{text}{suffix}"));
            }
        }
    }
    incomplete_stacks(report, page);
    let filters: Vec<_> = report
        .trace
        .options
        .iter()
        .filter(|option| is_filter(option))
        .collect();
    if !filters.is_empty() {
        page.say(
            Look::Plain,
            format!("  what the filters leave out: {}", options_text(&filters)),
        );
    }
}

fn incomplete_stacks(report: &Report, page: &mut Page) {
    if let Some(share) = report.complete_share.filter(|share| *share < 1.0) {
        let share = quantity::percent(share);
        page.say(
            Look::Plain,
            format!("  callers: the stacks of {share} of the allocations are complete"),
        );
    }
    let mut reasons: Vec<(&str, usize, u64)> = Vec::new();
    for site in &report.sites {
        let Completeness::Incomplete(reason) = site.end else {
            continue;
        };
        let held = site.sums.live_bytes();
        match reasons.iter_mut().find(|(known, ..)| *known == reason) {
            Some((_, sites, bytes)) => {
                *sites += 1;
                *bytes += held;
            }
            None => reasons.push((reason, 1, held)),
        }
    }
    for (reason, sites, bytes) in reasons {
        let plural = if sites == 1 { "site" } else { "sites" };
        page.say(
            Look::Plain,
            format!(
                "    {} {plural} with {}: {}",
                quantity::count(sites as u64),
                quantity::bytes(bytes),
                name::clean(reason)
            ),
        );
    }
}

/// One line of the table of memory: what, then, now, in bytes or not.
type MemoryRow = (&'static str, fn(&MemorySample) -> Option<u64>, bool);

const MEMORY: [MemoryRow; 10] = [
    ("RSS", |sample| sample.rss, true),
    ("  anonymous (RssAnon)", |sample| sample.rss_anon, true),
    ("  files (RssFile)", |sample| sample.rss_file, true),
    ("  shared (RssShmem)", |sample| sample.rss_shmem, true),
    ("swap", |sample| sample.swap, true),
    ("address space (VmSize)", |sample| sample.vm_size, true),
    ("threads", |sample| sample.threads, false),
    ("descriptors", |sample| sample.descriptors, false),
    ("cgroup", |sample| sample.cgroup_usage, true),
    ("cgroup's limit", |sample| sample.cgroup_limit, true),
];

fn memory(report: &Report, page: &mut Page) {
    let title = format!(
        "{:<24}  {:>9}  {:>9}  {:>9}",
        "Memory", "at start", "now", "change"
    );
    page.say(Look::Strong, title);
    for (what, read, is_bytes) in MEMORY {
        let (then, now) = (read(&report.memory_at_start), read(&report.memory));
        if then.is_none() && now.is_none() {
            continue;
        }
        let show = if is_bytes {
            quantity::bytes_fine
        } else {
            quantity::count
        };
        let shown = |value: Option<u64>| value.map_or_else(|| "?".to_owned(), show);
        let change = match (then, now) {
            (Some(then), Some(now)) if is_bytes => quantity::bytes_change(then, now),
            (Some(then), Some(now)) => quantity::count_change(then, now),
            _ => String::new(),
        };
        let what = format!("  {what}");
        page.say(
            Look::Plain,
            format!(
                "{what:<24}  {:>9}  {:>9}  {change:>9}",
                shown(then),
                shown(now)
            ),
        );
    }
}
