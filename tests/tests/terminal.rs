//! leaktrace on a terminal: with job control, and with a user who does not read.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    os::unix::fs::FileExt,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    children::only_child,
    fixture::{Fixture, wait_for},
    memory,
    report::Report,
    suite::{self, Need, case},
    terminal::{Terminal, send, state, wait_for_state},
    tracer,
};

fn main() -> ExitCode {
    const C: &[Need] = &[Need::Tracing, Need::C];
    const ROOT: &[Need] = &[Need::Tracing];
    suite::main(vec![
        case("a_terminal_that_nobody_reads_holds_up_nothing", C, || {
            blocked("")
        }),
        case("ctrl_s_holds_up_nothing", C, || blocked("\x13")),
        case("a_closed_stderr_does_no_harm", C, closed_stderr),
        case("a_background_attach_is_not_stopped_by_tostop", C, || {
            background_attach()
        }),
        case("a_background_run_is_not_stopped_by_tostop", ROOT, || {
            background_run()
        }),
        case("ctrl_z_ends_attach", C, ctrl_z_attach),
        case("ctrl_z_reports_and_stops_run_and_its_command", ROOT, || {
            ctrl_z_run("", "ended by Ctrl-Z")
        }),
        case("ctrl_z_stops_run_after_its_trace", ROOT, || {
            ctrl_z_run("--duration 300ms", "ended by --duration")
        }),
        case("sigtstp_to_run_stops_its_command_as_well", ROOT, || {
            stop_passes("")
        }),
        case(
            "sigtstp_after_the_trace_stops_the_command_as_well",
            ROOT,
            || stop_passes("--duration 300ms"),
        ),
        case(
            "a_command_that_reads_in_the_background_stops_run",
            ROOT,
            background_read,
        ),
    ])
}

/// Whatever is held up by a terminal takes longer than this. (How soon probes
/// go otherwise, `probes_go_at_once` measures.)
const PROBES_GONE: Duration = Duration::from_secs(2);

/// Where the kernel's breakpoints are in a process, once there are some.
struct Breakpoints {
    code: File,
    traced: Vec<(u64, u8)>,
}

impl Breakpoints {
    /// Waits for them.
    fn wait(pid: u32, before: &[(u64, Vec<u8>)]) -> Result<Self> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let code = File::open(format!("/proc/{pid}/mem"))?;
        loop {
            let probed = memory::changed(before, &memory::code(pid)?);
            if !probed.is_empty() {
                let traced = probed
                    .into_iter()
                    .map(|address| Ok((address, byte(&code, address)?)))
                    .collect::<Result<_>>()?;
                return Ok(Self { code, traced });
            }
            ensure!(Instant::now() < deadline, "no breakpoints in {pid}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn are_gone(&self) -> Result<bool> {
        for (address, traced) in &self.traced {
            if byte(&self.code, *address)? == *traced {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn expect_gone_within(&self, limit: Duration) -> Result<()> {
        let started = Instant::now();
        while !self.are_gone()? {
            let passed = started.elapsed();
            ensure!(passed <= limit, "probes are still there after {passed:?}");
        }
        println!("probes gone after {:?}", started.elapsed());
        Ok(())
    }
}

fn byte(code: &File, address: u64) -> Result<u8> {
    let mut byte = [0];
    code.read_exact_at(&mut byte, address)?;
    Ok(byte[0])
}

fn wait_for_report(path: &std::path::Path) -> Result<Report> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !path.exists() {
        ensure!(Instant::now() < deadline, "no report");
        std::thread::sleep(Duration::from_millis(10));
    }
    Report::read(path)
}

/// Nobody reads the terminal, or Ctrl-S has stopped it: signals, probes and
/// files do not wait for that, only the last text does.
fn blocked(key: &str) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut fixture = Fixture::start("leaver", &[])?;
    let pid = fixture.pid();
    let before = memory::code(pid)?;
    let mut terminal = Terminal::play(
        &format!(
            "read -r line\n\"$0\" attach {pid} -o json:report.json --interval 20ms --max-overhead off --stacks\n\
             echo \"status $?\""
        ),
        directory.path(),
    )?;
    if !key.is_empty() {
        terminal.read()?;
    }
    // The shell reads this line, and then starts leaktrace.
    terminal.press(&format!("{key}\n"))?;
    let breakpoints = Breakpoints::wait(pid, &before)?;
    // Nobody is told when events count from; soon after the last breakpoint.
    std::thread::sleep(Duration::from_millis(500));
    fixture.tell("allocate")?;
    // Time for tables to fill whatever the kernel keeps.
    std::thread::sleep(Duration::from_secs(2));
    let job = terminal.job()?;
    // Typed, Ctrl-C would let the terminal go on.
    send(job, libc::SIGINT)?;
    breakpoints.expect_gone_within(PROBES_GONE)?;
    let report = wait_for_report(&directory.path().join("report.json"))?;
    ensure!(report.totals.live_blocks == 10, "{:?}", report.totals);
    std::thread::sleep(Duration::from_millis(300));
    ensure!(
        state(job)? != 'Z',
        "it has ended: the terminal was not blocked"
    );
    if key.is_empty() {
        terminal.read()?;
    } else {
        terminal.press("\x11")?;
    }
    let (_, shown) = terminal.ended()?;
    ensure!(shown.contains("status 0"), "{shown}");
    ensure!(shown.contains("ended by Ctrl-C"), "{shown}");
    fixture.finish_well()
}

/// As `leaktrace … 2>&1 >/dev/null | head -1` does it.
fn closed_stderr() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut fixture = Fixture::start("leaver", &[])?;
    let mut child = Command::new(tracer::binary())
        .args(["attach", &fixture.pid().to_string()])
        .args(["-o", "json:report.json", "--interval", "50ms"])
        .args(["--max-overhead", "off"])
        .current_dir(directory.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stderr.take().context("no stderr")?);
    let mut line = String::new();
    while !line.starts_with("attached to ") {
        line.clear();
        ensure!(lines.read_line(&mut line)? > 0, "it ended");
    }
    drop(lines);
    fixture.tell("allocate")?;
    std::thread::sleep(Duration::from_millis(300));
    send(child.id(), libc::SIGINT)?;
    let status = wait_for(&mut child, Duration::from_secs(20))?;
    ensure!(status.success(), "it ended with {status}");
    let report = Report::read(&directory.path().join("report.json"))?;
    ensure!(report.totals.live_blocks == 10, "{:?}", report.totals);
    fixture.finish_well()
}

/// `stty tostop` stops background jobs that write: not one that has probes in.
fn background_attach() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut fixture = Fixture::start("leaver", &[])?;
    let terminal = Terminal::play(
        &format!(
            "stty tostop\n\"$0\" attach {} -o json:report.json --interval 100ms --duration 1s &\n\
             wait $!\necho \"status $?\"",
            fixture.pid()
        ),
        directory.path(),
    )?;
    terminal.read()?;
    terminal.wait_for("status 0")?;
    let (_, shown) = terminal.ended()?;
    ensure!(
        shown.contains("attached to ") && shown.contains("ended by --duration"),
        "{shown}"
    );
    let report = Report::read(&directory.path().join("report.json"))?;
    ensure!(
        report.end.is_some_and(|end| end.reason == "duration"),
        "another end"
    );
    fixture.finish_well()
}

/// Neither is `run`, whose command writes nothing.
fn background_run() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let terminal = Terminal::play(
        "stty tostop\n\"$0\" run --no-save -- sh -c 'sleep 0.5; exit 7' &\nwait $!\n\
         echo \"status $?\"",
        directory.path(),
    )?;
    terminal.read()?;
    terminal.wait_for("status 7")?;
    let (_, shown) = terminal.ended()?;
    ensure!(shown.contains("until sh exited"), "{shown}");
    Ok(())
}

/// Ctrl-Z ends with a report, rather than leaving a stopped tracer with probes.
fn ctrl_z_attach() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut fixture = Fixture::start("leaver", &[])?;
    let before = memory::code(fixture.pid())?;
    let mut terminal = Terminal::play(
        &format!(
            "\"$0\" attach {} --no-save -q --max-overhead off\necho \"status $?\"",
            fixture.pid()
        ),
        directory.path(),
    )?;
    terminal.read()?;
    terminal.wait_for("Ctrl-C detaches")?;
    let breakpoints = Breakpoints::wait(fixture.pid(), &before)?;
    terminal.press("\x1a")?;
    breakpoints.expect_gone_within(PROBES_GONE)?;
    terminal.wait_for("status 0")?;
    let (_, shown) = terminal.ended()?;
    ensure!(shown.contains("ended by Ctrl-Z"), "{shown}");
    fixture.finish_well()
}

/// Ctrl-Z stops the command; leaktrace reports first, if it has not yet, and is
/// then a stopped job that `fg` lets go on.
fn ctrl_z_run(options: &str, end: &str) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut terminal = Terminal::play(
        &format!(
            "\"$0\" run --no-save -q {options} -- sh -c 'sleep 1; exit 7'\necho \"status $?\"\n\
             read -r line\nfg\necho \"status $?\""
        ),
        directory.path(),
    )?;
    terminal.read()?;
    terminal.wait_for("The report follows")?;
    if !options.is_empty() {
        terminal.wait_for(end)?;
    }
    // What the report ends with is out as well.
    std::thread::sleep(Duration::from_millis(200));
    terminal.press("\x1a")?;
    // 128 + SIGTSTP: the shell has seen a stopped job.
    terminal.wait_for("status 148")?;
    let shown = terminal.shown();
    ensure!(shown.contains(end), "{end:?} is missing in {shown}");
    let leaktrace = terminal.job()?;
    ensure!(state(leaktrace)? == 'T', "leaktrace is not stopped");
    ensure!(
        state(only_child(leaktrace)?)? == 'T',
        "the command is not stopped"
    );
    terminal.press("\n")?;
    terminal.wait_for("status 7")
}

/// SIGTSTP to leaktrace alone stops its command too, and SIGCONT lets both go
/// on: leaktrace stands for its command.
fn stop_passes(options: &str) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut terminal = Terminal::play(
        &format!(
            "\"$0\" run --no-save -q {options} -- sleep 1000 &\nread -r line\nwait $!\n\
             echo \"status $?\""
        ),
        directory.path(),
    )?;
    terminal.read()?;
    terminal.wait_for("The report follows")?;
    if !options.is_empty() {
        terminal.wait_for("ended by --duration")?;
        std::thread::sleep(Duration::from_millis(200));
    }
    let leaktrace = terminal.job()?;
    let command = only_child(leaktrace)?;
    send(leaktrace, libc::SIGTSTP)?;
    wait_for_state(leaktrace, 'T')?;
    wait_for_state(command, 'T')?;
    send(leaktrace, libc::SIGCONT)?;
    wait_for_state(command, 'S')?;
    send(leaktrace, libc::SIGTERM)?;
    wait_for_state(leaktrace, 'Z')?;
    terminal.press("\n")?;
    terminal.wait_for("status 143")
}

/// A background command that reads from the terminal is stopped by it; leaktrace
/// reports and stops as well, so that the shell can tell.
fn background_read() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut terminal = Terminal::play(
        "\"$0\" run --no-save -q -- cat &\nwait $!\necho \"status $?\"\nfg\necho \"status $?\"",
        directory.path(),
    )?;
    terminal.read()?;
    // 128 + SIGTTIN.
    terminal.wait_for("status 149")?;
    let shown = terminal.shown();
    ensure!(shown.contains("ended by SIGTTIN"), "{shown}");
    terminal.press("a line\n\x04")?;
    terminal.wait_for("a line\na line\n")?;
    terminal.wait_for("status 0")
}
