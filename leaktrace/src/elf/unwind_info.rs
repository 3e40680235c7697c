//! What `.eh_frame` says about the function at an address (LSB, "Exception
//! Frames"; the search table is `.eh_frame_hdr`).

use gimli::{BaseAddresses, EhFrame, EhFrameHdr, EndianSlice, LittleEndian, UnwindSection as _};
use object::{
    elf,
    read::elf::{ProgramHeader as _, SectionHeader as _},
};

use super::{ENDIAN, ElfFile};

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// The entry that covers an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnwindEntry {
    /// Virtual address where it begins, as a rule the function's entry.
    pub start: u64,
    /// How many bytes it covers.
    pub length: u64,
    /// It names a language-specific data area: exceptions that pass through
    /// the function run code of its own (catch blocks, destructors).
    pub has_lsda: bool,
}

/// A section of call frame information.
#[derive(Clone, Copy, Debug)]
pub struct CallFrames<'a> {
    /// Virtual address of the first byte.
    pub address: u64,
    /// Its bytes; there may be others after its terminator.
    pub bytes: &'a [u8],
}

impl<'a> ElfFile<'a> {
    /// `.eh_frame`: by section header, or else where its search table says that
    /// it begins. `None` when the file has none, or left out its bytes.
    #[must_use]
    pub fn eh_frame(&self) -> Option<CallFrames<'a>> {
        let of_section = self.section(".eh_frame");
        let (address, bytes) = of_section.or_else(|| {
            let start = self.eh_frame_start().ok()??;
            Some((start, self.bytes_from(start)?))
        })?;
        (!bytes.is_empty()).then_some(CallFrames { address, bytes })
    }

    /// `.debug_frame`, as [`Self::eh_frame`].
    ///
    /// # Errors
    /// A sentence, when it is compressed.
    pub fn debug_frame(&self) -> Result<Option<CallFrames<'a>>, String> {
        let is_compressed = |section: &elf::SectionHeader64<object::LittleEndian>| {
            section.sh_flags(ENDIAN) & u64::from(elf::SHF_COMPRESSED) != 0
        };
        if self
            .section_header(".debug_frame")
            .is_some_and(is_compressed)
        {
            return Err("its .debug_frame is compressed, which is not supported".to_owned());
        }
        let found = self.section(".debug_frame");
        Ok(found
            .filter(|(_, bytes)| !bytes.is_empty())
            .map(|(address, bytes)| CallFrames { address, bytes }))
    }

    fn eh_frame_start(&self) -> gimli::Result<Option<u64>> {
        let Some((header, _)) = self.search_table()? else {
            return Ok(None);
        };
        Ok(match header.eh_frame_ptr() {
            gimli::Pointer::Direct(start) => Some(start),
            gimli::Pointer::Indirect(_) => None,
        })
    }

    /// The search table, and the addresses that it is relative to.
    fn search_table(
        &self,
    ) -> gimli::Result<Option<(gimli::ParsedEhFrameHdr<Slice<'a>>, BaseAddresses)>> {
        let Some(segment) = self.segment(elf::PT_GNU_EH_FRAME) else {
            return Ok(None);
        };
        let Ok(bytes) = segment.data(ENDIAN, self.data) else {
            return Ok(None);
        };
        let bases = BaseAddresses::default().set_eh_frame_hdr(segment.p_vaddr(ENDIAN));
        let header = EhFrameHdr::new(bytes, LittleEndian).parse(&bases, 8)?;
        Ok(Some((header, bases)))
    }

    /// The entry of `.eh_frame` that covers a virtual address; `Ok(None)` when
    /// none does or the file has no such section.
    ///
    /// # Errors
    /// A sentence, when the section can't be read.
    pub fn unwind_entry(&self, address: u64) -> Result<Option<UnwindEntry>, String> {
        let found = match self.by_search_table(address) {
            Ok(None) => self.by_scan(address),
            other => other,
        };
        match found {
            Ok(entry) => Ok(entry),
            Err(gimli::Error::NoUnwindInfoForAddress) => Ok(None),
            Err(error) => Err(format!("its .eh_frame can't be read: {error}")),
        }
    }

    /// `Ok(None)`: there is no table.
    fn by_search_table(&self, address: u64) -> gimli::Result<Option<UnwindEntry>> {
        let Some((header, bases)) = self.search_table()? else {
            return Ok(None);
        };
        let gimli::Pointer::Direct(start) = header.eh_frame_ptr() else {
            return Ok(None);
        };
        let (Some(table), Some(bytes)) = (header.table(), self.bytes_from(start)) else {
            return Ok(None);
        };
        let bases = bases.set_eh_frame(start);
        let frames = EhFrame::new(bytes, LittleEndian);
        let entry = table.fde_for_address(&frames, &bases, address, EhFrame::cie_from_offset)?;
        Ok(Some(describe(&entry, start)))
    }

    /// `Ok(None)`: there is no `.eh_frame`.
    fn by_scan(&self, address: u64) -> gimli::Result<Option<UnwindEntry>> {
        let Some((start, bytes)) = self.section(".eh_frame") else {
            return Ok(None);
        };
        let bases = BaseAddresses::default().set_eh_frame(start);
        let frames = EhFrame::new(bytes, LittleEndian);
        let entry = frames.fde_for_address(&bases, address, EhFrame::cie_from_offset)?;
        Ok(Some(describe(&entry, start)))
    }
}

fn describe(entry: &gimli::FrameDescriptionEntry<Slice<'_>>, section_start: u64) -> UnwindEntry {
    // A null pointer that is relative to its own place comes out as that
    // place, inside the entry itself; real areas are in another section.
    let from = section_start.saturating_add(entry.offset() as u64);
    let itself = from..from
        .saturating_add(entry.entry_len() as u64)
        .saturating_add(12);
    let null = |pointer: u64| pointer == 0 || itself.contains(&pointer);
    UnwindEntry {
        start: entry.initial_address(),
        length: entry.len(),
        has_lsda: entry.lsda().is_some_and(|pointer| !null(pointer.pointer())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::symbols::tests::running_libc;

    #[test]
    fn malloc_is_covered_and_has_no_handlers() {
        let bytes = running_libc();
        let file = ElfFile::parse(&bytes).unwrap();
        let malloc = &file.exported_functions(&["malloc"])[0];
        let entry = file.unwind_entry(malloc.address).unwrap().unwrap();
        assert_eq!(entry.start, malloc.address);
        assert!(entry.length >= 100, "{entry:?}");
        assert!(!entry.has_lsda);
        assert_eq!(file.by_scan(malloc.address).unwrap(), Some(entry));
    }

    #[test]
    fn nothing_covers_the_headers() {
        let bytes = running_libc();
        let file = ElfFile::parse(&bytes).unwrap();
        assert_eq!(file.unwind_entry(16), Ok(None));
    }

    /// This test program is Rust, whose functions with destructors have a
    /// data area; both ways to find it agree on a sample of all entries.
    #[test]
    fn functions_with_destructors_have_a_data_area() {
        let bytes = std::fs::read("/proc/self/exe").unwrap();
        let file = ElfFile::parse(&bytes).unwrap();
        let (start, section) = file.section(".eh_frame").unwrap();
        let bases = BaseAddresses::default().set_eh_frame(start);
        let frames = EhFrame::new(section, LittleEndian);
        let mut entries = frames.entries(&bases);
        let (mut with, mut without) = (0, 0);
        while let Some(entry) = entries.next().unwrap() {
            let gimli::CieOrFde::Fde(partial) = entry else {
                continue;
            };
            let entry = partial.parse(EhFrame::cie_from_offset).unwrap();
            let described = describe(&entry, start);
            if described.has_lsda {
                with += 1;
            } else {
                without += 1;
            }
            if (with + without) % 500 == 0 {
                assert_eq!(file.unwind_entry(described.start), Ok(Some(described)));
            }
        }
        assert!(
            with > 100 && without > 100,
            "{with} with, {without} without"
        );
    }
}
