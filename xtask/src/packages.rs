//! Debian packages that a chore needs, installed by name.

use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::process;

/// Whether xtask runs as root.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// A command that runs as root: itself, or through sudo.
pub fn as_root(program: impl AsRef<std::ffi::OsStr>) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg("--").arg(program);
    command
}

/// Installs packages, or brings them up to date, saying so in one line.
///
/// # Errors
/// No apt-get here, no right to use it, or it fails: its own words follow.
pub fn install(names: &[&str], purpose: &str) -> Result<()> {
    let list = names.join(" ");
    if !process::exists("apt-get") {
        bail!(
            "{list} missing, wanted for {purpose}, and there is no apt-get here: install by hand"
        );
    }
    process::say(&format!("installing {list}, for {purpose}"));
    let update = apt_get().arg("update").stdout(Stdio::null()).status();
    update.context("cannot start apt-get update")?;
    let mut install = apt_get();
    install
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(names)
        .stdout(Stdio::null());
    process::run(&mut install).with_context(|| format!("cannot install {list}, for {purpose}"))
}

fn apt_get() -> Command {
    let mut command = as_root("env");
    command
        .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"])
        .stdin(Stdio::null());
    command
}
