//! Targets that other distributions built: the numbers are as exact as for the C
//! library that the tests themselves were built with, or the refusal says why.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Result, ensure};
use leaktrace_tests::{
    build::{self, Static},
    comparison::check_mixed,
    fixture::{Fixture, Start},
    scenes::check_nested,
    suite::{self, Need, NotHere, case, scaled},
    tracer, userspaces,
};

fn main() -> ExitCode {
    const C: &[Need] = &[Need::Tracing, Need::C];
    suite::main(vec![
        case("old_glibc_behind_a_chroot", C, old_library),
        case("musl", C, musl),
        case("static_musl", C, static_musl),
        case("static_glibc", C, || static_glibc(Static::Fixed)),
        case("static_pie_glibc", C, || static_glibc(Static::Pie)),
        case("functions_that_begin_with_endbr64", C, landing_pads),
    ])
}

/// What can't be built is for lack of another system's library or compiler.
fn built<T>(result: Result<T>) -> Result<T> {
    result.map_err(|error| NotHere(format!("{error:#}")).into())
}

/// Arguments of `mixed` that leave room for a ledger of what [`work`] does.
const MIXED: [&str; 3] = ["4", "500", "700000"];

/// Attaches in the middle of the work of `mixed`, and compares.
fn work(mut fixture: Fixture) -> Result<()> {
    let calls = scaled(200_000, 50_000);
    let tracer = tracer::Start::attach(fixture.pid())?.attached()?;
    fixture.tell(&format!("ops {}", calls / 4))?;
    let report = tracer.report()?;
    fixture.tell("pause")?;
    check_mixed(&report, &fixture, calls)?;
    fixture.finish_well()
}

/// A process with another root directory and the C library of another release.
fn old_library() -> Result<()> {
    let root = built(userspaces::with_old_library("mixed"))?;
    let fixture = Start::program(Path::new("/mixed"), &MIXED).in_root(&root)?;
    let fixture = fixture.nice().start()?;
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", fixture.pid()))?;
    // Before 2.34, threads were a library of their own.
    ensure!(maps.contains("libpthread"), "not the old library: {maps}");
    work(fixture)
}

fn musl() -> Result<()> {
    mixed(userspaces::with_musl("mixed"))
}

fn static_musl() -> Result<()> {
    mixed(userspaces::with_static_musl("mixed"))
}

fn static_glibc(how: Static) -> Result<()> {
    mixed(build::static_fixture("mixed", how))
}

/// This build of `mixed`.
fn mixed(program: Result<PathBuf>) -> Result<()> {
    let program = Start::program(&built(program)?, &MIXED);
    work(program.with_ledger()?.nice().start()?)
}

/// The choice of probe sites steps over that instruction.
fn landing_pads() -> Result<()> {
    let program = built(userspaces::custom_with_landing_pads())?;
    let mut fixture = Start::program(&program, &["nested"]).start()?;
    let mut tracer = tracer::Start::attach(fixture.pid())?.arg("-v").start()?;
    // The C library has a malloc too. The instruction is four bytes long.
    let wanted = "malloc libfixturealloc.so";
    let line = tracer.wait_for_line(|line| line.starts_with(wanted))?;
    ensure!(line.contains("entry at +4 "), "{line:?}");
    tracer.wait_until_attached()?;
    fixture.tell("play")?;
    let report = tracer.report()?;
    fixture.finish_well()?;
    check_nested(&report)
}
