//! Everything between the command line and the first event that counts.

use std::{sync::Arc, time::Instant};

use anyhow::{Context as _, Result, bail};
use rustix::stdio;

use super::{
    Launch, TraceOptions,
    brake::{Brake, CostWatch},
    calibration::{self, Calibration},
    estimate::Tally,
    messages,
    plan::Plan,
    progress::Progress,
    rehearsal,
    reporter::{Common, Finished, Reporter, Workshop, refresh},
    signals,
    watch::{Watch, find_trampoline},
};
use crate::{
    aggregate::Aggregator,
    allocator,
    bpf::{Feature, Features, Program, Scope, Tracer},
    exit::Outcome,
    host::priority,
    model::{EndReason, TraceInfo},
    output::{
        Outputs, directory::Directory, owner::Owner, screen::Screen, stream, terminal::Terminal,
    },
    probe_site::{KernelAbility, NopAbility},
    report::{summary, summary::SummaryOptions},
    symbolize::{self, Symbolizer},
    target::{
        Process, TargetError, available, cpu::CpuClock, error::FileList, mapped_file, mapping,
        memory,
    },
};

/// Traces a process that is running.
pub fn attach(process: Process, options: TraceOptions) -> Result<Outcome> {
    let runtime = runtime()?;
    let _guard = runtime.enter();
    let mut signals = signals::listen()?;
    let progress = Progress::start("looking at the process");
    // Best effort: nothing depends on it.
    priority::give_way();
    let features = Features::from_environment();
    check_memory(&options, &features)?;
    let ability = ability(&features, &process);
    let mut notes = Vec::new();
    let plan = plan_for(&process, ability, &mut notes)?;
    if options.verbose {
        plan.explanations
            .iter()
            .chain(&plan.problems)
            .for_each(|line| eprintln!("{line}"));
    }
    notes.extend(plan.problems.iter().cloned());

    progress.phase("loading the BPF programs");
    let mut tracer = Tracer::load(&options.object, &options.limits, &features)?;
    let program = if options.empty_programs {
        Program::Empty
    } else {
        Program::Trace
    };
    progress.phase("measuring what a probe costs");
    let Calibration {
        link_kind,
        pair_cost,
    } = calibration::calibrate(&options.object, &features, ability, program)?;
    if process.seccomp() != 0 {
        rehearsal::under_seccomp(&options.object, &features, ability, link_kind)?;
    }
    let scope = if process.main_thread_ended() {
        Scope::Everyone
    } else {
        Scope::Process(process.pid())
    };
    let clock = CpuClock::open(&process).context("reading the process's CPU time")?;

    let mut system_rate = 0.0;
    if options.brake != Brake::Off || options.estimate_only {
        progress.phase("counting calls for half a second");
        let tally = Tally::start(&mut tracer, link_kind, &plan, scope, &clock)?;
        let (estimate, rate) = tally.finish(&tracer, &clock, pair_cost)?;
        system_rate = rate;
        eprintln!(
            "{}",
            messages::estimate(&process.info(), &estimate, options.brake)
        );
        if options.estimate_only {
            return Ok(Outcome::Reported);
        }
        if let Brake::Limit(limit) = options.brake
            && estimate.exceeds(options.brake)
        {
            eprintln!("{}", messages::refusal(&process.info(), &estimate, limit));
            return Ok(Outcome::Refused);
        }
    }

    progress.phase("attaching");
    let maps = tracer.maps();
    maps.control()
        .set_target(process.pid(), scope == Scope::Everyone);
    maps.control().set_sizes(options.sizes.0, options.sizes.1);
    find_trampoline(&maps, &process);
    tracer.attach_thread_events()?;
    let attachment = tracer.attach(link_kind, &plan.files, program, scope)?;
    let memory_at_start = memory::sample(&process);
    let started = jiff::Zoned::now();
    let enabled = maps.control().enable(true);
    let started_at = Instant::now();
    drop(progress);

    let process = Arc::new(process);
    let outputs = outputs(&options, &process, &started);
    let screen = screen(&options, &outputs)?;
    eprintln!(
        "{}",
        messages::attached(
            &process.info(),
            plan.function_count(),
            &plan.file_names(),
            &started
        )
    );
    if let Some(line) = messages::unexplained(&memory_at_start) {
        eprintln!("{line}");
    }
    eprintln!(
        "{}",
        messages::how_to_end(outputs.directory().map(Directory::path))
    );

    let trace = TraceInfo {
        started,
        enabled,
        disabled: None,
        watched: plan.watched.clone(),
        options: options.describe(),
        features: features.list(),
        sort: options.sort,
        pair_cost: Some(pair_cost),
    };
    let (screen, terminal) = screen.unzip();
    let screen = screen.map(Arc::new);
    let mut symbolizer = symbolizer(&process);
    refresh(&mut symbolizer, &process);
    let reporter = Reporter::start(Workshop {
        common: Common {
            process: process.info(),
            trace,
            memory_at_start,
            notes,
        },
        aggregator: Aggregator::new(symbolizer),
        maps: Arc::clone(&maps),
        process: Arc::clone(&process),
        outputs,
        screen: screen.clone().zip(terminal),
        options: options.clone(),
    })?;
    let watch = Watch {
        tracer,
        attachment,
        program,
        plan,
        process,
        options: options.clone(),
        started: started_at,
        cost: CostWatch::new(options.brake, pair_cost, system_rate),
        clock: Some(clock),
        memory: memory_at_start,
        expected_execs: 0,
    };
    let finished = runtime.block_on(watch.run(reporter, &mut signals, screen.as_deref()))?;
    conclude(finished, &options)
}

/// Starts a command and traces it.
pub fn run(launch: &Launch, options: TraceOptions) -> Result<Outcome> {
    let _ = (launch, options);
    bail!("not yet")
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    // One worker listens to signals while the main thread detaches and reads.
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("signals")
        .enable_all()
        .build()
        .context("starting the runtime")
}

/// Refuses maps that could take more than half of the memory that is there.
fn check_memory(options: &TraceOptions, features: &Features) -> Result<()> {
    let needed = options.limits.memory_when_full(features);
    let Ok(available) = available::available_memory() else {
        return Ok(());
    };
    if needed > available / 2 {
        let fitting = options.limits.fitting_blocks(available / 2, features);
        bail!(
            "not attached: its maps could take {} of kernel memory, more than half of the {} that \
             is available; use --max-blocks {fitting}",
            crate::report::quantity::bytes(needed),
            crate::report::quantity::bytes(available),
        );
    }
    eprintln!(
        "{}",
        messages::map_memory(needed, options.limits.max_blocks)
    );
    Ok(())
}

fn ability(features: &Features, process: &Process) -> KernelAbility {
    KernelAbility {
        nops: if features.has(Feature::LongNopEmulated) {
            NopAbility::FastFiveByte
        } else {
            NopAbility::OneByte
        },
        shadow_stack: process.has_shadow_stack(),
    }
}

/// The probes for what the process maps now.
fn plan_for(process: &Process, ability: KernelAbility, notes: &mut Vec<String>) -> Result<Plan> {
    let mappings = mapping::read_mappings(process).context("reading the process's mappings")?;
    let (files, problems) = mapped_file::open_executable_files(process, &mappings);
    notes.extend(problems.iter().map(|problem| format!("{problem}.")));
    let plan = Plan::of(&files, ability)?;
    if plan.files.is_empty() {
        let mapped = files.iter().map(|file| file.path().to_owned()).collect();
        return Err(TargetError::NoAllocator {
            pid: process.pid(),
            name: process.name().to_owned(),
            maps: FileList(mapped),
        }
        .into());
    }
    Ok(plan)
}

/// Separate debug files are looked for in the target's root as well.
fn symbolizer(process: &Process) -> Symbolizer {
    let mut options = symbolize::Options::new(allocator::is_allocation_wrapper);
    options.target_root = Some(format!("/proc/{}/root", process.pid()).into());
    Symbolizer::new(options)
}

fn outputs(options: &TraceOptions, process: &Process, started: &jiff::Zoned) -> Outputs {
    let owner = Owner::behind_sudo();
    if !options.outputs.is_empty() {
        return Outputs::chosen(options.outputs.clone(), owner);
    }
    if !options.save {
        return Outputs::none();
    }
    let here = std::path::Path::new("");
    Outputs::in_directory(
        Directory::of_process(here, process.name(), process.pid(), started),
        owner,
    )
}

/// Where tables go; none with `-q`.
fn screen(options: &TraceOptions, outputs: &Outputs) -> Result<Option<(Screen, Terminal)>> {
    if options.quiet {
        return Ok(None);
    }
    let screen = if outputs.use_stdout() {
        (
            Screen::start(stdio::stderr()),
            Terminal::of(stdio::stderr()),
        )
    } else {
        (
            Screen::start(stdio::stdout()),
            Terminal::of(stdio::stdout()),
        )
    };
    Ok(Some((screen.0.context("opening the screen")?, screen.1)))
}

/// Prints the last report.
fn conclude(finished: Finished, options: &TraceOptions) -> Result<Outcome> {
    let to_stderr = options
        .outputs
        .iter()
        .any(|output| output.target == crate::output::destination::Target::Stdout);
    let (out, terminal) = if to_stderr {
        (stdio::stderr(), Terminal::of(stdio::stderr()))
    } else {
        (stdio::stdout(), Terminal::of(stdio::stdout()))
    };
    let width = terminal.is_terminal.then_some(terminal.columns);
    let text = summary::render(
        &finished.report,
        &SummaryOptions {
            width,
            colour: terminal.colour,
            top: options.top,
        },
    ) + &summary::closing(&finished.written);
    // A reader that is gone has had enough.
    let _ = stream::write_all(out, text.as_bytes());
    for failure in &finished.failures {
        eprintln!("leaktrace: {failure}");
    }
    Ok(match finished.report.end {
        Some(EndReason::Overhead { .. }) => Outcome::Refused,
        _ if !finished.failures.is_empty() => Outcome::Failed,
        _ => Outcome::Reported,
    })
}
