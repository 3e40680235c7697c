//! The process's memory and the like, then and now.

use std::time::Duration;

use super::Page;
use crate::{
    model::{MemorySample, Report},
    report::{line::Look, quantity},
};

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

/// Memory read longer before the end than this is not that of the end.
const STALE: Duration = Duration::from_millis(100);

pub(super) fn write(report: &Report, page: &mut Page) {
    let ended = quantity::duration(report.elapsed);
    let Some(read) = report.memory_read else {
        let title = format!("{:<24}  {:>9}", "Memory", "at start");
        page.say(Look::Strong, title);
        for (what, read, is_bytes) in MEMORY {
            if let Some(then) = read(&report.memory_at_start) {
                let what = format!("  {what}");
                page.say(
                    Look::Plain,
                    format!("{what:<24}  {:>9}", shown(Some(then), is_bytes)),
                );
            }
        }
        page.say(
            Look::Plain,
            format!("  not read again: the trace ended after {ended}"),
        );
        return;
    };
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
                shown(then, is_bytes),
                shown(now, is_bytes)
            ),
        );
    }
    let before_end = report.elapsed.saturating_sub(read);
    if report.end.is_some() && before_end >= STALE {
        page.say(
            Look::Plain,
            format!(
                "  \"now\" is {} before the end, when it could last be read",
                quantity::duration(before_end)
            ),
        );
    }
}

fn shown(value: Option<u64>, is_bytes: bool) -> String {
    match value {
        None => "?".to_owned(),
        Some(bytes) if is_bytes => quantity::bytes_fine(bytes),
        Some(count) => quantity::count(count),
    }
}
