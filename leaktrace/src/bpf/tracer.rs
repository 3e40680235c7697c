//! One loaded object: loading and attaching its programs.

use std::{
    collections::HashMap,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf,
    programs::{RawTracePoint, UProbe},
};

use leaktrace_common::function::{Cookie, FIXED};
use rustix::time::{ClockId, clock_getres};

use super::{
    features::{Feature, Features},
    holder::Holder,
    links::{Attachment, Direction, LinkKind, attach_perf, link_multi},
    maps::Maps,
    object::{Limits, Object, ObjectSource},
    probes::{LiveForm, PlannedFile, PlannedProbe, Program, Scope},
    syscall,
    uprobe_perf::Tie,
};

/// A loaded object: programs that can be attached, and their maps.
pub struct Tracer {
    ebpf: Ebpf,
    object: Object,
    multi_programs: HashMap<&'static str, OwnedFd>,
    maps: Arc<Maps>,
    form: LiveForm,
    cookies: bool,
    /// What [`Tracer::skipped`] had counted when the trial ended.
    skipped_in_trial: u64,
    perf_links: bool,
    vforks_are_counted: bool,
}

/// How long one of the kernel's ticks takes: the resolution of its clocks that
/// count them (clock_getres(2)).
fn tick_ns() -> Option<u64> {
    let tick = clock_getres(ClockId::MonotonicCoarse);
    let nanoseconds = u64::try_from(tick.tv_nsec).ok()?;
    (tick.tv_sec == 0 && nanoseconds > 0).then_some(nanoseconds)
}

impl Tracer {
    /// Creates the maps; programs are loaded when they are attached.
    pub fn load(source: &ObjectSource, limits: &Limits, features: &Features) -> Result<Self> {
        let object = Object::read(source, features)?;
        let form = LiveForm::of(features);
        let (mut ebpf, maps) = object.create_maps(limits, form)?;
        let learn_file = if features.has(Feature::FindVma) {
            let program = raw_tracepoint(&mut ebpf, "learn_file")?;
            program.load()?;
            Some(program.fd()?.as_fd().try_clone_to_owned()?)
        } else {
            None
        };
        let batched = features.has(Feature::BatchedLookup);
        let maps = Arc::new(Maps::new(maps, learn_file, batched)?);
        // Without them, programs read the precise clock.
        if let Some(tick_ns) = tick_ns() {
            let program = raw_tracepoint(&mut ebpf, "learn_ticks")?;
            program.load()?;
            let _ = syscall::run_raw_tracepoint(program.fd()?.as_fd(), &[tick_ns]);
        }
        Ok(Self {
            ebpf,
            object,
            multi_programs: HashMap::new(),
            maps,
            form,
            cookies: features.has(Feature::AttachCookie),
            skipped_in_trial: 0,
            perf_links: features.has(Feature::PerfLink),
            vforks_are_counted: false,
        })
    }

    /// Forgets what the programs did up to now (see [`Maps::end_trial`]).
    ///
    /// # Errors
    /// When a map can't be changed.
    pub fn end_trial(&mut self) -> Result<()> {
        self.skipped_in_trial += self.skipped()?;
        self.maps.end_trial()
    }

    /// At how many events since the trial the kernel did not run a program of
    /// ours, over all programs but the one for threads that end: that one only
    /// tidies up, for any process, and a record that it leaves is taken over by
    /// the next thread of that number. Newer kernels (7.3) preempt it now and then, and
    /// then leave it out where other threads end.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn skipped(&self) -> Result<u64> {
        let mut skipped = 0;
        for (name, program) in self.ebpf.programs() {
            if name != self.form.thread_exit()
                && let Ok(fd) = program.fd()
            {
                skipped += syscall::recursion_misses(fd.as_fd())?;
            }
        }
        for fd in self.multi_programs.values() {
            skipped += syscall::recursion_misses(fd.as_fd())?;
        }
        Ok(skipped - self.skipped_in_trial)
    }

    /// Whether probes tell the programs what they are; without, there is one
    /// generation of them.
    #[must_use]
    pub fn has_cookies(&self) -> bool {
        self.cookies
    }

    /// What the programs write.
    #[must_use]
    pub fn maps(&self) -> Arc<Maps> {
        Arc::clone(&self.maps)
    }

    /// Sets probes of all `files`, so that `program` sees the calls in `scope`;
    /// they count while this `generation` does, where probes have cookies.
    pub fn attach(
        &mut self,
        kind: LinkKind,
        files: &[PlannedFile],
        program: Program,
        scope: Scope,
        generation: u8,
    ) -> Result<Attachment> {
        let holder = Holder::start().context("starting the process that holds the probes")?;
        let mut attachment = Attachment {
            kind,
            scope,
            sites: 0,
            entry_sites: Vec::new(),
            holder: Some(holder),
        };
        self.extend(&mut attachment, files, program, generation)?;
        Ok(attachment)
    }

    /// The same with probes that are held by the process that holds others.
    pub fn extend(
        &mut self,
        attachment: &mut Attachment,
        files: &[PlannedFile],
        program: Program,
        generation: u8,
    ) -> Result<()> {
        let files = &with_generation(files, generation);
        let (entry, at_return) = program.names(self.form);
        let (kind, scope) = (attachment.kind, attachment.scope);
        let holder = attachment
            .holder
            .as_mut()
            .context("the other probes have been taken out")?;
        let mut entry_sites = Vec::new();
        for (name, direction) in [
            (Some(entry), Direction::Entry),
            (at_return, Direction::Return),
        ] {
            let Some(name) = name else { continue };
            for file in files {
                let taken = match kind {
                    LinkKind::Multi => {
                        let program = self.multi_program(name)?.as_fd();
                        link_multi(holder, program, file, direction, scope)?
                    }
                    LinkKind::Perf => file
                        .probes
                        .iter()
                        .filter(|probe| !direction.sites(probe).is_empty())
                        .map(|probe| self.attach_perf(holder, name, file, probe, direction, scope))
                        .collect::<Result<_>>()?,
                };
                attachment.sites += taken.len();
                if direction == Direction::Entry {
                    entry_sites.push(taken);
                }
            }
        }
        attachment.entry_sites = entry_sites;
        Ok(())
    }

    /// Sets one probe by a perf event. Where the kernel knows no cookies, the
    /// program is one that knows the function's signature.
    fn attach_perf(
        &mut self,
        holder: &mut Holder,
        name: &'static str,
        file: &PlannedFile,
        probe: &PlannedProbe,
        direction: Direction,
        scope: Scope,
    ) -> Result<u64> {
        let name = if self.cookies {
            name
        } else if direction == Direction::Entry && name == self.form.enter() {
            let cookie = Cookie(probe.cookie).with_generation(0).0;
            let fixed = FIXED
                .iter()
                .find(|(_, signature)| signature.to_cookie() == cookie)
                .ok_or_else(|| {
                    anyhow!(
                        "{} can't be watched on this kernel, whose probes have no cookies (Linux \
                         5.15 has them)",
                        probe.function
                    )
                })?;
            fixed.0
        } else {
            name
        };
        let tie = if self.perf_links {
            // Programs for fixed signatures don't ask.
            Tie::Link {
                cookie: probe.cookie,
            }
        } else {
            Tie::Ioctl
        };
        let program = self.perf_program(name)?;
        attach_perf(holder, program, file, probe, direction, scope, tie)
    }

    /// Watches threads that end or exec.
    pub fn attach_thread_events(&mut self) -> Result<()> {
        self.watch(self.form.thread_exit(), "sched_process_exit")?;
        self.watch("process_exec", "sched_process_exec")
    }

    /// Counts vfork children from now on where such probes leave them out. Perf
    /// events that are bound to a process see whoever shares its memory.
    pub fn count_unseen_vforks(&mut self, kind: LinkKind, scope: Scope) -> Result<()> {
        let sees = kind == LinkKind::Perf && matches!(scope, Scope::Process(_));
        if sees || self.vforks_are_counted {
            return Ok(());
        }
        self.vforks_are_counted = true;
        self.watch("new_task", "task_newtask")
    }

    fn watch(&mut self, program: &str, event: &str) -> Result<()> {
        let tracepoint = raw_tracepoint(&mut self.ebpf, program)?;
        tracepoint.load()?;
        tracepoint
            .attach(event)
            .with_context(|| format!("watching {event}"))?;
        Ok(())
    }

    fn multi_program(&mut self, name: &'static str) -> Result<&OwnedFd> {
        if !self.multi_programs.contains_key(name) {
            let loaded = self.object.load_multi_programs(self.maps.set(), &[name])?;
            self.multi_programs.extend(loaded);
        }
        self.multi_programs
            .get(name)
            .ok_or_else(|| anyhow!("program {name} was not loaded"))
    }

    fn perf_program(&mut self, name: &str) -> Result<BorrowedFd<'_>> {
        let program: &mut UProbe = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| anyhow!("the BPF object has no program {name}"))?
            .try_into()?;
        if program.fd().is_err() {
            program
                .load()
                .with_context(|| format!("loading program {name}"))?;
        }
        Ok(program.fd()?.as_fd())
    }
}

fn raw_tracepoint<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut RawTracePoint> {
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| anyhow!("the BPF object has no program {name}"))?;
    Ok(program.try_into()?)
}

/// The same probes as another set.
fn with_generation(files: &[PlannedFile], generation: u8) -> Vec<PlannedFile> {
    let mut files = files.to_vec();
    for probe in files.iter_mut().flat_map(|file| &mut file.probes) {
        probe.cookie = Cookie(probe.cookie).with_generation(generation).0;
    }
    files
}
