//! What RSS says, in a sentence or two: how far traced blocks explain its growth,
//! and what else does.

use crate::{
    model::{Cause, CauseKind, RssGrowth},
    report::{name, quantity},
};

/// Growth below this is not worth an explanation.
const NOTEWORTHY: u64 = 4 << 20;
/// Parts smaller than this share of the growth are left out.
const SMALL: f64 = 0.05;
/// Traced blocks that explain this share leave nothing to ask.
const EXPLAINED: f64 = 0.9;
/// Most causes that are told.
const CAUSES: usize = 3;

/// What RSS, now `rss`, has grown by; `None` when it has not grown.
#[must_use]
pub fn sentences(growth: &RssGrowth, rss: u64) -> Option<String> {
    if growth.grown == 0 {
        return None;
    }
    let grown = quantity::bytes_short(growth.grown);
    let now = quantity::bytes_fine(rss);
    let subject = match growth.swapped as f64 / growth.grown as f64 {
        share if share < SMALL => format!("RSS grew {grown}, to {now}"),
        _ => format!(
            "RSS and swap grew {grown} ({} of it is swapped out), RSS is {now}",
            quantity::bytes_short(growth.swapped)
        ),
    };
    if growth.grown < NOTEWORTHY {
        return Some(format!("{subject}."));
    }
    let share = growth.explained();
    if share >= EXPLAINED {
        return Some(format!(
            "{subject}; traced blocks explain {} of it.",
            quantity::percent(share)
        ));
    }
    let small = |bytes: u64| (bytes as f64) < SMALL * growth.grown as f64;
    let told: Vec<&Cause> = growth
        .causes
        .iter()
        .filter(|cause| !small(cause.bytes))
        .take(CAUSES)
        .collect();
    let traced = match growth.traced {
        0 => "none of it".to_owned(),
        bytes if share < 0.5 => format!("only {} of it", quantity::bytes_short(bytes)),
        bytes => format!("{} of it", quantity::bytes_short(bytes)),
    };
    let parts: Vec<String> = told.iter().map(|cause| part(cause)).collect();
    let colon = if parts.is_empty() { "" } else { ": " };
    let mut text = format!(
        "{subject}, {traced} in traced blocks{colon}{}.",
        listed(&parts)
    );
    if let Some(hint) = told.first().and_then(|cause| hint(cause.kind)) {
        text.push(' ');
        text.push_str(hint);
    }
    Some(text)
}

/// `a`, `a and b`, `a, b and c`.
fn listed(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

fn part(cause: &Cause) -> String {
    let bytes = quantity::bytes_short(cause.bytes);
    let mostly = match &cause.mostly {
        Some(name) if !name.is_empty() => format!(" (mostly {})", name::clean(name)),
        _ => String::new(),
    };
    match cause.kind {
        // What is free may be in its fast bins, which look as if it were in use.
        CauseKind::Kept { free: Some(free) } if free >= cause.bytes / 2 => format!(
            "{bytes} is free memory that malloc keeps (its heaps have {} free: fragmented or \
             retained)",
            quantity::bytes_short(free)
        ),
        CauseKind::Kept { .. } => format!(
            "{bytes} is free memory that malloc keeps (its heaps grew by more than is held: \
             fragmented or retained)"
        ),
        CauseKind::Headers => format!("{bytes} is malloc's headers and rounding"),
        CauseKind::FilteredOrKept => format!(
            "{bytes} is in malloc's heaps (blocks that the size filter left out, or free memory that \
             malloc keeps)"
        ),
        CauseKind::Named => format!("{bytes} is in anonymous mappings with a name{mostly}"),
        CauseKind::Anonymous => format!("{bytes} is in anonymous mappings beside malloc's"),
        CauseKind::Stacks(0) => format!("{bytes} is stacks of threads"),
        CauseKind::Stacks(more) => format!(
            "{bytes} is stacks of threads ({} more)",
            quantity::things(more, "thread")
        ),
        CauseKind::Files => format!("{bytes} is in mapped files{mostly}"),
        CauseKind::Shared => format!("{bytes} is in shared memory{mostly}"),
        CauseKind::TouchedLater => {
            format!("{bytes} was mapped before the trace and is used only now")
        }
        CauseKind::Unknown => format!("{bytes} is unknown, since its mappings could not be read"),
    }
}

/// What to do about the largest cause.
fn hint(kind: CauseKind) -> Option<&'static str> {
    Some(match kind {
        CauseKind::Kept { .. } => {
            "That is no leak; malloc_trim(3), fewer arenas (MALLOC_ARENA_MAX) or another allocator \
             may mend it."
        }
        CauseKind::Named | CauseKind::Anonymous => {
            "Look for calls of mmap, and at runtimes that manage memory of their own: leaktrace \
             traces malloc's callers only."
        }
        CauseKind::Stacks(_) => "Look for threads that never end.",
        CauseKind::Files => "That is page cache, which the kernel takes back when memory is short.",
        CauseKind::Unknown => {
            "It may be mappings, a runtime's own heap, or free memory that malloc keeps."
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const MIB: u64 = 1 << 20;
    const NOW: u64 = 9 << 30;

    fn growth(grown: u64, traced: u64, causes: &[(CauseKind, u64, Option<&str>)]) -> RssGrowth {
        RssGrowth {
            grown: grown * MIB,
            swapped: 0,
            traced: traced * MIB,
            causes: causes
                .iter()
                .map(|(kind, bytes, mostly)| Cause {
                    kind: *kind,
                    bytes: bytes * MIB,
                    mostly: mostly.map(Arc::from),
                })
                .collect(),
        }
    }

    fn said(growth: &RssGrowth) -> String {
        sentences(growth, NOW).unwrap()
    }

    /// With 1 of 240 MiB traced and one cause.
    fn of(kind: CauseKind, mostly: Option<&str>) -> String {
        let text = said(&growth(240, 1, &[(kind, 239, mostly)]));
        let start = "RSS grew 240 MiB, to 9.00 GiB, only 1 MiB of it in traced blocks: 239 MiB ";
        text.strip_prefix(start).unwrap().to_owned()
    }

    #[test]
    fn growth_that_is_explained_is_told_briefly() {
        assert_eq!(
            said(&growth(388, 372, &[(CauseKind::Anonymous, 16, None)])),
            "RSS grew 388 MiB, to 9.00 GiB; traced blocks explain 96 % of it."
        );
        assert_eq!(said(&growth(3, 0, &[])), "RSS grew 3 MiB, to 9.00 GiB.");
        assert_eq!(sentences(&growth(0, 0, &[]), NOW), None);
    }

    #[test]
    fn each_cause_has_its_words() {
        assert_eq!(
            of(CauseKind::Kept { free: None }, None),
            "is free memory that malloc keeps (its heaps grew by more than is held: fragmented or \
             retained). That is no leak; malloc_trim(3), fewer arenas (MALLOC_ARENA_MAX) or another \
             allocator may mend it."
        );
        let free = Some(250 * MIB);
        assert_eq!(
            of(CauseKind::Kept { free }, None),
            "is free memory that malloc keeps (its heaps have 250 MiB free: fragmented or \
             retained). That is no leak; malloc_trim(3), fewer arenas (MALLOC_ARENA_MAX) or another \
             allocator may mend it."
        );
        assert_eq!(
            of(CauseKind::Headers, None),
            "is malloc's headers and rounding."
        );
        let free = Some(100 * MIB);
        assert_eq!(
            of(CauseKind::Kept { free }, None),
            of(CauseKind::Kept { free: None }, None)
        );
        assert_eq!(
            of(CauseKind::FilteredOrKept, None),
            "is in malloc's heaps (blocks that the size filter left out, or free memory that malloc \
             keeps)."
        );
        assert_eq!(
            of(CauseKind::Named, Some("Go: heap")),
            "is in anonymous mappings with a name (mostly Go: heap). Look for calls of mmap, and at \
             runtimes that manage memory of their own: leaktrace traces malloc's callers only."
        );
        assert_eq!(
            of(CauseKind::Anonymous, None),
            "is in anonymous mappings beside malloc's. Look for calls of mmap, and at runtimes that \
             manage memory of their own: leaktrace traces malloc's callers only."
        );
        assert_eq!(
            of(CauseKind::Stacks(120), None),
            "is stacks of threads (120 threads more). Look for threads that never end."
        );
        assert_eq!(
            of(CauseKind::Stacks(0), None),
            "is stacks of threads. Look for threads that never end."
        );
        assert_eq!(
            of(CauseKind::Files, Some("/data/index\x1b[2J")),
            "is in mapped files (mostly /data/index\u{fffd}[2J). That is page cache, which the kernel \
             takes back when memory is short."
        );
        assert_eq!(
            of(CauseKind::Shared, Some("/memfd:ring")),
            "is in shared memory (mostly /memfd:ring)."
        );
        assert_eq!(
            of(CauseKind::TouchedLater, None),
            "was mapped before the trace and is used only now."
        );
        assert_eq!(
            of(CauseKind::Unknown, None),
            "is unknown, since its mappings could not be read. It may be mappings, a runtime's own \
             heap, or free memory that malloc keeps."
        );
    }

    #[test]
    fn what_no_cause_is_large_enough_for_is_not_explained() {
        let small = growth(100, 88, &[(CauseKind::Headers, 4, None)]);
        assert_eq!(
            said(&small),
            "RSS grew 100 MiB, to 9.00 GiB, 88 MiB of it in traced blocks."
        );
    }

    #[test]
    fn several_causes_come_in_order_and_small_ones_are_left_out() {
        let causes = [
            (CauseKind::Shared, 60, Some("/dev/shm/ring")),
            (CauseKind::Stacks(8), 30, None),
            (CauseKind::TouchedLater, 4, None),
        ];
        assert_eq!(
            said(&growth(200, 106, &causes)),
            "RSS grew 200 MiB, to 9.00 GiB, 106 MiB of it in traced blocks: 60 MiB is in shared \
             memory (mostly /dev/shm/ring) and 30 MiB is stacks of threads (8 threads more)."
        );
    }

    #[test]
    fn swapped_memory_is_told() {
        let mut growth = growth(200, 190, &[]);
        growth.swapped = 80 * MIB;
        assert_eq!(
            said(&growth),
            "RSS and swap grew 200 MiB (80 MiB of it is swapped out), RSS is 9.00 GiB; traced \
             blocks explain 95 % of it."
        );
    }
}
