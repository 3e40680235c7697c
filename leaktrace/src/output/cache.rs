//! leaktrace's own directory for what can be made or fetched again.
//!
//! It belongs to whoever runs leaktrace and to nobody else: as root behind sudo
//! it is root's own, never the user's, who could change what is in it.

use std::{
    env,
    ffi::OsString,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, Mode, OFlags, Stat, fstat, mkdirat, openat};

/// Why there is no such directory.
#[derive(Debug, thiserror::Error)]
#[error("nothing can be kept in {}: {reason}", path.display())]
pub struct NoCache {
    /// Where it would be.
    pub path: PathBuf,
    /// Why.
    pub reason: io::Error,
}

/// That of who runs this: in `$XDG_CACHE_HOME`, else in `~/.cache`; root's, when
/// neither is root's own, in `/var/cache`.
///
/// # Errors
/// Why there is none.
pub fn open() -> Result<OwnedFd, NoCache> {
    let is_root = rustix::process::geteuid().is_root();
    let mut refusal = None;
    for place in places(env::var_os("XDG_CACHE_HOME"), env::var_os("HOME"), is_root) {
        match open_in(&place) {
            Ok(directory) => return Ok(directory),
            Err(reason) => {
                refusal = refusal.or(Some(NoCache {
                    path: place,
                    reason,
                }));
            }
        }
    }
    Err(refusal.unwrap_or_else(|| NoCache {
        path: "~/.cache".into(),
        reason: io::Error::new(io::ErrorKind::NotFound, "$HOME is not set"),
    }))
}

/// The directory `leaktrace` in another, which is made if its parent is there.
///
/// # Errors
/// The kernel's; `PermissionDenied` when a directory is somebody else's.
pub fn open_in(place: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    if let (Some(parent), Some(name)) = (place.parent(), place.file_name())
        && let Ok(parent) = openat(CWD, parent, flags, Mode::empty())
        && is_ours(&fstat(&parent)?)
    {
        // It may be there.
        _ = mkdirat(&parent, name, Mode::RWXU);
    }
    let place = openat(CWD, place, flags, Mode::empty())?;
    if !is_ours(&fstat(&place)?) {
        return Err(refused("it belongs to another user"));
    }
    open_below(&place, "leaktrace")
}

/// A directory in one of ours, made if it is not there.
///
/// # Errors
/// The kernel's; `PermissionDenied` when others may change what is in it.
pub fn open_below(place: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    _ = mkdirat(place, name, Mode::RWXU);
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let directory = openat(place, name, flags, Mode::empty())?;
    let found = fstat(&directory)?;
    let others = Mode::WGRP | Mode::WOTH;
    if !is_ours(&found) || Mode::from_raw_mode(found.st_mode).intersects(others) {
        return Err(refused("others may write to leaktrace's directory in it"));
    }
    Ok(directory)
}

/// Where it may be, the best place first.
fn places(cache_home: Option<OsString>, home: Option<OsString>, is_root: bool) -> Vec<PathBuf> {
    let home = home.map(|home| Path::new(&home).join(".cache"));
    let places = [
        cache_home.map(PathBuf::from),
        home,
        is_root.then(|| "/var/cache".into()),
    ];
    // Relative paths are to be ignored, says the XDG Base Directory
    // Specification.
    let usable = places.into_iter().flatten();
    usable.filter(|place| place.is_absolute()).collect()
}

/// Whether something belongs to who runs this.
#[must_use]
pub fn is_ours(found: &Stat) -> bool {
    found.st_uid == rustix::process::geteuid().as_raw()
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt as _, symlink},
    };

    use super::*;

    #[test]
    fn a_directory_that_others_may_change_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().join("leaktrace");
        drop(open_in(directory.path()).unwrap());
        assert_eq!(
            fs::metadata(&own).unwrap().permissions().mode() & 0o7777,
            0o700
        );
        let refused = || open_in(directory.path()).err().map(|error| error.kind());
        fs::set_permissions(&own, fs::Permissions::from_mode(0o770)).unwrap();
        assert_eq!(refused(), Some(io::ErrorKind::PermissionDenied));
        fs::remove_dir(&own).unwrap();
        symlink("/tmp", &own).unwrap();
        assert!(refused().is_some());
        fs::remove_file(&own).unwrap();
        if std::os::unix::fs::chown(directory.path(), Some(12345), None).is_ok() {
            assert_eq!(refused(), Some(io::ErrorKind::PermissionDenied));
            assert!(!own.exists());
        }
    }

    #[test]
    fn a_missing_cache_directory_is_made_but_not_its_parents() {
        let directory = tempfile::tempdir().unwrap();
        open_in(&directory.path().join(".cache")).unwrap();
        assert!(directory.path().join(".cache/leaktrace").is_dir());
        let missing = open_in(&directory.path().join("a/b"));
        assert_eq!(missing.err().unwrap().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_place_follows_the_environment() {
        let place = |cache: Option<&str>, home: Option<&str>, is_root| {
            places(cache.map(OsString::from), home.map(OsString::from), is_root)
        };
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(
            place(Some("/x"), Some("/home/u"), false),
            paths(&["/x", "/home/u/.cache"])
        );
        assert_eq!(
            place(Some("x"), Some("/home/u"), false),
            paths(&["/home/u/.cache"])
        );
        assert_eq!(
            place(None, Some("/root"), true),
            paths(&["/root/.cache", "/var/cache"])
        );
        assert_eq!(place(Some(""), None, false), paths(&[]));
    }
}
