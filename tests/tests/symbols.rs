//! Symbols of targets whose files are large, and what reading them costs.

use std::{
    fs,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    build, debug_info,
    fixture::{Fixture, Start},
    suite::{self, Case, Need, NotHere, case},
    tracer,
};

const RUST: &[Need] = &[Need::Tracing, Need::Rust];

fn main() -> ExitCode {
    suite::main(cases())
}

fn cases() -> Vec<Case> {
    vec![
        case("much_debug_information_is_read", RUST, || {
            let read = with_debug_info(suite::scaled(400 << 20, 20 << 20))?;
            ensure!(read.line.is_some(), "no source line: {read:?}");
            ensure!(!read.notes.contains("debug information"), "{}", read.notes);
            read.is_bounded()
        }),
        case("two_gib_of_debug_information_are_left_alone", RUST, || {
            if suite::is_quick() {
                return Err(NotHere("writes 2 GiB: in the whole suite only".into()).into());
            }
            let read = with_debug_info(2 << 30)?;
            ensure!(read.line.is_none(), "a source line: {read:?}");
            ensure!(
                read.notes.contains(
                    " MiB of debug information (at most 512 are read): its functions are \
                                     named from its symbol table"
                ),
                "not said: {}",
                read.notes
            );
            read.is_bounded()
        }),
    ]
}

/// What came of a trace.
#[derive(Debug)]
struct Read {
    /// Line of the allocation's caller.
    line: Option<u64>,
    /// What the report says about how far it can be trusted.
    notes: String,
    /// Most anonymous memory of leaktrace and its children, bytes.
    memory: u64,
}

impl Read {
    fn is_bounded(&self) -> Result<()> {
        ensure!(self.memory > 1 << 20, "not measured: {}", self.memory);
        ensure!(self.memory <= 500 << 20, "{} bytes", self.memory);
        Ok(())
    }
}

/// Traces a program that has so many bytes of `.debug_info`.
fn with_debug_info(size: u64) -> Result<Read> {
    // Not below /tmp, which may be memory.
    let directory = tempfile::tempdir_in(build::target_directory()?)?;
    let program = directory.path().join("sites");
    debug_info::multiply(&build::fixture("sites")?, &program, size)?;
    let mut fixture: Fixture = Start::program(&program, &[""; 0]).start()?;
    let mut tracer = tracer::Start::attach(fixture.pid())?.attached()?;
    let memory = MemoryWatch::start(tracer.pid());
    fixture.tell("work")?;
    // Stacks are learned while it runs as well.
    thread::sleep(Duration::from_secs(2));
    tracer.signal(libc::SIGINT)?;
    let ended = tracer.ended()?;
    let memory = memory.most()?;
    let report = ended.report()?;
    let caller = report
        .stacks
        .iter()
        .flat_map(|stack| &stack.frames)
        .find(|frame| frame.symbol.as_deref() == Some("sites::site_box"))
        .context("the caller has no name")?;
    let line = caller.line;
    ensure!(ended.took < Duration::from_secs(10), "{:?}", ended.took);
    fixture.finish_well()?;
    Ok(Read {
        line,
        notes: report.notes.join(" "),
        memory,
    })
}

/// Watches the anonymous memory of a process and its children.
struct MemoryWatch {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<u64>,
}

impl MemoryWatch {
    fn start(pid: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut most = 0;
            while !stopped.load(Ordering::Relaxed) {
                let all = children(pid).into_iter().chain([pid]);
                most = all.filter_map(anonymous_memory).sum::<u64>().max(most);
                thread::sleep(Duration::from_millis(2));
            }
            most
        });
        Self { stop, thread }
    }

    fn most(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow::anyhow!("the watch broke down"))
    }
}

/// Children of every thread of a process.
fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let lists = threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| {
            let ids = list.split_whitespace().filter_map(|id| id.parse().ok());
            ids.collect::<Vec<u32>>()
        })
        .collect()
}

/// `RssAnon`, bytes.
fn anonymous_memory(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}
