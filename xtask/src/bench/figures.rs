//! Figures that are measured once for each, not by load and tracer, and what
//! they should be.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use serde_json::Value;

use super::load::Load;
use super::programs::{self, Program};
use super::results::Results;
use super::series::Series;
use super::table::{Table, seconds};
use super::tracer::Tracer;
use super::workload::{IDLE, Subject, TIGHT, TIGHT_WITHOUT_FRAME_POINTERS};
use super::{Bench, proc, report};

/// Blocks that are live when tables and snapshots are timed.
const MANY_BLOCKS: u64 = 1_000_000;
/// What leaktrace has room for then, its default.
const MAX_BLOCKS: u64 = 1 << 20;
/// Time between two tables then: several are timed together.
const TABLE_INTERVAL: Duration = Duration::from_millis(250);
/// Snapshots that are timed.
const SNAPSHOTS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(30);

/// A figure beside what it should be.
struct Figure {
    name: &'static str,
    measured: String,
    /// Empty when nothing is wanted of it.
    target: String,
    is_met: bool,
}

/// All of them.
#[derive(Default)]
pub struct Figures(Vec<Figure>);

impl Figures {
    /// A figure that should be at most `target`.
    pub fn push(&mut self, name: &'static str, value: f64, target: f64, show: fn(f64) -> String) {
        self.0.push(Figure {
            name,
            measured: show(value),
            target: format!("at most {}", show(target)),
            is_met: value <= target,
        });
    }

    /// A figure of which nothing is wanted, to set beside others.
    pub fn push_beside(&mut self, name: &'static str, measured: String) {
        self.0.push(Figure {
            name,
            measured,
            target: String::new(),
            is_met: true,
        });
    }

    /// What follows from the loads' rows.
    pub fn add_ratios(&mut self, results: &Results) {
        let to_floor = results.ratio(&TIGHT, Subject::Leaktrace, Subject::Floor);
        let [to_memleak, to_memleak_without_frame_pointers] =
            [&TIGHT, &TIGHT_WITHOUT_FRAME_POINTERS]
                .map(|load| results.ratio(load, Subject::Leaktrace, Subject::Memleak));
        let left_behind = results.ratio(&TIGHT, Subject::Afterwards, Subject::Untraced);
        let idle = results.get(&IDLE, Subject::Leaktrace);
        for (name, value, target, show) in [
            (
                "tight pair, of the floor",
                to_floor,
                1.4,
                times as fn(f64) -> String,
            ),
            ("tight pair, of memleak's", to_memleak, 1.0 / 3.0, times),
            (
                "10 frames, no frame pointers, of memleak's",
                to_memleak_without_frame_pointers,
                1.0 / 3.0,
                times,
            ),
            (
                "tight pair after leaktrace, of before",
                left_behind,
                1.0 / 0.95,
                times,
            ),
            (
                "leaktrace beside an idle process, of a CPU",
                idle.and_then(|row| row.cpu_share()),
                0.01,
                percent,
            ),
            (
                "Ctrl-C to probes gone, slowest",
                results.slowest_gone(),
                0.3,
                seconds,
            ),
        ] {
            if let Some(value) = value {
                self.push(name, value, target, show);
            }
        }
    }

    pub fn table(&self) -> Table {
        let mut table = Table::new(&["figure", "measured", "wanted", ""]);
        for figure in &self.0 {
            let verdict = if figure.is_met { "" } else { "MISSED" };
            table.push(vec![
                figure.name.to_owned(),
                figure.measured.clone(),
                figure.target.clone(),
                verdict.to_owned(),
            ]);
        }
        table
    }

    /// Attaches to a process with 500 000 symbols, one of whose functions
    /// allocates, and reports.
    ///
    /// # Errors
    /// Anything fails; what was started is ended.
    pub fn measure_symbols(&mut self, bench: &Bench) -> Result<()> {
        let mut load = Load::start(&mut Program::TightWithSymbols.command(&[]))?;
        let (mut attach, mut exit) = (Series::default(), Series::default());
        for _ in 0..bench.scale.attaches {
            let mut start = bench.leaktrace(load.pid());
            start.command.arg("-q");
            let tracer = Tracer::start(start)?;
            load.round(1000)?;
            attach.push(tracer.attach.as_secs_f64());
            exit.push(tracer.stop()?.exit.as_secs_f64());
        }
        self.push(
            "attach to 500 000 symbols",
            attach.median_or_zero(),
            1.0,
            seconds,
        );
        self.push(
            "Ctrl-C to exit with these symbols",
            exit.median_or_zero(),
            1.0,
            seconds,
        );
        Ok(())
    }

    /// Tables, snapshots, the last report and memory with many live blocks of
    /// 500 stacks.
    ///
    /// # Errors
    /// Anything fails; what was started is ended.
    pub fn measure_many_blocks(&mut self, bench: &Bench) -> Result<()> {
        let mut all = ManyBlocks::default();
        for _ in 0..bench.scale.fills {
            all.measure(bench)?;
        }
        self.push(
            "one table at 1 M live blocks, 500 stacks (CPU)",
            all.table.median_or_zero(),
            0.05,
            seconds,
        );
        self.push(
            "snapshot of 1 M blocks: SIGUSR1 to JSON written",
            all.snapshot.median_or_zero(),
            0.5,
            seconds,
        );
        self.push(
            "Ctrl-C to exit at 1 M live blocks",
            all.exit.median_or_zero(),
            2.5,
            seconds,
        );
        self.push(
            "kernel memory per live block when full",
            all.block_bytes.median_or_zero(),
            120.0,
            |bytes| format!("{bytes:.0} B"),
        );
        self.push(
            "of 1 M blocks, room for 2^20: not recorded",
            all.lost.max().unwrap_or_default(),
            0.0,
            |blocks| format!("{blocks:.0}"),
        );
        Ok(())
    }
}

/// Measurements with many live blocks of 500 stacks.
#[derive(Default)]
struct ManyBlocks {
    /// CPU time of one table, seconds.
    table: Series,
    /// From the signal to the file, seconds.
    snapshot: Series,
    /// From Ctrl-C to the end, seconds.
    exit: Series,
    /// Kernel memory of one block, bytes.
    block_bytes: Series,
    /// Blocks that were not recorded.
    lost: Series,
}

impl ManyBlocks {
    fn measure(&mut self, bench: &Bench) -> Result<()> {
        let mut load = Load::start(&mut Program::Mix.command(&["1", "1000"]))?;
        let snapshot = programs::dir().join("snapshot.json");
        let mut start = bench.leaktrace(load.pid());
        let interval = format!("{}ms", TABLE_INTERVAL.as_millis());
        start
            .command
            .args(["--max-blocks", &MAX_BLOCKS.to_string()])
            .args(["--interval", &interval]);
        report::write_to(&mut start, &snapshot);
        let mut tracer = Tracer::start(start)?;

        let map = live_map_bytes(&tracer)?;
        let slab_before = proc::slab_bytes()?;
        load.fill(MANY_BLOCKS)?;
        let elements = proc::slab_bytes()?.saturating_sub(slab_before);
        // What is allocated beforehand is in the map's own account; elements
        // that are taken on demand come from slabs.
        let bytes = map as f64 / MAX_BLOCKS as f64 + elements as f64 / MANY_BLOCKS as f64;
        self.block_bytes.push(bytes);

        // Stacks are symbolized once, with the first table that has them.
        thread::sleep(Duration::from_secs(2));
        self.table
            .push(time_tables(&mut tracer, bench.scale.tables)?);
        for _ in 0..SNAPSHOTS {
            self.snapshot.push(time_snapshot(&tracer, &snapshot)?);
        }
        self.exit.push(tracer.stop()?.exit.as_secs_f64());
        self.lost
            .push(lost_blocks(&report::take(&snapshot)?)? as f64);
        Ok(())
    }
}

fn times(ratio: f64) -> String {
    format!("{ratio:.2} x")
}

pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// Memory of the table of live blocks, the largest map by far, while it is
/// empty.
fn live_map_bytes(tracer: &Tracer) -> Result<u64> {
    let maps = proc::map_bytes(tracer.pid())?;
    let largest = maps.values().copied().max();
    largest.context("leaktrace has no maps")
}

/// CPU time of leaktrace for one table, its checks between tables included,
/// seconds; nobody else wants the CPU, so it is the time that one takes.
fn time_tables(tracer: &mut Tracer, tables: u32) -> Result<f64> {
    let is_heading = |line: &str| line.contains(" | live ");
    tracer.lines.count(is_heading);
    tracer.restart_usage()?;
    thread::sleep(TABLE_INTERVAL * tables);
    let usage = tracer.usage()?;
    match tracer.lines.count(is_heading) {
        0 => bail!("leaktrace shows no tables"),
        shown => Ok(usage.cpu.as_secs_f64() / shown as f64),
    }
}

/// Seconds from the signal until the file is there, whole: it is linked into
/// place.
fn time_snapshot(tracer: &Tracer, path: &Path) -> Result<f64> {
    report::remove(path)?;
    let at = Instant::now();
    tracer.signal(Signal::USR1)?;
    while !path.exists() {
        if at.elapsed() > PATIENCE {
            bail!("leaktrace does not write {} on SIGUSR1", path.display());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(at.elapsed().as_secs_f64())
}

/// What the last report says was lost. Times of reports mean nothing unless
/// they have all the rest.
fn lost_blocks(report: &Value) -> Result<u64> {
    let total = |name: &str| report["totals"][name].as_u64().unwrap_or(0);
    let (blocks, lost) = (total("live_blocks"), total("lost"));
    let stacks = report["stacks"].as_array().map_or(0, Vec::len);
    if blocks + lost < MANY_BLOCKS || blocks < MANY_BLOCKS / 2 || stacks < 500 {
        bail!(
            "leaktrace's report has {blocks} blocks of {stacks} stacks, not {MANY_BLOCKS} of 500"
        );
    }
    Ok(lost)
}
