//! `cargo xtask demo`: a small service that leaks, and leaktrace on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::{packages, process, project, tests};

/// The service's source.
const SOURCE: &str = "tests/demo/orderd.cc";

/// Builds leaktrace and the service, traces it for some seconds and prints
/// where the flamegraph is.
///
/// # Errors
/// Something does not build, root cannot be had, or leaktrace fails.
pub fn run() -> Result<()> {
    process::say("building leaktrace and a small service that leaks");
    let leaktrace = tests::build_release()?;
    let dir = project::target_dir().join("demo");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let program = compile(&dir)?;

    let service = Service::start(&program)?;
    let flamegraph = dir.join("orderd.svg");
    let mut trace = packages::as_root(&leaktrace);
    trace.args(["attach", &service.pid()]);
    // A verdict takes a minute.
    trace.args(["--duration", "80s", "--interval", "25s", "--top", "5"]);
    for (format, name) in [
        ("svg", "orderd.svg"),
        ("folded", "orderd.folded"),
        ("json", "orderd.json"),
    ] {
        let mut output = std::ffi::OsString::from(format!("{format}:"));
        output.push(dir.join(name));
        trace.arg("-o").arg(output);
    }
    process::say(&format!("running: {}", process::shown(&trace)));
    process::run(&mut trace)?;
    drop(service);

    if !flamegraph.is_file() {
        bail!("leaktrace wrote no {}", flamegraph.display());
    }
    println!(
        "\nflamegraph of the memory still held: {}",
        flamegraph.display()
    );
    Ok(())
}

fn compile(dir: &Path) -> Result<PathBuf> {
    if !process::exists("g++") {
        packages::install(&["g++"], "the demo's service")?;
    }
    let program = dir.join("orderd");
    // Source paths as of an installed service, not as of this checkout.
    let mut place = std::ffi::OsString::from("-ffile-prefix-map=");
    place.push(project::root().join("tests/demo"));
    place.push("=/usr/src/orderd");
    let mut compiler = Command::new("g++");
    compiler
        .args(["-g", "-O2", "-Wall", "-Wextra", "-pthread"])
        .args([
            "-fno-omit-frame-pointer",
            "-fno-optimize-sibling-calls",
            "-o",
        ])
        .arg(&program)
        .arg(place)
        .arg(project::root().join(SOURCE));
    process::run(&mut compiler)?;
    Ok(program)
}

/// The running service; ended when this goes, however the demo goes.
struct Service(Child);

impl Service {
    fn start(program: &Path) -> Result<Self> {
        let child = Command::new(program)
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self(child))
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
