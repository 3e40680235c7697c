//! Everything between the command line and the first event that counts, and
//! what is common to both ways of tracing.

use std::{
    os::fd::BorrowedFd,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::stdio;

use super::{
    PrintFormat, TraceOptions,
    alarm::{Alarm, VerdictWatch},
    brake::{Brake, CostWatch},
    calibration::{self, Calibration},
    memory_account::AtStart,
    messages,
    observation::Observation,
    plan::Plan,
    progress::{Progress, say_aside},
    reporter::{Common, Finished, Reporter, Workshop},
    signals::Signals,
    trampoline,
    unwinding::{Unwinding, lock},
    watch::Watch,
};
use crate::{
    aggregate::Aggregator,
    alert::{Alerts, Recent},
    allocator,
    bpf::{
        Attachment, Feature, Features, Limits, LinkKind, Maps, Program, Scope, TableRoom, Tracer,
    },
    host::jit,
    host::privilege,
    launch::Inherited,
    model::{Edge, TraceInfo},
    output::{Outputs, directory::Directory, owner::Owner, screen::Screen},
    probe_site::{KernelAbility, NopAbility},
    report::quantity,
    symbolize::{self, Symbolizer},
    target::{
        Process, available, code_files::CodeFiles, cpu::CpuClock, mapping::Mapping,
        mapping_watch::MappingWatch, memory, process_id::ProcessId,
    },
};

/// The loaded programs, and what is known of the kernel they run on.
pub struct Workbench {
    pub features: Features,
    pub ability: KernelAbility,
    pub program: Program,
    pub tracer: Tracer,
    pub calibration: Calibration,
    /// How much the maps hold.
    pub limits: Limits,
    /// What they take when full, bytes.
    pub map_memory: u64,
    /// Probes in the target's loader.
    loader: Option<Attachment>,
}

/// What is known of the target before programs are loaded.
pub struct Outlook {
    pub tables: TableRoom,
    pub shadow_stack: bool,
    /// How many it has.
    pub threads: u64,
}

impl Outlook {
    /// Records of threads take some KiB each, which some kernels take at once. A
    /// thread without one is a loss that is counted.
    fn room_for_threads(&self) -> u32 {
        const LEAST: u64 = 8192;
        const MOST: u64 = 1 << 20;
        let room = self.threads.saturating_mul(4).clamp(LEAST, MOST);
        u32::try_from(room).unwrap_or(u32::MAX)
    }
}

impl Workbench {
    /// Loads the programs and measures them on leaktrace itself.
    ///
    /// # Errors
    /// When the kernel can't or won't, or there is too little memory.
    pub fn set_up(options: &TraceOptions, target: &Outlook, progress: &Progress) -> Result<Self> {
        // Before anything is tried: under the usual limit, a kernel that charges BPF to
        // it refuses even trials while another leaktrace runs.
        let _ = privilege::raise_locked_memory_limit();
        let limits = Limits {
            tables: target.tables,
            max_threads: target.room_for_threads(),
            ..options.limits
        };
        let mut features = Features::from_environment()?;
        features.check_essential()?;
        if let Some(objection) = jit::objection(jit::is_on()) {
            bail!("not attached: {objection}");
        }
        let map_memory = check_memory(&limits, &features)?;
        let ability = KernelAbility {
            nops: if features.has(Feature::LongNopEmulated) {
                NopAbility::FastFiveByte
            } else {
                NopAbility::OneByte
            },
            shadow_stack: target.shadow_stack,
        };
        let program = if options.empty_programs {
            Program::Empty
        } else {
            Program::Trace
        };
        progress.phase("loading the BPF programs");
        let mut tracer = Tracer::load(&options.object, &limits, &features)?;
        progress.phase("measuring what a probe costs");
        let calibration = calibration::calibrate(&mut tracer, &features, ability, program)?;
        if calibration.link_kind == LinkKind::Perf {
            features.give_up(Feature::UprobeMulti);
        }
        Ok(Self {
            features,
            ability,
            program,
            tracer,
            calibration,
            limits,
            map_memory,
            loader: None,
        })
    }

    /// Has the target's loader tell of what it loads and unloads from now on: to
    /// be called before its mappings are read, so that no change is missed.
    ///
    /// # Errors
    /// When the probe can't be set.
    pub fn watch_loader(&mut self, plan: &Plan, pid: u32, scope: Scope) -> Result<()> {
        let maps = self.tracer.maps();
        let id = ProcessId::of(pid).context("reading the process's PID namespace")?;
        maps.control().set_target(id, scope == Scope::Everyone);
        maps.control()
            .set_loader_state_distance(plan.loader_state_distance);
        let kind = self.calibration.link_kind;
        let probes = self
            .tracer
            .attach(kind, &plan.loader, Program::Loader, scope, 0)?;
        self.loader = Some(probes);
        Ok(())
    }

    /// Sets the probes and lets events count. What the process maps matters only if
    /// its image stays.
    ///
    /// # Errors
    /// When the probes can't be set.
    pub fn switch_on(
        &mut self,
        plan: &Plan,
        pid: u32,
        scope: Scope,
        mapped: &[Mapping],
        expected_execs: u32,
        options: &TraceOptions,
    ) -> Result<Live> {
        self.calibration.end(&mut self.tracer)?;
        let maps = self.tracer.maps();
        let id = ProcessId::of(pid).context("reading the process's PID namespace")?;
        maps.control().set_target(id, scope == Scope::Everyone);
        maps.control().set_execs(expected_execs);
        maps.control().set_sizes(options.sizes.0, options.sizes.1);
        trampoline::expect(&maps, mapped);
        self.tracer.attach_thread_events()?;
        let kind = self.calibration.link_kind;
        self.tracer.count_unseen_vforks(kind, scope)?;
        let mut attachment = self.loader.take().context("the loader is not watched")?;
        self.tracer
            .extend(&mut attachment, &plan.files, self.program, 0)?;
        let started = jiff::Zoned::now();
        let enabled = maps.control().enable(true);
        Ok(Live {
            maps,
            attachment,
            started,
            enabled,
            started_at: Instant::now(),
        })
    }
}

/// Probes that are in and count.
pub struct Live {
    pub maps: Arc<Maps>,
    pub attachment: Attachment,
    pub started: jiff::Zoned,
    pub enabled: Edge,
    pub started_at: Instant,
}

/// What is known of the target by the time it is watched.
pub struct Subject {
    pub process: Arc<Process>,
    pub plan: Plan,
    pub notes: Vec<String>,
    pub mappings: Arc<Mutex<MappingWatch>>,
    pub code: Arc<Mutex<CodeFiles>>,
    pub unwinding: Unwinding,
    /// Its system time per second before it was traced.
    pub own_system_rate: f64,
    /// How often it may exec before its image is another one.
    pub expected_execs: u64,
    /// What leaktrace was started with, for commands that it runs.
    pub inherited: Inherited,
}

/// Watches until something ends the trace; the last report.
///
/// # Errors
/// When no report can be made.
pub fn observe(
    workbench: Workbench,
    live: Live,
    subject: Subject,
    options: &TraceOptions,
    runtime: &tokio::runtime::Runtime,
    signals: &mut Signals,
) -> Result<Finished> {
    let Subject {
        process,
        plan,
        notes,
        mappings,
        code,
        unwinding,
        own_system_rate,
        expected_execs,
        inherited,
    } = subject;
    let alarm = Alarm::new(&options.alerts, &inherited)?;
    let growing_sites = Arc::default();
    let trampoline_found = trampoline::find(&live.maps, &process);
    // From here on the process may end at any time and keep its names.
    let mut symbolizer = symbolizer(&process, Arc::clone(&code), options);
    let (now, files) = lock(&mappings).current(&process);
    symbolizer.update(&now, &files);
    let memory_at_start = memory::sample(&process);
    let at_start = AtStart::read(&process, memory_at_start, &[]);
    let outputs = outputs(options, &process, &live.started);
    let screen = screen(options, &outputs)?;
    let mut lines = explanation(&plan, &live.attachment.entry_sites, options);
    lines.extend(messages::about_files(symbolizer.notes()));
    lines.push(messages::map_memory(
        workbench.map_memory,
        &workbench.limits,
    ));
    lines.extend(greeting(
        &process,
        &plan,
        &live,
        &memory_at_start,
        &outputs,
        expected_execs > 0,
    ));
    lines.extend(messages::how_to_mark(options.since_mark, options.warmup));
    let greeted = say_aside(lines.join("\n"));
    let pair_cost = workbench.calibration.pair_cost;
    let trace = TraceInfo {
        started: live.started,
        enabled: live.enabled,
        disabled: None,
        watched: plan.watched.clone(),
        options: options.describe(),
        features: workbench.features.list(),
        from_start: expected_execs > 0,
        sort: options.sort,
        cost_limit: match options.brake {
            Brake::Off => None,
            Brake::Limit(limit) => Some(limit),
        },
        pair_cost: Some(pair_cost),
    };
    let reporter = Reporter::start(Workshop {
        common: Common {
            process: process.info(),
            trace,
            memory_at_start,
            at_start,
            notes,
        },
        aggregator: Aggregator::new(symbolizer, code),
        observation: Observation::new(&memory_at_start),
        maps: live.maps,
        process: Arc::clone(&process),
        mappings,
        examined: plan.examined.clone(),
        late_allocators: 0,
        ability: workbench.ability,
        outputs,
        screen: screen.clone(),
        lines: 0,
        alarm,
        verdicts: VerdictWatch::new(&options.alerts),
        growing_sites: Arc::clone(&growing_sites),
        judged: None,
        options: options.clone(),
    })?;
    let watch = Watch {
        tracer: workbench.tracer,
        attachment: live.attachment,
        program: workbench.program,
        plan,
        clock: CpuClock::open(&process).ok(),
        process,
        options: options.clone(),
        started: live.started_at,
        cost: CostWatch::new(options.brake, pair_cost, own_system_rate),
        memory: memory_at_start,
        memory_read: None,
        expected_execs,
        trampoline_found,
        silent_periods: 0,
        mark_ns: None,
        unwinding,
        alerts: Alerts::new(&options.alerts.conditions, options.alerts.every),
        recent: Recent::default(),
        growing_sites,
        machine_memory: available::machine_memory(),
        fired: Vec::new(),
    };
    let finished = runtime.block_on(watch.run(
        reporter,
        signals,
        screen.as_ref().map(|(screen, _)| screen.as_ref()),
    ));
    // A short trace may be over before its first lines are out.
    let _ = greeted.recv_timeout(Duration::from_millis(500));
    finished
}

/// The first lines.
fn greeting(
    process: &Process,
    plan: &Plan,
    live: &Live,
    memory: &crate::model::MemorySample,
    outputs: &Outputs,
    from_start: bool,
) -> Vec<String> {
    let info = process.info();
    let files = plan.file_names();
    let mut lines = vec![messages::attached(
        &info,
        plan.function_count(),
        &files,
        &live.started,
    )];
    if !from_start {
        lines.extend(messages::unexplained(memory));
    }
    let directory = outputs.directory().map(Directory::path);
    lines.push(messages::how_to_end(directory, from_start));
    lines
}

/// Where the probes are and what has none, with `-v`.
pub fn explanation(plan: &Plan, entry_sites: &[Vec<u64>], options: &TraceOptions) -> Vec<String> {
    if !options.verbose {
        return Vec::new();
    }
    let taken = plan.explain(entry_sites).into_iter();
    messages::about_files(taken.chain(plan.problems.iter().map(String::as_str)))
}

/// The runtime: one worker listens to signals while the main thread detaches and
/// reads.
///
/// # Errors
/// When the system has no resources for it.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("signals")
        .enable_all()
        .build()
        .context("starting the runtime")
}

/// What full maps take; refuses maps that could take more than half of the memory that is there.
fn check_memory(limits: &Limits, features: &Features) -> Result<u64> {
    let needed = limits.memory_when_full(features);
    let Ok(available) = available::available_memory() else {
        return Ok(needed);
    };
    if needed > available / 2 {
        bail!(
            "not attached: its maps could take {} of kernel memory, more than half of the {} that \
             is available; use {}",
            quantity::bytes(needed),
            quantity::bytes(available),
            limits.fitting(available / 9 * 4, features),
        );
    }
    Ok(needed)
}

/// Separate debug files are looked for in the target's root as well.
fn symbolizer(
    process: &Process,
    code: Arc<Mutex<CodeFiles>>,
    options: &TraceOptions,
) -> Symbolizer {
    let target_root = Some(format!("/proc/{}/root", process.pid()).into());
    let servers = || std::env::var(symbolize::SERVERS).unwrap_or_default();
    let options = symbolize::Options {
        target_root,
        servers: options.debuginfod.then(servers),
        inlined: options.inlined,
        ..symbolize::Options::new(allocator::is_allocation_wrapper)
    };
    Symbolizer::new(options, code)
}

/// Refuses outputs that can't be written, before anything is traced.
///
/// # Errors
/// When there are such.
pub fn check_outputs(options: &TraceOptions) -> Result<()> {
    if options.outputs.is_empty() && !options.save {
        return Ok(());
    }
    Ok(Outputs::check(&options.outputs, Owner::behind_sudo())?)
}

fn outputs(options: &TraceOptions, process: &Process, started: &jiff::Zoned) -> Outputs {
    let owner = Owner::behind_sudo();
    if !options.outputs.is_empty() {
        return Outputs::chosen(options.outputs.clone(), owner);
    }
    if !options.save {
        return Outputs::none();
    }
    let here = Path::new("");
    Outputs::in_directory(
        Directory::of_process(here, process.name(), process.pid(), started),
        owner,
    )
}

/// Where tables go; none with `-q`.
fn screen(
    options: &TraceOptions,
    outputs: &Outputs,
) -> Result<Option<(Arc<Screen>, BorrowedFd<'static>)>> {
    if options.quiet {
        return Ok(None);
    }
    let fd = if outputs.use_stdout() {
        stdio::stderr()
    } else {
        stdio::stdout()
    };
    let room = match options.format {
        PrintFormat::Text => 0,
        PrintFormat::JsonLines => ROOM_FOR_LINES,
    };
    let screen = Screen::start(fd, room).context("opening the screen")?;
    Ok(Some((Arc::new(screen), fd)))
}

/// Bytes of JSON that wait for a reader who is slow.
const ROOM_FOR_LINES: usize = 16 << 20;
