//! What leaktrace and its reader of symbols say to each other.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::limits::Limits;

/// The first message, with the target's root directory if it has one, and then a
/// directory of debug files that were fetched, if there is one.
#[derive(Debug, Serialize, Deserialize)]
pub struct Setup {
    /// Whether the root directory comes along.
    pub has_root: bool,
    /// Directories of separate debug files.
    pub debug_directories: Vec<PathBuf>,
    /// Whether inlined functions are told.
    pub inlined: bool,
    /// What symbols may cost.
    pub limits: Limits,
}

/// Look-ups in one file, which is passed along.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Its number.
    pub file: u16,
    /// Its path in the target.
    pub path: String,
    /// Whether what was read of files is to be forgotten before, since there are
    /// new debug files.
    pub anew: bool,
    /// Whether to use debug information; without, only symbol tables.
    pub debug: bool,
    /// The offsets in it.
    pub offsets: Vec<u64>,
}

/// What the reader answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// What some of the offsets are.
    Resolved {
        /// The file's build id, hexadecimal.
        build_id: Option<String>,
        /// Each offset with what is there.
        places: Vec<(u64, Found)>,
    },
    /// Build ids, hexadecimal, of debug files that the file has not and that
    /// were not found.
    Missing(Vec<String>),
    /// A sentence for the report.
    Note(String),
    /// The request is done.
    Finished,
}

/// What an address is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The functions inlined there, innermost first, and the one they are in:
    /// at least one.
    pub functions: Vec<Function>,
    /// It's a call in a function in which a thread begins.
    pub begins_thread: bool,
}

/// One function at an address; fields as in [`Frame`](crate::model::Frame).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// Demangled name.
    pub symbol: Option<String>,
    /// Bytes from its start; 0 for inlined functions.
    pub symbol_offset: u64,
    /// Source file.
    pub source: Option<String>,
    /// Line in it.
    pub line: Option<u32>,
    /// It was inlined into the next one.
    pub inlined: bool,
}
