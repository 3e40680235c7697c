//! What the reporter has found out about growth, for the watch to look at: it
//! never waits for the reporter.

use std::sync::{Arc, Mutex};

use super::unwinding::lock;
use crate::model::{Site, Verdict};

/// What was found last.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Growth {
    /// Sites that are judged to grow without bound.
    pub sites: usize,
    /// How fast all sites together grow, bytes; `None` when it is too early to tell.
    pub per_minute: Option<f64>,
}

/// Where the reporter leaves it. The lock is held only to copy it.
#[derive(Clone, Debug, Default)]
pub struct Judgement(Arc<Mutex<Growth>>);

impl Judgement {
    /// What was found last.
    pub fn read(&self) -> Growth {
        *lock(&self.0)
    }

    /// Leaves what a report says of its sites.
    pub fn publish(&self, sites: &[Site]) {
        let trends = sites.iter().filter_map(|site| site.trend);
        let growing = trends.filter(|trend| trend.verdict == Verdict::Growing);
        *lock(&self.0) = Growth {
            sites: growing.count(),
            per_minute: None,
        };
    }
}
