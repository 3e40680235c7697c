//! What an ELF file says about itself, apart from its symbols: where its bytes
//! are loaded, its identity, and how much debug information it has.

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
    /// Build id of a second separate file, which several files share (`dwz`).
    pub shared_debug_build_id: Option<Vec<u8>>,
    /// Its debug information.
    pub debug: DebugSize,
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
    /// Reads the headers of an ELF file.
    ///
    /// # Errors
    /// When the bytes are no ELF file, or their headers contradict each other.
    pub fn parse(bytes: &[u8]) -> object::Result<Self> {
        let file = object::File::parse(bytes)?;
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
        Ok(Self {
            segments,
            entry: file.entry(),
            build_id: file.build_id().ok().flatten().map(<[u8]>::to_vec),
            debug_link: file
                .gnu_debuglink()
                .ok()
                .flatten()
                .map(|(name, crc)| (name.to_vec(), crc)),
            shared_debug_build_id: file
                .gnu_debugaltlink()
                .ok()
                .flatten()
                .map(|(_, build_id)| build_id.to_vec()),
            debug: debug_size(&file),
        })
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

fn debug_size(file: &object::File) -> DebugSize {
    let mut size = DebugSize::default();
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
        if name.ends_with(b"debug_info") || name.ends_with(b"debug_line") {
            size.info_and_line = size.info_and_line.saturating_add(range.uncompressed_size);
        }
        if name == b".debug_info" && !compressed && range.uncompressed_size <= WALKED_AT_MOST {
            size.largest_unit = section.data().map_or(0, largest_unit);
        }
    }
    size
}

/// Size of the largest unit in a `.debug_info` section (DWARF 5, 7.5.1: each
/// begins with its length, of 4 bytes, or 12 when the first are all ones).
fn largest_unit(mut section: &[u8]) -> u64 {
    let mut largest = 0;
    while let Some((short, rest)) = section.split_first_chunk::<4>() {
        let (length, rest) = match (u32::from_le_bytes(*short), rest.split_first_chunk::<8>()) {
            (u32::MAX, Some((long, rest))) => (u64::from_le_bytes(*long), rest),
            (short, _) => (u64::from(short), rest),
        };
        if length == 0 {
            break; // Nothing can be read beyond it.
        }
        largest = largest.max(length);
        let Some(next) = usize::try_from(length)
            .ok()
            .and_then(|length| rest.get(length..))
        else {
            break;
        };
        section = next;
    }
    largest
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
        assert_eq!(largest_unit(&section), 100);
        section.extend(u32::MAX.to_le_bytes());
        section.extend(300_u64.to_le_bytes());
        section.resize(section.len() + 300, 0);
        assert_eq!(largest_unit(&section), 300);
        section.extend(0x7fff_ffff_u32.to_le_bytes());
        assert_eq!(
            largest_unit(&section),
            0x7fff_ffff,
            "cut off: believed, so not read"
        );
        assert_eq!(largest_unit(&[1, 2]), 0);
        assert_eq!(largest_unit(&[0; 64]), 0);
    }

    #[test]
    fn what_is_no_elf_file_is_an_error() {
        assert!(ElfImage::parse(b"").is_err());
        assert!(ElfImage::parse(b"\x7fELF").is_err());
        assert!(ElfImage::parse(&[0xff; 4096]).is_err());
    }
}
