//! Runs the cases of one test file: one at a time, and never counts a case that
//! could not run as passed.

use std::{
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::{build, features, fixture::which, tracer};

/// What a case needs of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To be root, and the release binary.
    Tracing,
    /// The release binary only.
    Binary,
    /// A C compiler.
    C,
    /// A C++ compiler.
    Cxx,
    /// `rustc`.
    Rust,
    /// Go with cgo.
    Go,
    /// A C compiler that also makes 32-bit programs.
    C32,
    /// A program, by its path or its name.
    Program(&'static str),
}

/// One case: a name, what it needs, and what it does.
pub struct Case {
    name: String,
    needs: Vec<Need>,
    run: Box<dyn Fn() -> Result<()> + Send>,
    /// Kernel features that leaktrace is to do without.
    without: String,
}

/// A case called `name` that runs where all of `needs` are met.
#[must_use]
pub fn case(name: &str, needs: &[Need], run: impl Fn() -> Result<()> + Send + 'static) -> Case {
    Case {
        name: name.to_owned(),
        needs: needs.to_vec(),
        run: Box::new(run),
        without: String::new(),
    }
}

impl Case {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same without a feature of the kernel.
    #[must_use]
    pub fn without(self, feature: &str) -> Self {
        Self {
            name: format!("{}_without_{feature}", self.name),
            without: feature.to_owned(),
            ..self
        }
    }

    /// The same without any that there is another way for.
    #[must_use]
    pub fn without_all(self) -> Self {
        Self {
            name: format!("{}_on_the_oldest_kernel", self.name),
            without: features::FALLBACKS.join(","),
            ..self
        }
    }
}

/// Runs `cases` as the command line says and gives the exit code of the test
/// program. A case whose needs are not met prints `NOT RUN: name: reason` and
/// counts as ignored.
#[must_use]
pub fn main(cases: Vec<Case>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Cases measure time and load the kernel: never side by side.
    arguments.test_threads = Some(1);
    let trials = cases.into_iter().map(trial).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(case: Case) -> Trial {
    Trial::ignorable_test(case.name.clone(), move || {
        if let Some(reason) = case.needs.iter().find_map(|need| need.missing()) {
            eprintln!("NOT RUN: {}: {reason}", case.name);
            return Ok(Completion::ignored_with(reason));
        }
        match features::without(&case.without, case.run) {
            Ok(()) => Ok(Completion::Completed),
            Err(error) => match error.downcast_ref::<NotHere>() {
                Some(NotHere(reason)) => {
                    eprintln!("NOT RUN: {}: {reason}", case.name);
                    Ok(Completion::ignored_with(reason))
                }
                None => Err(Failed::from(format!("{error:#}"))),
            },
        }
    })
}

/// A case returns this as its error when it finds out only while running that
/// the machine can't do what it needs.
#[derive(Debug)]
pub struct NotHere(pub String);

impl std::fmt::Display for NotHere {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "can't run here: {}", self.0)
    }
}

impl std::error::Error for NotHere {}

impl Need {
    /// Why the need is not met here, if it is not.
    fn missing(self) -> Option<String> {
        match self {
            // SAFETY: geteuid only reads the caller's credentials.
            Self::Tracing if unsafe { libc::geteuid() } != 0 => Some("needs root".into()),
            Self::Tracing | Self::Binary => {
                let binary = tracer::binary();
                (!binary.is_file()).then(|| {
                    format!(
                        "{} is missing: cargo build --release (or set LEAKTRACE_BIN)",
                        binary.display()
                    )
                })
            }
            Self::C => missing_compiler("gcc", "--version", "mixed"),
            Self::Cxx => missing_compiler("g++", "--version", "family"),
            Self::Rust => missing_compiler("rustc", "--version", "sites"),
            Self::Go => missing_compiler("go", "version", "growing")
                .or_else(|| missing_compiler("gcc", "--version", "growing")),
            // A name with directories stands for itself.
            Self::Program(name) => which(name)
                .is_err()
                .then(|| format!("{name} is not installed")),
            Self::C32 => build::can_make_32_bit().map_or_else(
                |error| Some(format!("{error:#}")),
                |can| (!can).then(|| "gcc can't link 32-bit programs (gcc-multilib)".into()),
            ),
        }
    }
}

/// Root may lack a compiler that its user has: a fixture of that language that
/// was built beforehand will do.
fn missing_compiler(compiler: &str, version: &str, fixture: &str) -> Option<String> {
    let works = Command::new(compiler)
        .arg(version)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    (!works && !build::is_built(fixture)).then(|| format!("{compiler} is not installed"))
}

/// How much work the cases do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scale {
    /// As `Full`, and minutes where targets must live through tracing.
    Long,
    /// All of it: minutes a case.
    Full,
    /// Seconds a case.
    Quick,
    /// In an emulated machine, which is 10 to 20 times slower.
    Guest,
}

/// What `LEAKTRACE_SCALE` asks for.
fn scale() -> Scale {
    match std::env::var("LEAKTRACE_SCALE").as_deref() {
        Ok("long") => Scale::Long,
        Ok("quick") => Scale::Quick,
        Ok("guest") => Scale::Guest,
        _ => Scale::Full,
    }
}

/// Whether the short scale is asked for, or a shorter one.
#[must_use]
pub fn is_quick() -> bool {
    matches!(scale(), Scale::Quick | Scale::Guest)
}

/// Whether the cases run in an emulated machine.
#[must_use]
pub fn is_emulated() -> bool {
    scale() == Scale::Guest
}

/// An amount of work, never of exactness: `full`, or `quick` where a short run is
/// asked for, and a tenth of that in an emulated machine.
#[must_use]
pub fn scaled(full: u64, quick: u64) -> u64 {
    match scale() {
        Scale::Long | Scale::Full => full,
        Scale::Quick => quick,
        Scale::Guest => (quick / 10).max(2),
    }
}

/// How long a target must live through tracing.
#[must_use]
pub fn time_to_live() -> Duration {
    Duration::from_secs(match scale() {
        Scale::Long => 60,
        _ => scaled(10, 2),
    })
}
