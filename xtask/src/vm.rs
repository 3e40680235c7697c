//! `cargo xtask vm-test`: the release binary and the end-to-end tests on other
//! kernels, each booted in an emulated machine of its own.
//!
//! Kernels are Debian's, by package name; the machine is QEMU without hardware
//! acceleration, so that it works wherever this does. A guest has no compiler and
//! no network: everything that runs there is built here and put into one image.
//! Guests are slow, so the tests' amount of work shrinks; what they demand does
//! not.

mod cpio;
mod guest;
mod image;
mod kernel;
mod machine;
mod readme;
mod suites;
mod table;
mod verdict;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::{packages, process, project};
use guest::Guest;
use kernel::{Found, Kernel};
use table::Row;
use verdict::Verdict;

/// What `cargo xtask vm-test` is asked to do.
#[derive(clap::Args)]
pub struct Options {
    /// Only these kernels: 5.10, 6.1, 6.12, 6.18, newest.
    kernels: Vec<String>,
    /// Only tests whose name contains this.
    #[arg(long, value_name = "TEST")]
    filter: Option<String>,
    /// Keep the images and every guest's console, not only those of failures.
    #[arg(long)]
    keep: bool,
    /// Write the table of kernels into README.md.
    #[arg(long, conflicts_with_all = ["kernels", "filter"])]
    bless_readme: bool,
}

/// Boots every guest, prints the table, and says whether all that ran is well.
///
/// # Errors
/// Something does not build, or a kernel is offered but cannot be fetched.
pub fn run(options: &Options) -> Result<bool> {
    let guests = Guest::selected(&options.kernels)?;
    let start = Instant::now();
    install_tools()?;
    let dir = project::target_dir().join("vm");
    let kernels = find_kernels(&guests, &dir)?;
    let image = image::build(&dir)?;
    let consoles = dir.join("guests");
    if consoles.exists() {
        fs::remove_dir_all(&consoles)
            .with_context(|| format!("cannot remove {}", consoles.display()))?;
    }
    process::say(&format!(
        "everything is ready after {} s",
        start.elapsed().as_secs()
    ));

    let rows = run_all(&guests, &kernels, &image, &consoles, options)?;
    if !options.keep {
        fs::remove_file(&image).context("cannot remove the guests' image")?;
    }
    print!("\n{}", table::text(&rows));
    if options.bless_readme {
        readme::bless(&rows)?;
    }
    Ok(!rows.iter().any(Row::has_failed))
}

/// The programs that make images and run guests.
fn install_tools() -> Result<()> {
    let purpose = "machines that run other kernels";
    let wanted = [
        ("qemu-system-x86", process::exists("qemu-system-x86_64")),
        ("busybox-static", image::busybox().is_some()),
        ("e2fsprogs", process::exists("mke2fs")),
        ("xz-utils", process::exists("xz")),
    ];
    let missing: Vec<_> = wanted
        .into_iter()
        .filter(|(_, is_there)| !is_there)
        .map(|(package, _)| package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    packages::install(&missing, purpose)
}

/// The kernels of all guests, by series.
fn find_kernels(guests: &[Guest], dir: &Path) -> Result<BTreeMap<&'static str, Found>> {
    let mut kernels = BTreeMap::new();
    for guest in guests {
        if !kernels.contains_key(guest.series) {
            kernels.insert(guest.series, kernel::find(guest.series, dir)?);
        }
    }
    Ok(kernels)
}

/// Runs the guests, as many at a time as there are processors: each has one.
fn run_all(
    guests: &[Guest],
    kernels: &BTreeMap<&'static str, Found>,
    image: &Path,
    consoles: &Path,
    options: &Options,
) -> Result<Vec<Row>> {
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let queue = Mutex::new(guests.iter().enumerate());
    let rows = Mutex::new(BTreeMap::new());
    let work = || -> Result<()> {
        loop {
            let next = queue.lock().ok().and_then(|mut queue| queue.next());
            let Some((index, guest)) = next else {
                return Ok(());
            };
            let row = match kernels
                .get(guest.series)
                .context("a kernel not looked for")?
            {
                Found::NotOffered(reason) => Row::not_run(guest, reason),
                Found::Kernel(kernel) => run_one(guest, kernel, image, consoles, options)?,
            };
            if let Ok(mut rows) = rows.lock() {
                rows.insert(index, row);
            }
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| match worker.join() {
                Ok(result) => result,
                Err(_) => bail!("a thread that runs guests panicked"),
            })
    })?;
    let rows = rows.into_inner().unwrap_or_default();
    Ok(rows.into_values().collect())
}

/// Runs one guest, and again where one failure proves nothing.
fn run_one(
    guest: &Guest,
    kernel: &Kernel,
    image: &Path,
    consoles: &Path,
    options: &Options,
) -> Result<Row> {
    let name = guest.name();
    let mut attempts = 0;
    loop {
        attempts += 1;
        let dir = consoles.join(format!("{}-{attempts}", name.replace(' ', "-")));
        let (verdict, took) = attempt(guest, kernel, image, &dir, options)?;
        process::say(&format!(
            "{name}: {}, {} s",
            verdict.summary(),
            took.as_secs()
        ));
        if !verdict.has_failed() && !options.keep {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        if verdict.has_failed() {
            for problem in verdict.problems() {
                process::say(&format!("{name}: {problem}"));
            }
            process::say(&format!("{name}: see {}", project::shown(&dir)));
        }
        if !verdict.has_failed() || attempts > guest.retries() {
            return Ok(Row::ran(guest, kernel, verdict, attempts));
        }
        process::say(&format!("{name}: once more"));
    }
}

fn attempt(
    guest: &Guest,
    kernel: &Kernel,
    image: &Path,
    dir: &Path,
    options: &Options,
) -> Result<(Verdict, std::time::Duration)> {
    let start = Instant::now();
    let ended = machine::boot(guest, kernel, image, dir, options.filter.as_deref())?;
    let mut verdict = Verdict::read(&ended);
    verdict.expect_preemption(guest.preemption);
    Ok((verdict, start.elapsed()))
}
