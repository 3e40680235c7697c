//! Each rule of what counts as held, by a scene of its own whose outcome is
//! known: `fixtures/rules.c` with the C library, `fixtures/custom.c` with an
//! allocator that does things in the middle of a call.

use std::{process::ExitCode, time::Duration};

use anyhow::{Result, ensure};
use leaktrace_tests::{
    build,
    comparison::{Expected, check_exact, check_sums},
    features::FALLBACKS,
    fixture::{Fixture, Start},
    report::Report,
    suite::{self, Case, Need, case, scaled},
    tracer,
};

const C: &[Need] = &[Need::Tracing, Need::C];

/// Rules by which each fallback shows whether it does what it stands for: every
/// signature, calls inside calls, blocks that move, and who is seen.
const TRIED_WITHOUT: [&str; 5] = [
    "every_function_counts_what_was_requested",
    "nested_calls_count_once",
    "realloc_to_more_moves_the_block_to_its_site",
    "forked_child_is_not_its_parent",
    "idle_process_holds_nothing",
];

fn main() -> ExitCode {
    let all = || family().into_iter().chain(processes()).chain(interrupted());
    let one_of = |names: &'static [&str], case: &Case| names.contains(&case.name());
    let mut cases: Vec<Case> = all().collect();
    // On the short scale, of what single calls do only that.
    let calls = family()
        .into_iter()
        .filter(|case| scaled(true, one_of(&TRIED_WITHOUT, case)));
    let oldest = calls.chain(processes()).chain(interrupted());
    cases.extend(oldest.map(Case::without_all));
    for feature in FALLBACKS {
        let tried = all().filter(|case| one_of(scaled(&TRIED_WITHOUT, &TRIED_WITHOUT[..1]), case));
        cases.extend(tried.map(|case| case.without(feature)));
    }
    suite::main(cases)
}

/// What one call does to what is held.
fn family() -> Vec<Case> {
    vec![
        case("refused_realloc_keeps_the_block", C, || {
            let report = exact("refused-realloc", &[("allocates", 100, 1)])?;
            counted(&report, "failed_alloc", 2)?;
            freed(&report, 0)
        }),
        case("realloc_to_nothing_gives_back", C, || {
            freed(&exact("realloc-to-nothing", &[])?, 1)
        }),
        case("realloc_of_nothing_allocates", C, || {
            freed(&exact("realloc-of-nothing", &[("resizes", 200, 1)])?, 0)
        }),
        case("realloc_to_more_moves_the_block_to_its_site", C, || {
            freed(&exact("realloc-to-more", &[("resizes", 300_000, 1)])?, 1)
        }),
        case("realloc_to_less_counts_the_new_size", C, || {
            freed(&exact("realloc-to-less", &[("resizes", 10, 1)])?, 1)
        }),
        case("out_pointer_is_read_on_success_only", C, || {
            let report = exact("refused-out-pointer", &[])?;
            counted(&report, "failed_alloc", 2)?;
            counted(&report, "replaced_block", 0)?;
            freed(&report, 1)
        }),
        case("out_pointer_is_the_block", C, || {
            exact("out-pointer", &[("aligns_out", 300, 1)]).map(drop)
        }),
        case(
            "stack_that_changes_during_the_call_is_that_of_its_entry",
            C,
            || {
                let held = &[("aligns_out_by_base_pointer", 900, 3)];
                let report = exact("out-pointer-in-base-pointer", held)?;
                counted(&report, "stack_changed", 0)?;
                counted(&report, "stack_not_stored", 0)
            },
        ),
        case("free_of_nothing_is_nothing", C, || {
            let report = exact("free-of-nothing", &[])?;
            freed(&report, 0)
        }),
        case("reallocarray_counts_once", C, || {
            let report = exact("array-once", &[("resizes_array", 3000, 1)])?;
            let allocated = report.totals.alloc_blocks;
            ensure!(allocated == 2, "{allocated} allocations in 2 calls");
            freed(&report, 1)
        }),
        case("every_function_counts_what_was_requested", C, || {
            exact(
                "every-function",
                &[
                    ("allocates", 1, 1),
                    ("zeroes", 3_000_010, 2),
                    ("resizes", 1000, 1),
                    ("resizes_array", 10_000, 1),
                    ("aligns_out", 100_000, 1),
                    ("aligns", 1_000_000, 1),
                    ("aligns_old", 10_000_000, 1),
                    ("pages", 3, 1),
                    ("whole_pages", 30, 1),
                ],
            )
            .map(drop)
        }),
        case("blocks_of_no_bytes_are_blocks", C, || {
            exact("no-bytes", &[("allocates", 0, 5)]).map(drop)
        }),
        case("refusals_hold_nothing", C, || {
            counted(&exact("refusals", &[])?, "failed_alloc", 6)
        }),
        case("strdup_counts_by_way_of_malloc", C, copies),
        case("blocks_from_before_are_unknown", C, || {
            let report = exact(
                "blocks-from-before",
                &[("resizes", 50_000, 1), ("allocates", 11, 1)],
            )?;
            freed(&report, 0)?;
            let unknown = report.counter("unknown_free")?;
            ensure!(unknown >= 10, "{unknown} unknown frees");
            Ok(())
        }),
    ]
}

/// Threads and processes that come and go.
fn processes() -> Vec<Case> {
    vec![
        case("vfork_child_that_allocates", C, vfork_child),
        case("forked_child_is_not_its_parent", C, || {
            exact("copied-child", &[("allocates", 77, 1)]).map(drop)
        }),
        case("idle_process_holds_nothing", C, idle),
        case("allocator_that_is_loaded_late", C, late_allocator),
        case("threads_that_come_and_go", C, passing_threads),
        case("threads_that_get_each_others_addresses", C, juggled),
        case("main_thread_has_ended_before", C, main_thread_ended_before),
        case("main_thread_ends_while_traced", C, main_thread_ends),
        case(
            "main_thread_has_ended_and_another_tracer_detaches",
            C,
            main_thread_ended_and_others_detach,
        ),
    ]
}

/// What happens in the middle of a call.
fn interrupted() -> Vec<Case> {
    vec![
        case("address_handed_out_before_free_returns", C, || {
            // Every second one of the other thread's blocks stays.
            let report = custom("address-before-free-returns", &[("gets_it", 150_000, 50)])?;
            check_exact(&report)
        }),
        case("address_handed_out_before_realloc_returns", C, || {
            let expected = &[("gets_it", 300_000, 100)];
            let report = custom("address-before-realloc-returns", expected)?;
            check_exact(&report)
        }),
        case("nested_calls_count_once", C, || {
            let report = custom(
                "nested",
                &[
                    ("zeroes", 100, 1),
                    ("resizes", 5000, 1),
                    ("resizes_array", 7000, 1),
                    ("aligns_out", 70, 1),
                ],
            )?;
            check_exact(&report)?;
            let nested = report.counter("nested_call")?;
            ensure!(nested > 5, "{nested} nested calls");
            Ok(())
        }),
        case("call_left_by_longjmp_then_one_at_the_same_depth", C, || {
            left("left-then-same")
        }),
        case("call_left_by_longjmp_then_a_deeper_one", C, || {
            left("left-then-deeper")
        }),
        case("call_left_by_longjmp_then_a_higher_one", C, || {
            left("left-then-higher")
        }),
        case("nested_call_left_by_longjmp", C, || left("left-nested")),
        case("signal_handler_that_allocates_inside_malloc", C, || {
            let report = play("custom", "interrupted-by-malloc")?;
            check(&report, &[("is_left", 100, 1)])?;
            counted(&report, "nested_alloc", 1)?;
            ensure!(!report.totals.exact, "the report calls itself exact");
            Ok(())
        }),
        case("thread_that_exits_in_a_call", C, || {
            exit_in_call("exit-in-call")
        }),
        case("thread_that_pthread_exits_in_a_call", C, || {
            exit_in_call("pthread-exit-in-call")
        }),
    ]
}

/// Plays a scene while leaktrace watches, and gives the report.
fn play(fixture: &str, scene: &str) -> Result<Report> {
    let mut fixture = Fixture::start(fixture, &[scene])?;
    let tracer = tracer::Start::attach(fixture.pid())?.attached()?;
    fixture.tell("play")?;
    let report = tracer.report()?;
    fixture.finish_well()?;
    Ok(report)
}

fn check(report: &Report, held: &[(&str, u64, u64)]) -> Result<()> {
    check_sums(report)?;
    Expected::of(held).check(report)
}

/// A scene of `rules.c` that leaves this held, exactly, and no unknown frees
/// but those of blocks from before.
fn exact(scene: &str, held: &[(&str, u64, u64)]) -> Result<Report> {
    let report = play("rules", scene)?;
    check(&report, held)?;
    check_exact(&report)?;
    if scene != "blocks-from-before" {
        counted(&report, "unknown_free", 0)?;
    }
    Ok(report)
}

fn custom(scene: &str, held: &[(&str, u64, u64)]) -> Result<Report> {
    let report = play("custom", scene)?;
    check(&report, held)?;
    counted(&report, "unknown_free", 0)?;
    Ok(report)
}

fn counted(report: &Report, counter: &str, wanted: u64) -> Result<()> {
    let value = report.counter(counter)?;
    ensure!(
        value == wanted,
        "counter {counter} is {value}, not {wanted}"
    );
    Ok(())
}

fn freed(report: &Report, blocks: u64) -> Result<()> {
    let freed = report.totals.freed_blocks;
    ensure!(freed == blocks, "{freed} blocks given back, not {blocks}");
    Ok(())
}

/// strdup calls malloc inside the C library, which keeps no frame pointers: the
/// total is right, the caller not yet known.
fn copies() -> Result<()> {
    let report = play("rules", "copies")?;
    check_exact(&report)?;
    Expected::of(&[("duplicates", 7 * 21, 7)]).check_total(&report)
}

/// A vfork child works in its parent's memory: either its calls are counted, or
/// the report says that some were not seen.
fn vfork_child() -> Result<()> {
    let report = play("rules", "shared-child")?;
    check_sums(&report)?;
    if report.counter("vfork")? > 0 {
        ensure!(
            !report.totals.exact,
            "a vfork child was left out of an exact report"
        );
        return Expected::of(&[("allocates", 7, 1)]).check(&report);
    }
    Expected::of(&[("allocates", 107, 2)]).check(&report)
}

/// leaktrace measures its programs on itself before: nothing of that is in the
/// report of a process that does nothing.
fn idle() -> Result<()> {
    let mut fixture = Fixture::start("sleeper", &[])?;
    let report = tracer::Start::attach(fixture.pid())?.attached()?.report()?;
    fixture.finish_well()?;
    check_exact(&report)?;
    ensure!(
        report.stacks.is_empty() && report.totals.alloc_blocks == 0,
        "{:?} in {} stacks",
        report.totals,
        report.stacks.len()
    );
    let counters = report.counters_text();
    ensure!(counters.is_empty(), "counters: {counters}");
    Ok(())
}

/// A library with an allocator of its own that is loaded while the process is
/// traced: nobody sees its calls, and the report says so.
fn late_allocator() -> Result<()> {
    let library = build::library("fixturealloc")?;
    let mut fixture = Start::new("rules", &["late-allocator"])?
        .env("LATE_ALLOCATOR", &library.to_string_lossy())
        .start()?;
    let tracer = tracer::Start::attach(fixture.pid())?.attached()?;
    fixture.tell("play")?;
    let report = tracer.report()?;
    fixture.finish_well()?;
    counted(&report, "late_allocator", 1)?;
    ensure!(!report.totals.exact, "the report calls itself exact");
    Ok(())
}

/// 200 threads leave one block each; libc allocates for them besides.
fn passing_threads() -> Result<()> {
    let report = play("rules", "passing-threads")?;
    check_exact(&report)?;
    let left = report
        .by_caller()
        .get("leaves_a_block")
        .copied()
        .unwrap_or_default();
    let held = (left.live_bytes(), left.live_blocks());
    ensure!(
        held == (2000, 200),
        "{held:?} instead of 200 blocks of 10 bytes"
    );
    Ok(())
}

/// Threads share one arena, without a cache: an address given back by one is at
/// once another's.
fn juggled() -> Result<()> {
    let mut fixture = Start::new("rules", &["juggled-addresses"])?
        .env(
            "GLIBC_TUNABLES",
            "glibc.malloc.arena_max=1:glibc.malloc.tcache_count=0",
        )
        .start()?;
    let tracer = tracer::Start::attach(fixture.pid())?.attached()?;
    fixture.tell("play")?;
    let report = tracer.report()?;
    fixture.finish_well()?;
    check(&report, &[("allocates", 9, 1)])?;
    check_exact(&report)?;
    counted(&report, "replaced_block", 0)?;
    freed(&report, 80_000)
}

/// The process lives on without its main thread; its other threads are traced.
fn main_thread_ended_before() -> Result<()> {
    let mut fixture = Fixture::start("rules", &["every-function"])?;
    fixture.tell("end-main")?;
    let tracer = tracer::Start::attach(fixture.pid())?.attached()?;
    fixture.tell("play")?;
    fixture.tell("play")?;
    let report = tracer.report()?;
    fixture.finish_well()?;
    check_exact(&report)?;
    played_twice(&report)
}

/// Links that are bound to the process may fall silent with its main thread:
/// the report is right, or says that calls went unseen.
fn main_thread_ends() -> Result<()> {
    let mut fixture = Fixture::start("rules", &["every-function"])?;
    let tracer = tracer::Start::attach(fixture.pid())?.attached()?;
    fixture.tell("end-main")?;
    fixture.tell("play")?;
    fixture.tell("play")?;
    let report = tracer.report()?;
    fixture.finish_well()?;
    check_sums(&report)?;
    if report.totals.exact {
        return played_twice(&report);
    }
    Ok(())
}

/// Another tracer takes its probes from the same functions after the main thread
/// has ended: the kernel then also takes those of links that are bound to the
/// process. They are soon set anew, and what is called from then on is seen.
fn main_thread_ended_and_others_detach() -> Result<()> {
    let mut fixture = Fixture::start("rules", &["every-function"])?;
    let bystander = Fixture::start("sleeper", &[])?;
    let tracer = tracer::Start::attach(fixture.pid())?.attached()?;
    fixture.tell("end-main")?;
    let other = tracer::Start::attach(bystander.pid())?.attached()?;
    other.report()?;
    std::thread::sleep(Duration::from_secs(1));
    fixture.tell("play")?;
    fixture.tell("play")?;
    let report = tracer.report()?;
    fixture.finish_well()?;
    check_sums(&report)?;
    played_twice(&report)
}

/// The scene `every-function`, twice: 10 blocks each.
fn played_twice(report: &Report) -> Result<()> {
    let zeroes = report
        .by_caller()
        .get("zeroes")
        .copied()
        .unwrap_or_default();
    ensure!(
        zeroes.live_blocks() == 4 && report.totals.live_blocks == 20,
        "{:?} (counters: {})",
        report.totals,
        report.counters_text()
    );
    Ok(())
}

/// A call that never returns holds nothing; the next ones are counted right,
/// and the report says that one was left.
fn left(scene: &str) -> Result<()> {
    let held: &[(&str, u64, u64)] = match scene {
        // The second round's call returns.
        "left-then-same" => &[("is_left", 100, 1), ("allocates", 50, 1)],
        _ => &[("allocates", 50, 1)],
    };
    let report = custom(scene, held)?;
    counted(&report, "stale_in_flight", 1)?;
    ensure!(!report.totals.exact, "the report calls itself exact");
    Ok(())
}

/// A thread that ends inside malloc holds nothing of it; the report says so.
fn exit_in_call(scene: &str) -> Result<()> {
    let report = play("custom", scene)?;
    check_sums(&report)?;
    let callers = report.by_caller();
    let held = |name: &str| callers.get(name).map_or(0, |sums| sums.live_bytes());
    ensure!(
        (held("is_left"), held("allocates")) == (0, 50),
        "{:?} (counters: {})",
        report.live(),
        report.counters_text()
    );
    counted(&report, "exit_in_call", 1)
}
