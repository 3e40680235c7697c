//! Packages of another suite of Debian's than the one in use, fetched without
//! being installed. apt does that with directories and a source list of its
//! own: nothing of the system's configuration changes and no root is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{packages, process};

/// An archive's suite whose index was read.
pub struct Suite {
    name: String,
    apt: PrivateApt,
}

/// What asking for a suite came to.
pub enum Opened {
    /// Its index is there.
    Suite(Suite),
    /// The archive has it no more, or there is no archive, and why that is believed.
    NotOffered(String),
}

/// What asking for packages came to.
pub enum Fetched {
    /// The package files, in the directory that was given.
    Packages(Vec<PathBuf>),
    /// They are offered nowhere (any more), and why that is believed.
    NotOffered(String),
}

/// Fetches packages, each named as apt wants it (`name` or `name=version`),
/// from a suite of the Debian archive that this machine uses. `dir` is made and
/// holds apt's files as well; the caller removes it when all is unpacked.
///
/// # Errors
/// They are offered but cannot be fetched.
pub fn fetch(suite: &str, names: &[&str], dir: &Path) -> Result<Fetched> {
    match Suite::open(suite, dir)? {
        Opened::Suite(suite) => suite.download(names),
        Opened::NotOffered(reason) => Ok(Fetched::NotOffered(reason)),
    }
}

impl Suite {
    /// Reads the index of a suite of the Debian archive that this machine uses.
    /// `dir` is made and holds apt's files, and later the packages.
    ///
    /// # Errors
    /// The archive has the suite, but its index cannot be read.
    pub fn open(name: &str, dir: &Path) -> Result<Opened> {
        if !process::exists("apt-get") || !process::exists("dpkg") {
            let reason = "this machine has no apt-get".to_owned();
            return Ok(Opened::NotOffered(reason));
        }
        let apt = PrivateApt::new(dir)?;
        if let Some(reason) = apt.update(name)? {
            return Ok(Opened::NotOffered(reason));
        }
        let name = name.to_owned();
        Ok(Opened::Suite(Self { name, apt }))
    }

    /// Names of its packages that begin with `prefix`, in no order.
    ///
    /// # Errors
    /// apt-cache fails.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let mut command = self.apt.command("apt-cache", &["pkgnames", prefix]);
        Ok(process::text(&mut command)?
            .lines()
            .map(str::to_owned)
            .collect())
    }

    /// Names of the packages in this suite that `package` depends on; none when
    /// the suite has no such package.
    ///
    /// # Errors
    /// apt-cache cannot be started.
    pub fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let depends = process::output(&mut self.apt.command("apt-cache", &["depends", package]))?;
        Ok(dependencies(&String::from_utf8_lossy(&depends.stdout)))
    }

    /// Fetches packages, each named as apt wants it (`name` or `name=version`).
    /// Those that an earlier call fetched are gone afterwards.
    ///
    /// # Errors
    /// They are offered but cannot be fetched.
    pub fn download(&self, names: &[&str]) -> Result<Fetched> {
        let list = names.join(", ");
        process::say(&format!("fetching {list} from {}", self.name));
        Ok(match self.apt.download(names)? {
            Some(packages) => Fetched::Packages(packages),
            None => Fetched::NotOffered(format!("{} no longer has {list}", self.name)),
        })
    }
}

/// Reads what `apt-cache depends` prints; names in angle brackets are of packages
/// that the suite does not have.
fn dependencies(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| {
            line.trim_start_matches([' ', '|'])
                .strip_prefix("Depends: ")
        })
        .filter(|name| !name.starts_with('<'))
        .map(str::to_owned)
        .collect()
}

/// Unpacks a package below `root`.
///
/// # Errors
/// dpkg fails.
pub fn unpack(package: &Path, root: &Path) -> Result<()> {
    process::run(Command::new("dpkg").arg("-x").arg(package).arg(root))
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

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
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
    fn update(&self, suite: &str) -> Result<Option<String>> {
        let Some(archive) = archive_address()? else {
            return Ok(Some("apt here has no archive of Debian's".to_owned()));
        };
        let mut failure = String::new();
        for attempt in 0..2 {
            let list = format!(
                "deb [signed-by={}] {archive} {suite} main\n",
                keyring()?.display()
            );
            fs::write(self.dir.join("sources.list"), list).context("cannot write sources.list")?;
            let update = process::output(&mut self.command("apt-get", &["update"]))?;
            if update.status.success() {
                return Ok(None);
            }
            failure = String::from_utf8_lossy(&update.stderr).trim().to_owned();
            let all = format!("{failure}{}", String::from_utf8_lossy(&update.stdout));
            if all.contains("404") {
                return Ok(Some(format!("the archive has no {suite} any more")));
            }
            if attempt > 0 || !all.contains("NO_PUBKEY") {
                break;
            }
            packages::install(&["debian-archive-keyring"], "the keys of Debian's archive")?;
        }
        bail!("cannot read the index of {suite}: {failure}")
    }

    /// Downloads the packages; `None` when the suite has no such versions.
    fn download(&self, names: &[&str]) -> Result<Option<Vec<PathBuf>>> {
        // What an earlier run left may be of another version.
        for package in self.package_files()? {
            fs::remove_file(&package)
                .with_context(|| format!("cannot remove {}", package.display()))?;
        }
        let mut download = self.command("apt-get", &["download"]);
        let download = process::output(download.args(names))?;
        let list = names.join(", ");
        if !download.status.success() {
            let failure = String::from_utf8_lossy(&download.stderr);
            // "Version '…' for 'rust-src' was not found", "Unable to locate package"
            if failure.contains("was not found") || failure.contains("Unable to locate") {
                return Ok(None);
            }
            bail!("cannot download {list}: {}", failure.trim());
        }
        let packages = self.package_files()?;
        if packages.len() != names.len() {
            bail!(
                "apt-get downloaded {list} but left {} packages",
                packages.len()
            );
        }
        Ok(Some(packages))
    }

    fn package_files(&self) -> Result<Vec<PathBuf>> {
        let mut packages = Vec::new();
        for entry in fs::read_dir(&self.dir).context("cannot read apt's directory")? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                packages.push(path);
            }
        }
        Ok(packages)
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

    #[test]
    fn dependencies_that_the_suite_lacks_are_left_out() {
        let text = "linux-image-1-cloud\n  PreDepends: linux-base\n |Depends: <dracut>\n  \
                    Depends: linux-binary-1-cloud\n  Breaks: <fwupdate>\n |Depends: kmod\n";
        assert_eq!(dependencies(text), ["linux-binary-1-cloud", "kmod"]);
    }
}
