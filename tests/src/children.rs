//! The processes that leaktrace has started.

use anyhow::{Result, bail};

/// Processes that are leaktrace, too, by their hidden subcommands.
#[derive(Clone, Copy, Debug)]
pub enum Companion {
    /// It reads files for symbols.
    SymbolReader,
    /// It holds the probes.
    ProbeHolder,
}

impl Companion {
    const fn subcommand(self) -> &'static str {
        match self {
            Self::SymbolReader => "__read-symbols",
            Self::ProbeHolder => "__hold-probes",
        }
    }

    /// That of the leaktrace `pid`.
    ///
    /// # Errors
    /// When it has none, or several.
    pub fn of(self, pid: u32) -> Result<u32> {
        one_of(pid, |child| runs(child, self.subcommand()))
    }
}

/// The one child of process `pid`; leaktrace's companions do not count.
///
/// # Errors
/// When it has none, or several.
pub fn only_child(pid: u32) -> Result<u32> {
    one_of(pid, |child| !runs(child, "__"))
}

fn one_of(parent: u32, is_wanted: impl Fn(u32) -> bool) -> Result<u32> {
    let mut wanted = children(parent)?;
    wanted.retain(|child| is_wanted(*child));
    match wanted.as_slice() {
        [child] => Ok(*child),
        _ => bail!("process {parent} has children {wanted:?}"),
    }
}

/// Whether a process has this in its command line.
fn runs(pid: u32, subcommand: &str) -> bool {
    let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
    command.is_ok_and(|command| command.contains(subcommand))
}

fn children(pid: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // Threads end meanwhile, and with them their directories.
        let text = std::fs::read_to_string(task?.path().join("children")).unwrap_or_default();
        for child in text.split_whitespace() {
            children.push(child.parse()?);
        }
    }
    Ok(children)
}
