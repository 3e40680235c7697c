//! The process's memory and the like, then and now.

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

pub(super) fn write(report: &Report, page: &mut Page) {
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
