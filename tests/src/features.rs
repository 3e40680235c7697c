//! The kernel's features as tests see them: which there are, and doing without.

use std::cell::RefCell;

use anyhow::{Result, ensure};

use crate::report::Report;

/// Features that there is another way for. Each is switched off by itself in
/// `exactness` and `rules`, and all together play the oldest kernel.
pub const FALLBACKS: [&str; 10] = [
    "uprobe_multi",
    "perf_link",
    "attach_cookie",
    "compare_exchange",
    "btf",
    "map_memory_on_demand",
    "batched_lookup",
    "long_nop_emulated",
    "returns_keep_shadow_stack",
    "find_vma",
];

/// Features that there is no way without, with what is said when one is missing.
pub const ESSENTIAL: [(&str, &str); 4] = [
    (
        "uprobes",
        "it offers no probes in programs (`uprobes`, which Linux 4.17 brought with \
         CONFIG_UPROBE_EVENTS)",
    ),
    (
        "bounded_loops",
        "its BPF programs may not have loops (`bounded_loops`, which Linux 5.3 brought)",
    ),
    (
        "read_user_memory",
        "its BPF programs can't read the memory of a process (`read_user_memory`, which Linux \
         5.5 brought)",
    ),
    (
        "mapped_arrays",
        "its BPF arrays can't be mapped into memory (`mapped_arrays`, which Linux 5.5 brought)",
    ),
];

/// Features that are looked for, and that nothing uses yet.
pub const UNUSED: [&str; 1] = ["ring_buffer"];

thread_local! {
    static OFF: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs `test`; every leaktrace that it starts does without these features,
/// their names joined by commas.
pub fn without<T>(features: &str, test: impl FnOnce() -> T) -> T {
    let before = OFF.replace(features.to_owned());
    let result = test();
    OFF.replace(before);
    result
}

/// What is switched off now.
#[must_use]
pub fn switched_off() -> String {
    OFF.with_borrow(Clone::clone)
}

/// Checks that a report has all features, and that those which are switched off
/// were not used but something else, which it names.
///
/// # Errors
/// When that is not so.
pub fn check(report: &Report) -> Result<()> {
    let mut known: Vec<&str> = FALLBACKS.into_iter().chain(UNUSED).collect();
    known.extend(ESSENTIAL.map(|(name, _)| name));
    known.sort_unstable();
    let reported: Vec<&str> = report.features.keys().map(String::as_str).collect();
    ensure!(
        reported == known,
        "the report has the features {reported:?}, tests know {known:?}"
    );
    for (name, feature) in &report.features {
        let fallback = FALLBACKS.contains(&name.as_str());
        ensure!(
            feature.instead.is_some() == (fallback && !feature.used),
            "{name}: {feature:?}"
        );
        let off = switched_off().split(',').any(|off| off == name);
        ensure!(!(off && feature.used), "{name} is used: {feature:?}");
    }
    Ok(())
}
