//! What it takes to prepare unwind tables: time, alone and as part of attaching,
//! and kernel memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::figures::{Figures, percent};
use super::load::Load;
use super::programs::{self, Program};
use super::series::Series;
use super::table::seconds;
use super::tracer::Tracer;
use super::{Bench, report};
use crate::{process, project, toolchain};

/// The program that makes tables as a trace does, and takes its time.
const EXAMPLE: &str = "unwind_tables";

/// Builds it.
///
/// # Errors
/// It does not compile.
pub fn build() -> Result<()> {
    process::run(
        toolchain::cargo()
            .current_dir(project::root())
            .args(["build", "--quiet", "--release", "--locked"])
            .args(["--package", "leaktrace", "--example", EXAMPLE]),
    )
}

/// Measures all of it.
///
/// # Errors
/// Anything fails; what was started is ended.
pub fn measure(bench: &Bench, figures: &mut Figures) -> Result<()> {
    let libc = library("libc.so.6")?;
    let libraries = [libc.clone(), library("libstdc++.so.6")?];
    let (few, _) = prepare(bench, &libraries)?;
    let name = "unwind tables of libc and libstdc++";
    figures.push(name, few.cold.median_or_zero(), 0.015, seconds);

    let (many, rows) = prepare(bench, &[Program::TightWithRows.path(), libc])?;
    for (name, series, target) in [
        ("unwind tables of 1 M rows", &many.cold, 0.25),
        ("the same from the cache", &many.cached, 0.05),
    ] {
        figures.push(name, series.median_or_zero(), target, seconds);
    }

    add_attaching(bench, rows, figures)
}

/// What rows of the program add to attaching to it.
fn add_attaching(bench: &Bench, rows: f64, figures: &mut Figures) -> Result<()> {
    let without = attach(bench, Program::Tight)?;
    let with = attach(bench, Program::TightWithRows)?;
    let few = without.times.cached.median_or_zero();
    figures.push_beside("attach to few unwind rows", seconds(few));
    for (name, series, more) in [
        ("attach to 1 M unwind rows", &with.times.cold, 0.25),
        ("the same from the cache", &with.times.cached, 0.05),
    ] {
        figures.push(name, series.median_or_zero(), few + more, seconds);
    }
    figures.push(
        "calls right afterwards without a complete stack",
        with.incomplete.max().unwrap_or_default(),
        0.0,
        percent,
    );
    let bytes = (with.map_bytes.median_or_zero() - without.map_bytes.median_or_zero()) / rows;
    figures.push("kernel memory per unwind row", bytes, 5.0, |bytes| {
        format!("{bytes:.2} B")
    });
    Ok(())
}

/// Seconds that something takes without what it puts into the cache, and with.
#[derive(Default)]
struct Times {
    cold: Series,
    cached: Series,
}

/// What attaching takes.
#[derive(Default)]
struct Attaching {
    times: Times,
    /// Memory of leaktrace's maps, bytes.
    map_bytes: Series,
    /// Share of calls right afterwards whose stacks are not complete.
    incomplete: Series,
}

/// Until the last table of some files was there; and how many rows the first
/// one's has.
fn prepare(bench: &Bench, files: &[PathBuf]) -> Result<(Times, f64)> {
    let example = project::target_dir().join("release/examples").join(EXAMPLE);
    let (mut times, mut rows) = (Times::default(), 0.0);
    for _ in 0..bench.scale.attaches {
        let text = process::text(Command::new(&example).args(files))?;
        let parsed = parse(&text).with_context(|| format!("{EXAMPLE} says:\n{text}"))?;
        times.cold.push(parsed.cold.as_secs_f64());
        times.cached.push(parsed.cached.as_secs_f64());
        rows = parsed.rows;
    }
    Ok((times, rows))
}

/// What the example found out.
#[derive(Debug, PartialEq)]
struct Prepared {
    cold: Duration,
    cached: Duration,
    /// Of the first file.
    rows: f64,
}

fn parse(text: &str) -> Option<Prepared> {
    let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let time = |line: &str| {
        let milliseconds: f64 = line.split_once(" ms")?.0.parse().ok()?;
        Some(Duration::from_secs_f64(milliseconds / 1e3))
    };
    let first_file = text.lines().nth(1)?;
    Some(Prepared {
        cold: time(line("all, cold, filling the cache: ")?)?,
        cached: time(line("all, from the cache: ")?)?,
        rows: first_file.split_whitespace().next()?.parse().ok()?,
    })
}

/// Until leaktrace is attached to a program.
fn attach(bench: &Bench, program: Program) -> Result<Attaching> {
    let place = programs::dir().join("cache");
    let mut load = Load::start(&mut program.command(&[]))?;
    let mut attaching = Attaching::default();
    let written = programs::dir().join("attaching.json");
    for _ in 0..bench.scale.attaches {
        remove(&place)?;
        fs::create_dir(&place).with_context(|| format!("cannot create {}", place.display()))?;
        for series in [&mut attaching.times.cold, &mut attaching.times.cached] {
            let mut start = bench.leaktrace(load.pid());
            start.command.arg("-q").env("XDG_CACHE_HOME", &place);
            report::write_to(&mut start, &written);
            let tracer = Tracer::start(start)?;
            load.round(1000)?;
            series.push(tracer.attach.as_secs_f64());
            attaching.map_bytes.push(tracer.map_bytes()? as f64);
            tracer.stop()?;
            let complete = report::take(&written)?["totals"]["complete_share"].as_f64();
            let complete = complete.context("leaktrace's report has no calls")?;
            attaching.incomplete.push(1.0 - complete);
            if !place.join("leaktrace").is_dir() {
                bail!("leaktrace keeps no unwind tables in {}", place.display());
            }
        }
    }
    remove(&place)?;
    load.finish()?;
    Ok(attaching)
}

fn remove(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))
}

/// A library that every program of the machine uses.
fn library(name: &str) -> Result<PathBuf> {
    let mut compiler = Command::new("gcc");
    let found = process::text(compiler.arg(format!("-print-file-name={name}")))?;
    let path = PathBuf::from(&found);
    if !path.is_absolute() {
        bail!("the compiler knows no {name}");
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_of_all_files_and_rows_of_the_first() {
        let text = "    rows  compile     load  file\n\
            28296  0.90 ms  0.07 ms  /usr/lib/libc.so.6\n\
            all, cold, filling the cache: 3.12 ms, CPU 3.10 ms; 62683 rows, 325 rules\n\
            all, from the cache: 0.43 ms, CPU 0.42 ms; 62683 rows, 325 rules\n";
        let expected = Prepared {
            cold: Duration::from_micros(3120),
            cached: Duration::from_micros(430),
            rows: 28_296.0,
        };
        assert_eq!(parse(text), Some(expected));
        assert_eq!(parse("all, cold"), None);
    }
}
