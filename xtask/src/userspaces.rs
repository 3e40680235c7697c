//! The C library of another release of Debian, with what compiling for it needs:
//! fetched by name and unpacked, never installed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::debian::{self, Fetched};
use crate::{process, project};

/// The suite with the oldest C library that is still to be had, 2.31.
const SUITE: &str = "bullseye";
const PACKAGES: [&str; 3] = ["libc6", "libc6-dev", "linux-libc-dev"];

/// Fetches it once, into `target/userspaces`. Where it can't be had, the tests that
/// need it say so.
pub fn fetch() {
    if let Err(error) = try_fetch() {
        process::say(&format!("going on without {SUITE}'s C library: {error:#}"));
    }
}

fn try_fetch() -> Result<()> {
    let dir = project::target_dir().join("userspaces");
    let place = dir.join(SUITE);
    if place.is_dir() {
        return Ok(());
    }
    let apt = dir.join("apt");
    let packages = match debian::fetch(SUITE, &PACKAGES, &apt)? {
        Fetched::Packages(packages) => packages,
        Fetched::NotOffered(reason) => {
            process::say(&format!("going on without {SUITE}'s C library: {reason}"));
            return Ok(());
        }
    };
    let partial = dir.join(format!("partial-{}", std::process::id()));
    fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    for package in &packages {
        debian::unpack(package, &partial)?;
    }
    for sub in ["lib64", "usr/lib/x86_64-linux-gnu"] {
        keep_links_inside(&partial, Path::new(sub))?;
    }
    fs::rename(&partial, &place).with_context(|| format!("cannot make {}", place.display()))?;
    fs::remove_dir_all(&apt).with_context(|| format!("cannot remove {}", apt.display()))
}

/// Links in directory `sub` of `root` that begin at the top lead out of it: they
/// are made to begin at `root`.
fn keep_links_inside(root: &Path, sub: &Path) -> Result<()> {
    let up: PathBuf = sub.components().map(|_| "..").collect();
    for entry in fs::read_dir(root.join(sub)).context("cannot list libraries")? {
        let link = entry?.path();
        let Ok(target) = fs::read_link(&link) else {
            continue;
        };
        if let Ok(below) = target.strip_prefix("/") {
            fs::remove_file(&link).context("cannot remove a link")?;
            symlink(up.join(below), &link).context("cannot make a link")?;
        }
    }
    Ok(())
}
