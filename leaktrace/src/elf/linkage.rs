//! How a file is linked to others: what the loader reads to find its
//! libraries (`ld.so(8)`; gABI, "Dynamic Section").

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::PathBuf,
};

use object::{
    elf,
    read::elf::{Dyn as _, ProgramHeader as _},
};

use super::{ENDIAN, ElfFile};

/// Longest path (`PATH_MAX`).
const MAX_PATH: usize = 4096;
/// Longest list of paths that is read.
const MAX_PATHS: usize = 64 << 10;
/// Most libraries that are listed.
const MAX_NEEDED: usize = 4096;

/// What a file says about the files it wants beside it. Strings are as they
/// stand in the file: `$ORIGIN` and the like are not expanded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Linkage {
    /// The loader that starts it (`PT_INTERP`).
    pub interpreter: Option<PathBuf>,
    /// Names of the libraries it needs, in order (`DT_NEEDED`).
    pub needed: Vec<OsString>,
    /// Its own name as a library (`DT_SONAME`).
    pub soname: Option<OsString>,
    /// Colon-separated directories, searched before `LD_LIBRARY_PATH`
    /// (`DT_RPATH`); the loader ignores it when there is a `runpath`.
    pub rpath: Option<OsString>,
    /// Colon-separated directories, searched after `LD_LIBRARY_PATH`
    /// (`DT_RUNPATH`).
    pub runpath: Option<OsString>,
    /// It is marked as a program (`DF_1_PIE`).
    pub is_pie: bool,
}

impl Linkage {
    /// A program that has a dynamic section only to relocate itself.
    #[must_use]
    pub(super) fn is_static_pie(&self) -> bool {
        self.is_pie && self.interpreter.is_none() && self.needed.is_empty()
    }
}

/// Virtual addresses of the tables that the loader uses.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DynamicTables {
    /// `DT_SYMTAB`.
    pub(super) symbols: Option<u64>,
    /// `DT_STRTAB`.
    pub(super) strings: Option<u64>,
}

impl<'a> ElfFile<'a> {
    /// What the file says about the files it wants beside it. What can't be
    /// read is left out.
    #[must_use]
    pub fn linkage(&self) -> Linkage {
        let mut linkage = Linkage::default();
        if let Some(segment) = self.segment(elf::PT_INTERP)
            && let Ok(Some(path)) = segment.interpreter(ENDIAN, self.data)
        {
            linkage.interpreter = Some(std::ffi::OsStr::from_bytes(path).into());
        }
        let strings = self
            .dynamic_tables()
            .strings
            .and_then(|address| self.bytes_from(address));
        let text = |offset: u64, longest: usize| -> Option<OsString> {
            let from = strings?.get(usize::try_from(offset).ok()?..)?;
            let end = from.iter().take(longest).position(|byte| *byte == 0)?;
            Some(OsString::from_vec(from[..end].to_vec()))
        };
        for (tag, value) in self.dynamic_entries() {
            match tag {
                elf::DT_NEEDED if linkage.needed.len() < MAX_NEEDED => {
                    linkage.needed.extend(text(value, MAX_PATH));
                }
                elf::DT_SONAME => linkage.soname = text(value, MAX_PATH),
                elf::DT_RPATH => linkage.rpath = text(value, MAX_PATHS),
                elf::DT_RUNPATH => linkage.runpath = text(value, MAX_PATHS),
                elf::DT_FLAGS_1 => linkage.is_pie = value & u64::from(elf::DF_1_PIE) != 0,
                _ => {}
            }
        }
        linkage
    }

    pub(super) fn dynamic_tables(&self) -> DynamicTables {
        let mut tables = DynamicTables::default();
        for (tag, value) in self.dynamic_entries() {
            match tag {
                elf::DT_SYMTAB => tables.symbols = Some(value),
                elf::DT_STRTAB => tables.strings = Some(value),
                _ => {}
            }
        }
        tables
    }

    /// Tags and values of the dynamic section.
    fn dynamic_entries(&self) -> impl Iterator<Item = (u32, u64)> + use<'a> {
        let entries = self
            .segment(elf::PT_DYNAMIC)
            .and_then(|segment| segment.dynamic(ENDIAN, self.data).ok().flatten())
            .unwrap_or_default();
        entries
            .iter()
            .take_while(|entry| entry.d_tag(ENDIAN) != u64::from(elf::DT_NULL))
            .filter_map(|entry| Some((entry.tag32(ENDIAN)?, entry.d_val(ENDIAN))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::symbols::tests::running_libc;

    #[test]
    fn what_a_program_needs_is_read_in_order() {
        let bytes = std::fs::read("/proc/self/exe").unwrap();
        let file = ElfFile::parse(&bytes).unwrap();
        let linkage = file.linkage();
        assert!(!file.is_static());
        let interpreter = linkage.interpreter.unwrap();
        assert!(
            interpreter.to_str().unwrap().contains("ld-"),
            "{interpreter:?}"
        );
        assert!(
            linkage
                .needed
                .iter()
                .any(|name| name.to_str().unwrap().starts_with("libc.so"))
        );
        assert_eq!(linkage.soname, None);
    }

    #[test]
    fn a_library_has_its_own_name() {
        let bytes = running_libc();
        let linkage = ElfFile::parse(&bytes).unwrap().linkage();
        assert!(
            linkage
                .soname
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("libc.so")
        );
        assert!(!linkage.is_pie);
    }
}
