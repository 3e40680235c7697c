//! Makes reports on a thread of its own, so that symbolizing and writing never
//! hold up the watch: signals, the brake and the target's end come first.

use std::{
    collections::{HashSet, VecDeque},
    os::fd::BorrowedFd,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use leaktrace_common::counter::Counter;

use super::{
    PrintFormat, TraceOptions,
    alarm::{Alarm, VerdictWatch},
    memory_account::{AtEnd, AtStart},
    messages,
    observation::{Judged, Observation},
    plan::Plan,
    progress::{Progress, say_aside},
    snapshot::Snapshot,
    unwinding::lock,
};
use crate::{
    aggregate::{Aggregator, Selection},
    alert::Firing,
    bpf::Maps,
    model::{Edge, EndReason, MemorySample, ProcessInfo, Report, TraceInfo},
    output::{Outputs, Written, screen::Screen, terminal::Terminal},
    probe_site::KernelAbility,
    report::{
        export::{ExportOptions, Format},
        json, standard_library, summary,
        table::{self, TableOptions},
    },
    target::{
        Process,
        mapped_file::{FileIdentity, MappedFile},
        mapping_watch::MappingWatch,
    },
};

/// How long the last report waits for debug information that is being fetched.
/// The probes are gone by then.
const FETCH_PATIENCE: Duration = Duration::from_secs(20);

/// For tables sites are judged in at most one part in so many of a CPU.
const JUDGE_SHARE: u32 = 20;

/// What reports have in common.
pub struct Common {
    pub process: ProcessInfo,
    pub trace: TraceInfo,
    pub memory_at_start: MemorySample,
    /// What that is made of.
    pub at_start: AtStart,
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
    /// The report as the last line of JSON, with `--format json-lines`.
    pub line: Option<String>,
    /// Where tables went, for what follows them.
    pub screen: Option<Arc<Screen>>,
    /// Commands may still run.
    pub alarm: Alarm,
}

enum Job {
    /// Learn new stacks only.
    Learn(Snapshot),
    Table(Snapshot),
    Write(Snapshot),
    /// Growth counts from here.
    Mark(Snapshot, AtStart),
    /// Conditions that have come true, one at least.
    Alert(Snapshot, Vec<Firing>),
    Finish(Box<Last>),
}

impl Job {
    /// Whether those that came while others were being done make it needless. With
    /// many stacks a report may take longer than the pause to the next one, and
    /// what waits must not grow.
    fn is_superseded(&self, later: &VecDeque<Self>) -> bool {
        match self {
            // Each of them looks.
            Self::Learn(_) => !later.is_empty(),
            Self::Table(_) => later.iter().any(|job| matches!(job, Self::Table(_))),
            _ => false,
        }
    }
}

/// What the last report is made of.
pub struct Last {
    pub snapshot: Snapshot,
    pub at_end: AtEnd,
    /// When events ceased to count.
    pub disabled: Edge,
    /// Sentences that were not known before.
    pub notes: Vec<String>,
    /// The conditions that ended the trace.
    pub fired: Vec<Firing>,
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
    pub observation: Observation,
    pub maps: Arc<Maps>,
    pub process: Arc<Process>,
    pub mappings: Arc<Mutex<MappingWatch>>,
    /// Files in which an allocator was looked for.
    pub examined: HashSet<FileIdentity>,
    /// How many of them have one and were loaded after the probes were set.
    pub late_allocators: u64,
    pub ability: KernelAbility,
    pub outputs: Outputs,
    /// Where tables go, and its descriptor.
    pub screen: Option<(Arc<Screen>, BorrowedFd<'static>)>,
    /// How many lines of JSON there were.
    pub lines: u64,
    pub alarm: Alarm,
    /// When sites are judged for alerts.
    pub verdicts: VerdictWatch,
    /// Where the watch looks for how many of them grow.
    pub growing_sites: Arc<AtomicUsize>,
    /// What was judged last, and until when tables make do with it.
    pub judged: Option<(Arc<Judged>, Duration)>,
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

    /// Sets the mark from which growth counts.
    pub fn mark(&self, snapshot: Snapshot, at_mark: AtStart) {
        let _ = self.jobs.send(Job::Mark(snapshot, at_mark));
    }

    /// Tells of conditions that have come true.
    pub fn alert(&self, snapshot: Snapshot, firings: Vec<Firing>) {
        let _ = self.jobs.send(Job::Alert(snapshot, firings));
    }

    /// Makes the last report and writes the outputs.
    ///
    /// # Errors
    /// When the reporter broke down.
    pub fn finish(self, last: Last) -> Result<Finished> {
        let _ = self.jobs.send(Job::Finish(Box::new(last)));
        drop(self.jobs);
        match self.thread.join() {
            Ok(Some(finished)) => Ok(finished),
            Ok(None) | Err(_) => anyhow::bail!("the reporter broke down; this is a defect"),
        }
    }
}

impl Workshop {
    fn run(mut self, jobs: &Receiver<Job>) -> Option<Finished> {
        let mut waiting = VecDeque::new();
        loop {
            if waiting.is_empty() {
                waiting.push_back(jobs.recv().ok()?);
            }
            waiting.extend(jobs.try_iter());
            let Some(job) = waiting.pop_front() else {
                continue;
            };
            if job.is_superseded(&waiting) {
                // A line that is missing shows.
                self.lines += u64::from(matches!(job, Job::Table(_)));
                continue;
            }
            match job {
                Job::Learn(snapshot) => self.observe(&snapshot),
                Job::Table(snapshot) => self.table(snapshot),
                Job::Write(snapshot) => {
                    let report = self.report(snapshot, None, None);
                    let (files, failures) = self.write(&report);
                    let written: Vec<_> = files.into_iter().map(|(_, path)| path).collect();
                    let failures = failures
                        .iter()
                        .map(|failure| format!("leaktrace: {failure}\n"));
                    let text =
                        failures.collect::<String>() + summary::written(&written).trim_start();
                    say_aside(text.trim_end().to_owned());
                }
                Job::Mark(snapshot, at_mark) => {
                    self.common.at_start = at_mark;
                    self.observe(&snapshot);
                    let since_mark = self.options.since_mark;
                    self.observation.mark(&snapshot, since_mark);
                    self.judged = None;
                    // They are judged anew.
                    self.growing_sites.store(0, Ordering::Relaxed);
                    say_aside(messages::marked(&snapshot.taken, since_mark));
                }
                Job::Alert(snapshot, firings) => self.alert(snapshot, &firings),
                Job::Finish(last) => return Some(self.finish(*last)),
            }
        }
    }

    fn alert(&mut self, snapshot: Snapshot, firings: &[Firing]) {
        let report = self.report(snapshot, None, None);
        let first = firings.first();
        // What comes true at once needs one set of files.
        let label = first.and_then(|firing| self.alarm.snapshot(firing, &report.taken));
        let (files, failures) = match label {
            Some(label) => {
                let options = self.export_options();
                parted(self.outputs.write_aside(&report, &options, &label))
            }
            None => Default::default(),
        };
        for firing in firings {
            self.alarm.raise(firing, &report, &files);
        }
        for failure in failures {
            say_aside(format!("leaktrace: {failure}"));
        }
    }

    fn finish(mut self, last: Last) -> Finished {
        self.common.trace.disabled = Some(last.disabled);
        self.common.notes.extend(last.notes);
        self.learn(&last.snapshot);
        self.note_what_was_missed();
        if self.options.debuginfod {
            let _shown = Progress::start("fetching debug information");
            self.aggregator
                .wait_for_debug_information(&last.snapshot.sums, FETCH_PATIENCE);
        }
        let report = self.report(last.snapshot, None, Some(&last.at_end));
        let (files, failures) = self.write(&report);
        for firing in &last.fired {
            self.alarm.raise(firing, &report, &files);
        }
        Finished {
            line: self.line(&report),
            report,
            written: files.into_iter().map(|(_, path)| path).collect(),
            failures,
            screen: self.screen.map(|(screen, _)| screen),
            alarm: self.alarm,
        }
    }

    /// Learns new stacks, and how everything has moved.
    fn observe(&mut self, snapshot: &Snapshot) {
        self.learn(snapshot);
        let ages = match &snapshot.ages {
            Some(_) => None,
            None => self.observation.ages(&self.maps, snapshot.elapsed),
        };
        let ages = snapshot.ages.as_ref().or(ages.as_ref());
        // While a process exits, much is given back that grew until then.
        if snapshot.end != Some(EndReason::TargetExit) {
            self.observation.see(snapshot, ages);
        }
        if let Some(growing) = self
            .verdicts
            .count_growing(&self.observation, snapshot.elapsed)
        {
            self.growing_sites.store(growing, Ordering::Relaxed);
        }
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
            if !self.examined.insert(file.identity()) {
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
        let report = self.report(snapshot, Some(top), None);
        let line = self.line(&report);
        let Some((screen, fd)) = &self.screen else {
            return;
        };
        if let Some(line) = line {
            screen.show(line);
        } else {
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

    /// The report as the next line of JSON, if that is wanted.
    fn line(&mut self, report: &Report) -> Option<String> {
        if self.options.format != PrintFormat::JsonLines {
            return None;
        }
        self.lines += 1;
        match json::render_numbered(report, self.lines) {
            Ok(line) => Some(line),
            Err(error) => {
                say_aside(format!(
                    "leaktrace: this report can't be written as JSON: {error:#}"
                ));
                None
            }
        }
    }

    /// How everything moved. Tables, which come often, make do with what was found
    /// lately where finding it takes long.
    fn judged(&mut self, elapsed: Duration, is_table: bool) -> Arc<Judged> {
        if let Some((judged, until)) = &self.judged
            && is_table
            && elapsed < *until
        {
            return Arc::clone(judged);
        }
        let begun = Instant::now();
        let judged = Arc::new(self.observation.judge());
        let pause = begun.elapsed().saturating_mul(JUDGE_SHARE);
        self.judged = Some((Arc::clone(&judged), elapsed.saturating_add(pause)));
        judged
    }

    /// With what was read at the end, if it is the last.
    fn report(
        &mut self,
        mut snapshot: Snapshot,
        top: Option<usize>,
        end: Option<&AtEnd>,
    ) -> Report {
        self.observe(&snapshot);
        snapshot.counters.events[Counter::LateAllocator as usize] = self.late_allocators;
        let (ages, elapsed) = (snapshot.ages.as_ref(), snapshot.elapsed);
        let judged = self.judged(elapsed, top.is_some());
        let Judged { trends, replacing } = &*judged;
        let observation = &self.observation;
        let selection = Selection {
            sort: self.options.sort,
            top,
            elapsed,
            baseline: observation.baseline(),
            trends,
            is_library: standard_library::is_standard,
            survival: &|stack_id, sums| {
                let survival = |ages| observation.survival(stack_id, sums, ages, elapsed);
                ages.map(survival).unwrap_or_default()
            },
        };
        let sites = self.aggregator.sites(&snapshot.sums, ages, &selection);
        let observation = &self.observation;
        let forecasts = end.map_or_else(Vec::new, |end| end.forecasts(observation, &sites));
        let rss_growth = end.and_then(|end| end.explain(&self.common.at_start, &snapshot, &sites));
        let mut notes = self.common.notes.clone();
        notes.extend(self.aggregator.symbolizer().notes());
        notes.extend(self.alarm.notes());
        notes.extend(messages::replacing(replacing));
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
            rss_growth,
            forecasts,
            complete: sites.complete,
            self_check: self.aggregator.self_check(),
            sites: sites.sites,
            growing: sites.growing,
            common_caller: sites.common_caller,
            verdicts: sites.verdicts,
            trends: self.observation.process(),
            mark: self.observation.marked().cloned(),
            site_count: sites.count,
            ages_known: snapshot.ages.is_some(),
            notes,
        }
    }

    fn export_options(&self) -> ExportOptions {
        ExportOptions {
            weight: self.options.weight,
            top: self.options.top,
        }
    }

    fn write(&mut self, report: &Report) -> (Vec<File>, Vec<String>) {
        let options = self.export_options();
        parted(self.outputs.write(report, &options))
    }
}

/// A file that was written.
type File = (Format, PathBuf);

/// Files that were written and sentences about those that were not.
fn parted(outputs: Vec<Written>) -> (Vec<File>, Vec<String>) {
    let (mut files, mut failures) = (Vec::new(), Vec::new());
    for output in outputs {
        match output.result {
            Ok(()) => files.extend(output.path.map(|path| (output.format, path))),
            Err(error) => failures.push(error.to_string()),
        }
    }
    (files, failures)
}
