//! What leaktrace needs to know of an ELF file, read from its bytes.
//!
//! The bytes come from whatever a target maps, so nothing in them is believed:
//! every offset is checked, every walk is bounded by the file's size.
//! Format: System V ABI (gABI) and the x86-64 psABI.

mod linkage;
mod loader_hook;
mod symbols;
mod unwind_info;

pub use linkage::Linkage;
pub use loader_hook::LoaderHook;
use object::{
    LittleEndian, SectionIndex, elf,
    read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _, SectionTable},
};
#[cfg(test)]
pub(crate) use symbols::tests::running_libc;
pub use symbols::{ExportedFunction, FunctionKind};
pub use unwind_info::{CallFrames, UnwindEntry};

type Header = elf::FileHeader64<LittleEndian>;
type Segment = elf::ProgramHeader64<LittleEndian>;
const ENDIAN: LittleEndian = LittleEndian;

/// More notes than this no linker writes, nor more segments of them.
const MAX_NOTES: usize = 64;
/// Longest build id that is one; linkers write 16 or 20 bytes.
const MAX_BUILD_ID: usize = 64;

/// Why a file can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// It does not start with ELF's magic number.
    #[error("not an ELF file")]
    NotElf,
    /// A 32-bit file.
    #[error("a 32-bit file; leaktrace reads 64-bit ones only")]
    ThirtyTwoBit,
    /// For a machine with the other byte order.
    #[error("a big-endian file; leaktrace reads little-endian ones only")]
    BigEndian,
    /// Headers that contradict each other or the file's size.
    #[error("a damaged ELF file: {0}")]
    Damaged(String),
}

/// A 64-bit little-endian ELF file.
pub struct ElfFile<'a> {
    data: &'a [u8],
    header: &'a Header,
    segments: &'a [Segment],
    /// Empty when the file has none: they are not needed to run it.
    sections: SectionTable<'a, Header>,
}

/// Part of the file that is mapped executable.
#[derive(Clone, Copy, Debug)]
pub struct ExecutableSegment<'a> {
    /// Virtual address of the first byte, before relocation.
    pub address: u64,
    /// Offset of the first byte in the file.
    pub file_offset: u64,
    /// Its bytes.
    pub bytes: &'a [u8],
}

impl<'a> ElfFile<'a> {
    /// Reads the headers of a file given as its bytes.
    ///
    /// # Errors
    /// When the file is none, is of the wrong kind, or its headers point
    /// outside of it.
    pub fn parse(data: &'a [u8]) -> Result<Self, ElfError> {
        if !data.starts_with(&elf::ELFMAG) {
            return Err(ElfError::NotElf);
        }
        match (data.get(4).copied(), data.get(5).copied()) {
            (Some(elf::ELFCLASS32), _) => return Err(ElfError::ThirtyTwoBit),
            (_, Some(elf::ELFDATA2MSB)) => return Err(ElfError::BigEndian),
            _ => {}
        }
        let damaged = |error: object::Error| ElfError::Damaged(error.to_string());
        let header = Header::parse(data).map_err(damaged)?;
        header.endian().map_err(damaged)?;
        let segments = header.program_headers(ENDIAN, data).map_err(damaged)?;
        // A file runs without (or with broken) section headers.
        let sections = header.sections(ENDIAN, data).unwrap_or_default();
        Ok(Self {
            data,
            header,
            segments,
            sections,
        })
    }

    /// `e_machine`, such as `object::elf::EM_X86_64`.
    #[must_use]
    pub fn machine(&self) -> u16 {
        self.header.e_machine.get(ENDIAN)
    }

    /// Whether this is a program that is started without a loader: nothing
    /// tells where its libraries are, because it has none.
    #[must_use]
    pub fn is_static(&self) -> bool {
        !self.has_segment(elf::PT_INTERP)
            && (!self.has_segment(elf::PT_DYNAMIC) || self.linkage().is_static_pie())
    }

    /// Where the kernel begins to run it, if this is a program or a loader: in other
    /// files linkers leave anything there.
    #[must_use]
    pub fn entry_point(&self) -> Option<u64> {
        let is_begun =
            self.has_segment(elf::PT_INTERP) || self.is_static() || self.loader_hook().is_some();
        is_begun.then(|| self.header.e_entry.get(ENDIAN))
    }

    /// The build id, lower-case hexadecimal.
    #[must_use]
    pub fn build_id(&self) -> Option<String> {
        let segments = self
            .segments
            .iter()
            .filter(|it| it.p_type(ENDIAN) == elf::PT_NOTE);
        for segment in segments.take(MAX_NOTES) {
            let Ok(Some(mut notes)) = segment.notes(ENDIAN, self.data) else {
                continue;
            };
            for _ in 0..MAX_NOTES {
                let Ok(Some(note)) = notes.next() else { break };
                if note.name() == elf::ELF_NOTE_GNU
                    && note.n_type(ENDIAN) == elf::NT_GNU_BUILD_ID
                    && (1..=MAX_BUILD_ID).contains(&note.desc().len())
                {
                    return Some(
                        note.desc()
                            .iter()
                            .map(|byte| format!("{byte:02x}"))
                            .collect(),
                    );
                }
            }
        }
        None
    }

    /// Whether the file holds Go code: the Go linker writes these sections
    /// also when it strips the file.
    #[must_use]
    pub fn is_go(&self) -> bool {
        [".go.buildinfo", ".gopclntab", ".data.rel.ro.gopclntab"]
            .iter()
            .any(|name| self.section(name).is_some())
    }

    /// Where the byte at a virtual address is in the file; `None` when no
    /// byte of the file is mapped there.
    #[must_use]
    pub fn file_offset(&self, address: u64) -> Option<u64> {
        let segment = self.loaded_at(address)?;
        (address - segment.p_vaddr(ENDIAN)).checked_add(segment.p_offset(ENDIAN))
    }

    /// The executable segment that holds a virtual address.
    #[must_use]
    pub fn executable_segment(&self, address: u64) -> Option<ExecutableSegment<'a>> {
        let segment = self.loaded_at(address)?;
        if segment.p_flags(ENDIAN) & elf::PF_X == 0 {
            return None;
        }
        Some(ExecutableSegment {
            address: segment.p_vaddr(ENDIAN),
            file_offset: segment.p_offset(ENDIAN),
            bytes: segment.data(ENDIAN, self.data).ok()?,
        })
    }

    /// Every executable segment, in the order of the file's headers, which as a
    /// rule is that of their addresses.
    pub fn executable_segments(&self) -> impl Iterator<Item = ExecutableSegment<'a>> + use<'a> {
        let data = self.data;
        self.segments
            .iter()
            .filter(|it| it.p_type(ENDIAN) == elf::PT_LOAD && it.p_flags(ENDIAN) & elf::PF_X != 0)
            .filter_map(move |segment| {
                Some(ExecutableSegment {
                    address: segment.p_vaddr(ENDIAN),
                    file_offset: segment.p_offset(ENDIAN),
                    bytes: segment.data(ENDIAN, data).ok()?,
                })
            })
    }

    /// The file's bytes from a virtual address to the end of its segment.
    fn bytes_from(&self, address: u64) -> Option<&'a [u8]> {
        let segment = self.loaded_at(address)?;
        let bytes = segment.data(ENDIAN, self.data).ok()?;
        bytes.get(usize::try_from(address - segment.p_vaddr(ENDIAN)).ok()?..)
    }

    fn loaded_at(&self, address: u64) -> Option<&'a Segment> {
        self.segments.iter().find(|segment| {
            segment.p_type(ENDIAN) == elf::PT_LOAD
                && address
                    .checked_sub(segment.p_vaddr(ENDIAN))
                    .is_some_and(|into| into < segment.p_filesz(ENDIAN))
        })
    }

    fn has_segment(&self, kind: u32) -> bool {
        self.segment(kind).is_some()
    }

    fn segment(&self, kind: u32) -> Option<&'a Segment> {
        self.segments
            .iter()
            .find(|segment| segment.p_type(ENDIAN) == kind)
    }

    /// Virtual address and bytes of a section; no bytes when the file has left
    /// them out.
    fn section(&self, name: &str) -> Option<(u64, &'a [u8])> {
        let section = self.section_header(name)?;
        Some((
            section.sh_addr(ENDIAN),
            section.data(ENDIAN, self.data).ok()?,
        ))
    }

    fn section_header(&self, name: &str) -> Option<&'a elf::SectionHeader64<LittleEndian>> {
        let index = self.header.shstrndx(ENDIAN, self.data).ok()?;
        let names = self.sections.section(SectionIndex(index as usize)).ok()?;
        let names = names.data(ENDIAN, self.data).ok()?;
        // Compared in place: a hostile table of names may have no ends.
        let named = |section: &&elf::SectionHeader64<LittleEndian>| {
            names
                .get(section.sh_name(ENDIAN) as usize..)
                .and_then(|from| from.strip_prefix(name.as_bytes()))
                .is_some_and(|rest| rest.first() == Some(&0))
        };
        self.sections.iter().find(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_the_running_libc_are_read() {
        let bytes = running_libc();
        let file = ElfFile::parse(&bytes).unwrap();
        assert!(!file.is_go());
        assert!(!file.is_static());
        let build_id = file.build_id().unwrap();
        assert!(build_id.len() >= 16 && build_id.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }

    #[test]
    fn other_files_are_refused_with_their_kind() {
        let kind = |bytes: &[u8]| ElfFile::parse(bytes).err();
        assert_eq!(kind(b""), Some(ElfError::NotElf));
        assert_eq!(kind(b"#!/bin/sh\n"), Some(ElfError::NotElf));
        assert_eq!(kind(b"\x7fELF\x01\x01\x01"), Some(ElfError::ThirtyTwoBit));
        assert_eq!(kind(b"\x7fELF\x02\x02\x01"), Some(ElfError::BigEndian));
        assert!(matches!(
            kind(b"\x7fELF\x02\x01\x01"),
            Some(ElfError::Damaged(_))
        ));
    }

    #[test]
    fn addresses_are_turned_into_file_offsets_by_segments() {
        let bytes = running_libc();
        let file = ElfFile::parse(&bytes).unwrap();
        let malloc = file.exported_functions(&["malloc"])[0].address;
        let text = file.executable_segment(malloc).unwrap();
        assert_eq!(
            file.file_offset(text.address + 5),
            Some(text.file_offset + 5)
        );
        assert_eq!(file.file_offset(u64::MAX), None);
        let length = text.bytes.len() as u64;
        assert!(file.executable_segment(text.address + length - 1).is_some());
        assert!(
            file.executable_segment(0).is_none(),
            "headers are not executable"
        );
    }

    /// Reads whatever can be read.
    fn read_all(bytes: &[u8]) -> Option<impl Sized + use<>> {
        let file = ElfFile::parse(bytes).ok()?;
        let functions = file.exported_functions(&["malloc", "free"]);
        let entry = file.unwind_entry(0x98930);
        let facts = (file.entry_point(), file.is_go(), file.build_id());
        Some((functions, entry, facts, file.linkage()))
    }

    /// Bytes of the headers and of the dynamic section are damaged one by one,
    /// as a hostile target could: reading goes on or ends in an error.
    #[test]
    fn damaged_files_never_panic() {
        let bytes = running_libc();
        let dynamic = ElfFile::parse(&bytes)
            .unwrap()
            .segment(elf::PT_DYNAMIC)
            .unwrap()
            .p_offset(ENDIAN);
        let dynamic = usize::try_from(dynamic).unwrap();
        let section_headers = bytes.len() - 64 * 40;
        let places = (0..1024)
            .step_by(3)
            .chain((dynamic..dynamic + 512).step_by(3))
            .chain((section_headers..bytes.len()).step_by(7));
        let mut damaged = bytes.clone();
        for (round, place) in places.enumerate() {
            let old = damaged[place];
            damaged[place] = [0xff, 0x00, 0x7f][round % 3];
            let _ = read_all(&damaged);
            damaged[place] = old;
        }
        for length in [64, 100, 1000, 4096, bytes.len() / 2] {
            let _ = read_all(&bytes[..length]);
        }
    }
}
