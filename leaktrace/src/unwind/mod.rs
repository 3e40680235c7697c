//! Unwind tables: from what compilers say about their code, in `.eh_frame`, to
//! the rows that the kernel's programs search. No I/O, except by the cache.
//!
//! The stages, each a function from values to values:
//!
//! 1. [`mod@read`]: a file's bytes to sections and places of text;
//! 2. [`evaluate`]: call frame information to rows and rules, entry by entry;
//!    rules are [interned](intern);
//! 3. [`mod@order`]: the rows of all entries in the order of the file;
//! 4. [`mod@page`]: rows by pages of 64 KiB: a [`FileTable`];
//! 5. [`tables`]: the tables of all files together, with common rule numbers.
//!
//! [`mod@walk`] is how tables are used. Files belong to anybody: whatever is in
//! them, work and memory are bounded by their size and by fixed limits.

pub mod cache;
pub mod evaluate;
pub mod file_table;
pub mod intern;
mod machine;
pub mod order;
pub mod page;
pub mod read;
pub mod rule;
pub mod tables;
#[cfg(test)]
mod tests;
pub mod walk;

use std::{
    io,
    ops::Deref,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

pub use cache::Cache;
pub use file_table::FileTable;

use crate::elf::ElfError;
use evaluate::Evaluated;
use intern::TooManyRules;
use page::Paged;
use read::Sources;

/// How stacks are walked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnwindMode {
    /// By tables; by frame pointers in files that keep them, where tables say
    /// nothing.
    #[default]
    Auto,
    /// By tables alone.
    Dwarf,
    /// By frame pointers alone.
    FramePointers,
}

/// Why a file has no table.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// Its bytes can't be had.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It can't be read as an ELF file.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// It is for another architecture.
    #[error("for another architecture")]
    Machine,
    /// It has neither `.eh_frame` nor `.debug_frame`.
    #[error("it has no unwind information")]
    NoInformation,
    /// More of something than in any file known.
    #[error("more {0} than any file should have")]
    TooMuch(&'static str),
    /// A part that contradicts itself.
    #[error("damaged: {0}")]
    Damaged(String),
    /// An entry can't be read.
    #[error("{0}")]
    Entry(#[from] gimli::Error),
    /// Too many rules.
    #[error(transparent)]
    Rules(#[from] TooManyRules),
}

impl Reason {
    fn of_section(self, section: &str) -> Self {
        match self {
            Self::Entry(error) => Self::Damaged(format!("its {section} can't be read: {error}")),
            other => other,
        }
    }
}

/// A file without a table.
#[derive(Debug, thiserror::Error)]
#[error("no unwind table for {}: {reason}", path.display())]
pub struct CompileError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub reason: Reason,
}

/// Makes the table of a file given as its bytes.
///
/// # Errors
/// Why there is none.
pub fn compile(bytes: &[u8]) -> Result<FileTable, Reason> {
    from_sources(&read::read(bytes)?)
}

/// Makes the table of a file given as its bytes, and says from which section.
///
/// # Errors
/// Why there is none.
pub fn compile_with_section(bytes: &[u8]) -> Result<(FileTable, &'static str), Reason> {
    let sources = read::read(bytes)?;
    let (evaluated, section) = evaluate(&sources)?;
    Ok((table(evaluated), section))
}

fn from_sources(sources: &Sources<'_>) -> Result<FileTable, Reason> {
    Ok(table(evaluate(sources)?.0))
}

fn evaluate(sources: &Sources<'_>) -> Result<(Evaluated, &'static str), Reason> {
    let evaluated = match sources.eh_frame {
        Some(frames) => Evaluated::eh_frame(frames, &sources.texts)?,
        None => Evaluated::default(),
    };
    let (mut evaluated, section) = match sources.debug_frame {
        // For exceptions there may be an `.eh_frame` of nothing but its end.
        Some(frames) if evaluated.functions.total == 0 => (
            Evaluated::debug_frame(frames, &sources.texts)?,
            ".debug_frame",
        ),
        _ => (evaluated, ".eh_frame"),
    };
    if evaluated.functions.total == 0 {
        return Err(Reason::NoInformation);
    }
    let entry = sources.entry;
    if let Some((start, end)) = entry.and_then(|(start, end)| sources.texts.offsets(start, end)) {
        evaluated.add_end(start, end)?;
    }
    Ok((evaluated, section))
}

fn table(evaluated: Evaluated) -> FileTable {
    let Paged {
        first_page,
        pages,
        rows,
    } = page::page(&order::order(&evaluated));
    FileTable {
        first_page,
        pages,
        rows,
        functions: evaluated.functions,
        rules: evaluated.rules.into_all(),
    }
}

/// A file whose table is wanted.
pub trait Source: Sync {
    /// Its name, for errors.
    fn path(&self) -> &Path;
    /// Its bytes.
    ///
    /// # Errors
    /// When they can't be had.
    fn bytes(&self) -> io::Result<impl Deref<Target = [u8]>>;
}

/// Makes the tables of several files at once, and hands each to `each` with
/// its index as soon as it is there; files are begun in their order, so those
/// that are needed first go first. Tables are taken from the cache, if there is
/// one, and put there.
pub fn compile_all<S: Source>(
    files: &[S],
    cache: Option<&Cache>,
    mut each: impl FnMut(usize, Result<FileTable, CompileError>),
) {
    /// With more, memory is what is short.
    const MAX_THREADS: usize = 8;
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..threads.min(MAX_THREADS).min(files.len()) {
            let (next, sender) = (&next, sender.clone());
            scope.spawn(move || {
                while let index = next.fetch_add(1, Ordering::Relaxed)
                    && let Some(file) = files.get(index)
                {
                    let give = |result: Result<FileTable, Reason>| {
                        let named = result.map_err(|reason| CompileError {
                            path: file.path().to_owned(),
                            reason,
                        });
                        // The receiver lives longer than this thread.
                        _ = sender.send((index, named));
                    };
                    if let Err(reason) = make(file, cache, &give) {
                        give(Err(reason));
                    }
                }
            });
        }
        drop(sender);
        for (index, result) in receiver {
            each(index, result);
        }
    });
}

/// Smaller sections, in bytes, are evaluated about as fast as a file of the
/// cache is opened and read.
const CACHED_FROM: usize = 64 << 10;

/// Gives a table, and stores it afterwards: nobody waits for the cache.
fn make(
    file: &impl Source,
    cache: Option<&Cache>,
    give: &impl Fn(Result<FileTable, Reason>),
) -> Result<(), Reason> {
    let bytes = file.bytes()?;
    let sources = read::read(&bytes)?;
    let Some(cache) = cache.filter(|_| sources.size() >= CACHED_FROM) else {
        give(from_sources(&sources));
        return Ok(());
    };
    let key = cache::Key::of(&sources);
    if let Some(table) = cache.load(&key) {
        give(Ok(table));
        return Ok(());
    }
    let table = from_sources(&sources)?;
    let entry = cache::entry::encode(&key, &table);
    give(Ok(table));
    // Should this fail, the table is made again next time.
    _ = cache.store(&key, &entry);
    Ok(())
}
