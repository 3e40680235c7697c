//! What leaktrace reports is equal to the ledger that the fixture kept: bytes
//! and blocks, allocated and given back, site by site.

use std::{path::Path, process::ExitCode};

use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    build,
    comparison::{check_exact, check_ledger, check_mixed, check_sums, truths},
    features::{self, FALLBACKS},
    fixture::{Fixture, Start},
    replay::Window,
    suite::{self, Need, case, scaled},
    tracer,
};

const C: &[Need] = &[Need::Tracing, Need::C];

fn main() -> ExitCode {
    let mut cases = vec![
        case("ten_million_calls_on_8_threads", C, ten_million),
        case("blocks_passed_between_64_threads", C, many_threads),
        case("more_than_a_million_live_blocks", C, million),
        case("a_full_table_loses_blocks_and_says_so", C, full_table),
        case("a_full_stack_table_keeps_the_blocks", C, full_stack_table),
        case("stacks_are_whole_up_to_127_callers", C, deep_stacks),
        case(
            "cxx_and_libc_wrappers_by_site",
            &[Need::Tracing, Need::Cxx],
            || family(&build::fixture("family")?),
        ),
        case(
            "cxx_and_libc_wrappers_by_site_without_frame_pointers",
            &[Need::Tracing, Need::Cxx],
            || family(&build::without_frame_pointers("family")?),
        ),
        case(
            "calls_of_code_without_frame_pointers",
            C,
            mixed_without_frame_pointers,
        ),
        case(
            "cxx_and_libc_wrappers_by_size",
            &[Need::Tracing, Need::Cxx],
            family_by_size,
        ),
        case("rust_by_site", &[Need::Tracing, Need::Rust], rust),
    ];
    let calls = || case("calls", C, || mixed(8, scaled(1_000_000, 60_000)));
    cases.extend(FALLBACKS.map(|feature| calls().without(feature)));
    cases.push(calls().without_all());
    suite::main(cases)
}

fn mixed_without_frame_pointers() -> Result<()> {
    let program = build::without_frame_pointers("mixed")?;
    mixed_of(&program, 8, scaled(1_000_000, 60_000))
}

/// Room in a thread's ledger for `calls` calls and those that it makes at a
/// crawl meanwhile.
fn room(calls: u64) -> String {
    (calls + 600_000).to_string()
}

/// Attaches in the middle of the work of `threads` threads, lets them make
/// `calls` calls in all, detaches while they go on, and compares.
fn mixed(threads: u64, calls: u64) -> Result<()> {
    mixed_of(&build::fixture("mixed")?, threads, calls)
}

/// The same of this build of the fixture.
fn mixed_of(program: &Path, threads: u64, calls: u64) -> Result<()> {
    let each = calls / threads;
    let arguments = [threads.to_string(), "500".into(), room(each)];
    let mut fixture = Start::program(program, &arguments)
        .with_ledger()?
        .nice()
        .start()?;
    let tracer = tracer::Start::attach(fixture.pid())?.attached()?;
    fixture.tell(&format!("ops {each}"))?;
    let report = tracer.report()?;
    fixture.tell("pause")?;
    features::check(&report)?;
    let truth = check_mixed(&report, &fixture, calls)?;
    ensure!(
        truth.unknown_frees.0 > 0,
        "nothing was there before: not the middle of the work"
    );
    fixture.finish_well()
}

/// All functions of the family, on 8 threads that hand blocks to each other,
/// from 100 sites, attached and detached in the middle.
fn ten_million() -> Result<()> {
    // Some of the choices make no call: 12.5 M choices are over 10 M calls.
    mixed(8, scaled(12_500_000, 300_000))
}

/// 64 threads that pass blocks to each other to free.
fn many_threads() -> Result<()> {
    mixed(64, scaled(2_000_000, 200_000))
}

/// The number of live blocks passes 2^20 with a table of 2 M, without a loss.
fn million() -> Result<()> {
    let slots = (1_u64 << 20) * 11 / 10 / 8;
    let arguments = ["8".into(), slots.to_string(), room(slots * 2)];
    let mut fixture = Start::new("mixed", &arguments)?.with_ledger()?.start()?;
    let tracer = tracer::Start::attach(fixture.pid())?
        .args(&["--max-blocks", "2M"])
        .attached()?;
    fixture.tell("fill")?;
    let report = tracer.report()?;
    fixture.tell("pause")?;
    let truth = check_ledger(&report, fixture.ledger()?)?;
    ensure!(
        truth.peak_blocks > 1 << 20,
        "only {} blocks were live",
        truth.peak_blocks
    );
    ensure!(report.totals.live_blocks > 1 << 20, "{:?}", report.totals);
    fixture.finish_well()
}

/// With room for 1000 blocks and 5000 live, the losses are counted and the
/// report says that it is a lower bound; no site holds more than it does.
fn full_table() -> Result<()> {
    let mut fixture = Start::new("mixed", &["2", "2500", "600000"])?
        .with_ledger()?
        .start()?;
    let mut tracer = tracer::Start::attach(fixture.pid())?
        .args(&["--max-blocks", "1000"])
        .attached()?;
    fixture.tell("fill")?;
    fixture.tell("pause")?;
    tracer.signal(libc::SIGINT)?;
    let ended = tracer.ended()?;
    let report = ended.report()?;
    check_sums(&report)?;
    ensure!(
        report.counter("live_full")? > 0,
        "no loss: {}",
        report.counters_text()
    );
    ensure!(
        report.totals.lost > 0 && !report.totals.exact,
        "{:?}",
        report.totals
    );
    ensure!(
        ended.stdout.contains("lower bound"),
        "the text says: {}",
        ended.stdout
    );
    let held = report.totals.live_blocks;
    // The table has more slots than it promises, in whole buckets.
    ensure!(
        (900..=1900).contains(&held),
        "{held} blocks in a table of 1000"
    );
    let truth = truths(fixture.ledger()?, &[Window::of(&report)?])?.remove(0);
    for (name, seen) in report.by_caller() {
        let number = name
            .strip_prefix("site_")
            .context(name.clone())?
            .parse::<u16>()?;
        let certain = truth.certain.get(&number).copied().unwrap_or_default();
        // A call over an edge may add to what is certain.
        let more = truth.open.len() as u64;
        ensure!(
            seen.alloc_blocks <= certain.alloc_blocks + more
                && seen.live_blocks() <= certain.live_blocks() + more,
            "{name}: {seen:?} reported, {certain:?} happened"
        );
    }
    let lost = report.totals.lost;
    let allocated: u64 = truth.certain.values().map(|sums| sums.alloc_blocks).sum();
    let counted = report.totals.alloc_blocks + lost;
    let most = allocated + truth.open.len() as u64;
    ensure!(
        (allocated..=most).contains(&counted),
        "{} recorded and {lost} lost of {allocated}",
        report.totals.alloc_blocks
    );
    fixture.finish_well()
}

/// With room for few stacks, blocks are accounted to "stack not stored", never
/// dropped: the totals stay exact.
fn full_stack_table() -> Result<()> {
    let mut fixture = Start::new("mixed", &["2", "500", "600000"])?
        .with_ledger()?
        .start()?;
    let tracer = tracer::Start::attach(fixture.pid())?
        .args(&["--max-stacks", "16"])
        .attached()?;
    fixture.tell("ops 20000")?;
    let report = tracer.report()?;
    fixture.tell("pause")?;
    ensure!(
        report.counter("stack_table_full")? > 0,
        "{}",
        report.counters_text()
    );
    check_exact(&report)?;
    let truth = truths(fixture.ledger()?, &[Window::of(&report)?])?.remove(0);
    let allocated: u64 = truth.certain.values().map(|sums| sums.alloc_blocks).sum();
    let seen = report.totals.alloc_blocks;
    let most = allocated + truth.open.len() as u64;
    ensure!(
        (allocated..=most).contains(&seen),
        "{seen} blocks reported of {allocated}"
    );
    fixture.finish_well()
}

/// A stack has every caller, up to 127 besides the allocating function; a deeper
/// one says that it is.
fn deep_stacks() -> Result<()> {
    const CALLERS: usize = 127;
    let levels = [1, 2, 20, 100, 300];
    let mut fixture = Fixture::start("deep", &[])?;
    let tracer = tracer::Start::attach(fixture.pid())?.attached()?;
    for level in levels {
        fixture.tell(&level.to_string())?;
    }
    let report = tracer.report()?;
    check_exact(&report)?;
    for level in levels {
        let stack = report
            .stacks
            .iter()
            .find(|stack| stack.live_bytes == level as u64)
            .with_context(|| format!("no stack of {level} functions"))?;
        let real = stack.frames.iter().filter(|frame| !frame.inlined);
        let names: Vec<_> = real.map(|frame| frame.symbol.as_deref()).collect();
        let callers = names[1..]
            .iter()
            .take_while(|name| **name == Some("descends"))
            .count();
        let wanted = level.min(CALLERS);
        ensure!(callers == wanted, "{callers} of {level} callers: {names:?}");
        ensure!(names.len() <= 1 + CALLERS, "{} frames", names.len());
        let is_cut = stack.end == "deeper than 127 frames";
        ensure!(
            is_cut == (level >= CALLERS),
            "the stack of {level} functions ends with {}",
            stack.end
        );
    }
    fixture.finish_well()
}

/// What allocates for its caller counts once, by way of malloc, and belongs to
/// the function that asked.
fn family(program: &Path) -> Result<()> {
    let mut fixture = Start::program::<&str>(program, &[]).start()?;
    let tracer = tracer::Start::attach(fixture.pid())?.attached()?;
    fixture.tell("work")?;
    fixture.tell("work")?;
    let report = tracer.report()?;
    check_exact(&report)?;
    fixture.sums()?.check_by_function(&report, "site_")?;
    fixture.finish_well()
}

/// The same for each size by itself, through the size filter.
fn family_by_size() -> Result<()> {
    for (size, blocks) in [(7_u64, 8_u64), (21, 9), (256, 6), (301, 7)] {
        let mut fixture = Fixture::start("family", &[])?;
        let text = size.to_string();
        let tracer = tracer::Start::attach(fixture.pid())?
            .args(&["--min-size", &text, "--max-size", &text])
            .attached()?;
        fixture.tell("work")?;
        let report = tracer.report()?;
        check_sums(&report)?;
        let held = (report.totals.live_bytes, report.totals.live_blocks);
        ensure!(
            held == (size * blocks, blocks),
            "of {size} bytes: {held:?}, not {blocks} blocks"
        );
        ensure!(
            report.counter("filtered")? > 0,
            "{}",
            report.counters_text()
        );
        fixture.finish_well()?;
    }
    Ok(())
}

/// A Rust program that allocates through the standard library, by the function
/// of its own that asked.
fn rust() -> Result<()> {
    let mut fixture = Fixture::start("sites", &[])?;
    let tracer = tracer::Start::attach(fixture.pid())?.attached()?;
    fixture.tell("work")?;
    fixture.tell("work")?;
    let report = tracer.report()?;
    check_exact(&report)?;
    fixture.sums()?.check_by_function(&report, "site_")?;
    fixture.finish_well()
}
