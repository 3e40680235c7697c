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

use std::{
    collections::{HashMap, HashSet},
    io,
    ops::Deref,
    os::fd::OwnedFd,
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
use leaktrace_common::unwind::{FileRecord, MAX_MAPPINGS, Mapping};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{
    bpf::{ControlPage, Maps, TableRoom},
    file_map,
    host::priority,
    target::{
        Process,
        code_files::{CodeFiles, FileNumber, Image},
        mapped_file::MappedFile,
        mapping::{self, Device},
        mapping_watch::MappingWatch,
        vdso,
    },
    unwind::{self, Cache, CompileError, FileTable, Source, UnwindMode, tables::Tables},
};

/// How often it is looked whether there is something new to look for.
const GLANCE: Duration = Duration::from_millis(20);
/// How long mappings are taken for what they were.
const LOOK_EVERY: Duration = Duration::from_secs(1);
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

/// A file by what mappings tell of it.
type Key = (Device, u64);
type Made = Vec<(Key, Result<FileTable, CompileError>)>;
/// The key of the vDSO, which is no file.
const VDSO: Key = (Device { major: 0, minor: 0 }, 0);

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
                        made.push((key(&wanted[index].0), table));
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

fn key(image: &Image) -> Key {
    match image {
        Image::Mapped(file) => (file.device(), file.inode()),
        Image::Own(_) => VDSO,
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
        let unwind = maps.unwind();
        let tables = Tables::with_room(
            u32::try_from(unwind.row_room()).unwrap_or(u32::MAX),
            u32::try_from(unwind.page_room()).unwrap_or(u32::MAX),
        );
        let publisher = Publisher {
            maps,
            code: Arc::clone(code),
            mode: preparation.mode,
            cache: preparation.cache,
            tables,
            prepared: HashMap::new(),
            known: HashSet::new(),
            numbered: HashSet::new(),
            published: Vec::new(),
            unloads: 0,
            problems: Vec::new(),
        };
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

/// What the thread has.
struct Publisher {
    maps: Arc<Maps>,
    code: Arc<Mutex<CodeFiles>>,
    mode: UnwindMode,
    cache: Option<Arc<Cache>>,
    tables: Tables,
    /// Where the tables are of files that had no number when they were made;
    /// nowhere when there is none.
    prepared: HashMap<Key, FileRecord>,
    /// Files whose tables are published, or that have none.
    known: HashSet<FileNumber>,
    /// Files whose numbers are published.
    numbered: HashSet<FileNumber>,
    published: Vec<Mapping>,
    /// How often the loader had unloaded something when these were read.
    unloads: u32,
    problems: Vec<String>,
}

impl Publisher {
    fn run(
        mut self,
        made: JoinHandle<Made>,
        expected: &[Arc<MappedFile>],
        stages: &Sender<Stage>,
        subjects: &Receiver<Subject>,
        stop: &AtomicBool,
    ) -> Vec<String> {
        priority::keep_up();
        self.publish_code_without_file();
        for (key, table) in made.join().unwrap_or_default() {
            let record = self.place(table);
            self.prepared.insert(key, record);
        }
        for file in expected {
            lock(&self.code).number_expected(file);
        }
        let missing = self.assign_prepared();
        self.make(missing);
        self.publish_numbers();
        // Nobody may be waiting.
        _ = stages.send(Stage::Prepared);
        let Ok(subject) = subjects.recv() else {
            return self.problems;
        };
        let wakers = lock(&subject.mappings).wakers();
        let mut wait = Wait::new(wakers, self.maps.control());
        self.follow(&subject);
        _ = stages.send(Stage::Followed);
        while !stop.load(Ordering::Relaxed) {
            if wait.for_news(&self.maps) {
                let is_new = self.follow(&subject);
                wait.looked(is_new);
            }
        }
        self.follow(&subject);
        self.problems
    }

    /// Of code that is made at run time nothing is known, but most compilers
    /// keep frame pointers.
    fn publish_code_without_file(&self) {
        let record = FileRecord {
            flags: self.flags(leaktrace_common::unwind::KEEPS_FRAME_POINTERS),
            ..FileRecord::default()
        };
        self.maps.unwind().write_file(0, record);
    }

    /// Frame pointers are guessed only where that is wanted.
    fn flags(&self, flags: u32) -> u32 {
        match self.mode {
            UnwindMode::Auto => flags,
            UnwindMode::Dwarf | UnwindMode::FramePointers => 0,
        }
    }

    /// Publishes what the process maps now; false when that is what it mapped
    /// before.
    fn follow(&mut self, subject: &Subject) -> bool {
        // Before they are read: what is unloaded meanwhile makes them outdated.
        let unloads = self.maps.control().unloads();
        let now = lock(&subject.mappings).mapped_now(&subject.process);
        let Some((mappings, files)) = now else {
            return false;
        };
        let mappings = self.numbered(&mappings, &files);
        if unloads == self.unloads {
            self.doubt_replaced(&mappings);
        }
        let missing = self.assign_prepared();
        if mappings == self.published && missing.is_empty() && unloads == self.unloads {
            return false;
        }
        if mappings.len() > MAX_MAPPINGS {
            self.note(format!(
                "The process has {} executable mappings; stacks are not followed through more \
                 than {MAX_MAPPINGS}.",
                mappings.len()
            ));
        }
        self.maps.publish_mappings(&mappings, unloads);
        if !missing.is_empty() {
            self.make(missing);
            // A walk that is remembered by the old generation ended without them.
            self.maps.publish_mappings(&mappings, unloads);
        }
        self.publish_numbers();
        self.published = mappings;
        self.unloads = unloads;
        true
    }

    /// Doubts the files in whose place something else is mapped now, although the
    /// loader has unloaded nothing: a walk may have met that before.
    fn doubt_replaced(&self, mappings: &[Mapping]) {
        for number in replaced(&self.published, mappings) {
            lock(&self.code).doubt(number);
        }
    }

    /// Lets programs know files that they may meet before their mappings are known.
    fn publish_numbers(&mut self) {
        for (number, file) in lock(&self.code).iter() {
            let Some(Image::Mapped(file)) = &file.image else {
                continue;
            };
            if !self.numbered.insert(number) {
                continue;
            }
            // What can't be is known by its mappings alone.
            if let Ok(mapped) = file.map() {
                _ = self.maps.publish_file_number(&mapped, number.0.into());
            }
        }
    }

    fn numbered(&self, mappings: &[mapping::Mapping], files: &[Arc<MappedFile>]) -> Vec<Mapping> {
        let mut code = lock(&self.code);
        let executable = mappings.iter().filter(|mapping| mapping.executable);
        executable
            .map(|mapping| Mapping {
                start: mapping.start,
                end: mapping.end,
                bias: mapping.start.wrapping_sub(mapping.offset),
                file: code.number(mapping, files).0.into(),
                padding: 0,
            })
            .collect()
    }

    /// Publishes the tables of new files as far as they are prepared; the others.
    fn assign_prepared(&mut self) -> Vec<(FileNumber, Wanted)> {
        let mut missing = Vec::new();
        if self.mode == UnwindMode::FramePointers {
            return missing;
        }
        for (number, file) in lock(&self.code).iter() {
            // A file may be opened later than it was met.
            let Some(image) = &file.image else { continue };
            if !self.known.insert(number) {
                continue;
            }
            match self.prepared.get(&key(image)) {
                Some(record) => self.maps.unwind().write_file(number.0.into(), *record),
                None => missing.push((number, Wanted(image.clone()))),
            }
        }
        missing
    }

    /// Makes and publishes the tables of files.
    fn make(&mut self, missing: Vec<(FileNumber, Wanted)>) {
        let (numbers, wanted): (Vec<FileNumber>, Vec<Wanted>) = missing.into_iter().unzip();
        let cache = self.cache.clone();
        unwind::compile_all(&wanted, cache.as_deref(), |index, table| {
            let record = self.place(table);
            self.maps
                .unwind()
                .write_file(numbers[index].0.into(), record);
        });
    }

    /// Writes a table where there is room; its pages, or none.
    fn place(&mut self, table: Result<FileTable, CompileError>) -> FileRecord {
        // Stacks that end in a file without a table name it, and `doctor` says
        // why.
        let Ok(table) = table else {
            return FileRecord::default();
        };
        let (rows, rules, pages) = (
            self.tables.rows().len(),
            self.tables.rules().len(),
            self.tables.pages().len(),
        );
        let number = match self.tables.add(&table) {
            Ok(number) => number,
            Err(full) => {
                self.note(format!(
                    "Unwind tables of some files were left out ({full}): stacks end in these."
                ));
                return FileRecord::default();
            }
        };
        let tables = &self.tables;
        self.maps.unwind().write_tables(
            (rows, &tables.rows()[rows..]),
            (rules, &tables.rules()[rules..]),
            (pages, &tables.pages()[pages..]),
        );
        let record = tables.files()[number as usize];
        FileRecord {
            flags: self.flags(record.flags),
            ..record
        }
    }

    fn note(&mut self, problem: String) {
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }
}

/// The files of mappings in whose place something else is mapped `now`.
fn replaced(before: &[Mapping], now: &[Mapping]) -> impl Iterator<Item = FileNumber> {
    before.iter().filter_map(|old| {
        let number = u16::try_from(old.file).ok().map(FileNumber)?;
        let first = now.partition_point(|new| new.end <= old.start);
        let mut over = now[first..].iter().take_while(|new| new.start < old.end);
        let is_other = |new: &Mapping| (new.file, new.bias) != (old.file, old.bias);
        (number.is_some() && over.any(is_other)).then_some(number)
    })
}

/// When to look at the mappings again.
struct Wait {
    wakers: Vec<OwnedFd>,
    loader_changes: u32,
    unmapped: u32,
    looked: Instant,
    /// How long not to look although there is an unknown address: longer each
    /// time that nothing was found, since some are no code.
    pause: Duration,
}

impl Wait {
    fn new(wakers: Vec<OwnedFd>, control: &ControlPage) -> Self {
        Self {
            wakers,
            loader_changes: control.loader_changes(),
            unmapped: control.unmapped(),
            looked: Instant::now(),
            pause: GLANCE,
        }
    }

    /// Waits for a moment; true when it is time to look.
    fn for_news(&mut self, maps: &Maps) -> bool {
        let is_told = self.is_told();
        let unmapped = maps.control().unmapped();
        let loader_changes = maps.control().loader_changes();
        let since = self.looked.elapsed();
        let is_missed = unmapped != self.unmapped && since >= self.pause;
        let has_loaded = loader_changes != self.loader_changes;
        if !is_told && !has_loaded && !is_missed && since < LOOK_EVERY {
            return false;
        }
        self.unmapped = unmapped;
        self.loader_changes = loader_changes;
        true
    }

    fn looked(&mut self, is_new: bool) {
        self.looked = Instant::now();
        self.pause = if is_new {
            GLANCE
        } else {
            (self.pause * 2).min(LOOK_EVERY)
        };
    }

    /// Whether the kernel has recorded something, now or soon.
    fn is_told(&mut self) -> bool {
        if self.wakers.is_empty() {
            thread::sleep(GLANCE);
            return false;
        }
        let mut fds: Vec<PollFd<'_>> = self
            .wakers
            .iter()
            .map(|waker| PollFd::new(waker, PollFlags::IN))
            .collect();
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: GLANCE.subsec_nanos().into(),
        };
        if poll(&mut fds, Some(&timeout)).is_err() {
            thread::sleep(GLANCE);
            return false;
        }
        let is_told = fds.iter().any(|fd| fd.revents().contains(PollFlags::IN));
        // Of a process that has ended, that is told for ever.
        let is_over: Vec<bool> = fds
            .iter()
            .map(|fd| fd.revents().intersects(PollFlags::HUP | PollFlags::ERR))
            .collect();
        let mut is_over = is_over.into_iter();
        self.wakers.retain(|_| !is_over.next().unwrap_or_default());
        is_told
    }
}

/// Locks what no thread leaves half changed.
pub fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(start: u64, end: u64, offset: u64, file: u32) -> Mapping {
        Mapping {
            start,
            end,
            bias: start.wrapping_sub(offset),
            file,
            padding: 0,
        }
    }

    #[test]
    fn what_is_mapped_in_place_of_a_file_is_found() {
        let before = [
            mapping(0x1000, 0x3000, 0, 1),
            mapping(0x3000, 0x5000, 0, 0),
            mapping(0x8000, 0xa000, 0, 2),
        ];
        let found = |now: &[Mapping]| -> Vec<u16> {
            replaced(&before, now).map(|number| number.0).collect()
        };
        assert_eq!(found(&before), [0_u16; 0]);
        assert_eq!(
            found(&[]),
            [0_u16; 0],
            "nothing runs where nothing is mapped"
        );
        // A part of the same, and a neighbour.
        let same = [
            mapping(0x2000, 0x3000, 0x1000, 1),
            mapping(0xa000, 0xb000, 0, 3),
        ];
        assert_eq!(found(&same), [0_u16; 0]);
        assert_eq!(found(&[mapping(0x2fff, 0x9000, 0, 3)]), [1, 2]);
        assert_eq!(found(&[mapping(0x1000, 0x3000, 0x1000, 1)]), [1], "moved");
        assert_eq!(found(&[mapping(0x9000, 0xa000, 0, 0)]), [2], "no file");
        assert_eq!(
            found(&[mapping(0x3000, 0x5000, 0, 4)]),
            [0_u16; 0],
            "never known"
        );
    }
}
