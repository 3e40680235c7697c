//! Turns code addresses of the target into functions, source lines and inlined
//! functions.
//!
//! Only files are read, and only through descriptors opened while the target
//! ran, so that it may be gone by now, and its files deleted or replaced.
//! Everything that interprets those files happens in a thread of its own
//! ([`worker`]), since they may be broken or hostile. What that does not save
//! leaktrace from: a file cut short while it is read (SIGBUS), debug information
//! nested half a million levels deep (stack overflow), and compressed debug
//! information that is larger than it says (memory).

mod address_space;
mod code_file;
mod debug_file;
mod demangle;
mod elf_image;
mod file_symbols;
mod limits;
mod symbol_table;
mod thread_start;
mod vdso;
mod worker;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
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
    debug_file::{SearchPath, descriptor_path},
    file_symbols::{Place, blank_frame},
    worker::{Answer, Failure, Request, Worker},
};

pub use limits::Limits;

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
    notes: Vec<String>,
    /// Keeps the path to the target's root in `options` valid.
    _root: Option<File>,
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
    pub fn new(mut options: Options) -> Self {
        let root = options.target_root.as_ref().and_then(|root| {
            let flags = libc::O_PATH | libc::O_DIRECTORY;
            OpenOptions::new()
                .read(true)
                .custom_flags(flags)
                .open(root)
                .ok()
        });
        if let Some(root) = &root {
            options.target_root = Some(descriptor_path(root));
        }
        Self {
            options,
            space: AddressSpace::default(),
            files: Vec::new(),
            ids: HashMap::new(),
            worker: None,
            notes: Vec::new(),
            _root: root,
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
                file: id,
                path: Arc::clone(&self.files[index].file.path),
                image,
                debug: self.files[index].trust == Trust::Everything,
                offsets: offsets.iter().copied().collect(),
            };
            match self.ask(request, index, &mut offsets) {
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

    /// One try; what is answered leaves `offsets`.
    fn ask(
        &mut self,
        request: Request,
        index: usize,
        offsets: &mut BTreeSet<u64>,
    ) -> Result<(), Failure> {
        let worker = match &self.worker {
            Some(worker) => worker,
            None => {
                let worker = Worker::start(self.search_path(), self.options.limits)
                    .map_err(|_| Failure::Died)?;
                self.worker.insert(worker)
            }
        };
        worker.ask(request)?;
        loop {
            match worker.answer()? {
                Answer::Resolved(resolved) => {
                    for (offset, frames) in resolved {
                        offsets.remove(&offset);
                        self.files[index].resolved.insert(offset, frames);
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
            Failure::Died => "being broken",
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

    fn search_path(&self) -> SearchPath {
        let own = PathBuf::from("/");
        SearchPath {
            roots: self
                .options
                .target_root
                .iter()
                .cloned()
                .chain([own])
                .collect(),
            directories: self.options.debug_directories.clone(),
        }
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
