//! What is done when a condition comes true: it is said and noted, and the
//! command of `--on-alert` is run with the facts.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::{Arc, mpsc::Receiver},
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    messages,
    observation::Observation,
    on_alert::{Commands, Job},
    progress::say_aside,
};
use crate::{
    alert::{Condition, Figure, Firing},
    launch::Inherited,
    model::{Report, Site, Trend, Verdict},
    report::{export::Format, name, stack},
};

/// What a person wants to be told, and what is to be done then.
#[derive(Clone, Debug)]
pub struct AlertOptions {
    /// What to look out for.
    pub conditions: Vec<Condition>,
    /// How often each is told at most.
    pub every: Duration,
    /// Run by `sh -c`.
    pub command: Option<OsString>,
    /// How long that may take.
    pub timeout: Duration,
    /// The first one ends the trace.
    pub end: bool,
}

/// How often files are written for alerts: whoever traces for weeks still needs
/// room on the disk.
const MOST_SNAPSHOTS: u32 = 100;
/// How long the end waits for what is being said.
const PATIENCE: Duration = Duration::from_millis(500);
/// Columns of a site that a command is told of.
const SITE_COLUMNS: usize = 200;

/// The one who is told of alerts.
pub struct Alarm {
    commands: Option<Commands>,
    told: Vec<Told>,
    snapshots: u32,
    saying: Option<Receiver<()>>,
}

/// What was told of one condition.
struct Told {
    condition: Arc<Condition>,
    /// The first time.
    first: String,
    times: u64,
}

impl Alarm {
    /// # Errors
    /// When the system has no resources to run commands.
    pub fn new(options: &AlertOptions, inherited: &Inherited) -> Result<Self> {
        let start = |command: &OsString| {
            let (waiting, inherited) = (options.conditions.len(), inherited.clone());
            Commands::start(command.clone(), options.timeout, waiting, inherited)
        };
        let commands = match &options.command {
            Some(command) if !options.conditions.is_empty() => Some(start(command)?),
            _ => None,
        };
        Ok(Self {
            commands,
            told: Vec::new(),
            snapshots: 0,
            saying: None,
        })
    }

    /// What files for alerts at this moment have in their names; `None` when there
    /// are enough of them.
    pub fn snapshot(&mut self, firing: &Firing, taken: &jiff::Zoned) -> Option<String> {
        if self.snapshots == MOST_SNAPSHOTS {
            return None;
        }
        self.snapshots += 1;
        Some(format!(
            "alert-{}-{}",
            taken.strftime("%Y%m%dT%H%M%S"),
            firing.condition.file_name_part()
        ))
    }

    /// Does what is to be done. The files are those that were written for it.
    pub fn raise(&mut self, firing: &Firing, report: &Report, files: &[(Format, PathBuf)]) {
        let what = messages::fired(firing);
        let time = report.taken.strftime("%T");
        let paths: Vec<_> = files.iter().map(|(_, path)| path.as_path()).collect();
        let mut text = messages::alert(&time.to_string(), firing, &what, &paths);
        if self.snapshots == MOST_SNAPSHOTS && !files.is_empty() && report.end.is_none() {
            text.push_str(&messages::no_more_files(MOST_SNAPSHOTS));
        }
        self.saying = Some(say_aside(text));
        let mut told = self.told.iter_mut();
        match told.find(|told| told.condition == firing.condition) {
            Some(told) => told.times += 1,
            None => self.told.push(Told {
                condition: Arc::clone(&firing.condition),
                first: format!("at {time}: {what}"),
                times: 1,
            }),
        }
        if let Some(commands) = &self.commands {
            commands.run(Job {
                alert: firing.condition.to_string(),
                variables: variables(firing, report, files),
            });
        }
    }

    /// Sentences about the alerts so far.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        self.told.iter().map(|told| {
            let times = match told.times {
                1 => String::new(),
                times => format!(" ({times} times in all)"),
            };
            format!("Alert {} {}{times}.", told.condition, told.first)
        })
    }

    /// Waits for the commands, each at most as long as it may take.
    pub fn finish(self) {
        if let Some(saying) = self.saying {
            let _ = saying.recv_timeout(PATIENCE);
        }
        if let Some(commands) = self.commands {
            commands.finish();
        }
    }
}

/// Sites are judged for alerts no more often than this.
const JUDGE_EVERY: Duration = Duration::from_secs(5);
/// And it takes at most one part in so many of a CPU.
const JUDGE_SHARE: u32 = 100;

/// When all sites are judged, if an alert is about that.
#[derive(Debug)]
pub struct VerdictWatch {
    due: Option<Duration>,
}

impl VerdictWatch {
    /// Never, unless there is such an alert.
    pub fn new(options: &AlertOptions) -> Self {
        let mut conditions = options.conditions.iter();
        let is_wanted = conditions.any(|it| it.figure() == Figure::GrowingSites);
        Self {
            due: is_wanted.then_some(JUDGE_EVERY),
        }
    }

    /// How many sites grow, when it is time to look.
    pub fn count_growing(&mut self, observation: &Observation, elapsed: Duration) -> Option<usize> {
        self.due.filter(|due| elapsed >= *due)?;
        let begun = Instant::now();
        let trends = observation.judge().trends;
        let is_growing = |trend: &&Trend| trend.verdict == Verdict::Growing;
        let growing = trends.values().filter(is_growing).count();
        let pause = begun.elapsed().saturating_mul(JUDGE_SHARE);
        self.due = Some(elapsed.saturating_add(pause.max(JUDGE_EVERY)));
        Some(growing)
    }
}

/// What the command is told; empty is what is not known.
fn variables(
    firing: &Firing,
    report: &Report,
    files: &[(Format, PathBuf)],
) -> Vec<(String, OsString)> {
    let figures = &firing.figures;
    let known = |value: Option<u64>| value.map(|value| value.to_string()).unwrap_or_default();
    let limit = figures.memory_limit.map(|limit| limit.bytes);
    let growth = figures.growth_per_minute.map(number);
    let top = top_site(report);
    let name = |site| {
        let mut text = String::new();
        stack::brief(site, SITE_COLUMNS).render(false, &mut text);
        text.trim_end().to_owned()
    };
    let facts = [
        ("ALERT", firing.condition.to_string()),
        ("VALUE", number(firing.value)),
        ("THRESHOLD", number(firing.condition.threshold())),
        ("PID", report.process.pid.to_string()),
        ("NAME", name::clean(&report.process.name).into_owned()),
        ("LIVE_BYTES", figures.live_bytes.to_string()),
        ("LIVE_BLOCKS", figures.live_blocks.to_string()),
        ("GROWTH_PER_MINUTE", growth.unwrap_or_default()),
        ("GROWING_SITES", report.growing.len().to_string()),
        ("RSS_BYTES", known(figures.memory.rss)),
        ("MEMORY_LIMIT_BYTES", known(limit)),
        ("TOP_SITE", top.map(name).unwrap_or_default()),
        ("TOP_SITE_BYTES", known(top.map(|it| it.sums.live_bytes()))),
    ];
    let facts = facts.map(|(name, value)| (name.to_owned(), value.into()));
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let directory = files.first().and_then(|(_, path)| {
        let path = absolute(path);
        path.parent().map(|parent| parent.as_os_str().to_owned())
    });
    let directory = ("REPORT_DIR".to_owned(), directory.unwrap_or_default());
    let files = Format::ALL.map(|format| {
        let file = files.iter().find(|(of, _)| *of == format);
        let path = file.map(|(_, path)| absolute(path).into_os_string());
        (format.name().to_uppercase(), path.unwrap_or_default())
    });
    let all = facts.into_iter().chain([directory]).chain(files);
    all.map(|(name, value)| (format!("LEAKTRACE_{name}"), value))
        .collect()
}

/// The site that grows fastest, or else the one that holds most.
fn top_site(report: &Report) -> Option<&Site> {
    let growing = report.growing.first();
    let largest = || {
        let sites = report.sites.iter();
        sites.max_by_key(|site| site.sums.live_bytes())
    };
    growing
        .and_then(|index| report.sites.get(*index))
        .or_else(largest)
}

/// Digits only, for scripts.
fn number(value: f64) -> String {
    if value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.3}")
    }
}
