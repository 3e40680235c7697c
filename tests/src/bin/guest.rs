//! Runs test programs in a machine that exists for nothing else, and sees to it
//! that they leave nothing behind in its kernel.
//!
//! Its arguments: test programs, each with arguments of its own after it, apart
//! from the next by `--`. Besides what they print, it prints lines that begin
//! with `== `, which `cargo xtask vm-test` reads:
//!
//! - `== facts JSON`: what leaktrace found and loaded here;
//! - `== program NAME` before a program, `== status NUMBER` after it;
//! - `== left nothing`, or `== left WHAT` for each thing that was left behind;
//! - `== complete`, the last line.

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result};
use leaktrace_tests::{
    fixture::Fixture,
    objects::{self, Kind, Object},
    tracer,
};
use serde_json::{Value, json};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let before = objects::all()?;
    match facts() {
        Ok(facts) => println!("== facts {facts}"),
        Err(error) => println!("no facts: {error:#}"),
    }
    for words in arguments.split(|word| word == "--") {
        let Some((program, arguments)) = words.split_first() else {
            continue;
        };
        let name = Path::new(program).file_name().unwrap_or_default();
        println!("== program {}", name.to_string_lossy());
        let status = Command::new(program)
            .args(arguments)
            .status()
            .with_context(|| format!("starting {program}"))?;
        println!("== status {}", status.code().unwrap_or(-1));
    }
    let left = left_behind(&before)?;
    if left.is_empty() {
        println!("== left nothing");
    }
    for what in left {
        println!("== left {what}");
    }
    println!("== complete");
    Ok(())
}

/// Traces a process for a moment, and gives what leaktrace then has loaded, and
/// what it reports of the kernel.
fn facts() -> Result<Value> {
    let mut fixture = Fixture::start("leaver", &[])?;
    let tracer = tracer::Start::attach(fixture.pid())?.attached()?;
    fixture.tell("allocate")?;
    let mut programs = Vec::new();
    for (kind, id) in objects::held_by(tracer.pid())? {
        if kind == Kind::Program
            && let Some(info) = objects::program_info(id)?
        {
            programs.push(json!({
                "name": info.name,
                "verified_instructions": info.verified_instructions,
            }));
        }
    }
    let report = tracer.json_report()?;
    fixture.finish_well()?;
    let preempt = fs::read_to_string("/sys/kernel/debug/sched/preempt").ok();
    Ok(json!({
        "programs": programs,
        "features": report["features"],
        "preempt": preempt.as_deref().and_then(chosen),
    }))
}

/// The one in brackets: `none voluntary (full) lazy`.
fn chosen(text: &str) -> Option<&str> {
    Some(text.split_once('(')?.1.split_once(')')?.0)
}

/// BPF objects that were not there before and do not go away, and uprobes that
/// somebody has named.
fn left_behind(before: &[Object]) -> Result<Vec<String>> {
    let mut left = Vec::new();
    // The kernel frees objects a little after their last descriptor is closed.
    for _ in 0..100 {
        left = objects::all()?;
        left.retain(|object| !before.contains(object));
        if left.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut left: Vec<String> = left
        .into_iter()
        .map(|object| format!("BPF {}", objects::named(object)))
        .collect();
    let events = "/sys/kernel/tracing/uprobe_events";
    let events = fs::read_to_string(events).with_context(|| format!("reading {events}"))?;
    left.extend(events.lines().map(|event| format!("uprobe event {event}")));
    Ok(left)
}
