//! Makes reports on a thread of its own, so that symbolizing and writing never
//! hold up the watch: signals, the brake and the target's end come first.

use std::{
    collections::HashSet,
    os::fd::BorrowedFd,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        mpsc::{self, Receiver, Sender},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result};
use leaktrace_common::counter::Counter;

use super::{TraceOptions, plan::Plan, progress::Progress, snapshot::Snapshot, unwinding::lock};
use crate::{
    aggregate::{Aggregator, Selection},
    bpf::Maps,
    model::{Edge, MemorySample, ProcessInfo, Report, TraceInfo},
    output::{Outputs, screen::Screen, terminal::Terminal},
    probe_site::KernelAbility,
    report::{
        export::ExportOptions,
        table::{self, TableOptions},
    },
    say,
    target::{Process, mapped_file::MappedFile, mapping::Device, mapping_watch::MappingWatch},
};

/// How long the last report waits for debug information that is being fetched.
/// The probes are gone by then.
const FETCH_PATIENCE: Duration = Duration::from_secs(20);

/// What reports have in common.
pub struct Common {
    pub process: ProcessInfo,
    pub trace: TraceInfo,
    pub memory_at_start: MemorySample,
    /// Sentences that every report carries.
    pub notes: Vec<String>,
}

/// What the last job left.
pub struct Finished {
    pub report: Report,
    /// Files that were written.
    pub written: Vec<PathBuf>,
    /// Outputs that were not, a sentence each.
    pub failures: Vec<String>,
}

enum Job {
    /// Learn new stacks only.
    Learn(Snapshot),
    Table(Snapshot),
    Write(Snapshot),
    Finish(Box<Snapshot>, Edge, Vec<String>),
}

/// The thread and the way to it.
pub struct Reporter {
    jobs: Sender<Job>,
    thread: JoinHandle<Option<Finished>>,
}

/// What the thread works with.
pub struct Workshop {
    pub common: Common,
    pub aggregator: Aggregator,
    pub maps: Arc<Maps>,
    pub process: Arc<Process>,
    pub mappings: Arc<Mutex<MappingWatch>>,
    /// Files in which an allocator was looked for.
    pub examined: HashSet<(Device, u64)>,
    /// How many of them have one and were loaded after the probes were set.
    pub late_allocators: u64,
    pub ability: KernelAbility,
    pub outputs: Outputs,
    /// Where tables go, and its descriptor.
    pub screen: Option<(Arc<Screen>, BorrowedFd<'static>)>,
    pub options: TraceOptions,
}

impl Reporter {
    /// Starts the thread.
    pub fn start(workshop: Workshop) -> Result<Self> {
        let (jobs, receiver) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("reporter".into())
            .spawn(move || workshop.run(&receiver))
            .context("starting the reporter")?;
        Ok(Self { jobs, thread })
    }

    /// Learns the stacks that are new.
    pub fn learn(&self, snapshot: Snapshot) {
        // A reporter that is gone is noticed at the end.
        let _ = self.jobs.send(Job::Learn(snapshot));
    }

    /// Shows a table.
    pub fn table(&self, snapshot: Snapshot) {
        let _ = self.jobs.send(Job::Table(snapshot));
    }

    /// Writes the outputs.
    pub fn write(&self, snapshot: Snapshot) {
        let _ = self.jobs.send(Job::Write(snapshot));
    }

    /// Makes the last report and writes the outputs.
    ///
    /// # Errors
    /// When the reporter broke down.
    pub fn finish(
        self,
        snapshot: Snapshot,
        disabled: Edge,
        notes: Vec<String>,
    ) -> Result<Finished> {
        let _ = self
            .jobs
            .send(Job::Finish(Box::new(snapshot), disabled, notes));
        drop(self.jobs);
        match self.thread.join() {
            Ok(Some(finished)) => Ok(finished),
            Ok(None) | Err(_) => anyhow::bail!("the reporter broke down; this is a defect"),
        }
    }
}

impl Workshop {
    fn run(mut self, jobs: &Receiver<Job>) -> Option<Finished> {
        while let Ok(job) = jobs.recv() {
            match job {
                Job::Learn(snapshot) => self.learn(&snapshot),
                Job::Table(snapshot) => self.table(snapshot),
                Job::Write(snapshot) => {
                    let report = self.report(snapshot, None);
                    for failure in self.write(&report).1 {
                        say!("leaktrace: {failure}");
                    }
                }
                Job::Finish(snapshot, disabled, notes) => {
                    self.common.trace.disabled = Some(disabled);
                    self.common.notes.extend(notes);
                    self.learn(&snapshot);
                    self.note_what_was_missed();
                    if self.options.debuginfod {
                        let _shown = Progress::start("fetching debug information");
                        self.aggregator
                            .wait_for_debug_information(&snapshot.sums, FETCH_PATIENCE);
                    }
                    let report = self.report(*snapshot, None);
                    let (written, failures) = self.write(&report);
                    return Some(Finished {
                        report,
                        written,
                        failures,
                    });
                }
            }
        }
        None
    }

    fn learn(&mut self, snapshot: &Snapshot) {
        let Self {
            aggregator,
            maps,
            process,
            mappings,
            ..
        } = self;
        lock(mappings).poll(process);
        let mut mapped = Vec::new();
        let result = aggregator.learn_stacks(maps, &snapshot.sums, &mut |symbolizer| {
            let (now, files) = lock(mappings).current(process);
            symbolizer.update(&now, &files);
            mapped = files;
        });
        if let Err(error) = result {
            self.common
                .notes
                .push(format!("Some stacks could not be read: {error:#}."));
        }
        self.look_for_allocators(&mapped);
    }

    /// Looks for allocators in the files not examined before: nobody watches
    /// them, since they were loaded after the probes were set.
    fn look_for_allocators(&mut self, mapped: &[Arc<MappedFile>]) {
        for file in mapped {
            if !self.examined.insert((file.device(), file.inode())) {
                continue;
            }
            if let Ok(late) = Plan::of(std::slice::from_ref(file), self.ability)
                && !late.files.is_empty()
            {
                self.late_allocators += 1;
                self.common.notes.push(format!(
                    "{} has an allocator and was loaded after the probes were set: its calls were \
                     not seen.",
                    late.file_names()
                ));
            }
        }
    }

    /// Allocators that were loaded without being watched, and code that may
    /// have no names.
    fn note_what_was_missed(&mut self) {
        let (_, files) = lock(&self.mappings).current(&self.process);
        self.look_for_allocators(&files);
        self.common.notes.extend(lock(&self.mappings).note());
    }

    fn table(&mut self, snapshot: Snapshot) {
        let top = self.options.top;
        let report = self.report(snapshot, Some(top));
        if let Some((screen, fd)) = &self.screen {
            // Each time anew: a terminal's size changes.
            let terminal = Terminal::of(fd);
            let options = TableOptions {
                width: terminal.columns,
                colour: terminal.colour,
                stacks: self.options.stacks,
                top,
            };
            screen.show(table::render(&report, &options));
        }
    }

    fn report(&mut self, mut snapshot: Snapshot, top: Option<usize>) -> Report {
        self.learn(&snapshot);
        snapshot.counters.events[Counter::LateAllocator as usize] = self.late_allocators;
        let selection = Selection {
            sort: self.options.sort,
            top,
            growing: self.options.top,
            elapsed: snapshot.elapsed,
        };
        let sites = self
            .aggregator
            .sites(&snapshot.sums, snapshot.ages.as_ref(), &selection);
        let mut notes = self.common.notes.clone();
        notes.extend(self.aggregator.symbolizer().notes());
        Report {
            process: self.common.process.clone(),
            trace: self.common.trace.clone(),
            taken: snapshot.taken,
            elapsed: snapshot.elapsed,
            end: snapshot.end,
            counters: snapshot.counters,
            totals: sites.totals,
            alloc_rate: snapshot.alloc_rate,
            cost: snapshot.cost,
            cost_cpus: snapshot.cost_cpus,
            memory_at_start: self.common.memory_at_start,
            memory: snapshot.memory,
            memory_read: snapshot.memory_read,
            rss_growth: None,
            complete: sites.complete,
            self_check: self.aggregator.self_check(),
            sites: sites.sites,
            growing: sites.growing,
            site_count: sites.count,
            ages_known: snapshot.ages.is_some(),
            notes,
        }
    }

    /// Files that were written and sentences about those that were not.
    fn write(&mut self, report: &Report) -> (Vec<PathBuf>, Vec<String>) {
        let options = ExportOptions {
            weight: self.options.weight,
            top: self.options.top,
        };
        let (mut written, mut failures) = (Vec::new(), Vec::new());
        for output in self.outputs.write(report, &options) {
            match output.result {
                Ok(()) => written.extend(output.path),
                Err(error) => failures.push(error.to_string()),
            }
        }
        (written, failures)
    }
}
