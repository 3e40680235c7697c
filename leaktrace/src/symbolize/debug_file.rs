//! Finding the separate file that holds a stripped file's symbols and debug
//! information, where gdb looks for it too ("Debugging Information in Separate
//! Files" in its manual).

use std::{
    ffi::{CStr, OsStr},
    fs::File,
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use memmap2::Mmap;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};

use super::elf_image::{DebugSize, ElfImage, SharedDebug};
use crate::file_map;

/// Where to look.
#[derive(Debug)]
pub struct SearchPath {
    /// Root directories under which the target's paths lie, the most specific
    /// first: its own, then leaktrace's. Symbolic links lead within each, as
    /// they do for the target.
    roots: Vec<OwnedFd>,
    /// Directories of debug files, absolute paths within each root.
    directories: Vec<PathBuf>,
    /// One more, with what was fetched.
    fetched: Option<OwnedFd>,
}

/// Where distributions put debug files.
pub const DIRECTORIES: [&str; 2] = ["/usr/lib/debug", "/lib/debug"];

/// A separate debug file.
pub struct DebugFile {
    /// Where it was found, in one of the roots.
    pub path: PathBuf,
    /// Kept open: its descriptor is how blazesym gets at it.
    pub file: File,
    /// All of it.
    pub bytes: Mmap,
    /// What it says about itself.
    pub image: ElfImage,
}

/// A package of split debug information.
pub struct Package {
    /// The directory of both files, kept open.
    pub directory: OwnedFd,
    /// A path to the program, beside which blazesym finds the package.
    pub program: PathBuf,
    /// How much there is in the package.
    pub size: DebugSize,
}

/// The extension that a package adds to its program's.
const PACKAGE: &str = ".dwp";

impl SearchPath {
    /// Looks in these directories under a root of the target's, if it is known,
    /// then under leaktrace's own, and last among what was fetched.
    ///
    /// # Errors
    /// When leaktrace's own root can't be opened.
    pub fn new(
        target_root: Option<OwnedFd>,
        directories: Vec<PathBuf>,
        fetched: Option<OwnedFd>,
    ) -> rustix::io::Result<Self> {
        let own = open_directory(c"/")?;
        Ok(Self {
            roots: target_root.into_iter().chain([own]).collect(),
            directories,
            fetched,
        })
    }

    /// Paths to the debug directories under each root.
    #[must_use]
    pub fn debug_directories(&self) -> Vec<PathBuf> {
        let below = |root: &OwnedFd| {
            let root = descriptor_path(root);
            self.directories
                .iter()
                .map(move |directory| root.join(relative(directory)))
        };
        let fetched = self.fetched.iter().map(descriptor_path);
        self.roots.iter().flat_map(below).chain(fetched).collect()
    }

    /// The debug file of an image that is at `path` in the target. Only one with
    /// the same build id, or the right checksum where there is none.
    #[must_use]
    pub fn find(&self, image: &ElfImage, path: &Path) -> Option<DebugFile> {
        let by_build_id = image
            .build_id
            .iter()
            .flat_map(|build_id| self.open_by_build_id(build_id));
        let by_link = image
            .debug_link
            .iter()
            .flat_map(|(name, _)| self.by_link(name, path))
            .flat_map(|candidate| self.open(candidate));
        by_build_id
            .chain(by_link)
            .find(|found| match (&image.build_id, &image.debug_link) {
                (Some(build_id), _) => found.image.build_id.as_ref() == Some(build_id),
                (None, Some((_, crc))) => crc32fast::hash(&found.bytes) == *crc,
                (None, None) => false,
            })
    }

    /// The file that others share, by build id, or at its path.
    #[must_use]
    pub fn find_shared(&self, shared: &SharedDebug, holder: &File) -> Option<DebugFile> {
        let by_build_id = self.open_by_build_id(&shared.build_id);
        let beside = std::fs::read_link(descriptor_path(holder)).ok();
        let by_path = beside.and_then(|holder| Some(holder.parent()?.join(&shared.path)));
        by_build_id
            .chain(by_path.into_iter().flat_map(|path| self.open(path)))
            .find(|found| found.image.build_id.as_ref() == Some(&shared.build_id))
    }

    /// The package that is beside a program, if that is still at its path.
    #[must_use]
    pub fn find_package(&self, program: &File, path: &Path) -> Option<Package> {
        let wanted = program.metadata().ok()?;
        let (parent, name) = (path.parent()?, path.file_name()?);
        let mut package = path.as_os_str().to_owned();
        package.push(PACKAGE);
        self.roots.iter().find_map(|root| {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let directory = open_within(root, parent, flags)?;
            let there = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            let same = (there.st_dev, there.st_ino) == (wanted.dev(), wanted.ino());
            let found = open_elf(root, Path::new(&package)).filter(|_| same)?;
            Some(Package {
                program: descriptor_path(&directory).join(name),
                directory,
                size: found.image.debug,
            })
        })
    }

    /// What is at a path under each root.
    fn open(&self, path: PathBuf) -> impl Iterator<Item = DebugFile> {
        self.roots
            .iter()
            .filter_map(move |root| open_elf(root, &path))
    }

    /// What is there under a build id in every directory.
    fn open_by_build_id(&self, build_id: &[u8]) -> impl Iterator<Item = DebugFile> {
        let name = build_id_path(&hexadecimal(build_id));
        let installed = name.clone().into_iter().flat_map(|name| {
            let paths = self.directories.iter().map(move |it| it.join(&name));
            paths.flat_map(|path| self.open(path))
        });
        let fetched = self.fetched.iter().zip(name);
        let fetched = fetched.filter_map(|(directory, name)| open_elf(directory, name.as_ref()));
        installed.chain(fetched)
    }

    fn by_link(&self, name: &[u8], path: &Path) -> Vec<PathBuf> {
        let name = Path::new(OsStr::from_bytes(name));
        // It's a name, not a path: nothing else is to be opened.
        let (Some(directory), Some(plain)) = (path.parent(), name.file_name()) else {
            return Vec::new();
        };
        if Path::new(plain) != name || !path.is_absolute() {
            return Vec::new();
        }
        let beside = [directory.join(plain), directory.join(".debug").join(plain)];
        let elsewhere = self
            .directories
            .iter()
            .map(|debug| debug.join(relative(directory)).join(plain));
        beside.into_iter().chain(elsewhere).collect()
    }
}

/// Where a debug file is in a directory of them, by the hexadecimal build id.
#[must_use]
pub fn build_id_path(build_id: &str) -> Option<String> {
    let (first, rest) = build_id.split_at_checked(2)?;
    (!rest.is_empty()).then(|| format!(".build-id/{first}/{rest}.debug"))
}

/// Bytes as lower-case hexadecimal digits.
#[must_use]
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A path that leads to an open file, for libraries that take paths.
#[must_use]
pub fn descriptor_path(file: impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()).into()
}

/// Opens a directory as a place to look for files.
///
/// # Errors
/// Those of `open`.
pub fn open_directory(path: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

fn relative(absolute: &Path) -> &Path {
    absolute.strip_prefix("/").unwrap_or(absolute)
}

fn open_within(root: &OwnedFd, path: &Path, flags: OFlags) -> Option<OwnedFd> {
    rustix::fs::openat2(
        root,
        path,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT,
    )
    .ok()
}

fn open_elf(root: &OwnedFd, path: &Path) -> Option<DebugFile> {
    // Paths are others' choice: to open a pipe or a device does something.
    let place = open_within(root, path, OFlags::PATH)?;
    let found = rustix::fs::fstat(&place).ok()?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return None;
    }
    let file = File::open(descriptor_path(&place)).ok()?;
    let bytes = file_map::map(&file).ok()?;
    let image = ElfImage::parse(&bytes).ok()?;
    Some(DebugFile {
        path: path.to_owned(),
        file,
        bytes,
        image,
    })
}
