//! Tracing a process that is running.

use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, bail};

use super::{
    TraceOptions,
    brake::{Brake, Estimate},
    conclusion,
    estimate::Tally,
    messages,
    plan::Plan,
    progress::Progress,
    rehearsal, signals,
    start::{self, Outlook, Subject, Workbench},
    unwinding::{self, Preparation, Stage, Unwinding},
};
use crate::{
    bpf::{Feature, Scope},
    exit::Outcome,
    host::priority,
    launch::Inherited,
    output::terminal::fitted_to_stderr,
    say,
    target::{
        Process, TargetError, cpu::CpuClock, mapped_file, mapping, mapping_watch::MappingWatch,
        memory,
    },
};

/// Traces a process until something ends it.
pub fn attach(process: Process, options: &TraceOptions) -> Result<Outcome> {
    let inherited = Inherited::capture().context("reading leaktrace's own signal settings")?;
    if !options.estimate_only {
        start::check_outputs(options)?;
    }
    priority::die_first();
    let runtime = start::runtime()?;
    let _guard = runtime.enter();
    let mut signals = signals::own()?;
    let progress = Progress::start("looking at the process");
    let mut mappings = MappingWatch::by_maps(process.pid());
    let (_, files) = mappings.current(&process);
    let tables = Preparation::start(&files, options.unwind, options.table_cache)?;
    let outlook = Outlook {
        tables: tables.room(),
        shadow_stack: process.has_shadow_stack(),
        threads: memory::sample(&process).threads.unwrap_or(1),
    };
    let mut workbench = Workbench::set_up(options, &outlook, &progress)?;

    progress.phase("reading symbols");
    let mut notes = Vec::new();
    let plan = plan(&process, &workbench, &mut notes)?;
    let kind = workbench.calibration.link_kind;
    if process.has_shadow_stack() && !workbench.features.has(Feature::ReturnsKeepShadowStack) {
        bail!(
            "not attached: {} runs with a user shadow stack, and return probes of this kernel do \
             not keep that right, so the process would die (Linux 6.11 does; update the kernel). \
             Nothing was changed in the process",
            process.pid()
        );
    }
    if process.seccomp() != 0 {
        rehearsal::under_seccomp(&mut workbench.tracer, workbench.ability, kind)?;
    }
    let scope = if process.main_thread_ended() {
        Scope::Everyone
    } else {
        Scope::Process(process.pid())
    };
    workbench.watch_loader(&plan, process.pid(), scope)?;
    // While calls are counted, tables are published.
    let followed = unwinding::Subject {
        process: Arc::new(process),
        mappings: Arc::new(Mutex::new(mappings)),
        code: Arc::default(),
    };
    let process = Arc::clone(&followed.process);
    let unwinding = Unwinding::start(tables, workbench.tracer.maps(), &followed.code, &[])?;
    unwinding.follow(followed.clone());
    let mut own_system_rate = 0.0;
    if options.brake != Brake::Off || options.estimate_only {
        progress.phase("counting calls for half a second");
        let (estimate, system_rate, entry_sites) =
            estimate(&mut workbench, &plan, &process, scope)?;
        let explain = || {
            for line in start::explanation(&plan, &entry_sites, options) {
                say!("{line}");
            }
        };
        own_system_rate = system_rate;
        if let Brake::Limit(limit) = options.brake
            && estimate.exceeds(options.brake)
            && !options.estimate_only
        {
            explain();
            say!("{}", messages::refusal(&process.info(), &estimate, limit));
            return Ok(Outcome::Refused);
        }
        if options.estimate_only {
            explain();
        }
        let said = messages::estimate(&process.info(), &estimate, options.brake);
        say!("{}", fitted_to_stderr(&said));
        if options.estimate_only {
            return Ok(Outcome::Reported);
        }
    }
    progress.phase("attaching");
    // Stacks need names also when the process ends or execs right afterwards:
    // its mappings are known before events count.
    unwinding.wait_until(Stage::Followed);
    let mapped = mapping::read_mappings(&process).context("reading the process's mappings")?;
    let live = workbench.switch_on(&plan, process.pid(), scope, &mapped, 0, options)?;
    signals.tracing();
    // Only now: on a busy machine, a nice leaktrace would take long to set up.
    priority::give_way();
    drop(progress);
    let subject = Subject {
        mappings: followed.mappings,
        code: followed.code,
        unwinding,
        process,
        plan,
        notes,
        own_system_rate,
        expected_execs: 0,
        inherited,
    };
    let finished = start::observe(workbench, live, subject, options, &runtime, &mut signals)?;
    let outcome = conclusion::conclude(&finished, options);
    finished.alarm.finish();
    Ok(outcome)
}

/// The probes for what the process maps now.
fn plan(process: &Process, workbench: &Workbench, notes: &mut Vec<String>) -> Result<Plan> {
    let mappings = mapping::read_mappings(process).context("reading the process's mappings")?;
    let (files, problems) = mapped_file::open_executable_files(process, &mappings);
    notes.extend(problems.iter().map(|problem| format!("{problem}.")));
    let plan = Plan::of(&files, workbench.ability)?;
    if plan.files.is_empty() {
        let mapped = files.iter().map(|file| file.path().to_owned()).collect();
        return Err(TargetError::no_allocator(process, mapped).into());
    }
    notes.extend(plan.problems.iter().cloned());
    Ok(plan)
}

/// What tracing would cost, the target's system time per second, and where its
/// calls were seen.
fn estimate(
    workbench: &mut Workbench,
    plan: &Plan,
    process: &Process,
    scope: Scope,
) -> Result<(Estimate, f64, Vec<Vec<u64>>)> {
    let clock = CpuClock::open(process).context("reading the process's CPU time")?;
    let kind = workbench.calibration.link_kind;
    let tally = Tally::start(&mut workbench.tracer, kind, plan, scope, &clock)?;
    let entry_sites = tally.attachment.entry_sites.clone();
    let (estimate, system_rate) =
        tally.finish(&workbench.tracer, &clock, workbench.calibration.pair_cost)?;
    Ok((estimate, system_rate, entry_sites))
}
