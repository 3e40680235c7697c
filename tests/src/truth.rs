//! Stacks that the compiler's own unwinder found inside a process
//! (`fixtures/truth.c`), and those that leaktrace saw of the same allocations.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt, fs,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::{
    build, features,
    fixture::{Fixture, Start},
    report::Report,
    tracer,
};

/// Frames that leaktrace keeps of one stack, from the C library's function on.
pub const KEPT: usize = 127;
/// How a complete stack ends.
pub const COMPLETE: &str = "complete";
/// How a stack ends of which more frames than [`KEPT`] are there.
pub const TOO_DEEP: &str = "deeper than 127 frames";
/// The preloaded library.
const LIBRARY: &str = "libtruth";
/// What its functions are called where they are linked into the program.
const LINKED: &str = "__wrap_";

/// A frame: the file's name and the offset there of the byte before the return
/// address.
pub type Place = (String, u64);
/// How many allocations each stack has made.
pub type Stacks = HashMap<Vec<Place>, u64>;

/// A program that was traced and that took its stacks itself meanwhile. Both
/// begin with the caller of the function that allocates.
pub struct Traced {
    /// leaktrace's report.
    pub report: Report,
    /// What the program has found.
    pub truth: Stacks,
    /// What leaktrace has seen, by how the stacks ended.
    pub seen: BTreeMap<String, Stacks>,
    /// How many allocations that did not come through the library.
    pub strays: u64,
}

/// Starts a program with the library preloaded, attaches, has it carry out the
/// commands, detaches, and waits for its end.
///
/// # Errors
/// When any of that fails.
pub fn traced(start: Start, options: &[&str], commands: &[&str]) -> Result<Traced> {
    let mut witness = Witness::start(start)?;
    let tracer = tracer::Start::attach(witness.fixture.pid())?
        .args(options)
        .attached()?;
    witness.tell(commands)?;
    let report = tracer.report()?;
    features::check(&report)?;
    let seen = seen(&report);
    let compared: u64 = seen.values().flat_map(HashMap::values).sum();
    Ok(Traced {
        truth: witness.finish()?,
        strays: report.totals.alloc_blocks.saturating_sub(compared),
        seen,
        report,
    })
}

/// A program that takes its stacks, and where it will write them.
struct Witness {
    fixture: Fixture,
    directory: TempDir,
}

impl Witness {
    fn start(start: Start) -> Result<Self> {
        let library = build::library("truth")?;
        let directory = tempfile::tempdir().context("making a directory")?;
        let fixture = start
            .env("LD_PRELOAD", &library.display().to_string())
            .env("TRUTH", &directory.path().display().to_string())
            .start()?;
        Ok(Self { fixture, directory })
    }

    fn tell(&mut self, commands: &[&str]) -> Result<()> {
        commands
            .iter()
            .try_for_each(|command| self.fixture.tell(command))
    }

    fn finish(mut self) -> Result<Stacks> {
        self.fixture.finish_well()?;
        let name = self.fixture.pid().to_string();
        let path = self.directory.path().join(name);
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        read(&text)
    }
}

/// Reads what `truth.c` has written.
fn read(text: &str) -> Result<Stacks> {
    let mut stacks = Stacks::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        let count: u64 = words
            .next()
            .context("an empty line")?
            .parse()
            .with_context(|| format!("in {line:?}"))?;
        let frames = words.map(|word| -> Result<Place> {
            let (file, offset) = word.rsplit_once(':').context("a frame without offset")?;
            Ok((plain(file), u64::from_str_radix(offset, 16)?))
        });
        // The first is the function that takes the stack, somewhere inside it.
        let mut frames: Vec<Place> = frames.skip(1).collect::<Result<_>>()?;
        frames.truncate(KEPT - 1);
        *stacks.entry(frames).or_default() += count;
    }
    Ok(stacks)
}

/// A library's name without its version: the loader knows another one than the
/// kernel, by a symbolic link.
fn plain(name: &str) -> String {
    let plain = name.split_once(".so").map_or(name, |(plain, _)| plain);
    plain.to_owned()
}

/// The stacks that pass through `truth.c`, without it and the function before it.
fn seen(report: &Report) -> BTreeMap<String, Stacks> {
    let mut all: BTreeMap<String, Stacks> = BTreeMap::new();
    for stack in &report.stacks {
        let frames: Vec<_> = stack.frames.iter().filter(|frame| !frame.inlined).collect();
        let places: Vec<Place> = frames
            .iter()
            .map(|frame| {
                let path = Path::new(frame.module.as_deref().unwrap_or_default());
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                (plain(&name), frame.file_offset.unwrap_or_default())
            })
            .collect();
        let is_linked = |number: usize| {
            let symbol = frames[number].symbol.as_deref();
            symbol.is_some_and(|symbol| symbol.starts_with(LINKED))
        };
        if places.get(1).is_some_and(|(file, _)| file == LIBRARY)
            || frames.len() > 1 && is_linked(1)
        {
            let ended = all.entry(stack.end.clone()).or_default();
            *ended.entry(places[2..].to_vec()).or_default() += stack.alloc_blocks;
        }
    }
    all
}

/// How many allocations have stacks of which kind.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// All of them.
    pub all: u64,
    /// Complete, and frame by frame the same.
    pub right: u64,
    /// Different stacks that are complete.
    pub stacks: usize,
    /// The others, by how they ended.
    pub incomplete: BTreeMap<String, Incomplete>,
    /// One of those that are wrong.
    wrong: Option<Vec<Place>>,
}

/// How many allocations have incomplete stacks of which kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Incomplete {
    /// The same: the program could not go on there either.
    pub same: u64,
    /// The same as far as they go.
    pub shorter: u64,
    /// The same as far as the program's own go.
    pub longer: u64,
    /// Other ones.
    pub wrong: u64,
}

impl fmt::Display for Comparison {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            all, right, stacks, ..
        } = self;
        write!(
            formatter,
            "{right} of {all} stacks complete and right, {stacks} different"
        )?;
        for (end, incomplete) in &self.incomplete {
            write!(formatter, "\n  {end}: {incomplete:?}")?;
        }
        Ok(())
    }
}

impl Traced {
    /// Compares stack by stack.
    ///
    /// # Errors
    /// When nothing was seen, or a complete stack is wrong.
    pub fn compare(&self) -> Result<Comparison> {
        let mut result = Comparison::default();
        let begun: HashSet<&[Place]> = self.truth.keys().flat_map(|it| beginnings(it)).collect();
        for (end, stacks) in &self.seen {
            for (frames, count) in stacks {
                let known = self.truth.get(frames).copied().unwrap_or(0);
                result.all += count;
                if end == COMPLETE {
                    ensure!(
                        *count <= known,
                        "a complete stack was seen {count} times, and was there {known} times:\n\
                         {frames:#x?}"
                    );
                    result.right += count;
                    result.stacks += 1;
                    continue;
                }
                let incomplete = result.incomplete.entry(end.clone()).or_default();
                if known > 0 {
                    incomplete.same += count;
                } else if begun.contains(&frames[..]) {
                    incomplete.shorter += count;
                } else if beginnings(frames).any(|part| self.truth.contains_key(part)) {
                    incomplete.longer += count;
                } else {
                    incomplete.wrong += count;
                    result.wrong.get_or_insert_with(|| frames.clone());
                }
            }
        }
        ensure!(result.all > 0, "nothing was seen");
        ensure!(
            self.strays * 1000 <= result.all,
            "{} of {} stacks have not even the library that takes the truth",
            self.strays,
            result.all
        );
        Ok(result)
    }
}

/// All that a stack begins with, itself left out.
fn beginnings(frames: &[Place]) -> impl Iterator<Item = &[Place]> {
    (0..frames.len()).map(|length| &frames[..length])
}

impl Comparison {
    /// Checks that all but one of so many stacks are complete.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn is_complete_but_for(&self, one_in: u64) -> Result<()> {
        ensure!(
            (self.all - self.right).saturating_mul(one_in) <= self.all,
            "too few: {self}"
        );
        Ok(())
    }

    /// Checks that incomplete stacks are right as far as they go.
    ///
    /// # Errors
    /// When one is not.
    pub fn agrees(&self) -> Result<()> {
        ensure!(
            self.wrong.is_none(),
            "incomplete stacks are wrong: {self}\n{:#x?}",
            self.wrong
        );
        Ok(())
    }
}
