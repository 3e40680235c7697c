//! `cargo xtask bpf`: the BPF object, the same bytes on every machine.

mod object_file;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::rust_src::RustSrc;
use crate::rustc_wrapper::TARGET;
use crate::toolchain::RUST_VERSION;
use crate::{process, project, rust_src, rustc_wrapper, toolchain};

/// The instruction set. Linux 5.10, the oldest kernel, knows v3.
const TARGET_CPU: &str = "v3";
/// The object that is committed and shipped.
const COMMITTED: &str = "leaktrace/bpf/leaktrace.bpf.o";

/// What `cargo xtask bpf` is asked to do.
#[derive(clap::Args)]
pub struct Options {
    /// Write nothing: fail when the committed object is not what the source makes.
    #[arg(long, conflicts_with = "debug")]
    check: bool,
    /// Build the object that logs, for `leaktrace --bpf-object`; it is not shipped.
    #[arg(long)]
    debug: bool,
    /// Write nothing: fail on any of clippy's warnings about the BPF programs.
    #[arg(long, conflicts_with = "check")]
    lint: bool,
}

/// Builds the object, or checks the one that is committed.
///
/// # Errors
/// Something needed cannot be had, the code does not compile, or the check fails.
pub fn run(options: &Options) -> Result<()> {
    let release = toolchain::rustc_release()?;
    if release != RUST_VERSION {
        bail!(
            "the BPF object is made with rustc {RUST_VERSION}, this is {release}: \
             `rustup toolchain install {RUST_VERSION}`, then `cargo +{RUST_VERSION} xtask bpf`"
        );
    }
    let library = match rust_src::find()? {
        RustSrc::Library(library) => library,
        RustSrc::NotOffered(reason) => {
            return not_built(options, &format!("no source of Rust's core: {reason}"));
        }
    };
    if options.lint {
        let mut clippy = cargo("clippy", &library, options.debug)?;
        return process::run(clippy.args(["--", "--deny", "warnings"]));
    }
    process::say("building the BPF object (the first time, Rust's core as well: under a minute)");
    process::run(&mut cargo("build", &library, options.debug)?)?;
    let linked = target_dir().join(TARGET).join("release/leaktrace");
    let linked = fs::read(&linked).with_context(|| format!("cannot read {}", linked.display()))?;
    let object = object_file::stripped(&linked)?;

    let committed = project::root().join(COMMITTED);
    if options.check {
        return check(&committed, &object);
    }
    let path = if options.debug {
        target_dir().join("leaktrace-debug.bpf.o")
    } else {
        committed
    };
    let dir = path
        .parent()
        .context("the object's path has no directory")?;
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    fs::write(&path, &object).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{} ({} bytes)", project::shown(&path), object.len());
    Ok(())
}

/// A check that cannot be made is not a failure, but said; a build is.
fn not_built(options: &Options, reason: &str) -> Result<()> {
    let option = match options {
        Options { check: true, .. } => "--check",
        Options { lint: true, .. } => "--lint",
        _ => bail!("{reason}"),
    };
    println!("not run: cargo xtask bpf {option}: {reason}");
    Ok(())
}

fn check(committed: &Path, object: &[u8]) -> Result<()> {
    let shown = project::shown(committed);
    let found = fs::read(committed)
        .with_context(|| format!("cannot read {shown}: `cargo xtask bpf` makes it"))?;
    if found == object {
        println!("{shown} is what its source makes ({} bytes)", object.len());
        return Ok(());
    }
    let kept = target_dir().join("rebuilt.bpf.o");
    fs::write(&kept, object).with_context(|| format!("cannot write {}", kept.display()))?;
    let place = found.iter().zip(object).take_while(|(a, b)| a == b).count();
    bail!(
        "{shown} ({} bytes) is not what its source makes ({} bytes, in {}); they differ from byte \
         {place} on. Run `cargo xtask bpf` and commit {shown}",
        found.len(),
        object.len(),
        project::shown(&kept),
    )
}

fn target_dir() -> PathBuf {
    project::target_dir().join("bpf")
}

/// Cargo's subcommand on the BPF programs, for their target.
fn cargo(subcommand: &str, library: &Path, debug: bool) -> Result<Command> {
    let linker = toolchain::bpf_linker()?;
    let package = project::root().join("leaktrace-ebpf");
    let mut linker_flag = std::ffi::OsString::from("-Clinker=");
    linker_flag.push(&linker);
    let flags = [
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        format!("-Ctarget-cpu={TARGET_CPU}").into(),
        // The registers that probes read are the traced machine's, not the builder's.
        "--cfg=bpf_target_arch=\"x86_64\"".into(),
        linker_flag,
    ];

    let mut cargo = toolchain::cargo();
    // Whatever else is set for the workspace's own builds must not reach this one.
    for (name, _) in env::vars_os() {
        let shown = name.to_string_lossy();
        let foreign = [
            "CARGO_PROFILE_",
            "CARGO_BUILD_",
            "CARGO_TARGET_",
            "RUSTC",
            "RUSTFLAGS",
        ];
        if foreign.iter().any(|prefix| shown.starts_with(prefix)) {
            cargo.env_remove(&name);
        }
    }
    cargo
        .args([
            subcommand,
            "--quiet",
            "--release",
            "--locked",
            "-Zbuild-std=core",
            "--target",
            TARGET,
        ])
        .arg("--target-dir")
        .arg(target_dir())
        .current_dir(&package)
        // Stable's `-Z build-std` and the language features that BPF code needs.
        .env("RUSTC_BOOTSTRAP", "1")
        // Where cargo looks for `core`, instead of a directory in the toolchain.
        .env("__CARGO_TESTS_ONLY_SRC_ROOT", library)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}".as_ref()))
        .env("CARGO_INCREMENTAL", "0")
        // The linker takes the first LLVM that it finds here: rustc's own.
        .env("LD_LIBRARY_PATH", toolchain::sysroot()?.join("lib"));
    if debug {
        cargo.args(["--features", "debug"]);
    }
    rustc_wrapper::ask(&mut cargo, &project::root(), library)?;
    Ok(cargo)
}
