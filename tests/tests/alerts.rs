//! Conditions that come true while a trace goes on, what is done then, and what
//! programs read of it.

use std::{
    collections::BTreeMap,
    fs,
    io::{PipeWriter, Read, Write},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use leaktrace_tests::{
    build,
    fixture::{Fixture, wait_for},
    report::Report,
    suite::{self, Case, Need, case},
    tracer::{self, Ended, Tracer},
};
use serde_json::Value;

const C: &[Need] = &[Need::Tracing, Need::C];
const ROOT: &[Need] = &[Need::Tracing];

fn main() -> ExitCode {
    let mut cases = alerts();
    cases.extend(lines());
    cases.push(case("growth_too_early_to_tell_is_no_failure", ROOT, || {
        too_early()
    }));
    if !suite::is_quick() {
        // It takes a minute to judge.
        cases.push(case("growth_fails_a_command_that_did_not", C, growth));
    }
    suite::main(cases)
}

fn alerts() -> Vec<Case> {
    vec![
        case("alert_runs_its_command_with_the_facts", C, facts),
        case("alert_that_goes_on_is_told_again_later", C, again),
        case("alert_ends_the_trace", C, until_alert),
        case("command_that_takes_too_long_holds_up_nothing", C, hanging),
        case("command_gets_what_leaktrace_got", ROOT, surroundings),
    ]
}

fn lines() -> Vec<Case> {
    vec![
        case("json_lines_are_all_that_is_on_stdout", C, whole_lines),
        case("json_lines_wait_for_a_slow_reader", C, slow_reader),
        case("json_lines_end_with_their_reader", C, closed_reader),
        case("json_lines_are_one_with_quiet", ROOT, quiet_line),
    ]
}

/// leaktrace on a fixture that allocates when told to, and a directory for
/// outputs, in which it runs.
struct Scene {
    directory: tempfile::TempDir,
    fixture: Fixture,
    tracer: Tracer,
}

impl Scene {
    fn start(options: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let fixture = Fixture::start("leaver", &[])?;
        let pid = fixture.pid().to_string();
        let mut start = tracer::Start::bare(&["attach", &pid, "--max-overhead", "off"])?;
        start.command().args(options).current_dir(directory.path());
        let tracer = start.attached()?;
        Ok(Self {
            directory,
            fixture,
            tracer,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn wait_for_file(&self, name: &str) -> Result<String> {
        let path = self.path(name);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !path.exists() {
            ensure!(Instant::now() < deadline, "no {}", path.display());
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(fs::read_to_string(path)?)
    }

    fn interrupted(mut self) -> Result<(tempfile::TempDir, Ended)> {
        self.tracer.signal(libc::SIGINT)?;
        let ended = self.tracer.ended()?;
        ended.expect_status(0)?;
        self.fixture.finish_well()?;
        Ok((self.directory, ended))
    }
}

fn said(ended: &Ended, text: &str) -> Result<()> {
    ensure!(
        ended.stderr.iter().any(|line| line.contains(text)),
        "{text:?} was not said, but {:#?}",
        ended.stderr
    );
    Ok(())
}

/// What a variable of the command was.
fn variable<'a>(facts: &BTreeMap<&str, &'a str>, name: &str) -> Result<&'a str> {
    let name = format!("LEAKTRACE_{name}");
    let value = facts.get(name.as_str()).copied();
    value.with_context(|| format!("no {name} in {facts:#?}"))
}

fn facts() -> Result<()> {
    let mut scene = Scene::start(&[
        "--alert",
        "live>=1000",
        "--alert",
        "blocks > 10",
        "--on-alert",
        "env | grep ^LEAKTRACE_ > new && mv new facts",
        "-q",
    ])?;
    std::thread::sleep(Duration::from_millis(1500));
    ensure!(!scene.path("facts").exists(), "told of nothing");
    scene.fixture.tell("allocate")?;
    let text = scene.wait_for_file("facts")?;
    let facts: BTreeMap<_, _> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect();
    let pid = scene.fixture.pid().to_string();
    for (name, value) in [
        ("ALERT", "live>=1000"),
        ("VALUE", "1000"),
        ("THRESHOLD", "1000"),
        ("LIVE_BYTES", "1000"),
        ("LIVE_BLOCKS", "10"),
        ("TOP_SITE_BYTES", "1000"),
        ("GROWTH_PER_MINUTE", ""),
        ("TXT", ""),
        ("PID", &pid),
        ("NAME", "leaver"),
    ] {
        let found = variable(&facts, name)?;
        ensure!(found == value, "{name}: {found:?} instead of {value:?}");
    }
    let site = variable(&facts, "TOP_SITE")?;
    ensure!(site.contains("main"), "{site:?}");
    ensure!(variable(&facts, "RSS_BYTES")?.parse::<u64>()? > 100_000);
    // Its files are there, whole, and of that moment.
    let json = Path::new(variable(&facts, "JSON")?);
    let directory = Path::new(variable(&facts, "REPORT_DIR")?);
    ensure!(json.parent() == Some(directory), "{}", json.display());
    let name = json.file_name().unwrap_or_default().to_string_lossy();
    ensure!(name.starts_with("alert-2"), "{name}");
    ensure!(name.ends_with("-live_at_least_1000.json"), "{name}");
    let then = Report::read(json)?;
    ensure!(then.end.is_none() && then.totals.live_blocks == 10);
    scene.fixture.tell("allocate")?;
    let (_kept, ended) = scene.interrupted()?;
    // What the end brought did not take their place.
    let last = Report::read(&directory.join("report.json"))?;
    ensure!(last.totals.live_blocks == 20, "{:?}", last.totals);
    ensure!(Report::read(json)?.totals.live_blocks == 10);
    ensure!(
        last.notes
            .iter()
            .any(|note| note.starts_with("Alert live>=1000 at ")),
        "{:?}",
        last.notes
    );
    said(&ended, " live>=1000: 1.0 KiB are live; written: ")
}

/// Once when it comes true, then every two seconds; never in between, though it is
/// looked at each second.
fn again() -> Result<()> {
    let scene = Scene::start(&[
        "--alert",
        "threads>=1",
        "--alert-every",
        "2500ms",
        "--on-alert",
        "date +%s%N >> times; exit 3",
        "--no-save",
        "-q",
    ])?;
    std::thread::sleep(Duration::from_millis(5600));
    let times = scene.wait_for_file("times")?;
    let (_, ended) = scene.interrupted()?;
    let times: Vec<u64> = times.lines().map(str::parse).collect::<Result<_, _>>()?;
    ensure!(times.len() == 2, "{times:?}");
    // The command itself may start a little later the first time.
    let pause = Duration::from_nanos(times[1] - times[0]);
    ensure!(pause > Duration::from_millis(2200), "{pause:?}");
    said(
        &ended,
        "leaktrace: the command of --on-alert for threads>=1 ended with status 3",
    )
}

fn until_alert() -> Result<()> {
    let mut scene = Scene::start(&[
        "--alert",
        "live>999",
        "--until-alert",
        "--on-alert",
        "sleep 0.3; cp \"$LEAKTRACE_JSON\" copy",
        "-o",
        "json:report.json",
    ])?;
    scene.fixture.tell("allocate")?;
    let ended = scene.tracer.ended()?;
    ended.expect_status(0)?;
    let report = Report::read(&scene.directory.path().join("report.json"))?;
    let end = report.end.as_ref().context("no end")?;
    ensure!(end.reason == "alert", "{end:?}");
    ensure!(end.alert.as_deref() == Some("live>999"), "{end:?}");
    ensure!(report.totals.live_blocks == 10, "{:?}", report.totals);
    // It was waited for, and saw the last report.
    let copy = fs::read(scene.directory.path().join("copy"))?;
    ensure!(copy == fs::read(scene.directory.path().join("report.json"))?);
    ensure!(
        ended.stdout.contains(", ended by --until-alert (live>999)"),
        "{}",
        ended.stdout
    );
    let files = fs::read_dir(scene.directory.path())?.count();
    ensure!(files == 2, "{files} files");
    scene.fixture.finish_well()
}

/// While a command hangs, reports are written, Ctrl-C takes the probes out and
/// writes the last report; leaktrace ends when the command's time is over.
fn hanging() -> Result<()> {
    let mut scene = Scene::start(&[
        "--alert",
        "live>=1000",
        "--alert-timeout",
        "4s",
        "--on-alert",
        "echo $$ > pid; sleep 1000 & echo $! >> pid; mv pid pids; wait",
        "-o",
        "json:report.json",
        "-q",
    ])?;
    scene.fixture.tell("allocate")?;
    let pids = scene.wait_for_file("pids")?;
    let begun = Instant::now();
    scene.tracer.signal(libc::SIGUSR1)?;
    scene.wait_for_file("report.json")?;
    ensure!(begun.elapsed() < Duration::from_secs(2), "SIGUSR1 waited");
    scene.fixture.tell("allocate")?;
    scene.tracer.signal(libc::SIGINT)?;
    scene
        .tracer
        .wait_for_line(|line| line.starts_with("waiting for the command"))?;
    ensure!(begun.elapsed() < Duration::from_secs(3), "Ctrl-C waited");
    let report = Report::read(&scene.path("report.json"))?;
    ensure!(report.end.is_some() && report.totals.live_blocks == 20);
    let ended = scene.tracer.ended()?;
    ended.expect_status(0)?;
    said(
        &ended,
        "did not end within 4 s (--alert-timeout) and was killed",
    )?;
    ensure!(pids.lines().count() == 2, "{pids}");
    for pid in pids.lines() {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        ensure!(
            status.is_empty() || status.contains("State:\tZ"),
            "{pid} lives: {status}"
        );
    }
    scene.fixture.finish_well()
}

/// What the command has is what a shell would give it, though `run` blocks
/// signals and leaktrace is nice.
fn surroundings() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let look = "{ grep SigBlk /proc/self/status; cat /proc/self/oom_score_adj; nice; \
                ulimit -l; readlink /proc/self/fd/0; }";
    let expected = shell(look)? + "4\n";
    // Standard streams, and what `ls` reads.
    let count = "ls /proc/self/fd | wc -l";
    let command = format!("{{ {look}; {count}; }} > new; mv new found; echo out; echo err >&2");
    let mut start = tracer::Start::run(
        &["--alert", "threads>0", "--on-alert", &command],
        &["sleep", "2.5"],
    )?;
    start.command().current_dir(directory.path());
    let ended = start.ended()?;
    ended.expect_status(0)?;
    let found = fs::read_to_string(directory.path().join("found"))?;
    ensure!(found == expected, "{found:?} instead of {expected:?}");
    for line in ["out", "err"] {
        ensure!(ended.stderr.iter().any(|said| said == line), "no {line}");
    }
    ensure!(!ended.stdout.contains("out\n"), "{}", ended.stdout);
    Ok(())
}

/// What a command prints when it is started from here.
fn shell(command: &str) -> Result<String> {
    let output = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .output()?;
    Ok(String::from_utf8(output.stdout)?)
}

/// Every line as JSON; the last one alone has an end, and none is missing.
fn objects(stdout: &str) -> Result<Vec<Value>> {
    ensure!(stdout.ends_with('\n'), "the last line is cut");
    let objects: Vec<Value> = stdout
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("in {line:?}")))
        .collect::<Result<_>>()?;
    let mut sequence = 0;
    for (index, object) in objects.iter().enumerate() {
        let is_last = index + 1 == objects.len();
        ensure!(object["end"].is_null() != is_last, "{object}");
        let number = object["sequence"].as_u64().context("no number")?;
        ensure!(number > sequence, "{number} after {sequence}");
        sequence = number;
        ensure!(object["schema_version"] == 1, "{object}");
    }
    // On a busy machine a table is left out when the next is due.
    let most = objects.len() as u64 * 3 / 2;
    ensure!(sequence <= most, "{} of {sequence}", objects.len());
    Ok(objects)
}

fn whole_lines() -> Result<()> {
    let mut scene = Scene::start(&["--format", "json-lines", "--interval", "100ms"])?;
    scene.fixture.tell("allocate")?;
    std::thread::sleep(Duration::from_secs(1));
    let (directory, ended) = scene.interrupted()?;
    let objects = objects(&ended.stdout)?;
    ensure!(objects.len() > 3, "{} tables", objects.len());
    let last = &objects[objects.len() - 1];
    ensure!(last["totals"]["live_blocks"] == 10, "{last}");
    ensure!(last["end"]["reason"] == "signal", "{last}");
    // What was written is said to the person.
    said(&ended, "Written to leaktrace-leaver-")?;
    let made = fs::read_dir(directory.path())?.count();
    ensure!(made == 1, "{made} directories");
    Ok(())
}

/// Nobody reads for a while, and more is printed than a pipe holds: later, all is
/// there.
fn slow_reader() -> Result<()> {
    let mut fixture = Fixture::start("leaver", &[])?;
    let pid = fixture.pid().to_string();
    let (mut reader, writer) = std::io::pipe()?;
    let mut start = tracer::Start::bare(&[
        "attach",
        &pid,
        "--no-save",
        "--format",
        "json-lines",
        "--interval",
        "40ms",
        "--max-overhead",
        "off",
    ])?;
    start.command().stdout(Stdio::from(writer));
    let mut tracer = start.start_with_own_stdout()?;
    tracer.wait_until_attached()?;
    fixture.tell("allocate")?;
    std::thread::sleep(Duration::from_secs(2));
    tracer.signal(libc::SIGINT)?;
    // It can't end: the last object is not out.
    std::thread::sleep(Duration::from_millis(500));
    let mut stdout = String::new();
    reader.read_to_string(&mut stdout)?;
    tracer.ended()?.expect_status(0)?;
    ensure!(stdout.len() > 1 << 16, "{} bytes fit a pipe", stdout.len());
    let objects = objects(&stdout)?;
    ensure!(objects[objects.len() - 1]["totals"]["live_blocks"] == 10);
    fixture.finish_well()
}

fn closed_reader() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut fixture = Fixture::start("leaver", &[])?;
    let mut child = Command::new("sh")
        .args(["-c", "\"$0\" \"$@\" | head -n 1 > first; echo > ended"])
        .arg(tracer::binary())
        .args([
            "attach",
            &fixture.pid().to_string(),
            "-o",
            "json:report.json",
        ])
        .args(["--format", "json-lines", "--interval", "50ms"])
        .args(["--max-overhead", "off"])
        .current_dir(directory.path())
        .stderr(Stdio::null())
        .spawn()?;
    wait_for(&mut child, Duration::from_secs(30))?;
    let first = fs::read_to_string(directory.path().join("first"))?;
    let first: Value = serde_json::from_str(&first)?;
    ensure!(first["sequence"] == 1 && first["end"].is_null(), "{first}");
    // The shell has waited for leaktrace as well.
    let report = Report::read(&directory.path().join("report.json"))?;
    let end = report.end.context("no end")?;
    ensure!(end.reason == "output_closed", "{end:?}");
    fixture.finish_well()
}

fn quiet_line() -> Result<()> {
    let start = tracer::Start::run(&["--format", "json-lines"], &["sh", "-c", "exit 7"])?;
    let ended = start.ended()?;
    ended.expect_status(7)?;
    let objects = objects(&ended.stdout)?;
    ensure!(objects.len() == 1, "{}", ended.stdout);
    ensure!(objects[0]["end"]["reason"] == "target_exit");
    Ok(())
}

fn too_early() -> Result<()> {
    let command = [build::fixture("leaver")?];
    let mut start = tracer::Start::run(&["--fail-if-growth"], &command)?;
    let (input, mut commands) = std::io::pipe()?;
    start.command().stdin(input);
    let tracer = start.attached()?;
    commands.write_all(b"allocate\nexit 0\n")?;
    let ended = tracer.ended()?;
    ended.expect_status(0)?;
    said(&ended, "leaktrace: --fail-if-growth: too early to tell of ")
}

/// A command that leaks while it is told to.
struct Leak {
    tracer: Tracer,
    commands: PipeWriter,
}

impl Leak {
    fn start(options: &[&str], directory: &Path) -> Result<Self> {
        let mut start = tracer::Start::run(options, &[build::fixture("leaver")?])?;
        let (input, commands) = std::io::pipe()?;
        start.command().stdin(input).current_dir(directory);
        let tracer = start.attached()?;
        Ok(Self { tracer, commands })
    }

    fn tell(&mut self, command: &str) -> Result<()> {
        Ok(self.commands.write_all(format!("{command}\n").as_bytes())?)
    }

    fn ended(mut self, status: u8) -> Result<Ended> {
        self.tell(&format!("exit {status}"))?;
        self.tracer.ended()
    }
}

/// A steady leak, judged after a minute: while it goes on, by an alert, and at the
/// end, by the exit code. CMD's own failure comes first, and growth may be
/// tolerated.
fn growth() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let start = |options: &[&str]| Leak::start(options, directory.path());
    let mut failing = start(&[
        "--fail-if-growth",
        "--alert",
        "verdict",
        "--alert",
        "growth>10k/min",
        "--on-alert",
        "echo \"$LEAKTRACE_ALERT: $LEAKTRACE_GROWING_SITES\" >> told",
    ])?;
    let mut failed = start(&["--fail-if-growth"])?;
    let mut tolerated = start(&["--fail-if-growth=1GiB/min"])?;
    let begun = Instant::now();
    // 300 KiB/min: a round has 1 000 bytes.
    while begun.elapsed() < Duration::from_secs(80) {
        for leak in [&mut failing, &mut failed, &mut tolerated] {
            leak.tell("allocate")?;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let failing = failing.ended(0)?;
    failing.expect_status(10)?;
    said(
        &failing,
        "leaktrace: --fail-if-growth: 1 site grows without bound, by 2",
    )?;
    let told = fs::read_to_string(directory.path().join("told"))?;
    ensure!(told.contains("verdict: 1\n"), "{told}");
    ensure!(told.contains("growth>10k/min: "), "{told}");
    failed.ended(7)?.expect_status(7)?;
    let tolerated = tolerated.ended(0)?;
    tolerated.expect_status(0)?;
    ensure!(
        !tolerated.stderr.iter().any(|line| line.contains("growth")),
        "{:#?}",
        tolerated.stderr
    );
    Ok(())
}
