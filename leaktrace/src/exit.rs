//! How the command ends: the one place that knows exit codes.

use std::process::ExitCode;

/// What came of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A report was made.
    Reported,
    /// Something failed; it was said what.
    Failed,
    /// Refused, or ended by the brake.
    Refused,
    /// A site grew, and `--fail-if-growth` was given.
    Grew,
    /// `run`: what CMD itself ended with (128 + signal when one killed it).
    Command(u8),
    /// `run`: leaktrace's own failure.
    RunFailed,
    /// `run`: CMD was found, but could not be executed.
    NotExecutable,
    /// `run`: CMD was not found.
    NotFound,
}

/// What clap answers wrong usage with.
pub const USAGE: u8 = 2;

impl Outcome {
    /// The exit code, as documented in `--help` and README.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Reported => 0,
            Self::Failed => 1,
            Self::Refused => 3,
            Self::Grew => 10,
            Self::Command(code) => code,
            Self::RunFailed => 125,
            Self::NotExecutable => 126,
            Self::NotFound => 127,
        }
    }
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(outcome.code())
    }
}
