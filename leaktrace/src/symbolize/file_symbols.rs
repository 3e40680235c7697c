//! The symbols of one file, from its symbol tables and its debug information.

use std::{
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use blazesym::symbolize::{
    self, CodeInfo, Input, Sym, Symbolized,
    source::{Elf, Source},
};

use super::{
    debug_file::{SearchPath, descriptor_path, hexadecimal},
    demangle::{demangle, shorten},
    elf_image::ElfImage,
    limits::Limits,
    protocol::{Found, Function},
    symbol_table::SymbolTable,
    thread_start::{is_thread_start, is_thread_start_code},
};
use crate::file_map;

/// Most functions inlined at one address that are told; the innermost. Hostile
/// files have more.
const MOST_INLINED: usize = 256;

/// What is known of one file, read when its first address is looked up.
pub struct FileSymbols {
    image: ElfImage,
    /// The separate debug file's comes first: it is complete.
    tables: Vec<SymbolTable>,
    /// Where debug information is read from; `None` when there is none, or it
    /// is not used.
    debug_source: Option<Source<'static>>,
    /// Keep `debug_source`'s path valid.
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
            debug_source: None,
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
        let mut size = image.debug;
        let mut is_split = image.is_split;
        let mut source = descriptor_path(&file);
        if !image.has_debug_info() {
            if let Some(found) = search.find(image, Path::new(path)) {
                (size, is_split) = (found.image.debug, found.image.is_split);
                if let Some(id) = &found.image.shared_debug_build_id
                    && let Some(shared) = search.find_shared(id)
                {
                    size.unpacked = size.unpacked.saturating_add(shared.image.debug.unpacked);
                }
                source = descriptor_path(&found.file);
                symbols._open.push(found.file.into());
                symbols.tables.push(SymbolTable::new(found.bytes));
            }
        } else if is_split && let Some(package) = search.find_package(&file, Path::new(path)) {
            size = size.with(&package.size);
            is_split = false;
            source = package.program;
            symbols._open.push(package.directory);
        }
        symbols._open.push(file.into());
        symbols.tables.push(SymbolTable::new(bytes));
        if debug && size.info_and_line > 0 {
            match limits.objection(&size) {
                None => symbols.debug_source = Some(Source::from(Elf::new(source))),
                Some(objection) => notes.push(format!(
                    "{path} has {objection}: its functions are named from its symbol table, \
                     without source lines and inlined functions."
                )),
            }
            if is_split {
                notes.push(format!(
                    "Most debug information of {path} is in .dwo files, which are not read, only a \
                     package of them beside it is: its inlined functions are missing. \
                     `dwp -e {path} -o {path}.dwp` makes one."
                ));
            }
        }
        symbols
    }

    /// The build id, hexadecimal.
    pub fn build_id(&self) -> Option<String> {
        self.image.build_id.as_deref().map(hexadecimal)
    }

    /// The debug information of this file, for [`new_reader`].
    pub fn debug_source(&self) -> Option<&Source<'static>> {
        self.debug_source.as_ref()
    }

    /// Leaves the debug information alone from now on.
    pub fn give_up_debug_information(&mut self) {
        self.debug_source = None;
    }

    /// Looks up offsets in the file.
    pub fn resolve(&self, reader: &symbolize::Symbolizer, offsets: &[u64]) -> Vec<(u64, Found)> {
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
        let details = self
            .debug_source
            .as_ref()
            .and_then(|source| reader.symbolize(source, Input::VirtOffset(&inputs)).ok())
            .unwrap_or_default();
        offsets
            .iter()
            .zip(&addresses)
            .enumerate()
            .map(|(index, (offset, address))| {
                let detail = details.get(index).and_then(Symbolized::as_sym);
                let found = match address {
                    Some(address) => {
                        let functions = self.functions(*address, detail);
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

    fn functions(&self, address: u64, detail: Option<&Sym>) -> Vec<Function> {
        let covering = self.tables.iter().find_map(|table| table.covering(address));
        let within = detail.filter(|sym| covers(sym, address));
        let inlined = within.iter().flat_map(|sym| sym.inlined.iter().rev());
        let mut functions: Vec<Function> = inlined
            .take(MOST_INLINED)
            .map(|inlined| {
                let function = Function {
                    symbol: named(&inlined.name),
                    inlined: true,
                    ..Function::default()
                };
                located(function, inlined.code_info.as_ref())
            })
            .collect();
        let mut function = Function::default();
        if let Some(covering) = covering {
            function.symbol = Some(demangle(covering.name));
            function.symbol_offset = address - covering.start;
        } else if let Some(sym) = within.filter(|sym| sym.size.is_some()) {
            function.symbol = named(&sym.name);
            function.symbol_offset = address - sym.addr;
        }
        // The lines come from a table of their own, so they count also when
        // the function is unknown.
        let place = detail.and_then(|sym| sym.code_info.as_deref());
        functions.push(located(function, place));
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

/// A reader of debug information that has read nothing yet.
pub fn new_reader(debug_directories: &[PathBuf]) -> symbolize::Symbolizer {
    symbolize::Symbolizer::builder()
        .enable_code_info(true)
        .enable_inlined_fns(true)
        .enable_demangling(false)
        // The descriptors that it is given always mean the same file.
        .enable_auto_reload(false)
        .set_debug_dirs(Some(debug_directories))
        .build()
}

/// blazesym extends symbols without a size over whatever follows.
fn covers(sym: &Sym, address: u64) -> bool {
    let within = address.checked_sub(sym.addr);
    match (within, sym.size) {
        (Some(within), Some(size)) => within < size as u64,
        (Some(_), None) => true,
        (None, _) => false,
    }
}

fn named(name: &str) -> Option<String> {
    (!name.is_empty()).then(|| demangle(name))
}

fn located(function: Function, place: Option<&CodeInfo>) -> Function {
    let Some(place) = place else { return function };
    Function {
        source: Some(shorten(&place.to_path().to_string_lossy()).to_owned()),
        line: place.line.filter(|line| *line > 0),
        ..function
    }
}
