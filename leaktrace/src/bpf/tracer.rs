//! One loaded object: loading and attaching its programs.

use std::{collections::HashMap, os::fd::OwnedFd, sync::Arc};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf,
    programs::{RawTracePoint, UProbe},
};

use super::{
    features::{Feature, Features},
    links::{Attachment, Direction, LinkKind, attach_perf, link_multi},
    maps::Maps,
    object::{Limits, Object, ObjectSource},
    probes::{LiveForm, PlannedFile, Program, Scope},
};

/// A loaded object: programs that can be attached, and their maps.
pub struct Tracer {
    ebpf: Ebpf,
    object: Object,
    multi_programs: HashMap<&'static str, OwnedFd>,
    maps: Arc<Maps>,
    form: LiveForm,
}

impl Tracer {
    /// Creates the maps; programs are loaded when they are attached.
    pub fn load(source: &ObjectSource, limits: &Limits, features: &Features) -> Result<Self> {
        let object = Object::read(source, features)?;
        let form = LiveForm::of(features);
        let (ebpf, maps) = object.create_maps(limits, form)?;
        let maps = Arc::new(Maps::new(maps, features.has(Feature::BatchedLookup))?);
        Ok(Self {
            ebpf,
            object,
            multi_programs: HashMap::new(),
            maps,
            form,
        })
    }

    /// What the programs write.
    #[must_use]
    pub fn maps(&self) -> Arc<Maps> {
        Arc::clone(&self.maps)
    }

    /// Sets probes of all `files`, so that `program` sees the calls in `scope`.
    pub fn attach(
        &mut self,
        kind: LinkKind,
        files: &[PlannedFile],
        program: Program,
        scope: Scope,
    ) -> Result<Attachment> {
        let (entry, at_return) = program.names(self.form);
        let mut attachment = Attachment {
            kind,
            scope,
            sites: 0,
            links: Vec::new(),
        };
        for (name, direction) in [
            (Some(entry), Direction::Entry),
            (at_return, Direction::Return),
        ] {
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
            (self.form.thread_exit(), "sched_process_exit"),
            ("process_exec", "sched_process_exec"),
            ("new_task", "task_newtask"),
        ] {
            let tracepoint: &mut RawTracePoint = self
                .ebpf
                .program_mut(program)
                .ok_or_else(|| anyhow!("the BPF object has no program {program}"))?
                .try_into()?;
            tracepoint.load()?;
            tracepoint
                .attach(event)
                .with_context(|| format!("watching {event}"))?;
        }
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

    fn perf_program(&mut self, name: &str) -> Result<&mut UProbe> {
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
        Ok(program)
    }
}
