//! Tables kept on disk, by build id.
//!
//! They are in leaktrace's own directory ([`output::cache`]). Anything in it may
//! be damaged, missing or removed at any time; then tables are made again. An entry tells the hash of what its table was made
//! from, so a file with somebody else's build id gets nothing of theirs and
//! leaves nothing to them.

pub mod entry;

use std::{
    ffi::{OsStr, OsString},
    fmt::Write as _,
    fs::File,
    io::{self, Read as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, fstat,
    futimens, openat, statat, unlinkat,
};

use crate::{
    output::{
        self, atomic,
        cache::{NoCache, is_ours},
    },
    unwind::{file_table::FileTable, read::Sources},
};

/// How large the cache may grow, bytes: some dozen programs with everything
/// they map.
pub const LIMIT: u64 = 128 << 20;
/// How files of the cache end.
const SUFFIX: &str = ".rows";

/// What a table is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    name: String,
    hash: [u8; 32],
}

impl Key {
    /// The key of a file: its entry's name is its build id, or the hash if it
    /// has none.
    #[must_use]
    pub fn of(sources: &Sources<'_>) -> Self {
        let mut hasher = blake3::Hasher::new();
        for section in [&sources.eh_frame, &sources.debug_frame] {
            let (address, bytes) = section.map_or((0, &[][..]), |it| (it.address, it.bytes));
            hasher.update(&address.to_le_bytes());
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        }
        for text in sources.texts.all() {
            hasher.update(&text.address.to_le_bytes());
            hasher.update(&text.offset.to_le_bytes());
            hasher.update(&text.length.to_le_bytes());
        }
        let (entry, end) = sources.entry.unwrap_or_default();
        hasher.update(&entry.to_le_bytes());
        hasher.update(&end.to_le_bytes());
        let hash = *hasher.finalize().as_bytes();
        let name = sources.build_id.clone().unwrap_or_else(|| {
            hash.iter().fold(String::new(), |mut name, byte| {
                // Writing to a string does not fail.
                _ = write!(name, "{byte:02x}");
                name
            })
        });
        Self { name, hash }
    }

    fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    fn file_name(&self) -> OsString {
        format!("{}{SUFFIX}", self.name).into()
    }
}

/// A directory of tables.
pub struct Cache {
    directory: OwnedFd,
    limit: u64,
}

impl Cache {
    /// The cache of who runs this.
    ///
    /// # Errors
    /// Why there is none. It is not needed.
    pub fn open() -> Result<Self, NoCache> {
        let directory = output::cache::open()?;
        Ok(Self {
            directory,
            limit: LIMIT,
        })
    }

    /// A cache below another directory, as in [`output::cache::open_in`].
    ///
    /// # Errors
    /// The kernel's; `PermissionDenied` when a directory is somebody else's.
    pub fn open_in(place: &Path, limit: u64) -> io::Result<Self> {
        let directory = output::cache::open_in(place)?;
        Ok(Self { directory, limit })
    }

    /// The table of a file, if it is there and whole.
    #[must_use]
    pub fn load(&self, key: &Key) -> Option<FileTable> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(&self.directory, key.file_name(), flags, Mode::empty()).ok()?;
        let found = fstat(&file).ok()?;
        let size = u64::try_from(found.st_size).ok()?;
        let is_file = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
        if !is_file || !is_ours(&found) || size > self.limit {
            return None;
        }
        // So that what is used stays. It may be refused.
        _ = futimens(&file, &NOW);
        let mut bytes = Vec::with_capacity(usize::try_from(size).ok()? + 1);
        File::from(file).take(size).read_to_end(&mut bytes).ok()?;
        entry::decode(key, &bytes)
    }

    /// Stores the [encoded](entry::encode) table of a file, and removes what was
    /// not used for longest when there is too much.
    ///
    /// # Errors
    /// The kernel's; `FileTooLarge` for more than the whole cache may hold.
    pub fn store(&self, key: &Key, entry: &[u8]) -> io::Result<()> {
        if entry.len() as u64 > self.limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        atomic::write_at(self.directory.as_fd(), &key.file_name(), entry, None)?;
        self.evict();
        Ok(())
    }

    fn evict(&self) {
        let mut entries = Vec::new();
        let mut total = 0;
        for (name, found) in self.files() {
            let size = u64::try_from(found.st_size).unwrap_or(0);
            total += size;
            entries.push(((found.st_mtime, found.st_mtime_nsec), size, name));
        }
        entries.sort_unstable();
        for (_, size, name) in entries {
            if total <= self.limit {
                break;
            }
            // Another process may have done it.
            _ = unlinkat(&self.directory, &*name, AtFlags::empty());
            total -= size;
        }
    }

    /// Entries. What is being written has other names, and what killed writers
    /// have left of that is removed by the next one ([`atomic`]).
    fn files(&self) -> Vec<(OsString, Stat)> {
        let Ok(directory) = Dir::read_from(&self.directory) else {
            return Vec::new();
        };
        let mut files = Vec::new();
        for item in directory.flatten() {
            let name = OsStr::from_bytes(item.file_name().to_bytes()).to_owned();
            let Ok(found) = statat(&self.directory, &*name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            if name.as_bytes().ends_with(SUFFIX.as_bytes()) {
                files.push((name, found));
            }
        }
        files
    }
}

const NOW: Timestamps = {
    const fn special(tv_nsec: i64) -> Timespec {
        Timespec { tv_sec: 0, tv_nsec }
    }
    Timestamps {
        last_access: special(UTIME_OMIT),
        last_modification: special(UTIME_NOW),
    }
};

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::symlink,
        path::PathBuf,
        time::{Duration, SystemTime},
    };

    use rustix::fs::CWD;

    use super::*;
    use crate::{
        elf::running_libc,
        unwind::{compile, read::read},
    };

    const BIG: u64 = 1 << 30;

    struct Place {
        directory: tempfile::TempDir,
        cache: Cache,
    }

    impl Place {
        fn new(limit: u64) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let cache = Cache::open_in(directory.path(), limit).unwrap();
            Self { directory, cache }
        }

        fn entry(&self, key: &Key) -> PathBuf {
            self.directory
                .path()
                .join("leaktrace")
                .join(key.file_name())
        }

        fn names(&self) -> Vec<OsString> {
            let mut names: Vec<OsString> = fs::read_dir(self.directory.path().join("leaktrace"))
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            names
        }
    }

    fn libc() -> (Key, FileTable) {
        let bytes = running_libc();
        (Key::of(&read(&bytes).unwrap()), compile(&bytes).unwrap())
    }

    fn named(name: &str) -> Key {
        Key {
            name: name.to_owned(),
            hash: [7; 32],
        }
    }

    #[test]
    fn what_is_stored_is_loaded_by_its_build_id() {
        let place = Place::new(BIG);
        let (key, table) = libc();
        assert_eq!(place.cache.load(&key), None);
        place
            .cache
            .store(&key, &entry::encode(&key, &table))
            .unwrap();
        assert_eq!(place.cache.load(&key), Some(table));
        let build_id = read(&running_libc()).unwrap().build_id.unwrap();
        assert_eq!(place.names(), [&*format!("{build_id}.rows")]);
    }

    #[test]
    fn other_frames_under_the_same_build_id_are_not_taken_for_it() {
        let place = Place::new(BIG);
        let (key, table) = libc();
        place
            .cache
            .store(&key, &entry::encode(&key, &table))
            .unwrap();
        let mut bytes = running_libc();
        let file = crate::elf::ElfFile::parse(&bytes).unwrap();
        let start = file.file_offset(file.eh_frame().unwrap().address).unwrap();
        bytes[usize::try_from(start).unwrap() + 200] ^= 1;
        let other = Key::of(&read(&bytes).unwrap());
        assert_eq!(other.file_name(), key.file_name());
        assert_eq!(place.cache.load(&other), None);
    }

    #[test]
    fn damaged_entries_are_replaced() {
        let place = Place::new(BIG);
        let (key, table) = libc();
        let whole = entry::encode(&key, &table);
        let mut damaged = whole.clone();
        damaged[5000] ^= 0x10;
        for bad in [&damaged[..], &whole[..100], b""] {
            fs::write(place.entry(&key), bad).unwrap();
            assert_eq!(place.cache.load(&key), None);
            place.cache.store(&key, &whole).unwrap();
            assert_eq!(place.cache.load(&key).as_ref(), Some(&table));
        }
        assert_eq!(place.names().len(), 1);
    }

    #[test]
    fn links_and_pipes_are_not_read() {
        let place = Place::new(BIG);
        let (key, table) = libc();
        let elsewhere = place.directory.path().join("elsewhere");
        fs::write(&elsewhere, entry::encode(&key, &table)).unwrap();
        symlink(&elsewhere, place.entry(&key)).unwrap();
        assert_eq!(place.cache.load(&key), None);
        fs::remove_file(place.entry(&key)).unwrap();
        rustix::fs::mkfifoat(CWD, place.entry(&key), Mode::RWXU).unwrap();
        assert_eq!(place.cache.load(&key), None);
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let place = Place::new(2500);
        let old = |key: &Key, age: u64| {
            let time = SystemTime::now() - Duration::from_secs(age);
            let file = File::options().write(true).open(place.entry(key)).unwrap();
            file.set_modified(time).unwrap();
        };
        let [first, second, third] = ["11", "22", "33"].map(named);
        // An entry that says nothing, of a thousand bytes.
        place.cache.store(&first, &[0; 1000]).unwrap();
        place.cache.store(&second, &[0; 1000]).unwrap();
        old(&first, 900);
        old(&second, 800);
        // A look-up is a use, whatever comes of it.
        assert_eq!(place.cache.load(&first), None);
        place.cache.store(&third, &[0; 1000]).unwrap();
        assert_eq!(place.names(), ["11.rows", "33.rows"]);
        let error = place.cache.store(&second, &[0; 2501]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn many_writers_leave_whole_entries() {
        let place = Place::new(BIG);
        let (key, table) = libc();
        let bytes = entry::encode(&key, &table);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let cache = Cache::open_in(place.directory.path(), BIG).unwrap();
                    for _ in 0..10 {
                        cache.store(&key, &bytes).unwrap();
                        assert!(cache.load(&key).is_some());
                    }
                });
            }
        });
        assert_eq!(place.names().len(), 1);
    }
}
