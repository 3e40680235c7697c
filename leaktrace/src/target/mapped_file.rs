//! The files behind a process's executable mappings, opened while they can be
//! and kept open: symbols are read and probes set through these descriptors,
//! also when the file is deleted, replaced, or in another mount namespace.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use memmap2::Mmap;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::{
    Process,
    mapping::{Device, Mapping, ShownFile},
};
use crate::file_map;

/// One opened file that a process maps for execution.
#[derive(Debug)]
pub struct MappedFile {
    file: File,
    path: PathBuf,
    shown: ShownFile,
    identity: FileIdentity,
    deleted: bool,
}

/// Device and inode of an open file by `stat`: no two files that are open have the
/// same, whatever their mappings show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity(u64, u64);

/// A file that could not be opened: its code has no symbols and no probes.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot open {path}, which {pid} maps for execution: {source}; its symbols will be missing"
)]
pub struct OpenProblem {
    /// The file, in the target's mount namespace.
    pub path: PathBuf,
    /// The process.
    pub pid: u32,
    /// Why.
    pub source: io::Error,
}

impl MappedFile {
    /// Opens a file of leaktrace's own mount namespace that nothing may map
    /// yet. Device and inode are those of `stat`, which on btrfs and overlayfs
    /// are not what a mapping of it will show, so that [`Self::backs`] may be
    /// false there.
    ///
    /// # Errors
    /// Those of opening; `InvalidInput` when it is no regular file.
    pub fn open_path(path: &Path) -> io::Result<Self> {
        let found = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let metadata = File::from(found.try_clone()?).metadata()?;
        let file = reopen_regular(&found, &metadata)?;
        let real_path = fs::read_link(descriptor_path(&file));
        Ok(Self {
            file,
            path: path.to_path_buf(),
            shown: ShownFile {
                device: device_of(&metadata),
                inode: metadata.ino(),
                path: real_path.unwrap_or_else(|_| path.to_path_buf()),
            },
            identity: identity_of(&metadata),
            deleted: false,
        })
    }

    /// Opens the file behind a mapping that the process has, or had: by that
    /// mapping if it is still there, otherwise by its path, below `root` when
    /// the process has ended: its root directory, opened before.
    ///
    /// # Errors
    /// Those of opening; `NotFound` when another file is at its path now.
    pub fn open_mapping(
        process: &Process,
        root: Option<BorrowedFd<'_>>,
        mapping: &Mapping,
    ) -> io::Result<Self> {
        let opened = open_map_file(process, mapping).and_then(|file| {
            // Another file may have been mapped there since.
            let is_same = file.metadata()?.ino() == mapping.inode;
            is_same.then_some(file).ok_or_else(replaced)
        });
        let file =
            opened.or_else(|error| open_by_path(process, root, mapping).map_err(|_| error))?;
        Self::new(file, mapping)
    }

    fn new(file: File, mapping: &Mapping) -> io::Result<Self> {
        Ok(Self {
            identity: identity_of(&file.metadata()?),
            file,
            path: mapping.path.clone(),
            shown: mapping.shown_file(),
            deleted: mapping.deleted,
        })
    }

    /// The file, to be read at explicit offsets: its position is shared.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its path in the target's mount namespace when it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path that leads leaktrace to exactly this file while `self` exists:
    /// for the kernel's probes and for libraries that take paths.
    #[must_use]
    pub fn descriptor_path(&self) -> PathBuf {
        descriptor_path(&self.file)
    }

    /// What mappings of it show; as far as can be told, when nothing maps it yet.
    #[must_use]
    pub fn shown(&self) -> &ShownFile {
        &self.shown
    }

    /// Which file this is.
    #[must_use]
    pub fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// Its path leads to another file now, or nowhere.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        self.deleted
    }

    /// Whether this is the file behind a mapping.
    #[must_use]
    pub fn backs(&self, mapping: &Mapping) -> bool {
        (self.shown.device, self.shown.inode) == (mapping.device, mapping.inode)
            && self.shown.path == mapping.path
    }

    /// Maps the whole file for reading, as [`file_map::map`].
    ///
    /// # Errors
    /// The same.
    pub fn map(&self) -> io::Result<Mmap> {
        file_map::map(&self.file)
    }
}

fn descriptor_path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Opens every file that is mapped for execution, once, whatever paths it has, in
/// order of address; together with those that could not be opened.
#[must_use]
pub fn open_executable_files(
    process: &Process,
    mappings: &[Mapping],
) -> (Vec<Arc<MappedFile>>, Vec<OpenProblem>) {
    let mut by_file: HashMap<ShownFile, Vec<&Mapping>> = HashMap::new();
    let mut order = Vec::new();
    for mapping in mappings.iter().filter(|m| m.executable && m.is_file()) {
        let same = by_file.entry(mapping.shown_file()).or_default();
        if same.is_empty() {
            order.push(mapping.shown_file());
        }
        same.push(mapping);
    }
    let (mut files, mut problems) = (Vec::new(), Vec::new());
    let mut opened = HashSet::new();
    for shown in order {
        let same = &by_file[&shown];
        match open(process, same).and_then(|file| MappedFile::new(file, same[0])) {
            Ok(file) if !opened.insert(file.identity()) => {}
            Ok(file) => files.push(Arc::new(file)),
            Err(source) => problems.push(OpenProblem {
                path: same[0].path.clone(),
                pid: process.pid(),
                source,
            }),
        }
    }
    (files, problems)
}

/// Opens the file behind mappings that the process has. First through
/// `map_files`, which leads to the mapped file itself whatever has become of
/// its path, but needs `CAP_SYS_ADMIN` or `CAP_CHECKPOINT_RESTORE`; then
/// through the path as the target sees it, if the same file is still there.
fn open(process: &Process, mappings: &[&Mapping]) -> io::Result<File> {
    let mut first_error = None;
    for mapping in mappings {
        match open_map_file(process, mapping) {
            Ok(file) => return Ok(file),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    let first_error = first_error.unwrap_or_else(|| io::ErrorKind::NotFound.into());
    match mappings.first() {
        Some(mapping) => open_by_path(process, None, mapping).map_err(|_| first_error),
        None => Err(first_error),
    }
}

/// Looks below the process's root directory, or that given when it has none any
/// more.
fn open_by_path(
    process: &Process,
    root: Option<BorrowedFd<'_>>,
    mapping: &Mapping,
) -> io::Result<File> {
    if mapping.deleted {
        return Err(replaced());
    }
    match (open_root(process), root) {
        (Ok(own), _) => open_below(own.as_fd(), mapping),
        (Err(_), Some(root)) => open_below(root, mapping),
        (Err(error), None) => Err(error),
    }
}

fn replaced() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "another file is at its path now")
}

fn open_map_file(process: &Process, mapping: &Mapping) -> io::Result<File> {
    // Only the top level has `map_files`, but there a thread's id works too.
    let link = format!(
        "/proc/{}/map_files/{:x}-{:x}",
        process.thread()?,
        mapping.start,
        mapping.end
    );
    let found = rustix::fs::open(link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let metadata = File::from(found.try_clone()?).metadata()?;
    if device_of(&metadata) != mapping.device && !is_named_alike(&found, mapping) {
        return Err(changed_meanwhile());
    }
    reopen(&found, mapping, &metadata)
}

/// Whether a file has the path that a mapping shows: where `stat` and mappings
/// tell of a file otherwise (overlayfs, btrfs), the way to know that nothing
/// else was mapped there since.
fn is_named_alike(found: &OwnedFd, mapping: &Mapping) -> bool {
    let mut wanted = mapping.path.clone().into_os_string();
    if mapping.deleted {
        wanted.push(" (deleted)");
    }
    fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).is_ok_and(|path| path == wanted)
}

fn changed_meanwhile() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the mapping has changed meanwhile")
}

/// Opens a process's root directory as a place to look for files; it stays one
/// when the process ends.
///
/// # Errors
/// When the process has ended, or may not be looked into.
pub fn open_root(process: &Process) -> io::Result<OwnedFd> {
    open_directory(&process.directory()?.join("root"))
}

/// Opens a directory for [`open_below`] alone.
pub(super) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(
        CWD,
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Opens the file at a mapping's path below a root directory, if it is the one
/// that is mapped.
fn open_below(root: BorrowedFd<'_>, mapping: &Mapping) -> io::Result<File> {
    // Symbolic links must lead where they lead the target, not leaktrace.
    let found = rustix::fs::openat2(
        root,
        &mapping.path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT,
    )?;
    let metadata = File::from(found.try_clone()?).metadata()?;
    let same_device = device_of(&metadata) == mapping.device
        // There `stat` and the mappings name different devices for one file.
        || matches!(rustix::fs::fstatfs(&found)?.f_type, OVERLAYFS | BTRFS);
    if !same_device || metadata.ino() != mapping.inode {
        return Err(replaced());
    }
    reopen(&found, mapping, &metadata)
}

/// `OVERLAYFS_SUPER_MAGIC` of `linux/magic.h`.
const OVERLAYFS: rustix::fs::FsWord = 0x794c_7630;
/// `BTRFS_SUPER_MAGIC` of `linux/magic.h`.
const BTRFS: rustix::fs::FsWord = 0x9123_683e;

fn identity_of(metadata: &fs::Metadata) -> FileIdentity {
    FileIdentity(metadata.dev(), metadata.ino())
}

fn device_of(metadata: &fs::Metadata) -> Device {
    let device = metadata.dev();
    Device {
        major: rustix::fs::major(device),
        minor: rustix::fs::minor(device),
    }
}

/// Opens what a path descriptor leads to for reading, unless it is not the file
/// that is mapped.
fn reopen(found: &OwnedFd, mapping: &Mapping, metadata: &fs::Metadata) -> io::Result<File> {
    if device_of(metadata) == mapping.device && metadata.ino() != mapping.inode {
        return Err(changed_meanwhile());
    }
    reopen_regular(found, metadata)
}

/// Opens what a path descriptor leads to for reading, unless it is a device or
/// a pipe: opening one can have effects, or block.
fn reopen_regular(found: &OwnedFd, metadata: &fs::Metadata) -> io::Result<File> {
    if !metadata.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is no regular file",
        ));
    }
    File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{
        super::{
            mapping::read_mappings,
            test_process::{Running, install},
        },
        *,
    };

    /// A running copy of `sleep`.
    fn sleeper(exe: &Path) -> (Running, Process) {
        install(&fs::read("/bin/sleep").unwrap(), exe);
        let child = Running::start(Command::new(exe).arg("1000"));
        let process = Process::open(child.pid()).unwrap();
        super::super::test_process::wait_until("its libc is mapped", || {
            let mappings = read_mappings(&process).unwrap();
            mappings
                .iter()
                .filter(|m| m.executable && m.is_file())
                .count()
                >= 3
        });
        (child, process)
    }

    #[test]
    fn each_file_is_opened_once_and_stays_open_after_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let exe = directory.path().join("sleeper");
        let (child, process) = sleeper(&exe);
        let mappings = read_mappings(&process).unwrap();
        let (files, problems) = open_executable_files(&process, &mappings);
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(files.iter().filter(|file| file.path() == exe).count(), 1);
        assert!(
            files
                .iter()
                .any(|file| file.path().to_string_lossy().contains("libc.so"))
        );
        for mapping in mappings.iter().filter(|m| m.executable && m.is_file()) {
            assert_eq!(files.iter().filter(|file| file.backs(mapping)).count(), 1);
        }
        drop(child);
        for file in &files {
            assert_eq!(file.map().unwrap()[..4], *b"\x7fELF");
            assert!(!file.is_deleted());
        }
    }

    /// Where devices differ, the path has to be that of the mapping.
    #[test]
    fn what_was_mapped_there_meanwhile_is_not_taken_for_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let exe = directory.path().join("sleeper");
        let (_child, process) = sleeper(&exe);
        let mappings = read_mappings(&process).unwrap();
        let mut mapping = mappings
            .into_iter()
            .find(|mapping| mapping.executable && mapping.path == exe)
            .unwrap();
        mapping.device.minor += 1;
        if let Err(error) = open_map_file(&process, &mapping) {
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
            return;
        }
        mapping.path = directory.path().join("another");
        let error = open_map_file(&process, &mapping).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_replaced_file_is_the_one_that_runs() {
        let directory = tempfile::tempdir().unwrap();
        let exe = directory.path().join("sleeper");
        let (_child, process) = sleeper(&exe);
        let other = directory.path().join("other");
        fs::write(&other, "another file").unwrap();
        fs::rename(&other, &exe).unwrap();
        let mappings = read_mappings(&process).unwrap();
        let (files, problems) = open_executable_files(&process, &mappings);
        let own = files.iter().find(|file| file.path() == exe);
        if let Some(own) = own {
            assert!(own.is_deleted());
            let content = fs::read("/bin/sleep").unwrap();
            assert_eq!(own.map().unwrap()[..], content[..]);
            assert_eq!(fs::read(own.descriptor_path()).unwrap(), content);
        } else {
            // Without the right to use map_files the file that is there now
            // must not be taken for the one that runs.
            assert!(!rustix::process::geteuid().is_root());
            assert!(problems.iter().any(|problem| problem.path == exe));
        }
    }

    #[test]
    fn by_path_only_the_same_file_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let exe = directory.path().join("sleeper");
        let (_child, process) = sleeper(&exe);
        let mappings = read_mappings(&process).unwrap();
        let own = mappings
            .iter()
            .find(|m| m.executable && m.path == exe)
            .unwrap();
        let root = open_root(&process).unwrap();
        assert!(open_below(root.as_fd(), own).is_ok());
        let other = directory.path().join("other");
        fs::write(&other, "another file").unwrap();
        fs::rename(&other, &exe).unwrap();
        assert_eq!(
            open_below(root.as_fd(), own).unwrap_err().to_string(),
            "another file is at its path now"
        );
    }

    #[test]
    fn a_file_is_opened_before_anything_maps_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("library");
        fs::write(&path, "content").unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let file = MappedFile::open_path(&link).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(file.path(), link);
        let ShownFile {
            device,
            inode,
            path: real_path,
        } = file.shown();
        assert_eq!(*inode, metadata.ino());
        assert_eq!(
            rustix::fs::makedev(device.major, device.minor),
            metadata.dev()
        );
        assert_eq!(*real_path, path.canonicalize().unwrap());
        assert_eq!(fs::read(file.descriptor_path()).unwrap(), b"content");

        let missing = MappedFile::open_path(&directory.path().join("missing"));
        assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
        for not_regular in [directory.path(), Path::new("/dev/zero")] {
            let error = MappedFile::open_path(not_regular).unwrap_err();
            assert_eq!(error.to_string(), "it is no regular file");
        }
    }

    #[test]
    fn a_device_is_not_opened() {
        let found = rustix::fs::open("/dev/zero", OFlags::PATH, Mode::empty()).unwrap();
        let metadata = fs::metadata("/dev/zero").unwrap();
        let mapping = super::super::mapping::parse(b"1000-2000 r-xp 0 00:05 5 /dev/zero").remove(0);
        assert_eq!(
            reopen(&found, &mapping, &metadata).unwrap_err().to_string(),
            "it is no regular file"
        );
    }

    #[test]
    fn a_problem_says_what_it_means() {
        let problem = OpenProblem {
            path: "/lib/x.so".into(),
            pid: 7,
            source: io::Error::from_raw_os_error(libc::EPERM),
        };
        assert_eq!(
            problem.to_string(),
            "cannot open /lib/x.so, which 7 maps for execution: Operation not permitted (os error \
             1); its symbols will be missing"
        );
    }
}
