//! What is said on stderr around a trace.

use std::{collections::BTreeSet, path::Path, time::Duration};

use super::{
    brake::{Brake, Estimate},
    estimate::COUNTING,
    replacement::Replacing,
};
use crate::{
    alert::{Figure, Firing, Growth, LimitOwner},
    bpf::Limits,
    model::{MemorySample, NEGLIGIBLE_CPUS, ProcessInfo, SelfCheck},
    report::{name, quantity, stack},
};

/// `orderd (4242, up 6 d): 38 200 allocations/s on 3.8 CPUs; tracing will cost
/// about 2.4 % of its CPU (limit 50 %)`
pub fn estimate(process: &ProcessInfo, estimate: &Estimate, brake: Brake) -> String {
    let up = jiff::Zoned::now().duration_since(&process.started);
    let up = Duration::try_from(up).unwrap_or_default();
    let limit = match brake {
        Brake::Off => String::new(),
        Brake::Limit(limit) if estimate.is_negligible(brake) => format!(
            ", which is only {} of one CPU (the limit of {} does not apply under {})",
            quantity::percent_in_words(estimate.cost_cpus),
            quantity::percent_whole(limit),
            quantity::percent_whole(NEGLIGIBLE_CPUS),
        ),
        Brake::Limit(limit) => format!(" (limit {})", quantity::percent_whole(limit)),
    };
    let who = format!(
        "{} ({}, up {})",
        name::clean(&process.name),
        process.pid,
        quantity::duration(up)
    );
    let cpus = quantity::cpus(estimate.cpus);
    if estimate.share == 0.0 {
        return format!(
            "{who}: no allocations in {} on {cpus}; tracing costs nothing while that lasts{limit}",
            quantity::duration(COUNTING)
        );
    }
    format!(
        "{who}: {} allocations/s on {cpus}; tracing will cost about {} of its CPU{limit}",
        quantity::rate(estimate.alloc_rate),
        quantity::percent_in_words(estimate.share),
    )
}

/// Why a process is not traced, and how it can be all the same.
pub fn refusal(process: &ProcessInfo, estimate: &Estimate, limit: f64) -> String {
    format!(
        "not attached: {} makes {} allocations/s; exact tracing would take about {} of its CPU \
         (limit {}).\nTo go on all the same, briefly:  leaktrace attach {} --max-overhead 100% \
         --duration 10s",
        name::clean(&process.name),
        quantity::rate(estimate.alloc_rate),
        quantity::percent(estimate.share),
        quantity::percent_whole(limit),
        process.pid,
    )
}

/// `attached to 4242 (orderd): 14 functions in libc.so.6 (-v lists them), …`
pub fn attached(
    process: &ProcessInfo,
    functions: usize,
    files: &str,
    time: &jiff::Zoned,
) -> String {
    format!(
        "attached to {} ({}): {} in {} (-v lists them), {}",
        process.pid,
        name::clean(&process.name),
        quantity::things(functions as u64, "function"),
        name::clean(files),
        time.strftime("%Y-%m-%d %H:%M:%S %z"),
    )
}

/// What the report can't explain.
pub fn unexplained(memory: &MemorySample) -> Option<String> {
    let rss = quantity::bytes(memory.rss?);
    Some(format!(
        "RSS {rss} was there before and is not explained. Blocks from now on are shown; a leak \
         shows by growing."
    ))
}

/// How to end, and what comes of it.
pub fn how_to_end(directory: Option<&Path>, is_command: bool) -> String {
    match (directory, is_command) {
        (Some(directory), true) => {
            format!(
                "When the command ends, the report goes to {}/",
                directory.display()
            )
        }
        (None, true) => "The report follows when the command ends".to_owned(),
        (Some(directory), false) => {
            format!(
                "Ctrl-C detaches and writes the report to {}/",
                directory.display()
            )
        }
        (None, false) => "Ctrl-C detaches and reports".to_owned(),
    }
}

/// How to set the mark that `--since` waits for.
pub fn how_to_mark(since_mark: bool, warmup: Option<Duration>) -> Option<String> {
    if let Some(warmup) = warmup {
        let warmup = quantity::duration(warmup);
        return Some(format!("The mark will be set in {warmup}"));
    }
    let own = std::process::id();
    since_mark.then(|| format!("`kill -USR2 {own}` sets the mark; all blocks are shown until then"))
}

/// That growth was not believed, and why.
pub fn replacing(replacing: &Replacing) -> Option<String> {
    let (sites, rise, they) = match replacing.sites {
        0 => return None,
        1 => ("1 site".to_owned(), "rises", "it"),
        sites => (quantity::things(sites as u64, "site"), "rise", "they"),
    };
    Some(format!(
        "{sites} {rise} by {}, but about as many blocks from before are freed, and RSS grows much \
         less: {they} may only take their place. That can be told when no more of these are left.",
        rate(replacing.per_minute)
    ))
}

/// Lines about the target's files, whose names are anybody's.
pub fn about_files(lines: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<String> {
    lines
        .into_iter()
        .map(|line| name::clean(line.as_ref()).into_owned())
        .collect()
}

/// Why `run` does not end with its trace.
pub fn waiting(process: &ProcessInfo) -> String {
    format!(
        "{} ({}) goes on untraced; leaktrace waits for its end, to end with its exit status",
        name::clean(&process.name),
        process.pid,
    )
}

/// That the command was only the way to another program, and how that one is
/// traced.
pub fn replaced(first: &str, now: &ProcessInfo) -> String {
    let exe = now.exe.to_string_lossy();
    let (first, exe) = (name::clean(first), name::clean(&exe));
    format!(
        "The report is about {first} only, which replaced itself by {exe} (exec). To trace that \
         from its first instruction:  leaktrace run -- {exe} ARGUMENTS\nTo trace it from now on:  \
         leaktrace attach {}",
        now.pid,
    )
}

/// What the maps may take at worst.
pub fn map_memory(bytes: u64, limits: &Limits) -> String {
    format!(
        "At most {} of kernel memory will be used, with {} live blocks (--max-blocks) and {} \
         threads",
        quantity::bytes(bytes),
        quantity::grouped(u64::from(limits.max_blocks)),
        quantity::grouped(u64::from(limits.max_threads)),
    )
}

/// What the target's code says of the stacks, with `-v`.
pub fn self_check(check: &SelfCheck) -> String {
    let Some(share) = check.share() else {
        return "Self-check of stacks: no return address could be looked at".to_owned();
    };
    let mut text = format!(
        "Self-check of stacks: {} of {} return addresses ({}) follow a call",
        quantity::grouped(check.after_call),
        quantity::grouped(check.return_addresses),
        quantity::percent(share),
    );
    if check.doubtful_stacks > 0 {
        text.push_str(&format!(
            "; complete stacks with one that does not: {}",
            quantity::grouped(check.doubtful_stacks)
        ));
    }
    text
}

/// The mark was set.
pub fn marked(time: &jiff::Zoned, since_mark: bool) -> String {
    let time = time.strftime("%T");
    let shown = if since_mark {
        ", and only blocks made from now on are shown"
    } else {
        ""
    };
    format!("marked at {time}: growth counts from here{shown}")
}

/// What came true: `512 MiB are live`.
pub fn fired(firing: &Firing) -> String {
    // `as` saturates; none of these is negative.
    let value = firing.value as u64;
    match firing.condition.figure() {
        Figure::LiveBytes => format!("{} are live", quantity::bytes(value)),
        Figure::LiveBlocks => format!("{} are live", quantity::things(value, "block")),
        Figure::Growth => format!("live bytes grow by {}", rate(firing.value)),
        Figure::Rss => format!("RSS is {}", quantity::bytes_fine(value)),
        Figure::RssPercent => {
            let limit = firing
                .figures
                .memory_limit
                .map_or_else(String::new, |limit| {
                    let bytes = quantity::bytes_short(limit.bytes);
                    match limit.whose {
                        LimitOwner::Cgroup => format!(" of {bytes}, the limit of its cgroup"),
                        LimitOwner::Machine => format!(" of {bytes}, the machine's memory"),
                    }
                });
            format!("RSS is {}{limit}", quantity::percent(firing.value / 100.0))
        }
        Figure::Swap => format!("{} are swapped out", quantity::bytes(value)),
        Figure::Descriptors => format!("{} are open", quantity::things(value, "descriptor")),
        Figure::Threads => format!("it has {}", quantity::things(value, "thread")),
        Figure::GrowingSites => match value {
            1 => "1 site grows".to_owned(),
            sites => format!("{} grow", quantity::things(sites, "site")),
        },
    }
}

/// Columns of a site that is named in a sentence.
const SITE_COLUMNS: usize = 100;

/// `36.1 MiB/min`
fn rate(per_minute: f64) -> String {
    let growth = quantity::growth(per_minute);
    growth.trim_start_matches('+').to_owned()
}

/// That a condition came true, and what was written because of it.
pub fn alert(time: &str, firing: &Firing, what: &str, files: &[&Path]) -> String {
    let alert = format!("ALERT {time} {}: {what}", firing.condition);
    if files.is_empty() {
        return alert;
    }
    format!("{alert}; written: {}", file_names(files))
}

/// Files as a shell takes them: `heap.{svg,json}` when they differ in nothing else.
fn file_names(files: &[&Path]) -> String {
    let shown = |path: &Path| name::clean(&path.to_string_lossy()).into_owned();
    let stems: BTreeSet<_> = files.iter().map(|path| path.with_extension("")).collect();
    let extensions: Vec<_> = files.iter().filter_map(|path| path.extension()).collect();
    match stems.first() {
        Some(stem) if stems.len() == 1 && files.len() > 1 && extensions.len() == files.len() => {
            let extensions: Vec<_> = extensions.iter().map(|it| shown(it.as_ref())).collect();
            format!("{}.{{{}}}", shown(stem), extensions.join(","))
        }
        _ => {
            let names: Vec<_> = files.iter().map(|path| shown(path)).collect();
            names.join(", ")
        }
    }
}

/// That files were written for so many alerts, and that this was the last.
pub fn no_more_files(times: u32) -> String {
    format!(" (the {times}th time that files are written; there will be no more until the end)")
}

/// That it came to a leak, or that this can't be told, with `--fail-if-growth`;
/// `None` when there is none.
pub fn growth(growth: &Growth<'_>) -> Option<String> {
    match growth {
        Growth::None => None,
        Growth::Found(sites) => {
            let rate: f64 = sites
                .iter()
                .filter_map(|site| site.trend)
                .map(|trend| trend.rate.per_minute)
                .sum();
            let (grow, fastest) = match sites.len() {
                1 => ("grows", ""),
                _ => ("grow", ", fastest"),
            };
            let mut name = String::new();
            if let Some(site) = sites.first() {
                stack::brief(site, SITE_COLUMNS).render(false, &mut name);
            }
            Some(format!(
                "leaktrace: --fail-if-growth: {} {grow} without bound, by {}{fastest}: {}",
                quantity::things(sites.len() as u64, "site"),
                self::rate(rate),
                name.trim_end(),
            ))
        }
        Growth::TooEarly {
            sites,
            live_bytes,
            traced,
        } => Some(format!(
            "leaktrace: --fail-if-growth: too early to tell of {} with {}, so this is no failure; \
             traced {}, and it takes 60 s, or two periods of what a site does",
            quantity::things(*sites as u64, "site"),
            quantity::bytes(*live_bytes),
            quantity::duration(*traced),
        )),
    }
}

/// That a reader of JSON lines has missed some.
pub fn dropped_lines(dropped: u64) -> String {
    format!(
        "leaktrace: {} of JSON {} not written, since nobody read stdout for long: numbers are \
         missing in `sequence`",
        quantity::things(dropped, "line"),
        if dropped == 1 { "was" } else { "were" },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_do_nothing_to_the_terminal() {
        let lines = about_files(["/tmp/\u{1b}[2Jlib\nfoo.so can't be read", "fine"]);
        assert_eq!(lines, ["/tmp/\u{fffd}[2Jlib foo.so can't be read", "fine"]);
    }

    #[test]
    fn files_that_differ_in_their_extensions_are_named_once() {
        let names = |all: &[&str]| {
            let all: Vec<&Path> = all.iter().map(Path::new).collect();
            file_names(&all)
        };
        assert_eq!(names(&["d/a.svg", "d/a.json"]), "d/a.{svg,json}");
        assert_eq!(names(&["d/a.svg", "e/a.json"]), "d/a.svg, e/a.json");
        assert_eq!(names(&["d/a", "d/a.json"]), "d/a, d/a.json");
        assert_eq!(names(&["d/a.svg"]), "d/a.svg");
    }
}
