//! Ordering, filtering and cutting sites, before anything is symbolized.

use super::{BlockAges, Selection};
use crate::model::{SortKey, Sums};

/// A site whose frames have not been looked up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    pub stack_id: u64,
    pub sums: Sums,
    pub growth_per_minute: f64,
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
pub fn rows(sums: &[(u64, Sums)], ages: Option<&BlockAges>, selection: &Selection) -> Vec<Row> {
    let minutes = selection.elapsed.as_secs_f64() / 60.0;
    let filtered = ages.filter(|ages| ages.filters());
    let mut rows: Vec<Row> = sums
        .iter()
        .filter_map(|(stack_id, sums)| {
            // Growth is the whole site's: of old blocks alone it would say
            // how old they are.
            let live = sums.live_bytes();
            let sums = match filtered {
                Some(ages) => ages.passing(*stack_id, *sums)?,
                None => *sums,
            };
            let growth_per_minute = if minutes > 0.0 {
                live as f64 / minutes
            } else {
                0.0
            };
            (sums.alloc_blocks > 0).then_some(Row {
                stack_id: *stack_id,
                sums,
                growth_per_minute,
            })
        })
        .collect();
    rows.sort_by(|a, b| {
        key(b, selection.sort)
            .total_cmp(&key(a, selection.sort))
            .then(a.stack_id.cmp(&b.stack_id))
    });
    rows
}

fn key(row: &Row, sort: SortKey) -> f64 {
    match sort {
        SortKey::LiveBytes => row.sums.live_bytes() as f64,
        SortKey::Growth => row.growth_per_minute,
        SortKey::LiveBlocks => row.sums.live_blocks() as f64,
        SortKey::AllocBytes => row.sums.alloc_bytes as f64,
    }
}

/// Indices of the rows that grow, fastest first.
pub fn fastest(rows: &[Row], most: usize) -> Vec<usize> {
    let mut growing: Vec<usize> = (0..rows.len())
        .filter(|index| rows[*index].growth_per_minute > 0.0)
        .collect();
    growing.sort_by(|a, b| {
        rows[*b]
            .growth_per_minute
            .total_cmp(&rows[*a].growth_per_minute)
    });
    growing.truncate(most);
    growing
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn sums(alloc: (u64, u64), freed: (u64, u64)) -> Sums {
        Sums {
            alloc_bytes: alloc.0,
            alloc_blocks: alloc.1,
            freed_bytes: freed.0,
            freed_blocks: freed.1,
            ..Sums::default()
        }
    }

    fn selection(sort: SortKey) -> Selection {
        Selection {
            sort,
            top: None,
            growing: 10,
            elapsed: Duration::from_secs(30),
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
            rows(&all, None, &selection(sort))
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
    fn growth_is_per_minute() {
        let all = [(1, sums((100, 1), (40, 1)))];
        let rows = rows(&all, None, &selection(SortKey::LiveBytes));
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
        let rows = rows(&all, Some(&ages), &selection(SortKey::LiveBytes));
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
