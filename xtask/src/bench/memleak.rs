//! libbpf-tools' `memleak`, which leaktrace is compared with: from a later
//! Debian, with that one's libraries, and not installed.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::tracer::Start;
use crate::debian::{self, Fetched};
use crate::project;

const SUITE: &str = "trixie";
/// The tool, and all that it and its dynamic linker need.
const PACKAGES: [&str; 5] = ["libbpf-tools", "libc6", "libelf1t64", "zlib1g", "libzstd1"];
const PROGRAM: &str = "usr/sbin/memleak-libbpf";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "ld-linux-x86-64.so.2";

fn root() -> PathBuf {
    project::target_dir().join("bench/memleak")
}

/// Fetches it, once.
///
/// # Errors
/// It can't be had.
pub fn fetch() -> Result<()> {
    let root = root();
    if root.join(PROGRAM).is_file() {
        return Ok(());
    }
    let apt = root.with_extension("apt");
    let packages = match debian::fetch(SUITE, &PACKAGES, &apt)? {
        Fetched::Packages(packages) => packages,
        Fetched::NotOffered(reason) => bail!("memleak cannot be had: {reason}"),
    };
    // Moved into place at the end: a half-unpacked tree is never taken for a
    // whole one.
    let partial = root.with_extension(format!("partial-{}", std::process::id()));
    for package in packages {
        debian::unpack(&package, &partial)?;
    }
    if !partial.join(PROGRAM).is_file() {
        bail!("libbpf-tools of {SUITE} has no {PROGRAM}");
    }
    fs::rename(&partial, &root).with_context(|| format!("cannot move to {}", root.display()))?;
    fs::remove_dir_all(&apt).with_context(|| format!("cannot remove {}", apt.display()))
}

/// On a process, with one table at the end.
pub fn start(pid: u32) -> Start {
    let libraries = root().join(LIBRARIES);
    // It does not end with its target, so it must with us; and it tells that it
    // is attached through a buffer.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "stdbuf", "-oL"])
        .arg(libraries.join(LOADER))
        .arg("--library-path")
        .arg(&libraries)
        .arg(root().join(PROGRAM))
        .args(["-p", &pid.to_string(), "86400"]);
    Start {
        command,
        attached: "Tracing outstanding memory allocs",
    }
}
