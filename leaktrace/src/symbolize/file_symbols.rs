//! The symbols of one file, from its symbol tables and its debug information.

use std::{
    collections::HashSet,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use blazesym::symbolize::{
    self, CodeInfo, Input, Sym, Symbolized,
    source::{Elf, Source},
};

use crate::model::{Frame, FrameKind};

use super::{
    code_file::Image,
    debug_file::{SearchPath, descriptor_path, hexadecimal, map},
    demangle::{demangle, shorten},
    elf_image::ElfImage,
    limits::Limits,
    symbol_table::SymbolTable,
    thread_start::{is_thread_start, is_thread_start_code},
};

/// What is known of one file, read when its first address is looked up.
pub struct FileSymbols {
    path: Arc<str>,
    image: ElfImage,
    /// The separate debug file's comes first: it is complete.
    tables: Vec<SymbolTable>,
    /// Where debug information is read from; `None` when there is none, or it
    /// is not used.
    debug_source: Option<Source<'static>>,
    /// Keeps `debug_source`'s path valid.
    _debug_file: Option<File>,
    build_id: Option<Arc<str>>,
}

/// What an address is.
#[derive(Clone, Debug)]
pub struct Place {
    /// The functions inlined there, innermost first, and the one they are in.
    pub frames: Arc<[Frame]>,
    /// It's a call in a function in which a thread begins.
    pub begins_thread: bool,
}

/// Source file names, shared between frames.
#[derive(Default)]
pub struct SourceNames(HashSet<Arc<str>>);

impl FileSymbols {
    /// Reads headers and symbol tables. `path` is the file's in the target;
    /// without `debug` its debug information is left alone. Notes are sentences
    /// for the report.
    pub fn open(
        path: &Arc<str>,
        image: &Image,
        debug: bool,
        search: &SearchPath,
        limits: &Limits,
        notes: &mut Vec<String>,
    ) -> Self {
        let mut symbols = Self {
            path: Arc::clone(path),
            image: ElfImage::default(),
            tables: Vec::new(),
            debug_source: None,
            _debug_file: None,
            build_id: None,
        };
        let Some(bytes) = map(image.file()) else {
            notes.push(format!("{path} can't be read: no symbols for it."));
            return symbols;
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
        symbols.build_id = symbols
            .image
            .build_id
            .as_deref()
            .map(|id| hexadecimal(id).into());
        let mut size = symbols.image.debug;
        let mut source = descriptor_path(image.file());
        let separate = if symbols.image.has_debug_info() {
            None
        } else {
            search.find(&symbols.image, Path::new(&**path))
        };
        if let Some(found) = separate {
            size = found.image.debug;
            if let Some(id) = &found.image.shared_debug_build_id
                && let Some(shared) = search.find_shared(id)
            {
                size.unpacked = size.unpacked.saturating_add(shared.image.debug.unpacked);
            }
            source = descriptor_path(&found.file);
            symbols._debug_file = Some(found.file);
            symbols.tables.push(SymbolTable::new(found.bytes));
        }
        symbols.tables.push(SymbolTable::new(bytes));
        if debug && size.info_and_line > 0 {
            match limits.objection(&size) {
                None => symbols.debug_source = Some(Source::from(Elf::new(source))),
                Some(objection) => notes.push(format!(
                    "{path} has {objection}: its functions are named from its symbol table, \
                     without source lines and inlined functions."
                )),
            }
        }
        symbols
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
    pub fn resolve(
        &self,
        reader: &symbolize::Symbolizer,
        names: &mut SourceNames,
        offsets: &[u64],
    ) -> Vec<(u64, Place)> {
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
                let place = match address {
                    Some(address) => {
                        let frames = self.frames(*offset, *address, detail, names);
                        let begins_thread = self.begins_thread(*offset, *address, &frames);
                        Place {
                            frames,
                            begins_thread,
                        }
                    }
                    None => Place::unknown(self.blank(*offset)),
                };
                (*offset, place)
            })
            .collect()
    }

    fn frames(
        &self,
        offset: u64,
        address: u64,
        detail: Option<&Sym>,
        names: &mut SourceNames,
    ) -> Arc<[Frame]> {
        let covering = self.tables.iter().find_map(|table| table.covering(address));
        let within = detail.filter(|sym| covers(sym, address));
        let mut frames = Vec::new();
        for inlined in within.iter().flat_map(|sym| sym.inlined.iter().rev()) {
            let mut frame = self.blank(offset);
            frame.inlined = true;
            frame.symbol = named(&inlined.name);
            locate(&mut frame, inlined.code_info.as_ref(), names);
            frames.push(frame);
        }
        let mut frame = self.blank(offset);
        if let Some(function) = covering {
            frame.symbol = Some(demangle(function.name));
            frame.symbol_offset = address - function.start;
        } else if let Some(sym) = within.filter(|sym| sym.size.is_some()) {
            frame.symbol = named(&sym.name);
            frame.symbol_offset = address - sym.addr;
        }
        // The lines come from a table of their own, so they count also when
        // the function is unknown.
        locate(
            &mut frame,
            detail.and_then(|sym| sym.code_info.as_deref()),
            names,
        );
        frames.push(frame);
        frames.into()
    }

    fn begins_thread(&self, offset: u64, address: u64, frames: &[Frame]) -> bool {
        // The last table is the one of the mapped file itself, with the code.
        let code = self
            .tables
            .last()
            .map_or(&[][..], |own| own.bytes_from(offset + 1));
        frames.last().is_some_and(is_thread_start)
            || is_thread_start_code(address, self.image.entry, code)
    }

    fn blank(&self, offset: u64) -> Frame {
        Frame {
            build_id: self.build_id.clone(),
            ..blank_frame(Some(&self.path), offset)
        }
    }
}

impl Place {
    /// One without functions.
    pub fn unknown(frame: Frame) -> Self {
        Self {
            frames: Arc::from([frame]),
            begins_thread: false,
        }
    }
}

/// A frame of which only the place is known.
pub fn blank_frame(module: Option<&Arc<str>>, file_offset: u64) -> Frame {
    Frame {
        symbol: None,
        symbol_offset: 0,
        module: module.cloned(),
        file_offset,
        build_id: None,
        source: None,
        line: None,
        inlined: false,
        kind: FrameKind::Program,
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

fn locate(frame: &mut Frame, place: Option<&CodeInfo>, names: &mut SourceNames) {
    if let Some(place) = place {
        frame.source = Some(names.shared(&place.to_path()));
        frame.line = place.line.filter(|line| *line > 0);
    }
}

impl SourceNames {
    fn shared(&mut self, path: &Path) -> Arc<str> {
        let text = path.to_string_lossy();
        let text = shorten(&text);
        if let Some(known) = self.0.get(text) {
            return Arc::clone(known);
        }
        let name: Arc<str> = text.into();
        self.0.insert(Arc::clone(&name));
        name
    }
}
