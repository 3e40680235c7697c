//! The loads, compiled.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{packages, process, project};

/// A load program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `tests/bench/tight.c`.
    Tight,
    /// The same without frame pointers.
    TightWithoutFramePointers,
    /// `tests/bench/tight.c` with 500 000 symbols more.
    TightWithSymbols,
    /// `tests/bench/tight.c` with a million unwind rows more.
    TightWithRows,
    /// `tests/bench/mix.c`.
    Mix,
}

/// Where the sources are.
const SOURCES: &str = "tests/bench";

impl Program {
    const ALL: [Self; 5] = [
        Self::Tight,
        Self::TightWithoutFramePointers,
        Self::TightWithSymbols,
        Self::TightWithRows,
        Self::Mix,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Tight => "tight",
            Self::TightWithoutFramePointers => "tight-no-fp",
            Self::TightWithSymbols => "tight-symbols",
            Self::TightWithRows => "tight-rows",
            Self::Mix => "mix",
        }
    }

    const fn sources(self) -> &'static [&'static str] {
        match self {
            Self::Tight | Self::TightWithoutFramePointers => &["tight.c"],
            Self::TightWithSymbols => &["tight.c", "symbols.s"],
            Self::TightWithRows => &["tight.c", "rows.s"],
            Self::Mix => &["mix.c"],
        }
    }

    /// The executable.
    pub fn path(self) -> PathBuf {
        dir().join(self.name())
    }

    /// The program as a command, with arguments.
    pub fn command(self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.path());
        command.args(arguments);
        command
    }
}

/// Where compiled loads and what runs leave for a while are.
pub fn dir() -> PathBuf {
    project::target_dir().join("bench")
}

/// Compiles all loads.
///
/// # Errors
/// There is no compiler, or it fails.
pub fn build() -> Result<()> {
    if !process::exists("gcc") {
        packages::install(&["gcc", "libc6-dev"], "the benchmark's loads")?;
    }
    let dir = dir();
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    for program in Program::ALL {
        let mut compiler = Command::new("gcc");
        compiler
            .args(["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-pthread"])
            .arg("-fno-optimize-sibling-calls")
            .arg(match program {
                Program::TightWithoutFramePointers => "-fomit-frame-pointer",
                _ => "-fno-omit-frame-pointer",
            });
        if program == Program::TightWithSymbols {
            // Into both tables, of symbols and of dynamic symbols.
            compiler.arg("-rdynamic");
        }
        compiler
            .arg("-o")
            .arg(program.path())
            .args(program.sources())
            .current_dir(project::root().join(SOURCES));
        process::run(&mut compiler)?;
    }
    Ok(())
}
