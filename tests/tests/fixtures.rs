//! The fixtures by themselves, without leaktrace: what they say is the truth,
//! and they work where nobody traces them, so a failure elsewhere is leaktrace's.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use leaktrace_tests::{
    comparison::truths,
    fixture::{Fixture, Start},
    replay::Window,
    suite::{self, Need, case},
    targets, truth,
};

fn main() -> ExitCode {
    suite::main(vec![
        case(
            "ledger_agrees_with_the_blocks_that_threads_hold",
            &[Need::C],
            ledger,
        ),
        case("ledger_that_is_full_is_no_truth", &[Need::C], full_ledger),
        case(
            "ledger_of_a_killed_fixture_can_be_read",
            &[Need::C],
            killed_ledger,
        ),
        case("c_fixtures_work_untraced", &[Need::C], c_fixtures),
        case("cxx_fixtures_work_untraced", &[Need::Cxx], cxx_fixtures),
        case("rust_fixture_works_untraced", &[Need::Rust], || {
            works("sites", "")
        }),
        case(
            "static_fixtures_take_their_own_stacks",
            &[Need::C, Need::Cxx],
            static_fixtures,
        ),
        case("go_fixture_works_untraced", &[Need::Go], || {
            works("growing", "")
        }),
    ])
}

/// From before the first call to after the last.
const ALWAYS: Window = Window {
    on: (0, 1),
    off: (u64::MAX - 2, u64::MAX - 1),
};

/// Replaying every call gives exactly the number of blocks that the threads
/// hold: no call is missing, and the order of events is right.
fn ledger() -> Result<()> {
    let mut fixture = Start::new("mixed", &["8", "1000", "400000"])?
        .with_ledger()?
        .start()?;
    fixture.tell("ops 50000")?;
    fixture.tell("pause")?;
    let blocks = fixture.number("blocks")?;
    let truth = truths(fixture.ledger()?, &[ALWAYS])?.remove(0);
    let live: u64 = truth.certain.values().map(|sums| sums.live_blocks()).sum();
    ensure!(
        live == blocks,
        "the ledger has {live} blocks, the threads hold {blocks}"
    );
    ensure!(truth.calls > 300_000, "{} calls in the ledger", truth.calls);
    ensure!(truth.certain.len() == 100, "{} sites", truth.certain.len());
    fixture.finish_well()
}

/// A fixture that runs out of room says so, rather than leaving calls out.
fn full_ledger() -> Result<()> {
    let mut fixture = Start::new("mixed", &["1", "100", "3000"])?
        .with_ledger()?
        .start()?;
    fixture.send("ops 50000")?;
    let status = fixture.wait(std::time::Duration::from_secs(20))?;
    ensure!(status.code() == Some(3), "ended with {status}");
    let error = truths(fixture.ledger()?, &[ALWAYS])
        .err()
        .map(|error| format!("{error:#}"));
    ensure!(
        error.as_ref().is_some_and(|error| error.contains("full")),
        "{error:?}"
    );
    Ok(())
}

/// Killed in the middle of calls, a fixture leaves a ledger that still adds up.
fn killed_ledger() -> Result<()> {
    let mut fixture = Start::new("mixed", &["8", "1000", "4000000"])?
        .with_ledger()?
        .start()?;
    fixture.tell("fast")?;
    std::thread::sleep(std::time::Duration::from_millis(200));
    fixture.signal(libc::SIGKILL)?;
    fixture.wait(std::time::Duration::from_secs(20))?;
    let truth = truths(fixture.ledger()?, &[ALWAYS])?.remove(0);
    ensure!(truth.calls > 10_000, "{} calls in the ledger", truth.calls);
    Ok(())
}

fn works(name: &str, argument: &str) -> Result<()> {
    let arguments: &[&str] = if argument.is_empty() {
        &[]
    } else {
        &[argument]
    };
    let mut fixture = Fixture::start(name, arguments)?;
    for _ in 0..3 {
        fixture.tell("work")?;
    }
    fixture.finish_well()
}

fn c_fixtures() -> Result<()> {
    works("strict", "strict")?;
    works("strict", "filter")?;
    works("fibres", "")?;
    works("altstack", "")?;
    works("sleeper", "")
}

fn cxx_fixtures() -> Result<()> {
    works("badalloc", "")?;
    works("family", "")
}

/// As deep as the same program with a preloaded library.
fn static_fixtures() -> Result<()> {
    let deepest = |start: Start| -> Result<Option<usize>> {
        let stacks = truth::untraced(start, &["deep 100"])?;
        Ok(stacks.keys().map(Vec::len).max())
    };
    let known = deepest(Start::new::<&str>("stacks", &[])?)?;
    for target in targets::statics() {
        let directory = tempfile::tempdir()?;
        let found = deepest(target.start(directory.path())?.0)?;
        ensure!(
            found == known,
            "{}: {found:?} frames, not {known:?}",
            target.name
        );
    }
    Ok(())
}
