//! The table that appears every few seconds: two lines about the process, then
//! one line a site.

use leaktrace_common::counter::{Counter, Effect};

use crate::{
    model::{CommonCaller, CompleteShare, MemorySample, Report, Site, SortKey, Verdict},
    report::{
        line::{Line, Look, width},
        name, quantity, stack,
    },
};

/// From this width on, columns are as wide as their largest usual content, so
/// that they stay in place from one table to the next.
const ROOMY: usize = 100;

/// How the table is to look.
#[derive(Clone, Copy, Debug)]
pub struct TableOptions {
    /// Columns that no line exceeds.
    pub width: usize,
    /// Whether escape sequences for colours are allowed.
    pub colour: bool,
    /// Show whole stacks under each line.
    pub stacks: bool,
    /// Most sites to show.
    pub top: usize,
}

/// The table: at most `top` + 4 lines (more only with `stacks`), the last of
/// them empty.
#[must_use]
pub fn render(report: &Report, options: &TableOptions) -> String {
    let mut lines = vec![
        events_line(report, options.width),
        process_line(report, options.width),
    ];
    let warning = warning(report);
    let has_warning = warning.is_some();
    lines.extend(warning);
    let shown = shown_sites(report, options.top);
    let columns = Columns::of(shown, options.width);
    for (index, site) in shown.iter().enumerate() {
        let mut line = columns.line(index + 1, site);
        if options.stacks {
            lines.push(line);
            lines.extend(stack::whole(site, 8, Some(options.width)));
        } else {
            let room = options.width.saturating_sub(line.width());
            line.append(stack::brief(site, room));
            lines.push(line);
        }
    }
    if !has_warning || shown.is_empty() {
        lines.extend(rest_line(report, shown));
    }
    let mut text = String::new();
    for mut line in lines {
        line.cut(options.width);
        line.render(options.colour, &mut text);
    }
    text.push('\n');
    text
}

/// The sites worth a person's time: at most `top`, and none that holds nothing
/// unless the order is by what was allocated.
pub(super) fn shown_sites(report: &Report, top: usize) -> &[Site] {
    let worth =
        |site: &&Site| report.trace.sort == SortKey::AllocBytes || site.sums.live_blocks() > 0;
    let count = report.sites.iter().take(top).take_while(worth).count();
    &report.sites[..count]
}

/// A part of a header line: the same thing said ever more briefly. The last
/// form may be empty.
struct Part {
    look: Look,
    separator: &'static str,
    /// Of two parts, that with the lower number is shortened first.
    importance: u8,
    forms: Vec<String>,
}

impl Part {
    fn new<const N: usize>(importance: u8, forms: [String; N]) -> Self {
        Self {
            look: Look::Plain,
            separator: "  ",
            importance,
            forms: forms.into(),
        }
    }

    fn look(self, look: Look) -> Self {
        Self { look, ..self }
    }

    fn after_bar(self) -> Self {
        Self {
            separator: " | ",
            ..self
        }
    }

    fn form(&self, step: usize) -> &str {
        let last = self.forms.len().saturating_sub(1);
        self.forms.get(step.min(last)).map_or("", |form| form)
    }
}

/// Joins parts in the longest forms with which all fit into `columns`; when
/// none fit, in the shortest.
fn joined(parts: &[Part], columns: usize) -> Line {
    let mut steps = vec![0; parts.len()];
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by_key(|index| parts[*index].importance);
    let fits = |steps: &[usize]| join(parts, steps).width() <= columns;
    let most = parts.iter().map(|part| part.forms.len()).max().unwrap_or(0);
    'shorten: for step in 1..most {
        for index in &order {
            if fits(&steps) {
                break 'shorten;
            }
            steps[*index] = step;
        }
    }
    // What was dropped last may leave room for what was shortened before.
    for index in order.iter().rev() {
        for step in 0..steps[*index] {
            let shortened = std::mem::replace(&mut steps[*index], step);
            if fits(&steps) {
                break;
            }
            steps[*index] = shortened;
        }
    }
    join(parts, &steps)
}

fn join(parts: &[Part], steps: &[usize]) -> Line {
    let mut line = Line::default();
    for (part, step) in parts.iter().zip(steps) {
        let form = part.form(*step);
        if form.is_empty() {
            continue;
        }
        if line.width() > 0 {
            line.push(Look::Faint, part.separator);
        }
        line.push(part.look, form);
    }
    line
}

/// `03:15:07  60 s | live 41.2 MiB in 52 310 blocks | 38.1 k alloc/s | …`
fn events_line(report: &Report, columns: usize) -> Line {
    let time = report.taken.strftime("%H:%M:%S").to_string();
    let elapsed = quantity::duration(report.elapsed);
    let bytes = quantity::bytes_fine(report.totals.live_bytes());
    let blocks = quantity::count(report.totals.live_blocks());
    let rate = quantity::rate(report.alloc_rate);
    let filter = match report.age_filter() {
        none if none.is_empty() => none,
        filter => format!("sites with {filter}"),
    };
    let live = [
        format!(
            "live {bytes} in {}",
            quantity::things(report.totals.live_blocks(), "block")
        ),
        format!("live {bytes} in {blocks}"),
        format!("live {bytes}"),
    ];
    let mut parts = vec![
        Part::new(2, [format!("{time}  {elapsed}"), time]),
        Part::new(4, live).look(Look::Strong).after_bar(),
        Part::new(
            1,
            [
                format!("{rate} alloc/s"),
                format!("{rate}/s"),
                String::new(),
            ],
        )
        .after_bar(),
    ];
    if let Some(cost) = report.cost {
        let short = format!("cost {}", quantity::percent(cost));
        let cost = match report.cost_cpus {
            // Why the limit does not apply.
            Some(cpus) if report.is_cost_negligible() => {
                format!("{short} ({} of one CPU)", quantity::percent(cpus))
            }
            _ => short.clone(),
        };
        parts.push(Part::new(3, [cost, short, String::new()]).after_bar());
    }
    let lost = match report.lost() {
        0 => Part::new(5, ["lost 0".to_owned()]),
        lost => Part::new(5, [format!("LOST {}", quantity::count(lost))]).look(Look::Alarm),
    };
    parts.push(lost.after_bar());
    if let Some(shares) = quantity::complete(report.complete) {
        let brief = quantity::complete(CompleteShare {
            bytes: None,
            ..report.complete
        });
        let forms = [
            format!("stacks complete {shares}"),
            format!("stacks {}", brief.unwrap_or(shares)),
            String::new(),
        ];
        parts.push(Part::new(0, forms).after_bar());
    }
    // Line 1 is about all blocks, the sites are not.
    parts.push(Part::new(4, [filter.clone(), filter, String::new()]).after_bar());
    joined(&parts, columns)
}

/// `RSS 8.24 GiB (+44 MiB)  swap 0  … | traced 41 of +44 MiB`
fn process_line(report: &Report, columns: usize) -> Line {
    let (then, now) = (&report.memory_at_start, &report.memory);
    let mut parts = Vec::new();
    if let Some(rss) = now.rss {
        let short = format!("RSS {}", quantity::bytes_fine(rss));
        let text = match then.rss {
            Some(then) => format!("{short} ({})", quantity::bytes_change(then, rss)),
            None => short,
        };
        parts.push(Part::new(5, [text]).look(Look::Strong));
    }
    if let Some(swap) = now.swap {
        let short = format!("swap {}", quantity::bytes_short(swap));
        let text = match then.swap {
            // Beside no swap at all its change would say nothing.
            Some(then) if then > 0 || swap > 0 => {
                format!("{short} ({})", quantity::bytes_change(then, swap))
            }
            _ => short,
        };
        parts.push(Part::new(
            u8::from(swap > 0),
            [text.clone(), text, String::new()],
        ));
    }
    parts.extend(
        now.descriptors
            .map(|fds| count_part("fds", 1, then.descriptors, fds)),
    );
    parts.extend(
        now.threads
            .map(|threads| count_part("threads", 0, then.threads, threads)),
    );
    parts.extend(cgroup_part(then, now));
    parts.extend(traced_part(report));
    joined(&parts, columns)
}

/// A count with its change; one that changed is kept longer.
fn count_part(what: &str, importance: u8, then: Option<u64>, now: u64) -> Part {
    let short = format!("{what} {}", quantity::count(now));
    match then {
        Some(then) if then != now => {
            let text = format!("{short} ({})", quantity::count_change(then, now));
            Part::new(importance + 2, [text.clone(), text, String::new()])
        }
        Some(_) => Part::new(importance, [format!("{short} (+0)"), short, String::new()]),
        None => Part::new(importance, [short.clone(), short, String::new()]),
    }
}

fn cgroup_part(then: &MemorySample, now: &MemorySample) -> Option<Part> {
    let usage = now.cgroup_usage?;
    let text = match now.cgroup_limit {
        Some(limit) => quantity::bytes_of(usage, limit),
        None => quantity::bytes_short(usage),
    };
    let short = format!("cgroup {text}");
    let text = match then.cgroup_usage {
        Some(then) => format!("{short} ({})", quantity::bytes_change(then, usage)),
        None => short.clone(),
    };
    Some(Part::new(4, [text, short, String::new()]))
}

/// How much of the growth of RSS is explained: `traced 41 of +44 MiB`.
fn traced_part(report: &Report) -> Option<Part> {
    let (then, now) = (report.memory_at_start.rss?, report.memory.rss?);
    let live = report.totals.live_bytes();
    let text = if now < then {
        format!(
            "{} of {}",
            quantity::bytes_short(live),
            quantity::bytes_change(then, now)
        )
    } else {
        quantity::bytes_of(live, now - then).replacen(" of ", " of +", 1)
    };
    Some(Part::new(6, [format!("traced {text}")]).after_bar())
}

/// What makes the totals inexact, in words; `None` when nothing does.
fn warning(report: &Report) -> Option<Line> {
    let (lost, inexact) = (report.lost(), report.inexact());
    let verdict = match (lost, inexact) {
        (0, 0) => return None,
        (_, 0) => "totals are a lower bound",
        (0, _) => "totals are inexact",
        (_, _) => "totals are a lower bound, and inexact",
    };
    let mut reasons: Vec<_> = Counter::ALL
        .iter()
        .filter(|counter| counter.effect() != Effect::None && report.counter(**counter) > 0)
        .collect();
    reasons.sort_by_key(|counter| std::cmp::Reverse(report.counter(**counter)));
    let reasons: Vec<_> = reasons
        .into_iter()
        .map(|counter| quantity::events(*counter, report.counter(*counter)))
        .collect();
    let mut line = Line::default();
    line.push(Look::Alarm, verdict);
    line.push(Look::Plain, format!(": {}", reasons.join("; ")));
    Some(line)
}

/// What is not shown below the sites, or why there are none.
fn rest_line(report: &Report, shown: &[Site]) -> Option<Line> {
    let hidden = report.site_count.saturating_sub(shown.len());
    let mut line = Line::default();
    if shown.is_empty() {
        line.push(Look::Plain, format!("    {}", nothing_held(report)));
        return Some(line);
    }
    let common = report.common_caller.as_ref().map(common_caller_text);
    if hidden == 0 {
        line.push(Look::Plain, format!("    {}", common?));
        return Some(line);
    }
    let mut text = format!("    … {}", quantity::things(hidden as u64, "more site"));
    if !report.ages_known {
        // Then no filter by age applies, and totals and sites mean the same.
        let held = shown
            .iter()
            .map(|site| site.sums.live_bytes())
            .fold(0, u64::saturating_add);
        let rest = report.totals.live_bytes().saturating_sub(held);
        match rest {
            0 => text.push_str(", nothing held"),
            _ => text.push_str(&format!(", {}", quantity::bytes(rest))),
        }
    }
    line.push(Look::Faint, text);
    if let Some(common) = common {
        line.push(Look::Plain, format!("; {common}"));
    }
    Some(line)
}

/// `all 14 growing stacks pass through Session::create`
pub(super) fn common_caller_text(common: &CommonCaller) -> String {
    let name = name::clean(&common.function);
    let name = name::collapsed(name::without_signature(&name)).into_owned();
    if common.stacks == common.growing {
        let which = match common.growing {
            2 => "both".to_owned(),
            growing => format!("all {growing}"),
        };
        return format!("{which} growing stacks pass through {name}");
    }
    format!(
        "{} of {} growing stacks, with {} of the growth, pass through {name}",
        common.stacks,
        common.growing,
        quantity::percent_whole(common.share)
    )
}

/// Why no site is shown.
pub(super) fn nothing_held(report: &Report) -> String {
    let totals = &report.totals;
    match (totals.alloc_blocks, totals.live_blocks()) {
        (0, _) => "no allocation seen yet".to_owned(),
        (blocks, 0) => format!(
            "nothing held: {} allocated, all freed",
            quantity::things(blocks, "block")
        ),
        (_, live) => format!(
            "no site passes the filters ({} held)",
            quantity::things(live, "block")
        ),
    }
}

/// Texts of the columns before the stack, and their widths.
struct Columns {
    roomy: bool,
    live: usize,
    growth: usize,
    blocks: usize,
    freed: usize,
    verdict: usize,
}

impl Columns {
    fn of(sites: &[Site], columns: usize) -> Self {
        let roomy = columns >= ROOMY;
        let widest = |text: fn(&Site) -> String, least: usize| {
            let least = if roomy { least } else { 0 };
            sites
                .iter()
                .map(|site| width(&text(site)))
                .fold(least, usize::max)
        };
        Self {
            roomy,
            live: widest(Self::live, 8),
            growth: widest(Self::growth, 13),
            blocks: widest(Self::blocks, 7),
            freed: widest(Self::freed, 4),
            verdict: widest(Self::verdict, 9),
        }
    }

    fn live(site: &Site) -> String {
        quantity::bytes(site.sums.live_bytes())
    }

    fn growth(site: &Site) -> String {
        quantity::growth(site.growth())
    }

    fn blocks(site: &Site) -> String {
        quantity::count(site.sums.live_blocks())
    }

    fn freed(site: &Site) -> String {
        quantity::percent_whole(site.sums.freed_share())
    }

    fn verdict(site: &Site) -> String {
        quantity::verdict(site.trend)
    }

    /// `rank  live  growth  blocks  freed  verdict` and the gap before the stack.
    fn line(&self, rank: usize, site: &Site) -> Line {
        let mut line = Line::default();
        let gap = if self.roomy { "  " } else { " " };
        line.push(Look::Faint, format!("{rank:>2}"));
        line.push(Look::Plain, gap);
        line.push(Look::Strong, format!("{:>1$}", Self::live(site), self.live));
        let growth = Self::growth(site);
        line.push(Look::Plain, format!("{gap}{growth:<0$}", self.growth));
        let blocks = format!("{:>1$}", Self::blocks(site), self.blocks);
        let noun = match site.sums.live_blocks() {
            1 => "block ",
            _ => "blocks",
        };
        let freed = format!("{:>1$}", Self::freed(site), self.freed);
        let text = if self.roomy {
            format!("{gap}{blocks} {noun}{gap}freed {freed}{gap}")
        } else {
            format!("{gap}{blocks} blk{gap}{freed} freed{gap}")
        };
        line.push(Look::Plain, text);
        if self.verdict > 0 {
            let look = match site.verdict() {
                Verdict::Growing => Look::Alarm,
                Verdict::Filling => Look::Plain,
                _ => Look::Faint,
            };
            line.push(look, format!("{:<1$}", Self::verdict(site), self.verdict));
            line.push(Look::Plain, gap);
        }
        line
    }
}
