//! What an ELF file says about itself, apart from its symbols: where its bytes
//! are loaded, its identity, and how much debug information it has.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::PathBuf};

use object::{
    CompressionFormat, Object as _, ObjectSection as _, ObjectSegment as _, SegmentFlags, elf::PF_X,
};

/// Facts of one ELF file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ElfImage {
    segments: Vec<Segment>,
    /// Address at which a program begins.
    pub entry: u64,
    /// GNU build id, bytes.
    pub build_id: Option<Vec<u8>>,
    /// Name of a separate file with debug information, and its CRC-32.
    pub debug_link: Option<(Vec<u8>, u32)>,
    /// A second separate file, which several files share (`dwz`).
    pub shared_debug: Option<SharedDebug>,
    /// Its debug information.
    pub debug: DebugSize,
    /// Most of that is elsewhere: in files with the extension `.dwo`, or in a
    /// package of them, `.dwp` (DWARF 5, 7.3.2).
    pub is_split: bool,
}

/// A file with debug information that several files share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedDebug {
    /// Where it is, or was when it was made; relative to the file that names it.
    pub path: PathBuf,
    /// Its build id.
    pub build_id: Vec<u8>,
}

/// How much debug information a file has, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugSize {
    /// `.debug_info` and `.debug_line`, uncompressed.
    pub info_and_line: u64,
    /// Every debug section that is stored compressed, uncompressed: these are
    /// unpacked into leaktrace's memory, while others are read where they are.
    pub unpacked: u64,
    /// The largest unit in `.debug_info`; 0 when that is compressed, or far too
    /// large anyway.
    pub largest_unit: u64,
}

impl DebugSize {
    /// Of both files together.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        Self {
            info_and_line: self.info_and_line.saturating_add(other.info_and_line),
            unpacked: self.unpacked.saturating_add(other.unpacked),
            largest_unit: self.largest_unit.max(other.largest_unit),
        }
    }
}

/// Largest `.debug_info` whose units are looked at, bytes: more than anyone
/// would read.
const WALKED_AT_MOST: u64 = 1 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    file_offset: u64,
    size: u64,
    address: u64,
    executable: bool,
}

impl ElfImage {
    /// Reads the headers of an ELF file and those of its debug information's units.
    ///
    /// # Errors
    /// When the bytes are no ELF file, or their headers contradict each other.
    pub fn parse(bytes: &[u8]) -> object::Result<Self> {
        let file = object::File::parse(bytes)?;
        let (debug, is_split) = debug_size(&file);
        Ok(Self {
            debug,
            is_split,
            ..Self::without_debug(&file)
        })
    }

    /// Reads the headers of an ELF file alone: however large it is, no more than a few
    /// pages. As if it had no debug information.
    ///
    /// # Errors
    /// As with [`Self::parse`].
    pub fn headers(bytes: &[u8]) -> object::Result<Self> {
        Ok(Self::without_debug(&object::File::parse(bytes)?))
    }

    fn without_debug(file: &object::File) -> Self {
        let mut segments: Vec<Segment> = file
            .segments()
            .map(|segment| {
                let (file_offset, size) = segment.file_range();
                let executable =
                    matches!(segment.flags(), SegmentFlags::Elf { p_flags } if p_flags & PF_X != 0);
                Segment {
                    file_offset,
                    size,
                    address: segment.address(),
                    executable,
                }
            })
            .collect();
        // Where two segments share a page of the file, it's the code that runs.
        segments.sort_by_key(|segment| !segment.executable);
        Self {
            segments,
            entry: file.entry(),
            build_id: file.build_id().ok().flatten().map(<[u8]>::to_vec),
            debug_link: file
                .gnu_debuglink()
                .ok()
                .flatten()
                .map(|(name, crc)| (name.to_vec(), crc)),
            shared_debug: file
                .gnu_debugaltlink()
                .ok()
                .flatten()
                .map(|(path, build_id)| SharedDebug {
                    path: OsStr::from_bytes(path).into(),
                    build_id: build_id.to_vec(),
                }),
            debug: DebugSize::default(),
            is_split: false,
        }
    }

    /// The address that symbols and debug information use for a byte of the
    /// file.
    #[must_use]
    pub fn virtual_address(&self, file_offset: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let within = file_offset.checked_sub(segment.file_offset)?;
            (within < segment.size)
                .then(|| segment.address.checked_add(within))
                .flatten()
        })
    }

    /// Whether there is DWARF in the file.
    #[must_use]
    pub fn has_debug_info(&self) -> bool {
        self.debug.info_and_line > 0
    }
}

/// How much debug information there is, and whether most is elsewhere.
fn debug_size(file: &object::File) -> (DebugSize, bool) {
    let mut size = DebugSize::default();
    let (mut units, mut has_addresses) = (Units::default(), false);
    for section in file.sections() {
        let Ok(name) = section.name_bytes() else {
            continue;
        };
        if !name.starts_with(b".debug_") && !name.starts_with(b".zdebug_") {
            continue;
        }
        // Stands for the section without having its bytes: a stripped file's
        // or a broken one.
        let Ok(range) = section.compressed_file_range() else {
            continue;
        };
        if range.compressed_size == 0 {
            continue;
        }
        let compressed = range.format != CompressionFormat::None;
        if compressed {
            size.unpacked = size.unpacked.saturating_add(range.uncompressed_size);
        }
        // In a package of split files, all names end so.
        let kind = name.strip_suffix(b".dwo").unwrap_or(name);
        if kind.ends_with(b"debug_info") || kind.ends_with(b"debug_line") {
            size.info_and_line = size.info_and_line.saturating_add(range.uncompressed_size);
        }
        if kind == b".debug_info" && !compressed && range.uncompressed_size <= WALKED_AT_MOST {
            units = section.data().map_or(units, Units::of);
        }
        has_addresses |= name == b".debug_addr";
    }
    size.largest_unit = units.largest;
    // Before DWARF 5, that section was made for split files only.
    let is_split = units.has_skeletons || units.has_old && has_addresses;
    (size, is_split)
}

/// What the units of a `.debug_info` section are (DWARF 5, 7.5.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Units {
    /// Size of the largest, bytes.
    largest: u64,
    /// There are some that stand for one in another file.
    has_skeletons: bool,
    /// There are some of DWARF 4 or older.
    has_old: bool,
}

impl Units {
    /// Each begins with its length, of 4 bytes, or 12 when the first are all
    /// ones; then its version, and since DWARF 5 its type.
    fn of(mut section: &[u8]) -> Self {
        /// `DW_UT_skeleton`.
        const SKELETON: u8 = 4;
        let mut units = Self::default();
        while let Some((short, rest)) = section.split_first_chunk::<4>() {
            let (length, rest) = match (u32::from_le_bytes(*short), rest.split_first_chunk::<8>()) {
                (u32::MAX, Some((long, rest))) => (u64::from_le_bytes(*long), rest),
                (short, _) => (u64::from(short), rest),
            };
            if length == 0 {
                break; // Nothing can be read beyond it.
            }
            units.largest = units.largest.max(length);
            if let [low, high, kind, ..] = *rest {
                let version = u16::from_le_bytes([low, high]);
                units.has_skeletons |= version >= 5 && kind == SKELETON;
                units.has_old |= version < 5;
            }
            let Some(next) = usize::try_from(length)
                .ok()
                .and_then(|length| rest.get(length..))
            else {
                break;
            };
            section = next;
        }
        units
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_unit_is_found_and_broken_lengths_end_the_search() {
        let mut section = Vec::new();
        for length in [8_u32, 100, 20] {
            section.extend(length.to_le_bytes());
            section.resize(section.len() + length as usize, 0);
        }
        assert_eq!(Units::of(&section).largest, 100);
        section.extend(u32::MAX.to_le_bytes());
        section.extend(300_u64.to_le_bytes());
        section.resize(section.len() + 300, 0);
        assert_eq!(Units::of(&section).largest, 300);
        section.extend(0x7fff_ffff_u32.to_le_bytes());
        assert_eq!(
            Units::of(&section).largest,
            0x7fff_ffff,
            "cut off: believed, so not read"
        );
        assert_eq!(Units::of(&[1, 2]).largest, 0);
        assert_eq!(Units::of(&[0; 64]).largest, 0);
    }

    #[test]
    fn units_that_stand_for_others_are_seen() {
        let unit = |header: [u8; 3]| [&3_u32.to_le_bytes()[..], &header].concat();
        let of = |headers: &[[u8; 3]]| {
            Units::of(&headers.iter().flat_map(|it| unit(*it)).collect::<Vec<u8>>())
        };
        assert!(of(&[[5, 0, 1], [5, 0, 4]]).has_skeletons);
        assert!(!of(&[[5, 0, 1], [4, 0, 4]]).has_skeletons);
        assert!(of(&[[4, 0, 4]]).has_old && !of(&[[5, 0, 4]]).has_old);
    }

    #[test]
    fn what_is_no_elf_file_is_an_error() {
        assert!(ElfImage::parse(b"").is_err());
        assert!(ElfImage::parse(b"\x7fELF").is_err());
        assert!(ElfImage::parse(&[0xff; 4096]).is_err());
    }

    #[test]
    fn headers_say_the_same_but_for_debug_information() {
        let bytes = std::fs::read("/proc/self/exe").unwrap();
        let whole = ElfImage::parse(&bytes).unwrap();
        let headers = ElfImage::headers(&bytes).unwrap();
        assert!(whole.has_debug_info() && !headers.has_debug_info());
        let alike = ElfImage {
            debug: whole.debug,
            is_split: whole.is_split,
            ..headers
        };
        assert_eq!(alike, whole);
        assert!(ElfImage::headers(b"\x7fELF").is_err());
    }
}
