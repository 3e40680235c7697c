//! Options and their help, as clap reads them.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};

use crate::{
    aggregate::AgeFilter,
    alert::{Condition, GrowthTest},
    bpf::{self, Limits, ObjectSource},
    model::{SortKey, Weight},
    output::destination::{Destination, Target},
    quantity::{self, Overhead},
    session::{AlertOptions, Brake, Launch, PrintFormat, TraceOptions},
    symbolize,
    target::select::Selector,
    unwind::UnwindMode,
};

const EXAMPLES: &str = "\
Examples:
  sudo leaktrace attach 4242                  watch process 4242 until Ctrl-C
  sudo leaktrace attach --name orderd --duration 60s
  sudo leaktrace attach 4242 -o heap.svg -o json:heap.json
  sudo leaktrace attach 4242 --min-age 30s    only blocks older than half a minute
  sudo leaktrace run -- ./server --port 80    from the first instruction
  sudo leaktrace attach 4242 --alert 'rss>80%' --until-alert
  sudo leaktrace run --fail-if-growth=1MiB/min -- ./soak-test
  leaktrace doctor 4242                       what may be in the way
  leaktrace doctor 4242 --watch 60s           what grows, without any probes

What leaks shows by growing: let it run for a few minutes, look at the sites
whose live bytes only rise.

Exit codes: 0 a report was made; 1 an error; 2 wrong usage; 3 refused, or
ended because tracing cost too much; 10 a site grew (--fail-if-growth); 128 +
signal when one made it leave at once (a second Ctrl-C, or one before anything
was traced). `run` ends with CMD's own status (128 + signal), 125 when leaktrace
fails, 126 or 127 when CMD can't be executed or is not found; 3 only with
--max-overhead, 10 only when CMD ended with 0.";

/// Shows which call stacks of a live process hold the memory that is not given
/// back.
#[derive(Debug, Parser)]
#[command(name = "leaktrace", version, after_help = EXAMPLES, max_term_width = 100)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch a process that is running
    #[command(after_help = EXAMPLES)]
    Attach(Attach),
    /// Start a command and watch it from its first instruction
    #[command(after_help = EXAMPLES)]
    Run(Run),
    /// Check what tracing needs, of this machine and of a process
    Doctor(Doctor),
    /// What leaktrace starts to read files that may be broken
    #[command(name = symbolize::READER.subcommand, hide = true)]
    ReadSymbols,
    /// What leaktrace starts to hold the probes, since it may be killed
    #[command(name = bpf::HOLDER.subcommand, hide = true)]
    HoldProbes,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("process").required(true).args(["pid", "name"]))]
pub struct Attach {
    /// Process to watch
    pid: Option<u32>,
    /// Watch the process with this command name, or file name of its executable
    #[arg(long)]
    name: Option<String>,
    /// Print what tracing would cost, and exit
    #[arg(long)]
    estimate: bool,
    #[command(flatten)]
    trace: Trace,
}

#[derive(Debug, Args)]
pub struct Doctor {
    /// Also look at this process
    pub pid: Option<u32>,
    /// Watch the process for this time, without probes: what grows, and what to
    /// look into. Needs no root for a process of one's own
    #[arg(long, value_name = "DUR", requires = "pid", value_parser = quantity::interval)]
    pub watch: Option<Duration>,
    /// Time between two looks
    #[arg(long, value_name = "DUR", requires = "watch", default_value = "1s", value_parser = quantity::interval)]
    pub interval: Duration,
}

#[derive(Debug, Args)]
pub struct Run {
    /// Run CMD as this user
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    #[command(flatten)]
    trace: Trace,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Sort {
    LiveBytes,
    Growth,
    LiveBlocks,
    AllocBytes,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Since {
    Mark,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WeightName {
    LiveBytes,
    LiveBlocks,
    AllocBytes,
    AllocBlocks,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum UnwindName {
    Auto,
    Dwarf,
    Fp,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormatName {
    Text,
    JsonLines,
}

#[derive(Debug, Args)]
struct Trace {
    /// Time between two tables
    #[arg(long, value_name = "DUR", default_value = "5s", value_parser = quantity::interval)]
    interval: Duration,
    /// Sites in a table
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10000))]
    top: u32,
    /// Show whole stacks in the tables
    #[arg(long)]
    stacks: bool,
    /// End after this time
    #[arg(long, value_name = "DUR", value_parser = quantity::interval)]
    duration: Option<Duration>,
    /// Show the final report only
    #[arg(short, long)]
    quiet: bool,
    /// What to print on stdout: tables and a summary for a person, or each of
    /// them as a line of JSON. (`run`: CMD has the same stdout)
    #[arg(long, value_enum, default_value = "text")]
    format: FormatName,
    /// Write a report: FORMAT:PATH with svg, folded, json or txt, or a PATH that
    /// ends in one of them; `-` is stdout. Repeatable
    #[arg(short, long = "output", value_name = "FORMAT:PATH", value_parser = destination)]
    outputs: Vec<Destination>,
    /// Write no files unless asked by -o (otherwise svg, folded and json go to a
    /// new directory)
    #[arg(long)]
    no_save: bool,
    /// What widths in svg and numbers in folded mean
    #[arg(long, value_enum, default_value = "live-bytes")]
    weight: WeightName,
    /// Order of sites; growth: first those that were judged to be growing
    #[arg(long, value_enum, default_value = "growth")]
    sort: Sort,
    /// Record only blocks of at least this size
    #[arg(long, value_name = "SIZE", value_parser = quantity::size)]
    min_size: Option<u64>,
    /// Record only blocks of at most this size
    #[arg(long, value_name = "SIZE", value_parser = quantity::size)]
    max_size: Option<u64>,
    /// Show only blocks that have lived for at least this long
    #[arg(long, value_name = "DUR", value_parser = quantity::duration)]
    min_age: Option<Duration>,
    /// Show only blocks that have lived for at most this long
    #[arg(long, value_name = "DUR", value_parser = quantity::duration)]
    max_age: Option<Duration>,
    /// Show only blocks made since the mark (SIGUSR2 to leaktrace, or --warmup)
    #[arg(long, value_enum, value_name = "MOMENT")]
    since: Option<Since>,
    /// Set the mark, from which growth counts, after this time
    #[arg(long, value_name = "DUR", value_parser = quantity::interval)]
    warmup: Option<Duration>,
    /// Most live blocks that can be recorded
    #[arg(long, value_name = "N", default_value = "1M", value_parser = quantity::count)]
    max_blocks: u32,
    /// Most distinct stacks that can be recorded
    #[arg(long, value_name = "N", default_value = "16k", value_parser = quantity::count)]
    max_stacks: u32,
    /// How stacks are walked: by unwind tables (dwarf), by frame pointers (fp),
    /// or by tables, and frame pointers where a file has none but keeps those
    #[arg(long, value_enum, default_value = "auto")]
    unwind: UnwindName,
    /// Show functions as they were compiled, without those that were inlined
    #[arg(long)]
    no_inlines: bool,
    /// Fetch debug information that is nowhere on this machine from the servers
    /// in DEBUGINFOD_URLS (debuginfod(8)), which so learn what is traced
    #[arg(long)]
    debuginfod: bool,
    /// Keep no unwind tables on disk
    #[arg(long)]
    no_cache: bool,
    /// Most of the process's CPU time that tracing may take, or `off` (attach:
    /// 50%; run: off)
    #[arg(long, value_name = "PCT", value_parser = quantity::overhead)]
    max_overhead: Option<Overhead>,
    #[command(flatten)]
    alerts: Alerts,
    /// End with exit code 10 when some site is judged GROWING at the end, with
    /// RATE (1MiB/min) faster than that. `run` does so if CMD ended with 0
    #[arg(long, value_name = "RATE", num_args = 0..=1, value_parser = tolerated)]
    fail_if_growth: Option<Option<f64>>,
    /// Explain each probe site
    #[arg(short, long)]
    verbose: bool,
    /// Load the BPF programs from this file
    #[arg(long, value_name = "PATH", hide = true)]
    bpf_object: Option<PathBuf>,
    /// Run programs that do nothing: the cost of the probes alone
    #[arg(long, hide = true)]
    empty_programs: bool,
}

/// What to be told of, and how.
#[derive(Debug, Args)]
struct Alerts {
    /// Say so when this is true, looking once a second, and write the outputs then
    /// (under names of their own). In quotes: live>500MiB, blocks>1M,
    /// growth>10MiB/min, rss>2GiB, rss>80% (of the limit of its cgroup, or else of
    /// the machine's memory), swap>1MiB, fds>5000, threads>200, all of them also
    /// with >=, or verdict (some site is judged GROWING). Repeatable
    #[arg(long = "alert", value_name = "CONDITION")]
    conditions: Vec<Condition>,
    /// Run CMD then, by `sh -c` and as who runs leaktrace (with sudo: root). The
    /// facts are in its environment, as LEAKTRACE_ALERT, _VALUE, _PID, _NAME,
    /// _TOP_SITE, _SVG, _JSON (README lists them). Its output goes to stderr
    #[arg(long, value_name = "CMD", requires = "conditions")]
    on_alert: Option<OsString>,
    /// Be told of the same alert, and run CMD for it, at most once in this time
    #[arg(long, value_name = "DUR", default_value = "5min", value_parser = quantity::interval, requires = "conditions")]
    alert_every: Duration,
    /// How long CMD of --on-alert may take, before it is killed with its children
    #[arg(long, value_name = "DUR", default_value = "30s", value_parser = quantity::interval, requires = "on_alert")]
    alert_timeout: Duration,
    /// End at the first alert, with the report
    #[arg(long, requires = "conditions")]
    until_alert: bool,
}

/// Growth that is no failure. What follows the option may have been meant
/// otherwise.
fn tolerated(text: &str) -> Result<f64, String> {
    quantity::rate(text).map_err(|error| {
        format!("{error}. Without a rate, write `--` before what follows --fail-if-growth")
    })
}

fn destination(text: &str) -> Result<Destination, String> {
    Destination::parse(text.as_ref()).map_err(|error| error.to_string())
}

/// The limit of `attach` unless another is given.
const DEFAULT_OVERHEAD: Overhead = Overhead::Limit(0.5);

impl Attach {
    pub fn into_options(self) -> Result<(Selector, TraceOptions), String> {
        let selector = match (self.pid, self.name) {
            (Some(pid), _) => Selector::Pid(pid),
            (None, Some(name)) => Selector::Name(name),
            (None, None) => return Err("name a process, by PID or --name".to_owned()),
        };
        let mut options = self.trace.into_options(DEFAULT_OVERHEAD)?;
        options.estimate_only = self.estimate;
        Ok((selector, options))
    }
}

impl Run {
    pub fn into_options(self) -> Result<(Launch, TraceOptions), String> {
        let options = self.trace.into_options(Overhead::Off)?;
        Ok((
            Launch {
                command: self.command,
                user: self.user,
            },
            options,
        ))
    }
}

impl Trace {
    fn into_options(self, default_overhead: Overhead) -> Result<TraceOptions, String> {
        Destination::check_distinct(&self.outputs).map_err(|error| error.to_string())?;
        let (min, max) = (
            self.min_size.unwrap_or(0),
            self.max_size.unwrap_or(u64::MAX),
        );
        if min > max {
            return Err("--min-size is larger than --max-size: nothing would be recorded".into());
        }
        if let (Some(min), Some(max)) = (self.min_age, self.max_age)
            && min > max
        {
            return Err("--min-age is longer than --max-age: nothing would be shown".into());
        }
        if let (Some(warmup), Some(duration)) = (self.warmup, self.duration)
            && warmup >= duration
        {
            return Err("--warmup is not shorter than --duration: nothing would follow it".into());
        }
        let is_stdout = |output: &Destination| output.target == Target::Stdout;
        let format = match self.format {
            FormatName::Text => PrintFormat::Text,
            FormatName::JsonLines if self.outputs.iter().any(is_stdout) => {
                return Err(
                    "--format json-lines prints on stdout, and so does `-o …:-`: leave one out, \
                     or name a file"
                        .into(),
                );
            }
            FormatName::JsonLines => PrintFormat::JsonLines,
        };
        Ok(TraceOptions {
            interval: self.interval,
            top: self.top as usize,
            stacks: self.stacks,
            duration: self.duration,
            quiet: self.quiet,
            format,
            alerts: AlertOptions {
                conditions: self.alerts.conditions,
                every: self.alerts.alert_every,
                command: self.alerts.on_alert,
                timeout: self.alerts.alert_timeout,
                end: self.alerts.until_alert,
            },
            fail_if_growth: self
                .fail_if_growth
                .map(|tolerated| GrowthTest { tolerated }),
            outputs: self.outputs,
            save: !self.no_save,
            weight: match self.weight {
                WeightName::LiveBytes => Weight::LiveBytes,
                WeightName::LiveBlocks => Weight::LiveBlocks,
                WeightName::AllocBytes => Weight::AllocBytes,
                WeightName::AllocBlocks => Weight::AllocBlocks,
            },
            sort: match self.sort {
                Sort::LiveBytes => SortKey::LiveBytes,
                Sort::Growth => SortKey::Growth,
                Sort::LiveBlocks => SortKey::LiveBlocks,
                Sort::AllocBytes => SortKey::AllocBytes,
            },
            sizes: (min, max),
            ages: AgeFilter {
                min: self.min_age,
                max: self.max_age,
                made_since_ns: None,
            },
            since_mark: self.since.is_some(),
            warmup: self.warmup,
            limits: Limits {
                max_blocks: self.max_blocks,
                max_stacks: self.max_stacks,
                ..Limits::default()
            },
            unwind: match self.unwind {
                UnwindName::Auto => UnwindMode::Auto,
                UnwindName::Dwarf => UnwindMode::Dwarf,
                UnwindName::Fp => UnwindMode::FramePointers,
            },
            table_cache: !self.no_cache,
            inlined: !self.no_inlines,
            debuginfod: self.debuginfod,
            brake: match self.max_overhead.unwrap_or(default_overhead) {
                Overhead::Off => Brake::Off,
                Overhead::Limit(limit) => Brake::Limit(limit),
            },
            estimate_only: false,
            verbose: self.verbose,
            object: self
                .bpf_object
                .map_or(ObjectSource::Embedded, ObjectSource::File),
            empty_programs: self.empty_programs,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn contradictions_are_refused() {
        let parse = |line: &str| Arguments::try_parse_from(line.split_whitespace());
        let nobody = parse("leaktrace attach").unwrap_err().to_string();
        assert!(nobody.contains("--name <NAME>"), "{nobody}");
        assert!(parse("leaktrace attach 1 --name x").is_err());
        assert!(parse("leaktrace run").is_err());
        let Command::Attach(attach) = parse("leaktrace attach 1 --min-size 2k --max-size 1k")
            .unwrap()
            .command
        else {
            panic!("not attach")
        };
        assert!(
            attach
                .into_options()
                .unwrap_err()
                .contains("nothing would be recorded")
        );
    }

    fn options(line: &str) -> Result<TraceOptions, String> {
        let arguments = Arguments::try_parse_from(line.split_whitespace());
        match arguments.map_err(|error| error.to_string())?.command {
            Command::Attach(attach) => attach.into_options().map(|(_, options)| options),
            Command::Run(run) => run.into_options().map(|(_, options)| options),
            other => panic!("{other:?} traces nothing"),
        }
    }

    #[test]
    fn what_is_done_at_an_alert_needs_one() {
        for option in ["--on-alert x", "--until-alert", "--alert-every 1s"] {
            let error = options(&format!("leaktrace attach 1 {option}")).unwrap_err();
            assert!(error.contains("--alert <CONDITION>"), "{error}");
        }
        let line = "leaktrace attach 1 --alert live>1k --alert verdict --until-alert";
        let alerts = options(line).unwrap().alerts;
        assert_eq!(alerts.conditions.len(), 2);
        assert!(alerts.end && alerts.command.is_none());
        assert_eq!(alerts.every, Duration::from_secs(300));
    }

    #[test]
    fn tolerated_growth_is_a_rate_or_none() {
        let tolerated = |line: &str| options(line).map(|options| options.fail_if_growth);
        let test = |tolerated| Ok(Some(GrowthTest { tolerated }));
        assert_eq!(tolerated("leaktrace attach 1"), Ok(None));
        assert_eq!(tolerated("leaktrace attach 1 --fail-if-growth"), test(None));
        assert_eq!(
            tolerated("leaktrace run --fail-if-growth 1k/min -- a b"),
            test(Some(1024.0))
        );
        assert_eq!(
            tolerated("leaktrace run --fail-if-growth -- a b"),
            test(None)
        );
        let error = tolerated("leaktrace attach --fail-if-growth 4242").unwrap_err();
        assert!(error.contains("`4242` is no rate; "), "{error}");
        assert!(error.contains("write `--` before"), "{error}");
    }

    #[test]
    fn stdout_has_one_thing_on_it() {
        let lines = "leaktrace attach 1 --format json-lines -o";
        let error = options(&format!("{lines} txt:-")).unwrap_err();
        assert!(error.contains("leave one out"), "{error}");
        assert!(options(&format!("{lines} a.svg")).is_ok());
    }

    #[test]
    fn a_command_keeps_its_own_options() {
        let Command::Run(run) =
            Arguments::try_parse_from("leaktrace run -q -- ls --top 3 -q".split_whitespace())
                .unwrap()
                .command
        else {
            panic!("not run")
        };
        let (launch, options) = run.into_options().unwrap();
        assert_eq!(launch.command, ["ls", "--top", "3", "-q"]);
        assert!(options.quiet);
        assert_eq!(options.top, 10);
        assert_eq!(options.brake, Brake::Off);
    }
}
