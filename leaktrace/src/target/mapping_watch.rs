//! What code a process maps, known also after it has ended or unloaded it.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::Arc,
};

use super::{
    Process,
    code_mappings::CodeMappings,
    mapped_file::{self, MappedFile},
    mapping::{self, Mapping, ShownFile},
    mapping_events::MappingEvents,
};

/// Follows the executable mappings of a process and opens their files as soon
/// as it hears of them.
#[derive(Debug)]
pub struct MappingWatch {
    source: Source,
    code: CodeMappings,
    files: HashMap<ShownFile, Arc<MappedFile>>,
    /// The mappings of code and files as they were just read; `None` when they could
    /// not be.
    now: Option<Vec<Mapping>>,
    /// The process's root directory when it was last seen.
    root: Option<OwnedFd>,
    lost: u64,
}

/// Where new mappings are learned from, besides `/proc/PID/maps`.
#[derive(Debug)]
enum Source {
    Events(MappingEvents),
    /// Events were wanted, and this is why there are none.
    Failed(io::Error),
    /// Nowhere: `/proc/PID/maps` is enough.
    MapsOnly,
}

impl MappingWatch {
    /// Begins to watch a process, best before it executes its program. Where
    /// events are not to be had, only what `/proc/PID/maps` shows will be
    /// known, and [`Self::note`] says so.
    #[must_use]
    pub fn start(pid: u32) -> Self {
        let source = match MappingEvents::open(pid) {
            Ok(events) => Source::Events(events),
            Err(error) => Source::Failed(error),
        };
        Self::with(pid, source)
    }

    /// Follows a process by `/proc/PID/maps` alone: events would make each of
    /// its context switches a little dearer, and one that has run for long
    /// rarely maps new code.
    #[must_use]
    pub fn by_maps(pid: u32) -> Self {
        Self::with(pid, Source::MapsOnly)
    }

    fn with(pid: u32, source: Source) -> Self {
        let root = mapped_file::open_directory(Path::new(&format!("/proc/{pid}/root")))
            // Most processes have the same root as leaktrace, and files are
            // compared with what is mapped.
            .or_else(|_| mapped_file::open_directory(Path::new("/")));
        Self {
            source,
            code: CodeMappings::default(),
            files: HashMap::new(),
            now: None,
            root: root.ok(),
            lost: 0,
        }
    }

    /// Descriptors that become readable when there is something new, of their
    /// own; none where only `/proc/PID/maps` tells.
    #[must_use]
    pub fn wakers(&self) -> Vec<OwnedFd> {
        let Source::Events(events) = &self.source else {
            return Vec::new();
        };
        let buffers = events.buffers();
        buffers
            .filter_map(|buffer| buffer.try_clone_to_owned().ok())
            .collect()
    }

    /// Takes up what has been mapped since the last time and opens its files.
    /// Costs next to nothing when that is nothing; to be called several times a
    /// second, since files may be replaced and buffers are small.
    pub fn poll(&mut self, process: &Process) {
        let Source::Events(events) = &mut self.source else {
            return;
        };
        let drained = events.drain();
        self.lost = self.lost.saturating_add(drained.lost);
        if drained.exec || !drained.mappings.is_empty() {
            self.code.apply(drained);
            self.open_files(process);
        }
    }

    /// The executable mappings that the process has, and those it had before as
    /// far as nothing has taken their place, in order of address, with their
    /// files, each once: what
    /// [`Symbolizer::update`](crate::symbolize::Symbolizer::update) takes.
    /// Also after the process has ended.
    pub fn current(&mut self, process: &Process) -> (Vec<Mapping>, Vec<Arc<MappedFile>>) {
        self.poll(process);
        self.now = None;
        if let Ok(now) = mapping::read_mappings(process)
            && !now.is_empty()
        {
            self.code.settle(&now);
            let kept = now.iter().filter(|one| one.executable || one.is_file());
            self.now = Some(kept.cloned().collect());
            let unopened: Vec<Mapping> = now
                .into_iter()
                .filter(|mapping| !self.files.contains_key(&mapping.shown_file()))
                .collect();
            let (opened, _) = mapped_file::open_executable_files(process, &unopened);
            for file in opened {
                self.files.insert(file.shown().clone(), file);
            }
            self.open_files(process);
        }
        let mappings: Vec<Mapping> = self.code.iter().cloned().collect();
        let mut files: Vec<Arc<MappedFile>> = Vec::new();
        for mapping in mappings.iter().filter(|mapping| mapping.is_file()) {
            if let Some(file) = self.files.get(&mapping.shown_file())
                && !files.iter().any(|other| Arc::ptr_eq(other, file))
            {
                files.push(Arc::clone(file));
            }
        }
        (mappings, files)
    }

    /// As [`Self::current`], but only those that the process has: what it had
    /// before is over; with what else it maps of files. `None` when they can't be read: it has ended, mostly.
    pub fn mapped_now(
        &mut self,
        process: &Process,
    ) -> Option<(Vec<Mapping>, Vec<Arc<MappedFile>>)> {
        let (_, files) = self.current(process);
        Some((self.now.clone()?, files))
    }

    /// What a person should know about what is not seen, if anything.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        let consequence = "functions of libraries that the process loads and soon unloads, or \
                           loads and soon ends, may have no names";
        match &self.source {
            Source::MapsOnly => None,
            Source::Failed(error) => Some(format!(
                "New code of the process cannot be watched (perf_event_open: {error}), so \
                 {consequence}; where kernel.perf_event_paranoid forbids it, run leaktrace as root."
            )),
            Source::Events(_) if self.lost > 0 => Some(format!(
                "{} records of new code were lost, since the process loads it faster than it is \
                 taken up; {consequence}.",
                self.lost
            )),
            Source::Events(events) if events.unwatched_threads() > 0 => Some(format!(
                "New code that {} of the process's threads load is not watched, since there are \
                 too many threads: {consequence}.",
                events.unwatched_threads()
            )),
            Source::Events(_) => None,
        }
    }

    /// Opens the files not opened yet; forgets those that nothing is known to
    /// map any more.
    fn open_files(&mut self, process: &Process) {
        if let Ok(root) = mapped_file::open_root(process) {
            self.root = Some(root);
        }
        let root = self.root.as_ref().map(OwnedFd::as_fd);
        let mut files = HashMap::with_capacity(self.files.len());
        for mapping in self.code.iter().filter(|mapping| mapping.is_file()) {
            let shown = mapping.shown_file();
            if files.contains_key(&shown) {
                continue;
            }
            let opened = self.files.remove(&shown).or_else(|| {
                // Without symbols, then: the next look tries again.
                MappedFile::open_mapping(process, root, mapping)
                    .ok()
                    .map(Arc::new)
            });
            if let Some(file) = opened {
                files.insert(shown, file);
            }
        }
        self.files = files;
    }
}

#[cfg(test)]
mod tests;
