//! The brake: what tracing would cost is known before, watched meanwhile, and
//! bounded.

use std::{
    io::Write as _,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use leaktrace_tests::{
    build,
    fixture::Fixture,
    speed,
    suite::{self, Need, case},
    tracer,
};

fn main() -> ExitCode {
    const C: &[Need] = &[Need::Tracing, Need::C];
    suite::main(vec![
        case("tight_loop_is_refused", C, refused),
        case("refused_limit_can_be_lifted", C, lifted),
        case("estimate_is_printed", C, estimate),
        case("idle_target_is_not_refused", C, idle),
        case("target_that_turns_tight_is_let_go", C, || {
            let_go("tight", &[])
        }),
        // What is not recorded costs the target all the same.
        case("target_that_frees_nothing_tightly_is_let_go", C, || {
            let_go("nothing", &[])
        }),
        case(
            "target_that_makes_filtered_calls_tightly_is_let_go",
            C,
            || let_go("refused", &["--max-size", "1GiB"]),
        ),
        case("run_has_a_brake_on_request", C, || {
            run(&["--max-overhead", "20%"], true)
        }),
        case("run_has_no_brake_otherwise", C, || run(&[], false)),
    ])
}

fn with_brake(pid: u32, more: &[&str]) -> Result<tracer::Start> {
    let start = tracer::Start::bare(&["attach", &pid.to_string(), "--no-save", "-q"])?;
    Ok(start.args(more))
}

/// A tight malloc loop is not attached to, and told why and how all the same.
fn refused() -> Result<()> {
    let mut fixture = Fixture::start("tight", &[])?;
    fixture.tell("tight")?;
    let ended = with_brake(fixture.pid(), &["--duration", "5s"])?.ended()?;
    ended.expect_status(3)?;
    let said = ended.stderr.join("\n");
    for part in [
        "not attached: tight makes ",
        " allocations/s; exact tracing would take about ",
        " of its CPU (limit 50 %).",
        &format!(
            "To go on all the same, briefly:  leaktrace attach {} --max-overhead 100% --duration 10s",
            fixture.pid()
        ),
    ] {
        ensure!(said.contains(part), "{part:?} is missing in {said:?}");
    }
    ensure!(!said.contains("attached to "), "it attached: {said:?}");
    fixture.finish_well()
}

/// `--max-overhead 100%` attaches all the same.
fn lifted() -> Result<()> {
    let mut fixture = Fixture::start("tight", &[])?;
    fixture.tell("tight")?;
    let start = with_brake(
        fixture.pid(),
        &["--max-overhead", "100%", "--duration", "1s"],
    )?;
    let ended = start.ended()?;
    ended.expect_status(0)?;
    fixture.finish_well()
}

/// `--estimate` says what tracing would cost, and attaches to nothing.
fn estimate() -> Result<()> {
    let mut fixture = Fixture::start("tight", &[])?;
    fixture.tell("tight")?;
    let ended =
        tracer::Start::bare(&["attach", &fixture.pid().to_string(), "--estimate"])?.ended()?;
    ended.expect_status(0)?;
    let said = format!("{}\n{}", ended.stdout, ended.stderr.join("\n"));
    let begin = format!("tight ({}, up ", fixture.pid());
    ensure!(said.contains(&begin), "{begin:?} is missing in {said:?}");
    ensure!(said.contains("tracing will cost about "), "{said:?}");
    ensure!(!said.contains("attached to "), "it attached: {said:?}");
    ensure!(ended.files()?.is_empty(), "it wrote {:?}", ended.files()?);
    fixture.finish_well()
}

/// A target that allocates little is traced under the default limit.
fn idle() -> Result<()> {
    let mut fixture = Fixture::start("tight", &[])?;
    let ended = with_brake(fixture.pid(), &["--duration", "1s"])?.ended()?;
    ended.expect_status(0)?;
    fixture.finish_well()
}

/// How long a target that turns tight may be held up.
const HELD_UP: Duration = Duration::from_secs(3);

/// A target that is idle at the attach and turns tight afterwards is free again
/// after 3 s, and as fast as before; leaktrace reports and ends with 3.
fn let_go(work: &str, options: &[&str]) -> Result<()> {
    let mut fixture = Fixture::start("tight", &[])?;
    let before = fixture.number("speed")?;
    let tracer = {
        let json = ["-o", "json:brake.json"];
        with_brake(fixture.pid(), &json)?.args(options).attached()?
    };
    let traced = {
        fixture.tell(work)?;
        let started = Instant::now();
        let ended = tracer.ended()?;
        ended.expect_status(3)?;
        let said = format!("{}\n{}", ended.stdout, ended.stderr.join("\n"));
        ensure!(said.contains("DETACHED after "), "{said:?}");
        let json = ended.files()?;
        ensure!(
            json.iter().any(|path| path.ends_with("brake.json")),
            "no report: {json:?}"
        );
        started.elapsed()
    };
    // The report was written within this time too.
    ensure!(
        traced <= HELD_UP + Duration::from_secs(1),
        "it took {traced:?} to end"
    );
    fixture.tell("idle")?;
    let regained = speed::expect_regained(&mut fixture, before)?;
    println!("held up {traced:?}; speed regained: {regained:.3}");
    fixture.finish_well()
}

/// What `run` ends with: 3 when the brake ended the trace, the command's own status
/// otherwise. The command goes on in any case.
fn run(options: &[&str], is_braked: bool) -> Result<()> {
    let (input, mut commands) = std::io::pipe()?;
    commands.write_all(b"tight\n")?;
    let mut start = tracer::Start::run(options, &[build::fixture("tight")?])?;
    start.command().stdin(input);
    let tracer = start.attached()?;
    std::thread::sleep(HELD_UP + Duration::from_secs(1));
    // Its stdin ends, and so does it.
    drop(commands);
    let ended = tracer.ended()?;
    ended.expect_status(if is_braked { 3 } else { 0 })?;
    let said = format!("{}\n{}", ended.stdout, ended.stderr.join("\n"));
    ensure!(said.contains("DETACHED after ") == is_braked, "{said:?}");
    ensure!(
        said.contains(" goes on untraced; ") == is_braked,
        "{said:?}"
    );
    Ok(())
}
