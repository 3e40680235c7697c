//! What `doctor --watch` shows: a line every few seconds, then what grows and what
//! to do about it.

use std::time::Duration;

use crate::{
    model::{
        Advice, Glance, Movement, ProcessInfo, Quantity, Rate, Verdict, WatchEnd, WatchReport,
    },
    report::{
        forecast,
        line::{Line, Look},
        name, quantity,
    },
};

/// The first line.
#[must_use]
pub fn title(process: &ProcessInfo, duration: Duration, interval: Duration) -> String {
    format!(
        "{} ({}): watched for {}, every {}, without probes (Ctrl-C ends it earlier)\n",
        name::clean(&process.name),
        process.pid,
        quantity::duration(duration),
        quantity::duration(interval),
    )
}

/// The columns: their titles, their widths, and what is in them.
const COLUMNS: [(&str, usize, Quantity); 8] = [
    ("RSS+swap", 10, Quantity::Held),
    ("anon", 9, Quantity::Anonymous),
    ("heap", 9, Quantity::Heap),
    ("mapped", 9, Quantity::OtherMappings),
    ("files", 9, Quantity::Files),
    ("shared", 9, Quantity::Shared),
    ("fds", 6, Quantity::Descriptors),
    ("thr", 6, Quantity::Threads),
];
const TIME: usize = 8;
const CPU: usize = 5;

/// The titles of the columns.
#[must_use]
pub fn heading() -> String {
    row("", COLUMNS.map(|(title, ..)| title.to_owned()), "CPU")
}

/// What there is at the start.
#[must_use]
pub fn first_line(first: &Glance) -> String {
    let values = COLUMNS.map(|(_, _, quantity)| value(quantity, first.of(quantity)));
    row("start", values, "")
}

/// What has changed since.
#[must_use]
pub fn line(first: &Glance, now: &Glance) -> String {
    let values = COLUMNS.map(|(_, _, quantity)| {
        let (Some(first), Some(now)) = (first.of(quantity), now.of(quantity)) else {
            return "?".to_owned();
        };
        if quantity.is_bytes() {
            quantity::bytes_change(first, now)
        } else {
            quantity::count_change(first, now)
        }
    });
    let cpus = now
        .cpus
        .map_or_else(String::new, |cpus| format!("{cpus:.1}"));
    // To a tenth of a second: looks are a little late.
    let at = Duration::from_millis(((now.at.as_secs_f64() * 10.0).round() * 100.0) as u64);
    row(&quantity::duration(at), values, &cpus)
}

fn row(time: &str, values: [String; COLUMNS.len()], cpu: &str) -> String {
    let mut text = format!("{time:>TIME$}");
    for ((_, width, _), value) in COLUMNS.iter().zip(values) {
        text.push_str(&format!("{value:>width$}"));
    }
    text.push_str(&format!("{cpu:>CPU$}"));
    format!("{}\n", text.trim_end())
}

fn value(quantity: Quantity, value: Option<u64>) -> String {
    match value {
        None => "?".to_owned(),
        Some(bytes) if quantity.is_bytes() => quantity::bytes_fine(bytes),
        Some(count) => quantity::count(count),
    }
}

/// How it ended, how everything moved, and what to do. Sentences are broken at
/// `width`, where there is one.
#[must_use]
pub fn conclusion(report: &WatchReport, width: Option<usize>, colour: bool) -> String {
    let mut page = Page {
        width,
        colour,
        text: String::from("\n"),
    };
    if let Some(end) = end(report) {
        page.say(Look::Plain, &end);
    }
    movements(report, &mut page);
    page.text.push('\n');
    verdict(report, &mut page);
    for advice in &report.advice {
        page.text.push('\n');
        let (sentence, command) = words(advice, report.process.pid);
        page.say(Look::Plain, &sentence);
        if let Some(command) = command {
            page.text.push_str(&format!("  {command}\n"));
        }
    }
    page.text
}

struct Page {
    width: Option<usize>,
    colour: bool,
    text: String,
}

impl Page {
    fn say(&mut self, look: Look, text: &str) {
        let mut line = Line::default();
        line.push(look, text);
        for line in line.wrapped(self.width.unwrap_or(usize::MAX), 2) {
            line.render(self.colour, &mut self.text);
        }
    }
}

fn end(report: &WatchReport) -> Option<String> {
    let process = name::clean(&report.process.name);
    let elapsed = quantity::duration(report.elapsed);
    match report.end {
        WatchEnd::Over => None,
        WatchEnd::Interrupted => Some(format!("Ended after {elapsed}.")),
        WatchEnd::Exited => Some(format!(
            "{process} has ended after {elapsed}; this is how it was just before."
        )),
    }
}

fn movements(report: &WatchReport, page: &mut Page) {
    let title = format!(
        "{:<16}{:>10}{:>10}  {:<10}per minute",
        format!("In {}", quantity::duration(report.elapsed)),
        "at start",
        "now",
        "",
    );
    page.say(Look::Strong, &title);
    for movement in &report.movements {
        let quantity = movement.quantity;
        let text = format!(
            "{:<16}{:>10}{:>10}  {:<10}{}",
            label(quantity),
            value(quantity, Some(movement.first)),
            value(quantity, Some(movement.last)),
            movement.trend.verdict.name(),
            rate(movement),
        );
        let look = if movement.trend.verdict == Verdict::Growing {
            Look::Strong
        } else {
            Look::Plain
        };
        let mut line = Line::default();
        line.push(look, text);
        line.cut(page.width.unwrap_or(usize::MAX));
        line.render(page.colour, &mut page.text);
    }
}

const fn label(quantity: Quantity) -> &'static str {
    match quantity {
        Quantity::Held => "RSS and swap",
        Quantity::Anonymous => "  anonymous",
        Quantity::Files => "  files",
        Quantity::Shared => "  shared",
        Quantity::Heap => "malloc's heaps",
        Quantity::OtherMappings => "other anonymous",
        Quantity::Descriptors => "descriptors",
        Quantity::Threads => "threads",
        Quantity::MappingCount => "mappings",
    }
}

/// `+44.0 MiB (43.1 to 44.9 MiB)`; only what grows has a range.
fn rate(movement: &Movement) -> String {
    let trend = &movement.trend;
    let is_unknown = trend.verdict == Verdict::TooEarly && trend.rate == Rate::default();
    if is_unknown && movement.first != movement.last {
        return "?".to_owned();
    }
    let [likely, low, high] = [trend.rate.per_minute, trend.rate.low, trend.rate.high]
        .map(|rate| growth(movement.quantity, rate).replace("/min", ""));
    if !movement.grows() || (low == likely && high == likely) {
        return likely;
    }
    let high = high.trim_start_matches('+');
    let low = low.trim_start_matches('+');
    // The unit only once where it is the same.
    let low = match (low.split_once(' '), high.split_once(' ')) {
        (Some((number, unit)), Some((_, other))) if unit == other => number,
        _ => low,
    };
    format!("{likely} ({low} to {high})")
}

/// Growth per minute, of bytes or of a number of things: `+44.0 MiB/min`,
/// `+0.4/min`.
fn growth(quantity: Quantity, per_minute: f64) -> String {
    if quantity.is_bytes() {
        quantity::growth(per_minute)
    } else {
        count_growth(per_minute)
    }
}

/// Growth of a number of things per minute: `+12/min`, `+0.4/min`, `+0`.
fn count_growth(per_minute: f64) -> String {
    let sign = if per_minute < 0.0 { '-' } else { '+' };
    match quantity::rate(per_minute.abs()).as_str() {
        "0" => "+0".to_owned(),
        rate => format!("{sign}{rate}/min"),
    }
}

/// What grows, and which limits are ahead.
fn verdict(report: &WatchReport, page: &mut Page) {
    // What is a part of RSS is in the table.
    let is_told = |movement: &Movement| movement.grows() && movement.quantity.resource().is_some();
    let growing = |verdict: Verdict| {
        let grown = report
            .movements
            .iter()
            .filter(|movement| is_told(movement) && movement.trend.verdict == verdict);
        let texts: Vec<String> = grown
            .map(|movement| {
                format!(
                    "{} {}",
                    label(movement.quantity),
                    growth(movement.quantity, movement.trend.rate.per_minute)
                )
            })
            .collect();
        texts.join(", ")
    };
    let sentences = [
        (Verdict::Growing, "GROWING", Look::Alarm),
        (Verdict::Filling, "Rising ever more slowly", Look::Strong),
        (
            Verdict::TooEarly,
            "Rising, too early to tell for how long",
            Look::Strong,
        ),
    ];
    for (verdict, title, look) in sentences {
        let grown = growing(verdict);
        if !grown.is_empty() {
            page.say(look, &format!("{title}: {grown}."));
        }
    }
    let forecasts = report
        .movements
        .iter()
        .filter_map(|movement| movement.forecast.as_ref());
    for forecast in forecasts {
        page.say(Look::Strong, &forecast::sentence(forecast));
    }
}

/// An advice as a sentence, and the command to go on with.
fn words(advice: &Advice, pid: u32) -> (String, Option<String>) {
    let attach = Some(format!("sudo leaktrace attach {pid}"));
    let mostly = |name: &Option<std::sync::Arc<str>>| match name {
        Some(name) if !name.is_empty() => format!(", mostly {}", name::clean(name)),
        _ => String::new(),
    };
    match advice {
        Advice::TraceHeap { free } => {
            let heaps = match free {
                Some((free, all)) if *free > all / 2 => format!(
                    "malloc's heaps grow, but {} of them is free: rather fragmented or kept than \
                     leaked. Which stacks hold what is allocated from now on:",
                    quantity::bytes_of(*free, *all)
                ),
                Some((free, all)) => format!(
                    "malloc's heaps grow ({} of them is free). Which stacks hold what is allocated \
                     from now on:",
                    quantity::bytes_of(*free, *all)
                ),
                None => "malloc's heaps grow. Which stacks hold what is allocated from now on:"
                    .to_owned(),
            };
            (heaps, attach)
        }
        Advice::TraceAllocator(allocator) => (
            format!(
                "Anonymous mappings grow, and {allocator} takes its memory from such. Which stacks hold \
                 what is allocated from now on:"
            ),
            attach,
        ),
        Advice::TraceInside => (
            "Memory that was mapped already is used more and more. Which stacks hold what malloc \
             allocates from now on:"
                .to_owned(),
            attach,
        ),
        Advice::Mappings {
            mostly: name,
            may_be_blocks: true,
        } => (
            format!(
                "Anonymous mappings grow{}. Large blocks of malloc may be among them, which could be \
                 told only as root:",
                mostly(name)
            ),
            Some(format!("sudo leaktrace doctor {pid} --watch 60s")),
        ),
        Advice::Mappings { mostly: name, .. } => (
            format!(
                "Anonymous mappings grow that are not malloc's{}: a runtime's own heap, or calls of \
                 mmap. leaktrace does not trace these yet. Who calls mmap (this slows the process \
                 down):",
                mostly(name)
            ),
            Some(format!(
                "sudo strace -f -k -e trace=mmap,mremap,munmap -p {pid}"
            )),
        ),
        Advice::Files(name) => (
            format!(
                "Files grow in memory{}. That is page cache, which the kernel takes back when memory \
                 is short; leaktrace does not look into it.",
                mostly(name)
            ),
            None,
        ),
        Advice::Shared(name) => (
            format!(
                "Shared memory grows{}. leaktrace does not trace it. What is mapped:",
                mostly(name)
            ),
            Some(format!("sudo pmap -X {pid}")),
        ),
        Advice::Descriptors => (
            "Descriptors grow. leaktrace does not trace them yet. What they are:".to_owned(),
            Some(format!("sudo ls -l /proc/{pid}/fd")),
        ),
        Advice::Threads => (
            "Threads grow. leaktrace does not trace them yet. What they are:".to_owned(),
            Some(format!("ps -T -p {pid}")),
        ),
        Advice::LookLonger => (
            "That was too short a time to tell what grows. For longer:".to_owned(),
            Some(format!("leaktrace doctor {pid} --watch 5min")),
        ),
        Advice::Nothing => (
            "Nothing grows. What grows slowly, or only under load, shows in a longer time:"
                .to_owned(),
            Some(format!("leaktrace doctor {pid} --watch 1h")),
        ),
    }
}
