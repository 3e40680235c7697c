//! Attaching and detaching never invent a leak, nor lose a block.

use std::{process::ExitCode, time::Duration};

use anyhow::{Result, ensure};
use leaktrace_tests::{
    comparison::check_ledgers,
    fixture::Start,
    suite::{self, Need, case, scaled},
    tracer,
};

fn main() -> ExitCode {
    const C: &[Need] = &[Need::Tracing, Need::C];
    suite::main(vec![
        case("attached_and_detached_50_times", C, || often(scaled(50, 5))),
        case("attached_and_detached", C, || often(scaled(5, 2))).without("uprobe_multi"),
        case("attached_and_detached", C, || often(scaled(5, 2))).without_all(),
    ])
}

/// 8 busy threads, attached and detached again and again at arbitrary moments:
/// each report equals the ledger between its edges, but for calls that straddle
/// one, at most one a thread.
fn often(times: u64) -> Result<()> {
    // The threads work a little between calls: the ledger has to hold a minute.
    let arguments = ["8", "300", "20000000", "3000"];
    let mut fixture = Start::new("mixed", &arguments)?
        .with_ledger()?
        .nice()
        .start()?;
    fixture.tell("fast")?;
    let mut reports = Vec::new();
    for round in 0..times {
        let tracer = tracer::Start::attach(fixture.pid())?.attached()?;
        std::thread::sleep(Duration::from_millis(round * 37 % 100));
        reports.push(tracer.report()?);
    }
    fixture.tell("pause")?;
    let truths = check_ledgers(&reports, fixture.ledger()?)?;
    let traced: u64 = truths.iter().map(|truth| truth.calls).sum();
    let straddlers: u64 = truths
        .iter()
        .flat_map(|truth| truth.straddlers.values())
        .sum();
    println!("{traced} calls in {times} traces, {straddlers} over an edge");
    ensure!(traced > times * 100, "only {traced} calls were traced");
    fixture.finish_well()
}
