//! Turns code addresses of the target into functions, source lines and inlined
//! functions.
//!
//! Only files are read, and only through descriptors opened while the target
//! ran, so that it may be gone by now, and its files deleted or replaced.
//! Everything that interprets those files happens in a process of its own
//! ([`reader`]), with limits on memory and time, since they may be broken or
//! hostile. When it dies or takes too long, it is started anew and reads less of
//! the file: symbol tables only, then nothing, which the report says.

mod address_space;
mod code_file;
mod debug_file;
mod demangle;
mod elf_image;
mod file_symbols;
mod limits;
mod protocol;
mod reader;
mod symbol_table;
mod thread_start;
mod vdso;
mod worker;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

use crate::{
    model::{Frame, FrameKind},
    target::{
        mapped_file::MappedFile,
        mapping::{Device, Mapping},
    },
};

use self::{
    address_space::{AddressSpace, CodeMapping, FileId, Location},
    code_file::{CodeFile, Image},
    protocol::{Answer, Found, Function, Request, Setup},
    worker::{Failure, Worker},
};

pub use limits::Limits;
pub use reader::run as run_reader;
pub use worker::SUBCOMMAND as READER;

/// How to symbolize.
#[derive(Clone, Debug)]
pub struct Options {
    /// The target's root directory (`/proc/PID/root`), where separate debug
    /// files are looked for first, and then in leaktrace's own. Opened by
    /// [`Symbolizer::new`], so that it outlives the target.
    pub target_root: Option<PathBuf>,
    /// Directories of separate debug files, in both roots.
    pub debug_directories: Vec<PathBuf>,
    /// Whether a function of this (demangled) name allocates on behalf of its
    /// caller, like `operator new`.
    pub is_allocation_wrapper: fn(&str) -> bool,
    /// What it may cost.
    pub limits: Limits,
}

impl Options {
    /// The usual directories and limits.
    #[must_use]
    pub fn new(is_allocation_wrapper: fn(&str) -> bool) -> Self {
        Self {
            target_root: None,
            debug_directories: vec!["/usr/lib/debug".into(), "/lib/debug".into()],
            is_allocation_wrapper,
            limits: Limits::default(),
        }
    }
}

/// Symbolizes the stacks of one process. Keeps what it found for each (file,
/// offset), so that an address costs something only once.
pub struct Symbolizer {
    options: Options,
    space: AddressSpace,
    files: Vec<KnownFile>,
    ids: HashMap<FileKey, FileId>,
    worker: Option<Worker>,
    names: Names,
    notes: Vec<String>,
    root: Option<OwnedFd>,
}

/// What makes two mappings' files the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct FileKey {
    device: Device,
    inode: u64,
    path: PathBuf,
}

struct KnownFile {
    file: CodeFile,
    trust: Trust,
    resolved: HashMap<u64, Place>,
}

/// What an address is.
#[derive(Clone, Debug)]
struct Place {
    /// The functions inlined there, innermost first, and the one they are in.
    frames: Arc<[Frame]>,
    /// It's a call in a function in which a thread begins.
    begins_thread: bool,
}

/// Names of files, shared between frames.
#[derive(Default)]
struct Names(HashSet<Arc<str>>);

/// How much of a file may be read, after it made the reader fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    Everything,
    SymbolTables,
    Nothing,
}

impl Symbolizer {
    /// Knows no mappings yet, and starts nothing.
    #[must_use]
    pub fn new(options: Options) -> Self {
        use rustix::fs::{Mode, OFlags, open};
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = options
            .target_root
            .as_ref()
            .and_then(|root| open(root, flags, Mode::empty()).ok());
        Self {
            options,
            space: AddressSpace::default(),
            files: Vec::new(),
            ids: HashMap::new(),
            worker: None,
            names: Names::default(),
            notes: Vec::new(),
            root,
        }
    }

    /// Takes the target's mappings as they are now, all of them, with the files
    /// behind those that hold code. Reads nothing. To be called at the attach
    /// and whenever the mappings have been read again; addresses that were
    /// symbolized before stay what they were.
    pub fn update(&mut self, mappings: &[Mapping], files: &[Arc<MappedFile>]) {
        let executable: Vec<&Mapping> = mappings.iter().filter(|m| m.executable).collect();
        let mut code = Vec::with_capacity(executable.len());
        for mapping in executable {
            let file = (!mapping.path.as_os_str().is_empty()).then(|| self.known(mapping, files));
            let Mapping {
                start, end, offset, ..
            } = *mapping;
            code.push(CodeMapping {
                start,
                end,
                offset,
                file,
            });
        }
        self.space.update(code);
    }

    /// The frames of a stack as the kernel side stored it: `addresses[0]` is
    /// the probed instruction in the watched function, the others are return
    /// addresses, from its caller outwards. Inlined functions become frames of
    /// their own. Of return addresses the byte before is looked up, since a call
    /// may be the last instruction of its function or line; `file_offset` and
    /// `symbol_offset` are those of that byte.
    ///
    /// The first frames are [`FrameKind::Allocator`]: the watched function, and
    /// callers as long as they are allocation wrappers.
    #[must_use]
    pub fn resolve_stack(&mut self, addresses: &[u64]) -> Arc<[Frame]> {
        self.look_up(looked_up(addresses));
        self.assemble(addresses)
    }

    /// Whether a stack's outermost frame is where its thread began: a function
    /// of a known name (`_start`, `clone3`), the code at a program's entry
    /// point, or a call after which the thread exits. The latter two also hold
    /// where files are stripped, as most distributions' libc is.
    #[must_use]
    pub fn begins_thread(&mut self, addresses: &[u64]) -> bool {
        let Some(outermost) = looked_up(addresses).last() else {
            return false;
        };
        self.look_up([outermost]);
        self.found(outermost).begins_thread
    }

    /// Whether every address of a stack lies in a mapping known so far. Settles
    /// which file those belong to that do: call it as soon as a stack is read,
    /// and read the mappings again when the answer is no.
    pub fn knows(&mut self, addresses: &[u64]) -> bool {
        let mut all = true;
        for address in looked_up(addresses) {
            all &= self.space.resolve(address).is_some();
        }
        all
    }

    /// What a person should know about the symbols, a sentence each: files
    /// whose debug information was too large, or that could not be read.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    fn known(&mut self, mapping: &Mapping, files: &[Arc<MappedFile>]) -> FileId {
        let opened = || -> Option<Image> {
            if mapping.is_special(vdso::VDSO) {
                return vdso::own_image().ok();
            }
            let backing = files
                .iter()
                .find(|file| mapping.is_file() && file.backs(mapping))?;
            Some(Image::Mapped(Arc::clone(backing)))
        };
        let key = FileKey {
            device: mapping.device,
            inode: mapping.inode,
            path: mapping.path.clone(),
        };
        if let Some(id) = self.ids.get(&key) {
            // It may be that only now it could be opened.
            let known = &mut self.files[id.0 as usize];
            if known.file.image.is_none() {
                known.file.image = opened();
                known.resolved.clear();
            }
            return *id;
        }
        let id = FileId(self.files.len() as u32);
        let file = CodeFile {
            path: mapping.path.to_string_lossy().into(),
            image: opened(),
        };
        self.files.push(KnownFile {
            file,
            trust: Trust::Everything,
            resolved: HashMap::new(),
        });
        self.ids.insert(key, id);
        id
    }

    /// Makes sure that every address that can be resolved is.
    fn look_up(&mut self, addresses: impl IntoIterator<Item = u64>) {
        let mut wanted: BTreeMap<FileId, BTreeSet<u64>> = BTreeMap::new();
        for address in addresses {
            if let Some(Location { file, file_offset }) = self.space.resolve(address)
                && !self.files[file.0 as usize]
                    .resolved
                    .contains_key(&file_offset)
            {
                wanted.entry(file).or_default().insert(file_offset);
            }
        }
        for (file, offsets) in wanted {
            self.read(file, offsets);
        }
    }

    /// Reads symbols until every offset has its frames, with less and less
    /// trust in the file.
    fn read(&mut self, id: FileId, mut offsets: BTreeSet<u64>) {
        let index = id.0 as usize;
        while let Some(image) = self.files[index].file.image.clone()
            && self.files[index].trust != Trust::Nothing
            && !offsets.is_empty()
        {
            let request = Request {
                file: id.0,
                path: self.files[index].file.path.to_string(),
                debug: self.files[index].trust == Trust::Everything,
                offsets: offsets.iter().copied().collect(),
            };
            let result = match self.worker() {
                Some(_) => self.ask(&request, &image, index, &mut offsets),
                None => break,
            };
            match result {
                Ok(()) => break,
                Err(failure) => self.distrust(index, failure),
            }
        }
        let known = &mut self.files[index];
        for offset in offsets {
            let blank = blank_frame(Some(&known.file.path), offset);
            known.resolved.insert(offset, Place::unknown(blank));
        }
    }

    /// The reader; `None`, with a note, when it can't be started.
    fn worker(&mut self) -> Option<&mut Worker> {
        // One that died between two requests says nothing about the next file.
        self.worker.take_if(Worker::has_ended);
        if self.worker.is_none() {
            let setup = Setup {
                debug_directories: self.options.debug_directories.clone(),
                limits: self.options.limits,
            };
            match Worker::start(&setup, self.root.as_ref().map(OwnedFd::as_fd)) {
                Ok(worker) => self.worker = Some(worker),
                Err(error) => {
                    let note = format!(
                        "The process that reads symbols could not be started ({error}): some \
                         functions have no names."
                    );
                    add_note(&mut self.notes, note);
                }
            }
        }
        self.worker.as_mut()
    }

    /// One try; what is answered leaves `offsets`.
    fn ask(
        &mut self,
        request: &Request,
        image: &Image,
        index: usize,
        offsets: &mut BTreeSet<u64>,
    ) -> Result<(), Failure> {
        let worker = self.worker.as_mut().ok_or(Failure::Died)?;
        worker.ask(request, image.file())?;
        let known = &mut self.files[index];
        loop {
            match worker.answer()? {
                Answer::Resolved { build_id, places } => {
                    let build_id = build_id.map(|id| self.names.shared(&id));
                    for (offset, found) in places {
                        if offsets.remove(&offset) {
                            let blank = Frame {
                                build_id: build_id.clone(),
                                ..blank_frame(Some(&known.file.path), offset)
                            };
                            let place = Place::new(found, &blank, &mut self.names);
                            known.resolved.insert(offset, place);
                        }
                    }
                }
                Answer::Note(note) => add_note(&mut self.notes, note),
                Answer::Finished => return Ok(()),
            }
        }
    }

    fn distrust(&mut self, index: usize, failure: Failure) {
        self.worker = None;
        let known = &mut self.files[index];
        let (trust, what, instead) = match known.trust {
            Trust::Everything => (
                Trust::SymbolTables,
                "debug information",
                "its functions are named from its symbol table, without source lines",
            ),
            _ => (Trust::Nothing, "symbols", "its functions have no names"),
        };
        known.trust = trust;
        let why = match failure {
            Failure::Died => "being broken or too much",
            Failure::Late => "taking too long to read",
        };
        add_note(
            &mut self.notes,
            format!(
                "The {what} of {} can't be used, {why}: {instead}.",
                known.file.path
            ),
        );
    }

    /// What is known of an address that was looked up.
    fn found(&mut self, address: u64) -> Place {
        let location = self.space.resolve(address);
        let known = location.and_then(|Location { file, file_offset }| {
            self.files[file.0 as usize].resolved.get(&file_offset)
        });
        known
            .cloned()
            .unwrap_or_else(|| Place::unknown(blank_frame(None, address)))
    }

    fn assemble(&mut self, addresses: &[u64]) -> Arc<[Frame]> {
        let mut frames = Vec::with_capacity(addresses.len());
        let mut in_allocator = true;
        for (position, address) in looked_up(addresses).enumerate() {
            for frame in &*self.found(address).frames {
                in_allocator &= position == 0
                    || frame
                        .symbol
                        .as_deref()
                        .is_some_and(self.options.is_allocation_wrapper);
                let kind = if in_allocator {
                    FrameKind::Allocator
                } else {
                    FrameKind::Program
                };
                frames.push(Frame {
                    kind,
                    ..frame.clone()
                });
            }
        }
        frames.into()
    }
}

impl Place {
    /// What the reader found; `blank` is a frame without functions.
    fn new(found: Found, blank: &Frame, names: &mut Names) -> Self {
        let frame = |function: Function| Frame {
            symbol: function.symbol,
            symbol_offset: function.symbol_offset,
            source: function.source.map(|source| names.shared(&source)),
            line: function.line,
            inlined: function.inlined,
            ..blank.clone()
        };
        Self {
            frames: found.functions.into_iter().map(frame).collect(),
            begins_thread: found.begins_thread,
        }
    }

    /// One without functions.
    fn unknown(blank: Frame) -> Self {
        Self {
            frames: Arc::from([blank]),
            begins_thread: false,
        }
    }
}

impl Names {
    fn shared(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.0.get(name) {
            return Arc::clone(known);
        }
        let name: Arc<str> = name.into();
        self.0.insert(Arc::clone(&name));
        name
    }
}

/// A frame of which only the place is known.
fn blank_frame(module: Option<&Arc<str>>, file_offset: u64) -> Frame {
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

/// The addresses to look up for a stack's addresses.
fn looked_up(addresses: &[u64]) -> impl Iterator<Item = u64> {
    let return_address = |(position, address): (usize, &u64)| match position {
        0 => *address,
        _ => address.saturating_sub(1),
    };
    addresses.iter().enumerate().map(return_address)
}

fn add_note(notes: &mut Vec<String>, note: String) {
    if !notes.contains(&note) {
        notes.push(note);
    }
}
