//! The JSON report as a reader outside the project sees it: only the fields
//! that tests rely on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::comparison::{Expected, Sums};

/// One report.
#[derive(Debug, Deserialize)]
pub struct Report {
    /// Who was traced.
    pub process: Process,
    /// Latest instant at which events began to count, `CLOCK_MONOTONIC`.
    pub enabled_ns: u64,
    /// How much earlier that may have been.
    pub enabled_uncertainty_ns: u64,
    /// Latest instant at which events ceased to count; `null` while they do.
    pub disabled_ns: Option<u64>,
    /// How much earlier that may have been.
    pub disabled_uncertainty_ns: Option<u64>,
    /// Why the trace ended; `null` while it has not.
    pub end: Option<End>,
    /// The kernel's, by name.
    pub features: BTreeMap<String, Feature>,
    /// By name.
    pub counters: BTreeMap<String, u64>,
    /// Over all stacks.
    pub totals: Totals,
    /// Every site.
    pub stacks: Vec<Stack>,
    /// Sentences about how far it can be trusted.
    pub notes: Vec<String>,
}

/// Who was traced.
#[derive(Debug, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Command name.
    pub name: String,
}

/// Why a trace ended.
#[derive(Debug, Deserialize)]
pub struct End {
    /// `signal`, `duration`, …
    pub reason: String,
    /// Which signal.
    pub signal: Option<String>,
    /// Which condition.
    pub alert: Option<String>,
}

/// A feature of the kernel.
#[derive(Debug, Deserialize)]
pub struct Feature {
    /// Whether the kernel has it.
    pub available: bool,
    /// Whether leaktrace uses it.
    pub used: bool,
    /// What it does instead.
    pub instead: Option<String>,
}

/// Over all stacks.
#[derive(Debug, Deserialize)]
pub struct Totals {
    /// Bytes held.
    pub live_bytes: u64,
    /// Blocks held.
    pub live_blocks: u64,
    /// Bytes requested.
    pub alloc_bytes: u64,
    /// Blocks allocated.
    pub alloc_blocks: u64,
    /// Bytes given back.
    pub freed_bytes: u64,
    /// Blocks given back.
    pub freed_blocks: u64,
    /// Events lost.
    pub lost: u64,
    /// Events that make totals inexact.
    pub inexact: u64,
    /// Whether there were neither.
    pub exact: bool,
}

/// One site.
#[derive(Debug, Deserialize)]
pub struct Stack {
    /// Bytes held.
    pub live_bytes: u64,
    /// Blocks held.
    pub live_blocks: u64,
    /// Bytes requested.
    pub alloc_bytes: u64,
    /// Blocks allocated.
    pub alloc_blocks: u64,
    /// Bytes given back.
    pub freed_bytes: u64,
    /// Blocks given back.
    pub freed_blocks: u64,
    /// Age of its oldest live block, when ages were computed.
    pub oldest_age_ns: Option<u64>,
    /// Why the walk ended.
    pub end: String,
    /// From the allocating function outwards.
    pub frames: Vec<Frame>,
}

/// One function.
#[derive(Debug, Deserialize)]
pub struct Frame {
    /// Its name.
    pub symbol: Option<String>,
    /// The file it is in.
    pub module: Option<String>,
    /// Offset of the instruction in that file: of its first byte, or of the byte
    /// before a return address.
    pub file_offset: Option<u64>,
    /// Line in its source file.
    pub line: Option<u64>,
    /// Inlined into the next frame.
    pub inlined: bool,
    /// `allocator` or `program`.
    pub kind: String,
}

impl Report {
    /// Reads the report at `path`.
    ///
    /// # Errors
    /// When it can't be read or has another form.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("parsing {}", path.display()))
    }

    /// A counter; one that is missing is an error of the report.
    ///
    /// # Errors
    /// When the report has no such counter.
    pub fn counter(&self, name: &str) -> Result<u64> {
        self.counters
            .get(name)
            .copied()
            .with_context(|| format!("no counter {name}"))
    }

    /// Counters that are not zero, for messages.
    #[must_use]
    pub fn counters_text(&self) -> String {
        self.counters
            .iter()
            .filter(|(_, value)| **value > 0)
            .map(|(name, value)| format!("{name} {value}"))
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// Sums by the function that called the allocator: the first frame that is
    /// neither the allocator's nor inlined. Stacks without one go under `?`
    /// with the allocator's name.
    #[must_use]
    pub fn by_caller(&self) -> BTreeMap<String, Sums> {
        self.by(|stack| stack.caller())
    }

    /// Sums by the first function whose name, without path and arguments, starts
    /// with `prefix`; other stacks go under their caller.
    #[must_use]
    pub fn by_function(&self, prefix: &str) -> BTreeMap<String, Sums> {
        self.by(|stack| stack.function(prefix).unwrap_or_else(|| stack.caller()))
    }

    fn by(&self, key: impl Fn(&Stack) -> String) -> BTreeMap<String, Sums> {
        let mut sums = BTreeMap::<String, Sums>::new();
        for stack in &self.stacks {
            *sums.entry(key(stack)).or_default() += stack.sums();
        }
        sums
    }

    /// The totals as sums.
    #[must_use]
    pub fn total(&self) -> Sums {
        Sums {
            alloc_bytes: self.totals.alloc_bytes,
            alloc_blocks: self.totals.alloc_blocks,
            freed_bytes: self.totals.freed_bytes,
            freed_blocks: self.totals.freed_blocks,
        }
    }

    /// What `names` hold, by caller.
    #[must_use]
    pub fn live(&self) -> Expected {
        Expected::new(
            self.by_caller()
                .into_iter()
                .map(|(name, sums)| (name, (sums.live_bytes(), sums.live_blocks())))
                .filter(|(_, live)| *live != (0, 0))
                .collect(),
        )
    }

    /// Names of all functions in all stacks.
    #[must_use]
    pub fn symbols(&self) -> BTreeSet<&str> {
        self.stacks
            .iter()
            .flat_map(|stack| &stack.frames)
            .filter_map(|frame| frame.symbol.as_deref())
            .collect()
    }
}

impl Stack {
    /// Its sums.
    #[must_use]
    pub fn sums(&self) -> Sums {
        Sums {
            alloc_bytes: self.alloc_bytes,
            alloc_blocks: self.alloc_blocks,
            freed_bytes: self.freed_bytes,
            freed_blocks: self.freed_blocks,
        }
    }

    fn caller(&self) -> String {
        let caller = self
            .frames
            .iter()
            .find(|frame| frame.kind != "allocator" && !frame.inlined);
        match caller {
            Some(frame) => frame.symbol.clone().unwrap_or_else(|| "?".into()),
            None => {
                let allocator = self
                    .frames
                    .first()
                    .and_then(|frame| frame.symbol.as_deref());
                format!("? < {}", allocator.unwrap_or("?"))
            }
        }
    }

    fn function(&self, prefix: &str) -> Option<String> {
        self.frames
            .iter()
            .filter_map(|frame| frame.symbol.as_deref())
            .map(|symbol| symbol.split('(').next().unwrap_or(symbol))
            .map(|symbol| symbol.rsplit("::").next().unwrap_or(symbol))
            .find(|symbol| symbol.starts_with(prefix))
            .map(String::from)
    }
}
