//! The source of Rust's `core`, which has to be compiled for the BPF target.
//!
//! It is taken from the toolchain when rustup's `rust-src` is there, else from
//! Debian's package of the same release, which a later suite offers as a
//! backport.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::debian::Fetched;
use crate::toolchain::RUST_VERSION;
use crate::{debian, project, toolchain};

/// The suite whose `rust-src` has this release.
const SUITE: &str = "trixie-backports";
/// What apt is asked for: the suite moves on to later releases.
const PACKAGE: &str = "rust-src=1.95.*";

/// What a search for the source came to.
pub enum RustSrc {
    /// The directory `library` of Rust's source tree.
    Library(PathBuf),
    /// It is offered nowhere (any more), and why that is believed.
    NotOffered(String),
}

/// Finds the source of `core`, fetching it once.
///
/// # Errors
/// It is offered but cannot be fetched or unpacked.
pub fn find() -> Result<RustSrc> {
    let rustup = toolchain::sysroot()?.join("lib/rustlib/src/rust/library");
    if rustup.join("core/src/lib.rs").is_file() {
        return Ok(RustSrc::Library(rustup));
    }
    let cache = project::target_dir().join("rust-src");
    let library = cache.join(RUST_VERSION).join("library");
    if library.join("core/src/lib.rs").is_file() {
        return Ok(RustSrc::Library(library));
    }
    let apt = cache.join("apt");
    let packages = match debian::fetch(SUITE, &[PACKAGE], &apt)? {
        Fetched::Packages(packages) => packages,
        Fetched::NotOffered(reason) => {
            return Ok(RustSrc::NotOffered(format!(
                "{reason}, and the toolchain has no rust-src \
                 (`rustup component add rust-src` adds it)"
            )));
        }
    };
    let package = packages.first().context("no package was fetched")?;
    unpack(package, &library)?;
    fs::remove_dir_all(&apt).with_context(|| format!("cannot remove {}", apt.display()))?;
    Ok(RustSrc::Library(library))
}

/// Unpacks beside the wanted place and moves there what is needed, so that a
/// half-unpacked tree is never taken for a whole one.
fn unpack(package: &Path, library: &Path) -> Result<()> {
    let place = library.parent().context("the source has no directory")?;
    let partial = place.with_extension(format!("partial-{}", std::process::id()));
    debian::unpack(package, &partial)?;
    let unpacked = partial.join(format!("usr/src/rustc-{RUST_VERSION}/library"));
    if !unpacked.join("core/src/lib.rs").is_file() {
        bail!("{} has no core/src/lib.rs", unpacked.display());
    }
    if place.exists() {
        fs::remove_dir_all(place).with_context(|| format!("cannot remove {}", place.display()))?;
    }
    fs::create_dir_all(place).with_context(|| format!("cannot create {}", place.display()))?;
    fs::rename(&unpacked, library)
        .with_context(|| format!("cannot move to {}", library.display()))?;
    fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))
}
