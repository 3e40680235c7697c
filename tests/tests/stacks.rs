//! Stacks of code without frame pointers are those that the compiler's own
//! unwinder finds inside the process, frame by frame: `fixtures/stacks.cpp` under
//! `fixtures/truth.c`.

use std::{collections::HashMap, process::ExitCode};

use anyhow::{Result, ensure};
use leaktrace_tests::{
    build,
    fixture::Start,
    suite::{self, Need, case, scaled},
    truth::{self, COMPLETE, KEPT, TOO_DEEP, Traced},
};

const CXX: &[Need] = &[Need::Tracing, Need::C, Need::Cxx];

fn main() -> ExitCode {
    suite::main(vec![
        case("every_kind_of_frame", CXX, every_kind),
        case("every_kind_of_frame_by_tables_alone", CXX, tables_alone),
        case("every_kind_of_frame", CXX, every_kind).without("compare_exchange"),
        case("every_kind_of_frame", CXX, every_kind).without_all(),
        case("stacks_that_are_too_deep_say_so", CXX, too_deep),
        case("a_library_that_is_loaded_later", CXX, plugin),
        case("frame_pointers_alone_are_never_wrong", CXX, frame_pointers),
    ])
}

/// Attaches to the fixture, has it carry out the commands, detaches.
fn traced(options: &[&str], commands: &[&str]) -> Result<Traced> {
    let plugin = build::library("plugin")?;
    truth::traced(Start::new("stacks", &[&plugin])?, options, commands)
}

/// No complete stack is wrong, and of the fixture's allocations at most one in
/// `one_in` is missing among the complete ones.
fn check(traced: &Traced, one_in: u64) -> Result<()> {
    let comparison = traced.compare()?;
    eprintln!("{comparison}");
    comparison.is_complete_but_for(one_in)
}

fn rounds() -> String {
    format!("all {}", scaled(60, 15))
}

fn every_kind() -> Result<()> {
    check(&traced(&[], &[&rounds()])?, 1000)
}

fn tables_alone() -> Result<()> {
    check(&traced(&["--unwind", "dwarf"], &[&rounds()])?, 1000)
}

/// Deeper by one each time: the last that are complete are as deep as can be.
fn too_deep() -> Result<()> {
    let commands: Vec<String> = (100..160).map(|depth| format!("deep {depth}")).collect();
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    let traced = traced(&[], &commands)?;
    check(&traced, 1)?;
    let seen = &traced.seen;
    let deepest = |end: &str| {
        let stacks = seen.get(end).into_iter().flat_map(HashMap::keys);
        stacks.map(Vec::len).max().unwrap_or(0)
    };
    ensure!(
        deepest(COMPLETE) == KEPT - 1 && deepest(TOO_DEEP) == KEPT - 1,
        "the deepest have {} and {} frames",
        deepest(COMPLETE),
        deepest(TOO_DEEP)
    );
    for frames in seen.get(TOO_DEEP).into_iter().flat_map(HashMap::keys) {
        ensure!(
            traced.truth.contains_key(frames),
            "a stack that is too deep is wrong: {frames:#x?}"
        );
    }
    Ok(())
}

/// At first its code is unknown, but not for long.
fn plugin() -> Result<()> {
    let traced = traced(&[], &["plugin"])?;
    check(&traced, 1)?;
    let of_plugin = traced
        .seen
        .get(COMPLETE)
        .into_iter()
        .flat_map(HashMap::keys)
        .filter(|frames| frames.iter().any(|(file, _)| file == "libplugin"))
        .count();
    ensure!(
        of_plugin >= 6,
        "{of_plugin} of 10 calls over 200 ms had complete stacks"
    );
    Ok(())
}

fn frame_pointers() -> Result<()> {
    check(&traced(&["--unwind", "fp"], &[&rounds()])?, 1)
}
