//! Targets that a careless tracer kills live through being traced, do their
//! work meanwhile, and are counted exactly.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use leaktrace_tests::{
    comparison::{check_exact, check_sums},
    fixture::Fixture,
    suite::{self, Need, Scale, case},
    tracer,
};

fn main() -> ExitCode {
    const C: &[Need] = &[Need::Tracing, Need::C];
    const CXX: &[Need] = &[Need::Tracing, Need::Cxx];
    const GO: &[Need] = &[Need::Tracing, Need::Go];
    suite::main(vec![
        case("seccomp_strict", C, || lives("strict", &["strict"], 32, 1)),
        case("seccomp_filter", C, || lives("strict", &["filter"], 32, 1)),
        case("seccomp_strict", C, || lives("strict", &["strict"], 32, 1)).without("uprobe_multi"),
        case("exceptions_out_of_operator_new", CXX, || {
            lives("badalloc", &[], 56, 1)
        }),
        case("fibres_on_stacks_up_and_down", C, || {
            lives("fibres", &[], 48, 8)
        }),
        case("handlers_on_alternate_stacks", C, || {
            lives("altstack", &[], 40, 100)
        }),
        case("go_stacks_that_grow", GO, || lives("growing", &[], 88, 50)),
    ])
}

/// How long each must live.
const TIME: Scale<Duration> = Scale {
    long: Duration::from_secs(60),
    full: Duration::from_secs(10),
    quick: Duration::from_secs(2),
};

/// Works under trace for some time; each round of work leaves `blocks` blocks of
/// `size` bytes in function `keeps`.
fn lives(name: &str, arguments: &[&str], size: u64, blocks: u64) -> Result<()> {
    let mut fixture = Fixture::start(name, arguments)?;
    // What is allocated once only is so before.
    fixture.tell("work")?;
    let tracer = tracer::Start::attach(fixture.pid())?.attached()?;
    let until = Instant::now() + TIME.scaled();
    let mut rounds = 0;
    while Instant::now() < until {
        fixture.tell("work")?;
        rounds += 1;
    }
    let report = tracer.report()?;
    // Nor does it die of what was left behind.
    fixture.tell("work")?;
    fixture.finish_well()?;
    check_sums(&report)?;
    let keeps = report
        .by_function("keeps")
        .get("keeps")
        .copied()
        .unwrap_or_default();
    if name == "growing" {
        // cgo's calls come from stacks that can't be walked, and the runtime's
        // threads allocate too: that it lives is what counts.
        ensure!(
            report.totals.alloc_blocks >= rounds * blocks,
            "{:?}",
            report.totals
        );
        return Ok(());
    }
    check_exact(&report)?;
    let held = (keeps.live_bytes(), keeps.live_blocks());
    let wanted = (rounds * blocks * size, rounds * blocks);
    ensure!(
        held == wanted,
        "{held:?} held in {rounds} rounds, not {wanted:?}"
    );
    let total = (report.totals.live_bytes, report.totals.live_blocks);
    ensure!(total == wanted, "{total:?} held in total, not {wanted:?}");
    Ok(())
}
