//! What the programs need, written where they find it.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender},
    },
    thread::JoinHandle,
};

use leaktrace_common::unwind::{
    FileRecord, IS_EXAMINED, KEEPS_FRAME_POINTERS, MAX_MAPPINGS, Mapping,
};

use super::{Key, Made, Stage, Subject, Wanted, lock, wait::Wait};
use crate::{
    bpf::Maps,
    host::priority,
    target::{
        code_files::{CodeFiles, FileNumber, Image},
        mapped_file::MappedFile,
        mapping,
    },
    unwind::{self, Cache, CompileError, FileTable, UnwindMode, tables::Tables},
};

/// The record of a file of which there is no table.
const WITHOUT_TABLE: FileRecord = FileRecord {
    pages: 0,
    first_page: 0,
    page_count: 0,
    flags: IS_EXAMINED,
};

/// What the thread has.
pub(super) struct Publisher {
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
    /// Files that could not be opened.
    unopened: HashSet<FileNumber>,
    /// Files whose numbers are published.
    numbered: HashSet<FileNumber>,
    published: Vec<Mapping>,
    /// How often the loader had unloaded something when these were read.
    unloads: u32,
    problems: Vec<String>,
}

impl Publisher {
    pub fn new(
        maps: Arc<Maps>,
        code: Arc<Mutex<CodeFiles>>,
        mode: UnwindMode,
        cache: Option<Arc<Cache>>,
    ) -> Self {
        let unwind = maps.unwind();
        let tables = Tables::with_room(
            u32::try_from(unwind.row_room()).unwrap_or(u32::MAX),
            u32::try_from(unwind.page_room()).unwrap_or(u32::MAX),
        );
        Self {
            maps,
            code,
            mode,
            cache,
            tables,
            prepared: HashMap::new(),
            known: HashSet::new(),
            unopened: HashSet::new(),
            numbered: HashSet::new(),
            published: Vec::new(),
            unloads: 0,
            problems: Vec::new(),
        }
    }

    pub fn run(
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
        let (missing, _) = self.assign_prepared();
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
            flags: self.flags(IS_EXAMINED | KEEPS_FRAME_POINTERS),
            ..FileRecord::default()
        };
        self.maps.unwind().write_file(0, record);
    }

    /// Frame pointers are guessed only where that is wanted.
    fn flags(&self, flags: u32) -> u32 {
        match self.mode {
            UnwindMode::Auto => flags,
            UnwindMode::Dwarf | UnwindMode::FramePointers => flags & !KEEPS_FRAME_POINTERS,
        }
    }

    /// Publishes what the process maps now; false when that is what it mapped
    /// before.
    fn follow(&mut self, subject: &Subject) -> bool {
        // Before they are read: what is unloaded meanwhile makes them outdated.
        let mut unloads = self.maps.control().unloads();
        let is_unloading = self.maps.control().is_unloading();
        let now = lock(&subject.mappings).mapped_now(&subject.process);
        let Some((mappings, files)) = now else {
            return false;
        };
        let all = mappings;
        let mappings = self.numbered(&all, &files);
        // What is unloaded while they are read may be replaced there already.
        let is_told = unloads != self.unloads || unloads != self.maps.control().unloads();
        self.doubt_replaced(&mappings, is_told.then_some(&all));
        if is_unloading {
            // What goes is there still, but not for long: nothing is trusted until
            // the loader has told that it is done.
            unloads = unloads.wrapping_sub(1);
        }
        let (missing, are_assigned) = self.assign_prepared();
        if mappings == self.published
            && missing.is_empty()
            && !are_assigned
            && unloads == self.unloads
        {
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
    /// loader has not unloaded them: a walk may have met that before. When it has
    /// unloaded something, that was not a file that is still there in part, as far as
    /// all mappings tell.
    fn doubt_replaced(&self, mappings: &[Mapping], told: Option<&Vec<mapping::Mapping>>) {
        for old in replaced(&self.published, mappings) {
            let Some(number) = file_number(old) else {
                continue;
            };
            let mut code = lock(&self.code);
            let path = code.get(number).map(|file| Arc::clone(&file.path));
            let is_there = |part: &mapping::Mapping| {
                part.start.wrapping_sub(part.offset) == old.bias
                    && path.as_deref().is_some_and(|path| part.path == *path)
            };
            if told.is_none_or(|all| all.iter().any(is_there)) {
                code.doubt(number);
            }
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

    /// Publishes the tables of new files as far as they are prepared; the others,
    /// and whether there were any.
    fn assign_prepared(&mut self) -> (Vec<(FileNumber, Wanted)>, bool) {
        let (mut missing, mut are_assigned) = (Vec::new(), false);
        if self.mode == UnwindMode::FramePointers {
            return (missing, false);
        }
        for (number, file) in lock(&self.code).iter() {
            let Some(image) = &file.image else {
                // It may be opened later than it was met.
                if self.unopened.insert(number) {
                    let unwind = self.maps.unwind();
                    unwind.write_file(number.0.into(), WITHOUT_TABLE);
                }
                continue;
            };
            if !self.known.insert(number) {
                continue;
            }
            // Once: a file that is changed has the same key and another number.
            match self.prepared.remove(&image.identity()) {
                Some(record) => {
                    self.maps.unwind().write_file(number.0.into(), record);
                    are_assigned = true;
                }
                None => missing.push((number, Wanted(image.clone()))),
            }
        }
        (missing, are_assigned)
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
            return WITHOUT_TABLE;
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
                return WITHOUT_TABLE;
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

/// The mappings of files in whose place something else is mapped `now`.
fn replaced<'a>(before: &'a [Mapping], now: &[Mapping]) -> impl Iterator<Item = &'a Mapping> {
    before.iter().filter(|old| {
        let first = now.partition_point(|new| new.end <= old.start);
        let mut over = now[first..].iter().take_while(|new| new.start < old.end);
        let is_other = |new: &Mapping| (new.file, new.bias) != (old.file, old.bias);
        file_number(old).is_some() && over.any(is_other)
    })
}

fn file_number(mapping: &Mapping) -> Option<FileNumber> {
    let number = u16::try_from(mapping.file).ok().map(FileNumber)?;
    number.is_some().then_some(number)
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
        let found =
            |now: &[Mapping]| -> Vec<u32> { replaced(&before, now).map(|old| old.file).collect() };
        assert_eq!(found(&before), [0_u32; 0]);
        assert_eq!(
            found(&[]),
            [0_u32; 0],
            "nothing runs where nothing is mapped"
        );
        // A part of the same, and a neighbour.
        let same = [
            mapping(0x2000, 0x3000, 0x1000, 1),
            mapping(0xa000, 0xb000, 0, 3),
        ];
        assert_eq!(found(&same), [0_u32; 0]);
        assert_eq!(found(&[mapping(0x2fff, 0x9000, 0, 3)]), [1, 2]);
        assert_eq!(found(&[mapping(0x1000, 0x3000, 0x1000, 1)]), [1], "moved");
        assert_eq!(found(&[mapping(0x9000, 0xa000, 0, 0)]), [2], "no file");
        assert_eq!(
            found(&[mapping(0x3000, 0x5000, 0, 4)]),
            [0_u32; 0],
            "never known"
        );
    }
}
