//! What debug information says of an address.

use std::{
    fs::File,
    io,
    ops::Deref,
    path::{Path, PathBuf},
    rc::Rc,
};

use blazesym::symbolize::{
    self, CodeInfo, Input, Sym, Symbolized,
    source::{Elf, Source},
};
use gimli::{EndianReader, LittleEndian, SectionId};
use object::{Object as _, ObjectSection as _};

use super::{
    demangle::{demangle, shorten},
    protocol::Function,
};
use crate::file_map;

/// Most functions inlined at one address that are told; the innermost. Hostile
/// files have more.
const MOST_INLINED: usize = 256;

/// Debug information of one file.
pub enum DebugInfo {
    /// All of it is in one file; blazesym reads it.
    Whole(Source<'static>),
    /// Parts are in a file that several others share. blazesym does not find
    /// names there (0.2.7), addr2line does.
    Shared(addr2line::Context<Section>),
}

/// What is known of an address; functions as they are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Functions inlined there, innermost first.
    pub inlined: Vec<Function>,
    /// The function they are in.
    pub function: Function,
}

impl DebugInfo {
    /// That of a file at a path which stays valid.
    pub fn whole(path: &Path) -> Self {
        Self::Whole(Source::from(Elf::new(path)))
    }

    /// That of a file and of the one that it shares with others, if that was
    /// found.
    ///
    /// # Errors
    /// When one of them can't be mapped, or makes no sense.
    pub fn shared(file: &File, shared: Option<&File>) -> io::Result<Self> {
        let file = Bytes::of(file)?;
        let shared = shared.map(Bytes::of).transpose()?;
        let context = || {
            let mut dwarf = gimli::Dwarf::load(|id| file.section(id))?;
            if let Some(shared) = shared {
                dwarf.load_sup(|id| shared.section(id))?;
            }
            dwarf.populate_abbreviations_cache(gimli::AbbreviationsCacheStrategy::Duplicates);
            addr2line::Context::from_dwarf(dwarf)
        };
        context().map(Self::Shared).map_err(io::Error::other)
    }

    /// What is at each of the addresses.
    pub fn look_up(&self, reader: &symbolize::Symbolizer, addresses: &[u64]) -> Vec<Details> {
        match self {
            Self::Whole(source) => {
                let found = reader.symbolize(source, Input::VirtOffset(addresses));
                let details = |(found, address): (&Symbolized, &u64)| {
                    found
                        .as_sym()
                        .map_or_else(Details::default, |sym| from_blazesym(sym, *address))
                };
                let found = found.unwrap_or_default();
                found.iter().zip(addresses).map(details).collect()
            }
            Self::Shared(context) => {
                let details = |address: &u64| from_addr2line(context, *address);
                addresses.iter().map(details).collect()
            }
        }
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

fn from_blazesym(sym: &Sym, address: u64) -> Details {
    let located = |function: Function, place: Option<&CodeInfo>| {
        let Some(place) = place else { return function };
        Function {
            source: Some(shorten(&place.to_path().to_string_lossy()).to_owned()),
            line: place.line.filter(|line| *line > 0),
            ..function
        }
    };
    let mut details = Details::default();
    if covers(sym, address) {
        let inlined = sym.inlined.iter().rev().take(MOST_INLINED);
        let function = |inlined: &symbolize::InlinedFn| {
            let function = Function {
                symbol: named(&inlined.name),
                inlined: true,
                ..Function::default()
            };
            located(function, inlined.code_info.as_ref())
        };
        details.inlined = inlined.map(function).collect();
        if sym.size.is_some() {
            details.function.symbol = named(&sym.name);
            details.function.symbol_offset = address - sym.addr;
        }
    }
    // The lines come from a table of their own, so they count also when the
    // function is unknown.
    details.function = located(details.function, sym.code_info.as_deref());
    details
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

/// Without opening any other file that the debug information names.
fn from_addr2line(context: &addr2line::Context<Section>, address: u64) -> Details {
    let mut functions = Vec::new();
    if let Ok(mut frames) = context.find_frames(address).skip_all_loads() {
        while functions.len() <= MOST_INLINED
            && let Ok(Some(frame)) = frames.next()
        {
            let name = frame.function.as_ref().and_then(|it| it.raw_name().ok());
            let place = frame.location;
            functions.push(Function {
                symbol: name.and_then(|name| named(&name)),
                source: place
                    .as_ref()
                    .and_then(|place| place.file)
                    .map(|file| shorten(file).to_owned()),
                line: place.and_then(|place| place.line).filter(|line| *line > 0),
                inlined: true,
                ..Function::default()
            });
        }
    }
    let outermost = functions.pop().unwrap_or_default();
    Details {
        inlined: functions,
        // Where it begins is not told.
        function: Function {
            symbol: None,
            inlined: false,
            ..outermost
        },
    }
}

fn named(name: &str) -> Option<String> {
    (!name.is_empty()).then(|| demangle(name))
}

/// A section of debug information.
type Section = EndianReader<LittleEndian, Bytes>;

/// Bytes that stay where they are while anyone has them.
#[derive(Clone)]
pub struct Bytes(Rc<dyn AsRef<[u8]>>);

impl Bytes {
    fn of(file: &File) -> io::Result<Self> {
        Ok(Self(Rc::new(file_map::map(file)?)))
    }

    /// A section of the ELF file that these are; empty when there is none.
    fn section(&self, id: SectionId) -> Result<Section, gimli::Error> {
        let empty = || Section::new(Self(Rc::new([])), LittleEndian);
        let Ok(file) = object::File::parse(&**self) else {
            return Ok(empty());
        };
        let Some(section) = file.section_by_name(id.name()) else {
            return Ok(empty());
        };
        let Ok(range) = section.compressed_file_range() else {
            return Ok(empty());
        };
        if range.format == object::CompressionFormat::None {
            let whole = Section::new(self.clone(), LittleEndian);
            let end = range.offset.saturating_add(range.uncompressed_size);
            let (start, end) = (range.offset as usize, end as usize);
            return Ok(if start <= end && end <= self.len() {
                whole.range(start..end)
            } else {
                empty()
            });
        }
        let unpacked = section
            .uncompressed_data()
            .map_err(|_| gimli::Error::Io)?
            .into_owned();
        Ok(Section::new(Self(Rc::new(unpacked)), LittleEndian))
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} bytes", self.len())
    }
}

// SAFETY: a mapping, a vector or an array behind a reference count, none of
// which can change or move while there is a count.
unsafe impl gimli::StableDeref for Bytes {}
// SAFETY: a clone refers to the same bytes.
unsafe impl gimli::CloneStableDeref for Bytes {}
