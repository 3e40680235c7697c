//! The directory for the outputs when no place was named.

use std::{
    ffi::OsStr,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, fstat, mkdir, open},
    io::Errno,
};

use crate::output::{atomic, error::WriteError, owner::Owner};

const DIRECTORY_MODE: Mode = Mode::RWXU;
/// Names that are tried when the first is taken.
const ATTEMPTS: u32 = 20;
/// Longest part of the process's name in that of the directory.
const NAME_LENGTH: usize = 32;

/// A new directory for one session's outputs, made when the first is written.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    made: Option<OwnedFd>,
}

impl Directory {
    /// `leaktrace-NAME-PID-TIME` in `parent`, as `leaktrace-orderd-4242-20261121T031407`.
    #[must_use]
    pub fn of_process(parent: &Path, name: &str, pid: u32, time: &jiff::Zoned) -> Self {
        let time = time.strftime("%Y%m%dT%H%M%S");
        let path = parent.join(format!("leaktrace-{}-{pid}-{time}", harmless(name)));
        Self { path, made: None }
    }

    /// Its path. Until it is made another name may yet be chosen, when this one
    /// turns out to be taken.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is there.
    #[must_use]
    pub fn is_made(&self) -> bool {
        self.made.is_some()
    }

    /// Writes a file into it, whole or not at all.
    ///
    /// # Errors
    /// When it can't be made, or the file can't be written.
    pub fn write(
        &mut self,
        name: &str,
        bytes: &[u8],
        owner: Option<Owner>,
    ) -> Result<(), WriteError> {
        let made = match self.made.take() {
            Some(made) => made,
            None => self
                .make(owner)
                .map_err(|errno| WriteError::new(&self.path, errno))?,
        };
        let made = self.made.insert(made);
        atomic::write_at(made.as_fd(), OsStr::new(name), bytes, owner)
            .map_err(|errno| WriteError::new(&self.path.join(name), errno))
    }

    /// Makes it, under a name that nobody has used, so that nobody else's
    /// directory or link is ever written into.
    fn make(&mut self, owner: Option<Owner>) -> Result<OwnedFd, Errno> {
        let wanted = self.path.clone();
        for attempt in 1..=ATTEMPTS {
            match mkdir(&self.path, DIRECTORY_MODE) {
                Ok(()) => return enter(&self.path, owner),
                Err(Errno::EXIST) => {
                    let mut other = wanted.clone().into_os_string();
                    other.push(format!("-{}", attempt + 1));
                    self.path = other.into();
                }
                Err(errno) => {
                    self.path = wanted;
                    return Err(errno);
                }
            }
        }
        self.path = wanted;
        Err(Errno::EXIST)
    }
}

/// Opens the directory just made; in a directory of others it might already be
/// another one.
fn enter(path: &Path, owner: Option<Owner>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = open(path, flags, Mode::empty())?;
    if fstat(&made)?.st_uid != rustix::process::geteuid().as_raw() {
        return Err(Errno::ACCESS);
    }
    if let Some(owner) = owner {
        atomic::give_away(&made, owner)?;
    }
    Ok(made)
}

/// A command name as part of a file name: what is not a letter, digit, `.`,
/// `_` or `-` becomes `_`.
fn harmless(name: &str) -> String {
    let harmless: String = name
        .chars()
        .take(NAME_LENGTH)
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    if harmless.is_empty() {
        "process".to_owned()
    } else {
        harmless
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn directory(parent: &Path, name: &str) -> Directory {
        let time = "2026-11-21T03:14:07+01:00[+01:00]".parse().unwrap();
        Directory::of_process(parent, name, 4242, &time)
    }

    #[test]
    fn its_name_tells_process_and_time_and_holds_no_slash() {
        let shown = |name| directory(Path::new(""), name).path().display().to_string();
        assert_eq!(shown("orderd"), "leaktrace-orderd-4242-20261121T031407");
        assert_eq!(
            shown("../x y\u{1b}"),
            "leaktrace-.._x_y_-4242-20261121T031407"
        );
        assert_eq!(shown(""), "leaktrace-process-4242-20261121T031407");
    }

    #[test]
    fn it_is_made_only_when_written_to_and_only_for_its_owner() {
        let parent = tempfile::tempdir().unwrap();
        let mut new = directory(parent.path(), "orderd");
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
        new.write("a.json", b"1", None).unwrap();
        new.write("a.json", b"2", None).unwrap();
        let mode = fs::metadata(new.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
        assert_eq!(fs::read(new.path().join("a.json")).unwrap(), b"2");
        assert_eq!(fs::read_dir(new.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_planted_link_is_not_followed() {
        let parent = tempfile::tempdir().unwrap();
        let victim = parent.path().join("victim");
        fs::create_dir(&victim).unwrap();
        let mut new = directory(parent.path(), "orderd");
        std::os::unix::fs::symlink(&victim, new.path()).unwrap();
        new.write("a.json", b"1", None).unwrap();
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
        assert!(
            new.path()
                .ends_with("leaktrace-orderd-4242-20261121T031407-2")
        );
        assert!(new.path().join("a.json").exists());
    }

    #[test]
    fn a_missing_parent_is_told_with_the_path() {
        let mut new = directory(Path::new("/nonexistent"), "orderd");
        assert_eq!(
            new.write("a.json", b"1", None).unwrap_err().to_string(),
            "cannot write /nonexistent/leaktrace-orderd-4242-20261121T031407: No such file or \
             directory; make its directory first"
        );
    }
}
