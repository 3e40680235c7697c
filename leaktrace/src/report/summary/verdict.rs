//! What the report comes to, in the first sentences of the summary.

use std::{cmp::Ordering, time::Duration};

use leaktrace_common::counter::Counter;

use super::{Page, capital, covered};
use crate::{
    model::{EndReason, Forecast, MemorySample, Report, Resource, Site, Trend, Verdict},
    report::{forecast, growth, line::Look, name, quantity, table},
};

/// No verdict is given on anything that was observed for less than this.
const EARLY: Duration = Duration::from_secs(60);

/// What a tired person needs, in the first sentences.
pub(super) fn write(report: &Report, page: &mut Page) {
    detached(report, page);
    if report.totals.alloc_blocks == 0 {
        page.say(Look::Strong, nothing_seen(report));
    } else if report.growing.is_empty() {
        page.say(Look::Strong, held(report));
    } else {
        likely_leaks(report, page);
    }
    exactness(report, page);
    for note in &report.notes {
        page.say(Look::Plain, name::clean(note));
    }
    page.say(Look::Plain, beside_rss(report));
    if report.growing.is_empty()
        && let Some(trend) = report.trends.memory
        && trend.verdict == Verdict::Growing
    {
        let rate = quantity::growth(trend.rate.per_minute);
        let rate = rate.trim_start_matches('+');
        page.say(
            Look::Alarm,
            format!("RSS with swap grew steadily, at {rate}."),
        );
        forecast(report, Resource::Memory, page);
    }
    for (what, trend, resource) in [
        (
            "Descriptors",
            report.trends.descriptors,
            Resource::Descriptors,
        ),
        ("Threads", report.trends.threads, Resource::Threads),
    ] {
        if let Some(trend) = trend.filter(|trend| trend.verdict == Verdict::Growing) {
            page.say(
                Look::Alarm,
                format!("{what} grew steadily, by {} a minute.", per_minute(&trend)),
            );
            forecast(report, resource, page);
        }
    }
}

/// When a limit of this resource is reached.
fn forecast(report: &Report, resource: Resource, page: &mut Page) {
    let of_it = |forecast: &&Forecast| forecast.limit.kind.resource() == resource;
    if let Some(forecast) = report.forecasts.iter().find(of_it) {
        page.say(Look::Strong, forecast::sentence(forecast));
    }
}

/// Why the trace ended before anybody wanted it to.
fn detached(report: &Report, page: &mut Page) {
    let process = name::clean(&report.process.name);
    let why = match report.end {
        Some(EndReason::Overhead { cost, limit }) => format!(
            "tracing took {} of {process}'s CPU (limit {})",
            quantity::percent(cost),
            quantity::percent(limit),
        ),
        Some(EndReason::ProbesLost) => {
            "somebody killed leaktrace's process that holds the probes".to_owned()
        }
        _ => return,
    };
    let elapsed = quantity::duration(report.elapsed);
    let (from, to) = covered(report);
    let (from, to) = (from.strftime("%T"), to.strftime("%T"));
    page.say(
        Look::Alarm,
        format!("DETACHED after {elapsed}: {why}. The report covers {from}-{to}."),
    );
}

fn exactness(report: &Report, page: &mut Page) {
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
}

/// Whether the observation was too short for a verdict, on most of what is held at
/// least: a site's time begins when it first holds something.
pub(super) fn is_early(report: &Report) -> bool {
    let (mut open, mut all) = (0_u64, 0_u64);
    for (verdict, sums) in &report.verdicts {
        all = all.saturating_add(sums.live_bytes);
        if *verdict == Verdict::TooEarly {
            open = open.saturating_add(sums.live_bytes);
        }
    }
    observed(report) < EARLY || open > all / 2
}

/// Whether memory grew much more than the blocks that were seen.
pub(super) fn is_unexplained(report: &Report) -> bool {
    report
        .rss_growth
        .as_ref()
        .is_some_and(|growth| growth.grown >= NOTEWORTHY && growth.explained() < 0.5)
}

/// The process's memory at the start, or at the mark, from which growth counts.
fn memory_then(report: &Report) -> &MemorySample {
    report
        .mark
        .as_ref()
        .map_or(&report.memory_at_start, |mark| &mark.memory)
}

/// Growth of RSS below this is not worth an explanation.
const NOTEWORTHY: u64 = 4 << 20;

/// Over what growth is counted: since the start or the mark.
fn observed(report: &Report) -> Duration {
    let since = report.mark.as_ref().map_or(Duration::ZERO, |mark| mark.at);
    report.elapsed.saturating_sub(since)
}

fn growing(report: &Report) -> impl Iterator<Item = &Site> {
    report
        .growing
        .iter()
        .filter_map(|index| report.sites.get(*index))
}

/// `LIKELY LEAK: 1 site grew steadily at 36.1 MiB/min and makes 96 % of the growth
/// of RSS (+372 of +388 MiB).`
pub(super) fn likely_leaks(report: &Report, page: &mut Page) {
    let together: f64 = growing(report).map(Site::growth).sum();
    let rate = quantity::growth(together);
    let rate = rate.trim_start_matches('+');
    // What grows fastest counts most.
    let weighed = |site: &Site| site.trend.map_or(0.0, |it| it.confidence) * site.growth();
    let sure = growing(report).map(weighed).sum::<f64>() / together.max(f64::MIN_POSITIVE);
    let (title, sites, together, make) = match report.growing.len() {
        1 => ("LIKELY LEAK", "1 site".to_owned(), "", "makes"),
        count => (
            "LIKELY LEAKS",
            format!("{} sites", quantity::count(count as u64)),
            " together",
            "make",
        ),
    };
    let share =
        share_of_growth(report).map_or_else(String::new, |share| format!(" and {make} {share}"));
    page.say(
        Look::Alarm,
        format!("{title}: {sites} grew steadily at {rate}{together}{share}."),
    );
    let mut facts = vec![format!(
        "How sure: {}, after {}",
        quantity::percent_whole(sure.clamp(0.0, 1.0)),
        quantity::duration(observed(report))
    )];
    facts.extend(
        report
            .common_caller
            .as_ref()
            .map(table::common_caller_text)
            .map(|text| capital(&text)),
    );
    if growing(report).all(|site| site.sums.live_blocks() == 0) {
        facts.push("All of it was given back at last, while the process ended".to_owned());
    }
    page.say(Look::Plain, format!("{}.", facts.join(". ")));
    forecast(report, Resource::Memory, page);
}

/// `96 % of the growth of RSS (+372 of +388 MiB)`; nothing when memory hardly grew.
fn share_of_growth(report: &Report) -> Option<String> {
    const NOTEWORTHY: u64 = 1 << 20;
    let resident = |sample: &MemorySample| Some(sample.rss? + sample.swap.unwrap_or(0));
    report.memory_read?;
    let grown = resident(&report.memory)?.checked_sub(resident(memory_then(report))?)?;
    let minutes = observed(report).as_secs_f64() / 60.0;
    let sites: f64 = growing(report)
        .map(|site| site.growth_per_minute * minutes)
        .sum();
    if grown < NOTEWORTHY || sites <= 0.0 {
        return None;
    }
    let bytes = quantity::bytes_of(sites as u64, grown).replacen(" of ", " of +", 1);
    // Blocks that were never written to are not resident.
    let share = if sites > grown as f64 {
        "all".to_owned()
    } else {
        quantity::percent_whole(sites / grown as f64)
    };
    let since = report.mark.as_ref().map_or("", |_| " since the mark");
    Some(format!("{share} of the growth of RSS{since} (+{bytes})"))
}

/// What was judged and does not grow, a line each: `Not growing: 3 sites, 12.4 MiB
/// (2 flat, 1 one-off).`
pub(super) fn others(report: &Report, page: &mut Page) {
    let mut kinds = Vec::new();
    let (mut sites, mut bytes) = (0, 0);
    for (verdict, sums) in &report.verdicts {
        let held = format!(
            "{}, {}",
            quantity::things(sums.sites as u64, "site"),
            quantity::bytes(sums.live_bytes)
        );
        match verdict {
            Verdict::Growing => {}
            Verdict::Filling => page.say(
                Look::Plain,
                format!(
                    "Filling: {held}: rises ever more slowly, as a cache on its way to its bound."
                ),
            ),
            Verdict::TooEarly if is_early(report) => {}
            Verdict::TooEarly => page.say(Look::Plain, format!("Too early to tell: {held}.")),
            _ => {
                sites += sums.sites;
                bytes += sums.live_bytes;
                kinds.push(format!("{} {}", sums.sites, verdict.name()));
            }
        }
    }
    if sites > 0 {
        page.say(
            Look::Plain,
            format!(
                "Not growing: {}, {} ({}).",
                quantity::things(sites as u64, "site"),
                quantity::bytes(bytes),
                kinds.join(", ")
            ),
        );
    }
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

/// No site was judged to be growing.
fn held(report: &Report) -> String {
    let totals = &report.totals;
    let elapsed = quantity::duration(report.elapsed);
    let blocks = quantity::things(totals.alloc_blocks, "block");
    let freed = quantity::percent(totals.freed_share());
    if totals.live_blocks() == 0 {
        return format!("Nothing is held: {blocks} allocated in {elapsed}, all freed.");
    }
    let live = quantity::bytes_fine(totals.live_bytes());
    if is_early(report) {
        let needed = if observed(report) < EARLY {
            "a minute is needed"
        } else {
            "but a site needs a minute from when it first holds something, or two of its periods"
        };
        let observed = quantity::duration(observed(report));
        let in_blocks = quantity::things(totals.live_blocks(), "block");
        return format!(
            "Too early to tell what grows without end: {observed} observed, {needed}. \
             {live} held in {in_blocks}: {blocks} allocated in {elapsed}, {freed} freed."
        );
    }
    let largest = report
        .sites
        .iter()
        .max_by_key(|site| site.sums.live_bytes())
        .map_or_else(String::new, |site| {
            let bytes = quantity::bytes(site.sums.live_bytes());
            match site.trend.map(|trend| (trend.verdict, trend.steady)) {
                Some((Verdict::TooEarly, _)) | None => format!(" (largest site {bytes})"),
                Some((verdict, None)) => format!(" (largest site {bytes}, {})", verdict.name()),
                Some((verdict, Some(steady))) => format!(
                    " (largest site {bytes}, {} for {})",
                    verdict.name(),
                    quantity::duration_short(steady)
                ),
            }
        });
    let period = match &report.mark {
        None => format!("{elapsed}:"),
        Some(_) => {
            let observed = quantity::duration(observed(report));
            format!("{observed} since the mark. In {elapsed}:")
        }
    };
    format!(
        "No site grew steadily in {period} {blocks} allocated, {freed} freed, {live} held{largest}."
    )
}

/// `12`, `0.4`
fn per_minute(trend: &Trend) -> String {
    match trend.rate.per_minute {
        rate if rate < 9.95 => format!("{rate:.1}"),
        rate => quantity::count(rate.round() as u64),
    }
}

/// What RSS did since the start, and how far the blocks seen explain it.
fn beside_rss(report: &Report) -> String {
    let text = rss_growth(report);
    match report.mark {
        Some(_) => format!("Since the mark: {text}"),
        None => text,
    }
}

fn rss_growth(report: &Report) -> String {
    let (Some(then), Some(now)) = (memory_then(report).rss, report.memory.rss) else {
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
