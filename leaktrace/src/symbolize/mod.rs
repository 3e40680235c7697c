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
pub(crate) mod debug_file;
mod debug_info;
mod debuginfod;
mod demangle;
pub(crate) mod elf_image;
mod file_symbols;
mod limits;
pub(crate) mod mini_debug_info;
mod protocol;
mod reader;
mod symbol_table;
mod thread_start;
mod worker;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use leaktrace_common::stack::FrameWord;

use crate::{
    model::{Frame, FrameKind},
    target::{
        code_files::{CodeFile, CodeFiles, FileNumber, Image},
        mapped_file::MappedFile,
        mapping::Mapping,
    },
};

use self::{
    address_space::{AddressSpace, CodeMapping},
    debuginfod::{Arrived, Fetcher},
    protocol::{Answer, Found, Function, Request, Setup},
    worker::{Failure, Worker},
};

pub use debuginfod::VARIABLE as SERVERS;
pub use limits::Limits;
pub use reader::{SERVICE as READER, run as run_reader};

/// How to symbolize.
#[derive(Clone, Debug)]
pub struct Options {
    /// The target's root directory (`/proc/PID/root`), where separate debug
    /// files are looked for first, and then in leaktrace's own. Opened by
    /// [`Symbolizer::new`], so that it outlives the target.
    pub target_root: Option<PathBuf>,
    /// Directories of separate debug files, in both roots.
    pub debug_directories: Vec<PathBuf>,
    /// Servers from which debug information is fetched that is nowhere else;
    /// addresses separated by blanks.
    pub servers: Option<String>,
    /// Whether inlined functions get frames of their own.
    pub inlined: bool,
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
            debug_directories: debug_file::DIRECTORIES.map(PathBuf::from).to_vec(),
            servers: None,
            inlined: true,
            is_allocation_wrapper,
            limits: Limits::default(),
        }
    }
}

/// Symbolizes the stacks of one process. Keeps what it found for each (file,
/// offset), so that an address costs something only once.
pub struct Symbolizer {
    options: Options,
    code: Arc<Mutex<CodeFiles>>,
    space: AddressSpace,
    files: HashMap<FileNumber, KnownFile>,
    worker: Option<Worker>,
    names: Names,
    notes: Vec<String>,
    root: Option<OwnedFd>,
    fetcher: Option<Fetcher>,
    /// Files of which no server has debug information.
    nowhere: BTreeSet<Arc<str>>,
    /// There are debug files that the reader does not know.
    has_new_files: bool,
}

/// What was read of a file.
#[derive(Debug, Default)]
struct KnownFile {
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Trust {
    #[default]
    Everything,
    SymbolTables,
    Nothing,
}

impl Symbolizer {
    /// Knows no mappings yet, and starts nothing. Frames name files by their
    /// numbers in `code`.
    #[must_use]
    pub fn new(options: Options, code: Arc<Mutex<CodeFiles>>) -> Self {
        use rustix::fs::{Mode, OFlags, open};
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = options
            .target_root
            .as_ref()
            .and_then(|root| open(root, flags, Mode::empty()).ok());
        let mut notes = Vec::new();
        let fetcher = options.servers.as_deref().map(Fetcher::start);
        let fetcher = fetcher.and_then(|started| {
            let refused = |why| format!("No debug information is fetched: {why}.");
            started
                .map_err(|why| add_note(&mut notes, refused(why)))
                .ok()
        });
        Self {
            options,
            code,
            space: AddressSpace::default(),
            files: HashMap::new(),
            worker: None,
            names: Names::default(),
            notes,
            root,
            fetcher,
            nowhere: BTreeSet::new(),
            has_new_files: false,
        }
    }

    /// Uses debug information that was fetched since the last time; whether
    /// there is some, so that stacks may now have better frames.
    pub fn take_fetched(&mut self) -> bool {
        let arrived = self.fetcher.as_mut().map(Fetcher::arrived);
        arrived.is_some_and(|arrived| self.take(arrived))
    }

    /// Waits until everything is fetched that was found missing, so long at
    /// most; the answer is that of [`Self::take_fetched`].
    pub fn wait_for_fetched(&mut self, most: Duration) -> bool {
        let arrived = self.fetcher.as_mut().map(|fetcher| fetcher.wait(most));
        arrived.is_some_and(|arrived| self.take(arrived))
    }

    fn take(&mut self, arrived: Arrived) -> bool {
        for number in &arrived.files {
            if let Some(known) = self.files.get_mut(number) {
                known.resolved.clear();
            }
        }
        for number in arrived.nowhere {
            let path = self.file(number).map(|file| file.path);
            self.nowhere.extend(path);
        }
        for failure in arrived.failures {
            add_note(&mut self.notes, failure);
        }
        self.has_new_files |= !arrived.files.is_empty();
        !arrived.files.is_empty()
    }

    /// Takes the target's mappings as they are now, all of them, with the files
    /// behind those that hold code. Reads nothing. To be called at the attach
    /// and whenever the mappings have been read again; addresses that were
    /// [located](Self::locate) before stay what they were.
    pub fn update(&mut self, mappings: &[Mapping], files: &[Arc<MappedFile>]) {
        let mut known = CodeFiles::lock(&self.code);
        let code = mappings.iter().filter(|mapping| mapping.executable);
        self.space.update(code.map(|mapping| CodeMapping {
            start: mapping.start,
            end: mapping.end,
            offset: mapping.offset,
            file: known.number(mapping, files),
        }));
    }

    /// Finds the files of a stack's frames that have only an address, by the
    /// mappings known so far; false when some lie in no known file. To be called
    /// as soon as a stack is read; when the answer is no, read the mappings again.
    pub fn locate(&mut self, frames: &mut [FrameWord]) -> bool {
        let mut all = true;
        for (position, frame) in frames.iter_mut().enumerate() {
            if frame.file() != 0 {
                continue;
            }
            // A call may be the last instruction that is mapped.
            let back = u64::from(position > 0 && frame.offset() > 0);
            match self.space.resolve(frame.offset() - back) {
                Some(byte) => {
                    *frame = FrameWord::in_file(byte.file(), byte.offset() + back);
                }
                None => all = false,
            }
        }
        all
    }

    /// The functions of a stack: `places[0]` is the probed instruction in the
    /// watched function, the others are in the calls of its callers, from it
    /// outwards. Inlined functions become frames of their own.
    ///
    /// The first frames are [`FrameKind::Allocator`]: the watched function, and
    /// callers as long as they are allocation wrappers.
    #[must_use]
    pub fn resolve_stack(&mut self, places: &[FrameWord]) -> Arc<[Frame]> {
        self.look_up(places);
        self.assemble(places)
    }

    /// Whether a place, a stack's outermost, is where its thread began: a
    /// function of a known name (`_start`, `clone3`), the code at a program's
    /// entry point, or a call after which the thread exits. The latter two also
    /// hold where files are stripped, as most distributions' libc is.
    #[must_use]
    pub fn begins_thread(&mut self, outermost: FrameWord) -> bool {
        self.look_up(&[outermost]);
        self.found(outermost).begins_thread
    }

    /// The path of the file that a frame is in.
    #[must_use]
    pub fn path(&self, frame: FrameWord) -> Option<Arc<str>> {
        Some(self.file(FileNumber(frame.file()))?.path)
    }

    /// What a person should know about the symbols, a sentence each: files
    /// whose debug information was too large, or that could not be read.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.notes.clone();
        if !self.nowhere.is_empty() {
            let files: Vec<&str> = self.nowhere.iter().map(|path| &**path).collect();
            notes.push(format!(
                "No server in {SERVERS} has debug information for {}.",
                files.join(", ")
            ));
        }
        notes
    }

    /// The file with a number.
    fn file(&self, number: FileNumber) -> Option<CodeFile> {
        CodeFiles::lock(&self.code).get(number).cloned()
    }

    /// Makes sure that every place that can be resolved is.
    fn look_up(&mut self, places: &[FrameWord]) {
        let mut wanted: BTreeMap<FileNumber, BTreeSet<u64>> = BTreeMap::new();
        for &place in places {
            if self.resolved(place).is_none() {
                let file = FileNumber(place.file());
                wanted.entry(file).or_default().insert(place.offset());
            }
        }
        for (number, offsets) in wanted {
            // It may be opened later.
            if let Some(file) = self.file(number)
                && let Some(image) = file.image
            {
                self.read(number, &file.path, &image, offsets);
            }
        }
    }

    /// Reads symbols until every offset has its frames, with less and less
    /// trust in the file.
    fn read(
        &mut self,
        number: FileNumber,
        path: &Arc<str>,
        image: &Image,
        mut offsets: BTreeSet<u64>,
    ) {
        loop {
            let trust = self.known(number).trust;
            if trust == Trust::Nothing || offsets.is_empty() || self.worker().is_none() {
                break;
            }
            let request = Request {
                file: number.0,
                path: path.to_string(),
                anew: std::mem::take(&mut self.has_new_files),
                debug: trust == Trust::Everything,
                offsets: offsets.iter().copied().collect(),
            };
            match self.ask(&request, image, number, path, &mut offsets) {
                Ok(()) => break,
                Err(failure) => self.distrust(number, path, failure),
            }
        }
        let known = self.known(number);
        for offset in offsets {
            let blank = blank_frame(Some(path), offset);
            known.resolved.insert(offset, Place::unknown(blank));
        }
    }

    fn known(&mut self, number: FileNumber) -> &mut KnownFile {
        self.files.entry(number).or_default()
    }

    /// The reader; `None`, with a note, when it can't be started.
    fn worker(&mut self) -> Option<&mut Worker> {
        // One that died between two requests says nothing about the next file.
        self.worker.take_if(Worker::has_ended);
        if self.worker.is_none() {
            let setup = Setup {
                has_root: self.root.is_some(),
                debug_directories: self.options.debug_directories.clone(),
                inlined: self.options.inlined,
                limits: self.options.limits,
            };
            let root = self.root.as_ref().map(OwnedFd::as_fd);
            let fetcher = self.fetcher.as_ref();
            let fetched = fetcher.map(|fetcher| fetcher.directory().as_fd());
            match Worker::start(&setup, root, fetched) {
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
        number: FileNumber,
        path: &Arc<str>,
        offsets: &mut BTreeSet<u64>,
    ) -> Result<(), Failure> {
        let worker = self.worker.as_mut().ok_or(Failure::Died)?;
        worker.ask(request, image.file())?;
        let known = self.files.entry(number).or_default();
        loop {
            match worker.answer()? {
                Answer::Resolved { build_id, places } => {
                    let build_id = build_id.map(|id| self.names.shared(&id));
                    for (offset, found) in places {
                        if offsets.remove(&offset) {
                            let blank = Frame {
                                build_id: build_id.clone(),
                                ..blank_frame(Some(path), offset)
                            };
                            let place = Place::new(found, &blank, &mut self.names);
                            known.resolved.insert(offset, place);
                        }
                    }
                }
                Answer::Missing(build_ids) => {
                    // Without a path, it is no file that anyone has.
                    if let Some(fetcher) = self.fetcher.as_mut().filter(|_| path.starts_with('/')) {
                        for build_id in build_ids {
                            fetcher.want(&build_id, number);
                        }
                    }
                }
                Answer::Note(note) => add_note(&mut self.notes, note),
                Answer::Finished => return Ok(()),
            }
        }
    }

    fn distrust(&mut self, number: FileNumber, path: &str, failure: Failure) {
        self.worker = None;
        let known = self.known(number);
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
            format!("The {what} of {path} can't be used, {why}: {instead}."),
        );
    }

    fn resolved(&self, place: FrameWord) -> Option<&Place> {
        let file = self.files.get(&FileNumber(place.file()))?;
        file.resolved.get(&place.offset())
    }

    /// What is known of a place that was looked up.
    fn found(&self, place: FrameWord) -> Place {
        self.resolved(place).cloned().unwrap_or_else(|| {
            let file = self.file(FileNumber(place.file()));
            let path = file.as_ref().map(|file| &file.path);
            Place::unknown(blank_frame(path, place.offset()))
        })
    }

    fn assemble(&self, places: &[FrameWord]) -> Arc<[Frame]> {
        let mut frames = Vec::with_capacity(places.len());
        let mut in_allocator = true;
        for (position, &place) in places.iter().enumerate() {
            for frame in &*self.found(place).frames {
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

fn add_note(notes: &mut Vec<String>, note: String) {
    if !notes.contains(&note) {
        notes.push(note);
    }
}
