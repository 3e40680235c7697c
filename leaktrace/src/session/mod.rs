//! A trace from its first to its last moment: chooses and prepares, attaches,
//! watches, detaches, reports. The only module that knows the order of things.

mod alarm;
mod attach;
mod brake;
mod calibration;
mod command;
mod conclusion;
mod estimate;
mod memory_account;
mod messages;
mod observation;
mod on_alert;
mod plan;
mod progress;
mod rehearsal;
mod replacement;
mod reporter;
mod signals;
mod snapshot;
mod start;
mod trampoline;
mod unwinding;
mod watch;

use std::{ffi::OsString, time::Duration};

use anyhow::Result;

use crate::{
    aggregate::AgeFilter,
    alert::GrowthTest,
    bpf::{Limits, ObjectSource},
    exit::Outcome,
    model::{SortKey, Weight},
    output::destination::Destination,
    target::select::{self, Selector},
    unwind::UnwindMode,
};

pub use alarm::AlertOptions;
pub use brake::Brake;

/// What a trace does, apart from whom it traces.
#[derive(Clone, Debug)]
pub struct TraceOptions {
    /// Time between two tables.
    pub interval: Duration,
    /// Sites in a table.
    pub top: usize,
    /// Whole stacks in tables.
    pub stacks: bool,
    /// When to end.
    pub duration: Option<Duration>,
    /// No tables.
    pub quiet: bool,
    /// How tables and the last report are printed.
    pub format: PrintFormat,
    /// What to look out for.
    pub alerts: AlertOptions,
    /// What to fail for at the end.
    pub fail_if_growth: Option<GrowthTest>,
    /// Outputs asked for.
    pub outputs: Vec<Destination>,
    /// Whether to write the usual files when none are asked for.
    pub save: bool,
    /// What flamegraphs and folded stacks weigh.
    pub weight: Weight,
    /// Order of sites.
    pub sort: SortKey,
    /// Sizes that are recorded, bytes, both included.
    pub sizes: (u64, u64),
    /// Ages that are shown.
    pub ages: AgeFilter,
    /// Show only blocks made since the mark, once there is one.
    pub since_mark: bool,
    /// When to set the mark by itself.
    pub warmup: Option<Duration>,
    /// Sizes of the maps.
    pub limits: Limits,
    /// How stacks are walked.
    pub unwind: UnwindMode,
    /// Keep unwind tables on disk.
    pub table_cache: bool,
    /// Show inlined functions.
    pub inlined: bool,
    /// Fetch debug information that is nowhere on this machine.
    pub debuginfod: bool,
    /// When tracing costs too much.
    pub brake: Brake,
    /// Say what it would cost, and end.
    pub estimate_only: bool,
    /// Explain each probe site.
    pub verbose: bool,
    /// The BPF programs.
    pub object: ObjectSource,
    /// Attach programs that do nothing.
    pub empty_programs: bool,
}

/// What is printed on stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrintFormat {
    /// Tables and a summary for a person.
    Text,
    /// A JSON report a line.
    JsonLines,
}

impl TraceOptions {
    /// What shapes the report, by the options' names.
    fn describe(&self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        let mut say = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                all.push((name.to_owned(), value));
            }
        };
        let seconds = |duration: Duration| format!("{}s", duration.as_secs_f64());
        say("duration", self.duration.map(seconds));
        say(
            "min-size",
            (self.sizes.0 > 0).then(|| self.sizes.0.to_string()),
        );
        say(
            "max-size",
            (self.sizes.1 < u64::MAX).then(|| self.sizes.1.to_string()),
        );
        say("min-age", self.ages.min.map(seconds));
        say("max-age", self.ages.max.map(seconds));
        say("since", self.since_mark.then(|| "mark".to_owned()));
        say("warmup", self.warmup.map(seconds));
        say("max-blocks", Some(self.limits.max_blocks.to_string()));
        say("max-stacks", Some(self.limits.max_stacks.to_string()));
        say(
            "unwind",
            match self.unwind {
                UnwindMode::Auto => None,
                UnwindMode::Dwarf => Some("dwarf".to_owned()),
                UnwindMode::FramePointers => Some("fp".to_owned()),
            },
        );
        for condition in &self.alerts.conditions {
            say("alert", Some(condition.to_string()));
        }
        say("until-alert", self.alerts.end.then(String::new));
        say(
            "fail-if-growth",
            self.fail_if_growth.map(|test| {
                test.tolerated
                    .map_or_else(String::new, |most| format!("{most}/min"))
            }),
        );
        say("debuginfod", self.debuginfod.then(String::new));
        say("no-inlines", (!self.inlined).then(String::new));
        say(
            "max-overhead",
            Some(match self.brake {
                Brake::Off => "off".to_owned(),
                Brake::Limit(limit) => format!("{}%", limit * 100.0),
            }),
        );
        all
    }
}

/// A command to be started and traced.
#[derive(Clone, Debug)]
pub struct Launch {
    /// It and its arguments.
    pub command: Vec<OsString>,
    /// As whom it runs.
    pub user: Option<String>,
}

/// Traces a process that is running.
///
/// # Errors
/// Whatever keeps the trace from starting; once it runs, there is a report.
pub fn attach(selector: &Selector, options: TraceOptions) -> Result<Outcome> {
    let process = select::find(selector)?;
    attach::attach(process, &options)
}

/// Starts a command and traces it.
///
/// # Errors
/// As for [`attach`].
pub fn run(launch: &Launch, options: TraceOptions) -> Result<Outcome> {
    command::run(launch, &options)
}
