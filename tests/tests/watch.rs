//! `leaktrace doctor PID --watch`: what grows is found without any probes. Watched
//! for too short a time for a verdict, but long enough to see that it rises.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use leaktrace_tests::{
    build,
    fixture::{Fixture, Start, wait_for},
    suite::{self, Need, case},
    tracer::{self, Ended},
};

const C: &[Need] = &[Need::Binary, Need::C];

fn main() -> ExitCode {
    suite::main(vec![
        case("what_grows_is_found", C, what_grows),
        case(
            "growth_of_rss_is_explained",
            &[Need::Tracing, Need::C],
            rss_is_explained,
        ),
        case("nothing_grows", C, idle),
        case("ended_by_ctrl_c", C, interrupted),
        case("a_process_that_ends", C, process_ends),
        case("nobody_reads_any_more", C, closed),
        case(
            "no_root_for_a_process_of_one_s_own",
            &[Need::Tracing, Need::C],
            no_root,
        ),
        case("a_process_that_is_not_there", &[Need::Binary], no_process),
        case("watch_without_a_process", &[Need::Binary], usage),
    ])
}

/// A way to grow, what is said to rise, and what to do.
type Growth = (&'static str, &'static str, &'static str);

/// `PID` stands for the process.
const GROWTH: [Growth; 5] = [
    (
        "heap",
        "RSS and swap",
        "Which stacks hold what is allocated from now on:\n  sudo leaktrace attach PID\n",
    ),
    (
        "mmap",
        "RSS and swap",
        "Anonymous mappings grow that are not malloc's: a runtime's own heap, or calls of mmap. \
         leaktrace does not trace these yet.",
    ),
    (
        "shared",
        "RSS and swap",
        "Shared memory grows, mostly /memfd:ring. leaktrace does not trace it.",
    ),
    (
        "descriptors",
        "descriptors",
        "Descriptors grow. leaktrace does not trace them yet. What they are:\n  sudo ls -l /proc/PID/fd\n",
    ),
    (
        "threads",
        "threads",
        "Threads grow. leaktrace does not trace them yet. What they are:\n  ps -T -p PID\n",
    ),
];

/// All side by side: each takes as long as it takes to see that something rises.
fn what_grows() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("index");
    File::create(&path)?.set_len(256 << 20)?;
    let path = path.to_string_lossy().into_owned();
    let files = format!("Files grow in memory, mostly {path}. That is page cache");
    let mut ways = GROWTH.to_vec();
    ways.push(("files", "RSS and swap", &files));
    ways.push((
        "kept",
        "RSS and swap",
        "rather fragmented or kept than leaked",
    ));
    let mut watched = Vec::new();
    for (way, quantity, advice) in ways {
        let fixture = Fixture::start("grows", &[way, &path])?;
        let watch = command(fixture.pid(), "6s")?.start()?;
        watched.push((way, quantity, advice, fixture, watch));
    }
    for (way, quantity, advice, fixture, watch) in watched {
        let ended = watch.ended()?;
        ended.expect_status(0)?;
        let pid = fixture.pid();
        says(&ended, &format!("grows ({pid}): watched for 6 s, "))?;
        rises(&ended, quantity)?;
        says(&ended, &advice.replace("PID", &pid.to_string()))?;
        if way == "kept" {
            is_mostly_free(&ended)?;
        }
    }
    Ok(())
}

fn command(pid: u32, duration: &str) -> Result<tracer::Start> {
    let pid = pid.to_string();
    tracer::Start::bare(&["doctor", &pid, "--watch", duration, "--interval", "100ms"])
}

fn says(ended: &Ended, text: &str) -> Result<()> {
    ensure!(
        ended.stdout.contains(text),
        "{text:?} is not said:\n{}",
        ended.stdout
    );
    Ok(())
}

fn rises(ended: &Ended, quantity: &str) -> Result<()> {
    let start = "Rising, too early to tell for how long: ";
    let told = ended
        .stdout
        .lines()
        .find_map(|line| line.strip_prefix(start));
    ensure!(
        told.is_some_and(|told| told.contains(&format!("{quantity} +"))),
        "{quantity} does not rise:\n{}",
        ended.stdout
    );
    Ok(())
}

/// What the last report of a trace says of memory that no traced block holds.
fn rss_is_explained() -> Result<()> {
    let causes = [
        ("kept", "is free memory that malloc keeps (its heaps have "),
        ("mmap", "is in anonymous mappings beside malloc's."),
        ("shared", "is in shared memory (mostly /memfd:ring)."),
    ];
    let mut traced = Vec::new();
    for (way, cause) in causes {
        let fixture = Fixture::start("grows", &[way])?;
        let trace = tracer::Start::attach(fixture.pid())?
            .args(&["--duration", "4s"])
            .start()?;
        traced.push((cause, fixture, trace));
    }
    for (cause, _fixture, trace) in traced {
        let ended = trace.ended()?;
        ended.expect_status(0)?;
        let rss = ended
            .stdout
            .lines()
            .find(|line| line.starts_with("RSS grew "));
        let rss = rss.unwrap_or_default();
        ensure!(
            rss.contains(", none of it in traced blocks: ") && rss.contains(cause),
            "{cause:?} is not said:\n{}",
            ended.stdout
        );
    }
    Ok(())
}

/// `malloc's heaps grow, but 6.1 of 7.2 MiB of them is free`.
fn is_mostly_free(ended: &Ended) -> Result<()> {
    let start = "malloc's heaps grow, but ";
    let told = ended
        .stdout
        .lines()
        .find_map(|line| line.strip_prefix(start));
    let numbers: Vec<f64> = told
        .unwrap_or_default()
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    ensure!(
        matches!(numbers[..], [free, all] if free > 0.8 * all && free <= all),
        "{told:?} in\n{}",
        ended.stdout
    );
    Ok(())
}

fn idle() -> Result<()> {
    let fixture = Fixture::start("grows", &["idle"])?;
    let ended = command(fixture.pid(), "1s")?.ended()?;
    ended.expect_status(0)?;
    ensure!(!ended.stdout.contains("Rising"), "{}", ended.stdout);
    says(
        &ended,
        &format!(
            "That was too short a time to tell what grows. For longer:\n  leaktrace doctor {} --watch 5min\n",
            fixture.pid()
        ),
    )
}

fn interrupted() -> Result<()> {
    let fixture = Fixture::start("grows", &["heap"])?;
    let mut watch = command(fixture.pid(), "1h")?.start()?;
    std::thread::sleep(Duration::from_millis(1500));
    watch.signal(libc::SIGINT)?;
    let ended = watch.ended()?;
    ended.expect_status(0)?;
    says(&ended, "\nEnded after 1.")?;
    says(&ended, "\nRSS and swap ")
}

fn process_ends() -> Result<()> {
    let fixture = Fixture::start("grows", &["descriptors"])?;
    let watch = command(fixture.pid(), "1h")?.start()?;
    std::thread::sleep(Duration::from_millis(1500));
    drop(fixture);
    let ended = watch.ended()?;
    ended.expect_status(0)?;
    says(&ended, "\ngrows has ended after 1.")?;
    says(&ended, "\ndescriptors ")
}

fn closed() -> Result<()> {
    let fixture = Fixture::start("grows", &["idle"])?;
    let mut watch = Command::new(tracer::binary())
        .args(["doctor", &fixture.pid().to_string()])
        .args(["--watch", "1h", "--interval", "10ms"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(watch.stdout.take().context("no stdout")?).read_line(&mut line)?;
    let status = wait_for(&mut watch, Duration::from_secs(20));
    let _ = watch.kill();
    let _ = watch.wait();
    ensure!(status?.success(), "it ended otherwise");
    Ok(())
}

/// As somebody who may not read another process's memory either, unless it is a
/// descendant (Yama).
fn no_root() -> Result<()> {
    const NOBODY: u32 = 65534;
    let directory = tempfile::tempdir_in("/tmp")?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    let install = |from: &std::path::Path, name: &str| -> Result<std::path::PathBuf> {
        let to = directory.path().join(name);
        fs::copy(from, &to)?;
        Ok(to)
    };
    let program = install(&tracer::binary(), "leaktrace")?;
    let grows = install(&build::fixture("grows")?, "grows")?;
    let fixture = Start::program::<&str>(&grows, &["descriptors"])
        .user(NOBODY)
        .start()?;
    let output = Command::new(program)
        .args(["doctor", &fixture.pid().to_string()])
        .args(["--watch", "1500ms", "--interval", "100ms"])
        .current_dir("/")
        .uid(NOBODY)
        .gid(NOBODY)
        .output()?;
    let said = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{said}{:?}", output.stderr);
    let row = |name| said.lines().find(|line| line.starts_with(name));
    let descriptors: Vec<u64> = row("descriptors ")
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    ensure!(
        matches!(descriptors[..], [first, last, ..] if last > first),
        "{descriptors:?} in\n{said}"
    );
    ensure!(row("malloc's heaps ").is_some(), "{said}");
    Ok(())
}

fn no_process() -> Result<()> {
    let ended = command(4_194_305, "1s")?.ended()?;
    ended.expect_status(1)?;
    let said = ended.stderr.join("\n");
    ensure!(said.contains("there is no process 4194305"), "{said}");
    Ok(())
}

fn usage() -> Result<()> {
    let ended = tracer::Start::bare(&["doctor", "--watch", "1s"])?.ended()?;
    ended.expect_status(2)?;
    let said = ended.stderr.join("\n");
    ensure!(
        said.contains("the following required arguments were not provided"),
        "{said}"
    );
    Ok(())
}
