//! Stands between cargo and rustc while the BPF object is built, so that its
//! bytes are the same wherever that is done.
//!
//! Two things in cargo's commands depend on the machine: the paths of source
//! files, which get into BTF and panic locations, and `-C metadata`, a hash of
//! (among others) the absolute place of each package outside the workspace,
//! which gets into symbol names and by them may decide an order. Both are
//! replaced by what only depends on a package's name and version.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The target that the BPF object is for.
pub const TARGET: &str = "bpfel-unknown-none";

/// Set when xtask is started in place of rustc; the value is the tree of
/// directories to remap, as `search path`: project, rust-src's library.
const ASKED: &str = "LEAKTRACE_XTASK_AS_RUSTC";

/// Whether cargo started this program in place of rustc.
pub fn is_asked_for() -> bool {
    env::var_os(ASKED).is_some()
}

/// Makes `cargo` put this program before rustc.
///
/// # Errors
/// A path has a colon, or this program cannot find itself.
pub fn ask(cargo: &mut Command, project: &Path, library: &Path) -> anyhow::Result<()> {
    cargo
        .env("RUSTC_WRAPPER", env::current_exe()?)
        .env(ASKED, env::join_paths([project, library])?);
    Ok(())
}

/// Runs rustc (the first argument) with the arguments made neutral; only
/// returns when it cannot be started.
pub fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let Some(rustc) = arguments.next() else {
        eprintln!("error: {ASKED} is set, but no rustc is named");
        return ExitCode::FAILURE;
    };
    let mut arguments: Vec<OsString> = arguments.collect();
    if is_for_bpf(&arguments) {
        let name = env::var("CARGO_PKG_NAME").unwrap_or_default();
        let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
        arguments = with_metadata(arguments, &format!("{name}-{version}"));
        arguments.extend(remapped(&name, &version));
    }
    let error = Command::new(&rustc).args(arguments).exec();
    eprintln!("error: cannot start {}: {error}", rustc.display());
    ExitCode::FAILURE
}

/// Build scripts and procedural macros are for the host and left alone.
fn is_for_bpf(arguments: &[OsString]) -> bool {
    arguments
        .windows(2)
        .any(|pair| pair[0] == "--target" && pair[1] == TARGET)
}

fn with_metadata(arguments: Vec<OsString>, value: &str) -> Vec<OsString> {
    let replace = |argument: OsString| {
        if argument.as_encoded_bytes().starts_with(b"metadata=") {
            OsString::from(format!("metadata={value}"))
        } else {
            argument
        }
    };
    arguments.into_iter().map(replace).collect()
}

/// The last remapping that fits a path wins, so the narrowest come last. What
/// paths become must not exist: LLVM would add the lines of a file it finds.
fn remapped(name: &str, version: &str) -> Vec<OsString> {
    let roots = env::var_os(ASKED).unwrap_or_default();
    let mut places: Vec<(PathBuf, String)> = env::split_paths(&roots)
        .zip(["/leaktrace/source", "/leaktrace/rust-src"])
        .map(|(place, name)| (place, name.to_owned()))
        .collect();
    // A registry may lie anywhere, also below the project.
    let is_ours = name.starts_with("leaktrace");
    if let Some(manifest) = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from)
        && !is_ours
        && !env::split_paths(&roots)
            .skip(1)
            .any(|library| manifest.starts_with(library))
    {
        places.push((manifest, format!("/leaktrace/crates/{name}-{version}")));
    }
    if let Some(generated) = env::var_os("OUT_DIR") {
        let place = format!("/leaktrace/generated/{name}-{version}");
        places.push((generated.into(), place));
    }
    places.iter().map(|(from, to)| flag(from, to)).collect()
}

fn flag(from: &Path, to: &str) -> OsString {
    let mut flag = OsString::from("--remap-path-prefix=");
    flag.push::<&OsStr>(from.as_os_str());
    flag.push(format!("={to}"));
    flag
}
