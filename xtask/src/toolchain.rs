//! The Rust toolchain that builds the BPF object, and its linker.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{process, project};

/// The only rustc that makes the committed object: its LLVM decides the bytes.
pub const RUST_VERSION: &str = "1.95.0";

/// The linker that loads rustc's own LLVM; later ones want an LLVM of the
/// system that is newer than this rustc's.
const BPF_LINKER_VERSION: &str = "0.10.0";

/// Cargo, the one that runs xtask.
pub fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn rustc() -> Command {
    Command::new("rustc")
}

/// The release of the rustc in use, such as `1.95.0`.
///
/// # Errors
/// rustc does not run.
pub fn rustc_release() -> Result<String> {
    let version = process::text(rustc().arg("-vV"))?;
    version
        .lines()
        .find_map(|line| line.strip_prefix("release: "))
        .map(str::to_owned)
        .context("`rustc -vV` names no release")
}

/// The directory that holds the compiler's libraries and LLVM.
///
/// # Errors
/// rustc does not run.
pub fn sysroot() -> Result<PathBuf> {
    Ok(process::text(rustc().args(["--print", "sysroot"]))?.into())
}

/// Finds bpf-linker of the right version, or installs it below `target/`.
///
/// # Errors
/// It is missing and cannot be installed.
pub fn bpf_linker() -> Result<PathBuf> {
    let tools = project::target_dir().join("tools");
    let own = tools.join("bin/bpf-linker");
    let on_path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&on_path)
        .map(|dir| dir.join("bpf-linker"))
        .chain([own.clone()])
        .find(is_right_linker);
    if let Some(path) = found {
        return Ok(path);
    }
    process::say(&format!(
        "installing bpf-linker {BPF_LINKER_VERSION} into {} (about a minute)",
        project::shown(&tools)
    ));
    let mut install = cargo();
    install
        .arg("install")
        .arg(format!("bpf-linker@{BPF_LINKER_VERSION}"))
        .args(["--locked", "--quiet", "--root"])
        .arg(&tools)
        // Else cargo warns that the directory is not on PATH, which is no matter here.
        .env("PATH", prepended(&on_path, tools.join("bin"))?);
    for name in ["CARGO_TARGET_DIR", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"] {
        install.env_remove(name);
    }
    process::run(&mut install).context("bpf-linker, which links the BPF object, is missing")?;
    Ok(own)
}

fn is_right_linker(path: &PathBuf) -> bool {
    path.is_file()
        && process::text(Command::new(path).arg("--version"))
            .is_ok_and(|version| version == format!("bpf-linker {BPF_LINKER_VERSION}"))
}

/// A search path with one more directory in front.
///
/// # Errors
/// The directory's name cannot be in a search path (it has a colon).
pub fn prepended(path: &std::ffi::OsStr, dir: PathBuf) -> Result<std::ffi::OsString> {
    let rest = env::split_paths(path).filter(|dir| !dir.as_os_str().is_empty());
    env::join_paths(std::iter::once(dir).chain(rest)).context("a directory's name has a colon")
}
