//! `cargo xtask bench`: what tracing costs, leaktrace beside nothing, beside
//! empty probes and beside other tools, all in one run.
//!
//! Loads (`tests/bench/`) measure themselves by the CPU time that the kernel
//! charges them, in rounds of a fixed number of pairs of malloc and free. Each
//! cycle starts a fresh load and measures it untraced, under empty probes,
//! under leaktrace, and untraced again; tables show medians over the rounds of
//! all cycles, and ratios of medians. Probes are gone when pairs take as little
//! as before: that the load sees itself.
//!
//! Building is done as who calls, measuring as root. Nothing outlives it: what
//! it starts is killed when it fails, and ends by itself when it is killed.

mod cycle;
mod figures;
mod lines;
mod load;
mod memleak;
mod preparation;
mod proc;
mod programs;
mod report;
mod results;
mod series;
mod table;
mod tracer;
mod walks;
mod workload;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::{packages, process, project, tests};
use figures::Figures;
use results::Results;
use tracer::Start;
use walks::Walks;
use workload::{BUSY, IDLE, TIGHT_WITHOUT_FRAME_POINTERS, Workload};

/// What `cargo xtask bench` is asked to do.
#[derive(clap::Args)]
pub struct Options {
    /// Two minutes instead of six: fewer and shorter rounds.
    #[arg(long)]
    quick: bool,
    /// Also measure libbpf-tools' memleak, fetched from Debian (a minute more).
    #[arg(long)]
    memleak: bool,
    /// Also measure heaptrack, installed when missing (half a minute more).
    #[arg(long)]
    heaptrack: bool,
    /// Only what stacks and their unwind tables cost.
    #[arg(long)]
    unwinding: bool,
    /// Print tables as Markdown.
    #[arg(long)]
    markdown: bool,
    /// Everything is built: only measure.
    #[arg(long, hide = true)]
    built: bool,
}

/// How much is measured.
struct Scale {
    cycles: usize,
    rounds: usize,
    /// CPU time of a round.
    round_cpu: Duration,
    idle_cycles: usize,
    /// All rounds of an idle process together, except under leaktrace.
    idle_time: Duration,
    /// Times that stacks of each kind are measured.
    walk_cycles: usize,
    /// Attachments to a process with many symbols.
    attaches: usize,
    /// Times that a million blocks are made, and tables shown each time.
    fills: usize,
    tables: u32,
}

const WHOLE: Scale = Scale {
    cycles: 7,
    rounds: 7,
    round_cpu: Duration::from_millis(100),
    idle_cycles: 2,
    idle_time: Duration::from_secs(6),
    walk_cycles: 3,
    attaches: 7,
    fills: 3,
    tables: 24,
};

const QUICK: Scale = Scale {
    cycles: 3,
    rounds: 5,
    round_cpu: Duration::from_millis(40),
    idle_cycles: 1,
    idle_time: Duration::from_secs(2),
    walk_cycles: 2,
    attaches: 3,
    fills: 1,
    tables: 12,
};

/// What a run has to work with.
struct Bench {
    leaktrace: PathBuf,
    memleak: bool,
    heaptrack: bool,
    unwinding_only: bool,
    scale: Scale,
}

impl Bench {
    /// leaktrace on a process, without its brake.
    fn leaktrace(&self, pid: u32) -> Start {
        let mut command = Command::new(&self.leaktrace);
        command
            .args(["attach", &pid.to_string()])
            .args(["--no-save", "--max-overhead", "off"]);
        Start {
            command,
            attached: "attached to ",
        }
    }
}

/// Measures, and prints the tables.
///
/// # Errors
/// Something can't be built, started or traced.
pub fn run(options: &Options) -> Result<()> {
    if !options.built {
        prepare(options)?;
    }
    if !packages::is_root() {
        if options.built {
            bail!("measuring needs root");
        }
        return measure_as_root(options);
    }
    let bench = Bench {
        leaktrace: project::target_dir().join("release/leaktrace"),
        memleak: options.memleak,
        heaptrack: options.heaptrack,
        unwinding_only: options.unwinding,
        scale: if options.quick { QUICK } else { WHOLE },
    };
    let (results, walks, figures) = measure(&bench)?;
    let show = |table: table::Table| {
        if options.markdown {
            table.markdown()
        } else {
            table.plain()
        }
    };
    println!("{}\n", machine());
    println!("{}", show(results.table()));
    println!("{LEGEND}\n");
    println!("{}", show(walks.table()));
    println!("{WALKS_LEGEND}\n");
    print!("{}", show(figures.table()));
    Ok(())
}

/// What the columns mean.
const LEGEND: &str = "\
ns/pair: CPU time of the load for one malloc with its free, median over rounds
(and the extremes). slow-down: of untraced; x floor: of empty probes at the same
sites. own CPU: of one CPU, while attached. own RSS: peak, to the end, with maps
that it has mapped; maps: kernel memory of all BPF maps. attach: start to probes
in; gone, exit: Ctrl-C to the load's old speed, and to the tracer's end.";

/// The same of stacks.
const WALKS_LEGEND: &str = "\
ns without: a pair whose malloc fails, left out by a filter before its stack is
looked at; ns with: no filter; a stack: the difference. a frame, the rest: the
line through both depths. Stacks end where the way ends that they are found by:
by frame pointers, at the first function of libc.";

fn measure(bench: &Bench) -> Result<(Results, Walks, Figures)> {
    let (mut results, mut figures) = (Results::default(), Figures::default());
    if bench.unwinding_only {
        measure_busy(bench, &[TIGHT_WITHOUT_FRAME_POINTERS], &mut results)?;
    } else {
        measure_busy(bench, &BUSY, &mut results)?;
        measure_idle(bench, &mut results)?;
    }
    figures.add_ratios(&results);
    process::say("stacks");
    let walks = Walks::measure(bench)?;
    walks.add_to(&mut figures);
    process::say("unwind tables");
    preparation::measure(bench, &mut figures).context("measuring unwind tables")?;
    if !bench.unwinding_only {
        process::say("500 000 symbols");
        figures
            .measure_symbols(bench)
            .context("measuring 500 000 symbols")?;
        process::say("a million live blocks");
        figures
            .measure_many_blocks(bench)
            .context("measuring a million blocks")?;
    }
    Ok((results, walks, figures))
}

fn measure_busy(bench: &Bench, workloads: &[Workload], results: &mut Results) -> Result<()> {
    for number in 0..bench.scale.cycles {
        process::say(&format!("cycle {} of {}", number + 1, bench.scale.cycles));
        for workload in workloads {
            cycle::run(bench, workload, number, results)
                .with_context(|| format!("measuring: {}", workload.name))?;
        }
    }
    Ok(())
}

fn measure_idle(bench: &Bench, results: &mut Results) -> Result<()> {
    for number in 0..bench.scale.idle_cycles {
        process::say(&format!(
            "an idle process, {} of {}",
            number + 1,
            bench.scale.idle_cycles
        ));
        cycle::run(bench, &IDLE, number, results)
            .with_context(|| format!("measuring: {}", IDLE.name))?;
    }
    Ok(())
}

/// Builds and installs what is measured, as who calls.
fn prepare(options: &Options) -> Result<()> {
    process::say("building leaktrace and the loads");
    tests::build_release()?;
    programs::build()?;
    preparation::build()?;
    if options.memleak {
        memleak::fetch()?;
    }
    if options.heaptrack && !process::exists("heaptrack") {
        packages::install(&["heaptrack"], "the comparison with it")?;
    }
    Ok(())
}

/// Runs this program again, as root, to measure.
fn measure_as_root(options: &Options) -> Result<()> {
    if let Some(reason) = tests::no_root() {
        bail!("cannot measure: {reason}");
    }
    let own = env::current_exe().context("cannot tell which program this is")?;
    let mut command = packages::as_root("env");
    // sudo passes no environment on.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_TARGET_DIR"] {
        if let Some(value) = env::var_os(name) {
            let mut setting = std::ffi::OsString::from(format!("{name}="));
            setting.push(value);
            command.arg(setting);
        }
    }
    command.arg(own).args(["bench", "--built"]);
    for (flag, is_given) in [
        ("--quick", options.quick),
        ("--memleak", options.memleak),
        ("--heaptrack", options.heaptrack),
        ("--unwinding", options.unwinding),
        ("--markdown", options.markdown),
    ] {
        if is_given {
            command.arg(flag);
        }
    }
    process::run(&mut command)
}

/// What numbers depend on, in one line.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    format!(
        "Linux {}, {cpus} CPUs ({}), load average {} over the last 5 min",
        kernel.trim(),
        proc::cpu_model().unwrap_or_else(|| "unknown".to_owned()),
        load.split(' ').nth(1).unwrap_or("unknown"),
    )
}
