//! The final report, which is also the `txt` output: what is held, by whole
//! stacks, and what was not seen.

mod memory;
mod next;
mod unseen;
mod verdict;

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use self::next::Next;
use crate::{
    model::{EndReason, NEGLIGIBLE_CPUS, Report, Site, SortKey, Verdict},
    report::{
        line::{Line, Look},
        name, quantity, stack, table,
    },
};

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
    verdict::write(report, &mut page);
    sites(report, &mut page);
    page.gap();
    unseen::write(report, &mut page);
    page.gap();
    memory::write(report, &mut page);
    page.text
}

/// What a long summary comes to, once more, for the end of it: it has scrolled away
/// by then. Empty when it is short, or no site was judged to be growing.
#[must_use]
pub fn reminder(report: &Report, options: &SummaryOptions, summary: &str) -> String {
    const SHORT: usize = 40;
    let mut page = Page {
        options: *options,
        text: String::new(),
    };
    if summary.lines().count() > SHORT && !report.growing.is_empty() {
        page.text.push('\n');
        verdict::likely_leaks(report, &mut page);
    }
    page.text
}

/// Which files were written, after an empty line; empty when none was.
#[must_use]
pub fn written(written: &[PathBuf]) -> String {
    let mut text = String::new();
    let Some(first) = written.first() else {
        return text;
    };
    let directory = first
        .parent()
        .filter(|directory| !directory.as_os_str().is_empty());
    let together = written.iter().all(|path| path.parent() == first.parent());
    let names: Vec<_> = match (directory, together) {
        (Some(directory), true) => {
            text = format!("\nWritten to {}/: ", shown(directory).trim_end_matches('/'));
            written
                .iter()
                .filter_map(|path| path.file_name())
                .map(|n| shown(n.as_ref()))
                .collect()
        }
        _ => {
            text.push_str("\nWritten: ");
            written.iter().map(|path| shown(path)).collect()
        }
    };
    text.push_str(&names.join(", "));
    text.push('\n');
    text
}

fn shown(path: &Path) -> String {
    name::clean(&path.to_string_lossy()).into_owned()
}

/// The lines that follow the summary on a terminal: the files written, and
/// what to do with them, after an empty line. Empty when nothing was written.
#[must_use]
pub fn closing(written: &[PathBuf]) -> String {
    let mut text = self::written(written);
    let picture = written
        .iter()
        .find(|path| path.extension().is_some_and(|e| e == "svg"));
    if let Some(picture) = picture {
        let path = shown(picture);
        _ = writeln!(text, "Look at it in a browser:  {}", quoted(&path));
    }
    text
}

/// The line that follows these: the next step. Empty when there is none.
#[must_use]
pub fn next_step(report: &Report) -> String {
    next::next(report).map_or_else(String::new, |Next { command, why }| {
        format!("\nNext:  {command}   ({why})\n")
    })
}

/// The path as a shell takes it back.
fn quoted(path: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+,:@%=".contains(c);
    if path.chars().all(plain) {
        return path.to_owned();
    }
    format!("'{}'", path.replace('\'', "'\\''"))
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

    /// A line of words, broken where the terminal ends.
    fn words(&mut self, line: Line, indent: usize) {
        let columns = self.options.width.unwrap_or(usize::MAX);
        for line in line.wrapped(columns, indent) {
            self.line(&line);
        }
    }

    fn say(&mut self, look: Look, text: impl Into<String>) {
        let text = text.into();
        let indent = text.len() - text.trim_start_matches(' ').len();
        let mut line = Line::default();
        line.push(look, text);
        // A sentence goes on where it began, an entry of a list deeper.
        let indent = if indent == 0 { 0 } else { indent + 2 };
        self.words(line, indent);
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
    page.words(line, 2);
    page.say(
        Look::Plain,
        format!("traced {}{}", period(report), ending(report)),
    );
    if let Some(cost) = report.cost {
        page.say(Look::Plain, cost_text(report, cost));
    }
    for file in &report.trace.watched {
        let path = file.path.to_string_lossy();
        page.say(
            Look::Plain,
            format!(
                "watched {} in {}: {}",
                quantity::things(file.functions.len() as u64, "function"),
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
        .filter(|option| !unseen::is_filter(option))
        .collect();
    if !others.is_empty() {
        page.say(Look::Plain, format!("options {}", options_text(&others)));
    }
}

/// `cost 2.3 % of orderd's CPU time (limit 50 %)`
fn cost_text(report: &Report, cost: f64) -> String {
    let limit = match report.trace.cost_limit {
        None => String::new(),
        Some(limit) if report.is_cost_negligible() => format!(
            ", which was only {} of one CPU (the limit of {} does not apply under {})",
            quantity::percent_in_words(report.cost_cpus.unwrap_or_default()),
            quantity::percent_whole(limit),
            quantity::percent_whole(NEGLIGIBLE_CPUS),
        ),
        Some(limit) => format!(" (limit {})", quantity::percent_whole(limit)),
    };
    format!(
        "cost {} of {}'s CPU time{limit}",
        quantity::percent_in_words(cost),
        name::clean(&report.process.name)
    )
}

fn options_text(options: &[&(String, String)]) -> String {
    let texts: Vec<_> = options
        .iter()
        .map(|(option, value)| {
            let option = name::clean(option.trim_start_matches('-'));
            format!("--{option} {}", name::clean(value))
                .trim_end()
                .to_owned()
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
        Some(EndReason::Duration) => ", ended by --duration".to_owned(),
        Some(EndReason::Signal("SIGINT")) => ", ended by Ctrl-C".to_owned(),
        Some(EndReason::Signal("SIGTSTP")) => ", ended by Ctrl-Z".to_owned(),
        Some(EndReason::Signal(signal)) => format!(", ended by {signal}"),
        Some(EndReason::TargetExit) => format!(", until {process} exited"),
        Some(EndReason::TargetExec) => format!(", until {process} replaced itself by exec"),
        Some(EndReason::Alert(condition)) => {
            format!(", ended by --until-alert ({})", name::clean(condition))
        }
        Some(EndReason::OutputClosed) => ", until nobody read the output any more".to_owned(),
        Some(EndReason::ProbesLost) => {
            ", until leaktrace's process that holds the probes was killed".to_owned()
        }
        Some(EndReason::Overhead { .. }) => ", ended by --max-overhead".to_owned(),
    }
}

/// Whole stacks of those that grow, or else of the first sites, and what the
/// others come to.
fn sites(report: &Report, page: &mut Page) {
    if report.trace.sort == SortKey::Growth && !report.growing.is_empty() {
        growing_sites(report, page);
    } else {
        first_sites(report, page);
    }
    page.gap();
    verdict::others(report, page);
}

fn growing_sites(report: &Report, page: &mut Page) {
    let all = report.growing.len();
    let shown = all.min(page.options.top);
    page.gap();
    let (filter, growth) = filter_text(report);
    let title = match (all, shown) {
        (1, _) => "The growing site".to_owned(),
        (all, shown) if all == shown => format!("The {all} growing sites, the fastest first"),
        (all, 1) => format!("The fastest of {all} growing sites"),
        (all, shown) => format!("The fastest {shown} of {all} growing sites"),
    };
    let title = format!("{title}{filter}{growth}:");
    page.say(Look::Strong, title);
    for (rank, index) in report.growing.iter().take(shown).enumerate() {
        if let Some(site) = report.sites.get(*index) {
            page.gap();
            whole_site(rank + 1, site, report.elapsed, page);
        }
    }
}

/// The filter by age in force, and what it does not apply to.
fn filter_text(report: &Report) -> (String, &'static str) {
    let filter = report.age_filter();
    let text = format!(" with {filter}");
    match filter.as_str() {
        "" => (filter, ""),
        "--since mark" => (text, " (growth is of blocks of any age)"),
        _ => (text, " (growth and freed are of blocks of any age)"),
    }
}

fn first_sites(report: &Report, page: &mut Page) {
    let shown = table::shown_sites(report, page.options.top).len();
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
    let (filter, growth) = filter_text(report);
    let title = match (report.site_count, shown) {
        (1, _) => format!("The only site{filter}{growth}:"),
        (2, 2) => format!("Both sites{filter}, by {order}{growth}:"),
        (all, shown) if all == shown => {
            format!("All {count} sites{filter}, by {order}{growth}:")
        }
        (_, 1) => format!("The first of {count} sites{filter}, by {order}{growth}:"),
        _ => format!("The first {shown} of {count} sites{filter}, by {order}{growth}:"),
    };
    page.say(Look::Strong, title);
    for (index, site) in report.sites.iter().take(shown).enumerate() {
        page.gap();
        whole_site(index + 1, site, report.elapsed, page);
    }
    let rest: Vec<_> = report
        .growing
        .iter()
        .filter(|index| **index >= shown)
        .take(page.options.top)
        .collect();
    if rest.is_empty() {
        return;
    }
    page.gap();
    page.say(Look::Strong, "Not among them, but growing:");
    for index in rest {
        if let Some(site) = report.sites.get(*index) {
            page.gap();
            whole_site(index + 1, site, report.elapsed, page);
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

/// In less time than this, growth per minute is a guess.
const SHORT: Duration = Duration::from_secs(1);

fn whole_site(rank: usize, site: &Site, elapsed: Duration, page: &mut Page) {
    let sums = &site.sums;
    let growth = match quantity::growth(site.growth()) {
        _ if elapsed < SHORT => String::new(),
        none if none == "+0" => ", +0/min".to_owned(),
        growth => format!(", {growth}{}", bounds(site)),
    };
    let mut line = Line::default();
    line.push(Look::Faint, format!("{rank:>3}  "));
    line.push(Look::Strong, quantity::bytes(sums.live_bytes()));
    let mut rest = format!(
        " in {}{growth}, {} of {} freed",
        quantity::things(sums.live_blocks(), "block"),
        quantity::percent(sums.freed_share()),
        quantity::count(sums.alloc_blocks),
    );
    if let Some(age) = site.oldest_age {
        rest.push_str(&format!(", oldest {}", quantity::duration(age)));
    }
    line.push(Look::Plain, rest);
    match quantity::verdict(site.trend) {
        none if none.is_empty() => {}
        verdict if site.verdict() == Verdict::Growing => {
            line.push(Look::Alarm, format!(", {verdict}"));
        }
        verdict => line.push(Look::Plain, format!(", {verdict}")),
    }
    page.words(line, 7);
    if let Some(survival) = survival(site) {
        let mut line = Line::default();
        line.push(Look::Plain, format!("     {survival}"));
        page.words(line, 7);
    }
    for line in stack::whole(site, 7, page.options.width) {
        page.line(&line);
    }
}

/// ` (34.8 to 37.4)`: what the growth is with 90 % confidence, where that is worth
/// telling.
fn bounds(site: &Site) -> String {
    let judged = site
        .trend
        .filter(|trend| trend.verdict == Verdict::Growing && trend.rate.per_minute > 0.0);
    let Some(rate) = judged.map(|trend| trend.rate) else {
        return String::new();
    };
    if rate.high - rate.low < 0.1 * rate.per_minute {
        return String::new();
    }
    format!(
        " (between {} and {})",
        quantity::bytes(rate.low.max(0.0) as u64),
        quantity::bytes(rate.high.max(0.0) as u64)
    )
}

/// `of its blocks, >99 % lived 1 s, 99 % 10 s, 98 % 60 s`
fn survival(site: &Site) -> Option<String> {
    let mut shares = site.survival.iter().filter_map(|survival| {
        let share = quantity::percent_whole(survival.share()?);
        Some((share, quantity::duration(survival.age)))
    });
    let (share, age) = shares.next()?;
    let others = shares.map(|(share, age)| format!(", {share} {age}"));
    Some(format!(
        "of its blocks, {share} lived {age}{}",
        others.collect::<String>()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_in_different_places_are_named_in_full_and_can_be_pasted() {
        assert_eq!(written(&[]), "");
        assert_eq!(written(&["a.json".into()]), "\nWritten: a.json\n");
        assert_eq!(
            closing(&["/tmp/a.json".into(), "it's.svg".into()]),
            "\nWritten: /tmp/a.json, it's.svg\nLook at it in a browser:  'it'\\''s.svg'\n"
        );
    }
}
