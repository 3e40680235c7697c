//! The file system that guests have in common: leaktrace, the tests, the
//! fixtures, and the libraries that they need.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::suites;
use crate::tests::{binaries, build_fixtures, build_release, install_compilers};
use crate::{process, project, toolchain};

/// Where the guest finds the tests.
pub const TESTS: &str = "/tests";
/// Where the guest finds the fixtures.
pub const FIXTURES: &str = "/fixtures";
/// Where the guest finds leaktrace.
pub const LEAKTRACE: &str = "/usr/bin/leaktrace";

/// What lies among the fixtures and is not for guests.
const LEFT_OUT: [&str; 2] = ["go-cache", "builds"];

/// The loader of programs that are linked with musl, which ldd does not name.
const MUSL: &str = "/lib/ld-musl-x86_64.so.1";

/// Programs that tests start by name.
const APPLETS: [&str; 8] = [
    "sh", "true", "false", "sleep", "cat", "env", "chroot", "uname",
];

/// busybox, where it is one that needs no libraries.
pub fn busybox() -> Option<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.is_file() && libraries(path).is_empty())
}

/// Builds all that runs in guests and makes the image of it, in `dir`.
///
/// # Errors
/// Something does not build, or the image can't be made.
pub fn build(dir: &Path) -> Result<PathBuf> {
    install_compilers();
    process::say("building the release binary, the tests and their fixtures");
    let leaktrace = build_release()?;
    let programs = binaries::build()?;
    build_fixtures("guest")?;
    process::run(
        toolchain::cargo()
            .current_dir(project::root())
            .args([
                "build",
                "--quiet",
                "--locked",
                "--package",
                "leaktrace-tests",
            ])
            .args(["--bin", "guest"]),
    )?;

    let root = Root::new(dir.join("root"))?;
    root.add(&leaktrace, LEAKTRACE)?;
    root.add_stripped(
        &project::target_dir().join("debug/guest"),
        &format!("{TESTS}/guest"),
    )?;
    for name in suites::programs() {
        let program = programs
            .iter()
            .find(|program| program.needs_root && program.name == format!("{name} (test)"))
            .with_context(|| format!("no test program is called {name}"))?;
        root.add_stripped(&program.path, &format!("{TESTS}/{name}"))?;
    }
    root.add_fixtures(&project::target_dir().join("fixtures"), FIXTURES)?;
    root.add_system()?;
    let image = dir.join("root.ext4");
    root.pack(&image)?;
    Ok(image)
}

/// A directory that becomes a file system.
struct Root(PathBuf);

impl Root {
    fn new(path: PathBuf) -> Result<Self> {
        if path.exists() {
            fs::remove_dir_all(&path)
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(Self(path))
    }

    /// The place of the guest's `path` here; its directory is made.
    fn place(&self, path: &str) -> Result<PathBuf> {
        let place = self.0.join(path.trim_start_matches('/'));
        let parent = place.parent().context("a path without a directory")?;
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
        Ok(place)
    }

    fn copy(&self, from: &Path, path: &str) -> Result<PathBuf> {
        let place = self.place(path)?;
        fs::copy(from, &place)
            .with_context(|| format!("cannot copy {} to the guests", from.display()))?;
        Ok(place)
    }

    /// Adds a program and the libraries that it needs.
    fn add(&self, program: &Path, path: &str) -> Result<PathBuf> {
        for library in libraries(program) {
            if library.parent() == program.parent() {
                continue;
            }
            let name = library.display().to_string();
            if !self.place(&name)?.exists() {
                self.copy(&library, &name)?;
            }
        }
        self.copy(program, path)
    }

    /// Adds a program without what only a debugger reads, which is most of it.
    fn add_stripped(&self, program: &Path, path: &str) -> Result<()> {
        let place = self.add(program, path)?;
        process::run(Command::new("strip").arg("--strip-debug").arg(place))
    }

    /// Adds every fixture that was built, with the libraries beside it.
    fn add_fixtures(&self, dir: &Path, to: &str) -> Result<()> {
        let entries =
            fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let place = format!("{to}/{name}");
            if path.is_file() {
                self.add(&path, &place)?;
            } else if !LEFT_OUT.contains(&&*name) {
                self.add_fixtures(&path, &place)?;
            }
        }
        Ok(())
    }

    /// Adds what else tests take for granted.
    fn add_system(&self) -> Result<()> {
        let busybox = busybox().context("busybox-static has no static busybox")?;
        self.copy(&busybox, "/bin/busybox")?;
        for applet in APPLETS {
            symlink("busybox", self.place(&format!("/bin/{applet}"))?)
                .with_context(|| format!("cannot make the guests' {applet}"))?;
        }
        if Path::new(MUSL).is_file() {
            self.copy(Path::new(MUSL), MUSL)?;
        }
        for dir in ["proc", "sys", "dev", "tmp", "run", "root"] {
            self.place(&format!("/{dir}/x"))?;
        }
        fs::write(
            self.place("/etc/passwd")?,
            "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
        )
        .context("cannot write the guests' users")
    }

    /// Makes the file system, and removes the directory.
    fn pack(self, image: &Path) -> Result<()> {
        // The unit of mke2fs is a block; it leaves room for what it writes itself.
        let size = process::text(Command::new("du").arg("-sm").arg(&self.0))?;
        let size: u64 = size
            .split_whitespace()
            .next()
            .and_then(|number| number.parse().ok())
            .context("du prints no number")?;
        if image.exists() {
            fs::remove_file(image).with_context(|| format!("cannot remove {}", image.display()))?;
        }
        let mut mke2fs = Command::new("mke2fs");
        mke2fs
            .args([
                "-q",
                "-t",
                "ext4",
                "-O",
                "^has_journal",
                "-E",
                "root_owner=0:0",
                "-d",
            ])
            .arg(&self.0)
            .arg(image)
            .arg(format!("{}M", size + size / 4 + 16));
        process::run(mke2fs.stdout(std::process::Stdio::null()))?;
        fs::remove_dir_all(&self.0).with_context(|| format!("cannot remove {}", self.0.display()))
    }
}

/// The files that the dynamic loader would load for a program, itself among them;
/// none when it needs none.
fn libraries(program: &Path) -> BTreeSet<PathBuf> {
    let listed = process::text(Command::new("ldd").arg(program)).unwrap_or_default();
    paths(&listed)
}

/// Reads what ldd prints: `libc.so.6 => /lib/libc.so.6 (0x7f…)`, `/lib64/ld.so (0x…)`.
fn paths(listed: &str) -> BTreeSet<PathBuf> {
    listed
        .lines()
        .filter_map(|line| {
            let path = line.rsplit_once(" (")?.0;
            let path = path
                .rsplit_once("=> ")
                .map_or(path, |(_, path)| path)
                .trim();
            path.starts_with('/').then(|| path.into())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_from_what_ldd_prints() {
        let listed = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                      \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let paths: Vec<_> = paths(listed).into_iter().collect();
        assert_eq!(
            paths,
            [
                PathBuf::from("/lib/x86_64-linux-gnu/libc.so.6"),
                PathBuf::from("/lib64/ld-linux-x86-64.so.2")
            ]
        );
        assert!(super::paths("\tnot a dynamic executable\n").is_empty());
    }
}
