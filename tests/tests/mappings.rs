//! Stacks through code that comes and goes while it is traced
//! (`fixtures/mappings.c`): no wrong one is complete, and new code is soon known.
//! What is allocated where can be told by its size.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    process::{ExitCode, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    build, features,
    fixture::Fixture,
    report::{Report, Stack},
    suite::{self, Need, NotHere, case},
    tracer::Start,
};

const C: &[Need] = &[Need::Tracing, Need::C];
/// How a complete stack ends.
const COMPLETE: &str = "complete";
/// How one ends through a file that is doubted.
const REPLACED: &str = "something else was mapped in place of libswap_one.so";

/// Sizes, as in the fixture.
const IN_ONE: u64 = 1001;
const IN_TWO: u64 = 2002;
const AT_START: u64 = 303;
const WITH_FRAME_POINTER: u64 = 404;
const WITHOUT_FRAME_POINTER: u64 = 505;
const IN_VDSO: u64 = 606;
const ELSEWHERE: u64 = 707;

fn main() -> ExitCode {
    suite::main(vec![
        case("one_library_in_the_place_of_another", C, swapped_by_loader),
        case("one_library_in_the_place_of_another", C, swapped_by_loader).without("find_vma"),
        case("one_library_in_the_place_of_another", C, swapped_by_loader).without_all(),
        case("one_file_mapped_over_another", C, swapped_by_hand),
        case("an_overwritten_file_is_doubted", C, overwritten),
        case(
            "one_file_over_another_as_a_third_is_unloaded",
            C,
            swapped_beside,
        ),
        case(
            "one_library_in_the_place_of_another_unseen",
            C,
            swapped_unseen,
        ),
        case(
            "one_library_in_the_place_of_another_unseen",
            C,
            swapped_unseen,
        )
        .without("uprobe_multi"),
        case("a_new_library_is_soon_known", C, loaded),
        case("a_new_library_is_soon_known", C, loaded).without("find_vma"),
        case("code_made_at_run_time_is_never_complete", C, made_code),
        case("a_command_s_stacks_are_complete_from_the_start", C, run),
        case("a_command_s_stacks_are_never_wrong", C, run).without("find_vma"),
        case("signals_in_the_vdso", C, vdso),
    ])
}

/// A frame's function, with the name of its file where that is a plugin's.
type Functions = Vec<String>;

/// Which functions call each other where blocks of this size are allocated, from
/// the inside.
fn truth(size: u64) -> Result<Vec<&'static [&'static str]>> {
    Ok(match size {
        IN_ONE => vec![
            &[
                "take",
                "deeper in one",
                "swap in one",
                "call",
                "swap_by_loader",
            ],
            &[
                "take",
                "deeper in one",
                "swap in one",
                "call",
                "load_and_call",
            ],
            &[
                "take",
                "deeper in one",
                "swap in one",
                "call",
                "swap_by_hand",
            ],
            &[
                "take",
                "deeper in one",
                "swap in one",
                "call",
                "swap_beside_loader",
            ],
            &[
                "take",
                "deeper in one",
                "swap in one",
                "call",
                "load_before_leaving",
            ],
        ],
        IN_TWO => vec![
            &[
                "take",
                "deeper in two",
                "swap in two",
                "call",
                "swap_by_loader",
            ],
            &[
                "take",
                "deeper in two",
                "swap in two",
                "call",
                "swap_by_hand",
            ],
            &[
                "take",
                "deeper in two",
                "swap in two",
                "call",
                "swap_beside_loader",
            ],
            &[
                "take",
                "deeper in two",
                "swap in two",
                "call",
                "swap_unseen",
            ],
        ],
        AT_START => vec![&["take", "main"]],
        // What a signal interrupted is not checked for its name: the vDSO has few.
        IN_VDSO | ELSEWHERE => vec![&["take", "on_alarm"]],
        // Nothing tells where code without a file leads.
        WITH_FRAME_POINTER | WITHOUT_FRAME_POINTER => Vec::new(),
        _ => anyhow::bail!("nothing allocates {size} bytes"),
    })
}

fn functions(stack: &Stack) -> Functions {
    let callers = stack
        .frames
        .iter()
        .filter(|frame| frame.kind != "allocator" && !frame.inlined);
    callers
        .map(|frame| {
            let name = frame.symbol.as_deref().unwrap_or("?");
            let plugin = ["one", "two"].into_iter().find(|plugin| {
                let module = frame.module.as_deref().unwrap_or_default();
                module.ends_with(&format!("/libswap_{plugin}.so"))
            });
            match plugin {
                Some(plugin) => format!("{name} in {plugin}"),
                None => name.to_owned(),
            }
        })
        .collect()
}

/// How many calls with blocks of each size were seen, by how their stacks ended.
type Ends = BTreeMap<u64, BTreeMap<String, u64>>;

/// What was seen, when no complete stack is wrong.
fn check(report: &Report) -> Result<Ends> {
    features::check(report)?;
    let mut ends = Ends::new();
    for stack in &report.stacks {
        let size = stack.alloc_bytes / stack.alloc_blocks.max(1);
        let functions = functions(stack);
        // The caller of `malloc` is known in any case; others are the loader's.
        if functions.first().is_none_or(|name| name != "take") {
            continue;
        }
        if stack.end == COMPLETE {
            ensure!(
                size * stack.alloc_blocks == stack.alloc_bytes,
                "blocks of several sizes have the complete stack {functions:?}"
            );
            let possible = truth(size)?;
            ensure!(
                possible.iter().any(|one| functions.starts_with_words(one)),
                "a wrong stack of {size} bytes is complete: {functions:?}"
            );
            let begins = |name: &String| name == "main" || name == "swap_unseen";
            ensure!(
                functions.iter().any(begins),
                "a complete stack begins nowhere: {functions:?}"
            );
        }
        let by_end = ends.entry(size).or_default();
        *by_end.entry(stack.end.clone()).or_default() += stack.alloc_blocks;
    }
    eprintln!("{ends:?}");
    Ok(ends)
}

trait StartsWithWords {
    fn starts_with_words(&self, words: &[&str]) -> bool;
}

impl StartsWithWords for Functions {
    fn starts_with_words(&self, words: &[&str]) -> bool {
        self.len() >= words.len() && self.iter().zip(words).all(|(name, word)| name == word)
    }
}

/// How many calls with blocks of this size there were, and how many of them had
/// complete stacks.
fn count(ends: &Ends, size: u64) -> (u64, u64) {
    let by_end = ends.get(&size);
    let all = by_end.into_iter().flat_map(BTreeMap::values).sum();
    let complete = by_end.and_then(|by_end| by_end.get(COMPLETE));
    (all, complete.copied().unwrap_or(0))
}

fn fixture() -> Result<Fixture> {
    let plugins = ["swap_one", "swap_two"].map(build::library);
    let [one, two] = plugins;
    let arguments = [one?, two?].map(|path| path.display().to_string());
    Fixture::start("mappings", &[&arguments[0], &arguments[1]])
}

/// The loader tells when a place becomes free: no call is taken for one into what
/// was there before, however soon it comes.
fn swapped_by_loader() -> Result<()> {
    const ROUNDS: u64 = 40;
    let mut fixture = fixture()?;
    let tracer = Start::attach(fixture.pid())?.attached()?;
    let same = fixture.number(&format!("loader {ROUNDS}"))?;
    fixture.expect("done")?;
    let report = tracer.report()?;
    ensure!(
        same > ROUNDS / 2,
        "only {same} of {ROUNDS} were at the place of the one before: nothing was tried"
    );
    let ends = check(&report)?;
    // 3 calls each time, and 8 more every other time. Those of both that end at an
    // unknown address are one stack.
    let each = ROUNDS / 2 * 3 + ROUNDS / 4 * 8;
    let all: u64 = ends.values().flat_map(BTreeMap::values).sum();
    ensure!(all == 2 * each, "{all} calls");
    for size in [IN_ONE, IN_TWO] {
        let (_, complete) = count(&ends, size);
        // With the kernel's help all but those before the file was known at all;
        // without, some of those in 40 ms.
        let wanted = if is_asked(&report) { each * 3 / 4 } else { 10 };
        ensure!(
            complete >= wanted,
            "{size}: only {complete} of {each} stacks are complete"
        );
    }
    Ok(())
}

/// Whether programs ask the kernel about mappings.
fn is_asked(report: &Report) -> bool {
    report.features.get("find_vma").is_some_and(|it| it.used)
}

/// Nobody tells of what is mapped by hand, so the files there are doubted once it
/// is seen.
fn swapped_by_hand() -> Result<()> {
    swapped("hand")
}

/// What the loader tells at the same time is about something else.
fn swapped_beside() -> Result<()> {
    swapped("beside")
}

fn swapped(command: &str) -> Result<()> {
    let mut fixture = fixture()?;
    let tracer = Start::attach(fixture.pid())?.attached()?;
    fixture.tell(command)?;
    let report = tracer.report()?;
    let ends = check(&report)?;
    let of_one = ends.get(&IN_ONE).context("no calls")?;
    ensure!(of_one.contains_key(REPLACED), "{of_one:?}");
    ensure!(count(&ends, IN_ONE).1 == 0, "{of_one:?}");
    Ok(())
}

/// As `cp` does it: what is mapped changes with the file, and when is not known.
fn overwritten() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let library = directory.path().join("libswap_one.so");
    fs::copy(build::library("swap_one")?, &library)?;
    let other = fs::read(build::library("swap_two")?)?;
    let mut fixture = Fixture::start("mappings", &[&library.display().to_string()])?;
    let tracer = Start::attach(fixture.pid())?.attached()?;
    fixture.send("load 150 10")?;
    thread::sleep(Duration::from_millis(500));
    // Not cut off first: then it could not run meanwhile.
    let mut file = fs::OpenOptions::new().write(true).open(&library)?;
    file.write_all(&other)?;
    fixture.expect("done")?;
    let report = tracer.report()?;
    // How many blocks, by size and end: what is allocated changes, too.
    let mut ends: BTreeMap<(u64, &str), u64> = BTreeMap::new();
    for stack in &report.stacks {
        if functions(stack).iter().any(|name| name == "swap in one") {
            let size = stack.alloc_bytes / stack.alloc_blocks.max(1);
            *ends.entry((size, &*stack.end)).or_default() += stack.alloc_blocks;
        }
    }
    let complete: Vec<u64> = ends
        .keys()
        .filter_map(|(size, end)| (*end == COMPLETE).then_some(*size))
        .collect();
    ensure!(
        complete == [IN_TWO],
        "stacks through what the file was are complete, or none is any more: {ends:?}"
    );
    eprintln!("{ends:?}");
    let is_doubted = ends.keys().any(|(_, end)| *end == REPLACED);
    ensure!(is_doubted, "{ends:?}");
    Ok(())
}

/// Perf events are silent from the end of the main thread until others take their
/// place, those in the loader as well.
fn swapped_unseen() -> Result<()> {
    let mut fixture = fixture()?;
    let tracer = Start::attach(fixture.pid())?.attached()?;
    let is_same = fixture.number("leave")?;
    ensure!(is_same == 1, "it is elsewhere: nothing was tried");
    let report = tracer.report()?;
    let ends = check(&report)?;
    let (all, complete) = count(&ends, IN_TWO);
    // Those of 0.3 s may not be seen, where everything is slow those of longer, and
    // those of a moment be incomplete.
    let least = if suite::is_emulated() { 10 } else { 40 };
    ensure!(all >= least && complete >= all / 2, "{ends:?}");
    Ok(())
}

/// Within 50 ms its code is known; that one is loaded again, at once, if the
/// kernel can be asked.
fn loaded() -> Result<()> {
    const CALLS: u64 = 60;
    const PAUSE: u64 = 5;
    let mut fixture = fixture()?;
    let tracer = Start::attach(fixture.pid())?.attached()?;
    fixture.tell(&format!("load {CALLS} {PAUSE}"))?;
    let ends = check(&tracer.report()?)?;
    let (all, complete) = count(&ends, IN_ONE);
    // On a busy machine, leaktrace waits for its turn as well.
    let late = 3 * 50 / PAUSE * if suite::is_emulated() { 3 } else { 1 };
    ensure!(all == CALLS, "{all} calls");
    ensure!(
        complete >= all.saturating_sub(late) && complete > 0,
        "only {complete} of {all} calls over {} ms have complete stacks",
        CALLS * PAUSE
    );
    let tracer = Start::attach(fixture.pid())?.attached()?;
    fixture.tell("load 1 200")?;
    for _ in 0..20 {
        fixture.tell("load 3 0")?;
    }
    let report = tracer.report()?;
    let ends = check(&report)?;
    let (all, complete) = count(&ends, IN_ONE);
    if is_asked(&report) {
        ensure!(
            complete + 1 >= all && all == 61,
            "{complete} of {all} stacks of a library that was known are complete"
        );
    }
    Ok(())
}

/// Whether with frame pointers or without.
fn made_code() -> Result<()> {
    let mut fixture = fixture()?;
    let tracer = Start::attach(fixture.pid())?.attached()?;
    fixture.tell("code")?;
    let ends = check(&tracer.report()?)?;
    for size in [WITH_FRAME_POINTER, WITHOUT_FRAME_POINTER] {
        let (all, complete) = count(&ends, size);
        ensure!((all, complete) == (30, 0), "{size}: {ends:?}");
    }
    let guessed = "a frame was guessed by its frame pointer";
    let with = &ends[&WITH_FRAME_POINTER];
    ensure!(with.contains_key(guessed), "{with:?}");
    Ok(())
}

/// Before leaktrace can have heard where anything is mapped.
fn run() -> Result<()> {
    let command = [build::fixture("mappings")?];
    let mut start = Start::run(&[], &command)?;
    start.command().stdin(Stdio::null());
    let ended = start.ended()?;
    let report = ended.report()?;
    let ends = check(&report)?;
    let (all, complete) = count(&ends, AT_START);
    ensure!(all == 100, "{ends:?}");
    if is_asked(&report) {
        ensure!(complete == all, "{ends:?}");
    }
    Ok(())
}

/// What a handler allocates that interrupted code of the kernel's own.
fn vdso() -> Result<()> {
    let mut fixture = fixture()?;
    let tracer = Start::attach(fixture.pid())?.attached()?;
    let interrupted = fixture.number("vdso 200")?;
    fixture.expect("done")?;
    let ends = check(&tracer.report()?)?;
    if interrupted == 0 {
        // Where the clock is read by a system call.
        return Err(NotHere("no signal came in the vDSO".to_owned()).into());
    }
    let (all, complete) = count(&ends, IN_VDSO);
    ensure!(
        all == interrupted && complete == all,
        "{complete} of {all} stacks through the vDSO are complete: {ends:?}"
    );
    Ok(())
}
