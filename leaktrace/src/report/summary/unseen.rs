//! What the report does not cover: blocks from before, losses, incomplete
//! stacks, filters.

use leaktrace_common::counter::{Counter, Effect};

use super::{Page, options_text};
use crate::{
    model::{Completeness, Report},
    report::{line::Look, name, quantity},
};

/// Options that leave blocks or sites out, as [`TraceInfo::options`] names
/// them.
///
/// [`TraceInfo::options`]: crate::model::TraceInfo::options
const FILTERS: [&str; 4] = ["min-size", "max-size", "min-age", "max-age"];

/// Blocks from before, losses by reason, incomplete stacks by reason, filters.
pub(super) fn write(report: &Report, page: &mut Page) {
    page.say(Look::Strong, "Not seen, or not exactly:");
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
        let text = format!("{} {}", quantity::grouped(value), counter.text());
        match (counter.effect(), counter) {
            (Effect::Lost, _) => lost.push(text),
            (Effect::Inexact, _) => inexact.push(text),
            (Effect::None, Counter::FailedAlloc | Counter::TailCall | Counter::NestedCall)
            | (Effect::None, Counter::FreeRetried) => ordinary.push(text),
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
    if let Some(share) = report.complete_share.filter(|share| *share < 1.0) {
        let share = quantity::percent(share);
        page.say(
            Look::Plain,
            format!("  callers: the stacks of {share} of the allocations are complete"),
        );
    }
    let mut reasons: Vec<(&str, u64, u64)> = Vec::new();
    for site in &report.sites {
        let Completeness::Incomplete(reason) = site.end else {
            continue;
        };
        let held = site.sums.live_bytes();
        match reasons.iter_mut().find(|(known, ..)| *known == reason) {
            Some((_, sites, bytes)) => {
                *sites += 1;
                *bytes = bytes.saturating_add(held);
            }
            None => reasons.push((reason, 1, held)),
        }
    }
    for (reason, sites, bytes) in reasons {
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

/// Whether an option leaves something out of the report.
pub(super) fn is_filter((option, _): &(String, String)) -> bool {
    FILTERS.contains(&option.trim_start_matches('-'))
}
