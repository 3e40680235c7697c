//! Files that appear whole or not at all.
//!
//! The bytes go to a file without a name (`O_TMPFILE`), which is then linked
//! into place: killed at any time before that, leaktrace leaves nothing.
//!
//! Linux can't link over a name that exists. So a file that is already there is
//! replaced by a rename, before which the new one has a hidden name: between two
//! system calls, or, on file systems without `O_TMPFILE` (NFS), while it is
//! written. Killed just then, leaktrace leaves that file. It holds a lock on it
//! meanwhile, which ends with the process, so that the next one that replaces a
//! file there can tell and removes it.
//!
//! As root in a directory of others, the last component of a path may be a trap:
//! symbolic links of strangers are refused, and what is no regular file (a pipe
//! of the shell's `>(…)`, `/dev/null`) is written to, never replaced.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{
            ffi::OsStrExt as _,
            fs::{FileTypeExt as _, MetadataExt as _},
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, fchmod, fchown, fcntl_setfl,
        flock, fstat, linkat, open, openat, renameat, unlinkat,
    },
    io::Errno,
    rand::{GetRandomFlags, getrandom},
};

use crate::output::{error::WriteError, owner::Owner, stream};

/// Only the owner reads reports, as with `perf record`: they tell paths and
/// functions of somebody's process.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

const A_DIRECTORY: &str = "this is a directory; name a file in it";

/// Writes `bytes` to `path`; what was there before is replaced at once.
///
/// # Errors
/// When the kernel refuses, or the path leads to something that must not be
/// written to. A pipe that nobody reads any more is no error.
pub fn write(path: &Path, bytes: &[u8], owner: Option<Owner>) -> Result<(), WriteError> {
    match plan(path, owner)? {
        Plan::Replace(path) => {
            let fail = |errno| WriteError::new(&path, errno);
            let Some(name) = path.file_name() else {
                return Err(WriteError::because(&path, A_DIRECTORY));
            };
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = open(parent_of(&path), flags, Mode::empty()).map_err(fail)?;
            write_at(directory.as_fd(), name, bytes, owner).map_err(fail)
        }
        Plan::Into(path, flags) => write_into(&path, flags, bytes)
            .or_else(stream::closed_is_fine)
            .map_err(|errno| match errno {
                // Opening a pipe for writing without a reader.
                Errno::NXIO => WriteError::because(&path, "nobody reads this pipe"),
                _ => WriteError::new(&path, errno),
            }),
    }
}

/// Whether [`write`] could write there now, as far as can be told without leaving
/// anything.
///
/// # Errors
/// Those of [`write`] that are certain.
pub fn check(path: &Path, owner: Option<Owner>) -> Result<(), WriteError> {
    match plan(path, owner)? {
        Plan::Replace(path) => {
            check_directory(parent_of(&path)).map_err(|errno| WriteError::new(&path, errno))
        }
        Plan::Into(..) => Ok(()),
    }
}

/// Whether [`write`] would make a file there, not write into what is there.
pub(super) fn makes_a_file(path: &Path, owner: Option<Owner>) -> bool {
    matches!(plan(path, owner), Ok(Plan::Replace(_)))
}

/// Whether files can be made in a directory; some file systems only tell when
/// one is made.
pub(super) fn check_directory(directory: &Path) -> Result<(), Errno> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    match open(directory, flags, FILE_MODE) {
        Ok(_) | Err(Errno::OPNOTSUPP | Errno::ISDIR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// How a path is to be written.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// As a new file in place of what is there.
    Replace(PathBuf),
    /// Into what is there, opened with these flags besides.
    Into(PathBuf, OFlags),
}

fn plan(path: &Path, owner: Option<Owner>) -> Result<Plan, WriteError> {
    if path.as_os_str().as_bytes().ends_with(b"/") {
        return Err(WriteError::because(path, A_DIRECTORY));
    }
    if is_descriptor(path) {
        // As the shell that opened it meant it, also for `3>>file`.
        return Ok(Plan::Into(path.to_owned(), OFlags::APPEND));
    }
    let Ok(found) = path.symlink_metadata() else {
        return Ok(Plan::Replace(path.to_owned()));
    };
    if !found.is_symlink() {
        return plan_for(path.to_owned(), &found);
    }
    let ours = [0, rustix::process::geteuid().as_raw()];
    let trusted =
        ours.contains(&found.uid()) || owner.is_some_and(|owner| owner.uid.as_raw() == found.uid());
    if !trusted {
        let reason = format!(
            "it is a symbolic link of another user ({}), which is not followed",
            found.uid()
        );
        return Err(WriteError::because(path, reason));
    }
    let resolved = path
        .canonicalize()
        .map_err(|_| WriteError::because(path, "it is a symbolic link that leads nowhere"))?;
    match resolved.symlink_metadata() {
        Ok(found) => plan_for(resolved, &found),
        Err(error) => Err(WriteError::because(path, error.to_string())),
    }
}

fn plan_for(path: PathBuf, found: &std::fs::Metadata) -> Result<Plan, WriteError> {
    let kind = found.file_type();
    if kind.is_dir() {
        return Err(WriteError::because(&path, A_DIRECTORY));
    }
    if kind.is_block_device() || kind.is_socket() {
        return Err(WriteError::because(
            &path,
            "this is neither a file nor a pipe",
        ));
    }
    Ok(if kind.is_file() {
        Plan::Replace(path)
    } else {
        Plan::Into(path, OFlags::NOFOLLOW)
    })
}

/// Whether the path means one of our own descriptors (`/dev/fd/3`).
fn is_descriptor(path: &Path) -> bool {
    ["/dev/fd", "/proc/self/fd", "/proc/thread-self/fd"]
        .iter()
        .any(|directory| path.parent() == Some(Path::new(directory)))
        || path == Path::new("/dev/stdout")
        || path == Path::new("/dev/stderr")
}

fn write_into(path: &Path, flags: OFlags, bytes: &[u8]) -> Result<(), Errno> {
    let flags = flags | OFlags::WRONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = open(path, flags | OFlags::NONBLOCK, Mode::empty())?;
    // What it is may have changed since we looked.
    if FileType::from_raw_mode(fstat(&fd)?.st_mode) == FileType::BlockDevice {
        return Err(Errno::NOTSUP);
    }
    fcntl_setfl(&fd, flags & OFlags::APPEND)?;
    stream::write_all(&fd, bytes)
}

/// Writes `bytes` to the file `name` in `directory`, never following a link.
///
/// # Errors
/// The kernel's.
pub fn write_at(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    bytes: &[u8],
    owner: Option<Owner>,
) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
    match openat(directory, ".", flags, FILE_MODE) {
        Ok(file) => {
            fill(&file, bytes, owner)?;
            put_into_place(&file, directory, name)
        }
        // EISDIR: a kernel that does not know the flag.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            write_hidden(directory, name, bytes, owner)
        }
        Err(errno) => Err(errno),
    }
}

fn fill(file: &OwnedFd, bytes: &[u8], owner: Option<Owner>) -> Result<(), Errno> {
    stream::write_all(file, bytes)?;
    // The umask may have taken more than it should.
    fchmod(file, FILE_MODE)?;
    match owner {
        Some(owner) => give_away(file, owner),
        None => Ok(()),
    }
}

/// Gives a file to its owner, as far as its file system knows owners.
///
/// # Errors
/// The kernel's.
pub fn give_away(file: impl AsFd, owner: Owner) -> Result<(), Errno> {
    match fchown(file, Some(owner.uid), Some(owner.gid)) {
        // vfat and the like, or an identity outside of a user namespace.
        Err(Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP) => Ok(()),
        result => result,
    }
}

/// Links a file without a name to `name`, replacing what is there.
///
/// # Errors
/// The kernel's.
pub fn put_into_place(
    file: &OwnedFd,
    directory: BorrowedFd<'_>,
    name: &OsStr,
) -> Result<(), Errno> {
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    let link = |to: &OsStr| linkat(CWD, &unnamed, directory, to, AtFlags::SYMLINK_FOLLOW);
    match link(name) {
        Err(Errno::EXIST) => {}
        result => return result,
    }
    prepare_to_hide(file, directory);
    let hidden = hidden_name()?;
    link(&hidden)?;
    rename_or_remove(directory, &hidden, name)
}

/// To be called before a file gets a hidden name, or at once after.
fn prepare_to_hide(file: &OwnedFd, directory: BorrowedFd<'_>) {
    // Without locks, files of the dead just stay.
    if flock(file, FlockOperation::NonBlockingLockExclusive).is_ok() {
        let _ = remove_left_behind(directory, YOUNG);
    }
}

/// Age in seconds before which a hidden file may be one that was just made and
/// is not locked yet.
const YOUNG: i64 = 10;

/// Removes hidden files at least `age` seconds old whose writers have died.
fn remove_left_behind(directory: BorrowedFd<'_>, age: i64) -> Result<(), Errno> {
    let entries = openat(
        directory,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    for entry in Dir::read_from(entries)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        let left_behind = || is_left_behind(directory, name, age).unwrap_or(false);
        if is_hidden_name(name) && left_behind() {
            // Another may do the same.
            let _ = unlinkat(directory, name, AtFlags::empty());
        }
    }
    Ok(())
}

/// Whether nobody writes a hidden file any more.
fn is_left_behind(directory: BorrowedFd<'_>, name: &OsStr, age: i64) -> Result<bool, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(directory, name, flags, Mode::empty())?;
    let metadata = fstat(&file)?;
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
    Ok(
        FileType::from_raw_mode(metadata.st_mode) == FileType::RegularFile
            && now.saturating_sub(metadata.st_ctime) >= age
            && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok(),
    )
}

fn rename_or_remove(directory: BorrowedFd<'_>, hidden: &OsStr, name: &OsStr) -> Result<(), Errno> {
    renameat(directory, hidden, directory, name).inspect_err(|_| {
        // The first error is the one to tell.
        _ = unlinkat(directory, hidden, AtFlags::empty());
    })
}

fn write_hidden(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    bytes: &[u8],
    owner: Option<Owner>,
) -> Result<(), Errno> {
    let hidden = hidden_name()?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(directory, &*hidden, flags, FILE_MODE)?;
    prepare_to_hide(&file, directory);
    fill(&file, bytes, owner).inspect_err(|_| {
        _ = unlinkat(directory, &*hidden, AtFlags::empty());
    })?;
    rename_or_remove(directory, &hidden, name)
}

const HIDDEN: (&str, &str) = (".leaktrace-", ".tmp");

fn hidden_name() -> Result<Box<OsStr>, Errno> {
    let mut random = [0; 8];
    getrandom(&mut random[..], GetRandomFlags::empty())?;
    let (prefix, suffix) = HIDDEN;
    let name = format!("{prefix}{:016x}{suffix}", u64::from_ne_bytes(random));
    Ok(OsStr::from_bytes(name.as_bytes()).into())
}

fn is_hidden_name(name: &OsStr) -> bool {
    let (prefix, suffix) = HIDDEN;
    name.as_bytes()
        .strip_prefix(prefix.as_bytes())
        .and_then(|rest| rest.strip_suffix(suffix.as_bytes()))
        .is_some_and(|digits| digits.len() == 16 && digits.iter().all(u8::is_ascii_hexdigit))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt as _, symlink},
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_new_file_is_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.json");
        write(&path, b"whole", None).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
            0o600
        );
        assert_eq!(names(directory.path()), ["a.json"]);
    }

    #[test]
    fn a_file_system_without_unnamed_files_gets_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let fd = fs::File::open(directory.path()).unwrap();
        write_hidden(fd.as_fd(), "a.json".as_ref(), b"first", None).unwrap();
        write_hidden(fd.as_fd(), "a.json".as_ref(), b"second", None).unwrap();
        assert_eq!(
            fs::read(directory.path().join("a.json")).unwrap(),
            b"second"
        );
        assert_eq!(names(directory.path()), ["a.json"]);
        fs::create_dir(directory.path().join("taken")).unwrap();
        write_hidden(fd.as_fd(), "taken".as_ref(), b"third", None).unwrap_err();
        assert_eq!(names(directory.path()).len(), 2, "the hidden file is gone");
    }

    #[test]
    fn what_the_dead_left_behind_is_removed_by_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let made = |name: &str| {
            let file = fs::File::create(at(name)).unwrap();
            file.set_len(5).unwrap();
            OwnedFd::from(file)
        };
        drop(made(".leaktrace-0123456789abcdef.tmp"));
        let alive = made(".leaktrace-fedcba9876543210.tmp");
        drop(made(".leaktrace-mine.tmp"));
        flock(&alive, FlockOperation::LockExclusive).unwrap();
        write(&at("a.json"), b"first", None).unwrap();
        write(&at("a.json"), b"second", None).unwrap();
        assert_eq!(names(directory.path()).len(), 4, "all of them are young");
        let fd = fs::File::open(directory.path()).unwrap();
        remove_left_behind(fd.as_fd(), 0).unwrap();
        let mut left = names(directory.path());
        left.sort();
        assert_eq!(
            left,
            [
                ".leaktrace-fedcba9876543210.tmp",
                ".leaktrace-mine.tmp",
                "a.json"
            ]
        );
        drop(alive);
    }

    #[test]
    fn a_reader_sees_one_version_or_the_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.json");
        let versions = [vec![b'a'; 300_000], vec![b'b'; 100_000]];
        write(&path, &versions[0], None).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut seen = 0;
                while !done.load(Ordering::Relaxed) {
                    let text = fs::read(&path).unwrap();
                    assert!(
                        versions.contains(&text),
                        "{} bytes are half a file",
                        text.len()
                    );
                    seen += 1;
                }
                seen
            });
            for round in 0..400 {
                write(&path, &versions[round % 2], None).unwrap();
            }
            done.store(true, Ordering::Relaxed);
            assert!(reader.join().unwrap() > 0);
        });
        assert_eq!(names(directory.path()), ["a.json"]);
    }

    #[test]
    fn a_link_of_ours_is_followed_and_stays_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let (real, link) = (directory.path().join("real"), directory.path().join("link"));
        fs::write(&real, "old").unwrap();
        symlink(&real, &link).unwrap();
        write(&link, b"new", None).unwrap();
        assert_eq!(fs::read(&real).unwrap(), b"new");
        assert!(link.symlink_metadata().unwrap().is_symlink());
        fs::remove_file(&real).unwrap();
        assert!(
            write(&link, b"new", None)
                .unwrap_err()
                .reason
                .contains("a symbolic link that leads nowhere")
        );
    }

    #[test]
    fn a_strangers_link_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (real, link) = (directory.path().join("real"), directory.path().join("link"));
        fs::write(&real, "old").unwrap();
        symlink(&real, &link).unwrap();
        if std::os::unix::fs::lchown(&link, Some(12345), Some(12345)).is_err() {
            // Only root can make somebody else's link; the rule for it is the
            // same for everybody.
            assert_ne!(rustix::process::geteuid().as_raw(), 0);
            return;
        }
        let error = write(&link, b"new", None).unwrap_err();
        assert!(
            error
                .reason
                .contains("symbolic link of another user (12345)"),
            "{error}"
        );
        assert_eq!(fs::read(&real).unwrap(), b"old");
        let owner = Owner {
            uid: rustix::process::Uid::from_raw(12345),
            gid: rustix::process::Gid::from_raw(12345),
        };
        write(&link, b"new", Some(owner)).unwrap();
        assert_eq!(fs::metadata(&real).unwrap().uid(), 12345);
    }

    #[test]
    fn devices_and_pipes_are_written_to_and_never_replaced() {
        write(Path::new("/dev/null"), b"x", None).unwrap();
        assert!(
            fs::metadata("/dev/null")
                .unwrap()
                .file_type()
                .is_char_device()
        );
        let error = write(Path::new("/dev/full"), b"x", None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot write /dev/full: No space left on device; free some space, or name another \
             place with -o"
        );
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        rustix::fs::mkfifoat(CWD, &pipe, FILE_MODE).unwrap();
        let error = write(&pipe, b"x", None).unwrap_err();
        assert!(error.reason.contains("nobody reads this pipe"), "{error}");
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs::read(pipe).unwrap()
        });
        while write(&pipe, b"through", None).is_err() {}
        assert_eq!(reader.join().unwrap(), b"through");
        assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    }

    #[test]
    fn a_path_that_cannot_be_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let said = |path: &Path| write(path, b"x", None).unwrap_err().reason;
        assert_eq!(said(directory.path()), A_DIRECTORY);
        assert_eq!(said(&directory.path().join("new/")), A_DIRECTORY);
        assert_eq!(
            said(&directory.path().join("missing/a.json")),
            "No such file or directory; make its directory first"
        );
        fs::write(directory.path().join("file"), "").unwrap();
        assert_eq!(
            said(&directory.path().join("file/a.json")),
            "Not a directory"
        );
    }
}
