//! `/etc/ld.so.cache`: where the loader looks up libraries by name. Format:
//! glibc's `sysdeps/generic/dl-cache.h` (`struct cache_file_new` and its
//! extensions). Only entries for this architecture are kept.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
};

use crate::arch::LD_CACHE_FLAGS;

/// The libraries that the cache knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LdCache {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    name: OsString,
    path: PathBuf,
    /// For processors of this level only (`x86-64-v3`).
    level: Option<OsString>,
}

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
/// Files of older ldconfigs begin with a table in an older format.
const OLD_MAGIC: &[u8] = b"ld.so-1.7.0\0";
const OLD_HEADER: usize = 16;
const OLD_ENTRY: usize = 12;
const HEADER: usize = 48;
const ENTRY: usize = 24;
const EXTENSION_MAGIC: u32 = 0xeaa4_2174;
/// `cache_extension_tag_glibc_hwcaps`.
const LEVELS_TAG: u32 = 1;
/// `DL_CACHE_HWCAP_EXTENSION` without `DL_CACHE_HWCAP_ISA_LEVEL_MASK`, in the
/// upper half of an entry's `hwcap`.
const LEVEL_MARK: u32 = 1 << 30;
const ISA_BITS: u32 = (1 << 10) - 1;

impl LdCache {
    /// The system's cache; empty when there is none.
    #[must_use]
    pub fn system() -> Self {
        fs::read("/etc/ld.so.cache")
            .map(|bytes| Self::parse(&bytes))
            .unwrap_or_default()
    }

    /// Reads a cache. What makes no sense is left out.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        Self {
            entries: parse(bytes).unwrap_or_default(),
        }
    }

    /// Where a library is, for a processor of these levels, best first.
    #[must_use]
    pub fn look_up(&self, name: &OsStr, levels: &[&str]) -> Option<&Path> {
        let rank = |entry: &Entry| match &entry.level {
            None => Some(levels.len()),
            Some(level) => levels.iter().position(|known| level == known),
        };
        self.entries
            .iter()
            .filter(|entry| entry.name == name)
            .filter_map(|entry| Some((rank(entry)?, entry)))
            .min_by_key(|(rank, _)| *rank)
            .map(|(_, entry)| entry.path.as_path())
    }
}

fn parse(bytes: &[u8]) -> Option<Vec<Entry>> {
    // All offsets count from the header of the new format.
    let bytes = if bytes.starts_with(OLD_MAGIC) {
        let count = usize::try_from(word(bytes, OLD_MAGIC.len())?).ok()?;
        let end = count.checked_mul(OLD_ENTRY)?.checked_add(OLD_HEADER)?;
        bytes.get(end.checked_next_multiple_of(8)?..)?
    } else {
        bytes
    };
    if !bytes.starts_with(MAGIC) {
        return None;
    }
    let count = usize::try_from(word(bytes, 20)?).ok()?;
    let levels = levels(bytes).unwrap_or_default();
    let entries = bytes.get(HEADER..)?.chunks_exact(ENTRY).take(count);
    Some(
        entries
            .filter_map(|entry| parse_entry(bytes, entry, &levels))
            .collect(),
    )
}

fn parse_entry(bytes: &[u8], entry: &[u8], levels: &[&[u8]]) -> Option<Entry> {
    if word(entry, 0)? != LD_CACHE_FLAGS {
        return None;
    }
    let (low, high) = (word(entry, 16)?, word(entry, 20)?);
    let level = if high & !ISA_BITS == LEVEL_MARK {
        let level = levels.get(usize::try_from(low).ok()?)?;
        Some(OsString::from_vec(level.to_vec()))
    } else if (low, high) == (0, 0) {
        None
    } else {
        // Hardware capabilities as glibc had them until 2.33.
        return None;
    };
    Some(Entry {
        name: OsString::from_vec(string(bytes, word(entry, 4)?)?.to_vec()),
        path: OsStr::from_bytes(string(bytes, word(entry, 8)?)?).into(),
        level,
    })
}

/// The names of processor levels that entries refer to.
fn levels(bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let extension = bytes.get(usize::try_from(word(bytes, 32)?).ok()?..)?;
    if word(extension, 0)? != EXTENSION_MAGIC {
        return None;
    }
    let count = usize::try_from(word(extension, 4)?).ok()?;
    let section = extension
        .get(8..)?
        .chunks_exact(16)
        .take(count)
        .find(|section| word(section, 0) == Some(LEVELS_TAG))?;
    let start = usize::try_from(word(section, 8)?).ok()?;
    let size = usize::try_from(word(section, 12)?).ok()?;
    bytes
        .get(start..start.checked_add(size)?)?
        .chunks_exact(4)
        .map(|name| string(bytes, word(name, 0)?))
        .collect()
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

fn string(bytes: &[u8], at: u32) -> Option<&[u8]> {
    let from = bytes.get(usize::try_from(at).ok()?..)?;
    // No path is longer (PATH_MAX).
    let end = from.iter().take(4096).position(|byte| *byte == 0)?;
    Some(&from[..end])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A cache with these entries: flags, name, path, level's index.
    fn cache(entries: &[(u32, &str, &str, Option<u32>)], levels: &[&str]) -> Vec<u8> {
        let strings_at = HEADER + entries.len() * ENTRY;
        let mut strings = Vec::new();
        let mut add = |text: &str| {
            let at = (strings_at + strings.len()) as u32;
            strings.extend(text.bytes().chain([0]));
            at
        };
        let mut table = Vec::new();
        for (flags, name, path, level) in entries {
            let (low, high) = level.map_or((0, 0), |level| (level, LEVEL_MARK | 3));
            let words = [*flags, add(name), add(path), 0, low, high];
            table.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        }
        let names: Vec<u32> = levels.iter().map(|level| add(level)).collect();
        let extension_at = (strings_at + strings.len()) as u32;
        let mut bytes = MAGIC.to_vec();
        let header = [
            entries.len() as u32,
            strings.len() as u32,
            2,
            extension_at,
            0,
            0,
            0,
        ];
        bytes.extend(header.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(table);
        bytes.extend(strings);
        let size = 4 * names.len() as u32;
        let extension = [EXTENSION_MAGIC, 1, LEVELS_TAG, 0, extension_at + 24, size];
        bytes.extend(
            extension
                .iter()
                .chain(&names)
                .flat_map(|word| word.to_le_bytes()),
        );
        bytes
    }

    fn example() -> Vec<u8> {
        cache(
            &[
                (0x0003, "libz.so.1", "/lib32/libz.so.1", None),
                (LD_CACHE_FLAGS, "libz.so.1", "/lib/libz.so.1", None),
                (LD_CACHE_FLAGS, "libz.so.1", "/lib/v3/libz.so.1", Some(1)),
                (LD_CACHE_FLAGS, "libz.so.1", "/lib/v2/libz.so.1", Some(0)),
                (LD_CACHE_FLAGS, "libq.so", "/lib/v2/libq.so", Some(0)),
            ],
            &["x86-64-v2", "x86-64-v3"],
        )
    }

    #[test]
    fn the_best_level_that_the_processor_has_is_taken() {
        let cache = LdCache::parse(&example());
        let look_up = |name: &str, levels: &[&str]| {
            cache
                .look_up(OsStr::new(name), levels)
                .map(|path| path.display().to_string())
        };
        assert_eq!(look_up("libz.so.1", &[]).unwrap(), "/lib/libz.so.1");
        assert_eq!(
            look_up("libz.so.1", &["x86-64-v2"]).unwrap(),
            "/lib/v2/libz.so.1"
        );
        assert_eq!(
            look_up("libz.so.1", &["x86-64-v4", "x86-64-v3", "x86-64-v2"]).unwrap(),
            "/lib/v3/libz.so.1"
        );
        assert_eq!(look_up("libq.so", &[]), None);
        assert_eq!(look_up("libz.so", &[]), None);
    }

    #[test]
    fn a_table_of_the_old_format_in_front_is_skipped() {
        let mut bytes = OLD_MAGIC.to_vec();
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend([0xff; OLD_ENTRY]);
        bytes.extend([0; 4]);
        bytes.extend(example());
        assert_eq!(LdCache::parse(&bytes), LdCache::parse(&example()));
        assert_eq!(LdCache::parse(&bytes).entries.len(), 4);
    }

    #[test]
    fn a_cache_that_is_cut_short_or_damaged_never_panics() {
        let whole = example();
        for length in 0..whole.len() {
            assert!(LdCache::parse(&whole[..length]).entries.len() <= 4);
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] = 0xff;
            let _ = LdCache::parse(&bytes);
        }
    }

    #[test]
    fn this_system_s_cache_knows_libc() {
        if !Path::new("/etc/ld.so.cache").exists() {
            eprintln!("not run: this system has no /etc/ld.so.cache");
            return;
        }
        let path = LdCache::system()
            .look_up(OsStr::new("libc.so.6"), &[])
            .unwrap()
            .to_owned();
        assert!(path.exists(), "{}", path.display());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = LdCache::parse(&bytes);
            let with_magic = [MAGIC, &bytes].concat();
            let _ = LdCache::parse(&with_magic);
        }
    }
}
