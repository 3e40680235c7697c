//! Keeps the programs' unwind tables and mappings those of the target: tables
//! of the files that it maps are made while everything else is prepared, and a
//! thread looks for new mappings as long as it is traced.
//!
//! New code is learned from the kernel's records, where the mappings' source has
//! them; else when the loader tells of it, or a walk has met an address that no
//! known mapping holds: both cost the target nothing as long as it maps nothing
//! new. Until then programs ask the kernel, where they can, and know the files
//! that have a number here.
//!
//! Code that is unloaded: the loader tells the programs, which then trust no
//! mapping until others are published. What else takes the place of a file is
//! seen once a second, and its stacks are doubted from then on.

mod publisher;
mod wait;

use std::{
    io,
    ops::Deref,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use self::publisher::Publisher;
use crate::{
    bpf::{Maps, TableRoom},
    file_map,
    target::{
        Process,
        code_files::{CodeFiles, Image},
        mapped_file::{FileIdentity, MappedFile},
        mapping_watch::MappingWatch,
        vdso,
    },
    unwind::{self, Cache, CompileError, FileTable, Source, UnwindMode},
};

/// How long attaching waits for tables after everything else is ready.
const PATIENCE: Duration = Duration::from_millis(250);
/// The same with a command that has not begun, so that nothing is missed.
const PATIENCE_BEFORE_START: Duration = Duration::from_secs(5);
/// Room for rows and pages of files that are mapped later: those of some twenty
/// libraries as large as libc, and 256 MiB of text.
const RESERVE: TableRoom = TableRoom {
    rows: 1 << 19,
    pages: 1 << 12,
};
/// Bytes of call frame information for a row, at least; of libc, libstdc++ and
/// git 5.4 to 5.9.
const BYTES_PER_ROW: usize = 5;

/// Which file; none for the vDSO.
type Key = Option<FileIdentity>;
type Made = Vec<(Key, Result<FileTable, CompileError>)>;

/// Tables that are being made.
pub struct Preparation {
    room: TableRoom,
    made: JoinHandle<Made>,
    cache: Option<Arc<Cache>>,
    mode: UnwindMode,
}

/// One file whose table is wanted.
struct Wanted(Image);

impl Source for Wanted {
    fn path(&self) -> &Path {
        match &self.0 {
            Image::Mapped(file) => file.path(),
            Image::Own(_) => Path::new(vdso::NAME),
        }
    }
    fn bytes(&self) -> io::Result<impl Deref<Target = [u8]>> {
        file_map::map(self.0.file())
    }
}

impl Preparation {
    /// Begins to make the tables of the files that the target maps, or will.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start(files: &[Arc<MappedFile>], mode: UnwindMode, with_cache: bool) -> Result<Self> {
        let cache = with_cache.then(|| Cache::open().ok()).flatten();
        let cache = cache.map(Arc::new);
        let mut files: Vec<(usize, Arc<MappedFile>)> = files
            .iter()
            .map(|file| (information_size(file), Arc::clone(file)))
            .collect();
        let room = room_for(&files);
        // The program itself, then what is ready soonest.
        if let Some((_, libraries)) = files.split_first_mut() {
            libraries.sort_by_key(|(size, _)| *size);
        }
        let used = cache.clone();
        let is_wanted = mode != UnwindMode::FramePointers;
        let made = thread::Builder::new()
            .name("tables".into())
            .spawn(move || {
                let images = files.into_iter().map(|(_, file)| Image::Mapped(file));
                let wanted: Vec<Wanted> = images.chain(vdso::own_image()).map(Wanted).collect();
                let mut made = Vec::new();
                if is_wanted {
                    unwind::compile_all(&wanted, used.as_deref(), |index, table| {
                        made.push((wanted[index].0.identity(), table));
                    });
                }
                made
            })
            .context("starting a thread that makes unwind tables")?;
        Ok(Self {
            room,
            made,
            cache,
            mode,
        })
    }

    /// How much room the programs' maps need.
    #[must_use]
    pub fn room(&self) -> TableRoom {
        self.room
    }
}

/// Bytes of a file's call frame information.
fn information_size(file: &MappedFile) -> usize {
    let Ok(bytes) = file.map() else { return 0 };
    unwind::read::read(&bytes).map_or(0, |sources| sources.size())
}

/// Room for the tables of these files, with the reserve.
fn room_for(files: &[(usize, Arc<MappedFile>)]) -> TableRoom {
    let rows: usize = files.iter().map(|(size, _)| size / BYTES_PER_ROW).sum();
    let pages: u64 = files
        .iter()
        .filter_map(|(_, file)| Some((file.file().metadata().ok()?.len() >> 16) + 1))
        .sum();
    let bounded = |number: u64, reserve: u32| {
        u32::try_from(number)
            .unwrap_or(u32::MAX)
            .saturating_add(reserve)
    };
    TableRoom {
        rows: bounded(rows as u64, RESERVE.rows),
        pages: bounded(pages, RESERVE.pages),
    }
}

/// What the thread works on, shared with whoever makes reports.
#[derive(Clone)]
pub struct Subject {
    pub process: Arc<Process>,
    pub mappings: Arc<Mutex<MappingWatch>>,
    pub code: Arc<Mutex<CodeFiles>>,
}

/// The thread and the way to it.
pub struct Unwinding {
    stop: Arc<AtomicBool>,
    /// Taken when it has ended.
    thread: Option<JoinHandle<Vec<String>>>,
    stages: Receiver<Stage>,
    /// Dropped when it shall end.
    subject: Option<Sender<Subject>>,
}

/// How far the thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The tables that were begun are there.
    Prepared,
    /// So are the mappings of the process.
    Followed,
}

impl Unwinding {
    /// Begins to publish what the programs need. Files get their numbers in `code`;
    /// those that the process is expected to map get them at once.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start(
        preparation: Preparation,
        maps: Arc<Maps>,
        code: &Arc<Mutex<CodeFiles>>,
        expected: &[Arc<MappedFile>],
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, stages) = mpsc::channel();
        let (subject, subjects) = mpsc::channel();
        maps.control()
            .set_frame_pointers(preparation.mode == UnwindMode::FramePointers);
        let publisher = Publisher::new(maps, Arc::clone(code), preparation.mode, preparation.cache);
        let (made, stopped) = (preparation.made, Arc::clone(&stop));
        let expected = expected.to_vec();
        let thread = thread::Builder::new()
            .name("unwinding".into())
            .spawn(move || publisher.run(made, &expected, &sender, &subjects, &stopped))
            .context("starting a thread that follows the process's mappings")?;
        Ok(Self {
            stop,
            thread: Some(thread),
            stages,
            subject: Some(subject),
        })
    }

    /// Follows this process from now on.
    pub fn follow(&self, subject: Subject) {
        if let Some(to_thread) = &self.subject {
            // It may have ended.
            _ = to_thread.send(subject);
        }
    }

    /// Waits until this is done, or for as long as it is worth.
    pub fn wait_until(&self, stage: Stage) {
        let deadline = Instant::now()
            + match stage {
                Stage::Prepared => PATIENCE_BEFORE_START,
                Stage::Followed => PATIENCE,
            };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.stages.recv_timeout(left) {
                Ok(reached) if reached != stage => {}
                _ => return,
            }
        }
    }

    /// Ends it; what keeps stacks from being unwound, a sentence each.
    pub fn end(&mut self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.subject = None;
        let ended = self.thread.take().map(JoinHandle::join);
        ended.and_then(Result::ok).unwrap_or_default()
    }
}

impl Drop for Unwinding {
    fn drop(&mut self) {
        self.end();
    }
}

/// Locks what no thread leaves half changed.
pub fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
