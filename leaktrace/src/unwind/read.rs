//! First stage: from a file's bytes to its sections of call frame information
//! and the places of its text.

use crate::{
    arch,
    elf::{CallFrames, ElfFile},
    unwind::Reason,
};

/// Largest section that is read, bytes; the largest known, of a browser with
/// everything in one file, has about a quarter of that.
const MAX_SECTION: usize = 128 << 20;
/// Most executable segments.
const MAX_TEXTS: usize = 64;
/// File offsets are kept in 32 bits.
const MAX_OFFSET: u64 = 1 << 32;
/// More bytes of code at an entry point than any loader has.
const MAX_ENTRY: usize = 256;

/// What a file's tables are made from.
#[derive(Debug)]
pub struct Sources<'a> {
    /// `.eh_frame`.
    pub eh_frame: Option<CallFrames<'a>>,
    /// `.debug_frame`, for files that have no other.
    pub debug_frame: Option<CallFrames<'a>>,
    /// Where the text is.
    pub texts: Texts,
    /// Addresses, first and end, of the code where the file begins to run: nobody
    /// has called it.
    pub entry: Option<(u64, u64)>,
    /// Lower-case hexadecimal.
    pub build_id: Option<String>,
}

impl Sources<'_> {
    /// Bytes of call frame information.
    #[must_use]
    pub fn size(&self) -> usize {
        let sections = [&self.eh_frame, &self.debug_frame].into_iter().flatten();
        sections.map(|section| section.bytes.len()).sum()
    }
}

/// Executable parts of a file, sorted by address; neither their addresses nor
/// their file offsets overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Texts(Vec<Text>);

/// A part of a file that is mapped for execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text {
    /// Virtual address of the first byte.
    pub address: u64,
    /// Its offset in the file.
    pub offset: u32,
    /// Bytes; `offset + length` fits in 32 bits.
    pub length: u32,
}

impl Texts {
    /// Sorts them.
    ///
    /// # Errors
    /// When they contradict each other, or there are too many or too large ones.
    pub fn new(mut texts: Vec<(u64, u64, u64)>) -> Result<Self, Reason> {
        texts.retain(|(_, _, length)| *length > 0);
        if texts.len() > MAX_TEXTS {
            return Err(Reason::TooMuch("executable segments"));
        }
        texts.sort_unstable();
        let mut sorted: Vec<Text> = Vec::with_capacity(texts.len());
        for (address, offset, length) in texts {
            let end = offset.checked_add(length).filter(|end| *end < MAX_OFFSET);
            if end.is_none() || address.checked_add(length).is_none() {
                return Err(Reason::TooMuch("text"));
            }
            let before = |text: &Text| {
                let ends = |first: u64, length: u32| first + u64::from(length);
                ends(text.address, text.length) <= address
                    && (ends(text.offset.into(), text.length) <= offset
                        || offset + length <= text.offset.into())
            };
            if !sorted.iter().all(before) {
                return Err(Reason::Damaged("executable segments overlap".to_owned()));
            }
            #[expect(clippy::cast_possible_truncation, reason = "both are below the end")]
            sorted.push(Text {
                address,
                offset: offset as u32,
                length: length as u32,
            });
        }
        Ok(Self(sorted))
    }

    /// The file offsets of a range of addresses, first and end, as far as it is
    /// in the text that holds its first address.
    #[must_use]
    pub fn offsets(&self, start: u64, end: u64) -> Option<(u32, u32)> {
        let next = self.0.partition_point(|text| text.address <= start);
        let text = self.0.get(next.checked_sub(1)?)?;
        let into = u32::try_from(start - text.address).ok()?;
        let until = u32::try_from(end.checked_sub(text.address)?)
            .unwrap_or(u32::MAX)
            .min(text.length);
        (into < until).then_some((text.offset + into, text.offset + until))
    }

    /// Each of them.
    #[must_use]
    pub fn all(&self) -> &[Text] {
        &self.0
    }
}

/// Finds what tables are made from.
///
/// # Errors
/// When the file is of the wrong kind or too large, or has nothing.
pub fn read(bytes: &[u8]) -> Result<Sources<'_>, Reason> {
    let file = ElfFile::parse(bytes)?;
    if file.machine() != arch::ELF_MACHINE {
        return Err(Reason::Machine);
    }
    let segments = file.executable_segments().map(|segment| {
        let length = segment.bytes.len() as u64;
        (segment.address, segment.file_offset, length)
    });
    let texts = Texts::new(segments.take(MAX_TEXTS + 1).collect())?;
    let eh_frame = file.eh_frame();
    let debug_frame = match (file.debug_frame(), &eh_frame) {
        (Ok(found), _) => found,
        // It may not be needed.
        (Err(_), Some(_)) => None,
        (Err(reason), None) => return Err(Reason::Damaged(reason)),
    };
    for section in [&eh_frame, &debug_frame].into_iter().flatten() {
        if section.bytes.len() > MAX_SECTION {
            return Err(Reason::TooMuch("call frame information"));
        }
    }
    if eh_frame.is_none() && debug_frame.is_none() {
        return Err(Reason::NoInformation);
    }
    Ok(Sources {
        eh_frame,
        debug_frame,
        texts,
        entry: entry_code(&file),
        build_id: file.build_id(),
    })
}

fn entry_code(file: &ElfFile<'_>) -> Option<(u64, u64)> {
    let start = file.entry_point()?;
    let text = file.executable_segment(start)?;
    let code = text
        .bytes
        .get(usize::try_from(start - text.address).ok()?..)?;
    let length = arch::entry_code(&code[..code.len().min(MAX_ENTRY)]);
    (length > 0).then_some((start, start + length as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{elf::running_libc, unwind::compile};

    #[test]
    fn sections_and_text_of_the_running_libc_are_found() {
        let bytes = running_libc();
        let sources = read(&bytes).unwrap();
        assert!(sources.eh_frame.unwrap().bytes.len() > 10_000);
        assert!(sources.build_id.is_some());
        let text = sources.texts.all()[0];
        assert!(text.length > 1 << 20);
        let (start, end) = (text.address + 16, text.address + 32);
        let expected = (text.offset + 16, text.offset + 32);
        assert_eq!(sources.texts.offsets(start, end), Some(expected));
    }

    /// Where the section headers are and their count, in the header of the file.
    const SECTION_HEADERS: [std::ops::Range<usize>; 2] = [0x28..0x30, 0x3c..0x40];

    #[test]
    fn without_section_headers_the_search_table_leads_to_the_same() {
        let mut bytes = running_libc();
        let whole = compile(&bytes).unwrap();
        for range in SECTION_HEADERS {
            bytes[range].fill(0);
        }
        assert_eq!(compile(&bytes).unwrap(), whole);
    }

    #[test]
    fn files_of_other_kinds_are_refused_with_the_reason() {
        let said = |bytes: &[u8]| compile(bytes).unwrap_err().to_string();
        assert_eq!(said(b"#!/bin/sh"), "not an ELF file");
        let mut bytes = running_libc();
        // `e_machine`.
        bytes[18] = 183;
        assert_eq!(said(&bytes), "for another architecture");
    }

    #[test]
    fn a_truncated_file_is_an_error() {
        let bytes = running_libc();
        for length in [0, 10, 64, 4096, bytes.len() / 2] {
            assert!(compile(&bytes[..length]).is_err(), "{length} bytes");
        }
    }

    /// A loader that needs no other file is begun by the kernel, but libraries are not.
    #[test]
    fn only_what_the_kernel_begins_has_code_at_its_entry() {
        let program = std::fs::read("/proc/self/exe").unwrap();
        let file = ElfFile::parse(&program).unwrap();
        let (start, end) = read(&program).unwrap().entry.unwrap();
        assert_eq!(file.entry_point(), Some(start));
        let length = end - start;
        assert!((5..=MAX_ENTRY as u64).contains(&length), "{length} bytes");
        // Without the segment that names its loader it is a library.
        let mut library = program;
        let headers = 64..64 + 20 * 56;
        let names_loader = headers
            .step_by(56)
            .find(|at| library[*at..][..4] == object::elf::PT_INTERP.to_le_bytes());
        library[names_loader.unwrap()] = 0;
        assert_eq!(read(&library).unwrap().entry, None);
    }

    #[test]
    fn texts_are_sorted_and_must_not_overlap() {
        let texts = Texts::new(vec![(0x9000, 0x2000, 0x100), (0x1000, 0x1000, 0x800)]).unwrap();
        assert_eq!(texts.offsets(0x1000, 0x1010), Some((0x1000, 0x1010)));
        assert_eq!(texts.offsets(0x9010, 0x9fff), Some((0x2010, 0x2100)));
        assert_eq!(texts.offsets(0x1800, 0x1801), None);
        assert_eq!(texts.offsets(0xfff, 0x1001), None);
        assert_eq!(texts.offsets(0x9010, 0x9000), None);
        for second in [(0x1400, 0x8000, 0x100), (0x8000, 0x1400, 0x100)] {
            assert!(Texts::new(vec![(0x1000, 0x1000, 0x800), second]).is_err());
        }
        let ends_too_far = [(0, 1 << 32, 1), (u64::MAX, 0, 2), (0, u64::MAX, 2)];
        for text in ends_too_far {
            assert!(Texts::new(vec![text]).is_err());
        }
        assert!(Texts::new((0..65).map(|it| (it, it, 1)).collect()).is_err());
    }
}
