//! What the report does not cover: blocks from before, losses, incomplete
//! stacks, filters.

use std::collections::{BTreeMap, BTreeSet};

use leaktrace_common::counter::{Counter, Effect};

use super::{Page, options_text};
use crate::{
    model::{Completeness, EndReason, Frame, Report},
    report::{line::Look, name, quantity},
};

/// Options that leave blocks or sites out, as [`TraceInfo::options`] names
/// them.
///
/// [`TraceInfo::options`]: crate::model::TraceInfo::options
const FILTERS: [&str; 5] = ["min-size", "max-size", "min-age", "max-age", "since"];

/// Blocks from before, losses by reason, incomplete stacks by reason, filters.
pub(super) fn write(report: &Report, page: &mut Page) {
    page.say(Look::Strong, "Not seen, or not exactly:");
    let before = page.text.len();
    let since = report.trace.started.strftime("%T");
    let rss = report.memory_at_start.rss.map_or_else(String::new, |rss| {
        format!(" (RSS was {} then)", quantity::bytes_fine(rss))
    });
    if !report.trace.from_start {
        page.say(
            Look::Plain,
            format!("  blocks allocated before {since}{rss}"),
        );
    }
    counters(report, page);
    incomplete_stacks(report, page);
    nameless_functions(report, page);
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
    if page.text.len() == before {
        page.say(
            Look::Plain,
            "  nothing: it was traced from its first instruction, and no event was lost",
        );
    }
}

fn counters(report: &Report, page: &mut Page) {
    let (mut lost, mut inexact) = (Vec::new(), Vec::new());
    let (mut partial, mut ordinary) = (Vec::new(), Vec::new());
    for counter in Counter::ALL {
        let value = report.counter(*counter);
        // How many calls there were is told elsewhere.
        if value == 0
            || matches!(
                counter,
                Counter::AllocCalls | Counter::FreeCalls | Counter::Exec
            )
        {
            continue;
        }
        let text = quantity::events(*counter, value);
        match (counter.effect(), counter) {
            (Effect::Lost, _) => lost.push(text),
            (Effect::Inexact, _) => inexact.push(text),
            (
                Effect::None,
                Counter::FailedAlloc
                | Counter::FreeNull
                | Counter::FreeRetried
                | Counter::NestedCall
                | Counter::TailCall,
            ) => ordinary.push(text),
            (Effect::None, _) => partial.push(text),
        }
    }
    for text in partial {
        page.say(Look::Plain, format!("  {text}"));
    }
    for (title, texts, look) in [
        ("lost, so that totals are a lower bound:", lost, Look::Alarm),
        ("what makes totals inexact:", inexact, Look::Alarm),
        ("seen, without any loss:", ordinary, Look::Plain),
    ] {
        if !texts.is_empty() {
            page.say(look, format!("  {title}"));
        }
        for text in texts {
            page.say(look, format!("    {text}"));
        }
    }
}

fn incomplete_stacks(report: &Report, page: &mut Page) {
    let share = report.complete;
    if let Some(calls) = share.calls.filter(|calls| *calls < 1.0) {
        let calls = quantity::percent(calls);
        let bytes = match share.bytes.map(quantity::percent) {
            None => String::new(),
            Some(bytes) if bytes == calls => " and of what is held".to_owned(),
            Some(bytes) => format!(" and {bytes} of what is held"),
        };
        page.say(
            Look::Plain,
            format!(
                "  callers: {calls} of the allocations{bytes} have complete stacks; where the others end:"
            ),
        );
    }
    // By reason: bytes held and sites.
    let mut reasons: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for site in &report.sites {
        let Completeness::Incomplete(reason) = &site.end else {
            continue;
        };
        let (bytes, sites) = reasons.entry(reason).or_default();
        *bytes = bytes.saturating_add(site.sums.live_bytes());
        *sites += 1;
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    for (reason, (bytes, sites)) in reasons {
        page.say(
            Look::Plain,
            format!(
                "    {} with {}: {}",
                quantity::things(sites, "site"),
                quantity::bytes(bytes),
                name::clean(reason)
            ),
        );
    }
}

/// Files whose functions have no names, and what is held by way of them.
fn nameless_functions(report: &Report, page: &mut Page) {
    // Of memory that no file backs there can be no symbols.
    fn file(frame: &Frame) -> Option<&str> {
        let module = frame.module.as_deref();
        module.filter(|module| !module.starts_with('['))
    }
    let mut held: BTreeMap<Option<&str>, u64> = BTreeMap::new();
    let holding = report
        .sites
        .iter()
        .filter(|site| site.sums.live_bytes() > 0);
    for site in holding {
        let nameless = site.frames.iter().filter(|frame| frame.symbol.is_none());
        let files: BTreeSet<_> = nameless.map(file).collect();
        for file in files {
            *held.entry(file).or_default() += site.sums.live_bytes();
        }
    }
    let jit = held.remove(&None);
    let files = held.len() as u64;
    if let Some((Some(file), bytes)) = held.into_iter().max_by_key(|(_, bytes)| *bytes) {
        let file = name::clean(name::file_name(file));
        let which = match files {
            1 => format!("{file} lacks symbols ({})", quantity::bytes(bytes)),
            _ => format!(
                "{} lack symbols, {file} for the most bytes ({})",
                quantity::things(files, "file"),
                quantity::bytes(bytes)
            ),
        };
        let which_process = match report.end {
            Some(EndReason::TargetExit) => "PID` of such a process".to_owned(),
            _ => format!("{}`", report.process.pid),
        };
        page.say(
            Look::Plain,
            format!("  names: {which}; `leaktrace doctor {which_process} says what to install"),
        );
    }
    if let Some(bytes) = jit {
        page.say(
            Look::Plain,
            format!(
                "  names: addresses in no file have none ({}): code made by a JIT, or no code at all",
                quantity::bytes(bytes)
            ),
        );
    }
}

/// Whether an option leaves something out of the report.
pub(super) fn is_filter((option, _): &(String, String)) -> bool {
    FILTERS.contains(&option.trim_start_matches('-'))
}
