//! A trace from attaching to its end, in all the ways in which it may end with a
//! report.

use std::{
    fs::{self, File},
    os::unix::{
        fs::{FileExt, PermissionsExt},
        process::ExitStatusExt,
    },
    process::{ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use leaktrace_tests::{
    build,
    comparison::{Expected, check_exact, check_sums},
    fixture::{Fixture, Start},
    memory, objects,
    report::Report,
    suite::{self, Case, Need, case, scaled},
    tracer::{self, Tracer},
};

const C: &[Need] = &[Need::Tracing, Need::C];

fn main() -> ExitCode {
    let mut cases = ends();
    cases.extend(outputs());
    cases.extend(targets_that_leave());
    cases.extend(beside());
    suite::main(cases)
}

/// Each way to end a trace gives the report.
fn ends() -> Vec<Case> {
    vec![
        case("ctrl_c_ends_with_the_report", C, || {
            ends_by_signal(libc::SIGINT, "SIGINT")
        }),
        case("sigterm_ends_with_the_report", C, || {
            ends_by_signal(libc::SIGTERM, "SIGTERM")
        }),
        case("sighup_ends_with_the_report", C, || {
            ends_by_signal(libc::SIGHUP, "SIGHUP")
        }),
        case("ctrl_z_detaches_instead_of_stopping", C, || {
            ends_by_signal(libc::SIGTSTP, "SIGTSTP")
        }),
        case("duration_ends_with_the_report", C, duration),
        case("closed_stdout_ends_with_the_report", C, closed_stdout),
        case("second_ctrl_c_leaves_at_once", C, second_signal),
        case("ctrl_c_during_the_estimate_ends_at_once", C, || {
            interrupted_estimate(&[])
        }),
        case("ctrl_c_during_a_mere_estimate_ends_at_once", C, || {
            interrupted_estimate(&["--estimate"])
        }),
        case("ctrl_c_while_preparing_ends_at_once", C, interrupted_early),
        case("sigusr1_writes_and_goes_on", C, sigusr1),
    ]
}

/// What it writes, and when.
fn outputs() -> Vec<Case> {
    vec![
        case("probes_go_at_once", C, probes_go_at_once),
        case("nothing_is_written_unless_asked", C, nothing_saved),
        case("reports_are_saved_in_a_new_directory", C, saved),
    ]
}

/// The target ends or becomes another program.
fn targets_that_leave() -> Vec<Case> {
    vec![
        case("target_that_exits", C, || {
            target_leaves("exit 7", "target_exit")
        }),
        case("target_that_is_killed", C, || {
            target_leaves("signal 9", "target_exit")
        }),
        case("target_that_execs", C, || {
            let other = build::fixture("sleeper")?;
            target_leaves(&format!("exec {}", other.display()), "target_exec")
        }),
        case("calls_after_an_exec_do_not_count", C, || {
            // It allocates at once, and ends.
            let other = build::fixture("constructors")?;
            target_leaves(&format!("exec {}", other.display()), "target_exec")
        }),
        case("an_exec_is_when_counting_ends", C, exec_edge),
    ]
}

/// What else must hold while tracing.
fn beside() -> Vec<Case> {
    vec![
        case("two_leaktraces_on_one_target", C, two_tracers),
        case("functions_that_can_not_be_watched_are_named", C, unwatched),
        case("leaktrace_gives_way", C, gives_way),
        case(
            "leaktrace_gives_way_in_run",
            &[Need::Tracing],
            gives_way_in_run,
        ),
        case("leaktrace_dies_first_from_the_start", C, dies_first),
        case("only_old_blocks_are_shown_on_request", C, min_age),
    ]
}

/// Ten blocks of 100 bytes, as `leaver.c` allocates them.
fn ten_blocks(report: &Report) -> Result<()> {
    check_exact(report)?;
    Expected::of(&[("keeps", 1000, 10)]).check(report)
}

fn attached_leaver() -> Result<(Fixture, Tracer)> {
    let mut fixture = Fixture::start("leaver", &[])?;
    let tracer = tracer::Start::attach(fixture.pid())?.attached()?;
    fixture.tell("allocate")?;
    Ok((fixture, tracer))
}

fn end_reason(report: &Report) -> Result<&str> {
    Ok(&report
        .end
        .as_ref()
        .context("the report is not the last")?
        .reason)
}

fn ends_by_signal(signal: i32, name: &str) -> Result<()> {
    let (mut fixture, mut tracer) = attached_leaver()?;
    tracer.signal(signal)?;
    let ended = tracer.ended()?;
    let report = ended.report()?;
    ten_blocks(&report)?;
    ensure!(end_reason(&report)? == "signal", "{:?}", report.end);
    let signal = report.end.as_ref().and_then(|end| end.signal.as_deref());
    ensure!(signal == Some(name), "{:?}", report.end);
    ensure!(
        ended.stdout.contains("keeps"),
        "no final report: {}",
        ended.stdout
    );
    fixture.finish_well()
}

fn duration() -> Result<()> {
    let mut fixture = Fixture::start("leaver", &[])?;
    let tracer = tracer::Start::attach(fixture.pid())?
        .args(&["--duration", "1s"])
        .attached()?;
    fixture.tell("allocate")?;
    let ended = tracer.ended()?;
    let report = ended.report()?;
    ten_blocks(&report)?;
    ensure!(end_reason(&report)? == "duration", "{:?}", report.end);
    let lasted = report.disabled_ns.context("no end")? - report.enabled_ns;
    let lasted = Duration::from_nanos(lasted);
    let wanted = Duration::from_millis(990)..Duration::from_millis(1500);
    ensure!(wanted.contains(&lasted), "it lasted {lasted:?}");
    fixture.finish_well()
}

/// As `leaktrace … | head` does it. A closed pipe is a normal end.
fn closed_stdout() -> Result<()> {
    let mut fixture = Fixture::start("leaver", &[])?;
    let pid = fixture.pid().to_string();
    let (reader, writer) = std::io::pipe()?;
    let arguments = [
        "attach",
        &pid,
        "-o",
        "json:report.json",
        "--interval",
        "200ms",
        "--max-overhead",
        "off",
    ];
    let mut start = tracer::Start::bare(&arguments)?;
    start.command().stdout(Stdio::from(writer));
    let mut tracer = start.start_with_own_stdout()?;
    tracer.wait_until_attached()?;
    fixture.tell("allocate")?;
    drop(reader);
    let ended = tracer.ended()?;
    let report = ended.report()?;
    ten_blocks(&report)?;
    ensure!(end_reason(&report)? == "output_closed", "{:?}", report.end);
    fixture.finish_well()
}

/// Two signals, one right after the other: it ends in no time, whether or not
/// its report was ready.
fn second_signal() -> Result<()> {
    let (mut fixture, mut tracer) = attached_leaver()?;
    let held = objects::held_by(tracer.pid())?;
    tracer.signal(libc::SIGINT)?;
    // It may have ended already.
    let _ = tracer.signal(libc::SIGINT);
    let ended = tracer.ended()?;
    ensure!(
        ended.took < Duration::from_secs(2),
        "it took {:?}",
        ended.took
    );
    objects::expect_gone(&held)?;
    fixture.finish_well()
}

/// How long leaving may take before anything is traced. The kernel takes probes
/// of a process that exits out one after the other.
const LEAVES: Duration = Duration::from_secs(1);

/// While calls are counted for the estimate, there are probes, and no report.
fn interrupted_estimate(options: &[&str]) -> Result<()> {
    let mut fixture = Fixture::start("leaver", &[])?;
    let pid = fixture.pid();
    let before = memory::code(pid)?;
    let mut tracer = tracer::Start::bare(&["attach", &pid.to_string()])?
        .args(options)
        .start()?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while memory::changed(&before, &memory::code(pid)?).is_empty() {
        ensure!(Instant::now() < deadline, "no breakpoints");
    }
    let held = objects::held_by(tracer.pid())?;
    tracer.signal(libc::SIGINT)?;
    let ended = tracer.ended()?;
    ended.expect_status(130)?;
    ensure!(ended.took < LEAVES, "it took {:?}", ended.took);
    let said = "leaktrace: ended by SIGINT before anything was traced; there is no report";
    ensure!(
        ended.stderr.last().is_some_and(|line| line.ends_with(said)),
        "{:?}",
        ended.stderr
    );
    ensure!(ended.files()?.is_empty(), "it wrote {:?}", ended.files()?);
    objects::expect_gone(&held)?;
    memory::expect_restored(pid, &before)?;
    fixture.finish_well()
}

/// At any moment before: nothing stays, and there is a report exactly when it
/// says so by its status. (How long it takes is the kernel's matter where it is
/// checking programs just then.)
fn interrupted_early() -> Result<()> {
    let mut fixture = Fixture::start("leaver", &[])?;
    let before = memory::code(fixture.pid())?;
    for milliseconds in (0..scaled(800, 300)).step_by(scaled(20, 60) as usize) {
        let mut tracer = tracer::Start::bare(&["attach", &fixture.pid().to_string()])?
            .args(&["-o", "json:report.json"])
            .start()?;
        std::thread::sleep(Duration::from_millis(milliseconds));
        tracer.signal(libc::SIGINT)?;
        let ended = tracer.ended()?;
        let when = format!("interrupted after {milliseconds} ms");
        let files = ended.files()?.len();
        match (ended.status.code(), ended.status.signal()) {
            // Before it has begun to listen.
            (None, Some(libc::SIGINT)) | (Some(130), None) => {
                ensure!(files == 0, "{when}, it wrote {:?}", ended.files()?);
            }
            (Some(0), None) => ensure!(files == 1, "{when}, it wrote {:?}", ended.files()?),
            _ => bail!(
                "{when}, it ended with {}: {:#?}",
                ended.status,
                ended.stderr
            ),
        }
        memory::expect_restored(fixture.pid(), &before).context(when)?;
    }
    fixture.finish_well()
}

fn sigusr1() -> Result<()> {
    let (mut fixture, mut tracer) = attached_leaver()?;
    tracer.signal(libc::SIGUSR1)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    let first = loop {
        // Linked into place: never half a file.
        if tracer.has_written() {
            break tracer.report_so_far()?;
        }
        ensure!(Instant::now() < deadline, "no report after SIGUSR1");
        std::thread::sleep(Duration::from_millis(20));
    };
    Expected::of(&[("keeps", 1000, 10)]).check(&first)?;
    ensure!(
        first.end.is_none() && first.disabled_ns.is_none(),
        "it calls itself the last"
    );
    fixture.tell("allocate")?;
    let report = tracer.report()?;
    Expected::of(&[("keeps", 2000, 20)]).check(&report)?;
    fixture.finish_well()
}

/// How soon after Ctrl-C the target must be free again.
const PROBES_GONE: Duration = Duration::from_millis(300);

/// The probes go before anything is read or written.
fn probes_go_at_once() -> Result<()> {
    let fixture = Fixture::start("sleeper", &[])?;
    let before = memory::code(fixture.pid())?;
    let mut tracer = tracer::Start::attach(fixture.pid())?.attached()?;
    let probed = memory::changed(&before, &memory::code(fixture.pid())?);
    let code = File::open(format!("/proc/{}/mem", fixture.pid()))?;
    let byte = |address: u64| -> Result<u8> {
        let mut byte = [0];
        code.read_exact_at(&mut byte, address)?;
        Ok(byte[0])
    };
    let traced = probed
        .iter()
        .map(|address| byte(*address))
        .collect::<Result<Vec<_>>>()?;
    ensure!(
        !traced.is_empty(),
        "no breakpoint in the target while traced"
    );
    tracer.signal(libc::SIGINT)?;
    let started = Instant::now();
    loop {
        let now = probed
            .iter()
            .map(|address| byte(*address))
            .collect::<Result<Vec<_>>>()?;
        if now.iter().zip(&traced).all(|(now, traced)| now != traced) {
            break;
        }
        let passed = started.elapsed();
        ensure!(
            passed < PROBES_GONE * 10,
            "probes are still there after {passed:?}"
        );
    }
    let took = started.elapsed();
    println!("probes gone after {took:?}");
    ensure!(took <= PROBES_GONE, "probes gone only after {took:?}");
    tracer.ended()?.expect_status(0)
}

fn nothing_saved() -> Result<()> {
    let fixture = Fixture::start("sleeper", &[])?;
    let pid = fixture.pid().to_string();
    let ended =
        tracer::Start::bare(&["attach", &pid, "--no-save", "--duration", "200ms"])?.ended()?;
    ended.expect_status(0)?;
    ensure!(ended.files()?.is_empty(), "it wrote {:?}", ended.files()?);
    Ok(())
}

/// Without `-o`: svg, folded and json in a directory that only its user reads.
fn saved() -> Result<()> {
    let mut fixture = Fixture::start("leaver", &[])?;
    let pid = fixture.pid().to_string();
    let mut tracer = tracer::Start::bare(&["attach", &pid, "-q"])?.attached()?;
    fixture.tell("allocate")?;
    tracer.signal(libc::SIGINT)?;
    let ended = tracer.ended()?;
    ended.expect_status(0)?;
    let files = ended.files()?;
    let [directory] = files.as_slice() else {
        anyhow::bail!("it wrote {files:?}")
    };
    let name = directory
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    ensure!(
        name.starts_with(&format!("leaktrace-leaver-{pid}-")),
        "{name}"
    );
    let mode = fs::metadata(directory)?.permissions().mode() & 0o777;
    ensure!(mode == 0o700, "mode {mode:o}");
    let mut extensions = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        ensure!(
            text.contains("keeps"),
            "{} does not name the site",
            path.display()
        );
        let extension = path
            .extension()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        match extension.as_str() {
            "json" => ten_blocks(&Report::read(&path)?)?,
            "folded" => {
                let line = text
                    .lines()
                    .find(|line| line.contains("keeps"))
                    .unwrap_or_default();
                ensure!(line.ends_with(" 1000"), "{line:?}");
            }
            _ => {}
        }
        extensions.push(extension);
    }
    extensions.sort();
    ensure!(extensions == ["folded", "json", "svg"], "{extensions:?}");
    fixture.finish_well()
}

/// The report has everything, with symbols, although the program is gone.
fn target_leaves(command: &str, reason: &str) -> Result<()> {
    let (mut fixture, tracer) = attached_leaver()?;
    fixture.send(command)?;
    let report = tracer.ended()?.report()?;
    check_sums(&report)?;
    ensure!(end_reason(&report)? == reason, "{:?}", report.end);
    Expected::of(&[("keeps", 1000, 10)]).check(&report)?;
    ensure!(report.totals.alloc_blocks == 10, "{:?}", report.totals);
    ensure!(report.symbols().contains("main"), "{:?}", report.symbols());
    Ok(())
}

/// The report says to the moment until when it counted, although leaktrace wakes
/// a while after the exec.
fn exec_edge() -> Result<()> {
    for _ in 0..4 {
        let (mut fixture, tracer) = attached_leaver()?;
        let other = build::fixture("sleeper")?;
        let before = fixture.number(&format!("exec {}", other.display()))?;
        fixture.expect("ready")?;
        let after = monotonic_ns();
        let report = tracer.ended()?.report()?;
        ten_blocks(&report)?;
        ensure!(end_reason(&report)? == "target_exec", "{:?}", report.end);
        let disabled = report.disabled_ns.context("no end")?;
        ensure!(
            (before..=after).contains(&disabled),
            "counted until {disabled}, the exec was between {before} and {after}"
        );
        let uncertainty = report.disabled_uncertainty_ns;
        ensure!(uncertainty == Some(0), "uncertain by {uncertainty:?} ns");
        fixture.finish_well()?;
    }
    Ok(())
}

fn monotonic_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: fills in our own structure.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// Both see everything, and neither disturbs the other.
fn two_tracers() -> Result<()> {
    let mut fixture = Start::new("mixed", &["4", "500", "700000"])?
        .with_ledger()?
        .start()?;
    let first = tracer::Start::attach(fixture.pid())?.attached()?;
    fixture.tell("ops 5000")?;
    let second = tracer::Start::attach(fixture.pid())?.attached()?;
    fixture.tell("ops 5000")?;
    let first = first.report()?;
    fixture.tell("ops 5000")?;
    let second = second.report()?;
    fixture.tell("pause")?;
    for report in [first, second] {
        leaktrace_tests::comparison::check_ledger(&report, fixture.ledger()?)?;
    }
    fixture.finish_well()
}

/// One address under two names with different arguments can't be watched: the
/// rest is, and the report says what is missing and that it may matter.
fn unwatched() -> Result<()> {
    let mut fixture = Fixture::start("partial", &[])?;
    let mut tracer = tracer::Start::attach(fixture.pid())?.attached()?;
    fixture.tell("allocate")?;
    tracer.signal(libc::SIGINT)?;
    let ended = tracer.ended()?;
    let report = ended.report()?;
    Expected::of(&[("keeps", 1000, 10)]).check(&report)?;
    ensure!(
        report.counter("unwatched_function")? == 1,
        "{}",
        report.counters_text()
    );
    ensure!(
        !report.totals.exact && report.totals.inexact == 1,
        "{:?}",
        report.totals
    );
    let named = "memalign/valloc in libpartalloc.so is not watched: ";
    for text in [&ended.stdout, &report.notes.join("\n")] {
        ensure!(text.contains(named), "{named:?} is missing in {text}");
    }
    ensure!(
        ended.stdout.contains("Totals are inexact"),
        "{}",
        ended.stdout
    );
    fixture.finish_well()
}

/// It is nice, and the first to die when memory is short.
fn gives_way() -> Result<()> {
    let fixture = Fixture::start("sleeper", &[])?;
    let tracer = tracer::Start::attach(fixture.pid())?.attached()?;
    has_given_way(&tracer)?;
    tracer.report()?;
    Ok(())
}

/// Its command does not: see `run`.
fn gives_way_in_run() -> Result<()> {
    let mut tracer = tracer::Start::run(&[], &["sleep", "60"])?.attached()?;
    has_given_way(&tracer)?;
    tracer.signal(libc::SIGTERM)?;
    tracer.ended()?.expect_status(128 + libc::SIGTERM)
}

fn has_given_way(tracer: &Tracer) -> Result<()> {
    ensure!(is_first_to_die(tracer.pid())?);
    for task in fs::read_dir(format!("/proc/{}/task", tracer.pid()))? {
        let task = task?;
        let name = fs::read_to_string(task.path().join("comm"))?;
        let nice = niceness(task.file_name().to_string_lossy().parse()?);
        // Stacks are incomplete until it has seen what was loaded.
        let wanted = if name.trim() == "unwinding" { 0 } else { 10 };
        ensure!(nice == wanted, "{name} has niceness {nice}");
    }
    Ok(())
}

fn is_first_to_die(pid: u32) -> Result<bool> {
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?;
    Ok(score.trim() == "1000")
}

fn niceness(pid: u32) -> i32 {
    // SAFETY: a plain system call on a process that runs, 0 for ourselves.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, pid) }
}

/// While it prepares, and is not nice yet: that would take long then.
fn dies_first() -> Result<()> {
    let mut fixture = Fixture::start("sleeper", &[])?;
    let mut start = tracer::Start::bare(&["attach", &fixture.pid().to_string()])?;
    start.command().stdout(Stdio::null());
    let tracer = start.start_with_own_stdout()?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_first_to_die(tracer.pid())? {
        ensure!(Instant::now() < deadline, "memory can run out for others");
    }
    let nice = niceness(tracer.pid());
    ensure!(nice == niceness(0), "niceness {nice}");
    tracer.kill()?;
    fixture.finish_well()
}

/// `--min-age` leaves out the blocks that came last.
fn min_age() -> Result<()> {
    let mut fixture = Fixture::start("leaver", &[])?;
    let tracer = tracer::Start::attach(fixture.pid())?
        .args(&["--min-age", "1s"])
        .attached()?;
    fixture.tell("allocate")?;
    std::thread::sleep(Duration::from_millis(1500));
    fixture.tell("allocate")?;
    let report = tracer.report()?;
    // What is shown is live and old; what was allocated is told whole.
    let old = report.stacks.iter().fold((0, 0), |(bytes, blocks), stack| {
        (bytes + stack.live_bytes, blocks + stack.live_blocks)
    });
    let keeps = report.by_caller().get("keeps").copied().unwrap_or_default();
    ensure!(keeps.alloc_blocks == 20, "{keeps:?}");
    ensure!(
        old == (1000, 10),
        "{old:?} of 20 blocks, 10 of which are old"
    );
    let age = report
        .stacks
        .iter()
        .filter_map(|stack| stack.oldest_age_ns)
        .max();
    ensure!(
        age.is_some_and(|age| age > 1_400_000_000),
        "oldest: {age:?} ns"
    );
    ensure!(report.totals.live_blocks == 20, "{:?}", report.totals);
    fixture.finish_well()
}
