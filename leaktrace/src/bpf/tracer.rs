//! One loaded object: its programs, its maps, what can be read from them.

use std::{
    collections::HashMap,
    os::fd::{BorrowedFd, OwnedFd},
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{Ebpf, Pod, programs::{RawTracePoint, UProbe}};
use leaktrace_common::{
    counter::{COUNTERS, CounterBlock},
    function::Role,
    in_flight::InFlight,
    live::{LiveKey, LiveValue},
    stack::{NOT_STORED, StackRecord, StackSums},
};

use super::{
    batch::{self, Shape},
    control::ControlPage,
    features::{Feature, Features},
    links::{Attachment, Direction, LinkKind, attach_perf, link_multi},
    object::{Limits, Object, ObjectSource, map_fd, possible_cpus},
    probes::{PlannedFile, Program, Scope},
    syscall,
};
use crate::model::Sums;

/// A loaded object.
pub struct Tracer {
    ebpf: Ebpf,
    object: Object,
    multi_programs: HashMap<&'static str, OwnedFd>,
    control: ControlPage,
    batched: bool,
    cpus: usize,
}

impl Tracer {
    /// Creates the maps; programs are loaded when they are attached.
    pub fn load(source: &ObjectSource, limits: &Limits, features: &Features) -> Result<Self> {
        let object = Object::read(source, features)?;
        let ebpf = object.create_maps(limits)?;
        let control = ControlPage::map(fd_of(&ebpf, "CONTROL")?)?;
        let tracer = Self {
            ebpf,
            object,
            multi_programs: HashMap::new(),
            control,
            batched: features.has(Feature::BatchedLookup),
            cpus: possible_cpus(),
        };
        // Blocks whose stack can't be stored are accounted here.
        let sums = vec![0_u8; size_of::<StackSums>() * tracer.cpus];
        syscall::update(tracer.map("SUMS")?, &NOT_STORED.to_ne_bytes(), &sums)
            .context("preparing the table of sums")?;
        Ok(tracer)
    }

    /// The control record.
    #[must_use]
    pub fn control(&self) -> &ControlPage {
        &self.control
    }

    /// Sets probes of all `files`, so that `program` sees the calls in `scope`.
    pub fn attach(
        &mut self,
        kind: LinkKind,
        files: &[PlannedFile],
        program: Program,
        scope: Scope,
    ) -> Result<Attachment> {
        let (entry, at_return) = program.names();
        let mut attachment = Attachment { kind, sites: 0, links: Vec::new() };
        for (name, direction) in
            [(Some(entry), Direction::Entry), (at_return, Direction::Return)]
        {
            let Some(name) = name else { continue };
            for file in files {
                attachment.sites += match kind {
                    LinkKind::Multi => {
                        let fd = self.multi_program(name)?;
                        match link_multi(fd, file, direction, scope)? {
                            Some((link, sites)) => {
                                attachment.links.push(Box::new(link));
                                sites
                            }
                            None => 0,
                        }
                    }
                    LinkKind::Perf => {
                        let program = self.perf_program(name)?;
                        attach_perf(program, file, direction, scope, &mut attachment.links)?
                    }
                };
            }
        }
        Ok(attachment)
    }

    /// Watches threads that end, fork and exec.
    pub fn attach_thread_events(&mut self) -> Result<()> {
        for (program, event) in [
            ("thread_exit", "sched_process_exit"),
            ("process_exec", "sched_process_exec"),
            ("new_task", "task_newtask"),
        ] {
            let tracepoint: &mut RawTracePoint = self
                .ebpf
                .program_mut(program)
                .ok_or_else(|| anyhow!("the BPF object has no program {program}"))?
                .try_into()?;
            tracepoint.load()?;
            tracepoint.attach(event).with_context(|| format!("watching {event}"))?;
        }
        Ok(())
    }

    fn multi_program(&mut self, name: &'static str) -> Result<&OwnedFd> {
        if !self.multi_programs.contains_key(name) {
            let loaded = self.object.load_multi_programs(&self.ebpf, &[name])?;
            self.multi_programs.extend(loaded);
        }
        self.multi_programs.get(name).ok_or_else(|| anyhow!("program {name} was not loaded"))
    }

    fn perf_program(&mut self, name: &str) -> Result<&mut UProbe> {
        let program: &mut UProbe = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| anyhow!("the BPF object has no program {name}"))?
            .try_into()?;
        if program.fd().is_err() {
            program.load().with_context(|| format!("loading program {name}"))?;
        }
        Ok(program)
    }

    fn map(&self, name: &str) -> Result<BorrowedFd<'_>> {
        fd_of(&self.ebpf, name)
    }

    /// All counters, summed over CPUs.
    pub fn counters(&self) -> Result<CounterBlock> {
        let mut sum = CounterBlock::default();
        for block in self.per_cpu::<CounterBlock>("COUNTERS", &0_u32.to_ne_bytes())? {
            for index in 0..COUNTERS {
                sum.events[index] += block.events[index];
            }
            for outer in 0..Role::COUNT {
                for inner in 0..Role::COUNT {
                    sum.nested[outer][inner] += block.nested[outer][inner];
                }
            }
        }
        Ok(sum)
    }

    /// Calls that [`Program::Tally`] has seen.
    pub fn tally(&self) -> Result<u64> {
        Ok(self.per_cpu::<u64>("TALLY", &0_u32.to_ne_bytes())?.into_iter().sum())
    }

    /// The sums of every stack, by its id.
    pub fn sums(&self) -> Result<Vec<(u64, Sums)>> {
        let shape = Shape { key: 8, value: size_of::<StackSums>() * self.cpus };
        let mut all = Vec::new();
        batch::for_each(self.map("SUMS")?, shape, self.batched, &mut |key, value| {
            let mut sums = Sums::default();
            for chunk in value.chunks_exact(size_of::<StackSums>()) {
                let one: StackSums = from_bytes(chunk);
                sums.alloc_bytes = sums.alloc_bytes.wrapping_add(one.alloc_bytes);
                sums.alloc_blocks = sums.alloc_blocks.wrapping_add(one.alloc_blocks);
                sums.freed_bytes = sums.freed_bytes.wrapping_add(one.freed_bytes);
                sums.freed_blocks = sums.freed_blocks.wrapping_add(one.freed_blocks);
            }
            all.push((from_bytes(key), sums));
        })
        .context("reading the sums")?;
        Ok(all)
    }

    /// The frames of one stack; `None` when none has this id.
    pub fn stack(&self, id: u64) -> Result<Option<Box<StackRecord>>> {
        let mut bytes = vec![0_u8; size_of::<StackRecord>()];
        match syscall::lookup(self.map("STACKS")?, &id.to_ne_bytes(), &mut bytes) {
            Ok(()) => Ok(Some(Box::new(from_bytes(&bytes)))),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error).context("reading a stack"),
        }
    }

    /// Gives every live block to `visit`, those that a realloc in flight has
    /// taken out included.
    pub fn for_each_block(&self, visit: &mut dyn FnMut(LiveKey, LiveValue)) -> Result<()> {
        let shape = Shape { key: size_of::<LiveKey>(), value: size_of::<LiveValue>() };
        batch::for_each(self.map("LIVE")?, shape, self.batched, &mut |key, value| {
            visit(from_bytes(key), from_bytes(value));
        })
        .context("reading the live blocks")?;
        let shape = Shape { key: size_of::<u32>(), value: size_of::<InFlight>() };
        batch::for_each(self.map("IN_FLIGHT")?, shape, self.batched, &mut |_, value| {
            let record: InFlight = from_bytes(value);
            if record.stack_pointer != 0 && record.old.time_ns != 0 {
                visit(LiveKey { address: record.pointer, process: 0 }, record.old);
            }
        })
        .context("reading the calls in flight")
    }

    fn per_cpu<T: Pod>(&self, map: &str, key: &[u8]) -> Result<Vec<T>> {
        let stride = size_of::<T>().next_multiple_of(8);
        let mut bytes = vec![0_u8; stride * self.cpus];
        syscall::lookup(self.map(map)?, key, &mut bytes)
            .with_context(|| format!("reading map {map}"))?;
        Ok(bytes.chunks_exact(stride).map(from_bytes).collect())
    }
}

fn fd_of<'a>(ebpf: &'a Ebpf, name: &str) -> Result<BorrowedFd<'a>> {
    let Some(map) = ebpf.map(name) else { bail!("the BPF object has no map {name}") };
    map_fd(map)
}

/// Reads a plain value from the front of `bytes`, which must be long enough.
fn from_bytes<T: Pod>(bytes: &[u8]) -> T {
    assert!(bytes.len() >= size_of::<T>(), "a map's value is shorter than its type");
    // SAFETY: long enough, and `Pod` allows every bit pattern.
    unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
}
