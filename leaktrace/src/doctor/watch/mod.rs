//! `leaktrace doctor PID --watch`: how a process moves, from what the kernel
//! shows of it. No probes, and no privileges for a process of one's own.

mod advice;
mod series;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::{io::Errno, stdio};
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{Signal, SignalKind, signal},
    time::{MissedTickBehavior, interval},
};

use crate::{
    doctor::allocators::KnownAllocator,
    exit,
    model::{Glance, MappingKind, MemoryMap, WatchEnd, WatchReport},
    output::{stream, terminal::Terminal},
    report::watch as text,
    target::{
        Process,
        cpu::{CpuClock, CpuTime},
        memory, memory_map,
    },
};
use advice::Findings;
use series::AllSeries;

/// How to watch.
#[derive(Clone, Copy, Debug)]
pub struct WatchOptions {
    /// For how long.
    pub duration: Duration,
    /// Time between two looks.
    pub interval: Duration,
}

/// About as many lines are shown while it lasts.
const LINES: u32 = 12;
/// Some line is shown at least so often.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);
/// Watches a process, shows how it moves, and concludes what to do.
///
/// # Errors
/// When the process can't be looked into, or stdout can't be written; that nobody
/// reads it any more is none.
pub fn watch(pid: u32, options: &WatchOptions) -> Result<exit::Outcome> {
    let process = Process::open(pid)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    match runtime.block_on(Watch::start(&process)?.run(options)) {
        Ok(()) => Ok(exit::Outcome::Reported),
        Err(error) if error.downcast_ref() == Some(&Errno::PIPE) => Ok(exit::Outcome::Reported),
        Err(error) => Err(error),
    }
}

/// A process that is being watched.
struct Watch<'a> {
    process: &'a Process,
    started: Instant,
    clock: Option<CpuClock>,
    cpu: Option<(Instant, CpuTime)>,
    maps: Maps,
    first: Glance,
    last: Glance,
    series: AllSeries,
}

/// The address space, read as often as is cheap.
#[derive(Default)]
struct Maps {
    first: Option<MemoryMap>,
    last: Option<MemoryMap>,
    read: Option<Instant>,
    /// The shortest time that reading took: others show how busy the machine is.
    takes: Option<Duration>,
}

impl Maps {
    /// Reads it if reading is due; whether it did.
    fn look(&mut self, process: &Process) -> bool {
        let began = Instant::now();
        let pause = self.takes.map_or(Duration::ZERO, pause);
        if self.read.is_some_and(|read| began - read < pause) {
            return false;
        }
        let Ok(map) = memory_map::survey(process) else {
            return false;
        };
        let took = began.elapsed();
        self.read = Some(began);
        self.takes = Some(self.takes.map_or(took, |before| before.min(took)));
        self.first.get_or_insert_with(|| map.clone());
        self.last = Some(map);
        true
    }

    /// Reads it for the last time, with what is used of each mapping, which tells
    /// which of them it is that grows.
    fn look_closely(&mut self, process: &Process) -> bool {
        let map = memory_map::survey_used(process).ok();
        let is_read = map.is_some();
        self.last = map.or(self.last.take());
        is_read
    }
}

/// How long to wait between two readings that take so long: no time is wasted
/// where it is cheap, and no more than a tenth of it where it is not.
fn pause(takes: Duration) -> Duration {
    const RARELY: Duration = Duration::from_secs(5);
    (takes * 200).min(RARELY).max(takes * 10)
}

impl<'a> Watch<'a> {
    fn start(process: &'a Process) -> Result<Self> {
        let clock = CpuClock::open(process).ok();
        let mut watch = Self {
            process,
            started: Instant::now(),
            cpu: None,
            clock,
            maps: Maps::default(),
            first: Glance::default(),
            last: Glance::default(),
            series: AllSeries::default(),
        };
        watch.look().context("the process has ended")?;
        watch.first = watch.last;
        Ok(watch)
    }

    async fn run(mut self, options: &WatchOptions) -> Result<()> {
        let info = self.process.info();
        let title = text::title(&info, options.duration, options.interval);
        print(&title)?;
        print(&text::heading())?;
        print(&text::first_line(&self.first))?;
        let end = self.watch(options).await?;
        let report = self.conclude(end);
        let columns = Terminal::of(stdio::stdout());
        print(&text::conclusion(
            &report,
            columns.is_terminal.then_some(columns.columns),
            columns.colour,
        ))
    }

    async fn watch(&mut self, options: &WatchOptions) -> Result<WatchEnd> {
        let mut interrupt = Interrupt::new()?;
        let pidfd = self.process.pidfd().try_clone_to_owned()?;
        // SAFETY: the registration owns the descriptor.
        let exit = unsafe { AsyncFd::register(pidfd) }?;
        let mut look = interval(options.interval);
        look.set_missed_tick_behavior(MissedTickBehavior::Skip);
        look.reset();
        let step = (options.duration / LINES)
            .clamp(options.interval, LONGEST_SILENCE.max(options.interval));
        let deadline = tokio::time::sleep_until((self.started + options.duration).into());
        tokio::pin!(deadline);
        let mut shown = Duration::ZERO;
        loop {
            tokio::select! {
                biased;
                () = interrupt.received() => {
                    self.look_last();
                    return Ok(WatchEnd::Interrupted);
                }
                _ = exit.readable() => return Ok(WatchEnd::Exited),
                () = &mut deadline => {
                    self.look_last();
                    return Ok(WatchEnd::Over);
                }
                _ = look.tick() => {
                    if stream::is_closed(stdio::stdout()) {
                        return Err(Errno::PIPE.into());
                    }
                    // Timers are not exact.
                    let due = self.look().is_some()
                        && self.last.at + options.interval / 2 >= shown + step;
                    if due {
                        shown = self.last.at;
                        print(&text::line(&self.first, &self.last))?;
                    }
                }
            }
        }
    }

    /// Looks once; `None` when the process has ended.
    fn look(&mut self) -> Option<()> {
        let has_maps = self.maps.look(self.process);
        self.add_look(has_maps)
    }

    /// Looks at the end, so that the whole time counts.
    fn look_last(&mut self) {
        let has_maps = self.maps.look_closely(self.process);
        self.add_look(has_maps);
    }

    fn add_look(&mut self, has_maps: bool) -> Option<()> {
        let memory = memory::sample(self.process);
        memory.rss?;
        let map = self.maps.last.as_ref();
        let sum = |kinds: fn(MappingKind) -> bool| {
            let map = map?;
            let kinds = MappingKind::ALL.into_iter().filter(|kind| kinds(*kind));
            Some(kinds.map(|kind| map.bytes(kind)).sum())
        };
        let glance = Glance {
            at: self.started.elapsed(),
            memory,
            heap: sum(MappingKind::is_glibc_malloc),
            other_mappings: sum(|kind| matches!(kind, MappingKind::Anonymous | MappingKind::Named)),
            mapping_count: map.map(|map| map.mappings),
            cpus: self.cpus(),
        };
        self.series.push(&glance, has_maps);
        self.last = glance;
        Some(())
    }

    /// CPUs used since the look before.
    fn cpus(&mut self) -> Option<f64> {
        let now = Instant::now();
        let time = self.clock.as_ref()?.read().ok()?;
        let (then, before) = self.cpu.replace((now, time))?;
        let used = time.total.saturating_sub(before.total);
        Some(used.as_secs_f64() / (now - then).as_secs_f64().max(1e-3))
    }

    fn conclude(&self, end: WatchEnd) -> WatchReport {
        let movements = self.series.movements(self.process);
        let grown = |kind| {
            let (first, last) = (self.maps.first.as_ref()?, self.maps.last.as_ref()?);
            last.most_grown(first, kind)
        };
        let map = self.maps.last.as_ref();
        let findings = Findings {
            elapsed: self.last.at,
            movements: &movements,
            allocator: map.and_then(other_allocator),
            blocks_told: map.is_some_and(|map| map.blocks_told),
            file: grown(MappingKind::File),
            shared: grown(MappingKind::Shared),
            anonymous: grown(MappingKind::Named),
            free: memory_map::glibc_heaps(self.process).map(|heaps| (heaps.free, heaps.walked)),
        };
        WatchReport {
            process: self.process.info(),
            elapsed: self.last.at,
            end,
            advice: findings.advice(),
            movements,
        }
    }
}

/// An allocator whose library is mapped and that is not the C library's.
fn other_allocator(map: &MemoryMap) -> Option<&'static str> {
    map.of(MappingKind::File).find_map(|part| {
        let file = part.name.rsplit('/').next()?;
        let known = KnownAllocator::by_file_name(file)?;
        (known.name != "glibc").then_some(known.name)
    })
}

/// Signals that end it.
struct Interrupt([Signal; 3]);

impl Interrupt {
    fn new() -> Result<Self> {
        let hear = |kind| signal(kind).context("listening to signals");
        Ok(Self([
            hear(SignalKind::interrupt())?,
            hear(SignalKind::terminate())?,
            hear(SignalKind::hangup())?,
        ]))
    }

    async fn received(&mut self) {
        let [one, two, three] = &mut self.0;
        tokio::select! {
            _ = one.recv() => {}
            _ = two.recv() => {}
            _ = three.recv() => {}
        }
    }
}

fn print(text: &str) -> Result<()> {
    Ok(stream::write_all(stdio::stdout(), text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read_less_often_the_longer_it_takes() {
        let milliseconds = |takes| pause(Duration::from_millis(takes)).as_millis();
        assert_eq!(milliseconds(1), 200);
        assert_eq!(milliseconds(100), 5_000);
        assert_eq!(milliseconds(2_000), 20_000);
    }
}
