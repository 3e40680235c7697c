//! What stays behind when leaktrace has ended, however it did: nothing but its
//! report.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    children::{Companion, only_child},
    comparison::Expected,
    fixture::Fixture,
    memory, objects, speed,
    suite::{self, Case, Need, case, scaled},
    terminal::send,
    tracer::{self, Tracer},
};

const C: &[Need] = &[Need::Tracing, Need::C];

fn main() -> ExitCode {
    suite::main(vec![
        ended_leaves_nothing(),
        ended_leaves_nothing().without("uprobe_multi"),
        ended_leaves_nothing().without_all(),
        killed_leaves_nothing(),
        killed_leaves_nothing().without("uprobe_multi"),
        killed_leaves_nothing().without_all(),
        killed_early_leaves_nothing(),
        killed_early_leaves_nothing().without("uprobe_multi"),
        case(
            "killed_leaktrace_leaves_no_reader_of_symbols",
            C,
            killed_leaves_no_reader,
        ),
        case(
            "without_its_holder_of_probes_it_ends_with_a_report",
            C,
            holder_is_killed,
        ),
    ])
}

fn ended_leaves_nothing() -> Case {
    case("ended_leaktrace_leaves_nothing", C, || {
        leaves_nothing(libc::SIGINT)
    })
}

fn killed_leaves_nothing() -> Case {
    case("killed_leaktrace_leaves_nothing", C, || {
        leaves_nothing(libc::SIGKILL)
    })
}

/// Afterwards there is no program, map or link of leaktrace's, no breakpoint in
/// the target's code, and the target works.
fn leaves_nothing(signal: i32) -> Result<()> {
    let mut fixture = Fixture::start("tight", &[])?;
    let before = memory::code(fixture.pid())?;
    let pair_fs = fixture.number("speed")?;
    let mut tracer = tracer::Start::attach(fixture.pid())?.attached()?;
    fixture.tell("tight")?;
    let held = objects::held_by(tracer.pid())?;
    let programs = held
        .iter()
        .filter(|(kind, _)| *kind == objects::Kind::Program)
        .count();
    ensure!(programs > 0, "leaktrace holds no programs: {held:?}");
    ensure!(
        objects::surviving(&held)?.len() == held.len(),
        "some of {held:?} are gone"
    );
    let probed = memory::changed(&before, &memory::code(fixture.pid())?);
    ensure!(
        !probed.is_empty(),
        "no breakpoint in the target while traced"
    );
    tracer.signal(signal)?;
    let ended = tracer.ended()?;
    objects::expect_gone(&held)?;
    memory::expect_restored(fixture.pid(), &before)?;
    let pairs = fixture.number("pairs")?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while fixture.number("pairs")? == pairs {
        ensure!(Instant::now() < deadline, "the target stands still");
        std::thread::sleep(Duration::from_millis(20));
    }
    fixture.tell("idle")?;
    speed::expect_regained(&mut fixture, pair_fs)?;
    let files = ended.files()?;
    if signal == libc::SIGKILL {
        ensure!(files.is_empty(), "left behind: {files:?}");
    } else {
        ensure!(files.len() == 1, "{files:?} instead of the report");
    }
    fixture.finish_well()
}

fn killed_early_leaves_nothing() -> Case {
    case("killed_while_preparing_leaves_nothing", C, killed_early)
}

/// When leaktrace is killed while it prepares.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// So many milliseconds after its start.
    Milliseconds(u64),
    /// It has a child that return probes are tried on.
    Rehearsal,
    /// The first breakpoints are in, others to come.
    Coming,
    /// Of the estimate's breakpoints the first are out again.
    Going,
}

/// Where breakpoints are set in a process, whether they are there or not.
struct Sites {
    code: File,
    /// With the byte that is there otherwise.
    addresses: Vec<(u64, u8)>,
}

impl Sites {
    /// Traces it, and sees where they are.
    fn learn(pid: u32, before: &[(u64, Vec<u8>)]) -> Result<Self> {
        let tracer = tracer::Start::attach(pid)?.attached()?;
        let probed = memory::changed(before, &memory::code(pid)?);
        tracer.json_report()?;
        let code = File::open(format!("/proc/{pid}/mem"))?;
        let with_byte = |address| {
            let mut byte = 0;
            code.read_exact_at(std::slice::from_mut(&mut byte), address)?;
            Ok((address, byte))
        };
        Ok(Self {
            addresses: probed.into_iter().map(with_byte).collect::<Result<_>>()?,
            code,
        })
    }

    /// How many there are now.
    fn count(&self) -> Result<usize> {
        let mut count = 0;
        for (address, without) in &self.addresses {
            let mut byte = 0;
            self.code
                .read_exact_at(std::slice::from_mut(&mut byte), *address)?;
            count += usize::from(byte != *without);
        }
        Ok(count)
    }
}

impl Moment {
    /// All that are tried; breakpoints come and go for the estimate.
    fn all() -> impl Iterator<Item = Self> {
        (0..scaled(1000, 300))
            .step_by(scaled(20, 60) as usize)
            .map(Self::Milliseconds)
            .chain([Self::Rehearsal; 3])
            .chain([Self::Coming; 3])
            .chain([Self::Going; 3])
    }

    fn wait(self, tracer: &mut Tracer, sites: &Sites) -> Result<()> {
        match self {
            Self::Milliseconds(time) => std::thread::sleep(Duration::from_millis(time)),
            Self::Rehearsal => {
                while only_child(tracer.pid()).is_err() {
                    tracer.signal(0)?;
                }
            }
            // It takes the kernel a fraction of a millisecond to go on.
            Self::Coming => while sites.count()? == 0 {},
            Self::Going => {
                let mut most = 0;
                while sites.count()? >= most {
                    most = most.max(sites.count()?);
                }
            }
        }
        Ok(())
    }
}

/// A target under seccomp takes most preparing: a child of leaktrace's own goes
/// first.
fn killed_early() -> Result<()> {
    let mut fixture = Fixture::start("strict", &["filter"])?;
    let before = memory::code(fixture.pid())?;
    let sites = Sites::learn(fixture.pid(), &before)?;
    for moment in Moment::all() {
        let mut start = tracer::Start::bare(&["attach", &fixture.pid().to_string()])?;
        // A process that is left would hold a pipe's end.
        start.command().stdout(Stdio::null());
        let mut tracer = start.start_with_own_stdout()?;
        let directory = fs::read_link(format!("/proc/{}/cwd", tracer.pid()))?;
        moment.wait(&mut tracer, &sites)?;
        let ended = tracer.kill()?;
        let when = || format!("killed at {moment:?}");
        ensure!(
            ended.files()?.is_empty(),
            "{}, it left {:?}",
            when(),
            ended.files()?
        );
        memory::expect_restored(fixture.pid(), &before).with_context(when)?;
        let deadline = Instant::now() + memory::RESTORED;
        loop {
            let children = processes_in(&directory)?;
            if children.is_empty() {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "{}, it left processes {children:?}",
                when()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    fixture.finish_well()
}

/// Processes whose working directory this is.
fn processes_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut processes = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        if fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd == directory) {
            processes.push(path);
        }
    }
    Ok(processes)
}

/// Not even one that can't notice its end.
fn killed_leaves_no_reader() -> Result<()> {
    let mut fixture = Fixture::start("leaver", &[])?;
    let pid = fixture.pid().to_string();
    let tracer =
        tracer::Start::bare(&["attach", &pid, "--no-save", "--interval", "1"])?.attached()?;
    fixture.tell("allocate")?;
    let deadline = Instant::now() + Duration::from_secs(20);
    let reader = loop {
        match Companion::SymbolReader.of(tracer.pid()) {
            Ok(child) => break child,
            Err(error) => ensure!(Instant::now() < deadline, "nothing reads symbols: {error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let name = format!("/proc/{reader}/comm");
    let is_there = || fs::read_to_string(&name).is_ok_and(|name| name.trim() == "leaktrace-read");
    while !is_there() {
        ensure!(Instant::now() < deadline, "{reader} reads no symbols");
        std::thread::sleep(Duration::from_millis(1));
    }
    // leaktrace has not waited for its child: the number is still its.
    send(reader, libc::SIGSTOP)?;
    tracer.kill()?;
    let deadline = Instant::now() + Duration::from_secs(2);
    while is_there() {
        ensure!(Instant::now() < deadline, "it left its reader behind");
        std::thread::sleep(Duration::from_millis(10));
    }
    fixture.finish_well()
}

/// Its process that holds the probes is killed: they are gone, it is told, and
/// what was seen is reported.
fn holder_is_killed() -> Result<()> {
    let mut fixture = Fixture::start("leaver", &[])?;
    let before = memory::code(fixture.pid())?;
    let tracer = tracer::Start::attach(fixture.pid())?.attached()?;
    fixture.tell("allocate")?;
    let holder = Companion::ProbeHolder.of(tracer.pid())?;
    send(holder, libc::SIGKILL)?;
    memory::expect_restored(fixture.pid(), &before)?;
    let ended = tracer.ended()?;
    ended.expect_status(0)?;
    let report = ended.report()?;
    let said = "somebody killed leaktrace's process that holds the probes. The report covers";
    ensure!(ended.stdout.contains(said), "{}", ended.stdout);
    let reason = report.end.as_ref().map(|end| end.reason.as_str());
    ensure!(reason == Some("probes_lost"), "{:?}", report.end);
    Expected::of(&[("keeps", 1000, 10)]).check(&report)?;
    ensure!(report.totals.inexact == 1, "{}", report.counters_text());
    fixture.finish_well()
}
