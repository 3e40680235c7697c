//! What is to be probed: decided by others, carried out here.

use std::path::PathBuf;

use leaktrace_common::remembered::REMEMBERED_WALKS;
use serde::{Deserialize, Serialize};

use super::features::{Feature, Features};

/// All probes of one file.
#[derive(Clone, Debug)]
pub struct PlannedFile {
    /// A path that the kernel can open now (`/proc/self/fd/N`).
    pub path: PathBuf,
    /// The file's name for messages.
    pub name: String,
    /// One for each watched function.
    pub probes: Vec<PlannedProbe>,
}

/// The probes of one function. Sites are offsets in the file, best first: one
/// that the kernel refuses is replaced by the next.
#[derive(Clone, Debug)]
pub struct PlannedProbe {
    /// The function's name for messages.
    pub function: String,
    /// What the program is told ([`leaktrace_common::function::Signature`]).
    pub cookie: u64,
    /// Where its entry can be seen.
    pub entry_sites: Vec<u64>,
    /// Where a return probe can be set; empty when none is wanted.
    pub return_sites: Vec<u64>,
}

/// Which programs run at the probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The real ones.
    Trace,
    /// Counting only, at entries only.
    Tally,
    /// Nothing: what the probes themselves cost.
    Empty,
    /// What the target's loader tells debuggers, at entries only.
    Loader,
}

impl Program {
    /// Names of the programs in the object, at entry and at return.
    pub(super) const fn names(self, form: LiveForm) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Trace => match form {
                LiveForm::Slots => ("enter", Some("leave")),
                LiveForm::Hash => ("enter_hash", Some("leave_hash")),
            },
            Self::Tally => ("tally", None),
            Self::Empty => ("empty", Some("empty_return")),
            Self::Loader => ("loader_changes", None),
        }
    }
}

/// Which form of the live table the programs use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LiveForm {
    /// An array of our own.
    Slots,
    /// The kernel's hash map.
    Hash,
}

impl LiveForm {
    /// The better one that the kernel can do.
    pub(super) fn of(features: &Features) -> Self {
        // Programs with fixed signatures exist for the hash map only.
        if features.has(Feature::CompareExchange) && features.has(Feature::AttachCookie) {
            Self::Slots
        } else {
            Self::Hash
        }
    }

    /// How many walks its programs remember: none without compare-and-exchange.
    pub(super) const fn remembered_walks(self) -> u32 {
        match self {
            Self::Slots => REMEMBERED_WALKS,
            Self::Hash => 1,
        }
    }

    /// Name of the program for entries.
    pub(super) const fn enter(self) -> &'static str {
        match self {
            Self::Slots => "enter",
            Self::Hash => "enter_hash",
        }
    }

    /// Name of the program for ending threads.
    pub(super) const fn thread_exit(self) -> &'static str {
        match self {
            Self::Slots => "thread_exit",
            Self::Hash => "thread_exit_hash",
        }
    }
}

/// Whose calls are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// Those of this process: the links are bound to it.
    Process(u32),
    /// Those of every process that maps the file; the programs filter.
    Everyone,
}
