//! Kernels of the Debian archive, found through its suites and kept.

use std::cmp::Ordering;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use super::guest::NEWEST;
use crate::debian::{self, Fetched, Opened, Suite};
use crate::process;

/// The part of a package's name that says for which machines its kernel is.
const FLAVOUR: &str = "cloud-amd64";

/// What a guest loads before it can mount its root, in this order. A kernel
/// may have some of them built in.
pub const MODULES: [&str; 7] = [
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "overlay",
];

/// A kernel that can be booted.
#[derive(Debug)]
pub struct Kernel {
    /// As `uname -r` says: `6.1.0-50-cloud-amd64`.
    pub release: String,
    /// Its image.
    pub image: PathBuf,
    /// Where its modules lie, by name, not compressed.
    pub modules: PathBuf,
    /// How it preempts unless told otherwise: `voluntary`.
    pub preemption: String,
}

/// What a search for a kernel came to.
pub enum Found {
    /// It is here.
    Kernel(Kernel),
    /// The archive does not have it (any more), and why that is believed.
    NotOffered(String),
}

/// Finds the kernel of a series, in `dir` or else in the archive.
///
/// # Errors
/// It is offered but cannot be fetched or unpacked.
pub fn find(series: &str, dir: &Path) -> Result<Found> {
    let place = dir.join("kernels").join(series);
    if !place.is_dir()
        && let Some(reason) = fetch(series, dir, &place)?
    {
        return Ok(Found::NotOffered(reason));
    }
    let read = |name: &str| {
        let path = place.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    Ok(Found::Kernel(Kernel {
        release: read("release")?,
        preemption: preemption(&read("config")?).to_owned(),
        image: place.join("vmlinuz"),
        modules: place.join("modules"),
    }))
}

/// How a kernel with this configuration preempts.
fn preemption(config: &str) -> &'static str {
    let has = |option: &str| config.lines().any(|line| line == format!("{option}=y"));
    match () {
        () if has("CONFIG_PREEMPT_LAZY") => "lazy",
        () if has("CONFIG_PREEMPT") => "full",
        () if has("CONFIG_PREEMPT_VOLUNTARY") => "voluntary",
        () => "none",
    }
}

/// Fetches the kernel of a series into `place`; the reason when there is none.
fn fetch(series: &str, dir: &Path, place: &Path) -> Result<Option<String>> {
    let suite_name = match series {
        "5.10" => "bullseye",
        "6.1" => "bookworm",
        "6.12" => "trixie",
        _ => "trixie-backports",
    };
    let suite = match Suite::open(suite_name, &dir.join("apt").join(suite_name))? {
        Opened::Suite(suite) => suite,
        Opened::NotOffered(reason) => return Ok(Some(reason)),
    };
    let Some(image) = image_package(&suite, series)? else {
        return Ok(Some(format!(
            "{suite_name} no longer has a kernel {series}"
        )));
    };
    let wanted = parts(&suite, &image)?;
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    let packages = match suite.download(&wanted)? {
        Fetched::Packages(packages) => packages,
        Fetched::NotOffered(reason) => return Ok(Some(reason)),
    };
    let partial = dir.join("kernels").join(format!("{series}-partial"));
    if partial.exists() {
        fs::remove_dir_all(&partial)
            .with_context(|| format!("cannot remove {}", partial.display()))?;
    }
    let root = partial.join("root");
    fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
    for package in &packages {
        debian::unpack(package, &root)?;
        fs::remove_file(package).with_context(|| format!("cannot remove {}", package.display()))?;
    }
    let release = image.trim_start_matches("linux-image-");
    arrange(&root, release, &partial)?;
    fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    // Only now does it have its name: what is half unpacked is never taken for whole.
    fs::rename(&partial, place).with_context(|| format!("cannot make {}", place.display()))?;
    Ok(None)
}

/// The package of a series' kernel. Versions leave the archive: which one there
/// is, the suite's metapackage says, and of a series that has none, the highest.
fn image_package(suite: &Suite, series: &str) -> Result<Option<String>> {
    let is_image = |name: &String| {
        name.starts_with("linux-image-") && name.ends_with(FLAVOUR) && !name.contains("dbg")
    };
    let current = suite
        .dependencies(&format!("linux-image-{FLAVOUR}"))?
        .into_iter()
        .find(is_image);
    let prefix = format!("linux-image-{series}.");
    match current {
        Some(name) if series == NEWEST || name.starts_with(&prefix) => Ok(Some(name)),
        _ => {
            let names = suite.names(&prefix)?.into_iter().filter(is_image);
            Ok(names.max_by(|one, other| by_version(one, other)))
        }
    }
}

/// The packages that hold the kernel: since 7.0 the image's package is empty and
/// depends on them.
fn parts(suite: &Suite, image: &str) -> Result<Vec<String>> {
    let is_part = |name: &String| {
        let parts = ["linux-binary-", "linux-modules-", "linux-base-"];
        name.ends_with(FLAVOUR) && parts.iter().any(|part| name.starts_with(part))
    };
    let parts: Vec<_> = suite
        .dependencies(image)?
        .into_iter()
        .filter(is_part)
        .collect();
    if parts.iter().any(|name| name.starts_with("linux-binary-")) {
        return Ok(parts);
    }
    Ok(vec![image.to_owned()])
}

/// Compares names by the numbers in them, so that 6.18.9 comes before 6.18.15.
fn by_version(one: &str, other: &str) -> Ordering {
    let numbers = |name: &str| -> Vec<u64> {
        name.split(|c: char| !c.is_ascii_digit())
            .filter_map(|digits| digits.parse().ok())
            .collect()
    };
    numbers(one).cmp(&numbers(other))
}

/// Takes what a guest needs out of the unpacked packages.
fn arrange(root: &Path, release: &str, place: &Path) -> Result<()> {
    for name in ["vmlinuz", "config"] {
        // Since 7.3 they lie beside the modules.
        let places = [
            format!("boot/{name}-{release}"),
            format!("usr/lib/modules/{release}/{name}"),
        ];
        let from = places
            .iter()
            .map(|path| root.join(path))
            .find(|path| path.is_file())
            .with_context(|| format!("the packages of {release} have no {name}"))?;
        fs::rename(&from, place.join(name)).with_context(|| format!("cannot move {name}"))?;
    }
    fs::write(place.join("release"), release).context("cannot note the kernel's release")?;
    let modules = place.join("modules");
    fs::create_dir_all(&modules).context("cannot make a directory for modules")?;
    for tree in ["lib/modules", "usr/lib/modules"] {
        collect_modules(&root.join(tree), &modules)?;
    }
    Ok(())
}

/// Puts all of [`MODULES`] that lie anywhere below `tree` into `modules`.
fn collect_modules(tree: &Path, modules: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(tree) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            collect_modules(&path, modules)?;
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Some((stem, packing)) = name.split_once(".ko") else {
            continue;
        };
        if MODULES.contains(&stem) {
            let wanted = modules.join(format!("{stem}.ko"));
            match packing {
                ".xz" => {
                    let file = File::create(&wanted).context("cannot make a module")?;
                    let mut xz = Command::new("xz");
                    process::run(xz.arg("-dc").arg(&path).stdout(Stdio::from(file)))?;
                }
                _ => {
                    fs::copy(&path, &wanted).context("cannot copy a module")?;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let mut names = ["linux-image-6.18.9+deb13-x", "linux-image-6.18.15+deb13-x"];
        names.sort_by(|one, other| by_version(other, one));
        assert_eq!(names[0], "linux-image-6.18.15+deb13-x");
    }

    #[test]
    fn preemption_is_read_from_the_configuration() {
        assert_eq!(
            preemption("# CONFIG_PREEMPT is not set\nCONFIG_PREEMPT_VOLUNTARY=y"),
            "voluntary"
        );
        assert_eq!(preemption("CONFIG_PREEMPT=y"), "full");
        assert_eq!(
            preemption("CONFIG_PREEMPT_LAZY=y\nCONFIG_PREEMPT_DYNAMIC=y"),
            "lazy"
        );
        assert_eq!(preemption("CONFIG_PREEMPT_NONE=y"), "none");
    }
}
