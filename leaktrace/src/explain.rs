//! What the growth of RSS is made of: traced blocks, and what else. Pure.
//!
//! RSS is anonymous memory, files and shared memory, and the kernel counts each;
//! files and shared memory are so known exactly. Of anonymous memory, traced
//! blocks explain as much as they hold. For the rest, the kinds of mappings that
//! have grown are taken, none for more than it has grown by, or for more than is
//! used of it where that was looked at. What is left was mapped before and is used
//! only now.

use std::sync::Arc;

use crate::model::{Cause, CauseKind, MappingKind, MemoryMap, MemorySample, RssGrowth};

/// What is known of a process at the start and at the end.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// Its memory at the start.
    pub then: &'a MemorySample,
    /// Its memory at the end.
    pub now: &'a MemorySample,
    /// Its address space at the start.
    pub map_then: Option<&'a MemoryMap>,
    /// Its address space at the end.
    pub map_now: Option<&'a MemoryMap>,
    /// What traced blocks hold at the end, of any age, bytes.
    pub live_bytes: u64,
    /// How many these are.
    pub live_blocks: u64,
    /// Whether malloc is glibc's, whose mappings can be told from others.
    pub is_glibc: bool,
    /// Whether a filter by size left out blocks, which may be the ones that grow.
    pub filtered: bool,
    /// What is free in glibc's heaps at the end, where they were walked.
    pub free: Option<u64>,
}

/// Bytes of a block's header and of rounding its size up, in glibc: 8, and 0 to
/// 15.
const PER_BLOCK: u64 = 16;

/// What the growth of RSS with swap is made of; `None` when RSS is not known.
#[must_use]
pub fn explain(evidence: &Evidence<'_>) -> Option<RssGrowth> {
    let (then, now) = (evidence.then, evidence.now);
    let (swap_then, swap_now) = (then.swap.unwrap_or(0), now.swap.unwrap_or(0));
    let grown = (now.rss? + swap_now).saturating_sub(then.rss? + swap_then);
    let change = |read: fn(&MemorySample) -> Option<u64>| {
        read(now)
            .zip(read(then))
            .map(|(now, then)| now.saturating_sub(then))
    };
    let anonymous = match (now.rss_anon, then.rss_anon) {
        (Some(now), Some(then)) => (now + swap_now).saturating_sub(then + swap_then),
        _ => grown,
    };
    let traced = evidence.live_bytes.min(anonymous).min(grown);
    let mut causes = anonymous_causes(evidence, anonymous - traced);
    let mut add = |kind, mapping, bytes: Option<u64>| {
        causes.push(Cause {
            kind,
            bytes: bytes.unwrap_or(0),
            mostly: evidence.most_grown(mapping),
        });
    };
    add(
        CauseKind::Files,
        MappingKind::File,
        change(|sample| sample.rss_file),
    );
    add(
        CauseKind::Shared,
        MappingKind::Shared,
        change(|sample| sample.rss_shmem),
    );
    causes.sort_by_key(|cause| std::cmp::Reverse(cause.bytes));
    // Where one kind of memory shrank, the others have grown by more than RSS.
    let mut left = grown - traced;
    for cause in &mut causes {
        cause.bytes = cause.bytes.min(left);
        left -= cause.bytes;
    }
    causes.retain(|cause| cause.bytes > 0);
    Some(RssGrowth {
        grown,
        swapped: swap_now.saturating_sub(swap_then).min(grown),
        traced,
        causes,
    })
}

/// What else than traced blocks anonymous memory has grown by.
fn anonymous_causes(evidence: &Evidence<'_>, growth: u64) -> Vec<Cause> {
    let mut causes = Vec::new();
    let mut left = growth;
    let mut take = |kind, bytes: u64, mostly| {
        let bytes = bytes.min(left);
        left -= bytes;
        causes.push(Cause {
            kind,
            bytes,
            mostly,
        });
    };
    if evidence.map_then.is_none() || evidence.map_now.is_none() {
        take(CauseKind::Unknown, growth, None);
        return causes;
    }
    let grown = |kind| evidence.grown(kind);
    if evidence.is_glibc {
        let heaps: u64 = MappingKind::ALL
            .into_iter()
            .filter(|kind| kind.is_glibc_malloc())
            .map(grown)
            .sum();
        let excess = heaps.saturating_sub(evidence.live_bytes);
        let headers = excess.min(evidence.live_blocks.saturating_mul(PER_BLOCK));
        let excess = excess - headers;
        take(CauseKind::Headers, headers, None);
        let kind = if evidence.filtered {
            CauseKind::FilteredOrKept
        } else {
            CauseKind::Kept {
                free: evidence.free,
            }
        };
        take(kind, excess, None);
    }
    let mostly = evidence.most_grown(MappingKind::Named);
    take(CauseKind::Named, grown(MappingKind::Named), mostly);
    let mut anonymous = grown(MappingKind::Anonymous);
    if !evidence.is_glibc {
        // Traced blocks are in there, too.
        anonymous += grown(MappingKind::BrkHeap);
        anonymous = anonymous.saturating_sub(evidence.live_bytes);
    }
    take(CauseKind::Anonymous, anonymous, None);
    // The last, since little of a stack is used.
    let threads = |sample: &MemorySample| sample.threads.unwrap_or(0);
    let more = threads(evidence.now).saturating_sub(threads(evidence.then));
    take(CauseKind::Stacks(more), grown(MappingKind::Stack), None);
    take(CauseKind::TouchedLater, u64::MAX, None);
    causes
}

impl Evidence<'_> {
    /// How much a kind of mapping has grown by at most.
    fn grown(&self, kind: MappingKind) -> u64 {
        let (Some(then), Some(now)) = (self.map_then, self.map_now) else {
            return 0;
        };
        let growth = now.bytes(kind).saturating_sub(then.bytes(kind));
        now.held(kind).map_or(growth, |held| growth.min(held))
    }

    fn most_grown(&self, kind: MappingKind) -> Option<Arc<str>> {
        self.map_now?.most_grown(self.map_then?, kind)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{MapPart, Used};

    const MIB: u64 = 1 << 20;

    fn sample(anon: u64, file: u64, shmem: u64) -> MemorySample {
        MemorySample {
            rss: Some((anon + file + shmem) * MIB),
            rss_anon: Some(anon * MIB),
            rss_file: Some(file * MIB),
            rss_shmem: Some(shmem * MIB),
            swap: Some(0),
            threads: Some(4),
            ..MemorySample::default()
        }
    }

    fn map(parts: &[(MappingKind, &str, u64, Option<u64>)]) -> MemoryMap {
        let parts = parts
            .iter()
            .map(|(kind, name, bytes, resident)| MapPart {
                kind: *kind,
                name: Arc::from(*name),
                bytes: bytes * MIB,
                used: resident.map(|resident| Used {
                    resident: resident * MIB,
                    swapped: 0,
                }),
            })
            .collect::<Vec<_>>();
        MemoryMap {
            mappings: parts.len() as u64,
            parts,
            blocks_told: true,
        }
    }

    fn evidence<'a>(
        samples: &'a [MemorySample; 2],
        maps: &'a [MemoryMap; 2],
        live_mib: u64,
    ) -> Evidence<'a> {
        Evidence {
            then: &samples[0],
            now: &samples[1],
            map_then: Some(&maps[0]),
            map_now: Some(&maps[1]),
            live_bytes: live_mib * MIB,
            live_blocks: 1,
            is_glibc: true,
            filtered: false,
            free: None,
        }
    }

    /// Causes of at least a MiB, in MiB.
    fn causes(evidence: &Evidence<'_>) -> Vec<(CauseKind, u64)> {
        let growth = explain(evidence).unwrap();
        growth
            .causes
            .iter()
            .map(|cause| (cause.kind, cause.bytes.div_ceil(MIB)))
            .filter(|(kind, _)| *kind != CauseKind::Headers)
            .collect()
    }

    #[test]
    fn blocks_that_were_traced_explain_what_they_hold() {
        let samples = [sample(100, 10, 0), sample(200, 10, 0)];
        let heap = |size| map(&[(MappingKind::BrkHeap, "", size, None)]);
        let maps = [heap(90), heap(190)];
        let evidence = evidence(&samples, &maps, 99);
        let growth = explain(&evidence).unwrap();
        assert_eq!((growth.grown, growth.traced), (100 * MIB, 99 * MIB));
        assert!((growth.explained() - 0.99).abs() < 1e-9);
        assert_eq!(
            causes(&evidence),
            [(CauseKind::Kept { free: None }, 1)],
            "less 16 bytes"
        );
    }

    #[test]
    fn a_heap_that_grew_by_more_than_is_held_keeps_free_memory() {
        let samples = [sample(10, 10, 0), sample(250, 10, 0)];
        let heap = |size| map(&[(MappingKind::BrkHeap, "", size, None)]);
        let maps = [heap(4), heap(244)];
        let mut evidence = evidence(&samples, &maps, 1);
        assert_eq!(causes(&evidence), [(CauseKind::Kept { free: None }, 239)]);
        let free = Some(400 * MIB);
        evidence.free = free;
        assert_eq!(causes(&evidence), [(CauseKind::Kept { free }, 239)]);
        evidence.filtered = true;
        assert_eq!(causes(&evidence), [(CauseKind::FilteredOrKept, 239)]);
    }

    #[test]
    fn files_and_shared_memory_are_what_the_kernel_counts() {
        let samples = [sample(10, 10, 0), sample(10, 60, 30)];
        let parts = |size, shared| {
            map(&[
                (MappingKind::File, "/data/index", size, None),
                (MappingKind::File, "/usr/lib/libc.so.6", 2, None),
                (MappingKind::Shared, "/memfd:ring", shared, None),
            ])
        };
        let maps = [parts(0, 64), parts(50, 64)];
        let growth = explain(&evidence(&samples, &maps, 0)).unwrap();
        let named: Vec<_> = growth
            .causes
            .iter()
            .map(|cause| (cause.kind, cause.bytes / MIB, cause.mostly.as_deref()))
            .collect();
        assert_eq!(
            named,
            [
                (CauseKind::Files, 50, Some("/data/index")),
                (CauseKind::Shared, 30, None),
            ]
        );
    }

    #[test]
    fn of_files_that_did_not_grow_the_one_with_most_in_memory_is_named() {
        let samples = [sample(10, 10, 0), sample(10, 60, 0)];
        let parts = |resident| {
            map(&[
                (MappingKind::File, "/data/a", 500, resident),
                (MappingKind::File, "/data/b", 400, Some(3)),
            ])
        };
        let maps = [parts(None), parts(Some(52))];
        let growth = explain(&evidence(&samples, &maps, 0)).unwrap();
        assert_eq!(growth.causes[0].mostly.as_deref(), Some("/data/a"));
    }

    #[test]
    fn mappings_count_for_no_more_than_is_used_of_them() {
        let mut samples = [sample(10, 10, 0), sample(130, 10, 0)];
        samples[1].threads = Some(24);
        let parts = |anonymous, named, stacks, used: Option<[u64; 3]>| {
            let used = |index: usize| used.map(|used| used[index]);
            map(&[
                (MappingKind::Named, "Go: heap", named, used(0)),
                (MappingKind::Anonymous, "", anonymous, used(1)),
                (MappingKind::Stack, "", stacks, used(2)),
            ])
        };
        let maps = [
            parts(20, 64, 32, None),
            parts(1044, 128, 192, Some([90, 30, 2])),
        ];
        assert_eq!(
            causes(&evidence(&samples, &maps, 0)),
            [
                (CauseKind::Named, 64),
                (CauseKind::Anonymous, 30),
                (CauseKind::TouchedLater, 24),
                (CauseKind::Stacks(20), 2),
            ]
        );
    }

    #[test]
    fn the_mappings_of_another_allocator_have_its_blocks() {
        let samples = [sample(10, 10, 0), sample(110, 10, 0)];
        let parts = |size| map(&[(MappingKind::Anonymous, "", size, None)]);
        let maps = [parts(20), parts(128)];
        let mut evidence = evidence(&samples, &maps, 30);
        evidence.is_glibc = false;
        assert_eq!(causes(&evidence), [(CauseKind::Anonymous, 70)]);
    }

    #[test]
    fn swapped_memory_is_held() {
        let mut samples = [sample(100, 0, 0), sample(60, 0, 0)];
        samples[1].swap = Some(90 * MIB);
        let maps = [map(&[]), map(&[])];
        let growth = explain(&evidence(&samples, &maps, 50)).unwrap();
        assert_eq!(growth.grown, 50 * MIB);
        assert_eq!(growth.swapped, 50 * MIB);
        assert_eq!(growth.traced, 50 * MIB);
        assert!(growth.causes.is_empty());
    }

    #[test]
    fn without_mappings_the_rest_is_unknown() {
        let samples = [sample(10, 0, 0), sample(60, 0, 0)];
        let maps = [map(&[]), map(&[])];
        let evidence = Evidence {
            map_now: None,
            ..evidence(&samples, &maps, 10)
        };
        assert_eq!(causes(&evidence), [(CauseKind::Unknown, 40)]);
        let unread = MemorySample::default();
        assert_eq!(
            explain(&Evidence {
                now: &unread,
                ..evidence
            }),
            None
        );
    }

    fn any_sample() -> impl Strategy<Value = MemorySample> {
        [0..1_000_u64, 0..1_000, 0..1_000, 0..1_000].prop_map(|[anon, file, shmem, swap]| {
            MemorySample {
                swap: Some(swap * MIB),
                ..sample(anon, file, shmem)
            }
        })
    }

    fn any_map() -> impl Strategy<Value = MemoryMap> {
        let kind = (0..MappingKind::ALL.len()).prop_map(|index| MappingKind::ALL[index]);
        let resident = proptest::option::of(0..1_000_u64);
        proptest::collection::vec((kind, "[ab]", 0..1_000_u64, resident), 0..20).prop_map(|parts| {
            let parts: Vec<_> = parts
                .iter()
                .map(|(kind, name, bytes, resident)| (*kind, name.as_str(), *bytes, *resident))
                .collect();
            map(&parts)
        })
    }

    proptest! {
        /// Nothing is explained twice, and nothing is left over unless one kind of
        /// memory shrank.
        #[test]
        fn the_parts_add_up_to_the_growth(
            samples in [any_sample(), any_sample()],
            maps in [any_map(), any_map()],
            live in 0..1_000_u64,
            blocks in 0..10_000_000_u64,
            is_glibc: bool,
            filtered: bool,
            free in proptest::option::of(0..1_000 * MIB),
        ) {
            let evidence = Evidence {
                live_blocks: blocks,
                is_glibc,
                filtered,
                free,
                ..evidence(&samples, &maps, live)
            };
            let growth = explain(&evidence).unwrap();
            let sum: u64 = growth.causes.iter().map(|cause| cause.bytes).sum();
            prop_assert_eq!(growth.traced + sum, growth.grown);
            prop_assert!(growth.traced <= evidence.live_bytes);
            prop_assert!(growth.swapped <= growth.grown);
            prop_assert!(growth.causes.is_sorted_by(|one, next| one.bytes >= next.bytes));
        }
    }
}
