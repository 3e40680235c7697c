//! `leaktrace run`: from the first instruction, and as if leaktrace were not
//! there.

use std::{
    io::{Read, Write},
    os::fd::AsRawFd,
    process::{ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    build::{self, Static},
    children::only_child,
    comparison::{Expected, Sums, check_exact},
    fixture::last_error,
    report::Report,
    suite::{self, Need, NotHere, case},
    terminal::wait_for_state,
    tracer::{Ended, Start},
};

fn main() -> ExitCode {
    const C: &[Need] = &[Need::Tracing, Need::C];
    suite::main(vec![
        case(
            "constructors_are_seen_from_the_first_instruction",
            C,
            constructors,
        ),
        case("constructors_are_seen", C, constructors).without("uprobe_multi"),
        case("constructors_are_seen", C, constructors).without_all(),
        case("exit_status_is_the_commands", C, exit_status),
        case("death_by_signal_is_128_and_more", C, death_by_signal),
        case("stdin_and_stdout_pass_through", C, pass_through),
        case("a_static_program", C, static_program),
        case("signals_pass_through", C, signals),
        case("command_has_its_own_niceness_and_oom_score", C, whoami),
        case("command_runs_as_another_user", C, other_user),
        case("command_that_is_not_found", &[Need::Tracing], not_found),
        case(
            "command_that_can_not_be_executed",
            &[Need::Tracing],
            not_executable,
        ),
        case("own_failure_is_125", &[Need::Tracing], own_failure),
        case("duration_ends_the_trace_not_the_command", C, duration),
        case("exec_of_the_command_ends_the_trace", C, || exec(|it| it)),
        case("exec_is_seen_from_within_a_pid_namespace", C, || {
            exec(Start::in_a_pid_namespace)
        }),
        case("ctrl_c_before_the_command_begins", C, interrupted_early),
        case("command_that_is_killed_before_it_begins", C, killed_early),
        case("a_signal_after_the_end_does_not_cost_the_report", C, || {
            signals_while_reporting(Signals::OneAfterTheEnd)
        }),
        case("a_second_signal_after_the_end_leaves_at_once", C, || {
            signals_while_reporting(Signals::TwoAfterTheEnd)
        }),
        case(
            "a_signal_after_the_one_that_ended_leaves_at_once",
            C,
            || signals_while_reporting(Signals::OneBeforeAndOneAfter),
        ),
        case("report_on_stdout_is_printed_once", C, printed_once),
        case("script_for_env_is_traced_as_what_it_names", C, env_script),
        case(
            "command_that_execs_another_is_told_how_to_trace_that",
            &[Need::Tracing],
            exec_other,
        ),
    ])
}

fn command(arguments: &[&str]) -> Result<Vec<String>> {
    let mut command = vec![build::fixture("constructors")?.display().to_string()];
    command.extend(arguments.iter().map(|argument| (*argument).to_string()));
    Ok(command)
}

fn run(arguments: &[&str]) -> Result<Ended> {
    Start::run(&[], &command(arguments)?)?.ended()
}

/// What `constructors.c` holds when it ends.
fn check(ended: &Ended) -> Result<()> {
    let report = ended.report_whatever_status()?;
    check_exact(&report)?;
    ensure!(report.totals.alloc_blocks == 7, "{:?}", report.totals);
    Expected::of(&[
        ("library_keeps", 3000, 3),
        ("program_keeps", 1000, 2),
        ("main_keeps", 250, 1),
    ])
    .check(&report)
}

/// Allocations of a library's constructor and the program's own are there,
/// exactly, with symbols although the process has ended.
fn constructors() -> Result<()> {
    let ended = run(&[])?;
    ended.expect_status(0)?;
    check(&ended)?;
    // The loader calls it, from where the kernel has begun the process.
    let report = ended.report()?;
    let by_loader = report.stacks.iter().find(|stack| {
        let symbols = || {
            stack
                .frames
                .iter()
                .filter_map(|frame| frame.symbol.as_deref())
        };
        symbols().any(|name| name == "library_keeps") && symbols().all(|name| name != "main")
    });
    let by_loader = by_loader.context("the constructor was not called")?;
    if report.features.get("find_vma").is_some_and(|it| it.used) {
        ensure!(by_loader.end == "complete", "{by_loader:?}");
    }
    Ok(())
}

fn exit_status() -> Result<()> {
    for code in ["0", "1", "3", "42", "255"] {
        let ended = run(&["exit", code])?;
        ended.expect_status(code.parse()?)?;
        check(&ended)?;
    }
    Ok(())
}

fn death_by_signal() -> Result<()> {
    for signal in [libc::SIGKILL, libc::SIGSEGV] {
        let ended = run(&["signal", &signal.to_string()])?;
        ended.expect_status(128 + signal)?;
        check(&ended)?;
    }
    Ok(())
}

/// It has malloc inside, and no loader.
fn static_program() -> Result<()> {
    let program = build::static_fixture("leaver", Static::Fixed)
        .map_err(|error| NotHere(format!("no static C library: {error:#}")))?;
    let mut start = Start::run(&[], &[program.display().to_string()])?;
    let mut input = tempfile::tempfile()?;
    input.write_all(b"allocate\nexit 0\n")?;
    std::io::Seek::rewind(&mut input)?;
    start.command().stdin(Stdio::from(input));
    let ended = start.ended()?;
    ended.expect_status(0)?;
    let report = ended.report()?;
    check_exact(&report)?;
    // The C library's own start counts as well.
    let kept = report.by_function("keeps").get("keeps").copied();
    let wanted = Sums {
        alloc_bytes: 1000,
        alloc_blocks: 10,
        ..Sums::default()
    };
    ensure!(kept == Some(wanted), "{kept:?}");
    Ok(())
}

/// Bytes go through unchanged; what leaktrace itself says is on stderr or comes
/// after them.
fn pass_through() -> Result<()> {
    let mut start = Start::run(&[], &command(&["copy"])?)?;
    // A file, as a pipe's end would have to be written meanwhile.
    let mut input = tempfile::tempfile()?;
    let lines: String = (0..20_000)
        .map(|number| format!("line {number} \u{1}\n"))
        .collect();
    input.write_all(lines.as_bytes())?;
    std::io::Seek::rewind(&mut input)?;
    start.command().stdin(Stdio::from(input));
    let ended = start.ended()?;
    ended.expect_status(0)?;
    ensure!(
        ended.stdout.starts_with(&lines),
        "{} bytes of {}",
        ended.stdout.len(),
        lines.len()
    );
    check(&ended)
}

/// SIGTERM and SIGHUP reach the command, which ends as it wants.
fn signals() -> Result<()> {
    for signal in [libc::SIGTERM, libc::SIGHUP] {
        let mut tracer = Start::run(&[], &command(&["wait"])?)?.start()?;
        tracer.wait_until_attached()?;
        // It catches signals once it is in main.
        std::thread::sleep(Duration::from_millis(500));
        tracer.signal(signal)?;
        let ended = tracer.ended()?;
        ended.expect_status(40 + signal)?;
        check(&ended)?;
    }
    Ok(())
}

fn said_by_whoami(ended: &Ended) -> Result<String> {
    let line = ended.stdout.lines().find(|line| line.starts_with("uid "));
    line.map(String::from)
        .with_context(|| format!("nothing in {:?}", ended.stdout))
}

/// leaktrace is nice and first to die when memory is short; its command is not.
fn whoami() -> Result<()> {
    let score = std::fs::read_to_string("/proc/self/oom_score_adj")?;
    // SAFETY: a plain system call, about the caller itself.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let ended = run(&["whoami"])?;
    ended.expect_status(0)?;
    let said = said_by_whoami(&ended)?;
    let wanted = format!("uid 0 nice {nice} oom {}", score.trim());
    ensure!(said == wanted, "{said:?}, not {wanted:?}");
    Ok(())
}

fn other_user() -> Result<()> {
    let passwd = std::fs::read_to_string("/etc/passwd")?;
    let nobody = passwd.lines().find(|line| line.starts_with("nobody:"));
    let Some(uid) = nobody.and_then(|line| line.split(':').nth(2)) else {
        return Err(NotHere("there is no user nobody".into()).into());
    };
    // Where that user can execute it.
    let directory = tempfile::tempdir_in("/tmp")?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory.path(), mode)?;
    let program = directory.path().join("sh");
    std::fs::copy(leaktrace_tests::fixture::which("sh")?, &program)?;
    let command = [
        program.display().to_string(),
        "-c".into(),
        "echo uid $(id -u)".into(),
    ];
    let ended = Start::run(&["--user", "nobody"], &command)?.ended()?;
    ended.expect_status(0)?;
    ensure!(
        said_by_whoami(&ended)? == format!("uid {uid}"),
        "{:?}",
        ended.stdout
    );
    ended.report()?;
    Ok(())
}

fn says(ended: &Ended, code: i32, text: &str) -> Result<()> {
    ended.expect_status(code)?;
    let said = ended.stderr.join("\n");
    ensure!(said.contains(text), "said {said:?}, not {text:?}");
    Ok(())
}

fn not_found() -> Result<()> {
    let ended = Start::run(&[], &["/nonexistent/program"])?.ended()?;
    says(
        &ended,
        127,
        "leaktrace: cannot run `/nonexistent/program`: there is no such file; check the path",
    )
}

fn not_executable() -> Result<()> {
    let ended = Start::run(&[], &["/etc/passwd"])?.ended()?;
    says(
        &ended,
        126,
        "leaktrace: cannot run `/etc/passwd`: /etc/passwd cannot be executed: Permission denied \
         (os error 13); it needs to be executable (chmod +x) for the user who runs it",
    )
}

fn own_failure() -> Result<()> {
    let ended = Start::run(&["--user", "no-such-user-here"], &["true"])?.ended()?;
    says(
        &ended,
        125,
        "leaktrace: there is no user named `no-such-user-here`; `getent passwd` lists them",
    )
}

/// With `-o txt:-` the report is the output, and not printed beside it.
fn printed_once() -> Result<()> {
    let ended = Start::run(&["-o", "txt:-"], &command(&[])?)?.ended()?;
    ended.expect_status(0)?;
    let printed = |text: &str| text.matches("Not seen, or not exactly:").count();
    let counts = (printed(&ended.stdout), printed(&ended.stderr.join("\n")));
    ensure!(counts == (1, 0), "{counts:?} times");
    Ok(())
}

/// env(1) only finds the interpreter: from the first instruction on it is the
/// interpreter that is seen.
fn env_script() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let script = directory.path().join("script");
    let program = build::fixture("constructors")?;
    std::fs::write(
        &script,
        format!("#!/usr/bin/env -S {} exit 42\n", program.display()),
    )?;
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let ended = Start::run(&[], &[script.display().to_string()])?.ended()?;
    ended.expect_status(42)?;
    check(&ended)
}

fn exec_other() -> Result<()> {
    let command = ["sh", "-c", "exec sleep 1"];
    let ended = Start::run(&[], &command)?.ended()?;
    let sleep = leaktrace_tests::fixture::which("sleep")?.canonicalize()?;
    let sleep = sleep.display();
    for text in [
        format!("The report is about sh only, which replaced itself by {sleep} (exec). "),
        format!("leaktrace run -- {sleep} ARGUMENTS\n"),
        "leaktrace waits for its end, to end with its exit status".into(),
    ] {
        says(&ended, 0, &text)?;
    }
    Ok(())
}

/// What the command's own exec makes of it is another program: none of its
/// calls count, and its status is still passed on.
fn exec(place: impl Fn(Start) -> Start) -> Result<()> {
    let program = build::fixture("constructors")?;
    let script = format!("exec {} exit 5", program.display());
    let ended = place(Start::run(&[], &["sh", "-c", &script])?).ended()?;
    ended.expect_status(5)?;
    let report = ended.report_whatever_status()?;
    check_exact(&report)?;
    let reason = report.end.as_ref().map(|end| end.reason.as_str());
    ensure!(reason == Some("target_exec"), "{:?}", report.end);
    for name in ["library_keeps", "program_keeps", "main_keeps"] {
        ensure!(!report.symbols().contains(name), "{name} was counted");
    }
    Ok(())
}

/// leaktrace prepares while its command waits: that never begins.
fn interrupted_early() -> Result<()> {
    let mut tracer = Start::run(&[], &command(&["copy"])?)?.start()?;
    let deadline = Instant::now() + PATIENCE;
    while only_child(tracer.pid()).is_err() {
        ensure!(Instant::now() < deadline, "it starts no command");
    }
    // It takes the command's signals right after.
    std::thread::sleep(Duration::from_millis(20));
    tracer.signal(libc::SIGINT)?;
    let ended = tracer.ended()?;
    ended.expect_status(130)?;
    let said = "leaktrace: the command was ended before it began; there is no report";
    ensure!(
        ended.stderr.iter().any(|line| line == said),
        "{:?}",
        ended.stderr
    );
    ensure!(ended.took < Duration::from_secs(1), "{:?}", ended.took);
    ensure!(ended.files()?.is_empty(), "it wrote {:?}", ended.files()?);
    Ok(())
}

/// As above, but nobody tells leaktrace that the command is killed.
fn killed_early() -> Result<()> {
    let tracer = Start::run(&[], &command(&["copy"])?)?.start()?;
    let deadline = Instant::now() + PATIENCE;
    let child = loop {
        match only_child(tracer.pid()) {
            Ok(child) => break child,
            Err(error) => ensure!(Instant::now() < deadline, "it starts no command: {error}"),
        }
    };
    // SAFETY: a plain system call; leaktrace has not waited for its child.
    ensure!(unsafe { libc::kill(child.cast_signed(), libc::SIGKILL) } == 0);
    let ended = tracer.ended()?;
    says(
        &ended,
        137,
        "the command was ended before it began; there is no report",
    )?;
    ensure!(ended.files()?.is_empty(), "it wrote {:?}", ended.files()?);
    Ok(())
}

/// When signals come, of which the command has ended or might have.
#[derive(Clone, Copy, PartialEq)]
enum Signals {
    OneAfterTheEnd,
    TwoAfterTheEnd,
    OneBeforeAndOneAfter,
}

/// The report goes to a pipe that nobody reads for a while, so it takes long.
fn signals_while_reporting(signals: Signals) -> Result<()> {
    let (mut reader, writer) = std::io::pipe()?;
    // SAFETY: a plain system call on our own descriptor.
    let size = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    ensure!(size > 0, "{}", last_error());
    let command = match signals {
        Signals::OneBeforeAndOneAfter => command(&["wait"])?,
        _ => command(&["exit", "7"])?,
    };
    let arguments = ["run", "-o", "json:-", "-q", "--"];
    let mut start =
        Start::bare(&arguments)?.args(&command.iter().map(String::as_str).collect::<Vec<_>>());
    start.command().stdout(Stdio::from(writer));
    let mut tracer = start.start_with_own_stdout()?;
    tracer.wait_until_attached()?;
    if signals == Signals::OneBeforeAndOneAfter {
        // It catches signals once it is in main.
        std::thread::sleep(Duration::from_millis(500));
        tracer.signal(libc::SIGINT)?;
    }
    wait_for_state(only_child(tracer.pid())?, 'Z')?;
    // leaktrace notices, and gets stuck with its report.
    std::thread::sleep(Duration::from_millis(700));
    tracer.signal(libc::SIGINT)?;
    if signals == Signals::OneBeforeAndOneAfter {
        return tracer.ended()?.expect_status(130);
    }
    std::thread::sleep(Duration::from_millis(200));
    if signals == Signals::TwoAfterTheEnd {
        tracer.signal(libc::SIGINT)?;
        return tracer.ended()?.expect_status(130);
    }
    let mut text = String::new();
    let reading = std::thread::spawn(move || reader.read_to_string(&mut text).map(|_| text));
    let ended = tracer.ended()?;
    ended.expect_status(7)?;
    let text = reading.join().map_err(|_| anyhow::anyhow!("no text"))??;
    let report: Report = serde_json::from_str(&text).context("half a report")?;
    ensure!(report.totals.alloc_blocks == 7, "{:?}", report.totals);
    Ok(())
}

/// How long leaktrace may take to start its command.
const PATIENCE: Duration = Duration::from_secs(20);

/// After `--duration` the probes are gone, the command goes on, and its status
/// is still passed on.
fn duration() -> Result<()> {
    let ended = Start::run(&["--duration", "300ms"], &command(&["sleep", "1500"])?)?.ended()?;
    ended.expect_status(0)?;
    check(&ended)?;
    says(&ended, 0, "goes on untraced; leaktrace waits for its end")?;
    ensure!(
        ended.took.as_millis() >= 1000,
        "it ended after {:?}",
        ended.took
    );
    Ok(())
}
