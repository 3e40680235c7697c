//! The time between the first probe and the last.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use leaktrace_common::counter::{Counter, CounterBlock};
use tokio::{
    io::unix::AsyncFd,
    time::{MissedTickBehavior, interval, sleep_until},
};

use super::{
    TraceOptions,
    brake::{Brake, CostWatch, Period},
    memory_account::{AtEnd, AtStart},
    plan::Plan,
    progress::Progress,
    reporter::{Finished, Last, Reporter},
    signals::{Request, Signals},
    snapshot::{self, AllocRate, Snapshot},
    trampoline,
    unwinding::Unwinding,
};
use crate::{
    aggregate::AgeFilter,
    alert::{Alerts, Figures, Firing, MemoryLimit, Recent},
    bpf::{Attachment, LinkKind, Maps, Program, Scope, Tracer},
    model::{EndReason, MemorySample, Sums},
    output::screen::Screen,
    target::{
        Process,
        cpu::{CpuClock, CpuTime},
        memory,
        process_id::ProcessId,
    },
};

/// How often the brake, the target and the screen are looked at.
const CHECK: Duration = Duration::from_millis(250);
/// How many checks go by between two looks at new stacks and at memory.
const LEARN_EVERY: u32 = 4;

/// A trace whose probes are in and whose events count.
pub struct Watch {
    pub tracer: Tracer,
    pub attachment: Attachment,
    pub program: Program,
    pub plan: Plan,
    pub process: Arc<Process>,
    pub options: TraceOptions,
    pub started: Instant,
    pub cost: CostWatch,
    pub clock: Option<CpuClock>,
    pub memory: MemorySample,
    /// When `memory` was read, since the start; `None` for at the start.
    pub memory_read: Option<Duration>,
    /// How many times the target may exec before its image is another one: 1
    /// for a command that we start.
    pub expected_execs: u64,
    /// Whether the kernel's trampoline was seen in the target.
    pub trampoline_found: bool,
    /// How often perf events had fallen silent.
    pub silent_periods: u64,
    pub unwinding: Unwinding,
    /// When the mark was set, on the clock of blocks.
    pub mark_ns: Option<u64>,
    pub alerts: Alerts,
    /// How live bytes moved lately, since the mark at most.
    pub recent: Recent,
    /// How many sites grow, as the reporter has found out.
    pub growing_sites: Arc<AtomicUsize>,
    /// The machine's memory, bytes.
    pub machine_memory: u64,
    /// The alerts that ended the trace.
    pub fired: Vec<Firing>,
}

/// Figures of the last check.
struct Seen {
    at: Instant,
    allocs: u64,
    frees: u64,
    execs: u64,
    cpu: CpuTime,
}

/// Comes at this time, or never.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

impl Watch {
    /// Watches until something ends it, then makes the last report.
    ///
    /// # Errors
    /// When the report can't be made; the probes are out in any case.
    pub async fn run(
        mut self,
        reporter: Reporter,
        signals: &mut Signals,
        screen: Option<&Screen>,
    ) -> Result<Finished> {
        let maps = self.tracer.maps();
        let mut rate = AllocRate::new();
        let end = self
            .wait(&maps, &reporter, signals, screen, &mut rate)
            .await;
        signals.ending();
        self.finish(&maps, reporter, end)
    }

    async fn wait(
        &mut self,
        maps: &Maps,
        reporter: &Reporter,
        signals: &mut Signals,
        screen: Option<&Screen>,
        rate: &mut AllocRate,
    ) -> Result<EndReason> {
        // An own descriptor, so that it lives as long as the registration.
        let pidfd = self.process.pidfd().try_clone_to_owned()?;
        // SAFETY: the registration owns it.
        let exit = unsafe { AsyncFd::register(pidfd) }?;
        let deadline = self
            .options
            .duration
            .map(|duration| self.started + duration);
        let mut warm = self.options.warmup.map(|warmup| self.started + warmup);
        let mut table = interval(self.options.interval);
        table.set_missed_tick_behavior(MissedTickBehavior::Skip);
        table.reset();
        let mut check = interval(CHECK);
        check.set_missed_tick_behavior(MissedTickBehavior::Skip);
        check.reset();
        let mut seen = self.seen(maps)?;
        let mut checks = 0;
        loop {
            let closed = async {
                match screen {
                    Some(screen) => {
                        screen.ended().await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                request = signals.next() => match request {
                    Request::End(name) => return Ok(EndReason::Signal(name)),
                    Request::Write => reporter.write(self.snapshot(maps, rate, true)?),
                    Request::Mark => self.mark(maps, reporter, rate)?,
                },
                _ = exit.readable() => return Ok(EndReason::TargetExit),
                () = closed => return Ok(EndReason::OutputClosed),
                () = at(deadline) => return Ok(EndReason::Duration),
                () = at(warm) => {
                    warm = None;
                    self.mark(maps, reporter, rate)?;
                },
                _ = check.tick() => {
                    if let Some(end) = self.check(maps, &mut seen)? {
                        return Ok(end);
                    }
                    self.look_for_trampoline(maps)?;
                    checks += 1;
                    if checks % LEARN_EVERY == 0 {
                        if let Some(end) = self.look_around(maps, reporter, rate)? {
                            return Ok(end);
                        }
                    } else if checks < LEARN_EVERY {
                        // Of a process that soon ends, at least this is known.
                        self.sample_memory();
                    }
                },
                _ = table.tick(), if !self.options.quiet => {
                    let with_ages = self.age_filter().is_set();
                    reporter.table(self.snapshot(maps, rate, with_ages)?);
                },
            }
        }
    }

    fn seen(&self, maps: &Maps) -> Result<Seen> {
        let counters = maps.counters()?;
        // Everything that took a trap.
        let sum = |of: &[Counter]| of.iter().map(|one| counters.events[*one as usize]).sum();
        Ok(Seen {
            at: Instant::now(),
            allocs: sum(&[Counter::AllocCalls, Counter::Filtered, Counter::TailCall]),
            frees: sum(&[Counter::FreeCalls, Counter::FreeNull, Counter::NestedCall]),
            execs: counters.events[Counter::Exec as usize],
            cpu: self.cpu().unwrap_or_default(),
        })
    }

    fn cpu(&self) -> Option<CpuTime> {
        self.clock.as_ref()?.read().ok()
    }

    /// The brake, and what may have become of the target.
    fn check(&mut self, maps: &Maps, seen: &mut Seen) -> Result<Option<EndReason>> {
        let now = self.seen(maps)?;
        let period = Period {
            wall: now.at - seen.at,
            allocs: now.allocs - seen.allocs,
            frees: now.frees - seen.frees,
            cpu: now.cpu.total.saturating_sub(seen.cpu.total),
            system: now.cpu.system.saturating_sub(seen.cpu.system),
        };
        *seen = now;
        if let Some(cost) = self.cost.observe(&period) {
            let Brake::Limit(limit) = self.options.brake else {
                return Ok(None);
            };
            return Ok(Some(EndReason::Overhead { cost, limit }));
        }
        if seen.execs > self.expected_execs {
            return Ok(Some(EndReason::TargetExec));
        }
        self.follow_process()?;
        if self.attachment.is_held() {
            Ok(None)
        } else {
            self.silent_periods += 1;
            Ok(Some(EndReason::ProbesLost))
        }
    }

    /// When the process's first thread has ended although the process lives,
    /// perf events fall silent, and the kernel takes a multi link's breakpoints
    /// out as soon as anybody changes a probe in the same file. So the probes
    /// are replaced by some that are not bound to the process.
    fn follow_process(&mut self) -> Result<()> {
        if !self.is_unbound_wanted() {
            return Ok(());
        }
        if self.is_silent() {
            self.silent_periods += 1;
        }
        let maps = self.tracer.maps();
        let id = ProcessId::of(self.process.pid())?;
        maps.control().set_target(id, true);
        let generation = u8::from(self.tracer.has_cookies());
        let kind = self.attachment.kind;
        self.tracer.count_unseen_vforks(kind, Scope::Everyone)?;
        let (loader, files) = (&self.plan.loader, &self.plan.files);
        let mut unbound = self
            .tracer
            .attach(kind, loader, Program::Loader, Scope::Everyone, 0)?;
        // That in the loader may have been silent as well. Before calls are seen,
        // which without cookies are those of either set.
        maps.control().distrust_mappings();
        self.tracer
            .extend(&mut unbound, files, self.program, generation)?;
        maps.control().set_generation(generation);
        let mut bound = std::mem::replace(&mut self.attachment, unbound);
        std::thread::spawn(move || bound.detach(|_, _| {}));
        Ok(())
    }

    fn is_unbound_wanted(&self) -> bool {
        self.attachment.scope != Scope::Everyone
            && self.process.is_alive()
            && self.process.main_thread_ended()
    }

    /// Whether calls go unseen: perf events do nothing any more, a multi link's
    /// breakpoints may be gone.
    fn is_silent(&self) -> bool {
        self.attachment.kind == LinkKind::Perf || !self.plan.has_breakpoint(&self.process)
    }

    /// The programs' counters, with what only we can know.
    fn counters(&self, maps: &Maps) -> Result<CounterBlock> {
        let mut counters = maps.counters()?;
        counters.events[Counter::Silent as usize] = self.silent_periods;
        counters.events[Counter::Unwatched as usize] = self.plan.unwatched;
        counters.events[Counter::ProgramSkipped as usize] = self.tracer.skipped()?;
        Ok(counters)
    }

    fn look_for_trampoline(&mut self, maps: &Maps) -> Result<()> {
        // The kernel maps it at the first call that needs it.
        if !self.trampoline_found && maps.counters()?.events[Counter::AllocCalls as usize] > 0 {
            self.trampoline_found = trampoline::find(maps, &self.process);
        }
        Ok(())
    }

    /// Learns new stacks, and how much memory is used; whether that is what
    /// somebody wanted to know.
    fn look_around(
        &mut self,
        maps: &Maps,
        reporter: &Reporter,
        rate: &mut AllocRate,
    ) -> Result<Option<EndReason>> {
        self.sample_memory();
        let snapshot = Snapshot {
            taken: jiff::Zoned::now(),
            elapsed: self.started.elapsed(),
            end: None,
            counters: self.counters(maps)?,
            sums: maps.sums()?,
            ages: None,
            alloc_rate: 0.0,
            cost: None,
            cost_cpus: None,
            memory: self.memory,
            memory_read: self.memory_read,
        };
        let figures = self.figures(&snapshot);
        let fired = self.alerts.due(snapshot.elapsed, &figures);
        reporter.learn(snapshot);
        let Some(first) = fired.first() else {
            return Ok(None);
        };
        if self.options.alerts.end {
            let end = EndReason::Alert(first.condition.to_string());
            self.fired = fired;
            return Ok(Some(end));
        }
        let snapshot = self.snapshot(maps, rate, true)?;
        reporter.alert(snapshot, fired);
        Ok(None)
    }

    fn figures(&mut self, snapshot: &Snapshot) -> Figures {
        let held = |of: fn(&Sums) -> u64| snapshot.sums.iter().map(|(_, sums)| of(sums)).sum();
        let live_bytes = held(Sums::live_bytes);
        self.recent.push(snapshot.elapsed, live_bytes);
        // What grows while a service warms up says nothing.
        let is_warm = self.options.warmup.is_none() || self.mark_ns.is_some();
        Figures {
            live_bytes,
            live_blocks: held(Sums::live_blocks),
            growth_per_minute: self.recent.per_minute().filter(|_| is_warm),
            growing_sites: if is_warm {
                self.growing_sites.load(Ordering::Relaxed)
            } else {
                0
            },
            memory: self.memory,
            memory_limit: MemoryLimit::tightest(
                self.memory.cgroup_limit,
                Some(self.machine_memory),
            ),
        }
    }

    fn sample_memory(&mut self) {
        let memory = memory::sample(&self.process);
        if memory.rss.is_some() {
            self.memory = memory;
            self.memory_read = Some(self.started.elapsed());
        }
    }

    /// From here on growth counts.
    fn mark(&mut self, maps: &Maps, reporter: &Reporter, rate: &mut AllocRate) -> Result<()> {
        // First the time: what is made from now on may be in the sums already.
        self.mark_ns = Some(snapshot::now_ns());
        self.recent = Recent::default();
        let snapshot = self.snapshot(maps, rate, false)?;
        let at_mark = AtStart::read(&self.process, self.memory, &snapshot.sums);
        reporter.mark(snapshot, at_mark);
        Ok(())
    }

    /// Which blocks are shown.
    fn age_filter(&self) -> AgeFilter {
        AgeFilter {
            made_since_ns: self.mark_ns.filter(|_| self.options.since_mark),
            ..self.options.ages
        }
    }

    fn snapshot(&mut self, maps: &Maps, rate: &mut AllocRate, ages: bool) -> Result<Snapshot> {
        self.sample_memory();
        let counters = self.counters(maps)?;
        Ok(Snapshot {
            taken: jiff::Zoned::now(),
            elapsed: self.started.elapsed(),
            end: None,
            alloc_rate: rate.next(&counters),
            counters,
            sums: maps.sums()?,
            ages: if ages {
                Some(snapshot::ages(maps, self.age_filter(), snapshot::now_ns())?)
            } else {
                None
            },
            cost: self.cost.total_share(),
            cost_cpus: self.cost.total_cpus(),
            memory: self.memory,
            memory_read: self.memory_read,
        })
    }

    /// First the probes go, then everything is read, then it is reported.
    fn finish(
        mut self,
        maps: &Maps,
        reporter: Reporter,
        end: Result<EndReason>,
    ) -> Result<Finished> {
        let mut disabled = maps.control().enable(false);
        let mut elapsed = self.started.elapsed();
        // The programs have noticed an exec before us.
        if let Some(exec) = maps.control().exec_edge() {
            let late = disabled.latest_ns.saturating_sub(exec.latest_ns);
            elapsed = elapsed.saturating_sub(Duration::from_nanos(late));
            disabled = exec;
        }
        let progress = Progress::start("taking the probes out");
        if self.is_unbound_wanted() && self.is_silent() {
            self.silent_periods += 1;
        }
        self.attachment.detach(|closed, all| {
            progress.phase(format!("taking the probes out: {closed} of {all}"));
        });
        let notes = self.unwinding.end();
        let mut end = end?;
        let execs = maps.counters()?.events[Counter::Exec as usize];
        if end == EndReason::TargetExit && execs > self.expected_execs {
            end = EndReason::TargetExec;
        }
        progress.phase("reading what is held");
        self.sample_memory();
        let at_end = AtEnd::read(&self.process, self.plan.is_glibc_alone());
        let counters = self.counters(maps)?;
        let sums = maps.sums()?;
        let ages = snapshot::ages(maps, self.age_filter(), disabled.latest_ns)?;
        progress.phase("reading symbols and writing the report");
        let calls = counters.events[Counter::AllocCalls as usize];
        let snapshot = Snapshot {
            taken: jiff::Zoned::now(),
            elapsed,
            end: Some(end),
            counters,
            sums,
            ages: Some(ages),
            alloc_rate: calls as f64 / elapsed.as_secs_f64().max(1e-3),
            cost: self.cost.total_share(),
            cost_cpus: self.cost.total_cpus(),
            memory: self.memory,
            memory_read: self.memory_read,
        };
        reporter.finish(Last {
            snapshot,
            at_end,
            disabled,
            notes,
            fired: self.fired,
        })
    }
}
