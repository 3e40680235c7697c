//! The thread that reads symbols. What it reads may be broken or hostile, and
//! the libraries that read it may panic, recurse deeply or never end: the thread
//! then dies or is left behind, and leaktrace goes on.

use std::{
    collections::{HashMap, HashSet},
    panic,
    path::PathBuf,
    sync::{
        Arc, Once,
        mpsc::{self, Receiver, RecvError, RecvTimeoutError, Sender},
    },
    thread,
    time::Duration,
};

use blazesym::symbolize;

use super::{
    address_space::FileId,
    code_file::Image,
    debug_file::SearchPath,
    file_symbols::{FileSymbols, Place, SourceNames, new_reader},
    limits::{Limits, MemoryWatch, give_back_freed_memory},
};

/// Name of the thread.
const NAME: &str = "symbolize";

/// Debug information nests as deeply as its author likes, and is read
/// recursively. Only what is used of this becomes memory.
const STACK_SIZE: usize = 256 << 20;

/// How many addresses are looked up between two looks at time and memory.
const CHUNK: usize = 16;

/// Without requests for so long, much memory is given back: a batch is over.
const IDLE: Duration = Duration::from_secs(1);

/// Look-ups in one file.
pub struct Request {
    /// Its number.
    pub file: FileId,
    /// Its path in the target.
    pub path: Arc<str>,
    /// The opened file.
    pub image: Image,
    /// Whether to use debug information; without, only symbol tables.
    pub debug: bool,
    /// The offsets in it.
    pub offsets: Vec<u64>,
}

/// What the thread answers.
pub enum Answer {
    /// What some of the offsets are.
    Resolved(Vec<(u64, Place)>),
    /// A sentence for the report.
    Note(String),
    /// The request is done.
    Finished,
}

/// Why no answer came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The thread panicked.
    Died,
    /// It took longer than [`Limits::patience`].
    Late,
}

/// The thread. After a [`Failure`] it must not be used again; it ends when this
/// is dropped, or as soon as it notices.
pub struct Worker {
    requests: Sender<Request>,
    answers: Receiver<Answer>,
    limits: Limits,
}

impl Worker {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the kernel gives no thread.
    pub fn start(search: SearchPath, limits: Limits) -> std::io::Result<Self> {
        keep_panics_quiet();
        let (requests, incoming) = mpsc::channel();
        let (outgoing, answers) = mpsc::channel();
        thread::Builder::new()
            .name(NAME.to_owned())
            .stack_size(STACK_SIZE)
            .spawn(move || serve(&incoming, &outgoing, search, limits))?;
        Ok(Self {
            requests,
            answers,
            limits,
        })
    }

    /// Asks for look-ups; answers come from [`Self::answer`].
    ///
    /// # Errors
    /// When the thread is dead.
    pub fn ask(&self, request: Request) -> Result<(), Failure> {
        self.requests.send(request).map_err(|_| Failure::Died)
    }

    /// Waits for the next answer.
    ///
    /// # Errors
    /// When the thread died, or does not answer.
    pub fn answer(&self) -> Result<Answer, Failure> {
        self.answers
            .recv_timeout(self.limits.patience)
            .map_err(|error| match error {
                RecvTimeoutError::Timeout => Failure::Late,
                RecvTimeoutError::Disconnected => Failure::Died,
            })
    }
}

/// A panic of this thread is an expected answer to broken files; its message
/// would only spoil the screen. Needs `panic = "unwind"`.
fn keep_panics_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if thread::current().name() != Some(NAME) {
                usual(info);
            }
        }));
    });
}

fn serve(
    requests: &Receiver<Request>,
    answers: &Sender<Answer>,
    search: SearchPath,
    limits: Limits,
) {
    let mut engine = Engine::new(search, limits);
    loop {
        let request = requests.recv_timeout(IDLE).or_else(|error| match error {
            RecvTimeoutError::Timeout => {
                engine.rest();
                requests.recv()
            }
            RecvTimeoutError::Disconnected => Err(RecvError),
        });
        let Ok(request) = request else { return };
        if engine.handle(request, answers).is_none() {
            return; // Nobody waits any more.
        }
    }
}

/// Everything read so far.
struct Engine {
    search: SearchPath,
    limits: Limits,
    directories: Vec<PathBuf>,
    files: HashMap<FileId, FileSymbols>,
    /// Files whose debug information took too much memory.
    too_large: HashSet<FileId>,
    reader: symbolize::Symbolizer,
    names: SourceNames,
    memory: MemoryWatch,
}

impl Engine {
    fn new(search: SearchPath, limits: Limits) -> Self {
        let directories = search.debug_directories();
        Self {
            reader: new_reader(&directories),
            search,
            limits,
            directories,
            files: HashMap::new(),
            too_large: HashSet::new(),
            names: SourceNames::default(),
            memory: MemoryWatch::new(),
        }
    }

    /// `None` when nobody listens.
    fn handle(&mut self, request: Request, answers: &Sender<Answer>) -> Option<()> {
        let mut notes = Vec::new();
        let mut file = self.files.remove(&request.file).unwrap_or_else(|| {
            FileSymbols::open(
                &request.path,
                &request.image,
                request.debug && !self.too_large.contains(&request.file),
                &self.search,
                &self.limits,
                &mut notes,
            )
        });
        let mut restarts = 0;
        for chunk in request.offsets.chunks(CHUNK) {
            let resolved = file.resolve(&self.reader, &mut self.names, chunk);
            answers.send(Answer::Resolved(resolved)).ok()?;
            if self.memory.growth() >= self.limits.growth {
                self.forget();
                restarts += 1;
                if restarts > self.limits.restarts && file.debug_source().is_some() {
                    file.give_up_debug_information();
                    self.too_large.insert(request.file);
                    notes.push(format!(
                        "{} takes too much memory to read its debug information: some functions \
                         are named from its symbol table, without source lines and inlined functions.",
                        request.path
                    ));
                }
            }
        }
        self.files.insert(request.file, file);
        for note in notes {
            answers.send(Answer::Note(note)).ok()?;
        }
        answers.send(Answer::Finished).ok()
    }

    /// Between two batches of requests.
    fn rest(&mut self) {
        if self.memory.growth() > self.limits.kept {
            self.forget();
        }
    }

    /// Drops what was read. Memory that others took meanwhile no longer counts.
    fn forget(&mut self) {
        self.files.clear();
        self.reader = new_reader(&self.directories);
        give_back_freed_memory();
        self.memory = MemoryWatch::new();
    }
}
