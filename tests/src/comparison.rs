//! Compares a report with what must be true: equal, not nearly.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::AddAssign,
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    fixture::Fixture,
    ledger,
    replay::{Edge, Truth, Window, replay},
    report::Report,
};

/// What was allocated and given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sums {
    /// Bytes requested.
    pub alloc_bytes: u64,
    /// Blocks allocated.
    pub alloc_blocks: u64,
    /// Bytes given back.
    pub freed_bytes: u64,
    /// Blocks given back.
    pub freed_blocks: u64,
}

impl Sums {
    /// One block of `size` bytes allocated.
    #[must_use]
    pub fn allocated(size: u64) -> Self {
        Self {
            alloc_bytes: size,
            alloc_blocks: 1,
            ..Self::default()
        }
    }
    /// One block of `size` bytes given back.
    #[must_use]
    pub fn freed(size: u64) -> Self {
        Self {
            freed_bytes: size,
            freed_blocks: 1,
            ..Self::default()
        }
    }
    /// Bytes held.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.alloc_bytes.wrapping_sub(self.freed_bytes)
    }
    /// Blocks held.
    #[must_use]
    pub fn live_blocks(&self) -> u64 {
        self.alloc_blocks.wrapping_sub(self.freed_blocks)
    }
}

impl AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.alloc_bytes += other.alloc_bytes;
        self.alloc_blocks += other.alloc_blocks;
        self.freed_bytes += other.freed_bytes;
        self.freed_blocks += other.freed_blocks;
    }
}

/// What sites must hold: live bytes and blocks by function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected(BTreeMap<String, (u64, u64)>);

impl Expected {
    /// Of live bytes and blocks by function.
    #[must_use]
    pub fn new(sites: BTreeMap<String, (u64, u64)>) -> Self {
        Self(sites)
    }

    /// Of a list.
    #[must_use]
    pub fn of(sites: &[(&str, u64, u64)]) -> Self {
        Self(
            sites
                .iter()
                .map(|(name, bytes, blocks)| ((*name).into(), (*bytes, *blocks)))
                .collect(),
        )
    }

    /// All sites together.
    #[must_use]
    pub fn total(&self) -> (u64, u64) {
        self.0
            .values()
            .fold((0, 0), |sum, site| (sum.0 + site.0, sum.1 + site.1))
    }

    /// Checks that exactly these sites hold exactly this in `report`, by the
    /// function that called the allocator, and that totals agree.
    ///
    /// # Errors
    /// When anything differs.
    pub fn check(&self, report: &Report) -> Result<()> {
        let live = report.live();
        let mut wanted = self.clone();
        wanted.0.retain(|_, held| *held != (0, 0));
        ensure!(
            live == wanted,
            "the report says {:?}, the truth is {:?} (counters: {})",
            live.0,
            wanted.0,
            report.counters_text()
        );
        self.check_total(report)
    }

    /// Checks the totals of `report` only.
    ///
    /// # Errors
    /// When they differ.
    pub fn check_total(&self, report: &Report) -> Result<()> {
        let total = (report.totals.live_bytes, report.totals.live_blocks);
        ensure!(
            total == self.total(),
            "the report's totals say {total:?}, the truth is {:?} (counters: {})",
            self.total(),
            report.counters_text()
        );
        Ok(())
    }

    /// Checks sites in `report` by the first function whose name starts with
    /// `prefix`, wherever it is in the stack.
    ///
    /// # Errors
    /// When anything differs.
    pub fn check_by_function(&self, report: &Report, prefix: &str) -> Result<()> {
        let mut live: BTreeMap<_, _> = report
            .by_function(prefix)
            .into_iter()
            .map(|(name, sums)| (name, (sums.live_bytes(), sums.live_blocks())))
            .collect();
        live.retain(|_, held| *held != (0, 0));
        ensure!(
            live == self.0,
            "the report says {live:?}, the truth is {:?} (counters: {})",
            self.0,
            report.counters_text()
        );
        self.check_total(report)
    }
}

/// Checks that `report` says of itself that it is exact and that its totals are
/// the sums of its sites.
///
/// # Errors
/// When it does not.
pub fn check_exact(report: &Report) -> Result<()> {
    let totals = &report.totals;
    ensure!(
        totals.exact && totals.lost == 0 && totals.inexact == 0,
        "the report calls itself inexact: {}",
        report.counters_text()
    );
    check_sums(report)
}

/// Checks that the totals of `report` are the sums of its sites.
///
/// # Errors
/// When they are not.
pub fn check_sums(report: &Report) -> Result<()> {
    let mut sum = Sums::default();
    for stack in &report.stacks {
        let sums = stack.sums();
        ensure!(
            (stack.live_bytes, stack.live_blocks) == (sums.live_bytes(), sums.live_blocks()),
            "a site holds something else than it allocated less what it gave back: {stack:?}"
        );
        sum += sums;
    }
    ensure!(
        sum == report.total(),
        "sites add up to {sum:?}, totals are {:?}",
        report.total()
    );
    let held = (report.totals.live_bytes, report.totals.live_blocks);
    ensure!(
        held == (sum.live_bytes(), sum.live_blocks()),
        "held in total: {held:?} of {sum:?}"
    );
    Ok(())
}

/// Most calls over one edge by one thread: a thread is in one call at a time.
const STRADDLERS: u64 = 1;
/// An edge known this well leaves room for one call only: none is that short
/// under a probe.
const SHARP_NS: u64 = 500;
/// Ways in which straddling calls may add up at one site before the comparison
/// says nothing any more.
const MOST_SUMS: usize = 1 << 14;

/// Compares `report` with the ledger in `directory`, site by site (functions
/// `site_NNN`): allocated and given back, bytes and blocks, all equal but for
/// calls that straddle an edge.
///
/// # Errors
/// When anything differs, or the report calls itself inexact.
pub fn check_ledger(report: &Report, directory: &Path) -> Result<Truth> {
    Ok(check_ledgers(std::slice::from_ref(report), directory)?.remove(0))
}

/// As [`check_ledger`], for the fixture `mixed` that was made to make `calls` calls,
/// which one does from a hundred sites.
///
/// # Errors
/// When too little of it was traced, besides.
pub fn check_mixed(report: &Report, fixture: &Fixture, calls: u64) -> Result<Truth> {
    let truth = check_ledger(report, fixture.ledger()?)?;
    ensure!(
        truth.calls >= calls / 2,
        "only {} calls were traced",
        truth.calls
    );
    ensure!(
        truth.certain.len() == 100,
        "only {} sites were seen",
        truth.certain.len()
    );
    Ok(truth)
}

/// As [`check_ledger`], for several reports that were made one after the other
/// of one fixture.
///
/// # Errors
/// When anything differs, or a report calls itself inexact.
pub fn check_ledgers(reports: &[Report], directory: &Path) -> Result<Vec<Truth>> {
    let windows = reports.iter().map(Window::of).collect::<Result<Vec<_>>>()?;
    let truths = truths(directory, &windows)?;
    for (number, ((report, truth), window)) in reports.iter().zip(&truths).zip(&windows).enumerate()
    {
        check_truth(report, truth, *window).with_context(|| format!("report {number}"))?;
    }
    Ok(truths)
}

/// What the ledger in `directory` says of each of `windows`.
///
/// # Errors
/// When it can't be read or contradicts itself.
pub fn truths(directory: &Path, windows: &[Window]) -> Result<Vec<Truth>> {
    let logs = ledger::open(directory)?
        .into_iter()
        .map(|log| (log.thread, log))
        .collect();
    replay(logs, windows)
}

fn check_truth(report: &Report, truth: &Truth, window: Window) -> Result<()> {
    check_exact(report)?;
    check_straddlers(truth, window)?;
    check_sites(report, truth)?;
    check_range(
        "unknown_free",
        report.counter("unknown_free")?,
        truth.unknown_frees,
    )?;
    check_range(
        "failed_alloc",
        report.counter("failed_alloc")?,
        truth.failed,
    )
}

fn check_straddlers(truth: &Truth, window: Window) -> Result<()> {
    let sharp = |(earliest, latest): (u64, u64)| latest - earliest <= SHARP_NS;
    if sharp(window.on) && sharp(window.off) {
        for (place, calls) in &truth.straddlers {
            ensure!(
                *calls <= STRADDLERS,
                "{calls} calls straddle {place:?} of {window:?}"
            );
        }
    }
    Ok(())
}

fn check_range(name: &str, value: u64, (least, most): (u64, u64)) -> Result<()> {
    ensure!(
        (least..=most).contains(&value),
        "counter {name} is {value}, the ledger says {least} to {most}"
    );
    Ok(())
}

/// Checks every site; the error lists all that differ.
///
/// # Errors
/// When any differs.
pub fn check_sites(report: &Report, truth: &Truth) -> Result<()> {
    let mut seen = report.by_caller();
    let sites: BTreeSet<u16> = truth
        .certain
        .keys()
        .copied()
        .chain(truth.open.iter().flatten().flatten().map(|(site, _)| *site))
        .collect();
    let mut wrong = Vec::new();
    for site in sites {
        let name = format!("site_{site:03}");
        let possible = possible_sums(truth, site)?;
        let seen = seen.remove(&name).unwrap_or_default();
        if !possible.contains(&seen) {
            let certain = truth.certain.get(&site).copied().unwrap_or_default();
            wrong.push(format!(
                "{name}: {seen:?}, the ledger says {certain:?} ({} ways)",
                possible.len()
            ));
        }
    }
    // Of a call that straddles the beginning, only an inner one may be seen,
    // whose return address the outer one's pending return probe hides.
    let mut hidden = truth.straddlers_of(Edge::On);
    for (name, sums) in seen {
        if name.starts_with('?') && sums.alloc_blocks <= hidden {
            hidden -= sums.alloc_blocks;
        } else if sums != Sums::default() {
            wrong.push(format!("{name}: {sums:?}, the ledger has no such site"));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let shown = wrong
        .iter()
        .take(12)
        .cloned()
        .collect::<Vec<_>>()
        .join("\n");
    bail!(
        "{} sites differ (counters: {}):\n{shown}",
        wrong.len(),
        report.counters_text()
    )
}

/// All sums that `site` may show.
fn possible_sums(truth: &Truth, site: u16) -> Result<BTreeSet<Sums>> {
    let mut possible = BTreeSet::from([truth.certain.get(&site).copied().unwrap_or_default()]);
    for outcomes in &truth.open {
        if !outcomes.iter().flatten().any(|(of, _)| *of == site) {
            continue;
        }
        let mut next = BTreeSet::new();
        for outcome in outcomes {
            for sums in &possible {
                let mut sums = *sums;
                for (_, change) in outcome.iter().filter(|(of, _)| *of == site) {
                    sums += *change;
                }
                next.insert(sums);
            }
        }
        possible = next;
        ensure!(
            possible.len() <= MOST_SUMS,
            "too many calls straddle an edge to compare"
        );
    }
    Ok(possible)
}
