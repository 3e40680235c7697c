//! The symbols of one file, from its symbol tables and its debug information.

use std::{
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use blazesym::symbolize;

use super::{
    debug_file::{DebugFile, Package, SearchPath, descriptor_path, hexadecimal},
    debug_info::{DebugInfo, Details},
    demangle::demangle,
    elf_image::{DebugSize, ElfImage, SharedDebug},
    limits::Limits,
    mini_debug_info,
    protocol::{Found, Function},
    symbol_table::SymbolTable,
    thread_start::{is_thread_start, is_thread_start_code},
};
use crate::file_map;

/// What is known of one file, read when its first address is looked up.
pub struct FileSymbols {
    image: ElfImage,
    /// The separate debug file's or that in `.gnu_debugdata`, and last that of
    /// the file itself.
    tables: Vec<SymbolTable>,
    /// Its debug information; `None` when there is none, or it is not used.
    debug_info: Option<DebugInfo>,
    /// Build ids of debug files that were not found.
    missing: Vec<String>,
    /// Keep `debug_info`'s path valid.
    _open: Vec<OwnedFd>,
}

impl FileSymbols {
    /// Reads headers and symbol tables. `path` is the file's in the target;
    /// without `debug` its debug information is left alone. Notes are sentences
    /// for the report.
    pub fn open(
        path: &str,
        file: File,
        debug: bool,
        search: &SearchPath,
        limits: &Limits,
        notes: &mut Vec<String>,
    ) -> Self {
        let mut symbols = Self {
            image: ElfImage::default(),
            tables: Vec::new(),
            debug_info: None,
            missing: Vec::new(),
            _open: Vec::new(),
        };
        let bytes = match file_map::map(&file) {
            Ok(bytes) => bytes,
            Err(error) => {
                notes.push(format!(
                    "{path} can't be read ({error}): no symbols for it."
                ));
                return symbols;
            }
        };
        match ElfImage::parse(&bytes) {
            Ok(parsed) => symbols.image = parsed,
            Err(error) => {
                notes.push(format!(
                    "{path} is no ELF file that can be read ({error}): no symbols for it."
                ));
                return symbols;
            }
        }
        let image = &symbols.image;
        let separate = (!image.has_debug_info())
            .then(|| search.find(image, Path::new(path)))
            .flatten();
        if debug {
            let (holder, holder_image) = separate
                .as_ref()
                .map_or((&file, image), |found| (&found.file, &found.image));
            let mut source = DebugSource::new(holder, holder_image, search);
            if source.is_split
                && separate.is_none()
                && let Some(package) = search.find_package(&file, Path::new(path))
            {
                source.use_package(&package);
                symbols._open.push(package.directory);
            }
            symbols.missing = source.missing();
            symbols.debug_info = source.open(path, limits, notes);
        }
        if let Some(found) = separate {
            symbols._open.push(found.file.into());
            symbols.tables.push(SymbolTable::new(found.bytes));
        } else if debug
            && let Some(unpacked) = mini_debug_info::unpack(&bytes, limits.mini_debug_info)
        {
            match unpacked {
                Ok(unpacked) => symbols.tables.push(SymbolTable::new(unpacked)),
                Err(why) => notes.push(format!(
                    "The mini-debug-info ({}) of {path} can't be unpacked ({why}): some of its \
                     functions have no names.",
                    mini_debug_info::SECTION
                )),
            }
        }
        symbols._open.push(file.into());
        symbols.tables.push(SymbolTable::new(bytes));
        symbols
    }

    /// The build id, hexadecimal.
    pub fn build_id(&self) -> Option<String> {
        self.image.build_id.as_deref().map(hexadecimal)
    }

    /// Build ids, hexadecimal, of debug files that it has not and that were not
    /// found.
    pub fn missing(&self) -> &[String] {
        &self.missing
    }

    /// Whether debug information is used.
    pub fn has_debug_information(&self) -> bool {
        self.debug_info.is_some()
    }

    /// Leaves the debug information alone from now on.
    pub fn give_up_debug_information(&mut self) {
        self.debug_info = None;
    }

    /// Looks up offsets in the file; inlined functions only if they are wanted.
    pub fn resolve(
        &self,
        reader: &symbolize::Symbolizer,
        offsets: &[u64],
        inlined: bool,
    ) -> Vec<(u64, Found)> {
        let addresses: Vec<Option<u64>> = offsets
            .iter()
            .map(|offset| self.image.virtual_address(*offset))
            .collect();
        // Addresses outside of the file's code are looked up as 0, which is
        // in no function.
        let inputs: Vec<u64> = addresses
            .iter()
            .map(|address| address.unwrap_or(0))
            .collect();
        let mut details = self
            .debug_info
            .as_ref()
            .map_or_else(Vec::new, |info| info.look_up(reader, &inputs));
        if !inlined {
            for details in &mut details {
                details.inlined.clear();
            }
        }
        details.resize_with(offsets.len(), Details::default);
        offsets
            .iter()
            .zip(&addresses)
            .zip(details)
            .map(|((offset, address), details)| {
                let found = match address {
                    Some(address) => {
                        let functions = self.functions(*address, details);
                        let begins_thread = self.begins_thread(*offset, *address, &functions);
                        Found {
                            functions,
                            begins_thread,
                        }
                    }
                    None => Found {
                        functions: vec![Function::default()],
                        begins_thread: false,
                    },
                };
                (*offset, found)
            })
            .collect()
    }

    fn functions(&self, address: u64, details: Details) -> Vec<Function> {
        // Of several, the nearest: each table may lack what the others have.
        let tables = self.tables.iter().rev();
        let covering = tables
            .filter_map(|table| table.covering(address))
            .max_by_key(|covering| covering.start);
        let Details {
            inlined: mut functions,
            mut function,
        } = details;
        if let Some(covering) = covering {
            function.symbol = Some(demangle(covering.name));
            function.symbol_offset = address - covering.start;
        }
        functions.push(function);
        functions
    }

    fn begins_thread(&self, offset: u64, address: u64, functions: &[Function]) -> bool {
        // The last table is the one of the mapped file itself, with the code.
        let code = self
            .tables
            .last()
            .map_or(&[][..], |own| own.bytes_from(offset.saturating_add(1)));
        functions.last().is_some_and(is_thread_start)
            || is_thread_start_code(address, self.image.entry, code)
    }
}

/// Where a file's debug information is.
struct DebugSource<'a> {
    holder: &'a File,
    build_id: Option<&'a [u8]>,
    path: PathBuf,
    size: DebugSize,
    is_split: bool,
    /// What it shares with other files, and where that is.
    shared: Option<(&'a SharedDebug, Option<DebugFile>)>,
}

impl<'a> DebugSource<'a> {
    fn new(holder: &'a File, image: &'a ElfImage, search: &SearchPath) -> Self {
        let shared = image.shared_debug.as_ref();
        let shared = shared.map(|shared| (shared, search.find_shared(shared, holder)));
        let more = shared.as_ref().and_then(|(_, found)| found.as_ref());
        Self {
            holder,
            build_id: image.build_id.as_deref(),
            path: descriptor_path(holder),
            size: more.map_or(image.debug, |more| image.debug.with(&more.image.debug)),
            is_split: image.is_split,
            shared,
        }
    }

    /// Build ids of files that would help.
    fn missing(&self) -> Vec<String> {
        let own = self.build_id.filter(|_| self.size.info_and_line == 0);
        let shared = match &self.shared {
            Some((shared, None)) => Some(&*shared.build_id),
            _ => None,
        };
        own.into_iter().chain(shared).map(hexadecimal).collect()
    }

    fn use_package(&mut self, package: &Package) {
        self.size = self.size.with(&package.size);
        self.is_split = false;
        self.path.clone_from(&package.program);
    }

    /// `None` when there is none, or it is not to be used; notes are about the
    /// file at `path`.
    fn open(self, path: &str, limits: &Limits, notes: &mut Vec<String>) -> Option<DebugInfo> {
        if self.size.info_and_line == 0 {
            return None;
        }
        if self.is_split {
            notes.push(format!(
                "Most debug information of {path} is in .dwo files, which are not read, only a \
                 package of them beside it is: its inlined functions are missing. \
                 `dwp -e {path} -o {path}.dwp` makes one."
            ));
        }
        let info = match (limits.objection(&self.size), &self.shared) {
            (Some(objection), _) => Err(format!("has {objection}")),
            (None, None) => Ok(DebugInfo::whole(&self.path)),
            (None, Some((_, shared))) => {
                let shared = shared.as_ref().map(|found| &found.file);
                DebugInfo::shared(self.holder, shared)
                    .map_err(|error| format!("has debug information that makes no sense ({error})"))
            }
        };
        match info {
            Ok(info) => {
                if let Some((shared, None)) = self.shared {
                    notes.push(format!(
                        "{path} shares debug information with other files, in {}, which is not \
                         there: some inlined functions have no names.",
                        shared.path.display()
                    ));
                }
                Some(info)
            }
            Err(why) => {
                notes.push(format!(
                    "{path} {why}: its functions are named from its symbol table, without source \
                     lines and inlined functions."
                ));
                None
            }
        }
    }
}
