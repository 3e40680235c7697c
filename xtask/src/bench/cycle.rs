//! One cycle: a fresh load, measured under every tracer in turn. Cycles are
//! repeated and their rounds pooled, so that drift of the machine hits all
//! alike.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::load::Load;
use super::results::Results;
use super::tracer::{Start, Tracer};
use super::workload::{Pace, Subject, Workload};
use super::{Bench, memleak, proc, programs};

/// Other tools take minutes, and differ by more than a few cycles could blur.
const OTHERS_EVERY: usize = 3;
/// leaktrace beside an idle process is looked at for so long.
const IDLE_TRACED: Duration = Duration::from_secs(11);
/// Half a second of an idle process.
const IDLE_ROUND_PAIRS: u64 = 500;
/// What leaktrace still does right after it has said that it is attached
/// (reading symbols) is not what it costs from then on.
const SETTLING: Duration = Duration::from_secs(1);

/// Measures a workload once under every tracer.
///
/// # Errors
/// Anything fails; what was started is ended.
pub fn run(bench: &Bench, workload: &Workload, number: usize, results: &mut Results) -> Result<()> {
    let mut load = Load::start(&mut workload.command())?;
    let ns = rounds(bench, workload, Subject::Untraced, &mut load)?;
    results.row(workload, Subject::Untraced).ns.extend(ns);
    let limit_ns = full_speed_limit(load.round(100_000)?);

    let mut ours = [Subject::Floor, Subject::Leaktrace];
    if number % 2 == 1 {
        ours.reverse();
    }
    for subject in ours {
        traced(bench, workload, subject, &mut load, limit_ns, results)?;
    }
    let ns = rounds(bench, workload, Subject::Afterwards, &mut load)?;
    results.row(workload, Subject::Afterwards).ns.extend(ns);
    let others_too = number.is_multiple_of(OTHERS_EVERY);
    if bench.memleak && others_too {
        traced(
            bench,
            workload,
            Subject::Memleak,
            &mut load,
            limit_ns,
            results,
        )?;
    }
    drop(load);
    if bench.heaptrack && others_too {
        under_heaptrack(bench, workload, results)?;
    }
    Ok(())
}

/// Faster than any probe allows, slower than a load is without: ns a pair.
fn full_speed_limit(untraced_ns: f64) -> f64 {
    untraced_ns * 2.0 + 50.0
}

fn traced(
    bench: &Bench,
    workload: &Workload,
    subject: Subject,
    load: &mut Load,
    limit_ns: f64,
    results: &mut Results,
) -> Result<()> {
    let mut tracer = Tracer::start(start(bench, workload, subject, load.pid()))?;
    if workload.pace == Pace::Idle {
        thread::sleep(SETTLING);
        tracer.restart_usage()?;
    }
    let ns = rounds(bench, workload, subject, load)?;
    let usage = tracer.usage()?;
    let map_bytes = tracer.map_bytes()?;
    let attach = tracer.attach.as_secs_f64();
    let ending = tracer.stop_watched(load, limit_ns)?;

    let row = results.row(workload, subject);
    row.ns.extend(ns);
    row.add_usage(usage);
    row.map_bytes.push(map_bytes as f64);
    row.attach.push(attach);
    row.add_ending(&ending);
    Ok(())
}

fn start(bench: &Bench, workload: &Workload, subject: Subject, pid: u32) -> Start {
    if subject == Subject::Memleak {
        return memleak::start(pid);
    }
    let mut start = bench.leaktrace(pid);
    // Beside an idle process, tables are most of what leaktrace does.
    if workload.pace != Pace::Idle {
        start.command.arg("-q");
    }
    if subject == Subject::Floor {
        start.command.arg("--empty-programs");
    }
    start
}

/// CPU time of a pair in each of several rounds, ns.
fn rounds(
    bench: &Bench,
    workload: &Workload,
    subject: Subject,
    load: &mut Load,
) -> Result<Vec<f64>> {
    let scale = &bench.scale;
    let warm_up_pairs = match workload.pace {
        Pace::Busy { warm_up_pairs } => warm_up_pairs,
        Pace::Idle => {
            let whole = match subject {
                Subject::Leaktrace => IDLE_TRACED,
                _ => scale.idle_time,
            };
            let rounds = whole.as_millis() as u64 / IDLE_ROUND_PAIRS;
            return (0..rounds).map(|_| load.idle(IDLE_ROUND_PAIRS)).collect();
        }
    };
    let about_ns = load.round(warm_up_pairs)?;
    let pairs = (scale.round_cpu.as_nanos() as f64 / about_ns) as u64;
    let pairs = pairs.max(1000);
    (0..scale.rounds).map(|_| load.round(pairs)).collect()
}

/// heaptrack must start the program itself. It only records: its interpreter,
/// which would take another CPU meanwhile, can run afterwards.
fn under_heaptrack(bench: &Bench, workload: &Workload, results: &mut Results) -> Result<()> {
    let output = programs::dir().join("heaptrack-output");
    let mut heaptrack = Command::new("heaptrack");
    heaptrack.arg("--raw").arg("-o").arg(&output);
    let ended_before = proc::cpu_time_of_ended_children()?;
    let started = Instant::now();
    let mut load = Load::start(&mut workload.command_through(heaptrack))?;
    let ns = rounds(bench, workload, Subject::Heaptrack, &mut load)?;
    let own = load.cpu_time()?;
    load.finish()?;
    let wall = started.elapsed();
    let all = proc::cpu_time_of_ended_children()?.saturating_sub(ended_before);

    let row = results.row(workload, Subject::Heaptrack);
    row.ns.extend(ns);
    row.add_usage(super::tracer::Usage {
        cpu: all.saturating_sub(own),
        wall,
    });
    for extension in ["raw.zst", "raw.gz"] {
        // One of them is there, by what compressors are installed.
        let _ = fs::remove_file(output.with_extension(extension));
    }
    Ok(())
}
