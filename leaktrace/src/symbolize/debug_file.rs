//! Finding the separate file that holds a stripped file's symbols and debug
//! information, where gdb looks for it too ("Debugging Information in Separate
//! Files" in its manual).

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    os::{fd::AsRawFd as _, unix::ffi::OsStrExt as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use memmap2::Mmap;

use super::elf_image::ElfImage;

/// Where to look.
#[derive(Clone, Debug)]
pub struct SearchPath {
    /// Root directories under which the target's paths lie, the most specific
    /// first: its own, then leaktrace's.
    pub roots: Vec<PathBuf>,
    /// Directories of debug files, absolute paths within each root.
    pub directories: Vec<PathBuf>,
}

/// A separate debug file.
pub struct DebugFile {
    /// Kept open: its descriptor is how blazesym gets at it.
    pub file: File,
    /// All of it.
    pub bytes: Mmap,
    /// What it says about itself.
    pub image: ElfImage,
}

impl SearchPath {
    /// The debug directories under each root.
    #[must_use]
    pub fn debug_directories(&self) -> Vec<PathBuf> {
        let below = |root: &PathBuf| {
            let root = root.clone();
            self.directories
                .iter()
                .map(move |directory| under(&root, directory))
        };
        self.roots.iter().flat_map(below).collect()
    }

    /// The debug file of an image that is at `path` in the target. Only one with
    /// the same build id, or the right checksum where there is none.
    #[must_use]
    pub fn find(&self, image: &ElfImage, path: &Path) -> Option<DebugFile> {
        let by_build_id = image
            .build_id
            .iter()
            .flat_map(|build_id| self.by_build_id(build_id));
        let by_link = image
            .debug_link
            .iter()
            .flat_map(|(name, _)| self.by_link(name, path));
        by_build_id.chain(by_link).find_map(|candidate| {
            let found = open(&candidate)?;
            let same = match (&image.build_id, &image.debug_link) {
                (Some(build_id), _) => found.image.build_id.as_ref() == Some(build_id),
                (None, Some((_, crc))) => crc32fast::hash(&found.bytes) == *crc,
                (None, None) => false,
            };
            same.then_some(found)
        })
    }

    /// The file that a debug file shares with others.
    #[must_use]
    pub fn find_shared(&self, build_id: &[u8]) -> Option<DebugFile> {
        self.by_build_id(build_id)
            .iter()
            .filter_map(|candidate| open(candidate))
            .find(|found| found.image.build_id.as_deref() == Some(build_id))
    }

    fn by_build_id(&self, build_id: &[u8]) -> Vec<PathBuf> {
        let [first, rest @ ..] = build_id else {
            return Vec::new();
        };
        let name = format!(".build-id/{first:02x}/{}.debug", hexadecimal(rest));
        self.debug_directories()
            .iter()
            .map(|directory| directory.join(&name))
            .collect()
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
        let mut candidates = Vec::new();
        for root in &self.roots {
            candidates.push(under(root, directory).join(plain));
            candidates.push(under(root, directory).join(".debug").join(plain));
            for debug in &self.directories {
                candidates.push(under(&under(root, debug), directory).join(plain));
            }
        }
        candidates
    }
}

/// Bytes as lower-case hexadecimal digits.
#[must_use]
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A path that leads to an open file, for libraries that take paths.
#[must_use]
pub fn descriptor_path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Maps a whole file for reading; `None` when it is empty or can't be.
#[must_use]
pub fn map(file: &File) -> Option<Mmap> {
    // SAFETY: read-only and private. Others may change the bytes: they are only
    // read through bounds-checked slices, as hostile input. A file that is cut
    // short meanwhile ends leaktrace with SIGBUS, as it does the target.
    unsafe { Mmap::map(file) }
        .ok()
        .filter(|bytes| !bytes.is_empty())
}

fn under(root: &Path, absolute: &Path) -> PathBuf {
    root.join(absolute.strip_prefix("/").unwrap_or(absolute))
}

fn open(path: &Path) -> Option<DebugFile> {
    // Not blocking: somebody may have put a pipe there.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let bytes = map(&file)?;
    let image = ElfImage::parse(&bytes).ok()?;
    Some(DebugFile { file, bytes, image })
}
