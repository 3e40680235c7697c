//! Starting a command and tracing it from its first instruction.

use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, bail};

use super::{
    Launch, TraceOptions, conclusion, messages,
    plan::Plan,
    progress::Progress,
    signals,
    start::{self, Outlook, Subject, Workbench},
    unwinding::{self, Preparation, Stage, Unwinding},
};
use crate::{
    bpf::Scope,
    exit::Outcome,
    host::priority,
    launch::{Child, Command, Inherited, LaunchError, loader, user::User},
    model::EndReason,
    say,
    target::{Process, mapped_file::MappedFile, mapping_watch::MappingWatch},
};

/// Runs a command under the tracer; ends with what the command ended with.
pub fn run(launch: &Launch, options: &TraceOptions) -> Result<Outcome> {
    let inherited = Inherited::capture().context("reading leaktrace's own signal settings")?;
    start::check_outputs(options)?;
    let command = command(launch)?;
    let Some(path) = command.resolve() else {
        // The attempt says best what is wrong.
        return match Child::spawn(command, &inherited).and_then(|mut child| child.go()) {
            Ok(()) => bail!("the command appeared just now; try again"),
            Err(error) => refused_launch(&error),
        };
    };
    let prediction = loader::predict(&path, &loader::LoaderContext::of(&command))
        .context("finding the files that the command will map")?;
    let files: Vec<Arc<MappedFile>> = prediction
        .files()
        .filter_map(|path| MappedFile::open_path(path).ok())
        .map(Arc::new)
        .collect();
    let mut child = match Child::spawn(command, &inherited) {
        Ok(child) => child,
        Err(error) => return refused_launch(&error),
    };
    let signals = signals::of_command(&child)?;
    let runtime = start::runtime()?;
    let _guard = runtime.enter();
    let mut signals = signals.listen()?;
    let progress = Progress::start("looking at the command");
    priority::die_first();
    let tables = Preparation::start(&files, options.unwind, options.table_cache)?;
    let outlook = Outlook {
        tables: tables.room(),
        shadow_stack: false,
        threads: 1,
    };
    let mut workbench = Workbench::set_up(options, &outlook, &progress)?;
    let plan = Plan::of(&files, workbench.ability)?;
    if plan.files.is_empty() {
        bail!(
            "{} will map no file with a known allocator, so there is nothing to watch; it maps {}{}",
            prediction.program.display(),
            prediction
                .files()
                .map(|file| file.display().to_string())
                .collect::<Vec<_>>()
                .join(", "),
            if prediction.is_static() {
                ". In a statically linked program it is found by its symbols, which `strip` removes"
            } else {
                ""
            }
        );
    }
    progress.phase("attaching");
    let scope = Scope::Process(child.pid());
    workbench.watch_loader(&plan, child.pid(), scope)?;
    let live = workbench.switch_on(&plan, child.pid(), scope, &[], 1, options)?;
    let code = Arc::default();
    let unwinding = Unwinding::start(tables, workbench.tracer.maps(), &code, &files)?;
    // From its first instruction on, stacks are to be complete.
    unwinding.wait_until(Stage::Prepared);
    drop(progress);
    signals.tracing();
    // The command has been forked before, and is not nicer for that.
    priority::give_way();
    let mappings = MappingWatch::start(child.pid());
    if let Err(error) = child.go() {
        return refused_launch(&error);
    }
    let process = Process::of_child(child.pid(), &path)?;
    let followed = unwinding::Subject {
        process: Arc::new(process.as_executed(&path, &prediction.program)),
        mappings: Arc::new(Mutex::new(mappings)),
        code,
    };
    unwinding.follow(followed.clone());
    let notes = plan.problems.clone();
    let subject = Subject {
        mappings: followed.mappings,
        code: followed.code,
        unwinding,
        process: followed.process,
        plan,
        notes,
        own_system_rate: 0.0,
        expected_execs: 1,
        inherited,
    };
    let finished = start::observe(workbench, live, subject, options, &runtime, &mut signals);
    let concluded = match &finished {
        Ok(finished) => Some(conclusion::conclude(finished, options)),
        Err(error) => {
            say!("leaktrace: no report could be made: {error:#}");
            None
        }
    };
    let replaced = match &finished {
        Ok(it) if it.report.end == Some(EndReason::TargetExec) => {
            Some(it.report.process.name.clone())
        }
        _ => None,
    };
    signals.over(&child);
    if child.outcome()?.is_none()
        && let Ok(now) = Process::of_child(child.pid(), &path)
    {
        if let Some(first) = replaced {
            say!("{}", messages::replaced(&first, &now.info()));
        }
        say!("{}", messages::waiting(&now.info()));
    }
    let ended = child.reap()?.exit_code();
    if let Ok(finished) = finished {
        finished.alarm.finish();
    }
    Ok(match concluded {
        Some(Outcome::Refused) => Outcome::Refused,
        Some(Outcome::Grew) if ended == 0 => Outcome::Grew,
        _ => Outcome::Command(ended),
    })
}

fn command(launch: &Launch) -> Result<Command> {
    let mut words = launch.command.iter().cloned();
    let mut command = Command::new(words.next().unwrap_or_default(), words.collect());
    if let Some(name) = &launch.user {
        command.user = Some(User::look_up(name)?);
    }
    Ok(command.past_env())
}

fn refused_launch(error: &LaunchError) -> Result<Outcome> {
    say!("leaktrace: {error}");
    Ok(Outcome::Command(error.exit_code()))
}
