//! Stacks of code without frame pointers are those that the compiler's own
//! unwinder finds inside the process, frame by frame: `fixtures/stacks.cpp` under
//! `fixtures/truth.c`.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    build, features,
    fixture::{Fixture, Start},
    report::Report,
    suite::{self, Need, case, scaled},
    tracer,
};

const CXX: &[Need] = &[Need::Tracing, Need::C, Need::Cxx];
/// The preloaded library.
const TRUTH: &str = "libtruth";
/// Frames that leaktrace keeps of one stack, from the preloaded library's on.
const KEPT: usize = 127;
/// How a complete stack ends.
const COMPLETE: &str = "complete";

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

/// A frame: the file's name and the offset there of the byte before the return
/// address.
type Place = (String, u64);
/// How many allocations each stack has made.
type Stacks = HashMap<Vec<Place>, u64>;

struct Traced {
    report: Report,
    truth: Stacks,
}

/// Attaches, has the fixture carry out the commands, detaches.
fn traced(options: &[&str], commands: &[&str]) -> Result<Traced> {
    let plugin = build::library("plugin")?;
    let library = build::library("truth")?;
    let mut fixture: Fixture = Start::new("stacks", &[&plugin])?
        .env("LD_PRELOAD", &library.display().to_string())
        .start()?;
    let mut start = tracer::Start::attach(fixture.pid())?;
    for option in options {
        start = start.arg(option);
    }
    let tracer = start.attached()?;
    for command in commands {
        fixture.tell(command)?;
    }
    let report = tracer.report()?;
    let directory = tempfile::tempdir().context("making a directory")?;
    let path = directory.path().join("truth");
    fixture.tell(&format!("truth {}", path.display()))?;
    features::check(&report)?;
    let truth = read_truth(&fs::read_to_string(&path)?)?;
    Ok(Traced { report, truth })
}

fn read_truth(text: &str) -> Result<Stacks> {
    let mut stacks = Stacks::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        let count: u64 = words.next().context("an empty line")?.parse()?;
        let frames = words.map(|word| -> Result<Place> {
            let (file, offset) = word.rsplit_once(':').context("a frame without offset")?;
            Ok((plain(file), u64::from_str_radix(offset, 16)?))
        });
        // The first is the preloaded malloc itself, somewhere inside it.
        let frames: Vec<Place> = frames.skip(1).collect::<Result<_>>()?;
        let kept = frames.len().min(KEPT - 1);
        *stacks.entry(frames[..kept].to_vec()).or_default() += count;
    }
    Ok(stacks)
}

/// A library's name without its version: the loader knows another one than the
/// kernel, by a symbolic link.
fn plain(name: &str) -> String {
    let plain = name.split_once(".so").map_or(name, |(plain, _)| plain);
    plain.to_owned()
}

/// The stacks that pass through the preloaded library, without the C library's
/// malloc and its own, by how they ended.
fn seen(report: &Report) -> BTreeMap<String, Stacks> {
    let mut all: BTreeMap<String, Stacks> = BTreeMap::new();
    for stack in &report.stacks {
        let frames: Vec<Place> = stack
            .frames
            .iter()
            .filter(|frame| !frame.inlined)
            .map(|frame| {
                let path = Path::new(frame.module.as_deref().unwrap_or_default());
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                (plain(&name), frame.file_offset.unwrap_or_default())
            })
            .collect();
        if frames.get(1).is_some_and(|(file, _)| file == TRUTH) {
            let ended = all.entry(stack.end.clone()).or_default();
            *ended.entry(frames[2..].to_vec()).or_default() += stack.alloc_blocks;
        }
    }
    all
}

/// No complete stack is wrong, and of the fixture's allocations at most one in
/// `one_in` is missing among the complete ones.
fn check(traced: &Traced, one_in: u64) -> Result<()> {
    let seen = seen(&traced.report);
    let complete = seen.get(COMPLETE).cloned().unwrap_or_default();
    for (frames, count) in &complete {
        let known = traced.truth.get(frames).copied().unwrap_or(0);
        ensure!(
            *count <= known,
            "a complete stack was seen {count} times, and was there {known} times:\n{frames:#x?}"
        );
    }
    let all: u64 = seen.values().flat_map(HashMap::values).sum();
    let right: u64 = complete.values().sum();
    let others: Vec<(&String, u64)> = seen
        .iter()
        .map(|(end, stacks)| (end, stacks.values().sum()))
        .collect();
    eprintln!(
        "{right} of {all} stacks complete and right, {} different: {others:?}",
        complete.len()
    );
    ensure!(all > 0, "nothing was seen");
    ensure!(
        (all - right).saturating_mul(one_in) <= all,
        "only {right} of {all} stacks are complete: {others:?}"
    );
    Ok(())
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
    let seen = seen(&traced.report);
    let deepest = |end: &str| {
        let stacks = seen.get(end).into_iter().flat_map(HashMap::keys);
        stacks.map(Vec::len).max().unwrap_or(0)
    };
    let cut = "deeper than 127 frames";
    ensure!(
        deepest(COMPLETE) == KEPT - 1 && deepest(cut) == KEPT - 1,
        "the deepest have {} and {} frames",
        deepest(COMPLETE),
        deepest(cut)
    );
    for frames in seen.get(cut).into_iter().flat_map(HashMap::keys) {
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
    let seen = seen(&traced.report);
    let complete = seen.get(COMPLETE).cloned().unwrap_or_default();
    let of_plugin = complete
        .keys()
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
