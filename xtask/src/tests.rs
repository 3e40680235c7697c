//! `cargo xtask test`: every test, and an honest account of those that could
//! not run here.
//!
//! Everything is built once, as who calls. Pure tests then run as the caller,
//! the end-to-end tests (package `leaktrace-tests`) as root, one at a time,
//! against the release binary. A test that cannot run prints
//! `NOT RUN: name: reason` and counts as ignored, never as passed.

pub mod binaries;
pub mod tally;

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result};

use crate::{packages, process, project, toolchain, userspaces};
use binaries::Binary;
use tally::Tally;

/// What `cargo xtask test` is asked to do.
#[derive(clap::Args)]
pub struct Options {
    /// The short scale: seconds instead of minutes a test.
    #[arg(long)]
    quick: bool,
    /// The long scale for tests of targets that must live through tracing: a
    /// minute each instead of ten seconds.
    #[arg(long, conflicts_with = "quick")]
    long: bool,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

impl Options {
    fn scale(&self) -> &'static str {
        match (self.long, self.quick) {
            (true, _) => "long",
            (_, true) => "quick",
            _ => "full",
        }
    }
}

/// Runs all tests and prints, as the last line, how many passed, failed and
/// were skipped. False when a test failed.
///
/// # Errors
/// Something does not build, or cannot be started.
pub fn run(options: &Options) -> Result<bool> {
    install_compilers();
    install_targets(options.quick);
    process::say("building the release binary, the tests and their fixtures");
    let leaktrace = build_release()?;
    let tests = binaries::build()?;
    build_fixtures(options.scale())?;

    let mut tally = Tally::default();
    for test in tests.iter().filter(|test| !test.needs_root) {
        run_binary(
            &mut tally,
            test,
            &mut test_command(test, options, Command::new(&test.path)),
        )?;
    }
    run_documentation_tests(&mut tally, options)?;

    let environment = environment(&leaktrace, options);
    for test in tests.iter().filter(|test| test.needs_root) {
        if let Some(reason) = no_root() {
            skip_all(&mut tally, test, options, &reason)?;
            continue;
        }
        let mut command = packages::as_root("env");
        command.args(&environment).arg(&test.path);
        run_binary(&mut tally, test, &mut test_command(test, options, command))?;
    }
    report(&tally);
    Ok(tally.failed == 0)
}

/// Compilers, libraries and tools for fixtures.
pub fn install_compilers() {
    let has_32_bit = || {
        process::text(Command::new("gcc").args(["-m32", "-print-file-name=Scrt1.o"]))
            .is_ok_and(|path| path.starts_with('/'))
    };
    let wanted = [
        ("gcc", process::exists("gcc")),
        ("g++", process::exists("g++")),
        ("golang-go", process::exists("go")),
        ("gcc-multilib", has_32_bit()),
        ("musl-tools", process::exists("musl-gcc")),
        ("dwz", process::exists("dwz")),
        ("elfutils", process::exists("eu-strip")),
        ("xz-utils", process::exists("xz")),
    ];
    install_missing(&wanted, "the tests' fixtures");
    userspaces::fetch();
}

/// Other people's programs, whose stacks are looked at, and other compilers and
/// linkers; only the small ones for the short scale.
fn install_targets(is_quick: bool) {
    let is_there = |name: &str| Path::new("/usr/bin").join(name).exists();
    let small = [
        ("perl", is_there("perl")),
        ("python3", is_there("python3")),
        ("git", is_there("git")),
    ];
    let large = [
        ("clang", is_there("clang++")),
        ("lld", is_there("ld.lld")),
        // A part of binutils before Debian 13.
        ("binutils-gold", is_there("ld.gold")),
        ("nodejs", is_there("node")),
        ("default-jre-headless", is_there("java")),
    ];
    let purpose = "tests of their stacks";
    install_missing(&small, purpose);
    if !is_quick {
        install_missing(&large, purpose);
    }
}

/// Without a package, the tests that need it say that they did not run, so a
/// failure here is only said.
fn install_missing(wanted: &[(&str, bool)], purpose: &str) {
    for (package, is_there) in wanted {
        if !is_there && let Err(error) = packages::install(&[package], purpose) {
            process::say(&format!("going on without {package}: {error:#}"));
        }
    }
}

/// Builds leaktrace as it is shipped; returns the binary's path.
///
/// # Errors
/// It does not compile.
pub fn build_release() -> Result<PathBuf> {
    process::run(toolchain::cargo().current_dir(project::root()).args([
        "build",
        "--quiet",
        "--release",
        "--locked",
        "--package",
        "leaktrace",
    ]))?;
    Ok(project::target_dir().join("release/leaktrace"))
}

/// Those of a scale, built now and by the caller, so that root needs no compilers.
///
/// # Errors
/// The program that builds them does not compile.
pub fn build_fixtures(scale: &str) -> Result<()> {
    process::run(
        toolchain::cargo()
            .current_dir(project::root())
            .args(["run", "--quiet", "--locked", "--package", "leaktrace-tests"])
            .args(["--bin", "build-fixtures"])
            .env("LEAKTRACE_SCALE", scale)
            .stdout(Stdio::null()),
    )
}

/// As arguments of `env`, because sudo passes no environment on.
fn environment(leaktrace: &Path, options: &Options) -> Vec<OsString> {
    let mut binary = OsString::from("LEAKTRACE_BIN=");
    binary.push(leaktrace);
    vec![
        binary,
        format!("LEAKTRACE_SCALE={}", options.scale()).into(),
    ]
}

/// Why nothing can run as root here, if so.
pub fn no_root() -> Option<String> {
    if packages::is_root() {
        return None;
    }
    if !process::exists("sudo") {
        return Some("needs root, and there is no sudo".to_owned());
    }
    // Asks for the password here, once, when a terminal is there to ask on.
    let allowed = Command::new("sudo").args(["--", "true"]).status();
    let is_allowed = allowed.is_ok_and(|status| status.success());
    (!is_allowed).then(|| "needs root, and sudo refused".to_owned())
}

/// Adds what all test programs are given: the filter, their package's directory.
fn test_command(test: &Binary, options: &Options, mut command: Command) -> Command {
    if test.needs_root {
        command.arg("--test-threads=1");
    }
    command.args(&options.filter).current_dir(&test.package_dir);
    command
}

fn run_binary(tally: &mut Tally, test: &Binary, command: &mut Command) -> Result<()> {
    let lines = passed_through(command, &test.name)?;
    tally.add(&test.name, &lines.text, lines.succeeded);
    Ok(())
}

fn run_documentation_tests(tally: &mut Tally, options: &Options) -> Result<()> {
    let mut command = toolchain::cargo();
    command
        .current_dir(project::root())
        .args(["test", "--quiet", "--locked", "--workspace", "--doc"])
        .args(["--exclude", "xtask", "--", "--format=pretty"])
        .args(&options.filter);
    let lines = passed_through(&mut command, "documentation")?;
    tally.add("documentation", &lines.text, lines.succeeded);
    Ok(())
}

/// Counts each test of a program that cannot be started as skipped.
fn skip_all(tally: &mut Tally, test: &Binary, options: &Options, reason: &str) -> Result<()> {
    let list = Command::new(&test.path)
        .arg("--list")
        .args(&options.filter)
        .output();
    let list = list.with_context(|| format!("cannot start {}", test.path.display()))?;
    for line in String::from_utf8_lossy(&list.stdout).lines() {
        if let Some(name) = line.strip_suffix(": test") {
            tally.skip(name, reason);
        }
    }
    Ok(())
}

/// What a program wrote, both streams together, and how it ended.
struct Lines {
    text: String,
    succeeded: bool,
}

/// Runs a program, shows each line at once and keeps it.
fn passed_through(command: &mut Command, name: &str) -> Result<Lines> {
    process::say(&format!("tests: {name}"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", process::shown(command)))?;
    let errors = child.stderr.take().context("no stderr")?;
    let errors = thread::spawn(move || echo(errors));
    let mut text = echo(child.stdout.take().context("no stdout")?);
    if let Ok(more) = errors.join() {
        text.push_str(&more);
    }
    let status = child.wait().context("cannot wait for a test program")?;
    Ok(Lines {
        text,
        succeeded: status.success(),
    })
}

fn echo(stream: impl Read) -> String {
    let mut text = String::new();
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    while reader
        .read_until(b'\n', &mut line)
        .is_ok_and(|read| read > 0)
    {
        let shown = String::from_utf8_lossy(&line);
        print!("{shown}");
        text.push_str(&shown);
        line.clear();
    }
    text
}

fn report(tally: &Tally) {
    if !tally.not_run.is_empty() {
        println!("\nnot run here:");
        for (name, reason) in &tally.not_run {
            println!("  {name}: {reason}");
        }
    }
    if !tally.failures.is_empty() {
        println!("\nfailed:");
        for name in &tally.failures {
            println!("  {name}");
        }
    }
    println!("\n{tally}");
}
