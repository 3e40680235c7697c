//! What the report comes to, in the first sentences of the summary.

use std::cmp::Ordering;

use leaktrace_common::counter::Counter;

use super::{Page, covered};
use crate::{
    model::{EndReason, Report},
    report::{growth, line::Look, name, quantity},
};

/// What a tired person needs, in the first sentences.
pub(super) fn write(report: &Report, page: &mut Page) {
    let process = name::clean(&report.process.name);
    let totals = &report.totals;
    let elapsed = quantity::duration(report.elapsed);
    let why = match report.end {
        Some(EndReason::Overhead { cost, limit }) => Some(format!(
            "tracing took {} of {process}'s CPU (limit {})",
            quantity::percent(cost),
            quantity::percent(limit),
        )),
        Some(EndReason::ProbesLost) => {
            Some("somebody killed leaktrace's process that holds the probes".to_owned())
        }
        _ => None,
    };
    if let Some(why) = why {
        let (from, to) = covered(report);
        let (from, to) = (from.strftime("%T"), to.strftime("%T"));
        page.say(
            Look::Alarm,
            format!("DETACHED after {elapsed}: {why}. The report covers {from}-{to}."),
        );
    }
    if totals.alloc_blocks == 0 {
        page.say(Look::Strong, nothing_seen(report));
    } else {
        page.say(Look::Strong, held(report));
    }
    let (lost, inexact) = (report.lost(), report.inexact());
    if lost > 0 {
        let lost = quantity::things(lost, "event");
        page.say(
            Look::Alarm,
            format!("Totals are a lower bound: {lost} lost (see below)."),
        );
    }
    if inexact > 0 {
        let inexact = quantity::things(inexact, "event");
        page.say(
            Look::Alarm,
            format!("Totals are inexact because of {inexact} (see below)."),
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
        (0, 0) => {
            format!(
                "malloc was never called in {elapsed}: {process} is idle, or it uses another allocator."
            )
        }
        (_, 0) => format!(
            "No allocation was recorded in {elapsed}, though {} asked for memory.",
            quantity::things(calls, "call")
        ),
        _ => format!(
            "Nothing passed the size filter in {elapsed}: it left out {}.",
            quantity::things(filtered, "allocation")
        ),
    }
}

fn held(report: &Report) -> String {
    let totals = &report.totals;
    let elapsed = quantity::duration(report.elapsed);
    let blocks = quantity::things(totals.alloc_blocks, "block");
    let freed = quantity::percent(totals.freed_share());
    if totals.live_blocks() == 0 {
        return format!("Nothing is held: {blocks} allocated in {elapsed}, all freed.");
    }
    let live = quantity::bytes_fine(totals.live_bytes());
    if report.growing.is_empty() {
        let largest = report.sites.iter().map(|site| site.sums.live_bytes()).max();
        let largest = largest.map_or_else(String::new, |bytes| {
            format!(" (largest site {})", quantity::bytes(bytes))
        });
        return format!(
            "No site grew in {elapsed}: {blocks} allocated, {freed} freed, {live} held{largest}."
        );
    }
    format!(
        "{live} held in {}: {blocks} allocated in {elapsed}, {freed} freed.",
        quantity::things(totals.live_blocks(), "block"),
    )
}

/// What RSS did, and how far the blocks seen explain it.
fn beside_rss(report: &Report) -> String {
    let (Some(then), Some(now)) = (report.memory_at_start.rss, report.memory.rss) else {
        return "RSS could not be read.".to_owned();
    };
    if report.memory_read.is_none() {
        return format!(
            "RSS was {} at the start, and not read again: the trace ended after {}.",
            quantity::bytes_fine(then),
            quantity::duration(report.elapsed)
        );
    }
    // RSS was last read before the end, and much may be given back at exit.
    let ended = matches!(
        report.end,
        Some(EndReason::TargetExit | EndReason::TargetExec)
    );
    let explained = report
        .rss_growth
        .as_ref()
        .filter(|_| !ended)
        .and_then(|growth| growth::sentences(growth, now));
    if let Some(explained) = explained {
        return explained;
    }
    let (now_text, change) = (
        quantity::bytes_fine(now),
        quantity::bytes_short(now.abs_diff(then)),
    );
    match now.cmp(&then) {
        Ordering::Less => format!("RSS shrank by {change}, to {now_text}."),
        Ordering::Equal => format!("RSS stayed at {now_text}."),
        Ordering::Greater => format!("RSS grew {change}, to {now_text}."),
    }
}
