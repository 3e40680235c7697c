//! The source of Rust's `core`, which has to be compiled for the BPF target.
//!
//! It is taken from the toolchain when rustup's `rust-src` is there, else from
//! Debian's package of the same release, which a later suite offers as a
//! backport. apt fetches that with directories and a source list of its own:
//! nothing of the system's configuration changes and no root is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::toolchain::RUST_VERSION;
use crate::{packages, process, project, toolchain};

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
    if !process::exists("apt-get") || !process::exists("dpkg") {
        return Ok(RustSrc::NotOffered(
            "this machine has no apt-get, and the toolchain has no rust-src \
             (`rustup component add rust-src` adds it)"
                .to_owned(),
        ));
    }
    let apt = PrivateApt::new(&cache.join("apt"))?;
    if let Some(reason) = apt.update()? {
        return Ok(RustSrc::NotOffered(reason));
    }
    process::say(&format!("fetching {PACKAGE} from {SUITE} (45 MB)"));
    let Some(package) = apt.download()? else {
        return Ok(RustSrc::NotOffered(format!(
            "{SUITE} no longer has {PACKAGE}"
        )));
    };
    unpack(&package, &library)?;
    fs::remove_dir_all(&apt.dir).with_context(|| format!("cannot remove {}", apt.dir.display()))?;
    Ok(RustSrc::Library(library))
}

/// Unpacks beside the wanted place and moves there what is needed, so that a
/// half-unpacked tree is never taken for a whole one.
fn unpack(package: &Path, library: &Path) -> Result<()> {
    let place = library.parent().context("the source has no directory")?;
    let partial = place.with_extension(format!("partial-{}", std::process::id()));
    process::run(Command::new("dpkg").arg("-x").arg(package).arg(&partial))?;
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

/// apt with every directory of its own.
struct PrivateApt {
    dir: PathBuf,
}

impl PrivateApt {
    fn new(dir: &Path) -> Result<Self> {
        for sub in ["lists/partial", "cache/archives/partial"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path)
                .with_context(|| format!("cannot create {}", path.display()))?;
        }
        fs::write(dir.join("status"), "").context("cannot write apt's status file")?;
        Ok(Self { dir: dir.into() })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("apt-get");
        command.current_dir(&self.dir).env("LC_ALL", "C").arg("-q");
        let dirs = [
            ("Dir::Etc::sourcelist", "sources.list"),
            ("Dir::Etc::sourceparts", "/dev/null"),
            ("Dir::State::lists", "lists"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
        ];
        for (option, sub) in dirs {
            let value = self.dir.join(sub);
            command
                .arg("-o")
                .arg(format!("{option}={}", value.display()));
        }
        let settings = [
            "APT::Sandbox::User=root",
            "APT::Update::Error-Mode=any",
            "Acquire::Languages=none",
            "Acquire::Retries=3",
            "Debug::NoLocking=true",
        ];
        for setting in settings {
            command.args(["-o", setting]);
        }
        command.args(arguments);
        command
    }

    /// Reads the suite's index; the reason when the archive has no such suite.
    fn update(&self) -> Result<Option<String>> {
        let Some(archive) = archive_address()? else {
            return Ok(Some("apt here has no archive of Debian's".to_owned()));
        };
        let mut failure = String::new();
        for attempt in 0..2 {
            let list = format!(
                "deb [signed-by={}] {archive} {SUITE} main\n",
                keyring()?.display()
            );
            fs::write(self.dir.join("sources.list"), list).context("cannot write sources.list")?;
            let update = process::output(&mut self.command(&["update"]))?;
            if update.status.success() {
                return Ok(None);
            }
            failure = String::from_utf8_lossy(&update.stderr).trim().to_owned();
            let all = format!("{failure}{}", String::from_utf8_lossy(&update.stdout));
            if all.contains("404") {
                return Ok(Some(format!("the archive has no {SUITE} any more")));
            }
            if attempt > 0 || !all.contains("NO_PUBKEY") {
                break;
            }
            packages::install(&["debian-archive-keyring"], "the keys of Debian's archive")?;
        }
        bail!("cannot read the index of {SUITE}, which has rust-src: {failure}")
    }

    /// Downloads the package; `None` when the suite has no such version.
    fn download(&self) -> Result<Option<PathBuf>> {
        let download = process::output(&mut self.command(&["download", PACKAGE]))?;
        if !download.status.success() {
            let failure = String::from_utf8_lossy(&download.stderr);
            // "Version '…' for 'rust-src' was not found", "Unable to locate package"
            if failure.contains("was not found") || failure.contains("Unable to locate") {
                return Ok(None);
            }
            bail!("cannot download {PACKAGE}: {}", failure.trim());
        }
        for entry in fs::read_dir(&self.dir).context("cannot read apt's directory")? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                return Ok(Some(path));
            }
        }
        bail!("apt-get downloaded {PACKAGE} but left no package");
    }
}

/// The address of the Debian archive that this machine already uses.
fn archive_address() -> Result<Option<String>> {
    let format = "$(ORIGIN) $(RELEASE) $(REPO_URI)";
    let list = || process::text(Command::new("apt-get").args(["indextargets", "--format", format]));
    let mut targets = list()?;
    if targets.is_empty() {
        // A fresh image has never read its indexes, and then none are listed.
        process::run(packages::as_root("apt-get").args(["-qq", "update"]))?;
        targets = list()?;
    }
    Ok(debian_address(&targets))
}

/// Picks the main archive from lines of `origin release address`.
fn debian_address(targets: &str) -> Option<String> {
    targets.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (origin, release, address) = (words.next()?, words.next()?, words.next()?);
        let is_main = origin == "Debian" && !release.contains('-');
        is_main.then(|| address.to_owned())
    })
}

/// The keys that sign Debian's archive, installed when missing.
fn keyring() -> Result<PathBuf> {
    let find = || {
        ["gpg", "pgp"]
            .map(|kind| PathBuf::from(format!("/usr/share/keyrings/debian-archive-keyring.{kind}")))
            .into_iter()
            .find(|path| path.is_file())
    };
    if let Some(path) = find() {
        return Ok(path);
    }
    packages::install(&["debian-archive-keyring"], "the keys of Debian's archive")?;
    find().context("debian-archive-keyring has no keyring in /usr/share/keyrings")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_main_archive_is_told_from_security_updates_and_other_origins() {
        let targets = "Debian bookworm-security http://one/debian-security/\n\
                       NodeSource nodistro http://two/\n\
                       Debian bookworm http://three/debian/\n\
                       Debian bookworm-updates http://three/debian/";
        assert_eq!(
            debian_address(targets).as_deref(),
            Some("http://three/debian/")
        );
        assert_eq!(debian_address("Ubuntu noble http://four/ubuntu/"), None);
        assert_eq!(debian_address(""), None);
    }
}
