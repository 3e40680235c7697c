//! Each rule of what counts as held, by a scene of its own whose outcome is
//! known: `fixtures/rules.c` with the C library, `fixtures/custom.c` with an
//! allocator that does things in the middle of a call.

use std::{collections::BTreeMap, io::Write as _, process::ExitCode, time::Duration};

use anyhow::{Result, ensure};
use leaktrace_tests::{
    build,
    comparison::{Expected, check_exact, check_sums},
    features::FALLBACKS,
    fixture::{Fixture, Start, unrandomised},
    report::Report,
    scenes::{NESTED, check_nested},
    suite::{self, Case, Need, case},
    tracer,
};

const C: &[Need] = &[Need::Tracing, Need::C];

/// Scenes one after another: every rule in a few traces, for the places where
/// each by itself takes too long. Alone, a case tells which rule is broken.
const TOGETHER: [&str; 2] = [
    "scenes_one_after_another",
    "calls_left_by_longjmp_one_after_another",
];

/// What each fallback is tried with besides: who is seen, and that nothing is
/// left of the trial on leaktrace itself.
const TRIED_WITHOUT: [&str; 2] = [
    "forked_child_is_not_its_parent",
    "idle_process_holds_nothing",
];

fn main() -> ExitCode {
    let calls = || family().into_iter().chain(interrupted());
    let all = || calls().chain(processes());
    let is_any = |names: &[&str], case: &Case| names.contains(&case.name());
    let mut cases: Vec<Case> = all().collect();
    let oldest = calls().filter(|case| !suite::is_quick() || is_any(&TOGETHER, case));
    cases.extend(oldest.chain(processes()).map(Case::without_all));
    for feature in FALLBACKS {
        let tried = all().filter(|case| {
            is_any(&TOGETHER[..1], case) || (!suite::is_quick() && is_any(&TRIED_WITHOUT, case))
        });
        cases.extend(tried.map(|case| case.without(feature)));
    }
    suite::main(cases)
}

/// A scene of `rules.c` and its whole outcome.
struct Scene {
    case: &'static str,
    scene: &'static str,
    /// What is held afterwards, by caller: bytes, blocks.
    held: &'static [(&'static str, u64, u64)],
    refused: u64,
    freed: u64,
}

const fn scene(
    case: &'static str,
    scene: &'static str,
    held: &'static [(&'static str, u64, u64)],
) -> Scene {
    Scene {
        case,
        scene,
        held,
        refused: 0,
        freed: 0,
    }
}

impl Scene {
    const fn refused(self, refused: u64) -> Self {
        Self { refused, ..self }
    }

    const fn freed(self, freed: u64) -> Self {
        Self { freed, ..self }
    }
}

/// What one call does to what is held.
static FAMILY: &[Scene] = &[
    scene(
        "refused_realloc_keeps_the_block",
        "refused-realloc",
        &[("allocates", 100, 1)],
    )
    .refused(2),
    scene("realloc_to_nothing_gives_back", "realloc-to-nothing", &[]).freed(1),
    scene(
        "realloc_of_nothing_allocates",
        "realloc-of-nothing",
        &[("resizes", 200, 1)],
    ),
    scene(
        "realloc_to_more_moves_the_block_to_its_site",
        "realloc-to-more",
        &[("resizes", 300_000, 1)],
    )
    .freed(1),
    scene(
        "realloc_to_less_counts_the_new_size",
        "realloc-to-less",
        &[("resizes", 10, 1)],
    )
    .freed(1),
    scene(
        "out_pointer_is_read_on_success_only",
        "refused-out-pointer",
        &[],
    )
    .refused(2)
    .freed(1),
    scene(
        "out_pointer_is_the_block",
        "out-pointer",
        &[("aligns_out", 300, 1)],
    ),
    scene("free_of_nothing_is_nothing", "free-of-nothing", &[]),
    scene(
        "reallocarray_counts_once",
        "array-once",
        &[("resizes_array", 3000, 1)],
    )
    .freed(1),
    scene(
        "every_function_counts_what_was_requested",
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
    ),
    scene(
        "blocks_of_no_bytes_are_blocks",
        "no-bytes",
        &[("allocates", 0, 5)],
    ),
    scene("refusals_hold_nothing", "refusals", &[]).refused(6),
];

fn family() -> Vec<Case> {
    let alone = |scene: &'static Scene| case(scene.case, C, move || in_turn(&[scene]));
    let mut cases: Vec<_> = FAMILY.iter().map(alone).collect();
    cases.extend([
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
        case("scenes_one_after_another", C, || {
            in_turn(&FAMILY.iter().collect::<Vec<_>>())
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
    ]);
    cases
}

/// Plays scenes in one process, in turn: what they leave adds up.
fn in_turn(scenes: &[&Scene]) -> Result<()> {
    let names: Vec<_> = scenes.iter().map(|scene| scene.scene).collect();
    let held = scenes.iter().map(|scene| scene.held);
    let report = play("rules", &names)?;
    check(&report, &sum(held))?;
    check_exact(&report)?;
    counted(&report, "unknown_free", 0)?;
    counted(&report, "replaced_block", 0)?;
    let refused = scenes.iter().map(|scene| scene.refused).sum();
    counted(&report, "failed_alloc", refused)?;
    freed(&report, scenes.iter().map(|scene| scene.freed).sum())
}

/// What callers hold in all.
fn sum<'a>(held: impl IntoIterator<Item = &'a [(&'a str, u64, u64)]>) -> Vec<(&'a str, u64, u64)> {
    let mut sums = BTreeMap::new();
    for (caller, bytes, blocks) in held.into_iter().flatten() {
        let sum = sums.entry(*caller).or_insert((0, 0));
        *sum = (sum.0 + bytes, sum.1 + blocks);
    }
    sums.into_iter()
        .map(|(caller, (bytes, blocks))| (caller, bytes, blocks))
        .collect()
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
            check_nested(&play("custom", &["nested"])?)
        }),
        case(
            "nested_calls_where_the_stack_is_in_the_trampolines_place",
            C,
            displaced,
        ),
        case(
            "nested_calls_of_a_command_without_randomisation",
            C,
            displaced_command,
        ),
        case("calls_left_by_longjmp_one_after_another", C, || {
            let scenes: Vec<_> = ["nested"]
                .into_iter()
                .chain(LEFT.map(|left| left.0))
                .collect();
            let report = play("custom", &scenes)?;
            let held = LEFT.iter().map(|left| left.1);
            check(&report, &sum(held.chain([NESTED])))?;
            counted(&report, "stale_in_flight", LEFT.len() as u64)
        }),
        case("call_left_by_longjmp_then_one_at_the_same_depth", C, || {
            left(LEFT[0])
        }),
        case("call_left_by_longjmp_then_a_deeper_one", C, || {
            left(LEFT[1])
        }),
        case("call_left_by_longjmp_then_a_higher_one", C, || {
            left(LEFT[2])
        }),
        case("nested_call_left_by_longjmp", C, || left(LEFT[3])),
        case("signal_handler_that_allocates_inside_malloc", C, || {
            let report = play("custom", &["interrupted-by-malloc"])?;
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

/// Plays scenes, in turn, while leaktrace watches, and gives the report.
fn play(fixture: &str, scenes: &[&str]) -> Result<Report> {
    let mut fixture = Fixture::start(fixture, scenes)?;
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
    let report = play("rules", &[scene])?;
    check(&report, held)?;
    check_exact(&report)?;
    if scene != "blocks-from-before" {
        counted(&report, "unknown_free", 0)?;
    }
    Ok(report)
}

fn custom(scene: &str, held: &[(&str, u64, u64)]) -> Result<Report> {
    let report = play("custom", &[scene])?;
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
    let report = play("rules", &["copies"])?;
    check_exact(&report)?;
    Expected::of(&[("duplicates", 7 * 21, 7)]).check_total(&report)
}

/// A vfork child works in its parent's memory: either its calls are counted, as
/// kernels before 6.6 do, or the report says that some were not seen.
fn vfork_child() -> Result<()> {
    let report = play("rules", &["shared-child"])?;
    check_sums(&report)?;
    let with_child = Expected::of(&[("allocates", 107, 2)]);
    if report.counter("vfork")? == 0 {
        return with_child.check(&report);
    }
    ensure!(
        !report.totals.exact,
        "a vfork child was left out of an exact report"
    );
    let without_child = Expected::of(&[("allocates", 7, 1)]);
    without_child
        .check(&report)
        .or_else(|_| with_child.check(&report))
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
    let report = play("rules", &["passing-threads"])?;
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
    let rounds = suite::scaled(20_000, 20_000);
    let mut fixture = Start::new("rules", &["juggled-addresses"])?
        .env(
            "GLIBC_TUNABLES",
            "glibc.malloc.arena_max=1:glibc.malloc.tcache_count=0",
        )
        .env("ROUNDS", &rounds.to_string())
        .start()?;
    let tracer = tracer::Start::attach(fixture.pid())?.attached()?;
    fixture.tell("play")?;
    let report = tracer.report()?;
    fixture.finish_well()?;
    check(&report, &[("allocates", 9, 1)])?;
    check_exact(&report)?;
    counted(&report, "replaced_block", 0)?;
    freed(&report, 4 * rounds)
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

/// The kernel maps its trampoline at the first call, and where, is known only
/// afterwards; calls inside that one are known as such all the same.
fn displaced() -> Result<()> {
    let mut fixture = Start::new("custom", &["nested"])?.unrandomised().start()?;
    let pid = fixture.pid();
    let tracer = tracer::Start::attach(pid)?.attached()?;
    fixture.tell("play")?;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let report = tracer.report()?;
    fixture.finish_well()?;
    is_displaced(&maps)?;
    check_nested(&report)
}

/// The same from the first instruction on, by a leaktrace in the same case.
fn displaced_command() -> Result<()> {
    let (input, mut commands) = std::io::pipe()?;
    commands.write_all(b"play\n")?;
    let mut start = tracer::Start::run(&[], &[build::fixture("custom")?, "nested".into()])?;
    unrandomised(start.command());
    start.command().stdin(input);
    let mut tracer = start.start()?;
    tracer.wait_until_attached()?;
    // Its stdin ends, and so does it.
    drop(commands);
    let ended = tracer.ended()?;
    check_nested(&ended.report()?)
}

fn is_displaced(maps: &str) -> Result<()> {
    let line = |name: &str| maps.lines().position(|line| line.ends_with(name));
    let (trampoline, stack) = (line("[uprobes]"), line("[stack]"));
    ensure!(
        trampoline.is_some() && trampoline < stack,
        "the trampoline is in its usual place: {maps}"
    );
    Ok(())
}

/// A scene with a call that never returns, and what it leaves.
type Left = (&'static str, &'static [(&'static str, u64, u64)]);

const LEFT: [Left; 4] = [
    // The second round's call returns.
    (
        "left-then-same",
        &[("is_left", 100, 1), ("allocates", 50, 1)],
    ),
    ("left-then-deeper", &[("allocates", 50, 1)]),
    ("left-then-higher", &[("allocates", 50, 1)]),
    ("left-nested", &[("allocates", 50, 1)]),
];

/// A call that never returns holds nothing; the next ones are counted right,
/// and the report says that one was left.
fn left((scene, held): Left) -> Result<()> {
    let report = custom(scene, held)?;
    counted(&report, "stale_in_flight", 1)?;
    ensure!(!report.totals.exact, "the report calls itself exact");
    Ok(())
}

/// A thread that ends inside malloc holds nothing of it; the report says so.
fn exit_in_call(scene: &str) -> Result<()> {
    let report = play("custom", &[scene])?;
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
