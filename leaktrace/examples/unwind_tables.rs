//! Measures the making of unwind tables:
//! `cargo run --release --example unwind_tables -- /usr/lib/x86_64-linux-gnu/libc.so.6 ...`
//!
//! For each file, alone on one thread: what its table has, and the best of some
//! rounds of making it (`compile`) and of taking it from a cache (`load`, with
//! the hash of its sections), in CPU time. Then all of them, as a trace would, in parallel:
//! cold, with an empty cache, and from it; by the clock until the last table
//! was there, and the CPU time of all threads, which tells more when others use
//! the machine. With `KINDS=1` in the environment, how many rows there are of
//! each kind.

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    fs::File,
    io,
    ops::Deref,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use leaktrace::{
    file_map,
    unwind::{
        self, Cache, FileTable, Source,
        cache::{Key, LIMIT, entry},
        read,
        rule::Unsupported,
        tables::Tables,
    },
};
use leaktrace_common::unwind::{GAP_RULE, Page};

const ROUNDS: usize = 5;

struct OnDisk(PathBuf);

impl Source for OnDisk {
    fn path(&self) -> &Path {
        &self.0
    }
    fn bytes(&self) -> io::Result<impl Deref<Target = [u8]>> {
        file_map::map(&File::open(&self.0)?)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let files: Vec<OnDisk> = env::args_os().skip(1).map(|it| OnDisk(it.into())).collect();
    let place = tempfile::tempdir()?;
    let cache = Cache::open_in(&place.path().join("single"), LIMIT)?;
    println!("    rows   rules  pages  B/row  functions framed damaged  compile     load  file");
    for file in &files {
        if let Err(error) = one(file, &cache) {
            println!("{}: {error}", file.0.display());
        }
    }
    let cache = Cache::open_in(&place.path().join("all"), LIMIT)?;
    for name in ["cold, filling the cache", "from the cache"] {
        let mut tables = Tables::new(u32::MAX);
        let (start, cpu) = (Instant::now(), cpu_time());
        let (mut wall, mut used) = (Duration::ZERO, Duration::ZERO);
        unwind::compile_all(&files, Some(&cache), |_, result| {
            match result {
                Ok(table) => _ = tables.add(&table),
                Err(error) => println!("{error}"),
            }
            (wall, used) = (start.elapsed(), cpu_time() - cpu);
        });
        println!(
            "all, {name}: {}, CPU {}; {} rows, {} rules",
            milliseconds(wall),
            milliseconds(used),
            tables.rows().len(),
            tables.rules().len()
        );
    }
    Ok(())
}

fn one(file: &OnDisk, cache: &Cache) -> Result<(), Box<dyn Error>> {
    let bytes = file.bytes()?;
    let (compile, table) = best(|| unwind::compile(&bytes))?;
    let key = Key::of(&read::read(&bytes)?);
    cache.store(&key, &entry::encode(&key, &table))?;
    let (load, _) = best(|| {
        let key = Key::of(&read::read(&bytes)?);
        let loaded = cache.load(&key);
        loaded
            .ok_or_else(|| io::Error::other("not in the cache"))
            .map_err(unwind::Reason::from)
    })?;
    let size = size_of_val(&*table.rows) + table.pages.len() * size_of::<Page>();
    println!(
        "{:8} {:7} {:6} {:6.2} {:10} {:6} {:7} {:>8} {:>8}  {}",
        table.rows.len(),
        table.rules.len(),
        table.pages.len(),
        size as f64 / table.rows.len() as f64,
        table.functions.total,
        table.functions.with_frame_pointer,
        table.functions.damaged,
        milliseconds(compile),
        milliseconds(load),
        file.0.display(),
    );
    if env::var_os("KINDS").is_some() {
        kinds(&table);
    }
    Ok(())
}

/// Prints how many rows there are of the kinds that end a walk.
fn kinds(table: &FileTable) {
    let mut counts = BTreeMap::new();
    for row in &table.rows {
        let rule = &table.rules[usize::from(row.rule())];
        let kind = match Unsupported::of(rule) {
            Some(reason) => format!("{reason:?}"),
            None if row.rule() == GAP_RULE => "Gap".to_owned(),
            None => format!("kind {} with frame pointer {}", rule.cfa_kind, rule.fp_kind),
        };
        *counts.entry(kind).or_insert(0) += 1;
    }
    println!("         {counts:?}");
}

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

fn best<T>(
    mut make: impl FnMut() -> Result<T, unwind::Reason>,
) -> Result<(Duration, T), unwind::Reason> {
    let mut found = None;
    for _ in 0..ROUNDS {
        let start = cpu_time();
        let made = make()?;
        let took = cpu_time() - start;
        if found.as_ref().is_none_or(|(least, _)| took < *least) {
            found = Some((took, made));
        }
    }
    found.ok_or(unwind::Reason::NoInformation)
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1e3)
}
