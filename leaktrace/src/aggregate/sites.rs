//! Ordering, filtering and cutting sites, before anything is symbolized.

use std::{cmp::Ordering, time::Duration};

use super::{BlockAges, Selection};
use crate::model::{Site, SortKey, Sums, Trend, Verdict, VerdictSums};

/// A site whose frames have not been looked up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    pub stack_id: u64,
    pub sums: Sums,
    pub growth_per_minute: f64,
    pub trend: Option<Trend>,
}

/// Sums of two.
pub fn add(one: Sums, other: Sums) -> Sums {
    let mut freed_by_age = one.freed_by_age;
    for (sum, freed) in freed_by_age.iter_mut().zip(other.freed_by_age) {
        *sum = sum.wrapping_add(freed);
    }
    Sums {
        freed_by_age,
        alloc_bytes: one.alloc_bytes.wrapping_add(other.alloc_bytes),
        alloc_blocks: one.alloc_blocks.wrapping_add(other.alloc_blocks),
        freed_bytes: one.freed_bytes.wrapping_add(other.freed_bytes),
        freed_blocks: one.freed_blocks.wrapping_add(other.freed_blocks),
        hidden_bytes: one.hidden_bytes.wrapping_add(other.hidden_bytes),
        hidden_blocks: one.hidden_blocks.wrapping_add(other.hidden_blocks),
    }
}

/// One row for each stack that allocated (with a filter by age: that holds
/// blocks which pass), in the wanted order; ties by stack, so that the order
/// is stable.
pub fn rows(sums: &[(u64, Sums)], ages: Option<&BlockAges>, selection: &Selection<'_>) -> Vec<Row> {
    let filtered = ages.filter(|ages| ages.filters());
    let row = |(stack_id, sums): &(u64, Sums)| {
        let mut shown = *sums;
        if let Some(ages) = filtered {
            shown = match selection.baseline.filter(|_| ages.filters_by_mark()) {
                Some(baseline) => baseline.since(*stack_id, *sums, ages.made_since(*stack_id)),
                None => *sums,
            };
            shown = ages.passing(*stack_id, shown)?;
        }
        (shown.alloc_blocks > 0).then(|| Row {
            stack_id: *stack_id,
            sums: shown,
            growth_per_minute: growth_per_minute(*stack_id, sums, selection),
            trend: selection.trends.get(stack_id).copied(),
        })
    };
    let mut rows: Vec<Row> = sums.iter().filter_map(row).collect();
    rows.sort_by(|a, b| {
        key(b, selection.sort)
            .partial_cmp(&key(a, selection.sort))
            .unwrap_or(Ordering::Equal)
            .then(a.stack_id.cmp(&b.stack_id))
    });
    rows
}

/// The mean since the start or the mark. Growth is the whole site's: of old
/// blocks alone it would say how old they are.
fn growth_per_minute(stack_id: u64, sums: &Sums, selection: &Selection<'_>) -> f64 {
    let (since, then) = match selection.baseline {
        Some(baseline) => (baseline.at, baseline.of(stack_id).live_bytes()),
        None => (Duration::ZERO, 0),
    };
    let minutes = selection.elapsed.saturating_sub(since).as_secs_f64() / 60.0;
    if minutes > 0.0 {
        (sums.live_bytes() as f64 - then as f64) / minutes
    } else {
        0.0
    }
}

impl Row {
    /// Whether it was judged to be growing.
    pub fn is_growing(&self) -> bool {
        self.verdict() == Verdict::Growing
    }

    /// What it was judged to be.
    pub fn verdict(&self) -> Verdict {
        self.trend.map_or(Verdict::TooEarly, |trend| trend.verdict)
    }

    /// As [`crate::model::Site::growth`].
    pub fn growth(&self) -> f64 {
        Site::growth_of(self.trend, self.growth_per_minute)
    }
}

/// What is compared first, and what decides among equals.
fn key(row: &Row, sort: SortKey) -> (bool, f64, u64) {
    let live = row.sums.live_bytes();
    match sort {
        SortKey::LiveBytes => (false, live as f64, 0),
        SortKey::Growth => (row.is_growing(), row.growth(), live),
        SortKey::LiveBlocks => (false, row.sums.live_blocks() as f64, live),
        SortKey::AllocBytes => (false, row.sums.alloc_bytes as f64, live),
    }
}

/// Indices of the rows that were judged to be growing, fastest first.
pub fn growing(rows: &[Row]) -> Vec<usize> {
    let mut growing: Vec<usize> = (0..rows.len())
        .filter(|index| rows[*index].is_growing())
        .collect();
    growing.sort_by(|a, b| rows[*b].growth().total_cmp(&rows[*a].growth()));
    growing
}

/// What the rows of each verdict come to, in the order of [`Verdict::ALL`]; those
/// that hold nothing are left out.
pub fn by_verdict(rows: &[Row]) -> Vec<(Verdict, VerdictSums)> {
    let mut all = Vec::new();
    for verdict in Verdict::ALL {
        let mut sums = VerdictSums::default();
        let holding = |row: &&Row| row.verdict() == verdict && row.sums.live_blocks() > 0;
        for row in rows.iter().filter(holding) {
            sums.sites += 1;
            sums.live_bytes += row.sums.live_bytes();
            sums.growth_per_minute += row.growth();
        }
        if sums.sites > 0 {
            all.push((verdict, sums));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::{super::Baseline, *};
    use crate::model::Rate;

    fn sums(alloc: (u64, u64), freed: (u64, u64)) -> Sums {
        Sums {
            alloc_bytes: alloc.0,
            alloc_blocks: alloc.1,
            freed_bytes: freed.0,
            freed_blocks: freed.1,
            ..Sums::default()
        }
    }

    fn selection(sort: SortKey, trends: &HashMap<u64, Trend>) -> Selection<'_> {
        Selection {
            sort,
            top: None,
            elapsed: Duration::from_secs(30),
            baseline: None,
            trends,
            is_library: |_| false,
            survival: &|_, _| Vec::new(),
        }
    }

    fn trend(verdict: Verdict, per_minute: f64) -> Trend {
        Trend {
            verdict,
            confidence: 0.9,
            rate: Rate {
                per_minute,
                ..Rate::default()
            },
            observed: Duration::from_secs(30),
            steady: None,
            period: None,
        }
    }

    #[test]
    fn each_key_orders_by_its_own_figure() {
        let all = [
            (1, sums((100, 1), (0, 0))),
            (2, sums((1000, 90), (950, 10))),
            (3, sums((60, 2), (0, 0))),
            (4, sums((0, 0), (0, 0))),
        ];
        let order = |sort| -> Vec<u64> {
            rows(&all, None, &selection(sort, &HashMap::new()))
                .iter()
                .map(|row| row.stack_id)
                .collect()
        };
        assert_eq!(order(SortKey::LiveBytes), [1, 3, 2]);
        assert_eq!(order(SortKey::LiveBlocks), [2, 3, 1]);
        assert_eq!(order(SortKey::AllocBytes), [2, 1, 3]);
        assert_eq!(order(SortKey::Growth), [1, 3, 2]);
    }

    #[test]
    fn what_grows_for_good_is_before_what_grew_more() {
        let all = [
            (1, sums((9000, 1), (0, 0))),
            (2, sums((100, 1), (0, 0))),
            (3, sums((200, 1), (0, 0))),
            (4, sums((500, 1), (0, 0))),
        ];
        let trends = HashMap::from([
            (1, trend(Verdict::OneOff, 0.0)),
            (2, trend(Verdict::Growing, 150.0)),
            (3, trend(Verdict::Growing, 300.0)),
        ]);
        let rows = rows(&all, None, &selection(SortKey::Growth, &trends));
        let order: Vec<_> = rows.iter().map(|row| row.stack_id).collect();
        assert_eq!(order, [3, 2, 4, 1]);
        assert_eq!(growing(&rows), [0, 1]);
        let verdicts = by_verdict(&rows);
        let [
            (Verdict::Growing, growing),
            (Verdict::OneOff, _),
            (Verdict::TooEarly, early),
        ] = verdicts[..]
        else {
            panic!("{verdicts:?}")
        };
        assert_eq!((growing.sites, growing.live_bytes), (2, 300));
        assert_eq!(growing.growth_per_minute, 450.0);
        assert_eq!((early.sites, early.live_bytes), (1, 500));
    }

    #[test]
    fn growth_counts_from_the_mark() {
        let all = [(1, sums((600, 3), (100, 1))), (2, sums((50, 1), (0, 0)))];
        let then = [(1, sums((300, 2), (0, 0)))];
        let baseline = Baseline::new(Duration::from_secs(15), &then);
        let trends = HashMap::new();
        let selection = Selection {
            baseline: Some(&baseline),
            ..selection(SortKey::Growth, &trends)
        };
        let rows = rows(&all, None, &selection);
        // From 300 to 500 bytes in a quarter of a minute.
        assert_eq!(rows[0].growth_per_minute, 800.0);
        assert_eq!(rows[1].growth_per_minute, 200.0);
        // All of it is shown as long as no filter says otherwise.
        assert_eq!(rows[0].sums.live_bytes(), 500);
    }

    #[test]
    fn growth_is_per_minute() {
        let all = [(1, sums((100, 1), (40, 1)))];
        let rows = rows(&all, None, &selection(SortKey::LiveBytes, &HashMap::new()));
        assert_eq!(rows[0].growth_per_minute, 120.0);
    }

    #[test]
    fn ages_filter_blocks_not_sites() {
        let mut ages = BlockAges::new(
            super::super::AgeFilter {
                min: Some(Duration::from_secs(1)),
                ..super::super::AgeFilter::default()
            },
            5_000_000_000,
        );
        ages.add(1, 10, 4_500_000_000);
        ages.add(1, 20, 1_000_000_000);
        ages.add(2, 30, 4_900_000_000);
        let all = [(1, sums((130, 7), (100, 5))), (2, sums((30, 1), (0, 0)))];
        let rows = rows(
            &all,
            Some(&ages),
            &selection(SortKey::LiveBytes, &HashMap::new()),
        );
        assert_eq!(rows.len(), 1);
        let shown = rows[0].sums;
        assert_eq!(rows[0].stack_id, 1);
        assert_eq!((shown.live_bytes(), shown.live_blocks()), (20, 1));
        assert_eq!((shown.alloc_bytes, shown.freed_blocks), (130, 5));
        // 30 bytes in half a minute, whatever their age.
        assert_eq!(rows[0].growth_per_minute, 60.0);
        assert_eq!(ages.oldest(1), Some(Duration::from_secs(4)));
    }
}
