//! Errors say what failed, why and what to do: their exact text and exit codes.

use std::{
    os::unix::process::CommandExt,
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    build::{self, Static},
    features::{self, ESSENTIAL},
    fixture::{self, Fixture, Start},
    suite::{self, Case, Need, NotHere, case},
    tracer::{self, Ended},
};

fn main() -> ExitCode {
    let mut cases = targets();
    cases.extend(kernels());
    cases.extend(usage());
    suite::main(cases)
}

/// Processes that can't be traced.
fn targets() -> Vec<Case> {
    const C: &[Need] = &[Need::Tracing, Need::C];
    const ROOT: &[Need] = &[Need::Tracing];
    vec![
        case("no_such_process", ROOT, no_such_process),
        case("a_thread_is_not_a_process", C, thread),
        case("a_kernel_thread", ROOT, kernel_thread),
        case("a_zombie", ROOT, zombie),
        case("a_32_bit_process", &[Need::Tracing, Need::C32], bits_32),
        case("a_static_program", C, static_program),
        case("an_output_that_can_not_be_written", C, no_output),
        case("no_process_of_that_name", ROOT, no_such_name),
        case("several_processes_of_that_name", C, several_names),
        case("one_process_of_that_name_is_traced", C, one_name),
        case("not_permitted", C, not_permitted),
        case("tables_that_do_not_fit_the_memory", C, too_many_blocks),
        case("machine_without_sysfs", C, without_sysfs),
        case("report_that_can_not_be_written", C, unwritable),
    ]
}

/// Kernels that can't be used, played by switching off what can't be done
/// without.
fn kernels() -> Vec<Case> {
    const C: &[Need] = &[Need::Tracing, Need::C];
    let mut cases: Vec<Case> = ESSENTIAL
        .iter()
        .map(|(feature, _)| case("kernel_can_not_be_used", C, unusable_kernel).without(feature))
        .collect();
    cases.push(case("feature_that_is_none", C, no_feature).without("no_such"));
    cases
}

/// What was asked for makes no sense.
fn usage() -> Vec<Case> {
    const BINARY: &[Need] = &[Need::Binary];
    vec![
        case("usage_without_a_process", BINARY, || {
            is_usage_error(
                &["attach"],
                "the following required arguments were not provided",
            )
        }),
        case("usage_pid_that_is_no_number", BINARY, || {
            is_usage_error(&["attach", "abc"], "invalid value 'abc' for '[PID]'")
        }),
        case("usage_size_that_is_none", BINARY, || {
            is_usage_error(
                &["attach", "1", "--min-size", "x"],
                "`x` is no size; write it like 4096, 4k, 1.5MiB",
            )
        }),
        case("usage_contradiction", BINARY, || {
            is_usage_error(
                &["attach", "1", "--min-size", "2k", "--max-size", "1k"],
                "leaktrace: --min-size is larger than --max-size: nothing would be recorded",
            )
        }),
        case("usage_unknown_format", BINARY, || {
            is_usage_error(
                &["attach", "1", "-o", "x.bmp"],
                "cannot tell the format of `x.bmp`: write -o FORMAT:x.bmp with one of svg, \
                 folded, json, txt, or use one of these as the extension",
            )
        }),
        case("usage_condition_that_is_none", BINARY, || {
            is_usage_error(
                &["attach", "1", "--alert", "live>50Q"],
                "`50Q` is no size\n  live>50Q\n       ^^^ write it like 4096, 4k, 1.5MiB",
            )
        }),
        case("usage_two_things_on_stdout", BINARY, || {
            is_usage_error(
                &["attach", "1", "--format", "json-lines", "-o", "txt:-"],
                "leaktrace: --format json-lines prints on stdout, and so does `-o …:-`: leave one \
                 out, or name a file",
            )
        }),
        case("usage_run_without_a_command", BINARY, || {
            is_usage_error(&["run"], "<CMD>...")
        }),
        case("help_and_version_are_no_errors", BINARY, help),
    ]
}

/// leaktrace fails with status 1 and says `text`, among what it says on its way.
fn fails(ended: &Ended, text: &str) -> Result<()> {
    ended.expect_status(1)?;
    let text = format!("leaktrace: {text}");
    let said = ended.stderr.join("\n");
    // It may be several lines; nothing follows.
    ensure!(said.ends_with(&text), "said {said:?}, not {text:?}");
    ensure!(!said.contains("attached to "), "{said:?}");
    Ok(())
}

fn attach_fails(pid: u32, text: &str) -> Result<()> {
    fails(&tracer::Start::attach(pid)?.ended()?, text)
}

fn is_usage_error(arguments: &[&str], text: &str) -> Result<()> {
    let ended = tracer::Start::bare(arguments)?.ended()?;
    ended.expect_status(2)?;
    let said = ended.stderr.join("\n");
    ensure!(said.contains(text), "said {said:?}, not {text:?}");
    ensure!(said.contains("try '--help'"), "no hint at help: {said:?}");
    Ok(())
}

/// One sentence names what is missing and the kernel that has it; `doctor` finds
/// the same.
fn unusable_kernel() -> Result<()> {
    let missing = features::switched_off();
    let (_, lack) = ESSENTIAL
        .into_iter()
        .find(|(feature, _)| *feature == missing)
        .context("no essential feature is switched off")?;
    let mut fixture = Fixture::start("sleeper", &[])?;
    attach_fails(
        fixture.pid(),
        &format!("this kernel can't be used: {lack}; boot Linux 5.10 or a newer one"),
    )?;
    let doctor = tracer::Start::bare(&["doctor"])?.ended()?;
    doctor.expect_status(1)?;
    ensure!(
        doctor.stdout.contains(&format!("\nFAIL  {missing} ")),
        "doctor says {}",
        doctor.stdout
    );
    fixture.finish_well()
}

/// Without it nobody knows how much the kernel writes at once.
fn without_sysfs() -> Result<()> {
    let mut fixture = Fixture::start("sleeper", &[])?;
    let start = tracer::Start::attach(fixture.pid())?.without_sysfs();
    fails(
        &start.ended()?,
        "how many CPUs the kernel counts for is unknown (/sys/devices/system/cpu/possible: No such \
         file or directory (os error 2)); if /sys is not mounted: sudo mount -t sysfs none /sys",
    )?;
    let doctor = tracer::Start::bare(&["doctor"])?.without_sysfs().ended()?;
    doctor.expect_status(1)?;
    ensure!(
        doctor.stdout.contains("\nFAIL  CPUs "),
        "doctor says {}",
        doctor.stdout
    );
    fixture.finish_well()
}

/// A feature that isn't known is no feature that is switched off.
fn no_feature() -> Result<()> {
    for (arguments, status) in [(&["doctor"] as &[&str], 1), (&["run", "true"], 125)] {
        let ended = tracer::Start::bare(arguments)?.ended()?;
        ended.expect_status(status)?;
        let said = ended.stderr.join("\n");
        ensure!(
            said.ends_with(
                "leaktrace: LEAKTRACE_DISABLE_FEATURES names `no_such`, which is no feature; \
                 there are uprobes, bounded_loops, read_user_memory, mapped_arrays, \
                 uprobe_multi, perf_link, attach_cookie, compare_exchange, btf, \
                 map_memory_on_demand, batched_lookup, long_nop_emulated, \
                 returns_keep_shadow_stack, ring_buffer, find_vma"
            ),
            "said {said:?}"
        );
    }
    Ok(())
}

/// A process that ended and was waited for.
fn no_such_process() -> Result<()> {
    let mut child = Command::new("true").spawn()?;
    child.wait()?;
    let pid = child.id();
    attach_fails(
        pid,
        &format!("there is no process {pid}: it may have ended; `ps -e` lists those that run"),
    )
}

fn thread() -> Result<()> {
    let fixture = Fixture::start("tight", &[])?;
    let pid = fixture.pid();
    let mut threads = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        threads.push(entry?.file_name().to_string_lossy().parse::<u32>()?);
    }
    let tid = threads
        .into_iter()
        .find(|tid| *tid != pid)
        .context("one thread only")?;
    attach_fails(
        tid,
        &format!(
            "{tid} (tight) is a thread of process {pid}, and all threads of a process are \
             traced together; use: leaktrace attach {pid}"
        ),
    )
}

fn kernel_thread() -> Result<()> {
    let name = std::fs::read_to_string("/proc/2/comm").unwrap_or_default();
    if name.trim() != "kthreadd" {
        return Err(NotHere("kernel threads can't be seen from here".into()).into());
    }
    attach_fails(
        2,
        "2 (kthreadd) is a kernel thread: it has no memory of its own and never calls malloc; \
         choose a process that runs a program",
    )
}

fn zombie() -> Result<()> {
    let mut child = Command::new("true").spawn()?;
    let pid = child.id();
    // Ended, but not waited for.
    while !std::fs::read_to_string(format!("/proc/{pid}/stat"))?.contains(") Z ") {
        std::thread::sleep(Duration::from_millis(5));
    }
    let parent = std::process::id();
    let result = attach_fails(
        pid,
        &format!(
            "{pid} (true) is a zombie: it has ended, and its parent {parent} has not taken \
             notice yet; there is nothing left to trace, choose a process that still runs"
        ),
    );
    child.wait()?;
    result
}

fn bits_32() -> Result<()> {
    let program = build::fixture_32_bit("sleeper")?;
    let fixture = Start::program::<&str>(&program, &[]).start()?;
    let pid = fixture.pid();
    attach_fails(
        pid,
        &format!(
            "{pid} (sleeper-32) is a 32-bit process ({}), and leaktrace understands 64-bit ones \
             only; trace a 64-bit build of the program",
            program.display()
        ),
    )
}

/// It is said before anything is traced.
fn no_output() -> Result<()> {
    let fixture = Fixture::start("sleeper", &[])?;
    let pid = fixture.pid().to_string();
    let output = ["-o", "/nonexistent/heap.json"];
    let arguments = [&["attach", &pid], &output[..]].concat();
    let text =
        "cannot write /nonexistent/heap.json: No such file or directory; make its directory first";
    fails(&tracer::Start::bare(&arguments)?.ended()?, text)?;
    let arguments = [&["run"], &output[..], &["--", "/bin/true"]].concat();
    let ended = tracer::Start::bare(&arguments)?.ended()?;
    ended.expect_status(125)?;
    ensure!(
        ended.stderr.iter().any(|line| line.ends_with(text)),
        "{:?}",
        ended.stderr
    );
    Ok(())
}

fn static_program() -> Result<()> {
    let program = build::static_fixture("sleeper", Static::Stripped)
        .map_err(|error| NotHere(format!("no static C library: {error:#}")))?;
    let fixture = Start::program::<&str>(&program, &[]).start()?;
    let pid = fixture.pid();
    attach_fails(
        pid,
        &format!(
            "{pid} (sleeper-static-) maps no file with a known allocator, so there is nothing to \
             watch; it maps {}. (In a statically linked program it is found by its symbols, which \
             `strip` removes.) `leaktrace doctor {pid}` says more",
            program.display()
        ),
    )
}

const NAME: &str = "lt-test-twin";

/// Copies of a fixture that bear an unusual name.
fn twins(count: usize) -> Result<(tempfile::TempDir, Vec<Fixture>)> {
    let directory = tempfile::tempdir()?;
    let program = directory.path().join(NAME);
    std::fs::copy(build::fixture("sleeper")?, &program)?;
    let start = || Start::program::<&str>(&program, &[]).start();
    let fixtures = (0..count).map(|_| start()).collect::<Result<_>>()?;
    Ok((directory, fixtures))
}

fn no_such_name() -> Result<()> {
    let ended = tracer::Start::bare(&["attach", "--name", NAME])?.ended()?;
    fails(
        &ended,
        &format!(
            "no process has `{NAME}` as its command name or as the file name of its executable; \
             `ps -eo pid,comm,args` lists the names"
        ),
    )
}

fn several_names() -> Result<()> {
    let (directory, fixtures) = twins(2)?;
    let ended = tracer::Start::bare(&["attach", "--name", NAME])?.ended()?;
    ended.expect_status(1)?;
    let path = directory.path().join(NAME);
    let head = format!("leaktrace: 2 processes are named `{NAME}`; choose one by its pid:");
    let Some(at) = ended.stderr.iter().position(|line| *line == head) else {
        anyhow::bail!("{:#?} has no line {head:?}", ended.stderr);
    };
    let rows = &ended.stderr[at + 1..];
    ensure!(
        rows.len() == 3 && rows[0].trim_start().starts_with("PID  STARTED"),
        "{rows:#?}"
    );
    for fixture in &fixtures {
        let begin = format!("{:>9}  ", fixture.pid());
        let end = format!("  {}", path.display());
        let found = rows
            .iter()
            .any(|row| row.starts_with(&begin) && row.ends_with(&end));
        ensure!(found, "{} is missing in {rows:#?}", fixture.pid());
    }
    Ok(())
}

fn one_name() -> Result<()> {
    let (_directory, fixtures) = twins(1)?;
    let mut tracer =
        tracer::Start::bare(&["attach", "--name", NAME, "--no-save", "-q"])?.start()?;
    let line = tracer.wait_for_line(|line| line.starts_with("attached to "))?;
    let wanted = format!("attached to {} ({NAME}): ", fixtures[0].pid());
    ensure!(line.starts_with(&wanted), "{line:?}");
    tracer.signal(libc::SIGINT)?;
    tracer.ended()?.expect_status(0)
}

/// As a user who may not.
fn not_permitted() -> Result<()> {
    let fixture = Fixture::start("sleeper", &[])?;
    let pid = fixture.pid();
    let directory = tempfile::tempdir_in("/tmp")?;
    let program = directory.path().join("leaktrace");
    std::fs::copy(tracer::binary(), &program)?;
    std::fs::set_permissions(
        directory.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    let mut child = Command::new(&program)
        .args(["attach", &pid.to_string(), "--no-save"])
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let status = fixture::wait_for(&mut child, Duration::from_secs(20));
    let _ = child.kill();
    let said = String::from_utf8(child.wait_with_output()?.stderr)?;
    ensure!(status?.code() == Some(1), "{said}");
    let wanted = format!(
        "leaktrace: not permitted to trace {pid} (sleeper): leaktrace does not run as root; \
         use: sudo leaktrace attach {pid}\n"
    );
    ensure!(said == wanted, "said {said:?}, not {wanted:?}");
    Ok(())
}

/// The numbers depend on the machine; what to do is said with one that fits.
fn too_many_blocks() -> Result<()> {
    let fixture = Fixture::start("sleeper", &[])?;
    let ended = tracer::Start::attach(fixture.pid())?
        .args(&["--max-blocks", "4000M"])
        .ended()?;
    ended.expect_status(1)?;
    let said = ended.stderr.join("\n");
    let (before, fitting) = said
        .split_once("is available; use --max-blocks ")
        .with_context(|| format!("no number that fits in {said:?}"))?;
    ensure!(
        before.contains("leaktrace: not attached: its maps could take ")
            && before.contains(" of kernel memory, more than half of the "),
        "{said:?}"
    );
    // Not tried: it would take half of the machine's memory.
    let fitting: u64 = fitting.trim().parse()?;
    ensure!((1..4_000_000_000).contains(&fitting), "{said:?}");
    Ok(())
}

fn unwritable() -> Result<()> {
    let fixture = Fixture::start("sleeper", &[])?;
    let pid = fixture.pid().to_string();
    let arguments = [
        "attach",
        &pid,
        "-o",
        "json:/nonexistent/x.json",
        "--duration",
        "100ms",
    ];
    let ended = tracer::Start::bare(&arguments)?.ended()?;
    ended.expect_status(1)?;
    let said = ended.stderr.join("\n");
    ensure!(
        said.contains("/nonexistent"),
        "{said:?} does not name the place"
    );
    Ok(())
}

fn help() -> Result<()> {
    for argument in ["--help", "--version"] {
        let ended = tracer::Start::bare(&[argument])?.ended()?;
        ended.expect_status(0)?;
        ensure!(ended.stdout.contains("leaktrace"), "{:?}", ended.stdout);
        ensure!(ended.stderr.is_empty(), "{:?}", ended.stderr);
    }
    Ok(())
}
