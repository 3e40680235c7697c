//! Whether a trace ended with a leak, for tests that are to fail then.

use std::time::Duration;

use crate::model::{Report, Site, Verdict};

/// What counts as a leak.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GrowthTest {
    /// Growth up to this is tolerated, bytes per minute; `None` tolerates none.
    pub tolerated: Option<f64>,
}

/// What a report says of that.
#[derive(Clone, Debug)]
pub enum Growth<'a> {
    /// These sites grow without bound and faster than is tolerated, the fastest
    /// first.
    Found(Vec<&'a Site>),
    /// None does.
    None,
    /// None is known to, but some were observed for too short a time.
    TooEarly {
        /// How many.
        sites: usize,
        /// What they hold.
        live_bytes: u64,
        /// How long the trace was.
        traced: Duration,
    },
}

impl GrowthTest {
    /// Judges a last report.
    #[must_use]
    pub fn judge<'a>(&self, report: &'a Report) -> Growth<'a> {
        let rate = |site: &Site| site.trend.map_or(0.0, |trend| trend.rate.per_minute);
        let is_growing = |site: &&Site| site.trend.is_some_and(|it| it.verdict == Verdict::Growing);
        let is_too_fast = |site: &&Site| self.tolerated.is_none_or(|most| rate(site) > most);
        let mut found: Vec<_> = report
            .sites
            .iter()
            .filter(is_growing)
            .filter(is_too_fast)
            .collect();
        if !found.is_empty() {
            found.sort_by(|one, other| rate(other).total_cmp(&rate(one)));
            return Growth::Found(found);
        }
        let is_open = |site: &&Site| site.trend.is_none_or(|it| it.verdict == Verdict::TooEarly);
        let open = report.sites.iter().filter(is_open);
        let held = open
            .map(|site| site.sums.live_bytes())
            .filter(|held| *held > 0);
        let (sites, live_bytes) = held.fold((0, 0), |(sites, all), held| (sites + 1, all + held));
        if sites == 0 {
            return Growth::None;
        }
        Growth::TooEarly {
            sites,
            live_bytes,
            traced: report.elapsed,
        }
    }
}
