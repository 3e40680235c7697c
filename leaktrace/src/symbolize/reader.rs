//! The process that reads symbols. What it reads may be broken or hostile, and
//! the libraries that read it may panic, recurse deeply, believe a size or never
//! end. So it is a process of its own, with limits: it may die, or be killed,
//! and leaktrace goes on ([`super::worker`]).

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    thread,
    time::Duration,
};

use blazesym::symbolize;
use rustix::process::{Resource, Rlimit, Signal};

use super::{
    debug_file::SearchPath,
    debug_info::new_reader,
    file_symbols::FileSymbols,
    limits::{Limits, MemoryWatch, give_back_freed_memory},
    protocol::{Answer, Request, Setup},
};
use crate::{
    companion::{Channel, Service},
    file_map,
};

/// The companion that this is.
pub const SERVICE: Service = Service {
    subcommand: "__read-symbols",
    name: c"leaktrace-read",
    #[cfg(test)]
    as_a_test: "symbolize::reader::tests::serves_another_test",
};

/// Debug information nests as deeply as its author likes, and is read
/// recursively. Compilers write a few dozen levels, which take some KiB.
const STACK_SIZE: usize = 16 << 20;

/// How many addresses are looked up between two looks at time and memory.
const CHUNK: usize = 16;

/// Without requests for so long, much memory is given back: a batch is over.
const IDLE: Duration = Duration::from_secs(1);

/// Serves who started this process, through its stdin, until that ends.
///
/// # Errors
/// When stdin is no such line, or breaks.
pub fn run() -> io::Result<()> {
    SERVICE.begin();
    file_map::install();
    // Should it not listen any more. If this fails, it ends a little later.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let mut channel = Channel::of_stdin()?;
    let (setup, directories): (Setup, _) = channel.receive()?;
    let mut directories = directories.into_iter();
    let root = setup.has_root.then(|| directories.next()).flatten();
    let fetched = directories.next();
    let memory = Some(setup.limits.memory);
    let limit = Rlimit {
        current: memory,
        maximum: memory,
    };
    // All that is private and can be written to: stack and heap.
    rustix::process::setrlimit(Resource::Data, limit)?;
    let reader = thread::Builder::new()
        .stack_size(STACK_SIZE)
        .spawn(move || serve(&mut channel, &setup, root, fetched))?;
    reader
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("panicked")))
}

fn serve(
    channel: &mut Channel,
    setup: &Setup,
    root: Option<OwnedFd>,
    fetched: Option<OwnedFd>,
) -> io::Result<()> {
    let search = SearchPath::new(root, setup.debug_directories.clone(), fetched)?;
    let mut engine = Engine::new(search, setup);
    loop {
        if channel.is_silent_for(IDLE)? {
            engine.rest();
        }
        match channel.receive() {
            Ok((request, files)) => {
                let file = files
                    .into_iter()
                    .next()
                    .ok_or(io::ErrorKind::InvalidInput)?;
                engine.handle(&request, file.into(), channel)?;
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Everything read so far.
struct Engine {
    search: SearchPath,
    limits: Limits,
    inlined: bool,
    directories: Vec<PathBuf>,
    files: HashMap<u16, FileSymbols>,
    /// Files whose debug information took too much memory.
    too_large: HashSet<u16>,
    reader: symbolize::Symbolizer,
    memory: MemoryWatch,
}

impl Engine {
    fn new(search: SearchPath, setup: &Setup) -> Self {
        let directories = search.debug_directories();
        Self {
            reader: new_reader(&directories),
            search,
            limits: setup.limits,
            inlined: setup.inlined,
            directories,
            files: HashMap::new(),
            too_large: HashSet::new(),
            memory: MemoryWatch::new(),
        }
    }

    fn handle(&mut self, request: &Request, file: File, channel: &mut Channel) -> io::Result<()> {
        let missing_before = file_map::cut_short();
        let mut notes = Vec::new();
        if request.anew {
            self.forget();
        }
        let is_new = !self.files.contains_key(&request.file);
        let mut symbols = self.files.remove(&request.file).unwrap_or_else(|| {
            FileSymbols::open(
                &request.path,
                file,
                request.debug && !self.too_large.contains(&request.file),
                &self.search,
                &self.limits,
                &mut notes,
            )
        });
        let mut restarts = 0;
        for chunk in request.offsets.chunks(CHUNK) {
            let answer = Answer::Resolved {
                build_id: symbols.build_id(),
                places: symbols.resolve(&self.reader, chunk, self.inlined),
            };
            channel.send(&answer, &[])?;
            if self.memory.growth() >= self.limits.growth {
                self.forget();
                restarts += 1;
                if restarts > self.limits.restarts && symbols.has_debug_information() {
                    symbols.give_up_debug_information();
                    self.too_large.insert(request.file);
                    notes.push(format!(
                        "{} takes too much memory to read its debug information: some functions \
                         are named from its symbol table, without source lines and inlined functions.",
                        request.path
                    ));
                }
            }
        }
        if is_new && !symbols.missing().is_empty() {
            channel.send(&Answer::Missing(symbols.missing().to_vec()), &[])?;
        }
        self.files.insert(request.file, symbols);
        if file_map::cut_short() > missing_before {
            notes.push(format!(
                "{} or its debug file was cut short while it was read: some of its functions \
                 have no names, or wrong ones.",
                request.path
            ));
        }
        for note in notes {
            channel.send(&Answer::Note(note), &[])?;
        }
        channel.send(&Answer::Finished, &[])
    }

    /// Between two batches of requests.
    fn rest(&mut self) {
        if self.memory.growth() > self.limits.kept {
            self.forget();
        }
    }

    /// Drops what was read.
    fn forget(&mut self) {
        self.files.clear();
        self.reader = new_reader(&self.directories);
        give_back_freed_memory();
        self.memory = MemoryWatch::new();
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn serves_another_test() {
        crate::companion::tests::serve(&super::SERVICE, super::run);
    }
}
